//! What the volume looks like now: pending groups, newest first, over cached rows over
//! the metadata store.
//!
//! Two kinds of reads. `*_now` answers from memory or says that it cannot; it never waits, so
//! it may be called under a lock. `load_*` fetches what was missing and fills the caches; no
//! lock is held while it waits.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::batch::{Batch, RowOp};
use super::caches::{ExtentCache, KnownExtents, RowCache};
use super::directories::Directories;
use super::extents::{Committed, extent_of};
use super::holders::Holders;
use super::pack::{Placed, Plan};
use super::page::{Page, PendingRows, Scanned};
use super::pending::{CommitGroup, key_hash};
use crate::base::{ContentsId, Ino, JournalPos, SegmentId};
use crate::data::plan::Pending;
use crate::data::{Extent, Part};
use crate::journal::RecordLoc;
use crate::meta::{CommitRow, DecodeError, Inode, Key, Stats, keys};
use crate::store::kv::{Kv, KvError};

/// Memory that pending rows take before commits do not wait for their interval.
const BURST_ROW_BYTES_MAX: u64 = 16 << 20;
/// Rows of one group as the log has them, in bytes. Its object in the log is put whole, under
/// a condition that parts cannot have, and many a proxy takes no more than 1 MiB (nginx'
/// `client_max_body_size`).
const GROUP_LOG_BYTES_MAX: u64 = 832 << 10;
/// What one request for missing metadata fetches: rows that are read together lie together.
pub const READ_AHEAD_BYTES: usize = 512 << 10;
/// Extents that one scan loads.
const EXTENTS_PER_LOAD: usize = 512;

