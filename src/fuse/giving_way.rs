//! Threads that give way to whoever they answer (`SCHED_IDLE`, sched(7)).
//!
//! Linux wakes who gets an answer on another processor if one is idle, since the one that answers is not; there
//! its next question goes to another queue, and so on: each answer costs the wake-up of a processor. But a
//! processor on which nothing runs but `SCHED_IDLE` counts as idle: whoever is answered stays, and goes on
//! at once. Measured: a quarter to a half less for each small operation (docs/PERFORMANCE.md).
//!
//! Such a thread gets next to nothing beside one that computes. So it gives way only while requests come fast,
//! and a guard looks every [`LOOK`]: one that wants to run and has not got on since the last look, or whose requests lay
//! for a while each, is a thread like any other again for some time.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How often the guard looks: about twice that is what a request may lie because of this.
const LOOK: Duration = Duration::from_millis(5);
/// What a request may lie on average between two looks. Who computes that long between two questions gains
/// nothing here anyway.
const LATE: Duration = Duration::from_micros(200);
/// A thread gives way if it gets as many requests between two looks.
const FAST: u64 = 4;
/// Looks without a request after which it does not any more. The guard sleeps once none does.
const QUIET: u32 = 20;
/// For how many looks it does not after a request had to wait: each time twice as many, up to the second.
const HOLD: (u32, u32) = (4, 100);
/// Looks in which none had to wait, after which the times before are forgotten.
const GOOD: u32 = 40;

/// One thread, as the guard saw it.
#[derive(Debug, Default)]
struct Seen {
    gives_way: bool,
    requests: u64,
    /// Looks in a row without a request.
    quiet: u32,
    /// How long it has wanted to run and did not, all told.
    delay: Duration,
    /// It wanted to run, and did not, until the last look. Whether there was a request for it shows now.
    waited: bool,
    /// For how many more looks it may not.
    held: u32,
    /// For how many it might not the last time.
    hold: u32,
    /// Looks since it began to.
    good: u32,
}

impl Seen {
    /// Looks at a thread that has had so many `requests` by now. Returns whether it is to give way from now on, if
    /// that changes.
    fn look(
        &mut self,
        requests: u64,
        delay: Duration,
        wants_to_run: impl FnOnce() -> bool,
    ) -> Option<bool> {
        let came = requests - self.requests;
        let each = delay.saturating_sub(self.delay) / came.max(1).try_into().unwrap_or(u32::MAX);
        (self.requests, self.delay) = (requests, delay);
        self.quiet = if came == 0 { self.quiet + 1 } else { 0 };
        self.held = self.held.saturating_sub(1);
        let before = self.gives_way;
        let late = before && came > 0 && each > LATE;
        if late || std::mem::take(&mut self.waited) && came > 0 {
            self.hold = (2 * self.hold).clamp(HOLD.0, HOLD.1);
            self.held = self.hold;
        }
        if !before {
            self.gives_way = came >= FAST && self.held == 0;
            self.good = 0;
        } else if late {
            self.gives_way = false;
        } else if came == 0 && wants_to_run() {
            (self.waited, self.gives_way) = (true, false);
        } else {
            self.good += 1;
            if self.good >= GOOD {
                self.hold = 0;
            }
            self.gives_way = self.quiet < QUIET;
        }
        (self.gives_way != before).then_some(self.gives_way)
    }

    fn is_at_rest(&self) -> bool {
        !self.gives_way && self.quiet >= QUIET
    }
}

/// No thread has this number.
const NONE: i32 = 0;

#[derive(Debug, Default)]
struct Watched {
    /// [`NONE`]: it has not begun, or has ended.
    thread: AtomicI32,
    requests: AtomicU64,
}

/// A thread that the guard may look at.
pub(super) struct Begun<'a>(&'a Watched);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.thread.store(NONE, SeqCst);
    }
}

/// The threads of a mount, and their guard.
#[derive(Debug)]
pub(super) struct GivingWay {
    watched: Vec<Watched>,
    guard_sleeps: AtomicBool,
    ended: Mutex<bool>,
    called: Condvar,
}

impl GivingWay {
    pub fn new(threads: usize) -> GivingWay {
        GivingWay {
            watched: (0..threads).map(|_| Watched::default()).collect(),
            guard_sleeps: AtomicBool::new(false),
            ended: Mutex::new(false),
            called: Condvar::new(),
        }
    }

