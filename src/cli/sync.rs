//! `sealfs sync`: returns when everything written before it is in the bucket.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;

use super::args::duration;
use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::progress::Display;
use super::protocol::Ask;

/// Flags of `sealfs sync`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs sync ~/vault
  sealfs sync --stall-timeout 30s ~/vault

What programs have written and not fsynced is first fetched from the kernel's page cache.
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
    write_back(&args.dir, args.stall_timeout).map_err(|e| {
        let what =
            format!("the kernel could not write back what {} holds: {e}", args.dir.display());
        Failure::new(Exit::Pending, what)
    })?;
    let ask = Ask::Sync { stall_secs: args.stall_timeout.as_secs() };
    let mut display = Display::new();
    let answer = client.ask(&ask, |progress| display.show(progress));
    display.end();
    answer.map(drop)
}

/// Has the kernel write back the dirty pages of the file system at `dir` (syncfs(2)). Linux does
/// not forward the call to FUSE, but sends the pages as writes. The thread is left behind when
/// `limit` has passed: the call itself cannot be given up.
fn write_back(dir: &Path, limit: Duration) -> io::Result<()> {
    let dir = File::open(dir)?;
    let (done, outcome) = mpsc::channel();
    std::thread::Builder::new().spawn(move || {
        // SAFETY: the descriptor is open for as long as `dir` lives, which is past the call.
        let rc = unsafe { libc::syncfs(dir.as_raw_fd()) };
        let result = if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        let _ = done.send(result); // nobody waits any more
    })?;
    outcome.recv_timeout(limit).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
