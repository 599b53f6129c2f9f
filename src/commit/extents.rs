//! Extents in committed rows: a file of one extent has it in its inode row, a file of more has `e`
//! rows.

use bytes::Bytes;

use crate::base::{ContentsId, Ino};
use crate::data::Extent;
use crate::meta::{DecodeError, ExtentRow, Inode, InodeExtent, Kind, keys};

/// The file and the extent that an `e` row stands for.
pub fn extent_of(key: &[u8], value: &[u8]) -> Result<(ContentsId, Extent), DecodeError> {
    let (file, end) = keys::extent_of(key).ok_or(DecodeError("extent key"))?;
    let row = ExtentRow::decode(value)?;
    let start = end.checked_sub(row.len).ok_or(DecodeError("extent before 0"))?;
    let extent = Extent { start, end, segment: row.segment, offset: row.segment_offset };
    Ok((file, extent))
}

/// The extent in a row: an `e` row is one, an inode row may have one.
pub fn extent_in(key: &[u8], value: &[u8]) -> Result<Option<(ContentsId, Extent)>, DecodeError> {
    if key.first() == Some(&b'e') {
        return extent_of(key, value).map(Some);
    }
    let ino = keys::inode_of(key).ok_or(DecodeError("inode key"))?;
    Ok(Committed::decode(value)?.only_extent(ino))
}

/// An inode as the bucket has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its attributes.
    pub inode: Inode,
    /// Its only extent.
    pub extent: Option<Extent>,
}

impl Committed {
    /// Decodes a committed inode row.
    pub fn decode(row: &[u8]) -> Result<Committed, DecodeError> {
        let (inode, extent) = Inode::decode_with(row)?;
        let extent = extent.map(|e| Extent {
            start: e.start,
            end: e.start + e.len,
            segment: e.segment,
            offset: e.segment_offset,
        });
        Ok(Committed { inode, extent })
    }

    /// The file and its only extent, as an `e` row would say it.
    pub fn only_extent(&self, ino: Ino) -> Option<(ContentsId, Extent)> {
        Some((self.inode.contents(ino), self.extent?))
    }

    /// The only extent of this data incarnation.
    pub(super) fn of(&self, incarnation: u32) -> Option<Extent> {
        self.extent.filter(|_| self.inode.incarnation == incarnation)
    }

    /// Whether the row can carry an extent of this data incarnation.
    pub(super) fn may_carry(inode: Option<&Inode>, incarnation: u32) -> bool {
        inode.is_some_and(|i| i.kind == Kind::File && i.incarnation == incarnation)
    }
}

/// The row of an inode and of its only extent.
pub(super) fn inode_row(inode: &Inode, only: Option<&Extent>) -> Bytes {
    let extent = only.map(|e| InodeExtent {
        start: e.start,
        len: e.end - e.start,
        segment: e.segment,
        segment_offset: e.offset,
    });
    inode.encode_with(extent.as_ref())
}
