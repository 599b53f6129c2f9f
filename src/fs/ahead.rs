//! Long listings are read ahead: while the kernel works on one part, the next is fetched, so
//! that neither round trips nor one processor bound them. So are the first parts of directories that come
//! next where somebody walks (`walk`).

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

use super::dir::CACHED_MAX;
use super::place::Start;
use super::{Fs, FsError};
use crate::base::{Ino, Underway};
use crate::commit::ViewError;
use crate::commit::page::{Page, Scanned};
use crate::meta::{Dirent, Key, keys};
use crate::store::kv::KvError;

/// Rows that are read ahead at once.
const AHEAD_ROWS: usize = 512;
/// Rows that are kept or expected, of all listings; one takes about 200 bytes.
const ROWS_MAX: usize = 16 * AHEAD_ROWS;
/// Parts of listings that are kept or expected, however short.
const PARTS_MAX: usize = 64;
/// Parts of a listing that its reader may still be at.
const LAST: usize = 2;

type Fetched = Result<Arc<Scanned>, Arc<ViewError>>;
type Rows = Underway<Fetched>;

/// Rows of a directory as the metadata store has them, here or on their way.
struct Part {
    /// Where a reader goes on who needs just these: behind a key, or behind its group, which is
    /// where pages end.
    starts: RangeInclusive<Key>,
    end: Key,
    /// The view's count when they were asked for.
    retired: u64,
    rows: Rows,
}

impl Part {
    fn is_fetched(&self) -> bool {
        self.rows.now().is_some()
    }

    /// How many rows it has, or may get.
    fn len(&self) -> usize {
        self.rows.now().and_then(Result::ok).map_or(AHEAD_ROWS, |rows| rows.rows().len())
    }

    /// Whether a reader who goes on at `start` should take it.
    fn serves(&self, start: &Key, end: &Key) -> bool {
        self.end == *end
            && match self.rows.now() {
                Some(Ok(rows)) => rows.covers(start),
                Some(Err(_)) => false,
                None => self.starts.contains(start) && !self.rows.is_given_up(),
            }
    }
}

/// What has been read of directories, oldest first. Pending changes are put over it when a page
/// is asked for, and a commit discards it: it is never older than what the kernel may see.
#[derive(Default)]
pub(super) struct Listings(Mutex<VecDeque<Part>>);

impl Listings {
    /// Rows from `start` in the range that ends at `end`: there, or expected from just there.
    fn find(&self, start: &Key, end: &Key, retired: u64) -> Option<Rows> {
        let parts = self.0.lock();
        let mut current = parts.iter().rev().filter(|part| part.retired == retired);
        current.find(|part| part.serves(start, end)).map(|part| part.rows.clone())
    }

    /// Makes room for `rows` of the view's count `retired`, of the range that ends at `end`; false if too
    /// many are on their way.
    fn make_room(parts: &mut VecDeque<Part>, rows: usize, end: &Key, retired: u64) -> bool {
        let failed = |part: &Part| match part.rows.now() {
            Some(fetched) => fetched.is_err(),
            None => part.rows.is_given_up(),
        };
        parts.retain(|part| part.retired == retired && !failed(part));
        let mut held: usize = parts.iter().map(Part::len).sum();
        while held + rows > ROWS_MAX || parts.len() >= PARTS_MAX {
            // Of this listing itself all but the last have been shown; an older one may be what comes next.
            let of_this = |part: &Part| part.is_fetched() && part.end == *end;
            let oldest = match parts.iter().filter(|part| of_this(part)).count() > LAST {
                true => parts.iter().position(of_this),
                false => parts.iter().position(Part::is_fetched),
            };
            let Some(oldest) = oldest else { return false };
            held -= parts.remove(oldest).map_or(0, |part| part.len());
        }
        true
    }

    fn keep(&self, scanned: Scanned, end: &Key, retired: u64) {
        let mut parts = self.0.lock();
        if Self::make_room(&mut parts, scanned.rows().len(), end, retired) {
            let starts = scanned.start().clone()..=scanned.start().clone();
            let rows = Rows::done(Ok(Arc::new(scanned.to_keep())));
            parts.push_back(Part { starts, end: end.clone(), retired, rows });
        }
    }

    /// Has `work` fetch the rows that a reader at `starts` will want, unless that is done, or so
    /// much is being fetched already.
    fn start(
        &self,
        starts: RangeInclusive<Key>,
        end: &Key,
        retired: u64,
        work: impl Future<Output = Fetched> + Send + 'static,
    ) {
        let mut parts = self.0.lock();
        let served = |part: &Part| part.retired == retired && part.serves(starts.start(), end);
        if !parts.iter().any(served) && Self::make_room(&mut parts, AHEAD_ROWS, end, retired) {
            let rows = Rows::start(work);
            parts.push_back(Part { starts, end: end.clone(), retired, rows });
        }
    }
}

impl Fs {
    /// A page of a directory's rows (see [`View::page`](crate::commit::View::page)), and where
    /// its listing can be read ahead. Rows that are read for it stay in memory if `cache`.
    pub(super) async fn page_of_listing(
        &self,
        start: &Key,
        end: &Key,
        limit: usize,
        cache: bool,
    ) -> Result<(Page, Option<Key>), FsError> {
        if let Some(rows) = self.listings.find(start, end, self.view.retired()) {
            // A failure is shared by those who waited for it: each would wait as long again.
            let broke_off = || FsError::Io("reading a directory ahead broke off".into());
            let scanned = rows.wait().await.ok_or_else(broke_off)?;
            let scanned = scanned.map_err(FsError::from)?;
            if let Some(page) = self.view.page_over(&scanned, start, limit) {
                return Ok((page, scanned.next().cloned()));
            }
        }
        let retired = self.view.retired();
        let (page, scanned) = self.view.page_and_rows(start, end, limit, cache).await?;
        let ahead = scanned.next().cloned();
        if self.view.retired() == retired {
            self.listings.keep(scanned, end, retired);
        }
        Ok((page, ahead))
    }

