//! One mutation of the volume: metadata rows and file bytes that become visible together, and
//! survive a crash together because they are one journal record.
//!
//! Rows hold absolute values, not changes, so applying a record twice is applying it once.

use bytes::Bytes;

use crate::base::{ContentsId, Ino, SegmentId};
use crate::meta::{DecodeError, Key};

const VERSION: u8 = 2;
/// Version byte, then the length of the head.
const PRELUDE: usize = 5;

/// What a batch does to one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowOp {
    /// Sets the row.
    Put(Bytes),
    /// Sets a row that is known to exist neither in an older group nor in the metadata store, so
    /// that deleting it before it is committed leaves no trace.
    PutFresh(Bytes),
    /// Deletes the row.
    Delete,
}

/// What a batch does to the contents of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOp {
    /// The next `len` bytes of the batch's data belong at `offset`.
    Write {
        /// File.
        ino: Ino,
        /// Its data incarnation.
        incarnation: u32,
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// `start..end` reads as zeros from now on (`end` may be `u64::MAX`).
    Hole {
        /// File.
        ino: Ino,
        /// Its data incarnation.
        incarnation: u32,
        /// First byte in the file.
        start: u64,
        /// End in the file (exclusive).
        end: u64,
    },
    /// The file's data of this incarnation is gone (unlink, truncate to nothing).
    Drop {
        /// File.
        ino: Ino,
        /// The data incarnation that ends.
        incarnation: u32,
    },
    /// This incarnation of data begins now: nothing of it can be in the bucket.
    Begin {
        /// File.
        ino: Ino,
        /// The data incarnation that begins.
        incarnation: u32,
    },
    /// From `offset` on, the file has what another (or itself, elsewhere) has now: the same bytes
    /// in the same places, and the same holes. At most one in a batch, and the last operation.
    Clone {
        /// File.
        ino: Ino,
        /// Its data incarnation.
        incarnation: u32,
        /// First byte in the file.
        offset: u64,
        /// Where the bytes are.
        from: CloneSource,
    },
    /// From `offset` on, the file has these bytes of a segment that a snapshot keeps.
    Place {
        /// File.
        ino: Ino,
        /// Its data incarnation.
        incarnation: u32,
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The segment.
        segment: SegmentId,
        /// First byte in it.
        at: u64,
    },
}

impl DataOp {
    /// Whose contents it changes.
    pub fn file(&self) -> ContentsId {
        let (DataOp::Begin { ino, incarnation }
        | DataOp::Write { ino, incarnation, .. }
        | DataOp::Hole { ino, incarnation, .. }
        | DataOp::Drop { ino, incarnation }
        | DataOp::Clone { ino, incarnation, .. }
        | DataOp::Place { ino, incarnation, .. }) = *self;
        ContentsId { ino, incarnation }
    }
}

/// What a [`DataOp::Clone`] shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloneSource {
    /// File.
    pub ino: Ino,
    /// Its data incarnation.
    pub incarnation: u32,
    /// First byte in it.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl CloneSource {
    /// Which contents.
    pub fn file(&self) -> ContentsId {
        ContentsId { ino: self.ino, incarnation: self.incarnation }
    }

    /// End in the source (exclusive).
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// One atomic mutation. `data` is not part of it: it is passed along to the journal, so that
/// a write is not copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows, in the order in which they apply.
    pub rows: Vec<(Key, RowOp)>,
    /// Contents, in the order in which they apply.
    pub data: Vec<DataOp>,
    /// Change of the number of inodes.
    pub inodes: i64,
    /// Change of the bytes in use.
    pub bytes: i64,
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u32).to_le_bytes());
}

impl Batch {
    /// Sets a row.
    pub fn put(&mut self, key: Key, value: Bytes) {
        self.rows.push((key, RowOp::Put(value)));
    }

    /// Sets a row that is known to exist neither in an older group nor in the metadata store.
    pub fn put_fresh(&mut self, key: Key, value: Bytes) {
        self.rows.push((key, RowOp::PutFresh(value)));
    }

    /// Deletes a row.
    pub fn delete(&mut self, key: Key) {
        self.rows.push((key, RowOp::Delete));
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.data.is_empty()
    }

    /// What it shares, if it does.
    pub fn clone_source(&self) -> Option<CloneSource> {
        self.data.iter().find_map(|op| match op {
            DataOp::Clone { from, .. } => Some(*from),
            _ => None,
        })
    }

