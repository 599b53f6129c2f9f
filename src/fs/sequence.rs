//! Small files that are read one after the other are fetched ahead of: in the order in which their
//! directory was listed, or in that of their numbers, which is the order in which they were made.
//!
//! Told by `read` of every small file that is read, and by `dir` of what is listed. Where the files
//! lie is taken from rows that memory has; nothing is asked of the metadata store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Fs;
use super::listed::Listed;
use super::read::SMALL_FILE;
use crate::base::{Ino, SegmentId};
use crate::commit::Lookup;
use crate::data::{BLOCK, Source};
use crate::meta::{Inode, Kind};

/// Files read in order behind the first one, before those that follow are fetched.
const STREAK: u32 = 2;
/// Files that one who reads in order may leave out: empty ones, those the kernel has, other kinds.
const SKIP: u64 = 16;
/// Files that others may read meanwhile. In the end every file follows on every other.
const BETWEEN: u64 = 32;
/// Orders that are followed at once.
const RUNS_MAX: usize = 16;
/// Entries of all listings together.
const LISTED_MAX: usize = 32 << 10;
/// Files that are looked at for one step.
const LOOK: usize = 4096;
/// Bytes that the first step fetches, and the most that one of a single reader does.
const STEP_FIRST: u64 = 1 << 20;
const STEP_MAX: u64 = 8 << 20;
/// What is listed and lies together is fetched as a whole up to here: a listing goes by hashes, so
/// that files which follow each other lie anywhere in it. Half of what the cache of blocks holds.
const WHOLE_MAX: u64 = 24 << 20;
/// It lies together if a request brings so much on average.
const TOGETHER: u64 = 512 << 10;
/// Blocks that nobody asked for are fetched with those on both sides if there are no more of them.
const GAP: u32 = 4;

/// An order that is known before it is read in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The inode numbers; a place is a number.
    Numbers,
    /// The listing of this directory; a place is an index in it.
    Listing(Ino),
}

/// Somebody who reads in an order.
#[derive(Debug)]
struct Run {
    number: u64,
    order: Order,
    /// The place that was read last, and when, in reads of all.
    at: u64,
    read: u64,
    streak: u32,
    /// Where the last step began and ended.
    step: Range<u64>,
    /// What the next one may fetch.
    bytes: u64,
    /// One is being made.
    is_stepping: bool,
}

struct State {
    /// The one that was continued last is the last.
    runs: VecDeque<Run>,
    /// Runs and reads so far, and what was read last.
    begun: u64,
    reads: u64,
    last: Option<Ino>,
    /// The small files of directories.
    listed: Listed,
}

impl Default for State {
    fn default() -> State {
        let listed = Listed::new(LISTED_MAX);
        State { runs: VecDeque::new(), begun: 0, reads: 0, last: None, listed }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Sequences(Mutex<State>);

/// What is to be fetched next.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    run: u64,
    order: Order,
    from: u64,
    bytes: u64,
    /// Nobody else reads in order.
    is_alone: bool,
    /// The next files and their places.
    files: Vec<(u64, Ino)>,
}

impl State {
    fn goes_on(&self, run: &Run) -> bool {
        self.reads - run.read <= BETWEEN
    }

    /// The place of `ino` in the order of `run`, if it follows.
    fn next_place(&self, run: &Run, ino: Ino) -> Option<u64> {
        if !self.goes_on(run) {
            return None;
        }
        match run.order {
            Order::Numbers => (ino.0 > run.at && ino.0 - run.at <= SKIP).then_some(ino.0),
            Order::Listing(dir) => {
                let files = self.listed.of(dir)?;
                let from = (run.at as usize + 1).min(files.len());
                let to = (from + SKIP as usize).min(files.len());
                let found = files[from..to].iter().position(|(_, listed)| *listed == ino)?;
                Some((from + found) as u64)
            }
        }
    }

    fn begin(&mut self, order: Order, at: u64) {
        if self.runs.len() == RUNS_MAX {
            self.runs.pop_front();
        }
        self.begun += 1;
        let (number, step, bytes) = (self.begun, at + 1..at + 1, STEP_FIRST);
        let (streak, read, is_stepping) = (0, self.reads, false);
        self.runs.push_back(Run { number, order, at, read, streak, step, bytes, is_stepping });
    }

