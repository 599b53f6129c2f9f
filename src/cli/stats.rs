//! `sealfs stats` and `sealfs top`: what a mount is doing, second by second.
//!
//! Both ask the daemon for everything that it counts, again and again, and show the difference: a
//! line each time, or a page.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::HumanBytes;

use crate::base::{Spread, counted, one_line};
use crate::stack::{Connection, Requests};

use super::args::duration;
use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::out::print_json;
use super::protocol::{Ask, Sample, Say};

/// Lines of `stats` from one heading to the next.
const LINES_PER_HEADING: u64 = 20;
/// The shortest time between two looks.
const EVERY_MIN: Duration = Duration::from_millis(100);

/// What requests cost, in dollars for a million: S3 Standard in us-east-1, from
/// <https://aws.amazon.com/s3/pricing/> in November 2026. Deletion is free there; traffic and
/// storage are not counted.
const READ_COST: f64 = 0.40;
const WRITE_COST: f64 = 5.00;

/// Flags of `sealfs stats`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Columns: operations that the kernel asked for (it answers many from its own caches), their mean time
and the time that 99 of 100 stay below; contents read and written; reads of contents that memory or
the disk cache answered; what is only in the local journal; requests to the store, traffic, and
attempts that failed.

Examples:
  sealfs stats ~/vault
  sealfs stats --interval 10s --count 6 ~/vault
  sealfs stats --json ~/vault | jq .numbers.requests")]
pub struct StatsArgs {
    #[command(flatten)]
    watch: WatchArgs,
    /// Print everything that is counted since the mount began, once, as one JSON object
    #[arg(long, conflicts_with_all = ["interval", "count"])]
    json: bool,
}

/// Flags of `sealfs top`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs top ~/vault
  sealfs top --count 1 ~/vault > report")]
pub struct TopArgs {
    #[command(flatten)]
    watch: WatchArgs,
}

#[derive(Args, Clone, Debug)]
struct WatchArgs {
    /// Where it is mounted, or any directory in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Time between two looks, at least 100ms
    #[arg(long, short, value_name = "TIME", default_value = "1s", value_parser = duration)]
    interval: Duration,
    /// End after this many lines [default: never]
    #[arg(long, short, value_name = "N")]
    count: Option<u64>,
}

impl WatchArgs {
    fn sample(&self) -> Outcome<Sample> {
        match Client::connect(&self.dir, true)?.ask(&Ask::Sample, |_| {})? {
            Say::Sample(sample) => Ok(*sample),
            _ => Err(Failure::answered_else()),
        }
    }

    /// Shows what happened between each two looks, until it was shown often enough or `show` says
    /// that nobody reads it.
    fn watch(&self, mut show: impl FnMut(u64, &Interval<'_>) -> io::Result<()>) -> Outcome {
        let every = self.interval.max(EVERY_MIN);
        let (mut before, mut at) = (self.sample()?, Instant::now());
        for n in 0..self.count.unwrap_or(u64::MAX) {
            std::thread::sleep(every);
            let (now, then) = (self.sample()?, std::mem::replace(&mut at, Instant::now()));
            let interval = Interval { before: &before, now: &now, took: then.elapsed() };
            match show(n, &interval) {
                Ok(()) => {}
                // Whoever reads has enough, as `head` does.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(e) => return Err(Failure::new(Exit::General, format!("cannot print: {e}"))),
            }
            before = now;
        }
        Ok(())
    }
}

/// Runs `sealfs stats`.
pub fn run(args: StatsArgs) -> Outcome {
    if args.json {
        return print_json(&args.watch.sample()?);
    }
    args.watch.watch(|n, interval| {
        let mut out = io::stdout().lock();
        if n.is_multiple_of(LINES_PER_HEADING) {
            writeln!(out, "{HEADING}")?;
        }
        writeln!(out, "{}", line(interval))?;
        out.flush()
    })
}

/// Runs `sealfs top`.
pub fn top(args: TopArgs) -> Outcome {
    let is_terminal = io::stdout().is_terminal();
    args.watch.watch(|n, interval| {
        let mut out = io::stdout().lock();
        match (is_terminal, n) {
            // Home, and everything below it cleared: what is shown does not flicker.
            (true, _) => write!(out, "\x1b[H\x1b[J")?,
            (false, 0) => {}
            (false, _) => writeln!(out)?,
        }
        write!(out, "{}", page(interval))?;
        out.flush()
    })
}

/// Two looks at a mount.
struct Interval<'a> {
    before: &'a Sample,
    now: &'a Sample,
    took: Duration,
}

