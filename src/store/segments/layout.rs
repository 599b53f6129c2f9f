//! What stands in a segment behind its data, as bytes (FORMAT.md "Segments"): a summary of whose
//! data these are, the index of its frames, and a footer of fixed size at the very end. Pure.
//!
//! Nothing here allocates by a number that was read: only by the bytes that are there.

use crate::base::{ContentsId, Ino, SegmentId};

use super::frames::Frames;

/// Bytes of the footer.
pub const FOOTER: usize = 40;
const MAGIC: &[u8; 8] = b"sealfsSG";
const VERSION: u8 = 2;
/// The most bytes of a summary that a reader takes; what this program writes has less than a
/// quarter of it ([`RANGES_MAX`]).
pub const SUMMARY_BYTES_MAX: u32 = 16 << 20;
/// Ranges of one segment at most: a summary of 2.5 MB if none is like the one before, 0.4 MB if
/// they are small files side by side.
pub const RANGES_MAX: usize = 65_536;
/// A limit on uploads leaves this much of data for each range, so that the summary stays small
/// beside them.
pub const BYTES_PER_RANGE: u64 = 64;
/// The end of the largest file.
const FILE_END_MAX: u64 = i64::MAX as u64;

/// What stands in a segment is not in the format: it authenticated, so it was written by another
/// version or by a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the segment is malformed: {0}")]
pub struct Malformed(pub &'static str);

/// A range of a file that lies in a segment. In the segment, each begins where the one before
/// ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The file.
    pub ino: Ino,
    /// Which of its data incarnations.
    pub incarnation: u32,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes, at least one.
    pub len: u64,
}

impl Owned {
    /// Whose contents these are.
    pub fn file(&self) -> ContentsId {
        ContentsId { ino: self.ino, incarnation: self.incarnation }
    }

    fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Adds a range behind `ranges`; where it goes on from the last one, that becomes longer.
    pub fn add(ranges: &mut Vec<Owned>, range: Owned) {
        match ranges.last_mut() {
            Some(last) if (last.file(), last.end()) == (range.file(), range.offset) => {
                last.len += range.len;
            }
            _ => ranges.push(range),
        }
    }
}

/// Whether the data of this segment are stored as frames, which is the lowest bit of its id: a
/// reader knows without asking, and cannot be told otherwise.
pub fn has_frames(id: SegmentId) -> bool {
    id.0[15] & 1 == 1
}

/// The same id, of a segment with frames or without.
pub fn with_frames(mut id: SegmentId, frames: bool) -> SegmentId {
    id.0[15] = id.0[15] & !1 | u8::from(frames);
    id
}

/// How a segment is laid out: what a reader of its data has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of data, as files have them.
    pub data_len: u64,
    /// Bytes of summary, index and footer, which follow the data.
    pub tail_len: u32,
    /// Where the frames are; `None` where the data are stored as they are.
    pub frames: Option<Frames>,
}

impl Layout {
    /// Bytes of the data as they are stored.
    pub fn stored_len(&self) -> u64 {
        self.frames.as_ref().map_or(self.data_len, Frames::stored_len)
    }

    /// Plaintext bytes of the object.
    pub fn object_len(&self) -> u64 {
        self.stored_len().saturating_add(u64::from(self.tail_len))
    }

    /// The part of the object's plaintext that holds these bytes of the data, whole frames of it.
    pub fn stored(&self, data: std::ops::Range<u64>) -> std::ops::Range<u64> {
        match &self.frames {
            None => data,
            Some(frames) => frames.touching(&data).1,
        }
    }

    /// The data that are lost if these bytes of the object's plaintext are.
    pub fn data_within(&self, stored: std::ops::Range<u64>) -> std::ops::Range<u64> {
        match &self.frames {
            None => stored.start.min(self.data_len)..stored.end.min(self.data_len),
            Some(frames) => frames.data_within(&stored),
        }
    }

