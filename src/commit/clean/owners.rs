//! Who refers to a segment: its own summary says whose its data were when it was written, and the
//! rows of those files say what of it they still have. So a round reads rows in proportion to what
//! it cleans, however large the volume is. Writes nothing.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::plan::Piece;
use crate::base::{ContentsId, SegmentId};
use crate::commit::error::CommitError;
use crate::commit::extents::{extent_in, extent_of};
use crate::commit::view::ViewError;
use crate::data::Extent;
use crate::meta::{DecodeError, FILE_SIZE_MAX, Key, SegmentRow, keys};
use crate::store::kv::Kv;
use crate::store::segments::{Owned, RANGES_MAX, SegmentStore};

/// Ranges of summaries that one round looks up at most (32 bytes of memory each); the segments of
/// further ones wait for the next.
const ROUND_RANGES_MAX: usize = 4 * RANGES_MAX;
/// Extents that one round finds at most; 64 bytes of memory each.
const PIECES_MAX: usize = 4 * RANGES_MAX;
/// Summaries that are read at once.
const READS_PARALLEL: usize = 8;
/// Rows of one scan: as few if owners lie far apart, as many if side by side.
const ROWS_MIN: usize = 8;
const ROWS_MAX: usize = 4096;
/// What one request of a scan reads, by the rows that are asked for.
const BYTES_PER_ROW: usize = 64;

/// What a round has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Extents that refer to the chosen segments, in the order of their rows.
    pub(super) pieces: Vec<Piece>,
    /// Not all could be looked at.
    pub(super) more: bool,
}

/// The extents that refer to `chosen`, as they are now.
pub(super) async fn find(
    kv: &Kv,
    segments: &SegmentStore,
    chosen: &HashMap<SegmentId, SegmentRow>,
) -> Result<Found, CommitError> {
    let (mut ranges, mut more) = summaries(segments, chosen).await?;
    others(kv, chosen, &mut ranges).await?;
    // In the order of rows; of those that begin together, the longest first.
    ranges.sort_unstable_by_key(|r| (r.file(), r.offset, Reverse(r.len)));
    let (mut inodes, mut rows) = (Leap::new(kv, b'i'), Leap::new(kv, b'e'));
    let mut pieces = Vec::new();
    for of_file in ranges.chunk_by(|a, b| a.file() == b.file()) {
        if pieces.len() >= PIECES_MAX {
            more = true;
            break;
        }
        let file = of_file[0].file();
        match only_extent(&mut inodes, file).await? {
            Some(extent) if chosen.contains_key(&extent.segment) => {
                pieces.push(Piece { file, extent });
            }
            Some(_) => {}
            None => {
                for range in of_file {
                    extents(&mut rows, range, chosen, &mut pieces).await?;
                }
            }
        }
    }
    Ok(Found { pieces, more })
}

/// The ranges of all summaries; whether there were too many.
async fn summaries(
    segments: &SegmentStore,
    chosen: &HashMap<SegmentId, SegmentRow>,
) -> Result<(Vec<Owned>, bool), CommitError> {
    let mut ids: Vec<SegmentId> = chosen.keys().copied().collect();
    ids.sort_unstable();
    let mut read = futures::stream::iter(ids)
        .map(|id| async move {
            let contents = segments.contents(id).await;
            contents.map(|(_, ranges)| ranges).map_err(|e| CommitError::Clean(id, e))
        })
        .buffered(READS_PARALLEL);
    let mut ranges: Vec<Owned> = Vec::new();
    while let Some(some) = read.try_next().await? {
        if !ranges.is_empty() && ranges.len() + some.len() > ROUND_RANGES_MAX {
            return Ok((ranges, true));
        }
        ranges.extend(some);
    }
    Ok((ranges, false))
}

