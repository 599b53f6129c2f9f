//! What a run does and has done: options that import and export share, counts while it goes, and the
//! report at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::filter::Filter;
use crate::store::{ErrorClass, Rate, class, told};

/// Failures, and odd names, that are kept for the report; all are counted and said.
const LISTED_MAX: usize = 10_000;

/// How long one that waits for its turn does not look whether the run is to end.
const PATIENCE: Duration = Duration::from_millis(100);

/// What both directions are asked for.
#[derive(Default, Clone, Debug)]
pub struct Options {
    /// Which files are meant.
    pub filter: Filter,
    /// Objects, or parts of large ones, that move at a time.
    pub parallel: usize,
    /// Bytes a second that move.
    pub rate: Arc<Rate>,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Delete at the target what the source does not have.
    pub delete: bool,
    /// Compare contents where size and time are the same.
    pub checksum: bool,
    /// Refuse odd keys.
    pub strict: bool,
    /// Carry metadata and tags as xattrs, and back.
    pub metadata: bool,
}

/// Something that happens, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A dry run would do this to that.
    Would(&'static str, String),
    /// It failed, and why. The run goes on.
    Failed(String, String),
    /// It was removed at the source before it could be read.
    Gone(String),
    /// A key got another path.
    Odd(String, String, &'static str),
    /// Something worth a line.
    Note(String),
}

/// A file or object that could not be transferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Its path or key.
    pub name: String,
    /// Why.
    pub why: String,
}

/// A key that got another path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Renamed {
    /// The key.
    pub key: String,
    /// The path.
    pub path: String,
    /// Why.
    pub why: &'static str,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// `import` or `export`.
    pub command: &'static str,
    /// Nothing was done; the counts are of what would be.
    pub dry_run: bool,
    /// Files transferred.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Directories, links and devices made (import).
    pub others: u64,
    /// Files that were there already.
    pub unchanged: u64,
    /// Deleted at the target.
    pub deleted: u64,
    /// Removed at the source while this ran, before they could be read.
    pub vanished: u64,
    /// How many failed.
    pub failed: u64,
    /// Which, the first ones.
    pub failures: Vec<Failed>,
    /// Keys that got another path, the first ones.
    pub renamed: Vec<Renamed>,
    /// Keys below the target (export) whose uploads were begun, are not over, and not of this run.
    pub unfinished: Vec<String>,
    /// What the target cannot hold, counted by kind.
    pub lost: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Whether there is anything to say of it but why it ended.
    pub fn has_done_anything(&self) -> bool {
        self.files + self.others + self.unchanged + self.deleted + self.vanished + self.failed > 0
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files that were looked at.
    pub files: u64,
    /// Of so many; 0 while they are counted.
    pub files_all: u64,
    /// Bytes moved, or found there.
    pub bytes: u64,
    /// Of so many.
    pub bytes_all: u64,
}

/// One run. Shared by its tasks.
pub struct Run {
    /// What is asked for.
    pub options: Options,
    say: Box<dyn Fn(Event) + Send + Sync>,
    report: Mutex<Report>,
    stop: AtomicBool,
    files: AtomicU64,
    files_all: AtomicU64,
    bytes: AtomicU64,
    bytes_all: AtomicU64,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Run({:?})", self.progress())
    }
}

impl Run {
    /// A run that tells `say` what happens.
    pub fn new(
        command: &'static str,
        options: Options,
        say: impl Fn(Event) + Send + Sync + 'static,
    ) -> Arc<Run> {
        let report = Report { command, dry_run: options.dry_run, ..Report::default() };
        Arc::new(Run {
            options,
            say: Box::new(say),
            report: Mutex::new(report),
            stop: AtomicBool::new(false),
            files: AtomicU64::new(0),
            files_all: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            bytes_all: AtomicU64::new(0),
        })
    }

    /// Tells somebody.
    pub fn say(&self, event: Event) {
        (self.say)(event);
    }

