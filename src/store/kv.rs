//! The metadata key-value store: SlateDB over the sealed store. The only file that names it.
//!
//! Owns the database handle, its settings, and when it compacts and collects garbage: on
//! demand, so that an idle mount makes no requests. Only `commit/` writes through
//! it. Keys and values are opaque here; `meta/` gives them their meaning.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use object_store::ObjectStore;
use parking_lot::{Mutex, RwLock};
use slatedb::config::{
    CloseOptions, DbReaderOptions, FlushOptions, FlushType, ReadOptions, ScanOptions, Settings,
};
use slatedb::db_cache::SplitCache;
use slatedb::db_cache::moka::{MokaCache, MokaCacheOptions};
use slatedb::{CloseReason, Db, DbReader, DbReaderMode, ErrorKind, WriteBatch};
use slatedb_common::retry::NonRetryable;
use tokio::sync::watch;

use super::error::{ErrorClass, class, told};
use super::kv_store::{SlateStore, UploadLimit};
use super::names::META_PREFIX;

pub(super) mod answers;
mod apart;
mod checkpoints;
mod compact;
mod foresight;
mod roles;
mod tables;

pub use foresight::start_of_metadata;
mod walk;

pub use checkpoints::Checkpoint;
pub use walk::Walk;

/// Level-0 tables at which writes stall.
const L0_MAX: usize = 16;
/// Bytes of rows in memory at which writes wait until there is room for more tables.
const UNFLUSHED_MAX: u64 = 32 << 20;
/// See [`KvOptions::collect_age`].
pub const COLLECT_AGE: Duration = Duration::from_secs(900);
/// The poll intervals that SlateDB insists on; each poll is one or two requests.
const POLL_IDLE: Duration = Duration::from_secs(1200);
/// Commits after which the memtable goes to level 0 (SlateDB's own limit starts at 4096): a
/// mount after a crash, and a follower when it starts, fetches that many objects of the log.
const WAL_OBJECTS_MAX: u64 = 512;
/// How long closing a handle may take that is replaced.
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a compaction may go on once the database is to be closed, so that a short one is not
/// done for nothing. What it leaves is collected later.
const COMPACTION_GRACE: Duration = Duration::from_secs(1);
/// Objects that a mount which changed nothing may leave in the log: the next one reads them at once.
const LEFT_IN_LOG_MAX: u64 = 8;
/// How long the last flush to level 0 may take. It only spares the next mount the replay of what
/// is in the log already.
const LAST_FLUSH_MAX: Duration = Duration::from_secs(10);

/// How the database is opened.
#[derive(Clone, Debug)]
pub struct KvOptions {
    /// Bytes of decoded data blocks kept in memory.
    pub block_cache_bytes: u64,
    /// Bytes of indexes and filters kept in memory.
    pub meta_cache_bytes: u64,
    /// How long one read may take before it fails with [`KvError::Unavailable`].
    pub read_timeout: Duration,
    /// How often a read-only handle looks for newer state.
    pub refresh: Duration,
    /// Objects of the database younger than this are never collected, so that a reader which
    /// still works from an older manifest finds them.
    pub collect_age: Duration,
}

impl Default for KvOptions {
    fn default() -> Self {
        KvOptions {
            block_cache_bytes: 24 << 20,
            meta_cache_bytes: 8 << 20,
            read_timeout: Duration::from_secs(30),
            refresh: Duration::from_secs(5),
            collect_age: COLLECT_AGE,
        }
    }
}

/// Why the database could not do it, by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// Another writer has taken the volume over: stop writing for good. A handle that reads never says
    /// so to its callers.
    #[error("another mount has taken over this volume")]
    Fenced,
    /// The store did not answer in time or refused for now: try again later.
    #[error("metadata store unavailable: {0}")]
    Unavailable(String),
    /// Something in the bucket is not what was written: fail what depends on it.
    #[error("metadata damaged: {0}")]
    Damaged(String),
    /// One commit is larger than the store, or a proxy before it, takes.
    #[error(
        "a commit of metadata is larger than the store, or a proxy before it, takes, which must be 1 MiB at least: {0}"
    )]
    TooLarge(String),
    /// The handle is closed (our own shutdown, or a background task died): reopen.
    #[error("metadata store closed: {0}")]
    Closed(String),
    /// A write was attempted through a read-only handle.
    #[error("metadata store is open read-only")]
    ReadOnly,
}

