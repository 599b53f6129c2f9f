//! Snapshots through the program: `kill -9` in the middle of a restore, a bucket that changes its
//! encryption under them, and the tools that people use on `.snapshots`.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::e2e::manifest::Manifest;
use crate::e2e::noise;
use crate::e2e::tools::run;
use crate::mounts::{Remote, Volume, is_alive, wait_at_most, wait_until};
use crate::needs_fuse;
use crate::sse::{Step, args, assert_all_in};
use crate::support::s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

const DIRS: usize = 8;
const FILES: usize = 60;
/// How long a command may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// What file `n` of directory `d` holds in a state of the tree.
fn contents(state: u64, d: usize, n: usize) -> Vec<u8> {
    let len = if n.is_multiple_of(20) { 200_000 } else { 700 };
    noise(state << 32 | (d as u64) << 16 | n as u64, len)
}

fn file(root: &Path, d: usize, n: usize) -> PathBuf {
    root.join(format!("dir {d}/file {n}"))
}

/// Makes the tree in its first state, with a link of every kind.
fn make(root: &Path) {
    for d in 0..DIRS {
        fs::create_dir(root.join(format!("dir {d}"))).expect("makes");
        for n in 0..FILES {
            fs::write(file(root, d, n), contents(1, d, n)).expect("writes");
        }
        fs::hard_link(file(root, d, 0), root.join(format!("linked {d}"))).expect("links");
        symlink("file 1", root.join(format!("dir {d}/symlink"))).expect("links");
    }
    let sparse = fs::File::create(root.join("sparse")).expect("makes");
    sparse.write_all_at(b"in the middle", 5 << 20).expect("writes");
    sparse.set_len(9 << 20).expect("grows");
}

/// Puts it in its second state: every file is another, some are gone, and some came.
fn change(root: &Path) {
    for d in 0..DIRS {
        for n in 0..FILES {
            match n % 5 {
                0 => fs::remove_file(file(root, d, n)).expect("removes"),
                _ => fs::write(file(root, d, n), contents(2, d, n)).expect("writes"),
            }
        }
        fs::remove_file(root.join(format!("linked {d}"))).expect("removes");
        fs::write(root.join(format!("dir {d}/came since")), b"stays").expect("writes");
    }
    fs::write(root.join("sparse"), b"small").expect("writes");
}

/// Every file is in one state or the other, whole. How many are in the first.
fn restored(root: &Path, now: u64) -> usize {
    let mut count = 0;
    for d in 0..DIRS {
        for n in 0..FILES {
            match fs::read(file(root, d, n)) {
                Ok(found) if found == contents(1, d, n) => count += 1,
                Ok(found) => {
                    assert!(found == contents(now, d, n), "dir {d}/file {n} is half there")
                }
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "dir {d}/file {n}"),
            }
        }
    }
    count
}

/// Whether the restore has begun to show.
fn has_begun(root: &Path) -> bool {
    (0..DIRS).any(|d| {
        [0, 1]
            .into_iter()
            .any(|n| fs::read(file(root, d, n)).is_ok_and(|found| found == contents(1, d, n)))
    })
}

fn kill9(pid: i32) {
    // SAFETY: a process of this test.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    wait_until("it is gone", || !is_alive(pid));
}

/// What was snapshotted, as a tool sees it, without what a restore does not bring: times of change.
fn as_restored(root: &Path) -> Manifest {
    let mut all = Manifest::of(root).copied();
    all.0.retain(|name, _| !name.to_string_lossy().contains("came since"));
    all.0.remove(Path::new("")); // the root, in which --to has made a directory
    all
}

