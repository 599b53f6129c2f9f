//! The snapshots of a mount: which are open, and under which numbers. Each is opened when something
//! in it is asked for, and closed when nothing was for a while; until then it costs nothing.
//!
//! What the kernel knows of a snapshot is counted here rather than in its [`Fs`], which comes and goes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::spaces::Space;
use crate::base::{Ino, Timestamp};
use crate::fs::lifetime::Lookups;
use crate::fs::{Fs, FsError};

/// A snapshot that nobody has asked anything for this long is closed.
const IDLE: Duration = Duration::from_secs(120);
/// Snapshots that are open at once, as far as nothing is being read in them: the one that was used
/// longest ago is closed for another. Each takes a few MiB.
const OPEN_MAX: usize = 12;

/// A snapshot, as the directory of snapshots shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Its checkpoint, which tells it from one that had the name before.
    pub id: [u8; 16],
    /// A number that hardly another has, and that stays.
    pub number: u64,
    /// When it was made.
    pub time: Timestamp,
}

/// Where the snapshots of a volume are found. `stack` implements it.
pub trait Snapshots: Send + Sync + 'static {
    /// All there are.
    fn list(&self) -> BoxFuture<'static, Result<Vec<Snapshot>, FsError>>;
    /// The one of this name.
    fn find(&self, name: &str) -> BoxFuture<'static, Result<Option<Snapshot>, FsError>>;
    /// Opens it.
    fn open(&self, snapshot: &Snapshot) -> BoxFuture<'static, Result<Arc<Fs>, FsError>>;
}

/// One snapshot that was looked into.
pub(in crate::fs) struct Slot {
    pub(in crate::fs) snapshot: Snapshot,
    pub(super) space: Space,
    /// How often the kernel knows each of its inodes, by the numbers inside it.
    pub(super) lookups: Lookups,
    /// Open, and when it was last used.
    open: Mutex<Option<(Arc<Fs>, Instant)>>,
    /// One opens it at a time.
    opening: tokio::sync::Mutex<()>,
    /// It was deleted.
    gone: AtomicBool,
}

impl Slot {
    /// The snapshot if it is open.
    pub(super) fn fs_now(&self) -> Option<Arc<Fs>> {
        let mut open = self.open.lock();
        let (fs, used) = open.as_mut()?;
        *used = Instant::now();
        Some(fs.clone())
    }

    /// Closes it if nothing is being done in it and it was not used since `since`.
    fn take_idle(&self, since: Instant) -> Option<Arc<Fs>> {
        let mut open = self.open.lock();
        let idle =
            open.as_ref().is_some_and(|(fs, used)| *used <= since && Arc::strong_count(fs) == 1);
        if idle { open.take().map(|(fs, _)| fs) } else { None }
    }

    fn used(&self) -> Option<Instant> {
        self.open.lock().as_ref().map(|(_, used)| *used)
    }
}

/// See the module.
pub(super) struct Past {
    pub(super) source: Arc<dyn Snapshots>,
    slots: Mutex<HashMap<Space, Arc<Slot>>>,
    /// What was last listed, and since when it is so.
    listed: Mutex<Option<(Vec<[u8; 16]>, Timestamp)>>,
}

impl Past {
    pub(super) fn new(source: Arc<dyn Snapshots>) -> Past {
        Past { source, slots: Mutex::default(), listed: Mutex::default() }
    }

