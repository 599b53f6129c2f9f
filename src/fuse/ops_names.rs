//! Operations on names: lookup and forget, making, linking, renaming and removing.

use crate::base::Ino;
use crate::fs::{Attr, FsError, RenameFlags};

use super::abi::{ENTRY_LEN, Malformed, Out};
use super::dispatch::{Adapter, Interrupt, Request, answer_entry};
use super::errno::Errno;
use super::nodes::ino_of;
use super::reply::Reply;
use super::stores::Writing;

/// `FOPEN_KEEP_CACHE`: opening a file does not make its cached pages doubtful.
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Handles of open files: whether they may be written through, for [`Stores`](super::stores::Stores).
const READS: u64 = 0;
const WRITES: u64 = 1;

impl Adapter {
    /// A name that does not exist is an answer too, and kept as long as any other: only this
    /// mount makes names.
    pub(super) fn lookup(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let name = rq.body.name()?;
        let parent = rq.ino();
        let found = self.fs.lookup(parent, name);
        let common = self.common.clone();
        // Not interruptible: a lookup that has counted must be answered.
        self.run_to(rq.reply, Interrupt::Never, found, move |reply, result| match result {
            Ok(attr) => answer_entry(&common, reply, &attr),
            Err(FsError::NotFound) => {
                let mut out = Out::with_capacity(ENTRY_LEN);
                // What is not in a directory that never changes never will be.
                out.negative_entry(common.terms_of(parent).ttl);
                reply.out(&out);
            }
            Err(e) => reply.error(e),
        });
        Ok(())
    }

    pub(super) fn forget(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let nlookup = rq.body.u64()?;
        self.common.forget(rq.ino(), nlookup);
        rq.reply.none();
        Ok(())
    }

    pub(super) fn batch_forget(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let count = rq.body.u32()?;
        rq.body.skip(4)?;
        for _ in 0..count {
            let (ino, nlookup) = (ino_of(rq.body.u64()?), rq.body.u64()?);
            self.common.forget(ino, nlookup);
        }
        rq.reply.none();
        Ok(())
    }

    pub(super) fn mknod(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let (mode, rdev, umask) = (rq.body.u32()?, rq.body.u32()?, rq.body.u32()?);
        rq.body.skip(4)?;
        let name = rq.body.name()?;
        let made = self.fs.mknod(rq.caller(), rq.ino(), name, mode, umask, rdev);
        self.run_entry(rq.reply, made);
        Ok(())
    }

    pub(super) fn mkdir(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let (mode, umask) = (rq.body.u32()?, rq.body.u32()?);
        let name = rq.body.name()?;
        let made = self.fs.mkdir(rq.caller(), rq.ino(), name, mode, umask);
        self.run_entry(rq.reply, made);
        Ok(())
    }

    pub(super) fn symlink(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let name = rq.body.name()?;
        let target = rq.body.name()?;
        let made = self.fs.symlink(rq.caller(), rq.ino(), name, target);
        self.run_entry(rq.reply, made);
        Ok(())
    }

    pub(super) fn readlink(&self, rq: Request<'_>) -> Result<(), Malformed> {
        let target = self.fs.readlink(rq.ino());
        self.run(rq.reply, Interrupt::Allowed, target, |reply, target| {
            reply.data(&target);
        });
        Ok(())
    }

    pub(super) fn link(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let ino = ino_of(rq.body.u64()?);
        let name = rq.body.name()?;
        let made = self.fs.link(ino, rq.ino(), name);
        self.run_entry(rq.reply, made);
        Ok(())
    }

    pub(super) fn unlink(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let name = rq.body.name()?;
        let gone = self.fs.unlink(rq.ino(), name);
        self.run_unit(rq.reply, gone);
        Ok(())
    }

    pub(super) fn rmdir(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let name = rq.body.name()?;
        let gone = self.fs.rmdir(rq.ino(), name);
        self.run_unit(rq.reply, gone);
        Ok(())
    }

    pub(super) fn rename(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let to = Ino(rq.body.u64()?);
        self.rename_with(rq, to, 0)
    }

