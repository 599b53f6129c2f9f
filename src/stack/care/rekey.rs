//! `key rekey`: begins a key epoch, and brings every object of the volume into it.
//!
//! Segments, tables, manifests and records are sealed again in place. Each object of the metadata's
//! log is bound to the one before it, so the log is left behind by the mount that writes the volume,
//! or by a short one of our own, and collected when it is old enough that nobody reads it
//! (`rekey_duty`). The configuration says that a rekey is under way, and to which epoch, so that one
//! that was cut off can be resumed from any machine.
//!
//! Earlier roots leave the keyring only after the holder of the lease has shown that nothing it writes
//! can arrive in an earlier epoch any more, and after a pass over all objects that began later and
//! found none left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::audit::{Exception, Tally, is_of_a_volume};
use super::walk::{Pace, Walked};
use crate::base::{VolumeId, one_line};
use crate::meta::keys;
use crate::seal::{SlotInfo, SlotKind};
use crate::stack::keys::watch::KeyWatch;
use crate::stack::records::config;
use crate::stack::records::encryption::VolumeSse;
use crate::stack::records::lease::{HEARTBEAT, Holding, holding};
use crate::stack::running::rekey_duty::{READERS_GRACE, bounded};
use crate::stack::store_options::READ_TIMEOUT;
use crate::stack::{
    KeyOptions, MountOptions, StackError, StoreStack, change_keyring, mount, open_keyring,
};
use crate::store::kv::COLLECT_AGE;
use crate::store::names::{KEYRING_NAME, LEASE_NAME};
use crate::store::s3::{Setting, Versioning};
use crate::store::{Resealed, Sealed, patiently, sentence, shown_key};

/// Objects at a time, unless asked otherwise.
pub const REKEY_PARALLEL: usize = 8;
/// Megabytes of objects held at a time, as they are stored; in memory each counts three times.
const ROOM_MIB: u32 = 64;
/// How long after its heartbeat a mount has certainly followed.
const FOLLOW_GRACE: Duration = Duration::from_secs(30);
/// Where the metadata's log lies below the STORE prefix.
const LOG: &str = "meta/wal/";
/// How much longer than an object of the log must be old it takes at most until it is collected: by
/// a heartbeat after the one that left it behind.
const COLLECT_SLACK: Duration = Duration::from_secs(3 * 120);
/// Passes over all objects, of which the last one must find nothing left to do.
const PASSES_MAX: u32 = 5;
/// How often it is looked whether something that is waited for has come.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the configuration is written again because somebody else has changed it.
const CONFIG_TRIES: u32 = 8;
/// How long a short mount may take to get the local journal to the bucket, and to end.
const DRAIN_MAX: Duration = Duration::from_secs(600);
/// Failures that are kept by name; beyond it they are counted.
const FAILED_MAX: usize = 1000;

/// What to do.
#[derive(Debug)]
pub struct RekeyOptions {
    /// The volume.
    pub key: KeyOptions,
    /// Objects at a time.
    pub parallel: usize,
    /// Most objects sealed again in a second.
    pub rate: Option<u32>,
    /// Seal again what can be now, and do not wait for the metadata's log to grow old.
    pub no_wait: bool,
    /// How old an object of the metadata's log must be to be collected.
    pub collect_age: Duration,
    /// How often it is looked whether a mount has followed.
    pub look_every: Duration,
}

impl RekeyOptions {
    /// The defaults.
    pub fn new(key: KeyOptions) -> RekeyOptions {
        RekeyOptions {
            key,
            parallel: REKEY_PARALLEL,
            rate: None,
            no_wait: false,
            collect_age: COLLECT_AGE,
            look_every: LOOK_EVERY,
        }
    }
}

