//! Moving in and out: `sealfs import` and `sealfs export` between a tree of files, which is a mount
//! of a volume, and a bucket or another tree.
//!
//! The volume is written and read with plain system calls below its mount point (`tree`): so
//! everything that holds for `cp` holds here, and a live mount stays in use meanwhile. Each file gets
//! its name when it is whole; size, time and ETag tell what is there already, so that a run
//! that was interrupted goes on, and one that has nothing to do transfers nothing. Called by `cli/`.

mod attributes;
mod bucket;
mod compare;
mod draft;
mod export;
mod filter;
mod import;
mod large;
mod local;
mod names;
mod outfit;
mod parallel;
mod plan;
mod report;
mod resume;
mod sealed;
mod spot;
mod tree;
mod walk;
mod way;

pub use bucket::{Bucket, BucketPath};
pub use export::{How, export_tree};
pub use filter::{BadPattern, Filter};
pub use import::import_bucket;
pub use local::import_directory;
pub use report::{Event, ExchangeError, Failed, Options, Progress, Renamed, Report, Run};
pub use resume::Remember;
pub use sealed::{OpenWith, SealWith};
pub use tree::Tree;
