//! Administration of a bucket and of how its objects are encrypted: what `init`, `doctor` and `sse`
//! ask for, and a mount does not need.
//!
//! | file | holds |
//! | --- | --- |
//! | `bucket` | its settings, read and made; why it refuses |
//! | `versions` | what it keeps of what is deleted: versioning, Object Lock, lifecycle |
//! | `objects` | how one object is encrypted, and changing that where it lies |

mod bucket;
mod objects;
mod versions;

pub use bucket::{DefaultEncryption, Diagnosis, Ping, Setting};
pub use objects::{COPY_MAX, Inspected, Reencrypted};
pub use versions::{Lifecycle, Lock, Versioning};
