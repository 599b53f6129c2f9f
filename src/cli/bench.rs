//! `sealfs bench`: what a mount gives on this machine and this line, in a minute.
//!
//! Works in a directory of its own on the mount, which it removes, with data that do not compress.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::HumanBytes;

use super::args::size;
use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::protocol::{Ask, Sample, Say};

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
It writes and reads in a directory of its own there, and removes it. Numbers that wait for the store depend on
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
    let failed =
        |e: io::Error| Failure::new(Exit::General, format!("in {}: {e}", args.dir.display()));
    let made = tempfile::Builder::new().prefix("sealfs-bench-").tempdir_in(&args.dir);
    let made = made.map_err(failed)?;
    let mut data = vec![0; PIECE];
    getrandom::fill(&mut data).map_err(|e| failed(io::Error::other(e.to_string())))?;
    let row = |what: &str, value: String| println!("{what:34} {value}");
    let (took, _) = small(made.path(), "a", FILES, false, &data).map_err(failed)?;
    row("files of 4 KiB made", format!("{:.0} a second", rate(FILES, took)));
    let (_, mut times) = small(made.path(), "b", SYNCED, true, &data).map_err(failed)?;
    times.sort();
    let quantile = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    let (half, most) = (quantile(50), quantile(99));
    row("made and synced, one (50 %, 99 %)", format!("{} {}", ms(half), ms(most)));
    let large = made.path().join("large");
    let took = write(&large, args.size, &data).map_err(failed)?;
    row("large file written and synced", format!("{}/s", speed(args.size, took)));
    let begun = Instant::now();
    upload(&args.dir)?;
    row("then until all is in the bucket", format!("{:.1} s", begun.elapsed().as_secs_f64()));
    let took = read(&large, &mut data).map_err(failed)?;
    row("large file read, not from memory", format!("{}/s", speed(args.size, took)));
    let begun = Instant::now();
    let found = fs::read_dir(made.path()).map_err(failed)?.flatten();
    let found = found.filter(|entry| entry.metadata().is_ok()).count();
    row("listed with attributes", format!("{:.0} a second", rate(found, begun.elapsed())));
    let begun = Instant::now();
    made.close().map_err(failed)?;
    row("removed", format!("{:.0} a second", rate(found, begun.elapsed())));
    let after = sample(&args.dir)?;
    let asked = |s: &Sample| s.numbers.requests.requests();
    row("requests to the store", asked(&after).saturating_sub(asked(&before)).to_string());
    Ok(())
}

fn sample(dir: &Path) -> Outcome<Sample> {
    match Client::connect(dir, true)?.ask(&Ask::Sample, |_| {})? {
        Say::Sample(sample) => Ok(*sample),
        _ => Err(Failure::new(Exit::General, "the mount process answered something else")),
    }
}

fn upload(dir: &Path) -> Outcome {
    let ask = Ask::Sync { stall_secs: STALL_SECS };
    Client::connect(dir, true)?.ask(&ask, |_| {}).map(drop)
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
    files: usize,
    synced: bool,
    data: &[u8],
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
    }
    Ok((begun.elapsed(), times))
}

fn write(path: &Path, bytes: u64, data: &[u8]) -> io::Result<Duration> {
    let begun = Instant::now();
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(data.len() as u64) as usize;
        file.write_all(&data[..piece])?;
        left -= piece as u64;
    }
    file.sync_all()?;
    Ok(begun.elapsed())
}

fn read(path: &Path, buffer: &mut [u8]) -> io::Result<Duration> {
    let mut file = File::open(path)?;
    // SAFETY: the descriptor is open; advice changes no data.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let begun = Instant::now();
    while file.read(buffer)? > 0 {}
    Ok(begun.elapsed())
}
