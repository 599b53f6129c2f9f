//! Operations on attributes: getattr, statx, setattr, statfs.

use crate::fs::{FsError, SetAttr, SetTime, StatFs};

use super::abi::{Malformed, Out, SetAttrIn, fattr};
use super::dispatch::{Adapter, Interrupt, Request};

impl Adapter {
    pub(super) fn getattr(&self, rq: Request<'_>) -> Result<(), Malformed> {
        let (common, asked) = (self.common.clone(), rq.node());
        let attr = self.fs.getattr(rq.ino());
        self.run(rq.reply, Interrupt::Allowed, attr, move |reply, attr| {
            common.look(asked, &attr, reply.device());
            let mut out = Out::with_capacity(104);
            out.attr_out(&attr, common.terms_of(attr.ino));
            reply.out(&out);
        });
        Ok(())
    }

    /// As getattr, with the time of birth (`stat` prints it, `statx` with `STATX_BTIME`).
    pub(super) fn statx(&self, rq: Request<'_>) -> Result<(), Malformed> {
        let (common, asked) = (self.common.clone(), rq.node());
        let attr = self.fs.getattr(rq.ino());
        self.run(rq.reply, Interrupt::Allowed, attr, move |reply, attr| {
            common.look(asked, &attr, reply.device());
            let mut out = Out::with_capacity(288);
            out.statx_out(&attr, common.terms_of(attr.ino));
            reply.out(&out);
        });
        Ok(())
    }

    pub(super) fn setattr(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let common = self.common.clone();
        let change = change_of(&SetAttrIn::decode(&mut rq.body)?);
        let Some(ino) = self.changeable(&rq) else {
            rq.reply.error(FsError::Stale);
            return Ok(());
        };
        let writing = change.size.and(self.stores.as_ref()).map(|stores| stores.begin(ino));
        let changed = self.fs.setattr(rq.caller(), ino, change);
        let changed = async move {
            if let Some(writing) = &writing {
                writing.ready().await;
            }
            changed.await.map(|attr| (attr, writing))
        };
        self.run_to(rq.reply, Interrupt::Never, changed, move |reply, changed| match changed {
            Ok((attr, _writing)) => {
                let mut out = Out::with_capacity(104);
                out.attr_out(&attr, common.terms_of(attr.ino));
                reply.out(&out);
            }
            Err(e) => {
                if e == FsError::ReadOnly {
                    common.nodes.distrust(ino); // these may be times that it goes on to believe
                }
                reply.error(e);
            }
        });
        Ok(())
    }

    pub(super) fn statfs(&self, rq: Request<'_>) -> Result<(), Malformed> {
        let stat = self.fs.statfs(rq.ino());
        self.run(rq.reply, Interrupt::Allowed, stat, |reply, s: StatFs| {
            let mut out = Out::with_capacity(80);
            out.u64(s.blocks).u64(s.bfree).u64(s.bavail).u64(s.files).u64(s.ffree);
            out.u32(s.bsize).u32(s.namelen).u32(s.frsize).zeros(28);
            reply.out(&out);
        });
        Ok(())
    }
}

/// What a SETATTR request asks for. With `FUSE_HANDLE_KILLPRIV_V2` the kernel leaves set-user
/// and set-group bits to us: on a truncation it says when its author may not keep them, on a
/// change of owner it always does (`include/uapi/linux/fuse.h`, FUSE_HANDLE_KILLPRIV_V2).
fn change_of(s: &SetAttrIn) -> SetAttr {
    let has = |bit| s.valid & bit != 0;
    let time = |set, now, at| match (has(set) || has(now), has(now)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(at)),
    };
    SetAttr {
        perm: has(fattr::MODE).then_some((s.mode & 0o7777) as u16),
        uid: has(fattr::UID).then_some(s.uid),
        gid: has(fattr::GID).then_some(s.gid),
        size: has(fattr::SIZE).then_some(s.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, s.atime),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, s.mtime),
        ctime: has(fattr::CTIME).then_some(s.ctime),
        kill_suidgid: has(fattr::KILL_SUIDGID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timestamp;

    #[test]
    fn setattr_changes_only_the_fields_that_are_marked_valid() {
        // Guards against a chmod that also truncates, because the other fields hold zeros.
        let t = Timestamp { secs: -5, nanos: 1 };
        let mut s = SetAttrIn {
            valid: fattr::MODE,
            size: 0,
            atime: t,
            mtime: t,
            ctime: t,
            mode: 0o104_644,
            uid: 7,
            gid: 8,
        };
        let c = change_of(&s);
        assert_eq!(c.perm, Some(0o4644));
        assert!(c.size.is_none() && c.uid.is_none() && c.gid.is_none() && !c.kill_suidgid);
        assert!(c.atime.is_none() && c.mtime.is_none() && c.ctime.is_none());

        s.valid = fattr::ATIME | fattr::ATIME_NOW | fattr::MTIME | fattr::GID;
        let c = change_of(&s);
        assert!(matches!(c.atime, Some(SetTime::Now)));
        assert!(matches!(c.mtime, Some(SetTime::At(at)) if at == t));
        assert!(c.gid == Some(8) && c.perm.is_none());
    }
}
