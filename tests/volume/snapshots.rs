//! Snapshots: each stays what it was whatever becomes of the volume, and what only it held comes free
//! when it is deleted.

mod past;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::mounts::Volume;
use crate::needs_fuse;
use crate::volume::{
    self, Bench, LONG, contents, options_of, read_file, secret, segments, until, write_file,
};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sealfs::base::Ino;
use sealfs::commit::check::{CheckOptions, check};
use sealfs::commit::snapshots::{Snapshot, open_snapshot, snapshots, what_they_hold};
use sealfs::commit::{CleanOptions, SnapshotError, SnapshotOrder};
use sealfs::fs::WriteFlags;
use sealfs::meta::{SnapshotName, SnapshotOrigin};
use sealfs::stack::{KeyOptions, MountOptions, Mounted, schedule};
use sealfs::store::SegmentStore;

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

async fn bytes_of(store: &Arc<dyn ObjectStore>) -> u64 {
    let all: Vec<ObjectMeta> = store.list(None).try_collect().await.expect("lists");
    all.iter().map(|object| object.size).sum()
}

/// A snapshot keeps all rules of a volume, and the bucket has every segment that it refers to.
async fn assert_whole(m: &Mounted, bench: &Bench, snapshot: &Snapshot) {
    let kv = open_snapshot(m.view().kv(), &snapshot.row, LONG).await.expect("opens");
    let (report, known) =
        check(&kv, CheckOptions::default(), &AtomicU64::new(0)).await.expect("reads");
    assert_eq!(report.problems(), Vec::<String>::new(), "{}", snapshot.name);
    assert_eq!(report.inodes, snapshot.row.files);
    let there: BTreeSet<_> =
        segments(&*bench.store).await.into_iter().map(|o| o.location).collect();
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
    let before = segments(&*bench.store).await;
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
    let there: BTreeSet<_> =
        segments(&*bench.store).await.into_iter().map(|o| o.location).collect();
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
            segments(&*bench.store).await.into_iter().map(|o| o.location).collect();
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
    come_and_go(60, 12, MIB / 16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/test-nightly"]
async fn a_thousand_snapshots_come_and_go() {
    // The same, for long enough that every table was compacted and collected many times.
    come_and_go(1000, 40, MIB / 4).await;
}

/// What is in each file of a volume: its name, and what its contents were made of.
type Files = Vec<(String, (String, usize))>;

/// Every file of a snapshot is what it was.
async fn assert_reads(m: &Mounted, snapshot: &str, files: &Files) {
    let fs = m.tree.snapshot(snapshot).await.expect("opens").expect("is there");
    for (name, (of, size)) in files {
        let found = read_file(&fs, name).await;
        assert!(found == contents(of, *size), "{name} in {snapshot} is not {of}");
    }
}

/// So many snapshots of a volume that changes, at most so many of them at a time.
async fn come_and_go(rounds: usize, most: usize, size: usize) {
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "stays", &contents("stays", 3 * MIB)).await;
    assert!(m.sync(LONG).await);
    let plain = bytes_of(&bench.store).await;
    let mut live: Vec<(Snapshot, Files)> = Vec::new();
    let mut files: Files = vec![("stays".into(), ("stays".into(), 3 * MIB))];
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..rounds {
        let name = format!("f{}", round % 5);
        if round >= 5 {
            remove(&m, &name).await;
        }
        let of = (format!("{name}{round}"), size + round * 1000 % size);
        write_file(&m.fs, Ino::ROOT, &name, &contents(&of.0, of.1)).await;
        files.retain(|(there, _)| *there != name);
        files.push((name, of));
        live.push((create(&m, &format!("s{round}")).await, files.clone()));
        if live.len() > most {
            let (gone, _) = live.remove(rng.random_range(0..live.len()));
            delete(&m, &[gone.name.as_str()]).await;
        }
        if round % 100 == 99 {
            let (snapshot, files) = &live[rng.random_range(0..live.len())];
            assert_reads(&m, snapshot.name.as_str(), files).await;
        }
    }
    for (snapshot, files) in &live {
        assert_whole(&m, &bench, snapshot).await;
        assert_reads(&m, snapshot.name.as_str(), files).await;
    }
    for n in 0..5 {
        remove(&m, &format!("f{n}")).await;
    }
    let names: Vec<_> = live.iter().map(|(snapshot, _)| snapshot.name.as_str()).collect();
    delete(&m, &names).await;
    let begun = Instant::now();
    while bytes_of(&bench.store).await > plain * 105 / 100 {
        assert!(begun.elapsed() < 2 * LONG, "never as small: {plain}, now {}", parts(&bench).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(m.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}

/// Objects and bytes by directory.
async fn parts(bench: &Bench) -> String {
    let all: Vec<ObjectMeta> = bench.store.list(None).try_collect().await.expect("lists");
    let mut parts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for object in all {
        let dir = object.location.as_ref().rsplit_once('/').map_or("", |(dir, _)| dir);
        let part = parts.entry(dir.to_string()).or_default();
        *part = (part.0 + 1, part.1 + object.size);
    }
    format!("{parts:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_roll_do_not_hold_what_none_of_them_needs() {
    // Guards against segments that stay for ever because the newest snapshot always holds the little
    // that is live in them: each round writes, into one segment, a file that is replaced in the next
    // round and one that stays. Once as a schedule makes snapshots, once by a script that says nothing
    // of when they go.
    for origin in [SnapshotOrigin::Hourly, SnapshotOrigin::ByHand] {
        const ROUNDS: usize = 24;
        const KEPT: usize = 3;
        let bench = Bench::new().await;
        let together = |o: &mut MountOptions| {
            quick(o);
            o.commit_interval = LONG;
        };
        let m = bench.mount_with(together).await.expect("mounts");
        let roll = async |round: usize| {
            let order = SnapshotOrder { origin, ..order(&format!("s{round}")) };
            m.create_snapshot(order, LONG).await.expect("a snapshot");
            if round >= KEPT {
                delete(&m, &[&format!("s{}", round - KEPT)]).await;
            }
        };
        let mut files: Files = Vec::new();
        for round in 0..ROUNDS {
            if round > 0 {
                remove(&m, "hot").await;
            }
            files.retain(|(name, _)| name != "hot");
            for (name, of, size) in [
                ("hot".to_string(), format!("hot{round}"), MIB),
                (format!("cold{round}"), format!("cold{round}"), MIB / 32),
            ] {
                write_file(&m.fs, Ino::ROOT, &name, &contents(&of, size)).await;
                files.push((name, (of, size)));
            }
            roll(round).await;
        }
        // Snapshots go on being made and deleted. Needed are 1.75 MiB; there were 24.75.
        let (begun, mut round) = (Instant::now(), ROUNDS);
        loop {
            write_file(&m.fs, Ino::ROOT, &format!("tick{round}"), b"x").await;
            roll(round).await;
            let stored: u64 = segments(&*bench.store).await.iter().map(|object| object.size).sum();
            if round >= ROUNDS + KEPT && stored <= 4 * MIB as u64 {
                break;
            }
            assert!(begun.elapsed() < 4 * LONG, "{origin:?}: {stored} bytes in round {round}");
            tokio::time::sleep(Duration::from_millis(200)).await;
            round += 1;
        }
        assert_reads(&m, &format!("s{round}"), &files).await;
        assert_reads(&m, &format!("s{}", round + 1 - KEPT), &files).await;
        assert!(m.shutdown(LONG).await);
        assert_eq!(bench.fsck(|o| o.data = true).await.problems, [], "{origin:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_covers_what_only_snapshots_refer_to_and_a_repair_leaves_it_alone() {
    // Guards against a snapshot whose data are gone and nobody says so, and against a repair that takes
    // what only a snapshot refers to for a leftover: one such segment is taken away, one is altered.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    for name in ["gone", "altered", "whole"] {
        write_file(&m.fs, Ino::ROOT, name, &contents(name, MIB)).await;
        assert!(m.sync(LONG).await);
    }
    let kept = create(&m, "past").await;
    let before: BTreeSet<_> =
        segments(&*bench.store).await.into_iter().map(|o| o.location).collect();
    for name in ["gone", "altered", "whole"] {
        remove(&m, name).await;
    }
    assert!(m.sync(LONG).await);
    until("kept", async || m.view().holders().kept().is_some_and(|kept| kept.segments > 0)).await;
    assert!(m.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
    // Repairing changes nothing of it.
    let repaired = bench.fsck(|o| o.repair = true).await;
    assert_eq!((repaired.problems.len(), repaired.repaired.len()), (0, 0), "{repaired:?}");
    let mut names = before.iter();
    let (first, second) = (names.next().expect("three"), names.next().expect("three"));
    let bytes = bench.store.get(second).await.expect("there").bytes().await.expect("reads");
    let mut altered = bytes.to_vec();
    let at = altered.len() / 2;
    altered[at] ^= 1;
    bench.store.put(second, altered.into()).await.expect("puts");
    bench.store.delete(first).await.expect("deletes");
    let report = bench.fsck(|o| o.data = true).await;
    let of = |name: &Path| {
        let id = name.filename().expect("a name");
        let found = report.problems.iter().find(|problem| problem.what.contains(id));
        found.unwrap_or_else(|| panic!("nothing of {name} in {:?}", report.problems)).clone()
    };
    for name in [first, second] {
        let files = of(name).files;
        assert!(files.iter().any(|file| file.starts_with("snapshot past: /")), "{files:?}");
    }
    bench.fsck(|o| o.repair = true).await;
    let m = bench.mount_with(quick).await.expect("mounts");
    assert_eq!(snapshots(m.view().kv()).await.expect("lists"), [kept]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let now: BTreeSet<_> = segments(&*bench.store).await.into_iter().map(|o| o.location).collect();
    assert!(before.iter().skip(1).all(|name| now.contains(name)), "a repair lost segments");
    assert!(m.shutdown(LONG).await);
}

#[test]
fn the_commands_work_on_a_mount_and_on_a_store() {
    // Guards against a snapshot without what was just written, against an exit status 0 for what was not
    // done, and against a list that cannot be read by a program.
    needs_fuse!();
    let v = Volume::mounted();
    std::fs::write(v.at("a"), b"one").expect("writes");
    let vault = v.text("vault");
    let made =
        v.ok(&["snapshot", "create", &vault, "monday", "--note", "a note", "--expire", "30d"]);
    assert!(made.starts_with("snapshot monday: commit "), "{made}");
    let twice = v.fails(&["snapshot", "create", &vault, "monday"], 1);
    assert!(
        twice.contains("there is a snapshot monday already\nhint: sealfs snapshot list"),
        "{twice}"
    );
    for bad in ["now", "a/b", ".x"] {
        v.fails(&["snapshot", "create", &vault, bad], 2);
    }
    let list = v.ok(&["snapshot", "list", &vault, "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let one = &list["snapshots"][0];
    assert_eq!((&one["name"], &one["note"]), (&"monday".into(), &"a note".into()));
    assert_eq!((&one["files"], &one["bytes"]), (&2.into(), &4096.into()), "{one}");
    let month = one["expires_unix_secs"].as_u64().expect("a time")
        - one["made_unix_secs"].as_u64().expect("a time");
    assert!((29 * 86_400..=30 * 86_400).contains(&month), "{month}");
    assert_eq!(v.status("snapshots"), 1);
    // A STORE that is mounted here is asked as well; one that is not is mounted for a moment.
    let (url, file) = (v.url(), v.text("passphrase"));
    v.ok(&["snapshot", "create", &url, "tuesday"]);
    v.umount();
    let state = v.text("state");
    let access = ["--passphrase-file", &file, "--state-dir", &state];
    let on_store = |more: &[&'static str], names: &[&'static str]| -> Vec<String> {
        let words = [&["snapshot"], more].concat().into_iter().map(str::to_owned);
        let names = names.iter().map(|&name| name.to_owned());
        let access = access.iter().map(|&word| word.to_owned());
        words.chain([url.clone()]).chain(names).chain(access).collect()
    };
    let ok = |args: Vec<String>| v.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    ok(on_store(&["create"], &["wednesday"]));
    let text = ok(on_store(&["list"], &[]));
    for name in ["monday", "tuesday", "wednesday", "3 snapshots hold"] {
        assert!(text.contains(name), "{text}");
    }
    let half = on_store(&["delete"], &["monday", "thursday"]);
    let none = v.fails(&half.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    assert!(none.contains("there is no snapshot thursday"), "{none}");
    assert_eq!(ok(on_store(&["delete", "--older-than", "1h"], &[])), "0 snapshots deleted\n");
    assert_eq!(ok(on_store(&["delete"], &["monday", "tuesday"])), "2 snapshots deleted\n");
    let left = ok(on_store(&["list"], &[]));
    assert!(left.contains("wednesday") && !left.contains("monday"), "{left}");
    v.fails(&["snapshot", "list", &v.path("nowhere").display().to_string()], 9);
}

#[test]
fn a_mount_of_a_snapshot_lists_them_all_and_says_what_it_is() {
    // Guards against "no snapshots" from the mount of one, and a restore that looks for them in it.
    needs_fuse!();
    let v = Volume::mounted();
    std::fs::write(v.at("a"), b"one").expect("writes");
    let vault = v.text("vault");
    v.ok(&["snapshot", "create", &vault, "monday"]);
    v.ok(&["snapshot", "create", &vault, "tuesday"]);
    v.umount();
    v.mount(&["--snapshot", "monday"]);
    let list = v.ok(&["snapshot", "list", &vault]);
    assert!(list.contains("monday") && list.contains("tuesday"), "{list}");
    for command in [&["restore", &vault, "monday"][..], &["diff", &vault, "monday", "tuesday"]] {
        let refused = v.fails(&[&["snapshot"], command].concat(), 1);
        assert!(refused.contains("this is a mount of snapshot \"monday\""), "{refused}");
        assert!(refused.contains("\nhint: "), "{refused}");
    }
    v.umount();
}

#[test]
fn status_says_when_the_volume_hides_its_snapshots() {
    // Guards against snapshots that are there and cannot be found: a name `.snapshots` of the volume's
    // own is shown in their place, and nobody says so.
    needs_fuse!();
    let v = Volume::create();
    let notes = || v.status("notes").to_string();
    v.mount(&["-o", "snapdir=off"]);
    std::fs::create_dir(v.at(".snapshots")).expect("makes");
    assert_eq!(notes(), "[]", "nothing is to be shown");
    v.umount();
    v.mount(&[]);
    let said = notes();
    assert!(said.contains("in place of its snapshots") && said.contains("mv "), "{said}");
    std::fs::rename(v.at(".snapshots"), v.at("mine")).expect("moves");
    assert_eq!(notes(), "[]");
    assert!(v.at(".snapshots").is_dir());
    v.umount();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schedule_of_the_volume_is_kept_and_what_has_expired_goes() {
    // Guards against a schedule that is remembered and not kept, against two of an hour, and against a
    // snapshot that outlives its time. Each look is asked for: by itself it comes twice a minute.
    let bench = Bench::new().await;
    let options = KeyOptions {
        store: options_of(bench.store.clone()),
        key: secret().into(),
        state_dir: bench.state(),
    };
    let to = "hourly=2,daily=3".parse().expect("a schedule");
    let (_, now) = schedule(&options, Some(to)).await.expect("changes");
    assert_eq!(now.to_string(), "hourly=2,daily=3");
    let m = bench.mount_with(quick).await.expect("mounts");
    let brief = SnapshotOrder { expires_secs: sealfs::base::unix_secs() + 2, ..order("brief") };
    m.create_snapshot(brief, LONG).await.expect("a snapshot");
    let names = async || -> Vec<String> {
        let all = snapshots(m.view().kv()).await.expect("lists");
        all.iter().map(|s| s.name.to_string()).collect()
    };
    let origins = ["hourly-2", "daily-2"];
    until("as the schedule says", async || {
        m.follow_config().await;
        let names = names().await;
        let made = origins.map(|kind| names.iter().filter(|n| n.starts_with(kind)).count());
        assert!(made[0] <= 2 && made[1] <= 2, "{names:?}"); // an hour may end meanwhile
        made.iter().all(|n| *n > 0) && !names.contains(&"brief".to_string())
    })
    .await;
    let status = m.control.status();
    assert_eq!(status.snapshot_schedule, "hourly=2,daily=3");
    assert!(status.snapshot_last.is_some() && status.snapshot_next_unix_secs.is_some());
    assert_eq!(status.warnings, Vec::<String>::new());
    // Off: those that are there stay.
    let before = names().await;
    schedule(&options, Some("off".parse().expect("a schedule"))).await.expect("changes");
    m.follow_config().await;
    until("off", async || m.control.status().snapshot_next_unix_secs.is_none()).await;
    assert_eq!(names().await, before);
    assert!(m.shutdown(LONG).await);
}
