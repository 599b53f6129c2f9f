//! A crash at every point that a workload reaches: every request to the store (before it acts,
//! and after it acted but before its answer) and every request to the local disk (with the
//! process killed, and with power lost: unsynced bytes gone, torn, reordered). After each the
//! volume is mounted again and compared with what the workload had come to.
//!
//! The ordinary run visits every fourth point (printed); `SEALFS_TEST_FULL=1` visits all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::disk_sim::{Fault, Restart, SimDisk};
use crate::volume::gated::{Gate, Gated};
use crate::volume::{Bench, CALLER, LONG};
use bytes::Bytes;
use futures::StreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use sealfs::base::Ino;
use sealfs::commit::{CleanOptions, SnapshotOrder};
use sealfs::fs::restore::{NoKernel, RestoreOrder, RestoreProgress};
use sealfs::fs::{Fs, FsError, Kind, RenameFlags, SetAttr, WriteFlags};
use sealfs::meta::{SnapshotName, SnapshotOrigin};
use sealfs::stack::{LocalDisk, Mounted};

/// A store that dies at a chosen request: from then on nothing acts and everything fails.
struct Mortal {
    requests: AtomicU64,
    dies_at: u64,
    /// Whether the request at which it dies still acts.
    acts: bool,
    /// What the requests were, so that a failure can be named.
    names: Mutex<Vec<String>>,
}

impl Mortal {
    fn new(dies_at: u64, acts: bool) -> Mortal {
        let (requests, names) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        Mortal { requests, dies_at, acts, names }
    }

    fn point(&self) -> String {
        let names = self.names.lock().expect("not poisoned");
        let when = if self.acts { "after" } else { "before" };
        format!("{when} request {}, {:?}", self.dies_at, names.last())
    }
}

impl Gate for Mortal {
    fn step(&self, what: &str, at: &Path) -> (bool, bool) {
        let n = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        if n <= self.dies_at {
            self.names.lock().expect("not poisoned").push(format!("{what} {at}"));
        }
        (n < self.dies_at || n == self.dies_at && self.acts, n < self.dies_at)
    }
}

/// Paths and contents: all that a crash may not mix up.
type Tree = BTreeMap<String, Option<Vec<u8>>>;

