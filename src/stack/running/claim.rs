//! How a mount comes by its writing half: the journal of this machine locked, the metadata looked at,
//! the lease taken, the metadata opened for writing at the very state that was looked at. The steps
//! are the same for a mount that begins and for a follower that is promoted; until the last of them
//! nothing of the volume has been changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use tokio::task::JoinHandle;

use super::canary::explained;
use super::disks::{human, room_for, space_of};
use super::gates::SharedLease;
use super::look::{Found, Look, Seat};
use crate::base::{JournalPos, SystemClock, unix_secs};
use crate::commit::CommitOptions;
use crate::journal::{Journal, JournalError, JournalOptions, RecordLoc, Recovery};
use crate::seal::{VolumeKeys, fill_random};
use crate::stack::options::LocalDisk;
use crate::stack::records::departure::Departure;
use crate::stack::records::lease::{Beat, Lease, LeaseAsk};
use crate::stack::records::lineage::Lineage;
use crate::stack::records::state::Remembered;
use crate::stack::{Accept, Attended, MountOptions, StackError};
use crate::store::kv::KvError;

/// How often the metadata are looked at when others keep changing them in between.
const LOOKS_MAX: u32 = 3;

/// How long a claim that failed may take to give the lease back.
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);

/// How a mount writes, or would.
#[derive(Clone, Debug)]
pub(crate) struct WritePlan {
    /// Of this machine.
    pub(crate) state_base: PathBuf,
    /// Of the volume, below that.
    pub(crate) state_dir: PathBuf,
    pub(crate) journal_bytes_max: u64,
    pub(crate) disk: LocalDisk,
    pub(crate) open_timeout: Duration,
    pub(crate) commit: CommitOptions,
}

impl WritePlan {
    pub(crate) fn of(options: &MountOptions, state_dir: &Path) -> WritePlan {
        WritePlan {
            state_base: options.state_dir.clone(),
            state_dir: state_dir.to_owned(),
            journal_bytes_max: options.journal_bytes_max,
            disk: options.disk.clone(),
            open_timeout: options.open_timeout,
            commit: CommitOptions {
                interval: options.commit_interval,
                dead_grace: options.dead_grace,
                clean: options.clean,
                ..CommitOptions::default()
            },
        }
    }

    /// Where the journal is.
    pub(crate) fn journal_dir(&self) -> PathBuf {
        self.state_dir.join("journal")
    }
}

/// The lease of a claim, however far it is.
#[derive(Default)]
pub(crate) struct Held {
    acquiring: Option<JoinHandle<Result<Lease, StackError>>>,
    pub(crate) lease: Option<SharedLease>,
}

impl Held {
    /// Takes the lease on a separate task, so that it is known to the end whether it is taken.
    async fn acquire(
        &mut self,
        store: Arc<dyn ObjectStore>,
        ask: LeaseAsk,
        attended: Attended,
    ) -> Result<(), StackError> {
        let acquire = async move { Lease::acquire(store, ask, &attended).await };
        let acquired = self.acquiring.insert(tokio::spawn(acquire)).await;
        self.acquiring = None;
        let lease = acquired.map_err(|e| StackError::store_broke("taking the lease", e))??;
        self.lease = Some(Arc::new(tokio::sync::Mutex::new(lease)));
        Ok(())
    }

    /// Whether somebody held it, until just now or still.
    async fn was_held(&self) -> bool {
        match &self.lease {
            Some(lease) => lease.lock().await.was_held(),
            None => false,
        }
    }

    /// Gives the lease back if it was taken, and free before; within bounds.
    pub(crate) async fn give_back(self) {
        if !matches!(tokio::time::timeout(RELEASE_DEADLINE, self.undo()).await, Ok(true)) {
            log::warn!("the lease was not given back");
        }
    }

    async fn undo(self) -> bool {
        let taken = match (self.lease, self.acquiring) {
            (Some(lease), _) => Some(lease),
            (None, Some(acquiring)) => {
                acquiring.await.ok().and_then(Result::ok).map(|lease| Arc::new(lease.into()))
            }
            (None, None) => None,
        };
        let Some(lease) = taken else { return true };
        let mut lease = lease.lock().await;
        !lease.was_free() || matches!(lease.release().await, Beat::Held)
    }
}

/// What the claim of a lease is made with.
pub(crate) struct Ask<'a> {
    pub(crate) look: &'a Look<'a>,
    pub(crate) recovery: &'a Recovery,
    /// Names the mount from now on.
    pub(crate) instance: [u8; 16],
    /// Take it from whoever holds it.
    pub(crate) takeover: bool,
}

