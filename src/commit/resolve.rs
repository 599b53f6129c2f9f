//! New extents over old ones: which `e` rows a commit deletes and writes, and what that does
//! to the live bytes of segments.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::pack::Change;
use super::pending::FileKey;
use super::view::{View, ViewError};
use crate::base::SegmentId;
use crate::data::{Extent, Overlay, Source};
use crate::meta::{DecodeError, ExtentRow, Key, OrphanData, SegmentRow, keys};

/// Committed extents that the first scan for a range brings, and the most that a later one does:
/// a small file has one, a long write may cover thousands, and scattered ones few each.
const SCAN_ROWS_FIRST: usize = 8;
const SCAN_ROWS_MAX: usize = 256;
/// A dropped file with at most this many extents is deleted with the commit; a larger one in
/// the background, so that deleting it is a constant number of rows now.
pub const INLINE_DROP_EXTENTS: usize = 64;

/// Rows that a commit writes besides those of its batches.
#[derive(Debug, Default)]
pub struct Changes {
    /// Rows; `None` deletes.
    pub rows: BTreeMap<Key, Option<Bytes>>,
    /// Change of live bytes by segment.
    pub live: HashMap<SegmentId, i64>,
}

impl Changes {
    /// The rows as the metadata store takes them.
    pub fn into_rows(self) -> impl Iterator<Item = (Bytes, Option<Bytes>)> {
        self.rows.into_iter().map(|(key, value)| (Bytes::from(key.into_vec()), value))
    }

    /// The segment is dead since `since_secs`, and deleted when its grace is over.
    pub fn bury(&mut self, id: SegmentId, since_secs: u64) {
        self.rows.insert(keys::dead_segment(since_secs, id), Some(OrphanData::encode()));
    }

    fn put_extent(&mut self, file: FileKey, end: u64, row: ExtentRow) {
        *self.live.entry(row.segment).or_default() += row.len as i64;
        self.rows.insert(keys::extent(file.0, file.1, end), Some(row.encode()));
    }

    /// Deletes a committed extent.
    pub fn delete_extent(&mut self, file: FileKey, extent: &Extent) {
        *self.live.entry(extent.segment).or_default() -= (extent.end - extent.start) as i64;
        self.rows.insert(keys::extent(file.0, file.1, extent.end), None);
    }
}

/// The file and the extent that an `e` row stands for.
pub fn extent_of(key: &[u8], value: &[u8]) -> Result<(FileKey, Extent), DecodeError> {
    let (ino, generation, end) = keys::extent_of(key).ok_or(DecodeError("extent key"))?;
    let row = ExtentRow::decode(value)?;
    let start = end.checked_sub(row.len).ok_or(DecodeError("extent before 0"))?;
    let extent = Extent { start, end, segment: row.segment, offset: row.segment_offset };
    Ok(((ino, generation), extent))
}

/// The segment that an `s` row stands for.
pub fn segment_row(key: &[u8], value: &[u8]) -> Result<(SegmentId, SegmentRow), DecodeError> {
    let id = keys::segment_of(key).ok_or(DecodeError("segment key"))?;
    Ok((id, SegmentRow::decode(value)?))
}

/// Applies `changes` of one file to its committed extents. `fresh`: it has none.
pub async fn apply_file(
    view: &View,
    out: &mut Changes,
    file: FileKey,
    changes: &[Change],
    fresh: bool,
) -> Result<(), ViewError> {
    let old = match fresh {
        true => BTreeMap::new(),
        false => committed(view, file, changes.iter().map(|c| (c.start, c.end))).await?,
    };
    apply_changes(out, file, changes, &old);
    Ok(())
}

