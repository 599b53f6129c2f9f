//! The row of an inode: its attributes, and where its data lies if that is in one piece.
//!
//! Attributes are what operations change; the extent is the committer's, which alone writes it
//! (`commit/resolve`). So there are two encodings of one form: [`Inode::encode`], as it is
//! journalled and pending, and [`Inode::encode_with`], as it is committed.

use bytes::Bytes;

use super::codec::{DecodeError, Put, Reader};
use super::rows::{VERSION, version};
use crate::base::{ContentsId, Ino, SegmentId, Timestamp};

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
    pub(super) fn from_byte(b: u8) -> Result<Kind, DecodeError> {
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

    /// In a word, as reports name it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Dir => "dir",
            Kind::Symlink => "symlink",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
            Kind::CharDev => "chardev",
            Kind::BlockDev => "blockdev",
        }
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

/// `i` row: everything `stat` shows. Where the data is, is beside it in the row ([`InodeExtent`]).
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
    /// Data incarnation: which `e` rows are this file's. Truncating to nothing starts a new
    /// one, so that it costs a constant number of rows.
    pub incarnation: u32,
    /// Number of extended attributes.
    pub xattrs: u32,
    /// The directory that holds a directory; for other kinds 0.
    pub parent: Ino,
    /// Target of a symbolic link, else empty.
    pub target: Bytes,
}

/// The only extent of a file, in its inode row; a file of more has `e` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeExtent {
    /// First byte in the file.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The segment object.
    pub segment: SegmentId,
    /// Plaintext offset in the segment.
    pub segment_offset: u64,
}

// Byte 1 of the row: the kind in the lower half, and which of these follow.
const HAS_LINKS: u8 = 0x10;
const HAS_RDEV: u8 = 0x20;
const HAS_INCARNATION: u8 = 0x40;
const HAS_XATTRS: u8 = 0x80;
// Byte 2: which of these follow.
const HAS_CTIME: u8 = 0x01;
const HAS_ATIME: u8 = 0x02;
const BTIME: u8 = 0x0c;
const BTIME_IS_ATIME: u8 = 0x04;
const HAS_BTIME: u8 = 0x08;
const HAS_ALLOCATED: u8 = 0x10;
const HAS_PARENT: u8 = 0x20;
const HAS_EXTENT: u8 = 0x40;
/// The extent is not the whole file.
const HAS_RANGE: u8 = 0x80;

const IMPLIED: DecodeError = DecodeError("what is implied is said");

fn nanos(r: &mut Reader<'_>) -> Result<u32, DecodeError> {
    match r.u32()? {
        nanos @ 0..1_000_000_000 => Ok(nanos),
        _ => Err(DecodeError("nanoseconds out of range")),
    }
}

/// A time by its distance in seconds from another, which it is not.
fn put_beside(out: &mut Vec<u8>, t: Timestamp, other: Timestamp) {
    out.zigzag(t.secs.wrapping_sub(other.secs));
    out.u32(t.nanos);
}

fn beside(r: &mut Reader<'_>, other: Timestamp) -> Result<Timestamp, DecodeError> {
    let t = Timestamp { secs: other.secs.wrapping_add(r.zigzag()?), nanos: nanos(r)? };
    if t == other { Err(IMPLIED) } else { Ok(t) }
}

/// A field that is there only if it is not `implied`.
fn unless<T: PartialEq>(
    there: bool,
    implied: T,
    read: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    match there.then(read).transpose()? {
        None => Ok(implied),
        Some(value) if value == implied => Err(IMPLIED),
        Some(value) => Ok(value),
    }
}

impl Kind {
    fn links(self) -> u32 {
        if self == Kind::Dir { 2 } else { 1 }
    }

    /// What a file without holes takes.
    fn allocated(self, size: u64) -> u64 {
        if self == Kind::File { size.div_ceil(4096).saturating_mul(4096) } else { 0 }
    }
}

impl Inode {
    /// Its contents, of inode `ino`.
    pub fn contents(&self, ino: Ino) -> ContentsId {
        ContentsId { ino, incarnation: self.incarnation }
    }

    /// An empty inode made `now`, with one link (a directory: two) and no parent.
    pub fn new(kind: Kind, perm: u16, uid: u32, gid: u32, now: Timestamp) -> Inode {
        Inode {
            kind,
            perm,
            nlink: kind.links(),
            uid,
            gid,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            incarnation: 0,
            xattrs: 0,
            parent: Ino(0),
            target: Bytes::new(),
        }
    }

    /// Encodes the attributes.
    pub fn encode(&self) -> Bytes {
        self.encode_with(None)
    }

