//! From a STORE to a running mount: keyring, configuration, local state, metadata, journal, lease, in
//! this order. Everything is looked at before anything is written to the bucket: the metadata are
//! opened to be read, compared with what this machine remembers, and only then, at that very
//! state, opened for writing (`store/kv/roles`). So a mount that is refused has changed nothing
//! and fenced nobody.
//!
//! | file | holds |
//! | --- | --- |
//! | `canary` | the probe, and what its refusal means |
//! | `neighbours` | whether a prefix is free, also of volumes above and below it |
//! | `unmounted` | a volume opened to be looked at, for `audit` and `migrate` |

pub(super) mod canary;
pub(super) mod neighbours;
pub(super) mod unmounted;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::base::{JournalPos, SystemClock, counted, hex};
use crate::commit::layouts::SegmentRows;
use crate::commit::replay::replay;
use crate::commit::view::ViewOptions;
use crate::commit::{CommitOptions, Committer, View, ViewError, last_commit};
use crate::data::{BlockCache, BlockCacheOptions};
use crate::fs::{Fs, FsOptions, FsParts};
use crate::journal::{Journal, JournalError, JournalOptions, RecordLoc, Recovery};
use crate::meta::{BesideRow, CommitRow, DecodeError, Stats, keys};
use crate::seal::VolumeKeys;
use crate::stack::keys::watch::KeyWatch;
use crate::stack::records::config;
use crate::stack::records::config_use::VolumeSse;
use crate::stack::records::departure::Departure;
use crate::stack::records::history::{refuse_discord, remember};
use crate::stack::records::last_use::note_use;
use crate::stack::records::lease::{Beat, Lease, LeaseAsk};
use crate::stack::records::lineage::{
    Lineage, copied_elsewhere, go_on_beside, lineage, refuse_lost,
};
use crate::stack::records::state::{Remembered, StateFile};
use crate::stack::running::disks::{human, make_dir, room_for, space_of};
use crate::stack::running::gates::{SharedLease, gates};
use crate::stack::running::mount::{Mounted, Writer};
use crate::stack::running::status::Shared;
use crate::stack::{Accept, Attended, Layers, MountOptions, StackError, unlock_store};
use crate::store::kv::{Kv, KvError, KvOptions};
use crate::store::{Sealed, SegmentStore};
use canary::probe_store;

/// How long a mount that failed may take to give the lease back.
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);
/// How often the metadata are looked at when others keep changing them in between.
const LOOKS_MAX: u32 = 3;

