//! A tree of files that is written to, or read, by relative paths: plain system calls.
//!
//! Every directory on the way is opened without following links, so that a link inside the tree, or
//! a key that names one, never leads out of it. A file is made under a temporary name in [`WORK_DIR`]
//! of the top and renamed once it is whole. Blocks on the file system; called from threads that may.

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lru::LruCache;
use parking_lot::Mutex;

use crate::base::{Timestamp, own_uid};

/// Where unfinished files lie, at the top of the tree. A run that is over removes it.
pub const WORK_DIR: &str = ".sealfs-unfinished";
/// How the names of parts of large objects begin there.
pub const PART_NAME: &str = "part-";
/// Directories that are kept open.
const OPEN_DIRS_MAX: usize = 256;
/// What `lstat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device and inode number.
    pub id: (u64, u64),
    /// Type and permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
}

impl Stat {
    #[allow(clippy::unnecessary_cast)] // 32 bits on some machines
    fn of(raw: &libc::stat) -> Stat {
        let time = |secs, nanos: i64| Timestamp { secs, nanos: nanos as u32 };
        Stat {
            id: (raw.st_dev, raw.st_ino),
            mode: raw.st_mode,
            nlink: raw.st_nlink as u64,
            uid: raw.st_uid,
            gid: raw.st_gid,
            rdev: raw.st_rdev,
            size: raw.st_size as u64,
            blocks: raw.st_blocks as u64,
            atime: time(raw.st_atime, raw.st_atime_nsec),
            mtime: time(raw.st_mtime, raw.st_mtime_nsec),
        }
    }

    /// `S_IFREG` and the like.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }
}

/// One tree. Shared by threads.
pub struct Tree {
    top: Arc<OwnedFd>,
    path: PathBuf,
    dirs: Mutex<LruCache<PathBuf, Arc<OwnedFd>>>,
    /// Directories that were made here: what is in them, this run has put there.
    made: Mutex<HashSet<PathBuf>>,
    next_temp: AtomicU64,
}

pub(super) fn proc_fd(fd: RawFd) -> Vec<u8> {
    format!("/proc/self/fd/{fd}").into_bytes()
}

