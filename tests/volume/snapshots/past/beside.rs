//! Snapshots beside all else that becomes of a volume: other machines that follow it, take it over or
//! hand it on, a bucket that is rolled back, a journal that was overtaken, keys that change.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::base::Ino;
use sealfs::commit::snapshots::snapshots;
use sealfs::fs::FsError;
use sealfs::stack::rekey::{RekeyOptions, rekey};
use sealfs::stack::{
    DemoteAsk, KeyOptions, KeyringSource, LIST_NAME, MountOptions, Mounted, PromoteAsk,
    RecoverOptions, RefusalKind, SnapshotAsk, StackError, recover,
};

use super::{all_of, create, elsewhere, named, quick, restore};
use crate::volume::{
    Bench, LONG, Objects, contents, objects, options_of, read_file, secret, write_file,
};

const LEN: usize = 300_000;

/// Commits at once, looks for what others wrote at once, and takes nothing over.
fn brisk(o: &mut MountOptions) {
    o.commit_interval = Duration::from_millis(20);
    o.refresh = Duration::from_millis(50);
}

async fn follower(bench: &Bench) -> Mounted {
    let follows = |o: &mut MountOptions| {
        brisk(o);
        o.read_only = true;
    };
    bench.mount_with(follows).await.expect("mounts to read")
}

/// A file that `name` alone has, in the bucket.
async fn put(m: &Mounted, name: &str) {
    write_file(&m.fs, Ino::ROOT, name, &contents(name, LEN)).await;
    assert!(m.sync(LONG).await);
}

async fn remove(m: &Mounted, name: &str) {
    m.fs.unlink(Ino::ROOT, name.into()).await.expect("unlinks");
    assert!(m.sync(LONG).await);
}

