//! The keyring as an object of the bucket. Created once by `init`, with `If-None-Match: *`.

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::{Layers, StackError};
use crate::seal::{KEYRING_MAX, Keyring};
use crate::store::{ErrorClass, class};

/// Where the keyring lies below the STORE prefix.
pub const KEYRING_NAME: &str = "keyring";

/// Reads the keyring.
///
/// # Errors
/// [`StackError::NoVolume`], [`StackError::Store`], [`StackError::Keyring`].
pub async fn load_keyring(layers: &Layers, store: &str) -> Result<Keyring, StackError> {
    let path = Path::from(KEYRING_NAME);
    let got = match layers.retry.get(&path).await {
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
    let bytes = got
        .bytes()
        .await
        .map_err(|e| StackError::store(format!("reading the keyring of {store}"), e))?;
    Ok(Keyring::parse(&bytes)?)
}

/// Creates the keyring; fails if there is one.
pub(super) async fn create_keyring(
    layers: &Layers,
    store: &str,
    keyring: &Keyring,
) -> Result<(), StackError> {
    let path = Path::from(KEYRING_NAME);
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match layers.retry.put_opts(&path, keyring.to_bytes().into(), options).await {
        Ok(_) => Ok(()),
        Err(e) if class(&e) == ErrorClass::AlreadyExists => {
            Err(StackError::NotEmpty { store: store.into(), example: KEYRING_NAME.into() })
        }
        Err(e) => Err(StackError::store(format!("creating the keyring of {store}"), e)),
    }
}
