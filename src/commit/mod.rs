//! From a mutation to the bucket: batches, the pending view over the metadata store, and the
//! committer that turns a prefix of history into segments and one atomic metadata batch.
//!
//! | file | holds |
//! | --- | --- |
//! | `batch` | one mutation and its bytes in a journal record |
//! | `pending` | the pending groups: what is in the journal and not yet in the bucket |
//! | `caches` | the committed rows and extents that a view keeps |
//! | `directories` | which names whole directories have |
//! | `page` | rows of a range, pending ones over committed ones |
//! | `extents` | extents in committed rows |
//! | `view` | reads: pending groups over cached rows over the metadata store |
//! | `pack` | which byte goes into which segment (pure) |
//! | `resolve` | new extents over old ones, in inode rows and `e` rows |
//! | `accounts` | what is live of each segment, and what a commit writes besides its batches |
//! | `writer` | the one place that writes rows |
//! | `committer` | the loop on top: when to commit, clean and reclaim, and what after a failure |
//! | `attempt` | one try: pack, upload, commit, advance |
//! | `work` | one commit on its way, kept when a try fails |
//! | `error`, `options` | why a commit failed; how often it commits, when it cleans |
//! | `replay` | the journal's records become pending changes again |
//! | `layouts` | how segments are laid out, from their rows |
//! | `scan` | committed rows of one kind, a page at a time |
//! | `check` | whether committed rows keep the rules among each other |
//! | `clean` | live bytes leave segments that are mostly dead, or tiny |
//! | `snapshots` | commits that keep what they refer to; `holders`: which those are |
//! | `keeping` | snapshots are made and deleted, and what they held comes free |
//! | `reclaim` | deleted data: extents in bounded batches, then dead segments |

pub mod accounts;
mod attempt;
pub mod batch;
mod caches;
pub mod check;
mod clean;
mod committer;
mod directories;
mod error;
pub mod extents;
pub mod holders;
mod keeping;
pub mod layouts;
mod options;
pub mod pack;
pub mod page;
pub mod pending;
pub mod reclaim;
pub mod replay;
pub mod resolve;
pub mod scan;
pub mod snapshots;
pub mod view;
mod work;
mod writer;

pub use batch::{Batch, CloneSource, DataOp, RowOp};
pub use committer::{Committer, Progress, WriterState};
pub use error::CommitError;
pub use keeping::{SNAPSHOTS_MAX, SnapshotError, SnapshotOrder};
pub use options::{CleanOptions, CommitOptions};
pub use pending::CommitGroup;
pub use view::{Lookup, View, ViewError, last_commit};
pub use work::Sending;
pub use writer::Gates;
