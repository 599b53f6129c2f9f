//! How segments are laid out, from their rows: for readers of their data, which would else have to
//! read a footer first.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::SegmentId;
use crate::meta::{DecodeError, KeptRow, SegmentRow, keys};
use crate::store::kv::{Kv, KvError};
use crate::store::segments::{Layout, LayoutRows};
use crate::store::{ErrorClass, StoreError};

/// What a segment's row says of its layout.
pub fn layout_in(id: SegmentId, row: &[u8]) -> Result<(SegmentRow, Layout), DecodeError> {
    let (row, frames) = SegmentRow::decode_with(row)?;
    let layout = Layout::from_row(id, row.size, frames);
    Ok((row, layout.map_err(|_| DecodeError("layout of a segment"))?))
}

/// What the `y` row of a segment says of its layout.
pub fn kept_layout_in(id: SegmentId, row: &[u8]) -> Result<(KeptRow, Layout), DecodeError> {
    let (row, frames) = KeptRow::decode_with(row)?;
    let layout = Layout::from_row(id, row.segment.size, frames);
    Ok((row, layout.map_err(|_| DecodeError("layout of a segment"))?))
}

/// The rows of a metadata store.
pub struct SegmentRows(pub Arc<Kv>);

#[async_trait]
impl LayoutRows for SegmentRows {
    async fn layout_row(&self, id: SegmentId) -> object_store::Result<Option<(u64, Bytes)>> {
        let value = match self.0.get(&keys::segment(id)).await {
            Ok(Some(value)) => value,
            Ok(None) => return Ok(None),
            Err(KvError::Unavailable(why)) => {
                let message = format!("the row of segment {id}: {why}");
                return Err(StoreError::new(ErrorClass::Transport, message).into_store("segments"));
            }
            // The footer says the same.
            Err(e) => {
                log::debug!("the row of segment {id}: {e}");
                return Ok(None);
            }
        };
        let row = SegmentRow::decode_with(&value).ok().filter(|(_, frames)| !frames.is_empty());
        Ok(row.map(|(row, frames)| (row.size, value.slice_ref(frames))))
    }
}
