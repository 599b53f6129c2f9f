//! Cleaning of segments: the bucket keeps about what the volume holds, files stay what they are,
//! and a round that is cut off leaves nothing behind.

mod mounts;
mod volume;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use sealfs::base::Ino;
use sealfs::commit::{CleanOptions, Lookup};
use sealfs::data::Source;
use sealfs::fs::{Fs, WriteFlags};
use sealfs::meta::{Inode, SegmentRow, keys};
use sealfs::stack::{MountOptions, Mounted};
use sealfs::store::SegmentStore;
use volume::{Bench, LONG, find, read_file, write_file};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Looks after every commit; `dead` bytes are worth a round, and so many tiny segments.
fn eager(dead: u64, tiny: usize) -> impl Fn(&mut MountOptions) {
    move |o| {
        let look_every = Duration::ZERO;
        o.clean = CleanOptions { dead_bytes_min: dead, tiny_min: tiny, look_every };
        o.commit_interval = Duration::from_millis(20);
        o.dead_grace = Duration::from_secs(1);
        o.takeover = true;
    }
}

fn noise(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + i / 253) as u8) ^ salt).collect()
}

async fn write(m: &Mounted, ino: Ino, at: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    m.fs.write(ino, at, data, WriteFlags::default()).await.expect("writes");
}

/// The same store, but every upload takes so long.
fn slowly(store: &Arc<dyn ObjectStore>, put_ms: u64) -> Arc<dyn ObjectStore> {
    let wait_put_per_call = Duration::from_millis(put_ms);
    let config = ThrottleConfig { wait_put_per_call, ..ThrottleConfig::default() };
    Arc::new(ThrottledStore::new(store.clone(), config))
}

async fn objects(store: &Arc<dyn ObjectStore>) -> Vec<ObjectMeta> {
    store.list(Some(&Path::from("seg"))).try_collect().await.expect("lists")
}

