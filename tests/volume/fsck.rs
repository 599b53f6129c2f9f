//! `sealfs fsck`: every rule of the metadata, broken on purpose, is found, named by path, and
//! put right without losing contents; so is what is wrong with the objects themselves.

use crate::volume;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::volume::gated::{Gate, Gated};
use crate::volume::{Bench, LONG, find, read_file, secret, write_file};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::base::{ContentsId, Ino, SegmentId};
use sealfs::commit::Batch;
use sealfs::fs::Fs;
use sealfs::meta::{
    DeadRow, Dirent, Inode, InodeExtent, Kind, MarkerRow, NameHash, SegmentRow, keys,
};
use sealfs::seal::Keyring;
use sealfs::stack::{FsckProgress, FsckReport, Mounted, StackError, fsck};
use sealfs::store::SegmentStore;
use sealfs::store::segments::Owned;

/// What the broken volumes hold.
const FILES: [(&str, usize); 4] =
    [("a", 40_000), ("dir/b", 300_000), ("dir/deep/c", 5), ("dir/deep/d", 70_000)];

fn contents(name: &str, len: usize) -> Vec<u8> {
    let salt = name.len() * 7 + name.as_bytes()[name.len() - 1] as usize;
    (0..len).map(|i| ((i * 31 + i / 255 + salt) % 251) as u8).collect()
}

async fn fill(fs: &Arc<Fs>) {
    let dir = fs.mkdir(volume::CALLER, Ino::ROOT, "dir".into(), 0o755, 0).await.expect("mkdir");
    fs.mkdir(volume::CALLER, dir.ino, "deep".into(), 0o755, 0).await.expect("mkdir");
    for (path, len) in FILES {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = find(fs, parent).await;
        write_file(fs, parent, name, &contents(path, len)).await;
    }
}

async fn filled() -> Bench {
    let bench = Bench::new().await;
    let mounted = bench.mount().await;
    fill(&mounted.fs).await;
    assert!(mounted.shutdown(LONG).await);
    bench
}

/// What breaks a volume.
struct Break<'a> {
    mounted: &'a Mounted,
    hash: [u8; 16],
    batch: Batch,
}

impl Break<'_> {
    fn entry(&self, parent: Ino, name: &str) -> sealfs::meta::Key {
        keys::dirent(parent, NameHash::of(&self.hash, name.as_bytes()), name.as_bytes())
    }

    async fn ino(&self, path: &str) -> Ino {
        find(&self.mounted.fs, path).await
    }

    async fn change(&mut self, path: &str, change: impl FnOnce(&mut Inode)) {
        let ino = self.ino(path).await;
        let row = self.mounted.view().get(&keys::inode(ino)).await.expect("reads").expect("there");
        let mut inode = Inode::decode(&row).expect("decodes");
        change(&mut inode);
        self.batch.put(keys::inode(ino), inode.encode());
    }

    /// The only extent of a file.
    async fn extent(&self, path: &str) -> InodeExtent {
        let ino = self.ino(path).await;
        let row = self.mounted.view().kv().get(&keys::inode(ino)).await.expect("reads");
        Inode::decode_with(&row.expect("there")).expect("decodes").1.expect("one extent")
    }
}

