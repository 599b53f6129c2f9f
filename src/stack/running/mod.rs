//! A running mount: its tasks and its orderly end, and what it says of itself.
//!
//! | file | holds |
//! | --- | --- |
//! | `mount` | a running mount: its background tasks, and its orderly end |
//! | `gates` | what a mount lets its committer do |
//! | `rekey_duty` | what a mount does for a rekey |
//! | `control`, `status`, `places` | what it says of itself: plain data, and how that is found out |
//! | `disks` | how the local disks are, in sentences |

pub(super) mod control;
pub(super) mod disks;
pub(super) mod gates;
pub(super) mod mount;
pub(super) mod places;
pub(super) mod rekey_duty;
pub(super) mod status;
