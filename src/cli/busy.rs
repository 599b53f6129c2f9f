//! Who keeps a mount busy: the processes with something of it open, and the places where else the
//! file system is mounted, found in /proc.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The processes that can be seen to use something below `point`, as `name (pid)`. What other
/// users' processes do is visible to root only.
pub fn users_of(point: &Path) -> Vec<String> {
    let using = |pid: &u32| links(&process(*pid)).iter().any(|link| link.starts_with(point));
    processes().into_iter().filter(using).map(named).collect()
}

fn process(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// All processes that can be seen, in the order of their ids.
fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

fn named(pid: u32) -> String {
    let name = fs::read_to_string(process(pid).join("comm")).unwrap_or_default();
    format!("{} ({pid})", name.trim())
}

/// Where a process is and what it has open. Only links are read, never what they lead to.
fn links(process: &Path) -> Vec<PathBuf> {
    let fixed = ["cwd", "root", "exe"].map(|name| process.join(name));
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    fixed.into_iter().chain(open.map(|fd| fd.path())).flat_map(fs::read_link).collect()
}

/// A mount in another mount namespace (a container, `unshare -m`, a service with its own view).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// A process that lives there, as `name (pid)`.
    pub who: String,
    /// Its id.
    pub pid: u32,
    /// The namespace, as `mnt:[N]`; `None` if only root may know.
    pub namespace: Option<String>,
    /// Where it is mounted, as that process sees it.
    pub path: PathBuf,
}

/// Where a file system is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// In this process's mount namespace.
    pub here: Vec<PathBuf>,
    /// In the others, as far as they can be seen: those that have a process.
    pub elsewhere: Vec<Foreign>,
}

/// Everywhere that the file system with this device number (`major:minor`) is mounted.
pub fn places_of(device: &str) -> Places {
    let own = mounts_in(Path::new("/proc/self"), device);
    let mut seen: HashSet<String> = own.iter().map(|(id, _)| id.clone()).collect();
    let mut elsewhere = Vec::new();
    for pid in processes() {
        // The id of a mount is the same for all processes of its namespace, and only for them.
        for (id, path) in mounts_in(&process(pid), device) {
            if seen.insert(id) {
                let namespace = fs::read_link(process(pid).join("ns/mnt")).ok();
                let namespace = namespace.map(|ns| ns.display().to_string());
                elsewhere.push(Foreign { who: named(pid), pid, namespace, path });
            }
        }
    }
    Places { here: own.into_iter().map(|(_, path)| path).collect(), elsewhere }
}

/// Ids and paths of the mounts of a device that a process sees (proc_pid_mountinfo(5)).
fn mounts_in(process: &Path, device: &str) -> Vec<(String, PathBuf)> {
    let table = fs::read(process.join("mountinfo")).unwrap_or_default();
    let lines = table.split(|&byte| byte == b'\n');
    lines.filter_map(|line| of_device(line, device)).collect()
}

fn of_device(line: &[u8], device: &str) -> Option<(String, PathBuf)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = String::from_utf8_lossy(fields.next()?).into_owned();
    let (_parent, number, _root) = (fields.next()?, fields.next()?, fields.next()?);
    (number == device.as_bytes()).then_some(())?;
    Some((id, unescaped(fields.next()?)))
}

/// A path as the table writes it, space, tab, newline and backslash in octal.
fn unescaped(path: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, more)) = rest.split_first() {
        let octal = rest.get(1..4).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, byte) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &rest[4..];
            }
            _ => {
                out.push(first);
                rest = more;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_open_file_is_named() {
        // Guards against "busy" without the one fact that helps.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let point = dir.path().canonicalize().expect("exists");
        let _open = fs::File::create(point.join("f")).expect("creates");
        let pid = format!("({})", std::process::id());
        assert!(users_of(&point).iter().any(|who| who.ends_with(&pid)));
    }

    #[test]
    fn a_mount_is_found_in_the_table_by_its_device() {
        // Guards against a mount that holds the volume and is not named, or named wrongly.
        let line = b"36 35 0:98 / /mnt/my\\040vault rw,noatime master:1 - fuse.sealfs s3://b rw";
        let found = of_device(line, "0:98").expect("it is that device");
        assert_eq!(found, ("36".into(), PathBuf::from("/mnt/my vault")));
        assert_eq!(of_device(line, "0:9"), None);
        assert_eq!(of_device(b"", "0:98"), None);
        let proc = mounts_in(Path::new("/proc/self"), "0:0");
        assert!(proc.is_empty(), "no mount has that device");
    }
}
