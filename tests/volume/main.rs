//! A volume without a kernel: its file system, commits, cleaning, checks and keys, on stores that fail,
//! lie and crash.

#[path = "../support/mod.rs"]
mod support;

use support::{mounts, volume};

mod attack;
mod clean;
mod commits;
mod crash_clones;
mod crash_sweep;
mod fs_end;
mod fs_listing;
mod fs_model;
mod fs_spine;
mod fsck;
mod model;
mod quota;
mod rekey;
mod roles;
mod round_trips;
mod snapshots;
mod unsteady_store;
mod wrong_answers;
