//! Routes each request to its operation, and answers it where it stands or from tokio.
//!
//! The pattern of every operation (docs/ARCHITECTURE.md "A write"): decode, build the future from `fs`, poll it once
//! on the request thread; what memory can answer is answered there. Only a future that is
//! pending is handed to tokio and answered from a worker. Request threads therefore never wait
//! for the network; what they wait for is the local disk: in an `fsync` that meets no other, where a
//! record of the journal starts a new file, and behind each other.

use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::select;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::base::Ino;
use crate::fs::{Attr, Caller, FsError, Keeps, Tree};

use super::abi::{self, Body, ENTRY_LEN, Header, Malformed, Out, Terms, TtlSecs, opcode as op};
use super::device::Device;
use super::errno::Errno;
use super::mount::Negotiated;
use super::nodes::{self, Nodes};
use super::options::{Options, TTL_FOLLOWER, TTL_WRITER as TTL_FOREVER};
use super::reply::{Channel, Reply};
use super::rings::SLOTS;
use super::signals::{has_ended, is_dying};
use super::stores::Stores;

/// What all request threads of a mount share.
pub struct Adapter {
    pub(super) fs: Arc<Tree>,
    pub(super) common: Arc<Common>,
    /// Opening a file is a request. It costs one, and is wanted where files may not be opened for
    /// writing that Linux would let pass: those of snapshots.
    pub(super) answers_open: bool,
    /// Small files that the kernel is given when they are opened: where it asks to open every one.
    pub(super) stores: Option<Arc<Stores>>,
    /// `-o fsync=remote`: `fsync` returns when the bucket has it.
    pub(super) fsync_remote: bool,
    /// The kernel sends the 16-byte SETXATTR header (`FUSE_SETXATTR_EXT`).
    pub(super) setxattr_ext: bool,
    /// The kernel keeps written pages for a while (`FUSE_WRITEBACK_CACHE`).
    pub(super) write_back: bool,
    /// Nobody tells of signals: no INTERRUPT was seen of Linux 6.18 for requests that came over a ring.
    looks_for_signals: bool,
    /// How many LSEEKs may wait for pages to be written back. Over a ring each holds a slot, which the WRITEs
    /// that it waits for may need.
    pub(super) seeks: Arc<Semaphore>,
    runtime: Handle,
    interruptible: Interruptible,
}

/// Requests handed to tokio that may be given up when their caller ends, and who that is. Bounded
/// by the requests the kernel has under way.
type Interruptible = Arc<Mutex<HashMap<u64, (AbortHandle, u32)>>>;

/// What an answer is given by, at the time when it is given: the role may have changed since it was
/// asked for.
pub(super) struct Common {
    fs: Arc<Tree>,
    /// How long the kernel may keep names and attributes of a mount that writes.
    ttl: TtlSecs,
    /// Nothing of it ever changes: as long as that.
    frozen: bool,
    /// Nothing on the mount may give power, and Linux would let it.
    powerless: AtomicBool,
    pub(super) nodes: Nodes,
    stores: Option<Arc<Stores>>,
}

impl Common {
    fn is_followed(&self) -> bool {
        !self.frozen && !self.fs.volume().is_writer()
    }

    /// On which terms the kernel gets attributes of the volume now.
    pub(super) fn terms(&self) -> Terms {
        let ttl = match self.is_followed() {
            false => self.ttl,
            true => TTL_FOLLOWER,
        };
        Terms { ttl, name_ttl: ttl, powerless: self.powerless.load(Ordering::SeqCst) }
    }

    /// On which terms it gets those of `ino`.
    pub(super) fn terms_of(&self, ino: Ino) -> Terms {
        terms_for(&self.fs, ino, self.terms())
    }

    /// The number that the kernel gets for the file of `attr`.
    pub(super) fn node(&self, attr: &Attr, device: &Arc<Device>) -> u64 {
        let ino = attr.ino;
        let times_known = || self.fs.volume().times_known(ino);
        let shown = self.nodes.show(attr, self.is_followed(), times_known);
        drop_pages(shown.former, device);
        shown.node
    }

    /// Looks whether the file that the kernel asked about by `asked` has changed behind its back.
    pub(super) fn look(&self, asked: u64, attr: &Attr, device: &Arc<Device>) {
        if self.is_followed() {
            drop_pages(self.nodes.look(asked, attr).former, device);
        }
    }

