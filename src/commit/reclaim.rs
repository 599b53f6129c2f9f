//! Deleted data, a bounded piece at a time: extents and attributes behind `r` rows, then
//! segments behind `z` rows. Everything is found by its row, so it resumes after a crash.
//!
//! Rows are written by the committer alone, between two commits. Segments are deleted on a task of
//! its own: a store that is slow to delete, or hangs, holds up no commit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::accounts::{self, Changes};
use super::error::CommitError;
use super::extents::extent_of;
use super::writer::RowWriter;
use crate::base::{SegmentId, unix_secs};
use crate::meta::{DecodeError, keys};
use crate::store::error::{ErrorClass, class, sentence};
use crate::store::segments::SegmentStore;

/// Extents and attributes that one batch deletes.
const BATCH_ROWS: usize = 2_000;
/// Dead segments that one step deletes.
const BATCH_SEGMENTS: usize = 256;
/// Segments that are deleted at once.
const DELETES_PARALLEL: usize = 16;
/// How long to leave it after a failure; the pauses double while nothing can be deleted.
const PAUSE: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// How often an idle mount looks for work that an earlier one left.
const LOOK_EVERY: Duration = Duration::from_secs(1800);

/// How long the deletes of one step may take; those that hang are tried again later.
const DELETES_MAX: Duration = Duration::from_secs(600);

/// Segments that are being deleted. Dropped, the rest stays for later.
#[derive(Debug)]
struct Deleting {
    task: JoinHandle<Deleted>,
    /// When to look for more afterwards, as far as their rows say.
    next: Option<Duration>,
}

/// What became of them: their rows that may go, and how many are still there, with the last of
/// those rows.
#[derive(Debug, Default)]
struct Deleted {
    rows: Vec<Bytes>,
    failed: usize,
    last: Option<Bytes>,
}

impl Drop for Deleting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When to look for work next.
#[derive(Debug, Default)]
struct Schedule {
    data_due: bool,
    /// Bytes that had come free when segments were last thought of: where there are more, some may be dead.
    freed: u64,
    looked: Option<Instant>,
    segments_due: Option<Instant>,
    not_before: Option<Instant>,
    deleting: Option<Deleting>,
    refused: Refused,
}

/// What is remembered of segments that could not be deleted.
#[derive(Debug, Default)]
struct Refused {
    /// The pause before the next try.
    pause: Duration,
    /// The last row that was tried: the next try begins behind it, so that segments which somebody
    /// holds (an object lock) do not keep those behind them.
    behind: Option<Bytes>,
}

impl Refused {
    fn next_pause(&mut self) -> Duration {
        self.pause = (self.pause * 2).clamp(PAUSE, PAUSE_MAX);
        self.pause
    }
}

impl Schedule {
    /// Segments are looked at again after this time at the latest, if any are waiting.
    fn look_after(&mut self, wait: Option<Duration>) {
        let due = wait.map(|wait| Instant::now() + wait);
        self.segments_due = due.into_iter().chain(self.segments_due).min();
    }
}

/// Reclaims what deleted data take up.
pub(super) struct Reclaimer {
    rows: Arc<RowWriter>,
    schedule: Mutex<Schedule>,
}

impl Reclaimer {
    /// With all still to be looked at.
    pub(super) fn new(rows: Arc<RowWriter>) -> Reclaimer {
        Reclaimer { rows, schedule: Mutex::default() }
    }

    /// There is something to reclaim now.
    pub(super) fn wake(&self) {
        self.schedule.lock().data_due = true;
    }

    /// Ends deletes: nobody is left to write their rows.
    pub(super) fn give_up(&self) {
        std::mem::take(&mut *self.schedule.lock());
    }

