//! Extended attributes, POSIX ACLs among them (`system.posix_acl_*`, stored like any other;
//! the kernel interprets them for permission checks).

use bytes::Bytes;

use crate::fs::{FsError, XattrMode};

use super::abi::{Malformed, Out};
use super::dispatch::{Adapter, Interrupt, Request};
use super::errno::Errno;
use super::reply::Reply;

/// `FUSE_SETXATTR_ACL_KILL_SGID`: this access ACL is set by someone outside the file's group,
/// so the set-group bit must go (chmod(2) has the same rule).
const ACL_KILL_SGID: u32 = 1 << 0;

impl Adapter {
    pub(super) fn setxattr(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let (len, flags) = (rq.body.u32()?, rq.body.u32()? as i32);
        let mut kill_sgid = false;
        if self.setxattr_ext {
            kill_sgid = rq.body.u32()? & ACL_KILL_SGID != 0;
            rq.body.skip(4)?;
        }
        let name = rq.body.name()?;
        let value = rq.body.bytes(len as usize)?.to_vec();
        let (create, replace) = (libc::XATTR_CREATE, libc::XATTR_REPLACE);
        if flags & !(create | replace) != 0 {
            rq.reply.error(Errno::INVALID);
            return Ok(());
        }
        let mode =
            XattrMode { create: flags & create != 0, replace: flags & replace != 0, kill_sgid };
        let set = self.fs.setxattr(rq.ino(), name, value, mode);
        self.run_unit(rq.reply, set);
        Ok(())
    }

    pub(super) fn getxattr(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let room = rq.body.u32()?;
        rq.body.skip(4)?;
        let name = rq.body.name()?;
        if name == b"security.capability" && self.common.terms().powerless {
            rq.reply.error(FsError::NoAttr);
            return Ok(());
        }
        let value = self.fs.getxattr(rq.ino(), name);
        self.run(rq.reply, Interrupt::Allowed, value, move |reply, value: Bytes| {
            answer_sized(reply, &value, room);
        });
        Ok(())
    }

    pub(super) fn listxattr(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let room = rq.body.u32()?;
        let names = self.fs.listxattr(rq.caller(), rq.ino());
        self.run(rq.reply, Interrupt::Allowed, names, move |reply, names| {
            let mut list = Vec::with_capacity(names.iter().map(|n| n.len() + 1).sum());
            for name in names {
                list.extend_from_slice(&name);
                list.push(0);
            }
            answer_sized(reply, &list, room);
        });
        Ok(())
    }

    pub(super) fn removexattr(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let name = rq.body.name()?;
        let gone = self.fs.removexattr(rq.ino(), name);
        self.run_unit(rq.reply, gone);
        Ok(())
    }
}

/// Answers with `bytes`, or with their length when the caller has room for 0 bytes: it asks
/// how much room to make (getxattr(2)).
fn answer_sized(reply: Reply, bytes: &[u8], room: u32) {
    if room == 0 {
        let mut out = Out::with_capacity(8);
        out.u32(bytes.len() as u32).u32(0);
        reply.out(&out);
    } else if bytes.len() > room as usize {
        reply.error(Errno::RANGE);
    } else {
        reply.data(bytes);
    }
}
