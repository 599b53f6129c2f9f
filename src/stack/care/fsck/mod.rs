//! `fsck`: reads a whole volume and says what is wrong with it and which files that touches.
//!
//! It opens the metadata read-only, at one state that does not follow the writer, so a mount
//! elsewhere is neither fenced nor disturbed. `repair` goes through an ordinary mount: it takes
//! the lease (and is refused while another mount has it), replays the local journal first, and
//! every row it puts right is journalled and committed like a user's.
//!
//! | file | holds |
//! | --- | --- |
//! | `objects` | the bucket's listing against the rows, strangers, leaked segments |
//! | `data` | every sealed byte, in parallel, from where an interrupted run stopped |
//! | `paths` | from inode numbers and damaged ranges to file names |
//! | `snapshots` | each snapshot by the same rules |
//! | `repair` | what is put right, and how |

mod data;
mod objects;
mod paths;
mod repair;
mod snapshots;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use parking_lot::Mutex;

use crate::base::VolumeId;
use crate::commit::check::{CheckOptions, Finding, Report, Segments, check};
use crate::commit::last_commit;
use crate::meta::{BesideRow, CommitRow, keys};
use crate::seal::VolumeKeys;
use crate::stack::keys::watch::KeyWatch;
use crate::stack::options::OPEN_TIMEOUT;
use crate::stack::records::config;
use crate::stack::records::encryption::VolumeSse;
use crate::stack::records::history::refuse_discord;
use crate::stack::records::last_use::note_use;
use crate::stack::records::lease::held_by;
use crate::stack::records::state::{Remembered, StateFile};
use crate::stack::{
    Accept, Key, MountOptions, StackError, StoreOptions, StoreStack, Unlocked, mount, unlock_store,
};
use crate::store::Sealed;
use crate::store::kv::{Kv, KvError, KvOptions};
use objects::{Listing, Objects};
pub(super) use paths::printable;

/// The state that is checked stays as it is for this long: readers refresh no earlier.
const FROZEN: Duration = Duration::from_secs(24 * 3600);
/// How often the metadata are opened because somebody has committed meanwhile.
const FROZEN_TRIES: u32 = 5;
/// How long a repair may take to reach the bucket.
const SYNC_MAX: Duration = Duration::from_secs(600);
/// The same when it was stopped.
const STOPPED_SYNC_MAX: Duration = Duration::from_secs(5);
/// Repairs show what they left to repair: names first, then the counts of them.
const ROUNDS_MAX: usize = 6;
/// Names that one problem lists.
pub(super) const FILES_MAX: usize = 20;

/// What `sealfs fsck` does.
#[derive(Debug)]
pub struct FsckOptions {
    /// The store.
    pub store: StoreOptions,
    /// Opens the volume.
    pub key: Key,
    /// What this machine remembers of volumes, and where an interrupted run left its position.
    pub state_dir: PathBuf,
    /// Read and authenticate every sealed byte.
    pub data: bool,
    /// Go on where an interrupted run with `data` stopped.
    pub resume: bool,
    /// Put right what can be.
    pub repair: bool,
    /// Refuse a bucket older than this commit.
    pub at_least: u64,
    /// How long one read of the store may take.
    pub read_timeout: Duration,
}

/// The phase in which [`FsckProgress::bytes`] count.
pub const READING_DATA: &str = "data";

/// How far a check is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct FsckProgress {
    /// What it does now.
    pub phase: Mutex<&'static str>,
    /// Metadata rows read.
    pub rows: AtomicU64,
    /// Bytes of data done with, and to be read in all (0: not known yet).
    pub bytes: (AtomicU64, AtomicU64),
    /// Set it to have the check stop soon; a position is kept.
    pub stop: AtomicBool,
}

impl FsckProgress {
    fn begin(&self, phase: &'static str) {
        *self.phase.lock() = phase;
    }
}

/// Something that is wrong, and the files it touches, [`FILES_MAX`] of them at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A sentence.
    pub what: String,
    /// Paths from the root of the volume, with what of them is touched.
    pub files: Vec<String>,
}

/// What a check came to.
#[derive(Clone, Debug)]
pub struct FsckReport {
    /// The volume.
    pub volume: VolumeId,
    /// The commit that was checked.
    pub sequence: u64,
    /// Who had the volume mounted read-write meanwhile.
    pub writer: Option<String>,
    /// What the metadata hold.
    pub metadata: Report,
    /// Objects in the bucket, and their bytes as stored.
    pub objects: (u64, u64),
    /// Objects and plaintext bytes that were read and authenticated (with `data`).
    pub read: Option<(u64, u64)>,
    /// What is wrong now.
    pub problems: Vec<Problem>,
    /// What was wrong and was put right.
    pub repaired: Vec<String>,
    /// What is not wrong but worth knowing.
    pub notes: Vec<String>,
    /// False if it was stopped before everything was looked at.
    pub complete: bool,
}

