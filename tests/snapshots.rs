//! Snapshots: each stays what it was whatever becomes of the volume, and what only it held comes free
//! when it is deleted.

mod past;
mod volume;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use sealfs::base::Ino;
use sealfs::commit::check::{CheckOptions, check};
use sealfs::commit::snapshots::{Snapshot, open_snapshot, snapshots, what_they_hold};
use sealfs::commit::{CleanOptions, SnapshotError, SnapshotOrder};
use sealfs::fs::WriteFlags;
use sealfs::meta::{SnapshotName, SnapshotOrigin};
use sealfs::stack::{MountOptions, Mounted};
use sealfs::store::SegmentStore;
use volume::{Bench, LONG, contents, read_file, write_file};

const MIB: usize = 1 << 20;

/// Everything that waits, waits for seconds; cleaning looks after every commit.
fn quick(o: &mut MountOptions) {
    let look_every = Duration::ZERO;
    o.clean = CleanOptions { dead_bytes_min: 1 << 20, tiny_min: 8, look_every };
    o.commit_interval = Duration::from_millis(20);
    o.dead_grace = Duration::from_secs(1);
    o.collect_age = Duration::from_millis(200);
    o.takeover = true;
}

fn named(name: &str) -> SnapshotName {
    SnapshotName::parse(name).expect("a name")
}

fn order(name: &str) -> SnapshotOrder {
    let note = String::new();
    SnapshotOrder { name: named(name), note, expires_secs: 0, origin: SnapshotOrigin::ByHand }
}

async fn create(m: &Mounted, name: &str) -> Snapshot {
    m.create_snapshot(order(name), LONG).await.expect("a snapshot")
}

async fn delete(m: &Mounted, names: &[&str]) {
    let names = names.iter().map(|name| named(name)).collect();
    let deleted = m.delete_snapshots(names, LONG).await;
    assert!(deleted.is_ok(), "{deleted:?}, {:?}", m.control.status().warnings);
}

/// Removes a file, which the test knows by several look-ups.
async fn remove(m: &Mounted, name: &str) {
    let ino = volume::find(&m.fs, name).await;
    m.fs.unlink(Ino::ROOT, name.as_bytes().to_vec()).await.expect("unlinks");
    m.fs.forget(ino, u64::MAX);
}

async fn segments(store: &Arc<dyn ObjectStore>) -> Vec<ObjectMeta> {
    store.list(Some(&Path::from("seg"))).try_collect().await.expect("lists")
}