    /// Asks it to end at the next file.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether it is to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Waits until `bytes` more may move.
    ///
    /// # Errors
    /// The run is to end.
    pub async fn pace(&self, bytes: u64) -> Result<(), Trouble> {
        let stopped = async {
            while !self.is_stopped() {
                tokio::time::sleep(PATIENCE).await;
            }
        };
        tokio::select! {
            biased;
            () = stopped => Err(Trouble::End(ExchangeError::Stopped)),
            () = self.options.rate.pace(bytes) => Ok(()),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress {
            files: self.files.load(Relaxed),
            files_all: self.files_all.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            bytes_all: self.bytes_all.load(Relaxed),
        }
    }

    /// There is a file of `bytes` to look at.
    pub fn expects(&self, bytes: u64) {
        self.files_all.fetch_add(1, Relaxed);
        self.bytes_all.fetch_add(bytes, Relaxed);
    }

    /// Bytes have moved.
    pub fn moved(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// A file is done.
    pub fn looked_at(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    /// Changes the report.
    pub fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock());
    }

    /// Counts what the target cannot hold.
    pub fn lost(&self, what: &'static str, n: u64) {
        if n > 0 {
            *self.report.lock().lost.entry(what).or_default() += n;
        }
    }

    /// A file was transferred, or would be.
    pub fn copied(&self, bytes: u64) {
        self.note(|report| {
            report.files += 1;
            report.bytes += bytes;
        });
    }

    /// A file was there already.
    pub fn unchanged(&self, bytes: u64) {
        self.moved(bytes);
        self.note(|report| report.unchanged += 1);
    }

    /// One was removed at the source after it was found: nothing is wrong with that.
    pub fn vanished(&self, name: &str) {
        self.say(Event::Gone(name.to_owned()));
        self.note(|report| report.vanished += 1);
    }

    /// One failed; the others go on.
    pub fn failed(&self, name: &str, why: impl fmt::Display) {
        let why = why.to_string();
        self.say(Event::Failed(name.to_owned(), why.clone()));
        let mut report = self.report.lock();
        report.failed += 1;
        if report.failures.len() < LISTED_MAX {
            report.failures.push(Failed { name: name.to_owned(), why });
        }
    }

    /// A key got another path.
    pub fn renamed(&self, key: &str, path: &str, why: &'static str) {
        self.say(Event::Odd(key.to_owned(), path.to_owned(), why));
        let mut report = self.report.lock();
        if report.renamed.len() < LISTED_MAX {
            report.renamed.push(Renamed { key: key.to_owned(), path: path.to_owned(), why });
        }
    }

    /// What has come of it so far.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// How many failed.
    pub fn failures(&self) -> u64 {
        self.report.lock().failed
    }
}

/// What ends a run, or fails one file of it.
#[derive(Debug)]
pub enum Trouble {
    /// One file: the run goes on.
    One(String),
    /// The store, or the file system, takes or gives nothing any more.
    End(ExchangeError),
}

/// What ends a run.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The store of the other side.
    #[error("{}", told(.0))]
    Store(#[source] object_store::Error),
    /// The tree of files.
    #[error("{what}: {source}")]
    Local {
        /// What failed on what.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Asked for something that makes no sense, or is refused by `--strict`.
    #[error("{0}")]
    Refused(String),
    /// AWS KMS does not answer, or refuses.
    #[error("{0}")]
    Keys(String),
    /// Stopped by a signal.
    #[error("stopped before the end")]
    Stopped,
}

impl From<std::io::Error> for Trouble {
    /// Whether the whole file system is unwilling, or only about one file.
    fn from(source: std::io::Error) -> Trouble {
        match source.raw_os_error() {
            Some(
                libc::ENOSPC
                | libc::EROFS
                | libc::EDQUOT
                | libc::ENOTCONN
                | libc::ESTALE
                | libc::EMFILE
                | libc::ENFILE,
            ) => Trouble::End(ExchangeError::Local {
                what: "no more files can be read or written".into(),
                source,
            }),
            _ => Trouble::One(source.to_string()),
        }
    }
}

impl From<object_store::Error> for Trouble {
    fn from(e: object_store::Error) -> Trouble {
        match class(&e) {
            ErrorClass::Transport
            | ErrorClass::Untrusted
            | ErrorClass::Foreign
            | ErrorClass::Throttled
            | ErrorClass::NoBucket => Trouble::End(ExchangeError::Store(e)),
            _ => Trouble::One(told(&e).replace("\nhint: ", "; ")),
        }
    }
}