/// Why the view cannot say.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The metadata store failed.
    #[error(transparent)]
    Store(#[from] KvError),
    /// A row is not in the format.
    #[error(transparent)]
    Row(#[from] DecodeError),
}

/// The row of the last commit; `None` in a volume that has had none since `init`.
///
/// # Errors
/// [`ViewError`]: the metadata store failed, or the row is not in the format.
pub async fn last_commit(kv: &Kv) -> Result<Option<CommitRow>, ViewError> {
    let row = kv.get(&keys::commit()).await?;
    Ok(row.as_deref().map(CommitRow::decode).transpose()?)
}

/// The answer of a look-up that does not wait.
#[derive(Clone, Debug)]
pub enum Lookup<T> {
    /// Known.
    Hit(T),
    /// Only the store knows: load it and ask again.
    Miss,
}

struct Groups {
    active: CommitGroup,
    /// Oldest first; the committer works on the first.
    frozen: VecDeque<Arc<CommitGroup>>,
}

impl Groups {
    fn all(&mut self) -> impl Iterator<Item = &mut CommitGroup> {
        let frozen = self.frozen.iter_mut().map(|group| {
            Arc::get_mut(group).expect("only the oldest is given out, until it retires")
        });
        std::iter::once(&mut self.active).chain(frozen)
    }

    /// What shares records up to `last`, which `plan` has placed, shares segments from now on.
    fn rebase(&mut self, last: JournalPos, plan: &Plan) {
        if self.newest_first().any(|g| !g.clones.is_empty()) {
            let placed = Placed::of(plan);
            self.all().for_each(|g| g.rebase(last, &placed));
        }
    }

    fn newest_first(&self) -> impl Iterator<Item = &CommitGroup> {
        std::iter::once(&self.active).chain(self.frozen.iter().rev().map(|g| &**g))
    }
}

/// Sizes of the view's caches.
#[derive(Clone, Copy, Debug)]
pub struct ViewOptions {
    /// Rows kept in memory.
    pub rows_max: usize,
    /// Files whose extents are kept in memory.
    pub files_max: usize,
    /// A group with this much file data is closed, so that the committer works through a
    /// long write in pieces and frees the journal as it goes, well before it is full.
    pub group_bytes_max: u64,
    /// With this much file data pending, a full group does not wait for the commit interval:
    /// a burst below it has the machine to itself, and is uploaded when it is over.
    pub burst_bytes_max: u64,
}

impl Default for ViewOptions {
    fn default() -> Self {
        ViewOptions {
            rows_max: 65_536,
            files_max: 8_192,
            group_bytes_max: 256 << 20,
            burst_bytes_max: 1 << 30,
        }
    }
}

/// The volume's metadata as this mount sees it. Locks, in order: `moving`, `groups`, then a cache.
pub struct View {
    kv: Arc<Kv>,
    groups: RwLock<Groups>,
    /// Committed rows; `None`: known to be absent.
    rows: Mutex<RowCache>,
    extents: Mutex<ExtentCache>,
    pub(super) directories: Mutex<Directories>,
    /// Rows that were read one by one.
    loads: AtomicU64,
    /// Segments whose live bytes are just being moved. Locked while a file begins to share what
    /// another has, so that meanwhile nothing moves and no record is released.
    moving: Arc<Mutex<HashSet<SegmentId>>>,
    /// Raised when a group retires, when extents are moved and when caches are dropped: a
    /// row fetched before must not enter a cache after, nor be shown.
    retired: AtomicU64,
    stats: Mutex<Stats>,
    pending_row_bytes: AtomicU64,
    pending_data_bytes: AtomicU64,
    group_bytes_max: u64,
    burst_bytes_max: u64,
    holders: Holders,
}

impl View {
    /// A view of what `kv` holds, with records up to `last` committed and `stats` in use.
    pub fn new(kv: Arc<Kv>, last: JournalPos, stats: Stats, options: ViewOptions) -> View {
        View {
            kv,
            groups: RwLock::new(Groups { active: CommitGroup::new(last), frozen: VecDeque::new() }),
            rows: Mutex::new(RowCache::new(options.rows_max)),
            extents: Mutex::new(ExtentCache::new(options.files_max)),
            directories: Mutex::default(),
            loads: AtomicU64::new(0),
            moving: Arc::default(),
            retired: AtomicU64::new(0),
            stats: Mutex::new(stats),
            pending_row_bytes: AtomicU64::new(0),
            pending_data_bytes: AtomicU64::new(0),
            group_bytes_max: options.group_bytes_max,
            burst_bytes_max: options.burst_bytes_max,
            holders: Holders::default(),
        }
    }

    /// The metadata store beneath.
    pub fn kv(&self) -> &Arc<Kv> {
        &self.kv
    }

    /// Which commits snapshots hold.
    pub fn holders(&self) -> &Holders {
        &self.holders
    }

    /// Makes `batch` visible. The caller has journalled it at `record` and calls this in
    /// journal order. True if so much is pending that the committer should not wait.
    /// `cloned`: what its clone shares, as [`View::parts_now`] had it under [`View::sharing`], which
    /// is still held.
    pub fn apply(&self, batch: Batch, record: RecordLoc, data_start: u32, cloned: &[Part]) -> bool {
        let data = batch.data_len() as u64;
        let mut groups = self.groups.write();
        {
            let set = |(_, op): &&(Key, RowOp)| !matches!(op, RowOp::Delete);
            let mut directories = self.directories.lock();
            batch.rows.iter().filter(set).for_each(|(key, _)| directories.set(key));
        }
        let before = groups.active.row_bytes;
        groups.active.apply(batch, record, data_start, cloned);
        let after = groups.active.row_bytes;
        self.pending_row_bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        self.pending_data_bytes.fetch_add(data, Ordering::Relaxed);
        let active = &groups.active;
        let full =
            active.data_bytes >= self.group_bytes_max || active.log_bytes >= GROUP_LOG_BYTES_MAX;
        if full {
            Self::rotate(&mut groups);
        }
        full && self.is_much()
    }

    /// Whether more is frozen than a burst may leave for the commit interval.
    fn is_much(&self) -> bool {
        self.pending_data_bytes.load(Ordering::Relaxed) >= self.burst_bytes_max
            || self.pending_row_bytes.load(Ordering::Relaxed) >= BURST_ROW_BYTES_MAX
    }

    fn rotate(groups: &mut Groups) {
        if groups.active.is_empty() {
            return;
        }
        let next = CommitGroup::new(groups.active.last);
        let mut full = std::mem::replace(&mut groups.active, next);
        full.close();
        groups.frozen.push_back(Arc::new(full));
    }

    /// The oldest pending group, frozen, if there is one to commit: when commits are `due`
    /// whatever is pending, else a full one once more is pending than a burst may leave.
    pub fn freeze(&self, due: bool) -> Option<Arc<CommitGroup>> {
        let mut groups = self.groups.write();
        if groups.frozen.is_empty() && due {
            Self::rotate(&mut groups);
        }
        let ready = due || self.is_much();
        groups.frozen.front().filter(|_| ready).cloned()
    }

    /// Forgets the oldest frozen group: the metadata store has it now, durably.
    /// `inodes` are the inode rows that were not written as they are pending, if that is known.
    pub fn retire(
        &self,
        group: &Arc<CommitGroup>,
        stats: Stats,
        inodes: Option<&[(Key, Bytes)]>,
        plan: &Plan,
    ) {
        let _sharing = self.moving.lock();
        let mut groups = self.groups.write();
        let front = groups.frozen.pop_front();
        assert!(
            front.is_some_and(|front| Arc::ptr_eq(&front, group)),
            "groups retire in the order in which they were frozen"
        );
        // Its records are about to be released.
        groups.rebase(group.last, plan);
        self.forget_extents(group.files.keys().chain(&group.dropped));
        let mut rows = self.rows.lock();
        for (key, row) in &group.rows {
            rows.put(key.clone(), row.value.clone());
            if inodes.is_none() && key.starts_with(b"i") {
                rows.pop(key);
            }
        }
        for (key, row) in inodes.unwrap_or_default() {
            rows.put(key.clone(), Some(row.clone()));
        }
        drop(rows);
        *self.stats.lock() = stats;
        self.pending_row_bytes.fetch_sub(group.row_bytes, Ordering::Relaxed);
        self.pending_data_bytes.fetch_sub(group.data_bytes, Ordering::Relaxed);
    }

    /// What [`View::parts_now`] names stays where it is while this is held, but for the segments in
    /// it. Held for the time of one append, never across a round trip.
    pub fn sharing(&self) -> MutexGuard<'_, HashSet<SegmentId>> {
        self.moving.lock()
    }

    /// Which of `segments` may be emptied now: those of which no pending file shares anything. Nobody
    /// can begin to share them as long as what this returns is held; it must be held until
    /// [`View::forget_extents`] has seen to it that what was moved is found where it is by then.
    pub(super) fn begin_moving(&self, segments: BTreeSet<SegmentId>) -> Moving {
        let mut moving = self.moving.lock();
        let groups = self.groups.read();
        let shared = |id: &SegmentId| groups.newest_first().any(|g| g.shared.contains(id));
        let free: HashSet<_> = segments.into_iter().filter(|id| !shared(id)).collect();
        moving.extend(&free);
        Moving { all: self.moving.clone(), segments: free }
    }

    /// Drops the cached extents of `files`, those in inode rows too: their rows have changed.
    pub fn forget_extents<'a>(&self, files: impl Iterator<Item = &'a ContentsId> + Clone) {
        self.retired.fetch_add(1, Ordering::AcqRel);
        {
            let mut extents = self.extents.lock();
            files.clone().for_each(|file| extents.pop(file));
        }
        let mut rows = self.rows.lock();
        files.for_each(|file| rows.pop(&keys::inode(file.ino)));
    }

    /// Drops what is cached of the store: a follower saw a newer state, or it was opened again.
    pub fn invalidate(&self) {
        self.retired.fetch_add(1, Ordering::AcqRel);
        self.rows.lock().clear();
        self.extents.lock().clear();
        self.directories.lock().clear();
    }

    /// Begins behind record `last` of a journal, with nothing pending: what was has gone to the bucket,
    /// or stays in a journal that is not this mount's any more. Nothing changes meanwhile, and no
    /// committer works on what was frozen.
    pub fn restart(&self, last: JournalPos) {
        let _sharing = self.moving.lock();
        let mut groups = self.groups.write();
        *groups = Groups { active: CommitGroup::new(last), frozen: VecDeque::new() };
        self.pending_row_bytes.store(0, Ordering::Relaxed);
        self.pending_data_bytes.store(0, Ordering::Relaxed);
        self.invalidate();
    }

    /// Goes on with what the store has now: what is cached is dropped, statistics are read.
    pub async fn follow(&self) {
        self.invalidate();
        if let Ok(Some(row)) = self.kv.get(&keys::stats()).await
            && let Ok(stats) = Stats::decode(&row)
        {
            *self.stats.lock() = stats;
        }
    }

    /// Bytes of memory in pending rows, and bytes of file data pending.
    pub fn pending_bytes(&self) -> (u64, u64) {
        (
            self.pending_row_bytes.load(Ordering::Relaxed),
            self.pending_data_bytes.load(Ordering::Relaxed),
        )
    }

    /// Keys of rows that are pending.
    pub(super) fn pending_keys(&self, wanted: impl Fn(&[u8]) -> bool) -> BTreeSet<Bytes> {
        let groups = self.groups.read();
        let rows = groups.newest_first().flat_map(|group| group.rows.keys());
        rows.filter(|key| wanted(key)).map(|key| Bytes::copy_from_slice(key)).collect()
    }

    /// The last record applied, the number of files with pending contents, and when the
    /// oldest pending change was made.
    pub fn pending_summary(&self) -> (JournalPos, u64, Option<std::time::Instant>) {
        let groups = self.groups.read();
        let files = groups.newest_first().map(|g| g.file_count()).sum();
        let oldest = groups.newest_first().filter_map(|g| g.since).min();
        (groups.active.last, files, oldest)
    }

    /// Inodes and bytes in use, pending changes included.
    pub fn stats(&self) -> Stats {
        let groups = self.groups.read();
        let mut stats = *self.stats.lock();
        // Summed first: a newer group may take away what an older one has yet to add.
        let sum = |of: fn(&CommitGroup) -> i64| groups.newest_first().map(of).sum();
        stats.inodes = stats.inodes.saturating_add_signed(sum(|g| g.inodes));
        stats.bytes = stats.bytes.saturating_add_signed(sum(|g| g.bytes));
        stats
    }

    /// Inodes and bytes in use as committed.
    pub fn committed_stats(&self) -> Stats {
        *self.stats.lock()
    }

    fn pending_row(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let hash = key_hash(key);
        let groups = self.groups.read();
        groups.newest_first().find_map(|g| g.row(key, hash)).map(|row| row.value.clone())
    }

    /// The row of `key` if memory can tell.
    pub fn get_now(&self, key: &[u8]) -> Lookup<Option<Bytes>> {
        if let Some(value) = self.pending_row(key) {
            return Lookup::Hit(value);
        }
        if let Some(value) = self.rows.lock().get(key) {
            return Lookup::Hit(value.clone());
        }
        match self.directories.lock().lacks(key) {
            true => Lookup::Hit(None),
            false => Lookup::Miss,
        }
    }

    /// Rows that were read from the metadata store one by one so far.
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// The row of `key`, from the store if need be.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        match self.get_now(key) {
            Lookup::Hit(value) => Ok(value),
            Lookup::Miss => self.load(key).await,
        }
    }

    /// Does `read`, and once more if it was refused because this writer was overtaken: then the
    /// store is about to be open for reading. The committer has to know at once, and does not wait.
    pub(crate) async fn only_reading<T, E, F>(&self, read: impl Fn() -> F) -> Result<T, ViewError>
    where
        E: Into<ViewError>,
        F: Future<Output = Result<T, E>>,
    {
        match read().await.map_err(E::into) {
            Err(ViewError::Store(KvError::Fenced)) if self.kv.until_reader().await => {
                read().await.map_err(E::into)
            }
            outcome => outcome,
        }
    }

    /// Fetches the committed row of `key` into the cache and returns it.
    pub async fn load(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        let before = self.retired.load(Ordering::Acquire);
        self.loads.fetch_add(1, Ordering::Relaxed);
        // A copy: the store's value is a slice that would pin a whole block.
        let value = self.only_reading(|| self.kv.get(key)).await?;
        let value = value.map(|v| Bytes::copy_from_slice(&v));
        let mut rows = self.rows.lock();
        if self.retired.load(Ordering::Acquire) == before {
            rows.put(key.into(), value.clone());
        }
        Ok(value)
    }

    /// The inode if memory can tell; `Hit(None)`: there is none.
    pub fn inode_now(&self, ino: Ino) -> Result<Lookup<Option<Inode>>, ViewError> {
        Ok(match self.get_now(&keys::inode(ino)) {
            Lookup::Hit(Some(row)) => Lookup::Hit(Some(Inode::decode(&row)?)),
            Lookup::Hit(None) => Lookup::Hit(None),
            Lookup::Miss => Lookup::Miss,
        })
    }

    /// The rows of the inodes `inos`, in their order, each as [`View::get_now`] has it.
    pub fn inodes_now(&self, inos: &[Ino]) -> Vec<Lookup<Option<Bytes>>> {
        let groups = self.groups.read();
        let mut rows = self.rows.lock();
        let look = |ino: &Ino| {
            let key = keys::inode(*ino);
            let hash = key_hash(&key);
            let pending = groups.newest_first().find_map(|g| g.row(&key, hash));
            match pending.map(|row| &row.value).or_else(|| rows.get(&key)) {
                Some(value) => Lookup::Hit(value.clone()),
                None => Lookup::Miss,
            }
        };
        inos.iter().map(look).collect()
    }

    /// Rows with `start <= key < end`, at least one page of about `limit` of them, merged from
    /// all pending groups and the store as of now. Rows that come from the store enter the row
    /// cache if `cache`.
    pub async fn page(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
        cache: bool,
    ) -> Result<Page, ViewError> {
        Ok(self.page_and_rows(start, end, limit, cache).await?.0)
    }

    /// [`View::page`], and the rows of the store that it lies on.
    pub async fn page_and_rows(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
        cache: bool,
    ) -> Result<(Page, Scanned), ViewError> {
        // Before the store: what is committed meanwhile is then in one of the two.
        let pending = PendingRows::of(self.groups.read().newest_first(), start, end, limit);
        let scanned = self.scan(start, end, limit, cache).await?;
        Ok((pending.over(&scanned.rows, scanned.next.as_deref()), scanned))
    }

    /// The first `limit` rows of the metadata store with `start <= key < end`, without what is
    /// pending. They enter the row cache if `cache`.
    pub async fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
        cache: bool,
    ) -> Result<Scanned, ViewError> {
        let before = self.retired.load(Ordering::Acquire);
        let scan = || self.kv.scan(start, end, limit, READ_AHEAD_BYTES);
        let found = self.only_reading(scan).await?;
        if cache {
            let mut rows = self.rows.lock();
            if self.retired.load(Ordering::Acquire) == before {
                for (key, value) in &found {
                    rows.put(key[..].into(), Some(Bytes::copy_from_slice(value)));
                }
            }
        }
        let last = found.last().filter(|_| found.len() == limit);
        let next = last.map(|(key, _)| keys::after(key));
        let (start, end) = (start.into(), end.into());
        Ok(Scanned { start, end, rows: found, next, retired: before })
    }

    /// Rows that were scanned at one count are those of the store as long as it stays.
    pub fn retired(&self) -> u64 {
        self.retired.load(Ordering::Acquire)
    }

    /// [`View::page`] of the rows from `start` that were `scanned` before, which must cover it;
    /// `None` if the store may have others by now.
    pub fn page_over(&self, scanned: &Scanned, start: &[u8], limit: usize) -> Option<Page> {
        assert!(scanned.covers(start), "other rows were scanned");
        let pending = {
            // A group retires under this lock: what is not pending any more was scanned.
            let groups = self.groups.read();
            if self.retired.load(Ordering::Acquire) != scanned.retired {
                return None;
            }
            PendingRows::of(groups.newest_first(), start, &scanned.end, limit)
        };
        let (rows, next) = scanned.from(start, limit);
        Some(pending.over(rows, next.as_deref()))
    }

    /// Where `start..end` of a file comes from, if memory can tell.
    pub fn parts_now(&self, file: ContentsId, start: u64, end: u64) -> Lookup<Vec<Part>> {
        let pending = {
            let groups = self.groups.read();
            let mut fresh = false;
            let mut found = Vec::new();
            for g in groups.newest_first() {
                if let Some(f) = g.files.get(&file) {
                    found.push(&f.ranges);
                    fresh = f.fresh;
                    if fresh {
                        break;
                    }
                }
            }
            let pending = Pending::resolve(start, end, found);
            if fresh || pending.gaps().is_empty() {
                return Lookup::Hit(pending.over(&[]));
            }
            pending
        };
        let mut cache = self.extents.lock();
        let Some(known) = cache.get(&file) else {
            drop(cache);
            return match self.only_extent_now(file) {
                Some(extent) => Lookup::Hit(pending.over(&[extent])),
                None => Lookup::Miss,
            };
        };
        if pending.gaps().iter().any(|&(from, to)| from < known.from || to > known.to) {
            return Lookup::Miss;
        }
        let extents = known.extents.clone();
        drop(cache);
        Lookup::Hit(pending.over(&extents))
    }

    /// The only committed extent of a file, if memory has its inode row and that says so.
    fn only_extent_now(&self, file: ContentsId) -> Option<Extent> {
        let mut rows = self.rows.lock();
        let row = rows.get(&keys::inode(file.ino))?.as_deref()?;
        only_extent_in(row, file).ok()?
    }

    /// The same, from the store.
    async fn load_only_extent(&self, file: ContentsId) -> Result<Option<Extent>, ViewError> {
        let key = keys::inode(file.ino);
        let row = self.only_reading(|| self.kv.get(&key)).await?;
        Ok(row.map(|row| only_extent_in(&row, file)).transpose()?.flatten())
    }

    /// The inode as it is committed. Only for the committer, after whose writes the cached rows are
    /// those of the store.
    pub(super) async fn committed_inode(&self, ino: Ino) -> Result<Option<Committed>, ViewError> {
        let key = keys::inode(ino);
        let cached = self.rows.lock().get(&key).cloned();
        let row = match cached {
            Some(row) => row,
            None => self.kv.get(&key).await?,
        };
        Ok(row.as_deref().map(Committed::decode).transpose()?)
    }

    /// Fetches the committed extents of `start..end` of `file` (and what comes with them) into
    /// the cache.
    pub async fn load_extents(
        &self,
        file: ContentsId,
        start: u64,
        end: u64,
    ) -> Result<(), ViewError> {
        self.load_few_extents(file, start, end, usize::MAX).await.map(|_| ())
    }

    /// [`View::load_extents`], unless there are more than about `extents_max` of them: `false`.
    pub async fn load_few_extents(
        &self,
        file: ContentsId,
        start: u64,
        end: u64,
        extents_max: usize,
    ) -> Result<bool, ViewError> {
        let before = self.retired.load(Ordering::Acquire);
        if let Some(extent) = self.load_only_extent(file).await? {
            self.keep_extents(file, KnownExtents::only(extent), before);
            return Ok(true);
        }
        let mut extents = Vec::new();
        let mut to = start;
        while to < end {
            if extents.len() >= extents_max {
                return Ok(false);
            }
            let scan = || self.scan_extents(file, to, EXTENTS_PER_LOAD);
            let (more, complete_to) = self.only_reading(scan).await?;
            extents.extend(more);
            to = complete_to;
        }
        // Where the rows became one meanwhile, and that went to the inode row, they were not found.
        let known = match self.load_only_extent(file).await? {
            Some(extent) => KnownExtents::only(extent),
            None => KnownExtents { from: start, to, extents: Arc::new(extents) },
        };
        self.keep_extents(file, known, before);
        Ok(true)
    }

    fn keep_extents(&self, file: ContentsId, known: KnownExtents, before: u64) {
        let mut cache = self.extents.lock();
        if self.retired.load(Ordering::Acquire) == before {
            cache.put(file, known);
        }
    }

    /// Up to `limit` committed extents in `e` rows that end above `start`, and the position up to which
    /// they are complete (`u64::MAX`: there are no more).
    pub(super) async fn scan_extents(
        &self,
        file: ContentsId,
        start: u64,
        limit: usize,
    ) -> Result<(Vec<Extent>, u64), ViewError> {
        let (from, to) = keys::extents_above(file, start);
        let rows = self.kv.scan(&from, &to, limit, READ_AHEAD_BYTES).await?;
        let extents: Vec<Extent> = rows
            .iter()
            .map(|(key, value)| Ok(extent_of(key, value)?.1))
            .collect::<Result<_, DecodeError>>()?;
        let complete_to = match extents.last() {
            Some(last) if rows.len() == limit => last.end,
            _ => u64::MAX,
        };
        Ok((extents, complete_to))
    }
}

/// Segments that are being emptied: nobody may begin to share anything of them.
#[derive(Default)]
pub(super) struct Moving {
    all: Arc<Mutex<HashSet<SegmentId>>>,
    pub(super) segments: HashSet<SegmentId>,
}

impl Moving {
    /// The segment stays after all.
    pub(super) fn release(&mut self, id: &SegmentId) {
        self.segments.remove(id);
        self.all.lock().remove(id);
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.all.lock().retain(|id| !self.segments.contains(id));
    }
}

/// The extent that the inode row `row` carries of this data incarnation.
fn only_extent_in(row: &[u8], file: ContentsId) -> Result<Option<Extent>, DecodeError> {
    let only = Committed::decode(row)?.only_extent(file.ino);
    Ok(only.filter(|(of, _)| *of == file).map(|(_, extent)| extent))
}
