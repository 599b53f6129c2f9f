//! The bytes of the journal's files (`docs/FORMAT.md`, "Journal"): pure functions between
//! structs and bytes. No I/O.
//!
//! Integers are little-endian. Whatever is trusted is inside a sealed message; the clear parts
//! only find messages and tell an interrupted write from a finished one.

use crate::base::{JournalId, VolumeId};
use crate::seal::{self, HEADER, Place, VolumeKeys, offsets};

/// The unit of writing. Writes end on a page boundary (padded with zeros), so that appending
/// never makes the kernel read the rest of a page it is about to overwrite.
pub const PAGE: usize = 4096;
/// Bytes at the start of a log file that hold its header.
pub const FILE_HEADER_BYTES: usize = PAGE;
/// Bytes of the clear frame before a record's sealed message.
pub const FRAME_BYTES: usize = 32;
/// Bytes of the sealed prelude before a record's own bytes.
pub const PRELUDE_BYTES: usize = 24;
/// Frames start at multiples of this.
pub const FRAME_ALIGN: usize = 8;
/// The most bytes of one record, whatever the size of the files.
pub const RECORD_MAX: usize = 8 << 20;

/// The format version of identity and file headers.
pub const VERSION: u32 = 2;
/// Bytes of the clear part of an identity or file header.
pub const CLEAR_BYTES: usize = 44;

const KIND_IDENTITY: u8 = 1;
const KIND_FILE: u8 = 2;
pub(crate) const KIND_RECORD: u8 = 3;

const IDENTITY_MAGIC: &[u8; 8] = b"sealfsJI";
const FILE_MAGIC: &[u8; 8] = b"sealfsJF";
const FRAME_MAGIC: &[u8; 4] = b"sJR1";

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The most bytes of a record that, framed and sealed, fits into `capacity` bytes.
pub fn payload_max(capacity: usize) -> usize {
    let body = capacity.saturating_sub(FRAME_BYTES + HEADER);
    let (chunks, rest) = (body / seal::CHUNK_CIPHER, body % seal::CHUNK_CIPHER);
    let plain = if rest >= seal::TAG {
        chunks * seal::CHUNK_PLAIN + rest - seal::TAG
    } else {
        (chunks * seal::CHUNK_PLAIN).saturating_sub(1)
    };
    plain.saturating_sub(PRELUDE_BYTES).min(RECORD_MAX)
}

/// Bytes that a record of `payload` bytes takes in a file: frame, message and alignment.
pub fn framed_len(payload: usize) -> usize {
    let message = offsets::cipher_len((PRELUDE_BYTES + payload) as u64) as usize;
    (FRAME_BYTES + message).next_multiple_of(FRAME_ALIGN)
}

/// The clear start of an identity or file header, before its sealed message.
fn clear_into(magic: &[u8; 8], id: JournalId, number: u64, message_len: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(magic);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&id.0);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(message_len as u32).to_le_bytes());
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// (journal id, number, message) of what [`clear_into`] wrote; None if it is not that.
fn clear_from<'a>(magic: &[u8; 8], bytes: &'a [u8]) -> Option<(JournalId, u64, &'a [u8])> {
    let clear = bytes.get(..CLEAR_BYTES)?;
    let well = &clear[..8] == magic
        && u32_at(clear, 8) == VERSION
        && u32_at(clear, 40) == crc32fast::hash(&clear[..40]);
    let len = u32_at(clear, 36) as usize;
    let message = bytes[CLEAR_BYTES..].get(..len)?;
    well.then(|| {
        (JournalId(clear[12..28].try_into().expect("16 bytes")), u64_at(clear, 28), message)
    })
}

/// The identity file: which journal of which volume the directory is. The volume id stands in
/// the clear at the end, so that a foreign journal can be told from a damaged one without its
/// key; the message proves it.
pub fn identity_to_bytes(keys: &VolumeKeys, id: JournalId) -> Vec<u8> {
    let message = keys.journal(id, KIND_IDENTITY, 0).seal(&keys.volume_id().0);
    let mut out = Vec::with_capacity(CLEAR_BYTES + message.len() + 16);
    clear_into(IDENTITY_MAGIC, id, 0, message.len(), &mut out);
    out.extend_from_slice(&message);
    out.extend_from_slice(&keys.volume_id().0);
    out
}

