//! What one mount shows: a volume, and its snapshots in the directory `.snapshots` of its root.
//!
//! Each operation goes to the [`Fs`] whose inode it names (`spaces`); snapshots are opened as they are
//! asked for (`past`), and refuse every change (`changes`). A name `.snapshots` that the volume itself
//! has in its root is shown, not the snapshots. Called by `fuse/`.

mod changes;
mod listing;
mod past;
mod spaces;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::future::Either;

use super::diff::{Difference, diff};
use super::restore::RestoreError;
use super::{Attr, Caller, Fs, FsError, Kind, StatFs, Whence};
use crate::base::Ino;
use past::{Past, Slot};
use spaces::At;

pub use past::{Snapshot, Snapshots};
pub use spaces::SNAPSHOTS;

/// The directory of the snapshots, in the root.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshots";
/// What stands for the volume as it is, among names of snapshots.
const NOW: &str = "now";
/// Its permissions: whoever may look into the root may look into it.
const SNAPSHOTS_PERM: u16 = 0o555;

/// How snapshots are shown below the root (`-o snapdir=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapDir {
    /// By name, but not in listings of the root.
    #[default]
    Hidden,
    /// In listings as well.
    Visible,
    /// Not at all.
    Off,
}

/// How long the kernel may keep what it was told of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// As long as this mount allows for the volume.
    AsVolume,
    /// Attributes for ever, the name not at all: a snapshot may be deleted, and another get its name.
    AttributesOnly,
    /// Neither.
    Nothing,
    /// For ever: it never changes.
    Forever,
}

/// See the module.
pub struct Tree {
    volume: Arc<Fs>,
    past: Past,
    shown: SnapDir,
    /// That the volume's own name was there when that was looked at last.
    hidden: AtomicBool,
}

