//! Every command that takes long is stopped at many moments by SIGINT and SIGTERM: it ends soon, says what to
//! type, and the same command, run again to its end, leaves what one that was never stopped leaves.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::e2e;
use crate::e2e::manifest::Manifest;
use crate::mounts::{Holder, Volume, listens, send_signal, wait_at_most};
use crate::needs_fuse;
use crate::support::s3server::{Fault, FaultKind, RequestKind, S3Server};

/// For a command that was stopped to end, on a machine that does much else.
const STOP_MAX: Duration = Duration::from_secs(90);
/// For a command to get as far as it should.
const PATIENCE: Duration = Duration::from_secs(180);
/// Directories, files in each.
const DIRS: usize = 4;
const FILES: usize = 10;
/// What a request takes longer meanwhile, so that there are moments to stop at.
const DELAY: Duration = Duration::from_millis(40);

/// A volume on a server of its own, with files and a snapshot of some of them; not mounted.
struct Bench {
    v: Volume,
    server: S3Server,
}

fn make(root: &Path) {
    for d in 0..DIRS {
        let dir = root.join(format!("dir {d}"));
        fs::create_dir_all(&dir).expect("makes");
        for n in 0..FILES {
            let bytes = e2e::noise((d * FILES + n) as u64, 1000 + 90_000 * (n % 3));
            fs::write(dir.join(format!("file {n}")), bytes).expect("writes");
        }
    }
    fs::write(root.join("large"), e2e::noise(99, 18 << 20)).expect("writes");
}

impl Bench {
    fn new() -> Bench {
        let server = S3Server::start();
        let v = Volume::create_on(e2e::remote(&server));
        v.mount(&["--commit-interval", "200ms"]);
        make(&v.vault());
        v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
        for d in 0..DIRS {
            fs::remove_file(v.at(&format!("dir {d}/file 1"))).expect("removes");
            fs::write(v.at(&format!("dir {d}/file 2")), "changed since").expect("writes");
        }
        v.umount();
        fs::create_dir(v.path("tmp")).expect("makes");
        Bench { v, server }
    }

    /// How the volume is opened.
    fn at(&self, more: &[&str]) -> Vec<String> {
        let (pass, state) = (self.v.text("passphrase"), self.v.text("state"));
        let own = ["--passphrase-file", &pass, "--state-dir", &state].map(str::to_owned);
        more.iter().map(|&word| word.to_owned()).chain(own).collect()
    }

    /// The same for commands that remember nothing on this machine.
    fn with_key(&self, more: &[&str]) -> Vec<String> {
        let all = self.at(more);
        all[..all.len() - 2].to_vec()
    }

    /// Starts a command, in a process group of its own.
    fn start(&self, args: &[String]) -> Holder {
        let mut command = self.v.command(&args.each_str());
        command.env("TMPDIR", self.v.path("tmp"));
        let said = File::create(self.v.path("said")).expect("creates");
        command.stdout(Stdio::null()).stderr(said);
        Holder(command.process_group(0).spawn().expect("runs"))
    }

    /// Waits for its end: its status, and what it said.
    fn end(&self, holder: &mut Holder, args: &[String]) -> (Option<i32>, String) {
        let mut status = None;
        wait_at_most(STOP_MAX, &format!("{args:?} ends"), || {
            status = holder.0.try_wait().expect("own child");
            status.is_some()
        });
        let text = fs::read_to_string(self.v.path("said")).expect("reads");
        (status.and_then(|status| status.code()), text)
    }

