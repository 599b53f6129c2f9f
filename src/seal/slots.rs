//! Slots of the keyring: the root key wrapped under a passphrase or a key file (FORMAT.md
//! "Keyring").
//!
//! Owns the key derivation from what a person has, its bounds, and the wrap. Bytes of the
//! keyring around the slots are `keyring.rs`.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha512;
use zeroize::Zeroizing;

use super::cobblestone::{OpenError, open, seal};
use super::context;
use super::derive::{InputKey, KEY, fill_random};
use super::keyring::KeyringError;
use super::keys::RootKey;
use crate::base::VolumeId;

/// Bytes of the salt of a slot.
const SLOT_SALT: usize = 32;
/// The one key derivation of passphrase slots: Argon2id, version 0x13.
const KDF_ARGON2ID: u8 = 1;
/// Bytes of a passphrase slot's parameters: algorithm, salt, memory, passes, lanes.
const PASSPHRASE_PARAMS: usize = 1 + SLOT_SALT + 12;
const KEY_FILE_INFO: &[u8] = b"sealfs key file slot";

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
}

impl Secret {
    /// The kind of slot that this opens.
    pub fn kind(&self) -> SlotKind {
        match self {
            Secret::Passphrase(_) => SlotKind::Passphrase,
            Secret::KeyFile(_) => SlotKind::KeyFile,
        }
    }

    /// A copy, for an operation that unlocks the volume twice; wiped like the original.
    pub fn duplicate(&self) -> Secret {
        match self {
            Secret::Passphrase(bytes) => Secret::Passphrase(bytes.clone()),
            Secret::KeyFile(bytes) => Secret::KeyFile(bytes.clone()),
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
        let (Secret::Passphrase(bytes) | Secret::KeyFile(bytes)) = self;
        write!(f, "{}({} bytes)", self.kind(), bytes.len())
    }
}

/// What opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// A passphrase, through Argon2id.
    Passphrase,
    /// The content of a file, through HKDF.
    KeyFile,
    /// Made by another version of sealfs; kept as it is, never opened.
    Unknown(u8),
}

impl SlotKind {
    pub(super) fn from_byte(byte: u8) -> SlotKind {
        match byte {
            1 => SlotKind::Passphrase,
            2 => SlotKind::KeyFile,
            other => SlotKind::Unknown(other),
        }
    }

    pub(super) fn to_byte(self) -> u8 {
        match self {
            SlotKind::Passphrase => 1,
            SlotKind::KeyFile => 2,
            SlotKind::Unknown(byte) => byte,
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotKind::Passphrase => f.write_str("passphrase"),
            SlotKind::KeyFile => f.write_str("key file"),
            SlotKind::Unknown(3) => f.write_str("AWS KMS"),
            SlotKind::Unknown(4) => f.write_str("recovery key"),
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
    /// may use (DESIGN §10).
    fn default() -> KdfParams {
        KdfParams { memory_kib: 128 << 10, passes: 3, lanes: 1 }
    }
}

impl fmt::Display for KdfParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB, {} passes, {} lanes", self.memory_kib, self.passes, self.lanes)
    }
}

/// One slot as the keyring stores it. `params` of an unknown kind are opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub id: u32,
    pub kind: SlotKind,
    pub label: String,
    pub params: Vec<u8>,
    pub wrap: Vec<u8>,
}

impl Slot {
    /// Wraps `root` under `secret` with a fresh salt.
    pub fn create(
        id: u32,
        volume: VolumeId,
        root: &RootKey,
        secret: &Secret,
        label: &str,
        kdf: KdfParams,
    ) -> Result<Slot, KeyringError> {
        secret.check()?;
        if label.len() > LABEL_MAX || label.chars().any(char::is_control) {
            return Err(KeyringError::Label);
        }
        let mut salt = [0u8; SLOT_SALT];
        fill_random(&mut salt);
        let params = match secret {
            Secret::Passphrase(_) => passphrase_params(&salt, kdf),
            Secret::KeyFile(_) => salt.to_vec(),
        };
        let label = label.to_owned();
        let mut slot = Slot { id, kind: secret.kind(), label, params, wrap: Vec::new() };
        let key = slot.wrapping_key(secret)?;
        slot.wrap = seal(&key, &context::slot(volume, &slot.head()), root.expose());
        Ok(slot)
    }

