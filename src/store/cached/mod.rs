//! The disk cache of ciphertext ranges, between the sealed layer and the network.
//!
//! Keeps *granules* (64 KiB, aligned to sealed chunks) of immutable objects in a directory,
//! bounded in bytes, least recently used objects first out, warm after a restart. A read is
//! rounded out to granules, each run of missing ones is one GET, runs are fetched in parallel
//! and never twice at a time. Objects that see many small misses are fetched in growing windows
//! around them in the background, so that a walk over small files is a handful of requests.
//! Which objects are immutable is said by rules over names; all others pass through. Attributes
//! are not kept, so puts with attributes are refused. Holds ciphertext only, verified no further
//! than by CRC: authentication is the sealed layer's, which calls [`Invalidate`] on failure.

mod direct;
mod disk;
mod flight;
mod granule;
mod keep;
mod page;
mod read;
mod stage;

use super::error::{ErrorClass, class};
use super::names::{SEGMENT_PREFIX, is_below};
use super::rope::Rope;
use super::sealed::Invalidate;
use super::stats::RequestStats;
use async_trait::async_trait;
use disk::{Disk, Key};
use flight::Flights;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use granule::GRANULE;
pub use keep::{KEPT_OBJECTS_MAX, KeepSet};
use lru::LruCache;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, Result, UploadPart,
};
use parking_lot::Mutex;
use stage::Stage;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

/// Bytes fetched by one request at most; longer reads become several at a time.
pub const FETCH_MAX: u64 = 8 << 20;
/// Objects whose size and tag are remembered in memory.
const METAS_MAX: usize = 16_384;
/// Objects whose recent misses are counted.
const RECENT_MAX: usize = 1024;
/// Windows fetched in the background at a time.
const WINDOWS_MAX: usize = 4;

/// Which objects to cache, and how.
#[derive(Clone, Copy, Debug)]
pub struct CacheRule {
    /// Whether the rule is for this object. Objects it covers must never change.
    pub applies: fn(&Path) -> bool,
    /// A miss fetches at least this many bytes, aligned.
    pub fetch_min: u64,
    /// Whether what this machine puts is kept too.
    pub keep_uploads: bool,
}

/// Where and how much to cache.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// A directory for this volume alone; made if need be.
    pub dir: PathBuf,
    /// Ciphertext on disk, in bytes.
    pub bytes_max: u64,
    /// Fetched bytes waiting to be written to disk; beyond it they are not cached.
    pub queue_bytes_max: u64,
    /// Largest window fetched around small misses, in bytes; 0 turns growth off.
    pub window_max: u64,
    /// The first rule that applies counts; none: pass through.
    pub rules: Vec<CacheRule>,
}

impl CacheOptions {
    /// 10 GiB in `dir`, for the objects of a volume: SlateDB's sorted tables (fetched by the
    /// megabyte, own uploads kept) and segments (by the granule, own uploads not kept). Not its
    /// write-ahead log: those names are numbers, which a bucket that was put back to an older
    /// state uses again, and what is cached would then be replayed over it.
    pub fn new(dir: PathBuf) -> CacheOptions {
        let tables = CacheRule {
            applies: |name| {
                let mut parts = name.as_ref().rsplit('/');
                parts.next().is_some_and(|file| file.ends_with(".sst"))
                    && parts.next() == Some("compacted")
            },
            fetch_min: 1 << 20,
            keep_uploads: true,
        };
        let segments = CacheRule {
            applies: |name| is_below(name.as_ref(), SEGMENT_PREFIX),
            fetch_min: GRANULE,
            keep_uploads: false,
        };
        CacheOptions {
            dir,
            bytes_max: 10 << 30,
            queue_bytes_max: 24 << 20,
            window_max: 4 << 20,
            rules: vec![tables, segments],
        }
    }
}

/// The wrapper; see the module. Cloning shares the cache. When the last clone is dropped, what
/// is still queued for the disk is dropped; see [`Cached::flush`].
#[derive(Clone)]
pub struct Cached(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    rules: Vec<CacheRule>,
    window_max: u64,
    disk: Arc<Disk>,
    stage: Arc<Stage>,
    flights: Arc<Flights>,
    metas: Mutex<LruCache<Key, Arc<ObjectMeta>>>,
    recent: Mutex<LruCache<Key, Recent>>,
    windows: Arc<Semaphore>,
    stats: Arc<RequestStats>,
    /// Whatever the rules say, what this machine puts stays.
    keep_uploads: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stage.close();
    }
}

