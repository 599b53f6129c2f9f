//! Which pending byte goes into which segment. Pure.

use crate::base::SegmentId;
use crate::data::Source;
use crate::journal::RecordLoc;
use crate::store::segments::{BYTES_PER_RANGE, Owned, RANGES_MAX};

use super::pending::{FileKey, Generation};

/// Bytes of data of a full segment.
pub const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// A run of bytes of one journal record that goes into a segment.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// The record.
    pub record: RecordLoc,
    /// Plaintext offset in it.
    pub skip: u32,
    /// Bytes.
    pub len: u32,
}

/// One segment to upload: its items in order are its data.
#[derive(Clone, Debug)]
pub struct SegmentPlan {
    /// Its name.
    pub id: SegmentId,
    /// What it is made of.
    pub items: Vec<Item>,
    /// Whose they are, in the same order.
    pub ranges: Vec<Owned>,
    /// Bytes of data.
    pub len: u64,
}

impl SegmentPlan {
    /// Whether nothing more goes into it: it is full, or its summary would become too long.
    fn is_full(&self, bytes_max: u64) -> bool {
        let ranges_max = RANGES_MAX.min((bytes_max / BYTES_PER_RANGE) as usize).max(1);
        self.len >= bytes_max || self.ranges.len() >= ranges_max
    }
}

/// What a commit does to one range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// First byte in the file.
    pub start: u64,
    /// End in the file (exclusive).
    pub end: u64,
    /// Where the bytes are now; `None`: a hole.
    pub to: Option<(SegmentId, u64)>,
}

impl Change {
    /// Adds to `changes` that `start..end` is at `to` now; where both go on from the last change,
    /// that one becomes longer.
    pub fn add(changes: &mut Vec<Change>, start: u64, end: u64, to: (SegmentId, u64)) {
        match changes.last_mut() {
            Some(Change { end: last_end, to: Some((id, offset)), start: first })
                if *last_end == start && *id == to.0 && *offset + (start - *first) == to.1 =>
            {
                *last_end = end;
            }
            _ => changes.push(Change { start, end, to: Some(to) }),
        }
    }
}

/// The whole plan of a commit.
#[derive(Debug, Default)]
pub struct Plan {
    /// Segments to upload.
    pub segments: Vec<SegmentPlan>,
    /// For each file with pending contents, its changes in file order, and whether nothing of
    /// it is committed.
    pub files: Vec<(FileKey, Vec<Change>, bool)>,
}

impl Plan {
    /// Gives the segment `old` the name `new`.
    pub fn rename(&mut self, old: SegmentId, new: SegmentId) {
        for segment in self.segments.iter_mut().filter(|s| s.id == old) {
            segment.id = new;
        }
        for (id, _) in
            self.files.iter_mut().flat_map(|f| f.1.iter_mut()).filter_map(|c| c.to.as_mut())
        {
            if *id == old {
                *id = new;
            }
        }
    }
}

/// Packs the contents of `generation`, sorted by inode and offset, so that what is read
/// together lies together; no segment is larger than `bytes_max`. `new_id` names segments.
pub fn pack(
    generation: &Generation,
    bytes_max: u64,
    mut new_id: impl FnMut() -> SegmentId,
) -> Plan {
    let mut files: Vec<_> = generation.files.iter().filter(|(_, f)| !f.ranges.is_empty()).collect();
    files.sort_unstable_by_key(|(key, _)| **key);
    let bytes_max = bytes_max.min(SEGMENT_BYTES_MAX);
    let mut plan = Plan::default();
    for (key, file) in files {
        let mut changes: Vec<Change> = Vec::new();
        for (start, end, source) in file.ranges.iter() {
            match source {
                Source::Record { record, skip } => {
                    let to = (&mut plan.segments, bytes_max);
                    let (ino, generation) = *key;
                    let range = Owned { ino, generation, offset: start, len: end - start };
                    place(to, &mut changes, &mut new_id, range, record, skip)
                }
                Source::Hole => changes.push(Change { start, end, to: None }),
                Source::Segment { .. } => unreachable!("pending ranges are in the journal"),
            }
        }
        plan.files.push((*key, changes, file.fresh));
    }
    plan
}

