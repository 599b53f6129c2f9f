//! Whether the committed metadata is consistent: every rule that rows of different kinds must
//! keep among each other. Reads only, repairs nothing. Called by tests, and to become `fsck`.
//!
//! The caller sees to it that nothing is committed meanwhile: a check reads page by page, and
//! rows of two commits need not agree. Memory: about 150 bytes for every inode and name.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use super::view::ViewError;
use crate::base::{Ino, SegmentId};
use crate::meta::keys::{self, RECLAIM_INODE};
use crate::meta::{DecodeError, Dirent, ExtentRow, Inode, Kind, SegmentRow, Stats};
use crate::store::kv::Kv;

/// Rows that one scan brings.
const PAGE: usize = 4096;
const READ_AHEAD: usize = 1 << 20;

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One sentence for every rule that is broken. No names, only numbers: it may be logged.
    pub problems: Vec<String>,
    /// Inodes, those without a name included.
    pub inodes: u64,
    /// Inodes without a name.
    pub orphans: u64,
    /// Segments that extents refer to.
    pub segments: u64,
    /// Segments that wait for their deletion.
    pub dead_segments: u64,
}

#[derive(Default)]
struct Names {
    count: u64,
    parents: Vec<Ino>,
    kinds_differ: bool,
}

#[derive(Default)]
struct Content {
    entries: u64,
    subdirs: u64,
}

struct Check<'a> {
    kv: &'a Kv,
    report: Report,
    inodes: BTreeMap<Ino, Inode>,
    reclaims: HashSet<(Ino, u32)>,
    segments: BTreeMap<SegmentId, SegmentRow>,
}

/// Checks all rows.
///
/// # Errors
/// The store, or a row that does not decode; a broken rule is no error but in the report.
pub async fn check(kv: &Kv) -> Result<Report, ViewError> {
    let mut check = Check {
        kv,
        report: Report::default(),
        inodes: BTreeMap::new(),
        reclaims: HashSet::new(),
        segments: BTreeMap::new(),
    };
    for (key, value) in check.tag(b'i').await? {
        let ino = keys::inode_of(&key).ok_or(DecodeError("inode key"))?;
        check.inodes.insert(ino, Inode::decode(&value)?);
    }
    for (key, _) in check.tag(b'r').await? {
        check.reclaims.insert(keys::reclaim_of(&key).ok_or(DecodeError("reclaim key"))?);
    }
    for (key, value) in check.tag(b's').await? {
        let id = keys::segment_of(&key).ok_or(DecodeError("segment key"))?;
        check.segments.insert(id, SegmentRow::decode(&value)?);
    }
    check.names().await?;
    check.xattrs().await?;
    check.extents().await?;
    check.totals().await?;
    check.report.inodes = check.inodes.len() as u64;
    Ok(check.report)
}

