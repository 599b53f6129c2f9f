//! The keyring: the object `keyring`, which holds a volume's root keys, sealed for each of its
//! slots (FORMAT.md "Keyring").
//!
//! Pure but for salts; its bytes are `keyring_bytes.rs`, reading and writing the object is
//! `stack/`. The keyring as a whole carries a MAC under a key derived from the current root, a
//! number that grows with every change, and a plain checksum, so that damage and a wrong
//! passphrase can be told apart.
//!
//! Rotating needs no secret but the current root: the new root is sealed for the public key of
//! every slot that stays. A root that is replaced stays in the keyring, sealed under the current
//! one, until nothing in the bucket is sealed in its epoch; then its local key takes its place.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::cobblestone::{open, seal};
use super::context;
use super::derive::{InputKey, same};
use super::kem::Seed;
use super::keyring_bytes::MAC;
use super::keyring_error::KeyringError;
use super::keys::{EpochSecret, FIRST_EPOCH, LocalKey, RootKey, VolumeKeys};
use super::secret::with_wiped_stack;
use super::slots::{KdfParams, Secret, Slot, SlotKind, total_cost};
use crate::base::VolumeId;

/// Slots of one keyring at most: each passphrase slot costs a guess to try.
pub const SLOTS_MAX: usize = 32;
/// Earlier epochs of which a keyring keeps something, at most: a reader tries their keys.
pub const OLD_EPOCHS_MAX: usize = 1024;

/// Incompatible features that this sealfs knows.
const KNOWN_INCOMPATIBLE: u64 = 0;
/// Read-only compatible features that this sealfs knows.
const KNOWN_READ_ONLY_COMPATIBLE: u64 = 0;

/// What a program must know to work on the volume, as sets of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Whoever does not know these may read and write all the same.
    pub compatible: u64,
    /// Whoever does not know these may read.
    pub read_only_compatible: u64,
    /// Whoever does not know these may do nothing.
    pub incompatible: u64,
}

impl Features {
    /// The bits for which this sealfs must leave the volume alone.
    pub fn unknown_incompatible(&self) -> u64 {
        self.incompatible & !KNOWN_INCOMPATIBLE
    }

    /// The bits for which this sealfs must not write.
    pub fn unknown_read_only_compatible(&self) -> u64 {
        self.read_only_compatible & !KNOWN_READ_ONLY_COMPATIBLE
    }
}

/// One slot, for listings and for what opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Its number, never reused within a keyring.
    pub id: u32,
    /// What opens it.
    pub kind: SlotKind,
    /// What it was named.
    pub label: String,
    /// When it was made, in Unix seconds.
    pub made_secs: u64,
    /// In which epoch.
    pub made_epoch: u32,
    /// The cost of a guess, of passphrase slots.
    pub kdf: Option<KdfParams>,
    /// What its kind needs to come to the seed.
    pub params: Vec<u8>,
}

/// What the keyring keeps of an earlier epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OldEpoch {
    pub epoch: u32,
    /// [`OLD_ROOT`] or [`OLD_LOCAL`].
    pub content: u8,
    /// That key, sealed under the current root.
    pub sealed: Vec<u8>,
}

const OLD_ROOT: u8 = 1;
const OLD_LOCAL: u8 = 2;

impl OldEpoch {
    fn of(volume: VolumeId, current: u32, root: &RootKey, old: &(u32, EpochSecret)) -> OldEpoch {
        let (epoch, secret) = old;
        let (content, local);
        let key = match secret {
            EpochSecret::Root(root) => {
                content = OLD_ROOT;
                root.expose()
            }
            EpochSecret::Local(key) => {
                (content, local) = (OLD_LOCAL, key.clone());
                local.expose()
            }
        };
        let context = context::old_epoch(volume, current, *epoch, content);
        OldEpoch { epoch: *epoch, content, sealed: seal(&root.old_epochs_key(), &context, key) }
    }

