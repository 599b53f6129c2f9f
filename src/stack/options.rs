//! What `stack` is asked for: plain data, filled in by `cli` from the command line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::records::accept::Accept;
use super::{Key, StoreOptions};
use crate::commit::{CleanOptions, CommitOptions};
use crate::fs::SnapDir;
use crate::journal::disk::{DiskIo, RealDisk};
use crate::meta::SnapshotName;
use crate::seal::{KdfParams, Secret};
use crate::store::Compression;
use crate::store::kv::COLLECT_AGE;
use crate::store::s3::StorageClass;

/// What `sealfs init` does.
#[derive(Debug)]
pub struct InitOptions {
    /// The store; nothing may be below its prefix yet.
    pub store: StoreOptions,
    /// Opens the volume from now on.
    pub secret: Secret,
    /// Names the first key slot.
    pub label: String,
    /// The cost of guessing the passphrase.
    pub kdf: KdfParams,
    /// User and group id that own the root directory.
    pub owner: (u32, u32),
    /// How segments are stored, for mounts that do not say otherwise.
    pub compress: Compression,
    /// The storage class of segments.
    pub storage_class: StorageClass,
}

impl InitOptions {
    /// The defaults for a store and what opens the volume.
    pub fn new(store: StoreOptions, secret: Secret) -> InitOptions {
        InitOptions {
            store,
            secret,
            label: "first".into(),
            kdf: KdfParams::default(),
            owner: (0, 0),
            compress: Compression::None,
            storage_class: StorageClass::default(),
        }
    }
}

/// How long `init` and `mount` wait for the metadata store to open.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(120);

/// The disk of the journal: the machine's own, or one that a test makes fail.
#[derive(Clone)]
pub struct LocalDisk(pub Arc<dyn DiskIo>);

impl Default for LocalDisk {
    fn default() -> Self {
        LocalDisk(Arc::new(RealDisk))
    }
}

impl std::fmt::Debug for LocalDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalDisk")
    }
}

/// What `sealfs mount` does, below the FUSE mount itself.
#[derive(Debug)]
pub struct MountOptions {
    /// The store.
    pub store: StoreOptions,
    /// Opens the volume.
    pub key: Key,
    /// Ciphertext cache; may be thrown away at any time.
    pub cache_dir: PathBuf,
    /// Journal and rollback protection; what is not in the bucket yet is only here.
    pub state_dir: PathBuf,
    /// Bytes the cache may take.
    pub cache_bytes_max: u64,
    /// Bytes of changes that may wait in the journal.
    pub journal_bytes_max: u64,
    /// How much history may be behind while the store is reachable.
    pub commit_interval: Duration,
    /// How long a read waits for an unreachable store before it fails.
    pub read_timeout: Duration,
    /// Follow the volume, never change it.
    pub read_only: bool,
    /// Take the volume from the mount that holds it.
    pub takeover: bool,
    /// What may be older, or other, than what this machine has seen.
    pub accept_rollback: Accept,
    /// Refuse a bucket that is older than this commit: what a person noted of it elsewhere.
    pub at_least: u64,
    /// `fsync` waits for the bucket.
    pub fsync_remote: bool,
    /// How long a writer waits for room in the journal before it gets `ENOSPC`.
    pub full_timeout: Duration,
    /// How often a read-only mount looks for newer state.
    pub refresh: Duration,
    /// Where it will be mounted, for the lease and for `status`.
    pub mount_point: PathBuf,
    /// What the journal is written to.
    pub disk: LocalDisk,
    /// How long opening the metadata may take.
    pub open_timeout: Duration,
    /// When segments that are mostly dead, or tiny, are cleaned.
    pub clean: CleanOptions,
    /// How long a segment without live bytes stays in the bucket.
    pub dead_grace: Duration,
    /// How long objects of the metadata that are needed no more stay in the bucket.
    pub collect_age: Duration,
    /// How new segments are stored, in place of what the volume remembers.
    pub compress: Option<Compression>,
    /// How snapshots are shown below the root.
    pub snapdir: SnapDir,
    /// Show this snapshot in place of the volume; then nothing is written.
    pub snapshot: Option<SnapshotName>,
}

impl MountOptions {
    /// The defaults for a volume and its local directories.
    pub fn new(
        store: StoreOptions,
        key: impl Into<Key>,
        cache_dir: impl Into<PathBuf>,
        state_dir: impl Into<PathBuf>,
    ) -> MountOptions {
        MountOptions {
            store,
            key: key.into(),
            cache_dir: cache_dir.into(),
            state_dir: state_dir.into(),
            cache_bytes_max: 10 << 30,
            journal_bytes_max: 10 << 30,
            commit_interval: Duration::from_secs(2),
            read_timeout: Duration::from_secs(30),
            read_only: false,
            takeover: false,
            accept_rollback: Accept::default(),
            at_least: 0,
            fsync_remote: false,
            full_timeout: Duration::from_secs(60),
            refresh: Duration::from_secs(5),
            mount_point: PathBuf::new(),
            disk: LocalDisk::default(),
            open_timeout: OPEN_TIMEOUT,
            clean: CleanOptions::default(),
            dead_grace: CommitOptions::default().dead_grace,
            collect_age: COLLECT_AGE,
            compress: None,
            snapdir: SnapDir::default(),
            snapshot: None,
        }
    }
}
