//! `sealfs du`: what a tree takes, as its files have it and as the bucket stores it.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use std::os::unix::ffi::OsStrExt;
use tokio::sync::mpsc;

use crate::base::{one_line, unix_secs, utc_text};
use crate::fs::FsError;
use crate::stack::{Control, DuAsk, DuProgress, DuReport, DuSum, PinPath};

use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::out::print_json;
use super::progress::{Lines, bar};
use super::protocol::{Ask, Say};
use super::server::PROGRESS_INTERVAL;
use super::snapshot_at::{Volume, VolumeArgs, open};
use super::{signals, stop};

/// Flags of `sealfs du`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Columns: `size` is what the files say, `stored` what the bucket stores of them after compression (what has
not arrived there yet is in `journal`). Hard links count once, where they are met first, and so do bytes
that copies share, once they are committed. Only metadata are read.

Examples:
  sealfs du ~/vault
  sealfs du -d 2 --by-age ~/vault/photos
  sealfs du --snapshots ~/vault
  sealfs du --json s3://my-bucket/data photos | jq .total.stored_bytes")]
pub struct DuArgs {
    #[command(flatten)]
    at: VolumeArgs,
    /// What of the volume, from its root on [default: DIR, or everything]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// List directories so many levels below
    #[arg(short = 'd', long, value_name = "LEVELS", default_value_t = 1)]
    max_depth: u32,
    /// Also what it takes in each snapshot, and what only snapshots hold
    #[arg(long)]
    snapshots: bool,
    /// Also by when files were last changed
    #[arg(long)]
    by_age: bool,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
}

/// Runs `sealfs du`.
pub fn run(args: DuArgs) -> Outcome {
    let volume = args.at.find(true)?;
    let mut path = match &volume {
        Volume::Mounted(client) if !args.at.is_store() => inside(args.at.name(), &client.point)?,
        _ => PinPath::new(),
    };
    if let Some(more) = &args.path {
        path.extend(names(more)?);
    }
    if path == [b".snapshots".to_vec()] {
        let failure = Failure::new(Exit::Usage, "the directory of snapshots is not a tree");
        return Err(failure.hint("sealfs du --snapshots DIR, or: sealfs du DIR/.snapshots/NAME"));
    }
    let ask = DuAsk { path, depth: args.max_depth, snapshots: args.snapshots };
    let mut display = Display::new();
    let report = match volume {
        Volume::Mounted(client) => {
            stop::catch();
            client.ask_each(&Ask::Du { ask }, |say| match say {
                Say::Du(report) => Ok(Some(*report)),
                Say::Measuring { met, of } => {
                    display.show(met, of);
                    Ok(None)
                }
                _ => Ok(None),
            })
        }
        Volume::Store(options) => {
            let display = &mut display;
            open(*options, |control, attended| async move {
                let progress = Arc::new(DuProgress::default());
                let mut adding = control.du(ask, progress.clone());
                loop {
                    tokio::select! {
                        report = &mut adding => return report.map_err(|e| failure(&e)),
                        () = attended.stopped() => return Err(signals::stopped()),
                        () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                            let (met, of) = so_far(&progress);
                            display.show(met, of);
                        }
                    }
                }
            })
        }
    };
    display.end();
    let report = report?;
    if args.json {
        return print_json(&report);
    }
    print!("{}", describe(&report, args.by_age));
    if report.is_too_much {
        eprintln!("sealfs: note: so much is shared, or linked, that some of it was counted twice");
    }
    Ok(())
}

fn so_far(progress: &DuProgress) -> (u64, u64) {
    (progress.met.load(Ordering::Relaxed), progress.of.load(Ordering::Relaxed))
}

fn failure(e: &FsError) -> Failure {
    match e {
        FsError::NotFound | FsError::NotDir => {
            Failure::new(Exit::General, "there is no such file or snapshot in the volume")
                .hint("name it from the root of the volume on")
        }
        e => Failure::new(Exit::General, format!("it cannot be added up: {e}"))
            .hint("sealfs status DIR says whether the store answers; sealfs fsck what is damaged"),
    }
}

/// The daemon's side: adds up, and says how far it is. Ends when nobody waits any more.
pub async fn serve(control: Arc<dyn Control>, ask: DuAsk, say: mpsc::Sender<Say>) {
    let progress = Arc::new(DuProgress::default());
    let mut adding = control.du(ask, progress.clone());
    let last = loop {
        tokio::select! {
            report = &mut adding => break match report {
                Ok(report) => Say::Du(Box::new(report)),
                Err(e) => Say::Failed(failure(&e)),
            },
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                let (met, of) = so_far(&progress);
                let _ = say.try_send(Say::Measuring { met, of }); // the next one tells more
            }
            () = say.closed() => return,
        }
    };
    let _ = say.send(last).await; // the client may have gone
}