    /// `None`: it was not sealed under this root, or is something this sealfs does not know.
    fn open(&self, volume: VolumeId, current: u32, root: &RootKey) -> Option<EpochSecret> {
        let context = context::old_epoch(volume, current, self.epoch, self.content);
        let key = open(&root.old_epochs_key(), &context, &self.sealed).map(Zeroizing::new).ok()?;
        let key = key[..].try_into().ok()?;
        match self.content {
            OLD_ROOT => Some(EpochSecret::Root(RootKey::from_bytes(key))),
            OLD_LOCAL => Some(EpochSecret::Local(LocalKey::from_bytes(key))),
            _ => None,
        }
    }
}

/// A parsed keyring. Holds no secret until it is unlocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    pub(super) features: Features,
    pub(super) revision: u64,
    pub(super) volume: VolumeId,
    pub(super) epoch: u32,
    pub(super) next_slot: u32,
    pub(super) slots: Vec<Slot>,
    /// From the first epoch on, ascending, all before the current one.
    pub(super) old: Vec<OldEpoch>,
    pub(super) mac: [u8; MAC],
}

impl Keyring {
    /// The first keyring of a new volume, with one slot, and the volume's keys. `root` must be
    /// fresh: [`RootKey::random`]. `now_secs` is Unix time. Runs the key derivation once.
    ///
    /// # Errors
    /// A secret, label or derivation cost out of bounds; no memory for the derivation.
    pub fn create(
        root: RootKey,
        secret: &Secret,
        label: &str,
        kdf: KdfParams,
        now_secs: u64,
    ) -> Result<(Keyring, VolumeKeys), KeyringError> {
        let keys = VolumeKeys::from_root(root);
        let mut ring = Keyring {
            features: Features::default(),
            revision: 0,
            volume: keys.volume_id(),
            epoch: FIRST_EPOCH,
            next_slot: 2,
            slots: vec![Slot::create(1, &keys, secret, label, kdf, now_secs)?],
            old: Vec::new(),
            mac: [0; MAC],
        };
        ring.changed(&keys.root());
        Ok((ring, keys))
    }

    /// The volume whose keys this holds, as the keyring claims; proved by [`Keyring::open`].
    pub fn volume_id(&self) -> VolumeId {
        self.volume
    }

    /// 1 for a new keyring, one more with every change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The epoch that objects are sealed in, 1 for a new volume.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// What the volume asks of those who work on it.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Earlier epochs whose root is still here.
    pub fn old_roots(&self) -> Vec<u32> {
        self.old.iter().filter(|old| old.content == OLD_ROOT).map(|old| old.epoch).collect()
    }

    /// SHA-256 of the whole keyring, to notice that it is not the one seen before.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    /// All slots, also those of kinds this sealfs cannot open.
    pub fn slots(&self) -> Vec<SlotInfo> {
        let info = |s: &Slot| SlotInfo {
            id: s.id,
            kind: s.kind,
            label: s.label.clone(),
            made_secs: s.made_secs,
            made_epoch: s.made_epoch,
            kdf: s.kdf(),
            params: s.params.clone(),
        };
        self.slots.iter().map(info).collect()
    }

    /// Refuses to be written on by a sealfs that does not know what the volume uses.
    ///
    /// # Errors
    /// [`KeyringError::ReadOnlyFeatures`].
    pub fn check_writable(&self) -> Result<(), KeyringError> {
        match self.features.unknown_read_only_compatible() {
            0 => Ok(()),
            unknown => Err(KeyringError::ReadOnlyFeatures(unknown)),
        }
    }

    /// The slot that `secret` opens, and its seed. Runs one key derivation for each passphrase
    /// slot until one fits.
    ///
    /// # Errors
    /// [`KeyringError::WrongPassphrase`] and its like for other kinds;
    /// [`KeyringError::NoSuchKind`]; derivations out of bounds or unknown, when no slot fits.
    pub fn find(&self, secret: &Secret) -> Result<(u32, Seed), KeyringError> {
        let wanted = secret.kind();
        if let Some(found) = with_wiped_stack(|| secret.find(&self.slots))? {
            return Ok(found);
        }
        Err(match wanted {
            _ if self.slots.iter().all(|slot| slot.kind != wanted) => self.no_such_kind(wanted),
            SlotKind::KeyFile => KeyringError::WrongKeyFile,
            SlotKind::Recovery => KeyringError::WrongRecoveryKey,
            SlotKind::Kms | SlotKind::Age => KeyringError::Altered,
            _ => KeyringError::WrongPassphrase,
        })
    }

