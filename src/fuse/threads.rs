//! Which request thread waits for the next request, and how it waits.
//!
//! Left to itself Linux wakes the threads that wait one after the other, another for every
//! request. Where that other one sleeps on another processor, waking it takes longer than
//! answering `lookup` from memory does, above all in a virtual machine. So the threads are
//! *leader and followers* (Schmidt et al., "Leader/Followers", PLoP 2000): the leader alone
//! waits for requests, first by asking again and again for [`SPIN`], as a network card is
//! busy-polled, then asleep. What is answered from memory it answers itself and goes on; before
//! what may take long it makes a follower the leader, and when requests come faster than it
//! answers them it calls a follower to help.
//!
//! A leader that does not come back from a short request (it stands behind a request that waits
//! for the disk) is relieved after about [`RELIEF`], if a follower is free: one stands guard and
//! takes its place. The guard looks only while requests come. And while short requests take
//! longer than they should ([`SLOW_PART`]), none counts as short.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// How long a leader asks again before it sleeps, if the request before came that fast. What a
/// program does between two calls takes less, as a rule.
const SPIN: Duration = Duration::from_micros(50);
/// How many times in a row that may find nothing.
const CREDIT: u32 = 4;
/// A request that wakes the leader sooner than this, waking included, makes it try again.
const SPIN_AGAIN: Duration = Duration::from_micros(100);
/// Asking once and yielding takes less, unless another thread wants the processor.
const OTHERS_RAN: Duration = Duration::from_micros(10);
/// How long a short request may keep the leader from leading, and how often the guard looks.
const RELIEF: Duration = Duration::from_millis(10);
/// A short request takes less than [`RELIEF`] divided by this, 250 us, as a rule.
const SLOW_PART: u32 = 40;
/// How many looks in a row that find nothing new end with the guard asleep.
const GUARD_IDLE: u32 = 5;

/// Where requests come from: a descriptor of `/dev/fuse`, but for the tests.
pub(super) trait Source {
    /// Takes the next request, without waiting.
    fn take(&mut self) -> io::Result<Taken>;
    /// Sleeps until there is a request or none will ever come. May return early.
    fn sleep(&mut self) -> io::Result<()>;
    /// Whether there is another request already.
    fn has_more(&self) -> bool;
    /// Answers the request taken last.
    fn handle(&mut self);
}

/// What asking for a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// There is one. `short`: it is answered from memory or handed on, without waiting.
    Request { short: bool },
    /// There is none now.
    Nothing,
    /// The filesystem is unmounted or its connection aborted; nothing will ever come.
    Ended,
}

/// The request threads of one mount.
#[derive(Debug)]
pub(super) struct Threads {
    lead: Lead,
    /// [`RELIEF`], but for the tests.
    relief: Duration,
    /// The guard looks every `relief`. If not, it sleeps or there is none, and the next short
    /// request wakes it.
    guarded: AtomicBool,
    /// The last short request took longer than one should.
    slow: AtomicBool,
    followers: Mutex<Followers>,
    /// Where followers wait to be called.
    called: Condvar,
    /// Where the guard stands.
    guard: Condvar,
}

#[derive(Debug, Default)]
struct Followers {
    /// How many wait at `called`.
    waiting: usize,
    /// How many of those were called and are not awake yet.
    calls: usize,
    has_guard: bool,
    /// Terms so far.
    terms: u64,
    guard_is_called: bool,
    ended: bool,
}

/// What a follower is to do.
enum Duty {
    Lead(Term),
    Help,
    End,
}

impl Threads {
    pub(super) fn new() -> Threads {
        Threads::relieving_after(RELIEF)
    }

    fn relieving_after(relief: Duration) -> Threads {
        Threads {
            lead: Lead::default(),
            relief,
            guarded: AtomicBool::default(),
            slow: AtomicBool::default(),
            followers: Mutex::default(),
            called: Condvar::new(),
            guard: Condvar::new(),
        }
    }

    /// Takes requests from `source` and handles them until they end, as one of the threads.
    /// If it fails the others go on.
    pub(super) fn serve(&self, source: &mut impl Source) -> io::Result<()> {
        let mut term = Term::NONE;
        let served = self.take_turns(source, &mut term);
        match &served {
            Ok(()) => self.end(),
            Err(_) => self.resign(term),
        }
        served
    }

