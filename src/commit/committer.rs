//! The background task that brings the journal to the bucket, in order.
//!
//! One generation at a time: pack its bytes into segments, upload them in parallel, then write
//! one metadata batch with all rows, the segment accounting and the new committed position.
//! Only when that batch is durable does the position advance, the journal space come free and
//! the generation leave the view. So metadata never names a segment that is not in the bucket,
//! and replay is exactly-once. Whatever fails is tried again; nothing is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::pack::{Plan, SegmentPlan, pack};
use super::pending::Generation;
use super::resolve::{self, Changes};
use super::view::{View, ViewError};
use super::{batch, reclaim};
use crate::base::{JournalPos, SegmentId};
use crate::journal::{Journal, JournalError};
use crate::meta::{CommitRow, Stats, keys};
use crate::store::error::{ErrorClass, class};
use crate::store::kv::KvError;
use crate::store::segments::SegmentStore;

/// Segments that are uploaded at once.
const UPLOADS_MAX: usize = 3;
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
}

impl Default for CommitOptions {
    fn default() -> Self {
        CommitOptions { interval: Duration::from_secs(2), dead_grace: Duration::from_secs(300) }
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
    /// File bytes uploaded since the mount.
    pub uploaded_bytes: u64,
}

/// Why a commit did not go through.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The metadata store.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A segment could not be uploaded.
    #[error("uploading segment {0}: {1}")]
    Upload(SegmentId, #[source] object_store::Error),
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

impl CommitError {
    fn is_fenced(&self) -> bool {
        matches!(self, CommitError::View(ViewError::Store(KvError::Fenced)))
    }

    fn needs_reopen(&self) -> bool {
        matches!(self, CommitError::View(ViewError::Store(KvError::Closed(_))))
    }

    /// Whether the encryption that the server applied is not what was asked for.
    pub fn is_sse_mismatch(&self) -> bool {
        matches!(self, CommitError::Upload(_, e) if class(e) == ErrorClass::SseMismatch)
    }
}

/// The committer. Shared by its own task and by those who wait for it.
pub struct Committer {
    view: Arc<View>,
    journal: Arc<Journal>,
    segments: Arc<SegmentStore>,
    options: CommitOptions,
    wake: Notify,
    wanted: AtomicU64,
    committed: watch::Sender<CommitRow>,
    state: watch::Sender<WriterState>,
    uploaded: AtomicU64,
    /// A metadata batch failed and may be there all the same: what its retry calls fresh may
    /// have extents, in segments of the failed try.
    doubtful: AtomicBool,
    reclaim: Mutex<reclaim::State>,
    stop: watch::Sender<bool>,
    may_delete: MayDelete,
}

/// Whether anything may be deleted from the bucket now: not while something in it is damaged.
pub type MayDelete = Arc<dyn Fn() -> bool + Send + Sync>;

/// Unix time by the system clock, in seconds.
pub fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn new_segment_id() -> SegmentId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the operating system gives random bytes");
    SegmentId(id)
}

impl Committer {
    /// A committer that goes on after `committed`. Call [`Committer::run`] to start it.
    pub fn new(
        view: Arc<View>,
        journal: Arc<Journal>,
        segments: Arc<SegmentStore>,
        committed: CommitRow,
        options: CommitOptions,
        may_delete: MayDelete,
    ) -> Arc<Committer> {
        Arc::new(Committer {
            view,
            journal,
            segments,
            options,
            wake: Notify::new(),
            wanted: AtomicU64::new(0),
            committed: watch::Sender::new(committed),
            state: watch::Sender::new(WriterState::Online),
            uploaded: AtomicU64::new(0),
            doubtful: AtomicBool::new(false),
            reclaim: Mutex::new(reclaim::State::default()),
            stop: watch::Sender::new(false),
            may_delete,
        })
    }

    /// Commits until [`Committer::stop`]. Runs on a task of its own.
    pub async fn run(self: Arc<Self>) {
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
        if e.needs_reopen() {
            match self.view.kv().reopen().await {
                Ok(()) => log::info!("metadata store opened again"),
                Err(KvError::Fenced) => {
                    log::error!("another mount has taken over: read-only from now on");
                    self.state.send_replace(WriterState::Fenced);
                }
                Err(e) => log::warn!("metadata store cannot be opened again yet: {e}"),
            }
        }
    }

    /// Time until the oldest pending change is due. Looking costs nothing, so an idle mount
    /// looks once an interval; that bounds how late a first change is noticed.
    fn next_due(&self) -> Duration {
        let (_, _, oldest) = self.view.pending_summary();
        let interval = self.options.interval;
        oldest.map_or(interval, |since| interval.saturating_sub(since.elapsed()))
    }

    fn is_due(&self) -> bool {
        let (last, _, oldest) = self.view.pending_summary();
        let asked = self.wanted.load(Ordering::Acquire) > self.committed.borrow().position.0;
        let overdue = oldest.is_some_and(|since| since.elapsed() >= self.options.interval);
        (asked && last > self.committed.borrow().position) || overdue
    }

    /// Commits what is due, then does a bounded piece of reclaiming.
    async fn step(&self) -> Result<(), CommitError> {
        loop {
            let Some(generation) = self.view.freeze(self.is_due()) else { break };
            self.commit(&generation).await?;
        }
        if !(self.may_delete)() {
            return Ok(());
        }
        self.view.kv().compact_if_needed();
        self.reclaim_some().await
    }

    async fn reclaim_some(&self) -> Result<(), CommitError> {
        let mut state = std::mem::take(&mut *self.reclaim.lock());
        let grace = self.options.dead_grace;
        let result = reclaim::step(&self.view, &self.segments, &mut state, grace).await;
        *self.reclaim.lock() = state;
        result.map_err(CommitError::from)
    }

