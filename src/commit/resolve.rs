//! New extents over old ones: which rows a commit deletes and writes for the contents of files.
//!
//! A file of one extent has it in its inode row, a file of more has `e` rows. Pending inode rows
//! carry no extent: what operations change of an inode and where its data lies come together here,
//! and only here, when the row is committed.

use std::collections::{BTreeMap, HashSet};

use super::accounts::Changes;
use super::extents::{Committed, inode_row};
use super::pack::{Change, FileChanges, Plan, SegmentPos};
use super::pending::{CommitGroup, PendingRow};
use super::view::{View, ViewError};
use crate::base::{ContentsId, Ino};
use crate::data::{Extent, Overlay, Source};
use crate::meta::{Inode, Kind, MarkerRow, keys};

/// Committed extents that the first scan for a range brings, and the most that a later one does:
/// a small file has one, a long write may cover thousands, and scattered ones few each.
const SCAN_ROWS_FIRST: usize = 8;
const SCAN_ROWS_MAX: usize = 256;
/// A dropped file with at most this many extents is deleted with the commit; a larger one in
/// the background, so that deleting it is a small number of rows now: those of a group are one object of the
/// log, which must not grow past what a proxy takes.
pub const INLINE_DROP_EXTENTS: usize = 8;

/// What a group does to one inode.
#[derive(Debug, Default)]
pub struct Touched<'a> {
    row: Option<&'a PendingRow>,
    /// What changes of its contents.
    changed: Vec<&'a FileChanges>,
    /// Data incarnations that end.
    dropped: Vec<u32>,
}

/// The inodes that a group touches, whose contents `plan` has packed.
pub fn touched<'a>(group: &'a CommitGroup, plan: &'a Plan) -> BTreeMap<Ino, Touched<'a>> {
    let mut all: BTreeMap<Ino, Touched<'a>> = BTreeMap::new();
    let (from, to) = keys::all_with_tag(b'i');
    for (key, row) in group.rows.range(from..to) {
        if let Some(ino) = keys::inode_of(key) {
            all.entry(ino).or_default().row = Some(row);
        }
    }
    for changes in &plan.files {
        all.entry(changes.file.ino).or_default().changed.push(changes);
    }
    for file in &group.dropped {
        all.entry(file.ino).or_default().dropped.push(file.incarnation);
    }
    all
}

/// Adds to `out` the rows of one inode and its extents. An inode row that is not in `out` is
/// committed as it is pending.
pub async fn apply_inode(
    view: &View,
    out: &mut Changes,
    ino: Ino,
    touched: &Touched<'_>,
) -> Result<(), ViewError> {
    let pending = touched.row.and_then(|row| row.value.as_deref());
    let pending = pending.map(Inode::decode).transpose()?;
    let is_file = pending.as_ref().is_none_or(|inode| inode.kind == Kind::File);
    if !is_file && touched.changed.is_empty() && touched.dropped.is_empty() {
        return Ok(());
    }
    let before = match touched.row.is_some_and(PendingRow::is_fresh) {
        true => None,
        false => view.committed_inode(ino).await?,
    };
    let was = before.as_ref().and_then(|b| Some((b.inode.incarnation, b.extent?)));
    let after = match touched.row {
        Some(_) => pending,
        None => before.as_ref().map(|b| b.inode.clone()),
    };
    let mut carried = was;
    for &incarnation in &touched.dropped {
        let file = ContentsId { ino, incarnation };
        match carried.take_if(|(of, _)| *of == incarnation) {
            Some((_, extent)) => {
                out.lose(&extent);
                out.disown(extent.segment, file);
            }
            None => drop_rows(view, out, file).await?,
        }
    }
    for FileChanges { file, changes, fresh } in touched.changed.iter().copied() {
        let only = carried.take_if(|(of, _)| *of == file.incarnation).map(|(_, extent)| extent);
        let ranges = changes.iter().map(|c| (c.start, c.end));
        let places = Places::of(view, *file, only, *fresh, ranges).await?;
        let may_carry = Committed::may_carry(after.as_ref(), file.incarnation);
        let only = places.change(view, out, changes, may_carry).await?;
        carried = only.map(|extent| (file.incarnation, extent)).or(carried);
    }
    // No operation does that; a repair may. Nothing is lost: `fsck` finds it.
    let homeless = |(of, _): &mut (u32, Extent)| !Committed::may_carry(after.as_ref(), *of);
    if let Some((incarnation, extent)) = carried.take_if(homeless) {
        out.put_row(ContentsId { ino, incarnation }, &extent);
    }
    let changed = match touched.row {
        Some(_) => carried.is_some(),
        None => carried != was,
    };
    if let Some(inode) = after.filter(|_| changed) {
        let row = inode_row(&inode, carried.as_ref().map(|(_, extent)| extent));
        out.rows.insert(keys::inode(ino), Some(row));
    }
    Ok(())
}

