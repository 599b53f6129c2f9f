//! A mount that runs changes its role, with a kernel in between, which keeps pages, names and
//! attributes.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::mounts::{Volume, wait_until};
use crate::needs_fuse;

/// Where the other machine has the volume.
struct Other {
    point: PathBuf,
}

/// Mounts the volume of `v` a second time, as another machine would.
fn other_machine(v: &Volume, flags: &[&str]) -> Other {
    let point = v.path("second");
    fs::create_dir_all(&point).expect("makes a directory");
    let (url, pass, at) = (v.url(), v.text("passphrase"), v.text("second"));
    let (cache, state, log) = (v.text("cache2"), v.text("state2"), v.text("log2"));
    let args = ["mount", &url, &at, "--passphrase-file", &pass, "--cache-dir", &cache];
    let args = [&args[..], &["--state-dir", &state, "--log-file", &log], flags].concat();
    v.ok(&args);
    Other { point }
}

fn shows(path: &Path, contents: &[u8]) {
    wait_until(&format!("{} shows", path.display()), || {
        fs::read(path).is_ok_and(|found| found == contents)
    });
}

#[test]
fn the_kernel_shows_what_the_other_machine_wrote_and_writes_where_that_ends() {
    // Guards against sizes, times, names and pages that Linux keeps of the time in which this mount
    // wrote, in files that are open and in files that are not; and against writes that go by them.
    needs_fuse!();
    let v = Volume::mounted();
    let other = other_machine(&v, &["--read-only"]);
    fs::create_dir(v.at("d")).expect("makes a directory");
    for name in ["grows", "d/shrinks", "stays", "goes", "d/moves"] {
        fs::write(v.at(name), b"first contents").expect("writes");
        fs::read(v.at(name)).expect("it is cached");
    }
    assert!(!v.at("comes").exists(), "the kernel remembers that, too");
    let open = File::open(v.at("grows")).expect("opens");
    v.ok(&["demote", &v.text("vault")]);
    let refused = fs::write(v.at("more"), b"x").expect_err("it follows");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    let refused = OpenOptions::new().write(true).open(v.at("stays")).expect_err("it follows");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    v.ok(&["promote", &v.text("second")]);
    let there = |name: &str| other.point.join(name);
    let mut grows = OpenOptions::new().append(true).open(there("grows")).expect("opens");
    grows.write_all(b", and more").expect("appends");
    drop(grows);
    fs::write(there("d/shrinks"), b"short").expect("writes");
    fs::remove_file(there("goes")).expect("removes");
    fs::rename(there("d/moves"), there("moved")).expect("renames");
    fs::write(there("comes"), b"new").expect("writes");
    v.ok(&["sync", &v.text("second")]);
    shows(&v.at("grows"), b"first contents, and more");
    shows(&v.at("d/shrinks"), b"short");
    shows(&v.at("comes"), b"new");
    shows(&v.at("moved"), b"first contents");
    assert_eq!(fs::metadata(v.at("grows")).expect("stats").len(), 24);
    wait_until("what was removed is gone", || !v.at("goes").exists() && !v.at("d/moves").exists());
    let mut head = [0; 5];
    open.read_exact_at(&mut head, 0).expect("a handle that was open goes on to read");
    assert_eq!(&head, b"first");
    // Back, and at the end that the other machine has made.
    v.ok(&["demote", &v.text("second")]);
    v.ok(&["promote", &v.text("vault")]);
    let mut grows = OpenOptions::new().append(true).open(v.at("grows")).expect("opens");
    grows.write_all(b"; ours").expect("appends");
    grows.sync_all().expect("syncs");
    assert_eq!(fs::read(v.at("grows")).expect("reads"), b"first contents, and more; ours");
    fs::write(v.at("stays"), b"rewritten").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    shows(&there("grows"), b"first contents, and more; ours");
    shows(&there("stays"), b"rewritten");
    v.ok(&["umount", &v.text("second")]);
    drop((open, grows));
    v.umount();
}

