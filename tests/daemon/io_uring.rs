//! Mounts whose requests come over io_uring (`-o io_uring`), where this kernel has that. Everything else is asked
//! of such mounts by `SEALFS_TEST_MOUNT_OPTIONS=io_uring` (`scripts/test-nightly`).

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::e2e::manifest::xattrs;
use crate::e2e::{self, drop_pages, noise};
use crate::mounts::{Holder, Volume, is_alive, send_signal, wait_until};
use crate::needs_fuse;
use crate::support::s3server::{Fault, FaultKind, RequestKind, S3Server};

/// Requests of one processor that may be under way (`SLOTS` in src/fuse/rings.rs).
const SLOTS: usize = 128;
/// What memory answers takes less, on a busy machine too.
const LOCAL_MAX: Duration = Duration::from_secs(5);

/// What the kernel offers to file systems that ask for it. Only new mounts look.
const OFFERS: &str = "/sys/module/fuse/parameters/enable_uring";
static ONE: Mutex<()> = Mutex::new(());

/// Has the kernel offer io_uring, or not, until this is dropped.
struct Offer {
    before: String,
    _one: MutexGuard<'static, ()>,
}

impl Offer {
    /// None, and says why, where this kernel cannot, or this user may not say so.
    fn set(on: &str) -> Option<Offer> {
        let _one = ONE.lock();
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        if disabled.is_ok_and(|level| level.trim() != "0") {
            eprintln!("skipped: kernel.io_uring_disabled");
            return None;
        }
        let set = fs::read_to_string(OFFERS).and_then(|was| fs::write(OFFERS, on).map(|()| was));
        match set {
            Ok(before) => Some(Offer { before, _one }),
            Err(e) => {
                eprintln!("skipped: {OFFERS}: {e}");
                None
            }
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let _ = fs::write(OFFERS, self.before.trim()); // it was written before
    }
}

/// The names of the daemon's threads.
fn threads(v: &Volume) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", v.daemon())).expect("lists");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    tasks.filter_map(|task| name(task.ok()?).ok()).map(|name| name.trim().to_owned()).collect()
}

fn has_rings(v: &Volume) -> bool {
    threads(v).iter().any(|name| name == "fuse-cpu0")
}

/// A command on processor 0.
fn on_first(program: &str, args: &[&Path]) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0", program]).args(args).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A volume mounted over rings, and its server.
fn mounted() -> Option<(S3Server, Volume)> {
    let _offer = Offer::set("Y")?;
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&["-o", "io_uring"]);
    assert!(has_rings(&v), "{:?}\n{}", threads(&v), v.log());
    Some((server, v))
}

#[test]
fn a_kernel_that_does_not_offer_it_is_served_over_dev_fuse() {
    // Guards against a mount that fails, or that nobody answers, because of an option for speed, and against one
    // that does not say that it has no effect.
    needs_fuse!();
    let Some(offer) = Offer::set("N") else { return };
    let v = Volume::create();
    v.mount(&["-o", "io_uring"]);
    drop(offer);
    assert!(!has_rings(&v));
    fs::write(v.at("file"), "text").expect("writes");
    assert!(v.log().contains("not over io_uring") && v.log().contains(OFFERS), "{}", v.log());
    v.umount();
}

