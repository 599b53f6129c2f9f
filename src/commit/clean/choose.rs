//! Which segments are worth cleaning. Pure. What of them snapshots hold is judged in `worth`.

use std::collections::HashMap;

use super::worth::pays_later;
use crate::base::SegmentId;
use crate::commit::holders::HeldCommits;
use crate::commit::options::CleanOptions;
use crate::commit::pack::SEGMENT_BYTES_MAX;
use crate::meta::SegmentRow;

/// A segment below this is tiny: an `fsync` a second leaves one every commit interval.
pub(super) const TINY_BYTES: u64 = 1 << 20;
/// A segment below this is merged with others even if it stays in the bucket for snapshots, once there
/// are [`CRUMBS`] times as many as of other tiny ones: a snapshot every hour leaves some each time, for
/// good. What is in them is there twice until those snapshots are gone.
const CRUMB_BYTES: u64 = 64 << 10;
const CRUMBS: usize = 16;
/// Cleaning begins when this part of all stored bytes, or of all segments, would come free: what
/// is moved dies again, and the deader a segment is by then, the less is moved for what it frees.
const SHARE: u64 = 16;
/// Live bytes that one round moves at most.
const ROUND_BYTES_MAX: u64 = 256 << 20;
/// Segments of a sort that are remembered while looking; others wait for a later round.
const CANDIDATES_MAX: usize = 32_768;

/// The segments whose live bytes are to be moved.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) segments: HashMap<SegmentId, SegmentRow>,
    /// Others are, or may be, worth it, too.
    pub(super) more: bool,
    /// Plaintext bytes of all segments, chosen or not.
    pub(super) stored: u64,
}

/// Looks at segments one by one and then says which to clean.
#[derive(Debug)]
pub(super) struct Chooser {
    options: CleanOptions,
    /// Tiny segments that an earlier round found not to be worth it.
    left_out: usize,
    /// What was born until one of these stays in the bucket, whatever is moved out of it.
    held: HeldCommits,
    segments: usize,
    bytes: u64,
    dead_bytes: u64,
    half_dead: Candidates,
    tiny: Candidates,
    crumbs: Candidates,
}

/// Segments of one sort, of which at most [`CANDIDATES_MAX`] are remembered.
#[derive(Debug, Default)]
struct Candidates {
    seen: usize,
    rows: Vec<(SegmentId, SegmentRow)>,
}

impl Candidates {
    fn push(&mut self, id: SegmentId, row: SegmentRow) {
        self.seen += 1;
        if self.rows.len() < CANDIDATES_MAX {
            self.rows.push((id, row));
        }
    }
}

impl Chooser {
    /// `left_out`: tiny segments that an earlier round found not to be worth it. `held`: what
    /// snapshots hold.
    pub(super) fn new(options: CleanOptions, left_out: usize, held: HeldCommits) -> Chooser {
        Chooser {
            options,
            left_out,
            held,
            segments: 0,
            bytes: 0,
            dead_bytes: 0,
            half_dead: Candidates::default(),
            tiny: Candidates::default(),
            crumbs: Candidates::default(),
        }
    }

    /// Takes a segment into account.
    pub(super) fn see(&mut self, id: SegmentId, row: SegmentRow) {
        self.segments += 1;
        self.bytes = self.bytes.saturating_add(row.size);
        let SegmentRow { size, live, .. } = row;
        if live == 0 || row.owners == 0 && live > size || live > SEGMENT_BYTES_MAX {
            return; // not ours to judge: `fsck` says what is wrong
        }
        if self.held.holds(row.birth) && !pays_later(&self.held, &row) {
            if size < CRUMB_BYTES && !self.held.stays_for(row.birth) {
                self.crumbs.push(id, row);
            }
            return; // it would be there twice, and nothing would come free
        }
        if size < TINY_BYTES {
            self.tiny.push(id, row);
        } else if live <= size / 2 {
            self.dead_bytes = self.dead_bytes.saturating_add(size - live);
            self.half_dead.push(id, row);
        }
    }

