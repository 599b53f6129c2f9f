//! Changing the keys of a volume for good: rekey, what is left to somebody who was removed, and every
//! point at which a key command can be cut off or met by another.

mod volume;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::base::Ino;
use sealfs::fs::FsError;
use sealfs::seal::{HEADER, KdfParams, Keyring, Secret, VolumeKeys};
use sealfs::stack::rekey::{RekeyOptions, RekeyPhase, RekeyReport, epochs_in_use, rekey};
use sealfs::stack::{KeyOptions, MountOptions, Mounted, StackError, change_keyring};
use sealfs::store::{CacheOptions, Cached, RequestStats, Resealed, Sealed};
use volume::gated::{Gate, Gated};
use volume::{Bench, LONG, options_of, secret, write_file};

const LEN: usize = 40_000;
const FILES: [&str; 3] = ["one", "two", "three"];

fn contents(name: &str) -> Vec<u8> {
    let salt = name.bytes().map(usize::from).sum::<usize>();
    (0..LEN).map(|i| ((i * 13 + i / 251 + salt) % 253) as u8).collect()
}

type Objects = BTreeMap<Path, Bytes>;

async fn objects(store: &dyn ObjectStore) -> Objects {
    let list: Vec<_> = store.list(None).try_collect().await.expect("lists");
    let mut all = Objects::new();
    for meta in list {
        let bytes = store.get(&meta.location).await.expect("there").bytes().await.expect("reads");
        all.insert(meta.location, bytes);
    }
    all
}

async fn keyring(store: &dyn ObjectStore) -> Keyring {
    let got = store.get(&Path::from("keyring")).await.expect("there");
    Keyring::parse(&got.bytes().await.expect("reads")).expect("parses")
}

fn key_file(byte: u8) -> Secret {
    Secret::KeyFile(vec![byte; 48].into())
}

fn by(bench: &Bench) -> KeyOptions {
    let (store, key) = (options_of(bench.store.clone()), secret().into());
    KeyOptions { store, key, state_dir: bench.state() }
}

fn rekey_options(bench: &Bench) -> RekeyOptions {
    RekeyOptions {
        collect_age: Duration::ZERO,
        look_every: Duration::from_millis(20),
        ..RekeyOptions::new(by(bench))
    }
}

async fn rekeyed(bench: &Bench) -> Result<RekeyReport, StackError> {
    rekey(&rekey_options(bench), Arc::default(), |_| {}, |_| {}).await
}

async fn read(m: &Mounted, name: &str) -> Result<Bytes, FsError> {
    let ino = m.fs.lookup(Ino::ROOT, name.into()).await?.ino;
    m.fs.read(ino, 0, LEN as u32).await
}

/// A volume in memory with files in it, in its first epoch.
async fn filled() -> (Bench, Arc<InMemory>) {
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let m = bench.mount().await;
    for name in FILES {
        write_file(&m.fs, Ino::ROOT, name, &contents(name)).await;
        assert!(m.sync(LONG).await);
    }
    assert!(m.shutdown(LONG).await);
    (bench, bucket)
}

/// The objects that open with these keys.
async fn opened_by(keys: &VolumeKeys, all: &Objects) -> Vec<Path> {
    let opens = |at: &Path, bytes: &Bytes| {
        let header = bytes.first_chunk::<HEADER>();
        header.is_some_and(|header| keys.object_opener(at.as_ref(), header).is_ok())
    };
    all.iter().filter(|(at, bytes)| opens(at, bytes)).map(|(at, _)| at.clone()).collect()
}

