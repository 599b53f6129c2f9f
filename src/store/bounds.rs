//! How large an object may be, by its name: what is larger is none of ours, and is refused before a
//! byte of it is kept. Used by `retry`, which every answer passes.

use object_store::path::Path;

use super::error::{ErrorClass, StoreError};
use super::names::{CONFIG_NAME, KEYRING_NAME, LEASE_NAME};

/// Objects that a mount reads whole, and bytes that none of them needs.
const KINDS: [(&str, u64); 7] = [
    (KEYRING_NAME, 1 << 20),
    (CONFIG_NAME, 1 << 20),
    (LEASE_NAME, 1 << 20),
    ("meta/gc/", 1 << 20),
    ("meta/manifest/", 64 << 20),
    ("meta/wal/", 64 << 20),
    ("meta/compactions/", 64 << 20),
];
/// Objects that one listing of the metadata may bring.
pub(super) const LISTED_MAX: usize = 1 << 20;

/// Refuses an answer of `bytes` for an object that is never so large.
pub(super) fn refuse_larger(location: &Path, bytes: u64) -> object_store::Result<()> {
    let name = location.as_ref();
    let is = |kind: &str| name == kind || kind.ends_with('/') && name.starts_with(kind);
    match KINDS.iter().find(|(kind, _)| is(kind)) {
        Some((_, most)) if bytes > *most => {
            let message = format!(
                "object {location} has {bytes} bytes, and none of its kind has over {most}"
            );
            Err(StoreError::new(ErrorClass::Corrupt, message).into_store("bounds"))
        }
        _ => Ok(()),
    }
}

/// Refuses a listing that does not end.
pub(super) fn refuse_endless(listed: usize) -> object_store::Result<()> {
    match listed > LISTED_MAX {
        true => {
            let message = format!("the store lists more than {LISTED_MAX} objects of the metadata");
            Err(StoreError::new(ErrorClass::Corrupt, message).into_store("bounds"))
        }
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_whole_has_a_bound() {
        // Guards against a configuration of 12 GiB that is read into memory, and against a segment
        // that is refused for its size.
        let refused = |name: &str, bytes| refuse_larger(&Path::from(name), bytes).is_err();
        for name in ["keyring", "config", "lease", "meta/manifest/00000000000000000001.manifest"] {
            assert!(refused(name, 12 << 30), "{name}");
            assert!(!refused(name, 1 << 20), "{name}");
        }
        for name in ["seg/ab/abab", "meta/compacted/x.sst", "configs", "x/lease"] {
            assert!(!refused(name, 12 << 30), "{name}");
        }
    }
}
