//! Restoring: files and directories of a snapshot made again in the volume, where they were or below
//! another directory. They share what the snapshot has: no data move.
//!
//! A file that is as it was stays untouched, so that a restore which was cut off goes on where it
//! ended when it is started again. What came since stays, unless it is to be deleted. Called by
//! `stack/` for the command; the kernel, if there is one, is told of what changed behind its back.
//!
//! | file | holds |
//! | --- | --- |
//! | `entry` | one file or directory |
//! | `walk` | whole trees |

mod entry;
mod walk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::FsError;
use super::tree::{Snapshot, Tree};
use crate::base::Ino;
use walk::Walk;

/// How many conflicts are named.
const TOLD_MAX: usize = 20;
/// How long a mount may take to know which snapshots there are.
const KNOWN_MAX: Duration = Duration::from_secs(60);

/// What is to be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOrder {
    /// The name of the snapshot.
    pub snapshot: String,
    /// Files and directories, as names from the root on; none: everything.
    pub paths: Vec<Vec<Vec<u8>>>,
    /// The directory of the volume to put them below, as names from the root on; `None`: where they
    /// were.
    pub to: Option<Vec<Vec<u8>>>,
    /// Delete what is there and was not then.
    pub delete: bool,
}

/// What a restore has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Files that were made again, of any kind but directories.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Further names of those.
    pub links: u64,
    /// Directories that were made.
    pub dirs: u64,
    /// Directories that got their attributes back.
    pub attributes: u64,
    /// Files and directories that were as they are to be.
    pub unchanged: u64,
    /// Files and directories that were deleted.
    pub deleted: u64,
    /// What could not be: something is in its place that only `--delete` takes away.
    pub conflicts: u64,
    /// The first of those, in sentences.
    pub told: Vec<String>,
}

/// Why a restore ended early. What is done is done; it can be started again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no snapshot of that name.
    #[error("there is no snapshot {0:?}")]
    NoSnapshot(String),
    /// The mount shows a snapshot, of this name, in place of the volume.
    #[error("this is a mount of snapshot {0:?}, not of the volume")]
    OfSnapshot(String),
    /// The snapshot does not have it.
    #[error("snapshot {snapshot:?} has no {path}")]
    NotThere {
        /// Its name.
        snapshot: String,
        /// What was asked for.
        path: String,
    },
    /// A directory on the way is none.
    #[error("{0} is no directory now")]
    NoDirectory(String),
    /// Something failed.
    #[error("{path}: {why}")]
    Failed {
        /// On what.
        path: String,
        /// Why.
        why: FsError,
    },
    /// It was asked to stop.
    #[error("stopped before the end; what was restored is whole")]
    Stopped,
}

/// How far a restore is, for whoever watches it, and the wish to stop.
#[derive(Debug, Default)]
pub struct RestoreProgress {
    files: AtomicU64,
    unchanged: AtomicU64,
    stop: AtomicBool,
}

impl RestoreProgress {
    /// Files that were made again, and those that need not be.
    pub fn so_far(&self) -> (u64, u64) {
        (self.files.load(Ordering::Relaxed), self.unchanged.load(Ordering::Relaxed))
    }

    /// Has it end after the file at hand.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn shows(&self, done: &Restored) -> bool {
        self.files.store(done.files + done.links + done.dirs, Ordering::Relaxed);
        self.unchanged.store(done.unchanged, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Who remembers names and attributes of a mount: the kernel. May block.
pub trait Kernel: Send + Sync + 'static {
    /// `name` in `parent` leads elsewhere now.
    fn forget_name(&self, parent: Ino, name: &[u8]);
    /// What is known of `ino`, and of the listing of a directory, is old.
    fn forget_inode(&self, ino: Ino);
}

/// A mount that nobody looks at.
pub struct NoKernel;

impl Kernel for NoKernel {
    fn forget_name(&self, _: Ino, _: &[u8]) {}
    fn forget_inode(&self, _: Ino) {}
}

/// A path as people write it.
pub(super) fn shown(path: &[Vec<u8>]) -> String {
    match path {
        [] => "the root".into(),
        path => path.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>().join("/"),
    }
}

impl Tree {
    /// Waits until the writer is known to keep what the snapshot has: a mount that has just begun looks
    /// that up first.
    async fn until_kept(self: &Arc<Self>, snapshot: &Snapshot) -> Result<(), FsError> {
        if self.volume().is_read_only() {
            return Err(FsError::ReadOnly);
        }
        let begun = Instant::now();
        while !self.volume().keeps(&snapshot.id) {
            let there = self.find_snapshot(&snapshot.name).await?;
            if there.map(|there| there.id) != Some(snapshot.id) || begun.elapsed() > KNOWN_MAX {
                return Err(FsError::Stale);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Restores what `order` says. When this returns, it is on stable storage of this machine.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn restore(
        self: &Arc<Self>,
        order: &RestoreOrder,
        progress: &RestoreProgress,
        kernel: Arc<dyn Kernel>,
    ) -> Result<Restored, RestoreError> {
        let fail =
            |why| RestoreError::Failed { path: format!("snapshot {:?}", order.snapshot), why };
        let missing = || RestoreError::NoSnapshot(order.snapshot.clone());
        let snapshot =
            self.find_snapshot(&order.snapshot).await.map_err(fail)?.ok_or_else(missing)?;
        let (slot, fs) = self.open_snapshot(&snapshot).await.map_err(fail)?;
        let origin = entry::Origin { fs, checkpoint: slot.snapshot.id };
        self.until_kept(&slot.snapshot).await.map_err(fail)?;
        let mut walk = Walk::new(self.volume().clone(), origin, order, progress, kernel);
        let outcome = Box::pin(walk.all()).await;
        walk.tell_kernel().await;
        let volume = self.volume().clone();
        let synced = tokio::task::spawn_blocking(move || volume.fsync_now(Ino::ROOT)).await;
        let done = outcome?;
        match synced {
            Ok(Ok(())) => Ok(done),
            Ok(Err(why)) => Err(RestoreError::Failed { path: "the local journal".into(), why }),
            Err(e) => Err(fail(FsError::Io(e.to_string()))),
        }
    }
}