    /// What the `s` row of the segment keeps of this: length of the tail, then the frame index.
    pub fn to_row(&self) -> Vec<u8> {
        let mut out = self.tail_len.to_le_bytes().to_vec();
        if let Some(frames) = &self.frames {
            frames.encode(&mut out);
        }
        out
    }

    /// From what the `s` row of segment `id` with `data_len` bytes keeps.
    ///
    /// # Errors
    /// It is not in the format.
    pub fn from_row(id: SegmentId, data_len: u64, row: &[u8]) -> Result<Layout, Malformed> {
        let Some((tail, index)) = row.split_first_chunk() else {
            return Err(Malformed("no length of the tail"));
        };
        let tail_len = u32::from_le_bytes(*tail);
        let frames = match (has_frames(id), index.is_empty()) {
            (true, _) => Some(Frames::decode(data_len, index)?),
            (false, true) => None,
            (false, false) => return Err(Malformed("an index without frames")),
        };
        let least = FOOTER + index.len();
        if (tail_len as usize) < least || tail_len as usize - least > SUMMARY_BYTES_MAX as usize {
            return Err(Malformed("the length of the tail"));
        }
        Ok(Layout { data_len, tail_len, frames })
    }
}

/// The end of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The data are frames.
    pub frames: bool,
    /// Ranges of the summary.
    pub ranges: u32,
    /// Bytes of data.
    pub data_len: u64,
    /// Bytes of the data as they are stored.
    pub stored_len: u64,
    /// Bytes of the summary.
    pub summary_len: u32,
    /// Bytes of the frame index.
    pub index_len: u32,
}

impl Footer {
    /// Encodes it.
    pub fn encode(&self) -> [u8; FOOTER] {
        let mut out = [0; FOOTER];
        out[..8].copy_from_slice(MAGIC);
        out[8] = VERSION;
        out[9] = u8::from(self.frames);
        out[12..16].copy_from_slice(&self.ranges.to_le_bytes());
        out[16..24].copy_from_slice(&self.data_len.to_le_bytes());
        out[24..32].copy_from_slice(&self.stored_len.to_le_bytes());
        out[32..36].copy_from_slice(&self.summary_len.to_le_bytes());
        out[36..].copy_from_slice(&self.index_len.to_le_bytes());
        out
    }

    /// Decodes the last bytes of a segment.
    ///
    /// # Errors
    /// They are no footer that this program knows, or say what cannot be.
    pub fn decode(bytes: &[u8; FOOTER]) -> Result<Footer, Malformed> {
        if &bytes[..8] != MAGIC {
            return Err(Malformed("it has no footer"));
        }
        if bytes[8] != VERSION || bytes[9] > 1 || bytes[10..12] != [0, 0] {
            return Err(Malformed("its version is unknown"));
        }
        let u32_at =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let footer = Footer {
            frames: bytes[9] == 1,
            ranges: u32_at(12),
            data_len: u64_at(16),
            stored_len: u64_at(24),
            summary_len: u32_at(32),
            index_len: u32_at(36),
        };
        // Four bytes are the least that a range takes.
        let ranges_fit = u64::from(footer.ranges) * 4 <= u64::from(footer.summary_len);
        let raw = footer.data_len == footer.stored_len && footer.index_len == 0;
        let tail = u64::from(footer.summary_len) + u64::from(footer.index_len);
        if footer.summary_len > SUMMARY_BYTES_MAX
            || tail > u64::from(u32::MAX - FOOTER as u32)
            || !ranges_fit
            || footer.stored_len > footer.data_len
            || !(footer.frames || raw)
        {
            return Err(Malformed("its footer contradicts itself"));
        }
        Ok(footer)
    }

    /// Bytes of summary, index and footer.
    pub fn tail_len(&self) -> u32 {
        self.summary_len + self.index_len + FOOTER as u32
    }

