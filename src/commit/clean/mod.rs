//! Cleaning of segments: the live bytes of those that are mostly dead, or tiny, move to new ones,
//! so that the bucket keeps about what the volume holds (Rosenblum and Ousterhout, *The design
//! and implementation of a log-structured file system*, 1992).
//!
//! A round finds, reads and uploads on a separate task; commits go on meanwhile. Rows are
//! written by the committer alone, between two commits, and only for bytes that are still where
//! they were read. What is uploaded is announced before, by `z` rows dated in the future: if the
//! round is cut off, its segments are deleted like dead ones. What it leaves of the old
//! segments dies by the ordinary accounting and is deleted after the ordinary grace.
//!
//! | file | holds |
//! | --- | --- |
//! | `choose` | which segments are worth it |
//! | `worth` | what becomes of those that snapshots hold |
//! | `owners` | who refers to them, by their own summaries |
//! | `plan` | what lies where in the new ones; what of it is still in use |
//! | `carry` | the task: find, read, upload |
//! | `switch` | rows: the files use a new segment, a bounded batch at a time |

mod carry;
mod choose;
mod owners;
mod plan;
mod switch;
mod worth;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::task::JoinHandle;

use super::accounts::{self, Changes};
use super::error::CommitError;
use super::options::CleanOptions;
use super::pack::SEGMENT_BYTES_MAX;
use super::scan::Cursor;
use super::view::ViewError;
use super::writer::RowWriter;
use crate::base::{SegmentId, counted, unix_secs};
use crate::meta::{DeadRow, keys};
use carry::{Carried, Moved, Order};
use choose::{Choice, Chooser};
use switch::Switch;

/// New segments of one round; what would need more waits for the next.
const OUTPUTS_MAX: usize = 64;
/// How long a round may take.
const ROUND_DEADLINE: Duration = Duration::from_secs(1800);
/// How long what it uploads is safe from being taken for dead: well beyond its deadline.
const RESERVED_SECS: u64 = 2 * 3600;
/// Uploaded segments that wait for their rows; the task waits when there are more.
const MOVED_QUEUE: usize = 2;
/// Batches of rows that are written between two commits.
const BATCHES_PER_STEP: usize = 2;
/// How long to leave it after a failure, and after several in a row at most.
const PAUSE: Duration = Duration::from_secs(300);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// A busy mount looks after this many commits, and when this part of what is stored has come free
/// (but not for less than [`CleanOptions::dead_bytes_min`]).
const LOOK_COMMITS: u64 = 512;
const LOOK_SHARE: u64 = 64;

/// A round under way.
struct Round {
    task: JoinHandle<Result<Carried, CommitError>>,
    moved: mpsc::Receiver<Moved>,
    /// A new segment whose rows are being written.
    switch: Option<Switch>,
    /// What it may be about to read.
    reads: HashSet<SegmentId>,
    /// More segments than those are worth it.
    more: bool,
    /// The `z` rows that announce its segments are dated so.
    reserved: u64,
    /// The key epoch when it began: its segments are sealed in this or a later one.
    epoch: u32,
    unused: Vec<SegmentId>,
    bytes: u64,
}

impl Drop for Round {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A point in the life of a mount: when, after which commit, bytes that came free and snapshots that were
/// deleted until then.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    sequence: u64,
    freed: u64,
    deleted: u64,
}

/// The round under way, and when the next is due.
#[derive(Default)]
struct Rounds {
    begun: Option<Mark>,
    /// When it last looked at all segments.
    looked: Option<Mark>,
    /// Bytes of all segments then.
    stored: u64,
    /// The last round left something to do.
    again: bool,
    /// Tiny segments that the last round found not to be worth it.
    left_out: usize,
    not_before: Option<Instant>,
    pause: Duration,
    round: Option<Round>,
}

impl Rounds {
    fn is_due(&mut self, options: &CleanOptions, now: Mark) -> bool {
        let begun = *self.begun.get_or_insert(now);
        if options.dead_bytes_min == 0 || self.not_before.is_some_and(|at| at > now.at) {
            return false;
        }
        let since = self.looked.unwrap_or(begun);
        let commits = now.sequence.saturating_sub(since.sequence);
        let waited = now.at - since.at;
        let much = options.dead_bytes_min.max(self.stored / LOOK_SHARE);
        self.again
            || commits >= LOOK_COMMITS
            || (commits > 0 || now.deleted > since.deleted) && waited >= options.look_every
            || self.looked.is_none() && waited >= options.look_every / 6
            || now.freed.saturating_sub(since.freed) >= much
    }

    fn reads(&self, id: SegmentId) -> bool {
        self.round.as_ref().is_some_and(|round| round.reads.contains(&id))
    }

