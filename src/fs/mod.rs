//! POSIX operations on a volume.
//!
//! Every mutation is one [`Batch`]: checked and built under one lock from what memory knows,
//! journalled, then made visible. Where memory does not know, the try ends, the row is fetched
//! without a lock, and the operation is tried again; so no lock is held across a round trip.
//! Called by `fuse/`, and by tests without a mount.

mod ahead;
pub mod below;
mod blocks;
mod contents;
mod copy;
pub mod diff;
mod dir;
mod error;
mod inode;
mod known;
mod lifetime;
mod listed;
mod namespace;
mod place;
mod quota;
mod read;
pub mod restore;
mod rights;
mod role;
mod sequence;
pub mod tree;
mod types;
mod walk;
mod xattr;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::base::{Clock, Ino, JournalPos};
use crate::commit::{Batch, Lookup, View};
use crate::data::{BlockCache, Part};
use crate::journal::RecordLoc;
use crate::meta::{Dirent, Inode, NAME_MAX, NameHash, keys};

pub use crate::meta::Kind;
pub use error::FsError;
use error::Step;
pub(crate) use lifetime::decode_next_ino;
pub use place::{behind_group, ends_group};
pub use quota::{Quota, QuotaError};
pub use role::Half;
pub use tree::{Keeps, SnapDir, Snapshot, Snapshots, Tree};
pub use types::{
    Attr, Caller, DirEntry, RenameFlags, SetAttr, SetTime, StatFs, Whence, WriteFlags, XattrMode,
};

/// Tries of one operation before it gives up: each loads a row, and a row may be evicted
/// before the next try only under absurd pressure.
const TRIES_MAX: usize = 10_000;

/// How a volume is mounted.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// `fsync` waits for the bucket (`-o fsync=remote`).
    pub fsync_remote: bool,
    /// Bytes of pending rows in memory at which writers wait.
    pub pending_rows_bytes_max: u64,
    /// How long a writer waits for room before it gets `ENOSPC`.
    pub full_timeout: Duration,
    /// How long `fsync=remote` waits for the bucket.
    pub sync_timeout: Duration,
}

impl Default for FsOptions {
    fn default() -> Self {
        FsOptions {
            fsync_remote: false,
            pending_rows_bytes_max: 64 << 20,
            full_timeout: Duration::from_secs(60),
            sync_timeout: Duration::from_secs(600),
        }
    }
}

/// What an [`Fs`] is made of.
pub struct FsParts {
    /// Metadata.
    pub view: Arc<View>,
    /// File contents.
    pub blocks: Arc<BlockCache>,
    /// Time for inodes.
    pub clock: Arc<dyn Clock>,
    /// Key of the hashes of names.
    pub name_hash_key: [u8; 16],
}

/// A mounted volume. Shared; operations run concurrently.
pub struct Fs {
    view: Arc<View>,
    /// Who keeps changes, if anybody does.
    role: role::Role,
    blocks: Arc<BlockCache>,
    clock: Arc<dyn Clock>,
    name_hash_key: [u8; 16],
    options: FsOptions,
    /// Held while a mutation is checked, journalled and made visible: the order of records is
    /// the order of history.
    state: Mutex<State>,
    lookups: lifetime::Lookups,
    streams: read::Streams,
    sequences: sequence::Sequences,
    listings: ahead::Listings,
    walks: walk::Walks,
    uncounted: Mutex<blocks::Uncounted>,
    quota: quota::Kept,
}

/// What mutations share.
struct State {
    inos: lifetime::InoAllocator,
    head: Vec<u8>,
}

type Attempt<T> = Result<T, Step>;

impl Fs {
    /// Puts a volume together, which refuses changes until [`Fs::begin_writing`].
    pub fn new(parts: FsParts, options: FsOptions) -> Arc<Fs> {
        Arc::new(Fs {
            view: parts.view,
            role: role::Role::default(),
            blocks: parts.blocks,
            clock: parts.clock,
            name_hash_key: parts.name_hash_key,
            options,
            state: Mutex::new(State {
                inos: lifetime::InoAllocator::new(0),
                head: Vec::with_capacity(4096),
            }),
            lookups: lifetime::Lookups::default(),
            streams: read::Streams::default(),
            sequences: sequence::Sequences::default(),
            listings: ahead::Listings::default(),
            walks: walk::Walks::default(),
            uncounted: Mutex::default(),
            quota: quota::Kept::default(),
        })
    }

    /// The rows of the root directory and of a new volume, for `init`.
    pub fn format_rows(
        now: crate::base::Timestamp,
        uid: u32,
        gid: u32,
    ) -> Vec<(Bytes, Option<Bytes>)> {
        let root = Inode { parent: Ino::ROOT, ..Inode::new(Kind::Dir, 0o755, uid, gid, now) };
        let row = |key: crate::meta::Key, value: Bytes| (Bytes::from(key.into_vec()), Some(value));
        let volume = crate::meta::VolumeRow { created_secs: now.secs.max(0) as u64 };
        let stats = crate::meta::Stats { inodes: 1, bytes: 0 };
        vec![
            row(keys::inode(Ino::ROOT), root.encode()),
            row(keys::volume(), volume.encode()),
            row(keys::stats(), stats.encode()),
            row(keys::next_ino(), Bytes::copy_from_slice(&2u64.to_le_bytes())),
        ]
    }

