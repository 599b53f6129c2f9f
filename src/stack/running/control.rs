//! What a running mount says about itself and what it can be told: the structures of the
//! control socket, and the trait that `stack` implements and `cli` serves.
//!
//! The field names are an interface: `sealfs status --json` prints them. Fields are added, never
//! renamed. Nothing here holds a key or contents of files, and names only where they were asked for.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::du::{DuAsk, DuProgress, DuReport};
use super::pins::{PinPath, PinRefused, PinsNow};
use super::role::{RoleName, Transition};
use super::snapshots::{SnapshotAsk, SnapshotInfo, SnapshotList, SnapshotRefused};
use super::transition::{DemoteAsk, PromoteAsk};
use crate::base::Spread;
use crate::fs::diff::Difference;
use crate::fs::restore::{Kernel, RestoreError, RestoreOrder, RestoreProgress, Restored};
use crate::fs::{FsError, QuotaError};
use crate::stack::{Change, Places, StackError};
use crate::store::RequestSnapshot;

/// Whether the store can be reached and written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Connection {
    /// The last request to the store succeeded.
    Online,
    /// Nothing has reached the store for a while; changes wait in the journal.
    Offline {
        /// Seconds since 1970 of the first failure in a row.
        since_unix_secs: u64,
        /// What the last attempt came to.
        reason: String,
    },
    /// Another mount has taken the volume over; this one only reads, its journal is kept.
    Fenced,
    /// Mounted to read only.
    ReadOnly,
}

/// How far the bucket is behind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of changes that are only in the local journal.
    pub pending_bytes: u64,
    /// Files with such changes.
    pub pending_files: u64,
    /// Bytes committed to the bucket since the mount started, so that a rate can be shown.
    pub committed_bytes: u64,
    /// The store cannot be reached at the moment.
    pub offline: bool,
    /// Of the pending bytes, those that are on their way or there already; they stay pending
    /// until the commit that they belong to is done.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Bytes of segments and tables that the store has taken since the mount started, those of
    /// requests under way included (so it falls when one fails). While its maximum does not grow,
    /// nothing moves.
    #[serde(default)]
    pub moved_bytes: u64,
}

/// Requests to the store since the mount started, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Requests {
    pub get: u64,
    pub head: u64,
    pub put: u64,
    pub multipart: u64,
    pub list: u64,
    pub delete: u64,
    /// Attempts that failed.
    pub errors: u64,
    /// Attempts that were repeated.
    pub retries: u64,
    /// Object bytes received.
    pub bytes_down: u64,
    /// Object bytes stored: what was sent and refused, or not answered, does not count.
    pub bytes_up: u64,
}

