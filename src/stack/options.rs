//! What `stack` is asked for: plain data, filled in by `cli` from the command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::seal::{KdfParams, Secret};
use crate::store::Location;
use crate::store::s3::SseMode;

/// Where the store is and how it is reached.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The parsed STORE argument.
    pub location: Location,
    /// `--endpoint-url`; AWS itself when absent.
    pub endpoint_url: Option<String>,
    /// `--region`; else from the AWS configuration.
    pub region: Option<String>,
    /// `--profile`; else from the AWS configuration.
    pub profile: Option<String>,
    /// `--allow-http`: plain http to other machines.
    pub allow_http: bool,
    /// Server-side encryption of every object.
    pub sse: SseMode,
}

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
}

/// What `sealfs mount` does, below the FUSE mount itself.
#[derive(Debug)]
pub struct MountOptions {
    /// The store.
    pub store: StoreOptions,
    /// Opens the volume.
    pub secret: Secret,
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
    /// Accept a bucket older than what this machine has seen.
    pub accept_rollback: bool,
    /// Where it will be mounted, for the lease and for `status`.
    pub mount_point: PathBuf,
}