    /// The time for inodes.
    fn now(&self) -> crate::base::Timestamp {
        self.clock.now()
    }

    /// Whether directory `parent` has `name`.
    async fn has_name(self: &Arc<Self>, parent: Ino, name: Vec<u8>) -> Result<bool, FsError> {
        self.clone().consult(move |fs| Ok(fs.dirent(parent, &name)?.is_some())).await
    }

    /// Whether the writer is known to keep the snapshot of this checkpoint.
    fn keeps(&self, checkpoint: &[u8; 16]) -> bool {
        self.view.holders().use_snapshot(checkpoint).is_some()
    }

    /// Ends a file system that only reads, whose metadata store is its own.
    pub async fn close(&self) {
        if let Err(e) = self.view.kv().close(false).await {
            log::debug!("closing metadata that were only read: {e}"); // there is nothing to lose
        }
    }

    /// Runs `attempt` under the mutation lock until it succeeds or fails for good, fetching
    /// rows and waiting for room in between.
    async fn transact<T>(
        self: Arc<Self>,
        mut attempt: impl FnMut(&Fs, &mut State) -> Attempt<T> + Send,
    ) -> Result<T, FsError> {
        if self.is_read_only() {
            return Err(FsError::ReadOnly);
        }
        let (mut full_since, mut over_since): (Option<Instant>, Option<Instant>) = (None, None);
        let mut loads = 0;
        for _ in 0..TRIES_MAX {
            let step = {
                let mut state = self.state.lock();
                match attempt(&self, &mut state) {
                    Ok(value) => return Ok(value),
                    Err(step) => step,
                }
            };
            match step {
                Step::Fail(e) => return Err(e),
                // On the heap: every operation's future would be as large as what reads the store.
                Step::Row(key) => Box::pin(self.load_row(&key)).await?,
                Step::Extents(file) => {
                    loads += 1;
                    Box::pin(self.load_to_count(file, loads == blocks::LOADS_MAX)).await;
                }
                Step::Range(file, start, end) => {
                    Box::pin(self.view.load_extents(file, start, end)).await?
                }
                Step::Quota(e) => {
                    let since = *over_since.get_or_insert_with(Instant::now);
                    if !self.may_come_free(since).await {
                        self.say_refused();
                        return Err(FsError::Quota(e));
                    }
                }
                Step::Held => self.role.until_released().await?,
                Step::Full => {
                    let since = *full_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.options.full_timeout {
                        return Err(FsError::NoSpace);
                    }
                    if self.is_read_only() {
                        return Err(FsError::ReadOnly);
                    }
                    let committer = self.role.half().ok_or(FsError::ReadOnly)?.committer;
                    let before = committer.committed().position;
                    committer.make_room(Duration::from_secs(1)).await;
                    if committer.committed().position != before {
                        full_since = None;
                    }
                }
            }
        }
        Err(FsError::Io("an operation could not get its rows into memory".into()))
    }

    /// Journals rows that no operation of a user made: those that `fsck --repair` puts right.
    /// They go the way of every other mutation, but for the quota. `batch` carries no file data.
    pub async fn mend(self: &Arc<Self>, batch: Batch) -> Result<(), FsError> {
        assert_eq!(batch.data_len(), 0, "a repair moves rows, not contents");
        let submit =
            move |fs: &Fs, state: &mut State| fs.submit_all(state, batch.clone(), &[], &[]);
        self.clone().transact(submit).await.map(|_| ())
    }

    /// Journals `batch` with `data` and makes it visible. The caller holds the mutation lock.
    fn submit(&self, state: &mut State, batch: Batch, data: &[&[u8]]) -> Attempt<JournalPos> {
        self.within_quota(&batch)?;
        self.submit_all(state, batch, data, &[])
    }

    /// The same for a batch with a clone, which shares `parts` of its source. The caller holds
    /// [`View::sharing`] as well.
    fn submit_cloned(
        &self,
        state: &mut State,
        batch: Batch,
        parts: &[Part],
    ) -> Attempt<JournalPos> {
        self.within_quota(&batch)?;
        self.submit_all(state, batch, &[], parts)
    }

    fn submit_all(
        &self,
        state: &mut State,
        batch: Batch,
        data: &[&[u8]],
        cloned: &[Part],
    ) -> Attempt<JournalPos> {
        if self.role.is_held() {
            return Err(Step::Held);
        }
        let Half { journal, committer } = self.role.half().ok_or(FsError::ReadOnly)?;
        if self.view.pending_bytes().0 >= self.options.pending_rows_bytes_max {
            return Err(Step::Full);
        }
        batch.encode_head(&mut state.head);
        debug_assert_eq!(batch.data_len(), data.iter().map(|d| d.len()).sum::<usize>());
        let head_len = state.head.len() as u32;
        let (pos, record): (JournalPos, RecordLoc) = match data {
            [] => journal.append(&[&state.head])?,
            [one] => journal.append(&[&state.head, one])?,
            many => {
                let mut parts: Vec<&[u8]> = vec![&state.head];
                parts.extend_from_slice(many);
                journal.append(&parts)?
            }
        };
        if self.view.apply(batch, record, head_len, cloned) {
            committer.nudge();
        }
        Ok(pos)
    }