impl From<slatedb::Error> for KvError {
    fn from(e: slatedb::Error) -> Self {
        // The message of a slatedb error carries its sources, which name the object.
        let text = error_chain(&e);
        if let Some(NonRetryable(cause)) = NonRetryable::find(&e) {
            // See `kv_store` for what is marked so: what the store said is all there is to say.
            let cause = cause.downcast_ref::<object_store::Error>();
            let text = cause.map_or(text, told);
            return match cause.map(class) {
                Some(ErrorClass::TooLarge) => KvError::TooLarge(text),
                Some(ErrorClass::Behind) => KvError::Fenced,
                Some(ErrorClass::Corrupt) | None => KvError::Damaged(text),
                Some(_) => KvError::Unavailable(text),
            };
        }
        match e.kind() {
            ErrorKind::Closed(CloseReason::Fenced) => KvError::Fenced,
            ErrorKind::Closed(_) => KvError::Closed(text),
            ErrorKind::Data => KvError::Damaged(text),
            _ => KvError::Unavailable(text),
        }
    }
}

fn error_chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

enum Handle {
    Writer(Arc<Db>),
    Reader(Arc<DbReader>),
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        match self {
            Handle::Writer(db) => Handle::Writer(db.clone()),
            Handle::Reader(db) => Handle::Reader(db.clone()),
        }
    }
}

tokio::task_local! {
    /// Set for whoever opens closed handles again, and so cannot wait for it.
    static OPENS: ();
}

/// Runs `work`, which is what calls [`Kv::reopen`].
pub async fn as_opener<T>(work: impl Future<Output = T>) -> T {
    OPENS.scope((), work).await
}

/// One row: key and value.
pub type Row = (Bytes, Bytes);

/// The metadata store of one volume. Shared; every method takes `&self`.
pub struct Kv {
    handle: RwLock<Handle>,
    store: RwLock<Arc<SlateStore>>,
    /// Why nothing is read any more.
    refused: OnceLock<String>,
    cache: Arc<SplitCache>,
    options: KvOptions,
    /// The handle is of no more use, or keeps to an older limit; see [`Kv::until_worn`].
    worn: watch::Sender<bool>,
    compacting: watch::Sender<bool>,
    /// From now on compactions end early and none begins.
    closing: watch::Sender<bool>,
    /// The last [`Kv::reopen`] failed, perhaps after it had raised the epoch.
    reopen_broke_off: AtomicBool,
    /// Something was committed through this handle, if only perhaps.
    has_committed: AtomicBool,
    /// Commits since the memtable last went to level 0.
    commits: AtomicU64,
    collected: Mutex<Option<Instant>>,
    /// The handle only reads: from the start, or since [`Kv::replace_by`].
    reads_only: watch::Sender<bool>,
    /// The handle reads a checkpoint, which tables have all of.
    is_checkpoint: bool,
}

/// `log_bytes` are in the log already. They must not wait for room in level 0: nothing compacts before the
/// database is open.
fn settings(limit: &UploadLimit, log_bytes: u64) -> Settings {
    Settings {
        flush_interval: None,
        manifest_poll_interval: POLL_IDLE,
        manifest_update_timeout: Duration::from_secs(300),
        min_filter_keys: 256,
        l0_sst_size_bytes: limit.memtable_bytes(),
        max_wal_flushes_before_l0_flush: 4096,
        l0_max_ssts: L0_MAX,
        l0_max_ssts_per_key: L0_MAX,
        l0_flush_parallelism: 2,
        max_unflushed_bytes: UNFLUSHED_MAX.max(log_bytes.saturating_mul(3) / 2) as usize,
        compactor_options: None,
        compression_codec: None,
        garbage_collector_options: None,
        ..Settings::default()
    }
}

