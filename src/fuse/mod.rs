//! Between the kernel and `fs`: decodes a request, calls `fs`, encodes the answer.
//!
//! The only code that knows FUSE, fuser and error numbers. Called by `stack`. Owns the mount
//! and its request threads; holds no state of files.
//!
//! | file | what |
//! | --- | --- |
//! | `mount` | mounting, negotiation, tuning, unmounting |
//! | `nodes` | under which number the kernel knows a file |
//! | `role` | what the kernel has to do when a mount changes its role |
//! | `hold` | putting back what a remount has left out of what the mount refuses |
//! | `device` | one `/dev/fuse` descriptor: read a request, write a reply |
//! | `abi` | the bytes of requests and replies |
//! | `dispatch` | routing, and the rule that request threads never wait for the network |
//! | `ops_*` | the operations by family |
//! | `notify` | telling the kernel what to forget |
//! | `operations` | what was asked for and how long it took, counted |
//! | `seek` | data and holes of a file that the kernel has not written back yet |
//! | `stores` | small files that the kernel is given when they are opened |
//! | `table` | what is mounted where, by whom, and whether it is alive |
//! | `team` | the threads of a mount, counted |
//! | `threads` | which request thread waits for the next request |
//! | `ring` | one queue of requests over io_uring |
//! | `giving_way` | threads of such queues that whoever they answer runs before |
//! | `rings` | the threads of such queues, one for each processor |
//! | `signals` | whether a signal ends the caller of a request, which may then be given up |
//! | `errno` | which error number an error becomes |
//!
//! Access times: a read never changes them (as `noatime`); the kernel keeps `mtime` and
//! `ctime` while it holds unwritten pages and sends them with the data.

mod abi;
mod device;
mod dispatch;
mod errno;
mod giving_way;
mod hold;
mod mount;
mod nodes;
mod notify;
mod operations;
mod ops_attr;
mod ops_data;
mod ops_dir;
mod ops_names;
mod ops_xattr;
mod options;
mod reply;
mod ring;
mod rings;
mod role;
mod seek;
mod signals;
mod stores;
mod table;
mod team;
mod threads;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::fs::Tree;

pub use abi::TtlSecs;
pub use giving_way::Ways;
pub use mount::{MountError, REQUEST_DATA_MAX, device_number, unmount};
pub use notify::Notifier;
pub use operations::{Counted, Operation, Operations};
pub use options::{Options, TTL_FOLLOWER, TTL_WRITER, UnknownOption};
pub use role::KernelSide;
pub use table::{Entry, Life, life, mounted_at, mounts};

use abi::HEADER_LEN;
use device::{Device, Received};
use dispatch::Adapter;
use reply::Channel;
use team::Team;
use threads::{Source, Taken, Threads};

/// A mounted filesystem. Serves requests until [`Session::ended`]; dropping it before that
/// leaves a mount whose every operation fails, so unmount first.
pub struct Session {
    point: PathBuf,
    /// `major:minor`, where the kernel's table said it.
    device: Option<String>,
    ended: watch::Receiver<usize>,
    operations: Operations,
    notifier: Arc<Notifier>,
    /// What it can be told.
    told: KernelSide,
    /// fuser's half of the mount. Kept: dropping it unmounts what fusermount3 mounted.
    _kernel: mount::KernelSession,
}

