//! From a STORE to a running mount: keyring, configuration, local state, metadata, journal, lease, in
//! this order. Everything is looked at before anything is written to the bucket: the metadata are
//! opened to be read, compared with what this machine remembers (`look`), and only then, at that very
//! state, opened for writing (`claim`). So a mount that is refused has changed nothing and fenced
//! nobody.
//!
//! | file | holds |
//! | --- | --- |
//! | `neighbours` | whether a prefix is free, also of volumes above and below it |
//! | `unmounted` | a volume opened to be looked at, for `audit` and `migrate` |

pub(super) mod neighbours;
pub(super) mod unmounted;

use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use object_store::ObjectStore;
use parking_lot::{Mutex, RwLock};

use crate::base::SystemClock;
use crate::commit::View;
use crate::commit::layouts::SegmentRows;
use crate::commit::view::ViewOptions;
use crate::data::{BlockCache, BlockCacheOptions};
use crate::fs::{Fs, FsOptions, FsParts, SnapDir, Tree};
use crate::meta::Stats;
use crate::seal::{Keyring, VolumeKeys};
use crate::stack::keys::watch::KeyWatch;
use crate::stack::records::config;
use crate::stack::records::departure::Departure;
use crate::stack::records::encryption::VolumeSse;
use crate::stack::records::history::remember;
use crate::stack::records::last_use::note_use;
use crate::stack::records::state::{Remembered, StateFile};
use crate::stack::running::claim::{Ask, Held, Opener, WritePlan, claim, random_instance};
use crate::stack::running::disks::make_dir;
use crate::stack::running::look::{Look, Seat, Source};
use crate::stack::running::mount::Mounted;
use crate::stack::running::past::{Pinned, SnapshotsOf, WATCH_EVERY};
use crate::stack::running::pins::Pins;
use crate::stack::running::status::OpenVolume;
use crate::stack::{Accept, MountOptions, StackError, StoreStack, unlock_store};
use crate::store::kv::{Kv, KvOptions, start_of_metadata};
use crate::store::names::{CONFIG_NAME, LEASE_NAME};
use crate::store::{Compression, Sealed, SegmentStore};

/// Opens a volume: keyring, metadata, lease, journal with its replay; then starts the background
/// tasks. Must run inside a tokio runtime.
///
/// # Errors
/// See [`StackError`]; whatever fails, nothing of the volume has been changed, and the lease is
/// given back if it was free. [`StackError::Stopped`] when
/// [`Attended::stop`](super::Attended::stop) was called meanwhile: the same holds.
pub async fn mount(options: MountOptions) -> Result<Mounted, StackError> {
    let mut options = options;
    options.read_only |= options.snapshot.is_some();
    let attended = options.store.attended.clone();
    let mut held = Held::default();
    let mounted = tokio::select! {
        mounted = assemble(options, &mut held).boxed() => mounted,
        () = attended.stopped() => Err(StackError::Stopped),
    };
    if mounted.is_err() {
        held.give_back().await;
    }
    mounted
}

/// [`mount`], leaving the lease in `held` once it is taken.
async fn assemble(options: MountOptions, held: &mut Held) -> Result<Mounted, StackError> {
    let ground = Ground::open(&options).await?;
    let (before, attended) = (&ground.before, ground.layers.attended.clone());
    // Locked before anything remote is touched: a second mount of this machine stops here.
    let opener = Opener { plan: &ground.plan, keys: &ground.keys, attended: &attended };
    let local = match options.read_only {
        true => None,
        false => Some(opener.open().await?),
    };
    let sealed = sealed_when_free(&ground.layers, &ground.keys).await?;
    sealed.renew_by(ground.key_watch.clone());
    let look = Look {
        layers: &ground.layers,
        sealed: &sealed,
        name: &ground.name,
        before,
        attended: attended.clone(),
        source: Source::Alone(ground.kv_options.clone()),
        open_timeout: options.open_timeout,
        config: ground.config_revision,
        at_least: options.at_least,
        accept: options.accept_rollback,
    };
    let recovery = local.as_ref().map(|(_, recovery)| recovery);
    let mut seat = look.open(sealed.clone(), recovery).await?;
    let instance = random_instance();
    match recovery {
        None => seat.kv.follow(),
        Some(recovery) => {
            let ask = Ask { look: &look, recovery, instance, takeover: options.takeover };
            seat = claim(seat, &ask, held).await?;
        }
    }
    let mut remembered = Remembered {
        manifest: seat.kv.manifest_id(),
        keyring_revision: ground.keyring.revision(),
        config_revision: ground.config_revision,
        ..before.clone()
    };
    // What was accepted counts from here on.
    remembered.forget_seen();
    remember(&seat.kv, seat.found.commit, &mut remembered).await?;
    let (before, accept) = (before.clone(), options.accept_rollback);
    let Seat { kv, found, log_store } = seat;
    let followed = Arc::new(kv);
    let pinned = match &options.snapshot {
        Some(name) => Some(Pinned::open(&followed, name, options.open_timeout).await?),
        None => None,
    };
    let metadata = Metadata { followed, log_store, pinned, stats: found.stats };
    let shared = ground.shared(&options, sealed, metadata, remembered);
    match local {
        Some(local) => shared.take_up(local, &found, (&before, accept), held, instance).await?,
        None if accept == Accept::default() => {
            let seen = shared.remembered.lock().clone();
            shared.state.add_seen(&seen, true)?;
        }
        None => {
            let seen = shared.remembered.lock().clone();
            shared.state.set_seen(&seen)?;
        }
    }
    shared.layers.ahead.end();
    shared.layers.retry.set_hurried(false);
    let mounted = Mounted::start(shared);
    attended.goes_on();
    Ok(mounted)
}

