//! A mount that runs changes its role: promoted, demoted, overtaken. Without a kernel; with one, see
//! the tests of the daemon.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use crate::volume::gated::{Gate, Gated};
use crate::volume::{Bench, CALLER, LONG, read_file, write_file};
use bytes::Bytes;
use futures::StreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use sealfs::base::Ino;
use sealfs::fs::{FsError, WriteFlags};
use sealfs::stack::{
    DemoteAsk, MountOptions, Mounted, PromoteAsk, RoleName, StackError, StackErrorKind, Why,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn demoting(stall: Duration) -> DemoteAsk {
    DemoteAsk { stall, attended: Default::default() }
}

async fn demote(m: &Mounted) {
    let now = m.demote(demoting(PATIENCE)).await.unwrap_or_else(|e| panic!("demote: {e}"));
    assert_eq!((now.role, now.why), (RoleName::Follower, Why::Demoted));
}

async fn promote(m: &Mounted) {
    let now = m.promote(PromoteAsk::default()).await.unwrap_or_else(|e| panic!("promote: {e}"));
    assert_eq!((now.role, now.why), (RoleName::Writer, Why::Promoted));
}

/// Another machine of the same volume.
fn elsewhere(bench: &Bench) -> Bench {
    Bench { store: bench.store.clone(), local: tempfile::tempdir().expect("tempdir") }
}

async fn follower(bench: &Bench) -> Mounted {
    let follows = |o: &mut MountOptions| {
        o.read_only = true;
        o.refresh = Duration::from_millis(50);
    };
    bench.mount_with(follows).await.expect("mounts to read")
}

async fn shows(m: &Mounted, name: &str, contents: &[u8]) {
    for _ in 0..400 {
        if let Ok(file) = m.fs.lookup(Ino::ROOT, name.into()).await
            && let Ok(found) = m.fs.read(file.ino, 0, 1 << 20).await
            && found == contents
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} does not show");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_mounts_hand_the_volume_to_each_other_and_nothing_is_lost() {
    // Guards against a hand-over that loses what was written last, keeps the lease or the journal,
    // or shows one mount what it had before.
    let bench = Bench::new().await;
    let other = elsewhere(&bench);
    let (first, second) = (bench.mount().await, follower(&other).await);
    let mut mounts = [&first, &second];
    for round in 0..10 {
        let [writer, follower] = mounts;
        let name = format!("f{round}");
        write_file(&writer.fs, Ino::ROOT, &name, name.as_bytes()).await;
        let held = follower.promote(PromoteAsk::default()).await.expect_err("it is held");
        assert_eq!(held.kind(), StackErrorKind::InUse, "{held}");
        demote(writer).await;
        let refused = writer.fs.create(CALLER, Ino::ROOT, b"no".to_vec(), 0o600, 0).await;
        assert_eq!(refused, Err(FsError::ReadOnly));
        promote(follower).await;
        for before in 0..=round {
            let name = format!("f{before}");
            assert_eq!(read_file(&follower.fs, &name).await, name.as_bytes(), "round {round}");
        }
        mounts.reverse();
    }
    let [writer, follower] = mounts;
    write_file(&writer.fs, Ino::ROOT, "last", b"last").await;
    assert!(writer.sync(LONG).await);
    shows(follower, "last", b"last").await;
    assert!(first.shutdown(LONG).await && second.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_meet_a_demotion_are_kept_or_refused() {
    // Guards against a change that is acknowledged and then neither in the bucket nor in the journal:
    // four tasks write all the while that the role goes to and fro.
    let bench = Bench::new().await;
    let m = bench.mount().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|task| {
            let (fs, stop) = (m.fs.clone(), stop.clone());
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("{task}-{n}");
                    match fs.create(CALLER, Ino::ROOT, name.clone().into(), 0o600, 0).await {
                        Ok(file) => {
                            let data = Bytes::from(name.clone());
                            let wrote = fs.write(file.ino, 0, data, WriteFlags::default()).await;
                            taken.push((name, wrote.is_ok()));
                        }
                        Err(FsError::ReadOnly) => {
                            tokio::time::sleep(Duration::from_millis(2)).await
                        }
                        Err(e) => panic!("{name}: {e}"),
                    }
                }
                taken
            })
        })
        .collect();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        demote(&m).await;
        promote(&m).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.await.expect("no panic"));
    }
    assert!(all.len() > 50, "{} changes", all.len());
    demote(&m).await;
    let fresh = elsewhere(&bench).mount().await;
    for (name, wrote) in &all {
        let found = read_file(&fresh.fs, name).await;
        let right = found == name.as_bytes() || (!wrote && found.is_empty());
        assert!(right, "{name}: {found:?}");
    }
    assert!(fresh.shutdown(LONG).await);
    assert!(m.shutdown(LONG).await);
}