#[derive(Clone, Copy, Debug)]
enum Step {
    Mkdir(&'static str),
    Write(&'static str, u64, usize),
    Truncate(&'static str, u64),
    Rename(&'static str, &'static str),
    Link(&'static str, &'static str),
    /// From a file at an offset to the other at an offset, so many bytes: `copy_file_range`.
    Share(&'static str, u64, &'static str, u64, usize),
    Unlink(&'static str),
    /// `fsync`: durable on this machine from here on.
    Fsync,
    /// `sealfs sync`: durable in the bucket from here on.
    Sync,
    /// A snapshot of the volume as it is.
    Snap,
    /// A file, in place, as it was then.
    Back(&'static str),
}

use Step::{Back, Fsync, Link, Mkdir, Rename, Share, Snap, Sync, Truncate, Unlink, Write};

const WORK: [Step; 38] = [
    Mkdir("d"),
    Write("a", 0, 30_000),
    Write("d/b", 0, 5),
    Fsync,
    Sync,
    Write("a", 10_000, 50),
    Rename("d/b", "c"),
    Write("new", 0, 100),
    // Shares what is in the bucket and what is not.
    Write("copy", 0, 4),
    Share("a", 5_000, "copy", 100, 20_000),
    Fsync,
    Rename("new", "a"),
    Mkdir("d/e"),
    Write("d/e/f", 100_000, 40_000),
    Share("d/e/f", 99_000, "copy", 300, 2_000),
    Sync,
    Link("d/e/f", "hard"),
    // The last who have it are those who share it.
    Share("copy", 100, "copy", 30_000, 20_000),
    Truncate("d/e/f", 110_000),
    Unlink("c"),
    Fsync,
    Write("hard", 120_000, 9),
    Share("hard", 105_000, "a", 7, 16_000),
    Truncate("a", 0),
    Write("a", 0, 77),
    Sync,
    Unlink("hard"),
    Rename("d/e", "moved"),
    Share("copy", 0, "moved/f", 50, 60_000),
    Fsync,
    // What pending files share is not moved: from here on it may be.
    Sync,
    Snap,
    Unlink("moved/f"),
    Write("copy", 0, 1_000),
    // Of one the segments are the volume's, of the other only the snapshot's.
    Back("copy"),
    Back("moved/f"),
    Write("last", 0, 1_000),
    Fsync,
];

/// What each step makes of a tree. Pure.
fn apply(tree: &mut Tree, links: &mut BTreeMap<String, String>, n: usize, step: Step) {
    // Two names of one file are one content: it is kept under the first.
    let real = |links: &BTreeMap<String, String>, path: &str| {
        links.get(path).cloned().unwrap_or_else(|| path.to_owned())
    };
    match step {
        Mkdir(path) => drop(tree.insert(path.into(), None)),
        Write(path, at, len) => {
            let path = real(links, path);
            let bytes = tree.entry(path).or_insert_with(|| Some(Vec::new()));
            let bytes = bytes.as_mut().expect("a file");
            let (at, end) = (at as usize, at as usize + len);
            bytes.resize(bytes.len().max(end), 0);
            bytes[at..end].copy_from_slice(&pattern(n, len));
        }
        Share(from, at, to, offset, len) => {
            let from = tree[&real(links, from)].clone().expect("a file");
            let piece = &from[(at as usize).min(from.len())..(at as usize + len).min(from.len())];
            let bytes = tree.get_mut(&real(links, to)).and_then(|b| b.as_mut()).expect("a file");
            let (offset, end) = (offset as usize, offset as usize + piece.len());
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset..end].copy_from_slice(piece);
        }
        Truncate(path, len) => {
            let path = real(links, path);
            let bytes = tree.get_mut(&path).and_then(|b| b.as_mut()).expect("a file");
            bytes.resize(len as usize, 0);
        }
        Rename(from, to) => {
            let below: Vec<String> = tree
                .keys()
                .filter(|path| *path == from || path.starts_with(&format!("{from}/")))
                .cloned()
                .collect();
            for path in below {
                let moved = format!("{to}{}", &path[from.len()..]);
                let content = tree.remove(&path).expect("listed");
                tree.insert(moved.clone(), content);
                links.values_mut().filter(|first| **first == path).for_each(|f| *f = moved.clone());
            }
        }
        Link(from, to) => drop(links.insert(to.into(), from.into())),
        Unlink(path) if links.contains_key(path) => drop(links.remove(path)),
        Unlink(path) => {
            let content = tree.remove(path);
            let other = links.iter().find(|(_, first)| *first == path).map(|(l, _)| l.clone());
            if let Some(other) = other {
                links.remove(&other);
                tree.insert(other, content.expect("a file"));
            }
        }
        Back(_) | Fsync | Snap | Sync => {}
    }
}

fn pattern(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i / 3 + n * 17) % 251) as u8 + 1).collect()
}

/// The states that the volume goes through, as `look` sees them, and how many steps each has
/// whole: writing a new file makes it, and then fills it.
fn history() -> Vec<(usize, Tree)> {
    let (mut tree, mut links) = (Tree::new(), BTreeMap::new());
    let seen = |tree: &Tree, links: &BTreeMap<String, String>| {
        let linked = links.iter().map(|(name, first)| (name.clone(), tree[first].clone()));
        tree.clone().into_iter().chain(linked).collect::<Tree>()
    };
    let mut all = vec![(0, tree.clone())];
    let mut kept = Tree::new();
    for (n, step) in WORK.iter().enumerate() {
        match step {
            Snap => kept = seen(&tree, &links),
            Back(path) => drop(tree.insert((*path).into(), kept[*path].clone())),
            _ => {}
        }
        if let Write(path, ..) = step
            && !tree.contains_key(*path)
            && !links.contains_key(*path)
        {
            let mut made = seen(&tree, &links);
            made.insert((*path).into(), Some(Vec::new()));
            all.push((n, made));
        }
        apply(&mut tree, &mut links, n, *step);
        all.push((n + 1, seen(&tree, &links)));
    }
    all
}

async fn at(fs: &Arc<Fs>, path: &str) -> std::result::Result<(Ino, Vec<u8>), FsError> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut ino = Ino::ROOT;
    for part in dir.split('/').filter(|part| !part.is_empty()) {
        ino = fs.lookup(ino, part.into()).await?.ino;
    }
    Ok((ino, name.into()))
}

