//! Making and deleting snapshots, on the committer's task, between two commits: so each is exactly a
//! commit, and no row of a segment is written meanwhile.
//!
//! A row is written after its checkpoint and deleted before it. So every row has one; a checkpoint
//! without a row is one whose creation or deletion was cut off, and goes.

mod release;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::CommitError;
use super::holders::Holder;
use super::snapshots::{Snapshot, snapshot, snapshots};
use super::view::{ViewError, last_commit};
use super::writer::RowWriter;
use crate::base::{ChainValue, counted, unix_secs};
use crate::meta::{SnapshotName, SnapshotOrigin, SnapshotRow, Stats, keys};
use crate::store::kv::KvError;
use release::Release;

/// Snapshots that a volume has at most: each is named in every manifest.
pub const SNAPSHOTS_MAX: usize = 4096;
/// Checkpoints without a row that one step deletes.
const SWEEP_MAX: usize = 8;
/// How often a commit that waits for room in level 0 looks whether there is.
const COMPACT_LOOK: Duration = Duration::from_millis(500);

/// A snapshot to make.
#[derive(Clone, Debug)]
pub struct SnapshotOrder {
    /// Its name.
    pub name: SnapshotName,
    /// What its maker says of it.
    pub note: String,
    /// When it is to be deleted, Unix seconds; 0: never by itself.
    pub expires_secs: u64,
    /// Who asks.
    pub origin: SnapshotOrigin,
}

/// Why a snapshot was not made, or not deleted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The name is taken.
    #[error("there is a snapshot {0} already")]
    Exists(SnapshotName),
    /// There is none of that name.
    #[error("there is no snapshot {0}")]
    Missing(SnapshotName),
    /// See [`SNAPSHOTS_MAX`].
    #[error("the volume has {SNAPSHOTS_MAX} snapshots, which is the most")]
    TooMany,
    /// Nothing is deleted while something in the bucket is damaged.
    #[error("something in the bucket is damaged: nothing is deleted meanwhile")]
    Damage,
    /// The volume is another mount's by now.
    #[error("another mount has taken over this volume")]
    Fenced,
    /// Not in time, and not begun.
    #[error("what was written before does not get to the bucket{0}")]
    NotCommitted(String),
    /// It failed, or was not done in time: it may be done all the same.
    #[error("it is not known whether it was done: {0}")]
    Unclear(String),
}

enum Request {
    Create(SnapshotOrder, oneshot::Sender<Result<Snapshot, SnapshotError>>),
    Delete(Vec<SnapshotName>, oneshot::Sender<Result<(), SnapshotError>>),
}

/// Commits everything that is applied when it is first polled.
type Pending<'a> = BoxFuture<'a, Result<(), CommitError>>;

/// What an asker waits for.
type Answer<T> = oneshot::Receiver<Result<T, SnapshotError>>;

/// Makes and deletes snapshots.
pub(super) struct Keeper {
    rows: Arc<RowWriter>,
    queue: Mutex<VecDeque<Request>>,
    /// The rows were read, and what became of them since is known.
    is_known: AtomicBool,
    /// They were read once.
    is_begun: AtomicBool,
    /// There may be checkpoints without a row.
    sweep: AtomicBool,
    release: Mutex<Release>,
}

impl Keeper {
    /// That knows of no snapshot yet.
    pub(super) fn new(rows: Arc<RowWriter>) -> Keeper {
        Keeper {
            rows,
            queue: Mutex::default(),
            is_known: AtomicBool::new(false),
            is_begun: AtomicBool::new(false),
            sweep: AtomicBool::new(false),
            release: Mutex::default(),
        }
    }

    /// A batch whose outcome was unknown is there by now, or never will be.
    pub(super) fn look_again(&self) {
        self.is_known.store(false, Ordering::Release);
    }

