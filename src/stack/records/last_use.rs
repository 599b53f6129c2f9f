//! When this machine last used which slot of a volume, and which volume was at which store.
//!
//! The first is for people who want to know which of their ways in still work; nobody relies on it.
//! The second is for volumes that one secret opens, and for slots of KMS and age, since what those are
//! sealed to is public: whoever can write to the bucket can put another volume there that opens all
//! the same. A machine that was there before notices. In clear, since it says no more than the log does, and since `sealfs key list`
//! needs no key. A failure to write it down is no failure.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::base::{Clock, SystemClock, VolumeId, hex};
use crate::seal::Keyring;
use crate::stack::{StackError, StoreOptions};

/// Name of the directory, in the state directory, of what is known of stores.
const STORES: &str = "stores";
/// Name of the file beside the rest of what this machine remembers of the volume.
const FILE_NAME: &str = "slots-used.json";
/// Bytes of it at most; a longer one is not ours.
const BYTES_MAX: u64 = 64 << 10;

/// Unix seconds of the last use, by slot number.
pub fn last_used(state_dir: &Path, volume: VolumeId) -> BTreeMap<u32, u64> {
    let path = path(state_dir, volume);
    match fs::metadata(&path) {
        Ok(found) if found.len() <= BYTES_MAX => {}
        _ => return BTreeMap::new(),
    }
    let bytes = fs::read(&path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Writes down that `slot` was used now; forgets those that `exists` says are gone.
pub fn remember_use(
    state_dir: &Path,
    volume: VolumeId,
    slot: u32,
    now_secs: u64,
    exists: impl Fn(u32) -> bool,
) {
    let mut used = last_used(state_dir, volume);
    used.retain(|slot, _| exists(*slot));
    used.insert(slot, now_secs);
    let path = path(state_dir, volume);
    let written = serde_json::to_vec(&used).map_err(std::io::Error::from);
    if let Err(e) = written.and_then(|bytes| write_private(&path, &bytes)) {
        log::debug!("{} was not written: {e}", path.display());
    }
}

/// Which volume is meant at a store, and where it stands which was there when this machine last
/// opened it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    endpoint: String,
    store: String,
    wanted: Option<VolumeId>,
    file: Option<PathBuf>,
}

/// Where the metadata of a volume stood when this machine last closed it: a guess at what the next
/// start will read, which is fetched before it is known. Nothing is believed because of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// The newest manifest.
    pub(crate) manifest: u64,
    /// The object of the log behind which replay begins, and the last one.
    pub(crate) log: (u64, u64),
}

impl Place {
    /// Where the metadata stood, if this machine knows.
    pub(crate) fn start(&self) -> Option<Start> {
        let text = fs::read_to_string(self.file.as_deref()?).ok()?;
        let numbers =
            text.lines().nth(1)?.split(' ').map(str::parse).collect::<Result<Vec<_>, _>>();
        match numbers.ok()?[..] {
            [manifest, after, last] => Some(Start { manifest, log: (after, last) }),
            _ => None,
        }
    }

    /// Remembers where the metadata of `volume` stand.
    pub(crate) fn note_start(&self, volume: VolumeId, start: Start) {
        let Some(file) = &self.file else { return };
        let Start { manifest, log: (after, last) } = start;
        let text = format!("{volume}\n{manifest} {after} {last}\n");
        if let Err(e) = write_private(file, text.as_bytes()) {
            log::debug!("{} was not written: {e}", file.display());
        }
    }

    /// That of a STORE.
    pub(crate) fn of(store: &StoreOptions) -> Place {
        let endpoint = store.endpoint_url.as_deref().unwrap_or_default().trim_end_matches('/');
        let (endpoint, wanted) = (endpoint.to_owned(), store.volume);
        let mut place = Place { endpoint, store: store.location.to_string(), wanted, file: None };
        place.file = store.state_dir.as_deref().map(|dir| dir.join(STORES).join(place.name()));
        place
    }

    /// Names the store.
    pub(crate) fn name(&self) -> String {
        hex(&Sha256::digest(format!("{} {}", self.endpoint, self.store))[..16])
    }

