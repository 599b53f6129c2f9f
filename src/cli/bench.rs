//! `sealfs bench`: what a mount gives on this machine and this line, in a minute.
//!
//! Works in a directory that it makes on the mount and removes, with data that do not compress.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, ProgressBar};

use super::args::size;
use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::progress::{Lines, bar};
use super::protocol::{Ask, Sample, Say};
use super::{signals, stop};

/// Bytes of a small file, and how many there are.
const SMALL: usize = 4096;
const FILES: usize = 500;
/// Small files that are synced one by one.
const SYNCED: usize = 100;
/// Bytes written or read at a time.
const PIECE: usize = 1 << 20;
/// How long the upload may stand still.
const STALL_SECS: u64 = 60;

/// Flags of `sealfs bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
It writes and reads in a directory that it makes there, and removes it, also after Ctrl-C. Numbers that wait for the store depend on
the line and on what else uses it.

Examples:
  sealfs bench ~/vault
  sealfs bench --size 1G ~/vault")]
pub struct BenchArgs {
    /// A directory of a mount
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Bytes of the large file
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = size)]
    size: u64,
}

/// Runs `sealfs bench`.
pub fn run(args: BenchArgs) -> Outcome {
    let before = sample(&args.dir)?;
    stop::catch();
    let made = tempfile::Builder::new().prefix("sealfs-bench-").tempdir_in(&args.dir);
    let made = made.map_err(|e| failed(&args, e))?;
    let pieces = args.size.div_ceil(PIECE as u64);
    let mut show = Show::new((FILES + 2 * SYNCED) as u64 + 2 * pieces);
    let rows = measure(&args, made.path(), &mut show);
    show.end();
    let begun = Instant::now();
    let found = fs::read_dir(made.path()).map_or(0, |all| all.flatten().count());
    let removed = made.close().map_err(|e| failed(&args, e));
    if stop::came() {
        return removed.and(Err(signals::stopped()));
    }
    removed.and(rows)?;
    row("removed", format!("{:.0} a second", rate(found, begun.elapsed())));
    let after = sample(&args.dir)?;
    let asked = |s: &Sample| s.numbers.requests.requests();
    row("requests to the store", asked(&after).saturating_sub(asked(&before)).to_string());
    Ok(())
}

fn failed(args: &BenchArgs, e: io::Error) -> Failure {
    Failure::new(Exit::General, format!("in {}: {e}", args.dir.display()))
}

fn row(what: &str, value: String) {
    println!("{what:34} {value}");
}

/// Measures and prints, until it is told to stop.
fn measure(args: &BenchArgs, at: &Path, show: &mut Show) -> Outcome {
    let failed = |e: io::Error| failed(args, e);
    let mut data = vec![0; PIECE];
    getrandom::fill(&mut data).map_err(|e| failed(io::Error::other(e.to_string())))?;
    show.say("making small files");
    let (took, _) = small(at, "a", (FILES, false), &data, show).map_err(failed)?;
    show.row("files of 4 KiB made", format!("{:.0} a second", rate(FILES, took)));
    show.say("making and syncing small files");
    let (_, mut times) = small(at, "b", (SYNCED, true), &data, show).map_err(failed)?;
    times.sort();
    let quantile = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    let (half, most) = (quantile(50), quantile(99));
    show.row("made and synced, one (50 %, 99 %)", format!("{} {}", ms(half), ms(most)));
    show.say("writing the large file");
    let large = at.join("large");
    let took = write(&large, args.size, &data, show).map_err(failed)?;
    show.row("large file written and synced", format!("{}/s", speed(args.size, took)));
    show.say("uploading");
    let begun = Instant::now();
    upload(&args.dir, show)?;
    show.row("then until all is in the bucket", format!("{:.1} s", begun.elapsed().as_secs_f64()));
    show.say("reading the large file");
    let took = read(&large, &mut data, show).map_err(failed)?;
    show.row("large file read, not from memory", format!("{}/s", speed(args.size, took)));
    show.say("listing");
    let begun = Instant::now();
    let found = fs::read_dir(at).map_err(failed)?.flatten();
    let found = found.filter(|entry| entry.metadata().is_ok()).count();
    show.row("listed with attributes", format!("{:.0} a second", rate(found, begun.elapsed())));
    show.say("removing");
    Ok(())
}

