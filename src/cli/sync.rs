//! `sealfs sync`: returns when everything written before it is in the bucket.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::args::duration;
use super::client::Client;
use super::exit::Outcome;
use super::progress::Display;
use super::protocol::Ask;

/// Flags of `sealfs sync`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sync ~/vault/report.pdf && sealfs sync ~/vault
  sealfs sync --stall-timeout 30s ~/vault

What programs have written but not fsynced may still be in the kernel: run sync(1) first.
Exit status 0 says that all is in the bucket, 8 that it is not.")]
pub struct SyncArgs {
    /// Where it is mounted, or any directory in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Give up after this long without any progress
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    stall_timeout: Duration,
}

/// Runs `sealfs sync`.
pub fn run(args: SyncArgs) -> Outcome {
    let client = Client::connect(&args.dir, true)?;
    let ask = Ask::Sync { stall_secs: args.stall_timeout.as_secs() };
    let mut display = Display::new();
    let answer = client.ask(&ask, |progress| display.show(progress));
    display.end();
    answer.map(drop)
}