    /// The kernel has written to a file, and was refused: it is to forget what it believes of it.
    pub(super) fn refused(&self, node: u64, device: &Arc<Device>) {
        self.nodes.distrust(nodes::ino_of(node));
        drop_pages(Some(node), device);
    }

    /// Returns when what was begun to be stored in the kernel is stored, by the state that was current
    /// then. Blocks: never call it on a request thread.
    pub(super) fn settle_stores(&self) {
        if let Some(stores) = &self.stores {
            stores.settle();
        }
    }

    /// The kernel forgets `nlookup` of its references to `ino`.
    pub(super) fn forget(&self, ino: Ino, nlookup: u64) {
        self.fs.forget(ino, nlookup);
        if let Some(stores) = &self.stores {
            stores.forget(ino);
        }
        self.nodes.forget(ino, || self.fs.volume().times_known(ino));
    }
}

/// Has the kernel read again what it shows through handles that are open on a former number.
fn drop_pages(former: Option<u64>, device: &Arc<Device>) {
    let Some(former) = former else { return };
    let device = Arc::clone(device);
    tokio::task::spawn_blocking(move || {
        if let Err(e) = device.write_back(former, 0..u64::MAX) {
            log::debug!("the kernel keeps pages of node {former:x}: {e}");
        }
    });
}

/// How often it is looked whether a caller that got a signal is about to end.
const DYING_LOOK: Duration = Duration::from_millis(250);

/// One request on its way through its operation: who asks about what, and the answer due.
pub(super) struct Request<'a> {
    pub header: Header,
    pub body: Body<'a>,
    pub reply: Reply,
}

impl Request<'_> {
    pub fn ino(&self) -> Ino {
        nodes::ino_of(self.header.nodeid)
    }

    /// The number by which the kernel asked.
    pub fn node(&self) -> u64 {
        self.header.nodeid
    }

    pub fn caller(&self) -> Caller {
        Caller { uid: self.header.uid, gid: self.header.gid, pid: self.header.pid }
    }
}

/// Whether a pending operation may be dropped half-way when a signal ends its caller: only what
/// changes nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupt {
    Allowed,
    Never,
}

/// Data up to this length is sealed or opened in the time of a few wake-ups, bytes.
const SHORT_DATA_MAX: u32 = 64 << 10;
/// Forgets that one request may bring to be short; it may bring 65,000.
const SHORT_FORGETS_MAX: u32 = 256;

/// Whether a request is, as a rule, answered from memory and the page cache of the journal, or
/// handed to tokio, within tens of microseconds. Not those that wait for the disk, move much data
/// or go through many rows.
fn is_short(request: &[u8]) -> bool {
    let Ok((header, body)) = abi::split(request) else { return true }; // refused at once
    let mut body = Body::new(body);
    let looked = match header.opcode {
        op::READ => body.read_in().map(|read| read.len <= SHORT_DATA_MAX),
        op::WRITE => body.write_in().map(|w| w.len <= SHORT_DATA_MAX && !w.synchronous),
        op::BATCH_FORGET => body.u32().map(|count| count <= SHORT_FORGETS_MAX),
        op::FSYNC | op::FSYNCDIR | op::FALLOCATE | op::LSEEK => Ok(false),
        op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => Ok(false),
        op::READDIR | op::READDIRPLUS | op::LISTXATTR => Ok(false),
        _ => Ok(true),
    };
    looked.unwrap_or(true) // refused at once
}

/// Whether it asks for a sync.
fn is_sync(request: &[u8]) -> bool {
    abi::split(request).is_ok_and(|(rq, _)| matches!(rq.opcode, op::FSYNC | op::FSYNCDIR))
}

fn is_listing(request: &[u8]) -> bool {
    abi::split(request).is_ok_and(|(rq, _)| matches!(rq.opcode, op::READDIR | op::READDIRPLUS))
}

impl Adapter {
    /// [`is_short`], where it depends on more than the request.
    pub(super) fn answers_soon(&self, request: &[u8]) -> bool {
        is_short(request) || is_sync(request) && self.joins_syncs()
    }

    /// The same for a thread that answers what one processor asks: a page of a listing takes less than to hand it
    /// over and to wake who asked on another.
    pub(super) fn answers_in_place(&self, request: &[u8]) -> bool {
        is_short(request) || is_listing(request)
    }

