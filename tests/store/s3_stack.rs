//! The store stack over S3: sealed over retry over the adapter, on a server that fails.
//!
//! What the layers promise together is checked where they meet: no failure of the server is seen
//! above the retry layer while it passes, no write happens twice or not at all, and no byte that
//! was changed in the bucket is handed up.

use crate::support;
use crate::support::s3_store;
use crate::support::s3server::{Fault, FaultKind, RequestKind, S3Server};
use bytes::Bytes;
use object_store::integration::*;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use sealfs::seal::VolumeKeys;
use sealfs::store::s3::SseMode;
use sealfs::store::{ErrorClass, Limits, RequestStats, Retry, RetryOptions, Sealed, class};
use std::sync::Arc;
use std::time::{Duration, Instant};

async fn stack(server: &S3Server) -> Sealed {
    let s3 = Arc::new(s3_store(server, SseMode::Default).await);
    let options = RetryOptions {
        backoff_first: Duration::from_millis(2),
        backoff_max: Duration::from_millis(50),
        list_ordered: true,
        ..RetryOptions::default()
    };
    let retry = Retry::new(s3.clone(), options, Arc::new(RequestStats::default()));
    let retry = Arc::new(retry.with_multipart(s3));
    Sealed::new(retry, VolumeKeys::random_for_tests(3))
}

