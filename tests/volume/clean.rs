//! How segments are stored, and their cleaning: the bucket keeps about what the volume holds, files stay what they are,
//! and a round that is cut off leaves nothing behind.

use crate::mounts;
use crate::needs_fuse;
use crate::volume;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::volume::{Bench, LONG, find, log_objects, read_file, segments, until, write_file};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::base::{ContentsId, Ino, Timestamp};
use sealfs::commit::scan::Cursor;
use sealfs::commit::{CleanOptions, Lookup};
use sealfs::data::Source;
use sealfs::fs::{Fs, WriteFlags};
use sealfs::meta::{Inode, InodeExtent, Kind, SegmentRow, keys};
use sealfs::seal::{KdfParams, Keyring, RootKey, VolumeKeys};
use sealfs::stack::{InitOptions, MountOptions, Mounted, init};
use sealfs::store::kv::{Kv, KvOptions};
use sealfs::store::segments::{Owned, RANGES_MAX};
use sealfs::store::{Sealed, SegmentStore};

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

/// Segments that hold data, by their rows.
async fn rows(m: &Mounted) -> Vec<SegmentRow> {
    let (from, to) = keys::all_with_tag(b's');
    let rows = m.view().kv().scan(&from, &to, 100_000, 1 << 16).await.expect("scans");
    rows.iter().map(|(_, value)| SegmentRow::decode(value).expect("a row")).collect()
}

