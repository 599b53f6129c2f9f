//! The arithmetic between plaintext and ciphertext offsets of a sealed message.
//!
//! Pure: no keys, no bytes. `store/` maps ranged reads with it, `journal/` sizes records.
//! FORMAT.md "Sealed message" has the same numbers worked out.

use std::ops::Range;

/// Plaintext bytes of every chunk but the last, which is always shorter.
pub const CHUNK_PLAIN: usize = 16_384;
/// Bytes of the AES-GCM tag after each chunk.
pub const TAG: usize = 16;
/// Ciphertext bytes of every chunk but the last.
pub const CHUNK_CIPHER: usize = CHUNK_PLAIN + TAG;
/// Bytes before chunk 0: salt 24 and commitment 32.
pub const HEADER: usize = 56;
/// The shortest message there is: the header and one empty chunk.
pub const MESSAGE_MIN: usize = HEADER + TAG;

/// Length of the message that seals `plain` bytes, header included. Saturates at `u64::MAX`
/// (reached above 2^63 plaintext bytes, which nothing can store).
pub const fn cipher_len(plain: u64) -> u64 {
    let chunks_full = plain / CHUNK_PLAIN as u64;
    plain.saturating_add(chunks_full.saturating_mul(TAG as u64)).saturating_add(MESSAGE_MIN as u64)
}

/// Plaintext length of a message of `cipher` bytes; `None` when no message has that length
/// (cut inside the header or a tag, or ending with a full chunk).
pub const fn plain_len(cipher: u64) -> Option<u64> {
    if cipher < MESSAGE_MIN as u64 {
        return None;
    }
    let body = cipher - HEADER as u64;
    let (full, last) = (body / CHUNK_CIPHER as u64, body % CHUNK_CIPHER as u64);
    if last < TAG as u64 { None } else { Some(full * CHUNK_PLAIN as u64 + last - TAG as u64) }
}

/// Plaintext bytes of `cipher` bytes of whole chunks, the last one of a message among them if
/// `ends_message`; `None` where no chunks have that length.
pub const fn plain_of_chunks(cipher: u64, ends_message: bool) -> Option<u64> {
    let (full, last) = (cipher / CHUNK_CIPHER as u64, cipher % CHUNK_CIPHER as u64);
    let plain = full * CHUNK_PLAIN as u64;
    match ends_message {
        true if last >= TAG as u64 => Some(plain + last - TAG as u64),
        false if last == 0 => Some(plain),
        _ => None,
    }
}

/// Offset in the message at which chunk `chunk` starts. Saturates like [`cipher_len`].
pub const fn chunk_start(chunk: u64) -> u64 {
    chunk.saturating_mul(CHUNK_CIPHER as u64).saturating_add(HEADER as u64)
}

/// The whole chunks that hold a range of plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRange {
    /// The first chunk of the range.
    pub first_chunk: u64,
    /// The bytes of the message that hold those chunks (never the header).
    pub cipher: Range<u64>,
    /// Whether `cipher` ends with the message's last chunk.
    pub ends_message: bool,
    /// Plaintext bytes of the first chunk before the range asked for.
    pub skip: usize,
}

/// The chunks touched by `plain` in a message of `plain_len` plaintext bytes. The range is cut
/// at `plain_len`; an empty range touches no chunk
/// (`cipher` is empty and within the message). The last chunk is
/// touched only when the range reaches into it: ask [`last_chunk`] for the one that
/// authenticates the length.
pub fn cipher_range(plain: Range<u64>, plain_len: u64) -> ChunkRange {
    let end = plain.end.min(plain_len);
    let first_chunk = plain.start / CHUNK_PLAIN as u64;
    let message_end = cipher_len(plain_len);
    let start = chunk_start(first_chunk).min(message_end);
    if plain.start >= end {
        return ChunkRange { first_chunk, cipher: start..start, ends_message: false, skip: 0 };
    }
    let skip = (plain.start % CHUNK_PLAIN as u64) as usize;
    let past_chunk = (end - 1) / CHUNK_PLAIN as u64 + 1;
    let cipher = start..chunk_start(past_chunk).min(message_end);
    ChunkRange { first_chunk, ends_message: cipher.end == message_end, cipher, skip }
}

