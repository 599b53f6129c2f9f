//! Who holds the volume read-write: one small sealed object, replaced conditionally.
//!
//! SlateDB's writer epoch is what keeps two writers apart; the lease is what lets a second
//! mount refuse, with a name, before it would fence the first. An object rather than a row,
//! because reading a row freshly takes opening the database.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::departure::{Departure, read_line, start_of};
use crate::base::{hex, unix_secs};
use crate::stack::{Attended, StackError};
use crate::store::names::LEASE_NAME;
use crate::store::{ErrorClass, ProbeError, Sealed, class};

/// How often the lease is asked for when others come in between.
const TAKES_MAX: u32 = 3;
/// The entity tag of nothing.
const NO_E_TAG: &str = "\"00000000000000000000000000000000\"";
/// How often a heartbeat meets another version of its own lease before it gives up.
const UPDATES_MAX: u32 = 4;
/// How often the holder shows that it lives: 30 requests an hour.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(120);

/// That the log of earlier epochs was left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogLeft {
    /// In this epoch.
    pub(crate) epoch: u32,
    /// Nobody who begins to read needs objects of the log before this number; those from it on are
    /// sealed in that epoch or a later one.
    pub(crate) from: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// Random, one for each mount.
    mount: String,
    host: String,
    /// Which boot of which machine: a process id means something only there.
    boot: String,
    pid: u32,
    /// Start time of the process in clock ticks since boot: pids are reused.
    pid_start: u64,
    since_secs: u64,
    heartbeat_secs: u64,
    released: bool,
    /// How often the lease has been taken, this time included.
    #[serde(default)]
    term: u64,
    /// The namespace in which `pid` means something; 0: not known.
    #[serde(default)]
    pid_space: u64,
    /// Nothing that the holder writes can arrive sealed in an epoch before this one; 0 until its
    /// first heartbeat, when it began in the epoch that this object is sealed in.
    #[serde(default)]
    epoch: u32,
    /// See [`LogLeft`], of the holder's last rekey.
    #[serde(default)]
    log_epoch: u32,
    #[serde(default)]
    log_from: u64,
}

/// How a mount asks for the lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseAsk {
    /// Names the mount.
    pub(crate) mount: [u8; 16],
    /// The mount that this state directory, whose journal is locked, served last; in hex.
    pub(crate) before: String,
    /// How often the lease has been taken for certain.
    pub(crate) least: u64,
    /// Take it from whoever holds it.
    pub(crate) takeover: bool,
    /// Whether the store keeps conditions is to be found out: nothing here says so.
    pub(crate) probes: bool,
}

/// The lease of this mount.
pub(crate) struct Lease {
    store: Arc<dyn ObjectStore>,
    row: Row,
    version: UpdateVersion,
    was_free: bool,
    was_held: bool,
    renewed: Renewed,
}

/// When a lease was last known to be held; whoever asks need not wait for a heartbeat under way.
#[derive(Clone, Debug)]
pub(crate) struct Renewed(Arc<Mutex<Instant>>);

impl Renewed {
    fn now() -> Renewed {
        Renewed(Arc::new(Mutex::new(Instant::now())))
    }

    /// How long ago that was.
    pub(crate) fn age(&self) -> Duration {
        self.0.lock().elapsed()
    }
}

/// How a heartbeat ended.
pub(crate) enum Beat {
    /// Still ours.
    Held,
    /// Somebody else's now; their name.
    Lost(String),
    /// The store did not say.
    Unknown(String),
}

/// Names the process ids that this process sees: those of a container are its own.
fn pid_space() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino())
}

fn machine_boot() -> String {
    let machine = read_line("/etc/machine-id");
    format!("{machine}/{}", read_line("/proc/sys/kernel/random/boot_id"))
}

impl Row {
    fn new(mount: &[u8; 16]) -> Row {
        let pid = std::process::id();
        Row {
            mount: hex(mount),
            host: read_line("/proc/sys/kernel/hostname"),
            boot: machine_boot(),
            pid,
            pid_start: start_of(pid),
            since_secs: unix_secs(),
            heartbeat_secs: unix_secs(),
            released: false,
            term: 1,
            pid_space: pid_space(),
            epoch: 0,
            log_epoch: 0,
            log_from: 0,
        }
    }

