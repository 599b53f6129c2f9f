//! Which commits snapshots hold, in memory: whoever writes rows of segments asks here.

use std::collections::HashSet;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// Segments that only snapshots hold, and their bytes in the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Kept {
    pub(super) fn add(&mut self, bytes: u64) {
        self.segments += 1;
        self.bytes += bytes;
    }
}

#[derive(Debug, Default)]
struct State {
    /// Commits that are held, in order.
    commits: Vec<u64>,
    /// Checkpoints of snapshots that nothing may come to share with: they are being deleted.
    leaving: HashSet<[u8; 16]>,
    present: HashSet<[u8; 16]>,
}

/// See the module. Of a writer: others know of no commit that is held.
#[derive(Debug, Default)]
pub struct Holders {
    state: RwLock<State>,
    /// What the last look over all such segments found.
    kept: Mutex<Option<Kept>>,
}

/// While this is there, the snapshot is not deleted. Holding it must not wait for anything but the
/// local disk.
pub struct InUse<'a> {
    _state: RwLockReadGuard<'a, State>,
}

impl Holders {
    /// Whether a snapshot holds a segment of that birth and death.
    pub fn hold(&self, birth: u64, death: u64) -> bool {
        let state = self.state.read();
        let first = state.commits.partition_point(|&commit| commit < birth);
        state.commits.get(first).is_some_and(|&commit| commit < death)
    }

    /// The newest commit that is held: everything that was born until then stays in the bucket.
    pub fn newest(&self) -> Option<u64> {
        self.state.read().commits.last().copied()
    }

    /// How many snapshots there are.
    pub fn count(&self) -> usize {
        self.state.read().present.len()
    }

    /// Keeps the snapshot with this checkpoint from being deleted while what is shared with it is
    /// written to the journal. `None`: it is not there, or is being deleted.
    pub fn use_snapshot(&self, checkpoint: &[u8; 16]) -> Option<InUse<'_>> {
        let state = self.state.read();
        let there = state.present.contains(checkpoint) && !state.leaving.contains(checkpoint);
        there.then_some(InUse { _state: state })
    }

    /// What the last look over all segments that only snapshots hold came to, and what has come since.
    pub fn kept(&self) -> Option<Kept> {
        *self.kept.lock()
    }

    pub(super) fn set_kept(&self, kept: Option<Kept>) {
        *self.kept.lock() = kept;
    }

    /// A segment is held by snapshots alone from now on.
    pub(super) fn note_kept(&self, bytes: u64) {
        if let Some(kept) = &mut *self.kept.lock() {
            kept.add(bytes);
        }
    }

    /// These are all: commit and checkpoint.
    pub(super) fn set(&self, snapshots: impl Iterator<Item = (u64, [u8; 16])>) {
        let (mut commits, present): (Vec<u64>, HashSet<_>) = snapshots.unzip();
        commits.sort_unstable();
        commits.dedup();
        *self.state.write() = State { commits, leaving: HashSet::new(), present };
    }

    /// That commit is held, as far as is known.
    pub(super) fn add(&self, commit: u64) {
        let mut state = self.state.write();
        if let Err(at) = state.commits.binary_search(&commit) {
            state.commits.insert(at, commit);
        }
    }

    /// From now on nothing comes to share with these. Waits for who is about to.
    pub(super) fn leave(&self, checkpoints: impl Iterator<Item = [u8; 16]>) {
        self.state.write().leaving.extend(checkpoints);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_held_by_commits_from_its_birth_until_before_its_death() {
        // Guards against a segment that is deleted although a snapshot refers to it, and against one
        // that stays although none does.
        let holders = Holders::default();
        assert!(!holders.hold(0, u64::MAX) && holders.newest().is_none());
        for commit in [5, 9, 5] {
            holders.add(commit);
        }
        assert_eq!(holders.newest(), Some(9));
        for (birth, death, held) in [
            (1, 5, false),
            (1, 6, true),
            (5, 6, true),
            (6, 9, false),
            (6, 10, true),
            (10, 11, false),
        ] {
            assert_eq!(holders.hold(birth, death), held, "{birth}..{death}");
        }
        assert!(holders.use_snapshot(&[1; 16]).is_none());
    }
}
