//! Reading contents: one plan over pending records and committed extents, answered from memory
//! where possible, with prefetch for reads in order.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use super::{Fs, FsError, Half, Step};
use crate::base::{Buffer, ContentsId, Ino};
use crate::commit::Lookup;
use crate::data::{FETCH_BYTES_MAX, Part, Source};
use crate::journal::JournalError;
use crate::meta::{Inode, Kind};

/// A file up to this size lies whole in one segment more often than not, beside others.
pub(super) const SMALL_FILE: u64 = 1 << 20;
/// What is fetched ahead of a reader that reads in order: at first, and at most. The most is what a link of
/// 500 MiB/s with 20 ms brings in the time of three round trips: what has come counts until it is read.
const AHEAD_FIRST: u64 = 1 << 20;
const AHEAD_MAX: u64 = 28 << 20;
/// What is fetched ahead of several readers together: half of what the cache of blocks holds, or one would
/// push out what another is about to read.
const AHEAD_ALL: u64 = 24 << 20;
/// A reader who has not read for this many reads of large files by others has stopped.
const STOPPED_AFTER: u64 = 1024;
/// Requests of one sequential reader arrive out of order by at most this much.
const REORDER: u64 = 4 << 20;
/// Files whose reading position is remembered.
const STREAMS: usize = 256;
/// A plan may go stale (its record was committed and released) while it is carried out; it is
/// made again. Each time takes a whole commit, so few suffice, unless the machine is so busy that
/// commits, or what a follower hears of, overtake every try: for so long it goes on all the same.
const PLANS_MAX: usize = 64;
const PLANS_TIME: Duration = Duration::from_secs(30);
const PLANS_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Stream {
    /// Highest end of a read so far.
    next: u64,
    /// How far ahead to fetch.
    window: u64,
    /// Fetched up to here.
    ahead: u64,
    /// Its last read, among those of all.
    read: u64,
}

#[derive(Debug)]
struct StreamsOf {
    files: LruCache<Ino, Stream>,
    /// Reads so far.
    reads: u64,
}

impl StreamsOf {
    /// What may be fetched ahead of each of those who are reading in order.
    fn share(&self) -> u64 {
        let reads = |s: &&Stream| s.window > 0 && self.reads - s.read < STOPPED_AFTER;
        let readers = self.files.iter().map(|(_, s)| s).filter(reads).count() as u64;
        match readers {
            0 | 1 => AHEAD_MAX,
            _ => (AHEAD_ALL / readers).max(AHEAD_FIRST),
        }
    }
}

/// Where files are being read in order.
pub(super) struct Streams(Mutex<StreamsOf>);

impl Default for Streams {
    fn default() -> Self {
        let files = LruCache::new(NonZeroUsize::new(STREAMS).expect("not zero"));
        Streams(Mutex::new(StreamsOf { files, reads: 0 }))
    }
}

impl Streams {
    /// Notes a read of `start..end` of a file of `size` bytes; returns what to fetch ahead.
    fn note(&self, ino: Ino, start: u64, end: u64, size: u64) -> Option<(u64, u64)> {
        let mut streams = self.0.lock();
        let StreamsOf { files, reads } = &mut *streams;
        *reads += 1;
        let stream = match files.get_mut(&ino) {
            Some(s) if start <= s.next + REORDER && start + REORDER >= s.next => s,
            _ => {
                // The first read, or a jump: sequential only if it starts the file.
                let window = if start == 0 { AHEAD_FIRST } else { 0 };
                files.put(ino, Stream { next: end, window, ahead: end, read: 0 });
                files.get_mut(&ino).expect("just put")
            }
        };
        stream.read = *reads;
        if end > stream.next {
            let in_order = start <= stream.next + REORDER;
            stream.next = end;
            if in_order {
                stream.window = (stream.window.max(AHEAD_FIRST / 2) * 2).min(AHEAD_MAX);
            }
        }
        // Asked before all are counted.
        let most = (stream.ahead.max(end), (stream.next + stream.window).min(size));
        if is_little(most, stream.window, size) {
            return None;
        }
        let share = streams.share();
        let stream = streams.files.get_mut(&ino).expect("just noted");
        let window = stream.window.min(share);
        let (from, to) = (stream.ahead.max(end), (stream.next + window).min(size));
        let to = whole_requests(from, to, size);
        if is_little((from, to), window, size) {
            return None;
        }
        stream.ahead = to;
        Some((from, to))
    }
}

/// Whether it is not worth a request: fetching ahead goes in pieces of at least a quarter window, or a
/// request that is as large as it may be. To wait for two of those would leave the link idle meanwhile.
fn is_little((from, to): (u64, u64), window: u64, size: u64) -> bool {
    to <= from || (to - from < (window / 4).min(FETCH_BYTES_MAX) && to < size)
}

/// Where to end instead of at `to`, so that all requests are as large as they may be, where a file was
/// written in order: each costs as much processor time as decrypting a megabyte.
fn whole_requests(from: u64, to: u64, size: u64) -> u64 {
    let whole = to / FETCH_BYTES_MAX * FETCH_BYTES_MAX;
    if to < size && whole > from { whole } else { to }
}

