//! What a journal is opened with, and the address of a record in it.

use super::format::{FILE_HEADER_BYTES, PAGE, payload_max};
use crate::base::JournalPos;
use std::path::PathBuf;

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// The directory; made if missing. Nothing else may live in it.
    pub dir: PathBuf,
    /// The most bytes of log files that hold records not yet released (`--journal-size`).
    /// Spare files are not counted.
    pub bytes_max: u64,
    /// Bytes of one log file; lowered to a quarter of `bytes_max` and to whole pages.
    pub file_bytes: u64,
    /// The most bytes of spare (released or pre-written) files to keep; the rest is deleted.
    /// At most `bytes_max`.
    pub pool_bytes_max: u64,
    /// Bytes of spare files that the keeper thread writes ahead of need, so that appends
    /// overwrite allocated blocks and a sync changes no metadata. At most `pool_bytes_max`.
    pub prewrite_bytes: u64,
    /// Run the keeper thread. Without it (tests that need every disk request in order) spare
    /// files are made on demand and [`Journal::keep`](super::Journal::keep) recycles.
    pub keeper: bool,
}

/// Bytes of a log file unless told otherwise: large enough that starting one is rare.
pub const FILE_BYTES: u64 = 64 << 20;
/// Bytes of spare files kept unless told otherwise.
pub const POOL_BYTES_MAX: u64 = 1280 << 20;
/// Bytes of spare files written ahead unless told otherwise.
pub const PREWRITE_BYTES: u64 = 256 << 20;
/// The smallest log file: the header and three pages of records.
const FILE_BYTES_MIN: u64 = (FILE_HEADER_BYTES + 3 * PAGE) as u64;
/// The largest log file: offsets in it are 32 bits.
const FILE_BYTES_MAX: u64 = 1 << 31;

impl JournalOptions {
    /// The usual sizes, for a journal in `dir` that may hold `bytes_max`.
    pub fn new(dir: impl Into<PathBuf>, bytes_max: u64) -> JournalOptions {
        JournalOptions {
            dir: dir.into(),
            bytes_max,
            file_bytes: FILE_BYTES,
            pool_bytes_max: POOL_BYTES_MAX,
            prewrite_bytes: PREWRITE_BYTES,
            keeper: true,
        }
    }

    /// The same on a disk that has `bytes` for it: with smaller files where fewer than four of the
    /// usual size fit, since space comes back by the file. One of the usual size must fit, or they
    /// stay as they are, and the journal will not begin.
    pub fn on_disk_of(mut self, bytes: u64) -> JournalOptions {
        let usual = self.clone().fitted().file_bytes;
        if (usual..4 * usual).contains(&bytes) {
            self.file_bytes = bytes / 4;
            self.prewrite_bytes = self.prewrite_bytes.min(bytes / 2);
        }
        self
    }

    /// The same with sizes that fit together (see the fields).
    pub(crate) fn fitted(mut self) -> JournalOptions {
        let quarter = (self.bytes_max / 4).max(FILE_BYTES_MIN);
        self.file_bytes = self.file_bytes.min(quarter).clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        self.file_bytes -= self.file_bytes % PAGE as u64;
        self.bytes_max = self.bytes_max.max(2 * self.file_bytes);
        // More spare files than may ever be in use at once would never be used.
        self.pool_bytes_max = self.pool_bytes_max.min(self.bytes_max);
        self.prewrite_bytes = self.prewrite_bytes.min(self.pool_bytes_max);
        self
    }

    /// How many log files may hold unreleased records at once; at least 2.
    pub(crate) fn files_max(&self) -> usize {
        (self.bytes_max / self.file_bytes) as usize
    }

    /// How many spare files may be kept.
    pub(crate) fn pool_files_max(&self) -> usize {
        (self.pool_bytes_max / self.file_bytes) as usize
    }

    /// How many spare files are written ahead.
    pub(crate) fn prewrite_files(&self) -> usize {
        self.prewrite_bytes.div_ceil(self.file_bytes).min(self.pool_files_max() as u64) as usize
    }

    /// The most bytes one record may have.
    pub(crate) fn record_max(&self) -> usize {
        payload_max(self.file_bytes as usize - FILE_HEADER_BYTES)
    }
}

/// Where a record's sealed message lies. Good until the record is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordLoc {
    pub(crate) pos: JournalPos,
    pub(crate) file: u64,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl RecordLoc {
    /// An address of nothing, for tests of what only carries addresses around.
    #[cfg(test)]
    pub(crate) fn for_tests(pos: u64) -> RecordLoc {
        RecordLoc { pos: JournalPos(pos), file: 0, offset: 0, len: 1 << 20 }
    }

    /// The record's position.
    pub fn pos(&self) -> JournalPos {
        self.pos
    }

    /// Bytes of the record, as they were given to `append`.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True of a record without bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_lowered_until_four_files_fit_the_limit() {
        // Guards against a small --journal-size that could never recycle: with one file for
        // the whole limit, space would come back only when everything is in the bucket.
        let options = JournalOptions::new("/x", 64 << 20).fitted();
        assert_eq!(options.file_bytes, 16 << 20);
        assert_eq!(options.files_max(), 4);
        assert_eq!(options.pool_bytes_max, 64 << 20);
        let tiny = JournalOptions::new("/x", 1).fitted();
        assert!(tiny.files_max() >= 2 && tiny.record_max() > 4096);
    }

    #[test]
    fn files_are_smaller_on_a_small_disk() {
        // Guards against a disk that one file fills: its space would never come back, because the
        // next file must be there before.
        let on = |mib: u64| JournalOptions::new("/x", 10 << 30).on_disk_of(mib << 20).fitted();
        assert_eq!(on(40).file_bytes, FILE_BYTES);
        assert_eq!(on(96).file_bytes, 24 << 20);
        assert_eq!(on(96).prewrite_files(), 2);
        assert_eq!(on(4096).file_bytes, FILE_BYTES);
    }

    #[test]
    fn prewriting_never_exceeds_the_pool() {
        // Guards against spare files being written and deleted in a circle.
        let mut options = JournalOptions::new("/x", 1 << 30);
        options.pool_bytes_max = 100 << 20;
        let options = options.fitted();
        assert_eq!(options.prewrite_files(), 1);
        assert_eq!(options.pool_files_max(), 1);
    }
}