/// Begins to fetch what every start reads, while the keyring is read and the key is derived.
fn foresee(layers: &StoreStack, read_only: bool) {
    layers.ahead.whole(CONFIG_NAME.into());
    if !read_only {
        layers.ahead.whole(LEASE_NAME.into());
    }
    let guess = layers.place.start().map(|start| (start.manifest, start.log.0, start.log.1));
    start_of_metadata(&layers.ahead, guess);
}

/// The metadata of a mount.
struct Metadata {
    /// The newest.
    followed: Arc<Kv>,
    /// What they are read through.
    log_store: Arc<Sealed>,
    /// A snapshot that is shown in their place.
    pinned: Option<Pinned>,
    stats: Stats,
}

/// What a mount stands on before its metadata are opened.
struct Ground {
    name: String,
    layers: StoreStack,
    keyring: Keyring,
    keys: VolumeKeys,
    key_watch: Arc<KeyWatch>,
    sse: Arc<VolumeSse>,
    config_revision: u64,
    compress: Compression,
    state: Arc<StateFile>,
    /// What this machine remembers of the volume.
    before: Remembered,
    kv_options: KvOptions,
    plan: WritePlan,
}

impl Ground {
    async fn open(options: &MountOptions) -> Result<Ground, StackError> {
        let name = options.store.location.to_string();
        let mut store_options = options.store.seen_in(&options.state_dir);
        if options.accept_rollback.keyring {
            store_options.state_dir = None;
        }
        let layers = StoreStack::connect(&store_options, options.read_timeout, false).await?;
        foresee(&layers, options.read_only);
        let unlocked = unlock_store(&layers, &name, &options.key).await?;
        layers.retry.set_hurried(true); // it has just answered
        let (keyring, keys) = (unlocked.keyring.clone(), unlocked.keys.clone());
        let slot = unlocked.slot;
        let key_watch = Arc::new(KeyWatch::new(layers.retry.clone(), &name, unlocked));
        let volume = keys.volume_id();
        if !options.read_only {
            keyring.check_writable()?;
        }
        let first = Sealed::new(layers.retry.clone(), keys.clone());
        first.renew_by(key_watch.clone());
        let mut loaded = config::load(&first).await?;
        let state_dir = options.state_dir.join(volume.to_string());
        let accept = options.accept_rollback;
        let state = Arc::new(StateFile::new(&state_dir, keys.clone()));
        let before = state.load_continued(accept.keyring)?.unwrap_or_default();
        if loaded.config.revision < before.config_revision {
            // It was fetched ahead, and somebody may have changed it since.
            loaded = config::load(&first).await?;
        }
        let config_revision = loaded.config.revision;
        let compress = options.compress.unwrap_or(loaded.config.compress);
        let ask = options.store.sse.clone();
        let sse = Arc::new(VolumeSse::begin(layers.s3.clone(), ask, loaded.config)?);
        for note in sse.notes() {
            log::warn!("{note}");
        }
        let cache_dir = options.cache_dir.join(volume.to_string());
        make_dir(&state_dir)?;
        make_dir(&cache_dir)?;
        note_use(&options.state_dir, &options.store, &keyring, slot);
        let layers = layers.with_cache(cache_dir, options.cache_bytes_max);
        if !accept.keyring {
            before.check_keyring(keyring.revision())?;
        }
        if config_revision < before.config_revision && !accept.config {
            let (found, seen) = (config_revision, before.config_revision);
            return Err(StackError::ConfigRollback { found, seen });
        }
        let kv_options = KvOptions {
            read_timeout: options.read_timeout,
            refresh: options.refresh,
            collect_age: options.collect_age,
            ..KvOptions::default()
        };
        let plan = WritePlan::of(options, &state_dir);
        Ok(Ground {
            name,
            layers,
            keyring,
            keys,
            key_watch,
            sse,
            config_revision,
            compress,
            state,
            before,
            kv_options,
            plan,
        })
    }

