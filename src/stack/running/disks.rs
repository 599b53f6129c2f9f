//! The local disks that a mount depends on: how they are, in sentences for `status`, and the
//! directories of a volume on them.
//!
//! A disk that is full is found out by the first writer, who waits a minute for nothing; it is to
//! be seen before. Asks the file system for its free space (statvfs(3)), writes nothing there.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::journal::{Journal, Trouble};
use crate::stack::{StackError, StoreStack};

/// What is free on the file system of a directory for this user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) free_bytes: u64,
    pub(crate) read_only: bool,
}

/// Asks the file system that `dir` is on.
pub(crate) fn space_of(dir: &Path) -> io::Result<Space> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: the path is a NUL-terminated string, and the call only fills in the structure, for
    // which all zeros are a valid value.
    let stat = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(path.as_ptr(), &mut stat) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat
    };
    Ok(Space {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        read_only: stat.f_flag & libc::ST_RDONLY != 0,
    })
}

/// Bytes that the journal in `dir` has on its disk or could get; `dir` may be missing below
/// `parent`. `None` if that is not known.
pub(crate) fn room_for(dir: &Path, parent: &Path) -> Option<u64> {
    let free = space_of(parent).ok()?.free_bytes;
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let taken: u64 = files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum();
    Some(free + taken)
}

/// Bytes as people read them.
pub(crate) fn human(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// What the journal has and may still want of its disk.
struct Wants {
    /// Bytes of its spare files.
    spare: u64,
    /// Bytes that new files may still take up to its limit.
    more: u64,
    /// Bytes of the next one.
    next: u64,
}

impl Wants {
    fn of(journal: &Journal) -> Wants {
        let usage = journal.usage();
        let has = usage.file_bytes + usage.spare_bytes;
        Wants {
            spare: usage.spare_bytes,
            more: usage.bytes_max.saturating_sub(has),
            next: journal.next_file_bytes(),
        }
    }
}

/// What a person should know of the disk that the journal in `dir` is on; `mount_point` is for the
/// command to type.
pub(crate) fn journal_warning(dir: &Path, journal: &Journal, mount_point: &Path) -> Option<String> {
    let space = space_of(dir);
    journal_sentence(dir, journal.trouble(), Wants::of(journal), space, mount_point)
}

fn journal_sentence(
    dir: &Path,
    trouble: Option<Trouble>,
    wants: Wants,
    space: io::Result<Space>,
    mount_point: &Path,
) -> Option<String> {
    let (shown, point) = (dir.display(), mount_point.display());
    let free = match &space {
        Ok(space) => format!("{} free", human(space.free_bytes)),
        Err(e) => format!("its free space is unknown: {e}"),
    };
    let again = format!("then: sealfs umount --force-local {point}, and mount it again");
    match (trouble, space) {
        (Some(Trouble::Stopped(why)), _) => Some(format!(
            "the local journal has stopped, and nothing that is written is taken: {why}; mend the \
             disk of {shown}, {again}"
        )),
        (Some(Trouble::NoSpace(why)), _) => Some(format!(
            "the disk of the local journal has no room, and writers wait: {why} ({shown}, {free}); \
             free {} there, or raise the quota",
            human(wants.next)
        )),
        (None, Ok(space)) if space.read_only => Some(format!(
            "the disk of the local journal is mounted read-only ({shown}): the next write stops the \
             journal; mount it read-write, {again}"
        )),
        (None, Ok(space)) if space.free_bytes < wants.next.min(wants.more) => Some(format!(
            "the disk of the local journal is nearly full ({shown}, {free}): {} more fit into its \
             files, then writers wait; free {} there",
            human(wants.spare),
            human(wants.next.min(wants.more))
        )),
        _ => None,
    }
}

/// What is worth knowing of the disk of the cache: nothing is lost there, it only holds less.
pub(crate) fn cache_note(layers: &StoreStack) -> Option<String> {
    let (dir, why) = layers.cache_failure()?;
    let free = space_of(&dir).map_or(String::new(), |s| format!(", {} free", human(s.free_bytes)));
    Some(format!(
        "the cache cannot be written, so it keeps less and more is fetched: {why} ({}{free})",
        dir.display()
    ))
}

/// Makes a directory of this volume, or checks that nobody else has made it: what it lies in may be
/// shared.
pub(crate) fn make_dir(path: &Path) -> Result<(), StackError> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let local = |what| move |source| StackError::Local { what, path: path.to_owned(), source };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(local("creating"))?;
    let meta = path.symlink_metadata().map_err(local("looking at"))?;
    let ours = meta.is_dir() && meta.uid() == crate::base::own_uid();
    match ours && meta.mode() & 0o022 == 0 {
        true => Ok(()),
        false => {
            let why = "it is not a directory of this user's alone";
            Err(local("using")(std::io::Error::other(why)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn said(trouble: Option<Trouble>, free: u64, read_only: bool, more: u64) -> Option<String> {
        let wants = Wants { spare: 64 * MIB, more, next: 64 * MIB };
        let space = Ok(Space { free_bytes: free, read_only });
        journal_sentence(Path::new("/j"), trouble, wants, space, Path::new("/m"))
    }

    #[test]
    fn a_disk_that_is_or_will_be_full_is_named_with_what_to_do() {
        // Guards against "online" and no warning while every write waits for ENOSPC.
        assert_eq!(said(None, 100 * MIB, false, 10_000 * MIB), None);
        // All it may ever take is allocated: what is free does not matter.
        assert_eq!(said(None, 0, false, 0), None);
        let near = said(None, 3 * MIB, false, 10_000 * MIB).expect("a warning");
        for part in ["nearly full (/j, 3072 KiB free)", "64 MiB more fit", "free 64 MiB there"] {
            assert!(near.contains(part), "{part:?} in {near}");
        }
        let full = Trouble::NoSpace("Disk quota exceeded".into());
        let full = said(Some(full), 900 * MIB, false, 10_000 * MIB).expect("a warning");
        assert!(full.contains("Disk quota exceeded (/j, 900 MiB free)"), "{full}");
        let stopped = said(Some(Trouble::Stopped("EIO".into())), 0, false, 0).expect("a warning");
        assert!(
            stopped.contains("EIO") && stopped.contains("umount --force-local /m"),
            "{stopped}"
        );
        assert!(said(None, 100 * MIB, true, 0).is_some_and(|s| s.contains("read-only")));
    }

    #[test]
    fn free_space_is_that_of_the_directory() {
        // Guards against a number that is not bytes.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let space = space_of(dir.path()).expect("it exists");
        assert!(!space.read_only && space.free_bytes > 1 << 16, "{space:?}");
        assert!(space_of(Path::new("/no such directory")).is_err());
    }
}
