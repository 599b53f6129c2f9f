//! Which pending byte goes into which segment. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::base::{ContentsId, JournalPos, SegmentId};
use crate::data::Source;
use crate::journal::RecordLoc;
use crate::store::segments::{BYTES_PER_RANGE, Owned, RANGES_MAX};

use super::pending::CommitGroup;

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

/// A byte of the data of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentPos {
    /// The segment.
    pub id: SegmentId,
    /// Bytes before it.
    pub offset: u64,
}

/// What a commit does to one range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// First byte in the file.
    pub start: u64,
    /// End in the file (exclusive).
    pub end: u64,
    /// Where the bytes are now; `None`: a hole.
    pub to: Option<SegmentPos>,
}

impl Change {
    /// Adds to `changes` that `start..end` is at `to` now; where both go on from the last change,
    /// that one becomes longer.
    pub fn add(changes: &mut Vec<Change>, start: u64, end: u64, to: SegmentPos) {
        match changes.last_mut() {
            Some(Change { end: last_end, to: Some(last), start: first })
                if *last_end == start
                    && last.id == to.id
                    && last.offset + (start - *first) == to.offset =>
            {
                *last_end = end;
            }
            _ => changes.push(Change { start, end, to: Some(to) }),
        }
    }
}

/// What a commit does to the contents of a file.
#[derive(Clone, Debug)]
pub struct FileChanges {
    /// The file.
    pub file: ContentsId,
    /// In the order of the file.
    pub changes: Vec<Change>,
    /// Nothing of it is committed.
    pub fresh: bool,
}

/// The whole plan of a commit.
#[derive(Debug, Default)]
pub struct Plan {
    /// Segments to upload.
    pub segments: Vec<SegmentPlan>,
    /// The files with pending contents, in order.
    pub files: Vec<FileChanges>,
    /// What files share: each with a segment that has ranges of it written for others, or for
    /// another place of it.
    pub shares: BTreeSet<(SegmentId, ContentsId)>,
}

/// Where ranges of records lie in segments, as far as they were placed.
#[derive(Debug, Default)]
pub struct Placed(HashMap<JournalPos, BTreeMap<u32, (u32, SegmentPos)>>);

impl Placed {
    /// All that a plan has placed.
    pub fn of(plan: &Plan) -> Placed {
        let mut placed = Placed::default();
        for segment in &plan.segments {
            let mut offset = 0;
            for item in &segment.items {
                placed.add(item, SegmentPos { id: segment.id, offset });
                offset += u64::from(item.len);
            }
        }
        placed
    }

    fn add(&mut self, item: &Item, at: SegmentPos) {
        let of_record = self.0.entry(item.record.pos()).or_default();
        of_record.insert(item.skip, (item.skip + item.len, at));
    }

    /// How many bytes from `skip` of a record lie together, and where.
    pub fn find(&self, record: RecordLoc, skip: u32) -> Option<(u32, SegmentPos)> {
        let of_record = self.0.get(&record.pos())?;
        let (first, (end, at)) = of_record.range(..=skip).next_back()?;
        let offset = at.offset + u64::from(skip - first);
        (skip < *end).then(|| (end - skip, SegmentPos { id: at.id, offset }))
    }

    /// How many bytes from `skip` of a record lie nowhere yet, of at most `len`.
    fn gap(&self, record: RecordLoc, skip: u32, len: u64) -> u64 {
        let next = self.0.get(&record.pos()).and_then(|r| r.range(skip..).next());
        next.map_or(len, |(first, _)| len.min(u64::from(first - skip)))
    }
}

impl Plan {
    /// Gives the segment `old` the name `new`.
    pub fn rename(&mut self, old: SegmentId, new: SegmentId) {
        for segment in self.segments.iter_mut().filter(|s| s.id == old) {
            segment.id = new;
        }
        let changes = self.files.iter_mut().flat_map(|f| f.changes.iter_mut());
        for to in changes.filter_map(|c| c.to.as_mut()).filter(|to| to.id == old) {
            to.id = new;
        }
        let renamed = |&(id, file)| (if id == old { new } else { id }, file);
        self.shares = self.shares.iter().map(renamed).collect();
    }
}

