//! `sealfs fsck`: checks a whole volume, says what is wrong with which files, and repairs what
//! can be repaired.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar};

use crate::base::{counted, one_line, plural};
use crate::stack::{self, FsckOptions, FsckProgress, FsckReport, READING_DATA};

use super::args::{SecretArgs, StoreArgs, duration};
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::progress::{Lines, bar, style};
use super::signals::{UNDO_MAX, attend};

/// How long a repair that was stopped may take to give the volume back.
const REPAIR_UNDO_MAX: Duration = Duration::from_secs(30);
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(250);
const SPINNER: &str = "{spinner} {msg}";
const BAR: &str = "{msg:8} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";

/// Flags of `sealfs fsck`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs fsck s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs fsck s3://my-bucket/data --data             # and read every byte
  sealfs fsck s3://my-bucket/data --data --resume    # go on where it was stopped
  sealfs fsck s3://my-bucket/data --repair           # unmount it first

Without --repair it changes nothing, and a mount elsewhere goes on undisturbed. With it, what has
lost its name goes to /lost+found, and counts are put right; contents are never guessed and
nothing that holds any is deleted.

Exit status 0: nothing is wrong. 7: something is. 11: something was, and all of it was repaired.
12: it was stopped before the end.")]
pub struct FsckArgs {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY
    #[arg(value_name = "STORE")]
    store: String,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
    /// Read and authenticate every sealed byte, too
    #[arg(long)]
    data: bool,
    /// Go on where an earlier --data was stopped
    #[arg(long, requires = "data")]
    resume: bool,
    /// Put right what can be; refused while the volume is mounted read-write
    #[arg(long)]
    repair: bool,
    /// Refuse a bucket that is older than this commit (`sealfs status` shows the number)
    #[arg(long, value_name = "COMMIT", default_value_t = 0)]
    at_least: u64,
    /// Journals and what this machine remembers [default: ~/.local/state/sealfs or /var/lib/sealfs]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// How long one read waits for an unreachable store before it fails
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    read_timeout: Duration,
}

/// Runs `sealfs fsck`.
pub fn run(args: FsckArgs) -> Outcome {
    let mut store = args.access.resolve(&args.store)?;
    let state_dir = dirs::absolute_or(args.state_dir.as_deref(), dirs::state_dir)?;
    store.state_dir = Some(state_dir.clone());
    super::keep_private();
    let key = args.secret.read_for(&store)?;
    let options = FsckOptions {
        store,
        state_dir,
        data: args.data,
        resume: args.resume,
        repair: args.repair,
        at_least: args.at_least,
        read_timeout: args.read_timeout,
        key,
    };
    let runtime = super::runtime()?;
    let report = runtime.block_on(watched(options));
    runtime.shutdown_background(); // a thread may wait for a store that never answers
    let report = report.map_err(|failure| match args.data {
        true => failure.if_stopped(resume(&args.store)),
        false => failure,
    })?;
    print!("{}", describe(&report));
    verdict(&report, &args.store)
}

/// Runs the check and shows how far it is; SIGINT and SIGTERM stop it, keeping the position.
async fn watched(options: FsckOptions) -> Outcome<FsckReport> {
    let attended = options.store.attended.clone();
    let grace = match (options.repair, options.data) {
        (true, _) => REPAIR_UNDO_MAX,
        (false, true) => UNDO_MAX, // it keeps its position
        (false, false) => Duration::ZERO,
    };
    let progress = Arc::new(FsckProgress::default());
    let mut display = Display::new();
    let check = stack::fsck(options, progress.clone());
    let shown = async {
        tokio::pin!(check);
        loop {
            tokio::select! {
                done = &mut check => {
                    display.end();
                    return done;
                }
                () = tokio::time::sleep(TICK) => {}
            }
            progress.stop.fetch_or(attended.is_stopped(), Ordering::Relaxed);
            display.show(&progress);
        }
    };
    attend(&attended, grace, shown).await
}

/// A bar on a terminal, a line now and then elsewhere. While nobody knows how much there is to
/// do, there is a count and no bar.
struct Display {
    bar: Option<ProgressBar>,
    lines: Lines,
    /// Bytes that had been read when the bar began: by the run that is resumed.
    begun_at: Option<u64>,
}

