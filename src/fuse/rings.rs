//! Requests over io_uring: a queue and a thread for each processor, and threads for what may take long.
//!
//! A request is answered on the processor that asks, by a thread that stays there: over `/dev/fuse` the
//! threads of this process have to be woken on others, which costs more than most answers do. That thread
//! answers what is short; the rest it hands over, since while it works nothing else that its processor
//! asks is answered. It never waits for the kernel to ask and be answered (`ring`).
//!
//! `/dev/fuse` still tells of what is forgotten and interrupted, and takes notices.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Requests;
use super::device::Device;
use super::dispatch::Adapter;
use super::giving_way::{self, GivingWay};
use super::mount::{self, REQUEST_DATA_MAX};
use super::operations::Operations;
use super::reply::Channel;
use super::ring::{self, Fetched, Fetcher, Next, Queue};
use super::team::Team;
use super::threads::{Source, Taken};

/// Requests of one processor that may be under way: beyond that others wait, also those that memory could
/// answer. Of all, read-ahead and write-back take [`BACKGROUND_MAX`].
pub(super) const SLOTS: u16 = 128;
/// Read-ahead and write-back requests that the kernel may have under way (`max_background`): each may hold 1 MiB
/// here. It reads ahead no more than it must from [`CONGESTED`] on, so that readers who wait for the network
/// leave room to write.
pub(super) const BACKGROUND_MAX: u16 = 32;
pub(super) const CONGESTED: u16 = BACKGROUND_MAX / 2;
/// How long the rings may take to stand.
const START_MAX: Duration = Duration::from_secs(10);
/// How long is waited for more to forget.
const FORGETS: Duration = Duration::from_millis(1);

/// Why requests cannot come over io_uring here, in words.
pub(super) fn unavailable(offered: bool) -> Option<String> {
    if !offered {
        return Some(
            "this kernel does not offer it: Linux has it from 6.14 on, where root has \
                     switched it on (echo Y > /sys/module/fuse/parameters/enable_uring)"
                .into(),
        );
    }
    if let Err(e) = ring::check() {
        return Some(format!("this process gets no io_uring: {e}"));
    }
    if let Err(e) = possible_processors() {
        return Some(format!("the processors of this machine cannot be counted: {e}"));
    }
    let e = giving_way::check().err()?;
    Some(format!("this process may not let its threads give way (CAP_SYS_NICE): {e}"))
}

/// Starts all threads. The watch holds how many are left; also what they count. Returns when the kernel has
/// taken every ring, before which it answers nobody.
///
/// # Errors
/// What the kernel says to a ring, or to a thread; the mount must be taken away.
pub(super) fn start(
    kernel: &mount::KernelSession,
    adapter: &Arc<Adapter>,
    threads: usize,
    runtime: &Handle,
    point: &Path,
) -> io::Result<(watch::Receiver<usize>, Operations)> {
    let mut team = Team::new(kernel, runtime);
    let processors = possible_processors()?;
    let shared =
        Arc::new(Shared { long: Long::default(), giving_way: GivingWay::new(processors.into()) });
    start_all(&mut team, adapter, (processors, threads), point, &shared)
        .inspect_err(|_| shared.end())?;
    Ok(team.complete())
}

fn start_all(
    team: &mut Team<'_>,
    adapter: &Arc<Adapter>,
    (processors, threads): (u16, usize),
    point: &Path,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let all_large = Arc::default();
    let (say, heard) = mpsc::channel();
    for id in 0..processors {
        let server = Server {
            adapter: Arc::clone(adapter),
            device: team.device()?,
            shared: Arc::clone(shared),
            number: id.into(),
        };
        let (say, point, all_large) = (say.clone(), point.to_owned(), Arc::clone(&all_large));
        team.spawn(format!("fuse-cpu{id}"), move || {
            stay_on(id);
            let _begun = server.shared.giving_way.begin(server.number);
            let queue = Queue::new(id, SLOTS, REQUEST_DATA_MAX as usize, all_large);
            let registered = queue.and_then(|queue| Fetcher::register(queue, &server.device));
            let mut fetcher = match registered {
                Ok(fetcher) => fetcher,
                Err(e) => return drop(say.send(Err(e))),
            };
            let _ = say.send(Ok(())); // who started it may have given up
            let served = catch_unwind(AssertUnwindSafe(|| server.serve(&mut fetcher)));
            let failed = match served {
                Ok(Ok(())) => return,
                // Linux may say otherwise of a slot while it takes the ring away.
                Ok(Err(_)) if server.device.has_ended() => return,
                Ok(Err(e)) => e.to_string(),
                Err(_) => "its thread panicked; see above".into(),
            };
            // Nobody else can answer what this processor asks.
            log::error!("the ring of processor {id} has ended, and the mount with it: {failed}");
            mount::abort(&point);
        })?;
    }
    for number in 0..threads {
        let shared = Arc::clone(shared);
        team.spawn(format!("fuse-{number}"), move || shared.long.serve())?;
    }
    for _ in 0..processors {
        heard.recv_timeout(START_MAX).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    let guard = Arc::clone(shared);
    team.spawn("fuse-guard".into(), move || guard.giving_way.guard())?;
    let mut rest = Requests::new(Arc::clone(adapter), team.device()?);
    let (shared, point) = (Arc::clone(shared), point.to_owned());
    team.spawn("fuse-dev".into(), move || {
        if let Err(e) = serve_rest(&mut rest) {
            log::error!("cannot read from the kernel what it forgets, and end the mount: {e}");
            mount::abort(&point);
        }
        shared.end();
    })
}

/// What all threads have.
struct Shared {
    long: Long,
    giving_way: GivingWay,
}

impl Shared {
    fn end(&self) {
        self.long.end();
        self.giving_way.end();
    }
}

/// What the thread of a processor answers with.
struct Server {
    adapter: Arc<Adapter>,
    device: Arc<Device>,
    shared: Arc<Shared>,
    /// Its number among those that give way.
    number: usize,
}

impl Server {
    fn serve(&self, fetcher: &mut Fetcher) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let fetched = match fetcher.next(&mut buffer)? {
                Next::Request(fetched) => fetched,
                Next::Ended => return Ok(()),
            };
            self.shared.giving_way.has_request(self.number);
            let (adapter, device) = (Arc::clone(&self.adapter), Arc::clone(&self.device));
            let long = &self.shared.long;
            match fetched {
                Fetched::Copied(place) if adapter.answers_in_place(&buffer) => {
                    adapter.handle(&device, Channel::Ring(place), &buffer);
                }
                Fetched::Copied(place) => {
                    let request = buffer.clone();
                    long.give(move || adapter.handle(&device, Channel::Ring(place), &request));
                }
                Fetched::InPlace(request, place) => {
                    let handle = move || {
                        adapter.handle(&device, Channel::Ring(place), request.bytes());
                    };
                    long.give(handle);
                }
            }
        }
    }
}

