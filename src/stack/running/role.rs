//! Which role a mount has, and how it comes by another: a writing half is taken up, or laid down. One
//! change at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::claim::{Held, Opener, go_on};
use super::control::Progress;
use super::following::Follower;
use super::gates::gates;
use super::look::Found;
use super::status::OpenVolume;
use super::writer::Writer;
use crate::base::{JournalPos, counted, hex, unix_secs};
use crate::commit::replay::replay;
use crate::commit::{CommitOptions, Committer, ViewError};
use crate::fs::Half;
use crate::journal::{Journal, Recovery};
use crate::meta::{CommitRow, DecodeError, keys};
use crate::stack::records::lineage::refuse_lost;
use crate::stack::records::state::Remembered;
use crate::stack::{Accept, StackError};

/// How long the committer of an overtaken mount may take to end the step it is in.
const FENCED_STEP_MAX: Duration = Duration::from_secs(5);
/// How long the end of a mount waits for a change of role that is under way.
const STAY_MAX: Duration = Duration::from_secs(30);

/// What a mount does for its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleName {
    /// It changes the volume, and nobody else does.
    Writer,
    /// It shows what the bucket has.
    Follower,
}

/// Why a mount has its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It was mounted so.
    Mounted,
    /// `sealfs promote`.
    Promoted,
    /// `sealfs demote`.
    Demoted,
    /// Another mount has taken the volume over.
    Fenced,
}

/// How a mount came by its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// The role since.
    pub role: RoleName,
    /// What brought it about.
    pub why: Why,
    /// Seconds since 1970.
    pub unix_secs: u64,
    /// The commit of the volume at which it was.
    pub commit_sequence: u64,
}

/// See the module.
pub(crate) struct Roles {
    last: watch::Sender<Transition>,
    /// What an overtaken half left in the journal.
    left: Mutex<Option<(Progress, PathBuf)>>,
    /// Held by whoever changes the role, and by the end of the mount.
    pub(crate) changing: Arc<tokio::sync::Mutex<()>>,
    /// Follows the bucket, or waits until the writing half is fenced.
    task: Mutex<Option<JoinHandle<()>>>,
    /// Gives a lease back that could not be when it was due.
    releases: Mutex<Option<JoinHandle<()>>>,
}

impl Default for Roles {
    fn default() -> Roles {
        let (role, why, unix_secs) = (RoleName::Follower, Why::Mounted, unix_secs());
        let first = Transition { role, why, unix_secs, commit_sequence: 0 };
        Roles {
            last: watch::Sender::new(first),
            left: Mutex::default(),
            changing: Arc::default(),
            task: Mutex::default(),
            releases: Mutex::default(),
        }
    }
}

impl Roles {
    /// How the mount came by its role.
    pub(crate) fn last(&self) -> Transition {
        *self.last.borrow()
    }

    /// Follows the changes of the role.
    pub(crate) fn changes(&self) -> watch::Receiver<Transition> {
        self.last.subscribe()
    }

    /// What an overtaken half left in the journal, and where that is.
    pub(crate) fn left(&self) -> Option<(Progress, PathBuf)> {
        self.left.lock().clone()
    }

    pub(crate) fn note(&self, role: RoleName, why: Why, commit_sequence: u64) {
        let now = Transition { role, why, unix_secs: unix_secs(), commit_sequence };
        self.last.send_replace(now);
    }

    /// `task` takes the place of the one before.
    pub(crate) fn run(&self, task: JoinHandle<()>) {
        if let Some(before) = self.task.lock().replace(task) {
            before.abort();
        }
    }

    /// `task` gives a lease back.
    pub(crate) fn release_later(&self, task: JoinHandle<()>) {
        if let Some(before) = self.releases.lock().replace(task) {
            before.abort();
        }
    }

    /// Nobody gives a lease back any more, that may be taken again.
    pub(crate) async fn forget_release(&self) {
        let task = self.releases.lock().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await; // aborted, or ended by itself
        }
    }

    /// Nothing follows, or waits, any more.
    pub(crate) async fn rest(&self) {
        let before = self.task.lock().take();
        if let Some(before) = before {
            before.abort();
            let _ = before.await; // aborted, or ended by itself
        }
    }
}

impl OpenVolume {
    /// The writing half, if there is one.
    pub(crate) fn writer(&self) -> Option<Arc<Writer>> {
        self.writer.read().clone()
    }

    /// Follows the bucket from now on.
    pub(crate) fn follow(self: &Arc<Self>) {
        self.role.run(tokio::spawn(Follower::new(self.clone()).run(self.refresh)));
    }

