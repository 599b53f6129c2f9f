//! Paths whose files stay in the cache of this machine, whatever else is read: for trains and planes.
//!
//! A pin is a path, remembered sealed on this machine, and stands for what lies there: a file that is
//! put in the place of another counts, one that is renamed away does not any more. A *pass* walks what is
//! pinned, works out which parts of which objects hold it, tells the cache to keep those, and fetches
//! what is not here. It comes at the start, after commits, and when files of the cache are missing; so
//! cleaning, which moves bytes to other segments, is seen like every other change. All tables of the
//! metadata are kept as well, so that names and attributes need no store. While anything is pinned, the
//! cache takes what this machine uploads, so new data need not be fetched.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use object_store::ObjectStoreExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::disks::human;
use super::status::OpenVolume;
use crate::data::Source;
use crate::fs::FsError;
use crate::fs::below::{Below, Found, Parts, Step};
use crate::meta::Kind;
use crate::seal::VolumeKeys;
use crate::stack::records::state::StateFile;
use crate::stack::{StackError, StackErrorKind};
use crate::store::{Cached, KEPT_OBJECTS_MAX, KeepSet, SegmentStore};

/// Pins at most.
pub const PINS_MAX: usize = 256;
/// Of the cache, pins leave this part for everything else.
const LEFT_FOR_OTHERS: u64 = 10;
/// The least time between two passes; and so many times as long as the last one took, so that a large
/// tree costs a twentieth of one processor at most.
const PAUSE: Duration = Duration::from_secs(3);
const PAUSE_TIMES: u32 = 20;
/// How long after the start the first one comes.
const BEFORE_FIRST: Duration = Duration::from_secs(2);
/// After a failure.
const PAUSE_FAILED: Duration = Duration::from_secs(15);
/// How often it is looked whether something was committed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the files of the cache are there.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// Objects that are opened at a time, to see whether the keys still fit.
const OPENED_TOGETHER: usize = 4;
/// Rounds of one pass: what others put into the queue of the cache may push something out.
const ROUNDS: usize = 4;

/// A path from the root of the volume on, by its names.
pub type PinPath = Vec<Vec<u8>>;

/// A pin, and how much of it is here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// From the root of the volume on.
    pub path: String,
    /// Whether anything is at the path.
    pub is_there: bool,
    /// Files below.
    pub files: u64,
    /// Bytes of them that are in the bucket; what is not yet is in the local journal.
    pub bytes: u64,
    /// Bytes of the cache that are kept for it.
    pub kept_bytes: u64,
    /// Bytes of those that are not here yet.
    pub missing_bytes: u64,
    /// Bytes of files that the cache has no room for.
    pub left_out_bytes: u64,
}

/// All pins, and how far they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinsNow {
    /// In the order in which they were made.
    pub pins: Vec<PinStatus>,
    /// Bytes of the cache that are kept, those of the metadata included.
    pub kept_bytes: u64,
    /// Bytes of those that are not here yet.
    pub missing_bytes: u64,
    /// Bytes of metadata among them.
    pub metadata_bytes: u64,
    /// Why the last pass could not do everything.
    pub failed: Option<String>,
    /// Changes of the pins so far, and the last one that a pass has taken up wholly.
    pub revision: u64,
    /// See `revision`.
    pub done_revision: u64,
}

/// Why nothing was pinned or unpinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRefused {
    /// What kind of trouble it is.
    pub kind: StackErrorKind,
    /// A sentence.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

fn refused(message: impl Into<String>, hint: impl Into<String>) -> PinRefused {
    PinRefused { kind: StackErrorKind::Other, message: message.into(), hint: Some(hint.into()) }
}

/// The pins of a mount.
pub(crate) struct Pins {
    file: StateFile<Vec<PinPath>>,
    state: Mutex<State>,
    /// One plans, or fetches, at a time.
    changing: tokio::sync::Mutex<()>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    paths: Vec<PinPath>,
    now: PinsNow,
    kept: Arc<KeepSet>,
}

/// What pins come to.
struct Plan {
    all: KeepSet,
    metadata_bytes: u64,
    each: Vec<(PinStatus, KeepSet)>,
    /// Something could not be looked at.
    failed: Option<String>,
}