    /// Whether `seed` is that of slot `id`. Costs making a key pair.
    pub fn fits(&self, id: u32, seed: &Seed) -> bool {
        let slot = self.slots.iter().find(|slot| slot.id == id);
        slot.is_some_and(|slot| with_wiped_stack(|| seed.fits(&slot.public)))
    }

    /// The number that the next slot will have.
    pub fn next_slot(&self) -> u32 {
        self.next_slot
    }

    /// The volume's keys, with the seed of slot `id`.
    ///
    /// # Errors
    /// [`KeyringError::NoSuchSlot`]; [`KeyringError::Altered`] when anything in it was not made by
    /// somebody who had its keys, or it is not of the volume that the slot was made for.
    pub fn open(&self, id: u32, seed: &Seed) -> Result<VolumeKeys, KeyringError> {
        with_wiped_stack(|| self.open_slot(id, seed))
    }

    fn open_slot(&self, id: u32, seed: &Seed) -> Result<VolumeKeys, KeyringError> {
        let slot = self.slots.iter().find(|slot| slot.id == id);
        let slot = slot.ok_or(KeyringError::NoSuchSlot(id))?;
        let (root, anchor) = slot.open(self.volume, self.epoch, seed)?;
        let epochs = self.epochs(&root)?;
        // The slot's own word, given when it was made, for one of the epochs: without it anybody
        // could seal a root of his own for the slot's public key.
        let made = epochs.iter().find(|(number, _)| *number == slot.made_epoch);
        if !made.is_some_and(|(_, secret)| same(&secret.fingerprint(), &anchor)) {
            return Err(KeyringError::Altered);
        }
        Ok(VolumeKeys::from_epochs(self.volume, epochs))
    }

    /// [`Keyring::find`] and [`Keyring::open`].
    ///
    /// # Errors
    /// As those.
    pub fn unlock(&self, secret: &Secret) -> Result<VolumeKeys, KeyringError> {
        let (slot, seed) = self.find(secret)?;
        self.open(slot, &seed)
    }

    /// Adds a slot and returns its number. Write the result with `If-Match` on the old keyring.
    ///
    /// # Errors
    /// Keys of another volume or epoch, or a keyring altered since; bounds; [`KeyringError::Full`].
    pub fn add_slot(
        &mut self,
        keys: &VolumeKeys,
        secret: &Secret,
        label: &str,
        kdf: KdfParams,
        now_secs: u64,
    ) -> Result<u32, KeyringError> {
        self.owned_by(keys)?;
        if self.slots.len() >= SLOTS_MAX || self.next_slot == u32::MAX {
            return Err(KeyringError::Full);
        }
        let id = self.next_slot;
        let slot = Slot::create(id, keys, secret, label, kdf, now_secs)?;
        self.slots.push(slot);
        if let Err(e) = total_cost(&self.slots) {
            self.slots.pop();
            return Err(e);
        }
        self.next_slot += 1;
        self.changed(&keys.root());
        Ok(id)
    }

    /// Begins a new epoch: a new root, sealed for every slot; the one before stays, sealed under
    /// it. Needs no secret but the current root. Returns the keys of the new epoch.
    ///
    /// # Errors
    /// As [`Keyring::add_slot`]; [`KeyringError::TooManyEpochs`]. The keyring is then as it was.
    pub fn rotate(&mut self, keys: &VolumeKeys) -> Result<VolumeKeys, KeyringError> {
        self.owned_by(keys)?;
        self.begin_epoch(keys, |_| true)
    }

