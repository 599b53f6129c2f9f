//! Counters of what was asked of the store, for `sealfs status` and the benches.
//!
//! One [`RequestStats`] is shared by the layers of a mount. `retry` counts requests (each
//! attempt is one), `cached` counts hits. Relaxed atomics: a snapshot is not a transaction.

use crate::base::{Histogram, Spread};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// An object, or a part of it.
    Get,
    /// Whether an object is there, and how it is.
    Head,
    /// To store or copy a whole object.
    Put,
    /// Any step of a multipart upload.
    Multipart,
    /// The next names below a prefix.
    List,
    /// To delete objects, up to a thousand.
    Delete,
}

/// Every kind, in order, with its name.
const KINDS: [(RequestKind, &str); 6] = [
    (RequestKind::Get, "get"),
    (RequestKind::Head, "head"),
    (RequestKind::Put, "put"),
    (RequestKind::Multipart, "multipart"),
    (RequestKind::List, "list"),
    (RequestKind::Delete, "delete"),
];

/// A request under way: dropped, it counts how long that took, answered or not.
pub(crate) struct Timed<'a>(&'a Histogram, Instant);

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.0.record(self.1.elapsed());
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Live counters; see [`RequestSnapshot`] for what each one means.
        #[derive(Debug, Default)]
        pub struct RequestStats {
            $($(#[$doc])* pub $name: AtomicU64,)*
            times: [Histogram; KINDS.len()],
        }

        /// The counters at one moment, since the mount started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct RequestSnapshot { $($(#[$doc])* pub $name: u64),* }

        impl RequestStats {
            /// Reads every counter.
            pub fn snapshot(&self) -> RequestSnapshot {
                RequestSnapshot { $($name: self.$name.load(Relaxed)),* }
            }
        }
    };
}

counters! {
    /// GET requests with a body, attempts included.
    get,
    /// HEAD requests.
    head,
    /// PUT requests of whole objects.
    put,
    /// Requests of multipart uploads: create, part, complete, abort.
    multipart,
    /// LIST requests (one per listing; pages are not visible here).
    list,
    /// Objects asked to be deleted.
    delete,
    /// Object bytes received.
    bytes_down,
    /// Object bytes stored: those of requests that were answered with success.
    bytes_up,
    /// Of these, the bytes of segments and tables: a heartbeat brings none of them.
    bytes_up_data,
    /// Attempts that failed, the final answers 404, 304 and 412 not counted.
    errors,
    /// Attempts that were repeated.
    retries,
    /// Reads answered wholly from the disk cache.
    cache_hits,
    /// Reads that needed the store.
    cache_misses,
    /// Ciphertext bytes answered from the disk cache.
    cache_hit_bytes,
    /// Ciphertext bytes fetched by the cache.
    cache_miss_bytes,
    /// Ciphertext bytes not written to the cache because its queue was full.
    cache_skipped_bytes,
    /// Cache entries dropped because they were torn or corrupt.
    cache_corrupt,
}

impl RequestStats {
    /// A request of this kind begins now.
    pub(crate) fn begin(&self, kind: RequestKind) -> Timed<'_> {
        Timed(&self.times[kind as usize], Instant::now())
    }

    /// `request` with the time it takes counted, from its first poll on.
    pub(crate) async fn timed<F: Future>(&self, kind: RequestKind, request: F) -> F::Output {
        let _timed = self.begin(kind);
        request.await
    }

    /// How long requests took until they were answered or given up, by the name of their kind.
    /// Each attempt is one, and includes its body.
    pub fn times(&self) -> Vec<(String, Spread)> {
        let spread = |(kind, name): &(RequestKind, &str)| {
            let mut spread = Spread::default();
            self.times[*kind as usize].add_to(&mut spread);
            ((*name).to_owned(), spread)
        };
        KINDS.iter().map(spread).collect()
    }

    /// Adds `n` to a counter.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// Counts `bytes` that the store has taken for the object `name`.
    pub(crate) fn stored(&self, name: &Path, bytes: u64) {
        self.bytes_up.fetch_add(bytes, Relaxed);
        // `lease`, `config` and `keyring` are names of one part.
        if name.parts().nth(1).is_some() {
            self.bytes_up_data.fetch_add(bytes, Relaxed);
        }
    }
}

impl RequestSnapshot {
    /// Requests of every kind sent to the store.
    pub fn requests(&self) -> u64 {
        self.get + self.head + self.put + self.multipart + self.list + self.delete
    }

    /// Share of cacheable reads answered by the disk cache, 0 when there was none.
    pub fn hit_ratio(&self) -> f64 {
        match self.cache_hits + self.cache_misses {
            0 => 0.0,
            all => self.cache_hits as f64 / all as f64,
        }
    }
}