fn place(
    (segments, bytes_max): (&mut Vec<SegmentPlan>, u64),
    changes: &mut Vec<Change>,
    new_id: &mut impl FnMut() -> SegmentId,
    mut range: Owned,
    record: RecordLoc,
    mut skip: u32,
) {
    while range.len > 0 {
        if segments.last().is_none_or(|s| s.is_full(bytes_max)) {
            let (items, ranges) = (Vec::new(), Vec::new());
            segments.push(SegmentPlan { id: new_id(), items, ranges, len: 0 });
        }
        let segment = segments.last_mut().expect("one was just pushed");
        let len = range.len.min(bytes_max - segment.len) as u32;
        let at = (segment.id, segment.len);
        segment.items.push(Item { record, skip, len });
        Owned::add(&mut segment.ranges, Owned { len: len as u64, ..range });
        segment.len += len as u64;
        // Written in order: the extent of the former piece goes on.
        Change::add(changes, range.offset, range.offset + len as u64, at);
        range.offset += len as u64;
        range.len -= len as u64;
        skip += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Ino, JournalPos};
    use crate::commit::batch::{Batch, DataOp};

    fn write(g: &mut Generation, ino: u64, offset: u64, len: u32) {
        let mut batch = Batch::default();
        batch.data.push(DataOp::Write { ino: Ino(ino), generation: 0, offset, len });
        g.apply(batch, RecordLoc::for_tests(1), 40);
    }

    #[test]
    fn a_file_written_in_order_costs_one_extent_a_segment() {
        // Guards against a row per write: a gigabyte must cost a few dozen rows.
        let mut g = Generation::new(JournalPos(0));
        for i in 0..40 {
            write(&mut g, 7, i << 20, 1 << 20);
        }
        let mut next = 0;
        let plan = pack(&g, u64::MAX, || {
            next += 1;
            SegmentId([next; 16])
        });
        let lens: Vec<_> = plan.segments.iter().map(|s| s.len >> 20).collect();
        assert_eq!(lens, [16, 16, 8]);
        assert_eq!(plan.files.len(), 1);
        let (_, changes, _) = &plan.files[0];
        let shape: Vec<_> = changes.iter().map(|c| (c.start >> 20, c.end >> 20)).collect();
        assert_eq!(shape, [(0, 16), (16, 32), (32, 40)]);
        assert_eq!(changes[1].to, Some((SegmentId([2; 16]), 0)));
        let smaller = pack(&g, 3 << 20, || SegmentId([1; 16]));
        let lens: Vec<_> = smaller.segments.iter().map(|s| s.len >> 20).collect();
        assert_eq!((lens.len(), lens[0], lens[13]), (14, 3, 1), "as large as the store takes");
        let owned = |offset, len| Owned { ino: Ino(7), generation: 0, offset, len };
        let ranges: Vec<_> = plan.segments.iter().flat_map(|s| s.ranges.clone()).collect();
        let mib = |n: u64| n << 20;
        assert_eq!(
            ranges,
            [owned(0, mib(16)), owned(mib(16), mib(16)), owned(mib(32), mib(8))],
            "one range for each, however many writes"
        );
    }

    #[test]
    fn a_segment_of_crumbs_ends_before_its_summary_is_long() {
        // Guards against a summary that is larger than the data, which no reader would take.
        let mut g = Generation::new(JournalPos(0));
        for i in 0..3000 {
            write(&mut g, 7, i * 10, 1);
        }
        let plan = pack(&g, 64 << 10, || SegmentId([1; 16]));
        let ranges: Vec<_> = plan.segments.iter().map(|s| s.ranges.len()).collect();
        assert_eq!(ranges, [1024, 1024, 952], "64 KiB of data at 64 bytes each");
        let all = pack(&g, u64::MAX, || SegmentId([1; 16]));
        assert_eq!(all.segments.len(), 1);
    }

    #[test]
    fn small_files_lie_side_by_side_in_inode_order() {
        // Guards against the packing following hash-map order, which would scatter a tree.
        let mut g = Generation::new(JournalPos(0));
        for ino in [9, 3, 5] {
            write(&mut g, ino, 0, 100);
        }
        let plan = pack(&g, u64::MAX, || SegmentId([1; 16]));
        let order: Vec<_> = plan.files.iter().map(|((ino, _), c, _)| (ino.0, c[0].to)).collect();
        let at = |offset| Some((SegmentId([1; 16]), offset));
        assert_eq!(order, [(3, at(0)), (5, at(100)), (9, at(200))]);
    }
}
