//! The keyring: the object `keyring`, which wraps a volume's root key in slots (FORMAT.md
//! "Keyring").
//!
//! Bytes to struct and back, pure but for salts; reading and writing the object is `cli/` and
//! `store/`. Only `init` creates one. The keyring as a whole carries a MAC under a key derived
//! from the root, a number that grows with every change, and a plain checksum, so that damage
//! and a wrong passphrase can be told apart.

use sha2::{Digest, Sha256};

use super::derive::{InputKey, same};
use super::keys::{FIRST_EPOCH, RootKey, VolumeKeys};
use super::slots::{KdfParams, LABEL_MAX, Secret, Slot, SlotKind};
use crate::base::VolumeId;

/// The first bytes of every keyring.
const MAGIC: &[u8; 8] = b"SEALFSKR";
/// The version byte this code reads and writes.
const VERSION: u8 = 1;
/// Cobblestone-256 with HKDF-SHA512: the one suite.
const SUITE: u8 = 1;
/// Bytes of the MAC, and of the checksum after it.
const MAC: usize = 32;
const CHECKSUM: usize = 32;

/// Slots of one keyring at most: each passphrase slot costs a guess to try.
pub const SLOTS_MAX: usize = 32;
/// Bytes of a slot's parameters, or of its wrap, at most.
const FIELD_MAX: usize = 4096;
/// Bytes of a whole keyring at most; a longer object is refused unread.
pub const KEYRING_MAX: usize = 512 << 10;

/// Why a keyring does not do what was asked. [`KeyringError::hint`] says what to try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// The object is something else.
    #[error("this is not a sealfs keyring")]
    NotAKeyring,
    /// Bytes were changed or lost on the way.
    #[error("the keyring is damaged: {0}")]
    Damaged(&'static str),
    /// Written by a sealfs with another format.
    #[error("the keyring has format version {0}; this sealfs knows version 1")]
    Version(u8),
    /// Sealed with algorithms this sealfs does not have.
    #[error("the keyring uses cipher suite {0}; this sealfs knows suite 1")]
    Suite(u8),
    /// A passphrase slot with a key derivation this sealfs does not have.
    #[error("slot {slot} of the keyring uses key derivation {kdf}; this sealfs knows 1 (Argon2id)")]
    Kdf {
        /// The slot's number.
        slot: u32,
        /// The algorithm byte.
        kdf: u8,
    },
    /// Refused before the derivation ran.
    #[error(
        "slot {slot} of the keyring asks for a key derivation out of bounds: {kdf} \
         (allowed: {floor} to {ceiling})",
        floor = KdfParams::FLOOR, ceiling = KdfParams::CEILING
    )]
    KdfOutOfBounds {
        /// The slot's number.
        slot: u32,
        /// What it asks for.
        kdf: KdfParams,
    },
    /// The derivation's memory cannot be allocated.
    #[error("not enough memory for the key derivation: {kdf}")]
    KdfMemory {
        /// What it asks for.
        kdf: KdfParams,
    },
    /// The keyring is whole, and no passphrase slot opens.
    #[error("wrong passphrase")]
    WrongPassphrase,
    /// The keyring is whole, and no key file slot opens.
    #[error("wrong key file")]
    WrongKeyFile,
    /// Nothing to try the secret on.
    #[error("the keyring has no {wanted} slot, only: {have}")]
    NoSuchKind {
        /// The kind of the secret given.
        wanted: SlotKind,
        /// The kinds there are, for people.
        have: String,
    },
    /// Whole and unlocked, but its MAC or volume id is not from this root key.
    #[error("the keyring was altered by someone who does not have its keys")]
    Altered,
    /// An empty passphrase.
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    /// Too short or too long a key file.
    #[error("the key file has {0} bytes; it must have 32 bytes to 1 MiB")]
    KeyFileLength(usize),
    /// Too long or not printable.
    #[error("a slot label has at most 64 bytes and no control characters")]
    Label,
    /// [`SLOTS_MAX`] are taken.
    #[error("the keyring is full: it has 32 slots")]
    Full,
    /// No slot has this number.
    #[error("the keyring has no slot {0}")]
    NoSuchSlot(u32),
    /// Nobody could open the volume afterwards.
    #[error("slot {0} is the last one that opens this volume")]
    LastSlot(u32),
    /// Keys of another volume, or unlocked before the keyring was changed.
    #[error("these keys are of volume {keys}, the keyring is of volume {keyring}")]
    OtherVolume {
        /// The volume of the keys given.
        keys: VolumeId,
        /// The volume of the keyring.
        keyring: VolumeId,
    },
}

