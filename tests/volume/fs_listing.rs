//! Listings that are read ahead: true page by page whatever changes beside them, and bounded
//! when the store is away; without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::volume::{Bench, CALLER, LONG};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sealfs::base::Ino;
use sealfs::fs::{Fs, RenameFlags, SetAttr};
use sealfs::stack::Mounted;

const FIRST_COOKIE: u64 = 4;
/// The largest that a program of 32 bits can take.
const LAST_COOKIE: u64 = i32::MAX as u64;

/// What of a place a name keeps: the rest says how many names of the group are before it.
fn group(cookie: u64) -> u64 {
    cookie >> 2
}

/// What a directory holds: inode and size by name.
type Names = BTreeMap<Vec<u8>, (Ino, u64)>;

async fn make(fs: &Arc<Fs>, dir: Ino, name: Vec<u8>, size: u64) -> (Ino, u64) {
    let made = fs.create(CALLER, dir, name, 0o644, 0).await.expect("creates");
    resize(fs, made.ino, size).await;
    (made.ino, size)
}

async fn resize(fs: &Arc<Fs>, ino: Ino, size: u64) {
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    fs.setattr(CALLER, ino, set).await.expect("resizes");
}

/// One change of the directory, or a commit.
async fn change(rng: &mut StdRng, m: &Mounted, dir: Ino, names: &mut Names, made: &mut u64) {
    let any = |rng: &mut StdRng, names: &Names| {
        names.keys().nth(rng.random_range(0..names.len())).expect("one of them").clone()
    };
    *made += 1;
    let fresh = format!("fresh-{made}").into_bytes();
    match rng.random_range(0..20) {
        0..6 => {
            let entry = make(&m.fs, dir, fresh.clone(), rng.random_range(0..1000)).await;
            names.insert(fresh, entry);
        }
        6..10 => {
            let name = any(rng, names);
            m.fs.unlink(dir, name.clone()).await.expect("unlinks");
            names.remove(&name);
        }
        10..14 => {
            let (from, to) = (any(rng, names), fresh);
            let none = RenameFlags::default();
            let renamed = m.fs.rename(dir, from.clone(), dir, to.clone(), none).await;
            renamed.expect("renames");
            let entry = names.remove(&from).expect("was there");
            names.insert(to, entry);
        }
        14..19 => {
            let name = any(rng, names);
            let entry = names.get_mut(&name).expect("is there");
            entry.1 = rng.random_range(0..1000);
            resize(&m.fs, entry.0, entry.1).await;
        }
        _ => assert!(m.sync(LONG).await),
    }
}

