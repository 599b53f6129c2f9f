//! The status of a running mount, put together from its parts.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};

use super::canary::try_class;
use super::claim::WritePlan;
use super::control::{
    Connection, Control, Numbers, Progress, Requests, Setting, Settings, Status, resident_bytes,
};
use super::disks::{cache_note, space_of};
use super::du::{DuAsk, DuProgress, DuReport};
use super::past::Pinned;
use super::pins::{PinPath, PinRefused, Pins, PinsNow};
use super::places::{Places, places};
use super::rekey_duty::RekeyDuty;
use super::role::{Roles, Transition, Why};
use super::scheduling::ScheduleState;
use super::snapshots::{self, SnapshotAsk, SnapshotInfo, SnapshotList, SnapshotRefused};
use super::transition::{DemoteAsk, PromoteAsk};
use super::writer::Writer;
use crate::base::{Ino, VolumeId, secs_of};
use crate::commit::{View, WriterState};
use crate::data::BlockCache;
use crate::fs::diff::Difference;
use crate::fs::restore::{Kernel, NoKernel, RestoreError, RestoreOrder, RestoreProgress, Restored};
use crate::fs::{Fs, FsError, Tree};
use crate::fuse::KernelSide;
use crate::seal::VolumeKeys;
use crate::stack::keys::watch::KeyWatch;
use crate::stack::layers::StoreStack;
use crate::stack::records::config::{self, Change};
use crate::stack::records::encryption::VolumeSse;
use crate::stack::records::state::{Remembered, StateFile};
use crate::stack::{StackError, StackErrorKind};
use crate::store::kv::Kv;
use crate::store::{Health, Sealed, SegmentStore};

/// Over how long the upload rate is averaged.
const RATE_SPAN: Duration = Duration::from_secs(10);
/// The longest that one `sync` waits; the caller asks again or gives up earlier.
const SYNC_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long following a change of the configuration waits for uploads that are under way.
const FOLLOW_MAX: Duration = Duration::from_secs(50);

/// How long a status waits for the store, which may not answer.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// Why nothing more gets into the bucket.
const OVERTAKEN: &str =
    "another mount has taken the volume over; what is pending stays in the local journal";

fn broke(what: &str, e: &tokio::task::JoinError) -> StackError {
    let (kind, hint) = (StackErrorKind::Other, "look how the mount is: sealfs status".into());
    StackError::Role { kind, message: format!("bug in {what}: {e}"), hint }
}

/// How fast the store takes bytes.
#[derive(Default)]
pub(crate) struct Rate(Mutex<Option<Measured>>);

#[derive(Clone, Copy)]
struct Measured {
    at: Instant,
    /// The most bytes that the store had taken by then: what failed and is sent again is new
    /// only beyond it.
    bytes: u64,
    /// The rate up to then, in bytes a second.
    rate: u64,
}

impl Rate {
    /// The rate, with `bytes` taken by `now` in all since `since`.
    fn at(&self, since: Instant, now: Instant, bytes: u64) -> u64 {
        let mut last = self.0.lock();
        let before = last.unwrap_or(Measured { at: since, bytes: 0, rate: 0 });
        let span = now.saturating_duration_since(before.at);
        let grown = bytes.saturating_sub(before.bytes) as f64;
        let rate = (grown / span.as_secs_f64().max(0.001)) as u64;
        if span >= RATE_SPAN {
            *last = Some(Measured { at: now, bytes: bytes.max(before.bytes), rate });
        }
        if span < RATE_SPAN / 2 && before.rate > 0 { before.rate } else { rate }
    }
}

