//! `kill -9` of the real daemon at random moments under mixed load.
//!
//! SEALFS_SEED repeats a run (as far as threads let it), SEALFS_KILLS sets how many kills.

use crate::kill;
use crate::needs_fuse;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::kill::names::Names;
use crate::kill::ranges::Ranges;
use crate::kill::records::Records;
use crate::kill::sql::Sql;
use crate::kill::untar::Untar;
use crate::kill::{Load, Signals, Span, common_instant};
use crate::mounts::{Remote, Volume, is_alive, wait_until};
use crate::support::s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().expect("a number"))
}

/// A seed of this run, on record.
fn seed(test: &str) -> u64 {
    let seed = from_env("SEALFS_SEED").unwrap_or_else(|| rand::random::<u64>() >> 32);
    eprintln!("{test}: SEALFS_SEED={seed}");
    seed
}

/// A volume with its loads, and what has happened to it so far.
struct Ordeal {
    volume: Volume,
    loads: Vec<Box<dyn Load>>,
    rng: StdRng,
    /// The bucket has everything up to here.
    synced: Instant,
    round: u64,
}

fn refs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

impl Ordeal {
    fn new(remote: Option<Remote>, seed: u64) -> Ordeal {
        let volume = Volume::bare_on(remote);
        fs::write(volume.path("key"), [7; 32]).expect("writes");
        let mut ordeal = Ordeal {
            rng: StdRng::seed_from_u64(seed),
            loads: Vec::new(),
            synced: Instant::now(),
            round: 0,
            volume,
        };
        let v = &ordeal.volume;
        // A key file: no time goes into guarding a passphrase.
        private(&v.path("key"));
        v.ok(&["init", &v.url(), "--key-file", &v.text("key")]);
        ordeal.mount();
        let v = &ordeal.volume;
        ordeal.loads.push(Box::new(Names::new(&v.vault(), "names", seed)));
        ordeal.loads.push(Box::new(Names::new(&v.vault(), "more names", seed + 1)));
        ordeal.loads.push(Box::new(Records::new(&v.vault(), seed)));
        ordeal.loads.push(Box::new(Ranges::new(&v.vault(), seed)));
        ordeal.loads.push(Box::new(Untar::new(&v.vault(), seed)));
        match Sql::new(&v.vault(), seed) {
            Some(sql) => ordeal.loads.push(Box::new(sql)),
            None => eprintln!("without sqlite3, which is not here"),
        }
        v.ok(&["sync", &v.text("vault")]);
        ordeal.synced = Instant::now();
        ordeal
    }

    fn args(&mut self, more: &[&str]) -> Vec<String> {
        let interval = ["50ms", "200ms", "600ms", "2s"][self.rng.random_range(0..4)];
        // A small one is full again and again: then writers wait for commits.
        let journal = ["16M", "1G"][self.rng.random_range(0..2)];
        let flags = ["--commit-interval", interval, "--journal-size", journal];
        let mut args = self.volume.mount_args(&flags);
        let at = args.iter().position(|a| a == "--passphrase-file").expect("a flag of the harness");
        args[at] = "--key-file".into();
        args[at + 1] = self.volume.text("key");
        args.extend(more.iter().map(|&s| s.to_owned()));
        args
    }

    fn mount(&mut self) {
        let args = self.args(&[]);
        self.volume.ok(&refs(&args));
    }

    /// A kill while the daemon starts and replays, which must not hurt either.
    fn kill_in_mount(&mut self) {
        let args = self.args(&["--foreground"]);
        let mut command = self.volume.command(&refs(&args));
        let mut child = command.stderr(Stdio::null()).spawn().expect("runs");
        let pause = self.rng.random_range(0..250);
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().expect("own child");
        child.wait().expect("own child");
        while self.volume.is_mounted() {
            self.volume.detach();
        }
    }

    /// Load, and a kill in it, or in the drain that follows it.
    fn kill_under_load(&mut self) {
        let pid = self.volume.daemon();
        let in_umount = self.rng.random_bool(0.15);
        let pause = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(0..60),
            1 => self.rng.random_range(0..1500),
            _ => self.rng.random_range(0..500),
        };
        let sync = self.rng.random_bool(0.2);
        let after = self.rng.random_range(0..100);
        let signals = Signals::default();
        let (volume, loads) = (&self.volume, &mut self.loads);
        let synced = &mut self.synced;
        let vault = volume.vault();
        std::thread::scope(|scope| {
            let threads: Vec<_> = loads
                .iter_mut()
                .map(|load| {
                    let (vault, signals) = (vault.clone(), &signals);
                    scope.spawn(move || load.run(&vault, signals))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(pause));
            if sync {
                let before = Instant::now();
                volume.ok(&["sync", &volume.text("vault")]);
                *synced = before;
                std::thread::sleep(Duration::from_millis(after));
            }
            let mut results = Vec::new();
            if in_umount {
                signals.stop.store(true, Ordering::SeqCst);
                results.extend(threads.into_iter().map(|t| t.join().expect("no panic")));
                let vault = volume.text("vault");
                let mut command = volume.command(&["umount", &vault]);
                let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
                std::thread::sleep(Duration::from_millis(after));
                kill9(pid);
                child.expect("runs").wait().expect("own child");
            } else {
                signals.killed.store(true, Ordering::SeqCst);
                kill9(pid);
                results.extend(threads.into_iter().map(|t| t.join().expect("no panic")));
            }
            for result in results {
                result.expect("the load runs until the kill");
            }
        });
        wait_until("the daemon is gone", || !is_alive(pid) && threads(pid) <= 1);
        while self.volume.is_mounted() {
            self.volume.detach();
        }
    }

