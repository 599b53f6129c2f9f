//! The writing half of a mount: journal, committer, lease, and the tasks that go with them, each by
//! its name. It comes when a mount begins or is promoted, and goes when it ends, is demoted or is
//! fenced; what it stands on (`OpenVolume`) stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::gates::SharedLease;
use super::scheduling::keep_schedule;
use super::status::OpenVolume;
use crate::base::counted;
use crate::commit::Committer;
use crate::fs::Fs;
use crate::journal::{Journal, Trouble};
use crate::meta::CommitRow;
use crate::stack::StackError;
use crate::stack::records::lease::{Beat, HEARTBEAT, Renewed};
use crate::stack::records::state::Remembered;

/// How often what this machine remembers is brought up to date, and how often durably.
const REMEMBER_EVERY: Duration = Duration::from_secs(5);
/// How long a task that was told to end may take: it waits for nothing but its next pause.
const END_MAX: Duration = Duration::from_secs(5);
/// How long the journal's disk is left alone after it did not finish a sync.
const STUCK_PAUSE: Duration = Duration::from_secs(30);
/// Heartbeats from one look at the keyring to the next. A mount notices a rotation of the keys
/// sooner, by its configuration.
const KEYRING_BEATS: u64 = 8;

/// See the module.
pub(crate) struct Writer {
    pub(crate) journal: Arc<Journal>,
    pub(crate) committer: Arc<Committer>,
    pub(crate) lease: SharedLease,
    /// When the lease was last known to be held.
    pub(crate) renewed: Renewed,
    /// Where a journal was set aside for this one, if it had been overtaken.
    pub(crate) set_aside: Option<PathBuf>,
    tasks: Mutex<Option<Tasks>>,
}

/// What runs as long as there is a writing half.
struct Tasks {
    /// Brings the journal to the bucket; ends by itself after the step it is in.
    commits: JoinHandle<()>,
    /// Syncs the journal once a second, and remembers how far it is.
    syncs: JoinHandle<()>,
    /// Shows that the mount lives, and looks at configuration and keyring.
    beats: JoinHandle<()>,
    /// Remembers commits.
    notes: JoinHandle<()>,
    /// Removes files that an earlier mount left without a name.
    reaps: JoinHandle<()>,
    /// Makes and deletes snapshots when they are due.
    schedules: JoinHandle<()>,
}

impl Writer {
    pub(crate) fn new(
        journal: Arc<Journal>,
        committer: Arc<Committer>,
        (lease, renewed): (SharedLease, Renewed),
        set_aside: Option<PathBuf>,
    ) -> Writer {
        let tasks = Mutex::default();
        Writer { journal, committer, lease, renewed, set_aside, tasks }
    }

    /// Starts its tasks.
    pub(crate) fn start(&self, shared: &Arc<OpenVolume>) {
        let (committer, lease) = (self.committer.clone(), self.lease.clone());
        *self.tasks.lock() = Some(Tasks {
            commits: tokio::spawn(self.committer.clone().run()),
            syncs: tokio::spawn(sync_journal(
                self.journal.clone(),
                committer.clone(),
                shared.clone(),
            )),
            beats: tokio::spawn(beat(lease, committer.clone(), shared.clone())),
            notes: tokio::spawn(note_commits(committer.clone(), shared.clone())),
            schedules: tokio::spawn(keep_schedule(committer, shared.clone())),
            reaps: tokio::spawn(reap(shared.fs.clone())),
        });
    }

    /// Ends its tasks: the committer after the step it is in, for which it has `grace`. What is
    /// pending stays in the journal.
    pub(crate) async fn stop(&self, grace: Duration) {
        self.committer.stop();
        let Some(tasks) = self.tasks.lock().take() else { return };
        let Tasks { commits, syncs, beats, notes, reaps, schedules } = tasks;
        for task in [&syncs, &beats, &notes, &reaps, &schedules] {
            task.abort();
        }
        end(commits, grace).await;
        for task in [syncs, beats, notes, reaps, schedules] {
            end(task, END_MAX).await;
        }
        self.committer.give_up_cleaning(); // its task may have been aborted
    }

    /// Remembers the last commit.
    pub(crate) fn note_last(&self, shared: &OpenVolume) -> Result<(), StackError> {
        let row = self.committer.committed();
        note_commit(&shared.remembered, row, shared.view.kv().manifest_id());
        shared.save(true)
    }

