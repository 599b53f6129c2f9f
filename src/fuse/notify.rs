//! Telling the kernel what to forget of a mount, when something changed that it did not ask for.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::device::Device;
use super::dispatch::Common;
use crate::base::Ino;
use crate::fs::restore::Kernel;

/// The kernel, as it remembers one mount.
pub struct Notifier(Device, Arc<Common>);

impl Notifier {
    /// Through the connection `kernel`.
    pub(super) fn new(kernel: &impl AsFd, common: Arc<Common>) -> io::Result<Notifier> {
        Device::clone_of(kernel.as_fd()).map(|device| Notifier(device, common))
    }
}

fn told(what: &str, outcome: io::Result<()>) {
    match outcome.map_err(|e| (e.raw_os_error(), e)) {
        // Unmounted meanwhile: there is nobody who remembers anything.
        Ok(()) | Err((Some(libc::ENODEV | libc::ECONNABORTED), _)) => {}
        Err((_, e)) => log::error!("the kernel keeps what it knew of {what}: {e}"),
    }
}

impl Kernel for Notifier {
    fn forget_name(&self, parent: Ino, name: &[u8]) {
        told("a name", self.0.forget_name(parent, name));
    }

    fn forget_inode(&self, ino: Ino) {
        self.1.settle_stores();
        told("a file", self.0.write_back(self.1.nodes.current(ino), 0..u64::MAX));
    }
}
