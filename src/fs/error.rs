//! What a file operation fails with, by its POSIX meaning. `fuse/` alone turns it into errno.

use std::sync::Arc;

use super::quota::QuotaError;
use crate::base::ContentsId;
use crate::commit::ViewError;
use crate::data::ReadError;
use crate::journal::JournalError;
use crate::store::ErrorClass;

/// Why a file operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// No such name or inode (`ENOENT`).
    #[error("not found")]
    NotFound,
    /// The name exists (`EEXIST`).
    #[error("exists")]
    Exists,
    /// Not a directory (`ENOTDIR`).
    #[error("not a directory")]
    NotDir,
    /// Is a directory (`EISDIR`).
    #[error("is a directory")]
    IsDir,
    /// The directory has entries (`ENOTEMPTY`).
    #[error("directory not empty")]
    NotEmpty,
    /// Not permitted whoever asks (`EPERM`).
    #[error("not permitted")]
    NotPermitted,
    /// Permission denied (`EACCES`).
    #[error("permission denied")]
    Access,
    /// An argument makes no sense here (`EINVAL`).
    #[error("invalid argument")]
    Invalid,
    /// A name longer than [`NAME_MAX`](crate::meta::NAME_MAX) (`ENAMETOOLONG`).
    #[error("name too long")]
    NameTooLong,
    /// More than [`LINK_MAX`](crate::meta::LINK_MAX) links (`EMLINK`).
    #[error("too many links")]
    TooManyLinks,
    /// The journal is full and the bucket takes nothing (`ENOSPC`).
    #[error("no space left in the journal")]
    NoSpace,
    /// The volume is at its quota (`ENOSPC` or `EDQUOT`).
    #[error("the quota of the volume is used up")]
    Quota(QuotaError),
    /// Beyond the largest file size (`EFBIG`).
    #[error("file too large")]
    FileTooBig,
    /// The mount is read-only, or has been taken over by another writer (`EROFS`).
    #[error("read-only file system")]
    ReadOnly,
    /// No such extended attribute (`ENODATA`).
    #[error("no such attribute")]
    NoAttr,
    /// The caller's buffer is too small (`ERANGE`).
    #[error("result out of range")]
    Range,
    /// `lseek` behind the last data (`ENXIO`).
    #[error("no such offset")]
    NoSuchOffset,
    /// Not supported on this file system (`EOPNOTSUPP`).
    #[error("not supported")]
    Unsupported,
    /// The inode is gone (`ESTALE`).
    #[error("stale handle")]
    Stale,
    /// In use (`EBUSY`).
    #[error("busy")]
    Busy,
    /// Across file systems (`EXDEV`).
    #[error("cross-device")]
    CrossDevice,
    /// An attribute value larger than Linux takes (`E2BIG`).
    #[error("argument too large")]
    ArgListTooBig,
    /// The store, the journal or the data failed; the cause has been logged (`EIO`).
    #[error("input/output error: {0}")]
    Io(String),
}

impl FsError {
    fn logged(text: String) -> FsError {
        log::error!("{text}");
        FsError::Io(text)
    }
}

impl From<ViewError> for FsError {
    fn from(e: ViewError) -> Self {
        FsError::logged(e.to_string())
    }
}

impl From<Arc<ViewError>> for FsError {
    fn from(e: Arc<ViewError>) -> Self {
        FsError::logged(e.to_string())
    }
}

impl From<ReadError> for FsError {
    fn from(e: ReadError) -> Self {
        match e.class {
            // The sealed layer has named the object, once; not again for every read.
            ErrorClass::Corrupt | ErrorClass::NotFound => FsError::Io(e.to_string()),
            _ => FsError::logged(e.to_string()),
        }
    }
}

impl From<JournalError> for FsError {
    fn from(e: JournalError) -> Self {
        match e {
            JournalError::Full { .. } | JournalError::NoSpace(_) => FsError::NoSpace,
            other => FsError::logged(other.to_string()),
        }
    }
}

/// How one try of an operation ended that did not succeed.
#[derive(Debug)]
pub(super) enum Step {
    /// A row is not in memory: load it, try again.
    Row(crate::meta::Key),
    /// The extents of a file are not in memory, of which it is to be known where it has holes:
    /// load them, try again.
    Extents(ContentsId),
    /// The extents of a range of a file are not in memory: load them, try again.
    Range(ContentsId, u64, u64),
    /// The journal or the pending rows are at their limit: wait for a commit, try again.
    Full,
    /// It goes beyond the quota: what was just deleted may come free, then it fails.
    Quota(QuotaError),
    /// The mount is about to change its role: wait for that, try again.
    Held,
    /// The operation fails.
    Fail(FsError),
}

impl From<FsError> for Step {
    fn from(e: FsError) -> Self {
        Step::Fail(e)
    }
}

impl From<ViewError> for Step {
    fn from(e: ViewError) -> Self {
        Step::Fail(e.into())
    }
}

impl From<crate::meta::DecodeError> for Step {
    fn from(e: crate::meta::DecodeError) -> Self {
        Step::Fail(ViewError::from(e).into())
    }
}

impl From<JournalError> for Step {
    fn from(e: JournalError) -> Self {
        match e {
            JournalError::Full { .. } | JournalError::NoSpace(_) => Step::Full,
            other => Step::Fail(other.into()),
        }
    }
}
