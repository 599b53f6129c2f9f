//! `DIR/.snapshots/NAME`, with a kernel; and a snapshot mounted in place of the volume.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sealfs::base::Ino;
use sealfs::fs::SnapDir;
use sealfs::fs::tree::SNAPSHOTS;
use sealfs::fuse;
use sealfs::stack::{MountOptions, Mounted, StackError};
use tokio::task::spawn_blocking;

use super::{create, named, quick};
use crate::volume::{Bench, LONG, write_file};

/// A mount of the volume on a separate directory.
struct Seen {
    mounted: Mounted,
    session: fuse::Session,
    at: tempfile::TempDir,
}

fn can_mount() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let can = Path::new("/dev/fuse").exists() && unsafe { libc::geteuid() } == 0;
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

async fn see(bench: &Bench, change: impl Fn(&mut MountOptions)) -> Seen {
    let mounted = bench.mount_with(&change).await.expect("mounts");
    let mut options = bench.mount_options();
    change(&mut options);
    let read_only = options.read_only || options.snapshot.is_some();
    let options = fuse::Options { snapdir: options.snapdir, read_only, ..fuse::Options::default() };
    let at = tempfile::tempdir().expect("a directory");
    let (tree, point) = (mounted.tree.clone(), at.path().to_owned());
    let here = tokio::runtime::Handle::current();
    let served = spawn_blocking(move || fuse::serve(tree, &point, &options, &here)).await;
    let session = served.expect("runs").expect("mounts");
    mounted.control.tell(session.notifier());
    Seen { mounted, session, at }
}

/// A volume with files of which there is a snapshot `name`.
async fn see_filled(bench: &Bench, change: impl Fn(&mut MountOptions), name: &str) -> Seen {
    let seen = see(bench, change).await;
    seen.with(|at| fill(&at).expect("fills")).await;
    create(&seen.mounted, name).await;
    seen
}

impl Seen {
    /// Does `work` with the directory, where it may block.
    async fn with<T: Send + 'static>(&self, work: impl FnOnce(PathBuf) -> T + Send + 'static) -> T {
        let at = self.at.path().to_owned();
        spawn_blocking(move || work(at)).await.expect("does not panic")
    }

    async fn end(self) {
        let Seen { mounted, session, at } = self;
        let (session, point) = spawn_blocking(move || {
            session.unmount(true).expect("unmounts");
            (session, at)
        })
        .await
        .expect("runs");
        session.ended().await;
        drop(point);
        assert!(mounted.shutdown(LONG).await);
    }
}

fn fill(at: &Path) -> io::Result<()> {
    fs::create_dir(at.join("dir"))?;
    fs::write(at.join("dir/file"), b"as it was")?;
    fs::write(at.join("large"), crate::volume::contents("large", 3 << 20))?;
    fs::set_permissions(at.join("large"), fs::Permissions::from_mode(0o640))?;
    symlink("dir/file", at.join("link"))?;
    fs::hard_link(at.join("dir/file"), at.join("second"))
}

