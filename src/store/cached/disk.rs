//! The cache directory: one sparse file per object, least recently used objects leave first.
//!
//! `DIR/ab/cdef…` (32 hex digits of the name's SHA-256) holds a page that says which object it is
//! and the granules fetched so far, each behind a mark with its length and CRC-32. Nothing is
//! synced: after a crash a torn page or granule fails its checksum and is fetched again, so the
//! files need no journal, and a restart finds the cache warm by listing names. The contents are
//! ciphertext. All calls block; [`Disk::write`] is called by one thread only. Large writes go past
//! the page cache (see `direct`).

use super::super::rope::Rope;
use super::super::stats::RequestStats;
use super::direct::{DirectWriter, Piece};
use super::granule::{self, MARK, PAGE};
use super::keep::{self, Bits};
use super::page;
use crate::base::{Buffer, hex, read_up_to};
use bytes::Bytes;
use lru::LruCache;
use object_store::ObjectMeta;
use object_store::path::Path;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

/// Objects kept at most, whatever their size: bounds the index in memory (about 200 bytes each).
pub(super) const OBJECTS_MAX: usize = 100_000;
/// Freed at once when the disk is full, so that the journal gets room.
const FREED_WHEN_FULL: u64 = 64 << 20;
/// Granules that are read and checked at a time: what was read is still near when it is summed up.
const READ_GRANULES: u64 = 4;
/// The file whose lock keeps other processes out; it holds the id of the one that has it.
const LOCK_NAME: &str = "lock";
/// Names an object on disk and in memory: 16 bytes of its path's SHA-256.
pub(super) type Key = [u8; 16];

/// The key of an object's path.
pub(super) fn key(location: &Path) -> Key {
    let digest = Sha256::digest(location.as_ref().as_bytes());
    *digest.first_chunk().expect("SHA-256 has 32 bytes")
}

/// What a read finds: the object's metadata and the whole granules, ascending.
pub(super) type Found = (Arc<ObjectMeta>, Vec<(u64, Bytes)>);

/// The directory and its index.
pub(super) struct Disk {
    pub(super) dir: PathBuf,
    bytes_max: AtomicU64,
    pub(super) index: Mutex<Index>,
    /// Held while a file is changed or removed, so that a removal is not undone by a write.
    changing: Mutex<DirectWriter>,
    stats: Arc<RequestStats>,
    /// Keeps other processes out; released when dropped.
    _lock: File,
}

pub(super) struct Index {
    pub(super) entries: LruCache<Key, Entry>,
    pub(super) bytes: u64,
    /// What is not evicted (see `keep`).
    pub(super) kept: HashMap<Key, Bits>,
}

/// What is known of one file without looking into it.
pub(super) struct Entry {
    pub(super) bytes: u64,
    meta: Option<Arc<ObjectMeta>>,
    pub(super) present: Presence,
}

/// Which granules a file may have.
pub(super) enum Presence {
    /// Found at the start; any may be there.
    Unknown,
    /// One bit each; a set bit may still turn out to be torn.
    Bits(Vec<u64>),
}

impl Presence {
    pub(super) fn may_have(&self, k: u64) -> bool {
        match self {
            Presence::Unknown => true,
            Presence::Bits(bits) => {
                bits.get((k / 64) as usize).is_some_and(|word| word >> (k % 64) & 1 == 1)
            }
        }
    }

    fn set(&mut self, k: u64, there: bool) {
        let Presence::Bits(bits) = self else { return };
        let word = (k / 64) as usize;
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        bits[word] = bits[word] & !(1 << (k % 64)) | u64::from(there) << (k % 64);
    }

    /// Turns "any of `count`" into bits.
    fn settle(&mut self, count: u64) {
        if let Presence::Unknown = self {
            *self = Presence::Bits(vec![u64::MAX; count.div_ceil(64) as usize]);
        }
    }
}