impl Interval<'_> {
    /// How much a counter grew a second. A mount that was started again meanwhile has grown by nothing.
    fn rate(&self, of: impl Fn(&Sample) -> u64) -> f64 {
        let grown = of(self.now).saturating_sub(of(self.before));
        grown as f64 / self.took.as_secs_f64().max(0.001)
    }

    fn bytes_rate(&self, of: impl Fn(&Sample) -> u64) -> String {
        short_bytes(self.rate(of) as u64)
    }

    /// Operations by name, with what was counted meanwhile.
    fn operations(&self) -> Vec<(&str, Spread, u64)> {
        let before = |name: &str| self.before.fuse.operations.iter().find(|o| o.name == name);
        let since = |operation: &'_ crate::fuse::Operation| match before(&operation.name) {
            Some(then) => {
                let failed = operation.failed.saturating_sub(then.failed);
                (operation.times.since(&then.times), failed)
            }
            None => (operation.times.clone(), operation.failed),
        };
        let all = self.now.fuse.operations.iter().map(|operation| {
            let (times, failed) = since(operation);
            (operation.name.as_str(), times, failed)
        });
        all.collect()
    }

    /// Requests to the store by kind, with what was counted meanwhile.
    fn requests(&self) -> Vec<(&str, Spread)> {
        let before = &self.before.numbers.request_times;
        let now = self.now.numbers.request_times.iter();
        now.map(|(kind, times)| {
            let then = before.iter().find(|(name, _)| name == kind);
            (kind.as_str(), then.map_or_else(|| times.clone(), |(_, then)| times.since(then)))
        })
        .collect()
    }

    /// Shares of the reads that memory answered, and of the rest that the disk cache did.
    fn hits(&self) -> (Option<f64>, Option<f64>) {
        let grown = |of: fn(&Sample) -> u64| of(self.now).saturating_sub(of(self.before));
        (
            share(grown(|s| s.numbers.memory_hits), grown(|s| s.numbers.memory_misses)),
            share(
                grown(|s| s.numbers.requests.cache_hits),
                grown(|s| s.numbers.requests.cache_misses),
            ),
        )
    }
}

fn share(hits: u64, misses: u64) -> Option<f64> {
    (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64)
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.0}%", share * 100.0))
}

fn joined(spreads: impl Iterator<Item = Spread>) -> Spread {
    let mut all = Spread::default();
    for spread in spreads {
        all.counts.resize(all.counts.len().max(spread.counts.len()), 0);
        all.counts.iter_mut().zip(&spread.counts).for_each(|(sum, n)| *sum += n);
        all.sum_secs += spread.sum_secs;
    }
    all
}

/// A time in few columns: `12us`, `3.4ms`, `1.2s`.
fn short_time(time: Option<Duration>) -> String {
    match time {
        None => "-".into(),
        Some(t) if t < Duration::from_millis(1) => format!("{}us", t.as_micros()),
        Some(t) if t < Duration::from_millis(10) => format!("{:.1}ms", t.as_secs_f64() * 1e3),
        Some(t) if t < Duration::from_secs(1) => format!("{}ms", t.as_millis()),
        Some(t) => format!("{:.1}s", t.as_secs_f64()),
    }
}