    /// The open volume, which nobody writes yet.
    fn shared(
        self,
        options: &MountOptions,
        sealed: Arc<Sealed>,
        metadata: Metadata,
        remembered: Remembered,
    ) -> Arc<OpenVolume> {
        let store: Arc<dyn ObjectStore> = sealed.clone();
        let Metadata { followed, log_store, pinned, stats } = metadata;
        let (kv, stats) = match &pinned {
            Some(pinned) => (pinned.kv.clone(), pinned.stats),
            None => (followed.clone(), stats),
        };
        let segments = Arc::new(SegmentStore::compressing(store, self.compress));
        segments.ask(Arc::new(SegmentRows(kv.clone())));
        let blocks = BlockCache::new(segments.clone(), BlockCacheOptions::default());
        let nothing = crate::base::JournalPos(0);
        let view = Arc::new(View::new(kv, nothing, stats, view_options(options)));
        let fs = Fs::new(
            FsParts {
                view: view.clone(),
                blocks: blocks.clone(),
                clock: Arc::new(SystemClock),
                name_hash_key: self.keys.name_hash_key(),
            },
            FsOptions {
                fsync_remote: options.fsync_remote,
                full_timeout: options.full_timeout,
                ..FsOptions::default()
            },
        );
        let source = SnapshotsOf {
            view: view.clone(),
            blocks: blocks.clone(),
            name_hash_key: self.keys.name_hash_key(),
            open_timeout: options.read_timeout,
        };
        let (shown, refresh) = match &pinned {
            Some(_) => (SnapDir::Off, options.refresh.max(WATCH_EVERY)),
            None => (options.snapdir, options.refresh),
        };
        if pinned.is_none() {
            fs.set_quota(self.sse.quota());
        }
        let tree = Tree::new(fs.clone(), Arc::new(source), shown);
        let state_dir = options.state_dir.join(self.keys.volume_id().to_string());
        let pins = Pins::new(&state_dir, self.keys.clone());
        Arc::new(OpenVolume {
            volume: self.keys.volume_id(),
            segments,
            store: self.name,
            server: options.store.server.clone(),
            mount_point: options.mount_point.clone(),
            since: Instant::now(),
            journal_bytes_max: options.journal_bytes_max,
            cache_bytes_max: options.cache_bytes_max,
            refresh,
            commit_interval: Mutex::new(options.commit_interval),
            sse: self.sse,
            key_watch: self.key_watch,
            keys: self.keys,
            rekey: Arc::default(),
            scheduled: Default::default(),
            schedule_now: Arc::default(),
            beat_now: Arc::default(),
            plan: self.plan,
            state: self.state,
            layers: self.layers,
            sealed,
            log_store: Mutex::new(log_store),
            view,
            followed,
            pinned,
            fs,
            tree,
            kernel: Default::default(),
            blocks,
            writer: RwLock::default(),
            role: Default::default(),
            kernel_side: Mutex::default(),
            remembered: Mutex::new(remembered),
            rate: Default::default(),
            pins,
        })
    }
}

fn view_options(options: &MountOptions) -> ViewOptions {
    let quarter = (options.journal_bytes_max / 4).max(8 << 20);
    let default = ViewOptions::default();
    ViewOptions {
        group_bytes_max: default.group_bytes_max.min(quarter),
        burst_bytes_max: default.burst_bytes_max.min(quarter),
        ..default
    }
}

/// The store stack with its cache, once a process that is about to let go of that has.
async fn sealed_when_free(
    layers: &StoreStack,
    keys: &VolumeKeys,
) -> Result<Arc<Sealed>, StackError> {
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