/// A path for people.
fn shown(path: &[Vec<u8>]) -> String {
    match path.is_empty() {
        true => "/".into(),
        false => path.iter().map(|name| format!("/{}", String::from_utf8_lossy(name))).collect(),
    }
}

/// What pins may take of a cache.
fn room(bytes_max: u64) -> u64 {
    bytes_max - bytes_max / LEFT_FOR_OTHERS
}

/// The size of a cache in which pins may take so much, as `--cache-size` has it.
fn cache_for(bytes: u64) -> String {
    let size = bytes.saturating_mul(LEFT_FOR_OTHERS) / (LEFT_FOR_OTHERS - 1);
    format!("{}M", (size >> 20) + 1)
}

impl Pins {
    /// Those that this machine remembers in `state_dir`.
    pub(crate) fn new(state_dir: &Path, keys: VolumeKeys) -> Pins {
        let file: StateFile<Vec<PinPath>> = StateFile::named(state_dir, "pins", keys);
        let paths = match file.load() {
            Ok(paths) => paths.unwrap_or_default(),
            Err(e) => {
                log::warn!("which paths were pinned is not known any more: {e}; pin them again");
                Vec::new()
            }
        };
        let now = PinsNow {
            pins: paths.iter().map(pin_status).collect(),
            revision: 1,
            ..PinsNow::default()
        };
        let state = Mutex::new(State { paths, now, kept: Arc::default() });
        Pins { file, state, changing: Default::default(), wake: Notify::new() }
    }

    /// How they are.
    pub(crate) fn now(&self) -> PinsNow {
        self.state.lock().now.clone()
    }

    /// What a person should know.
    pub(crate) fn warning(&self, cache_bytes_max: u64) -> Option<String> {
        let now = self.now();
        let left_out: u64 = now.pins.iter().map(|pin| pin.left_out_bytes).sum();
        (left_out > 0).then(|| {
            format!(
                "{} of what is pinned do not fit into the cache of {}, and are not kept here; \
                 sealfs set DIR cache-size={}",
                human(left_out),
                human(cache_bytes_max),
                cache_for(now.kept_bytes + left_out)
            )
        })
    }

    /// Remembers `paths`.
    fn change(&self, paths: Vec<PinPath>) -> Result<(), PinRefused> {
        self.file.save(&paths, true).map_err(|e| PinRefused {
            kind: e.kind(),
            message: format!("what is pinned could not be remembered: {e}"),
            hint: None,
        })?;
        let mut state = self.state.lock();
        let known = std::mem::take(&mut state.now.pins);
        let status = |path: &PinPath| {
            let shown = shown(path);
            known.iter().find(|pin| pin.path == shown).cloned().unwrap_or_else(|| pin_status(path))
        };
        state.now.pins = paths.iter().map(status).collect();
        state.paths = paths;
        state.now.revision += 1;
        drop(state);
        self.wake.notify_one();
        Ok(())
    }
}

fn pin_status(path: &PinPath) -> PinStatus {
    PinStatus { path: shown(path), is_there: true, ..PinStatus::default() }
}

impl OpenVolume {
    fn cache_for_pins(&self) -> Result<Arc<Cached>, PinRefused> {
        if self.pinned.is_some() {
            let why = "a mount of a snapshot keeps no pins";
            return Err(refused(why, "mount the volume itself"));
        }
        self.layers.cache().ok_or_else(|| {
            refused(
                "this mount has no cache",
                "mount it with --cache-size, and alone in its --cache-dir",
            )
        })
    }