async fn clear(store: &dyn ObjectStore) {
    use futures::TryStreamExt;
    let all: Vec<_> = store.list(None).map_ok(|o| o.location).try_collect().await.unwrap();
    for location in all {
        store.delete(&location).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_through_the_stack_on_a_server_that_fails_at_random() {
    // Guards against any failure that passes reaching a caller, and against a conditional write
    // being repeated after it took effect: the suite's race of counters adds up only if each
    // took effect exactly once.
    let server = S3Server::start();
    let store = stack(&server).await;
    for (kind, rate) in [
        (FaultKind::INTERNAL, 0.03),
        (FaultKind::SLOW_DOWN, 0.03),
        (FaultKind::Reset, 0.03),
        (FaultKind::Delay(Duration::from_millis(5)), 0.1),
    ] {
        server.faults().add(Fault::new(kind).rate(rate));
    }
    server.faults().add(Fault::new(FaultKind::CONFLICT).on(RequestKind::Put).rate(0.03));
    server.faults().add(Fault::new(FaultKind::CutBody).on(RequestKind::Get).rate(0.05));
    // Where writers race, a lost answer cannot be told from a lost race once the winner has
    // written again, so the race runs before answers are lost.
    put_opts(&store, true).await;
    clear(&store).await;
    server.faults().add(Fault::new(FaultKind::LoseAnswer).rate(0.05));
    put_get_delete_list(&store).await;
    list_uses_directories_correctly(&store).await;
    list_with_delimiter(&store).await;
    get_opts(&store).await;
    clear(&store).await;
    rename_and_copy(&store).await;
    multipart_out_of_order(&store).await;
}

#[tokio::test]
async fn conditional_writes_of_one_writer_survive_lost_answers() {
    // Guards against a create or update that took effect being reported as refused because its
    // answer was lost and the repeated request met its own result.
    let server = S3Server::start();
    let store = stack(&server).await;
    let lost = Fault::new(FaultKind::LoseAnswer).on(RequestKind::Put);
    server.faults().add(lost.rate(0.4));
    for name in 0..20 {
        let path = Path::from(format!("manifest/{name}"));
        let created = store.put_opts(&path, "0".into(), PutMode::Create.into()).await;
        let mut version = created.unwrap_or_else(|e| panic!("create {name}: {e}"));
        let again = store.put_opts(&path, "0".into(), PutMode::Create.into()).await.unwrap_err();
        assert_eq!(class(&again), ErrorClass::AlreadyExists, "{again}");
        for update in 1..5 {
            let stale = version.clone();
            let mode = PutMode::Update(version.into());
            let put = store.put_opts(&path, update.to_string().into(), mode.into()).await;
            version = put.unwrap_or_else(|e| panic!("update {update} of {name}: {e}"));
            let mode = PutMode::Update(stale.into());
            let refused = store.put_opts(&path, "stale".into(), mode.into()).await.unwrap_err();
            assert_eq!(class(&refused), ErrorClass::Precondition, "{refused}");
        }
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "4");
    }
}

#[tokio::test]
async fn tampering_with_any_object_is_an_error_and_never_bytes() {
    // Guards against flipped, swapped, truncated and replaced objects of a real S3 answer (with
    // its own lengths and ETags) passing as contents.
    let server = S3Server::start();
    let store = stack(&server).await;
    let (a, b) = (Path::from("seg/aa/a"), Path::from("seg/bb/b"));
    let contents = Bytes::from(vec![9u8; 100_000]);
    store.put(&a, contents.clone().into()).await.unwrap();
    store.put(&b, Bytes::from(vec![8u8; 100_000]).into()).await.unwrap();
    let (sealed_a, sealed_b) =
        (server.get_raw("seg/aa/a").unwrap(), server.get_raw("seg/bb/b").unwrap());
    let flipped = |at: usize| {
        let mut bytes = sealed_a.to_vec();
        bytes[at] ^= 1;
        Bytes::from(bytes)
    };
    let tampered = [
        flipped(0),
        flipped(30),
        flipped(60),
        flipped(sealed_a.len() - 1),
        sealed_b,
        sealed_a.slice(..sealed_a.len() - 1),
        sealed_a.slice(..56 + 16_400),
        Bytes::new(),
    ];
    for (i, bytes) in tampered.into_iter().enumerate() {
        server.put_raw("seg/aa/a", bytes);
        // A fresh stack, as a mount after the tampering has.
        let store = stack(&server).await;
        let read = async { store.get(&a).await?.bytes().await }.await;
        let error = read.expect_err("tampering must not be read");
        assert_eq!(class(&error), ErrorClass::Corrupt, "case {i}: {error}");
        assert_eq!(store.get(&b).await.unwrap().bytes().await.unwrap().len(), 100_000);
    }
    server.put_raw("seg/aa/a", sealed_a);
    assert_eq!(stack(&server).await.get(&a).await.unwrap().bytes().await.unwrap(), contents);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_move_no_faster_than_the_limits_and_none_is_taken_for_stuck() {
    // Guards against a limit that holds on paper, and one so low that uploads which share it are given
    // up and sent again. Only least times are checked: a busy machine makes them longer.
    let server = S3Server::start();
    let limits = Arc::new(Limits::default());
    let mut options = support::s3_options(&server.endpoint());
    options.limits = limits.clone();
    let s3 = Arc::new(sealfs::store::s3::connect(options).await.expect("connects"));
    let stats = Arc::new(RequestStats::default());
    let options = RetryOptions { limits: limits.clone(), ..RetryOptions::default() };
    let store = Retry::new(s3.clone(), options, stats.clone()).with_multipart(s3);
    let body = Bytes::from(vec![7; 1 << 20]);
    let (store, body) = (&store, &body);
    let put =
        |name: &'static str| async move { store.put(&Path::from(name), body.clone().into()).await };
    put("seg/free").await.expect("puts");
    limits.up.set(1 << 20);
    limits.down.set(1 << 20);
    let begun = Instant::now();
    let (a, b) = tokio::join!(put("seg/a"), put("seg/b"));
    assert!(a.is_ok() && b.is_ok());
    assert!(begun.elapsed() >= Duration::from_millis(1600), "sent in {:?}", begun.elapsed());
    let begun = Instant::now();
    for name in ["seg/a", "seg/b"] {
        let got = store.get(&Path::from(name)).await.expect("gets");
        assert_eq!(got.bytes().await.expect("whole"), *body);
    }
    assert!(begun.elapsed() >= Duration::from_millis(1600), "received in {:?}", begun.elapsed());
    // Lifted while it holds.
    limits.up.set(0);
    put("seg/c").await.expect("puts");
    assert_eq!((stats.snapshot().retries, stats.snapshot().errors), (0, 0));
}
