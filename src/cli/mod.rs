//! The command line: one file per command, and the mount process that `mount` becomes.
//!
//! Parses, asks for passphrases, prints, and turns every error into a sentence and an exit
//! status. Does nothing to files or the store itself: that is `stack`.

mod args;
mod busy;
mod client;
mod daemon;
mod demo;
mod dirs;
mod doctor;
mod exit;
mod fsck;
mod fstab;
mod init;
mod key;
mod leaving;
mod logging;
mod mount;
mod notify;
mod place;
mod progress;
mod protocol;
mod recover;
mod secret;
mod serve;
mod server;
mod signals;
mod socket;
mod sse;
mod sse_report;
mod status;
mod sync;
mod umount;
mod user;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use exit::{Exit, Failure, TABLE};

/// Mount an S3 bucket as a directory; everything in it is sealed on this machine first
#[derive(Parser, Debug)]
#[command(name = "sealfs", version, after_help = help(), arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a volume in an empty bucket or prefix
    Init(Box<init::InitArgs>),
    /// Mount a volume on a directory
    Mount(Box<mount::MountArgs>),
    /// Upload what is pending and unmount
    Umount(umount::UmountArgs),
    /// Wait until everything is in the bucket
    Sync(sync::SyncArgs),
    /// Show how a mount is
    Status(status::StatusArgs),
    /// Check whether a bucket and this machine are fit for a volume
    Doctor(Box<doctor::DoctorArgs>),
    /// Check a volume, and repair it
    Fsck(Box<fsck::FsckArgs>),
    /// Export what only a local journal holds, as files
    Recover(Box<recover::RecoverArgs>),
    /// Show and change the ways into a volume
    Key(Box<key::KeyArgs>),
    /// Audit or change the server-side encryption of a volume
    Sse(sse::SseArgs),
    /// Make and mount a volume in a local directory, to look around
    Demo(demo::DemoArgs),
}

fn help() -> String {
    format!(
        "\
Examples:
  sealfs init s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs mount s3://my-bucket/data ~/vault --passphrase-file ~/.sealfs.pass
  sealfs status ~/vault
  sealfs umount ~/vault

{TABLE}"
    )
}

/// Keeps keys out of core dumps, or says on stderr that it cannot.
fn keep_private() {
    if let Err(e) = crate::seal::forbid_dumps() {
        eprintln!("sealfs: warning: core dumps of this process would hold keys: {e}");
    }
}

/// Threads for a command that talks to the store.
fn runtime() -> exit::Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::General, format!("cannot start threads: {e}")))
}

/// Runs the command line; returns the process's exit status. Call it first in `main`: `mount`
/// forks, which needs a process of one thread.
pub fn main() -> ExitCode {
    user::ensure_home();
    let args = fstab::expand(std::env::args_os().collect(), &Cli::command());
    let outcome = match Cli::parse_from(args).command {
        Command::Init(args) => init::run(*args),
        Command::Mount(args) => mount::run(*args),
        Command::Umount(args) => umount::run(args),
        Command::Sync(args) => sync::run(args),
        Command::Status(args) => status::run(args),
        Command::Doctor(args) => doctor::run(*args),
        Command::Fsck(args) => fsck::run(*args),
        Command::Recover(args) => recover::run(*args),
        Command::Key(args) => key::run(*args),
        Command::Sse(args) => sse::run(args),
        Command::Demo(args) => demo::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
