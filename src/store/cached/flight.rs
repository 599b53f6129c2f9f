//! Single flight: a granule is fetched once, however many readers wait for it.
//!
//! The first of them does it, so that what comes is worked on where it arrived. If that one gives
//! up, the request is dropped and those who waited start another.

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

/// Of a fetch with several waiters.
pub(super) type Outcome = Result<Arc<Fetched>, Arc<Error>>;
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
    promise: Option<Promise<Outcome>>,
}

impl Landing {
    /// Off the board first: whoever is told that nothing came must not find it there.
    fn land(mut self, outcome: Outcome) {
        let promise = self.promise.take();
        drop(self);
        if let Some(promise) = promise {
            promise.keep(outcome);
        }
    }
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
            let (flights_of, promise) = (self.clone(), Some(promise));
            let landing = Landing { flights: flights_of, key, run: run.clone(), id, promise };
            let work = fetch(run.clone());
            for k in run {
                board.by_granule.insert((key, k), Entry { id, underway: underway.clone() });
            }
            let own = async move {
                let outcome = work.await;
                landing.land(outcome.clone());
                outcome
            };
            flights.push(Flight::Own(own.boxed()));
        }
        flights
    }
}