    fn take_turns(&self, source: &mut impl Source, term: &mut Term) -> io::Result<()> {
        let mut patience = Patience::default();
        loop {
            let mut taken = source.take()?;
            let waited = taken == Taken::Nothing;
            if waited {
                if self.lead.is_held_by(*term) {
                    taken = patience.wait(source)?;
                } else {
                    match self.follow() {
                        Duty::Lead(new) => *term = new,
                        Duty::Help => {}
                        Duty::End => return Ok(()),
                    }
                }
            }
            let short = match taken {
                Taken::Request { short } => short,
                Taken::Nothing => continue,
                Taken::Ended => return Ok(()),
            };
            if !short || self.slow.load(SeqCst) {
                self.resign(*term);
            }
            if self.lead.enter(*term) {
                if !waited && source.has_more() {
                    self.call(&mut self.followers.lock());
                }
                if !self.guarded.load(SeqCst) {
                    self.wake_guard();
                }
            }
            let start = Instant::now();
            source.handle();
            self.lead.leave(*term);
            let slow = start.elapsed() > self.relief / SLOW_PART;
            if short && slow != self.slow.load(SeqCst) {
                self.slow.store(slow, SeqCst);
            }
        }
    }

    /// Waits until there is something to do for a thread that does not lead.
    fn follow(&self) -> Duty {
        let mut followers = self.followers.lock();
        loop {
            if followers.ended {
                return Duty::End;
            }
            if let Some(term) = followers.take_lead(&self.lead, Seen::NOBODY) {
                return Duty::Lead(term);
            }
            if !followers.has_guard {
                if let Some(duty) = self.stand_guard(&mut followers) {
                    return duty;
                }
                continue;
            }
            followers.waiting += 1;
            self.called.wait(&mut followers);
            followers.waiting -= 1;
            if followers.calls > 0 {
                followers.calls -= 1;
                return followers.answer(&self.lead);
            }
        }
    }

    /// Looks after the leader until called, or until it has to be relieved. `None`: look what
    /// there is to do.
    fn stand_guard(&self, followers: &mut MutexGuard<'_, Followers>) -> Option<Duty> {
        followers.has_guard = true;
        let duty = self.guard_until_called(followers);
        followers.has_guard = false;
        self.guarded.store(false, SeqCst);
        if followers.waiting > 0 {
            self.called.notify_one(); // to stand guard next
        }
        duty
    }

    fn guard_until_called(&self, followers: &mut MutexGuard<'_, Followers>) -> Option<Duty> {
        let (mut seen, mut idle) = (self.lead.look(), 0);
        self.guarded.store(true, SeqCst);
        loop {
            if idle < GUARD_IDLE {
                self.guard.wait_for(followers, self.relief);
            } else {
                // A leader that enters a request from here on wakes the guard; one that did
                // before is seen here.
                self.guarded.store(false, SeqCst);
                if self.lead.look() == seen {
                    self.guard.wait(followers);
                }
                self.guarded.store(true, SeqCst);
            }
            if followers.ended {
                return None;
            }
            if followers.guard_is_called {
                followers.guard_is_called = false;
                return Some(followers.answer(&self.lead));
            }
            let now = self.lead.look();
            if now != seen {
                (seen, idle) = (now, 0);
            } else if now.is_in_request() {
                if let Some(term) = followers.take_lead(&self.lead, now) {
                    return Some(Duty::Lead(term));
                }
            } else {
                idle += 1;
            }
        }
    }

    fn wake_guard(&self) {
        let followers = self.followers.lock();
        if followers.has_guard {
            self.guarded.store(true, SeqCst);
            self.guard.notify_one();
        }
    }

    /// Ends the lead of `term`, if it leads, and calls who is to lead next.
    fn resign(&self, term: Term) {
        let mut followers = self.followers.lock();
        if self.lead.is_held_by(term) {
            self.lead.vacate();
            self.call(&mut followers);
        }
    }

    /// Calls a follower; the guard if there is no other. All may be busy.
    fn call(&self, followers: &mut Followers) {
        if followers.waiting > followers.calls {
            followers.calls += 1;
            self.called.notify_one();
        } else if followers.has_guard {
            followers.guard_is_called = true;
            self.guard.notify_one();
        }
    }