    /// Whether a sync of the disk is under way, so that another leaves word and does not wait. If
    /// it has ended by then, the next is made by the leader, whom the guard relieves.
    fn joins_syncs(&self) -> bool {
        !self.fsync_remote && self.fs.volume().is_syncing()
    }

    pub(super) fn new(
        fs: Arc<Tree>,
        options: &Options,
        agreed: Negotiated,
        runtime: Handle,
    ) -> Adapter {
        let interruptible = Arc::default();
        let Negotiated { setxattr_ext, write_back, rings } = agreed;
        let (powerless, nodes) = (AtomicBool::new(false), Nodes::new(write_back));
        let answers_open = fs.refuses_some() && !options.read_only;
        let (ttl, frozen) = (options.ttl, options.frozen);
        // A store may wait for the answer to a READ, which the thread of a ring may not.
        let stores = (answers_open && options.threads > 1 && !rings).then(Stores::new);
        let common =
            Common { fs: Arc::clone(&fs), ttl, frozen, powerless, nodes, stores: stores.clone() };
        Adapter {
            fs,
            common: Arc::new(common),
            answers_open,
            stores,
            fsync_remote: options.fsync_remote,
            setxattr_ext,
            write_back,
            looks_for_signals: rings,
            seeks: Arc::new(Semaphore::new(match rings {
                true => usize::from(SLOTS) / 2,
                false => Semaphore::MAX_PERMITS,
            })),
            runtime,
            interruptible,
        }
    }

    /// The inode that a request is about, unless the kernel goes by a state of it that is none any
    /// more.
    pub(super) fn changeable(&self, rq: &Request<'_>) -> Option<Ino> {
        (!self.common.nodes.is_former(rq.node())).then(|| rq.ino())
    }

    /// From now on the kernel gets attributes with or without what gives power, those included
    /// that it has. Costs a short message for every inode that it knows.
    pub(super) fn set_powerless(&self, powerless: bool, device: &Device) {
        if self.common.powerless.swap(powerless, Ordering::SeqCst) == powerless {
            return;
        }
        for ino in self.fs.known_inodes() {
            if let Err(e) = device.refresh_attributes(ino.0) {
                log::error!("the kernel keeps the old attributes of inode {ino}: {e}");
            }
        }
    }

    /// Answers one request, by `channel`; `device` is the thread's. Never panics: a bug in a handler is
    /// logged and its request answered with `EIO`.
    pub fn handle(&self, device: &Arc<Device>, channel: Channel, request: &[u8]) {
        let Ok((header, body)) = abi::split(request) else {
            log::error!("a request of {} bytes has no valid header; ignored", request.len());
            return;
        };
        let reply = Reply::new(device, channel, &header);
        let request = Request { header, body: Body::new(body), reply };
        match catch_unwind(AssertUnwindSafe(|| self.route(request))) {
            Ok(Ok(())) => {}
            // The dropped reply has answered EIO in both cases.
            Ok(Err(Malformed)) => {
                log::error!("a request of type {} is malformed; refused", header.opcode);
            }
            Err(_) => log::error!("a request of type {} panicked; see above", header.opcode),
        }
    }

