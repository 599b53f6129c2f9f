//! How much the files of a volume may take: the limits, and where they are enforced.
//!
//! What counts is what `du` counts: the blocks of 4 KiB in which the files that are there now have data, and
//! their inodes. Holes do not count, nor do snapshots, metadata and what is on its way out; what files
//! share counts in each. Every change passes `Fs::submit`, under the mutation lock, with what it adds: so
//! writers cannot race past a limit, and what adds nothing (deleting, overwriting, renaming) always goes. A
//! replay is not asked: what was acknowledged stays.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::{Attempt, Fs, StatFs, Step};
use crate::commit::Batch;
use crate::meta::{NAME_MAX, Stats};

/// How often a refusal is logged.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long a change that does not fit waits for what was deleted just now; and at most, while there are
/// files without a name, which a program may have open for long.
const LET_GO: Duration = Duration::from_millis(10);
const LET_GO_MAX: Duration = Duration::from_millis(300);
/// What `statfs` shows as free where nothing limits it: 1 PiB, and as many inodes.
const FREE_BYTES: u64 = 1 << 50;
const FREE_INODES: u64 = 1 << 31;
/// Blocks of `statfs` without a limit: so large that programs which count them in 32 bits can
/// (`put_compat_statfs` in fs/statfs.c).
const LARGE_BLOCK: u64 = 512 << 10;
/// The smallest blocks of `statfs`, and the most of them.
const BLOCK: u64 = 4096;
const BLOCKS_MAX: u64 = 1 << 31;

/// What a change is refused with that goes beyond a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum QuotaError {
    /// As a full disk: what every program knows.
    #[default]
    Enospc,
    /// As a quota of a user. Linux itself makes `EIO` of it where a write is only found out at `close`.
    Edquot,
}

/// The limits; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes in the blocks of files.
    pub bytes: u64,
    /// Inodes, that of the root directory among them.
    pub inodes: u64,
    /// How it is told.
    pub error: QuotaError,
}

impl Quota {
    /// Whether there is none.
    pub fn is_off(&self) -> bool {
        self.bytes == 0 && self.inodes == 0
    }

    /// Whether `used` may become larger by this much.
    fn allows(&self, used: Stats, bytes: i64, inodes: i64) -> bool {
        let fits = |limit: u64, used: u64, more: i64| {
            limit == 0 || more <= 0 || used.saturating_add_signed(more) <= limit
        };
        fits(self.bytes, used.bytes, bytes) && fits(self.inodes, used.inodes, inodes)
    }

    /// What `statfs` shows of a volume with so much in use.
    pub(super) fn statfs(&self, used: Stats) -> StatFs {
        let block = match self.bytes {
            0 => LARGE_BLOCK,
            // One size for both: programs multiply the counts with either.
            bytes => bytes.div_ceil(BLOCKS_MAX).next_power_of_two().clamp(BLOCK, LARGE_BLOCK),
        };
        let (blocks, bfree) = match self.bytes {
            0 => (FREE_BYTES / block + used.bytes.div_ceil(block), FREE_BYTES / block),
            // As ext4 shows a project quota: never more in use than there is in all.
            bytes => (bytes / block, bytes.saturating_sub(used.bytes) / block),
        };
        let (files, ffree) = match self.inodes {
            0 => (FREE_INODES + used.inodes, FREE_INODES),
            inodes => (inodes, inodes.saturating_sub(used.inodes)),
        };
        let (bsize, namelen, frsize) = (block as u32, NAME_MAX as u32, block as u32);
        StatFs { blocks, bfree, bavail: bfree, files, ffree, bsize, namelen, frsize }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.bytes > 0 {
            parts.push(format!("bytes={}", self.bytes));
        }
        if self.inodes > 0 {
            parts.push(format!("inodes={}", self.inodes));
        }
        if self.error == QuotaError::Edquot {
            parts.push("error=EDQUOT".into());
        }
        match parts.is_empty() {
            true => f.write_str("off"),
            false => f.write_str(&parts.join(",")),
        }
    }
}

impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Quota, String> {
        let mut quota = Quota::default();
        if text == "off" {
            return Ok(quota);
        }
        let wrong = || format!("{text:?} is no quota");
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(wrong);
            match name {
                "bytes" => quota.bytes = number()?,
                "inodes" => quota.inodes = number()?,
                "error" if value == "EDQUOT" => quota.error = QuotaError::Edquot,
                _ => return Err(wrong()),
            }
        }
        Ok(quota)
    }
}

