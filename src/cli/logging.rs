//! Where log lines go: standard error in the foreground, the journal or syslog in the
//! background, or a file of bounded size.
//!
//! Lines never hold keys, names or contents of files. Libraries are kept to warnings: fuser,
//! for one, logs file names at its lower levels.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::base;
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use super::exit::{Exit, Failure, Outcome};
use super::user::own_uid;

/// A log file is renamed to `….old` (replacing the one before) when it reaches this size.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Where the lines go.
pub enum Target {
    /// Standard error: with times on a terminal, with `<3>` priorities under systemd.
    Stderr,
    /// syslog(3), which systemd's journal also reads; `fallback` where there is none.
    Syslog {
        /// A file for machines without a syslog socket.
        fallback: PathBuf,
    },
    /// A file, made readable by its owner only.
    File(PathBuf),
}

/// Whether a log can be written to `path`, while there is somebody to tell. Makes the file.
pub fn check(path: &Path) -> Outcome {
    let Err(e) = LogFile::open(path) else { return Ok(()) };
    let shown = path.display();
    let parent = path.parent().unwrap_or(path).display();
    let (why, hint) = match e.kind() {
        io::ErrorKind::NotFound => {
            (format!("there is no directory {parent}"), format!("mkdir -p {parent}"))
        }
        io::ErrorKind::IsADirectory => (
            "it is a directory".into(),
            format!("name a file in it: --log-file {shown}/sealfs.log"),
        ),
        io::ErrorKind::NotADirectory => {
            (format!("{parent} is not a directory"), format!("look at it: ls -ld {parent}"))
        }
        io::ErrorKind::PermissionDenied => (
            "you may not write there".into(),
            format!("name a place of your own: --log-file FILE; or look: ls -ld {parent} {shown}"),
        ),
        _ => (e.to_string(), format!("look at it: ls -ld {parent}")),
    };
    Err(Failure::new(Exit::General, format!("cannot log to {shown}: {why}")).hint(hint))
}

/// Installs the logger and has panics logged. Call once, after going to the background.
pub fn install(target: Target, level: LevelFilter) -> io::Result<()> {
    let sink = match target {
        Target::Stderr if std::env::var_os("JOURNAL_STREAM").is_some() => Sink::Priorities,
        Target::Stderr => Sink::Stderr,
        Target::File(path) => Sink::File(Mutex::new(LogFile::open(&path)?)),
        Target::Syslog { fallback } => match syslog() {
            Some(writer) => Sink::Syslog(Mutex::new(writer)),
            None => Sink::File(Mutex::new(LogFile::open(&fallback)?)),
        },
    };
    log::set_boxed_logger(Box::new(Logger { sink, level }))
        .map_err(|_| io::Error::other("a logger is installed already"))?;
    log::set_max_level(level);
    std::panic::set_hook(Box::new(|panic| log::error!("bug: {panic}")));
    Ok(())
}

type Syslog = syslog::Logger<syslog::LoggerBackend, syslog::Formatter3164>;

fn syslog() -> Option<Syslog> {
    syslog::unix(syslog::Formatter3164 {
        facility: syslog::Facility::LOG_DAEMON,
        hostname: None,
        process: "sealfs".into(),
        pid: std::process::id(),
    })
    .ok()
}

struct Logger {
    sink: Sink,
    level: LevelFilter,
}

enum Sink {
    Stderr,
    /// systemd's `<N>` prefixes (sd-daemon(3)), which adds the time itself.
    Priorities,
    Syslog(Mutex<Syslog>),
    File(Mutex<LogFile>),
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().split("::").next() == Some("sealfs");
        // What the AWS libraries warn of comes back as an error that we explain; their own words
        // are dumps of their structures.
        let is_aws = metadata.target().starts_with("aws_");
        let level = match (ours, is_aws && self.level < LevelFilter::Debug) {
            (true, _) => self.level,
            (false, true) => LevelFilter::Off,
            (false, false) => self.level.min(LevelFilter::Warn),
        };
        metadata.level() <= level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // One record is one line, whatever somebody else's text in it says.
        let text = base::one_line(&one_line(&record.args().to_string()));
        let level = record.level();
        // A log line that cannot be written has no better place to go.
        let _ = match &self.sink {
            Sink::Stderr => writeln!(io::stderr(), "{} {level:5} {text}", timestamp()),
            Sink::Priorities => writeln!(io::stderr(), "<{}>{text}", priority(level)),
            Sink::File(file) => file.lock().line(&format!("{} {level:5} {text}\n", timestamp())),
            Sink::Syslog(log) => {
                let mut log = log.lock();
                let sent = match level {
                    Level::Error => log.err(&text),
                    Level::Warn => log.warning(&text),
                    Level::Info => log.info(&text),
                    Level::Debug | Level::Trace => log.debug(&text),
                };
                sent.map_err(io::Error::other)
            }
        };
    }

    fn flush(&self) {}
}

