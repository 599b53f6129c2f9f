//! Whether changes are taken, and who keeps them: the writing half beneath a file system, which comes
//! and goes while it is mounted.
//!
//! A half comes, is held and goes under the mutation lock, so that whoever checks under it knows for
//! the whole of one mutation. Reads and `fsync` look without the lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::{Fs, FsError, lifetime};
use crate::commit::{Committer, WriterState};
use crate::journal::Journal;

/// How long a change waits at most for the end of a change of role, which ends earlier by itself.
const HELD_MAX: Duration = Duration::from_secs(120);

/// What takes the changes of a file system to the bucket.
#[derive(Clone)]
pub struct Half {
    /// Local write-back.
    pub journal: Arc<Journal>,
    /// The way to the bucket.
    pub committer: Arc<Committer>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Role {
    half: RwLock<Option<Half>>,
    /// Raised when a half comes or goes: places in one journal mean nothing in another.
    turn: AtomicU64,
    held: watch::Sender<bool>,
}

impl Role {
    /// The half that takes changes now, if there is one.
    pub(super) fn half(&self) -> Option<Half> {
        self.half.read().clone()
    }

    /// Counts the halves that came and went.
    pub(super) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Acquire)
    }

    /// Whether changes wait. Exact under the mutation lock.
    pub(super) fn is_held(&self) -> bool {
        *self.held.borrow()
    }

    /// Returns when changes are taken or refused again.
    ///
    /// # Errors
    /// [`FsError::Io`] after [`HELD_MAX`].
    pub(super) async fn until_released(&self) -> Result<(), FsError> {
        let mut held = self.held.subscribe();
        let released = held.wait_for(|held| !held);
        match tokio::time::timeout(HELD_MAX, released).await {
            Ok(_) => Ok(()), // the sender is part of `self`
            Err(_) => Err(FsError::Io("the mount does not end a change of its role".into())),
        }
    }

    fn replace(&self, half: Option<Half>) {
        self.turn.fetch_add(1, Ordering::AcqRel);
        *self.half.write() = half;
    }
}

impl Fs {
    /// Whether changes are refused now.
    pub fn is_read_only(&self) -> bool {
        let half = self.role.half.read();
        half.as_ref().is_none_or(|half| half.committer.state() == WriterState::Fenced)
    }

    /// Whether there is a writing half, fenced or not: nobody else changes the volume unseen.
    pub fn is_writer(&self) -> bool {
        self.role.half.read().is_some()
    }

    /// Takes changes from now on, through `half`; inode numbers from `next_ino` on were never handed
    /// out. The view shows what the journal of `half` holds already.
    pub fn begin_writing(&self, half: Half, next_ino: u64) {
        let mut state = self.state.lock();
        state.inos = lifetime::InoAllocator::new(next_ino);
        self.role.replace(Some(half));
        self.role.held.send_replace(false);
    }

    /// From now on changes wait. Those that are not refused by then are in the journal when this
    /// returns.
    pub fn hold_changes(&self) {
        let _state = self.state.lock();
        self.role.held.send_replace(true);
    }

    /// Those that wait go on.
    pub fn release_changes(&self) {
        let _state = self.state.lock();
        self.role.held.send_replace(false);
    }

    /// From now on changes are refused, those that wait among them. `forget` runs before any of that
    /// shows, with no change under way.
    pub fn end_writing(&self, forget: impl FnOnce()) {
        let _state = self.state.lock();
        self.role.replace(None);
        forget();
        self.role.held.send_replace(false);
    }
}
