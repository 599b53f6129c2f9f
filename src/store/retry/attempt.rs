//! The clockwork of retrying: budgets, pauses, and what an outcome says about reachability.

use super::super::error::{ErrorClass, StoreError, class, in_one_line};
use super::super::stats::RequestStats;
use super::refused::Refused;
use super::{Health, RetryOptions, SLOWEST_RATE};
use crate::base::{counted, one_line};
use object_store::Result;
use object_store::path::Path;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// Time for one operation: per attempt and in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    attempt: Duration,
    total: Duration,
    /// Bytes that every attempt sends.
    body: u64,
}

/// Bodies longer than this are not sent again in answer to [`ErrorClass::Foreign`]: the caller
/// finds out with less.
const RESENT_MAX: u64 = 64 << 10;

/// Attempts in answer to [`ErrorClass::Foreign`] while somebody waits for a start.
const FOREIGN_HURRIED: u32 = 3;

/// Time to allow for `len` bytes at the slowest rate that still counts as progress.
fn transfer_time(len: u64) -> Duration {
    Duration::from_millis(len.saturating_mul(1000) / SLOWEST_RATE)
}

impl Budget {
    /// The same budget without a second attempt.
    pub(super) fn once(self) -> Budget {
        Budget { total: Duration::ZERO, ..self }
    }

    /// Runs one step of an attempt that moves `len` bytes. Taking too long is a failure of
    /// transport; the step is cancelled.
    pub(super) async fn limit<T>(
        &self,
        len: u64,
        doing: &str,
        step: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let limit = self.attempt + transfer_time(len);
        match tokio::time::timeout(limit, step).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let message = format!("timed out after {:.1} s {doing}", limit.as_secs_f64());
                Err(StoreError::new(ErrorClass::Transport, message).into_store("retry"))
            }
        }
    }
}

/// Shared by all operations of one [`Retry`](super::Retry).
pub(super) struct Attempts {
    options: RetryOptions,
    stats: Arc<RequestStats>,
    health: watch::Sender<Health>,
    jitter: AtomicU64,
    /// Whether the bucket was there at some time: only then may "no such bucket" pass.
    seen: AtomicBool,
    /// Somebody waits for a start, and is told soon of answers that are not the store's.
    pub(super) hurried: AtomicBool,
    refused: Refused,
}

impl Attempts {
    pub(super) fn new(options: RetryOptions, stats: Arc<RequestStats>) -> Attempts {
        let jitter = AtomicU64::new(options.jitter_seed);
        let (health, seen) = (watch::Sender::new(Health::Online), AtomicBool::new(false));
        let (hurried, refused) = (AtomicBool::new(false), Refused::default());
        Attempts { options, stats, health, jitter, seen, hurried, refused }
    }

    pub(super) fn options(&self) -> &RetryOptions {
        &self.options
    }

    pub(super) fn stats(&self) -> &RequestStats {
        &self.stats
    }

    pub(super) fn refused(&self) -> &Refused {
        &self.refused
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// The budget of a read. One attempt never exceeds the whole.
    pub(super) fn read_budget(&self) -> Budget {
        let total = self.options.read_timeout;
        Budget { attempt: self.options.read_attempt_timeout.min(total), total, body: 0 }
    }

    /// The budget of a write of `len` bytes.
    pub(super) fn write_budget(&self, len: u64) -> Budget {
        let total = self.options.write_timeout + 2 * transfer_time(len);
        Budget { attempt: self.options.write_attempt_timeout.min(total), total, body: len }
    }

    /// Starts the clock of an operation made of attempts.
    pub(super) fn start(&self, budget: Budget) -> Clock<'_> {
        let deadline = Instant::now() + budget.total;
        Clock { attempts: self, deadline, attempt: 1, body: budget.body }
    }

