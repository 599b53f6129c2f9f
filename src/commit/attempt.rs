//! What one commit consists of.
//!
//! One generation at a time: pack its bytes into segments, upload them in parallel, then write
//! one metadata batch with all rows, the segment accounting and the new committed position.
//! Only when that batch is durable does the position advance, the journal space come free and
//! the generation leave the view. So metadata never names a segment that is not in the bucket,
//! and replay is exactly-once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use super::accounts::{self, Changes, Moment, NewSegment};
use super::committer::{CommitError, Committer, Sending, unix_secs};
use super::pack::{Plan, SegmentPlan};
use super::pending::Generation;
use super::resolve;
use super::view::{ViewError, last_commit};
use super::work::Work;
use crate::journal::{Journal, JournalError};
use crate::meta::{CommitRow, HistoryRow, Stats, keys};
use crate::store::error::{ErrorClass, class};
use crate::store::kv::KvError;
use crate::store::segments::{Layout, SegmentStore};

/// A row to write; without a value, to delete.
type RowChange = (Bytes, Option<Bytes>);

/// Segments that are uploaded at once.
const UPLOADS_MAX: usize = 3;
/// How often a commit that waits looks whether level 0 is what it waits for.
const COMPACT_LOOK: Duration = Duration::from_millis(500);

