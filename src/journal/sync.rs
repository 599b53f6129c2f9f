//! Making records survive power loss: group commit, and the sticky failure.

use super::error::JournalError;
use super::log::{Journal, Shared};
use crate::base::JournalPos;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a caller waits for the sync of another before it gives up: far above what a working
/// disk needs, so that a stuck one becomes an error and not a hang.
const SYNC_WAIT_MAX: Duration = Duration::from_secs(120);

impl Journal {
    /// Returns when records up to `upto` are on stable storage (or in the bucket). Callers who
    /// meet share one sync of the disk; costs nothing if it was done already.
    ///
    /// # Errors
    /// `Poisoned` if the disk failed a sync, now or earlier: what it holds is then unknown, and
    /// repeating the sync could report a success that never happened, so the failure stays.
    /// `Invalid` if `upto` was never appended. `Io` if another caller's sync is stuck for two
    /// minutes.
    pub fn sync(&self, upto: JournalPos) -> Result<(), JournalError> {
        let shared = &*self.shared;
        if shared.is_safe(upto.0) {
            return Ok(());
        }
        let last = self.last_pos();
        if upto > last {
            return Err(JournalError::Invalid(format!(
                "sync of record {upto}, the last is {last}"
            )));
        }
        let deadline = Instant::now() + SYNC_WAIT_MAX;
        {
            let mut syncing = shared.gate.lock();
            loop {
                if shared.is_safe(upto.0) {
                    return Ok(());
                }
                shared.check_poison()?;
                if !*syncing {
                    *syncing = true;
                    break;
                }
                if shared.gate_opened.wait_until(&mut syncing, deadline).timed_out() {
                    let e = std::io::ErrorKind::TimedOut.into();
                    return Err(JournalError::io("waiting for the disk to sync the journal", e));
                }
            }
        }
        let result = shared.sync_all();
        *shared.gate.lock() = false;
        shared.gate_opened.notify_all();
        result
    }

    /// Syncs what has been appended, if anything: to be called once a second, so that what
    /// nobody synced is at most that far behind.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn sync_tick(&self) -> Result<(), JournalError> {
        self.sync(self.last_pos())
    }
}

impl Shared {
    /// True if nothing has to be done for record `number` to survive power loss.
    fn is_safe(&self, number: u64) -> bool {
        self.synced.load(Ordering::Acquire) >= number
            || self.released.load(Ordering::Acquire) >= number
    }

    /// Syncs every file with unsynced records. One thread at a time (`gate`).
    fn sync_all(&self) -> Result<(), JournalError> {
        let (last, dirty) = {
            let mut tail = self.tail.lock();
            (tail.last, std::mem::take(&mut tail.dirty))
        };
        // In order: what a record testifies to must never be ahead of what it follows.
        for file in &dirty {
            if let Err(e) = file.handle.datasync() {
                let path = self.directory.log_path(file.seq);
                return Err(self.poison(&format!("syncing {} failed: {e}", path.display())));
            }
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.synced.fetch_max(last, Ordering::AcqRel);
        Ok(())
    }
}
