//! Deleted data, a bounded piece at a time: extents and attributes behind `r` rows, then
//! segments behind `z` rows. Everything is found by its row, so it resumes after a crash.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;

use super::accounts::{self, Changes, Moment};
use super::committer::unix_secs;
use super::resolve;
use super::view::{View, ViewError};
use crate::base::SegmentId;
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

/// When to look for work next.
#[derive(Debug, Default)]
pub struct State {
    data_due: bool,
    looked: Option<Instant>,
    segments_due: Option<Instant>,
    not_before: Option<Instant>,
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

impl State {
    /// There is something to reclaim now.
    pub fn wake(&mut self) {
        self.data_due = true;
    }

    /// Something failed: not again for a while.
    pub fn pause(&mut self) {
        self.not_before = Some(Instant::now() + PAUSE);
    }
}

/// Reclaims a bounded piece; returns how many bytes of segments are not referred to any more.
/// Called by the committer between commits: it alone writes. The segments `spared` are not
/// deleted now: a round of cleaning is about to read them, and they may have died since.
pub async fn step(
    view: &View,
    segments: &SegmentStore,
    state: &mut State,
    now: Moment,
    grace: Duration,
    spared: impl Fn(SegmentId) -> bool,
) -> Result<u64, ViewError> {
    if state.not_before.is_some_and(|at| at > Instant::now()) {
        return Ok(0);
    }
    state.not_before = None;
    if state.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
        state.looked = Some(Instant::now());
        state.data_due = true;
        state.segments_due.get_or_insert_with(Instant::now);
    }
    let mut freed = 0;
    if state.data_due {
        (state.data_due, freed) = reclaim_data(view, now).await?;
        state.segments_due.get_or_insert_with(|| Instant::now() + grace);
    }
    if state.segments_due.is_some_and(|at| at <= Instant::now()) {
        let next = delete_segments(view, segments, grace, spared, &mut state.refused).await?;
        state.segments_due = next.map(|wait| Instant::now() + wait);
    }
    Ok(freed)
}

/// Deletes up to [`BATCH_ROWS`] rows behind `r` rows; whether there may be more, and how many
/// bytes of segments that frees.
async fn reclaim_data(view: &View, now: Moment) -> Result<(bool, u64), ViewError> {
    let (from, to) = keys::all_with_tag(b'r');
    let todo = view.kv().scan(&from, &to, 64, 1 << 16).await?;
    if todo.is_empty() {
        return Ok((false, 0));
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
                let (file, extent) = resolve::extent_of(k, v)?;
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
    view.kv().commit(out.into_rows()).await?;
    Ok((true, freed))
}

/// Deletes segments that have been dead for `grace`; how long to wait before there is more to
/// delete, `None` if nothing is waiting.
async fn delete_segments(
    view: &View,
    segments: &SegmentStore,
    grace: Duration,
    spared: impl Fn(SegmentId) -> bool,
    refused: &mut Refused,
) -> Result<Option<Duration>, ViewError> {
    let (first, to) = keys::all_with_tag(b'z');
    let from = match refused.behind.take() {
        Some(last) => [&last[..], &[0]].concat().into(),
        None => first.clone(),
    };
    let found = view.kv().scan(&from, &to, BATCH_SEGMENTS, 1 << 16).await?;
    if found.is_empty() && from != first {
        return Ok(Some(refused.next_pause()));
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
        match spared(id) {
            true => held_back = true,
            false => dead.push((key, value, id)),
        }
    }
    if held_back && dead.is_empty() {
        next = Some(PAUSE);
    } else if held_back {
        next = Some(Duration::ZERO);
    }
    // Nothing may be deleted on the word of a row that the bucket might never have, or by a
    // mount that was overtaken: both are known only once a batch of ours is durable.
    let proof: Vec<_> = dead.iter().map(|(k, v, _)| (k.clone(), Some(v.clone()))).collect();
    view.kv().commit(proof).await?;
    let mut deletes = futures::stream::iter(dead)
        .map(|(key, _, id)| async move { (key, id, segments.delete(id).await) })
        .buffer_unordered(DELETES_PARALLEL);
    let mut rows = Vec::new();
    let (mut failed, mut last) = (0, None);
    while let Some((key, id, outcome)) = deletes.next().await {
        match outcome {
            Ok(()) => rows.push((key, None)),
            Err(e) if class(&e) == ErrorClass::NotFound => rows.push((key, None)),
            Err(e) => {
                // All of a batch fail for one reason, as a rule.
                if failed == 0 {
                    log::warn!(
                        "deleting segment {id} failed, will be tried again: {}",
                        sentence(&e)
                    );
                }
                failed += 1;
                last = last.max(Some(key));
            }
        }
    }
    drop(deletes);
    match (failed, rows.len()) {
        (0, 0) => {}
        (0, _) => refused.pause = Duration::ZERO,
        // Those behind them may go.
        (_, 1..) => {
            (refused.behind, refused.pause) = (last, Duration::ZERO);
            next = next.or(Some(PAUSE));
        }
        _ => (refused.behind, next) = (last, Some(refused.next_pause())),
    }
    if failed > 1 {
        log::warn!("{failed} segments could not be deleted");
    }
    view.kv().commit(rows).await?;
    Ok(next)
}
