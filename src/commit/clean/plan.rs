//! How live bytes are laid out in new segments, how they are read, and which of them are still
//! in use when they have been moved. Pure.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::choose::TINY_BYTES;
use crate::base::{ContentsId, SegmentId};
use crate::commit::pack::{Change, SEGMENT_BYTES_MAX, SegmentPos};
use crate::data::Extent;
use crate::meta::SegmentRow;
use crate::store::segments::Owned;

/// Bytes between two live ranges that are rather read than asked around.
const GAP_MAX: u64 = 64 << 10;
/// Bytes that one request reads; a single extent may be longer.
const FETCH_BYTES: u64 = 4 << 20;
/// An output takes no further segment beyond this many pieces (each costs rows), or old segments
/// (each costs a request before anything is uploaded).
const OUTPUT_PIECES: usize = 16_384;
const OUTPUT_SOURCES: usize = 512;
/// A tiny segment of more pieces stays: merging those of the smallest files would cost more than
/// it saves. Four fit into an output, so merging makes them fewer.
const TINY_PIECES_MAX: usize = OUTPUT_PIECES / 4;

/// An extent that is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Whose it is.
    pub(super) file: ContentsId,
    /// Where it is now.
    pub(super) extent: Extent,
}

impl Piece {
    fn len(&self) -> u64 {
        self.extent.end - self.extent.start
    }

    /// Where it ends in its segment.
    fn offset_end(&self) -> u64 {
        self.extent.offset.saturating_add(self.len())
    }
}

/// Bytes of an old segment that something refers to, without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) segment: SegmentId,
    pub(super) range: Range<u64>,
}

impl Run {
    pub(super) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A piece, and where it begins in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) piece: Piece,
    pub(super) at: u64,
    /// Others before it refer to some of the same bytes: the summary does not name it there.
    pub(super) shares: bool,
}

/// A new segment: its runs one after the other.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) runs: Vec<Run>,
    /// What refers to them: in the order of the runs, and of their offsets in one. Two that share
    /// bytes share them in the output as well.
    pub(super) pieces: Vec<Placed>,
    /// Bytes.
    pub(super) len: u64,
}

impl Output {
    /// Whose its bytes are, in order; of shared ones, the first that refers to them.
    pub(super) fn owned(&self) -> Vec<Owned> {
        let mut owned = Vec::with_capacity(self.pieces.len());
        let mut known = 0;
        for Placed { piece, at, .. } in &self.pieces {
            let end = at + piece.len();
            let from = known.max(*at);
            if from < end {
                let ContentsId { ino, incarnation } = piece.file;
                let offset = piece.extent.start + (from - at);
                Owned::add(&mut owned, Owned { ino, incarnation, offset, len: end - from });
                known = end;
            }
        }
        owned
    }

    /// Adds what refers to one segment, in the order of offsets.
    fn take(&mut self, group: Vec<Piece>) {
        for piece in group {
            let (segment, range) = (piece.extent.segment, piece.extent.offset..piece.offset_end());
            let mut shares = false;
            match self.runs.last_mut() {
                Some(run) if run.segment == segment && range.start <= run.range.end => {
                    shares = range.start < run.range.end;
                    let longer = range.end.saturating_sub(run.range.end);
                    run.range.end += longer;
                    self.len += longer;
                }
                _ => {
                    self.len += range.end - range.start;
                    self.runs.push(Run { segment, range: range.clone() });
                }
            }
            let run = self.runs.last().expect("one was just pushed");
            let at = self.len - (run.range.end - range.start);
            self.pieces.push(Placed { piece, at, shares });
        }
    }
}

/// One request: a range of a segment, and the runs of the output that it brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) segment: SegmentId,
    pub(super) range: Range<u64>,
    pub(super) runs: Range<usize>,
}

/// What becomes of the pieces that were found.
#[derive(Debug, Default)]
pub(super) struct Arranged {
    pub(super) outputs: Vec<Output>,
    /// Tiny segments of so many pieces that merging them is not worth it.
    pub(super) left_out: usize,
    /// Segments whose pieces contradict their rows: `fsck` says how.
    pub(super) odd: Vec<SegmentId>,
}