/// A message as one line, since each line of a log stands alone: a hint goes behind its message.
fn one_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut out = lines.next().unwrap_or_default().to_owned();
    for line in lines {
        out += if line.starts_with("hint: ") { "; " } else { " | " };
        out += line;
    }
    out
}

/// The severities of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<LogFile> {
        // A link, or a file of somebody else's, could lead to anything that this user may write;
        // a pipe without a reader would hold the mount up.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o600).custom_flags(flags).open(path);
        let file = file.map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => io::Error::other("it is a symbolic link"),
            _ => e,
        })?;
        let meta = file.metadata()?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_char_device() {
            return Err(io::Error::other("it is neither a file nor a terminal"));
        }
        if kind.is_file() && meta.uid() != own_uid() {
            return Err(io::Error::other("it belongs to another user"));
        }
        let bytes = if kind.is_file() { meta.len() } else { 0 };
        Ok(LogFile { path: path.into(), file, bytes })
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        if self.bytes + line.len() as u64 > FILE_BYTES_MAX {
            let mut old = self.path.clone().into_os_string();
            old.push(".old");
            std::fs::rename(&self.path, old)?;
            *self = LogFile::open(&self.path)?;
        }
        self.bytes += line.len() as u64;
        self.file.write_all(line.as_bytes())
    }
}

/// The time now as `2026-11-22T02:30:00.123Z`.
fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (secs, ms) = (now.as_secs(), now.subsec_millis());
    let (year, month, day) = date_of_day(secs / 86_400);
    let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

/// The Gregorian date of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`).
pub fn date_of_day(day: u64) -> (u64, u64, u64) {
    let z = day + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_year - (153 * march_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_leap_years_are_right() {
        // Guards against log lines a day off after February.
        assert_eq!(date_of_day(0), (1970, 1, 1));
        assert_eq!(date_of_day(11_016), (2000, 2, 29));
        assert_eq!(date_of_day(11_017), (2000, 3, 1));
        assert_eq!(date_of_day(20_779), (2026, 11, 22));
    }

    #[test]
    fn a_log_file_never_grows_without_bound() {
        // Guards against a daemon that fills the disk with its log.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("log");
        let mut file = LogFile::open(&path).expect("opens");
        let line = format!("{}\n", "x".repeat(1 << 20));
        for _ in 0..20 {
            file.line(&line).expect("writes");
        }
        assert!(path.metadata().expect("exists").len() <= FILE_BYTES_MAX);
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 2);
    }

    #[test]
    fn a_log_goes_to_a_file_of_its_own_user_and_through_no_link() {
        // Guards against root's daemon appending to, or renaming, what a user has put there.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (log, link) = (dir.path().join("log"), dir.path().join("link"));
        std::os::unix::fs::symlink(&log, &link).expect("links");
        let why = |path: &Path| LogFile::open(path).err().map(|e| e.to_string());
        assert_eq!(why(&link).as_deref(), Some("it is a symbolic link"));
        assert!(!log.exists(), "nothing was made behind it");
        assert_eq!(why(&log), None);
        assert_eq!(why(Path::new("/dev/null")), None);
        if std::os::unix::fs::chown(&log, Some(65534), None).is_ok() {
            assert_eq!(why(&log).as_deref(), Some("it belongs to another user"));
        }
    }

    #[test]
    fn libraries_are_kept_to_warnings() {
        // Guards against fuser writing the names of files into the log at --log-level debug.
        let logger = Logger { sink: Sink::Stderr, level: LevelFilter::Trace };
        let enabled = |target, level| {
            logger.enabled(&Metadata::builder().target(target).level(level).build())
        };
        assert!(enabled("sealfs::fuse", Level::Trace));
        assert!(enabled("fuser::session", Level::Warn));
        assert!(!enabled("fuser::request", Level::Debug));
        assert!(!enabled("sealfs_other", Level::Info));
        let quiet = Logger { sink: Sink::Stderr, level: LevelFilter::Info };
        let provider = Metadata::builder().target("aws_config::meta").level(Level::Warn).build();
        assert!(!quiet.enabled(&provider) && logger.enabled(&provider));
    }

    #[test]
    fn each_message_is_one_line() {
        // Guards against a bare "hint:" line that belongs to nothing, and lines without a time.
        assert_eq!(one_line("denied\nhint: ask s3"), "denied; hint: ask s3");
        assert_eq!(one_line("bug\n\n  at x\n"), "bug | at x");
        assert_eq!(one_line(""), "");
    }
}