/// The names of `path` below the mount at `point`.
fn inside(path: &str, point: &Path) -> Outcome<PinPath> {
    let failed =
        |e: std::io::Error| Failure::new(Exit::NotMounted, format!("cannot look at {path}: {e}"));
    let resolved = dirs::resolve(Path::new(path)).map_err(failed)?;
    names(resolved.strip_prefix(point).unwrap_or(Path::new("")))
}

fn names(path: &Path) -> Outcome<PinPath> {
    let mut names = PinPath::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name.as_bytes().to_vec()),
            Component::CurDir | Component::RootDir => {}
            _ => {
                let message = format!("{} cannot be named so", path.display());
                return Err(Failure::new(Exit::Usage, message).hint("name it without \"..\""));
            }
        }
    }
    Ok(names)
}

/// How far it is, on a terminal or in lines.
struct Display {
    bar: Option<ProgressBar>,
    lines: Lines,
}

impl Display {
    fn new() -> Display {
        let bar = bar("{bar:30} {human_pos} of {human_len} names {eta}");
        Display { bar, lines: Lines::new(Instant::now()) }
    }

    fn show(&mut self, met: u64, of: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(of.max(met));
                bar.set_position(met);
            }
            None if self.lines.due(Instant::now()) => match of {
                0 => eprintln!("sealfs: {} names so far", HumanCount(met)),
                of => eprintln!("sealfs: {} of {} names", HumanCount(met), HumanCount(of.max(met))),
            },
            None => {}
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn row(sum: &DuSum, name: &str) -> String {
    format!(
        "{:>12} {:>12} {:>12} {:>11}  {name}\n",
        HumanBytes(sum.apparent_bytes).to_string(),
        HumanBytes(sum.stored_bytes).to_string(),
        HumanBytes(sum.journal_bytes).to_string(),
        HumanCount(sum.files).to_string(),
    )
}

/// For people. Pure, but for the day.
fn describe(report: &DuReport, by_age: bool) -> String {
    let head = |what: &str| {
        format!("{:>12} {:>12} {:>12} {:>11}  {what}\n", "size", "stored", "journal", "files")
    };
    let mut out = head("directory");
    for dir in report.dirs.iter().filter(|dir| !dir.path.is_empty()) {
        out += &row(&dir.sum, &one_line(&dir.path));
    }
    if report.more_dirs > 0 {
        out += &format!("{:>12} {} more directories take less\n", "…", report.more_dirs);
    }
    out += &row(&report.total, "total");
    if by_age {
        out += &format!("\n{}", head("changed"));
        for age in &report.ages {
            let name = match age.below_days {
                Some(1) => "less than a day ago".into(),
                Some(days) if days >= 365 => format!("less than {} y ago", days / 365),
                Some(days) => format!("less than {days} d ago"),
                None => "longer ago".to_owned(),
            };
            out += &row(&age.sum, &name);
        }
    }
    if let Some(snapshots) = &report.snapshots {
        let (only, alone) = ("only past", "alone");
        let (size, stored, files) = ("size", "stored", "files");
        out += &format!("\n{size:>12} {stored:>12} {only:>12} {alone:>12} {files:>11}  snapshot\n");
        for one in snapshots {
            let age = HumanAge(unix_secs().saturating_sub(one.made_unix_secs));
            out += &format!(
                "{:>12} {:>12} {:>12} {:>12} {:>11}  {} ({}, {age} ago)\n",
                HumanBytes(one.sum.apparent_bytes).to_string(),
                HumanBytes(one.sum.stored_bytes).to_string(),
                HumanBytes(one.only_snapshots_bytes).to_string(),
                HumanBytes(one.alone_bytes).to_string(),
                HumanCount(one.sum.files).to_string(),
                one_line(&one.name),
                utc_text(one.made_unix_secs),
            );
        }
        let only = HumanBytes(report.only_snapshots_bytes.unwrap_or(0));
        out += &format!("only snapshots hold {only} of it\n");
    }
    out
}

/// A time in one unit.
struct HumanAge(u64);

impl std::fmt::Display for HumanAge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        indicatif::HumanDuration(Duration::from_secs(self.0)).fmt(f)
    }
}
