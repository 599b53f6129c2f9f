//! How an object is cut into granules, and where a granule lies in its cache file. Pure.
//!
//! A granule is four sealed chunks; the first also has the message's header. So a read of some
//! chunks of a sealed object never needs a part of a granule only to authenticate it.
//!
//! ```text
//! object   | 0 .. 65 656 | 65 656 .. 131 256 | …          granule 0, granule 1, …
//! file     | page 4 096 | mark 16, granule 0 | mark 16, granule 1 | …
//! ```

use crate::seal::offsets::{CHUNK_CIPHER, HEADER};
use std::ops::Range;

/// Bytes of every granule but the first (which has the header too) and the last.
pub(super) const GRANULE: u64 = 4 * CHUNK_CIPHER as u64;
/// Bytes before a granule in the cache file: its length and checksum.
pub(super) const MARK: u64 = 16;
/// Bytes before the first mark in the cache file: what object this is.
pub(super) const PAGE: u64 = 4096;

const HEAD: u64 = HEADER as u64;

/// The granule that holds byte `offset` of an object.
pub(super) fn index(offset: u64) -> u64 {
    offset.saturating_sub(HEAD) / GRANULE
}

/// Offset in the object at which granule `k` starts.
pub(super) fn start(k: u64) -> u64 {
    if k == 0 { 0 } else { HEAD.saturating_add(k.saturating_mul(GRANULE)) }
}

/// The granules that hold some byte of `bytes`.
pub(super) fn touching(bytes: &Range<u64>) -> Range<u64> {
    if bytes.is_empty() { 0..0 } else { index(bytes.start)..index(bytes.end - 1) + 1 }
}

/// The granules that lie wholly within `bytes` of an object of `size` bytes (the last one ends
/// where the object does).
pub(super) fn within(bytes: &Range<u64>, size: u64) -> Range<u64> {
    let first = match index(bytes.start) {
        k if start(k) >= bytes.start => k,
        k => k + 1,
    };
    let end = match index(bytes.end) {
        _ if bytes.end >= size => touching(&(0..size)).end,
        k => k,
    };
    first..end.max(first)
}

/// The bytes of an object of `size` bytes that `granules` are.
pub(super) fn bytes(granules: &Range<u64>, size: u64) -> Range<u64> {
    let end = start(granules.end).min(size);
    start(granules.start).min(end)..end
}

/// Where the mark of granule `k` starts in the cache file.
pub(super) fn file_start(k: u64) -> u64 {
    PAGE.saturating_add(start(k)).saturating_add(k.saturating_mul(MARK))
}

/// Cuts ascending granule numbers into runs of neighbours, none longer than `max`.
pub(super) fn runs(granules: impl IntoIterator<Item = u64>, max: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for k in granules {
        match runs.last_mut() {
            Some(run) if run.end == k && run.end - run.start < max => run.end += 1,
            _ => runs.push(k..k + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_tile_an_object_and_its_cache_file() {
        // Guards against gaps and overlaps, in the object and in the file.
        for k in 0..5 {
            assert_eq!(index(start(k)), k);
            assert_eq!(index(start(k + 1) - 1), k);
            assert_eq!(file_start(k + 1), file_start(k) + MARK + start(k + 1) - start(k));
        }
        assert_eq!((start(0), start(1), start(2)), (0, 65_656, 131_256));
        assert_eq!(file_start(0), 4096);
    }

    #[test]
    fn only_whole_granules_are_kept() {
        // Guards against half a granule being stored as a whole one.
        assert_eq!(within(&(0..65_656), 1 << 20), 0..1);
        assert_eq!(within(&(1..65_656), 1 << 20), 1..1);
        assert_eq!(within(&(0..65_655), 1 << 20), 0..0);
        assert_eq!(within(&(10..140_000), 140_000), 1..3);
        assert_eq!(within(&(10..139_999), 140_000), 1..2);
        assert_eq!(within(&(0..50), 50), 0..1);
        assert_eq!(within(&(0..0), 0), 0..0);
        assert_eq!(touching(&(65_655..65_657)), 0..2);
        assert_eq!(bytes(&(1..9), 140_000), 65_656..140_000);
        assert_eq!(runs([1, 2, 3, 5, 6], 2), [1..3, 3..4, 5..7]);
    }
}
