//! The format: sealed bytes, keyrings and frozen volumes, against published vectors, a second
//! implementation and the seeds of the fuzzers.

#[path = "../support/alone.rs"]
mod alone;
#[path = "../support/disk_sim.rs"]
mod disk_sim;
#[path = "../support/volume/mod.rs"]
mod volume;

mod format_fixtures;
mod fuzz_corpus;
mod python_interop;
mod seal_memory;
mod seal_vectors;
