//! A running mount: its background tasks, and its orderly end. Made by `opening`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::gates::SharedLease;
use super::status::Shared;
use crate::base::{VolumeId, counted};
use crate::commit::{Committer, View, last_commit};
use crate::fs::Fs;
use crate::journal::Journal;
use crate::meta::CommitRow;
use crate::stack::Control;
use crate::stack::StackError;
use crate::stack::options::OPEN_TIMEOUT;
use crate::stack::records::accept::Accept;
use crate::stack::records::history::{refuse_discord, remember};
use crate::stack::records::lease::{Beat, HEARTBEAT};
use crate::stack::records::state::Remembered;
use crate::store::{Health, Sealed};

/// How long until an overtaken mount tries again to read what the bucket has.
const READER_RETRY: Duration = Duration::from_secs(15);
/// How often what this machine remembers is brought up to date, and how often durably.
const REMEMBER_EVERY: Duration = Duration::from_secs(5);

/// How long the committer may take to end the step it is in, when everything is in the bucket.
const STEP_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether something that was found damaged is due to be read again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long closing the metadata store, and giving the lease back, may take each.
const CLOSE_MAX: Duration = Duration::from_secs(15);
/// The same when something is left to the journal: the store is likely to be away, and whoever
/// asked for `umount --force-local` waits. The next mount here needs neither.
const CLOSE_PENDING_MAX: Duration = Duration::from_secs(5);
/// The same when the store is known to be away.
const CLOSE_AWAY_MAX: Duration = Duration::from_secs(1);

/// The keyring is looked at with every so many heartbeats; whoever rotates the keys has the mount
/// notice sooner, by its configuration.
const KEYRING_BEATS: u64 = 8;

/// The writing half of a mount.
pub(crate) struct Writer {
    pub(crate) journal: Arc<Journal>,
    pub(crate) committer: Arc<Committer>,
    pub(crate) lease: SharedLease,
}

/// A volume that is open. Serve it through `fuse/`, then call [`Mounted::shutdown`].
pub struct Mounted {
    /// The file system.
    pub fs: Arc<Fs>,
    /// Its status, and what it can be told.
    pub control: Arc<dyn Control>,
    /// Its id.
    pub volume: VolumeId,
    /// Where a journal was set aside, if one had been overtaken.
    pub set_aside: Option<PathBuf>,
    shared: Arc<Shared>,
    writer: Option<Writer>,
    /// What the metadata are read through.
    log_store: Arc<Sealed>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// A mount that only reads goes on with what the bucket has, as long as that continues what it has
/// seen.
struct Follower {
    shared: Arc<Shared>,
    log_store: Arc<Sealed>,
    /// The last commit that was looked at.
    last: Option<CommitRow>,
}

impl Follower {
    async fn follow(&mut self) {
        if let Err(e) = self.step().await {
            match e {
                StackError::Rollback { .. } | StackError::OtherHistory { .. } => self.refuse(&e),
                e => log::warn!("what is new in the bucket cannot be read yet: {e}"),
            }
        }
        self.shared.view.follow().await;
    }

