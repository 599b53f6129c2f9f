//! Frozen volumes of every format that was released, in `tests/fixtures/`: whatever version reads
//! them must find what was written. A fixture is never made again; a new format gets its own.
//!
//! | in `format-2/` | |
//! | --- | --- |
//! | `bucket/` | the volume, as a `file://` store; the passphrase is `frozen volume` |
//! | `state/` | what the machine keeps that wrote it: its journal has what the bucket has not |
//! | `committed.txt`, `pending.txt` | every inode and byte, of the bucket alone, and with the journal |

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::volume::{CALLER, LONG, find};
use bytes::Bytes;
use sealfs::base::{Ino, Timestamp, hex};
use sealfs::fs::{Fs, FsError, Kind, RenameFlags, SetAttr, SetTime, Whence, WriteFlags, XattrMode};
use sealfs::seal::{KdfParams, Secret};
use sealfs::stack::{
    FsckOptions, InitOptions, MountOptions, Mounted, StoreOptions, fsck, init, mount,
};
use sealfs::store::{Compression, Location};
use sha2::{Digest, Sha256};

const PASSPHRASE: &[u8] = b"frozen volume";

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{version}"))
}

fn secret() -> Secret {
    Secret::Passphrase(PASSPHRASE.to_vec().into())
}

fn store(bucket: &Path) -> StoreOptions {
    let location: Location = format!("file://{}", bucket.display()).parse().expect("a location");
    StoreOptions::new(location)
}

fn options(bucket: &Path, local: &Path) -> MountOptions {
    let (cache, state) = (local.join("cache"), local.join("state"));
    let mut options = MountOptions::new(store(bucket), secret(), cache, state);
    options.takeover = true;
    options.journal_bytes_max = 1 << 20;
    options.commit_interval = Duration::from_secs(3600);
    options
}

/// Copies a directory, closed to others whatever git has made of that.
fn copy_tree(from: &Path, to: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).expect("makes a directory");
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let (from, to) = {
            let entry = entry.expect("an entry");
            (entry.path(), to.join(entry.file_name()))
        };
        match from.is_dir() {
            true => copy_tree(&from, &to),
            // A spare file of the journal: its content means nothing.
            false
                if from.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"free-")) => {
            }
            false => {
                fs::copy(&from, &to).expect("copies");
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("closes");
            }
        }
    }
}

/// The data of a file: each range, and a hash of what is in them.
async fn contents(fs: &Arc<Fs>, ino: Ino, size: u64) -> String {
    let (mut text, mut hash, mut at) = (String::new(), Sha256::new(), 0);
    while at < size {
        let start = match fs.lseek(ino, at, Whence::Data).await {
            Err(FsError::NoSuchOffset) => break,
            start => start.expect("seeks"),
        };
        let end = fs.lseek(ino, start, Whence::Hole).await.expect("seeks");
        write!(text, "{start}..{end},").expect("text");
        at = start;
        while at < end {
            let piece = (end - at).min(1 << 20) as u32;
            let bytes = fs.read(ino, at, piece).await.expect("reads");
            assert!(!bytes.is_empty());
            hash.update(&bytes);
            at += bytes.len() as u64;
        }
    }
    format!("{text} {}", hex(&hash.finalize()))
}