impl Check<'_> {
    fn problem(&mut self, text: String) {
        self.report.problems.push(text);
    }

    async fn tag(&self, tag: u8) -> Result<Vec<(Bytes, Bytes)>, ViewError> {
        let (mut start, end) = keys::all_with_tag(tag);
        let mut rows = Vec::new();
        loop {
            let page = self.kv.scan(&start, &end, PAGE, READ_AHEAD).await?;
            let more = page.len() == PAGE;
            rows.extend(page);
            match rows.last() {
                Some((last, _)) if more => {
                    let mut after = last.to_vec();
                    after.push(0);
                    start = after.into();
                }
                _ => return Ok(rows),
            }
        }
    }

    /// Names against inodes: link counts, entry counts, parents, orphans, reachability.
    async fn names(&mut self) -> Result<(), ViewError> {
        let mut names: HashMap<Ino, Names> = HashMap::new();
        let mut contents: HashMap<Ino, Content> = HashMap::new();
        for (key, value) in self.tag(b'd').await? {
            let (parent, _, _) = keys::dirent_of(&key).ok_or(DecodeError("entry key"))?;
            let entry = Dirent::decode(&value)?;
            let content = contents.entry(parent).or_default();
            content.entries += 1;
            content.subdirs += u64::from(entry.kind == Kind::Dir);
            let name = names.entry(entry.ino).or_default();
            name.count += 1;
            name.kinds_differ |= self.inodes.get(&entry.ino).is_some_and(|i| i.kind != entry.kind);
            if entry.kind == Kind::Dir {
                name.parents.push(parent);
            }
        }
        for ino in names.keys().filter(|ino| !self.inodes.contains_key(ino)) {
            self.report.problems.push(format!("a name leads to inode {ino}, which is not there"));
        }
        for (ino, content) in &contents {
            if self.inodes.get(ino).is_none_or(|i| i.kind != Kind::Dir || i.nlink == 0) {
                let n = content.entries;
                self.report.problems.push(format!("{n} entries in {ino}, which is no directory"));
            }
        }
        let mut orphans = HashSet::new();
        for (key, _) in self.tag(b'o').await? {
            let ino = keys::orphan_of(&key).ok_or(DecodeError("orphan key"))?;
            orphans.insert(ino);
            if !self.inodes.contains_key(&ino) {
                self.problem(format!("orphan {ino} has no inode"));
            }
        }
        self.report.orphans = orphans.len() as u64;
        let mut found = Vec::new();
        for (&ino, inode) in &self.inodes {
            let named = names.remove(&ino).unwrap_or_default();
            let content = contents.remove(&ino).unwrap_or_default();
            found.extend(about_inode(ino, inode, &named, &content, orphans.contains(&ino)));
            if inode.kind == Kind::Dir && inode.nlink > 0 && !self.reaches_root(ino) {
                found.push(format!("directory {ino} does not lie below the root"));
            }
        }
        self.report.problems.extend(found);
        if !self.inodes.contains_key(&Ino::ROOT) {
            self.problem("there is no root directory".into());
        }
        Ok(())
    }

    fn reaches_root(&self, mut ino: Ino) -> bool {
        for _ in 0..=self.inodes.len() {
            if ino == Ino::ROOT {
                return true;
            }
            match self.inodes.get(&ino) {
                Some(inode) if inode.kind == Kind::Dir => ino = inode.parent,
                _ => return false,
            }
        }
        false
    }

    async fn xattrs(&mut self) -> Result<(), ViewError> {
        let mut counts: HashMap<Ino, u32> = HashMap::new();
        for (key, _) in self.tag(b'x').await? {
            let ino = key.get(1..9).and_then(|b| b.try_into().ok());
            let ino = Ino(u64::from_be_bytes(ino.ok_or(DecodeError("attribute key"))?));
            *counts.entry(ino).or_default() += 1;
        }
        for (ino, inode) in &self.inodes {
            let count = counts.remove(ino).unwrap_or(0);
            if count != inode.xattrs {
                let text = format!("inode {ino} counts {} attributes, has {count}", inode.xattrs);
                self.report.problems.push(text);
            }
        }
        for (ino, count) in counts {
            if !self.reclaims.contains(&(ino, RECLAIM_INODE)) {
                self.problem(format!("{count} attributes of inode {ino}, which is not there"));
            }
        }
        Ok(())
    }

    /// Extents against inodes and segments.
    async fn extents(&mut self) -> Result<(), ViewError> {
        let mut live: BTreeMap<SegmentId, Vec<(u64, u64)>> = BTreeMap::new();
        let mut with_data: HashSet<Ino> = HashSet::new();
        let mut last = (Ino(0), 0, 0);
        for (key, value) in self.tag(b'e').await? {
            let (ino, generation, end) = keys::extent_of(&key).ok_or(DecodeError("extent key"))?;
            let row = ExtentRow::decode(&value)?;
            let start = end.checked_sub(row.len).ok_or(DecodeError("extent before 0"))?;
            live.entry(row.segment).or_default().push((row.segment_offset, row.len));
            if (last.0, last.1) == (ino, generation) && start < last.2 {
                self.problem(format!("extents of {ino}:{generation} overlap at {start}"));
            }
            last = (ino, generation, end);
            if self.reclaims.contains(&(ino, generation)) {
                continue;
            }
            match self.inodes.get(&ino) {
                Some(i) if i.kind == Kind::File && i.generation == generation => {
                    with_data.insert(ino);
                    if end > i.size {
                        let size = i.size;
                        self.problem(format!("an extent of {ino} ends at {end}, behind {size}"));
                    }
                }
                _ => self.problem(format!("extent {start}..{end} of {ino}:{generation} leaks")),
            }
        }
        for ino in with_data {
            if self.inodes.get(&ino).is_some_and(|i| i.allocated == 0) {
                self.problem(format!("inode {ino} has data and shows no blocks"));
            }
        }
        for (id, row) in &self.segments {
            let mut pieces = live.remove(id).unwrap_or_default();
            pieces.sort_unstable();
            let sum: u64 = pieces.iter().map(|p| p.1).sum();
            let end = pieces.iter().map(|p| p.0 + p.1).max().unwrap_or(0);
            let SegmentRow { size, live } = *row;
            if sum != live || sum == 0 || end > size {
                let text = format!("segment {id}: {size} bytes, {live} said live, {sum} are");
                self.report.problems.push(text);
            }
            if pieces.windows(2).any(|w| w[0].0 + w[0].1 > w[1].0) {
                self.report.problems.push(format!("segment {id}: two extents share bytes"));
            }
        }
        for id in live.into_keys() {
            self.problem(format!("segment {id} has extents and no accounting row"));
        }
        self.report.segments = self.segments.len() as u64;
        for (key, _) in self.tag(b'z').await? {
            let (_, id) = keys::dead_segment_of(&key).ok_or(DecodeError("dead segment key"))?;
            self.report.dead_segments += 1;
            if self.segments.contains_key(&id) {
                self.problem(format!("segment {id} is both dead and alive"));
            }
        }
        Ok(())
    }

    async fn totals(&mut self) -> Result<(), ViewError> {
        let stats = self.kv.get(&keys::stats()).await?.ok_or(DecodeError("no statistics"))?;
        let stats = Stats::decode(&stats)?;
        let found = Stats {
            inodes: self.inodes.len() as u64,
            bytes: self.inodes.values().map(|i| i.allocated).sum(),
        };
        if stats != found {
            self.problem(format!("statistics say {stats:?}, found {found:?}"));
        }
        let next = self.kv.get(&keys::next_ino()).await?.ok_or(DecodeError("no next inode"))?;
        let next: [u8; 8] = next[..].try_into().map_err(|_| DecodeError("next inode number"))?;
        let next = u64::from_le_bytes(next);
        if let Some((&last, _)) = self.inodes.last_key_value()
            && last.0 >= next
        {
            self.problem(format!("inode {last} is in use, the next to hand out is {next}"));
        }
        Ok(())
    }
}

