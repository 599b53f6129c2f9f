//! The stores: the adapter for S3, against servers in this process, and the wrappers over it.

#[path = "../support/mod.rs"]
mod support;

use support::sse;

mod object_store_suite;
mod s3_control;
mod s3_faults;
mod s3_sse;
mod s3_stack;
mod s3_suite;
