//! Restoring: everything is as it was, nothing moves, and it can be cut off anywhere.

use std::sync::Arc;

use bytes::Bytes;
use sealfs::base::{Ino, Timestamp};
use sealfs::fs::{Fs, SetAttr, SetTime, WriteFlags, XattrMode};

use super::{all_of, create, described, path, quick, restore};
use crate::volume::{Bench, CALLER, LONG, contents, find, read_file, write_file};

/// One of everything.
async fn fill(fs: &Arc<Fs>) {
    let root = Ino::ROOT;
    let dir = fs.mkdir(CALLER, root, b"dir".to_vec(), 0o2751, 0).await.expect("makes").ino;
    let deep = fs.mkdir(CALLER, dir, b"deep".to_vec(), 0o700, 0).await.expect("makes").ino;
    write_file(fs, deep, "large", &contents("large", 2 << 20)).await;
    let many = write_file(fs, dir, "many", &contents("many", 300_000)).await;
    for n in 0..700u64 {
        let bytes = Bytes::from(vec![n as u8; 10]);
        fs.write(many, n * 400, bytes, WriteFlags::default()).await.expect("writes");
        if n % 100 == 0 {
            fs.fsync_now(many).expect("syncs");
        }
    }
    let holes = write_file(fs, dir, "holes", b"begin").await;
    fs.write(holes, 9 << 20, Bytes::from_static(b"end"), WriteFlags::default())
        .await
        .expect("writes");
    let size = SetAttr { size: Some(20 << 20), ..SetAttr::default() };
    fs.setattr(CALLER, holes, size).await.expect("grows");
    write_file(fs, root, "empty", b"").await;
    let small = write_file(fs, root, "small", b"a few bytes").await;
    fs.link(small, dir, b"small too".to_vec()).await.expect("links");
    fs.symlink(CALLER, dir, b"link".to_vec(), b"../small".to_vec()).await.expect("makes");
    fs.mknod(CALLER, root, b"pipe".to_vec(), libc::S_IFIFO | 0o600, 0, 0).await.expect("makes");
    fs.mknod(CALLER, root, b"null".to_vec(), libc::S_IFCHR | 0o666, 0, 0x103).await.expect("makes");
    for n in 0..5u8 {
        let name = format!("user.{n}").into_bytes();
        fs.setxattr(small, name, vec![n; 60_000], XattrMode::default()).await.expect("sets");
    }
    fs.setxattr(dir, b"user.d".to_vec(), b"v".to_vec(), XattrMode::default()).await.expect("sets");
    let at = |secs| Some(SetTime::At(Timestamp { secs, nanos: 5 }));
    for (ino, secs) in [(small, 1000), (dir, 2000), (deep, -3000)] {
        let set = SetAttr {
            uid: Some(7),
            gid: Some(8),
            perm: Some(0o6755),
            mtime: at(secs),
            atime: at(secs + 1),
            ..SetAttr::default()
        };
        fs.setattr(CALLER, ino, set).await.expect("sets");
    }
}