/// Packs the contents of `group`, sorted by inode and offset, so that what is read
/// together lies together; no segment is larger than `bytes_max`. `new_id` names segments.
pub fn pack(group: &CommitGroup, bytes_max: u64, mut new_id: impl FnMut() -> SegmentId) -> Plan {
    let mut files: Vec<_> = group.files.iter().filter(|(_, f)| !f.ranges.is_empty()).collect();
    files.sort_unstable_by_key(|(key, _)| **key);
    let bytes_max = bytes_max.min(SEGMENT_BYTES_MAX);
    // What is shared is placed once; without clones, nothing is.
    let placed = (!group.clones.is_empty()).then(Placed::default);
    let mut packing = Packing { plan: Plan::default(), bytes_max, new_id: &mut new_id, placed };
    for (key, file) in files {
        let mut changes: Vec<Change> = Vec::new();
        for (start, end, source) in file.ranges.iter() {
            match source {
                Source::Record { record, skip } => {
                    packing.place(*key, &mut changes, start..end, record, skip);
                }
                Source::Hole => changes.push(Change { start, end, to: None }),
                Source::Segment { id, offset } => {
                    packing.plan.shares.insert((id, *key));
                    Change::add(&mut changes, start, end, SegmentPos { id, offset });
                }
            }
        }
        packing.plan.files.push(FileChanges { file: *key, changes, fresh: file.fresh });
    }
    packing.plan
}

struct Packing<'a, F> {
    plan: Plan,
    bytes_max: u64,
    new_id: &'a mut F,
    placed: Option<Placed>,
}

