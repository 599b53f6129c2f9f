//! A store that goes away and comes back, at any request, done or not: no byte is lost, nothing is
//! left behind, and the mount goes on by itself.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::volume::gated::{Gate, Gated};
use crate::volume::{Bench, LONG, find, read_file, write_file};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sealfs::base::Ino;
use sealfs::commit::CleanOptions;
use sealfs::fs::WriteFlags;
use sealfs::stack::Mounted;

const MIB: usize = 1 << 20;
/// Outages in all.
const ROUNDS: u64 = 24;

/// Refuses everything while it is away; every other change is made all the same.
#[derive(Default)]
struct Unsteady {
    /// The next put of such a name is made, and refused.
    loses: Mutex<Option<&'static str>>,
    /// Requests until it goes away by itself; below 1: never.
    leaves_in: AtomicI64,
    away: AtomicBool,
    refused: AtomicU64,
}

impl Gate for Unsteady {
    fn step(&self, what: &str, at: &Path) -> (bool, bool) {
        let lost = |prefix: &mut &str| what.starts_with("PUT") && at.as_ref().starts_with(*prefix);
        if self.loses.lock().expect("not poisoned").take_if(lost).is_some() {
            return (true, false);
        }
        // It goes away at the last of these.
        let left = self.leaves_in.fetch_sub(1, Ordering::SeqCst);
        if left == 1 {
            self.away.store(true, Ordering::SeqCst);
        }
        if !self.away.load(Ordering::SeqCst) {
            return (true, true);
        }
        (self.refused.fetch_add(1, Ordering::SeqCst) % 2 == 1, false)
    }
}

/// Refuses deletes while it is told to.
#[derive(Default)]
struct KeepsAll {
    keeps: AtomicBool,
    refused: AtomicU64,
}