/// Everything `sealfs status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The volume id, 32 hex digits.
    pub volume_id: String,
    /// The store, as it was given to `sealfs mount`.
    pub store: String,
    /// The server that it was given, and the profile of the AWS configuration; empty if neither was.
    #[serde(default)]
    pub server: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Version of the daemon.
    pub version: String,
    /// Seconds since the mount started.
    pub uptime_secs: u64,
    /// Reachable, offline, fenced or read-only.
    #[serde(flatten)]
    pub connection: Connection,
    /// The snapshot that it shows in place of the volume.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Snapshots that are just open below `.snapshots`.
    #[serde(default)]
    pub open_snapshots: usize,
    /// How far the bucket is behind.
    #[serde(flatten)]
    pub progress: Progress,
    /// Commits in the life of the volume, as of the last that this mount knows: what
    /// `--at-least` takes.
    pub commit_sequence: u64,
    /// Age of the oldest change that is not in the bucket; `None` when all is.
    pub oldest_pending_secs: Option<f64>,
    /// Bytes per second that the store takes, over the last ten seconds or so.
    pub upload_bytes_per_sec: u64,
    /// Live bytes that were moved since the mount out of segments that were mostly dead, or tiny.
    pub cleaned_bytes: u64,
    /// Bytes the journal takes on the local disk.
    pub journal_bytes: u64,
    /// Its limit, `--journal-size`.
    pub journal_bytes_max: u64,
    /// Bytes the ciphertext cache takes on the local disk.
    pub cache_bytes: u64,
    /// Its limit, `--cache-size`.
    pub cache_bytes_max: u64,
    /// Share of cacheable reads answered by it, 0 to 1; `None` before the first.
    pub cache_hit_ratio: Option<f64>,
    /// Requests to the store.
    pub requests: Requests,
    /// Server-side encryption asked for: `default`, `AES256`, `aws:kms`, `aws:kms:dsse`,
    /// `customer`, or `none` for a store without it.
    pub sse: String,
    /// What the server last said it applied.
    pub sse_applied: Option<String>,
    /// How new file data are stored: `none` or `zstd:LEVEL`.
    #[serde(default)]
    pub compress: String,
    /// The storage class that segments are put into; empty for a store without classes.
    #[serde(default)]
    pub storage_class: String,
    /// The one that the server has put a segment into, where that is another.
    #[serde(default)]
    pub storage_class_applied: Option<String>,
    /// Bytes in the blocks of files, what is pending among them.
    #[serde(default)]
    pub used_bytes: u64,
    /// Inodes in use.
    #[serde(default)]
    pub used_inodes: u64,
    /// How many bytes there may be; `None` without a quota of them.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// How many inodes there may be.
    #[serde(default)]
    pub quota_inodes: Option<u64>,
    /// What goes beyond is refused with this.
    #[serde(default)]
    pub quota_error: QuotaError,
    /// Bytes of file data that were put into segments since the mount, and what they take there.
    #[serde(default)]
    pub segment_data_bytes: u64,
    /// See `segment_data_bytes`.
    #[serde(default)]
    pub segment_stored_bytes: u64,
    /// Snapshots of the volume; `None` for a mount that only reads.
    #[serde(default)]
    pub snapshots: Option<u64>,
    /// When snapshots are made by themselves: `off`, or such as `hourly=24,daily=30`.
    #[serde(default)]
    pub snapshot_schedule: String,
    /// The last snapshot that the schedule made.
    #[serde(default)]
    pub snapshot_last: Option<String>,
    /// When that was, Unix seconds.
    #[serde(default)]
    pub snapshot_last_unix_secs: Option<u64>,
    /// When it makes the next, Unix seconds; `None` if it makes none.
    #[serde(default)]
    pub snapshot_next_unix_secs: Option<u64>,
    /// Bytes of the bucket that only snapshots need; `None` while that is not known.
    #[serde(default)]
    pub snapshots_kept_bytes: Option<u64>,
    /// What is pinned into the cache of this machine, and how much of that is there.
    #[serde(default)]
    pub pinned: PinsNow,
    /// Resident memory of the daemon in bytes.
    pub resident_bytes: u64,
    /// Things that need a person: corruption found, a journal set aside. Empty when well.
    pub warnings: Vec<String>,
    /// What is worth knowing and needs nobody. Empty as a rule.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Bytes free on the disk of the journal; `None` without a journal, or if it does not say.
    #[serde(default)]
    pub journal_disk_free_bytes: Option<u64>,
    /// Whether it writes the volume or follows it.
    #[serde(default = "unknown_role")]
    pub role: RoleName,
    /// How it came by that.
    #[serde(default)]
    pub last_transition: Option<Transition>,
}

/// Of a daemon that does not say.
fn unknown_role() -> RoleName {
    RoleName::Writer
}

/// What `sealfs stats` and the metrics show beyond [`Status`]. Counters begin with the mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// As `sealfs status` has it.
    pub status: Status,
    /// What was asked of the store and of the disk cache.
    pub requests: RequestSnapshot,
    /// How long requests to the store took, by their kind.
    pub request_times: Vec<(String, Spread)>,
    /// Reads of file contents answered from memory.
    pub memory_hits: u64,
    /// Those that went to the disk cache or the store.
    pub memory_misses: u64,
    /// Objects in the bucket that are known to be damaged.
    pub damaged_objects: u64,
    /// The key epoch that new objects are sealed in.
    pub key_epoch: u32,
    /// Seconds since the lease was last renewed; `None` for a mount that only reads.
    pub lease_age_secs: Option<f64>,
}

/// What of a mount can be changed while it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// Bytes a second that may be sent, 0 for no limit.
    UploadLimit(u64),
    /// Bytes a second that may be received, 0 for no limit.
    DownloadLimit(u64),
    /// Most bytes that the ciphertext cache takes.
    CacheSize(u64),
    /// How far the bucket may be behind, in milliseconds.
    CommitIntervalMs(u64),
    /// What is logged, by the name of the level. Whoever owns the log changes it.
    LogLevel(String),
}

/// What can be changed, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Bytes a second, 0 for no limit.
    pub upload_limit: u64,
    /// Bytes a second, 0 for no limit.
    pub download_limit: u64,
    /// `None` without a cache.
    pub cache_bytes_max: Option<u64>,
    /// `None` for a mount that only reads.
    pub commit_interval_ms: Option<u64>,
    /// The name of the level.
    pub log_level: String,
}

