//! What is mounted where, by whom, and whether anybody serves it.
//!
//! Reads the kernel's table: asking a mount itself may be a request to ourselves, or one that
//! nobody answers.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// How long a mount may take to say that it is alive.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `major:minor`.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type, such as `fuse.sealfs`.
    pub kind: String,
    /// What is mounted: of ours, the store.
    pub source: String,
    /// Who mounted it, where it is a FUSE mount.
    pub owner: Option<u32>,
}

impl Entry {
    /// Whether it is a mount of this program.
    pub fn is_sealfs(&self) -> bool {
        self.kind == "fuse.sealfs"
    }
}

/// How a mount answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It answers.
    Alive,
    /// The kernel says that its process is gone.
    Dead,
    /// It lets this user not even ask: it belongs to somebody else.
    Private,
    /// It does not answer in time.
    Silent,
}

/// Everything that is mounted in this mount namespace, later mounts last.
pub fn mounts() -> Vec<Entry> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|&b| b == b'\n').filter_map(parse).collect()
}

/// What is mounted at `point` (resolved); the mount on top if there are several.
pub fn mounted_at(point: &Path) -> Option<Entry> {
    mounts().into_iter().rfind(|entry| entry.point == point)
}

/// Whether anybody serves the FUSE mount at `point`. Waits at most [`ANSWER_MAX`].
pub fn life(point: &Path) -> Life {
    let (say, answer) = mpsc::channel();
    let asked = point.to_path_buf();
    // A request to a process that hangs ends when that process does, so it gets its own thread.
    let asking = std::thread::Builder::new().spawn(move || {
        let statfs = statfs(&asked);
        // Always answered by the process, unlike stat, but refused without an error.
        let stat = asked.symlink_metadata();
        let _ = say.send((statfs, stat.err())); // nobody may wait any more
    });
    if asking.is_err() {
        return Life::Silent;
    }
    let gone = [Some(libc::ENOTCONN), Some(libc::ECONNABORTED)];
    match answer.recv_timeout(ANSWER_MAX) {
        Ok((Err(e), _)) if gone.contains(&e.raw_os_error()) => Life::Dead,
        Ok((_, Some(e))) if gone.contains(&e.raw_os_error()) => Life::Dead,
        Ok((_, Some(e))) if e.kind() == io::ErrorKind::PermissionDenied => Life::Private,
        Ok(_) => Life::Alive,
        Err(_) => Life::Silent,
    }
}

fn statfs(point: &Path) -> io::Result<()> {
    let path = CString::new(point.as_os_str().as_bytes())?;
    let mut out = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends with NUL, and the kernel fills `out`, which nobody reads.
    match unsafe { libc::statfs(path.as_ptr(), out.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `id parent major:minor root point options [tags…] - type source options` (proc(5)).
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ').skip(2);
    let (device, _root, point) = (fields.next()?, fields.next()?, fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source, options) = (fields.next()?, fields.next()?, fields.next()?);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let owner = text(options).split(',').find_map(|o| o.strip_prefix("user_id=")?.parse().ok());
    Some(Entry {
        device: text(device),
        point: PathBuf::from(OsString::from_vec(unescape(point))),
        kind: text(kind),
        source: text(&unescape(source)),
        owner,
    })
}

/// Space, tab, newline, `#` and backslash are written in octal there.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|d| first == b'\\' && d.iter().all(u8::is_ascii_digit));
        let byte = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled;

    #[test]
    fn a_line_of_the_table_is_read_with_its_spaces_and_owner() {
        // Guards against a mount that is not found because its path has a space, and against
        // optional tags taken for the type.
        let line = b"36 35 0:71 / /mnt/my\\040vault\\134x rw,nosuid shared:1 master:2 - \
                     fuse.sealfs s3://b/a\\040b rw,user_id=1000,group_id=7,allow_other";
        let entry = parse(line).expect("a line");
        assert_eq!(entry.device, "0:71");
        assert_eq!(entry.point, Path::new("/mnt/my vault\\x"));
        assert_eq!((entry.owner, entry.is_sealfs()), (Some(1000), true));
        assert_eq!(entry.source, "s3://b/a b");
        assert!(mounted_at(Path::new("/proc")).is_some_and(|e| e.kind == "proc"));
        assert_eq!(mounted_at(Path::new("/no such mount")), None);
        assert_eq!(parse(b""), None);
        assert_eq!(unescape(b"a\\04"), b"a\\04");
    }

    #[test]
    fn what_answers_is_alive() {
        // Guards against a live mount that is taken for a dead one, and detached.
        assert_eq!(life(Path::new("/")), Life::Alive);
    }

    #[test]
    fn no_line_of_the_table_makes_a_panic() {
        // Guards against the names of other mounts, which anybody chooses.
        let line =
            b"36 35 0:71 / /mnt/a\\040b rw shared:1 - fuse.sealfs s3://b/a\\040b rw,user_id=1000";
        garbled(&[line], &[b" ", b"\\", b"\\777", b" - ", b"user_id=", b"\xff"], |line| {
            let _ = parse(line);
            assert!(unescape(line).len() <= line.len());
        });
    }
}