    fn route(&self, rq: Request<'_>) -> Result<(), Malformed> {
        match rq.header.opcode {
            op::LOOKUP => self.lookup(rq),
            op::FORGET => self.forget(rq),
            op::BATCH_FORGET => self.batch_forget(rq),
            op::MKNOD => self.mknod(rq),
            op::MKDIR => self.mkdir(rq),
            op::SYMLINK => self.symlink(rq),
            op::READLINK => self.readlink(rq),
            op::LINK => self.link(rq),
            op::UNLINK => self.unlink(rq),
            op::RMDIR => self.rmdir(rq),
            op::RENAME => self.rename(rq),
            op::RENAME2 => self.rename2(rq),
            op::TMPFILE => self.tmpfile(rq),
            op::GETATTR => self.getattr(rq),
            op::STATX => self.statx(rq),
            op::SETATTR => self.setattr(rq),
            op::STATFS => self.statfs(rq),
            op::READ => self.read(rq),
            op::WRITE => self.write(rq),
            op::FSYNC => self.fsync(rq),
            op::FALLOCATE => self.fallocate(rq),
            op::LSEEK => self.lseek(rq),
            op::COPY_FILE_RANGE => self.copy_file_range(rq, false),
            op::COPY_FILE_RANGE_64 => self.copy_file_range(rq, true),
            op::READDIR => self.readdir(rq),
            op::READDIRPLUS => self.readdirplus(rq),
            op::FSYNCDIR => self.fsyncdir(rq),
            op::SETXATTR => self.setxattr(rq),
            op::GETXATTR => self.getxattr(rq),
            op::LISTXATTR => self.listxattr(rq),
            op::REMOVEXATTR => self.removexattr(rq),
            op::INTERRUPT => self.interrupt(rq),
            op::RELEASE => self.release(rq),
            // FLUSH has nothing left to do: Linux has written the dirty pages back before. But it
            // drops pages silently when the daemon is gone, and only the failure of a FLUSH
            // then fails close(2); so Linux must never learn to do without.
            op::FLUSH | op::RELEASEDIR | op::DESTROY => {
                rq.reply.done();
                Ok(())
            }
            op::IOCTL => {
                rq.reply.error(Errno::NO_SUCH_IOCTL);
                Ok(())
            }
            op::OPEN if self.answers_open => self.open(rq),
            op::CREATE if self.answers_open => self.create(rq),
            // Among them OPENDIR and ACCESS, and OPEN and CREATE where nothing hangs on them, which
            // Linux then does itself and asks no more: an open file is only its inode (kept by
            // lookup counts), a file is created with MKNOD, and `default_permissions` checks access.
            _ => {
                rq.reply.error(Errno::NO_SUCH_OPERATION);
                Ok(())
            }
        }
    }

    /// Runs an operation to its answer: polled once here, else on tokio.
    pub(super) fn run_to<T, F, A>(&self, mut reply: Reply, interrupt: Interrupt, op: F, answer: A)
    where
        T: Send + 'static,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
        A: FnOnce(Reply, Result<T, FsError>) + Send + 'static,
    {
        let (unique, caller) = (reply.unique(), reply.caller());
        if interrupt == Interrupt::Allowed {
            reply.set_interruptible();
        }
        let mut task = Box::pin(async move {
            let result = op.await;
            answer(reply, result);
        });
        if let Poll::Ready(()) = task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return;
        }
        match interrupt {
            Interrupt::Never => drop(self.runtime.spawn(task)),
            Interrupt::Allowed => {
                let table = Arc::clone(&self.interruptible);
                // Held across the spawn, so that the task cannot leave the table before it
                // has entered it.
                let mut waiting = self.interruptible.lock();
                let looks = self.looks_for_signals;
                let handle = self.runtime.spawn(async move {
                    let _leave = Leave { table, unique };
                    match looks {
                        true => drop(select(task, pin!(dies(caller))).await),
                        false => task.await,
                    }
                });
                waiting.insert(unique, (handle.abort_handle(), caller));
            }
        }
    }

    /// [`Adapter::run_to`] for operations whose errors are answered as they are.
    pub(super) fn run<T, F, A>(&self, reply: Reply, interrupt: Interrupt, op: F, answer: A)
    where
        T: Send + 'static,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
        A: FnOnce(Reply, T) + Send + 'static,
    {
        self.run_to(reply, interrupt, op, move |reply, result| match result {
            Ok(value) => answer(reply, value),
            Err(e) => reply.error(e),
        });
    }

    /// An operation with nothing to report but success.
    pub(super) fn run_unit<F>(&self, reply: Reply, op: F)
    where
        F: Future<Output = Result<(), FsError>> + Send + 'static,
    {
        self.run(reply, Interrupt::Never, op, |reply, ()| reply.done());
    }

    /// An operation that makes or finds a name and counts one lookup of its inode.
    pub(super) fn run_entry<F>(&self, reply: Reply, op: F)
    where
        F: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let common = Arc::clone(&self.common);
        self.run(reply, Interrupt::Never, op, move |reply, attr| {
            answer_entry(&common, reply, &attr);
        });
    }

    fn interrupt(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let unique = rq.body.u64()?;
        // Linux tells of the first signal only, which may be one that the caller handles; and
        // another thread may be about to hand the request to tokio.
        if give_up_if_dying(&self.interruptible, unique) != Looked::GivenUp {
            let waiting = Arc::clone(&self.interruptible);
            self.runtime.spawn(async move {
                let mut looked = Looked::Waits;
                while looked == Looked::Waits {
                    tokio::time::sleep(DYING_LOOK).await;
                    looked = give_up_if_dying(&waiting, unique);
                }
            });
        }
        rq.reply.none();
        Ok(())
    }
}

