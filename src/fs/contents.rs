//! Changing contents: write and fallocate; and finding data and holes.

use std::sync::Arc;

use bytes::Bytes;

use super::inode::{SetIdChange, clear_set_id, now_into};
use super::{Attempt, Caller, Fs, FsError, State, Step, Whence, WriteFlags};
use crate::base::{Ino, JournalPos};
use crate::commit::{Batch, DataOp, Lookup};
use crate::data::Source;
use crate::meta::{FILE_SIZE_MAX, Inode, Kind, keys};

/// The most that one journal record carries of file data.
pub(super) const WRITE_BYTES_MAX: usize = 1 << 20;
/// How much of a file `lseek` looks at first; it grows over holes.
const SEEK_WINDOW: u64 = 64 << 20;
/// Tries of one window.
const SEEK_MISSES_MAX: u32 = 64;

impl Fs {
    /// Writes `data` at `offset`. Returns the number of bytes, always all of them.
    ///
    /// # Errors
    /// [`FsError::FileTooBig`], [`FsError::NoSpace`] if the journal stays full for
    /// `full_timeout`, [`FsError::Io`] if the journal fails.
    pub fn write(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<u32, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            let mut at = 0;
            loop {
                let piece = data.slice(at..data.len().min(at + WRITE_BYTES_MAX));
                let to = offset.checked_add(at as u64).ok_or(FsError::FileTooBig)?;
                let len = piece.len();
                let pos = fs
                    .clone()
                    .transact(move |fs, state| fs.write_attempt(state, ino, to, &piece, flags))
                    .await?;
                at += len;
                if at == data.len() {
                    fs.settle(pos, flags)?;
                    return Ok(at as u32);
                }
            }
        }
    }

    /// [`Fs::write`] without waiting for anything but the local disk; `None`: it cannot.
    pub fn write_now(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Option<Result<u32, FsError>> {
        if data.len() > WRITE_BYTES_MAX || self.is_read_only() {
            return None;
        }
        let written = {
            let mut state = self.state.lock();
            self.write_attempt(&mut state, ino, offset, data, flags)
        };
        match written {
            Ok(pos) => Some(self.settle(pos, flags).map(|()| data.len() as u32)),
            Err(Step::Fail(e)) => Some(Err(e)),
            Err(_) => None,
        }
    }

    fn settle(&self, pos: JournalPos, flags: WriteFlags) -> Result<(), FsError> {
        match self.role.half() {
            Some(half) if flags.sync => Ok(half.journal.sync(pos)?),
            _ => Ok(()),
        }
    }

    /// The inode of a regular file, to change its contents.
    pub(super) fn file(&self, ino: Ino) -> Attempt<Inode> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::File => Ok(inode),
            Kind::Dir => Err(FsError::IsDir.into()),
            _ => Err(FsError::Invalid.into()),
        }
    }

    fn write_attempt(
        &self,
        state: &mut State,
        ino: Ino,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Attempt<JournalPos> {
        let mut inode = self.file(ino)?;
        let end = match offset.checked_add(data.len() as u64) {
            Some(end) if end <= FILE_SIZE_MAX => end,
            _ => return Err(FsError::FileTooBig.into()),
        };
        if data.is_empty() {
            return Ok(JournalPos(0));
        }
        let before = inode.clone();
        let mut batch = Batch::default();
        if let Some(caller) = flags.kill_suidgid {
            clear_set_id(&mut inode, caller, SetIdChange::ContentsUnprivileged);
        }
        self.drop_capability(&mut batch, ino, &mut inode)?;
        self.count_written(inode.contents(ino), &mut inode, offset..end)?;
        inode.size = inode.size.max(end);
        if !flags.cached {
            now_into(&mut inode, self.clock.now());
        }
        let (incarnation, len) = (inode.incarnation, data.len() as u32);
        batch.data.push(DataOp::Write { ino, incarnation, offset, len });
        if inode != before {
            batch.bytes += inode.allocated as i64 - before.allocated as i64;
            batch.put(keys::inode(ino), inode.encode());
        }
        self.submit(state, batch, &[data])
    }

    /// `fallocate(2)`: mode 0 (and `FALLOC_FL_KEEP_SIZE`), `FALLOC_FL_PUNCH_HOLE`,
    /// `FALLOC_FL_ZERO_RANGE`. Space is never reserved: the bucket has no limit, and what the
    /// journal takes is decided when it is written. A quota must have room for it now.
    ///
    /// # Errors
    /// [`FsError::Unsupported`] for other modes, [`FsError::Invalid`] for an empty range,
    /// [`FsError::FileTooBig`].
    pub fn fallocate(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| {
            const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
            const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
            const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
            if mode & !(KEEP | PUNCH | ZERO) != 0 || mode & PUNCH != 0 && mode & KEEP == 0 {
                return Err(FsError::Unsupported.into());
            }
            if len == 0 {
                return Err(FsError::Invalid.into());
            }
            let end = match offset.checked_add(len) {
                Some(end) if end <= FILE_SIZE_MAX => end,
                _ => return Err(FsError::FileTooBig.into()),
            };
            let mut inode = fs.file(ino)?;
            if mode & PUNCH == 0 && fs.quota().bytes > 0 {
                let lacking = fs.lacking(inode.contents(ino), &inode, &(offset..end))?;
                fs.room_for(i64::try_from(lacking).unwrap_or(i64::MAX), 0)?;
            }
            let before = inode.allocated;
            let mut batch = Batch::default();
            clear_set_id(&mut inode, caller, SetIdChange::Contents);
            fs.drop_capability(&mut batch, ino, &mut inode)?;
            if mode & (PUNCH | ZERO) != 0 {
                let (incarnation, stop) = (inode.incarnation, end.min(inode.size));
                if offset < stop {
                    batch.data.push(DataOp::Hole { ino, incarnation, start: offset, end: stop });
                    fs.count_hole(inode.contents(ino), &mut inode, offset..stop)?;
                }
            }
            if mode & KEEP == 0 {
                inode.size = inode.size.max(end);
            }
            now_into(&mut inode, fs.clock.now());
            batch.bytes += inode.allocated as i64 - before as i64;
            batch.put(keys::inode(ino), inode.encode());
            fs.submit(state, batch, &[])?;
            Ok(())
        })
    }

    /// `lseek` with `SEEK_DATA` or `SEEK_HOLE`: the first position from `offset` on that is
    /// data, or a hole (the end of the file is one).
    ///
    /// # Errors
    /// [`FsError::NoSuchOffset`] at or behind the end, or if only a hole follows.
    pub fn lseek(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        whence: Whence,
    ) -> impl Future<Output = Result<u64, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            let inode = fs.clone().consult(move |fs| fs.file(ino)).await?;
            let file = inode.contents(ino);
            if offset >= inode.size {
                return Err(FsError::NoSuchOffset);
            }
            let (mut at, mut window) = (offset, SEEK_WINDOW);
            let mut misses = 0;
            while at < inode.size {
                let end = inode.size.min(at.saturating_add(window));
                let parts = match fs.view.parts_now(file, at, end) {
                    Lookup::Hit(parts) => parts,
                    Lookup::Miss => {
                        // Truncated to nothing in between: the bucket knows nothing of it.
                        if fs.file(ino).is_ok_and(|now| now.incarnation != inode.incarnation) {
                            return Err(FsError::NoSuchOffset);
                        }
                        if misses == SEEK_MISSES_MAX {
                            let why = "the extents of a file do not stay in memory";
                            return Err(FsError::Io(why.into()));
                        }
                        misses += 1;
                        fs.view.load_extents(file, at, end).await?;
                        // A commit may retire the file's extents in between: look again. Or
                        // there are more than the cache takes: then look at fewer.
                        if misses % 4 == 0 {
                            window = (window / 8).max(SEEK_WINDOW / 64);
                        }
                        continue;
                    }
                };
                let wanted =
                    |source: &Source| matches!(source, Source::Hole) == (whence == Whence::Hole);
                if let Some(part) = parts.iter().find(|p| wanted(&p.source)) {
                    return Ok(part.start);
                }
                at = end;
                misses = 0;
                window = window.saturating_mul(8);
            }
            match whence {
                Whence::Hole => Ok(inode.size),
                Whence::Data => Err(FsError::NoSuchOffset),
            }
        }
    }
}
