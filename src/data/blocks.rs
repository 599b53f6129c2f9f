//! Reading segments through memory: a bounded cache of plaintext blocks, one fetch per range
//! however many ask for it, and the decision how much to fetch at once.
//!
//! Random reads of a large file fetch the blocks they touch. Small files that are read one
//! after the other are spatial locality (they were packed side by side), so the window that a
//! miss fetches grows with every further file that misses in the same segment. Reads of a
//! large file in order are prefetched by the caller, who knows where the file goes on.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::base::{Ino, SegmentId};
use crate::store::error::{ErrorClass, class};
use crate::store::segments::SegmentStore;

/// Plaintext bytes of a cached block: four sealed chunks.
pub const BLOCK: u64 = 64 << 10;
/// The most that one GET fetches.
pub const FETCH_BYTES_MAX: u64 = 4 << 20;
/// What the first small file of a segment fetches around itself.
const WINDOW_FIRST: u64 = 256 << 10;
/// Segments whose locality is remembered.
const HEAT_SEGMENTS: usize = 1024;

/// Sizes of the block cache.
#[derive(Clone, Copy, Debug)]
pub struct BlockCacheOptions {
    /// Plaintext bytes kept in memory.
    pub bytes_max: usize,
    /// GETs under way at once.
    pub fetches_max: usize,
}

impl Default for BlockCacheOptions {
    fn default() -> Self {
        BlockCacheOptions { bytes_max: 48 << 20, fetches_max: 10 }
    }
}

/// Why bytes of a segment cannot be had. One failed fetch fails all who waited for it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("segment {segment}: {message}")]
pub struct ReadError {
    /// The segment.
    pub segment: SegmentId,
    /// What kind of failure.
    pub class: ErrorClass,
    /// For people.
    pub message: Arc<str>,
}

type BlockKey = (SegmentId, u32);
type Fetch = Shared<BoxFuture<'static, Result<Bytes, ReadError>>>;

/// A fetch under way: the first byte it brings, and its result.
#[derive(Clone)]
struct Running {
    start: u64,
    fetch: Fetch,
}

struct Heat {
    window: u64,
    last: Ino,
}

/// A cached fetch: evicted as a whole, because its blocks are slices of one allocation.
struct Run {
    id: SegmentId,
    blocks: Range<u32>,
    data: Bytes,
}

struct Inner {
    runs: LruCache<u64, Run>,
    /// Which run holds a block, by the run's number.
    blocks: HashMap<BlockKey, u64>,
    next_run: u64,
    bytes: usize,
    running: HashMap<BlockKey, Running>,
    heat: LruCache<SegmentId, Heat>,
}

impl Inner {
    /// A block, as a slice of its run, which becomes the most recently used. The last block
    /// of a segment may be short.
    fn block(&mut self, key: BlockKey) -> Option<Bytes> {
        let run = self.runs.get(self.blocks.get(&key)?)?;
        let from = ((key.1 - run.blocks.start) as usize * BLOCK as usize).min(run.data.len());
        let to = run.data.len().min(from + BLOCK as usize);
        Some(run.data.slice(from..to))
    }

    /// Keeps `data`, which is `blocks` of segment `id`, and evicts what is over `bytes_max`.
    fn insert(&mut self, id: SegmentId, blocks: Range<u32>, data: Bytes, bytes_max: usize) {
        let held = (data.len() as u64).div_ceil(BLOCK) as u32;
        let blocks = blocks.start..blocks.end.min(blocks.start + held);
        if blocks.is_empty() {
            return;
        }
        let number = self.next_run;
        self.next_run += 1;
        self.bytes += data.len();
        for b in blocks.clone() {
            self.blocks.insert((id, b), number);
        }
        self.runs.put(number, Run { data, blocks, id });
        while self.bytes > bytes_max {
            let Some((old, run)) = self.runs.pop_lru() else { break };
            self.bytes -= run.data.len();
            for b in run.blocks {
                if self.blocks.get(&(run.id, b)) == Some(&old) {
                    self.blocks.remove(&(run.id, b));
                }
            }
        }
    }
}

/// The plaintext block cache of one mount.
pub struct BlockCache {
    segments: Arc<SegmentStore>,
    inner: Mutex<Inner>,
    fetches: Arc<Semaphore>,
    options: BlockCacheOptions,
    hits: AtomicU64,
    misses: AtomicU64,
}

fn read_error(segment: SegmentId, e: &object_store::Error) -> ReadError {
    ReadError { segment, class: class(e), message: e.to_string().into() }
}

fn blocks_of(range: &Range<u64>) -> Range<u32> {
    (range.start / BLOCK) as u32..range.end.div_ceil(BLOCK) as u32
}

