//! What one commit consists of.
//!
//! One group at a time: pack its bytes into segments, upload them in parallel, then write
//! one metadata batch with all rows, the segment accounting and the new committed position.
//! Only when that batch is durable does the position advance, the journal space come free and
//! the group leave the view. So metadata never names a segment that is not in the bucket,
//! and replay is exactly-once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;

use super::accounts::{self, Changes, Moment, NewSegment};
use super::error::CommitError;
use super::pack::{Plan, SegmentPlan};
use super::pending::CommitGroup;
use super::resolve;
use super::view::{ViewError, last_commit};
use super::work::{Sending, Work};
use super::writer::{RowChange, RowWriter};
use crate::base::{Buffer, unix_secs};
use crate::journal::{Journal, JournalError};
use crate::meta::{CommitRow, HistoryRow, Stats, keys};
use crate::seal::HistoryKey;
use crate::store::error::{ErrorClass, class};
use crate::store::segments::{Layout, SegmentStore};

/// Segments that are uploaded at once.
const UPLOADS_MAX: usize = 3;

/// Tries to commit, and keeps what a failed try has achieved.
pub(super) struct Attempts {
    rows: Arc<RowWriter>,
    journal: Arc<Journal>,
    history: HistoryKey,
    uploaded: AtomicU64,
    sending: Mutex<Sending>,
    /// The group whose commit failed, and what of it the bucket has.
    work: Mutex<Option<Work>>,
}

impl Attempts {
    /// None yet.
    pub(super) fn new(
        rows: Arc<RowWriter>,
        journal: Arc<Journal>,
        history: HistoryKey,
    ) -> Attempts {
        let (uploaded, sending) = (AtomicU64::new(0), Mutex::default());
        Attempts { rows, journal, history, uploaded, sending, work: Mutex::new(None) }
    }

    /// Of the commit under way, and file bytes uploaded since the mount.
    pub(super) fn progress(&self) -> (Sending, u64) {
        (*self.sending.lock(), self.uploaded.load(Ordering::Relaxed))
    }

    /// Commits the oldest group, or says why not: the next try goes on where this ended.
    /// Returns whether there is something to reclaim now.
    pub(super) async fn commit(&self, group: &Arc<CommitGroup>) -> Result<bool, CommitError> {
        let held = self.work.lock().take();
        let mut work = match held {
            Some(work) if Arc::ptr_eq(&work.group, group) => work,
            _ => {
                let (bytes_max, epoch) = (self.rows.segments.upload_max(), self.rows.key_epoch());
                Work::new(group.clone(), bytes_max, epoch, || self.rows.segments.new_id())
            }
        };
        *self.sending.lock() = work.sending();
        let (row, stats) = match self.try_commit(&mut work).await {
            Ok(done) => done,
            Err(e) => {
                *self.work.lock() = Some(work);
                return Err(e);
            }
        };
        *self.sending.lock() = Sending::default();
        self.rows.view.retire(group, stats, work.inodes.as_deref(), &work.plan);
        self.journal.release(row.position);
        self.rows.counts.freed.fetch_add(work.freed, Ordering::Relaxed);
        self.rows.committed.send_replace(row);
        Ok(!group.dropped.is_empty() || work.has_abandoned())
    }

    async fn try_commit(&self, work: &mut Work) -> Result<(CommitRow, Stats), CommitError> {
        self.upload(work).await?;
        let (rows, row, stats) = match self.landed(&work.group).await? {
            // An earlier try got as far as the memtable or the bucket: writing the position
            // again makes all of it durable. Applying it twice would count extents twice.
            Some((row, stats)) => (vec![(commit_key(), Some(row.encode()))], row, stats),
            None => {
                let (rows, row, stats) = self.rows(work).await?;
                (rows, row, stats)
            }
        };
        self.rows.write(rows).await?;
        Ok((row, stats))
    }

    /// The commit of `group` if the metadata store has it already.
    async fn landed(&self, group: &CommitGroup) -> Result<Option<(CommitRow, Stats)>, CommitError> {
        let kv = self.rows.view.kv();
        let Some(row) = last_commit(kv).await? else { return Ok(None) };
        if row.journal != self.journal.id() || row.position < group.last {
            return Ok(None);
        }
        let Some(stats) = kv.get(&keys::stats()).await? else { return Ok(None) };
        Ok(Some((row, Stats::decode(&stats).map_err(ViewError::from)?)))
    }

    /// Uploads what the bucket lacks. Where the store takes nothing so large, the group is cut
    /// into smaller segments at once; where it refuses for good, what is sent next is a byte.
    async fn upload(&self, work: &mut Work) -> Result<(), CommitError> {
        if let Some(id) = work.to_try_out() {
            self.rows.segments.put_least(id).await.map_err(|e| CommitError::Upload(id, e))?;
            work.tried_out();
            // If that fails, it is deleted like what was given up.
            if let Err(e) = self.rows.segments.delete(id).await {
                log::debug!("segment {id}, which was tried out, stays for now: {e}");
            }
        }
        loop {
            let (id, refusal) = match self.upload_missing(work).await {
                Err(CommitError::Upload(id, e)) => (id, e),
                outcome => return outcome,
            };
            let now = self.rows.segments.upload_max();
            match class(&refusal) {
                // Whoever found out that this is the limit: a round of cleaning, perhaps.
                ErrorClass::TooLarge if now < work.largest() => {
                    work.pack_again(now, || self.rows.segments.new_id());
                }
                ErrorClass::Throttled | ErrorClass::Transport | ErrorClass::AlreadyExists => {
                    return Err(CommitError::Upload(id, refusal));
                }
                _ => {
                    work.try_out_next(|| self.rows.segments.new_id());
                    return Err(CommitError::Upload(id, refusal));
                }
            }
        }
    }

