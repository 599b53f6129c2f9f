//! Deleted data, a bounded piece at a time: extents and attributes behind `r` rows, then
//! segments behind `z` rows. Everything is found by its row, so it resumes after a crash.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::committer::unix_secs;
use super::resolve::{self, Changes};
use super::view::{View, ViewError};
use crate::data::Extent;
use crate::meta::{DecodeError, ExtentRow, keys};
use crate::store::error::{ErrorClass, class};
use crate::store::segments::SegmentStore;

/// Extents and attributes that one batch deletes.
const BATCH_ROWS: usize = 2_000;
/// Dead segments that one step deletes.
const BATCH_SEGMENTS: usize = 256;
/// How often an idle mount looks for work that an earlier one left.
const LOOK_EVERY: Duration = Duration::from_secs(1800);

/// When to look for work next.
#[derive(Debug, Default)]
pub struct State {
    data_due: bool,
    looked: Option<Instant>,
    segments_due: Option<Instant>,
}

impl State {
    /// There is something to reclaim now.
    pub fn wake(&mut self) {
        self.data_due = true;
    }
}

/// Reclaims a bounded piece. Called by the committer between commits: it alone writes.
pub async fn step(
    view: &View,
    segments: &SegmentStore,
    state: &mut State,
    grace: Duration,
) -> Result<(), ViewError> {
    if state.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
        state.looked = Some(Instant::now());
        state.data_due = true;
        state.segments_due.get_or_insert_with(Instant::now);
    }
    if state.data_due {
        state.data_due = reclaim_data(view).await?;
        state.segments_due.get_or_insert_with(|| Instant::now() + grace);
    }
    if state.segments_due.is_some_and(|at| at <= Instant::now()) {
        let more = delete_segments(view, segments, grace).await?;
        state.segments_due = more.then(|| Instant::now() + grace);
    }
    Ok(())
}

/// Deletes up to [`BATCH_ROWS`] rows behind `r` rows; true if there may be more.
async fn reclaim_data(view: &View) -> Result<bool, ViewError> {
    let (from, to) = keys::all_with_tag(b'r');
    let todo = view.kv().scan(&from, &to, 64, 1 << 16).await?;
    if todo.is_empty() {
        return Ok(false);
    }
    let mut out = Changes::default();
    let mut left = BATCH_ROWS;
    for (key, _) in &todo {
        let (ino, generation) = keys::reclaim_of(key).ok_or(DecodeError("reclaim key"))?;
        let done = if generation == keys::RECLAIM_INODE {
            let (from, to) = keys::xattrs(ino);
            let rows = view.kv().scan(&from, &to, left, 1 << 16).await?;
            rows.iter().for_each(|(k, _)| {
                out.rows.insert(k[..].into(), None);
            });
            let done = rows.len() < left;
            left -= rows.len();
            done
        } else {
            let (from, to) = keys::extents_above(ino, generation, 0);
            let rows = view.kv().scan(&from, &to, left, 1 << 20).await?;
            for (k, v) in &rows {
                let (_, _, end) = keys::extent_of(k).ok_or(DecodeError("extent key"))?;
                let row = ExtentRow::decode(v)?;
                let start = end.checked_sub(row.len).ok_or(DecodeError("extent before 0"))?;
                let offset = row.segment_offset;
                let extent = Extent { start, end, segment: row.segment, offset };
                out.delete_extent((ino, generation), &extent);
            }
            let done = rows.len() < left;
            left -= rows.len();
            done
        };
        if done {
            out.rows.insert(key[..].into(), None);
        }
        if left == 0 {
            break;
        }
    }
    resolve::settle_segments(view, &mut out, &Default::default(), unix_secs()).await?;
    let rows = out.rows.into_iter().map(|(k, v)| (Bytes::from(k.into_vec()), v));
    view.kv().commit(rows).await?;
    Ok(true)
}

/// Deletes segments that have been dead for `grace`; true if others are waiting.
async fn delete_segments(
    view: &View,
    segments: &SegmentStore,
    grace: Duration,
) -> Result<bool, ViewError> {
    let (from, to) = keys::all_with_tag(b'z');
    let dead = view.kv().scan(&from, &to, BATCH_SEGMENTS, 1 << 16).await?;
    let now = unix_secs();
    let mut rows = Vec::new();
    for (key, _) in &dead {
        let (since, id) = keys::dead_segment_of(key).ok_or(DecodeError("dead segment key"))?;
        if since + grace.as_secs() > now {
            break;
        }
        match segments.delete(id).await {
            Ok(()) => rows.push((key.clone(), None)),
            Err(e) if class(&e) == ErrorClass::NotFound => rows.push((key.clone(), None)),
            Err(e) => {
                log::warn!("deleting segment {id} failed, will be tried again: {e}");
                break;
            }
        }
    }
    let more = dead.len() > rows.len() || dead.len() == BATCH_SEGMENTS;
    view.kv().commit(rows).await?;
    Ok(more)
}
