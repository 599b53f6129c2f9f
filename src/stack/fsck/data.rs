//! Every sealed byte: each object is read whole and authenticated, several at a time, in the
//! order of names. How far it has come is kept in a sealed file of the state directory, so that
//! a run that was stopped can be gone on with.
//!
//! Memory: [`READS_PARALLEL`] × 2 × [`PIECE`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::objects::{Listing, damaged_ranges, read_whole};
use super::{Run, Volume};
use crate::base::{SegmentId, counted};
use crate::commit::check::Segments;
use crate::seal::CHUNK_PLAIN;
use crate::seal::offsets::plain_len;
use crate::stack::StackError;
use crate::stack::state::StateFile;
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
            let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
            let do_not = if bytes == 1 { "does not" } else { "do not" };
            let what =
                format!("object {name} is damaged: {} {do_not} open", counted(bytes, "byte"));
            (what, Self::segment(name))
        })
    }
}

/// Reads every object of the metadata store and every segment that rows refer to; without rows
/// (the metadata cannot be read) every segment.
pub(super) async fn read_all(
    run: &Run<'_>,
    listing: &Listing,
    segments: Option<&Segments>,
) -> Result<Read, StackError> {
    let file =
        StateFile::<Position>::named(&run.volume.state_dir, POSITION_NAME, run.volume.keys.clone());
    let mut position = match run.options.resume {
        true => file.load()?.unwrap_or_default(),
        false => Position::default(),
    };
    let referred = |id: &SegmentId| {
        segments.is_none_or(|segments| {
            segments.0.get(id).is_some_and(|sum| sum.row.is_some() || sum.live > 0)
        })
    };
    let plain = |bytes: u64| plain_len(bytes).unwrap_or(0);
    let meta = listing.meta.iter().map(|(name, bytes)| (name.clone(), plain(*bytes)));
    let data = listing.segments.iter().filter(|(id, _)| referred(id));
    let data = data.map(|(id, listed)| (SegmentStore::name(*id), plain(listed.bytes)));
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
        let one = read_one(run.volume, &name, size, |bytes| {
            // No more than was announced, whatever the object has.
            let before = read.fetch_add(bytes, Ordering::Relaxed).min(size);
            done.fetch_add(bytes.min(size - before), Ordering::Relaxed);
        });
        let one = one.await;
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
            // The writer may have collected it; nobody else may.
            Ok(One::Gone) if run.writer => {}
            Ok(One::Gone) if SegmentStore::id(&name).is_some() => {} // found as missing
            Ok(One::Gone) => {
                position.damage.0.insert(name.to_string(), Vec::new());
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

async fn read_one(
    volume: &Volume,
    name: &Path,
    size: u64,
    on_read: impl Fn(u64),
) -> object_store::Result<One> {
    let store = &*volume.sealed;
    let e = match read_whole(store, name, size, PIECE, on_read).await {
        Ok(bytes) => return Ok(One::Whole(bytes)),
        Err(e) => e,
    };
    match class(&e) {
        ErrorClass::NotFound => Ok(One::Gone),
        ErrorClass::Corrupt => {
            let mut looks = LOOKS_MAX;
            let step = CHUNK_PLAIN as u64;
            let all = 0..size.max(1);
            let mut ranges = damaged_ranges(store, name, all, step, &mut looks).await?;
            if ranges.is_empty() {
                ranges.push(size..size + 1); // only its end does not open
            }
            Ok(One::Damaged(ranges))
        }
        _ => Err(e),
    }
}