    /// The slot of a snapshot.
    pub(super) fn slot_of(&self, snapshot: &Snapshot) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let mut space = Space::preferred(snapshot.number);
        loop {
            match slots.get(&space) {
                Some(slot) if slot.snapshot.id == snapshot.id => return slot.clone(),
                Some(_) => space = space.next(),
                None => break,
            }
        }
        let slot = Arc::new(Slot {
            snapshot: snapshot.clone(),
            space,
            lookups: Lookups::default(),
            open: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            gone: AtomicBool::new(false),
        });
        slots.insert(space, slot.clone());
        slot
    }

    /// The slot that has a number, if the snapshot was looked into.
    pub(super) fn slot_now(&self, space: Space) -> Option<Arc<Slot>> {
        self.slots.lock().get(&space).cloned()
    }

    /// The slot that has a number; the kernel, or an NFS client, may know it from a mount before.
    ///
    /// # Errors
    /// [`FsError::Stale`]: there is no such snapshot any more.
    async fn slot(&self, space: Space) -> Result<Arc<Slot>, FsError> {
        if let Some(slot) = self.slot_now(space) {
            return Ok(slot);
        }
        let all = self.source.list().await?;
        let found = all.iter().find(|snapshot| Space::preferred(snapshot.number) == space);
        let slot = self.slot_of(found.ok_or(FsError::Stale)?);
        if slot.space == space { Ok(slot) } else { Err(FsError::Stale) }
    }

    /// The open snapshot of this space.
    ///
    /// # Errors
    /// [`FsError::Stale`]: it was deleted.
    pub(super) async fn open(&self, space: Space) -> Result<(Arc<Slot>, Arc<Fs>), FsError> {
        let slot = self.slot(space).await?;
        let fs = self.open_slot(&slot).await?;
        Ok((slot, fs))
    }

    /// The same, of this slot.
    pub(super) async fn open_slot(&self, slot: &Arc<Slot>) -> Result<Arc<Fs>, FsError> {
        if slot.gone.load(Ordering::Acquire) {
            return Err(FsError::Stale);
        }
        if let Some(fs) = slot.fs_now() {
            return Ok(fs);
        }
        let _one = slot.opening.lock().await;
        if let Some(fs) = slot.fs_now() {
            return Ok(fs);
        }
        self.make_room().await;
        let fs = match self.source.open(&slot.snapshot).await {
            Ok(fs) => fs,
            Err(e) => return Err(self.explained(slot, e).await),
        };
        log::info!("snapshot {:?} is open", slot.snapshot.name);
        *slot.open.lock() = Some((fs.clone(), Instant::now()));
        Ok(fs)
    }

    /// What a failure in a snapshot means: that it was deleted, or what it says.
    pub(super) async fn explained(&self, slot: &Arc<Slot>, e: FsError) -> FsError {
        match e {
            FsError::Io(_) if self.is_gone(slot).await => FsError::Stale,
            e => e,
        }
    }

    /// Looks whether a snapshot was deleted. If that cannot be told, it was not.
    async fn is_gone(&self, slot: &Arc<Slot>) -> bool {
        if slot.gone.load(Ordering::Acquire) {
            return true;
        }
        let found = self.source.find(&slot.snapshot.name).await;
        let gone =
            matches!(&found, Ok(found) if found.as_ref().map(|s| s.id) != Some(slot.snapshot.id));
        if gone && !slot.gone.swap(true, Ordering::AcqRel) {
            log::info!("snapshot {:?} was deleted: what is open in it ends", slot.snapshot.name);
        }
        gone
    }

    /// Closes what was used longest ago, where as many are open as may be.
    async fn make_room(&self) {
        let slots: Vec<_> = self.slots.lock().values().cloned().collect();
        let mut open: Vec<_> = slots.iter().filter_map(|s| Some((s.used()?, s))).collect();
        open.sort_by_key(|(used, _)| *used);
        let surplus = (open.len() + 1).saturating_sub(OPEN_MAX);
        for (used, slot) in open.into_iter().take(surplus) {
            if let Some(fs) = slot.take_idle(used) {
                fs.close().await;
            }
        }
    }

    /// Closes what is idle, ends what was deleted, and forgets what nobody knows. Called now and then.
    pub(super) async fn tend(&self, now: Instant) {
        let slots: Vec<_> = self.slots.lock().values().cloned().collect();
        for slot in slots {
            let gone = slot.used().is_some() && self.is_gone(&slot).await;
            let since = if gone { Some(now) } else { now.checked_sub(IDLE) };
            if let Some(fs) = since.and_then(|since| slot.take_idle(since)) {
                log::info!("snapshot {:?} is closed", slot.snapshot.name);
                fs.close().await;
            }
        }
        self.slots.lock().retain(|_, slot| {
            // The table's own, and nobody who is about to use it.
            Arc::strong_count(slot) > 1 || slot.used().is_some() || !slot.lookups.is_empty()
        });
    }

    /// Closes all; for the end of the mount.
    pub(super) async fn close(&self) {
        let slots: Vec<_> = self.slots.lock().drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            let open = slot.open.lock().take();
            if let Some((fs, _)) = open {
                fs.close().await;
            }
        }
    }

    /// Snapshots that are open.
    pub(super) fn open_count(&self) -> usize {
        self.slots.lock().values().filter(|slot| slot.used().is_some()).count()
    }

    /// What the kernel knows of snapshots, by the numbers that the mount shows.
    pub(super) fn known(&self) -> Vec<Ino> {
        let slots: Vec<_> = self.slots.lock().values().cloned().collect();
        let of_slot = |slot: &Arc<Slot>| {
            let known = slot.lookups.known().into_iter();
            known.filter_map(|ino| slot.space.shown(ino).ok()).collect::<Vec<_>>()
        };
        slots.iter().flat_map(of_slot).collect()
    }

    /// Since when the snapshots are those in `all`, as far as this mount has seen it.
    pub(super) fn changed(&self, all: &[Snapshot], now: Timestamp) -> Timestamp {
        let ids: Vec<_> = all.iter().map(|snapshot| snapshot.id).collect();
        let mut listed = self.listed.lock();
        let since = match &*listed {
            Some((before, since)) if *before == ids => return *since,
            Some(_) => now,
            None => all.iter().map(|snapshot| snapshot.time).max().unwrap_or(now),
        };
        *listed = Some((ids, since));
        since
    }
}