/// An open volume: what a mount stands on, whatever its role, and the writing half if it has one.
pub(crate) struct OpenVolume {
    pub(crate) volume: VolumeId,
    pub(crate) store: String,
    pub(crate) server: String,
    pub(crate) mount_point: PathBuf,
    pub(crate) since: Instant,
    pub(crate) journal_bytes_max: u64,
    pub(crate) cache_bytes_max: u64,
    /// How often a follower looks for newer state.
    pub(crate) refresh: Duration,
    /// How far the bucket may be behind a writer.
    pub(crate) commit_interval: Mutex<Duration>,
    pub(crate) sse: Arc<VolumeSse>,
    pub(crate) key_watch: Arc<KeyWatch>,
    pub(crate) keys: VolumeKeys,
    pub(crate) rekey: Arc<RekeyDuty>,
    /// How the schedule of snapshots is doing.
    pub(crate) scheduled: ScheduleState,
    /// Has it looked at at once.
    pub(crate) schedule_now: Arc<tokio::sync::Notify>,
    /// Has the next heartbeat come at once.
    pub(crate) beat_now: Arc<tokio::sync::Notify>,
    /// How it writes, or would.
    pub(crate) plan: WritePlan,
    /// What this machine remembers, for whether it could be written.
    pub(crate) state: Arc<StateFile>,
    /// What it says.
    pub(crate) remembered: Mutex<Remembered>,
    pub(crate) layers: StoreStack,
    pub(crate) sealed: Arc<Sealed>,
    /// What the metadata are read through.
    pub(crate) log_store: Mutex<Arc<Sealed>>,
    pub(crate) view: Arc<View>,
    /// The newest metadata that a mount which only reads follows; with `pinned`, that is not what it
    /// shows.
    pub(crate) followed: Arc<Kv>,
    /// The snapshot that is shown in place of the volume.
    pub(crate) pinned: Option<Pinned>,
    pub(crate) fs: Arc<Fs>,
    /// The same with the snapshots that it shows.
    pub(crate) tree: Arc<Tree>,
    /// Whom to tell of changes that the kernel did not ask for.
    pub(crate) kernel: OnceLock<Arc<dyn Kernel>>,
    pub(crate) blocks: Arc<BlockCache>,
    pub(crate) segments: Arc<SegmentStore>,
    /// The writing half; see [`OpenVolume::writer`].
    pub(crate) writer: RwLock<Option<Arc<Writer>>>,
    pub(crate) role: Roles,
    /// What the kernel is told when the role changes, once it is served.
    pub(crate) kernel_side: Mutex<Option<KernelSide>>,
    pub(crate) rate: Rate,
    /// What stays in the cache.
    pub(crate) pins: Pins,
}

/// What follows the configuration.
struct Configured {
    sse: Arc<VolumeSse>,
    sealed: Arc<Sealed>,
    /// The volume; `None` where a snapshot is shown in its place.
    fs: Option<Arc<Fs>>,
}

impl Configured {
    async fn look(&self) {
        self.sse.look(&*self.sealed).await;
        if let Some(fs) = &self.fs {
            fs.set_quota(self.sse.quota());
        }
    }
}

impl OpenVolume {
    pub(super) fn connection(&self) -> Connection {
        let Some(writer) = self.writer() else {
            return match self.role.last().why {
                Why::Fenced => Connection::Fenced,
                _ => Connection::ReadOnly,
            };
        };
        let state = writer.committer.state();
        if state == WriterState::Fenced {
            return Connection::Fenced;
        }
        match self.layers.retry.health().borrow().clone() {
            Health::OfflineSince(since, reason) => {
                Connection::Offline { since_unix_secs: secs_of(since), reason }
            }
            Health::Online => match state {
                WriterState::Failing { since, reason } => {
                    Connection::Offline { since_unix_secs: secs_of(since), reason }
                }
                _ => Connection::Online,
            },
        }
    }

