//! Slots of the keyring: whatever a person has comes down to a seed, and the seed opens the root
//! key that is sealed to its public key (FORMAT.md "Keyring").
//!
//! Owns the derivation of seeds from passphrases and key files with its bounds, and what of a
//! slot is sealed. Bytes of the keyring around the slots are `keyring_bytes.rs`.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha512;
use zeroize::Zeroizing;

use super::cobblestone::{open, seal};
use super::context;
use super::derive::{KEY, fill_random};
use super::kem::{self, Seed};
use super::kept::{AgeSlot, Kept};
use super::keyring_error::KeyringError;
use super::keys::{FINGERPRINT, RootKey, VolumeKeys};
use super::recovery::RecoveryKey;
use crate::base::VolumeId;

/// Bytes of the salt of a slot.
const SLOT_SALT: usize = 32;
/// The one key derivation of passphrase slots: Argon2id, version 0x13.
const KDF_ARGON2ID: u8 = 1;
/// Bytes of a passphrase slot's parameters: algorithm, salt, memory, passes, lanes.
const PASSPHRASE_PARAMS: usize = 1 + SLOT_SALT + 12;
const KEY_FILE_INFO: &[u8] = b"sealfs key file slot";
/// Derives from a seed the key of its slot's anchor.
const ANCHOR_LABEL: &[u8] = b"sealfs slot anchor";

/// Bytes of the shortest key file accepted: what a 256-bit key needs.
pub const KEY_FILE_MIN: usize = 32;
/// Bytes of the longest key file accepted; a larger one is surely another file.
pub const KEY_FILE_MAX: usize = 1 << 20;
/// Bytes of the longest slot label.
pub const LABEL_MAX: usize = 64;

/// What a person unlocks a volume with. Wiped when dropped; `Debug` shows lengths.
pub enum Secret {
    /// The bytes of a passphrase, without the newline that ended it.
    Passphrase(Zeroizing<Vec<u8>>),
    /// The whole content of a key file, [`KEY_FILE_MIN`] to [`KEY_FILE_MAX`] bytes.
    KeyFile(Zeroizing<Vec<u8>>),
    /// A recovery key that was printed once.
    Recovery(RecoveryKey),
    /// A new seed that something outside keeps, with what its slot stores of it.
    Kept(Kept),
}

impl Secret {
    /// The kind of slot that this opens.
    pub fn kind(&self) -> SlotKind {
        match self {
            Secret::Passphrase(_) => SlotKind::Passphrase,
            Secret::KeyFile(_) => SlotKind::KeyFile,
            Secret::Recovery(_) => SlotKind::Recovery,
            Secret::Kept(kept) => kept.kind(),
        }
    }

    /// A copy, for an operation that unlocks the volume twice; wiped like the original.
    pub fn duplicate(&self) -> Secret {
        match self {
            Secret::Passphrase(bytes) => Secret::Passphrase(bytes.clone()),
            Secret::KeyFile(bytes) => Secret::KeyFile(bytes.clone()),
            Secret::Recovery(key) => Secret::Recovery(RecoveryKey::from_bytes(key.expose())),
            Secret::Kept(kept) => Secret::Kept(kept.duplicate()),
        }
    }

