//! Whether a prefix is free for a new volume: nothing is in it, and no volume lies above.
//!
//! A volume lists and audits all that is below its prefix, so of two that lie in one another the
//! outer one would be broken for ever. Called by `init`, and before a passphrase is asked for.

use std::path::{Path as FsPath, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::base::one_line;
use crate::seal::{KEYRING_MAX, Keyring, KeyringError};
use crate::stack::{StackError, StoreOptions, StoreStack};
use crate::store::names::KEYRING_NAME;
use crate::store::{ErrorClass, Location, class, shown_key};

/// Objects below the prefix among which a keyring is looked for.
const LISTED_MAX: usize = 1000;
/// How long looking above may take: the store has just answered.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Refuses a STORE that is not free, before anything is asked of a person. Changes nothing.
///
/// # Errors
/// As `init`.
pub async fn check_free(store: &StoreOptions) -> Result<(), StackError> {
    if let Location::File(dir) = &store.location
        && !dir.exists()
    {
        return refuse_below(store).await;
    }
    refuse_taken(&StoreStack::connect(store, READ_TIMEOUT, false).await?, store).await
}

/// Refuses a STORE that holds something, or lies within a volume.
pub(crate) async fn refuse_taken(
    layers: &StoreStack,
    store: &StoreOptions,
) -> Result<(), StackError> {
    let name = store.location.to_string();
    let mut listed = layers.retry.list(None).take(LISTED_MAX);
    let mut example = None;
    while let Some(found) = listed.next().await {
        let at = found.map_err(|e| StackError::store(format!("listing {name}"), e))?.location;
        let first = example.is_none();
        if first && holds_keyring(layers, &Path::from(KEYRING_NAME)).await? {
            return Err(StackError::VolumeThere(name));
        }
        // The first name of a volume comes before its keyring, and may be thousands before it.
        if let Some(other) = volume_of(layers, &at, first).await? {
            let other = below(&store.location, &other).to_string();
            return Err(StackError::Nested { store: name, lies: "holds", other });
        }
        example.get_or_insert(at);
    }
    match example {
        Some(example) => {
            Err(StackError::NotEmpty { store: name, example: one_line(&shown_key(&example)) })
        }
        None => refuse_below(store).await,
    }
}

/// The prefix of the volume that an object belongs to, if it is a keyring, or (`asking`) lies
/// beside or below one.
async fn volume_of(
    layers: &StoreStack,
    object: &Path,
    asking: bool,
) -> Result<Option<Path>, StackError> {
    let parts: Vec<_> = object.parts().collect();
    for end in (1..parts.len()).rev() {
        let prefix: Path = parts[..end].iter().cloned().collect();
        let keyring = prefix.clone().join(KEYRING_NAME);
        if (asking || keyring == *object) && holds_keyring(layers, &keyring).await? {
            return Ok(Some(prefix));
        }
    }
    Ok(None)
}

/// Whether there is a keyring of ours at `at`. What may not be read counts as none, but not what
/// only lacks the customer key of its volume.
///
/// # Errors
/// [`StackError::Store`]: the store did not answer.
async fn holds_keyring(layers: &StoreStack, at: &Path) -> Result<bool, StackError> {
    let failed = |e: object_store::Error| {
        if class(&e).is_retryable() {
            return Err(StackError::store(format!("looking whether a volume is at {at}"), e));
        }
        Ok(class(&e) == ErrorClass::Auth && e.to_string().contains("SSE-C"))
    };
    let got = match layers.retry.get(at).await {
        Ok(got) if got.meta.size > KEYRING_MAX as u64 => return Ok(false),
        Ok(got) => got,
        Err(e) => return failed(e),
    };
    match got.bytes().await {
        Ok(bytes) => Ok(!matches!(Keyring::parse(&bytes), Err(KeyringError::NotAKeyring))),
        Err(e) => failed(e),
    }
}

fn below(location: &Location, path: &Path) -> Location {
    match location {
        Location::S3 { bucket, prefix } => {
            let slash = if prefix.is_empty() { "" } else { "/" };
            Location::S3 { bucket: bucket.clone(), prefix: format!("{prefix}{slash}{path}") }
        }
        Location::File(dir) => Location::File(dir.join(path.as_ref())),
        Location::Memory => Location::Memory,
    }
}

/// Refuses a STORE within a volume. What these credentials may not read above their prefix cannot
/// be looked at: a policy for the prefix alone is a usual one.
async fn refuse_below(store: &StoreOptions) -> Result<(), StackError> {
    if store.custom.is_some() {
        return Ok(());
    }
    for location in above(&store.location) {
        let outer = StoreOptions { location, ..store.clone() };
        let name = outer.location.to_string();
        // A directory that cannot be opened holds nothing that could be listed either.
        let Ok(layers) = StoreStack::connect(&outer, READ_TIMEOUT, false).await else { continue };
        if holds_keyring(&layers, &Path::from(KEYRING_NAME)).await? {
            let store = store.location.to_string();
            return Err(StackError::Nested { store, lies: "lies within", other: name });
        }
    }
    Ok(())
}

/// Every place above a location that could be a volume, the nearest first.
fn above(location: &Location) -> Vec<Location> {
    match location {
        Location::S3 { bucket, prefix } => {
            let mut out = Vec::new();
            let mut rest = prefix.as_str();
            while !rest.is_empty() {
                rest = rest.rsplit_once('/').map_or("", |(outer, _)| outer);
                out.push(Location::S3 { bucket: bucket.clone(), prefix: rest.into() });
            }
            out
        }
        Location::File(dir) => {
            let resolved = resolve(dir);
            resolved.ancestors().skip(1).map(|dir| Location::File(dir.into())).collect()
        }
        Location::Memory => Vec::new(),
    }
}

/// The directory behind links, as far as it exists.
fn resolve(dir: &FsPath) -> PathBuf {
    for existing in dir.ancestors() {
        if let (Ok(resolved), Ok(rest)) = (existing.canonicalize(), dir.strip_prefix(existing)) {
            return resolved.join(rest);
        }
    }
    dir.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_above_is_every_prefix_up_to_the_bucket() {
        // Guards against a volume above that is not looked for, or a prefix cut in a word.
        let of = |text: &str| -> Vec<String> {
            above(&text.parse().expect("a store")).iter().map(Location::to_string).collect()
        };
        assert_eq!(
            of("s3://my-bucket/a/b2/c"),
            ["s3://my-bucket/a/b2", "s3://my-bucket/a", "s3://my-bucket"]
        );
        assert!(of("s3://my-bucket").is_empty());
        assert_eq!(of("file:///no-such/x"), ["file:///no-such", "file:///"]);
    }
}
