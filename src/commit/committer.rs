//! The background task that brings the journal to the bucket, in order.
//!
//! Decides when a generation is due, tries again what failed, and answers those who wait; what
//! a commit consists of is in `attempt`. Nothing is dropped.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::accounts::Moment;
use super::clean::{self, CleanOptions};
use super::reclaim;
use super::view::{View, ViewError, last_commit};
use super::work::Work;
use crate::base::{JournalPos, SegmentId};
use crate::journal::{Journal, JournalError};
use crate::meta::{BesideRow, CommitRow, DecodeError};
use crate::seal::HistoryKey;
use crate::store::error::{ErrorClass, class, in_one_line};
use crate::store::kv::{KvError, as_opener};
use crate::store::segments::SegmentStore;

/// The longest pause between two tries of a failed commit.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(15);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(250);

/// How the committer works.
#[derive(Clone, Copy, Debug)]
pub struct CommitOptions {
    /// How much history may be behind while the bucket is reachable (`--commit-interval`).
    pub interval: Duration,
    /// How long a segment without live bytes stays in the bucket for readers that still know
    /// it.
    pub dead_grace: Duration,
    /// Names the mount in every commit (`g writer`).
    pub instance: [u8; 16],
    /// When segments are cleaned.
    pub clean: CleanOptions,
}

impl Default for CommitOptions {
    fn default() -> Self {
        CommitOptions {
            interval: Duration::from_secs(2),
            dead_grace: Duration::from_secs(300),
            instance: [0; 16],
            clean: CleanOptions::default(),
        }
    }
}

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

/// File bytes of a commit under way; nothing while there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending {
    /// To be uploaded in all: what was overwritten meanwhile is not.
    pub planned: u64,
    /// Uploaded: they count once the commit is done.
    pub landed: u64,
}

