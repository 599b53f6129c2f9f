//! The default mount, through the kernel, by ordinary processes:
//!
//! - `posix`: locks, access, contents and names, as POSIX and Linux have them. What `fuse_posix` of
//!   the binary `daemon` asks is not asked again.
//! - `posix_suites`: file system suites that others wrote (pjdfstest, fsx, stress-ng), as root.
//! - `work`: real work, and a directory of a million names. `SEALFS_TEST_FULL=1`: a larger C project,
//!   a million names; `SEALFS_TEST_ENTRIES` sets how many.

#[path = "../support/mod.rs"]
mod support;

use support::{e2e, mounts, suites};

mod posix;
mod posix_suites;
mod work;
