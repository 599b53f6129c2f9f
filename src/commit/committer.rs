//! The background task that brings the journal to the bucket, in order.
//!
//! Decides when a group is due, tries again what failed, and answers those who wait; what
//! a commit consists of is in `attempt`. Nothing is dropped.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use tokio::sync::{oneshot, watch};

use super::attempt::Attempts;
use super::clean::Cleaner;
use super::error::CommitError;
use super::keeping::{Keeper, SnapshotError, SnapshotOrder};
use super::options::CommitOptions;
use super::reclaim::Reclaimer;
use super::snapshots::Snapshot;
use super::view::{View, ViewError, last_commit};
use super::work::Sending;
use super::writer::{Counts, Gates, RowWriter};
use crate::base::JournalPos;
use crate::journal::Journal;
use crate::meta::{CommitRow, SnapshotName};
use crate::seal::HistoryKey;
use crate::store::kv::{KvError, as_opener};
use crate::store::segments::SegmentStore;

/// The longest pause between two tries of a failed commit.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(15);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(250);

/// Whether this mount can bring its journal to the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriterState {
    /// Commits go through.
    Online,
    /// The last try failed and will be repeated.
    Failing {
        /// When the first of the failures in a row happened.
        since: SystemTime,
        /// What failed, for people.
        reason: String,
    },
    /// Another mount has taken the volume over: this one never writes again.
    Fenced,
}

/// What is on its way to the bucket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// File bytes journalled and not committed.
    pub pending_bytes: u64,
    /// Files with such bytes.
    pub pending_files: u64,
    /// Age of the oldest change that is not committed.
    pub oldest: Option<Duration>,
    /// The last committed record.
    pub committed: JournalPos,
    /// Commits in the life of the volume.
    pub sequence: u64,
    /// The commit under way.
    pub sending: Sending,
    /// File bytes uploaded since the mount.
    pub uploaded_bytes: u64,
    /// Live bytes moved out of segments that were cleaned, since the mount.
    pub cleaned_bytes: u64,
}

/// The committer. Shared by its own task and by those who wait for it.
pub struct Committer {
    rows: Arc<RowWriter>,
    attempts: Attempts,
    reclaimer: Reclaimer,
    cleaner: Cleaner,
    keeper: Keeper,
    /// [`CommitOptions::interval`], which may change.
    interval_ms: AtomicU64,
    wanted: AtomicU64,
    state: watch::Sender<WriterState>,
    stop: watch::Sender<bool>,
}

/// Commits do not wait for `what` if it cannot be done now.
fn put_off(what: &str, outcome: Result<(), CommitError>) -> Result<(), CommitError> {
    match outcome {
        Err(e) if !e.is_fenced() && !e.needs_reopen() => {
            log::warn!("{what} failed, will be tried again: {e}");
            Ok(())
        }
        outcome => outcome,
    }
}

impl Committer {
    /// A committer that goes on after `committed`. Call [`Committer::run`] to start it.
    pub fn new(
        view: Arc<View>,
        journal: Arc<Journal>,
        segments: Arc<SegmentStore>,
        committed: CommitRow,
        options: CommitOptions,
        history: HistoryKey,
        gates: Gates,
    ) -> Arc<Committer> {
        let interval_ms = AtomicU64::new(options.interval.as_millis() as u64);
        let rows = Arc::new(RowWriter {
            view,
            segments,
            options,
            committed: watch::Sender::new(committed),
            counts: Counts::default(),
            wake: Arc::default(),
            gates,
        });
        Arc::new(Committer {
            attempts: Attempts::new(rows.clone(), journal, history),
            reclaimer: Reclaimer::new(rows.clone()),
            cleaner: Cleaner::new(rows.clone()),
            keeper: Keeper::new(rows.clone()),
            rows,
            interval_ms,
            wanted: AtomicU64::new(0),
            state: watch::Sender::new(WriterState::Online),
            stop: watch::Sender::new(false),
        })
    }

    /// Commits until [`Committer::stop`]. Runs on a separate task. A bug that panics must not
    /// end it silently: it shows as a failure, and everything is tried again.
    pub async fn run(self: Arc<Self>) {
        let commit = || AssertUnwindSafe(as_opener(self.commit_until_stopped())).catch_unwind();
        while let Err(panic) = commit().await {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic");
            self.note_failure(&CommitError::Internal(text.to_string())).await;
            tokio::time::sleep(RETRY_PAUSE_MAX).await;
        }
        self.give_up_cleaning();
    }

    /// Ends a round of cleaning, and deletes: nobody is left to write their rows.
    pub fn give_up_cleaning(&self) {
        self.cleaner.give_up();
        self.reclaimer.give_up();
    }