impl KeyringError {
    /// What a person can do about it, if anything.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            KeyringError::NotAKeyring => "check the STORE argument; is it the prefix of a volume?",
            KeyringError::Damaged(_) | KeyringError::Altered => {
                "restore the object `keyring` from a backup or an older version of it in the bucket"
            }
            KeyringError::Version(_) | KeyringError::Suite(_) | KeyringError::Kdf { .. } => {
                "use the version of sealfs that wrote it, or a newer one"
            }
            KeyringError::WrongPassphrase => "check the keyboard layout and a trailing space",
            KeyringError::WrongKeyFile => "check that the file is the one given to sealfs init",
            KeyringError::NoSuchKind { .. } => "use --passphrase-file or --key-file accordingly",
            KeyringError::KeyFileLength(_) => {
                "make one with: head -c 32 /dev/urandom > keyfile && chmod 600 keyfile"
            }
            KeyringError::LastSlot(_) => "add another slot first: sealfs key add",
            KeyringError::KdfMemory { .. } => "free some memory, or use a machine that has it",
            _ => return None,
        })
    }
}

/// One slot, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Its number, never reused within a keyring.
    pub id: u32,
    /// What opens it.
    pub kind: SlotKind,
    /// What it was named.
    pub label: String,
    /// The cost of a guess, of passphrase slots.
    pub kdf: Option<KdfParams>,
}

/// A parsed keyring. Holds no secret until it is unlocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    generation: u64,
    volume: VolumeId,
    epoch: u32,
    next_slot: u32,
    slots: Vec<Slot>,
    mac: [u8; MAC],
}

impl Keyring {
    /// The first keyring of a new volume, with one slot, and the volume's keys. `root` must be
    /// fresh: [`RootKey::random`]. Runs the key derivation once.
    ///
    /// # Errors
    /// A secret, label or derivation cost out of bounds; no memory for the derivation.
    pub fn create(
        root: RootKey,
        secret: &Secret,
        label: &str,
        kdf: KdfParams,
    ) -> Result<(Keyring, VolumeKeys), KeyringError> {
        let keys = VolumeKeys::from_root(root, FIRST_EPOCH);
        let volume = keys.volume_id();
        let slot = Slot::create(1, volume, keys.root(), secret, label, kdf)?;
        let epoch = keys.epoch();
        let (generation, next_slot, slots) = (1, 2, vec![slot]);
        let mut ring = Keyring { generation, volume, epoch, next_slot, slots, mac: [0; MAC] };
        ring.mac = ring.mac_under(&keys.keyring_key());
        Ok((ring, keys))
    }

    /// The volume whose keys this holds, as the keyring claims; proved by [`Keyring::unlock`].
    pub fn volume_id(&self) -> VolumeId {
        self.volume
    }

    /// 1 for a new keyring, one more with every change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// SHA-256 of the whole keyring, to notice that it is not the one seen before.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    /// All slots, also those of kinds this sealfs cannot open.
    ///
    /// # Errors
    /// Damaged parameters.
    pub fn slots(&self) -> Result<Vec<SlotInfo>, KeyringError> {
        let info = |s: &Slot| {
            Ok(SlotInfo { id: s.id, kind: s.kind, label: s.label.clone(), kdf: s.kdf()? })
        };
        self.slots.iter().map(info).collect()
    }

