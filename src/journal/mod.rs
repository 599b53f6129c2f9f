//! The local encrypted write-back journal: a log of opaque records on local disk.
//!
//! Owns everything below one directory (`docs/FORMAT.md`, "Journal", lists every byte): the log
//! files, their spares and the lock. A record is durable against `kill -9` when
//! [`Journal::append`] returns and against power loss when [`Journal::sync`] has returned for
//! its position. Knows nothing of what a record means; never touches the bucket. Called by
//! `fs/` (append, sync, read) and `commit/` (replay, release).
//!
//! | file | holds |
//! | --- | --- |
//! | `format` | the byte layouts, pure |
//! | `disk` | the thin file layer, which tests replace by a disk that crashes on demand |
//! | `directory` | names, lock, identity, spare files: which file is which |
//! | `recovery` | what survives a crash, and what is corruption |
//! | `log`, `append`, `sync`, `read`, `keeper`, `worker` | the open journal |

mod append;
mod directory;
pub mod disk;
mod error;
pub mod format;
mod keeper;
mod log;
mod options;
mod read;
mod recovery;
mod scan;
mod sync;
mod worker;

pub use directory::set_aside;
pub use error::JournalError;
pub use log::{Journal, Trouble, Usage};
pub use options::{JournalOptions, RecordLoc};
pub use recovery::Recovery;
