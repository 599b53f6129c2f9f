//! Issue 3, items 5 and 6: locks, access, contents and names, as POSIX and Linux have them, asked
//! of the default mount through the kernel by ordinary processes. What tests/fuse_posix.rs asks
//! is not asked again.

mod e2e;
mod mounts;
mod posix;
mod suites;
mod support;
