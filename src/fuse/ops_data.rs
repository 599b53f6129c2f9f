//! Operations on file contents: read, write, fsync, fallocate, lseek, copy_file_range.

use std::sync::Arc;

use bytes::Bytes;

use crate::fs::{FsError, Whence, WriteFlags};

use super::abi::{Malformed, Out, ReadIn, WriteIn};
use super::dispatch::{Adapter, Interrupt, Request};
use super::errno::Errno;
use super::nodes::ino_of;
use super::reply::Reply;
use super::seek::seek;

/// `FUSE_WRITE_CACHE`: from the page cache, whose times the kernel sends itself.
const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`: the writer may not keep set-user and set-group bits.
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_FSYNC_FDATASYNC`: data, and of the attributes only what is needed to read it.
const FSYNC_FDATASYNC: u32 = 1 << 0;
/// The most one copy_file_range request may copy, so that its answer fits 32 bits. Callers
/// loop, as copy_file_range(2) may always copy less than asked.
const COPY_MAX: u64 = 0x7fff_f000;

impl Adapter {
    pub(super) fn read(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let ReadIn { offset, len } = rq.body.read_in()?;
        let answer = |reply: Reply, data: Bytes| {
            reply.data(&data);
        };
        match self.fs.read_now(rq.ino(), offset, len) {
            Some(Ok(data)) => answer(rq.reply, data),
            Some(Err(e)) => rq.reply.error(e),
            None => {
                let data = self.fs.read(rq.ino(), offset, len);
                self.run(rq.reply, Interrupt::Allowed, data, answer);
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let WriteIn { offset, len, write_flags, synchronous } = rq.body.write_in()?;
        let data = rq.body.bytes(len as usize)?;
        let flags = WriteFlags {
            kill_suidgid: (write_flags & WRITE_KILL_SUIDGID != 0).then(|| rq.caller()),
            sync: synchronous,
            // Without write-back it comes from a mapping, whose times nobody sends.
            cached: write_flags & WRITE_CACHE != 0 && self.write_back,
        };
        let node = rq.node();
        let Some(ino) = self.changeable(&rq) else {
            rq.reply.error(FsError::Stale);
            return Ok(());
        };
        let common = self.common.clone();
        let answer = move |reply: Reply, result| {
            if flags.kill_suidgid.is_some() {
                reply.mode_changed(node);
            }
            if let Err(FsError::ReadOnly) = result {
                common.refused(node, reply.device());
            }
            if let (Err(e), true) = (&result, flags.cached) {
                // Its write(2) has returned, and whoever was killed meanwhile never hears of it.
                log::warn!("pages that were written to node {node} are not taken: {e}");
            }
            answer_written(reply, result);
        };
        match self.fs.write_now(ino, offset, data, flags) {
            Some(result) => answer(rq.reply, result),
            None => {
                let data = Bytes::copy_from_slice(data);
                let written = self.fs.write(ino, offset, data, flags);
                self.run_to(rq.reply, Interrupt::Never, written, answer);
            }
        }
        Ok(())
    }

    pub(super) fn fsync(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        rq.body.skip(8)?; // file handle
        let data_only = rq.body.u32()? & FSYNC_FDATASYNC != 0;
        if self.fsync_remote {
            let synced = self.fs.fsync(rq.ino(), data_only);
            self.run_unit(rq.reply, synced);
        } else {
            let (ino, reply) = (rq.ino(), rq.reply);
            self.fs.fsync_then(ino, |synced| answer_synced(reply, synced));
        }
        Ok(())
    }

    pub(super) fn fsyncdir(&self, rq: Request<'_>) -> Result<(), Malformed> {
        if self.fsync_remote {
            let synced = self.fs.fsyncdir(rq.ino());
            self.run_unit(rq.reply, synced);
        } else {
            let (ino, reply) = (rq.ino(), rq.reply);
            self.fs.fsync_then(ino, |synced| answer_synced(reply, synced));
        }
        Ok(())
    }

    pub(super) fn fallocate(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        rq.body.skip(8)?; // file handle
        let (offset, len, mode) = (rq.body.u64()?, rq.body.u64()?, rq.body.u32()? as i32);
        let node = rq.node();
        let Some(ino) = self.changeable(&rq) else {
            rq.reply.error(FsError::Stale);
            return Ok(());
        };
        let done = self.fs.fallocate(rq.caller(), ino, offset, len, mode);
        self.run(rq.reply, Interrupt::Never, done, move |reply, ()| {
            reply.mode_changed(node);
            reply.done();
        });
        Ok(())
    }

    pub(super) fn lseek(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        rq.body.skip(8)?; // file handle
        let (offset, whence) = (rq.body.u64()?, rq.body.u32()? as i32);
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => {
                rq.reply.error(Errno::INVALID); // the kernel does the others itself
                return Ok(());
            }
        };
        let ino = rq.ino();
        let has_dirty_pages = self.write_back && self.fs.may_write(ino);
        let device = has_dirty_pages.then(|| (Arc::clone(rq.reply.device()), rq.node()));
        let Ok(place) = Arc::clone(&self.seeks).try_acquire_owned() else {
            log::warn!(
                "too many programs look for holes in files at once; one is told to try again"
            );
            rq.reply.error(Errno::AGAIN);
            return Ok(());
        };
        let fs = Arc::clone(&self.fs);
        let found = async move {
            let _place = place;
            seek(fs, device, ino, offset, whence).await
        };
        self.run(rq.reply, Interrupt::Allowed, found, |reply, offset| {
            let mut out = Out::with_capacity(8);
            out.u64(offset);
            reply.out(&out);
        });
        Ok(())
    }

    /// `wide`: the 64-bit variant of Linux 6.18, whose answer has a 64-bit length.
    pub(super) fn copy_file_range(&self, mut rq: Request<'_>, wide: bool) -> Result<(), Malformed> {
        rq.body.skip(8)?; // file handle
        let (offset_in, node) = (rq.body.u64()?, rq.body.u64()?);
        rq.body.skip(8)?; // file handle
        let (offset_out, len) = (rq.body.u64()?, rq.body.u64()?);
        let len = len.min(COPY_MAX);
        let (caller, from, to) = (rq.caller(), rq.ino(), ino_of(node));
        if self.common.nodes.is_former(node) {
            rq.reply.error(FsError::Stale);
            return Ok(());
        }
        let copied = self.fs.copy_file_range(caller, from, offset_in, to, offset_out, len);
        self.run(rq.reply, Interrupt::Never, copied, move |reply, n| {
            reply.mode_changed(node);
            let mut out = Out::with_capacity(8);
            match wide {
                true => out.u64(n),
                false => out.u32(n as u32).u32(0),
            };
            reply.out(&out);
        });
        Ok(())
    }
}

fn answer_written(reply: Reply, result: Result<u32, FsError>) {
    match result {
        Ok(n) => {
            let mut out = Out::with_capacity(8);
            out.u32(n).u32(0);
            reply.out(&out);
        }
        Err(e) => reply.error(e),
    }
}

fn answer_synced(reply: Reply, result: Result<(), FsError>) {
    match result {
        Ok(()) => reply.done(),
        Err(e) => reply.error(e),
    }
}