    /// The step that run `index` is due for, which begins with that.
    fn step(&mut self, index: usize) -> Option<Step> {
        let in_order = |run: &&Run| run.streak >= STREAK && self.goes_on(run);
        let in_order = self.runs.iter().filter(in_order).count() as u64;
        let run = &mut self.runs[index];
        let half = (run.step.end - run.step.start) / 2;
        if run.streak < STREAK || run.is_stepping || run.at + 1 + half < run.step.end {
            return None;
        }
        let (number, order, from) = (run.number, run.order, run.step.end.max(run.at + 1));
        let bytes = run.bytes.min(WHOLE_MAX / in_order.max(1));
        run.bytes = (run.bytes * 4).min(STEP_MAX);
        run.is_stepping = true;
        let files: Vec<(u64, Ino)> = match order {
            Order::Numbers => (from..from + LOOK as u64).map(|n| (n, Ino(n))).collect(),
            Order::Listing(dir) => {
                let files = self.listed.of(dir).unwrap_or_default();
                let places = (0..).zip(files.iter().map(|(_, ino)| *ino));
                places.skip(from as usize).take(LOOK).collect()
            }
        };
        Some(Step { run: number, order, from, bytes, is_alone: in_order == 1, files })
    }
}

impl Sequences {
    /// Notes that `ino` is read, `missed`: and memory does not have it. What to fetch because of that.
    fn note(&self, ino: Ino, missed: bool) -> Vec<Step> {
        let mut state = self.0.lock();
        if state.last.replace(ino) == Some(ino) {
            return Vec::new(); // the rest of it
        }
        state.reads += 1;
        let (mut index, mut steps, mut follows) = (0, Vec::new(), false);
        for _ in 0..state.runs.len() {
            let run = &state.runs[index];
            let Some(place) = state.next_place(run, ino) else {
                index += 1;
                continue;
            };
            follows = true;
            let mut run = state.runs.remove(index).expect("it is there");
            (run.at, run.read, run.streak) = (place, state.reads, run.streak.saturating_add(1));
            state.runs.push_back(run);
            let last = state.runs.len() - 1;
            steps.extend(state.step(last));
        }
        if missed && !follows {
            state.begin(Order::Numbers, ino.0);
            if let Some((dir, at)) = state.listed.find(ino) {
                state.begin(Order::Listing(dir), at as u64);
            }
        }
        steps
    }

    /// The step of run `number` from `from` on has looked at everything before `to`.
    fn stepped(&self, number: u64, from: u64, to: u64) {
        let mut state = self.0.lock();
        if let Some(run) = state.runs.iter_mut().find(|run| run.number == number) {
            (run.step, run.is_stepping) = (from..to, false);
        }
    }

    /// Notes that these small files of `dir` were listed behind place `after`, in this order, each with
    /// its place.
    pub(super) fn listed(&self, dir: Ino, after: u64, files: impl Iterator<Item = (u64, Ino)>) {
        self.0.lock().listed.note(dir, after, files);
    }
}

/// Blocks by segment.
#[derive(Clone, Default)]
struct Wanted {
    blocks: BTreeMap<SegmentId, BTreeSet<u32>>,
    count: u64,
}

impl Wanted {
    fn add_all(&mut self, ranges: Vec<(SegmentId, Range<u64>)>) {
        ranges.into_iter().for_each(|(id, range)| self.add(id, range));
    }

    fn add(&mut self, id: SegmentId, range: Range<u64>) {
        let of_segment = self.blocks.entry(id).or_default();
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            self.count += u64::from(of_segment.insert(block as u32));
        }
    }

    /// Bytes that it takes to fetch them.
    fn cost(&self) -> u64 {
        self.count * BLOCK
    }

    /// Whether a few large requests bring it, and little else: the rest of a directory that is listed
    /// page by page, as a rule.
    fn lies_together(&self) -> bool {
        let ranges = self.ranges();
        let bytes: u64 = ranges.iter().map(|(_, range)| range.end - range.start).sum();
        bytes <= WHOLE_MAX && bytes >= TOGETHER * ranges.len() as u64
    }

