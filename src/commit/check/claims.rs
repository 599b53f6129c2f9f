//! Which bytes of segments are claimed by extents, and whether any are claimed twice.
//!
//! Extents that touch become one run, so of a segment whose bytes are all in use one run is left, in
//! whatever order its extents come.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{ContentsId, SegmentId};
use crate::data::Extent;

/// An extent in a segment of which some files say that they share it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Said {
    pub(super) segment: SegmentId,
    pub(super) file: ContentsId,
    offset: u64,
    len: u64,
}

impl Said {
    pub(super) fn new(file: ContentsId, e: &Extent) -> Said {
        Said { segment: e.segment, file, offset: e.offset, len: e.end - e.start }
    }
}

/// The claims of all extents, unless they are too many.
pub(super) struct Claims {
    /// Where runs end, by segment and start.
    runs: BTreeMap<(SegmentId, u64), u64>,
    twice: BTreeSet<SegmentId>,
    /// Those of which is to be seen whether their file says that it shares the segment.
    said: Vec<Said>,
    most: usize,
    too_many: bool,
}

impl Claims {
    /// At most `most` runs are in memory.
    pub(super) fn new(most: usize) -> Claims {
        let (runs, twice, said) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Claims { runs, twice, said, most, too_many: false }
    }

    /// Claims the bytes of an extent.
    pub(super) fn claim(&mut self, e: &Extent) {
        self.bytes(e.segment, e.offset, e.end - e.start);
    }

    /// Claims them later, unless the file says that it shares.
    pub(super) fn perhaps(&mut self, file: ContentsId, e: &Extent) {
        if !self.too_many {
            self.said.push(Said::new(file, e));
            self.bound();
        }
    }

    /// Takes what [`Claims::perhaps`] left, sorted by segment and file.
    pub(super) fn take_said(&mut self) -> Vec<Said> {
        let mut said = std::mem::take(&mut self.said);
        said.sort_unstable();
        said
    }

    /// Claims what was left for later.
    pub(super) fn claim_said(&mut self, said: &Said) {
        self.bytes(said.segment, said.offset, said.len);
    }

    /// Segments of which some bytes are claimed twice; `None` if there were too many runs to tell.
    pub(super) fn twice(&self) -> Option<&BTreeSet<SegmentId>> {
        (!self.too_many).then_some(&self.twice)
    }

    fn bytes(&mut self, segment: SegmentId, offset: u64, len: u64) {
        if self.too_many || len == 0 {
            return;
        }
        let (mut start, mut end) = (offset, offset.saturating_add(len));
        let (from, to) = ((segment, 0), (segment, end));
        // From the last on, those that begin no later than this one ends.
        while let Some((&(_, s), &e)) = self.runs.range(from..=to).next_back() {
            if e < start {
                break;
            }
            if s < end && start < e {
                self.twice.insert(segment);
            }
            self.runs.remove(&(segment, s));
            (start, end) = (start.min(s), end.max(e));
        }
        self.runs.insert((segment, start), end);
        self.bound();
    }

    fn bound(&mut self) {
        if self.runs.len() + self.said.len() > self.most {
            self.too_many = true;
            (self.runs, self.said) = (BTreeMap::new(), Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(pieces: &[(u64, u64)]) -> (usize, bool) {
        let mut claims = Claims::new(100);
        for &(offset, len) in pieces {
            claims.bytes(SegmentId([1; 16]), offset, len);
            claims.bytes(SegmentId([2; 16]), 1000 - offset - len, len);
        }
        (claims.runs.len(), claims.twice().is_some_and(|twice| twice.len() == 2))
    }

    #[test]
    fn what_touches_becomes_one_run_and_what_overlaps_is_told() {
        // Guards against memory for each extent, and against an overlap that is hidden in a run.
        assert_eq!(claimed(&[(0, 10), (10, 5), (15, 1)]), (2, false));
        assert_eq!(claimed(&[(0, 10), (20, 10), (10, 10)]), (2, false), "a hole is filled");
        assert_eq!(claimed(&[(0, 10), (20, 10)]), (4, false));
        assert_eq!(claimed(&[(0, 10), (9, 10)]), (2, true));
        assert_eq!(claimed(&[(0, 10), (20, 10), (5, 20)]), (2, true), "over two");
        assert_eq!(claimed(&[(0, 100), (40, 10)]), (2, true), "inside");
        assert_eq!(claimed(&[(40, 10), (0, 100)]), (2, true), "around");
        assert_eq!(claimed(&[(5, 5), (5, 5)]), (2, true), "the same");
    }

    #[test]
    fn too_many_runs_are_no_answer() {
        // Guards against "nothing is shared" from a check that gave up.
        let mut claims = Claims::new(3);
        (0..3).for_each(|n| claims.bytes(SegmentId([0; 16]), n * 10, 5));
        assert!(claims.twice().is_some());
        claims.bytes(SegmentId([0; 16]), 100, 5);
        assert!(claims.twice().is_none() && claims.runs.is_empty());
    }
}
