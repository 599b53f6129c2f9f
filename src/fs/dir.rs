//! Listing directories, in the order of the keyed hashes of the names: a position in a listing
//! stays valid while names come and go.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use super::place::{self, Start};
use super::read::SMALL_FILE;
use super::{Attr, DirEntry, Fs, FsError};
use crate::base::Ino;
use crate::commit::{Lookup, ViewError};
use crate::meta::{DecodeError, Dirent, Inode, Key, Kind, NameHash, keys};
use crate::store::kv::KvError;

/// Inode numbers over which a directory may spread and still have its inodes fetched as one
/// range, and rows that one such fetch brings.
const RANGE_SPREAD: u64 = 65_536;
const RANGE_ROWS: usize = 16_384;
/// Fewer missing inodes than this are fetched one by one.
const RANGE_WORTH: usize = 8;
/// Of directories with no more names than this, rows that were listed stay in memory: who lists a small
/// directory goes on to what it names, or removes it.
pub(super) const CACHED_MAX: u64 = 1024;
/// Inodes fetched at once otherwise.
const PARALLEL: usize = 64;

fn missing(inos: &[Ino], found: &[Lookup<Option<Bytes>>]) -> Vec<Ino> {
    let misses = inos.iter().zip(found).filter(|(_, found)| matches!(found, Lookup::Miss));
    misses.map(|(ino, _)| *ino).collect()
}

/// Hash, name and what it stands for.
type Found = (NameHash, Box<[u8]>, Dirent);

fn entry_of(key: &[u8], row: &[u8]) -> Result<Found, ViewError> {
    let (_, hash, name) = keys::dirent_of(key).ok_or(DecodeError("directory entry key"))?;
    Ok((hash, name.into(), Dirent::decode(row)?))
}

/// Adds those of `found` to `entries` that `shown` names, with their places.
fn show(entries: &mut Vec<DirEntry>, found: &[Found], shown: &[(usize, u64)]) {
    entries.extend(shown.iter().map(|&(index, cookie)| {
        let (_, name, entry) = &found[index];
        DirEntry { ino: entry.ino, cookie, kind: entry.kind, name: name.to_vec() }
    }));
}