    async fn commit_until_stopped(&self) {
        let mut stop = self.stop.subscribe();
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let failed = match self.step().await {
                Ok(()) => {
                    pause = RETRY_PAUSE_MIN;
                    self.state.send_if_modified(|s| {
                        let recovered = matches!(s, WriterState::Failing { .. });
                        if recovered {
                            log::info!("the bucket is reachable again, pending changes go on");
                            *s = WriterState::Online;
                        }
                        recovered
                    });
                    false
                }
                Err(e) => {
                    self.note_failure(&e).await;
                    true
                }
            };
            if *self.state.borrow() == WriterState::Fenced {
                return;
            }
            let wait = if failed {
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
                pause
            } else {
                self.next_due()
            };
            tokio::select! {
                _ = tokio::time::sleep(wait) => {}
                _ = self.rows.wake.notified(), if !failed => {}
                () = self.rows.view.kv().until_worn(), if !failed => {}
                _ = stop.wait_for(|s| *s) => return,
            }
        }
    }

    async fn note_failure(&self, e: &CommitError) {
        if e.is_fenced() {
            log::error!("{e}: this mount is read-only from now on, its journal is kept");
            self.state.send_replace(WriterState::Fenced);
            return;
        }
        let reason = e.to_string();
        self.state.send_modify(|s| match s {
            // Whatever fails after the lease was lost, it stays lost.
            WriterState::Fenced => {}
            WriterState::Failing { reason: old, .. } => {
                if *old != reason {
                    log::warn!("commit failed, will be tried again: {reason}");
                }
                *old = reason;
            }
            other => {
                log::warn!("commit failed, will be tried again: {reason}");
                *other = WriterState::Failing { since: SystemTime::now(), reason };
            }
        });
        if e.needs_reopen() && *self.state.borrow() != WriterState::Fenced {
            match self.reopen().await {
                Ok(()) => log::info!("metadata store opened again"),
                Err(CommitError::View(ViewError::Store(KvError::Fenced))) => {
                    log::error!("another mount has taken over: read-only from now on");
                    self.state.send_replace(WriterState::Fenced);
                }
                Err(e) => log::warn!("metadata store cannot be opened again yet: {e}"),
            }
        }
    }

    /// Opens the metadata store again and makes sure that what it has is this mount's.
    async fn reopen(&self) -> Result<(), CommitError> {
        self.rows.view.kv().reopen((self.rows.gates.still_ours)()).await?;
        // A batch whose outcome was unknown is there now, or never will be.
        self.rows.view.invalidate();
        self.keeper.look_again();
        let ours = self.committed();
        match last_commit(self.rows.view.kv()).await? {
            Some(row) if row.journal != ours.journal && row.sequence > ours.sequence => {
                Err(KvError::Fenced.into())
            }
            _ => Ok(()),
        }
    }

    /// How much history may be behind while the bucket is reachable.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.load(Ordering::Relaxed))
    }

    /// Changes that, for what is pending as well.
    pub fn set_interval(&self, interval: Duration) {
        self.interval_ms.store(interval.as_millis() as u64, Ordering::Relaxed);
        self.rows.wake.notify_one();
    }

    /// Time until the oldest pending change is due. Looking costs nothing, so an idle mount
    /// looks once an interval; that bounds how late a first change is noticed.
    fn next_due(&self) -> Duration {
        let (_, _, oldest) = self.rows.view.pending_summary();
        let interval = self.interval();
        oldest.map_or(interval, |since| interval.saturating_sub(since.elapsed()))
    }

    fn is_due(&self) -> bool {
        let (last, _, oldest) = self.rows.view.pending_summary();
        let asked = self.wanted.load(Ordering::Acquire) > self.rows.committed.borrow().position.0;
        let overdue = oldest.is_some_and(|since| since.elapsed() >= self.interval());
        (asked && last > self.rows.committed.borrow().position) || overdue
    }

    /// Commits what is due, then does a bounded piece of reclaiming and of cleaning.
    async fn step(&self) -> Result<(), CommitError> {
        if self.rows.view.kv().is_worn() {
            self.reopen().await?;
            log::info!("metadata store opened again");
        }
        self.keeper.know().await?;
        loop {
            if *self.state.borrow() == WriterState::Fenced {
                return Ok(());
            }
            let Some(group) = self.rows.view.freeze(self.is_due()) else { break };
            if self.attempts.commit(&group).await? {
                self.reclaimer.wake();
            }
        }
        self.keeper.serve(|| self.commit_pending().boxed()).await?;
        self.rows.compact_if_needed();
        if !(self.rows.gates.may_delete)() || *self.stop.borrow() {
            return Ok(());
        }
        let reclaimed = self.reclaimer.reclaim_some(|id| self.cleaner.reads(id)).await;
        put_off("reclaiming deleted data", reclaimed)?;
        let released = self.keeper.release_some().await;
        if matches!(released, Ok(true)) {
            self.reclaimer.wake();
        }
        put_off("releasing what snapshots held", released.map(drop))?;
        let cleaned = self.cleaner.clean_some().await;
        if !matches!(cleaned, Ok(false)) {
            self.reclaimer.wake();
        }
        put_off("cleaning segments", cleaned.map(drop))
    }

    /// Commits everything that is applied by now.
    async fn commit_pending(&self) -> Result<(), CommitError> {
        let (target, ..) = self.rows.view.pending_summary();
        while self.committed().position < target {
            let Some(group) = self.rows.view.freeze(true) else { break };
            if self.attempts.commit(&group).await? {
                self.reclaimer.wake();
            }
        }
        Ok(())
    }

    /// Makes a snapshot of the volume as it is now: what was applied before is in it. Waits at most
    /// `limit`.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn create_snapshot(
        &self,
        order: SnapshotOrder,
        limit: Duration,
    ) -> Result<Snapshot, SnapshotError> {
        let begun = Instant::now();
        if !self.sync(limit).await {
            return Err(match self.state() {
                WriterState::Fenced => SnapshotError::Fenced,
                WriterState::Failing { reason, .. } => {
                    SnapshotError::NotCommitted(format!(": {reason}"))
                }
                WriterState::Online => {
                    SnapshotError::NotCommitted(format!(" in {} s", limit.as_secs()))
                }
            });
        }
        let answer = self.keeper.create(order);
        self.answered(answer, limit.saturating_sub(begun.elapsed())).await
    }

    /// Deletes snapshots: all of them, or none if one is not there. What they held comes free
    /// afterwards, in the background. Waits at most `limit`.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn delete_snapshots(
        &self,
        names: Vec<SnapshotName>,
        limit: Duration,
    ) -> Result<(), SnapshotError> {
        let answer = self.keeper.delete(names);
        self.answered(answer, limit).await
    }

    async fn answered<T>(
        &self,
        answer: oneshot::Receiver<Result<T, SnapshotError>>,
        limit: Duration,
    ) -> Result<T, SnapshotError> {
        let unclear = |why: &str| Err(SnapshotError::Unclear(why.into()));
        tokio::select! {
            answer = tokio::time::timeout(limit, answer) => match answer {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => unclear("the mount is ending"),
                Err(_) => unclear("the bucket does not answer in time"),
            },
            () = self.until_fenced() => Err(SnapshotError::Fenced),
        }
    }

    /// Asks for a commit of everything applied so far and waits until the bucket has it, the
    /// mount is fenced, or `limit` has passed; true if the bucket has it. With no time at all
    /// nothing is asked for.
    pub async fn sync(&self, limit: Duration) -> bool {
        let (target, _, _) = self.rows.view.pending_summary();
        if limit.is_zero() {
            // Asking for a commit and not waiting for it would leave to chance what is done.
            return self.rows.committed.borrow().position >= target;
        }
        self.wanted.fetch_max(target.0, Ordering::AcqRel);
        self.rows.wake.notify_one();
        let mut committed = self.rows.committed.subscribe();
        let mut state = self.state.subscribe();
        let done = async {
            tokio::select! {
                r = committed.wait_for(|row| row.position >= target) => r.is_ok(),
                _ = state.wait_for(|s| *s == WriterState::Fenced) => false,
            }
        };
        tokio::time::timeout(limit, done).await.unwrap_or(false)
    }

    /// Wakes the committer because limits are near; returns when a commit has gone through or
    /// `limit` has passed.
    pub async fn make_room(&self, limit: Duration) {
        let mut committed = self.rows.committed.subscribe();
        committed.mark_unchanged();
        let (target, _, _) = self.rows.view.pending_summary();
        self.wanted.fetch_max(target.0, Ordering::AcqRel);
        self.rows.wake.notify_one();
        let _ = tokio::time::timeout(limit, committed.changed()).await;
    }

    /// Something is full: the committer looks at once instead of at the next interval.
    pub fn nudge(&self) {
        self.rows.wake.notify_one();
    }

    /// Resolves when another mount has taken the volume over.
    pub async fn until_fenced(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|s| *s == WriterState::Fenced).await;
    }

    /// Ends [`Committer::run`] after the step it is in.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// It is not to end after all: [`Committer::run`] may be called again.
    pub fn go_on(&self) {
        self.stop.send_replace(false);
    }

    /// The last commit.
    pub fn committed(&self) -> CommitRow {
        *self.rows.committed.borrow()
    }

    /// Follows commits.
    pub fn commits(&self) -> watch::Receiver<CommitRow> {
        self.rows.committed.subscribe()
    }

    /// Whether commits go through.
    pub fn state(&self) -> WriterState {
        self.state.borrow().clone()
    }

    /// Declares this mount fenced (its lease was taken).
    pub fn fence(&self) {
        self.state.send_replace(WriterState::Fenced);
        self.rows.wake.notify_one();
    }

    /// What is on its way.
    pub fn progress(&self) -> Progress {
        let (_, pending_files, since) = self.rows.view.pending_summary();
        let row = self.committed();
        let (sending, uploaded_bytes) = self.attempts.progress();
        Progress {
            pending_bytes: self.rows.view.pending_bytes().1,
            pending_files,
            oldest: since.map(|s: Instant| s.elapsed()),
            committed: row.position,
            sequence: row.sequence,
            cleaned_bytes: self.rows.counts.moved.load(Ordering::Relaxed),
            sending,
            uploaded_bytes,
        }
    }
}