/// The rules that one inode, its names and its entries keep.
fn about_inode(
    ino: Ino,
    inode: &Inode,
    named: &Names,
    content: &Content,
    orphan: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut rule = |holds: bool, text: &str| {
        if !holds {
            found.push(format!(
                "inode {ino} ({:?}, {} links, size {}): {text}; {} names, {} entries, {} subdirs",
                inode.kind, inode.nlink, inode.size, named.count, content.entries, content.subdirs
            ));
        }
    };
    rule(!named.kinds_differ, "a name says another kind");
    rule(orphan == (inode.nlink == 0), "an orphan is what has no links");
    if inode.kind == Kind::Dir {
        let names = u64::from(ino != Ino::ROOT && inode.nlink > 0);
        rule(named.count == names, "a directory has one name");
        rule(named.parents.iter().all(|p| *p == inode.parent), "lies in another directory");
        rule(inode.nlink == 0 || inode.nlink as u64 == 2 + content.subdirs, "link count");
        rule(inode.size == content.entries, "entry count");
    } else {
        rule(inode.nlink as u64 == named.count, "link count");
    }
    if inode.kind == Kind::File {
        let most = inode.size.div_ceil(4096).saturating_mul(4096);
        rule(inode.allocated <= most, "more blocks than bytes");
    } else {
        rule(inode.allocated == 0, "only files have blocks");
    }
    found
}
