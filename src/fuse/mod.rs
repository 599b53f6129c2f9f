//! Between the kernel and `fs`: decodes a request, calls `fs`, encodes the answer.
//!
//! The only code that knows FUSE, fuser and error numbers. Called by `stack`. Owns the mount
//! and its request threads; holds no state of files.
//!
//! | file | what |
//! | --- | --- |
//! | `mount` | mounting, negotiation, tuning, unmounting |
//! | `device` | one `/dev/fuse` descriptor: read a request, write a reply |
//! | `abi` | the bytes of requests and replies |
//! | `dispatch` | routing, and the rule that request threads never wait for the network |
//! | `ops_*` | the operations by family |
//! | `seek` | data and holes of a file that the kernel has not written back yet |
//! | `signals` | whether a signal ends the caller of a request, which may then be given up |
//! | `errno` | which error number an error becomes |
//!
//! Access times: a read never changes them (as `noatime`); the kernel keeps `mtime` and
//! `ctime` while it holds unwritten pages and sends them with the data.

mod abi;
mod device;
mod dispatch;
mod errno;
mod mount;
mod ops_attr;
mod ops_data;
mod ops_dir;
mod ops_names;
mod ops_xattr;
mod options;
mod reply;
mod seek;
mod signals;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::fs::Fs;

pub use abi::TtlSecs;
pub use mount::{MountError, REQUEST_DATA_MAX, unmount};
pub use options::{Options, TTL_FOLLOWER, TTL_WRITER, UnknownOption};

use abi::HEADER_LEN;
use device::{Device, Received};
use dispatch::Adapter;

/// A mounted filesystem. Serves requests until [`Session::ended`]; dropping it before that
/// leaves a mount whose every operation fails, so unmount first.
pub struct Session {
    point: PathBuf,
    ended: watch::Receiver<usize>,
    /// fuser's half of the mount. Kept: dropping it unmounts what fusermount3 mounted.
    _kernel: mount::KernelSession,
}

/// Mounts `fs` on the directory `at` and serves it on `options.threads` threads. Operations
/// that have to wait run on `runtime`. The mount works when this returns.
pub fn serve(
    fs: Arc<Fs>,
    at: &Path,
    options: &Options,
    runtime: &Handle,
) -> Result<Session, MountError> {
    let (kernel, point, agreed) = mount::mount(at, options)?;
    let adapter =
        Arc::new(Adapter::new(fs, options.ttl, options.fsync_remote, agreed, runtime.clone()));
    let ended = start_threads(&kernel, &adapter, options.threads.max(1), runtime)
        .inspect_err(|_| mount::abandon(&point))
        .map_err(MountError::Threads)?;
    mount::tune(&point);
    Ok(Session { point, ended, _kernel: kernel })
}

/// Starts the request threads. The watch holds how many are left.
fn start_threads(
    kernel: &mount::KernelSession,
    adapter: &Arc<Adapter>,
    threads: usize,
    runtime: &Handle,
) -> io::Result<watch::Receiver<usize>> {
    let (alive, ended) = watch::channel(threads);
    for number in 0..threads {
        let device = Arc::new(Device::clone_of(kernel.as_fd())?);
        let (adapter, alive, runtime) = (Arc::clone(adapter), alive.clone(), runtime.clone());
        std::thread::Builder::new().name(format!("fuse-{number}")).spawn(move || {
            let _inside = runtime.enter();
            request_loop(&adapter, &device);
            alive.send_modify(|n| *n -= 1);
        })?;
    }
    Ok(ended)
}

/// Reads and handles requests until the filesystem is unmounted.
fn request_loop(adapter: &Adapter, device: &Arc<Device>) {
    // The header of a WRITE is 40 bytes; the rest is slack the kernel asks for.
    let mut buffer = vec![0; REQUEST_DATA_MAX as usize + HEADER_LEN + 4096];
    loop {
        match device.receive(&mut buffer) {
            Ok(Received::Request(n)) => adapter.handle(device, &buffer[..n]),
            Ok(Received::Ended) => return,
            Err(e) => {
                log::error!("cannot read requests from the kernel: {e}");
                return;
            }
        }
    }
}

impl Session {
    /// The directory it is mounted on, resolved.
    pub fn mount_point(&self) -> &Path {
        &self.point
    }

    /// Unmounts; see [`unmount`]. Blocks while the kernel writes back dirty pages, so call it
    /// where blocking is allowed.
    pub fn unmount(&self, lazy: bool) -> io::Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        unmount(&self.point, lazy)
    }

    /// Whether it is unmounted and every request thread has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow() == 0
    }

    /// Returns when it is unmounted, by us or by anyone, and the last request has been read.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that all threads are gone, which is what is waited for.
        let _ = ended.wait_for(|&n| n == 0).await;
    }
}
