//! Which names whole directories have, so that a name which is not there costs no read, however large
//! the volume, and so that the names of a directory in use come together and not one by one.
//!
//! Of each name the hash that its key begins with is kept: a name whose hash is not there is not there.
//! As true as the cached rows, and dropped with them.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use lru::LruCache;

use super::view::{Lookup, View, ViewError};
use crate::base::Ino;
use crate::meta::{DecodeError, Dirent, NameHash, keys};
use crate::store::kv::KvError;

/// Names of a directory that are read one by one before all are.
const ASKED_MAX: u32 = 4;
/// Directories with more names are not read whole.
const READ_MAX: u64 = 8192;
/// Nor are the names of one kept that has grown larger than this.
const NAMES_MAX: usize = 256 << 10;
/// Hashes in memory, of all directories: about 8 bytes each.
const ALL_NAMES_MAX: usize = 1 << 20;
/// Directories of which something is known.
const DIRECTORIES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

enum Known {
    /// So many of its names were asked for one by one.
    Asked(u32),
    /// Its names are being read, by this reading; those that came since it began.
    Coming(u64, HashSet<u32>),
    /// Every name that it has, and perhaps some that it had.
    Whole(HashSet<u32>),
    /// It has too many.
    Large,
}

impl Known {
    fn names(&self) -> usize {
        match self {
            Known::Coming(_, names) | Known::Whole(names) => names.len(),
            Known::Asked(_) | Known::Large => 0,
        }
    }
}

/// What is known of directories.
pub(super) struct Directories {
    known: LruCache<Ino, Known>,
    names: usize,
    readings: u64,
}

impl Default for Directories {
    fn default() -> Self {
        Directories { known: LruCache::new(DIRECTORIES_MAX), names: 0, readings: 0 }
    }
}

impl Directories {
    fn put(&mut self, dir: Ino, known: Known) {
        self.names += known.names();
        if let Some((_, old)) = self.known.push(dir, known) {
            self.names -= old.names();
        }
        self.make_room();
    }

    /// Forgets the directories that were not used for longest.
    fn make_room(&mut self) {
        while self.names > ALL_NAMES_MAX {
            let Some((_, old)) = self.known.pop_lru() else { break };
            self.names -= old.names();
        }
    }

    /// Whether memory can tell that the row of `key` is no row of the store: a name that its directory
    /// does not have.
    pub(super) fn lacks(&mut self, key: &[u8]) -> bool {
        let Some((dir, NameHash(hash), _)) = keys::dirent_of(key) else { return false };
        matches!(self.known.get(&dir), Some(Known::Whole(names)) if !names.contains(&hash))
    }

    /// `dir` was just made: it has no names.
    pub(super) fn made(&mut self, dir: Ino) {
        self.put(dir, Known::Whole(HashSet::new()));
    }

    /// The row of `key` is set, from now on.
    pub(super) fn set(&mut self, key: &[u8]) {
        let Some((dir, NameHash(hash), _)) = keys::dirent_of(key) else { return };
        let Some(Known::Coming(_, names) | Known::Whole(names)) = self.known.get_mut(&dir) else {
            return;
        };
        self.names += usize::from(names.insert(hash));
        match names.len() > NAMES_MAX {
            true => self.put(dir, Known::Large),
            false => self.make_room(), // of others: this one is in use
        }
    }

    /// A name of `dir`, which has `size`, is to be read. If all should be, the number of that
    /// reading: [`Directories::came`] or [`Directories::failed`] must follow.
    pub(super) fn ask(&mut self, dir: Ino, size: u64) -> Option<u64> {
        match self.known.get_mut(&dir) {
            None => self.put(dir, Known::Asked(1)),
            Some(Known::Asked(times)) if *times < ASKED_MAX => *times += 1,
            Some(Known::Asked(_)) if size > READ_MAX => self.put(dir, Known::Large),
            Some(Known::Asked(_)) => {
                self.readings += 1;
                self.put(dir, Known::Coming(self.readings, HashSet::new()));
                return Some(self.readings);
            }
            Some(Known::Coming(..) | Known::Whole(_) | Known::Large) => {}
        }
        None
    }

    /// A reading has brought every name of `dir` that it had when it began, those included that were
    /// pending then.
    pub(super) fn came(&mut self, dir: Ino, reading: u64, names: impl Iterator<Item = NameHash>) {
        match self.known.pop(&dir) {
            Some(Known::Coming(of, mut all)) if of == reading => {
                self.names -= all.len();
                all.extend(names.map(|hash| hash.0));
                self.put(dir, Known::Whole(all));
            }
            // Dropped meanwhile, or begun again.
            Some(other) => drop(self.known.put(dir, other)),
            None => {}
        }
    }

    /// A reading has failed, or would have brought too much.
    pub(super) fn failed(&mut self, dir: Ino, reading: u64, too_large: bool) {
        if matches!(self.known.peek(&dir), Some(Known::Coming(of, _)) if *of == reading) {
            self.put(dir, if too_large { Known::Large } else { Known::Asked(0) });
        }
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.names = 0;
    }
}

impl View {
    /// Directory `dir` was just made, and nobody knows it yet: it has no names.
    pub fn made_directory(&self, dir: Ino) {
        self.directories.lock().made(dir);
    }

