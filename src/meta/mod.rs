//! The metadata schema: keys and rows of the key-value store, as pure bytes.
//!
//! Owns the encoding that FORMAT.md ("Metadata rows") specifies. Does no I/O and knows nothing
//! of how rows are stored, cached or pending.

mod codec;
mod inode;
pub mod keys;
mod rows;
mod snapshot;

pub use codec::DecodeError;
pub use inode::{Inode, InodeExtent, Kind};
pub use keys::{Key, NameHash};
pub use rows::{
    BesideRow, CommitRow, DeadRow, Dirent, ExtentRow, HistoryRow, MarkerRow, SegmentRow, Stats,
    VolumeRow,
};
pub use snapshot::{
    KeptRow, SNAPSHOT_NAME_MAX, SNAPSHOT_NOTE_MAX, SnapshotName, SnapshotOrigin, SnapshotRow,
};

/// The longest file name, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// The longest symlink target, in bytes (`PATH_MAX` less the NUL).
pub const SYMLINK_MAX: usize = 4095;
/// The most hard links one inode may have (as ext4).
pub const LINK_MAX: u32 = 65_000;
/// The longest name of an extended attribute (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// The longest value of an extended attribute (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 65_536;
/// The largest file, in bytes: 2^63 - 1, what `off_t` can say.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