    /// Asks for a snapshot, of what is committed by then at the earliest now.
    pub(super) fn create(&self, order: SnapshotOrder) -> Answer<Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Create(order, reply));
        answer
    }

    /// Asks for snapshots to be deleted.
    pub(super) fn delete(&self, names: Vec<SnapshotName>) -> Answer<()> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Delete(names, reply));
        answer
    }

    fn ask(&self, request: Request) {
        self.queue.lock().push_back(request);
        self.rows.wake.notify_one();
    }

    /// Learns which commits are held, where that is not certain. Before any row of a segment is
    /// written.
    pub(super) async fn know(&self) -> Result<(), CommitError> {
        if self.is_known.load(Ordering::Acquire) {
            return Ok(());
        }
        let kv = self.rows.view.kv();
        // A volume without a checkpoint has had no snapshot when this mount began.
        let none = !self.is_begun.load(Ordering::Acquire) && kv.checkpoints().is_empty();
        let found = if none { Vec::new() } else { snapshots(kv).await? };
        self.rows.view.holders().set(found.iter().map(|s| Holder::of(&s.row)));
        self.sweep.store(!none, Ordering::Release);
        self.is_begun.store(true, Ordering::Release);
        self.is_known.store(true, Ordering::Release);
        Ok(())
    }

    /// Does what was asked for. `commit_pending` commits everything that is applied by then.
    pub(super) async fn serve<'a>(
        &self,
        commit_pending: impl Fn() -> Pending<'a> + Send + Sync,
    ) -> Result<(), CommitError> {
        loop {
            let Some(request) = self.queue.lock().pop_front() else { break };
            match request {
                // The caller has stopped waiting, and was told that it may not have been done.
                Request::Create(_, reply) if reply.is_closed() => {}
                Request::Delete(_, reply) if reply.is_closed() => {}
                Request::Create(order, reply) => {
                    let outcome = self.create_one(order).await;
                    self.told(reply, outcome).await?;
                }
                Request::Delete(names, reply) => {
                    let outcome = self.delete_these(names, commit_pending()).await;
                    self.told(reply, outcome).await?;
                }
            }
        }
        Ok(())
    }

    /// Answers, once it is known what there is now. What failed is told at once: whoever has lost the
    /// volume, or the store, learns nothing more by looking; that is done again before the next one.
    async fn told<T>(
        &self,
        reply: oneshot::Sender<Result<T, SnapshotError>>,
        outcome: Result<Result<T, SnapshotError>, CommitError>,
    ) -> Result<(), CommitError> {
        if outcome.is_err() {
            return answer(reply, outcome);
        }
        let known = self.know().await;
        answer(reply, outcome)?;
        known
    }

    async fn create_one(
        &self,
        order: SnapshotOrder,
    ) -> Result<Result<Snapshot, SnapshotError>, CommitError> {
        let kv = self.rows.view.kv();
        let SnapshotOrder { name, note, expires_secs, origin } = order;
        if snapshot(kv, &name).await?.is_some() {
            return Ok(Err(SnapshotError::Exists(name)));
        }
        if self.rows.view.holders().count() >= SNAPSHOTS_MAX {
            return Ok(Err(SnapshotError::TooMany));
        }
        // What the database has, not what is known to be durable: that is what the checkpoint has.
        let commit = last_commit(kv).await?;
        let (commit, chain) =
            commit.map_or((0, ChainValue::default()), |row| (row.sequence, row.chain));
        let stats = kv.get(&keys::stats()).await?;
        let stats = stats.as_deref().map(Stats::decode).transpose().map_err(ViewError::from)?;
        let Stats { inodes, bytes } = stats.unwrap_or_default();
        // From here on it is unknown what there is, until the rows have been read again.
        self.rows.view.holders().add(commit);
        self.look_again();
        let making = kv.make_checkpoint();
        tokio::pin!(making);
        let made = loop {
            tokio::select! {
                made = &mut making => break made?,
                // It may wait for room in level 0, which only a compaction makes.
                _ = tokio::time::sleep(COMPACT_LOOK) => self.rows.compact_if_needed(),
            }
        };
        let row = SnapshotRow {
            checkpoint: made.id,
            manifest: made.manifest,
            commit,
            chain,
            time_secs: unix_secs(),
            expires_secs,
            origin,
            files: inodes,
            bytes,
            note,
        };
        let key = Bytes::from(keys::snapshot(&name).into_vec());
        self.rows.write(vec![(key, Some(row.encode()))]).await?;
        log::info!("a snapshot of commit {commit} was made");
        Ok(Ok(Snapshot { name, row }))
    }

    async fn delete_these(
        &self,
        names: Vec<SnapshotName>,
        commit_pending: Pending<'_>,
    ) -> Result<Result<(), SnapshotError>, CommitError> {
        if !(self.rows.gates.may_delete)() {
            return Ok(Err(SnapshotError::Damage));
        }
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            match snapshot(self.rows.view.kv(), &name).await? {
                Some(snapshot) => found.push(snapshot),
                None => return Ok(Err(SnapshotError::Missing(name))),
            }
        }
        self.look_again();
        self.rows.view.holders().leave(found.iter().map(|s| s.row.checkpoint));
        // What came to share with them until now is committed first: its segments are the volume's
        // own from then on.
        commit_pending.await?;
        let key = |s: &Snapshot| Bytes::from(keys::snapshot(&s.name).into_vec());
        self.rows.write(found.iter().map(|s| (key(s), None)).collect()).await?;
        self.rows.view.holders().drop_these(found.iter().map(|s| Holder::of(&s.row)));
        log::info!("{} deleted", counted(found.len() as u64, "snapshot"));
        self.release.lock().wake();
        Ok(Ok(()))
    }

    /// Deletes a few checkpoints that no row names; true if there may be more.
    async fn sweep_checkpoints(&self) -> Result<bool, CommitError> {
        if !self.sweep.load(Ordering::Acquire) {
            return Ok(false);
        }
        let kv = self.rows.view.kv();
        let named: HashSet<[u8; 16]> =
            snapshots(kv).await?.iter().map(|s| s.row.checkpoint).collect();
        let nameless: Vec<_> =
            kv.checkpoints().into_iter().filter(|id| !named.contains(id)).collect();
        for id in nameless.iter().take(SWEEP_MAX) {
            kv.delete_checkpoint(*id).await?;
        }
        let more = nameless.len() > SWEEP_MAX;
        self.sweep.store(more, Ordering::Release);
        if !nameless.is_empty() {
            self.release.lock().collect_after(kv.collect_age());
        }
        Ok(more)
    }
}

/// Gives the waiter its result; what is wrong with the store is the committer's as well.
fn answer<T>(
    reply: oneshot::Sender<Result<T, SnapshotError>>,
    outcome: Result<Result<T, SnapshotError>, CommitError>,
) -> Result<(), CommitError> {
    let (said, failure) = match outcome {
        Ok(said) => (said, None),
        Err(CommitError::View(ViewError::Store(KvError::Fenced))) => {
            (Err(SnapshotError::Fenced), Some(KvError::Fenced.into()))
        }
        Err(e) => (Err(SnapshotError::Unclear(e.to_string())), Some(e)),
    };
    let _ = reply.send(said); // nobody may wait any more
    failure.map_or(Ok(()), Err)
}
