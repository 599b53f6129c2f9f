//! How the cache reads: what is at hand, what to fetch, how much around it.

use super::super::error::{ErrorClass, StoreError, replicate};
use super::super::rope::Rope;
use super::super::stats::RequestStats;
use super::disk::Key;
use super::flight::{By, Fetched, Flight, Outcome};
use super::granule::{self, GRANULE};
use super::{CacheRule, Cached, FETCH_MAX, Recent};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectMeta, ObjectStore, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Misses within a second, decaying, before an object is fetched in windows.
const MISSES_BEFORE_GROWTH: u32 = 3;
/// A read that misses more than this is not "small": its caller reads ahead itself.
const SMALL_MISS_MAX: u64 = 512 << 10;

fn same_version(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    a.size == b.size && a.e_tag == b.e_tag && a.version == b.version
}

fn broken(class: ErrorClass, message: String) -> Error {
    StoreError::new(class, message).into_store("cached")
}

impl Cached {
    /// One GET of `range`, whose whole granules are then queued for the disk.
    pub(super) fn fetch(
        &self,
        key: Key,
        location: &Path,
        range: GetRange,
    ) -> BoxFuture<'static, Outcome> {
        let (cached, location) = (self.clone(), location.clone());
        async move {
            let options = GetOptions::new().with_range(Some(range));
            let result = cached.0.store.get_opts(&location, options).await.map_err(Arc::new)?;
            let (meta, range) = (Arc::new(result.meta.clone()), result.range.clone());
            let body = Rope::collect(result).await.map_err(Arc::new)?;
            if body.len() != range.end.saturating_sub(range.start) || range.end > meta.size {
                let message = format!("{} bytes of {location} for {range:?}", body.len());
                return Err(Arc::new(broken(ErrorClass::Transport, message)));
            }
            RequestStats::add(&cached.0.stats.cache_miss_bytes, body.len());
            cached.0.metas.lock().put(key, meta.clone());
            cached.0.stage.put(key, &meta, &range, &body);
            Ok(Arc::new(Fetched { meta, range, body }))
        }
        .boxed()
    }

    /// The bytes `want` (cut at the object's end). Tries twice, in case what is cached and what
    /// is fetched are of different versions.
    pub(super) async fn read(
        &self,
        key: Key,
        location: &Path,
        rule: CacheRule,
        want: Range<u64>,
    ) -> Result<(Arc<ObjectMeta>, Rope)> {
        for _ in 0..2 {
            let mut known = self.known(key, location).await;
            if known.is_none() && want.end - want.start > FETCH_MAX {
                // Its size first, together with the first bytes, so that the rest is planned.
                let first = granule::touching(&(want.start..want.start + 1));
                let first = granule::bytes(&first, u64::MAX);
                let fetched = self.fetch(key, location, GetRange::Bounded(first)).await;
                known = Some(fetched.map_err(|e| replicate(&e))?.meta.clone());
            }
            match self.read_version(key, location, rule, want.clone(), known).await? {
                Some(read) => return Ok(read),
                None => self.drop_object(location),
            }
        }
        // Not immutable after all: the caller asks the store itself.
        Err(broken(ErrorClass::Other, format!("{location} changed while it was read")))
    }

    /// One try of [`Cached::read`]; `None` when pieces of different versions came together.
    async fn read_version(
        &self,
        key: Key,
        location: &Path,
        rule: CacheRule,
        want: Range<u64>,
        known: Option<Arc<ObjectMeta>>,
    ) -> Result<Option<(Arc<ObjectMeta>, Rope)>> {
        let end = known.as_ref().map_or(want.end, |meta| want.end.min(meta.size));
        if want.start >= end {
            return Err(broken(ErrorClass::Other, format!("{location} ends before {want:?}")));
        }
        let granules = granule::touching(&(want.start..end));
        let mut metas: Vec<Arc<ObjectMeta>> = known.iter().cloned().collect();
        let mut have: BTreeMap<u64, Rope> = BTreeMap::new();
        for k in granules.clone() {
            if let Some((meta, body)) = self.0.stage.get(&key, k) {
                metas.push(meta);
                have.insert(k, body);
            }
        }
        let unstaged = granules.clone().find(|k| !have.contains_key(k));
        if let Some(first) = unstaged
            && self.0.disk.may_have(&key, &(first..granules.end))
        {
            let (disk, location) = (self.0.disk.clone(), location.clone());
            let read = move || disk.read(&key, &location, first..granules.end);
            if let Some((meta, found)) = tokio::task::spawn_blocking(read).await? {
                metas.push(meta);
                found.into_iter().for_each(|(k, data)| {
                    have.entry(k).or_insert_with(|| data.into());
                });
            }
        }
        let hit: u64 = have.values().map(Rope::len).sum();
        RequestStats::add(&self.0.stats.cache_hit_bytes, hit);

        let missing: Vec<u64> = granules.clone().filter(|k| !have.contains_key(k)).collect();
        let mut fetched: Vec<Arc<Fetched>> = Vec::new();
        if missing.is_empty() {
            RequestStats::add(&self.0.stats.cache_hits, 1);
        } else {
            RequestStats::add(&self.0.stats.cache_misses, 1);
            let small = (missing.len() as u64) * GRANULE <= SMALL_MISS_MAX;
            let first = missing[0];
            let count = known.as_ref().map(|meta| granule::touching(&(0..meta.size)).end);
            let mut wanted = self.widen(&key, missing, rule.fetch_min, count, &have);
            let by = if rule.fetch_min > GRANULE { By::Task } else { By::Reader };
            let fetch = |run: Range<u64>| {
                self.fetch(key, location, GetRange::Bounded(granule::bytes(&run, u64::MAX)))
            };
            let enter =
                |wanted: &[u64]| self.0.flights.enter(key, wanted, FETCH_MAX / GRANULE, by, fetch);
            let mut flights = enter(&wanted);
            // After that: what is wanted now does not wait for what is fetched around it.
            if let (true, Some(count)) = (small, count) {
                self.grow(key, location, first, count);
            }
            loop {
                let landed = futures::future::join_all(flights.into_iter().map(Flight::landed));
                let landed = landed.await;
                let given_up = landed.iter().any(Option::is_none);
                for outcome in landed.into_iter().flatten() {
                    fetched.push(outcome.map_err(|e| replicate(&e))?);
                }
                if !given_up {
                    break;
                }
                // Readers whose fetches this one joined are gone: again, what those leave out.
                wanted.retain(|k| !fetched.iter().any(|f| f.has(*k)));
                flights = enter(&wanted);
            }
            metas.extend(fetched.iter().map(|f| f.meta.clone()));
        }
        let Some(meta) = metas.pop() else { return Ok(None) };
        if metas.iter().any(|other| !same_version(other, &meta)) {
            return Ok(None);
        }
        assemble(&want, meta, have, &fetched).map(Some)
    }

    /// The missing granules with their neighbours up to aligned blocks of `fetch_min` bytes, as
    /// far as those are missing too.
    fn widen(
        &self,
        key: &Key,
        missing: Vec<u64>,
        fetch_min: u64,
        count: Option<u64>,
        have: &BTreeMap<u64, Rope>,
    ) -> Vec<u64> {
        let block = (fetch_min / GRANULE).max(1);
        if block == 1 {
            return missing;
        }
        let mut wanted: BTreeSet<u64> = missing.iter().copied().collect();
        for k in missing {
            let from = k / block * block;
            let to = (from + block).min(count.unwrap_or(u64::MAX));
            wanted.extend((from..to).filter(|k| !have.contains_key(k) && !self.has(key, *k)));
        }
        wanted.into_iter().collect()
    }

    fn has(&self, key: &Key, k: u64) -> bool {
        self.0.disk.may_have(key, &(k..k + 1)) || self.0.stage.get(key, k).is_some()
    }

    /// Notes a small miss at granule `k`; after several within a second, fetches a window
    /// around it in the background. The more misses, the larger the window. When enough windows
    /// are being fetched already, does nothing.
    fn grow(&self, key: Key, location: &Path, k: u64, count: u64) {
        let misses = {
            let mut recent = self.0.recent.lock();
            let entry = recent.get_or_insert_mut(key, || Recent { misses: 0, at: Instant::now() });
            let seconds = entry.at.elapsed().as_secs().min(31) as u32;
            entry.misses = (entry.misses >> seconds) + 1;
            entry.at = Instant::now();
            entry.misses
        };
        if misses < MISSES_BEFORE_GROWTH || self.0.window_max < GRANULE {
            return;
        }
        let doubled = 4u64 << (misses - MISSES_BEFORE_GROWTH).min(16);
        let block = doubled.min(self.0.window_max / GRANULE).max(1);
        let from = k / block * block;
        let missing: Vec<u64> = (from..(from + block).min(count))
            .filter(|k| !self.has(&key, *k) && !self.0.flights.has(&key, *k))
            .collect();
        let Ok(permit) = self.0.windows.clone().try_acquire_owned() else { return };
        if missing.is_empty() {
            return;
        }
        let fetch = |run: Range<u64>| {
            self.fetch(key, location, GetRange::Bounded(granule::bytes(&run, u64::MAX)))
        };
        let flights = self.0.flights.enter(key, &missing, FETCH_MAX / GRANULE, By::Reader, fetch);
        tokio::spawn(async move {
            let _permit = permit;
            let landed = futures::future::join_all(flights.into_iter().map(Flight::landed));
            for outcome in landed.await {
                if let Some(Err(e)) = outcome {
                    log::debug!("fetching ahead failed: {e}");
                }
            }
        });
    }

    /// The last `n` bytes of an object whose size is not known.
    pub(super) async fn read_tail(
        &self,
        key: Key,
        location: &Path,
        rule: CacheRule,
        n: u64,
    ) -> Result<(Arc<ObjectMeta>, Range<u64>, Rope)> {
        RequestStats::add(&self.0.stats.cache_misses, 1);
        let range = GetRange::Suffix(n.max(rule.fetch_min).max(GRANULE));
        let fetched = self.fetch(key, location, range).await.map_err(|e| replicate(&e))?;
        let skip = fetched.body.len().saturating_sub(n);
        let body = fetched.body.slice(skip..fetched.body.len());
        Ok((fetched.meta.clone(), fetched.range.start + skip..fetched.range.end, body))
    }
}