    /// Removes a slot and begins a new epoch, which its secret does not open: nothing that is
    /// sealed from then on is within its reach. What was sealed before stays so.
    ///
    /// # Errors
    /// As [`Keyring::rotate`]; [`KeyringError::NoSuchSlot`]; [`KeyringError::LastSlot`] when no
    /// slot of a known kind would be left.
    pub fn remove_slot(&mut self, keys: &VolumeKeys, id: u32) -> Result<VolumeKeys, KeyringError> {
        self.owned_by(keys)?;
        if self.slots.iter().all(|slot| slot.id != id) {
            return Err(KeyringError::NoSuchSlot(id));
        }
        let known = |slot: &Slot| !matches!(slot.kind, SlotKind::Unknown(_));
        if !self.slots.iter().any(|slot| slot.id != id && known(slot)) {
            return Err(KeyringError::LastSlot(id));
        }
        self.begin_epoch(keys, |slot| slot.id != id)
    }

    /// [`Keyring::remove_slot`], but not of the last slot that needs neither a key service nor a
    /// token.
    ///
    /// # Errors
    /// As that; [`KeyringError::LastOwnSlot`].
    pub fn remove_dispensable_slot(
        &mut self,
        keys: &VolumeKeys,
        id: u32,
    ) -> Result<VolumeKeys, KeyringError> {
        let known = |slot: &Slot| !matches!(slot.kind, SlotKind::Unknown(_));
        let others = || self.slots.iter().filter(|slot| slot.id != id);
        let own = self.slots.iter().any(|slot| slot.id == id && slot.opens_alone());
        if own && others().any(known) && !others().any(Slot::opens_alone) {
            return Err(KeyringError::LastOwnSlot(id));
        }
        self.remove_slot(keys, id)
    }

    /// Puts a new slot with the label of slot `id` in its place, and begins a new epoch if `rotate`;
    /// without, whoever has the old secret and an old copy of the keyring has the current root.
    /// Returns the new slot's number.
    ///
    /// # Errors
    /// As [`Keyring::add_slot`] and [`Keyring::rotate`]; [`KeyringError::NoSuchSlot`]. The keyring
    /// is then as it was.
    pub fn replace_slot(
        &mut self,
        keys: &VolumeKeys,
        id: u32,
        secret: &Secret,
        kdf: KdfParams,
        now_secs: u64,
        rotate: bool,
    ) -> Result<(u32, VolumeKeys), KeyringError> {
        self.owned_by(keys)?;
        let index = self.slots.iter().position(|slot| slot.id == id);
        let index = index.ok_or(KeyringError::NoSuchSlot(id))?;
        if self.next_slot == u32::MAX {
            return Err(KeyringError::Full);
        }
        let (label, to) = (self.slots[index].label.clone(), self.next_slot);
        let mut next = self.clone();
        next.slots[index] = Slot::create(to, keys, secret, &label, kdf, now_secs)?;
        total_cost(&next.slots)?;
        next.next_slot += 1;
        next.changed(&keys.root());
        let newer = match rotate {
            true => next.begin_epoch(keys, |_| true)?,
            false => keys.clone(),
        };
        *self = next;
        Ok((to, newer))
    }

    /// Takes the root of an earlier epoch out, once nothing in the bucket is sealed in it. Its
    /// local key stays, for journals that were away and for machines that remember that epoch.
    ///
    /// # Errors
    /// As [`Keyring::add_slot`]; [`KeyringError::NoSuchEpoch`].
    pub fn retire_root(
        &mut self,
        keys: &VolumeKeys,
        epoch: u32,
    ) -> Result<VolumeKeys, KeyringError> {
        self.owned_by(keys)?;
        let root = keys.root();
        let mut epochs = self.epochs(&root)?;
        let found = epochs.iter_mut().skip(1).find(|(number, _)| *number == epoch);
        let Some((_, secret @ EpochSecret::Root(_))) = found else {
            return Err(KeyringError::NoSuchEpoch(epoch));
        };
        *secret = EpochSecret::Local(secret.local());
        self.keep(&root, &epochs);
        self.changed(&root);
        Ok(VolumeKeys::from_epochs(self.volume, epochs))
    }

