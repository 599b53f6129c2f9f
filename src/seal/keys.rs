//! The key hierarchy of a volume: root key, epoch keys, and a key for each use (FORMAT.md
//! "Keys").
//!
//! Everything is derived from the root with HKDF-Expand-SHA512; nothing here is stored. The
//! keyring wraps the root.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::context;
use super::derive::{InputKey, KEY, fill_random};
use super::secret::Locked;
use crate::base::{JournalId, VolumeId};

/// The epoch whose key seals the objects of a new volume.
pub const FIRST_EPOCH: u32 = 1;

// Labels under the root key. None is a prefix of another.
const LABEL_VOLUME: &[u8] = b"sealfs volume id";
const LABEL_EPOCH: &[u8] = b"sealfs epoch";
const LABEL_JOURNAL: &[u8] = b"sealfs journal";
const LABEL_STATE: &[u8] = b"sealfs state";
const LABEL_NAMES: &[u8] = b"sealfs names";
const LABEL_KEYRING: &[u8] = b"sealfs keyring mac";
// The only label under an epoch key.
const LABEL_OBJECT: &[u8] = b"sealfs object";

/// The 32 random bytes a volume is made from. Whoever has them reads the whole volume.
#[derive(Clone, Debug)]
pub struct RootKey(InputKey);

impl RootKey {
    /// A fresh root key from the operating system's random source.
    pub fn random() -> RootKey {
        let mut bytes = Zeroizing::new([0u8; KEY]);
        fill_random(&mut bytes[..]);
        RootKey::from_bytes(&bytes)
    }

    /// The root key with these bytes (from a keyring slot or a recovery kit).
    pub fn from_bytes(bytes: &[u8; KEY]) -> RootKey {
        RootKey(InputKey::from_bytes(bytes))
    }

    /// The secret bytes, to wrap them in a slot or print a recovery kit.
    pub fn expose(&self) -> &[u8; KEY] {
        self.0.expose()
    }

    /// The id of the volume this is the root of.
    pub fn volume_id(&self) -> VolumeId {
        let mut id = [0u8; 16];
        self.0.expand(&[LABEL_VOLUME], &mut id);
        VolumeId(id)
    }
}

/// Every key of one volume. A clone is one reference count; `Debug` shows the volume id only.
#[derive(Clone)]
pub struct VolumeKeys(Arc<Inner>);

struct Inner {
    root: RootKey,
    volume: VolumeId,
    epoch: u32,
    epoch_key: InputKey,
    journal: InputKey,
    state: InputKey,
    names: Locked<[u8; 16]>,
}

impl VolumeKeys {
    /// The keys derived from `root`, with `epoch` as the one new objects are sealed under.
    pub fn from_root(root: RootKey, epoch: u32) -> VolumeKeys {
        let mut names = Zeroizing::new([0u8; 16]);
        root.0.expand(&[LABEL_NAMES], &mut names[..]);
        VolumeKeys(Arc::new(Inner {
            volume: root.volume_id(),
            epoch,
            epoch_key: root.0.derive(&[LABEL_EPOCH, &epoch.to_be_bytes()]),
            journal: root.0.derive(&[LABEL_JOURNAL]),
            state: root.0.derive(&[LABEL_STATE]),
            names: Locked::new(*names),
            root,
        }))
    }

    /// The volume's id, derived from its root key and not secret.
    pub fn volume_id(&self) -> VolumeId {
        self.0.volume
    }

    /// The epoch that new objects are sealed under (1 for a new volume).
    pub fn epoch(&self) -> u32 {
        self.0.epoch
    }

    /// The key of one object, from the epoch's key and the object's full name below the STORE
    /// prefix. It opens that object only, so it can be handed to an auditor.
    pub fn object_key(&self, epoch: u32, name: &str) -> InputKey {
        let info: [&[u8]; 2] = [LABEL_OBJECT, name.as_bytes()];
        if epoch == self.0.epoch {
            return self.0.epoch_key.derive(&info);
        }
        self.0.root.0.derive(&[LABEL_EPOCH, &epoch.to_be_bytes()]).derive(&info)
    }

    /// The context of one object; `name` as for [`VolumeKeys::object_key`].
    pub fn object_context(&self, epoch: u32, name: &str) -> Vec<u8> {
        context::object(self.0.volume, epoch, name)
    }

    /// The key of every record of this volume's journals on this machine.
    pub fn journal_key(&self) -> InputKey {
        self.0.journal.clone()
    }

    /// The context of one journal record. `kind` separates sorts of records (and file headers).
    pub fn journal_context(&self, journal: JournalId, kind: u8, number: u64) -> Vec<u8> {
        context::journal(self.0.volume, journal, kind, number)
    }

    /// The key of every file of local state.
    pub fn state_key(&self) -> InputKey {
        self.0.state.clone()
    }

    /// The context of one file of local state, by its name inside the state directory.
    pub fn state_context(&self, file_name: &str) -> Vec<u8> {
        context::state(self.0.volume, file_name)
    }

    /// The SipHash key of directory cookies, so that nobody can choose names that collide.
    pub fn name_hash_key(&self) -> [u8; 16] {
        *self.0.names
    }

    /// The root key, for the keyring and the recovery kit.
    pub fn root(&self) -> &RootKey {
        &self.0.root
    }

    /// The key the keyring as a whole is authenticated with.
    pub(super) fn keyring_key(&self) -> InputKey {
        self.0.root.0.derive(&[LABEL_KEYRING])
    }

    /// Keys that are the same for the same `seed`, for tests only: they protect nothing.
    #[doc(hidden)]
    pub fn random_for_tests(seed: u8) -> VolumeKeys {
        VolumeKeys::from_root(RootKey::from_bytes(&[seed; KEY]), FIRST_EPOCH)
    }
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeKeys(volume {}, epoch {})", self.0.volume, self.0.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_has_its_own_key() {
        // Guards against two uses sharing a key through a mistyped label.
        let keys = VolumeKeys::random_for_tests(1);
        let all = [
            *keys.object_key(1, "a").expose(),
            *keys.object_key(1, "b").expose(),
            *keys.object_key(2, "a").expose(),
            *keys.journal_key().expose(),
            *keys.state_key().expose(),
            *keys.keyring_key().expose(),
            *keys.root().expose(),
            *keys.0.epoch_key.expose(),
            *VolumeKeys::random_for_tests(2).object_key(1, "a").expose(),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{i}");
        }
        assert_ne!(keys.volume_id(), VolumeKeys::random_for_tests(2).volume_id());
    }

    #[test]
    fn an_object_key_does_not_depend_on_which_epoch_is_current() {
        // Guards against old objects becoming unreadable when the epoch advances.
        let root = RootKey::from_bytes(&[9; 32]);
        let (one, two) =
            (VolumeKeys::from_root(root.clone(), 1), VolumeKeys::from_root(root.clone(), 2));
        assert_eq!(one.object_key(1, "x").expose(), two.object_key(1, "x").expose());
        assert_eq!(one.object_key(2, "x").expose(), two.object_key(2, "x").expose());
        assert_eq!(one.volume_id(), root.volume_id());
    }

    #[test]
    fn debug_shows_the_volume_and_no_key() {
        // Guards against a key in a log line.
        let keys = VolumeKeys::random_for_tests(3);
        let shown = format!("{keys:?} {:?}", keys.root());
        assert!(shown.starts_with("VolumeKeys(volume "));
        assert!(shown.ends_with("RootKey(InputKey(32 bytes))"), "{shown}");
    }
}