    /// In pieces that lie together.
    fn ranges(&self) -> Vec<(SegmentId, Range<u64>)> {
        let mut ranges: Vec<(SegmentId, Range<u32>)> = Vec::new();
        for (id, blocks) in &self.blocks {
            for &block in blocks {
                match ranges.last_mut() {
                    Some((of, range)) if of == id && block <= range.end + GAP => {
                        range.end = block + 1
                    }
                    _ => ranges.push((*id, block..block + 1)),
                }
            }
        }
        let bytes =
            |range: Range<u32>| u64::from(range.start) * BLOCK..u64::from(range.end) * BLOCK;
        ranges.into_iter().map(|(id, range)| (id, bytes(range))).collect()
    }
}

impl Fs {
    /// Notes that small file `ino` is read, and fetches what comes next if it is read in an order.
    pub(super) fn read_in_order(self: &Arc<Self>, ino: Ino, missed: bool) {
        for step in self.sequences.note(ino, missed) {
            let fs = self.clone();
            tokio::spawn(async move { fs.take_step(step) });
        }
    }

    fn take_step(self: &Arc<Self>, step: Step) {
        let (wanted, to) = self.lies_next(&step);
        for (id, range) in wanted.ranges() {
            self.blocks.prefetch(id, range);
        }
        self.sequences.stepped(step.run, step.from, to.max(step.from + SKIP));
    }

    /// What `step` is to fetch, and the place at which the next one begins.
    fn lies_next(&self, step: &Step) -> (Wanted, u64) {
        let is_listed = step.order != Order::Numbers;
        let (mut whole, mut first, mut to) = (Wanted::default(), None, step.from);
        for part in step.files.chunks(256) {
            let inos: Vec<Ino> = part.iter().map(|(_, ino)| *ino).collect();
            for ((place, ino), row) in part.iter().zip(self.view.inodes_now(&inos)) {
                match row {
                    Lookup::Hit(Some(row)) => whole.add_all(self.ranges_of(*ino, &row)),
                    Lookup::Hit(None) => {}
                    Lookup::Miss if is_listed => {} // pushed out meanwhile
                    // Nobody has asked for that one, or for those behind it.
                    Lookup::Miss => return (first.unwrap_or(whole), to),
                }
                if first.is_none() {
                    to = place + 1;
                    if whole.cost() >= step.bytes {
                        first = Some(whole.clone());
                    }
                }
            }
            if first.is_some() && (!is_listed || !step.is_alone || whole.cost() > WHOLE_MAX) {
                break;
            }
        }
        match first {
            Some(_) if is_listed && step.is_alone && whole.lies_together() => {
                (whole, step.files.last().map_or(to, |(place, _)| place + 1))
            }
            Some(first) => (first, to),
            None => (whole, to),
        }
    }