/// A store that goes away at a chosen request, or stays.
#[derive(Default)]
struct Dies {
    armed: AtomicBool,
    requests: AtomicU64,
    at: AtomicU64,
    acts: bool,
}

impl Gate for Dies {
    fn step(&self, _: &str, _: &Path) -> (bool, bool) {
        if !self.armed.load(Ordering::SeqCst) {
            return (true, true);
        }
        let n = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let at = self.at.load(Ordering::SeqCst);
        (n < at || n == at && self.acts, n < at)
    }
}

struct Ordeal {
    bench: Bench,
    gated: Arc<Gated<Dies>>,
    bucket: Arc<InMemory>,
}

impl Ordeal {
    async fn new(at: u64, acts: bool) -> Ordeal {
        let bucket = Arc::new(InMemory::new());
        let gate = Dies { at: at.into(), acts, ..Dies::default() };
        let gated = Gated::new(bucket.clone(), gate);
        let bench = Bench::over(gated.clone()).await;
        Ordeal { bench, gated, bucket }
    }

    async fn mount(&self, read_only: bool) -> Mounted {
        let change = |o: &mut MountOptions| {
            o.read_only = read_only;
            o.commit_interval = Duration::from_secs(3600);
            o.read_timeout = Duration::from_secs(2);
            o.open_timeout = Duration::from_secs(3);
            o.takeover = !read_only;
        };
        self.bench.mount_with(change).await.expect("mounts")
    }

    /// The bucket as it is now, to a machine that knows nothing; or to this one.
    async fn sees(&self, here: bool, names: &[&str], what: &str) {
        let store: Arc<dyn ObjectStore> = Arc::new(self.bucket.fork());
        let local = tempfile::tempdir().expect("tempdir");
        if here {
            let from = self.bench.local.path().join("state");
            let copied =
                std::process::Command::new("cp").arg("-a").args([&*from, local.path()]).status();
            assert!(copied.expect("cp").success());
        }
        let look = Bench { store, local };
        let m = look.mount_with(|o| o.takeover = true).await;
        let m = m.unwrap_or_else(|e| panic!("{what}: {e}"));
        for name in names {
            assert_eq!(read_file(&m.fs, name).await, name.as_bytes(), "{what}, here: {here}");
        }
        m.shutdown(Duration::ZERO).await;
    }
}

/// How far apart the requests are at which the store goes away; `SEALFS_TEST_FULL` visits all.
fn stride() -> usize {
    if std::env::var_os("SEALFS_TEST_FULL").is_some() { 1 } else { 3 }
}

