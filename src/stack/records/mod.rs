//! What is recorded of a volume beside its metadata: in the bucket, and on this machine.
//!
//! | file | holds |
//! | --- | --- |
//! | `config`, `encryption` | what the volume remembers of its encryption, and what follows |
//! | `lease` | who holds the volume read-write |
//! | `departure` | processes of this machine that are about to let the volume go |
//! | `schedule` | when snapshots are made by themselves |
//! | `state` | what this machine remembers of the volume |
//! | `history` | whether the bucket continues what this machine has seen |
//! | `lineage` | whether bucket and journal belong to one history |
//! | `last_use` | which volume this machine last opened at a store, and by which slot |
//! | `accept` | what may be worse than this machine has seen |

pub(super) mod accept;
pub mod config;
pub(super) mod departure;
pub mod encryption;
pub(super) mod history;
pub(super) mod last_use;
pub(super) mod lease;
pub(super) mod lineage;
pub mod schedule;
pub(super) mod state;