    /// The epoch after this one, for the slots that `stay`; as it was if that fails.
    fn begin_epoch(
        &mut self,
        keys: &VolumeKeys,
        stay: impl Fn(&Slot) -> bool,
    ) -> Result<VolumeKeys, KeyringError> {
        let mut epochs = self.epochs(&keys.root())?;
        let mut next = self.clone();
        next.slots.retain(stay);
        next.epoch = self.epoch.checked_add(1).ok_or(KeyringError::TooManyEpochs)?;
        if epochs.len() > OLD_EPOCHS_MAX {
            let oldest = next.dispensable(&epochs).ok_or(KeyringError::TooManyEpochs)?;
            epochs.remove(oldest);
        }
        let root = RootKey::random();
        for slot in &mut next.slots {
            slot.hold(next.volume, next.epoch, &root)?;
        }
        epochs.insert(0, (next.epoch, EpochSecret::Root(root.clone())));
        next.keep(&root, &epochs);
        next.changed(&root);
        *self = next;
        Ok(VolumeKeys::from_epochs(self.volume, epochs))
    }

    /// Where the oldest local key is that nothing rests on: not the volume's id, no slot's anchor.
    fn dispensable(&self, epochs: &[(u32, EpochSecret)]) -> Option<usize> {
        epochs.iter().rposition(|(number, secret)| {
            matches!(secret, EpochSecret::Local(_))
                && *number != FIRST_EPOCH
                && self.slots.iter().all(|slot| slot.made_epoch != *number)
        })
    }

    /// Keeps all but the first of `epochs` (newest first), sealed under `root`.
    fn keep(&mut self, root: &RootKey, epochs: &[(u32, EpochSecret)]) {
        let old = epochs[1..].iter().rev();
        self.old = old.map(|old| OldEpoch::of(self.volume, self.epoch, root, old)).collect();
    }

    /// All epochs, newest first, if this keyring was written by somebody who had `root`.
    fn epochs(&self, root: &RootKey) -> Result<Vec<(u32, EpochSecret)>, KeyringError> {
        const ALTERED: KeyringError = KeyringError::Altered;
        if !same(&self.mac, &self.mac_under(&root.keyring_key())) {
            return Err(ALTERED);
        }
        let mut epochs = vec![(self.epoch, EpochSecret::Root(root.clone()))];
        for old in self.old.iter().rev() {
            let secret = old.open(self.volume, self.epoch, root).ok_or(ALTERED)?;
            epochs.push((old.epoch, secret));
        }
        let (_, first) = epochs.last().expect("the current epoch is there");
        match first.local().volume_id() == self.volume {
            true => Ok(epochs),
            false => Err(ALTERED),
        }
    }

    fn mac_under(&self, key: &InputKey) -> [u8; MAC] {
        key.mac(&self.body())
    }

    /// Whether `keys` may change this keyring.
    fn owned_by(&self, keys: &VolumeKeys) -> Result<(), KeyringError> {
        self.check_writable()?;
        if keys.volume_id() != self.volume {
            let (keys, keyring) = (keys.volume_id(), self.volume);
            return Err(KeyringError::OtherVolume { keys, keyring });
        }
        if keys.epoch() != self.epoch {
            let (keys, keyring) = (keys.epoch(), self.epoch);
            return Err(KeyringError::OtherEpoch { keys, keyring });
        }
        self.epochs(&keys.root()).map(drop)
    }

    fn changed(&mut self, root: &RootKey) {
        self.revision = self.revision.saturating_add(1);
        self.mac = self.mac_under(&root.keyring_key());
    }

    /// That no slot is of the kind `wanted`.
    pub fn no_such_kind(&self, wanted: SlotKind) -> KeyringError {
        KeyringError::NoSuchKind { wanted, have: self.kinds() }
    }

    fn kinds(&self) -> String {
        let mut kinds: Vec<String> = self.slots.iter().map(|s| s.kind.to_string()).collect();
        kinds.dedup();
        kinds.join(", ")
    }
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
