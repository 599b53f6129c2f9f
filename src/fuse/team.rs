//! The threads that serve one mount: how many are left, and what they count.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::device::Device;
use super::operations::{Counters, Operations};

/// Threads as they are started.
pub(super) struct Team<'a> {
    kernel: BorrowedFd<'a>,
    runtime: &'a Handle,
    alive: watch::Sender<usize>,
    counters: Vec<Arc<Counters>>,
}

/// One of the threads that are counted.
struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl<'a> Team<'a> {
    /// Of the mount of `kernel`. What its threads wait for runs on `runtime`.
    pub fn new(kernel: &'a impl AsFd, runtime: &'a Handle) -> Team<'a> {
        let (alive, _) = watch::channel(0);
        Team { kernel: kernel.as_fd(), runtime, alive, counters: Vec::new() }
    }

    /// A descriptor of the mount for one thread.
    pub fn device(&mut self) -> io::Result<Arc<Device>> {
        let device = Arc::new(Device::clone_of(self.kernel)?);
        self.counters.push(Arc::clone(device.counters()));
        Ok(device)
    }

    /// Starts a thread.
    pub fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.alive.send_modify(|n| *n += 1);
        let (counted, runtime) = (Counted(self.alive.clone()), self.runtime.clone());
        let spawned = thread::Builder::new().name(name).spawn(move || {
            let _counted = counted;
            let _inside = runtime.enter();
            work();
        });
        spawned.map(drop)
    }

    /// How many threads are left, from now on, and what all of them count.
    pub fn complete(self) -> (watch::Receiver<usize>, Operations) {
        (self.alive.subscribe(), Operations::of(self.counters))
    }
}
