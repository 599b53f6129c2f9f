//! The process dies at every request of making and deleting snapshots: what was answered holds, every
//! snapshot that is listed is whole, and nothing is left behind for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use sealfs::base::Ino;
use sealfs::commit::snapshots::snapshots;
use sealfs::stack::Mounted;

use crate::snapshots::{assert_whole, named, order, quick, remove, until};
use crate::volume::gated::{Gate, Gated};
use crate::volume::{Bench, LONG, contents, write_file};

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
    let requests = whole.gate.requests.load(Ordering::SeqCst);
    let stride = if std::env::var_os("SEALFS_TEST_FULL").is_some() { 1 } else { 5 };
    let points = (1..=requests).step_by(stride).flat_map(|n| [(n, false), (n, true)]);
    let visits = futures::stream::iter(points);
    visits.for_each_concurrent(POINTS_AT_ONCE, |(n, acts)| die_at(n, acts)).await;
    eprintln!("{requests} requests");
}

async fn die_at(n: u64, acts: bool) {
    let what = format!("{} request {n}", if acts { "after" } else { "before" });
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
