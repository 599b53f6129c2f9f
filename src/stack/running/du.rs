//! How much a tree takes: as its files have it, as the bucket stores it, by directory, age and snapshot.
//!
//! A walk over the metadata; no contents are read. Hard links count once, where they are met first, and
//! so do bytes that files share. Memory does not grow with the tree but for these two, up to a bound, after
//! which the report says that it counted some twice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::pins::PinPath;
use super::status::OpenVolume;
use crate::base::{Ino, SegmentId, unix_secs};
use crate::commit::snapshots::{snapshots, what_they_hold};
use crate::data::Source;
use crate::fs::below::{Below, Found, Parts, Step, is_shared};
use crate::fs::{Fs, FsError};
use crate::meta::{Kind, keys};
use crate::store::segments::Layout;

/// Directories that are listed at most: those that take the most.
const DIRS_MAX: usize = 10_000;
/// Files with several names, and shared ranges, that are remembered: some tens of MiB.
const LINKS_MAX: usize = 1 << 20;
const RANGES_MAX: usize = 1 << 19;
/// Segments of which it is remembered how they store and who uses them.
const SEGMENTS_MAX: usize = 1 << 12;
/// The bounds of ages, in days; the last class has none.
const AGES_DAYS: [u64; 6] = [1, 7, 30, 90, 365, 1095];

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuAsk {
    /// From the root of the volume on; below `.snapshots/NAME` of that snapshot.
    pub path: PinPath,
    /// Directories so many levels below are listed.
    pub depth: u32,
    /// Also by snapshot.
    pub snapshots: bool,
}

/// What a tree, or a part of it, takes. Field names are an interface (`--json`): added, never renamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuSum {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Links, devices and the like.
    pub others: u64,
    /// Sizes of the files, holes included.
    pub apparent_bytes: u64,
    /// Their bytes that the bucket has, what files share once.
    pub bucket_bytes: u64,
    /// What those take in it, after compression.
    pub stored_bytes: u64,
    /// Bytes that only the local journal has.
    pub journal_bytes: u64,
}

impl DuSum {
    fn add(&mut self, other: &DuSum) {
        self.files += other.files;
        self.dirs += other.dirs;
        self.others += other.others;
        self.apparent_bytes += other.apparent_bytes;
        self.bucket_bytes += other.bucket_bytes;
        self.stored_bytes += other.stored_bytes;
        self.journal_bytes += other.journal_bytes;
    }
}

/// A directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuDir {
    /// Below what was asked for; empty for that itself.
    pub path: String,
    /// All of it.
    #[serde(flatten)]
    pub sum: DuSum,
}

/// Files by how long ago they were changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuAge {
    /// Changed less than so many days ago, and not in an earlier class; `None`: longer ago.
    pub below_days: Option<u64>,
    /// What they take.
    #[serde(flatten)]
    pub sum: DuSum,
}

/// The same tree in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuSnapshot {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub made_unix_secs: u64,
    /// What the tree takes in it; nothing if it is not there.
    #[serde(flatten)]
    pub sum: DuSum,
    /// What of that lies in objects that the volume has no use for any more, as stored.
    pub only_snapshots_bytes: u64,
    /// Bytes of the bucket that come free when this snapshot alone is deleted, wherever they belong.
    pub alone_bytes: u64,
}

/// What a tree takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuReport {
    /// All of it.
    pub total: DuSum,
    /// Directories, what takes most first.
    pub dirs: Vec<DuDir>,
    /// Directories that are not listed because there are too many.
    pub more_dirs: u64,
    /// By age.
    pub ages: Vec<DuAge>,
    /// By snapshot, if that was asked for, the oldest first.
    pub snapshots: Option<Vec<DuSnapshot>>,
    /// What of the tree only snapshots hold, each byte once, as stored.
    pub only_snapshots_bytes: Option<u64>,
    /// So much is shared, or has several names, that some of it was counted twice.
    pub is_too_much: bool,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct DuProgress {
    /// Names that were met.
    pub met: AtomicU64,
    /// How many there are in all; 0 if that is not known.
    pub of: AtomicU64,
}

/// Ranges of segments that were counted.
#[derive(Default)]
struct Ranges {
    by_segment: HashMap<SegmentId, Vec<(u64, u64)>>,
    count: usize,
    is_full: bool,
}

