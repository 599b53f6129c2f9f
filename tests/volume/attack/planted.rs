//! What is put into the directory of a `file://` store in the place of an object: nothing that is no
//! file is opened, nobody waits, and whoever checks the volume hears of it.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::path::Path as Name;
use sealfs::base::Ino;
use sealfs::fs::FsError;
use sealfs::stack::{StackErrorKind, fsck};
use sealfs::store::FileStore;

use crate::volume::{Bench, LONG, objects, write_file};

/// Nothing waits for what will never come: before, each of these took 30 s or far longer.
const AT_ONCE: Duration = Duration::from_secs(20);

fn fifo(at: &Path) {
    let path = CString::new(at.as_os_str().as_bytes()).expect("a path");
    // SAFETY: mkfifo(3) reads a C string, and changes nothing in memory.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0, "{}", at.display());
}

/// Something that is no object, in the place of one.
type Plant = fn(&Path);

const PLANTS: [(&str, Plant); 6] = [
    ("a fifo", fifo),
    ("a link to a fifo", |at| {
        let target = at.with_extension("target");
        fifo(&target);
        symlink(target, at).expect("links");
    }),
    // The socket stays when its listener is gone.
    ("a socket", |at| drop(UnixListener::bind(at).expect("binds"))),
    ("a directory", |at| std::fs::create_dir(at).expect("makes")),
    ("a link to nowhere", |at| symlink("/nowhere/at/all", at).expect("links")),
    ("a link in a circle", |at| symlink(at.file_name().expect("a name"), at).expect("links")),
];

fn in_place(at: &Path, plant: Plant) {
    match at.symlink_metadata() {
        Ok(found) if found.is_dir() => std::fs::remove_dir(at).expect("removes"),
        Ok(_) => std::fs::remove_file(at).expect("removes"),
        Err(_) => {}
    }
    let _ = std::fs::remove_file(at.with_extension("target"));
    plant(at);
}

struct Target {
    bench: Bench,
    dir: tempfile::TempDir,
    names: Vec<Name>,
}

async fn target() -> Target {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Paths of sockets have 108 bytes at most.
    let store = Arc::new(FileStore::create(dir.path().join("s")).expect("creates"));
    let bench = Bench::over(store.clone()).await;
    for name in ["one", "two"] {
        let m = bench.mount().await;
        write_file(&m.fs, Ino::ROOT, name, &super::contents(name)).await;
        assert!(m.shutdown(LONG).await);
    }
    let names = objects(&*store).await.into_keys().collect();
    Target { bench, dir, names }
}

impl Target {
    /// Objects of one kind, in order.
    fn of(&self, kind: &str) -> Vec<PathBuf> {
        let of = self.names.iter().filter(|name| name.as_ref().starts_with(kind));
        of.map(|name| self.dir.path().join("s").join(name.as_ref())).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_file_in_the_place_of_an_object_is_refused_at_once_wherever_it_stands() {
    // Guards against a read that waits for a writer of a fifo: a mount, a check or a file that hangs
    // for minutes, and a thread that never ends.
    let t = target().await;
    let read_only = |o: &mut sealfs::stack::MountOptions| o.read_only = true;
    for kind in ["keyring", "config", "lease", "meta/manifest/", "meta/compacted/", "seg/"] {
        let at = t.of(kind).pop().unwrap_or_else(|| panic!("no {kind}"));
        let kept = std::fs::read(&at).expect("reads");
        for (what, plant) in PLANTS {
            in_place(&at, plant);
            let begun = Instant::now();
            match fsck(t.bench.fsck_options(), Arc::default()).await {
                Ok(report) => {
                    // A directory is no object: then it is as if that had been deleted.
                    let as_deleted =
                        what == "a directory" && ["lease", "meta/manifest/"].contains(&kind);
                    let seen = !report.problems.is_empty();
                    assert!(seen || as_deleted, "{kind} is {what}: fsck is content");
                }
                Err(e) => assert_ne!(e.kind(), StackErrorKind::Unreachable, "{kind}: {what}: {e}"),
            }
            match t.bench.mount_with(read_only).await {
                Err(e) => assert_ne!(e.kind(), StackErrorKind::Unreachable, "{kind}: {what}: {e}"),
                Ok(m) => {
                    let mut lost = 0;
                    for name in ["one", "two"] {
                        match super::read(&m, name).await {
                            Ok(got) => assert!(got == super::contents(name), "{kind}: {what}"),
                            Err(FsError::Io(_)) => lost += 1,
                            Err(e) => panic!("{kind} is {what}: {name}: {e}"),
                        }
                    }
                    let may_lose = ["seg/", "meta/compacted/"].contains(&kind);
                    assert_eq!(lost > 0, may_lose, "{kind} is {what}: {lost} lost");
                    m.shutdown(LONG).await;
                }
            }
            let took = begun.elapsed();
            assert!(took < AT_ONCE, "{kind} is {what}: {took:?}");
        }
        in_place(&at, |at| std::fs::write(at, "").expect("writes"));
        std::fs::write(&at, kept).expect("writes");
    }
    // What the store locks is opened to be written.
    let lock = t.dir.path().join("s/lock#0");
    in_place(&lock, fifo);
    let begun = Instant::now();
    let refused = t.bench.mount_with(|_| {}).await.err().expect("nothing can be written");
    assert!(begun.elapsed() < AT_ONCE && refused.to_string().contains("fifo"), "{refused}");
    in_place(&lock, |at| std::fs::write(at, "").expect("writes"));
    assert_eq!(t.bench.fsck(|o| o.data = true).await.problems, [], "all is as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_no_volume_has_are_named_and_stop_no_listing() {
    // Guards against a listing of a directory that ends at a name which is no path.
    let t = target().await;
    let store = t.dir.path().join("s");
    let odd = std::ffi::OsStr::from_bytes(b"not utf-8 \xff");
    for name in
        [store.join("a\u{1}\nb"), store.join("seg").join(odd), store.join("meta/manifest/\u{7f}")]
    {
        std::fs::write(name, "x").expect("writes");
    }
    std::fs::create_dir(store.join("%odd")).expect("makes");
    std::fs::write(store.join("%odd/x"), "x").expect("writes");
    symlink("circle", store.join("circle")).expect("links");
    symlink(&store, store.join("again")).expect("links");
    fifo(&store.join("seg/waits"));
    let report = t.bench.fsck(|_| {}).await;
    let said: String = report.problems.iter().map(|p| p.what.clone() + "\n").collect();
    for name in [
        "a\\u{1}\\nb",
        "seg/not utf-8 \u{fffd}",
        "manifest/\\u{7f}",
        "%odd/x",
        "circle",
        "again",
        "seg/waits",
    ] {
        assert!(said.contains(name), "{name} is not in: {said}");
    }
    let m = t.bench.mount().await;
    assert!(super::read(&m, "one").await.expect("reads") == super::contents("one"));
    assert!(m.shutdown(LONG).await);
}
