//! Caring for a volume as a whole: how it is checked, repaired, recovered, shown, changed in its
//! encryption and its keys. Mounts it only to repair it or to rekey it.
//!
//! | file | holds |
//! | --- | --- |
//! | `fsck/` | a whole volume checked and repaired |
//! | `doctor/`, `bucket_policy` | what a bucket, its settings and this machine are fit for |
//! | `recover` | what a journal holds, as files |
//! | `audit`, `inventory`, `migrate` | how every object is encrypted, shown and changed |
//! | `rekey` | every object sealed again in a new epoch |
//! | `walk` | all objects one after the other, as these three do it |
//! | `settings` | the schedule of snapshots, the quota and the storage class, read and changed |
//! | `snapshots` | snapshots of a volume that is not mounted here |
//! | `one_object` | one object by its name: its contents, or its key |

pub mod audit;
pub mod bucket_policy;
pub mod doctor;
pub(super) mod fsck;
pub mod inventory;
pub mod migrate;
pub(super) mod one_object;
pub(super) mod recover;
pub mod rekey;
pub(super) mod settings;
pub mod snapshots;
mod walk;
