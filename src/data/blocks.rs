//! Reading segments through memory: a bounded cache of plaintext blocks, one fetch per range
//! however many ask for it, and the decision how much to fetch at once.
//!
//! Random reads of a large file fetch the blocks they touch. Small files that are read one
//! after the other are spatial locality (they were packed side by side), so the window that a
//! miss fetches grows with every further file that misses in the same segment. What is read in
//! order is prefetched by the caller, who knows where a file goes on, and which one is next.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::base::{Ino, SegmentId, Underway};
use crate::store::error::{ErrorClass, class};
use crate::store::segments::{FRAME, SegmentStore, has_frames};

/// Plaintext bytes of a cached block: four sealed chunks.
pub const BLOCK: u64 = 64 << 10;
/// The most that one GET fetches.
pub const FETCH_BYTES_MAX: u64 = 4 << 20;
const FETCH_BLOCKS: u32 = (FETCH_BYTES_MAX / BLOCK) as u32;
/// A fetch that could not begin for so long has to be planned again: its segment may have been
/// deleted since, which would be taken for damage. Well below the grace of dead segments.
const TURN_MAX: Duration = Duration::from_secs(120);
/// What the first small file of a segment fetches around itself.
const WINDOW_FIRST: u64 = 256 << 10;
/// After so long without a miss, whoever reads a segment's small files begins anew: files that are read now and
/// then are no walk, and would bring megabytes each.
const WINDOW_LASTS: Duration = Duration::from_secs(10);
/// Windows beside one that is waited for share the link with it: only where the fetch before took no
/// longer, which it does on a link of 50 Mbit/s, or 200 ms away.
const BESIDE_QUICK: Duration = Duration::from_millis(200);
/// Segments whose locality is remembered.
const HEAT_SEGMENTS: usize = 1024;

/// Requests under way at once for what is waited for, however small: enough for a queue of random
/// reads of 32 and what else goes on.
const REQUESTS_MAX: usize = 48;

/// Sizes of the block cache.
#[derive(Clone, Copy, Debug)]
pub struct BlockCacheOptions {
    /// Plaintext bytes kept in memory.
    pub bytes_max: usize,
    /// GETs of full size under way at once: bounds the memory that answers take. For each of them,
    /// [`FETCH_BYTES_MAX`] over [`BLOCK`] small ones may be, up to 48 in all.
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
    /// The fetch waited too long for its turn to be begun: what it was planned from may have
    /// changed, plan again.
    pub stale: bool,
}

type BlockKey = (SegmentId, u32);
type Fetch = Underway<Result<Bytes, ReadError>>;

/// A fetch under way: which bytes of the segment it brings, and its result.
#[derive(Clone)]
struct Running {
    start: u64,
    end: u64,
    fetch: Fetch,
    /// Told once somebody waits for it; until then it stands behind what is waited for.
    wanted: Arc<Notify>,
}

/// Removes a fetch from those under way, also where it panics or its runtime ends: its blocks
/// would fail for ever after.
struct EndOfFetch {
    cache: Arc<BlockCache>,
    id: SegmentId,
    run: Range<u32>,
}

impl Drop for EndOfFetch {
    fn drop(&mut self) {
        let mut inner = self.cache.inner.lock();
        for b in self.run.clone() {
            inner.running.remove(&(self.id, b));
        }
    }
}