    /// A round has come to its end, or as far as `carried` says.
    fn note_end(&mut self, round: &Round, carried: Carried) {
        self.left_out = carried.left_out;
        // A round that moved nothing would choose the same again.
        self.again = (round.more || carried.more) && round.bytes > 0;
        self.pause = Duration::ZERO;
    }

    /// Something failed: the round is given up, and the next begins after a while.
    fn give_up(&mut self) {
        self.round = None;
        self.again = true;
        self.pause = (self.pause * 2).clamp(PAUSE, PAUSE_MAX);
        self.not_before = Some(Instant::now() + self.pause);
    }
}

/// Cleans segments.
pub(super) struct Cleaner {
    rows: Arc<RowWriter>,
    rounds: Mutex<Rounds>,
}

impl Cleaner {
    /// With no round yet.
    pub(super) fn new(rows: Arc<RowWriter>) -> Cleaner {
        Cleaner { rows, rounds: Mutex::default() }
    }

    /// Whether a round may be about to read this segment.
    pub(super) fn reads(&self, id: SegmentId) -> bool {
        self.rounds.lock().reads(id)
    }

    /// Ends the round under way: nobody is left to write its rows.
    pub(super) fn give_up(&self) {
        std::mem::take(&mut *self.rounds.lock());
    }

    /// Goes on with a round, or looks whether one is due. Bounded: [`BATCHES_PER_STEP`]. Returns
    /// whether a round has ended: what it emptied is dead. That is so after a failure, too.
    pub(super) async fn clean_some(&self) -> Result<bool, CommitError> {
        let mut rounds = std::mem::take(&mut *self.rounds.lock());
        let outcome = self.step(&mut rounds).await;
        if outcome.is_err() {
            rounds.give_up();
        }
        *self.rounds.lock() = rounds;
        outcome
    }

    async fn step(&self, rounds: &mut Rounds) -> Result<bool, CommitError> {
        let sequence = self.rows.committed.borrow().sequence;
        let freed = self.rows.counts.freed.load(Ordering::Relaxed);
        let deleted = self.rows.view.holders().deleted();
        let now = Mark { at: Instant::now(), sequence, freed, deleted };
        if rounds.round.is_none() && rounds.is_due(&self.rows.options.clean, now) {
            rounds.looked = Some(now);
            rounds.again = false;
            rounds.not_before = None;
            self.begin_round(rounds).await?;
        }
        let Some(round) = &mut rounds.round else { return Ok(false) };
        for _ in 0..BATCHES_PER_STEP {
            if let Some(switch) = &mut round.switch {
                round.bytes += self.switch_some(switch).await?;
                if switch.is_done() {
                    // All that is live of a segment went into one.
                    for id in switch.sources() {
                        round.reads.remove(&id);
                    }
                    round.switch = None;
                }
                continue;
            }
            match round.moved.try_recv() {
                Ok(moved) => {
                    round.unused.retain(|id| *id != moved.id);
                    let switch = self.begin_switch(moved, round.reserved, round.epoch).await?;
                    round.switch = Some(switch);
                }
                Err(TryRecvError::Empty) => return Ok(false),
                Err(TryRecvError::Disconnected) => {
                    let ended = (&mut round.task).await;
                    let carried =
                        ended.unwrap_or_else(|e| Err(CommitError::Internal(e.to_string())));
                    // Not as it is: what the task met may be over, and is no failure of a commit.
                    let carried = carried.map_err(|e| CommitError::Round(e.to_string()))?;
                    self.end_round(round).await?;
                    let round = rounds.round.take().expect("it was there");
                    rounds.note_end(&round, carried);
                    // There may be more to do, by what was committed meanwhile.
                    self.rows.wake.notify_one();
                    return Ok(true);
                }
            }
        }
        self.rows.wake.notify_one();
        Ok(false)
    }

