//! What programs expect of a file system, asked of a real mount through the kernel: the corners
//! that untar, editors and databases rely on.

use crate::needs_fuse;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::mounts::Volume;

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

/// The error number of the last libc call if `rc` says that it failed.
fn errno(rc: i64) -> Option<i32> {
    (rc < 0).then(|| std::io::Error::last_os_error().raw_os_error().expect("an errno"))
}

fn rename2(from: &Path, to: &Path, flags: u32) -> Option<i32> {
    let (from, to) = (c(from), c(to));
    // SAFETY: both are NUL-terminated strings.
    let rc = unsafe {
        libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    };
    errno(rc.into())
}

fn set_mtime(path: &Path, secs: i64, nanos: i64) {
    let times = [
        libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        libc::timespec { tv_sec: secs, tv_nsec: nanos },
    ];
    let path = c(path);
    // SAFETY: a NUL-terminated string and two timespecs.
    let rc = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) };
    assert_eq!(errno(rc.into()), None);
}

#[test]
fn rename_flags_and_rename_over_open_files() {
    // Guards against an editor's atomic save that loses either file, and against RENAME_EXCHANGE
    // or RENAME_NOREPLACE done as a plain rename.
    needs_fuse!();
    let v = Volume::mounted();
    let (a, b) = (v.at("a"), v.at("b"));
    fs::write(&a, "a").expect("writes");
    fs::write(&b, "b").expect("writes");
    assert_eq!(rename2(&a, &b, libc::RENAME_NOREPLACE), Some(libc::EEXIST));
    assert_eq!(rename2(&a, &b, libc::RENAME_EXCHANGE), None);
    assert_eq!(fs::read_to_string(&a).expect("reads"), "b");
    assert_eq!(rename2(&a, &b, libc::RENAME_WHITEOUT), Some(libc::EINVAL));
    let mut open = File::open(&b).expect("opens");
    fs::rename(&a, &b).expect("renames over");
    let mut old = String::new();
    open.read_to_string(&mut old).expect("the old file is still open");
    assert_eq!(old, "a");
    assert_eq!(fs::read_to_string(&b).expect("reads"), "b");
    assert_eq!(open.metadata().expect("stats").nlink(), 0);
    // A directory onto a non-empty one, and below itself.
    fs::create_dir_all(v.at("d/e")).expect("makes");
    fs::create_dir(v.at("f")).expect("makes");
    assert_eq!(rename2(&v.at("f"), &v.at("d"), 0), Some(libc::ENOTEMPTY));
    assert_eq!(rename2(&v.at("d"), &v.at("d/e/g"), 0), Some(libc::EINVAL));
    drop(open);
    v.umount();
}

#[test]
fn a_file_without_a_name_can_be_given_one() {
    // Guards against O_TMPFILE missing, and against its file vanishing or leaking.
    needs_fuse!();
    let v = Volume::mounted();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o640)
        .custom_flags(libc::O_TMPFILE)
        .open(v.vault())
        .expect("O_TMPFILE");
    file.write_all(b"content").expect("writes");
    assert_eq!(fs::read_dir(v.vault()).expect("lists").count(), 0);
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no NUL");
    let to = c(&v.at("named"));
    // SAFETY: both are NUL-terminated strings.
    let rc = unsafe {
        let cwd = libc::AT_FDCWD;
        libc::linkat(cwd, from.as_ptr(), cwd, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    };
    assert_eq!(errno(rc.into()), None);
    drop(file);
    assert_eq!(fs::read(v.at("named")).expect("reads"), b"content");
    v.umount();
    v.mount(&[]);
    let meta = fs::metadata(v.at("named")).expect("stats");
    assert_eq!((meta.mode() & 0o777, meta.nlink(), meta.len()), (0o640, 1, 7));
    v.umount();
}

#[test]
fn unlinked_files_live_while_they_are_open() {
    // Guards against temporary files (unlinked at once) whose data is gone or kept for ever.
    needs_fuse!();
    let v = Volume::mounted();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(v.at("gone"))
        .expect("creates");
    fs::remove_file(v.at("gone")).expect("unlinks");
    file.write_all_at(b"0123456789", 100_000).expect("writes");
    file.sync_all().expect("syncs");
    file.set_len(100_004).expect("truncates");
    let mut four = [0; 4];
    file.read_exact_at(&mut four, 100_000).expect("reads");
    assert_eq!(&four, b"0123");
    drop(file);
    v.umount();
}