async fn lists_what_is_there(seed: u64) {
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let bench = Bench::new().await;
    let m = bench.mount().await;
    let dir = m.fs.mkdir(CALLER, Ino::ROOT, b"d".to_vec(), 0o755, 0).await.expect("makes").ino;
    let mut names = Names::new();
    for n in 0..4000 {
        let name = format!("name-{n}").into_bytes();
        names.insert(name.clone(), make(&m.fs, dir, name, n).await);
    }
    assert!(m.sync(LONG).await);
    assert!(m.shutdown(LONG).await);
    // Again, with nothing in memory.
    let m = bench.mount().await;
    let (mut cookies, mut made) = (BTreeMap::<Vec<u8>, u64>::new(), 0);
    for round in 0..4 {
        let (mut after, mut listed, mut all_seen) = (0, 0, BTreeSet::new());
        let at_first: BTreeSet<Vec<u8>> = names.keys().cloned().collect();
        loop {
            let page = rng.random_range(1..300);
            let got = m.fs.readdirplus(dir, after, page).await.expect("lists");
            let Some((last, _)) = got.last() else { break };
            let reached = last.cookie;
            let mut seen = BTreeMap::new();
            for (entry, attr) in got.into_iter().filter(|(e, _)| e.cookie >= FIRST_COOKIE) {
                let attr = attr.expect("nobody removes it meanwhile");
                assert_eq!(attr.ino, entry.ino);
                assert!((after + 1..=reached.min(LAST_COOKIE)).contains(&entry.cookie));
                let place = group(entry.cookie);
                let known = *cookies.entry(entry.name.clone()).or_insert(place);
                assert_eq!(known, place, "a name keeps its place");
                m.fs.forget(entry.ino, 1);
                assert!(seen.insert(entry.name, (entry.ino, attr.size)).is_none(), "once");
            }
            listed += seen.len();
            all_seen.extend(seen.keys().cloned());
            for (name, entry) in &seen {
                assert_eq!(names.get(name), Some(entry), "{}", String::from_utf8_lossy(name));
            }
            // Pages end where groups end.
            for (name, place) in &cookies {
                let here = (group(after) + 1..=group(reached)).contains(place);
                let due = names.contains_key(name) && here;
                assert_eq!(due, seen.contains_key(name), "{}", String::from_utf8_lossy(name));
            }
            after = reached;
            // The first time, everything comes from what is read ahead.
            for _ in 0..if round == 0 { 0 } else { rng.random_range(0..8) } {
                change(&mut rng, &m, dir, &mut names, &mut made).await;
            }
        }
        assert!(round > 0 || listed == names.len(), "{listed} listed");
        // A name that was there all the while is listed, also if nobody had seen it before. (Made
        // names are never used again.)
        let stayed = at_first.iter().filter(|name| names.contains_key(*name));
        let missed: Vec<_> = stayed.filter(|name| !all_seen.contains(*name)).collect();
        assert!(missed.is_empty(), "{missed:?}");
    }
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_a_listing_is_what_the_directory_holds_then() {
    // Guards against what was read ahead of a change or a commit being shown after it, and
    // against gaps and repetitions where two parts that were read ahead meet.
    for seed in 1..=4 {
        lists_what_is_there(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_in_an_outage_fails_in_time_and_goes_on_after_it() {
    // Guards against a reader that waits for a read-ahead without bound, or first for the
    // read-ahead and then once more as long, and against a failure that stays.
    const READ_TIMEOUT: Duration = Duration::from_secs(2);
    const NAMES: usize = 30_000;
    let store = Arc::new(ThrottledStore::new(InMemory::new(), ThrottleConfig::default()));
    let bench = Bench::over(store.clone()).await;
    let m = bench.mount().await;
    let dir = m.fs.mkdir(CALLER, Ino::ROOT, b"d".to_vec(), 0o755, 0).await.expect("makes").ino;
    for n in 0..NAMES {
        // Long: one fetch must not bring the whole directory.
        let name = format!("{n:0240}").into_bytes();
        m.fs.create(CALLER, dir, name, 0o644, 0).await.expect("creates");
    }
    assert!(m.sync(LONG).await);
    assert!(m.shutdown(LONG).await);
    let m = bench.mount_with(|o| o.read_timeout = READ_TIMEOUT).await.expect("mounts");
    let (mut after, mut listed, mut failures) = (0, 0, 0);
    loop {
        let begun = Instant::now();
        match m.fs.readdir(dir, after, 200).await {
            Ok(page) if page.is_empty() => break,
            Ok(page) => {
                listed += page.len();
                after = page.last().expect("not empty").cookie;
            }
            Err(e) => {
                let took = begun.elapsed();
                assert!(took < READ_TIMEOUT * 2, "{e} after {took:?}");
                failures += 1;
                if failures == 2 {
                    store.config_mut(|c| c.wait_get_per_call = Duration::ZERO);
                }
            }
        }
        if failures == 0 && listed > 1000 {
            store.config_mut(|c| c.wait_get_per_call = Duration::from_secs(3600));
        }
    }
    assert_eq!((listed, failures), (NAMES + 2, 2));
    assert!(m.shutdown(LONG).await);
}

const FILES: usize = 300;

fn name(n: usize) -> Vec<u8> {
    format!("file{n:05}").into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_asked_for_one_by_one_are_not_read_one_by_one() {
    // Guards against a read of the store, or two, for each file that a program opens by name or
    // deletes: time that grows with the volume. Counted on a mount that knows nothing yet.
    let bench = Bench::new().await;
    let m = bench.mount().await;
    let dir = m.fs.mkdir(CALLER, Ino::ROOT, b"d".to_vec(), 0o755, 0).await.expect("mkdir").ino;
    for n in 0..FILES {
        make(&m.fs, dir, name(n), n as u64).await;
    }
    assert!(m.shutdown(LONG).await);
    let m = bench.mount().await;
    let before = m.view().loads();
    for n in 0..FILES {
        let found = m.fs.lookup(dir, name(n)).await.expect("there");
        assert_eq!(found.size, n as u64);
        let absent = m.fs.lookup(dir, format!("no{n}").into_bytes()).await;
        assert_eq!(absent.err(), Some(sealfs::fs::FsError::NotFound));
    }
    assert!(m.view().loads() - before < 20, "{} reads of lookups", m.view().loads() - before);
    assert!(m.shutdown(LONG).await);
    let m = bench.mount().await;
    let before = m.view().loads();
    for n in 0..FILES {
        m.fs.unlink(dir, name(n)).await.expect("unlinks");
    }
    assert!(m.view().loads() - before < 20, "{} reads of unlinks", m.view().loads() - before);
    m.fs.rmdir(Ino::ROOT, b"d".to_vec()).await.expect("is empty");
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_listed_is_removed_without_another_read() {
    // Guards against `rm -r` that reads each name again which it has just been given.
    let bench = Bench::new().await;
    let m = bench.mount().await;
    for d in 0..10 {
        let made = m.fs.mkdir(CALLER, Ino::ROOT, name(d), 0o755, 0).await.expect("mkdir");
        for n in 0..20 * d {
            make(&m.fs, made.ino, name(n), 0).await;
        }
    }
    assert!(m.shutdown(LONG).await);
    let m = bench.mount().await;
    for d in 0..10 {
        let dir = m.fs.lookup(Ino::ROOT, name(d)).await.expect("there").ino;
        let (mut listed, mut place) = (0, 0);
        // By pages as the kernel asks for: what is behind the first is read ahead.
        loop {
            let page = m.fs.readdirplus(dir, place, 24).await.expect("lists");
            let Some((last, _)) = page.last() else { break };
            (listed, place) = (listed + page.len(), last.cookie);
        }
        assert_eq!(listed, 2 + 20 * d);
        let before = m.view().loads();
        for n in 0..20 * d {
            m.fs.unlink(dir, name(n)).await.expect("unlinks");
        }
        assert_eq!(m.view().loads() - before, 0, "reads for names that were listed");
        m.fs.rmdir(Ino::ROOT, name(d)).await.expect("is empty");
    }
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_name_costs_no_read_of_the_store() {
    // Guards against creates that get slower as the volume grows, because each looks into every
    // table for a name that is not there: in a directory that this mount made and one it found, with
    // commits in between, which is when rows leave the pending ones.
    let bench = Bench::new().await;
    let m = bench.mount().await;
    let dir = m.fs.mkdir(CALLER, Ino::ROOT, b"d".to_vec(), 0o755, 0).await.expect("mkdir").ino;
    let fill = async |m: &Mounted, from: usize| {
        let before = m.view().loads();
        for n in from..from + FILES {
            // As the kernel does: looked up, then made.
            m.fs.lookup(dir, name(n)).await.expect_err("not there yet");
            make(&m.fs, dir, name(n), 0).await;
            if n % 50 == 0 {
                assert!(m.sync(LONG).await);
                let again = m.fs.create(CALLER, dir, name(n), 0o644, 0).await;
                assert_eq!(again.err(), Some(sealfs::fs::FsError::Exists));
            }
        }
        m.view().loads() - before
    };
    let of_new = fill(&m, 0).await;
    assert!(of_new < 20, "{of_new} reads in a directory that was just made");
    assert!(m.shutdown(LONG).await);
    let m = bench.mount().await;
    let of_old = fill(&m, FILES).await;
    assert!(of_old < 20, "{of_old} reads in a directory that was there");
    for n in 0..2 * FILES {
        m.fs.lookup(dir, name(n)).await.unwrap_or_else(|e| panic!("{n}: {e}"));
    }
    assert!(m.shutdown(LONG).await);
}
