//! Directories that are listed one after the other, as by who walks a tree, are read ahead of: while one
//! is being listed, the first rows of the one beside it that comes next are fetched.
//!
//! Next in the order in which their parent was listed, as `find`, `rm -r` and `tar` go, or in that of
//! their numbers, which is mostly that of their names: as `rsync` and `ls -R` go.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::Fs;
use super::listed::Listed;
use super::place::Start;
use crate::base::Ino;
use crate::meta::{Inode, Kind, keys};

/// Subdirectories that are remembered of all that was listed: they are looked through for each.
const LISTED_MAX: usize = 8 << 10;
/// Directories in which somebody may be walking, at once.
const PARENTS_MAX: usize = 64;
/// Directories that one who walks may leave out, such as empty ones.
const SKIPS: usize = 3;
/// So many are to be listed in order, more than are not, before one is read ahead.
const SURE: u32 = 2;
/// How many in order count at most: who stops walking is believed to walk for no longer.
const SURE_MAX: u32 = 2 * AHEAD_MAX as u32;
/// Directories that are read ahead at once, by the time one is sure: to list one takes some milliseconds, and a
/// round trip more.
const AHEAD_MAX: usize = 8;
/// Entries that directories may have together which are read ahead, unless it is one: memory has room for
/// more, and others need that.
const ENTRIES_MAX: u64 = 4096;
/// Inodes that are fetched one by one, of one directory at once.
const PARALLEL: usize = 8;

/// The one that was listed last of those beside each other, and where it is in their listing.
#[derive(Clone, Copy)]
struct Last {
    dir: Ino,
    at: usize,
}

struct State {
    /// The subdirectories of directories.
    listed: Listed,
    /// By the directory that they are in.
    last: LruCache<Ino, Last>,
    /// How many were listed in order lately.
    in_order: u32,
    /// The view's count when the last one was listed.
    retired: u64,
}

/// Who walks where; see the module.
pub(super) struct Walks {
    state: Mutex<State>,
    /// For who fetches directories that memory has pushed out.
    fetch: Arc<Semaphore>,
}

impl Default for Walks {
    fn default() -> Walks {
        let last = LruCache::new(NonZeroUsize::new(PARENTS_MAX).expect("not zero"));
        let state = State { listed: Listed::new(LISTED_MAX), last, in_order: 0, retired: 0 };
        Walks { state: Mutex::new(state), fetch: Arc::new(Semaphore::new(1)) }
    }
}

/// How many may have been left out: none before the first.
fn skips(last: Option<Last>) -> usize {
    last.map_or(0, |_| SKIPS)
}

/// How many of the listing `dirs` were left out between the one that was listed last, where it was found, and
/// `dir`, and where that is; without a last one, before `dir`. `None`: too many.
fn in_listing(dirs: &[(u64, Ino)], last: Option<Last>, dir: Ino) -> Option<(usize, usize)> {
    let from = match last {
        Some(last) => dirs.get(last.at).filter(|(_, ino)| *ino == last.dir).map(|_| last.at + 1)?,
        None => 0,
    };
    let left_out = dirs.iter().skip(from).take(skips(last) + 1).position(|(_, ino)| *ino == dir)?;
    Some((left_out, from + left_out))
}

/// The same in the order of the numbers: how many were left out.
fn in_numbers(dirs: &[(u64, Ino)], last: Option<Last>, dir: Ino) -> Option<usize> {
    let from = last.map_or(Ino(0), |last| last.dir);
    let between = dirs.iter().filter(|(_, ino)| from < *ino && *ino < dir).count();
    (dir > from && between <= skips(last)).then_some(between)
}

/// The nearest of the `dirs` behind `dir` in the order of the numbers.
fn next_numbers(dirs: &[(u64, Ino)], dir: Ino, count: usize) -> Vec<Ino> {
    let mut next: Vec<Ino> = dirs.iter().map(|(_, ino)| *ino).filter(|ino| *ino > dir).collect();
    if count < next.len() {
        next.select_nth_unstable(count);
        next.truncate(count);
    }
    next.sort_unstable();
    next
}

impl Walks {
    /// Notes that these subdirectories of `dir` were listed behind place `after`, in this order, each with
    /// its place.
    pub(super) fn listed(&self, dir: Ino, after: u64, dirs: impl Iterator<Item = (u64, Ino)>) {
        self.state.lock().listed.note(dir, after, dirs);
    }

    /// Notes that `dir`, which is in `parent`, is listed from its start, `retired` being the view's count;
    /// returns which are likely to be next, nearest first.
    fn begins(&self, dir: Ino, parent: Ino, retired: u64) -> Vec<Ino> {
        let mut state = self.state.lock();
        let State { listed, last, in_order, retired: before } = &mut *state;
        // What was read ahead has been dropped, and what is now may be as well.
        if std::mem::replace(before, retired) != retired {
            *in_order = (*in_order).min(SURE - 1);
        }
        let Some(dirs) = listed.of(parent) else { return Vec::new() };
        let before = last.get(&parent).copied();
        if before.is_some_and(|last| last.dir == dir) {
            return Vec::new(); // again
        }
        let by_listing = in_listing(dirs, before, dir);
        let by_number = match by_listing {
            Some((0, _)) => None,
            _ => in_numbers(dirs, before, dir),
        };
        let at = by_listing.map(|(_, at)| at);
        let at = at.or_else(|| dirs.iter().position(|(_, ino)| *ino == dir));
        let Some(at) = at else { return Vec::new() };
        last.put(parent, Last { dir, at });
        let left_out = by_listing.map(|(left_out, _)| left_out).into_iter().chain(by_number).min();
        match (left_out, before) {
            (Some(_), _) => *in_order = (*in_order + 1).min(SURE_MAX),
            (None, Some(_)) => *in_order = in_order.saturating_sub(SURE),
            (None, None) => {} // perhaps somebody who begins in the middle
        }
        if left_out.is_none() {
            return Vec::new();
        }
        let count = (*in_order / SURE) as usize;
        match by_listing {
            Some((best, _)) if Some(best) == left_out => {
                dirs[at + 1..].iter().take(count).map(|(_, ino)| *ino).collect()
            }
            _ => next_numbers(dirs, dir, count),
        }
    }
}

