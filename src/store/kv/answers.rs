//! What the store answered while the database was opened to be looked at, so that it is opened for
//! writing at exactly the state that was checked, and costs no round trip more than opening it
//! once. Used by `kv_store` only.
//!
//! Kept are manifests, the log and what says how far either goes; all of it until
//! [`Answers::let_go`], and an answer about the past is no danger: what is put on top of it is put
//! on condition that there is nothing yet. Objects of the log are fetched whole, which takes one
//! request where SlateDB makes three.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use slatedb::object_store_tag::ObjectStoreCallTag;
use tokio::sync::watch;

use crate::store::error::{ErrorClass, StoreError, class};
use crate::store::sealed::{ManifestRead, OnlyWhether};
use crate::store::whole::{Whole, absent, answer, result};

/// An object of the log that is larger is read as SlateDB asks for it.
const WHOLE_MAX: u64 = 1 << 20;
/// Bytes of a table that are fetched before what is asked of it while the database is opened: its end
/// says where its rows are, which are asked for next. A small table comes in one round trip.
const TABLE_BEFORE: u64 = 128 << 10;
/// Bytes kept while the database is opened, and afterwards.
const OPENING_BYTES_MAX: usize = 64 << 20;
const BYTES_MAX: usize = 8 << 20;

/// Which part of the database an object belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// An object of the log, by its number.
    Log(u64),
    /// A manifest, or what says which were collected.
    Manifest,
    Other,
}

fn part(location: &Path) -> Part {
    let name = location.as_ref();
    if let Some(rest) = name.strip_prefix("meta/wal/") {
        let number = rest.strip_suffix(".sst").and_then(|digits| digits.parse().ok());
        return number.map_or(Part::Other, Part::Log);
    }
    match name.starts_with("meta/manifest") || name.starts_with("meta/gc/") {
        true => Part::Manifest,
        false => Part::Other,
    }
}

fn is_manifest(location: &Path) -> bool {
    part(location) == Part::Manifest && location.as_ref().ends_with(".manifest")
}

/// What was read of a table.
#[derive(Clone)]
struct TablePart {
    meta: ObjectMeta,
    from: u64,
    plain: Bytes,
}

impl TablePart {
    /// What it has of `range`, if that is all there is.
    fn slice(&self, range: &std::ops::Range<u64>) -> Option<Bytes> {
        let end = range.end.min(self.meta.size);
        let is_within = self.from <= range.start && range.start < end;
        let (start, end) = (range.start.checked_sub(self.from)?, end.checked_sub(self.from)?);
        let has = is_within && end <= self.plain.len() as u64;
        has.then(|| self.plain.slice(start as usize..end as usize))
    }
}

#[derive(Default)]
struct Kept {
    /// The database is being opened: everything is kept, absences too.
    opening: bool,
    whole: HashMap<Path, Option<Whole>>,
    /// Objects of the log that were read whole, in the order in which they came.
    order: VecDeque<Path>,
    bytes: usize,
    there: HashMap<Path, Option<ObjectMeta>>,
    lists: HashMap<Path, Vec<ObjectMeta>>,
    /// What was read of tables.
    tables: HashMap<Path, TablePart>,
    /// The newest object of the log that was seen.
    log_top: u64,
    /// A manifest was read: others have to continue it.
    has_manifest: bool,
}

impl Kept {
    fn forget(&mut self, location: &Path) {
        if let Some(Some(whole)) = self.whole.remove(location) {
            self.bytes -= whole.bytes.len();
        }
        self.there.remove(location);
    }

    fn clear(&mut self) {
        let Kept { opening, log_top, has_manifest, .. } = *self;
        *self = Kept { opening, log_top, has_manifest, ..Kept::default() };
    }

    fn keep(&mut self, location: &Path, whole: Option<Whole>) {
        self.forget(location);
        if let Some(whole) = &whole {
            self.bytes += whole.bytes.len();
            self.order.push_back(location.clone());
        }
        self.whole.insert(location.clone(), whole);
        let max = if self.opening { OPENING_BYTES_MAX } else { BYTES_MAX };
        while self.bytes > max {
            let Some(oldest) = self.order.pop_front() else { break };
            self.forget(&oldest);
        }
        if !self.opening && self.order.len() > 2 * self.whole.len() + 16 {
            let Kept { order, whole, .. } = self;
            order.retain(|location| whole.contains_key(location));
        }
    }
}