#[test]
fn a_mount_that_was_mounted_to_read_is_a_whole_writer_once_promoted() {
    // Guards against a promoted follower whose kernel goes by what it was told as a follower:
    // mappings, appends, times, truncation, holes, locks, unlinked files.
    needs_fuse!();
    let v = Volume::create();
    v.mount(&["--read-only"]);
    let refused = v.fails(&["demote", &v.text("vault")], 1);
    assert!(refused.contains("hint: to make it the writer: sealfs promote"), "{refused}");
    v.ok(&["promote", &v.text("vault")]);
    assert!(v.ok(&["status", &v.text("vault")]).contains("writer: promoted"));
    fs::write(v.at("f"), vec![1; 100_000]).expect("writes");
    let file = OpenOptions::new().read(true).write(true).open(v.at("f")).expect("opens");
    file.write_all_at(&[2; 10], 50_000).expect("writes");
    file.set_len(60_000).expect("truncates");
    let mut all = Vec::new();
    (&file).read_to_end(&mut all).expect("reads");
    assert!(all.len() == 60_000 && all[50_000..50_010] == [2; 10] && all[50_010] == 1);
    let before = fs::metadata(v.at("f")).expect("stats").modified().expect("a time");
    std::thread::sleep(Duration::from_millis(20));
    map_and_write(&file, 0, b"mapped");
    assert!(fs::metadata(v.at("f")).expect("stats").modified().expect("a time") > before);
    // SAFETY: a lock of this process on its own file.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
    fs::remove_file(v.at("f")).expect("unlinks");
    let mut head = [0; 6];
    file.read_exact_at(&mut head, 0).expect("an unlinked file is read");
    assert_eq!(&head, b"mapped");
    drop(file);
    fs::write(v.at("g"), b"last").expect("writes");
    v.ok(&["demote", &v.text("vault")]);
    assert_eq!(fs::read(v.at("g")).expect("reads"), b"last");
    v.umount();
}

/// Writes through a shared mapping and syncs it (msync(2)).
fn map_and_write(file: &File, at: usize, bytes: &[u8]) {
    let len = at + bytes.len();
    // SAFETY: a mapping of a file that is as long, used within its bounds and unmapped at the end.
    unsafe {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let map = libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.cast::<u8>().add(at), bytes.len());
        assert_eq!(libc::msync(map, len, libc::MS_SYNC), 0);
        libc::munmap(map, len);
    }
}

/// Ends the load when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many rounds of both there are under load; `SEALFS_TEST_FULL`: a hundred.
fn rounds() -> usize {
    if std::env::var_os("SEALFS_TEST_FULL").is_some() { 100 } else { 6 }
}

#[test]
fn rounds_of_both_under_load_lose_nothing_that_was_synced() {
    // Guards against what is lost where a role changes under programs that write: appends with fsync,
    // files made and closed, a mapping, an unlinked file, locks. What was acknowledged is there at
    // the end, and every wait has ended.
    needs_fuse!();
    let v = Volume::mounted();
    let stop = AtomicBool::new(false);
    let vault = v.vault();
    let log = vault.join("log");
    fs::write(&log, b"").expect("writes");
    fs::write(vault.join("map"), vec![0; 8192]).expect("writes");
    let synced = std::thread::scope(|scope| {
        let appends = scope.spawn(|| {
            let mut synced = Vec::new();
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let line = format!("{n:08}\n");
                let append = || -> std::io::Result<()> {
                    let mut log =
                        OpenOptions::new().append(true).custom_flags(libc::O_CLOEXEC).open(&log)?;
                    // SAFETY: a lock of this process on its own file.
                    assert_eq!(unsafe { libc::flock(log.as_raw_fd(), libc::LOCK_EX) }, 0);
                    log.write_all(line.as_bytes())?;
                    log.sync_all()
                };
                match append() {
                    Ok(()) => synced.push(line),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            synced
        });
        let files = scope.spawn(|| {
            let mut closed = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let path = vault.join(format!("file-{n}"));
                let make = || -> std::io::Result<()> {
                    let mut file = File::create(&path)?;
                    file.write_all(format!("{n}").as_bytes())?;
                    file.sync_all()
                };
                match make() {
                    Ok(()) => closed.push(n),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            closed
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let path = vault.join("unlinked");
                if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(&path) {
                    let _ = fs::remove_file(&path); // refused, perhaps
                    let _ = file.write_all(b"gone").and_then(|()| file.sync_all());
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let open = OpenOptions::new().read(true).write(true).open(vault.join("map"));
                if let Ok(file) = open {
                    let _ = file.write_all_at(b"both ways", 4096);
                    let _ = file.sync_data();
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let ends = Ends(&stop); // also if a round fails
        for _ in 0..rounds() {
            std::thread::sleep(Duration::from_millis(50));
            v.ok(&["demote", &v.text("vault")]);
            v.ok(&["promote", &v.text("vault")]);
        }
        drop(ends);
        (appends.join().expect("no panic"), files.join().expect("no panic"))
    });
    let (lines, closed) = synced;
    let check = |at: &Path| {
        let log = fs::read_to_string(at.join("log")).expect("reads");
        let mut rest = log.as_str();
        for line in &lines {
            let found = rest.find(line.as_str());
            rest = &rest[found.unwrap_or_else(|| panic!("{line:?} was synced"))..];
        }
        for n in &closed {
            let found = fs::read_to_string(at.join(format!("file-{n}"))).expect("it was synced");
            assert_eq!(found, format!("{n}"));
        }
    };
    assert!(lines.len() > 5 && closed.len() > 5, "{} lines, {} files", lines.len(), closed.len());
    check(&vault);
    v.umount();
    v.forget_local_state();
    v.mount(&[]);
    check(&vault);
    v.umount();
}