/// Names of all the ways in which rows are broken below, what the check must say of each, and
/// where the file that was touched is after the repair (`#` stands for its inode number).
const BREAKS: [(&str, &str, &str); 22] = [
    ("name removed", "has links and no name", "dir/b lost+found/#"),
    ("directory's name removed", "has links and no name", "dir/deep/c lost+found/#/c"),
    ("directory's row removed", "which is no directory", "dir/deep/c lost+found/#/c"),
    ("name of nothing", "which is not there", ""),
    ("kind in the name", "says another kind", "a a"),
    ("link count", "links, has", "a a"),
    ("directory's link count", "links, has", "dir/deep/c dir/deep/c"),
    ("entry count", "entries, has", "dir/b dir/b"),
    ("parent", "says that it lies in", "dir/deep/c dir/deep/c"),
    ("cycle", "lies below itself", "dir/deep/c lost+found/#/c"),
    ("orphan of nothing", "has no inode", ""),
    ("orphan with links", "listed as orphan", "a a"),
    ("attribute count", "attributes, has", "a a"),
    ("file's row removed", "have no file", "dir/b lost+found/#"),
    ("stale incarnation", "have no file", ""),
    ("segment accounting", "said live", "dir/b dir/b"),
    ("half since", "said to be not that since commit 1", "dir/b dir/b"),
    ("segment row removed", "no accounting row", "dir/b dir/b"),
    ("owner of nothing", "0 files said to share it, 1 found", ""),
    ("owners not counted", "0 files said to share it, 1 found", "dir/b dir/b"),
    ("dead and alive", "both dead and alive", "dir/b dir/b"),
    ("blocks", "shows 0 bytes in use", "dir/b dir/b"),
];

async fn break_it(how: &str, b: &mut Break<'_>) {
    let (dir, deep) = (b.ino("dir").await, b.ino("dir/deep").await);
    match how {
        "name removed" => b.batch.delete(b.entry(dir, "b")),
        "directory's name removed" => b.batch.delete(b.entry(dir, "deep")),
        "directory's row removed" => {
            b.batch.delete(keys::inode(deep));
            b.batch.delete(b.entry(dir, "deep"));
        }
        "name of nothing" => {
            let entry = Dirent { ino: Ino(4_000), kind: Kind::File };
            b.batch.put(b.entry(dir, "nothing"), entry.encode());
        }
        "kind in the name" => {
            let entry = Dirent { ino: b.ino("a").await, kind: Kind::Fifo };
            b.batch.put(b.entry(Ino::ROOT, "a"), entry.encode());
        }
        "link count" => b.change("a", |i| i.nlink = 3).await,
        "directory's link count" => b.change("dir", |i| i.nlink = 9).await,
        "entry count" => b.change("dir", |i| i.size = 77).await,
        "parent" => b.change("dir/deep", |i| i.parent = Ino::ROOT).await,
        "cycle" => {
            b.batch.delete(b.entry(dir, "deep"));
            let entry = Dirent { ino: deep, kind: Kind::Dir };
            b.batch.put(b.entry(deep, "deep"), entry.encode());
            b.change("dir/deep", |i| i.parent = deep).await;
        }
        "orphan of nothing" => b.batch.put(keys::orphan(Ino(5_000)), MarkerRow::encode()),
        "orphan with links" => {
            b.batch.put(keys::orphan(b.ino("a").await), MarkerRow::encode());
        }
        "owner of nothing" => {
            let key =
                keys::owner(SegmentId([7; 16]), ContentsId { ino: Ino(5_000), incarnation: 1 });
            b.batch.put(key, MarkerRow::encode());
        }
        "attribute count" => b.change("a", |i| i.xattrs = 2).await,
        "file's row removed" => {
            b.batch.delete(keys::inode(b.ino("dir/b").await));
            b.batch.delete(b.entry(dir, "b"));
        }
        "stale incarnation" => b.change("dir/b", |i| i.incarnation = 5).await,
        "blocks" => b.change("dir/b", |i| i.allocated = 0).await,
        _ => {
            let extent = b.extent("dir/b").await;
            let id = extent.segment;
            match how {
                "segment accounting" | "half since" => {
                    let row = b.mounted.view().kv().get(&keys::segment(id)).await.expect("reads");
                    let row = row.expect("there");
                    let (row, frames) = SegmentRow::decode_with(&row).expect("decodes");
                    let wrong = match how {
                        "half since" => SegmentRow { half_since: 1, ..row },
                        _ => SegmentRow { live: row.live - 1, ..row },
                    };
                    b.batch.put(keys::segment(id), wrong.encode_with(frames));
                }
                "owners not counted" => {
                    let file = ContentsId { ino: b.ino("a").await, incarnation: 0 };
                    b.batch.put(keys::owner(id, file), MarkerRow::encode());
                }
                "segment row removed" => b.batch.delete(keys::segment(id)),
                "dead and alive" => {
                    b.batch.put(keys::dead_segment(u64::MAX, id), DeadRow::UNBORN.encode());
                }
                _ => panic!("{how}?"),
            }
        }
    }
}