    /// How far the bucket is behind `writer`.
    pub(crate) fn pending_of(&self, writer: &Writer) -> Progress {
        let progress = writer.committer.progress();
        // Metadata that waits counts too: something is pending until the bucket has all of it.
        let rows = self.view.pending_bytes().0;
        let (sending, under_way) = (progress.sending, self.under_way());
        let to_come = sending.planned.saturating_sub(sending.landed);
        Progress {
            pending_bytes: match (progress.pending_bytes, progress.oldest) {
                (0, Some(_)) => rows.max(1),
                (bytes, _) => bytes,
            },
            sent_bytes: (sending.landed + under_way.min(to_come)).min(progress.pending_bytes),
            moved_bytes: self.layers.stats.snapshot().bytes_up_data + under_way,
            pending_files: progress.pending_files,
            committed_bytes: progress.uploaded_bytes,
            offline: matches!(self.connection(), Connection::Offline { .. }),
        }
    }

    /// Looks at keyring and configuration, and does what follows from them.
    pub(crate) async fn follow_now(&self) {
        self.key_watch.look().await;
        self.look_at_config().await;
        self.tend_rekey().await;
        self.schedule_now.notify_one();
        self.beat_now.notify_one();
    }

    /// Changes what the volume remembers, and follows that.
    async fn configure(&self, change: &Change) -> Result<(), StackError> {
        if self.writer().is_none() {
            return Err(StackError::Role {
                kind: StackErrorKind::InUse,
                message: "this mount only reads the volume".into(),
                hint: "ask the mount that writes it, or give the STORE".into(),
            });
        }
        if let Change::StorageClass(class) = change {
            try_class(&self.layers, class).await?;
        }
        config::change(&*self.sealed, Some(change)).await?;
        self.look_at_config().await;
        Ok(())
    }

    /// Reads the configuration again, and follows it.
    pub(crate) async fn look_at_config(&self) {
        self.config().look().await;
    }

    fn config(&self) -> Configured {
        let fs = self.pinned.is_none().then(|| self.fs.clone());
        Configured { sse: self.sse.clone(), sealed: self.sealed.clone(), fs }
    }

    /// What a heartbeat looks at: the configuration, sometimes the keyring, and what follows from them,
    /// which it does not wait for.
    pub(crate) async fn look_around(self: &Arc<Self>, at_the_keyring: bool) {
        if at_the_keyring {
            self.key_watch.look().await;
        }
        self.look_at_config().await;
        let shared = self.clone();
        tokio::spawn(async move { shared.tend_rekey().await });
    }

    /// Does what a rekey asks of the mount that writes the volume.
    pub(crate) async fn tend_rekey(&self) {
        if matches!(self.connection(), Connection::ReadOnly | Connection::Fenced) {
            return;
        }
        let (target, now) = (self.sse.rekey(), self.key_watch.epoch());
        let may_delete = self.sealed.damaged().is_empty();
        if self.rekey.tend(target, now, self.view.kv(), may_delete).await {
            self.beat_now.notify_one(); // whoever waits for that looks at the lease
        }
    }

    /// Bytes of requests under way.
    fn under_way(&self) -> u64 {
        self.layers.s3.as_ref().map_or(0, |s3| s3.bytes_under_way())
    }
}

