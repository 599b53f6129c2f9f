//! The snapshots of a mount, for the directory `.snapshots`: found by their rows in the metadata that
//! the mount reads, opened as file systems that only read, beside it. They share its caches of blocks
//! and of metadata, so that an open one costs what it remembers of its rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::base::{JournalPos, SystemClock, Timestamp};
use crate::commit::snapshots::{self, Snapshot as Made};
use crate::commit::view::ViewOptions;
use crate::commit::{View, ViewError};
use crate::data::BlockCache;
use crate::fs::{Fs, FsError, FsOptions, FsParts, Snapshot, Snapshots};
use crate::meta::{DecodeError, SnapshotName, Stats, keys};
use crate::stack::StackError;
use crate::store::kv::{Kv, KvError};

/// Rows, and files whose extents, an open snapshot remembers: a few MiB at most.
const ROWS_MAX: usize = 8192;
const FILES_MAX: usize = 1024;

/// What opening a snapshot takes.
#[derive(Clone)]
pub(crate) struct SnapshotsOf {
    pub(crate) view: Arc<View>,
    pub(crate) blocks: Arc<BlockCache>,
    pub(crate) name_hash_key: [u8; 16],
    /// How long opening one may take.
    pub(crate) open_timeout: Duration,
}

impl SnapshotsOf {
    /// The snapshot of a name in what the mount reads now.
    async fn made(&self, name: &SnapshotName) -> Result<Option<Made>, ViewError> {
        self.view.only_reading(|| snapshots::snapshot(self.view.kv(), name)).await
    }

    /// Opens a snapshot.
    ///
    /// # Errors
    /// The store's; what is not the snapshot any more.
    pub(crate) async fn open_made(&self, made: &Made) -> Result<Arc<Fs>, ViewError> {
        let kv = snapshots::open_snapshot(self.view.kv(), &made.row, self.open_timeout).await?;
        let options =
            ViewOptions { rows_max: ROWS_MAX, files_max: FILES_MAX, ..ViewOptions::default() };
        fs_of(Arc::new(kv), self.blocks.clone(), self.name_hash_key, options).await
    }
}

/// How long a follower takes, at most, beyond two looks at what is new, to see a deletion.
const DELETION_SEEN: Duration = Duration::from_secs(2);

/// How often a mount of a snapshot looks whether that still exists, at least: well within the time
/// for which what a deleted one had stays in the bucket.
pub(crate) const WATCH_EVERY: Duration = Duration::from_secs(100);

/// A snapshot that is mounted in place of the volume. The mount writes nothing, not even a
/// checkpoint, so that credentials which only read suffice: what it shows stays for as long as the
/// snapshot does.
pub(crate) struct Pinned {
    /// What is shown.
    pub(crate) kv: Arc<Kv>,
    /// Inodes and bytes in use.
    pub(crate) stats: Stats,
    made: Made,
    is_deleted: AtomicBool,
}

impl Pinned {
    /// Opens the snapshot `name` of `kv`.
    ///
    /// # Errors
    /// [`StackError::NoSnapshot`]; the store's.
    pub(crate) async fn open(
        kv: &Arc<Kv>,
        name: &SnapshotName,
        open_timeout: Duration,
    ) -> Result<Pinned, StackError> {
        let Some(made) = snapshots::snapshot(kv, name).await? else {
            let there = snapshots::snapshots(kv).await?;
            let there = there.iter().map(|one| one.name.to_string()).collect();
            return Err(StackError::NoSnapshot { name: name.to_string(), there });
        };
        let kv = Arc::new(snapshots::open_snapshot(kv, &made.row, open_timeout).await?);
        let stats = kv.get(&keys::stats()).await?;
        let stats = stats.ok_or_else(|| ViewError::from(DecodeError("no statistics")))?;
        let stats = Stats::decode(&stats).map_err(ViewError::from)?;
        Ok(Pinned { kv, stats, made, is_deleted: AtomicBool::new(false) })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &SnapshotName {
        &self.made.name
    }

    /// Whether it is gone.
    pub(crate) fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::Relaxed)
    }

    /// Looks in the newest metadata whether it is still there. Once it is not, what it had goes from
    /// the bucket piece by piece: nothing of it is shown any more.
    pub(crate) async fn look(&self, followed: &Kv) {
        let found = match snapshots::snapshot(followed, self.name()).await {
            Ok(found) => found,
            Err(e) => return log::warn!("whether the snapshot is still there cannot be told: {e}"),
        };
        let is_there = found.is_some_and(|found| found.row.checkpoint == self.made.row.checkpoint);
        if !is_there && !self.is_deleted.swap(true, Ordering::Relaxed) {
            let why = format!("snapshot {:?} was deleted", self.name().as_str());
            log::error!("{why}: nothing of it is shown any more; unmount it");
            self.kv.refuse(why);
        }
    }
}

/// A file system that only reads, at the state of `kv`.
pub(crate) async fn fs_of(
    kv: Arc<Kv>,
    blocks: Arc<BlockCache>,
    name_hash_key: [u8; 16],
    options: ViewOptions,
) -> Result<Arc<Fs>, ViewError> {
    let stats = kv.get(&keys::stats()).await?.ok_or(DecodeError("no statistics"))?;
    let parts = FsParts {
        view: Arc::new(View::new(kv, JournalPos(0), Stats::decode(&stats)?, options)),
        blocks,
        clock: Arc::new(SystemClock),
        name_hash_key,
    };
    Ok(Fs::new(parts, FsOptions::default()))
}

fn shown(made: &Made) -> Snapshot {
    let secs = i64::try_from(made.row.time_secs).unwrap_or(i64::MAX);
    Snapshot {
        name: made.name.to_string(),
        id: made.row.checkpoint,
        number: made.row.manifest,
        time: Timestamp { secs, nanos: 0 },
    }
}

impl Snapshots for SnapshotsOf {
    fn list(&self) -> BoxFuture<'static, Result<Vec<Snapshot>, FsError>> {
        let view = self.view.clone();
        async move {
            let all = view.only_reading(|| snapshots::snapshots(view.kv())).await?;
            Ok(all.iter().map(shown).collect())
        }
        .boxed()
    }

    fn find(&self, name: &str) -> BoxFuture<'static, Result<Option<Snapshot>, FsError>> {
        let (of, name) = (self.clone(), SnapshotName::parse(name));
        async move {
            let Ok(name) = name else { return Ok(None) };
            Ok(of.made(&name).await?.as_ref().map(shown))
        }
        .boxed()
    }

    fn open(&self, snapshot: &Snapshot) -> BoxFuture<'static, Result<Arc<Fs>, FsError>> {
        let (of, snapshot) = (self.clone(), snapshot.clone());
        async move {
            let Ok(name) = SnapshotName::parse(&snapshot.name) else { return Err(FsError::Stale) };
            let begun = Instant::now();
            loop {
                let made = of.made(&name).await?;
                let made = made.filter(|made| made.row.checkpoint == snapshot.id);
                let e = match of.open_made(&made.ok_or(FsError::Stale)?).await {
                    Ok(fs) => return Ok(fs),
                    Err(e) => e,
                };
                // What is not there may have been deleted by the writer, which whoever follows sees a
                // little later.
                let is_damaged = matches!(&e, ViewError::Store(KvError::Damaged(_)));
                match of.view.kv().behind().filter(|_| is_damaged) {
                    Some(behind) if begun.elapsed() < behind * 2 + DELETION_SEEN => {
                        tokio::time::sleep(DELETION_SEEN / 10).await;
                    }
                    _ => return Err(e.into()),
                }
            }
        }
        .boxed()
    }
}
