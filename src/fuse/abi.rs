//! The bytes of the FUSE protocol: requests decoded, replies encoded.
//!
//! Pure: no I/O, no knowledge of the filesystem. The layouts are those of `linux/fuse.h`
//! (protocol 7.40 as negotiated by fuser, little- or big-endian as the machine is). A request
//! that is too short for its opcode decodes to [`Malformed`]; nothing here panics on input.

use crate::base::{Ino, Timestamp};
use crate::fs::{Attr, Kind};

/// `struct fuse_in_header`, 40 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What is asked, one of the constants of [`opcode`].
    pub opcode: u32,
    /// Names the request in its reply.
    pub unique: u64,
    /// The inode it is about (a directory for operations on names).
    pub nodeid: u64,
    /// File-system user id of the caller.
    pub uid: u32,
    /// File-system group id of the caller.
    pub gid: u32,
    /// Thread id of the caller.
    pub pid: u32,
}

/// Length of `struct fuse_in_header`.
pub const HEADER_LEN: usize = 40;
/// Length of `struct fuse_out_header`.
pub const OUT_HEADER_LEN: usize = 16;
/// Length of `struct fuse_entry_out`.
pub const ENTRY_LEN: usize = 128;

/// The operation numbers of `enum fuse_opcode`.
#[allow(missing_docs)]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// A request whose bytes do not fit its opcode; answered with `EIO`, never acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads the fields of a request body one after the other.
pub struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    /// A reader over `bytes`, the request after its header.
    pub fn new(bytes: &'a [u8]) -> Self {
        Body(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    /// The next 32-bit field.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_ne_bytes(self.take()?))
    }

    /// The next 64-bit field.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_ne_bytes(self.take()?))
    }

    /// Steps over `n` bytes of padding or of a field nobody needs.
    pub fn skip(&mut self, n: usize) -> Result<(), Malformed> {
        self.0 = self.0.get(n..).ok_or(Malformed)?;
        Ok(())
    }

    /// The next NUL-terminated string, without its NUL.
    pub fn name(&mut self) -> Result<Vec<u8>, Malformed> {
        let end = self.0.iter().position(|&b| b == 0).ok_or(Malformed)?;
        let name = self.0[..end].to_vec();
        self.0 = &self.0[end + 1..];
        Ok(name)
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }
}

/// A READ request (`struct fuse_read_in`), as far as it matters here.
pub struct ReadIn {
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u32,
}

/// The head of a WRITE request (`struct fuse_write_in`); the data follow it.
pub struct WriteIn {
    /// Where, in bytes.
    pub offset: u64,
    /// Length of the data, in bytes.
    pub len: u32,
    /// `FUSE_WRITE_*`.
    pub write_flags: u32,
    /// The file is open with `O_SYNC` or `O_DSYNC`.
    pub synchronous: bool,
}

impl Body<'_> {
    /// The next READ request.
    pub fn read_in(&mut self) -> Result<ReadIn, Malformed> {
        self.skip(8)?; // file handle
        Ok(ReadIn { offset: self.u64()?, len: self.u32()? })
    }

    /// The next head of a WRITE request.
    pub fn write_in(&mut self) -> Result<WriteIn, Malformed> {
        self.skip(8)?; // file handle
        let (offset, len, write_flags) = (self.u64()?, self.u32()?, self.u32()?);
        self.skip(8)?; // lock owner
        let open_flags = self.u32()? as i32;
        self.skip(4)?;
        let synchronous = open_flags & (libc::O_SYNC | libc::O_DSYNC) != 0;
        Ok(WriteIn { offset, len, write_flags, synchronous })
    }
}

/// Splits a request as read from the device into its header and its body.
pub fn split(request: &[u8]) -> Result<(Header, &[u8]), Malformed> {
    let mut b = Body(request);
    let len = b.u32()?;
    let opcode = b.u32()?;
    let unique = b.u64()?;
    let nodeid = b.u64()?;
    let (uid, gid, pid) = (b.u32()?, b.u32()?, b.u32()?);
    b.skip(4)?; // length of extensions (none negotiated), padding
    if len as usize != request.len() {
        return Err(Malformed);
    }
    Ok((Header { opcode, unique, nodeid, uid, gid, pid }, b.0))
}

