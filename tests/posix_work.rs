//! Issue 3, items 7 and 8: real work on the default mount, and a directory of a million names.
//! `SEALFS_TEST_FULL=1`: a larger C project, a million names; `SEALFS_TEST_ENTRIES` sets how many.

mod e2e;
mod mounts;
mod suites;
mod support;
mod work;