/// Opens a volume: keyring, metadata, lease, journal with its replay; then starts the background
/// tasks. Must run inside a tokio runtime.
///
/// # Errors
/// See [`StackError`]; whatever fails, nothing of the volume has been changed, and the lease is
/// given back if it was free. [`StackError::Stopped`] when
/// [`Attended::stop`](crate::stack::Attended::stop) was called meanwhile: the same holds.
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
        ask: LeaseAsk,
        attended: Attended,
    ) -> Result<(), StackError> {
        let acquire = async move { Lease::acquire(store, ask, &attended).await };
        let acquired = self.acquiring.insert(tokio::spawn(acquire)).await;
        self.acquiring = None;
        let lease = acquired.map_err(|e| StackError::store_broke("taking the lease", e))??;
        self.lease = Some(Arc::new(tokio::sync::Mutex::new(lease)));
        Ok(())
    }

    /// Whether somebody held it, until just now or still.
    async fn was_held(&self) -> bool {
        match &self.lease {
            Some(lease) => lease.lock().await.was_held(),
            None => false,
        }
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

/// What the metadata said when they were looked at.
struct Found {
    commit: Option<CommitRow>,
    stats: Stats,
    /// The mount that made the last commit, in hex.
    writer: Option<String>,
    beside: BesideRow,
}

impl Found {
    async fn read(kv: &Kv) -> Result<Found, StackError> {
        let lacks = |what| ViewError::from(DecodeError(what));
        let commit = last_commit(kv).await?;
        let stats = kv.get(&keys::stats()).await?.ok_or_else(|| lacks("no statistics"))?;
        kv.get(&keys::next_ino()).await?.ok_or_else(|| lacks("no inode number"))?;
        let writer = kv.get(&keys::writer()).await?.map(|id| hex(&id));
        let beside = kv.get(&keys::beside()).await?;
        let beside = beside.as_deref().map(BesideRow::decode).transpose();
        let beside = beside.map_err(ViewError::from)?.unwrap_or_default();
        let stats = Stats::decode(&stats).map_err(ViewError::from)?;
        Ok(Found { commit, stats, writer, beside })
    }

    fn sequence(&self) -> u64 {
        self.commit.map_or(0, |row| row.sequence)
    }

    /// What becomes of the local journal.
    fn lineage(
        &self,
        recovery: &Recovery,
        before: &Remembered,
        options: &MountOptions,
    ) -> Result<Lineage, StackError> {
        let accept = options.accept_rollback.older || options.accept_rollback.history;
        match copied_elsewhere(recovery, self.commit, self.writer.as_deref(), before) {
            Some(committed) => Ok(go_on_beside(recovery, self.commit, committed)),
            None => lineage(recovery, self.commit, before, accept),
        }
    }
}

/// The volume as it is opened to be looked at.
struct Look<'a> {
    options: &'a MountOptions,
    name: &'a str,
    before: &'a Remembered,
    attended: Attended,
    kv_options: KvOptions,
    /// The generation of the configuration.
    config: u64,
}

impl Look<'_> {
    /// Opens the metadata in `store` to be checked, and checks them.
    async fn open(
        &self,
        store: Arc<dyn ObjectStore>,
        local: Option<&Recovery>,
    ) -> Result<(Kv, Found), StackError> {
        let limit = self.options.open_timeout;
        self.attended.waits_for(format!("the metadata of {}", self.name), limit);
        let kv = Kv::open_to_check(store, self.kv_options.clone(), limit).await?;
        match self.check(&kv, local).await {
            Ok(found) => Ok((kv, found)),
            Err(e) => {
                let _ = kv.close(false).await; // a reader: there is nothing to lose
                Err(e)
            }
        }
    }

    async fn check(&self, kv: &Kv, local: Option<&Recovery>) -> Result<Found, StackError> {
        let found = Found::read(kv).await?;
        let (at_least, accept) = (self.options.at_least, self.options.accept_rollback);
        refuse_discord(kv, found.commit, self.before, at_least, accept).await?;
        let (config, seen) = (self.config, found.beside.config);
        if config < seen && !accept.config {
            return Err(StackError::ConfigRollback { found: config, seen });
        }
        if let Some(recovery) = local {
            match refuse_lost(recovery, found.commit, self.before) {
                Err(e) if accept.journal => log::error!("{e}: accepted, they are given up"),
                outcome => outcome?,
            }
            found.lineage(recovery, self.before, self.options)?;
        }
        Ok(found)
    }
}

/// Makes the handle that was checked the writer's. What it shows then must be what was checked.
async fn open_for_writing(
    kv: &Kv,
    found: &Found,
    options: &MountOptions,
) -> Result<(), StackError> {
    kv.become_writer(options.open_timeout).await?;
    if last_commit(kv).await? == found.commit {
        return Ok(());
    }
    let _ = kv.close(false).await; // nothing was written
    Err(KvError::Fenced.into())
}

/// A journal that goes on, the last record that is in the bucket, and what is to be replayed.
type Local = (Arc<Journal>, JournalPos, Vec<RecordLoc>);

