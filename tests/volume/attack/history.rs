//! One history: nothing spliced, forked or hidden unseen. The attacker keeps every object that was
//! ever there and shows each machine what he likes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::base::Ino;
use sealfs::stack::{Mounted, StackError, StackErrorKind};

use super::{Objects, objects, put_all};
use crate::volume::gated::{Gate, Gated};
use crate::volume::{Bench, LONG, find, write_file};

/// A machine that knows what `bench` knows, and sees `store`.
fn same_machine(bench: &Bench, store: Arc<dyn ObjectStore>) -> Bench {
    let same = Bench::seeing(store);
    let from = bench.state();
    let copied = std::process::Command::new("cp").arg("-a").args([from, same.state()]).status();
    assert!(copied.expect("cp").success());
    same
}

async fn bucket_of(all: &Objects) -> Arc<InMemory> {
    let store = Arc::new(InMemory::new());
    put_all(&*store, all).await;
    store
}

/// Makes one file with one commit.
async fn commit(m: &Mounted, name: &str) {
    write_file(&m.fs, Ino::ROOT, name, name.as_bytes()).await;
    assert!(m.sync(LONG).await, "{name}");
}

/// Ends a mount as a crash would: nothing is flushed out of the log, and a change that the bucket has
/// not is left to the journal.
async fn crash(m: Mounted, left: &str) {
    write_file(&m.fs, Ino::ROOT, left, b"pending").await;
    assert!(!m.shutdown(std::time::Duration::ZERO).await, "nothing is pending");
}

/// The names in the root directory; `None` if they cannot be read.
async fn names(m: &Mounted) -> Option<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for name in ALL {
        match m.fs.lookup(Ino::ROOT, name.as_bytes().to_vec()).await {
            Ok(entry) => {
                let got = m.fs.read(entry.ino, 0, 100).await.ok()?;
                assert_eq!(got, name.as_bytes(), "wrong contents");
                found.insert(name.to_string());
            }
            Err(sealfs::fs::FsError::NotFound) => {}
            Err(_) => return None,
        }
    }
    Some(found)
}

const ALL: [&str; 12] = ["a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2", "b3", "b4", "b5", "b6"];

/// Whether these names are what some history of commits in this order has at some point.
fn is_prefix(found: &BTreeSet<String>, order: &[&str]) -> bool {
    let taken: BTreeSet<String> =
        order[..found.len().min(order.len())].iter().map(|n| n.to_string()).collect();
    *found == taken
}

fn log_numbers(all: &Objects) -> Vec<Path> {
    all.keys().filter(|at| at.as_ref().starts_with("meta/wal/")).cloned().collect()
}

/// Machine A has made `a1` to `a6`, all of which are in the log; B, which was shown the bucket when
/// it had only three of them, `b1` to `b3` on top, and was mounted again and again.
struct Two {
    a: Bench,
    a_all: Objects,
    b: Bench,
    b_all: Objects,
    common: Objects,
}

async fn two() -> Two {
    let bucket = Arc::new(InMemory::new());
    let a = Bench::over(bucket.clone()).await;
    let m = a.mount().await;
    for name in &ALL[..3] {
        commit(&m, name).await;
    }
    let common = objects(&*bucket).await;
    for name in &ALL[3..6] {
        commit(&m, name).await;
    }
    let a_all = objects(&*bucket).await;
    crash(m, "left by A").await;
    let other = bucket_of(&common).await;
    let b = Bench::seeing(other.clone());
    for name in &ALL[6..9] {
        let m = b.mount_with(|o| o.takeover = true).await.expect("B mounts");
        commit(&m, name).await;
        crash(m, &format!("left behind {name}")).await;
    }
    let b_all = objects(&*other).await;
    Two { a, a_all, b, b_all, common }
}

