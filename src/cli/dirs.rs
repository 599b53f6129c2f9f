//! Which local directories are used when no flag says so, and where a mount's control socket is.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::exit::{Exit, Failure, Outcome};
use super::user;
use crate::base::{hex, is_root, own_uid};

/// `$variable/sealfs`, `~/below_home/sealfs`, or `for_root` for root.
fn base(for_root: &str, variable: &str, below_home: &str) -> Outcome<PathBuf> {
    if is_root() {
        return Ok(for_root.into());
    }
    let absolute = |v: OsString| Some(PathBuf::from(v)).filter(|p| p.is_absolute());
    if let Some(dir) = std::env::var_os(variable).and_then(absolute) {
        return Ok(dir.join("sealfs"));
    }
    match user::home() {
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

/// Where the control sockets of this user's mounts may be, the best place first, whatever
/// `--state-dir` says: so `sealfs status DIR` needs nothing but DIR. /run/user/UID is there only
/// while the user is logged in, hence a second place.
pub fn runtime_dirs() -> Vec<PathBuf> {
    if let Some(dir) = std::env::var_os("SEALFS_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        let dir = PathBuf::from(dir);
        return vec![std::path::absolute(&dir).unwrap_or(dir)];
    }
    usual_runtime_dirs()
}

fn usual_runtime_dirs() -> Vec<PathBuf> {
    if is_root() {
        return vec![ROOT_RUNTIME_DIR.into(), "/var/lib/sealfs/run".into()];
    }
    let xdg = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    let mut dirs: Vec<_> = xdg.into_iter().map(|dir| dir.join("sealfs")).collect();
    dirs.push(login_runtime_dir(own_uid()));
    dirs.extend(state_dir().ok().map(|dir| dir.join("run")));
    dirs.dedup();
    dirs
}

/// Where the sockets of root's mounts are.
const ROOT_RUNTIME_DIR: &str = "/run/sealfs";

/// Where the sockets of a user's mounts are while the user is logged in (pam_systemd(8)).
fn login_runtime_dir(uid: u32) -> PathBuf {
    format!("/run/user/{uid}/sealfs").into()
}

/// Makes a directory that directories of our own are made in, each private. One that is there stays as
/// it is; where others can make files too, theirs and ours must be safe from each other, as in /tmp.
pub fn make_base(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = dir.metadata()?;
    let is_shared = meta.mode() & 0o022 != 0;
    match (meta.uid() == own_uid(), is_shared && meta.mode() & libc::S_ISVTX == 0) {
        (_, true) => Err(io::Error::other(CLOSE_IT)),
        (false, _) if meta.uid() != 0 => Err(io::Error::other("it belongs to another user")),
        _ => Ok(()),
    }
}

const CLOSE_IT: &str = "others can write in it: name another directory, or close it (chmod go-w)";

/// Makes a directory that only its owner can enter. One that is there stays as it is, and is
/// refused if anybody else could put files in it: closing it might close somebody's `/tmp`.
pub fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = dir.metadata()?;
    if meta.uid() != own_uid() {
        return Err(io::Error::other("it belongs to another user"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(io::Error::other(CLOSE_IT));
    }
    Ok(())
}

fn socket_name(point: &Path) -> String {
    let hash = Sha256::digest(point.as_os_str().as_bytes());
    format!("{}.sock", hex(&hash[..8]))
}

/// Where this process may make the control socket of a mount at `point` (absolute, resolved).
pub fn socket_places(point: &Path) -> Vec<PathBuf> {
    let name = socket_name(point);
    runtime_dirs().into_iter().map(|dir| dir.join(&name)).collect()
}

/// Everywhere the control socket of the mount at `point` can be, if `owner` mounted it: the
/// environment of whoever mounted it may have been another one.
pub fn all_socket_places(point: &Path, owner: Option<u32>) -> Vec<PathBuf> {
    let name = socket_name(point);
    let mut dirs = runtime_dirs();
    dirs.extend(usual_runtime_dirs());
    dirs.extend(owner.map(login_runtime_dir));
    dirs.push(ROOT_RUNTIME_DIR.into());
    let mut places: Vec<_> = dirs.into_iter().map(|dir| dir.join(&name)).collect();
    // Every socket of this machine that has a name, whoever made it (proc_net(5)).
    let bound = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let paths = bound.lines().filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
    places.extend(paths.filter(|path| path.file_name().is_some_and(|file| *file == *name)));
    let mut seen = std::collections::HashSet::new();
    places.retain(|place| seen.insert(place.clone()));
    places
}

/// The control sockets of this user's mounts, dead ones included.
pub fn sockets() -> Vec<PathBuf> {
    // A directory that cannot be listed is one that no mount has made.
    let entries = runtime_dirs().into_iter().filter_map(|dir| dir.read_dir().ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|e| e == "sock")).collect()
}

/// Resolves a path to the name the daemon knows it by, even below a mount that is dead or belongs
/// to somebody else: then only what leads there can be looked at.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let e = match path.canonicalize() {
        Ok(path) => return Ok(path),
        Err(e) => e,
    };
    let absolute = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(e);
    };
    match e.raw_os_error() {
        Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO | libc::ETIMEDOUT | libc::EACCES) => {
            Ok(resolve(parent)?.join(name))
        }
        _ => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_two_mount_points_differ_and_are_short() {
        // Guards against `umount a` reaching the daemon of b, and against socket paths above
        // the 108 bytes of sockaddr_un for deep mount points.
        let a = socket_name(Path::new("/mnt/a"));
        let deep = socket_name(Path::new(&format!("/mnt/{}", "x/".repeat(500))));
        assert_ne!(a, deep);
        assert_eq!(a.len(), deep.len());
    }

    #[test]
    fn a_private_directory_is_made_so_and_no_other_is_ever_closed() {
        // Guards against a socket that any local user can command, and against `--cache-dir /tmp`
        // of root's taking /tmp from everybody else, through a link too.
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let (dir, link) = (tmp.path().join("a/b"), tmp.path().join("link"));
        let mode = || dir.metadata().expect("exists").mode() & 0o7777;
        make_private(&dir).expect("makes it");
        assert_eq!(mode(), 0o700);
        std::os::unix::fs::symlink(&dir, &link).expect("links");
        for (found, as_private, as_base) in
            [(0o755, true, true), (0o775, false, false), (0o1777, false, true)]
        {
            let given = std::fs::Permissions::from_mode(found);
            std::fs::set_permissions(&dir, given).expect("own directory");
            for name in [&dir, &link] {
                assert_eq!(make_private(name).is_ok(), as_private, "{found:o}");
                assert_eq!(make_base(name).is_ok(), as_base, "{found:o}");
                assert_eq!(mode(), found);
            }
        }
    }
}