enum Plan {
    Done(Bytes),
    Parts(Inode, u64, Vec<Part>),
    Row(crate::meta::Key),
    Extents(ContentsId, u64, u64),
    /// What it was made from has changed.
    Again,
}

impl Fs {
    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// [`FsError::IsDir`], [`FsError::Io`] if what holds the bytes is damaged or cannot be
    /// reached within the store's deadline.
    pub fn read(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        len: u32,
    ) -> impl Future<Output = Result<Bytes, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            let begun = Instant::now();
            for tries in 0.. {
                if tries >= PLANS_MAX {
                    if begun.elapsed() > PLANS_TIME {
                        break;
                    }
                    tokio::time::sleep(PLANS_PAUSE).await;
                }
                let turn = fs.role.turn();
                match fs.plan(ino, offset, len)? {
                    Plan::Done(bytes) => return Ok(bytes),
                    Plan::Row(key) => {
                        fs.view.load(&key).await?;
                    }
                    Plan::Extents(file, start, end) => {
                        fs.view.load_extents(file, start, end).await?;
                    }
                    Plan::Again => continue,
                    Plan::Parts(inode, end, parts) => {
                        fs.read_ahead(ino, &inode, offset, end, true);
                        match fs.gather(ino, &inode, &parts, turn).await? {
                            Some(bytes) => return Ok(bytes),
                            None => continue,
                        }
                    }
                }
            }
            Err(FsError::Io(format!("reading inode {ino}: its data kept moving")))
        }
    }

    /// [`Fs::read`] if memory and the journal can answer it.
    pub fn read_now(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        len: u32,
    ) -> Option<Result<Bytes, FsError>> {
        self.read_here(ino, offset, len, true)
    }

    /// [`Fs::read_now`] if memory alone can answer it: neither the disk nor decryption.
    pub fn read_in_memory(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        len: u32,
    ) -> Option<Result<Bytes, FsError>> {
        self.read_here(ino, offset, len, false)
    }

    fn read_here(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        len: u32,
        journal: bool,
    ) -> Option<Result<Bytes, FsError>> {
        let turn = self.role.turn();
        let (inode, end, parts) = match self.plan(ino, offset, len) {
            Ok(Plan::Done(bytes)) => return Some(Ok(bytes)),
            Ok(Plan::Parts(inode, end, parts)) => (inode, end, parts),
            Ok(Plan::Row(_) | Plan::Extents(..) | Plan::Again) => return None,
            Err(e) => return Some(Err(e)),
        };
        let mut out = Vec::new();
        for part in &parts {
            match part.source {
                Source::Segment { id, offset } => {
                    let range = offset..offset + (part.end - part.start);
                    if !self.blocks.read_now(id, range, &mut out) {
                        return None;
                    }
                }
                Source::Record { .. } if !journal => return None,
                _ => match self.local_part(part, turn) {
                    Ok(Some(bytes)) => out.push(bytes),
                    Ok(None) => return None,
                    Err(e) => return Some(Err(e)),
                },
            }
        }
        self.read_ahead(ino, &inode, offset, end, false);
        Some(Ok(joined(out)))
    }

    fn plan(&self, ino: Ino, offset: u64, len: u32) -> Result<Plan, FsError> {
        let inode = match self.inode(ino) {
            Ok(inode) => inode,
            Err(Step::Row(key)) => return Ok(Plan::Row(key)),
            Err(Step::Fail(e)) => return Err(e),
            Err(Step::Full | Step::Quota(_) | Step::Held | Step::Extents(_) | Step::Range(..)) => {
                unreachable!("reads change nothing")
            }
        };
        match inode.kind {
            Kind::File => {}
            Kind::Dir => return Err(FsError::IsDir),
            _ => return Err(FsError::Invalid),
        }
        let end = inode.size.min(offset.saturating_add(len as u64));
        if offset >= end {
            return Ok(Plan::Done(Bytes::new()));
        }
        let file = inode.contents(ino);
        let parts = self.view.parts_now(file, offset, end);
        match self.inode(ino) {
            Ok(now) if now.incarnation == inode.incarnation => {}
            // Truncated to nothing in between: holes found then are neither old nor new, and what was
            // not found need not be in the bucket either.
            _ => return Ok(Plan::Again),
        }
        Ok(match parts {
            Lookup::Hit(parts) => Plan::Parts(inode, end, parts),
            Lookup::Miss if inode.size <= SMALL_FILE => Plan::Extents(file, 0, inode.size),
            Lookup::Miss => Plan::Extents(file, offset, end),
        })
    }

    /// A hole or a piece of the journal; `Ok(None)`: the record is gone, plan again. `turn`: the
    /// count of halves before the plan was made.
    fn local_part(&self, part: &Part, turn: u64) -> Result<Option<Bytes>, FsError> {
        let len = (part.end - part.start) as usize;
        match part.source {
            Source::Hole => Ok(Some(vec![0; len].into())),
            Source::Record { record, skip } => {
                let Some(Half { journal, .. }) = self.role.half() else { return Ok(None) };
                if self.role.turn() != turn {
                    return Ok(None); // another journal's, perhaps
                }
                let mut out = Buffer::of(len);
                match journal.read_to(record, skip..skip + len as u32, &mut out) {
                    Ok(()) => Ok(Some(out.freeze())),
                    Err(JournalError::Released(_)) => Ok(None),
                    Err(e) => Err(e.into()),
                }
            }
            Source::Segment { .. } => unreachable!("segments are the caller's"),
        }
    }

    /// Carries a plan out; `None`: it has gone stale.
    async fn gather(
        self: &Arc<Self>,
        ino: Ino,
        inode: &Inode,
        parts: &[Part],
        turn: u64,
    ) -> Result<Option<Bytes>, FsError> {
        let small = (inode.size <= SMALL_FILE).then_some(ino);
        // Start every fetch before waiting for the first.
        if parts.len() > 1 && small.is_none() {
            for part in parts {
                if let Source::Segment { id, offset } = part.source {
                    self.blocks.prefetch(id, offset..offset + (part.end - part.start));
                }
            }
        }
        let mut out = Vec::new();
        for part in parts {
            match part.source {
                Source::Segment { id, offset } => {
                    let range = offset..offset + (part.end - part.start);
                    match self.blocks.read(id, range, small, &mut out).await {
                        Err(e) if e.stale => return Ok(None),
                        outcome => outcome?,
                    }
                }
                _ => match self.local_part(part, turn)? {
                    Some(bytes) => out.push(bytes),
                    None => return Ok(None),
                },
            }
        }
        Ok(Some(joined(out)))
    }

    /// Starts fetching what a reader in order will want next. `missed`: memory does not have what he
    /// reads.
    fn read_ahead(self: &Arc<Self>, ino: Ino, inode: &Inode, start: u64, end: u64, missed: bool) {
        if inode.size <= SMALL_FILE {
            self.read_in_order(ino, missed);
            return;
        }
        let Some((from, to)) = self.streams.note(ino, start, end, inode.size) else { return };
        let fs = self.clone();
        let file = inode.contents(ino);
        let fetch = move |parts: &[Part]| {
            for part in parts {
                if let Source::Segment { id, offset } = part.source {
                    fs.blocks.prefetch(id, offset..offset + (part.end - part.start));
                }
            }
        };
        match self.view.parts_now(file, from, to) {
            Lookup::Hit(parts) => fetch(&parts),
            Lookup::Miss => {
                let view = self.view.clone();
                tokio::spawn(async move {
                    if view.load_extents(file, start, to).await.is_ok()
                        && let Lookup::Hit(parts) = view.parts_now(file, from, to)
                    {
                        fetch(&parts);
                    }
                });
            }
        }
    }
}