/// The last chunk of a message of `plain_len` plaintext bytes (empty when `plain_len` is a
/// multiple of [`CHUNK_PLAIN`]). Opening it proves the length.
pub fn last_chunk(plain_len: u64) -> ChunkRange {
    let first_chunk = plain_len / CHUNK_PLAIN as u64;
    let cipher = chunk_start(first_chunk)..cipher_len(plain_len);
    ChunkRange { first_chunk, cipher, ends_message: true, skip: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn worked_sizes_of_the_format_page_hold() {
        // Guards against an off-by-one at a chunk boundary: the table of FORMAT.md.
        let table = [
            (0, 72),
            (1, 73),
            (16_383, 16_455),
            (16_384, 16_472),
            (16_385, 16_473),
            (32_767, 32_855),
            (32_768, 32_872),
            (32_769, 32_873),
            (1 << 20, 56 + 64 * 16_400 + 16),
            (8 << 20, 56 + 512 * 16_400 + 16),
        ];
        for (plain, cipher) in table {
            assert_eq!(cipher_len(plain), cipher, "cipher_len({plain})");
            assert_eq!(plain_len(cipher), Some(plain), "plain_len({cipher})");
        }
    }

    #[test]
    fn lengths_that_no_message_has_are_refused() {
        // Guards against a truncated object being given a plausible size: cut in the header, in
        // the first tag, right after a full chunk, and inside the tag of the last chunk.
        for cipher in [0, 1, 24, 55, 56, 71, 16_456, 16_457, 16_471, 32_856, 32_871] {
            assert_eq!(plain_len(cipher), None, "{cipher}");
        }
    }

    #[test]
    fn absurd_lengths_neither_panic_nor_wrap() {
        // Guards against overflow from a length found in a damaged place.
        assert_eq!(cipher_len(u64::MAX), u64::MAX);
        assert_eq!(chunk_start(u64::MAX), u64::MAX);
        let _ = plain_len(u64::MAX);
        let _ = cipher_range(5..u64::MAX, u64::MAX);
        assert!(cipher_range(9..9, u64::MAX).cipher.is_empty());
    }

    #[test]
    fn a_range_takes_whole_chunks_and_says_when_it_ends_the_message() {
        // Guards against fetching half a chunk or treating a middle chunk as the last.
        let r = cipher_range(16_383..16_385, 40_000);
        assert_eq!((r.first_chunk, r.skip, r.ends_message), (0, 16_383, false));
        assert_eq!(r.cipher, 56..56 + 2 * 16_400);
        let r = cipher_range(39_999..u64::MAX, 40_000);
        assert_eq!((r.first_chunk, r.skip, r.ends_message), (2, 39_999 - 32_768, true));
        assert_eq!(r.cipher, 56 + 2 * 16_400..cipher_len(40_000));
        // All of the bytes of a message that ends with an empty chunk: that chunk is not touched.
        let r = cipher_range(0..16_384, 16_384);
        assert_eq!((r.cipher.clone(), r.ends_message), (56..16_456, false));
        assert_eq!(last_chunk(16_384).cipher, 16_456..16_472);
        assert_eq!(last_chunk(0).cipher, 56..72);
    }

    proptest! {
        #[test]
        fn every_length_round_trips(plain in 0..1u64 << 50) {
            // Guards against a length that maps back to another.
            prop_assert_eq!(plain_len(cipher_len(plain)), Some(plain));
        }

        #[test]
        fn a_range_covers_exactly_what_it_must(len in 0..200_000u64, a in 0..210_000u64, b in 0..210_000u64) {
            // Guards against a chunk too few (a hole) or too many (a wasted fetch).
            let range = a.min(b)..a.max(b);
            let r = cipher_range(range.clone(), len);
            prop_assert!(r.cipher.end <= cipher_len(len));
            let end = range.end.min(len);
            if range.start < end {
                let first = r.first_chunk * CHUNK_PLAIN as u64;
                prop_assert_eq!(first + r.skip as u64, range.start);
                prop_assert!(r.skip < CHUNK_PLAIN);
                let chunks = (r.cipher.end - r.cipher.start).div_ceil(CHUNK_CIPHER as u64);
                let past = first + chunks * CHUNK_PLAIN as u64;
                prop_assert!(past >= end && past - end < CHUNK_PLAIN as u64);
                prop_assert_eq!(r.ends_message, r.cipher.end == cipher_len(len));
            } else {
                prop_assert!(r.cipher.is_empty());
            }
        }
    }
}
