//! The process dies at every request of making and deleting snapshots, of restoring one, and of keeping a
//! schedule: what was answered holds, every snapshot that is listed is whole, and nothing is left behind
//! for good.
//!
//! The ordinary run visits every fifth request; `SEALFS_TEST_FULL=1` visits all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use sealfs::base::Ino;
use sealfs::commit::SnapshotOrder;
use sealfs::commit::snapshots::snapshots;
use sealfs::fs::WriteFlags;
use sealfs::fs::restore::{NoKernel, RestoreOrder, RestoreProgress};
use sealfs::meta::SnapshotOrigin;
use sealfs::stack::{KeyOptions, Mounted, schedule};

use super::described;
use crate::snapshots::{assert_whole, named, order, quick, remove, until};
use crate::volume::gated::{Gate, Gated};
use crate::volume::{Bench, CALLER, LONG, contents, find, options_of, secret, write_file};

/// Points that are visited at once.
const POINTS_AT_ONCE: usize = 24;

/// A store that dies at a chosen request: from then on nothing acts and everything fails.
struct Mortal {
    requests: AtomicU64,
    dies_at: u64,
    /// Whether the request at which it dies still acts.
    acts: bool,
}

impl Gate for Mortal {
    fn step(&self, _what: &str, _at: &Path) -> (bool, bool) {
        let n = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        (n < self.dies_at || n == self.dies_at && self.acts, n < self.dies_at)
    }
}

fn mortal(bucket: &Arc<InMemory>, dies_at: u64, acts: bool) -> Arc<Gated<Mortal>> {
    Gated::new(bucket.clone(), Mortal { requests: AtomicU64::new(0), dies_at, acts })
}

fn briefly(o: &mut sealfs::stack::MountOptions) {
    quick(o);
    o.read_timeout = Duration::from_secs(2);
    o.open_timeout = Duration::from_secs(3);
}

/// What was answered.
#[derive(Debug, Default)]
struct Answered {
    made: Vec<&'static str>,
    /// Asked for, whatever came of it.
    asked: Vec<&'static str>,
    deleted: Vec<&'static str>,
    /// Asked for, whatever came of it.
    leaving: Vec<&'static str>,
}

