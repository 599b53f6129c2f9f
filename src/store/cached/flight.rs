//! Single flight: a granule is fetched once, however many readers wait for it.
//!
//! It is made by the first of them, so that what comes is worked on where it arrived (if that one
//! gives up, the request is dropped and those who waited start another); or by a task, for readers
//! who often give up or leave what they have begun unattended, as SlateDB does.

use super::super::rope::Rope;
use super::disk::Key;
use super::granule;
use crate::base::{Promise, Underway};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::{Error, ObjectMeta};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// What a fetch brought.
pub(super) struct Fetched {
    pub(super) meta: Arc<ObjectMeta>,
    /// The bytes of the object that `body` is.
    pub(super) range: Range<u64>,
    pub(super) body: Rope,
}

impl Fetched {
    /// Whether granule `k` is among it.
    pub(super) fn has(&self, k: u64) -> bool {
        let bytes = granule::bytes(&(k..k + 1), self.meta.size);
        self.range.start <= bytes.start && bytes.end <= self.range.end
    }
}

/// Of a fetch with several waiters.
pub(super) type Outcome = Result<Arc<Fetched>, Arc<Error>>;

/// Who makes a fetch.
#[derive(Clone, Copy)]
pub(super) enum By {
    Reader,
    Task,
}

/// A fetch: one's own, or one that another reader makes.
pub(super) enum Flight {
    Own(BoxFuture<'static, Outcome>),
    Joined(Underway<Outcome>),
}

impl Flight {
    /// Waits for what it brings; `None` if the reader who made it gave up.
    pub(super) async fn landed(self) -> Option<Outcome> {
        match self {
            Flight::Own(work) => Some(work.await),
            Flight::Joined(underway) => underway.wait().await,
        }
    }
}

struct Entry {
    id: u64,
    underway: Underway<Outcome>,
}

/// The fetches under way.
#[derive(Default)]
pub(super) struct Flights {
    board: Mutex<Board>,
}

#[derive(Default)]
struct Board {
    by_granule: HashMap<(Key, u64), Entry>,
    next_id: u64,
}

/// Takes a fetch off the board when it ends or is given up.
struct Landing {
    flights: Arc<Flights>,
    key: Key,
    run: Range<u64>,
    id: u64,
    /// Falls after the entries have left the board: a waiter that is told that nothing came does not
    /// find them there.
    promise: Promise<Outcome>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut board = self.flights.board.lock();
        for k in self.run.clone() {
            if board.by_granule.get(&(self.key, k)).is_some_and(|entry| entry.id == self.id) {
                board.by_granule.remove(&(self.key, k));
            }
        }
    }
}

impl Flights {
    /// Whether a fetch of this granule is under way.
    pub(super) fn has(&self, key: &Key, k: u64) -> bool {
        self.board.lock().by_granule.contains_key(&(*key, k))
    }

    /// The fetches to wait for to get all of `granules` (ascending): those under way, and new
    /// ones, made by `fetch` for runs of at most `run_max` granules.
    pub(super) fn enter(
        self: &Arc<Self>,
        key: Key,
        granules: &[u64],
        run_max: u64,
        by: By,
        fetch: impl Fn(Range<u64>) -> BoxFuture<'static, Outcome>,
    ) -> Vec<Flight> {
        let mut flights: Vec<Flight> = Vec::new();
        let mut joined = Vec::new();
        let mut fresh = Vec::new();
        let mut board = self.board.lock();
        for &k in granules {
            match board.by_granule.get(&(key, k)) {
                Some(entry) if joined.contains(&entry.id) => {}
                Some(entry) => {
                    joined.push(entry.id);
                    flights.push(Flight::Joined(entry.underway.clone()));
                }
                None => fresh.push(k),
            }
        }
        for run in granule::runs(fresh, run_max) {
            let id = board.next_id;
            board.next_id += 1;
            let (promise, underway) = Underway::promised();
            let flights_of = self.clone();
            let landing = Landing { flights: flights_of, key, run: run.clone(), id, promise };
            let work = fetch(run.clone());
            for k in run {
                board.by_granule.insert((key, k), Entry { id, underway: underway.clone() });
            }
            let own = async move {
                let outcome = work.await;
                landing.promise.keep(outcome.clone());
                outcome
            };
            flights.push(match by {
                By::Reader => Flight::Own(own.boxed()),
                By::Task => {
                    tokio::spawn(own);
                    Flight::Joined(underway)
                }
            });
        }
        flights
    }
}
