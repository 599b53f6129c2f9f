//! A running mount: opening a volume, its background tasks, and its orderly end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::canary::probe_store;
use super::config;
use super::config_use::VolumeSse;
use super::departure::Departure;
use super::disks::{human, make_dir, room_for, space_of};
use super::gates::{SharedLease, gates};
use super::key_use::note_use;
use super::key_watch::KeyWatch;
use super::lease::{Beat, HEARTBEAT, Lease};
use super::lineage::{Lineage, copied_elsewhere, go_on_beside, lineage, refuse_rollback};
use super::options::OPEN_TIMEOUT;
use super::state::{Remembered, StateFile};
use super::status::Shared;
use super::{Attended, Control, Layers, MountOptions, StackError, unlock_store};
use crate::base::{JournalPos, SystemClock, VolumeId, counted, hex};
use crate::commit::layouts::SegmentRows;
use crate::commit::replay::replay;
use crate::commit::view::ViewOptions;
use crate::commit::{CommitOptions, Committer, View, last_commit};
use crate::data::{BlockCache, BlockCacheOptions};
use crate::fs::{Fs, FsOptions, FsParts};
use crate::journal::{Journal, JournalError, JournalOptions, Recovery};
use crate::meta::{CommitRow, DecodeError, Stats, keys};
use crate::seal::VolumeKeys;
use crate::store::kv::{Kv, KvOptions};
use crate::store::{Health, Sealed, SegmentStore};

/// How long a mount that failed may take to give the lease back.
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);
/// How long until an overtaken mount tries again to read what the bucket has.
const READER_RETRY: Duration = Duration::from_secs(15);
/// How often what this machine remembers is brought up to date, and how often durably.
const REMEMBER_EVERY: Duration = Duration::from_secs(5);

/// How long the committer may take to end the step it is in, when everything is in the bucket.
const STEP_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether something that was found damaged is due to be read again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long closing the metadata store, and giving the lease back, may take each.
const CLOSE_MAX: Duration = Duration::from_secs(15);
/// The same when something is left to the journal: the store is likely to be away, and whoever
/// asked for `umount --force-local` waits. The next mount here needs neither.
const CLOSE_PENDING_MAX: Duration = Duration::from_secs(5);
/// The same when the store is known to be away.
const CLOSE_AWAY_MAX: Duration = Duration::from_secs(1);

/// The keyring is looked at with every so many heartbeats; whoever rotates the keys has the mount
/// notice sooner, by its configuration.
const KEYRING_BEATS: u64 = 8;

/// The writing half of a mount.
struct Writer {
    journal: Arc<Journal>,
    committer: Arc<Committer>,
    lease: SharedLease,
}

/// A volume that is open. Serve it through `fuse/`, then call [`Mounted::shutdown`].
pub struct Mounted {
    /// The file system.
    pub fs: Arc<Fs>,
    /// Its status, and what it can be told.
    pub control: Arc<dyn Control>,
    /// Its id.
    pub volume: VolumeId,
    /// Where a journal was set aside, if one had been overtaken.
    pub set_aside: Option<PathBuf>,
    shared: Arc<Shared>,
    writer: Option<Writer>,
    state: Arc<StateFile>,
    remembered: Arc<Mutex<Remembered>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Opens a volume: keyring, probe, lease, metadata, journal with its replay; then starts the
/// background tasks. Must run inside a tokio runtime.
///
/// # Errors
/// See [`StackError`]; whatever fails, nothing of the volume has been changed, and the lease is
/// given back if it was free. [`StackError::Stopped`] when
/// [`Attended::stop`](super::Attended::stop) was called meanwhile: the same holds.
pub async fn mount(options: MountOptions) -> Result<Mounted, StackError> {
    let attended = options.store.attended.clone();
    let mut held = Held::default();
    let mounted = tokio::select! {
        mounted = assemble(options, &mut held) => mounted,
        () = attended.stopped() => Err(StackError::Stopped),
    };
    if mounted.is_err()
        && !matches!(tokio::time::timeout(RELEASE_DEADLINE, held.undo()).await, Ok(true))
    {
        log::warn!("the lease was not given back");
    }
    mounted
}

/// The lease of a mount that is being made, however far it is.
#[derive(Default)]
struct Held {
    acquiring: Option<JoinHandle<Result<Lease, StackError>>>,
    lease: Option<SharedLease>,
}

impl Held {
    /// Takes the lease on a task of its own, so that it is known to the end whether it is taken.
    async fn acquire(
        &mut self,
        store: Arc<dyn ObjectStore>,
        takeover: bool,
        attended: Attended,
    ) -> Result<(), StackError> {
        let acquire = async move { Lease::acquire(store, takeover, &attended).await };
        let acquired = self.acquiring.insert(tokio::spawn(acquire)).await;
        self.acquiring = None;
        let lease = acquired.map_err(|e| StackError::store_broke("taking the lease", e))??;
        self.lease = Some(Arc::new(tokio::sync::Mutex::new(lease)));
        Ok(())
    }