    /// Starts fetching the rows of directory `dir` from `start` on, and the inodes they name, so many at
    /// once, if `inodes` is a number, unless that has been done.
    pub(super) fn read_listing_ahead(
        self: &Arc<Self>,
        dir: Ino,
        start: Key,
        inodes: Option<usize>,
    ) {
        let (_, end) = keys::dirents(dir);
        let behind = keys::dirent_of(&start).and_then(|(_, hash, _)| Start::behind_group_of(hash));
        let behind = behind.map_or_else(|| start.clone(), |hash| keys::dirents_from(dir, hash).0);
        let (fs, from, to) = (self.clone(), start.clone(), end.clone());
        let cache = self.inode(dir).is_ok_and(|dir| dir.size <= CACHED_MAX);
        let fetch = async move {
            let scanned = fs.view.scan(&from, &to, AHEAD_ROWS, cache).await.map_err(Arc::new)?;
            if let Some(parallel) = inodes {
                let inos = scanned.rows().iter().filter_map(|(_, row)| Dirent::decode(row).ok());
                let inos: Vec<Ino> = inos.map(|entry| entry.ino).collect();
                match fs.fetch_inodes_by(dir, &inos, parallel).await {
                    // The caller has waited long enough.
                    Err(e @ ViewError::Store(KvError::Unavailable(_))) => return Err(Arc::new(e)),
                    // Whoever lists the damaged one will hear of it; the names are sound.
                    Err(e) => log::debug!("reading directory {dir} ahead: {e}"),
                    Ok(_) => {}
                }
            }
            Ok(Arc::new(scanned.to_keep()))
        };
        self.listings.start(start..=behind, &end, self.view.retired(), fetch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::NameHash;

    fn start(listings: &Listings, start: &Key, behind: &Key, end: &Key, retired: u64) {
        let starts = start.clone()..=behind.clone();
        listings.start(starts, end, retired, std::future::pending());
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_found_by_key_and_by_group_and_from_nowhere_else() {
        // Guards against a read-ahead that nobody finds, which costs more than none.
        let name = keys::dirent(Ino(7), NameHash(500), b"name");
        let (from, (behind, end)) = (keys::after(&name), keys::dirents_from(Ino(7), NameHash(504)));
        let listings = Listings::default();
        start(&listings, &from, &behind, &end, 1);
        assert!(listings.find(&from, &end, 1).is_some());
        assert!(listings.find(&behind, &end, 1).is_some());
        assert!(listings.find(&name, &end, 1).is_none(), "before it");
        let later = keys::dirents_from(Ino(7), NameHash(505)).0;
        assert!(listings.find(&later, &end, 1).is_none(), "a wait for rows that may not be there");
        assert!(listings.find(&from, &keys::dirents(Ino(8)).1, 1).is_none());
        assert!(listings.find(&from, &end, 2).is_none(), "a commit has changed it");
        start(&listings, &from, &behind, &end, 1);
        assert_eq!(listings.0.lock().len(), 1, "not twice");
    }

    #[test]
    fn who_lists_a_long_directory_keeps_what_was_fetched_of_the_next() {
        // Guards against directories that are read ahead, pushed out by the one before, and fetched again.
        let listings = Listings::default();
        let ((next, next_end), (this, this_end)) = (keys::dirents(Ino(8)), keys::dirents(Ino(7)));
        listings.keep(Scanned::of_none(next.clone(), next_end.clone(), 1), &next_end, 1);
        for _ in 0..2 * PARTS_MAX {
            listings.keep(Scanned::of_none(this.clone(), this_end.clone(), 1), &this_end, 1);
        }
        assert!(listings.find(&next, &next_end, 1).is_some());
        assert!(listings.find(&this, &this_end, 1).is_some());
        assert_eq!(listings.0.lock().len(), PARTS_MAX);
    }

    #[tokio::test]
    async fn a_failure_is_forgotten_and_what_is_on_its_way_is_bounded() {
        // Guards against an outage that a listing does not get over, and against memory.
        let (from, end) = keys::dirents_from(Ino(7), NameHash(504));
        let listings = Listings::default();
        let broken = ViewError::from(crate::meta::DecodeError("row"));
        listings.start(from.clone()..=from.clone(), &end, 1, async { Err(Arc::new(broken)) });
        let rows = listings.find(&from, &end, 1).expect("on its way");
        assert!(rows.wait().await.expect("ends").is_err());
        assert!(listings.find(&from, &end, 1).is_none());
        for ino in 0..100 {
            let (from, end) = keys::dirents(Ino(ino));
            start(&listings, &from, &from, &end, 1);
        }
        assert_eq!(listings.0.lock().len(), ROWS_MAX / AHEAD_ROWS);
        let (from, end) = keys::dirents(Ino(7));
        start(&listings, &from, &from, &end, 2);
        assert_eq!(listings.0.lock().len(), 1, "the others are discarded");
    }
}