    /// Lets the role be what it is from now on: waits for a change that is under way.
    pub(crate) async fn stay(&self) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        self.role.rest().await;
        let changing = self.role.changing.clone().lock_owned();
        let staying = tokio::time::timeout(STAY_MAX, changing).await.ok();
        self.role.rest().await;
        staying
    }

    /// Becomes the writer, once the metadata beneath the view are open for writing, at the state that
    /// was `found`: goes on with the local journal, replays it, and takes changes. The lease in `held`
    /// stays there.
    ///
    /// # Errors
    /// Those of the journal and of its replay; [`StackError::Local`].
    pub(crate) async fn take_up(
        self: &Arc<Self>,
        local: (Journal, Recovery),
        found: &Found,
        before: (&Remembered, Accept),
        held: &Held,
        instance: [u8; 16],
    ) -> Result<(), StackError> {
        let (writer, next_ino) = self.prepare(local, found, before, held, instance).await?;
        self.begin(writer, next_ino, Why::Mounted);
        Ok(())
    }

    /// [`OpenVolume::take_up`] up to the point where changes are taken.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn prepare(
        &self,
        local: (Journal, Recovery),
        found: &Found,
        before: (&Remembered, Accept),
        held: &Held,
        instance: [u8; 16],
    ) -> Result<(Writer, u64), StackError> {
        let attended = &self.layers.attended;
        let opener = Opener { plan: &self.plan, keys: &self.keys, attended };
        let lost = match refuse_lost(&local.1, found.commit, before.0) {
            Err(StackError::JournalLost { records, .. }) => records,
            _ => 0,
        };
        let local = go_on(local, found, before, &opener).await?;
        let (journal, base) = (local.journal, local.base);
        self.view.restart(base);
        journal.release(base);
        let replayed = replay(&self.view, &journal, local.todo).await?;
        if replayed > 0 {
            log::info!("replayed {} of the local journal", counted(replayed, "record"));
        }
        {
            let mut remembered = self.remembered.lock();
            remembered.journal = journal.id().to_string();
            remembered.journal_committed = base.0;
            remembered.journal_synced = 0;
            remembered.lineage = found.sequence();
            remembered.seen_instance = found.writer.clone().unwrap_or_default();
            remembered.instance = hex(&instance);
            remembered.fenced = false;
            if before.1.journal {
                // Shown from now on, until it is accepted once more when nothing is lost.
                (remembered.lost_records, remembered.lost_secs) = (lost, unix_secs());
            }
            let store = self.layers.place.name();
            if !remembered.has_probed(&store, unix_secs()) {
                // The claim has found it out.
                (remembered.probed, remembered.probed_secs) = (store, unix_secs());
            }
        }
        let row = CommitRow {
            journal: journal.id(),
            position: base,
            sequence: found.sequence(),
            time_secs: found.commit.map_or(0, |row| row.time_secs),
            writer_epoch: self.view.kv().writer_epoch(),
            chain: found.commit.map(|row| row.chain).unwrap_or_default(),
        };
        let interval = *self.commit_interval.lock();
        let commit = CommitOptions { instance, interval, ..self.plan.commit };
        let (sealed, segments, keys_of) = (&self.sealed, &self.segments, &self.keys);
        let lease = held.lease.clone().expect("a claim ends with the lease");
        let renewed = lease.lock().await.renewed();
        let with = (Some(lease.clone()), self.sse.clone());
        let gates = gates(sealed.clone(), segments.clone(), with, keys_of.clone());
        let (view, history) = (self.view.clone(), self.keys.history_key());
        let (journal_of, to) = (journal.clone(), segments.clone());
        let committer = Committer::new(view, journal_of, to, row, commit, history, gates);
        self.save(true)?;
        // By now with what the journal had pending.
        let next_ino = self.view.get(&keys::next_ino()).await?;
        let next_ino = next_ino.ok_or_else(|| ViewError::from(DecodeError("no inode number")))?;
        let next_ino = crate::fs::decode_next_ino(&next_ino).map_err(ViewError::from)?;
        Ok((Writer::new(journal, committer, (lease, renewed), local.set_aside), next_ino))
    }

    /// From now on changes are taken.
    pub(crate) fn begin(self: &Arc<Self>, writer: Writer, next_ino: u64, why: Why) {
        let writer = Arc::new(writer);
        let half = Half { journal: writer.journal.clone(), committer: writer.committer.clone() };
        *self.writer.write() = Some(writer.clone());
        *self.role.left.lock() = None;
        self.role.note(RoleName::Writer, why, writer.committer.committed().sequence);
        self.fs.begin_writing(half, next_ino);
        writer.start(self);
        self.role.run(tokio::spawn(self.clone().until_fenced(writer)));
    }

    /// Saves what this machine remembers, as it is when the file is free.
    pub(crate) fn save(&self, sync: bool) -> Result<(), StackError> {
        self.state.save_as(|| self.remembered.lock().clone(), sync)
    }

    /// Waits until another mount has taken the volume over; then lays the writing half down, and
    /// follows. What it had pending stays in the journal.
    async fn until_fenced(self: Arc<Self>, writer: Arc<Writer>) {
        writer.committer.until_fenced().await;
        let changing = self.role.changing.lock().await;
        if self.writer().is_none_or(|now| !Arc::ptr_eq(&now, &writer)) {
            return; // it was laid down meanwhile
        }
        // For the next mount: a copy of this directory may have gone on under the same
        // names, which nothing in the bucket would tell.
        self.remembered.lock().fenced = true;
        if let Err(e) = writer.note_last(&self) {
            log::warn!("what this machine remembers was not brought up to date: {e}");
        }
        writer.stop(FENCED_STEP_MAX).await;
        // The writer's handle refuses reads from now on: go on as a follower does.
        let mut follower = Follower::new(self.clone());
        follower.begin().await;
        let pending = self.pending_of(&writer);
        if pending.pending_bytes > 0 {
            *self.role.left.lock() = Some((pending, self.plan.journal_dir()));
        }
        let kernel = self.kernel_side.lock().clone();
        if let Some(kernel) = &kernel {
            kernel.note_files(false);
        }
        self.lay_down(Why::Fenced);
        self.view.follow().await;
        drop(writer);
        if let Some(kernel) = kernel {
            tokio::task::spawn_blocking(move || kernel.follow());
        }
        drop(changing);
        follower.run(self.refresh).await;
    }

    /// From now on nothing is changed through this mount.
    pub(crate) fn lay_down(&self, why: Why) {
        let sequence = self.remembered.lock().sequence;
        self.fs.end_writing(|| self.view.restart(JournalPos(0)));
        *self.writer.write() = None;
        self.role.note(RoleName::Follower, why, sequence);
    }
}
