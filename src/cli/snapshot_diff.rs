//! `sealfs snapshot diff`: what differs between two snapshots, or one and the volume as it is.

use std::time::Instant;

use clap::Args;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::base::{counted, one_line};
use crate::fs::diff::{Change, Difference};

use super::exit::{Exit, Failure, Outcome};
use super::progress::Lines;
use super::protocol::{Ask, Say};
use super::signals::{LOOK_EVERY, stopped};
use super::snapshot_at::{Volume, VolumeArgs, open};
use super::snapshot_serve::failure;

/// Batches of differences that wait to be printed.
const BATCHES_MAX: usize = 8;

/// Flags of `sealfs snapshot diff`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs snapshot diff ~/vault monday tuesday
  sealfs snapshot diff ~/vault monday now
  sealfs snapshot diff s3://my-bucket/data monday tuesday --json

A line for each difference, as it is found: + added, - removed, M changed (and whether that is contents
or attributes), R renamed, from and to. No contents are read. What the tables of the metadata share is
left out; where that does not help, all names are read: a few hundred MiB for a million files.")]
pub struct DiffArgs {
    #[command(flatten)]
    at: VolumeArgs,
    /// The earlier snapshot
    #[arg(value_name = "A")]
    from: String,
    /// The later one, or \"now\": the volume as it is
    #[arg(value_name = "B", default_value = "now")]
    to: String,
    /// A JSON object a line; its fields are never renamed
    #[arg(long)]
    json: bool,
}

/// Runs `sealfs snapshot diff`.
pub fn run(args: DiffArgs) -> Outcome {
    if args.from == args.to {
        return Err(Failure::new(Exit::Usage, format!("{:?} is compared with itself", args.to)));
    }
    let names = [args.from.clone(), args.to.clone()];
    let mut told = Told { lines: Lines::new(Instant::now()), found: 0 };
    match args.at.find(true)? {
        // A signal ends it as any that only prints: `| less` is in the way of every other answer.
        Volume::Mounted(client) => client.ask_each(&Ask::SnapshotDiff { names }, |say| match say {
            // Nobody reads on: that is told, or ends the process, when it ends.
            Say::Differences(found) => {
                told.found += found.len();
                Ok((!print(&found, args.json)).then_some(()))
            }
            Say::Done { .. } => Ok(Some(())),
            _ => {
                told.look();
                Ok(None)
            }
        }),
        Volume::Store(options) => open(*options, |control, attended| async move {
            let (out, mut found) = mpsc::channel::<Vec<Difference>>(BATCHES_MAX);
            let printing = async {
                loop {
                    let some = match timeout(LOOK_EVERY, found.recv()).await {
                        Ok(Some(some)) => some,
                        Ok(None) => break,
                        Err(_) => {
                            told.look();
                            continue;
                        }
                    };
                    told.found += some.len();
                    if !print(&some, args.json) {
                        found.close(); // which ends the comparison
                        return false;
                    }
                }
                true
            };
            let both = async { futures::join!(control.diff(names, out), printing) };
            let (compared, printed) = tokio::select! {
                both = both => both,
                () = attended.stopped() => return Err(stopped()),
            };
            // Nobody reads on: that is told, or ends the process, when it ends.
            if printed { compared.map_err(|e| failure(&e)) } else { Ok(()) }
        }),
    }
}

/// What is said while nothing differs for long.
struct Told {
    lines: Lines,
    found: usize,
}

impl Told {
    fn look(&mut self) {
        if self.lines.due(Instant::now()) {
            eprintln!("sealfs: {} so far", counted(self.found as u64, "difference"));
        }
    }
}

/// Prints differences; false when nobody reads them any more.
fn print(found: &[Difference], json: bool) -> bool {
    for one in found {
        match json {
            true => println!("{}", serde_json::to_string(one).expect("plain data has a JSON form")),
            false => println!("{}", line_of(one)),
        }
    }
    super::out::written().is_ok()
}

fn line_of(one: &Difference) -> String {
    let slash = if one.kind == "dir" { "/" } else { "" };
    let path = one_line(&one.path);
    let what = match (one.contents, one.attributes) {
        (true, true) => " (contents, attributes)",
        (true, false) => " (contents)",
        (false, true) => " (attributes)",
        (false, false) => "",
    };
    match one.change {
        Change::Added => format!("+ {path}{slash}"),
        Change::Removed => format!("- {path}{slash}"),
        Change::Changed => format!("M {path}{slash}{what}"),
        Change::Renamed => {
            let from = one_line(one.from.as_deref().unwrap_or_default());
            format!("R {from}{slash} -> {path}{slash}{what}")
        }
    }
}
