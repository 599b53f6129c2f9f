//! Fetched granules on their way to disk: readable at once, written by a separate thread.
//!
//! A reader never waits for the cache's disk. The queue is bounded in bytes; what does not fit
//! is not cached (and counted). What is queued can be read back until it is on disk.

use super::super::rope::Rope;
use super::super::stats::RequestStats;
use super::disk::{Disk, Key};
use super::granule;
use object_store::ObjectMeta;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause between two log lines about a disk that cannot be written.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);
/// For how long a failure to write is worth knowing.
const LATELY: Duration = Duration::from_secs(600);

/// A run of whole granules of one object.
struct Run {
    key: Key,
    meta: Arc<ObjectMeta>,
    granules: Range<u64>,
    body: Rope,
}

#[derive(Default)]
struct Queue {
    /// In the order of arrival; the writer takes the front.
    order: VecDeque<Arc<Run>>,
    by_object: HashMap<Key, Vec<Arc<Run>>>,
    bytes: u64,
    /// The object being written just now; the run is still in `by_object`.
    writing: Option<Key>,
    closed: bool,
}

impl Queue {
    fn forget(&mut self, run: &Arc<Run>) {
        if let Some(runs) = self.by_object.get_mut(&run.key) {
            let before = runs.len();
            runs.retain(|r| !Arc::ptr_eq(r, run));
            if runs.len() < before {
                self.bytes -= run.body.len();
            }
            if runs.is_empty() {
                self.by_object.remove(&run.key);
            }
        }
    }
}

/// The queue; shared by the readers and the writer thread.
pub(super) struct Stage {
    queue: Mutex<Queue>,
    changed: Condvar,
    bytes_max: u64,
    stats: Arc<RequestStats>,
    /// When a write to the disk failed last, and why.
    failed: Mutex<Option<(Instant, String)>>,
}

impl Stage {
    /// Starts the writer. It ends when [`Stage::close`] is called.
    pub(super) fn start(
        disk: Arc<Disk>,
        bytes_max: u64,
        stats: Arc<RequestStats>,
    ) -> io::Result<Arc<Stage>> {
        let queue = Mutex::new(Queue::default());
        let (changed, failed) = (Condvar::new(), Mutex::default());
        let stage = Arc::new(Stage { queue, changed, bytes_max, stats, failed });
        let writer = stage.clone();
        std::thread::Builder::new().name("sealfs-cache".into()).spawn(move || {
            yield_to_readers();
            writer.write_all(&disk)
        })?;
        Ok(stage)
    }

    /// Queues the whole granules within `bytes` of the object, which `body` is.
    pub(super) fn put(&self, key: Key, meta: &Arc<ObjectMeta>, bytes: &Range<u64>, body: &Rope) {
        let granules = granule::within(bytes, meta.size);
        if granules.is_empty() {
            return;
        }
        let whole = granule::bytes(&granules, meta.size);
        let body = body.slice(whole.start - bytes.start..whole.end - bytes.start);
        let mut queue = self.queue.lock();
        if queue.closed || queue.bytes + body.len() > self.bytes_max {
            RequestStats::add(&self.stats.cache_skipped_bytes, body.len());
            return;
        }
        queue.bytes += body.len();
        let run = Arc::new(Run { key, meta: meta.clone(), granules, body });
        queue.by_object.entry(key).or_default().push(run.clone());
        queue.order.push_back(run);
        self.changed.notify_all();
    }

    /// A granule that is queued, with its object's metadata.
    pub(super) fn get(&self, key: &Key, k: u64) -> Option<(Arc<ObjectMeta>, Rope)> {
        let queue = self.queue.lock();
        let run = queue.by_object.get(key)?.iter().find(|run| run.granules.contains(&k))?;
        let at = granule::start(run.granules.start);
        let bytes = granule::bytes(&(k..k + 1), run.meta.size);
        Some((run.meta.clone(), run.body.slice(bytes.start - at..bytes.end - at)))
    }

    /// Drops what is queued of an object. If it is being written just now, waits for that (some
    /// milliseconds), so that the caller can remove it from the disk for good. Blocks.
    pub(super) fn remove(&self, key: &Key) {
        let mut queue = self.queue.lock();
        if let Some(runs) = queue.by_object.remove(key) {
            queue.bytes -= runs.iter().map(|run| run.body.len()).sum::<u64>();
            queue.order.retain(|run| run.key != *key);
        }
        while queue.writing == Some(*key) {
            self.changed.wait_for(&mut queue, COMPLAINT_PAUSE);
        }
    }

    /// Why a write to the disk failed lately, if one did. A full disk has room again for a moment
    /// after each, because old objects are dropped.
    pub(super) fn failed(&self) -> Option<String> {
        let failed = self.failed.lock();
        failed.as_ref().filter(|(at, _)| at.elapsed() < LATELY).map(|(_, why)| why.clone())
    }

    /// Waits until the queue is written, or for `timeout`. Blocks. Returns whether it is.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut queue = self.queue.lock();
        while queue.writing.is_some() || !queue.order.is_empty() {
            if self.changed.wait_until(&mut queue, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Ends the writer after the run it is at; the rest of the queue is dropped.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.order.clear();
        queue.by_object.clear();
        queue.bytes = 0;
        self.changed.notify_all();
    }

    /// The writer thread.
    fn write_all(&self, disk: &Disk) {
        let mut complained: Option<Instant> = None;
        loop {
            let run = {
                let mut queue = self.queue.lock();
                loop {
                    if queue.closed {
                        return;
                    }
                    if let Some(run) = queue.order.pop_front() {
                        queue.writing = Some(run.key);
                        break run;
                    }
                    self.changed.wait(&mut queue);
                }
            };
            let written = disk.write(&run.key, &run.meta, run.granules.start, &run.body);
            if let Err(e) = &written
                && complained.is_none_or(|at| at.elapsed() > COMPLAINT_PAUSE)
            {
                complained = Some(Instant::now());
                log::warn!("cannot write the cache: {e}; reads go on without it");
            }
            if let Err(e) = written {
                *self.failed.lock() = Some((Instant::now(), e.to_string()));
            }
            let mut queue = self.queue.lock();
            queue.writing = None;
            queue.forget(&run);
            self.changed.notify_all();
        }
    }
}

/// Lowers the priority of the calling thread: what it does can be left out, and the readers
/// whose bytes it stores need the processor more. A refusal changes nothing but the speed.
fn yield_to_readers() {
    // SAFETY: takes three numbers; on Linux `0` is the calling thread (setpriority(2)).
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}