impl Ranges {
    /// Bytes of `from..to` that were not counted before.
    fn add(&mut self, id: SegmentId, from: u64, to: u64) -> u64 {
        if self.count >= RANGES_MAX {
            self.is_full = true;
            return to - from;
        }
        let ranges = self.by_segment.entry(id).or_default();
        // Those that touch `from..to`, which become one with it.
        let first = ranges.partition_point(|range| range.1 < from);
        let last = ranges.partition_point(|range| range.0 <= to);
        let touching = &ranges[first..last];
        let met = |range: &(u64, u64)| range.1.min(to).saturating_sub(range.0.max(from));
        let known: u64 = touching.iter().map(met).sum();
        let start = touching.first().map_or(from, |range| range.0.min(from));
        let end = touching.last().map_or(to, |range| range.1.max(to));
        self.count += 1;
        self.count -= last - first;
        ranges.splice(first..last, [(start, end)]);
        to - from - known
    }
}

/// What is known of a segment.
#[derive(Clone)]
struct Seen {
    /// `None` of one that is damaged, which counts as what it holds: fsck says more.
    layout: Option<Arc<Layout>>,
    /// Files share something of it.
    is_shared: bool,
    /// Only snapshots have a use for it.
    is_past: bool,
}

impl Seen {
    /// What `bytes` of these data of it take: their part of the frames that they lie in.
    fn stored_of(&self, data: Range<u64>, bytes: u64) -> u64 {
        let Some(layout) = &self.layout else { return bytes };
        let stored = layout.stored(data);
        let whole = layout.data_within(stored.clone());
        let part = u128::from(bytes) * u128::from(stored.end - stored.start);
        let whole = u128::from((whole.end - whole.start).max(1));
        u64::try_from(part.div_ceil(whole)).unwrap_or(u64::MAX)
    }
}

/// A walk that adds up.
struct Du<'a> {
    volume: &'a OpenVolume,
    progress: &'a DuProgress,
    segments: LruCache<SegmentId, Seen>,
    links: HashSet<Ino>,
    shared: Ranges,
    is_too_much: bool,
}

/// A tree that was walked.
#[derive(Default)]
struct Walked {
    total: DuSum,
    ages: [DuSum; AGES_DAYS.len() + 1],
    /// The smallest first; of those that take the same, what lies deeper.
    dirs: BinaryHeap<Reverse<(u64, Reverse<String>, SumKey)>>,
    more_dirs: u64,
    past_bytes: u64,
}

/// A sum that is carried through a heap, which orders by what is before it.
#[derive(Default)]
struct SumKey(DuSum);

