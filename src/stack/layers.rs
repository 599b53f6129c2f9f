//! From a STORE argument to the stack of store wrappers:
//! `sealed → cached → retry → s3 | file | memory`.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::records::last_use::Place;
use super::{Attended, StackError, StoreOptions};
use crate::seal::VolumeKeys;
use crate::store::s3::{self, S3Options, S3Store};
use crate::store::{
    Ahead, CacheOptions, Cached, FileStore, Invalidate, Limits, Location, RequestStats, Retry,
    RetryOptions, Sealed,
};

/// The store below sealing: what the bucket really holds.
pub struct StoreStack {
    /// Below all of it: what is fetched before it is asked for.
    pub(super) ahead: Ahead,
    /// Retrying, uncached, unsealed: for the keyring and the probe.
    pub retry: Arc<Retry>,
    /// What was asked of the store.
    pub stats: Arc<RequestStats>,
    /// The S3 adapter, if it is one.
    pub s3: Option<Arc<S3Store>>,
    /// How fast bytes may go to the store and come from it.
    pub limits: Arc<Limits>,
    /// Who is told what is waited for.
    pub attended: Attended,
    /// Which volume is meant.
    pub(super) place: Place,
    read_timeout: Duration,
    cache: Option<(PathBuf, u64)>,
    opened: OnceLock<Arc<Cached>>,
}

impl StoreStack {
    /// Connects to the store; reads take at most `read_timeout` in all. `create`: make the
    /// directory of a `file://` store.
    ///
    /// # Errors
    /// [`StackError::Store`].
    pub async fn connect(
        options: &StoreOptions,
        read_timeout: Duration,
        create: bool,
    ) -> Result<StoreStack, StackError> {
        let attended = options.attended.clone();
        attended.waits_for(format!("{} to answer", options.location), read_timeout);
        let stats = Arc::new(RequestStats::default());
        let mut s3_store = None;
        let opening = |e| StackError::store(format!("opening {}", options.location), e);
        let bare: Arc<dyn ObjectStore> = match (&options.custom, &options.location) {
            (Some(custom), _) => custom.clone(),
            (None, Location::Memory) => Arc::new(InMemory::new()),
            (None, Location::File(dir)) => {
                let open = if create { FileStore::create(dir) } else { FileStore::open(dir) };
                Arc::new(open.map_err(opening)?)
            }
            (None, Location::S3 { bucket, prefix }) => {
                let connected = s3::connect(S3Options {
                    endpoint_url: options.endpoint_url.clone(),
                    region: options.region.clone(),
                    profile: options.profile.clone(),
                    allow_http: options.allow_http,
                    sse: options.sse.mode.clone().unwrap_or_default(),
                    read_keys: options.sse.keys(),
                    object_tags: options.sse.tags.clone().unwrap_or_default(),
                    limits: options.limits.clone(),
                    ..S3Options::new(bucket, prefix)
                })
                // Its type is as deep as the library is high: on the heap, so that its callers do not repeat that.
                .boxed()
                .await
                .map_err(|e| StackError::Store {
                    what: format!("connecting to {}", options.location),
                    message: e.to_string(),
                })?;
                let connected = Arc::new(connected);
                s3_store = Some(connected.clone());
                connected
            }
        };
        let retry_options = RetryOptions {
            read_timeout,
            read_attempt_timeout: read_timeout.min(Duration::from_secs(15)),
            list_ordered: s3_store.is_some(),
            limits: options.limits.clone(),
            ..RetryOptions::default()
        };
        let ahead = Ahead::new(bare);
        let mut retry = Retry::new(Arc::new(ahead.clone()), retry_options, stats.clone());
        if let Some(s3) = &s3_store {
            retry = retry.with_multipart(s3.clone());
        }
        let retry = Arc::new(retry);
        attended.follows(retry.health());
        let opened = OnceLock::new();
        let limits = options.limits.clone();
        Ok(StoreStack {
            ahead,
            retry,
            stats,
            s3: s3_store,
            limits,
            attended,
            place: Place::of(options),
            read_timeout,
            cache: None,
            opened,
        })
    }

    /// Puts a disk cache of at most `bytes_max` in `dir` between sealing and the store; 0
    /// leaves it out.
    pub fn with_cache(mut self, dir: PathBuf, bytes_max: u64) -> StoreStack {
        self.cache = (bytes_max > 0).then_some((dir, bytes_max));
        self
    }

    /// The whole stack. Blocks for the time it takes to list the cache directory. Goes on
    /// without a cache that another mount uses.
    ///
    /// # Errors
    /// [`StackError::Local`] if the cache directory cannot be used.
    pub fn sealed(&self, keys: &VolumeKeys) -> Result<Arc<Sealed>, StackError> {
        if let Some(sealed) = self.sealed_cached(keys)? {
            return Ok(sealed);
        }
        if let Some((dir, _)) = &self.cache {
            log::warn!("another mount uses {}; going on without a cache", dir.display());
        }
        Ok(self.uncached(keys))
    }

    /// Asking again must leave most of the time that a read may take to the read.
    fn patience(&self) -> Duration {
        self.read_timeout / 4
    }

    fn uncached(&self, keys: &VolumeKeys) -> Arc<Sealed> {
        let store = self.retry.clone();
        Arc::new(Sealed::with_patience(store, keys.clone(), None, self.patience()))
    }

    /// The process that says it uses the cache directory, right or wrong.
    pub(super) fn cache_user(&self) -> Option<u32> {
        let (dir, _) = self.cache.as_ref()?;
        Cached::user_of(dir)
    }

    /// As [`StoreStack::sealed`]; `None` if another mount uses the cache directory.
    pub(super) fn sealed_cached(
        &self,
        keys: &VolumeKeys,
    ) -> Result<Option<Arc<Sealed>>, StackError> {
        let Some((dir, bytes_max)) = &self.cache else {
            return Ok(Some(self.uncached(keys)));
        };
        let options = CacheOptions { bytes_max: *bytes_max, ..CacheOptions::new(dir.clone()) };
        let cached = match Cached::new(self.retry.clone(), options, self.stats.clone()) {
            Ok(cached) => Arc::new(cached),
            // A follower beside the writer; a second writer is refused by the journal's lock.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(source) => {
                let path = dir.clone();
                return Err(StackError::Local { what: "opening the cache in", path, source });
            }
        };
        let _ = self.opened.set(cached.clone()); // the first one is the mount's
        let cache: Arc<dyn Invalidate> = cached.clone();
        let patience = self.patience();
        Ok(Some(Arc::new(Sealed::with_patience(cached, keys.clone(), Some(cache), patience))))
    }

    /// The cache directory, and why a write to it failed lately; `None` without a failure.
    pub fn cache_failure(&self) -> Option<(PathBuf, String)> {
        let why = self.opened.get()?.write_failed()?;
        Some((self.cache.as_ref()?.0.clone(), why))
    }

    /// The most bytes that the disk cache may take; `None` without one.
    pub fn cache_bytes_max(&self) -> Option<u64> {
        Some(self.opened.get()?.bytes_max())
    }

    /// Changes that; false without a cache. Blocks while files are removed.
    pub fn set_cache_bytes_max(&self, bytes_max: u64) -> bool {
        self.opened.get().map(|cached| cached.set_bytes_max(bytes_max)).is_some()
    }

    /// The disk cache, if there is one.
    pub(super) fn cache(&self) -> Option<Arc<Cached>> {
        self.opened.get().cloned()
    }

    /// Bytes that the disk cache takes.
    pub fn cache_bytes(&self) -> u64 {
        self.opened.get().map_or(0, |cached| cached.usage().0)
    }
}