/// Error number of an operation that must not work.
fn refused<T>(outcome: io::Result<T>) -> i32 {
    outcome.map(drop).expect_err("works").raw_os_error().expect("of the system")
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_below_the_root_shows_what_was_and_takes_no_change() {
    // Guards against a past that can be changed, that is shown where nobody asked for it, or whose
    // files are taken for links to those of the volume.
    if !can_mount() {
        return;
    }
    let bench = Bench::new().await;
    let seen = see_filled(&bench, quick, "monday").await;
    seen.with(|at| {
        fs::write(at.join("dir/file"), b"as it is, which is longer").expect("writes");
        fs::remove_file(at.join("large")).expect("removes");
        fs::write(at.join("new"), b"n").expect("writes");
        let names = |dir: &Path| {
            let mut names: Vec<_> = fs::read_dir(dir)
                .expect("lists")
                .map(|e| e.expect("entry").file_name().into_string().expect("text"))
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&at), ["dir", "link", "new", "second"], "not in the listing");
        let past = at.join(".snapshots");
        assert_eq!(names(&past), ["monday"]);
        let monday = past.join("monday");
        assert_eq!(names(&monday), ["dir", "large", "link", "second"]);
        assert_eq!(read(monday.join("dir/file")), b"as it was");
        assert_eq!(read(monday.join("link")), b"as it was");
        assert_eq!(read(monday.join("large")), crate::volume::contents("large", 3 << 20));
        assert_eq!(fs::metadata(monday.join("large")).expect("there").mode() & 0o7777, 0o640);

        // Changes, by root, of every kind.
        let file = monday.join("dir/file");
        for flags in [
            OpenOptions::new().write(true),
            OpenOptions::new().append(true),
            OpenOptions::new().read(true).write(true),
            OpenOptions::new().write(true).truncate(true),
            OpenOptions::new().append(true).create(true),
        ] {
            assert_eq!(refused(flags.open(&file)), libc::EROFS, "{flags:?}");
        }
        let made = OpenOptions::new().write(true).create_new(true).open(monday.join("x"));
        assert_eq!(refused(made), libc::EROFS);
        assert_eq!(refused(fs::create_dir(monday.join("x"))), libc::EROFS);
        assert_eq!(refused(fs::create_dir(past.join("x"))), libc::EROFS);
        assert_eq!(refused(symlink("x", monday.join("x"))), libc::EROFS);
        assert_eq!(refused(fs::remove_file(&file)), libc::EROFS);
        assert_eq!(refused(fs::remove_dir(monday.join("dir"))), libc::EROFS);
        assert_eq!(refused(fs::remove_dir(&monday)), libc::EROFS);
        assert_eq!(refused(fs::remove_dir(&past)), libc::EROFS);
        assert_eq!(refused(fs::rename(&file, monday.join("y"))), libc::EROFS);
        assert_eq!(refused(fs::rename(&file, at.join("y"))), libc::EROFS);
        assert_eq!(refused(fs::rename(at.join("new"), monday.join("y"))), libc::EROFS);
        assert_eq!(refused(fs::rename(at.join("dir"), &past)), libc::EROFS);
        assert_eq!(refused(fs::hard_link(&file, at.join("y"))), libc::EXDEV);
        assert_eq!(refused(fs::hard_link(at.join("new"), monday.join("y"))), libc::EROFS);
        let mode = fs::Permissions::from_mode(0o777);
        assert_eq!(refused(fs::set_permissions(&file, mode)), libc::EROFS);
        assert_eq!(refused(fs::create_dir(&past)), libc::EEXIST);
        assert_eq!(read(&file), b"as it was");

        // One device, and no number twice.
        let mut numbers = BTreeMap::new();
        let device = fs::metadata(&at).expect("there").dev();
        let mut todo = vec![at.clone(), past.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).expect("lists") {
                let path = entry.expect("an entry").path();
                let meta = fs::symlink_metadata(&path).expect("there");
                assert_eq!(meta.dev(), device);
                if let Some(other) = numbers.insert(meta.ino(), path.clone()) {
                    let links = [&other, &path].map(|p| p.strip_prefix(&monday).is_ok());
                    assert!(meta.nlink() > 1 && links[0] == links[1], "{other:?} and {path:?}");
                }
                if meta.is_dir() {
                    todo.push(path);
                }
            }
        }
        let up = fs::metadata(monday.join("..")).expect("there").ino();
        assert_eq!(up, fs::metadata(&past).expect("there").ino());
        let up = fs::metadata(past.join("..")).expect("there").ino();
        assert_eq!(up, fs::metadata(&at).expect("there").ino());
    })
    .await;
    seen.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_out_of_a_snapshot_shares_what_it_has_and_outlives_it() {
    // Guards against getting a terabyte back by reading and writing it, and against a copy whose
    // segments go with the snapshot, or with a crash.
    if !can_mount() {
        return;
    }
    let bench = Bench::new().await;
    let change = |o: &mut MountOptions| {
        quick(o);
        o.dead_grace = std::time::Duration::from_millis(200);
        o.snapdir = SnapDir::Visible;
    };
    let seen = see_filled(&bench, change, "s").await;
    seen.with(|at| fs::remove_file(at.join("large")).expect("removes")).await;
    assert!(seen.mounted.sync(LONG).await);
    let before = seen.mounted.control.status().segment_data_bytes;
    seen.with(|at| {
        let listed = fs::read_dir(&at).expect("lists");
        assert!(listed.map(|e| e.expect("entry").file_name()).any(|name| name == ".snapshots"));
        let copied = fs::copy(at.join(".snapshots/s/large"), at.join("back")).expect("copies");
        assert_eq!(copied, 3 << 20);
    })
    .await;
    assert!(seen.mounted.sync(LONG).await);
    let after = seen.mounted.control.status().segment_data_bytes;
    assert_eq!(after, before, "bytes were moved");
    // The same, pending, over the end of the snapshot.
    seen.with(|at| {
        let copied = fs::copy(at.join(".snapshots/s/large"), at.join("late")).expect("copies");
        assert_eq!(copied, 3 << 20);
    })
    .await;
    seen.mounted.delete_snapshots(vec![named("s")], LONG).await.expect("deletes");
    let gone = seen.with(|at| refused(fs::metadata(at.join(".snapshots/s")))).await;
    assert_eq!(gone, libc::ENOENT);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    seen.end().await;
    let again = see(&bench, change).await;
    again
        .with(|at| {
            let large = crate::volume::contents("large", 3 << 20);
            assert!(read(at.join("back")) == large && read(at.join("late")) == large);
        })
        .await;
    again.end().await;
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_snapshot_and_a_name_of_the_volume_are_told_apart() {
    // Guards against reading on in what is being collected, against a hang, and against a user's own
    // `.snapshots` that is hidden by ours.
    if !can_mount() {
        return;
    }
    let bench = Bench::new().await;
    let seen = see_filled(&bench, quick, "s").await;
    let file = seen
        .with(|at| {
            assert_eq!(read(at.join(".snapshots/s/dir/file")), b"as it was");
            fs::File::open(at.join(".snapshots/s/large")).expect("opens")
        })
        .await;
    assert_eq!(seen.mounted.tree.open_snapshots(), 1);
    seen.mounted.delete_snapshots(vec![named("s")], LONG).await.expect("deletes");
    create(&seen.mounted, "s").await;
    seen.mounted.tree.tend(Instant::now()).await;
    assert_eq!(seen.mounted.tree.open_snapshots(), 0);
    seen.with(move |at| {
        let mut bytes = [0; 100];
        let outcome = std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 1 << 20);
        assert_eq!(refused(outcome), libc::ESTALE);
        assert_eq!(read(at.join(".snapshots/s/dir/file")), b"as it was", "the new one");
    })
    .await;
    seen.end().await;
    let off = see(&bench, |o| {
        quick(o);
        o.snapdir = SnapDir::Off;
    })
    .await;
    off.with(|at| {
        assert_eq!(refused(fs::metadata(at.join(".snapshots"))), libc::ENOENT);
        fs::write(at.join(".snapshots"), b"mine").expect("writes");
    })
    .await;
    off.end().await;
    let own = see(&bench, quick).await;
    own.with(|at| {
        assert_eq!(read(at.join(".snapshots")), b"mine");
        let mut file = OpenOptions::new().append(true).open(at.join(".snapshots")).expect("opens");
        file.write_all(b", still").expect("writes");
        drop(file);
        fs::rename(at.join(".snapshots"), at.join("mine")).expect("renames");
        assert_eq!(read(at.join("mine")), b"mine, still");
        assert_eq!(read(at.join(".snapshots/s/dir/file")), b"as it was", "now it is ours");
    })
    .await;
    own.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_of_a_snapshot_shows_it_beside_the_writer_and_says_when_it_is_gone() {
    // Guards against a mount that fences the writer, that follows it, or that goes on with half of
    // what a deleted snapshot had.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    crate::volume::write_file(&m.fs, sealfs::base::Ino::ROOT, "f", b"one").await;
    create(&m, "s").await;
    m.fs.unlink(sealfs::base::Ino::ROOT, b"f".to_vec()).await.expect("unlinks");
    assert!(m.sync(LONG).await);
    let other = tempfile::tempdir().expect("a directory");
    let at = |o: &mut MountOptions| {
        (o.state_dir, o.cache_dir) = (other.path().join("state"), other.path().join("cache"));
        o.snapshot = Some(named("s"));
    };
    let past = bench.mount_with(at).await.expect("mounts");
    assert_eq!(crate::volume::read_file(&past.fs, "f").await, "one");
    assert_eq!(past.control.status().snapshot.as_deref(), Some("s"));
    assert!(past.fs.is_read_only());
    crate::volume::write_file(&m.fs, sealfs::base::Ino::ROOT, "g", b"the writer goes on").await;
    assert!(m.sync(LONG).await);
    assert!(past.fs.lookup(sealfs::base::Ino::ROOT, b"g".to_vec()).await.is_err());
    // A mount that follows shows it below its root.
    let third = tempfile::tempdir().expect("a directory");
    let follower = bench
        .mount_with(|o| {
            o.state_dir = third.path().join("state");
            o.cache_dir = third.path().join("cache");
            o.read_only = true;
        })
        .await
        .expect("mounts");
    let seen = follower.tree.snapshot("s").await.expect("opens").expect("is there");
    assert_eq!(crate::volume::read_file(&seen, "f").await, "one");
    let order = super::all_of("s");
    let refused = super::restore(&follower, &order).await.expect_err("it only reads");
    assert!(refused.to_string().contains("read-only"), "{refused}");
    drop(seen);
    assert!(follower.shutdown(LONG).await);
    let missing = bench
        .mount_with(|o| {
            at(o);
            o.snapshot = Some(named("t"));
        })
        .await;
    let missing = missing.err().expect("refused");
    assert!(
        matches!(&missing, StackError::NoSnapshot { there, .. } if there == &["s"]),
        "{missing}"
    );
    assert!(missing.hint().expect("says what to do").contains("those there are: s"));
    assert!(past.shutdown(LONG).await);
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_is_seen_through_the_kernel_at_once() {
    // Guards against names, contents, attributes and listings that Linux remembers for a year, since
    // only the mount changes them: the daemon restores what the kernel has not asked for.
    if !can_mount() {
        return;
    }
    let bench = Bench::new().await;
    let seen = see_filled(&bench, quick, "s").await;
    let (open, listed) = seen
        .with(|at| {
            fs::write(at.join("dir/file"), b"now other contents").expect("writes");
            fs::remove_file(at.join("large")).expect("removes");
            assert_eq!(refused(fs::metadata(at.join("large"))), libc::ENOENT);
            fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o700)).expect("sets");
            fs::remove_file(at.join("link")).expect("removes");
            fs::create_dir(at.join("new")).expect("makes");
            let listed = fs::read_dir(&at).expect("lists").count();
            let read = fs::File::open(at.join("dir/file")).expect("opens");
            (read, listed)
        })
        .await;
    assert_eq!(listed, 3);
    let order = super::RestoreOrder { delete: true, ..super::all_of("s") };
    let done = seen.mounted.control.restore(order, Default::default()).await.expect("restores");
    assert!(done.deleted == 1 && done.conflicts == 0, "{done:?}");
    seen.with(move |at| {
        assert_eq!(read(at.join("dir/file")), b"as it was");
        assert_eq!(read(at.join("second")), b"as it was", "the other name of it");
        let inode = |name: &str| fs::metadata(at.join(name)).expect("there").ino();
        assert_eq!(inode("dir/file"), inode("second"));
        assert_eq!(read(at.join("large")), crate::volume::contents("large", 3 << 20));
        assert_eq!(read(at.join("link")), b"as it was");
        assert_eq!(fs::metadata(at.join("dir")).expect("there").mode() & 0o7777, 0o755);
        assert_eq!(refused(fs::metadata(at.join("new"))), libc::ENOENT);
        assert_eq!(fs::read_dir(&at).expect("lists").count(), 4);
        // Who had it open keeps what it was.
        let mut bytes = [0; 100];
        let n = std::os::unix::fs::FileExt::read_at(&open, &mut bytes, 0).expect("reads");
        assert_eq!(&bytes[..n], b"now other contents");
        // And the kernel goes on from there.
        fs::write(at.join("dir/file"), b"changed again").expect("writes");
        fs::rename(at.join("large"), at.join("new")).expect("renames");
        assert_eq!(read(at.join("second")), b"changed again");
    })
    .await;
    seen.end().await;
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_snapshots_cost_nothing_until_they_are_looked_into() {
    // Guards against memory and requests for snapshots that nobody uses: they are listed without being
    // opened, and only so many are open at once, until some time after their last use.
    let bench = Bench::new().await;
    let m = bench.mount_with(quick).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "f", b"x").await;
    for n in 0..100 {
        create(&m, &format!("s{n}")).await;
    }
    let tree = m.tree.clone();
    let before = m.requests();
    for _ in 0..3 {
        let listed = tree.readdirplus(SNAPSHOTS, 0, 1000).await.expect("lists");
        let names = listed.iter().filter(|(entry, _)| entry.name.starts_with(b"s")).count();
        assert_eq!(names, 100);
    }
    // Opening them would take 900; what goes on in the background takes some.
    let asked = m.requests().get - before.get;
    assert!(asked < 100, "{asked}");
    assert_eq!(tree.open_snapshots(), 0);
    for n in 0..100 {
        let attr = tree.lookup(SNAPSHOTS, format!("s{n}").into()).await.expect("finds");
        assert!(tree.open_snapshots() <= 12, "{n}");
        tree.forget(attr.ino, 1);
    }
    assert!(tree.open_snapshots() > 0);
    tree.tend(Instant::now()).await;
    assert!(tree.open_snapshots() > 0, "they were used a moment ago");
    tree.tend(Instant::now() + Duration::from_secs(121)).await;
    assert_eq!(tree.open_snapshots(), 0);
    // And once more, as if nothing had been.
    let attr = tree.lookup(SNAPSHOTS, b"s7".to_vec()).await.expect("finds");
    assert_eq!(
        (tree.readdir(attr.ino, 2, 10).await.expect("lists").len(), tree.open_snapshots()),
        (1, 1)
    );
    assert!(m.shutdown(LONG).await);
}
