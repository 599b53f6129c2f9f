//! What survives a crash, what is a torn tail, and what is corruption: the decision, pure.
//!
//! The rule. Records count from the oldest log file on, as long as each opens and carries the
//! next number. The first that does not ends the journal, and what follows does not count, *if*
//! nothing that follows testifies that the missing record had been on stable storage (each
//! record and each file header says, sealed, up to where the journal was synced when it was
//! written). If something does, stable storage has lost what it held: corruption, and nothing
//! is touched. A missing record that was released is not missed.

use super::error::JournalError;
use super::format::FileHeader;
use super::options::RecordLoc;
use super::scan::FileScan;
use crate::base::{JournalId, JournalPos};

/// What a journal held when it was opened; all of it is on stable storage now.
#[derive(Debug)]
pub struct Recovery {
    /// The journal's name. A new one if the directory held none.
    pub id: JournalId,
    /// The records, in order, without gaps.
    pub records: Vec<(JournalPos, RecordLoc)>,
    /// Records after the last were begun and not synced, and do not count now.
    pub torn_tail: bool,
    /// The oldest record the journal still answers for: whoever has committed less than the
    /// one before it has lost records (see [`Recovery::after`]).
    pub first: JournalPos,
    /// The last record; `first - 1` if there is none.
    pub last: JournalPos,
    /// Records up to here had certainly been released, perhaps more.
    pub released: JournalPos,
    /// Where records that had been on stable storage do not open: only of a journal that was
    /// opened to be examined.
    pub damage: Option<String>,
}

impl Recovery {
    /// The records after `committed`, which is what has to be replayed.
    ///
    /// # Errors
    /// `Corrupt` if records between `committed` and the oldest held are missing.
    pub fn after(&self, committed: JournalPos) -> Result<&[(JournalPos, RecordLoc)], JournalError> {
        if committed.0 + 1 < self.first.0 {
            let what = format!(
                "records {} to {} are missing from the front",
                committed.0 + 1,
                self.first.0 - 1
            );
            return Err(JournalError::Corrupt { file: "journal".into(), offset: 0, what });
        }
        let start = self.records.partition_point(|(pos, _)| *pos <= committed);
        Ok(&self.records[start..])
    }
}

/// What [`decide`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The journal's records are `first..=last`; of the files, the first `files_kept` stay.
    Survives { first: u64, last: u64, files_kept: usize, torn: bool, released: u64 },
    /// Record `missing` had been on stable storage; it should lie in file `file` at `offset`.
    Corrupt { file: usize, offset: u64, missing: u64 },
}

/// Which of the files with a header are in the log: all but those that a later header passes
/// over (the files of a torn tail that was dropped). `headers` are in order of `seq`; so is
/// the answer.
pub(crate) fn chain(headers: &[FileHeader]) -> Vec<bool> {
    let mut allowed = u64::MAX;
    let mut kept: Vec<bool> = headers
        .iter()
        .rev()
        .map(|h| {
            let keep = h.seq <= allowed;
            if keep {
                allowed = h.prev_seq;
            }
            keep
        })
        .collect();
    kept.reverse();
    kept
}

/// Applies the rule to the scans of the log's files, in order.
pub(crate) fn decide(files: &[(FileHeader, FileScan)]) -> Verdict {
    let headers = files.iter().map(|(h, _)| (h.synced, h.released));
    let scans = files.iter().map(|(_, s)| (s.synced, s.released));
    let (synced, released) =
        headers.chain(scans).fold((0, 0), |a: (u64, u64), b| (a.0.max(b.0), a.1.max(b.1)));
    let mut first = files.first().map_or(1, |(h, _)| h.first);
    loop {
        let (missing, file, offset) = match walk(files, first) {
            Walk::Whole { last } => {
                let torn = files.last().is_some_and(|(_, s)| s.torn);
                return Verdict::Survives { first, last, files_kept: files.len(), torn, released };
            }
            Walk::Missing { number, file, offset } => (number, file, offset),
        };
        if missing <= released {
            // What is lost is in the bucket. Begin behind it; `first` grows, so this ends.
            first = released + 1;
        } else if missing <= synced {
            return Verdict::Corrupt { file, offset, missing };
        } else {
            let last = missing - 1;
            return Verdict::Survives { first, last, files_kept: file + 1, torn: true, released };
        }
    }
}

enum Walk {
    Whole { last: u64 },
    Missing { number: u64, file: usize, offset: u64 },
}