impl Disk {
    /// Opens (or makes) the directory and lists what it has, oldest first.
    ///
    /// # Errors
    /// The directory cannot be made, listed or locked; `WouldBlock`: another process has it.
    pub(super) fn open(dir: PathBuf, bytes_max: u64, stats: Arc<RequestStats>) -> io::Result<Disk> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut options = OpenOptions::new();
        let mut lock =
            options.create(true).truncate(false).write(true).open(dir.join(LOCK_NAME))?;
        lock.try_lock().map_err(|e| match e {
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("the cache directory {} is in use by another process", dir.display()),
            ),
            fs::TryLockError::Error(e) => e,
        })?;
        // For who meets the lock; a full disk keeps nobody from using the cache.
        let named = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        if let Err(e) = named {
            log::debug!("the lock of {} names nobody: {e}", dir.display());
        }
        let mut index =
            Index { entries: LruCache::unbounded(), bytes: 0, kept: keep::read_list(&dir) };
        for (key, bytes) in scan(&dir)? {
            index.bytes += bytes;
            index.entries.put(key, Entry { bytes, meta: None, present: Presence::Unknown });
        }
        let disk = Disk {
            dir,
            bytes_max: AtomicU64::new(bytes_max),
            index: Mutex::new(index),
            changing: Mutex::new(DirectWriter::default()),
            stats,
            _lock: lock,
        };
        disk.evict_to(bytes_max, Spare::Nothing);
        Ok(disk)
    }

    /// Bytes of an object; no I/O.
    pub(super) fn bytes_of(&self, location: &Path) -> u64 {
        self.index.lock().entries.peek(&key(location)).map_or(0, |entry| entry.bytes)
    }

    /// The most ciphertext bytes that are kept.
    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Ordering::Relaxed)
    }

    /// Changes that, and removes at once what is too much.
    pub(super) fn set_bytes_max(&self, bytes_max: u64) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
        let _changing = self.changing.lock();
        self.evict_to(bytes_max, Spare::Nothing);
    }

    /// Ciphertext bytes on disk, and objects.
    pub(super) fn usage(&self) -> (u64, u64) {
        let index = self.index.lock();
        (index.bytes, index.entries.len() as u64)
    }

    pub(super) fn file(&self, key: &Key) -> PathBuf {
        let hex = hex(key);
        self.dir.join(&hex[..2]).join(&hex[2..])
    }

    /// Whether a [`Disk::read`] could find anything of the object; no I/O.
    pub(super) fn may_have(&self, key: &Key, granules: &Range<u64>) -> bool {
        let index = self.index.lock();
        let entry = index.entries.peek(key);
        entry.is_some_and(|entry| granules.clone().any(|k| entry.present.may_have(k)))
    }

    /// Whether there is a file for the object, and its metadata if that was read before; no I/O.
    pub(super) fn peek(&self, key: &Key) -> Option<Option<Arc<ObjectMeta>>> {
        self.index.lock().entries.peek(key).map(|entry| entry.meta.clone())
    }

    /// The metadata kept of an object.
    pub(super) fn meta(&self, key: &Key, location: &Path) -> Option<Arc<ObjectMeta>> {
        match self.peek(key)? {
            Some(meta) => Some(meta),
            None => self.load(key, location, &self.open_file(key, location)?),
        }
    }

    fn open_file(&self, key: &Key, location: &Path) -> Option<File> {
        match File::open(self.file(key)) {
            Ok(file) => Some(file),
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    log::warn!("cannot open the cache file of {location}: {e}");
                }
                self.remove(key);
                None
            }
        }
    }

    /// Reads a file's page into the index; a bad one is removed.
    fn load(&self, key: &Key, location: &Path, file: &File) -> Option<Arc<ObjectMeta>> {
        let mut page = vec![0u8; PAGE as usize];
        let meta = file.read_exact_at(&mut page, 0).ok().and_then(|()| page::to_meta(&page));
        let Some(meta) = meta.filter(|meta| meta.location == *location) else {
            RequestStats::add(&self.stats.cache_corrupt, 1);
            log::warn!("the cache file of {location} is damaged; dropped");
            self.remove(key);
            return None;
        };
        let meta = Arc::new(meta);
        if let Some(entry) = self.index.lock().entries.peek_mut(key) {
            entry.present.settle(granule::touching(&(0..meta.size)).end);
            entry.meta = Some(meta.clone());
        }
        Some(meta)
    }

    /// The granules among `granules` that are there and whole, in order, with the object's
    /// metadata. One `pread` per run of neighbours.
    pub(super) fn read(&self, key: &Key, location: &Path, granules: Range<u64>) -> Option<Found> {
        let file = self.open_file(key, location)?;
        let meta = match self.peek(key)? {
            Some(meta) => meta,
            None => self.load(key, location, &file)?,
        };
        let all = granule::touching(&(0..meta.size));
        let wanted: Vec<u64> = {
            let mut index = self.index.lock();
            let entry = index.entries.get(key)?;
            granules.filter(|k| all.contains(k) && entry.present.may_have(*k)).collect()
        };
        let mut found = Vec::with_capacity(wanted.len());
        for run in granule::runs(wanted, u64::MAX) {
            let before = found.len();
            match read_run(&file, &run, meta.size, &mut found) {
                Ok(torn) => RequestStats::add(&self.stats.cache_corrupt, torn),
                Err(e) => log::warn!("cannot read the cache file of {location}: {e}"),
            }
            self.note_missing(key, &run, &found[before..]);
        }
        Some((meta, found))
    }

    fn note_missing(&self, key: &Key, run: &Range<u64>, found: &[(u64, Bytes)]) {
        if found.len() as u64 == run.end - run.start {
            return;
        }
        let mut index = self.index.lock();
        if let Some(entry) = index.entries.peek_mut(key) {
            let have: std::collections::HashSet<u64> = found.iter().map(|(k, _)| *k).collect();
            run.clone().filter(|k| !have.contains(k)).for_each(|k| entry.present.set(k, false));
        }
    }

    /// Adds the granules `first..` that `body` holds (it starts at granule `first`, and ends at
    /// a granule's end or the object's).
    ///
    /// # Errors
    /// The disk's; what was there of the object is then removed.
    pub(super) fn write(
        &self,
        key: &Key,
        meta: &ObjectMeta,
        first: u64,
        body: &Rope,
    ) -> io::Result<()> {
        let mut writer = self.changing.lock();
        let outcome = self.write_file(&mut writer, key, meta, first, body);
        if let Err(e) = &outcome {
            // What is kept stays: a granule that was torn fails its checksum.
            let stays = {
                let index = self.index.lock();
                index.kept.contains_key(key) && index.entries.contains(key)
            };
            if !stays {
                self.remove_file(key);
            }
            if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                let used = self.usage().0;
                self.evict_to(used.saturating_sub(FREED_WHEN_FULL), Spare::Kept);
            }
        }
        outcome
    }

    fn write_file(
        &self,
        writer: &mut DirectWriter,
        key: &Key,
        meta: &ObjectMeta,
        first: u64,
        body: &Rope,
    ) -> io::Result<()> {
        let known = {
            let index = self.index.lock();
            index.entries.peek(key).map(|entry| entry.meta.clone())
        };
        let path = self.file(key);
        let same = |m: &ObjectMeta| m.size == meta.size && m.e_tag == meta.e_tag;
        let fresh = match known {
            Some(Some(kept)) if same(&kept) => false,
            None => true,
            // Of another version, or not looked at since the start: begin again.
            Some(_) => {
                self.remove_file(key);
                true
            }
        };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(fresh).mode(0o600);
        let mut file = match options.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().expect("the file is in a subdirectory");
                DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                options.open(&path)?
            }
            opened => opened?,
        };
        if fresh {
            let Some(page) = page::of_meta(meta) else { return Ok(()) };
            file.write_all(&page)?;
        }

        let granules = granule::within(
            &(granule::start(first)..granule::start(first) + body.len()),
            meta.size,
        );
        let at = granule::start(first);
        let pieces: Vec<Rope> = granules
            .clone()
            .map(|k| granule::bytes(&(k..k + 1), meta.size))
            .map(|bytes| body.slice(bytes.start - at..bytes.end - at))
            .collect();
        let len = pieces.iter().map(|data| MARK + data.len()).sum();
        // A mark is made when it is its turn: what its sum was made of is then copied from nearby.
        let slices = granules.clone().zip(&pieces).flat_map(|(k, data)| {
            let parts = data.parts().iter().map(|part| &part[..]);
            let mark = Piece::Mark(page::mark(k, parts.clone()));
            std::iter::once(mark).chain(parts.map(Piece::Data))
        });
        writer.write(&path, &file, granule::file_start(granules.start), len, slices)?;

        let mut index = self.index.lock();
        if fresh {
            let entry = Entry {
                bytes: PAGE,
                meta: Some(Arc::new(meta.clone())),
                present: Presence::Bits(vec![]),
            };
            index.bytes += PAGE;
            index.entries.put(*key, entry);
        }
        let mut added = 0;
        if let Some(entry) = index.entries.get_mut(key) {
            for (k, data) in granules.zip(&pieces) {
                if !entry.present.may_have(k) {
                    added += MARK + data.len();
                }
                entry.present.set(k, true);
            }
            entry.bytes += added;
        }
        index.bytes += added;
        drop(index);
        self.evict_to(self.bytes_max(), Spare::Nothing);
        Ok(())
    }

    /// Drops an object.
    pub(super) fn remove(&self, key: &Key) {
        let _changing = self.changing.lock();
        self.remove_file(key);
    }

    pub(super) fn remove_file(&self, key: &Key) {
        let mut index = self.index.lock();
        if let Some(entry) = index.entries.pop(key) {
            index.bytes = index.bytes.saturating_sub(entry.bytes);
        }
        drop(index);
        self.unlink(key);
    }

    fn unlink(&self, key: &Key) {
        match fs::remove_file(self.file(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {e}", self.file(key).display());
            }
            _ => {}
        }
    }

    /// Removes the least recently used until `bytes_max` and [`OBJECTS_MAX`] hold, first of what is not
    /// kept. The caller holds `changing`, but at the start.
    fn evict_to(&self, bytes_max: u64, spare: Spare) {
        if self.evict(bytes_max, true) || matches!(spare, Spare::Kept) {
            return;
        }
        self.trim(bytes_max);
        self.evict(bytes_max, false);
    }

    /// True when the limits hold; false when all that is left is kept, which is then not removed.
    fn evict(&self, bytes_max: u64, spare_kept: bool) -> bool {
        let mut passed = 0;
        loop {
            let victim = {
                let mut index = self.index.lock();
                if index.bytes <= bytes_max && index.entries.len() <= OBJECTS_MAX {
                    return true;
                }
                let Some((key, entry)) = index.entries.pop_lru() else { return true };
                if spare_kept && index.kept.contains_key(&key) {
                    // Among the newest: each is passed over once in a turn of all others.
                    index.entries.put(key, entry);
                    passed += 1;
                    if passed > index.entries.len() {
                        return false;
                    }
                    continue;
                }
                index.bytes = index.bytes.saturating_sub(entry.bytes);
                key
            };
            self.unlink(&victim);
        }
    }
}