async fn perform(m: &Mounted, n: usize, step: Step) -> std::result::Result<(), FsError> {
    let fs = &m.fs;
    match step {
        Mkdir(path) => {
            let (dir, name) = at(fs, path).await?;
            fs.mkdir(CALLER, dir, name, 0o755, 0).await?;
        }
        Write(path, offset, len) => {
            let (dir, name) = at(fs, path).await?;
            let ino = match fs.lookup(dir, name.clone()).await {
                Ok(attr) => attr.ino,
                Err(FsError::NotFound) => fs.create(CALLER, dir, name, 0o644, 0).await?.ino,
                Err(e) => return Err(e),
            };
            let data = Bytes::from(pattern(n, len));
            fs.write(ino, offset, data, WriteFlags::default()).await?;
        }
        Share(from, offset, to, to_offset, len) => {
            let ((dir, name), (to_dir, to)) = (at(fs, from).await?, at(fs, to).await?);
            let from = fs.lookup(dir, name).await?.ino;
            let to = fs.lookup(to_dir, to).await?.ino;
            fs.copy_file_range(CALLER, from, offset, to, to_offset, len as u64).await?;
        }
        Truncate(path, size) => {
            let (dir, name) = at(fs, path).await?;
            let ino = fs.lookup(dir, name).await?.ino;
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            fs.setattr(CALLER, ino, set).await?;
        }
        Rename(from, to) => {
            let ((dir, name), (to_dir, new)) = (at(fs, from).await?, at(fs, to).await?);
            fs.rename(dir, name, to_dir, new, RenameFlags::default()).await?;
        }
        Link(from, to) => {
            let ((dir, name), (to_dir, new)) = (at(fs, from).await?, at(fs, to).await?);
            let ino = fs.lookup(dir, name).await?.ino;
            fs.link(ino, to_dir, new).await?;
        }
        Unlink(path) => {
            let (dir, name) = at(fs, path).await?;
            fs.unlink(dir, name).await?;
        }
        Snap => {
            let name = SnapshotName::parse("s").expect("a name");
            let (note, origin) = (String::new(), SnapshotOrigin::ByHand);
            let order = SnapshotOrder { name, note, expires_secs: 0, origin };
            let made = Box::pin(m.create_snapshot(order, Duration::from_secs(1))).await;
            made.map_err(|e| FsError::Io(e.to_string()))?;
        }
        Back(path) => {
            let path = path.split('/').map(|name| name.into()).collect();
            let order =
                RestoreOrder { snapshot: "s".into(), paths: vec![path], ..Default::default() };
            let progress = RestoreProgress::default();
            let restored = Box::pin(m.tree.restore(&order, &progress, Arc::new(NoKernel))).await;
            restored.map_err(|e| FsError::Io(e.to_string()))?;
        }
        Fsync => fs.fsync_now(Ino::ROOT)?,
        Sync if !m.sync(Duration::from_millis(400)).await => {
            return Err(FsError::Io("not synced".into()));
        }
        Sync => {}
    }
    Ok(())
}

/// What can be seen of the volume.
async fn look(fs: &Arc<Fs>) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![(String::new(), Ino::ROOT)];
    while let Some((path, dir)) = todo.pop() {
        for entry in fs.readdir(dir, 2, 1000).await.expect("lists") {
            let name = String::from_utf8(entry.name).expect("text");
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            if entry.kind == Kind::Dir {
                tree.insert(path.clone(), None);
                todo.push((path, entry.ino));
            } else {
                let size = fs.getattr(entry.ino).await.expect("stats").size as u32;
                let bytes = fs.read(entry.ino, 0, size).await.expect("reads");
                tree.insert(path, Some(bytes.to_vec()));
            }
        }
    }
    tree
}

