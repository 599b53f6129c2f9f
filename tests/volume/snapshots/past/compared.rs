//! What differs between two states.

use bytes::Bytes;
use sealfs::base::Ino;
use sealfs::fs::diff::Change;
use sealfs::fs::{RenameFlags, SetAttr, SetTime, WriteFlags};
use sealfs::stack::Mounted;

use super::{create, quick};
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