    /// Encodes the row of a file with this only extent, or of one that has none or more.
    pub fn encode_with(&self, extent: Option<&InodeExtent>) -> Bytes {
        let mut out = Vec::with_capacity(64 + self.target.len());
        let range = extent.filter(|e| (e.start, e.len) != (0, self.size));
        let btime = match self.btime {
            t if t == self.mtime => 0,
            t if t == self.atime => BTIME_IS_ATIME,
            _ => HAS_BTIME,
        };
        let if_ = |there: bool, flag: u8| if there { flag } else { 0 };
        out.u8(VERSION);
        out.u8(self.kind as u8
            | if_(self.nlink != self.kind.links(), HAS_LINKS)
            | if_(self.rdev != 0, HAS_RDEV)
            | if_(self.incarnation != 0, HAS_INCARNATION)
            | if_(self.xattrs != 0, HAS_XATTRS));
        let flags = btime
            | if_(self.ctime != self.mtime, HAS_CTIME)
            | if_(self.atime != self.mtime, HAS_ATIME)
            | if_(self.allocated != self.kind.allocated(self.size), HAS_ALLOCATED)
            | if_(self.parent != Ino(0), HAS_PARENT)
            | if_(extent.is_some(), HAS_EXTENT)
            | if_(range.is_some(), HAS_RANGE);
        out.u8(flags);
        out.u16(self.perm);
        out.varint(self.uid.into());
        out.varint(self.gid.into());
        out.varint(self.size);
        out.zigzag(self.mtime.secs);
        out.u32(self.mtime.nanos);
        let numbers = [
            (self.nlink != self.kind.links(), self.nlink),
            (self.rdev != 0, self.rdev),
            (self.incarnation != 0, self.incarnation),
            (self.xattrs != 0, self.xattrs),
        ];
        numbers.iter().filter(|(there, _)| *there).for_each(|&(_, n)| out.varint(n.into()));
        let times = [(HAS_CTIME, self.ctime), (HAS_ATIME, self.atime), (HAS_BTIME, self.btime)];
        for (_, time) in times.iter().filter(|(flag, _)| flags & flag != 0) {
            put_beside(&mut out, *time, self.mtime);
        }
        if flags & HAS_ALLOCATED != 0 {
            out.varint(self.allocated);
        }
        if flags & HAS_PARENT != 0 {
            out.varint(self.parent.0);
        }
        if let Some(extent) = extent {
            out.extend_from_slice(&extent.segment.0);
            out.varint(extent.segment_offset);
        }
        if let Some(range) = range {
            out.varint(range.start);
            out.varint(range.len);
        }
        out.extend_from_slice(&self.target);
        out.into()
    }

    /// Decodes the attributes of a row.
    pub fn decode(bytes: &[u8]) -> Result<Inode, DecodeError> {
        Ok(Inode::decode_with(bytes)?.0)
    }

    /// Decodes a row.
    pub fn decode_with(bytes: &[u8]) -> Result<(Inode, Option<InodeExtent>), DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let (head, flags) = (r.u8()?, r.u8()?);
        let kind = Kind::from_byte(head & 0x0f)?;
        let perm = r.u16()?;
        let (uid, gid, size) = (r.varint32()?, r.varint32()?, r.varint()?);
        let mtime = Timestamp { secs: r.zigzag()?, nanos: nanos(&mut r)? };
        let nlink = unless(head & HAS_LINKS != 0, kind.links(), || r.varint32())?;
        let rdev = unless(head & HAS_RDEV != 0, 0, || r.varint32())?;
        let incarnation = unless(head & HAS_INCARNATION != 0, 0, || r.varint32())?;
        let xattrs = unless(head & HAS_XATTRS != 0, 0, || r.varint32())?;
        let ctime = unless(flags & HAS_CTIME != 0, mtime, || beside(&mut r, mtime))?;
        let atime = unless(flags & HAS_ATIME != 0, mtime, || beside(&mut r, mtime))?;
        let btime = match flags & BTIME {
            0 => mtime,
            BTIME_IS_ATIME if atime != mtime => atime,
            HAS_BTIME => unless(true, atime, || beside(&mut r, mtime))?,
            _ => return Err(IMPLIED),
        };
        let allocated = kind.allocated(size);
        let allocated = unless(flags & HAS_ALLOCATED != 0, allocated, || r.varint())?;
        let parent = Ino(unless(flags & HAS_PARENT != 0, 0, || r.varint())?);
        let extent = match (flags & HAS_EXTENT != 0, flags & HAS_RANGE != 0) {
            (false, false) => None,
            (true, range) if kind == Kind::File => Some(extent(&mut r, size, range)?),
            _ => return Err(DecodeError("extent of what is no file")),
        };
        let target = r.rest();
        if kind != Kind::Symlink && !target.is_empty() {
            return Err(DecodeError("trailing bytes"));
        }
        let target = Bytes::copy_from_slice(target);
        let inode = Inode {
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            size,
            allocated,
            atime,
            mtime,
            ctime,
            btime,
            incarnation,
            xattrs,
            parent,
            target,
        };
        Ok((inode, extent))
    }
}

