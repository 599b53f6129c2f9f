//! `sealfs sync`: returns when everything written before it is in the bucket.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::stack::Status;

use super::args::{duration, whole_secs};
use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::progress::Display;
use super::protocol::{Ask, Say};
use super::server::Standstill;
use super::{signals, stop};

/// How often is looked whether the kernel gets rid of its pages.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    sync(&args.dir, args.stall_timeout)
}

/// Returns when everything written to the mount at `dir` before is in the bucket.
pub(super) fn sync(dir: &Path, stall: Duration) -> Outcome {
    let client = Client::connect(dir, true)?;
    let mut display = Display::new();
    stop::catch();
    let stopped = |failure: Failure| {
        failure.if_stopped(format!("the mount goes on uploading: sealfs status {}", dir.display()))
    };
    write_back(dir, stall, &mut display).map_err(|e| {
        if stop::came() {
            return stopped(signals::stopped());
        }
        let what = format!("the kernel could not write back what {} holds: {e}", dir.display());
        Failure::new(Exit::Pending, what)
    })?;
    let ask = Ask::Sync { stall_secs: whole_secs(stall) };
    let answer = client.ask(&ask, |progress| display.show(progress));
    display.end();
    answer.map(drop).map_err(stopped)
}

/// Has the kernel write back the dirty pages of the file system at `dir` (syncfs(2)). Linux does
/// not forward the call to FUSE, but sends the pages as writes, which wait for the store when the
/// journal is full. The thread is left behind when nothing has moved for `stall`: the call itself
/// cannot be given up.
fn write_back(path: &Path, stall: Duration, display: &mut Display) -> io::Result<()> {
    let dir = File::open(path)?;
    let (done, outcome) = mpsc::channel();
    std::thread::Builder::new().spawn(move || {
        // SAFETY: the descriptor is open for as long as `dir` lives, which is past the call.
        let rc = unsafe { libc::syncfs(dir.as_raw_fd()) };
        let result = if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        let _ = done.send(result); // nobody waits any more
    })?;
    let mut before: Option<(u64, Standstill)> = None;
    let mut moved = Instant::now();
    loop {
        match outcome.recv_timeout(LOOK_EVERY.min(stall)) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("the thread that waited for it died"));
            }
            Err(mpsc::RecvTimeoutError::Timeout) if stop::came() => {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = status(path) {
            display.show(&status.progress);
            let (journal_bytes, now) = (status.journal_bytes, &status.progress);
            if let Some((journalled, standstill)) = &mut before {
                let writes = std::mem::replace(journalled, journal_bytes) != journal_bytes;
                if standstill.ends(now) || writes {
                    moved = Instant::now();
                }
            } else {
                before = Some((journal_bytes, Standstill::after(now)));
            }
        }
        if moved.elapsed() > stall {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// How the mount is, if it says so.
fn status(dir: &Path) -> Option<Box<Status>> {
    match Client::connect(dir, true).ok()?.ask(&Ask::Status, |_| {}).ok()? {
        Say::Status(status) => Some(status),
        _ => None,
    }
}
