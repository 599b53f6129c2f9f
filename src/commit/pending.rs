//! A generation of pending changes: the net effect of a run of batches, in memory.
//!
//! Batches are applied to the newest generation; the committer freezes it and commits it as
//! one. Coalescing is thereby free: a row keeps its last value, a temporary file that comes
//! and goes within one generation leaves nothing, overwritten bytes are never uploaded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use bytes::Bytes;

use super::batch::{Batch, DataOp, RowOp};
use crate::base::{Ino, JournalPos};
use crate::data::{Overlay, Source};
use crate::journal::RecordLoc;
use crate::meta::Key;
use crate::meta::keys::{self, RECLAIM_INODE};

/// The pending value of a row.
#[derive(Clone, Debug)]
pub struct PendingRow {
    /// The value; `None`: deleted.
    pub value: Option<Bytes>,
    /// No older layer has this key.
    fresh: bool,
}

impl PendingRow {
    /// Whether no older layer has this key.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }
}

/// The pending contents of one data generation of one file.
#[derive(Clone, Debug, Default)]
pub struct PendingFile {
    /// Ranges written or punched.
    pub ranges: Overlay<Source>,
    /// Nothing of this data generation is in an older layer.
    pub fresh: bool,
}

/// Which contents: inode and data generation.
pub type FileKey = (Ino, u32);

/// What accumulates between two freezes.
#[derive(Debug)]
pub struct Generation {
    /// Rows by key.
    pub rows: BTreeMap<Key, PendingRow>,
    /// Contents by file.
    pub files: HashMap<FileKey, PendingFile>,
    /// Data generations that ended and of which older layers may hold something. Generation
    /// [`RECLAIM_INODE`] stands for the inode's extended attributes.
    pub dropped: BTreeSet<FileKey>,
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
    /// When the first batch was applied.
    pub since: Option<Instant>,
}

/// What a row costs in memory besides key and value: map node, two allocations, flags.
const ROW_OVERHEAD: u64 = 120;
/// What a pending range of a file costs in memory.
const RANGE_BYTES: u64 = 96;
/// What a file with pending ranges costs besides them.
const FILE_BYTES: u64 = 96;

impl Generation {
    /// An empty generation after record `last`.
    pub fn new(last: JournalPos) -> Generation {
        Generation {
            rows: BTreeMap::new(),
            files: HashMap::new(),
            dropped: BTreeSet::new(),
            inodes: 0,
            bytes: 0,
            last,
            data_bytes: 0,
            row_bytes: 0,
            since: None,
        }
    }

    /// Whether it holds nothing that a commit would have to say.
    pub fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    /// Applies `batch`, which is the record at `record` with its data starting at plaintext
    /// byte `data_start`.
    pub fn apply(&mut self, batch: Batch, record: RecordLoc, data_start: u32) {
        self.since.get_or_insert_with(Instant::now);
        self.last = record.pos();
        self.inodes += batch.inodes;
        self.bytes += batch.bytes;
        let mut skip = data_start;
        for op in batch.data {
            let (DataOp::Begin { ino, generation }
            | DataOp::Write { ino, generation, .. }
            | DataOp::Hole { ino, generation, .. }
            | DataOp::Drop { ino, generation }) = op;
            let touched = (ino, generation);
            let before = self.file_bytes(&touched);
            match op {
                DataOp::Begin { ino, generation } => {
                    let file = self.files.entry((ino, generation)).or_default();
                    *file = PendingFile { ranges: Overlay::default(), fresh: true };
                }
                DataOp::Write { ino, generation, offset, len } => {
                    let file = self.files.entry((ino, generation)).or_default();
                    let source = Source::Record { record, skip };
                    file.ranges.insert(offset, offset + len as u64, source);
                    skip += len;
                    self.data_bytes += len as u64;
                }
                DataOp::Hole { ino, generation, start, end } => {
                    let file = self.files.entry((ino, generation)).or_default();
                    if file.fresh {
                        file.ranges.cut(start, end);
                    } else {
                        file.ranges.insert(start, end, Source::Hole);
                    }
                }
                DataOp::Drop { ino, generation: RECLAIM_INODE } => {
                    self.forget_xattrs(ino);
                    self.dropped.insert((ino, RECLAIM_INODE));
                }
                DataOp::Drop { ino, generation } => {
                    let fresh = self.files.remove(&(ino, generation)).is_some_and(|f| f.fresh);
                    if !fresh {
                        self.dropped.insert((ino, generation));
                    }
                }
            }
            self.row_bytes = self.row_bytes + self.file_bytes(&touched) - before;
        }
        for (key, op) in batch.rows {
            self.apply_row(key, op);
        }
    }