impl Tree {
    /// `volume` with the snapshots that are found in `source`.
    pub fn new(volume: Arc<Fs>, source: Arc<dyn Snapshots>, shown: SnapDir) -> Arc<Tree> {
        Arc::new(Tree { volume, past: Past::new(source), shown, hidden: AtomicBool::new(false) })
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<Fs> {
        &self.volume
    }

    /// Whether there may be files here that cannot be opened for writing, on a mount that writes.
    pub fn refuses_some(&self) -> bool {
        self.shown != SnapDir::Off
    }

    /// Whether snapshots are to be shown, and a name that the volume itself has in its root is shown in
    /// their place: as it was when the name, or [`Tree::see_whether_hidden`], was asked for last.
    pub fn is_hidden_by_volume(&self) -> bool {
        self.hidden.load(Ordering::Relaxed)
    }

    /// Looks at it now: one row.
    pub async fn see_whether_hidden(&self) {
        if self.shown != SnapDir::Off
            && let Err(e) = self.has_own_name().await
        {
            log::debug!("looking for .snapshots in the root: {e}"); // as it was seen last, then
        }
    }

    /// Closes what is idle. Call it now and then.
    pub async fn tend(&self, now: Instant) {
        self.past.tend(now).await;
    }

    /// Closes all snapshots.
    pub async fn close(&self) {
        self.past.close().await;
    }

    /// Snapshots that are open.
    pub fn open_snapshots(&self) -> usize {
        self.past.open_count()
    }

    /// The file system of a snapshot, which refuses every change and has the inode numbers of the
    /// volume. It stays open for as long as it is held.
    ///
    /// # Errors
    /// Those of opening it.
    pub async fn snapshot(&self, name: &str) -> Result<Option<Arc<Fs>>, FsError> {
        match self.find_snapshot(name).await? {
            Some(snapshot) => Ok(Some(self.open_snapshot(&snapshot).await?.1)),
            None => Ok(None),
        }
    }

    /// The snapshot of this name.
    pub(super) async fn find_snapshot(&self, name: &str) -> Result<Option<Snapshot>, FsError> {
        self.past.source.find(name).await
    }

    /// Opens a snapshot; it stays open for as long as what this returns is held.
    pub(super) async fn open_snapshot(
        &self,
        snapshot: &Snapshot,
    ) -> Result<(Arc<Slot>, Arc<Fs>), FsError> {
        let slot = self.past.slot_of(snapshot);
        let fs = self.past.open_slot(&slot).await?;
        Ok((slot, fs))
    }

    /// The state that an inode number of the mount is of, and the number there; `None` for the
    /// directory of snapshots, which is of none.
    ///
    /// # Errors
    /// Those of opening a snapshot.
    pub async fn state_of(&self, ino: Ino) -> Result<Option<(Arc<Fs>, Ino)>, FsError> {
        match At::of(ino) {
            At::Volume => Ok(Some((self.volume.clone(), ino))),
            At::Directory => Ok(None),
            At::Snapshot(space, ino) => {
                let (_, fs) = self.past.open(space).await?;
                Ok(Some((fs, ino)))
            }
        }
    }

    /// Hands out what differs between two states, each the name of a snapshot or `now`.
    ///
    /// # Errors
    /// [`RestoreError::NoSnapshot`]; what cannot be read.
    pub async fn diff(
        self: &Arc<Self>,
        names: [String; 2],
        out: tokio::sync::mpsc::Sender<Vec<Difference>>,
    ) -> Result<(), RestoreError> {
        let path = format!("comparing {:?} and {:?}", names[0], names[1]);
        let fail = |why| RestoreError::Failed { path: path.clone(), why };
        let mut held = Vec::new();
        for name in &names {
            if name == NOW {
                held.push((None, self.volume.clone()));
                continue;
            }
            let missing = || RestoreError::NoSnapshot(name.clone());
            let snapshot = self.find_snapshot(name).await.map_err(fail)?.ok_or_else(missing)?;
            let (slot, fs) = self.open_snapshot(&snapshot).await.map_err(fail)?;
            held.push((Some(slot), fs));
        }
        let compared = diff(held[0].1.clone(), held[1].1.clone(), out).await;
        match compared {
            Ok(()) => Ok(()),
            Err(why) => {
                let gone = held.iter().filter_map(|(slot, _)| slot.as_ref());
                let mut why = why;
                for slot in gone {
                    why = self.past.explained(slot, why).await;
                }
                Err(fail(why))
            }
        }
    }

    /// How long the kernel may keep `ino`.
    pub fn keeps(&self, ino: Ino) -> Keeps {
        match At::of(ino) {
            At::Volume => Keeps::AsVolume,
            At::Directory => Keeps::Nothing,
            At::Snapshot(_, Ino::ROOT) => Keeps::AttributesOnly,
            At::Snapshot(..) => Keeps::Forever,
        }
    }

    /// The snapshots; an inode number that is none of the volume's is stale where they are not shown.
    fn past(&self) -> Result<&Past, FsError> {
        if self.shown == SnapDir::Off { Err(FsError::Stale) } else { Ok(&self.past) }
    }

    /// Whether `name` in `parent` is the directory of the snapshots, if the volume has no such name.
    fn may_lead_to_snapshots(&self, parent: Ino, name: &[u8]) -> bool {
        parent == Ino::ROOT && name == SNAPSHOTS_NAME && self.shown != SnapDir::Off
    }

    /// Does `op` in the volume, or in the snapshot that `ino` is in; `here` says what it is for the
    /// directory of the snapshots.
    fn ask<T, F>(
        self: &Arc<Self>,
        ino: Ino,
        op: impl FnOnce(Arc<Fs>, Ino) -> F + Send + 'static,
        here: Result<T, FsError>,
    ) -> impl Future<Output = Result<T, FsError>> + Send + 'static
    where
        T: Send + 'static,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        match At::of(ino) {
            At::Volume => Either::Left(op(self.volume.clone(), ino)),
            at => {
                let tree = self.clone();
                Either::Right(async move {
                    let past = tree.past()?;
                    let At::Snapshot(space, inside) = at else { return here };
                    let (slot, fs) = past.open(space).await?;
                    match op(fs, inside).await {
                        Ok(done) => Ok(done),
                        Err(e) => Err(past.explained(&slot, e).await),
                    }
                })
            }
        }
    }

    /// As [`Fs::lookup`].
    pub fn lookup(
        self: &Arc<Self>,
        parent: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        if At::of(parent) == At::Volume && !self.may_lead_to_snapshots(parent, &name) {
            return Either::Left(self.volume.lookup(parent, name));
        }
        let tree = self.clone();
        Either::Right(async move {
            match At::of(parent) {
                At::Volume => {
                    let found = tree.volume.lookup(parent, name).await;
                    tree.hidden.store(found.is_ok(), Ordering::Relaxed);
                    match found {
                        Err(FsError::NotFound) => tree.directory().await,
                        found => found,
                    }
                }
                At::Directory => tree.lookup_snapshot(&name).await,
                At::Snapshot(_, Ino::ROOT) if name == b".." => tree.directory().await,
                At::Snapshot(space, inside) => {
                    let past = tree.past()?;
                    let (slot, fs) = past.open(space).await?;
                    match fs.lookup(inside, name).await {
                        Ok(attr) => known(&slot, &fs, attr),
                        Err(e) => Err(past.explained(&slot, e).await),
                    }
                }
            }
        })
    }

    async fn lookup_snapshot(self: &Arc<Self>, name: &[u8]) -> Result<Attr, FsError> {
        match name {
            b"." => return self.directory().await,
            b".." => return self.volume.lookup(Ino::ROOT, b".".to_vec()).await,
            _ => {}
        }
        let past = self.past()?;
        let name = std::str::from_utf8(name).map_err(|_| FsError::NotFound)?;
        let snapshot = past.source.find(name).await?.ok_or(FsError::NotFound)?;
        let slot = past.slot_of(&snapshot);
        let fs = past.open_slot(&slot).await?;
        match fs.lookup(Ino::ROOT, b".".to_vec()).await {
            Ok(attr) => known(&slot, &fs, attr),
            Err(e) => Err(past.explained(&slot, e).await),
        }
    }

    /// The attributes of the directory of the snapshots. Whose the root is, it is.
    async fn directory(self: &Arc<Self>) -> Result<Attr, FsError> {
        let past = self.past()?;
        let root = self.volume.getattr(Ino::ROOT).await?;
        let all = past.source.list().await?;
        let changed = past.changed(&all, self.volume.now());
        Ok(Attr {
            ino: SNAPSHOTS,
            kind: Kind::Dir,
            perm: SNAPSHOTS_PERM,
            nlink: 2 + all.len() as u32,
            mtime: changed,
            ctime: changed,
            atime: changed,
            ..root
        })
    }

    /// As [`Fs::forget`].
    pub fn forget(self: &Arc<Self>, ino: Ino, nlookup: u64) {
        match At::of(ino) {
            At::Volume => self.volume.forget(ino, nlookup),
            At::Directory => {}
            At::Snapshot(space, inside) => {
                if let Some(slot) = self.past.slot_now(space) {
                    slot.lookups.drop(inside, nlookup);
                }
            }
        }
    }

    /// The inodes that the kernel knows.
    pub fn known_inodes(&self) -> Vec<Ino> {
        let mut known = self.volume.known_inodes();
        known.extend(self.past.known());
        known
    }

    /// As [`Fs::getattr`].
    pub fn getattr(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl Future<Output = Result<Attr, FsError>> + Send + 'static {
        match At::of(ino) {
            At::Volume => Either::Left(self.volume.getattr(ino)),
            At::Directory => {
                let tree = self.clone();
                Either::Right(Either::Left(async move { tree.directory().await }))
            }
            At::Snapshot(space, _) => {
                let found = self.ask(
                    ino,
                    move |fs, inside| async move { fs.getattr(inside).await },
                    Err(FsError::Stale),
                );
                Either::Right(Either::Right(async move {
                    let attr = found.await?;
                    Ok(Attr { ino: space.shown(attr.ino)?, ..attr })
                }))
            }
        }
    }

    /// As [`Fs::readlink`].
    pub fn readlink(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl Future<Output = Result<Bytes, FsError>> + Send + 'static {
        self.ask(ino, move |fs, ino| async move { fs.readlink(ino).await }, Err(FsError::Invalid))
    }

    /// As [`Fs::read`].
    pub fn read(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        len: u32,
    ) -> impl Future<Output = Result<Bytes, FsError>> + Send + 'static {
        self.ask(
            ino,
            move |fs, ino| async move { fs.read(ino, offset, len).await },
            Err(FsError::IsDir),
        )
    }

    /// As [`Fs::read_now`].
    pub fn read_now(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        len: u32,
    ) -> Option<Result<Bytes, FsError>> {
        match At::of(ino) {
            At::Volume => self.volume.read_now(ino, offset, len),
            At::Directory => None,
            At::Snapshot(space, inside) => {
                let fs = self.past.slot_now(space)?.fs_now()?;
                // What failed is looked into by the operation that may wait.
                fs.read_now(inside, offset, len).filter(Result::is_ok)
            }
        }
    }

    /// As [`Fs::lseek`].
    pub fn lseek(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        whence: Whence,
    ) -> impl Future<Output = Result<u64, FsError>> + Send + 'static {
        self.ask(
            ino,
            move |fs, ino| async move { fs.lseek(ino, offset, whence).await },
            Err(FsError::IsDir),
        )
    }

    /// As [`Fs::getxattr`].
    pub fn getxattr(
        self: &Arc<Self>,
        ino: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<Bytes, FsError>> + Send + 'static {
        self.ask(
            ino,
            move |fs, ino| async move { fs.getxattr(ino, name).await },
            Err(FsError::NoAttr),
        )
    }

    /// As [`Fs::listxattr`].
    pub fn listxattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
    ) -> impl Future<Output = Result<Vec<Vec<u8>>, FsError>> + Send + 'static {
        self.ask(ino, move |fs, ino| async move { fs.listxattr(caller, ino).await }, Ok(Vec::new()))
    }

    /// As [`Fs::statfs`]: of the volume, or of the volume as it was.
    pub fn statfs(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl Future<Output = Result<StatFs, FsError>> + Send + 'static {
        let asked = match At::of(ino) {
            At::Directory => Ino::ROOT,
            _ => ino,
        };
        self.ask(asked, move |fs, _| async move { fs.statfs().await }, Err(FsError::Stale))
    }
}

/// Counts a lookup of an inode of a snapshot, and gives it the number that the mount shows.
fn known(slot: &Arc<Slot>, fs: &Arc<Fs>, attr: Attr) -> Result<Attr, FsError> {
    // Counted in the slot alone: the file system comes and goes.
    fs.forget(attr.ino, 1);
    let shown = Attr { ino: slot.space.shown(attr.ino)?, ..attr };
    slot.lookups.add(attr.ino);
    Ok(shown)
}