    /// The one of `slots` that this secret opens, and its seed; `None`: none of them. Runs one key
    /// derivation for each slot of its kind until one fits, but none before all of them together
    /// cost little enough.
    ///
    /// # Errors
    /// A secret that never made a slot; costs out of bounds or unknown, when no other slot fits.
    pub(super) fn find(&self, slots: &[Slot]) -> Result<Option<(u32, Seed)>, KeyringError> {
        self.check()?;
        total_cost(slots)?;
        let mut refused = None;
        for slot in slots.iter().filter(|slot| slot.kind == self.kind()) {
            match self.seed(slot.id, &slot.params) {
                Ok(seed) if seed.fits(&slot.public) => return Ok(Some((slot.id, seed))),
                Ok(_) => {}
                Err(e) => refused = Some(e),
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// The seed that this secret and the parameters of slot `id` come down to.
    fn seed(&self, id: u32, params: &[u8]) -> Result<Seed, KeyringError> {
        let mut seed = Zeroizing::new([0u8; KEY]);
        match self {
            Secret::Passphrase(passphrase) => {
                let (salt, kdf) = passphrase_params(id, params)?;
                argon2id(passphrase, salt, id, kdf, &mut seed)?;
            }
            Secret::KeyFile(content) => {
                if params.len() != SLOT_SALT {
                    return Err(KeyringError::Damaged("the salt of a key file slot is not there"));
                }
                Hkdf::<Sha512>::new(Some(params), content)
                    .expand(KEY_FILE_INFO, &mut seed[..])
                    .expect("HKDF-SHA512 gives 32 bytes");
            }
            Secret::Recovery(key) if params.is_empty() => seed.copy_from_slice(key.expose()),
            Secret::Recovery(_) => {
                return Err(KeyringError::Damaged("a recovery key slot has parameters"));
            }
            Secret::Kept(kept) => seed.copy_from_slice(kept.seed()),
        }
        Ok(Seed::from_bytes(&seed))
    }

    /// Parameters of a new slot for this secret, with a fresh salt.
    fn new_params(&self, kdf: KdfParams) -> Vec<u8> {
        let mut salt = [0u8; SLOT_SALT];
        fill_random(&mut salt);
        match self {
            Secret::Passphrase(_) => new_passphrase_params(&salt, kdf),
            Secret::KeyFile(_) => salt.to_vec(),
            Secret::Recovery(_) => Vec::new(),
            Secret::Kept(kept) => kept.params().to_vec(),
        }
    }

    /// Refuses what can never have made a slot.
    pub(super) fn check(&self) -> Result<(), KeyringError> {
        match self {
            Secret::Passphrase(bytes) if bytes.is_empty() => Err(KeyringError::EmptyPassphrase),
            Secret::KeyFile(bytes) if !(KEY_FILE_MIN..=KEY_FILE_MAX).contains(&bytes.len()) => {
                Err(KeyringError::KeyFileLength(bytes.len()))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = match self {
            Secret::Passphrase(bytes) | Secret::KeyFile(bytes) => bytes.len(),
            Secret::Recovery(key) => key.expose().len(),
            Secret::Kept(kept) => kept.seed().len(),
        };
        write!(f, "{}({len} bytes)", self.kind())
    }
}

/// What opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// A passphrase, through Argon2id.
    Passphrase,
    /// The content of a file, through HKDF.
    KeyFile,
    /// AWS KMS, which keeps a random seed encrypted.
    Kms,
    /// 32 random bytes that were printed once.
    Recovery,
    /// The owner of an age or ssh key, to which a random seed is encrypted.
    Age,
    /// Made by another version of sealfs; kept as it is, never opened.
    Unknown(u8),
}

impl SlotKind {
    pub(super) fn from_byte(byte: u8) -> SlotKind {
        match byte {
            1 => SlotKind::Passphrase,
            2 => SlotKind::KeyFile,
            3 => SlotKind::Kms,
            4 => SlotKind::Recovery,
            5 => SlotKind::Age,
            other => SlotKind::Unknown(other),
        }
    }

    pub(super) fn to_byte(self) -> u8 {
        match self {
            SlotKind::Passphrase => 1,
            SlotKind::KeyFile => 2,
            SlotKind::Kms => 3,
            SlotKind::Recovery => 4,
            SlotKind::Age => 5,
            SlotKind::Unknown(byte) => byte,
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotKind::Passphrase => f.write_str("passphrase"),
            SlotKind::KeyFile => f.write_str("key file"),
            SlotKind::Kms => f.write_str("AWS KMS"),
            SlotKind::Recovery => f.write_str("recovery key"),
            SlotKind::Age => f.write_str("age"),
            SlotKind::Unknown(byte) => write!(f, "kind {byte}"),
        }
    }
}

/// The cost of one guess at a passphrase (Argon2id, RFC 9106).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfParams {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over that memory.
    pub passes: u32,
    /// Lanes (computed one after the other here; they matter for identical results only).
    pub lanes: u32,
}

impl KdfParams {
    /// The least that is accepted, from a user or from a keyring (OWASP's minimum).
    pub const FLOOR: KdfParams = KdfParams { memory_kib: 19 << 10, passes: 2, lanes: 1 };
    /// The most that is accepted, so that a forged keyring cannot exhaust the machine.
    pub const CEILING: KdfParams = KdfParams { memory_kib: 4 << 20, passes: 64, lanes: 16 };

    /// What a guess costs, as memory times passes; [`KdfParams::CEILING`] is some minutes, and all
    /// passphrase slots of a keyring together may cost no more.
    pub fn cost_kib(&self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.passes)
    }

    /// Whether all three lie between [`KdfParams::FLOOR`] and [`KdfParams::CEILING`].
    pub fn acceptable(&self) -> bool {
        let (floor, ceiling) = (Self::FLOOR, Self::CEILING);
        (floor.memory_kib..=ceiling.memory_kib).contains(&self.memory_kib)
            && (floor.passes..=ceiling.passes).contains(&self.passes)
            && (floor.lanes..=ceiling.lanes).contains(&self.lanes)
    }
}

impl Default for KdfParams {
    /// 128 MiB and 3 passes: about a third of a second here, and below the memory the daemon
    /// may use.
    fn default() -> KdfParams {
        KdfParams { memory_kib: 128 << 10, passes: 3, lanes: 1 }
    }
}

impl fmt::Display for KdfParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB, {} passes, {} lanes", self.memory_kib, self.passes, self.lanes)
    }
}

