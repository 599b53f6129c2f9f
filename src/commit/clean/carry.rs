//! The part of a round that takes its time: finding what is live, reading it, uploading it.
//! Writes no row.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Notify, mpsc};

use super::owners;
use super::plan::{self, Arranged, Fetch, Output, Run};
use crate::base::{SegmentId, unix_secs};
use crate::commit::error::CommitError;
use crate::meta::SegmentRow;
use crate::store::kv::Kv;
use crate::store::segments::{Layout, SegmentStore};

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
}

/// A new segment in the bucket that no row names yet.
pub(super) struct Moved {
    pub(super) id: SegmentId,
    pub(super) output: Output,
    pub(super) layout: Arc<Layout>,
}

/// How far a round came.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Names ran out, or owners were too many to look up.
    pub(super) more: bool,
    /// See [`Arranged::left_out`].
    pub(super) left_out: usize,
}

/// Copies what is live in the chosen segments into new ones, hands each over when the bucket
/// has it, and wakes the committer.
pub(super) async fn carry(
    order: Order,
    done: mpsc::Sender<Moved>,
    wake: Arc<Notify>,
) -> Result<Carried, CommitError> {
    let Order { kv, segments, chosen, ids, reserved } = order;
    let owners::Found { pieces, more } = owners::find(&kv, &segments, &chosen).await?;
    let found = pieces.len();
    let Arranged { outputs, left_out, odd } = plan::arrange(pieces, &chosen, segments.upload_max());
    for id in odd {
        log::warn!("segment {id} is not cleaned: its rows contradict each other, see sealfs fsck");
    }
    log::debug!("{} outputs of {found} extents", outputs.len());
    let carried = Carried { more: more || outputs.len() > ids.len(), left_out };
    for (id, output) in ids.into_iter().zip(outputs) {
        let data = read(&segments, &output).await?;
        if unix_secs() >= reserved {
            return Err(CommitError::Round("the machine slept through it".into()));
        }
        let put = segments.put(id, data, &output.owned()).await;
        let layout = put.map_err(|e| CommitError::Upload(id, e))?;
        if done.send(Moved { id, output, layout }).await.is_err() {
            break; // the mount ends
        }
        wake.notify_one();
    }
    Ok(carried)
}

/// The data of `output`, authenticated, run by run.
async fn read(segments: &SegmentStore, output: &Output) -> Result<Vec<Bytes>, CommitError> {
    let fetches = plan::fetches(&output.runs);
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
    let Fetch { segment, range, runs } = fetch;
    let from = range.start;
    let read = segments.get_range(segment, range).await;
    let bytes = read.map_err(|e| CommitError::Clean(segment, e))?;
    let part = |run: &Run| {
        let (at, len) = ((run.range.start - from) as usize, run.len() as usize);
        // A copy: a slice would keep what is dead beside it in memory.
        Bytes::copy_from_slice(&bytes[at..at + len])
    };
    Ok(output.runs[runs].iter().map(part).collect())
}