    /// [`View::load`] of a row that an operation needs. Where names of its directory have been asked
    /// for one by one before, it brings all of them, and if the name is there, returns the directory and
    /// the inodes that its names lead to: they are likely to be asked for next.
    pub async fn load_with_others(&self, key: &[u8]) -> Result<Option<(Ino, Vec<Ino>)>, ViewError> {
        if let Some(reading) = self.ask_for_all(key) {
            let dir = reading.dir;
            match self.load_directory(reading).await {
                Ok(inos) if matches!(self.get_now(key), Lookup::Hit(Some(_))) => {
                    return Ok(Some((dir, inos)));
                }
                Ok(_) => {}
                // The caller has waited long enough.
                Err(e @ ViewError::Store(KvError::Unavailable(_))) => return Err(e),
                // The row that is needed may be sound.
                Err(e) => log::debug!("reading the names of directory {dir}: {e}"),
            }
        }
        if matches!(self.get_now(key), Lookup::Miss) {
            self.load(key).await?;
        }
        Ok(None)
    }

    /// Begins to read all names of the directory of this name, if that should be done.
    fn ask_for_all(&self, key: &[u8]) -> Option<Reading<'_>> {
        let (dir, ..) = keys::dirent_of(key)?;
        let Ok(Lookup::Hit(Some(inode))) = self.inode_now(dir) else { return None };
        let number = self.directories.lock().ask(dir, inode.size)?;
        Some(Reading { view: self, dir, number, too_large: false })
    }

    /// Reads all names; returns the inodes that they lead to, none if there are too many.
    async fn load_directory(&self, mut reading: Reading<'_>) -> Result<Vec<Ino>, ViewError> {
        let (mut start, end) = keys::dirents(reading.dir);
        let (mut names, mut inos) = (Vec::new(), Vec::new());
        loop {
            // Names that came before the reading began are pending still, or in the store already.
            let page = self.page(&start, &end, READ_MAX as usize / 4, true).await?;
            for (key, row) in &page.rows {
                let (_, hash, _) = keys::dirent_of(key).ok_or(DecodeError("entry key"))?;
                names.push(hash);
                inos.push(Dirent::decode(row)?.ino);
            }
            match page.next {
                Some(_) if names.len() > 2 * READ_MAX as usize => {
                    reading.too_large = true;
                    return Ok(Vec::new());
                }
                Some(next) => start = next,
                None => break,
            }
        }
        self.directories.lock().came(reading.dir, reading.number, names.into_iter());
        Ok(inos)
    }
}

/// A reading under way; unless all names came, they may be asked for again once it is dropped.
struct Reading<'a> {
    view: &'a View,
    dir: Ino,
    number: u64,
    too_large: bool,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.view.directories.lock().failed(self.dir, self.number, self.too_large);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Key;

    fn key(dir: u64, hash: u32) -> Key {
        keys::dirent(Ino(dir), NameHash(hash), b"name")
    }

    fn reading(dirs: &mut Directories, dir: u64) -> u64 {
        (0..10).find_map(|_| dirs.ask(Ino(dir), 100)).expect("it is worth it by now")
    }

    #[test]
    fn a_directory_in_use_is_known_however_many_others_were_before() {
        // Guards against a million names after which each new one costs a read of the store: those of
        // directories that nobody uses any more make room.
        let mut dirs = Directories::default();
        let each = 1000;
        let many = (ALL_NAMES_MAX / each) as u64 + 50;
        for dir in 0..many {
            dirs.made(Ino(dir));
            (0..each as u32).for_each(|hash| dirs.set(&key(dir, hash)));
            assert!(dirs.lacks(&key(dir, 5000)), "a new name of directory {dir}");
            assert!(dirs.names <= ALL_NAMES_MAX);
        }
        assert!(!dirs.lacks(&key(0, 5000)), "the first is forgotten");
    }

    #[test]
    fn a_name_is_missing_only_if_every_way_to_it_was_seen() {
        // Guards against a file that is there and is not found: made before, during and after the
        // names of its directory were read.
        let mut dirs = Directories::default();
        let first = reading(&mut dirs, 7);
        dirs.set(&key(7, 20));
        assert!(!dirs.lacks(&key(7, 99)), "nothing is known yet");
        dirs.came(Ino(7), first, [NameHash(10)].into_iter());
        dirs.set(&key(7, 30));
        assert!([10, 20, 30].iter().all(|&hash| !dirs.lacks(&key(7, hash))));
        assert!(dirs.lacks(&key(7, 11)) && !dirs.lacks(&key(8, 11)));
        assert!(!dirs.lacks(&keys::inode(Ino(7))));
        dirs.clear();
        assert!(!dirs.lacks(&key(7, 11)), "as the rows that are cached");
        // What was begun before knows nothing of what came since.
        let old = reading(&mut dirs, 7);
        dirs.clear();
        dirs.came(Ino(7), old, [].into_iter());
        assert!(!dirs.lacks(&key(7, 11)));
        let new = reading(&mut dirs, 7);
        dirs.came(Ino(7), old, [].into_iter());
        assert!(!dirs.lacks(&key(7, 11)));
        dirs.failed(Ino(7), old, true);
        dirs.came(Ino(7), new, [].into_iter());
        assert!(dirs.lacks(&key(7, 11)));
    }

    #[test]
    fn names_in_memory_are_bounded_and_counted() {
        // Guards against memory that grows with the files that were ever made.
        let mut dirs = Directories::default();
        for dir in 0..40 {
            dirs.made(Ino(dir));
            (0..100_000).for_each(|hash| dirs.set(&key(dir, hash)));
            assert!(dirs.names <= ALL_NAMES_MAX);
        }
        let held: usize = dirs.known.iter().map(|(_, known)| known.names()).sum();
        assert!(held == dirs.names && dirs.names > 0, "{held} of {}", dirs.names);
        dirs.made(Ino(99));
        (0..NAMES_MAX as u32 + 1).for_each(|hash| dirs.set(&key(99, hash)));
        assert!(!dirs.lacks(&key(99, u32::MAX)), "it became too large");
        let large = (0..10).find_map(|_| dirs.ask(Ino(100), READ_MAX + 1));
        assert!(large.is_none() && dirs.ask(Ino(100), 1).is_none());
    }
}