impl Display {
    fn new() -> Display {
        Display { bar: bar(SPINNER), lines: Lines::new(Instant::now()), begun_at: None }
    }

    fn show(&mut self, progress: &FsckProgress) {
        let phase = *progress.phase.lock();
        let rows = progress.rows.load(Ordering::Relaxed);
        let done = progress.bytes.0.load(Ordering::Relaxed);
        let total = progress.bytes.1.load(Ordering::Relaxed);
        let reads = phase == READING_DATA && total > 0;
        let Some(bar) = &self.bar else {
            if self.lines.due(Instant::now()) {
                eprintln!("sealfs: {}", line(phase, rows, reads.then_some((done, total))));
            }
            return;
        };
        if !reads {
            if self.begun_at.take().is_some() {
                bar.set_style(style(SPINNER));
            }
            bar.set_message(line(phase, rows, None));
            return bar.tick();
        }
        if self.begun_at.is_none() {
            bar.set_style(style(BAR));
            bar.set_message(phase);
            bar.reset();
        }
        let begun_at = *self.begun_at.get_or_insert(done);
        bar.set_length(total.saturating_sub(begun_at));
        bar.set_position(done.saturating_sub(begun_at));
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What it does, and how far that is.
fn line(phase: &str, rows: u64, bytes: Option<(u64, u64)>) -> String {
    match bytes {
        Some((done, total)) => {
            format!("{phase}: {} of {} read", HumanBytes(done), HumanBytes(total))
        }
        None if rows > 0 => format!("{phase}: {} read", number(rows, "row")),
        None => phase.to_owned(),
    }
}

/// The report for people. Pure, so that it can be tested.
fn describe(r: &FsckReport) -> String {
    let mut lines = Vec::new();
    let m = &r.metadata;
    lines.push(format!("volume {} at commit {}", r.volume, r.sequence));
    lines.push(format!(
        "{} ({}, {} unlinked), {} of data in {}",
        number(m.inodes, "inode"),
        number(m.directories, "directory"),
        HumanCount(m.orphans),
        HumanBytes(m.bytes),
        number(m.segments, "segment"),
    ));
    lines.push(format!("{}, {} stored", number(r.objects.0, "object"), HumanBytes(r.objects.1)));
    if let Some((objects, bytes)) = r.read {
        let (objects, bytes) = (number(objects, "object"), HumanBytes(bytes));
        lines.push(format!("{objects} read and authenticated, {bytes}"));
    }
    if let Some(writer) = &r.writer {
        lines.push(format!("note: mounted read-write meanwhile by {writer}"));
    }
    lines.extend(r.notes.iter().map(|note| format!("note: {note}")));
    lines.extend(r.repaired.iter().map(|what| format!("repaired: {what}")));
    for problem in &r.problems {
        lines.push(format!("problem: {}", problem.what));
        lines.extend(problem.files.iter().map(|file| format!("    {file}")));
    }
    lines.into_iter().map(|line| one_line(&line) + "\n").collect()
}

fn number(n: u64, noun: &str) -> String {
    format!("{} {}", HumanCount(n), plural(n, noun))
}

/// What to type after `--data` was stopped.
fn resume(store: &str) -> String {
    format!("go on: sealfs fsck {store} --data --resume")
}

fn verdict(r: &FsckReport, store: &str) -> Outcome {
    let problems = |n: usize| counted(n as u64, "problem");
    if !r.problems.is_empty() {
        let failure = Failure::new(Exit::Corrupt, format!("{} found", problems(r.problems.len())));
        return Err(match r.repaired.is_empty() {
            true => failure.hint(format!(
                "put damaged objects back from a copy of the bucket; then, with the volume \
                 unmounted: sealfs fsck {store} --repair"
            )),
            false => failure.hint(
                "what is left cannot be repaired without guessing: restore these files, or \
                 put the objects back from a copy of the bucket",
            ),
        });
    }
    if !r.complete {
        return Err(
            Failure::new(Exit::Stopped, "stopped before everything was read").hint(resume(store))
        );
    }
    if !r.repaired.is_empty() {
        let what = format!("{} repaired, nothing is left", problems(r.repaired.len()));
        return Err(Failure::new(Exit::Repaired, what).hint(format!("sealfs mount {store} DIR")));
    }
    println!("nothing is wrong");
    Ok(())
}