    /// Notes that this thread is number `index`, until it drops what it gets.
    pub fn begin(&self, index: usize) -> Begun<'_> {
        // SAFETY: takes nothing and cannot fail (gettid(2)).
        self.watched[index].thread.store(unsafe { libc::gettid() }, SeqCst);
        Begun(&self.watched[index])
    }

    /// Notes that thread `index` has got a request.
    pub fn has_request(&self, index: usize) {
        self.watched[index].requests.fetch_add(1, Relaxed);
        // It may be seen late: then the next request wakes the guard.
        if self.guard_sleeps.load(Relaxed) && self.guard_sleeps.swap(false, SeqCst) {
            let _lock = self.ended.lock();
            self.called.notify_one();
        }
    }

    /// Stands guard until the end. When it returns, no thread gives way.
    pub fn guard(&self) {
        let mut seen: Vec<Seen> = self.watched.iter().map(|_| Seen::default()).collect();
        let mut ended = self.ended.lock();
        while !*ended {
            if seen.iter().all(Seen::is_at_rest) {
                self.guard_sleeps.store(true, SeqCst);
                self.called.wait(&mut ended);
                self.guard_sleeps.store(false, SeqCst);
            } else {
                self.called.wait_for(&mut ended, LOOK);
            }
            for (watched, seen) in self.watched.iter().zip(&mut seen) {
                let thread = watched.thread.load(SeqCst);
                if thread == NONE {
                    *seen = Seen { quiet: QUIET, ..Seen::default() };
                    continue;
                }
                let delay = if seen.gives_way { delay(thread) } else { None };
                let delay = delay.unwrap_or(seen.delay);
                let requests = watched.requests.load(Relaxed);
                match seen.look(requests, delay, || is_runnable(thread)) {
                    Some(true) if set(thread, true).is_ok() => {
                        seen.delay = self::delay(thread).unwrap_or_default();
                    }
                    Some(true) => seen.gives_way = false,
                    Some(false) => {
                        if let Err(e) = set(thread, false) {
                            log::debug!("thread {thread} gives way as before: {e}");
                        }
                    }
                    None => {}
                }
            }
        }
        for (watched, _) in self.watched.iter().zip(&seen).filter(|(_, seen)| seen.gives_way) {
            let thread = watched.thread.load(SeqCst);
            if thread != NONE {
                let _ = set(thread, false); // it may have ended
            }
        }
    }

    pub fn end(&self) {
        *self.ended.lock() = true;
        self.called.notify_all();
    }
}

/// Whether a thread of this process runs or could (proc_pid_stat(5)).
fn is_runnable(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    let state = |stat: &str| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    stat.is_ok_and(|stat| state(&stat) == Some('R'))
}

/// How long a thread of this process has wanted to run and did not (Documentation/scheduler/sched-stats.rst).
fn delay(thread: i32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    stat.split(' ').nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// How threads of this process may run that are started from one that gives way, or stays on a processor.
#[derive(Clone, Copy)]
pub struct Ways {
    policy: i32,
    processors: libc::cpu_set_t,
}

impl Ways {
    /// As this thread does.
    pub fn of_this_thread() -> Ways {
        // SAFETY: zeros are the empty set.
        let mut processors: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is as long as is said, and outlives the call; the other takes a number.
        let policy = unsafe {
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut processors);
            libc::sched_getscheduler(0)
        };
        Ways { policy, processors }
    }

    /// From now on this thread does.
    pub fn take(&self) {
        // SAFETY: takes a number; the set outlives the call. Refused where it is empty, and nothing is to be
        // done then.
        unsafe {
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.processors);
            if libc::sched_getscheduler(0) == libc::SCHED_IDLE && self.policy != libc::SCHED_IDLE {
                let _ = set(0, false);
            }
        }
    }
}