    /// (a): with the local state nothing promised is missing, nothing half done is there.
    fn check_with_local_state(&mut self) {
        let vault = self.volume.vault();
        for load in &mut self.loads {
            if let Err(e) = load.settle(&vault) {
                panic!("round {}, {}: {e}", self.round, load.name());
            }
        }
    }

    /// (b): with the bucket alone there is a prefix of the history. Read-only, or read-write on
    /// a copy of the bucket, since that mount overtakes the journal of the first.
    fn check_bucket_alone(&mut self) {
        let v = &self.volume;
        let dir = v.path("elsewhere");
        let _ = fs::remove_dir_all(&dir);
        for name in ["", "vault"] {
            fs::create_dir(dir.join(name)).expect("makes a directory");
        }
        let copy = v.url().starts_with("file:") && self.rng.random_bool(0.5);
        let replace = |args: &mut Vec<String>| {
            for arg in args.iter_mut() {
                for name in ["vault", "cache", "state", "log"] {
                    if *arg == v.text(name) {
                        *arg = dir.join(name).display().to_string();
                    }
                }
            }
        };
        let mut args = v.mount_args(&[]);
        replace(&mut args);
        let at = args.iter().position(|a| a == "--passphrase-file").expect("a flag of the harness");
        args[at] = "--key-file".into();
        args[at + 1] = v.text("key");
        if copy {
            let (from, to) = (v.path("store"), dir.join("store"));
            let copied = Command::new("cp").arg("-r").args([from, to]).status();
            assert!(copied.expect("cp runs").success());
            args[1] = format!("file://{}", dir.join("store").display());
        } else {
            args.push("--read-only".into());
        }
        v.ok(&refs(&args));
        let root = dir.join("vault");
        let found: Vec<Result<Vec<Span>, String>> =
            self.loads.iter().map(|load| load.find(&root)).collect();
        v.ok(&["umount", &root.display().to_string()]);
        let mut spans = Vec::new();
        for (load, found) in self.loads.iter().zip(found) {
            match found {
                Ok(found) => spans.push(found),
                Err(e) => panic!("round {}, {} from the bucket: {e}", self.round, load.name()),
            }
        }
        let Some(at) = common_instant(self.synced, &spans) else {
            let ago = |at: Instant| at.elapsed().as_secs_f64();
            let shown: Vec<Vec<_>> = spans
                .iter()
                .map(|l| l.iter().map(|s| (ago(s.from), s.to.map(ago))).collect())
                .collect();
            let synced = ago(self.synced);
            panic!("round {}: no common instant since {synced} s ago: {shown:?}", self.round);
        };
        self.synced = at;
        self.loads.iter_mut().for_each(|load| load.forget_before(at));
    }

    fn suffer(&mut self, kills: u64) {
        let begun = Instant::now();
        while self.round < kills {
            self.round += 1;
            self.kill_under_load();
            if self.round.is_multiple_of(4) {
                self.check_bucket_alone();
            }
            while self.round < kills && self.rng.random_bool(0.25) {
                self.round += 1;
                self.kill_in_mount();
            }
            self.mount();
            self.check_with_local_state();
        }
        self.volume.umount();
        self.volume.forget_local_state();
        self.mount();
        self.check_with_local_state();
        self.volume.umount();
        eprintln!("{} kills in {:.0?}", self.round, begun.elapsed());
    }
}

impl Drop for Ordeal {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("SEALFS_KEEP").is_some() {
            let kept = std::env::temp_dir().join(format!("sealfs-kept-{}", std::process::id()));
            let _ = Command::new("cp").arg("-a").arg(self.volume.path("store")).arg(&kept).status();
        }
        let root = self.volume.path("elsewhere").join("vault");
        let _ = Command::new("umount").arg("-lq").arg(root).stderr(Stdio::null()).status();
    }
}