impl Fs {
    /// Notes that directory `dir` is listed from its start, and reads those ahead that come next if that was
    /// in an order.
    pub(super) fn list_next_ahead(self: &Arc<Self>, dir: Ino) {
        let Ok(Inode { parent, .. }) = self.inode(dir) else { return };
        let next = self.walks.begins(dir, parent, self.view.retired());
        // The listing that named them may be long ago, and what was listed since may have pushed them out. One such
        // fetch at a time: the next would ask for the same but for one.
        if next.iter().any(|next| self.inode(*next).is_err())
            && let Ok(turn) = self.walks.fetch.clone().try_acquire_owned()
        {
            let fs = self.clone();
            tokio::spawn(async move {
                let _turn = turn;
                match fs.fetch_inodes_by(parent, &next, PARALLEL).await {
                    Ok(_) => fs.list_ahead(&next),
                    // Whoever lists them will hear of it.
                    Err(e) => log::debug!("reading directories of {parent} ahead: {e}"),
                }
            });
        } else {
            self.list_ahead(&next);
        }
    }

    /// Reads the first rows of these directories ahead, nearest first.
    fn list_ahead(self: &Arc<Self>, next: &[Ino]) {
        let mut entries = 0;
        for &next in next {
            let Ok(inode) = self.inode(next) else { return };
            entries += inode.size;
            if entries > ENTRIES_MAX && entries > inode.size {
                return;
            }
            if inode.kind == Kind::Dir && inode.size > 0 {
                let (start, _) = keys::dirents_from(next, Start::FIRST.hash);
                self.read_listing_ahead(next, start, Some(PARALLEL));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(walks: &Walks, parent: u64, dirs: &[u64]) {
        walks.listed(Ino(parent), 0, (4..).zip(dirs.iter().map(|n| Ino(*n))));
    }

    #[test]
    fn who_lists_in_order_is_read_ahead_of_and_nobody_else_is() {
        // Guards against directories that are fetched though nobody walks, and against a walk that is
        // not noticed: in the order of the listing, and of the numbers.
        let walks = Walks::default();
        let begins = |dir, parent| -> Vec<u64> {
            walks.begins(Ino(dir), Ino(parent), 7).into_iter().map(|ino| ino.0).collect()
        };
        let nobody = Vec::<u64>::new();
        listed(&walks, 1, &[70, 20, 90, 40, 10, 50]);
        assert_eq!([70, 20].map(|dir| begins(dir, 1)), [nobody.clone(), vec![90]]);
        assert_eq!(begins(20, 1), nobody, "again");
        assert_eq!(
            [90, 10].map(|dir| begins(dir, 1)),
            [[40], [50]].map(Vec::from),
            "one was left out"
        );
        assert_eq!(begins(50, 1), nobody, "the last one");
        listed(&walks, 2, &[75, 25, 95, 45]);
        assert_eq!([25, 45].map(|dir| begins(dir, 2)), [[45, 75, 95].to_vec(), vec![75, 95]]);
        let walks = Walks::default();
        listed(&walks, 1, &(10..100).collect::<Vec<_>>());
        let begins = |dir| walks.begins(Ino(dir), Ino(1), 7);
        assert_eq!([10, 40, 41, 20, 90, 30, 31, 11].map(begins), [const { Vec::new() }; 8]);
        assert_eq!(walks.begins(Ino(3), Ino(7), 7), [], "nobody has listed that one");
    }

    #[test]
    fn who_goes_down_into_a_tree_is_read_ahead_of_in_its_next_part() {
        // Guards against a tree of small families, in each of which nobody is known.
        let walks = Walks::default();
        listed(&walks, 1, &[10, 20]);
        listed(&walks, 10, &[11, 12]);
        assert_eq!(walks.begins(Ino(10), Ino(1), 7), []);
        assert_eq!(walks.begins(Ino(11), Ino(10), 7), [Ino(12)]);
        assert_eq!(walks.begins(Ino(12), Ino(10), 7), []);
        listed(&walks, 20, &[21, 22]);
        assert_eq!(walks.begins(Ino(20), Ino(1), 7), [], "the last one");
        assert_eq!(walks.begins(Ino(21), Ino(20), 7), [Ino(22)]);
    }

    #[test]
    fn where_much_is_committed_meanwhile_little_is_read_ahead() {
        // Guards against eight directories that are fetched for each that is listed, and dropped.
        let walks = Walks::default();
        listed(&walks, 1, &(10..100).collect::<Vec<_>>());
        let count = |dir, retired| walks.begins(Ino(dir), Ino(1), retired).len();
        assert_eq!((10..16).map(|dir| count(dir, 7)).collect::<Vec<_>>(), [0, 1, 1, 2, 2, 3]);
        assert_eq!((16..20).map(|dir| count(dir, dir)).collect::<Vec<_>>(), [1; 4]);
    }
}
