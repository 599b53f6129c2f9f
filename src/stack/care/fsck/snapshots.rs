//! Every snapshot by the same rules as the volume, and what it refers to added up with what the volume
//! does: so each object is looked at, and read, once, however many share it.

use std::collections::HashMap;
use std::ops::Range;

use super::{OPEN_TIMEOUT, Run, paths};
use crate::base::{SegmentId, one_line};
use crate::commit::ViewError;
use crate::commit::check::{CheckOptions, Report, Segments, check};
use crate::commit::snapshots::{Snapshot, open_snapshot, snapshot, snapshots};
use crate::stack::StackError;
use crate::store::kv::{Kv, KvError};

/// Snapshots that are searched for the files that damage touches.
const SEARCHED_MAX: usize = 100;

/// What was found in snapshots.
#[derive(Default)]
pub(super) struct Past {
    /// Sentences.
    pub(super) problems: Vec<String>,
    readable: Vec<Snapshot>,
}

impl Run<'_> {
    /// Checks the rows of each snapshot of `kv`, and takes up into `segments` what they refer to.
    pub(super) async fn look_at_snapshots(
        &self,
        kv: &Kv,
        segments: &mut Segments,
        notes: &mut Vec<String>,
    ) -> Result<Past, StackError> {
        let mut past = Past::default();
        let all = match snapshots(kv).await {
            Err(ViewError::Row(e)) => {
                past.problems.push(format!("snapshots cannot be listed: {e}"));
                Vec::new()
            }
            all => all?,
        };
        for snapshot in all {
            let shown = one_line(snapshot.name.as_str());
            match self.check_snapshot(kv, &snapshot).await {
                Ok((report, of)) => {
                    let found = report.problems();
                    past.problems
                        .extend(found.iter().map(|what| format!("snapshot {shown}: {what}")));
                    if report.more > 0 {
                        past.problems
                            .push(format!("snapshot {shown}: {} more of this kind", report.more));
                    }
                    let forgotten = segments.take_up(&of).into_iter();
                    past.problems.extend(forgotten.map(|id| {
                        format!(
                            "snapshot {shown} needs segment {id}, and no row of the volume says so"
                        )
                    }));
                    past.readable.push(snapshot);
                }
                Err(_) if self.was_deleted(&snapshot).await? => {
                    notes.push(format!("snapshot {shown} was deleted meanwhile"));
                }
                Err(ViewError::Store(KvError::Damaged(why))) => {
                    past.problems.push(format!("snapshot {shown} cannot be read: {why}"));
                }
                Err(e) => return Err(e.into()),
            }
            if self.stopped() {
                break;
            }
        }
        Ok(past)
    }

    async fn check_snapshot(
        &self,
        kv: &Kv,
        snapshot: &Snapshot,
    ) -> Result<(Report, Segments), ViewError> {
        let opened = open_snapshot(kv, &snapshot.row, OPEN_TIMEOUT).await?;
        let checked = check(&opened, CheckOptions::default(), &self.progress.rows).await;
        let _ = opened.close(false).await; // a reader: there is nothing to lose
        checked
    }

    /// Whether somebody who writes has deleted it since.
    async fn was_deleted(&self, was: &Snapshot) -> Result<bool, StackError> {
        if !self.writer {
            return Ok(false);
        }
        let kv = self.volume.frozen().await?;
        let now = snapshot(&kv, &was.name).await;
        let _ = kv.close(false).await; // a reader: there is nothing to lose
        Ok(now?.is_none_or(|now| now.row.checkpoint != was.row.checkpoint))
    }

    /// The files of snapshots that these ranges of segments are of: of each segment those in the
    /// newest snapshot that refers to it.
    pub(super) async fn files_of_snapshots(
        &self,
        kv: &Kv,
        past: &Past,
        lost: &HashMap<SegmentId, Vec<Range<u64>>>,
    ) -> Result<HashMap<SegmentId, Vec<String>>, StackError> {
        let mut found: HashMap<SegmentId, Vec<String>> = HashMap::new();
        for snapshot in past.readable.iter().rev().take(SEARCHED_MAX) {
            let todo: HashMap<_, _> = lost
                .iter()
                .filter(|(id, _)| !found.contains_key(*id))
                .map(|(id, ranges)| (*id, ranges.clone()))
                .collect();
            if todo.is_empty() {
                break;
            }
            let Ok(opened) = open_snapshot(kv, &snapshot.row, OPEN_TIMEOUT).await else { continue };
            let described = describe(&opened, &todo).await;
            let _ = opened.close(false).await; // a reader: there is nothing to lose
            let name = one_line(snapshot.name.as_str());
            for (id, files) in described?.into_iter().filter(|(_, files)| !files.is_empty()) {
                let files = files.into_iter().map(|file| format!("snapshot {name}: {file}"));
                found.insert(id, files.collect());
            }
        }
        Ok(found)
    }
}

async fn describe(
    kv: &Kv,
    lost: &HashMap<SegmentId, Vec<Range<u64>>>,
) -> Result<Vec<(SegmentId, Vec<String>)>, ViewError> {
    let touched = paths::touched_files(kv, lost).await?;
    let mut names = paths::Names::find(kv, touched.inodes()).await?;
    let mut described = Vec::new();
    for &id in lost.keys() {
        described.push((id, names.describe(kv, touched.of(id)).await?));
    }
    Ok(described)
}
