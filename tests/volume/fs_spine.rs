//! The spine without a kernel: `init`, `mount`, operations, commit, crash, remount.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use sealfs::base::Ino;
use sealfs::fs::{Fs, FsError, RenameFlags, SetAttr, WriteFlags};
use sealfs::meta::{Inode, keys};
use sealfs::stack::{MountOptions, Mounted, StackError, mount};

use crate::volume::{CALLER, format, options_of, secret};

async fn new_volume() -> Arc<dyn ObjectStore> {
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    format(&bucket).await;
    bucket
}

async fn open(bucket: &Arc<dyn ObjectStore>, local: &Path) -> Result<Mounted, StackError> {
    let mut options = MountOptions::new(
        options_of(bucket.clone()),
        secret(),
        local.join("cache"),
        local.join("state"),
    );
    options.journal_bytes_max = 64 << 20;
    options.commit_interval = Duration::from_millis(200);
    mount(options).await
}

async fn write(fs: &Arc<Fs>, ino: Ino, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    fs.write(ino, offset, data, WriteFlags::default()).await.expect("write");
}

async fn read(fs: &Arc<Fs>, ino: Ino) -> Vec<u8> {
    let size = fs.getattr(ino).await.expect("getattr").size;
    fs.read(ino, 0, size as u32).await.expect("read").to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_there_after_an_unmount_and_a_mount_elsewhere() {
    // Guards against anything that lives only in this machine's memory or journal.
    let bucket = new_volume().await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = open(&bucket, local.path()).await.expect("mount");
    let fs = m.fs.clone();
    let dir = fs.mkdir(CALLER, Ino::ROOT, b"dir".to_vec(), 0o755, 0).await.expect("mkdir");
    let file = fs.create(CALLER, dir.ino, b"file".to_vec(), 0o644, 0).await.expect("create");
    write(&fs, file.ino, 0, b"hello, world").await;
    write(&fs, file.ino, 100_000, b"far").await;
    assert!(m.sync(Duration::from_secs(20)).await, "synced");
    write(&fs, file.ino, 7, b"bucket").await;
    fs.link(file.ino, Ino::ROOT, b"hard".to_vec()).await.expect("link");
    fs.symlink(CALLER, dir.ino, b"soft".to_vec(), b"file".to_vec()).await.expect("symlink");
    let before = read(&fs, file.ino).await;
    assert!(m.shutdown(Duration::from_secs(20)).await, "drained");

    let elsewhere = tempfile::tempdir().expect("tempdir");
    let m = open(&bucket, elsewhere.path()).await.expect("mount elsewhere");
    let fs = m.fs.clone();
    let dir = fs.lookup(Ino::ROOT, b"dir".to_vec()).await.expect("dir");
    let file = fs.lookup(dir.ino, b"file".to_vec()).await.expect("file");
    assert_eq!((file.size, file.nlink), (100_003, 2));
    let after = read(&fs, file.ino).await;
    assert_eq!(after, before);
    assert_eq!(&after[..13], b"hello, bucket");
    assert!(after[13..100_000].iter().all(|b| *b == 0));
    let soft = fs.lookup(dir.ino, b"soft".to_vec()).await.expect("soft");
    assert_eq!(&fs.readlink(soft.ino).await.expect("readlink")[..], b"file");
    let names: Vec<_> = fs.readdir(Ino::ROOT, 0, 100).await.expect("readdir");
    assert_eq!(names.len(), 4, "., .., dir, hard");
    m.shutdown(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_with_the_local_state_replays_what_the_bucket_does_not_have() {
    // Guards against losing journalled changes when the daemon dies before the commit.
    let bucket = new_volume().await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = {
        let mut options = MountOptions::new(
            options_of(bucket.clone()),
            secret(),
            local.path().join("cache"),
            local.path().join("state"),
        );
        options.journal_bytes_max = 64 << 20;
        options.commit_interval = Duration::from_secs(3600);
        mount(options).await.expect("mount")
    };
    let fs = m.fs.clone();
    let f = fs.create(CALLER, Ino::ROOT, b"f".to_vec(), 0o600, 0).await.expect("create");
    write(&fs, f.ino, 0, &vec![7; 300_000]).await;
    fs.rename(Ino::ROOT, b"f".to_vec(), Ino::ROOT, b"g".to_vec(), RenameFlags::default())
        .await
        .expect("rename");
    // A drain of no time at all leaves everything in the journal.
    assert!(!m.shutdown(Duration::ZERO).await);
    drop(fs);
    let m = open(&bucket, local.path()).await.expect("mount again");
    let fs = m.fs.clone();
    assert_eq!(fs.lookup(Ino::ROOT, b"f".to_vec()).await, Err(FsError::NotFound));
    let g = fs.lookup(Ino::ROOT, b"g".to_vec()).await.expect("g");
    assert_eq!(read(&fs, g.ino).await, vec![7; 300_000]);
    assert!(m.shutdown(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_journal_or_nowhere_near_is_not_in_memory() {
    // Guards against a file that is decrypted, or fetched, only because it is opened.
    let bucket = new_volume().await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = open(&bucket, local.path()).await.expect("mount");
    let f = m.fs.create(CALLER, Ino::ROOT, b"f".to_vec(), 0o644, 0).await.expect("create");
    write(&m.fs, f.ino, 0, &[5; 3000]).await;
    assert!(m.fs.read_in_memory(f.ino, 0, 3000).is_none(), "it may be in the journal");
    assert!(m.sync(Duration::from_secs(20)).await);
    assert!(m.fs.read_in_memory(f.ino, 0, 3000).is_none(), "it is in the bucket");
    assert_eq!(read(&m.fs, f.ino).await, [5; 3000]);
    let now = m.fs.read_in_memory(f.ino, 0, 3000).expect("it was just read").expect("reads");
    assert_eq!(now[..], [5; 3000]);
    assert!(m.shutdown(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shrinking_and_growing_again_shows_zeros() {
    // Guards against old extents showing through, in each state: pending, committed, both.
    let bucket = new_volume().await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = open(&bucket, local.path()).await.expect("mount");
    let fs = m.fs.clone();
    let f = fs.create(CALLER, Ino::ROOT, b"f".to_vec(), 0o600, 0).await.expect("create");
    for round in 0..4 {
        write(&fs, f.ino, 0, &[9; 10_000]).await;
        if round % 2 == 1 {
            assert!(m.sync(Duration::from_secs(20)).await);
        }
        let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
        let small = if round < 2 { 100 } else { 0 };
        fs.setattr(CALLER, f.ino, size(small)).await.expect("shrink");
        fs.setattr(CALLER, f.ino, size(10_000)).await.expect("grow");
        if round == 3 {
            assert!(m.sync(Duration::from_secs(20)).await);
        }
        let data = read(&fs, f.ino).await;
        assert!(data[..small as usize].iter().all(|b| *b == 9));
        assert!(data[small as usize..].iter().all(|b| *b == 0), "round {round}");
    }
    m.shutdown(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_mount_is_refused_by_the_name_of_the_holder() {
    // Guards against two writers: refused without disturbing the first.
    let bucket = new_volume().await;
    let (a, b) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
    let first = open(&bucket, a.path()).await.expect("mount");
    let refused = open(&bucket, b.path()).await.err().expect("refused");
    assert!(matches!(refused, StackError::InUse { .. }), "{refused}");
    let fs = first.fs.clone();
    fs.create(CALLER, Ino::ROOT, b"still".to_vec(), 0o600, 0).await.expect("still writable");
    assert!(first.shutdown(Duration::from_secs(20)).await);
    open(&bucket, b.path()).await.expect("free now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_small_files_make_few_objects() {
    // Guards against a PUT per file.
    let bucket = new_volume().await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = open(&bucket, local.path()).await.expect("mount");
    let fs = m.fs.clone();
    let t = std::time::Instant::now();
    for i in 0..10_000u32 {
        let name = format!("file-{i}").into_bytes();
        let f = fs.create(CALLER, Ino::ROOT, name, 0o644, 0).await.expect("create");
        write(&fs, f.ino, 0, &[i as u8; 4096]).await;
    }
    eprintln!("created in {:?}", t.elapsed());
    assert!(m.sync(Duration::from_secs(60)).await);
    eprintln!("synced in {:?}, {:?}", t.elapsed(), m.requests());
    // 40 MiB are three segments; a group of their rows closes a few times more, and a slow
    // machine commits in between.
    let objects: Vec<_> = bucket.list(None).try_collect().await.expect("listed");
    let most = 30 + 12 * t.elapsed().as_secs() as usize; // five intervals a second
    assert!(objects.len() <= most, "{} objects in {:?}", objects.len(), t.elapsed());
    let entries = fs.readdirplus(Ino::ROOT, 0, 20_000).await.expect("readdirplus");
    assert_eq!(entries.len(), 10_002);
    m.shutdown(Duration::from_secs(20)).await;
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let m = open(&bucket, elsewhere.path()).await.expect("mount elsewhere");
    let t = std::time::Instant::now();
    let entries = m.fs.readdirplus(Ino::ROOT, 0, 20_000).await.expect("readdirplus");
    eprintln!("cold readdirplus in {:?}", t.elapsed());
    assert_eq!(entries.len(), 10_002);
    let t = std::time::Instant::now();
    for (entry, attr) in entries.iter().filter(|(e, _)| e.name.starts_with(b"file-")) {
        let i: u32 = std::str::from_utf8(&entry.name[5..]).unwrap().parse().unwrap();
        assert_eq!(attr.expect("has an inode").size, 4096);
        let data = m.fs.read(entry.ino, 0, 8192).await.expect("read");
        assert_eq!(&data[..], &[i as u8; 4096]);
    }
    eprintln!("cold reads in {:?} {:?}", t.elapsed(), m.requests());
    m.shutdown(Duration::from_secs(20)).await;
}

/// Where the rows say that a file's data is: its only extent (start, length), and how many `e` rows.
async fn shape(m: &Mounted, ino: Ino) -> (Option<(u64, u64)>, usize) {
    assert!(m.sync(Duration::from_secs(20)).await, "synced");
    let row = m.view().kv().get(&keys::inode(ino)).await.expect("reads").expect("there");
    let (inode, extent) = Inode::decode_with(&row).expect("decodes");
    let (from, to) = keys::extents_above(inode.contents(ino), 0);
    let rows = m.view().kv().scan(&from, &to, 1000, 1 << 16).await.expect("scans");
    (extent.map(|e| (e.start, e.len)), rows.len())
}

async fn change(m: &Mounted, ino: Ino, set: SetAttr) {
    m.fs.setattr(CALLER, ino, set).await.expect("changes");
}

async fn resize(m: &Mounted, ino: Ino, size: u64) {
    change(m, ino, SetAttr { size: Some(size), ..SetAttr::default() }).await;
}

async fn punch(m: &Mounted, ino: Ino, at: u64, len: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    m.fs.fallocate(CALLER, ino, at, len, mode).await.expect("punches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_one_extent_has_it_in_its_inode_row_whatever_happens_to_it() {
    // Guards against an extent in both places, or in none, when a file goes from one to several:
    // after each change the rows are looked at, and what is read by a mount that knows nothing.
    let (bucket, local) = (new_volume().await, tempfile::tempdir().expect("tempdir"));
    let m = open(&bucket, local.path()).await.expect("mounts");
    let made = m.fs.create(CALLER, Ino::ROOT, "f".into(), 0o644, 0).await.expect("creates");
    let ino = made.ino;
    let mut wanted: Vec<u8> = Vec::new();
    let mut step = 0u8;
    macro_rules! expect {
        ($change:expr, $shape:expr) => {{
            // On the heap: all steps in one future are more than the stack of a test.
            Box::pin(async { $change }).await;
            step += 1;
            Box::pin(async {
                assert_eq!(shape(&m, ino).await, $shape, "step {step}");
                assert!(read(&m.fs, ino).await == wanted, "step {step}");
                m.view().invalidate();
                assert!(read(&m.fs, ino).await == wanted, "step {step}, cold");
            })
            .await;
        }};
    }
    let put = async |wanted: &mut Vec<u8>, at: usize, len: usize, fill: u8| {
        write(&m.fs, ino, at as u64, &vec![fill; len]).await;
        wanted.resize(wanted.len().max(at + len), 0);
        wanted[at..at + len].fill(fill);
    };
    expect!((), (None, 0));
    expect!(put(&mut wanted, 0, 100, 1).await, (Some((0, 100)), 0));
    // Attributes alone: the place stays.
    let perm = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    expect!(change(&m, ino, perm).await, (Some((0, 100)), 0));
    expect!(put(&mut wanted, 0, 100, 2).await, (Some((0, 100)), 0));
    expect!(put(&mut wanted, 100, 50, 3).await, (None, 2));
    expect!(put(&mut wanted, 500, 50, 4).await, (None, 3));
    expect!(
        {
            punch(&m, ino, 0, 100).await;
            wanted[..100].fill(0);
        },
        (None, 2)
    );
    // The first of two goes, and what stays was not touched.
    expect!(
        {
            punch(&m, ino, 0, 400).await;
            wanted[..400].fill(0);
        },
        (Some((500, 50)), 0)
    );
    expect!(put(&mut wanted, 510, 10, 5).await, (None, 3));
    expect!(put(&mut wanted, 490, 100, 6).await, (Some((490, 100)), 0));
    expect!(
        {
            resize(&m, ino, 520).await;
            wanted.truncate(520);
        },
        (Some((490, 30)), 0)
    );
    expect!(
        {
            resize(&m, ino, 9000).await;
            wanted.resize(9000, 0);
        },
        (Some((490, 30)), 0)
    );
    expect!(put(&mut wanted, 8000, 10, 7).await, (None, 2));
    expect!(
        {
            resize(&m, ino, 600).await;
            wanted.truncate(600);
        },
        (Some((490, 30)), 0)
    );
    expect!(
        {
            punch(&m, ino, 0, 600).await;
            wanted.fill(0);
        },
        (None, 0)
    );
    expect!(put(&mut wanted, 5, 5, 8).await, (Some((5, 5)), 0));
    // A new data incarnation, with and without something in it.
    expect!(
        {
            resize(&m, ino, 0).await;
            wanted.clear();
        },
        (None, 0)
    );
    expect!(put(&mut wanted, 0, 9, 9).await, (Some((0, 9)), 0));
    expect!(
        {
            resize(&m, ino, 0).await;
            wanted.clear();
            put(&mut wanted, 0, 4, 10).await;
        },
        (Some((0, 4)), 0)
    );
    let rows = async |tag| {
        let (from, to) = keys::all_with_tag(tag);
        m.view().kv().scan(&from, &to, 100, 1 << 16).await.expect("scans").len()
    };
    assert_eq!(rows(b's').await, 1, "all but the last are dead");
    m.fs.unlink(Ino::ROOT, "f".into()).await.expect("unlinks");
    m.fs.forget(ino, 1);
    assert!(m.sync(Duration::from_secs(20)).await);
    assert_eq!((rows(b's').await, rows(b'e').await), (0, 0));
    let report = sealfs::commit::check::check(m.view().kv(), Default::default(), &0.into()).await;
    assert_eq!(report.expect("checks").0.problems(), [""; 0]);
    m.shutdown(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_moves_no_data_and_outlives_what_it_was_copied_from() {
    // Guards against a copy that reads and uploads what is there already, of what is in the bucket
    // and of what is only in the journal; against one that goes with its source, or follows it; and
    // against accounts that a copy, or its end, puts wrong.
    const MIB: usize = 1 << 20;
    let (bucket, local) = (new_volume().await, tempfile::tempdir().expect("tempdir"));
    let m = open(&bucket, local.path()).await.expect("mounts");
    let make = async |name: &str| {
        let made = m.fs.create(CALLER, Ino::ROOT, name.into(), 0o644, 0).await.expect("creates");
        made.ino
    };
    let copy = async |from, at, to, to_at, len| {
        m.fs.copy_file_range(CALLER, from, at, to, to_at, len).await
    };
    let old: Vec<u8> = (0..20 * MIB).map(|n| (n * 31 + n / 251) as u8).collect();
    let a = make("a").await;
    for (n, piece) in old.chunks(MIB).enumerate() {
        write(&m.fs, a, (n * MIB) as u64, piece).await;
    }
    assert!(m.sync(Duration::from_secs(60)).await);
    let uploaded = async || {
        let segments: Vec<_> = bucket.list(Some(&"seg".into())).try_collect().await.expect("lists");
        segments.iter().map(|segment| segment.size).sum::<u64>()
    };
    let journalled = || m.view().pending_bytes().1;
    let before = uploaded().await;
    let b = make("b").await;
    assert_eq!(copy(a, 0, b, 0, u64::MAX).await, Ok(old.len() as u64), "in one go");
    assert_eq!(journalled(), 0);
    assert!(m.sync(Duration::from_secs(60)).await);
    assert_eq!(uploaded().await, before, "what the bucket has");
    // The source goes on to change, and goes.
    write(&m.fs, a, 5, b"changed").await;
    // What is pending is shared as well, and what is not beside it; then the source is written again.
    let new = vec![7; 3 * MIB];
    for n in 0..3 {
        write(&m.fs, b, ((30 + n) * MIB) as u64, &new[..MIB]).await;
    }
    let c = make("c").await;
    let from = (19 * MIB + 5) as u64;
    assert_eq!(copy(b, from, c, 11, 100 * MIB as u64).await, Ok(33 * MIB as u64 - from));
    assert_eq!(journalled(), 3 * MIB as u64 + 7, "the copy adds nothing");
    write(&m.fs, b, (31 * MIB) as u64, &[9; 100]).await;
    m.fs.unlink(Ino::ROOT, "a".into()).await.expect("unlinks");
    m.fs.forget(a, 1);
    assert!(m.sync(Duration::from_secs(60)).await);
    let more = uploaded().await - before;
    assert!((3 * MIB as u64..3 * MIB as u64 + 10_000).contains(&more), "{more} more");
    // Within one file, and as the man page says it of the edges.
    assert_eq!(copy(c, 0, c, 10, 20).await, Err(FsError::Invalid), "they overlap");
    assert_eq!(copy(c, 0, c, 20, 20).await, Ok(20));
    assert_eq!(copy(c, 40 * MIB as u64, c, 0, 20).await, Ok(0), "behind its end");
    assert_eq!(copy(c, 0, c, i64::MAX as u64, 1).await, Err(FsError::FileTooBig));
    let mut c_wanted = vec![0; 11];
    c_wanted.extend(&old[from as usize..]);
    c_wanted.resize(11 + 30 * MIB - from as usize, 0);
    c_wanted.extend(&new);
    c_wanted.copy_within(0..20, 20);
    let mut b_wanted = old.clone();
    b_wanted.resize(30 * MIB, 0);
    b_wanted.extend(&new);
    b_wanted[31 * MIB..31 * MIB + 100].fill(9);
    assert!(read(&m.fs, c).await == c_wanted && read(&m.fs, b).await == b_wanted);
    // Not in the bucket yet: the journal alone has it.
    assert_eq!(copy(b, 0, make("d").await, 0, 50).await, Ok(50));
    assert!(!m.shutdown(Duration::ZERO).await);
    let m = open(&bucket, local.path()).await.expect("mounts again");
    let d = m.fs.lookup(Ino::ROOT, "d".into()).await.expect("there").ino;
    assert_eq!(read(&m.fs, d).await, old[..50]);
    assert!(m.shutdown(Duration::from_secs(60)).await);
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let m = open(&bucket, elsewhere.path()).await.expect("mounts elsewhere");
    assert!(read(&m.fs, c).await == c_wanted && read(&m.fs, b).await == b_wanted);
    let check = async || {
        let report =
            sealfs::commit::check::check(m.view().kv(), Default::default(), &0.into()).await;
        assert_eq!(report.expect("checks").0.problems(), [""; 0]);
    };
    check().await;
    for name in ["b", "c", "d"] {
        m.fs.unlink(Ino::ROOT, name.into()).await.expect("unlinks");
    }
    [b, c, d].iter().for_each(|ino| m.fs.forget(*ino, 2));
    assert!(m.sync(Duration::from_secs(60)).await);
    check().await;
    for tag in [b's', b'b', b'e'] {
        let (from, to) = keys::all_with_tag(tag);
        let rows = m.view().kv().scan(&from, &to, 100, 1 << 16).await.expect("scans");
        assert_eq!(rows, [], "nothing is left of {}", char::from(tag));
    }
    m.shutdown(Duration::from_secs(20)).await;
}

/// What the metadata of small files takes, printed: `SEALFS_FILES=1000000 cargo test --test
/// fs_spine -- --ignored --nocapture metadata_of_small_files` (docs/PERFORMANCE.md).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn metadata_of_small_files() {
    let files: u64 = std::env::var("SEALFS_FILES").map_or(10_000, |n| n.parse().expect("a number"));
    let (bucket, local) = (new_volume().await, tempfile::tempdir().expect("tempdir"));
    let m = open(&bucket, local.path()).await.expect("mounts");
    let mut dir = Ino::ROOT;
    for n in 0..files {
        if n % 1000 == 0 {
            let name = format!("directory{:05}", n / 1000).into();
            dir = m.fs.mkdir(CALLER, Ino::ROOT, name, 0o755, 0).await.expect("mkdir").ino;
        }
        let name = format!("file{n:07}.txt");
        let made = m.fs.create(CALLER, dir, name.into(), 0o644, 0).await.expect("creates");
        write(&m.fs, made.ino, 0, &[n as u8; 100]).await;
        m.fs.forget(made.ino, 1);
    }
    assert!(m.sync(Duration::from_secs(600)).await, "the bucket has it");
    let (mut rows, mut from) = (std::collections::BTreeMap::<char, (u64, u64)>::new(), vec![0]);
    loop {
        let page = m.view().kv().scan(&from, &[255], 10_000, 1 << 20).await.expect("scans");
        let Some((last, _)) = page.last() else { break };
        from = [&last[..], &[0]].concat();
        for (key, value) in page {
            let sum = rows.entry(key[0].into()).or_default();
            *sum = (sum.0 + 1, sum.1 + key.len() as u64 + value.len() as u64);
        }
    }
    for (tag, (count, bytes)) in &rows {
        println!("{tag}: {count} rows, {:.1} bytes a file", *bytes as f64 / files as f64);
    }
    let bytes: u64 = rows.values().map(|(_, bytes)| bytes).sum();
    assert!(m.shutdown(Duration::from_secs(60)).await);
    let stored = object_store::path::Path::from("meta/compacted");
    let stored: Vec<_> = bucket.list(Some(&stored)).try_collect().await.expect("lists");
    let stored: u64 = stored.iter().map(|object| object.size).sum();
    let a_file = |bytes: u64| bytes as f64 / files as f64;
    println!("{:.1} bytes of rows a file, {:.1} stored", a_file(bytes), a_file(stored));
}
