//! Whether the names of a volume and its inodes agree, in memory that does not grow with it.
//!
//! Names come in the order of directories, inodes in that of their numbers. Both are added up: each
//! name as what it leads to, each inode as often as it should have a name. Under hash keys that are
//! drawn for each check, unequal rows have equal sums once in 2^60 checks or less often.

use std::hash::{BuildHasher, RandomState};

use crate::base::Ino;
use crate::meta::{Dirent, Inode, Kind};

/// Of all names, less what the inodes say that there should be.
#[derive(Default)]
pub(super) struct Sums {
    keys: [RandomState; 2],
    sums: [u64; 2],
}

impl Sums {
    /// Adds `times` names of this kind, in `parent`, that lead to `ino`. The place of a
    /// file's name says nothing of the file.
    fn add(&mut self, parent: Ino, ino: Ino, kind: Kind, times: u64) {
        let parent = (kind == Kind::Dir).then_some(parent.0);
        for (key, sum) in self.keys.iter().zip(&mut self.sums) {
            let one = key.hash_one((parent, ino.0, kind as u8));
            *sum = sum.wrapping_add(one.wrapping_mul(times));
        }
    }

    /// A name that there is.
    pub(super) fn name(&mut self, parent: Ino, entry: Dirent) {
        self.add(parent, entry.ino, entry.kind, 1);
    }

    /// The names that there should be of an inode.
    pub(super) fn inode(&mut self, ino: Ino, inode: &Inode) {
        let names = match inode.kind {
            Kind::Dir => u64::from(inode.nlink > 0 && ino != Ino::ROOT),
            _ => inode.nlink.into(),
        };
        self.add(inode.parent, ino, inode.kind, names.wrapping_neg());
    }

    /// Whether every inode has the names that it should have, and no name leads elsewhere.
    pub(super) fn agree(&self) -> bool {
        self.sums == [0; 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timestamp;

    fn inode(kind: Kind, nlink: u32, parent: u64) -> Inode {
        let mut inode = Inode::new(kind, 0o644, 0, 0, Timestamp { secs: 0, nanos: 0 });
        (inode.nlink, inode.parent) = (nlink, Ino(parent));
        inode
    }

    #[test]
    fn sums_agree_only_if_names_and_inodes_do() {
        // Guards against a check that takes a volume for whole because of what it does not add.
        let rows = |sums: &mut Sums| {
            sums.inode(Ino::ROOT, &inode(Kind::Dir, 3, 1));
            sums.inode(Ino(2), &inode(Kind::Dir, 2, 1));
            sums.inode(Ino(3), &inode(Kind::File, 2, 0));
            sums.inode(Ino(4), &inode(Kind::File, 0, 0)); // open, deleted
            sums.name(Ino(1), Dirent { ino: Ino(2), kind: Kind::Dir });
            sums.name(Ino(2), Dirent { ino: Ino(3), kind: Kind::File });
        };
        let last = |parent, ino, kind| {
            let mut sums = Sums::default();
            rows(&mut sums);
            assert!(!sums.agree(), "one name is missing");
            sums.name(Ino(parent), Dirent { ino: Ino(ino), kind });
            sums.agree()
        };
        assert!(last(1, 3, Kind::File) && last(2, 3, Kind::File));
        assert!(!last(1, 5, Kind::File), "it dangles");
        assert!(!last(1, 4, Kind::File), "of a deleted file");
        assert!(!last(1, 3, Kind::Symlink), "another kind");
        assert!(!last(2, 2, Kind::Dir), "a directory in two places");
        let mut sums = Sums::default();
        sums.inode(Ino(2), &inode(Kind::Dir, 2, 1));
        sums.name(Ino(7), Dirent { ino: Ino(2), kind: Kind::Dir });
        assert!(!sums.agree(), "a directory that is not in its parent");
    }
}
