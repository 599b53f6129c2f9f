//! What a commit writes besides the rows of its batches, and the accounts of segments: how many
//! bytes of each are referred to, since when there is one, and since when it is dead.
//!
//! Files may share bytes of a segment. Each reference counts, so `live` is the sum of all extents'
//! lengths, and a segment is dead when it is 0. A file that refers to a segment in places that its summary
//! does not name has a `b` row, so that cleaning finds every reference: one that it did not find would
//! keep the old segment, and the bytes would be there twice. A row that has become needless does no
//! harm; those of a segment go with it at the latest.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::view::{View, ViewError};
use crate::base::{ContentsId, SegmentId};
use crate::data::Extent;
use crate::meta::{DeadRow, DecodeError, ExtentRow, KeptRow, Key, MarkerRow, SegmentRow, keys};
use crate::store::segments::Layout;

/// Rows that a commit writes besides those of its batches.
#[derive(Debug, Default)]
pub struct Changes {
    /// Rows; `None` deletes.
    pub rows: BTreeMap<Key, Option<Bytes>>,
    /// Change of live bytes by segment.
    live: HashMap<SegmentId, i64>,
    /// By segment, the files of which a `b` row says that they share it (`true`), or that it need
    /// not say so any more.
    owners: BTreeMap<SegmentId, BTreeMap<ContentsId, bool>>,
}

/// A segment that was just uploaded.
#[derive(Clone, Debug, Default)]
pub struct NewSegment {
    /// Bytes of data.
    pub size: u64,
    /// See [`SegmentRow::encode_with`].
    pub frames: Bytes,
}

impl NewSegment {
    /// One that is laid out so.
    pub fn of(layout: &Layout) -> NewSegment {
        NewSegment { size: layout.data_len, frames: layout.to_row().into() }
    }
}

/// When segments are made and die, as their rows say it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Unix seconds.
    pub secs: u64,
    /// The first commit that may refer to what is made now.
    pub birth: u64,
    /// The first commit that does not refer to what dies now.
    pub death: u64,
    /// The epoch in which new segments are sealed, or an earlier one.
    pub epoch: u32,
}

impl Moment {
    /// Commit `sequence` itself.
    pub fn of_commit(sequence: u64, epoch: u32, secs: u64) -> Moment {
        Moment { secs, birth: sequence, death: sequence, epoch }
    }

    /// After commit `sequence`, before the next: what is made now may be seen under its number, and
    /// what dies was.
    pub fn behind_commit(sequence: u64, epoch: u32, secs: u64) -> Moment {
        Moment { secs, birth: sequence, death: sequence + 1, epoch }
    }
}

impl Changes {
    /// The rows as the metadata store takes them.
    pub fn into_rows(self) -> impl Iterator<Item = (Bytes, Option<Bytes>)> {
        self.rows.into_iter().map(|(key, value)| (Bytes::from(key.into_vec()), value))
    }

    /// The segment is dead since `since_secs`, and deleted when its grace is over.
    pub fn bury(&mut self, id: SegmentId, since_secs: u64, row: DeadRow) {
        self.rows.insert(keys::dead_segment(since_secs, id), Some(row.encode()));
    }

    /// The file refers to the segment in other places than the segment itself says.
    pub fn share(&mut self, id: SegmentId, file: ContentsId) {
        self.owners.entry(id).or_default().insert(file, true);
    }

    /// The file does not refer to the segment any more.
    pub(super) fn disown(&mut self, id: SegmentId, file: ContentsId) {
        self.owners.entry(id).or_default().entry(file).or_insert(false);
    }

    /// Counts an extent that there is now.
    pub(super) fn gain(&mut self, extent: &Extent) {
        *self.live.entry(extent.segment).or_default() += (extent.end - extent.start) as i64;
    }

    /// Counts an extent that there was.
    pub(super) fn lose(&mut self, extent: &Extent) {
        *self.live.entry(extent.segment).or_default() -= (extent.end - extent.start) as i64;
    }

    /// Writes the `e` row of an extent, which is counted already.
    pub(super) fn put_row(&mut self, file: ContentsId, e: &Extent) {
        let row = ExtentRow { segment: e.segment, segment_offset: e.offset, len: e.end - e.start };
        self.rows.insert(keys::extent(file, e.end), Some(row.encode()));
    }

    /// Deletes a committed `e` row and what it counted.
    pub fn delete_extent(&mut self, file: ContentsId, extent: &Extent) {
        self.lose(extent);
        self.rows.insert(keys::extent(file, extent.end), None);
    }
}

