//! `flock` and `fcntl` locks between processes.

use std::fs;

use super::{Process, sh};
use crate::mounts::wait_until;
use crate::needs_fuse;
use crate::suites::Stand;

/// `F_SETLK` for `kind` on `len` bytes from `start` on of `f`.
fn lock(command: &str, kind: &str, start: u32, len: u32) -> String {
    format!(
        "fcntl.fcntl(f, fcntl.{command}, struct.pack('hhqqi', fcntl.{kind}, 0, {start}, {len}, 0)) and 'ok'"
    )
}

fn with_file(stand: &Stand) -> Process {
    let mut process = Process::new(&stand.volume.vault());
    assert_eq!(
        process.ask("globals().update(f=os.open('f', os.O_RDWR | os.O_CREAT, 0o644))"),
        "None"
    );
    process
}

#[test]
fn byte_range_locks_exclude_other_processes_until_their_holder_is_killed() {
    // Guards against locks that only the process that took them sees, that span the wrong bytes,
    // or that outlive a holder killed with -9.
    needs_fuse!();
    let stand = Stand::new();
    let (mut a, mut b) = (with_file(&stand), with_file(&stand));
    assert_eq!(a.ask(&lock("F_SETLK", "F_WRLCK", 10, 10)), "ok");
    assert_eq!(a.ask(&lock("F_SETLK", "F_RDLCK", 100, 0)), "ok");
    assert_eq!(b.ask(&lock("F_SETLK", "F_WRLCK", 0, 10)), "ok");
    assert_eq!(b.ask(&lock("F_SETLK", "F_RDLCK", 19, 1)), "EAGAIN");
    assert_eq!(b.ask(&lock("F_SETLK", "F_WRLCK", 20, 80)), "ok");
    assert_eq!(b.ask(&lock("F_SETLK", "F_RDLCK", 5_000, 1)), "ok");
    assert_eq!(b.ask(&lock("F_SETLK", "F_WRLCK", 6_000, 1)), "EAGAIN");
    let holder = "struct.unpack('hhqqi', fcntl.fcntl(f, fcntl.F_GETLK, \
                  struct.pack('hhqqi', fcntl.F_WRLCK, 0, 15, 1, 0)))";
    let expected = format!("(1, 0, 10, 10, {})", a.pid());
    assert_eq!(b.ask(holder), expected);
    // One that waits gets it when the holder is gone, not before.
    b.tell(&lock("F_SETLKW", "F_WRLCK", 0, 0));
    let mut c = with_file(&stand);
    assert_eq!(c.ask(&lock("F_SETLK", "F_RDLCK", 15, 1)), "EAGAIN");
    a.kill();
    assert_eq!(b.answer(), "ok");
    assert_eq!(c.ask(&lock("F_SETLK", "F_RDLCK", 15, 1)), "EAGAIN");
    assert_eq!(b.ask(&lock("F_SETLK", "F_UNLCK", 0, 0)), "ok");
    assert_eq!(c.ask(&lock("F_SETLK", "F_RDLCK", 15, 1)), "ok");
    drop((b, c));
    stand.close();
}

#[test]
fn two_processes_that_wait_for_each_other_are_told_so() {
    // Guards against a deadlock of byte range locks that lasts for ever.
    needs_fuse!();
    let stand = Stand::new();
    let (mut a, mut b) = (with_file(&stand), with_file(&stand));
    assert_eq!(a.ask(&lock("F_SETLK", "F_WRLCK", 0, 1)), "ok");
    assert_eq!(b.ask(&lock("F_SETLK", "F_WRLCK", 1, 1)), "ok");
    a.tell(&lock("F_SETLKW", "F_WRLCK", 1, 1));
    let waits = || {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        locks.lines().any(|l| l.contains("->") && l.contains(&format!(" {} ", a.pid())))
    };
    wait_until("one waits for the other", waits);
    assert_eq!(b.ask(&lock("F_SETLKW", "F_WRLCK", 0, 1)), "EDEADLOCK"); // Linux: EDEADLK
    assert_eq!(b.ask(&lock("F_SETLK", "F_UNLCK", 0, 0)), "ok");
    assert_eq!(a.answer(), "ok");
    drop((a, b));
    stand.close();
}