    /// The choice: the deadest first, as far as a round goes, then the tiny.
    pub(super) fn choice(mut self) -> Choice {
        let mut choice = Choice { stored: self.bytes, ..Choice::default() };
        let mut room = ROUND_BYTES_MAX;
        let mut take = |candidates: &Candidates| {
            choice.more |= candidates.seen > candidates.rows.len();
            for (id, row) in &candidates.rows {
                let Some(left) = room.checked_sub(row.live) else {
                    choice.more = true;
                    return;
                };
                room = left;
                choice.segments.insert(*id, *row);
            }
        };
        if self.dead_bytes >= self.options.dead_bytes_min.max(self.bytes / SHARE) {
            self.half_dead.rows.sort_unstable_by_key(|(id, row)| {
                // In 1/65536 of the size, which is enough to rank by.
                (u128::from(row.live) * 65_536 / u128::from(row.size), *id)
            });
            take(&self.half_dead);
        }
        let enough = self.options.tiny_min.max(self.segments / SHARE as usize).max(2);
        if self.tiny.seen >= enough + self.left_out {
            take(&self.tiny);
        }
        if self.crumbs.seen >= CRUMBS * enough + self.left_out {
            take(&self.crumbs);
        }
        choice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(segments: &[(u64, u64)]) -> Vec<usize> {
        let mut chooser = Chooser::new(CleanOptions::default(), 0, HeldCommits::default());
        let id = |n: usize| SegmentId((n as u128).to_be_bytes());
        for (n, &(size, live)) in segments.iter().enumerate() {
            chooser.see(id(n), SegmentRow { size, live, ..SegmentRow::default() });
        }
        let chosen = chooser.choice().segments;
        (0..segments.len()).filter(|&n| chosen.contains_key(&id(n))).collect()
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn segments_are_cleaned_when_enough_is_dead_and_the_deadest_first() {
        // Guards against a bucket that grows with every overwrite, against moving more than is
        // freed, and against a round without end.
        let few = [(16 * MIB, MIB), (16 * MIB, 8 * MIB), (16 * MIB, 9 * MIB)];
        assert!(chosen(&few).is_empty(), "23 MiB are not worth a round");
        let mut many = vec![(16 * MIB, 16 * MIB); 20];
        many.extend(vec![(16 * MIB, 8 * MIB + 1); 20]);
        many.extend(vec![(16 * MIB, 4 * MIB); 10]);
        assert_eq!(chosen(&many), (40..50).collect::<Vec<_>>(), "those more than half dead");
        many.extend(vec![(16 * MIB, 16 * MIB); 200]);
        assert!(chosen(&many).is_empty(), "a small part of a large volume");
        let deadest = (0..400).map(|n| (16 * MIB, if n % 2 == 0 { MIB } else { 8 * MIB }));
        let chosen = chosen(&deadest.collect::<Vec<_>>());
        assert!(chosen.iter().filter(|&n| n % 2 == 0).count() == 200, "the deadest");
        assert_eq!(chosen.len(), 200 + (256 - 200) / 8, "256 MiB at most");
    }

    #[test]
    fn what_a_snapshot_holds_is_neither_moved_nor_counted() {
        // Guards against a bucket that grows by cleaning: the old segment stays for the snapshot, and
        // what was moved is there twice.
        let held = HeldCommits { staying: vec![7], ..HeldCommits::default() };
        let mut chooser = Chooser::new(CleanOptions::default(), 0, held);
        for n in 0..600u64 {
            let birth = if n < 300 { 7 } else { 8 };
            let (size, live) = if n % 2 == 0 { (4096, 4096) } else { (16 * MIB, MIB) };
            let row = SegmentRow { size, birth, ..SegmentRow::default() }.with_live(live, 9);
            chooser.see(SegmentId(u128::from(n).to_be_bytes()), row);
        }
        assert_eq!(chooser.dead_bytes, 150 * 15 * MIB);
        let chosen = chooser.choice().segments;
        assert_eq!(chosen.len(), 150, "the tiny ones that are left are too few");
        assert!(chosen.values().all(|row| row.birth == 8));
    }

    #[test]
    fn crumbs_that_snapshots_hold_are_merged_once_there_are_many() {
        // Guards against an object for every hour of a log, for ever, and against data that are there
        // twice for nothing: larger ones, and those of a snapshot that stays.
        let chosen = |many: u64, size: u64, held: &HeldCommits| {
            let mut chooser = Chooser::new(CleanOptions::default(), 0, held.clone());
            for n in 0..many {
                let row = SegmentRow { size, birth: 3, ..SegmentRow::default() }.with_live(size, 3);
                chooser.see(SegmentId(u128::from(n).to_be_bytes()), row);
            }
            chooser.choice().segments.len()
        };
        let going = HeldCommits { going: vec![7], ..HeldCommits::default() };
        let staying = HeldCommits { staying: vec![7], ..going.clone() };
        assert_eq!(chosen(4096, 4096, &going), 4096);
        assert_eq!(chosen(4095, 4096, &going), 0, "too few");
        assert_eq!(chosen(5000, CRUMB_BYTES, &going), 0, "too large");
        assert_eq!(chosen(5000, 4096, &staying), 0);
    }

    #[test]
    fn many_tiny_segments_are_merged_and_odd_rows_are_left_alone() {
        // Guards against an object for every commit of a log that is appended to for a year.
        assert!(chosen(&[(4096, 4096); 255]).is_empty());
        assert_eq!(chosen(&[(4096, 4096); 256]).len(), 256);
        let many = vec![(4096, 4096); 600_000];
        assert_eq!(chosen(&many).len(), CANDIDATES_MAX, "more than are remembered");
        let mut odd = vec![(MIB, 0), (4096, 8192), (1 << 40, 1 << 38)];
        odd.extend([(4096, 1); 300]);
        assert_eq!(chosen(&odd), (3..303).collect::<Vec<_>>());
    }
}
