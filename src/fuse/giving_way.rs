//! Threads that give way to whoever they answer (`SCHED_IDLE`, sched(7)).
//!
//! Linux wakes who gets an answer on another processor if one is idle, since the one that answers is not; there
//! its next question goes to another queue, and so on: each answer costs the wake-up of a processor. But a
//! processor on which nothing runs but `SCHED_IDLE` counts as idle: whoever is answered stays, and goes on
//! at once. Measured: a third to a half less for each small operation (docs/PERFORMANCE.md).
//!
//! Such a thread gets next to nothing beside one that computes. So it gives way only while requests come fast,
//! and a guard looks every [`LOOK`]: one that wants to run and has not got on since the last look is a thread like
//! any other again, for a while.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How often the guard looks, which is how long a request may lie at most because of this.
const LOOK: Duration = Duration::from_millis(5);
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
    fn look(&mut self, requests: u64, wants_to_run: impl FnOnce() -> bool) -> Option<bool> {
        let came = requests - self.requests;
        self.requests = requests;
        self.quiet = if came == 0 { self.quiet + 1 } else { 0 };
        self.held = self.held.saturating_sub(1);
        let before = self.gives_way;
        if std::mem::take(&mut self.waited) && came > 0 {
            self.hold = (2 * self.hold).clamp(HOLD.0, HOLD.1);
            self.held = self.hold;
        }
        if !before {
            self.gives_way = came >= FAST && self.held == 0;
            self.good = 0;
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

#[derive(Debug, Default)]
struct Watched {
    /// 0: it has not begun.
    thread: AtomicI32,
    requests: AtomicU64,
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

    /// Notes that this thread is number `index`.
    pub fn begin(&self, index: usize) {
        // SAFETY: takes nothing and cannot fail (gettid(2)).
        self.watched[index].thread.store(unsafe { libc::gettid() }, SeqCst);
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
                let wants_to_run = || is_runnable(thread);
                let change = seen.look(watched.requests.load(Relaxed), wants_to_run);
                if let Some(gives_way) = change
                    && let Err(e) = set(thread, gives_way)
                {
                    log::debug!("thread {thread} gives way as before: {e}");
                    seen.gives_way = !gives_way;
                }
            }
        }
        for (watched, _) in self.watched.iter().zip(&seen).filter(|(_, seen)| seen.gives_way) {
            let _ = set(watched.thread.load(SeqCst), false); // it may have ended
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
            seen.look(requests, || wants)
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
        assert_eq!(seen.look(FAST, || false), Some(true));
        for _ in 1..QUIET {
            assert_eq!(seen.look(FAST, || false), None);
            assert!(!seen.is_at_rest());
        }
        assert_eq!(seen.look(FAST, || false), Some(false));
        assert!(seen.is_at_rest());
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
            worker.begin(0);
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