/// Bytes in few columns: `0`, `812`, `3.4M`, in powers of 1024.
fn short_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "K", "M", "G", "T"] {
        if value < 999.5 {
            let digits = usize::from(value < 9.95 && !unit.is_empty());
            return format!("{value:.digits$}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.0}P")
}

/// The columns of [`line`].
const HEADING: &str = "\
------- operations ------- ----- cached ------ -- journal --- ---------- store -----------
  ops/s   mean    99%  read write  memory disk  pending   age  get/s put/s recv sent errors";

/// What happened in one interval, in the columns of [`HEADING`].
fn line(i: &Interval<'_>) -> String {
    let all = joined(i.operations().into_iter().map(|(_, times, _)| times));
    let (memory, disk) = i.hits();
    let status = &i.now.numbers.status;
    let reads = i.rate(|s| s.numbers.requests.get + s.numbers.requests.head);
    let writes = i.rate(|s| {
        let requests = &s.numbers.requests;
        requests.put + requests.multipart + requests.list + requests.delete
    });
    format!(
        "{:7.0} {:>6} {:>6} {:>5} {:>5} {:>7} {:>4} {:>8} {:>5} {:6.0} {:5.0} {:>4} {:>4} {:>6}{}",
        all.count() as f64 / i.took.as_secs_f64().max(0.001),
        short_time(all.mean()),
        short_time(all.quantile(0.99)),
        i.bytes_rate(|s| s.fuse.read_bytes),
        i.bytes_rate(|s| s.fuse.written_bytes),
        percent(memory),
        percent(disk),
        short_bytes(status.progress.pending_bytes),
        status.oldest_pending_secs.map_or_else(|| "-".into(), |age| format!("{age:.0}s")),
        reads,
        writes,
        i.bytes_rate(|s| s.numbers.requests.bytes_down),
        i.bytes_rate(|s| s.numbers.requests.bytes_up),
        i.now.numbers.requests.errors.saturating_sub(i.before.numbers.requests.errors),
        state_mark(&status.connection),
    )
}

/// What is not as usual, behind the columns.
fn state_mark(connection: &Connection) -> &'static str {
    match connection {
        Connection::Online => "",
        Connection::Offline { .. } => "  offline",
        Connection::Fenced => "  fenced",
        Connection::ReadOnly => "  read-only",
    }
}

/// What requests have cost since the mount, in dollars.
fn cost(requests: &Requests) -> f64 {
    let reads = requests.get + requests.head;
    let writes = requests.put + requests.multipart + requests.list;
    (reads as f64 * READ_COST + writes as f64 * WRITE_COST) / 1e6
}

/// Everything that `sealfs top` shows.
fn page(i: &Interval<'_>) -> String {
    let mut out = String::new();
    head(i, &mut out);
    operations(i, &mut out);
    requests(i, &mut out);
    for warning in &i.now.numbers.status.warnings {
        put(&mut out, format_args!("warning: {}", one_line(warning)));
    }
    out
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("a String takes everything");
}

fn head(i: &Interval<'_>, out: &mut String) {
    let numbers = &i.now.numbers;
    let (status, size) = (&numbers.status, HumanBytes);
    let state = match &status.connection {
        Connection::Online => "online".into(),
        Connection::Offline { reason, .. } => format!("offline: {}", one_line(reason)),
        Connection::Fenced => "fenced: another mount has the volume".into(),
        Connection::ReadOnly => "read-only".into(),
    };
    put(
        out,
        format_args!("{} on {}, {state}", one_line(&status.store), one_line(&status.mount_point)),
    );
    let progress = &status.progress;
    let waits = match status.oldest_pending_secs {
        Some(age) => format!(
            "{} in {}, the oldest for {age:.1} s; {} of it sent",
            size(progress.pending_bytes),
            counted(progress.pending_files, "file"),
            size(progress.sent_bytes)
        ),
        None => "nothing".into(),
    };
    put(out, format_args!("pending   {waits}"));
    put(
        out,
        format_args!(
            "journal   {} of {}",
            size(status.journal_bytes),
            size(status.journal_bytes_max)
        ),
    );
    let (memory, disk) = i.hits();
    put(
        out,
        format_args!(
            "cache     {} of {}; of the reads {} from memory, of the rest {} from disk",
            size(status.cache_bytes),
            size(status.cache_bytes_max),
            percent(memory),
            percent(disk)
        ),
    );
    put(
        out,
        format_args!(
            "contents  {}/s read, {}/s written; store {}/s received, {}/s sent",
            i.bytes_rate(|s| s.fuse.read_bytes),
            i.bytes_rate(|s| s.fuse.written_bytes),
            i.bytes_rate(|s| s.numbers.requests.bytes_down),
            i.bytes_rate(|s| s.numbers.requests.bytes_up),
        ),
    );
    put(out, format_args!("memory    {}", size(status.resident_bytes)));
}

