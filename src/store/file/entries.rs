//! Opening and listing what lies in the directory of a `file://` store.
//!
//! Only regular files, and symbolic links to them, are objects. To open anything else may block for
//! ever (a fifo) or do something (a device), so it is looked at first, and refused at once. A listing
//! names it all the same: whoever checks the volume shall see it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path as FsPath, PathBuf};
use std::time::UNIX_EPOCH;

use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{Error, ListResult, ObjectMeta, Result};
use walkdir::WalkDir;

use super::failed;
use crate::base::in_calendar;
use crate::store::error::{ErrorClass, StoreError};
use crate::store::names::{key_of, path_of};

/// Entries that are looked at before the first of them is handed out.
const BATCH: usize = 1024;

/// As `LocalFileSystem` forms it (a test compares the two).
pub(super) fn e_tag(metadata: &Metadata) -> String {
    let time = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let micros = time.unwrap_or_default().as_micros();
    format!("\"{:x}-{micros:x}-{:x}\"", metadata.ino(), metadata.len())
}

/// What is said of an object.
pub(super) fn meta_of(location: Path, metadata: &Metadata) -> ObjectMeta {
    ObjectMeta {
        location,
        last_modified: in_calendar(metadata.modified().unwrap_or(UNIX_EPOCH)).into(),
        size: if metadata.is_file() { metadata.len() } else { 0 },
        e_tag: Some(e_tag(metadata)),
        version: None,
    }
}

/// Where an object lies below `root`; `None` if no object can have this name here.
pub(super) fn place(root: &FsPath, location: &Path) -> Option<PathBuf> {
    let key = key_of(location);
    let parts: Vec<&[u8]> = key.split(|&b| b == b'/').collect();
    let is_name =
        |part: &&[u8]| !matches!(**part, [] | [b'.'] | [b'.', b'.']) && !part.contains(&0);
    let is_staged = parts.last().is_some_and(|name| is_staged(name));
    let is_object = parts.iter().all(is_name) && !is_staged;
    is_object.then(|| root.join(std::ffi::OsStr::from_bytes(&key)))
}

/// Whether a file is one that is being written, or the lock: `name#DIGITS`.
fn is_staged(name: &[u8]) -> bool {
    let at = name.iter().position(|&b| b == b'#');
    let digits = at.map(|at| &name[at + 1..]).unwrap_or_default();
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

/// Opens an object to be read. Never blocks on what is no regular file, nor opens a device.
///
/// # Errors
/// `NotFound`, for a directory too (a prefix is no object); of class [`ErrorClass::Corrupt`] for what
/// is neither a regular file nor a directory; what the file system says.
pub(super) fn open_object(path: &FsPath) -> Result<(File, Metadata)> {
    let look = || fs::metadata(path).map_err(|e| not_opened(path, e));
    refuse_others(path, &look()?)?;
    let mut options = OpenOptions::new();
    // What was exchanged since does not block either.
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|e| not_opened(path, e))?;
    let metadata = file.metadata().map_err(|e| failed("look at", path, e))?;
    refuse_others(path, &metadata)?;
    Ok((file, metadata))
}

/// Opens a file of the store's own (the lock) to be locked, creating it.
pub(super) fn open_own(path: &FsPath) -> Result<File> {
    let mut options = OpenOptions::new();
    options
        .create(true)
        .truncate(false)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    match fs::metadata(path) {
        Ok(found) => refuse_others(path, &found)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(not_opened(path, e)),
    }
    options.open(path).map_err(|e| not_opened(path, e))
}

fn refuse_others(path: &FsPath, found: &Metadata) -> Result<()> {
    let kind = found.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => {
            let source = "it is a directory".into();
            return Err(Error::NotFound { path: path.display().to_string(), source });
        }
        () if kind.is_fifo() => "a fifo",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(no_object(path, what))
}

fn no_object(path: &FsPath, what: &str) -> Error {
    let message = format!("{} is {what}, not an object", path.display());
    StoreError::new(ErrorClass::Corrupt, message).into_store("file")
}

fn not_opened(path: &FsPath, e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::ELOOP) => no_object(path, "a symbolic link in a circle"),
        // What is there now and no link has come since, which is as if it were not there yet.
        Some(libc::ENOENT) if fs::symlink_metadata(path).is_ok_and(|now| now.is_symlink()) => {
            no_object(path, "a symbolic link that leads nowhere")
        }
        Some(libc::ENOENT | libc::ENOTDIR) => {
            Error::NotFound { path: path.display().to_string(), source: e.into() }
        }
        // A fifo or socket that has taken the place of a file since it was looked at.
        Some(libc::ENXIO) => no_object(path, "a fifo or a socket"),
        _ => failed("open", path, e),
    }
}

