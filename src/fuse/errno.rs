//! Which error number an error of the filesystem becomes. The only place that chooses one.

use crate::fs::{FsError, QuotaError};

use super::abi::Malformed;

/// A positive Linux error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The request was understood and refused for its arguments.
    pub const INVALID: Errno = Errno(libc::EINVAL);
    /// The operation does not exist here; the kernel stops asking where it can.
    pub const NO_SUCH_OPERATION: Errno = Errno(libc::ENOSYS);
    /// An `ioctl` no file of this filesystem has.
    pub const NO_SUCH_IOCTL: Errno = Errno(libc::ENOTTY);
    /// The caller was interrupted by a signal while it waited.
    pub const INTERRUPTED: Errno = Errno(libc::EINTR);
    /// Too much of the same is under way.
    pub const AGAIN: Errno = Errno(libc::EAGAIN);
    /// Something below failed and has said so in the log.
    pub const IO: Errno = Errno(libc::EIO);
    /// The caller's buffer is too small for the value.
    pub const RANGE: Errno = Errno(libc::ERANGE);
}

impl From<FsError> for Errno {
    fn from(error: FsError) -> Errno {
        Errno(match error {
            FsError::NotFound => libc::ENOENT,
            FsError::Exists => libc::EEXIST,
            FsError::NotDir => libc::ENOTDIR,
            FsError::IsDir => libc::EISDIR,
            FsError::NotEmpty => libc::ENOTEMPTY,
            FsError::NotPermitted => libc::EPERM,
            FsError::Access => libc::EACCES,
            FsError::Invalid => libc::EINVAL,
            FsError::NameTooLong => libc::ENAMETOOLONG,
            FsError::TooManyLinks => libc::EMLINK,
            FsError::NoSpace | FsError::Quota(QuotaError::Enospc) => libc::ENOSPC,
            FsError::Quota(QuotaError::Edquot) => libc::EDQUOT,
            FsError::FileTooBig => libc::EFBIG,
            FsError::ReadOnly => libc::EROFS,
            FsError::NoAttr => libc::ENODATA,
            FsError::Range => libc::ERANGE,
            FsError::NoSuchOffset => libc::ENXIO,
            FsError::Unsupported => libc::EOPNOTSUPP,
            FsError::Stale => libc::ESTALE,
            FsError::Busy => libc::EBUSY,
            FsError::CrossDevice => libc::EXDEV,
            FsError::ArgListTooBig => libc::E2BIG,
            FsError::Io(why) => {
                // What the store did wrong has been said, once.
                log::debug!("answered with an input/output error: {why}");
                libc::EIO
            }
        })
    }
}

impl From<Malformed> for Errno {
    fn from(_: Malformed) -> Errno {
        Errno::IO
    }
}