/// Why a commit did not go through.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The metadata store.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A segment could not be uploaded.
    #[error("uploading segment {0}: {text}", text = in_one_line(.1))]
    Upload(SegmentId, #[source] object_store::Error),
    /// A segment that is to be cleaned could not be read.
    #[error("moving live data out of segment {0}: {1}")]
    Clean(SegmentId, #[source] object_store::Error),
    /// The task of a round of cleaning.
    #[error("{0}")]
    Round(String),
    /// The local journal could not be read.
    #[error("reading the journal: {0}")]
    Journal(#[from] JournalError),
    /// A task of ours died.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<KvError> for CommitError {
    fn from(e: KvError) -> Self {
        CommitError::View(e.into())
    }
}

impl From<DecodeError> for CommitError {
    fn from(e: DecodeError) -> Self {
        CommitError::View(e.into())
    }
}

impl CommitError {
    fn is_fenced(&self) -> bool {
        matches!(self, CommitError::View(ViewError::Store(KvError::Fenced | KvError::ReadOnly)))
    }

    fn needs_reopen(&self) -> bool {
        let CommitError::View(ViewError::Store(e)) = self else { return false };
        // After one that was too large the database is closed.
        matches!(e, KvError::Closed(_) | KvError::TooLarge(_))
    }

    /// Whether the encryption that the server applied is not what was asked for.
    pub fn is_sse_mismatch(&self) -> bool {
        matches!(self, CommitError::Upload(_, e) if class(e) == ErrorClass::SseMismatch)
    }
}

/// The committer. Shared by its own task and by those who wait for it.
pub struct Committer {
    pub(super) view: Arc<View>,
    pub(super) journal: Arc<Journal>,
    pub(super) segments: Arc<SegmentStore>,
    pub(super) options: CommitOptions,
    pub(super) history: HistoryKey,
    pub(super) wake: Arc<Notify>,
    /// [`CommitOptions::interval`], which may change.
    interval_ms: AtomicU64,
    wanted: AtomicU64,
    pub(super) committed: watch::Sender<CommitRow>,
    state: watch::Sender<WriterState>,
    pub(super) uploaded: AtomicU64,
    pub(super) sending: Mutex<Sending>,
    /// The generation whose commit failed, and what of it the bucket has.
    pub(super) work: Mutex<Option<Work>>,
    pub(super) reclaim: Mutex<reclaim::State>,
    pub(super) clean: Mutex<clean::State>,
    pub(super) clean_counts: clean::Counts,
    stop: watch::Sender<bool>,
    pub(super) gates: Gates,
}

/// What the committer asks of those above it.
pub struct Gates {
    /// How far what stands beside the metadata has come, for the next commit.
    pub beside: Box<dyn Fn() -> BesideRow + Send + Sync>,
    /// Whether anything may be deleted from the bucket now: not while something in it is
    /// damaged.
    pub may_delete: Box<dyn Fn() -> bool + Send + Sync>,
    /// Asks the store whether the volume is still held by this mount; false if that is not
    /// certain.
    pub still_ours: Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
    /// The key epoch in which objects are sealed now.
    pub key_epoch: Box<dyn Fn() -> u32 + Send + Sync>,
}

/// Unix time by the system clock, in seconds.
pub fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
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
        Arc::new(Committer {
            view,
            journal,
            segments,
            options,
            history,
            wake: Arc::default(),
            interval_ms,
            wanted: AtomicU64::new(0),
            committed: watch::Sender::new(committed),
            state: watch::Sender::new(WriterState::Online),
            uploaded: AtomicU64::new(0),
            sending: Mutex::default(),
            work: Mutex::new(None),
            reclaim: Mutex::default(),
            clean: Mutex::default(),
            clean_counts: clean::Counts::default(),
            stop: watch::Sender::new(false),
            gates,
        })
    }

    /// Commits until [`Committer::stop`]. Runs on a task of its own. A bug that panics must not
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
        std::mem::take(&mut *self.clean.lock());
        std::mem::take(&mut *self.reclaim.lock());
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
                _ = self.wake.notified(), if !failed => {}
                () = self.view.kv().until_worn(), if !failed => {}
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
        self.view.kv().reopen((self.gates.still_ours)()).await?;
        // A batch whose outcome was unknown is there now, or never will be.
        self.view.invalidate();
        let ours = self.committed();
        match last_commit(self.view.kv()).await? {
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
        self.wake.notify_one();
    }

    /// Time until the oldest pending change is due. Looking costs nothing, so an idle mount
    /// looks once an interval; that bounds how late a first change is noticed.
    fn next_due(&self) -> Duration {
        let (_, _, oldest) = self.view.pending_summary();
        let interval = self.interval();
        oldest.map_or(interval, |since| interval.saturating_sub(since.elapsed()))
    }

    fn is_due(&self) -> bool {
        let (last, _, oldest) = self.view.pending_summary();
        let asked = self.wanted.load(Ordering::Acquire) > self.committed.borrow().position.0;
        let overdue = oldest.is_some_and(|since| since.elapsed() >= self.interval());
        (asked && last > self.committed.borrow().position) || overdue
    }

    /// Commits what is due, then does a bounded piece of reclaiming and of cleaning.
    async fn step(&self) -> Result<(), CommitError> {
        if self.view.kv().is_worn() {
            self.reopen().await?;
            log::info!("metadata store opened again");
        }
        loop {
            if *self.state.borrow() == WriterState::Fenced {
                return Ok(());
            }
            let Some(generation) = self.view.freeze(self.is_due()) else { break };
            self.commit(&generation).await?;
        }
        self.compact_if_needed();
        if !(self.gates.may_delete)() || *self.stop.borrow() {
            return Ok(());
        }
        let reclaimed = self.reclaim_some().await;
        if reclaimed.is_err() {
            self.reclaim.lock().pause();
        }
        put_off("reclaiming deleted data", reclaimed)?;
        put_off("cleaning segments", self.clean_some().await)
    }

    /// Level 0 must be compacted even while something is damaged: full, it would stop every
    /// commit. What compaction leaves behind is then not collected.
    pub(super) fn compact_if_needed(&self) {
        self.view.kv().compact_if_needed((self.gates.may_delete)());
    }

    /// The key epoch in which objects are sealed now.
    pub(super) fn key_epoch(&self) -> u32 {
        (self.gates.key_epoch)()
    }

    /// For rows between two commits: `epoch` is that of what was uploaded for them.
    pub(super) fn between_commits(&self, epoch: u32) -> Moment {
        Moment::behind_commit(self.committed.borrow().sequence, epoch, unix_secs())
    }

    /// Asks for a commit of everything applied so far and waits until the bucket has it, the
    /// mount is fenced, or `limit` has passed; true if the bucket has it. With no time at all
    /// nothing is asked for.
    pub async fn sync(&self, limit: Duration) -> bool {
        let (target, _, _) = self.view.pending_summary();
        if limit.is_zero() {
            // Asking for a commit and not waiting for it would leave to chance what is done.
            return self.committed.borrow().position >= target;
        }
        self.wanted.fetch_max(target.0, Ordering::AcqRel);
        self.wake.notify_one();
        let mut committed = self.committed.subscribe();
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
        let mut committed = self.committed.subscribe();
        committed.mark_unchanged();
        let (target, _, _) = self.view.pending_summary();
        self.wanted.fetch_max(target.0, Ordering::AcqRel);
        self.wake.notify_one();
        let _ = tokio::time::timeout(limit, committed.changed()).await;
    }

    /// Something is full: the committer looks at once instead of at the next interval.
    pub fn nudge(&self) {
        self.wake.notify_one();
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

    /// The last commit.
    pub fn committed(&self) -> CommitRow {
        *self.committed.borrow()
    }

    /// Follows commits.
    pub fn commits(&self) -> watch::Receiver<CommitRow> {
        self.committed.subscribe()
    }

    /// Whether commits go through.
    pub fn state(&self) -> WriterState {
        self.state.borrow().clone()
    }

    /// Declares this mount fenced (its lease was taken).
    pub fn fence(&self) {
        self.state.send_replace(WriterState::Fenced);
        self.wake.notify_one();
    }

    /// What is on its way.
    pub fn progress(&self) -> Progress {
        let (_, pending_files, since) = self.view.pending_summary();
        let row = self.committed();
        Progress {
            pending_bytes: self.view.pending_bytes().1,
            pending_files,
            oldest: since.map(|s: Instant| s.elapsed()),
            committed: row.position,
            sequence: row.sequence,
            cleaned_bytes: self.clean_counts.moved.load(Ordering::Relaxed),
            sending: *self.sending.lock(),
            uploaded_bytes: self.uploaded.load(Ordering::Relaxed),
        }
    }
}
