//! What this machine remembers of a volume, so that an older bucket is noticed. One sealed file
//! outside the cache directory, replaced atomically.
//!
//! The epoch it was sealed in, and that epoch's fingerprint, stand before it in clear (FORMAT.md
//! "Local state"): they say whether a keyring continues the one that was there then, also where it
//! has not the key to open the file.

use std::fs;
use std::io::Write;
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::base::ChainValue;
use crate::meta::HistoryRow;
use crate::seal::{FINGERPRINT, VolumeKeys};
use crate::stack::StackError;

const FILE_NAME: &str = "state";
/// How long it counts that a store has been found to keep conditions: servers are exchanged.
const PROBED_SECS_MAX: u64 = 30 * 24 * 3600;
/// The first bytes of a file of local state; the epoch and its fingerprint follow.
const MAGIC: &[u8; 8] = b"SEALFSST";

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// The highest commit number seen.
    pub sequence: u64,
    /// The chain value of that commit, in hex.
    #[serde(default)]
    pub chain: String,
    /// The last commit seen whose chain value stays in the bucket for good, and that value.
    #[serde(default)]
    pub checkpoint: u64,
    #[serde(default)]
    pub checkpoint_chain: String,
    /// The highest manifest number seen.
    pub manifest: u64,
    /// The highest keyring revision seen.
    #[serde(rename = "keyring_generation")]
    pub keyring_revision: u64,
    /// The highest revision of the configuration seen.
    #[serde(default, rename = "config_generation")]
    pub config_revision: u64,
    /// The local journal, in hex.
    pub journal: String,
    /// The last record of it that was committed.
    pub journal_committed: u64,
    /// A record of it that was on stable storage here, and not in the bucket yet.
    #[serde(default)]
    pub journal_synced: u64,
    /// The commit number that records of the local journal apply on top of.
    pub lineage: u64,
    /// The mount that this directory served last, in hex: random, so that a copy of the
    /// directory which is mounted elsewhere can be told from this one.
    #[serde(default)]
    pub instance: String,
    /// The mount that had made the last commit in the bucket when that one began.
    #[serde(default)]
    pub seen_instance: String,
    /// Changes that were lost with the local journal, which somebody accepted, and when (Unix
    /// seconds).
    #[serde(default)]
    pub lost_records: u64,
    #[serde(default)]
    pub lost_secs: u64,
    /// The store that has been found to keep conditions, and when (Unix seconds).
    #[serde(default)]
    pub probed: String,
    #[serde(default)]
    pub probed_secs: u64,
    /// That mount was fenced: another one has written the volume since.
    #[serde(default)]
    pub fenced: bool,
}

fn value(digits: &str) -> Option<ChainValue> {
    let bytes = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let bytes: Option<Vec<u8>> = bytes.collect();
    bytes?.try_into().ok().map(ChainValue)
}

impl Remembered {
    /// The last commit that was seen, and its chain value.
    pub fn last(&self) -> Option<(u64, ChainValue)> {
        Some((self.sequence, value(&self.chain)?))
    }

    /// The last commit that was seen of those whose chain values stay for good.
    pub fn checkpoint(&self) -> Option<(u64, ChainValue)> {
        Some((self.checkpoint, value(&self.checkpoint_chain)?))
    }

    /// A commit that continues what was seen.
    pub fn saw(&mut self, sequence: u64, chain: ChainValue) {
        (self.sequence, self.chain) = (sequence, chain.to_string());
        if sequence.is_multiple_of(HistoryRow::EVERY) {
            self.saw_checkpoint(sequence, chain);
        }
    }

    /// One of those whose chain values stay for good.
    pub fn saw_checkpoint(&mut self, sequence: u64, chain: ChainValue) {
        (self.checkpoint, self.checkpoint_chain) = (sequence, chain.to_string());
    }

    /// Forgets what was seen of the volume's commits: it was compared with the bucket, or given up.
    pub fn forget_seen(&mut self) {
        (self.sequence, self.chain) = (0, String::new());
        (self.checkpoint, self.checkpoint_chain) = (0, String::new());
    }

    /// Takes up what `other` has seen of the volume beyond this; not what is its own journal's.
    pub fn take_seen(&mut self, other: &Remembered) {
        if other.sequence > self.sequence {
            (self.sequence, self.chain) = (other.sequence, other.chain.clone());
        }
        if other.checkpoint > self.checkpoint {
            self.checkpoint = other.checkpoint;
            self.checkpoint_chain = other.checkpoint_chain.clone();
        }
        self.manifest = self.manifest.max(other.manifest);
        self.keyring_revision = self.keyring_revision.max(other.keyring_revision);
        self.config_revision = self.config_revision.max(other.config_revision);
    }