    /// It is not stopped after all.
    pub(crate) fn go_on(&self, shared: &Arc<OpenVolume>) {
        self.committer.go_on();
        self.start(shared);
    }

    /// Gives the lease back, within `limit`; false if it is not certain that it was.
    pub(crate) async fn release(&self, limit: Duration) -> bool {
        Writer::release_lease(&self.lease, limit).await
    }

    /// The same of the lease alone.
    pub(crate) async fn release_lease(lease: &SharedLease, limit: Duration) -> bool {
        let release = async { lease.lock().await.release().await };
        match tokio::time::timeout(limit, release).await {
            Ok(Beat::Held) => return true,
            Ok(Beat::Lost(holder)) => {
                log::warn!("the volume is held by {holder} now");
                return true; // there is nothing to give back
            }
            Ok(Beat::Unknown(e)) => log::warn!("the lease was not given back: {e}"),
            Err(_) => log::warn!("the lease was not given back in time"),
        }
        false
    }
}

async fn end(task: JoinHandle<()>, grace: Duration) {
    let abort = task.abort_handle();
    if tokio::time::timeout(grace, task).await.is_err() {
        abort.abort();
    }
}

/// Saves what this machine remembers; blocks on the local disk only.
async fn save(shared: &Arc<OpenVolume>, durably: bool) {
    let shared = shared.clone();
    let saved = tokio::task::spawn_blocking(move || shared.save(durably)).await;
    if let Ok(Err(e)) = saved {
        log::warn!("what this machine remembers was not brought up to date: {e}");
    }
}

async fn sync_journal(journal: Arc<Journal>, committer: Arc<Committer>, shared: Arc<OpenVolume>) {
    let committed = committer.commits();
    let mut noted: Option<Instant> = None;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ticking = journal.clone();
        let synced = tokio::task::spawn_blocking(move || ticking.sync_tick()).await;
        if let Ok(Err(e)) = synced {
            if matches!(journal.trouble(), Some(Trouble::Stopped(_))) {
                log::error!("the journal stops: {e}");
                return;
            }
            // The disk is stuck; what waits for it later is to learn of that too.
            log::warn!("the journal is not on stable storage: {e}");
            tokio::time::sleep(STUCK_PAUSE).await;
            continue;
        }
        // What is only here is remembered, so that a journal that is cut is noticed.
        let (synced, committed) = (journal.synced_pos().0, committed.borrow().position.0);
        let is_recent = noted.is_some_and(|at| at.elapsed() < REMEMBER_EVERY);
        if synced <= committed || is_recent {
            continue;
        }
        {
            let mut remembered = shared.remembered.lock();
            if remembered.journal_synced >= synced {
                continue;
            }
            remembered.journal_synced = synced;
        }
        noted = Some(Instant::now());
        save(&shared, true).await;
    }
}

async fn beat(lease: SharedLease, committer: Arc<Committer>, shared: Arc<OpenVolume>) {
    for beat in 1u64.. {
        let now = shared.beat_now.notified();
        let _ = tokio::time::timeout(HEARTBEAT, now).await; // whichever comes first
        shared.look_around(beat.is_multiple_of(KEYRING_BEATS)).await;
        {
            let mut remembered = shared.remembered.lock();
            remembered.config_revision = shared.sse.revision();
            remembered.keyring_revision = shared.key_watch.revision();
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
}

async fn note_commits(committer: Arc<Committer>, shared: Arc<OpenVolume>) {
    let mut commits = committer.commits();
    let mut saves = 0u32;
    while commits.changed().await.is_ok() {
        let row = *commits.borrow_and_update();
        note_commit(&shared.remembered, row, shared.view.kv().manifest_id());
        saves += 1;
        save(&shared, saves.is_multiple_of(6)).await;
        tokio::time::sleep(REMEMBER_EVERY).await;
    }
}

async fn reap(fs: Arc<Fs>) {
    match fs.reap_left_over().await {
        Ok(0) => {}
        Ok(n) => {
            let files = counted(n, "file");
            log::info!("removed {files} unlinked before a crash");
        }
        Err(e) => log::warn!("unlinked files of an earlier mount stay: {e}"),
    }
}

fn note_commit(remembered: &Mutex<Remembered>, row: CommitRow, manifest: u64) {
    let mut state = remembered.lock();
    if row.sequence > state.sequence {
        state.saw(row.sequence, row.chain);
    }
    state.manifest = state.manifest.max(manifest);
    state.journal_committed = state.journal_committed.max(row.position.0);
    state.lineage = state.lineage.max(row.sequence);
}