    async fn commit(&self, generation: &Arc<Generation>) -> Result<(), CommitError> {
        let plan = pack(generation, new_segment_id);
        self.upload(&plan.segments).await?;
        let (rows, row, stats) = self.rows(generation, &plan).await?;
        let committed = self.view.kv().commit(rows).await;
        self.doubtful.store(committed.is_err(), Ordering::Release);
        committed?;
        self.view.retire(generation, stats);
        self.journal.release(row.position);
        if !generation.dropped.is_empty() {
            self.reclaim.lock().wake();
        }
        self.committed.send_replace(row);
        Ok(())
    }

    async fn upload(&self, segments: &[SegmentPlan]) -> Result<(), CommitError> {
        let uploads: Vec<_> = segments
            .iter()
            .map(|plan| upload_one(self.journal.clone(), self.segments.clone(), plan.clone()))
            .collect();
        let mut running = futures::stream::iter(uploads).buffer_unordered(UPLOADS_MAX);
        while let Some(done) = running.next().await {
            self.uploaded.fetch_add(done?, Ordering::Relaxed);
        }
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    async fn rows(
        &self,
        generation: &Generation,
        plan: &Plan,
    ) -> Result<(Vec<(Bytes, Option<Bytes>)>, CommitRow, Stats), CommitError> {
        let mut changes = Changes::default();
        let doubtful = self.doubtful.load(Ordering::Acquire);
        for (file, ranges, fresh) in &plan.files {
            let fresh = *fresh && !doubtful;
            resolve::apply_file(&self.view, &mut changes, *file, ranges, fresh).await?;
        }
        for file in &generation.dropped {
            resolve::drop_file(&self.view, &mut changes, *file).await?;
        }
        let sizes: HashMap<SegmentId, u64> = plan.segments.iter().map(|s| (s.id, s.len)).collect();
        resolve::settle_segments(&self.view, &mut changes, &sizes, unix_secs()).await?;
        let before = *self.committed.borrow();
        let row = CommitRow {
            journal: self.journal.id(),
            position: generation.last,
            sequence: before.sequence + 1,
            time_secs: unix_secs(),
            writer_epoch: self.view.kv().writer_epoch(),
        };
        let mut stats = self.view.committed_stats();
        stats.inodes = stats.inodes.saturating_add_signed(generation.inodes);
        stats.bytes = stats.bytes.saturating_add_signed(generation.bytes);
        let mut rows: Vec<(Bytes, Option<Bytes>)> =
            Vec::with_capacity(generation.rows.len() + changes.rows.len() + 2);
        for (key, pending) in &generation.rows {
            rows.push((Bytes::copy_from_slice(key), pending.value.clone()));
        }
        rows.extend(changes.rows.into_iter().map(|(k, v)| (Bytes::from(k.into_vec()), v)));
        rows.push((Bytes::from(keys::commit().into_vec()), Some(row.encode())));
        rows.push((Bytes::from(keys::stats().into_vec()), Some(stats.encode())));
        Ok((rows, row, stats))
    }

    /// Asks for a commit of everything applied so far and waits until the bucket has it, the
    /// mount is fenced, or `limit` has passed; true if the bucket has it.
    pub async fn sync(&self, limit: Duration) -> bool {
        let (target, _, _) = self.view.pending_summary();
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
            uploaded_bytes: self.uploaded.load(Ordering::Relaxed),
        }
    }
}

/// Uploads one segment; returns its plaintext bytes.
async fn upload_one(
    journal: Arc<Journal>,
    store: Arc<SegmentStore>,
    plan: SegmentPlan,
) -> Result<u64, CommitError> {
    let (id, len) = (plan.id, plan.len);
    let read = tokio::task::spawn_blocking(move || read_items(&journal, &plan));
    let data = read.await.map_err(|e| CommitError::Internal(e.to_string()))??;
    store.put(id, vec![data.into()]).await.map_err(|e| CommitError::Upload(id, e))?;
    Ok(len)
}

/// Reads the plaintext of a segment from the journal. Blocks on the local disk.
fn read_items(journal: &Journal, plan: &SegmentPlan) -> Result<Vec<u8>, JournalError> {
    let mut data = Vec::with_capacity(plan.len as usize);
    for item in &plan.items {
        journal.read_into(item.record, item.skip..item.skip + item.len, &mut data)?;
    }
    assert_eq!(data.len() as u64, plan.len, "a segment is what was planned");
    Ok(data)
}

/// Applies the records of a journal to `view`, in order. Used at mount, before anything else
/// touches it.
///
/// # Errors
/// A record that cannot be read or is not in the format: the mount must not go on without it.
pub fn replay(
    view: &View,
    journal: &Journal,
    records: impl IntoIterator<Item = crate::journal::RecordLoc>,
) -> Result<u64, CommitError> {
    let mut count = 0;
    let mut head = Vec::new();
    for record in records {
        head.clear();
        let prelude = batch::Batch::PRELUDE_LEN as u32;
        journal.read_into(record, 0..prelude.min(record.len()), &mut head)?;
        let len = batch::Batch::head_len(&head).map_err(ViewError::from)? as u32;
        if len > record.len() {
            return Err(ViewError::from(crate::meta::DecodeError("record too short")).into());
        }
        head.clear();
        journal.read_into(record, 0..len, &mut head)?;
        let batch = batch::Batch::decode_head(&head).map_err(ViewError::from)?;
        if len as usize + batch.data_len() != record.len() as usize {
            return Err(ViewError::from(crate::meta::DecodeError("record of wrong size")).into());
        }
        view.apply(batch, record, len);
        count += 1;
    }
    Ok(count)
}