async fn bytes_of(store: &Arc<dyn ObjectStore>) -> u64 {
    let all: Vec<ObjectMeta> = store.list(None).try_collect().await.expect("lists");
    all.iter().map(|object| object.size).sum()
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is().await {
        assert!(begun.elapsed() < LONG, "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A snapshot keeps all rules of a volume, and the bucket has every segment that it refers to.
async fn assert_whole(m: &Mounted, bench: &Bench, snapshot: &Snapshot) {
    let kv = open_snapshot(m.view().kv(), &snapshot.row, LONG).await.expect("opens");
    let (report, known) =
        check(&kv, CheckOptions::default(), &AtomicU64::new(0)).await.expect("reads");
    assert_eq!(report.problems(), Vec::<String>::new(), "{}", snapshot.name);
    assert_eq!(report.inodes, snapshot.row.files);
    let there: BTreeSet<_> = segments(&bench.store).await.into_iter().map(|o| o.location).collect();
    for (id, sum) in &known.0 {
        let is_there = there.contains(&SegmentStore::name(*id));
        assert!(is_there || sum.live == 0, "{} lacks segment {id}", snapshot.name);
    }
    kv.close(false).await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_keeps_what_it_refers_to_until_it_is_deleted() {
    // Guards against segments that are deleted, or cleaned away, although a snapshot refers to them,
    // and against space that never comes free: files are deleted after a snapshot, and the grace and
    // rounds of cleaning go by.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    for n in 0..4 {
        let name = format!("f{n}");
        write_file(&m.fs, Ino::ROOT, &name, &contents(&name, 2 * MIB)).await;
    }
    let first = create(&m, "first").await;
    assert!(first.row.commit > 0 && first.row.files == 5, "{first:?}");
    let before = segments(&bench.store).await;
    for name in ["f0", "f1", "f2"] {
        remove(&m, name).await;
    }
    let f3 = volume::find(&m.fs, "f3").await;
    m.fs.write(f3, 0, Bytes::from(vec![1; 2 * MIB]), WriteFlags::default()).await.expect("writes");
    assert!(m.sync(LONG).await);
    let second = create(&m, "second").await;
    assert!(second.row.commit > first.row.commit);
    until("kept", async || m.view().holders().kept().is_some_and(|kept| kept.segments > 0)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let there: BTreeSet<_> = segments(&bench.store).await.into_iter().map(|o| o.location).collect();
    assert!(before.iter().all(|o| there.contains(&o.location)), "the snapshot lost segments");
    assert_eq!(m.control.status().cleaned_bytes, 0, "what a snapshot holds was moved for nothing");
    assert_whole(&m, &bench, &first).await;
    assert_whole(&m, &bench, &second).await;
    let all = snapshots(m.view().kv()).await.expect("lists");
    assert_eq!(all, [first.clone(), second.clone()]);
    let (held, kept) = what_they_hold(m.view().kv(), &all).await.expect("reads");
    let dead: u64 = before.iter().map(|o| o.size).sum();
    assert!(held[0].alone == kept.bytes && held[1].alone == 0, "{held:?}");
    assert!(kept.bytes > dead * 9 / 10 && kept.bytes <= dead, "{kept:?} of {dead}");
    let report = bench.fsck(|o| o.data = true).await;
    assert_eq!(report.problems, []);
    assert_eq!(report.notes, Vec::<String>::new());
    // Deleted, what it held alone goes; the other stays whole.
    delete(&m, &["first"]).await;
    until("freed", async || {
        let there: BTreeSet<_> =
            segments(&bench.store).await.into_iter().map(|o| o.location).collect();
        before.iter().all(|o| !there.contains(&o.location))
    })
    .await;
    assert_whole(&m, &bench, &second).await;
    assert_eq!(read_file(&m.fs, "f3").await, vec![1; 2 * MIB]);
    let gone = open_snapshot(m.view().kv(), &first.row, LONG).await;
    until("swept", async || m.view().kv().checkpoints().len() == 1).await;
    drop(gone);
    assert!(open_snapshot(m.view().kv(), &first.row, LONG).await.is_err());
    assert!(m.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_taken_once_and_only_what_is_there_is_deleted() {
    // Guards against a snapshot that silently takes another's place, and against half of a deletion.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    let empty = create(&m, "empty").await;
    assert_eq!(empty.row.commit, m.control.status().commit_sequence, "nothing was ever committed");
    assert_whole(&m, &bench, &empty).await;
    let again = m.create_snapshot(order("empty"), LONG).await;
    assert!(matches!(again, Err(SnapshotError::Exists(_))), "{again:?}");
    let names = vec![named("empty"), named("none")];
    let half = m.delete_snapshots(names, LONG).await;
    assert!(matches!(half, Err(SnapshotError::Missing(_))), "{half:?}");
    assert_eq!(snapshots(m.view().kv()).await.expect("lists").len(), 1);
    // The next mount knows them.
    assert!(m.shutdown(LONG).await);
    let m = bench.mount_with(quick).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "f", b"x").await;
    assert!(m.sync(LONG).await);
    assert_eq!(m.view().holders().newest(), Some(empty.row.commit));
    assert_whole(&m, &bench, &empty).await;
    delete(&m, &["empty"]).await;
    assert_eq!(m.view().holders().newest(), None);
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bucket_is_as_small_as_without_history_when_the_last_is_deleted() {
    // Guards against what deleted snapshots held staying in the bucket: segments, tables of the
    // metadata, manifests. Made and deleted in an order that is not that of their making.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "stays", &contents("stays", 3 * MIB)).await;
    assert!(m.sync(LONG).await);
    let plain = bytes_of(&bench.store).await;
    let mut live: Vec<Snapshot> = Vec::new();
    let mut seed = 7u64;
    for round in 0..24 {
        let name = format!("f{}", round % 5);
        let size = MIB / 4 + round * 1000;
        if round >= 5 {
            remove(&m, &name).await;
        }
        write_file(&m.fs, Ino::ROOT, &name, &contents(&format!("{name}{round}"), size)).await;
        live.push(create(&m, &format!("s{round}")).await);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if live.len() > 6 {
            let gone = live.remove((seed >> 33) as usize % live.len());
            delete(&m, &[gone.name.as_str()]).await;
        }
    }
    for snapshot in &live {
        assert_whole(&m, &bench, snapshot).await;
    }
    for n in 0..5 {
        remove(&m, &format!("f{n}")).await;
    }
    let names: Vec<_> = live.iter().map(|s| s.name.as_str()).collect();
    delete(&m, &names).await;
    until("as small as before", async || bytes_of(&bench.store).await <= plain * 105 / 100).await;
    assert!(m.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}
