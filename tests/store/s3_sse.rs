//! Server-side encryption end to end: every mode on every kind of request, against a server that
//! enforces it and against servers that lie.

use crate::sse::{customer, dsse, exercise, kms};
use crate::support::s3_store;
use crate::support::s3server::{S3Server, SseConduct};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, Result};
use sealfs::store::s3::{S3Store, SseMode};
use sealfs::store::{ErrorClass, class};

/// Every mode, each way a key can be named.
fn modes() -> Vec<SseMode> {
    let arn = "arn:aws:kms:us-east-1:111122223333:key/1234";
    vec![
        SseMode::Default,
        SseMode::S3,
        kms(None, &[], None),
        kms(Some("1234"), &[("project", "a")], Some(true)),
        kms(Some(arn), &[], Some(false)),
        kms(Some("alias/archive"), &[], None),
        kms(Some("arn:aws:kms:us-east-1:111122223333:alias/archive"), &[], None),
        dsse(None),
        dsse(Some(arn)),
        customer(7),
    ]
}

#[tokio::test]
async fn every_mode_works_on_every_request() {
    // Guards against a header missing on one kind of request, which a server that enforces the
    // mode refuses (SSE-C on reads, parts and copies) or reports.
    for mode in modes() {
        let server = S3Server::start();
        let store = s3_store(&server, mode.clone()).await;
        exercise(&store).await.unwrap_or_else(|e| panic!("{mode}: {e}"));
        let applied = store.sse_applied().expect("writes were answered");
        assert_eq!(applied.algorithm.as_deref(), mode.algorithm(), "{mode}");
    }
}

#[tokio::test]
async fn the_bucket_default_is_recorded_and_never_refused() {
    // Guards against a mount without flags failing on a bucket that encrypts by default.
    let server = S3Server::start();
    server.behave(|b| b.bucket_default = Some("AES256".into()));
    let store = s3_store(&server, SseMode::Default).await;
    exercise(&store).await.unwrap();
    assert_eq!(store.sse_applied().unwrap().to_string(), "AES256");
}

#[tokio::test]
async fn a_server_that_applies_another_mode_fails_every_write() {
    // Guards against believing a server that ignores the headers, names another mode, or uses
    // another key, on any kind of write.
    let conducts = [
        SseConduct::Ignores,
        SseConduct::Claims("AES256".into()),
        SseConduct::Claims("aws:kms".into()),
        SseConduct::Claims("aws:kms:dsse".into()),
        SseConduct::OtherKey,
    ];
    for mode in modes() {
        for conduct in &conducts {
            let truthful = match conduct {
                SseConduct::Claims(algorithm) => {
                    mode.algorithm() == Some(algorithm) && mode_without_key(&mode)
                }
                // Modes that name no key leave it to the server.
                SseConduct::OtherKey => mode_without_key(&mode),
                _ => matches!(mode, SseMode::Default),
            } || matches!(mode, SseMode::Default);
            // An alias cannot be compared; what is checked is that it stays one key.
            if *conduct == SseConduct::OtherKey && names_alias(&mode) {
                continue;
            }
            if matches!(conduct, SseConduct::Claims(_)) && names_alias(&mode) {
                continue;
            }
            let server = S3Server::start();
            let store = s3_store(&server, mode.clone()).await;
            store.put(&"before".into(), "honest".into()).await.unwrap();
            server.behave(|b| b.sse = conduct.clone());
            for (what, written) in every_write(&store).await {
                match (truthful, written) {
                    (true, Ok(())) => {}
                    (false, Err(e)) if class(&e) == ErrorClass::SseMismatch => {
                        assert!(e.to_string().contains("asked for"), "{e}");
                    }
                    (_, written) => panic!("{what} with {mode} against {conduct:?}: {written:?}"),
                }
            }
            if !truthful {
                let left = server.keys();
                assert!(!left.contains(&"created".to_owned()), "a create is taken back: {left:?}");
                assert_eq!(server.open_uploads(), 0, "an upload in the wrong mode is aborted");
            }
        }
    }
}

fn mode_without_key(mode: &SseMode) -> bool {
    match mode {
        SseMode::Kms { key_id, bucket_key, .. } => key_id.is_none() && *bucket_key != Some(true),
        SseMode::Dsse { key_id, .. } => key_id.is_none(),
        SseMode::Customer { .. } => false,
        SseMode::Default | SseMode::S3 => true,
    }
}

fn names_alias(mode: &SseMode) -> bool {
    mode.key_id().is_some_and(|key| key.contains("alias/"))
}

async fn every_write(store: &S3Store) -> Vec<(&'static str, Result<()>)> {
    let put = store.put(&"put".into(), "x".into()).await.map(drop);
    let create = store.put_opts(&"created".into(), "x".into(), PutMode::Create.into()).await;
    let upload = store.put_multipart(&"upload".into()).await.map(drop);
    let copy = store.copy(&"before".into(), &"copied".into()).await;
    vec![("put", put), ("create", create.map(drop)), ("upload", upload), ("copy", copy)]
}

#[tokio::test]
async fn a_lie_that_begins_in_the_middle_of_an_upload_fails_it() {
    // Guards against parts and the end of an upload not being compared.
    for mode in [SseMode::S3, kms(Some("1234"), &[], None), customer(1)] {
        let server = S3Server::start();
        let store = s3_store(&server, mode.clone()).await;
        let mut upload = store.put_multipart(&"upload".into()).await.unwrap();
        upload.put_part(PutPayload::from(vec![0u8; 5 << 20])).await.unwrap();
        server.behave(|b| b.sse = SseConduct::Claims("rot13".into()));
        let part = upload.put_part("tail".into()).await.unwrap_err();
        assert_eq!(class(&part), ErrorClass::SseMismatch, "{mode}: {part}");
    }
}

#[tokio::test]
async fn an_alias_that_is_pointed_at_another_key_is_reported() {
    // Guards against objects of one mount going under two keys unnoticed.
    let server = S3Server::start();
    let store = s3_store(&server, kms(Some("alias/archive"), &[], None)).await;
    store.put(&"a".into(), "x".into()).await.unwrap();
    store.put(&"b".into(), "x".into()).await.unwrap();
    server.behave(|b| b.alias_moves += 1);
    let error = store.put(&"c".into(), "x".into()).await.unwrap_err();
    assert_eq!(class(&error), ErrorClass::SseMismatch, "{error}");
    let fresh = s3_store(&server, kms(Some("alias/archive"), &[], None)).await;
    fresh.put(&"c".into(), "x".into()).await.unwrap();
}

#[tokio::test]
async fn another_customer_key_reads_nothing() {
    // Guards against the key not being sent at all: then every key would do.
    let server = S3Server::start();
    let (right, wrong) =
        (s3_store(&server, customer(1)).await, s3_store(&server, customer(2)).await);
    let none = s3_store(&server, SseMode::Default).await;
    let path = Path::from("object");
    right.put(&path, "secret".into()).await.unwrap();
    let refused = wrong.get(&path).await.unwrap_err();
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused}");
    none.get(&path).await.unwrap_err();
    none.head(&path).await.unwrap_err();
    assert_eq!(right.get(&path).await.unwrap().bytes().await.unwrap(), "secret");
}