/// Bytes that `group`, in the order of offsets, refers to.
fn distinct(group: &[Piece]) -> u64 {
    let (mut sum, mut known) = (0u64, 0);
    for piece in group {
        let end = piece.offset_end();
        sum = sum.saturating_add(end.saturating_sub(piece.extent.offset.max(known)));
        known = known.max(end);
    }
    sum
}

/// Packs `pieces` of the segments `chosen`; pieces come in the order of their rows. What lies
/// together in a segment stays together (it was written together), and segments follow each
/// other in the order of the first file in each: so pieces that were appended to a file one by
/// one become one extent. All pieces of a segment go to the same output.
/// None is larger than `bytes_max`, if no source is.
pub(super) fn arrange(
    pieces: Vec<Piece>,
    chosen: &HashMap<SegmentId, SegmentRow>,
    bytes_max: u64,
) -> Arranged {
    let mut place = HashMap::new();
    let mut groups: Vec<(SegmentId, Vec<Piece>)> = Vec::new();
    for piece in pieces {
        let segment = piece.extent.segment;
        let at = *place.entry(segment).or_insert(groups.len());
        if at == groups.len() {
            groups.push((segment, Vec::new()));
        }
        groups[at].1.push(piece);
    }
    let mut arranged = Arranged::default();
    let mut sources = 0;
    for (segment, mut group) in groups {
        let row = &chosen[&segment];
        group.sort_by_key(|piece| piece.extent.offset);
        let len = distinct(&group);
        if len > row.live || !group.iter().all(|piece| piece.offset_end() <= row.size) {
            arranged.odd.push(segment);
            continue;
        }
        let all = group.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.len()));
        if row.owners > 0 && all != row.live {
            // The files that share it have changed since it was chosen, or are not all known: if
            // one of them kept the old place, the bytes would be there twice.
            continue;
        }
        if row.size < TINY_BYTES && group.len() > TINY_PIECES_MAX {
            arranged.left_out += 1;
            continue;
        }
        let fits = |o: &Output| {
            o.len + len <= SEGMENT_BYTES_MAX.min(bytes_max)
                && o.pieces.len() + group.len() <= OUTPUT_PIECES
                && sources < OUTPUT_SOURCES
        };
        if !arranged.outputs.last().is_some_and(fits) {
            arranged.outputs.push(Output::default());
            sources = 0;
        }
        arranged.outputs.last_mut().expect("one was just pushed").take(group);
        sources += 1;
    }
    arranged
}

/// The requests that bring `runs`, in order.
pub(super) fn fetches(runs: &[Run]) -> Vec<Fetch> {
    let mut fetches: Vec<Fetch> = Vec::new();
    for (n, Run { segment, range }) in runs.iter().enumerate() {
        match fetches.last_mut() {
            Some(last)
                if last.segment == *segment
                    && range.start >= last.range.start
                    && range.start <= last.range.end.saturating_add(GAP_MAX)
                    && range.end <= last.range.start.saturating_add(FETCH_BYTES) =>
            {
                last.range.end = last.range.end.max(range.end);
                last.runs.end = n + 1;
            }
            _ => fetches.push(Fetch { segment: *segment, range: range.clone(), runs: n..n + 1 }),
        }
    }
    fetches
}

