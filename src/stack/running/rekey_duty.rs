//! What the mount that writes a volume does for a rekey: it leaves the log of earlier epochs behind.
//!
//! Objects of the metadata's log are not sealed again in place: each is bound to the one before it. So the writer puts what the log holds into a table, in its new epoch, and collects the
//! log once no reader can need it any more. It learns of a rekey by the configuration of the volume.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::meta::keys;
use crate::stack::records::lease::LogLeft;
use crate::store::kv::{Kv, KvError};

/// How long after the log was left behind the reader that is furthest behind has noticed.
pub(crate) const READERS_GRACE: Duration = Duration::from_secs(60);
/// How long each step may take; a later heartbeat tries again.
const STEP_MAX: Duration = Duration::from_secs(600);

/// How far this mount is with the rekey that is under way.
#[derive(Default)]
pub(crate) struct RekeyDuty {
    tending: tokio::sync::Mutex<()>,
    left: Mutex<Option<(LogLeft, Instant)>>,
}

impl RekeyDuty {
    /// Does what is due for a rekey to epoch `target` by a mount that writes in epoch `now`. One call
    /// at a time does something; others return at once. `may_delete`: nothing is known to be damaged.
    /// True if the log was left behind just now.
    pub(crate) async fn tend(
        &self,
        target: Option<u32>,
        now: u32,
        kv: &Kv,
        may_delete: bool,
    ) -> bool {
        let Ok(_one) = self.tending.try_lock() else { return false };
        let Some(target) = target.filter(|target| now >= *target) else { return false };
        if self.left().epoch < target {
            match bounded(kv.leave_log(&keys::nothing())).await {
                Ok(from) => {
                    log::info!("the log of earlier key epochs is left behind");
                    *self.left.lock() = Some((LogLeft { epoch: target, from }, Instant::now()));
                    return true;
                }
                Err(e) => log::warn!("the log of earlier key epochs is still needed: {e}"),
            }
            return false;
        }
        // How old the objects must be themselves the collection sees to.
        let grace = READERS_GRACE.min(kv.collect_age());
        let is_due = self.left.lock().is_some_and(|(_, at)| at.elapsed() >= grace);
        if is_due
            && may_delete
            && let Err(e) = bounded(kv.collect_garbage()).await
        {
            log::warn!("the log of earlier key epochs was not collected: {e}");
        }
        false
    }

    /// What of the log was left behind.
    pub(crate) fn left(&self) -> LogLeft {
        self.left.lock().map(|(left, _)| left).unwrap_or_default()
    }
}

/// A step of it, which ends in bounded time.
pub(crate) async fn bounded<T>(
    work: impl Future<Output = Result<T, KvError>>,
) -> Result<T, KvError> {
    match tokio::time::timeout(STEP_MAX, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(KvError::Unavailable(format!("not done in {} s", STEP_MAX.as_secs()))),
    }
}
