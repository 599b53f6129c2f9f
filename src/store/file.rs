//! `file://`: a directory as an object store, with conditional updates and durable puts.
//!
//! object_store's `LocalFileSystem` deletes, copies and takes uploads in parts; what it lacks is a
//! conditional update, and care in what it opens and lists (`entries`). Puts are ours: the bytes go to a staged file (`name#N`, which listings skip), are
//! synced, get a modification time later than the version they replace, and are renamed into
//! place under a lock file, so that the entity tag (inode, time, size) never repeats for a name
//! while it exists. The lock orders the writers of all processes of this machine; a directory
//! on a network file system needs working `flock`.

mod entries;

use super::error::{ErrorClass, StoreError};
use async_trait::async_trait;
use entries::{Walk, e_tag, meta_of, open_object, open_own, place};
use futures::stream::{self, BoxStream, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    RenameOptions, Result,
};
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

/// How long a put waits for another process's put to release the lock.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// The lock file; listings skip names that end with `#` and digits.
const LOCK_NAME: &str = "lock#0";

/// The store; cloning shares it.
#[derive(Clone, Debug)]
pub struct FileStore {
    inner: Arc<LocalFileSystem>,
    root: Arc<PathBuf>,
    /// Device and inode of the root, by which its absence is noticed.
    identity: (u64, u64),
    staged: Arc<AtomicU64>,
}

impl FileStore {
    /// Opens the store in `root`, which must exist and be a directory.
    ///
    /// # Errors
    /// What the file system says of `root`.
    pub fn open(root: impl AsRef<FsPath>) -> Result<FileStore> {
        let inner = LocalFileSystem::new_with_prefix(root.as_ref())?.with_fsync(true);
        let root = fs::canonicalize(root.as_ref()).map_err(|e| failed("open", root.as_ref(), e))?;
        let metadata = fs::metadata(&root).map_err(|e| failed("open", &root, e))?;
        if !metadata.is_dir() {
            let e = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(failed("open", &root, e));
        }
        let identity = (metadata.dev(), metadata.ino());
        let staged = Arc::new(AtomicU64::new(0));
        Ok(FileStore { inner: Arc::new(inner), root: Arc::new(root), identity, staged })
    }

    /// Opens the store in `root`, creating the directory and its parents if need be.
    pub fn create(root: impl AsRef<FsPath>) -> Result<FileStore> {
        let root = root.as_ref();
        create_dirs(root).map_err(|e| failed("create", root, e))?;
        FileStore::open(root)
    }

    /// Fails, as a failure of transport, when the directory that was opened is not there: its
    /// file system was unmounted or it was moved away. Without this its objects would seem lost
    /// and puts would go to whatever lies beneath the mount point.
    fn reachable(&self) -> Result<()> {
        match fs::metadata(self.root.as_path()) {
            Ok(now) if (now.dev(), now.ino()) == self.identity => Ok(()),
            _ => {
                let message = format!("the directory {} is gone", self.root.display());
                Err(StoreError::new(ErrorClass::Transport, message).into_store("file"))
            }
        }
    }