/// The committed extents that touch `ranges`, which are in order, and some beside them, by end.
pub async fn committed(
    view: &View,
    file: FileKey,
    ranges: impl Iterator<Item = (u64, u64)>,
) -> Result<BTreeMap<u64, Extent>, ViewError> {
    let mut found = BTreeMap::new();
    // Everything below `known` has been looked at; skips what no range touches.
    let mut known = 0;
    for (start, end) in ranges {
        let mut rows = SCAN_ROWS_FIRST;
        while known < end {
            let from = known.max(start);
            let (extents, complete_to) = view.scan_extents(file, from, rows).await?;
            found.extend(extents.into_iter().map(|e| (e.end, e)));
            known = complete_to;
            rows = (rows * 4).min(SCAN_ROWS_MAX);
        }
    }
    Ok(found)
}

/// Applies `changes` of one file to its extents `old`: all that the changes touch, by end.
pub fn apply_changes(
    out: &mut Changes,
    file: FileKey,
    changes: &[Change],
    old: &BTreeMap<u64, Extent>,
) {
    let mut now: Overlay<Source> = Overlay::default();
    for e in old.values() {
        now.insert(e.start, e.end, Source::Segment { id: e.segment, offset: e.offset });
    }
    for change in changes {
        match change.to {
            Some((id, offset)) => {
                now.insert(change.start, change.end, Source::Segment { id, offset });
            }
            None => now.cut(change.start, change.end),
        }
    }
    let mut kept = 0;
    for (start, end, source) in now.iter() {
        let Source::Segment { id, offset } = source else {
            unreachable!("only segments were inserted");
        };
        let row = ExtentRow { segment: id, segment_offset: offset, len: end - start };
        let same = |e: &Extent| e.start == start && e.segment == id && e.offset == offset;
        match old.get(&end) {
            Some(e) if same(e) => kept += 1,
            Some(e) => {
                let e = *e;
                out.delete_extent(file, &e);
                out.put_extent(file, end, row);
            }
            None => out.put_extent(file, end, row),
        }
    }
    if kept < old.len() {
        let ends: std::collections::BTreeSet<u64> = now.iter().map(|(_, end, _)| end).collect();
        for (end, e) in old {
            if !ends.contains(end) {
                out.delete_extent(file, e);
            }
        }
    }
}

/// Drops all committed extents of a data generation, if they are few; else leaves a `r` row.
pub async fn drop_file(view: &View, out: &mut Changes, file: FileKey) -> Result<(), ViewError> {
    if file.1 != keys::RECLAIM_INODE {
        let (extents, complete_to) = view.scan_extents(file, 0, INLINE_DROP_EXTENTS + 1).await?;
        if complete_to == u64::MAX {
            extents.iter().for_each(|e| out.delete_extent(file, e));
            return Ok(());
        }
    }
    out.rows.insert(keys::reclaim(file.0, file.1), Some(OrphanData::encode()));
    Ok(())
}

/// Turns changes of live bytes into `s` rows; a segment that nothing refers to any more
/// becomes a `z` row dated `now_secs`. `new` are the sizes of the segments just uploaded. Returns
/// how many bytes of older segments are not referred to any more.
pub async fn settle_segments(
    view: &View,
    out: &mut Changes,
    new: &HashMap<SegmentId, u64>,
    now_secs: u64,
) -> Result<u64, ViewError> {
    let mut freed = 0;
    let mut totals = std::mem::take(&mut out.live);
    for id in new.keys() {
        totals.entry(*id).or_insert(0);
    }
    for (id, delta) in totals {
        freed += delta.min(0).unsigned_abs();
        let key = keys::segment(id);
        let before = match new.get(&id) {
            Some(&size) => Some(SegmentRow { size, live: 0 }),
            None => match view.kv().get(&key).await? {
                Some(row) => Some(SegmentRow::decode(&row)?),
                None => None,
            },
        };
        let Some(before) = before else {
            log::error!("segment {id} has extents but no accounting row; left alone");
            continue;
        };
        let live = before.live.checked_add_signed(delta).unwrap_or_else(|| {
            log::error!("segment {id} would have {} {delta:+} live bytes", before.live);
            0
        });
        if live == 0 {
            out.rows.insert(key, None);
            out.bury(id, now_secs);
        } else {
            out.rows.insert(key, Some(SegmentRow { size: before.size, live }.encode()));
        }
    }
    Ok(freed)
}