/// The segments that the mount would read a file from, as far as it remembers.
fn remembered(m: &Mounted, ino: Ino, range: Range<u64>) -> BTreeSet<Path> {
    let Lookup::Hit(parts) =
        m.view().parts_now(ContentsId { ino, incarnation: 0 }, range.start, range.end)
    else {
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
    // other 64 KiB of it are written again in each round, so that no segment ever dies whole.
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
        let there = segments(&*bench.store).await;
        there.iter().map(|o| o.size).sum::<u64>() <= 2 * 11 * MIB + 3 * MIB
    })
    .await;
    // A segment that was put between the two looks is only in the second.
    until("remembers what is there, and nothing else", async || {
        let there = segments(&*bench.store).await.into_iter().map(|o| o.location);
        let there: BTreeSet<Path> = there.collect();
        remembered(&m, ino, 0..8 * MIB).is_subset(&there)
    })
    .await;
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
async fn a_segment_that_is_overwritten_goes_though_no_file_does() {
    // Guards against dead segments that stay for half an hour, because nothing but a file that goes, or
    // a round of cleaning, has anybody look for them.
    let bench = Bench::new().await;
    let m = bench.mount_with(eager(0, usize::MAX)).await.expect("mounts");
    let ino = write_file(&m.fs, Ino::ROOT, "file", &noise(64 << 10, 0)).await;
    assert!(m.sync(LONG).await);
    // What a mount looks at when it begins is over by then, grace included.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for n in 1..=2 {
        write(&m, ino, 0, &noise(64 << 10, n)).await;
        assert!(m.sync(LONG).await);
        until("deleted", async || segments(&*bench.store).await.len() == 1).await;
    }
    assert!(m.shutdown(LONG).await);
    assert_sound(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commits_of_an_appended_log_become_one_segment_and_one_extent() {
    // Guards against 43,000 objects a day for a log that is synced all the time, and against a
    // read of it that needs a request for each.
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bench = Bench { store: slowly(&inner, 20), ..Bench::over(inner.clone()).await };
    let m = bench.mount_with(eager(u64::MAX, 31)).await.expect("mounts");
    let ino = write_file(&m.fs, Ino::ROOT, "log", b"").await;
    let mut wanted = Vec::new();
    for n in 0..31u8 {
        if n == 30 {
            // Before the round, which the last line brings about.
            assert_eq!(read_file(&m.fs, "log").await, wanted);
            assert_eq!(remembered(&m, ino, 0..wanted.len() as u64).len(), 30);
        }
        let line = noise(1000 + n as usize, n);
        write(&m, ino, wanted.len() as u64, &line).await;
        wanted.extend(line);
        assert!(m.sync(LONG).await);
    }
    let whole = 0..wanted.len() as u64;
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
    until("deleted", async || segments(&*bench.store).await.len() == 1).await;
    assert_eq!(read_file(&m.fs, "log").await, wanted);
    assert!(m.shutdown(LONG).await);
    assert_sound(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_that_is_overtaken_by_writes_undoes_none_of_them() {
    // Guards against cleaning putting back what it read: while each of its uploads takes 30 ms,
    // files that it moves are written, copied, cut off, and deleted.
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bench = Bench::over(inner.clone()).await;
    let bench = Bench { store: slowly(&inner, 30), ..bench };
    let m = bench.mount_with(eager(MIB, 4)).await.expect("mounts");
    let mut wanted = noise(4 * MIB as usize, 0);
    let ino = write_file(&m.fs, Ino::ROOT, "a", &wanted).await;
    let (copied, mut copy_wanted) = (write_file(&m.fs, Ino::ROOT, "copy", b"").await, Vec::new());
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
        // A copy shares what is being moved, or about to be, or not in the bucket yet.
        let (from, to) = ((n * 7919) % (3 * MIB), (n * 104_729) % MIB);
        let len = 200_000.min(wanted.len() as u64 - from);
        copy(&m, ino, from, copied, to, len).await;
        let piece = wanted[from as usize..(from + len) as usize].to_vec();
        copy_wanted.resize(copy_wanted.len().max((to + len) as usize), 0);
        copy_wanted[to as usize..(to + len) as usize].copy_from_slice(&piece);
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
    assert!(read_file(&m.fs, "copy").await == copy_wanted);
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
    until("deleted", async || segments(&*bench.store).await.len() < 10).await;
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
    let before = segments(&*bench.store).await;
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
        segments(&*bench.store).await.into_iter().map(|o| o.location).collect();
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
    let before = segments(&*bench.store).await.len();
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
        cut += usize::from(segments(&*bench.store).await.len() > before);
        let m = bench.mount().await;
        for n in 0..8u8 {
            assert_eq!(read_file(&m.fs, &format!("f{n}")).await, noise(700_000, n));
        }
        m.shutdown(LONG).await;
    }
    assert!(cut > 0, "no round had uploaded anything");
}

/// Words that compress to about a third.
fn text(len: usize, salt: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 16);
    let mut n = salt;
    while out.len() < len {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(format!("word{} ", n >> 53).as_bytes());
    }
    out.truncate(len);
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_volume_is_small_and_reads_as_it_was_written_whatever_a_mount_asks_for() {
    // Guards against bytes that come from the wrong place of a frame: text, what does not
    // compress, both in one file, small files side by side, holes and overwrites are read cold,
    // in pieces, by mounts that compress and by one that does not, before and after cleaning.
    let bench = Bench::new().await;
    let zstd = Some("zstd".parse().expect("known"));
    let compressing = |dead| {
        move |o: &mut MountOptions| {
            eager(dead, 6)(o);
            o.compress = zstd;
        }
    };
    let m = bench.mount_with(compressing(0)).await.expect("mounts");
    let random = |len| {
        let mut data = vec![0; len];
        getrandom::fill(&mut data).expect("random bytes");
        data
    };
    let mut wanted = vec![
        ("text".to_owned(), text(3_000_000, 1)),
        ("random".to_owned(), random(1_000_000)),
        ("both".to_owned(), [random(300_000), text(500_000, 2), random(100_001)].concat()),
    ];
    wanted.extend((0..400).map(|n| (format!("small{n}"), text(500 + n, 3))));
    for (name, data) in &wanted {
        write_file(&m.fs, Ino::ROOT, name, data).await;
    }
    assert!(m.sync(LONG).await);
    let status = m.control.status();
    assert_eq!(status.compress, "zstd:3");
    let (data, stored) = (status.segment_data_bytes, status.segment_stored_bytes);
    assert!(stored < data - 2_000_000, "{data} bytes take {stored}");
    let there: u64 = segments(&*bench.store).await.iter().map(|o| o.size).sum();
    assert!(there < stored + 30_000, "{there} bytes of objects for {stored}");
    assert!(m.shutdown(LONG).await);
    assert_sound(&bench).await;
    let plain = Some("none".parse().expect("known"));
    for (round, compress) in [zstd, plain, None, zstd].into_iter().enumerate() {
        let cold = Bench { store: bench.store.clone(), local: tempfile::tempdir().expect("dir") };
        let dead = if round == 2 { 1 } else { 0 };
        let m = cold.mount_with(|o| {
            eager(dead, 2)(o);
            o.compress = compress;
        });
        let m = m.await.expect("mounts");
        for (name, data) in &wanted {
            let ino = find(&m.fs, name).await;
            let some = data.len() as u64 / 3;
            let got = m.fs.read(ino, some, 1000).await.expect("reads");
            assert_eq!(got, data[some as usize..(some as usize + 1000).min(data.len())], "{name}");
            assert!(read_file(&m.fs, name).await == *data, "{name} in round {round}");
        }
        // Every other 64 KiB of one file.
        let (name, data) = &mut wanted[round % 3];
        let ino = find(&m.fs, name).await;
        for at in (0..data.len() - 64 * 1024).step_by(128 * 1024) {
            let new = text(64 * 1024, (round * 100 + at) as u64);
            write(&m, ino, at as u64, &new).await;
            data[at..at + new.len()].copy_from_slice(&new);
        }
        assert!(m.sync(LONG).await);
        if round == 2 {
            until("cleaned", async || m.control.status().cleaned_bytes > 0).await;
        }
        assert!(m.shutdown(LONG).await);
        assert_sound(&cold).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_a_compressed_segment_loses_the_files_of_its_frames_only() {
    // Guards against a flipped bit that takes a whole segment along, and against fsck naming the
    // wrong files: of three files in one compressed segment the middle one is hit.
    let bench = Bench::new().await;
    let m = bench.mount_with(|o| o.compress = Some("zstd".parse().expect("known")));
    let m = m.await.expect("mounts");
    let random = |len| {
        let mut data = vec![0; len];
        getrandom::fill(&mut data).expect("random bytes");
        data
    };
    let files = [text(512 << 10, 1), random(512 << 10), text(512 << 10, 2)];
    for (n, data) in files.iter().enumerate() {
        write_file(&m.fs, Ino::ROOT, &format!("f{n}"), data).await;
    }
    assert!(m.shutdown(LONG).await);
    let there = segments(&*bench.store).await;
    assert_eq!(there.len(), 1);
    let name = &there[0].location;
    let bytes = bench.store.get(name).await.expect("there").bytes().await.expect("read");
    let mut bytes = bytes.to_vec();
    // The text takes less than half: this is well within the random file.
    bytes[512 << 10] ^= 1;
    bench.store.put(name, bytes.into()).await.expect("put");
    let report = bench.fsck(|o| o.data = true).await;
    let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert_eq!(problem.files.len(), 1, "{problem:?}");
    assert!(problem.files[0].to_string().contains("f1"), "{problem:?}");
    let m = bench.mount().await;
    assert!(read_file(&m.fs, "f0").await == files[0] && read_file(&m.fs, "f2").await == files[2]);
    let ino = find(&m.fs, "f1").await;
    let mut lost = 0;
    for at in (0..512u64 << 10).step_by(16 << 10) {
        match m.fs.read(ino, at, 16 << 10).await {
            Ok(got) => assert!(got == files[1][at as usize..at as usize + (16 << 10)]),
            Err(_) => lost += 16 << 10,
        }
    }
    assert!(lost > 0 && lost <= 256 << 10, "{lost} bytes of one file are lost");
    assert!(!m.control.status().warnings.is_empty());
    m.shutdown(LONG).await;
}

/// Tables of the metadata store.
async fn tables(bench: &Bench) -> BTreeSet<Path> {
    let tables = bench.store.list(Some(&Path::from("meta/compacted")));
    tables.map_ok(|o| o.location).try_collect().await.expect("lists")
}

/// A volume of `count` files of 100 bytes, made by writing its rows; all but two of its segments are
/// whole, of those less than half is referred to.
async fn many_files(bench: &Bench, count: u64) {
    let keyring = bench.store.get(&Path::from("keyring")).await.expect("there");
    let keyring = Keyring::parse(&keyring.bytes().await.expect("reads")).expect("parses");
    let keys_of = keyring.unlock(&volume::secret()).expect("unlocks");
    let sealed = Arc::new(Sealed::new(bench.store.clone(), keys_of));
    let segments = SegmentStore::new(sealed.clone());
    let kv = Arc::new(Kv::open(sealed, KvOptions::default(), LONG).await.expect("opens"));
    let (len, now) = (100u64, Timestamp { secs: 1_800_000_000, nanos: 0 });
    let mut at = 0;
    while at < count {
        let files = (count - at).min(RANGES_MAX as u64);
        let owned = |n| Owned { ino: Ino(1000 + at + n), incarnation: 0, offset: 0, len };
        let ranges: Vec<_> = (0..files).map(owned).collect();
        let id = segments.new_id();
        let data = Bytes::from(noise((files * len) as usize, at as u8));
        let layout = segments.put(id, vec![data], &ranges).await.expect("puts");
        let is_left = |n: &u64| at >= 2 * RANGES_MAX as u64 || n % 5 < 2;
        let mut rows: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        let mut live = 0;
        for n in (0..files).filter(is_left) {
            let mut inode = Inode::new(Kind::File, 0o644, 0, 0, now);
            (inode.size, inode.allocated) = (len, 4096);
            let extent = InodeExtent { start: 0, len, segment: id, segment_offset: n * len };
            let key = keys::inode(Ino(1000 + at + n));
            rows.push((Bytes::from(key.into_vec()), Some(inode.encode_with(Some(&extent)))));
            live += len;
        }
        let row = SegmentRow { size: files * len, birth: 1, epoch: 1, ..SegmentRow::default() };
        let row = row.with_live(live, 1);
        let row = row.encode_with(&layout.to_row());
        rows.push((Bytes::from(keys::segment(id).into_vec()), Some(row)));
        for batch in rows.chunks(8192) {
            kv.compact_if_needed(false);
            kv.commit(batch.to_vec()).await.expect("commits");
        }
        at += files;
    }
    // So that no compaction falls into what is measured: until tables stay as they are.
    kv.close(true).await.expect("closes");
    let local = tempfile::tempdir().expect("tempdir");
    let settled = Bench { store: bench.store.clone(), local };
    let m = settled.mount_with(|o| o.clean.dead_bytes_min = 0).await.expect("mounts");
    let mut before = tables(bench).await;
    for still in 0.. {
        m.view().kv().compact_if_needed(false);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = tables(bench).await;
        if still > 5 && now == before {
            break;
        }
        before = now;
    }
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_a_segment_of_many_files_are_written_in_small_batches() {
    // Guards against one commit of megabytes for a segment of small files, which a proxy with the
    // usual limit of 1 MiB refuses for ever: 26,214 files move at once.
    let bench = Bench::new().await;
    many_files(&bench, RANGES_MAX as u64).await;
    let before = log_objects(&bench.store).await;
    let m = bench.mount_with(eager(MIB, 1000)).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "more", b"and a commit").await;
    assert!(m.sync(LONG).await);
    // Some of those written last may have gone from the log since: look all the while.
    let mut largest = 0;
    until("cleaned", async || {
        let log = log_objects(&bench.store).await;
        let new = log.iter().filter(|(name, _)| !before.contains_key(name));
        largest = largest.max(new.map(|(_, bytes)| *bytes).max().unwrap_or(0));
        rows(&m).await.iter().all(|row| row.live * 2 > row.size)
    })
    .await;
    assert!(largest > 50_000 && largest < 600 << 10, "{largest} bytes in one object of the log");
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_init_was_told_of_compression_is_remembered() {
    // Guards against a volume that is compressed by the mount that thinks of the flag only.
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let options = InitOptions {
        label: "test".into(),
        kdf: KdfParams::FLOOR,
        compress: "zstd:7".parse().expect("known"),
        ..InitOptions::new(volume::options_of(store.clone()), volume::secret())
    };
    init(options).await.expect("init");
    let bench = Bench { store, local: tempfile::tempdir().expect("tempdir") };
    for (ask, is) in [(None, "zstd:7"), (Some("none"), "none"), (None, "zstd:7")] {
        let ask = ask.map(|how| how.parse().expect("known"));
        let m = bench.mount_with(|o| o.compress = ask).await.expect("mounts");
        write_file(&m.fs, Ino::ROOT, &format!("{is}{}", rows(&m).await.len()), &text(300_000, 5))
            .await;
        assert!(m.sync(LONG).await);
        let status = m.control.status();
        assert_eq!(status.compress, is);
        let (data, stored) = (status.segment_data_bytes, status.segment_stored_bytes);
        assert_eq!(stored < data / 2, is != "none", "{stored} of {data}");
        assert!(m.shutdown(LONG).await);
    }
    assert_sound(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, for docs/PERFORMANCE.md: cargo test --release --test volume a_round_costs -- --ignored --nocapture"]
async fn what_a_round_costs_in_a_volume_of_a_million_files() {
    // Guards against a round that reads the whole volume: it is compared with reading every row
    // that may have an extent, which is how owners were found before segments named them.
    let count = std::env::var("FILES").map_or(1_000_000, |n| n.parse().expect("a number"));
    let bench = Bench::new().await;
    many_files(&bench, count).await;
    let cold = || async {
        let local = tempfile::tempdir().expect("tempdir");
        Bench { store: bench.store.clone(), local }
    };
    let reader = cold().await;
    let m = reader.mount_with(|o| o.read_only = true).await.expect("mounts");
    let (before, begun) = (m.requests(), Instant::now());
    let mut looked_at = 0;
    for tag in [b'e', b'i'] {
        let mut cursor = Cursor::new(m.view().kv(), tag);
        while cursor.next().await.expect("reads").is_some() {
            looked_at += 1;
        }
    }
    let (all, scan) = (m.requests(), begun.elapsed());
    let all = (all.get - before.get, all.bytes_down - before.bytes_down);
    m.shutdown(LONG).await;
    let writer = cold().await;
    let m = writer.mount_with(|o| {
        eager(6 * MIB, 1000)(o);
        o.clean.look_every = Duration::from_secs(12);
    });
    let m = m.await.expect("mounts");
    let tables_before = tables(&bench).await;
    let (before, begun) = (m.requests(), Instant::now());
    until("cleaned", async || {
        let segments = rows(&m).await;
        segments.iter().all(|row| row.live * 2 > row.size)
    })
    .await;
    let (round, took) = (m.requests(), begun.elapsed());
    assert_eq!(tables(&bench).await, tables_before, "a compaction is in these figures");
    let moved = m.control.status().cleaned_bytes;
    let round =
        (round.get - before.get, round.bytes_down - before.bytes_down, round.put - before.put);
    println!(
        "{looked_at} rows that may have an extent: {} GET, {:.1} MiB, {:.1} s",
        all.0,
        all.1 as f64 / MIB as f64,
        scan.as_secs_f64()
    );
    println!(
        "a round that moves {:.1} MiB: {} GET, {:.1} MiB, {} PUT, within {:.1} s of the mount",
        moved as f64 / MIB as f64,
        round.0,
        round.1 as f64 / MIB as f64,
        round.2,
        took.as_secs_f64()
    );
    assert!(m.shutdown(LONG).await);
}

/// Processor seconds of this process so far.
fn processor_secs() -> f64 {
    // SAFETY: all zeros is a value of this structure; the call only fills it.
    let used: libc::rusage = unsafe {
        let mut used = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut used);
        used
    };
    let secs = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    secs(used.ru_utime) + secs(used.ru_stime)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, for docs/PERFORMANCE.md: cargo test --release --test volume compression_costs -- --ignored --nocapture"]
async fn what_compression_costs() {
    // Guards against photographs that are stored more slowly for nothing: full segments of random
    // bytes and of text are put and read back, as they are and compressed, in turns.
    let keys = VolumeKeys::from_root(RootKey::random());
    let len = 16 * MIB as usize;
    let mut random = vec![0; len];
    getrandom::fill(&mut random).expect("random bytes");
    let inputs = [("random", Bytes::from(random)), ("text", Bytes::from(text(len, 1)))];
    let ways = ["none", "zstd:1", "zstd:3", "zstd:9"];
    for (name, data) in inputs {
        // Of each way: seconds and processor seconds of writing, of reading; stored bytes.
        let mut spent = [[0f64; 5]; 4];
        let rounds = 24;
        for round in 0..rounds * ways.len() {
            let way = round % ways.len();
            let store = Arc::new(Sealed::new(Arc::new(InMemory::new()), keys.clone()));
            let compression = ways[way].parse().expect("known");
            let segments = SegmentStore::compressing(store, compression);
            let id = segments.new_id();
            let owned = [Owned { ino: Ino(2), incarnation: 0, offset: 0, len: len as u64 }];
            let (begun, used) = (Instant::now(), processor_secs());
            let layout = segments.put(id, vec![data.clone()], &owned).await.expect("puts");
            spent[way][0] += begun.elapsed().as_secs_f64();
            spent[way][1] += processor_secs() - used;
            let (begun, used) = (Instant::now(), processor_secs());
            for at in (0..len as u64).step_by(4 * MIB as usize) {
                segments.get_range(id, at..at + 4 * MIB).await.expect("reads");
            }
            spent[way][2] += begun.elapsed().as_secs_f64();
            spent[way][3] += processor_secs() - used;
            spent[way][4] = layout.stored_len() as f64;
        }
        let gib = (rounds * len) as f64 / (1u64 << 30) as f64;
        for (way, [put, put_used, get, get_used, stored]) in ways.iter().zip(spent) {
            println!(
                "{name} {way}: stored {:.3}, put {:.0} MiB/s ({:.2} of none) with {:.2} s of processor \
                 for 1 GiB, read {:.0} MiB/s with {:.2} s",
                stored / len as f64,
                gib * 1024.0 / put,
                spent[0][0] / put,
                put_used / gib,
                gib * 1024.0 / get,
                get_used / gib,
            );
        }
    }
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
    assert!(cleaned >= 256 * KIB, "only {cleaned} bytes were moved");
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
