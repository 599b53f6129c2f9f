//! Why a keyring does not do what was asked, and what a person can do about it.

use super::kept::KeptError;
use super::slots::{KdfParams, SlotKind};
use crate::base::VolumeId;

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
    #[error("{}", version_sentence(*.0))]
    Version(u8),
    /// The volume uses what a reader must know, and this sealfs does not.
    #[error("the volume uses features that this sealfs does not know (incompatible {0:#x})")]
    Features(u64),
    /// The volume uses what a writer must know, and this sealfs does not.
    #[error(
        "the volume uses features that this sealfs does not know (read-only compatible {0:#x}): it \
         can be read but not written"
    )]
    ReadOnlyFeatures(u64),
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
    /// Refused before any of the derivations ran.
    #[error(
        "the passphrase slots of the keyring ask for key derivations that would fill {gib} GiB of \
         memory one after the other, which nobody makes"
    )]
    KdfTotal {
        /// Memory times passes of all of them.
        gib: u64,
    },
    /// What a KMS or age slot stores cannot be used, or not for a slot.
    #[error("slot {slot}: {why}")]
    Kept {
        /// The slot's number.
        slot: u32,
        /// What is wrong with it.
        why: KeptError,
    },
    /// Somebody else has just taken the number that a new slot was made for.
    #[error("another slot {0} was added meanwhile")]
    SlotTaken(u32),
    /// It was the last way in for who has neither KMS nor a token.
    #[error("slot {0} is the last one that opens without AWS KMS and without hardware")]
    LastOwnSlot(u32),
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
    /// The keyring is whole, and no recovery key slot opens.
    #[error("wrong recovery key")]
    WrongRecoveryKey,
    /// Nothing to try the secret on.
    #[error("the keyring has no {wanted} slot, only: {have}")]
    NoSuchKind {
        /// The kind of the secret given.
        wanted: SlotKind,
        /// The kinds there are, for people.
        have: String,
    },
    /// The secret fits, and what it opens, or the MAC, or what is kept of earlier epochs does not.
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
    /// [`OLD_EPOCHS_MAX`](super::OLD_EPOCHS_MAX) are kept, and none can go.
    #[error("the keyring is full: it keeps the keys of 1024 earlier epochs")]
    TooManyEpochs,
    /// The root of this epoch is not there, or is the current one.
    #[error("the keyring has no earlier key of epoch {0}")]
    NoSuchEpoch(u32),
    /// No slot has this number.
    #[error("the keyring has no slot {0}")]
    NoSuchSlot(u32),
    /// No slot, or more than one, is called this.
    #[error("the keyring has no slot {0}, or more than one of that name")]
    NoSuchLabel(String),
    /// Nobody could open the volume afterwards.
    #[error("slot {0} is the last one that opens this volume")]
    LastSlot(u32),
    /// Unlocked before the keyring was changed.
    #[error("these keys are of epoch {keys}, the keyring is of epoch {keyring}")]
    OtherEpoch {
        /// The epoch of the keys given.
        keys: u32,
        /// The epoch of the keyring.
        keyring: u32,
    },
    /// Keys of another volume.
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
            KeyringError::Damaged(_) | KeyringError::Altered | KeyringError::Kept { .. } => {
                "restore the object `keyring` from a backup or an older version of it in the bucket"
            }
            KeyringError::Version(1) => {
                "mount it with the sealfs that made it, and copy the files into a new volume"
            }
            KeyringError::Version(_)
            | KeyringError::Suite(_)
            | KeyringError::Features(_)
            | KeyringError::Kdf { .. } => "use the version of sealfs that wrote it, or a newer one",
            KeyringError::ReadOnlyFeatures(_) => {
                "use a newer sealfs, or look at it: sealfs mount --read-only"
            }
            KeyringError::WrongPassphrase => "check the keyboard layout and a trailing space",
            KeyringError::WrongKeyFile => "check that the file is the one given to sealfs init",
            KeyringError::NoSuchKind { .. } => {
                "use --passphrase-file, --key-file, --recovery-file, --kms or --age-identity accordingly"
            }
            KeyringError::WrongRecoveryKey => "it is of another volume, or its slot was removed",
            KeyringError::KeyFileLength(_) => {
                "make one with: head -c 32 /dev/urandom > keyfile && chmod 600 keyfile"
            }
            KeyringError::LastOwnSlot(_) => {
                "add another one first: sealfs key add STORE --label paper --recovery; or, to do \
                 without: --force"
            }
            KeyringError::SlotTaken(_) => "somebody changed the keyring meanwhile; try again",
            KeyringError::LastSlot(_) => "add another one first: sealfs key add STORE --label TEXT",
            KeyringError::NoSuchSlot(_) | KeyringError::NoSuchLabel(_) => {
                "see which there are: sealfs key list STORE"
            }
            KeyringError::TooManyEpochs => "make a new volume: sealfs init",
            KeyringError::OtherEpoch { .. } => "somebody changed the keyring meanwhile; try again",
            KeyringError::KdfMemory { .. } => "free some memory, or use a machine that has it",
            _ => return None,
        })
    }
}

fn version_sentence(version: u8) -> String {
    match version {
        1 => "the volume has format 1, which only sealfs before its first release wrote; this \
              sealfs reads format 2"
            .into(),
        other => format!("the keyring has format version {other}; this sealfs knows version 2"),
    }
}