/// How far a workload had come: all steps begun, and the last that was acknowledged as durable
/// on this machine and in the bucket.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    done: usize,
    local: usize,
    bucket: usize,
}

async fn work(m: &Mounted) -> Reached {
    let mut reached = Reached::default();
    for (n, step) in WORK.iter().enumerate() {
        match (Box::pin(perform(m, n, *step)).await, step) {
            (Ok(()), Fsync) => reached.local = n + 1,
            (Ok(()), Sync) => (reached.local, reached.bucket) = (n + 1, n + 1),
            // Offline, work goes on: what is not in the bucket is in the journal.
            (Ok(()), _) | (Err(_), Sync) => {}
            (Err(_), _) => {
                reached.done = n;
                return reached;
            }
        }
        reached.done = n + 1;
    }
    reached
}

/// Which state of history this is, of those with `from` steps or more; several may be the same.
fn when(history: &[(usize, Tree)], seen: &Tree, from: usize, what: &str) -> usize {
    let of = |least: usize| history.iter().find(|(n, tree)| *n >= least && tree == seen);
    match of(from) {
        Some((n, _)) => *n,
        None => {
            let before = of(0).map(|(n, _)| n);
            let brief: Vec<_> =
                seen.iter().map(|(p, b)| (p.clone(), b.as_ref().map(Vec::len))).collect();
            panic!("{what}: not a state from {from} on; as of {before:?}: {brief:?}")
        }
    }
}

const AT_ONCE: CleanOptions =
    CleanOptions { dead_bytes_min: 1, tiny_min: 2, look_every: Duration::ZERO };
const NEVER: CleanOptions = CleanOptions { dead_bytes_min: 0, ..AT_ONCE };

/// Points that are visited at once.
const POINTS_AT_ONCE: usize = 40;

fn stride() -> u64 {
    if std::env::var_os("SEALFS_TEST_FULL").is_some() { 1 } else { 4 }
}

async fn mounted(
    bench: &Bench,
    disk: Option<&SimDisk>,
    clean: CleanOptions,
) -> std::result::Result<Mounted, String> {
    let change = |o: &mut sealfs::stack::MountOptions| {
        o.takeover = true;
        o.commit_interval = Duration::from_secs(3600);
        o.clean = clean;
        if clean.dead_bytes_min > 0 {
            o.dead_grace = Duration::ZERO; // nobody reads what they clean
            o.compress = Some("zstd".parse().expect("known"));
        }
        o.read_timeout = Duration::from_secs(2);
        o.open_timeout = Duration::from_secs(3); // SlateDB goes on asking a store that is dead
        if let Some(disk) = disk {
            o.disk = LocalDisk(Arc::new(disk.clone()));
        }
    };
    bench.mount_with(change).await.map_err(|e| e.to_string())
}

