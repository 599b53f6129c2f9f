//! The rows by which files use a new segment: a bounded batch at a time, between two commits, each
//! for bytes that are still where they were read and with its accounting. Cut off between two
//! batches, the new segment is one of which a part is live, like any other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Cleaner;
use super::carry::Moved;
use super::plan::{self, Placed};
use crate::base::{ContentsId, SegmentId, unix_secs};
use crate::commit::accounts::{self, Changes, NewSegment};
use crate::commit::error::CommitError;
use crate::commit::resolve;
use crate::commit::view::{Moving, ViewError};
use crate::data::Extent;
use crate::meta::{DeadRow, SegmentRow, keys};
use crate::store::segments::Layout;

/// Committed extents that one batch replaces: of each at most a row goes and three come, about 260
/// bytes with what the log adds, as a rule 110. A batch becomes one object of the metadata store's
/// log, which has to stay below the 1 MiB that proxies let through by default.
const BATCH_EXTENTS: usize = 2_000;
/// What the accounting of a segment counts as: its row has the index of its frames.
const ACCOUNT_EXTENTS: usize = 4;

/// A new segment on its way into the rows.
pub(super) struct Switch {
    id: SegmentId,
    layout: Arc<Layout>,
    /// What refers to the old places, in the order of files.
    pieces: Vec<Placed>,
    /// How many of them have been looked at.
    done: usize,
    /// The first batch, which makes its `s` row, is durable.
    begun: bool,
    /// The `z` row that announces it is dated so.
    reserved: u64,
    /// The key epoch that it is sealed in, or an earlier one.
    epoch: u32,
    /// What it was moved out of.
    moving: Moving,
}

impl Switch {
    fn new(moved: Moved, moving: Moving, reserved: u64, epoch: u32) -> Switch {
        let Moved { id, output, layout } = moved;
        let mut pieces = output.pieces;
        pieces.retain(|p| moving.segments.contains(&p.piece.extent.segment));
        pieces.sort_unstable_by_key(|p| (p.piece.file, p.piece.extent.start));
        Switch { id, layout, pieces, done: 0, begun: false, reserved, epoch, moving }
    }

    /// The segment stays as it is.
    fn leave(&mut self, id: SegmentId) {
        self.pieces.retain(|p| p.piece.extent.segment != id);
        self.moving.release(&id);
    }

    pub(super) fn is_done(&self) -> bool {
        self.done == self.pieces.len() && self.begun
    }

    /// What it was moved out of.
    pub(super) fn sources(&self) -> BTreeSet<SegmentId> {
        self.pieces.iter().map(|p| p.piece.extent.segment).collect()
    }

    /// The next file, and its pieces, of which as many as may fit into a batch.
    fn next_file(&self, most: usize) -> Option<(ContentsId, Vec<(Extent, u64)>)> {
        let left = &self.pieces[self.done..];
        let file = left.first()?.piece.file;
        let same = left.iter().take(most).take_while(|p| p.piece.file == file);
        Some((file, same.map(|p| (p.piece.extent, p.at)).collect()))
    }

    /// The first `taken` pieces are done, but for the last of them from byte `cut` of its file on.
    fn advance(&mut self, taken: usize, cut: u64) {
        self.done += taken;
        let Some(last) = taken.checked_sub(1).map(|_| &mut self.pieces[self.done - 1]) else {
            return;
        };
        let Extent { start, end, .. } = last.piece.extent;
        if cut < end {
            let off = cut - start;
            last.piece.extent.start = cut;
            last.piece.extent.offset += off;
            last.at += off;
            self.done -= 1;
        }
    }
}