#[test]
fn times_reach_back_before_1970_to_the_nanosecond() {
    // Guards against a half second before 1970 that comes back one second early, through
    // memory and through the bucket.
    needs_fuse!();
    let v = Volume::mounted();
    fs::write(v.at("f"), "x").expect("writes");
    for (secs, nanos) in [(-1, 500_000_000), (-2, 1), (0, 0), (253_402_300_799, 999_999_999)] {
        set_mtime(&v.at("f"), secs, nanos);
        let meta = fs::metadata(v.at("f")).expect("stats");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (secs, nanos));
    }
    set_mtime(&v.at("f"), -1, 500_000_000);
    v.umount();
    v.mount(&[]);
    let meta = fs::metadata(v.at("f")).expect("stats");
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-1, 500_000_000));
    v.umount();
}

#[test]
fn set_user_bits_go_when_another_writes_or_the_owner_changes() {
    // Guards against a set-user-id program that stays one after it was overwritten or given
    // away: with FUSE_HANDLE_KILLPRIV_V2 that is our work, not the kernel's.
    needs_fuse!();
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root can change owners");
        return;
    }
    let v = Volume::mounted();
    let path = v.at("program");
    fs::write(&path, "x").expect("writes");
    let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    let mode = || fs::metadata(&path).expect("stats").mode() & 0o7777;
    set(0o6755);
    assert_eq!(mode(), 0o6755);
    std::os::unix::fs::chown(&path, Some(1), Some(1)).expect("chown");
    assert_eq!(mode(), 0o755);
    set(0o4777);
    // Root may keep them when it writes (CAP_FSETID), another user not.
    fs::write(&path, "by root").expect("writes");
    assert_eq!(mode(), 0o4777);
    set(0o4777);
    let status = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"])
        .arg(format!("echo x >> {}", path.display()))
        .status();
    if status.is_ok_and(|s| s.success()) {
        assert_eq!(mode(), 0o777);
    }
    v.umount();
}

#[test]
fn a_big_directory_lists_every_name_once_while_it_changes() {
    // Guards against entries that are missed or doubled when names come and go during a listing.
    needs_fuse!();
    let v = Volume::mounted();
    let dir = v.at("many");
    fs::create_dir(&dir).expect("makes");
    for n in 0..5000 {
        File::create(dir.join(format!("stays-{n}"))).expect("creates");
    }
    let mut seen = std::collections::BTreeMap::new();
    for (i, entry) in fs::read_dir(&dir).expect("lists").enumerate() {
        let name = entry.expect("an entry").file_name().into_string().expect("ASCII");
        *seen.entry(name).or_insert(0) += 1;
        if i % 50 == 0 {
            File::create(dir.join(format!("comes-{i}"))).expect("creates");
            if i >= 500 {
                fs::remove_file(dir.join(format!("comes-{}", i - 500))).expect("unlinks");
            }
        }
    }
    for n in 0..5000 {
        assert_eq!(seen.get(&format!("stays-{n}")), Some(&1), "stays-{n}");
    }
    assert!(seen.values().all(|&n| n == 1));
    fs::remove_dir_all(&dir).expect("removes all");
    assert!(!dir.exists());
    v.umount();
}

#[test]
fn holes_are_found_punched_and_kept() {
    // Guards against sparse files that grow to their full size, and against fallocate modes
    // that claim success without effect.
    needs_fuse!();
    let v = Volume::mounted();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(v.at("sparse"))
        .expect("creates");
    let mib = 1u64 << 20;
    file.write_all_at(&vec![1; mib as usize], 4 * mib).expect("writes");
    file.set_len(16 * mib).expect("extends");
    file.sync_all().expect("syncs");
    let seek = |whence, from: u64| {
        // SAFETY: the descriptor is open.
        let at = unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) };
        errno(at).map_or(Ok(at as u64), Err)
    };
    assert_eq!(seek(libc::SEEK_DATA, 0), Ok(4 * mib));
    assert_eq!(seek(libc::SEEK_HOLE, 4 * mib), Ok(5 * mib));
    assert_eq!(seek(libc::SEEK_DATA, 6 * mib), Err(libc::ENXIO));
    let fallocate = |mode, from: u64, len: u64| {
        // SAFETY: the descriptor is open.
        let rc = unsafe { libc::fallocate(file.as_raw_fd(), mode, from as i64, len as i64) };
        errno(rc.into())
    };
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(punch, 4 * mib, mib / 2), None);
    assert_eq!(fallocate(libc::FALLOC_FL_ZERO_RANGE, 5 * mib - 1, 2), None);
    assert_eq!(fallocate(libc::FALLOC_FL_KEEP_SIZE, 16 * mib, mib), None);
    assert_eq!(file.metadata().expect("stats").len(), 16 * mib);
    assert_eq!(fallocate(0, 16 * mib, mib), None);
    assert_eq!(file.metadata().expect("stats").len(), 17 * mib);
    let mut data = Vec::new();
    file.seek(SeekFrom::Start(4 * mib)).expect("seeks");
    Read::by_ref(&mut file).take(mib).read_to_end(&mut data).expect("reads");
    let half = data.len() / 2;
    assert!(data[..half].iter().all(|&b| b == 0));
    assert!(data[half..data.len() - 1].iter().all(|&b| b == 1));
    assert_eq!(data.last(), Some(&0));
    drop(file);
    v.umount();
}