    /// Gives the lease back if it was taken, and free before; false if that failed.
    async fn undo(self) -> bool {
        let taken = match (self.lease, self.acquiring) {
            (Some(lease), _) => Some(lease),
            (None, Some(acquiring)) => {
                acquiring.await.ok().and_then(Result::ok).map(|lease| Arc::new(lease.into()))
            }
            (None, None) => None,
        };
        let Some(lease) = taken else { return true };
        let mut lease = lease.lock().await;
        !lease.was_free() || matches!(lease.release().await, Beat::Held)
    }
}

/// [`mount`], leaving the lease in `held` once it is taken.
async fn assemble(options: MountOptions, held: &mut Held) -> Result<Mounted, StackError> {
    let name = options.store.location.to_string();
    let layers = Layers::connect(&options.store, options.read_timeout, false).await?;
    let unlocked = unlock_store(&layers, &name, &options.key).await?;
    let (keyring, keys) = (unlocked.keyring.clone(), unlocked.keys.clone());
    let slot = unlocked.slot;
    let key_watch = Arc::new(KeyWatch::new(layers.retry.clone(), &name, unlocked));
    let volume = keys.volume_id();
    let read_only = options.read_only;
    if !read_only {
        keyring.check_writable()?;
    }
    let first = Sealed::new(layers.retry.clone(), keys.clone());
    first.renew_by(key_watch.clone());
    let loaded = config::load(&first).await?;
    let config_generation = loaded.config.generation;
    let compress = options.compress.unwrap_or(loaded.config.compress);
    let ask = options.store.sse.clone();
    let sse = Arc::new(VolumeSse::begin(layers.s3.clone(), ask, loaded.config)?);
    for note in sse.notes() {
        log::warn!("{note}");
    }
    if !read_only {
        probe_store(&layers).await?;
    }
    let state_dir = options.state_dir.join(volume.to_string());
    let cache_dir = options.cache_dir.join(volume.to_string());
    make_dir(&state_dir)?;
    make_dir(&cache_dir)?;
    note_use(&options.state_dir, &keyring, slot);
    let layers = layers.with_cache(cache_dir, options.cache_bytes_max);
    let state = Arc::new(StateFile::new(&state_dir, keys.clone()));
    let before = state.load_continued(options.accept_rollback)?.unwrap_or_default();
    if !options.accept_rollback {
        before.check_keyring(keyring.generation())?;
    }
    if config_generation < before.config_generation && !options.accept_rollback {
        let (found, seen) = (config_generation, before.config_generation);
        return Err(StackError::ConfigRollback { found, seen });
    }
    // Locked before anything remote is touched: a second mount of this machine stops here.
    let local = match read_only {
        true => None,
        false => Some(open_journal(&options, &state_dir, &keys).await?),
    };
    let sealed = sealed_when_free(&layers, &keys).await?;
    sealed.renew_by(key_watch.clone());
    let store: Arc<dyn ObjectStore> = sealed.clone();
    let attended = layers.attended.clone();
    attended.waits_for(format!("the metadata of {name}"), options.open_timeout);
    let kv_options = KvOptions {
        read_timeout: options.read_timeout,
        refresh: options.refresh,
        collect_age: options.collect_age,
        ..KvOptions::default()
    };
    if !read_only {
        if options.takeover {
            prove_metadata(store.clone(), kv_options.clone(), options.open_timeout).await?;
        }
        held.acquire(store.clone(), options.takeover, attended.clone()).await?;
        attended.waits_for(format!("the metadata of {name}"), options.open_timeout);
    }
    let kv = if read_only {
        Kv::open_reader(store.clone(), kv_options, options.open_timeout).await?
    } else {
        Kv::open(store.clone(), kv_options, options.open_timeout).await?
    };
    let kv = Arc::new(kv);
    let commit_row = last_commit(&kv).await?;
    let found = commit_row.map_or(0, |row| row.sequence);
    if let Err(e) = refuse_rollback(found, &before, options.at_least, options.accept_rollback) {
        let _ = kv.close(false).await;
        return Err(e);
    }
    let stats = match kv.get(&keys::stats()).await? {
        Some(row) => Stats::decode(&row).map_err(crate::commit::ViewError::from)?,
        None => return Err(crate::commit::ViewError::from(DecodeError("no statistics")).into()),
    };
    let seen = kv.get(&keys::writer()).await?.map(|id| hex(&id));
    let segments = Arc::new(SegmentStore::compressing(store.clone(), compress));
    segments.ask(Arc::new(SegmentRows(kv.clone())));
    let blocks = BlockCache::new(segments.clone(), BlockCacheOptions::default());
    let mut set_aside = None;
    let mut parts = None;
    if let Some((journal, recovery)) = local {
        let accept = options.accept_rollback;
        let lineage = match copied_elsewhere(&recovery, commit_row, seen.as_deref(), &before) {
            Some(committed) => go_on_beside(&journal, &recovery, commit_row, committed)?,
            None => lineage(&journal, &recovery, commit_row, &before, accept)?,
        };
        let (journal, base, todo) = match lineage {
            Lineage::Continues(base, todo) => (journal, base, todo),
            Lineage::Overtaken => {
                let aside = journal.set_aside(crate::base::Clock::now(&SystemClock))?;
                log::error!(
                    "the local journal holds changes that another writer has overtaken; \
                         it was set aside at {}",
                    aside.display()
                );
                drop(journal);
                set_aside = Some(aside);
                let (journal, recovery) = open_journal(&options, &state_dir, &keys).await?;
                (journal, JournalPos(recovery.first.0.saturating_sub(1)), Vec::new())
            }
        };
        parts = Some((Arc::new(journal), base, todo));
    }
    let base = parts.as_ref().map_or(JournalPos(0), |(_, base, _)| *base);
    let quarter = (options.journal_bytes_max / 4).max(8 << 20);
    let default = ViewOptions::default();
    let view_options = ViewOptions {
        generation_bytes_max: default.generation_bytes_max.min(quarter),
        burst_bytes_max: default.burst_bytes_max.min(quarter),
        ..default
    };
    let view = Arc::new(View::new(kv.clone(), base, stats, view_options));
    let mut remembered = Remembered {
        sequence: found,
        manifest: kv.manifest_id(),
        keyring_generation: keyring.generation(),
        config_generation,
        ..before
    };
    let (mut journal, mut committer) = (None, None);
    if let Some((opened, base, todo)) = parts {
        opened.release(base);
        let replayed = replay(&view, &opened, todo)?;
        if replayed > 0 {
            log::info!("replayed {} of the local journal", counted(replayed, "record"));
        }
        remembered.journal = opened.id().to_string();
        remembered.journal_committed = base.0;
        remembered.lineage = found;
        remembered.seen_instance = seen.unwrap_or_default();
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).expect("the operating system gives random bytes");
        remembered.instance = hex(&instance);
        remembered.fenced = false;
        let row = CommitRow {
            journal: opened.id(),
            position: base,
            sequence: found,
            time_secs: commit_row.map_or(0, |row| row.time_secs),
            writer_epoch: kv.writer_epoch(),
        };
        let commit = CommitOptions {
            interval: options.commit_interval,
            dead_grace: options.dead_grace,
            instance,
            clean: options.clean,
        };
        let gates = gates(sealed.clone(), segments.clone(), held.lease.clone(), keys.clone());
        let c = Committer::new(view.clone(), opened.clone(), segments.clone(), row, commit, gates);
        (journal, committer) = (Some(opened), Some(c));
    }
    state.save(&remembered, true)?;
    let next_ino = match view.get(&keys::next_ino()).await? {
        Some(row) => crate::fs::decode_next_ino(&row).map_err(crate::commit::ViewError::from)?,
        None => return Err(crate::commit::ViewError::from(DecodeError("no inode number")).into()),
    };
    let fs = Fs::new(
        FsParts {
            view: view.clone(),
            journal: journal.clone(),
            committer: committer.clone(),
            blocks: blocks.clone(),
            clock: Arc::new(SystemClock),
            name_hash_key: keys.name_hash_key(),
            next_ino,
        },
        FsOptions {
            read_only,
            fsync_remote: options.fsync_remote,
            full_timeout: options.full_timeout,
            ..FsOptions::default()
        },
    );
    let writer = match (journal, committer, held.lease.clone()) {
        (Some(journal), Some(committer), Some(lease)) => Some(Writer { journal, committer, lease }),
        _ => None,
    };
    let shared = Arc::new(Shared {
        volume,
        segments,
        store: name,
        mount_point: options.mount_point.clone(),
        since: Instant::now(),
        journal_bytes_max: options.journal_bytes_max,
        cache_bytes_max: options.cache_bytes_max,
        sse,
        key_watch,
        rekey: Arc::default(),
        beat_now: Arc::default(),
        set_aside: set_aside.clone(),
        sequence: found,
        journal_dir: journal_dir(&state_dir),
        state: state.clone(),
        layers,
        sealed,
        view,
        blocks,
        journal: writer.as_ref().map(|w| w.journal.clone()),
        committer: writer.as_ref().map(|w| w.committer.clone()),
        lease_renewed: writer.as_ref().and_then(|w| Some(w.lease.try_lock().ok()?.renewed())),
        rate: Default::default(),
    });
    let mounted = Mounted {
        fs,
        control: shared.clone(),
        volume,
        set_aside,
        shared,
        writer,
        state,
        remembered: Arc::new(Mutex::new(remembered)),
        tasks: Mutex::new(Vec::new()),
    };
    mounted.start(options.refresh);
    attended.goes_on();
    Ok(mounted)
}

