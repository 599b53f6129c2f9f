//! Long listings are read ahead: while the kernel works on one part, the next is fetched, so
//! that neither round trips nor one processor bound them.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use super::{Fs, FsError};
use crate::base::Ino;
use crate::commit::view::{Page, Scanned};
use crate::meta::{Dirent, Key, keys};

/// Rows that are read ahead at once.
const AHEAD_ROWS: usize = 512;
/// Parts that are kept, of all listings; a row takes about 200 bytes.
const PARTS_MAX: usize = 16;
/// How often a page is put together while commits change what it lies on.
const TRIES_MAX: usize = 8;

type Fetched = Result<Arc<Scanned>, FsError>;
type Rows = Shared<BoxFuture<'static, Fetched>>;

/// Rows of a directory as the metadata store has them, here or on their way.
struct Part {
    /// Where a reader goes on who needs just these: behind a key, or behind its cookie, which is
    /// all that the kernel remembers.
    starts: RangeInclusive<Key>,
    end: Key,
    rows: Rows,
}

impl Part {
    /// What came, if it is here.
    fn fetched(&self) -> Option<Fetched> {
        self.rows.clone().now_or_never()
    }
}

/// What has been read of directories, oldest first. Pending changes are put over it when a page
/// is asked for, and a commit makes it void: it is never older than what the kernel may see.
#[derive(Default)]
pub(super) struct Listings(Mutex<VecDeque<Part>>);

impl Listings {
    /// Rows from `start` in the range that ends at `end`: there, or expected from just there.
    fn find(&self, start: &Key, end: &Key) -> Option<Rows> {
        let parts = self.0.lock();
        let has = |part: &&Part| {
            part.end == *end
                && match part.fetched() {
                    Some(Ok(rows)) => rows.covers(start),
                    Some(Err(_)) => false,
                    None => part.starts.contains(start),
                }
        };
        parts.iter().rev().find(has).map(|part| part.rows.clone())
    }

    fn add(&self, part: Part) {
        let mut parts = self.0.lock();
        parts.retain(|part| !matches!(part.fetched(), Some(Err(_))));
        if parts.len() >= PARTS_MAX {
            parts.pop_front();
        }
        parts.push_back(part);
    }

    fn remove(&self, rows: &Rows) {
        self.0.lock().retain(|part| !part.rows.ptr_eq(rows));
    }
}

impl Fs {
    /// A page of a directory's rows (see [`View::page`](crate::commit::View::page)), and where
    /// its listing can be read ahead.
    pub(super) async fn page_of_listing(
        &self,
        start: &Key,
        end: &Key,
        limit: usize,
    ) -> Result<(Page, Option<Key>), FsError> {
        for _ in 0..TRIES_MAX {
            let rows = match self.listings.find(start, end) {
                Some(rows) => rows,
                None => {
                    let scanned = Arc::new(self.view.scan(start, end, limit, false).await?);
                    let rows = futures::future::ready(Ok(scanned)).boxed().shared();
                    let starts = start.clone()..=start.clone();
                    self.listings.add(Part { starts, end: end.clone(), rows: rows.clone() });
                    rows
                }
            };
            let scanned = rows.clone().await?;
            match self.view.page_over(&scanned, start, end, limit) {
                Some(page) => return Ok((page, scanned.next().cloned())),
                None => self.listings.remove(&rows),
            }
        }
        Ok((self.view.page(start, end, limit, false).await?, None))
    }

    /// Starts fetching the rows of directory `dir` from `start` on, and the inodes they name if
    /// `with_inodes`, unless that has been done.
    pub(super) fn read_listing_ahead(
        self: &Arc<Self>,
        dir: Ino,
        start: Key,
        end: Key,
        with_inodes: bool,
    ) {
        if self.listings.find(&start, &end).is_some() {
            return;
        }
        let behind = match keys::dirent_of(&start) {
            Some((_, cookie, _)) => keys::dirents_after(dir, cookie.0).0,
            None => start.clone(),
        };
        let starts = start.clone()..=behind;
        let (fs, to) = (self.clone(), end.clone());
        let fetch = async move {
            let scanned = fs.view.scan(&start, &to, AHEAD_ROWS, false).await?;
            if with_inodes {
                // What cannot be decoded is reported to whoever lists it.
                let inos = scanned.rows().iter().filter_map(|(_, row)| Dirent::decode(row).ok());
                fs.fetch_inodes(dir, &inos.map(|entry| entry.ino).collect::<Vec<_>>()).await?;
            }
            Ok::<_, FsError>(Arc::new(scanned))
        };
        // It goes on by itself. Who is there before it waits for it, and fails if it does; who
        // comes later does not hear of a failure.
        let task = tokio::spawn(fetch);
        let rows = async move {
            task.await
                .unwrap_or_else(|e| Err(FsError::Io(format!("reading a directory ahead: {e}"))))
        };
        self.listings.add(Part { starts, end, rows: rows.boxed().shared() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::DirCookie;

    fn part(start: &Key, behind: &Key, end: &Key, failed: bool) -> Part {
        let rows = match failed {
            true => futures::future::ready(Err(FsError::NotFound)).boxed(),
            false => futures::future::pending().boxed(),
        };
        let starts = start.clone()..=behind.clone();
        Part { starts, end: end.clone(), rows: rows.shared() }
    }

    #[test]
    fn what_is_on_its_way_is_found_by_key_and_by_cookie_and_from_nowhere_else() {
        // Guards against a read-ahead that nobody finds, which costs more than none.
        let name = keys::dirent(Ino(7), DirCookie(500), b"name");
        let (start, (behind, end)) = (keys::after(&name), keys::dirents_after(Ino(7), 500));
        let listings = Listings::default();
        listings.add(part(&start, &behind, &end, false));
        assert!(listings.find(&start, &end).is_some());
        assert!(listings.find(&behind, &end).is_some());
        assert!(listings.find(&name, &end).is_none(), "before it");
        let later = keys::dirents_after(Ino(7), 501).0;
        assert!(listings.find(&later, &end).is_none(), "a wait for rows that may not be there");
        assert!(listings.find(&start, &keys::dirents_after(Ino(8), 0).1).is_none());
    }

    #[test]
    fn a_failure_is_forgotten_and_parts_are_bounded() {
        // Guards against an outage that a listing does not get over, and against memory.
        let (start, end) = keys::dirents_after(Ino(7), 500);
        let listings = Listings::default();
        listings.add(part(&start, &start, &end, true));
        assert!(listings.find(&start, &end).is_none());
        for ino in 0..100 {
            let (start, end) = keys::dirents_after(Ino(ino), 0);
            listings.add(part(&start, &start, &end, false));
        }
        assert_eq!(listings.0.lock().len(), PARTS_MAX);
    }
}
