//! Where a volume may be mounted: not over what the daemon itself opens while it serves, since
//! opening it would be a request to itself that it never answers; and over files of somebody's
//! only when that is meant.
//!
//! Called by `mount` before anything is mounted. Changes nothing but that a dead mount is taken
//! away.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::fuse::{self, Entry, Life};
use crate::store::Location;

use super::exit::{Exit, Failure, Outcome};
use super::{dirs, user};
use crate::base::{is_root, own_uid};

/// Links followed in one path before it is taken for a circle, as the kernel does.
const LINKS_MAX: usize = 40;
/// Dead mounts on one another that are taken away.
const DEAD_MAX: usize = 16;
/// Hidden entries that are looked at, and named.
const ENTRIES_MAX: usize = 10_000;
const NAMED_MAX: usize = 3;

/// What every process needs that resolves names, trusts certificates and looks at itself.
const SYSTEM: [&str; 6] =
    ["/dev/null", "/proc/self", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/ssl", "/usr/lib"];

/// Something the daemon opens by name while it serves.
#[derive(Clone, Debug)]
pub struct Need {
    /// What it is: "the journal".
    pub what: &'static str,
    /// Where, absolute. It need not exist yet.
    pub path: PathBuf,
    /// What to type to have it elsewhere; empty if nothing helps.
    pub cure: &'static str,
}

impl Need {
    /// A need with what to type to have it elsewhere.
    pub fn new(what: &'static str, path: impl Into<PathBuf>, cure: &'static str) -> Need {
        Need { what, path: path.into(), cure }
    }
}

/// The mount point at `dir`, resolved: a directory without a volume on it. A mount of ours whose
/// process is gone is taken away first.
pub fn free_point(dir: &Path) -> Outcome<PathBuf> {
    let shown = dir.display();
    for _ in 0..DEAD_MAX {
        let point = dirs::resolve(dir).map_err(|e| unusable(dir, &e))?;
        let Some(entry) = fuse::mounted_at(&point).filter(Entry::is_sealfs) else {
            return match point.metadata() {
                Ok(meta) if meta.is_dir() => Ok(point),
                Ok(_) => Err(unusable(dir, &io::Error::from_raw_os_error(libc::ENOTDIR))),
                Err(e) => Err(unusable(dir, &e)),
            };
        };
        if fuse::life(&point) != Life::Dead {
            return Err(mounted_already(dir, &entry));
        }
        fuse::unmount(&point, true).map_err(|e| {
            let message = format!("cannot take away the dead mount at {shown}: {e}");
            Failure::new(Exit::General, message).hint(format!("sudo umount -l {shown}"))
        })?;
        eprintln!("sealfs: note: took away the mount at {shown}, whose process was gone");
    }
    Err(Failure::new(Exit::General, format!("dead mounts lie on one another at {shown}"))
        .hint(format!("umount -l {shown}, until it is free")))
}

fn mounted_already(dir: &Path, entry: &Entry) -> Failure {
    let shown = dir.display();
    let (by, sudo) = match entry.owner.filter(|&owner| owner != own_uid()) {
        Some(0) => (", mounted by root".into(), "sudo ".into()),
        Some(owner) => {
            let name = user::name(owner);
            (format!(", mounted by {name}"), format!("sudo -u {name} "))
        }
        None => (String::new(), String::new()),
    };
    let message = format!("{shown} is a sealfs mount already: {}{by}", entry.source);
    Failure::new(Exit::Busy, message)
        .hint(format!("{sudo}sealfs status {shown}, or {sudo}sealfs umount {shown}"))
}

/// Why `dir` cannot be mounted on, and what makes it fit.
pub fn unusable(dir: &Path, e: &io::Error) -> Failure {
    let shown = dir.display();
    let (why, hint) = match e.raw_os_error() {
        Some(libc::ENOENT) => (e.to_string(), format!("mkdir -p {shown}")),
        Some(libc::ENOTDIR) => (
            "it is not a directory".into(),
            format!("choose a directory, or make one: mkdir -p {shown}.d"),
        ),
        Some(libc::ENOTCONN | libc::ECONNABORTED) => {
            ("a dead mount of another program is there".into(), format!("umount -l {shown}"))
        }
        _ => (e.to_string(), format!("look at it: ls -ld {shown}")),
    };
    Failure::new(Exit::General, format!("cannot mount on {shown}: {why}")).hint(hint)
}

/// Refuses a machine on which nothing can be mounted, and says what it lacks.
pub fn require_fuse() -> Outcome {
    let failed = |what: String, hint: &str| Err(Failure::new(Exit::General, what).hint(hint));
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    match device.as_ref().err().map(|e| (e, e.raw_os_error())) {
        None => {}
        Some((_, Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))) => {
            return failed(
                "there is no /dev/fuse: this kernel has no FUSE, or this container was not given it"
                    .into(),
                "sudo modprobe fuse; for a container: docker run --device /dev/fuse --cap-add SYS_ADMIN",
            );
        }
        Some((e, Some(libc::EACCES))) => {
            return failed(
                format!("you may not open /dev/fuse: {e}"),
                "sudo chmod 666 /dev/fuse, which is what it usually is: ls -l /dev/fuse",
            );
        }
        Some((e, Some(libc::EPERM))) => {
            return failed(
                format!("this container may not open /dev/fuse: {e}"),
                "docker run --device /dev/fuse --cap-add SYS_ADMIN",
            );
        }
        Some((e, _)) => {
            return failed(format!("cannot open /dev/fuse: {e}"), "ls -l /dev/fuse; modprobe fuse");
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_helper = std::env::split_paths(&path).any(|dir| dir.join("fusermount3").is_file());
    if !is_root() && !has_helper {
        return failed(
            "fusermount3, which mounts for users other than root, is not installed".into(),
            "sudo apt install fuse3",
        );
    }
    Ok(())
}

/// Refuses a mount on `/`, and one that covers something in `needs` or the system's own files.
/// `point` is resolved. Links, `..` and bind mounts are followed; of what does not exist yet,
/// the part that does.
pub fn refuse_covered(point: &Path, needs: &[Need]) -> Outcome {
    let shown = point.display();
    let elsewhere = "mount it on another directory";
    if point.parent().is_none() {
        return Err(Failure::new(Exit::Usage, "cannot mount on /: everything lies below it")
            .hint(format!("{elsewhere}, such as /srv/vault")));
    }
    let system = SYSTEM.map(|path| Need::new("the system's", path, ""));
    let program = std::env::current_exe().ok().map(|path| Need::new("the program", path, ""));
    let covered: Vec<&Need> = needs
        .iter()
        .chain(&program)
        .chain(&system)
        .filter(|need| leads_through(&need.path, point))
        .collect();
    if covered.is_empty() {
        return Ok(());
    }
    let names: Vec<_> =
        covered.iter().map(|need| format!("{} {}", need.what, need.path.display())).collect();
    let lies = if names.len() == 1 { "lies" } else { "lie" };
    let message = format!(
        "cannot mount on {shown}: {} {lies} below it, and the mount would wait for itself",
        names.join(", ")
    );
    let mut cures: Vec<_> = covered.iter().map(|n| n.cure).filter(|c| !c.is_empty()).collect();
    cures.dedup();
    let hint = match cures.len() == covered.len() {
        true => format!("{elsewhere}, or keep these elsewhere: {}", cures.join(" ")),
        false => elsewhere.into(),
    };
    Err(Failure::new(Exit::Usage, message).hint(hint))
}

/// Refuses a mount point inside the directory that is the store: what is listed there are the
/// objects of the volume, and the mount is none.
pub fn refuse_inside_store(point: &Path, store: &Location) -> Outcome {
    match store {
        Location::File(dir) if leads_through(point, dir) => {
            let shown = point.display();
            Err(Failure::new(Exit::Usage, format!("cannot mount on {shown}: it is in {store}"))
                .hint("mount it on a directory outside of the store"))
        }
        _ => Ok(()),
    }
}

/// Refuses a directory that is not empty, and says what it would hide.
pub fn refuse_hiding(point: &Path) -> Outcome {
    // A user who may not list it may still mount on it: then nobody can say what is in it.
    let Ok(entries) = point.read_dir() else { return Ok(()) };
    let mut names: Vec<OsString> =
        entries.take(ENTRIES_MAX).filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    if names.is_empty() {
        return Ok(());
    }
    names.sort();
    let shown: Vec<_> =
        names.iter().take(NAMED_MAX).map(|name| name.display().to_string()).collect();
    let more = match names.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        _ if names.len() == ENTRIES_MAX => " and many more".into(),
        n => format!(" and {n} more"),
    };
    let dir = point.display();
    let message = format!("{dir} is not empty: a mount would hide {}{more}", shown.join(", "));
    Err(Failure::new(Exit::Usage, message)
        .hint("choose an empty directory, or hide them until it is unmounted: --over"))
}

/// Whether looking `path` up goes through the directory `point`, or ends there.
pub fn leads_through(path: &Path, point: &Path) -> bool {
    let identity = |path: &Path| path.symlink_metadata().map(|m| (m.dev(), m.ino()));
    // Another name of the same directory (a bind mount) is covered with it: mounts propagate.
    let wanted = identity(point).ok();
    let is_point = |at: &Path| at == point || (wanted.is_some() && identity(at).ok() == wanted);
    walk(path, is_point).unwrap_or(false)
}

/// Goes down `path` as the kernel does and asks `is_found` of each directory on the way, links
/// resolved. What does not exist, or may not be looked at, is taken as it is written.
fn walk(path: &Path, is_found: impl Fn(&Path) -> bool) -> io::Result<bool> {
    let mut todo: VecDeque<OsString> = parts(&std::path::absolute(path)?);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        if links < LINKS_MAX && next.is_symlink() {
            links += 1;
            let target = next.read_link()?;
            if target.is_absolute() {
                at = "/".into();
            }
            for part in parts(&target).into_iter().rev() {
                todo.push_front(part);
            }
            continue;
        }
        at = next;
        if is_found(&at) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |c: Component<'_>| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_way_below_a_directory_is_found_and_no_way_beside_it() {
        // Guards against a state directory whose path hides where it is: a link, a link in the
        // middle of a path that ends elsewhere, `..`, parts that do not exist yet.
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let base = tmp.path().canonicalize().expect("exists");
        let at = |name: &str| base.join(name);
        for dir in ["point/sub", "point-2/sub", "other"] {
            fs::create_dir_all(at(dir)).expect("makes");
        }
        symlink("../point/sub", at("other/link")).expect("links");
        symlink(at("other"), at("point/out")).expect("links");
        symlink("loop", at("other/loop")).expect("links");
        let below = |path: &str| leads_through(&at(path), &at("point"));
        for path in [
            "point",
            "point/sub",
            "point/not/there/yet",
            "other/link",
            "other/link/new",
            "other/../point/sub",
            "other/link/../new",
            "point/out/file",
            "other/new/../../point/x",
        ] {
            assert!(below(path), "{path}");
        }
        for path in ["", "point-2/sub", "other/new", "point-2/../other", "other/loop/x"] {
            assert!(!below(path), "{path}");
        }
    }

    #[test]
    fn what_a_mount_would_hide_is_named() {
        // Guards against files that seem lost because a volume was mounted over them.
        let tmp = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(refuse_hiding(tmp.path()), Ok(()));
        for name in ["d", "b", "a", "c", "e"] {
            fs::write(tmp.path().join(name), "").expect("writes");
        }
        let failure = refuse_hiding(tmp.path()).expect_err("hides");
        assert!(failure.message.ends_with("would hide a, b, c and 2 more"), "{failure:?}");
    }
}
