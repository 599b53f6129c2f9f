//! One descriptor of `/dev/fuse`: requests in, replies out.
//!
//! Each request thread owns one descriptor, cloned from the mount's, so that threads do not
//! contend for one queue of requests under way. The kernel finds the request of a reply by the
//! descriptor it was read from: a reply must go out through the same one, from any thread.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::abi::OUT_HEADER_LEN;
use super::operations::Counters;
use crate::base::Ino;

/// `FUSE_DEV_IOC_CLONE`, `_IOR(229, 0, uint32_t)`.
const FUSE_DEV_IOC_CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;

/// A descriptor of the mount's connection.
#[derive(Debug)]
pub struct Device {
    file: File,
    /// Of the requests that were read from it.
    counters: Arc<Counters>,
}

/// Notifications of linux/fuse.h (`FUSE_NOTIFY_*`).
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INVAL_ENTRY: i32 = 3;
const NOTIFY_STORE: i32 = 4;
const NOTIFY_INC_EPOCH: i32 = 8;
/// `FUSE_EXPIRE_ONLY`, a flag of the second.
const EXPIRE_ONLY: u32 = 1 << 0;

/// What asking for the next request came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A request of this many bytes is in the buffer.
    Request(usize),
    /// There is none.
    Nothing,
    /// The filesystem is unmounted or its connection aborted; nothing will ever come.
    Ended,
}

