//! Attributes of what is in a tree: owners, permission bits, times, extended attributes and access control lists.
//! Links are never followed.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use super::tree::{Tree, c_name, checked, owned, proc_fd, stat_fd};
use crate::base::Timestamp;

/// The access control list of a file (acl(5)).
pub const ACL: &str = "system.posix_acl_access";
/// Bytes of the value of an extended attribute (`XATTR_SIZE_MAX` of Linux), and of a list of names.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// What attributes are set of.
#[derive(Clone, Copy, Debug)]
pub enum Spot<'a> {
    /// A file that is open: no name is looked up.
    Open {
        /// The file.
        file: &'a File,
        /// Its permission bits, if they are known: they need not be set once more.
        perm: Option<u32>,
    },
    /// What is at a path.
    At(&'a Path),
}

/// A path to what a descriptor, or a name in a directory, stands for.
struct ProcPath {
    path: CString,
    /// Whether its last part is a link of the kernel's own, to follow; else it is a name, and is not followed.
    follow: bool,
    /// What the path leads through.
    _open: Option<Arc<OwnedFd>>,
}

impl Tree {
    /// The extended attribute `name` of what is at `path`; `None` if it has none of that name.
    ///
    /// # Errors
    /// Those of lgetxattr(2) but that.
    pub fn xattr(&self, path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.xattr_of(Spot::At(path), OsStr::new(name))
    }

    fn xattr_of(&self, spot: Spot<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        let at = self.proc_path(spot)?;
        let get = if at.follow { libc::getxattr } else { libc::lgetxattr };
        let name = c_name(name)?;
        let mut value = vec![0u8; 512];
        loop {
            // SAFETY: the buffer has as many bytes as the call is told; the strings are live.
            let n = unsafe {
                let out = value.as_mut_ptr().cast();
                get(at.path.as_ptr(), name.as_ptr(), out, value.len())
            };
            if n >= 0 {
                value.truncate(n as usize);
                return Ok(Some(value));
            }
            let e = io::Error::last_os_error();
            match e.raw_os_error() {
                Some(libc::ENODATA | libc::ENOTSUP | libc::ENOENT) => return Ok(None),
                Some(libc::ERANGE) if value.len() < XATTR_BYTES_MAX => {
                    value.resize(XATTR_BYTES_MAX, 0);
                }
                _ => return Err(e),
            }
        }
    }