    /// The outcome of an operation, unless it failed for want of the directory itself.
    fn told_apart<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.reachable()?;
        }
        outcome
    }

    /// A listing that is not taken for an empty store when the directory is gone.
    fn listing(
        &self,
        entries: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        // At the end, when an absent directory has listed as nothing.
        let end = stream::once(async move { store.reachable() })
            .filter_map(|end| async move { end.err().map(Err) });
        entries.chain(end).boxed()
    }

    /// Writes and syncs the bytes under a staging name beside `target`.
    fn stage(&self, target: &FsPath, payload: &PutPayload) -> io::Result<Staged> {
        // Unique among processes by the pid, within one by the counter; digits only, so that
        // listings skip it.
        let number = self.staged.fetch_add(1, Relaxed);
        let mut name = target.as_os_str().to_owned();
        name.push(format!("#{}{number:09}", std::process::id()));
        let path = PathBuf::from(name);
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create_dirs(target.parent().unwrap_or(FsPath::new("/")))?;
                open()?
            }
            // Left by a killed process that had our pid.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path)?;
                open()?
            }
            opened => opened?,
        };
        let mut staged = Staged { path, file };
        payload.iter().try_for_each(|part| staged.file.write_all(part))?;
        staged.file.sync_data()?;
        Ok(staged)
    }

    /// The blocking part of a put.
    fn put_blocking(
        &self,
        target: &FsPath,
        payload: &PutPayload,
        mode: &PutMode,
    ) -> Result<PutResult> {
        self.reachable()?;
        let staged = self.stage(target, payload).map_err(|e| failed("write", target, e))?;
        let lock = self.lock()?;
        let old = match fs::metadata(target) {
            Ok(old) => Some(old),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("look at", target, e)),
        };
        check_mode(target, mode, old.as_ref())?;
        let e_tag = staged.commit(target, old.as_ref()).map_err(|e| failed("write", target, e))?;
        drop(lock);
        let parent = target.parent().unwrap_or(FsPath::new("/"));
        sync_dir(parent).map_err(|e| failed("sync", parent, e))?;
        Ok(PutResult { e_tag: Some(e_tag), version: None, extensions: Default::default() })
    }

    /// Where an object lies.
    fn place(&self, location: &Path) -> Result<PathBuf> {
        place(&self.root, location).ok_or_else(|| {
            let source = "no object has such a name here".into();
            Error::NotFound { path: location.to_string(), source }
        })
    }

    /// Takes the store's lock; dropping the file releases it.
    fn lock(&self) -> Result<File> {
        let path = self.root.join(LOCK_NAME);
        let file = open_own(&path)?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                    // Held for the length of two system calls by others.
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(fs::TryLockError::WouldBlock) => {
                    let message = format!("{} is locked by another process", path.display());
                    return Err(StoreError::new(ErrorClass::Throttled, message).into_store("file"));
                }
                Err(fs::TryLockError::Error(e)) => return Err(failed("lock", &path, e)),
            }
        }
    }
}

fn out_of_range(path: &FsPath, e: impl fmt::Display) -> Error {
    let message = format!("cannot read {}: {e}", path.display());
    StoreError::new(ErrorClass::Other, message).into_store("file")
}

fn check_mode(target: &FsPath, mode: &PutMode, old: Option<&Metadata>) -> Result<()> {
    let path = target.display().to_string();
    match (mode, old) {
        (PutMode::Overwrite, _) | (PutMode::Create, None) => Ok(()),
        (PutMode::Create, Some(_)) => {
            Err(Error::AlreadyExists { path, source: "a create found it there".into() })
        }
        (PutMode::Update(_), None) => {
            Err(Error::Precondition { path, source: "an update found nothing".into() })
        }
        (PutMode::Update(version), Some(old)) => match version.e_tag.as_deref() {
            Some(wanted) if wanted == e_tag(old) => Ok(()),
            Some(wanted) => {
                let source = format!("{} does not match {wanted}", e_tag(old)).into();
                Err(Error::Precondition { path, source })
            }
            None => {
                let source = "an update needs the entity tag of what it replaces".into();
                Err(Error::Generic { store: "file", source })
            }
        },
    }
}

/// A staged file; removed when dropped before it was committed.
struct Staged {
    path: PathBuf,
    file: File,
}

impl Staged {
    /// Puts the file in place, later than `old` by its clock, and returns its entity tag. The
    /// caller holds the lock and syncs the directory.
    fn commit(self, target: &FsPath, old: Option<&Metadata>) -> io::Result<String> {
        let mut time = SystemTime::now();
        if let Some(old) = old {
            time = time.max(old.modified()? + Duration::from_micros(2));
        }
        // Not synced by itself, to keep the lock short: if a power failure loses it, the tag
        // changes and an update is refused once too often, never once too rarely.
        self.file.set_modified(time)?;
        let tag = e_tag(&self.file.metadata()?);
        fs::rename(&self.path, target)?;
        Ok(tag)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a commit there is nothing by this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Creates `dir` with its missing parents, each synced into its own parent.
fn create_dirs(dir: &FsPath) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(FsPath::new("/"));
    create_dirs(parent)?;
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        made => made?,
    }
    sync_dir(parent)
}

fn sync_dir(dir: &FsPath) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn failed(what: &str, path: &FsPath, e: io::Error) -> Error {
    let class = match e.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorClass::Auth,
        // Space may be freed, a directory removed by a neighbour's clean-up comes back.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorClass::Throttled,
        io::ErrorKind::NotFound => ErrorClass::NotFound,
        _ => ErrorClass::Other,
    };
    let message = format!("cannot {what} {}", path.display());
    StoreError::with_source(class, message, e).into_store("file")
}

