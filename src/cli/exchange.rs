//! What `import` and `export` share: their flags, the volume's side, progress, and the report.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::parser::ArgMatches;
use clap::{Arg, ArgAction, Args, Command, FromArgMatches};
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use parking_lot::Mutex;

use super::args::rate;
use super::exit::{Exit, Failure, GOES_ON, Outcome};
use super::progress::{Lines, bar};
use super::signals::{LOOK_EVERY, Signals};
use super::stop;
use crate::base::{counted, one_line};
use crate::exchange::{
    Bucket, BucketPath, Event, ExchangeError, Filter, Options, Progress, Report, Run,
};
use crate::store::s3::{S3Options, SecretKey32, SseMode, connect, input};
use crate::store::{ErrorClass, Limits, Rate, class};
use std::collections::BTreeMap;

/// Streams at a time, by default and at most.
const PARALLEL: usize = 16;
const PARALLEL_MAX: usize = 256;
/// Failures and odd names that are said one by one.
const SAID_MAX: u64 = 100;

/// Which files, and how.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    rules: Rules,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Delete at the target what the source does not have (and the filters take)
    #[arg(long)]
    delete: bool,
    /// Compare contents where size and time are the same
    #[arg(long)]
    checksum: bool,
    /// Files, or parts of large ones, that move at a time
    #[arg(long, value_name = "N", default_value_t = PARALLEL, value_parser = parallel)]
    parallel: usize,
    /// Most bytes a second that move, 64K at least; 0: no limit
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = rate)]
    rate: u64,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

fn parallel(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=PARALLEL_MAX) => Ok(n),
        _ => Err(format!("a number from 1 to {PARALLEL_MAX}")),
    }
}

/// `--include` and `--exclude` in the order in which they were given.
#[derive(Clone, Debug, Default)]
struct Rules(Vec<(bool, String)>);

impl FromArgMatches for Rules {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Rules, clap::Error> {
        let mut found = Vec::new();
        for (name, include) in [("include", true), ("exclude", false)] {
            let places = matches.indices_of(name).into_iter().flatten();
            let patterns = matches.get_many::<String>(name).into_iter().flatten();
            found.extend(places.zip(patterns).map(|(at, text)| (at, (include, text.clone()))));
        }
        found.sort_by_key(|(at, _)| *at);
        Ok(Rules(found.into_iter().map(|(_, rule)| rule).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Rules::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Rules {
    fn augment_args(command: Command) -> Command {
        let rule = |name: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name("PATTERN").action(ArgAction::Append).help(help)
        };
        command
            .arg(rule(
                "include",
                "Take files that match, as rclone has it (*.jpg, /top/**, dir/); with one of these, \
                 what no rule names is left out. The first rule that matches decides",
            ))
            .arg(rule("exclude", "Leave out files that match; may be repeated, as --include"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Rules::augment_args(command)
    }
}

impl RunArgs {
    /// What the run is asked for.
    pub fn options(&self, strict: bool, metadata: bool) -> Outcome<Options> {
        let rules = self.rules.0.iter().map(|(include, text)| (*include, text.as_str()));
        let filter = Filter::new(rules).map_err(|e| {
            Failure::new(Exit::Usage, e).hint("the patterns are those of rclone: *.jpg, /top/**")
        })?;
        let limit = Rate::default();
        limit.set(self.rate);
        Ok(Options {
            filter,
            parallel: self.parallel,
            rate: Arc::new(limit),
            dry_run: self.dry_run,
            delete: self.delete,
            checksum: self.checksum,
            strict,
            metadata,
        })
    }
}

/// Lets this process have as many files open as it may: each stream takes a connection, a file and the directory
/// that it is in, and by default a process may have 1024.
pub fn open_many_files() {
    // SAFETY: both calls take a structure that lives as long as they do.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit); // else it stays as it is
        }
    }
}

/// How a bucket of somebody else's is reached.
pub struct BucketAsk<'a> {
    /// How its flags begin: `--source` or `--target`.
    pub flag: &'static str,
    /// `s3://BUCKET[/PREFIX]`.
    pub url: &'a str,
    /// Server other than AWS.
    pub endpoint: Option<&'a str>,
    /// Region.
    pub region: Option<&'a str>,
    /// Profile.
    pub profile: Option<&'a str>,
    /// Plain http to other machines.
    pub allow_http: bool,
    /// Encryption of what is written.
    pub sse: SseMode,
    /// Customer keys to read with.
    pub read_keys: Vec<SecretKey32>,
    /// Tags of what is written.
    pub tags: BTreeMap<String, String>,
    /// How fast bytes go.
    pub limits: Arc<Limits>,
}

impl BucketAsk<'_> {
    /// Connects; makes no request.
    pub async fn connect(self) -> Outcome<Bucket> {
        let usage = |e: String| Failure::new(Exit::Usage, e);
        let path: BucketPath = self.url.parse().map_err(usage)?;
        if let Some(url) = self.endpoint.filter(|url| !url.is_empty()) {
            input::endpoint("the endpoint", url)
                .map_err(|e| usage(format!("{}: {e}", self.flag)))?;
        }
        let store = connect(S3Options {
            endpoint_url: self.endpoint.filter(|url| !url.is_empty()).map(str::to_owned),
            region: self.region.map(str::to_owned),
            profile: self.profile.map(str::to_owned),
            allow_http: self.allow_http,
            sse: self.sse,
            read_keys: self.read_keys,
            object_tags: self.tags,
            limits: self.limits,
            ..S3Options::new(path.bucket, "")
        })
        .await
        .map_err(|e| usage(e.to_string()))?;
        Ok(Bucket { store, prefix: path.prefix })
    }
}

/// Shows how far a run is, and says what happens beside the bar.
pub struct Show {
    /// Standard output is for JSON alone.
    json: bool,
    bar: Option<ProgressBar>,
    lines: Mutex<Lines>,
    said: Mutex<u64>,
    begun: Instant,
}

impl Show {
    /// Nothing is shown yet.
    pub fn new(args: &RunArgs) -> Arc<Show> {
        let template = "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        let lines = Mutex::new(Lines::new(Instant::now()));
        let (json, said) = (args.json, Mutex::new(0));
        Arc::new(Show { json, bar: bar(template), lines, said, begun: Instant::now() })
    }