/// `valid` bits of a SETATTR request (`FATTR_*`).
#[allow(missing_docs)]
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `struct fuse_setattr_in`, what of it is used.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct SetAttrIn {
    pub valid: u32,
    pub size: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl SetAttrIn {
    /// Decodes the body of a SETATTR request.
    pub fn decode(b: &mut Body<'_>) -> Result<Self, Malformed> {
        let valid = b.u32()?;
        b.skip(4 + 8)?; // padding, file handle
        let size = b.u64()?;
        b.skip(8)?; // lock owner
        let secs = [b.u64()? as i64, b.u64()? as i64, b.u64()? as i64];
        let nanos = [b.u32()?, b.u32()?, b.u32()?];
        let time = |i: usize| Timestamp { secs: secs[i], nanos: nanos[i].min(999_999_999) };
        let mode = b.u32()?;
        b.skip(4)?;
        let (uid, gid) = (b.u32()?, b.u32()?);
        Ok(SetAttrIn {
            valid,
            size,
            atime: time(0),
            mtime: time(1),
            ctime: time(2),
            mode,
            uid,
            gid,
        })
    }
}

/// How long the kernel may keep what a reply says, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlSecs(pub u64);

/// On which terms the kernel gets attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long it may keep them.
    pub ttl: TtlSecs,
    /// How long it may keep that a name leads to them.
    pub name_ttl: TtlSecs,
    /// Without what gives power: set-id bits, and the permissions of device nodes.
    pub powerless: bool,
}

/// Bytes of a reply, after its header.
#[derive(Clone, Debug, Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    /// An empty reply with room for `n` bytes.
    pub fn with_capacity(n: usize) -> Self {
        Out(Vec::with_capacity(n))
    }

    /// Appends a 32-bit field.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_ne_bytes());
        self
    }

    /// Appends a 64-bit field.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_ne_bytes());
        self
    }

    /// Appends `n` zero bytes.
    pub fn zeros(&mut self, n: usize) -> &mut Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }

    fn time(&mut self, t: Timestamp) -> &mut Self {
        // struct fuse_sx_time: seconds, nanoseconds, reserved
        self.u64(t.secs as u64).u32(t.nanos).u32(0)
    }

    /// Appends `struct fuse_attr` (88 bytes).
    fn attr(&mut self, a: &Attr, powerless: bool) -> &mut Self {
        self.u64(a.ino.0).u64(a.size).u64(blocks(a));
        self.u64(a.atime.secs as u64).u64(a.mtime.secs as u64).u64(a.ctime.secs as u64);
        self.u32(a.atime.nanos).u32(a.mtime.nanos).u32(a.ctime.nanos);
        self.u32(mode(a, powerless)).u32(a.nlink).u32(a.uid).u32(a.gid).u32(a.rdev);
        self.u32(BLOCK_SIZE).u32(0)
    }

    /// Appends `struct fuse_entry_out` (128 bytes): a name that leads to `a`, which the kernel is to
    /// know as `node`.
    pub fn entry(&mut self, node: u64, a: &Attr, terms: Terms) -> &mut Self {
        let (name, attributes) = (terms.name_ttl.0, terms.ttl.0);
        self.u64(node).u64(generation(a)).u64(name).u64(attributes).u32(0).u32(0);
        self.attr(a, terms.powerless)
    }

    /// Appends `struct fuse_entry_out` with node 0: the name does not exist, remember that.
    pub fn negative_entry(&mut self, ttl: TtlSecs) -> &mut Self {
        self.u64(0).u64(0).u64(ttl.0).zeros(ENTRY_LEN - 24)
    }

    /// Appends `struct fuse_open_out` (16 bytes). `handle` comes back with
    /// RELEASE; `flags` are `FOPEN_*` bits.
    pub fn open(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    /// Appends `struct fuse_attr_out` (104 bytes).
    pub fn attr_out(&mut self, a: &Attr, terms: Terms) -> &mut Self {
        self.u64(terms.ttl.0).u32(0).u32(0).attr(a, terms.powerless)
    }

    /// Appends `struct fuse_statx_out` (288 bytes): attributes with the time of birth.
    pub fn statx_out(&mut self, a: &Attr, terms: Terms) -> &mut Self {
        self.u64(terms.ttl.0).u32(0).u32(0).zeros(16);
        self.u32(STATX_BASIC_STATS | STATX_BTIME).u32(BLOCK_SIZE).u64(0);
        self.u32(a.nlink).u32(a.uid).u32(a.gid);
        self.0.extend_from_slice(&(mode(a, terms.powerless) as u16).to_ne_bytes());
        self.zeros(2).u64(a.ino.0).u64(a.size).u64(blocks(a)).u64(0);
        self.time(a.atime).time(a.btime).time(a.ctime).time(a.mtime);
        self.u32(libc::major(a.rdev.into())).u32(libc::minor(a.rdev.into()));
        self.zeros(8 + 14 * 8)
    }

    /// Appends `struct fuse_dirent` with its name, padded to 8 bytes. `next` is the cookie at
    /// which the listing goes on after this entry.
    pub fn dirent(&mut self, ino: Ino, next: u64, kind: Kind, name: &[u8]) -> &mut Self {
        self.u64(ino.0).u64(next).u32(name.len() as u32).u32(file_type(kind) >> 12);
        self.0.extend_from_slice(name);
        self.zeros(name.len().next_multiple_of(8) - name.len())
    }
}