    pub(super) fn rename2(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let (to, flags) = (Ino(rq.body.u64()?), rq.body.u32()?);
        rq.body.skip(4)?;
        self.rename_with(rq, to, flags)
    }

    fn rename_with(&self, mut rq: Request<'_>, to: Ino, flags: u32) -> Result<(), Malformed> {
        let (name, new_name) = (rq.body.name()?, rq.body.name()?);
        // RENAME_WHITEOUT is for overlay file systems; without it they refuse us as upper
        // layer with a clear message, which is better than half of it.
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            rq.reply.error(Errno::INVALID);
            return Ok(());
        }
        let flags = RenameFlags {
            no_replace: flags & libc::RENAME_NOREPLACE != 0,
            exchange: flags & libc::RENAME_EXCHANGE != 0,
        };
        let moved = self.fs.rename(rq.ino(), name, to, new_name, flags);
        self.run_unit(rq.reply, moved);
        Ok(())
    }

    /// `open(2)` of a file that is there. Linux has checked the permissions; those of a snapshot are
    /// never written.
    pub(super) fn open(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let flags = rq.body.u32()? as i32;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        if writes && !self.fs.may_write(rq.ino()) {
            rq.reply.error(FsError::ReadOnly);
            return Ok(());
        }
        if writes && let Some(stores) = &self.stores {
            let writing = stores.begin(rq.ino());
            let ready = async move {
                writing.ready().await;
                Ok(writing)
            };
            self.run(rq.reply, Interrupt::Never, ready, |reply, writing| {
                let mut out = Out::with_capacity(16);
                out.open(WRITES, FOPEN_KEEP_CACHE);
                if reply.out(&out) {
                    writing.keep();
                }
            });
            return Ok(());
        }
        if flags & libc::O_DIRECT == 0 {
            self.store_opened(&rq);
        }
        let mut out = Out::with_capacity(16);
        out.open(READS, FOPEN_KEEP_CACHE);
        rq.reply.out(&out);
        Ok(())
    }

    /// `close(2)` of the last descriptor.
    pub(super) fn release(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        if rq.body.u64()? == WRITES
            && let Some(stores) = &self.stores
        {
            stores.end(rq.ino());
        }
        rq.reply.done();
        Ok(())
    }

    /// `open(2)` with `O_CREAT` of a name that Linux does not know.
    pub(super) fn create(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let flags = rq.body.u32()? as i32;
        let (mode, umask) = (rq.body.u32()?, rq.body.u32()?);
        rq.body.skip(4)?;
        let name = rq.body.name()?;
        let exclusive = flags & libc::O_EXCL != 0;
        let made = self.fs.create(rq.caller(), rq.ino(), name, mode, umask, exclusive);
        self.run_open(rq.reply, made, flags & libc::O_ACCMODE != libc::O_RDONLY);
        Ok(())
    }

    /// `open(dir, O_TMPFILE)`: a file without a name, which `linkat` may give it later.
    pub(super) fn tmpfile(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        rq.body.skip(4)?; // open flags
        let (mode, umask) = (rq.body.u32()?, rq.body.u32()?);
        let made = self.fs.tmpfile(rq.caller(), rq.ino(), mode, umask);
        self.run_open(rq.reply, made, true);
        Ok(())
    }

    /// Answers with a file that was made, and open.
    fn run_open<F>(&self, reply: Reply, made: F, writes: bool)
    where
        F: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let (common, stores) = (self.common.clone(), self.stores.clone().filter(|_| writes));
        let made = async move {
            let attr = made.await?;
            let writing = stores.map(|stores| stores.begin(attr.ino));
            if let Some(writing) = &writing {
                writing.ready().await; // the name may have been there already
            }
            Ok((attr, writing))
        };
        self.run(reply, Interrupt::Never, made, move |reply, (attr, writing)| {
            let mut out = Out::with_capacity(ENTRY_LEN + 16);
            let node = common.node(&attr, reply.device());
            let handle = if writing.is_some() { WRITES } else { READS };
            out.entry(node, &attr, common.terms()).open(handle, FOPEN_KEEP_CACHE);
            match reply.out(&out) {
                true => writing.into_iter().for_each(Writing::keep),
                false => common.forget(attr.ino, 1),
            }
        });
    }
}
