//! Every sealed byte: each object is read whole and authenticated, several at a time, in the
//! order of names. How far it has come is kept in a sealed file of the state directory, so that
//! a run that was stopped can be resumed.
//!
//! Memory: [`READS_PARALLEL`] × 2 × [`PIECE`].

use std::collections::BTreeMap;
use std::iter::once;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::objects::{Listing, Objects, damaged_ranges, read_whole, still_known};
use super::{Run, Volume};
use crate::base::{SegmentId, counted};
use crate::commit::check::Segments;
use crate::commit::layouts::{kept_layout_in, layout_in};
use crate::meta::keys;
use crate::seal::CHUNK_PLAIN;
use crate::seal::offsets::plain_len;
use crate::stack::StackError;
use crate::stack::records::state::StateFile;
use crate::store::kv::Kv;
use crate::store::segments::{FRAME, Layout, has_frames};
use crate::store::{ErrorClass, SegmentStore, class};

/// Objects that are read at once.
pub const READS_PARALLEL: usize = 6;
/// Plaintext bytes of one request.
pub const PIECE: u64 = 4 << 20;
/// Requests that finding the damaged chunks of one object may take.
const LOOKS_MAX: u32 = 256;
/// How often the position is saved.
const SAVE_EVERY: Duration = Duration::from_secs(5);
const POSITION_NAME: &str = "fsck";

/// Objects that do not open, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Damage(BTreeMap<String, Vec<Range<u64>>>);

/// Where a run has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    /// Every object up to this name has been read.
    after: String,
    objects: u64,
    bytes: u64,
    damage: Damage,
}

/// What reading came to.
pub(super) struct Read {
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) damage: Damage,
    pub(super) complete: bool,
}

/// What reading one object came to.
enum One {
    Whole(u64),
    Damaged(Vec<Range<u64>>),
    Gone,
    /// Of the metadata's log, behind something that was collected: nobody needs it.
    Left,
}

impl Damage {
    fn segment(name: &str) -> Option<SegmentId> {
        SegmentStore::id(&Path::from(name))
    }

    /// The damaged parts of segments.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (SegmentId, Vec<Range<u64>>)> + '_ {
        self.0.iter().filter_map(|(name, ranges)| Some((Self::segment(name)?, ranges.clone())))
    }

    /// Sentences, and the segment they are about.
    pub(super) fn problems(&self) -> impl Iterator<Item = (String, Option<SegmentId>)> + '_ {
        self.0.iter().map(|(name, ranges)| {
            if ranges.iter().all(|r| r.end == u64::MAX) {
                let what = format!("object {name} is not in the bucket, though it is listed");
                return (what, Self::segment(name));
            }
            let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
            let do_not = if bytes == 1 { "does not" } else { "do not" };
            let what =
                format!("object {name} is damaged: {} {do_not} open", counted(bytes, "byte"));
            (what, Self::segment(name))
        })
    }
}

