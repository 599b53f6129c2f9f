//! The vocabulary of file operations.

use crate::base::{Ino, Timestamp};
use crate::meta::{Inode, Kind};

/// On whose behalf an operation runs. Permission checks are the kernel's
/// (`default_permissions`); the ids own what is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, for messages.
    pub pid: u32,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Kind.
    pub kind: Kind,
    /// Permission, set-id and sticky bits, `07777`.
    pub perm: u16,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes in use.
    pub blocks: u64,
    /// Last recorded access.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// What a directory shows as its size (as a small directory on ext4).
const DIR_SIZE: u64 = 4096;

impl Attr {
    pub(super) fn of(ino: Ino, inode: &Inode) -> Attr {
        let is_dir = inode.kind == Kind::Dir;
        Attr {
            ino,
            kind: inode.kind,
            perm: inode.perm,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            size: if is_dir { DIR_SIZE } else { inode.size },
            blocks: if is_dir { DIR_SIZE / 512 } else { inode.allocated.div_ceil(512) },
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: inode.btime,
        }
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// `UTIME_NOW`.
    Now,
    /// A given time.
    At(Timestamp),
}

/// What `setattr` changes; `None` leaves a field alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time, when the kernel keeps it (write-back cache); else it is now.
    pub ctime: Option<Timestamp>,
    /// Clear set-id bits as a write by an unprivileged user does. A change of the owner does
    /// it anyway.
    pub kill_suidgid: bool,
}

impl SetAttr {
    /// Whether it names no attribute, but perhaps the time at which it does so.
    pub(super) fn names_nothing(&self) -> bool {
        *self == SetAttr { ctime: self.ctime, ..SetAttr::default() }
    }
}

/// How a write behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Clear set-id bits that this caller may not keep (`FUSE_WRITE_KILL_SUIDGID`).
    pub kill_suidgid: Option<Caller>,
    /// On stable storage before it returns (`O_SYNC`, `O_DSYNC`).
    pub sync: bool,
    /// Written back from the kernel's page cache (`FUSE_WRITE_CACHE`): the kernel keeps the
    /// times and sends them itself.
    pub cached: bool,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode.
    pub ino: Ino,
    /// Where a listing continues after this entry.
    pub cookie: u64,
    /// Kind.
    pub kind: Kind,
    /// Name, 1 to 255 bytes.
    pub name: Vec<u8>,
}

/// What `statfs` shows; blocks are `frsize` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred I/O size.
    pub bsize: u32,
    /// Longest name.
    pub namelen: u32,
    /// Block size.
    pub frsize: u32,
}

/// How `setxattr(2)` sets an attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrMode {
    /// It must not exist (`XATTR_CREATE`).
    pub create: bool,
    /// It must exist (`XATTR_REPLACE`).
    pub replace: bool,
    /// With an access ACL: the set-group-id bit goes, since the caller is not in the file's group.
    pub kill_sgid: bool,
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
}

/// `renameat2` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// `RENAME_NOREPLACE`.
    pub no_replace: bool,
    /// `RENAME_EXCHANGE`.
    pub exchange: bool,
}