/// What lies directly or anywhere below a prefix.
pub(super) struct Walk {
    root: PathBuf,
    walk: walkdir::IntoIter,
}

/// An entry of the directory.
enum Entry {
    Object(ObjectMeta),
    Prefix(Path),
}

impl Walk {
    pub(super) fn new(root: &FsPath, prefix: Option<&Path>, deep: bool) -> Walk {
        let below = prefix.and_then(|prefix| place(root, prefix)).unwrap_or_else(|| root.into());
        let depth = if deep { usize::MAX } else { 1 };
        let walk = WalkDir::new(below).min_depth(1).max_depth(depth).follow_links(true);
        Walk { root: root.into(), walk: walk.into_iter() }
    }

    fn path_of(&self, at: &FsPath) -> Option<Path> {
        let below = at.strip_prefix(&self.root).ok()?;
        Some(path_of(below.as_os_str().as_bytes()))
    }

    /// The next one; `None` at the end. What has gone meanwhile is passed over.
    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            let (at, metadata) = match self.walk.next()? {
                Ok(entry) if entry.file_type().is_dir() => match self.path_of(entry.path()) {
                    Some(path) => return Some(Ok(Entry::Prefix(path))),
                    None => continue,
                },
                Ok(entry) => (entry.path().to_owned(), entry.metadata().ok()),
                // A link in a circle, or that leads nowhere.
                Err(e) => match e.path().map(|at| (at.to_owned(), fs::symlink_metadata(at))) {
                    Some((at, Ok(found))) if found.is_symlink() => (at, Some(found)),
                    Some((_, Err(gone))) if gone.kind() == io::ErrorKind::NotFound => continue,
                    at => {
                        let at = at.map_or_else(|| self.root.clone(), |(at, _)| at);
                        let e = e.into_io_error().unwrap_or_else(|| io::Error::other("a circle"));
                        return Some(Err(failed("list", &at, e)));
                    }
                },
            };
            let staged = at.file_name().is_some_and(|name| is_staged(name.as_bytes()));
            if let (false, Some(metadata), Some(path)) = (staged, metadata, self.path_of(&at)) {
                return Some(Ok(Entry::Object(meta_of(path, &metadata))));
            }
        }
    }

    /// Every object, in no order.
    pub(super) fn objects(self) -> BoxStream<'static, Result<ObjectMeta>> {
        let batches = stream::try_unfold(self, |mut walk| async move {
            let batch = tokio::task::spawn_blocking(move || {
                let mut batch = Vec::new();
                while batch.len() < BATCH {
                    match walk.next() {
                        Some(Ok(Entry::Object(meta))) => batch.push(Ok(meta)),
                        Some(Ok(Entry::Prefix(_))) => {}
                        Some(Err(e)) => batch.push(Err(e)),
                        None => break,
                    }
                }
                (batch, walk)
            });
            let (batch, walk) = batch.await?;
            Ok::<_, Error>((!batch.is_empty()).then(|| (stream::iter(batch), walk)))
        });
        batches
            .map(|batch| match batch {
                Ok(batch) => batch.boxed(),
                Err(e) => stream::once(async { Err(e) }).boxed(),
            })
            .flatten()
            .boxed()
    }

    /// The objects and prefixes of one level. Blocks.
    pub(super) fn level(mut self) -> Result<ListResult> {
        let (mut objects, mut common_prefixes) = (Vec::new(), Vec::new());
        while let Some(entry) = self.next() {
            match entry? {
                Entry::Object(meta) => objects.push(meta),
                Entry::Prefix(path) => common_prefixes.push(path),
            }
        }
        common_prefixes.sort();
        Ok(ListResult { objects, common_prefixes, extensions: Default::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn what_comes_and_goes_is_there_or_not_found() {
        // Guards against an object that came between two looks being called a dangling link, which is
        // damage.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("RACE");
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    fs::write(&path, b"").unwrap();
                    fs::remove_file(&path).unwrap();
                }
            });
            let looks = std::panic::catch_unwind(|| {
                let (mut there, mut gone) = (0, 0);
                for _ in 0..20_000 {
                    match open_object(&path) {
                        Ok(_) => there += 1,
                        Err(Error::NotFound { .. }) => gone += 1,
                        Err(e) => panic!("{e}"),
                    }
                }
                (there, gone)
            });
            end.store(true, Ordering::Relaxed);
            let (there, gone) = looks.unwrap();
            assert!(there > 0 && gone > 0, "{there} there, {gone} gone: nothing was raced");
        });
    }
}
