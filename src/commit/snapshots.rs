//! Snapshots: names for commits. Each is a checkpoint of the metadata and an `n` row; nothing is
//! copied, and what it costs is what changes afterwards.
//!
//! A segment that a snapshot refers to has an `s` row while the volume refers to it as well, and from
//! then on a `y` row, until the last snapshot that holds it is deleted: then it is dead, and goes like
//! every other (`z` row). So nothing that a snapshot needs ever waits for its deletion, and what waits
//! there was never needed by a snapshot.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::holders::Kept;
use super::layouts::kept_layout_in;
use super::scan::Cursor;
use super::view::{View, ViewError, last_commit};
use crate::base::ChainValue;
use crate::meta::{DecodeError, KeptRow, SnapshotName, SnapshotRow, keys};
use crate::store::kv::{Kv, KvError};

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: SnapshotName,
    /// What it is.
    pub row: SnapshotRow,
}

/// All snapshots, the oldest first. One request, as a rule.
///
/// # Errors
/// The store's; a row that is not in the format.
pub async fn snapshots(kv: &Kv) -> Result<Vec<Snapshot>, ViewError> {
    let mut cursor = Cursor::new(kv, b'n');
    let mut all = Vec::new();
    while let Some((key, value)) = cursor.next().await? {
        let name = keys::snapshot_of(&key).ok_or(DecodeError("name of a snapshot"))?;
        all.push(Snapshot { name, row: SnapshotRow::decode(&value)? });
    }
    all.sort_by(|a, b| {
        let of = |s: &Snapshot| (s.row.commit, s.row.time_secs);
        of(a).cmp(&of(b)).then_with(|| a.name.cmp(&b.name))
    });
    Ok(all)
}

/// The snapshot of that name, if there is one.
///
/// # Errors
/// As [`snapshots`].
pub async fn snapshot(kv: &Kv, name: &SnapshotName) -> Result<Option<Snapshot>, ViewError> {
    let Some(value) = kv.get(&keys::snapshot(name)).await? else { return Ok(None) };
    Ok(Some(Snapshot { name: name.clone(), row: SnapshotRow::decode(&value)? }))
}

/// The metadata of a snapshot of `kv`, to read. It is to be closed.
///
/// # Errors
/// [`KvError::Damaged`] if it is not what the row says, or not there any more.
pub async fn open_snapshot(
    kv: &Kv,
    snapshot: &SnapshotRow,
    open_timeout: Duration,
) -> Result<Kv, ViewError> {
    let opened = kv.open_checkpoint(snapshot.checkpoint, open_timeout).await?;
    let commit = last_commit(&opened).await;
    let is = commit.map(|row| row.map_or((0, ChainValue::default()), |r| (r.sequence, r.chain)));
    match is {
        Ok(is) if is == (snapshot.commit, snapshot.chain) => Ok(opened),
        outcome => {
            let _ = opened.close(false).await; // a reader: there is nothing to lose
            let (is, _) = outcome?;
            let why = format!("the snapshot is not commit {} but {is}", snapshot.commit);
            Err(KvError::Damaged(why).into())
        }
    }
}

/// Keys for which `wanted` holds and whose rows may differ between what two views show; `None` if that
/// cannot be told, or there are more than `keys_max`. See [`Kv::keys_apart`].
///
/// # Errors
/// The store's.
pub async fn keys_apart(
    one: &View,
    other: &View,
    wanted: impl Fn(&[u8]) -> bool + Send,
    keys_max: usize,
) -> Result<Option<BTreeSet<Bytes>>, ViewError> {
    // Before the tables are looked at: what is committed meanwhile is in those.
    let mut pending = one.pending_keys(&wanted);
    pending.extend(other.pending_keys(&wanted));
    let apart = one.kv().keys_apart(other.kv(), wanted).await?;
    let all = apart.map(|mut keys| {
        keys.append(&mut pending);
        keys
    });
    Ok(all.filter(|keys| keys.len() <= keys_max))
}

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of the bucket that only this one holds: those that come free when it is deleted.
    pub alone: u64,
    /// Bytes of the bucket that the volume does not refer to any more and that this one needs,
    /// perhaps with others.
    pub kept: u64,
}

/// What each of the snapshots, in this order, holds of segments that the volume does not refer to any
/// more; and all of them together. Reads all `y` rows.
///
/// # Errors
/// As [`snapshots`].
pub async fn what_they_hold(
    kv: &Kv,
    snapshots: &[Snapshot],
) -> Result<(Vec<Held>, Kept), ViewError> {
    let mut held = vec![Held::default(); snapshots.len()];
    let mut all = Kept::default();
    let mut cursor = Cursor::new(kv, b'y');
    while let Some((key, value)) = cursor.next().await? {
        let (row, bytes) = kept_row(&key, &value)?;
        // In the order of commits: those that hold it are neighbours.
        let from = snapshots.partition_point(|s| s.row.commit < row.segment.birth);
        let to = snapshots.partition_point(|s| s.row.commit < row.death);
        held[from..to.max(from)].iter_mut().for_each(|held| held.kept += bytes);
        if to == from + 1 {
            held[from].alone += bytes;
        }
        all.add(bytes);
    }
    Ok((held, all))
}

/// A `y` row, and the bytes that the segment takes in the bucket.
pub(super) fn kept_row(key: &[u8], value: &[u8]) -> Result<(KeptRow, u64), DecodeError> {
    let id = keys::kept_segment_of(key).ok_or(DecodeError("key of a kept segment"))?;
    let (row, layout) = kept_layout_in(id, value)?;
    Ok((row, layout.object_len()))
}
