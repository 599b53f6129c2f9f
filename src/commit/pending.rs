//! A commit group: the net effect of a run of batches that are committed as one, in memory.
//!
//! Batches are applied to the newest group; the committer freezes it and commits it as
//! one. So coalescing costs nothing: a row keeps its last value, a temporary file that comes
//! and goes within one group leaves nothing, overwritten bytes are never uploaded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::time::Instant;

use bytes::Bytes;

use super::batch::{Batch, DataOp, RowOp};
use super::pack::{Placed, SegmentPos};
use crate::base::{ContentsId, Ino, JournalPos, SegmentId};
use crate::data::{Overlay, Part, Source};
use crate::journal::RecordLoc;
use crate::meta::Key;
use crate::meta::keys::{self, RECLAIM_INODE};

/// The pending value of a row.
#[derive(Clone, Debug)]
pub struct PendingRow {
    /// The value; `None`: deleted.
    pub value: Option<Bytes>,
    /// Neither an older group nor the metadata store has this key.
    fresh: bool,
}

impl PendingRow {
    /// Whether neither an older group nor the metadata store has this key.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }
}

/// The pending contents of one data incarnation of one file.
#[derive(Clone, Debug, Default)]
pub struct PendingFile {
    /// Ranges written or punched.
    pub ranges: Overlay<Source>,
    /// Nothing of this data incarnation is in an older group or in the metadata store.
    pub fresh: bool,
}

/// What accumulates between two freezes.
#[derive(Debug)]
pub struct CommitGroup {
    /// Rows by key.
    pub rows: BTreeMap<Key, PendingRow>,
    /// Contents by file.
    pub files: HashMap<ContentsId, PendingFile>,
    /// Data incarnations that ended and of which older groups or the metadata store may hold
    /// something. Incarnation [`RECLAIM_INODE`] stands for the inode's extended attributes.
    pub dropped: BTreeSet<ContentsId>,
    /// Change of the number of inodes.
    pub inodes: i64,
    /// Change of the bytes in use.
    pub bytes: i64,
    /// The last record applied.
    pub last: JournalPos,
    /// File bytes that its records carry (an upper bound of what will be uploaded).
    pub data_bytes: u64,
    /// Bytes of memory that rows and ranges take, roughly.
    pub row_bytes: u64,
    /// Bytes that its rows take in the log of the metadata store, roughly.
    pub log_bytes: u64,
    /// Which rows it cannot have, once it is closed.
    filter: Option<Filter>,
    /// When the first batch was applied.
    pub since: Option<Instant>,
    /// Segments of which files share ranges, and perhaps some of which they do not any more.
    pub shared: HashSet<SegmentId>,
    /// Files that share ranges of records which were written for others.
    pub clones: HashSet<ContentsId>,
}

/// What a row costs in memory besides key and value: map node, two allocations, flags.
const ROW_OVERHEAD: u64 = 120;
/// What a pending range of a file costs in memory.
const RANGE_BYTES: u64 = 96;
/// What a file with pending ranges costs besides them.
const FILE_BYTES: u64 = 96;

/// What a row costs in the log besides key and value: lengths, sequence number, time, and its part of
/// a restart and of the index.
const LOG_ROW: u64 = 40;
/// The same of a new row, which comes with its neighbours and shares most of its key with them.
const LOG_FRESH_ROW: u64 = 28;
/// What an inode's row costs besides if it is written again: the extent in it, which only the metadata
/// store knows.
const LOG_INODE: u64 = 28;
/// What a range of a file costs there: its extent's row, and its part of a segment's.
const LOG_RANGE: u64 = 132;
/// The first one of a file that has others below: it may cut the extent in the inode's row into two, and
/// then there are three rows.
const LOG_FIRST_RANGE: u64 = 185;
/// The only one of a new file, which is in the inode's row.
const LOG_ONLY_RANGE: u64 = 48;
/// What a shared range costs there besides: a `b` row, and the row of another segment.
const LOG_SHARE: u64 = 180;
/// What the end of a data incarnation costs there: up to [`INLINE_DROP_EXTENTS`](super::resolve) rows go.
const LOG_DROP: u64 = 250;

/// The hash of a key of a row, for [`CommitGroup::row`].
pub fn key_hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
}

/// A Bloom filter over keys of rows, in words of 64 bits (Putze, Sanders and Singler, *Cache-,
/// hash- and space-efficient Bloom filters*, 2007). While the bucket is away closed groups
/// add up, and each is asked for every row.
#[derive(Debug)]
struct Filter(Box<[u64]>);

