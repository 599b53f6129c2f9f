//! What can be put right, and how: only from what the rows themselves prove, never by a guess.
//!
//! Counts are set to what is there. What lost its name or its directory goes to `/lost+found`,
//! under its inode number. Data without a file becomes a file there. Nothing that holds
//! contents is deleted; what two rows claim, and what the bucket has lost, is reported and left.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt};

use super::objects::Objects;
use super::paths::names_of;
use crate::base::{Clock, ContentsId, Ino, SegmentId, SystemClock, counted, unix_secs};
use crate::commit::check::{Finding, Segments};
use crate::commit::layouts::layout_in;
use crate::commit::snapshots::{Snapshot, snapshots};
use crate::commit::{Batch, View, ViewError, last_commit};
use crate::fs::{Fs, FsError};
use crate::meta::{
    DeadRow, DecodeError, Dirent, ExtentRow, Inode, KeptRow, Kind, MarkerRow, NameHash, SegmentRow,
    keys,
};
use crate::seal::VolumeKeys;
use crate::stack::{Mounted, StackError};
use crate::store::kv::Kv;

/// Where what has no place goes.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Rows of extents that one batch moves.
const MOVE_ROWS: usize = 1000;

/// Repairs through a mount, by what a check of `kv` found.
pub(super) struct Repair<'a> {
    fs: &'a Arc<Fs>,
    view: &'a View,
    kv: &'a Kv,
    store: &'a dyn ObjectStore,
    name_hash_key: [u8; 16],
}

fn fail(e: FsError) -> StackError {
    StackError::Repair(e.to_string())
}