/// Follows the numbers from `first` to the end or to the first that is missing.
fn walk(files: &[(FileHeader, FileScan)], first: u64) -> Walk {
    let mut expected = first;
    for (i, (header, scan)) in files.iter().enumerate() {
        if i > 0 && header.prev_last >= expected {
            // The file before ends too early; it is named, at the byte where it broke off.
            return Walk::Missing { number: expected, file: i - 1, offset: files[i - 1].1.end };
        }
        expected = expected.max(header.first);
        for (pos, _) in &scan.records {
            if pos.0 > expected {
                return Walk::Missing { number: expected, file: i, offset: scan.end };
            }
            if pos.0 == expected {
                expected += 1;
            }
        }
    }
    Walk::Whole { last: expected - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(
        seq: u64,
        first: u64,
        header_synced: u64,
        numbers: &[u64],
        synced: u64,
    ) -> (FileHeader, FileScan) {
        let header = FileHeader {
            seq,
            prev_seq: seq - 1,
            prev_last: first - 1,
            first,
            synced: header_synced,
            released: 0,
        };
        let loc = |n| RecordLoc { pos: JournalPos(n), file: seq, offset: 0, len: 0 };
        let records = numbers.iter().map(|&n| (JournalPos(n), loc(n))).collect();
        (header, FileScan { records, synced, released: 0, end: 7, torn: false, resumed: false })
    }

    #[test]
    fn a_gap_that_nothing_testifies_for_ends_the_journal() {
        // Guards against refusing a journal after an ordinary power loss: the disk wrote 6 and
        // the next file before 5, and nothing had been synced after 3.
        let files = [file(1, 1, 0, &[1, 2, 3, 4, 6], 3), file(2, 7, 3, &[7], 3)];
        let torn = Verdict::Survives { first: 1, last: 4, files_kept: 1, torn: true, released: 0 };
        assert_eq!(decide(&files), torn);
    }

    #[test]
    fn a_gap_that_had_been_synced_is_corruption() {
        // Guards against silently losing an fsynced record to a flipped bit: 7 says that 6
        // records were on stable storage.
        let files = [file(1, 1, 0, &[1, 2, 3, 4, 6], 3), file(2, 7, 3, &[7], 6)];
        assert_eq!(decide(&files), Verdict::Corrupt { file: 0, offset: 7, missing: 5 });
        // The same when only the header of the next file is left to say it.
        let files = [file(1, 1, 0, &[1, 2, 3], 0), file(2, 7, 6, &[], 0)];
        assert_eq!(decide(&files), Verdict::Corrupt { file: 0, offset: 7, missing: 4 });
    }

    #[test]
    fn a_missing_record_that_was_released_is_not_missed() {
        // Guards against damage in what is in the bucket already keeping a volume from
        // mounting.
        let mut files = [file(1, 1, 0, &[1, 2, 4, 5, 6], 3), file(2, 7, 6, &[7, 8], 7)];
        files[1].1.released = 5;
        let whole =
            Verdict::Survives { first: 6, last: 8, files_kept: 2, torn: false, released: 5 };
        assert_eq!(decide(&files), whole);
    }

    #[test]
    fn numbers_that_were_skipped_on_purpose_are_no_gap() {
        // Guards against start_after (the bucket is ahead of this journal) being taken for
        // lost records at the next open.
        let mut files = [file(1, 1, 0, &[1, 2], 2), file(2, 3, 2, &[10, 11], 2)];
        files[1].0.first = 10;
        files[1].0.released = 9;
        let v = decide(&files);
        assert!(
            matches!(v, Verdict::Survives { last: 11, files_kept: 2, torn: false, .. }),
            "{v:?}"
        );
    }

    #[test]
    fn a_header_passes_over_the_files_of_a_dropped_tail() {
        // Guards against records of a dropped tail coming back: file 3 was begun after a
        // recovery that ended in file 1.
        let mut headers = [1, 2, 3].map(|seq| file(seq, 1, 0, &[], 0).0);
        headers[2].prev_seq = 1;
        assert_eq!(chain(&headers), [true, false, true]);
        assert_eq!(chain(&headers[..2]), [true, true]);
    }

    #[test]
    fn an_empty_journal_is_whole() {
        // Guards against a first mount that finds fault with nothing.
        let whole =
            Verdict::Survives { first: 1, last: 0, files_kept: 0, torn: false, released: 0 };
        assert_eq!(decide(&[]), whole);
    }
}
