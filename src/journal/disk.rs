//! The thin file layer the journal stands on: what a file system is asked, and no more.
//!
//! [`RealDisk`] asks the operating system. `tests/support/disk_sim` is a disk in memory
//! that crashes, tears and refuses on demand.
//!
//! Assumed of the medium: [`DiskFile::datasync`] and [`DiskIo::sync_dir`] mean what they say;
//! a sector of 512 bytes is written wholly or not at all; rewriting a sector with what it
//! already holds cannot damage it; entries of one directory reach the disk in the order of the
//! requests.

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// An open file. Offsets and lengths are bytes.
pub trait DiskFile: Send + Sync {
    /// Writes all of `bytes` at `offset`; after an error any part may have been written.
    fn pwrite(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Fills `bytes` from `offset`; `UnexpectedEof` if the file is shorter.
    fn pread(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Returns when everything written is on stable storage (`fdatasync(2)`). After an error
    /// nothing is known about it, and a second call may succeed without having written it.
    fn datasync(&self) -> io::Result<()>;
    /// The file's length.
    fn len(&self) -> io::Result<u64>;
    /// True if the file's length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Makes the file `len` long with blocks allocated where the file system can; `StorageFull`
    /// if there are not enough.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Asks that the range be on its way to the disk; promises nothing.
    fn start_writeback(&self, offset: u64, len: u64);
}

/// The answer to [`DiskIo::lock`].
pub enum LockAnswer {
    /// Locked until the value is dropped, or the process ends.
    Held(Box<dyn Any + Send + Sync>),
    /// Somebody has it: the process id they left, if readable.
    Busy(Option<u32>),
}

/// A disk. Paths are absolute or relative to the process, as the caller likes.
pub trait DiskIo: Send + Sync {
    /// Makes a directory and what is missing above it, for this user only; it may exist.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory, in no order; names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file for this user only; `AlreadyExists` if there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file or directory, replacing a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns when every earlier change to the directory's entries is on stable storage.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock on a file (made if missing) and leaves this process's id in it.
    /// Never waits.
    fn lock(&self, path: &Path) -> io::Result<LockAnswer>;
}

/// The operating system's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(File);

impl DiskFile for RealFile {
    fn pwrite(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn pread(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn datasync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let bytes = libc::off_t::try_from(len).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open for as long as `self.0` lives; no memory is passed.
        if unsafe { libc::fallocate(self.0.as_raw_fd(), 0, 0, bytes) } == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            // A file system without fallocate: blocks come as they are written.
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => self.0.set_len(len),
            _ => Err(e),
        }
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
        // SAFETY: the descriptor is open for as long as `self.0` lives; no memory is passed.
        // The result does not matter: an error of the write itself is kept by the kernel for
        // the next fdatasync of this descriptor.
        unsafe {
            libc::sync_file_range(self.0.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE);
        }
    }
}

impl DiskIo for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<LockAnswer> {
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                Ok(LockAnswer::Held(Box::new(file)))
            }
            Err(fs::TryLockError::WouldBlock) => {
                let mut words = String::new();
                // The holder may be about to write it: an unreadable id is not an error.
                let read = file.take(32).read_to_string(&mut words);
                Ok(LockAnswer::Busy(read.ok().and_then(|_| words.trim().parse().ok())))
            }
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }
}

/// The operating system's disk, of which nothing is changed: for looking into a journal that
/// another process may have open. Spare files are not shown, and locks are granted without one.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnlyDisk;

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
}

impl DiskIo for ReadOnlyDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::metadata(dir).map(|_| ())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names = RealDisk.list(dir)?;
        Ok(names.into_iter().filter(|name| !name.starts_with("free-")).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::open(path)?)))
    }

    fn create(&self, _path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        read_only()
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        read_only()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<LockAnswer> {
        Ok(LockAnswer::Held(Box::new(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_with_the_holder_process_id() {
        // Guards against two daemons writing one journal: flock is per open file, so a second
        // open of this same process meets it too.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let LockAnswer::Held(held) = RealDisk.lock(&path).unwrap() else { panic!("first lock") };
        match RealDisk.lock(&path).unwrap() {
            LockAnswer::Busy(pid) => assert_eq!(pid, Some(std::process::id())),
            LockAnswer::Held(_) => panic!("locked twice"),
        }
        drop(held);
        assert!(matches!(RealDisk.lock(&path).unwrap(), LockAnswer::Held(_)));
    }

    #[test]
    fn files_are_made_for_this_user_only_and_never_over_another() {
        // Guards against a file of the journal being readable by others or truncated by a
        // second creation.
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        RealDisk.create_dir(&inner).unwrap();
        let path = inner.join("f");
        let file = RealDisk.create(&path).unwrap();
        file.allocate(8192).unwrap();
        assert_eq!(file.len().unwrap(), 8192);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
        let again = RealDisk.create(&path).err().expect("refused");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }
}
