//! The program as people run it: its commands, and mounts through the kernel.

#[path = "../support/mod.rs"]
mod support;

use support::{e2e, mounts, sse, volume};

mod cli_errors;
mod cli_mount;
mod docs;
mod du;
mod e2e_canary;
mod e2e_outage;
mod e2e_quota;
mod e2e_requests;
mod e2e_service;
mod e2e_tamper;
mod e2e_tools;
mod exchange;
mod fault_daemon;
mod fuse_posix;
mod io_uring;
mod key_ways;
mod kill;
mod kill9;
mod moto_sse;
mod pins;
mod rgw_sse;
mod roles;
mod small_files;
mod snapshots;
mod sse_volume;
mod stopped;
mod storage_class;
mod ways;
