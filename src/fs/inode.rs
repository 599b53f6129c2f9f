//! Attributes: getattr, setattr and what changes with them.

use std::sync::Arc;

use super::{Attempt, Attr, Fs, FsError, SetAttr, SetTime, State};
use crate::base::{Ino, Timestamp};
use crate::commit::{Batch, DataOp};
use crate::meta::{FILE_SIZE_MAX, Inode, Kind, keys};

const SETUID: u16 = libc::S_ISUID as u16;
const SETGID: u16 = libc::S_ISGID as u16;
const GROUP_EXEC: u16 = libc::S_IXGRP as u16;

/// Sets modification and change time.
pub(super) fn now_into(inode: &mut Inode, now: Timestamp) {
    inode.mtime = now;
    inode.ctime = now;
}

/// Clears set-id bits as Linux does when contents or ownership change: set-group-id only with
/// group execute, where it means set-id rather than mandatory locking (`chown(2)`).
pub(super) fn clear_set_id(inode: &mut Inode) {
    if inode.kind == Kind::File {
        inode.perm &= !SETUID;
        if inode.perm & GROUP_EXEC != 0 {
            inode.perm &= !SETGID;
        }
    }
}

impl Fs {
    /// The attributes of an inode.
    ///
    /// # Errors
    /// [`FsError::NotFound`] if there is no such inode any more.
    pub fn getattr(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.clone().consult(move |fs| Ok(Attr::of(ino, &fs.inode(ino)?)))
    }

    /// Changes attributes. Whether the caller may is the kernel's decision. Changing the owner
    /// clears set-id bits and file capabilities, as Linux does.
    ///
    /// # Errors
    /// [`FsError::IsDir`] or [`FsError::Invalid`] for the size of what is no file,
    /// [`FsError::FileTooBig`].
    pub fn setattr(
        self: &Arc<Self>,
        _caller: super::Caller,
        ino: Ino,
        set: SetAttr,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| fs.setattr_attempt(state, ino, &set))
    }

    fn setattr_attempt(&self, state: &mut State, ino: Ino, set: &SetAttr) -> Attempt<Attr> {
        let mut inode = self.inode(ino)?;
        let before = inode.clone();
        let now = self.clock.now();
        let time = |t: SetTime| match t {
            SetTime::Now => now,
            SetTime::At(t) => t,
        };
        let mut batch = Batch::default();
        if let Some(size) = set.size {
            self.truncate(&mut batch, ino, &mut inode, size)?;
            if set.mtime.is_none() {
                inode.mtime = now;
            }
        }
        let chown = set.uid.is_some() || set.gid.is_some();
        if let Some(uid) = set.uid {
            inode.uid = uid;
        }
        if let Some(gid) = set.gid {
            inode.gid = gid;
        }
        if chown || set.kill_suidgid {
            clear_set_id(&mut inode);
        }
        if chown || set.size.is_some() {
            self.drop_capability(&mut batch, ino, &mut inode)?;
        }
        if let Some(perm) = set.perm {
            inode.perm = perm & 0o7777;
            self.chmod_acl(&mut batch, ino, &inode)?;
        }
        if let Some(t) = set.atime {
            inode.atime = time(t);
        }
        if let Some(t) = set.mtime {
            inode.mtime = time(t);
        }
        inode.ctime = set.ctime.unwrap_or(now);
        if inode != before || !batch.is_empty() {
            batch.bytes += inode.allocated as i64 - before.allocated as i64;
            batch.put(keys::inode(ino), inode.encode());
            self.submit(state, batch, &[])?;
        }
        Ok(Attr::of(ino, &inode))
    }

    /// Adds to `batch` what a change of size does to contents, and changes `inode`.
    fn truncate(
        &self,
        batch: &mut Batch,
        ino: Ino,
        inode: &mut Inode,
        size: u64,
    ) -> Result<(), FsError> {
        match inode.kind {
            Kind::File => {}
            Kind::Dir => return Err(FsError::IsDir),
            _ => return Err(FsError::Invalid),
        }
        if size > FILE_SIZE_MAX {
            return Err(FsError::FileTooBig);
        }
        if size == 0 && inode.size > 0 {
            // A new data generation: constant cost, however large the file was.
            batch.data.push(DataOp::Drop { ino, generation: inode.generation });
            inode.generation = inode.generation.wrapping_add(1);
            if inode.generation == keys::RECLAIM_INODE {
                return Err(FsError::Io("data generations of a file are used up".into()));
            }
            batch.data.push(DataOp::Begin { ino, generation: inode.generation });
        } else if size < inode.size {
            let (generation, end) = (inode.generation, u64::MAX);
            batch.data.push(DataOp::Hole { ino, generation, start: size, end });
        }
        inode.size = size;
        inode.allocated = inode.allocated.min(whole_blocks(size));
        Ok(())
    }
}

/// `bytes` rounded up to the blocks of 4 KiB that `st_blocks` counts in.
pub(super) fn whole_blocks(bytes: u64) -> u64 {
    bytes.div_ceil(4096).saturating_mul(4096)
}