/// How far it is: a bar on a terminal, a line now and then elsewhere.
struct Show {
    bar: Option<ProgressBar>,
    lines: Lines,
    what: &'static str,
    steps: u64,
    done: u64,
}

impl Show {
    fn new(steps: u64) -> Show {
        let bar = bar("{msg:32} {bar:30} {percent} % {eta}");
        if let Some(bar) = &bar {
            bar.set_length(steps);
        }
        Show { bar, lines: Lines::new(Instant::now()), what: "", steps, done: 0 }
    }

    fn say(&mut self, what: &'static str) {
        self.what = what;
        if let Some(bar) = &self.bar {
            bar.set_message(what);
        }
    }

    /// A result, beside the bar.
    fn row(&self, what: &str, value: String) {
        match &self.bar {
            Some(bar) => bar.suspend(|| row(what, value)),
            None => row(what, value),
        }
    }

    /// A step is done, or something is waited for (`steps` 0).
    ///
    /// # Errors
    /// It was told to stop.
    fn step(&mut self, steps: u64) -> io::Result<()> {
        if stop::came() {
            return Err(io::Error::other("stopped"));
        }
        self.done += steps;
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None if self.lines.due(Instant::now()) => {
                let percent = self.done * 100 / self.steps.max(1);
                eprintln!("sealfs: {}, {percent} % done", self.what);
            }
            None => {}
        }
        Ok(())
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn sample(dir: &Path) -> Outcome<Sample> {
    match Client::connect(dir, true)?.ask(&Ask::Sample, |_| {})? {
        Say::Sample(sample) => Ok(*sample),
        _ => Err(Failure::answered_else()),
    }
}

fn upload(dir: &Path, show: &mut Show) -> Outcome {
    let ask = Ask::Sync { stall_secs: STALL_SECS };
    Client::connect(dir, true)?.ask_each(&ask, |say| match say {
        Say::Progress(_) => show.step(0).map(|()| None).map_err(|_| signals::stopped()),
        _ => Ok(Some(())),
    })
}

fn rate(n: usize, took: Duration) -> f64 {
    n as f64 / took.as_secs_f64().max(1e-6)
}

fn speed(bytes: u64, took: Duration) -> HumanBytes {
    HumanBytes((bytes as f64 / took.as_secs_f64().max(1e-6)) as u64)
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// Makes small files; the time of all, and of each.
fn small(
    dir: &Path,
    name: &str,
    (files, synced): (usize, bool),
    data: &[u8],
    show: &mut Show,
) -> io::Result<(Duration, Vec<Duration>)> {
    let (begun, mut times) = (Instant::now(), Vec::with_capacity(files));
    for n in 0..files {
        let one = Instant::now();
        let mut file = File::create(dir.join(format!("{name}{n}")))?;
        let at = n * 61 % (data.len() - SMALL);
        file.write_all(&data[at..at + SMALL])?;
        if synced {
            file.sync_all()?;
        }
        times.push(one.elapsed());
        show.step(if synced { 2 } else { 1 })?;
    }
    Ok((begun.elapsed(), times))
}

fn write(path: &Path, bytes: u64, data: &[u8], show: &mut Show) -> io::Result<Duration> {
    let begun = Instant::now();
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(data.len() as u64) as usize;
        file.write_all(&data[..piece])?;
        left -= piece as u64;
        show.step(1)?;
    }
    file.sync_all()?;
    Ok(begun.elapsed())
}

fn read(path: &Path, buffer: &mut [u8], show: &mut Show) -> io::Result<Duration> {
    let mut file = File::open(path)?;
    // SAFETY: the descriptor is open; advice changes no data.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let begun = Instant::now();
    while file.read(buffer)? > 0 {
        show.step(1)?;
    }
    Ok(begun.elapsed())
}