/// What a check reads from.
struct Volume {
    store: Arc<dyn ObjectStore>,
    sealed: Arc<Sealed>,
    layers: StoreStack,
    keys: VolumeKeys,
    state_dir: PathBuf,
    kv_options: KvOptions,
}

impl Volume {
    /// The metadata as they are now; later commits do not show in it. A commit that comes in while
    /// they are opened has it begin again.
    async fn frozen(&self) -> Result<Kv, StackError> {
        for _ in 1..FROZEN_TRIES {
            let apart = Arc::new(self.sealed.apart());
            let opened = self.frozen_from(apart.clone()).await;
            if opened.is_ok() || !apart.is_behind() {
                return opened;
            }
        }
        self.frozen_from(Arc::new(self.sealed.apart())).await
    }

    async fn frozen_from(&self, apart: Arc<Sealed>) -> Result<Kv, StackError> {
        Ok(Kv::open_to_check(apart, self.kv_options.clone(), OPEN_TIMEOUT).await?)
    }
}

/// Checks a volume, and repairs it if asked to.
///
/// # Errors
/// What keeps it from looking: [`StackError`] as for a mount. What it finds is in the report.
pub async fn fsck(
    options: FsckOptions,
    progress: Arc<FsckProgress>,
) -> Result<FsckReport, StackError> {
    progress.begin("opening");
    let name = options.store.location.to_string();
    let attended = options.store.attended.clone();
    let open = async {
        let store = options.store.seen_in(&options.state_dir);
        let layers = StoreStack::connect(&store, options.read_timeout, false).await?;
        let unlocked = unlock_store(&layers, &name, &options.key).await?;
        let sealed = Sealed::new(layers.retry.clone(), unlocked.keys.clone());
        let watch = Arc::new(KeyWatch::new(layers.retry.clone(), &name, unlocked.clone()));
        sealed.renew_by(watch.clone());
        Ok((layers, unlocked, watch, config::load(&sealed).await?))
    };
    let (layers, unlocked, watch, loaded) = attended.unless_stopped(open).await?;
    let Unlocked { keyring, keys, slot, .. } = unlocked;
    note_use(&options.state_dir, &options.store, &keyring, slot);
    let id = keys.volume_id();
    // The encryption that the volume remembers is needed to read objects under it.
    let config_revision = loaded.config.revision;
    let _sse = VolumeSse::begin(layers.s3.clone(), options.store.sse.clone(), loaded.config)?;
    let sealed = layers.sealed(&keys)?;
    // Somebody may rotate the keys while it looks.
    sealed.renew_by(watch);
    let store: Arc<dyn ObjectStore> = sealed.clone();
    let state_dir = options.state_dir.join(id.to_string());
    let remembered = StateFile::<Remembered>::new(&state_dir, keys.clone()).load()?;
    let remembered = remembered.unwrap_or_default();
    let mut writer = None;
    let mut mended = None;
    attended.goes_on();
    if options.repair {
        mended = Some(repair_mount(&options).await?);
    } else {
        writer = held_by(&store).await?;
    }
    let kv_options =
        KvOptions { read_timeout: options.read_timeout, refresh: FROZEN, ..KvOptions::default() };
    let volume = Volume { store, sealed, layers, keys, state_dir, kv_options };
    let mut run = Run {
        writer: writer.is_some(),
        volume: &volume,
        progress: &progress,
        options: &options,
        remembered,
        keyring_revision: keyring.revision(),
        config_revision,
    };
    let mut repaired = Vec::new();
    let outcome = match &mended {
        None => run.look().await,
        // Dropped between two requests: what was put right until then is journalled.
        Some((mounted, _)) => tokio::select! {
            outcome = run.look_and_repair(mounted, &mut repaired) => outcome,
            () = attended.stopped() => Err(StackError::Stopped),
        },
    };
    if let Some((mounted, cache)) = mended {
        // Whatever was found: what was put right must get to the bucket, and the lease back.
        let limit = if attended.is_stopped() { STOPPED_SYNC_MAX } else { SYNC_MAX };
        if !mounted.shutdown(limit).await {
            log::warn!("the last repairs are in the local journal only: mount the volume here");
        }
        drop(cache);
    }
    let (look, problems) = outcome?;
    Ok(FsckReport {
        volume: id,
        sequence: look.commit.map_or(0, |row| row.sequence),
        writer,
        metadata: look.report,
        objects: (look.objects.count, look.objects.bytes),
        read: look.read,
        problems,
        repaired,
        notes: look.notes,
        complete: !look.stopped,
    })
}

