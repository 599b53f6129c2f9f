//! The quota of a volume: nothing gets past it, whichever way it comes, and everything that takes nothing
//! goes on. Without a kernel; with one in `daemon/e2e_quota.rs`.

use std::sync::Arc;

use bytes::Bytes;
use sealfs::base::Ino;
use sealfs::commit::SnapshotOrder;
use sealfs::fs::restore::{NoKernel, RestoreOrder};
use sealfs::fs::{Fs, FsError, QuotaError, RenameFlags, SetAttr, WriteFlags};
use sealfs::meta::{SnapshotName, SnapshotOrigin};
use sealfs::stack::{Change, KeyOptions, Mounted, settings};

use crate::volume::{
    Bench, CALLER, LONG, contents, find, options_of, read_file, secret, write_file,
};

const FULL: FsError = FsError::Quota(QuotaError::Enospc);
const MIB: u64 = 1 << 20;

/// Changes the quota, as a command on another machine does; `None` stays.
async fn limit(bench: &Bench, bytes: Option<u64>, inodes: Option<u64>) {
    let options = KeyOptions {
        store: options_of(bench.store.clone()),
        key: secret().into(),
        state_dir: bench.state(),
    };
    let change = Change::Quota { bytes, inodes, error: None };
    settings(&options, Some(&change)).await.expect("changes");
}

async fn try_write(fs: &Arc<Fs>, ino: Ino, at: u64, bytes: usize) -> Result<u32, FsError> {
    fs.write(ino, at, vec![7; bytes].into(), WriteFlags::default()).await
}

async fn new_file(fs: &Arc<Fs>, name: &str) -> Result<Ino, FsError> {
    Ok(fs.create(CALLER, Ino::ROOT, name.into(), 0o644, 0).await?.ino)
}

