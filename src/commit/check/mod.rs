//! Whether the committed metadata is consistent: every rule that rows of different kinds must
//! keep among each other. Reads only, repairs nothing. Called by `fsck` and by tests.
//!
//! The caller sees to it that nothing is committed meanwhile, or gives a handle that does not
//! follow the writer: a check reads page by page, and rows of two commits need not agree.
//!
//! Rows are read in key order and compared as they pass, once if nothing is wrong: names and inodes
//! come in different orders, but both add up to one sum (`sums`), and extents leave no more of a
//! segment in memory than where the runs of them begin and end (`claims`). Only where the sums differ, or
//! runs are too many, the rows are read again, in passes of bounded size, to see what differs. Memory,
//! whatever the volume: [`INODES_PER_PASS`] × 40 bytes, [`EXTENTS_PER_PASS`] × 64 bytes,
//! [`FINDINGS_MAX`] findings, and beyond that 24 bytes for each directory and about 120 bytes
//! for each segment (16 MiB of data).
//!
//! | file | holds |
//! | --- | --- |
//! | `finding` | what can be found |
//! | `inodes` | all rows of an inode against each other, in one walk |
//! | `sums` | whether names and inodes agree, without saying which do not |
//! | `names` | names against the inodes they lead to |
//! | `claims` | whether two extents claim the same bytes |
//! | `segments` | extents against segments |

mod claims;
mod finding;
mod inodes;
mod names;
mod segments;
mod sums;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::view::ViewError;
use crate::base::Ino;
use crate::meta::{DecodeError, Stats, keys};
use crate::store::kv::Kv;

use claims::Claims;
pub use finding::Finding;
pub use segments::{SegmentSum, Segments};
use sums::Sums;

/// Inodes that one pass over all names compares.
pub const INODES_PER_PASS: usize = 2 << 20;
/// Runs of extents that are in memory, and extents that one pass compares with each other if they
/// are more.
pub const EXTENTS_PER_PASS: usize = 2 << 20;
/// Findings that are kept; the others are counted.
pub const FINDINGS_MAX: usize = 10_000;

/// How much a check may keep in memory; lowered by tests.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// See [`INODES_PER_PASS`].
    pub inodes_per_pass: usize,
    /// See [`EXTENTS_PER_PASS`].
    pub extents_per_pass: usize,
    /// Names are compared with inodes one by one only if their sums differ.
    pub by_sums: bool,
}

impl Default for CheckOptions {
    fn default() -> Self {
        CheckOptions {
            inodes_per_pass: INODES_PER_PASS,
            extents_per_pass: EXTENTS_PER_PASS,
            by_sums: true,
        }
    }
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The rules that are broken, [`FINDINGS_MAX`] at most.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more: u64,
    /// Inodes, those without a name included.
    pub inodes: u64,
    /// Directories.
    pub directories: u64,
    /// Inodes without a name.
    pub orphans: u64,
    /// Bytes that extents of files refer to.
    pub bytes: u64,
    /// Segments that extents refer to.
    pub segments: u64,
    /// Segments that wait for their deletion.
    pub dead_segments: u64,
    /// Segments that only snapshots refer to.
    pub kept_segments: u64,
    /// Rows read, those read twice counted twice.
    pub rows: u64,
}

impl Report {
    /// Whether no rule is broken.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.more == 0
    }

    /// The findings as sentences without names.
    pub fn problems(&self) -> Vec<String> {
        self.findings.iter().map(Finding::to_string).collect()
    }

    fn note(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }
}

/// A directory, as the search for circles needs it: 16 bytes each.
struct Directory {
    ino: Ino,
    parent: Ino,
}

/// What the walks share.
struct Check<'a> {
    kv: &'a Kv,
    options: CheckOptions,
    report: Report,
    rows: &'a AtomicU64,
    /// Every directory in use, by inode.
    directories: Vec<Directory>,
    segments: Segments,
    sums: Sums,
    claims: Claims,
    found: Stats,
    last_ino: Ino,
}

/// Checks all rows; also the segments that rows know, with what refers to them. `rows` counts
/// along, for whoever shows progress.
///
/// # Errors
/// The store; a row that does not decode or a broken rule is no error but in the report.
pub async fn check(
    kv: &Kv,
    options: CheckOptions,
    rows: &AtomicU64,
) -> Result<(Report, Segments), ViewError> {
    let mut check = Check {
        kv,
        options,
        report: Report::default(),
        rows,
        directories: Vec::new(),
        segments: Segments::default(),
        sums: Sums::default(),
        claims: Claims::new(options.extents_per_pass),
        found: Stats::default(),
        last_ino: Ino(0),
    };
    check.load_segments().await?;
    check.inodes().await?;
    if !options.by_sums || !check.sums.agree() {
        check.names().await?;
    }
    check.cycles();
    check.settle_segments().await?;
    check.totals().await?;
    check.report.rows = rows.load(Ordering::Relaxed);
    check.report.inodes = check.found.inodes;
    check.report.directories = check.directories.len() as u64;
    Ok((check.report, check.segments))
}

impl Check<'_> {
    /// The decoded row; one that is not in the format becomes a finding.
    fn decoded<T>(&mut self, key: &Bytes, row: Result<T, DecodeError>) -> Option<T> {
        match row {
            Ok(row) => Some(row),
            Err(DecodeError(why)) => {
                self.report.note(Finding::Undecodable { key: key.clone(), why });
                None
            }
        }
    }

    async fn totals(&mut self) -> Result<(), ViewError> {
        let undecodable = |key: crate::meta::Key, why| Finding::Undecodable {
            key: Bytes::from(key.into_vec()),
            why,
        };
        match self.kv.get(&keys::stats()).await?.map(|row| Stats::decode(&row)) {
            Some(Ok(said)) if said == self.found => {}
            Some(Ok(said)) => self.report.note(Finding::Totals { said, found: self.found }),
            Some(Err(DecodeError(why))) => self.report.note(undecodable(keys::stats(), why)),
            None => self.report.note(undecodable(keys::stats(), "there are no statistics")),
        }
        let next = self.kv.get(&keys::next_ino()).await?;
        match next.as_deref().map(<[u8; 8]>::try_from) {
            Some(Ok(next)) => {
                let said = u64::from_le_bytes(next);
                if self.last_ino.0 >= said {
                    self.report.note(Finding::NextIno { said, last: self.last_ino });
                }
            }
            _ => self.report.note(undecodable(keys::next_ino(), "no next inode number")),
        }
        Ok(())
    }
}