/// What may take long, and the threads that do it.
#[derive(Default)]
struct Long {
    jobs: Mutex<Jobs>,
    given: Condvar,
}

#[derive(Default)]
struct Jobs {
    /// At most one for each slot.
    waiting: VecDeque<Box<dyn FnOnce() + Send>>,
    ended: bool,
}

impl Long {
    fn give(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.lock().waiting.push_back(Box::new(job));
        self.given.notify_one();
    }

    /// Does what is given, as one of the threads, until the end.
    fn serve(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            match jobs.waiting.pop_front() {
                Some(job) => {
                    drop(jobs);
                    job();
                    jobs = self.jobs.lock();
                }
                None if jobs.ended => return,
                None => self.given.wait(&mut jobs),
            }
        }
    }

    fn end(&self) {
        self.jobs.lock().ended = true;
        self.given.notify_all();
    }
}

/// Takes what the kernel still says over `/dev/fuse`. What is forgotten comes together if one waits a
/// little; nobody waits for it.
fn serve_rest(rest: &mut Requests) -> io::Result<()> {
    loop {
        match rest.take()? {
            Taken::Request { .. } => rest.handle(),
            Taken::Ended => return Ok(()),
            Taken::Nothing => {
                rest.sleep()?;
                thread::sleep(FORGETS);
            }
        }
    }
}

/// How many queues the kernel wants: one for each processor that there may ever be. It takes the numbers of
/// processors for those of queues, so that there must be no holes in them.
fn possible_processors() -> io::Result<u16> {
    let path = "/sys/devices/system/cpu/possible";
    let list = std::fs::read_to_string(path)?;
    count_of(list.trim()).ok_or_else(|| io::Error::other(format!("{path} says {:?}", list.trim())))
}

/// How many there are in a list as `0-3`; none where it is another one.
fn count_of(list: &str) -> Option<u16> {
    let last = if list == "0" { list } else { list.strip_prefix("0-")? };
    last.parse::<u16>().ok()?.checked_add(1)
}

/// Keeps this thread on a processor. Where that is not there, or not for this process, it stays free.
fn stay_on(processor: u16) {
    // SAFETY: zeros are the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if usize::from(processor) >= 8 * size_of::<libc::cpu_set_t>() {
        return;
    }
    // SAFETY: the processor is in the range of the set, which outlives the call.
    let set = unsafe {
        libc::CPU_SET(processor.into(), &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if set != 0 {
        log::debug!("processor {processor}: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_queues_as_the_kernel_wants() {
        // Guards against a mount that answers nobody, since Linux waits for the queue of each processor.
        for (list, count) in [("0", 1), ("0-1", 2), ("0-255", 256)] {
            assert_eq!(count_of(list), Some(count), "{list}");
        }
        for list in ["", "0-x", "0-3,8", "1-3", "0-65535"] {
            assert_eq!(count_of(list), None, "{list}");
        }
        assert!(possible_processors().is_ok_and(|n| n >= 1));
    }

    #[test]
    fn what_was_given_is_done_before_the_end() {
        // Guards against an answer that nobody gives at an unmount.
        let (long, (say, heard)) = (Long::default(), mpsc::channel());
        for number in 0..3 {
            let say = say.clone();
            long.give(move || say.send(number).expect("heard"));
        }
        long.end();
        long.serve();
        drop(say);
        assert_eq!(heard.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