/// Recent small misses of an object.
struct Recent {
    misses: u32,
    at: Instant,
}

impl Cached {
    /// Opens the cache directory over `store` and starts the thread that writes to it. Blocks
    /// for the time it takes to list the directory.
    ///
    /// # Errors
    /// The directory cannot be used; `WouldBlock`: another process uses it.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        options: CacheOptions,
        stats: Arc<RequestStats>,
    ) -> io::Result<Cached> {
        let disk = Arc::new(Disk::open(options.dir, options.bytes_max, stats.clone())?);
        let stage = Stage::start(disk.clone(), options.queue_bytes_max, stats.clone())?;
        let lru_of = |max| NonZeroUsize::new(max).expect("the constants are not zero");
        Ok(Cached(Arc::new(Inner {
            store,
            rules: options.rules,
            window_max: options.window_max,
            disk,
            stage,
            flights: Arc::default(),
            metas: Mutex::new(LruCache::new(lru_of(METAS_MAX))),
            recent: Mutex::new(LruCache::new(lru_of(RECENT_MAX))),
            windows: Arc::new(Semaphore::new(WINDOWS_MAX)),
            stats,
            keep_uploads: AtomicBool::new(false),
        })))
    }

    /// The process that last opened the cache in `dir`, as it says there; it may be gone.
    pub fn user_of(dir: &std::path::Path) -> Option<u32> {
        disk::user_of(dir)
    }

    /// Why a write to the cache's disk failed lately, if one did.
    pub fn write_failed(&self) -> Option<String> {
        self.0.stage.failed()
    }

    /// Waits until everything fetched so far is on disk (not synced), or for `timeout`. Blocks.
    /// Returns whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.0.stage.flush(timeout)
    }

    /// Bytes of an object on disk.
    pub fn bytes_of(&self, location: &Path) -> u64 {
        self.0.disk.bytes_of(location)
    }

    /// The most ciphertext bytes that are kept.
    pub fn bytes_max(&self) -> u64 {
        self.0.disk.bytes_max()
    }

    /// Changes that. Blocks while files are removed.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.0.disk.set_bytes_max(bytes_max);
    }

    /// Ciphertext bytes on disk, and objects.
    pub fn usage(&self) -> (u64, u64) {
        self.0.disk.usage()
    }

    fn rule(&self, location: &Path) -> Option<CacheRule> {
        self.0.rules.iter().find(|rule| (rule.applies)(location)).copied()
    }

    fn drop_object(&self, location: &Path) {
        let key = disk::key(location);
        self.0.metas.lock().pop(&key);
        self.0.stage.remove(&key);
        self.0.disk.remove(&key);
    }

    /// Size and tag of an object seen before, in this process or an earlier one.
    async fn known(&self, key: Key, location: &Path) -> Option<Arc<ObjectMeta>> {
        if let Some(meta) = self.0.metas.lock().get(&key) {
            return Some(meta.clone());
        }
        let meta = match self.0.disk.peek(&key)? {
            Some(meta) => meta,
            None => {
                let (disk, location) = (self.0.disk.clone(), location.clone());
                let load = move || disk.meta(&key, &location);
                tokio::task::spawn_blocking(load).await.ok()??
            }
        };
        self.0.metas.lock().put(key, meta.clone());
        Some(meta)
    }

    /// A read that the cache may answer; `None` when only the store can.
    async fn try_get(&self, location: &Path, options: &GetOptions) -> Option<Result<GetResult>> {
        let rule = self.rule(location)?;
        let conditional = options.if_none_match.is_some()
            || options.if_modified_since.is_some()
            || options.if_unmodified_since.is_some()
            || options.version.is_some();
        if conditional || options.range.as_ref().is_some_and(|r| r.is_valid().is_err()) {
            return None;
        }
        let key = disk::key(location);
        let known = self.known(key, location).await;
        if let Some(wanted) = &options.if_match
            && known.as_ref().is_none_or(|meta| meta.e_tag.as_ref() != Some(wanted))
        {
            return None;
        }
        if options.head {
            let meta = known?;
            let range = 0..meta.size;
            return Some(Ok(answer(&meta, range, Rope::new())));
        }
        let want = match (&options.range, &known) {
            (Some(range), Some(meta)) => range.as_range(meta.size).ok()?,
            (None, Some(meta)) => 0..meta.size,
            (Some(GetRange::Bounded(range)), None) => range.clone(),
            (Some(GetRange::Offset(from)), None) => *from..u64::MAX,
            (Some(GetRange::Suffix(n)), None) => {
                let tail = self.read_tail(key, location, rule, *n).await;
                return Some(tail.map(|(meta, range, body)| answer(&meta, range, body)));
            }
            (None, None) => 0..u64::MAX,
        };
        if want.is_empty() {
            return None;
        }
        match self.read(key, location, rule, want.clone()).await {
            Ok((meta, body)) => {
                let range = want.start..want.start + body.len();
                Some(Ok(answer(&meta, range, body)))
            }
            // Past the end, an empty object, or one that keeps changing: the store knows.
            Err(e) if class(&e) == ErrorClass::Other => None,
            Err(e) => Some(Err(e)),
        }
    }
}

