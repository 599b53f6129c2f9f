//! One queue of FUSE over io_uring: the requests of one processor, in slots of memory that the kernel
//! and this process hand to each other.
//!
//! Linux 6.14, Documentation/filesystems/fuse/fuse-io-uring.rst and `enum fuse_uring_cmd` of
//! linux/fuse.h. Each slot is offered to the kernel once (`REGISTER`); it comes back with a request, and
//! goes again with the answer to that and for the next one (`COMMIT_AND_FETCH`), in the one system call
//! in which the thread waits. The kernel takes answers from, and puts requests into, slots only while
//! the thread of the queue is in that call: who answers from another thread leaves word and wakes it.
//!
//! That thread must therefore never wait for an answer to a request: it would have to fetch that.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use parking_lot::Mutex;

use super::abi::{HEADER_LEN, OUT_HEADER_LEN};
use super::hold::eventfd;

/// `FUSE_IO_URING_CMD_REGISTER`, `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// Where `struct fuse_uring_req_header` has what, and its length. The answer's header replaces the
/// request's.
const OPERATION: usize = 128;
const OPERATION_MAX: usize = 128;
const COMMIT_ID: usize = 264;
const PAYLOAD_LEN: usize = 272;
const HEADERS_LEN: usize = 288;
/// Where a slot keeps the answer to a request that is still being read: its length, then itself.
const ASIDE: usize = 512;
const ASIDE_MAX: usize = 1024;
/// Where a slot has its payload: a page of its own, before which there is room for the rest of the request.
const PAYLOAD: usize = 4096;

/// A request up to this length is copied out, so that its slot is free for the answer, bytes.
const COPIED_MAX: usize = 128 << 10;
/// What is given back of slots that held more than a small request, once none has for a while.
const KEPT: usize = 64 << 10;
/// How many slots of a mount may hold more than that while nobody uses it.
const LARGE_MAX: usize = 32;
const IDLE: Duration = Duration::from_secs(10);

/// What stands for the eventfd among the numbers of slots.
const WOKEN: u64 = u64::MAX;

type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

/// The memory of all slots of a queue. It is never unmapped: Linux may still put a request into a slot while the
/// thread that last gave it one ends, after all of our own that ran on it.
#[derive(Debug)]
struct Memory {
    base: *mut u8,
    len: usize,
    /// Bytes of a slot.
    stride: usize,
}

// SAFETY: plain memory that stays. Who may touch which slot is the matter of `Queue`.
unsafe impl Send for Memory {}
// SAFETY: the same.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(slots: u16, payload: usize) -> io::Result<Memory> {
        let stride = PAYLOAD + payload.next_multiple_of(PAYLOAD);
        let len = stride * usize::from(slots);
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Of a slot that a small request uses, two pages are to be there, not 2 MiB.
        // SAFETY: the mapping that was just made.
        unsafe { libc::madvise(base, len, libc::MADV_NOHUGEPAGE) };
        Ok(Memory { base: base.cast(), len, stride })
    }

    /// `len` bytes of a slot, inside of it.
    fn at(&self, slot: u16, offset: usize, len: usize) -> *mut u8 {
        let start = self.stride * usize::from(slot) + offset;
        assert!(offset + len <= self.stride && start + len <= self.len);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.base.add(start) }
    }
}

/// The slots of a queue, as everybody may use them who holds one.
#[derive(Debug)]
pub(super) struct Queue {
    /// The processor whose requests it gets.
    id: u16,
    memory: Memory,
    /// The longest payload, bytes.
    payload: usize,
    /// How many hold each slot: the answer that is due, and who reads a request in it. 0: it is the
    /// kernel's, or about to be.
    holders: Vec<AtomicU8>,
    answered: Mutex<Answered>,
    /// Whether each slot has held more than [`KEPT`] since the rest was given back.
    large: Vec<AtomicBool>,
    /// How many have in all queues of the mount.
    all_large: Arc<AtomicUsize>,
    /// An eventfd(2).
    wake: File,
}