/// What looking after an interrupted request came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looked {
    GivenUp,
    /// It was answered, must run to its end, or is not handed to tokio yet.
    Absent,
    Waits,
}

/// Gives a request up whose caller is about to end.
fn give_up_if_dying(waiting: &Interruptible, unique: u64) -> Looked {
    let caller = waiting.lock().get(&unique).map(|(_, caller)| *caller);
    let Some(caller) = caller else { return Looked::Absent };
    if !is_dying(caller) {
        return Looked::Waits;
    }
    if let Some((task, _)) = waiting.lock().remove(&unique) {
        task.abort();
    }
    Looked::GivenUp
}

/// Returns when a signal ends thread `caller`, or has: what was read ahead for it nobody waits for.
async fn dies(caller: u32) {
    loop {
        tokio::time::sleep(DYING_LOOK).await;
        if is_dying(caller) || has_ended(caller) {
            return;
        }
    }
}

/// The terms for `ino`, where those of the volume are `terms`.
pub(super) fn terms_for(fs: &Tree, ino: Ino, terms: Terms) -> Terms {
    match fs.keeps(ino) {
        Keeps::AsVolume => terms,
        Keeps::AttributesOnly => Terms { ttl: TTL_FOREVER, name_ttl: TtlSecs(0), ..terms },
        Keeps::Nothing => Terms { ttl: TtlSecs(0), name_ttl: TtlSecs(0), ..terms },
        Keeps::Forever => Terms { ttl: TTL_FOREVER, name_ttl: TTL_FOREVER, ..terms },
    }
}

/// Answers with an entry, and takes the counted lookup back if the kernel did not want it.
pub(super) fn answer_entry(common: &Common, reply: Reply, attr: &Attr) {
    let mut out = Out::with_capacity(ENTRY_LEN);
    out.entry(common.node(attr, reply.device()), attr, common.terms_of(attr.ino));
    if !reply.out(&out) {
        common.forget(attr.ino, 1);
    }
}

/// Takes a finished or aborted task out of the table of interruptible ones.
struct Leave {
    table: Interruptible,
    unique: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.table.lock().remove(&self.unique);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let len = (abi::HEADER_LEN + body.len()) as u32;
        let mut bytes = [len.to_ne_bytes(), opcode.to_ne_bytes()].concat();
        bytes.resize(abi::HEADER_LEN, 0);
        bytes.extend_from_slice(body);
        bytes
    }

    /// The body of a READ or a WRITE: file handle, offset, length, flags, lock owner, flags of
    /// the open file.
    fn data_request(opcode: u32, len: u32, open_flags: i32) -> Vec<u8> {
        let mut body = vec![0; 16];
        body.extend(len.to_ne_bytes());
        body.extend([0; 12]);
        body.extend(open_flags.to_ne_bytes());
        body.extend([0; 4]);
        request(opcode, &body)
    }

    #[test]
    fn what_waits_or_takes_long_is_not_short() {
        // The one who reads such a request must let another wait for the next.
        let long = [
            data_request(op::READ, SHORT_DATA_MAX + 1, 0),
            data_request(op::WRITE, SHORT_DATA_MAX + 1, 0),
            data_request(op::WRITE, 1, libc::O_SYNC),
            data_request(op::WRITE, 1, libc::O_DSYNC),
            request(op::BATCH_FORGET, &[1000u32.to_ne_bytes(), [0; 4]].concat()),
            request(op::FSYNC, &[0; 16]),
            request(op::READDIRPLUS, &[0; 40]),
        ];
        for bytes in long {
            assert!(!is_short(&bytes), "{bytes:?}");
        }
        let short = [
            data_request(op::READ, SHORT_DATA_MAX, 0),
            data_request(op::WRITE, SHORT_DATA_MAX, libc::O_APPEND),
            request(op::BATCH_FORGET, &[2u32.to_ne_bytes(), [0; 4]].concat()),
            request(op::LOOKUP, b"name\0"),
            request(op::READ, &[0; 3]), // malformed: refused at once
        ];
        for bytes in short {
            assert!(is_short(&bytes), "{bytes:?}");
        }
    }
}
