//! The one place that writes metadata rows, for commits and for what is done between them. Who
//! calls it does so from the committer's task, one batch at a time.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::{Notify, watch};

use super::accounts::Moment;
use super::options::CommitOptions;
use super::view::View;
use crate::base::unix_secs;
use crate::meta::{BesideRow, CommitRow};
use crate::store::kv::KvError;
use crate::store::segments::SegmentStore;

/// How often a commit that waits looks whether level 0 is what it waits for.
const COMPACT_LOOK: Duration = Duration::from_millis(500);

/// A row to write; without a value, to delete.
pub(super) type RowChange = (Bytes, Option<Bytes>);

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

/// Counts for `status` and for the next look. Bytes since the mount.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Bytes of segments that came free.
    pub(super) freed: AtomicU64,
    /// Live bytes that were moved.
    pub(super) moved: AtomicU64,
}

/// Writes rows, and knows what whoever writes them has to know.
pub(super) struct RowWriter {
    pub(super) view: Arc<View>,
    pub(super) segments: Arc<SegmentStore>,
    pub(super) options: CommitOptions,
    pub(super) committed: watch::Sender<CommitRow>,
    pub(super) counts: Counts,
    /// Wakes the loop of the committer.
    pub(super) wake: Arc<Notify>,
    pub(super) gates: Gates,
}

impl RowWriter {
    /// Writes rows as one atomic batch; returns when the bucket has it.
    ///
    /// # Errors
    /// As [`crate::store::kv::Kv::commit`]: the batch may be there all the same.
    pub(super) async fn write(&self, rows: Vec<RowChange>) -> Result<(), KvError> {
        let commit = self.view.kv().commit(rows);
        tokio::pin!(commit);
        loop {
            tokio::select! {
                done = &mut commit => return done,
                // It may wait for room in level 0, which only a compaction makes.
                _ = tokio::time::sleep(COMPACT_LOOK) => self.compact_if_needed(),
            }
        }
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
}
