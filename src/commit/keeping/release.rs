//! What deleted snapshots held, a bounded piece at a time: segments that no snapshot holds any more
//! become dead ones, checkpoints without a row go, and later what only those needed of the metadata.
//!
//! All of it is found by rows, so that it goes on after a crash.

use std::time::{Duration, Instant};

use super::Keeper;
use crate::base::unix_secs;
use crate::commit::accounts::Changes;
use crate::commit::error::CommitError;
use crate::commit::holders::Kept;
use crate::commit::snapshots::kept_row;
use crate::commit::view::ViewError;
use crate::meta::{DeadRow, Key, keys};

/// `y` rows that one step looks at.
const LOOK_ROWS: usize = 2000;
/// How often an idle mount looks for what an earlier one left.
const LOOK_EVERY: Duration = Duration::from_secs(1800);
/// How long after it may be collected what a checkpoint needed is collected.
const COLLECT_SLACK: Duration = Duration::from_secs(5);

/// How far it has come.
#[derive(Debug, Default)]
pub(super) struct Release {
    /// All rows are to be looked at once more.
    is_due: bool,
    looked: Option<Instant>,
    /// Where the look under way goes on, and what it has found.
    at: Option<(Key, Kept)>,
    collect: Option<Instant>,
    /// And once more that long after: what was compacted on account of all that is kept until then.
    again: Option<Duration>,
}

impl Release {
    /// A snapshot was deleted.
    pub(super) fn wake(&mut self) {
        self.is_due = true;
    }

    /// Collects what checkpoints needed when it is old enough, and once more.
    pub(super) fn collect_after(&mut self, age: Duration) {
        let pause = age + COLLECT_SLACK.min(age);
        (self.collect, self.again) = (Some(Instant::now() + pause), Some(pause));
    }
}

impl Keeper {
    /// A bounded piece; true if segments are dead by now. Nothing in the bucket is known to be
    /// damaged.
    pub(in crate::commit) async fn release_some(&self) -> Result<bool, CommitError> {
        let more = self.sweep_checkpoints().await?;
        let mut state = std::mem::take(&mut *self.release.lock());
        let outcome = self.look_at_kept(&mut state).await;
        self.collect_metadata(&mut state);
        state.is_due |= outcome.is_err();
        let more = more || state.at.is_some();
        *self.release.lock() = state;
        if more {
            self.rows.wake.notify_one();
        }
        outcome
    }

    /// Looks at some rows; true if it found some that nobody holds.
    async fn look_at_kept(&self, state: &mut Release) -> Result<bool, CommitError> {
        if state.at.is_none() {
            if !state.is_due && state.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return Ok(false);
            }
            state.is_due = false;
            state.looked = Some(Instant::now());
            state.at = Some((keys::all_with_tag(b'y').0, Kept::default()));
        }
        let Some((from, mut kept)) = state.at.take() else { return Ok(false) };
        let (_, to) = keys::all_with_tag(b'y');
        let rows = self.rows.view.kv().scan_caching(&from, &to, LOOK_ROWS, 1 << 20, false).await?;
        let mut out = Changes::default();
        let now = unix_secs();
        for (key, value) in &rows {
            let (row, bytes) = kept_row(key, value).map_err(ViewError::from)?;
            if self.rows.view.holders().hold(row.segment.birth, row.death) {
                kept.add(bytes);
                continue;
            }
            let Some(id) = keys::kept_segment_of(key) else { continue };
            out.rows.insert(key[..].into(), None);
            out.bury(id, now, DeadRow { birth: row.segment.birth, death: row.death });
        }
        let found = !out.rows.is_empty();
        if found {
            self.rows.write(out.into_rows().collect()).await?;
        }
        match rows.last() {
            Some((last, _)) if rows.len() == LOOK_ROWS => {
                state.at = Some((keys::after(last), kept));
            }
            _ => self.rows.view.holders().set_kept(Some(kept)),
        }
        Ok(found)
    }

    /// Collects, in the background, what only deleted checkpoints needed.
    fn collect_metadata(&self, state: &mut Release) {
        if state.collect.is_none_or(|at| at > Instant::now()) {
            return;
        }
        state.collect = state.again.take().map(|pause| Instant::now() + pause);
        let kv = self.rows.view.kv().clone();
        tokio::spawn(async move {
            if let Err(e) = kv.collect_garbage().await {
                log::warn!("metadata of deleted snapshots was not collected: {e}");
            }
        });
    }
}