/// See the module.
pub(in crate::store) struct Answers {
    kept: Mutex<Kept>,
    /// Manifests need not continue what was read: older ones are looked at, too.
    looks_aside: bool,
    log: watch::Sender<Listed>,
    /// An object of the log that is not there, nor any behind it, as the store said after it had
    /// listed the log; `None`: the listing was older than that.
    log_end: tokio::sync::OnceCell<Option<u64>>,
    /// The lowest object of the log that was asked for.
    lowest: AtomicU64,
}

/// What is known of a listing of the log.
#[derive(Default)]
enum Listed {
    /// Nobody lists it.
    #[default]
    Unasked,
    /// It comes.
    Awaited,
    /// It is there, or failed.
    Told(Option<Arc<BTreeMap<u64, ObjectMeta>>>),
}

/// Manifest `number`.
pub(in crate::store) fn manifest(number: u64) -> Path {
    Path::from(format!("meta/manifest/{number:020}.manifest"))
}

/// The number of a manifest.
pub(in crate::store) fn manifest_number(location: &Path) -> Option<u64> {
    location.as_ref().strip_prefix("meta/manifest/")?.strip_suffix(".manifest")?.parse().ok()
}

/// Object `number` of the log.
pub(in crate::store) fn log_object(number: u64) -> Path {
    Path::from(format!("meta/wal/{number:020}.sst"))
}

/// The number of an object of the log.
pub(in crate::store) fn log_number(location: &Path) -> Option<u64> {
    match part(location) {
        Part::Log(number) => Some(number),
        _ => None,
    }
}

impl Default for Answers {
    fn default() -> Answers {
        Answers {
            kept: Mutex::default(),
            looks_aside: false,
            log: watch::Sender::default(),
            log_end: Default::default(),
            lowest: AtomicU64::new(u64::MAX),
        }
    }
}

impl Answers {
    /// For what looks at older manifests too, such as collecting garbage.
    pub(in crate::store) fn aside() -> Answers {
        Answers { looks_aside: true, ..Answers::default() }
    }

    /// From now on every answer is kept; what was kept before is forgotten.
    pub(in crate::store) fn hold(&self) {
        let mut kept = self.kept.lock();
        *kept = Kept { opening: true, ..Kept::default() };
    }

    /// What the log lists will be told: whoever asks whether an object of it is there waits for that.
    pub(in crate::store) fn lists_log(&self) {
        self.log.send_replace(Listed::Awaited);
    }

    /// The database is open.
    pub(in crate::store) fn let_go(&self) {
        let mut kept = self.kept.lock();
        kept.opening = false;
        kept.clear();
    }

    /// Whether the database is being opened.
    pub(in crate::store) fn is_opening(&self) -> bool {
        self.kept.lock().opening
    }