async fn expect_whole(bench: &Bench, what: &str) {
    let m = bench.mount_with(|_| {}).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    for name in FILES {
        let got = read(&m, name).await.unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
        assert!(got == contents(name), "{what}: {name}");
    }
    assert_eq!(m.control.status().warnings, Vec::<String>::new(), "{what}");
    assert!(m.shutdown(LONG).await, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rekey_nothing_opens_with_an_old_root_and_a_machine_that_was_away_goes_on() {
    // Guards against objects that a rekey forgets, against a root that stays in the keyring, and
    // against a machine that cannot come back: this one was away with changes pending during the
    // rotation and the rekey, and remembers an epoch whose root has left.
    let (bench, bucket) = filled().await;
    let late = |o: &mut MountOptions| o.commit_interval = LONG * 100;
    let m = bench.mount_with(late).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "pending", &contents("pending")).await;
    m.shutdown(Duration::ZERO).await;
    let before = keyring(&*bucket).await.unlock(&secret()).expect("opens");
    let old = objects(&*bucket).await;
    assert_eq!(opened_by(&before, &old).await.len(), old.len() - 1, "all but the keyring");

    let elsewhere = Bench { store: bucket.clone(), local: tempfile::tempdir().expect("tempdir") };
    let report = rekeyed(&elsewhere).await.expect("runs");
    assert!(report.is_complete() && !report.resumed, "{report:?}");
    assert_eq!((report.epoch, &report.retired[..]), (2, &[1][..]));
    assert!(report.sealed_again.objects >= FILES.len() as u64, "{report:?}");
    let now = objects(&*bucket).await;
    assert_eq!(opened_by(&before, &now).await, [], "what the old root opens");
    let ring = keyring(&*bucket).await;
    assert_eq!((ring.epoch(), ring.old_roots()), (2, vec![]));
    let (in_use, failed) = epochs_in_use(&by(&bench), Arc::default()).await.expect("looks");
    assert_eq!((in_use.keys().copied().collect::<Vec<_>>(), failed.len()), (vec![2], 0));

    let m = bench.mount().await;
    assert!(read(&m, "pending").await.expect("reads") == contents("pending"));
    assert!(m.shutdown(LONG).await);
    expect_whole(&bench, "the machine that was away").await;
    let report = bench.fsck(|o| o.data = true).await;
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let again = rekeyed(&bench).await.expect("runs");
    assert!(again.is_complete() && again.epoch == 3 && again.retired == [2], "{again:?}");
    expect_whole(&bench, "after another").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_mount_and_a_follower_that_read_and_write_nothing_is_damaged_or_lost() {
    // Guards against EIO or "damaged" for an object that was sealed again under a reader, in
    // memory or in the cache on disk, and against what a mount writes meanwhile in the old epoch.
    let (bench, bucket) = filled().await;
    let before = keyring(&*bucket).await.unlock(&secret()).expect("opens");
    let eager = |o: &mut MountOptions| {
        o.cache_bytes_max = 64 << 20;
        o.collect_age = Duration::ZERO;
        o.commit_interval = Duration::from_millis(20);
    };
    let m = Arc::new(bench.mount_with(eager).await.expect("mounts"));
    let aside = tempfile::tempdir().expect("tempdir");
    let mut options = bench.mount_options();
    options.read_only = true;
    options.cache_bytes_max = 64 << 20;
    options.state_dir = aside.path().join("state");
    options.cache_dir = aside.path().join("cache");
    options.refresh = Duration::from_millis(50);
    let follower = Arc::new(sealfs::stack::mount(options).await.expect("follows"));
    for mount in [&m, &follower] {
        assert!(read(mount, "one").await.expect("reads") == contents("one"));
    }
    let ended = Arc::new(AtomicBool::new(false));
    let reading = [m.clone(), follower.clone()].map(|mount| {
        let ended = ended.clone();
        tokio::spawn(async move {
            while !ended.load(Ordering::SeqCst) {
                for name in FILES {
                    let got = read(&mount, name).await;
                    assert!(got.unwrap_or_else(|e| panic!("{name}: {e}")) == contents(name));
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    });
    let (writer, stop) = (m.clone(), ended.clone());
    let writing = tokio::spawn(async move {
        let mut n = 0;
        while !stop.load(Ordering::SeqCst) {
            write_file(&writer.fs, Ino::ROOT, &format!("w{n}"), &contents("new")).await;
            n += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        n
    });
    let tell = |_| {
        let follow = m.follow_config();
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(follow));
    };
    // The mount collects its log when it looks again; here nobody waits for its heartbeat.
    let looks = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            m.follow_config().await;
        }
    };
    let options = rekey_options(&bench);
    let done = rekey(&options, Arc::default(), |_| {}, tell);
    let report = tokio::select! { report = done => report, () = looks => unreachable!() };
    let report = report.expect("runs");
    assert!(report.is_complete(), "{report:?}");
    ended.store(true, Ordering::SeqCst);
    for task in reading {
        task.await.expect("no read failed");
    }
    let written = writing.await.expect("writes");
    assert!(written > 0);
    assert!(m.sync(LONG).await);
    assert_eq!(opened_by(&before, &objects(&*bucket).await).await, [], "what the old root opens");
    for mount in [&m, &follower] {
        assert_eq!(mount.control.status().warnings, Vec::<String>::new());
    }
    let end = |m: Arc<Mounted>| Arc::try_unwrap(m).ok().expect("the only one");
    end(follower).shutdown(LONG).await;
    assert!(end(m).shutdown(LONG).await);
    let m = bench.mount().await;
    for n in 0..written {
        assert!(read(&m, &format!("w{n}")).await.expect("reads") == contents("new"), "w{n}");
    }
    m.shutdown(LONG).await;
    let report = bench.fsck(|o| o.data = true).await;
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_cannot_follow_keeps_the_old_root_in_the_keyring() {
    // Guards against data that nobody can read any more: a mount whose own slot was removed writes
    // on in the old epoch, and what it writes must stay readable until it is gone.
    let (bench, bucket) = filled().await;
    let by = by(&bench);
    let added = change_keyring(&by, |ring, keys| {
        let id = ring.add_slot(keys, &key_file(66), "leaver", KdfParams::FLOOR, 0)?;
        Ok((id, keys.clone()))
    });
    let id = added.await.expect("adds").made;
    let m = bench.mount_with(|o| o.key = key_file(66).into()).await.expect("mounts");
    let removed = change_keyring(&by, |ring, keys| Ok(((), ring.remove_slot(keys, id)?)));
    removed.await.expect("removes");
    let options = RekeyOptions { no_wait: true, ..rekey_options(&bench) };
    let report = rekey(&options, Arc::default(), |_| {}, |_| {}).await.expect("runs");
    let why = report.unfinished.clone().expect("not complete");
    assert!(why.contains("does not follow"), "{why}");
    assert_eq!(report.retired, [] as [u32; 0]);
    assert!(keyring(&*bucket).await.old_roots().contains(&1));
    write_file(&m.fs, Ino::ROOT, "late", &contents("late")).await;
    assert!(m.shutdown(LONG).await);
    let report = rekeyed(&bench).await.expect("goes on");
    assert!(report.is_complete() && report.resumed, "{report:?}");
    assert_eq!(report.retired, [1, 2]);
    let m = bench.mount().await;
    assert!(read(&m, "late").await.expect("reads") == contents("late"));
    m.shutdown(LONG).await;
    expect_whole(&bench, "afterwards").await;
}