    async fn step(&mut self) -> Result<(), StackError> {
        let kv = self.shared.view.kv();
        if kv.refused().is_some() {
            return Ok(());
        }
        if self.log_store.is_behind() {
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
        let kv = self.shared.view.kv();
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
                self.log_store = log_store;
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
        seen.manifest = seen.manifest.max(self.shared.view.kv().manifest_id());
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

impl Mounted {
    pub(crate) fn new(
        fs: Arc<Fs>,
        shared: Arc<Shared>,
        writer: Option<Writer>,
        log_store: Arc<Sealed>,
    ) -> Mounted {
        let (control, volume) = (shared.clone(), shared.volume);
        let (set_aside, tasks) = (shared.set_aside.clone(), Mutex::default());
        Mounted { fs, control, volume, set_aside, shared, writer, log_store, tasks }
    }

    pub(crate) fn start(&self, refresh: Duration) {
        let mut tasks = self.tasks.lock();
        let sealed = self.shared.sealed.clone();
        let looks_again = async move {
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                sealed.look_again(Instant::now()).await;
            }
        };
        let (shared, log_store) = (self.shared.clone(), self.log_store.clone());
        let mut follower = Follower { shared, log_store, last: None };
        let Some(writer) = &self.writer else {
            tasks.push(tokio::spawn(looks_again));
            tasks.push(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(refresh).await;
                    follower.follow().await;
                }
            }));
            return;
        };
        tasks.push(tokio::spawn(writer.committer.clone().run()));
        tasks.push(tokio::spawn(looks_again));
        let journal = writer.journal.clone();
        let (state, remembered) = (self.shared.state.clone(), self.shared.remembered.clone());
        let committed = writer.committer.commits();
        tasks.push(tokio::spawn(async move {
            let mut noted: Option<Instant> = None;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let ticking = journal.clone();
                let synced = tokio::task::spawn_blocking(move || ticking.sync_tick()).await;
                if let Ok(Err(e)) = synced {
                    log::error!("the journal stops: {e}");
                    return;
                }
                // What is only here is remembered, so that a journal that is cut is noticed.
                let (synced, committed) = (journal.synced_pos().0, committed.borrow().position.0);
                let is_recent = noted.is_some_and(|at| at.elapsed() < REMEMBER_EVERY);
                if synced <= committed || is_recent {
                    continue;
                }
                let now = {
                    let mut remembered = remembered.lock();
                    if remembered.journal_synced >= synced {
                        continue;
                    }
                    remembered.journal_synced = synced;
                    remembered.clone()
                };
                noted = Some(Instant::now());
                let state = state.clone();
                let saved = tokio::task::spawn_blocking(move || state.save(&now, true)).await;
                if let Ok(Err(e)) = saved {
                    log::warn!("what this machine remembers was not brought up to date: {e}");
                }
            }
        }));
        let (lease, committer) = (writer.lease.clone(), writer.committer.clone());
        let (remembered, shared) = (self.shared.remembered.clone(), self.shared.clone());
        tasks.push(tokio::spawn(async move {
            for beat in 1u64.. {
                let now = shared.beat_now.notified();
                let _ = tokio::time::timeout(HEARTBEAT, now).await; // whichever comes first
                shared.look_around(beat.is_multiple_of(KEYRING_BEATS)).await;
                {
                    let mut remembered = remembered.lock();
                    remembered.config_generation = shared.sse.generation();
                    remembered.keyring_generation = shared.key_watch.generation();
                }
                let mut lease = lease.lock().await;
                lease.writes_in(shared.sealed.oldest_epoch(), shared.rekey.left());
                match lease.beat().await {
                    Beat::Held => {}
                    Beat::Lost(holder) => {
                        log::error!("the volume was taken over by {holder}: read-only from now on");
                        committer.fence();
                        return;
                    }
                    Beat::Unknown(e) => log::warn!("lease not renewed: {e}"),
                }
            }
        }));
        let committer = writer.committer.clone();
        let (state, remembered) = (self.shared.state.clone(), self.shared.remembered.clone());
        tasks.push(tokio::spawn(async move {
            committer.until_fenced().await;
            // For the next mount: a copy of this directory may have gone on under the same
            // names, which nothing in the bucket would tell.
            let now = {
                let mut remembered = remembered.lock();
                remembered.fenced = true;
                remembered.clone()
            };
            if let Err(e) = state.save(&now, true) {
                log::warn!("what this machine remembers was not brought up to date: {e}");
            }
            // The writer's handle refuses reads from now on: go on as a follower does.
            while let Err(e) = follower.catch_up().await {
                if matches!(e, StackError::Rollback { .. } | StackError::OtherHistory { .. }) {
                    follower.refuse(&e);
                    break;
                }
                log::warn!("metadata cannot be read yet: {e}");
                tokio::time::sleep(READER_RETRY).await;
            }
            loop {
                follower.follow().await;
                tokio::time::sleep(refresh).await;
            }
        }));
        let (state, remembered) = (self.shared.state.clone(), self.shared.remembered.clone());
        let (view, mut commits) = (self.shared.view.clone(), writer.committer.commits());
        tasks.push(tokio::spawn(async move {
            let mut saves = 0u32;
            while commits.changed().await.is_ok() {
                let row = *commits.borrow_and_update();
                let now = note_commit(&remembered, row, view.kv().manifest_id());
                saves += 1;
                let (state, durably) = (state.clone(), saves.is_multiple_of(6));
                let saved = tokio::task::spawn_blocking(move || state.save(&now, durably)).await;
                if let Ok(Err(e)) = saved {
                    log::warn!("what this machine remembers was not brought up to date: {e}");
                }
                tokio::time::sleep(REMEMBER_EVERY).await;
            }
        }));
        let fs = self.fs.clone();
        tasks.push(tokio::spawn(async move {
            match fs.reap_left_over().await {
                Ok(0) => {}
                Ok(n) => {
                    let files = counted(n, "file");
                    log::info!("removed {files} unlinked before a crash");
                }
                Err(e) => log::warn!("unlinked files of an earlier mount stay: {e}"),
            }
        }));
    }

    /// What a person should know of how it was mounted.
    pub fn notes(&self) -> Vec<String> {
        self.shared.sse.notes()
    }

    /// Looks at once whether the keyring or the configuration of the volume has changed; by itself
    /// a mount does so every few minutes.
    pub async fn follow_config(&self) {
        self.shared.follow_now().await;
    }

    /// Whether something in the bucket is known to be damaged.
    pub fn is_damaged(&self) -> bool {
        !self.shared.sealed.damaged().is_empty()
    }

    /// What was asked of the store so far.
    pub fn requests(&self) -> crate::store::RequestSnapshot {
        self.shared.layers.stats.snapshot()
    }

    /// The metadata, pending and committed, for what looks behind the file system.
    pub fn view(&self) -> &Arc<View> {
        &self.shared.view
    }

    /// Waits until the bucket has everything that was written before the call; true if it has.
    pub async fn sync(&self, limit: Duration) -> bool {
        match &self.writer {
            Some(writer) => writer.committer.sync(limit).await,
            None => true,
        }
    }

    /// Ends the mount in order: drains to the bucket for at most `drain`, flushes metadata,
    /// gives the lease back. True if everything is in the bucket; what is not stays in the
    /// journal for the next mount.
    pub async fn shutdown(self, drain: Duration) -> bool {
        let drained = self.sync(drain).await;
        if let Some(writer) = &self.writer {
            if let Err(e) = writer.journal.sync(writer.journal.last_pos()) {
                log::error!("the journal could not be synced: {e}");
            }
            writer.committer.stop();
        }
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for (n, task) in tasks.into_iter().enumerate() {
            // The committer ends by itself after its step; the others hold nothing.
            // A read-only mount has no committer: its task would never end.
            let ends = n == 0 && self.writer.is_some();
            let grace = if ends && drained { STEP_MAX } else { Duration::ZERO };
            let abort = task.abort_handle();
            if tokio::time::timeout(grace, task).await.is_err() {
                abort.abort();
            }
        }
        if let Some(writer) = &self.writer {
            writer.committer.give_up_cleaning(); // its task may have been aborted
        }
        self.shared.remembered.lock().keyring_generation = self.shared.key_watch.generation();
        let close = self.shared.view.kv().close(drained);
        let limit = match &*self.shared.layers.retry.health().borrow() {
            _ if drained => CLOSE_MAX,
            Health::Online => CLOSE_PENDING_MAX,
            Health::OfflineSince(..) => CLOSE_AWAY_MAX,
        };
        match tokio::time::timeout(limit, close).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log::warn!("closing the metadata store: {e}"),
            Err(_) => log::warn!("closing the metadata store took too long, left as it is"),
        }
        if let Some(writer) = &self.writer {
            let row = writer.committer.committed();
            let now =
                note_commit(&self.shared.remembered, row, self.shared.view.kv().manifest_id());
            if let Err(e) = self.shared.state.save(&now, true) {
                log::warn!("what this machine remembers was not saved: {e}");
            }
            let mut lease = writer.lease.lock().await;
            let release = tokio::time::timeout(limit, lease.release()).await;
            match release {
                Ok(Beat::Held) => {}
                Ok(Beat::Lost(holder)) => log::warn!("the volume is held by {holder} now"),
                Ok(Beat::Unknown(e)) => log::warn!("the lease was not given back: {e}"),
                Err(_) => log::warn!("the lease was not given back in time"),
            }
        }
        drained
    }
}

fn note_commit(remembered: &Mutex<Remembered>, row: CommitRow, manifest: u64) -> Remembered {
    let mut state = remembered.lock();
    if row.sequence > state.sequence {
        state.saw(row.sequence, row.chain);
    }
    state.manifest = state.manifest.max(manifest);
    state.journal_committed = state.journal_committed.max(row.position.0);
    state.lineage = state.lineage.max(row.sequence);
    state.clone()
}
