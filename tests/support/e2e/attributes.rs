//! Files with everything that is odd about attributes, made by ordinary tools where one exists.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::tools::run;
use super::{is_root, noise};

/// Makes them all in the directory `at`, which must not exist.
pub fn make(at: &Path) {
    fs::create_dir(at).expect("makes a directory");
    links(at);
    names(at);
    contents(at);
    nameless(at);
    exchanged(at);
    extended(at);
    if is_root() {
        owners_and_devices(at);
    } else {
        eprintln!("skipped: owners, devices and trusted attributes need root");
    }
    modes(at);
    times(at); // last: what comes after would change them
}

fn links(at: &Path) {
    fs::create_dir_all(at.join("links/below")).expect("makes directories");
    fs::write(at.join("links/one"), b"three names").expect("writes");
    for name in ["links/two", "links/below/three"] {
        fs::hard_link(at.join("links/one"), at.join(name)).expect("links");
    }
    let long = "long/".repeat(818) + "name"; // 4,094 bytes; PATH_MAX is 4,096 with its NUL
    let targets = ["one", "below", "/absent/absolute", "../dangling", "\u{1F4A1} blanks ", &long];
    for (n, target) in targets.iter().enumerate() {
        std::os::unix::fs::symlink(target, at.join(format!("links/sym{n}"))).expect("links");
    }
}

fn names(at: &Path) {
    let longest = [b'n'; 255];
    let odd: [&[u8]; 7] =
        [b"new\nline", b"\xff\xfenot utf-8", " blanks ".as_bytes(), b"-rf", b"*", b"\\", &longest];
    fs::create_dir(at.join("names")).expect("makes a directory");
    for name in odd {
        fs::write(at.join("names").join(OsStr::from_bytes(name)), name).expect("writes");
    }
}

fn contents(at: &Path) {
    fs::write(at.join("empty"), b"").expect("writes");
    let sparse = File::create(at.join("sparse")).expect("creates");
    sparse.write_all_at(b"middle", 5_000_000_000).expect("writes");
    sparse.set_len(9_000_000_000_000).expect("grows");
    sparse.set_len(6_000_000_000).expect("shrinks");
    // Shrunk over data and grown again: the old bytes must not come back.
    let regrown = File::create(at.join("regrown")).expect("creates");
    regrown.write_all_at(&noise(1, 300_000), 0).expect("writes");
    regrown.sync_all().expect("syncs");
    regrown.set_len(100_001).expect("shrinks");
    regrown.set_len(250_000).expect("grows");
    let punched = File::create(at.join("punched")).expect("creates");
    punched.write_all_at(&noise(2, 300_000), 0).expect("writes");
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open.
    let rc = unsafe { libc::fallocate(punched.as_raw_fd(), mode, 70_001, 100_000) };
    assert_eq!(rc, 0, "fallocate: {}", std::io::Error::last_os_error());
    let mut expected = noise(2, 300_000);
    expected[70_001..170_001].fill(0);
    assert!(fs::read(at.join("punched")).expect("reads") == expected, "punched hole");
    // Unlinked while open: usable, then gone.
    let mut orphan = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(at.join("orphan"))
        .expect("creates");
    fs::remove_file(at.join("orphan")).expect("unlinks");
    orphan.write_all(b"still here").expect("writes");
    let mut text = [0; 10];
    orphan.read_exact_at(&mut text, 0).expect("reads");
    assert_eq!(&text, b"still here");
}

/// `O_TMPFILE`, one named later, one never.
fn nameless(at: &Path) {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o640)
            .open(at)
            .expect("O_TMPFILE")
    };
    let (mut kept, mut dropped) = (open(), open());
    kept.write_all(b"made without a name").expect("writes");
    dropped.write_all(b"never had a name").expect("writes");
    let from = CString::new(format!("/proc/self/fd/{}", kept.as_raw_fd())).expect("no NUL");
    let to = c(&at.join("was nameless"));
    // SAFETY: both are NUL-terminated strings.
    let rc = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    assert_eq!(rc, 0, "linkat: {}", std::io::Error::last_os_error());
}