    /// Whether a store has been found to keep conditions, and not too long ago.
    pub fn has_probed(&self, store: &str, now_secs: u64) -> bool {
        let age = now_secs.checked_sub(self.probed_secs); // from the future: not known
        self.probed == store && age.is_some_and(|secs| secs < PROBED_SECS_MAX)
    }

    /// Refuses a keyring that is older than one that was seen.
    ///
    /// # Errors
    /// [`StackError::KeyringRollback`].
    pub fn check_keyring(&self, revision: u64) -> Result<(), StackError> {
        let (found, seen) = (revision, self.keyring_revision);
        match found < seen {
            true => Err(StackError::KeyringRollback { what: "revision", found, seen }),
            false => Ok(()),
        }
    }

    /// Whether the last commit in the bucket, of record `position` by the mount `instance`, can
    /// be one of this directory's own, or one that it went on from. `None`: the bucket does not
    /// say by whom.
    pub fn knows(&self, instance: Option<&str>, position: u64) -> bool {
        // Once fenced, a directory commits nothing more; a copy of the running mount would.
        let beyond = self.fenced && position > self.journal_committed;
        let named = |i: &str| i == self.instance || i == self.seen_instance;
        !beyond && (self.instance.is_empty() || instance.is_none_or(named))
    }
}

/// A sealed file that holds a `T`; by default what is remembered.
pub(crate) struct StateFile<T = Remembered> {
    path: PathBuf,
    name: &'static str,
    keys: VolumeKeys,
    content: PhantomData<fn() -> T>,
    /// Why the last save failed, if it did.
    failed: Mutex<Option<String>>,
}

impl StateFile {
    /// What is remembered, in `dir`.
    pub(crate) fn new(dir: &Path, keys: VolumeKeys) -> StateFile {
        StateFile::named(dir, FILE_NAME, keys)
    }
}

impl StateFile {
    /// Adds to the file what a mount that only reads has seen: whatever a writer of this machine
    /// keeps there stays, and nothing that is known goes back.
    pub(crate) fn add_seen(&self, seen: &Remembered, sync: bool) -> Result<(), StackError> {
        self.change_seen(sync, |now| now.take_seen(seen))
    }

    /// The same where what was seen goes back, which was accepted.
    pub(crate) fn set_seen(&self, seen: &Remembered) -> Result<(), StackError> {
        self.change_seen(true, |now| {
            let own = std::mem::take(now);
            *now = Remembered {
                journal: own.journal,
                journal_committed: own.journal_committed,
                journal_synced: own.journal_synced,
                lineage: own.lineage,
                instance: own.instance,
                seen_instance: own.seen_instance,
                fenced: own.fenced,
                lost_records: own.lost_records,
                lost_secs: own.lost_secs,
                probed: own.probed,
                probed_secs: own.probed_secs,
                ..seen.clone()
            };
        })
    }

    fn change_seen(
        &self,
        sync: bool,
        change: impl FnOnce(&mut Remembered),
    ) -> Result<(), StackError> {
        let _lock = self.lock()?;
        let before = self.load_continued(true)?;
        let mut now = before.clone().unwrap_or_default();
        change(&mut now);
        match before.as_ref() == Some(&now) {
            true => Ok(()),
            false => self.replace(&now, sync),
        }
    }
}

impl<T: Serialize + DeserializeOwned> StateFile<T> {
    /// The file `name` in `dir`.
    pub(crate) fn named(dir: &Path, name: &'static str, keys: VolumeKeys) -> StateFile<T> {
        let (content, failed) = (PhantomData, Mutex::default());
        StateFile { path: dir.join(name), name, keys, content, failed }
    }