/// Waits until the mount shows the snapshot, with that file as it was.
async fn shows(m: &Mounted, snapshot: &str, file: &str) {
    for _ in 0..600 {
        if let Some(seen) = m.tree.snapshot(snapshot).await.expect("opens") {
            assert!(read_file(&seen, file).await == contents(file, LEN), "{snapshot}: {file}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{snapshot} does not show");
}

/// Waits until the mount lists no such snapshot. One that follows may know the name for a moment after
/// another machine has deleted what it stands for: then that is stale.
async fn lacks(m: &Mounted, snapshot: &str) {
    for _ in 0..600 {
        match m.tree.snapshot(snapshot).await {
            Ok(None) => return,
            Ok(Some(_)) | Err(FsError::Stale) => {}
            Err(e) => panic!("{snapshot}: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{snapshot} is still there");
}

/// What a command gets that asks this mount for a snapshot.
async fn refused(m: &Mounted) -> RefusalKind {
    let ask = SnapshotAsk { name: "no".into(), note: String::new(), expires_unix_secs: None };
    let asked = m.control.create_snapshot(ask).await.expect_err("it does not write");
    let deleted = m.control.delete_snapshots(vec!["one".into()]).await.expect_err("nor deletes");
    assert_eq!(asked.kind, deleted.kind);
    asked.kind
}

async fn names(m: &Mounted) -> Vec<String> {
    let all = snapshots(m.view().kv()).await.expect("lists");
    all.iter().map(|s| s.name.to_string()).collect()
}

async fn demote(m: &Mounted) {
    let ask = DemoteAsk { stall: LONG, attended: Default::default() };
    m.demote(ask).await.unwrap_or_else(|e| panic!("demote: {e}"));
}

async fn promote(m: &Mounted) {
    m.promote(PromoteAsk::default()).await.unwrap_or_else(|e| panic!("promote: {e}"));
}

async fn expect_clean(bench: &Bench) {
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_sees_snapshots_as_they_come_and_go_and_goes_on_with_them_as_the_writer() {
    // Guards against a follower that shows the snapshots of the moment it was mounted, and against a
    // hand-over after which a snapshot of the other machine cannot be restored, or is not kept.
    let bench = Bench::new().await;
    let other = elsewhere(&bench);
    let first = bench.mount_with(brisk).await.expect("mounts");
    let second = follower(&other).await;
    lacks(&second, "one").await;
    put(&first, "f").await;
    create(&first, "one").await;
    shows(&second, "one", "f").await;
    assert_eq!(refused(&second).await, RefusalKind::ReadOnly);
    remove(&first, "f").await;

    demote(&first).await;
    promote(&second).await;
    assert_eq!(refused(&first).await, RefusalKind::ReadOnly);
    put(&second, "g").await;
    create(&second, "two").await;
    let done = restore(&second, &all_of("one")).await.expect("restores");
    assert_eq!(done.files, 1, "{done:?}");
    assert!(read_file(&second.fs, "f").await == contents("f", LEN));
    shows(&first, "two", "g").await;
    second.delete_snapshots(vec![named("one")], LONG).await.expect("deletes");
    lacks(&first, "one").await;

    demote(&second).await;
    promote(&first).await;
    remove(&first, "g").await;
    shows(&first, "two", "g").await;
    assert_eq!(names(&first).await, ["two"]);
    assert!(second.shutdown(LONG).await && first.shutdown(LONG).await);
    expect_clean(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_only_an_overtaken_journal_has_is_told_and_can_be_done_again() {
    // Guards against `recover` handing out zeros for a restored file without a word: the journal has
    // where its bytes are, in the bucket, and not the bytes.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    put(&m, "f").await;
    create(&m, "one").await;
    remove(&m, "f").await;
    assert!(m.shutdown(LONG).await);
    let late = |o: &mut MountOptions| o.commit_interval = LONG * 100;
    let m = bench.mount_with(late).await.expect("mounts");
    restore(&m, &all_of("one")).await.expect("restores");
    write_file(&m.fs, Ino::ROOT, "written", b"in the journal").await;
    m.shutdown(Duration::ZERO).await;
    let other = elsewhere(&bench);
    let second = other.mount_with(quick).await.expect("takes it over");
    put(&second, "g").await;
    let again = bench.mount_with(quick).await.expect("mounts");
    let aside = again.set_aside.clone().expect("its journal was overtaken");

    let keyring = bench.store.get(&"keyring".into()).await.expect("there").bytes().await;
    let copy = bench.local.path().join("keyring-copy");
    std::fs::write(&copy, keyring.expect("reads")).expect("writes");
    let out_dir = bench.local.path().join("out");
    let found = recover(RecoverOptions {
        journal_dir: aside,
        out_dir: out_dir.clone(),
        keyring: KeyringSource::File(copy),
        key: secret().into(),
        progress: Default::default(),
    });
    let found = found.await.expect("recovers");
    assert_eq!((found.files, found.partial), (2, 1), "{found:?}");
    assert_eq!(std::fs::read(out_dir.join("written")).expect("reads"), b"in the journal");
    let list = std::fs::read_to_string(out_dir.join(LIST_NAME)).expect("reads");
    assert!(list.contains("f: restored from a snapshot") && list.contains("again"), "{list}");
    restore(&again, &all_of("one")).await.expect("restores");
    assert!(read_file(&again.fs, "f").await == contents("f", LEN));
    second.shutdown(Duration::from_secs(1)).await;
    assert!(again.shutdown(LONG).await);
    expect_clean(&bench).await;
}

/// Puts back all objects as they were, and takes away those that were not there.
async fn roll_back(store: &Arc<dyn ObjectStore>, to: &Objects) {
    let now: Vec<_> = store.list(None).try_collect().await.expect("lists");
    for gone in now.iter().filter(|o| !to.contains_key(&o.location)) {
        store.delete(&gone.location).await.expect("deletes");
    }
    for (name, bytes) in to {
        store.put(name, bytes.clone().into()).await.expect("puts");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_went_back_has_the_snapshots_of_then_once_that_is_accepted() {
    // Guards against a way back (docs/SNAPSHOTS.md) that ends at the rollback checks, or leads to a
    // mount that holds on to what the later state had of snapshots.
    let bench = Bench::new().await;
    let m = bench.mount_with(brisk).await.expect("mounts");
    put(&m, "f").await;
    create(&m, "one").await;
    remove(&m, "f").await;
    assert!(m.shutdown(LONG).await);
    let then = objects(&bench.store).await;
    let m = bench.mount_with(brisk).await.expect("mounts");
    put(&m, "g").await;
    create(&m, "two").await;
    m.delete_snapshots(vec![named("one")], LONG).await.expect("deletes");
    assert!(m.shutdown(LONG).await);
    roll_back(&bench.store, &then).await;
    // The lease of then is older as well.
    let back = |older: bool| {
        move |o: &mut MountOptions| {
            quick(o);
            o.accept_rollback.older = older;
        }
    };
    let refused = bench.mount_with(back(false)).await.err().expect("refused");
    assert!(matches!(refused, StackError::Rollback { .. }), "{refused}");
    assert!(refused.hint().is_some_and(|h| h.contains("--accept-rollback=older")));
    let m = bench.mount_with(back(true)).await.expect("accepted");
    assert_eq!(names(&m).await, ["one"]);
    shows(&m, "one", "f").await;
    put(&m, "h").await;
    create(&m, "three").await;
    restore(&m, &all_of("one")).await.expect("restores");
    assert!(m.shutdown(LONG).await);
    let m = bench.mount_with(brisk).await.expect("the way forward is the only one now");
    assert_eq!(names(&m).await, ["one", "three"]);
    assert!(read_file(&m.fs, "f").await == contents("f", LEN));
    assert!(m.shutdown(LONG).await);
    expect_clean(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rekey_reaches_its_end_with_snapshots_and_they_open_with_the_new_key_only() {
    // Guards against a rekey that leaves out what only snapshots hold, so that whoever was removed
    // reads them, or that never ends because of them; and against snapshots that nothing opens.
    let bench = Bench::new().await;
    let m = bench.mount_with(brisk).await.expect("mounts");
    for name in ["one", "two"] {
        put(&m, name).await;
        create(&m, name).await;
        remove(&m, name).await;
    }
    assert!(m.shutdown(LONG).await);
    let ring = bench.store.get(&Path::from("keyring")).await.expect("there").bytes().await;
    let ring = sealfs::seal::Keyring::parse(&ring.expect("reads")).expect("parses");
    let old = ring.unlock(&secret()).expect("opens");
    let by = KeyOptions {
        store: options_of(bench.store.clone()),
        key: secret().into(),
        state_dir: bench.state(),
    };
    let options = RekeyOptions {
        collect_age: Duration::ZERO,
        look_every: Duration::from_millis(20),
        ..RekeyOptions::new(by)
    };
    let report = rekey(&options, Arc::default(), |_| {}, |_| {}).await.expect("runs");
    assert!(report.is_complete() && report.retired == [1], "{report:?}");
    let all = objects(&bench.store).await;
    let opens = |(at, bytes): (&Path, &bytes::Bytes)| crate::volume::opens(&old, at, bytes, &all);
    let left: Vec<_> = all.iter().filter(|one| opens(*one)).map(|(at, _)| at).collect();
    assert!(left.is_empty(), "the old root opens {left:?}");
    // Here, and on a machine that has never seen it.
    for machine in [&bench, &elsewhere(&bench)] {
        let m = machine.mount_with(quick).await.expect("mounts");
        assert_eq!(names(&m).await, ["one", "two"]);
        for name in ["one", "two"] {
            shows(&m, name, name).await;
        }
        assert!(m.shutdown(LONG).await);
    }
    expect_clean(&bench).await;
    let m = bench.mount_with(quick).await.expect("mounts");
    restore(&m, &all_of("one")).await.expect("restores");
    m.delete_snapshots(vec![named("one"), named("two")], LONG).await.expect("deletes");
    assert!(read_file(&m.fs, "one").await == contents("one", LEN));
    assert!(m.shutdown(LONG).await);
    expect_clean(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_was_taken_over_makes_no_snapshot_and_shows_those_there_are() {
    // Guards against a snapshot of a writer that was fenced, which would name a commit that nobody
    // made, and against its snapshots being closed to whoever looks into them.
    let bench = Bench::new().await;
    let other = elsewhere(&bench);
    let first = bench.mount_with(brisk).await.expect("mounts");
    put(&first, "f").await;
    create(&first, "one").await;
    let held = first.tree.snapshot("one").await.expect("opens").expect("is there");
    let second = other.mount_with(quick).await.expect("takes it over");
    remove(&second, "f").await;
    create(&second, "two").await;
    // Fenced as soon as it tries; a follower from then on.
    let asked = refused(&first).await;
    assert!(matches!(asked, RefusalKind::Fenced | RefusalKind::ReadOnly), "{asked:?}");
    assert!(read_file(&held, "f").await == contents("f", LEN), "it was open");
    drop(held);
    shows(&first, "one", "f").await;
    let restored = restore(&first, &all_of("one")).await;
    assert!(restored.is_err(), "{restored:?}");
    assert_eq!(names(&second).await, ["one", "two"]);
    restore(&second, &all_of("one")).await.expect("restores");
    assert!(read_file(&second.fs, "f").await == contents("f", LEN));
    first.shutdown(Duration::from_secs(1)).await;
    assert!(second.shutdown(LONG).await);
    expect_clean(&bench).await;
}
