//! The schedule of snapshots, kept by the mount that writes the volume; and what has expired goes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::snapshots::SNAPSHOT_MAX;
use super::status::OpenVolume;
use crate::base::{one_line, unix_secs};
use crate::commit::snapshots::snapshots;
use crate::commit::{Committer, SnapshotError, SnapshotOrder};
use crate::meta::SnapshotOrigin;

/// How often is looked whether one is due.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// How long it waits after something failed.
const PAUSE: Duration = Duration::from_secs(60);

/// How the schedule is doing, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scheduled {
    /// The last snapshot that the schedule made, and when, Unix seconds.
    pub(crate) last: Option<(String, u64)>,
    /// When the next is made, Unix seconds.
    pub(crate) next: Option<u64>,
    /// Why one was not made, or not deleted.
    pub(crate) failed: Option<String>,
}

/// See [`Scheduled`].
#[derive(Default)]
pub(crate) struct ScheduleState(Mutex<Scheduled>);

impl ScheduleState {
    pub(crate) fn now(&self) -> Scheduled {
        self.0.lock().clone()
    }
}

/// Makes and deletes what is due, for as long as the mount writes the volume.
pub(super) async fn keep_schedule(committer: Arc<Committer>, shared: Arc<OpenVolume>) {
    loop {
        let outcome = step(&committer, &shared).await;
        let pause = match outcome {
            Ok(true) => Duration::ZERO,
            Ok(false) => LOOK_EVERY,
            Err(SnapshotError::Fenced) => return,
            Err(ref e) => {
                log::warn!("the schedule of snapshots: {e}");
                PAUSE
            }
        };
        shared.scheduled.0.lock().failed = outcome.err().map(|e| e.to_string());
        let now = shared.schedule_now.notified();
        let _ = tokio::time::timeout(pause, now).await; // whichever comes first
    }
}

/// One thing; true if there may be another.
async fn step(committer: &Committer, shared: &OpenVolume) -> Result<bool, SnapshotError> {
    let schedule = shared.sse.schedule();
    let holders = shared.view.holders();
    if schedule.is_off() && holders.count() == 0 {
        shared.scheduled.0.lock().next = None;
        return Ok(false);
    }
    let all = snapshots(shared.view.kv()).await;
    let all = all.map_err(|e| SnapshotError::Unclear(e.to_string()))?;
    let plan = schedule.plan(&all, unix_secs());
    {
        let mut scheduled = shared.scheduled.0.lock();
        scheduled.next = plan.next;
        let own = all.iter().filter(|s| s.row.origin != SnapshotOrigin::ByHand);
        let last = own.max_by_key(|s| s.row.time_secs);
        scheduled.last = last.map(|s| (s.name.to_string(), s.row.time_secs));
    }
    if let Some((name, origin)) = plan.create {
        log::info!("a snapshot is due: {}", one_line(name.as_str()));
        let order = SnapshotOrder { name, note: String::new(), expires_secs: 0, origin };
        committer.create_snapshot(order, SNAPSHOT_MAX).await?;
        return Ok(true);
    }
    if !plan.delete.is_empty() {
        committer.delete_snapshots(plan.delete, SNAPSHOT_MAX).await?;
        return Ok(true);
    }
    Ok(false)
}
