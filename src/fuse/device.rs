//! One descriptor of `/dev/fuse`: requests in, replies out.
//!
//! Each request thread owns one descriptor, cloned from the mount's, so that threads do not
//! contend for one queue of requests under way. The kernel finds the request of a reply by the
//! descriptor it was read from: a reply must go out through the same one, from any thread.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::abi::OUT_HEADER_LEN;

/// `FUSE_DEV_IOC_CLONE`, `_IOR(229, 0, uint32_t)`.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// A descriptor of the mount's connection.
#[derive(Debug)]
pub struct Device(File);

/// What reading the next request came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A request of this many bytes is in the buffer.
    Request(usize),
    /// The filesystem is unmounted or its connection aborted; nothing will ever come.
    Ended,
}

impl Device {
    /// A new descriptor of the connection `mount` belongs to (Linux 4.2), or a duplicate of
    /// `mount` where the kernel refuses that.
    pub fn clone_of(mount: BorrowedFd<'_>) -> io::Result<Device> {
        let open = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if let Ok(file) = open {
            let mut source = mount.as_raw_fd() as u32;
            // SAFETY: the ioctl reads one u32 through the pointer, which outlives the call.
            let rc = unsafe { libc::ioctl(file.as_raw_fd(), FUSE_DEV_IOC_CLONE, &mut source) };
            if rc == 0 {
                return Ok(Device(file));
            }
        }
        Ok(Device(File::from(mount.try_clone_to_owned()?)))
    }

    /// Waits for the next request and reads it into `buffer`, which must hold the largest
    /// write and its header. Unbounded by design: it ends when the filesystem is unmounted.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match (&self.0).read(buffer) {
                Ok(0) => return Ok(Received::Ended),
                Ok(n) => return Ok(Received::Request(n)),
                Err(e) => match e.raw_os_error() {
                    // ENOENT: the request was withdrawn between wake-up and read.
                    Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => {}
                    Some(libc::ENODEV) => return Ok(Received::Ended),
                    _ => return Err(e),
                },
            }
        }
    }

    /// Answers request `unique` with `body` (error 0) or with a positive error number and no
    /// body. `ENOENT` means that the kernel no longer waits for it.
    pub fn send(&self, unique: u64, errno: i32, body: &[u8]) -> io::Result<()> {
        let len = (OUT_HEADER_LEN + body.len()) as u32;
        let mut header = [0u8; OUT_HEADER_LEN];
        header[0..4].copy_from_slice(&len.to_ne_bytes());
        header[4..8].copy_from_slice(&(-errno).to_ne_bytes());
        header[8..16].copy_from_slice(&unique.to_ne_bytes());
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        // The kernel takes a reply in one call or refuses it; there are no short writes.
        (&self.0).write_vectored(&parts).map(drop)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