/// Adds the files that refer to `chosen` and are in no summary, since they share what is in them.
async fn others(
    kv: &Kv,
    chosen: &HashMap<SegmentId, SegmentRow>,
    ranges: &mut Vec<Owned>,
) -> Result<(), ViewError> {
    for (id, _) in chosen.iter().filter(|(_, row)| row.owners > 0) {
        let (mut from, to) = keys::owners(*id);
        loop {
            let page = kv.scan(&from, &to, ROWS_MAX, 1 << 16).await?;
            for (key, _) in &page {
                let (_, file) = keys::owner_of(key).ok_or(DecodeError("owner key"))?;
                let ContentsId { ino, incarnation } = file;
                ranges.push(Owned { ino, incarnation, offset: 0, len: FILE_SIZE_MAX });
            }
            match page.last() {
                Some((last, _)) if page.len() == ROWS_MAX => from = keys::after(last),
                _ => break,
            }
        }
    }
    Ok(())
}

/// The extent of a file that has only one.
async fn only_extent(inodes: &mut Leap<'_>, file: ContentsId) -> Result<Option<Extent>, ViewError> {
    let wanted = keys::inode(file.ino);
    match inodes.at(&wanted).await? {
        Some((key, value)) if **key == *wanted => {
            let found = extent_in(key, value)?;
            Ok(found.filter(|(of, _)| *of == file).map(|(_, extent)| extent))
        }
        _ => Ok(None),
    }
}

/// Adds the extents of `range` that refer to `chosen`. None is found twice: `rows` goes on only.
async fn extents(
    rows: &mut Leap<'_>,
    range: &Owned,
    chosen: &HashMap<SegmentId, SegmentRow>,
    pieces: &mut Vec<Piece>,
) -> Result<(), ViewError> {
    let file = range.file();
    let Range { start, end } = range.offset..range.offset + range.len;
    // Keyed by its end: the first that can cover `start` ends behind it.
    let from = keys::extent(file, start + 1);
    while let Some((key, value)) = rows.at(&from).await? {
        let (of, extent) = extent_of(key, value)?;
        if of != file || extent.start >= end {
            return Ok(());
        }
        if chosen.contains_key(&extent.segment) {
            pieces.push(Piece { file, extent });
        }
        rows.pass();
    }
    Ok(())
}

/// A place in the rows with one tag that only goes forward, in steps or in leaps. What lies side
/// by side is scanned a page at a time; a leap beyond the page begins a new one.
struct Leap<'a> {
    kv: &'a Kv,
    end: Key,
    page: VecDeque<(Bytes, Bytes)>,
    /// Rows behind the page begin here; `None`: there are none.
    behind: Option<Key>,
    /// Rows that the next page is to have, and how many of this one were looked at.
    rows: usize,
    used: usize,
}

impl<'a> Leap<'a> {
    fn new(kv: &'a Kv, tag: u8) -> Leap<'a> {
        let (first, end) = keys::all_with_tag(tag);
        Leap { kv, end, page: VecDeque::new(), behind: Some(first), rows: ROWS_MIN, used: 0 }
    }

    /// The first row not before `key`, and not before any that was passed.
    async fn at(&mut self, key: &[u8]) -> Result<Option<&(Bytes, Bytes)>, ViewError> {
        while self.page.front().is_some_and(|(found, _)| found[..] < *key) {
            self.page.pop_front();
        }
        if let (true, Some(behind)) = (self.page.is_empty(), &self.behind) {
            let from: Key = if **behind < *key { key.into() } else { behind.clone() };
            self.rows = match self.used * 4 >= self.rows {
                true => (self.rows * 4).min(ROWS_MAX),
                false => (self.rows / 4).max(ROWS_MIN),
            };
            let (rows, bytes) = (self.rows, self.rows * BYTES_PER_ROW);
            // Few rows: their block is likely to hold the next as well.
            let keep = rows < ROWS_MAX;
            let page = self.kv.scan_caching(&from, &self.end, rows, bytes, keep).await?;
            self.behind = match page.last() {
                Some((last, _)) if page.len() == rows => Some(keys::after(last)),
                _ => None,
            };
            (self.page, self.used) = (page.into(), 0);
        }
        self.used += 1;
        Ok(self.page.front())
    }

    /// Goes on behind the row at this place.
    fn pass(&mut self) {
        self.page.pop_front();
    }
}
