//! Where log lines go: standard error in the foreground, systemd's journal or syslog in the
//! background, or a file of bounded size.
//!
//! A file that somebody else renames or removes, as logrotate does, is made again within a second; one
//! that is truncated goes on from its start.
//!
//! Lines never hold keys, names or contents of files. Libraries are kept to warnings: fuser,
//! for one, logs file names at its lower levels.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::base;
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use super::exit::{Exit, Failure, Outcome};
use super::storm::Storms;

/// A log file is renamed to `….old` (replacing the one before) when it reaches this size.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// How often it is looked whether somebody else has renamed or truncated it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a storm of lines is summed up.
pub const TICK: Duration = Duration::from_secs(60);
/// Where systemd's journal takes messages with fields (systemd.journal-fields(7)).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Words for people.
    Text,
    /// One JSON object.
    Json,
}

/// Where the lines go.
pub enum Target {
    /// Standard error: with times on a terminal, with `<3>` priorities under systemd.
    Stderr,
    /// systemd's journal, else syslog(3); `fallback` where there is neither.
    System {
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

/// Installs the logger and has panics logged. Call once, after going to the background. The lines are
/// about the mount on `point`.
pub fn install(target: Target, format: Format, level: LevelFilter, point: &Path) -> io::Result<()> {
    let sink = match target {
        Target::Stderr if std::env::var_os("JOURNAL_STREAM").is_some() => Sink::Priorities,
        Target::Stderr => Sink::Stderr,
        Target::File(path) => Sink::File(Mutex::new(LogFile::open(&path)?)),
        Target::System { fallback } => match (journal(Path::new(JOURNAL)), syslog()) {
            (Some(journal), _) => Sink::Journal(journal),
            (None, Some(writer)) => Sink::Syslog(Mutex::new(writer)),
            (None, None) => Sink::File(Mutex::new(LogFile::open(&fallback)?)),
        },
    };
    let point = base::one_line(&point.display().to_string());
    let logger = Logger { sink, format, point, storms: Mutex::default() };
    log::set_boxed_logger(Box::new(logger))
        .map_err(|_| io::Error::other("a logger is installed already"))?;
    log::set_max_level(level);
    std::panic::set_hook(Box::new(|panic| log::error!("bug: {panic}")));
    Ok(())
}

/// Sums up storms of lines for ever.
pub async fn keep_quiet() {
    loop {
        tokio::time::sleep(TICK).await;
        log::logger().flush();
    }
}

/// A way to systemd's journal, if it runs.
fn journal(path: &Path) -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(path).ok()?;
    Some(socket)
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
    format: Format,
    /// The mount point, as lines with fields name it.
    point: String,
    storms: Mutex<Storms>,
}

enum Sink {
    Stderr,
    /// systemd's `<N>` prefixes (sd-daemon(3)), which adds the time itself.
    Priorities,
    /// systemd's journal, in its own protocol.
    Journal(UnixDatagram),
    Syslog(Mutex<Syslog>),
    File(Mutex<LogFile>),
}

/// Whether `level` lets a line through.
fn allows(level: LevelFilter, metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().split("::").next() == Some("sealfs");
    // What the AWS libraries warn of comes back as an error that we explain; their own words
    // are dumps of their structures.
    let is_aws = metadata.target().starts_with("aws_");
    let level = match (ours, is_aws && level < LevelFilter::Debug) {
        (true, _) => level,
        (false, true) => LevelFilter::Off,
        (false, false) => level.min(LevelFilter::Warn),
    };
    metadata.level() <= level
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        allows(log::max_level(), metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // One record is one line, whatever somebody else's text in it says.
        let text = base::one_line(&one_line(&record.args().to_string()));
        let level = record.level();
        let site = (record.file_static().unwrap_or_default(), record.line().unwrap_or(0));
        // Details are only logged on request, and then all of them.
        if level <= Level::Info && !self.storms.lock().admit(site, level, &text) {
            return;
        }
        self.write(level, record.target(), &text);
    }

    /// Sums up the lines that were held back.
    fn flush(&self) {
        let summaries = self.storms.lock().tick();
        for (level, text) in summaries {
            self.write(level, module_path!(), &text);
        }
    }
}

impl Logger {
    fn write(&self, level: Level, target: &str, text: &str) {
        let line = match self.format {
            Format::Text => text.to_owned(),
            Format::Json => self.json(level, target, text),
        };
        let timed = || match self.format {
            Format::Text => format!("{} {level:5} {line}\n", timestamp()),
            Format::Json => format!("{line}\n"),
        };
        // A log line that cannot be written has no better place to go.
        let _ = match &self.sink {
            Sink::Stderr => io::stderr().write_all(timed().as_bytes()),
            Sink::Priorities => writeln!(io::stderr(), "<{}>{line}", priority(level)),
            Sink::File(file) => file.lock().line(&timed()),
            Sink::Journal(journal) => journal.send(&self.fields(level, target, &line)).map(drop),
            Sink::Syslog(log) => {
                let mut log = log.lock();
                let sent = match level {
                    Level::Error => log.err(&line),
                    Level::Warn => log.warning(&line),
                    Level::Info => log.info(&line),
                    Level::Debug | Level::Trace => log.debug(&line),
                };
                sent.map_err(io::Error::other)
            }
        };
    }

