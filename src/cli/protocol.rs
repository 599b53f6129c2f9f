//! What is said over the control socket: one JSON document per line, one request per
//! connection, then messages until the last one.

use serde::{Deserialize, Serialize};

use crate::fs::diff::Difference;
use crate::fs::restore::{RestoreOrder, Restored};
use crate::fuse::Counted;
use crate::stack::{
    Accept, Change, DuAsk, DuReport, Numbers, PinPath, PinsNow, Places, Progress, Setting,
    Settings, SnapshotAsk, SnapshotInfo, SnapshotList, SnapshotRefused, Status,
};

use super::exit::Failure;

/// What a command asks of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Ask {
    /// Answered with [`Say::Status`].
    Status,
    /// Answered with [`Say::Sample`].
    Sample,
    /// Answered with [`Say::Places`].
    Places {
        /// The inode.
        ino: u64,
    },
    /// Adds up what a tree takes; answered with [`Say::Measuring`] until [`Say::Du`] or
    /// [`Say::Failed`]. It ends when the client goes away.
    Du {
        /// Which.
        ask: DuAsk,
    },
    /// Pins paths, or unpins them; answered with [`Say::Pinning`] until [`Say::Pinned`] or
    /// [`Say::Failed`].
    Pin {
        /// From the root of the volume on.
        paths: Vec<PinPath>,
        /// Take them away.
        unpin: bool,
    },
    /// Changes these, all or, if one of them is refused, those before it; answered with
    /// [`Say::Settings`].
    Set {
        /// In this order.
        settings: Vec<Setting>,
    },
    /// Changes what the volume remembers; answered with [`Say::Status`].
    Configure {
        /// What of it.
        change: Change,
    },
    /// Answered with [`Say::Progress`] until [`Say::Done`] or [`Say::Failed`].
    Sync {
        /// Give up after this long without any progress.
        stall_secs: u64,
    },
    /// Looks at the configuration of the volume at once; answered with [`Say::Done`] when what was
    /// under way before is uploaded, or with [`Say::Failed`].
    Follow {
        /// The volume that is meant.
        volume_id: String,
    },
    /// Restores something of a snapshot; answered with [`Say::Restoring`] until [`Say::Restored`] or
    /// [`Say::Failed`]. It ends when the client goes away.
    SnapshotRestore {
        /// What.
        order: RestoreOrder,
    },
    /// Compares two snapshots, or one and `now`; answered with [`Say::Differences`] until
    /// [`Say::Done`] or [`Say::Failed`].
    SnapshotDiff {
        /// Their names.
        names: [String; 2],
    },
    /// Answered with [`Say::Snapshots`].
    SnapshotList,
    /// Answered with [`Say::Snapshot`] or [`Say::SnapshotRefused`].
    SnapshotCreate(SnapshotAsk),
    /// Deletes these, all or none. Answered with [`Say::Done`] or [`Say::SnapshotRefused`].
    SnapshotDelete {
        /// Their names.
        names: Vec<String>,
    },
    /// A follower becomes the writer; answered with [`Say::Done`] or [`Say::Failed`].
    Promote {
        /// Take the volume from the mount that holds it.
        takeover: bool,
        /// What may be older, or other, than what this machine has seen.
        accept: Accept,
    },
    /// As sync, then the writer becomes a follower.
    Demote {
        /// Give up after this long without any progress.
        stall_secs: u64,
    },
    /// As sync, then unmounts and ends the daemon.
    Umount {
        /// Give up after this long without any progress.
        stall_secs: u64,
        /// Detach even if files are open.
        lazy: bool,
        /// Do not upload what is pending; the next mount on this machine will.
        force_local: bool,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Say {
    /// The state of the mount.
    Status(Box<Status>),
    /// Everything that is counted.
    Sample(Box<Sample>),
    /// Where the bytes of a file are.
    Places(Box<Places>),
    /// What can be changed, as it is now.
    Settings(Settings),
    /// All snapshots.
    Snapshots(Box<SnapshotList>),
    /// The snapshot that was made.
    Snapshot(Box<SnapshotInfo>),
    /// Why a snapshot was not made, or not deleted.
    SnapshotRefused(SnapshotRefused),
    /// How far the bucket is behind; a few times a second.
    Progress(Progress),
    /// How far a restore is; a few times a second.
    Restoring {
        /// Files and directories that were made again.
        files: u64,
        /// Those that were as they are to be.
        unchanged: u64,
    },
    /// The last message: what was restored.
    Restored(Box<Restored>),
    /// How far adding up is; a few times a second.
    Measuring {
        /// Names that were met.
        met: u64,
        /// Of so many; 0: nobody knows.
        of: u64,
    },
    /// The last message: what a tree takes.
    Du(Box<DuReport>),
    /// How far pins are; a few times a second.
    Pinning(Box<PinsNow>),
    /// The last message: all that can be done at once is done.
    Pinned(Box<PinsNow>),
    /// Some of what differs.
    Differences(Vec<Difference>),
    /// The last message: it is done.
    Done {
        /// What stays in the local journal only.
        pending_bytes: u64,
    },
    /// The last message: it is not done, and the mount is as before.
    Failed(Failure),
}

/// Everything that a mount counts, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The volume's.
    pub numbers: Numbers,
    /// What the kernel asked for.
    pub fuse: Counted,
}

/// Bytes of the longest request line the daemon reads: names of all snapshots there can be.
pub const LINE_BYTES_MAX: u64 = 2 << 20;

/// One message as it is sent.
pub fn line(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(message).expect("plain data has a JSON form");
    bytes.push(b'\n');
    bytes
}