    /// Reclaims a bounded piece, but no segment that `is_read`. What fails is left for a while.
    pub(super) async fn reclaim_some(
        &self,
        is_read: impl Fn(SegmentId) -> bool,
    ) -> Result<(), CommitError> {
        let mut schedule = std::mem::take(&mut *self.schedule.lock());
        let outcome = self.step(&mut schedule, is_read).await;
        if outcome.is_err() {
            schedule.not_before = Some(Instant::now() + PAUSE);
        }
        *self.schedule.lock() = schedule;
        outcome
    }

    async fn step(
        &self,
        schedule: &mut Schedule,
        is_read: impl Fn(SegmentId) -> bool,
    ) -> Result<(), CommitError> {
        if schedule.deleting.as_ref().is_some_and(|deleting| deleting.task.is_finished()) {
            self.end_deleting(schedule).await?;
        }
        if schedule.not_before.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        schedule.not_before = None;
        if schedule.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            schedule.looked = Some(Instant::now());
            schedule.data_due = true;
            schedule.segments_due.get_or_insert_with(Instant::now);
        }
        let had_data = schedule.data_due;
        if had_data {
            schedule.data_due = self.reclaim_data().await?;
        }
        let freed = self.rows.counts.freed.load(Ordering::Relaxed);
        let came_free = std::mem::replace(&mut schedule.freed, freed) != freed;
        if had_data || came_free {
            let grace = self.rows.options.dead_grace;
            schedule.segments_due.get_or_insert_with(|| Instant::now() + grace);
        }
        let due = schedule.segments_due.is_some_and(|at| at <= Instant::now());
        if due && schedule.deleting.is_none() {
            schedule.segments_due = None;
            self.begin_deleting(schedule, is_read).await?;
        }
        Ok(())
    }

    /// Deletes up to [`BATCH_ROWS`] rows behind `r` rows; whether there may be more.
    async fn reclaim_data(&self) -> Result<bool, CommitError> {
        let (view, now) = (&self.rows.view, self.rows.between_commits(self.rows.key_epoch()));
        let (from, to) = keys::all_with_tag(b'r');
        let todo = view.kv().scan(&from, &to, 64, 1 << 16).await?;
        if todo.is_empty() {
            return Ok(false);
        }
        let mut out = Changes::default();
        let mut left = BATCH_ROWS;
        for (key, _) in &todo {
            let gone = keys::reclaim_of(key).ok_or(DecodeError("reclaim key"))?;
            let done = if gone.incarnation == keys::RECLAIM_INODE {
                let (from, to) = keys::xattrs(gone.ino);
                let rows = view.kv().scan(&from, &to, left, 1 << 16).await?;
                rows.iter().for_each(|(k, _)| {
                    out.rows.insert(k[..].into(), None);
                });
                let done = rows.len() < left;
                left -= rows.len();
                done
            } else {
                let (from, to) = keys::extents_above(gone, 0);
                let rows = view.kv().scan(&from, &to, left, 1 << 20).await?;
                for (k, v) in &rows {
                    let (file, extent) = extent_of(k, v)?;
                    out.delete_extent(file, &extent);
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
        let freed = accounts::settle_segments(view, &mut out, &HashMap::new(), now).await?;
        self.rows.write(out.into_rows().collect()).await?;
        self.rows.counts.freed.fetch_add(freed, Ordering::Relaxed);
        Ok(true)
    }

    /// Starts deleting segments that have been dead for the grace. Those that a round of cleaning is
    /// about to read are left: they may have died since.
    async fn begin_deleting(
        &self,
        schedule: &mut Schedule,
        is_read: impl Fn(SegmentId) -> bool,
    ) -> Result<(), CommitError> {
        let grace = self.rows.options.dead_grace;
        let (first, to) = keys::all_with_tag(b'z');
        let from = match schedule.refused.behind.take() {
            Some(last) => [&last[..], &[0]].concat().into(),
            None => first.clone(),
        };
        let found = self.rows.view.kv().scan(&from, &to, BATCH_SEGMENTS, 1 << 16).await?;
        if found.is_empty() && from != first {
            let pause = schedule.refused.next_pause();
            schedule.look_after(Some(pause));
            return Ok(());
        }
        let now = unix_secs();
        let mut dead = Vec::new();
        let mut held_back = false;
        let mut next = (found.len() == BATCH_SEGMENTS).then_some(Duration::ZERO);
        for (key, value) in found {
            let (since, id) = keys::dead_segment_of(&key).ok_or(DecodeError("dead segment key"))?;
            let over = since.saturating_add(grace.as_secs());
            if over > now {
                // A clock that was set back must not postpone it beyond the grace.
                next = Some(Duration::from_secs((over - now).clamp(1, grace.as_secs().max(1))));
                break;
            }
            match is_read(id) {
                true => held_back = true,
                false => dead.push((key, value, id)),
            }
        }
        if held_back {
            next = Some(if dead.is_empty() { PAUSE.min(grace) } else { Duration::ZERO });
        }
        if dead.is_empty() {
            schedule.look_after(next);
            return Ok(());
        }
        // Nothing may be deleted on the word of a row that the bucket might never have, or by a
        // mount that was overtaken: both are known only once a batch of ours is durable.
        let proof = dead.iter().map(|(k, v, _)| (k.clone(), Some(v.clone()))).collect();
        self.rows.write(proof).await?;
        let (segments, wake) = (self.rows.segments.clone(), self.rows.wake.clone());
        let dead = dead.into_iter().map(|(key, _, id)| (key, id)).collect();
        let task = tokio::spawn(async move {
            let deleted = delete_all(&segments, dead).await;
            wake.notify_one();
            deleted
        });
        schedule.deleting = Some(Deleting { task, next });
        Ok(())
    }

    /// Writes down what was deleted, and when to go on.
    async fn end_deleting(&self, schedule: &mut Schedule) -> Result<(), CommitError> {
        let Some(mut deleting) = schedule.deleting.take() else { return Ok(()) };
        let ended = (&mut deleting.task).await;
        let deleted = ended.map_err(|e| CommitError::Internal(e.to_string()))?;
        let mut next = deleting.next;
        let refused = &mut schedule.refused;
        match (deleted.failed, deleted.rows.len()) {
            (0, 0) => {}
            (0, _) => refused.pause = Duration::ZERO,
            // Those behind them may go.
            (_, 1..) => {
                (refused.behind, refused.pause) = (deleted.last, Duration::ZERO);
                next = next.or(Some(PAUSE));
            }
            _ => (refused.behind, next) = (deleted.last, Some(refused.next_pause())),
        }
        schedule.look_after(next);
        self.rows.write(deleted.rows.into_iter().map(|key| (key, None)).collect()).await?;
        Ok(())
    }
}

/// Deletes segments, whose rows these are.
async fn delete_all(segments: &SegmentStore, dead: Vec<(Bytes, SegmentId)>) -> Deleted {
    let mut deleted = Deleted::default();
    let mut is_said = false;
    let mut left: BTreeSet<Bytes> = dead.iter().map(|(key, _)| key.clone()).collect();
    let mut deletes = futures::stream::iter(dead)
        .map(|(key, id)| async move { (key, id, segments.delete(id).await) })
        .buffer_unordered(DELETES_PARALLEL);
    let deadline = tokio::time::Instant::now() + DELETES_MAX;
    while let Ok(Some((key, id, outcome))) = tokio::time::timeout_at(deadline, deletes.next()).await
    {
        match outcome {
            Err(e) if class(&e) != ErrorClass::NotFound => {
                // All of a batch fail for one reason, as a rule.
                if !is_said {
                    log::warn!(
                        "deleting segment {id} failed, will be tried again: {}",
                        sentence(&e)
                    );
                }
                is_said = true;
            }
            _ => {
                left.remove(&key);
                deleted.rows.push(key);
            }
        }
    }
    deleted.failed = left.len();
    deleted.last = left.pop_last();
    if deleted.failed > 1 {
        log::warn!("{} segments could not be deleted", deleted.failed);
    }
    deleted
}
