//! How often the kernel knows each inode, in few bytes: it may know tens of millions.
//!
//! Inodes of a directory have neighbouring numbers, so counts are kept in groups of neighbours, a byte
//! each. A count that does not fit a byte has its own entry.

use std::collections::HashMap;

use crate::base::Ino;

/// Neighbours in a group. Of inodes that the kernel knows all of, each takes about 3 bytes; one that
/// it knows alone takes about as much as an entry of a map would.
const GROUP: u64 = 16;
/// Says that the count is in `many`.
const MANY: u8 = u8::MAX;
/// Unused room that is kept, in groups.
const SPARE: usize = 4096;

/// Counts above 0, by inode.
#[derive(Default)]
pub(super) struct Known {
    groups: HashMap<u64, [u8; GROUP as usize]>,
    many: HashMap<Ino, u64>,
}

fn place(ino: Ino) -> (u64, usize) {
    (ino.0 / GROUP, (ino.0 % GROUP) as usize)
}

impl Known {
    /// Adds one.
    pub(super) fn add(&mut self, ino: Ino) {
        let (group, at) = place(ino);
        let count = &mut self.groups.entry(group).or_default()[at];
        match *count {
            MANY => *self.many.entry(ino).or_default() += 1,
            _ if *count + 1 == MANY => {
                *count = MANY;
                self.many.insert(ino, MANY.into());
            }
            _ => *count += 1,
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether the count is above 0.
    pub(super) fn contains(&self, ino: Ino) -> bool {
        let (group, at) = place(ino);
        self.groups.get(&group).is_some_and(|counts| counts[at] > 0)
    }

    /// The count of `ino`.
    pub(super) fn count(&self, ino: Ino) -> u64 {
        let (group, at) = place(ino);
        match self.groups.get(&group).map_or(0, |counts| counts[at]) {
            MANY => self.many.get(&ino).copied().unwrap_or(MANY.into()),
            few => few.into(),
        }
    }

    /// Takes `n` away; true if that was the last.
    pub(super) fn sub(&mut self, ino: Ino, n: u64) -> bool {
        let (group, at) = place(ino);
        let Some(counts) = self.groups.get_mut(&group).filter(|counts| counts[at] > 0) else {
            return false;
        };
        let before = match counts[at] {
            MANY => self.many.remove(&ino).unwrap_or(MANY.into()),
            few => few.into(),
        };
        let left = before.saturating_sub(n);
        counts[at] = u8::try_from(left).unwrap_or(MANY);
        if counts[at] == MANY {
            self.many.insert(ino, left);
        }
        if *counts == [0; GROUP as usize] {
            self.groups.remove(&group);
            if self.groups.capacity() > 8 * self.groups.len() + SPARE {
                self.groups.shrink_to(2 * self.groups.len());
            }
        }
        left == 0
    }

    /// All inodes, in no order.
    pub(super) fn inos(&self) -> impl Iterator<Item = Ino> {
        self.groups.iter().flat_map(|(group, counts)| {
            let known = (0..GROUP).filter(|&at| counts[at as usize] > 0);
            known.map(move |at| Ino(group * GROUP + at))
        })
    }

    /// What it takes, in bytes; as the standard library lays maps out.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        const MARK: usize = 1; // of each place in a table, of which up to an eighth stay empty
        let table = |capacity: usize, entry: usize| (capacity * 8 / 7) * (entry + MARK);
        table(self.groups.capacity(), size_of::<(u64, [u8; GROUP as usize])>())
            + table(self.many.capacity(), size_of::<(Ino, u64)>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_that_the_kernel_knows_takes_a_few_bytes_and_nothing_once_it_is_forgotten() {
        // Guards against memory that grows with every file that `find` has passed: 10,000,000 known
        // files took 300 MiB and more.
        let mut known = Known::default();
        let all = || (0..1_000_000u64).map(|n| Ino(100 + n + n / 1000 * 24));
        all().for_each(|ino| known.add(ino));
        let each = known.bytes() as f64 / 1e6;
        assert!(each < 8.0, "{each} bytes for each inode");
        assert_eq!(known.inos().count(), 1_000_000);
        all().for_each(|ino| assert!(known.sub(ino, 1)));
        assert!(known.bytes() < 1 << 20, "{} bytes for none", known.bytes());
    }

    #[test]
    fn counts_are_exact_below_and_above_a_byte() {
        // Guards against an inode that is taken for forgotten while the kernel knows it, or never
        // is, because its count did not fit.
        for times in [1u64, 2, 253, 254, 255, 256, 257, 1000] {
            let mut known = Known::default();
            (0..times).for_each(|_| known.add(Ino(33)));
            known.add(Ino(34));
            let one_by_one = (1..times).all(|_| !known.sub(Ino(33), 1) && known.contains(Ino(33)));
            assert!(one_by_one && known.sub(Ino(33), 1), "{times}");
            assert!(!known.contains(Ino(33)) && !known.sub(Ino(33), 1), "{times}");
            (0..times).for_each(|_| known.add(Ino(33)));
            assert!(times == 1 || !known.sub(Ino(33), times - 1), "{times}");
            assert!(known.sub(Ino(33), 5), "more than there are: {times}");
            assert_eq!(known.inos().collect::<Vec<_>>(), [Ino(34)], "{times}");
            assert!(known.many.is_empty());
        }
    }
}