/// A line of how often something was done in `secs`, and how long it took; `last` is its last column.
fn timed(out: &mut String, name: &str, times: &Spread, secs: f64, last: u64) {
    put(
        out,
        format_args!(
            "{name:16} {:10.1} {:>7} {:>7} {:>7} {last:>7}",
            times.count() as f64 / secs,
            short_time(times.mean()),
            short_time(times.quantile(0.5)),
            short_time(times.quantile(0.99)),
        ),
    );
}

fn operations(i: &Interval<'_>, out: &mut String) {
    let secs = i.took.as_secs_f64().max(0.001);
    put(out, format_args!("\noperation             per s    mean     50%     99%  failed"));
    let mut rows = i.operations();
    rows.retain(|(_, times, _)| times.count() > 0);
    rows.sort_by_key(|(_, times, _)| std::cmp::Reverse(times.count()));
    for (name, times, failed) in rows {
        timed(out, name, &times, secs, failed);
    }
}

fn requests(i: &Interval<'_>, out: &mut String) {
    let secs = i.took.as_secs_f64().max(0.001);
    put(out, format_args!("\nrequest               per s    mean     50%     99%  in all"));
    for (kind, times) in i.requests() {
        let all = i.now.numbers.request_times.iter().find(|(name, _)| name == kind);
        timed(out, kind, &times, secs, all.map_or(0, |(_, all)| all.count()));
    }
    let status = &i.now.numbers.status;
    put(
        out,
        format_args!(
            "{} failed, {} repeated; requests have cost about ${:.4} since the mount (at the prices of \
             S3 Standard in us-east-1, without traffic and storage)",
            status.requests.errors,
            status.requests.retries,
            cost(&status.requests)
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_their_columns() {
        // Guards against lines that run out of their columns just when much happens.
        let times = [0u64, 999, 9_999, 10_000, 999_999, 1_000_000, 134_000_000];
        let shown: Vec<_> =
            times.iter().map(|&us| short_time(Some(Duration::from_micros(us)))).collect();
        assert_eq!(shown, ["0us", "999us", "10.0ms", "10ms", "999ms", "1.0s", "134.0s"]);
        assert_eq!(short_time(None), "-");
        let bytes = [0, 999, 1000, 10_240, 1 << 20, 1023 << 20, 5 << 40];
        let shown: Vec<_> = bytes.iter().map(|&bytes| short_bytes(bytes)).collect();
        assert_eq!(shown, ["0", "999", "1.0K", "10K", "1.0M", "1.0G", "5.0T"]);
        assert!(bytes.iter().all(|&bytes| short_bytes(bytes).len() <= 4));
        assert_eq!((percent(None), percent(share(1, 2))), ("-".into(), "33%".into()));
    }

    #[test]
    fn requests_cost_by_their_kind() {
        // Guards against an estimate that takes the price of a GET for a PUT, an order less.
        let requests = Requests { get: 1_000_000, delete: 7_000_000, ..Requests::default() };
        assert_eq!(cost(&requests), 0.40);
        let requests = Requests { put: 1_000_000, list: 1_000_000, ..Requests::default() };
        assert_eq!(cost(&requests), 10.0);
    }
}
