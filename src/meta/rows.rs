//! Values of the metadata store, but for the inode. Every row starts with a version byte; numbers
//! are little-endian. A reader refuses versions it does not know, and any bytes but those that the
//! row would be written as (but for `s` rows of an earlier version).

use bytes::Bytes;

use super::codec::{DecodeError, Put, Reader};
use super::inode::Kind;
use crate::base::{ChainValue, Ino, JournalId, JournalPos, SegmentId};

pub(super) const VERSION: u8 = 2;

/// Version of `s` rows that say since when a segment is half dead.
const WITH_HALF: u8 = 3;

pub(super) fn version(r: &mut Reader<'_>) -> Result<(), DecodeError> {
    if r.u8()? == VERSION { Ok(()) } else { Err(DecodeError("unknown row version")) }
}

/// `d` row: what a name stands for (the name is in the key). 3 to 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// The inode.
    pub ino: Ino,
    /// Its kind, so that `readdir` needs no inode.
    pub kind: Kind,
}

impl Dirent {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(10);
        out.u8(VERSION);
        out.u8(self.kind as u8);
        out.varint(self.ino.0);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<Dirent, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let kind = Kind::from_byte(r.u8()?)?;
        let ino = Ino(r.varint()?);
        r.end()?;
        Ok(Dirent { ino, kind })
    }
}

/// `e` row: where a piece of a file lies (its end is in the key). 33 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentRow {
    /// The segment object.
    pub segment: SegmentId,
    /// Plaintext offset in the segment.
    pub segment_offset: u64,
    /// Bytes.
    pub len: u64,
}

impl ExtentRow {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(33);
        out.u8(VERSION);
        out.extend_from_slice(&self.segment.0);
        out.u64(self.segment_offset);
        out.u64(self.len);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<ExtentRow, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let row =
            ExtentRow { segment: SegmentId(r.array()?), segment_offset: r.u64()?, len: r.u64()? };
        r.end()?;
        if row.len == 0 || row.segment_offset.checked_add(row.len).is_none() {
            return Err(DecodeError("extent of impossible length"));
        }
        Ok(row)
    }
}

/// `s` row: what a segment is and how much of it is referred to. 41 bytes, and the index of its
/// frames if it has any ([`SegmentRow::encode_with`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentRow {
    /// Plaintext bytes.
    pub size: u64,
    /// Bytes of all extents that refer to it: more than there are, where extents share some.
    pub live: u64,
    /// The commit that made it.
    pub birth: u64,
    /// The key epoch in which it was sealed, or an earlier one.
    pub epoch: u32,
    /// How many `b` rows it has.
    pub owners: u32,
    /// The first of the commits that refer to at most a half of it, up to now; 0: the volume refers
    /// to more.
    pub half_since: u64,
}

impl SegmentRow {
    /// The same with so many live bytes; `death` is the first commit that sees it so.
    pub fn with_live(self, live: u64, death: u64) -> SegmentRow {
        let half_since = match (live <= self.size / 2, self.half_since) {
            (false, _) => 0,
            (true, 0) => death,
            (true, since) => since,
        };
        SegmentRow { live, half_since, ..self }
    }

    /// Whether it says rightly that the volume refers to more than a half, or does not.
    pub fn says_half(&self) -> bool {
        (self.live <= self.size / 2) == (self.half_since > 0)
    }

    /// Encodes the row of a segment without frames.
    pub fn encode(&self) -> Bytes {
        self.encode_with(&[])
    }

    /// Encodes the row. `frames` is what the segment's object says of its frames; nothing: it is
    /// stored as it is.
    pub fn encode_with(&self, frames: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(45 + frames.len());
        out.u8(WITH_HALF);
        out.u64(self.size);
        out.u64(self.live);
        out.u64(self.birth);
        out.u32(self.epoch);
        out.u32(self.owners);
        out.u64(self.half_since);
        if !frames.is_empty() {
            out.u32(frames.len() as u32);
            out.extend_from_slice(frames);
        }
        out.into()
    }

    /// Decodes a row, without its frames.
    pub fn decode(bytes: &[u8]) -> Result<SegmentRow, DecodeError> {
        Ok(SegmentRow::decode_with(bytes)?.0)
    }

    /// Decodes a row and the index of its frames.
    pub fn decode_with(bytes: &[u8]) -> Result<(SegmentRow, &[u8]), DecodeError> {
        let mut r = Reader::new(bytes);
        let knows_half = match r.u8()? {
            VERSION => false,
            WITH_HALF => true,
            _ => return Err(DecodeError("unknown row version")),
        };
        let (size, live, birth) = (r.u64()?, r.u64()?, r.u64()?);
        let (epoch, owners) = (r.u32()?, r.u32()?);
        let half_since = match knows_half {
            true => r.u64()?,
            // Nobody noted it: since the beginning, as far as is known.
            false if live <= size / 2 => birth.max(1),
            false => 0,
        };
        let row = SegmentRow { size, live, birth, epoch, owners, half_since };
        if r.end().is_ok() {
            return Ok((row, &[]));
        }
        let frames = match r.u32()? {
            0 => return Err(DecodeError("empty index of frames")),
            len => r.bytes(len as usize)?,
        };
        r.end()?;
        Ok((row, frames))
    }
}

/// `z` row: a segment that nothing refers to any more; since when by the clock is in the key. 17
/// bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadRow {
    /// The commit that made it; 0 if none did.
    pub birth: u64,
    /// The first commit that does not refer to it.
    pub death: u64,
}

