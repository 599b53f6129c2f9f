//! `sealfs snapshot`: states of a volume that stay, and what can be done with them.

use clap::{Args, Subcommand};

use super::exit::Outcome;
use super::snapshot_diff::{self, DiffArgs};
use super::snapshot_restore::{self, RestoreArgs};

/// Flags of `sealfs snapshot`.
#[derive(Args, Debug)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Subcommand, Debug)]
enum SnapshotCommand {
    /// Put files and directories back as they were
    Restore(Box<RestoreArgs>),
    /// Show what differs between two snapshots, or one and the volume as it is
    Diff(Box<DiffArgs>),
}

/// Runs `sealfs snapshot`.
pub fn run(args: SnapshotArgs) -> Outcome {
    match args.command {
        SnapshotCommand::Restore(args) => snapshot_restore::run(*args),
        SnapshotCommand::Diff(args) => snapshot_diff::run(*args),
    }
}