/// A running mount, as the control socket sees it. `stack` implements it.
pub trait Control: Send + Sync + 'static {
    /// Looks at what [`Control::status`] tells and takes asking for; waits for that a moment only.
    fn look(&self) -> BoxFuture<'static, ()>;
    /// What `sealfs status` shows. Never waits.
    fn status(&self) -> Status;
    /// Changes a setting. Blocks while files of the cache are removed. The error is a sentence.
    fn set(&self, setting: &Setting) -> Result<(), String>;
    /// What can be changed, as it is now.
    fn settings(&self) -> Settings;
    /// Changes what the volume remembers, and follows that; what holds then.
    fn configure(self: Arc<Self>, change: Change)
    -> BoxFuture<'static, Result<Status, StackError>>;
    /// Where the bytes of an inode are; `None` if there is no such one. Reads rows of the bucket where
    /// memory does not have them. The error is a sentence.
    fn places(&self, ino: u64) -> BoxFuture<'static, Result<Option<Places>, String>>;
    /// Adds up what a tree takes; `progress` says how far it is. Ends when it is dropped.
    fn du(
        self: Arc<Self>,
        ask: DuAsk,
        progress: Arc<DuProgress>,
    ) -> BoxFuture<'static, Result<DuReport, FsError>>;
    /// Pins paths into the cache of this machine, all or none; they are brought there by and by.
    fn pin(self: Arc<Self>, paths: Vec<PinPath>)
    -> BoxFuture<'static, Result<PinsNow, PinRefused>>;
    /// Unpins what is pinned at or below these paths.
    fn unpin(
        self: Arc<Self>,
        paths: Vec<PinPath>,
    ) -> BoxFuture<'static, Result<PinsNow, PinRefused>>;
    /// What is pinned, and how far that is. Never waits.
    fn pins(&self) -> PinsNow;
    /// What is counted. Never waits.
    fn numbers(&self) -> Numbers;
    /// How far the bucket is behind. Never waits; called a few times a second.
    fn progress(&self) -> Progress;
    /// Resolves when everything written before the call is in the bucket. Waits as long as the
    /// store is unreachable; the caller drops it at its deadline. The error is a sentence.
    fn sync(&self) -> BoxFuture<'static, Result<(), String>>;
    /// Restores something of a snapshot; `progress` says how far it is, and can stop it.
    fn restore(
        &self,
        order: RestoreOrder,
        progress: Arc<RestoreProgress>,
    ) -> BoxFuture<'static, Result<Restored, RestoreError>>;
    /// Hands out what differs between two snapshots, or one and `now`. Ends when nobody takes it.
    fn diff(
        &self,
        names: [String; 2],
        out: mpsc::Sender<Vec<Difference>>,
    ) -> BoxFuture<'static, Result<(), RestoreError>>;
    /// Who is told of changes that the kernel did not ask for. The first call counts.
    fn tell(&self, kernel: Arc<dyn Kernel>);
    /// How it came by its role, and each change of that.
    fn transitions(&self) -> watch::Receiver<Transition>;
    /// A follower becomes the writer.
    fn promote(
        self: Arc<Self>,
        ask: PromoteAsk,
    ) -> BoxFuture<'static, Result<Transition, StackError>>;
    /// The writer becomes a follower.
    fn demote(
        self: Arc<Self>,
        ask: DemoteAsk,
    ) -> BoxFuture<'static, Result<Transition, StackError>>;
    /// Looks at keyring and configuration of the volume at once and follows them, if `volume_id` is this
    /// volume's. Resolves when what was under way before is in the bucket, or after a minute: with
    /// true from the mount that writes the volume. The error is a sentence.
    fn follow(&self, volume_id: &str) -> BoxFuture<'static, Result<bool, String>>;
    /// All snapshots, and what they hold. The error is a sentence.
    fn snapshots(&self) -> BoxFuture<'static, Result<SnapshotList, String>>;
    /// Makes a snapshot of the volume as it is now. Takes less than a minute.
    fn create_snapshot(
        &self,
        ask: SnapshotAsk,
    ) -> BoxFuture<'static, Result<SnapshotInfo, SnapshotRefused>>;
    /// Deletes snapshots, all of these or none. Takes less than a minute.
    fn delete_snapshots(
        &self,
        names: Vec<String>,
    ) -> BoxFuture<'static, Result<(), SnapshotRefused>>;
}

/// Resident memory of this process in bytes, 0 where `/proc` does not say.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib = line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_json_is_flat_and_reads_back() {
        // Guards against renamed or nested fields, which break every script on `--json`.
        let since = Connection::Offline { since_unix_secs: 7, reason: "timed out".into() };
        let json = serde_json::to_value(&since).expect("plain data");
        assert_eq!(json["state"], "offline");
        assert_eq!(json["since_unix_secs"], 7);
        assert_eq!(serde_json::from_value::<Connection>(json).expect("reads back"), since);
        assert!(resident_bytes() > 0);
    }
}
