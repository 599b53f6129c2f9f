//! Compaction of the metadata database and the collection of what it leaves, on demand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use slatedb::Db;
use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, GarbageCollectorDirectoryOptions,
    GarbageCollectorOptions,
};

use super::{Kv, KvError, L0_MAX, bounded};
use crate::store::kv_store::MEMTABLE_BYTES;
use crate::store::names::META_PREFIX;

/// Level-0 tables at which a compaction is started.
const L0_COMPACT_AT: usize = L0_MAX / 2;
/// The same where all of them together are no larger than one may be: each mount that changes something
/// leaves one, and the next reads the end of each. SlateDB compacts no fewer (`min_compaction_sources`).
const L0_COMPACT_SMALL_AT: usize = 4;
/// How long stopping a compactor may take.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long stopping it may take once the database is to be closed.
const STOP_CLOSING: Duration = Duration::from_secs(1);
/// How long a compaction may run before its task is stopped and tried again later.
const COMPACTION_DEADLINE: Duration = Duration::from_secs(900);

fn is_due(db: &Db) -> bool {
    let manifest = db.manifest();
    let l0 = manifest.l0();
    let bytes: u64 = l0.iter().map(|table| table.estimate_size()).sum();
    l0.len() >= L0_COMPACT_AT || l0.len() >= L0_COMPACT_SMALL_AT && bytes <= MEMTABLE_BYTES as u64
}

impl Kv {
    /// Starts a compaction in the background when level 0 has grown; unless `collect` is false
    /// it first collects what earlier ones made superfluous. Returns at once. At most one runs at a time.
    pub fn compact_if_needed(self: &Arc<Self>, collect: bool) {
        let Ok(db) = self.writer() else { return };
        if *self.closing.borrow() || !is_due(&db) {
            return;
        }
        if self.compacting.send_replace(true) {
            return;
        }
        let kv = self.clone();
        tokio::spawn(async move {
            if let Err(e) = kv.compact(&db, collect).await {
                log::warn!("compaction of metadata stopped, will be tried again: {e}");
            }
            kv.compacting.send_replace(false);
        });
    }

    async fn compact(&self, db: &Arc<Db>, collect: bool) -> Result<(), KvError> {
        let tick = Duration::from_millis(250);
        // Before, not after: what the last compaction left is no follower's any more.
        let due = |at: &Instant| at.elapsed() >= self.options.collect_age;
        if collect && self.collected.lock().as_ref().is_none_or(due) {
            let collecting = bounded(COMPACTION_DEADLINE, self.collect_garbage());
            // Credentials that may not delete must not stop compaction, and with it commits.
            match self.until_closing(collecting, Duration::ZERO).await {
                Some(Ok(())) => {}
                Some(Err(e)) => log::warn!("old metadata were not collected: {e}"),
                None => return Ok(()),
            }
            *self.collected.lock() = Some(Instant::now());
        }
        let options = CompactorOptions {
            poll_interval: tick,
            commit_compacted_interval: tick,
            max_concurrent_compactions: 1,
            // What it has read is kept for as long as everything else that nothing refers to.
            checkpoint_lifetime: self.options.collect_age,
            worker: Some(CompactionWorkerOptions {
                max_concurrent_compactions: 1,
                compactions_poll_interval: tick,
                max_sst_size: self.store().limit().table_bytes(),
                max_fetch_tasks: 2,
                bytes_to_fetch: 512 << 10,
                max_subcompactions: 1,
                min_filter_keys: 256,
                ..CompactionWorkerOptions::default()
            }),
            ..CompactorOptions::default()
        };
        // Between its listing and its read the writer may go on: it reads an older manifest then, and
        // cannot put one. What it puts, the writer holds against what it knows.
        let store = Arc::new(self.store().aside());
        let compactor = slatedb::CompactorBuilder::new(META_PREFIX, store)
            .with_options(options)
            .with_sst_block_size(slatedb::SstBlockSize::Block8Kib)
            .build();
        let compactor = Arc::new(compactor);
        let runner = compactor.clone();
        let running = tokio::spawn(async move { runner.run().await });
        let deadline = tokio::time::Instant::now() + COMPACTION_DEADLINE;
        let mut watched = Ok(());
        while tokio::time::Instant::now() < deadline && !running.is_finished() {
            let look = async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                db.refresh_manifest().await
            };
            match self.until_closing(look, Duration::ZERO).await {
                Some(looked) => watched = looked,
                None => break,
            }
            if watched.is_err() || db.manifest().l0().len() < L0_COMPACT_SMALL_AT {
                break;
            }
        }
        // Whatever happened: a compactor left running would poll until the process ends.
        let abort = running.abort_handle();
        let stop = tokio::time::timeout(STOP_DEADLINE, compactor.stop());
        let stopped = self.until_closing(stop, STOP_CLOSING).await;
        let end = tokio::time::timeout(STOP_DEADLINE, running);
        let ended = self.until_closing(end, STOP_CLOSING).await;
        abort.abort();
        if *self.closing.borrow() {
            return Ok(()); // stopped half-way on purpose: the next mount begins again
        }
        watched?;
        if let Some(Ok(stopped)) = stopped {
            stopped?;
        }
        match ended {
            Some(Ok(Ok(result))) => result?,
            Some(Ok(Err(join))) => return Err(KvError::Closed(join.to_string())),
            _ => return Err(KvError::Unavailable("the compactor did not stop".into())),
        }
        Ok(())
    }

    /// The result of `work`; `None` if it is not done `grace` after the database is to be closed.
    async fn until_closing<T>(&self, work: impl Future<Output = T>, grace: Duration) -> Option<T> {
        let mut closing = self.closing.subscribe();
        let closed = async {
            // The sender is part of `self`: it cannot be gone.
            let _ = closing.wait_for(|closing| *closing).await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            done = work => Some(done),
            () = closed => None,
        }
    }

    /// Ends a compaction that runs, after `grace`, and lets no other begin. Takes at most that and
    /// three times [`STOP_CLOSING`].
    pub(super) async fn stop_compacting(&self, grace: Duration) {
        let mut compacting = self.compacting.subscribe();
        let short = compacting.wait_for(|compacting| !*compacting);
        let _ = tokio::time::timeout(grace, short).await; // the rest is stopped
        self.closing.send_replace(true);
        let stopped = compacting.wait_for(|compacting| !*compacting);
        if tokio::time::timeout(STOP_CLOSING * 3, stopped).await.is_err() {
            log::debug!("a compaction of metadata did not stop in time");
        }
    }

    /// Deletes objects of the database that nothing refers to and that are older than
    /// [`Kv::collect_age`].
    pub async fn collect_garbage(&self) -> Result<(), KvError> {
        self.writer()?;
        let directory = Some(GarbageCollectorDirectoryOptions {
            min_age: self.options.collect_age,
            ..Default::default()
        });
        let options = GarbageCollectorOptions {
            manifest_options: directory,
            wal_options: directory,
            wal_fence_options: directory,
            compacted_options: directory,
            compactions_options: directory,
            ..GarbageCollectorOptions::default()
        };
        let store = Arc::new(self.store().aside());
        let admin = slatedb::admin::Admin::builder(META_PREFIX, store).build();
        Ok(admin.run_gc_once(options).await?)
    }
}