/// What was done. Field names are an interface (`--json`): added, never renamed.
#[derive(Debug, Default, Serialize)]
pub struct RekeyReport {
    /// The volume id.
    pub volume: String,
    /// The epoch that everything is brought into.
    pub epoch: u32,
    /// Whether this went on with one that was cut off.
    pub resumed: bool,
    /// Objects that were sealed again.
    pub sealed_again: Tally,
    /// What is sealed in which epoch, as the last pass found it.
    pub epochs: BTreeMap<u32, Tally>,
    /// What could not be sealed again, or looked at, with the reason; at most 1000 of them.
    pub failed: Vec<Exception>,
    /// How many there are in all.
    pub failed_total: u64,
    /// Epochs whose roots have left the keyring.
    pub retired: Vec<u32>,
    /// Why it is not complete; `None` when it is.
    pub unfinished: Option<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl RekeyReport {
    /// Whether nothing of the volume opens with an earlier root any more, and none is left.
    pub fn is_complete(&self) -> bool {
        self.unfinished.is_none()
    }
}

/// What a rekey is doing, for whoever shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RekeyPhase {
    /// The epoch that begins, or is resumed.
    Epoch(u32, bool),
    /// Passing over the objects.
    Objects,
    /// Waiting until the mount that has the volume has followed: who, and how long at most.
    Following(String, Duration),
    /// Waiting until objects of the metadata's log may be collected, at most this long.
    Log(Duration),
    /// Passing over them again, to be certain.
    Audit,
}

/// Brings every object into a new epoch, or resumes that. `phase` is told what begins, counts
/// are in `walked`. `tell` tells a mount of the volume on this machine that its keys have changed.
///
/// # Errors
/// What keeps it from beginning or from listing; what happened to single objects is in the report.
/// Whatever happens, the volume opens as before, and running it again goes on.
pub async fn rekey(
    options: &RekeyOptions,
    walked: Arc<Walked>,
    phase: impl Fn(RekeyPhase),
    tell: impl Fn(VolumeId),
) -> Result<RekeyReport, StackError> {
    let attended = options.key.store.attended.clone();
    let mut report = RekeyReport::default();
    let run = attended.unless_stopped(Run::begin(options, &walked, &mut report)).await?;
    phase(RekeyPhase::Epoch(run.least, report.resumed));
    tell(run.sealed_volume);
    let outcome = Box::pin(run.bring(&mut report, &phase)).await;
    attended.goes_on();
    report.unfinished = outcome?;
    if report.is_complete() {
        attended.unless_stopped(run.retire(&mut report)).await?;
        tell(run.sealed_volume);
    }
    Ok(report)
}

/// What is to be said of a slot of another version's kind, which has got the new root as well.
fn stays_unknown(slot: &SlotInfo) -> Option<String> {
    let SlotInfo { id, label, kind, .. } = slot;
    matches!(kind, SlotKind::Unknown(_)).then(|| {
        let label = one_line(label);
        format!("slot {id} ({label}, {kind}) stays: it opens the new keys, and this sealfs cannot open it")
    })
}

/// What is sealed in which epoch, and what opens in none. Changes nothing.
///
/// # Errors
/// What keeps it from opening the volume or from listing.
pub async fn epochs_in_use(
    options: &KeyOptions,
    walked: Arc<Walked>,
) -> Result<(BTreeMap<u32, Tally>, Vec<Exception>), StackError> {
    let options = RekeyOptions::new(KeyOptions {
        store: options.store.clone(),
        key: options.key.clone(),
        state_dir: options.state_dir.clone(),
    });
    let attended = options.key.store.attended.clone();
    let looked = async {
        let run = Run::open(&options, &walked).await?;
        let pass = run.pass(false).await?;
        Ok((pass.epochs, pass.failed))
    };
    attended.unless_stopped(looked).await
}

/// What a short mount is for.
#[derive(Clone, Copy)]
enum Task {
    LeaveLog,
    Collect,
}

/// What an object is to a rekey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Sealed again in place.
    InPlace,
    /// Left behind: the metadata's log.
    Log,
    /// Who holds the volume: sealed by its holder, or when there is none.
    Lease,
    /// Not sealed, or not of this volume.
    Not,
}

fn role(meta: &ObjectMeta) -> Role {
    let name = meta.location.as_ref();
    match name {
        KEYRING_NAME => Role::Not,
        LEASE_NAME => Role::Lease,
        _ if !is_of_a_volume(name, meta.size) => Role::Not,
        _ if name.starts_with(LOG) => Role::Log,
        _ => Role::InPlace,
    }
}

/// The number of an object of the log.
fn log_number(meta: &ObjectMeta) -> Option<u64> {
    meta.location.filename()?.strip_suffix(".sst")?.parse().ok()
}

/// One pass over all objects.
#[derive(Default)]
struct Pass {
    sealed_again: Tally,
    epochs: BTreeMap<u32, Tally>,
    /// When the newest object of the log that is of an earlier epoch was written, by the server's
    /// clock, and how many there are.
    old_log: Option<SystemTime>,
    old_log_objects: u64,
    failed: Vec<Exception>,
    failed_total: u64,
}

