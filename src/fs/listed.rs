//! What directories were last listed as: whose orders others read and list in. Pure.

use lru::LruCache;

use crate::base::Ino;

/// What a listing costs besides its entries, in entries of 16 bytes.
const LISTING_COST: usize = 6;

/// Some of the entries of directories, in the order of their listings, each with its place in it; no more
/// than so many in all. The listing that went on last is given up last.
pub(super) struct Listed {
    all: LruCache<Ino, Vec<(u64, Ino)>>,
    /// 16 bytes each; a listing counts as some more.
    entries: usize,
    entries_max: usize,
}

fn cost(entries: &[(u64, Ino)]) -> usize {
    entries.len() + LISTING_COST
}

impl Listed {
    pub(super) fn new(entries_max: usize) -> Listed {
        Listed { all: LruCache::unbounded(), entries: 0, entries_max }
    }

    /// Notes that these entries of `dir` were listed behind place `after`, in this order, each with its
    /// place.
    pub(super) fn note(&mut self, dir: Ino, after: u64, entries: impl Iterator<Item = (u64, Ino)>) {
        let known = self.all.pop(&dir);
        self.entries -= known.as_deref().map_or(0, cost);
        let mut listing = known.unwrap_or_default();
        // It is listed again, or its last page did not fit.
        let kept = listing.partition_point(|(place, _)| *place <= after);
        listing.truncate(kept);
        let most = self.entries_max.saturating_sub(LISTING_COST);
        listing.extend(entries.take(most - kept.min(most)));
        if !listing.is_empty() {
            self.entries += cost(&listing);
            self.all.put(dir, listing);
        }
        while self.entries > self.entries_max {
            let Some((_, oldest)) = self.all.pop_lru() else { break };
            self.entries -= cost(&oldest);
        }
    }

    /// The entries of `dir`, if it has been listed.
    pub(super) fn of(&self, dir: Ino) -> Option<&[(u64, Ino)]> {
        self.all.peek(&dir).map(|listing| &listing[..])
    }

    /// In which listing an entry is, and the how manieth of it.
    pub(super) fn find(&self, ino: Ino) -> Option<(Ino, usize)> {
        self.all.iter().find_map(|(dir, listing)| {
            let at = listing.iter().position(|(_, listed)| *listed == ino)?;
            Some((*dir, at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_a_listing_are_put_together_and_all_of_them_are_bounded() {
        // Guards against a listing that is lost when its next page comes, that keeps what the page before
        // could not show, and against memory: of large directories, and of many small ones.
        let mut listed = Listed::new(10_000);
        listed.note(Ino(1), 0, [(5, Ino(90)), (7, Ino(20)), (9, Ino(70))].into_iter());
        listed.note(Ino(1), 7, [(9, Ino(71)), (12, Ino(30))].into_iter());
        let entries = [(5, Ino(90)), (7, Ino(20)), (9, Ino(71)), (12, Ino(30))];
        assert_eq!(listed.of(Ino(1)), Some(&entries[..]));
        assert_eq!(listed.find(Ino(71)), Some((Ino(1), 2)));
        listed.note(Ino(1), 0, std::iter::empty());
        assert_eq!(listed.of(Ino(1)), None, "it is empty by now");
        let held = |listed: &Listed| listed.all.iter().map(|(_, all)| cost(all)).sum::<usize>();
        for dir in 0..5_000 {
            listed.note(Ino(dir), 0, [(5, Ino(dir + 10_000))].into_iter());
        }
        assert_eq!((held(&listed), listed.entries), (9_996, 9_996));
        assert!(listed.of(Ino(4_999)).is_some() && listed.of(Ino(0)).is_none());
        for dir in 0..100 {
            listed.note(Ino(dir), 0, (0..1_000).map(|n| (n, Ino(dir * 1_000 + n))));
        }
        listed.note(Ino(500), 0, (0..1_000_000).map(|n| (n, Ino(n))));
        assert_eq!((held(&listed), listed.entries), (10_000, 10_000));
    }
}
