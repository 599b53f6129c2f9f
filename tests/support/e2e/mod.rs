//! What the end-to-end tests share: stores to mount, the load that ordinary tools make, and
//! the manifest that a mount is compared by.
#![allow(dead_code)] // each test file uses a part of it

pub mod attributes;
pub mod manifest;
pub mod rgw;
pub mod tools;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::mounts::Remote;
use crate::support::s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

/// A prefix on an in-process server.
pub fn remote(server: &S3Server) -> Option<Remote> {
    Some(Remote::s3(&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY))
}

/// Whether this process may chown, mknod and set `trusted.` attributes.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether the whole load was asked for (`SEALFS_TEST_FULL=1`).
pub fn is_full() -> bool {
    std::env::var_os("SEALFS_TEST_FULL").is_some_and(|v| v == "1")
}

/// Makes the kernel forget the contents of a file, so that the next read asks the daemon.
pub fn drop_pages(path: &Path) {
    let file = File::open(path).expect("opens");
    let len = file.metadata().expect("has attributes").size() as i64;
    // SAFETY: the descriptor is open; the call only advises.
    let r = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, len, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(r, 0, "posix_fadvise");
}

/// `len` bytes that do not compress and differ from place to place and seed to seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = vec![0; len];
    for eight in bytes.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        eight.copy_from_slice(&x.to_le_bytes()[..eight.len()]);
    }
    bytes
}
