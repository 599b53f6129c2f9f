//! `sealfs warm`: brings what lies below some paths into the cache of this machine, by reading it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use clap::Args;
use indicatif::{HumanBytes, ProgressBar};

use crate::base::{counted, one_line};

use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::pin;
use super::progress::{Lines, bar};
use super::protocol::{Ask, Sample, Say};
use super::stop;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// Flags of `sealfs warm`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
It reads every file below, so that the ciphertext lies in the cache of this machine: for a train, a plane, or
before a job that reads much. The cache keeps what was used last, up to its size (--cache-size of
`sealfs mount`, or `sealfs set DIR cache-size=SIZE`). Stopped half way, the same command goes on quickly with
what is there already.

With --pin it stays there, whatever else is read, until --unpin: what lies below now and what comes, also
after the next mount, with the names and attributes of the whole volume. What is written is kept at once,
what another machine writes is fetched within seconds of this mount's seeing it. A pin is a path: what is
renamed away is not pinned any more. `sealfs status` lists pins and how much of each is here. What does not
fit into nine tenths of the cache is refused.

Examples:
  sealfs warm ~/vault/trip
  sealfs warm --pin ~/vault/trip ~/vault/music
  sealfs warm --unpin ~/vault/trip
  sealfs warm ~/vault/a ~/vault/b && sealfs status ~/vault")]
pub struct WarmArgs {
    /// Files or directories of one mount
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Keep it there, and what is put there later
    #[arg(long)]
    pin: bool,
    /// Keep what is pinned at or below PATH no longer
    #[arg(long, conflicts_with = "pin")]
    unpin: bool,
}

#[derive(Default)]
struct Found {
    files: Vec<(PathBuf, u64)>,
    bytes: u64,
    failed: Vec<String>,
}

/// Runs `sealfs warm`.
pub fn run(args: WarmArgs) -> Outcome {
    if args.pin || args.unpin {
        return pin::run(&args.paths, args.unpin);
    }
    let first = &args.paths[0];
    let failed = |path: &Path, e| {
        Failure::new(Exit::General, format!("cannot look at {}: {e}", path.display()))
    };
    let device = first.symlink_metadata().map_err(|e| failed(first, e))?.dev();
    let before = sample(first)?;
    for path in &args.paths {
        let meta = path.symlink_metadata().map_err(|e| failed(path, e))?;
        if meta.dev() != device {
            let why = format!("{} is not on the mount of {}", path.display(), first.display());
            return Err(Failure::new(Exit::Usage, why).hint("one mount at a time"));
        }
    }
    stop::catch();
    let found = list_all(&args.paths, device)?;
    let room = before.numbers.status.cache_bytes_max;
    if found.bytes > room {
        eprintln!(
            "sealfs: note: {} do not fit into the cache of {}: what is read first leaves it again; \
             sealfs set DIR cache-size=SIZE",
            HumanBytes(found.bytes),
            HumanBytes(room)
        );
    }
    let found = read_all(found)?;
    let after = sample(first)?;
    let skipped = after.numbers.requests.cache_skipped_bytes;
    let skipped = skipped.saturating_sub(before.numbers.requests.cache_skipped_bytes);
    println!(
        "{} in {}; {} fetched",
        HumanBytes(found.bytes),
        counted(found.files.len() as u64, "file"),
        HumanBytes(
            after.numbers.requests.bytes_down.saturating_sub(before.numbers.requests.bytes_down)
        )
    );
    if skipped > 0 {
        println!("{} were not kept: the disk did not keep up; run it again", HumanBytes(skipped));
    }
    match found.failed.first() {
        None => Ok(()),
        Some(one) => {
            let n = counted(found.failed.len() as u64, "file");
            Err(Failure::new(Exit::General, format!("{n} could not be read: {one}")))
        }
    }
}

fn sample(path: &Path) -> Outcome<Sample> {
    match Client::connect(path, true)?.ask(&Ask::Sample, |_| {})? {
        Say::Sample(sample) => Ok(*sample),
        _ => Err(Failure::answered_else()),
    }
}

/// The regular files below `path`, of this file system.
fn list(path: PathBuf, device: u64, found: &mut Found, files: &AtomicU64) {
    let mut todo = vec![path];
    while let Some(path) = todo.pop() {
        let shown = || one_line(&path.display().to_string());
        match path.symlink_metadata() {
            Err(e) => found.failed.push(format!("{}: {e}", shown())),
            Ok(meta) if meta.dev() != device => {}
            Ok(meta) if meta.is_file() => {
                found.bytes += meta.len();
                files.fetch_add(1, Relaxed);
                found.files.push((path, meta.len()));
            }
            Ok(meta) if meta.is_dir() => match fs::read_dir(&path) {
                Ok(entries) => todo.extend(entries.filter_map(|entry| Some(entry.ok()?.path()))),
                Err(e) => found.failed.push(format!("{}: {e}", shown())),
            },
            Ok(_) => {}
        }
    }
    // As they were made, more often than not: neighbours lie in one segment.
    found.files.sort();
}

/// Does `work`, which counts what it has done, and shows that meanwhile: on `bar`, or as `line` has it where
/// there is none. Ends at a signal.
fn attended<T: Send + 'static>(
    bar: Option<ProgressBar>,
    line: impl Fn(u64) -> String,
    work: impl FnOnce(&AtomicU64) -> T + Send + 'static,
) -> Outcome<T> {
    let (mut lines, done) = (Lines::new(Instant::now()), Arc::new(AtomicU64::new(0)));
    let counter = done.clone();
    let outcome = stop::attend(
        move || work(&counter),
        || {
            let done = done.load(Relaxed);
            match &bar {
                Some(bar) => bar.set_position(done),
                None if lines.due(Instant::now()) => eprintln!("sealfs: {}", line(done)),
                None => {}
            }
        },
    );
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let goes_on = "what was read is in the cache: the same command goes on quickly with it";
    outcome.map_err(|failure| failure.if_stopped(goes_on))
}

/// The regular files below `paths`.
fn list_all(paths: &[PathBuf], device: u64) -> Outcome<Found> {
    let paths = paths.to_vec();
    let line = |files| format!("{} listed so far", counted(files, "file"));
    attended(bar("{spinner} listing: {human_pos} files"), line, move |files| {
        let mut found = Found::default();
        paths.into_iter().for_each(|path| list(path, device, &mut found, files));
        found
    })
}

fn read_all(mut found: Found) -> Outcome<Found> {
    let bar = bar("{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    let bytes = found.bytes;
    if let Some(bar) = &bar {
        bar.set_length(bytes);
    }
    let line = move |done| format!("{} of {}", HumanBytes(done), HumanBytes(bytes));
    attended(bar, line, move |done| {
        let mut buffer = vec![0; PIECE];
        for (path, _) in &found.files {
            if let Err(e) = read(path, &mut buffer, done) {
                found.failed.push(format!("{}: {e}", one_line(&path.display().to_string())));
            }
        }
        found
    })
}

fn read(path: &Path, buffer: &mut [u8], done: &AtomicU64) -> io::Result<()> {
    let mut file = File::open(path)?;
    // What the kernel has in memory would not be asked for, and not be in the cache.
    // SAFETY: the descriptor is open; advice changes no data, dirty pages stay.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => drop(done.fetch_add(n as u64, Relaxed)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
