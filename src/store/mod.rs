//! Where sealed objects live: one `object_store::ObjectStore` per concern, stacked.
//!
//! `sealed → cached → retry → ahead → s3 | file | memory`. Each layer is one wrapper in one file (or
//! folder) and knows nothing of the others but the trait. Called by `stack/` (which builds the
//! stack), `commit/` and `data/` (through [`SegmentStore`] and the key-value store). Never holds
//! plaintext on disk; never names a FUSE or journal type.

mod ahead;
mod bounds;
pub mod cached;
pub mod error;
pub mod file;
pub mod kms;
pub mod kv;
mod kv_store;
pub mod limits;
pub mod location;
pub mod names;
mod patience;
pub mod probe;
pub mod retry;
mod rope;
pub mod s3;
pub mod sealed;
pub mod segments;
pub mod stats;
mod whole;

pub use ahead::Ahead;
pub use cached::{CacheOptions, CacheRule, Cached, KEPT_OBJECTS_MAX, KeepSet};
pub use error::{ErrorClass, StoreError, advice, class, sentence, told};
pub use file::FileStore;
pub use limits::{LIMIT_MIN, Limits, Rate};
pub use location::{Location, LocationError};
pub use names::{is_odd, shown_key};
pub use patience::{Patience, patiently, patiently_while};
pub use probe::{ProbeError, is_probe, probe, random_name};
pub use retry::{Health, Refusals, Retry, RetryOptions};
pub use sealed::{Invalidate, Renew, Resealed, Sealed};
pub use segments::{Compression, SegmentStore};
pub use stats::{RequestKind, RequestSnapshot, RequestStats};
