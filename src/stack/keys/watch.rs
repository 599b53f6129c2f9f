//! How a running mount follows the keyring: when somebody rotates the keys, it goes on in the new
//! epoch by itself.
//!
//! It looks when it is told to (`sealfs key`, on this machine), now and then, and whenever an object
//! does not open: that may have been sealed in an epoch that it does not have yet. What is not
//! mounted (`fsck`, `sse audit`) follows the keyring in the same way.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use object_store::path::Path;
use parking_lot::Mutex;

use super::object::read_version;
use crate::seal::{KeyringError, Seed, VolumeKeys};
use crate::stack::{StackError, Unlocked};
use crate::store::{Renew, Retry, Sealed};

/// The keyring of a mount, with what opened it.
pub(crate) struct KeyWatch {
    store: Arc<Retry>,
    name: String,
    keys: VolumeKeys,
    slot: u32,
    seed: Seed,
    seen: Mutex<Seen>,
    /// One look at a time; when the last one began.
    looking: tokio::sync::Mutex<Option<Instant>>,
}

struct Seen {
    revision: u64,
    note: Option<String>,
    /// The slot of this mount is gone: newer keys are out of its reach.
    removed: bool,
}

impl KeyWatch {
    /// Of the volume `name` that was just opened.
    pub(crate) fn new(store: Arc<Retry>, name: &str, unlocked: Unlocked) -> KeyWatch {
        let Unlocked { keyring, keys, slot, seed } = unlocked;
        let seen = Mutex::new(Seen { revision: keyring.revision(), note: None, removed: false });
        let looking = tokio::sync::Mutex::new(None);
        KeyWatch { store, name: name.into(), keys, slot, seed, seen, looking }
    }

    /// A sealed layer over `store` that follows the keyring of the volume `name`, just opened: for
    /// what is looked at while somebody may rotate its keys.
    pub(crate) fn sealed(store: &Arc<Retry>, name: &str, unlocked: &Unlocked) -> Sealed {
        let sealed = Sealed::new(store.clone(), unlocked.keys.clone());
        sealed.renew_by(Arc::new(KeyWatch::new(store.clone(), name, unlocked.clone())));
        sealed
    }

    /// The revision of the keyring that is in use.
    pub(crate) fn revision(&self) -> u64 {
        self.seen.lock().revision
    }

    /// The epoch that new objects are sealed in.
    pub(crate) fn epoch(&self) -> u32 {
        self.keys.epoch()
    }

    /// What a person should know, for `status`.
    pub(crate) fn note(&self) -> Option<String> {
        self.seen.lock().note.clone()
    }

    /// Reads the keyring again and goes on with its keys.
    pub(crate) async fn look(&self) {
        let mut looked = self.looking.lock().await;
        *looked = Some(Instant::now());
        self.look_now().await;
    }

    async fn look_now(&self) {
        let keyring = match read_version(&*self.store, &self.name).await {
            Ok((keyring, _)) => keyring,
            Err(e) => return log::warn!("{e}"),
        };
        let before = self.revision();
        if keyring.revision() == before {
            // What was wrong with the object, if anything, was put right.
            let mut seen = self.seen.lock();
            (seen.note, seen.removed) = (None, false);
            return;
        }
        let mut removed = false;
        let note = if keyring.revision() < before {
            let (found, seen) = (keyring.revision(), before);
            StackError::KeyringRollback { what: "revision", found, seen }.to_string()
        } else {
            match keyring.open(self.slot, &self.seed) {
                Ok(keys) if self.keys.take_up(&keys) => {
                    let epoch = keys.epoch();
                    log::info!("the keyring was changed: epoch {epoch} from now on");
                    let revision = keyring.revision();
                    *self.seen.lock() = Seen { revision, note: None, removed };
                    return;
                }
                Ok(_) => "the keyring does not continue the one that this mount has: it is not \
                          followed"
                    .into(),
                Err(KeyringError::NoSuchSlot(_)) => {
                    removed = true;
                    "the key that this mount was opened with was removed from the volume: unmount, \
                     and mount it with another; until then it writes in the old epoch"
                        .into()
                }
                Err(e) => format!("the keyring was changed and cannot be followed: {e}"),
            }
        };
        let mut seen = self.seen.lock();
        seen.removed = removed;
        if seen.note.as_ref() != Some(&note) {
            log::error!("{note}");
            seen.note = Some(note);
        }
    }
}

#[async_trait]
impl Renew for KeyWatch {
    /// One small request, which all share who found something that does not open before it began:
    /// a look that began earlier may have missed the change that this object shows.
    async fn renew(&self, _object: &Path) -> bool {
        let found = Instant::now();
        let mut looked = self.looking.lock().await;
        if looked.is_none_or(|began| began < found) {
            *looked = Some(Instant::now());
            self.look_now().await;
        }
        self.seen.lock().removed
    }
}
