//! Which local directories are used when no flag says so, and where a mount's control socket is.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::exit::{Exit, Failure, Outcome};
use crate::base::hex;

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// `$variable/sealfs`, `~/below_home/sealfs`, or `for_root` for root.
fn base(for_root: &str, variable: &str, below_home: &str) -> Outcome<PathBuf> {
    if is_root() {
        return Ok(for_root.into());
    }
    let absolute = |v: OsString| Some(PathBuf::from(v)).filter(|p| p.is_absolute());
    if let Some(dir) = std::env::var_os(variable).and_then(absolute) {
        return Ok(dir.join("sealfs"));
    }
    match std::env::var_os("HOME").and_then(absolute) {
        Some(home) => Ok(home.join(below_home).join("sealfs")),
        None => Err(Failure::new(Exit::General, "HOME is not set").hint("export HOME=~USER")),
    }
}

/// Where the ciphertext cache is by default.
pub fn cache_dir() -> Outcome<PathBuf> {
    base("/var/cache/sealfs", "XDG_CACHE_HOME", ".cache")
}

/// Where journals are by default.
pub fn state_dir() -> Outcome<PathBuf> {
    base("/var/lib/sealfs", "XDG_STATE_HOME", ".local/state")
}

/// `given`, made absolute, or the default.
pub fn absolute_or(given: Option<&Path>, default: fn() -> Outcome<PathBuf>) -> Outcome<PathBuf> {
    given.map_or_else(default, absolute)
}

/// `path` as it is seen from the working directory of now.
pub fn absolute(path: &Path) -> Outcome<PathBuf> {
    std::path::absolute(path)
        .map_err(|e| Failure::new(Exit::General, format!("{}: {e}", path.display())))
}

/// Where control sockets are: one directory per user, whatever `--state-dir` says, so that
/// `sealfs status DIR` needs nothing but DIR.
pub fn runtime_dir() -> Outcome<PathBuf> {
    if let Some(dir) = std::env::var_os("SEALFS_RUNTIME_DIR") {
        return Ok(dir.into());
    }
    if is_root() {
        return Ok("/run/sealfs".into());
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute()) {
        Some(dir) => Ok(dir.join("sealfs")),
        None => Ok(state_dir()?.join("run")),
    }
}

/// Makes a directory that only its owner can enter, or checks that it is one.
pub fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = dir.metadata()?;
    // SAFETY: geteuid has no preconditions and cannot fail.
    if meta.uid() != unsafe { libc::geteuid() } {
        return Err(io::Error::other("it belongs to another user"));
    }
    if meta.mode() & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// The control socket of the mount at `point` (absolute, resolved).
pub fn socket_path(point: &Path) -> Outcome<PathBuf> {
    let hash = Sha256::digest(point.as_os_str().as_bytes());
    Ok(runtime_dir()?.join(format!("{}.sock", hex(&hash[..8]))))
}

/// The control sockets of this user's mounts, dead ones included.
pub fn sockets() -> Outcome<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(runtime_dir()?) {
        Ok(entries) => entries,
        Err(_) => return Ok(Vec::new()), // no mount has ever made it
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.extension().is_some_and(|e| e == "sock")).collect())
}

/// Resolves a mount point to the name the daemon knows it by, even when the mount on it is
/// dead (then only its parent can be looked at).
pub fn resolve(point: &Path) -> io::Result<PathBuf> {
    match point.canonicalize() {
        Ok(path) => Ok(path),
        Err(e) => {
            let absolute = std::path::absolute(point)?;
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                return Err(e);
            };
            match e.raw_os_error() {
                Some(libc::ENOTCONN | libc::EIO | libc::ETIMEDOUT) => {
                    Ok(parent.canonicalize()?.join(name))
                }
                _ => Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_two_mount_points_differ_and_are_short() {
        // Guards against `umount a` reaching the daemon of b, and against socket paths above
        // the 108 bytes of sockaddr_un for deep mount points.
        let a = socket_path(Path::new("/mnt/a")).expect("a directory");
        let deep = socket_path(Path::new(&format!("/mnt/{}", "x/".repeat(500)))).expect("one");
        assert_ne!(a, deep);
        assert_eq!(a.file_name().map(|n| n.len()), deep.file_name().map(|n| n.len()));
    }

    #[test]
    fn private_directories_are_closed_to_others() {
        // Guards against a socket that any local user can command.
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = tmp.path().join("a/b");
        make_private(&dir).expect("makes it");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("opens it");
        make_private(&dir).expect("closes it");
        assert_eq!(dir.metadata().expect("exists").mode() & 0o777, 0o700);
    }
}
