//! `sealfs umount`: uploads what is pending, unmounts, and says whether all is in the bucket.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::HumanBytes;

use super::args::{duration, whole_secs};
use super::busy::users_of;
use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::progress::Display;
use super::protocol::{Ask, Say};
use super::stop;
use crate::stack::is_running;

/// How long the mount process may take to end once it has said that it is done.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Flags of `sealfs umount`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs umount ~/vault
  sealfs umount --lazy ~/vault            # even if something of it is in use
  sealfs umount --force-local ~/vault     # now; the next mount here uploads the rest

Ctrl-C cancels it: the directory stays mounted. A second command takes over from one that waits,
if it is in a greater hurry; else it waits for the same end.

Exit status 0 says that everything is in the bucket, 8 that the rest is in the local journal
only: this machine must mount the volume once more before it can be thrown away.")]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Detach it even if something of it is in use; it ends when that is closed
    #[arg(long)]
    lazy: bool,
    /// Do not wait for the bucket: leave what is pending in the local journal
    #[arg(long)]
    force_local: bool,
    /// Give up (and stay mounted) after this long without any progress
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    stall_timeout: Duration,
}

/// Runs `sealfs umount`.
pub fn run(args: UmountArgs) -> Outcome {
    let client = Client::connect(&args.dir, false)?;
    let daemon = client.daemon();
    stop::catch();
    let ask = Ask::Umount {
        stall_secs: whole_secs(args.stall_timeout),
        lazy: args.lazy,
        force_local: args.force_local,
    };
    let mut display = Display::new();
    let answer = client.ask(&ask, |progress| display.show(progress));
    display.end();
    let shown = args.dir.display();
    let answer = answer.map_err(|failure| match failure.exit {
        Exit::Busy if failure.hint.is_none() => explain_busy(failure, &client, &args),
        Exit::Pending if failure.hint.is_none() => failure.hint(format!(
            "it is still mounted; try again, or leave the rest for later: \
             sealfs umount --force-local {shown}"
        )),
        _ => failure.if_stopped(format!(
            "it stays mounted; the rest can be left for later: sealfs umount --force-local {shown}"
        )),
    })?;
    if let (Ok(pid), false) = (daemon, args.lazy) {
        await_exit(pid)?;
    }
    match answer {
        Say::Done { pending_bytes: 0 } => Ok(()),
        Say::Done { pending_bytes } => Err(Failure::new(
            Exit::Pending,
            format!("{} are in the local journal only", HumanBytes(pending_bytes)),
        )
        .hint("mount it here again to upload the rest")),
        _ => Err(Failure::answered_else()),
    }
}

fn explain_busy(failure: Failure, client: &Client, args: &UmountArgs) -> Failure {
    let users = users_of(&client.point);
    let message = match users.len() {
        0 => failure.message,
        _ => format!("{} by {}", failure.message, users.join(", ")),
    };
    let hint = format!("close them, or: sealfs umount --lazy {}", args.dir.display());
    Failure::new(Exit::Busy, message).hint(hint)
}

/// Waits until the process is gone, so that the next mount finds its journal free.
fn await_exit(pid: libc::pid_t) -> Outcome {
    let begun = Instant::now();
    while u32::try_from(pid).is_ok_and(is_running) {
        if begun.elapsed() > EXIT_TIMEOUT {
            return Err(Failure::new(Exit::General, format!("process {pid} does not end"))
                .hint(format!("look at it: ps {pid}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
