//! What is to stay in the cache whatever else is read: some granules of some objects.
//!
//! Kept granules are not evicted. What else a file of the cache holds beside them goes when there is no
//! other room, by a hole in the file. Which they are stands in the cache directory too (hashes of names
//! of objects, as the names of its files are), so that a start evicts none before the set is known again.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path as FilePath;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{GetRange, ObjectStoreExt, Result};

use super::super::error::replicate;
use super::disk::{self, Disk, Index, Key, Presence};
use super::flight::{By, Flight};
use super::granule::{self, GRANULE, MARK, PAGE};
use super::{Cached, FETCH_MAX};
use crate::seal::offsets::{CHUNK_PLAIN, cipher_len};

/// Objects of which something is kept at most: a part of those that the cache can have.
pub const KEPT_OBJECTS_MAX: usize = disk::OBJECTS_MAX / 2;
/// Objects that are fetched at a time.
const FETCHES: usize = 3;
/// Plaintext bytes of a granule.
const GRANULE_PLAIN: u64 = 4 * CHUNK_PLAIN as u64;
/// Granules that are read and compared with their checksums at a time.
const VERIFIED_TOGETHER: u64 = 64;
/// How long what was fetched may take to get to the disk.
const WRITE_MAX: Duration = Duration::from_secs(60);
/// The name of the list in the cache directory.
const LIST_NAME: &str = "kept";
/// Its first bytes; the digit is the layout's version.
const LIST_MAGIC: &[u8; 8] = b"sealfsK1";

/// Granules of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn has(&self, k: u64) -> bool {
        self.0.get((k / 64) as usize).is_some_and(|word| word >> (k % 64) & 1 == 1)
    }

    fn set(&mut self, k: u64) {
        let word = (k / 64) as usize;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (k % 64);
    }

    fn iter(&self) -> impl Iterator<Item = u64> {
        let of_word = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64u64).filter(move |k| word >> k & 1 == 1).map(move |k| at as u64 * 64 + k)
        };
        self.0.iter().enumerate().flat_map(of_word)
    }
}

/// Bytes that granule `k` of an object of `size` bytes takes on the disk.
fn taken(k: u64, size: u64) -> u64 {
    let bytes = granule::bytes(&(k..k + 1), size);
    bytes.end - bytes.start + MARK
}

struct Wanted {
    location: Path,
    size: u64,
    granules: Bits,
}

/// Parts of objects that are to stay. In memory it takes about 200 bytes an object.
#[derive(Default)]
pub struct KeepSet {
    objects: BTreeMap<Key, Wanted>,
    bytes: u64,
}

impl KeepSet {
    /// Bytes that they take on the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Objects of which something is among them.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// The objects.
    pub fn locations(&self) -> impl Iterator<Item = &Path> {
        self.objects.values().map(|wanted| &wanted.location)
    }

    /// The granules that plaintext `ranges` of an object of `plain_len` such bytes take, with those that
    /// every reader needs: the first, which has the header, and the last, which proves the length.
    fn granules(plain_len: u64, ranges: &[Range<u64>]) -> Bits {
        let last = granule::index(cipher_len(plain_len) - 1);
        let mut bits = Bits::default();
        bits.set(0);
        bits.set(last);
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let to = ((range.end - 1) / GRANULE_PLAIN).min(last);
            (range.start / GRANULE_PLAIN..=to).for_each(|k| bits.set(k));
        }
        bits
    }

    /// Bytes of the disk that adding these would take.
    pub fn cost(&self, location: &Path, plain_len: u64, ranges: &[Range<u64>]) -> u64 {
        let (size, known) = (cipher_len(plain_len), self.objects.get(&disk::key(location)));
        let granules = KeepSet::granules(plain_len, ranges);
        let new = granules.iter().filter(|k| known.is_none_or(|known| !known.granules.has(*k)));
        let page = if known.is_none() { PAGE } else { 0 };
        new.map(|k| taken(k, size)).sum::<u64>() + page
    }

    /// Adds plaintext `ranges` of an object of `plain_len` such bytes.
    pub fn add(&mut self, location: &Path, plain_len: u64, ranges: &[Range<u64>]) {
        self.insert(location, cipher_len(plain_len), KeepSet::granules(plain_len, ranges));
    }

    /// Adds an object of `size` bytes as it is stored.
    pub fn add_whole(&mut self, location: &Path, size: u64) {
        let mut all = Bits::default();
        granule::touching(&(0..size)).for_each(|k| all.set(k));
        self.insert(location, size, all);
    }

    /// Adds what is in `other`.
    pub fn add_all(&mut self, other: &KeepSet) {
        for wanted in other.objects.values() {
            self.insert(&wanted.location, wanted.size, wanted.granules.clone());
        }
    }

    fn insert(&mut self, location: &Path, size: u64, granules: Bits) {
        let key = disk::key(location);
        if !self.objects.contains_key(&key) {
            self.bytes += PAGE;
        }
        let wanted = self.objects.entry(key).or_insert_with(|| Wanted {
            location: location.clone(),
            size,
            granules: Bits::default(),
        });
        for k in granules.iter().filter(|k| !wanted.granules.has(*k)).collect::<Vec<_>>() {
            wanted.granules.set(k);
            self.bytes += taken(k, size);
        }
    }
}