struct Heat {
    window: u64,
    last: Ino,
    missed: Instant,
    /// Where the segment ends, once something of it has come, and how long the last fetch of it took.
    size: Option<u64>,
    took: Duration,
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
    /// The bytes from `start` on, at most up to `end`, of the run that holds the block of
    /// `start`; that run becomes the most recently used. Empty if the segment ends before.
    fn piece(&mut self, id: SegmentId, start: u64, end: u64) -> Option<Bytes> {
        let run = self.runs.get(self.blocks.get(&(id, (start / BLOCK) as u32))?)?;
        Some(cut(&run.data, run.blocks.start as u64 * BLOCK, start, end))
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
    /// Blocks that may be on their way.
    room: Arc<Semaphore>,
    /// Requests that may be.
    requests: Arc<Semaphore>,
    /// Blocks that are fetched although nobody waits for them yet, a part of `room`: those who read in
    /// order must not hold up who reads now. Not requests: many readers fetch little each.
    ahead: Arc<Semaphore>,
    options: BlockCacheOptions,
    hits: AtomicU64,
    misses: AtomicU64,
}

fn read_error(segment: SegmentId, e: &object_store::Error) -> ReadError {
    ReadError { segment, class: class(e), message: e.to_string().into(), stale: false }
}

fn never_begun(segment: SegmentId) -> ReadError {
    let message = format!("other requests came first for {} s", TURN_MAX.as_secs());
    ReadError { segment, class: ErrorClass::Transport, message: message.into(), stale: true }
}

fn broke_off(segment: SegmentId) -> ReadError {
    let message = "the fetch broke off".into();
    ReadError { segment, class: ErrorClass::Transport, message, stale: false }
}

/// The part of `start..end` that `data` has, which is the bytes of a segment from `base` on.
fn cut(data: &Bytes, base: u64, start: u64, end: u64) -> Bytes {
    let len = data.len() as u64;
    data.slice((start - base).min(len) as usize..(end - base).min(len) as usize)
}

fn ends_before(segment: SegmentId, at: u64) -> ReadError {
    let message = format!("ends before byte {at}").into();
    ReadError { segment, class: ErrorClass::Corrupt, message, stale: false }
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
            room: Arc::new(Semaphore::new(options.fetches_max * FETCH_BLOCKS as usize)),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX.max(options.fetches_max))),
            ahead: Arc::new(Semaphore::new(Self::ahead_max(&options))),
            options,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// Blocks of read-ahead that may be under way: what seven of ten full requests bring.
    fn ahead_max(options: &BlockCacheOptions) -> usize {
        (options.fetches_max * 7 / 10).max(1) * FETCH_BLOCKS as usize
    }

    /// Appends `range` of segment `id` to `out`, without copying, if memory has all of it.
    pub fn read_now(&self, id: SegmentId, range: Range<u64>, out: &mut Vec<Bytes>) -> bool {
        let mut inner = self.inner.lock();
        let (mut at, before) = (range.start, out.len());
        while at < range.end {
            match inner.piece(id, at, range.end) {
                // Empty: the segment is shorter than an extent says; the slow path reports it.
                Some(piece) if !piece.is_empty() => {
                    at += piece.len() as u64;
                    out.push(piece);
                }
                _ => {
                    out.truncate(before);
                    return false;
                }
            }
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The range to fetch for a miss on `range` of `id` by file `ino`, and ranges that are worth
    /// fetching besides; `small`: it is a file that lies whole in the segment, with others beside it.
    fn window(
        inner: &mut Inner,
        id: SegmentId,
        range: &Range<u64>,
        small: Option<Ino>,
    ) -> (Range<u64>, Vec<Range<u64>>) {
        let Some(ino) = small else { return (range.clone(), Vec::new()) };
        let first = || {
            let (missed, took) = (Instant::now(), Duration::ZERO);
            Heat { window: WINDOW_FIRST, last: ino, missed, size: None, took }
        };
        let heat = inner.heat.get_or_insert_mut(id, first);
        if heat.missed.elapsed() >= WINDOW_LASTS {
            *heat = first();
        }
        heat.missed = Instant::now();
        let was = heat.window;
        if heat.last != ino {
            heat.last = ino;
            heat.window = (heat.window * 4).min(FETCH_BYTES_MAX);
        }
        let is_grown = was < FETCH_BYTES_MAX && heat.window == FETCH_BYTES_MAX;
        let start = range.start / heat.window * heat.window;
        let end = (start + heat.window).max(range.end).next_multiple_of(BLOCK);
        if !is_grown || heat.took > BESIDE_QUICK {
            return (start..end, Vec::new());
        }
        // Somebody walks a tree: the directory that he goes to next is as likely before as behind.
        let before = start.saturating_sub(FETCH_BYTES_MAX)..start;
        let behind = end..(end + FETCH_BYTES_MAX).min(heat.size.unwrap_or(end));
        (start..end, vec![before, behind])
    }

    /// Whether three windows at once push nothing out that is about to be read, nor stand before what others
    /// read ahead.
    fn has_room_beside(&self) -> bool {
        self.options.bytes_max as u64 >= 6 * FETCH_BYTES_MAX
            && self.ahead.available_permits() >= 3 * FETCH_BLOCKS as usize
    }

    /// Reads `range` of segment `id`, fetching what is missing, and appends it to `out` without
    /// copying. `small` names the file if it is a small one, whose neighbours are worth fetching
    /// with it.
    ///
    /// # Errors
    /// The fetch failed, or the segment is shorter than `range`. Bounded by the store's own
    /// deadline. `out` may have got some of the bytes.
    pub async fn read(
        self: &Arc<Self>,
        id: SegmentId,
        range: Range<u64>,
        small: Option<Ino>,
        out: &mut Vec<Bytes>,
    ) -> Result<(), ReadError> {
        let before = out.len();
        let sources = {
            let mut inner = self.inner.lock();
            let missing = |inner: &Inner| {
                blocks_of(&range).any(|b| {
                    !inner.blocks.contains_key(&(id, b)) && !inner.running.contains_key(&(id, b))
                })
            };
            if missing(&inner) {
                self.misses.fetch_add(1, Ordering::Relaxed);
                let (window, beside) = Self::window(&mut inner, id, &range, small);
                self.start_fetches(&mut inner, id, window);
                if self.has_room_beside() {
                    beside.into_iter().for_each(|r| self.start_fetches(&mut inner, id, r));
                }
            }
            let mut sources: Vec<(u64, Result<Bytes, Running>)> = Vec::new();
            let mut at = range.start;
            while at < range.end {
                let source = match inner.piece(id, at, range.end) {
                    Some(piece) if piece.is_empty() => return Err(ends_before(id, range.end)),
                    Some(piece) => Ok(piece),
                    None => {
                        let block = (id, (at / BLOCK) as u32);
                        Err(inner.running.get(&block).expect("started above").clone())
                    }
                };
                let end = match &source {
                    Ok(piece) => at + piece.len() as u64,
                    Err(running) => running.end.min(range.end),
                };
                sources.push((at, source));
                at = end;
            }
            sources
        };
        for (at, source) in sources {
            match source {
                Ok(piece) => out.push(piece),
                Err(running) => {
                    running.wanted.notify_one();
                    match running.fetch.wait().await.unwrap_or_else(|| Err(broke_off(id))) {
                        Ok(data) => {
                            let end = running.end.min(range.end);
                            let piece = cut(&data, running.start, at, end);
                            if piece.len() as u64 != end - at {
                                return Err(ends_before(id, range.end));
                            }
                            out.push(piece);
                        }
                        // What was fetched around these bytes may be what is damaged.
                        Err(e) if e.class == ErrorClass::Corrupt => {
                            out.truncate(before);
                            out.push(self.read_alone(id, range).await?);
                            return Ok(());
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads exactly `range`, past the cache: fails only if a chunk of it is damaged.
    async fn read_alone(&self, id: SegmentId, range: Range<u64>) -> Result<Bytes, ReadError> {
        let blocks = blocks_of(&range);
        let _turn = self.turn(blocks.end - blocks.start).await;
        self.segments.get_range(id, range).await.map_err(|e| read_error(id, &e))
    }

    /// Waits until so many blocks may be fetched.
    async fn turn(&self, blocks: u32) -> [OwnedSemaphorePermit; 2] {
        let closed = "the semaphore is never closed";
        let request = self.requests.clone().acquire_owned().await.expect(closed);
        let room = self.room.clone().acquire_many_owned(blocks.min(FETCH_BLOCKS)).await;
        [request, room.expect(closed)]
    }

    /// Starts fetching what is missing of `range`, without waiting.
    pub fn prefetch(self: &Arc<Self>, id: SegmentId, range: Range<u64>) {
        let mut inner = self.inner.lock();
        self.start_fetches(&mut inner, id, range);
    }

    fn start_fetches(self: &Arc<Self>, inner: &mut Inner, id: SegmentId, range: Range<u64>) {
        // A frame is fetched and decompressed whole, whatever is asked of it.
        let range = match has_frames(id) {
            true => range.start / FRAME * FRAME..range.end.next_multiple_of(FRAME),
            false => range,
        };
        let mut run: Option<Range<u32>> = None;
        for b in blocks_of(&range) {
            let have = inner.blocks.contains_key(&(id, b)) || inner.running.contains_key(&(id, b));
            match &mut run {
                Some(r) if !have && r.end - r.start < FETCH_BLOCKS => r.end = b + 1,
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
        let (blocks, count) = (run.clone(), run.end - run.start);
        let (start, end) = (run.start as u64 * BLOCK, run.end as u64 * BLOCK);
        let wanted: Arc<Notify> = Arc::default();
        let hurry = wanted.clone();
        let end_of_fetch = EndOfFetch { cache: self.clone(), id, run: run.clone() };
        let work = async move {
            let EndOfFetch { cache, .. } = &end_of_fetch;
            let turn = async {
                let ahead = tokio::select! {
                    ahead = cache.ahead.clone().acquire_many_owned(count) => Some(ahead),
                    () = hurry.notified() => None,
                };
                (ahead, cache.turn(count).await)
            };
            let turn = timeout(TURN_MAX, turn).await;
            let begun = Instant::now();
            let got = match turn {
                Ok(_turn) => {
                    let got = cache.segments.get_up_to(id, start..end).await;
                    got.map_err(|e| read_error(id, &e))
                }
                Err(_) => Err(never_begun(id)),
            };
            if let Ok((data, size)) = &got {
                let mut inner = cache.inner.lock();
                inner.insert(id, run, data.clone(), cache.options.bytes_max);
                if let Some(heat) = inner.heat.peek_mut(&id) {
                    (heat.size, heat.took) = (Some(*size), begun.elapsed());
                }
            }
            got.map(|(data, _)| data)
        };
        let fetch = Fetch::start(work);
        for b in blocks {
            let (fetch, wanted) = (fetch.clone(), wanted.clone());
            inner.running.insert((id, b), Running { start, end, fetch, wanted });
        }
    }

    /// Reads answered from memory, and fetches that had to be made.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::segments::Owned;
    use object_store::memory::InMemory;
    use object_store::throttle::{ThrottleConfig, ThrottledStore};

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
        let first = |inner: &mut Inner, block: u64| {
            inner.piece(id, block * BLOCK, (block + 1) * BLOCK).map(|piece| piece[0])
        };
        assert_eq!(first(&mut inner, 1), Some(2));
        assert_eq!(first(&mut inner, 0), Some(1));
        inner.insert(id, 8..10, data(2, 3), max);
        // The run of block 1 was used least recently.
        assert_eq!((first(&mut inner, 1), first(&mut inner, 2)), (None, None));
        assert_eq!(first(&mut inner, 0), Some(1));
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
        assert_eq!(inner.piece(id, 5 * BLOCK, 6 * BLOCK).expect("held").len(), 10);
        assert_eq!(inner.piece(id, 4 * BLOCK + 3, 7 * BLOCK).expect("held").len(), 65_536 + 7);
        assert!(inner.piece(id, 6 * BLOCK, 7 * BLOCK).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn small_files_that_are_read_now_and_then_do_not_bring_more_and_more() {
        // Guards against a mount of days where every small file costs megabytes, because others of its
        // segment were read once.
        let segments = Arc::new(SegmentStore::new(Arc::new(InMemory::new())));
        let len = 12 << 20;
        let owned = [Owned { ino: Ino(2), incarnation: 0, offset: 0, len }];
        let id = segments.new_id();
        segments.put(id, vec![vec![3; len as usize].into()], &owned).await.expect("put");
        let cache = BlockCache::new(segments, BlockCacheOptions::default());
        let mut brought = Vec::new();
        for (n, pause) in [(0, 0), (20, 1), (160, 60), (80, 60)] {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let (before, at) = (cache.inner.lock().bytes as u64, n * BLOCK);
            cache.read(id, at..at + 4096, Some(Ino(n + 2)), &mut Vec::new()).await.expect("reads");
            brought.push(cache.inner.lock().bytes as u64 - before);
        }
        assert_eq!(brought, [WINDOW_FIRST, 4 * WINDOW_FIRST, WINDOW_FIRST, WINDOW_FIRST]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_walks_small_files_waits_for_three_fetches_of_their_segment() {
        // Guards against a walk of small directories, in an order that nobody knows, that waits for one
        // window after the other; and against one that asks for what is behind the segment.
        let store = Arc::new(InMemory::new());
        let segments = Arc::new(SegmentStore::new(store));
        let len = (11 << 20) + 5;
        let owned = [Owned { ino: Ino(2), incarnation: 0, offset: 0, len }];
        let id = segments.new_id();
        segments.put(id, vec![vec![3; len as usize].into()], &owned).await.expect("put");
        let cache = BlockCache::new(segments, BlockCacheOptions::default());
        let read = async |n: u64| {
            let at = n * BLOCK;
            cache.read(id, at..at + 5, Some(Ino(n + 2)), &mut Vec::new()).await.expect("reads");
        };
        for n in [0, 20, 100] {
            read(n).await;
        }
        let last = len / BLOCK;
        for n in [10, 40, 63, 64, 127, 128, last - 1, last] {
            read(n).await;
        }
        assert_eq!(cache.hits_and_misses().1, 3);
        let idle = async {
            while !cache.inner.lock().running.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), idle).await.expect("all has come");
        let bytes = cache.inner.lock().bytes as u64;
        assert!((len..len + BLOCK).contains(&bytes), "{bytes}: what there is, once");
    }

    #[tokio::test]
    async fn many_readers_fetch_ahead_at_once_what_one_may_fetch_ahead() {
        // Guards against sixteen readers in order who take turns: each fetches less ahead than a full
        // request, so that requests were used up when little was under way.
        let wait_get_per_call = Duration::from_secs(600);
        let config = ThrottleConfig { wait_get_per_call, ..ThrottleConfig::default() };
        let slow = ThrottledStore::new(InMemory::new(), config);
        let segments = Arc::new(SegmentStore::new(Arc::new(slow)));
        let options = BlockCacheOptions::default();
        let cache = BlockCache::new(segments.clone(), options);
        let (readers, each) = (16, 1536 << 10);
        (0..readers).for_each(|_| cache.prefetch(segments.new_id(), 0..each));
        let all = BlockCache::ahead_max(&options) - readers * (each / BLOCK) as usize;
        let begun = async {
            while cache.ahead.available_permits() != all {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), begun).await.expect("all are under way");
    }

    #[tokio::test]
    async fn who_waits_goes_before_what_is_only_read_ahead() {
        // Guards against a read of a page that stands behind all that others fetch ahead: twenty full
        // requests, of which some must still be under way when it is answered.
        let wait_get_per_call = Duration::from_millis(50);
        let config = ThrottleConfig { wait_get_per_call, ..ThrottleConfig::default() };
        let slow = ThrottledStore::new(InMemory::new(), config);
        let segments = Arc::new(SegmentStore::new(Arc::new(slow)));
        let ids: Vec<_> = (0..6).map(|_| segments.new_id()).collect();
        let len = 4 * FETCH_BYTES_MAX;
        let data = Bytes::from(vec![7; len as usize]);
        let owned = [Owned { ino: Ino(2), incarnation: 0, offset: 0, len }];
        for id in &ids {
            segments.put(*id, vec![data.clone()], &owned).await.expect("put");
        }
        let cache = BlockCache::new(segments, BlockCacheOptions::default());
        for id in &ids[..5] {
            cache.prefetch(*id, 0..4 * FETCH_BYTES_MAX);
        }
        let mut out = Vec::new();
        cache.read(ids[5], 5..4000, None, &mut out).await.expect("reads");
        assert_eq!(out[0].len(), 3995);
        let ahead = cache.inner.lock().running.len();
        assert!(ahead > 0, "it was answered last");
        // And so does who waits for a part of what was to be read ahead.
        let last = 3 * FETCH_BYTES_MAX..3 * FETCH_BYTES_MAX + 1;
        cache.read(ids[4], last, None, &mut out).await.expect("reads");
        assert!(!cache.inner.lock().running.is_empty(), "it was answered last");
    }
}