    /// Bytes of file data that the record carries behind the head.
    pub fn data_len(&self) -> usize {
        self.data
            .iter()
            .map(|op| if let DataOp::Write { len, .. } = op { *len as usize } else { 0 })
            .sum()
    }

    /// Encodes everything but the file data (FORMAT.md, "Journal records"). The record is this
    /// head followed by the data of the `Write` operations in order.
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        out.clear();
        out.push(VERSION);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.inodes.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        put_len(out, self.rows.len());
        for (key, op) in &self.rows {
            out.extend_from_slice(&(key.len() as u16).to_le_bytes());
            out.extend_from_slice(key);
            let (tag, value): (u8, &[u8]) = match op {
                RowOp::Delete => (0, &[]),
                RowOp::Put(value) => (1, value),
                RowOp::PutFresh(value) => (2, value),
            };
            out.push(tag);
            if tag != 0 {
                put_len(out, value.len());
                out.extend_from_slice(value);
            }
        }
        put_len(out, self.data.len());
        for op in &self.data {
            let (tag, ino, incarnation, a, b) = match *op {
                DataOp::Write { ino, incarnation, offset, len } => {
                    (0u8, ino, incarnation, offset, len as u64)
                }
                DataOp::Hole { ino, incarnation, start, end } => (1, ino, incarnation, start, end),
                DataOp::Drop { ino, incarnation } => (2, ino, incarnation, 0, 0),
                DataOp::Begin { ino, incarnation } => (3, ino, incarnation, 0, 0),
                DataOp::Clone { ino, incarnation, offset, from } => {
                    (4, ino, incarnation, offset, from.len)
                }
                DataOp::Place { ino, incarnation, offset, len, .. } => {
                    (5, ino, incarnation, offset, len)
                }
            };
            out.push(tag);
            out.extend_from_slice(&ino.0.to_le_bytes());
            out.extend_from_slice(&incarnation.to_le_bytes());
            if matches!(tag, 0 | 1 | 4 | 5) {
                out.extend_from_slice(&a.to_le_bytes());
                out.extend_from_slice(&b.to_le_bytes());
            }
            if let DataOp::Clone { from, .. } = op {
                out.extend_from_slice(&from.ino.0.to_le_bytes());
                out.extend_from_slice(&from.incarnation.to_le_bytes());
                out.extend_from_slice(&from.offset.to_le_bytes());
            }
            if let DataOp::Place { segment, at, .. } = op {
                out.extend_from_slice(&segment.0);
                out.extend_from_slice(&at.to_le_bytes());
            }
        }
        let head = (out.len() - PRELUDE) as u32;
        out[1..PRELUDE].copy_from_slice(&head.to_le_bytes());
    }

    /// How many bytes from the start of a record hold its head, judged by its first
    /// [`Batch::PRELUDE_LEN`] bytes.
    pub fn head_len(prelude: &[u8]) -> Result<usize, DecodeError> {
        let prelude: &[u8; PRELUDE] =
            prelude.get(..PRELUDE).and_then(|p| p.try_into().ok()).ok_or(SHORT)?;
        if prelude[0] != VERSION {
            return Err(DecodeError("unknown journal record version"));
        }
        let len = u32::from_le_bytes(prelude[1..].try_into().expect("four bytes"));
        Ok(PRELUDE + len as usize)
    }

    /// How much of a record [`Batch::head_len`] needs.
    pub const PRELUDE_LEN: usize = PRELUDE;

    /// Decodes a head.
    pub fn decode_head(head: &[u8]) -> Result<Batch, DecodeError> {
        if Batch::head_len(head)? != head.len() {
            return Err(DecodeError("journal record head of the wrong length"));
        }
        let mut r = Fields(&head[PRELUDE..]);
        let mut batch = Batch {
            inodes: i64::from_le_bytes(r.array()?),
            bytes: i64::from_le_bytes(r.array()?),
            ..Batch::default()
        };
        for _ in 0..r.u32()? {
            let key_len = u16::from_le_bytes(r.array()?) as usize;
            let key: Key = r.take(key_len)?.into();
            let op = match r.array::<1>()?[0] {
                0 => RowOp::Delete,
                tag @ (1 | 2) => {
                    let len = r.u32()? as usize;
                    let value = Bytes::copy_from_slice(r.take(len)?);
                    if tag == 1 { RowOp::Put(value) } else { RowOp::PutFresh(value) }
                }
                _ => return Err(DecodeError("unknown row operation")),
            };
            batch.rows.push((key, op));
        }
        for _ in 0..r.u32()? {
            let tag = r.array::<1>()?[0];
            let ino = Ino(u64::from_le_bytes(r.array()?));
            let incarnation = r.u32()?;
            batch.data.push(match tag {
                0 => {
                    let offset = u64::from_le_bytes(r.array()?);
                    let len = u64::from_le_bytes(r.array()?);
                    let len =
                        len.try_into().map_err(|_| DecodeError("write of impossible length"))?;
                    DataOp::Write { ino, incarnation, offset, len }
                }
                1 => {
                    let start = u64::from_le_bytes(r.array()?);
                    DataOp::Hole { ino, incarnation, start, end: u64::from_le_bytes(r.array()?) }
                }
                2 => DataOp::Drop { ino, incarnation },
                3 => DataOp::Begin { ino, incarnation },
                4 => {
                    let offset = u64::from_le_bytes(r.array()?);
                    let len = u64::from_le_bytes(r.array()?);
                    let from = CloneSource {
                        ino: Ino(u64::from_le_bytes(r.array()?)),
                        incarnation: r.u32()?,
                        offset: u64::from_le_bytes(r.array()?),
                        len,
                    };
                    let ends = offset.checked_add(len).and(from.offset.checked_add(len));
                    if ends.is_none() || batch.clone_source().is_some() {
                        return Err(DecodeError("impossible clone"));
                    }
                    DataOp::Clone { ino, incarnation, offset, from }
                }
                5 => {
                    let offset = u64::from_le_bytes(r.array()?);
                    let len = u64::from_le_bytes(r.array()?);
                    let segment = SegmentId(r.array()?);
                    let at = u64::from_le_bytes(r.array()?);
                    let ends = offset.checked_add(len).and(at.checked_add(len));
                    if len == 0 || ends.is_none() {
                        return Err(DecodeError("impossible place"));
                    }
                    DataOp::Place { ino, incarnation, offset, len, segment, at }
                }
                _ => return Err(DecodeError("unknown data operation")),
            });
        }
        if r.0.is_empty() { Ok(batch) } else { Err(DecodeError("trailing bytes")) }
    }
}

