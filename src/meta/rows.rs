//! Values of the metadata store. Every row starts with a version byte and has fixed-width
//! little-endian fields; a reader refuses versions it does not know.

use bytes::Bytes;

use super::codec::{DecodeError, Put, Reader};
use crate::base::{Ino, JournalId, JournalPos, SegmentId, Timestamp};

const VERSION: u8 = 1;

fn version(r: &mut Reader<'_>) -> Result<(), DecodeError> {
    if r.u8()? == VERSION { Ok(()) } else { Err(DecodeError("unknown row version")) }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Dir = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A Unix domain socket.
    Socket = 5,
    /// A character device.
    CharDev = 6,
    /// A block device.
    BlockDev = 7,
}

impl Kind {
    fn from_byte(b: u8) -> Result<Kind, DecodeError> {
        Ok(match b {
            1 => Kind::File,
            2 => Kind::Dir,
            3 => Kind::Symlink,
            4 => Kind::Fifo,
            5 => Kind::Socket,
            6 => Kind::CharDev,
            7 => Kind::BlockDev,
            _ => return Err(DecodeError("unknown inode kind")),
        })
    }

    /// The kind that the `S_IFMT` bits of a mode say (`inode(7)`); `None` for no known kind.
    pub fn from_mode(mode: u32) -> Option<Kind> {
        Some(match mode & libc::S_IFMT {
            0 | libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharDev,
            libc::S_IFBLK => Kind::BlockDev,
            _ => return None,
        })
    }
}

/// `i` row: everything `stat` shows, and where the data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky, `07777`.
    pub perm: u16,
    /// Links; for a directory 2 plus its subdirectories. 0: unlinked but open.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as the kernel encodes it.
    pub rdev: u32,
    /// Bytes; for a directory the number of its entries.
    pub size: u64,
    /// Bytes of a regular file that are not holes, as far as known (what `st_blocks` shows).
    pub allocated: u64,
    /// Last access that was recorded.
    pub atime: Timestamp,
    /// Last modification of contents.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Data generation: which `e` rows are this file's. Truncating to nothing starts a new
    /// one, so that it costs a constant number of rows.
    pub generation: u32,
    /// Number of extended attributes.
    pub xattrs: u32,
    /// The directory that holds a directory; for other kinds 0.
    pub parent: Ino,
    /// Target of a symbolic link, else empty.
    pub target: Bytes,
}

fn put_time(out: &mut Vec<u8>, t: Timestamp) {
    out.i64(t.secs);
    out.u32(t.nanos);
}

fn time(r: &mut Reader<'_>) -> Result<Timestamp, DecodeError> {
    let t = Timestamp { secs: r.i64()?, nanos: r.u32()? };
    if t.nanos >= 1_000_000_000 {
        return Err(DecodeError("nanoseconds out of range"));
    }
    Ok(t)
}

impl Inode {
    /// An empty inode made `now`, with one link (a directory: two) and no parent.
    pub fn new(kind: Kind, perm: u16, uid: u32, gid: u32, now: Timestamp) -> Inode {
        Inode {
            kind,
            perm,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            generation: 0,
            xattrs: 0,
            parent: Ino(0),
            target: Bytes::new(),
        }
    }

    /// Encodes the row: 100 bytes, then the symlink target.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(100 + self.target.len());
        out.u8(VERSION);
        out.u8(self.kind as u8);
        out.u16(self.perm);
        out.u32(self.nlink);
        out.u32(self.uid);
        out.u32(self.gid);
        out.u32(self.rdev);
        out.u64(self.size);
        out.u64(self.allocated);
        for t in [self.atime, self.mtime, self.ctime, self.btime] {
            put_time(&mut out, t);
        }
        out.u32(self.generation);
        out.u32(self.xattrs);
        out.u64(self.parent.0);
        out.extend_from_slice(&self.target);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<Inode, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        Ok(Inode {
            kind: Kind::from_byte(r.u8()?)?,
            perm: r.u16()?,
            nlink: r.u32()?,
            uid: r.u32()?,
            gid: r.u32()?,
            rdev: r.u32()?,
            size: r.u64()?,
            allocated: r.u64()?,
            atime: time(&mut r)?,
            mtime: time(&mut r)?,
            ctime: time(&mut r)?,
            btime: time(&mut r)?,
            generation: r.u32()?,
            xattrs: r.u32()?,
            parent: Ino(r.u64()?),
            target: Bytes::copy_from_slice(r.rest()),
        })
    }
}

/// `d` row: what a name stands for (the name is in the key). 10 bytes.
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
        out.u64(self.ino.0);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<Dirent, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let kind = Kind::from_byte(r.u8()?)?;
        let ino = Ino(r.u64()?);
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

/// `s` row: a segment's plaintext size and how many of its bytes extents refer to. 17 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    /// Plaintext bytes.
    pub size: u64,
    /// Bytes that extents refer to.
    pub live: u64,
}

impl SegmentRow {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(17);
        out.u8(VERSION);
        out.u64(self.size);
        out.u64(self.live);
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<SegmentRow, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let row = SegmentRow { size: r.u64()?, live: r.u64()? };
        r.end()?;
        Ok(row)
    }
}

/// `r` row: data to reclaim; the key says whose. One byte, the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrphanData;

impl OrphanData {
    /// Encodes the row.
    pub fn encode() -> Bytes {
        Bytes::from_static(&[VERSION])
    }
}

/// `g commit` row: what of which journal the bucket has. 49 bytes.
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
}

impl CommitRow {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(49);
        out.u8(VERSION);
        out.extend_from_slice(&self.journal.0);
        out.u64(self.position.0);
        out.u64(self.sequence);
        out.u64(self.time_secs);
        out.u64(self.writer_epoch);
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
        };
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

    fn sample() -> Inode {
        let t = Timestamp { secs: -5, nanos: 999_999_999 };
        Inode {
            kind: Kind::Symlink,
            perm: 0o7777,
            nlink: 3,
            uid: 1,
            gid: 2,
            rdev: 4,
            size: 5,
            allocated: 6,
            atime: t,
            mtime: Timestamp { secs: 7, nanos: 8 },
            ctime: t,
            btime: t,
            generation: 9,
            xattrs: 10,
            parent: Ino(11),
            target: Bytes::from_static(b"where"),
        }
    }

    #[test]
    fn an_inode_row_decodes_to_what_was_encoded() {
        // Guards against a field being read in another order than it was written.
        let inode = sample();
        let bytes = inode.encode();
        assert_eq!(bytes.len(), 100 + 5, "documented in FORMAT.md");
        assert_eq!(Inode::decode(&bytes).expect("own encoding"), inode);
    }

    #[test]
    fn every_truncation_of_a_row_is_an_error_and_never_a_panic() {
        // Guards against out-of-bounds reads on rows of another version.
        let bytes = sample().encode();
        for len in 0..bytes.len() - 5 {
            assert!(Inode::decode(&bytes[..len]).is_err());
        }
        let row = ExtentRow { segment: SegmentId([1; 16]), segment_offset: 2, len: 3 }.encode();
        for len in 0..row.len() {
            assert!(ExtentRow::decode(&row[..len]).is_err());
        }
        let mut other = bytes.to_vec();
        other[0] = 9;
        assert_eq!(Inode::decode(&other), Err(DecodeError("unknown row version")));
    }
}