    /// Refuses the keyring of another volume than is meant: two that one secret opens, or whose
    /// slots are sealed to what is public, can be exchanged by whoever can write to the bucket.
    ///
    /// # Errors
    /// [`StackError::OtherVolume`].
    pub(crate) fn check(&self, keyring: &Keyring) -> Result<(), StackError> {
        let found = keyring.volume_id();
        let other = |told, wanted: String| {
            let (store, found) = (self.store.clone(), found.to_string());
            Err(StackError::OtherVolume { store, found, wanted, told })
        };
        match (self.wanted, &self.file) {
            (Some(wanted), _) if wanted != found => other(true, wanted.to_string()),
            (None, Some(file)) => match seen_in(file) {
                Some(seen) if seen != found.to_string() => other(false, seen),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// The volume that was at a store, by the file that says so.
fn seen_in(file: &Path) -> Option<String> {
    let is_small = fs::metadata(file).is_ok_and(|found| found.len() <= BYTES_MAX);
    let seen = is_small.then(|| fs::read_to_string(file).ok()).flatten()?;
    let first = seen.lines().next()?.trim().to_owned();
    Some(first).filter(|seen| !seen.is_empty())
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().expect("a file in a directory");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path).map(drop).map_err(|e| e.error)
}

/// Remembers which volume is at a store.
pub fn note_place(state_dir: &Path, store: &StoreOptions, volume: VolumeId) {
    let place = Place::of(&store.seen_in(state_dir));
    let (Some(file), id) = (place.file, volume.to_string()) else { return };
    if seen_in(&file).as_deref() != Some(&*id)
        && let Err(e) = write_private(&file, id.as_bytes())
    {
        log::debug!("{} was not written: {e}", file.display());
    }
}

/// [`remember_use`], of a keyring that has just been opened, and that it is at this store.
pub(crate) fn note_use(state_dir: &Path, store: &StoreOptions, keyring: &Keyring, slot: u32) {
    note_place(state_dir, store, keyring.volume_id());
    let now = u64::try_from(SystemClock.now().secs).unwrap_or(0);
    let exists = |id| keyring.slots().iter().any(|slot| slot.id == id);
    remember_use(state_dir, keyring.volume_id(), slot, now, exists);
}

fn path(state_dir: &Path, volume: VolumeId) -> PathBuf {
    state_dir.join(volume.to_string()).join(FILE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_metadata_stood_is_known_until_another_volume_is_there() {
        // Guards against a guess that makes a volume look like another one, and against rubbish.
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = StoreOptions::new(crate::store::Location::Memory).seen_in(dir.path());
        let (place, volume) = (Place::of(&store), VolumeId([1; 16]));
        let start = Start { manifest: 17, log: (8, 9) };
        assert_eq!(place.start(), None);
        place.note_start(volume, start);
        note_place(dir.path(), &store, volume);
        assert_eq!(place.start(), Some(start));
        assert_eq!(seen_in(place.file.as_deref().expect("one")), Some(volume.to_string()));
        note_place(dir.path(), &store, VolumeId([2; 16]));
        assert_eq!(place.start(), None);
        fs::write(place.file.as_deref().expect("one"), "x\n1 2 -3\n").expect("writes");
        assert_eq!(place.start(), None);
    }

    #[test]
    fn the_last_use_of_each_slot_is_kept_until_the_slot_is_gone() {
        // Guards against a list that claims uses of another slot or volume, and against a file of
        // rubbish that stops a mount.
        let dir = tempfile::tempdir().expect("temporary directory");
        let (volume, other) = (VolumeId([1; 16]), VolumeId([2; 16]));
        remember_use(dir.path(), volume, 1, 100, |_| true);
        remember_use(dir.path(), volume, 3, 200, |_| true);
        assert_eq!(last_used(dir.path(), volume), BTreeMap::from([(1, 100), (3, 200)]));
        remember_use(dir.path(), volume, 3, 300, |slot| slot != 1);
        assert_eq!(last_used(dir.path(), volume), BTreeMap::from([(3, 300)]));
        assert!(last_used(dir.path(), other).is_empty());
        fs::write(path(dir.path(), volume), "rubbish").expect("writes");
        assert!(last_used(dir.path(), volume).is_empty());
        remember_use(Path::new("/proc/none"), volume, 1, 1, |_| true);
    }
}
