//! Changing the keyring in the bucket: what `sealfs key` does, beside a mount or without one.
//!
//! A change is read, made and written under `If-Match`; whoever lost the race makes his change
//! again, on the keyring of the one who won, so that neither's is lost.

use std::path::PathBuf;

use object_store::path::Path;
use object_store::{ObjectStore, PutMode, UpdateVersion};

use super::object::read_version;
use crate::seal::{Keyring, KeyringError, VolumeKeys};
use crate::stack::records::config;
use crate::stack::records::last_use::note_use;
use crate::stack::records::state::{Remembered, StateFile};
use crate::stack::store_options::READ_TIMEOUT;
use crate::stack::{Key, StackError, StoreOptions, StoreStack, Unlocked, unlock};
use crate::store::names::KEYRING_NAME;
use crate::store::{ErrorClass, Sealed, class};

/// How often a change is made again because another came in between.
const TRIES_MAX: u32 = 8;

/// Which keyring, and what opens it.
#[derive(Debug)]
pub struct KeyOptions {
    /// The store.
    pub store: StoreOptions,
    /// Opens the keyring.
    pub key: Key,
    /// Where this machine remembers what it has seen of the volume.
    pub state_dir: PathBuf,
}

/// A change that was made.
#[derive(Debug)]
pub struct Changed<T> {
    /// What the change gave.
    pub made: T,
    /// The keyring as it is now.
    pub keyring: Keyring,
    /// The keys as they are now.
    pub keys: VolumeKeys,
    /// What did not go as it should though the keyring was changed, for people.
    pub notes: Vec<String>,
}

/// Opens the keyring and compares it with what this machine remembers; changes nothing.
///
/// # Errors
/// As [`unlock`]; [`StackError::KeyringRollback`], [`StackError::KeyringForeign`].
pub async fn open_keyring(options: &KeyOptions) -> Result<Unlocked, StackError> {
    let layers =
        StoreStack::connect(&options.store.seen_in(&options.state_dir), READ_TIMEOUT, false)
            .await?;
    Ok(open(&layers, options).await?.0)
}

async fn open(
    layers: &StoreStack,
    options: &KeyOptions,
) -> Result<(Unlocked, UpdateVersion), StackError> {
    match open_once(layers, options).await {
        // A mount may have followed a change that came in while the key was derived: only what
        // stays so is a rollback.
        Err(StackError::KeyringRollback { .. }) => open_once(layers, options).await,
        outcome => outcome,
    }
}

async fn open_once(
    layers: &StoreStack,
    options: &KeyOptions,
) -> Result<(Unlocked, UpdateVersion), StackError> {
    let name = options.store.location.to_string();
    let (keyring, version) = read_version(&*layers.retry, &name).await?;
    layers.place.check(&keyring)?;
    layers.attended.waits_for("the key to be derived", None);
    let unlocked = unlock(keyring, &options.key).await;
    layers.attended.goes_on();
    let unlocked = unlocked?;
    let state_dir = options.state_dir.join(unlocked.keys.volume_id().to_string());
    let state = StateFile::<Remembered>::new(&state_dir, unlocked.keys.clone()).load()?;
    state.unwrap_or_default().check_keyring(unlocked.keyring.revision())?;
    note_use(&options.state_dir, &options.store, &unlocked.keyring, unlocked.slot);
    Ok((unlocked, version))
}

/// Changes the keyring; `change` gives what it made and the keys of the keyring after it, and may
/// be called again on a keyring that somebody else has changed meanwhile.
///
/// # Errors
/// As [`open_keyring`]; what `change` says; [`StackError::Store`], after which the change may have
/// been made or not.
pub async fn change_keyring<T>(
    options: &KeyOptions,
    change: impl Fn(&mut Keyring, &VolumeKeys) -> Result<(T, VolumeKeys), KeyringError>,
) -> Result<Changed<T>, StackError> {
    let layers =
        StoreStack::connect(&options.store.seen_in(&options.state_dir), READ_TIMEOUT, false)
            .await?;
    let what = || format!("writing the keyring of {}", options.store.location);
    let mut lost = None;
    for _ in 0..TRIES_MAX {
        let (unlocked, version) = open(&layers, options).await?;
        let mut keyring = unlocked.keyring;
        let (made, keys) = change(&mut keyring, &unlocked.keys)?;
        let bytes = keyring.to_bytes();
        let mode = PutMode::Update(version);
        let path = Path::from(KEYRING_NAME);
        match layers.retry.put_opts(&path, bytes.clone().into(), mode.into()).await {
            Ok(_) => {}
            Err(e) if class(&e) == ErrorClass::Precondition => {
                // Ours it may be all the same: its answer was lost, and it was sent again.
                let name = options.store.location.to_string();
                if read_version(&*layers.retry, &name).await?.0 != keyring {
                    lost = Some(e);
                    continue;
                }
            }
            Err(e) => return Err(StackError::store(what(), e)),
        }
        let mut notes = Vec::new();
        if keys.epoch() > unlocked.keys.epoch()
            && let Err(e) = reseal_config(&layers, &keys).await
        {
            notes.push(format!("mounts elsewhere follow when they look at the keyring: {e}"));
        }
        return Ok(Changed { made, keyring, keys, notes });
    }
    Err(match lost {
        Some(e) => StackError::store(what(), e),
        None => StackError::Repair("the keyring is changed again and again".into()),
    })
}

/// Seals the configuration in the new epoch: a mount that looks at it finds that it does not open,
/// and reads the keyring again.
async fn reseal_config(layers: &StoreStack, keys: &VolumeKeys) -> Result<(), StackError> {
    let sealed = Sealed::new(layers.retry.clone(), keys.clone());
    let was = config::load(&sealed).await?;
    match was.config.revision {
        0 => Ok(()), // there is none
        _ => config::replace(&sealed, &was, &was.config).await,
    }
}
