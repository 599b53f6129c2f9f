//! All rows of an inode against each other, in one walk over the rows of every kind at once:
//! they are all in the order of inode numbers.

use super::{Check, Directory, Finding};
use crate::base::{ContentsId, Ino};
use crate::commit::extents::{Committed, extent_of};
use crate::commit::scan::Cursor;
use crate::commit::view::ViewError;
use crate::data::Extent;
use crate::meta::keys::{self, RECLAIM_INODE};
use crate::meta::{DecodeError, Dirent, Inode, Kind};

/// What else there is of an inode besides its row and its data.
#[derive(Default)]
struct Rest {
    entries: u64,
    subdirs: u64,
    xattrs: u32,
    orphan: bool,
    reclaims: Vec<u32>,
}

/// A run of extents of one data incarnation.
#[derive(Clone, Copy, Default)]
struct Run {
    incarnation: u32,
    extents: u64,
    bytes: u64,
    end: u64,
}

impl Check<'_> {
    pub(super) async fn inodes(&mut self) -> Result<(), ViewError> {
        let (kv, rows) = (self.kv, self.rows);
        let cursor = |tag| Cursor::new(kv, tag).counting(rows);
        let mut all = [b'i', b'd', b'x', b'o', b'r', b'e'].map(cursor);
        loop {
            let mut next = None;
            for cursor in &mut all {
                next = [next, cursor.ino().await?].into_iter().flatten().min();
            }
            let Some(number) = next else { break };
            let [inodes, dirents, xattrs, orphans, reclaims, extents] = &mut all;
            let ino = Ino(number);
            let mut inode = None;
            let mut rest = Rest::default();
            while let Some((key, value)) = inodes.next_of(number).await? {
                let whole = keys::inode_of(&key).ok_or(DecodeError("inode key"));
                inode = self.decoded(&key, whole.and_then(|_| Committed::decode(&value)));
                if let Some(only) = inode.as_ref().and_then(|i| i.only_extent(ino)) {
                    self.claim(only);
                }
            }
            while let Some((key, value)) = dirents.next_of(number).await? {
                let whole = keys::dirent_of(&key).ok_or(DecodeError("entry key"));
                let entry = self.decoded(&key, whole.and_then(|_| Dirent::decode(&value)));
                entry.iter().for_each(|&entry| self.sums.name(ino, entry));
                rest.entries += 1;
                rest.subdirs += u64::from(entry.is_some_and(|e| e.kind == Kind::Dir));
            }
            while let Some((key, _)) = xattrs.next_of(number).await? {
                self.decoded(&key, keys::xattr_of(&key).ok_or(DecodeError("attribute key")));
                rest.xattrs += 1;
            }
            while let Some((key, _)) = orphans.next_of(number).await? {
                let whole = keys::orphan_of(&key).ok_or(DecodeError("orphan key"));
                rest.orphan |= self.decoded(&key, whole).is_some();
            }
            while let Some((key, _)) = reclaims.next_of(number).await? {
                let of = keys::reclaim_of(&key).ok_or(DecodeError("reclaim key"));
                rest.reclaims.extend(self.decoded(&key, of).map(|file| file.incarnation));
            }
            let bytes = self.extents_of(ino, inode.as_ref(), &rest, extents).await?;
            self.one(ino, inode.map(|i| i.inode), &rest, bytes);
        }
        if self.directories.first().is_none_or(|first| first.ino != Ino::ROOT) {
            self.report.note(Finding::NoRoot);
        }
        Ok(())
    }

    /// The extents of an inode; how many bytes belong to the file as it is.
    async fn extents_of(
        &mut self,
        ino: Ino,
        inode: Option<&Committed>,
        rest: &Rest,
        extents: &mut Cursor<'_>,
    ) -> Result<u64, ViewError> {
        let only = inode.and_then(|i| i.extent);
        let current = inode.map(|i| &i.inode).filter(|i| i.kind == Kind::File);
        let (mut bytes, mut run, mut behind) = (0, Run::default(), false);
        if let (Some(e), Some(inode)) = (only, current) {
            self.segments.refer(&e);
            bytes = e.end - e.start;
            if e.end > inode.size {
                let (end, size) = (e.end, inode.size);
                self.report.note(Finding::ExtentBehindEnd { ino, end, size });
            }
        }
        loop {
            let row = extents.next_of(ino.0).await?;
            let decoded = match &row {
                Some((key, value)) => self.decoded(key, extent_of(key, value)),
                None => None,
            };
            let decoded = decoded.map(|(file, extent)| (file.incarnation, extent));
            let incarnation = decoded.map(|(incarnation, _)| incarnation);
            if run.extents > 0
                && (row.is_none() || incarnation.is_some_and(|g| g != run.incarnation))
            {
                let owned = current.is_some_and(|i| i.incarnation == run.incarnation);
                if owned {
                    bytes += run.bytes;
                    if only.is_some() {
                        let Run { extents, .. } = run;
                        self.report.note(Finding::RowsBesideOnlyExtent { ino, extents });
                    }
                } else if !rest.reclaims.contains(&run.incarnation) {
                    let Run { incarnation, extents, bytes, end } = run;
                    let stray = Finding::StrayExtents { ino, incarnation, extents, end, bytes };
                    self.report.note(stray);
                }
                run = Run::default();
            }
            if row.is_none() {
                return Ok(bytes);
            }
            let Some((incarnation, extent)) = decoded else { continue };
            let Extent { start, end, .. } = extent;
            self.segments.refer(&extent);
            self.claim((ContentsId { ino, incarnation }, extent));
            if run.extents > 0 && start < run.end {
                self.report.note(Finding::ExtentsOverlap { ino, incarnation, at: start });
            }
            let size = current.filter(|i| i.incarnation == incarnation).map(|i| i.size);
            if let Some(size) = size.filter(|size| end > *size && !behind) {
                behind = true; // the first tells enough
                self.report.note(Finding::ExtentBehindEnd { ino, end, size });
            }
            let (extents, bytes) = (run.extents + 1, run.bytes + (end - start));
            run = Run { incarnation, extents, bytes, end };
        }
    }

    fn one(&mut self, ino: Ino, inode: Option<Inode>, rest: &Rest, bytes: u64) {
        let report = &mut self.report;
        report.orphans += u64::from(rest.orphan);
        report.bytes += bytes;
        let is_dir = inode.as_ref().is_some_and(|i| i.kind == Kind::Dir && i.nlink > 0);
        if rest.entries > 0 && !is_dir {
            report.note(Finding::StrayEntries { parent: ino, entries: rest.entries });
        }
        let Some(inode) = inode else {
            if rest.orphan {
                report.note(Finding::OrphanWithoutInode { ino });
            }
            if rest.xattrs > 0 && !rest.reclaims.contains(&RECLAIM_INODE) {
                report.note(Finding::StrayXattrs { ino, count: rest.xattrs });
            }
            return;
        };
        self.sums.inode(ino, &inode);
        self.found.inodes += 1;
        self.found.bytes += inode.allocated;
        self.last_ino = ino;
        match (inode.nlink, rest.orphan) {
            (0, false) => report.note(Finding::ForgottenOrphan { ino, kind: inode.kind }),
            (1.., true) => report.note(Finding::OrphanWithLinks { ino }),
            _ => {}
        }
        if rest.xattrs != inode.xattrs {
            let (said, found) = (inode.xattrs, rest.xattrs);
            report.note(Finding::XattrCount { ino, said, found });
        }
        if is_dir {
            self.directories.push(Directory { ino, parent: inode.parent });
            let (said, found) = (inode.nlink, 2 + rest.subdirs);
            if u64::from(said) != found {
                report.note(Finding::LinkCount { ino, said, found });
            }
            if inode.size != rest.entries {
                let (said, found) = (inode.size, rest.entries);
                report.note(Finding::EntryCount { ino, said, found });
            }
        }
        let most = match inode.kind {
            Kind::File => inode.size.div_ceil(4096).saturating_mul(4096),
            _ => 0,
        };
        if inode.allocated > most || bytes > 0 && inode.allocated == 0 {
            report.note(Finding::Blocks { ino, said: inode.allocated, bytes: bytes.min(most) });
        }
    }
}
