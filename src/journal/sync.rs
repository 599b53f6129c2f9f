//! Making records survive power loss: group commit, and the sticky failure.
//!
//! Who finds no sync under way makes one at once, on its own thread. Who comes meanwhile leaves
//! word whom to tell, and no thread waits for it. Where a sync ends and somebody is left whom it
//! does not cover, the syncer's thread begins the next at once, for all of them, and goes on like
//! that while there is anybody. So nobody is kept waiting for others to come, and the longer the
//! disk takes the more share one sync.

use super::error::JournalError;
use super::log::{Journal, Shared};
use crate::base::JournalPos;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long one sync of the disk may take before those who wait for it get an error: far above
/// what a working disk needs, so that a stuck one becomes an error and not a hang.
const SYNC_MAX: Duration = Duration::from_secs(120);

/// Who is told what became of a sync. Must neither wait nor drop the last handle of the journal.
type Tell = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

/// Whose thread a sync may take where none is under way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Caller,
    Syncer,
}

/// One caller who came while a sync was under way.
pub(super) struct Waiter {
    upto: u64,
    tell: Tell,
}

impl Waiter {
    fn learns(self, outcome: Result<(), JournalError>) {
        // One bad answer must not keep all that follow from theirs.
        if catch_unwind(AssertUnwindSafe(|| (self.tell)(outcome))).is_err() {
            log::error!("telling of a sync of record {} panicked; see above", self.upto);
        }
    }
}

/// Who syncs. Bounded by the callers there can be: requests of the kernel, and threads.
#[derive(Default)]
pub(super) struct Gate {
    /// Since when a sync is under way, or due from the syncer.
    since: Option<Instant>,
    /// The next one is for the syncer to make.
    handed_over: bool,
    waiting: Vec<Waiter>,
    ended: bool,
}

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
        self.sync_and_wait(upto, By::Caller)
    }

    fn sync_and_wait(&self, upto: JournalPos, by: By) -> Result<(), JournalError> {
        if self.shared.is_safe(upto.0) {
            return Ok(());
        }
        let (tell, told) = mpsc::sync_channel(1);
        self.sync_by(by, upto, move |result| {
            // Whoever waited for it may have given up.
            let _ = tell.send(result);
        });
        told.recv_timeout(SYNC_MAX).unwrap_or_else(|_| {
            self.shared.give_up_if_stuck();
            Err(stuck())
        })
    }

    /// [`Journal::sync`] for a caller who does not wait: `tell` is called with what became of it,
    /// on this thread or another, once. It must neither wait nor drop the last handle of this
    /// journal. Blocks for one sync of the disk if none is under way, else not at all.
    ///
    /// # Errors
    /// As [`Journal::sync`]; of a stuck sync it learns from [`Journal::sync_tick`].
    pub fn sync_then(
        &self,
        upto: JournalPos,
        tell: impl FnOnce(Result<(), JournalError>) + Send + 'static,
    ) {
        self.sync_by(By::Caller, upto, tell);
    }

    fn sync_by(
        &self,
        by: By,
        upto: JournalPos,
        tell: impl FnOnce(Result<(), JournalError>) + Send + 'static,
    ) {
        let shared = &*self.shared;
        let last = self.last_pos();
        if upto > last && !shared.is_safe(upto.0) {
            let why = format!("sync of record {upto}, the last is {last}");
            return tell(Err(JournalError::Invalid(why)));
        }
        {
            let mut gate = shared.gate.lock();
            if let Some(outcome) = shared.outcome(upto.0) {
                drop(gate);
                return tell(outcome);
            }
            let idle = gate.since.is_none();
            let since = *gate.since.get_or_insert_with(Instant::now);
            if since.elapsed() >= SYNC_MAX {
                drop(gate);
                return tell(Err(stuck()));
            }
            if !idle || by == By::Syncer {
                gate.waiting.push(Waiter { upto: upto.0, tell: Box::new(tell) });
                if idle {
                    gate.handed_over = true;
                    shared.sync_due.notify_one();
                }
                return;
            }
        }
        let own = shared.sync_all();
        let served = shared.end_sync();
        shared.tell_all(served);
        tell(own);
    }

    /// Whether a sync is under way, which [`Journal::sync_then`] would not wait for.
    pub fn is_syncing(&self) -> bool {
        self.shared.gate.lock().since.is_some()
    }

    /// Syncs what has been appended, if anything: to be called once a second, so that what
    /// nobody synced is at most that far behind. Never syncs itself, so that it can give up for all
    /// who wait for a disk that is stuck.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn sync_tick(&self) -> Result<(), JournalError> {
        self.sync_and_wait(self.last_pos(), By::Syncer)
    }
}