fn extent(r: &mut Reader<'_>, size: u64, range: bool) -> Result<InodeExtent, DecodeError> {
    let (segment, segment_offset) = (SegmentId(r.array()?), r.varint()?);
    let (start, len) = unless(range, (0, size), || Ok((r.varint()?, r.varint()?)))?;
    let ends = start.checked_add(len).is_some() && segment_offset.checked_add(len).is_some();
    if len == 0 || !ends {
        return Err(DecodeError("extent of impossible length"));
    }
    Ok(InodeExtent { start, len, segment, segment_offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Timestamp = Timestamp { secs: 1_800_000_000, nanos: 123_456_789 };

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
            btime: Timestamp { secs: i64::MIN, nanos: 0 },
            incarnation: 9,
            xattrs: 10,
            parent: Ino(11),
            target: Bytes::from_static(b"where"),
        }
    }

    fn file(size: u64) -> Inode {
        Inode {
            size,
            allocated: Kind::File.allocated(size),
            ..Inode::new(Kind::File, 0o644, 1000, 1000, T)
        }
    }

    const EXTENT: InodeExtent =
        InodeExtent { start: 0, len: 100, segment: SegmentId([0x4f; 16]), segment_offset: 300 };

    #[test]
    fn an_inode_row_decodes_to_what_was_encoded() {
        // Guards against a field being read in another order than it was written, and against a
        // presence flag that goes with the wrong field: each is changed alone.
        let changes: [fn(&mut Inode); 16] = [
            |_| {},
            |i| i.nlink = 0,
            |i| i.uid = u32::MAX,
            |i| i.gid = 0,
            |i| i.rdev = 77,
            |i| i.size = u64::MAX,
            |i| i.allocated = 0,
            |i| i.atime.secs = -1,
            |i| i.ctime.nanos = 0,
            |i| i.btime.secs = i64::MAX,
            |i| (i.atime.nanos, i.btime.nanos) = (5, 5),
            |i| (i.atime.nanos, i.btime.nanos) = (5, 6),
            |i| i.mtime.secs = i64::MIN,
            |i| i.incarnation = u32::MAX,
            |i| i.xattrs = 1,
            |i| i.parent = Ino(u64::MAX),
        ];
        for change in changes {
            let mut inode = file(100);
            change(&mut inode);
            let extents = [None, Some(EXTENT), Some(InodeExtent { start: 7, len: 1, ..EXTENT })];
            for extent in extents {
                let bytes = inode.encode_with(extent.as_ref());
                assert_eq!(Inode::decode_with(&bytes), Ok((inode.clone(), extent)));
            }
        }
        assert_eq!(Inode::decode(&sample().encode()), Ok(sample()));
        assert_eq!(file(100).encode_with(Some(&EXTENT)).len(), 37, "documented in FORMAT.md");
    }

    #[test]
    fn every_truncation_of_a_row_is_an_error_and_never_a_panic() {
        // Guards against out-of-bounds reads on rows of another version.
        let bytes = sample().encode();
        for len in 0..bytes.len() - 5 {
            assert!(Inode::decode(&bytes[..len]).is_err());
        }
        let file = file(7).encode_with(Some(&EXTENT));
        for len in 0..file.len() {
            assert!(Inode::decode(&file[..len]).is_err());
        }
        let mut other = bytes.to_vec();
        other[0] = 1;
        assert_eq!(Inode::decode(&other), Err(DecodeError("unknown row version")));
    }

    #[test]
    fn only_the_shortest_form_of_a_row_is_one() {
        // Guards against rows that differ in bytes and say the same, which a comparison of rows
        // would take for a change.
        let plain = file(100).encode().to_vec();
        let with = |byte: usize, flag: u8, more: &[u8]| {
            let mut row = plain.clone();
            row[byte] |= flag;
            row.extend_from_slice(more);
            Inode::decode(&row)
        };
        assert!(with(1, 0, &[]).is_ok());
        let same_time = [&[0][..], &T.nanos.to_le_bytes()].concat();
        for (byte, flag, more) in [
            (1, HAS_LINKS, &[1][..]),
            (1, HAS_RDEV, &[0]),
            (1, HAS_INCARNATION, &[0]),
            (1, HAS_XATTRS, &[0]),
            (2, HAS_CTIME, &same_time),
            (2, HAS_ATIME, &same_time),
            (2, BTIME_IS_ATIME, &[]),
            (2, HAS_BTIME, &same_time),
            (2, BTIME, &same_time),
            (2, HAS_ALLOCATED, &[0x80, 0x20]),
            (2, HAS_PARENT, &[0]),
            (2, HAS_RANGE, &[1, 1]),
            (2, 0, &[7]),
        ] {
            assert!(with(byte, flag, more).is_err(), "byte {byte}, flag {flag:#x}");
        }
        let link = Inode { kind: Kind::Symlink, ..file(100) };
        assert!(Inode::decode(&link.encode_with(Some(&EXTENT))).is_err());
    }
}