    /// Starts a command and stops it when it has made `after` requests; what it said, or `None` if it was
    /// done before, with a status of `done`. `group`: as a terminal does, with everything that it has started.
    fn stopped(
        &self,
        args: &[String],
        (after, done): (u64, &[i32]),
        signal: i32,
        group: bool,
    ) -> Option<String> {
        let before = self.server.counts().requests();
        // What has asked so often waits until it is stopped: it may not be done before.
        let slow = || self.server.faults().add(Fault::new(FaultKind::Delay(DELAY)));
        self.server.faults().add(Fault::new(FaultKind::Hold).after(after));
        slow();
        let mut holder = self.start(args);
        let mut is_done = false;
        wait_at_most(PATIENCE, "it gets so far", || {
            is_done = holder.0.try_wait().expect("own child").is_some();
            let asked = self.server.counts().requests() >= before + after;
            is_done || asked && listens(holder.0.id())
        });
        let pid = holder.0.id() as i32;
        if !is_done {
            send_signal(if group { -pid } else { pid }, signal);
        }
        self.server.faults().clear();
        slow();
        let begun = Instant::now();
        let (code, text) = self.end(&mut holder, args);
        self.server.faults().clear();
        eprintln!("{}: {after}: {code:?} after {:?}", args[..2].join(" "), begun.elapsed());
        match code {
            Some(12) => assert!(text.contains("sealfs: error: stopped before"), "{args:?}: {text}"),
            // Everything is done but for the upload, which is the journal's now.
            Some(8) => assert!(text.contains("in the local journal"), "{args:?}: {text}"),
            Some(code) if done.contains(&code) => return None,
            other => panic!("{args:?} stopped after {after} requests: {other:?}: {text}"),
        }
        assert!(text.lines().last().is_some_and(|l| l.starts_with("hint: ")), "{args:?}: {text}");
        Some(text)
    }

    /// Stops a command again and again, each time later, until it is done; what it said. Then, or at last,
    /// it runs to its end: `again` is what is typed then.
    fn again_and_again(&self, args: &[String], again: &[String], statuses: &[i32]) -> Vec<String> {
        let mut said = Vec::new();
        for (n, after) in [3, 12, 26, 60].into_iter().enumerate() {
            let signal = [libc::SIGINT, libc::SIGTERM][n % 2];
            let words = if n == 0 { args } else { again };
            match self.stopped(words, (after, statuses), signal, n % 3 == 0) {
                Some(text) => said.push(text),
                None => break,
            }
        }
        assert!(!said.is_empty(), "{args:?} was never stopped");
        let words: Vec<_> = again.iter().map(String::as_str).collect();
        let output = self.v.run(&words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().expect("a status");
        assert!(statuses.contains(&code), "{again:?} to its end: {code}: {text}");
        said
    }

    fn runs(&self, args: &[String]) -> Vec<String> {
        self.again_and_again(args, args, &[0])
    }

    /// Nothing is wrong, and the volume is what it was.
    fn is_as_before(&self, was: &Manifest, what: &str) {
        self.v.ok(&self.at(&["fsck", &self.v.url(), "--data"]).each_str());
        self.v.mount(&[]);
        Manifest::of(&self.v.vault()).assert_same(was, what);
    }
}

/// Words as a command takes them.
trait EachStr {
    fn each_str(&self) -> Vec<&str>;
}

impl EachStr for [String] {
    fn each_str(&self) -> Vec<&str> {
        self.iter().map(String::as_str).collect()
    }
}

/// The volume as it is; it stays unmounted.
fn now(b: &Bench) -> Manifest {
    b.v.mount(&[]);
    let was = Manifest::of(&b.v.vault());
    b.v.umount();
    was
}

fn rekeys(b: &Bench) {
    let was = now(b);
    let args = b.at(&["key", "rekey", &b.v.url(), "--no-wait", "--parallel", "1"]);
    b.again_and_again(&args, &args, &[0, 13]);
    b.is_as_before(&was, "after a rekey");
    let listed = b.v.ok(&b.at(&["key", "list", &b.v.url(), "--json"]).each_str());
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["epoch"], 2, "it went on with the epoch that it had begun: {listed}");
}

fn migrates(b: &Bench) {
    let was = now(b);
    b.runs(&b.with_key(&["sse", "migrate", &b.v.url(), "--to", "AES256", "--parallel", "1"]));
    b.is_as_before(&was, "after a migration");
}

fn checks(b: &Bench) {
    let args = b.at(&["fsck", &b.v.url(), "--data"]);
    let again = b.at(&["fsck", &b.v.url(), "--data", "--resume"]);
    let said = b.again_and_again(&args, &again, &[0]);
    assert!(said.iter().all(|text| text.contains("--data --resume")), "{said:?}");
    b.runs(&b.with_key(&["sse", "audit", &b.v.url(), "--verify-sealing"]));
}