#[async_trait]
impl ObjectStore for FileStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        if !opts.attributes.is_empty() || !opts.tags.is_empty() {
            return Err(Error::NotImplemented {
                operation: "put with attributes or tags".into(),
                implementer: self.to_string(),
            });
        }
        let target = self.place(location)?;
        let store = self.clone();
        let put = move || store.told_apart(store.put_blocking(&target, &payload, &opts.mode));
        tokio::task::spawn_blocking(put).await?
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.reachable()?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let path = self.place(location)?;
        let location = location.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let (file, metadata) = open_object(&path)?;
            let meta = meta_of(location, &metadata);
            options.check_preconditions(&meta)?;
            let range = match options.range {
                Some(range) => range.as_range(meta.size).map_err(|e| out_of_range(&path, e))?,
                None => 0..meta.size,
            };
            Ok(GetResult {
                payload: GetResultPayload::File(file, path),
                meta,
                range,
                attributes: Default::default(),
                extensions: Default::default(),
            })
        });
        self.told_apart(opened.await?)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        self.inner.delete_stream(locations).map(move |o| store.told_apart(o)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(Walk::new(&self.root, prefix, true).objects())
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let offset = offset.clone();
        let all = Walk::new(&self.root, prefix, true).objects();
        let behind = all.filter(move |one| {
            let is_behind = one.as_ref().map_or(true, |meta| meta.location > offset);
            futures::future::ready(is_behind)
        });
        self.listing(behind.boxed())
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.reachable()?;
        let walk = Walk::new(&self.root, prefix, false);
        tokio::task::spawn_blocking(move || walk.level()).await?
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.reachable()?;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.reachable()?;
        self.inner.rename_opts(from, to, options).await
    }
}

impl fmt::Display for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileStore({})", self.root.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn entity_tags_agree_with_what_reads_report_and_never_repeat() {
        // Guards against an update that is refused although nothing changed (two ways to form a
        // tag), and against one accepted although something did (same size, same tick).
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::create(dir.path().join("a/b")).unwrap();
        let path = Path::from("meta/manifest");
        let mut seen = std::collections::HashSet::new();
        for i in 0..200u8 {
            let put = store.put(&path, vec![i].into()).await.unwrap();
            assert_eq!(put.e_tag, store.head(&path).await.unwrap().e_tag);
            assert!(seen.insert(put.e_tag), "tag repeated at {i}");
        }
    }

    #[tokio::test]
    async fn lock_and_staged_files_are_not_objects() {
        // Guards against init refusing its own store, or garbage collection deleting the lock.
        use futures::TryStreamExt;
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::create(dir.path()).unwrap();
        fs::write(dir.path().join("x#123"), b"torn").unwrap();
        store.put(&Path::from("y"), "1".into()).await.unwrap();
        let names: Vec<_> = store.list(None).map_ok(|m| m.location).try_collect().await.unwrap();
        assert_eq!(names, [Path::from("y")]);
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_unreachable_not_empty() {
        // Guards against an unmounted disk looking like a store that lost everything, and
        // against puts into the empty mount point.
        use futures::TryStreamExt;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = FileStore::create(&root).unwrap();
        let path = Path::from("seg/ab/x");
        store.put(&path, "1".into()).await.unwrap();
        let moved = dir.path().join("moved");
        fs::rename(&root, &moved).unwrap();
        for empty_mount_point in [false, true] {
            if empty_mount_point {
                fs::create_dir(&root).unwrap();
            }
            let offline = |e: Error| assert_eq!(super::super::class(&e), ErrorClass::Transport);
            offline(store.get(&path).await.unwrap_err());
            offline(store.put(&path, "2".into()).await.unwrap_err());
            offline(store.delete(&path).await.unwrap_err());
            offline(store.list(None).try_collect::<Vec<_>>().await.unwrap_err());
        }
        fs::remove_dir(&root).unwrap();
        fs::rename(&moved, &root).unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "1");
    }

    #[tokio::test]
    async fn of_many_updates_of_one_version_exactly_one_wins() {
        // Guards against lost updates between check and rename, by racing threads on one tag.
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::create(dir.path()).unwrap();
        let path = Path::from("m");
        let mut version = store.put(&path, "0".into()).await.unwrap();
        for _ in 0..10 {
            let updates = (0..8).map(|i| {
                let (store, path, version) = (store.clone(), path.clone(), version.clone());
                tokio::spawn(async move {
                    let mode = PutMode::Update(version.into());
                    store.put_opts(&path, format!("{i}").into(), mode.into()).await
                })
            });
            let outcomes = futures::future::join_all(updates).await;
            let mut won: Vec<_> = outcomes.into_iter().filter_map(|o| o.unwrap().ok()).collect();
            assert_eq!(won.len(), 1);
            version = won.remove(0);
        }
    }
}
