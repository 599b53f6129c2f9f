//! The part of a round that takes its time: finding what is live, reading it, uploading it.
//! Writes no row.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Notify, mpsc};

use super::plan::{self, Fetch, Layout, Output, Piece};
use crate::base::SegmentId;
use crate::commit::committer::{CommitError, unix_secs};
use crate::commit::resolve::extent_in;
use crate::commit::scan::Cursor;
use crate::commit::view::ViewError;
use crate::meta::{Key, SegmentRow};
use crate::store::kv::Kv;
use crate::store::segments::SegmentStore;

/// Extents that one round finds at most; 64 bytes of memory each. The next goes on behind them.
const PIECES_MAX: usize = 65_536;
/// Requests at once, where none reads more than [`SMALL_FETCH`], and otherwise: each may bring a
/// whole segment into memory.
const FETCHES_SMALL: usize = 8;
const FETCHES_LARGE: usize = 2;
const SMALL_FETCH: u64 = 1 << 20;

/// What a round works on.
pub(super) struct Order {
    pub(super) kv: Arc<Kv>,
    pub(super) segments: SegmentStore,
    /// What to empty.
    pub(super) chosen: HashMap<SegmentId, SegmentRow>,
    /// Names for new segments.
    pub(super) ids: Vec<SegmentId>,
    /// Unix seconds; from then on the new segments may be deleted.
    pub(super) reserved: u64,
    /// The first extent row to look at; without it, the first of all.
    pub(super) from: Option<Key>,
}

/// A new segment in the bucket that no row names yet.
pub(super) struct Moved {
    pub(super) id: SegmentId,
    pub(super) output: Output,
}

/// How far a round came.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// The first extent row that was not looked at, if there were too many.
    pub(super) next: Option<Key>,
    /// Names ran out.
    pub(super) more: bool,
    /// See [`Layout::left_out`].
    pub(super) left_out: usize,
    /// Extent rows that were looked at.
    pub(super) extents: usize,
}

/// Copies what is live in the chosen segments into new ones, hands each over when the bucket
/// has it, and wakes the committer.
pub(super) async fn carry(
    order: Order,
    done: mpsc::Sender<Moved>,
    wake: Arc<Notify>,
) -> Result<Carried, CommitError> {
    let Order { kv, segments, chosen, ids, reserved, from } = order;
    let (pieces, next, extents) = pieces(&kv, &chosen, from).await?;
    let Layout { outputs, left_out, odd } = plan::layout(pieces, &chosen, segments.upload_max());
    for id in odd {
        log::warn!("segment {id} is not cleaned: its rows contradict each other, see sealfs fsck");
    }
    log::debug!("{} outputs, {extents} extents looked at", outputs.len());
    let carried = Carried { next, more: outputs.len() > ids.len(), left_out, extents };
    for (id, output) in ids.into_iter().zip(outputs) {
        let data = read(&segments, &output).await?;
        if unix_secs() >= reserved {
            return Err(CommitError::Round("the machine slept through it".into()));
        }
        segments.put(id, data).await.map_err(|e| CommitError::Upload(id, e))?;
        if done.send(Moved { id, output }).await.is_err() {
            break; // the mount ends
        }
        wake.notify_one();
    }
    Ok(carried)
}

/// The extents that refer to `chosen`, in the order of their rows, as they are now; the first
/// row that was not looked at; how many were.
async fn pieces(
    kv: &Kv,
    chosen: &HashMap<SegmentId, SegmentRow>,
    from: Option<Key>,
) -> Result<(Vec<Piece>, Option<Key>, usize), ViewError> {
    let mut pieces = Vec::new();
    let mut looked_at = 0;
    for tag in [b'e', b'i'] {
        let mut cursor = Cursor::new(kv, tag);
        match &from {
            Some(from) if from[0] > tag => continue,
            Some(from) if from[0] == tag => cursor = cursor.starting_at(from.clone()),
            _ => {}
        }
        while let Some((key, value)) = cursor.next().await? {
            if pieces.len() == PIECES_MAX {
                return Ok((pieces, Some(key[..].into()), looked_at));
            }
            looked_at += 1;
            let Some((file, extent)) = extent_in(&key, &value)? else { continue };
            if chosen.contains_key(&extent.segment) {
                pieces.push(Piece { file, extent });
            }
        }
    }
    Ok((pieces, None, looked_at))
}

/// The plaintext of `output`, authenticated, piece by piece.
async fn read(segments: &SegmentStore, output: &Output) -> Result<Vec<Bytes>, CommitError> {
    let fetches = plan::fetches(&output.pieces);
    let longest = fetches.iter().map(|f| f.range.end - f.range.start).max();
    let small = longest.is_none_or(|longest| longest <= SMALL_FETCH);
    let brought: Vec<Vec<Bytes>> = futures::stream::iter(fetches)
        .map(|fetch| fetch_one(segments, output, fetch))
        .buffered(if small { FETCHES_SMALL } else { FETCHES_LARGE })
        .try_collect()
        .await?;
    Ok(brought.into_iter().flatten().collect())
}

async fn fetch_one(
    segments: &SegmentStore,
    output: &Output,
    fetch: Fetch,
) -> Result<Vec<Bytes>, CommitError> {
    let Fetch { segment, range, pieces } = fetch;
    let from = range.start;
    let read = segments.get_range(segment, range).await;
    let bytes = read.map_err(|e| CommitError::Clean(segment, e))?;
    let part = |piece: &Piece| {
        let at = (piece.extent.offset - from) as usize;
        // A copy: a slice would keep what is dead beside it in memory.
        Bytes::copy_from_slice(&bytes[at..at + piece.len() as usize])
    };
    Ok(output.pieces[pieces].iter().map(part).collect())
}