fn stuck() -> JournalError {
    let e = std::io::ErrorKind::TimedOut.into();
    JournalError::io("waiting for the disk to sync the journal", e)
}

impl Shared {
    /// True if nothing has to be done for record `number` to survive power loss.
    fn is_safe(&self, number: u64) -> bool {
        self.synced.load(Ordering::Acquire) >= number
            || self.released.load(Ordering::Acquire) >= number
    }

    /// What who waits for record `number` is told, if that is known.
    fn outcome(&self, number: u64) -> Option<Result<(), JournalError>> {
        match self.is_safe(number) {
            true => Some(Ok(())),
            false => self.check_poison().err().map(Err),
        }
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

    /// Ends a sync: takes out whose outcome is known by now, and has the syncer make the next if
    /// anybody is left.
    fn end_sync(&self) -> Vec<Waiter> {
        let mut gate = self.gate.lock();
        let known = |waiter: &Waiter| self.outcome(waiter.upto).is_some();
        let (served, left) = std::mem::take(&mut gate.waiting).into_iter().partition(known);
        gate.waiting = left;
        gate.handed_over = !gate.waiting.is_empty();
        gate.since = gate.handed_over.then(Instant::now);
        if gate.handed_over {
            self.sync_due.notify_one();
        }
        served
    }

    /// Tells them their outcome, which must be known.
    fn tell_all(&self, served: Vec<Waiter>) {
        for waiter in served {
            let outcome = self.outcome(waiter.upto);
            waiter.learns(outcome.expect("looked at when the sync ended"));
        }
    }

    /// Gives those who wait for a sync that does not end an error.
    fn give_up_if_stuck(&self) {
        let overdue = {
            let mut gate = self.gate.lock();
            match gate.since {
                Some(since) if since.elapsed() >= SYNC_MAX => std::mem::take(&mut gate.waiting),
                _ => return,
            }
        };
        for waiter in overdue {
            waiter.learns(Err(stuck()));
        }
    }

    /// Has the syncer end, when nobody waits any more.
    pub fn end_syncer(&self) {
        self.gate.lock().ended = true;
        self.sync_due.notify_one();
    }

    /// Makes the syncs that are handed over, until the journal ends and nobody waits.
    ///
    /// It is the work of a thread, for those who came while another sync was under way.
    pub fn sync_until_ended(&self) {
        loop {
            {
                let mut gate = self.gate.lock();
                while !gate.handed_over {
                    if gate.ended {
                        return;
                    }
                    self.sync_due.wait(&mut gate);
                }
                gate.handed_over = false;
            }
            // A failure is sticky, and so told to all of them below.
            let _ = self.sync_all();
            let served = self.end_sync();
            self.tell_all(served);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::JournalOptions;
    use crate::journal::disk::RealDisk;
    use crate::seal::VolumeKeys;
    use std::sync::Arc;

    #[test]
    fn who_waits_for_a_disk_that_is_stuck_gets_an_error_in_the_end() {
        // Guards against a request that is never answered: a sync that began more than two minutes
        // ago and has not ended is made up; one waits for it, one comes later.
        let dir = tempfile::tempdir().unwrap();
        let options =
            JournalOptions { keeper: false, ..JournalOptions::new(dir.path().join("j"), 1 << 20) };
        let keys = VolumeKeys::random_for_tests(1);
        let (journal, _) = Journal::open(options, keys, Arc::new(RealDisk)).unwrap();
        let (pos, _) = journal.append(&[b"record"]).unwrap();
        let shared = &journal.shared;
        shared.gate.lock().since = Some(Instant::now());
        let (tell, told) = mpsc::channel();
        let ask = || {
            let tell = tell.clone();
            journal.sync_then(pos, move |result| tell.send(result).unwrap());
        };
        let stuck = |told: &mpsc::Receiver<_>| {
            matches!(told.try_recv(), Ok(Err(JournalError::Io { source, .. }))
                if source.kind() == std::io::ErrorKind::TimedOut)
        };
        ask();
        shared.give_up_if_stuck();
        assert!(told.try_recv().is_err(), "two minutes are not over");
        shared.gate.lock().since = Instant::now().checked_sub(SYNC_MAX);
        ask();
        assert!(stuck(&told));
        shared.give_up_if_stuck();
        assert!(stuck(&told));
        // It ends after all.
        shared.sync_all().unwrap();
        assert!(shared.end_sync().is_empty());
        ask();
        assert!(matches!(told.try_recv(), Ok(Ok(()))));
    }
}