/// Takes the lease into `held` and opens the metadata of `seat` for writing; looks at them again as
/// long as others change them in between.
///
/// # Errors
/// As [`mount`](crate::stack::mount); nothing was written but the lease.
pub(crate) async fn claim(
    mut seat: Seat,
    ask: &Ask<'_>,
    held: &mut Held,
) -> Result<Seat, StackError> {
    let Ask { look, recovery, .. } = ask;
    let (layers, sealed) = (look.layers, look.sealed);
    let lease = LeaseAsk {
        mount: ask.instance,
        before: look.before.instance.clone(),
        least: seat.found.beside.lease,
        takeover: ask.takeover,
        probes: !look.before.has_probed(&layers.place.name(), unix_secs()),
    };
    let store: Arc<dyn ObjectStore> = sealed.clone();
    match held.acquire(store, lease, look.attended.clone()).await {
        Err(StackError::Unsuitable(e)) => return Err(explained(layers, e).await),
        outcome => outcome?,
    }
    // Whoever had it until now may have gone on since.
    let mut is_old = held.was_held().await;
    for tries_left in (0..LOOKS_MAX).rev() {
        if is_old {
            layers.ahead.end(); // what was fetched before is old, too
            let _ = seat.kv.close(false).await; // nothing was written through it
            seat = look.open(Arc::new(sealed.apart()), Some(recovery)).await?;
        }
        match look.open_for_writing(&seat.kv, &seat.found).await {
            Err(StackError::Metadata(KvError::Fenced)) if tries_left > 0 => is_old = true,
            outcome => {
                outcome?;
                break;
            }
        }
    }
    Ok(seat)
}

/// Names a mount.
pub(crate) fn random_instance() -> [u8; 16] {
    let mut instance = [0; 16];
    fill_random(&mut instance);
    instance
}

/// A journal that goes on.
pub(crate) struct Local {
    pub(crate) journal: Arc<Journal>,
    /// The last record that is in the bucket.
    pub(crate) base: JournalPos,
    /// What is to be replayed.
    pub(crate) todo: Vec<RecordLoc>,
    /// Where the one before it was put, if that was overtaken.
    pub(crate) set_aside: Option<PathBuf>,
}

/// Goes on with the local journal, or sets it aside and begins another.
pub(crate) async fn go_on(
    (journal, recovery): (Journal, Recovery),
    found: &Found,
    (before, accept): (&Remembered, Accept),
    opener: &Opener<'_>,
) -> Result<Local, StackError> {
    match found.lineage(&recovery, before, accept)? {
        Lineage::Continues(base, todo) => {
            if base > recovery.last {
                journal.start_after(base)?;
            }
            Ok(Local { journal: Arc::new(journal), base, todo, set_aside: None })
        }
        Lineage::Overtaken => {
            let aside = journal.set_aside(crate::base::Clock::now(&SystemClock))?;
            log::error!(
                "the local journal holds changes that another writer has overtaken; it was set \
                 aside at {}",
                aside.display()
            );
            drop(journal);
            let (journal, recovery) = opener.open().await?;
            let base = JournalPos(recovery.first.0.saturating_sub(1));
            let journal = Arc::new(journal);
            Ok(Local { journal, base, todo: Vec::new(), set_aside: Some(aside) })
        }
    }
}

/// Opens the journal of a volume on this machine.
pub(crate) struct Opener<'a> {
    pub(crate) plan: &'a WritePlan,
    pub(crate) keys: &'a VolumeKeys,
    pub(crate) attended: &'a Attended,
}

impl Opener<'_> {
    /// Opens the journal. A process that was killed keeps its lock until its last thread has left
    /// the kernel, so a holder that is dead already is waited for, as is one that is about to end, or a mount of
    /// this process that has ended.
    pub(crate) async fn open(&self) -> Result<(Journal, Recovery), StackError> {
        let (plan, dir) = (self.plan, self.plan.journal_dir());
        let mut departure = Departure::new(self.attended).or_own_tasks();
        loop {
            let has = room_for(&dir, &plan.state_dir);
            let journal = JournalOptions::new(dir.clone(), plan.journal_bytes_max);
            let journal = has.map_or(journal.clone(), |bytes| journal.on_disk_of(bytes));
            match Journal::open(journal, self.keys.clone(), plan.disk.0.clone()) {
                Err(e @ JournalError::InUse(Some(pid))) => {
                    if !departure.wait(pid).await {
                        return Err(departure.refused(pid, e.into()));
                    }
                }
                Err(JournalError::NoSpace(e)) => return Err(self.no_room(None, e)),
                outcome => {
                    let (journal, recovery) = outcome?;
                    return self.reserve(&journal, &recovery).map(|()| (journal, recovery));
                }
            }
        }
    }

    /// A journal that cannot begin would only show when the first writer has waited for a minute.
    /// One that holds something must be opened all the same, so that it gets to the bucket.
    fn reserve(&self, journal: &Journal, recovery: &Recovery) -> Result<(), StackError> {
        match journal.reserve() {
            Err(JournalError::NoSpace(e)) if recovery.records.is_empty() => {
                Err(self.no_room(Some(journal.next_file_bytes()), e))
            }
            Err(JournalError::NoSpace(e)) => {
                log::warn!("nothing can be written before the journal has room: {e}");
                Ok(())
            }
            outcome => Ok(outcome?),
        }
    }

    fn no_room(&self, needed: Option<u64>, source: std::io::Error) -> StackError {
        let dir = self.plan.journal_dir();
        let free = space_of(&dir).or_else(|_| space_of(&self.plan.state_base)).ok();
        let free = free.map(|space| human(space.free_bytes));
        StackError::NoRoom { dir, needed: needed.map(human), free, source }
    }
}