    /// All extended attributes; none where the file system has none.
    ///
    /// # Errors
    /// Those of llistxattr(2), lgetxattr(2).
    pub fn xattrs(&self, spot: Spot<'_>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        let at = self.proc_path(spot)?;
        let list = if at.follow { libc::listxattr } else { libc::llistxattr };
        let mut names = vec![0u8; XATTR_BYTES_MAX];
        // SAFETY: the buffer has as many bytes as the call is told.
        let n = unsafe { list(at.path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
        if n < 0 {
            let e = io::Error::last_os_error();
            return match e.raw_os_error() {
                Some(libc::ENOTSUP | libc::EPERM) => Ok(Vec::new()),
                _ => Err(e),
            };
        }
        names.truncate(n as usize);
        let mut found = Vec::new();
        for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            if let Some(value) = self.xattr_of(spot, OsStr::from_bytes(name))? {
                found.push((OsString::from_vec(name.to_vec()), value));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The access control list, if there is one.
    ///
    /// # Errors
    /// As [`Tree::xattr`].
    pub fn acl(&self, spot: Spot<'_>) -> io::Result<Option<Vec<u8>>> {
        self.xattr_of(spot, OsStr::new(ACL))
    }

    /// Sets or, with `None`, removes an extended attribute; links are not followed.
    ///
    /// # Errors
    /// Those of lsetxattr(2), lremovexattr(2).
    pub fn set_xattr(&self, spot: Spot<'_>, name: &OsStr, value: Option<&[u8]>) -> io::Result<()> {
        let at = self.proc_path(spot)?;
        let set = if at.follow { libc::setxattr } else { libc::lsetxattr };
        let remove = if at.follow { libc::removexattr } else { libc::lremovexattr };
        let (path, name) = (at.path.as_ptr(), c_name(name)?);
        // SAFETY: the value has as many bytes as the call is told; the strings are live.
        checked(unsafe {
            match value {
                Some(value) => set(path, name.as_ptr(), value.as_ptr().cast(), value.len(), 0),
                None => remove(path, name.as_ptr()),
            }
        })
        .map(drop)
    }

    /// A path of the kernel's own to where attributes are.
    fn proc_path(&self, spot: Spot<'_>) -> io::Result<ProcPath> {
        let (open, mut path, name) = match spot {
            Spot::Open { file, .. } => (None, proc_fd(file.as_raw_fd()), None),
            Spot::At(path) => {
                let (dir, name) = self.at_or_dot(path)?;
                let path = proc_fd(dir.as_raw_fd());
                (Some(dir), path, Some(name))
            }
        };
        if let Some(name) = &name {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
        }
        let path = CString::new(path).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(ProcPath { path, follow: name.is_none(), _open: open })
    }

    /// Changes owner and group; links are not followed.
    ///
    /// # Errors
    /// Those of fchownat(2).
    pub fn set_owner(&self, spot: Spot<'_>, uid: u32, gid: u32) -> io::Result<()> {
        let path = match spot {
            // SAFETY: the descriptor is live.
            Spot::Open { file, .. } => {
                return checked(unsafe { libc::fchown(file.as_raw_fd(), uid, gid) }).map(drop);
            }
            Spot::At(path) => path,
        };
        let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
        let (dir, name) = self.at_or_top(path)?;
        // SAFETY: descriptor and name are live.
        checked(unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, flags) })
            .map(drop)
    }

    /// Changes the permission bits of what is no symlink.
    ///
    /// # Errors
    /// Those of fchmodat(2).
    pub fn set_perm(&self, spot: Spot<'_>, perm: u32) -> io::Result<()> {
        let path = match spot {
            // A new owner takes set-id bits away, nothing takes others.
            Spot::Open { perm: has, .. } if has == Some(perm) && perm & 0o7000 == 0 => {
                return Ok(());
            }
            Spot::Open { file, .. } => {
                return file.set_permissions(Permissions::from_mode(perm));
            }
            Spot::At(path) => path,
        };
        // fchmodat(2) follows links, which others may put there.
        let (dir, name) = self.at_or_dot(path)?;
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: descriptor and name are live.
        let found = owned(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags) })?;
        if stat_fd(found.as_raw_fd())?.kind() == libc::S_IFLNK {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let at = proc_fd(found.as_raw_fd());
        std::fs::set_permissions(OsStr::from_bytes(&at), Permissions::from_mode(perm))
    }

    /// Changes the times; links are not followed. `None` leaves the access time as it is.
    ///
    /// # Errors
    /// Those of utimensat(2).
    pub fn set_times(
        &self,
        spot: Spot<'_>,
        atime: Option<Timestamp>,
        mtime: Timestamp,
    ) -> io::Result<()> {
        let times = times(atime, mtime);
        let rc = match spot {
            // SAFETY: the descriptor and the two times are live.
            Spot::Open { file, .. } => unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) },
            Spot::At(path) => {
                let (dir, name) = self.at_or_top(path)?;
                let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
                // SAFETY: descriptor, name and the two times are live.
                unsafe { libc::utimensat(dir.as_raw_fd(), name.as_ptr(), times.as_ptr(), flags) }
            }
        };
        checked(rc).map(drop)
    }
}

/// The times as utimensat(2) takes them.
fn times(atime: Option<Timestamp>, mtime: Timestamp) -> [libc::timespec; 2] {
    let spec = |t: Timestamp| libc::timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() };
    let keep = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    [atime.map_or(keep, spec), spec(mtime)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn permissions_do_not_go_through_a_link() {
        // Guards against root who changes the permissions of whatever somebody's link leads to.
        let tmp = tempfile::tempdir().expect("a directory");
        let outside = tmp.path().join("outside");
        std::fs::write(&outside, "secret").expect("writes");
        std::fs::set_permissions(&outside, Permissions::from_mode(0o600)).expect("sets");
        symlink(&outside, tmp.path().join("link")).expect("links");
        let tree = Tree::open(tmp.path()).expect("opens");
        assert!(tree.set_perm(Spot::At(Path::new("link")), 0o644).is_err());
        let mode = std::fs::metadata(&outside).expect("looks").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}
