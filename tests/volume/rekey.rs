//! Changing the keys of a volume for good: rekey, what is left to somebody who was removed, and every
//! point at which a key command can be cut off or met by another.

use crate::volume;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::volume::gated::{Gate, Gated};
use crate::volume::{
    Bench, LONG, Objects, key_file, keyring, objects, options_of, secret, write_file,
};
use bytes::Bytes;
use futures::StreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::base::Ino;
use sealfs::fs::FsError;
use sealfs::seal::{KdfParams, Keyring, RootKey, VolumeKeys};
use sealfs::stack::rekey::{RekeyOptions, RekeyReport, epochs_in_use, rekey};
use sealfs::stack::{
    KeyOptions, MountOptions, Mounted, StackError, StackErrorKind, change_keyring,
};
use sealfs::store::{CacheOptions, Cached, Invalidate, Renew, RequestStats, Resealed, Sealed};

const LEN: usize = 40_000;
const FILES: [&str; 3] = ["one", "two", "three"];

fn contents(name: &str) -> Vec<u8> {
    volume::contents(name, LEN)
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

/// Adds the slot of somebody who will be removed; its number.
async fn add_leaver(by: &KeyOptions) -> u32 {
    let added = change_keyring(by, |ring, keys| {
        let id = ring.add_slot(keys, &key_file(66), "leaver", KdfParams::FLOOR, 0)?;
        Ok((id, keys.clone()))
    });
    added.await.expect("adds").made
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
    let opens = |at: &Path, bytes: &Bytes| volume::opens(keys, at, bytes, all);
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
    let id = add_leaver(&by).await;
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

/// The newest keys of a volume whose keyring is only in this test, for readers that are behind.
struct Newest(VolumeKeys, Arc<parking_lot::Mutex<VolumeKeys>>);

#[async_trait::async_trait]
impl Renew for Newest {
    async fn renew(&self, _: &Path) -> bool {
        let newest = self.1.lock().clone();
        assert!(self.0.take_up(&newest));
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_objects_that_are_sealed_again_never_mix_two_sealings() {
    // Guards against a cached header, or granules on disk, of an old sealing together with bytes of
    // the new one: random ranges are read through memory, through a cache on disk and through none,
    // while every object is sealed again and again, in one epoch after the other, whose roots leave.
    const BYTES: usize = 300_000;
    let (mut ring, keys) =
        Keyring::create(RootKey::random(), &secret(), "", KdfParams::FLOOR, 0).expect("creates");
    let newest = Arc::new(parking_lot::Mutex::new(keys.clone()));
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let ours = Sealed::new(bucket.clone(), keys.clone());
    let names: Vec<Path> = (0..3).map(|n| Path::from(format!("seg/ab/{n}"))).collect();
    let plain = |n: usize| (0..BYTES).map(move |i| ((i * 7 + i / 251 + n) % 256) as u8);
    for (n, name) in names.iter().enumerate() {
        ours.put(name, plain(n).collect::<Vec<_>>().into()).await.expect("puts");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new([0; 3].map(AtomicUsize::new));
    let dir = tempfile::tempdir().expect("tempdir");
    let mut readers = Vec::new();
    for n in 0..3usize {
        let theirs = ring.unlock(&secret()).expect("opens");
        let mut below = bucket.clone();
        let mut cache: Option<Arc<dyn Invalidate>> = None;
        if n < 2 {
            let mut options = CacheOptions::new(dir.path().join(n.to_string()));
            options.bytes_max = if n == 0 { 10 << 20 } else { 500_000 }; // the second evicts
            let stats = Arc::new(RequestStats::default());
            let cached = Arc::new(Cached::new(below, options, stats).expect("opens"));
            below = cached.clone();
            cache = Some(cached);
        }
        let sealed = Sealed::with_cache(below, theirs.clone(), cache);
        sealed.renew_by(Arc::new(Newest(theirs, newest.clone())));
        let (names, stop, done) = (names.clone(), stop.clone(), done.clone());
        readers.push(tokio::spawn(async move {
            let mut random = n as u64 + 1;
            let mut below = |max: usize| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 33) as usize % max
            };
            while !stop.load(Ordering::SeqCst) {
                let (object, start) = (below(names.len()), below(BYTES - 1));
                let end = (start + 1 + below(100_000)).min(BYTES);
                let got = sealed.get_range(&names[object], start as u64..end as u64).await;
                let got = got.unwrap_or_else(|e| panic!("reader {n}: {start}..{end}: {e}"));
                let wanted: Vec<u8> = plain(object).skip(start).take(end - start).collect();
                assert!(got == wanted, "reader {n}: {start}..{end}");
                assert_eq!(sealed.damaged(), [], "reader {n}");
                done[n].fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(2) || keys.epoch() < 5 {
        assert!(begun.elapsed() < LONG * 4, "only {} epochs", keys.epoch());
        let next = ring.rotate(&keys).expect("rotates");
        assert!(keys.take_up(&next));
        *newest.lock() = next;
        let epoch = keys.epoch();
        for name in &names {
            let done = ours.reseal(name, epoch).await.expect("seals again");
            assert_eq!(done, Resealed::Done(epoch - 1), "{name}");
            assert_eq!(ours.reseal(name, epoch).await.expect("looks"), Resealed::Already(epoch));
        }
        let without = ring.retire_root(&keys, epoch - 1).expect("retires");
        assert!(keys.take_up(&without));
        *newest.lock() = without;
        // A rekey takes minutes: no read sees two of them come and go.
        let before = [0, 1, 2].map(|n| done[n].load(Ordering::SeqCst));
        while (0..3).any(|n| done[n].load(Ordering::SeqCst) < before[n] + 2) {
            assert!(begun.elapsed() < LONG * 4 && readers.iter().all(|r| !r.is_finished()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.expect("no read failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_removed_opens_nothing_new_and_after_a_rekey_nothing_at_all() {
    // Guards against every use of what somebody keeps who was removed: his secret, the root of his
    // time, and copies of the keyring of before, of in between and of after the rekey; he can also
    // write the bucket.
    let (bench, bucket) = filled().await;
    let by = by(&bench);
    let id = add_leaver(&by).await;
    bench.mount().await.shutdown(LONG).await;
    let before = keyring(&*bucket).await;
    let his = before.unlock(&key_file(66)).expect("his copy opens");
    let (slot, seed) = before.find(&key_file(66)).expect("his slot");
    let old = objects(&*bucket).await;

    let removed = change_keyring(&by, |ring, keys| Ok(((), ring.remove_slot(keys, id)?)));
    removed.await.expect("removes");
    let between = keyring(&*bucket).await;
    let m = bench.mount().await;
    write_file(&m.fs, Ino::ROOT, "secret", &contents("secret")).await;
    assert!(m.shutdown(LONG).await);
    let now = objects(&*bucket).await;
    let new: Objects = now.into_iter().filter(|(at, b)| old.get(at) != Some(b)).collect();
    assert!(new.keys().any(|at| at.as_ref().starts_with("seg/")));
    assert_eq!(opened_by(&his, &new).await, [], "of what was written after the removal");
    assert!(between.unlock(&key_file(66)).is_err() && between.open(slot, &seed).is_err());

    let report = rekeyed(&bench).await.expect("runs");
    assert!(report.is_complete(), "{report:?}");
    let (after, all) = (keyring(&*bucket).await, objects(&*bucket).await);
    assert_eq!(opened_by(&his, &all).await, [], "after the rekey");
    for ring in [&between, &after] {
        assert!(ring.unlock(&key_file(66)).is_err() && ring.open(slot, &seed).is_err());
    }
    expect_whole(&bench, "the owner").await;

    // What he makes of his copies is refused by a machine that was here since, mounted or not.
    let mut forged = before.clone();
    let mut evil = forged.rotate(&his).expect("he can make one");
    while forged.revision() <= after.revision() + 1 || forged.epoch() <= after.epoch() {
        evil = forged.rotate(&evil).expect("and go on");
    }
    let m = bench.mount().await;
    let at = Path::from("keyring");
    for (what, bad) in [("forged", &forged), ("between", &between), ("before", &before)] {
        bucket.put(&at, bad.to_bytes().into()).await.expect("puts");
        m.follow_config().await;
        let warnings = m.control.status().warnings;
        assert!(!warnings.is_empty(), "{what}: a mount takes it up in silence");
        let elsewhere = KeyOptions {
            store: options_of(bucket.clone()),
            key: secret().into(),
            state_dir: bench.state(),
        };
        let made = change_keyring(&elsewhere, |ring, keys| Ok(((), ring.rotate(keys)?))).await;
        let refused = made.err().unwrap_or_else(|| panic!("{what}: built upon"));
        assert_eq!(refused.kind(), StackErrorKind::Corrupt, "{what}: {refused}");
    }
    write_file(&m.fs, Ino::ROOT, "meanwhile", &contents("meanwhile")).await;
    assert!(m.sync(LONG).await);
    assert_eq!(opened_by(&his, &objects(&*bucket).await).await, [], "what the mount wrote on");
    bucket.put(&at, after.to_bytes().into()).await.expect("puts");
    m.follow_config().await;
    assert_eq!(m.control.status().warnings, Vec::<String>::new());
    assert!(m.shutdown(LONG).await);

    // Objects of his time that he puts back, or makes with its root, open for nobody.
    let both = |at: &&Path| at.as_ref().starts_with("seg/") && old.contains_key(*at);
    let segment = all.keys().find(both).expect("one of his time");
    let made = his.object(segment.as_ref()).seal(&[7; 1000]);
    for bad in [old[segment].clone(), Bytes::from(made)] {
        bucket.put(segment, bad.into()).await.expect("puts");
        let report = bench.fsck(|o| o.data = true).await;
        assert!(!report.problems.is_empty());
    }
    bucket.put(segment, all[segment].clone().into()).await.expect("puts");
    expect_whole(&bench, "put right").await;
}

/// A store that dies at a chosen request, or before whose answer to it something else happens.
struct At {
    requests: AtomicU64,
    at: u64,
    then: Then,
}

enum Then {
    /// From then on nothing acts and everything fails; whether that request still acts.
    Dies { acts: bool },
    /// Another command is run to its end.
    Meets(Box<dyn Fn() + Send + Sync>),
}

impl Gate for At {
    fn step(&self, _: &str, _: &Path) -> (bool, bool) {
        let n = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        match &self.then {
            Then::Dies { acts } => (n < self.at || n == self.at && *acts, n < self.at),
            Then::Meets(other) => {
                if n == self.at {
                    other();
                }
                (true, true)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Add,
    Remove,
    Rotate,
    Rekey,
}

const COMMANDS: [Command; 4] = [Command::Add, Command::Remove, Command::Rotate, Command::Rekey];

/// Runs a key command; false if it was not done.
async fn run(command: Command, bench: &Bench, new: u8) -> bool {
    let by = by(bench);
    let changed = match command {
        Command::Add => {
            let add = |ring: &mut Keyring, keys: &VolumeKeys| {
                ring.add_slot(keys, &key_file(new), "new", KdfParams::FLOOR, 0)?;
                Ok(((), keys.clone()))
            };
            change_keyring(&by, add).await.map(drop)
        }
        Command::Remove => {
            let remove = |ring: &mut Keyring, keys: &VolumeKeys| {
                let leaver = ring.slots().into_iter().find(|slot| slot.label == "leaver");
                match leaver {
                    Some(slot) => Ok(((), ring.remove_slot(keys, slot.id)?)),
                    None => Ok(((), keys.clone())), // somebody else has done it
                }
            };
            change_keyring(&by, remove).await.map(drop)
        }
        Command::Rotate => {
            change_keyring(&by, |ring, keys| Ok(((), ring.rotate(keys)?))).await.map(drop)
        }
        Command::Rekey => match rekeyed(bench).await {
            Ok(report) => return report.is_complete(),
            Err(e) => Err(e),
        },
    };
    changed.is_ok()
}

/// A volume with files and somebody who may be removed.
async fn with_a_leaver() -> Arc<InMemory> {
    let (bench, bucket) = filled().await;
    add_leaver(&by(&bench)).await;
    bucket
}

fn points(requests: u64) -> Vec<u64> {
    let all = std::env::var_os("SEALFS_TEST_FULL").is_some();
    let stride = if all { 1 } else { requests.div_ceil(12).max(1) as usize };
    (1..=requests).step_by(stride).collect()
}

async fn requests_of(command: Command, base: &InMemory) -> u64 {
    let never = At { requests: AtomicU64::new(0), at: u64::MAX, then: Then::Dies { acts: true } };
    let gated = Gated::new(Arc::new(base.fork()), never);
    assert!(run(command, &Bench::seeing(gated.clone()), 77).await, "{command:?}");
    gated.gate.requests.load(Ordering::SeqCst)
}

/// As if the process that holds the volume were gone.
async fn give_the_lease_back(bucket: &Arc<InMemory>) {
    let keys = keyring(&**bucket).await.unlock(&secret()).expect("opens");
    let (sealed, at) = (Sealed::new(bucket.clone(), keys), Path::from("lease"));
    let lease = sealed.get(&at).await.expect("there").bytes().await.expect("opens");
    let mut lease: serde_json::Value = serde_json::from_slice(&lease).expect("JSON");
    lease["released"] = true.into();
    sealed.put(&at, lease.to_string().into()).await.expect("puts");
}

/// Which secrets open the volume must be as the commands that were done have it.
async fn expect_secrets(bucket: &InMemory, done: &[(Command, bool)], what: &str) {
    let ring = keyring(bucket).await;
    let opens = |byte: u8| ring.unlock(&key_file(byte)).is_ok();
    ring.unlock(&secret()).unwrap_or_else(|e| panic!("{what}: the owner's: {e}"));
    for (n, (command, is_done)) in done.iter().enumerate() {
        match command {
            Command::Add if *is_done => assert!(opens(77 + n as u8), "{what}: the new one"),
            Command::Remove if *is_done => assert!(!opens(66), "{what}: the removed one"),
            _ => {}
        }
    }
    if done.iter().all(|(command, _)| *command != Command::Remove) {
        assert!(opens(66), "{what}: the one that stays");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_command_that_dies_at_any_request_locks_nobody_out_and_lets_nobody_in() {
    // Guards against a volume that opens with no secret, or with a removed one, after kill -9 or an
    // outage at the nth request, before and after it acted; and against a rekey that cannot go on.
    let base = with_a_leaver().await;
    let before = keyring(&*base).await.unlock(&secret()).expect("opens");
    let mut visits = Vec::new();
    for command in COMMANDS {
        let requests = requests_of(command, &base).await;
        for at in points(requests) {
            visits.extend([false, true].map(|acts| (command, at, acts)));
        }
        eprintln!("{command:?}: {requests} requests");
    }
    let visit = |(command, at, acts): (Command, u64, bool)| {
        let (bucket, before) = (Arc::new(base.fork()), &before);
        async move {
            let what = format!("{command:?}, request {at}, acts: {acts}");
            let dies = At { requests: AtomicU64::new(0), at, then: Then::Dies { acts } };
            let killed = Bench::seeing(Gated::new(bucket.clone(), dies));
            // Who asks a dead store again and again is as good as killed.
            let ran = tokio::time::timeout(Duration::from_secs(4), run(command, &killed, 77)).await;
            expect_secrets(&bucket, &[(command, ran.unwrap_or(false))], &what).await;
            // Another machine goes on: what was killed still runs here, and does nothing any more. Its
            // lease would be found out by its process.
            let bench = Bench::seeing(bucket.clone());
            give_the_lease_back(&bucket).await;
            if command == Command::Rekey {
                let report = rekeyed(&bench).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(report.is_complete(), "{what}: {report:?}");
                let left = opened_by(before, &objects(&*bucket).await).await;
                assert_eq!(left, [], "{what}");
                assert_eq!(keyring(&*bucket).await.old_roots(), [] as [u32; 0], "{what}");
            }
            expect_whole(&bench, &what).await;
        }
    };
    futures::stream::iter(visits).for_each_concurrent(12, visit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_command_that_meets_another_at_any_request_loses_neither() {
    // Guards against one of two commands undoing the other, or both failing: each is met by each
    // other one at another request.
    let base = with_a_leaver().await;
    for first in COMMANDS {
        let requests = requests_of(first, &base).await;
        for (n, at) in points(requests).into_iter().enumerate() {
            let second = COMMANDS[n % 3]; // a rekey mounts, which the other would wait for
            let what = format!("{first:?} met by {second:?} at request {at}");
            let bucket = Arc::new(base.fork());
            let other = Bench::seeing(bucket.clone());
            let done = Arc::new(AtomicBool::new(false));
            let meets = {
                let done = done.clone();
                move || {
                    // On a separate stack: this one is deep inside of the first command.
                    let here = tokio::runtime::Handle::current();
                    let other =
                        || done.store(here.block_on(run(second, &other, 78)), Ordering::SeqCst);
                    tokio::task::block_in_place(|| {
                        std::thread::scope(|threads| {
                            let thread = std::thread::Builder::new().stack_size(16 << 20);
                            thread.spawn_scoped(threads, other).expect("a thread");
                        })
                    });
                }
            };
            let then = Then::Meets(Box::new(meets));
            let gated = Gated::new(bucket.clone(), At { requests: AtomicU64::new(0), at, then });
            let mut bench = Bench::seeing(gated.clone());
            let is_done = run(first, &bench, 77).await;
            // How many requests a rekey makes varies by a few.
            let met = gated.gate.requests.load(Ordering::SeqCst) >= at;
            assert!(is_done && done.load(Ordering::SeqCst) == met, "{what}: {is_done}, {met}");
            expect_secrets(&bucket, &[(first, true), (second, met)], &what).await;
            bench.store = bucket.clone();
            expect_whole(&bench, &what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_goes_on_when_the_keys_are_rotated_under_it() {
    // Guards against "damaged" for what a mount has written in an epoch that began while fsck, or a
    // look at every object, was on its way: at the nth request somebody rotates and writes.
    let (_, base) = filled().await;
    for (n, check) in ["fsck", "looking"].into_iter().cycle().take(12).enumerate() {
        let what = format!("{check} met by a rotation at request {}", n + 3);
        let bucket = Arc::new(base.fork());
        let other = Bench::seeing(bucket.clone());
        let meets = move || {
            let here = tokio::runtime::Handle::current();
            let rotates = async {
                assert!(run(Command::Rotate, &other, 0).await);
                let m = other.mount().await;
                write_file(&m.fs, Ino::ROOT, "new", &contents("new")).await;
                assert!(m.shutdown(LONG).await);
            };
            tokio::task::block_in_place(|| {
                std::thread::scope(|threads| {
                    let thread = std::thread::Builder::new().stack_size(16 << 20);
                    thread.spawn_scoped(threads, || here.block_on(rotates)).expect("a thread");
                })
            });
        };
        let then = Then::Meets(Box::new(meets));
        let at = At { requests: AtomicU64::new(0), at: n as u64 + 3, then };
        let bench = Bench::seeing(Gated::new(bucket, at));
        if check == "fsck" {
            let report = bench.fsck(|o| o.data = true).await;
            assert!(report.problems.is_empty(), "{what}: {:?}", report.problems);
        } else {
            let found = epochs_in_use(&by(&bench), Arc::default()).await;
            let (_, failed) = found.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(failed, [], "{what}");
        }
    }
}
