//! Attributes: getattr, setattr and what changes with them.

use std::sync::Arc;

use super::blocks::whole_blocks;
use super::rights::Rights;
use super::{Attempt, Attr, Caller, Fs, FsError, SetAttr, SetTime, State};
use crate::base::{Ino, Timestamp};
use crate::commit::{Batch, DataOp};
use crate::meta::{FILE_SIZE_MAX, Inode, Kind, keys};

const SETUID: u16 = libc::S_ISUID as u16;
pub(super) const SETGID: u16 = libc::S_ISGID as u16;
const GROUP_EXEC: u16 = libc::S_IXGRP as u16;

/// A change time further ahead than this is no stamp of a clock that is a tick ahead: the clock
/// was set back since.
const AHEAD_SECS_MAX: i64 = 1;

/// Sets the change time to `now`, unless it is a little later already: it goes back with a clock
/// that was set, and never otherwise.
pub(super) fn changed(inode: &mut Inode, now: Timestamp) {
    let still = Timestamp { secs: now.secs.saturating_add(AHEAD_SECS_MAX), ..now };
    if inode.ctime <= now || inode.ctime > still {
        inode.ctime = now;
    }
}

/// Sets modification and change time.
pub(super) fn now_into(inode: &mut Inode, now: Timestamp) {
    changed(inode, now);
    inode.mtime = inode.ctime;
}

/// What happens to set-id bits, as Linux has it (`setattr_should_drop_suidgid` in fs/attr.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetIdChange {
    /// Contents change: a caller with `CAP_FSETID` keeps the bits of a regular file.
    Contents,
    /// The same by somebody of whom the kernel has said that they do not have it.
    ContentsUnprivileged,
    /// The owner or the group changes: whoever does it, and of whatever kind it is but a
    /// directory.
    Owner,
}

/// What `set` means for set-id bits. Linux leaves them to us, and so has nothing to name in two more
/// cases: before contents change, and for chown(2) to neither owner nor group. Of a regular file
/// the latter has the time; of others there is no former.
fn set_id_change(inode: &Inode, set: &SetAttr) -> Option<SetIdChange> {
    let names_owner = set.uid.is_some() || set.gid.is_some();
    match set.names_nothing() {
        true if inode.kind == Kind::File && set.ctime.is_none() => Some(SetIdChange::Contents),
        true => Some(SetIdChange::Owner),
        false if names_owner => Some(SetIdChange::Owner),
        false => set.kill_suidgid.then_some(SetIdChange::ContentsUnprivileged),
    }
}

/// Whether `caller` may change the contents of `inode` and leave its set-id bits.
pub(super) fn keeps_set_id(inode: &Inode, caller: Caller) -> bool {
    inode.perm & (SETUID | SETGID) == 0 || Rights::of(caller).keeps_set_id()
}

/// Clears the set-id bits of `inode` that `caller` does not keep over `change`: set-user-id
/// always; set-group-id where it means set-id (with group execute), and else too if the caller is
/// not in the file's group, since he could not set it either.
pub(super) fn clear_set_id(inode: &mut Inode, caller: Caller, change: SetIdChange) {
    let concerns = match change {
        SetIdChange::Owner => inode.kind != Kind::Dir,
        _ => inode.kind == Kind::File,
    };
    if !concerns || inode.perm & (SETUID | SETGID) == 0 {
        return;
    }
    let lone_sgid = inode.perm & SETGID != 0 && inode.perm & GROUP_EXEC == 0;
    // Not asked where it would change nothing.
    let rights = match lone_sgid || change == SetIdChange::Contents {
        true => Rights::of(caller),
        false => Rights::default(),
    };
    if change == SetIdChange::Contents && rights.keeps_set_id() {
        return;
    }
    inode.perm &= !SETUID;
    if !(lone_sgid && rights.keeps_set_gid_of(inode.gid)) {
        inode.perm &= !SETGID;
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

    /// [`Fs::getattr`] if memory knows.
    pub fn getattr_now(&self, ino: Ino) -> Option<Attr> {
        Some(Attr::of(ino, &self.inode(ino).ok()?))
    }

    /// Changes attributes. Whether the caller may is the kernel's decision. Changing the owner
    /// clears set-id bits and file capabilities, as Linux does.
    ///
    /// # Errors
    /// [`FsError::IsDir`] or [`FsError::Invalid`] for the size of what is no file,
    /// [`FsError::FileTooBig`].
    pub fn setattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
        set: SetAttr,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| fs.setattr_attempt(state, caller, ino, &set))
    }

    fn setattr_attempt(
        &self,
        state: &mut State,
        caller: Caller,
        ino: Ino,
        set: &SetAttr,
    ) -> Attempt<Attr> {
        let mut inode = self.inode(ino)?;
        let before = inode.clone();
        // One time for all that changes now, the kernel's where it sends one.
        let now = set.ctime.unwrap_or_else(|| self.clock.now());
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
        // Before the group changes: membership in the one that was counts.
        let change = set_id_change(&inode, set);
        if let Some(change) = change {
            clear_set_id(&mut inode, caller, change);
        }
        if change == Some(SetIdChange::Contents) && inode == before {
            return Ok(Attr::of(ino, &inode)); // the change of contents follows
        }
        // Linux has asked whether the caller may, but where it saw no change.
        let unasked = set.names_nothing() && inode.perm != before.perm;
        let chown = change == Some(SetIdChange::Owner);
        if unasked && chown && !Rights::of(caller).may_change(caller, inode.uid) {
            return Err(FsError::NotPermitted.into());
        }
        if let Some(uid) = set.uid {
            inode.uid = uid;
        }
        if let Some(gid) = set.gid {
            inode.gid = gid;
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
        match set.ctime {
            Some(t) => inode.ctime = t,
            None => changed(&mut inode, now),
        }
        if inode != before || !batch.is_empty() {
            batch.bytes += inode.allocated as i64 - before.allocated as i64;
            batch.put(keys::inode(ino), inode.encode());
            self.submit(state, batch, &[])?;
        }
        Ok(Attr::of(ino, &inode))
    }

    /// Adds to `batch` what a change of size does to contents, and changes `inode`.
    fn truncate(&self, batch: &mut Batch, ino: Ino, inode: &mut Inode, size: u64) -> Attempt<()> {
        match inode.kind {
            Kind::File => {}
            Kind::Dir => return Err(FsError::IsDir.into()),
            _ => return Err(FsError::Invalid.into()),
        }
        if size > FILE_SIZE_MAX {
            return Err(FsError::FileTooBig.into());
        }
        self.count_hole(inode.contents(ino), inode, size..u64::MAX)?;
        if size == 0 && inode.size > 0 {
            // A new data incarnation: constant cost, however large the file was.
            batch.data.push(DataOp::Drop { ino, incarnation: inode.incarnation });
            inode.incarnation = inode.incarnation.wrapping_add(1);
            if inode.incarnation == keys::RECLAIM_INODE {
                return Err(FsError::Io("data incarnations of a file are used up".into()).into());
            }
            batch.data.push(DataOp::Begin { ino, incarnation: inode.incarnation });
        } else if size < inode.size {
            let (incarnation, end) = (inode.incarnation, u64::MAX);
            batch.data.push(DataOp::Hole { ino, incarnation, start: size, end });
        }
        inode.size = size;
        // Where the count was estimated.
        inode.allocated = inode.allocated.min(whole_blocks(size));
        Ok(())
    }
}
