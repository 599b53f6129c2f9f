//! A running mount and its orderly end. Made by `opening`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::pins;
use super::role::{RoleName, Transition, Why};
use super::status::OpenVolume;
use super::transition::{DemoteAsk, PromoteAsk};
use super::writer::Writer;
use crate::base::VolumeId;
use crate::commit::snapshots::Snapshot;
use crate::commit::{SnapshotError, SnapshotOrder, View};
use crate::fs::{Fs, Tree};
use crate::fuse::KernelSide;
use crate::meta::SnapshotName;
use crate::stack::records::last_use::Start;
use crate::stack::{Control, StackError};
use crate::store::Health;

/// How long the committer may take to end the step it is in, when everything is in the bucket.
const STEP_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether something that was found damaged is due to be read again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long closing the metadata store, and giving the lease back, may take each.
const CLOSE_MAX: Duration = Duration::from_secs(15);
/// The same when something is left to the journal: the store is likely to be away, and whoever
/// asked for `umount --force-local` waits. The next mount here needs neither.
const CLOSE_PENDING_MAX: Duration = Duration::from_secs(5);
/// The same when the store is known to be away.
const CLOSE_AWAY_MAX: Duration = Duration::from_secs(1);

/// A volume that is open. Serve it through `fuse/`, then call [`Mounted::shutdown`].
pub struct Mounted {
    /// The volume, or the snapshot that is mounted in its place.
    pub fs: Arc<Fs>,
    /// The same with its snapshots: what is served.
    pub tree: Arc<Tree>,
    /// Its status, and what it can be told.
    pub control: Arc<dyn Control>,
    /// Its id.
    pub volume: VolumeId,
    /// Where a journal was set aside, if one had been overtaken.
    pub set_aside: Option<PathBuf>,
    shared: Arc<OpenVolume>,
    /// One looks again at what was damaged, and after snapshots that are open; one keeps here what is
    /// pinned.
    looks: Mutex<Vec<JoinHandle<()>>>,
}