fn imports(b: &Bench) {
    for d in 0..DIRS {
        for n in 0..FILES {
            b.server.put_raw(&format!("in/d{d}/f{n}"), e2e::noise(n as u64, 3000 * (n + 1)));
        }
    }
    let cache = b.v.text("cache");
    let import = ["import", "s3://test/in", &b.v.url(), "here", "--cache-dir", &cache];
    b.runs(&b.at(&import));
    let local = b.v.path("local");
    make(&local);
    let source = local.display().to_string();
    let import = ["import", &source, &b.v.url(), "copied", "--cache-dir", &cache];
    b.runs(&b.at(&import));
    b.v.mount(&[]);
    for d in 0..DIRS {
        for n in 0..FILES {
            let got = fs::read(b.v.at(&format!("here/d{d}/f{n}"))).expect("is there");
            assert!(got == e2e::noise(n as u64, 3000 * (n + 1)), "d{d}/f{n}");
        }
    }
    let mut want = Manifest::of(&local).copied();
    let mut got = Manifest::of(&b.v.at("copied")).copied();
    for all in [&mut want, &mut got] {
        all.0.remove(Path::new("")); // the directory itself was made before
    }
    got.assert_same(&want, "imported");
    b.v.umount();
    let cleartext =
        b.at(&["export", &b.v.url(), "s3://test/out", "--plain", "--cache-dir", &cache]);
    b.runs(&cleartext);
    let out = b.server.keys().iter().filter(|key| key.starts_with("out/")).count();
    assert_eq!(out, 2 * (1 + DIRS * FILES) + DIRS * FILES - DIRS, "all are there once");
    assert_eq!(b.server.open_uploads(), 0, "nothing is left of uploads");
    assert!(b.server.get_raw("out/large").expect("is there") == e2e::noise(99, 18 << 20));
}

fn restores(b: &Bench) {
    let url = b.v.url();
    b.runs(&b.at(&["du", &url]));
    b.runs(&b.at(&["snapshot", "diff", &url, "monday"]));
    b.runs(&b.at(&["snapshot", "restore", &url, "monday", "--to", "there"]));
    b.v.mount(&[]);
    let mut was = Manifest::of(&b.v.at(".snapshots/monday")).copied();
    let mut is = Manifest::of(&b.v.at("there")).copied();
    for all in [&mut was, &mut is] {
        all.0.remove(Path::new(""));
    }
    is.assert_same(&was, "restored");
    b.v.umount();
    // Made or not: the hint says how to find out, and a second try says so.
    let made = b.at(&["snapshot", "create", &url, "s0"]);
    b.again_and_again(&made, &made, &[0, 1]);
    let gone = b.at(&["snapshot", "delete", &url, "s0"]);
    b.again_and_again(&gone, &gone, &[0, 1]);
    let left = b.v.ok(&b.at(&["snapshot", "list", &url]).each_str());
    assert!(left.contains("monday") && !left.contains("s0"), "{left}");
}

/// What asks a mount ends as well, and the mount goes on.
fn asks(b: &Bench) {
    b.v.forget_local_state();
    b.v.mount(&["--commit-interval", "200ms"]);
    let vault = b.v.text("vault");
    let ask = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    b.runs(&ask(&["warm", &vault]));
    b.v.umount();
    b.v.forget_local_state();
    b.v.mount(&["--commit-interval", "200ms"]);
    let pinned = ask(&["warm", "--pin", &vault]);
    let said = b.again_and_again(&pinned, &pinned, &[0]);
    assert!(said.iter().all(|text| text.contains("hint: ")), "{said:?}");
    // What the store does not take is waited for.
    for words in [&["sync", &vault][..], &["umount", &vault]] {
        fs::write(b.v.at("more"), e2e::noise(words.len() as u64, 4 << 20)).expect("writes");
        b.server.faults().add(Fault::new(FaultKind::Delay(Duration::from_secs(600))).key("/seg/"));
        let text = b.stopped(&ask(words), (1, &[0]), libc::SIGINT, false).expect("it waited");
        assert!(text.contains("sealfs status") || text.contains("it stays mounted"), "{text}");
        assert!(b.v.is_mounted(), "{words:?}: the mount goes on");
        b.v.ok(&["sync", &vault]);
    }
    b.v.umount();
}

