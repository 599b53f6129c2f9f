//! Where the bytes of a read come from: pending layers over committed extents. Pure.

use super::overlay::{Overlay, Sliced};
use crate::base::SegmentId;
use crate::journal::RecordLoc;

/// Where a pending range has its bytes.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// Nowhere: it reads as zeros.
    Hole,
    /// In the payload of a journal record, from byte `skip` on.
    Record {
        /// The record.
        record: RecordLoc,
        /// Plaintext offset in it.
        skip: u32,
    },
    /// In a segment of the bucket, from plaintext byte `offset` on.
    Segment {
        /// The segment.
        id: SegmentId,
        /// Plaintext offset in it.
        offset: u64,
    },
}

impl Sliced for Source {
    fn advance(self, bytes: u64) -> Self {
        match self {
            Source::Hole => Source::Hole,
            Source::Record { record, skip } => Source::Record { record, skip: skip + bytes as u32 },
            Source::Segment { id, offset } => Source::Segment { id, offset: offset + bytes },
        }
    }
}

/// A committed extent: `start..end` of the file is at `offset` of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file.
    pub start: u64,
    /// End in the file (exclusive).
    pub end: u64,
    /// The segment.
    pub segment: SegmentId,
    /// Plaintext offset of `start` in the segment.
    pub offset: u64,
}

/// One part of a read, in file order, without gaps.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// First byte in the file.
    pub start: u64,
    /// End in the file (exclusive).
    pub end: u64,
    /// Where the bytes are.
    pub source: Source,
}

/// What the pending layers (newest first) leave open of a range.
pub struct Pending {
    parts: Vec<Part>,
    gaps: Vec<(u64, u64)>,
}

impl Pending {
    /// Looks `start..end` up in `layers`, newest first.
    pub fn resolve<'a>(
        start: u64,
        end: u64,
        layers: impl IntoIterator<Item = &'a Overlay<Source>>,
    ) -> Pending {
        let mut found = Pending { parts: Vec::new(), gaps: vec![(start, end)] };
        if start >= end {
            found.gaps.clear();
        }
        for layer in layers {
            if found.gaps.is_empty() {
                break;
            }
            let gaps = std::mem::take(&mut found.gaps);
            for (from, to) in gaps {
                let mut at = from;
                for (piece_start, piece_end, source) in layer.within(from, to) {
                    if at < piece_start {
                        found.gaps.push((at, piece_start));
                    }
                    found.parts.push(Part { start: piece_start, end: piece_end, source });
                    at = piece_end;
                }
                if at < to {
                    found.gaps.push((at, to));
                }
            }
        }
        found
    }

    /// The ranges that no pending layer covers, in no particular order.
    pub fn gaps(&self) -> &[(u64, u64)] {
        &self.gaps
    }

    /// Fills the gaps from committed `extents`, ordered by end; what they leave is a hole. They
    /// are disjoint, unless rows were merged while they were read page by page: then two say the
    /// same of some bytes, and the first of them counts.
    pub fn over(mut self, extents: &[Extent]) -> Vec<Part> {
        for &(from, to) in &self.gaps {
            let mut at = from;
            let first = extents.partition_point(|e| e.end <= from);
            for e in extents[first..].iter().take_while(|e| e.start < to) {
                let (start, end) = (e.start.max(at), e.end.min(to));
                if start >= end {
                    continue;
                }
                if at < start {
                    self.parts.push(Part { start: at, end: start, source: Source::Hole });
                }
                let source =
                    Source::Segment { id: e.segment, offset: e.offset + (start - e.start) };
                self.parts.push(Part { start, end, source });
                at = end;
            }
            if at < to {
                self.parts.push(Part { start: at, end: to, source: Source::Hole });
            }
        }
        self.parts.sort_unstable_by_key(|p| p.start);
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64) -> Extent {
        Extent { start, end, segment: SegmentId([1; 16]), offset: 1000 + start }
    }

    fn shape(parts: &[Part]) -> Vec<(u64, u64, u8, u64)> {
        let one = |p: &Part| match p.source {
            Source::Hole => (p.start, p.end, 0, 0),
            Source::Segment { id, offset } => (p.start, p.end, id.0[0], offset),
            Source::Record { .. } => unreachable!("no record was inserted"),
        };
        parts.iter().map(one).collect()
    }

    #[test]
    fn rows_that_were_merged_while_they_were_read_give_no_byte_twice() {
        // Guards against a read that is longer than was asked for: the first page of extents was
        // read before they moved to another segment and became one, the second after.
        let merged = Extent { start: 0, end: 40, segment: SegmentId([2; 16]), offset: 7 };
        let pages = [extent(0, 10), extent(10, 20), merged, extent(50, 60)];
        let parts = Pending::resolve(5, 60, []).over(&pages);
        assert_eq!(
            shape(&parts),
            [
                (5, 10, 1, 1005),
                (10, 20, 1, 1010),
                (20, 40, 2, 27),
                (40, 50, 0, 0),
                (50, 60, 1, 1050)
            ]
        );
    }

    #[test]
    fn pending_layers_hide_extents_and_gaps_are_holes() {
        // Guards against an old extent showing through a newer hole (truncate, then extend).
        let mut newer = Overlay::default();
        newer.insert(10, 20, Source::Hole);
        let mut older = Overlay::default();
        let at = Source::Segment { id: SegmentId([2; 16]), offset: 0 };
        older.insert(15, 30, at);
        let pending = Pending::resolve(0, 60, [&newer, &older]);
        let parts = pending.over(&[extent(0, 25), extent(40, 50)]);
        assert_eq!(
            shape(&parts),
            [
                (0, 10, 1, 1000),
                (10, 20, 0, 0),
                (20, 30, 2, 5),
                (30, 40, 0, 0),
                (40, 50, 1, 1040),
                (50, 60, 0, 0)
            ]
        );
    }
}