    /// Pins `paths`, all or none: they are remembered, and [`tend`] brings them here.
    ///
    /// # Errors
    /// [`PinRefused`]; nothing has changed.
    pub(crate) async fn pin(&self, paths: Vec<PinPath>) -> Result<PinsNow, PinRefused> {
        let cache = self.cache_for_pins()?;
        let _changing = self.pins.changing.lock().await;
        let mut all = self.pins.state.lock().paths.clone();
        let known = all.len();
        for path in paths {
            if !all.contains(&path) {
                all.push(path);
            }
        }
        if all.len() > PINS_MAX {
            let why = format!("more than {PINS_MAX} pins");
            return Err(refused(why, "pin a directory above some of them, and unpin those"));
        }
        let max = cache.bytes_max();
        let plan = self.plan(&cache, &all, u64::MAX).await.map_err(|e| PinRefused {
            kind: e.kind(),
            message: format!("what lies there cannot be looked at, so nothing is pinned: {e}"),
            hint: None,
        })?;
        if let Some((gone, _)) = plan.each.iter().skip(known).find(|(pin, _)| !pin.is_there) {
            let hint = "what is put at a path later counts too; the path must exist first";
            return Err(refused(format!("there is no {} in the volume", gone.path), hint));
        }
        if plan.all.objects() > KEPT_OBJECTS_MAX {
            let why = format!("the pins lie in more than {KEPT_OBJECTS_MAX} objects");
            return Err(refused(why, "pin less"));
        }
        let needs = plan.all.bytes();
        if needs > room(max) {
            let own: u64 = plan.each.iter().skip(known).map(|(_, set)| set.bytes()).sum();
            return Err(refused(
                format!(
                    "the pins would take {} ({} of them new, {} metadata) of the cache of {}, of \
                     which a tenth stays for other reads: nothing is pinned",
                    human(needs),
                    human(own),
                    human(plan.metadata_bytes),
                    human(max)
                ),
                format!(
                    "make it larger: sealfs set DIR cache-size={}; or pin less",
                    cache_for(needs)
                ),
            ));
        }
        self.pins.change(all)?;
        Ok(self.pins.now())
    }

    /// Unpins what is pinned at or below `paths`.
    ///
    /// # Errors
    /// [`PinRefused`]; nothing has changed.
    pub(crate) async fn unpin(&self, paths: Vec<PinPath>) -> Result<PinsNow, PinRefused> {
        self.cache_for_pins()?;
        let _changing = self.pins.changing.lock().await;
        let mut all = self.pins.state.lock().paths.clone();
        for path in &paths {
            if !all.iter().any(|pin| pin.starts_with(path)) {
                let (why, above) = (
                    format!("{} is not pinned", shown(path)),
                    all.iter().find(|pin| path.starts_with(pin)),
                );
                return Err(match above {
                    Some(pin) => refused(why, format!("a directory above it is: {}", shown(pin))),
                    None => refused(why, "sealfs status DIR lists what is"),
                });
            }
        }
        all.retain(|pin| !paths.iter().any(|path| pin.starts_with(path)));
        self.pins.change(all)?;
        Ok(self.pins.now())
    }

    /// What `paths` come to, in at most `room` bytes of the cache.
    async fn plan(&self, cache: &Cached, paths: &[PinPath], room: u64) -> Result<Plan, StackError> {
        let mut plan =
            Plan { all: KeepSet::default(), metadata_bytes: 0, each: Vec::new(), failed: None };
        if paths.is_empty() {
            return Ok(plan);
        }
        for table in self.view.kv().tables() {
            match cache.size_of(&table).await {
                Ok(size) => plan.all.add_whole(&table, size),
                // Compacted meanwhile, perhaps: the next pass has others.
                Err(e) => plan.failed = Some(format!("{table}: {e}")),
            }
        }
        plan.metadata_bytes = plan.all.bytes();
        for path in paths {
            let (mut pin, mut own) = (pin_status(path), KeepSet::default());
            let below = match Below::path(&self.fs, path).await {
                Ok(below) => Some(below),
                Err(FsError::NotFound | FsError::NotDir) => None,
                Err(e) => return Err(failed(e)),
            };
            pin.is_there = below.is_some();
            if let Some(mut below) = below {
                self.walk(&mut below, (&mut pin, &mut own), &mut plan, room).await?;
            }
            pin.kept_bytes = own.bytes();
            plan.each.push((pin, own));
        }
        Ok(plan)
    }

    async fn walk(
        &self,
        below: &mut Below,
        (pin, own): (&mut PinStatus, &mut KeepSet),
        plan: &mut Plan,
        room: u64,
    ) -> Result<(), StackError> {
        while let Some(step) = below.next().await.map_err(failed)? {
            let Step::Leaf(found) = step else { continue };
            if found.inode.kind != Kind::File {
                continue;
            }
            pin.files += 1;
            self.take_file(&found, (pin, own), plan, room).await?;
            if room == u64::MAX && plan.all.objects() > KEPT_OBJECTS_MAX {
                break; // it is refused: the rest does not matter
            }
        }
        Ok(())
    }

