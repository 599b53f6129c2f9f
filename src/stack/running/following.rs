//! A mount that only reads goes on with what the bucket has, as long as that continues what it has
//! seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStore;

use super::status::OpenVolume;
use crate::commit::last_commit;
use crate::meta::CommitRow;
use crate::stack::options::OPEN_TIMEOUT;
use crate::stack::records::history::{refuse_discord, remember};
use crate::stack::records::lease::HEARTBEAT;
use crate::stack::records::state::Remembered;
use crate::stack::{Accept, StackError};

/// How long until it is tried again to read what the bucket has.
const READER_RETRY: Duration = Duration::from_secs(15);

/// See the module.
pub(crate) struct Follower {
    shared: Arc<OpenVolume>,
    /// The last commit that was looked at.
    last: Option<CommitRow>,
    /// When it looked at the configuration last.
    looked: Instant,
}

impl Follower {
    pub(crate) fn new(shared: Arc<OpenVolume>) -> Follower {
        Follower { shared, last: None, looked: Instant::now() }
    }

    /// Looks every `refresh`, for ever.
    pub(crate) async fn run(mut self, refresh: Duration) {
        loop {
            tokio::time::sleep(refresh).await;
            self.follow().await;
            if self.looked.elapsed() >= HEARTBEAT {
                self.looked = Instant::now();
                self.shared.look_at_config().await;
            }
        }
    }

    /// The same once what is shown was read by this mount as a writer, which is to be exchanged.
    pub(crate) async fn run_behind(mut self, refresh: Duration) {
        self.begin().await;
        self.shared.view.follow().await;
        self.run(refresh).await;
    }

    /// Goes over to reading, however long the store is away.
    pub(crate) async fn begin(&mut self) {
        while let Err(e) = self.catch_up().await {
            if matches!(e, StackError::Rollback { .. } | StackError::OtherHistory { .. }) {
                return self.refuse(&e);
            }
            log::warn!("metadata cannot be read yet: {e}");
            tokio::time::sleep(READER_RETRY).await;
        }
    }

    async fn follow(&mut self) {
        if let Err(e) = self.step().await {
            match e {
                StackError::Rollback { .. } | StackError::OtherHistory { .. } => self.refuse(&e),
                e => log::warn!("what is new in the bucket cannot be read yet: {e}"),
            }
        }
        match &self.shared.pinned {
            Some(pinned) => pinned.look(&self.shared.followed).await,
            None => self.shared.view.follow().await,
        }
    }

    async fn step(&mut self) -> Result<(), StackError> {
        let kv = &self.shared.followed;
        if kv.refused().is_some() {
            return Ok(());
        }
        if self.shared.log_store.lock().is_behind() {
            return self.catch_up().await;
        }
        let now = last_commit(kv).await?;
        if now == self.last {
            return Ok(());
        }
        // The handle has gone on by itself, and the log it read continues what it had.
        let mut seen = self.shared.remembered.lock().clone();
        refuse_discord(kv, now, &seen, 0, Accept::default()).await?;
        remember(kv, now, &mut seen).await?;
        self.keep(now, seen);
        Ok(())
    }

    /// Goes on with the newest state, which nothing that was read leads to: that the bucket holds
    /// what was seen is looked up in its rows.
    async fn catch_up(&mut self) -> Result<(), StackError> {
        let kv = &self.shared.followed;
        let log_store = Arc::new(self.shared.sealed.apart());
        let store: Arc<dyn ObjectStore> = log_store.clone();
        let newer = kv.successor(store, OPEN_TIMEOUT).await?;
        let mut seen = self.shared.remembered.lock().clone();
        let checked = async {
            let now = last_commit(&newer).await?;
            refuse_discord(&newer, now, &seen, 0, Accept::default()).await?;
            remember(&newer, now, &mut seen).await?;
            Ok(now)
        };
        match checked.await {
            Ok(now) => {
                kv.replace_by(newer).await;
                *self.shared.log_store.lock() = log_store;
                self.keep(now, seen);
                Ok(())
            }
            Err(e) => {
                let _ = newer.close(false).await; // a reader: there is nothing to lose
                Err(e)
            }
        }
    }

    fn keep(&mut self, now: Option<CommitRow>, mut seen: Remembered) {
        self.last = now;
        seen.manifest = seen.manifest.max(self.shared.followed.manifest_id());
        let mut remembered = self.shared.remembered.lock();
        remembered.take_seen(&seen);
        let seen = remembered.clone();
        drop(remembered);
        if let Err(e) = self.shared.state.add_seen(&seen, false) {
            log::warn!("what this machine remembers was not brought up to date: {e}");
        }
    }

    fn refuse(&self, why: &StackError) {
        log::error!("{why}: nothing of it is shown");
        self.shared.view.kv().refuse(why.to_string());
    }
}