impl Filter {
    /// Keys to a word: about one lookup in twenty is a false positive.
    const KEYS: usize = 6;

    fn of<'a>(keys: impl ExactSizeIterator<Item = &'a Key>) -> Filter {
        let mut filter = Filter(vec![0; keys.len().div_ceil(Filter::KEYS).max(1)].into());
        for key in keys {
            let (word, bits) = filter.place(key_hash(key));
            filter.0[word] |= bits;
        }
        filter
    }

    fn place(&self, hash: u64) -> (usize, u64) {
        let bits = (0..4).fold(0, |bits, n| bits | 1 << (hash >> (40 + 6 * n) & 63));
        ((hash as u32 as usize) % self.0.len(), bits)
    }

    fn may_have(&self, hash: u64) -> bool {
        let (word, bits) = self.place(hash);
        self.0[word] & bits == bits
    }
}

impl CommitGroup {
    /// An empty group after record `last`.
    pub fn new(last: JournalPos) -> CommitGroup {
        CommitGroup {
            rows: BTreeMap::new(),
            files: HashMap::new(),
            dropped: BTreeSet::new(),
            inodes: 0,
            bytes: 0,
            last,
            data_bytes: 0,
            row_bytes: 0,
            log_bytes: 0,
            filter: None,
            since: None,
            shared: HashSet::new(),
            clones: HashSet::new(),
        }
    }

    /// Whether it holds nothing that a commit would have to say.
    pub fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    /// Nothing is applied any more.
    pub fn close(&mut self) {
        self.filter = Some(Filter::of(self.rows.keys()));
    }

    /// The row of `key`, whose [`key_hash`] is `hash`, if it is pending here.
    pub fn row(&self, key: &[u8], hash: u64) -> Option<&PendingRow> {
        let may_have = self.filter.as_ref().is_none_or(|filter| filter.may_have(hash));
        if may_have { self.rows.get(key) } else { None }
    }

    /// Applies `batch`, which is the record at `record` with its data starting at plaintext
    /// byte `data_start`. `cloned` is what its clone shares, as parts of the source.
    pub fn apply(&mut self, batch: Batch, record: RecordLoc, data_start: u32, cloned: &[Part]) {
        self.since.get_or_insert_with(Instant::now);
        self.last = record.pos();
        self.inodes += batch.inodes;
        self.bytes += batch.bytes;
        let mut skip = data_start;
        for op in batch.data {
            let id = op.file();
            let before = self.file_bytes(&id);
            let (dropped, ranges) = (self.dropped.len() as u64, self.log_of_ranges(&id));
            match op {
                DataOp::Begin { .. } => {
                    let file = self.files.entry(id).or_default();
                    *file = PendingFile { ranges: Overlay::default(), fresh: true };
                }
                DataOp::Write { offset, len, .. } => {
                    let file = self.files.entry(id).or_default();
                    let source = Source::Record { record, skip };
                    file.ranges.insert(offset, offset + len as u64, source);
                    skip += len;
                    self.data_bytes += len as u64;
                }
                DataOp::Hole { start, end, .. } => {
                    let file = self.files.entry(id).or_default();
                    if file.fresh {
                        file.ranges.cut(start, end);
                    } else {
                        file.ranges.insert(start, end, Source::Hole);
                    }
                }
                DataOp::Clone { offset, from, .. } => {
                    self.share(id, offset, from.offset, cloned);
                    let data = cloned.iter().filter(|p| !matches!(p.source, Source::Hole));
                    self.log_bytes += LOG_SHARE * data.count() as u64;
                }
                DataOp::Place { offset, len, segment, at, .. } => {
                    let file = self.files.entry(id).or_default();
                    let source = Source::Segment { id: segment, offset: at };
                    file.ranges.insert(offset, offset + len, source);
                    self.shared.insert(segment);
                    self.log_bytes += LOG_SHARE;
                }
                DataOp::Drop { ino, incarnation: RECLAIM_INODE } => {
                    self.forget_xattrs(ino);
                    self.dropped.insert(id);
                }
                DataOp::Drop { .. } => {
                    let fresh = self.files.remove(&id).is_some_and(|f| f.fresh);
                    if !fresh {
                        self.dropped.insert(id);
                    }
                }
            }
            self.row_bytes = self.row_bytes + self.file_bytes(&id) - before;
            let dropped = self.dropped.len() as u64 - dropped;
            // Ranges that others share are cut into more when they get their place.
            let more = self.log_of_ranges(&id) + LOG_DROP * dropped;
            self.log_bytes = (self.log_bytes + more).saturating_sub(ranges);
        }
        for (key, op) in batch.rows {
            self.apply_row(key, op);
        }
    }

