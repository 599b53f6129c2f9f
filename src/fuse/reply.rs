//! The answer to one request: given exactly once, even if its handler panics or is cancelled.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::abi::{Header, Out};
use super::device::Device;
use super::errno::Errno;
use super::ring::Place;

/// Which way the answer to a request goes.
#[derive(Debug)]
pub enum Channel {
    /// Through the descriptor that it was read from.
    Device,
    /// To its place in a ring.
    Ring(Place),
}

/// The right and the duty to answer one request. Dropping it unanswered answers `EINTR` when
/// the operation could be interrupted and was, else `EIO`.
#[derive(Debug)]
pub struct Reply {
    device: Arc<Device>,
    channel: Channel,
    unique: u64,
    caller: u32,
    opcode: u32,
    began: Instant,
    answered: bool,
    interruptible: bool,
}

impl Reply {
    /// The answer to a request that has just come; `device` is its thread's.
    pub fn new(device: &Arc<Device>, channel: Channel, header: &Header) -> Reply {
        let Header { unique, pid: caller, opcode, .. } = *header;
        let (device, began) = (Arc::clone(device), Instant::now());
        let (answered, interruptible) = (false, false);
        Reply { device, channel, unique, caller, opcode, began, answered, interruptible }
    }

    /// The thread that asked, as this process sees it (0 if it does not).
    pub fn caller(&self) -> u32 {
        self.caller
    }

    /// The number by which the kernel knows the request.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The descriptor of the thread that the request came to.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Tells the kernel, before the answer, that the mode of `node` may have changed: the answers
    /// to WRITE, FALLOCATE and COPY_FILE_RANGE carry no attributes, and Linux would go on
    /// running a program with the set-user-id bit that a write has just taken from it.
    pub fn mode_changed(&self, node: u64) {
        if let Err(e) = self.device.refresh_attributes(node) {
            log_unsent(self.unique, &e);
        }
    }

    /// From now on, dropping this means that the operation was interrupted.
    pub fn set_interruptible(&mut self) {
        self.interruptible = true;
    }

    /// Answers with the bytes of `body`. False when the kernel did not take the answer (the
    /// caller was killed meanwhile), so that a reference it carried must be taken back.
    pub fn data(mut self, body: &[u8]) -> bool {
        self.send(0, body)
    }

    /// Answers with an encoded structure; as [`Reply::data`].
    pub fn out(self, body: &Out) -> bool {
        self.data(&body.0)
    }

    /// Answers that it is done.
    pub fn done(self) {
        self.data(&[]);
    }

    /// Answers with an error.
    pub fn error(mut self, errno: impl Into<Errno>) {
        self.send(errno.into().0, &[]);
    }

    /// Says nothing: for the requests that take no answer.
    pub fn none(mut self) {
        self.answered = true;
        self.count(0, &[]);
    }

    fn count(&self, errno: i32, body: &[u8]) {
        self.device.counters().answered(self.opcode, self.began.elapsed(), errno, body);
    }

    fn send(&mut self, errno: i32, body: &[u8]) -> bool {
        self.answered = true;
        self.count(errno, body); // before the answer: its receiver may look at once
        let sent = match &self.channel {
            Channel::Device => self.device.send(self.unique, errno, body),
            Channel::Ring(place) => {
                place.put(self.unique, errno, body);
                Ok(())
            }
        };
        match sent {
            Ok(()) => true,
            Err(e) => {
                log_unsent(self.unique, &e);
                false
            }
        }
    }
}

fn log_unsent(unique: u64, e: &io::Error) {
    match e.raw_os_error() {
        // The caller is gone, or the whole mount is.
        Some(libc::ENOENT | libc::ENODEV | libc::ECONNABORTED) => {
            log::debug!("request {unique}: the kernel no longer waits for the answer");
        }
        _ => log::error!("request {unique}: the kernel refused the answer: {e}"),
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            let interrupted = self.interruptible && !std::thread::panicking();
            self.send(if interrupted { Errno::INTERRUPTED } else { Errno::IO }.0, &[]);
        }
    }
}