    /// Memory that the pending contents of `file` take: many small writes must count as much
    /// as rows do, or a long time offline would fill the memory.
    fn file_bytes(&self, file: &FileKey) -> u64 {
        self.files.get(file).map_or(0, |f| FILE_BYTES + RANGE_BYTES * f.ranges.len() as u64)
    }

    fn apply_row(&mut self, key: Key, op: RowOp) {
        let size = |key: &Key, value: &Option<Bytes>| {
            ROW_OVERHEAD + key.len() as u64 + value.as_ref().map_or(0, |v| v.len() as u64)
        };
        let (value, fresh) = match op {
            RowOp::Put(value) => (Some(value), false),
            RowOp::PutFresh(value) => (Some(value), true),
            RowOp::Delete => (None, false),
        };
        let old = self.rows.get(&key);
        if let Some(old) = old {
            self.row_bytes -= size(&key, &old.value);
        }
        // A row stays fresh while it stays in this generation; a delete of it leaves nothing.
        // A put that claims freshness over a pending delete must not lose that delete.
        let fresh = match old {
            Some(old) => old.fresh,
            None => fresh,
        };
        if value.is_none() && fresh {
            self.rows.remove(&key);
            return;
        }
        self.row_bytes += size(&key, &value);
        self.rows.insert(key, PendingRow { value, fresh });
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

    fn apply(generation: &mut Generation, build: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::default();
        build(&mut batch);
        generation.apply(batch, RecordLoc::for_tests(1), 10);
    }

    #[test]
    fn a_row_created_and_deleted_in_one_generation_leaves_nothing() {
        // Guards against temporary files costing tombstones in the bucket.
        let mut g = Generation::new(JournalPos(0));
        apply(&mut g, |b| b.put_fresh(key("a"), Bytes::from_static(b"1")));
        apply(&mut g, |b| b.put(key("a"), Bytes::from_static(b"2")));
        apply(&mut g, |b| b.delete(key("a")));
        assert!(g.rows.is_empty());
        assert_eq!(g.row_bytes, 0);
    }

    #[test]
    fn deleting_a_committed_row_and_creating_it_anew_keeps_the_tombstone_possible() {
        // Guards against `rm a; touch a; rm a` resurrecting the committed `a`.
        let mut g = Generation::new(JournalPos(0));
        apply(&mut g, |b| b.delete(key("a")));
        apply(&mut g, |b| b.put_fresh(key("a"), Bytes::from_static(b"2")));
        apply(&mut g, |b| b.delete(key("a")));
        assert!(g.rows[&key("a")].value.is_none());
    }

    #[test]
    fn a_hole_in_fresh_data_is_the_absence_of_a_range() {
        // Guards against holes costing ranges where there is nothing below to hide.
        let mut g = Generation::new(JournalPos(0));
        let (ino, generation) = (Ino(2), 0);
        apply(&mut g, |b| {
            b.data.push(DataOp::Begin { ino, generation });
            b.data.push(DataOp::Write { ino, generation, offset: 0, len: 100 });
            b.data.push(DataOp::Hole { ino, generation, start: 50, end: u64::MAX });
        });
        let file = &g.files[&(ino, generation)];
        assert!(file.fresh);
        let ranges: Vec<_> = file.ranges.iter().map(|(s, e, _)| (s, e)).collect();
        assert_eq!(ranges, [(0, 50)]);
    }

    #[test]
    fn many_small_writes_count_as_memory_until_the_file_goes() {
        // Guards against a long time offline filling the memory with ranges that no limit sees.
        let mut g = Generation::new(JournalPos(0));
        let (ino, generation) = (Ino(2), 0);
        for i in 0..1000 {
            let write = DataOp::Write { ino, generation, offset: i * 10, len: 1 };
            apply(&mut g, |b| b.data.push(write));
        }
        assert!(g.row_bytes >= 1000 * RANGE_BYTES, "{}", g.row_bytes);
        apply(&mut g, |b| b.data.push(DataOp::Drop { ino, generation }));
        assert_eq!(g.row_bytes, 0);
    }
}
