//! The keyring as an object of the bucket. Created by `init` with `If-None-Match: *`; changed by
//! `change`.

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};

use crate::seal::{KEYRING_MAX, Keyring};
use crate::stack::store_options::READ_TIMEOUT;
use crate::stack::{StackError, StoreOptions, StoreStack};
use crate::store::names::KEYRING_NAME;
use crate::store::{ErrorClass, class};

/// Reads the keyring.
///
/// # Errors
/// [`StackError::NoVolume`], [`StackError::Store`], [`StackError::Keyring`],
/// [`StackError::OtherVolume`].
pub async fn load_keyring(layers: &StoreStack, store: &str) -> Result<Keyring, StackError> {
    let (keyring, _) = read_version(&*layers.retry, store).await?;
    layers.attended.goes_on();
    layers.place.check(&keyring)?;
    Ok(keyring)
}

/// [`load_keyring`], without the rest of a command.
///
/// # Errors
/// As that.
pub async fn read_keyring(store: &StoreOptions) -> Result<Keyring, StackError> {
    let layers = StoreStack::connect(store, READ_TIMEOUT, false).await?;
    load_keyring(&layers, &store.location.to_string()).await
}

/// The keyring, and which version of the object it is.
pub(crate) async fn read_version(
    from: &dyn ObjectStore,
    store: &str,
) -> Result<(Keyring, UpdateVersion), StackError> {
    let path = Path::from(KEYRING_NAME);
    let got = match from.get(&path).await {
        Ok(got) => got,
        Err(e) if class(&e) == ErrorClass::NotFound => {
            return Err(StackError::NoVolume(store.into()));
        }
        Err(e) => return Err(StackError::store(format!("reading the keyring of {store}"), e)),
    };
    if got.meta.size > KEYRING_MAX as u64 {
        let message = format!("it has {} bytes, which no keyring has", got.meta.size);
        return Err(StackError::Store { what: format!("the keyring of {store}"), message });
    }
    let version =
        UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
    let bytes = got
        .bytes()
        .await
        .map_err(|e| StackError::store(format!("reading the keyring of {store}"), e))?;
    Ok((Keyring::parse(&bytes)?, version))
}

/// Creates the keyring; fails if there is one.
pub(crate) async fn create_keyring(
    layers: &StoreStack,
    store: &str,
    keyring: &Keyring,
) -> Result<(), StackError> {
    let path = Path::from(KEYRING_NAME);
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match layers.retry.put_opts(&path, keyring.to_bytes().into(), options).await {
        Ok(_) => Ok(()),
        Err(e) if class(&e) == ErrorClass::AlreadyExists => {
            Err(StackError::VolumeThere(store.into()))
        }
        Err(e) => Err(StackError::store(format!("creating the keyring of {store}"), e)),
    }
}
