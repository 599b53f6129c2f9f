//! What the view keeps of the metadata store: rows and extents, bounded in memory.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;

use crate::base::ContentsId;
use crate::data::Extent;
use crate::meta::Key;

/// Extents kept in memory over all files.
const EXTENTS_MAX: usize = 400_000;
/// Bytes of rows kept in memory: extended attributes may be 64 KiB each.
const ROW_BYTES_MAX: usize = 32 << 20;
/// What a row costs besides key and value.
const ROW_OVERHEAD: usize = 120;

fn at_least_one(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n.max(1)).expect("at least one")
}

fn cost(key: &Key, value: &Option<Bytes>) -> usize {
    ROW_OVERHEAD + key.len() + value.as_ref().map_or(0, Bytes::len)
}

/// Committed rows; `None`: known to be absent.
pub(super) struct RowCache {
    rows: LruCache<Key, Option<Bytes>>,
    bytes: usize,
}

impl RowCache {
    /// For at most `rows_max` rows.
    pub(super) fn new(rows_max: usize) -> RowCache {
        RowCache { rows: LruCache::new(at_least_one(rows_max)), bytes: 0 }
    }

    pub(super) fn get(&mut self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.rows.get(key)
    }

    pub(super) fn put(&mut self, key: Key, value: Option<Bytes>) {
        self.bytes += cost(&key, &value);
        if let Some((key, old)) = self.rows.push(key, value) {
            self.bytes -= cost(&key, &old);
        }
        while self.bytes > ROW_BYTES_MAX {
            let Some((key, old)) = self.rows.pop_lru() else { break };
            self.bytes -= cost(&key, &old);
        }
    }

    pub(super) fn pop(&mut self, key: &[u8]) {
        if let Some((key, old)) = self.rows.pop_entry(key) {
            self.bytes -= cost(&key, &old);
        }
    }

    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.bytes = 0;
    }
}

/// The committed extents of a file that end above `from` and start below `to`, completely.
pub(super) struct KnownExtents {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) extents: Arc<Vec<Extent>>,
}

impl KnownExtents {
    /// Of a file that has this one.
    pub(super) fn only(extent: Extent) -> KnownExtents {
        KnownExtents { from: 0, to: u64::MAX, extents: Arc::new(vec![extent]) }
    }
}

pub(super) struct ExtentCache {
    files: LruCache<ContentsId, KnownExtents>,
    extents: usize,
}

impl ExtentCache {
    /// For at most `files_max` files.
    pub(super) fn new(files_max: usize) -> ExtentCache {
        ExtentCache { files: LruCache::new(at_least_one(files_max)), extents: 0 }
    }

    pub(super) fn get(&mut self, file: &ContentsId) -> Option<&KnownExtents> {
        self.files.get(file)
    }

    pub(super) fn clear(&mut self) {
        self.files.clear();
        self.extents = 0;
    }

    pub(super) fn put(&mut self, file: ContentsId, known: KnownExtents) {
        self.extents += known.extents.len();
        if let Some((_, old)) = self.files.push(file, known) {
            self.extents -= old.extents.len();
        }
        while self.extents > EXTENTS_MAX {
            let Some((_, old)) = self.files.pop_lru() else { break };
            self.extents -= old.extents.len();
        }
    }

    pub(super) fn pop(&mut self, file: &ContentsId) {
        if let Some(old) = self.files.pop(file) {
            self.extents -= old.extents.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_rows_push_others_out_and_replaced_ones_are_not_counted_twice() {
        // Guards against 65,536 extended attributes of 64 KiB staying in memory: 4 GiB.
        let mut cache = RowCache::new(65_536);
        for round in 0..2 {
            for i in 0..2000u32 {
                let key: Key = i.to_be_bytes().as_slice().into();
                cache.put(key, Some(Bytes::from(vec![round; 64 << 10])));
            }
        }
        assert!(cache.bytes <= ROW_BYTES_MAX, "{}", cache.bytes);
        let held: usize = cache.rows.iter().map(|(k, v)| cost(k, v)).sum();
        assert_eq!(cache.bytes, held);
        assert!(cache.get(&1999u32.to_be_bytes()).is_some(), "the newest stays");
        assert!(cache.get(&0u32.to_be_bytes()).is_none(), "the oldest goes");
    }
}
