//! When this machine last used which slot of a volume, and which volume was at which store.
//!
//! The first is for people who want to know which of their ways in still work; nobody relies on it.
//! The second is for slots of KMS and age: what they are sealed to is public, so whoever can write
//! to the bucket can put another volume there that opens all the same. A machine that was there
//! before notices. In clear, since it says no more than the log does, and since `sealfs key list`
//! needs no key. A failure to write it down is no failure.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{StackError, StackErrorKind, StoreOptions};
use crate::base::{Clock, SystemClock, VolumeId, hex, shell_word};
use crate::seal::{Keyring, SlotKind};

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

/// Refuses a keyring that KMS or an age key has opened, if this machine has seen another volume at
/// its store; unless that is `accepted`.
///
/// # Errors
/// [`StackError::Keeper`] names both, and the file that says so.
pub(super) fn check_place(
    state_dir: &Path,
    store: &StoreOptions,
    keyring: &Keyring,
    slot: u32,
    accepted: bool,
) -> Result<(), StackError> {
    let (file, found) = (place(state_dir, store), keyring.volume_id().to_string());
    let by_keeper = keyring
        .slots()
        .iter()
        .any(|s| s.id == slot && matches!(s.kind, SlotKind::Kms | SlotKind::Age));
    let seen = match fs::metadata(&file) {
        Ok(of) if by_keeper && !accepted && of.len() <= BYTES_MAX => fs::read_to_string(&file),
        _ => return Ok(()),
    };
    match seen.ok().as_deref().map(str::trim) {
        Some(seen) if seen != found && !seen.is_empty() => Err(StackError::Keeper {
            kind: StackErrorKind::Corrupt,
            message: format!(
                "{} held volume {seen} when this machine last opened it, and holds {found} now: \
                 who can write there can make one that AWS KMS or your age key opens",
                store.location
            ),
            hint: format!(
                "put the object `keyring` back from a copy; or, if you made the volume anew: rm {}",
                shell_word(&file.display().to_string())
            ),
        }),
        _ => Ok(()),
    }
}

/// What holds the volume that was last opened at a store.
fn place(state_dir: &Path, store: &StoreOptions) -> PathBuf {
    let endpoint = store.endpoint_url.as_deref().unwrap_or_default().trim_end_matches('/');
    let name = format!("{endpoint} {}", store.location);
    state_dir.join("stores").join(hex(&Sha256::digest(name)[..16]))
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().expect("a file in a directory");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path).map(drop).map_err(|e| e.error)
}

/// [`remember_use`], of a keyring that has just been opened, and that it is at this store.
pub(super) fn note_use(state_dir: &Path, store: &StoreOptions, keyring: &Keyring, slot: u32) {
    let file = place(state_dir, store);
    let id = keyring.volume_id().to_string();
    if fs::read_to_string(&file).ok().as_deref() != Some(&*id)
        && let Err(e) = write_private(&file, id.as_bytes())
    {
        log::debug!("{} was not written: {e}", file.display());
    }
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