const SHORT: DecodeError = DecodeError("journal record too short");

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("take(N) returns N bytes"))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Batch {
        let mut batch = Batch { inodes: -1, bytes: 4096, ..Batch::default() };
        batch.put(b"i1".as_slice().into(), Bytes::from_static(b"one"));
        batch.put_fresh(b"d2".as_slice().into(), Bytes::new());
        batch.delete(b"x3".as_slice().into());
        let (ino, incarnation) = (Ino(9), 4);
        batch.data.push(DataOp::Begin { ino, incarnation });
        batch.data.push(DataOp::Write { ino, incarnation, offset: 5, len: 6 });
        batch.data.push(DataOp::Hole { ino, incarnation, start: 7, end: u64::MAX });
        batch.data.push(DataOp::Drop { ino, incarnation });
        let from = CloneSource { ino: Ino(8), incarnation: 3, offset: 1 << 40, len: 1 << 33 };
        let segment = SegmentId([6; 16]);
        batch.data.push(DataOp::Place {
            ino,
            incarnation,
            offset: 3,
            len: 9,
            segment,
            at: 1 << 20,
        });
        batch.data.push(DataOp::Clone { ino, incarnation, offset: 7, from });
        batch
    }

    #[test]
    fn a_batch_decodes_to_what_was_encoded() {
        // Guards against replay after a crash applying something else than was journalled.
        let mut head = Vec::new();
        sample().encode_head(&mut head);
        assert_eq!(Batch::head_len(&head[..Batch::PRELUDE_LEN]), Ok(head.len()));
        assert_eq!(Batch::decode_head(&head), Ok(sample()));
        assert_eq!(sample().data_len(), 6);
    }

    #[test]
    fn a_cut_or_altered_head_is_an_error_and_never_a_panic() {
        // Guards against a record of another version crashing the mount at replay.
        let mut head = Vec::new();
        sample().encode_head(&mut head);
        for len in 0..head.len() {
            assert!(Batch::decode_head(&head[..len]).is_err());
        }
        for i in 0..head.len() {
            let mut other = head.clone();
            other[i] ^= 0x41;
            let _ = Batch::decode_head(&other);
        }
    }
}