fn answer(meta: &Arc<ObjectMeta>, range: Range<u64>, body: Rope) -> GetResult {
    GetResult {
        payload: GetResultPayload::Stream(body.into_stream()),
        meta: ObjectMeta::clone(meta),
        range,
        attributes: Default::default(),
        extensions: Default::default(),
    }
}

impl Invalidate for Cached {
    fn invalidate(&self, location: &Path) {
        // The sealed layer says so at a higher level if the store's copy is no better.
        log::debug!("dropping {location} from the cache");
        self.drop_object(location);
    }
}

#[async_trait]
impl ObjectStore for Cached {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let Some(rule) = self.rule(location) else {
            return self.0.store.put_opts(location, payload, opts).await;
        };
        refuse_attributes(!opts.attributes.is_empty())?;
        let keeps = rule.keep_uploads || self.0.keep_uploads.load(Ordering::Relaxed);
        let body = Rope::from(payload.clone());
        let outcome = self.0.store.put_opts(location, payload, opts).await;
        // Whatever the outcome, what was cached under this name may be of another version.
        self.drop_object(location);
        if let (Ok(put), true) = (&outcome, keeps) {
            let meta = Arc::new(ObjectMeta {
                location: location.clone(),
                last_modified: SystemTime::now().into(),
                size: body.len(),
                e_tag: put.e_tag.clone(),
                version: put.version.clone(),
            });
            let key = disk::key(location);
            self.0.metas.lock().put(key, meta.clone());
            self.0.stage.put(key, &meta, &(0..body.len()), &body);
        }
        outcome
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if self.rule(location).is_none() {
            return self.0.store.put_multipart_opts(location, opts).await;
        }
        refuse_attributes(!opts.attributes.is_empty())?;
        let inner = self.0.store.put_multipart_opts(location, opts).await?;
        Ok(Box::new(Upload { cached: self.clone(), location: location.clone(), inner }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if let Some(outcome) = self.try_get(location, &options).await {
            return outcome;
        }
        let head = options.head && options.version.is_none();
        let result = self.0.store.get_opts(location, options).await?;
        if head && self.rule(location).is_some() {
            let meta = Arc::new(result.meta.clone());
            self.0.metas.lock().put(disk::key(location), meta);
        }
        Ok(result)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let cached = self.clone();
        let dropping = locations.inspect_ok(move |location| {
            if cached.rule(location).is_some() {
                cached.drop_object(location);
            }
        });
        self.0.store.delete_stream(dropping.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.store.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let outcome = self.0.store.copy_opts(from, to, options).await;
        self.drop_object(to);
        outcome
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let outcome = self.0.store.rename_opts(from, to, options).await;
        self.drop_object(from);
        self.drop_object(to);
        outcome
    }
}

fn refuse_attributes(any: bool) -> Result<()> {
    match any {
        false => Ok(()),
        true => Err(Error::NotImplemented {
            operation: "attributes (the cache does not keep them)".into(),
            implementer: "Cached".into(),
        }),
    }
}

/// An upload of a cached name: when it ends, what was cached is dropped.
#[derive(Debug)]
struct Upload {
    cached: Cached,
    location: Path,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let outcome = self.inner.complete().await;
        self.cached.drop_object(&self.location);
        outcome
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

impl fmt::Display for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cached({})", self.0.store)
    }
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cached({:?})", self.0.store)
    }
}

#[cfg(test)]
#[path = "cached_tests.rs"]
mod tests;