impl DeadRow {
    /// What no commit ever named: an upload that failed, or a name that is reserved.
    pub const UNBORN: DeadRow = DeadRow { birth: 0, death: 0 };

    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(17);
        out.u8(VERSION);
        out.u64(self.birth);
        out.u64(self.death);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<DeadRow, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let row = DeadRow { birth: r.u64()?, death: r.u64()? };
        r.end()?;
        Ok(row)
    }
}

/// `o`, `r` and `b` rows, which say all in their keys. One byte, the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkerRow;

impl MarkerRow {
    /// Encodes the row.
    pub fn encode() -> Bytes {
        Bytes::from_static(&[VERSION])
    }
}

/// `g commit` row: what of which journal the bucket has. 81 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitRow {
    /// The journal that the last commit came from.
    pub journal: JournalId,
    /// Its last record that is committed.
    pub position: JournalPos,
    /// Commits so far in the life of the volume: never goes back, so it shows a rollback.
    pub sequence: u64,
    /// When, by the writer's clock, Unix seconds.
    pub time_secs: u64,
    /// The writer epoch that committed.
    pub writer_epoch: u64,
    /// Stands for this commit and all before it.
    pub chain: ChainValue,
}

impl CommitRow {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(81);
        out.u8(VERSION);
        out.extend_from_slice(&self.journal.0);
        out.u64(self.position.0);
        out.u64(self.sequence);
        out.u64(self.time_secs);
        out.u64(self.writer_epoch);
        out.extend_from_slice(&self.chain.0);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<CommitRow, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let row = CommitRow {
            journal: JournalId(r.array()?),
            position: JournalPos(r.u64()?),
            sequence: r.u64()?,
            time_secs: r.u64()?,
            writer_epoch: r.u64()?,
            chain: ChainValue(r.array()?),
        };
        r.end()?;
        Ok(row)
    }
}

/// `h` row: the chain value of the commit whose number is in the key. 33 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryRow(pub ChainValue);

impl HistoryRow {
    /// The last so many commits have a row.
    pub const RECENT: u64 = 4096;
    /// So has every commit whose number this divides.
    pub const EVERY: u64 = 1024;

    /// The commit whose row goes when commit `number` is made; `None` if it stays, or was none.
    pub fn leaves(number: u64) -> Option<u64> {
        let old = number.checked_sub(HistoryRow::RECENT)?;
        (!old.is_multiple_of(HistoryRow::EVERY)).then_some(old)
    }

    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(33);
        out.u8(VERSION);
        out.extend_from_slice(&self.0.0);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<HistoryRow, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let row = HistoryRow(ChainValue(r.array()?));
        r.end()?;
        Ok(row)
    }
}

/// `g beside` row: how far the objects beside the metadata had come at the last commit, so that an
/// older one is noticed by whoever has never seen them. 17 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BesideRow {
    /// The revision of `config`.
    pub config: u64,
    /// How often the `lease` had been taken.
    pub lease: u64,
}

impl BesideRow {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(17);
        out.u8(VERSION);
        out.u64(self.config);
        out.u64(self.lease);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<BesideRow, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let row = BesideRow { config: r.u64()?, lease: r.u64()? };
        r.end()?;
        Ok(row)
    }
}

/// `g volume` row: written once by `init`. 9 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeRow {
    /// When the volume was created, Unix seconds.
    pub created_secs: u64,
}

impl VolumeRow {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(9);
        out.u8(VERSION);
        out.u64(self.created_secs);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<VolumeRow, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let row = VolumeRow { created_secs: r.u64()? };
        r.end()?;
        Ok(row)
    }
}

/// `g stats` row: what `statfs` shows. 17 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stats {
    /// Inodes in use.
    pub inodes: u64,
    /// Bytes in use (the sum of `allocated`).
    pub bytes: u64,
}

impl Stats {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(17);
        out.u8(VERSION);
        out.u64(self.inodes);
        out.u64(self.bytes);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<Stats, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let row = Stats { inodes: r.u64()?, bytes: r.u64()? };
        r.end()?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_truncation_of_a_row_is_an_error_and_never_a_panic() {
        // Guards against out-of-bounds reads on rows of another version.
        let row = ExtentRow { segment: SegmentId([1; 16]), segment_offset: 2, len: 3 }.encode();
        for len in 0..row.len() {
            assert!(ExtentRow::decode(&row[..len]).is_err());
        }
        let dead = DeadRow { birth: 3, death: 4 };
        assert_eq!(DeadRow::decode(&dead.encode()), Ok(dead));
        let entry = Dirent { ino: Ino(u64::MAX), kind: Kind::Fifo };
        assert_eq!(Dirent::decode(&entry.encode()), Ok(entry));
        assert_eq!(entry.encode().len(), 12, "documented in FORMAT.md");
    }

    #[test]
    fn a_segment_row_has_an_index_of_frames_or_ends() {
        // Guards against an index that is cut, or an empty one, being taken for a raw segment.
        let row = SegmentRow { size: 1, live: 2, birth: 3, epoch: 4, owners: 5, half_since: 6 };
        assert_eq!(SegmentRow::decode_with(&row.encode()), Ok((row, &[][..])));
        let framed = row.encode_with(b"index");
        assert_eq!(SegmentRow::decode_with(&framed), Ok((row, &b"index"[..])));
        for len in (0..framed.len()).filter(|&len| len != row.encode().len()) {
            assert!(SegmentRow::decode(&framed[..len]).is_err(), "{len}");
        }
        let empty = [&row.encode()[..], &[0; 4]].concat();
        assert!(SegmentRow::decode(&empty).is_err());
    }
}