impl Control for OpenVolume {
    fn look(&self) -> BoxFuture<'static, ()> {
        let tree = self.tree.clone();
        Box::pin(async move {
            // Without an answer it is told as it was seen last.
            let _ = tokio::time::timeout(LOOK_MAX, tree.see_whether_hidden()).await;
        })
    }

    fn status(&self) -> Status {
        let requests = self.layers.stats.snapshot();
        let (hits, misses) = self.blocks.hits_and_misses();
        let reads = hits + misses;
        let writer = self.writer();
        let committed = writer.as_ref().map(|writer| writer.committer.progress());
        let oldest = committed.and_then(|p| p.oldest);
        let scheduled = self.scheduled.now();
        let (quota, used, s3) = (self.fs.quota(), self.fs.used(), self.layers.s3.as_ref());
        Status {
            volume_id: self.volume.to_string(),
            store: self.store.clone(),
            server: self.server.clone(),
            mount_point: self.mount_point.display().to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            snapshot: self.pinned.as_ref().map(|pinned| pinned.name().to_string()),
            open_snapshots: self.tree.open_snapshots(),
            uptime_secs: self.since.elapsed().as_secs(),
            connection: self.connection(),
            progress: self.progress(),
            commit_sequence: committed
                .map_or_else(|| self.remembered.lock().sequence, |committed| committed.sequence),
            oldest_pending_secs: oldest.map(|d| d.as_secs_f64()),
            upload_bytes_per_sec: {
                let taken = requests.bytes_up + self.under_way();
                self.rate.at(self.since, Instant::now(), taken)
            },
            cleaned_bytes: committed.map_or(0, |p| p.cleaned_bytes),
            journal_bytes: writer.as_ref().map_or(0, |writer| writer.journal.used_bytes()),
            journal_bytes_max: self.journal_bytes_max,
            cache_bytes: self.layers.cache_bytes(),
            cache_bytes_max: self.layers.cache_bytes_max().unwrap_or(self.cache_bytes_max),
            cache_hit_ratio: (reads > 0).then(|| hits as f64 / reads as f64),
            requests: Requests {
                get: requests.get,
                head: requests.head,
                put: requests.put,
                multipart: requests.multipart,
                list: requests.list,
                delete: requests.delete,
                errors: requests.errors,
                retries: requests.retries,
                bytes_down: requests.bytes_down,
                bytes_up: requests.bytes_up,
            },
            sse: match &self.layers.s3 {
                Some(s3) => s3.sse_mode().to_string(),
                None => "none".into(),
            },
            sse_applied: self.layers.s3.as_ref().and_then(|s3| Some(s3.shown(&s3.sse_applied()?))),
            compress: self.segments.compression().to_string(),
            storage_class: s3.map_or_else(String::new, |s3| s3.storage_class().to_string()),
            storage_class_applied: s3.and_then(|s3| s3.other_storage_class()),
            used_bytes: used.bytes,
            used_inodes: used.inodes,
            quota_bytes: Some(quota.bytes).filter(|n| *n > 0),
            quota_inodes: Some(quota.inodes).filter(|n| *n > 0),
            quota_error: quota.error,
            segment_data_bytes: self.segments.put_bytes().0,
            segment_stored_bytes: self.segments.put_bytes().1,
            snapshots: writer.as_ref().map(|_| self.view.holders().count() as u64),
            snapshot_schedule: self.sse.schedule().to_string(),
            snapshot_last: scheduled.last.as_ref().map(|(name, _)| name.clone()),
            snapshot_last_unix_secs: scheduled.last.map(|(_, at)| at),
            snapshot_next_unix_secs: scheduled.next,
            snapshots_kept_bytes: self.view.holders().kept().map(|kept| kept.bytes),
            pinned: self.pins.now(),
            resident_bytes: resident_bytes(),
            warnings: self.warnings(),
            notes: cache_note(&self.layers)
                .into_iter()
                .chain(self.rekey_note())
                .chain(self.hidden_note())
                .collect(),
            journal_disk_free_bytes: writer
                .and_then(|_| space_of(&self.plan.journal_dir()).ok())
                .map(|space| space.free_bytes),
            role: self.role_name(),
            last_transition: Some(self.role.last()),
        }
    }

    fn set(&self, setting: &Setting) -> Result<(), String> {
        match *setting {
            Setting::UploadLimit(rate) => self.layers.limits.up.set(rate),
            Setting::DownloadLimit(rate) => self.layers.limits.down.set(rate),
            Setting::CacheSize(bytes) => {
                if !self.layers.set_cache_bytes_max(bytes) {
                    return Err("this mount has no cache".into());
                }
            }
            Setting::CommitIntervalMs(ms) => match self.writer() {
                Some(writer) => {
                    let interval = Duration::from_millis(ms);
                    *self.commit_interval.lock() = interval; // also of the next half
                    writer.committer.set_interval(interval);
                }
                None => return Err("this mount only reads: it commits nothing".into()),
            },
            Setting::LogLevel(_) => {} // of who owns the log
        }
        Ok(())
    }

    fn settings(&self) -> Settings {
        let interval = self.writer().map(|writer| writer.committer.interval());
        Settings {
            upload_limit: self.layers.limits.up.get(),
            download_limit: self.layers.limits.down.get(),
            cache_bytes_max: self.layers.cache_bytes_max(),
            commit_interval_ms: interval.map(|interval| interval.as_millis() as u64),
            log_level: log::max_level().to_string(),
        }
    }

    fn configure(
        self: Arc<Self>,
        change: Change,
    ) -> BoxFuture<'static, Result<Status, StackError>> {
        // On a separate task: nobody drops it between the write and following it.
        let changed = tokio::spawn(async move {
            OpenVolume::configure(&self, &change).await.map(|()| self.status())
        });
        Box::pin(async move { changed.await.map_err(|e| broke("a change of the volume", &e))? })
    }

    fn places(&self, ino: u64) -> BoxFuture<'static, Result<Option<Places>, String>> {
        let (tree, cache) = (self.tree.clone(), self.layers.cache());
        let s3 = self.layers.s3.as_ref();
        let sse_applied = s3.and_then(|s3| Some(s3.shown(&s3.sse_applied()?)));
        Box::pin(async move {
            let state = tree.state_of(Ino(ino)).await.map_err(|e| e.to_string())?;
            let Some((fs, ino)) = state else {
                return Err("the directory of snapshots has no bytes".into());
            };
            let found = places(fs.view(), cache.as_deref(), ino).await;
            let found = found.map_err(|e| e.to_string())?;
            Ok(found.map(|places| Places { sse_applied, ..places }))
        })
    }

    fn du(
        self: Arc<Self>,
        ask: DuAsk,
        progress: Arc<DuProgress>,
    ) -> BoxFuture<'static, Result<DuReport, FsError>> {
        Box::pin(async move { OpenVolume::du(&self, ask, &progress).await })
    }

    fn pin(
        self: Arc<Self>,
        paths: Vec<PinPath>,
    ) -> BoxFuture<'static, Result<PinsNow, PinRefused>> {
        Box::pin(async move { OpenVolume::pin(&self, paths).await })
    }

    fn unpin(
        self: Arc<Self>,
        paths: Vec<PinPath>,
    ) -> BoxFuture<'static, Result<PinsNow, PinRefused>> {
        Box::pin(async move { OpenVolume::unpin(&self, paths).await })
    }

    fn pins(&self) -> PinsNow {
        self.pins.now()
    }

    fn snapshots(&self) -> BoxFuture<'static, Result<SnapshotList, String>> {
        // Those of the volume, also where one of them is shown in its place.
        let kv = self.followed.clone();
        Box::pin(async move { snapshots::list(&kv).await.map_err(|e| e.to_string()) })
    }

    fn create_snapshot(
        &self,
        ask: SnapshotAsk,
    ) -> BoxFuture<'static, Result<SnapshotInfo, SnapshotRefused>> {
        let writer = self.writer();
        Box::pin(async move {
            let writer = writer.ok_or_else(SnapshotRefused::read_only)?;
            snapshots::create(&writer.committer, ask).await
        })
    }

    fn delete_snapshots(
        &self,
        names: Vec<String>,
    ) -> BoxFuture<'static, Result<(), SnapshotRefused>> {
        let writer = self.writer();
        Box::pin(async move {
            let writer = writer.ok_or_else(SnapshotRefused::read_only)?;
            snapshots::delete(&writer.committer, names).await
        })
    }

    fn numbers(&self) -> Numbers {
        let (memory_hits, memory_misses) = self.blocks.hits_and_misses();
        Numbers {
            status: self.status(),
            requests: self.layers.stats.snapshot(),
            request_times: self.layers.stats.times(),
            memory_hits,
            memory_misses,
            damaged_objects: self.sealed.damaged().len() as u64,
            key_epoch: self.key_watch.epoch(),
            lease_age_secs: self.writer().map(|writer| writer.renewed.age().as_secs_f64()),
        }
    }

    fn progress(&self) -> Progress {
        match self.writer() {
            Some(writer) => self.pending_of(&writer),
            None => self.role.left().map(|(left, _)| left).unwrap_or_default(),
        }
    }

    fn sync(&self) -> BoxFuture<'static, Result<(), String>> {
        let committer = self.writer().map(|writer| writer.committer.clone());
        let left = self.role.left().is_some();
        Box::pin(async move {
            match committer {
                None if left => Err(OVERTAKEN.into()),
                None => Ok(()),
                Some(c) if c.sync(SYNC_MAX).await => Ok(()),
                Some(c) => Err(match c.state() {
                    WriterState::Fenced => OVERTAKEN.into(),
                    WriterState::Failing { reason, .. } => reason,
                    WriterState::Online => "the bucket does not have everything yet".into(),
                }),
            }
        })
    }

    fn restore(
        &self,
        order: RestoreOrder,
        progress: Arc<RestoreProgress>,
    ) -> BoxFuture<'static, Result<Restored, RestoreError>> {
        if let Some(pinned) = &self.pinned {
            let refused = RestoreError::OfSnapshot(pinned.name().to_string());
            return Box::pin(async { Err(refused) });
        }
        let tree = self.tree.clone();
        let kernel = self.kernel.get().cloned().unwrap_or_else(|| Arc::new(NoKernel));
        Box::pin(async move { tree.restore(&order, &progress, kernel).await })
    }

    fn diff(
        &self,
        names: [String; 2],
        out: mpsc::Sender<Vec<Difference>>,
    ) -> BoxFuture<'static, Result<(), RestoreError>> {
        if let Some(pinned) = &self.pinned {
            let refused = RestoreError::OfSnapshot(pinned.name().to_string());
            return Box::pin(async { Err(refused) });
        }
        let tree = self.tree.clone();
        Box::pin(async move { tree.diff(names, out).await })
    }

    fn tell(&self, kernel: Arc<dyn Kernel>) {
        let _ = self.kernel.set(kernel);
    }

    fn transitions(&self) -> watch::Receiver<Transition> {
        self.role.changes()
    }

    fn promote(
        self: Arc<Self>,
        ask: PromoteAsk,
    ) -> BoxFuture<'static, Result<Transition, StackError>> {
        // On a separate task: nobody drops it half-way.
        let promoted = tokio::spawn(async move { OpenVolume::promote(&self, ask).await });
        Box::pin(async move { promoted.await.map_err(|e| broke("promoting", &e))? })
    }

    fn demote(
        self: Arc<Self>,
        ask: DemoteAsk,
    ) -> BoxFuture<'static, Result<Transition, StackError>> {
        let demoted = tokio::spawn(async move { OpenVolume::demote(&self, ask).await });
        Box::pin(async move { demoted.await.map_err(|e| broke("demoting", &e))? })
    }

    fn follow(&self, volume_id: &str) -> BoxFuture<'static, Result<bool, String>> {
        if volume_id != self.volume.to_string() {
            return Box::pin(async { Ok(false) });
        }
        let key_watch = self.key_watch.clone();
        let committer = self.writer().map(|writer| writer.committer.clone());
        let (schedule_now, beat_now) = (self.schedule_now.clone(), self.beat_now.clone());
        let config = self.config();
        Box::pin(async move {
            key_watch.look().await;
            config.look().await;
            schedule_now.notify_one();
            beat_now.notify_one(); // it tends a rekey, and says which epoch is written in
            if let Some(note) = key_watch.note() {
                return Err(note);
            }
            // Uploads that began in the old mode, or epoch, end before this does.
            match committer {
                Some(committer) if !committer.sync(FOLLOW_MAX).await => {
                    Err("uploads that began before the change are not done yet".into())
                }
                writer => Ok(writer.is_some()),
            }
        })
    }
}
