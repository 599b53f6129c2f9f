//! Newtypes for the numbers that could be swapped by mistake.

use std::fmt;

/// An inode number. `1` is the root directory; `0` never names an inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// Contents of a file: the inode, and which of its incarnations. Truncating to nothing starts the
/// next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentsId {
    /// The inode.
    pub ino: Ino,
    /// Counts from 0; the last number stands for something else (`meta::keys::RECLAIM_INODE`).
    pub incarnation: u32,
}

impl Ino {
    /// The root directory of every volume (`FUSE_ROOT_ID`).
    pub const ROOT: Ino = Ino(1);
}

/// A record number of the journal: 1 for the first record a journal ever held, then one more
/// for each. `0` is "before the first record".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct JournalPos(pub u64);

/// 16 random bytes that name a journal; a new journal gets a new one, so that a record can
/// never be taken for a record of another journal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct JournalId(pub [u8; 16]);

/// 16 random bytes that name a segment object, `seg/<32 hex digits>`. Never reused, so that a
/// late retry of an upload can never overwrite another segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub [u8; 16]);

/// The volume id: 16 bytes derived from the root key (FORMAT.md, "Keys").
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VolumeId(pub [u8; 16]);

/// The chain value of a commit: it stands for that commit and for all before it (FORMAT.md,
/// "History"). Zeros before the first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChainValue(pub [u8; 32]);

/// `bytes` as lower-case hexadecimal digits, two for each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

macro_rules! hex_display {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&hex(&self.0)) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&hex(&self.0)) }
        }
    )*};
}
hex_display!(SegmentId, VolumeId, JournalId, ChainValue);

impl std::str::FromStr for VolumeId {
    type Err = ();

    /// 32 hexadecimal digits, of either case.
    fn from_str(text: &str) -> Result<VolumeId, ()> {
        let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        id.map(|id| VolumeId(id.to_be_bytes())).ok_or(())
    }
}

macro_rules! number_display {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    )*};
}
number_display!(Ino, JournalPos);
