//! The one door into a volume: its keyring, opened by whatever the caller has.
//!
//! Used by mount, fsck, recover, audit, migrate and doctor alike. What opens a keyring is an open
//! interface, [`KeySource`], and asynchronous, since a key service or a token takes its time.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::seal::{Keyring, KeyringError, Secret, Seed, VolumeKeys};
use crate::stack::{StackError, StoreStack, load_keyring};

/// Something that opens slots of a keyring.
#[async_trait]
pub trait KeySource: fmt::Debug + Send + Sync {
    /// The number of a slot that it opens, and that slot's seed.
    ///
    /// # Errors
    /// It opens none of them, or could not find out; for people.
    async fn seed(&self, keyring: &Keyring) -> Result<(u32, Seed), StackError>;
}

#[async_trait]
impl KeySource for Secret {
    /// Passphrases take memory and time, so elsewhere than on a thread that serves others.
    async fn seed(&self, keyring: &Keyring) -> Result<(u32, Seed), StackError> {
        let (secret, keyring) = (self.duplicate(), keyring.clone());
        let found = tokio::task::spawn_blocking(move || keyring.find(&secret)).await;
        Ok(found
            .map_err(|e| StackError::Repair(format!("the key derivation ended early: {e}")))??)
    }
}

/// The seed of a slot that was opened before, while somebody could still be asked.
#[derive(Debug)]
pub struct Found {
    /// The slot.
    pub slot: u32,
    /// Its seed.
    pub seed: Seed,
}

#[async_trait]
impl KeySource for Found {
    async fn seed(&self, keyring: &Keyring) -> Result<(u32, Seed), StackError> {
        match keyring.fits(self.slot, &self.seed) {
            true => Ok((self.slot, self.seed.clone())),
            false => Err(KeyringError::NoSuchSlot(self.slot).into()), // removed meanwhile
        }
    }
}

/// What unlocks a volume. A clone is one reference count.
#[derive(Clone, Debug)]
pub struct Key(Arc<dyn KeySource>);

impl<S: KeySource + 'static> From<S> for Key {
    fn from(source: S) -> Key {
        Key(Arc::new(source))
    }
}

/// A volume's keyring and what it opened to.
#[derive(Clone, Debug)]
pub struct Unlocked {
    /// As it was read.
    pub keyring: Keyring,
    /// The volume's keys.
    pub keys: VolumeKeys,
    /// The slot that was opened.
    pub slot: u32,
    /// What opened it: opens the keyring again when it was changed.
    pub seed: Seed,
}

/// Opens a keyring.
///
/// # Errors
/// What [`KeySource::seed`] says; [`StackError::Keyring`] if the keyring is not what it was.
pub async fn unlock(keyring: Keyring, key: &Key) -> Result<Unlocked, StackError> {
    let (slot, seed) = key.0.seed(&keyring).await?;
    let keys = keyring.open(slot, &seed)?;
    Ok(Unlocked { keyring, keys, slot, seed })
}

/// Reads and opens the keyring of `store`.
///
/// # Errors
/// [`StackError::NoVolume`], [`StackError::Store`], and as [`unlock`].
pub async fn unlock_store(
    layers: &StoreStack,
    store: &str,
    key: &Key,
) -> Result<Unlocked, StackError> {
    let keyring = load_keyring(layers, store).await?;
    layers.attended.waits_for("the key to be derived", None);
    let unlocked = unlock(keyring, key).await;
    layers.attended.goes_on();
    unlocked
}
