//! What can go wrong in the journal, by what the caller does next.

use crate::base::JournalPos;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// An error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The journal holds as much as it may. Wait with
    /// [`Journal::wait_for_space`](super::Journal::wait_for_space) and append again.
    #[error("the journal is full ({used} of {bytes_max} bytes)")]
    Full {
        /// Bytes of the log files in use.
        used: u64,
        /// The limit ([`JournalOptions::bytes_max`](super::JournalOptions::bytes_max)).
        bytes_max: u64,
    },
    /// The disk has no room for another log file. Nothing was appended; the journal goes on.
    #[error("no space left on the disk of the journal")]
    NoSpace(#[source] io::Error),
    /// The disk failed a request that could be refused without harm to what is stored.
    #[error("{what} failed")]
    Io {
        /// What was tried, on which file.
        what: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// An earlier write or sync failed, so what the disk holds is no longer known; every later
    /// append and sync fails with this until the volume is mounted again.
    #[error("the journal has stopped: {0}")]
    Poisoned(Arc<str>),
    /// A part that had been on stable storage is damaged. Nothing was deleted or overwritten.
    #[error("the journal is damaged: {} at byte {offset}: {what}", file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Byte offset in it where the damage begins.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Another process has this journal open (its process id, where it could be read).
    #[error("the journal is in use by {}", pid_words(*.0))]
    InUse(Option<u32>),
    /// The directory holds the journal of another volume.
    #[error("{} is the journal of another volume", dir.display())]
    Foreign {
        /// The journal's directory.
        dir: PathBuf,
    },
    /// The record is larger than a log file can take. A bug of the caller, who knows
    /// [`Journal::record_max`](super::Journal::record_max).
    #[error("a record of {bytes} bytes is larger than the journal takes ({bytes_max})")]
    TooLarge {
        /// Bytes of the record.
        bytes: usize,
        /// The most a record may have.
        bytes_max: usize,
    },
    /// The record has been released: what it held is in the bucket. Look there.
    #[error("journal record {0} has been released")]
    Released(JournalPos),
    /// A range outside the record, or a position that was never appended. A bug of the caller.
    #[error("bad request to the journal: {0}")]
    Invalid(String),
}

fn pid_words(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".into(),
    }
}

impl JournalError {
    /// `what` failed with `source`: [`JournalError::NoSpace`] for `ENOSPC` and `EDQUOT`, else
    /// [`JournalError::Io`].
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> JournalError {
        if is_no_space(&source) {
            JournalError::NoSpace(source)
        } else {
            JournalError::Io { what: what.into(), source }
        }
    }
}

/// True for the errors that mean "the disk, or the quota, is full".
pub(crate) fn is_no_space(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