    fn ranges_of(&self, file: &ContentsId) -> u64 {
        self.files.get(file).map_or(0, |f| f.ranges.len() as u64)
    }

    /// What the ranges of `file` cost in the log.
    fn log_of_ranges(&self, file: &ContentsId) -> u64 {
        let Some(file) = self.files.get(file) else { return 0 };
        match (file.ranges.len() as u64, file.fresh) {
            (0, _) => 0,
            (1, true) => LOG_ONLY_RANGE,
            (n, true) => LOG_RANGE * n,
            (n, false) => LOG_FIRST_RANGE + LOG_RANGE * (n - 1),
        }
    }

    /// Puts `parts` of a source, from its byte `from` on, at `offset` of `file`.
    fn share(&mut self, file: ContentsId, offset: u64, from: u64, parts: &[Part]) {
        let to = self.files.entry(file).or_default();
        for part in parts {
            let (start, end) = (offset + (part.start - from), offset + (part.end - from));
            match part.source {
                Source::Hole if to.fresh => to.ranges.cut(start, end),
                source => to.ranges.insert(start, end, source),
            }
            match part.source {
                Source::Hole => {}
                Source::Record { .. } => drop(self.clones.insert(file)),
                Source::Segment { id, .. } => drop(self.shared.insert(id)),
            }
        }
    }

    /// Records up to `last` are in the bucket, where `placed` says: what shares them shares the
    /// segments from now on.
    pub fn rebase(&mut self, last: JournalPos, placed: &Placed) {
        for key in &self.clones {
            let Some(file) = self.files.get_mut(key) else { continue };
            let old = |source: &Source| matches!(source, Source::Record { record, .. } if record.pos() <= last);
            let moved: Vec<_> = file.ranges.iter().filter(|(.., source)| old(source)).collect();
            for (start, end, source) in moved {
                let Source::Record { record, skip } = source else { continue };
                let mut at = start;
                while at < end {
                    let skip = skip + (at - start) as u32;
                    let found = placed.find(record, skip);
                    let (len, to) =
                        found.expect("what is pending was packed before it was committed");
                    let stop = end.min(at + u64::from(len));
                    let SegmentPos { id, offset } = to;
                    file.ranges.insert(at, stop, Source::Segment { id, offset });
                    self.shared.insert(id);
                    at = stop;
                }
            }
        }
    }

    /// Memory that the pending contents of `file` take: many small writes must count as much
    /// as rows do, or a long time offline would fill the memory.
    fn file_bytes(&self, file: &ContentsId) -> u64 {
        let file_bytes = self.files.get(file).map_or(0, |_| FILE_BYTES);
        file_bytes + RANGE_BYTES * self.ranges_of(file)
    }

    fn apply_row(&mut self, key: Key, op: RowOp) {
        let size = |key: &Key, value: &Option<Bytes>| {
            key.len() as u64 + value.as_ref().map_or(0, |v| v.len() as u64)
        };
        let log = |key: &Key, row: &PendingRow| match (row.fresh, &row.value) {
            (true, _) => LOG_FRESH_ROW,
            (false, Some(_)) if key.starts_with(b"i") => LOG_ROW + LOG_INODE,
            _ => LOG_ROW,
        };
        let (value, fresh) = match op {
            RowOp::Put(value) => (Some(value), false),
            RowOp::PutFresh(value) => (Some(value), true),
            RowOp::Delete => (None, false),
        };
        let old = self.rows.get(&key);
        if let Some(old) = old {
            let size = size(&key, &old.value);
            self.row_bytes -= ROW_OVERHEAD + size;
            self.log_bytes = self.log_bytes.saturating_sub(log(&key, old) + size);
        }
        // A row stays fresh while it stays in this group; a delete of it leaves nothing.
        // A put that claims freshness over a pending delete must not lose that delete.
        let fresh = match old {
            Some(old) => old.fresh,
            None => fresh,
        };
        if value.is_none() && fresh {
            self.rows.remove(&key);
            return;
        }
        let size = size(&key, &value);
        self.row_bytes += ROW_OVERHEAD + size;
        let row = PendingRow { value, fresh };
        self.log_bytes += log(&key, &row) + size;
        self.rows.insert(key, row);
    }