fn set(thread: i32, gives_way: bool) -> io::Result<()> {
    let policy = if gives_way { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    // SAFETY: zeros are a valid value of this plain structure.
    let parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    match unsafe { libc::sched_setscheduler(thread, policy, &parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a thread of this process may give way and stop it again: that needs `CAP_SYS_NICE`, or
/// `RLIMIT_NICE`.
pub(super) fn check() -> io::Result<()> {
    let tried = std::thread::spawn(|| {
        set(0, true)?;
        set(0, false)
    });
    tried.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn who_waits_for_a_processor_does_not_give_way_for_a_while() {
        // Guards against requests that lie while something else computes.
        let mut seen = Seen::default();
        let mut requests = 0;
        let mut look = |seen: &mut Seen, came: u64, wants: bool| {
            requests += came;
            seen.look(requests, Duration::ZERO, || wants)
        };
        assert_eq!(look(&mut seen, FAST - 1, false), None, "too slow");
        assert_eq!(look(&mut seen, FAST, false), Some(true));
        assert_eq!(look(&mut seen, 0, false), None, "it sleeps");
        assert_eq!(look(&mut seen, 1, true), None, "it gets on");
        for hold in [HOLD.0, 2 * HOLD.0, 4 * HOLD.0] {
            assert_eq!(look(&mut seen, 0, true), Some(false), "it waits");
            for _ in 0..hold {
                assert_eq!(look(&mut seen, FAST, false), None);
            }
            assert_eq!(look(&mut seen, FAST, false), Some(true), "{hold}");
        }
        for _ in 0..GOOD {
            assert_eq!(look(&mut seen, FAST, false), None);
        }
        assert_eq!(look(&mut seen, 0, true), Some(false));
        assert_eq!(look(&mut seen, FAST, false), None);
        assert_eq!(seen.held, HOLD.0, "what was long ago is forgotten");
        while !seen.gives_way {
            look(&mut seen, FAST, false);
        }
        assert_eq!(look(&mut seen, 0, true), Some(false));
        assert_eq!(look(&mut seen, 0, false), None, "nothing waited for it");
        assert_eq!(look(&mut seen, FAST, false), Some(true));
    }

    #[test]
    fn who_has_nothing_to_do_does_not_give_way() {
        // Guards against the first request after a pause, when no guard looks.
        let mut seen = Seen::default();
        let mut look = |requests| seen.look(requests, Duration::ZERO, || false);
        assert_eq!(look(FAST), Some(true));
        for _ in 1..QUIET {
            assert_eq!(look(FAST), None);
        }
        assert_eq!(look(FAST), Some(false));
        assert!(seen.is_at_rest());
    }

    #[test]
    fn requests_that_lie_a_while_each_end_it_too() {
        // Guards against two programs on a processor that compute a little between their questions: some get
        // on in each look, and all lie as long as the other computes.
        let mut seen = Seen::default();
        let at = Duration::from_micros;
        assert_eq!(seen.look(10, at(0), || false), Some(true));
        assert_eq!(seen.look(20, at(1500), || true), None, "150 us each");
        assert_eq!(seen.look(22, at(2500), || true), Some(false), "500 us each");
        for n in 0..u64::from(HOLD.0) - 1 {
            assert_eq!(seen.look(30 + 10 * n, at(2500), || false), None);
        }
        assert_eq!(seen.look(100, at(2500), || false), Some(true));
    }

    #[test]
    fn what_a_thread_starts_runs_like_any_other() {
        // Guards against threads of the runtime that get next to nothing for the rest of their lives, because the
        // request that started them came on a ring.
        let ways = Ways::of_this_thread();
        let looked = std::thread::spawn(move || {
            if set(0, true).is_err() {
                return None;
            }
            let child = std::thread::spawn(move || {
                let before = policy(0);
                ways.take();
                (before, policy(0))
            });
            child.join().ok()
        });
        match looked.join().expect("ends") {
            Some((before, after)) => {
                assert_eq!(before, libc::SCHED_IDLE, "it inherits that");
                assert_eq!(after, policy(0));
            }
            None => eprintln!("skipped: this process may not give way"),
        }
    }

    fn policy(thread: i32) -> i32 {
        // SAFETY: takes a number.
        unsafe { libc::sched_getscheduler(thread) }
    }

    #[test]
    fn the_guard_sees_a_thread_that_is_kept_from_running() {
        // Guards against a mount that hangs beside a program that computes: as long as one thread computes on a
        // processor, another there that gives way is not run.
        if let Err(e) = check() {
            return eprintln!("skipped: {e}");
        }
        let giving = Arc::new(GivingWay::new(1));
        let (guard, worker) = (Arc::clone(&giving), Arc::clone(&giving));
        let guard = std::thread::spawn(move || guard.guard());
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let works = std::thread::spawn(move || {
            let _begun = worker.begin(0);
            while !until.load(SeqCst) {
                worker.has_request(0);
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let thread = || giving.watched[0].thread.load(SeqCst);
        let begun = Instant::now();
        let within = |what: &str, holds: &dyn Fn() -> bool| {
            while !holds() {
                assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        within("it gives way", &|| thread() != 0 && policy(thread()) == libc::SCHED_IDLE);
        // On every processor there is something to do.
        let count = std::thread::available_parallelism().expect("processors").get();
        let computing: Vec<_> = (0..count)
            .map(|_| {
                let until = Arc::clone(&stop);
                std::thread::spawn(move || while !until.load(SeqCst) {})
            })
            .collect();
        within("it does not any more", &|| policy(thread()) == libc::SCHED_OTHER);
        let had = giving.watched[0].requests.load(SeqCst);
        within("it gets on", &|| giving.watched[0].requests.load(SeqCst) > had + 10);
        stop.store(true, SeqCst);
        giving.end();
        for ended in computing.into_iter().chain([works, guard]) {
            ended.join().expect("ends");
        }
    }
}