impl PartialEq for SumKey {
    fn eq(&self, _: &SumKey) -> bool {
        true
    }
}
impl Eq for SumKey {}
impl PartialOrd for SumKey {
    fn partial_cmp(&self, other: &SumKey) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for SumKey {
    fn cmp(&self, _: &SumKey) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// The class of a file that was changed then.
fn age_class(mtime_secs: i64, now_secs: u64) -> usize {
    let secs = i128::from(now_secs) - i128::from(mtime_secs);
    let is_below = |days: &u64| secs < i128::from(*days) * 24 * 3600;
    AGES_DAYS.iter().position(is_below).unwrap_or(AGES_DAYS.len())
}

impl OpenVolume {
    /// Adds up what a tree takes.
    ///
    /// # Errors
    /// [`FsError`]; [`FsError::NotFound`] if nothing is there.
    pub(crate) async fn du(&self, ask: DuAsk, progress: &DuProgress) -> Result<DuReport, FsError> {
        let mut du = Du {
            volume: self,
            progress,
            segments: LruCache::new(NonZeroUsize::new(SEGMENTS_MAX).expect("not zero")),
            links: HashSet::new(),
            shared: Ranges::default(),
            is_too_much: false,
        };
        let (fs, path) = match &ask.path[..] {
            [first, name, rest @ ..] if first == b".snapshots" => {
                let name = String::from_utf8_lossy(name).into_owned();
                let fs = self.tree.snapshot(&name).await?.ok_or(FsError::NotFound)?;
                (fs, rest.to_vec())
            }
            path => (self.fs.clone(), path.to_vec()),
        };
        let below = Below::path(&fs, &path).await?;
        let past =
            if ask.snapshots { snapshots(&self.view.kv().clone()).await? } else { Vec::new() };
        if path.is_empty() {
            let of = self.view.stats().inodes + past.iter().map(|one| one.row.files).sum::<u64>();
            progress.of.store(of, Ordering::Relaxed);
        }
        let walked = du.walk(&fs, below, ask.depth, &mut None).await?;
        let mut report = report_of(walked);
        if ask.snapshots {
            let (held, _) = what_they_hold(self.view.kv(), &past).await?;
            let (mut all, mut found) = (Some(Ranges::default()), Vec::new());
            let mut only = 0;
            for (one, held) in past.iter().zip(held) {
                let name = one.name.to_string();
                let Some(fs) = self.tree.snapshot(&name).await? else { continue };
                du.start_over();
                let walked = match Below::path(&fs, &path).await {
                    Ok(below) => du.walk(&fs, below, 0, &mut all).await?,
                    Err(FsError::NotFound | FsError::NotDir) => (Walked::default(), 0),
                    Err(e) => return Err(e),
                };
                only += walked.1;
                found.push(DuSnapshot {
                    name,
                    made_unix_secs: one.row.time_secs,
                    sum: walked.0.total,
                    only_snapshots_bytes: walked.0.past_bytes,
                    alone_bytes: held.alone,
                });
            }
            du.is_too_much |= all.is_some_and(|all| all.is_full);
            report.snapshots = Some(found);
            report.only_snapshots_bytes = Some(only);
        }
        report.is_too_much = du.is_too_much || du.shared.is_full;
        Ok(report)
    }
}

fn report_of((walked, _): (Walked, u64)) -> DuReport {
    let dirs = walked.dirs.into_sorted_vec().into_iter();
    let dirs = dirs.map(|Reverse((_, Reverse(path), sum))| DuDir { path, sum: sum.0 }).collect();
    let bounds = AGES_DAYS.into_iter().map(Some).chain([None]);
    let ages = bounds.zip(walked.ages).map(|(below_days, sum)| DuAge { below_days, sum });
    DuReport {
        total: walked.total,
        dirs,
        more_dirs: walked.more_dirs,
        ages: ages.collect(),
        ..DuReport::default()
    }
}

impl Du<'_> {
    /// Another tree: what was met in the last one counts in this again.
    fn start_over(&mut self) {
        self.links.clear();
        self.segments.clear();
        self.is_too_much |= self.shared.is_full;
        self.shared = Ranges::default();
    }

    /// Walks a tree. With `all`, also returns what of it only snapshots hold and is not in `all` yet.
    async fn walk(
        &mut self,
        fs: &Arc<Fs>,
        mut below: Below,
        depth: u32,
        all: &mut Option<Ranges>,
    ) -> Result<(Walked, u64), FsError> {
        let (mut walked, mut fresh) = (Walked::default(), 0);
        let (mut open, now): (Vec<(Vec<u8>, DuSum)>, u64) = (Vec::new(), unix_secs());
        while let Some(step) = below.next().await? {
            let sum = match step {
                Step::Enter(found) => {
                    open.push((found.name, DuSum { dirs: 1, ..DuSum::default() }));
                    self.progress.met.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Step::Leave => {
                    let sum = open.last().map(|(_, sum)| *sum).unwrap_or_default();
                    if open.len() as u64 <= u64::from(depth) + 1 {
                        walked.list(&open, sum);
                    }
                    open.pop();
                    sum
                }
                Step::Leaf(found) => {
                    self.progress.met.fetch_add(1, Ordering::Relaxed);
                    let (sum, past, new) = self.leaf(fs, &found, all).await?;
                    walked.past_bytes += past;
                    fresh += new;
                    walked.ages[age_class(found.inode.mtime.secs, now)].add(&sum);
                    sum
                }
            };
            match open.last_mut() {
                Some((_, above)) => above.add(&sum),
                None => walked.total.add(&sum),
            }
        }
        Ok((walked, fresh))
    }

    async fn leaf(
        &mut self,
        fs: &Arc<Fs>,
        found: &Found,
        all: &mut Option<Ranges>,
    ) -> Result<(DuSum, u64, u64), FsError> {
        let (mut sum, mut past, mut fresh) = (DuSum::default(), 0, 0);
        if found.inode.nlink > 1 {
            if self.links.len() >= LINKS_MAX {
                self.is_too_much = true;
            } else if !self.links.insert(found.ino) {
                return Ok((sum, 0, 0)); // met by another name
            }
        }
        if found.inode.kind != Kind::File {
            sum.others = 1;
            return Ok((sum, 0, 0));
        }
        (sum.files, sum.apparent_bytes) = (1, found.inode.size);
        let mut parts = Parts::of(fs, found.ino, &found.inode);
        while let Some(window) = parts.next().await? {
            for part in window {
                let bytes = part.end - part.start;
                let (id, offset) = match part.source {
                    Source::Hole => continue,
                    Source::Record { .. } => {
                        sum.journal_bytes += bytes;
                        continue;
                    }
                    Source::Segment { id, offset } => (id, offset),
                };
                let seen = self.segment(fs, id).await?;
                let new = match seen.is_shared {
                    true => self.shared.add(id, offset, offset + bytes),
                    false => bytes,
                };
                sum.bucket_bytes += new;
                let range = offset..offset + bytes;
                sum.stored_bytes += seen.stored_of(range.clone(), new);
                if let (true, Some(all)) = (seen.is_past, all.as_mut()) {
                    past += seen.stored_of(range.clone(), new);
                    fresh += seen.stored_of(range, all.add(id, offset, offset + bytes));
                }
            }
        }
        Ok((sum, past, fresh))
    }

    async fn segment(&mut self, fs: &Arc<Fs>, id: SegmentId) -> Result<Seen, FsError> {
        if let Some(seen) = self.segments.get(&id) {
            return Ok(seen.clone());
        }
        let layout = self.volume.segments.layout(id).await.ok();
        let is_past = self.volume.view.get(&keys::segment(id)).await?.is_none();
        let is_shared = is_shared(fs, id).await?;
        let seen = Seen { layout, is_shared, is_past };
        self.segments.put(id, seen.clone());
        Ok(seen)
    }
}

impl Walked {
    fn list(&mut self, open: &[(Vec<u8>, DuSum)], sum: DuSum) {
        let names = open.iter().skip(1).map(|(name, _)| String::from_utf8_lossy(name));
        let path = names.collect::<Vec<_>>().join("/");
        self.dirs.push(Reverse((sum.stored_bytes + sum.journal_bytes, Reverse(path), SumKey(sum))));
        if self.dirs.len() > DIRS_MAX {
            self.dirs.pop();
            self.more_dirs += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_of_a_segment_counts_once_however_it_is_shared() {
        // Guards against copies that share bytes and are counted as if each had its own: against a model
        // of single bytes.
        let mut state = 1u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..50 {
            let (mut ranges, mut model) = (Ranges::default(), [false; 200]);
            for _ in 0..60 {
                let from = next(199);
                let to = from + 1 + next(200 - from - 1 + 1).min(199 - from);
                let fresh = (from..to).filter(|&at| !model[at as usize]).count() as u64;
                (from..to).for_each(|at| model[at as usize] = true);
                assert_eq!(ranges.add(SegmentId([1; 16]), from, to), fresh, "{from}..{to}");
            }
            let kept = &ranges.by_segment[&SegmentId([1; 16])];
            assert_eq!(ranges.count, kept.len());
            assert!(kept.windows(2).all(|pair| pair[0].1 < pair[1].0), "{kept:?}");
        }
        let layout = Some(Arc::new(Layout { data_len: 1000, tail_len: 40, frames: None }));
        let seen = Seen { layout, is_shared: false, is_past: false };
        assert_eq!((seen.stored_of(0..1000, 1000), seen.stored_of(7..17, 4)), (1000, 4));
    }

    #[test]
    fn ages_are_classes_without_gaps() {
        // Guards against a file that is in none, or from the future.
        let now = 100_000 * 24 * 3600;
        let days = |n: i64| now as i64 - n * 24 * 3600;
        let classes = [-5, 0, 1, 6, 7, 29, 30, 400, 1095, 40_000].map(|n| age_class(days(n), now));
        assert_eq!(classes, [0, 0, 1, 1, 2, 2, 3, 5, 6, 6]);
        assert_eq!(age_class(i64::MIN, now), 6);
    }
}