impl Fs {
    /// Up to about `entries_max` entries behind `after` (0: from the start), `.` and `..`
    /// first. Empty at the end. The last one's place ends a group ([`place`]).
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
        async move {
            let (entries, ahead) = fs.list(ino, after, entries_max).await?;
            if let Some(start) = ahead {
                fs.read_listing_ahead(ino, start, None);
            }
            Ok(entries)
        }
    }

    /// The entries, and where the listing can be read ahead.
    async fn list(
        self: &Arc<Self>,
        ino: Ino,
        after: u64,
        entries_max: usize,
    ) -> Result<(Vec<DirEntry>, Option<Key>), FsError> {
        let dir = self.clone().consult(move |fs| fs.directory(ino)).await?;
        let mut entries = Vec::new();
        let dot = |ino, cookie, name: &[u8]| DirEntry {
            ino,
            cookie,
            kind: Kind::Dir,
            name: name.to_vec(),
        };
        if after < place::DOT {
            entries.push(dot(ino, place::DOT, b"."));
        }
        if after < place::DOT_DOT {
            entries.push(dot(dir.parent, place::DOT_DOT, b".."));
        }
        let from = Start::behind(after).filter(|_| dir.size > 0);
        let Some(from) = from else { return Ok((entries, None)) };
        let (mut start, end) = keys::dirents_from(ino, from.hash);
        let small = dir.size <= CACHED_MAX;
        let (mut found, mut hashes) = (Vec::new(), Vec::new());
        loop {
            let want = (entries_max.saturating_sub(entries.len() + found.len())).max(16);
            let (page, ahead) = match self.page_of_listing(&start, &end, want, small).await {
                Ok(page) => page,
                Err(e) => {
                    // Whoever goes on behind what there is will hear of it.
                    show(&mut entries, &found, &from.page(&hashes, false));
                    return if entries.is_empty() { Err(e) } else { Ok((entries, None)) };
                }
            };
            for (key, row) in page.rows {
                let entry = entry_of(&key, &row)?;
                hashes.push(entry.0);
                found.push(entry);
            }
            let complete = page.next.is_none();
            if complete || entries.len() + found.len() >= entries_max {
                let shown = from.page(&hashes, complete);
                if complete || !shown.is_empty() {
                    show(&mut entries, &found, &shown);
                    return Ok((entries, ahead));
                }
            }
            match page.next {
                Some(next) => start = next,
                None => return Ok((entries, ahead)),
            }
        }
    }

    /// [`Fs::readdir`] with attributes; `None` for `.` and `..`, for an entry that was removed
    /// meanwhile, and for one whose inode is damaged, which is logged: whoever wants those will
    /// ask by name. Counts one lookup for every entry with attributes.
    pub fn readdirplus(
        self: &Arc<Self>,
        ino: Ino,
        after: u64,
        entries_max: usize,
    ) -> impl Future<Output = Result<Vec<(DirEntry, Option<Attr>)>, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            let (entries, ahead) = fs.list(ino, after, entries_max).await?;
            let inos: Vec<Ino> =
                entries.iter().filter(|e| e.cookie >= place::FIRST_PLACE).map(|e| e.ino).collect();
            let found = fs.fetch_inodes(ino, &inos).await?;
            if let Some(start) = ahead {
                fs.read_listing_ahead(ino, start, Some(PARALLEL));
            }
            if after == 0 {
                fs.list_next_ahead(ino);
            }
            let dots = entries.len() - inos.len();
            let mut attrs = vec![None; dots];
            for (&target, found) in inos.iter().zip(found) {
                let row = match found {
                    Lookup::Hit(row) => row,
                    // Pushed out of memory at once.
                    Lookup::Miss => fs.view.get(&keys::inode(target)).await?,
                };
                attrs.push(match row.as_deref().map(Inode::decode).transpose() {
                    Ok(inode) => inode.map(|inode| Attr::of(target, &inode)),
                    Err(e) => {
                        log::error!("inode {target}, listed without attributes: {e}");
                        None
                    }
                });
            }
            fs.lookups.add_all(attrs.iter().flatten().map(|attr| attr.ino));
            let small =
                |attr: &&Attr| attr.kind == Kind::File && (1..=SMALL_FILE).contains(&attr.size);
            let small = |(entry, attr): (&DirEntry, &Option<Attr>)| {
                attr.as_ref().filter(small).map(|attr| (entry.cookie, attr.ino))
            };
            fs.sequences.listed(ino, after, entries.iter().zip(&attrs).filter_map(small));
            let dirs = entries[dots..].iter().filter(|entry| entry.kind == Kind::Dir);
            fs.walks.listed(ino, after, dirs.map(|entry| (entry.cookie, entry.ino)));
            Ok(entries.into_iter().zip(attrs).collect())
        }
    }

    /// Brings the inodes `inos`, named in `dir`, into memory with as few requests as their
    /// numbers allow, and returns what memory then has of each.
    pub(super) async fn fetch_inodes(
        &self,
        dir: Ino,
        inos: &[Ino],
    ) -> Result<Vec<Lookup<Option<Bytes>>>, ViewError> {
        self.fetch_inodes_by(dir, inos, PARALLEL).await
    }

    /// The same by no more than so many requests at once.
    pub(super) async fn fetch_inodes_by(
        &self,
        dir: Ino,
        inos: &[Ino],
        parallel: usize,
    ) -> Result<Vec<Lookup<Option<Bytes>>>, ViewError> {
        let mut found = self.view.inodes_now(inos);
        let mut todo = missing(inos, &found);
        if let Some((first, last)) = self.as_range(dir, &todo) {
            let (start, end) = (keys::inode(first), keys::inode(Ino(last.0 + 1)));
            self.view.scan(&start, &end, RANGE_ROWS, true).await?;
            found = self.view.inodes_now(inos);
            todo = missing(inos, &found);
        }
        if todo.is_empty() {
            return Ok(found);
        }
        let mut loads = futures::stream::iter(todo)
            .map(|ino| {
                let view = self.view.clone();
                async move { view.load(&keys::inode(ino)).await }
            })
            .buffer_unordered(parallel);
        while let Some(loaded) = loads.next().await {
            loaded?;
        }
        Ok(self.view.inodes_now(inos))
    }

    /// Brings a row into memory that an operation needs, and what is likely to be needed with it.
    pub(super) async fn load_row(&self, key: &[u8]) -> Result<(), ViewError> {
        let Some((dir, inos)) = self.view.load_with_others(key).await? else { return Ok(()) };
        let todo = missing(&inos, &self.view.inodes_now(&inos));
        if let Some((first, last)) = self.as_range(dir, &todo) {
            let (start, end) = (keys::inode(first), keys::inode(Ino(last.0 + 1)));
            match self.view.scan(&start, &end, RANGE_ROWS, true).await {
                Err(e @ ViewError::Store(KvError::Unavailable(_))) => return Err(e),
                // Whoever needs the damaged one will hear of it.
                Err(e) => log::debug!("reading the inodes of directory {dir}: {e}"),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// First and last of `inos` if the range is worth fetching whole: inodes made one after
    /// another lie together.
    fn as_range(&self, dir: Ino, inos: &[Ino]) -> Option<(Ino, Ino)> {
        let (first, last) = (*inos.iter().min()?, *inos.iter().max()?);
        let spread = last.0 - first.0;
        let size = self.inode(dir).map_or(inos.len() as u64, |inode| inode.size);
        let dense = spread <= size.saturating_mul(4) + 256;
        let worth = inos.len() >= RANGE_WORTH && spread <= RANGE_SPREAD && dense;
        worth.then_some((first, last))
    }
}