/// The ordinary mount that a repair goes through, with a cache that goes with it.
async fn repair_mount(
    options: &FsckOptions,
) -> Result<(crate::stack::Mounted, tempfile::TempDir), StackError> {
    let local = |path: PathBuf| move |source| StackError::Local { what: "creating", path, source };
    let cache = tempfile::tempdir().map_err(local(std::env::temp_dir()))?;
    let key = options.key.clone();
    let (store, state) = (options.store.clone(), options.state_dir.clone());
    let mut mount_options = MountOptions::new(store, key, cache.path(), state);
    mount_options.cache_bytes_max = 0;
    // What is repaired was found before: no extent may move meanwhile, and no segment come.
    mount_options.clean.dead_bytes_min = 0;
    mount_options.read_timeout = options.read_timeout;
    mount_options.at_least = options.at_least;
    let mounted = mount(mount_options).await?;
    if !mounted.sync(SYNC_MAX).await {
        mounted.shutdown(Duration::ZERO).await;
        let what = "uploading what the local journal holds".into();
        return Err(StackError::Store { what, message: "the bucket does not take it".into() });
    }
    Ok((mounted, cache))
}

/// One check under way.
struct Run<'a> {
    volume: &'a Volume,
    progress: &'a FsckProgress,
    options: &'a FsckOptions,
    remembered: Remembered,
    keyring_revision: u64,
    config_revision: u64,
    /// Somebody writes while this looks.
    writer: bool,
}

/// What one look found.
#[derive(Default)]
struct Look {
    commit: Option<CommitRow>,
    beside: BesideRow,
    report: Report,
    past: snapshots::Past,
    segments: Segments,
    objects: Objects,
    damage: data::Damage,
    read: Option<(u64, u64)>,
    notes: Vec<String>,
    /// It ended before everything was read.
    stopped: bool,
}

impl Look {
    fn take(&mut self, read: data::Read) {
        self.read = Some((read.objects, read.bytes));
        (self.damage, self.stopped) = (read.damage, !read.complete);
    }
}

