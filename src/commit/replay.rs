//! Replaying the journal at mount: its records become pending changes again.

use super::batch::Batch;
use super::committer::CommitError;
use super::view::{View, ViewError};
use crate::journal::Journal;

/// Applies the records of a journal to `view`, in order. Used at mount, before anything else
/// touches it.
///
/// # Errors
/// A record that cannot be read or is not in the format: the mount must not go on without it.
pub fn replay(
    view: &View,
    journal: &Journal,
    records: impl IntoIterator<Item = crate::journal::RecordLoc>,
) -> Result<u64, CommitError> {
    let mut count = 0;
    for record in records {
        let (batch, data_start) = batch_of(journal, record)?;
        view.apply(batch, record, data_start);
        count += 1;
    }
    Ok(count)
}

/// The batch of a record, and where in the record its data begins.
///
/// # Errors
/// A record that cannot be read or is not in the format.
pub fn batch_of(
    journal: &Journal,
    record: crate::journal::RecordLoc,
) -> Result<(Batch, u32), CommitError> {
    let mut head = Vec::new();
    let prelude = Batch::PRELUDE_LEN as u32;
    journal.read_into(record, 0..prelude.min(record.len()), &mut head)?;
    let len = Batch::head_len(&head).map_err(ViewError::from)? as u32;
    if len > record.len() {
        return Err(ViewError::from(crate::meta::DecodeError("record too short")).into());
    }
    head.clear();
    journal.read_into(record, 0..len, &mut head)?;
    let batch = Batch::decode_head(&head).map_err(ViewError::from)?;
    if len as usize + batch.data_len() != record.len() as usize {
        return Err(ViewError::from(crate::meta::DecodeError("record of wrong size")).into());
    }
    Ok((batch, len))
}