async fn work(m: &Mounted) -> Answered {
    let mut answered = Answered::default();
    let limit = Duration::from_secs(3);
    for (n, (make, delete)) in
        [("a", None), ("b", None), ("c", Some("a")), ("d", Some("c"))].into_iter().enumerate()
    {
        if n > 0 {
            remove(m, &format!("f{}", n - 1)).await;
        }
        let name = format!("f{n}");
        write_file(&m.fs, Ino::ROOT, &name, &contents(&name, 20_000)).await;
        answered.asked.push(make);
        if m.create_snapshot(order(make), limit).await.is_err() {
            return answered;
        }
        answered.made.push(make);
        if let Some(name) = delete {
            answered.leaving.push(name);
            if m.delete_snapshots(vec![named(name)], limit).await.is_err() {
                return answered;
            }
            answered.deleted.push(name);
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_every_request_leaves_snapshots_that_are_whole_or_not_there() {
    // Guards against a snapshot that is listed and cannot be read, against one that was promised and is
    // not there, and against a checkpoint that nobody ever deletes. At each request once before and once
    // after the store has acted.
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let whole = mortal(&bucket, u64::MAX, true);
    let bench = Bench { store: whole.clone(), ..bench };
    let m = bench.mount_with(briefly).await.expect("mounts");
    assert_eq!(work(&m).await.made, ["a", "b", "c", "d"]);
    m.shutdown(LONG).await;
    visit_all(whole.gate.requests.load(Ordering::SeqCst), die_at).await;
}

/// Has the process die at each of so many requests, or some of them, before it acts and after.
async fn visit_all<F: Future<Output = ()>>(requests: u64, die_at: impl Fn(u64, bool) -> F) {
    let stride = if std::env::var_os("SEALFS_TEST_FULL").is_some() { 1 } else { 5 };
    let points = (1..=requests).step_by(stride).flat_map(|n| [(n, false), (n, true)]);
    let visits = futures::stream::iter(points);
    visits.for_each_concurrent(POINTS_AT_ONCE, |(n, acts)| die_at(n, acts)).await;
    eprintln!("{requests} requests");
}

fn said(n: u64, acts: bool) -> String {
    format!("{} request {n}", if acts { "after" } else { "before" })
}

async fn die_at(n: u64, acts: bool) {
    let what = said(n, acts);
    let bucket = Arc::new(InMemory::new());
    let mut bench = Bench::over(bucket.clone()).await;
    bench.store = mortal(&bucket, n, acts);
    let answered = match bench.mount_with(briefly).await {
        Err(_) => Answered::default(), // died while mounting
        Ok(m) => {
            let answered = work(&m).await;
            m.shutdown(Duration::ZERO).await;
            answered
        }
    };
    bench.store = bucket.clone();
    let report = bench.fsck(|_| {}).await;
    assert_eq!(report.problems, [], "{what}");
    let m = bench.mount_with(briefly).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    write_file(&m.fs, Ino::ROOT, "after", b"x").await;
    assert!(m.sync(LONG).await, "{what}");
    let there = snapshots(m.view().kv()).await.expect("lists");
    let names: Vec<&str> = there.iter().map(|s| s.name.as_str()).collect();
    for name in &answered.made {
        let is_there = names.contains(name) || answered.leaving.contains(name);
        assert!(is_there, "{what}: {name} was promised, there is {names:?}: {answered:?}");
    }
    for name in &names {
        let is_wanted = answered.asked.contains(name) && !answered.deleted.contains(name);
        assert!(is_wanted, "{what}: {name} is there: {answered:?}");
    }
    for snapshot in &there {
        assert_whole(&m, &bench, snapshot).await;
    }
    until(&what, async || m.view().kv().checkpoints().len() == there.len()).await;
    assert!(m.shutdown(LONG).await, "{what}");
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, [], "{what}: at the end");
}

/// Another machine with a copy of this bucket.
fn copy_of(bucket: &InMemory) -> (Arc<InMemory>, Bench) {
    let bucket = Arc::new(bucket.fork());
    let local = tempfile::tempdir().expect("a temporary directory");
    (bucket.clone(), Bench { store: bucket, local })
}

/// What is to be restored, and what there is before: lines as of [`described`].
struct Changed {
    bucket: Arc<InMemory>,
    past: Vec<String>,
    now: Vec<String>,
}

async fn changed() -> Changed {
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let m = bench.mount_with(quick).await.expect("mounts");
    for dir in ["d0", "d1", "d2"] {
        let dir = m.fs.mkdir(CALLER, Ino::ROOT, dir.into(), 0o750, 0).await.expect("makes").ino;
        for n in 0..5 {
            let name = format!("f{n}");
            write_file(&m.fs, dir, &name, &contents(&name, 30_000)).await;
        }
    }
    m.create_snapshot(order("past"), LONG).await.expect("a snapshot");
    let past = described(&m.fs, Ino::ROOT).await;
    for dir in ["d0", "d1"] {
        let ino = find(&m.fs, dir).await;
        m.fs.unlink(ino, b"f0".to_vec()).await.expect("unlinks");
        for n in 1..3 {
            let ino = find(&m.fs, &format!("{dir}/f{n}")).await;
            let data = Bytes::from(vec![9; 1000]);
            m.fs.write(ino, 2_000, data, WriteFlags::default()).await.expect("writes");
        }
        write_file(&m.fs, ino, "new", b"came since").await;
    }
    assert!(m.sync(LONG).await);
    let now = described(&m.fs, Ino::ROOT).await;
    assert!(m.shutdown(LONG).await);
    Changed { bucket, past, now }
}

impl Changed {
    fn order() -> RestoreOrder {
        RestoreOrder { snapshot: "past".into(), delete: true, ..RestoreOrder::default() }
    }

    /// Restores, and waits for the bucket if that can be; whether it was answered.
    async fn restore(m: &Mounted) -> bool {
        let progress = RestoreProgress::default();
        let done = m.tree.restore(&Changed::order(), &progress, Arc::new(NoKernel)).await;
        done.is_ok() && m.sync(Duration::from_secs(3)).await
    }

    /// Each file is what it was, or what it is.
    async fn assert_one_or_other(&self, m: &Mounted, what: &str) {
        for line in described(&m.fs, Ino::ROOT).await {
            let is_whole = self.past.contains(&line) || self.now.contains(&line);
            assert!(is_whole || !line.contains(" File "), "{what}: {line}");
        }
    }

    async fn die_at(&self, n: u64, acts: bool) {
        let what = said(n, acts);
        let (bucket, mut bench) = copy_of(&self.bucket);
        bench.store = mortal(&bucket, n, acts);
        let mut answered = false;
        if let Ok(m) = bench.mount_with(briefly).await {
            answered = Changed::restore(&m).await;
            m.shutdown(Duration::ZERO).await;
        }
        bench.store = bucket.clone();
        assert_eq!(bench.fsck(|_| {}).await.problems, [], "{what}");
        // What another machine finds, which has nothing of this one's journal.
        let (_, other) = copy_of(&bucket);
        let m = other.mount_with(briefly).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        self.assert_one_or_other(&m, &format!("{what}, elsewhere")).await;
        if answered {
            let there = described(&m.fs, Ino::ROOT).await;
            assert_eq!(there, self.past, "{what}: it was in the bucket, elsewhere");
        }
        m.shutdown(LONG).await;
        // And this one, which goes on when the same is asked again.
        let m = bench.mount_with(briefly).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        self.assert_one_or_other(&m, &what).await;
        assert!(Changed::restore(&m).await, "{what}: again");
        assert_eq!(described(&m.fs, Ino::ROOT).await, self.past, "{what}: again");
        let there = snapshots(m.view().kv()).await.expect("lists");
        assert_eq!(there.len(), 1, "{what}");
        assert_whole(&m, &bench, &there[0]).await;
        assert!(m.shutdown(LONG).await, "{what}");
        assert_eq!(bench.fsck(|o| o.data = true).await.problems, [], "{what}: at the end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_every_request_of_a_restore_leaves_each_file_whole_and_it_goes_on() {
    // Guards against half of a file, against what is gone from the volume and not back from the snapshot,
    // and against a snapshot that is harmed by it.
    let changed = changed().await;
    let (bucket, mut bench) = copy_of(&changed.bucket);
    let whole = mortal(&bucket, u64::MAX, true);
    bench.store = whole.clone();
    let m = bench.mount_with(briefly).await.expect("mounts");
    assert!(Changed::restore(&m).await);
    assert_eq!(described(&m.fs, Ino::ROOT).await, changed.past);
    m.shutdown(LONG).await;
    let requests = whole.gate.requests.load(Ordering::SeqCst);
    visit_all(requests, |n, acts| changed.die_at(n, acts)).await;
}

/// A schedule that has two snapshots to make and two to delete.
const SCHEDULE: &str = "hourly=2,daily=1,monthly=1";

/// A volume with four snapshots that an earlier schedule made.
async fn with_a_past() -> Arc<InMemory> {
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let m = bench.mount_with(quick).await.expect("mounts");
    for n in 0..4 {
        let name = format!("f{n}");
        write_file(&m.fs, Ino::ROOT, &name, &contents(&name, 20_000)).await;
        let order = SnapshotOrder { origin: SnapshotOrigin::Hourly, ..order(&format!("h{n}")) };
        m.create_snapshot(order, LONG).await.expect("a snapshot");
    }
    assert!(m.shutdown(LONG).await);
    bucket
}

/// Gives the volume its schedule; whether that was answered.
async fn set_schedule(bench: &Bench) -> bool {
    let options = KeyOptions {
        store: options_of(bench.store.clone()),
        key: secret().into(),
        state_dir: bench.state(),
    };
    let asking = schedule(&options, Some(SCHEDULE.parse().expect("a schedule")));
    matches!(tokio::time::timeout(Duration::from_secs(10), asking).await, Ok(Ok(_)))
}

/// Whether there are as many of each kind as the schedule says.
async fn is_kept(m: &Mounted) -> bool {
    m.follow_config().await;
    let Ok(there) = snapshots(m.view().kv()).await else { return false };
    let of = |origin| there.iter().filter(|s| s.row.origin == origin).count();
    [(SnapshotOrigin::Hourly, 2), (SnapshotOrigin::Daily, 1), (SnapshotOrigin::Monthly, 1)]
        .iter()
        .all(|&(origin, wanted)| of(origin) == wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_every_request_of_a_schedule_leaves_one_that_is_kept() {
    // Guards against two snapshots of one day, against one that is listed and cannot be read, and against a
    // schedule that was answered and is not there.
    let past = with_a_past().await;
    let (bucket, mut bench) = copy_of(&past);
    let whole = mortal(&bucket, u64::MAX, true);
    bench.store = whole.clone();
    let m = bench.mount_with(briefly).await.expect("mounts");
    assert!(set_schedule(&bench).await);
    until("kept", async || is_kept(&m).await).await;
    m.shutdown(LONG).await;
    let requests = whole.gate.requests.load(Ordering::SeqCst);
    visit_all(requests, |n, acts| die_of_schedule(&past, n, acts)).await;
}

async fn die_of_schedule(past: &InMemory, n: u64, acts: bool) {
    let what = said(n, acts);
    let (bucket, mut bench) = copy_of(past);
    let store = mortal(&bucket, n, acts);
    bench.store = store.clone();
    let mut answered = false;
    if let Ok(m) = bench.mount_with(briefly).await {
        answered = set_schedule(&bench).await;
        let is_dead = || store.gate.requests.load(Ordering::SeqCst) >= n;
        // Should it need fewer requests than the first did, it does not die.
        for _ in 0..250 {
            if is_dead() || is_kept(&m).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        m.shutdown(Duration::ZERO).await;
    }
    bench.store = bucket.clone();
    assert_eq!(bench.fsck(|_| {}).await.problems, [], "{what}");
    let m = bench.mount_with(briefly).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    m.follow_config().await;
    if answered {
        assert_eq!(m.control.status().snapshot_schedule, SCHEDULE, "{what}");
    }
    assert!(set_schedule(&bench).await, "{what}");
    until(&what, async || is_kept(&m).await).await;
    let there = snapshots(m.view().kv()).await.expect("lists");
    for snapshot in &there {
        assert_whole(&m, &bench, snapshot).await;
    }
    until(&what, async || m.view().kv().checkpoints().len() == 4).await;
    assert!(m.shutdown(LONG).await, "{what}");
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, [], "{what}: at the end");
}
