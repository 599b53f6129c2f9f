//! Names: lookup, create, link, unlink, rename.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Attempt, Attr, Caller, Fs, FsError, RenameFlags, State, Step, check_name,
    inode::{SETGID, changed, now_into},
};
use crate::base::Ino;
use crate::commit::{Batch, DataOp};
use crate::meta::{Dirent, Inode, Kind, LINK_MAX, SYMLINK_MAX, keys};

/// What is to be created.
struct NewInode {
    kind: Kind,
    perm: u16,
    rdev: u32,
    target: Bytes,
}

/// Directories between one and the root: more are a circle, which must not hang every writer.
const DEPTH_MAX: usize = 1_000_000;

/// A name in a directory.
struct Entry<'a> {
    dir: Ino,
    name: &'a [u8],
    /// What it leads to.
    is: Dirent,
}

impl Fs {
    /// The inode that `name` in `parent` stands for; counts one lookup. `.` stands for `parent`
    /// itself, whatever its kind and whether or not the kernel knows it: that is how a file handle
    /// (`open_by_handle_at(2)`, NFS) comes back, also after a remount.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDir`], [`FsError::NameTooLong`],
    /// [`FsError::Stale`] if the inode is gone.
    pub fn lookup(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            if name == b"." {
                return fs.lookup_handle(parent).await;
            }
            let attr = fs
                .clone()
                .consult(move |fs| {
                    let ino = match &name[..] {
                        b".." => fs.above(parent)?,
                        _ => {
                            fs.directory(parent)?;
                            check_name(&name)?;
                            fs.dirent(parent, &name)?.ok_or(FsError::NotFound)?.ino
                        }
                    };
                    Ok(Attr::of(ino, &fs.existing(ino)?))
                })
                .await?;
            fs.lookups.add(attr.ino);
            Ok(attr)
        }
    }

    /// The inode `ino`, which the kernel may not know. Counted before it is looked at: whoever
    /// removes its last name meanwhile then leaves an orphan to this lookup.
    async fn lookup_handle(self: Arc<Self>, ino: Ino) -> Result<Attr, FsError> {
        self.lookups.add(ino);
        let found = self.clone().consult(move |fs| Ok(Attr::of(ino, &fs.named(ino)?))).await;
        if found.is_err() {
            self.forget(ino, 1);
        }
        found
    }

    /// An inode that something has led to; [`FsError::Stale`] if it is gone.
    fn existing(&self, ino: Ino) -> Attempt<Inode> {
        match self.inode(ino) {
            Err(Step::Fail(FsError::NotFound)) => Err(FsError::Stale.into()),
            other => other,
        }
    }

    /// An inode that has a name; [`FsError::Stale`] if not. One without a name that is still open
    /// the kernel knows, and does not ask for.
    fn named(&self, ino: Ino) -> Attempt<Inode> {
        let inode = self.existing(ino)?;
        if inode.nlink == 0 { Err(FsError::Stale.into()) } else { Ok(inode) }
    }

    /// The directory above directory `ino`.
    fn above(&self, ino: Ino) -> Attempt<Ino> {
        let dir = self.named(ino)?;
        if dir.kind == Kind::Dir { Ok(dir.parent) } else { Err(FsError::NotDir.into()) }
    }

    /// Adds to `batch` a new inode of `new` with `nlink` links, owned as POSIX says for
    /// `caller` and `dir`, and returns it.
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller per kind; a struct would only rename them"
    )]
    fn new_inode(
        &self,
        state: &mut State,
        batch: &mut Batch,
        caller: Caller,
        parent: Ino,
        dir: &Inode,
        new: &NewInode,
        nlink: u32,
    ) -> (Ino, Inode) {
        let inherits_group = dir.perm & SETGID != 0;
        let mut perm = new.perm;
        if inherits_group && new.kind == Kind::Dir {
            perm |= SETGID;
        }
        let gid = if inherits_group { dir.gid } else { caller.gid };
        let inode = Inode {
            nlink,
            rdev: new.rdev,
            size: new.target.len() as u64,
            parent: if new.kind == Kind::Dir { parent } else { Ino(0) },
            target: new.target.clone(),
            ..Inode::new(new.kind, perm, caller.uid, gid, self.clock.now())
        };
        let ino = state.inos.allocate(parent, batch);
        if new.kind == Kind::File {
            batch.data.push(DataOp::Begin { ino, incarnation: 0 });
        }
        batch.inodes += 1;
        (ino, inode)
    }

    fn create_attempt(
        &self,
        state: &mut State,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        umask: u32,
        new: &NewInode,
    ) -> Attempt<Attr> {
        check_name(name)?;
        let mut dir = self.directory(parent)?;
        if dir.nlink == 0 {
            return Err(FsError::NotFound.into());
        }
        if self.dirent(parent, name)?.is_some() {
            return Err(FsError::Exists.into());
        }
        let acl = self.inherited_acl(parent, &dir, new.kind, new.perm, umask)?;
        let mut batch = Batch::default();
        let new = NewInode { perm: acl.perm, target: new.target.clone(), ..*new };
        let nlink = if new.kind == Kind::Dir { 2 } else { 1 };
        let (ino, mut inode) = self.new_inode(state, &mut batch, caller, parent, &dir, &new, nlink);
        for (attr_name, value) in acl.xattrs {
            inode.xattrs += 1;
            batch.put_fresh(keys::xattr(ino, attr_name), value);
        }
        batch.put_fresh(keys::inode(ino), inode.encode());
        self.add_entry(&mut batch, parent, &mut dir, name, ino, new.kind, inode.ctime);
        batch.put(keys::inode(parent), dir.encode());
        self.submit(state, batch, &[])?;
        if new.kind == Kind::Dir {
            self.view.made_directory(ino);
        }
        self.lookups.add(ino);
        Ok(Attr::of(ino, &inode))
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn add_entry(
        &self,
        batch: &mut Batch,
        parent: Ino,
        dir: &mut Inode,
        name: &[u8],
        ino: Ino,
        kind: Kind,
        now: crate::base::Timestamp,
    ) {
        let entry = Dirent { ino, kind };
        batch.put_fresh(self.dirent_key(parent, name), entry.encode());
        dir.size += 1;
        if kind == Kind::Dir {
            dir.nlink += 1;
        }
        now_into(dir, now);
    }

    fn remove_entry(
        &self,
        batch: &mut Batch,
        parent: Ino,
        dir: &mut Inode,
        name: &[u8],
        kind: Kind,
        now: crate::base::Timestamp,
    ) {
        batch.delete(self.dirent_key(parent, name));
        dir.size = dir.size.saturating_sub(1);
        if kind == Kind::Dir {
            dir.nlink = dir.nlink.saturating_sub(1);
        }
        now_into(dir, now);
    }

    /// Creates a file, directory, device node, pipe or socket. `mode` carries the kind in its
    /// `S_IFMT` bits.
    fn make(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        umask: u32,
        new: Result<NewInode, FsError>,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            let new = new?;
            fs.transact(move |fs, state| {
                fs.create_attempt(state, caller, parent, &name, umask, &new)
            })
            .await
        }
    }

    /// `mknod(2)`: `mode` with its `S_IFMT` bits; counts one lookup.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::NotFound`] (the directory is gone), [`FsError::Invalid`]
    /// (no such kind).
    pub fn mknod(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        let new = match Kind::from_mode(mode) {
            Some(Kind::Dir | Kind::Symlink) | None => Err(FsError::Invalid),
            Some(kind) => {
                let is_device = matches!(kind, Kind::CharDev | Kind::BlockDev);
                let rdev = if is_device { rdev } else { 0 };
                Ok(NewInode { kind, perm: (mode & 0o7777) as u16, rdev, target: Bytes::new() })
            }
        };
        self.make(caller, parent, name, umask, new)
    }

    /// Creates a regular file (`open` with `O_CREAT`); counts one lookup.
    pub fn create(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        let perm = (mode & 0o7777) as u16;
        let new = NewInode { kind: Kind::File, perm, rdev: 0, target: Bytes::new() };
        self.make(caller, parent, name, umask, Ok(new))
    }

    /// `mkdir(2)`; counts one lookup.
    pub fn mkdir(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        let perm = (mode & 0o7777) as u16;
        let new = NewInode { kind: Kind::Dir, perm, rdev: 0, target: Bytes::new() };
        self.make(caller, parent, name, umask, Ok(new))
    }

    /// `symlink(2)`; counts one lookup.
    pub fn symlink(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        target: Vec<u8>,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        let new = match target.len() {
            0 => Err(FsError::NotFound),
            len if len > SYMLINK_MAX => Err(FsError::NameTooLong),
            _ => {
                let target = target.into();
                Ok(NewInode { kind: Kind::Symlink, perm: 0o777, rdev: 0, target })
            }
        };
        self.make(caller, parent, name, 0, new)
    }

    /// A regular file without a name (`O_TMPFILE`); counts one lookup.
    pub fn tmpfile(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        mode: u32,
        umask: u32,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| {
            let dir = fs.directory(parent)?;
            let perm = (mode & 0o7777) as u16;
            let acl = fs.inherited_acl(parent, &dir, Kind::File, perm, umask)?;
            let new = NewInode { kind: Kind::File, perm: acl.perm, rdev: 0, target: Bytes::new() };
            let mut batch = Batch::default();
            let (ino, mut inode) = fs.new_inode(state, &mut batch, caller, parent, &dir, &new, 0);
            for (name, value) in acl.xattrs {
                inode.xattrs += 1;
                batch.put_fresh(keys::xattr(ino, name), value);
            }
            batch.put_fresh(keys::inode(ino), inode.encode());
            batch.put_fresh(keys::orphan(ino), crate::meta::MarkerRow::encode());
            fs.submit(state, batch, &[])?;
            fs.lookups.add(ino);
            fs.orphaned(state, ino);
            Ok(Attr::of(ino, &inode))
        })
    }

    /// The target of a symbolic link.
    pub fn readlink(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl Future<Output = Result<Bytes, FsError>> + Send + 'static {
        self.clone().consult(move |fs| {
            let inode = fs.inode(ino)?;
            if inode.kind == Kind::Symlink {
                Ok(inode.target)
            } else {
                Err(FsError::Invalid.into())
            }
        })
    }

    /// `link(2)`: a further name for `ino`; counts one lookup.
    ///
    /// # Errors
    /// [`FsError::NotPermitted`] for a directory, [`FsError::TooManyLinks`],
    /// [`FsError::Exists`].
    pub fn link(
        self: &Arc<Self>,
        ino: Ino,
        new_parent: Ino,
        new_name: Vec<u8>,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| {
            check_name(&new_name)?;
            let mut dir = fs.directory(new_parent)?;
            let mut inode = fs.inode(ino)?;
            if inode.kind == Kind::Dir {
                return Err(FsError::NotPermitted.into());
            }
            if dir.nlink == 0 {
                return Err(FsError::NotFound.into());
            }
            if inode.nlink >= LINK_MAX {
                return Err(FsError::TooManyLinks.into());
            }
            if fs.dirent(new_parent, &new_name)?.is_some() {
                return Err(FsError::Exists.into());
            }
            let mut batch = Batch::default();
            let was_orphan = inode.nlink == 0;
            if was_orphan {
                batch.delete(keys::orphan(ino));
            }
            inode.nlink += 1;
            let now = fs.clock.now();
            changed(&mut inode, now);
            batch.put(keys::inode(ino), inode.encode());
            fs.add_entry(&mut batch, new_parent, &mut dir, &new_name, ino, inode.kind, now);
            batch.put(keys::inode(new_parent), dir.encode());
            fs.submit(state, batch, &[])?;
            if was_orphan {
                fs.adopted(ino);
            }
            fs.lookups.add(ino);
            Ok(Attr::of(ino, &inode))
        })
    }

    /// `unlink(2)`. Contents stay while the file is open.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDir`].
    pub fn unlink(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| {
            check_name(&name)?;
            let mut dir = fs.directory(parent)?;
            let entry = fs.dirent(parent, &name)?.ok_or(FsError::NotFound)?;
            if entry.kind == Kind::Dir {
                return Err(FsError::IsDir.into());
            }
            let mut inode = fs.inode(entry.ino)?;
            let now = fs.clock.now();
            let mut batch = Batch::default();
            fs.remove_entry(&mut batch, parent, &mut dir, &name, entry.kind, now);
            batch.put(keys::inode(parent), dir.encode());
            let orphaned = fs.drop_link(&mut batch, entry.ino, &mut inode, now);
            fs.submit(state, batch, &[])?;
            if orphaned {
                fs.orphaned(state, entry.ino);
            }
            Ok(())
        })
    }

    /// Takes one link off a file; true if it has become an orphan.
    pub(super) fn drop_link(
        &self,
        batch: &mut Batch,
        ino: Ino,
        inode: &mut Inode,
        now: crate::base::Timestamp,
    ) -> bool {
        changed(inode, now);
        if inode.nlink > 1 {
            inode.nlink -= 1;
            batch.put(keys::inode(ino), inode.encode());
            return false;
        }
        self.unlinked(batch, ino, inode)
    }

    /// `rmdir(2)`.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDir`], [`FsError::NotEmpty`].
    pub fn rmdir(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| {
            check_name(&name)?;
            let mut dir = fs.directory(parent)?;
            let entry = fs.dirent(parent, &name)?.ok_or(FsError::NotFound)?;
            if entry.kind != Kind::Dir {
                return Err(FsError::NotDir.into());
            }
            let mut inode = fs.inode(entry.ino)?;
            if inode.size > 0 {
                return Err(FsError::NotEmpty.into());
            }
            let now = fs.clock.now();
            let mut batch = Batch::default();
            fs.remove_entry(&mut batch, parent, &mut dir, &name, entry.kind, now);
            batch.put(keys::inode(parent), dir.encode());
            changed(&mut inode, now);
            let orphaned = fs.unlinked(&mut batch, entry.ino, &mut inode);
            fs.submit(state, batch, &[])?;
            if orphaned {
                fs.orphaned(state, entry.ino);
            }
            Ok(())
        })
    }

    /// `renameat2(2)`, atomically: over an existing target, exchanging two names, or refusing
    /// to replace. Cost: a constant number of rows, whatever a directory holds.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::Exists`] (`no_replace`), [`FsError::IsDir`],
    /// [`FsError::NotDir`], [`FsError::NotEmpty`], [`FsError::Invalid`] (a directory into
    /// itself).
    pub fn rename(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
        new_parent: Ino,
        new_name: Vec<u8>,
        flags: RenameFlags,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| {
            check_name(&name)?;
            check_name(&new_name)?;
            if flags.exchange && flags.no_replace {
                return Err(FsError::Invalid.into());
            }
            let from = (parent, &name[..]);
            let to = (new_parent, &new_name[..]);
            fs.rename_attempt(state, from, to, flags)
        })
    }

    /// Whether `ino` is `of` or lies below it.
    fn is_within(&self, mut ino: Ino, of: Ino) -> Attempt<bool> {
        for _ in 0..DEPTH_MAX {
            if ino == of || ino == Ino::ROOT {
                return Ok(ino == of);
            }
            ino = self.directory(ino)?.parent;
        }
        Err(FsError::Io("a directory does not lead to the root".into()).into())
    }

    fn rename_attempt(
        &self,
        state: &mut State,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        flags: RenameFlags,
    ) -> Attempt<()> {
        let mut from_dir = self.directory(parent)?;
        let mut to_dir = self.directory(new_parent)?;
        let source = self.dirent(parent, name)?.ok_or(FsError::NotFound)?;
        let target = self.dirent(new_parent, new_name)?;
        if to_dir.nlink == 0 {
            return Err(FsError::NotFound.into());
        }
        if flags.no_replace && target.is_some() {
            return Err(FsError::Exists.into());
        }
        if source.kind == Kind::Dir && self.is_within(new_parent, source.ino)? {
            return Err(FsError::Invalid.into());
        }
        if flags.exchange {
            let target = target.ok_or(FsError::NotFound)?;
            if target.kind == Kind::Dir && self.is_within(parent, target.ino)? {
                return Err(FsError::Invalid.into());
            }
            let from = Entry { dir: parent, name, is: source };
            return self.exchange(
                state,
                from,
                Entry { dir: new_parent, name: new_name, is: target },
            );
        }
        if target.is_some_and(|t| t.ino == source.ino) {
            return Ok(()); // two links of one file: nothing to do (rename(2))
        }
        let now = self.clock.now();
        let mut batch = Batch::default();
        let mut orphan = None;
        self.remove_entry(&mut batch, parent, &mut from_dir, name, source.kind, now);
        if parent == new_parent {
            to_dir = from_dir.clone();
        }
        if let Some(target) = target {
            let mut victim = self.inode(target.ino)?;
            match (source.kind, target.kind) {
                (Kind::Dir, Kind::Dir) if victim.size > 0 => return Err(FsError::NotEmpty.into()),
                (Kind::Dir, Kind::Dir) => {
                    changed(&mut victim, now);
                    self.remove_entry(
                        &mut batch,
                        new_parent,
                        &mut to_dir,
                        new_name,
                        Kind::Dir,
                        now,
                    );
                    if self.unlinked(&mut batch, target.ino, &mut victim) {
                        orphan = Some(target.ino);
                    }
                }
                (Kind::Dir, _) => return Err(FsError::NotDir.into()),
                (_, Kind::Dir) => return Err(FsError::IsDir.into()),
                _ => {
                    let kind = target.kind;
                    self.remove_entry(&mut batch, new_parent, &mut to_dir, new_name, kind, now);
                    if self.drop_link(&mut batch, target.ino, &mut victim, now) {
                        orphan = Some(target.ino);
                    }
                }
            }
        }
        self.add_entry(&mut batch, new_parent, &mut to_dir, new_name, source.ino, source.kind, now);
        let mut moved = self.inode(source.ino)?;
        changed(&mut moved, now);
        if moved.kind == Kind::Dir {
            moved.parent = new_parent;
        }
        batch.put(keys::inode(source.ino), moved.encode());
        if parent != new_parent {
            batch.put(keys::inode(parent), from_dir.encode());
        }
        batch.put(keys::inode(new_parent), to_dir.encode());
        self.submit(state, batch, &[])?;
        if let Some(ino) = orphan {
            self.orphaned(state, ino);
        }
        Ok(())
    }

    /// Two names change places: each leads to what the other led to.
    fn exchange(&self, state: &mut State, one: Entry<'_>, two: Entry<'_>) -> Attempt<()> {
        if one.is.ino == two.is.ino {
            return Ok(());
        }
        let mut batch = Batch::default();
        let now = self.clock.now();
        batch.put(self.dirent_key(one.dir, one.name), two.is.encode());
        batch.put(self.dirent_key(two.dir, two.name), one.is.encode());
        for (moved, parent) in [(one.is, two.dir), (two.is, one.dir)] {
            let mut inode = self.inode(moved.ino)?;
            changed(&mut inode, now);
            if inode.kind == Kind::Dir {
                inode.parent = parent;
            }
            batch.put(keys::inode(moved.ino), inode.encode());
        }
        let mut dirs = vec![(one.dir, self.directory(one.dir)?)];
        if one.dir != two.dir {
            let mut other = self.directory(two.dir)?;
            let links = |dir: &mut Inode, gains: Kind, loses: Kind| {
                dir.nlink += (gains == Kind::Dir) as u32;
                dir.nlink = dir.nlink.saturating_sub((loses == Kind::Dir) as u32);
            };
            links(&mut dirs[0].1, two.is.kind, one.is.kind);
            links(&mut other, one.is.kind, two.is.kind);
            dirs.push((two.dir, other));
        }
        for (ino, dir) in &mut dirs {
            now_into(dir, now);
            batch.put(keys::inode(*ino), dir.encode());
        }
        self.submit(state, batch, &[])?;
        Ok(())
    }
}