/// What is left alone though there is too much.
#[derive(Clone, Copy)]
enum Spare {
    /// What is kept: the disk is full for another reason.
    Kept,
    /// Nothing: the limit of the cache goes before all.
    Nothing,
}

/// The process id in the lock file of a cache directory.
pub(super) fn user_of(dir: &std::path::Path) -> Option<u32> {
    fs::read_to_string(dir.join(LOCK_NAME)).ok()?.trim().parse().ok()
}

/// The files of a cache directory with their sizes on disk, least recently written first.
fn scan(dir: &std::path::Path) -> io::Result<Vec<(Key, u64)>> {
    let mut found = Vec::new();
    for sub in fs::read_dir(dir)? {
        let sub = sub?;
        if !sub.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(sub.path())? {
            let file = file?;
            let metadata = file.metadata()?;
            let hex = [sub.file_name(), file.file_name()].map(|n| n.to_string_lossy().into_owned());
            match hex_to_key(&hex.concat()) {
                Some(key) => {
                    let time = metadata.modified().unwrap_or(UNIX_EPOCH);
                    found.push((time, key, metadata.blocks() * 512));
                }
                None => log::warn!("{} is not a cache file; left alone", file.path().display()),
            }
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, key, bytes)| (key, bytes)).collect())
}

fn hex_to_key(hex: &str) -> Option<Key> {
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    let mut key = [0u8; 16];
    for (byte, i) in key.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(&hex[i..i + 2], 16).ok()?;
    }
    Some(key)
}

