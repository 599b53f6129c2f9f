//! Small files through a real mount: what the kernel is given before it asks, and that it never is
//! what a program has changed meanwhile.

use crate::needs_fuse;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Barrier;

use crate::e2e::noise;
use crate::mounts::Volume;

/// How often the kernel has asked for an operation.
fn asked(v: &Volume, operation: &str) -> u64 {
    let json = v.ok(&["stats", "--json", &v.text("vault")]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let operations = json["fuse"]["operations"].as_array().expect("operations").iter();
    let found = operations.filter(|o| o["name"] == operation);
    let counts = found.flat_map(|o| o["times"]["counts"].as_array().expect("counts"));
    counts.map(|n| n.as_u64().expect("a number")).sum()
}

/// Mounts again, so that neither the kernel nor memory has anything.
fn mount_again(v: &Volume, options: &[&str]) {
    v.umount();
    v.mount(options);
}

fn len_of(n: u64) -> usize {
    1 + (n as usize * 977) % 20_000
}

#[test]
fn small_files_are_read_without_a_read_of_each() {
    // Guards against a request that the reader waits for with every file, whose bytes memory had when it
    // was opened; and against other bytes, or bytes behind the end, that are given in place of them.
    needs_fuse!();
    let v = Volume::mounted();
    let files = 200;
    for n in 0..files {
        fs::write(v.at(&format!("f{n:03}")), noise(n, len_of(n))).expect("writes");
    }
    mount_again(&v, &[]);
    for n in 0..files {
        let path = v.at(&format!("f{n:03}"));
        if n % 10 == 3 {
            // Past the page cache.
            let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
            let mut bytes = vec![0; 1 + len_of(n)];
            let file = direct.expect("opens");
            assert_eq!(file.read_at(&mut bytes, 0).expect("reads"), len_of(n));
        }
        assert!(fs::read(&path).expect("reads") == noise(n, len_of(n)), "{n} has other bytes");
        let mapped = mapped(&path, len_of(n));
        assert!(mapped[..len_of(n)] == noise(n, len_of(n))[..], "{n} is mapped with other bytes");
        assert!(mapped[len_of(n)..].iter().all(|b| *b == 0), "{n} has bytes behind its end");
    }
    let (opens, reads) = (asked(&v, "open"), asked(&v, "read"));
    assert!(opens >= files, "{opens} opened");
    assert!(reads <= files / 2, "{reads} reads of {files} files");
    v.umount();
}

/// The pages of a mapping, the rest of the last one included.
fn mapped(path: &Path, len: usize) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let file = File::open(path).expect("opens");
    let pages = len.next_multiple_of(4096);
    let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
    // SAFETY: a new mapping; it is read within its pages, all of which hold bytes of the file, and
    // unmapped afterwards.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), pages, prot, flags, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED, "maps");
        let bytes = std::slice::from_raw_parts(at.cast::<u8>(), pages).to_vec();
        libc::munmap(at, pages);
        bytes
    }
}

/// Changes a file of `noise(n, len_of(n))` in one of several ways; what it has then.
fn change(path: &Path, n: u64) -> Vec<u8> {
    let (mut has, new) = (noise(n, len_of(n)), noise(n + 1_000_000, 3_000));
    let open = |options: &mut OpenOptions| options.open(path).expect("opens");
    match n % 6 {
        0 => {
            let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
            // SAFETY: a NUL-terminated string.
            assert_eq!(unsafe { libc::truncate(path.as_ptr(), 10) }, 0);
            has.resize(10, 0);
        }
        1 => {
            let file = open(OpenOptions::new().write(true));
            file.write_all_at(&new, 0).expect("writes");
            has.splice(..has.len().min(new.len()), new.iter().copied());
            // Dirty while others open it.
            File::open(path).expect("opens").read_to_end(&mut Vec::new()).expect("reads");
        }
        2 => {
            open(OpenOptions::new().write(true).truncate(true)).write_all(&new).expect("writes");
            has = new;
        }
        3 => {
            open(OpenOptions::new().append(true)).write_all(&new).expect("writes");
            has.extend_from_slice(&new);
        }
        4 => {
            let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
            // SAFETY: a NUL-terminated string.
            assert_eq!(unsafe { libc::truncate(path.as_ptr(), 30_000) }, 0);
            has.resize(30_000, 0);
        }
        _ => {
            let file = open(OpenOptions::new().write(true).create(true));
            file.set_len(5).expect("truncates");
            file.write_all_at(&new, 100).expect("writes");
            has.resize(5, 0);
            has.resize(100, 0);
            has.extend_from_slice(&new);
        }
    }
    has
}

#[test]
fn what_is_changed_while_it_is_opened_to_be_read_stays_changed() {
    // Guards against bytes of before a change that are put over it, and against a file that is as long
    // again as before it was truncated: the kernel is given the bytes when the file is opened, and
    // another program changes it in that moment.
    needs_fuse!();
    let v = Volume::mounted();
    let files = 300;
    for n in 0..files {
        fs::write(v.at(&format!("f{n:03}")), noise(n, len_of(n))).expect("writes");
    }
    mount_again(&v, &[]);
    let mut expected = Vec::new();
    let both = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..files {
                let path = v.at(&format!("f{n:03}"));
                both.wait();
                for _ in 0..3 {
                    drop(File::open(&path).expect("opens"));
                }
                let _ = fs::read(&path).expect("reads");
            }
        });
        for n in 0..files {
            let path = v.at(&format!("f{n:03}"));
            both.wait();
            expected.push(change(&path, n));
        }
    });
    for again in [false, true] {
        if again {
            mount_again(&v, &[]);
        }
        for (n, has) in expected.iter().enumerate() {
            let path = v.at(&format!("f{n:03}"));
            assert_eq!(path.metadata().expect("is there").size(), has.len() as u64, "{n}, {again}");
            assert!(fs::read(&path).expect("reads") == *has, "{n} has other bytes, {again}");
        }
    }
    v.umount();
}