/// The pieces one after the other; copies only if there are several.
fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    match pieces.len() {
        1 => pieces.remove(0),
        _ => pieces.concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_order_fetch_ahead_with_a_growing_window_and_jumps_do_not() {
        // Guards against random 4 KiB reads of a large file fetching megabytes each.
        let streams = Streams::default();
        let size = 1 << 30;
        let (mut at, mut fetched) = (0, 0);
        for _ in 0..64 {
            if let Some((from, to)) = streams.note(Ino(1), at, at + (128 << 10), size) {
                assert!(from >= fetched && to > from);
                fetched = to;
            }
            at += 128 << 10;
        }
        assert!(fetched >= at + (16 << 20), "the window has grown: {fetched} after {at}");
        let streams = Streams::default();
        for k in [500u64, 20, 900, 333] {
            let at = k << 20;
            assert_eq!(streams.note(Ino(1), at, at + 4096, size), None);
        }
    }

    #[test]
    fn readers_in_order_share_what_may_be_fetched_ahead() {
        // Guards against readers of different files who push each other's next bytes out of memory
        // before they are read.
        let streams = Streams::default();
        let (size, step) = (1 << 30, 128 << 10);
        let mut ahead = [0; 8];
        for n in 0..400 {
            let at = n * step;
            for (k, ahead) in ahead.iter_mut().enumerate() {
                if let Some((_, to)) = streams.note(Ino(k as u64 + 2), at, at + step, size) {
                    *ahead = to - at;
                }
            }
        }
        let all: u64 = ahead.iter().sum();
        assert!(ahead.iter().all(|ahead| *ahead >= 2 << 20), "{ahead:?}");
        assert!(all <= AHEAD_ALL + 8 * step, "{ahead:?}");
        // Those who have stopped leave their share.
        let mut alone = 0;
        for n in 400..2000 {
            let at = n * step;
            if let Some((_, to)) = streams.note(Ino(2), at, at + step, size) {
                alone = to - at;
            }
        }
        assert!(alone > 16 << 20, "{alone}");
    }
}
