//! Changes: to the volume as ever, to a snapshot never (`EROFS`), and to the name of the directory of
//! the snapshots neither, unless it is the volume's own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::Either;

use super::spaces::At;
use super::{SNAPSHOTS_NAME, Tree};
use crate::base::Ino;
use crate::fs::{Attr, Caller, Fs, FsError, RenameFlags, SetAttr, WriteFlags, XattrMode};

/// A name in a directory.
type Place = (Ino, Vec<u8>);

impl Tree {
    /// Whether the volume itself has a name `.snapshots` in its root.
    pub(super) async fn has_own_name(&self) -> Result<bool, FsError> {
        let has = self.volume.has_name(Ino::ROOT, SNAPSHOTS_NAME.to_vec()).await?;
        self.hidden.store(has, Ordering::Relaxed);
        Ok(has)
    }

    /// Does `change`, which needs the inode to be the volume's and concerns these names.
    /// `taken`: what it fails with where the name leads to the snapshots.
    fn change<T, F>(
        self: &Arc<Self>,
        ino: Option<Ino>,
        names: Vec<Place>,
        taken: FsError,
        change: impl FnOnce(Arc<Fs>, Vec<Place>) -> F + Send + 'static,
    ) -> impl Future<Output = Result<T, FsError>> + Send + 'static
    where
        T: Send + 'static,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        let foreign = |ino: &Ino| At::of(*ino) != At::Volume;
        if ino.iter().any(foreign) || names.iter().any(|(parent, _)| foreign(parent)) {
            return Either::Left(std::future::ready(Err(FsError::ReadOnly)));
        }
        if !names.iter().any(|(parent, name)| self.may_lead_to_snapshots(*parent, name)) {
            return Either::Right(Either::Left(change(self.volume.clone(), names)));
        }
        let tree = self.clone();
        Either::Right(Either::Right(async move {
            match tree.has_own_name().await? {
                true => change(tree.volume.clone(), names).await,
                false => Err(taken),
            }
        }))
    }

    /// [`Tree::change`] of one name.
    fn change_name<T, F>(
        self: &Arc<Self>,
        ino: Option<Ino>,
        (parent, name): Place,
        taken: FsError,
        change: impl FnOnce(Arc<Fs>, Ino, Vec<u8>) -> F + Send + 'static,
    ) -> impl Future<Output = Result<T, FsError>> + Send + 'static
    where
        T: Send + 'static,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        self.change(ino, vec![(parent, name)], taken, move |fs, mut names| {
            let (parent, name) = names.remove(0);
            change(fs, parent, name)
        })
    }

    /// [`Tree::change`] of an inode, whatever its names.
    fn change_inode<T, F>(
        self: &Arc<Self>,
        ino: Ino,
        change: impl FnOnce(Arc<Fs>) -> F + Send + 'static,
    ) -> impl Future<Output = Result<T, FsError>> + Send + 'static
    where
        T: Send + 'static,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        self.change(Some(ino), Vec::new(), FsError::ReadOnly, move |fs, _| change(fs))
    }

    /// As [`Fs::mknod`].
    pub fn mknod(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.change_name(
            None,
            (parent, name),
            FsError::Exists,
            move |fs, parent, name| async move {
                fs.mknod(caller, parent, name, mode, umask, rdev).await
            },
        )
    }

    /// As [`Fs::mkdir`].
    pub fn mkdir(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.change_name(None, (parent, name), FsError::Exists, move |fs, parent, name| async move {
            fs.mkdir(caller, parent, name, mode, umask).await
        })
    }

    /// As [`Fs::symlink`].
    pub fn symlink(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        target: Vec<u8>,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.change_name(
            None,
            (parent, name),
            FsError::Exists,
            move |fs, parent, name| async move { fs.symlink(caller, parent, name, target).await },
        )
    }

    /// As [`Fs::tmpfile`].
    pub fn tmpfile(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        mode: u32,
        umask: u32,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.change_inode(
            parent,
            move |fs| async move { fs.tmpfile(caller, parent, mode, umask).await },
        )
    }

    /// As [`Fs::link`]; [`FsError::CrossDevice`] for a file of a snapshot, which is in another tree.
    pub fn link(
        self: &Arc<Self>,
        ino: Ino,
        parent: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        if At::of(parent) == At::Volume && At::of(ino) != At::Volume {
            return Either::Left(std::future::ready(Err(FsError::CrossDevice)));
        }
        Either::Right(self.change_name(
            Some(ino),
            (parent, name),
            FsError::Exists,
            move |fs, parent, name| async move { fs.link(ino, parent, name).await },
        ))
    }

    /// As [`Fs::unlink`].
    pub fn unlink(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.change_name(
            None,
            (parent, name),
            FsError::ReadOnly,
            move |fs, parent, name| async move { fs.unlink(parent, name).await },
        )
    }

    /// As [`Fs::rmdir`].
    pub fn rmdir(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.change_name(
            None,
            (parent, name),
            FsError::ReadOnly,
            move |fs, parent, name| async move { fs.rmdir(parent, name).await },
        )
    }

    /// As [`Fs::rename`].
    pub fn rename(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
        to: Ino,
        new_name: Vec<u8>,
        flags: RenameFlags,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        let names = vec![(parent, name), (to, new_name)];
        self.change(None, names, FsError::ReadOnly, move |fs, mut names| async move {
            let (to, new_name) = names.remove(1);
            let (parent, name) = names.remove(0);
            fs.rename(parent, name, to, new_name, flags).await
        })
    }

    /// As [`Fs::setattr`].
    pub fn setattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
        set: SetAttr,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.change_inode(ino, move |fs| async move { fs.setattr(caller, ino, set).await })
    }

    /// As [`Fs::write`].
    pub fn write(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<u32, FsError>> + Send + 'static {
        self.change_inode(ino, move |fs| async move { fs.write(ino, offset, data, flags).await })
    }

    /// As [`Fs::write_now`].
    pub fn write_now(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Option<Result<u32, FsError>> {
        match At::of(ino) {
            At::Volume => self.volume.write_now(ino, offset, data, flags),
            _ => Some(Err(FsError::ReadOnly)),
        }
    }

    /// As [`Fs::fallocate`].
    pub fn fallocate(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.change_inode(ino, move |fs| async move {
            fs.fallocate(caller, ino, offset, len, mode).await
        })
    }

    /// As [`Fs::setxattr`].
    pub fn setxattr(
        self: &Arc<Self>,
        ino: Ino,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: XattrMode,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.change_inode(ino, move |fs| async move { fs.setxattr(ino, name, value, mode).await })
    }

    /// As [`Fs::removexattr`].
    pub fn removexattr(
        self: &Arc<Self>,
        ino: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.change_inode(ino, move |fs| async move { fs.removexattr(ino, name).await })
    }

    /// Whether `ino` may be opened for writing, as far as that is no matter of its permissions.
    pub fn may_write(&self, ino: Ino) -> bool {
        At::of(ino) == At::Volume && self.volume().is_writer()
    }

    /// As [`Fs::create`], for open(2): a file that is there already is an answer, unless it must not
    /// be. Counts one lookup.
    pub fn create(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
        exclusive: bool,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        self.change_name(
            None,
            (parent, name),
            FsError::Exists,
            move |fs, parent, name| async move {
                match fs.create(caller, parent, name.clone(), mode, umask).await {
                    Err(FsError::Exists) if !exclusive => fs.lookup(parent, name).await,
                    made => made,
                }
            },
        )
    }

    /// As [`Fs::fsync_then`]. In a snapshot there is nothing to do.
    pub fn fsync_then(&self, ino: Ino, tell: impl FnOnce(Result<(), FsError>) + Send + 'static) {
        match At::of(ino) {
            At::Volume => self.volume.fsync_then(tell),
            _ => tell(Ok(())),
        }
    }

    /// As [`Fs::fsync`].
    pub fn fsync(
        self: &Arc<Self>,
        ino: Ino,
        data_only: bool,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        match At::of(ino) {
            At::Volume => Either::Left(self.volume.fsync(ino, data_only)),
            _ => Either::Right(std::future::ready(Ok(()))),
        }
    }

    /// As [`Fs::fsyncdir`].
    pub fn fsyncdir(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.fsync(ino, false)
    }

    /// As [`Fs::copy_file_range`]; out of a snapshot too, of which the copy then shares what it has.
    pub fn copy_file_range(
        self: &Arc<Self>,
        caller: Caller,
        ino_in: Ino,
        offset_in: u64,
        ino_out: Ino,
        offset_out: u64,
        len: u64,
    ) -> impl Future<Output = Result<u64, FsError>> + Send + 'static {
        match (At::of(ino_in), At::of(ino_out)) {
            (At::Volume, At::Volume) => {
                let to = (ino_out, offset_out);
                let volume = &self.volume;
                Either::Left(volume.copy_file_range(caller, ino_in, offset_in, to.0, to.1, len))
            }
            (from, At::Volume) => {
                let tree = self.clone();
                Either::Right(Either::Left(async move {
                    let past = tree.past()?;
                    let At::Snapshot(space, inside) = from else { return Err(FsError::IsDir) };
                    let (slot, source) = past.open(space).await?;
                    let source = (source, slot.snapshot.id);
                    let from = (inside, offset_in);
                    let (to, volume) = ((ino_out, offset_out), &tree.volume);
                    match volume.copy_from(caller, source, from, to, len).await {
                        Ok(copied) => Ok(copied),
                        Err(e) => Err(past.explained(&slot, e).await),
                    }
                }))
            }
            _ => Either::Right(Either::Right(std::future::ready(Err(FsError::ReadOnly)))),
        }
    }
}
