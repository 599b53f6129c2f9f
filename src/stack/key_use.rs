//! When this machine last used which slot of a volume: for people who want to know which of their
//! ways in still work. Nobody relies on it; a failure to write it down is no failure.
//!
//! In clear, since it says no more than the log does, and since `sealfs key list` needs no key.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::base::{Clock, SystemClock, VolumeId};
use crate::seal::Keyring;

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
    let dir = path.parent().expect("a file in a directory");
    let write = || -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(&used)?)?;
        file.persist(&path).map(drop).map_err(|e| e.error)
    };
    if let Err(e) = write() {
        log::debug!("{} was not written: {e}", path.display());
    }
}

/// [`remember_use`], of a keyring that has just been opened.
pub(super) fn note_use(state_dir: &Path, keyring: &Keyring, slot: u32) {
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
