//! Sealing: the one authenticated format of everything sealfs stores, and the keys for it.
//!
//! Owns the sealed message (Cobblestone-256, FORMAT.md "Sealed message"), the key hierarchy,
//! the keyring's bytes, and the memory secrets live in. Does no file or network I/O, never logs
//! a key, and is the only module that names `aes_gcm`, `aws_lc_rs` or `x_wing`. Called by `store/`
//! (objects), `journal/` (records) and `stack/` (keyring, local state).

mod cipher;
mod cobblestone;
mod context;
mod derive;
mod kem;
mod kept;
mod keyring;
mod keyring_bytes;
mod keyring_error;
mod keys;
pub mod offsets;
mod recovery;
mod secret;
mod slots;

pub use cipher::Backend;
pub use cobblestone::{
    OpenError, Opener, Sealer, open, open_with, seal, seal_into, seal_to, seal_with, seal_with_salt,
};
pub use context::{CONTEXT_MAGIC, FORMAT_VERSION};
pub use derive::{InputKey, KEY, fill_random};
pub use kem::Seed;
pub use kept::{
    AGE_FILE_MAX, AGE_RECIPIENTS_MAX, AgeSlot, KMS_CIPHERTEXT_MAX, Kept, KeptError, KmsSlot,
    plugin_of,
};
pub use keyring::{Features, Keyring, OLD_EPOCHS_MAX, SLOTS_MAX, SlotInfo};
pub use keyring_bytes::KEYRING_MAX;
pub use keyring_error::KeyringError;
pub use keys::{FINGERPRINT, FIRST_EPOCH, HistoryKey, Place, RootKey, VolumeKeys};
pub use offsets::{CHUNK_CIPHER, CHUNK_PLAIN, HEADER, TAG};
pub use recovery::{RecoveryError, RecoveryKey};
pub use secret::{Locked, forbid_dumps};
pub use slots::{KEY_FILE_MAX, KEY_FILE_MIN, KdfParams, LABEL_MAX, Secret, SlotKind};

/// Bytes of the salt that opens every sealed message.
pub const SALT: usize = 24;
/// Bytes of the key commitment that follows the salt.
pub const COMMITMENT: usize = 32;
