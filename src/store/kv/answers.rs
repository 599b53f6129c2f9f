//! What the store answered while the database was opened to be looked at, so that it is opened for
//! writing at exactly the state that was checked, and costs no round trip more than opening it
//! once. Used by `kv_store` only.
//!
//! Kept are manifests, the log and what says how far either goes; all of it until
//! [`Answers::let_go`], and an answer about the past is no danger: what is put on top of it is put
//! on condition that there is nothing yet. Objects of the log are fetched whole, which takes one
//! request where SlateDB makes three.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, Result,
};
use parking_lot::Mutex;
use slatedb::object_store_tag::ObjectStoreCallTag;

use crate::store::error::{ErrorClass, StoreError, class};
use crate::store::sealed::{ManifestRead, OnlyWhether};

/// An object of the log that is larger is read as SlateDB asks for it.
const WHOLE_MAX: u64 = 1 << 20;
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

/// An object that was read whole.
#[derive(Clone)]
struct Whole {
    meta: ObjectMeta,
    plain: Bytes,
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
    /// The newest object of the log that was seen.
    log_top: u64,
    /// A manifest was read: others have to continue it.
    has_manifest: bool,
}

impl Kept {
    fn forget(&mut self, location: &Path) {
        if let Some(Some(whole)) = self.whole.remove(location) {
            self.bytes -= whole.plain.len();
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
            self.bytes += whole.plain.len();
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
#[derive(Default)]
pub(in crate::store) struct Answers {
    kept: Mutex<Kept>,
    /// Manifests need not continue what was read: older ones are looked at, too.
    looks_aside: bool,
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

    /// Something was put, or somebody else was found to have put it: then nothing holds.
    pub(in crate::store) fn changed(&self, location: &Path, by_another: bool) {
        let mut kept = self.kept.lock();
        match by_another {
            true => kept.clear(),
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
                let range = Some(GetRange::Bounded(0..WHOLE_MAX));
                let got = read(store, location, GetOptions { range, ..Default::default() }).await;
                let whole = or_absent(got)?;
                if whole.as_ref().is_some_and(|w| (w.plain.len() as u64) < w.meta.size) {
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
    let missing = Path::from(format!("meta/wal/{missing:020}.sst"));
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
    Ok(Whole { meta, plain: got.bytes().await? })
}

fn absent(location: &Path) -> Error {
    Error::NotFound { path: location.to_string(), source: "it is not there".into() }
}

fn answer(location: &Path, whole: Option<Whole>, options: &GetOptions) -> Result<GetResult> {
    let Whole { meta, plain } = whole.ok_or_else(|| absent(location))?;
    let range = match (&options.range, options.head) {
        (Some(range), false) => range
            .as_range(meta.size)
            .map_err(|e| StoreError::new(ErrorClass::Other, e.to_string()).into_store("sealfs"))?,
        _ => 0..meta.size,
    };
    let part = match options.head {
        true => Bytes::new(),
        false => plain.slice(range.start as usize..range.end as usize),
    };
    Ok(result(meta, range, part))
}

fn result(meta: ObjectMeta, range: std::ops::Range<u64>, plain: Bytes) -> GetResult {
    GetResult {
        payload: GetResultPayload::Stream(stream::once(async { Ok(plain) }).boxed()),
        meta,
        range,
        attributes: Default::default(),
        extensions: Default::default(),
    }
}