/// What an identity file says.
#[derive(Debug, PartialEq, Eq)]
pub enum Identity {
    /// The journal of this volume.
    Ours(JournalId),
    /// The journal of another volume.
    Foreign(VolumeId),
    /// Not an identity file, or changed since it was written.
    Damaged,
}

/// Reads an identity file.
pub fn identity_from_bytes(keys: &VolumeKeys, bytes: &[u8]) -> Identity {
    let Some((id, _, message)) = clear_from(IDENTITY_MAGIC, bytes) else {
        return Identity::Damaged;
    };
    let Ok(volume) = <[u8; 16]>::try_from(&bytes[CLEAR_BYTES + message.len()..]) else {
        return Identity::Damaged;
    };
    if VolumeId(volume) != keys.volume_id() {
        return Identity::Foreign(VolumeId(volume));
    }
    match keys.open_journal(id, KIND_IDENTITY, 0, message) {
        Ok(plain) if plain == volume => Identity::Ours(id),
        _ => Identity::Damaged,
    }
}

/// The header of one log file. Written and synced before the file's first record, so a file
/// that holds a record holds a good header, or is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The file's number ("lap"): larger than that of any file begun before, never used again,
    /// although the disk blocks are.
    pub seq: u64,
    /// The file before this one in the log; 0: none.
    pub prev_seq: u64,
    /// The last record of the file before that counts. What lies behind it there does not count (the
    /// rest of a torn tail).
    pub prev_last: u64,
    /// The number of the file's first record: `prev_last + 1`, or more if numbers were skipped.
    pub first: u64,
    /// Records up to this one were on stable storage when the header was written.
    pub synced: u64,
    /// Records up to this one were released when the header was written.
    pub released: u64,
}

impl FileHeader {
    /// The header as one page.
    pub fn to_page(&self, keys: &VolumeKeys, id: JournalId) -> Vec<u8> {
        let numbers =
            [self.seq, self.prev_seq, self.prev_last, self.first, self.synced, self.released];
        let plain: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let message = keys.journal(id, KIND_FILE, self.seq).seal(&plain);
        let mut page = Vec::with_capacity(FILE_HEADER_BYTES);
        clear_into(FILE_MAGIC, id, self.seq, message.len(), &mut page);
        page.extend_from_slice(&message);
        assert!(page.len() <= FILE_HEADER_BYTES, "a file header fits its page");
        page.resize(FILE_HEADER_BYTES, 0);
        page
    }

    /// The file number in the clear part of a header page, of whatever journal; unproven.
    pub fn seq_in_clear(page: &[u8]) -> Option<u64> {
        let clear = page.get(..CLEAR_BYTES)?;
        let well = &clear[..8] == FILE_MAGIC && u32_at(clear, 40) == crc32fast::hash(&clear[..40]);
        well.then(|| u64_at(clear, 28))
    }

    /// Reads the header of the file numbered `seq` of journal `id`; None if the page does not
    /// hold it (never written, of an earlier lap, damaged).
    pub fn from_page(
        keys: &VolumeKeys,
        id: JournalId,
        seq: u64,
        page: &[u8],
    ) -> Option<FileHeader> {
        let (page_id, page_seq, message) = clear_from(FILE_MAGIC, page)?;
        if page_id != id || page_seq != seq {
            return None;
        }
        let plain = keys.open_journal(id, KIND_FILE, seq, message).ok()?;
        if plain.len() != 48 || u64_at(&plain, 0) != seq {
            return None;
        }
        Some(FileHeader {
            seq,
            prev_seq: u64_at(&plain, 8),
            prev_last: u64_at(&plain, 16),
            first: u64_at(&plain, 24),
            synced: u64_at(&plain, 32),
            released: u64_at(&plain, 40),
        })
    }
}