/// Changes something of everything, and makes something new.
async fn spoil(fs: &Arc<Fs>) {
    let root = Ino::ROOT;
    let dir = find(fs, "dir").await;
    let many = find(fs, "dir/many").await;
    fs.write(many, 100, Bytes::from_static(b"spoiled"), WriteFlags::default())
        .await
        .expect("writes");
    fs.unlink(root, b"small".to_vec()).await.expect("unlinks");
    fs.unlink(root, b"pipe".to_vec()).await.expect("unlinks");
    write_file(fs, root, "pipe", b"now a file").await;
    let deep = find(fs, "dir/deep").await;
    fs.unlink(deep, b"large".to_vec()).await.expect("unlinks");
    fs.rmdir(dir, b"deep".to_vec()).await.expect("removes");
    write_file(fs, dir, "deep", b"was a directory").await;
    fs.removexattr(dir, b"user.d".to_vec()).await.expect("removes");
    fs.setxattr(dir, b"user.e".to_vec(), b"v".to_vec(), XattrMode::default()).await.expect("sets");
    let set = SetAttr { perm: Some(0o777), uid: Some(1), ..SetAttr::default() };
    fs.setattr(CALLER, dir, set).await.expect("sets");
    write_file(fs, dir, "new", b"came since").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_is_back_with_all_that_belongs_to_it_and_no_byte_moves() {
    // Guards against a restore that forgets an attribute, a link or a hole, that copies, or that
    // takes away what came since without being asked.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    fill(&m.fs).await;
    let was = described(&m.fs, Ino::ROOT).await;
    create(&m, "s").await;
    spoil(&m.fs).await;
    assert!(m.sync(LONG).await);
    assert_ne!(described(&m.fs, Ino::ROOT).await, was);
    let before = m.control.status().segment_data_bytes;

    // Beside.
    let beside = super::RestoreOrder { to: Some(path("back/here")), ..all_of("s") };
    let done = restore(&m, &beside).await.expect("restores");
    assert_eq!((done.conflicts, done.links, done.files), (0, 1, 8), "{done:?}");
    let here = find(&m.fs, "back/here").await;
    assert_eq!(described(&m.fs, here).await, was);
    let again = restore(&m, &beside).await.expect("restores");
    assert_eq!((again.files, again.links, again.dirs, again.attributes), (0, 0, 0, 0), "{again:?}");

    // One file, where it was.
    let one = super::RestoreOrder { paths: vec![path("dir/many")], ..all_of("s") };
    let done = restore(&m, &one).await.expect("restores");
    assert_eq!((done.files, done.dirs), (1, 0), "{done:?}");
    assert_eq!(read_file(&m.fs, "dir/many").await, read_file(&m.fs, "back/here/dir/many").await);
    assert_eq!(read_file(&m.fs, "dir/new").await, "came since");

    // Everything, and nothing else.
    let done = restore(&m, &all_of("s")).await.expect("restores");
    assert_eq!(read_file(&m.fs, "dir/new").await, "came since");
    assert_eq!(done.deleted, 0, "{done:?}");
    let exactly = super::RestoreOrder { delete: true, ..all_of("s") };
    restore(&m, &exactly).await.expect("restores");
    assert_eq!(described(&m.fs, Ino::ROOT).await, was);
    assert!(m.sync(LONG).await);
    assert_eq!(m.control.status().segment_data_bytes, before, "bytes were moved");

    // The snapshot goes, what came of it stays.
    m.delete_snapshots(vec![super::named("s")], LONG).await.expect("deletes");
    assert!(m.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
    let m = bench.mount_with(quick).await.expect("mounts");
    assert_eq!(described(&m.fs, Ino::ROOT).await, was);
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_crashes_leaves_whole_files_and_goes_on() {
    // Guards against a file that is half of both, or a name that is lost: the mount is dropped
    // after a number of files, with everything in the journal, and comes back.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    for n in 0..60 {
        let name = format!("f{n:02}");
        write_file(&m.fs, Ino::ROOT, &name, &contents(&name, 5000 + n)).await;
    }
    create(&m, "s").await;
    for n in 0..60 {
        let ino = find(&m.fs, &format!("f{n:02}")).await;
        let bytes = Bytes::from(vec![0; 9000]);
        m.fs.write(ino, 0, bytes, WriteFlags::default()).await.expect("writes");
    }
    assert!(m.shutdown(LONG).await);
    for cut in [0, 1, 17, 40] {
        let slow = |o: &mut sealfs::stack::MountOptions| {
            quick(o);
            o.commit_interval = std::time::Duration::from_secs(3600);
        };
        let m = bench.mount_with(slow).await.expect("mounts");
        let paths = (0..cut).map(|n| path(&format!("f{n:02}"))).collect();
        let some = super::RestoreOrder { paths, ..all_of("s") };
        if cut > 0 {
            restore(&m, &some).await.expect("restores");
        }
        m.shutdown(std::time::Duration::ZERO).await; // nothing is uploaded
        let m = bench.mount_with(slow).await.expect("mounts");
        for n in 0..60 {
            let name = format!("f{n:02}");
            let now = read_file(&m.fs, &name).await;
            let (old, new) = (contents(&name, 5000 + n), vec![0; 9000]);
            assert!(if n < cut { now == old } else { now == old || now == new }, "{name}");
        }
        m.shutdown(std::time::Duration::ZERO).await;
    }
    let m = bench.mount_with(quick).await.expect("mounts");
    let done = restore(&m, &all_of("s")).await.expect("restores");
    assert_eq!((done.files, done.unchanged >= 40), (20, true), "{done:?}");
    assert!(m.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}