    /// The layout of segment `id`, which has `object_len` plaintext bytes and this `index`.
    ///
    /// # Errors
    /// The parts contradict each other.
    pub fn layout(
        &self,
        id: SegmentId,
        object_len: u64,
        index: &[u8],
    ) -> Result<Layout, Malformed> {
        if self.frames != has_frames(id) || index.len() != self.index_len as usize {
            return Err(Malformed("its footer is not of this segment"));
        }
        let frames = self.frames.then(|| Frames::decode(self.data_len, index)).transpose()?;
        let layout = Layout { data_len: self.data_len, tail_len: self.tail_len(), frames };
        if layout.object_len() != object_len || layout.stored_len() != self.stored_len {
            return Err(Malformed("its lengths contradict each other"));
        }
        Ok(layout)
    }
}

/// Appends a number in the fewest bytes: seven bits each, the lowest first, the highest bit of
/// all but the last set (LEB128).
pub(super) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Takes such a number off the front of `bytes`.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut v = 0u64;
    for (n, byte) in bytes.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        if n == 9 && *byte > 1 {
            break;
        }
        v |= bits << (7 * n);
        if byte & 0x80 == 0 {
            if bits == 0 && n > 0 {
                break; // it could have been shorter
            }
            *bytes = &bytes[n + 1..];
            return Ok(v);
        }
    }
    Err(Malformed("a number"))
}

/// A difference, so that small ones take few bits whatever their sign: 0, -1, 1, -2, …
fn zigzag(from: u64, to: u64) -> u64 {
    let d = to.wrapping_sub(from) as i64;
    ((d << 1) ^ (d >> 63)) as u64
}

fn unzigzag(from: u64, z: u64) -> u64 {
    from.wrapping_add((z >> 1) ^ (z & 1).wrapping_neg())
}

/// The summary of `ranges`, which are the data of a segment in order.
pub fn encode_summary(ranges: &[Owned]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ranges.len() * 6);
    let mut before = Owned { ino: Ino(0), incarnation: 0, offset: 0, len: 0 };
    for range in ranges {
        let same = range.file() == before.file();
        put_varint(&mut out, zigzag(before.ino.0, range.ino.0));
        put_varint(&mut out, u64::from(range.incarnation));
        put_varint(&mut out, zigzag(if same { before.end() } else { 0 }, range.offset));
        put_varint(&mut out, range.len);
        before = *range;
    }
    out
}

