//! Places in a listing of a directory: the numbers that `readdir` hands out, `telldir` returns, and
//! `seekdir` and NFS clients come back with. Pure.
//!
//! A place has 31 bits, because programs of 32 bits have no room for more: the upper 29 bits of
//! the hash of a name, its *group*, and 2 bits that say how much of the group has been listed.
//! Names of one group, next to each other in the listing, are rare (about 9 pairs among 100,000
//! names), and more than four of one group do not occur: nobody can look for them without the key
//! of the hash. Such a group loses no name, but a reader who is stopped inside it, behind the
//! third, is shown some again.
//!
//! So a place depends on the names of its group alone, and stays while others come and go. Pages
//! end where a group ends, as far as there is room: a reader who removes what was listed, as `rm -r`
//! does, then goes on exactly behind it.

use crate::meta::NameHash;

/// Bits of a place that say how much of its group has been listed.
const RANK_BITS: u32 = 2;
/// The rank behind the last name of a group.
const ALL: u64 = (1 << RANK_BITS) - 1;
/// Bits of a hash that tell the names of one group apart: 32 less 29.
const GROUPED_BITS: u32 = 3;
/// The last place there is: 2^31 - 1.
const LAST: u64 = i32::MAX as u64;

/// The place behind `.`.
pub(super) const DOT: u64 = 1;
/// The place behind `..`.
pub(super) const DOT_DOT: u64 = 2;
/// The first place that may be behind a name.
pub const FIRST_PLACE: u64 = ((NameHash::FIRST >> GROUPED_BITS) as u64) << RANK_BITS;

fn group(hash: NameHash) -> u64 {
    u64::from(hash.0 >> GROUPED_BITS)
}

/// The smallest hash of a group; `None` behind the last group.
fn first_hash(group: u64) -> Option<NameHash> {
    u32::try_from(group << GROUPED_BITS).ok().map(NameHash)
}

/// Whether a page of a listing may end at this place: it is not inside a group.
pub fn ends_group(place: u64) -> bool {
    place < FIRST_PLACE || place & ALL == ALL
}

/// The place behind the group that `place` is in.
pub fn behind_group(place: u64) -> u64 {
    place | ALL
}

/// Where a listing goes on: names from this hash on, but for the first few of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub hash: NameHash,
    /// How many names of the group of `hash` have been listed.
    listed: usize,
}

impl Start {
    /// Before all names.
    pub const FIRST: Start = Start { hash: NameHash(0), listed: 0 };

    /// Behind `place`; `None` if there is nothing. Any number is a place: `lseek` sets any.
    pub fn behind(place: u64) -> Option<Start> {
        if place < FIRST_PLACE {
            return Some(Start::FIRST);
        }
        if place > LAST {
            return None;
        }
        match (place >> RANK_BITS, place & ALL) {
            (group, ALL) => Some(Start { hash: first_hash(group + 1)?, listed: 0 }),
            (group, rank) => Some(Start { hash: first_hash(group)?, listed: rank as usize + 1 }),
        }
    }

    /// Behind the group of a name; `None` if there is nothing.
    pub fn behind_group_of(hash: NameHash) -> Option<NameHash> {
        first_hash(group(hash) + 1)
    }

