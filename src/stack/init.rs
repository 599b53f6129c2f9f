//! `init`: a new volume on an empty prefix.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::config::{self, VolumeConfig};
use super::doctor::{Finding, Level, secure_bucket};
use super::keys::object::create_keyring;
use super::opening::neighbours::refuse_taken;
use super::options::OPEN_TIMEOUT;
use super::running::canary::{probe_store, try_class};
use super::{InitOptions, StackError, StackErrorKind, StoreOptions, StoreStack};
use crate::base::{Clock, SystemClock, VolumeId};
use crate::fs::Fs;
use crate::seal::{Keyring, RootKey};
use crate::store::kv::{Kv, KvOptions};
use crate::store::names::{CONFIG_NAME, KEYRING_NAME, META_PREFIX, PROBE_PREFIX, is_below};
use crate::store::{ErrorClass, class};

const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How long what an `init` that was stopped has made may take to be deleted.
const UNDO_MAX: Duration = Duration::from_secs(8);

/// Creates a volume. The prefix must be empty and the server must honour conditional writes.
/// The keyring is written last: a volume whose `init` was interrupted does not exist.
///
/// # Errors
/// [`StackError::NotEmpty`], [`StackError::VolumeThere`], [`StackError::Nested`],
/// [`StackError::Unsuitable`], [`StackError::Store`];
/// [`StackError::Stopped`]: what it had made is deleted again, as far as the store lets it.
pub async fn init(options: InitOptions) -> Result<VolumeId, StackError> {
    let name = options.store.location.to_string();
    let attended = options.store.attended.clone();
    let empty = async {
        let layers = StoreStack::connect(&options.store, READ_TIMEOUT, true).await?;
        refuse_taken(&layers, &options.store).await?;
        Ok::<_, StackError>(layers)
    };
    let layers = tokio::select! {
        empty = empty => empty?,
        () = attended.stopped() => return Err(StackError::Stopped),
    };
    attended.goes_on();
    tokio::select! {
        made = fill(&layers, &name, &options) => made,
        () = attended.stopped() => {
            let undone = tokio::time::timeout(UNDO_MAX, empty_again(&layers)).await;
            if !matches!(undone, Ok(Ok(()))) {
                log::warn!("what was made of the volume at {name} could not be deleted again");
            }
            Err(StackError::Stopped)
        }
    }
}

/// Deletes what an [`init`] has put under its empty prefix, unless somebody else has made a volume
/// there meanwhile.
async fn empty_again(layers: &StoreStack) -> object_store::Result<()> {
    let keyring = Path::from(KEYRING_NAME);
    match layers.retry.head(&keyring).await {
        Err(e) if class(&e) == ErrorClass::NotFound => {}
        Ok(_) => return Ok(()),
        Err(e) => return Err(e),
    }
    let found: Vec<_> = layers.retry.list(None).try_collect().await?;
    for meta in found {
        let name = meta.location.as_ref();
        if name == CONFIG_NAME || [META_PREFIX, PROBE_PREFIX].iter().any(|p| is_below(name, p)) {
            layers.retry.delete(&meta.location).await?;
        }
    }
    Ok(())
}

/// [`init`], once the prefix is known to be empty.
async fn fill(
    layers: &StoreStack,
    name: &str,
    options: &InitOptions,
) -> Result<VolumeId, StackError> {
    probe_store(layers).await?;
    try_class(layers, &options.storage_class).await?;
    let (secret, label, now) = (&options.secret, &options.label, SystemClock.now());
    let now_secs = u64::try_from(now.secs).unwrap_or(0);
    let (keyring, keys) = Keyring::create(RootKey::random(), secret, label, options.kdf, now_secs)?;
    let sealed = layers.sealed(&keys)?;
    let store: Arc<dyn ObjectStore> = sealed;
    let mode = options.store.sse.mode.clone().unwrap_or_default();
    let tags = options.store.sse.tags.clone().unwrap_or_default();
    let mut config = VolumeConfig::new(&mode, tags);
    config.compress = options.compress;
    config.storage_class = options.storage_class.clone();
    config::replace(&*store, &config::Loaded::default(), &config).await?;
    let kv = Kv::open(store, KvOptions::default(), OPEN_TIMEOUT).await?;
    let (uid, gid) = options.owner;
    kv.commit(Fs::format_rows(now, uid, gid)).await?;
    kv.close(true).await?;
    create_keyring(layers, name, &keyring).await?;
    Ok(keys.volume_id())
}

/// Creates the bucket of a store, and gives it default encryption, public access block, a policy
/// against plain http and, if asked, versioning. Returns the settings that this server did not
/// take.
///
/// # Errors
/// [`StackError::Store`] if the bucket cannot be created (or is there already).
pub async fn create_bucket(
    store: &StoreOptions,
    versioning: bool,
) -> Result<Vec<Finding>, StackError> {
    let layers = StoreStack::connect(store, READ_TIMEOUT, false).await?;
    let Some(s3) = &layers.s3 else {
        return Err(StackError::Encryption {
            kind: StackErrorKind::Unsuitable,
            message: format!("{} is no bucket that could be created", store.location),
            hint: "drop --create-bucket".into(),
        });
    };
    let created = s3.create_bucket().await;
    layers.attended.goes_on();
    created
        .map_err(|e| StackError::store(format!("creating the bucket of {}", store.location), e))?;
    let mut findings = secure_bucket(s3, &s3.sse_mode(), versioning).await;
    findings.retain(|finding| finding.level != Level::Ok);
    Ok(findings)
}