async fn keys_of(bench: &Bench) -> sealfs::seal::VolumeKeys {
    let keyring = bench.store.get(&Path::from("keyring")).await.expect("there");
    let keyring = Keyring::parse(&keyring.bytes().await.expect("reads")).expect("parses");
    keyring.unlock(&secret()).expect("unlocks")
}

fn words(report: &FsckReport) -> Vec<&str> {
    report.problems.iter().map(|p| p.what.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_rule_is_found_and_repaired_without_losing_contents() {
    // Guards against a check that misses what it claims to check, and against a repair that
    // loses a file, or says that all is well when it is not. Each rule is broken in a volume of
    // its own; then the check, the repair, and the check again; then every file is read.
    for (how, says, moved) in BREAKS {
        let bench = filled().await;
        let clean = bench.fsck(|_| {}).await;
        assert_eq!(clean.problems, [], "before: {how}");
        let mounted = bench.mount().await;
        let hash = keys_of(&bench).await.name_hash_key();
        let mut b = Break { mounted: &mounted, hash, batch: Batch::default() };
        break_it(how, &mut b).await;
        let (batch, mut at) = (b.batch, String::new());
        if let Some((old, new)) = moved.split_once(' ') {
            let touched = if new.ends_with("/c") { "dir/deep" } else { old };
            at = new.replace('#', &format!("#{}", find(&mounted.fs, touched).await));
        }
        mounted.fs.mend(batch).await.expect("breaks");
        assert!(mounted.shutdown(LONG).await, "{how}");

        let found = bench.fsck(|_| {}).await;
        assert!(
            words(&found).iter().any(|what| what.contains(says)),
            "{how}: {:?}",
            found.problems
        );
        assert!(found.repaired.is_empty());
        let after = bench.fsck(|o| o.repair = true).await;
        assert_eq!(after.problems, [], "{how}: after repairing {:#?}", after.repaired);
        assert!(!after.repaired.is_empty(), "{how}");
        let again = bench.fsck(|o| o.data = true).await;
        assert_eq!(again.problems, [], "{how}: the check after the repair");

        let mounted = bench.mount().await;
        for (path, len) in FILES {
            let moved_here = moved.starts_with(&format!("{path} "));
            let below = how == "stale incarnation" && path == "dir/b";
            let aside = at.starts_with("lost+found") && path.starts_with("dir/deep/");
            let now = match () {
                _ if moved_here => at.clone(),
                _ if aside && at.ends_with("/c") => at.replace("/c", &path[8..]),
                _ if below => continue, // what is current of it is empty now
                _ => path.to_owned(),
            };
            let read = read_file(&mounted.fs, &now).await;
            // Made again from its data, a file is as long as its last extent.
            assert!(read == contents(path, len), "{how}: {path} is {now}");
        }
        assert!(mounted.shutdown(LONG).await, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_files_share_is_no_fault_and_what_nobody_says_is_shared_is_one() {
    // Guards against a check that cries over every copy, and against one that no longer sees two
    // files claim the same bytes.
    let bench = filled().await;
    let mounted = bench.mount().await;
    let b = find(&mounted.fs, "dir/b").await;
    let copy = write_file(&mounted.fs, Ino::ROOT, "copy", b"").await;
    let copied = mounted.fs.copy_file_range(volume::CALLER, b, 1000, copy, 0, 200_000).await;
    assert_eq!(copied, Ok(200_000));
    assert!(mounted.sync(LONG).await);
    let broken = Break { mounted: &mounted, hash: [0; 16], batch: Batch::default() };
    let id = broken.extent("copy").await.segment;
    let mut batch = broken.batch;
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
    batch.delete(keys::owner(id, ContentsId { ino: copy, incarnation: 0 }));
    mounted.fs.mend(batch).await.expect("breaks");
    assert!(mounted.shutdown(LONG).await);
    let found = bench.fsck(|_| {}).await;
    let says = |what: &str| words(&found).iter().any(|w| w.contains(what));
    assert!(says("two extents share bytes, and no row says so"), "{:?}", found.problems);
    assert!(says("1 file said to share it, 0 found"), "{:?}", found.problems);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_a_stale_incarnation_becomes_a_file_of_its_own() {
    // Guards against a repair that takes data without a file for garbage.
    let bench = filled().await;
    let mounted = bench.mount().await;
    let hash = keys_of(&bench).await.name_hash_key();
    let mut b = Break { mounted: &mounted, hash, batch: Batch::default() };
    break_it("stale incarnation", &mut b).await;
    let batch = b.batch;
    mounted.fs.mend(batch).await.expect("breaks");
    assert!(mounted.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.repair = true).await.problems, []);
    let mounted = bench.mount().await;
    let lost = find(&mounted.fs, "lost+found").await;
    let names = mounted.fs.readdir(lost, 2, 10).await.expect("lists");
    assert_eq!(names.len(), 1, "{names:?}");
    let name = String::from_utf8(names[0].name.clone()).expect("text");
    let read = read_file(&mounted.fs, &format!("lost+found/{name}")).await;
    assert!(read == contents("dir/b", 300_000));
    mounted.shutdown(LONG).await;
}

async fn segments_of(bench: &Bench, path: &str) -> SegmentId {
    let mounted = bench.mount().await;
    let b = Break { mounted: &mounted, hash: [0; 16], batch: Batch::default() };
    let id = b.extent(path).await.segment;
    mounted.shutdown(LONG).await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_missing_and_strange_objects_are_found_with_the_files_they_touch() {
    // Guards against a check that says "nothing is wrong" of a bucket that was tampered with,
    // and against one that names an object and leaves the user to guess the files.
    let bench = filled().await;
    let name = SegmentStore::name(segments_of(&bench, "dir/b").await);
    let whole = bench.store.get(&name).await.expect("there").bytes().await.expect("reads");
    let clean = bench.fsck(|o| o.data = true).await;
    assert_eq!(clean.problems, []);
    let (objects, bytes) = clean.read.expect("read");
    assert!(objects > 2 && bytes > 400_000, "{objects} objects, {bytes} bytes");

    let mut flipped = whole.to_vec();
    flipped[200_000] ^= 4;
    bench.store.put(&name, flipped.into()).await.expect("puts");
    assert_eq!(bench.fsck(|_| {}).await.problems, [], "only --data reads contents");
    let found = bench.fsck(|o| o.data = true).await;
    assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    let problem = &found.problems[0];
    assert!(problem.what.contains("16384 bytes do not open"), "{problem:?}");
    assert!(problem.files.iter().any(|f| f.starts_with("/dir/b: ")), "{problem:?}");
    assert!(problem.files.len() <= 2, "a chunk touches two files at most: {problem:?}");

    for (what, cut) in [("truncated", Some(100_000)), ("missing", None)] {
        match cut {
            Some(len) => bench.store.put(&name, whole.slice(..len).into()).await.map(|_| ()),
            None => bench.store.delete(&name).await,
        }
        .expect("changes");
        let found = bench.fsck(|_| {}).await;
        assert_eq!(found.problems.len(), 1, "{what}: {:?}", found.problems);
        assert!(found.problems[0].files.iter().any(|f| f.starts_with("/dir/b: ")), "{what}");
        // Nothing can be repaired, and nothing is deleted for trying.
        let before: Vec<_> =
            bench.store.list(Some(&"seg".into())).try_collect().await.expect("lists");
        let tried = bench.fsck(|o| o.repair = true).await;
        assert_eq!((tried.problems.len(), tried.repaired.len()), (1, 0), "{what}");
        let after: Vec<_> =
            bench.store.list(Some(&"seg".into())).try_collect().await.expect("lists");
        assert_eq!(before, after, "{what}");
    }
    bench.store.put(&name, whole.clone().into()).await.expect("puts");

    // A copy of an object that opens, under another name; and a header without a message.
    let planted = SegmentStore::name(SegmentId([0xcd; 16]));
    bench.store.put(&planted, whole.into()).await.expect("puts");
    bench.store.put(&"seg/ff/short".into(), Bytes::from(vec![1; 56]).into()).await.expect("puts");
    bench.store.put(&"meta/planted".into(), Bytes::from(vec![1; 99]).into()).await.expect("puts");
    let found = bench.fsck(|o| o.data = true).await;
    let said = words(&found).join("\n");
    for name in [planted.as_ref(), "seg/ff/short", "meta/planted"] {
        assert!(said.contains(name), "{name}: {said}");
    }
    assert_eq!(found.problems.len(), 3, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_a_commit_that_was_cut_off_are_collected_by_a_repair() {
    // Guards against objects that nobody knows staying in the bucket for ever: what a kill -9
    // between upload and commit leaves. And against collecting what a mount is about to commit.
    let bench = filled().await;
    let keys = keys_of(&bench).await;
    let sealed = Arc::new(sealfs::store::Sealed::new(bench.store.clone(), keys));
    let id = SegmentId([0x76; 16]);
    let owned = Owned { ino: Ino(9), incarnation: 0, offset: 0, len: 50_000 };
    SegmentStore::new(sealed).put(id, vec![vec![5; 50_000].into()], &[owned]).await.expect("puts");

    let mounted = bench.mount().await;
    let beside = bench.fsck(|_| {}).await;
    assert!(beside.writer.is_some() && beside.problems.is_empty());
    assert!(beside.notes.iter().any(|n| n.contains("not committed yet")), "{:?}", beside.notes);
    let mut options = bench.fsck_options();
    options.repair = true;
    options.state_dir = bench.local.path().join("elsewhere");
    let refused = fsck(options, Arc::default()).await.expect_err("the volume is in use");
    assert!(matches!(refused, StackError::InUse { .. }), "{refused}");
    mounted.shutdown(LONG).await;

    let found = bench.fsck(|_| {}).await;
    assert_eq!(found.problems, []);
    assert!(found.notes.iter().any(|n| n.contains("never committed")), "{:?}", found.notes);
    let repaired = bench.fsck(|o| o.repair = true).await;
    assert_eq!(repaired.repaired.len(), 1, "{:?}", repaired.repaired);
    let after = bench.fsck(|_| {}).await;
    assert_eq!((after.metadata.dead_segments, after.notes.len()), (1, 0), "waits for its grace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_check_goes_on_where_it_was() {
    // Guards against a day of reading that begins again because a terminal was closed, and
    // against a resumed run that forgets what the first half found.
    let bench = filled().await;
    let all = bench.fsck(|o| o.data = true).await.read.expect("read").0;
    let metas: Vec<_> = bench.store.list(Some(&"meta".into())).try_collect().await.expect("lists");
    let first = metas.iter().map(|m| m.location.clone()).min().expect("there are some");
    let whole = bench.store.get(&first).await.expect("there").bytes().await.expect("reads");
    let mut flipped = whole.to_vec();
    *flipped.last_mut().expect("not empty") ^= 1;
    bench.store.put(&first, flipped.into()).await.expect("puts");
    let mut options = bench.fsck_options();
    options.data = true;
    let progress = Arc::new(FsckProgress::default());
    progress.stop.store(true, Ordering::Relaxed);
    let stopped = fsck(options, progress).await.expect("fsck");
    assert!(!stopped.complete && stopped.read.expect("read").0 < all);
    let resumed = bench.fsck(|o| (o.data, o.resume) = (true, true)).await;
    assert!(resumed.complete);
    assert_eq!(resumed.read.expect("read").0, all - 1, "each once, but for the damaged one");
    assert!(words(&resumed).iter().any(|w| w.contains(first.as_ref())), "{:?}", resumed.problems);
    bench.store.put(&first, whole.into()).await.expect("puts");
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_older_than_known_is_told_by_fsck_and_by_at_least() {
    // Guards against a rollback that only a mount would notice, and against a machine without
    // memory of the volume that cannot be told better.
    let memory = Arc::new(object_store::memory::InMemory::new());
    let bench = Bench::over(memory.clone()).await;
    let mounted = bench.mount().await;
    write_file(&mounted.fs, Ino::ROOT, "f", b"old").await;
    mounted.shutdown(LONG).await;
    let old = memory.fork();
    let mounted = bench.mount().await;
    write_file(&mounted.fs, Ino::ROOT, "g", b"new").await;
    assert!(mounted.sync(LONG).await);
    let newest = mounted.control.status().commit_sequence;
    mounted.shutdown(LONG).await;
    assert_eq!(bench.fsck(|o| o.at_least = newest).await.problems, []);
    let rolled = Bench { store: Arc::new(old), local: bench.local };
    let found = rolled.fsck(|_| {}).await;
    assert!(words(&found).iter().any(|w| w.contains("older than what this machine")), "{found:?}");
    // A fresh machine only knows what it is told.
    let fresh = Bench { local: tempfile::tempdir().expect("tempdir"), ..rolled };
    assert_eq!(fresh.fsck(|_| {}).await.problems, []);
    let refused = fresh.mount_with(|o| o.at_least = newest).await.err().expect("too old");
    assert!(matches!(refused, StackError::TooOld { at_least, .. } if at_least == newest));
    assert!(refused.hint().is_some());
    fresh.mount_with(|o| o.at_least = newest - 1).await.expect("old enough").shutdown(LONG).await;
}

/// Counts what is read of the tables of the metadata.
#[derive(Default)]
struct Meter {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Gate for Meter {
    fn step(&self, _: &str, _: &Path) -> (bool, bool) {
        (true, true)
    }

    fn answers(&self, at: &Path, bytes: u64) {
        if at.as_ref().starts_with("meta/compacted/") {
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_reads_each_byte_of_the_metadata_once() {
    // Guards against a check that fetches the metadata of a large volume a hundred times over: once
    // for each page of rows, whose read-ahead it throws away, and once for each pair of kinds of
    // rows that it compares. Long names make a few files as large as very many.
    const NAMES: u32 = 12_000;
    let store = Gated::new(Arc::new(InMemory::new()), Meter::default());
    let bench = Bench::over(store.clone()).await;
    let mounted = bench.mount().await;
    let (fs, mut dir) = (&mounted.fs, Ino::ROOT);
    for n in 0..NAMES {
        if n % 1000 == 0 {
            let name = format!("directory {n}").into();
            dir = fs.mkdir(volume::CALLER, Ino::ROOT, name, 0o755, 0).await.expect("mkdir").ino;
        }
        let name = format!("{n:0240}").into();
        let made = fs.create(volume::CALLER, dir, name, 0o644, 0).await.expect("creates");
        fs.forget(made.ino, 1);
    }
    assert!(mounted.shutdown(LONG).await);
    let tables = store.inner.list(Some(&Path::from("meta/compacted")));
    let tables: Vec<_> = tables.try_collect().await.expect("lists");
    let stored: u64 = tables.iter().map(|object| object.size).sum();
    assert!(stored > u64::from(NAMES) * 240, "all rows are in tables, not in the log: {stored}");

    let meter = &store.gate;
    meter.requests.store(0, Ordering::Relaxed);
    meter.bytes.store(0, Ordering::Relaxed);
    let found = bench.fsck(|_| {}).await;
    assert_eq!(found.problems, []);
    assert!(found.metadata.inodes > u64::from(NAMES));
    let [requests, bytes] = [&meter.requests, &meter.bytes].map(|n| n.load(Ordering::Relaxed));
    println!("{requests} requests, {bytes} of {stored} bytes, {} tables", tables.len());
    // What it asks for begins and ends within chunks that it asks for twice.
    assert!(bytes < stored + stored / 2, "{bytes} bytes received of {stored}");
    let most = 16 * tables.len() as u64 + stored / (1 << 20);
    assert!(requests <= most, "{requests} requests for {stored} bytes");
}
