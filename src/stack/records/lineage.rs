//! Whether the bucket and the local journal belong to one history: rollback, a journal that
//! another writer has overtaken, and a local directory that was copied. Decides, and touches
//! nothing. Called by `mount`.

use super::state::Remembered;
use crate::base::JournalPos;
use crate::journal::{RecordLoc, Recovery};
use crate::meta::CommitRow;
use crate::stack::StackError;

/// Whether the last commit carries this journal's name and was made by a mount that this
/// directory has never served: then a copy of the directory (of a disk, a virtual machine) was
/// mounted elsewhere and has gone on under the same name. Gives the last record that certainly
/// was committed from here.
pub(crate) fn copied_elsewhere(
    recovery: &Recovery,
    row: Option<CommitRow>,
    instance: Option<&str>,
    before: &Remembered,
) -> Option<JournalPos> {
    // Less than this journal has released is a rollback, whoever made it.
    let row = row.filter(|r| r.journal == recovery.id && r.position >= recovery.released)?;
    let ours = before.journal == recovery.id.to_string();
    (ours && !before.knows(instance, row.position.0))
        .then(|| JournalPos(before.journal_committed.max(recovery.released.0)))
}

/// Refuses to go on without records that had been on stable storage here and are not in the bucket:
/// the journal was cut, emptied or taken away.
pub(crate) fn refuse_lost(
    recovery: &Recovery,
    row: Option<CommitRow>,
    before: &Remembered,
) -> Result<(), StackError> {
    let in_bucket = row.filter(|row| row.journal.to_string() == before.journal);
    let in_bucket = in_bucket.map_or(0, |row| row.position.0).max(before.journal_committed);
    let is_there = recovery.id.to_string() == before.journal;
    let found = if is_there { recovery.last.0 } else { 0 };
    let (synced, found) = (before.journal_synced, found.max(in_bucket));
    match synced > found {
        true => Err(StackError::JournalLost { is_there, records: synced - found }),
        false => Ok(()),
    }
}

/// What becomes of a journal that a copy of its directory has overtaken: what is in it beyond
/// `committed` belongs to a history that is no more. Without anything it goes on, behind the
/// numbers that the copy has used.
pub(crate) fn go_on_beside(
    recovery: &Recovery,
    row: Option<CommitRow>,
    committed: JournalPos,
) -> Lineage {
    if recovery.last > committed {
        return Lineage::Overtaken;
    }
    let base = row.map_or(committed, |row| row.position).max(recovery.last);
    Lineage::Continues(base, Vec::new())
}

/// What becomes of the local journal.
pub(crate) enum Lineage {
    /// Records after this position are still to be committed: these. Where the journal ends before
    /// it, it goes on behind it.
    Continues(JournalPos, Vec<RecordLoc>),
    /// Another writer has committed since, and records here were never committed; or the bucket
    /// was put back to before them.
    Overtaken,
}

/// Whether the local journal may be replayed over what the bucket has. A bucket that lost what
/// this journal was told to be committed was rolled back; with `accept_rollback` the journal,
/// which continues a history that is no more, counts as overtaken.
pub(crate) fn lineage(
    recovery: &Recovery,
    row: Option<CommitRow>,
    before: &Remembered,
    accept_rollback: bool,
) -> Result<Lineage, StackError> {
    let locs = |records: &[(JournalPos, RecordLoc)]| records.iter().map(|(_, loc)| *loc).collect();
    if let Some(row) = row
        && row.journal == recovery.id
    {
        if row.position < recovery.released {
            if accept_rollback {
                return Ok(Lineage::Overtaken);
            }
            let (found, seen) = (row.sequence, before.sequence.max(row.sequence + 1));
            return Err(StackError::Rollback { found, seen });
        }
        // A rollback that was accepted: what the journal still has belongs to the history that
        // was given up, and may have gaps.
        if row.sequence < before.sequence && row.position < recovery.last {
            return Ok(Lineage::Overtaken);
        }
        if row.position > recovery.last {
            return Ok(Lineage::Continues(row.position, Vec::new()));
        }
        return Ok(Lineage::Continues(row.position, locs(recovery.after(row.position)?)));
    }
    let known =
        if before.journal == recovery.id.to_string() { before.journal_committed } else { 0 };
    let committed = JournalPos(known.max(recovery.released.0));
    if recovery.last <= committed {
        // If it is less, a power loss took records that were committed: their numbers are used up.
        return Ok(Lineage::Continues(recovery.last.max(committed), Vec::new()));
    }
    let found = row.map_or(0, |row| row.sequence);
    if before.journal == recovery.id.to_string() && before.lineage == found {
        return Ok(Lineage::Continues(committed, locs(recovery.after(committed)?)));
    }
    Ok(Lineage::Overtaken)
}
