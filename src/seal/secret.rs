//! Memory that secrets live in: locked into RAM where the system permits, left out of core
//! dumps, wiped when freed.
//!
//! Long-lived keys are placed in a [`Locked`], a small box from a process-wide arena. What a
//! cipher keeps for one message while it is used (its key schedule) lives on the ordinary heap
//! and is wiped by its library. Memory locks are not inherited over `fork(2)`: a daemon unlocks
//! its keyring after it went to the background.

use std::io;
use std::mem::{align_of, size_of};
use std::ops::Deref;
use std::ptr::{self, NonNull};

use parking_lot::Mutex;
use zeroize::Zeroize;

/// Bytes of one slot of the arena; a [`Locked`] value may not be larger.
const SLOT: usize = 2048;
/// Bytes of one mapping. Small, since `RLIMIT_MEMLOCK` may be as low as 64 KiB.
const REGION: usize = 64 << 10;

/// Free slots of all mappings. Mappings are kept for the life of the process, so the arena is as
/// large as the most secrets ever held at once.
static FREE: Mutex<Vec<Slot>> = Mutex::new(Vec::new());

/// The start of an unused slot: [`SLOT`] bytes, aligned to [`SLOT`], all zero.
struct Slot(NonNull<u8>);

// SAFETY: a slot is plain memory that only its holder touches.
unsafe impl Send for Slot {}

/// A value in locked, non-dumpable memory, dropped and then wiped. For values of at most 2 KiB.
/// Access costs nothing; creation takes one uncontended lock.
pub struct Locked<T> {
    slot: NonNull<T>,
}

// SAFETY: like `Box<T>`: the pointer is owned and only `&T` is handed out.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    /// Moves `value` into a slot. When the system refuses to lock memory (`RLIMIT_MEMLOCK`), the
    /// slot is merely left out of core dumps. Aborts the process when it is out of memory, as
    /// any allocation does.
    pub fn new(value: T) -> Locked<T> {
        // Slots lie SLOT apart in a mapping that begins at a page: that is all the alignment there is.
        const { assert!(size_of::<T>() <= SLOT && align_of::<T>() <= SLOT) };
        let slot = take_slot().cast::<T>();
        // SAFETY: the slot is unused, ours, large enough and aligned for T (checked above).
        unsafe { slot.write(value) };
        Locked { slot }
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: initialised in `new`, valid until `drop`.
        unsafe { self.slot.as_ref() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        let start = self.slot.cast::<u8>();
        // SAFETY: the value is valid and is dropped once; afterwards its slot is bytes of ours,
        // all initialised since the mapping began as zeros.
        unsafe {
            ptr::drop_in_place(self.slot.as_ptr());
            std::slice::from_raw_parts_mut(start.as_ptr(), SLOT).zeroize();
        }
        FREE.lock().push(Slot(start));
    }
}

fn take_slot() -> NonNull<u8> {
    let mut free = FREE.lock();
    if let Some(slot) = free.pop() {
        return slot.0;
    }
    let region = map_region();
    for i in 1..REGION / SLOT {
        // SAFETY: within the mapping of REGION bytes.
        free.push(Slot(unsafe { region.add(i * SLOT) }));
    }
    region
}

fn map_region() -> NonNull<u8> {
    // SAFETY: an anonymous private mapping at an address the kernel chooses; the result is
    // checked. Neither mlock nor madvise changes its contents.
    let address = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let address = libc::mmap(ptr::null_mut(), REGION, prot, flags, -1, 0);
        if address == libc::MAP_FAILED {
            let layout = std::alloc::Layout::from_size_align_unchecked(REGION, 4096);
            std::alloc::handle_alloc_error(layout);
        }
        if libc::mlock(address, REGION) != 0 {
            log::debug!("keys may be swapped: mlock: {}", io::Error::last_os_error());
        }
        if libc::madvise(address, REGION, libc::MADV_DONTDUMP) != 0 {
            log::debug!("keys may be dumped: madvise: {}", io::Error::last_os_error());
        }
        address
    };
    NonNull::new(address.cast()).expect("mmap without MAP_FIXED never returns address 0")
}

/// Bytes of stack below the caller that [`with_wiped_stack`] overwrites: more than making a key pair
/// takes, in a build without optimisation as well.
const STACK_WIPED: usize = 256 << 10;

/// Runs `work`, and then overwrites the stack that it used: moving a value leaves a copy of it behind,
/// which nobody wipes, and a thread that waits for its next task keeps it for hours. Costs about
/// 10 µs.
pub(super) fn with_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    let done = apart(work);
    wipe_stack();
    done
}

/// In a separate frame, below the caller's.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe_stack() {
    let mut below = [0xA5u8; STACK_WIPED];
    below.zeroize();
    std::hint::black_box(&below);
}

/// Makes this process non-dumpable: no core files, and no `ptrace` or `/proc/PID/mem` by other
/// processes of the same user (prctl(2), `PR_SET_DUMPABLE`). What dumps it all the same (`gcore`
/// run by root) finds no kind of memory to dump (core(5), `coredump_filter`): not only keys are in
/// there, but contents and names of what is in use. Called once by `cli/` before a key exists;
/// again after `execve`.
///
/// # Errors
/// prctl(2) failed, or `/proc/self/coredump_filter` is there and cannot be written.
pub fn forbid_dumps() -> io::Result<()> {
    // First: files below /proc/self are root's once the process is non-dumpable.
    // A kernel without core dumps does not have it.
    let filter = match std::fs::write("/proc/self/coredump_filter", "0") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    // SAFETY: PR_SET_DUMPABLE takes one integer and touches no memory of ours.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => filter,
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_slot_is_wiped_when_its_secret_is_dropped() {
        // Guards against key bytes left behind in freed memory: look at the slot after the drop,
        // holding the list of free slots so that no other test may take it meanwhile.
        let secret = Locked::new([0xA5u8; 1000]);
        let address = secret.slot.cast::<u8>();
        drop(secret);
        let free = FREE.lock();
        if free.iter().any(|s| s.0 == address) {
            // SAFETY: a free slot; the arena is never unmapped and we hold its lock.
            let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), SLOT) };
            assert!(bytes.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn secrets_from_many_threads_do_not_share_a_slot() {
        // Guards against a slot handed out twice: threads fill and check their own secrets.
        let threads: Vec<_> = (0..8u8)
            .map(|t| {
                std::thread::spawn(move || {
                    let held: Vec<_> =
                        (0..100u8).map(|i| (i, Locked::new([t ^ i.rotate_left(3); 64]))).collect();
                    held.iter().all(|(i, s)| s.iter().all(|b| *b == t ^ i.rotate_left(3)))
                })
            })
            .collect();
        assert!(threads.into_iter().all(|t| t.join().unwrap()));
    }

    #[test]
    fn every_slot_is_aligned_for_whatever_is_allowed_in_it() {
        // Guards against a reference that is not aligned, which is undefined behaviour: the second
        // slot of a page, for one.
        #[repr(align(2048))]
        struct Wide([u8; 2048]);
        let held: Vec<_> = (0..70).map(|_| Locked::new(Wide([1; 2048]))).collect();
        for wide in &held {
            assert_eq!(wide.0.as_ptr().addr() % 2048, 0);
        }
    }

    #[test]
    fn dropping_a_secret_drops_what_it_holds() {
        // Guards against leaking a value whose own drop frees or wipes something.
        let shared = Arc::new(());
        drop(Locked::new(shared.clone()));
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
