//! Directories that are listed one after the other, as by who walks a tree, are read ahead of: while one
//! is being listed, the first rows of the one beside it that comes next are fetched.
//!
//! Next in the order in which their parent was listed, as `find`, `rm -r` and `tar` go, or in that of
//! their numbers, which is mostly that of their names: as `rsync` and `ls -R` go.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::Fs;
use super::listed::Listed;
use crate::base::Ino;
use crate::meta::{Kind, NameHash, keys};

/// Directories whose subdirectories are remembered, 16 bytes each, of all that were listed.
const LISTED_MAX: usize = 32 << 10;
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

struct State {
    /// The subdirectories of directories.
    listed: Listed,
    /// The last of the subdirectories of a directory that was listed.
    last: LruCache<Ino, Ino>,
    /// How many were listed in order lately.
    in_order: u32,
}

/// Who walks where; see the module.
pub(super) struct Walks(Mutex<State>);

impl Default for Walks {
    fn default() -> Walks {
        let last = LruCache::new(NonZeroUsize::new(PARENTS_MAX).expect("not zero"));
        Walks(Mutex::new(State { listed: Listed::new(LISTED_MAX), last, in_order: 0 }))
    }
}

/// One that follows another in an order.
struct Follower {
    /// How many were left out between the two.
    left_out: usize,
    /// Those that come next, nearest first.
    next: Vec<Ino>,
}

/// Whether `dir` follows on `last`, or is the first, in the order of the listing `dirs`.
fn in_listing(dirs: &[(u64, Ino)], last: Option<Ino>, dir: Ino) -> Option<Follower> {
    let place = |ino| dirs.iter().position(|(_, listed)| *listed == ino);
    let at = place(dir)?;
    let left_out = match last {
        Some(last) => at.checked_sub(place(last)? + 1)?,
        None => at,
    };
    let next = dirs[at + 1..].iter().take(AHEAD_MAX).map(|(_, next)| *next);
    Some(Follower { left_out, next: next.collect() })
}

/// The same in the order of the numbers.
fn in_numbers(dirs: &[(u64, Ino)], last: Option<Ino>, dir: Ino) -> Option<Follower> {
    let numbers = || dirs.iter().map(|(_, ino)| *ino);
    if last.is_some_and(|last| dir <= last) {
        return None;
    }
    let left_out =
        numbers().filter(|ino| last.is_none_or(|last| last < *ino) && *ino < dir).count();
    let mut next: Vec<Ino> = numbers().filter(|ino| *ino > dir).collect();
    next.sort_unstable();
    next.truncate(AHEAD_MAX);
    Some(Follower { left_out, next })
}

impl Walks {
    /// Notes that these subdirectories of `dir` were listed behind place `after`, in this order, each with
    /// its place.
    pub(super) fn listed(&self, dir: Ino, after: u64, dirs: impl Iterator<Item = (u64, Ino)>) {
        self.0.lock().listed.note(dir, after, dirs);
    }

    /// Notes that `dir`, which is in `parent`, is listed from its start; returns which are likely to
    /// be next, nearest first.
    fn begins(&self, dir: Ino, parent: Ino) -> Vec<Ino> {
        let mut state = self.0.lock();
        let State { listed, last, in_order } = &mut *state;
        let Some(dirs) = listed.of(parent) else { return Vec::new() };
        let before = last.get(&parent).copied();
        if before == Some(dir) {
            return Vec::new(); // again
        }
        let followers = [in_listing(dirs, before, dir), in_numbers(dirs, before, dir)];
        let nearest = followers.into_iter().flatten().min_by_key(|follower| follower.left_out);
        let skips = if before.is_some() { SKIPS } else { 0 };
        let next =
            nearest.filter(|follower| follower.left_out <= skips).map(|follower| follower.next);
        last.put(parent, dir);
        *in_order = match (&next, before) {
            (Some(_), _) => (*in_order + 1).min(SURE_MAX),
            // Perhaps somebody who begins in the middle.
            (None, None) => *in_order,
            (None, Some(_)) => in_order.saturating_sub(SURE),
        };
        let mut next = next.unwrap_or_default();
        next.truncate((*in_order / SURE) as usize);
        next
    }
}

impl Fs {
    /// Notes that directory `dir` is listed from its start, and reads the next one ahead if that was in
    /// an order.
    pub(super) fn list_next_ahead(self: &Arc<Self>, dir: Ino) {
        let Ok(inode) = self.inode(dir) else { return };
        for next in self.walks.begins(dir, inode.parent) {
            // It was listed: memory has it, unless it was pushed out.
            if self.inode(next).is_ok_and(|inode| inode.kind == Kind::Dir && inode.size > 0) {
                let (start, _) = keys::dirents_from(next, NameHash(0));
                self.read_listing_ahead(next, start, true);
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
            walks.begins(Ino(dir), Ino(parent)).into_iter().map(|ino| ino.0).collect()
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
        let begins = |dir| walks.begins(Ino(dir), Ino(1));
        assert_eq!([10, 40, 41, 20, 90, 30, 31, 11].map(begins), [const { Vec::new() }; 8]);
        assert_eq!(walks.begins(Ino(3), Ino(7)), [], "nobody has listed that one");
    }

    #[test]
    fn who_goes_down_into_a_tree_is_read_ahead_of_in_its_next_part() {
        // Guards against a tree of small families, in each of which nobody is known.
        let walks = Walks::default();
        listed(&walks, 1, &[10, 20]);
        listed(&walks, 10, &[11, 12]);
        assert_eq!(walks.begins(Ino(10), Ino(1)), []);
        assert_eq!(walks.begins(Ino(11), Ino(10)), [Ino(12)]);
        assert_eq!(walks.begins(Ino(12), Ino(10)), []);
        listed(&walks, 20, &[21, 22]);
        assert_eq!(walks.begins(Ino(20), Ino(1)), [], "the last one");
        assert_eq!(walks.begins(Ino(21), Ino(20)), [Ino(22)]);
    }
}