    /// What was put while the database is opened needs not be read again; and nobody can have put
    /// the manifest behind it in time for this opening: whoever does is met by the next condition.
    pub(in crate::store) fn own(&self, location: &Path, payload: &PutPayload, put: &PutResult) {
        let mut kept = self.kept.lock();
        if let Part::Log(number) = part(location) {
            kept.log_top = kept.log_top.max(number);
        }
        if !kept.opening || part(location) == Part::Other {
            return;
        }
        let bytes = Bytes::from(payload.clone());
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: SystemTime::now().into(),
            size: bytes.len() as u64,
            e_tag: put.e_tag.clone(),
            version: put.version.clone(),
        };
        kept.keep(location, Some(Whole { meta, bytes }));
        if let Some(next) = manifest_number(location).map(|number| manifest(number + 1)) {
            kept.keep(&next, None);
        }
    }

    /// The newest object of the log that was seen or put; 0 if none was.
    pub(in crate::store) fn log_top(&self) -> u64 {
        self.kept.lock().log_top
    }

    /// What the log lists, which is told once the database is being opened: `None` if that failed.
    pub(in crate::store) fn listed(&self, log: Option<&[ObjectMeta]>) {
        let listed = log.map(|log| {
            let number = |meta: &ObjectMeta| match part(&meta.location) {
                Part::Log(number) => Some((number, meta.clone())),
                _ => None,
            };
            Arc::new(log.iter().filter_map(number).collect::<BTreeMap<_, _>>())
        });
        self.log.send_replace(Listed::Told(listed));
    }

    /// Bytes of what the log lists behind object `after`, if the database is being opened and that was
    /// told.
    pub(in crate::store) fn log_bytes(&self, after: u64) -> Option<u64> {
        let Listed::Told(Some(listed)) = &*self.log.borrow() else { return None };
        let behind = listed.range(after.saturating_add(1)..);
        self.is_opening().then(|| behind.map(|(_, meta)| meta.size).sum())
    }

    /// What the log lists, if that is to be told.
    async fn told(&self) -> Option<Arc<BTreeMap<u64, ObjectMeta>>> {
        if !self.is_opening() {
            return None;
        }
        let mut log = self.log.subscribe();
        // The sender is part of `self`: it cannot be gone.
        match &*log.wait_for(|log| !matches!(log, Listed::Awaited)).await.ok()? {
            Listed::Told(listed) => listed.clone(),
            _ => None,
        }
    }

    /// Something was put, or somebody else was found to have put it: then nothing holds.
    pub(in crate::store) fn changed(&self, location: &Path, by_another: bool) {
        let mut kept = self.kept.lock();
        match by_another {
            true => {
                kept.clear();
                self.log.send_replace(Listed::Unasked); // the log has gone on
            }
            false => {
                kept.forget(location);
                kept.lists.clear();
            }
        }
    }

    /// One read by SlateDB.
    pub(in crate::store) async fn get(
        &self,
        store: &dyn ObjectStore,
        location: &Path,
        options: GetOptions,
    ) -> Result<GetResult> {
        let plain = options.version.is_none()
            && options.if_match.is_none()
            && options.if_none_match.is_none()
            && options.if_modified_since.is_none()
            && options.if_unmodified_since.is_none();
        match part(location) {
            Part::Log(number) if plain => {
                let tag = ObjectStoreCallTag::from_extensions(&options.extensions);
                if options.head && tag.is_none() {
                    return self.whether(store, location, number).await;
                }
                if tag.is_some_and(|tag| tag.retry.is_some()) {
                    self.kept.lock().forget(location);
                }
                self.log(store, location, number, options).await
            }
            Part::Manifest if options.head || self.looks_aside => {
                store.get_opts(location, options).await
            }
            Part::Manifest if !plain || !self.is_opening() => {
                let mut options = options;
                options.extensions.insert(ManifestRead::Next);
                store.get_opts(location, options).await
            }
            Part::Manifest => {
                let (known, read_as) = {
                    let kept = self.kept.lock();
                    let read_as = match kept.has_manifest {
                        true => ManifestRead::Next,
                        false => ManifestRead::First,
                    };
                    (kept.whole.get(location).cloned(), read_as)
                };
                if let Some(known) = known {
                    return answer(location, known, &options);
                }
                let mut ask = GetOptions::default();
                ask.extensions.insert(read_as);
                let got = read(store, location, ask).await;
                let whole = or_absent(got)?;
                let mut kept = self.kept.lock();
                kept.has_manifest |= whole.is_some() && is_manifest(location);
                kept.keep(location, whole.clone());
                drop(kept);
                answer(location, whole, &options)
            }
            Part::Other if plain && !options.head && self.is_opening() => match &options.range {
                Some(GetRange::Bounded(range)) if !range.is_empty() => {
                    let range = range.clone();
                    let tag = ObjectStoreCallTag::from_extensions(&options.extensions);
                    if tag.is_some_and(|tag| tag.retry.is_some()) {
                        self.kept.lock().tables.remove(location);
                    }
                    self.table(store, location, range, options).await
                }
                _ => store.get_opts(location, options).await,
            },
            _ => store.get_opts(location, options).await,
        }
    }

    /// Whether an object of the log is there.
    async fn whether(
        &self,
        store: &dyn ObjectStore,
        location: &Path,
        number: u64,
    ) -> Result<GetResult> {
        let known = {
            let kept = self.kept.lock();
            let whole = kept.whole.get(location).map(|w| w.as_ref().map(|w| w.meta.clone()));
            whole.or_else(|| kept.there.get(location).cloned())
        };
        let known = match known {
            None => self.by_listing(store, number).await?,
            known => known,
        };
        let meta = match known {
            Some(meta) => meta,
            None => {
                let mut meta = look(store, location).await?;
                if meta.is_none() && self.kept.lock().log_top > number {
                    // Those behind it were put later: now it must be there.
                    meta = look(store, location).await?;
                    if meta.is_none() {
                        return Err(gap(location));
                    }
                }
                let mut kept = self.kept.lock();
                if kept.opening {
                    kept.there.insert(location.clone(), meta.clone());
                }
                meta
            }
        };
        let meta = meta.ok_or_else(|| absent(location))?;
        let mut kept = self.kept.lock();
        kept.log_top = kept.log_top.max(number);
        drop(kept);
        Ok(result(meta, 0..0, Bytes::new()))
    }

    /// What the listing of the log, taken while the database is opened, says of object `number`, if
    /// it says anything: the first one that it does not have is looked for once.
    async fn by_listing(
        &self,
        store: &dyn ObjectStore,
        number: u64,
    ) -> Result<Option<Option<ObjectMeta>>> {
        let Some(listed) = self.told().await else { return Ok(None) };
        let lowest = self.lowest.fetch_min(number, Ordering::Relaxed).min(number);
        if let Some(meta) = listed.get(&number) {
            return Ok(Some(Some(meta.clone())));
        }
        let top = listed.last_key_value().map_or(0, |(number, _)| *number);
        // SlateDB begins with the one behind which replay starts; what it listed before may be all
        // collected.
        let end = lowest.max(top + 1);
        let looked = self.log_end.get_or_try_init(|| async {
            let found = look(store, &log_object(end)).await?;
            Ok::<_, Error>(found.is_none().then_some(end))
        });
        Ok(looked.await?.filter(|end| number >= *end).map(|_| None))
    }

    /// A read of a table while the database is opened.
    async fn table(
        &self,
        store: &dyn ObjectStore,
        location: &Path,
        range: std::ops::Range<u64>,
        options: GetOptions,
    ) -> Result<GetResult> {
        let kept = self.kept.lock().tables.get(location).cloned();
        let part = match kept.filter(|part| part.slice(&range).is_some()) {
            Some(part) => part,
            None => {
                let from = range.start.saturating_sub(TABLE_BEFORE);
                let wider = Some(GetRange::Bounded(from..range.end));
                let got = store.get_opts(location, GetOptions { range: wider, ..options }).await?;
                let (meta, from) = (got.meta.clone(), got.range.start);
                let part = TablePart { meta, from, plain: got.bytes().await? };
                let mut kept = self.kept.lock();
                if kept.opening {
                    kept.tables.insert(location.clone(), part.clone());
                }
                part
            }
        };
        let Some(plain) = part.slice(&range) else {
            let message = format!("a read of {location} at {} gave less", range.start);
            return Err(StoreError::new(ErrorClass::Transport, message).into_store("sealfs"));
        };
        let range = range.start..range.start + plain.len() as u64;
        Ok(result(part.meta, range, plain))
    }

    /// A read of an object of the log, which is fetched whole if it is not large.
    async fn log(
        &self,
        store: &dyn ObjectStore,
        location: &Path,
        number: u64,
        options: GetOptions,
    ) -> Result<GetResult> {
        let known = self.kept.lock().whole.get(location).cloned();
        let whole = match known {
            Some(whole) => whole,
            None => {
                // A range cannot be asked of an empty object, which only costs round trips.
                let listed = self.told().await.and_then(|log| Some(log.get(&number)?.size));
                let range = match listed {
                    Some(0) => None,
                    _ => Some(GetRange::Bounded(0..WHOLE_MAX)),
                };
                let got = read(store, location, GetOptions { range, ..Default::default() }).await;
                let whole = or_absent(got)?;
                if whole.as_ref().is_some_and(|w| (w.bytes.len() as u64) < w.meta.size) {
                    return store.get_opts(location, options).await;
                }
                self.kept.lock().keep(location, whole.clone());
                whole
            }
        };
        let mut kept = self.kept.lock();
        match &whole {
            None if kept.log_top > number => {
                return Err(gap(location));
            }
            // It is asked for until it is there.
            None if !kept.opening => kept.forget(location),
            // Its end is what is read last.
            Some(_) if !kept.opening && !options.head => kept.forget(location),
            _ => {}
        }
        drop(kept);
        answer(location, whole, &options)
    }

    /// A listing by SlateDB.
    pub(in crate::store) fn list(
        self: &Arc<Self>,
        store: Arc<dyn ObjectStore>,
        prefix: Option<&Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let held = match prefix {
            Some(prefix) if part(prefix) == Part::Manifest && self.is_opening() => prefix.clone(),
            _ => return store.list(prefix),
        };
        let answers = self.clone();
        let listing = async move {
            let known = answers.kept.lock().lists.get(&held).cloned();
            let list = match known {
                Some(list) => list,
                None => {
                    let list: Vec<ObjectMeta> = store.list(Some(&held)).try_collect().await?;
                    answers.kept.lock().lists.insert(held, list.clone());
                    list
                }
            };
            Ok::<_, Error>(stream::iter(list.into_iter().map(Ok)))
        };
        stream::once(listing).try_flatten().boxed()
    }
}

