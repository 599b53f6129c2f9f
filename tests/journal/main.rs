//! The local write-back journal: what survives which end of the process or of the machine.

mod journal_model;
mod journal_recovery;
