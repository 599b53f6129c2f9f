//! Why a volume could not be created or mounted, by what the user does next.

use std::path::PathBuf;

use crate::base::one_line;
use crate::commit::{CommitError, ViewError};
use crate::journal::JournalError;
use crate::seal::KeyringError;
use crate::store::kv::KvError;
use crate::store::{ErrorClass, LocationError, ProbeError, class, told};

/// What kind of trouble it is; `cli` gives each its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackErrorKind {
    /// The passphrase or key file does not open this volume.
    Secret,
    /// The store does not answer, or refuses these credentials.
    Unreachable,
    /// The store answers but cannot hold a volume, or holds something already, or no volume.
    Unsuitable,
    /// Another mount has the volume.
    InUse,
    /// Not everything is in the bucket.
    Pending,
    /// It is in use, or just being changed.
    Busy,
    /// Something in the bucket or the local state is damaged, tampered with or rolled back.
    Corrupt,
    /// The volume is of a format, or uses features, that this sealfs does not know.
    Format,
    /// It was asked to stop.
    Stopped,
    /// Anything else: local directories, memory, bugs.
    Other,
}

/// An error of `init` or `mount`. `Display` is one sentence; [`StackError::hint`] says what to
/// do.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The STORE argument.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// The store cannot be reached or refuses us.
    #[error("{what}: {message}")]
    Store {
        /// What was tried.
        what: String,
        /// What the store said.
        message: String,
    },
    /// What the store answered is not what was sealed.
    #[error("{what}: {message}")]
    Damaged {
        /// What was tried.
        what: String,
        /// Which object, and why.
        message: String,
    },
    /// The store does not do what a volume needs.
    #[error(transparent)]
    Unsuitable(#[from] ProbeError),
    /// There is no volume.
    #[error("there is no volume at {0}")]
    NoVolume(String),
    /// `init` on a prefix that holds something.
    #[error("{store} is not empty: it holds {example}")]
    NotEmpty {
        /// The STORE.
        store: String,
        /// One of the objects.
        example: String,
    },
    /// `init` where a volume is already.
    #[error("there is a volume at {0} already")]
    VolumeThere(String),
    /// `init` above or below another volume: what is listed or deleted of one would be the other's.
    #[error("{store} {lies} the volume {other}")]
    Nested {
        /// The STORE.
        store: String,
        /// How they lie to one another: "lies within" or "holds".
        lies: &'static str,
        /// The other volume's STORE.
        other: String,
    },
    /// The keyring or the secret.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// Someone else has the volume mounted read-write.
    #[error("the volume is mounted read-write by {holder}")]
    InUse {
        /// Host, process, since when, last heard.
        holder: String,
    },
    /// The process that had the volume mounted here unmounts it, and is not done.
    #[error("process {pid} is still unmounting the volume, after {waited_secs} s")]
    Ending {
        /// The process.
        pid: u32,
        /// How long it was waited for.
        waited_secs: u64,
    },
    /// It was asked to stop.
    #[error("stopped before the end")]
    Stopped,
    /// The bucket is older than what this machine has seen.
    #[error(
        "the bucket is older than what this machine has seen: it is at commit {found}, \
         this machine has seen {seen}"
    )]
    Rollback {
        /// The bucket's commit number.
        found: u64,
        /// The highest that this machine remembers.
        seen: u64,
    },
    /// The bucket does not contain what this machine has seen of it.
    #[error(
        "the bucket holds another history than what this machine has seen: its commit {commit} is \
         {found}, this machine has seen {seen}"
    )]
    OtherHistory {
        /// The number of the commit that differs.
        commit: u64,
        /// The chain value that this machine remembers, shortened.
        seen: String,
        /// The bucket's.
        found: String,
    },
    /// The bucket is older than what the caller knows of it.
    #[error("the bucket is at commit {found}, and --at-least asks for {at_least}")]
    TooOld {
        /// The bucket's commit number.
        found: u64,
        /// What was asked for.
        at_least: u64,
    },
    /// A repair could not be made.
    #[error("repairing: {0}")]
    Repair(String),
    /// The keyring is older than what this machine has seen.
    #[error(
        "the keyring is older than what this machine has seen: it is at {what} {found}, this \
         machine has seen {seen}"
    )]
    KeyringRollback {
        /// What is counted: "revision" or "key epoch".
        what: &'static str,
        /// The keyring's.
        found: u64,
        /// The highest that this machine remembers.
        seen: u64,
    },
    /// The keyring does not continue the one that this machine has seen.
    #[error(
        "the keyring does not continue the one that this machine has seen (local state {}): it \
         has not the key of epoch {epoch} that was in use here", state.display()
    )]
    KeyringForeign {
        /// The epoch that this machine remembers.
        epoch: u32,
        /// Where it remembers that.
        state: PathBuf,
    },
    /// The local journal lacks what it had.
    #[error(
        "the local journal {}: at least {records} of its last changes were on stable storage here \
         and are neither there nor in the bucket",
        if *.is_there { "is not whole" } else { "is gone" }
    )]
    JournalLost {
        /// False: another one is in its place, or none.
        is_there: bool,
        /// Records that are missing for certain.
        records: u64,
    },
    /// Another volume than the one that is meant is at the store.
    #[error(
        "{store} holds volume {found}, {}", match told {
            true => format!("and --volume-id asks for {wanted}"),
            false => format!("and held {wanted} when this machine last opened it"),
        }
    )]
    OtherVolume {
        /// The STORE.
        store: String,
        /// The id of the volume that is there.
        found: String,
        /// The id of the one that is meant.
        wanted: String,
        /// Meant by the caller, who said so; else by what this machine remembers.
        told: bool,
    },
    /// The lease is older than the last commit.
    #[error(
        "the record of who holds the volume {}, so that somebody may hold it",
        if *.is_there { "is older than the last commit" } else { "is gone" }
    )]
    LeaseRollback {
        /// False: there is none.
        is_there: bool,
    },
    /// The configuration of the volume is older than what this machine has seen.
    #[error(
        "the configuration of the volume is older than what has been seen: revision \
         {found} instead of {seen}"
    )]
    ConfigRollback {
        /// The revision in the bucket, 0 if there is none.
        found: u64,
        /// The highest that this machine remembers, or the last commit names.
        seen: u64,
    },
    /// Server-side encryption cannot be done as asked.
    #[error("{message}")]
    Encryption {
        /// What kind of trouble it is.
        kind: StackErrorKind,
        /// A sentence.
        message: String,
        /// What to do next.
        hint: String,
    },
    /// A mount that runs does not change its role.
    #[error("{message}")]
    Role {
        /// What kind of trouble it is.
        kind: StackErrorKind,
        /// A sentence.
        message: String,
        /// What to do next.
        hint: String,
    },
    /// What keeps the seed of a slot (a key service, the owner of an age key) does not give it.
    #[error("{message}")]
    Keeper {
        /// What kind of trouble it is.
        kind: StackErrorKind,
        /// A sentence.
        message: String,
        /// What to do next.
        hint: String,
    },
    /// Metadata.
    #[error("metadata: {0}")]
    Metadata(#[from] KvError),
    /// Rows of the volume.
    #[error(transparent)]
    View(ViewError),
    /// The local journal.
    #[error("local journal: {0}")]
    Journal(#[from] JournalError),
    /// Replaying the local journal.
    #[error("replaying the local journal: {0}")]
    Replay(#[from] CommitError),
    /// A local file or directory.
    #[error("{what} {}: {source}", path.display())]
    Local {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The disk of the journal has no room for the journal to begin.
    #[error(
        "the local journal in {} cannot begin: it needs {} of disk{}: {source}",
        dir.display(),
        needed.as_deref().unwrap_or("some KiB"),
        free.as_ref().map(|free| format!(", and there are {free}")).unwrap_or_default(),
    )]
    NoRoom {
        /// Its directory.
        dir: PathBuf,
        /// What it needs, in words.
        needed: Option<String>,
        /// What is free, in words.
        free: Option<String>,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The volume has no such snapshot.
    #[error("there is no snapshot {name:?}")]
    NoSnapshot {
        /// What was asked for.
        name: String,
        /// Those that there are, the oldest first.
        there: Vec<String>,
    },
    /// What this machine remembers of the volume does not authenticate.
    #[error("local state {} is damaged or belongs to another volume", .0.display())]
    State(PathBuf),
}

impl From<ViewError> for StackError {
    /// A metadata store that is away, or taken over, is no damage to a row.
    fn from(e: ViewError) -> StackError {
        match e {
            ViewError::Store(e) => StackError::Metadata(e),
            ViewError::Row(_) => StackError::View(e),
        }
    }
}

impl StackError {
    /// What kind of trouble it is.
    pub fn kind(&self) -> StackErrorKind {
        match self {
            StackError::Keyring(
                KeyringError::NotAKeyring
                | KeyringError::Damaged(_)
                | KeyringError::Altered
                | KeyringError::Kept { .. }
                | KeyringError::KdfOutOfBounds { .. }
                | KeyringError::KdfTotal { .. },
            ) => StackErrorKind::Corrupt,
            StackError::Keyring(
                KeyringError::Version(_)
                | KeyringError::Suite(_)
                | KeyringError::Features(_)
                | KeyringError::ReadOnlyFeatures(_)
                | KeyringError::Kdf { .. },
            ) => StackErrorKind::Format,
            StackError::Keyring(
                KeyringError::NoSuchSlot(_)
                | KeyringError::NoSuchLabel(_)
                | KeyringError::LastSlot(_)
                | KeyringError::LastOwnSlot(_)
                | KeyringError::SlotTaken(_)
                | KeyringError::Label
                | KeyringError::Full
                | KeyringError::TooManyEpochs
                | KeyringError::NoSuchEpoch(_)
                | KeyringError::KdfMemory { .. }
                | KeyringError::OtherEpoch { .. },
            ) => StackErrorKind::Other,
            StackError::Keyring(_) => StackErrorKind::Secret,
            StackError::Store { .. } => StackErrorKind::Unreachable,
            StackError::Damaged { .. } => StackErrorKind::Corrupt,
            StackError::Metadata(KvError::Unavailable(_)) => StackErrorKind::Unreachable,
            StackError::Location(_)
            | StackError::Unsuitable(_)
            | StackError::NoVolume(_)
            | StackError::NotEmpty { .. }
            | StackError::VolumeThere(_)
            | StackError::Nested { .. } => StackErrorKind::Unsuitable,
            StackError::Stopped => StackErrorKind::Stopped,
            StackError::InUse { .. }
            | StackError::Ending { .. }
            | StackError::Metadata(KvError::Fenced)
            | StackError::Journal(JournalError::InUse(_)) => StackErrorKind::InUse,
            StackError::Encryption { kind, .. }
            | StackError::Keeper { kind, .. }
            | StackError::Role { kind, .. } => *kind,
            StackError::Rollback { .. }
            | StackError::OtherHistory { .. }
            | StackError::TooOld { .. }
            | StackError::ConfigRollback { .. }
            | StackError::LeaseRollback { .. }
            | StackError::OtherVolume { .. }
            | StackError::JournalLost { .. }
            | StackError::KeyringRollback { .. }
            | StackError::KeyringForeign { .. }
            | StackError::State(_)
            | StackError::View(_)
            | StackError::Metadata(KvError::Damaged(_))
            | StackError::Journal(JournalError::Corrupt { .. } | JournalError::Foreign { .. })
            | StackError::Replay(_) => StackErrorKind::Corrupt,
            _ => StackErrorKind::Other,
        }
    }

    /// What to do next, if there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            StackError::Store { .. } => {
                "check the address, the credentials and the network, then try again".into()
            }
            StackError::Damaged { .. } => {
                "put the object back from a copy of the bucket; if it is the lease, and no other \
                 machine has the volume: sealfs mount --takeover"
                    .into()
            }
            StackError::NoVolume(store) => format!("create one: sealfs init {store}"),
            StackError::NotEmpty { .. } => {
                "choose an empty prefix: init never writes over anything".into()
            }
            StackError::VolumeThere(store) => format!(
                "mount it: sealfs mount {store} DIR; or choose an empty prefix: init never writes \
                 over anything"
            ),
            StackError::Nested { .. } => {
                "choose a prefix that is neither above nor below another volume's".into()
            }
            StackError::Keyring(e) => e.hint()?.into(),
            StackError::InUse { .. } => "unmount it there, or, if that machine is gone: \
                 sealfs mount --takeover; to read along: sealfs mount --read-only"
                .into(),
            StackError::Ending { pid, .. } => format!(
                "it uploads what was pending: wait, or leave that to the next mount: \
                 kill {pid}; kill {pid}"
            ),
            StackError::Encryption { hint, .. }
            | StackError::Keeper { hint, .. }
            | StackError::Role { hint, .. } => hint.clone(),
            StackError::KeyringRollback { .. } | StackError::KeyringForeign { .. } => {
                "somebody put back an old keyring, or made one of old keys; if you put it back: \
                 sealfs mount --accept-rollback=keyring, which trusts whoever was removed since"
                    .into()
            }
            StackError::Rollback { .. } => {
                "somebody put back an old copy of the bucket; if it was \
                 you: sealfs mount --accept-rollback=older, which gives up all later commits"
                    .into()
            }
            StackError::OtherHistory { .. } => "somebody exchanged the bucket for another copy of \
                 it; if it was you: sealfs mount --accept-rollback=history, which gives up what \
                 this machine has seen"
                .into(),
            StackError::JournalLost { .. } => {
                "put the state directory back as it was; if that is lost: \
                 sealfs mount --accept-rollback=journal, which gives those changes up"
                    .into()
            }
            StackError::OtherVolume { told: true, .. } => {
                "check STORE and the id, which `sealfs status` and a recovery kit show".into()
            }
            StackError::OtherVolume { found, .. } => format!(
                "somebody put another volume there; if it was you: --volume-id {found} in the same \
                 command, which is remembered by mount, fsck and key"
            ),
            StackError::LeaseRollback { .. } => {
                "somebody put back an old one, or deleted it; if no \
                 other machine has the volume: sealfs mount --takeover"
                    .into()
            }
            StackError::ConfigRollback { .. } => {
                "somebody put back an old configuration; if it was \
                 you: sealfs mount --accept-rollback=config, which writes in the mode that it says"
                    .into()
            }
            StackError::TooOld { .. } => "an old copy of the bucket was put back, or the number \
                is another volume's; look at it without writing: sealfs mount --read-only"
                .into(),
            StackError::Metadata(KvError::Fenced) => {
                "another mount took over just now; look who: sealfs mount --read-only".into()
            }
            StackError::Journal(JournalError::InUse(_)) => {
                "the volume is mounted on this machine already: sealfs status".into()
            }
            StackError::Journal(JournalError::Corrupt { file, .. }) => {
                let dir = file.parent().unwrap_or(file).display();
                format!(
                    "get what still opens as files: sealfs recover {dir} OUT --store STORE; \
                     then move it away and mount again: mv {dir} {dir}.damaged"
                )
            }
            StackError::NoRoom { .. } => "free that much there, or put it on another disk: \
                sealfs mount --state-dir DIR; a journal with a small limit takes less: \
                --journal-size 16M"
                .into(),
            StackError::NoSnapshot { there, .. } => match there.len() {
                0 => "the volume has none; make one: sealfs snapshot create STORE NAME".into(),
                1..=5 => format!("those there are: {}", there.join(", ")),
                _ => {
                    format!("sealfs snapshot list STORE; the newest is {}", there[there.len() - 1])
                }
            },
            StackError::State(path) => {
                format!("if it is beyond repair, move it away: mv {} /tmp/", path.display())
            }
            _ => return None,
        })
    }

    /// A task of ours that asks the store died.
    pub(super) fn store_broke(what: &str, e: tokio::task::JoinError) -> StackError {
        StackError::Store { what: what.into(), message: e.to_string() }
    }

    pub(super) fn store(what: impl Into<String>, e: object_store::Error) -> StackError {
        let (what, message) = (one_line(&what.into()), told(&e));
        match class(&e) {
            ErrorClass::Corrupt => StackError::Damaged { what, message },
            _ => StackError::Store { what, message },
        }
    }
}
