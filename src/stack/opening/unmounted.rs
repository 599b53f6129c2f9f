//! A volume opened to be looked at as a whole, without mounting it: by `sse` and `doctor`.

use std::sync::Arc;

use object_store::ObjectStore;

use crate::seal::VolumeKeys;
use crate::stack::keys::watch::KeyWatch;
use crate::stack::records::config::{self, Loaded};
use crate::stack::store_options::READ_TIMEOUT;
use crate::stack::{Key, StackError, StoreOptions, StoreStack, Unlocked, unlock_store};
use crate::store::s3::S3Store;
use crate::store::{ErrorClass, Sealed, class};

/// The parts of a volume that is not mounted here.
pub struct Opened {
    /// The store, unsealed.
    pub layers: StoreStack,
    /// Keyring and keys, if something to open it with was given.
    pub unlocked: Option<Unlocked>,
    /// Its configuration; the default one without keys.
    pub loaded: Loaded,
    /// See [`Opened::sealed`].
    sealed: Option<Sealed>,
}

impl Opened {
    /// Connects, and with a key opens keyring and configuration.
    ///
    /// # Errors
    /// See [`StackError`]; nothing was changed.
    pub async fn open(store: &StoreOptions, key: Option<&Key>) -> Result<Opened, StackError> {
        let layers = StoreStack::connect(store, READ_TIMEOUT, false).await?;
        let Some(key) = key else {
            let (unlocked, sealed) = (None, None);
            return Ok(Opened { layers, unlocked, loaded: Loaded::default(), sealed });
        };
        let name = store.location.to_string();
        let unlocked = unlock_store(&layers, &name, key).await?;
        let sealed = KeyWatch::sealed(&layers.retry, &name, &unlocked);
        let loaded = config::load(&sealed).await?;
        if let Some(s3) = &layers.s3 {
            s3.set_storage_class(&loaded.config.storage_class);
        }
        Ok(Opened { layers, unlocked: Some(unlocked), loaded, sealed: Some(sealed) })
    }

    /// The volume's keys, if something to open it with was given.
    pub fn keys(&self) -> Option<&VolumeKeys> {
        self.unlocked.as_ref().map(|unlocked| &unlocked.keys)
    }

    /// The sealed layer over the store, uncached, which follows the keyring; `None` without keys.
    pub fn sealed(&self) -> Option<Arc<dyn ObjectStore>> {
        self.sealed.clone().map(|sealed| Arc::new(sealed) as Arc<dyn ObjectStore>)
    }

    /// The same, to ask for the epochs of objects.
    pub(crate) fn epochs(&self) -> Option<&Sealed> {
        self.sealed.as_ref()
    }

    /// The S3 adapter. Errors: the store is a directory.
    pub fn s3(&self, store: &StoreOptions) -> Result<Arc<S3Store>, StackError> {
        self.layers.s3.clone().ok_or_else(|| StackError::Encryption {
            kind: crate::stack::StackErrorKind::Unsuitable,
            message: format!("{} has no server that encrypts", store.location),
            hint: "this command is for s3://BUCKET[/PREFIX]".into(),
        })
    }
}

/// Whether an error says that an object is gone.
pub(crate) fn is_gone(e: &object_store::Error) -> bool {
    class(e) == ErrorClass::NotFound
}
