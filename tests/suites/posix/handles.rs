//! File handles (`name_to_handle_at(2)`, `open_by_handle_at(2)`), by which NFS servers and backup
//! programs come back to a file without its name.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::sh;
use crate::needs_fuse;
use crate::suites::{Stand, needs_root};

/// How long a handle of what is gone may still open.
const STALE_WITHIN: Duration = Duration::from_secs(20);

/// `struct file_handle` with `MAX_HANDLE_SZ` bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Handle {
    len: u32,
    kind: i32,
    bytes: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let name = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let mut handle = Handle { len: 128, kind: 0, bytes: [0; 128] };
    let mut mount = 0;
    // SAFETY: a NUL-terminated string, a handle with as much room as it says, and a number.
    let rc = unsafe {
        let call = libc::SYS_name_to_handle_at;
        libc::syscall(call, libc::AT_FDCWD, name.as_ptr(), &raw mut handle, &raw mut mount, 0)
    };
    assert_eq!(rc, 0, "{path:?}: {}", io::Error::last_os_error());
    handle
}

fn open(mount: &File, handle: &Handle, flags: i32) -> io::Result<File> {
    let mut handle = *handle;
    let fd = mount.as_raw_fd();
    // SAFETY: a descriptor and a handle that outlive the call.
    let rc = unsafe { libc::syscall(libc::SYS_open_by_handle_at, fd, &raw mut handle, flags) };
    match i32::try_from(rc) {
        // SAFETY: the call has just made this descriptor.
        Ok(fd) if fd >= 0 => Ok(unsafe { File::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Linux has an inode for a moment longer than its last user has it open.
fn assert_stale(mount: &File, handle: &Handle, what: &str) {
    let begun = Instant::now();
    loop {
        match open(mount, handle, libc::O_PATH).map_err(|e| e.raw_os_error()) {
            Err(error) => break assert_eq!(error, Some(libc::ESTALE), "{what}"),
            Ok(file) => {
                let links = file.metadata().expect("stats").nlink();
                assert!(links == 0 && begun.elapsed() < STALE_WITHIN, "{what}: {links} links");
            }
        }
        drop_caches();
    }
}

fn drop_caches() {
    // The inodes that nobody has open go; twice, since a directory goes after what is in it.
    for _ in 0..2 {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("root may");
    }
}

/// What a handle must lead to: everything `stat` says that a listing does not change.
type Facts = (u64, u32, u64, u32, u64, u64, i64, i64);

fn facts(meta: &fs::Metadata) -> Facts {
    let (ino, mode, nlink, uid) = (meta.ino(), meta.mode(), meta.nlink(), meta.uid());
    (ino, mode, nlink, uid, meta.rdev(), meta.len(), meta.mtime(), meta.mtime_nsec())
}

fn read_link(fd: &File) -> OsString {
    let mut target = vec![0; 4096];
    // SAFETY: an empty string, and a buffer with as much room as is said.
    let len = unsafe {
        let room = target.len();
        libc::readlinkat(fd.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), room)
    };
    target.truncate(usize::try_from(len).expect("a symbolic link"));
    OsString::from_vec(target)
}

fn assert_same(mount: &File, path: &Path, handle: &Handle, want: &Facts) {
    let found = open(mount, handle, libc::O_PATH).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let meta = found.metadata().expect("stats");
    assert_eq!(facts(&meta), *want, "{path:?}");
    if meta.is_symlink() {
        assert_eq!(read_link(&found), fs::read_link(path).expect("reads"), "{path:?}");
    } else if meta.is_file() {
        let mut contents = Vec::new();
        let mut file = open(mount, handle, libc::O_RDONLY).expect("opens");
        file.read_to_end(&mut contents).expect("reads");
        assert!(contents == fs::read(path).expect("reads"), "{path:?}");
    } else if meta.is_dir() {
        // Linux has found its way to the root, through "..".
        let through = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()));
        assert_eq!(through.expect("its path"), path);
    }
}

#[test]
fn a_handle_leads_to_its_file_when_nobody_knows_the_file_any_more() {
    // Guards against ESTALE, with which nothing can be exported by NFS, for what the kernel, the
    // daemon or this machine has forgotten; and against handles that reach what they never named.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let stand = Stand::new();
    let vault = fs::canonicalize(stand.volume.vault()).expect("is there");
    let scratch = vault.join("scratch");
    fs::create_dir(&scratch).expect("makes");
    let mut paths = vec![vault.clone()];
    let mut make = |name: &str, make: &dyn Fn(&PathBuf)| {
        let path = vault.join(name);
        make(&path);
        paths.push(path);
    };
    make("d", &|p| fs::create_dir(p).expect("makes"));
    make("d/sub", &|p| fs::create_dir(p).expect("makes"));
    make("d/sub/deep", &|p| fs::create_dir_all(p).expect("makes"));
    for n in 0..80 {
        let dir = ["", "d/", "d/sub/", "d/sub/deep/"][n % 4];
        make(&format!("{dir}f{n}"), &|p| fs::write(p, format!("{n}").repeat(n)).expect("writes"));
        make(&format!("{dir}l{n}"), &|p| symlink(format!("to-{n}"), p).expect("links"));
        make(&format!("{dir}p{n}"), &|p| {
            sh(&vault, &format!("mkfifo {}", p.display())).expect("makes");
        });
        make(&format!("{dir}e{n}"), &|p| fs::create_dir(p).expect("makes"));
    }
    make("hard", &|p| fs::hard_link(p.with_file_name("d/f1"), p).expect("links"));
    sh(&vault, "mknod null c 1 3; mknod b b 7 9").expect("root may");
    make("socket", &|p| drop(std::os::unix::net::UnixListener::bind(p).expect("binds")));
    paths.extend(["null", "b"].map(|name| vault.join(name)));
    let known: Vec<(PathBuf, Handle, Facts)> = paths
        .into_iter()
        .map(|path| {
            let meta = fs::symlink_metadata(&path).expect("stats");
            (path.clone(), handle_of(&path), facts(&meta))
        })
        .collect();
    let all_lead_back = || {
        let mount = File::open(&vault).expect("opens");
        drop_caches();
        for (path, handle, want) in &known {
            assert_same(&mount, path, handle, want);
        }
    };
    all_lead_back();

    // What is gone, never was, or is another file's of the same number, is stale.
    let (gone, gone_dir) = (scratch.join("gone"), scratch.join("gone-dir"));
    fs::write(&gone, "x").expect("writes");
    fs::create_dir(&gone_dir).expect("makes");
    let (handle, dir_handle) = (handle_of(&gone), handle_of(&gone_dir));
    let held = File::open(&gone).expect("opens");
    fs::remove_file(&gone).expect("unlinks");
    fs::remove_dir(&gone_dir).expect("removes");
    drop_caches();
    let mount = File::open(&vault).expect("opens");
    let mut same = open(&mount, &handle, libc::O_RDONLY).expect("open, so not gone yet");
    let mut text = String::new();
    same.read_to_string(&mut text).expect("reads");
    assert_eq!((text.as_str(), same.metadata().expect("stats").nlink()), ("x", 0));
    drop((held, same));
    drop_caches();
    assert_stale(&mount, &handle, "a removed file");
    assert_stale(&mount, &dir_handle, "a removed directory");
    let (_, mut other, _) = known[7];
    assert_eq!(other.len, 12, "inode number 8, generation 4");
    other.bytes[8] ^= 1;
    assert_stale(&mount, &other, "another generation");
    other.bytes[..8].fill(0x7f);
    assert_stale(&mount, &other, "a number that no inode has");
    drop(mount);

    // The numbers are the volume's: another daemon, here and on another machine, knows them.
    stand.move_elsewhere();
    all_lead_back();
    let mount = File::open(&vault).expect("opens");
    assert_stale(&mount, &handle, "a removed file, elsewhere");
    drop(mount);
    stand.close();
}