#[derive(Debug, Default)]
struct Answered {
    slots: Vec<u16>,
    /// The thread of the queue is, or is about to be, where only a request or `wake` gets it back from.
    thread_waits: bool,
}

/// One hold on a slot.
#[derive(Debug)]
struct Held {
    queue: Arc<Queue>,
    slot: u16,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.queue.holders[usize::from(self.slot)].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.release(self.slot);
        }
    }
}

/// The place for the answer to one request. The kernel gets what is in it when it is dropped: `EIO`, if
/// nothing was put there.
#[derive(Debug)]
pub(super) struct Place {
    held: Held,
    /// The request is still being read where the payload of the answer goes.
    aside: bool,
}

/// A long request, where it is.
#[derive(Debug)]
pub(super) struct InPlace {
    held: Held,
    offset: usize,
    len: usize,
}

/// A request, and the place for its answer.
pub(super) enum Fetched {
    /// It was copied into the buffer.
    Copied(Place),
    /// It is in its slot.
    InPlace(InPlace, Place),
}

impl Place {
    /// Puts the answer to request `unique` there: `body` (error 0), or a positive error number and no
    /// body.
    pub fn put(&self, unique: u64, errno: i32, body: &[u8]) {
        let max = if self.aside { ASIDE_MAX } else { self.held.queue.payload };
        if body.len() <= max {
            self.held.queue.put(self.held.slot, self.aside, unique, errno, body);
        } else {
            log::error!("an answer of {} bytes has no room", body.len());
            self.held.queue.put(self.held.slot, self.aside, unique, libc::EIO, &[]);
        }
    }
}

impl InPlace {
    /// The request, header first.
    pub fn bytes(&self) -> &[u8] {
        let at = self.held.queue.memory.at(self.held.slot, self.offset, self.len);
        // SAFETY: while this holds the slot, neither the kernel nor a `Place`, which puts its answer
        // aside, writes there.
        unsafe { std::slice::from_raw_parts(at, self.len) }
    }
}

impl Queue {
    /// A queue of `slots` slots for requests and answers with up to `payload` bytes. `all_large`: the mount's.
    pub fn new(
        id: u16,
        slots: u16,
        payload: usize,
        all_large: Arc<AtomicUsize>,
    ) -> io::Result<Arc<Queue>> {
        Ok(Arc::new(Queue {
            id,
            memory: Memory::new(slots, payload)?,
            payload,
            holders: (0..slots).map(|_| AtomicU8::new(0)).collect(),
            answered: Mutex::default(),
            large: (0..slots).map(|_| AtomicBool::new(false)).collect(),
            all_large,
            wake: eventfd()?,
        }))
    }

    fn slots(&self) -> u16 {
        self.holders.len() as u16
    }

    fn load<const N: usize>(&self, slot: u16, offset: usize) -> [u8; N] {
        let mut out = [0; N];
        let at = self.memory.at(slot, offset, N);
        // SAFETY: N bytes there (`at`), and N here. The caller or its thread holds the slot.
        unsafe { std::ptr::copy_nonoverlapping(at, out.as_mut_ptr(), N) };
        out
    }

