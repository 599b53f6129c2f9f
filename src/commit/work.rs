//! One group on its way to the bucket. It is kept when a try fails: what has been uploaded is
//! not uploaded again, and what a failed upload may have left behind is deleted later.

use std::sync::Arc;

use bytes::Bytes;

use super::accounts::Changes;
use super::pack::{Plan, pack};
use super::pending::CommitGroup;
use crate::base::SegmentId;
use crate::meta::{DeadRow, Key};
use crate::store::segments::Layout;

/// Names remembered of uploads that failed. Each costs a row; beyond this they are forgotten
/// and, if they are in the bucket, stay there unused.
const ABANDONED_MAX: usize = 4096;

/// File bytes of a commit under way; nothing while there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending {
    /// To be uploaded in all: what was overwritten meanwhile is not.
    pub planned: u64,
    /// Uploaded: they count once the commit is done.
    pub landed: u64,
}

/// The state of one commit.
pub(super) struct Work {
    pub(super) group: Arc<CommitGroup>,
    pub(super) plan: Plan,
    /// For each segment of the plan, how it is laid out, once the bucket has it.
    uploaded: Vec<Option<Arc<Layout>>>,
    abandoned: Vec<SegmentId>,
    /// The name of the smallest segment there is, by which it is tried out whether the store takes
    /// any after it refused one for good.
    try_out: Option<SegmentId>,
    /// Bytes of older segments that nothing refers to once this is committed.
    pub(super) freed: u64,
    /// The epoch in which its segments are sealed, or an earlier one.
    pub(super) epoch: u32,
    /// The inode rows that it writes which are not as they were pending; nothing as long as there
    /// was no try.
    pub(super) inodes: Option<Vec<(Key, Bytes)>>,
}

impl Work {
    /// A first try, with segments of at most `bytes_max`.
    pub(super) fn new(
        group: Arc<CommitGroup>,
        bytes_max: u64,
        epoch: u32,
        new_id: impl FnMut() -> SegmentId,
    ) -> Work {
        let plan = pack(&group, bytes_max, new_id);
        let uploaded = vec![None; plan.segments.len()];
        Work {
            group,
            plan,
            uploaded,
            abandoned: Vec::new(),
            try_out: None,
            freed: 0,
            epoch,
            inodes: None,
        }
    }

    /// Plaintext bytes of the largest segment.
    pub(super) fn largest(&self) -> u64 {
        self.plan.segments.iter().map(|segment| segment.len).max().unwrap_or(0)
    }

    /// Starts over with segments of at most `bytes_max`. Every old name is given up.
    pub(super) fn pack_again(&mut self, bytes_max: u64, new_id: impl FnMut() -> SegmentId) {
        let old: Vec<_> = self.plan.segments.iter().map(|segment| segment.id).collect();
        old.into_iter().for_each(|id| self.give_up(id));
        self.plan = pack(&self.group, bytes_max, new_id);
        self.uploaded = vec![None; self.plan.segments.len()];
    }

    fn give_up(&mut self, id: SegmentId) {
        if self.abandoned.len() < ABANDONED_MAX {
            self.abandoned.push(id);
        }
    }

    /// The store refused an upload for good: before more is sent, a segment of this name is to be
    /// tried. It is deleted like what was given up.
    pub(super) fn try_out_next(&mut self, new_id: impl FnOnce() -> SegmentId) {
        if self.try_out.is_none() {
            let id = new_id();
            self.try_out = Some(id);
            self.give_up(id);
        }
    }

    /// What is to be tried before more is sent.
    pub(super) fn to_try_out(&self) -> Option<SegmentId> {
        self.try_out
    }

    /// It was taken.
    pub(super) fn tried_out(&mut self) {
        self.try_out = None;
    }

