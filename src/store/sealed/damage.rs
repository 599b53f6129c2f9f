//! The record of objects that did not open or are gone: one log line each, and a list for `status`.

use lru::LruCache;
use object_store::path::Path;
use parking_lot::Mutex;
use std::num::NonZeroUsize;

/// Damaged objects remembered; a bucket damaged more widely than this is logged again.
const DAMAGED_MAX: usize = 1024;

/// See the module.
pub(super) struct Damage {
    seen: Mutex<LruCache<Path, ()>>,
}

impl Default for Damage {
    fn default() -> Damage {
        let max = NonZeroUsize::new(DAMAGED_MAX).expect("not zero");
        Damage { seen: Mutex::new(LruCache::new(max)) }
    }
}

impl Damage {
    /// Logs the object once. `why` never contains a byte of it.
    pub(super) fn report(&self, location: &Path, why: &str) {
        if self.seen.lock().put(location.clone(), ()).is_none() {
            log::error!(
                "object {location} is damaged: {why}; what depends on it gives EIO, nothing is deleted from the bucket meanwhile"
            );
        }
    }

    /// The damaged objects, the latest first.
    pub(super) fn list(&self) -> Vec<Path> {
        self.seen.lock().iter().map(|(location, _)| location.clone()).collect()
    }
}