/// Goes on with the local journal, or sets it aside and begins another; where it was put then.
async fn go_on(
    (journal, recovery): (Journal, Recovery),
    found: &Found,
    look: &Look<'_>,
    state_dir: &Path,
    keys: &VolumeKeys,
) -> Result<(Local, Option<std::path::PathBuf>), StackError> {
    match found.lineage(&recovery, look.before, look.options)? {
        Lineage::Continues(base, todo) => {
            if base > recovery.last {
                journal.start_after(base)?;
            }
            Ok(((Arc::new(journal), base, todo), None))
        }
        Lineage::Overtaken => {
            let aside = journal.set_aside(crate::base::Clock::now(&SystemClock))?;
            log::error!(
                "the local journal holds changes that another writer has overtaken; it was set \
                 aside at {}",
                aside.display()
            );
            drop(journal);
            let (journal, recovery) = open_journal(look.options, state_dir, keys).await?;
            let base = JournalPos(recovery.first.0.saturating_sub(1));
            Ok(((Arc::new(journal), base, Vec::new()), Some(aside)))
        }
    }
}

/// [`mount`], leaving the lease in `held` once it is taken.
async fn assemble(options: MountOptions, held: &mut Held) -> Result<Mounted, StackError> {
    let name = options.store.location.to_string();
    let mut store_options = options.store.seen_in(&options.state_dir);
    if options.accept_rollback.keyring {
        store_options.state_dir = None;
    }
    let layers = Layers::connect(&store_options, options.read_timeout, false).await?;
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
    let state_dir = options.state_dir.join(volume.to_string());
    let cache_dir = options.cache_dir.join(volume.to_string());
    make_dir(&state_dir)?;
    make_dir(&cache_dir)?;
    note_use(&options.state_dir, &options.store, &keyring, slot);
    let layers = layers.with_cache(cache_dir, options.cache_bytes_max);
    let state = Arc::new(StateFile::new(&state_dir, keys.clone()));
    let accept = options.accept_rollback;
    let before = state.load_continued(accept.keyring)?.unwrap_or_default();
    if !accept.keyring {
        before.check_keyring(keyring.generation())?;
    }
    if config_generation < before.config_generation && !accept.config {
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
    let kv_options = KvOptions {
        read_timeout: options.read_timeout,
        refresh: options.refresh,
        collect_age: options.collect_age,
        ..KvOptions::default()
    };
    let look = Look {
        options: &options,
        name: &name,
        before: &before,
        attended: attended.clone(),
        kv_options,
        config: config_generation,
    };
    let mut instance = [0; 16];
    getrandom::fill(&mut instance).expect("the operating system gives random bytes");
    let recovery = local.as_ref().map(|(_, recovery)| recovery);
    let mut log_store = sealed.clone();
    let (mut kv, mut found) = look.open(store.clone(), recovery).await?;
    if read_only {
        kv.follow();
    } else {
        probe_store(&layers).await?;
        let ask = LeaseAsk {
            mount: instance,
            before: before.instance.clone(),
            least: found.beside.lease,
            takeover: options.takeover,
        };
        held.acquire(store.clone(), ask, attended.clone()).await?;
        // Whoever had it until now may have gone on since.
        let mut is_old = held.was_held().await;
        for tries_left in (0..LOOKS_MAX).rev() {
            if is_old {
                let _ = kv.close(false).await; // nothing was written through it
                log_store = Arc::new(sealed.apart());
                (kv, found) = look.open(log_store.clone(), recovery).await?;
            }
            match open_for_writing(&kv, &found, &options).await {
                Err(StackError::Metadata(KvError::Fenced)) if tries_left > 0 => is_old = true,
                outcome => {
                    outcome?;
                    break;
                }
            }
        }
    }
    let kv = Arc::new(kv);
    let segments = Arc::new(SegmentStore::compressing(store.clone(), compress));
    segments.ask(Arc::new(SegmentRows(kv.clone())));
    let blocks = BlockCache::new(segments.clone(), BlockCacheOptions::default());
    let (mut set_aside, mut parts) = (None, None);
    if let Some(local) = local {
        let (local, aside) = go_on(local, &found, &look, &state_dir, &keys).await?;
        (parts, set_aside) = (Some(local), aside);
    }
    let base = parts.as_ref().map_or(JournalPos(0), |(_, base, _)| *base);
    let view = Arc::new(View::new(kv.clone(), base, found.stats, view_options(&options)));
    let mut remembered = Remembered {
        manifest: kv.manifest_id(),
        keyring_generation: keyring.generation(),
        config_generation,
        ..before.clone()
    };
    // What was accepted counts from here on.
    (remembered.sequence, remembered.chain) = (0, String::new());
    (remembered.checkpoint, remembered.checkpoint_chain) = (0, String::new());
    remember(&kv, found.commit, &mut remembered).await?;
    let (mut journal, mut committer) = (None, None);
    if let Some((opened, base, todo)) = parts {
        opened.release(base);
        let replayed = replay(&view, &opened, todo).await?;
        if replayed > 0 {
            log::info!("replayed {} of the local journal", counted(replayed, "record"));
        }
        remembered.journal = opened.id().to_string();
        remembered.journal_committed = base.0;
        remembered.journal_synced = 0;
        remembered.lineage = found.sequence();
        remembered.seen_instance = found.writer.clone().unwrap_or_default();
        remembered.instance = hex(&instance);
        remembered.fenced = false;
        let row = CommitRow {
            journal: opened.id(),
            position: base,
            sequence: found.sequence(),
            time_secs: found.commit.map_or(0, |row| row.time_secs),
            writer_epoch: kv.writer_epoch(),
            chain: found.commit.map(|row| row.chain).unwrap_or_default(),
        };
        let commit = CommitOptions {
            interval: options.commit_interval,
            dead_grace: options.dead_grace,
            instance,
            clean: options.clean,
        };
        let gates = gates(
            sealed.clone(),
            segments.clone(),
            (held.lease.clone(), sse.clone()),
            keys.clone(),
        );
        let history = keys.history_key();
        let (view, journal_of, to) = (view.clone(), opened.clone(), segments.clone());
        committer = Some(Committer::new(view, journal_of, to, row, commit, history, gates));
        journal = Some(opened);
        state.save(&remembered, true)?;
    } else if accept == Accept::default() {
        state.add_seen(&remembered, true)?;
    } else {
        state.set_seen(&remembered)?;
    }
    // By now with what the journal had pending.
    let next_ino = view.get(&keys::next_ino()).await?;
    let next_ino = next_ino.ok_or_else(|| ViewError::from(DecodeError("no inode number")))?;
    let next_ino = crate::fs::decode_next_ino(&next_ino).map_err(ViewError::from)?;
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
        journal_dir: journal_dir(&state_dir),
        state: state.clone(),
        layers,
        sealed,
        view,
        blocks,
        journal: writer.as_ref().map(|w| w.journal.clone()),
        committer: writer.as_ref().map(|w| w.committer.clone()),
        lease_renewed: writer.as_ref().and_then(|w| Some(w.lease.try_lock().ok()?.renewed())),
        remembered: Arc::new(Mutex::new(remembered)),
        rate: Default::default(),
    });
    let mounted = Mounted::new(fs, shared, writer, log_store);
    mounted.start(options.refresh);
    attended.goes_on();
    Ok(mounted)
}

fn view_options(options: &MountOptions) -> ViewOptions {
    let quarter = (options.journal_bytes_max / 4).max(8 << 20);
    let default = ViewOptions::default();
    ViewOptions {
        generation_bytes_max: default.generation_bytes_max.min(quarter),
        burst_bytes_max: default.burst_bytes_max.min(quarter),
        ..default
    }
}

fn journal_dir(state_dir: &Path) -> std::path::PathBuf {
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
    state_dir: &Path,
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
    state_dir: &Path,
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
    state_dir: &Path,
    needed: Option<u64>,
    source: std::io::Error,
) -> StackError {
    let dir = journal_dir(state_dir);
    let free = space_of(&dir).or_else(|_| space_of(&options.state_dir)).ok();
    let free = free.map(|space| human(space.free_bytes));
    StackError::NoRoom { dir, needed: needed.map(human), free, source }
}