/// `RENAME_EXCHANGE` of a file and a directory that is not empty.
fn exchanged(at: &Path) {
    fs::create_dir(at.join("exchange")).expect("makes a directory");
    fs::write(at.join("exchange/a"), b"was a file").expect("writes");
    fs::create_dir(at.join("exchange/b")).expect("makes a directory");
    fs::write(at.join("exchange/b/inside"), b"was in b").expect("writes");
    let (a, b) = (c(&at.join("exchange/a")), c(&at.join("exchange/b")));
    // SAFETY: both are NUL-terminated strings.
    let rc = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    assert_eq!(rc, 0, "renameat2: {}", std::io::Error::last_os_error());
    assert_eq!(fs::read(at.join("exchange/a/inside")).expect("reads"), b"was in b");
    let mut text = String::new();
    let mut file = File::open(at.join("exchange/b")).expect("opens");
    file.read_to_string(&mut text).expect("reads");
    assert_eq!(text, "was a file");
}

fn extended(at: &Path) {
    fs::write(at.join("xattrs"), b"").expect("writes");
    let long = "v".repeat(4_000);
    for (name, value) in [("user.one", "1"), ("user.empty", ""), ("user.long", &long)] {
        run("setfattr", &["-n", name, "-v", value, "xattrs"], at);
    }
    run("setfattr", &["-n", "user.bytes", "-v", "0x00ff0a80", "xattrs"], at);
    run("setfattr", &["-n", "user.gone", "-v", "x", "xattrs"], at);
    run("setfattr", &["-x", "user.gone", "xattrs"], at);
    fs::create_dir(at.join("acl")).expect("makes a directory");
    run("setfacl", &["-d", "-m", "u:1234:rw,g::r", "acl"], at);
    fs::write(at.join("acl/inherits"), b"").expect("writes");
    run("setfacl", &["-m", "u:4321:rwx,m::rx", "acl/inherits"], at);
}

fn owners_and_devices(at: &Path) {
    for (name, owner) in
        [("user", "1000:1001"), ("nobody", "65534:65534"), ("high", "4000000000:7")]
    {
        let name = format!("owner {name}");
        fs::write(at.join(&name), b"").expect("writes");
        run("chown", &[owner, &name], at);
    }
    std::os::unix::fs::lchown(at.join("links/sym3"), Some(12), Some(34)).expect("lchown");
    run("setfattr", &["-n", "trusted.t", "-v", "trust", "xattrs"], at);
    run("setfattr", &["-h", "-n", "trusted.link", "-v", "on a link", "links/sym0"], at);
    run("mknod", &["null", "c", "1", "3"], at);
    run("mknod", &["block", "b", "259", "70000"], at);
    run("mkfifo", &["fifo"], at);
}

fn modes(at: &Path) {
    fs::create_dir(at.join("modes")).expect("makes a directory");
    for mode in [0o000, 0o111, 0o444, 0o640, 0o777, 0o4755, 0o2755, 0o6711, 0o1644] {
        let file = at.join(format!("modes/{mode:04o}"));
        if mode & 0o400 == 0 && !is_root() {
            continue; // its owner could not read it back
        }
        fs::write(&file, b"m").expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("chmod");
        let dir = at.join(format!("modes/dir {mode:04o}"));
        if mode & 0o500 == 0o500 || is_root() {
            fs::create_dir(&dir).expect("makes a directory");
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("chmod");
        }
    }
}

fn times(at: &Path) {
    for (name, time) in [
        ("time 1901", "1901-12-14 00:00:00.000000001"),
        ("time 1969", "1969-12-31 23:59:59.999999999"),
        ("time 1970", "1970-01-01 00:00:00"),
        ("time now", "2026-11-22 01:02:03.123456789"),
        ("time 2106", "2106-02-07 06:28:16.5"),
        ("time 2400", "2400-01-01 00:00:00.000000007"),
    ] {
        fs::write(at.join(name), b"").expect("writes");
        run("touch", &["-d", &format!("{time} UTC"), name], at);
    }
    run("touch", &["-h", "-d", "1955-11-05 06:00:00.25 UTC", "links/sym3"], at);
    run("touch", &["-d", "1944-06-06 05:30:00.125 UTC", "links/below"], at);
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path")
}
