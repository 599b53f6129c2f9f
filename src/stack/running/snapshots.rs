//! Snapshots as commands see them: plain data, and what a running mount does for them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::unix_secs;
use crate::commit::snapshots::{Held, Snapshot, snapshots, what_they_hold};
use crate::commit::{Committer, SnapshotError, SnapshotOrder, ViewError};
use crate::meta::{SNAPSHOT_NOTE_MAX, SnapshotName, SnapshotOrigin};
use crate::store::kv::Kv;

/// How long making or deleting one may take, once everything written before is in the bucket; below
/// the patience of a command.
pub(crate) const SNAPSHOT_MAX: Duration = Duration::from_secs(50);

/// A snapshot. Field names are an interface (`--json`): added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// The commit that it is.
    pub commit: u64,
    /// When it was made.
    pub made_unix_secs: u64,
    /// When it is deleted; `None`: not by itself, or when the schedule has enough newer ones.
    pub expires_unix_secs: Option<u64>,
    /// Who asked for it: `by-hand`, `hourly`, `daily` or `monthly`.
    pub origin: String,
    /// What its maker says of it.
    pub note: String,
    /// Files, directories and the like in it.
    pub files: u64,
    /// Bytes of files in it.
    pub bytes: u64,
    /// Bytes of the bucket that come free when it alone is deleted.
    pub alone_bytes: u64,
    /// Bytes of the bucket that it needs and the volume does not, perhaps with other snapshots.
    pub kept_bytes: u64,
}

/// All snapshots. Field names are an interface (`--json`): added, never renamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// The oldest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// Bytes of the bucket that only snapshots need.
    pub kept_bytes: u64,
}

/// A snapshot that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotAsk {
    /// Its name.
    pub name: String,
    /// What its maker says of it.
    pub note: String,
    /// When it is to be deleted, Unix seconds; `None`: never by itself.
    pub expires_unix_secs: Option<u64>,
}

/// Why it was not done, by what to tell whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// It makes no sense: a name that is none.
    Usage,
    /// There is one of that name already, or none.
    Name,
    /// Too many.
    Full,
    /// The mount only reads.
    ReadOnly,
    /// Something is damaged.
    Damage,
    /// Another mount has the volume.
    Fenced,
    /// What was written before is not in the bucket.
    Pending,
    /// The store does not answer; it may have been done.
    Unclear,
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRefused {
    /// Of which kind.
    pub kind: RefusalKind,
    /// A sentence.
    pub message: String,
}

impl SnapshotRefused {
    /// Of a mount that does not write.
    pub(crate) fn read_only() -> SnapshotRefused {
        let message = "this mount only reads the volume".into();
        SnapshotRefused { kind: RefusalKind::ReadOnly, message }
    }
}

impl From<SnapshotError> for SnapshotRefused {
    fn from(e: SnapshotError) -> SnapshotRefused {
        let kind = match &e {
            SnapshotError::Exists(_) | SnapshotError::Missing(_) => RefusalKind::Name,
            SnapshotError::TooMany => RefusalKind::Full,
            SnapshotError::Damage => RefusalKind::Damage,
            SnapshotError::Fenced => RefusalKind::Fenced,
            SnapshotError::NotCommitted(_) => RefusalKind::Pending,
            SnapshotError::Unclear(_) => RefusalKind::Unclear,
        };
        SnapshotRefused { kind, message: e.to_string() }
    }
}

fn name(text: &str) -> Result<SnapshotName, SnapshotRefused> {
    SnapshotName::parse(text).map_err(|why| SnapshotRefused {
        kind: RefusalKind::Usage,
        message: format!("{text:?} cannot name a snapshot: {why}"),
    })
}

/// The word for who asked for a snapshot.
pub(crate) fn origin_word(origin: SnapshotOrigin) -> &'static str {
    match origin {
        SnapshotOrigin::ByHand => "by-hand",
        SnapshotOrigin::Hourly => "hourly",
        SnapshotOrigin::Daily => "daily",
        SnapshotOrigin::Monthly => "monthly",
    }
}

fn info(snapshot: &Snapshot, held: Held) -> SnapshotInfo {
    let row = &snapshot.row;
    SnapshotInfo {
        name: snapshot.name.to_string(),
        commit: row.commit,
        made_unix_secs: row.time_secs,
        expires_unix_secs: (row.expires_secs > 0).then_some(row.expires_secs),
        origin: origin_word(row.origin).into(),
        note: row.note.clone(),
        files: row.files,
        bytes: row.bytes,
        alone_bytes: held.alone,
        kept_bytes: held.kept,
    }
}

/// All snapshots of a volume, and what they hold.
pub(crate) async fn list(kv: &Kv) -> Result<SnapshotList, ViewError> {
    let all = snapshots(kv).await?;
    let (held, kept) = what_they_hold(kv, &all).await?;
    let snapshots = all.iter().zip(held).map(|(snapshot, held)| info(snapshot, held)).collect();
    Ok(SnapshotList { snapshots, kept_bytes: kept.bytes })
}

impl SnapshotAsk {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// Of kind [`RefusalKind::Usage`].
    pub fn check(&self) -> Result<(), SnapshotRefused> {
        name(&self.name)?;
        let usage = |message: String| SnapshotRefused { kind: RefusalKind::Usage, message };
        if self.note.len() > SNAPSHOT_NOTE_MAX {
            return Err(usage(format!("the note is longer than {SNAPSHOT_NOTE_MAX} bytes")));
        }
        if self.expires_unix_secs.is_some_and(|at| at <= unix_secs()) {
            return Err(usage("it would be deleted at once".into()));
        }
        Ok(())
    }
}

/// Makes a snapshot.
pub(crate) async fn create(
    committer: &Committer,
    ask: SnapshotAsk,
) -> Result<SnapshotInfo, SnapshotRefused> {
    ask.check()?;
    let name = name(&ask.name)?;
    let expires_secs = ask.expires_unix_secs.unwrap_or(0);
    let order =
        SnapshotOrder { name, note: ask.note, expires_secs, origin: SnapshotOrigin::ByHand };
    let made = committer.create_snapshot(order, SNAPSHOT_MAX).await?;
    Ok(info(&made, Held::default()))
}

/// Deletes snapshots: all of these or none.
pub(crate) async fn delete(
    committer: &Committer,
    names: Vec<String>,
) -> Result<(), SnapshotRefused> {
    let names = names.iter().map(|text| name(text)).collect::<Result<_, _>>()?;
    Ok(committer.delete_snapshots(names, SNAPSHOT_MAX).await?)
}