    /// Tries `secret` on every slot of its kind and gives the volume's keys. Runs one key
    /// derivation for each passphrase slot until one opens.
    ///
    /// # Errors
    /// [`KeyringError::WrongPassphrase`] or [`KeyringError::WrongKeyFile`] of a whole keyring;
    /// [`KeyringError::Altered`] when its MAC fails; derivations out of bounds or unknown, when
    /// no other slot opened.
    pub fn unlock(&self, secret: &Secret) -> Result<VolumeKeys, KeyringError> {
        secret.check()?;
        let wanted = secret.kind();
        let mut refused = None;
        let mut tried = false;
        for slot in self.slots.iter().filter(|slot| slot.kind == wanted) {
            tried = true;
            match slot.open(self.volume, secret) {
                Ok(Some(root)) => return self.verified(root),
                Ok(None) => {}
                Err(e) => refused = Some(e),
            }
        }
        Err(match refused {
            Some(e) => e,
            None if !tried => KeyringError::NoSuchKind { wanted, have: self.kinds() },
            None if wanted == SlotKind::KeyFile => KeyringError::WrongKeyFile,
            None => KeyringError::WrongPassphrase,
        })
    }

    /// Adds a slot and returns its number. Write the result with `If-Match` on the old keyring.
    ///
    /// # Errors
    /// Keys of another volume or a keyring altered since; bounds; [`KeyringError::Full`].
    pub fn add_slot(
        &mut self,
        keys: &VolumeKeys,
        secret: &Secret,
        label: &str,
        kdf: KdfParams,
    ) -> Result<u32, KeyringError> {
        self.owned_by(keys)?;
        if self.slots.len() >= SLOTS_MAX || self.next_slot == u32::MAX {
            return Err(KeyringError::Full);
        }
        let id = self.next_slot;
        self.slots.push(Slot::create(id, self.volume, keys.root(), secret, label, kdf)?);
        self.next_slot += 1;
        self.changed(keys);
        Ok(id)
    }

    /// Removes a slot. Whoever kept a copy of the old keyring and its secret can still open that
    /// copy: removing stops the use of this keyring, it does not change the root key.
    ///
    /// # Errors
    /// As [`Keyring::add_slot`]; [`KeyringError::NoSuchSlot`]; [`KeyringError::LastSlot`] when
    /// no slot of a known kind would be left.
    pub fn remove_slot(&mut self, keys: &VolumeKeys, id: u32) -> Result<(), KeyringError> {
        self.owned_by(keys)?;
        let index = self.slots.iter().position(|slot| slot.id == id);
        let index = index.ok_or(KeyringError::NoSuchSlot(id))?;
        let known = |slot: &Slot| !matches!(slot.kind, SlotKind::Unknown(_));
        if !self.slots.iter().any(|slot| slot.id != id && known(slot)) {
            return Err(KeyringError::LastSlot(id));
        }
        self.slots.remove(index);
        self.changed(keys);
        Ok(())
    }