    /// Runs `op` (given the attempt's number, from 1) until it succeeds, fails for good or the
    /// budget is spent.
    pub(super) async fn run<T, F, Fut>(
        &self,
        budget: Budget,
        what: &str,
        location: &Path,
        mut op: F,
    ) -> Result<T>
    where
        F: FnMut(u32) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let mut clock = self.start(budget);
        loop {
            match self.note(op(clock.attempt).await) {
                Ok(value) => return Ok(value),
                Err(e) => clock.pause(what, location, e).await?,
            }
        }
    }

    /// Takes an attempt's outcome into the statistics and the health.
    pub(super) fn note<T>(&self, outcome: Result<T>) -> Result<T> {
        let class = match &outcome {
            Ok(_) => None,
            Err(e) => Some(class(e)),
        };
        match class {
            None => {
                self.seen.store(true, Relaxed);
                self.go_online();
            }
            Some(ErrorClass::Transport | ErrorClass::Untrusted | ErrorClass::Foreign) => {
                RequestStats::add(&self.stats.errors, 1);
                let reason = outcome.as_ref().err().map(in_one_line).unwrap_or_default();
                self.go_offline(reason);
            }
            // Our own judgement or the local system's, not a word from the store.
            Some(ErrorClass::Other | ErrorClass::Corrupt | ErrorClass::Behind) => {
                RequestStats::add(&self.stats.errors, 1);
            }
            Some(
                ErrorClass::Throttled
                | ErrorClass::Auth
                | ErrorClass::SseMismatch
                | ErrorClass::NoBucket
                | ErrorClass::TooLarge
                | ErrorClass::Unsupported,
            ) => {
                RequestStats::add(&self.stats.errors, 1);
                self.go_online();
            }
            Some(ErrorClass::NotFound | ErrorClass::Precondition | ErrorClass::AlreadyExists) => {
                self.go_online();
            }
        }
        outcome
    }

    fn go_online(&self) {
        self.health.send_if_modified(|health| {
            let was_offline = matches!(health, Health::OfflineSince(..));
            if was_offline {
                log::info!("the store answers again");
                *health = Health::Online;
            }
            was_offline
        });
    }

    fn go_offline(&self, reason: String) {
        self.health.send_if_modified(|health| {
            let was_online = *health == Health::Online;
            if was_online {
                log::warn!("the store does not answer: {reason}");
                *health = Health::OfflineSince(SystemTime::now(), reason);
            }
            was_online
        });
    }

    /// A number evenly below 1 (splitmix64).
    fn draw(&self) -> f64 {
        let mut z = self.jitter.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How far one operation has got.
pub(super) struct Clock<'a> {
    attempts: &'a Attempts,
    deadline: Instant,
    attempt: u32,
    body: u64,
}

impl Clock<'_> {
    /// The number of the current attempt, from 1.
    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// After a failed attempt: waits and returns `Ok` if there is to be another, otherwise
    /// returns the error, with what was tried if that was more than once. A pause ends early
    /// when the store answers somebody else.
    pub(super) async fn pause(
        &mut self,
        what: &str,
        location: &Path,
        error: object_store::Error,
    ) -> Result<()> {
        let class = class(&error);
        let may_pass = match class {
            ErrorClass::NoBucket => self.attempts.seen.load(Relaxed),
            ErrorClass::Foreign if self.attempts.hurried.load(Relaxed) => {
                self.attempt < FOREIGN_HURRIED
            }
            ErrorClass::Foreign => self.body <= RESENT_MAX,
            class => class.is_retryable(),
        };
        if !may_pass {
            return Err(error);
        }
        let options = &self.attempts.options;
        let doubled = options.backoff_first.saturating_mul(1 << (self.attempt - 1).min(16));
        let pause = doubled.min(options.backoff_max).mul_f64(self.attempts.draw());
        if Instant::now() + pause >= self.deadline {
            if self.attempt == 1 {
                return Err(error);
            }
            let (name, tries) =
                (one_line(location.as_ref()), counted(self.attempt.into(), "attempt"));
            let message = format!("gave up on {what} {name} after {tries}");
            return Err(StoreError::with_source(class, message, error).into_store("retry"));
        }
        log::debug!("{what} {location}: attempt {} failed: {error}", self.attempt);
        let mut health = self.attempts.health();
        let offline = *health.borrow_and_update() != Health::Online;
        if offline {
            let back = health.wait_for(|h| *h == Health::Online);
            // Either end of the wait is a reason to try again.
            let _ = tokio::time::timeout(pause, back).await;
        } else {
            tokio::time::sleep(pause).await;
        }
        RequestStats::add(&self.attempts.stats.retries, 1);
        self.attempt += 1;
        Ok(())
    }
}
