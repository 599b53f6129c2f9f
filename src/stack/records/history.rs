//! Whether the bucket continues what this machine has seen: the chain values of commits against
//! the one that it remembers (FORMAT.md "History"). Reads only. Called before anything is written,
//! by `fsck`, and by followers as they go on.

use super::accept::Accept;
use super::state::Remembered;
use crate::base::{ChainValue, hex};
use crate::commit::ViewError;
use crate::meta::{CommitRow, HistoryRow, keys};
use crate::stack::StackError;
use crate::store::kv::Kv;

/// The chain value of commit `number`, if `now`, the last commit, is later and it has a row.
async fn value_at(kv: &Kv, now: CommitRow, number: u64) -> Result<Option<ChainValue>, ViewError> {
    if number == now.sequence {
        return Ok(Some(now.chain));
    }
    let row = kv.get(&keys::history(number)).await?;
    Ok(row.as_deref().map(HistoryRow::decode).transpose()?.map(|row| row.0))
}

/// Refuses a bucket whose last commit is `now` if it does not contain what this machine remembers,
/// or is not as far as `at_least`, of which this machine was told. `accept` waives what the machine
/// remembers, each for itself.
///
/// # Errors
/// [`StackError::TooOld`], [`StackError::Rollback`], [`StackError::OtherHistory`]; the store's.
pub(crate) async fn refuse_discord(
    kv: &Kv,
    now: Option<CommitRow>,
    before: &Remembered,
    at_least: u64,
    accept: Accept,
) -> Result<(), StackError> {
    let found = now.map_or(0, |row| row.sequence);
    if found < at_least {
        return Err(StackError::TooOld { found, at_least });
    }
    if found < before.sequence {
        if !accept.older {
            return Err(StackError::Rollback { found, seen: before.sequence });
        }
        log::warn!(
            "the bucket is at commit {found}, this machine has seen {}: accepted, the commits \
             between are given up",
            before.sequence
        );
    }
    let Some(now) = now else { return Ok(()) };
    // The newer first; what has no row any more is too long ago.
    for (number, seen) in [before.last(), before.checkpoint()].into_iter().flatten() {
        if number == 0 || number > found {
            continue;
        }
        match value_at(kv, now, number).await? {
            Some(value) if value == seen => return Ok(()),
            Some(value) if accept.history => {
                log::warn!("{}: accepted, that history is given up", other(number, seen, value));
                return Ok(());
            }
            Some(value) => return Err(other(number, seen, value)),
            None => {}
        }
    }
    Ok(())
}

fn other(commit: u64, seen: ChainValue, found: ChainValue) -> StackError {
    let short = |value: ChainValue| hex(&value.0[..8]);
    StackError::OtherHistory { commit, seen: short(seen), found: short(found) }
}

/// What to remember of a bucket whose last commit is `now`.
///
/// # Errors
/// The store's.
pub(crate) async fn remember(
    kv: &Kv,
    now: Option<CommitRow>,
    remembered: &mut Remembered,
) -> Result<(), StackError> {
    let Some(now) = now else { return Ok(()) };
    let every = now.sequence - now.sequence % HistoryRow::EVERY;
    let checkpoint = match every {
        0 => None,
        _ if remembered.checkpoint().is_some_and(|(number, _)| number == every) => None,
        _ => value_at(kv, now, every).await?,
    };
    remembered.saw(now.sequence, now.chain);
    if let Some(value) = checkpoint {
        remembered.saw_checkpoint(every, value);
    }
    Ok(())
}
