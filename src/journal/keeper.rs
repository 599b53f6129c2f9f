//! The keeper: a thread that recycles released files and writes spare ones ahead of need, so
//! that appending finds allocated blocks and never waits for a file to be made.

use super::error::JournalError;
use super::log::{Journal, Shared};
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// After a failure (a full disk, mostly) the keeper rests this long.
const REST: Duration = Duration::from_secs(10);
/// Without being woken the keeper looks around this often.
const IDLE: Duration = Duration::from_secs(30);
/// How long the journal must have been quiet before spare files are written.
const CALM: Duration = Duration::from_millis(100);
/// Pause between two steps of writing them while it stays so.
const PACE: Duration = Duration::from_millis(5);
/// The journal is quiet while nobody syncs and no more than this is appended between two
/// looks. Otherwise the disk is left to the callers: zeros in its queue would delay their
/// syncs, and zeros first and records over them only double the work.
const QUIET_BYTES: u64 = 64 << 10;

impl Journal {
    /// Does what the keeper thread would: recycles released files and, if `prewrite`, makes
    /// spare ones. For journals opened without the thread.
    ///
    /// # Errors
    /// `NoSpace` (spare files could not be made; harmless), `Poisoned`.
    pub fn keep(&self, prewrite: bool) -> Result<(), JournalError> {
        while self.shared.keep_step(prewrite)? {}
        Ok(())
    }
}

impl Shared {
    pub fn wake_keeper(&self) {
        *self.wake.lock() = true;
        self.woken.notify_one();
    }

    /// Has the keeper end, within one step of writing zeros.
    pub fn stop_keeper(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake_keeper();
    }

    pub fn keep_until_stopped(&self) {
        let stopped = || self.stop.load(Ordering::Acquire);
        while !stopped() && self.poison.get().is_none() {
            let rest = match self.keep_step(true) {
                Ok(true) => continue,
                Ok(false) => IDLE,
                Err(e) => {
                    log::warn!("the journal makes no spare files for now: {e}");
                    REST
                }
            };
            let mut woken = self.wake.lock();
            if !*woken && !stopped() {
                self.woken.wait_for(&mut woken, rest);
            }
            *woken = false;
        }
    }

    /// One file recycled or made; false if there was nothing to do.
    fn keep_step(&self, prewrite: bool) -> Result<bool, JournalError> {
        self.check_poison()?;
        match self.directory.recycle_one() {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            // Which files the directory shows after a crash is no longer known.
            Err(e) => return Err(self.poison(&e.to_string())),
        }
        if !prewrite {
            return Ok(false);
        }
        let files = self.options.prewrite_files();
        let pause = Cell::new(CALM);
        match self.options.keeper {
            true => self.directory.prewrite_one(files, &|| self.wait_until_quiet(&pause)),
            false => self.directory.prewrite_one(files, &|| true),
        }
    }

    /// Returns true when the journal has been quiet for `pause` (which is then short, until it
    /// is not), false when the keeper is to stop. Goes on recycling meanwhile.
    fn wait_until_quiet(&self, pause: &Cell<Duration>) -> bool {
        let seen = || (self.tail.lock().bytes, self.syncs.load(Ordering::Relaxed));
        loop {
            if self.stop.load(Ordering::Acquire) || self.poison.get().is_some() {
                return false;
            }
            let before = seen();
            std::thread::sleep(pause.get());
            let after = seen();
            match self.directory.recycle_one() {
                Ok(true) => {}
                Ok(false) if after.1 > before.1 || after.0 - before.0 > QUIET_BYTES => {
                    pause.set(CALM);
                }
                Ok(false) => {
                    pause.set(PACE);
                    return true;
                }
                Err(e) => {
                    self.poison(&e.to_string());
                    return false;
                }
            }
        }
    }
}
