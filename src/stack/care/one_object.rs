//! One object of a volume by its name: its contents, or the key that opens it and no other. Reads
//! only; used by `sealfs object` and `sealfs key export-object`.

use std::sync::Arc;

use object_store::path::Path;
use zeroize::Zeroizing;

use crate::base::{VolumeId, hex, one_line};
use crate::commit::last_commit;
use crate::seal::VolumeKeys;
use crate::stack::keys::watch::KeyWatch;
use crate::stack::records::config;
use crate::stack::records::encryption::VolumeSse;
use crate::stack::store_options::READ_TIMEOUT;
use crate::stack::{KeyOptions, StackError, StackErrorKind, StoreStack, open_keyring};
use crate::store::kv::{Kv, KvOptions};
use crate::store::names::KEYRING_NAME;
use crate::store::{ErrorClass, Sealed, class};

/// The key of one object, and where the object belongs.
pub struct ObjectKey {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that the object is sealed in.
    pub epoch: u32,
    /// The object's full name below the STORE prefix.
    pub name: String,
    /// The key, in hex.
    pub key: Zeroizing<String>,
}

/// A volume opened for one object.
struct One {
    sealed: Sealed,
    keys: VolumeKeys,
    name: Path,
    _sse: VolumeSse,
}

impl One {
    async fn open(options: &KeyOptions, name: &str) -> Result<One, StackError> {
        let name = checked(options, name)?;
        let (sealed, keys, sse) = opened(options).await?;
        Ok(One { sealed, keys, name, _sse: sse })
    }

    fn failed(&self, e: object_store::Error) -> StackError {
        let name = one_line(self.name.as_ref());
        match class(&e) {
            ErrorClass::NotFound => refused(
                StackErrorKind::Unsuitable,
                format!("there is no object {name}"),
                "names are those below the STORE prefix, as any S3 client lists them",
            ),
            _ => StackError::store(format!("reading object {name}"), e),
        }
    }
}

/// The volume, through a sealed layer that knows its encryption and follows its keyring.
async fn opened(options: &KeyOptions) -> Result<(Sealed, VolumeKeys, VolumeSse), StackError> {
    let unlocked = open_keyring(options).await?;
    let layers = StoreStack::connect(&options.store, READ_TIMEOUT, false).await?;
    let store = options.store.location.to_string();
    let sealed = KeyWatch::sealed(&layers.retry, &store, &unlocked);
    let config = config::load(&sealed).await?.config;
    let sse = VolumeSse::begin(layers.s3.clone(), options.store.sse.clone(), config)?;
    layers.attended.goes_on();
    Ok((sealed, unlocked.keys, sse))
}

fn refused(kind: StackErrorKind, message: String, hint: &str) -> StackError {
    StackError::Encryption { kind, message, hint: hint.into() }
}

/// The name of an object that has its own key. A whole STORE/NAME is taken as well.
fn checked(options: &KeyOptions, name: &str) -> Result<Path, StackError> {
    let store = options.store.location.to_string();
    let below = name.strip_prefix(&store).map_or(name, |rest| rest.trim_start_matches('/'));
    let usage = |message: String, hint: &str| refused(StackErrorKind::Other, message, hint);
    let path = Path::parse(below)
        .map_err(|e| usage(format!("{}: {e}", one_line(name)), "names look like seg/ab/ab12…"))?;
    match path.as_ref() {
        "" => Err(usage("no object is named".into(), "names look like seg/ab/ab12…")),
        KEYRING_NAME => Err(usage(
            "the keyring is no sealed object: its slots are".into(),
            "to show it: sealfs key list STORE",
        )),
        log if log.starts_with("meta/wal/") => Err(usage(
            format!(
                "{log} is of the metadata's log, of which each object opens only behind the one before"
            ),
            "what it holds is in the tables below meta/compacted/ soon, and in the volume now",
        )),
        _ => Ok(path),
    }
}

/// The contents of an object, authenticated to the last byte.
///
/// # Errors
/// As [`open_keyring`]; no such object; [`StackError::Damaged`].
pub async fn read_object(
    options: &KeyOptions,
    name: &str,
) -> Result<Zeroizing<Vec<u8>>, StackError> {
    let one = One::open(options, name).await?;
    let (_, plain) = one.sealed.open_whole(&one.name).await.map_err(|e| one.failed(e))?;
    Ok(plain)
}

/// The key of one object, which opens it and no other, and could seal another in its place.
///
/// # Errors
/// As [`read_object`].
pub async fn object_key(options: &KeyOptions, name: &str) -> Result<ObjectKey, StackError> {
    let one = One::open(options, name).await?;
    let found = one.sealed.epoch_of(&one.name).await.map_err(|e| one.failed(e))?;
    let Some((epoch, _)) = found else {
        let gone = StackErrorKind::Unsuitable;
        return Err(refused(gone, format!("there is no object {}", one.name), "list them again"));
    };
    let key = one.keys.object_key(epoch, one.name.as_ref());
    let key = key.expect("its header was opened with the root of that epoch");
    Ok(ObjectKey {
        volume: one.keys.volume_id(),
        epoch,
        name: one.name.to_string(),
        key: Zeroizing::new(hex(key.expose())),
    })
}

/// The number of the last commit in the bucket, for what a person notes of it.
///
/// # Errors
/// As [`open_keyring`]; the metadata cannot be read.
pub async fn commit_now(options: &KeyOptions) -> Result<u64, StackError> {
    let (sealed, _, _sse) = opened(options).await?;
    let kv = Kv::open_reader(Arc::new(sealed), KvOptions::default(), READ_TIMEOUT * 2).await?;
    let row = last_commit(&kv).await;
    let _ = kv.close(false).await; // a reader: there is nothing to lose
    Ok(row?.map_or(0, |row| row.sequence))
}
