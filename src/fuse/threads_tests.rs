//! The turns that request threads take, on a queue that stands for the kernel's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, ThreadId};

use super::*;

/// Longer than anything here takes on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// A queue of requests such as the kernel has one per mount.
#[derive(Default)]
struct Queue {
    state: Mutex<Queued>,
    changed: Condvar,
}

#[derive(Default)]
struct Queued {
    requests: VecDeque<Ask>,
    ended: bool,
    /// The next asking fails.
    broken: bool,
}

struct Ask {
    short: bool,
    /// Answered once this is told or dropped.
    until: Option<Receiver<()>>,
    answer: Sender<ThreadId>,
}

impl Queue {
    /// Asks for something that takes no time.
    fn ask(&self, short: bool) -> Receiver<ThreadId> {
        self.push(short, None)
    }

    /// Asks for something that takes until the sender is dropped.
    fn ask_for_long(&self, short: bool) -> (Sender<()>, Receiver<ThreadId>) {
        let (release, until) = channel();
        (release, self.push(short, Some(until)))
    }

    fn push(&self, short: bool, until: Option<Receiver<()>>) -> Receiver<ThreadId> {
        let (answer, answered) = channel();
        self.state.lock().requests.push_back(Ask { short, until, answer });
        self.changed.notify_all();
        answered
    }

    fn change(&self, change: impl FnOnce(&mut Queued)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }
}

struct Asks {
    queue: Arc<Queue>,
    taken: Option<Ask>,
}

impl Source for Asks {
    fn take(&mut self) -> io::Result<Taken> {
        let mut state = self.queue.state.lock();
        if std::mem::take(&mut state.broken) {
            return Err(io::Error::other("broken"));
        }
        self.taken = state.requests.pop_front();
        Ok(match &self.taken {
            Some(ask) => Taken::Request { short: ask.short },
            None if state.ended => Taken::Ended,
            None => Taken::Nothing,
        })
    }

    fn sleep(&mut self) -> io::Result<()> {
        let mut state = self.queue.state.lock();
        while state.requests.is_empty() && !state.ended && !state.broken {
            self.queue.changed.wait(&mut state);
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        !self.queue.state.lock().requests.is_empty()
    }

    fn handle(&mut self) {
        let ask = self.taken.take().expect("handled once, after it was taken");
        if let Some(until) = ask.until {
            let _ = until.recv_timeout(BOUND);
        }
        let _ = ask.answer.send(std::thread::current().id());
    }
}

struct Mount {
    queue: Arc<Queue>,
    all: Arc<Threads>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Mount {
    fn with_threads(count: usize) -> Mount {
        Mount::of(count, Threads::new())
    }

    /// Here no leader is relieved within a test, and no short request counts as slow.
    fn without_relief(count: usize) -> Mount {
        Mount::of(count, Threads::relieving_after(2 * BOUND))
    }

    fn of(count: usize, all: Threads) -> Mount {
        let (queue, all) = (Arc::<Queue>::default(), Arc::new(all));
        let one = |_| {
            let (mut asks, all) = (Asks { queue: Arc::clone(&queue), taken: None }, all.clone());
            std::thread::spawn(move || all.serve(&mut asks))
        };
        let threads = (0..count).map(one).collect();
        Mount { queue, all, threads }
    }

    /// Ends it; how many threads had failed before. Every thread must end.
    fn end(self) -> usize {
        self.queue.change(|q| q.ended = true);
        let start = Instant::now();
        while self.threads.iter().any(|t| !t.is_finished()) {
            assert!(start.elapsed() < BOUND, "a thread waits after the end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let served = self.threads.into_iter().map(|t| t.join().expect("no panic"));
        served.filter(|served| served.is_err()).count()
    }
}

fn answered(answer: &Receiver<ThreadId>) -> ThreadId {
    answer.recv_timeout(BOUND).expect("answered")
}

/// A hundred short requests are answered while those of `held` are not; then those are.
fn others_are_answered(mount: &Mount, held: Vec<(Sender<()>, Receiver<ThreadId>)>) {
    for _ in 0..100 {
        answered(&mount.queue.ask(true));
    }
    for (release, answer) in held {
        drop(release);
        answered(&answer);
    }
}

#[test]
fn every_request_is_answered_and_every_thread_ends() {
    // Guards against a wake-up that is lost: a request that nobody takes, a follower that waits
    // for ever.
    for threads in [1, 2, 8] {
        let mount = Mount::with_threads(threads);
        std::thread::scope(|scope| {
            for client in 0..4 {
                let queue = &mount.queue;
                scope.spawn(move || {
                    for i in 0..500 {
                        let several: Vec<_> =
                            (0..=client).map(|k| queue.ask((i + k) % 3 > 0)).collect();
                        for answer in &several {
                            answered(answer);
                        }
                    }
                });
            }
        });
        assert_eq!(mount.end(), 0);
    }
}

#[test]
fn one_thread_answers_a_program_that_waits_for_each_answer() {
    // What leader and followers are for: no wake-up of another thread for each request, which
    // would make 999 changes. Threads that start in between take some.
    let mount = Mount::without_relief(8);
    let by: Vec<_> = (0..1000).map(|_| answered(&mount.queue.ask(true))).collect();
    let changes = by.windows(2).filter(|two| two[0] != two[1]).count();
    assert!(changes < 500, "{changes} changes of thread");
    assert_eq!(mount.end(), 0);
}

#[test]
fn while_one_answers_a_long_request_another_leads() {
    let mount = Mount::without_relief(3);
    let long: Vec<_> = (0..2).map(|_| mount.queue.ask_for_long(false)).collect();
    others_are_answered(&mount, long);
    assert_eq!(mount.end(), 0);
}

#[test]
fn requests_that_wait_behind_a_short_one_are_taken_by_another_thread() {
    let mount = Mount::without_relief(2);
    let (release_first, first) = mount.queue.ask_for_long(true);
    let (release_second, second) = mount.queue.ask_for_long(true);
    let third = mount.queue.ask(true);
    drop(release_first);
    answered(&first);
    answered(&third);
    drop(release_second);
    answered(&second);
    assert_eq!(mount.end(), 0);
}

#[test]
fn a_leader_that_hangs_in_a_short_request_is_relieved() {
    let mount = Mount::with_threads(3);
    let hung: Vec<_> = (0..2).map(|_| mount.queue.ask_for_long(true)).collect();
    others_are_answered(&mount, hung);
    // Those that were relieved lead and follow as before.
    answered(&mount.queue.ask(false));
    assert_eq!(mount.end(), 0);
}

#[test]
fn the_guard_wakes_with_the_first_request_after_a_pause() {
    // Guards against a guard that saves looks while nothing happens, and never looks again.
    let mount = Mount::of(2, Threads::relieving_after(Duration::from_millis(1)));
    answered(&mount.queue.ask(true));
    let start = Instant::now();
    while mount.all.guarded.load(SeqCst) {
        assert!(start.elapsed() < BOUND, "the guard never sleeps");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (release, hung) = mount.queue.ask_for_long(true);
    answered(&mount.queue.ask(true));
    drop(release);
    answered(&hung);
    assert_eq!(mount.end(), 0);
}

#[test]
fn a_thread_that_cannot_read_requests_leaves_them_to_the_others() {
    let mount = Mount::with_threads(2);
    answered(&mount.queue.ask(true));
    mount.queue.change(|q| q.broken = true);
    for _ in 0..100 {
        answered(&mount.queue.ask(false));
    }
    assert_eq!(mount.end(), 1);
}