    /// Which of the names a page has, by their index, and the place behind each. `hashes` are
    /// those of the names from this start on, in order; `complete` if there are no more in the
    /// directory. If there are, those of the last group are left out, of which more may come.
    pub fn page(&self, hashes: &[NameHash], complete: bool) -> Vec<(usize, u64)> {
        let mut page = Vec::with_capacity(hashes.len());
        let mut from = 0;
        for names in hashes.chunk_by(|a, b| group(*a) == group(*b)) {
            let to = from + names.len();
            if to == hashes.len() && !complete {
                break;
            }
            let this = group(names[0]);
            let listed = if this == group(self.hash) { self.listed } else { 0 };
            page.extend((from..to).skip(listed).map(|index| {
                let rank = if index + 1 == to { ALL } else { ((index - from) as u64).min(ALL - 1) };
                (index, (this << RANK_BITS) | rank)
            }));
            from = to;
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Names by hash: a directory.
    type Names = BTreeSet<(NameHash, u32)>;

    /// A page of about `most` names behind `place`, as `fs/dir.rs` makes them: more are read until
    /// there is something to show.
    fn page(names: &Names, place: u64, most: usize) -> Vec<(u32, u64)> {
        let Some(start) = Start::behind(place) else { return Vec::new() };
        let all: Vec<_> = names.range((start.hash, 0)..).copied().collect();
        let mut read = most;
        loop {
            read = read.min(all.len());
            let hashes: Vec<_> = all[..read].iter().map(|(hash, _)| *hash).collect();
            let page = start.page(&hashes, read == all.len());
            if !page.is_empty() || read == all.len() {
                return page.into_iter().map(|(index, place)| (all[index].1, place)).collect();
            }
            read += most;
        }
    }

    /// A hash of few bits, so that groups are large.
    fn hash_of(name: u32, groups: u32) -> NameHash {
        let mixed = name.wrapping_mul(0x9e37_79b1).rotate_left(13).wrapping_mul(0x85eb_ca6b);
        NameHash((((mixed >> 8) % groups + 1) << GROUPED_BITS) | (mixed & 7))
    }

    fn change(rng: &mut StdRng, names: &mut Names, lasting: u32, groups: u32) {
        let name = rng.random_range(lasting..lasting + 500);
        let entry = (hash_of(name, groups), name);
        if !names.remove(&entry) {
            names.insert(entry);
        }
    }

    /// Lists while names come and go between pages. How often each was shown.
    fn list(seed: u64, groups: u32, cut: bool) -> (BTreeMap<u32, u32>, u32) {
        let mut rng = StdRng::seed_from_u64(seed);
        let lasting = 300;
        let mut names: Names = (0..lasting).map(|name| (hash_of(name, groups), name)).collect();
        let (mut shown, mut place) = (BTreeMap::new(), 0);
        for _ in 0..100_000 {
            let page = page(&names, place, rng.random_range(1..20));
            let Some((_, end)) = page.last() else { return (shown, lasting) };
            assert!(ends_group(*end) && *end <= LAST && page[0].1 > place);
            // The kernel, or an NFS client, may have less room than it said.
            let fits = if cut { rng.random_range(1..=page.len()) } else { page.len() };
            for (name, behind) in &page[..fits] {
                *shown.entry(*name).or_insert(0) += 1;
                place = *behind;
            }
            for _ in 0..rng.random_range(0..5) {
                // Not in the group in which the reader was stopped: ranks are counted there.
                if ends_group(place) {
                    change(&mut rng, &mut names, lasting, groups);
                }
            }
        }
        panic!("a listing that does not end");
    }

    #[test]
    fn names_that_last_are_listed_exactly_once_however_large_the_groups() {
        // Guards against a page that ends inside a group: who goes on behind it loses the rest of
        // the group, or sees the beginning again.
        for (seed, groups) in (0..60).zip([3, 20, 300, 100_000].into_iter().cycle()) {
            let (shown, lasting) = list(seed, groups, false);
            for name in 0..lasting {
                assert_eq!(shown.get(&name), Some(&1), "seed {seed}, {groups} groups");
            }
        }
    }

    #[test]
    fn a_reader_stopped_inside_a_group_goes_on_inside_it() {
        // Guards against a buffer smaller than the page, and seekdir into a group, which lose names;
        // groups of up to four are exact.
        for (seed, groups) in (0..60).zip([10_000, 50_000].into_iter().cycle()) {
            let (shown, lasting) = list(seed, groups, true);
            for name in 0..lasting {
                assert_eq!(shown.get(&name), Some(&1), "seed {seed}, {groups} groups");
            }
        }
    }

    #[test]
    fn places_fit_into_31_bits_and_any_number_is_one() {
        // Guards against EOVERFLOW in programs of 32 bits, at the very end of the hashes, and
        // against a panic at what lseek may set.
        let last = [NameHash(u32::MAX - 1), NameHash(u32::MAX)];
        let page = Start::behind(0).expect("the start").page(&last, true);
        assert_eq!(page, [(0, LAST - ALL), (1, LAST)]);
        assert_eq!(Start::behind(LAST), None, "nothing is behind it");
        assert_eq!(Start::behind_group_of(NameHash(u32::MAX)), None);
        for place in [3, 4, LAST - 1, LAST + 1, 1 << 40, u64::MAX] {
            let _ = Start::behind(place);
        }
        let first =
            Start::behind(DOT_DOT).expect("a start").page(&[NameHash(NameHash::FIRST)], true);
        assert_eq!(first, [(0, FIRST_PLACE | ALL)]);
        assert!(DOT < DOT_DOT && DOT_DOT < FIRST_PLACE && ends_group(DOT));
    }
}