/// Where the volume's store may be mounted already, it is asked which volume it is: a wait of its own, by which a
/// signal that comes later must not be lost.
fn transfers_beside_a_mount_of_that_name(b: &Bench) {
    let other = Bench::new();
    assert_eq!(other.v.url(), b.v.url());
    other.v.mount(&[]);
    for key in ["in/a", "in/b", "in/c"] {
        b.server.put_raw(key, e2e::noise(1, 3000));
    }
    let (url, cache) = (b.v.url(), b.v.text("cache"));
    let import = ["import", "s3://test/in", &url, "here", "--cache-dir", &cache, "--parallel", "1"];
    let args = b.at(&import);
    b.server.faults().add(Fault::new(FaultKind::Hold).on(RequestKind::Get).key("test/in/"));
    let mut holder = b.start(&args);
    wait_at_most(PATIENCE, "it transfers", || b.server.faults().held() > 0);
    send_signal(holder.0.id() as i32, libc::SIGINT);
    std::thread::sleep(Duration::from_millis(500));
    b.server.faults().clear();
    let (status, text) = b.end(&mut holder, &args);
    assert_eq!(status, Some(12), "{text}");
    b.v.ok(&args.each_str());
    other.v.umount();
}

/// What a journal holds is exported again from the beginning.
fn recovers(b: &Bench) {
    b.v.mount(&[]);
    b.server.faults().add(Fault::new(FaultKind::Hang).key("/seg/"));
    make(&b.v.at("only here"));
    Command::new("sync").arg("-f").arg(b.v.at("only here")).status().expect("syncs");
    let want = Manifest::of(&b.v.at("only here")).copied();
    b.v.crash();
    b.server.faults().clear();
    let state = fs::read_dir(b.v.path("state")).expect("lists").flatten().map(|e| e.path());
    let journal = state.map(|p| p.join("journal")).find(|p| p.exists()).expect("a journal");
    let (journal, out) = (journal.display().to_string(), b.v.text("out"));
    let (url, pass) = (b.v.url(), b.v.text("passphrase"));
    let args = ["recover", &journal, &out, "--store", &url, "--passphrase-file", &pass];
    let args: Vec<_> = args.map(str::to_owned).into();
    let unfinished = b.v.path("out").join(".sealfs-recover-unfinished");
    let begun = || fs::metadata(&unfinished).and_then(|meta| meta.modified()).ok();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut command = b.v.command(&args.each_str());
        let mut holder = Holder(command.stdout(Stdio::null()).spawn().expect("runs"));
        let before = begun();
        wait_at_most(PATIENCE, "it writes", || {
            begun() != before || holder.0.try_wait().expect("own child").is_some()
        });
        // SAFETY: a process of this test that was not waited for.
        unsafe { libc::kill(holder.0.id() as libc::pid_t, signal) };
        let status = holder.0.wait().expect("own child").code();
        eprintln!("recover: {status:?}");
        if status == Some(0) {
            fs::remove_dir_all(b.v.path("out")).expect("removes"); // it was quicker
        } else {
            assert_eq!(status, Some(12), "recover");
        }
    }
    b.v.ok(&args.each_str());
    assert!(!unfinished.exists());
    let mut got = Manifest::of(&b.v.path("out").join("only here")).copied();
    let mut want = want;
    for all in [&mut want, &mut got] {
        all.0.remove(Path::new(""));
    }
    got.assert_same(&want, "recovered");
}

#[test]
fn a_command_that_is_stopped_says_what_to_type_and_goes_on_when_it_is_typed() {
    // Guards against a Ctrl-C that leaves half an object, a lease that nobody gives back, an epoch more for
    // each try, a mount or a mount point that stays, and a prompt without a word of what to do now. Each
    // command is stopped after ever more requests to the store.
    needs_fuse!();
    let rows = [
        rekeys,
        migrates,
        checks,
        imports,
        restores,
        asks,
        recovers,
        transfers_beside_a_mount_of_that_name,
    ];
    std::thread::scope(|scope| {
        for row in rows {
            scope.spawn(move || {
                let b = Bench::new();
                row(&b);
                let left = fs::read_dir(b.v.path("tmp")).expect("lists").flatten();
                let left: Vec<_> = left.map(|entry| entry.path()).collect();
                assert!(left.is_empty(), "commands that have ended left {left:?}");
            });
        }
    });
}
