//! Listing directories, in the order of the keyed hashes of the names: a position in a listing
//! stays valid while names come and go.

use std::sync::Arc;

use futures::StreamExt;

use super::{Attr, DirEntry, Fs, FsError, Step};
use crate::base::Ino;
use crate::commit::{Lookup, ViewError};
use crate::meta::{DecodeError, DirCookie, Dirent, Inode, Kind, keys};

/// Inode numbers over which a directory may spread and still have its inodes fetched as one
/// range, and rows that one such fetch brings.
const RANGE_SPREAD: u64 = 65_536;
const RANGE_ROWS: usize = 16_384;
/// Fewer missing inodes than this are fetched one by one.
const RANGE_WORTH: usize = 8;
/// Inodes fetched at once otherwise.
const PARALLEL: usize = 64;

impl Fs {
    /// Up to about `entries_max` entries behind `after` (0: from the start), `.` and `..`
    /// first. Empty at the end.
    ///
    /// # Errors
    /// [`FsError::NotDir`], [`FsError::NotFound`].
    pub fn readdir(
        self: &Arc<Self>,
        ino: Ino,
        after: u64,
        entries_max: usize,
    ) -> impl Future<Output = Result<Vec<DirEntry>, FsError>> + Send + 'static {
        let fs = self.clone();
        async move { fs.list(ino, after, entries_max).await }
    }

    async fn list(
        self: Arc<Self>,
        ino: Ino,
        after: u64,
        entries_max: usize,
    ) -> Result<Vec<DirEntry>, FsError> {
        let dir = self.clone().consult(move |fs| fs.directory(ino)).await?;
        let mut entries = Vec::new();
        let dot = |ino, cookie, name: &[u8]| DirEntry {
            ino,
            cookie,
            kind: Kind::Dir,
            name: name.to_vec(),
        };
        if after < 1 {
            entries.push(dot(ino, 1, b"."));
        }
        if after < 2 {
            entries.push(dot(dir.parent, 2, b".."));
        }
        if dir.size == 0 {
            return Ok(entries);
        }
        let (mut start, end) = keys::dirents_after(ino, after.max(DirCookie::FIRST - 1));
        while entries.len() < entries_max {
            let want = (entries_max - entries.len()).max(16);
            let page = self.view.page(&start, &end, want, false).await?;
            for (key, row) in page.rows {
                let malformed = || ViewError::from(DecodeError("directory entry key"));
                let (_, cookie, name) = keys::dirent_of(&key).ok_or_else(malformed)?;
                let entry = Dirent::decode(&row).map_err(ViewError::from)?;
                entries.push(DirEntry {
                    ino: entry.ino,
                    cookie: cookie.0,
                    kind: entry.kind,
                    name: name.to_vec(),
                });
            }
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
        Ok(entries)
    }

    /// [`Fs::readdir`] with attributes. Counts one lookup for every entry but `.` and `..`.
    /// An entry whose inode is damaged or gone is left out and logged.
    pub fn readdirplus(
        self: &Arc<Self>,
        ino: Ino,
        after: u64,
        entries_max: usize,
    ) -> impl Future<Output = Result<Vec<(DirEntry, Attr)>, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            let entries = fs.clone().list(ino, after, entries_max).await?;
            fs.fetch_inodes(ino, &entries).await?;
            let mut out = Vec::with_capacity(entries.len());
            for entry in entries {
                let target = entry.ino;
                match fs.clone().consult(move |fs| fs.inode(target)).await {
                    Ok(inode) => out.push((entry, Attr::of(target, &inode))),
                    // Unlinked since the names were read.
                    Err(FsError::NotFound) => {}
                    Err(e) => return Err(e),
                }
            }
            let named = out.iter().filter(|(e, _)| e.cookie >= DirCookie::FIRST);
            fs.lookups.add_all(named.map(|(e, _)| e.ino));
            Ok(out)
        }
    }

    /// Brings the inodes of `entries` into memory with as few requests as their numbers allow.
    async fn fetch_inodes(self: &Arc<Self>, dir: Ino, entries: &[DirEntry]) -> Result<(), FsError> {
        let missing = |entries: &[DirEntry]| -> Vec<Ino> {
            let misses =
                |e: &&DirEntry| matches!(self.view.get_now(&keys::inode(e.ino)), Lookup::Miss);
            entries.iter().filter(misses).map(|e| e.ino).collect()
        };
        let mut todo = missing(entries);
        if todo.len() >= RANGE_WORTH {
            let first = todo.iter().min().expect("not empty").0;
            let last = todo.iter().max().expect("not empty").0;
            let size = match self.inode(dir) {
                Ok(Inode { size, .. }) => size,
                Err(Step::Fail(e)) => return Err(e),
                Err(_) => todo.len() as u64,
            };
            let dense = last - first <= size.saturating_mul(4) + 256;
            if last - first <= RANGE_SPREAD && dense {
                let end = keys::inode(Ino(last + 1));
                let mut start = keys::inode(Ino(first));
                let mut rows = 0;
                while rows < RANGE_ROWS {
                    let page = self.view.page(&start, &end, RANGE_ROWS, true).await?;
                    rows += page.rows.len().max(1);
                    match page.next {
                        Some(next) => start = next,
                        None => break,
                    }
                }
                todo = missing(entries);
            }
        }
        let mut loads = futures::stream::iter(todo)
            .map(|ino| {
                let view = self.view.clone();
                async move { view.load(&keys::inode(ino)).await }
            })
            .buffer_unordered(PARALLEL);
        while let Some(loaded) = loads.next().await {
            loaded?;
        }
        Ok(())
    }
}