async fn open_writer(
    store: Arc<SlateStore>,
    cache: Arc<SplitCache>,
    expected_epoch: Option<u64>,
    log_bytes: u64,
) -> Result<Db, KvError> {
    let settings = settings(&store.limit(), log_bytes);
    let mut builder = Db::builder(META_PREFIX, store)
        .with_settings(settings)
        .with_sst_block_size(slatedb::SstBlockSize::Block8Kib)
        .with_db_cache(cache, 1);
    if let Some(epoch) = expected_epoch {
        builder = builder.with_expected_epoch(epoch);
    }
    Ok(builder.build().await?)
}

async fn open_reading(
    store: Arc<SlateStore>,
    cache: Arc<SplitCache>,
    options: &KvOptions,
) -> Result<DbReader, KvError> {
    let reader_options = DbReaderOptions {
        manifest_poll_interval: options.refresh,
        checkpoint_lifetime: Duration::from_secs(600).max(options.refresh * 4),
        max_memtable_bytes: 32 << 20,
        ..DbReaderOptions::default()
    };
    Ok(DbReader::builder(META_PREFIX, store)
        .with_options(reader_options)
        // The other modes write checkpoints: a follower's credentials may only read.
        .with_reader_mode(DbReaderMode::FollowLatest)
        .with_db_cache(cache, 1)
        .build()
        .await?)
}

impl Kv {
    fn new(
        handle: Handle,
        store: Arc<SlateStore>,
        cache: Arc<SplitCache>,
        options: KvOptions,
    ) -> Kv {
        let reads_only = watch::Sender::new(matches!(handle, Handle::Reader(_)));
        Kv {
            handle: RwLock::new(handle),
            store: RwLock::new(store),
            refused: OnceLock::new(),
            cache,
            options,
            worn: watch::Sender::new(false),
            compacting: watch::Sender::new(false),
            closing: watch::Sender::new(false),
            reopen_broke_off: AtomicBool::new(false),
            has_committed: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            collected: Mutex::new(None),
            reads_only,
            is_checkpoint: false,
        }
    }