impl Run<'_> {
    async fn look(&mut self) -> Result<(Look, Vec<Problem>), StackError> {
        let outcome = match self.volume.frozen().await {
            Ok(kv) => {
                let look = self.look_at(&kv, self.options.data).await;
                let outcome = match look {
                    Ok(look) => self.problems(&kv, &look).await.map(|problems| (look, problems)),
                    Err(e) => Err(e),
                };
                let _ = kv.close(false).await; // a reader: there is nothing to lose
                outcome
            }
            Err(e) => Err(e),
        };
        match outcome {
            Err(StackError::Metadata(KvError::Damaged(why))) => self.look_blind(why).await,
            outcome => outcome,
        }
    }

    /// What can be said of a volume whose metadata cannot be read: which objects do not open.
    async fn look_blind(&mut self, why: String) -> Result<(Look, Vec<Problem>), StackError> {
        let listing = Listing::read(&*self.volume.layers.retry).await?;
        let objects = Objects::of(&listing);
        let mut look = Look { objects, ..Look::default() };
        let what = format!("metadata cannot be read: {why}");
        let mut problems = vec![Problem { what, files: Vec::new() }];
        if self.options.data {
            self.progress.begin(READING_DATA);
            look.take(data::read_all(self, &listing, None).await?);
        }
        let found = look.objects.problems().chain(look.damage.problems());
        problems.extend(found.map(|(what, _)| Problem { what, files: Vec::new() }));
        Ok((look, problems))
    }

    /// Looks, repairs and looks again, until nothing is left that can be repaired.
    async fn look_and_repair(
        &mut self,
        mounted: &crate::stack::Mounted,
        repaired: &mut Vec<String>,
    ) -> Result<(Look, Vec<Problem>), StackError> {
        for _ in 0..ROUNDS_MAX {
            let kv = self.volume.frozen().await?;
            let look = self.look_at(&kv, false).await?;
            if look.report.findings.iter().any(|f| matches!(f, Finding::Undecodable { .. })) {
                // What such a row said is unknown, so what is missing may not be missing.
                break;
            }
            self.progress.begin("repairing");
            let repair =
                repair::Repair::new(mounted, &kv, &*self.volume.layers.retry, &self.volume.keys);
            let done = repair.round(&look.report.findings, &look.segments, &look.objects).await;
            let _ = kv.close(false).await; // a reader: there is nothing to lose
            let done = done?;
            if done.is_empty() {
                break;
            }
            repaired.extend(done);
            if !mounted.sync(SYNC_MAX).await {
                let what = "uploading repairs".into();
                let message = "the bucket does not take them; they are in the local journal".into();
                return Err(StackError::Store { what, message });
            }
        }
        self.look().await
    }

    async fn look_at(&mut self, kv: &Kv, data: bool) -> Result<Look, StackError> {
        let mut notes = Vec::new();
        let commit = last_commit(kv).await?;
        let beside = kv.get(&keys::beside()).await?;
        let beside = beside.as_deref().and_then(|row| BesideRow::decode(row).ok());
        let beside = beside.unwrap_or_default();
        self.progress.begin("metadata");
        let rows = &self.progress.rows;
        let (report, mut segments) = check(kv, CheckOptions::default(), rows).await?;
        let past = self.look_at_snapshots(kv, &mut segments, &mut notes).await?;
        // After the rows: a segment that they name was in the bucket before they were.
        self.progress.begin("objects");
        let listing = Listing::read(&*self.volume.layers.retry).await?;
        let objects =
            objects::compare(self.volume, &listing, &segments, self.writer, &mut notes).await?;
        let mut look =
            Look { commit, beside, report, past, segments, objects, notes, ..Look::default() };
        if data {
            self.progress.begin(READING_DATA);
            look.take(
                data::read_all(self, &listing, Some((kv, &look.segments, &look.objects))).await?,
            );
        }
        Ok(look)
    }

    /// Everything found, as sentences with paths.
    async fn problems(&self, kv: &Kv, look: &Look) -> Result<Vec<Problem>, StackError> {
        self.progress.begin("names");
        let mut problems = Vec::new();
        let plain = |what: String| Problem { what, files: Vec::new() };
        let at_least = self.options.at_least;
        match refuse_discord(kv, look.commit, &self.remembered, at_least, Accept::default()).await {
            Err(e @ (StackError::TooOld { .. } | StackError::Rollback { .. })) => {
                problems.push(plain(e.to_string()));
            }
            Err(e @ StackError::OtherHistory { .. }) => problems.push(plain(e.to_string())),
            outcome => outcome?,
        }
        let (found, seen) = (self.config_revision, look.beside.config);
        let seen = seen.max(self.remembered.config_revision);
        match found {
            0 => problems.push(plain("object config is not in the bucket".into())),
            _ if found < seen => {
                problems.push(plain(StackError::ConfigRollback { found, seen }.to_string()));
            }
            _ => {}
        }
        if let Err(e) = self.remembered.check_keyring(self.keyring_revision) {
            problems.push(plain(e.to_string()));
        }
        let inos = look.report.findings.iter().filter_map(Finding::ino);
        let mut names = paths::Names::find(kv, inos.collect()).await?;
        for finding in &look.report.findings {
            let files = match finding {
                Finding::DanglingName { parent, name, .. }
                | Finding::KindDiffers { parent, name, .. } => {
                    vec![names.entry(kv, *parent, name).await?]
                }
                other => match other.ino() {
                    Some(ino) => names.of(kv, ino).await?,
                    None => Vec::new(),
                },
            };
            problems.push(Problem { what: finding.to_string(), files });
        }
        if look.report.more > 0 {
            problems.push(plain(format!("{} more of this kind", look.report.more)));
        }
        let lost = look.objects.lost().chain(look.damage.ranges());
        let touched = paths::touched_files(kv, &lost.collect()).await?;
        let mut names = paths::Names::find(kv, touched.inodes()).await?;
        problems.extend(look.past.problems.iter().cloned().map(plain));
        let lost = look.objects.lost().chain(look.damage.ranges()).collect();
        let mut in_snapshots = self.files_of_snapshots(kv, &look.past, &lost).await?;
        for (what, object) in look.objects.problems().chain(look.damage.problems()) {
            let files = match object {
                Some(id) => {
                    let mut files = names.describe(kv, touched.of(id)).await?;
                    files.extend(in_snapshots.remove(&id).unwrap_or_default());
                    files
                }
                None => Vec::new(),
            };
            problems.push(Problem { what, files });
        }
        Ok(problems)
    }

    fn stopped(&self) -> bool {
        self.progress.stop.load(Ordering::Relaxed)
    }
}