impl BlockCache {
    /// An empty cache over `segments`.
    pub fn new(segments: Arc<SegmentStore>, options: BlockCacheOptions) -> Arc<BlockCache> {
        Arc::new(BlockCache {
            segments,
            inner: Mutex::new(Inner {
                runs: LruCache::unbounded(),
                blocks: HashMap::new(),
                next_run: 0,
                bytes: 0,
                running: HashMap::new(),
                heat: LruCache::new(NonZeroUsize::new(HEAT_SEGMENTS).expect("not zero")),
            }),
            fetches: Arc::new(Semaphore::new(options.fetches_max)),
            options,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// Appends `range` of segment `id` to `out` if memory has all of it.
    pub fn read_now(&self, id: SegmentId, range: Range<u64>, out: &mut Vec<u8>) -> bool {
        let mut inner = self.inner.lock();
        let blocks = blocks_of(&range);
        if !blocks.clone().all(|b| inner.blocks.contains_key(&(id, b))) {
            return false;
        }
        let before = out.len();
        for b in blocks {
            let block = inner.block((id, b)).expect("looked up under the same lock");
            let base = b as u64 * BLOCK;
            let from = range.start.saturating_sub(base) as usize;
            let to = (range.end - base).min(BLOCK) as usize;
            match block.get(from..to) {
                Some(piece) => out.extend_from_slice(piece),
                None => {
                    // The segment is shorter than an extent says: the slow path reports it.
                    out.truncate(before);
                    return false;
                }
            }
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The range to fetch for a miss on `range` of `id` by file `ino`; `small`: it is a file
    /// that lies whole in the segment, with others beside it.
    fn window(
        inner: &mut Inner,
        id: SegmentId,
        range: &Range<u64>,
        small: Option<Ino>,
    ) -> Range<u64> {
        let Some(ino) = small else { return range.clone() };
        let window = match inner.heat.get_mut(&id) {
            Some(heat) if heat.last != ino => {
                heat.last = ino;
                heat.window = (heat.window * 2).min(FETCH_BYTES_MAX);
                heat.window
            }
            Some(heat) => heat.window,
            None => {
                inner.heat.put(id, Heat { window: WINDOW_FIRST, last: ino });
                WINDOW_FIRST
            }
        };
        let start = range.start / window * window;
        start..(start + window).max(range.end)
    }

    /// Reads `range` of segment `id`, fetching what is missing, and appends it to `out`. `small` names the file
    /// if it is a small one, whose neighbours are worth fetching with it.
    ///
    /// # Errors
    /// The fetch failed, or the segment is shorter than `range`. Bounded by the store's own
    /// deadline.
    pub async fn read(
        self: &Arc<Self>,
        id: SegmentId,
        range: Range<u64>,
        small: Option<Ino>,
    ) -> Result<Bytes, ReadError> {
        let waits = {
            let mut inner = self.inner.lock();
            let missing = |inner: &Inner| {
                blocks_of(&range).any(|b| {
                    !inner.blocks.contains_key(&(id, b)) && !inner.running.contains_key(&(id, b))
                })
            };
            if missing(&inner) {
                self.misses.fetch_add(1, Ordering::Relaxed);
                let window = Self::window(&mut inner, id, &range, small);
                self.start_fetches(&mut inner, id, window);
            }
            let mut waits: Vec<(u64, Result<Bytes, Running>)> = Vec::new();
            for b in blocks_of(&range) {
                let base = b as u64 * BLOCK;
                match inner.block((id, b)) {
                    Some(block) => waits.push((base, Ok(block))),
                    None => {
                        let running = inner.running.get(&(id, b)).expect("started above").clone();
                        waits.push((base, Err(running)));
                    }
                }
            }
            waits
        };
        let mut out = Vec::with_capacity((range.end - range.start) as usize);
        for (base, wait) in waits {
            let (start, data) = match wait {
                Ok(block) => (base, block),
                Err(running) => match running.fetch.await {
                    Ok(data) => (running.start, data),
                    // What was fetched around these bytes may be what is damaged.
                    Err(e) if e.class == ErrorClass::Corrupt => {
                        return self.read_alone(id, range).await;
                    }
                    Err(e) => return Err(e),
                },
            };
            let from = range.start.max(base) - start;
            let to = range.end.min(base + BLOCK) - start;
            match data.get(from as usize..to as usize) {
                Some(piece) if range.end - range.start == piece.len() as u64 => {
                    return Ok(data.slice(from as usize..to as usize));
                }
                Some(piece) => out.extend_from_slice(piece),
                None => {
                    let message = format!("ends before byte {}", range.end).into();
                    let class = ErrorClass::Corrupt;
                    return Err(ReadError { segment: id, class, message });
                }
            }
        }
        Ok(out.into())
    }

    /// Reads exactly `range`, past the cache: fails only if a chunk of it is damaged.
    async fn read_alone(&self, id: SegmentId, range: Range<u64>) -> Result<Bytes, ReadError> {
        let permit = self.fetches.acquire().await;
        let _permit = permit.expect("the semaphore is never closed");
        self.segments.get_range(id, range).await.map_err(|e| read_error(id, &e))
    }

    /// Starts fetching what is missing of `range`, without waiting.
    pub fn prefetch(self: &Arc<Self>, id: SegmentId, range: Range<u64>) {
        let mut inner = self.inner.lock();
        self.start_fetches(&mut inner, id, range);
    }

    fn start_fetches(self: &Arc<Self>, inner: &mut Inner, id: SegmentId, range: Range<u64>) {
        let blocks_max = (FETCH_BYTES_MAX / BLOCK) as u32;
        let mut run: Option<Range<u32>> = None;
        for b in blocks_of(&range) {
            let have = inner.blocks.contains_key(&(id, b)) || inner.running.contains_key(&(id, b));
            match &mut run {
                Some(r) if !have && r.end - r.start < blocks_max => r.end = b + 1,
                _ => {
                    if let Some(r) = run.take() {
                        self.start_fetch(inner, id, r);
                    }
                    run = (!have).then_some(b..b + 1);
                }
            }
        }
        if let Some(r) = run {
            self.start_fetch(inner, id, r);
        }
    }

    fn start_fetch(self: &Arc<Self>, inner: &mut Inner, id: SegmentId, run: Range<u32>) {
        let cache = self.clone();
        let blocks = run.clone();
        let start = run.start as u64 * BLOCK;
        let work = async move {
            let permit = cache.fetches.clone().acquire_owned().await;
            let _permit = permit.expect("the semaphore is never closed");
            let got = cache.segments.get_up_to(id, start..run.end as u64 * BLOCK).await;
            let mut inner = cache.inner.lock();
            for b in run.clone() {
                inner.running.remove(&(id, b));
            }
            match got {
                Ok(data) => {
                    inner.insert(id, run, data.clone(), cache.options.bytes_max);
                    Ok(data)
                }
                Err(e) => Err(read_error(id, &e)),
            }
        };
        let fetch: Fetch = work.boxed().shared();
        for b in blocks {
            inner.running.insert((id, b), Running { start, fetch: fetch.clone() });
        }
        tokio::spawn(fetch);
    }

    /// Reads answered from memory, and fetches that had to be made.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Inner {
        let heat = LruCache::new(NonZeroUsize::new(4).expect("not zero"));
        Inner {
            runs: LruCache::unbounded(),
            blocks: HashMap::new(),
            next_run: 0,
            bytes: 0,
            running: HashMap::new(),
            heat,
        }
    }

    #[test]
    fn eviction_of_a_run_leaves_blocks_that_a_later_run_brought_again() {
        // Guards against a block index that names a run which is gone, or bytes that are
        // counted and never freed: two overlapping fetches, then a third that evicts the first.
        let id = SegmentId([1; 16]);
        let data = |blocks: u64, fill: u8| Bytes::from(vec![fill; (blocks * BLOCK) as usize]);
        let max = 5 * BLOCK as usize;
        let mut inner = empty();
        inner.insert(id, 0..2, data(2, 1), max);
        inner.insert(id, 1..3, data(2, 2), max);
        assert_eq!(inner.block((id, 1)).expect("held")[0], 2);
        assert_eq!(inner.block((id, 0)).expect("held")[0], 1);
        inner.insert(id, 8..10, data(2, 3), max);
        // The run of block 1 was used least recently.
        assert!(inner.block((id, 1)).is_none() && inner.block((id, 2)).is_none());
        assert_eq!(inner.block((id, 0)).expect("held")[0], 1);
        assert_eq!(inner.bytes, 4 * BLOCK as usize);
        inner.insert(id, 20..40, data(20, 4), max);
        assert!(inner.runs.is_empty() && inner.blocks.is_empty() && inner.bytes == 0);
    }

    #[test]
    fn the_last_block_of_a_segment_may_be_short_and_none_follows_it() {
        // Guards against a fetch past the end of a segment inventing blocks.
        let id = SegmentId([1; 16]);
        let mut inner = empty();
        let data = Bytes::from(vec![7; BLOCK as usize + 10]);
        inner.insert(id, 4..8, data, 1 << 30);
        assert_eq!(inner.block((id, 5)).expect("held").len(), 10);
        assert!(inner.block((id, 6)).is_none());
    }
}