    /// Takes the file away; one that is not there counts as taken away.
    pub(crate) fn remove(&self) -> Result<(), StackError> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let path = self.path.clone();
                Err(StackError::Local { what: "removing", path, source: e })
            }
            _ => Ok(()),
        }
    }

    /// What is remembered; `None` on a machine that never saw the volume.
    ///
    /// # Errors
    /// [`StackError::State`] if the file is not what this machine wrote;
    /// [`StackError::KeyringRollback`] and [`StackError::KeyringForeign`] if these keys do not
    /// continue those that it was written with.
    pub(crate) fn load(&self) -> Result<Option<T>, StackError> {
        let sealed = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = self.path.clone();
                return Err(StackError::Local { what: "reading", path, source });
            }
        };
        let bad = || StackError::State(self.path.clone());
        let (epoch, fingerprint, message) = head(&sealed).ok_or_else(bad)?;
        let now = self.keys.epoch();
        if epoch > now {
            let (found, seen) = (now.into(), epoch.into());
            return Err(StackError::KeyringRollback { what: "key epoch", found, seen });
        }
        if !self.keys.holds(epoch, fingerprint) {
            let state = self.path.clone();
            return Err(StackError::KeyringForeign { epoch, state });
        }
        let plain = self.keys.open_state(epoch, self.name, message).map_err(|_| bad())?;
        serde_json::from_slice(&plain).map(Some).map_err(|_| bad())
    }

    /// [`StateFile::load`]; if a rollback is `accepted`, what was remembered under keys that this
    /// keyring does not continue counts as forgotten.
    pub(crate) fn load_continued(&self, accepted: bool) -> Result<Option<T>, StackError> {
        match self.load() {
            Err(e @ (StackError::KeyringRollback { .. } | StackError::KeyringForeign { .. }))
                if accepted =>
            {
                log::warn!("{e}: accepted, what this machine remembers of the volume is dropped");
                Ok(None)
            }
            outcome => outcome,
        }
    }

    /// Why the last save failed, if it did.
    pub(crate) fn failed(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    /// Replaces the file; durably if `sync`.
    pub(crate) fn save(&self, state: &T, sync: bool) -> Result<(), StackError> {
        let _lock = self.lock()?;
        self.replace(state, sync)
    }

    /// The same with what `now` gives once nobody else replaces the file: a save that was late puts
    /// back nothing older.
    pub(crate) fn save_as(&self, now: impl FnOnce() -> T, sync: bool) -> Result<(), StackError> {
        let _lock = self.lock()?;
        self.replace(&now(), sync)
    }

    /// Held by whoever replaces the file: a writer and followers of one machine share it.
    fn lock(&self) -> Result<fs::File, StackError> {
        let path = self.path.with_extension("lock");
        let local = |source| StackError::Local { what: "locking", path: path.clone(), source };
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(local)?;
        file.lock().map_err(local)?;
        Ok(file)
    }

    fn replace(&self, state: &T, sync: bool) -> Result<(), StackError> {
        let write = || -> std::io::Result<()> {
            let plain = serde_json::to_vec(state)?;
            let (epoch, fingerprint, place) = self.keys.state(self.name);
            let mut sealed = MAGIC.to_vec();
            sealed.extend_from_slice(&epoch.to_be_bytes());
            sealed.extend_from_slice(&fingerprint);
            place.seal_into(&[&plain], &mut sealed);
            let dir = self.path.parent().expect("a file in a directory");
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&sealed)?;
            if sync {
                file.as_file().sync_all()?;
            }
            file.persist(&self.path).map_err(|e| e.error)?;
            if sync {
                fs::File::open(dir)?.sync_all()?;
            }
            Ok(())
        };
        let saved = write().map_err(|source| {
            let path = self.path.clone();
            StackError::Local { what: "writing", path, source }
        });
        *self.failed.lock() = saved.as_ref().err().map(StackError::to_string);
        saved
    }
}

/// Epoch, fingerprint and message of a file of local state.
fn head(bytes: &[u8]) -> Option<(u32, &[u8; FINGERPRINT], &[u8])> {
    let (epoch, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    let (fingerprint, message) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*epoch), fingerprint, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_of_another_volume_or_altered_is_refused() {
        // Guards against rollback protection that an attacker with the disk can reset.
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = StateFile::new(dir.path(), VolumeKeys::random_for_tests(1));
        assert_eq!(file.load().expect("absent is fine"), None);
        let state = Remembered { sequence: 7, ..Remembered::default() };
        file.save(&state, true).expect("saved");
        assert_eq!(file.load().expect("own state"), Some(state));
        let other = StateFile::new(dir.path(), VolumeKeys::random_for_tests(2));
        assert!(matches!(other.load(), Err(StackError::KeyringForeign { epoch: 1, .. })));
        let path = dir.path().join(FILE_NAME);
        let mut bytes = fs::read(&path).expect("readable");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&path, bytes).expect("writable");
        assert!(matches!(file.load(), Err(StackError::State(_))));
    }
}