/// The bytes `want` out of whole granules and fetched runs.
fn assemble(
    want: &Range<u64>,
    meta: Arc<ObjectMeta>,
    mut have: BTreeMap<u64, Rope>,
    fetched: &[Arc<Fetched>],
) -> Result<(Arc<ObjectMeta>, Rope)> {
    let want = want.start..want.end.min(meta.size);
    if want.is_empty() {
        let message = format!("{} ends at {}", meta.location, meta.size);
        return Err(broken(ErrorClass::Other, message));
    }
    let mut body = Rope::new();
    for k in granule::touching(&want) {
        let bytes = granule::bytes(&(k..k + 1), meta.size);
        let cut = bytes.start.max(want.start)..bytes.end.min(want.end);
        let piece = match have.remove(&k) {
            Some(granule) => granule.slice(cut.start - bytes.start..cut.end - bytes.start),
            None => {
                let run =
                    fetched.iter().find(|f| f.range.start <= cut.start && cut.end <= f.range.end);
                let run = run.ok_or_else(|| {
                    let message = format!("the store left out {cut:?} of {}", meta.location);
                    broken(ErrorClass::Transport, message)
                })?;
                run.body.slice(cut.start - run.range.start..cut.end - run.range.start)
            }
        };
        body.append(piece);
    }
    Ok((meta, body))
}