    /// What of it the bucket has.
    pub(super) fn sending(&self) -> Sending {
        let segments = || self.plan.segments.iter().zip(&self.uploaded);
        Sending {
            planned: segments().map(|(segment, _)| segment.len).sum(),
            landed: segments()
                .filter(|(_, done)| done.is_some())
                .map(|(segment, _)| segment.len)
                .sum(),
        }
    }

    /// Positions in the plan of the segments that are still to be uploaded.
    pub(super) fn missing(&self) -> Vec<usize> {
        (0..self.uploaded.len()).filter(|&at| self.uploaded[at].is_none()).collect()
    }

    /// The bucket has the segment at `at`, laid out so.
    pub(super) fn has(&mut self, at: usize, layout: Arc<Layout>) {
        self.uploaded[at] = Some(layout);
    }

    /// The segments that the bucket has, and how they are laid out.
    pub(super) fn landed(&self) -> impl Iterator<Item = (SegmentId, &Layout)> {
        let segments = self.plan.segments.iter().zip(&self.uploaded);
        segments.filter_map(|(segment, layout)| Some((segment.id, layout.as_deref()?)))
    }

    /// The uploads of the segments at `started` that have not succeeded are given up: what may
    /// be under their names is unknown, so the next try takes new ones.
    pub(super) fn abandon(&mut self, started: &[usize], mut new_id: impl FnMut() -> SegmentId) {
        for &at in started {
            if self.uploaded[at].is_some() {
                continue;
            }
            let (old, new) = (self.plan.segments[at].id, new_id());
            self.give_up(old);
            self.plan.rename(old, new);
        }
    }

    /// Whether there are uploads that were given up.
    pub(super) fn has_abandoned(&self) -> bool {
        !self.abandoned.is_empty()
    }

    /// Adds to `changes` the rows by which given-up uploads are deleted like dead segments.
    pub(super) fn bury_abandoned(&self, changes: &mut Changes, now_secs: u64) {
        for &id in &self.abandoned {
            changes.bury(id, now_secs, DeadRow::UNBORN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Ino, JournalPos};
    use crate::commit::batch::{Batch, DataOp};
    use crate::journal::RecordLoc;
    use crate::meta::keys;

    #[test]
    fn a_segment_whose_upload_failed_gets_a_new_name_and_the_old_one_is_buried() {
        // Guards against segments that no row knows staying in the bucket for ever, one more
        // with each try, and against extents that name what was never uploaded.
        let mut group = CommitGroup::new(JournalPos(0));
        for i in 0..40 {
            let mut batch = Batch::default();
            let (ino, offset, len) = (Ino(7), i << 20, 1 << 20);
            batch.data.push(DataOp::Write { ino, incarnation: 0, offset, len });
            group.apply(batch, RecordLoc::for_tests(1), 40, &[]);
        }
        let mut next = 0;
        let mut new_id = || {
            next += 1;
            SegmentId([next; 16])
        };
        let mut work = Work::new(Arc::new(group), u64::MAX, 1, &mut new_id);
        assert_eq!(work.missing(), [0, 1, 2]);
        let layout = Layout { data_len: 16 << 20, tail_len: 50, frames: None };
        work.has(0, Arc::new(layout));
        assert_eq!((work.sending().planned >> 20, work.sending().landed >> 20), (40, 16));
        work.abandon(&[0, 1], &mut new_id);
        assert_eq!(work.missing(), [1, 2]);
        let names: Vec<u8> = work.plan.segments.iter().map(|s| s.id.0[0]).collect();
        assert_eq!(names, [1, 4, 3], "the second has a new name");
        let changes = &work.plan.files[0].changes;
        let named: Vec<u8> = changes.iter().map(|c| c.to.expect("data").id.0[0]).collect();
        assert_eq!(named, names, "extents follow");
        let mut rows = Changes::default();
        work.bury_abandoned(&mut rows, 9);
        let buried = keys::dead_segment(9, SegmentId([2; 16]));
        assert_eq!(rows.rows.keys().cloned().collect::<Vec<_>>(), [buried]);
    }
}