    fn json(&self, level: Level, target: &str, text: &str) -> String {
        let (message, hint) = message_and_hint(text);
        let mut fields = serde_json::json!({
            "time": timestamp(),
            "level": level.as_str().to_ascii_lowercase(),
            "target": target,
            "mount": self.point,
            "pid": std::process::id(),
            "message": message,
        });
        if let Some(hint) = hint {
            fields["hint"] = hint.into();
        }
        base::plain_json(&fields.to_string())
    }

    /// A message to systemd's journal: fields, each a line, since no value has a line break.
    fn fields(&self, level: Level, target: &str, line: &str) -> Vec<u8> {
        let mut fields = format!(
            "MESSAGE={line}\nPRIORITY={}\nSYSLOG_IDENTIFIER=sealfs\nSYSLOG_FACILITY=3\n\
             SEALFS_MOUNT={}\nSEALFS_TARGET={target}\n",
            priority(level),
            self.point,
        );
        if let (Format::Text, (_, Some(hint))) = (self.format, message_and_hint(line)) {
            fields += &format!("SEALFS_HINT={hint}\n");
        }
        fields.into_bytes()
    }
}

/// What failed, and what to do about it, of a message that has both.
fn message_and_hint(text: &str) -> (&str, Option<&str>) {
    match text.split_once("; hint: ") {
        Some((message, hint)) => (message, Some(hint)),
        None => (text, None),
    }
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
    looked: Instant,
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
        if kind.is_file() && meta.uid() != base::own_uid() {
            return Err(io::Error::other("it belongs to another user"));
        }
        let bytes = if kind.is_file() { meta.len() } else { 0 };
        Ok(LogFile { path: path.into(), file, bytes, looked: Instant::now() })
    }

    /// Follows what others have done to the file: renamed or removed, it is made again.
    fn look(&mut self) -> io::Result<()> {
        self.looked = Instant::now();
        let ours = self.file.metadata()?;
        if !ours.file_type().is_file() {
            return Ok(());
        }
        self.bytes = ours.len();
        let there = self.path.symlink_metadata();
        match there {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            // Until it can be had again, the lines go where they went.
            _ => LogFile::open(&self.path).map(|file| *self = file),
        }
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        if self.looked.elapsed() >= LOOK_EVERY {
            let _ = self.look();
        }
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
    let (year, month, day) = crate::base::date_of_day(secs / 86_400);
    let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let enabled = |level, target, of| {
            allows(level, &Metadata::builder().target(target).level(of).build())
        };
        let all = LevelFilter::Trace;
        assert!(enabled(all, "sealfs::fuse", Level::Trace));
        assert!(enabled(all, "fuser::session", Level::Warn));
        assert!(!enabled(all, "fuser::request", Level::Debug));
        assert!(!enabled(all, "sealfs_other", Level::Info));
        assert!(!enabled(LevelFilter::Info, "aws_config::meta", Level::Warn));
        assert!(enabled(all, "aws_config::meta", Level::Warn));
    }