/// The committed extents of one file that touch `ranges`, which are in order, and some beside them,
/// by end.
pub async fn extents_at(
    view: &View,
    file: ContentsId,
    ranges: impl Iterator<Item = (u64, u64)>,
) -> Result<BTreeMap<u64, Extent>, ViewError> {
    let before = view.committed_inode(file.ino).await?;
    let only = before.as_ref().and_then(|b| b.of(file.incarnation));
    Ok(Places::of(view, file, only, false, ranges).await?.all())
}

/// Moves committed extents of one file: applies what `changes` makes of those that touch `ranges`,
/// which are in order, and some beside them (by end). Nobody may come to share them meanwhile
/// ([`View::begin_moving`]). Returns the bytes that move.
pub async fn move_extents(
    view: &View,
    out: &mut Changes,
    file: ContentsId,
    ranges: impl Iterator<Item = (u64, u64)>,
    changes: impl FnOnce(&BTreeMap<u64, Extent>) -> Vec<Change>,
) -> Result<u64, ViewError> {
    let before = view.committed_inode(file.ino).await?;
    let was = before.as_ref().and_then(|b| b.of(file.incarnation));
    let places = Places::of(view, file, was, false, ranges).await?;
    let changes = changes(&places.all());
    let inode = before.map(|b| b.inode);
    let may_carry = Committed::may_carry(inode.as_ref(), file.incarnation);
    let only = places.change(view, out, &changes, may_carry).await?;
    if let Some(inode) = inode.filter(|_| only != was) {
        out.rows.insert(keys::inode(file.ino), Some(inode_row(&inode, only.as_ref())));
    }
    Ok(changes.iter().map(|c| c.end - c.start).sum())
}

/// Committed extents of one file: all, or those that touch some ranges.
struct Places {
    file: ContentsId,
    /// In the inode row.
    only: Option<Extent>,
    /// In `e` rows, by end.
    rows: BTreeMap<u64, Extent>,
    /// There are no others.
    complete: bool,
}