/// The ranges of a summary with `count` of them, which are `data_len` bytes together.
///
/// # Errors
/// It is not in the format.
pub fn decode_summary(
    mut bytes: &[u8],
    count: u32,
    data_len: u64,
) -> Result<Vec<Owned>, Malformed> {
    if u64::from(count) * 4 > bytes.len() as u64 {
        return Err(Malformed("its summary is too short"));
    }
    let mut ranges = Vec::with_capacity(count as usize);
    let mut before = Owned { ino: Ino(0), incarnation: 0, offset: 0, len: 0 };
    let mut sum = 0u64;
    for _ in 0..count {
        let ino = Ino(unzigzag(before.ino.0, take_varint(&mut bytes)?));
        let incarnation = u32::try_from(take_varint(&mut bytes)?);
        let incarnation = incarnation.map_err(|_| Malformed("a data incarnation"))?;
        let same = ContentsId { ino, incarnation } == before.file();
        let from = if same { before.end() } else { 0 };
        let offset = unzigzag(from, take_varint(&mut bytes)?);
        let len = take_varint(&mut bytes)?;
        let inside = offset.checked_add(len).is_some_and(|end| end <= FILE_END_MAX);
        if ino.0 == 0 || len == 0 || !inside {
            return Err(Malformed("a range"));
        }
        sum = sum.checked_add(len).ok_or(Malformed("a range"))?;
        before = Owned { ino, incarnation, offset, len };
        ranges.push(before);
    }
    if !bytes.is_empty() || sum != data_len {
        return Err(Malformed("its summary is not of its data"));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owned(ino: u64, incarnation: u32, offset: u64, len: u64) -> Owned {
        Owned { ino: Ino(ino), incarnation, offset, len }
    }

    #[test]
    fn a_small_file_takes_five_bytes_of_a_summary() {
        // Guards against a summary that is large beside the files it is of.
        let files: Vec<_> = (0..1000).map(|n| owned(5000 + n, 0, 0, 4096)).collect();
        let bytes = encode_summary(&files);
        assert_eq!(bytes.len(), 1000 * 5 + 1, "documented in FORMAT.md");
        assert_eq!(decode_summary(&bytes, 1000, 4_096_000), Ok(files));
        let mut ranges = vec![owned(3, 1, 0, 10)];
        Owned::add(&mut ranges, owned(3, 1, 10, 5));
        Owned::add(&mut ranges, owned(3, 2, 15, 5));
        assert_eq!(ranges, [owned(3, 1, 0, 15), owned(3, 2, 15, 5)]);
    }

    #[test]
    fn what_cannot_be_is_refused_and_costs_no_memory() {
        // Guards against an allocation by a number that was read, and against a summary that says
        // more than there is.
        let bytes = encode_summary(&[owned(3, 1, 0, 10)]);
        for (count, len) in [(u32::MAX, 10), (2, 10), (0, 0), (1, 11)] {
            assert!(decode_summary(&bytes, count, len).is_err(), "{count} ranges of {len}");
        }
        for bad in [&[0x80, 0][..], &[0xff; 10], &[0x80; 11], &[]] {
            assert!(take_varint(&mut &bad[..]).is_err(), "{bad:?}");
        }
        let footer = Footer {
            frames: false,
            ranges: 1,
            data_len: 10,
            stored_len: 10,
            summary_len: 4,
            index_len: 0,
        };
        assert_eq!(Footer::decode(&footer.encode()), Ok(footer));
        let bad = [
            Footer { ranges: 2, ..footer },
            Footer { stored_len: 9, ..footer },
            Footer { index_len: 1, ..footer },
            Footer { frames: true, stored_len: 11, ..footer },
            Footer { summary_len: u32::MAX, ..footer },
            Footer { frames: true, index_len: u32::MAX - 10, ..footer },
        ];
        for footer in bad {
            assert!(Footer::decode(&footer.encode()).is_err(), "{footer:?}");
        }
        let (raw, framed) = (SegmentId([2; 16]), SegmentId([3; 16]));
        assert!(footer.layout(framed, 54, &[]).is_err(), "another segment's");
        assert!(footer.layout(raw, 55, &[]).is_err(), "another length");
        let layout = footer.layout(raw, 54, &[]).expect("its own");
        assert_eq!(Layout::from_row(raw, 10, &layout.to_row()), Ok(layout));
        for row in [&[44, 0, 0][..], &[39, 0, 0, 0], &[44, 0, 0, 0, 0], &[255; 4]] {
            assert!(Layout::from_row(raw, 10, row).is_err(), "{row:?}");
        }
    }

    proptest! {
        #[test]
        fn a_summary_reads_back_and_nothing_else_does(
            ranges in prop::collection::vec(
                (1u64.., 0u32..3, 0u64..1 << 62, 1u64..1 << 40, any::<bool>()), 0..40),
            noise in prop::collection::vec(any::<u8>(), 0..60),
            count in 0u32..20,
            data_len in 0u64..100,
        ) {
            let mut owners: Vec<Owned> = Vec::new();
            for (ino, incarnation, offset, len, follows) in ranges {
                match owners.last().copied() {
                    Some(last) if follows => {
                        owners.push(owned(last.ino.0, last.incarnation, last.end() + 7, len));
                    }
                    _ => owners.push(owned(ino, incarnation, offset, len)),
                }
            }
            let bytes = encode_summary(&owners);
            let sum = owners.iter().map(|o| o.len).sum();
            prop_assert_eq!(decode_summary(&bytes, owners.len() as u32, sum), Ok(owners));
            if let Ok(ranges) = decode_summary(&noise, count, data_len) {
                prop_assert_eq!(encode_summary(&ranges), noise);
            }
        }
    }
}