impl Gate for KeepsAll {
    fn step(&self, what: &str, _at: &Path) -> (bool, bool) {
        let refuses = what == "DELETE" && self.keeps.load(Ordering::SeqCst);
        self.refused.fetch_add(u64::from(refuses), Ordering::SeqCst);
        (!refuses, true)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_that_an_outage_cuts_lose_nothing_and_leave_nothing() {
    // Guards against a round whose rows may or may not be in the bucket: extents that are taken
    // for moved and are not, segments deleted under them, and copies that nobody deletes.
    let seed = std::env::var("SEALFS_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let inner = Arc::new(InMemory::new());
    let store = Gated::new(inner.clone(), Unsteady::default());
    let bench = Bench::over(store.clone()).await;
    let mut wanted = vec![0u8; 4 * MIB];
    let mut cleaned = 0;
    for round in 0..ROUNDS {
        // A round that failed is not tried again for minutes: each has a separate mount.
        let m = bench.mount_with(|o| {
            o.clean = CleanOptions {
                dead_bytes_min: MIB as u64,
                tiny_min: 4,
                look_every: Duration::ZERO,
            };
            o.commit_interval = Duration::from_millis(20);
            o.dead_grace = Duration::from_secs(1);
        });
        let m = m.await.expect("mounts");
        let ino = match round {
            0 => write_file(&m.fs, Ino::ROOT, "a", &wanted).await,
            _ => find(&m.fs, "a").await,
        };
        for _ in 0..8 {
            let mut new = vec![0; 200_000];
            rng.fill(&mut new[..]);
            let at = rng.random_range(0..wanted.len() - new.len());
            wanted[at..at + new.len()].copy_from_slice(&new);
            let wrote = m.fs.write(ino, at as u64, Bytes::from(new), WriteFlags::default()).await;
            wrote.expect("writes");
            assert!(m.sync(LONG).await);
        }
        // The outage begins at some request of the round, or of a commit, and lasts for some.
        let refusals = store.gate.refused.load(Ordering::SeqCst) + rng.random_range(1..6);
        store.gate.leaves_in.store(rng.random_range(1..30), Ordering::SeqCst);
        let since = Instant::now();
        while store.gate.refused.load(Ordering::SeqCst) < refusals
            && since.elapsed() < Duration::from_millis(1000)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        store.gate.leaves_in.store(0, Ordering::SeqCst);
        store.gate.away.store(false, Ordering::SeqCst);
        for place in ["remembered", "fetched"] {
            assert_eq!(read_file(&m.fs, "a").await, wanted, "round {round}, {place}");
            assert!(m.sync(LONG).await);
            m.view().invalidate();
        }
        cleaned += m.control.status().cleaned_bytes;
        assert!(!m.fs.is_read_only(), "round {round}: taken for overtaken");
        assert!(m.shutdown(LONG).await);
    }
    let refused = store.gate.refused.load(Ordering::SeqCst);
    eprintln!("{refused} requests refused, {cleaned} bytes cleaned");
    assert!(refused > ROUNDS / 2 && cleaned > 0, "no outage befell anything");
    let local = tempfile::tempdir().expect("tempdir");
    let elsewhere = Bench { store: inner.clone(), local };
    let report = elsewhere.fsck(|o| o.data = true).await;
    assert_eq!(report.problems, []);
    let leaked = report.notes.iter().find(|note| note.contains("never committed"));
    assert_eq!(leaked, None);
    let m = elsewhere.mount().await;
    assert_eq!(read_file(&m.fs, "a").await, wanted);
    m.shutdown(LONG).await;
    let held = inner.list(None).map_ok(|o| o.size).try_fold(0, async |sum, size| Ok(sum + size));
    eprintln!("{} bytes in the bucket", held.await.expect("lists"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_that_cannot_be_deleted_are_told_of_until_they_can() {
    // Guards against a bucket that grows without a word, under an object lock or without the
    // permission; and against giving up, or trying every moment.
    let inner = Arc::new(InMemory::new());
    let store = Gated::new(inner.clone(), KeepsAll::default());
    let bench = Bench::over(store.clone()).await;
    let m = bench.mount_with(|o| {
        o.commit_interval = Duration::from_millis(20);
        o.dead_grace = Duration::from_secs(1);
    });
    let m = m.await.expect("mounts");
    store.gate.keeps.store(true, Ordering::SeqCst);
    for name in ["a", "b"] {
        let made = write_file(&m.fs, Ino::ROOT, name, &[1; 200_000]).await;
        assert!(m.sync(LONG).await);
        m.fs.unlink(Ino::ROOT, name.into()).await.expect("unlinks");
        m.fs.forget(made, 1);
        assert!(m.sync(LONG).await);
    }
    let told = |m: &Mounted| m.control.status().warnings.join("\n");
    let since = Instant::now();
    while !told(&m).contains("2 objects cannot be deleted") {
        assert!(since.elapsed() < LONG, "{}", told(&m));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(told(&m).contains("s3:DeleteObject"), "{}", told(&m));
    assert!(m.control.status().requests.errors >= 2, "they count as failed");
    let refused = store.gate.refused.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(store.gate.refused.load(Ordering::SeqCst) - refused < 8, "tried every moment");
    m.shutdown(LONG).await;
    store.gate.keeps.store(false, Ordering::SeqCst);
    let m = bench.mount_with(|o| o.dead_grace = Duration::from_secs(1)).await.expect("mounts");
    let segments = || inner.list(Some(&Path::from("seg"))).try_collect::<Vec<_>>();
    let since = Instant::now();
    while !segments().await.expect("lists").is_empty() {
        assert!(since.elapsed() < LONG, "they stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told(&m), "");
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_lost_for_good_is_known_for_ours() {
    // Guards against a mount that takes its own object of the log for another writer's: an outage
    // that begins between a put and its answer and outlasts every attempt, as when a laptop
    // leaves the network, ended with a fenced mount and a journal that the next one refused.
    let inner = Arc::new(InMemory::new());
    let store = Gated::new(inner.clone(), Unsteady::default());
    let bench = Bench::over(store.clone()).await;
    let m = bench.mount().await;
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        *store.gate.loses.lock().expect("not poisoned") = Some("meta/wal/");
        write_file(&m.fs, Ino::ROOT, name, &[n as u8; 5000]).await;
        assert!(m.sync(LONG).await, "{name}");
        assert_eq!(*store.gate.loses.lock().expect("not poisoned"), None, "a put was lost");
        assert!(!m.fs.is_read_only(), "{name}: taken for overtaken");
    }
    assert!(m.shutdown(LONG).await);
    let elsewhere = Bench { store: inner, local: tempfile::tempdir().expect("tempdir") };
    let m = elsewhere.mount().await;
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(read_file(&m.fs, name).await, vec![n as u8; 5000]);
    }
    m.shutdown(LONG).await;
}