#[test]
fn every_length_arrives_whole_from_every_processor() {
    // Guards against bytes at the edges of what is copied out of a slot, handed over in it, and answered beside
    // it; and against an answer that goes to the question of another processor.
    needs_fuse!();
    let Some((_server, v)) = mounted() else { return };
    let lens = [0, 1, 4095, 4096, 65_535, 65_536, 131_000, 131_072, 131_073, 1 << 20, 3_000_001];
    let name = |thread: usize, len: usize| format!("{thread}/{len}");
    let direct =
        |path: PathBuf| OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (v, name) = (&v, &name);
            scope.spawn(move || {
                fs::create_dir(v.at(&thread.to_string())).expect("makes");
                for (n, len) in lens.into_iter().enumerate() {
                    let (path, bytes) =
                        (v.at(&name(thread, len)), noise((thread * 100 + n) as u64, len));
                    let mut file = File::create(&path).expect("creates");
                    // In pieces of all lengths, too.
                    let (first, rest) = bytes.split_at(len / 3);
                    file.write_all(first).and_then(|()| file.write_all(rest)).expect("writes");
                    file.sync_all().expect("syncs");
                    drop_pages(&path);
                    assert!(fs::read(&path).expect("reads") == bytes, "{len}");
                    let mut whole = vec![0; len.next_multiple_of(4096) + 4096];
                    let at = whole.as_ptr().align_offset(4096);
                    let room = &mut whole[at..][..len / 4096 * 4096];
                    direct(path).expect("opens").read_exact(room).expect("reads");
                    assert!(bytes.starts_with(room), "{len} past the page cache");
                }
                let mut listed = fs::read_dir(v.at(&thread.to_string())).expect("lists").count();
                assert_eq!(listed, lens.len());
                for n in 0..200 {
                    let (from, to) = (format!("{thread}/n{n}"), format!("{thread}/m{n}"));
                    fs::write(v.at(&from), n.to_string()).expect("writes");
                    fs::rename(v.at(&from), v.at(&to)).expect("renames");
                }
                for n in 0..200 {
                    let path = v.at(&format!("{thread}/m{n}"));
                    assert_eq!(fs::read_to_string(&path).expect("reads"), n.to_string());
                    fs::remove_file(path).expect("removes");
                }
                listed = fs::read_dir(v.at(&thread.to_string())).expect("lists").count();
                assert_eq!(listed, lens.len());
            });
        }
    });
    // Answers with and without a body, of a file that is open for all of them.
    let file = File::options().read(true).write(true).open(v.at("1/3000001")).expect("opens");
    set_attribute(&v.at("1/3000001"), &noise(7, 40_000));
    assert_eq!(xattrs(&v.at("1/3000001"))[OsStr::new("user.large")], noise(7, 40_000));
    file.set_len(10).expect("truncates");
    file.write_all_at(b"end", 2_000_000).expect("writes");
    file.set_len(5).expect("truncates");
    assert_eq!(file.metadata().expect("stats").len(), 5);
    drop(file);
    v.umount();
    v.forget_local_state();
    v.mount(&["--read-only"]);
    for thread in 0..6 {
        for (n, len) in lens.into_iter().enumerate() {
            let read = fs::read(v.at(&name(thread, len))).expect("reads");
            let written = noise((thread * 100 + n) as u64, len);
            let lasts = if (thread, len) == (1, 3_000_001) { 5 } else { len };
            assert!(read == written[..lasts], "{}", name(thread, len));
        }
    }
    v.umount();
}

/// Sets the attribute `user.large`.
fn set_attribute(path: &Path, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
    let (name, at, len) = (c"user.large", value.as_ptr().cast(), value.len());
    // SAFETY: strings that end with NUL, and a buffer with its length, all of which outlive the call.
    assert_eq!(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), at, len, 0) }, 0);
}

/// A volume with files that only the bucket has, at a server that holds whoever asks for them, and as many
/// readers of them on processor 0, past the page cache, whom no signal wakes before they are answered.
fn waiting(server: &S3Server, files: usize, readers: usize) -> (Volume, Vec<Child>) {
    let v = Volume::create_on(e2e::remote(server));
    v.mount(&[]);
    for n in 0..files {
        // Not small enough for what comes along with others.
        fs::write(v.at(&format!("cold{n}")), noise(n as u64, 300_000)).expect("writes");
    }
    fs::write(v.at("warm"), "warm").expect("writes");
    v.umount();
    v.forget_local_state();
    v.mount(&["-o", "io_uring", "--read-timeout", "5m"]);
    assert!(has_rings(&v), "{}", v.log());
    assert_eq!(fs::read_to_string(v.at("warm")).expect("reads"), "warm");
    for n in 0..files {
        fs::metadata(v.at(&format!("cold{n}"))).expect("stats");
    }
    server.faults().add(Fault::new(FaultKind::Hold).on(RequestKind::Get));
    let readers = read_cold(&v, 0..readers);
    (v, readers)
}

/// Starts readers, and waits until all of them wait.
fn read_cold(v: &Volume, files: Range<usize>) -> Vec<Child> {
    let read = |n| {
        let mut command = on_first("dd", &[]);
        command.arg(format!("if={}", v.at(&format!("cold{n}")).display()));
        command.args(["of=/dev/null", "bs=256k", "iflag=direct"]).spawn().expect("runs")
    };
    let children: Vec<Child> = files.map(read).collect();
    for child in &children {
        wait_until("it waits for an answer", || waits_for_answer(child.id()));
    }
    children
}

/// Whether a process waits for a read past the page cache of a FUSE file, or for leave to ask for it.
fn waits_for_answer(pid: u32) -> bool {
    let text = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let waits = ["fuse_direct_IO", "fuse_get_req"].contains(&text("wchan").as_str());
    text("comm") == "dd\n" && waits
}

