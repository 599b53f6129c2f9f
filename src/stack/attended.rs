//! What a command waits for while it begins, for whoever shows it, and the wish of whoever started
//! it that it stop.
//!
//! Shared by clones, as a part of [`StoreOptions`](super::StoreOptions). Holds no locks across waits
//! and asks nobody anything.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::StackError;
use crate::store::Health;

/// What is waited for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Reads on after "waiting for".
    pub what: String,
    /// For how long so far.
    pub elapsed: Duration,
    /// After how long, counted from the beginning, it is given up; `None`: never.
    pub limit: Option<Duration>,
    /// What the last attempt came to, if it failed.
    pub reason: Option<String>,
}

#[derive(Default)]
struct Now {
    wait: Option<(String, Instant, Option<Duration>)>,
    health: Option<watch::Receiver<Health>>,
}

/// The two ends of it; see the module.
#[derive(Clone)]
pub struct Attended {
    now: Arc<Mutex<Now>>,
    stop: Arc<watch::Sender<bool>>,
}

impl Default for Attended {
    fn default() -> Self {
        Attended { now: Arc::default(), stop: Arc::new(watch::Sender::new(false)) }
    }
}

impl std::fmt::Debug for Attended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attended")
    }
}

impl Attended {
    /// From now on `what` is waited for, in place of what was before, for at most `limit`.
    pub fn waits_for(&self, what: impl Into<String>, limit: impl Into<Option<Duration>>) {
        self.now.lock().wait = Some((what.into(), Instant::now(), limit.into()));
    }

    /// Nothing in particular is waited for any more.
    pub(super) fn goes_on(&self) {
        self.now.lock().wait = None;
    }

    /// From now on `health` says whether the store answers.
    pub(super) fn follows(&self, health: watch::Receiver<Health>) {
        self.now.lock().health = Some(health);
    }

    /// What is waited for, if anything: a step of the beginning, or a store that is away.
    pub fn wait(&self) -> Option<Wait> {
        let now = self.now.lock();
        let health = now.health.as_ref().map(|health| health.borrow().clone());
        let away = match health {
            Some(Health::OfflineSince(since, reason)) => Some((since, reason)),
            _ => None,
        };
        if let Some((what, since, limit)) = &now.wait {
            let (what, elapsed, limit) = (what.clone(), since.elapsed(), *limit);
            return Some(Wait { what, elapsed, limit, reason: away.map(|(_, reason)| reason) });
        }
        let (since, reason) = away?;
        let elapsed = SystemTime::now().duration_since(since).unwrap_or_default();
        Some(Wait { what: "the store".into(), elapsed, limit: None, reason: Some(reason) })
    }

    /// Asks it to stop as soon as it can without leaving anything behind.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether it was asked to.
    pub fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// The result of `work`, or [`StackError::Stopped`] as soon as it is asked to stop: for what
    /// can be dropped at any point.
    pub async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, StackError>>,
    ) -> Result<T, StackError> {
        tokio::select! {
            done = work => done,
            () = self.stopped() => Err(StackError::Stopped),
        }
    }

    /// Resolves when it is asked to.
    pub async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // The sender is part of `self`: it cannot be gone.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_is_told_with_what_the_last_attempt_came_to_and_a_stop_arrives() {
        // Guards against a start that is silent about a store that is away, or deaf to Ctrl-C.
        let attended = Attended::default();
        assert_eq!(attended.wait(), None);
        let health = watch::Sender::new(Health::Online);
        attended.follows(health.subscribe());
        attended.waits_for("s3://b to answer", Duration::from_secs(30));
        let wait = attended.wait().expect("it waits");
        assert_eq!((wait.what.as_str(), wait.reason), ("s3://b to answer", None));
        health.send_replace(Health::OfflineSince(SystemTime::now(), "refused".into()));
        assert_eq!(attended.wait().and_then(|w| w.reason).as_deref(), Some("refused"));
        attended.goes_on();
        assert_eq!(attended.wait().expect("the store is away").what, "the store");
        health.send_replace(Health::Online);
        assert_eq!(attended.wait(), None);
        let other = attended.clone();
        other.stop();
        attended.stopped().await;
    }
}