    fn forget_xattrs(&mut self, ino: Ino) {
        let (start, end) = keys::xattrs(ino);
        let names: Vec<Key> = self.rows.range(start..end).map(|(key, _)| key.clone()).collect();
        for name in names {
            self.apply_row(name, RowOp::Delete);
        }
    }

    /// Number of files with pending contents.
    pub fn file_count(&self) -> u64 {
        self.files.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(s: &str) -> Key {
        s.as_bytes().into()
    }

    fn apply(group: &mut CommitGroup, build: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::default();
        build(&mut batch);
        group.apply(batch, RecordLoc::for_tests(1), 10, &[]);
    }

    #[test]
    fn a_row_created_and_deleted_in_one_group_leaves_nothing() {
        // Guards against temporary files costing tombstones in the bucket.
        let mut g = CommitGroup::new(JournalPos(0));
        apply(&mut g, |b| b.put_fresh(key("a"), Bytes::from_static(b"1")));
        apply(&mut g, |b| b.put(key("a"), Bytes::from_static(b"2")));
        apply(&mut g, |b| b.delete(key("a")));
        assert!(g.rows.is_empty());
        assert_eq!((g.row_bytes, g.log_bytes), (0, 0));
    }

    #[test]
    fn deleting_a_committed_row_and_creating_it_again_keeps_the_tombstone_possible() {
        // Guards against `rm a; touch a; rm a` resurrecting the committed `a`.
        let mut g = CommitGroup::new(JournalPos(0));
        apply(&mut g, |b| b.delete(key("a")));
        apply(&mut g, |b| b.put_fresh(key("a"), Bytes::from_static(b"2")));
        apply(&mut g, |b| b.delete(key("a")));
        assert!(g.rows[&key("a")].value.is_none());
    }

    #[test]
    fn a_hole_in_fresh_data_is_the_absence_of_a_range() {
        // Guards against holes costing ranges where there is nothing below to hide.
        let mut g = CommitGroup::new(JournalPos(0));
        let (ino, incarnation) = (Ino(2), 0);
        apply(&mut g, |b| {
            b.data.push(DataOp::Begin { ino, incarnation });
            b.data.push(DataOp::Write { ino, incarnation, offset: 0, len: 100 });
            b.data.push(DataOp::Hole { ino, incarnation, start: 50, end: u64::MAX });
        });
        let file = &g.files[&ContentsId { ino, incarnation }];
        assert!(file.fresh);
        let ranges: Vec<_> = file.ranges.iter().map(|(s, e, _)| (s, e)).collect();
        assert_eq!(ranges, [(0, 50)]);
    }

    #[test]
    fn a_closed_group_still_has_its_rows_and_hardly_any_other() {
        // Guards against a filter that hides a pending row, and against one that says nothing.
        let mut g = CommitGroup::new(JournalPos(0));
        let name = |n: usize| key(&format!("row {n}"));
        let row = |g: &CommitGroup, n| g.row(&name(n), key_hash(&name(n))).is_some();
        (0..3000).for_each(|n| apply(&mut g, |b| b.put(name(n), Bytes::new())));
        assert!(row(&g, 2999) && !row(&g, 3000));
        g.close();
        assert!((0..3000).all(|n| row(&g, n)));
        assert!((3000..9000).all(|n| !row(&g, n)));
        let filter = g.filter.as_ref().expect("it is closed");
        let vain = (3000..9000).filter(|n| filter.may_have(key_hash(&name(*n)))).count();
        assert!(vain < 900, "{vain} of 6000");
    }

    #[test]
    fn many_small_writes_count_as_memory_until_the_file_goes() {
        // Guards against a long time offline filling the memory with ranges that no limit sees.
        let mut g = CommitGroup::new(JournalPos(0));
        let (ino, incarnation) = (Ino(2), 0);
        for i in 0..1000 {
            let write = DataOp::Write { ino, incarnation, offset: i * 10, len: 1 };
            apply(&mut g, |b| b.data.push(write));
        }
        assert!(g.row_bytes >= 1000 * RANGE_BYTES, "{}", g.row_bytes);
        assert_eq!(g.log_bytes, LOG_FIRST_RANGE + 999 * LOG_RANGE);
        apply(&mut g, |b| b.data.push(DataOp::Drop { ino, incarnation }));
        assert_eq!((g.row_bytes, g.log_bytes), (0, LOG_DROP));
    }
}