fn journal_dir(state_dir: &std::path::Path) -> PathBuf {
    state_dir.join("journal")
}

/// The store stack with its cache, once a process that is about to let go of that has.
async fn sealed_when_free(layers: &Layers, keys: &VolumeKeys) -> Result<Arc<Sealed>, StackError> {
    let mut departure = Departure::new(&layers.attended);
    loop {
        if let Some(sealed) = layers.sealed_cached(keys)? {
            return Ok(sealed);
        }
        let worth = match layers.cache_user() {
            Some(pid) => departure.wait(pid).await,
            None => false,
        };
        if !worth {
            return layers.sealed(keys);
        }
    }
}

/// Opens the journal. A process that was killed keeps its lock until its last thread has left
/// the kernel, so a holder that is dead already is waited for, as is one that is about to end.
async fn open_journal(
    options: &MountOptions,
    state_dir: &std::path::Path,
    keys: &VolumeKeys,
) -> Result<(Journal, Recovery), StackError> {
    let mut departure = Departure::new(&options.store.attended);
    loop {
        let dir = journal_dir(state_dir);
        let has = room_for(&dir, state_dir);
        let journal = JournalOptions::new(dir, options.journal_bytes_max);
        let journal = has.map_or(journal.clone(), |bytes| journal.on_disk_of(bytes));
        match Journal::open(journal, keys.clone(), options.disk.0.clone()) {
            Err(e @ JournalError::InUse(Some(pid))) => {
                if !departure.wait(pid).await {
                    return Err(departure.refused(pid, e.into()));
                }
            }
            Err(JournalError::NoSpace(e)) => return Err(no_room(options, state_dir, None, e)),
            outcome => {
                let (journal, recovery) = outcome?;
                return reserve(options, state_dir, &journal, &recovery)
                    .map(|()| (journal, recovery));
            }
        }
    }
}