/// The clear frame before each record's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The record's number.
    pub number: u64,
    /// The number of the file it was written to.
    pub seq: u64,
    /// Bytes of the sealed message that follows.
    pub message_len: u32,
}

impl Frame {
    /// The frame's bytes.
    pub fn to_bytes(&self) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[..4].copy_from_slice(FRAME_MAGIC);
        out[4] = KIND_RECORD;
        out[8..12].copy_from_slice(&self.message_len.to_le_bytes());
        out[12..20].copy_from_slice(&self.number.to_le_bytes());
        out[20..28].copy_from_slice(&self.seq.to_le_bytes());
        let crc = crc32fast::hash(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a frame; None unless magic, kind, checksum and length are those of a frame.
    pub fn from_bytes(bytes: &[u8]) -> Option<Frame> {
        let bytes = bytes.get(..FRAME_BYTES)?;
        if &bytes[..4] != FRAME_MAGIC || bytes[4..8] != [KIND_RECORD, 0, 0, 0] {
            return None;
        }
        if u32_at(bytes, 28) != crc32fast::hash(&bytes[..28]) {
            return None;
        }
        let frame = Frame {
            message_len: u32_at(bytes, 8),
            number: u64_at(bytes, 12),
            seq: u64_at(bytes, 20),
        };
        frame.payload_len().map(|_| frame)
    }

    /// Bytes of the record inside the message; None if no record gives such a message.
    pub fn payload_len(&self) -> Option<u32> {
        let plain = offsets::plain_len(self.message_len as u64)?;
        let payload = plain.checked_sub(PRELUDE_BYTES as u64)?;
        (payload <= RECORD_MAX as u64).then_some(payload as u32)
    }

    /// Offset, from the frame's start, of the next frame.
    pub fn stride(&self) -> usize {
        (FRAME_BYTES + self.message_len as usize).next_multiple_of(FRAME_ALIGN)
    }

    /// The first offset at or after `from` (a multiple of [`FRAME_ALIGN`]) of `bytes` where a
    /// frame of file `seq` begins.
    pub fn find(bytes: &[u8], from: usize, seq: u64) -> Option<(usize, Frame)> {
        (from..bytes.len()).step_by(FRAME_ALIGN).find_map(|at| {
            if !bytes[at..].starts_with(FRAME_MAGIC) {
                return None;
            }
            Frame::from_bytes(&bytes[at..]).filter(|f| f.seq == seq).map(|f| (at, f))
        })
    }
}

/// The sealed start of every record: what binds it to its place and testifies for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prelude {
    /// The file the record was written to: a record of a former lap, or of a tail that was
    /// dropped, carries a number that is no longer any file's.
    pub seq: u64,
    /// Records up to this one were on stable storage when this one was appended.
    pub synced: u64,
    /// Records up to this one were released when this one was appended.
    pub released: u64,
}

impl Prelude {
    /// The prelude's bytes.
    pub fn to_bytes(&self) -> [u8; PRELUDE_BYTES] {
        let mut out = [0; PRELUDE_BYTES];
        out[..8].copy_from_slice(&self.seq.to_le_bytes());
        out[8..16].copy_from_slice(&self.synced.to_le_bytes());
        out[16..].copy_from_slice(&self.released.to_le_bytes());
        out
    }

    /// Reads the start of an opened record.
    pub fn from_bytes(plain: &[u8]) -> Option<Prelude> {
        let plain = plain.get(..PRELUDE_BYTES)?;
        Some(Prelude {
            seq: u64_at(plain, 0),
            synced: u64_at(plain, 8),
            released: u64_at(plain, 16),
        })
    }
}