/// A restore into `root` of the mount is killed several times, daemon and command in turn, and then
/// completed by the same command.
fn killed_and_gone_on_with(v: &Volume, restore: &[&str], root: &Path, now: u64) {
    for kill_daemon in [true, false, true] {
        let daemon = v.daemon();
        let mut command = v.start(restore);
        wait_at_most(PATIENCE, "the restore shows", || {
            has_begun(root) || command.0.try_wait().expect("own child").is_some()
        });
        if kill_daemon {
            kill9(daemon);
            v.detach();
            command.0.wait().expect("own child");
            v.mount(&["--commit-interval", "200ms"]);
        } else {
            command.0.kill().expect("own child");
            command.0.wait().expect("own child");
        }
        let so_far = restored(root, now);
        eprintln!("{so_far} of {} files were restored", DIRS * FILES);
    }
    v.ok(restore);
    assert_eq!(restored(root, now), DIRS * FILES);
    let again = v.ok(restore);
    assert!(again.starts_with("restored 0 files (0 B), 0 links and 0 directories; "), "{again}");
}

#[test]
fn a_restore_is_killed_again_and_again_and_the_same_command_completes_it() {
    // Guards against a file that is half one state and half the other under its name, against a
    // restore that cannot go on, and against what came since being lost: kill -9 of the daemon and of
    // the command, in place, beside, and of a command that is its own mount.
    needs_fuse!();
    let v = Volume::create();
    v.mount(&["--commit-interval", "200ms"]);
    let vault = v.vault();
    make(&vault);
    v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
    let was = as_restored(&v.at(".snapshots/monday"));
    change(&vault);
    let at = v.text("vault");
    let in_place = ["snapshot", "restore", &at, "monday"];
    let beside = [&in_place[..], &["--to", "recovered/here"]].concat();
    killed_and_gone_on_with(&v, &beside, &v.at("recovered/here"), 1);
    as_restored(&v.at("recovered/here")).assert_same(&was, "put beside");
    assert_eq!(restored(&vault, 2), 0, "what is in place is untouched");
    fs::remove_dir_all(v.at("recovered")).expect("removes");

    killed_and_gone_on_with(&v, &in_place, &vault, 2);
    as_restored(&vault).assert_same(&was, "in place");
    for d in 0..DIRS {
        assert_eq!(fs::read(v.at(&format!("dir {d}/came since"))).expect("reads"), b"stays");
    }
    // The command is the mount: what it did is in its journal.
    fs::remove_dir_all(v.at("dir 3")).expect("removes");
    fs::write(v.at("dir 4/file 2"), b"changed").expect("writes");
    v.umount();
    let (url, pass, state) = (v.url(), v.text("passphrase"), v.text("state"));
    let on_store = ["snapshot", "restore", &url, "monday", "--passphrase-file", &pass];
    let on_store = [&on_store[..], &["--state-dir", &state]].concat();
    let pauses = [300, 900, 2000];
    for pause in pauses {
        let mut command = v.start(&on_store);
        std::thread::sleep(Duration::from_millis(pause));
        command.0.kill().expect("own child");
        command.0.wait().expect("own child");
    }
    v.ok(&on_store);
    v.ok(&["fsck", &url, "--data", "--passphrase-file", &pass, "--state-dir", &state]);
    v.mount(&[]);
    as_restored(&vault).assert_same(&was, "by a command that was its own mount");
    v.umount();
}