/// What moving `pieces` of one file, each with its place in the segment `to`, changes of the
/// extents `now` that the file has (by end): only what is still where it was read.
pub(super) fn changes(
    now: &BTreeMap<u64, Extent>,
    pieces: &[(Extent, u64)],
    to: SegmentId,
) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for &(was, at) in pieces {
        let touching = now.range(was.start + 1..).map(|(_, e)| e);
        for e in touching.take_while(|e| e.start < was.end) {
            let (start, end) = (e.start.max(was.start), e.end.min(was.end));
            // The same byte of the same segment is at the same place of the file.
            let same = e.segment == was.segment
                && e.offset + (start - e.start) == was.offset + (start - was.start);
            if same {
                let to = SegmentPos { id: to, offset: at + (start - was.start) };
                Change::add(&mut changes, start, end, to);
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ino;

    const MIB: u64 = 1 << 20;

    fn segment(n: u8) -> SegmentId {
        SegmentId([n; 16])
    }

    fn extent(start: u64, end: u64, of: u8, offset: u64) -> Extent {
        Extent { start, end, segment: segment(of), offset }
    }

    fn piece(ino: u64, start: u64, end: u64, of: u8, offset: u64) -> Piece {
        Piece {
            file: ContentsId { ino: Ino(ino), incarnation: 0 },
            extent: extent(start, end, of, offset),
        }
    }

    fn full(ids: impl IntoIterator<Item = u8>) -> HashMap<SegmentId, SegmentRow> {
        let row = SegmentRow { size: 16 * MIB, live: 16 * MIB, ..Default::default() };
        ids.into_iter().map(|n| (segment(n), row)).collect()
    }

    #[test]
    fn what_lay_together_stays_together_and_an_output_is_a_segment_at_most() {
        // Guards against a segment's files being scattered, which a cold `grep -r` would feel,
        // and against an output that no memory was meant for.
        let rows = vec![
            piece(1, 0, 10, 2, 100),
            piece(1, 10, 20, 1, 0),
            piece(3, 0, 10, 2, 40),
            piece(4, 0, 9 * MIB, 3, 0),
            piece(5, 0, 8 * MIB, 4, 0),
        ];
        let outputs = arrange(rows, &full(1..=4), u64::MAX).outputs;
        let shape = |o: &Output| {
            let one = |p: &Placed| (p.piece.extent.segment.0[0], p.piece.extent.offset, p.at);
            o.pieces.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(shape(&outputs[0]), [(2, 40, 0), (2, 100, 10), (1, 0, 20), (3, 0, 30)]);
        assert_eq!((outputs[0].len, outputs[1].len), (9 * MIB + 30, 8 * MIB));
        assert_eq!(outputs.len(), 2);
    }

    #[test]
    fn shared_bytes_move_once_and_stay_shared() {
        // Guards against a copy by rows that becomes a copy of bytes when it is cleaned, and
        // against a summary that is longer than its data: two files have 60 bytes in common, a
        // third lies within them, and a gap follows.
        let rows = vec![
            piece(1, 0, 100, 1, 0),
            piece(2, 500, 620, 1, 40),
            piece(3, 0, 20, 1, 50),
            piece(3, 20, 30, 1, 200),
        ];
        let arranged = arrange(rows.clone(), &full([1]), u64::MAX);
        let [output] = &arranged.outputs[..] else { panic!("one output") };
        let run = |range| Run { segment: segment(1), range };
        assert_eq!((output.len, &output.runs[..]), (170, &[run(0..160), run(200..210)][..]));
        let at: Vec<_> = output.pieces.iter().map(|p| (p.piece.file.ino.0, p.at)).collect();
        assert_eq!(at, [(1, 0), (2, 40), (3, 50), (3, 160)]);
        let owned = |ino, offset, len| Owned { ino: Ino(ino), incarnation: 0, offset, len };
        assert_eq!(output.owned(), [owned(1, 0, 100), owned(2, 560, 60), owned(3, 20, 10)]);
        let mut less = full([1]);
        less.insert(segment(1), SegmentRow { size: 16 * MIB, live: 169, ..SegmentRow::default() });
        assert_eq!(arrange(rows, &less, u64::MAX).odd, [segment(1)]);
    }

    #[test]
    fn rows_that_contradict_each_other_and_segments_of_crumbs_stay() {
        // Guards against an accounting error that becomes a deletion, against one bad row that
        // keeps everything behind it from being cleaned, and against merging that makes more
        // tiny segments than it takes.
        let mut chosen = full([1, 2, 3]);
        chosen.insert(segment(2), SegmentRow { size: 16 * MIB, live: 19, ..Default::default() });
        chosen
            .insert(segment(4), SegmentRow { size: MIB - 1, live: MIB - 1, ..Default::default() });
        let mut pieces = vec![
            piece(1, 0, 10, 1, 16 * MIB - 9),
            piece(1, 10, 20, 2, 0),
            piece(1, 20, 30, 2, 10),
            piece(1, 30, 40, 3, u64::MAX - 1),
        ];
        pieces.extend((0..4097).map(|n| piece(2 + n, 0, 1, 4, n)));
        let all = arrange(pieces.clone(), &chosen, u64::MAX);
        assert_eq!(all.odd, [segment(1), segment(2), segment(3)]);
        assert_eq!((all.outputs.len(), all.left_out), (0, 1));
        pieces.pop();
        let fewer = arrange(pieces, &chosen, u64::MAX);
        assert_eq!((fewer.outputs.len(), fewer.left_out), (1, 0));
        let many = (0..1025u64).map(|n| {
            let id = SegmentId((n as u128).to_be_bytes());
            let extent = Extent { start: n * 4, end: n * 4 + 4, segment: id, offset: 0 };
            (
                Piece { file: ContentsId { ino: Ino(1), incarnation: 0 }, extent },
                (id, SegmentRow { size: 4, live: 4, ..Default::default() }),
            )
        });
        let (pieces, chosen): (Vec<_>, HashMap<_, _>) = many.unzip();
        let sizes: Vec<_> =
            arrange(pieces, &chosen, u64::MAX).outputs.iter().map(|o| o.pieces.len()).collect();
        assert_eq!(sizes, [512, 512, 1], "a request for each, before anything is uploaded");
    }

    #[test]
    fn neighbours_are_read_at_once_and_far_ones_apart() {
        // Guards against a request for every 4 KiB, and against reading a segment for one.
        let run = |of, from, len| Run { segment: segment(of), range: from..from + len };
        let runs = [
            run(1, 0, 10),
            run(1, 10 + GAP_MAX, 10),
            run(1, 21 + 2 * GAP_MAX, 10),
            run(2, 0, 10),
            run(2, 10, 5 * MIB),
        ];
        let fetches = fetches(&runs);
        let shape: Vec<_> = fetches.iter().map(|f| (f.range.clone(), f.runs.clone())).collect();
        let third = 21 + 2 * GAP_MAX;
        assert_eq!(
            shape,
            [
                (0..20 + GAP_MAX, 0..2),
                (third..third + 10, 2..3),
                (0..10, 3..4),
                (10..10 + 5 * MIB, 4..5)
            ]
        );
    }

    #[test]
    fn only_bytes_that_are_still_where_they_were_read_move() {
        // Guards against cleaning undoing a write, a truncation or a hole that came meanwhile.
        let was = [(extent(0, 100, 1, 500), 0), (extent(100, 150, 2, 0), 100)];
        let now = |extents: &[Extent]| extents.iter().map(|e| (e.end, *e)).collect();
        let moved = |start, end, at| Change {
            start,
            end,
            to: Some(SegmentPos { id: segment(9), offset: at }),
        };
        let untouched: BTreeMap<_, _> = now(&[was[0].0, was[1].0]);
        assert_eq!(changes(&untouched, &was, segment(9)), [moved(0, 150, 0)], "one extent");
        let written = now(&[
            extent(0, 20, 1, 500),
            extent(20, 30, 7, 0),
            extent(40, 100, 1, 540),
            extent(100, 150, 1, 900),
        ]);
        let left = [moved(0, 20, 0), moved(40, 100, 40)];
        assert_eq!(changes(&written, &was, segment(9)), left);
        let elsewhere = now(&[extent(0, 100, 1, 501), extent(100, 150, 3, 0)]);
        assert_eq!(changes(&elsewhere, &was, segment(9)), []);
        let merged = now(&[extent(0, 160, 1, 500)]);
        assert_eq!(changes(&merged, &was, segment(9)), [moved(0, 100, 0)]);
        assert_eq!(changes(&now(&[]), &was, segment(9)), []);
    }
}