    /// Whether the holder certainly does not run any more: released, or a process of this very
    /// boot of this machine, and in this container, that is gone.
    fn is_over(&self) -> bool {
        self.released || self.is_local() && start_of(self.pid) != self.pid_start
    }

    /// Whether it is the lease of the mount that this state directory served last, on this boot: its
    /// journal is not locked any more, so it is over.
    fn is_of(&self, mount: &str) -> bool {
        self.boot == machine_boot() && self.boot.len() > 1 && self.mount == mount
    }

    /// Whether the holder is, or was, a process of this boot of this machine.
    fn is_local(&self) -> bool {
        let space = pid_space();
        self.boot == machine_boot() && self.boot.len() > 1 && space > 0 && self.pid_space == space
    }

    fn holder(&self) -> String {
        let ago = |secs: u64| unix_secs().saturating_sub(secs);
        format!(
            "{} (process {}), since {} s ago, last heard of {} s ago",
            self.host,
            self.pid,
            ago(self.since_secs),
            ago(self.heartbeat_secs)
        )
    }
}

fn path() -> Path {
    Path::from(LEASE_NAME)
}

async fn read(
    store: &Arc<dyn ObjectStore>,
) -> Result<Option<(Row, UpdateVersion)>, object_store::Error> {
    let got = match store.get(&path()).await {
        Ok(got) => got,
        Err(e) if class(&e) == ErrorClass::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let version =
        UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
    let bytes = got.bytes().await?;
    let row = serde_json::from_slice(&bytes)
        .map_err(|e| object_store::Error::Generic { store: "lease", source: Box::new(e) })?;
    Ok(Some((row, version)))
}

async fn write(
    store: &Arc<dyn ObjectStore>,
    row: &Row,
    mode: PutMode,
) -> Result<UpdateVersion, object_store::Error> {
    let bytes = serde_json::to_vec(row).expect("a struct of strings and numbers");
    let options = PutOptions { mode, ..PutOptions::default() };
    let put = store.put_opts(&path(), bytes.into(), options).await?;
    Ok(UpdateVersion { e_tag: put.e_tag, version: put.version })
}

/// Who holds the volume read-write now, by name; `None` if it is certain that nobody does.
/// Changes nothing.
///
/// # Errors
/// [`StackError::Damaged`], [`StackError::Store`].
pub(crate) async fn held_by(store: &Arc<dyn ObjectStore>) -> Result<Option<String>, StackError> {
    let found = read(store).await;
    let found = found.map_err(|e| StackError::store("reading who holds the volume", e))?;
    Ok(found.filter(|(row, _)| !row.is_over()).map(|(row, _)| row.holder()))
}

/// Who holds the volume, and what it writes in.
pub(crate) struct Holding {
    /// For people.
    pub(crate) holder: String,
    /// Nothing sealed in an epoch before this one comes from it any more.
    pub(crate) epoch: u32,
    /// What it has left behind of the log.
    pub(crate) left: LogLeft,
}

/// As [`held_by`], with the epoch that the holder writes in; without a holder the record of the last
/// one is sealed again if it is sealed in an epoch before `least`.
///
/// # Errors
/// As [`held_by`].
pub(crate) async fn holding(sealed: &Sealed, least: u32) -> Result<Option<Holding>, StackError> {
    let fail = |e| StackError::store("reading who holds the volume", e);
    let store: Arc<dyn ObjectStore> = Arc::new(sealed.clone());
    for _ in 0..UPDATES_MAX {
        let Some((row, version)) = read(&store).await.map_err(fail)? else { return Ok(None) };
        let Some((sealed_in, meta)) = sealed.epoch_of(&path()).await.map_err(fail)? else {
            continue;
        };
        if meta.e_tag != version.e_tag {
            continue; // a heartbeat came in between
        }
        if !row.is_over() {
            let epoch = if row.epoch == 0 { sealed_in } else { row.epoch };
            let left = LogLeft { epoch: row.log_epoch, from: row.log_from };
            return Ok(Some(Holding { holder: row.holder(), epoch, left }));
        }
        // Never of a holder that lives: what it is sealed in says what that one has begun in.
        if sealed_in >= least {
            return Ok(None);
        }
        match write(&store, &row, PutMode::Update(version)).await {
            Err(e) if class(&e) != ErrorClass::Precondition => {
                return Err(StackError::store("sealing who held the volume again", e));
            }
            _ => {} // look again
        }
    }
    let message = "it is replaced again and again".into();
    Err(StackError::Store { what: "reading who holds the volume".into(), message })
}

/// The first object that a mount writes was not taken, in the encryption that the volume asks for.
fn refused(e: object_store::Error) -> StackError {
    match class(&e) {
        ErrorClass::Auth
        | ErrorClass::Unsupported
        | ErrorClass::SseMismatch
        | ErrorClass::Other => ProbeError::Failed { what: "replace an object", source: e }.into(),
        _ => StackError::store("recording who holds the volume", e),
    }
}

/// How one try of taking the lease ended.
enum Taken {
    Ours(Lease),
    /// Somebody has it, and how that is said.
    Held(StackError),
    /// It was another one by then.
    Raced,
}

/// Whether the store keeps the promises that one writer relies on (`store/probe`), tried on the
/// lease that is about to be taken: creating it must be refused, and so must replacing a version that
/// it is not. A store that takes either has got what it had.
async fn probe(store: &Arc<dyn ObjectStore>, held: &Row) -> Result<(), StackError> {
    let other = UpdateVersion { e_tag: Some(NO_E_TAG.into()), version: None };
    let creates = write(store, held, PutMode::Create);
    let updates = write(store, held, PutMode::Update(other));
    let (created, updated) = futures::join!(creates, updates);
    let refusal = |e: &object_store::Error| class(e).is_unmet_condition();
    let failed = |what| move |source| StackError::from(ProbeError::Failed { what, source });
    match created {
        Err(e) if refusal(&e) => {}
        Ok(_) => return Err(ProbeError::CreateOverwrites.into()),
        Err(e) => return Err(failed("create an object twice")(e)),
    }
    match updated {
        Err(e) if refusal(&e) => Ok(()),
        Ok(_) => Err(ProbeError::UpdateIgnoresVersion.into()),
        Err(e) => Err(failed("update a stale version of an object")(e)),
    }
}

impl Lease {
    /// Takes the lease, if it is free, or with `takeover`. A holder on this machine that is about
    /// to end is waited for. Dropping the call half-way may leave the lease taken.
    ///
    /// # Errors
    /// [`StackError::InUse`] naming the holder, or [`StackError::Ending`]; [`StackError::Damaged`],
    /// unless `takeover`; [`StackError::Store`].
    pub(crate) async fn acquire(
        store: Arc<dyn ObjectStore>,
        ask: LeaseAsk,
        attended: &Attended,
    ) -> Result<Lease, StackError> {
        let mut refusal = None;
        for _ in 0..TAKES_MAX {
            match Lease::take(&store, &ask, attended).await? {
                Taken::Ours(mut lease) => {
                    // Whoever had it in between may have written.
                    lease.was_held |= refusal.is_some();
                    return Ok(lease);
                }
                // What was read may be from before this start began to wait for anything. Once more.
                Taken::Held(e) if refusal.is_some() => return Err(e),
                Taken::Held(e) => refusal = Some(e),
                Taken::Raced => {
                    let holder = "mounts that come in between".into();
                    refusal = Some(StackError::InUse { holder });
                }
            }
        }
        Err(refusal.expect("each round that ends here set it"))
    }

    /// One try of [`Lease::acquire`].
    async fn take(
        store: &Arc<dyn ObjectStore>,
        ask: &LeaseAsk,
        attended: &Attended,
    ) -> Result<Taken, StackError> {
        let takeover = ask.takeover;
        let fail = |e| StackError::store("reading who holds the volume", e);
        let mut row = Row::new(&ask.mount);
        row.term = ask.least + 1;
        let (mut was_free, mut was_held) = (true, false);
        let mut departure = Departure::new(attended);
        let mut held = match read(store).await {
            Err(e) if takeover && class(&e) == ErrorClass::Corrupt => {
                log::warn!("replacing the record of who holds the volume, which is damaged");
                return match write(store, &row, PutMode::Overwrite).await {
                    Ok(version) => {
                        let (store, renewed) = (store.clone(), Renewed::now());
                        let (was_free, was_held) = (false, true);
                        Ok(Taken::Ours(Lease { store, row, version, was_free, was_held, renewed }))
                    }
                    Err(e) => Err(StackError::store("recording who holds the volume", e)),
                };
            }
            other => other.map_err(fail)?,
        };
        let term = held.as_ref().map_or(0, |(row, _)| row.term);
        if term < ask.least && !takeover {
            return Err(StackError::LeaseRollback { is_there: held.is_some() });
        }
        row.term = row.term.max(term + 1);
        if let Some((row, _)) = &held
            && !takeover
            && row.is_local()
            && !row.is_over()
        {
            was_held = true;
            while !row.is_over() && departure.wait(row.pid).await {}
            held = read(store).await.map_err(fail)?;
        }
        let is_first = held.is_none();
        let mode = match held {
            None => PutMode::Create,
            Some((held, version)) if held.is_over() || held.is_of(&ask.before) || takeover => {
                was_free = held.released;
                if takeover && !held.is_over() {
                    log::warn!("taking the volume over from {}", held.holder());
                    was_held = true;
                }
                if ask.probes {
                    probe(store, &held).await?;
                }
                PutMode::Update(version)
            }
            Some((held, _)) => {
                let in_use = StackError::InUse { holder: held.holder() };
                return Ok(Taken::Held(match held.is_local() {
                    true => departure.refused(held.pid, in_use),
                    false => in_use,
                }));
            }
        };
        match write(store, &row, mode).await {
            Ok(version) => {
                let (its, renewed) = (store.clone(), Renewed::now());
                let mut lease = Lease { store: its, row, version, was_free, was_held, renewed };
                // There was nothing to try it on before.
                if is_first
                    && ask.probes
                    && let Err(e) = probe(store, &lease.row).await
                {
                    lease.release().await;
                    return Err(e);
                }
                Ok(Taken::Ours(lease))
            }
            Err(e) if class(&e).is_unmet_condition() => Ok(Taken::Raced),
            Err(e) => Err(refused(e)),
        }
    }

    /// How often the lease has been taken.
    pub(crate) fn term(&self) -> u64 {
        self.row.term
    }

    /// Whether nobody held it before: not a mount of this machine that died, whose journal may
    /// hold what the bucket does not have.
    pub(crate) fn was_free(&self) -> bool {
        self.was_free
    }

    /// When it was last known to be held.
    pub(crate) fn renewed(&self) -> Renewed {
        self.renewed.clone()
    }

    /// Whether somebody held it when it was first asked for.
    pub(crate) fn was_held(&self) -> bool {
        self.was_held
    }

    /// Nothing of this mount arrives sealed in an epoch before this one, and this it has left behind of
    /// the log; told with the next heartbeat.
    pub(crate) fn writes_in(&mut self, epoch: u32, left: LogLeft) {
        (self.row.epoch, self.row.log_epoch, self.row.log_from) = (epoch, left.epoch, left.from);
    }

    /// Shows that this mount lives.
    pub(crate) async fn beat(&mut self) -> Beat {
        self.row.heartbeat_secs = unix_secs();
        self.update().await
    }

    async fn update(&mut self) -> Beat {
        for _ in 0..UPDATES_MAX {
            let mode = PutMode::Update(self.version.clone());
            match write(&self.store, &self.row, mode).await {
                Ok(version) => {
                    self.version = version;
                    *self.renewed.0.lock() = Instant::now();
                    return Beat::Held;
                }
                Err(e) if class(&e) == ErrorClass::Precondition => {}
                Err(e) => return Beat::Unknown(e.to_string()),
            }
            match read(&self.store).await {
                // Our own row in another version of the object: the server encrypted it again.
                Ok(Some((row, version))) if row.mount == self.row.mount => self.version = version,
                Ok(Some((row, _))) => return Beat::Lost(row.holder()),
                Ok(None) => return Beat::Unknown("the lease object is gone".into()),
                Err(e) => return Beat::Unknown(e.to_string()),
            }
        }
        Beat::Unknown("the lease object is replaced again and again".into())
    }

    /// Gives the lease back.
    pub(crate) async fn release(&mut self) -> Beat {
        self.row.released = true;
        self.beat().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn a_second_holder_is_refused_by_name_until_the_first_releases() {
        // Guards against two mounts of one volume fencing each other back and forth.
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut first = Lease::acquire(store.clone(), LeaseAsk::default(), &Attended::default())
            .await
            .expect("free");
        let refused = Lease::acquire(store.clone(), LeaseAsk::default(), &Attended::default())
            .await
            .err()
            .expect("held");
        assert!(matches!(&refused, StackError::InUse { holder } if holder.contains("process")));
        assert!(matches!(first.beat().await, Beat::Held));
        assert!(matches!(first.release().await, Beat::Held));
        let ask = LeaseAsk { mount: [2; 16], ..LeaseAsk::default() };
        let second =
            Lease::acquire(store.clone(), ask, &Attended::default()).await.expect("released");
        assert!(matches!(first.beat().await, Beat::Lost(_)));
        drop(second);
    }

    #[tokio::test]
    async fn a_lease_whose_object_was_replaced_by_itself_is_still_given_back() {
        // Guards against a migration of the encryption, which gives the object another ETag,
        // leaving the volume "held" after an orderly unmount.
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut lease = Lease::acquire(store.clone(), LeaseAsk::default(), &Attended::default())
            .await
            .expect("free");
        let bytes = store.get(&path()).await.expect("there").bytes().await.expect("whole");
        store.put(&path(), bytes.into()).await.expect("replaced");
        assert!(matches!(lease.release().await, Beat::Held));
        let (row, _) = read(&store).await.expect("readable").expect("there");
        assert!(row.released);
    }

    #[tokio::test]
    async fn a_holder_that_died_on_this_machine_does_not_block_the_next_mount() {
        // Guards against a kill -9 needing --takeover on the same machine.
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let dead = Row { pid_start: 1, ..Row::new(&[1; 16]) };
        write(&store, &dead, PutMode::Create).await.expect("written");
        Lease::acquire(store, LeaseAsk::default(), &Attended::default())
            .await
            .expect("the holder is gone");
    }

    #[tokio::test]
    async fn a_process_of_another_container_is_not_taken_for_dead() {
        // Guards against two containers of one host: the process id of the holder means nothing in
        // the other one. The state directory of the holder tells, whose journal is not locked.
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mount = [3; 16];
        let elsewhere = Row { pid_start: 1, pid_space: pid_space() + 1, ..Row::new(&mount) };
        write(&store, &elsewhere, PutMode::Create).await.expect("written");
        let ask = LeaseAsk::default();
        let refused = Lease::acquire(store.clone(), ask, &Attended::default()).await.err();
        assert!(matches!(refused, Some(StackError::InUse { .. })), "{refused:?}");
        let ask = LeaseAsk { before: hex(&mount), ..LeaseAsk::default() };
        Lease::acquire(store, ask, &Attended::default()).await.expect("its own");
    }

    #[tokio::test]
    async fn an_old_released_lease_that_is_put_back_frees_nothing() {
        // Guards against an old object in the place of one that is held: a commit says how often the
        // lease had been taken by then. So does its absence.
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let ask = LeaseAsk::default();
        let mut first =
            Lease::acquire(store.clone(), ask, &Attended::default()).await.expect("free");
        assert!(matches!(first.release().await, Beat::Held));
        let old = store.get(&path()).await.expect("there").bytes().await.expect("whole");
        let ask = LeaseAsk { least: first.term(), ..LeaseAsk::default() };
        let second = Lease::acquire(store.clone(), ask, &Attended::default()).await.expect("free");
        assert_eq!(second.term(), 2);
        for put_back in [true, false] {
            match put_back {
                true => drop(store.put(&path(), old.clone().into()).await.expect("put back")),
                false => store.delete(&path()).await.expect("deleted"),
            }
            let ask = LeaseAsk { least: second.term(), ..LeaseAsk::default() };
            let refused =
                Lease::acquire(store.clone(), ask.clone(), &Attended::default()).await.err();
            let Some(StackError::LeaseRollback { is_there }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(is_there, put_back);
            let ask = LeaseAsk { takeover: true, ..ask };
            let taken = Lease::acquire(store.clone(), ask, &Attended::default()).await;
            assert_eq!(taken.expect("taken over").term(), 3);
        }
    }
}