#[test]
fn a_migration_brings_what_only_snapshots_hold_into_the_new_mode() {
    // Guards against objects of the past that stay as they were stored, which the audit would not miss.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::bare_on(Some(Remote::s3(&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY)));
    let (url, pass) = (v.url(), v.text("passphrase"));
    v.ok(&["init", &url, "--passphrase-file", &pass, "--sse", "AES256"]);
    v.mount(&[]);
    let then = noise(1, 3 << 20);
    fs::write(v.at("f"), &then).expect("writes");
    v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
    fs::remove_file(v.at("f")).expect("removes");
    fs::write(v.at("g"), b"now").expect("writes");
    v.umount();
    for step in [Step::new("aws:kms", &["--sse-bucket-key"]), Step::customer(&v, 7)] {
        let to = ["sse", "migrate", &url, "--passphrase-file", &pass, "--to", step.mode];
        v.ok(&args(&to, &[&step.flags]));
        assert_all_in(&v, &step);
        let open = step.open();
        v.mount(&open.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(fs::read(v.at(".snapshots/monday/f")).expect("reads") == then, "{}", step.mode);
        v.umount();
    }
    let flags = Step::customer(&v, 7).open();
    v.mount(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    v.ok(&["snapshot", "restore", &v.text("vault"), "monday", "f"]);
    assert!(fs::read(v.at("f")).expect("reads") == then);
    v.umount();
}

/// A command as a user that is nobody; whether it succeeded.
fn as_nobody(args: &[&str]) -> bool {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).args(args);
    command.output().expect("setpriv runs").status.success()
}

/// A directory of what not every tool copies.
fn odd(at: &Path) {
    use std::os::unix::ffi::OsStrExt;
    fs::create_dir(at).expect("makes");
    fs::write(at.join("file"), b"with a list and attributes").expect("writes");
    run("setfattr", &["-n", "user.colour", "-v", "blue", "file"], at);
    run("setfacl", &["-m", "u:1234:rw", "file"], at);
    fs::hard_link(at.join("file"), at.join("linked")).expect("links");
    symlink("nowhere", at.join("symlink")).expect("links");
    fs::write(at.join(std::ffi::OsStr::from_bytes(b"\xff\xfe odd\n")), b"odd").expect("writes");
    fs::write(at.join("-rf"), b"a flag").expect("writes");
    let sparse = fs::File::create(at.join("sparse")).expect("makes");
    sparse.write_all_at(b"in the middle", 1 << 20).expect("writes");
    sparse.set_len(3 << 20).expect("grows");
    run("mkfifo", &["fifo"], at);
    drop(std::os::unix::net::UnixListener::bind(at.join("socket")).expect("binds"));
    if crate::e2e::is_root() {
        run("mknod", &["null", "c", "1", "3"], at);
        std::os::unix::fs::lchown(at.join("file"), Some(1234), Some(4321)).expect("chown");
        run("setfattr", &["-n", "trusted.of", "-v", "root", "file"], at);
    }
}

#[test]
fn tools_find_a_snapshot_as_the_volume_was_and_a_restore_brings_all_of_it_back() {
    // Guards against a snapshot that cp, rsync, tar, git, find or df take for something else than what
    // was there, against permissions that hold for the volume and not for its past, and against a
    // restore without attributes, ACLs, holes, devices, sockets, odd names or links, or with too many.
    needs_fuse!();
    let v = Volume::create();
    v.mount(&["-o", "allow_other,snapdir=visible,dev"]);
    let vault = v.vault();
    odd(&v.at("odd"));
    fs::create_dir(v.at("repo")).expect("makes");
    run("git", &["init", "-q", "-b", "main"], &v.at("repo"));
    for (name, bytes) in [("repo/a", b"a"), ("same 1", b"s"), ("same 2", b"s"), ("private", b"p")] {
        fs::write(v.at(name), bytes).expect("writes");
    }
    fs::set_permissions(v.at("private"), fs::Permissions::from_mode(0o600)).expect("chmod");
    run("git", &["add", "a"], &v.at("repo"));
    run("git", &["commit", "-q", "-m", "a"], &v.at("repo"));
    v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
    let monday = v.at(".snapshots/monday");
    let was = as_restored(&monday);

    let local = v.path("local");
    fs::create_dir(&local).expect("makes");
    let from = format!("{}/", monday.display());
    run("rsync", &["-aHAX", &from, "rsynced"], &local);
    assert_eq!(run("rsync", &["-aHAXin", "--checksum", &from, "rsynced/"], &local), "");
    run("cp", &["-a", &from, "copied"], &local);
    as_restored(&local.join("copied")).assert_same(&was, "cp -a");
    let tar = ["--xattrs", "--acls", "--sort=name", "-C", &from, "-cf", "all.tar", "."];
    run("tar", &tar, &local);
    run("tar", &["-C", &from, "-df", "all.tar"], &local);
    assert_eq!(run("git", &["status", "--porcelain"], &monday.join("repo")), "");
    run("git", &["fsck", "--strict"], &monday.join("repo"));
    run("git", &["clone", "-q", &format!("{from}repo"), "cloned"], &local);
    let found = run("find", &[from.as_str(), "-xdev", "-print0"], &local);
    assert_eq!(found.matches('\0').count(), was.0.len() + 1, "with its root");
    let used = |at: &Path| {
        let at = at.display().to_string();
        run("df", &["--output=used", "-B1", &at], &local)
    };
    assert_eq!(used(&monday), used(&vault));
    fs::write(v.at("more"), noise(9, 4 << 20)).expect("writes");
    assert_ne!(used(&monday), used(&vault), "it does not grow with the volume");
    if crate::e2e::is_root() {
        fs::set_permissions(v.path("."), fs::Permissions::from_mode(0o755)).expect("own directory");
        let at = |name: &str| monday.join(name).display().to_string();
        assert!(as_nobody(&["cat", &at("same 1")]) && as_nobody(&["ls", &at("repo")]));
        assert!(!as_nobody(&["cat", &at("private")]));
        assert!(!as_nobody(&["sh", "-c", &format!("echo > '{}'", at("same 1"))]));
    }

    // Everything goes, and two files that were apart become one.
    for entry in fs::read_dir(&vault).expect("lists") {
        let path = entry.expect("an entry").path();
        match path.file_name().is_some_and(|name| name == ".snapshots") {
            true => {}
            false if path.is_dir() => fs::remove_dir_all(path).expect("removes"),
            false => fs::remove_file(path).expect("removes"),
        }
    }
    v.ok(&["snapshot", "restore", &v.text("vault"), "monday"]);
    let present = |v: &Volume| {
        let mut all = as_restored(&v.vault());
        all.0.retain(|name, _| !name.starts_with(".snapshots"));
        all
    };
    present(&v).assert_same(&was, "all of it");
    fs::remove_file(v.at("same 2")).expect("removes");
    fs::hard_link(v.at("same 1"), v.at("same 2")).expect("links");
    v.ok(&["snapshot", "restore", &v.text("vault"), "monday", "same 1", "same 2"]);
    present(&v).assert_same(&was, "two files, not one with two names");
    let (at, inside) = (v.text("vault"), format!("{from}x"));
    let into = v.fails(&["snapshot", "restore", &at, "monday", "repo", "--to", &inside], 2);
    assert!(into.contains("nothing can be put into"), "{into}");
    v.umount();
    v.ok(&["fsck", &v.url(), "--data", "--passphrase-file", &v.text("passphrase")]);
}

#[test]
fn differences_of_names_that_are_no_text_can_be_read_by_a_program() {
    // Guards against two names that look alike in JSON, and one that cannot be found again.
    use std::os::unix::ffi::OsStrExt;
    needs_fuse!();
    let v = Volume::mounted();
    let odd = |bytes: &[u8]| v.vault().join(std::ffi::OsStr::from_bytes(bytes));
    fs::write(odd(b"\xff a"), b"1").expect("writes");
    v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
    fs::rename(odd(b"\xff a"), odd(b"\xfe\nb")).expect("renames");
    fs::write(odd(b"text"), b"2").expect("writes");
    let lines = v.ok(&["snapshot", "diff", &v.text("vault"), "monday", "--json"]);
    let all: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let one = |change: &str| all.iter().find(|d| d["change"] == change).expect(change);
    assert_eq!(one("renamed")["path_hex"], "fe0a62");
    assert_eq!(one("renamed")["from_hex"], "ff2061");
    assert_eq!((&one("added")["path"], one("added").get("path_hex")), (&"text".into(), None));
    v.umount();
}