impl Device {
    /// A new descriptor of the connection `mount` belongs to (Linux 4.2), or a duplicate of
    /// `mount` where the kernel refuses that. Reading from it never waits.
    pub fn clone_of(mount: BorrowedFd<'_>) -> io::Result<Device> {
        let file = Self::opened_for(mount)
            .map_or_else(|| mount.try_clone_to_owned().map(File::from), Ok)?;
        let device = Device { file, counters: Arc::default() };
        // SAFETY: the call takes no pointers.
        match unsafe { libc::fcntl(device.file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } {
            0 => Ok(device),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn opened_for(mount: BorrowedFd<'_>) -> Option<File> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let mut source = mount.as_raw_fd() as u32;
        // SAFETY: the ioctl reads one u32 through the pointer, which outlives the call.
        let rc = unsafe { libc::ioctl(file.as_raw_fd(), FUSE_DEV_IOC_CLONE, &mut source) };
        (rc == 0).then_some(file)
    }

    /// Counts the requests that are read from it.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Reads the next request, if there is one, into `buffer`, which must hold the largest
    /// write and its header.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match (&self.file).read(buffer) {
                Ok(0) => return Ok(Received::Ended),
                Ok(n) => return Ok(Received::Request(n)),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(Received::Nothing),
                    // ENOENT: the request was withdrawn before it was read.
                    Some(libc::ENOENT | libc::EINTR) => {}
                    // The second if the connection is aborted just now.
                    Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(Received::Ended),
                    _ => return Err(e),
                },
            }
        }
    }

    /// Whether there may be a request. Sleeps until there may be one; without a `bound` that
    /// ends at the latest when the filesystem is unmounted.
    pub fn wait(&self, bound: Option<Duration>) -> io::Result<bool> {
        let mut fd = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let ms = bound.map_or(-1, |b| b.as_millis().try_into().unwrap_or(libc::c_int::MAX));
        // SAFETY: `fd` is one valid pollfd and outlives the call.
        match unsafe { libc::poll(&mut fd, 1, ms) } {
            -1 => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => Ok(false),
                e => Err(e),
            },
            ready => Ok(ready > 0),
        }
    }

    /// Whether the filesystem is unmounted, or its connection aborted.
    pub fn has_ended(&self) -> bool {
        let mut fd = libc::pollfd { fd: self.file.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: `fd` is one valid pollfd and outlives the call.
        unsafe { libc::poll(&mut fd, 1, 0) > 0 && fd.revents & libc::POLLERR != 0 }
    }

    /// Answers request `unique` with `body` (error 0) or with a positive error number and no
    /// body. `ENOENT` means that the kernel no longer waits for it.
    pub fn send(&self, unique: u64, errno: i32, body: &[u8]) -> io::Result<()> {
        self.put(unique, -errno, body)
    }

    /// Has the kernel write its dirty pages of `node` in these bytes back and drop them, and ask
    /// for the attributes again. Blocks until the requests that this makes are answered: never
    /// call it on a request thread.
    pub fn write_back(&self, node: u64, bytes: Range<u64>) -> io::Result<()> {
        let len = bytes.end.saturating_sub(bytes.start);
        if len == 0 {
            return Ok(());
        }
        // Both are signed there; 0 is "to the end".
        let len = if bytes.end > i64::MAX as u64 { 0 } else { len };
        self.notify(node, bytes.start, len)
    }

    /// Has the kernel ask for the attributes of `node` again before it uses them. Never waits.
    pub fn refresh_attributes(&self, node: u64) -> io::Result<()> {
        self.notify(node, u64::MAX, 0) // from -1 on: no pages
    }

    /// Has the kernel forget that `name` in `parent` leads anywhere, or nowhere. Waits for whoever
    /// changes that directory: never call it on a request thread.
    pub fn forget_name(&self, parent: Ino, name: &[u8]) -> io::Result<()> {
        self.notify_name(parent, name, 0)
    }

    fn notify(&self, node: u64, start: u64, len: u64) -> io::Result<()> {
        let mut body = [0u8; 24]; // struct fuse_notify_inval_inode_out
        body[0..8].copy_from_slice(&node.to_ne_bytes());
        body[8..16].copy_from_slice(&start.to_ne_bytes());
        body[16..24].copy_from_slice(&len.to_ne_bytes());
        unless_unknown(self.put(0, NOTIFY_INVAL_INODE, &body))
    }

    /// Has the kernel look `name` in directory `parent` up again before it uses it; what is mounted on
    /// it, or works in it, stays (Linux 6.2; before, the name is dropped). Waits for what is being
    /// looked up in `parent`: never call it on a request thread.
    pub fn expire_name(&self, parent: Ino, name: &[u8]) -> io::Result<()> {
        let done = self.notify_name(parent, name, EXPIRE_ONLY);
        match done {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.notify_name(parent, name, 0),
            done => done,
        }
    }

    fn notify_name(&self, parent: Ino, name: &[u8], flags: u32) -> io::Result<()> {
        let mut body = Vec::with_capacity(17 + name.len()); // struct fuse_notify_inval_entry_out
        body.extend_from_slice(&parent.0.to_ne_bytes());
        body.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        body.extend_from_slice(&flags.to_ne_bytes());
        body.extend_from_slice(name);
        body.push(0);
        unless_unknown(self.put(0, NOTIFY_INVAL_ENTRY, &body))
    }

    /// Has the kernel look every name up again before it uses it; false before Linux 6.16.
    pub fn expire_all_names(&self) -> io::Result<bool> {
        match self.put(0, NOTIFY_INC_EPOCH, &[]) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Has the kernel keep `data` as the beginning of the file `node`, as if it had read it. Linux takes it over
    /// what it has, dirty or not, and makes a shorter file longer. Waits for pages that are just being read.
    pub fn store(&self, node: u64, data: &[u8]) -> io::Result<()> {
        let mut head = [0u8; 24]; // struct fuse_notify_store_out
        head[0..8].copy_from_slice(&node.to_ne_bytes());
        head[16..20].copy_from_slice(&(data.len() as u32).to_ne_bytes());
        unless_unknown(self.put_parts(0, NOTIFY_STORE, &head, data))
    }

    fn put(&self, unique: u64, code: i32, body: &[u8]) -> io::Result<()> {
        self.put_parts(unique, code, body, &[])
    }

    fn put_parts(&self, unique: u64, code: i32, body: &[u8], more: &[u8]) -> io::Result<()> {
        let len = (OUT_HEADER_LEN + body.len() + more.len()) as u32;
        let mut header = [0u8; OUT_HEADER_LEN];
        header[0..4].copy_from_slice(&len.to_ne_bytes());
        header[4..8].copy_from_slice(&code.to_ne_bytes());
        header[8..16].copy_from_slice(&unique.to_ne_bytes());
        let parts = [IoSlice::new(&header), IoSlice::new(body), IoSlice::new(more)];
        let parts = if more.is_empty() { &parts[..2] } else { &parts[..] };
        // The kernel takes a message in one call or refuses it; there are no short writes.
        (&self.file).write_vectored(parts).map(drop)
    }
}

/// What the kernel does not know any more needs no notice.
fn unless_unknown(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(()),
        done => done,
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