/// Bytes in all, and free, as df has them.
async fn df(m: &Mounted) -> (u64, u64) {
    let s = m.fs.statfs().await.expect("statfs");
    (s.blocks * u64::from(s.frsize), s.bavail * u64::from(s.frsize))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_race_do_not_get_past_the_quota_and_what_is_deleted_comes_free() {
    // Guards against a check that two writers pass at once; against a volume at its quota in which files
    // can be neither overwritten nor deleted; and against a quota that a mount does not follow.
    let bench = Bench::new().await;
    let m = bench.mount().await;
    assert!(df(&m).await.1 > 1 << 40, "without one there is a petabyte");
    limit(&bench, Some(4 * MIB), None).await;
    m.follow_config().await;
    assert_eq!(df(&m).await, (4 * MIB, 4 * MIB));
    let mut files = Vec::new();
    for n in 0..4 {
        files.push(write_file(&m.fs, Ino::ROOT, &format!("f{n}"), &[7; 4096]).await);
    }
    let writers = files.into_iter().map(|ino| {
        let fs = m.fs.clone();
        tokio::spawn(async move {
            let mut at = 4096;
            loop {
                // Not in blocks: the last one counts whole.
                match try_write(&fs, ino, at, 10_000).await {
                    Ok(n) => at += u64::from(n),
                    Err(e) => return (ino, e),
                }
                // A write waits for nothing, so that one of two threads could write all there is to write.
                tokio::task::yield_now().await;
            }
        })
    });
    let mut inos = Vec::new();
    for writer in futures::future::join_all(writers).await {
        let (ino, why) = writer.expect("no panic");
        assert_eq!(why, FULL);
        inos.push(ino);
    }
    let used = m.fs.used().bytes;
    assert!(used <= 4 * MIB && used > 4 * MIB - 12_288, "{used}");
    let (_, free) = df(&m).await;
    assert_eq!(free, 4 * MIB - used);
    // What takes nothing goes on.
    assert_eq!(try_write(&m.fs, inos[0], 0, 4096).await, Ok(4096), "an overwrite");
    let (from, to) = (b"f1".to_vec(), b"g1".to_vec());
    let flags = RenameFlags::default();
    m.fs.rename(Ino::ROOT, from, Ino::ROOT, to, flags).await.expect("a rename");
    let set = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    m.fs.setattr(CALLER, inos[1], set).await.expect("chmod");
    new_file(&m.fs, "empty").await.expect("an empty file takes no block");
    let smaller = SetAttr { size: Some(4096), ..SetAttr::default() };
    m.fs.setattr(CALLER, inos[2], smaller).await.expect("truncate");
    let sparse = SetAttr { size: Some(1 << 40), ..SetAttr::default() };
    m.fs.setattr(CALLER, inos[2], sparse).await.expect("a hole takes nothing");
    // How much a writer got is up to the scheduler.
    let (before, its) =
        (m.fs.used().bytes, m.fs.getattr(inos[0]).await.expect("getattr").blocks * 512);
    assert!(its >= 4096, "{its}");
    m.fs.unlink(Ino::ROOT, b"f0".to_vec()).await.expect("deletes");
    m.fs.forget(inos[0], 1);
    assert!(m.sync(LONG).await);
    assert_eq!(m.fs.used().bytes, before - its, "what was deleted comes free");
    let room = 4 * MIB - m.fs.used().bytes;
    let all = try_write(&m.fs, inos[3], 8 * MIB, room.min(1 << 20) as usize).await;
    assert!(all.is_ok(), "there is room again: {all:?}, {room}");
    assert!(m.shutdown(LONG).await);
    // It is the volume's.
    let m = bench.mount().await;
    assert_eq!(df(&m).await.0, 4 * MIB);
    let status = m.control.status();
    assert_eq!((status.quota_bytes, status.used_bytes), (Some(4 * MIB), m.fs.used().bytes));
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_restores_and_fallocate_meet_the_quota_too() {
    // Guards against a way around it: what shares the bytes of others takes its place as well, as du has
    // it, and fallocate must not promise what there is not.
    let bench = Bench::new().await;
    let m = bench.mount().await;
    let ino = write_file(&m.fs, Ino::ROOT, "a", &contents("a", MIB as usize)).await;
    assert!(m.sync(LONG).await);
    let name = SnapshotName::parse("before").expect("a name");
    let order = SnapshotOrder {
        name,
        note: String::new(),
        expires_secs: 0,
        origin: SnapshotOrigin::ByHand,
    };
    m.create_snapshot(order, LONG).await.expect("a snapshot");
    limit(&bench, Some(MIB + MIB / 2), None).await;
    m.follow_config().await;
    let copy = new_file(&m.fs, "copy").await.expect("creates");
    let shared = |len| m.fs.copy_file_range(CALLER, ino, 0, copy, 0, len);
    assert_eq!(shared(MIB).await, Err(FULL));
    assert_eq!(shared(MIB / 4).await, Ok(MIB / 4));
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    for mode in [0, keep, libc::FALLOC_FL_ZERO_RANGE] {
        let grown = m.fs.fallocate(CALLER, copy, 0, MIB, mode).await;
        assert_eq!(grown, Err(FULL), "{mode}");
    }
    assert_eq!(m.fs.fallocate(CALLER, copy, 0, MIB / 2, 0).await, Ok(()));
    let punch = keep | libc::FALLOC_FL_PUNCH_HOLE;
    assert_eq!(m.fs.fallocate(CALLER, copy, 0, MIB / 8, punch).await, Ok(()));
    m.fs.mkdir(CALLER, Ino::ROOT, b"again".to_vec(), 0o755, 0).await.expect("a directory");
    let restore = async || {
        let order = RestoreOrder {
            snapshot: "before".into(),
            paths: vec![vec![b"a".to_vec()]],
            to: Some(vec![b"again".to_vec()]),
            ..RestoreOrder::default()
        };
        m.tree.restore(&order, &Arc::default(), Arc::new(NoKernel)).await
    };
    let refused = restore().await.expect_err("there is no room").to_string();
    assert!(refused.contains("quota"), "{refused}");
    limit(&bench, Some(0), None).await;
    m.follow_config().await;
    restore().await.expect("without a quota");
    assert!(m.shutdown(LONG).await);
    let report = bench.fsck(|_| {}).await;
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_below_what_is_in_use_loses_nothing_and_a_follower_shows_it() {
    // Guards against a replay that is refused, which would lose what was acknowledged, and against a df
    // of a follower that shows a petabyte.
    let bench = Bench::new().await;
    let m = bench.mount().await;
    write_file(&m.fs, Ino::ROOT, "a", &contents("a", MIB as usize)).await;
    assert!(m.sync(LONG).await);
    write_file(&m.fs, Ino::ROOT, "b", &contents("b", MIB as usize)).await;
    limit(&bench, Some(MIB), Some(2)).await;
    let _ = m.shutdown(std::time::Duration::ZERO).await; // whether or not it was quick
    let m = bench.mount_with(|options| options.takeover = true).await.expect("mounts");
    assert_eq!(read_file(&m.fs, "b").await, Bytes::from(contents("b", MIB as usize)), "replayed");
    assert_eq!(df(&m).await, (MIB, 0));
    assert_eq!(new_file(&m.fs, "c").await, Err(FULL), "inodes");
    assert!(m.fs.mkdir(CALLER, Ino::ROOT, b"d".to_vec(), 0o755, 0).await.is_err());
    let a = find(&m.fs, "a").await;
    assert_eq!(try_write(&m.fs, a, 0, 4096).await, Ok(4096), "an overwrite");
    assert_eq!(try_write(&m.fs, a, MIB, 1).await, Err(FULL));
    let warnings = m.control.status().warnings;
    assert!(warnings.iter().any(|w| w.contains("at its quota")), "{warnings:?}");
    assert!(m.sync(LONG).await);
    let other = tempfile::tempdir().expect("a temporary directory");
    let follow = |options: &mut sealfs::stack::MountOptions| {
        options.read_only = true;
        options.state_dir = other.path().to_owned();
        options.cache_dir = other.path().join("cache");
    };
    let follower = bench.mount_with(follow).await.expect("follows");
    assert_eq!(df(&follower).await, (MIB, 0));
    let asked = Change::Quota { bytes: Some(0), inodes: None, error: None };
    let refused =
        follower.control.clone().configure(asked.clone()).await.expect_err("it only reads");
    assert!(refused.to_string().contains("only reads"), "{refused}");
    // The writer changes it by itself, at once; the follower when it looks.
    let now = m.control.clone().configure(asked).await.expect("changes");
    assert_eq!((now.quota_bytes, now.quota_inodes), (None, Some(2)));
    assert!(try_write(&m.fs, a, MIB, 1).await.is_ok());
    follower.follow_config().await;
    assert!(df(&follower).await.1 > 1 << 40);
    assert!(follower.shutdown(LONG).await);
    assert!(m.shutdown(LONG).await);
}