    fn end(&self) {
        self.followers.lock().ended = true;
        self.called.notify_all();
        self.guard.notify_all();
    }
}

impl Followers {
    /// What a follower does that was called.
    fn answer(&mut self, lead: &Lead) -> Duty {
        match self.take_lead(lead, Seen::NOBODY) {
            Some(term) => Duty::Lead(term),
            None => Duty::Help,
        }
    }

    /// A new term, if the lead is still as it was `seen`.
    fn take_lead(&mut self, lead: &Lead, seen: Seen) -> Option<Term> {
        let term = Term((self.terms % Term::MAX) + 1);
        lead.pass(seen, term).then(|| {
            self.terms = term.0;
            term
        })
    }
}

/// How the leader waits.
#[derive(Debug, Default)]
struct Patience {
    /// How many more times it spins without finding work.
    credit: u32,
}

impl Patience {
    /// Waits until there may be a request.
    fn wait(&mut self, source: &mut impl Source) -> io::Result<Taken> {
        let start = Instant::now();
        let spins = self.credit > 0;
        if spins {
            match spin(source, start)? {
                Taken::Nothing => self.credit -= 1,
                taken => {
                    self.credit = CREDIT;
                    return Ok(taken);
                }
            }
        }
        source.sleep()?;
        let taken = source.take()?;
        if !spins && taken != Taken::Nothing && start.elapsed() < SPIN_AGAIN {
            self.credit = 1;
        }
        Ok(taken)
    }
}

/// Asks again and again, for [`SPIN`] or until another thread takes the processor longer.
fn spin(source: &mut impl Source, start: Instant) -> io::Result<Taken> {
    loop {
        let before = start.elapsed();
        std::thread::yield_now();
        let taken = source.take()?;
        let now = start.elapsed();
        if taken != Taken::Nothing || now >= SPIN || now - before > OTHERS_RAN {
            return Ok(taken);
        }
    }
}

/// One thread's time as the leader; 40 bits. 0 is no term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Term(u64);

impl Term {
    const NONE: Term = Term(0);
    const MAX: u64 = (1 << 40) - 1;
}

/// Who leads and at what: a [`Term`] above [`Seen::BEAT_BITS`], and below them a number that
/// changes whenever the leader enters or leaves a short request, odd while it is in one.
#[derive(Debug, Default)]
struct Lead(AtomicU64);

/// The lead as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen(u64);

impl Seen {
    const BEAT_BITS: u32 = 24;
    const NOBODY: Seen = Seen(0);

    fn is_in_request(self) -> bool {
        self.0 & 1 == 1
    }

    fn is_of(self, term: Term) -> bool {
        term != Term::NONE && self.0 >> Self::BEAT_BITS == term.0
    }

    fn next_beat(self) -> Seen {
        let mask = (1 << Self::BEAT_BITS) - 1;
        Seen(self.0 & !mask | (self.0 + 1) & mask)
    }
}

impl Lead {
    fn look(&self) -> Seen {
        Seen(self.0.load(SeqCst))
    }

    fn is_held_by(&self, term: Term) -> bool {
        self.look().is_of(term)
    }

    /// Notes that the leader of `term` is in a short request. `false`: it does not lead, or not
    /// any more.
    fn enter(&self, term: Term) -> bool {
        let now = self.look();
        now.is_of(term) && !now.is_in_request() && self.step(now, now.next_beat())
    }

    /// Notes that it is out of it, if it was and leads still.
    fn leave(&self, term: Term) {
        let now = self.look();
        if now.is_of(term) && now.is_in_request() {
            self.step(now, now.next_beat()); // or it was relieved just now
        }
    }

    /// Makes `to` the leader if nothing has changed since `seen`.
    fn pass(&self, seen: Seen, to: Term) -> bool {
        self.step(seen, Seen(to.0 << Seen::BEAT_BITS))
    }

    fn vacate(&self) {
        self.0.store(Seen::NOBODY.0, SeqCst);
    }

    fn step(&self, from: Seen, to: Seen) -> bool {
        self.0.compare_exchange(from.0, to.0, SeqCst, SeqCst).is_ok()
    }
}

#[cfg(test)]
#[path = "threads_tests.rs"]
mod tests;