impl Mounted {
    pub(crate) fn start(shared: Arc<OpenVolume>) -> Mounted {
        let (sealed, tree) = (shared.sealed.clone(), shared.tree.clone());
        let looks = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                sealed.look_again(Instant::now()).await;
                tree.tend(Instant::now()).await;
            }
        });
        if shared.writer().is_none() {
            let sequence = shared.remembered.lock().sequence;
            shared.role.note(RoleName::Follower, Why::Mounted, sequence);
            shared.follow();
        }
        let pins = tokio::spawn(pins::tend(shared.clone()));
        let looks = Mutex::new(vec![looks, pins]);
        let set_aside = shared.writer().and_then(|writer| writer.set_aside.clone());
        let (fs, control, volume) = (shared.fs.clone(), shared.clone(), shared.volume);
        let tree = shared.tree.clone();
        Mounted { fs, tree, control, volume, set_aside, shared, looks }
    }

    /// The kernel that serves it; needed for a change of the role.
    pub fn attach(&self, kernel: KernelSide) {
        self.shared.attach(kernel);
    }

    /// A follower becomes the writer; see [`Control::promote`].
    ///
    /// # Errors
    /// As [`mount`](crate::stack::mount), and [`StackError::Role`]; it is a follower still.
    pub async fn promote(&self, ask: PromoteAsk) -> Result<Transition, StackError> {
        self.control.clone().promote(ask).await
    }

    /// The writer becomes a follower; see [`Control::demote`].
    ///
    /// # Errors
    /// [`StackError::Role`] and those of the store; it is the writer still.
    pub async fn demote(&self, ask: DemoteAsk) -> Result<Transition, StackError> {
        self.control.clone().demote(ask).await
    }

    /// What a person should know of how it was mounted.
    pub fn notes(&self) -> Vec<String> {
        self.shared.sse.notes()
    }

    /// Looks at once whether the keyring or the configuration of the volume has changed; by itself
    /// a mount does so every few minutes.
    pub async fn follow_config(&self) {
        self.shared.follow_now().await;
    }

    /// Whether something in the bucket is known to be damaged.
    pub fn is_damaged(&self) -> bool {
        !self.shared.sealed.damaged().is_empty()
    }

    /// What was asked of the store so far.
    pub fn requests(&self) -> crate::store::RequestSnapshot {
        self.shared.layers.stats.snapshot()
    }

    /// The metadata, pending and committed, for what looks behind the file system.
    pub fn view(&self) -> &Arc<View> {
        &self.shared.view
    }

    /// Waits until the bucket has everything that was written before the call; true if it has.
    pub async fn sync(&self, limit: Duration) -> bool {
        match self.shared.writer() {
            Some(writer) => writer.committer.sync(limit).await,
            None => self.shared.role.left().is_none(),
        }
    }

    /// Makes a snapshot of the volume as it is now; waits at most `limit`.
    ///
    /// # Errors
    /// [`SnapshotError`]; of a mount that only reads [`SnapshotError::Fenced`].
    pub async fn create_snapshot(
        &self,
        order: SnapshotOrder,
        limit: Duration,
    ) -> Result<Snapshot, SnapshotError> {
        match self.shared.writer() {
            Some(writer) => writer.committer.create_snapshot(order, limit).await,
            None => Err(SnapshotError::Fenced),
        }
    }

    /// Deletes snapshots, all of these or none; waits at most `limit`.
    ///
    /// # Errors
    /// As [`Mounted::create_snapshot`].
    pub async fn delete_snapshots(
        &self,
        names: Vec<SnapshotName>,
        limit: Duration,
    ) -> Result<(), SnapshotError> {
        match self.shared.writer() {
            Some(writer) => writer.committer.delete_snapshots(names, limit).await,
            None => Err(SnapshotError::Fenced),
        }
    }

    /// Ends the mount in order: drains to the bucket for at most `drain`, flushes metadata,
    /// gives the lease back. True if everything is in the bucket; what is not stays in the
    /// journal for the next mount.
    pub async fn shutdown(self, drain: Duration) -> bool {
        let drained = self.sync(drain).await;
        let looks = std::mem::take(&mut *self.looks.lock());
        for task in looks {
            // It holds the journal, which another mount of this process may want to open next.
            task.abort();
            let _ = task.await;
        }
        // From here on the role stays what it is.
        let _staying = self.shared.stay().await;
        let writer = self.shared.writer();
        if let Some(writer) = &writer {
            if let Err(e) = writer.journal.sync(writer.journal.last_pos()) {
                log::error!("the journal could not be synced: {e}");
            }
            writer.stop(if drained { STEP_MAX } else { Duration::ZERO }).await;
        }
        self.shared.remembered.lock().keyring_revision = self.shared.key_watch.revision();
        self.close(drained, writer).await;
        drained
    }

    async fn close(&self, drained: bool, writer: Option<Arc<Writer>>) {
        let shared = &self.shared;
        let close = async {
            shared.tree.close().await;
            if shared.pinned.is_some() {
                let _ = shared.view.kv().close(false).await; // a reader: there is nothing to lose
            }
            shared.followed.close(drained).await
        };
        let limit = match &*self.shared.layers.retry.health().borrow() {
            _ if drained => CLOSE_MAX,
            Health::Online => CLOSE_PENDING_MAX,
            Health::OfflineSince(..) => CLOSE_AWAY_MAX,
        };
        match tokio::time::timeout(limit, close).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log::warn!("closing the metadata store: {e}"),
            Err(_) => log::warn!("closing the metadata store took too long, left as it is"),
        }
        if let Some(writer) = &writer {
            let kv = self.shared.view.kv();
            let start = Start { manifest: kv.manifest_id(), log: kv.log_span() };
            self.shared.layers.place.note_start(self.volume, start);
            if let Err(e) = writer.note_last(&self.shared) {
                log::warn!("what this machine remembers was not saved: {e}");
            }
            writer.release(limit).await;
        }
    }
}