/// Where a record is sealed.
pub fn record_place(keys: &VolumeKeys, id: JournalId, number: u64) -> Place {
    keys.journal(id, KIND_RECORD, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> VolumeKeys {
        VolumeKeys::random_for_tests(1)
    }

    #[test]
    fn the_largest_record_fills_a_file_and_one_byte_more_does_not_fit() {
        // Guards against an off-by-one at chunk boundaries that would let a record run past
        // the end of its file; tried for every capacity around one and two chunks.
        for capacity in (200..600).chain(16_400..17_000).chain(32_800..33_400) {
            let max = payload_max(capacity);
            if max == 0 {
                continue;
            }
            let unaligned = |payload: usize| {
                FRAME_BYTES + offsets::cipher_len((PRELUDE_BYTES + payload) as u64) as usize
            };
            assert!(unaligned(max) <= capacity, "{capacity}");
            assert!(unaligned(max + 1) > capacity, "{capacity}");
        }
        assert_eq!(payload_max(64 << 20), RECORD_MAX);
    }

    #[test]
    fn a_file_header_opens_only_as_the_file_it_was_written_for() {
        // Guards against a recycled file's old header being believed under its new number,
        // and against a header of another journal.
        let (keys, id) = (keys(), JournalId([7; 16]));
        let header =
            FileHeader { seq: 9, prev_seq: 8, prev_last: 100, first: 101, synced: 90, released: 3 };
        let page = header.to_page(&keys, id);
        assert_eq!(page.len(), FILE_HEADER_BYTES);
        let read = |id, seq, page: &[u8]| FileHeader::from_page(&keys, id, seq, page);
        assert_eq!(read(id, 9, &page), Some(header));
        assert_eq!(read(id, 10, &page), None);
        assert_eq!(read(JournalId([8; 16]), 9, &page), None);
        for at in 0..CLEAR_BYTES + 56 + 48 + 16 {
            let mut bad = page.clone();
            bad[at] ^= 1;
            assert_eq!(read(id, 9, &bad), None, "byte {at}");
        }
    }

    #[test]
    fn a_frame_with_any_bit_changed_is_no_frame() {
        // Guards against lengths being believed from a damaged frame.
        let frame = Frame { number: 5, seq: 2, message_len: 56 + 24 + 10 + 16 };
        let bytes = frame.to_bytes();
        assert_eq!(Frame::from_bytes(&bytes), Some(frame));
        assert_eq!(frame.payload_len(), Some(10));
        assert_eq!(frame.stride() as u64, 144);
        for bit in 0..FRAME_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::from_bytes(&bad), None, "bit {bit}");
        }
        let too_short = Frame { message_len: 60, ..frame };
        assert_eq!(Frame::from_bytes(&too_short.to_bytes()), None);
    }

    #[test]
    fn the_search_for_frames_skips_those_of_former_laps() {
        // Guards against stale frames of a recycled file taking part in recovery.
        let mut bytes = vec![0; 4096];
        let old = Frame { number: 5, seq: 2, message_len: 106 };
        let new = Frame { number: 9, seq: 3, message_len: 106 };
        bytes[64..96].copy_from_slice(&old.to_bytes());
        bytes[1024..1056].copy_from_slice(&new.to_bytes());
        assert_eq!(Frame::find(&bytes, 0, 3), Some((1024, new)));
        assert_eq!(Frame::find(&bytes, 1032, 3), None);
    }

    #[test]
    fn an_identity_tells_ours_from_foreign_from_damaged() {
        // Guards against the journal of another volume being taken for an empty or torn one
        // and recycled.
        let id = JournalId([3; 16]);
        let bytes = identity_to_bytes(&keys(), id);
        assert_eq!(identity_from_bytes(&keys(), &bytes), Identity::Ours(id));
        let other = VolumeKeys::random_for_tests(2);
        assert_eq!(identity_from_bytes(&other, &bytes), Identity::Foreign(keys().volume_id()));
        for at in 0..bytes.len() - 16 {
            let mut bad = bytes.clone();
            bad[at] ^= 0x80;
            assert_eq!(identity_from_bytes(&keys(), &bad), Identity::Damaged, "byte {at}");
        }
        assert_eq!(identity_from_bytes(&keys(), &bytes[..50]), Identity::Damaged);
    }
}