    fn store(&self, slot: u16, offset: usize, bytes: &[u8]) {
        let at = self.memory.at(slot, offset, bytes.len());
        // SAFETY: as many bytes there (`at`). The caller or its thread holds the slot, and nobody reads
        // in it what is written here.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }

    /// Takes the request that the kernel has put into `slot`; copies it into `buffer` unless it is long.
    /// None: it makes no sense, and is answered by `EIO`.
    fn fetched(self: &Arc<Self>, slot: u16, buffer: &mut Vec<u8>) -> Option<Fetched> {
        let header: [u8; HEADER_LEN] = self.load(slot, 0);
        let len = u32::from_ne_bytes(header[..4].try_into().expect("four bytes")) as usize;
        let unique = u64::from_ne_bytes(header[8..16].try_into().expect("eight bytes"));
        let payload = u32::from_ne_bytes(self.load(slot, PAYLOAD_LEN)) as usize;
        self.store(slot, ASIDE, &0u32.to_ne_bytes());
        self.put(slot, false, unique, libc::EIO, &[]);
        // What comes before the payload is as long as the rest.
        let operation = len.checked_sub(HEADER_LEN + payload).filter(|len| *len <= OPERATION_MAX);
        let Some(operation) = operation.filter(|_| payload <= self.payload) else {
            log::error!("a request of {len} bytes, {payload} of them payload; refused");
            self.release(slot);
            return None;
        };
        let aside = len > COPIED_MAX;
        let holders = if aside { 2 } else { 1 };
        self.holders[usize::from(slot)].store(holders, Ordering::Release);
        let held = || Held { queue: Arc::clone(self), slot };
        let place = Place { held: held(), aside };
        let of_operation: [u8; OPERATION_MAX] = self.load(slot, OPERATION);
        let of_operation = &of_operation[..operation];
        if !aside {
            buffer.clear();
            buffer.extend_from_slice(&header);
            buffer.extend_from_slice(of_operation);
            let at = self.memory.at(slot, PAYLOAD, payload);
            // SAFETY: inside the slot, which nobody writes to: `place` is not given away yet.
            buffer.extend_from_slice(unsafe { std::slice::from_raw_parts(at, payload) });
            return Some(Fetched::Copied(place));
        }
        let offset = PAYLOAD - operation - HEADER_LEN;
        self.store(slot, offset, &header);
        self.store(slot, offset + HEADER_LEN, of_operation);
        Some(Fetched::InPlace(InPlace { held: held(), offset, len }, place))
    }

    fn put(&self, slot: u16, aside: bool, unique: u64, errno: i32, body: &[u8]) {
        if aside {
            self.store(slot, ASIDE, &(body.len() as u32).to_ne_bytes());
            self.store(slot, ASIDE + 4, body);
        } else {
            self.store(slot, PAYLOAD, body);
        }
        let mut header = [0; OUT_HEADER_LEN];
        header[..4].copy_from_slice(&((OUT_HEADER_LEN + body.len()) as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&(-errno).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        self.store(slot, 0, &header);
        self.store(slot, PAYLOAD_LEN, &(body.len() as u32).to_ne_bytes());
    }

    fn note_large(&self, slot: u16) {
        if !self.large[usize::from(slot)].swap(true, Ordering::Relaxed) {
            self.all_large.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives memory of a slot back whose payload nobody needs any more.
    fn shrink(&self, slot: u16) {
        if self.large[usize::from(slot)].swap(false, Ordering::Relaxed) {
            self.all_large.fetch_sub(1, Ordering::Relaxed);
        }
        let len = self.payload.saturating_sub(KEPT);
        let at = self.memory.at(slot, PAYLOAD + KEPT, len);
        // SAFETY: inside the slot, and nobody reads or writes there now.
        if unsafe { libc::madvise(at.cast(), len, libc::MADV_DONTNEED) } != 0 {
            log::debug!("memory is kept: {}", io::Error::last_os_error());
        }
    }

    /// Has the thread of the queue give `slot`, which nobody holds any more, to the kernel.
    fn release(&self, slot: u16) {
        let aside = u32::from_ne_bytes(self.load(slot, ASIDE)) as usize;
        if aside > 0 {
            if self.all_large.load(Ordering::Relaxed) > LARGE_MAX {
                self.shrink(slot);
            }
            let answer: [u8; ASIDE_MAX] = self.load(slot, ASIDE + 4);
            self.store(slot, PAYLOAD, &answer[..aside.min(ASIDE_MAX)]);
        }
        let mut answered = self.answered.lock();
        answered.slots.push(slot);
        if std::mem::take(&mut answered.thread_waits) {
            drop(answered);
            // Fails only where the counter is full, and then the thread is woken anyway.
            let _ = (&self.wake).write(&1u64.to_ne_bytes());
        }
    }
}

/// Whether this process may use rings as they are needed here.
pub(super) fn check() -> io::Result<()> {
    build(1).map(drop)
}

fn build(slots: u16) -> io::Result<Ring> {
    IoUring::<squeue::Entry128, cqueue::Entry>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        // Each slot, and the eventfd.
        .build(u32::from(slots) + 1)
}

/// What the thread of a queue has.
pub(super) struct Fetcher {
    queue: Arc<Queue>,
    ring: Ring,
    /// The descriptor of `/dev/fuse`; open as long as this.
    fuse: Fd,
    /// Whether the kernel has each slot.
    away: Vec<bool>,
    /// When one held that much last.
    large_at: Instant,
    /// What came last, and is not looked at yet.
    came: VecDeque<(u64, i32)>,
}

/// What the thread of a queue got.
pub(super) enum Next {
    /// A request.
    Request(Fetched),
    /// The filesystem is unmounted or its connection aborted; nothing will ever come.
    Ended,
}

impl Fetcher {
    /// Offers all slots of `queue` to the kernel, through `fuse`, which must stay open as long as this.
    /// To be called by the thread that goes on with it.
    ///
    /// # Errors
    /// What the kernel says of the ring or of the first slot that it refuses.
    pub fn register(queue: Arc<Queue>, fuse: &impl AsFd) -> io::Result<Fetcher> {
        let ring = build(queue.slots())?;
        let slots = queue.slots();
        let headers = |slot| queue.memory.at(slot, 0, HEADERS_LEN).cast();
        let payload = |slot| queue.memory.at(slot, PAYLOAD, queue.payload).cast();
        let areas: Vec<[libc::iovec; 2]> = (0..slots)
            .map(|slot| {
                [
                    libc::iovec { iov_base: headers(slot), iov_len: HEADERS_LEN },
                    libc::iovec { iov_base: payload(slot), iov_len: queue.payload },
                ]
            })
            .collect();
        let away = vec![true; slots.into()];
        let fuse = Fd(fuse.as_fd().as_raw_fd());
        let mut this =
            Fetcher { queue, ring, fuse, away, large_at: Instant::now(), came: VecDeque::new() };
        // The kernel takes those first that came last.
        for slot in (0..slots).rev() {
            let areas = areas[usize::from(slot)].as_ptr();
            this.push(this.command(REGISTER, slot, 0, Some(areas)))?;
        }
        this.watch_wake()?;
        // Linux has read the areas once the command is submitted.
        while !this.ring.submission().is_empty() {
            this.ring.submit()?;
        }
        this.collect();
        match this.came.iter().find(|(slot, result)| *slot != WOKEN && *result < 0) {
            Some((_, result)) => Err(io::Error::from_raw_os_error(-result)),
            None => Ok(this),
        }
    }

    /// Gives answers to the kernel and returns the next request, into `buffer` if it is short. Waits for
    /// one.
    ///
    /// # Errors
    /// What the kernel says to a ring that it does not take any more.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> io::Result<Next> {
        loop {
            let Some((slot, result)) = self.came.pop_front() else {
                self.wait()?;
                continue;
            };
            if slot == WOKEN {
                self.watch_wake()?;
                continue;
            }
            match -result {
                ..=0 => {}
                libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV => return Ok(Next::Ended),
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
            let slot = slot as u16;
            if let Some(fetched) = self.queue.fetched(slot, buffer) {
                if matches!(fetched, Fetched::InPlace(..)) {
                    self.note_large(slot);
                }
                // No answer lies while this request keeps the thread.
                if !self.queue.answered.lock().slots.is_empty() {
                    self.push_answered(false)?;
                    self.enter(0)?;
                }
                return Ok(Next::Request(fetched));
            }
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        self.push_answered(true)?;
        let ended = self.enter(1);
        self.queue.answered.lock().thread_waits = false;
        ended?;
        self.collect();
        if self.may_shrink() && self.large_at.elapsed() >= IDLE {
            self.shrink();
        }
        Ok(())
    }

    fn note_large(&mut self, slot: u16) {
        self.queue.note_large(slot);
        self.large_at = Instant::now();
    }

    fn may_shrink(&self) -> bool {
        self.queue.all_large.load(Ordering::Relaxed) > 0
            && self.queue.large.iter().any(|large| large.load(Ordering::Relaxed))
    }

    /// Submits what was pushed, and waits for `want` completions; no longer than [`IDLE`], if there may be memory to
    /// give back then.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        let idle = Timespec::from(IDLE);
        let entered = match want > 0 && self.may_shrink() {
            true => {
                let args = SubmitArgs::new().timespec(&idle);
                self.ring.submitter().submit_with_args(want, &args)
            }
            false => self.ring.submit_and_wait(want),
        };
        match entered.map_err(|e| (e.raw_os_error(), e)) {
            Ok(_) => Ok(()),
            Err((Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME), _)) => Ok(()),
            Err((_, e)) => Err(e),
        }
    }

    fn collect(&mut self) {
        for entry in self.ring.completion() {
            if entry.user_data() != WOKEN {
                self.away[entry.user_data() as usize] = false;
            }
            self.came.push_back((entry.user_data(), entry.result()));
        }
    }

    /// Gives memory of slots back that wait for requests: the kernel fills them only while this thread
    /// waits for it.
    fn shrink(&mut self) {
        for slot in 0..self.queue.slots() {
            let index = usize::from(slot);
            if self.away[index] && self.queue.large[index].load(Ordering::Relaxed) {
                self.queue.shrink(slot);
            }
        }
    }

    /// Pushes all answers that are there.
    fn push_answered(&mut self, waits: bool) -> io::Result<()> {
        let mut answered = self.queue.answered.lock();
        let slots = std::mem::take(&mut answered.slots);
        answered.thread_waits = waits;
        drop(answered);
        for &slot in &slots {
            let payload = u32::from_ne_bytes(self.queue.load(slot, PAYLOAD_LEN)) as usize;
            if payload > KEPT {
                self.note_large(slot);
            }
            self.away[usize::from(slot)] = true;
            let commit = u64::from_ne_bytes(self.queue.load(slot, COMMIT_ID));
            self.push(self.command(COMMIT_AND_FETCH, slot, commit, None))?;
        }
        Ok(())
    }

    /// `struct fuse_uring_cmd_req` for one slot.
    fn command(
        &self,
        what: u32,
        slot: u16,
        commit: u64,
        areas: Option<*const libc::iovec>,
    ) -> squeue::Entry128 {
        let mut request = [0; 80];
        request[8..16].copy_from_slice(&commit.to_ne_bytes());
        request[16..18].copy_from_slice(&self.queue.id.to_ne_bytes());
        let entry = opcode::UringCmd80::new(self.fuse, what)
            .cmd(request)
            .addr(areas.map(|areas| areas as u64))
            .build()
            .user_data(slot.into());
        match areas {
            Some(_) => of_two_areas(entry),
            None => entry,
        }
    }

    fn watch_wake(&mut self) -> io::Result<()> {
        // It may have been read already.
        let _ = (&self.queue.wake).read(&mut [0; 8]);
        let fd = Fd(self.queue.wake.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(WOKEN);
        self.push(poll.into())
    }

    fn push(&mut self, entry: squeue::Entry128) -> io::Result<()> {
        // SAFETY: what it points to is in slots, which live as long as the queue, or is read when it is
        // submitted.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }
}

/// The same with the length that REGISTER wants, of two areas, for which the library has no word.
fn of_two_areas(mut entry: squeue::Entry128) -> squeue::Entry128 {
    /// Where `struct io_uring_sqe` has its `len`.
    const LEN: usize = 24;
    const { assert!(size_of::<squeue::Entry128>() == 128) };
    let bytes = (&raw mut entry).cast::<u8>();
    // SAFETY: it is a `struct io_uring_sqe` and 64 more bytes (`repr(C)`), so `len` is in it.
    unsafe { bytes.add(LEN).cast::<u32>().write_unaligned(2) };
    entry
}
