//! Extents against segments: how much of each is referred to, and nothing twice but what is shared.

use std::collections::BTreeMap;

use super::{Check, Finding};
use crate::base::{ContentsId, SegmentId};
use crate::commit::extents::extent_in;
use crate::commit::layouts::{kept_layout_in, layout_in};
use crate::commit::scan::Cursor;
use crate::commit::view::ViewError;
use crate::data::Extent;
use crate::meta::{DeadRow, DecodeError, KeptRow, SegmentRow, keys};

/// What rows say of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentSum {
    /// Its `s` row, if it has one.
    pub row: Option<SegmentRow>,
    /// Plaintext bytes that the object has by that row.
    pub object_len: u64,
    /// When it was found dead (`z` row, Unix seconds).
    pub dead_since: Option<u64>,
    /// Only snapshots refer to it (`y` row).
    pub kept: Option<KeptRow>,
    /// Extents that refer to it.
    pub extents: u64,
    /// Their bytes.
    pub live: u64,
    /// Where the last of them ends in it.
    pub end: u64,
    /// Its `b` rows.
    pub owners: u64,
}

/// Every segment that a row knows.
#[derive(Clone, Debug, Default)]
pub struct Segments(pub BTreeMap<SegmentId, SegmentSum>);

impl Segments {
    /// Takes up what a snapshot refers to, whose rows these are: the object must be there, and is
    /// read once. Returns those that no row of the volume says to be needed.
    pub fn take_up(&mut self, snapshot: &Segments) -> Vec<SegmentId> {
        let mut forgotten = Vec::new();
        for (&id, of) in snapshot.0.iter().filter(|(_, of)| of.row.is_some() || of.live > 0) {
            let sum = self.0.entry(id).or_default();
            if sum.row.is_none() && sum.kept.is_none() {
                forgotten.push(id);
                let segment = of.row.unwrap_or_default();
                sum.kept = Some(KeptRow { death: u64::MAX, segment });
                sum.object_len = of.object_len;
            }
        }
        forgotten
    }

    /// Counts an extent.
    pub(super) fn refer(&mut self, e: &Extent) {
        let (sum, len) = (self.0.entry(e.segment).or_default(), e.end - e.start);
        sum.extents += 1;
        sum.live += len;
        sum.end = sum.end.max(e.offset + len);
    }
}

