//! What a check can find: one variant for every rule that rows keep among each other.

use std::fmt;

use bytes::Bytes;

use crate::base::{Ino, SegmentId, counted};
use crate::meta::{Kind, Stats};

/// A broken rule. `Display` is a sentence without names, which may be logged; names are in the
/// fields for whoever shows paths or repairs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are what the sentence of `Display` says
pub enum Finding {
    /// A row that is not in the format. What depends on it fails.
    Undecodable { key: Bytes, why: &'static str },
    /// The root directory has no inode.
    NoRoot,
    /// A name leads to an inode that is not there.
    DanglingName { parent: Ino, name: Bytes, ino: Ino },
    /// An entry says another kind than the inode.
    KindDiffers { parent: Ino, name: Bytes, ino: Ino, is: Kind },
    /// Entries of an inode that is no directory in use.
    StrayEntries { parent: Ino, entries: u64 },
    /// A directory with more than one name.
    ManyNames { ino: Ino, names: u64 },
    /// An inode with links and without a name.
    Unnamed { ino: Ino, kind: Kind },
    /// The link count is not the number of names (of a directory: 2 and its subdirectories).
    LinkCount { ino: Ino, said: u32, found: u64 },
    /// A directory's size is not the number of its entries.
    EntryCount { ino: Ino, said: u64, found: u64 },
    /// A directory lies in another one than it says.
    WrongParent { ino: Ino, said: Ino, found: Ino },
    /// Directories that lie in each other; the one with the lowest number.
    Cycle { ino: Ino },
    /// An `o` row without an inode.
    OrphanWithoutInode { ino: Ino },
    /// An `o` row of an inode that has links.
    OrphanWithLinks { ino: Ino },
    /// An inode without links that no `o` row names: nothing would ever remove it.
    ForgottenOrphan { ino: Ino, kind: Kind },
    /// The count of extended attributes is wrong.
    XattrCount { ino: Ino, said: u32, found: u32 },
    /// Extended attributes of an inode that is not there.
    StrayXattrs { ino: Ino, count: u32 },
    /// Two extents of a file cover the same bytes.
    ExtentsOverlap { ino: Ino, incarnation: u32, at: u64 },
    /// A file whose inode row has its only extent has others: they are not read.
    RowsBesideOnlyExtent { ino: Ino, extents: u64 },
    /// Data behind the end of a file.
    ExtentBehindEnd { ino: Ino, end: u64, size: u64 },
    /// Data of a file, or of an incarnation of its data, that is not there.
    StrayExtents { ino: Ino, incarnation: u32, extents: u64, end: u64, bytes: u64 },
    /// `allocated` cannot be right; `bytes` are found in extents.
    Blocks { ino: Ino, said: u64, bytes: u64 },
    /// Live bytes of a segment are not what extents refer to, or reach behind its end.
    SegmentAccounting { id: SegmentId, size: u64, said: u64, found: u64, end: u64 },
    /// A segment is more than half in use, and its row says since when it is not; or the other way round.
    SegmentHalf { id: SegmentId, size: u64, live: u64, said: u64 },
    /// Two extents refer to the same bytes of a segment, and no `b` row says so of either.
    SegmentShared { id: SegmentId },
    /// The number of `b` rows of a segment is not what its `s` row says (0 if it has none).
    OwnerCount { id: SegmentId, said: u32, found: u64 },
    /// Extents refer to a segment that has no `s` row.
    SegmentWithoutRow { id: SegmentId, found: u64, end: u64 },
    /// A segment is waiting for its deletion and in use.
    DeadAndAlive { id: SegmentId, since_secs: u64 },
    /// A segment that only snapshots are said to refer to is in use, or waits for its deletion.
    KeptAndAlive { id: SegmentId },
    /// The statistics do not add up.
    Totals { said: Stats, found: Stats },
    /// The next inode number to hand out is in use.
    NextIno { said: u64, last: Ino },
}

impl Finding {
    /// The inode that it is about, if it is about one.
    pub fn ino(&self) -> Option<Ino> {
        use Finding::*;
        match self {
            KindDiffers { ino, .. }
            | ManyNames { ino, .. }
            | Unnamed { ino, .. }
            | LinkCount { ino, .. }
            | EntryCount { ino, .. }
            | WrongParent { ino, .. }
            | Cycle { ino }
            | ForgottenOrphan { ino, .. }
            | XattrCount { ino, .. }
            | ExtentsOverlap { ino, .. }
            | RowsBesideOnlyExtent { ino, .. }
            | ExtentBehindEnd { ino, .. }
            | Blocks { ino, .. } => Some(*ino),
            DanglingName { parent, .. } => Some(*parent),
            _ => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Finding::*;
        match self {
            Undecodable { key, why } => {
                let tag = key.first().map_or('?', |&b| char::from(b));
                write!(f, "a row of kind {tag:?} is not in the format: {why}")
            }
            NoRoot => write!(f, "there is no root directory"),
            DanglingName { ino, .. } => {
                write!(f, "a name leads to inode {ino}, which is not there")
            }
            KindDiffers { ino, is, .. } => {
                write!(f, "a name of inode {ino} says another kind than {is:?}")
            }
            StrayEntries { parent, entries } => {
                write!(f, "{} in {parent}, which is no directory", counted(*entries, "entry"))
            }
            ManyNames { ino, names } => {
                write!(f, "directory {ino} has {}", counted(*names, "name"))
            }
            Unnamed { ino, kind } => write!(f, "inode {ino} ({kind:?}) has links and no name"),
            LinkCount { ino, said, found } => {
                write!(f, "inode {ino} counts {}, has {found}", counted((*said).into(), "link"))
            }
            EntryCount { ino, said, found } => {
                write!(f, "directory {ino} counts {}, has {found}", counted(*said, "entry"))
            }
            WrongParent { ino, said, found } => {
                write!(f, "directory {ino} says that it lies in {said}, and lies in {found}")
            }
            Cycle { ino } => {
                write!(f, "directory {ino} lies below itself, not below the root")
            }
            OrphanWithoutInode { ino } => write!(f, "orphan {ino} has no inode"),
            OrphanWithLinks { ino } => write!(f, "inode {ino} is listed as orphan and has links"),
            ForgottenOrphan { ino, .. } => {
                write!(f, "inode {ino} has no links and is not listed as orphan")
            }
            XattrCount { ino, said, found } => {
                write!(
                    f,
                    "inode {ino} counts {}, has {found}",
                    counted((*said).into(), "attribute")
                )
            }
            StrayXattrs { ino, count } => {
                write!(
                    f,
                    "{} of inode {ino}, which is not there",
                    counted((*count).into(), "attribute")
                )
            }
            ExtentsOverlap { ino, incarnation, at } => {
                write!(f, "extents of {ino}:{incarnation} overlap at {at}")
            }
            RowsBesideOnlyExtent { ino, extents } => {
                let extents = counted(*extents, "extent");
                write!(f, "inode {ino} has {extents} besides its only one")
            }
            ExtentBehindEnd { ino, end, size } => {
                write!(f, "an extent of {ino} ends at {end}, behind its {}", counted(*size, "byte"))
            }
            StrayExtents { ino, incarnation, extents, bytes, .. } => {
                let (extents, bytes) = (counted(*extents, "extent"), counted(*bytes, "byte"));
                write!(f, "extents of {ino}:{incarnation} have no file: {extents} of {bytes}")
            }
            Blocks { ino, said, bytes } => {
                write!(
                    f,
                    "inode {ino} shows {} in use, extents have {bytes}",
                    counted(*said, "byte")
                )
            }
            SegmentAccounting { id, size, said, found, .. } => {
                let size = counted(*size, "byte");
                write!(f, "segment {id}: {size}, {said} said live, {found} found")
            }
            SegmentHalf { id, size, live, said } => {
                let size = counted(*size, "byte");
                let said = match said {
                    0 => "more than half in use".to_string(),
                    since => format!("not that since commit {since}"),
                };
                write!(f, "segment {id}: {size}, {live} live, said to be {said}")
            }
            SegmentShared { id } => {
                write!(f, "segment {id}: two extents share bytes, and no row says so")
            }
            OwnerCount { id, said, found } => {
                let said = counted((*said).into(), "file");
                write!(f, "segment {id}: {said} said to share it, {found} found")
            }
            SegmentWithoutRow { id, .. } => {
                write!(f, "segment {id} has extents and no accounting row")
            }
            DeadAndAlive { id, .. } => write!(f, "segment {id} is both dead and alive"),
            KeptAndAlive { id } => {
                write!(f, "segment {id} is kept for snapshots alone, and in use or dead as well")
            }
            Totals { said, found } => write!(f, "statistics say {said:?}, found {found:?}"),
            NextIno { said, last } => {
                write!(f, "inode {last} is in use, the next to hand out is {said}")
            }
        }
    }
}