#[test]
fn copies_within_the_mount_and_direct_and_synchronous_writes() {
    // Guards against data that differs by the way it was written.
    needs_fuse!();
    let v = Volume::mounted();
    let data: Vec<u8> = (0..2_000_003u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(v.at("from"), &data).expect("writes");
    let from = File::open(v.at("from")).expect("opens");
    let to = File::create(v.at("to")).expect("creates");
    let (mut at, mut out) = (3i64, 0i64);
    loop {
        // SAFETY: open descriptors, and pointers to two offsets.
        let n = unsafe {
            let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
            libc::copy_file_range(from, &mut at, to, &mut out, 1 << 30, 0)
        };
        assert_eq!(errno(n as i64), None);
        if n == 0 {
            break;
        }
    }
    assert!(fs::read(v.at("to")).expect("reads") == data[3..]);
    let mut sync = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DSYNC)
        .open(v.at("sync"))
        .expect("creates");
    sync.write_all(&data).expect("writes");
    assert!(fs::read(v.at("sync")).expect("reads") == data);
    let mut append = OpenOptions::new().append(true).open(v.at("sync")).expect("opens");
    append.write_all(b"end").expect("appends");
    assert!(fs::read(v.at("sync")).expect("reads").ends_with(b"end"));
    drop((from, to, sync, append));
    v.umount();
}

#[test]
fn names_links_and_special_files_follow_posix() {
    // Guards against the small print: long names, link counts, devices, fifos, symlinks.
    needs_fuse!();
    let v = Volume::mounted();
    let long = "n".repeat(255);
    fs::write(v.at(&long), "x").expect("255 bytes fit");
    let error = fs::write(v.at(&"n".repeat(256)), "x").expect_err("256 do not");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    fs::hard_link(v.at(&long), v.at("link")).expect("links");
    assert_eq!(fs::metadata(v.at("link")).expect("stats").nlink(), 2);
    fs::create_dir(v.at("d")).expect("makes");
    let links = fs::metadata(v.vault()).expect("stats").nlink();
    assert_eq!(links, 3, "a directory counts its subdirectories");
    let target = "t".repeat(4095);
    std::os::unix::fs::symlink(&target, v.at("symlink")).expect("links");
    assert_eq!(fs::read_link(v.at("symlink")).expect("reads").as_os_str().len(), 4095);
    let fifo = c(&v.at("fifo"));
    // SAFETY: a NUL-terminated string.
    assert_eq!(errno(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }.into()), None);
    assert_eq!(
        fs::remove_dir(v.at("fifo")).expect_err("no directory").raw_os_error(),
        Some(libc::ENOTDIR)
    );
    assert_eq!(
        fs::remove_file(v.at("d")).expect_err("a directory").raw_os_error(),
        Some(libc::EISDIR)
    );
    // A file created without write permission can be written by its creator's descriptor.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(v.at("read-only"))
        .expect("creates");
    file.write_all(b"x").expect("writes");
    drop(file);
    v.umount();
    v.mount(&[]);
    assert_eq!(fs::metadata(v.at("link")).expect("stats").nlink(), 2);
    assert_eq!(fs::read_link(v.at("symlink")).expect("reads").as_os_str().len(), 4095);
    v.umount();
}

#[test]
fn xattrs_and_acls_are_kept_and_obeyed() {
    // Guards against an ACL that is stored but does not change who may read, and against a
    // default ACL that new files ignore.
    needs_fuse!();
    let v = Volume::mounted();
    fs::write(v.at("f"), "x").expect("writes");
    fs::create_dir(v.at("d")).expect("makes");
    let run = |command: &str| {
        let output = std::process::Command::new("sh")
            .args(["-ec", command])
            .current_dir(v.vault())
            .output()
            .expect("sh runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    if run("command -v setfacl setfattr getfattr | wc -l").trim() != "3" {
        eprintln!("skipped: setfacl and setfattr are missing (scripts/test installs them)");
        v.umount();
        return;
    }
    run("setfattr -n user.color -v blue f; chmod 600 f; setfacl -m u:12345:r f");
    run("setfacl -d -m u:12345:rwx,m::rwx d; touch d/new");
    assert_eq!(run("stat -c %a f").trim(), "640", "the mask shows as the group's bits");
    v.umount();
    v.mount(&[]);
    assert_eq!(run("getfattr --only-values -n user.color f"), "blue");
    assert!(run("getfacl -cn f").contains("user:12345:r--"));
    assert!(run("getfacl -cn d/new").contains("user:12345:rw"), "{}", run("getfacl -cn d/new"));
    run("setfattr -x user.color f");
    assert!(!run("getfattr -d f").contains("color"));
    v.umount();
}
