//! What comes of moving live bytes out of a segment that snapshots hold. Pure.
//!
//! The segment stays as long as they do, so that what is moved is there twice for that time, and what is
//! dead comes free only afterwards. Left alone, it is held by every snapshot that is made from now on: with
//! a schedule there always is one, and bytes that nobody needs stay for as long as one byte beside them
//! lives. So it is moved when the snapshots that hold it go, and most of it is needed by nobody:
//!
//! | of the snapshots that hold it | it is left |
//! | --- | --- |
//! | one that goes by itself needs more than a half of it | while more than a quarter is live |
//! | one that stays needs more than a half of it | always |
//! | one that stays needs less | until one like it, made since it was half dead, was deleted: so they roll |
//!
//! Hence, while nothing stays for ever: of a segment that is left, somebody needs a quarter or more; no byte
//! is moved for which none has died; and what is there twice is so until the snapshots of that time are gone.

use crate::commit::holders::HeldCommits;
use crate::meta::SegmentRow;

/// A segment of which at most this part is live is moved while a snapshot that soon goes needs more: each
/// that is made meanwhile would hold it for longer.
const MOSTLY_DEAD: u64 = 4;

/// Whether the bytes of a segment that snapshots hold are worth moving.
pub(super) fn pays_later(held: &HeldCommits, row: &SegmentRow) -> bool {
    let half = row.half_since;
    if half == 0 || row.live > row.size / 2 {
        return false;
    }
    let needs_more = |commits: &[u64]| {
        let first = commits.partition_point(|&commit| commit < row.birth);
        commits.get(first).is_some_and(|&commit| commit < half)
    };
    if needs_more(&held.staying) {
        return false;
    }
    if held.stays_for(row.birth) && held.dropped.is_none_or(|dropped| dropped < half) {
        return false;
    }
    row.live <= row.size / MOSTLY_DEAD || !needs_more(&held.going)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::choose::Chooser;
    use super::*;
    use crate::base::SegmentId;
    use crate::commit::options::CleanOptions;

    #[test]
    fn it_depends_on_who_holds_it_and_on_how_much_they_need() {
        // Guards against copies of what a snapshot holds anyway, and against dead bytes that are held by
        // one snapshot after the other.
        let row =
            |live| SegmentRow { size: 100, live, birth: 10, half_since: 20, epoch: 1, owners: 0 };
        let held = |staying: &[u64], going: &[u64], dropped| HeldCommits {
            staying: staying.to_vec(),
            going: going.to_vec(),
            dropped,
        };
        for (staying, going, dropped, live, pays, why) in [
            (&[][..], &[30][..], None, 50, true, "it goes, and needs a half at most"),
            (&[], &[30], None, 51, false, "more than a half is live"),
            (&[], &[15, 30], None, 50, false, "one needs more"),
            (&[], &[15, 30], None, 25, true, "but soon nobody will"),
            (&[], &[9, 30], None, 50, true, "older than the segment"),
            (&[30], &[], None, 1, false, "it may stay for ever"),
            (&[30], &[], Some(19), 1, false, "what was deleted does not say more"),
            (&[30], &[], Some(20), 50, true, "they roll"),
            (&[19, 30], &[], Some(20), 1, false, "one that stays needs more"),
            (&[9], &[30], None, 50, true, "one that stays does not hold it"),
        ] {
            assert_eq!(pays_later(&held(staying, going, dropped), &row(live)), pays, "{why}");
        }
        let whole = SegmentRow { half_since: 0, ..row(100) };
        assert!(!pays_later(&held(&[], &[30], None), &whole));
    }

    const UNIT: u64 = 1 << 20;
    const UNITS: usize = 16;

    /// A volume, its snapshots and its bucket, in units of 1 MiB.
    #[derive(Default)]
    struct Model {
        commit: u64,
        next_id: u128,
        segments: HashMap<u128, (SegmentRow, Vec<usize>)>,
        /// Segments that only snapshots hold: birth, death, size.
        kept: Vec<(u64, u64, u64)>,
        /// Of each block the segment it is in, and since which commit it is what it is.
        blocks: Vec<Option<(u128, u64)>>,
        /// What blocks were, from commit to commit, while a snapshot needs it.
        past: Vec<(u64, u64)>,
        snapshots: [Vec<u64>; 3],
        written: u64,
        moved: u64,
    }

    impl Model {
        fn holds(&self, birth: u64, death: u64) -> bool {
            self.snapshots.iter().flatten().any(|commit| (birth..death).contains(commit))
        }

        fn lose(&mut self, block: usize, death: u64) -> Option<u64> {
            let (id, since) = self.blocks[block].take()?;
            let (row, blocks) = self.segments.get_mut(&id).expect("there");
            blocks.retain(|b| *b != block);
            *row = row.with_live(row.live - UNIT, death);
            if row.live == 0 {
                let (birth, size) = (row.birth, row.size);
                self.segments.remove(&id);
                if self.holds(birth, death) {
                    self.kept.push((birth, death, size));
                }
            }
            Some(since)
        }

        /// Puts blocks into new segments, each with the commit since which it is what it is.
        fn put(&mut self, blocks: &[(usize, u64)]) {
            for blocks in blocks.chunks(UNITS) {
                let (id, size) = (self.next_id, blocks.len() as u64 * UNIT);
                self.next_id += 1;
                let row = SegmentRow { size, live: size, birth: self.commit, ..Default::default() };
                self.segments.insert(id, (row, blocks.iter().map(|b| b.0).collect()));
                blocks.iter().for_each(|&(block, since)| self.blocks[block] = Some((id, since)));
            }
        }

        fn write(&mut self, mut blocks: Vec<usize>) {
            blocks.sort_unstable();
            blocks.dedup();
            self.commit += 1;
            for &block in &blocks {
                if let Some(since) = self.lose(block, self.commit) {
                    self.past.push((since, self.commit));
                }
            }
            self.written += blocks.len() as u64 * UNIT;
            let new: Vec<_> = blocks.into_iter().map(|block| (block, self.commit)).collect();
            self.put(&new);
        }

        fn clean(&mut self, held: HeldCommits) {
            let mut chooser = Chooser::new(CleanOptions::default(), 0, held);
            for (id, (row, _)) in &self.segments {
                chooser.see(SegmentId(id.to_be_bytes()), *row);
            }
            let mut moved = Vec::new();
            for id in chooser.choice().segments.keys() {
                for block in self.segments[&u128::from_be_bytes(id.0)].1.clone() {
                    let since = self.lose(block, self.commit + 1).expect("it was there");
                    moved.push((block, since));
                }
            }
            self.moved += moved.len() as u64 * UNIT;
            self.put(&moved);
        }

        fn snapshots_of_hour(&mut self, hour: u64) {
            for (of, every, keep) in [(0, 1, 24), (1, 24, 30), (2, 720, 12)] {
                if hour.is_multiple_of(every) {
                    self.snapshots[of].push(self.commit);
                }
                let surplus = self.snapshots[of].len().saturating_sub(keep);
                self.snapshots[of].drain(..surplus);
            }
        }

        fn held(&self) -> HeldCommits {
            let mut going = self.snapshots.concat();
            going.sort_unstable();
            HeldCommits { going, ..HeldCommits::default() }
        }

        /// Bytes in the bucket, and bytes that the volume or a snapshot needs.
        fn stored_and_needed(&mut self) -> (u64, u64) {
            let held = self.held();
            let holds = |birth: u64, death: u64| {
                let first = held.going.partition_point(|&commit| commit < birth);
                held.going.get(first).is_some_and(|&commit| commit < death)
            };
            self.past.retain(|&(birth, death)| holds(birth, death));
            self.kept.retain(|&(birth, death, _)| holds(birth, death));
            let live = self.segments.values().map(|(row, _)| row.size).sum::<u64>();
            let stored = live + self.kept.iter().map(|kept| kept.2).sum::<u64>();
            let there = self.blocks.iter().flatten().count() + self.past.len();
            (stored, there as u64 * UNIT)
        }
    }

    /// What a year of snapshots came to.
    #[derive(Debug)]
    struct Year {
        /// The most that was stored for each byte that was needed, on any day, and on the last.
        most: f64,
        last: f64,
        /// Bytes moved for each that was written.
        moved: f64,
    }

    /// A year with hourly=24, daily=30, monthly=12 of a volume that is written twice an hour, in one piece:
    /// `hot` blocks that change each time, `some` others, and one that stays. `judged`: what the choice is
    /// told of the snapshots.
    fn year(hot: usize, some: usize, judged: impl Fn(HeldCommits) -> HeldCommits) -> Year {
        let mut rng = StdRng::seed_from_u64(1);
        let mut m = Model { blocks: vec![None; 1000], ..Model::default() };
        m.write((0..1000).collect());
        let (mut most, mut last) = (0f64, 0.0);
        for hour in 0..365 * 24 {
            for _ in 0..2 {
                let new = m.blocks.len();
                m.blocks.push(None);
                let some = (0..some).map(|_| rng.random_range(0..new));
                m.write((0..hot).chain(some).chain([new]).collect());
            }
            m.snapshots_of_hour(hour);
            if hour % 3 == 0 {
                m.clean(judged(m.held()));
            }
            if hour % 24 == 23 {
                let (stored, needed) = m.stored_and_needed();
                last = stored as f64 / needed as f64;
                most = most.max(last);
            }
        }
        Year { most, last, moved: m.moved as f64 / m.written as f64 }
    }

    #[test]
    fn a_year_of_snapshots_stores_little_more_than_is_needed() {
        // Guards against dead bytes that one snapshot after the other holds, and against moving so much
        // that it costs more than it frees. The last is told that all snapshots stay, and moves nothing:
        // so that it would be seen.
        for (hot, some) in [(9, 3), (14, 0)] {
            let year = year(hot, some, |held| held);
            println!("{hot} and {some} of {}: {year:.2?}", hot + some + 1);
            assert!(year.most < 3.0 && year.last < 2.4 && year.moved < 0.6, "{year:?}");
        }
        let stay =
            |held: HeldCommits| HeldCommits { staying: held.going, ..HeldCommits::default() };
        let year = year(14, 0, stay);
        println!("moved nothing: {year:.2?}");
        assert!(year.last > 10.0 && year.moved == 0.0, "{year:?}");
    }
}