/// Mounts `fs` on the directory `at` and serves it on `options.threads` threads. Operations
/// that have to wait run on `runtime`. The mount works when this returns.
pub fn serve(
    fs: Arc<Tree>,
    at: &Path,
    options: &Options,
    runtime: &Handle,
) -> Result<Session, MountError> {
    let (kernel, point, agreed) = mount::mount(at, options)?;
    let adapter = Arc::new(Adapter::new(fs, options, agreed, runtime.clone()));
    let threads = options.threads.max(1);
    let started = match agreed.rings {
        true => rings::start(&kernel, &adapter, threads, runtime, &point),
        false => start_threads(&kernel, &adapter, threads, runtime),
    };
    // Whoever asks already waits for rings that will never be.
    let give_up = if agreed.rings { mount::abort } else { mount::abandon };
    let (ended, operations) =
        started.inspect_err(|_| give_up(&point)).map_err(MountError::Threads)?;
    let device = mount::device_number(&point);
    mount::tune(&point, device.as_deref());
    let clone = Device::clone_of(kernel.as_fd())
        .inspect_err(|_| mount::abandon(&point))
        .map_err(MountError::Threads)?;
    let (clone, mut hold) = (Arc::new(clone), None);
    if let Some(device) = &device {
        let (to, adapter) = (Arc::clone(&clone), Arc::clone(&adapter));
        let powerless = move |powerless| adapter.set_powerless(powerless, &to);
        match hold::start(&point, device.clone(), options, powerless) {
            Ok(started) => hold = Some(Arc::new(started)),
            Err(e) => log::error!("cannot watch {} for remounts: {e}", point.display()),
        }
    }
    let notifier = Notifier::new(&kernel, Arc::clone(&adapter.common))
        .inspect_err(|_| mount::abandon(&point))
        .map_err(MountError::Threads)?;
    let notifier = Arc::new(notifier);
    let told = KernelSide { adapter, device: clone, hold, runtime: runtime.clone() };
    Ok(Session { point, device, ended, operations, notifier, told, _kernel: kernel })
}

/// Starts the request threads. The watch holds how many are left; also what they count.
fn start_threads(
    kernel: &mount::KernelSession,
    adapter: &Arc<Adapter>,
    threads: usize,
    runtime: &Handle,
) -> io::Result<(watch::Receiver<usize>, Operations)> {
    let mut team = Team::new(kernel, runtime);
    let turns = Arc::new(Threads::new());
    for number in 0..threads {
        let mut requests = Requests::new(Arc::clone(adapter), team.device()?);
        let turns = Arc::clone(&turns);
        team.spawn(format!("fuse-{number}"), move || {
            if let Err(e) = turns.serve(&mut requests) {
                log::error!("cannot read requests from the kernel: {e}");
            }
        })?;
    }
    Ok(team.complete())
}

/// The requests that one thread takes.
struct Requests {
    adapter: Arc<Adapter>,
    device: Arc<Device>,
    buffer: Vec<u8>,
    /// Length of the request in the buffer, in bytes.
    len: usize,
}

impl Requests {
    fn new(adapter: Arc<Adapter>, device: Arc<Device>) -> Requests {
        // The header of a WRITE is 40 bytes; the rest is slack the kernel asks for.
        let buffer = vec![0; REQUEST_DATA_MAX as usize + HEADER_LEN + 4096];
        Requests { adapter, device, buffer, len: 0 }
    }
}

impl Source for Requests {
    fn take(&mut self) -> io::Result<Taken> {
        Ok(match self.device.receive(&mut self.buffer)? {
            Received::Request(len) => {
                self.len = len;
                Taken::Request { short: self.adapter.answers_soon(&self.buffer[..len]) }
            }
            Received::Nothing => Taken::Nothing,
            Received::Ended => Taken::Ended,
        })
    }

    fn sleep(&mut self) -> io::Result<()> {
        self.device.wait(None).map(drop)
    }

    fn has_more(&self) -> bool {
        self.device.wait(Some(Duration::ZERO)).unwrap_or(false)
    }

    fn handle(&mut self) {
        self.adapter.handle(&self.device, Channel::Device, &self.buffer[..self.len]);
    }
}

impl Session {
    /// The directory it is mounted on, resolved.
    pub fn mount_point(&self) -> &Path {
        &self.point
    }

    /// The device number of the file system (`major:minor`), as in proc_pid_mountinfo(5).
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// Tells the kernel what to forget of it.
    pub fn notifier(&self) -> Arc<Notifier> {
        Arc::clone(&self.notifier)
    }

    /// What it can be told when the mount changes its role.
    pub fn kernel(&self) -> KernelSide {
        self.told.clone()
    }

    /// What it was asked for so far.
    pub fn operations(&self) -> &Operations {
        &self.operations
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