/// Shows `all` to `who`, read-only and read-write; what it sees is `allowed` or nothing.
async fn shown(
    who: &Bench,
    all: &Objects,
    what: &str,
    allowed: impl Fn(&BTreeSet<String>) -> bool,
) {
    for read_only in [true, false] {
        let store = bucket_of(all).await;
        let seen = same_or_fresh(who, store.clone());
        let change = |o: &mut sealfs::stack::MountOptions| {
            (o.read_only, o.takeover) = (read_only, !read_only);
        };
        match seen.mount_with(change).await {
            Ok(m) => {
                if let Some(found) = names(&m).await {
                    assert!(allowed(&found), "{what}: {found:?}");
                }
                m.shutdown(LONG).await;
            }
            Err(e) => {
                assert_eq!(e.kind(), StackErrorKind::Corrupt, "{what}: {e}");
                assert!(objects(&*store).await == *all, "{what}: a refused mount has written");
            }
        }
    }
}

fn same_or_fresh(who: &Bench, store: Arc<dyn ObjectStore>) -> Bench {
    match who.state().exists() {
        true => same_machine(who, store),
        false => Bench::seeing(store),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_the_log_of_another_history_fit_nowhere() {
    // Guards against a committed change that vanishes from the middle: every object of B's log, its
    // fences among them, in the place of A's, and the other way round, and both logs exchanged from
    // each number on.
    let t = two().await;
    let (a_log, b_log) = (log_numbers(&t.a_all), log_numbers(&t.b_all));
    let of_a = |found: &BTreeSet<String>| is_prefix(found, &ALL[..6]);
    let of_b = |found: &BTreeSet<String>| is_prefix(found, &["a1", "a2", "a3", "b1", "b2", "b3"]);
    let whole = |found: &BTreeSet<String>| found.len() == 6 && of_a(found);
    let fresh = Bench::seeing(Arc::new(InMemory::new()));
    let fork = log_numbers(&t.common).len();
    assert!(a_log.len() > fork && b_log.len() > fork, "there is nothing to exchange");
    for (n, at) in b_log.iter().enumerate().skip(fork) {
        let what = format!("{at} of B");
        let mut one = t.a_all.clone();
        one.insert(at.clone(), t.b_all[at].clone());
        shown(&t.a, &one, &what, whole).await;
        shown(&fresh, &one, &what, |found| of_a(found) || of_b(found)).await;
        let mut from = t.a_all.clone();
        from.extend(b_log[n..].iter().map(|at| (at.clone(), t.b_all[at].clone())));
        shown(&t.a, &from, &format!("{what} and what follows"), whole).await;
        shown(&fresh, &from, &what, |found| of_a(found) || of_b(found)).await;
    }
    for (n, at) in a_log.iter().enumerate().skip(fork) {
        let mut from = t.b_all.clone();
        from.extend(a_log[n..].iter().map(|at| (at.clone(), t.a_all[at].clone())));
        let what = format!("{at} of A and what follows");
        shown(&t.b, &from, &what, |found| found.contains("b3") && of_b(found)).await;
        shown(&fresh, &from, &what, |found| of_a(found) || of_b(found)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_mount_writes_nothing_and_what_was_hidden_fits_again() {
    // Guards against the fence that a refused mount left under the next number: with it, what was
    // hidden could be put back around it.
    let t = two().await;
    let log = log_numbers(&t.a_all);
    for hidden in 1..4 {
        let mut older = t.a_all.clone();
        for at in &log[log.len() - hidden..] {
            older.remove(at);
        }
        let store = bucket_of(&older).await;
        let a = same_machine(&t.a, store.clone());
        for at_least in [0, 1_000] {
            let change = |o: &mut sealfs::stack::MountOptions| {
                (o.takeover, o.at_least) = (true, at_least);
            };
            let refused = a.mount_with(change).await.err().expect("older");
            assert_eq!(refused.kind(), StackErrorKind::Corrupt, "{refused}");
            assert!(objects(&*store).await == older, "{hidden} hidden: something was written");
        }
        let back = Objects::from_iter(log.iter().map(|at| (at.clone(), t.a_all[at].clone())));
        put_all(&*store, &back).await;
        let m = a.mount_with(|o| o.takeover = true).await.expect("all is there again");
        assert_eq!(names(&m).await.expect("reads").len(), 6);
        m.shutdown(LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_with_a_higher_number_is_another_history_for_who_saw_the_first() {
    // Guards against comparing numbers only: what was committed and seen vanishes without a word.
    let t = two().await;
    let m = t.b.mount_with(|o| o.takeover = true).await.expect("B mounts");
    for name in &ALL[9..] {
        commit(&m, name).await;
    }
    assert!(m.shutdown(LONG).await);
    let fork = objects(&*t.b.store).await;
    let store = bucket_of(&fork).await;
    for read_only in [true, false] {
        let a = same_machine(&t.a, store.clone());
        let change = |o: &mut sealfs::stack::MountOptions| o.read_only = read_only;
        let refused = a.mount_with(change).await.err().expect("another history");
        assert!(matches!(refused, StackError::OtherHistory { commit: 6, .. }), "{refused}");
        assert!(refused.hint().expect("one").contains("--accept-rollback=history"));
        assert!(objects(&*store).await == fork, "something was written");
        let report = a.fsck(|_| {}).await;
        assert!(report.problems.iter().any(|p| p.what.contains("another history")), "{report:?}");
        // Each kind is asked for by itself.
        let accept = sealfs::stack::Accept { history: false, ..sealfs::stack::Accept::ALL };
        assert!(a.mount_with(|o| (o.accept_rollback, o.read_only) = (accept, true)).await.is_err());
        let accept = sealfs::stack::Accept { history: true, ..Default::default() };
        let m = a.mount_with(|o| (o.accept_rollback, o.read_only) = (accept, true)).await;
        let m = m.expect("accepted");
        assert_eq!(names(&m).await.expect("reads").len(), 9);
        m.shutdown(LONG).await;
        a.mount_with(|o| o.read_only = true).await.expect("for good").shutdown(LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_remembers_what_it_saw() {
    // Guards against followers that forget: they go on with the writer, and the same machine then
    // takes an older bucket, or a fork, for the volume.
    let bucket = Arc::new(InMemory::new());
    let a = Bench::over(bucket.clone()).await;
    let m = a.mount().await;
    commit(&m, "a1").await;
    let old = objects(&*bucket).await;
    let f = Bench::seeing(bucket.clone());
    let quick = |o: &mut sealfs::stack::MountOptions| {
        (o.read_only, o.refresh) = (true, std::time::Duration::from_millis(50));
    };
    let follower = f.mount_with(quick).await.expect("follows");
    commit(&m, "a2").await;
    commit(&m, "a3").await;
    volume_until(|| follower.control.status().commit_sequence == 3).await;
    follower.shutdown(LONG).await;
    m.shutdown(LONG).await;
    let rolled_back = bucket_of(&old).await;
    for read_only in [true, false] {
        let same = same_machine(&f, rolled_back.clone());
        let change = |o: &mut sealfs::stack::MountOptions| {
            (o.read_only, o.takeover) = (read_only, !read_only);
        };
        let refused = same.mount_with(change).await.err().expect("older");
        assert!(matches!(refused, StackError::Rollback { found: 1, seen: 3 }), "{refused}");
    }
}

async fn volume_until(done: impl Fn() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("it does not come about");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_on_the_writers_machine_leaves_what_the_writer_remembers_as_it_is() {
    // Guards against a follower that has read what the machine remembers before the writer started,
    // and saves that over what the writer keeps: the writer's journal then looks like another
    // mount's, and what is pending in it is set aside. It saves last, when the writer is gone.
    let bench = Bench::over(Arc::new(InMemory::new())).await;
    let m = bench.mount().await;
    commit(&m, "a1").await;
    m.shutdown(LONG).await;
    let slow = std::time::Duration::from_millis(700);
    let follower =
        bench.mount_with(|o| (o.read_only, o.refresh) = (true, slow)).await.expect("follows");
    let m = bench.mount().await;
    commit(&m, "a2").await;
    let seen = follower.control.status().commit_sequence;
    crash(m, "pending").await;
    volume_until(|| follower.control.status().commit_sequence > seen).await;
    follower.shutdown(LONG).await;
    let m = bench.mount().await;
    assert_eq!(m.set_aside, None);
    m.fs.lookup(Ino::ROOT, b"pending".to_vec()).await.expect("what was pending is replayed");
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_follower_shows_nothing_of_another_history() {
    // Guards against a bucket that is exchanged under a follower: for an older one, or a fork that
    // has gone further. It stays where it was, or shows nothing.
    let t = two().await;
    let m = t.b.mount_with(|o| o.takeover = true).await.expect("B mounts");
    for name in &ALL[9..] {
        commit(&m, name).await;
    }
    assert!(m.shutdown(LONG).await, "its log is flushed");
    t.b.mount().await.shutdown(LONG).await; // and its manifests go on
    let fork = objects(&*t.b.store).await;
    for (what, other) in [("older", &t.common), ("a fork", &fork)] {
        let bucket = bucket_of(&t.a_all).await;
        let f = Bench::seeing(bucket.clone());
        let follower = f
            .mount_with(|o| {
                (o.read_only, o.refresh) = (true, std::time::Duration::from_millis(50));
            })
            .await
            .expect("follows");
        assert_eq!(names(&follower).await.expect("reads").len(), 6);
        for at in t.a_all.keys() {
            if !other.contains_key(at) {
                bucket.delete(at).await.expect("deletes");
            }
        }
        put_all(&*bucket, other).await;
        for _ in 0..40 {
            if let Some(found) = names(&follower).await {
                assert!(found.len() == 6 && is_prefix(&found, &ALL[..6]), "{what}: {found:?}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        follower.shutdown(LONG).await;
        let again = f.mount_with(|o| o.read_only = true).await.err();
        assert!(again.is_some_and(|e| e.kind() == StackErrorKind::Corrupt), "{what}");
    }
}

/// Stores what is created in the log and says that somebody else had done so.
struct Denies(AtomicUsize);

impl Gate for Denies {
    fn step(&self, what: &str, at: &Path) -> (bool, bool) {
        let denies = what == "PUT Create" && at.as_ref().starts_with("meta/wal/");
        let take = |left: usize| left.checked_sub(1);
        let denies =
            denies && self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        (true, !denies)
    }

    fn instead(&self, at: &Path) -> object_store::Error {
        object_store::Error::AlreadyExists { path: at.to_string(), source: "a lie".into() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fences_that_were_collected_fit_nowhere() {
    // Guards against one mount that is told 40 times that its fence is there already: it leaves 40
    // authentic fences, which were to be had for any number of the log.
    let t = two().await;
    let inner = bucket_of(&t.common).await;
    let b = Bench::seeing(Gated::new(inner.clone(), Denies(AtomicUsize::new(40))));
    let m = b.mount_with(|o| o.takeover = true).await.expect("at last");
    commit(&m, "b1").await;
    let all = objects(&*inner).await;
    crash(m, "left by B").await;
    let fences = log_numbers(&all);
    assert!(fences.len() >= log_numbers(&t.common).len() + 40, "{}", fences.len());
    let whole = |found: &BTreeSet<String>| found.len() == 6 && is_prefix(found, &ALL[..6]);
    let fresh = Bench::seeing(Arc::new(InMemory::new()));
    let log = log_numbers(&t.a_all);
    let fork = log_numbers(&t.common).len();
    for at in &log[fork..] {
        let mut spliced = t.a_all.clone();
        spliced.insert(at.clone(), all[at].clone());
        shown(&t.a, &spliced, at.as_ref(), whole).await;
        shown(&fresh, &spliced, at.as_ref(), |found| is_prefix(found, &ALL[..6])).await;
    }
    // What it made is one history, with nothing lost.
    let m = Bench::seeing(inner).mount_with(|o| o.takeover = true).await.expect("mounts");
    assert_eq!(names(&m).await.expect("reads").len(), 4);
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_of_the_log_that_is_missing_in_the_middle_is_damage_for_everybody() {
    // Guards against an absence that passes for the end of the log: fsck, followers and a fresh
    // machine showed the older state.
    let t = two().await;
    let log = log_numbers(&t.a_all);
    for at in &log[2..log.len() - 1] {
        let mut all = t.a_all.clone();
        all.remove(at);
        let store = bucket_of(&all).await;
        for who in [Bench::seeing(store.clone()), same_machine(&t.a, store.clone())] {
            let report = who.fsck(|_| {}).await;
            assert!(!report.problems.is_empty(), "{at}: fsck is content");
            let read_only = |o: &mut sealfs::stack::MountOptions| o.read_only = true;
            if let Ok(m) = who.mount_with(read_only).await {
                // Only if nothing tells that there was more.
                panic!("{at}: mounts and shows {:?}", names(&m).await);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_costs_one_put_and_few_bytes_more() {
    // Guards against a chain that costs requests; prints what a commit takes.
    let bucket = Arc::new(InMemory::new());
    let a = Bench::over(bucket.clone()).await;
    let m = a.mount().await;
    commit(&m, "a1").await;
    let ino = find(&m.fs, "a1").await;
    let (before, log) = (m.requests(), log_numbers(&objects(&*bucket).await).len());
    for n in 0..20u32 {
        let attributes =
            sealfs::fs::SetAttr { perm: Some(0o600 + (n % 8) as u16), ..Default::default() };
        m.fs.setattr(crate::volume::CALLER, ino, attributes).await.expect("changes");
        assert!(m.sync(LONG).await);
    }
    let after = m.requests();
    let all = objects(&*bucket).await;
    let logs = log_numbers(&all);
    let bytes: usize = logs[log..].iter().map(|at| all[at].len()).sum();
    println!("bytes of a commit that changes one inode: {}", bytes / 20);
    assert_eq!(logs.len() - log, 20);
    assert_eq!(after.put - before.put, 20, "requests of 20 commits");
    assert!(bytes / 20 < 1_000, "{}", bytes / 20);
    m.shutdown(LONG).await;
}

/// What is done to one segment: what a GET of it says, and whether it is listed.
struct Lies {
    at: Path,
    says: Option<fn(&Path) -> object_store::Error>,
    is_listed: bool,
}

impl Gate for Lies {
    fn step(&self, what: &str, at: &Path) -> (bool, bool) {
        (true, !(what == "GET" && *at == self.at && self.says.is_some()))
    }

    fn instead(&self, at: &Path) -> object_store::Error {
        self.says.expect("something")(at)
    }

    fn hides(&self, at: &Path) -> bool {
        !self.is_listed && *at == self.at
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_rows_name_and_the_bucket_does_not_give_is_damage_for_fsck() {
    // Guards against "nothing is wrong" for a segment that is listed and not there, that is not
    // listed and refused, or that is not listed and altered.
    let gone =
        |at: &Path| object_store::Error::NotFound { path: at.to_string(), source: "".into() };
    let denied = |at: &Path| object_store::Error::PermissionDenied {
        path: at.to_string(),
        source: "not yours".into(),
    };
    type Says = Option<fn(&Path) -> object_store::Error>;
    let cases: [(&str, Says, bool, bool, &str); 4] = [
        ("listed, not there", Some(gone), true, false, "though it is listed"),
        ("not listed, not there", Some(gone), false, false, "is not in the bucket"),
        ("not listed, refused", Some(denied), false, false, "is not listed, and cannot be"),
        ("not listed, altered", None, false, true, "is damaged"),
    ];
    for (what, says, is_listed, altered, expected) in cases {
        let bucket = Arc::new(InMemory::new());
        let a = Bench::over(bucket.clone()).await;
        let m = a.mount().await;
        commit(&m, "a1").await;
        assert!(m.shutdown(LONG).await);
        let all = objects(&*bucket).await;
        let at = all.keys().find(|at| at.as_ref().starts_with("seg/")).expect("one").clone();
        if altered {
            let mut bytes = all[&at].to_vec();
            bytes[60] ^= 1;
            bucket.put(&at, bytes.into()).await.expect("puts");
        }
        let seen = Bench::seeing(Gated::new(bucket, Lies { at, says, is_listed }));
        let report = seen.fsck(|o| o.data = true).await;
        let found = report.problems.iter().find(|p| p.what.contains(expected));
        let found = found.unwrap_or_else(|| panic!("{what}: {:?}", report.problems));
        assert!(found.files.iter().any(|f| f.starts_with("/a1")), "{what}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_configuration_or_an_old_lease_is_told_on_a_machine_that_saw_nothing() {
    // Guards against objects beside the metadata that are deleted or put back: the mode of encryption
    // that everything is written in from then on, and a volume that counts as free.
    let bucket = Arc::new(InMemory::new());
    let a = Bench::over(bucket.clone()).await;
    let m = a.mount().await;
    commit(&m, "a1").await;
    assert!(m.shutdown(LONG).await);
    let released = objects(&*bucket).await[&Path::from("lease")].clone();
    let m = a.mount().await;
    commit(&m, "a2").await;
    let mut all = objects(&*bucket).await;
    all.insert(Path::from("lease"), released);
    let refused =
        Bench::seeing(bucket_of(&all).await).mount_with(|_| {}).await.err().expect("refused");
    assert!(matches!(refused, StackError::LeaseRollback { is_there: true }), "{refused}");
    all.remove(&Path::from("lease"));
    let refused =
        Bench::seeing(bucket_of(&all).await).mount_with(|_| {}).await.err().expect("refused");
    assert!(matches!(refused, StackError::LeaseRollback { is_there: false }), "{refused}");
    assert!(m.shutdown(LONG).await);
    let mut all = objects(&*bucket).await;
    all.remove(&Path::from("config"));
    for read_only in [true, false] {
        let fresh = Bench::seeing(bucket_of(&all).await);
        let refused = fresh.mount_with(|o| o.read_only = read_only).await.err().expect("refused");
        assert!(matches!(refused, StackError::ConfigRollback { found: 0, .. }), "{refused}");
        assert_eq!(refused.kind(), StackErrorKind::Corrupt);
        assert!(objects(&*fresh.store).await == all, "something was written");
        let report = fresh.fsck(|_| {}).await;
        assert!(report.problems.iter().any(|p| p.what.contains("object config")), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_the_metadata_that_is_gone_while_mounted_shows_in_the_status() {
    // Guards against EIO everywhere with a status that is online and without a warning.
    let bucket = Arc::new(InMemory::new());
    let a = Bench::over(bucket.clone()).await;
    let m = a.mount().await;
    for n in 0..400 {
        write_file(&m.fs, Ino::ROOT, &format!("{n}-{}", "x".repeat(200)), b"x").await;
    }
    assert!(m.shutdown(LONG).await);
    let m = a.mount().await;
    let all = objects(&*bucket).await;
    for at in all.keys().filter(|at| at.as_ref().starts_with("meta/compacted/")) {
        bucket.delete(at).await.expect("deletes");
    }
    let mut failed = false;
    for n in 0..400 {
        let name = format!("{n}-{}", "x".repeat(200)).into_bytes();
        failed |= m.fs.lookup(Ino::ROOT, name).await.is_err();
        if failed {
            break;
        }
    }
    assert!(failed, "everything was in memory");
    let warnings = m.control.status().warnings.join("; ");
    assert!(warnings.contains("meta/compacted/"), "{warnings}");
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_of_many_megabytes_is_refused_for_its_size() {
    // Guards against objects that are read whole whatever their size: 12 GiB for `config` killed a
    // daemon at its heartbeat.
    for name in ["config", "lease"] {
        let bucket = Arc::new(InMemory::new());
        let a = Bench::over(bucket.clone()).await;
        a.mount().await.shutdown(LONG).await;
        bucket.put(&Path::from(name), vec![7; 3 << 20].into()).await.expect("puts");
        let refused = a.mount_with(|_| {}).await.err().expect("refused");
        assert!(refused.to_string().contains("none of its kind"), "{refused}");
        assert_eq!(refused.kind(), StackErrorKind::Corrupt, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_emptied_cut_or_taken_away_is_missed() {
    // Guards against files that were fsynced, were only here, and are gone without a word.
    for what in ["zeroed", "cut to its header", "deleted", "untouched"] {
        let bucket = Arc::new(InMemory::new());
        let a = Bench::over(bucket.clone()).await;
        let late = |o: &mut sealfs::stack::MountOptions| o.commit_interval = LONG * 100;
        let m = a.mount_with(late).await.expect("mounts");
        let ino = write_file(&m.fs, Ino::ROOT, "a1", b"a1").await;
        m.fs.fsync_now(ino).expect("syncs");
        // It is remembered a second later.
        let entries = a.state().read_dir().expect("lists").map(|e| e.expect("entry").path());
        let state = entries.into_iter().find(|at| at.join("state").exists()).expect("one");
        let before = std::fs::read(state.join("state")).expect("there");
        volume_until(|| std::fs::read(state.join("state")).expect("there") != before).await;
        m.shutdown(std::time::Duration::ZERO).await;
        let journal = state.join("journal");
        let files = journal.read_dir().expect("lists").map(|e| e.expect("entry").path());
        let logs = files
            .filter(|f| f.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"log-")));
        for log in logs.collect::<Vec<_>>() {
            let len = std::fs::metadata(&log).expect("stats").len();
            let file = std::fs::OpenOptions::new().write(true).open(&log).expect("opens");
            match what {
                "zeroed" => {
                    file.set_len(0).expect("cuts");
                    file.set_len(len).expect("grows");
                }
                "cut to its header" => file.set_len(4096).expect("cuts"),
                _ => {}
            }
        }
        if what == "deleted" {
            std::fs::remove_dir_all(&journal).expect("removes");
        }
        let mounted = a.mount_with(|_| {}).await;
        if what == "untouched" {
            let m = mounted.expect("mounts");
            assert_eq!(names(&m).await.expect("reads").len(), 1);
            m.shutdown(LONG).await;
            continue;
        }
        let refused = mounted.err().unwrap_or_else(|| panic!("{what}: mounts"));
        assert_eq!(refused.kind(), StackErrorKind::Corrupt, "{what}: {refused}");
        if let StackError::JournalLost { is_there, records } = refused {
            assert_eq!((is_there, records > 0), (what != "deleted", true), "{what}");
            let accept = sealfs::stack::Accept { journal: true, ..Default::default() };
            let m = a.mount_with(|o| o.accept_rollback = accept).await.expect("accepted");
            commit(&m, "a2").await;
            // It is not forgotten with the mount that was told to go on.
            let says = |m: &Mounted| m.control.status().warnings.join("; ");
            assert!(says(&m).contains("lost with the local journal"), "{what}: {}", says(&m));
            m.shutdown(LONG).await;
            let m = a.mount().await;
            assert!(says(&m).contains("lost with the local journal"), "{what}: {}", says(&m));
            m.shutdown(LONG).await;
            let m = a.mount_with(|o| o.accept_rollback = accept).await.expect("nothing is lost");
            assert_eq!(says(&m), "", "{what}");
            m.shutdown(LONG).await;
            assert_eq!(says(&a.mount().await), "", "{what}");
        }
    }
}