/// What a slot holds of the current root: nothing of it is secret without the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrap {
    /// A fresh secret, encapsulated to the slot's public key.
    pub encapsulation: Vec<u8>,
    /// The root, sealed under that secret.
    pub root: Vec<u8>,
}

/// One slot as the keyring stores it. `params` of an unknown kind are opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub id: u32,
    pub kind: SlotKind,
    /// Unix seconds.
    pub made_secs: u64,
    /// The epoch in which it was made: that of its anchor.
    pub made_epoch: u32,
    pub label: String,
    pub params: Vec<u8>,
    pub public: Vec<u8>,
    /// The fingerprint of `made_epoch`, sealed under a key that only the seed gives. Anybody can
    /// encapsulate to a public key: this is what shows the owner of the slot that a root belongs
    /// to the volume that the slot was made for.
    pub anchor: Vec<u8>,
    pub wrap: Wrap,
}

impl Slot {
    /// A slot of the volume of `keys` for `secret`, with a fresh salt.
    pub fn create(
        id: u32,
        keys: &VolumeKeys,
        secret: &Secret,
        label: &str,
        kdf: KdfParams,
        made_secs: u64,
    ) -> Result<Slot, KeyringError> {
        secret.check()?;
        if label.len() > LABEL_MAX || label.chars().any(char::is_control) {
            return Err(KeyringError::Label);
        }
        let (volume, epoch) = (keys.volume_id(), keys.epoch());
        let params = secret.new_params(kdf);
        let seed = secret.seed(id, &params)?;
        let mut slot = Slot {
            id,
            kind: secret.kind(),
            made_secs,
            made_epoch: epoch,
            label: label.to_owned(),
            params,
            public: seed.public(),
            anchor: Vec::new(),
            wrap: Wrap { encapsulation: Vec::new(), root: Vec::new() },
        };
        let anchor_context = context::anchor(volume, &slot.head());
        slot.anchor = seal(&seed.derive(ANCHOR_LABEL), &anchor_context, &keys.fingerprint());
        slot.hold(volume, epoch, &keys.root())?;
        Ok(slot)
    }

    /// Seals the root of `epoch` for this slot, in place of the one it held. Needs no secret.
    ///
    /// # Errors
    /// The slot's public key is none.
    pub fn hold(
        &mut self,
        volume: VolumeId,
        epoch: u32,
        root: &RootKey,
    ) -> Result<(), KeyringError> {
        let broken = KeyringError::Damaged("the public key of a slot is none");
        let (encapsulation, key) = kem::encapsulate(&self.public).ok_or(broken)?;
        self.wrap.encapsulation = encapsulation;
        let context = context::slot(volume, epoch, &self.before_root());
        self.wrap.root = seal(&key, &context, root.expose());
        Ok(())
    }

    /// Opens the slot with its seed: the root of `epoch`, and the fingerprint of the epoch in
    /// which the slot was made.
    ///
    /// # Errors
    /// [`KeyringError::Altered`].
    pub fn open(
        &self,
        volume: VolumeId,
        epoch: u32,
        seed: &Seed,
    ) -> Result<(RootKey, [u8; FINGERPRINT]), KeyringError> {
        const ALTERED: KeyringError = KeyringError::Altered;
        let anchor_context = context::anchor(volume, &self.head());
        let anchor = open(&seed.derive(ANCHOR_LABEL), &anchor_context, &self.anchor);
        let anchor = anchor.map_err(|_| ALTERED)?[..].try_into().map_err(|_| ALTERED)?;
        let key = seed.decapsulate(&self.wrap.encapsulation).ok_or(ALTERED)?;
        let context = context::slot(volume, epoch, &self.before_root());
        let root = open(&key, &context, &self.wrap.root).map(Zeroizing::new);
        let root = root.map_err(|_| ALTERED)?;
        let root = root[..].try_into().map_err(|_| ALTERED)?;
        Ok((RootKey::from_bytes(root), anchor))
    }

