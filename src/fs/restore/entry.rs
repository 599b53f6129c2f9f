//! One file, or one directory, of a snapshot made again in the volume. Each file appears whole, in one
//! batch, which also puts it in the place of what had its name; so whoever looks meanwhile, and a crash
//! at any moment, finds the old file or the new one.

use std::sync::Arc;

use bytes::Bytes;

use super::super::copy::place;
use super::super::inode::{changed, now_into};
use super::super::{Attempt, Caller, Fs, FsError, State, Step};
use crate::base::{ContentsId, Ino};
use crate::commit::{Batch, DataOp, Lookup};
use crate::data::{Part, Source};
use crate::meta::{Dirent, Inode, Kind, MarkerRow, keys};

/// Extents, and bytes of attributes, with which a file is still made in one batch; a larger one is put
/// together without a name first.
const PARTS_MAX: usize = 512;
const XATTR_BYTES_MAX: usize = 128 << 10;
/// Bytes of a file that are compared at a time.
const WINDOW: u64 = 1 << 30;
/// Attributes that one scan brings.
const XATTRS_PER_SCAN: usize = 256;
/// Who restores: nobody's rights are asked.
const NOBODY: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// An attribute: name and value.
pub(in crate::fs) type Xattr = (Vec<u8>, Bytes);

/// A name in a directory of the volume.
pub(super) type Place<'a> = (Ino, &'a [u8]);

/// What a file of a snapshot is.
pub(super) struct Original {
    pub(super) ino: Ino,
    pub(super) inode: Inode,
    pub(super) xattrs: Vec<Xattr>,
}

/// Where the bytes of a file come from: an open snapshot, and its checkpoint.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) fs: Arc<Fs>,
    pub(super) checkpoint: [u8; 16],
}

impl Fs {
    /// The inode, from the store if need be.
    pub(in crate::fs) async fn inode_of(self: &Arc<Self>, ino: Ino) -> Result<Inode, FsError> {
        self.clone().consult(move |fs| fs.inode(ino)).await
    }

    /// What `name` in `parent` stands for.
    pub(in crate::fs) async fn entry_of(
        self: &Arc<Self>,
        (parent, name): Place<'_>,
    ) -> Result<Option<Dirent>, FsError> {
        let name = name.to_vec();
        self.clone().consult(move |fs| fs.dirent(parent, &name)).await
    }

    /// All attributes of an inode, in order.
    pub(in crate::fs) async fn xattrs_of(
        self: &Arc<Self>,
        ino: Ino,
        inode: &Inode,
    ) -> Result<Vec<Xattr>, FsError> {
        let mut found = Vec::new();
        if inode.xattrs == 0 {
            return Ok(found);
        }
        let (mut start, end) = keys::xattrs(ino);
        loop {
            let page = self.view.page(&start, &end, XATTRS_PER_SCAN, false).await?;
            found.extend(page.rows.into_iter().filter_map(|(key, value)| {
                Some((keys::xattr_of(&key)?.to_vec(), Bytes::copy_from_slice(&value)))
            }));
            match page.next {
                Some(next) => start = next,
                None => return Ok(found),
            }
        }
    }

    /// A file or directory with its attributes.
    pub(super) async fn original(self: &Arc<Self>, ino: Ino) -> Result<Original, FsError> {
        let inode = self.inode_of(ino).await?;
        let xattrs = self.xattrs_of(ino, &inode).await?;
        Ok(Original { ino, inode, xattrs })
    }