/// Whether an object is there, and what the store says of it.
async fn look(store: &dyn ObjectStore, location: &Path) -> Result<Option<ObjectMeta>> {
    let mut options = GetOptions::new().with_head(true);
    options.extensions.insert(OnlyWhether);
    match store.get_opts(location, options).await {
        Ok(found) => Ok(Some(found.meta)),
        Err(e) if class(&e) == ErrorClass::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Refuses a log in which, by what the store lists, an object behind `replay_after` is missing.
///
/// # Errors
/// The store's; that it is not there even now.
pub(in crate::store) async fn refuse_gaps(
    store: &dyn ObjectStore,
    listed: &[ObjectMeta],
    replay_after: u64,
) -> Result<()> {
    let number = |meta: &ObjectMeta| match part(&meta.location) {
        Part::Log(number) if number > replay_after => Some(number),
        _ => None,
    };
    let numbers: BTreeSet<u64> = listed.iter().filter_map(number).collect();
    let missing = numbers.iter().zip(replay_after + 1..).find(|(number, next)| *number != next);
    let Some((_, missing)) = missing else { return Ok(()) };
    let missing = log_object(missing);
    match look(store, &missing).await? {
        Some(_) => Ok(()), // the listing is older
        None => Err(gap(&missing)),
    }
}

fn gap(location: &Path) -> Error {
    let message =
        format!("object {location} is not there, though the log of the metadata goes on behind it");
    StoreError::new(ErrorClass::Corrupt, message).into_store("sealfs")
}

/// An absence is an answer too.
fn or_absent(got: Result<Whole>) -> Result<Option<Whole>> {
    match got {
        Ok(whole) => Ok(Some(whole)),
        Err(e) if class(&e) == ErrorClass::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

async fn read(store: &dyn ObjectStore, location: &Path, options: GetOptions) -> Result<Whole> {
    let got = store.get_opts(location, options).await;
    let got = match got {
        // An empty object: no range of it can be asked for.
        Err(e) if class(&e) == ErrorClass::Other => {
            store.get_opts(location, GetOptions::default()).await.map_err(|_| e)?
        }
        got => got?,
    };
    let meta = got.meta.clone();
    Ok(Whole { meta, bytes: got.bytes().await? })
}
