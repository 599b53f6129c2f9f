//! Uploads in parts that outlive their run: which one is under way for which file is kept in a directory of
//! this machine, so that the next run sends the missing parts only, or aborts what it cannot go on with.
//!
//! No names and no contents lie there: a record is called by a hash of its key, and holds the upload's id and a
//! hash of the version of the file and of everything that was put beside it. A record that is lost costs
//! bytes and an upload that nobody knows, which the end of a run names.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bucket::{Bucket, patiently};
use super::report::{Run, Trouble};
use crate::base::hex;
use crate::store::class;
use crate::store::s3::{Labels, Part, PartNote, Sending};

/// Where uploads are remembered, and what decides whether one may be gone on with.
#[derive(Clone, Debug)]
pub struct Remember {
    /// The directory that has one for each target.
    pub dir: PathBuf,
    /// The server.
    pub server: String,
    /// How the objects are encrypted there.
    pub mode: String,
}

/// One upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    id: String,
    /// What [`Uploads::of`] says of the file; empty for one that no other run can go on with.
    of: String,
}

/// The uploads of one target. Small files of this machine, read and written where they are needed.
#[derive(Debug, Default)]
pub struct Uploads {
    mode: String,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    /// Held as long as this run: another one has its own uploads.
    _lock: File,
}

/// An upload, and the parts that it has.
pub struct Underway {
    /// The upload.
    pub sending: Sending,
    /// By number, from 0.
    pub have: HashMap<u64, PartNote>,
}

/// How a file is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of a part; the last has the rest.
    pub part: u64,
}

impl Cut {
    /// How many parts there are.
    pub fn count(self) -> u64 {
        self.size.div_ceil(self.part)
    }

    /// Bytes of part `n`, from 0.
    pub fn len(self, n: u64) -> u64 {
        self.part.min(self.size - n * self.part)
    }

    /// Those of `parts` that are what this cut makes.
    fn fitting(self, parts: Vec<Part>) -> HashMap<u64, PartNote> {
        let fits = |part: &Part| {
            let n = u64::try_from(part.number).ok()?.checked_sub(1)?;
            (n < self.count() && part.size == self.len(n)).then_some(n)
        };
        let numbered = parts.into_iter().filter_map(|part| Some((fits(&part)?, part)));
        numbered.map(|(n, part)| (n, part.note)).collect()
    }
}

impl Uploads {
    /// Those of the target; none are remembered where that is not asked for, not possible, or where another
    /// run is at work on the same target.
    pub fn open(remember: Option<&Remember>, bucket: &Bucket) -> Uploads {
        let Some(remember) = remember else { return Uploads::default() };
        let target = format!("{}\n{}\n{}", remember.server, bucket.store.bucket(), bucket.prefix);
        let dir = remember.dir.join(hashed(&target));
        let opened = || -> io::Result<File> {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let lock = File::create(dir.join(LOCK))?;
            lock.try_lock()?;
            Ok(lock)
        };
        let place = match opened() {
            Ok(lock) => Some(Place { dir: dir.clone(), _lock: lock }),
            Err(e) => {
                log::info!("uploads are not remembered in {}: {e}", dir.display());
                None
            }
        };
        Uploads { mode: remember.mode.clone(), place }
    }

    /// What an upload is of: the version of a file, how it is cut, and what is put beside its bytes.
    pub fn of(&self, cut: Cut, labels: &Labels) -> String {
        hashed(&format!("{cut:?} {} {labels:?}", self.mode))
    }

    /// Goes on with the upload of this very version of a file, or begins one.
    ///
    /// # Errors
    /// Those of the requests.
    pub async fn go_on_or_begin(
        &self,
        bucket: &Bucket,
        run: &Run,
        key: &str,
        labels: &Labels,
        cut: Cut,
    ) -> Result<Underway, Trouble> {
        let of = self.of(cut, labels);
        if let Some(record) = self.find(key).filter(|record| record.of == of) {
            let sending = Sending::of(key, &record.id);
            match patiently(run, || bucket.store.parts_of(&sending)).await {
                Ok(parts) => return Ok(Underway { sending, have: cut.fitting(parts) }),
                Err(e) if class(&e).is_retryable() => return Err(e.into()),
                Err(e) => log::info!("the upload of a file starts again: {e}"),
            }
        }
        self.begin(bucket, run, key, labels, &of).await
    }

    /// Begins an upload that no other run can go on with.
    ///
    /// # Errors
    /// Those of the requests.
    pub async fn begin_once(
        &self,
        bucket: &Bucket,
        run: &Run,
        key: &str,
        labels: &Labels,
    ) -> Result<Sending, Trouble> {
        Ok(self.begin(bucket, run, key, labels, "").await?.sending)
    }

    /// Aborts what an earlier run has begun, and begins one.
    async fn begin(
        &self,
        bucket: &Bucket,
        run: &Run,
        key: &str,
        labels: &Labels,
        of: &str,
    ) -> Result<Underway, Trouble> {
        if let Some(record) = self.find(key) {
            self.abort(bucket, &Sending::of(key, &record.id)).await;
        }
        let sending = patiently(run, || bucket.store.begin_key(key, labels)).await?;
        self.remember(key, &Record { id: sending.id().to_owned(), of: of.to_owned() });
        Ok(Underway { sending, have: HashMap::new() })
    }

