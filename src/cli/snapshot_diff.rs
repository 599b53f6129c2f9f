//! `sealfs snapshot diff`: what differs between two snapshots, or one and the volume as it is.

use clap::Args;
use tokio::sync::mpsc;

use crate::base::one_line;
use crate::fs::diff::{Change, Difference};

use super::exit::{Exit, Failure, Outcome};
use super::protocol::{Ask, Say};
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
or attributes), R renamed, from and to. The names of both states are read, and the rows of what they lead
to, but no contents: a volume of a million files takes a few hundred MiB of metadata.")]
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
    match args.at.find(true)? {
        Volume::Mounted(client) => client.ask_each(&Ask::SnapshotDiff { names }, |say| match say {
            // Nobody reads on: that is told, or ends the process, when it ends.
            Say::Differences(found) => Ok((!print(&found, args.json)).then_some(())),
            Say::Done { .. } => Ok(Some(())),
            _ => Ok(None),
        }),
        Volume::Store(options) => open(*options, |control| async move {
            let (out, mut found) = mpsc::channel::<Vec<Difference>>(BATCHES_MAX);
            let printing = async {
                while let Some(some) = found.recv().await {
                    if !print(&some, args.json) {
                        found.close(); // which ends the comparison
                        return false;
                    }
                }
                true
            };
            let (compared, printed) = futures::join!(control.diff(names, out), printing);
            // Nobody reads on: that is told, or ends the process, when it ends.
            if printed { compared.map_err(|e| failure(&e)) } else { Ok(()) }
        }),
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
