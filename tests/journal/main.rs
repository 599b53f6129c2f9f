//! The local write-back journal: what survives which end of the process or of the machine.

#[path = "../support/disk_sim.rs"]
mod disk_sim;

mod disk_sim_tests;
mod group_commit;
mod journal_model;
mod journal_recovery;