    /// What comes after an upload: it is forgotten when it is over, kept if the next run can go on with it,
    /// aborted otherwise.
    pub async fn ended(&self, bucket: &Bucket, sending: &Sending, outcome: &Result<bool, Trouble>) {
        let can_go_on = || self.find(sending.key()).is_some_and(|record| !record.of.is_empty());
        match outcome {
            Ok(true) => self.forget(sending.key()),
            Err(Trouble::End(_)) if can_go_on() => {}
            _ => self.abort(bucket, sending).await,
        }
    }

    async fn abort(&self, bucket: &Bucket, sending: &Sending) {
        // Kept if it is still there: the next run tries again.
        if bucket.store.abort_key(sending).await {
            self.forget(sending.key());
        }
    }

    /// At the end of a run: aborts what is left of earlier ones (files that are gone, or left out now), and
    /// returns the keys of uploads below the prefix that are not of this machine, or not remembered.
    pub async fn sweep(&self, bucket: &Bucket, run: &Run) -> Vec<String> {
        let found = match patiently(run, || bucket.store.unfinished(&bucket.prefix)).await {
            Ok(found) => found,
            Err(e) => {
                log::info!("unfinished uploads cannot be listed: {e}");
                return Vec::new();
            }
        };
        let ours = self.ids();
        let mut others = Vec::new();
        for upload in found {
            match ours.contains(&upload.id) {
                true => self.abort(bucket, &Sending::of(&upload.key, &upload.id)).await,
                false => others.push(upload.key),
            }
        }
        others.sort();
        others.dedup();
        self.clear();
        others
    }

    /// How many are remembered.
    pub fn count(&self) -> usize {
        self.ids().len()
    }

    fn find(&self, key: &str) -> Option<Record> {
        read(&self.path(key)?)
    }

    fn remember(&self, key: &str, record: &Record) {
        let (Some(path), Ok(text)) = (self.path(key), serde_json::to_vec(record)) else { return };
        let written = || -> io::Result<()> {
            // Whole or not at all: half a record would be an upload that nobody knows.
            let dir = path.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&text)?;
            file.persist(&path)?;
            Ok(())
        };
        if let Err(e) = written() {
            log::info!("an upload is not remembered in {}: {e}", path.display());
        }
    }

    fn forget(&self, key: &str) {
        if let Some(path) = self.path(key) {
            let _ = fs::remove_file(path); // it may never have been written
        }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.place.as_ref()?.dir.join(hashed(key)))
    }

    fn ids(&self) -> HashSet<String> {
        let Some(place) = &self.place else { return HashSet::new() };
        let entries = fs::read_dir(&place.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| read(&entry.path())).map(|record| record.id).collect()
    }

    /// Removes the directory, where no record is left that an abort could not do away with.
    fn clear(&self) {
        let Some(place) = &self.place else { return };
        if self.ids().is_empty() {
            let _ = fs::remove_dir_all(&place.dir); // it is made again
        }
    }
}

/// The file that a run locks.
const LOCK: &str = "lock";

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn hashed(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_of_the_same_cut_are_gone_on_with() {
        // Guards against an object that is made of parts of another length, or of none at all.
        let cut = Cut { size: 25, part: 10 };
        assert_eq!((cut.count(), cut.len(0), cut.len(2)), (3, 10, 5));
        let part = |number, size| Part { number, size, note: PartNote::default() };
        let parts =
            vec![part(0, 10), part(1, 10), part(2, 9), part(3, 5), part(4, 10), part(-1, 5)];
        let have = cut.fitting(parts);
        let mut numbers: Vec<u64> = have.keys().copied().collect();
        numbers.sort();
        assert_eq!(numbers, [0, 2]);
    }

    #[test]
    fn a_record_is_found_again_and_holds_no_name() {
        // Guards against names of files in clear on this machine, and against an upload of another
        // version of a file, or with other labels, that is taken for its own.
        let tmp = tempfile::tempdir().expect("a directory");
        let lock = File::create(tmp.path().join(LOCK)).expect("makes");
        let place = Place { dir: tmp.path().to_owned(), _lock: lock };
        let uploads = Uploads { mode: "AES256".into(), place: Some(place) };
        let (cut, labels) = (Cut { size: 25, part: 10 }, Labels::default());
        let of = uploads.of(cut, &labels);
        let record = Record { id: "id-1".into(), of: of.clone() };
        uploads.remember("a/secret name", &record);
        assert_eq!(uploads.find("a/secret name"), Some(record));
        assert_eq!((uploads.find("another"), uploads.count()), (None, 1));
        for entry in fs::read_dir(tmp.path()).expect("lists").flatten() {
            let text = fs::read_to_string(entry.path()).expect("reads");
            assert!(!text.contains("secret") && !entry.path().to_string_lossy().contains("secret"));
        }
        let mut others = labels.clone();
        others.metadata.insert("mtime".into(), "1.0".into());
        assert_ne!(uploads.of(cut, &others), of);
        assert_ne!(uploads.of(Cut { size: 26, ..cut }, &labels), of);
        uploads.forget("a/secret name");
        assert_eq!(uploads.count(), 0);
    }
}