    /// Where a small file lies, as far as memory knows and it is in the bucket.
    fn ranges_of(&self, ino: Ino, row: &[u8]) -> Vec<(SegmentId, Range<u64>)> {
        let Ok(inode) = Inode::decode(row) else { return Vec::new() }; // whoever reads it hears of it
        if inode.kind != Kind::File || inode.size > SMALL_FILE {
            return Vec::new();
        }
        let Lookup::Hit(parts) = self.view.parts_now(inode.contents(ino), 0, inode.size) else {
            return Vec::new();
        };
        let in_segment = |part: &crate::data::Part| match part.source {
            Source::Segment { id, offset } => Some((id, offset..offset + (part.end - part.start))),
            _ => None,
        };
        parts.iter().filter_map(in_segment).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(steps: &[Step]) -> Vec<(Order, u64, u64)> {
        steps.iter().map(|step| (step.order, step.from, step.bytes)).collect()
    }

    #[test]
    fn files_read_in_the_order_of_their_numbers_are_fetched_ahead_of_in_growing_steps() {
        // Guards against a step for each read, against steps that do not grow, and against files that
        // are read at random and bring others with them.
        let sequences = Sequences::default();
        assert!(sequences.note(Ino(10), true).is_empty());
        assert!(sequences.note(Ino(10), false).is_empty(), "the rest of it");
        assert!(sequences.note(Ino(12), false).is_empty(), "11 is empty");
        let steps = sequences.note(Ino(13), false);
        assert_eq!(orders(&steps), [(Order::Numbers, 14, STEP_FIRST)]);
        assert_eq!(steps[0].files[0], (14, Ino(14)));
        assert!(sequences.note(Ino(14), false).is_empty(), "it is being made");
        sequences.stepped(steps[0].run, 14, 114);
        for n in 15..63 {
            assert!(
                sequences.note(Ino(n), false).is_empty(),
                "{n} is in the first half of the step"
            );
        }
        let steps = sequences.note(Ino(63), false);
        assert_eq!(orders(&steps), [(Order::Numbers, 114, 4 * STEP_FIRST)]);
        for n in [500, 90, 1_000, 1_001, 300] {
            assert!(sequences.note(Ino(n), true).is_empty());
        }
    }

    #[test]
    fn files_read_in_the_order_of_a_listing_are_found_in_it() {
        // Guards against a listing that is lost when its next page comes, that keeps what the page before
        // could not show, or that is taken for another's.
        let sequences = Sequences::default();
        sequences.listed(Ino(1), 0, [(5, Ino(90)), (7, Ino(20)), (9, Ino(70))].into_iter());
        sequences.listed(Ino(2), 0, [(6, Ino(200))].into_iter());
        sequences.listed(Ino(1), 7, [(9, Ino(71)), (12, Ino(30)), (20, Ino(8))].into_iter());
        assert!(sequences.note(Ino(90), true).is_empty());
        assert!(sequences.note(Ino(20), true).is_empty());
        let steps = sequences.note(Ino(71), true);
        assert_eq!(orders(&steps), [(Order::Listing(Ino(1)), 3, STEP_FIRST)]);
        assert_eq!(steps[0].files, [(3, Ino(30)), (4, Ino(8))]);
        assert!(steps[0].is_alone);
        for n in 1_000..1_000 + BETWEEN {
            sequences.note(Ino(n), false);
        }
        sequences.stepped(steps[0].run, 3, 5);
        assert!(sequences.note(Ino(30), true).is_empty(), "by chance");
        sequences.listed(Ino(1), 0, [(5, Ino(90))].into_iter());
        assert!(sequences.note(Ino(30), true).is_empty(), "it was listed again, and is gone");
    }

    #[test]
    fn what_is_remembered_of_readers_is_bounded() {
        let sequences = Sequences::default();
        for n in 0..1_000 {
            sequences.note(Ino(n * 1_000), true);
        }
        assert_eq!(sequences.0.lock().runs.len(), RUNS_MAX);
    }

    #[test]
    fn blocks_that_lie_together_are_one_request() {
        let mut wanted = Wanted::default();
        let (a, b) = (SegmentId([1; 16]), SegmentId([2; 16]));
        let at = |block: u64| block * BLOCK + 7..block * BLOCK + 4_000;
        let gap = u64::from(GAP);
        wanted.add_all(vec![
            (b, at(0)),
            (a, at(3)),
            (a, at(0)),
            (a, at(4 + gap)),
            (a, at(40)),
            (a, at(40)),
        ]);
        let blocks = |from: u64, to: u64| from * BLOCK..to * BLOCK;
        let ranges = [(a, blocks(0, 5 + gap)), (a, blocks(40, 41)), (b, blocks(0, 1))];
        assert_eq!(wanted.ranges(), ranges);
        assert_eq!(wanted.cost(), 5 * BLOCK);
        assert!(!wanted.lies_together(), "three requests for little");
        let mut listed = Wanted::default();
        (0..100).for_each(|n| listed.add(a, at(n * 71 % 200)));
        assert!(listed.lies_together());
        listed.add(a, at(100_000));
        (0..300).for_each(|n| listed.add(b, at(n * 3)));
        assert!(!listed.lies_together(), "too much");
    }
}