/// Reads every object of the metadata store and every segment that rows refer to; without rows
/// (the metadata cannot be read) every segment. Frames are decompressed as well.
pub(super) async fn read_all(
    run: &Run<'_>,
    listing: &Listing,
    rows: Option<(&Kv, &Segments, &Objects)>,
) -> Result<Read, StackError> {
    let file =
        StateFile::<Position>::named(&run.volume.state_dir, POSITION_NAME, run.volume.keys.clone());
    let mut position = match run.options.resume {
        true => file.load()?.unwrap_or_default(),
        false => Position::default(),
    };
    let referred = |id: &SegmentId| {
        rows.is_none_or(|(_, segments, _)| {
            let sum = segments.0.get(id);
            sum.is_some_and(|sum| sum.row.is_some() || sum.kept.is_some() || sum.live > 0)
        })
    };
    let plain = |bytes: u64| plain_len(bytes).unwrap_or(0);
    let meta = listing.meta.iter().map(|(name, bytes)| (name.clone(), plain(*bytes)));
    let data = listing.segments.iter().filter(|(id, _)| referred(id));
    let mut data: BTreeMap<SegmentId, u64> =
        data.map(|(id, listed)| (*id, plain(listed.bytes))).collect();
    if let Some((_, segments, objects)) = rows {
        // What is not listed may be there all the same, and altered.
        let known = segments.0.iter().filter(|(id, _)| referred(id) && !objects.lacks(**id));
        for (id, sum) in known {
            data.entry(*id).or_insert(sum.object_len);
        }
    }
    let data = data.into_iter().map(|(id, size)| (SegmentStore::name(id), size));
    // "meta/…" before "seg/…", each in order: the order of names.
    let after = position.after.clone();
    let todo: Vec<(Path, u64)> =
        meta.chain(data).filter(|(name, _)| name.as_ref() > after.as_str()).collect();
    let (done, total) = &run.progress.bytes;
    let left: u64 = todo.iter().map(|(_, bytes)| bytes).sum();
    done.store(position.bytes, Ordering::Relaxed);
    total.store(position.bytes + left, Ordering::Relaxed);
    std::fs::create_dir_all(&run.volume.state_dir).map_err(|source| {
        let path = run.volume.state_dir.clone();
        StackError::Local { what: "creating", path, source }
    })?;
    let reads = todo.into_iter().map(|(name, size)| async move {
        let read = AtomicU64::new(0);
        let on_read = |bytes: u64| {
            // No more than was announced, whatever the object has.
            let before = read.fetch_add(bytes, Ordering::Relaxed).min(size);
            done.fetch_add(bytes.min(size - before), Ordering::Relaxed);
        };
        let one = match SegmentStore::id(&name) {
            Some(id) => read_segment(run.volume, rows.map(|(kv, ..)| kv), id, size, on_read).await,
            None => read_one(run.volume, &name, size, on_read).await,
        };
        // Damaged or gone: it is done all the same.
        done.fetch_add(size.saturating_sub(read.into_inner()), Ordering::Relaxed);
        (name, one)
    });
    let mut reads = futures::stream::iter(reads).buffered(READS_PARALLEL);
    let mut saved = Instant::now();
    while let Some((name, one)) = reads.next().await {
        match one {
            Ok(One::Whole(bytes)) => {
                position.objects += 1;
                position.bytes += bytes;
            }
            Ok(One::Damaged(ranges)) => {
                position.damage.0.insert(name.to_string(), ranges);
            }
            Ok(One::Left) => {}
            // The writer may have collected it; nobody else may.
            Ok(One::Gone) => {
                let segment = SegmentStore::id(&name);
                let is_collected = match segment {
                    Some(id) if rows.is_some() => !still_known(run.volume, id).await?,
                    Some(_) => false,
                    None => true,
                };
                if !(run.writer && is_collected) {
                    let all = segment.map(|_| 0..u64::MAX);
                    position.damage.0.insert(name.to_string(), all.into_iter().collect());
                }
            }
            Err(e) => {
                file.save(&position, true)?;
                return Err(StackError::store(format!("reading {name}"), e));
            }
        }
        position.after = name.to_string();
        if run.stopped() {
            file.save(&position, true)?;
            let Position { objects, bytes, damage, .. } = position;
            return Ok(Read { objects, bytes, damage, complete: false });
        }
        if saved.elapsed() >= SAVE_EVERY {
            file.save(&position, false)?;
            saved = Instant::now();
        }
    }
    drop(reads);
    file.remove()?;
    let Position { objects, bytes, damage, .. } = position;
    Ok(Read { objects, bytes, damage, complete: true })
}

/// Whether it is an object of the log whose predecessor was collected, though it did not open.
async fn is_left(volume: &Volume, name: &Path) -> bool {
    let is_log = name.as_ref().starts_with("meta/wal/");
    is_log && matches!(volume.sealed.epoch_of(name).await, Ok(None))
}

async fn read_one(
    volume: &Volume,
    name: &Path,
    size: u64,
    on_read: impl Fn(u64),
) -> object_store::Result<One> {
    match read_whole(&*volume.sealed, name, size, PIECE, on_read).await {
        Ok(bytes) => Ok(One::Whole(bytes)),
        Err(e) => match class(&e) {
            ErrorClass::NotFound => Ok(One::Gone),
            ErrorClass::Corrupt if is_left(volume, name).await => Ok(One::Left),
            ErrorClass::Corrupt => damaged_object(volume, name, size).await.map(One::Damaged),
            _ => Err(e),
        },
    }
}