/// Everything that can be seen of a volume.
async fn describe(fs: &Arc<Fs>) -> String {
    let time = |t: Timestamp| format!("{}.{:09}", t.secs, t.nanos);
    let mut text = String::new();
    let mut todo = vec![(Vec::new(), Ino::ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let a = fs.getattr(ino).await.expect("stats");
        let times = [a.atime, a.mtime, a.ctime, a.btime].map(time).join(" ");
        let shown = String::from_utf8_lossy(&path).into_owned();
        let name = if path.len() < 40 && !shown.contains('\u{fffd}') { shown } else { hex(&path) };
        writeln!(
            text,
            "/{name}: inode {ino}, {:?}, mode {:o}, {} links, {}:{}, device {}, {} bytes, {} blocks, {times}",
            a.kind, a.perm, a.nlink, a.uid, a.gid, a.rdev, a.size, a.blocks
        )
        .expect("text");
        let mut names = fs.listxattr(CALLER, ino).await.expect("lists");
        names.sort();
        for name in names {
            let value = fs.getxattr(ino, name.clone()).await.expect("reads");
            writeln!(text, "  {} = {}", String::from_utf8_lossy(&name), hex(&value)).expect("text");
        }
        match a.kind {
            Kind::File => {
                writeln!(text, "  {}", contents(fs, ino, a.size).await).expect("text");
            }
            Kind::Symlink => {
                let target = fs.readlink(ino).await.expect("reads");
                writeln!(text, "  -> {}", String::from_utf8_lossy(&target)).expect("text");
            }
            Kind::Dir => {
                let mut entries = fs.readdir(ino, 2, 10_000).await.expect("lists");
                entries.sort_by(|a, b| b.name.cmp(&a.name));
                for entry in entries {
                    let path = match path.is_empty() {
                        true => entry.name,
                        false => [&path[..], b"/", &entry.name].concat(),
                    };
                    todo.push((path, entry.ino));
                }
            }
            _ => {}
        }
    }
    text
}

fn wanted(version: u32, name: &str) -> String {
    fs::read_to_string(fixture(version).join(name)).expect("the fixture has it")
}

fn assert_same(seen: &str, wanted: &str) {
    let differs = seen.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None);
    assert_eq!(seen.lines().count(), wanted.lines().count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_format_2_is_what_it_was_when_it_was_frozen() {
    // Guards against a version that cannot read what an earlier one wrote, or reads something else:
    // the bucket alone, for reading only and for writing; with the journal of the machine that wrote
    // it; and what this version makes of it, read elsewhere.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (bucket, local) = (dir.path().join("bucket"), dir.path().join("local"));
    copy_tree(&fixture(2).join("bucket"), &bucket);
    let elsewhere = dir.path().join("follower");
    let mut follower = options(&bucket, &elsewhere);
    (follower.read_only, follower.takeover) = (true, false);
    let m = mount(follower).await.expect("mounts for reading");
    assert_same(&describe(&m.fs).await, &wanted(2, "committed.txt"));
    m.shutdown(LONG).await;

    // Another copy: what is written here overtakes the journal of that machine.
    let alone = dir.path().join("alone");
    copy_tree(&bucket, &alone);
    let m = mount(options(&alone, &dir.path().join("writer"))).await.expect("mounts for writing");
    assert_same(&describe(&m.fs).await, &wanted(2, "committed.txt"));
    assert!(m.shutdown(LONG).await);

    copy_tree(&fixture(2).join("state"), &local.join("state"));
    let m = mount(options(&bucket, &local)).await.expect("mounts with the journal");
    assert_same(&describe(&m.fs).await, &wanted(2, "pending.txt"));
    assert!(m.sync(LONG).await, "what was pending gets to the bucket");
    assert!(m.shutdown(LONG).await);
    let checked = FsckOptions {
        store: store(&bucket),
        key: secret().into(),
        state_dir: local.join("state"),
        data: true,
        resume: false,
        repair: false,
        at_least: 0,
        read_timeout: LONG,
    };
    let report = fsck(checked, Arc::default()).await.expect("checks");
    assert_eq!(report.problems, []);
    let m = mount(options(&bucket, &dir.path().join("other"))).await.expect("mounts elsewhere");
    assert_same(&describe(&m.fs).await, &wanted(2, "pending.txt"));
    assert!(m.shutdown(LONG).await);
}

/// Bytes that compress well, or not at all.
fn bytes(len: usize, salt: u64, noise: bool) -> Vec<u8> {
    let mut state = salt;
    let byte = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if noise { (state >> 56) as u8 } else { b"all work and no play "[n % 21] ^ salt as u8 }
    };
    (0..len).map(byte).collect()
}

async fn put(m: &Mounted, ino: Ino, at: u64, data: Vec<u8>) {
    m.fs.write(ino, at, Bytes::from(data), WriteFlags::default()).await.expect("writes");
}

async fn make(m: &Mounted, dir: Ino, name: &[u8], data: Vec<u8>) -> Ino {
    let made = m.fs.create(CALLER, dir, name.into(), 0o644, 0).await.expect("creates");
    if !data.is_empty() {
        put(m, made.ino, 0, data).await;
    }
    made.ino
}

async fn fill(m: &Mounted) {
    let fs = &m.fs;
    let dir = fs.mkdir(CALLER, Ino::ROOT, "dir".into(), 0o1755, 0).await.expect("mkdir").ino;
    let deep = fs.mkdir(CALLER, dir, "deep".into(), 0o700, 0).await.expect("mkdir").ino;
    make(m, Ino::ROOT, b"empty", Vec::new()).await;
    make(m, Ino::ROOT, b"small", bytes(100, 1, false)).await;
    make(m, dir, b"text", bytes(200_000, 2, false)).await;
    make(m, dir, b"noise", bytes(70_000, 3, true)).await;
    make(m, deep, "Straße".as_bytes(), bytes(5, 4, true)).await;
    make(m, deep, &[0xff; 255], bytes(6, 5, true)).await;
    let first = fs.lookup(Ino::ROOT, "small".into()).await.expect("there").ino;
    fs.link(first, deep, "hard".into()).await.expect("links");
    let target = "../dir/text".into();
    fs.symlink(CALLER, dir, "soft".into(), target).await.expect("symlinks");
    for (name, kind, rdev) in [
        ("pipe", libc::S_IFIFO, 0),
        ("socket", libc::S_IFSOCK, 0),
        ("char", libc::S_IFCHR, 0x501),
        ("block", libc::S_IFBLK, 0x802),
    ] {
        fs.mknod(CALLER, dir, name.into(), kind | 0o640, 0, rdev).await.expect("makes a node");
    }
    let attributes = make(m, dir, b"attributes", bytes(10, 6, true)).await;
    for (name, value) in [("user.short", bytes(3, 7, true)), ("user.long", bytes(3000, 8, true))] {
        let mode = XattrMode::default();
        fs.setxattr(attributes, name.into(), value, mode).await.expect("sets");
    }
    let at = |secs, nanos| Some(SetTime::At(Timestamp { secs, nanos }));
    let set = SetAttr {
        perm: Some(0o6751),
        uid: Some(1000),
        gid: Some(70_000),
        atime: at(-1, 999_999_999),
        mtime: at(5_000_000_000, 1),
        ..SetAttr::default()
    };
    fs.setattr(CALLER, attributes, set).await.expect("sets");
    // One extent that is not the whole file, a hole beyond 4 GiB, and one at the end.
    let sparse = make(m, Ino::ROOT, b"sparse", Vec::new()).await;
    put(m, sparse, 5_000_000_000, bytes(9000, 9, false)).await;
    let longer = SetAttr { size: Some(1 << 40), ..SetAttr::default() };
    fs.setattr(CALLER, sparse, longer).await.expect("grows");
    // More extents than an inode row takes, and than a drop deletes at once.
    let many = make(m, Ino::ROOT, b"many", Vec::new()).await;
    for n in 0..80 {
        put(m, many, n * 8192, bytes(300, 10 + n, n % 2 == 0)).await;
    }
    let gone = make(m, Ino::ROOT, b"gone", bytes(1000, 100, true)).await;
    fs.forget(gone, 1);
}

async fn copy(m: &Mounted, from: &str, at: u64, to: Ino, to_at: u64, len: u64) {
    let from = find(&m.fs, from).await;
    let copied = m.fs.copy_file_range(CALLER, from, at, to, to_at, len).await;
    assert_eq!(copied, Ok(len));
}

/// Makes a fixture: `cargo test --test format format_fixtures -- --ignored`. That of a format that was
/// released is never made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes the fixture"]
async fn make_the_fixture() {
    let to = fixture(2);
    let _ = fs::remove_dir_all(&to);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (bucket, local) = (to.join("bucket"), dir.path());
    fs::create_dir_all(&bucket).expect("makes a directory");
    let compress: Compression = "zstd".parse().expect("a way to compress");
    let (label, kdf) = ("frozen".into(), KdfParams::FLOOR);
    let new = InitOptions { label, kdf, compress, ..InitOptions::new(store(&bucket), secret()) };
    init(new).await.expect("init");
    let m = mount(options(&bucket, local)).await.expect("mounts");
    fill(&m).await;
    assert!(m.sync(LONG).await);
    // Of another segment, stored as it is: overwritten, cut, shared; and a new data incarnation.
    assert!(m.shutdown(LONG).await);
    let mut raw = options(&bucket, local);
    raw.compress = Some(Compression::None);
    let m = mount(raw).await.expect("mounts");
    let text = find(&m.fs, "dir/text").await;
    put(&m, text, 50_000, bytes(10, 200, true)).await;
    let shared = make(&m, Ino::ROOT, b"shared", bytes(20, 201, true)).await;
    copy(&m, "dir/text", 49_990, shared, 100, 100_000).await;
    copy(&m, "shared", 0, shared, 200_000, 5000).await;
    copy(&m, "many", 10_000, shared, 300_000, 100_000).await;
    m.fs.unlink(Ino::ROOT, "gone".into()).await.expect("unlinks");
    let noise = find(&m.fs, "dir/noise").await;
    let empty = SetAttr { size: Some(0), ..SetAttr::default() };
    m.fs.setattr(CALLER, noise, empty).await.expect("truncates");
    put(&m, noise, 0, bytes(3000, 202, true)).await;
    assert!(m.sync(LONG).await);
    fs::write(to.join("committed.txt"), describe(&m.fs).await).expect("writes");

    // And what only the journal has.
    let pending = make(&m, Ino::ROOT, b"pending", bytes(5000, 300, false)).await;
    copy(&m, "dir/text", 0, pending, 10_000, 50_005).await;
    copy(&m, "pending", 100, pending, 100_000, 10_000).await;
    put(&m, text, 10, bytes(20, 301, true)).await;
    m.fs.setattr(CALLER, noise, SetAttr { size: Some(100), ..SetAttr::default() })
        .await
        .expect("cuts");
    let many = find(&m.fs, "many").await;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    m.fs.fallocate(CALLER, many, 8192, 80 * 8192, mode).await.expect("punches");
    let (from, to_dir) = (find(&m.fs, "dir").await, find(&m.fs, "dir/deep").await);
    let plain = RenameFlags::default();
    m.fs.rename(from, "attributes".into(), to_dir, "moved".into(), plain).await.expect("renames");
    m.fs.unlink(from, "pipe".into()).await.expect("unlinks");
    fs::write(to.join("pending.txt"), describe(&m.fs).await).expect("writes");
    assert!(!m.shutdown(Duration::ZERO).await, "the journal keeps it");
    copy_tree(&local.join("state"), &to.join("state"));
}
