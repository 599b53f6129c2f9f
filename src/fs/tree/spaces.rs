//! Inode numbers of one mount. Those of the volume are as they are; those of a snapshot have the
//! number of the snapshot in their upper bits, so that no two files of the mount share one, and so
//! that they are the same whenever the snapshot is opened. Pure.
//!
//!     63    62 … 40      39 … 0
//!     0     space        inode of the volume, or of the snapshot
//!
//! Space 0 is the volume, the last one is the directory of the snapshots itself.

use crate::base::Ino;
use crate::fs::FsError;

/// Bits of an inode number that are the volume's: enough for a thousand files a second for 30 years.
const INO_BITS: u32 = 40;
/// The space of the directory that the snapshots are in.
const DIRECTORY: u32 = (1 << 23) - 1;

/// The directory that the snapshots are in.
pub const SNAPSHOTS: Ino = Ino((DIRECTORY as u64) << INO_BITS | 1);

/// Which snapshot an inode number belongs to, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Space(u32);

/// Where an inode number of the mount leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Into the volume.
    Volume,
    /// To the directory of the snapshots.
    Directory,
    /// To this inode of a snapshot.
    Snapshot(Space, Ino),
}

impl At {
    pub(super) fn of(ino: Ino) -> At {
        match (ino.0 >> INO_BITS) as u32 {
            0 => At::Volume,
            DIRECTORY => At::Directory,
            space => At::Snapshot(Space(space), Ino(ino.0 & ((1 << INO_BITS) - 1))),
        }
    }
}

impl Space {
    /// The space that a snapshot of this number is given first.
    pub(super) fn preferred(number: u64) -> Space {
        Space((number % u64::from(DIRECTORY - 1)) as u32 + 1)
    }

    /// The one to try when this is taken.
    pub(super) fn next(self) -> Space {
        Space::preferred(u64::from(self.0))
    }

    /// The number that the mount shows for an inode of the snapshot.
    ///
    /// # Errors
    /// [`FsError::Io`] for a number that has no room: the volume has handed out a million million.
    pub(super) fn shown(self, ino: Ino) -> Result<Ino, FsError> {
        match ino.0 >> INO_BITS {
            0 => Ok(Ino(u64::from(self.0) << INO_BITS | ino.0)),
            _ => Err(FsError::Io(format!("inode {ino} has no number in a snapshot"))),
        }
    }

    /// Where the snapshot is in a listing, in the bits that `place` gives to hashes.
    pub(super) fn order(self) -> u64 {
        u64::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_files_of_a_mount_have_one_number() {
        // Guards against tar and du taking a file of a snapshot for a link to one of the volume.
        let mut seen = std::collections::BTreeSet::new();
        let spaces = [0, 1, 77, u64::from(DIRECTORY) - 2].map(Space::preferred);
        for ino in [1, 2, (1 << INO_BITS) - 1] {
            assert!(seen.insert(ino));
            assert_eq!(At::of(Ino(ino)), At::Volume);
            for space in spaces {
                let shown = space.shown(Ino(ino)).expect("has room");
                assert!(seen.insert(shown.0) && shown.0 <= i64::MAX as u64);
                assert_eq!(At::of(shown), At::Snapshot(space, Ino(ino)));
            }
        }
        assert!(seen.insert(SNAPSHOTS.0));
        assert_eq!(At::of(SNAPSHOTS), At::Directory);
        assert!(spaces[0].shown(Ino(1 << INO_BITS)).is_err());
        let mut space = Space::preferred(u64::from(DIRECTORY) - 2);
        for _ in 0..3 {
            space = space.next();
            assert!(space.0 > 0 && space.0 < DIRECTORY, "{space:?}");
        }
    }
}