    /// Opens the database for writing and fences every earlier writer. Creates it if there is
    /// none (only `init` calls it on an empty prefix).
    ///
    /// # Errors
    /// [`KvError::Unavailable`] after `open_timeout`; [`KvError::Damaged`].
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        options: KvOptions,
        open_timeout: Duration,
    ) -> Result<Kv, KvError> {
        let store = Arc::new(SlateStore::new(store));
        store.answers().hold();
        let cache = new_cache(&options);
        let opening = open_writer(store.clone(), cache.clone(), None, 0);
        let db = bounded(open_timeout, opening).await?;
        store.answers().let_go();
        Ok(Kv::new(Handle::Writer(Arc::new(db)), store, cache, options))
    }

    /// Opens the database read-only; it follows the writer every `options.refresh`.
    pub async fn open_reader(
        store: Arc<dyn ObjectStore>,
        options: KvOptions,
        open_timeout: Duration,
    ) -> Result<Kv, KvError> {
        let kv = Kv::open_to_check(store, options, open_timeout).await?;
        kv.follow();
        Ok(kv)
    }

    async fn bounded<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, KvError>> + Send,
    ) -> Result<T, KvError> {
        // Boxed: it stands within many others, none of which shall be as large, or as deep.
        told_why(&self.store(), bounded(limit, work.boxed())).await
    }

    fn store(&self) -> Arc<SlateStore> {
        self.store.read().clone()
    }

    fn handle(&self) -> Handle {
        self.handle.read().clone()
    }

    fn writer(&self) -> Result<Arc<Db>, KvError> {
        match &*self.handle.read() {
            Handle::Writer(db) => Ok(db.clone()),
            Handle::Reader(_) => Err(KvError::ReadOnly),
        }
    }

    /// The value of `key`, or `None`. Bounded by `read_timeout`.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.reading(|handle| async move { get_from(&handle, key).await }).await
    }

    /// What `read` gets from the present handle, or from the one that replaces it meanwhile; for
    /// `read_timeout` at most.
    async fn reading<T, F>(&self, read: impl Fn(Handle) -> F + Sync) -> Result<T, KvError>
    where
        T: Send,
        F: Future<Output = Result<T, KvError>> + Send,
    {
        self.check_refused()?;
        let reading = async {
            loop {
                let handle = self.handle();
                match read(handle.clone()).await {
                    Err(e) if self.is_replaced_after(&handle, &e).await => {}
                    Err(KvError::Fenced) if matches!(handle, Handle::Reader(_)) => {
                        let why = "the writer has gone on beyond what was read";
                        return Err(KvError::Unavailable(why.into()));
                    }
                    outcome => return outcome,
                }
            }
        };
        self.bounded(self.options.read_timeout, reading).await
    }

    /// Waits until there is another handle than `failed`, if a read failed because that was closed:
    /// the committer opens a writer's again, who follows a reader's that the writer has left behind, and
    /// a change of role closes either kind, so that nobody's read need fail for it. For half of
    /// `read_timeout` at most.
    async fn is_replaced_after(&self, failed: &Handle, failure: &KvError) -> bool {
        // The reason of a closed handle is that of its end.
        let closed = matches!(failure, KvError::Closed(_) | KvError::TooLarge(_));
        let is_behind = matches!((failed, failure), (Handle::Reader(_), KvError::Fenced));
        if !(closed || is_behind) || OPENS.try_with(|()| ()).is_ok() || *self.closing.borrow() {
            return false;
        }
        let mut worn = self.worn.subscribe();
        match (failed, self.handle()) {
            (Handle::Writer(failed), Handle::Writer(now)) if Arc::ptr_eq(&now, failed) => {
                self.worn.send_replace(true)
            }
            (Handle::Reader(failed), Handle::Reader(now)) if Arc::ptr_eq(&now, failed) => {
                if !is_behind {
                    return false; // nobody opens it again
                }
                self.worn.send_replace(true)
            }
            _ => return true,
        };
        let half = self.options.read_timeout / 2;
        tokio::time::timeout(half, worn.wait_for(|worn| !*worn)).await.is_ok()
    }

    /// Whether the handle should be opened again; see [`Kv::until_worn`].
    pub fn is_worn(&self) -> bool {
        *self.worn.borrow() || self.store().limit().is_lowered()
    }

    /// Waits until the handle should be opened again ([`Kv::reopen`]): one of its background
    /// tasks has died, or what it goes on writing is larger than the store takes.
    pub async fn until_worn(&self) {
        let (mut worn, limit) = (self.worn.subscribe(), self.store().limit());
        tokio::select! {
            // The senders are parts of `self`: they cannot be gone.
            _ = worn.wait_for(|worn| *worn) => {}
            () = limit.until_lowered() => {}
        }
    }

    /// Up to `limit` rows with `start <= key < end`, in key order. Fewer than `limit` means
    /// that there are no more. `read_ahead_bytes` is what one request fetches when blocks are
    /// missing. Bounded by `read_timeout`.
    pub async fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
        read_ahead_bytes: usize,
    ) -> Result<Vec<Row>, KvError> {
        self.scan_caching(start, end, limit, read_ahead_bytes, true).await
    }

    /// As [`Kv::scan`]; without `cache_blocks`, rows that will not be wanted again soon push no
    /// others out of memory.
    pub async fn scan_caching(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
        read_ahead_bytes: usize,
        cache_blocks: bool,
    ) -> Result<Vec<Row>, KvError> {
        let options = &ScanOptions {
            read_ahead_bytes,
            cache_blocks,
            max_fetch_tasks: 4,
            ..ScanOptions::default()
        };
        let range = (Bound::Included(start.to_vec()), Bound::Excluded(end.to_vec()));
        let scan = |handle| {
            let range = range.clone();
            async move { scan_from(&handle, range, limit, options).await }
        };
        self.reading(scan).await
    }

    /// Writes all of `rows` (`None` deletes) as one atomic batch and returns when the bucket
    /// has it. It may take as long as the store is away: only the committer calls it.
    ///
    /// # Errors
    /// On any error the batch may or may not be there; the committed position inside it tells.
    pub async fn commit<I>(&self, rows: I) -> Result<(), KvError>
    where
        I: IntoIterator<Item = (Bytes, Option<Bytes>)>,
    {
        let db = self.writer()?;
        let mut batch = WriteBatch::new();
        for (key, value) in rows {
            match value {
                Some(value) => batch.put_bytes(key, value),
                None => batch.delete(key),
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.has_committed.store(true, Ordering::Relaxed);
        let handle = db.write(batch).await?;
        db.flush().await?;
        // `flush` returning is not the promise; the write's own durability is.
        handle.await_durable().await?;
        if self.commits.fetch_add(1, Ordering::Relaxed) + 1 == WAL_OBJECTS_MAX {
            self.commits.store(0, Ordering::Relaxed);
            tokio::spawn(async move {
                if let Err(e) = flush_memtable(&db).await {
                    log::warn!("metadata stay in the log for now: {e}");
                }
            });
        }
        Ok(())
    }

    /// Puts the memtable into level 0, where followers that skip the WAL see it, and where
    /// the next mount need not replay it.
    pub async fn flush_memtable(&self) -> Result<(), KvError> {
        flush_memtable(&*self.writer()?).await
    }

    /// The epoch under which this handle writes; a later writer has a higher one.
    pub fn writer_epoch(&self) -> u64 {
        match self.handle() {
            Handle::Writer(db) => db.manifest().writer_epoch(),
            Handle::Reader(db) => db.manifest().writer_epoch(),
        }
    }

    /// The number of the newest manifest that this handle has seen.
    pub fn manifest_id(&self) -> u64 {
        match self.handle() {
            Handle::Writer(db) => db.manifest().id(),
            Handle::Reader(db) => db.manifest().id(),
        }
    }

    /// Opens a new handle after a background task of the old one died, provided no other
    /// writer has come in between ([`KvError::Fenced`] if one has). A try that breaks off
    /// half-way may have raised the epoch as another writer would: when one has, `still_ours`
    /// is asked whether the volume is held by this mount.
    pub async fn reopen(&self, still_ours: impl Future<Output = bool>) -> Result<(), KvError> {
        let old = self.writer()?;
        let (epoch, after) = (old.manifest().writer_epoch(), old.manifest().replay_after_wal_id());
        // It may wait for a task that will never end.
        let _ = close_handle(Handle::Writer(old)).await;
        self.store().limit().take_up();
        let log_bytes = self.store().log_bytes(after).await?;
        let open =
            async |epoch| open_writer(self.store(), self.cache.clone(), epoch, log_bytes).await;
        let mut opened = open(Some(epoch)).await;
        if matches!(opened, Err(KvError::Fenced))
            && self.reopen_broke_off.load(Ordering::Acquire)
            && still_ours.await
        {
            opened = open(None).await;
        }
        self.reopen_broke_off.store(opened.is_err(), Ordering::Release);
        *self.handle.write() = Handle::Writer(Arc::new(opened?));
        self.worn.send_replace(false);
        Ok(())
    }

    /// How old an object must be to be collected.
    pub fn collect_age(&self) -> Duration {
        self.options.collect_age
    }

    /// Puts an object into the log, which is written now, and then everything that is in the log into
    /// a table. Returns the number of an object of the log that is this one or later: those before it
    /// are needed by nobody who begins to read from then on. `nothing` is the key of a row that is not
    /// there.
    pub async fn leave_log(&self, nothing: &[u8]) -> Result<u64, KvError> {
        // A table is made only of something, and collection spares the last object that is in one.
        self.commit([(Bytes::copy_from_slice(nothing), None)]).await?;
        self.flush_memtable().await?;
        Ok(self.writer()?.manifest().replay_after_wal_id())
    }

    /// Stops what runs in the background, then closes. With `flush` the memtable goes to level 0
    /// first, so that the next mount starts without replaying the WAL, unless level 0 is full:
    /// then that would wait for a compaction. All of it is bounded: what was committed is in the
    /// log, and nothing else has to be.
    ///
    /// # Errors
    /// The store's; [`KvError::Unavailable`] when a bound has passed.
    pub async fn close(&self, flush: bool) -> Result<(), KvError> {
        self.stop_compacting(if flush { COMPACTION_GRACE } else { Duration::ZERO }).await;
        let handle = self.handle();
        let flushed = match &handle {
            Handle::Writer(db)
                if flush && db.manifest().l0().len() < L0_MAX && self.has_log(db) =>
            {
                bounded(LAST_FLUSH_MAX, self.flush_memtable()).await
            }
            _ => Ok(()),
        };
        if let Err(e) = flushed {
            // The next mount replays the log instead.
            log::info!("what is in the metadata's log stays there for now: {e}");
        }
        close_handle(handle).await
    }
}

impl Kv {
    /// The object of the log behind which the next replay begins, and the newest one.
    pub fn log_span(&self) -> (u64, u64) {
        let after = match self.handle() {
            Handle::Writer(db) => db.manifest().replay_after_wal_id(),
            Handle::Reader(db) => db.manifest().replay_after_wal_id(),
        };
        (after, self.store().answers().log_top().max(after))
    }

    /// Whether the next mount would have to read much of the log: something was committed, or many
    /// have come and gone without that, each of which leaves an object there.
    fn has_log(&self, db: &Db) -> bool {
        let last = self.store().answers().log_top();
        let left = last.saturating_sub(db.manifest().replay_after_wal_id());
        self.has_committed.load(Ordering::Relaxed) || left > LEFT_IN_LOG_MAX
    }
}

/// See [`Kv::flush_memtable`].
async fn flush_memtable(db: &Db) -> Result<(), KvError> {
    Ok(db.flush_with_options(FlushOptions { flush_type: FlushType::MemTable }).await?)
}

async fn get_from(handle: &Handle, key: &[u8]) -> Result<Option<Bytes>, KvError> {
    let options = ReadOptions::default();
    Ok(match handle {
        Handle::Writer(db) => db.get_with_options(key, &options).await?,
        Handle::Reader(db) => db.get_with_options(key, &options).await?,
    })
}

async fn scan_on(
    handle: &Handle,
    range: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    options: &ScanOptions,
) -> Result<slatedb::DbIterator, KvError> {
    Ok(match handle {
        Handle::Writer(db) => db.scan_with_options(range, options).await?,
        Handle::Reader(db) => db.scan_with_options(range, options).await?,
    })
}

async fn scan_from(
    handle: &Handle,
    range: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    limit: usize,
    options: &ScanOptions,
) -> Result<Vec<Row>, KvError> {
    let mut rows = Vec::new();
    let mut iter = scan_on(handle, range, options).await?;
    while rows.len() < limit {
        match iter.next().await? {
            Some(row) => rows.push((row.key, row.value)),
            None => break,
        }
    }
    Ok(rows)
}

fn new_cache(options: &KvOptions) -> Arc<SplitCache> {
    let moka = |max_capacity| {
        let options = MokaCacheOptions { max_capacity, ..MokaCacheOptions::default() };
        Arc::new(MokaCache::new_with_opts(options)) as Arc<dyn slatedb::db_cache::DbCache>
    };
    Arc::new(
        SplitCache::new()
            .with_block_cache(Some(moka(options.block_cache_bytes)))
            .with_meta_cache(Some(moka(options.meta_cache_bytes)))
            .build(),
    )
}

/// Closes without flushing, which the store can only hold up for so long.
async fn close_handle(handle: Handle) -> Result<(), KvError> {
    let close = async {
        match handle {
            Handle::Writer(db) => {
                let options = CloseOptions { flush_type: None };
                Ok(db.close_with_options(options).await?)
            }
            Handle::Reader(db) => Ok(db.close().await?),
        }
    };
    bounded(CLOSE_DEADLINE, close).await
}

async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, KvError>>,
) -> Result<T, KvError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(KvError::Unavailable(format!("no answer in {} s", limit.as_secs()))),
    }
}

/// The result of `work`; where it waited for nothing, with what the store said meanwhile.
async fn told_why<T>(
    store: &SlateStore,
    work: impl Future<Output = Result<T, KvError>>,
) -> Result<T, KvError> {
    let (begun, trouble) = (Instant::now(), store.trouble());
    work.await.map_err(|e| match (e, trouble.since(begun)) {
        (KvError::Unavailable(text), Some(why)) if !text.contains(&why) => {
            KvError::Unavailable(format!("{text}: {why}"))
        }
        (e, _) => e,
    })
}

#[cfg(test)]
mod tests;