/// Whatever the bucket holds is one state of history, to another machine too.
async fn check_bucket(bucket: &Arc<InMemory>, history: &[(usize, Tree)], from: usize, what: &str) {
    let store: Arc<dyn ObjectStore> = Arc::new(bucket.fork());
    let elsewhere = Bench { store, local: tempfile::tempdir().expect("tempdir") };
    let report = elsewhere.fsck(|_| {}).await;
    assert_eq!(report.problems, [], "{what}");
    let m = mounted(&elsewhere, None, NEVER).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    when(history, &look(&m.fs).await, from, &format!("{what}: another machine"));
    m.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_every_request_to_the_store_leaves_a_state_of_history() {
    // Guards against a commit that is visible by halves, is applied twice after its answer was
    // lost, or forgets what was acknowledged. The process dies at the nth request, for each n
    // that the workload reaches, once before and once after the store has acted.
    sweep(NEVER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_segments_are_cleaned_leaves_a_state_of_history() {
    // Guards against extents that name what was never uploaded or is deleted, and against
    // segments that no row knows. The same, with a round of cleaning after each commit.
    sweep(AT_ONCE).await;
}

async fn sweep(clean: CleanOptions) {
    let history = history();
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let whole = Gated::new(bucket.clone(), Mortal::new(u64::MAX, true));
    let bench = Bench { store: whole.clone(), ..bench };
    let m = mounted(&bench, None, clean).await.expect("mounts");
    assert_eq!(work(&m).await.bucket, 31, "without a fault everything is synced");
    // A round moves on a separate task, perhaps after the last commit; and what the snapshot holds
    // it leaves where it is.
    m.control.delete_snapshots(vec!["s".into()]).await.expect("deletes");
    let cleaned = || m.control.status().cleaned_bytes;
    let deadline = Instant::now() + LONG;
    while clean.dead_bytes_min > 0 && cleaned() == 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let cleaned = cleaned();
    assert_eq!(cleaned > 0, clean.dead_bytes_min > 0, "{cleaned} bytes were moved");
    m.shutdown(LONG).await;
    let requests = whole.gate.requests.load(Ordering::SeqCst);
    assert!(requests > 25, "the workload reaches only {requests} requests");
    let points = (1..=requests).step_by(stride() as usize).flat_map(|n| [(n, false), (n, true)]);
    let points: Vec<_> = points.collect();
    let count = points.len();
    // Most of a point is waiting for things that are dead.
    let visits = futures::stream::iter(points);
    visits.for_each_concurrent(POINTS_AT_ONCE, |(n, acts)| die_at(&history, n, acts, clean)).await;
    eprintln!("{count} crash points at the store, {requests} requests");
}

/// One point of the sweep over requests to the store.
async fn die_at(history: &[(usize, Tree)], n: u64, acts: bool, clean: CleanOptions) {
    let bucket = Arc::new(InMemory::new());
    let mut bench = Bench::over(bucket.clone()).await;
    let mortal = Gated::new(bucket.clone(), Mortal::new(n, acts));
    bench.store = mortal.clone();
    let reached = match mounted(&bench, None, clean).await {
        Err(_) => Reached::default(), // died while mounting
        Ok(m) => {
            let reached = work(&m).await;
            m.shutdown(Duration::ZERO).await;
            reached
        }
    };
    let what = mortal.gate.point();
    check_bucket(&bucket, history, reached.bucket, &what).await;
    bench.store = bucket.clone();
    let m = mounted(&bench, None, NEVER).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    // A killed process loses nothing that it had answered.
    when(history, &look(&m.fs).await, reached.done, &what);
    assert!(m.sync(LONG).await, "{what}");
    m.shutdown(LONG).await;
    check_bucket(&bucket, history, reached.done, &format!("{what}: synced")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_every_request_to_the_disk_leaves_a_state_of_history() {
    // Guards against a journal that loses what was synced, applies half a record, or takes a
    // torn tail for damage. The disk fails at the nth changing request; then the process is
    // killed, or power is lost in three ways (seeds).
    let history = history();
    let (mut points, mut n) = (0, 1);
    loop {
        let mut ended = false;
        for how in [Restart::Kill]
            .into_iter()
            .chain((0..3).map(|seed| Restart::PowerLoss { seed: seed + 4 * n }))
        {
            let bucket = Arc::new(InMemory::new());
            let bench = Bench::over(bucket.clone()).await;
            let disk = SimDisk::new();
            disk.fault_at(n, Fault::Crash);
            let what = format!("disk request {n}, {how:?}");
            let reached = match mounted(&bench, Some(&disk), NEVER).await {
                Err(_) => Reached::default(),
                Ok(m) => {
                    let reached = work(&m).await;
                    m.shutdown(Duration::ZERO).await;
                    reached
                }
            };
            ended |= !disk.crashed();
            disk.restart(how);
            check_bucket(&bucket, &history, reached.bucket, &what).await;
            let m =
                mounted(&bench, Some(&disk), NEVER).await.unwrap_or_else(|e| panic!("{what}: {e}"));
            // Killed: everything that was answered. Power lost: everything that was synced.
            let kept = if how == Restart::Kill { reached.done } else { reached.local };
            when(&history, &look(&m.fs).await, kept, &what);
            assert!(m.sync(LONG).await, "{what}");
            m.shutdown(LONG).await;
            points += 1;
        }
        if ended {
            break;
        }
        n += stride();
    }
    eprintln!("{points} crash points at the disk, {n} requests");
    assert!(n > 30, "the workload reaches only {n} requests");
}