/// Length of a `struct fuse_dirent` with a name of `name_len` bytes.
pub const fn dirent_len(name_len: usize) -> usize {
    24 + name_len.next_multiple_of(8)
}

/// `st_blksize` of every file; also the block size the kernel's page cache works with, so it
/// must not exceed a page.
const BLOCK_SIZE: u32 = 4096;
const STATX_BASIC_STATS: u32 = 0x7ff;
const STATX_BTIME: u32 = 0x800;

/// The `S_IFMT` bits of a kind.
pub fn file_type(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Dir => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
        Kind::CharDev => libc::S_IFCHR,
        Kind::BlockDev => libc::S_IFBLK,
    }
}

/// `st_blocks`. Never none for a file: Linux keeps the number while it has pages that were not
/// written back, even after `fsync`, and `tar -S` takes a file without blocks for one without
/// data and does not read it. (An empty file of ZFS has one block too.)
fn blocks(a: &Attr) -> u64 {
    match a.kind {
        Kind::File => a.blocks.max(1),
        _ => a.blocks,
    }
}

/// Tells two files of one inode number apart, in file handles. Within one history numbers are
/// never used twice; where the end of a history was lost (another writer took over, a journal
/// was set aside), they are handed out again, to files that were made at another time. Linux keeps
/// 32 bits, and wants 0 for the root.
fn generation(a: &Attr) -> u64 {
    if a.ino == Ino::ROOT {
        return 0;
    }
    let made = (a.btime.secs as u64).wrapping_mul(1_000_000_000).wrapping_add(a.btime.nanos.into());
    // A multiplier of Knuth's: all bits of the time reach the upper half.
    made.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

fn mode(a: &Attr, powerless: bool) -> u32 {
    let shown = match a.kind {
        Kind::File if powerless => 0o1777,
        Kind::CharDev | Kind::BlockDev if powerless => 0,
        _ => 0o7777,
    };
    file_type(a.kind) | u32::from(a.perm & shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr() -> Attr {
        let t = |secs| Timestamp { secs, nanos: 7 };
        Attr {
            ino: Ino(42),
            kind: Kind::File,
            perm: 0o4755,
            nlink: 1,
            uid: 1,
            gid: 2,
            rdev: 0,
            size: 9,
            blocks: 1,
            atime: t(-1),
            mtime: t(2),
            ctime: t(3),
            btime: t(4),
        }
    }

    #[test]
    fn replies_have_the_sizes_of_linux_fuse_h() {
        // Guards against a field added or lost, which the kernel answers with EINVAL or EIO.
        let len = |f: fn(&mut Out) -> &mut Out| {
            let mut o = Out::default();
            f(&mut o);
            o.0.len()
        };
        const TERMS: Terms = Terms { ttl: TtlSecs(1), name_ttl: TtlSecs(1), powerless: false };
        assert_eq!(len(|o| o.attr(&attr(), false)), 88);
        assert_eq!(len(|o| o.entry(7, &attr(), TERMS)), ENTRY_LEN);
        assert_eq!(len(|o| o.negative_entry(TtlSecs(1))), ENTRY_LEN);
        assert_eq!(len(|o| o.attr_out(&attr(), TERMS)), 104);
        assert_eq!(len(|o| o.statx_out(&attr(), TERMS)), 288);
        assert_eq!(len(|o| o.open(1, 0)), 16);
        for n in [1, 7, 8, 9, 255] {
            let mut o = Out::default();
            o.dirent(Ino(1), 2, Kind::Dir, &vec![b'x'; n]);
            assert_eq!(o.0.len(), dirent_len(n));
            assert_eq!(o.0.len() % 8, 0);
        }
    }

    #[test]
    fn attributes_without_power_have_no_set_id_bits_and_no_open_devices() {
        // Guards against a program or a device that works where the mount refuses it.
        let mut a = Attr { perm: 0o7755, ..attr() };
        assert_eq!(mode(&a, false), libc::S_IFREG | 0o7755);
        assert_eq!(mode(&a, true), libc::S_IFREG | 0o1755);
        a.kind = Kind::Dir;
        assert_eq!(mode(&a, true), libc::S_IFDIR | 0o7755, "they mean something else there");
        a.kind = Kind::BlockDev;
        assert_eq!(mode(&a, true), libc::S_IFBLK);
    }

    #[test]
    fn the_generation_of_a_file_is_its_own_and_stays() {
        // Guards against a handle that reaches the file which got the number of a lost one, and
        // against one that changes with the file: Linux then drops the inode it has.
        let (a, mut b) = (attr(), attr());
        b.size += 1;
        b.perm = 0;
        b.nlink = 2;
        (b.atime, b.mtime, b.ctime) = (b.btime, b.btime, b.btime);
        assert_eq!(generation(&a), generation(&b));
        assert!(generation(&a) <= u64::from(u32::MAX), "what Linux keeps of it");
        for (secs, nanos) in [(4, 8), (5, 7), (4, 4_000_007), (3, 999_999_999), (-4, 7)] {
            b.btime = Timestamp { secs, nanos };
            assert_ne!(generation(&a), generation(&b), "{secs}.{nanos:09}");
        }
        b.ino = Ino::ROOT;
        assert_eq!(generation(&b), 0, "Linux makes the root itself");
    }

    #[test]
    fn times_before_1970_pass_through_unchanged() {
        // Guards against the conversion through SystemTime that moves -0.5 s to -1.5 s.
        let mut req = Vec::new();
        let mut put32 = |v: u32| req.extend_from_slice(&v.to_ne_bytes());
        put32(fattr::ATIME);
        (0..7).for_each(|_| put32(0)); // padding, fh, size, lock owner
        put32(u32::MAX); // atime = -1, both halves
        put32(u32::MAX);
        (0..4).for_each(|_| put32(0));
        put32(500_000_000);
        (0..8).for_each(|_| put32(0));
        let s = SetAttrIn::decode(&mut Body::new(&req)).expect("88 bytes");
        assert_eq!(s.atime, Timestamp { secs: -1, nanos: 500_000_000 });
    }

    #[test]
    fn truncated_requests_are_malformed_and_never_panic() {
        // Guards against indexing past the request: every prefix of one is tried.
        let mut req = Vec::new();
        req.extend_from_slice(&(48u32).to_ne_bytes());
        req.extend_from_slice(&[1; 44]);
        assert!(split(&req).is_ok());
        for n in 0..req.len() {
            assert_eq!(split(&req[..n]).err(), Some(Malformed), "{n}");
        }
        assert_eq!(Body::new(b"no end").name(), Err(Malformed));
        assert!(SetAttrIn::decode(&mut Body::new(&[0; 80])).is_err());
        assert_eq!(Body::new(&[0; 3]).u32(), Err(Malformed));
        assert_eq!(Body::new(&[0; 3]).bytes(4), Err(Malformed));
    }
}