/// Cuts `pieces` of a file off where more than `most` of its extents `now` (by end) would be
/// replaced; returns where that is, and how many are.
fn cut_off(
    pieces: &mut Vec<(Extent, u64)>,
    now: &BTreeMap<u64, Extent>,
    most: usize,
) -> (u64, usize) {
    let Some(first) = pieces.first().map(|(extent, _)| extent.start) else { return (u64::MAX, 0) };
    let behind = || now.range(first + 1..);
    let cut = behind().nth(most.max(1) - 1).map_or(u64::MAX, |(end, _)| *end);
    pieces.retain(|(extent, _)| extent.start < cut);
    let (last, _) = pieces.last_mut().expect("the first is kept");
    last.end = last.end.min(cut);
    let end = last.end;
    (cut, behind().take_while(|(_, extent)| extent.start < end).count())
}

impl Cleaner {
    /// Makes files use a new segment, in steps. What is shared with pending files stays where it
    /// is, and so does what is shared by others than were found: moved without them, it would be
    /// there twice.
    pub(super) async fn begin_switch(
        &self,
        moved: Moved,
        reserved: u64,
        epoch: u32,
    ) -> Result<Switch, CommitError> {
        let sources = moved.output.pieces.iter().map(|p| p.piece.extent.segment).collect();
        let moving = self.rows.view.begin_moving(sources);
        let mut switch = Switch::new(moved, moving, reserved, epoch);
        for id in switch.sources() {
            let row = self.rows.view.kv().get(&keys::segment(id)).await?;
            let row =
                row.as_deref().map(SegmentRow::decode).transpose().map_err(ViewError::from)?;
            let Some(row) = row.filter(|row| row.owners > 0) else { continue };
            if self.still_referred(&switch, id).await? != row.live {
                log::debug!("segment {id} is shared by others by now: it stays");
                switch.leave(id);
            }
        }
        Ok(switch)
    }

