//! How a mount ends, and how it begins on a bucket that somebody put back; without a kernel.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use sealfs::base::Ino;
use sealfs::fs::{FsError, WriteFlags};
use sealfs::stack::{Accept, MountOptions, Mounted, StackError, mount};

use crate::volume::{CALLER, format, options_of, secret};

fn options(bucket: &Arc<dyn ObjectStore>, local: &Path) -> MountOptions {
    MountOptions {
        journal_bytes_max: 64 << 20,
        ..MountOptions::new(
            options_of(bucket.clone()),
            secret(),
            local.join("cache"),
            local.join("state"),
        )
    }
}

async fn write(m: &Mounted, name: &str) {
    let name = name.as_bytes().to_vec();
    let file = m.fs.create(CALLER, Ino::ROOT, name.clone(), 0o600, 0).await.expect("create");
    let wrote = m.fs.write(file.ino, 0, name.into(), WriteFlags::default()).await;
    wrote.expect("write");
}

async fn read(m: &Mounted, name: &str) -> Result<Bytes, FsError> {
    let file = m.fs.lookup(Ino::ROOT, name.as_bytes().to_vec()).await?;
    m.fs.read(file.ino, 0, 4096).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_only_reads_ends_at_once() {
    // Guards against waiting for a task that never ends by itself.
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    format(&bucket).await;
    let local = tempfile::tempdir().expect("tempdir");
    let options = MountOptions { read_only: true, ..options(&bucket, local.path()) };
    let m = mount(options).await.expect("mount");
    let begun = Instant::now();
    assert!(m.shutdown(Duration::from_secs(5)).await);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_to_the_journal_is_left_quickly_and_found_again() {
    // Guards against `umount --force-local` hanging on the very store it is used to get away
    // from. The store stops answering, for longer than any deadline.
    let throttled = Arc::new(ThrottledStore::new(InMemory::new(), ThrottleConfig::default()));
    let bucket: Arc<dyn ObjectStore> = throttled.clone();
    format(&bucket).await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = mount(options(&bucket, local.path())).await.expect("mount");
    let hour = Duration::from_secs(3600);
    throttled.config_mut(|c| (c.wait_get_per_call, c.wait_put_per_call) = (hour, hour));
    write(&m, "kept").await;
    let begun = Instant::now();
    assert!(!m.shutdown(Duration::ZERO).await, "the bucket cannot have it");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());

    let now = Duration::ZERO;
    throttled.config_mut(|c| (c.wait_get_per_call, c.wait_put_per_call) = (now, now));
    // The lease could not be given back, and this process, its holder, still lives.
    let options = MountOptions { takeover: true, ..options(&bucket, local.path()) };
    let m = mount(options).await.expect("mount again");
    assert_eq!(read(&m, "kept").await.expect("replayed"), "kept");
    assert!(m.shutdown(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_was_put_back_is_refused_until_it_is_accepted() {
    // Guards against an old copy of the bucket going unnoticed, and against files of the newer
    // history showing through from the local cache once the old copy is accepted: the metadata
    // store numbers its files, so the same names come again with other contents.
    let newer = InMemory::new();
    let bucket: Arc<dyn ObjectStore> = Arc::new(newer.clone());
    format(&bucket).await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = mount(options(&bucket, local.path())).await.expect("mount");
    write(&m, "old").await;
    assert!(m.sync(Duration::from_secs(20)).await);
    assert!(m.shutdown(Duration::from_secs(20)).await);
    let older: Arc<dyn ObjectStore> = Arc::new(newer.fork());
    let m = mount(options(&bucket, local.path())).await.expect("mount again");
    write(&m, "new").await;
    assert!(m.shutdown(Duration::from_secs(20)).await);

    let refused = mount(options(&older, local.path())).await.err().expect("it is older");
    assert!(matches!(refused, StackError::Rollback { .. }), "{refused}");
    for round in ["first", "second"] {
        let accept = MountOptions {
            accept_rollback: if round == "first" { Accept::ALL } else { Accept::default() },
            takeover: true,
            ..options(&older, local.path())
        };
        let m = mount(accept).await.unwrap_or_else(|e| panic!("{round}: {e}"));
        assert_eq!(read(&m, "old").await.expect("it was there by then"), "old");
        assert!(matches!(read(&m, "new").await, Err(FsError::NotFound)), "{round}");
        if round == "second" {
            assert_eq!(read(&m, "other").await.expect("written in between"), "other");
        } else {
            write(&m, "other").await;
        }
        assert!(m.shutdown(Duration::from_secs(20)).await, "{round}");
    }
}
