//! Replaying the journal at mount: its records become pending changes again.

use super::batch::{Batch, CloneSource};
use super::error::CommitError;
use super::view::{Lookup, View, ViewError};
use crate::data::Part;
use crate::journal::Journal;

/// Tries to bring the extents of what a record shares into memory; nothing else is wanted there yet.
const LOADS_MAX: u32 = 4;

/// Applies the records of a journal to `view`, in order. Used at mount, before anything else
/// touches it.
///
/// # Errors
/// A record that cannot be read or is not in the format: the mount must not go on without it.
pub async fn replay(
    view: &View,
    journal: &Journal,
    records: impl IntoIterator<Item = crate::journal::RecordLoc>,
) -> Result<u64, CommitError> {
    let mut count = 0;
    for record in records {
        let (batch, data_start) = batch_of(journal, record)?;
        let cloned = match batch.clone_source() {
            Some(from) => parts_of(view, from).await?,
            None => Vec::new(),
        };
        view.apply(batch, record, data_start, &cloned);
        count += 1;
    }
    Ok(count)
}

/// What a clone shares: the source as it is once all before is applied.
async fn parts_of(view: &View, from: CloneSource) -> Result<Vec<Part>, CommitError> {
    let file = from.file();
    for _ in 0..LOADS_MAX {
        if let Lookup::Hit(parts) = view.parts_now(file, from.offset, from.end()) {
            return Ok(parts);
        }
        view.load_extents(file, from.offset, from.end()).await?;
    }
    let why = format!("the extents of inode {} do not stay in memory", from.ino);
    Err(CommitError::Internal(why))
}

/// The batch of a record, and where in the record its data begins.
///
/// # Errors
/// A record that cannot be read or is not in the format.
pub fn batch_of(
    journal: &Journal,
    record: crate::journal::RecordLoc,
) -> Result<(Batch, u32), CommitError> {
    let prelude = Batch::PRELUDE_LEN as u32;
    let head = journal.read(record, 0..prelude.min(record.len()))?;
    let len = Batch::head_len(&head).map_err(ViewError::from)? as u32;
    if len > record.len() {
        return Err(ViewError::from(crate::meta::DecodeError("record too short")).into());
    }
    let head = journal.read(record, 0..len)?;
    let batch = Batch::decode_head(&head).map_err(ViewError::from)?;
    if len as usize + batch.data_len() != record.len() as usize {
        return Err(ViewError::from(crate::meta::DecodeError("record of wrong size")).into());
    }
    Ok((batch, len))
}