/// Reads the granules `run` and appends those whose marks fit. Returns how many had a mark that
/// did not.
fn read_run(
    file: &File,
    run: &Range<u64>,
    size: u64,
    found: &mut Vec<(u64, Bytes)>,
) -> io::Result<u64> {
    let mut torn = 0;
    let bytes = granule::bytes(run, size);
    let base = granule::file_start(run.start);
    let mut buffer = Buffer::of((bytes.end - bytes.start + (run.end - run.start) * MARK) as usize);
    let mut whole = Vec::new();
    for some in granule::runs(run.clone(), READ_GRANULES) {
        let end = granule::bytes(&some, size).end - bytes.start + (some.end - run.start) * MARK;
        let start = granule::file_start(some.start) - base;
        let read = read_up_to(file, &mut buffer[start as usize..end as usize], base + start)?;
        let mut rest = &buffer[start as usize..][..read];
        for k in some {
            let data = granule::bytes(&(k..k + 1), size);
            let len = (data.end - data.start) as usize;
            let Some((mark, behind)) = rest.split_at_checked(MARK as usize) else { break };
            let Some((data, behind)) = behind.split_at_checked(len) else { break };
            rest = behind;
            match page::is_mark(mark) && mark == page::mark(k, std::iter::once(data)) {
                true => whole.push(k),
                false => torn += u64::from(page::is_mark(mark)),
            }
        }
    }
    let buffer = buffer.freeze();
    found.extend(whole.into_iter().map(|k| {
        let data = granule::bytes(&(k..k + 1), size);
        let at = (granule::file_start(k) + MARK - base) as usize;
        (k, buffer.slice(at..at + (data.end - data.start) as usize))
    }));
    Ok(torn)
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
