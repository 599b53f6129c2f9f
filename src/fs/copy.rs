//! `copy_file_range`: the copy shares what the source has, in the bucket or still in the journal, and
//! moves no bytes. `cp` of coreutils 9 asks for it.
//!
//! What is journalled is which range of which file is shared: replay finds the same bytes there, even
//! if they have been committed or moved to another segment since. Bytes are read and written only for
//! what is on its way from one segment to another at this moment.
//!
//! Out of a snapshot ([`Fs::copy_from`]) it is journalled where the bytes are: what a snapshot has stays
//! where it is.

use std::ops::Range;
use std::sync::Arc;

use super::contents::WRITE_BYTES_MAX;
use super::inode::{SetIdChange, clear_set_id, keeps_set_id, now_into};
use super::{Attempt, Caller, Fs, FsError, State, Step, WriteFlags};
use crate::base::{ContentsId, Ino};
use crate::commit::{Batch, CloneSource, DataOp, Lookup};
use crate::data::{Part, Source};
use crate::meta::{FILE_SIZE_MAX, keys};

/// The most that one record shares, and the least that is tried where what is known of the source's
/// extents does not stay in memory.
const SHARE_BYTES_MAX: u64 = 1 << 30;
const SHARE_BYTES_MIN: u64 = 1 << 20;
/// The most extents that one record shares; the next record goes on. Their rows come with one commit,
/// which is kept small.
const SHARE_PARTS_MAX: usize = 1024;
/// The most that one `copy_file_range` copies where bytes have to be read and written.
const COPY_BYTES_MAX: u64 = 16 << 20;
/// Tries to bring the extents of a range of a snapshot into memory.
const LOADS_MAX: u32 = 16;

/// What is copied, and to where.
#[derive(Clone, Copy)]
struct Copy {
    caller: Caller,
    from: Ino,
    offset_in: u64,
    to: Ino,
    offset_out: u64,
    len: u64,
}

impl Copy {
    /// What of it is left when `done` bytes are copied.
    fn behind(self, done: u64) -> Copy {
        Copy {
            offset_in: self.offset_in + done,
            offset_out: self.offset_out + done,
            len: self.len - done,
            ..self
        }
    }
}

/// How far one try came.
enum Shared {
    /// So many bytes are shared now.
    Bytes(u64),
    /// So many from here on are being moved.
    Moving(u64),
}