    /// Adds a file as far as there is room.
    async fn take_file(
        &self,
        found: &Found,
        (pin, own): (&mut PinStatus, &mut KeepSet),
        plan: &mut Plan,
        room: u64,
    ) -> Result<(), StackError> {
        let mut parts = Parts::of(&self.fs, found.ino, &found.inode);
        while let Some(window) = parts.next().await.map_err(failed)? {
            for part in window {
                let Source::Segment { id, offset } = part.source else { continue };
                let bytes = part.end - part.start;
                pin.bytes += bytes;
                let name = SegmentStore::name(id);
                let layout = match self.segments.layout(id).await {
                    Ok(layout) => layout,
                    Err(e) => {
                        plan.failed = Some(format!("{name}: {e}"));
                        continue;
                    }
                };
                let (len, range) = (layout.object_len(), [layout.stored(offset..offset + bytes)]);
                let is_full = room < u64::MAX && plan.all.objects() >= KEPT_OBJECTS_MAX;
                if is_full || plan.all.bytes() + plan.all.cost(&name, len, &range) > room {
                    pin.left_out_bytes += bytes;
                    continue;
                }
                plan.all.add(&name, len, &range);
                own.add(&name, len, &range);
            }
        }
        Ok(())
    }

    /// One pass; see the module. With `verify`, everything that is kept is read, and opened.
    async fn pass(&self, cache: &Arc<Cached>, verify: bool) -> Result<(), String> {
        let changing = self.pins.changing.lock().await;
        let (paths, revision) = {
            let state = self.pins.state.lock();
            (state.paths.clone(), state.now.revision)
        };
        cache.keep_uploads(!paths.is_empty());
        let max = room(cache.bytes_max());
        let mut plan = self.plan(cache, &paths, max).await.map_err(|e| e.to_string())?;
        if plan.failed.is_some() {
            // What could not be looked at may have been here.
            let before = self.pins.state.lock().kept.clone();
            if before.bytes() + plan.all.bytes() <= max {
                plan.all.add_all(&before);
            }
        }
        let Plan { all, metadata_bytes, each, failed } = plan;
        let all = Arc::new(all);
        let (keeper, kept) = (cache.clone(), all.clone());
        in_background(move || keeper.keep(&kept)).await;
        {
            let mut state = self.pins.state.lock();
            state.kept = all.clone();
            state.now.kept_bytes = all.bytes();
            state.now.metadata_bytes = metadata_bytes;
        }
        drop(changing);
        let mut failed = failed;
        if verify {
            self.note_missing(cache, &all, true).await;
            failed = failed.or(self.open_all(&all).await);
        }
        let mut missing = self.note_missing(cache, &all, false).await;
        for _ in 0..ROUNDS {
            if missing == 0 {
                break;
            }
            let brought = |bytes: u64| {
                let mut state = self.pins.state.lock();
                state.now.missing_bytes = state.now.missing_bytes.saturating_sub(bytes);
            };
            if let Err(e) = cache.bring(&all, &brought).await {
                failed = Some(e.to_string());
            }
            missing = self.note_missing(cache, &all, false).await;
            if failed.is_some() {
                break;
            }
        }
        let mut pins = Vec::with_capacity(each.len());
        for (mut pin, own) in each {
            let cache = cache.clone();
            pin.missing_bytes = in_background(move || cache.missing(&own, false)).await;
            pins.push(pin);
        }
        if missing > 0 && failed.is_none() {
            failed = Some(match cache.write_failed() {
                Some(why) => format!("the cache cannot be written: {why}"),
                None => "the disk of the cache does not keep up".into(),
            });
        }
        let mut state = self.pins.state.lock();
        if state.now.revision == revision {
            state.now.pins = pins;
        }
        state.now.done_revision = revision;
        state.now.failed = failed.clone();
        failed.map_or(Ok(()), Err)
    }

    async fn note_missing(&self, cache: &Arc<Cached>, all: &Arc<KeepSet>, verify: bool) -> u64 {
        let (cache, all) = (cache.clone(), all.clone());
        let missing = in_background(move || cache.missing(&all, verify)).await;
        self.pins.state.lock().now.missing_bytes = missing;
        missing
    }