/// The segment that an `s` row stands for.
pub fn segment_row(key: &[u8], value: &[u8]) -> Result<(SegmentId, SegmentRow), DecodeError> {
    let id = keys::segment_of(key).ok_or(DecodeError("segment key"))?;
    Ok((id, SegmentRow::decode(value)?))
}

/// Turns changes of live bytes into `s` rows; a segment that nothing refers to any more
/// becomes a `z` row, or a `y` row if a snapshot holds it. `new` are the segments just uploaded. Returns how many bytes of older
/// segments are not referred to any more.
pub async fn settle_segments(
    view: &View,
    out: &mut Changes,
    new: &HashMap<SegmentId, NewSegment>,
    now: Moment,
) -> Result<u64, ViewError> {
    let mut freed = 0;
    let mut totals = std::mem::take(&mut out.live);
    totals.retain(|_, delta| *delta != 0);
    let owners = std::mem::take(&mut out.owners);
    let shared = owners.iter().filter(|(_, files)| files.values().any(|shares| *shares));
    for id in new.keys().chain(shared.map(|(id, _)| id)) {
        totals.entry(*id).or_insert(0);
    }
    for (id, delta) in totals {
        freed += delta.min(0).unsigned_abs();
        let key = keys::segment(id);
        let (mut row, frames) = match new.get(&id) {
            Some(NewSegment { size, frames }) => {
                let (birth, epoch) = (now.birth, now.epoch);
                let row = SegmentRow { size: *size, birth, epoch, ..SegmentRow::default() };
                (row, frames.clone())
            }
            None => match view.kv().get(&key).await? {
                Some(value) => {
                    let (row, frames) = SegmentRow::decode_with(&value)?;
                    (row, value.slice_ref(frames))
                }
                // Only snapshots referred to it until now: it is the volume's own again.
                None => {
                    let kept = keys::kept_segment(id);
                    let Some(value) = view.kv().get(&kept).await? else {
                        log::error!("segment {id} has extents but no accounting row; left alone");
                        continue;
                    };
                    out.rows.insert(kept, None);
                    let (row, frames) = KeptRow::decode_with(&value)?;
                    (row.segment, value.slice_ref(frames))
                }
            },
        };
        let live = row.live.checked_add_signed(delta).unwrap_or_else(|| {
            log::error!("segment {id} would have {} {delta:+} live bytes", row.live);
            0
        });
        row = row.with_live(live, now.death);
        if row.live > 0 {
            let files = owners.get(&id).into_iter().flatten();
            settle_owners(view, out, id, &mut row, files).await?;
        } else if row.owners > 0 {
            let (from, to) = keys::owners(id);
            let rows = view.kv().scan(&from, &to, usize::MAX, 1 << 16).await?;
            rows.iter().for_each(|(key, _)| drop(out.rows.insert(key[..].into(), None)));
        }
        if row.live == 0 {
            out.rows.insert(key, None);
            match view.holders().hold(row.birth, now.death) {
                true => {
                    let kept = KeptRow { death: now.death, segment: row };
                    out.rows.insert(keys::kept_segment(id), Some(kept.encode_with(&frames)));
                    let layout = Layout::from_row(id, row.size, &frames);
                    view.holders().note_kept(layout.map_or(row.size, |l| l.object_len()));
                }
                false => out.bury(id, now.secs, DeadRow { birth: row.birth, death: now.death }),
            }
        } else {
            out.rows.insert(key, Some(row.encode_with(&frames)));
        }
    }
    Ok(freed)
}

/// Writes and deletes `b` rows of a segment, and counts them in its `row`.
async fn settle_owners(
    view: &View,
    out: &mut Changes,
    id: SegmentId,
    row: &mut SegmentRow,
    files: impl Iterator<Item = (&ContentsId, &bool)>,
) -> Result<(), ViewError> {
    for (&file, &shares) in files {
        if !shares && row.owners == 0 {
            continue;
        }
        let key = keys::owner(id, file);
        match (view.kv().get(&key).await?.is_some(), shares) {
            (false, true) => {
                row.owners += 1;
                out.rows.insert(key, Some(MarkerRow::encode()));
            }
            (true, false) => {
                row.owners = row.owners.saturating_sub(1);
                out.rows.insert(key, None);
            }
            _ => {}
        }
    }
    Ok(())
}