impl<F: FnMut() -> SegmentId> Packing<'_, F> {
    /// Places `range` of a file, which is in `record` from byte `skip` on.
    fn place(
        &mut self,
        file: ContentsId,
        changes: &mut Vec<Change>,
        Range { mut start, end }: Range<u64>,
        record: RecordLoc,
        mut skip: u32,
    ) {
        while start < end {
            let found = self.placed.as_ref().and_then(|placed| placed.find(record, skip));
            let (len, at) = match found {
                Some((len, at)) => {
                    self.plan.shares.insert((at.id, file));
                    ((end - start).min(u64::from(len)) as u32, at)
                }
                None => {
                    let placed = self.placed.as_ref();
                    let most = placed.map_or(end - start, |p| p.gap(record, skip, end - start));
                    let ContentsId { ino, incarnation } = file;
                    self.append(record, skip, Owned { ino, incarnation, offset: start, len: most })
                }
            };
            // Written in order: the extent of the former piece goes on.
            Change::add(changes, start, start + u64::from(len), at);
            start += u64::from(len);
            skip += len;
        }
    }

    /// Adds as much of `range` as there is room for to the last segment, or begins one.
    fn append(&mut self, record: RecordLoc, skip: u32, range: Owned) -> (u32, SegmentPos) {
        let segments = &mut self.plan.segments;
        if segments.last().is_none_or(|s| s.is_full(self.bytes_max)) {
            let (items, ranges) = (Vec::new(), Vec::new());
            segments.push(SegmentPlan { id: (self.new_id)(), items, ranges, len: 0 });
        }
        let segment = segments.last_mut().expect("one was just pushed");
        let len = range.len.min(self.bytes_max - segment.len) as u32;
        let item = Item { record, skip, len };
        let at = SegmentPos { id: segment.id, offset: segment.len };
        segment.items.push(item);
        Owned::add(&mut segment.ranges, Owned { len: u64::from(len), ..range });
        segment.len += u64::from(len);
        if let Some(placed) = &mut self.placed {
            placed.add(&item, at);
        }
        (len, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Ino, JournalPos};
    use crate::commit::batch::{Batch, CloneSource, DataOp};
    use crate::data::Part;

    fn write(g: &mut CommitGroup, ino: u64, offset: u64, len: u32) {
        let mut batch = Batch::default();
        batch.data.push(DataOp::Write { ino: Ino(ino), incarnation: 0, offset, len });
        g.apply(batch, RecordLoc::for_tests(1), 40, &[]);
    }

    #[test]
    fn a_file_written_in_order_costs_one_extent_a_segment() {
        // Guards against a row per write: a gigabyte must cost a few dozen rows.
        let mut g = CommitGroup::new(JournalPos(0));
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
        let changes = &plan.files[0].changes;
        let shape: Vec<_> = changes.iter().map(|c| (c.start >> 20, c.end >> 20)).collect();
        assert_eq!(shape, [(0, 16), (16, 32), (32, 40)]);
        assert_eq!(changes[1].to, Some(SegmentPos { id: SegmentId([2; 16]), offset: 0 }));
        let smaller = pack(&g, 3 << 20, || SegmentId([1; 16]));
        let lens: Vec<_> = smaller.segments.iter().map(|s| s.len >> 20).collect();
        assert_eq!((lens.len(), lens[0], lens[13]), (14, 3, 1), "as large as the store takes");
        let owned = |offset, len| Owned { ino: Ino(7), incarnation: 0, offset, len };
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
        let mut g = CommitGroup::new(JournalPos(0));
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
        let mut g = CommitGroup::new(JournalPos(0));
        for ino in [9, 3, 5] {
            write(&mut g, ino, 0, 100);
        }
        let plan = pack(&g, u64::MAX, || SegmentId([1; 16]));
        let order: Vec<_> = plan.files.iter().map(|f| (f.file.ino.0, f.changes[0].to)).collect();
        let at = |offset| Some(SegmentPos { id: SegmentId([1; 16]), offset });
        assert_eq!(order, [(3, at(0)), (5, at(100)), (9, at(200))]);
    }

    #[test]
    fn what_files_share_is_uploaded_once_however_it_overlaps() {
        // Guards against a copy of what is pending being uploaded again, and against a place that is
        // off by what was cut: every byte of every file is looked up in the segments.
        let (record, later) = (RecordLoc::for_tests(1), RecordLoc::for_tests(2));
        let part = |start, end, skip| Part { start, end, source: Source::Record { record, skip } };
        let mut g = CommitGroup::new(JournalPos(0));
        write(&mut g, 9, 0, 100);
        let mut clone = |ino, incarnation, offset, parts: &[Part]| {
            let (first, last) = (parts[0].start, parts[parts.len() - 1].end);
            let from =
                CloneSource { ino: Ino(9), incarnation: 0, offset: first, len: last - first };
            let op = DataOp::Clone { ino: Ino(ino), incarnation, offset, from };
            let batch = Batch { data: vec![op], ..Batch::default() };
            g.apply(batch, later, 40, parts);
        };
        // Before the source in the order of inodes, and behind it; twice in one file.
        clone(3, 0, 0, &[part(50, 70, 90)]);
        clone(12, 4, 1000, &[part(0, 100, 40)]);
        clone(12, 4, 60, &[part(30, 60, 70)]);
        let mut next = 0;
        let plan = pack(&g, 30, || {
            next += 1;
            SegmentId([next; 16])
        });
        assert_eq!(plan.segments.iter().map(|s| s.len).sum::<u64>(), 100, "each byte once");
        let byte_at = |id: SegmentId, mut offset: u64| {
            let segment = plan.segments.iter().find(|s| s.id == id).expect("in the plan");
            for item in &segment.items {
                if offset < u64::from(item.len) {
                    return u64::from(item.skip) + offset;
                }
                offset -= u64::from(item.len);
            }
            panic!("behind the end of a segment");
        };
        let placed = Placed::of(&plan);
        for (key, file) in &g.files {
            let planned = plan.files.iter().find(|f| f.file == *key).expect("planned");
            for (start, end, source) in file.ranges.iter() {
                let Source::Record { skip, .. } = source else { panic!("{source:?}") };
                for at in start..end {
                    let c = planned
                        .changes
                        .iter()
                        .find(|c| (c.start..c.end).contains(&at))
                        .expect("there");
                    let SegmentPos { id, offset } = c.to.expect("data");
                    let wanted = u64::from(skip) + (at - start);
                    assert_eq!(byte_at(id, offset + (at - c.start)), wanted, "{key:?} at {at}");
                    assert_eq!(
                        placed.find(record, wanted as u32).expect("placed").1,
                        SegmentPos { id, offset: offset + (at - c.start) }
                    );
                }
            }
        }
        let sharing: BTreeSet<_> = plan.shares.iter().map(|(_, file)| file.ino.0).collect();
        assert!(sharing.contains(&12), "{:?}", plan.shares);
        assert!(!plan.shares.iter().any(|(_, file)| file.ino.0 == 3), "the first is no share");
    }
}