#[test]
fn readers_of_an_unreachable_bucket_keep_no_slot_once_they_are_killed() {
    // Guards against a mount that answers nothing any more because programs wait for the network, the more so as
    // a queue has only so many slots, and against killed programs that stay, since nobody tells of signals.
    needs_fuse!();
    let Some(offer) = Offer::set("Y") else { return };
    let server = S3Server::start();
    let (v, mut readers) = waiting(&server, SLOTS + SLOTS / 4, 10);
    let work = |what: &str| {
        let begun = Instant::now();
        assert_eq!(fs::read_to_string(v.at("warm")).expect("reads"), "warm");
        fs::write(v.at("new"), what).expect("writes");
        assert!(on_first("cp", &[&v.at("new"), &v.at("copy")]).status().expect("runs").success());
        assert_eq!(fs::read_to_string(v.at("copy")).expect("reads"), what);
        assert!(begun.elapsed() < LOCAL_MAX, "{what}: {:?}", begun.elapsed());
    };
    work("beside a few");
    // Then more than the kernel lets be read at once: some requests are only sent when others are given up.
    for round in 0..3 {
        readers.extend(read_cold(&v, readers.len()..SLOTS + SLOTS / 4));
        for reader in &mut readers {
            send_signal(reader.id() as i32, libc::SIGKILL);
        }
        for mut reader in readers.drain(..) {
            wait_until("a killed reader ends", || reader.try_wait().expect("a child").is_some());
        }
        work(&format!("after {round}"));
    }
    readers = read_cold(&v, 0..3);
    server.faults().clear();
    for mut reader in readers {
        assert!(reader.wait().expect("ends").success());
    }
    v.umount();
    drop(offer);
}

#[test]
fn no_other_thread_inherits_the_ways_of_a_ring() {
    // Guards against threads that the runtime starts while it serves a ring: kept to one processor, and run only
    // where nothing else wants to.
    needs_fuse!();
    let Some((_server, v)) = mounted() else { return };
    let daemon = v.daemon();
    let may_run = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:\t"));
        line.map(str::to_owned)
    };
    let all = may_run(&fs::read_to_string("/proc/self/status").expect("reads"));
    let mut gave_way = false;
    let begun = Instant::now();
    for n in 0.. {
        for name in ["a", "b", "c"].map(|name| v.at(&format!("{name}{n}"))) {
            fs::write(&name, "text").expect("writes");
            fs::remove_file(&name).expect("removes");
        }
        if n % 50 == 0 {
            for task in fs::read_dir(format!("/proc/{daemon}/task")).expect("lists") {
                let task = task.expect("a thread").path();
                let text = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
                let (comm, stat, status) = (text("comm"), text("stat"), text("status"));
                // Field 41 is the policy (proc_pid_stat(5)); 5 is SCHED_IDLE.
                let after = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').nth(38));
                let gives_way = after.flatten() == Some("5");
                if comm.starts_with("fuse-cpu") {
                    gave_way |= gives_way;
                    continue;
                }
                let its = may_run(&status);
                assert!(!gives_way, "{comm}");
                assert!(its.is_none() || its == all, "{comm}: {its:?}");
            }
        }
        if gave_way && n >= 500 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no thread of a ring gave way");
    }
    v.umount();
}

#[test]
fn many_who_look_for_holes_at_once_are_all_answered() {
    // Guards against programs that wait for ever: each LSEEK waits for WRITEs of the same queue.
    needs_fuse!();
    let Some((_server, v)) = mounted() else { return };
    std::thread::scope(|scope| {
        for n in 0..2 * SLOTS {
            let v = &v;
            scope.spawn(move || {
                let file = File::create(v.at(&n.to_string())).expect("creates");
                file.write_all_at(b"data", 1 << 20).expect("writes");
                let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
                // SAFETY: the descriptor is open.
                let at = unsafe { libc::lseek(fd, 0, libc::SEEK_DATA) };
                let again = std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
                assert!(at == 1 << 20 || at == -1 && again, "{at}");
            });
        }
    });
    v.umount();
}

#[test]
fn an_end_by_force_and_a_kill_leave_nobody_waiting() {
    // Guards against programs that hang for ever in a request, and against acknowledged data that are lost.
    needs_fuse!();
    let Some(offer) = Offer::set("Y") else { return };
    let server = S3Server::start();
    let (v, readers) = waiting(&server, 4, 4);
    let daemon = v.daemon();
    let mut synced = File::create(v.at("synced")).expect("creates");
    synced.write_all(b"synced").and_then(|()| synced.sync_all()).expect("syncs");
    send_signal(daemon, libc::SIGKILL);
    wait_until("the daemon is gone", || !is_alive(daemon));
    for mut reader in readers {
        wait_until("a reader ends", || reader.try_wait().expect("a child").is_some());
        assert!(!reader.wait().expect("has ended").success());
    }
    assert!(synced.write_all(b"more").and_then(|()| synced.sync_all()).is_err());
    drop(synced);
    v.detach();
    server.faults().clear();
    v.mount(&["-o", "io_uring"]);
    assert_eq!(fs::read_to_string(v.at("synced")).expect("reads"), "synced");
    v.ok(&["sync", &v.text("vault")]);
    let daemon = v.daemon();
    server.faults().add(Fault::new(FaultKind::Hold).on(RequestKind::Get));
    let mut reader = Holder(read_cold(&v, 0..1).remove(0));
    let forced = Command::new("umount").args(["-f", "-l"]).arg(v.vault()).status().expect("runs");
    assert!(forced.success());
    wait_until("the reader ends", || reader.0.try_wait().expect("a child").is_some());
    server.faults().clear();
    wait_until("the daemon ends", || !is_alive(daemon));
    drop(offer);
}
