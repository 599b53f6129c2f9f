//! Which commits snapshots hold, in memory: whoever writes rows of segments asks here.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::meta::{SnapshotOrigin, SnapshotRow};

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

/// A snapshot, as far as what it holds goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The commit that it is.
    pub commit: u64,
    /// Its checkpoint.
    pub checkpoint: [u8; 16],
    /// It goes by itself: the schedule deletes it, or it expires within [`EXPIRES_SOON`].
    pub goes: bool,
}

/// What expires later than that after it was made is taken for one that stays.
const EXPIRES_SOON: u64 = 400 * 24 * 3600;

impl Holder {
    /// The snapshot of that row.
    pub fn of(row: &SnapshotRow) -> Holder {
        let expires = row.expires_secs > 0
            && row.expires_secs - row.time_secs.min(row.expires_secs) <= EXPIRES_SOON;
        let goes = row.origin != SnapshotOrigin::ByHand || expires;
        Holder { commit: row.commit, checkpoint: row.checkpoint, goes }
    }
}

/// Commits that snapshots hold, by what becomes of those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldCommits {
    /// Of snapshots that stay until somebody deletes them, in order.
    pub staying: Vec<u64>,
    /// Of those that go by themselves, in order.
    pub going: Vec<u64>,
    /// The newest snapshot of the first sort that was deleted, as far as is known.
    pub dropped: Option<u64>,
}

impl HeldCommits {
    /// Whether a snapshot holds what is in the volume now and was born at `birth`.
    pub fn holds(&self, birth: u64) -> bool {
        self.stays_for(birth) || self.going.last().is_some_and(|&commit| commit >= birth)
    }

    /// Whether one does that stays.
    pub fn stays_for(&self, birth: u64) -> bool {
        self.staying.last().is_some_and(|&commit| commit >= birth)
    }
}

#[derive(Debug, Default)]
struct State {
    /// Commits that are held, in order.
    commits: Vec<u64>,
    /// The same, by sort.
    held: HeldCommits,
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
    /// How many snapshots were deleted.
    deleted: AtomicU64,
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

    /// Which commits are held, and for how long.
    pub fn held(&self) -> HeldCommits {
        self.state.read().held.clone()
    }

    /// How many snapshots this mount has deleted.
    pub fn deleted(&self) -> u64 {
        self.deleted.load(Ordering::Relaxed)
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

    /// These are all.
    pub(super) fn set(&self, snapshots: impl Iterator<Item = Holder>) {
        let snapshots: Vec<Holder> = snapshots.collect();
        let commits = |of: &dyn Fn(&&Holder) -> bool| {
            let mut commits: Vec<u64> = snapshots.iter().filter(of).map(|s| s.commit).collect();
            commits.sort_unstable();
            commits.dedup();
            commits
        };
        let mut state = self.state.write();
        let dropped = state.held.dropped;
        let held =
            HeldCommits { staying: commits(&|s| !s.goes), going: commits(&|s| s.goes), dropped };
        let present = snapshots.iter().map(|s| s.checkpoint).collect();
        *state = State { commits: commits(&|_| true), held, leaving: HashSet::new(), present };
    }

    /// That commit is held, as far as is known, and for long.
    pub(super) fn add(&self, commit: u64) {
        let mut state = self.state.write();
        let State { commits, held, .. } = &mut *state;
        for commits in [commits, &mut held.staying] {
            if let Err(at) = commits.binary_search(&commit) {
                commits.insert(at, commit);
            }
        }
    }

    /// These were deleted.
    pub(super) fn drop_these(&self, snapshots: impl Iterator<Item = Holder>) {
        let mut state = self.state.write();
        for snapshot in snapshots {
            self.deleted.fetch_add(1, Ordering::Relaxed);
            if !snapshot.goes {
                state.held.dropped = state.held.dropped.max(Some(snapshot.commit));
            }
        }
    }

    /// From now on nothing can begin to share with these. Waits for those that are about to.
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

    #[test]
    fn what_is_remembered_of_those_that_went_outlasts_the_next_look() {
        // Guards against snapshots that roll, and are taken for ones that stay for ever, and against
        // one that is kept for ten years being taken for one that soon goes.
        let row = |commit, origin, expires_secs| SnapshotRow {
            checkpoint: [commit as u8; 16],
            manifest: 1,
            commit,
            chain: Default::default(),
            time_secs: 1000,
            expires_secs,
            origin,
            files: 0,
            bytes: 0,
            note: String::new(),
        };
        let by_hand = SnapshotOrigin::ByHand;
        let rows = [
            row(9, by_hand, 0),
            row(7, by_hand, 1000 + 30 * 86_400),
            row(8, by_hand, 1000 + 3650 * 86_400),
            row(5, SnapshotOrigin::Monthly, 0),
            row(3, by_hand, 0),
        ];
        let holders = Holders::default();
        holders.set(rows.iter().map(Holder::of));
        let held = holders.held();
        assert_eq!((&held.staying[..], &held.going[..]), (&[3, 8, 9][..], &[5, 7][..]));
        assert_eq!((held.dropped, holders.newest()), (None, Some(9)));
        holders.drop_these(rows[3..].iter().map(Holder::of));
        holders.set(rows[..3].iter().map(Holder::of));
        assert_eq!((holders.held().dropped, holders.deleted()), (Some(3), 2));
        holders.add(11);
        assert_eq!(holders.held().staying, [8, 9, 11], "until its row is read");
    }
}