    /// Whether `ino` is what `original` is, but for its names and its change time: what is restored
    /// already need not be again.
    pub(super) async fn is_restored(
        self: &Arc<Self>,
        ino: Ino,
        origin: &Origin,
        original: &Original,
    ) -> Result<bool, FsError> {
        let inode = self.inode_of(ino).await?;
        if !same_attributes(&inode, &original.inode) {
            return Ok(false);
        }
        if self.xattrs_of(ino, &inode).await? != original.xattrs {
            return Ok(false);
        }
        if inode.kind != Kind::File {
            return Ok(inode.target == original.inode.target && inode.rdev == original.inode.rdev);
        }
        let mut at = 0;
        while at < inode.size {
            let end = inode.size.min(at + WINDOW);
            let now = self.parts_of(ino, at, end).await?;
            let then = origin.fs.parts_of(original.ino, at, end).await?;
            if !same_parts(&now, &then) {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }

    /// Makes `original`, which is no directory, again under the name `to`, in the place of what is
    /// there, if that is no directory. Returns its number.
    ///
    /// # Errors
    /// [`FsError::IsDir`]; [`FsError::Stale`]: the snapshot is being deleted.
    pub(super) async fn restore_file(
        self: &Arc<Self>,
        origin: &Origin,
        original: &Original,
        to: Place<'_>,
    ) -> Result<Ino, FsError> {
        let size = if original.inode.kind == Kind::File { original.inode.size } else { 0 };
        let parts = match size {
            0 => Vec::new(),
            _ => origin.fs.parts_of(original.ino, 0, size.min(WINDOW)).await?,
        };
        let xattr_bytes: usize = original.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        if size <= WINDOW && parts.len() <= PARTS_MAX && xattr_bytes <= XATTR_BYTES_MAX {
            let make = |fs: &Fs, state: &mut State| {
                fs.restore_at_once(state, &origin.checkpoint, original, &parts, to)
            };
            match self.clone().transact(make).await? {
                Some(ino) => return Ok(ino),
                None => log::debug!("a segment is being moved: its bytes are copied"),
            }
        }
        Box::pin(self.restore_in_pieces(origin, original, to)).await
    }

    /// All of a file in one batch. `None`: what it would share is on its way to another segment.
    fn restore_at_once(
        &self,
        state: &mut State,
        checkpoint: &[u8; 16],
        original: &Original,
        parts: &[Part],
        to: Place<'_>,
    ) -> Attempt<Option<Ino>> {
        let in_use = self.view.holders().use_snapshot(checkpoint).ok_or(FsError::Stale)?;
        let moving = self.view.sharing();
        let moves =
            |p: &Part| matches!(&p.source, Source::Segment { id, .. } if moving.contains(id));
        if parts.iter().any(moves) {
            return Ok(None);
        }
        let mut batch = Batch::default();
        let ino = state.inos.allocate(to.0, &mut batch);
        if original.inode.kind == Kind::File {
            batch.data.push(DataOp::Begin { ino, incarnation: 0 });
            let data = parts.iter().filter(|p| !matches!(p.source, Source::Hole));
            let file = ContentsId { ino, incarnation: 0 };
            place(&mut batch, file, &data.copied().collect::<Vec<_>>());
        }
        for (name, value) in &original.xattrs {
            batch.put_fresh(keys::xattr(ino, name), value.clone());
        }
        let mut inode = self.as_new(original);
        inode.nlink = 1;
        batch.put_fresh(keys::inode(ino), inode.encode());
        batch.inodes += 1;
        batch.bytes += inode.allocated as i64;
        let orphan = self.put_name(&mut batch, to, ino, inode.kind)?;
        self.submit(state, batch, &[])?;
        drop((moving, in_use));
        if let Some(orphan) = orphan {
            self.orphaned(state, orphan);
        }
        Ok(Some(ino))
    }

    /// The inode of `original` as one that is made now: it has no contents yet.
    fn as_new(&self, original: &Original) -> Inode {
        let parent = Ino(0);
        let xattrs = original.xattrs.len() as u32;
        let mut inode = Inode { incarnation: 0, parent, xattrs, ..original.inode.clone() };
        inode.ctime = self.clock.now();
        inode
    }

    /// Adds to `batch` that the name `to` leads to `ino`, in the place of what it leads to. Returns what
    /// has no name any more and is in use.
    fn put_name(
        &self,
        batch: &mut Batch,
        (parent, name): Place<'_>,
        ino: Ino,
        kind: Kind,
    ) -> Attempt<Option<Ino>> {
        let mut dir = self.directory(parent)?;
        if dir.nlink == 0 {
            return Err(FsError::NotFound.into());
        }
        let now = self.clock.now();
        let before = self.dirent(parent, name)?;
        let key = self.dirent_key(parent, name);
        let entry = Dirent { ino, kind }.encode();
        let mut orphan = None;
        match before {
            None => {
                batch.put_fresh(key, entry);
                dir.size += 1;
            }
            Some(Dirent { kind: Kind::Dir, .. }) => return Err(FsError::IsDir.into()),
            Some(before) => {
                batch.put(key, entry);
                let mut old = self.inode(before.ino)?;
                orphan = self.drop_link(batch, before.ino, &mut old, now).then_some(before.ino);
            }
        }
        now_into(&mut dir, now);
        batch.put(keys::inode(parent), dir.encode());
        Ok(orphan)
    }

    /// A file of many extents, or many attributes: put together without a name, then named.
    async fn restore_in_pieces(
        self: &Arc<Self>,
        origin: &Origin,
        original: &Original,
        to: Place<'_>,
    ) -> Result<Ino, FsError> {
        let begin = |fs: &Fs, state: &mut State| {
            let mut batch = Batch::default();
            let ino = state.inos.allocate(to.0, &mut batch);
            let inode = Inode { nlink: 0, xattrs: 0, size: 0, allocated: 0, ..fs.as_new(original) };
            if inode.kind == Kind::File {
                batch.data.push(DataOp::Begin { ino, incarnation: 0 });
            }
            batch.put_fresh(keys::inode(ino), inode.encode());
            batch.put_fresh(keys::orphan(ino), MarkerRow::encode());
            batch.inodes += 1;
            fs.submit(state, batch, &[])?;
            fs.lookups.add(ino);
            fs.orphaned(state, ino);
            Ok(ino)
        };
        let ino = self.clone().transact(begin).await?;
        let done = self.fill_and_name(origin, original, ino, to).await;
        self.forget(ino, 1); // without a name it goes
        done.map(|()| ino)
    }

    async fn fill_and_name(
        self: &Arc<Self>,
        origin: &Origin,
        original: &Original,
        ino: Ino,
        to: Place<'_>,
    ) -> Result<(), FsError> {
        let size = if original.inode.kind == Kind::File { original.inode.size } else { 0 };
        let mut done = 0;
        while done < size {
            let source = (origin.fs.clone(), origin.checkpoint);
            let (from, at) = ((original.ino, done), (ino, done));
            match self.copy_from(NOBODY, source, from, at, size - done).await? {
                0 => return Err(FsError::Io("a file of a snapshot ends early".into())),
                copied => done += copied,
            }
        }
        let mut rest = &original.xattrs[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let some = rest.iter().take_while(|(name, value)| {
                let first = bytes == 0;
                bytes += name.len() + value.len();
                first || bytes <= XATTR_BYTES_MAX
            });
            let (some, more) = rest.split_at(some.count());
            let put = |fs: &Fs, state: &mut State| {
                let mut batch = Batch::default();
                let mut inode = fs.inode(ino)?;
                inode.xattrs += some.len() as u32;
                for (name, value) in some {
                    batch.put_fresh(keys::xattr(ino, name), value.clone());
                }
                batch.put(keys::inode(ino), inode.encode());
                fs.submit(state, batch, &[])
            };
            self.clone().transact(put).await?;
            rest = more;
        }
        let name = |fs: &Fs, state: &mut State| {
            let mut batch = Batch::default();
            let before = fs.inode(ino)?;
            let inode = Inode { nlink: 1, incarnation: before.incarnation, ..fs.as_new(original) };
            batch.bytes += inode.allocated as i64 - before.allocated as i64;
            batch.put(keys::inode(ino), inode.encode());
            batch.delete(keys::orphan(ino));
            let orphan = fs.put_name(&mut batch, to, ino, inode.kind)?;
            fs.submit(state, batch, &[])?;
            fs.adopted(ino);
            if let Some(orphan) = orphan {
                fs.orphaned(state, orphan);
            }
            Ok(())
        };
        self.clone().transact(name).await
    }

    /// Gives `ino`, which is no directory, one more name, in the place of what has it.
    pub(super) async fn restore_link(
        self: &Arc<Self>,
        ino: Ino,
        to: Place<'_>,
    ) -> Result<(), FsError> {
        let link = |fs: &Fs, state: &mut State| {
            let mut batch = Batch::default();
            let mut inode = fs.inode(ino)?;
            if inode.nlink == 0 {
                return Err(FsError::NotFound.into());
            }
            inode.nlink += 1;
            changed(&mut inode, fs.clock.now());
            batch.put(keys::inode(ino), inode.encode());
            let orphan = fs.put_name(&mut batch, to, ino, inode.kind)?;
            fs.submit(state, batch, &[])?;
            if let Some(orphan) = orphan {
                fs.orphaned(state, orphan);
            }
            Ok(())
        };
        self.clone().transact(link).await
    }

    /// Makes a directory under a name that is free, as `original` but for its attributes and times,
    /// which it gets when what is in it is there ([`Fs::restore_attributes`]). Nobody but its owner may
    /// look into it until then.
    pub(super) async fn restore_dir(
        self: &Arc<Self>,
        original: &Original,
        to: Place<'_>,
    ) -> Result<Ino, FsError> {
        let make = |fs: &Fs, state: &mut State| {
            let (parent, name) = to;
            let mut dir = fs.directory(parent)?;
            if dir.nlink == 0 {
                return Err(FsError::NotFound.into());
            }
            if fs.dirent(parent, name)?.is_some() {
                return Err(FsError::Exists.into());
            }
            let mut batch = Batch::default();
            let ino = state.inos.allocate(parent, &mut batch);
            let (size, nlink) = (0, 2);
            let inode =
                Inode { parent, size, nlink, xattrs: 0, perm: 0o700, ..fs.as_new(original) };
            batch.put_fresh(keys::inode(ino), inode.encode());
            batch.inodes += 1;
            fs.add_entry(&mut batch, parent, &mut dir, name, ino, Kind::Dir, fs.clock.now());
            batch.put(keys::inode(parent), dir.encode());
            fs.submit(state, batch, &[])?;
            Ok(ino)
        };
        self.clone().transact(make).await
    }

    /// Gives directory `ino` the owner, mode, times and attributes of `original`; false if it has them.
    pub(super) async fn restore_attributes(
        self: &Arc<Self>,
        ino: Ino,
        original: &Original,
    ) -> Result<bool, FsError> {
        let now = self.inode_of(ino).await?;
        let has = self.xattrs_of(ino, &now).await?;
        if same_attributes(&now, &original.inode) && has == original.xattrs {
            return Ok(false);
        }
        let set = |fs: &Fs, state: &mut State| -> Result<(), Step> {
            let mut batch = Batch::default();
            let mut inode = fs.inode(ino)?;
            let o = &original.inode;
            (inode.perm, inode.uid, inode.gid) = (o.perm, o.uid, o.gid);
            (inode.atime, inode.mtime, inode.btime) = (o.atime, o.mtime, o.btime);
            changed(&mut inode, fs.clock.now());
            inode.xattrs = original.xattrs.len() as u32;
            let stay = |name: &[u8]| original.xattrs.iter().any(|(n, _)| n == name);
            for (name, _) in has.iter().filter(|(name, _)| !stay(name)) {
                batch.delete(keys::xattr(ino, name));
            }
            for (name, value) in &original.xattrs {
                batch.put(keys::xattr(ino, name), value.clone());
            }
            batch.put(keys::inode(ino), inode.encode());
            fs.submit(state, batch, &[])?;
            Ok(())
        };
        self.clone().transact(set).await?;
        Ok(true)
    }

    /// Whether `name` in the directory is there, as far as memory can tell.
    pub(super) fn has_entry_now(&self, parent: Ino, name: &[u8]) -> Option<bool> {
        match self.view.get_now(&self.dirent_key(parent, name)) {
            Lookup::Hit(row) => Some(row.is_some()),
            Lookup::Miss => None,
        }
    }
}

/// Whether two inodes look the same to who has neither changed: but for number, names, change time
/// and where contents are.
pub(super) fn same_attributes(a: &Inode, b: &Inode) -> bool {
    let size = |i: &Inode| if i.kind == Kind::Dir { 0 } else { i.size };
    let of =
        |i: &Inode| (i.kind, i.perm, i.uid, i.gid, size(i), i.mtime, i.atime, i.btime, i.xattrs);
    of(a) == of(b)
}

/// Whether two lists of parts, of one range, say the same: neither has to be cut at the same places.
fn same_parts(a: &[Part], b: &[Part]) -> bool {
    let joined = |parts: &[Part]| {
        let mut out: Vec<Part> = Vec::with_capacity(parts.len());
        for part in parts {
            match out.last_mut() {
                Some(last) if goes_on(last, part) => last.end = part.end,
                _ => out.push(*part),
            }
        }
        out
    };
    let (a, b) = (joined(a), joined(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same_part(a, b))
}

fn goes_on(last: &Part, part: &Part) -> bool {
    match (&last.source, &part.source) {
        (Source::Hole, Source::Hole) => true,
        (Source::Segment { id: a, offset }, Source::Segment { id: b, offset: next }) => {
            a == b && offset + (last.end - last.start) == *next
        }
        _ => false,
    }
}

fn same_part(a: &Part, b: &Part) -> bool {
    let places = (a.start, a.end) == (b.start, b.end);
    places
        && match (&a.source, &b.source) {
            (Source::Hole, Source::Hole) => true,
            (Source::Segment { id: a, offset: at }, Source::Segment { id: b, offset }) => {
                a == b && at == offset
            }
            _ => false,
        }
}
