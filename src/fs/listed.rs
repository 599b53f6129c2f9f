//! What directories were last listed as: whose orders others read and list in. Pure.

use std::collections::VecDeque;

use crate::base::Ino;

/// Some of the entries of a directory, in the order of its listing, each with its place in it.
struct Listing {
    dir: Ino,
    entries: Vec<(u64, Ino)>,
}

/// Listings, the one that went on last the last; no more than so many entries of all together, 16 bytes each.
pub(super) struct Listed {
    all: VecDeque<Listing>,
    entries: usize,
    entries_max: usize,
}

impl Listed {
    pub(super) fn new(entries_max: usize) -> Listed {
        Listed { all: VecDeque::new(), entries: 0, entries_max }
    }

    /// Notes that these entries of `dir` were listed behind place `after`, in this order, each with its
    /// place.
    pub(super) fn note(&mut self, dir: Ino, after: u64, entries: impl Iterator<Item = (u64, Ino)>) {
        let known = self.all.iter().position(|listing| listing.dir == dir);
        let known = known.and_then(|index| self.all.remove(index));
        let mut listing = known.unwrap_or(Listing { dir, entries: Vec::new() });
        self.entries -= listing.entries.len();
        // It is listed again, or its last page did not fit.
        let kept = listing.entries.partition_point(|(place, _)| *place <= after);
        listing.entries.truncate(kept);
        listing.entries.extend(entries.take(self.entries_max - kept.min(self.entries_max)));
        self.entries += listing.entries.len();
        if !listing.entries.is_empty() {
            self.all.push_back(listing);
        }
        while self.entries > self.entries_max {
            let Some(oldest) = self.all.pop_front() else { break };
            self.entries -= oldest.entries.len();
        }
    }

    /// The entries of `dir`, if it has been listed.
    pub(super) fn of(&self, dir: Ino) -> Option<&[(u64, Ino)]> {
        let listing = self.all.iter().find(|listing| listing.dir == dir)?;
        Some(&listing.entries)
    }

    /// In which listing an entry is, and the how manieth of it.
    pub(super) fn find(&self, ino: Ino) -> Option<(Ino, usize)> {
        self.all.iter().find_map(|listing| {
            let at = listing.entries.iter().position(|(_, listed)| *listed == ino)?;
            Some((listing.dir, at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_a_listing_are_put_together_and_all_of_them_are_bounded() {
        // Guards against a listing that is lost when its next page comes, that keeps what the page before
        // could not show, and against memory.
        let mut listed = Listed::new(10_000);
        listed.note(Ino(1), 0, [(5, Ino(90)), (7, Ino(20)), (9, Ino(70))].into_iter());
        listed.note(Ino(1), 7, [(9, Ino(71)), (12, Ino(30))].into_iter());
        let entries = [(5, Ino(90)), (7, Ino(20)), (9, Ino(71)), (12, Ino(30))];
        assert_eq!(listed.of(Ino(1)), Some(&entries[..]));
        assert_eq!(listed.find(Ino(71)), Some((Ino(1), 2)));
        listed.note(Ino(1), 0, std::iter::empty());
        assert_eq!(listed.of(Ino(1)), None, "it is empty by now");
        for dir in 0..100 {
            listed.note(Ino(dir), 0, (0..1_000).map(|n| (n, Ino(dir * 1_000 + n))));
        }
        listed.note(Ino(500), 0, (0..1_000_000).map(|n| (n, Ino(n))));
        let held: usize = listed.all.iter().map(|listing| listing.entries.len()).sum();
        assert_eq!((held, listed.entries), (10_000, 10_000));
    }
}