/// The plaintext bytes of an object that do not open; at least one.
async fn damaged_object(
    volume: &Volume,
    name: &Path,
    size: u64,
) -> object_store::Result<Vec<Range<u64>>> {
    let mut looks = LOOKS_MAX;
    let (step, all) = (CHUNK_PLAIN as u64, 0..size.max(1));
    let mut ranges = damaged_ranges(&*volume.sealed, name, all, step, &mut looks).await?;
    if ranges.is_empty() {
        ranges.push(size..size + 1); // only its end does not open
    }
    Ok(ranges)
}

/// Reads all data of a segment as files would, and what stands behind them. What is damaged is
/// said in bytes of data.
async fn read_segment(
    volume: &Volume,
    kv: Option<&Kv>,
    id: SegmentId,
    size: u64,
    on_read: impl Fn(u64),
) -> object_store::Result<One> {
    let segments = SegmentStore::new(volume.sealed.clone());
    let failed = match segments.contents(id).await {
        Ok((layout, _)) => match read_data(&segments, id, &layout, on_read).await {
            Ok(()) => return Ok(One::Whole(size)),
            Err(e) => (e, Some(layout)),
        },
        Err(e) => (e, layout_by_row(kv, id).await),
    };
    let (e, layout) = failed;
    match class(&e) {
        ErrorClass::NotFound => return Ok(One::Gone),
        ErrorClass::Corrupt => {}
        _ => return Err(e),
    }
    let stored = damaged_object(volume, &SegmentStore::name(id), size).await?;
    let Some(layout) = layout else {
        // Frames cannot be told apart: all of them are lost.
        return Ok(One::Damaged(if has_frames(id) { once(0..size).collect() } else { stored }));
    };
    let mut lost: Vec<Range<u64>> = Vec::new();
    for range in stored.into_iter().map(|range| layout.data_within(range)) {
        match lost.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ if range.is_empty() => {} // behind the data
            _ => lost.push(range),
        }
    }
    if lost.is_empty() && layout.frames.is_some() {
        lost = malformed_frames(&segments, id, &layout).await?;
    }
    if lost.is_empty() {
        lost.push(layout.data_len..layout.data_len + 1); // only what stands behind the data
    }
    Ok(One::Damaged(lost))
}

async fn read_data(
    segments: &SegmentStore,
    id: SegmentId,
    layout: &Layout,
    on_read: impl Fn(u64),
) -> object_store::Result<()> {
    let mut at = 0;
    while at < layout.data_len {
        let range = at..(at + PIECE).min(layout.data_len);
        let stored = layout.stored(range.clone());
        at = range.end;
        segments.get_range(id, range).await?;
        on_read(stored.end - stored.start);
    }
    Ok(())
}

/// Where a segment's frames are by its row.
async fn layout_by_row(kv: Option<&Kv>, id: SegmentId) -> Option<Layout> {
    let kv = kv?;
    if let Some(row) = kv.get(&keys::segment(id)).await.ok()? {
        return layout_in(id, &row).ok().map(|(_, layout)| layout);
    }
    let row = kv.get(&keys::kept_segment(id)).await.ok()??;
    kept_layout_in(id, &row).ok().map(|(_, layout)| layout)
}

/// The data of frames that authenticate and do not decompress.
async fn malformed_frames(
    segments: &SegmentStore,
    id: SegmentId,
    layout: &Layout,
) -> object_store::Result<Vec<Range<u64>>> {
    let mut lost = Vec::new();
    for start in (0..layout.data_len).step_by(FRAME as usize) {
        let frame = start..(start + FRAME).min(layout.data_len);
        match segments.get_range(id, frame.clone()).await {
            Ok(_) => {}
            Err(e) if class(&e) == ErrorClass::Corrupt => lost.push(frame),
            Err(e) => return Err(e),
        }
    }
    Ok(lost)
}
