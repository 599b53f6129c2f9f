//! What differs between two states.

use std::time::Duration;

use bytes::Bytes;
use sealfs::base::Ino;
use sealfs::fs::diff::Change;
use sealfs::fs::{RenameFlags, SetAttr, SetTime, WriteFlags};
use sealfs::meta::Kind;
use sealfs::stack::{MountOptions, Mounted};

use super::{create, elsewhere, quick};
use crate::volume::{Bench, CALLER, LONG, find, write_file};

/// The differences as lines, sorted.
async fn lines(m: &Mounted, a: &str, b: &str) -> Vec<String> {
    let (out, mut found) = tokio::sync::mpsc::channel(4);
    let tree = m.tree.clone();
    let names = [a.to_string(), b.to_string()];
    let comparing = tokio::spawn(async move { tree.diff(names, out).await });
    let mut lines = Vec::new();
    while let Some(some) = found.recv().await {
        lines.extend(some.into_iter().map(|d| {
            let what = match d.change {
                Change::Added => "+",
                Change::Removed => "-",
                Change::Changed => "M",
                Change::Renamed => "R",
            };
            let how = match (d.contents, d.attributes) {
                (false, false) => "",
                (true, false) => " c",
                (false, true) => " a",
                (true, true) => " ca",
            };
            let from = d.from.map(|from| format!("{from} -> ")).unwrap_or_default();
            format!("{what} {from}{}{how}", d.path)
        }));
    }
    comparing.await.expect("runs").expect("compares");
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_name_what_came_went_changed_and_moved() {
    // Guards against a rename that is shown as a whole tree that went and came, and against changes
    // that are missed because a name, or a time, is the same.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    let fs = &m.fs;
    let dir = fs.mkdir(CALLER, Ino::ROOT, b"dir".to_vec(), 0o755, 0).await.expect("makes").ino;
    let inside = fs.mkdir(CALLER, dir, b"inside".to_vec(), 0o755, 0).await.expect("makes").ino;
    for name in ["a", "b", "c", "d"] {
        write_file(fs, inside, name, name.as_bytes()).await;
        write_file(fs, Ino::ROOT, name, name.as_bytes()).await;
    }
    create(&m, "one").await;
    assert_eq!(lines(&m, "one", "now").await, Vec::<String>::new());
    let plain = RenameFlags::default();
    // Times count in ticks of the kernel, 10 ms at most.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    fs.rename(Ino::ROOT, b"dir".to_vec(), Ino::ROOT, b"moved".to_vec(), plain)
        .await
        .expect("moves");
    fs.rename(inside, b"a".to_vec(), Ino::ROOT, b"out".to_vec(), plain).await.expect("moves");
    fs.unlink(inside, b"b".to_vec()).await.expect("unlinks");
    let c = find(fs, "moved/inside/c").await;
    fs.write(c, 0, Bytes::from_static(b"x"), WriteFlags::default()).await.expect("writes");
    // As whoever hides a change would.
    let d = find(fs, "moved/inside/d").await;
    let before = fs.getattr(d).await.expect("stats").mtime;
    fs.write(d, 0, Bytes::from_static(b"x"), WriteFlags::default()).await.expect("writes");
    let back = SetAttr { mtime: Some(SetTime::At(before)), ..SetAttr::default() };
    fs.setattr(CALLER, d, back).await.expect("sets");
    let a = find(fs, "a").await;
    fs.setattr(CALLER, a, SetAttr { perm: Some(0o600), ..SetAttr::default() }).await.expect("sets");
    fs.link(a, Ino::ROOT, b"a2".to_vec()).await.expect("links");
    // An editor's way: another file under the same name.
    fs.unlink(Ino::ROOT, b"b".to_vec()).await.expect("unlinks");
    write_file(fs, Ino::ROOT, "b", b"other").await;
    fs.unlink(Ino::ROOT, b"d".to_vec()).await.expect("unlinks");
    let new = fs.mkdir(CALLER, Ino::ROOT, b"new".to_vec(), 0o755, 0).await.expect("makes").ino;
    write_file(fs, new, "file", b"").await;
    let expected = [
        "+ a2",
        "+ new",
        "+ new/file",
        "- d",
        "- dir/inside/b",
        "M a a",
        "M b c",
        "M moved/inside/c c",
        "M moved/inside/d c",
        "R dir -> moved",
        "R dir/inside/a -> out",
    ];
    let got = lines(&m, "one", "now").await;
    assert_eq!(got, expected);
    create(&m, "two").await;
    assert_eq!(lines(&m, "one", "two").await, expected);
    assert_eq!(lines(&m, "two", "now").await, Vec::<String>::new());
    let back = lines(&m, "two", "one").await;
    assert!(
        back.contains(&"R moved -> dir".to_string()) && back.contains(&"+ d".to_string()),
        "{back:?}"
    );
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_are_those_of_a_walk_where_names_are_pending_and_directories_replace_others() {
    // Guards against names that are found and are about to go, which ended the search for the others,
    // and against a file that is matched with one of a directory which only came to have its name.
    let bench = Bench::new().await;
    let m = bench.mount_with(|o| o.takeover = true).await.expect("mounts");
    let fs = &m.fs;
    let plain = RenameFlags::default();
    let dir = async |name: &str| {
        fs.mkdir(CALLER, Ino::ROOT, name.into(), 0o755, 0).await.expect("makes").ino
    };
    let (first, many, last) = (dir("k1").await, dir("k2").await, dir("k3").await);
    let a = write_file(fs, first, "a", b"one").await;
    for n in 0..9000 {
        fs.symlink(CALLER, many, format!("{n}").into(), b"x".to_vec()).await.expect("links");
    }
    fs.link(a, last, b"b".to_vec()).await.expect("links");
    let (d, e) = (dir("d").await, dir("e").await);
    for (dir, name) in [(d, "x"), (d, "z"), (e, "w")] {
        write_file(fs, dir, name, b"").await;
    }
    create(&m, "one").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    fs.unlink(first, b"a".to_vec()).await.expect("unlinks");
    fs.write(a, 0, Bytes::from_static(b"two hundred"), WriteFlags::default())
        .await
        .expect("writes");
    for name in ["x", "z"] {
        fs.unlink(d, name.into()).await.expect("unlinks");
    }
    fs.rmdir(Ino::ROOT, b"d".to_vec()).await.expect("goes");
    fs.rename(Ino::ROOT, b"e".to_vec(), Ino::ROOT, b"d".to_vec(), plain).await.expect("moves");
    write_file(fs, e, "x", b"").await;
    let expected =
        ["+ d/x", "- d", "- d/x", "- d/z", "- k1/a", "M k3/b c", "R e -> d"].map(String::from);
    assert_eq!(lines(&m, "one", "now").await, expected);
    assert!(m.sync(LONG).await);
    assert_eq!(lines(&m, "one", "now").await, expected);
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_that_changed_places_with_what_they_were_in_are_told_with_all_that_is_in_them()
{
    // Guards against trees of which nothing is told since neither state leads to both of their places.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    let fs = &m.fs;
    let plain = RenameFlags::default();
    let p = fs.mkdir(CALLER, Ino::ROOT, b"p".to_vec(), 0o755, 0).await.expect("makes").ino;
    let q = fs.mkdir(CALLER, p, b"q".to_vec(), 0o755, 0).await.expect("makes").ino;
    let f = write_file(fs, q, "f", b"f").await;
    write_file(fs, p, "gone", b"").await;
    create(&m, "one").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    fs.rename(p, b"q".to_vec(), Ino::ROOT, b"r".to_vec(), plain).await.expect("moves");
    fs.rename(Ino::ROOT, b"p".to_vec(), q, b"p".to_vec(), plain).await.expect("moves");
    fs.write(f, 0, Bytes::from_static(b"else"), WriteFlags::default()).await.expect("writes");
    fs.unlink(p, b"gone".to_vec()).await.expect("unlinks");
    write_file(fs, p, "added", b"").await;
    let expected =
        ["+ r/p/added", "- p/gone", "M r/f c", "R p -> r/p", "R p/q -> r"].map(String::from);
    assert_eq!(lines(&m, "one", "now").await, expected);
    create(&m, "two").await;
    let other = elsewhere(&bench);
    let follower = other.mount_with(|o| o.read_only = true).await.expect("follows");
    assert_eq!(lines(&follower, "one", "now").await, expected, "by a walk");
    assert!(follower.shutdown(LONG).await && m.shutdown(LONG).await);
}

/// Something at random in the tree below the root; what is not possible is left.
async fn at_random(m: &Mounted, draw: &mut impl FnMut(usize) -> usize) {
    let fs = &m.fs;
    let plain = RenameFlags::default();
    let names = ["a", "b", "c", "d", "e"];
    let mut name = || names[draw(names.len())].as_bytes().to_vec();
    let (one, other) = (name(), name());
    let mut dirs = vec![Ino::ROOT];
    for n in 0..1 + names.len() {
        let Some(&dir) = dirs.get(n) else { break };
        for name in names {
            let found = fs.lookup(dir, name.as_bytes().to_vec()).await.ok();
            dirs.extend(found.filter(|attr| attr.kind == Kind::Dir).map(|attr| attr.ino));
        }
    }
    let (dir, to) = (dirs[draw(dirs.len())], dirs[draw(dirs.len())]);
    let there = fs.lookup(dir, one.clone()).await.ok();
    let file = there.filter(|attr| attr.kind == Kind::File).map(|attr| attr.ino);
    match draw(12) {
        0..=2 => drop(fs.mkdir(CALLER, dir, one, 0o755, 0).await),
        3 | 4 if there.is_none() => {
            let _ = write_file(fs, dir, std::str::from_utf8(&one).expect("text"), &other).await;
        }
        5 => drop(fs.unlink(dir, one).await),
        6 => drop(fs.rmdir(dir, one).await),
        7 | 8 => drop(fs.rename(dir, one, to, other, plain).await),
        9 => {
            if let Some(file) = file {
                drop(fs.link(file, to, other).await)
            }
        }
        10 => {
            if let Some(attr) = there {
                let perm = Some(if attr.perm == 0o700 { 0o755 } else { 0o700 });
                drop(fs.setattr(CALLER, attr.ino, SetAttr { perm, ..SetAttr::default() }).await)
            }
        }
        _ => {
            if let Some(file) = file {
                let bytes = Bytes::from_static(b"something else");
                drop(fs.write(file, 0, bytes, WriteFlags::default()).await)
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_rows_say_is_what_a_walk_over_all_names_finds() {
    // Guards against a difference that is missed, or told otherwise, where only the rows that changed
    // are compared: a follower walks both trees, since it does not have all of its state in tables.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    let follows = |o: &mut MountOptions| {
        o.read_only = true;
        o.refresh = Duration::from_millis(50);
    };
    let other = elsewhere(&bench);
    let follower = other.mount_with(follows).await.expect("follows");
    for seed in 1..=12u64 {
        let mut state = seed;
        let mut draw = |n: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        for _ in 0..40 {
            at_random(&m, &mut draw).await;
        }
        let [before, after] = [format!("before{seed}"), format!("after{seed}")];
        create(&m, &before).await;
        // Times count in ticks of the kernel, 10 ms at most.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for n in 0..draw(30) {
            at_random(&m, &mut draw).await;
            if n % 7 == 0 {
                assert!(m.sync(LONG).await, "commits");
            }
        }
        let by_rows = lines(&m, &before, "now").await;
        create(&m, &after).await;
        assert_eq!(lines(&m, &before, &after).await, by_rows, "seed {seed}");
        let mut walked = Vec::new();
        for _ in 0..200 {
            // Until the follower has seen it all.
            if follower.tree.snapshot(&after).await.is_ok_and(|found| found.is_some()) {
                walked = lines(&follower, &before, "now").await;
            }
            if walked == by_rows {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(walked, by_rows, "seed {seed}");
    }
    assert!(follower.shutdown(LONG).await && m.shutdown(LONG).await);
}