impl Places {
    /// Those that touch `ranges`, and some beside them. `fresh`: there are none.
    async fn of(
        view: &View,
        file: ContentsId,
        only: Option<Extent>,
        fresh: bool,
        ranges: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Places, ViewError> {
        let complete = fresh || only.is_some();
        let rows = match complete {
            true => BTreeMap::new(),
            false => committed(view, file, ranges).await?,
        };
        Ok(Places { file, only, rows, complete })
    }

    fn all(&self) -> BTreeMap<u64, Extent> {
        let only = self.only.iter().map(|e| (e.end, *e));
        self.rows.iter().map(|(end, e)| (*end, *e)).chain(only).collect()
    }

    /// Applies `changes`, which touch no other extents. Returns the file's only extent, for the
    /// inode row, if that `may_carry` one and there is one.
    async fn change(
        self,
        view: &View,
        out: &mut Changes,
        changes: &[Change],
        may_carry: bool,
    ) -> Result<Option<Extent>, ViewError> {
        let old = self.all();
        let mut new = changed(&old, changes);
        old.values().for_each(|e| out.lose(e));
        new.values().for_each(|e| out.gain(e));
        if self.complete {
            let kept: HashSet<_> = new.values().map(|e| e.segment).collect();
            let gone = old.values().map(|e| e.segment).filter(|id| !kept.contains(id));
            gone.for_each(|id| out.disown(id, self.file));
        }
        let mut only = None;
        if may_carry && new.len() <= 1 {
            let other = match self.complete {
                true => Vec::new(),
                // Two more than are known: as many as there need be to be sure.
                false => view.scan_extents(self.file, 0, old.len() + 2).await?.0,
            };
            let other: Vec<_> = other.iter().filter(|e| old.get(&e.end) != Some(e)).collect();
            match (new.len(), &other[..]) {
                (_, []) => only = new.pop_first().map(|(_, extent)| extent),
                (0, [other]) => {
                    out.rows.insert(keys::extent(self.file, other.end), None);
                    only = Some(**other);
                }
                _ => {}
            }
        }
        for (end, e) in self.rows.iter().filter(|(end, e)| new.get(end) != Some(e)) {
            debug_assert_eq!(*end, e.end);
            out.rows.insert(keys::extent(self.file, *end), None);
        }
        for (_, e) in new.iter().filter(|(end, e)| self.rows.get(end) != Some(e)) {
            out.put_row(self.file, e);
        }
        Ok(only)
    }
}

/// What `changes` make of the extents `old`, by end.
fn changed(old: &BTreeMap<u64, Extent>, changes: &[Change]) -> BTreeMap<u64, Extent> {
    let mut now: Overlay<Source> = Overlay::default();
    for e in old.values() {
        now.insert(e.start, e.end, Source::Segment { id: e.segment, offset: e.offset });
    }
    for change in changes {
        match change.to {
            Some(SegmentPos { id, offset }) => {
                now.insert(change.start, change.end, Source::Segment { id, offset });
            }
            None => now.cut(change.start, change.end),
        }
    }
    let extent = |(start, end, source)| match source {
        Source::Segment { id, offset } => (end, Extent { start, end, segment: id, offset }),
        _ => unreachable!("only segments were inserted"),
    };
    now.iter().map(extent).collect()
}

/// The `e` rows that touch `ranges`, which are in order, and some beside them, by end.
async fn committed(
    view: &View,
    file: ContentsId,
    ranges: impl Iterator<Item = (u64, u64)>,
) -> Result<BTreeMap<u64, Extent>, ViewError> {
    let mut found = BTreeMap::new();
    // Everything below `known` has been looked at; skips what no range touches.
    let mut known = 0;
    for (start, end) in ranges {
        let mut rows = SCAN_ROWS_FIRST;
        while known < end {
            let from = known.max(start);
            let (extents, complete_to) = view.scan_extents(file, from, rows).await?;
            found.extend(extents.into_iter().map(|e| (e.end, e)));
            known = complete_to;
            rows = (rows * 4).min(SCAN_ROWS_MAX);
        }
    }
    Ok(found)
}

/// Drops all `e` rows of a data incarnation, if they are few; else leaves a `r` row.
async fn drop_rows(view: &View, out: &mut Changes, file: ContentsId) -> Result<(), ViewError> {
    if file.incarnation != keys::RECLAIM_INODE {
        let (extents, complete_to) = view.scan_extents(file, 0, INLINE_DROP_EXTENTS + 1).await?;
        if complete_to == u64::MAX {
            for extent in &extents {
                out.delete_extent(file, extent);
                out.disown(extent.segment, file);
            }
            return Ok(());
        }
    }
    out.rows.insert(keys::reclaim(file), Some(MarkerRow::encode()));
    Ok(())
}
