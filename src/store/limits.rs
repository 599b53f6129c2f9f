//! How fast bytes may go to the store and come from it (`--upload-limit`, `--download-limit`).
//!
//! A body is paced piece by piece while it moves, not sent at once and paid for later: others on the
//! line should not notice. [`Retry`](super::Retry) gives up attempts that move fewer than 64 KiB a
//! second, so that bodies share a low limit one after the other ([`Rate::turn`]) rather than all at
//! once. Limits change while requests are under way.

use futures::StreamExt;
use object_store::{GetResult, GetResultPayload};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// The lowest limit, in bytes a second: below it, attempts would be taken for stuck.
pub const LIMIT_MIN: u64 = super::retry::SLOWEST_RATE;
/// Bodies up to this length wait for nothing; what they take the next ones wait for.
pub const SMALL_BODY: u64 = 64 << 10;
/// Time whose bytes may go at once after a pause.
const BURST: Duration = Duration::from_millis(250);
/// What each body that moves at the same time should have, in bytes a second.
const SHARE: u64 = 256 << 10;
/// How many bodies move at once under the highest limits.
const TURNS: u32 = 64;

/// The limits of a mount; none at first.
#[derive(Debug, Default)]
pub struct Limits {
    /// Of what is sent.
    pub up: Rate,
    /// Of what is received.
    pub down: Arc<Rate>,
}

/// A limit in one direction.
#[derive(Debug)]
pub struct Rate {
    /// 0: none.
    bytes_per_sec: AtomicU64,
    /// When everything that was let through will have passed.
    free_at: Mutex<Option<Instant>>,
    turns: Semaphore,
}

impl Default for Rate {
    fn default() -> Rate {
        let turns = Semaphore::new(TURNS as usize);
        Rate { bytes_per_sec: AtomicU64::new(0), free_at: Mutex::new(None), turns }
    }
}

impl Rate {
    /// Bytes a second, 0 for no limit.
    pub fn get(&self) -> u64 {
        self.bytes_per_sec.load(Relaxed)
    }

    /// Changes the limit; 0 is none, and less than [`LIMIT_MIN`] becomes that.
    pub fn set(&self, bytes_per_sec: u64) {
        let limit = if bytes_per_sec == 0 { 0 } else { bytes_per_sec.max(LIMIT_MIN) };
        self.bytes_per_sec.store(limit, Relaxed);
        *self.free_at.lock() = None; // waits under the old one no longer count
    }

    /// Lets `bytes` through and says how long they have to wait first.
    pub fn take(&self, bytes: u64, now: Instant) -> Duration {
        let limit = self.get();
        if limit == 0 {
            return Duration::ZERO;
        }
        let mut free_at = self.free_at.lock();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let begins = free_at.map_or(earliest, |at| at.max(earliest));
        *free_at = Some(begins + Duration::from_secs_f64(bytes as f64 / limit as f64));
        begins.saturating_duration_since(now)
    }

    /// Waits for as long as `bytes` more take to pass.
    pub async fn pace(&self, bytes: u64) {
        let mut left = bytes;
        while left > 0 && self.get() > 0 {
            let piece = left.min(SMALL_BODY);
            let wait = self.take(piece, Instant::now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            left -= piece;
        }
    }

    /// Waits for the turn of a body of `bytes`, and holds it until dropped. Without a limit, and for a
    /// small body, it is always its turn.
    pub async fn turn(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let limit = self.get();
        if limit == 0 || bytes <= SMALL_BODY {
            return None;
        }
        let at_once = (limit / SHARE).clamp(1, TURNS.into()) as u32;
        self.turns.acquire_many(TURNS / at_once).await.ok() // never closed
    }
}

/// `result` with a body that comes as fast as `rate` lets it.
pub fn paced(rate: &Arc<Rate>, result: GetResult) -> GetResult {
    if rate.get() == 0 {
        return result;
    }
    let (meta, range) = (result.meta.clone(), result.range.clone());
    let (attributes, extensions) = (result.attributes.clone(), result.extensions.clone());
    let rate = Arc::clone(rate);
    let body = result.into_stream().then(move |part| {
        let rate = Arc::clone(&rate);
        async move {
            if let Ok(part) = &part {
                rate.pace(part.len() as u64).await;
            }
            part
        }
    });
    GetResult {
        payload: GetResultPayload::Stream(body.boxed()),
        meta,
        range,
        attributes,
        extensions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them_and_a_pause_saves_little() {
        // Guards against a limit that is kept on average by bursts, and one that a change from a
        // low to a high limit leaves in force.
        let (rate, start) = (Rate::default(), Instant::now() + Duration::from_secs(60));
        assert_eq!(rate.take(1 << 40, start), Duration::ZERO, "no limit");
        rate.set(1 << 20);
        let mut waits = Vec::new();
        for _ in 0..16 {
            waits.push(rate.take(64 << 10, start).as_millis());
        }
        // A quarter of a second at once, then 16 pieces a second.
        assert_eq!(waits[..5], [0, 0, 0, 0, 0]);
        assert_eq!(waits[15], 687);
        let later = start + Duration::from_secs(3600);
        assert_eq!(rate.take(256 << 10, later), Duration::ZERO);
        assert_eq!(rate.take(1 << 20, later), Duration::ZERO);
        assert_eq!(rate.take(1, later), Duration::from_secs(1));
        rate.set(1 << 30);
        assert_eq!(rate.take(1, later), Duration::ZERO);
        rate.set(5);
        assert_eq!(rate.get(), LIMIT_MIN);
    }

    #[tokio::test]
    async fn under_a_low_limit_bodies_go_one_after_the_other() {
        // Guards against many uploads that share so little that each is taken for stuck, and all are
        // sent again for ever.
        let rate = Rate::default();
        assert!(rate.turn(1 << 30).await.is_none());
        rate.set(100 << 10);
        let first = rate.turn(16 << 20).await;
        assert!(first.is_some());
        assert!(rate.turn(SMALL_BODY).await.is_none(), "a heartbeat does not wait");
        let second = tokio::time::timeout(Duration::from_millis(20), rate.turn(16 << 20)).await;
        assert!(second.is_err());
        drop(first);
        rate.set(1 << 20);
        let turns = [rate.turn(1 << 20).await, rate.turn(1 << 20).await, rate.turn(1 << 20).await];
        assert!(turns.iter().all(Option::is_some));
    }
}
