//! `sealfs promote` and `sealfs demote`: a mount that runs changes its role.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::args::{duration, whole_secs};
use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::mount::{Accepted, accepted};
use super::progress::Display;
use super::protocol::{Ask, Say};
use super::stop;

/// Flags of `sealfs promote`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs promote ~/vault
  sealfs promote --takeover ~/vault       # the machine that wrote is gone

What is refused is what sealfs mount refuses: a volume that another mount writes, a bucket that is
older than what this machine has seen, a journal that is not whole. Then nothing has changed. The
journal of this machine is replayed, or set aside if another writer has overtaken it.")]
pub struct PromoteArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Take the volume from the mount that holds it; that one follows from then on
    #[arg(long)]
    takeover: bool,
    /// Accept that something is older, or other, than what this machine has seen: the bucket (older),
    /// its history, its keyring, its configuration (config), the local journal
    #[arg(long, value_name = "WHAT", value_delimiter = ',', require_equals = true)]
    accept_rollback: Vec<Accepted>,
}

/// Flags of `sealfs demote`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs demote ~/vault
  sealfs demote --stall-timeout 30s ~/vault

Everything written before it is in the bucket when it returns, and another machine may write the
volume. Files that are open stay open to be read; what is written to them from then on is refused.
Ctrl-C cancels it, and while the bucket is away it is refused: then the mount writes as before.")]
pub struct DemoteArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Give up (and go on writing) after this long without any progress
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    stall_timeout: Duration,
}

/// Runs `sealfs promote`.
pub fn promote(args: PromoteArgs) -> Outcome {
    let accept = accepted(&args.accept_rollback);
    let ask = Ask::Promote { takeover: args.takeover, accept };
    // The hints are those of a mount that begins.
    change(&args.dir, &ask).map_err(|failure| {
        let shown = args.dir.display();
        let hint = failure.hint.map(|hint| match failure.exit {
            Exit::InUse if !args.takeover => format!(
                "sealfs demote DIR there, or, if that machine is gone: sealfs promote --takeover \
                 {shown}"
            ),
            _ => hint
                .replace("sealfs mount --accept", "sealfs promote --accept")
                .replace("sealfs mount --takeover", &format!("sealfs promote --takeover {shown}")),
        });
        Failure { hint, ..failure }
    })
}

/// Runs `sealfs demote`.
pub fn demote(args: DemoteArgs) -> Outcome {
    change(&args.dir, &Ask::Demote { stall_secs: whole_secs(args.stall_timeout) })
}

fn change(dir: &Path, ask: &Ask) -> Outcome {
    let client = Client::connect(dir, false)?;
    let mut display = Display::new();
    stop::catch();
    let answer = client.ask(ask, |progress| display.show(progress));
    display.end();
    let shown = dir.display();
    let stopped = |failure: Failure| {
        failure.if_stopped(format!("see which role the mount has now: sealfs status {shown}"))
    };
    match answer.map_err(stopped)? {
        Say::Done { .. } => Ok(()),
        _ => Err(Failure::answered_else()),
    }
}