impl Check<'_> {
    pub(super) async fn load_segments(&mut self) -> Result<(), ViewError> {
        let (kv, rows) = (self.kv, self.rows);
        let mut cursor = Cursor::new(kv, b's').counting(rows);
        while let Some((key, value)) = cursor.next().await? {
            let id = keys::segment_of(&key).ok_or(DecodeError("segment key"));
            let row = id.and_then(|id| Ok((id, layout_in(id, &value)?)));
            if let Some((id, (row, layout))) = self.decoded(&key, row) {
                let sum = self.segments.0.entry(id).or_default();
                (sum.row, sum.object_len) = (Some(row), layout.object_len());
            }
        }
        let mut cursor = Cursor::new(kv, b'b').counting(rows);
        while let Some((key, _)) = cursor.next().await? {
            let owner = keys::owner_of(&key).ok_or(DecodeError("owner key"));
            if let Some((id, ..)) = self.decoded(&key, owner) {
                self.segments.0.entry(id).or_default().owners += 1;
            }
        }
        let mut cursor = Cursor::new(kv, b'y').counting(rows);
        while let Some((key, value)) = cursor.next().await? {
            let id = keys::kept_segment_of(&key).ok_or(DecodeError("key of a kept segment"));
            let row = id.and_then(|id| Ok((id, kept_layout_in(id, &value)?)));
            if let Some((id, (row, layout))) = self.decoded(&key, row) {
                self.report.kept_segments += 1;
                let sum = self.segments.0.entry(id).or_default();
                (sum.kept, sum.object_len) = (Some(row), layout.object_len());
            }
        }
        let mut cursor = Cursor::new(kv, b'z').counting(rows);
        while let Some((key, value)) = cursor.next().await? {
            let dead = keys::dead_segment_of(&key).ok_or(DecodeError("dead segment key"));
            let dead = dead.and_then(|dead| DeadRow::decode(&value).map(|_| dead));
            if let Some((since, id)) = self.decoded(&key, dead) {
                self.report.dead_segments += 1;
                self.segments.0.entry(id).or_default().dead_since = Some(since);
            }
        }
        Ok(())
    }

    pub(super) async fn settle_segments(&mut self) -> Result<(), ViewError> {
        for (&id, sum) in &self.segments.0 {
            let SegmentSum { row, dead_since, kept, live: found, end, owners, .. } = *sum;
            let said = row.map_or(0, |row| row.owners);
            if u64::from(said) != owners {
                self.report.note(Finding::OwnerCount { id, said, found: owners });
            }
            self.report.segments += u64::from(row.is_some());
            let adds_up = |row: &SegmentRow| found == row.live && found > 0 && end <= row.size;
            match row {
                Some(row) if adds_up(&row) && row.says_half() => {}
                Some(row) if adds_up(&row) => {
                    let (size, live, said) = (row.size, row.live, row.half_since);
                    self.report.note(Finding::SegmentHalf { id, size, live, said });
                }
                Some(SegmentRow { size, live: said, .. }) => {
                    let finding = Finding::SegmentAccounting { id, size, said, found, end };
                    self.report.note(finding);
                }
                None if found > 0 => {
                    self.report.note(Finding::SegmentWithoutRow { id, found, end })
                }
                None => {}
            }
            if kept.is_some() && (row.is_some() || found > 0 || dead_since.is_some()) {
                self.report.note(Finding::KeptAndAlive { id });
            }
            if let Some(since_secs) = dead_since.filter(|_| row.is_some() || found > 0) {
                self.report.note(Finding::DeadAndAlive { id, since_secs });
            }
        }
        self.claim_unsaid().await?;
        match self.claims.twice() {
            Some(twice) => {
                twice.iter().for_each(|&id| self.report.note(Finding::SegmentShared { id }));
                Ok(())
            }
            None => self.shared().await,
        }
    }

    /// Claims the bytes of an extent, which nobody else may claim unless a `b` row says so.
    pub(super) fn claim(&mut self, (file, e): (ContentsId, Extent)) {
        match self.segments.0.get(&e.segment).is_some_and(|sum| sum.owners > 0) {
            true => self.claims.perhaps(file, &e),
            false => self.claims.claim(&e),
        }
    }

    /// Claims what no `b` row says to be shared, of segments that have such rows. They come in the
    /// order of segments and files.
    async fn claim_unsaid(&mut self) -> Result<(), ViewError> {
        let said = self.claims.take_said();
        let Some(first) = said.first() else { return Ok(()) };
        let from = keys::owner(first.segment, first.file);
        let mut rows = Cursor::new(self.kv, b'b').counting(self.rows).starting_at(from);
        for one in &said {
            let owner = keys::owner(one.segment, one.file);
            while rows.peek().await?.is_some_and(|(key, _)| key[..] < owner[..]) {
                rows.next().await?;
            }
            if rows.peek().await?.is_none_or(|(key, _)| key[..] != owner[..]) {
                self.claims.claim_said(one);
            }
        }
        Ok(())
    }

    /// Looks for bytes that two extents refer to although no `b` row says so of either, in groups of
    /// segments whose extents fit into memory together.
    async fn shared(&mut self) -> Result<(), ViewError> {
        let mut groups: Vec<(SegmentId, SegmentId, u64)> = Vec::new();
        let most = self.options.extents_per_pass as u64;
        for (&id, sum) in self.segments.0.iter().filter(|(_, sum)| sum.extents > 1) {
            match groups.last_mut() {
                Some((_, to, extents)) if *extents + sum.extents <= most => {
                    (*to, *extents) = (id, *extents + sum.extents);
                }
                _ => groups.push((id, id, sum.extents)),
            }
        }
        for (from, to, _) in groups {
            let mut pieces: Vec<(SegmentId, u64, u64)> = Vec::new();
            for tag in [b'e', b'i'] {
                let mut cursor = Cursor::new(self.kv, tag).counting(self.rows);
                while let Some((key, value)) = cursor.next().await? {
                    // What is not in the format was found before.
                    let Ok(Some((file, e))) = extent_in(&key, &value) else { continue };
                    if (from..=to).contains(&e.segment)
                        && !self.says_that_it_shares(file, &e).await?
                    {
                        pieces.push((e.segment, e.offset, e.end - e.start));
                    }
                }
            }
            pieces.sort_unstable();
            let shares =
                |w: &&[(SegmentId, u64, u64)]| w[0].0 == w[1].0 && w[0].1 + w[0].2 > w[1].1;
            let mut shared: Vec<_> = pieces.windows(2).filter(shares).map(|w| w[0].0).collect();
            shared.dedup();
            shared.into_iter().for_each(|id| self.report.note(Finding::SegmentShared { id }));
        }
        Ok(())
    }

    /// Whether there is a `b` row of the file for the segment of its extent.
    async fn says_that_it_shares(&self, file: ContentsId, e: &Extent) -> Result<bool, ViewError> {
        let any = self.segments.0.get(&e.segment).is_some_and(|sum| sum.owners > 0);
        Ok(any && self.kv.get(&keys::owner(e.segment, file)).await?.is_some())
    }
}