/// Visits the points of a transition; `visit` says how many requests there were by its end.
async fn sweep<F: Future<Output = u64>>(visit: impl Fn(u64, bool, String) -> F) {
    let all = visit(u64::MAX, true, "undisturbed".into()).await;
    assert!((5..500).contains(&all), "{all} requests");
    let points = (1..=all).step_by(stride()).flat_map(|at| [(at, true), (at, false)]);
    let visits = points.map(|(at, acts)| visit(at, acts, format!("request {at}, acts: {acts}")));
    futures::stream::iter(visits).buffer_unordered(8).for_each(|_| async {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demotion_that_breaks_off_at_any_request_loses_nothing() {
    // Guards against a half-done demotion: a writer that has stopped writing, or a follower whose last
    // changes are not in the bucket. The store goes away for good at the nth request.
    sweep(|at, acts, what| async move {
        let ordeal = Ordeal::new(at, acts).await;
        let m = ordeal.mount(false).await;
        for name in ["one", "two"] {
            write_file(&m.fs, Ino::ROOT, name, name.as_bytes()).await;
        }
        m.fs.fsync_now(Ino::ROOT).expect("synced");
        ordeal.gated.gate.armed.store(true, Ordering::SeqCst);
        let demoted = m.demote(demoting(Duration::from_millis(300))).await;
        let reached = ordeal.gated.gate.requests.load(Ordering::SeqCst);
        let mut kept = vec!["one", "two"];
        match &demoted {
            Ok(_) => ordeal.sees(false, &kept, &what).await,
            Err(_) => {
                // It is the writer still, as far as this machine can tell.
                write_file(&m.fs, Ino::ROOT, "three", b"three").await;
                m.fs.fsync_now(Ino::ROOT).expect("synced");
                assert_eq!(m.control.status().role, RoleName::Writer, "{what}");
                kept.push("three");
            }
        }
        m.shutdown(Duration::ZERO).await; // as a crash: nothing gets out
        ordeal.sees(true, &kept, &what).await;
        reached
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_that_breaks_off_at_any_request_loses_nothing() {
    // The same of a promotion, whose journal holds what the bucket does not have: it is replayed once
    // the promotion is done, and stays where it is otherwise.
    sweep(|at, acts, what| async move {
        let ordeal = Ordeal::new(at, acts).await;
        let m = ordeal.mount(false).await;
        write_file(&m.fs, Ino::ROOT, "one", b"one").await;
        assert!(m.sync(LONG).await);
        write_file(&m.fs, Ino::ROOT, "two", b"two").await;
        m.shutdown(Duration::ZERO).await;
        let m = ordeal.mount(true).await;
        ordeal.gated.gate.armed.store(true, Ordering::SeqCst);
        let promoted = m.promote(PromoteAsk::default()).await;
        let reached = ordeal.gated.gate.requests.load(Ordering::SeqCst);
        let mut kept = vec!["one", "two"];
        if promoted.is_ok() {
            assert_eq!(read_file(&m.fs, "two").await, "two", "{what}: it is replayed");
            write_file(&m.fs, Ino::ROOT, "three", b"three").await;
            m.fs.fsync_now(Ino::ROOT).expect("synced");
            kept.push("three");
        } else {
            let refused = m.fs.create(CALLER, Ino::ROOT, b"no".to_vec(), 0o600, 0).await;
            assert_eq!(refused, Err(FsError::ReadOnly), "{what}");
        }
        m.shutdown(Duration::ZERO).await;
        ordeal.sees(true, &kept, &what).await;
        reached
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_away_refuses_a_demotion_and_comes_back_to_a_writer() {
    // Guards against a demotion that hangs on a store that does not answer, or leaves a mount behind
    // that nobody writes.
    let ordeal = Ordeal::new(0, false).await;
    let m = ordeal.mount(false).await;
    write_file(&m.fs, Ino::ROOT, "one", b"one").await;
    ordeal.gated.gate.armed.store(true, Ordering::SeqCst);
    let refused = m.demote(demoting(Duration::from_millis(500))).await.expect_err("it is away");
    assert_eq!(refused.kind(), StackErrorKind::Pending, "{refused}");
    assert!(matches!(&refused, StackError::Role { hint, .. } if hint.contains("writer still")));
    write_file(&m.fs, Ino::ROOT, "two", b"two").await;
    ordeal.gated.gate.armed.store(false, Ordering::SeqCst);
    assert!(m.sync(LONG).await, "it goes on");
    demote(&m).await;
    ordeal.sees(false, &["one", "two"], "afterwards").await;
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_was_overtaken_follows_and_can_be_promoted_again() {
    // Guards against an overtaken mount that shows its own unsent changes over another's, and is of no
    // use any more. What it had pending lies in a journal that is set aside.
    let bench = Bench::new().await;
    let other = elsewhere(&bench);
    let m = bench.mount_with(|o| o.refresh = Duration::from_millis(50)).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "common", b"common").await;
    assert!(m.sync(LONG).await);
    let over = |o: &mut MountOptions| o.takeover = true;
    let theirs = other.mount_with(over).await.expect("takes over");
    write_file(&m.fs, Ino::ROOT, "late", b"late").await;
    assert!(!m.sync(LONG).await, "nothing more of it gets in");
    write_file(&theirs.fs, Ino::ROOT, "theirs", b"theirs").await;
    assert!(theirs.sync(LONG).await);
    shows(&m, "theirs", b"theirs").await;
    for _ in 0..400 {
        if m.control.status().last_transition.is_some_and(|last| last.why == Why::Fenced) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(m.fs.lookup(Ino::ROOT, b"late".to_vec()).await, Err(FsError::NotFound)));
    let status = m.control.status();
    let last = status.last_transition.expect("it says");
    assert_eq!((status.role, last.why), (RoleName::Follower, Why::Fenced));
    assert!(status.warnings.iter().any(|w| w.contains("sealfs recover")), "{:?}", status.warnings);
    demote(&theirs).await;
    promote(&m).await;
    assert_eq!(read_file(&m.fs, "theirs").await, "theirs");
    write_file(&m.fs, Ino::ROOT, "again", b"again").await;
    assert!(m.sync(LONG).await);
    let status = m.control.status();
    assert!(status.warnings.iter().any(|w| w.contains("set-aside")), "{:?}", status.warnings);
    assert!(m.shutdown(LONG).await && theirs.shutdown(LONG).await);
}

/// Has a writer go on while a certain read of a manifest waits.
struct GoesOn {
    reads: AtomicU64,
    at: u64,
    writer: Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
}

impl Gate for GoesOn {
    fn step(&self, what: &str, at: &Path) -> (bool, bool) {
        let is_manifest = what == "GET" && at.as_ref().starts_with("meta/manifest/");
        if is_manifest && self.reads.fetch_add(1, Ordering::SeqCst) == self.at {
            let (ask, done) = &*self.writer.lock().expect("not poisoned");
            ask.send(()).expect("the writer is there");
            done.recv_timeout(LONG).expect("the writer has gone on");
        }
        (true, true)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mount_begins_again_where_the_writer_goes_on_while_it_reads() {
    // Guards against "another mount has taken over this volume" for who mounts while the writer puts its log
    // into tables: the newest manifest then refers to a part of the log that was not there a moment ago.
    let memory = Arc::new(InMemory::new());
    let bench = Bench::over(memory.clone()).await;
    let writer = Arc::new(bench.mount().await);
    let mut interrupted = 0;
    for at in 0..4 {
        let ((ask, asked), (tell, done)) = (mpsc::channel(), mpsc::channel());
        let (m, runtime) = (writer.clone(), tokio::runtime::Handle::current());
        let go_on = move || {
            for (n, ()) in (0..).zip(asked) {
                runtime.block_on(async {
                    for part in 0..3 {
                        write_file(&m.fs, Ino::ROOT, &format!("{at} {n} {part}"), b"new").await;
                        assert!(m.sync(LONG).await);
                        m.view().kv().flush_memtable().await.expect("flushes");
                    }
                });
                let _ = tell.send(()); // nobody may wait for it any more
            }
        };
        let working = std::thread::spawn(go_on);
        let reads = AtomicU64::new(0);
        let gate = GoesOn { reads, at, writer: Mutex::new((ask, done)) };
        let gated = Gated::new(memory.clone(), gate);
        let other = Bench::seeing(gated.clone());
        let m = follower(&other).await;
        interrupted += u64::from(gated.gate.reads.load(Ordering::SeqCst) > at);
        write_file(&writer.fs, Ino::ROOT, &format!("later {at}"), b"seen").await;
        assert!(writer.sync(LONG).await);
        shows(&m, &format!("later {at}"), b"seen").await;
        assert!(m.shutdown(LONG).await);
        drop((other, gated)); // the writer's thread ends with the gate
        working.join().expect("the writer went on");
    }
    assert!(interrupted > 1, "{interrupted}");
    let writer = Arc::into_inner(writer).expect("nobody else has it");
    assert!(writer.shutdown(LONG).await);
}