/// The quota of a mounted volume.
#[derive(Default)]
pub(super) struct Kept {
    now: RwLock<Quota>,
    said: Mutex<Option<Instant>>,
}

impl Fs {
    /// Changes the quota. What is in use already stays.
    pub fn set_quota(&self, quota: Quota) {
        *self.quota.now.write() = quota;
    }

    /// The quota.
    pub fn quota(&self) -> Quota {
        *self.quota.now.read()
    }

    /// Inodes and bytes in use, with what is pending.
    pub fn used(&self) -> Stats {
        self.view.stats()
    }

    /// Refuses what goes beyond the quota. The caller holds the mutation lock.
    pub(super) fn within_quota(&self, batch: &Batch) -> Attempt<()> {
        self.room_for(batch.bytes, batch.inodes)
    }

    /// Refuses so much more. The caller holds the mutation lock.
    pub(super) fn room_for(&self, bytes: i64, inodes: i64) -> Attempt<()> {
        let quota = self.quota();
        if quota.is_off() || (bytes <= 0 && inodes <= 0) {
            return Ok(());
        }
        match quota.allows(self.view.stats(), bytes, inodes) {
            true => Ok(()),
            false => Err(Step::Quota(quota.error)),
        }
    }

    /// Whether it is worth another try to take what did not fit at `since`: Linux tells of a file that was
    /// deleted, and lets go of it a moment later, perhaps to another thread.
    pub(super) async fn may_come_free(&self, since: Instant) -> bool {
        let waited = since.elapsed();
        let worth = waited < LET_GO || (waited < LET_GO_MAX && self.lookups.has_orphans());
        if worth {
            tokio::time::sleep(LET_GO).await;
        }
        worth
    }

    /// Logs that something was refused, now and then.
    pub(super) fn say_refused(&self) {
        let mut said = self.quota.said.lock();
        if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            *said = Some(Instant::now());
            let (quota, used) = (self.quota(), self.view.stats());
            log::warn!(
                "the volume is at its quota ({quota}), with {} bytes and {} inodes in use: what would \
                 take more is refused",
                used.bytes,
                used.inodes
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_reads_back_and_nonsense_is_none() {
        // Guards against a quota that a mount of the next version takes for none.
        for text in ["off", "bytes=1", "inodes=7", "bytes=4096,inodes=1,error=EDQUOT"] {
            assert_eq!(text.parse::<Quota>().expect("a quota").to_string(), text);
        }
        for bad in ["", "bytes", "bytes=0", "bytes=-1", "bytes=1K", "error=EIO", "files=3", "off,"]
        {
            assert!(bad.parse::<Quota>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_adds_to_what_is_limited_is_refused() {
        // Guards against a volume beyond its quota in which nothing can be deleted any more.
        let used = Stats { inodes: 5, bytes: 100 };
        let quota = |bytes, inodes| Quota { bytes, inodes, ..Quota::default() };
        assert!(quota(0, 0).allows(used, i64::MAX, i64::MAX));
        assert!(quota(101, 6).allows(used, 1, 1) && !quota(101, 6).allows(used, 2, 0));
        assert!(!quota(101, 5).allows(used, 0, 1) && quota(101, 0).allows(used, 0, 99));
        assert!(quota(10, 1).allows(used, 0, 0) && quota(10, 1).allows(used, -5, -1));
        assert!(!quota(10, 0).allows(used, 1, -1), "fewer files, and larger ones");
    }

    #[test]
    fn df_shows_the_quota_as_the_size_of_the_disk() {
        // Guards against sizes that 32 bits cannot count, against a negative rest, and against blocks
        // in which a small quota vanishes.
        let used = Stats { inodes: 5, bytes: 3 * 4096 };
        let free = Quota::default().statfs(used);
        assert_eq!((free.bfree, free.blocks), ((1 << 50) / LARGE_BLOCK, free.bfree + 1));
        let small = Quota { bytes: 40_960, inodes: 4, ..Quota::default() }.statfs(used);
        assert_eq!((small.frsize, small.blocks, small.bfree), (4096, 10, 7));
        assert_eq!((small.files, small.ffree), (4, 0));
        let below = Quota { bytes: 4096, ..Quota::default() }.statfs(used);
        assert_eq!((below.blocks, below.bavail), (1, 0));
        for bytes in [1 << 43, (1 << 43) + 1, 1 << 49] {
            let large = Quota { bytes, ..Quota::default() }.statfs(used);
            assert!(large.blocks <= BLOCKS_MAX, "{bytes}");
            assert_eq!(large.blocks, bytes / u64::from(large.frsize));
        }
    }
}