    /// The costs a passphrase slot was made with, if they can be read.
    pub fn kdf(&self) -> Option<KdfParams> {
        match self.kind {
            SlotKind::Passphrase => Some(passphrase_params(self.id, &self.params).ok()?.1),
            _ => None,
        }
    }

    /// Whether it opens without a key service and without a token: with what a person can have on
    /// paper or in a file.
    pub fn opens_alone(&self) -> bool {
        match self.kind {
            SlotKind::Passphrase | SlotKind::KeyFile | SlotKind::Recovery => true,
            SlotKind::Age => AgeSlot::parse(&self.params).is_ok_and(|slot| !slot.needs_hardware()),
            SlotKind::Kms | SlotKind::Unknown(_) => false,
        }
    }

    /// Everything before the anchor, which the anchor's context binds. It never changes.
    pub fn head(&self) -> Vec<u8> {
        let mut out = self.id.to_be_bytes().to_vec();
        out.push(self.kind.to_byte());
        out.extend_from_slice(&self.made_secs.to_be_bytes());
        out.extend_from_slice(&self.made_epoch.to_be_bytes());
        out.push(u8::try_from(self.label.len()).expect("labels are at most LABEL_MAX bytes"));
        out.extend_from_slice(self.label.as_bytes());
        let params_len = u16::try_from(self.params.len()).expect("parameters are below 64 KiB");
        out.extend_from_slice(&params_len.to_be_bytes());
        out.extend_from_slice(&self.params);
        out.extend_from_slice(&self.public);
        out
    }

    /// Everything before the sealed root, which the root's context binds.
    pub fn before_root(&self) -> Vec<u8> {
        let mut out = self.head();
        out.extend_from_slice(&self.anchor);
        out.extend_from_slice(&self.wrap.encapsulation);
        out
    }
}

/// Refuses passphrase slots that cost too much together, before any is tried: a forged keyring
/// may have many. Those out of bounds by themselves are never tried.
pub(super) fn total_cost(slots: &[Slot]) -> Result<(), KeyringError> {
    let costs = slots.iter().filter_map(Slot::kdf).filter(KdfParams::acceptable);
    let total: u64 = costs.map(|kdf| kdf.cost_kib()).sum();
    match total <= KdfParams::CEILING.cost_kib() {
        true => Ok(()),
        false => Err(KeyringError::KdfTotal { gib: total >> 20 }),
    }
}

/// Salt and costs out of the parameters of passphrase slot `id`.
fn passphrase_params(id: u32, params: &[u8]) -> Result<(&[u8], KdfParams), KeyringError> {
    match params.first() {
        Some(&KDF_ARGON2ID) if params.len() == PASSPHRASE_PARAMS => {}
        Some(&KDF_ARGON2ID) | None => {
            return Err(KeyringError::Damaged("the parameters of a passphrase slot are cut"));
        }
        Some(&kdf) => return Err(KeyringError::Kdf { slot: id, kdf }),
    }
    let (salt, numbers) = params[1..].split_at(SLOT_SALT);
    let number = |at: usize| {
        u32::from_be_bytes(numbers[at..at + 4].try_into().expect("four bytes were taken"))
    };
    Ok((salt, KdfParams { memory_kib: number(0), passes: number(4), lanes: number(8) }))
}

fn new_passphrase_params(salt: &[u8; SLOT_SALT], kdf: KdfParams) -> Vec<u8> {
    let mut out = vec![KDF_ARGON2ID];
    out.extend_from_slice(salt);
    [kdf.memory_kib, kdf.passes, kdf.lanes].iter().for_each(|n| out.extend(n.to_be_bytes()));
    out
}

/// Argon2id within bounds; allocates `kdf.memory_kib` for as long as it runs.
fn argon2id(
    passphrase: &[u8],
    salt: &[u8],
    slot: u32,
    kdf: KdfParams,
    out: &mut [u8; KEY],
) -> Result<(), KeyringError> {
    if !kdf.acceptable() {
        return Err(KeyringError::KdfOutOfBounds { slot, kdf });
    }
    let params = argon2::Params::new(kdf.memory_kib, kdf.passes, kdf.lanes, Some(KEY))
        .expect("bounds of ours lie within Argon2's");
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase, salt, out)
        .map_err(|e| match e {
            argon2::Error::OutOfMemory => KeyringError::KdfMemory { kdf },
            _ => KeyringError::Damaged("the parameters of a passphrase slot are refused"),
        })
}