#[test]
fn whole_file_locks_are_shared_upgraded_and_released_on_kill() {
    // Guards against flock that does nothing, that ends with another descriptor of the file, or
    // that mixes with byte range locks.
    needs_fuse!();
    let stand = Stand::new();
    let (mut a, mut b) = (with_file(&stand), with_file(&stand));
    let flock = |how: &str| format!("fcntl.flock(f, fcntl.{how})");
    assert_eq!(a.ask(&flock("LOCK_SH")), "None");
    assert_eq!(b.ask(&flock("LOCK_SH")), "None");
    assert_eq!(a.ask(&flock("LOCK_EX | fcntl.LOCK_NB")), "EAGAIN");
    assert_eq!(b.ask(&flock("LOCK_UN")), "None");
    assert_eq!(a.ask(&flock("LOCK_EX | fcntl.LOCK_NB")), "None");
    assert_eq!(a.ask("os.close(os.open('f', os.O_RDONLY))"), "None");
    assert_eq!(b.ask(&flock("LOCK_SH | fcntl.LOCK_NB")), "EAGAIN");
    // Linux keeps the two kinds apart on a local file system.
    assert_eq!(b.ask(&lock("F_SETLK", "F_WRLCK", 0, 0)), "ok");
    b.tell(&flock("LOCK_EX"));
    a.kill();
    assert_eq!(b.answer(), "None");
    drop(b);
    stand.close();
}

#[test]
fn sqlite_git_and_dpkg_keep_others_out_as_they_do_on_a_disk() {
    // Guards against lock patterns of programs: SQLite's bytes behind 1 GiB, git's lock files
    // made with O_EXCL and renamed, dpkg's fcntl lock of a whole file.
    needs_fuse!();
    let stand = Stand::new();
    let vault = stand.volume.vault();
    let mut holder = Process::new(&vault);
    assert_eq!(holder.ask("globals().update(sqlite3=__import__('sqlite3'))"), "None");
    let open = "globals().update(db=sqlite3.connect('db', isolation_level=None))";
    assert_eq!(holder.ask(open), "None");
    assert_eq!(holder.ask("db.execute('create table t(n)') and 1"), "1");
    assert_eq!(holder.ask("db.execute('begin exclusive') and 1"), "1");
    let locked = sh(&vault, "sqlite3 db 'insert into t values(1)'").expect_err("it is locked");
    assert!(locked.contains("locked"), "{locked}");
    holder.kill();
    sh(&vault, "sqlite3 db 'insert into t values(1)'").expect("the lock went with its holder");

    sh(&vault, "git init -q r && cd r && git config user.email t@t && git config user.name t")
        .expect("git init");
    // Two at once on one index: each `git add` works or says that the other one has the lock.
    let add =
        "cd r; for n in $(seq 40); do echo $n > $0-$n; git add $0-$n 2>> ../$0.err || :; done";
    let two = format!("(sh -c '{add}' a) & (sh -c '{add}' b); wait");
    sh(&vault, &two).expect("both end");
    let errors = sh(&vault, "cat a.err b.err").expect("reads");
    let other = errors.lines().find(|l| l.starts_with("fatal") && !l.contains("index.lock"));
    assert_eq!(other, None, "{errors}");
    sh(&vault, "cd r && git add -A && git commit -qm all && git fsck --strict").expect("whole");
    assert_eq!(sh(&vault, "cd r && git ls-files | wc -l").expect("lists"), "80");

    let mut dpkg = with_file(&stand);
    assert_eq!(dpkg.ask(&lock("F_SETLK", "F_WRLCK", 0, 0)), "ok");
    let mut other = with_file(&stand);
    assert_eq!(other.ask(&lock("F_SETLK", "F_WRLCK", 0, 0)), "EAGAIN");
    drop((dpkg, other));
    stand.close();
}