    /// The keyring's bytes, at most [`KEYRING_MAX`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.body();
        out.extend_from_slice(&self.mac);
        let checksum = Sha256::digest(&out);
        out.extend_from_slice(&checksum);
        out
    }

    /// Reads a keyring. Never panics and never allocates more than the input's length.
    ///
    /// # Errors
    /// [`KeyringError::NotAKeyring`], [`KeyringError::Version`], [`KeyringError::Suite`],
    /// [`KeyringError::Damaged`].
    pub fn parse(bytes: &[u8]) -> Result<Keyring, KeyringError> {
        const CUT: KeyringError = KeyringError::Damaged("it is truncated");
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err(KeyringError::NotAKeyring);
        };
        match rest {
            [VERSION, SUITE, ..] => {}
            [VERSION, suite, ..] => return Err(KeyringError::Suite(*suite)),
            [version, ..] => return Err(KeyringError::Version(*version)),
            [] => return Err(CUT),
        }
        if bytes.len() > KEYRING_MAX {
            return Err(KeyringError::Damaged("it is too long"));
        }
        let (signed, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(CUT)?;
        if !same(&Sha256::digest(signed), checksum) {
            return Err(KeyringError::Damaged("its checksum does not match"));
        }
        let (body, mac) = signed.split_last_chunk::<MAC>().ok_or(CUT)?;
        let mut fields = Fields(body.get(MAGIC.len() + 2..).ok_or(CUT)?);
        if fields.u16()? != 0 {
            return Err(KeyringError::Damaged("a reserved field is set"));
        }
        let generation = fields.u64()?;
        let volume = VolumeId(*fields.array()?);
        let (epoch, next_slot) = (fields.u32()?, fields.u32()?);
        let count = usize::from(fields.u16()?);
        if count > SLOTS_MAX {
            return Err(KeyringError::Damaged("it has too many slots"));
        }
        let slots = (0..count).map(|_| fields.slot()).collect::<Result<Vec<_>, _>>()?;
        if !fields.0.is_empty() {
            return Err(KeyringError::Damaged("something follows its slots"));
        }
        Ok(Keyring { generation, volume, epoch, next_slot, slots, mac: *mac })
    }

    /// Everything the MAC covers.
    fn body(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&[VERSION, SUITE, 0, 0]);
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&self.volume.0);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.next_slot.to_be_bytes());
        let count = u16::try_from(self.slots.len()).expect("at most SLOTS_MAX slots");
        out.extend_from_slice(&count.to_be_bytes());
        for slot in &self.slots {
            out.extend_from_slice(&slot.head());
            let wrap_len = u16::try_from(slot.wrap.len()).expect("wraps are at most FIELD_MAX");
            out.extend_from_slice(&wrap_len.to_be_bytes());
            out.extend_from_slice(&slot.wrap);
        }
        out
    }

    fn mac_under(&self, key: &InputKey) -> [u8; MAC] {
        key.mac(&self.body())
    }

    /// The keys of `root`, if this keyring was written by someone who had it.
    fn verified(&self, root: RootKey) -> Result<VolumeKeys, KeyringError> {
        let keys = VolumeKeys::from_root(root, self.epoch);
        let ours = keys.volume_id() == self.volume && self.epoch >= FIRST_EPOCH;
        if ours && same(&self.mac, &self.mac_under(&keys.keyring_key())) {
            Ok(keys)
        } else {
            Err(KeyringError::Altered)
        }
    }

    fn owned_by(&self, keys: &VolumeKeys) -> Result<(), KeyringError> {
        if keys.volume_id() != self.volume {
            let (keys, keyring) = (keys.volume_id(), self.volume);
            return Err(KeyringError::OtherVolume { keys, keyring });
        }
        self.verified(keys.root().clone()).map(drop)
    }

    fn changed(&mut self, keys: &VolumeKeys) {
        self.generation = self.generation.saturating_add(1);
        self.mac = self.mac_under(&keys.keyring_key());
    }

    fn kinds(&self) -> String {
        let mut kinds: Vec<String> = self.slots.iter().map(|s| s.kind.to_string()).collect();
        kinds.dedup();
        kinds.join(", ")
    }
}

/// What is left of the keyring's body; every read is checked against its end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], KeyringError> {
        let split = self.0.split_at_checked(len);
        let (head, rest) = split.ok_or(KeyringError::Damaged("a field is cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], KeyringError> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    fn u16(&mut self) -> Result<u16, KeyringError> {
        Ok(u16::from_be_bytes(*self.array()?))
    }

    fn u32(&mut self) -> Result<u32, KeyringError> {
        Ok(u32::from_be_bytes(*self.array()?))
    }

    fn u64(&mut self) -> Result<u64, KeyringError> {
        Ok(u64::from_be_bytes(*self.array()?))
    }

    /// Bytes preceded by their length.
    fn field(&mut self) -> Result<Vec<u8>, KeyringError> {
        let len = usize::from(self.u16()?);
        if len > FIELD_MAX {
            return Err(KeyringError::Damaged("a field is too long"));
        }
        Ok(self.take(len)?.to_vec())
    }

    fn slot(&mut self) -> Result<Slot, KeyringError> {
        let id = self.u32()?;
        let [kind, label_len] = *self.array()?;
        let label = self.take(usize::from(label_len))?;
        let label = match std::str::from_utf8(label) {
            Ok(label) if label.len() <= LABEL_MAX && !label.chars().any(char::is_control) => label,
            _ => return Err(KeyringError::Damaged("a label is not printable text")),
        };
        let (params, wrap) = (self.field()?, self.field()?);
        Ok(Slot { id, kind: SlotKind::from_byte(kind), label: label.to_owned(), params, wrap })
    }
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