impl Fs {
    /// `copy_file_range(2)`: copies up to `len` bytes and returns how many, 0 at the end of
    /// the source.
    ///
    /// # Errors
    /// [`FsError::Invalid`] if the ranges overlap in one file, [`FsError::FileTooBig`], and those of
    /// reading and writing.
    pub fn copy_file_range(
        self: &Arc<Self>,
        caller: Caller,
        ino_in: Ino,
        offset_in: u64,
        ino_out: Ino,
        offset_out: u64,
        len: u64,
    ) -> impl Future<Output = Result<u64, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            // What the source holds now: a copy within one file must not follow its own end.
            let size = fs.clone().consult(move |fs| Ok(fs.file(ino_in)?.size)).await?;
            let len = len.min(size.saturating_sub(offset_in));
            let overlaps = offset_in < offset_out.saturating_add(len)
                && offset_out < offset_in.saturating_add(len);
            if ino_in == ino_out && overlaps {
                return Err(FsError::Invalid);
            }
            if len > 0 && offset_out >= FILE_SIZE_MAX {
                return Err(FsError::FileTooBig);
            }
            let len = len.min(FILE_SIZE_MAX.saturating_sub(offset_out));
            let copy = Copy { caller, from: ino_in, offset_in, to: ino_out, offset_out, len };
            let (mut done, mut moved) = (0, 0);
            while done < len {
                let rest = copy.behind(done);
                let mut misses = 0;
                let share = move |fs: &Fs, state: &mut State| fs.share(state, rest, &mut misses);
                let copied = match fs.clone().transact(share).await {
                    Ok(Shared::Bytes(copied)) => copied,
                    Ok(Shared::Moving(_)) if moved >= COPY_BYTES_MAX => break,
                    Ok(Shared::Moving(bytes)) => {
                        let piece = Copy { len: bytes.min(WRITE_BYTES_MAX as u64), ..rest };
                        let copied = fs.copy_bytes(&fs, piece).await?;
                        moved += copied;
                        copied
                    }
                    // As of a write: what was copied counts.
                    Err(_) if done > 0 => break,
                    Err(e) => return Err(e),
                };
                match copied {
                    0 => break, // the source became shorter
                    copied => done += copied,
                }
            }
            Ok(done)
        }
    }

    /// [`Fs::copy_file_range`] out of a snapshot, which is open as `source` and has this checkpoint. The
    /// copy shares what it has; but of a snapshot that is being deleted, and of what is on its way to
    /// another segment, bytes are read and written.
    ///
    /// # Errors
    /// As of [`Fs::copy_file_range`].
    pub(super) async fn copy_from(
        self: &Arc<Self>,
        caller: Caller,
        (source, checkpoint): (Arc<Fs>, [u8; 16]),
        (from, offset_in): (Ino, u64),
        (to, offset_out): (Ino, u64),
        len: u64,
    ) -> Result<u64, FsError> {
        let size = source.clone().consult(move |fs| Ok(fs.file(from)?.size)).await?;
        let len = len.min(size.saturating_sub(offset_in));
        if len > 0 && offset_out >= FILE_SIZE_MAX {
            return Err(FsError::FileTooBig);
        }
        let len = len.min(FILE_SIZE_MAX.saturating_sub(offset_out));
        let copy = Copy { caller, from, offset_in, to, offset_out, len };
        let (mut done, mut moved) = (0, 0);
        while done < len {
            match self.copy_some_from(&source, &checkpoint, copy.behind(done), &mut moved).await {
                Ok(0) => break,
                Ok(copied) => done += copied,
                // As of a write: what was copied counts.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Shares or copies the beginning of `copy`; `moved` counts bytes that were copied.
    async fn copy_some_from(
        self: &Arc<Self>,
        source: &Arc<Fs>,
        checkpoint: &[u8; 16],
        copy: Copy,
        moved: &mut u64,
    ) -> Result<u64, FsError> {
        let end = copy.offset_in + copy.len.min(SHARE_BYTES_MAX);
        let mut parts = source.parts_of(copy.from, copy.offset_in, end).await?;
        parts.truncate(SHARE_PARTS_MAX);
        let share = |fs: &Fs, state: &mut State| fs.share_placed(state, copy, &parts, checkpoint);
        match self.clone().transact(share).await? {
            Shared::Bytes(copied) => Ok(copied),
            Shared::Moving(_) if *moved >= COPY_BYTES_MAX => Ok(0),
            Shared::Moving(bytes) => {
                let piece = Copy { len: bytes.min(WRITE_BYTES_MAX as u64), ..copy };
                let copied = self.copy_bytes(source, piece).await?;
                *moved += copied;
                Ok(copied)
            }
        }
    }

    /// Where `start..end` of a file is, on a file system that only reads.
    pub(super) async fn parts_of(
        self: &Arc<Self>,
        ino: Ino,
        start: u64,
        end: u64,
    ) -> Result<Vec<Part>, FsError> {
        let file = self.clone().consult(move |fs| Ok(fs.file(ino)?.contents(ino))).await?;
        for _ in 0..LOADS_MAX {
            if let Lookup::Hit(parts) = self.view.parts_now(file, start, end) {
                return Ok(parts);
            }
            self.view.load_extents(file, start, end).await?;
        }
        Err(FsError::Io(format!("the extents of inode {ino} do not stay in memory")))
    }

    /// Shares the beginning of `copy` with a snapshot, in which it is `parts`.
    fn share_placed(
        &self,
        state: &mut State,
        copy: Copy,
        parts: &[Part],
        checkpoint: &[u8; 16],
    ) -> Attempt<Shared> {
        // From here to the end of the append nothing moves and the snapshot is not deleted.
        let in_use = self.view.holders().use_snapshot(checkpoint);
        let moving = self.view.sharing();
        let may_not = |p: &Part| match &p.source {
            Source::Segment { id, .. } => in_use.is_none() || moving.contains(id),
            _ => false,
        };
        let parts = match parts.iter().position(may_not) {
            Some(0) => return Ok(Shared::Moving(parts[0].end - parts[0].start)),
            Some(first) => &parts[..first],
            None => parts,
        };
        let len = parts.last().map_or(copy.offset_in, |p| p.end) - copy.offset_in;
        if len == 0 {
            return Ok(Shared::Bytes(0));
        }
        let mut inode = self.file(copy.to)?;
        let before = inode.allocated;
        let mut batch = Batch::default();
        let (ino, offset) = (copy.to, copy.offset_out);
        let file = inode.contents(ino);
        clear_set_id(&mut inode, copy.caller, SetIdChange::Contents);
        self.drop_capability(&mut batch, ino, &mut inode)?;
        self.count_cloned(file, &mut inode, offset..offset + len, parts)?;
        inode.size = inode.size.max(offset + len);
        now_into(&mut inode, self.clock.now());
        place(&mut batch, file, &self::moved(parts, &(offset..offset + len)));
        batch.bytes += inode.allocated as i64 - before as i64;
        batch.put(keys::inode(ino), inode.encode());
        self.submit(state, batch, &[])?;
        Ok(Shared::Bytes(len))
    }

    /// Reads a piece of a file of `source` and writes it.
    async fn copy_bytes(self: &Arc<Self>, source: &Arc<Fs>, copy: Copy) -> Result<u64, FsError> {
        let Copy { caller, from, offset_in, to, offset_out, len } = copy;
        let keeps_bits = move |fs: &Fs| Ok(keeps_set_id(&fs.inode(to)?, caller));
        let keeps_bits = self.clone().consult(keeps_bits).await?;
        let kill_suidgid = (!keeps_bits).then_some(caller);
        let flags = WriteFlags { kill_suidgid, ..WriteFlags::default() };
        let data = source.read(from, offset_in, len as u32).await?;
        if data.is_empty() {
            return Ok(0);
        }
        self.write(to, offset_out, data, flags).await.map(u64::from)
    }

    /// Shares the beginning of `copy`, as much as one record may. `misses` counts how often its
    /// extents were not in memory.
    fn share(&self, state: &mut State, copy: Copy, misses: &mut u32) -> Attempt<Shared> {
        let source = self.file(copy.from)?;
        // Twice at each size: a commit may retire what was loaded.
        let most = (SHARE_BYTES_MAX >> (*misses / 2).min(10)).max(SHARE_BYTES_MIN);
        let end = copy.offset_in.saturating_add(copy.len.min(most)).min(source.size);
        if copy.offset_in >= end {
            return Ok(Shared::Bytes(0));
        }
        let file = source.contents(copy.from);
        // From here to the end of the append nothing moves and no record is released.
        let moving = self.view.sharing();
        let mut parts = match self.view.parts_now(file, copy.offset_in, end) {
            Lookup::Hit(parts) => parts,
            Lookup::Miss => {
                *misses += 1;
                return Err(Step::Range(file, copy.offset_in, end));
            }
        };
        parts.truncate(SHARE_PARTS_MAX);
        let moves =
            |p: &Part| matches!(&p.source, Source::Segment { id, .. } if moving.contains(id));
        let still = parts.iter().position(moves);
        match still {
            Some(0) => return Ok(Shared::Moving(parts[0].end - parts[0].start)),
            Some(first) => parts.truncate(first),
            None => {}
        }
        let len = parts.last().map_or(copy.offset_in, |p| p.end) - copy.offset_in;
        let mut inode = self.file(copy.to)?;
        let before = inode.allocated;
        let (ino, incarnation, offset) = (copy.to, inode.incarnation, copy.offset_out);
        let mut batch = Batch::default();
        clear_set_id(&mut inode, copy.caller, SetIdChange::Contents);
        self.drop_capability(&mut batch, ino, &mut inode)?;
        self.count_cloned(inode.contents(ino), &mut inode, offset..offset + len, &parts)?;
        inode.size = inode.size.max(offset + len);
        now_into(&mut inode, self.clock.now());
        let from = CloneSource {
            ino: file.ino,
            incarnation: file.incarnation,
            offset: copy.offset_in,
            len,
        };
        batch.data.push(DataOp::Clone { ino, incarnation, offset, from });
        batch.bytes += inode.allocated as i64 - before as i64;
        batch.put(keys::inode(ino), inode.encode());
        self.submit_cloned(state, batch, &parts)?;
        Ok(Shared::Bytes(len))
    }
}

/// Adds to `batch` that a file has `parts` of a snapshot, which are where they begin in the file.
pub(super) fn place(batch: &mut Batch, file: ContentsId, parts: &[Part]) {
    let ContentsId { ino, incarnation } = file;
    batch.data.extend(parts.iter().map(|part| match part.source {
        Source::Segment { id, offset: at } => {
            let (offset, len) = (part.start, part.end - part.start);
            DataOp::Place { ino, incarnation, offset, len, segment: id, at }
        }
        _ => DataOp::Hole { ino, incarnation, start: part.start, end: part.end },
    }));
}

/// `parts` of a source, moved so that they begin at `to.start`: what `to` is made of.
pub(super) fn moved(parts: &[Part], to: &Range<u64>) -> Vec<Part> {
    let from = parts.first().map_or(0, |p| p.start);
    let at = |offset: u64| to.start + (offset - from);
    parts.iter().map(|p| Part { start: at(p.start), end: at(p.end), ..*p }).collect()
}