impl Committer {
    /// Commits the oldest generation, or says why not: the next try goes on where this ended.
    pub(super) async fn commit(&self, generation: &Arc<Generation>) -> Result<(), CommitError> {
        let held = self.work.lock().take();
        let mut work = match held {
            Some(work) if Arc::ptr_eq(&work.generation, generation) => work,
            _ => {
                let (bytes_max, epoch) = (self.segments.upload_max(), self.key_epoch());
                Work::new(generation.clone(), bytes_max, epoch, || self.segments.new_id())
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
        self.view.retire(generation, stats, work.inodes.as_deref(), &work.plan);
        self.journal.release(row.position);
        if !generation.dropped.is_empty() || work.has_abandoned() {
            self.reclaim.lock().wake();
        }
        self.clean_counts.freed.fetch_add(work.freed, Ordering::Relaxed);
        self.committed.send_replace(row);
        Ok(())
    }

    async fn try_commit(&self, work: &mut Work) -> Result<(CommitRow, Stats), CommitError> {
        self.upload(work).await?;
        let (rows, row, stats) = match self.landed(&work.generation).await? {
            // An earlier try got as far as the memtable or the bucket: writing the position
            // again makes all of it durable. Applying it twice would count extents twice.
            Some((row, stats)) => (vec![(commit_key(), Some(row.encode()))], row, stats),
            None => {
                let (rows, row, stats) = self.rows(work).await?;
                (rows, row, stats)
            }
        };
        self.write_rows(rows).await?;
        Ok((row, stats))
    }

    /// Writes rows as one atomic batch; returns when the bucket has it.
    ///
    /// # Errors
    /// As [`crate::store::kv::Kv::commit`]: the batch may be there all the same.
    pub(super) async fn write_rows(&self, rows: Vec<RowChange>) -> Result<(), KvError> {
        let commit = self.view.kv().commit(rows);
        tokio::pin!(commit);
        loop {
            tokio::select! {
                done = &mut commit => return done,
                // It may wait for room in level 0, which only a compaction makes.
                _ = tokio::time::sleep(COMPACT_LOOK) => self.compact_if_needed(),
            }
        }
    }

    /// The commit of `generation` if the metadata store has it already.
    async fn landed(
        &self,
        generation: &Generation,
    ) -> Result<Option<(CommitRow, Stats)>, CommitError> {
        let kv = self.view.kv();
        let Some(row) = last_commit(kv).await? else { return Ok(None) };
        if row.journal != self.journal.id() || row.position < generation.last {
            return Ok(None);
        }
        let Some(stats) = kv.get(&keys::stats()).await? else { return Ok(None) };
        Ok(Some((row, Stats::decode(&stats).map_err(ViewError::from)?)))
    }

    /// Uploads what the bucket lacks. Where the store takes nothing so large, the generation is cut
    /// into smaller segments at once; where it refuses for good, what is sent next is a byte.
    async fn upload(&self, work: &mut Work) -> Result<(), CommitError> {
        if let Some(id) = work.to_try_out() {
            self.segments.put_least(id).await.map_err(|e| CommitError::Upload(id, e))?;
            work.tried_out();
            // If that fails, it is deleted like what was given up.
            if let Err(e) = self.segments.delete(id).await {
                log::debug!("segment {id}, which was tried out, stays for now: {e}");
            }
        }
        loop {
            let (id, refusal) = match self.upload_missing(work).await {
                Err(CommitError::Upload(id, e)) => (id, e),
                outcome => return outcome,
            };
            let now = self.segments.upload_max();
            match class(&refusal) {
                // Whoever found out that this is the limit: a round of cleaning, perhaps.
                ErrorClass::TooLarge if now < work.largest() => {
                    work.pack_again(now, || self.segments.new_id());
                }
                ErrorClass::Throttled | ErrorClass::Transport | ErrorClass::AlreadyExists => {
                    return Err(CommitError::Upload(id, refusal));
                }
                _ => {
                    work.try_out_next(|| self.segments.new_id());
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
                let one = upload_one(self.journal.clone(), self.segments.clone(), plan);
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
                    work.abandon(&todo[..started], || self.segments.new_id());
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
        let (generation, plan): (&Generation, &Plan) = (&work.generation, &work.plan);
        let mut changes = Changes::default();
        for (ino, touched) in resolve::touched(generation, plan) {
            resolve::apply_inode(&self.view, &mut changes, ino, &touched).await?;
        }
        plan.shares.iter().for_each(|&(id, file)| changes.share(id, file));
        let before = *self.committed.borrow();
        let sequence = before.sequence + 1;
        let chain = self.history.next(before.chain, sequence, &self.options.instance);
        let row = CommitRow {
            journal: self.journal.id(),
            position: generation.last,
            sequence,
            chain,
            time_secs: unix_secs(),
            writer_epoch: self.view.kv().writer_epoch(),
        };
        let new: HashMap<_, _> = work.landed().map(|(id, l)| (id, NewSegment::of(l))).collect();
        let now = Moment::of_commit(row.sequence, work.epoch, unix_secs());
        work.freed = accounts::settle_segments(&self.view, &mut changes, &new, now).await?;
        work.bury_abandoned(&mut changes, now.secs);
        let inodes = changes.rows.iter().filter(|(key, _)| key.starts_with(b"i"));
        let inodes = inodes.filter_map(|(key, row)| Some((key.clone(), row.clone()?)));
        work.inodes = Some(inodes.collect());
        let mut stats = self.view.committed_stats();
        stats.inodes = stats.inodes.saturating_add_signed(generation.inodes);
        stats.bytes = stats.bytes.saturating_add_signed(generation.bytes);
        let mut rows: Vec<RowChange> =
            Vec::with_capacity(generation.rows.len() + changes.rows.len() + 6);
        // Those that become other rows than they were pending are written once.
        let as_pending = generation.rows.iter().filter(|(key, _)| !changes.rows.contains_key(*key));
        for (key, pending) in as_pending {
            rows.push((Bytes::copy_from_slice(key), pending.value.clone()));
        }
        rows.extend(changes.into_rows());
        rows.push((commit_key(), Some(row.encode())));
        let beside = (self.gates.beside)().encode();
        rows.push((Bytes::from(keys::beside().into_vec()), Some(beside)));
        let history = |number| Bytes::from(keys::history(number).into_vec());
        rows.push((history(sequence), Some(HistoryRow(chain).encode())));
        rows.extend(HistoryRow::leaves(sequence).map(|old| (history(old), None)));
        let writer = Bytes::copy_from_slice(&self.options.instance);
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
    store.put(id, vec![data.into()], &ranges).await.map_err(|e| CommitError::Upload(id, e))
}

/// Reads the plaintext of a segment from the journal. Blocks on the local disk.
fn read_items(journal: &Journal, plan: &SegmentPlan) -> Result<Vec<u8>, JournalError> {
    let mut data = Vec::with_capacity(plan.len as usize);
    for item in &plan.items {
        journal.read_into(item.record, item.skip..item.skip + item.len, &mut data)?;
    }
    assert_eq!(data.len() as u64, plan.len, "a segment is what was planned");
    Ok(data)
}