    async fn upload_missing(&self, work: &mut Work) -> Result<(), CommitError> {
        let todo = work.missing();
        let uploads: Vec<_> = todo
            .iter()
            .map(|&at| {
                let plan = work.plan.segments[at].clone();
                let one = upload_one(self.journal.clone(), self.rows.segments.clone(), plan);
                async move { (at, one.await) }
            })
            .collect();
        let mut running = futures::stream::iter(uploads).buffer_unordered(UPLOADS_MAX);
        let mut done = 0;
        while let Some((at, outcome)) = running.next().await {
            match outcome {
                Ok(layout) => {
                    let bytes = layout.data_len;
                    work.has(at, layout);
                    done += 1;
                    self.uploaded.fetch_add(bytes, Ordering::Relaxed);
                    self.sending.lock().landed += bytes;
                }
                Err(e) => {
                    drop(running);
                    // These may or may not be in the bucket, whole and rightly encrypted.
                    let started = (done + UPLOADS_MAX).min(todo.len());
                    work.abandon(&todo[..started], || self.rows.segments.new_id());
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// The rows of a commit.
    async fn rows(
        &self,
        work: &mut Work,
    ) -> Result<(Vec<RowChange>, CommitRow, Stats), CommitError> {
        let (group, plan): (&CommitGroup, &Plan) = (&work.group, &work.plan);
        let mut changes = Changes::default();
        for (ino, touched) in resolve::touched(group, plan) {
            resolve::apply_inode(&self.rows.view, &mut changes, ino, &touched).await?;
        }
        plan.shares.iter().for_each(|&(id, file)| changes.share(id, file));
        let before = *self.rows.committed.borrow();
        let sequence = before.sequence + 1;
        let chain = self.history.next(before.chain, sequence, &self.rows.options.instance);
        let row = CommitRow {
            journal: self.journal.id(),
            position: group.last,
            sequence,
            chain,
            time_secs: unix_secs(),
            writer_epoch: self.rows.view.kv().writer_epoch(),
        };
        let new: HashMap<_, _> = work.landed().map(|(id, l)| (id, NewSegment::of(l))).collect();
        let now = Moment::of_commit(row.sequence, work.epoch, unix_secs());
        work.freed = accounts::settle_segments(&self.rows.view, &mut changes, &new, now).await?;
        work.bury_abandoned(&mut changes, now.secs);
        let inodes = changes.rows.iter().filter(|(key, _)| key.starts_with(b"i"));
        let inodes = inodes.filter_map(|(key, row)| Some((key.clone(), row.clone()?)));
        work.inodes = Some(inodes.collect());
        let mut stats = self.rows.view.committed_stats();
        stats.inodes = stats.inodes.saturating_add_signed(group.inodes);
        stats.bytes = stats.bytes.saturating_add_signed(group.bytes);
        let mut rows: Vec<RowChange> =
            Vec::with_capacity(group.rows.len() + changes.rows.len() + 6);
        // Those that become other rows than they were pending are written once.
        let as_pending = group.rows.iter().filter(|(key, _)| !changes.rows.contains_key(*key));
        for (key, pending) in as_pending {
            rows.push((Bytes::copy_from_slice(key), pending.value.clone()));
        }
        rows.extend(changes.into_rows());
        rows.push((commit_key(), Some(row.encode())));
        let beside = (self.rows.gates.beside)().encode();
        rows.push((Bytes::from(keys::beside().into_vec()), Some(beside)));
        let history = |number| Bytes::from(keys::history(number).into_vec());
        rows.push((history(sequence), Some(HistoryRow(chain).encode())));
        rows.extend(HistoryRow::leaves(sequence).map(|old| (history(old), None)));
        let writer = Bytes::copy_from_slice(&self.rows.options.instance);
        rows.push((Bytes::from(keys::writer().into_vec()), Some(writer)));
        rows.push((Bytes::from(keys::stats().into_vec()), Some(stats.encode())));
        Ok((rows, row, stats))
    }
}

fn commit_key() -> Bytes {
    Bytes::from(keys::commit().into_vec())
}

/// Uploads one segment; returns how it is laid out.
async fn upload_one(
    journal: Arc<Journal>,
    store: Arc<SegmentStore>,
    plan: SegmentPlan,
) -> Result<Arc<Layout>, CommitError> {
    let id = plan.id;
    let read = tokio::task::spawn_blocking(move || {
        let data = read_items(&journal, &plan)?;
        Ok::<_, JournalError>((data, plan.ranges))
    });
    let (data, ranges) = read.await.map_err(|e| CommitError::Internal(e.to_string()))??;
    store.put(id, vec![data], &ranges).await.map_err(|e| CommitError::Upload(id, e))
}

/// Reads the plaintext of a segment from the journal. Blocks on the local disk.
fn read_items(journal: &Journal, plan: &SegmentPlan) -> Result<Bytes, JournalError> {
    let mut data = Buffer::of(plan.len as usize);
    let mut rest = &mut data[..];
    for item in &plan.items {
        let (now, later) = rest.split_at_mut(item.len as usize);
        journal.read_to(item.record, item.skip..item.skip + item.len, now)?;
        rest = later;
    }
    assert!(rest.is_empty(), "a segment is what was planned");
    Ok(data.freeze())
}