#[test]
fn a_taken_over_mount_turns_read_only_and_loses_nothing() {
    // Guards against two writers of one volume: the first is stopped (as a laptop that sleeps)
    // while the second takes over, and wakes up with its own changes.
    needs_fuse!();
    let v = Volume::create();
    v.mount(&["--commit-interval", "200ms"]);
    fs::write(v.at("before"), b"before").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    let first = v.daemon();
    signal(first, libc::SIGSTOP);
    let mut args = v.mount_args(&["--takeover", "--commit-interval", "200ms"]);
    for arg in &mut args {
        for name in ["vault", "cache", "state", "log"] {
            if *arg == v.text(name) {
                *arg = v.text(&format!("second {name}"));
            }
        }
    }
    fs::create_dir(v.path("second vault")).expect("makes a directory");
    let second = |name: &str| v.path("second vault").join(name);
    v.ok(&refs(&args));
    let _guard = Detached(v.path("second vault"));
    fs::write(second("of the second"), b"second").expect("writes");
    v.ok(&["sync", &v.text("second vault")]);
    signal(first, libc::SIGCONT);
    // Journalled, as nobody has told it yet; or refused already.
    let early = fs::write(v.at("of the first"), b"first").is_ok();
    wait_until("the first is read-only", || {
        let refused = fs::write(v.at("more of the first"), b"x");
        refused.is_err_and(|e| e.raw_os_error() == Some(libc::EROFS))
    });
    assert_eq!(v.status("state"), "fenced");
    assert_eq!(fs::read(v.at("before")).expect("reads on"), b"before");
    fs::write(second("later"), b"later").expect("the second goes on");
    v.ok(&["sync", &v.text("second vault")]);
    let check = |at: &dyn Fn(&str) -> std::path::PathBuf| {
        for (name, text) in [("before", "before"), ("of the second", "second"), ("later", "later")]
        {
            assert_eq!(fs::read_to_string(at(name)).expect(name), text);
        }
        assert!(!at("of the first").exists(), "the first wrote into the bucket");
    };
    check(&second);
    // Not quietly, as it has changes that will never be in the bucket; and its journal stays.
    v.fails(&["umount", "--force-local", &v.text("vault")], if early { 8 } else { 0 });
    wait_until("the first ends", || !v.is_mounted() && !is_alive(first));
    v.ok(&["umount", &v.text("second vault")]);
    v.mount(&[]);
    check(&|name| v.at(name));
    if early {
        assert!(v.log().contains("set aside"), "{}", v.log());
        let kept = walkdir::WalkDir::new(v.path("state")).into_iter().filter_map(Result::ok);
        let kept: Vec<_> = kept.map(|entry| entry.path().display().to_string()).collect();
        assert!(kept.iter().any(|path| path.contains("aside")), "{kept:?}");
    }
    v.umount();
}

#[test]
fn close_fails_when_the_daemon_is_gone() {
    // Guards against close(2) that succeeds for data that nobody took: Linux drops dirty pages
    // silently when the connection is broken, and only FLUSH then says so. Many closes, since
    // a change of the modification time makes some of them fail anyway.
    needs_fuse!();
    let v = Volume::mounted();
    fs::write(v.at("earlier"), b"x").expect("writes"); // Linux asks for the first FLUSH here
    let pid = v.daemon();
    let file = fs::File::create(v.at("f")).expect("creates");
    kill9(pid);
    wait_until("the daemon is gone", || !is_alive(pid) && threads(pid) <= 1);
    for n in 0..500u32 {
        if file.write_all_at(&n.to_le_bytes().repeat(1024), 0).is_err() {
            continue; // said so already
        }
        let same = file.try_clone().expect("a descriptor");
        assert!(kill::close(same).is_err(), "close {n} returned 0");
    }
}

/// Takes a mount away, should it be left.
struct Detached(std::path::PathBuf);

impl Drop for Detached {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-lq").arg(&self.0).stderr(Stdio::null()).status();
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: the process is this test's own daemon.
    unsafe { libc::kill(pid, signal) };
}

/// A process is a zombie as soon as its first thread has ended; others may still be in a system
/// call, and hold its locks.
fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("own file");
}

fn kill9(pid: i32) {
    signal(pid, libc::SIGKILL);
}

#[test]
fn kill_9_loses_nothing_that_was_closed_or_synced_and_leaves_a_prefix_in_the_bucket() {
    // Guards against every way to lose or to half-do a change between the journal, its replay
    // and the commit: the daemon is killed at random moments of load, mount and umount.
    needs_fuse!();
    let seed = seed("on file://");
    Ordeal::new(None, seed).suffer(from_env("SEALFS_KILLS").unwrap_or(42));
}

#[test]
fn kill_9_loses_nothing_over_s3_either() {
    // Guards against the same where a request is cut off in the middle and the server goes on
    // with what it has.
    needs_fuse!();
    let seed = seed("on S3");
    let server = S3Server::start();
    let remote = Remote::s3(&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY);
    Ordeal::new(Some(remote), seed).suffer(from_env("SEALFS_KILLS").unwrap_or(12));
}