    /// The inode, or `NotFound`.
    fn inode(&self, ino: Ino) -> Attempt<Inode> {
        match self.view.inode_now(ino)? {
            Lookup::Hit(Some(inode)) => Ok(inode),
            Lookup::Hit(None) => Err(FsError::NotFound.into()),
            Lookup::Miss => Err(Step::Row(keys::inode(ino))),
        }
    }

    /// The inode of a directory, or `NotDir`.
    fn directory(&self, ino: Ino) -> Attempt<Inode> {
        let inode = self.inode(ino)?;
        if inode.kind == Kind::Dir { Ok(inode) } else { Err(FsError::NotDir.into()) }
    }

    fn dirent_key(&self, parent: Ino, name: &[u8]) -> crate::meta::Key {
        keys::dirent(parent, NameHash::of(&self.name_hash_key, name), name)
    }

    /// The entry of `name` in `parent`, if there is one.
    fn dirent(&self, parent: Ino, name: &[u8]) -> Attempt<Option<Dirent>> {
        let key = self.dirent_key(parent, name);
        match self.view.get_now(&key) {
            Lookup::Hit(Some(row)) => Ok(Some(Dirent::decode(&row)?)),
            Lookup::Hit(None) => Ok(None),
            Lookup::Miss => Err(Step::Row(key)),
        }
    }

    /// Like [`Fs::transact`] for reads: no lock, and allowed on a read-only mount.
    async fn consult<T>(
        self: Arc<Self>,
        mut attempt: impl FnMut(&Fs) -> Attempt<T> + Send,
    ) -> Result<T, FsError> {
        for _ in 0..TRIES_MAX {
            match attempt(&self) {
                Ok(value) => return Ok(value),
                Err(Step::Fail(e)) => return Err(e),
                Err(Step::Row(key)) => Box::pin(self.load_row(&key)).await?,
                Err(
                    Step::Full | Step::Quota(_) | Step::Held | Step::Extents(_) | Step::Range(..),
                ) => {
                    unreachable!("reads change nothing")
                }
            }
        }
        Err(FsError::Io("an operation could not get its rows into memory".into()))
    }

    /// Brings everything that was journalled so far to stable storage of this machine.
    /// Blocks on the local disk only.
    pub fn fsync_now(&self, _ino: Ino) -> Result<(), FsError> {
        match self.role.half() {
            Some(Half { journal, .. }) => Ok(journal.sync(journal.last_pos())?),
            None => Ok(()),
        }
    }

    /// [`Fs::fsync_now`] for a caller who does not wait: `tell` is called with what became of it,
    /// on this thread or another, and must not wait. Blocks for one sync of the disk unless
    /// [`Fs::is_syncing`].
    pub fn fsync_then(&self, tell: impl FnOnce(Result<(), FsError>) + Send + 'static) {
        match self.role.half() {
            Some(Half { journal, .. }) => {
                journal.sync_then(journal.last_pos(), |synced| tell(synced.map_err(Into::into)));
            }
            None => tell(Ok(())),
        }
    }

    /// Whether the journal is being synced, so that [`Fs::fsync_then`] does not wait.
    pub fn is_syncing(&self) -> bool {
        self.role.half().is_some_and(|half| half.journal.is_syncing())
    }

    /// `fsync`, `fdatasync` and `fsync` of a directory: to stable storage of this machine, or
    /// to the bucket under `fsync=remote`.
    pub fn fsync(
        self: &Arc<Self>,
        ino: Ino,
        _data_only: bool,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            fs.fsync_now(ino)?;
            match fs.role.half() {
                Some(Half { committer, .. }) if fs.options.fsync_remote => {
                    if committer.sync(fs.options.sync_timeout).await {
                        Ok(())
                    } else {
                        Err(FsError::Io("fsync=remote: the bucket does not have it yet".into()))
                    }
                }
                _ => Ok(()),
            }
        }
    }

    /// [`Fs::fsync`] of a directory.
    pub fn fsyncdir(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.fsync(ino, false)
    }

    /// What `statfs` shows: the quota, or 1 PiB that is free.
    pub fn statfs(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<StatFs, FsError>> + Send + 'static {
        std::future::ready(Ok(self.quota().statfs(self.view.stats())))
    }
}

fn check_name(name: &[u8]) -> Result<(), FsError> {
    match name {
        b"" | b"." | b".." => Err(FsError::Invalid),
        _ if name.len() > NAME_MAX => Err(FsError::NameTooLong),
        _ if name.contains(&b'/') || name.contains(&0) => Err(FsError::Invalid),
        _ => Ok(()),
    }
}