    /// Says what happens.
    pub fn say(&self, event: &Event) {
        let text = match event {
            Event::Would(what, name) if self.json => format!("would {what} {}", one_line(name)),
            Event::Would(what, name) => {
                println!("would {what} {}", one_line(name));
                return;
            }
            Event::Failed(name, why) => format!("{}: {}", one_line(name), one_line(why)),
            Event::Gone(name) => format!("note: {} was removed meanwhile", one_line(name)),
            Event::Odd(key, path, why) => {
                format!("note: {} becomes {}: {why}", one_line(key), one_line(path))
            }
            Event::Note(text) => format!("note: {text}"),
        };
        // What a dry run is for, and what is said once, is never too much.
        if matches!(event, Event::Would(..) | Event::Note(_)) {
            return self.print(&text);
        }
        let mut said = self.said.lock();
        *said += 1;
        match *said {
            ..=SAID_MAX => self.print(&text),
            n if n == SAID_MAX + 1 => self.print("and more: --json lists them"),
            _ => {}
        }
    }

    /// A line on standard error, beside the bar.
    fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("sealfs: {text}")),
            None => eprintln!("sealfs: {text}"),
        }
    }

    fn look(&self, p: &Progress) {
        if let Some(bar) = &self.bar {
            bar.set_length(p.bytes_all);
            bar.set_position(p.bytes.min(p.bytes_all));
            bar.set_message(format!("{}/{}", HumanCount(p.files), HumanCount(p.files_all)));
        } else if self.lines.lock().due(Instant::now()) {
            eprintln!("sealfs: {}", line(p, self.begun.elapsed().as_secs_f64()));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `12 of 100 files, 3 MiB of 40 MiB, 2 MiB/s, 18 s left`.
fn line(p: &Progress, secs: f64) -> String {
    if p.files_all == 0 {
        return "listing".into();
    }
    let speed = p.bytes as f64 / secs.max(1e-3);
    let left = match p.bytes {
        0 => String::new(),
        _ => format!(", {:.0} s left", p.bytes_all.saturating_sub(p.bytes) as f64 / speed),
    };
    format!(
        "{} of {}, {} of {}, {}/s{left}",
        p.files,
        counted(p.files_all, "file"),
        HumanBytes(p.bytes.min(p.bytes_all)),
        HumanBytes(p.bytes_all),
        HumanBytes(speed as u64)
    )
}

/// Runs `work` to its end, shows progress, and stops it at a signal; a second one ends it at once.
pub async fn drive(
    run: &Arc<Run>,
    show: &Show,
    work: impl Future<Output = Result<(), ExchangeError>> + Send + 'static,
) -> Outcome {
    let mut signals = Signals::listen()?;
    if stop::came() {
        run.stop(); // while the volume was being mounted
        // The same one, if it came just now, is no second.
        let _ = tokio::time::timeout(LOOK_EVERY, signals.next()).await;
    }
    let mut work = tokio::spawn(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            _ = signals.next() => {
                if run.is_stopped() {
                    work.abort();
                    show.end();
                    return Err(stopped());
                }
                run.stop();
            }
            () = tokio::time::sleep(LOOK_EVERY) => show.look(&run.progress()),
        }
    };
    show.end();
    stop::forget(); // while somebody listens: what comes from here on is another
    match done {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(failure(e)),
        Err(e) => Err(Failure::new(Exit::General, format!("a task of this command ended: {e}"))),
    }
}

fn stopped() -> Failure {
    Failure::new(Exit::Stopped, ExchangeError::Stopped).hint(GOES_ON)
}

/// What ended a run, with its status.
pub fn failure(e: ExchangeError) -> Failure {
    match &e {
        ExchangeError::Stopped => stopped(),
        ExchangeError::Refused(_) => Failure::new(Exit::Usage, e),
        ExchangeError::Keys(_) => Failure::new(Exit::Unreachable, e),
        ExchangeError::Local { .. } => Failure::new(Exit::General, e).hint(GOES_ON),
        ExchangeError::Store(cause) => {
            let exit = match class(cause) {
                ErrorClass::Transport
                | ErrorClass::Untrusted
                | ErrorClass::Foreign
                | ErrorClass::Throttled
                | ErrorClass::Auth
                | ErrorClass::NoBucket => Exit::Unreachable,
                ErrorClass::SseMismatch => Exit::NotAsRequested,
                _ => Exit::General,
            };
            let failure = Failure::new(exit, &e);
            match failure.hint {
                Some(_) => failure,
                None => failure.hint(
                    "check the address, the credentials and the network; the same command goes on \
                     from where this one ended",
                ),
            }
        }
    }
}

/// Prints what was done, and says whether all of it was.
pub fn report(args: &RunArgs, report: &Report, took: Instant, outcome: Outcome) -> Outcome {
    let secs = took.elapsed().as_secs_f64();
    if args.json {
        let mut value = serde_json::to_value(report)
            .map_err(|e| Failure::new(Exit::General, format!("cannot write JSON: {e}")))?;
        value["seconds"] = serde_json::json!((secs * 1e3).round() / 1e3);
        value["complete"] = serde_json::json!(outcome.is_ok() && report.failed == 0);
        println!("{value}");
    } else if outcome.is_ok() || report.has_done_anything() {
        let would = if report.dry_run { "would have been " } else { "" };
        println!("{}", sentence(report, would, secs));
        for (what, n) in &report.lost {
            println!("lost: {n} {what}");
        }
        if !report.renamed.is_empty() {
            let n = counted(report.renamed.len() as u64, "key");
            println!("{n} could not be paths and got names that say so");
        }
    }
    outcome?;
    match report.failed {
        0 => Ok(()),
        n => {
            let first = report.failures.first();
            let first = first.map(|f| format!("; the first: {}: {}", f.name, f.why));
            let what = format!("{} failed{}", counted(n, "file"), first.unwrap_or_default());
            Err(Failure::new(Exit::Partly, what)
                .hint("the others are there; the same command tries those again"))
        }
    }
}

fn sentence(report: &Report, would: &str, secs: f64) -> String {
    let mut parts = vec![format!(
        "{} ({}) {would}{}ed",
        counted(report.files, "file"),
        HumanBytes(report.bytes),
        report.command
    )];
    let counts = [
        (report.others, "directories and links"),
        (report.unchanged, "unchanged"),
        (report.deleted, "deleted"),
        (report.vanished, "removed meanwhile"),
        (report.failed, "failed"),
    ];
    parts.extend(counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    if report.bytes > 0 && !report.dry_run && secs > 0.0 {
        let speed = HumanBytes((report.bytes as f64 / secs) as u64);
        parts.push(format!("{speed}/s, {:.0} files/s", report.files as f64 / secs));
    }
    parts.join(", ")
}

/// A relative path as the command line gives it, without a way out.
pub fn below(text: &Path) -> Outcome<PathBuf> {
    let mut path = PathBuf::new();
    for part in text.components() {
        match part {
            std::path::Component::Normal(name) => path.push(name),
            std::path::Component::CurDir | std::path::Component::RootDir => {}
            _ => {
                let what = format!("{} leads out of the volume", text.display());
                return Err(Failure::new(Exit::Usage, what));
            }
        }
    }
    Ok(path)
}