impl Pass {
    fn count(&mut self, epoch: u32, bytes: u64) {
        self.epochs.entry(epoch).or_default().add(bytes);
    }
}

struct Run<'a> {
    options: &'a RekeyOptions,
    walked: &'a Walked,
    layers: StoreStack,
    sealed: Sealed,
    sealed_volume: VolumeId,
    /// Everything is brought into this epoch or a later one.
    least: u32,
    room: Semaphore,
    pace: Pace,
    /// Objects of the log from this number on are sealed in `least` or later, those before it are
    /// left behind; 0 while that is not known.
    log_from: AtomicU64,
    /// Objects of the log before that number which are sealed in `least` or later all the same.
    new_log: Mutex<BTreeSet<u64>>,
    _sse: VolumeSse,
}

impl<'a> Run<'a> {
    /// The volume as it is, with its present epoch.
    async fn open(options: &'a RekeyOptions, walked: &'a Walked) -> Result<Run<'a>, StackError> {
        let store = &options.key.store;
        let unlocked = open_keyring(&options.key).await?;
        let layers = StoreStack::connect(store, READ_TIMEOUT, false).await?;
        let (keys, least) = (unlocked.keys.clone(), unlocked.keys.epoch());
        let sealed = Sealed::new(layers.retry.clone(), keys.clone());
        let name = store.location.to_string();
        sealed.renew_by(Arc::new(KeyWatch::new(layers.retry.clone(), &name, unlocked)));
        let config = config::load(&sealed).await?.config;
        let sse = VolumeSse::begin(layers.s3.clone(), store.sse.clone(), config)?;
        layers.attended.goes_on();
        Ok(Run {
            options,
            walked,
            layers,
            sealed,
            sealed_volume: keys.volume_id(),
            least,
            room: Semaphore::new(ROOM_MIB as usize),
            pace: Pace::new(options.rate),
            log_from: AtomicU64::new(0),
            new_log: Mutex::default(),
            _sse: sse,
        })
    }

    /// Begins the epoch that everything is brought into, unless that was done before. What is to be
    /// done is written down first, so that whoever goes on begins no other.
    async fn begin(
        options: &'a RekeyOptions,
        walked: &'a Walked,
        report: &mut RekeyReport,
    ) -> Result<Run<'a>, StackError> {
        let run = Run::open(options, walked).await?;
        let unlocked = open_keyring(&options.key).await?;
        unlocked.keyring.check_writable()?;
        let (epoch, old) = (unlocked.keyring.epoch(), unlocked.keyring.old_roots());
        let planned = config::load(&run.sealed).await?.config.rekey;
        let target = match planned {
            Some(target) if target > epoch || !old.is_empty() => target,
            _ => epoch.saturating_add(1),
        };
        report.resumed = planned == Some(target);
        if !report.resumed {
            run.plan(Some(target)).await?;
        }
        if epoch < target {
            // Whoever has begun that epoch meanwhile has done it for this, too.
            let changed = change_keyring(&options.key, |ring, keys| match ring.epoch() < target {
                true => Ok(((), ring.rotate(keys)?)),
                false => Ok(((), keys.clone())),
            });
            let changed = changed.await?;
            report.notes.extend(changed.notes);
            report.notes.extend(changed.keyring.slots().iter().filter_map(stays_unknown));
        }
        // Its keys are those of the new epoch.
        let run = Run::open(options, walked).await?;
        (report.volume, report.epoch) = (run.sealed_volume.to_string(), run.least);
        Ok(run)
    }

    /// Writes down which epoch everything is brought into.
    async fn plan(&self, rekey: Option<u32>) -> Result<(), StackError> {
        let mut lost = None;
        for _ in 0..CONFIG_TRIES {
            let was = config::load(&self.sealed).await?;
            if was.config.rekey == rekey {
                return Ok(());
            }
            match config::replace(&self.sealed, &was, &was.config.with_rekey(rekey)).await {
                Ok(()) => return Ok(()),
                Err(e) => lost = Some(e), // changed meanwhile, or the answer was lost: look again
            }
        }
        Err(lost.expect("every round that ends here set it"))
    }

    /// Everything but the end; why it is not complete, if it is not.
    async fn bring(
        &self,
        report: &mut RekeyReport,
        phase: &impl Fn(RekeyPhase),
    ) -> Result<Option<String>, StackError> {
        // First, so that the log grows old while the objects are sealed.
        let mut follows = self.settle(phase, self.options.no_wait).await?;
        let attended = &self.layers.attended;
        phase(RekeyPhase::Objects);
        for n in 1.. {
            // What comes from the holder after this is of the new epoch.
            let was_settled = follows.is_none();
            attended.goes_on();
            let settled = Instant::now();
            let pass = Box::pin(self.pass(true)).await?;
            report.sealed_again.objects += pass.sealed_again.objects;
            report.sealed_again.bytes += pass.sealed_again.bytes;
            report.epochs = pass.epochs;
            (report.failed, report.failed_total) = (pass.failed, pass.failed_total);
            if report.failed_total > 0 {
                return Ok(Some("some objects could not be sealed again".into()));
            }
            let is_quiet = pass.sealed_again.objects == 0 && pass.old_log_objects == 0;
            if was_settled && is_quiet {
                follows = self.not_following().await?;
                if follows.is_none() {
                    return Ok(None);
                }
            }
            if n == PASSES_MAX {
                return Ok(Some("objects of an earlier epoch keep coming".into()));
            }
            if follows.is_some() {
                follows = self.settle(phase, self.options.no_wait).await?;
            }
            if let Some(holder) = &follows {
                return Ok(Some(format!("{holder} has the volume mounted and does not follow")));
            }
            if let Some(newest) = pass.old_log
                && let Some(left) = self.log_collected(newest, settled, phase).await?
            {
                return Ok(Some(left));
            }
            phase(RekeyPhase::Audit);
        }
        unreachable!("the last pass returns")
    }

    /// Who holds the volume and may still write in an earlier epoch.
    async fn not_following(&self) -> Result<Option<String>, StackError> {
        let held = holding(&self.sealed, self.least).await?;
        Ok(held.filter(|h| h.epoch < self.least).map(|Holding { holder, .. }| holder))
    }

    /// Waits until whoever holds the volume writes in the new epoch; without a holder, mounts it for
    /// a moment. Either leaves the log of earlier epochs behind. Returns the holder that does not follow, if
    /// any.
    async fn settle(
        &self,
        phase: &impl Fn(RekeyPhase),
        at_once: bool,
    ) -> Result<Option<String>, StackError> {
        let (begun, attended) = (Instant::now(), &self.layers.attended);
        // One on this machine was told, and follows at once.
        let limit = if at_once { self.options.look_every * 2 } else { HEARTBEAT + FOLLOW_GRACE };
        let (mut is_told, mut pause) = (false, self.options.look_every / 16);
        loop {
            let held = holding(&self.sealed, self.least).await?;
            let Some(Holding { holder, epoch, left }) = held else {
                match Box::pin(self.mount_shortly(Task::LeaveLog)).await {
                    Err(StackError::InUse { .. } | StackError::Ending { .. }) => {}
                    outcome => return outcome.map(|()| None),
                }
                self.pause(self.options.look_every).await?;
                continue;
            };
            if epoch >= self.least && left.epoch >= self.least {
                self.log_from.store(left.from, Relaxed);
                return Ok(None);
            }
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(Some(holder));
            }
            if !std::mem::replace(&mut is_told, true) {
                attended.waits_for(format!("{holder} to follow"), left);
                phase(RekeyPhase::Following(holder, left));
            }
            self.pause(pause).await?;
            pause = (pause * 2).min(self.options.look_every);
        }
    }

    async fn pause(&self, pause: Duration) -> Result<(), StackError> {
        let pause = async {
            tokio::time::sleep(pause).await;
            Ok(())
        };
        self.options.key.store.attended.unless_stopped(pause).await
    }

    /// A mount without a mount point, for one task. It brings what is pending on this machine to the
    /// bucket, too.
    async fn mount_shortly(&self, task: Task) -> Result<(), StackError> {
        let path = std::env::temp_dir();
        let local = |source| StackError::Local { what: "creating a directory in", path, source };
        let cache = tempfile::tempdir().map_err(local)?;
        let (store, key) = (self.options.key.store.clone(), self.options.key.key.clone());
        let state = self.options.key.state_dir.clone();
        let mut mount_options = MountOptions::new(store, key, cache.path(), state);
        mount_options.cache_bytes_max = 0;
        mount_options.clean.dead_bytes_min = 0;
        mount_options.collect_age = self.options.collect_age;
        // On the heap, like all of it that is large: a pass waits for it deep inside.
        let mounted = Box::pin(mount(mount_options)).await?;
        let kv = mounted.view().kv();
        let done = match task {
            Task::LeaveLog => {
                let left = bounded(kv.leave_log(&keys::nothing())).await;
                left.map(|from| self.log_from.store(from, Relaxed))
            }
            Task::Collect if mounted.is_damaged() => Ok(()), // nothing is deleted meanwhile
            Task::Collect => bounded(kv.collect_garbage()).await,
        };
        if !Box::pin(mounted.shutdown(DRAIN_MAX)).await {
            log::warn!("what is pending on this machine is not in the bucket yet");
        }
        Ok(done?)
    }

    /// Waits until the objects of the log that are of earlier epochs, the newest of which was written
    /// at `newest`, have been collected; why they were not, if they were not.
    async fn log_collected(
        &self,
        newest: SystemTime,
        settled: Instant,
        phase: &impl Fn(RekeyPhase),
    ) -> Result<Option<String>, StackError> {
        let age = SystemTime::now().duration_since(newest).unwrap_or_default();
        let collect_age = self.options.collect_age;
        let grace = READERS_GRACE.min(collect_age).saturating_sub(settled.elapsed());
        let due_in = collect_age.saturating_sub(age).max(grace);
        let limit = due_in + COLLECT_SLACK;
        if self.options.no_wait && !due_in.is_zero() {
            return Ok(Some(format!(
                "the metadata's log of earlier epochs may be needed by readers for another {} s",
                due_in.as_secs() + 1
            )));
        }
        self.walked.begin();
        let waits_for = "the metadata's log of earlier epochs to be deleted";
        self.layers.attended.waits_for(waits_for, limit);
        phase(RekeyPhase::Log(due_in));
        let (begun, mut asked) = (Instant::now(), false);
        while begun.elapsed() < limit {
            if self.old_log_objects().await? == 0 {
                return Ok(None);
            }
            let is_held = holding(&self.sealed, self.least).await?.is_some();
            if !is_held && begun.elapsed() >= due_in && !std::mem::replace(&mut asked, true) {
                match Box::pin(self.mount_shortly(Task::Collect)).await {
                    Err(StackError::InUse { .. } | StackError::Ending { .. }) => asked = false,
                    outcome => outcome?,
                }
                continue;
            }
            self.pause(self.options.look_every).await?;
        }
        match self.old_log_objects().await? {
            0 => Ok(None),
            n => Ok(Some(format!("{n} of the metadata's log were not collected"))),
        }
    }

    /// Objects of the log that are of an earlier epoch.
    async fn old_log_objects(&self) -> Result<u64, StackError> {
        let listing = |e| self.listing(e);
        let mut old = 0;
        let mut listed = self.layers.retry.list(Some(&LOG.into()));
        while let Some(meta) = listed.try_next().await.map_err(listing)? {
            old += u64::from(self.is_old_log(&meta).await);
        }
        Ok(old)
    }

    /// Whether an object of the log may be of an earlier epoch. From `log_from` on none is. One before
    /// that was written since the epoch began if its header says so, which can be seen only as long as
    /// the one before it is there, and is remembered.
    async fn is_old_log(&self, meta: &ObjectMeta) -> bool {
        let Some(number) = log_number(meta) else { return false }; // nobody reads it
        if number >= self.log_from.load(Relaxed) || self.new_log.lock().contains(&number) {
            return false;
        }
        match patiently(|| self.sealed.epoch_of(&meta.location)).await {
            Ok(Some((epoch, _))) if epoch >= self.least => {
                self.new_log.lock().insert(number);
                false
            }
            // Also what cannot be told: it is left behind, and collected when it is old enough.
            _ => true,
        }
    }

    fn listing(&self, e: object_store::Error) -> StackError {
        StackError::store(format!("listing {}", self.options.key.store.location), e)
    }

    /// Looks at every object; with `reseals`, those of earlier epochs are sealed again.
    async fn pass(&self, reseals: bool) -> Result<Pass, StackError> {
        let pass = &Mutex::new(Pass::default());
        let meant = |meta: &ObjectMeta| role(meta) != Role::Not;
        let from: (&dyn ObjectStore, _) = (&*self.layers.retry, &self.options.key.store);
        let one = |meta: ObjectMeta| async move { self.enter(&meta, reseals, pass).await };
        self.walked.each(from, self.options.parallel, meant, one).await?;
        Ok(std::mem::take(&mut *pass.lock()))
    }

    async fn enter(&self, meta: &ObjectMeta, reseals: bool, pass: &Mutex<Pass>) {
        let role = role(meta);
        if role == Role::Log && reseals {
            let is_old = self.is_old_log(meta).await;
            let mut pass = pass.lock();
            if is_old {
                pass.old_log_objects += 1;
                pass.old_log = pass.old_log.max(Some(meta.last_modified.into()));
            } else {
                pass.count(self.least, meta.size);
            }
            return;
        }
        match self.one(meta, reseals && role == Role::InPlace).await {
            Ok(Resealed::Gone) => {}
            Ok(Resealed::Done(_)) => {
                let mut pass = pass.lock();
                pass.sealed_again.add(meta.size);
                pass.count(self.least, meta.size);
            }
            Ok(Resealed::Already(epoch)) => {
                pass.lock().count(epoch, meta.size);
            }
            Err(e) => {
                let mut pass = pass.lock();
                pass.failed_total += 1;
                if pass.failed.len() < FAILED_MAX {
                    let (name, bytes) = (shown_key(&meta.location), meta.size);
                    pass.failed.push(Exception { name, bytes, problem: sentence(&e) });
                }
            }
        }
    }

    async fn one(&self, meta: &ObjectMeta, reseals: bool) -> object_store::Result<Resealed> {
        let at = &meta.location;
        match patiently(|| self.sealed.epoch_of(at)).await? {
            None => return Ok(Resealed::Gone),
            Some((epoch, _)) if epoch < self.least && reseals => {}
            Some((epoch, _)) => return Ok(Resealed::Already(epoch)),
        }
        self.pace.turn().await;
        let mib = u32::try_from(meta.size >> 20).unwrap_or(ROOM_MIB).saturating_add(1);
        let room = self.room.acquire_many(mib.min(ROOM_MIB)).await;
        let _room = room.expect("the semaphore is never closed");
        patiently(|| self.sealed.reseal(at, self.least)).await
    }

    /// The roots that nothing needs any more leave the keyring, and with them the note that a rekey
    /// is under way.
    async fn retire(&self, report: &mut RekeyReport) -> Result<(), StackError> {
        let changed = change_keyring(&self.options.key, |ring, keys| {
            let (mut retired, mut keys) = (Vec::new(), keys.clone());
            for epoch in ring.old_roots().into_iter().filter(|epoch| *epoch < self.least) {
                keys = ring.retire_root(&keys, epoch)?;
                retired.push(epoch);
            }
            Ok((retired, keys))
        });
        let changed = changed.await?;
        report.retired = changed.made;
        report.notes.extend(changed.notes);
        self.plan(None).await?;
        if let Some(s3) = &self.layers.s3
            && let Setting::Is(Versioning::Enabled { .. } | Versioning::Suspended) =
                s3.versioning().await
        {
            report.notes.push(
                "the bucket keeps old versions of objects, which open with earlier keys until they \
                 are deleted: a lifecycle rule with NoncurrentVersionExpiration does that"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::names::CONFIG_NAME;
    use object_store::path::Path;

    #[test]
    fn every_object_of_a_volume_has_a_role() {
        // Guards against an object that a rekey passes over, and against one that it must not touch.
        let of = |name: &str, size: u64| {
            let last_modified = SystemTime::UNIX_EPOCH.into();
            let location = Path::from(name);
            role(&ObjectMeta { location, last_modified, size, e_tag: None, version: None })
        };
        let known = [
            ("keyring", Role::Not),
            ("lease", Role::Lease),
            (CONFIG_NAME, Role::InPlace),
            ("seg/ab/abcd", Role::InPlace),
            ("meta/compacted/01J.sst", Role::InPlace),
            ("meta/compactions/00001.compactions", Role::InPlace),
            ("meta/wal/00001.sst", Role::Log),
            ("meta/manifest/00001.manifest", Role::InPlace),
            ("probe/1", Role::Not),
            ("notes.txt", Role::Not),
        ];
        for (name, role) in known {
            assert_eq!(of(name, 100), role, "{name}");
        }
        assert_eq!(of("seg/ab/short", 3), Role::Not);
    }
}
