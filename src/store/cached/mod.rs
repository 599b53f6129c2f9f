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

mod disk;
mod flight;
mod granule;
mod stage;

use super::error::{ErrorClass, StoreError, class, replicate};
use super::rope::Rope;
use super::sealed::Invalidate;
use super::stats::RequestStats;
use async_trait::async_trait;
use disk::{Disk, Key};
use flight::{Fetched, Flights, Outcome};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use granule::GRANULE;
use lru::LruCache;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, Result, UploadPart,
};
use parking_lot::Mutex;
use stage::Stage;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

/// Bytes fetched by one request at most; longer reads become several at a time.
pub const FETCH_MAX: u64 = 8 << 20;
/// Objects whose size and tag are remembered in memory.
const METAS_MAX: usize = 16_384;
/// Objects whose recent misses are counted.
const RECENT_MAX: usize = 1024;
/// Misses within a second, decaying, before an object is fetched in windows.
const MISSES_BEFORE_GROWTH: u32 = 3;
/// A read that misses more than this is not "small": its caller reads ahead itself.
const SMALL_MISS_MAX: u64 = 512 << 10;
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
    /// megabyte, own uploads kept) and segments (by the granule, own uploads not kept).
    pub fn new(dir: PathBuf) -> CacheOptions {
        let tables = CacheRule {
            applies: |name| name.as_ref().ends_with(".sst"),
            fetch_min: 1 << 20,
            keep_uploads: true,
        };
        let segments = CacheRule {
            applies: |name| name.as_ref().starts_with("seg/"),
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

fn same_version(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    a.size == b.size && a.e_tag == b.e_tag && a.version == b.version
}

fn broken(class: ErrorClass, message: String) -> Error {
    StoreError::new(class, message).into_store("cached")
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
        })))
    }

    /// Waits until everything fetched so far is on disk (not synced), or for `timeout`. Blocks.
    /// Returns whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.0.stage.flush(timeout)
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

    /// One GET of `range`, whose whole granules are then queued for the disk.
    fn fetch(&self, key: Key, location: &Path, range: GetRange) -> BoxFuture<'static, Outcome> {
        let (cached, location) = (self.clone(), location.clone());
        async move {
            let options = GetOptions::new().with_range(Some(range));
            let result = cached.0.store.get_opts(&location, options).await.map_err(Arc::new)?;
            let (meta, range) = (Arc::new(result.meta.clone()), result.range.clone());
            let body = Rope::collect(result).await.map_err(Arc::new)?;
            if body.len() != range.end.saturating_sub(range.start) || range.end > meta.size {
                let message = format!("{} bytes of {location} for {range:?}", body.len());
                return Err(Arc::new(broken(ErrorClass::Transport, message)));
            }
            RequestStats::add(&cached.0.stats.cache_miss_bytes, body.len());
            cached.0.metas.lock().put(key, meta.clone());
            cached.0.stage.put(key, &meta, &range, &body);
            Ok(Arc::new(Fetched { meta, range, body }))
        }
        .boxed()
    }

    /// The bytes `want` (cut at the object's end). Tries twice, in case what is cached and what
    /// is fetched are of different versions.
    async fn read(
        &self,
        key: Key,
        location: &Path,
        rule: CacheRule,
        want: Range<u64>,
    ) -> Result<(Arc<ObjectMeta>, Rope)> {
        for _ in 0..2 {
            let mut known = self.known(key, location).await;
            if known.is_none() && want.end - want.start > FETCH_MAX {
                // Its size first, together with the first bytes, so that the rest is planned.
                let first = granule::touching(&(want.start..want.start + 1));
                let first = granule::bytes(&first, u64::MAX);
                let fetched = self.fetch(key, location, GetRange::Bounded(first)).await;
                known = Some(fetched.map_err(|e| replicate(&e))?.meta.clone());
            }
            match self.read_version(key, location, rule, want.clone(), known).await? {
                Some(read) => return Ok(read),
                None => self.drop_object(location),
            }
        }
        Err(broken(ErrorClass::Throttled, format!("{location} changed while it was read")))
    }

    /// One try of [`Cached::read`]; `None` when pieces of different versions came together.
    async fn read_version(
        &self,
        key: Key,
        location: &Path,
        rule: CacheRule,
        want: Range<u64>,
        known: Option<Arc<ObjectMeta>>,
    ) -> Result<Option<(Arc<ObjectMeta>, Rope)>> {
        let end = known.as_ref().map_or(want.end, |meta| want.end.min(meta.size));
        if want.start >= end {
            return Err(broken(ErrorClass::Other, format!("{location} ends before {want:?}")));
        }
        let granules = granule::touching(&(want.start..end));
        let mut metas: Vec<Arc<ObjectMeta>> = known.iter().cloned().collect();
        let mut have: BTreeMap<u64, Rope> = BTreeMap::new();
        for k in granules.clone() {
            if let Some((meta, body)) = self.0.stage.get(&key, k) {
                metas.push(meta);
                have.insert(k, body);
            }
        }
        let unstaged = granules.clone().find(|k| !have.contains_key(k));
        if let Some(first) = unstaged
            && self.0.disk.may_have(&key, &(first..granules.end))
        {
            let (disk, location) = (self.0.disk.clone(), location.clone());
            let read = move || disk.read(&key, &location, first..granules.end);
            if let Some((meta, found)) = tokio::task::spawn_blocking(read).await? {
                metas.push(meta);
                found.into_iter().for_each(|(k, data)| {
                    have.entry(k).or_insert_with(|| data.into());
                });
            }
        }
        let hit: u64 = have.values().map(Rope::len).sum();
        RequestStats::add(&self.0.stats.cache_hit_bytes, hit);

        let missing: Vec<u64> = granules.clone().filter(|k| !have.contains_key(k)).collect();
        let mut fetched: Vec<Arc<Fetched>> = Vec::new();
        if missing.is_empty() {
            RequestStats::add(&self.0.stats.cache_hits, 1);
        } else {
            RequestStats::add(&self.0.stats.cache_misses, 1);
            let small = (missing.len() as u64) * GRANULE <= SMALL_MISS_MAX;
            let first = missing[0];
            let count = known.as_ref().map(|meta| granule::touching(&(0..meta.size)).end);
            let wanted = self.widen(&key, missing, rule.fetch_min, count, &have);
            let fetch = |run: Range<u64>| {
                self.fetch(key, location, GetRange::Bounded(granule::bytes(&run, u64::MAX)))
            };
            let flights = self.0.flights.enter(key, &wanted, FETCH_MAX / GRANULE, fetch);
            if let (true, Some(count)) = (small, count) {
                self.grow(key, location, first, count);
            }
            for outcome in futures::future::join_all(flights).await {
                fetched.push(outcome.map_err(|e| replicate(&e))?);
            }
            metas.extend(fetched.iter().map(|f| f.meta.clone()));
        }
        let Some(meta) = metas.pop() else { return Ok(None) };
        if metas.iter().any(|other| !same_version(other, &meta)) {
            return Ok(None);
        }
        assemble(&want, meta, have, &fetched).map(Some)
    }

    /// The missing granules with their neighbours up to aligned blocks of `fetch_min` bytes, as
    /// far as those are missing too.
    fn widen(
        &self,
        key: &Key,
        missing: Vec<u64>,
        fetch_min: u64,
        count: Option<u64>,
        have: &BTreeMap<u64, Rope>,
    ) -> Vec<u64> {
        let block = (fetch_min / GRANULE).max(1);
        if block == 1 {
            return missing;
        }
        let mut wanted: BTreeSet<u64> = missing.iter().copied().collect();
        for k in missing {
            let from = k / block * block;
            let to = (from + block).min(count.unwrap_or(u64::MAX));
            wanted.extend((from..to).filter(|k| !have.contains_key(k) && !self.has(key, *k)));
        }
        wanted.into_iter().collect()
    }

    fn has(&self, key: &Key, k: u64) -> bool {
        self.0.disk.may_have(key, &(k..k + 1)) || self.0.stage.get(key, k).is_some()
    }

    /// Notes a small miss at granule `k`; after several within a second, fetches a window
    /// around it in the background. The more misses, the larger the window. When enough windows
    /// are being fetched already, does nothing.
    fn grow(&self, key: Key, location: &Path, k: u64, count: u64) {
        let misses = {
            let mut recent = self.0.recent.lock();
            let entry = recent.get_or_insert_mut(key, || Recent { misses: 0, at: Instant::now() });
            let seconds = entry.at.elapsed().as_secs().min(31) as u32;
            entry.misses = (entry.misses >> seconds) + 1;
            entry.at = Instant::now();
            entry.misses
        };
        if misses < MISSES_BEFORE_GROWTH || self.0.window_max < GRANULE {
            return;
        }
        let doubled = 4u64 << (misses - MISSES_BEFORE_GROWTH).min(16);
        let block = doubled.min(self.0.window_max / GRANULE).max(1);
        let from = k / block * block;
        let missing: Vec<u64> = (from..(from + block).min(count))
            .filter(|k| !self.has(&key, *k) && !self.0.flights.has(&key, *k))
            .collect();
        let Ok(permit) = self.0.windows.clone().try_acquire_owned() else { return };
        if missing.is_empty() {
            return;
        }
        let fetch = |run: Range<u64>| {
            self.fetch(key, location, GetRange::Bounded(granule::bytes(&run, u64::MAX)))
        };
        let flights = self.0.flights.enter(key, &missing, FETCH_MAX / GRANULE, fetch);
        tokio::spawn(async move {
            let _permit = permit;
            for outcome in futures::future::join_all(flights).await {
                if let Err(e) = outcome {
                    log::debug!("fetching ahead failed: {e}");
                }
            }
        });
    }

    /// The last `n` bytes of an object whose size is not known.
    async fn read_tail(
        &self,
        key: Key,
        location: &Path,
        rule: CacheRule,
        n: u64,
    ) -> Result<(Arc<ObjectMeta>, Range<u64>, Rope)> {
        RequestStats::add(&self.0.stats.cache_misses, 1);
        let range = GetRange::Suffix(n.max(rule.fetch_min).max(GRANULE));
        let fetched = self.fetch(key, location, range).await.map_err(|e| replicate(&e))?;
        let skip = fetched.body.len().saturating_sub(n);
        let body = fetched.body.slice(skip..fetched.body.len());
        Ok((fetched.meta.clone(), fetched.range.start + skip..fetched.range.end, body))
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
            // Past the end, or an empty object: the store knows the right words.
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

/// The bytes `want` out of whole granules and fetched runs.
fn assemble(
    want: &Range<u64>,
    meta: Arc<ObjectMeta>,
    mut have: BTreeMap<u64, Rope>,
    fetched: &[Arc<Fetched>],
) -> Result<(Arc<ObjectMeta>, Rope)> {
    let want = want.start..want.end.min(meta.size);
    if want.is_empty() {
        let message = format!("{} ends at {}", meta.location, meta.size);
        return Err(broken(ErrorClass::Other, message));
    }
    let mut body = Rope::new();
    for k in granule::touching(&want) {
        let bytes = granule::bytes(&(k..k + 1), meta.size);
        let cut = bytes.start.max(want.start)..bytes.end.min(want.end);
        let piece = match have.remove(&k) {
            Some(granule) => granule.slice(cut.start - bytes.start..cut.end - bytes.start),
            None => {
                let run =
                    fetched.iter().find(|f| f.range.start <= cut.start && cut.end <= f.range.end);
                let run = run.ok_or_else(|| {
                    let message = format!("the store left out {cut:?} of {}", meta.location);
                    broken(ErrorClass::Transport, message)
                })?;
                run.body.slice(cut.start - run.range.start..cut.end - run.range.start)
            }
        };
        body.append(piece);
    }
    Ok((meta, body))
}

impl Invalidate for Cached {
    fn invalidate(&self, location: &Path) {
        log::warn!("dropping {location} from the cache");
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
        let body = Rope::from(payload.clone());
        let outcome = self.0.store.put_opts(location, payload, opts).await;
        // Whatever the outcome, what was cached under this name may be of another version.
        self.drop_object(location);
        if let (Ok(put), true) = (&outcome, rule.keep_uploads) {
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