    fn logger(sink: Sink, format: Format) -> Logger {
        Logger { sink, format, point: "/mnt/v".into(), storms: Mutex::default() }
    }

    #[test]
    fn a_log_file_that_was_rotated_is_made_again() {
        // Guards against a daemon that writes for weeks into a file that logrotate has renamed,
        // compressed or deleted.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, rotated) = (dir.path().join("log"), dir.path().join("log.1"));
        let mut file = LogFile::open(&path).expect("opens");
        file.line("one\n").expect("writes");
        std::fs::rename(&path, &rotated).expect("renames");
        file.look().expect("looks");
        file.line("two\n").expect("writes");
        std::fs::remove_file(&path).expect("removes");
        file.look().expect("looks");
        file.line("three\n").expect("writes");
        assert_eq!(std::fs::read_to_string(&rotated).expect("kept"), "one\n");
        assert_eq!(std::fs::read_to_string(&path).expect("made again"), "three\n");
        // `copytruncate`, and a link in its place, which is not followed.
        File::options().write(true).open(&path).expect("opens").set_len(0).expect("truncates");
        file.look().expect("looks");
        assert_eq!(file.bytes, 0);
        file.line("again\n").expect("writes");
        assert_eq!(std::fs::read_to_string(&path).expect("from its start"), "again\n");
        // `create`: a new file stands in the place of the renamed one.
        std::fs::rename(&path, &rotated).expect("renames");
        std::fs::write(&path, "").expect("makes");
        file.look().expect("looks");
        file.line("there\n").expect("writes");
        assert_eq!(std::fs::read_to_string(&path).expect("made by others"), "there\n");
        std::fs::remove_file(&path).expect("removes");
        std::os::unix::fs::symlink(&rotated, &path).expect("links");
        assert!(file.look().is_err());
        file.line("four\n").expect("writes");
        assert_eq!(std::fs::read_to_string(&rotated).expect("kept"), "again\n");
    }

    #[test]
    fn json_lines_and_journal_fields_hold_what_a_line_says() {
        // Guards against text of a server that ends a field and begins another, and a hint that
        // only people can find.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = dir.path().join("journal");
        let journald = UnixDatagram::bind(&at).expect("binds");
        let log = |format, text: &str| {
            let sink = Sink::Journal(journal(&at).expect("connects"));
            let record = format_args!("{text}").to_string();
            let text = base::one_line(&one_line(&record));
            logger(sink, format).write(Level::Warn, "sealfs::store", &text);
            let mut bytes = [0; 4096];
            let len = journald.recv(&mut bytes).expect("arrives");
            String::from_utf8_lossy(&bytes[..len]).into_owned()
        };
        let fields = log(Format::Text, "denied\rPRIORITY=0\nhint: ask s3");
        let lines: Vec<_> = fields.lines().collect();
        assert_eq!(lines[0], "MESSAGE=denied\\rPRIORITY=0; hint: ask s3");
        assert_eq!(lines.iter().filter(|l| l.starts_with("PRIORITY=")).count(), 1);
        for line in ["PRIORITY=4", "SYSLOG_IDENTIFIER=sealfs", "SEALFS_MOUNT=/mnt/v"] {
            assert!(lines.contains(&line), "{line} in {fields}");
        }
        assert!(lines.contains(&"SEALFS_HINT=ask s3"), "{fields}");
        let fields = log(Format::Json, "say \"no\"\nhint: ask s3");
        let json = fields.lines().next().and_then(|l| l.strip_prefix("MESSAGE=")).expect("first");
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!((&json["message"], &json["hint"]), (&"say \"no\"".into(), &"ask s3".into()));
        assert_eq!((&json["level"], &json["mount"]), (&"warn".into(), &"/mnt/v".into()));
        assert!(json["time"].as_str().is_some_and(|time| time.ends_with('Z')));
    }

    #[test]
    fn each_message_is_one_line() {
        // Guards against a bare "hint:" line that belongs to nothing, and lines without a time.
        assert_eq!(one_line("denied\nhint: ask s3"), "denied; hint: ask s3");
        assert_eq!(one_line("bug\n\n  at x\n"), "bug | at x");
        assert_eq!(one_line(""), "");
    }
}