impl Cached {
    /// From now on these stay, and no others. Blocks for a write of some bytes an object.
    pub fn keep(&self, set: &KeepSet) {
        self.0.disk.keep_all(set);
    }

    /// The size of an object as it is stored; asks the store if the cache does not know.
    ///
    /// # Errors
    /// The store's.
    pub async fn size_of(&self, location: &Path) -> Result<u64> {
        Ok(self.head(location).await?.size)
    }

    /// Bytes of `set` that are not on this disk; with `verify` all others are read and compared with their
    /// checksums. Blocks.
    pub fn missing(&self, set: &KeepSet, verify: bool) -> u64 {
        let missing = |(key, wanted): (&Key, &Wanted)| -> u64 {
            let lacking = self.0.disk.lacking(key, wanted, verify);
            lacking.into_iter().map(|k| taken(k, wanted.size)).sum()
        };
        set.objects.iter().map(missing).sum()
    }

    /// Fetches what of `set` is not on this disk; `on_bytes` hears of each piece. What another has
    /// queued for the disk meanwhile may push it out of the queue: ask [`Cached::missing`] afterwards.
    ///
    /// # Errors
    /// The store's, the first one; the other objects are fetched all the same.
    pub async fn bring(&self, set: &KeepSet, on_bytes: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let fetches: Vec<_> = set
            .objects
            .iter()
            .map(|(key, wanted)| self.bring_one(*key, wanted, on_bytes).boxed())
            .collect();
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(FETCHES);
        let mut failed = None;
        while let Some(outcome) = fetches.next().await {
            if let Err(e) = outcome {
                failed.get_or_insert(e);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn bring_one(
        &self,
        key: Key,
        wanted: &Wanted,
        on_bytes: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let lacking = self.0.disk.lacking(&key, wanted, false);
        for run in granule::runs(lacking, FETCH_MAX / GRANULE) {
            let fetch = |run: Range<u64>| {
                let bytes = granule::bytes(&run, u64::MAX);
                self.fetch(key, &wanted.location, GetRange::Bounded(bytes))
            };
            let granules: Vec<u64> = run.clone().collect();
            let flights =
                self.0.flights.enter(key, &granules, FETCH_MAX / GRANULE, By::Task, fetch);
            for flight in flights {
                if let Some(Err(e)) = Flight::landed(flight).await {
                    return Err(replicate(&e));
                }
            }
            // So that the queue, which is bounded, has room for the next.
            let stage = self.0.stage.clone();
            tokio::task::spawn_blocking(move || stage.flush(WRITE_MAX)).await?;
            on_bytes(granules.iter().map(|k| taken(*k, wanted.size)).sum());
        }
        Ok(())
    }

    /// What this machine puts is kept from now on, or only as the rules say.
    pub fn keep_uploads(&self, all: bool) {
        self.0.keep_uploads.store(all, Ordering::Relaxed);
    }
}

impl Disk {
    pub(super) fn keep_all(&self, set: &KeepSet) {
        let kept = set.objects.iter().map(|(key, wanted)| (*key, wanted.granules.clone()));
        let kept: HashMap<Key, Bits> = kept.collect();
        let mut index = self.index.lock();
        if index.kept == kept {
            return;
        }
        let list = list_of(&kept);
        index.kept = kept;
        drop(index);
        if let Err(e) = write_list(&self.dir, &list) {
            log::warn!("what is to stay in the cache is not remembered: {e}");
        }
    }

    /// Which granules are wanted and not there. Blocks.
    fn lacking(&self, key: &Key, wanted: &Wanted, verify: bool) -> Vec<u64> {
        // Somebody may have deleted files of a cache in use.
        let is_known = self.index.lock().entries.contains(key);
        if is_known && !self.file(key).exists() {
            self.remove(key);
        }
        let is_unknown = |index: &Index| {
            let entry = index.entries.peek(key);
            entry.is_some_and(|entry| matches!(entry.present, Presence::Unknown))
        };
        if verify || is_unknown(&self.index.lock()) {
            for run in granule::runs(wanted.granules.iter(), VERIFIED_TOGETHER) {
                let _ = self.read(key, &wanted.location, run); // notes what is not whole
            }
        }
        let index = self.index.lock();
        let entry = index.entries.peek(key);
        let has = |k: &u64| entry.is_some_and(|entry| entry.present.may_have(*k));
        wanted.granules.iter().filter(|k| !has(k)).collect()
    }

    /// Removes what lies beside kept granules in the files that have some, until `bytes_max` holds.
    /// The caller holds `changing`.
    pub(super) fn trim(&self, bytes_max: u64) {
        let kept: Vec<Key> = self.index.lock().kept.keys().copied().collect();
        for key in kept {
            if self.usage().0 <= bytes_max {
                return;
            }
            if let Err(e) = self.trim_one(&key) {
                log::debug!("{}: {e}; dropped", self.file(&key).display());
                self.remove_file(&key); // it is fetched again
            }
        }
    }

    fn trim_one(&self, key: &Key) -> io::Result<()> {
        let kept = match self.index.lock() {
            index if index.entries.contains(key) => index.kept.get(key).cloned(),
            _ => None,
        };
        let Some(kept) = kept else { return Ok(()) };
        let file = File::options().read(true).write(true).open(self.file(key))?;
        let len = file.metadata()?.len();
        let mut k = 0;
        while granule::file_start(k) < len {
            let first = k;
            while granule::file_start(k) < len && !kept.has(k) {
                k += 1;
            }
            let (from, to) = (granule::file_start(first), granule::file_start(k));
            if to > from {
                punch(&file, from, to - from)?;
            }
            k += 1;
        }
        let bytes = file.metadata()?.blocks() * 512;
        let mut index = self.index.lock();
        let before = match index.entries.peek_mut(key) {
            Some(entry) => {
                if let Presence::Bits(bits) = &mut entry.present {
                    for (at, word) in bits.iter_mut().enumerate() {
                        *word &= kept.0.get(at).copied().unwrap_or(0);
                    }
                }
                std::mem::replace(&mut entry.bytes, bytes)
            }
            None => return Ok(()),
        };
        index.bytes = (index.bytes + bytes).saturating_sub(before);
        Ok(())
    }
}

/// Frees a range of a file, which reads as zeros from then on.
fn punch(file: &File, from: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open; the call takes numbers.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, from as i64, len as i64) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn list_of(kept: &HashMap<Key, Bits>) -> Vec<u8> {
    let mut list = LIST_MAGIC.to_vec();
    for (key, bits) in kept {
        list.extend_from_slice(key);
        list.extend_from_slice(&(bits.0.len() as u32).to_le_bytes());
        bits.0.iter().for_each(|word| list.extend_from_slice(&word.to_le_bytes()));
    }
    let sum = crc32fast::hash(&list);
    list.extend_from_slice(&sum.to_le_bytes());
    list
}

fn write_list(dir: &FilePath, list: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(list)?;
    file.persist(dir.join(LIST_NAME)).map(drop).map_err(|e| e.error)
}

/// The list in the directory; empty if there is none that is whole.
pub(super) fn read_list(dir: &FilePath) -> HashMap<Key, Bits> {
    fs::read(dir.join(LIST_NAME)).ok().and_then(|list| decode_list(&list)).unwrap_or_default()
}

fn decode_list(list: &[u8]) -> Option<HashMap<Key, Bits>> {
    let (body, sum) = list.split_last_chunk()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let mut rest = body.strip_prefix(LIST_MAGIC)?;
    let mut kept = HashMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_first_chunk()?;
        let (count, after) = after.split_first_chunk()?;
        let len = (u32::from_le_bytes(*count) as usize).checked_mul(8)?;
        let words = after.get(..len)?.chunks_exact(8);
        let words = words.map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
        kept.insert(*key, Bits(words.collect()));
        rest = &after[len..];
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled;

    #[test]
    fn a_list_is_whole_or_none() {
        // Guards against a file in the cache directory, which anybody with the disk can write, that makes
        // the mount panic or take memory: the sum over it is right here.
        let mut bits = Bits::default();
        [0, 5, 200].into_iter().for_each(|k| bits.set(k));
        let list = list_of(&HashMap::from([([7; 16], bits), ([8; 16], Bits::default())]));
        let body = list.split_last_chunk::<4>().expect("a sum").0.to_vec();
        garbled(&[&body], &[&[0xff; 4], &[7; 16], LIST_MAGIC], |body| {
            let whole = [body, &crc32fast::hash(body).to_le_bytes()].concat();
            let Some(read) = decode_list(&whole) else { return };
            let bytes: usize = read.values().map(|bits| bits.0.len() * 8 + 20).sum();
            assert!(bytes + LIST_MAGIC.len() <= body.len());
            assert_eq!(decode_list(&list_of(&read)).map(|again| again.len()), Some(read.len()));
            assert!(decode_list(body).is_none() || body.len() < 12);
        });
    }
}