/// Waits until the volume looks so.
async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is().await {
        assert!(begun.elapsed() < LONG, "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Segments that hold data, by their rows.
async fn rows(m: &Mounted) -> Vec<SegmentRow> {
    let (from, to) = keys::all_with_tag(b's');
    let rows = m.view().kv().scan(&from, &to, 100_000, 1 << 16).await.expect("scans");
    rows.iter().map(|(_, value)| SegmentRow::decode(value).expect("a row")).collect()
}

/// The segments that the mount would read a file from, as far as it remembers.
fn remembered(m: &Mounted, ino: Ino, range: Range<u64>) -> BTreeSet<Path> {
    let Lookup::Hit(parts) = m.view().parts_now((ino, 0), range.start, range.end) else {
        return BTreeSet::new();
    };
    let segment = |source| match source {
        Source::Segment { id, .. } => Some(SegmentStore::name(id)),
        _ => None,
    };
    parts.iter().filter_map(|part| segment(part.source)).collect()
}

async fn assert_sound(bench: &Bench) {
    let report = bench.fsck(|o| o.data = true).await;
    assert_eq!(report.problems, []);
    let leaked = report.notes.iter().find(|note| note.contains("never committed"));
    assert_eq!(leaked, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_overwritten_again_and_again_does_not_fill_the_bucket() {
    // Guards against a database of 8 MiB that takes gigabytes in the bucket after a year: every
    // other 64 KiB of it are written anew in each round, so that no segment ever dies whole.
    let bench = Bench::new().await;
    let m = bench.mount_with(eager(2 * MIB, 100)).await.expect("mounts");
    let mut wanted = noise(8 * MIB as usize, 0);
    let ino = write_file(&m.fs, Ino::ROOT, "db", &wanted).await;
    let stays = write_file(&m.fs, Ino::ROOT, "stays", &noise(3 * MIB as usize, 9)).await;
    assert!(m.sync(LONG).await);
    for round in 1..=16u8 {
        for at in ((round as u64 % 3) * 64 * KIB..8 * MIB).step_by(128 * KIB as usize) {
            let new = noise(64 * KIB as usize, round);
            let end = (at + 64 * KIB).min(8 * MIB);
            let new = &new[..(end - at) as usize];
            write(&m, ino, at, new).await;
            wanted[at as usize..end as usize].copy_from_slice(new);
        }
        assert!(m.sync(LONG).await);
        assert_eq!(read_file(&m.fs, "db").await, wanted, "round {round}");
    }
    until("twice what it holds", async || {
        let held: u64 = rows(&m).await.iter().map(|row| row.size).sum();
        held <= 2 * 11 * MIB + 2 * MIB
    })
    .await;
    assert!(m.control.status().cleaned_bytes > 0);
    assert_eq!(m.fs.getattr(stays).await.expect("stats").size, 3 * MIB);
    // What was cleaned goes from the bucket too, and nobody remembers it.
    until("deleted", async || {
        let there = objects(&bench.store).await;
        there.iter().map(|o| o.size).sum::<u64>() <= 2 * 11 * MIB + 3 * MIB
    })
    .await;
    let there: BTreeSet<Path> =
        objects(&bench.store).await.into_iter().map(|o| o.location).collect();
    let remembered = remembered(&m, ino, 0..8 * MIB);
    assert!(remembered.is_subset(&there), "{remembered:?} not all in {there:?}");
    assert_eq!(read_file(&m.fs, "db").await, wanted);
    assert!(m.shutdown(LONG).await);
    assert_sound(&bench).await;
    let elsewhere = Bench { local: tempfile::tempdir().expect("tempdir"), ..bench };
    let m = elsewhere.mount().await;
    assert_eq!(read_file(&m.fs, "db").await, wanted);
    assert_eq!(read_file(&m.fs, "stays").await, noise(3 * MIB as usize, 9));
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commits_of_an_appended_log_become_one_segment_and_one_extent() {
    // Guards against 43,000 objects a day for a log that is synced all the time, and against a
    // read of it that needs a request for each.
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bench = Bench { store: slowly(&inner, 20), ..Bench::over(inner.clone()).await };
    let m = bench.mount_with(eager(u64::MAX, 30)).await.expect("mounts");
    let ino = write_file(&m.fs, Ino::ROOT, "log", b"").await;
    let mut wanted = Vec::new();
    for n in 0..30u8 {
        let line = noise(1000 + n as usize, n);
        write(&m, ino, wanted.len() as u64, &line).await;
        wanted.extend(line);
        assert!(m.sync(LONG).await);
    }
    // Before the round, whose first request takes longer than this.
    assert_eq!(read_file(&m.fs, "log").await, wanted);
    let whole = 0..wanted.len() as u64;
    assert_eq!(remembered(&m, ino, whole.clone()).len(), 30);
    until("merged", async || rows(&m).await.len() == 1).await;
    // Rows are seen before the bucket has them, and forgotten only then.
    until("forgotten", async || remembered(&m, ino, whole.clone()).len() <= 1).await;
    let (from, to) = keys::extents_all(ino);
    let extents = m.view().kv().scan(&from, &to, 100, 1 << 16).await.expect("scans");
    assert_eq!(extents, [], "pieces that follow each other are one");
    let row = m.view().kv().get(&keys::inode(ino)).await.expect("reads").expect("there");
    let extent = Inode::decode_with(&row).expect("a row").1.expect("its only extent");
    assert_eq!((extent.start, extent.len), (0, wanted.len() as u64));
    assert_eq!(read_file(&m.fs, "log").await, wanted);
    until("deleted", async || objects(&bench.store).await.len() == 1).await;
    assert_eq!(read_file(&m.fs, "log").await, wanted);
    assert!(m.shutdown(LONG).await);
    assert_sound(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_that_is_overtaken_by_writes_undoes_none_of_them() {
    // Guards against cleaning putting back what it read: while each of its uploads takes 30 ms,
    // files that it moves are written, cut off, and deleted.
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bench = Bench::over(inner.clone()).await;
    let bench = Bench { store: slowly(&inner, 30), ..bench };
    let m = bench.mount_with(eager(MIB, 4)).await.expect("mounts");
    let mut wanted = noise(4 * MIB as usize, 0);
    let ino = write_file(&m.fs, Ino::ROOT, "a", &wanted).await;
    let mut n = 0u64;
    let begun = Instant::now();
    while m.control.status().cleaned_bytes < 24 * MIB {
        assert!(begun.elapsed() < 2 * LONG, "nothing is cleaned");
        n += 1;
        let at = (n * 7919 * 512) % (3 * MIB);
        let new = noise((300 * KIB) as usize, n as u8);
        write(&m, ino, at, &new).await;
        wanted[at as usize..at as usize + new.len()].copy_from_slice(&new);
        if n.is_multiple_of(5) {
            let size = wanted.len() as u64 - 4 * KIB;
            let set = sealfs::fs::SetAttr { size: Some(size), ..Default::default() };
            m.fs.setattr(volume::CALLER, ino, set).await.expect("truncates");
            wanted.truncate(size as usize);
            wanted.resize(4 * MIB as usize, 0);
            let set = sealfs::fs::SetAttr { size: Some(4 * MIB), ..Default::default() };
            m.fs.setattr(volume::CALLER, ino, set).await.expect("grows");
        }
        let name = format!("short{}", n % 3);
        if n > 3 {
            m.fs.unlink(Ino::ROOT, name.clone().into()).await.expect("unlinks");
        }
        let made = write_file(&m.fs, Ino::ROOT, &name, &noise(5000, n as u8)).await;
        m.fs.forget(made, 1);
        if n.is_multiple_of(4) {
            assert!(m.sync(LONG).await);
        }
    }
    assert_eq!(read_file(&m.fs, "a").await, wanted);
    assert!(m.shutdown(LONG).await);
    let elsewhere = Bench { store: inner, local: tempfile::tempdir().expect("tempdir") };
    assert_sound(&elsewhere).await;
    let m = elsewhere.mount().await;
    assert_eq!(read_file(&m.fs, "a").await, wanted);
    m.shutdown(LONG).await;
}

/// Reads all of `log`, again and again, until told to stop; how often.
async fn read_all_the_while(fs: Arc<Fs>, wanted: Bytes, stop: Arc<AtomicBool>) -> u32 {
    let ino = find(&fs, "log").await;
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        let got = fs.read(ino, 0, wanted.len() as u32).await.expect("reads");
        assert!(got == wanted, "{} bytes, not the {} that were written", got.len(), wanted.len());
        times += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_while_extents_are_merged_sees_each_byte_once() {
    // Guards against a list of extents that was read page by page, the first pages before and
    // the last after hundreds of them became one: a read would bring too many bytes. Cached
    // extents are dropped all the time, here and by a follower, and rows take 30 ms to be durable.
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bench = Bench::over(inner.clone()).await;
    let m = bench.mount_with(eager(0, 2)).await.expect("mounts");
    let ino = write_file(&m.fs, Ino::ROOT, "log", b"").await;
    let mut wanted = Vec::new();
    for n in 0..700u32 {
        let line = noise(100, n as u8);
        write(&m, ino, wanted.len() as u64, &line).await;
        wanted.extend(line);
        assert!(m.sync(LONG).await);
    }
    assert_eq!(rows(&m).await.len(), 700, "0 cleans nothing");
    assert!(m.shutdown(LONG).await);
    let bench = Bench { store: slowly(&inner, 30), ..bench };
    let elsewhere = Bench { store: inner, local: tempfile::tempdir().expect("tempdir") };
    let follower = elsewhere.mount_with(|o| {
        o.read_only = true;
        o.refresh = Duration::from_millis(20);
    });
    let follower = follower.await.expect("mounts");
    let m = bench
        .mount_with(|o| {
            eager(u64::MAX, 100)(o);
            o.dead_grace = Duration::from_secs(3);
        })
        .await
        .expect("mounts");
    let stop = Arc::new(AtomicBool::new(false));
    let wanted = Bytes::from(wanted);
    let readers = [&m, &follower].map(|m| {
        let view = m.view().clone();
        let stopped = stop.clone();
        tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                view.invalidate();
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        });
        tokio::spawn(read_all_the_while(m.fs.clone(), wanted.clone(), stop.clone()))
    });
    write_file(&m.fs, Ino::ROOT, "more", b"and a commit").await;
    assert!(m.sync(LONG).await);
    until("merged", async || rows(&m).await.len() < 10).await;
    until("deleted", async || objects(&bench.store).await.len() < 10).await;
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.expect("reads what was written") > 3);
    }
    follower.shutdown(LONG).await;
    assert!(m.shutdown(LONG).await);
    assert_sound(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_segment_is_not_copied_and_nothing_is_deleted() {
    // Guards against cleaning that gives damage a new seal, or stops what is sound: one of many
    // tiny segments has a bit flipped before the round that would merge them.
    let bench = Bench::new().await;
    let m = bench.mount_with(eager(u64::MAX, 1000)).await.expect("mounts");
    for n in 0..6u8 {
        write_file(&m.fs, Ino::ROOT, &format!("f{n}"), &noise(2000, n)).await;
        assert!(m.sync(LONG).await);
    }
    assert!(m.shutdown(LONG).await);
    let before = objects(&bench.store).await;
    assert_eq!(before.len(), 6);
    let name = &before[2].location;
    let mut bytes =
        bench.store.get(name).await.expect("there").bytes().await.expect("read").to_vec();
    bytes[100] ^= 1;
    bench.store.put(name, bytes.into()).await.expect("put");
    let m = bench.mount_with(eager(u64::MAX, 3)).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "more", b"and a commit").await;
    assert!(m.sync(LONG).await);
    until("found", async || !m.control.status().warnings.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(m.control.status().cleaned_bytes, 0);
    let mut lost = 0;
    for n in 0..6u8 {
        let ino = find(&m.fs, &format!("f{n}")).await;
        match m.fs.read(ino, 0, 4000).await {
            Ok(got) => assert_eq!(got, noise(2000, n)),
            Err(_) => lost += 1,
        }
    }
    assert_eq!(lost, 1, "what is sound is read");
    m.shutdown(LONG).await;
    let after: BTreeSet<Path> =
        objects(&bench.store).await.into_iter().map(|o| o.location).collect();
    assert!(before.iter().all(|o| after.contains(&o.location)), "nothing is deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_that_is_cut_off_is_announced_and_its_segments_are_known() {
    // Guards against uploads that no row knows: killed rounds would fill the bucket with them.
    let memory = Arc::new(InMemory::new());
    let bench = Bench::over(memory.clone()).await;
    let m = bench.mount_with(eager(u64::MAX, 1000)).await.expect("mounts");
    for n in 0..8u8 {
        write_file(&m.fs, Ino::ROOT, &format!("f{n}"), &noise(700_000, n)).await;
        assert!(m.sync(LONG).await);
    }
    assert!(m.shutdown(LONG).await);
    let before = objects(&bench.store).await.len();
    let mut cut = 0;
    for wait_ms in (0..400).step_by(20) {
        let copy: Arc<dyn ObjectStore> = Arc::new(memory.fork());
        let bench =
            Bench { store: slowly(&copy, 20), local: tempfile::tempdir().expect("tempdir") };
        let m = bench.mount_with(eager(u64::MAX, 2)).await.expect("mounts");
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        m.shutdown(Duration::ZERO).await;
        let bench = Bench { store: copy, local: tempfile::tempdir().expect("tempdir") };
        assert_sound(&bench).await;
        cut += usize::from(objects(&bench.store).await.len() > before);
        let m = bench.mount().await;
        for n in 0..8u8 {
            assert_eq!(read_file(&m.fs, &format!("f{n}")).await, noise(700_000, n));
        }
        m.shutdown(LONG).await;
    }
    assert!(cut > 0, "no round had uploaded anything");
}

#[test]
fn a_daemon_that_is_killed_while_it_cleans_loses_nothing() {
    // Guards against rows and segments that disagree after kill -9: six times a file is
    // overwritten in stripes, so that its segments are always half dead, and the daemon killed in
    // the middle of it. The seed is printed.
    needs_fuse!();
    let seed = std::process::id() as u64;
    eprintln!("seed {seed}");
    let v = mounts::Volume::create();
    let flags = ["--clean-after=256K", "--commit-interval=100ms"];
    let mut wanted = noise(8 * MIB as usize, 0);
    let mut cleaned = 0;
    for kill in 0..6u64 {
        v.mount(&flags);
        let path = v.at("db");
        if kill == 0 {
            std::fs::write(&path, &wanted).expect("writes");
        }
        assert!(std::fs::read(&path).expect("reads") == wanted, "after kill {kill}");
        let file = std::fs::File::options().write(true).open(&path).expect("opens");
        let strokes = 20 + (seed * 31 + kill * 17) % 40;
        for n in 0..strokes {
            let salt = (kill * 50 + n) as u8;
            for at in ((n % 3) * 64 * KIB..7 * MIB).step_by(192 * KIB as usize) {
                let new = noise(64 * KIB as usize, salt);
                std::os::unix::fs::FileExt::write_all_at(&file, &new, at).expect("writes");
                wanted[at as usize..at as usize + new.len()].copy_from_slice(&new);
            }
            file.sync_all().expect("syncs");
            std::thread::sleep(Duration::from_millis(30));
        }
        cleaned += v.status("cleaned_bytes").as_u64().expect("a number");
        if kill < 5 {
            v.crash();
        }
    }
    assert!(cleaned > MIB, "only {cleaned} bytes were moved");
    v.umount();
    v.ok(&["fsck", &v.url(), "--passphrase-file", &v.text("passphrase"), "--data"]);
    v.forget_local_state();
    v.mount(&[]);
    assert!(std::fs::read(v.at("db")).expect("reads") == wanted, "on another machine");
    v.umount();
}

/// Segments by their rows, and how many `b` rows there are.
async fn shares(m: &Mounted) -> (Vec<SegmentRow>, usize) {
    let (from, to) = keys::all_with_tag(b'b');
    let owners = m.view().kv().scan(&from, &to, 100_000, 1 << 16).await.expect("scans");
    (rows(m).await, owners.len())
}

async fn copy(m: &Mounted, from: Ino, at: u64, to: Ino, to_at: u64, len: u64) {
    let copied = m.fs.copy_file_range(volume::CALLER, from, at, to, to_at, len).await;
    assert_eq!(copied, Ok(len));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_files_share_is_moved_once_and_stays_shared() {
    // Guards against cleaning that makes two of what was one, loses who else has it, or takes
    // for dead what only a copy has: of 8 MiB, a few ranges are shared in every way, and the rest goes.
    let bench = Bench::new().await;
    let idle = |o: &mut MountOptions| {
        eager(0, 100)(o);
        o.commit_interval = Duration::from_secs(3600);
    };
    let m = bench.mount_with(idle).await.expect("mounts");
    let data = noise(8 * MIB as usize, 3);
    let a = write_file(&m.fs, Ino::ROOT, "a", &data).await;
    let own = write_file(&m.fs, Ino::ROOT, "own", &noise(100_000, 8)).await;
    assert!(m.sync(LONG).await);
    let (b, c) = (
        write_file(&m.fs, Ino::ROOT, "b", b"").await,
        write_file(&m.fs, Ino::ROOT, "c", b"").await,
    );
    // The same twice, overlapping ones, and twice in one file.
    copy(&m, a, MIB, b, 0, 300_000).await;
    copy(&m, a, MIB + 200_000, c, 77, 300_000).await;
    copy(&m, a, 3 * MIB, c, 500_000, 10_000).await;
    copy(&m, a, 3 * MIB + 5_000, c, 600_000, 10_000).await;
    copy(&m, c, 500_000, a, 9 * MIB, 10_000).await;
    assert!(m.sync(LONG).await);
    assert!(m.shutdown(LONG).await);
    let m = bench.mount_with(idle).await.expect("mounts");
    // What is left of the first: the beginning, which nobody shares, and what is at its end.
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    m.fs.fallocate(volume::CALLER, a, 50_000, 9 * MIB - 50_000, mode).await.expect("punches");
    assert!(m.sync(LONG).await);
    let mut wanted: Vec<Vec<u8>> =
        vec![vec![0; 9 * MIB as usize], data[MIB as usize..][..300_000].to_vec(), vec![0; 610_000]];
    wanted[0][..50_000].copy_from_slice(&data[..50_000]);
    wanted[0].extend(&data[3 * MIB as usize..][..10_000]);
    wanted[2][77..300_077].copy_from_slice(&data[MIB as usize + 200_000..][..300_000]);
    wanted[2][500_000..510_000].copy_from_slice(&data[3 * MIB as usize..][..10_000]);
    wanted[2][600_000..].copy_from_slice(&data[3 * MIB as usize + 5_000..][..10_000]);
    let look = async |m: &Mounted| {
        for (name, wanted) in ["a", "b", "c"].iter().zip(&wanted) {
            assert!(read_file(&m.fs, name).await == *wanted, "{name}");
        }
    };
    look(&m).await;
    let (before, owners) = shares(&m).await;
    let live: u64 = before.iter().map(|row| row.live).sum();
    assert_eq!(live, 50_000 + 10_000 + 300_000 + 300_000 + 20_000 + 100_000, "each reference");
    assert_eq!(owners, 3, "a, which shares with itself, b and c");
    assert!(m.shutdown(LONG).await);
    assert_sound(&bench).await;

    let m = bench.mount_with(eager(1, 100)).await.expect("mounts");
    until("moved", async || m.control.status().cleaned_bytes >= 680_000).await;
    until("settled", async || rows(&m).await.iter().all(|row| row.live > row.size / 2)).await;
    look(&m).await;
    let (after, owners) = shares(&m).await;
    let size: u64 = after.iter().map(|row| row.size).sum();
    assert_eq!(size, 50_000 + 500_000 + 15_000 + 100_000, "each byte once: {after:?}");
    assert_eq!(after.iter().map(|row| row.live).sum::<u64>(), live);
    assert!((1..=4).contains(&owners), "{owners}");
    assert_eq!(read_file(&m.fs, "own").await, noise(100_000, 8));
    // And once more, found by the new summary and the new rows.
    m.fs.unlink(Ino::ROOT, "own".into()).await.expect("unlinks");
    m.fs.forget(own, 2);
    let more = write_file(&m.fs, Ino::ROOT, "more", &noise(1000, 1)).await;
    assert!(m.sync(LONG).await);
    copy(&m, c, 0, more, 1000, 610_000).await;
    let mut grown = noise(1000, 1);
    grown.extend(&wanted[2]);
    assert!(m.sync(LONG).await);
    assert_eq!(read_file(&m.fs, "more").await, grown);
    assert!(m.shutdown(LONG).await);
    let m = bench.mount_with(eager(1, 2)).await.expect("mounts");
    until("one segment", async || rows(&m).await.len() == 1).await;
    look(&m).await;
    assert_eq!(read_file(&m.fs, "more").await, grown);
    let size: u64 = rows(&m).await.iter().map(|row| row.size).sum();
    assert_eq!(size, 50_000 + 500_000 + 15_000 + 1000);
    assert!(m.shutdown(LONG).await);
    assert_sound(&bench).await;
}
