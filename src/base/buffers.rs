//! Large buffers that are used again and again: what a fetch, an upload or a read of the local cache
//! holds for a moment.
//!
//! From the heap they would come cleared, and be faulted in page by page, each time, which costs more
//! processor time than decryption. Here they are cleared once, and some wait for the next user; what the
//! last one wrote is still in them.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use parking_lot::Mutex;

/// Smaller ones come from the heap, and go back to it.
const REUSED_MIN: usize = 512 << 10;
/// Lengths are rounded up to this, so that a buffer fits the next one who asks for about as much.
const STEP: usize = 64 << 10;
/// Bytes that wait at most; those that have waited longest are freed.
const WAITING_MAX: usize = 36 << 20;

/// Those that wait, the last given back at the end.
static WAITING: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Bytes of anybody's, to be overwritten.
#[derive(Debug, Default)]
pub struct Buffer {
    /// At least `len` of them, all of them initialised.
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes, whose contents are not to be used.
    pub fn of(len: usize) -> Buffer {
        if len < REUSED_MIN {
            return Buffer { bytes: vec![0; len], len };
        }
        let waiting = {
            let mut waiting = WAITING.lock();
            // Nobody holds on to much more than he needs.
            let fits = |b: &Vec<u8>| (len..=len + len / 8 + STEP).contains(&b.len());
            waiting.iter().rposition(fits).map(|at| waiting.remove(at))
        };
        Buffer { bytes: waiting.unwrap_or_else(|| vec![0; len.next_multiple_of(STEP)]), len }
    }

    /// The buffer as it is now. Returns to those that wait when the last slice of it is gone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() < REUSED_MIN || bytes.len() > WAITING_MAX {
            return;
        }
        let mut freed = Vec::new();
        let mut waiting = WAITING.lock();
        waiting.push(bytes);
        let mut sum: usize = waiting.iter().map(Vec::len).sum();
        while sum > WAITING_MAX {
            let longest = waiting.remove(0);
            sum -= longest.len();
            freed.push(longest);
        }
        drop(waiting);
        drop(freed); // which may take the kernel a while
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_what_waits_is_bounded() {
        // Guards against memory that piles up, and against a buffer that two have at once: slices keep
        // it from the next user.
        let mut first = Buffer::of((5 << 20) + 7);
        assert_eq!(first.len(), (5 << 20) + 7);
        first.fill(1);
        let slice = first.freeze().slice(3..9);
        let mut others: Vec<Buffer> = (0..20).map(|_| Buffer::of(5 << 20)).collect();
        others.iter_mut().for_each(|b| b.fill(2));
        assert_eq!(slice[..], [1; 6]);
        drop((slice, others));
        let waiting: usize = WAITING.lock().iter().map(Vec::len).sum();
        assert!(waiting <= WAITING_MAX, "{waiting}");
        let small = Buffer::of(100);
        assert_eq!((small.len(), small.freeze().len()), (100, 100));
        assert!(Buffer::of(0).is_empty());
    }
}
