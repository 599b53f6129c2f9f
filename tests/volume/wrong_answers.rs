//! Answers that are wrong, to what a mount asks of its metadata: while it starts, and when it runs.
//! Waiting mends none of them, so nobody waits: whoever asked hears what the server said.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sealfs::base::Ino;
use sealfs::fs::FsError;
use sealfs::store::s3::SseMode;

use crate::support::s3_store;
use crate::support::s3server::{Fault, FaultKind, RequestKind, S3Server};
use crate::volume::{Bench, LONG, write_file};

/// A start that waits for the metadata as long as it may takes 120 s, a read that waits 60 s.
const AT_ONCE: Duration = Duration::from_secs(40);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const XML: &[(&str, &str)] = &[("content-type", "application/xml")];

/// What is answered, and what of it must be told.
const WRONG: [(FaultKind, &str); 9] = [
    (FaultKind::DENIED, "AccessDenied"),
    (FaultKind::Status(400, "InvalidRequest"), "InvalidRequest"),
    (FaultKind::Status(405, "MethodNotAllowed"), "MethodNotAllowed"),
    (FaultKind::Status(501, "NotImplemented"), "NotImplemented"),
    (FaultKind::MOVED, "s3.example.org"),
    (FaultKind::PAGE, "in its place"),
    (FaultKind::FILE, ""),
    (FaultKind::NOTHING, ""),
    (FaultKind::Foreign(200, XML, "<ListBucketResult><Contents><Key>meta/"), ""),
];

async fn target(server: &S3Server) -> Bench {
    let bench = Bench::over(Arc::new(s3_store(server, SseMode::Default).await)).await;
    let m = bench.mount().await;
    for n in 0..300 {
        write_file(&m.fs, Ino::ROOT, &format!("a name of some length {n:04}"), b"contents").await;
    }
    assert!(m.shutdown(LONG).await);
    bench
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_answer_to_a_start_ends_it_at_once_with_what_the_server_said() {
    // Guards against a mount that hangs for two minutes, and then says "no answer", where the server
    // had said at once that it will not do it.
    let server = S3Server::start();
    let bench = target(&server).await;
    let before = server.keys();
    let places = [
        (RequestKind::Get, "/config"),
        (RequestKind::Get, "/lease"),
        (RequestKind::Get, "/meta/manifest/"),
        (RequestKind::Get, "/meta/compacted/"),
        (RequestKind::List, ""),
    ];
    for (kind, words) in &WRONG {
        for (on, key) in places {
            let what = format!("{kind:?} to {on:?} {key}");
            server.faults().add(Fault::new(kind.clone()).on(on).key(key));
            let begun = Instant::now();
            let refused = bench.mount_with(|o| o.read_timeout = READ_TIMEOUT).await.err();
            let took = begun.elapsed();
            server.faults().clear();
            // Nothing at all in the place of an object may look like damage to it.
            let refused = refused.unwrap_or_else(|| panic!("{what}: mounts")).to_string();
            assert!(took < AT_ONCE, "{what}: {took:?}: {refused}");
            assert!(refused.contains(words), "{what}: {refused}");
            assert!(!refused.contains("no answer in"), "{what}: {refused}");
            assert!(server.keys() == before, "{what}: something was written");
        }
    }
    assert!(bench.mount().await.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_metadata_while_mounted_fails_the_read_at_once_and_passes() {
    // Guards against names that hang for the whole read timeout because the server refuses them, and
    // against a mount that is of no more use when it does not any more.
    let server = S3Server::start();
    let bench = target(&server).await;
    for read_only in [true, false] {
        for (kind, words) in WRONG.iter().take(5) {
            let m = bench
                .mount_with(|o| (o.read_timeout, o.read_only) = (READ_TIMEOUT, read_only))
                .await
                .expect("mounts");
            server
                .faults()
                .add(Fault::new(kind.clone()).on(RequestKind::Get).key("/meta/compacted/"));
            // Where a name's row lies depends on the volume: some came with what the start has read.
            let mut failed = None;
            for n in 0..300 {
                let name = format!("a name of some length {n:04}").into_bytes();
                let begun = Instant::now();
                let found = m.fs.lookup(Ino::ROOT, name.clone()).await;
                let took = begun.elapsed();
                assert!(took < AT_ONCE, "{kind:?}: {took:?}");
                match found {
                    Ok(_) => continue,
                    Err(FsError::Io(why)) => assert!(why.contains(words), "{kind:?}: {why}"),
                    Err(e) => panic!("{kind:?}: {e}"),
                }
                failed = Some(name);
                break;
            }
            server.faults().clear();
            let name = failed.unwrap_or_else(|| panic!("{kind:?}: nothing asks for tables"));
            let ino = m.fs.lookup(Ino::ROOT, name).await.expect("it answers again").ino;
            assert_eq!(&m.fs.read(ino, 0, 100).await.expect("reads")[..], b"contents");
            assert!(m.shutdown(LONG).await);
        }
    }
}