    /// Unwraps the root key. `Ok(None)`: this secret does not open this slot. The parameters are
    /// checked before the derivation runs.
    pub fn open(&self, volume: VolumeId, secret: &Secret) -> Result<Option<RootKey>, KeyringError> {
        if self.kind != secret.kind() {
            return Ok(None);
        }
        let key = self.wrapping_key(secret)?;
        match open(&key, &context::slot(volume, &self.head()), &self.wrap).map(Zeroizing::new) {
            Ok(root) => match root[..].try_into() {
                Ok(bytes) => Ok(Some(RootKey::from_bytes(bytes))),
                Err(_) => Err(KeyringError::Damaged("a slot holds no root key")),
            },
            Err(OpenError::Commitment) => Ok(None),
            Err(_) => Err(KeyringError::Damaged("the wrapped key of a slot is broken")),
        }
    }

    /// The costs a passphrase slot was made with.
    pub fn kdf(&self) -> Result<Option<KdfParams>, KeyringError> {
        match self.kind {
            SlotKind::Passphrase => Ok(Some(self.passphrase_params()?.1)),
            _ => Ok(None),
        }
    }

    /// Everything before the wrap, which the wrap's context binds: id, kind, label, parameters.
    pub fn head(&self) -> Vec<u8> {
        let mut out = self.id.to_be_bytes().to_vec();
        out.push(self.kind.to_byte());
        out.push(u8::try_from(self.label.len()).expect("labels are at most LABEL_MAX bytes"));
        out.extend_from_slice(self.label.as_bytes());
        let params_len = u16::try_from(self.params.len()).expect("parameters are at most 4 KiB");
        out.extend_from_slice(&params_len.to_be_bytes());
        out.extend_from_slice(&self.params);
        out
    }

    fn wrapping_key(&self, secret: &Secret) -> Result<InputKey, KeyringError> {
        let mut key = Zeroizing::new([0u8; KEY]);
        match secret {
            Secret::Passphrase(passphrase) => {
                let (salt, kdf) = self.passphrase_params()?;
                argon2id(passphrase, salt, self.id, kdf, &mut key)?;
            }
            Secret::KeyFile(content) => {
                if self.params.len() != SLOT_SALT {
                    return Err(KeyringError::Damaged("the salt of a key file slot is not there"));
                }
                Hkdf::<Sha512>::new(Some(&self.params), content)
                    .expand(KEY_FILE_INFO, &mut key[..])
                    .expect("HKDF-SHA512 gives 32 bytes");
            }
        }
        Ok(InputKey::from_bytes(&key))
    }

    fn passphrase_params(&self) -> Result<(&[u8], KdfParams), KeyringError> {
        let params = &self.params;
        match params.first() {
            Some(&KDF_ARGON2ID) if params.len() == PASSPHRASE_PARAMS => {}
            Some(&KDF_ARGON2ID) | None => {
                return Err(KeyringError::Damaged("the parameters of a passphrase slot are cut"));
            }
            Some(&kdf) => return Err(KeyringError::Kdf { slot: self.id, kdf }),
        }
        let (salt, numbers) = params[1..].split_at(SLOT_SALT);
        let number = |at: usize| {
            u32::from_be_bytes(numbers[at..at + 4].try_into().expect("four bytes were taken"))
        };
        let kdf = KdfParams { memory_kib: number(0), passes: number(4), lanes: number(8) };
        Ok((salt, kdf))
    }
}

fn passphrase_params(salt: &[u8; SLOT_SALT], kdf: KdfParams) -> Vec<u8> {
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