    /// Opens the beginning of everything that is kept: what was sealed again since, or is damaged, is
    /// dropped from the cache by that. Why one does not open, if so.
    async fn open_all(&self, all: &KeepSet) -> Option<String> {
        let open = |name: &object_store::path::Path| {
            let (sealed, name) = (self.sealed.clone(), name.clone());
            async move { sealed.get_range(&name, 0..1).await.err().map(|e| e.to_string()) }.boxed()
        };
        let opened: Vec<_> = all.locations().map(open).collect();
        let mut opened = futures::stream::iter(opened).buffer_unordered(OPENED_TOGETHER);
        let mut failed = None;
        while let Some(outcome) = opened.next().await {
            failed = failed.or(outcome);
        }
        failed
    }

    /// What a pass goes by: as long as it stays, another one finds the same.
    fn stamp(&self) -> Stamp {
        let keys = (self.key_watch.revision(), self.key_watch.epoch());
        let sequence = self.remembered.lock().sequence;
        let max = self.layers.cache_bytes_max();
        Stamp { state: (self.view.retired(), self.view.kv().manifest_id(), sequence, max), keys }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    state: (u64, u64, u64, Option<u64>),
    keys: (u64, u32),
}

fn failed(e: FsError) -> StackError {
    let kind = StackErrorKind::Unreachable;
    StackError::Role { kind, message: e.to_string(), hint: String::new() }
}

/// Work that blocks.
async fn in_background<T: Send + 'static + Default>(
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// Keeps here what is pinned, until it is dropped.
pub(crate) async fn tend(shared: Arc<OpenVolume>) {
    let cache = match shared.cache_for_pins() {
        Ok(cache) => cache,
        Err(refused) => {
            let mut state = shared.pins.state.lock();
            state.now.failed = (!state.paths.is_empty()).then_some(refused.message);
            return;
        }
    };
    cache.keep_uploads(!shared.pins.state.lock().paths.is_empty());
    // A command that opens the volume for a moment fetches nothing.
    let _ = tokio::time::timeout(BEFORE_FIRST, shared.pins.wake.notified()).await;
    let (mut verified, mut checked) = (None, Instant::now());
    loop {
        let (begun, seen) = (Instant::now(), shared.stamp());
        // At the start all of it: what a crash left half-written, and what an earlier key sealed.
        let verify = verified != Some(seen.keys);
        let outcome = tokio::select! {
            outcome = shared.pass(&cache, verify) => outcome,
            () = shared.pins.wake.notified() => continue, // others are pinned by now
        };
        if outcome.is_ok() {
            verified = Some(seen.keys);
        }
        if let Err(why) = &outcome {
            log::info!("not everything that is pinned is here yet: {why}");
        }
        let least = if outcome.is_ok() { PAUSE } else { PAUSE_FAILED };
        let (ended, pause) = (Instant::now(), least.max(begun.elapsed() * PAUSE_TIMES));
        loop {
            if shared.pins.state.lock().paths.is_empty() {
                shared.pins.wake.notified().await;
                break;
            }
            let woken = tokio::time::timeout(LOOK_EVERY, shared.pins.wake.notified()).await.is_ok();
            let changed = outcome.is_err() || shared.stamp() != seen;
            if woken || (changed && ended.elapsed() >= pause) {
                break;
            }
            if checked.elapsed() >= CHECK_EVERY {
                checked = Instant::now();
                let kept = shared.pins.state.lock().kept.clone();
                if shared.note_missing(&cache, &kept, false).await > 0 {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_that_is_advised_is_enough() {
        // Guards against a hint that leads to the same refusal again.
        for bytes in [1, 4095, 900 << 20, 943_718_401, 7 << 30] {
            let advised = cache_for(bytes);
            let mib: u64 = advised.trim_end_matches('M').parse().expect("a number");
            assert!(room(mib << 20) >= bytes, "{advised} for {bytes}");
        }
        assert_eq!(shown(&[]), "/");
        assert_eq!(shown(&[b"a".to_vec(), b"b c".to_vec()]), "/a/b c");
    }
}
