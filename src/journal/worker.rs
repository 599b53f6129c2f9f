//! A thread of the journal.

use super::error::JournalError;
use super::log::Shared;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A running thread; dropping it tells it to end and waits until it has.
pub(super) struct Worker {
    name: &'static str,
    shared: Arc<Shared>,
    end: fn(&Shared),
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `work`, which returns some time after `end` was called.
    pub fn start(
        name: &'static str,
        shared: &Arc<Shared>,
        work: fn(&Shared),
        end: fn(&Shared),
    ) -> Result<Worker, JournalError> {
        let its = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("journal-{name}"))
            .spawn(move || work(&its))
            .map_err(|e| JournalError::io(format!("starting the journal's {name} thread"), e))?;
        Ok(Worker { name, shared: shared.clone(), end, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        (self.end)(&self.shared);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the journal's {} thread panicked", self.name);
        }
    }
}
