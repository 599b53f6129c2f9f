//! What the committer can be told: how often it commits, and when segments are cleaned.

use std::time::Duration;

/// How the committer works.
#[derive(Clone, Copy, Debug)]
pub struct CommitOptions {
    /// How much history may be behind while the bucket is reachable (`--commit-interval`).
    pub interval: Duration,
    /// How long a segment without live bytes stays in the bucket for readers that still know
    /// it.
    pub dead_grace: Duration,
    /// Names the mount in every commit (`g writer`).
    pub instance: [u8; 16],
    /// When segments are cleaned.
    pub clean: CleanOptions,
}

impl Default for CommitOptions {
    fn default() -> Self {
        CommitOptions {
            interval: Duration::from_secs(2),
            dead_grace: Duration::from_secs(300),
            instance: [0; 16],
            clean: CleanOptions::default(),
        }
    }
}

/// When segments are cleaned.
#[derive(Clone, Copy, Debug)]
pub struct CleanOptions {
    /// Dead bytes in segments that are at least half dead, before any of them is cleaned; 0: no
    /// segment ever is, nor a tiny one.
    pub dead_bytes_min: u64,
    /// Tiny segments before they are merged, at least two.
    pub tiny_min: usize,
    /// How often a mount that makes few commits looks for work; for the first time after a sixth
    /// of it.
    pub look_every: Duration,
}

impl Default for CleanOptions {
    fn default() -> Self {
        let look_every = Duration::from_secs(1800);
        CleanOptions { dead_bytes_min: 64 << 20, tiny_min: 256, look_every }
    }
}