/// A journal that cannot begin would only show when the first writer has waited for a minute. One
/// that holds something must be opened all the same, so that it gets to the bucket.
fn reserve(
    options: &MountOptions,
    state_dir: &std::path::Path,
    journal: &Journal,
    recovery: &Recovery,
) -> Result<(), StackError> {
    match journal.reserve() {
        Err(JournalError::NoSpace(e)) if recovery.records.is_empty() => {
            Err(no_room(options, state_dir, Some(journal.next_file_bytes()), e))
        }
        Err(JournalError::NoSpace(e)) => {
            log::warn!("nothing can be written before the journal has room: {e}");
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

fn no_room(
    options: &MountOptions,
    state_dir: &std::path::Path,
    needed: Option<u64>,
    source: std::io::Error,
) -> StackError {
    let dir = journal_dir(state_dir);
    let free = space_of(&dir).or_else(|_| space_of(&options.state_dir)).ok();
    let free = free.map(|space| human(space.free_bytes));
    StackError::NoRoom { dir, needed: needed.map(human), free, source }
}

/// Reads the last commit as a follower, which changes nothing: `--takeover` replaces the record
/// of the holder even if that is damaged, so first it must be certain that these are the keys of
/// this volume and that there is something to take over.
async fn prove_metadata(
    store: Arc<dyn ObjectStore>,
    options: KvOptions,
    open_timeout: Duration,
) -> Result<(), StackError> {
    let reader = Kv::open_reader(store, options, open_timeout).await?;
    let read = last_commit(&reader).await;
    // A reader has nothing to lose; a store that is away would hold it up.
    let closed = tokio::time::timeout(CLOSE_PENDING_MAX, reader.close(false)).await;
    if !matches!(closed, Ok(Ok(()))) {
        log::debug!("a reader did not close");
    }
    read?;
    Ok(())
}

impl Mounted {
    fn start(&self, refresh: Duration) {
        let mut tasks = self.tasks.lock();
        let sealed = self.shared.sealed.clone();
        let looks_again = async move {
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                sealed.look_again(Instant::now()).await;
            }
        };
        let Some(writer) = &self.writer else {
            let view = self.shared.view.clone();
            tasks.push(tokio::spawn(looks_again));
            tasks.push(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(refresh).await;
                    view.follow().await;
                }
            }));
            return;
        };
        tasks.push(tokio::spawn(writer.committer.clone().run()));
        tasks.push(tokio::spawn(looks_again));
        let journal = writer.journal.clone();
        tasks.push(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let journal = journal.clone();
                let synced = tokio::task::spawn_blocking(move || journal.sync_tick()).await;
                if let Ok(Err(e)) = synced {
                    log::error!("the journal stops: {e}");
                    return;
                }
            }
        }));
        let (lease, committer) = (writer.lease.clone(), writer.committer.clone());
        let (remembered, shared) = (self.remembered.clone(), self.shared.clone());
        tasks.push(tokio::spawn(async move {
            for beat in 1u64.. {
                let now = shared.beat_now.notified();
                let _ = tokio::time::timeout(HEARTBEAT, now).await; // whichever comes first
                shared.look_around(beat.is_multiple_of(KEYRING_BEATS)).await;
                {
                    let mut remembered = remembered.lock();
                    remembered.config_generation = shared.sse.generation();
                    remembered.keyring_generation = shared.key_watch.generation();
                }
                let mut lease = lease.lock().await;
                lease.writes_in(shared.sealed.oldest_epoch(), shared.rekey.left());
                match lease.beat().await {
                    Beat::Held => {}
                    Beat::Lost(holder) => {
                        log::error!("the volume was taken over by {holder}: read-only from now on");
                        committer.fence();
                        return;
                    }
                    Beat::Unknown(e) => log::warn!("lease not renewed: {e}"),
                }
            }
        }));
        let (view, committer) = (self.shared.view.clone(), writer.committer.clone());
        let (state, remembered) = (self.state.clone(), self.remembered.clone());
        tasks.push(tokio::spawn(async move {
            committer.until_fenced().await;
            // For the next mount: a copy of this directory may have gone on under the same
            // names, which nothing in the bucket would tell.
            let now = {
                let mut remembered = remembered.lock();
                remembered.fenced = true;
                remembered.clone()
            };
            if let Err(e) = state.save(&now, true) {
                log::warn!("what this machine remembers was not brought up to date: {e}");
            }
            // The writer's handle refuses reads from now on: go on as a follower does.
            while let Err(e) = view.kv().become_reader(OPEN_TIMEOUT).await {
                log::warn!("metadata cannot be read yet: {e}");
                tokio::time::sleep(READER_RETRY).await;
            }
            loop {
                view.follow().await;
                tokio::time::sleep(refresh).await;
            }
        }));
        let (state, remembered) = (self.state.clone(), self.remembered.clone());
        let (view, mut commits) = (self.shared.view.clone(), writer.committer.commits());
        tasks.push(tokio::spawn(async move {
            let mut saves = 0u32;
            while commits.changed().await.is_ok() {
                let row = *commits.borrow_and_update();
                let now = note_commit(&remembered, row, view.kv().manifest_id());
                saves += 1;
                let (state, durably) = (state.clone(), saves.is_multiple_of(6));
                let saved = tokio::task::spawn_blocking(move || state.save(&now, durably)).await;
                if let Ok(Err(e)) = saved {
                    log::warn!("what this machine remembers was not brought up to date: {e}");
                }
                tokio::time::sleep(REMEMBER_EVERY).await;
            }
        }));
        let fs = self.fs.clone();
        tasks.push(tokio::spawn(async move {
            match fs.reap_left_over().await {
                Ok(0) => {}
                Ok(n) => {
                    let files = counted(n, "file");
                    log::info!("removed {files} unlinked before a crash");
                }
                Err(e) => log::warn!("unlinked files of an earlier mount stay: {e}"),
            }
        }));
    }

    /// What a person should know of how it was mounted.
    pub fn notes(&self) -> Vec<String> {
        self.shared.sse.notes()
    }

    /// Looks at once whether the keyring or the configuration of the volume has changed; by itself
    /// a mount does so every few minutes.
    pub async fn follow_config(&self) {
        self.shared.follow_now().await;
    }

    /// Whether something in the bucket is known to be damaged.
    pub fn is_damaged(&self) -> bool {
        !self.shared.sealed.damaged().is_empty()
    }

    /// What was asked of the store so far.
    pub fn requests(&self) -> crate::store::RequestSnapshot {
        self.shared.layers.stats.snapshot()
    }

    /// The metadata, pending and committed, for what looks behind the file system.
    pub fn view(&self) -> &Arc<View> {
        &self.shared.view
    }

    /// Waits until the bucket has everything that was written before the call; true if it has.
    pub async fn sync(&self, limit: Duration) -> bool {
        match &self.writer {
            Some(writer) => writer.committer.sync(limit).await,
            None => true,
        }
    }

    /// Ends the mount in order: drains to the bucket for at most `drain`, flushes metadata,
    /// gives the lease back. True if everything is in the bucket; what is not stays in the
    /// journal for the next mount.
    pub async fn shutdown(self, drain: Duration) -> bool {
        let drained = self.sync(drain).await;
        if let Some(writer) = &self.writer {
            if let Err(e) = writer.journal.sync(writer.journal.last_pos()) {
                log::error!("the journal could not be synced: {e}");
            }
            writer.committer.stop();
        }
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for (n, task) in tasks.into_iter().enumerate() {
            // The committer ends by itself after its step; the others hold nothing.
            // A read-only mount has no committer: its task would never end.
            let ends = n == 0 && self.writer.is_some();
            let grace = if ends && drained { STEP_MAX } else { Duration::ZERO };
            let abort = task.abort_handle();
            if tokio::time::timeout(grace, task).await.is_err() {
                abort.abort();
            }
        }
        if let Some(writer) = &self.writer {
            writer.committer.give_up_cleaning(); // its task may have been aborted
        }
        self.remembered.lock().keyring_generation = self.shared.key_watch.generation();
        let close = self.shared.view.kv().close(drained);
        let limit = match &*self.shared.layers.retry.health().borrow() {
            _ if drained => CLOSE_MAX,
            Health::Online => CLOSE_PENDING_MAX,
            Health::OfflineSince(..) => CLOSE_AWAY_MAX,
        };
        match tokio::time::timeout(limit, close).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log::warn!("closing the metadata store: {e}"),
            Err(_) => log::warn!("closing the metadata store took too long, left as it is"),
        }
        if let Some(writer) = &self.writer {
            let row = writer.committer.committed();
            let now = note_commit(&self.remembered, row, self.shared.view.kv().manifest_id());
            if let Err(e) = self.state.save(&now, true) {
                log::warn!("what this machine remembers was not saved: {e}");
            }
            let mut lease = writer.lease.lock().await;
            let release = tokio::time::timeout(limit, lease.release()).await;
            match release {
                Ok(Beat::Held) => {}
                Ok(Beat::Lost(holder)) => log::warn!("the volume is held by {holder} now"),
                Ok(Beat::Unknown(e)) => log::warn!("the lease was not given back: {e}"),
                Err(_) => log::warn!("the lease was not given back in time"),
            }
        }
        drained
    }
}

fn note_commit(remembered: &Mutex<Remembered>, row: CommitRow, manifest: u64) -> Remembered {
    let mut state = remembered.lock();
    state.sequence = state.sequence.max(row.sequence);
    state.manifest = state.manifest.max(manifest);
    state.journal_committed = state.journal_committed.max(row.position.0);
    state.lineage = state.lineage.max(row.sequence);
    state.clone()
}