pub(super) fn c_name(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

pub(super) fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = checked(result)?;
    // SAFETY: the call has just opened it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const DIR_FLAGS: libc::c_int =
    libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;

impl Tree {
    /// The tree at `path`, whose own links are followed. It must be a directory.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Tree> {
        let top = OwnedFd::from(File::open(path)?);
        let meta = stat_fd(top.as_raw_fd())?;
        if !meta.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        let dirs = LruCache::new(NonZeroUsize::new(OPEN_DIRS_MAX).expect("not zero"));
        Ok(Tree {
            top: Arc::new(top),
            path: path.to_owned(),
            dirs: Mutex::new(dirs),
            made: Mutex::default(),
            next_temp: AtomicU64::new(0),
        })
    }

    /// Where its top is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory at `path`, opened; `make`: those that are missing are made, with mode 0777 less
    /// the umask ([`WORK_DIR`]: for its owner only).
    ///
    /// # Errors
    /// `ENOTDIR` or `ELOOP` where something else is in its place; those of openat(2), mkdirat(2).
    pub fn dir(&self, path: &Path, make: bool) -> io::Result<Arc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(self.top.clone());
        }
        if let Some(open) = self.dirs.lock().get(path) {
            return Ok(open.clone());
        }
        let (parent, name) = split(path);
        let parent = self.dir(parent, make)?;
        let c = c_name(name)?;
        // SAFETY: a descriptor and a C string, both live.
        let open = || owned(unsafe { libc::openat(parent.as_raw_fd(), c.as_ptr(), DIR_FLAGS) });
        // What lies among the unfinished files has not got its rights yet.
        let mode = if path == Path::new(WORK_DIR) { 0o700 } else { 0o777 };
        let opened = match open() {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) && make => {
                // SAFETY: as above.
                match checked(unsafe { libc::mkdirat(parent.as_raw_fd(), c.as_ptr(), mode) }) {
                    Err(e) if e.raw_os_error() != Some(libc::EEXIST) => return Err(e),
                    Err(_) => open()?, // another task was here
                    Ok(_) => {
                        self.made.lock().insert(path.to_owned());
                        open()?
                    }
                }
            }
            opened => opened?,
        };
        let opened = Arc::new(opened);
        self.dirs.lock().put(path.to_owned(), opened.clone());
        Ok(opened)
    }

    /// Forgets the directories that are open at and below `path`, before it is removed or replaced.
    fn forget(&self, path: &Path) {
        let mut dirs = self.dirs.lock();
        let below: Vec<_> =
            dirs.iter().map(|(p, _)| p.clone()).filter(|p| p.starts_with(path)).collect();
        for path in below {
            dirs.pop(&path);
        }
    }

    /// Whether the directory of `path` was made here, so that nothing is at `path` unless this run, or somebody
    /// else meanwhile, has put it there.
    pub fn is_in_new_dir(&self, path: &Path) -> bool {
        self.made.lock().contains(split(path).0)
    }

    fn at(&self, path: &Path, make: bool) -> io::Result<(Arc<OwnedFd>, CString)> {
        let (parent, name) = split(path);
        Ok((self.dir(parent, make)?, c_name(name)?))
    }

    /// lstat(2); `None` if there is nothing, or something that is no directory is on the way.
    ///
    /// # Errors
    /// Any other of the call.
    pub fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        if path.as_os_str().is_empty() {
            return stat_fd(self.top.as_raw_fd()).map(Some);
        }
        let absent = |e: &io::Error| {
            matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
        };
        let (dir, name) = match self.at(path, false) {
            Err(e) if absent(&e) => return Ok(None),
            at => at?,
        };
        let mut raw = MaybeUninit::<libc::stat>::uninit();
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: the call fills `raw` if it succeeds; descriptor and name are live.
        let rc = unsafe { libc::fstatat(dir.as_raw_fd(), name.as_ptr(), raw.as_mut_ptr(), flags) };
        match checked(rc) {
            // SAFETY: the call has succeeded.
            Ok(_) => Ok(Some(Stat::of(unsafe { raw.assume_init_ref() }))),
            Err(e) if absent(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A file at `path`, open for reading; links are not followed.
    ///
    /// # Errors
    /// Those of openat(2).
    pub fn read(&self, path: &Path) -> io::Result<File> {
        let (dir, name) = self.at(path, false)?;
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: descriptor and name are live.
        let open =
            |more| owned(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | more) });
        // Reading is no access that anybody wants to see; only the owner may ask for that.
        let opened = match open(libc::O_NOATIME) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => open(0),
            opened => opened,
        };
        opened.map(File::from)
    }

    /// The names in the directory at `path`, but `.`, `..` and, at the top, [`WORK_DIR`].
    ///
    /// # Errors
    /// Those of opening and of readdir(3).
    pub fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let dir = self.dir(path, false)?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(OsStr::from_bytes(&proc_fd(dir.as_raw_fd())))? {
            names.push(entry?.file_name());
        }
        if path.as_os_str().is_empty() {
            names.retain(|name| name != WORK_DIR);
        }
        names.sort();
        Ok(names)
    }

    /// The target of the symlink at `path`.
    ///
    /// # Errors
    /// Those of readlinkat(2).
    pub fn target(&self, path: &Path) -> io::Result<OsString> {
        let (dir, name) = self.at(path, false)?;
        let mut buffer = vec![0u8; libc::PATH_MAX as usize + 1];
        // SAFETY: the buffer has as many bytes as the call is told.
        let n = unsafe {
            let out = buffer.as_mut_ptr().cast();
            libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), out, buffer.len())
        };
        checked(n as libc::c_int)?;
        buffer.truncate(n as usize);
        Ok(OsString::from_vec(buffer))
    }

    pub(super) fn at_or_dot(&self, path: &Path) -> io::Result<(Arc<OwnedFd>, CString)> {
        match path.as_os_str().is_empty() {
            true => Ok((self.top.clone(), c".".to_owned())),
            false => self.at(path, false),
        }
    }

    /// Its own name in [`WORK_DIR`].
    pub fn temp(&self) -> PathBuf {
        let n = self.next_temp.fetch_add(1, Relaxed);
        Path::new(WORK_DIR).join(format!("{}-{n}", std::process::id()))
    }

    /// A file at `path`, open for reading and writing, with what is in it; made if it is not there, for its
    /// owner only.
    ///
    /// # Errors
    /// Those of openat(2).
    pub fn write(&self, path: &Path) -> io::Result<File> {
        self.open_to_write(path, 0)
    }

    /// The same of a file that must not be there yet.
    ///
    /// # Errors
    /// Those of openat(2): `EEXIST`.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        self.open_to_write(path, libc::O_EXCL)
    }

    fn open_to_write(&self, path: &Path, more: libc::c_int) -> io::Result<File> {
        let (dir, name) = self.at(path, true)?;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_CLOEXEC | more;
        // SAFETY: descriptor and name are live; the mode is the fourth argument of O_CREAT.
        owned(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, 0o600 as libc::c_uint) })
            .map(File::from)
    }

    /// A file in a directory that has no name there yet (`O_TMPFILE`), open for reading and writing.
    ///
    /// # Errors
    /// Those of openat(2): `EOPNOTSUPP` where the file system knows no such files.
    pub fn unnamed(&self, dir: &OwnedFd, perm: u32) -> io::Result<File> {
        let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
        // SAFETY: descriptor and name are live; the mode is the fourth argument of O_TMPFILE.
        owned(unsafe { libc::openat(dir.as_raw_fd(), c".".as_ptr(), flags, perm as libc::c_uint) })
            .map(File::from)
    }

    /// Gives an open file the name `path`.
    ///
    /// # Errors
    /// Those of linkat(2): `EEXIST` if something is there.
    pub fn link_open(&self, file: &File, path: &Path) -> io::Result<()> {
        let (dir, name) = self.at(path, true)?;
        let from = CString::new(proc_fd(file.as_raw_fd()))?;
        let flags = libc::AT_SYMLINK_FOLLOW;
        // SAFETY: descriptor and names are live.
        let rc = unsafe {
            let to = (dir.as_raw_fd(), name.as_ptr());
            libc::linkat(libc::AT_FDCWD, from.as_ptr(), to.0, to.1, flags)
        };
        checked(rc).map(drop)
    }

    /// Makes a symlink at `path`.
    ///
    /// # Errors
    /// Those of symlinkat(2).
    pub fn symlink(&self, target: &OsStr, path: &Path) -> io::Result<()> {
        let (dir, name) = self.at(path, true)?;
        let target = c_name(target)?;
        // SAFETY: descriptor and names are live.
        checked(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) })
            .map(drop)
    }

    /// Makes a device, pipe or socket at `path`.
    ///
    /// # Errors
    /// Those of mknodat(2): `EPERM` for devices, unless by root.
    pub fn node(&self, path: &Path, mode: u32, rdev: u64) -> io::Result<()> {
        let (dir, name) = self.at(path, true)?;
        // SAFETY: descriptor and name are live.
        checked(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
    }

    /// Makes `path` another name of `old`.
    ///
    /// # Errors
    /// Those of linkat(2).
    pub fn link(&self, old: &Path, path: &Path) -> io::Result<()> {
        let (from, old) = self.at(old, false)?;
        let (to, new) = self.at(path, true)?;
        // SAFETY: descriptors and names are live.
        let rc = unsafe {
            libc::linkat(from.as_raw_fd(), old.as_ptr(), to.as_raw_fd(), new.as_ptr(), 0)
        };
        checked(rc).map(drop)
    }

    /// Renames a file of [`WORK_DIR`] to `path`, over what is there; an empty directory there gives
    /// way.
    ///
    /// # Errors
    /// Those of renameat(2): `EISDIR`, `ENOTEMPTY` if a directory that is not empty is there.
    pub fn put_in_place(&self, temp: &Path, path: &Path) -> io::Result<()> {
        let (from, old) = self.at(temp, false)?;
        let (to, new) = self.at(path, true)?;
        // SAFETY: descriptors and names are live.
        let rename = || {
            checked(unsafe {
                libc::renameat(from.as_raw_fd(), old.as_ptr(), to.as_raw_fd(), new.as_ptr())
            })
        };
        match rename() {
            Err(e) if e.raw_os_error() == Some(libc::EISDIR) => {
                self.remove(path, true)?;
                rename().map(drop)
            }
            renamed => renamed.map(drop),
        }
    }

    /// Removes a file, or an empty directory.
    ///
    /// # Errors
    /// Those of unlinkat(2).
    pub fn remove(&self, path: &Path, is_dir: bool) -> io::Result<()> {
        if is_dir {
            self.forget(path);
        }
        let (dir, name) = self.at(path, false)?;
        let flags = if is_dir { libc::AT_REMOVEDIR } else { 0 };
        // SAFETY: descriptor and name are live.
        checked(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
    }

    pub(super) fn at_or_top(&self, path: &Path) -> io::Result<(Arc<OwnedFd>, CString)> {
        match path.as_os_str().is_empty() {
            true => Ok((self.top.clone(), CString::default())),
            false => self.at(path, false),
        }
    }

    /// Takes [`WORK_DIR`] for this run until the descriptor is dropped; `None` if another has it. What an
    /// earlier run has left there goes, but for the parts of large objects, which this one goes on with.
    ///
    /// # Errors
    /// Those of making it, and of flock(2). `PermissionDenied`: others can write there.
    pub fn take_work(&self) -> io::Result<Option<Arc<OwnedFd>>> {
        let work = self.dir(Path::new(WORK_DIR), true)?;
        let stat = stat_fd(work.as_raw_fd())?;
        if stat.uid != own_uid() || stat.mode & 0o022 != 0 {
            let what = format!("{WORK_DIR} there can be written by others: remove it");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        // SAFETY: the descriptor is live.
        match checked(unsafe { libc::flock(work.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            locked => locked?,
        };
        self.empty_work(|name| !name.as_bytes().starts_with(PART_NAME.as_bytes()))?;
        Ok(Some(work))
    }

    fn empty_work(&self, goes: impl Fn(&OsStr) -> bool) -> io::Result<()> {
        let work = Path::new(WORK_DIR);
        for name in self.list(work)?.iter().filter(|name| goes(name)) {
            self.remove(&work.join(name), false)?;
        }
        Ok(())
    }

    /// Removes [`WORK_DIR`] with what lies in it.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn clear_work(&self) -> io::Result<()> {
        let work = Path::new(WORK_DIR);
        if self.stat(work)?.is_none_or(|stat| !stat.is_dir()) {
            return Ok(());
        }
        self.empty_work(|_| true)?;
        self.remove(work, true)
    }

    /// Takes note of what was lost before, so that [`Tree::sync`] tells of what is lost from now on:
    /// Linux tells the first that asks (`errseq_t`) of pages that could not be written back, whoever
    /// wrote them, a program that was killed on the same file system among others. Of a file that one was
    /// killed at, it tells once more when that is removed (`fuse_flush_time_update`).
    pub fn forget_losses(&self) {
        if let Err(e) = self.sync() {
            log::info!("{}: something written earlier was lost: {e}", self.path.display());
        }
    }

    /// Brings what was written to stable storage (syncfs(2)).
    ///
    /// # Errors
    /// Those of the call.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the descriptor is live.
        checked(unsafe { libc::syncfs(self.top.as_raw_fd()) }).map(drop)
    }
}

/// Parent and last name of a relative path.
pub fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default())
}