    /// Looks at all segments, and starts a round if it is worth it.
    async fn begin_round(&self, rounds: &mut Rounds) -> Result<(), CommitError> {
        let kv = self.rows.view.kv();
        let held = self.rows.view.holders().held();
        let mut chooser = Chooser::new(self.rows.options.clean, rounds.left_out, held);
        let mut cursor = Cursor::new(kv, b's');
        // What is live of one goes into one: that must not be larger than the store takes.
        let bytes_max = self.rows.segments.upload_max();
        while let Some((key, value)) = cursor.next().await? {
            let (id, row) = accounts::segment_row(&key, &value).map_err(ViewError::from)?;
            if row.live > bytes_max && row.live <= SEGMENT_BYTES_MAX {
                continue;
            }
            chooser.see(id, row);
        }
        let Choice { segments: chosen, more, stored } = chooser.choice();
        rounds.stored = stored;
        if chosen.is_empty() {
            // It may have been deleted since.
            rounds.left_out /= 2;
            return Ok(());
        }
        log::info!("moving what is live out of {}", counted(chosen.len() as u64, "segment"));
        let (reserved, epoch) = (unix_secs() + RESERVED_SECS, self.rows.key_epoch());
        let ids: Vec<_> = (0..OUTPUTS_MAX).map(|_| self.rows.segments.new_id()).collect();
        let mut announced = Changes::default();
        ids.iter().for_each(|id| announced.bury(*id, reserved, DeadRow::UNBORN));
        self.rows.write(announced.into_rows().collect()).await?;
        let reads = chosen.keys().copied().collect();
        let order = Order {
            kv: kv.clone(),
            segments: self.rows.segments.as_ref().clone(),
            chosen,
            ids: ids.clone(),
            reserved,
        };
        let (send, moved) = mpsc::channel(MOVED_QUEUE);
        let wake = self.rows.wake.clone();
        let task = tokio::spawn(async move {
            let carry = carry::carry(order, send, wake.clone());
            let late = |_| CommitError::Round("it took too long".into());
            let outcome = tokio::time::timeout(ROUND_DEADLINE, carry).await.map_err(late);
            wake.notify_one();
            outcome?
        });
        let (unused, switch, bytes) = (ids, None, 0);
        rounds.round =
            Some(Round { task, moved, switch, reads, more, reserved, epoch, unused, bytes });
        Ok(())
    }

    /// Takes back the announcement of what was not uploaded.
    async fn end_round(&self, round: &Round) -> Result<(), CommitError> {
        let mut unused = Changes::default();
        for id in &round.unused {
            unused.rows.insert(keys::dead_segment(round.reserved, *id), None);
        }
        self.rows.write(unused.into_rows().collect()).await?;
        log::info!("moved {} live bytes to new segments", round.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(more: bool, bytes: u64) -> Round {
        let task = tokio::spawn(async { Ok(Carried::default()) });
        let (_, moved) = mpsc::channel(1);
        let (switch, reads, unused) = (None, HashSet::new(), Vec::new());
        Round { task, moved, switch, reads, more, reserved: 0, epoch: 1, unused, bytes }
    }

    #[tokio::test]
    async fn a_round_that_left_something_is_followed_and_none_is_repeated_without_gain() {
        // Guards against a mount that cleans the same crumbs for ever, and against segments behind
        // many others that are never reached.
        let mut rounds = Rounds::default();
        let carried = |more, left_out| Carried { more, left_out };
        rounds.note_end(&round(true, 0), carried(true, 2));
        assert_eq!((rounds.again, rounds.left_out), (false, 2));
        rounds.note_end(&round(true, 1), carried(false, 0));
        assert_eq!((rounds.again, rounds.left_out), (true, 0), "there was more, and it gained");
        rounds.note_end(&round(false, 1), carried(true, 0));
        assert!(rounds.again);
        rounds.note_end(&round(false, 1), Carried::default());
        assert!(!rounds.again);
    }

    #[test]
    fn a_look_is_due_after_commits_time_or_what_came_free() {
        // Guards against an idle mount that reads its rows again and again, and against one that
        // never looks.
        let options = CleanOptions::default();
        let start = Instant::now();
        let at = |secs, sequence, freed| Mark {
            at: start + Duration::from_secs(secs),
            sequence,
            freed,
            deleted: 0,
        };
        let mut rounds = Rounds::default();
        assert!(!rounds.is_due(&options, at(0, 7, 0)) && !rounds.is_due(&options, at(299, 8, 0)));
        assert!(rounds.is_due(&options, at(300, 7, 0)), "what an earlier mount left");
        assert!(rounds.is_due(&options, at(1, 8, 64 << 20)));
        assert!(rounds.is_due(&options, at(1, 7 + 512, 0)));
        (rounds.looked, rounds.stored) = (Some(at(300, 7, 0)), 64 << 30);
        assert!(!rounds.is_due(&options, at(90_000, 7, 0)), "nothing was committed");
        assert!(rounds.is_due(&options, at(2100, 8, 0)));
        assert!(rounds.is_due(&options, Mark { deleted: 1, ..at(2100, 7, 0) }), "a snapshot went");
        assert!(!rounds.is_due(&options, at(301, 8, 64 << 20)), "little of so much");
        assert!(rounds.is_due(&options, at(301, 8, 1 << 30)));
        rounds.not_before = Some(start + Duration::from_secs(400));
        assert!(
            !rounds.is_due(&options, at(301, 8, 1 << 30))
                && rounds.is_due(&options, at(401, 8, 1 << 30))
        );
        let never = CleanOptions { dead_bytes_min: 0, ..options };
        assert!(!rounds.is_due(&never, at(401, 8, 1 << 30)));
    }
}
