//! The probe: does this store keep the promises that one-writer safety rests on?
//!
//! Run at `init` and before a read-write `mount`, on the stack below the sealed layer. Leaves
//! nothing behind; an object named `probe/…` that is found later is of a probe that was killed.

use super::error::{ErrorClass, class};
use super::names::PROBE_PREFIX;
use crate::base::hex;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};
use thiserror::Error;

/// Whether an object is one that a probe made, by its name.
pub fn is_probe(location: &Path) -> bool {
    let parts: Vec<_> = location.parts().collect();
    let hex = |part: &str| part.len() == 32 && part.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(&parts[..], [first, name] if first.as_ref() == PROBE_PREFIX && hex(name.as_ref()))
}

/// Why a store cannot hold a volume. Each text says what would go wrong.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The store could not be used at all.
    #[error("cannot {what} in the store: {source}{}", hint(source))]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What the store said.
        source: object_store::Error,
    },
    /// A missing object is answered like a forbidden one.
    #[error(
        "the store answers {answer} for an object that does not exist, so a lost object could not be told from a forbidden one\nhint: grant s3:ListBucket on the bucket, then a missing object is answered 404"
    )]
    MissingIsForbidden {
        /// The answer.
        answer: String,
    },
    /// `If-None-Match: *` has no effect.
    #[error(
        "the store ignores If-None-Match: a second create of the same object succeeded, so two mounts could overwrite each other's metadata\nhint: use a server that supports conditional writes (Amazon S3, MinIO, Ceph Squid, Garage 1.1 and later)"
    )]
    CreateOverwrites,
    /// `If-Match` has no effect.
    #[error(
        "the store ignores If-Match: an update of a stale version succeeded, so two mounts could overwrite each other's metadata\nhint: use a server that supports conditional writes (Amazon S3, MinIO, Ceph Squid)"
    )]
    UpdateIgnoresVersion,
    /// A put succeeded and a read gives something else.
    #[error("the store returned other bytes than were just put; it cannot hold a volume")]
    NotReadBack,
}

fn hint(e: &object_store::Error) -> &'static str {
    match class(e) {
        _ if e.to_string().contains("\nhint: ") => "",
        ErrorClass::Auth => {
            "\nhint: check the credentials; sealfs needs s3:GetObject, PutObject, DeleteObject and ListBucket below the prefix"
        }
        ErrorClass::Transport => "\nhint: check the network and --endpoint-url",
        ErrorClass::NotFound => "\nhint: check that the bucket exists",
        _ => "",
    }
}

/// Probes `store` with one object of a random name, which it removes again.
///
/// # Errors
/// [`ProbeError`]: the first promise that is not kept. The object is removed in every case in
/// which the store allows it.
pub async fn probe(store: &dyn ObjectStore) -> Result<(), ProbeError> {
    let location = random_name()
        .map_err(|source| ProbeError::Failed { what: "draw a random name", source })?;
    let outcome = run(store, &location).await;
    match store.delete(&location).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => outcome,
        Err(e) if outcome.is_err() => {
            log::warn!("cannot remove {location}: {e}");
            outcome
        }
        Err(source) => Err(ProbeError::Failed { what: "delete an object", source }),
    }
}

/// A name below [`PROBE_PREFIX`] that no object has.
pub fn random_name() -> object_store::Result<Path> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random)
        .map_err(|e| object_store::Error::Generic { store: "probe", source: Box::new(e) })?;
    Ok(Path::from_iter([PROBE_PREFIX, &hex(&random)]))
}

async fn run(store: &dyn ObjectStore, location: &Path) -> Result<(), ProbeError> {
    let failed = |what| move |source| ProbeError::Failed { what, source };
    match store.get(location).await {
        Err(object_store::Error::NotFound { .. }) => {}
        Err(e) if class(&e) == ErrorClass::Auth => {
            // Forbidden altogether, or only for what is missing? A put tells.
            store
                .put_opts(location, "1".into(), PutMode::Create.into())
                .await
                .map_err(failed("create an object"))?;
            store.get(location).await.map_err(failed("read an object"))?;
            return Err(ProbeError::MissingIsForbidden { answer: "\"forbidden\" (403)".into() });
        }
        Err(source) => return Err(ProbeError::Failed { what: "read", source }),
        Ok(_) => return Err(ProbeError::MissingIsForbidden { answer: "with a body".into() }),
    }

    let first = store
        .put_opts(location, "1".into(), PutMode::Create.into())
        .await
        .map_err(failed("create an object"))?;
    match store.put_opts(location, "2".into(), PutMode::Create.into()).await {
        Ok(_) => return Err(ProbeError::CreateOverwrites),
        Err(e) if class(&e).is_unmet_condition() => {}
        Err(source) => return Err(ProbeError::Failed { what: "create an object twice", source }),
    }

    let update = |version: UpdateVersion, body: &'static str| {
        store.put_opts(location, body.into(), PutMode::Update(version).into())
    };
    update(first.clone().into(), "3").await.map_err(failed("update an object"))?;
    match update(first.into(), "4").await {
        Ok(_) => return Err(ProbeError::UpdateIgnoresVersion),
        Err(e) if class(&e).is_unmet_condition() => {}
        Err(source) => {
            return Err(ProbeError::Failed { what: "update a stale version of an object", source });
        }
    }

    let found = store.get(location).await.map_err(failed("read an object"))?;
    let found = found.bytes().await.map_err(failed("read an object"))?;
    if found != "3" { Err(ProbeError::NotReadBack) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::FileStore;
    use super::*;
    use futures::TryStreamExt;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn a_store_that_keeps_its_promises_passes_and_is_left_empty() {
        // Guards against a probe that refuses good stores or litters the bucket.
        let dir = tempfile::tempdir().unwrap();
        let file = FileStore::create(dir.path()).unwrap();
        let memory = InMemory::new();
        for store in [&file as &dyn ObjectStore, &memory] {
            probe(store).await.unwrap();
            let left: Vec<_> = store.list(None).try_collect().await.unwrap();
            assert_eq!(left, []);
        }
    }

    #[tokio::test]
    async fn a_store_without_conditional_updates_fails() {
        // Guards against mounting where fencing does not work. LocalFileSystem creates
        // conditionally and refuses conditional updates outright.
        let dir = tempfile::tempdir().unwrap();
        let plain = object_store::local::LocalFileSystem::new_with_prefix(dir.path()).unwrap();
        let e = probe(&plain).await.unwrap_err();
        assert!(matches!(e, ProbeError::Failed { what: "update an object", .. }), "{e}");
        assert_eq!(plain.list(None).try_collect::<Vec<_>>().await.unwrap(), []);
    }
}
