//! A running mount: its tasks and its orderly end, and what it says of itself.
//!
//! | file | holds |
//! | --- | --- |
//! | `mount` | a running mount and its orderly end |
//! | `role` | which role a mount has, and how it comes by another |
//! | `transition` | a role is changed because somebody asks: promote, demote |
//! | `writer` | the writing half of a mount, with its tasks |
//! | `following` | how a mount that only reads goes on with the bucket |
//! | `look` | the metadata compared with what this machine remembers, before anything is written |
//! | `claim` | how a mount comes by its writing half: journal, lease, metadata for writing |
//! | `past` | the snapshots that a mount shows |
//! | `canary` | the probe, and what its refusal means |
//! | `gates` | what a mount lets its committer do |
//! | `rekey_duty` | what a mount does for a rekey |
//! | `du` | how much a tree takes |
//! | `pins` | what stays in the cache of this machine |
//! | `control`, `status`, `places` | what it says of itself: plain data, and how that is found out |
//! | `warnings` | what is wrong with it, in words |
//! | `scheduling` | the schedule of snapshots is kept |
//! | `snapshots` | what commands are told of snapshots |
//! | `disks` | how the local disks are, in sentences |

pub(super) mod canary;
pub(super) mod claim;
pub(super) mod control;
pub(super) mod disks;
pub(super) mod du;
pub(super) mod following;
pub(super) mod gates;
pub(super) mod look;
pub(super) mod mount;
pub(super) mod past;
pub(super) mod pins;
pub(super) mod places;
pub(super) mod rekey_duty;
pub(super) mod role;
pub(super) mod scheduling;
pub(super) mod snapshots;
pub(super) mod status;
pub(super) mod transition;
mod warnings;
pub(super) mod writer;