    /// Bytes of all extents that still refer to `source` where they did when it was read.
    async fn still_referred(&self, switch: &Switch, source: SegmentId) -> Result<u64, ViewError> {
        let of = |p: &&Placed| p.piece.extent.segment == source;
        let pieces: Vec<_> = switch.pieces.iter().filter(of).collect();
        let mut bytes = 0;
        for pieces in pieces.chunk_by(|a, b| a.piece.file == b.piece.file) {
            let ranges = pieces.iter().map(|p| (p.piece.extent.start, p.piece.extent.end));
            let now = resolve::extents_at(&self.rows.view, pieces[0].piece.file, ranges).await?;
            let pieces: Vec<_> = pieces.iter().map(|p| (p.piece.extent, p.at)).collect();
            let changes = plan::changes(&now, &pieces, switch.id);
            bytes += changes.iter().map(|c| c.end - c.start).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Makes files use the new segment, as far as they still have what was moved and one batch
    /// goes; returns how many of its bytes that are.
    pub(super) async fn switch_some(&self, switch: &mut Switch) -> Result<u64, CommitError> {
        let reservation = keys::dead_segment(switch.reserved, switch.id);
        let mut out = Changes::default();
        let in_time = unix_secs() < switch.reserved;
        if !switch.begun && (!in_time || self.rows.view.kv().get(&reservation).await?.is_none()) {
            // It may be deleted already, or have come after its deletion.
            log::warn!(
                "segment {} came too late: the machine slept, or was cut off for long",
                switch.id
            );
            out.rows.insert(reservation, None);
            out.bury(switch.id, unix_secs(), DeadRow::UNBORN);
            self.rows.write(out.into_rows().collect()).await?;
            (switch.done, switch.begun) = (switch.pieces.len(), true);
            return Ok(0);
        }
        if switch.begun && self.rows.view.kv().get(&keys::segment(switch.id)).await?.is_none() {
            // All that was moved into it has been overwritten since: it is dead, and stays so.
            switch.done = switch.pieces.len();
            return Ok(0);
        }
        let mut files: Vec<ContentsId> = Vec::new();
        let mut sources = BTreeSet::new();
        let (mut bytes, mut replaced) = (0, 0);
        loop {
            let room = BATCH_EXTENTS.saturating_sub(replaced + ACCOUNT_EXTENTS * sources.len());
            if room == 0 {
                break;
            }
            let Some((file, mut pieces)) = switch.next_file(room) else { break };
            // What a batch changes of a file, it changes at once: it reads what is committed.
            if files.last() == Some(&file) {
                break;
            }
            let ranges: Vec<_> = pieces.iter().map(|(e, _)| (e.start, e.end)).collect();
            let (mut cut, mut extents) = (u64::MAX, 0);
            let changes = |now: &BTreeMap<u64, Extent>| {
                (cut, extents) = cut_off(&mut pieces, now, room);
                plan::changes(now, &pieces, switch.id)
            };
            let ranges = ranges.into_iter();
            let moved =
                resolve::move_extents(&self.rows.view, &mut out, file, ranges, changes).await?;
            let pieces_done = &switch.pieces[switch.done..][..pieces.len()];
            if moved > 0 && pieces_done.iter().any(|p| p.shares) {
                out.share(switch.id, file);
            }
            bytes += moved;
            replaced += extents.max(1);
            sources.extend(pieces.iter().map(|(extent, _)| extent.segment));
            files.push(file);
            switch.advance(pieces.len(), cut);
        }
        let mut new = HashMap::new();
        if !switch.begun {
            // With nothing live in it, it is buried by that.
            new.insert(switch.id, NewSegment::of(&switch.layout));
            out.rows.insert(reservation, None);
        }
        let now = self.rows.between_commits(switch.epoch);
        accounts::settle_segments(&self.rows.view, &mut out, &new, now).await?;
        let written = self.rows.write(out.into_rows().collect()).await;
        // Whatever came of it: nobody may go on with the old places, whose segments will be
        // deleted.
        self.rows.view.forget_extents(files.iter());
        written?;
        switch.begun = true;
        self.rows.counts.moved.fetch_add(bytes, Ordering::Relaxed);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Output, Piece};
    use super::*;
    use crate::base::Ino;

    #[test]
    fn a_piece_that_is_in_many_pieces_by_now_is_switched_bit_by_bit() {
        // Guards against a batch without bound: a long extent that was overwritten in stripes is
        // cut where the batch is full, and goes on there; no byte twice, none left out.
        let segment = SegmentId([1; 16]);
        let extent = |start, end, offset| Extent { start, end, segment, offset };
        let file = ContentsId { ino: Ino(5), incarnation: 0 };
        let piece = |start, end, offset| Piece { file, extent: extent(start, end, offset) };
        let pieces = vec![
            Placed { piece: piece(0, 1000, 300), at: 0, shares: false },
            Placed { piece: piece(1000, 1100, 5000), at: 1000, shares: false },
        ];
        let output = Output { runs: Vec::new(), pieces, len: 1100 };
        let layout = Arc::new(Layout { data_len: 1100, tail_len: 50, frames: None });
        let mut moving = Moving::default();
        moving.segments.insert(segment);
        let moved = Moved { id: SegmentId([9; 16]), output, layout };
        let mut switch = Switch::new(moved, moving, 0, 1);
        // Of every 20 bytes the first 10 are still where they were.
        let mut now: BTreeMap<u64, Extent> = BTreeMap::new();
        for n in 0..50 {
            now.insert(n * 20 + 10, extent(n * 20, n * 20 + 10, 300 + n * 20));
        }
        now.insert(1100, extent(1000, 1100, 5000));
        let mut moved = Vec::new();
        let mut batches = 0;
        while let Some((_, mut pieces)) = switch.next_file(7) {
            batches += 1;
            let (cut, extents) = cut_off(&mut pieces, &now, 7);
            assert!(extents <= 7);
            let changes = plan::changes(&now, &pieces, switch.id);
            assert!(changes.len() <= 7);
            for change in changes {
                let at = change.to.expect("data").offset;
                moved.push((change.start, change.end, at));
            }
            switch.advance(pieces.len(), cut);
        }
        assert_eq!(batches, 8);
        let mut wanted: Vec<_> = (0..50).map(|n| (n * 20, n * 20 + 10, n * 20)).collect();
        wanted.push((1000, 1100, 1000));
        assert_eq!(moved, wanted);
    }
}