impl Repair<'_> {
    /// `store` is the bucket below sealing.
    pub(super) fn new<'a>(
        mounted: &'a Mounted,
        kv: &'a Kv,
        store: &'a dyn ObjectStore,
        keys: &VolumeKeys,
    ) -> Repair<'a> {
        let name_hash_key = keys.name_hash_key();
        Repair { fs: &mounted.fs, view: mounted.view(), kv, store, name_hash_key }
    }

    /// Puts right what can be put right now; what was done, in sentences. Structure goes before
    /// the counts of it: those are left to the next round while there is any.
    pub(super) async fn round(
        &self,
        findings: &[Finding],
        segments: &Segments,
        objects: &Objects,
    ) -> Result<Vec<String>, StackError> {
        let mut done = Vec::new();
        for finding in findings {
            if let Some(what) = self.structure(finding).await? {
                done.push(format!("{finding}: {what}"));
            }
        }
        if done.is_empty() {
            for finding in findings {
                if let Some(what) = self.counts(finding, segments, objects).await? {
                    done.push(format!("{finding}: {what}"));
                }
            }
        }
        if done.is_empty() && !objects.leaked.is_empty() {
            let mut batch = Batch::default();
            for id in &objects.leaked {
                batch.put(keys::dead_segment(unix_secs(), *id), DeadRow::UNBORN.encode());
            }
            self.submit(batch).await?;
            let n = objects.leaked.len() as u64;
            let (segments, them) = (counted(n, "segment"), if n == 1 { "it" } else { "them" });
            done.push(format!("{segments} that no row knows: the next mount deletes {them}"));
        }
        for probe in &objects.probes {
            let deleted = self.store.delete(probe).await;
            deleted.map_err(|e| StackError::store(format!("deleting {probe}"), e))?;
            done.push(format!("{probe}, left of a mount that was killed: deleted"));
        }
        Ok(done)
    }

    async fn submit(&self, batch: Batch) -> Result<(), StackError> {
        self.fs.mend(batch).await.map_err(fail)
    }

    async fn inode(&self, ino: Ino) -> Result<Option<Inode>, StackError> {
        let row = self.view.get(&keys::inode(ino)).await?;
        let inode = row.map(|row| Inode::decode(&row)).transpose();
        Ok(inode.map_err(ViewError::from)?)
    }

    /// What hangs in the air gets a place.
    async fn structure(&self, finding: &Finding) -> Result<Option<&'static str>, StackError> {
        let mut batch = Batch::default();
        let done = match finding {
            Finding::NoRoot => {
                self.put_directory(&mut batch, Ino::ROOT, Ino::ROOT);
                "an empty one was made; what lay in it comes back to it"
            }
            Finding::StrayEntries { parent, .. } if *parent == Ino::ROOT => return Ok(None),
            Finding::StrayEntries { parent, .. } => match self.inode(*parent).await? {
                None => {
                    let lost = self.lost_and_found().await?;
                    self.put_directory(&mut batch, *parent, lost);
                    self.link(&mut batch, lost, *parent, Kind::Dir).await?;
                    "they are in a directory of /lost+found now"
                }
                Some(inode) if inode.kind == Kind::Dir => {
                    batch.put(keys::inode(*parent), Inode { nlink: 2, ..inode }.encode());
                    "the directory is in use again"
                }
                Some(_) => return Ok(None),
            },
            Finding::DanglingName { parent, name, .. } => {
                batch.delete(self.dirent_key(*parent, name));
                "the name was removed"
            }
            Finding::KindDiffers { parent, name, ino, is } => {
                let entry = Dirent { ino: *ino, kind: *is };
                batch.put(self.dirent_key(*parent, name), entry.encode());
                "the name says so now"
            }
            Finding::Unnamed { ino, kind } | Finding::ForgottenOrphan { ino, kind } => {
                let Some(inode) = self.inode(*ino).await? else { return Ok(None) };
                if self.has_name(*ino).await? {
                    return Ok(None); // its link count is what is wrong
                }
                let lost = self.lost_and_found().await?;
                let is_dir = *kind == Kind::Dir;
                let nlink = if is_dir { inode.nlink.max(2) } else { 1 };
                let parent = if is_dir { lost } else { Ino(0) };
                batch.put(keys::inode(*ino), Inode { nlink, parent, ..inode }.encode());
                self.link(&mut batch, lost, *ino, *kind).await?;
                "it is in /lost+found now"
            }
            Finding::Cycle { ino } => {
                for (parent, name) in self.names(*ino).await? {
                    batch.delete(self.dirent_key(parent, &name));
                }
                "it was cut loose there"
            }
            Finding::ManyNames { ino, .. } => {
                let Some(inode) = self.inode(*ino).await? else { return Ok(None) };
                let names = self.names(*ino).await?;
                let stays = names.iter().position(|(parent, _)| *parent == inode.parent);
                for (n, (parent, name)) in names.iter().enumerate() {
                    if n != stays.unwrap_or(0) {
                        batch.delete(self.dirent_key(*parent, name));
                    }
                }
                "it keeps the one that it says itself"
            }
            Finding::WrongParent { ino, found, .. } => {
                let Some(inode) = self.inode(*ino).await? else { return Ok(None) };
                batch.put(keys::inode(*ino), Inode { parent: *found, ..inode }.encode());
                "it says so now"
            }
            Finding::StrayExtents { ino, incarnation, end, bytes, .. } => {
                self.adopt_data(*ino, *incarnation, *end, *bytes).await?;
                return Ok(Some("they are a file of /lost+found now"));
            }
            _ => return Ok(None),
        };
        if batch.is_empty() {
            return Ok(None);
        }
        self.submit(batch).await?;
        Ok(Some(done))
    }

    /// What is counted is set to what is there.
    async fn counts(
        &self,
        finding: &Finding,
        segments: &Segments,
        objects: &Objects,
    ) -> Result<Option<&'static str>, StackError> {
        let mut batch = Batch::default();
        match finding {
            Finding::LinkCount { ino, found, .. } => {
                let nlink = u32::try_from(*found).unwrap_or(u32::MAX);
                self.change(&mut batch, *ino, |inode| inode.nlink = nlink).await?;
            }
            Finding::EntryCount { ino, found, .. } => {
                self.change(&mut batch, *ino, |inode| inode.size = *found).await?;
            }
            Finding::XattrCount { ino, found, .. } => {
                self.change(&mut batch, *ino, |inode| inode.xattrs = *found).await?;
            }
            Finding::Blocks { ino, said, bytes } => {
                self.change(&mut batch, *ino, |inode| inode.allocated = *bytes).await?;
                batch.bytes = (*bytes as i64).wrapping_sub(*said as i64);
            }
            Finding::OrphanWithoutInode { ino } | Finding::OrphanWithLinks { ino } => {
                batch.delete(keys::orphan(*ino));
            }
            Finding::StrayXattrs { ino, .. } => {
                let all = ContentsId { ino: *ino, incarnation: keys::RECLAIM_INODE };
                batch.put(keys::reclaim(all), MarkerRow::encode());
            }
            Finding::DeadAndAlive { id, since_secs } => {
                batch.delete(keys::dead_segment(*since_secs, *id));
            }
            Finding::KeptAndAlive { id } => {
                let Some(sum) = segments.0.get(id) else { return Ok(None) };
                // What is in use is the volume's, what is kept is not dead.
                if sum.row.is_some() {
                    batch.delete(keys::kept_segment(*id));
                }
                if let Some(since_secs) = sum.dead_since {
                    batch.delete(keys::dead_segment(since_secs, *id));
                }
            }
            Finding::SegmentAccounting { id, .. }
            | Finding::SegmentHalf { id, .. }
            | Finding::OwnerCount { id, .. }
            | Finding::SegmentWithoutRow { id, .. } => {
                self.settle(&mut batch, *id, segments, objects).await?;
            }
            Finding::Totals { said, found } => {
                // Only once nothing else changes them.
                batch.inodes = found.inodes.wrapping_sub(said.inodes) as i64;
                batch.bytes = found.bytes.wrapping_sub(said.bytes) as i64;
                // A batch must change a row: the root's is put as it is.
                self.change(&mut batch, Ino::ROOT, |_| {}).await?;
            }
            Finding::NextIno { last, .. } => {
                batch.put(keys::next_ino(), number(last.0 + 1));
            }
            _ => {}
        }
        if batch.is_empty() {
            return Ok(None);
        }
        self.submit(batch).await?;
        Ok(Some("put right"))
    }

    /// Sets a segment's row to what extents refer to, if its size is known to hold that.
    async fn settle(
        &self,
        batch: &mut Batch,
        id: SegmentId,
        segments: &Segments,
        objects: &Objects,
    ) -> Result<(), StackError> {
        let Some(sum) = segments.0.get(&id) else { return Ok(()) };
        if sum.live == 0 {
            let (from, to) = keys::owners(id);
            let owners = self.kv.scan(&from, &to, MOVE_ROWS, 1 << 16).await?;
            owners.iter().for_each(|(key, _)| batch.delete(key[..].into()));
            if owners.len() == MOVE_ROWS {
                return Ok(()); // the rest in the next round
            }
        }
        let value = self.view.get(&keys::segment(id)).await?;
        let known = value.as_deref().and_then(|value| layout_in(id, value).ok());
        let (row, layout) = match (known, objects.unaccounted.get(&id)) {
            (Some(known), _) => known,
            (None, Some(layout)) => {
                // Of a row that was lost: as old as can be, so that nothing is deleted for it too
                // early.
                let size = layout.data_len;
                (SegmentRow { size, epoch: 1, ..SegmentRow::default() }, layout.clone())
            }
            (None, None) => return Ok(()),
        };
        let owners = u32::try_from(sum.owners).unwrap_or(u32::MAX);
        let last = last_commit(self.kv).await?.map_or(0, |commit| commit.sequence);
        let right = SegmentRow { owners, ..row }.with_live(sum.live, last + 1);
        if sum.live == 0 {
            // Nothing refers to it: it goes like every other such segment.
            let dead = DeadRow { birth: row.birth, death: last + 1 };
            batch.delete(keys::segment(id));
            let held = |s: &Snapshot| (dead.birth..dead.death).contains(&s.row.commit);
            if snapshots(self.kv).await?.iter().any(held) {
                let kept = KeptRow { death: dead.death, segment: row };
                batch.put(keys::kept_segment(id), kept.encode_with(&layout.to_row()));
            } else {
                batch.put(keys::dead_segment(unix_secs(), id), dead.encode());
            }
        } else if sum.end <= row.size && sum.row != Some(right) {
            batch.put(keys::segment(id), right.encode_with(&layout.to_row()));
        }
        Ok(())
    }

    async fn change(
        &self,
        batch: &mut Batch,
        ino: Ino,
        change: impl FnOnce(&mut Inode),
    ) -> Result<(), StackError> {
        if let Some(mut inode) = self.inode(ino).await? {
            change(&mut inode);
            batch.put(keys::inode(ino), inode.encode());
        }
        Ok(())
    }

    fn dirent_key(&self, parent: Ino, name: &[u8]) -> crate::meta::Key {
        keys::dirent(parent, NameHash::of(&self.name_hash_key, name), name)
    }

    async fn names(&self, ino: Ino) -> Result<Vec<(Ino, Bytes)>, StackError> {
        Ok(names_of(self.kv, &HashSet::from([ino])).await?.remove(&ino).unwrap_or_default())
    }

    async fn has_name(&self, ino: Ino) -> Result<bool, StackError> {
        Ok(!self.names(ino).await?.is_empty())
    }

    fn new_inode(kind: Kind, parent: Ino) -> Inode {
        let now = SystemClock.now();
        // SAFETY: these calls take nothing and cannot fail (getuid(2)).
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        let perm = if kind == Kind::Dir { 0o700 } else { 0o600 };
        Inode { parent, ..Inode::new(kind, perm, uid, gid, now) }
    }

    fn put_directory(&self, batch: &mut Batch, ino: Ino, parent: Ino) {
        batch.put(keys::inode(ino), Self::new_inode(Kind::Dir, parent).encode());
        batch.inodes += 1;
    }

    /// Takes the next inode number.
    async fn new_ino(&self, batch: &mut Batch) -> Result<Ino, StackError> {
        let row = self.view.get(&keys::next_ino()).await?;
        let row = row.ok_or(ViewError::from(DecodeError("no next inode number")))?;
        let next = crate::fs::decode_next_ino(&row).map_err(ViewError::from)?;
        batch.put(keys::next_ino(), number(next + 1));
        Ok(Ino(next))
    }

    /// The directory `/lost+found`; made if there is none.
    async fn lost_and_found(&self) -> Result<Ino, StackError> {
        let key = self.dirent_key(Ino::ROOT, LOST_AND_FOUND);
        if let Some(row) = self.view.get(&key).await? {
            let entry = Dirent::decode(&row).map_err(ViewError::from)?;
            if entry.kind == Kind::Dir && self.inode(entry.ino).await?.is_some() {
                return Ok(entry.ino);
            }
            let text = "/lost+found is no directory: rename it, then repair again";
            return Err(StackError::Repair(text.into()));
        }
        let mut batch = Batch::default();
        let ino = self.new_ino(&mut batch).await?;
        self.put_directory(&mut batch, ino, Ino::ROOT);
        batch.put(key, Dirent { ino, kind: Kind::Dir }.encode());
        self.change(&mut batch, Ino::ROOT, |root| {
            (root.nlink, root.size) = (root.nlink + 1, root.size + 1)
        })
        .await?;
        self.submit(batch).await?;
        Ok(ino)
    }

    /// Adds an entry of `/lost+found`, `lost`, named by the inode number.
    async fn link(
        &self,
        batch: &mut Batch,
        lost: Ino,
        ino: Ino,
        kind: Kind,
    ) -> Result<(), StackError> {
        for n in 0..1000 {
            let name = if n == 0 { format!("#{ino}") } else { format!("#{ino}.{n}") };
            let key = self.dirent_key(lost, name.as_bytes());
            if self.view.get(&key).await?.is_some() {
                continue;
            }
            batch.put(key, Dirent { ino, kind }.encode());
            let subdir = u32::from(kind == Kind::Dir);
            return self
                .change(batch, lost, |dir| {
                    dir.size += 1;
                    dir.nlink += subdir;
                })
                .await;
        }
        Err(StackError::Repair(format!("/lost+found has no free name for inode {ino}")))
    }

    /// Makes extents that no file owns a file of `/lost+found`: under their own inode number if
    /// that is free, else under a new one, to which they move.
    async fn adopt_data(
        &self,
        ino: Ino,
        incarnation: u32,
        end: u64,
        bytes: u64,
    ) -> Result<(), StackError> {
        let lost = self.lost_and_found().await?;
        let mut batch = Batch::default();
        let moves = self.inode(ino).await?.is_some();
        let to = if moves { self.new_ino(&mut batch).await? } else { ino };
        let file = Inode {
            incarnation: if moves { 0 } else { incarnation },
            size: end,
            allocated: bytes,
            ..Self::new_inode(Kind::File, Ino(0))
        };
        batch.put(keys::inode(to), file.encode());
        (batch.inodes, batch.bytes) = (1, bytes as i64);
        self.link(&mut batch, lost, to, Kind::File).await?;
        self.submit(batch).await?;
        if !moves {
            return Ok(());
        }
        let mut from = 0;
        loop {
            let (start, stop) = keys::extents_above(ContentsId { ino, incarnation }, from);
            let page = self.kv.scan(&start, &stop, MOVE_ROWS, 1 << 20).await?;
            let mut batch = Batch::default();
            for (key, value) in &page {
                let Some((_, end)) = keys::extent_of(key) else { continue };
                if ExtentRow::decode(value).is_ok() {
                    batch.delete(key[..].into());
                    batch.put(
                        keys::extent(ContentsId { ino: to, incarnation: 0 }, end),
                        Bytes::copy_from_slice(value),
                    );
                }
                from = end;
            }
            if page.is_empty() {
                return Ok(());
            }
            self.submit(batch).await?;
        }
    }
}

fn number(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_le_bytes())
}