/// fstat(2).
///
/// # Errors
/// Those of the call.
pub fn stat_fd(fd: RawFd) -> io::Result<Stat> {
    let mut raw = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the call fills `raw` if it succeeds.
    checked(unsafe { libc::fstat(fd, raw.as_mut_ptr()) })?;
    // SAFETY: it has succeeded.
    Ok(Stat::of(unsafe { raw.assume_init_ref() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::spot::Spot;
    use std::fs::Permissions;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_link_inside_the_tree_never_leads_out_of_it() {
        // Guards against an object `link/passwd` that is written to wherever `link` of the volume
        // points.
        let tmp = tempfile::tempdir().expect("a directory");
        let (inside, outside) = (tmp.path().join("in"), tmp.path().join("out"));
        std::fs::create_dir(&inside).expect("makes");
        std::fs::create_dir(&outside).expect("makes");
        symlink(&outside, inside.join("link")).expect("links");
        let tree = Tree::open(&inside).expect("opens");
        assert!(tree.write(Path::new("link/file")).is_err());
        assert!(tree.dir(Path::new("link"), true).is_err());
        assert_eq!(tree.stat(Path::new("link/file")).expect("looks"), None);
        std::fs::write(outside.join("file"), "x").expect("writes");
        assert!(tree.read(Path::new("link/file")).is_err());
        assert!(tree.remove(Path::new("link/file"), false).is_err());
        assert_eq!(std::fs::read_dir(&outside).expect("lists").count(), 1);
    }

    #[test]
    fn what_an_earlier_run_left_is_not_written_into() {
        // Guards against the end of an old file behind the contents of a new one, where a process has the number
        // that a killed one had; and against links that somebody else has put where root writes.
        let tmp = tempfile::tempdir().expect("a directory");
        let work = tmp.path().join(WORK_DIR);
        let tree = Tree::open(tmp.path()).expect("opens");
        let temp = tree.temp();
        drop(tree.take_work().expect("takes"));
        std::fs::write(tmp.path().join(&temp), "a longer text").expect("writes");
        assert!(tree.create(&temp).is_err(), "it is there");
        std::fs::write(work.join("part-1"), "some of it").expect("writes");
        symlink("nowhere", work.join("1-1")).expect("links");
        drop(tree.take_work().expect("takes").expect("nobody else has it"));
        assert_eq!(tree.list(Path::new(WORK_DIR)).expect("lists"), ["part-1"]);
        std::fs::set_permissions(&work, Permissions::from_mode(0o777)).expect("sets");
        let refused = tree.take_work().expect_err("others can write there");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_file_gets_its_name_when_it_is_whole() {
        // Guards against half a file under its name, and against a marker's empty directory in the
        // way.
        let tmp = tempfile::tempdir().expect("a directory");
        let tree = Tree::open(tmp.path()).expect("opens");
        let temp = tree.temp();
        tree.write(&temp).expect("makes").write_all(b"hello").expect("writes");
        let path = Path::new("a/b/c");
        tree.dir(path, true).expect("a directory in the way");
        tree.put_in_place(&temp, path).expect("renames");
        let at = Timestamp { secs: 12, nanos: 34 };
        tree.set_times(Spot::At(path), None, at).expect("sets");
        tree.set_perm(Spot::At(path), 0o640).expect("sets");
        let stat = tree.stat(path).expect("looks").expect("is there");
        assert_eq!((stat.size, stat.mtime, stat.mode & 0o7777), (5, at, 0o640));
        tree.set_times(Spot::At(Path::new("")), None, at).expect("the top, too");
        tree.clear_work().expect("clears");
        assert_eq!(tree.list(Path::new("")).expect("lists"), ["a"]);
    }
}
