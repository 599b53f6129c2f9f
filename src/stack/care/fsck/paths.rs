//! From inode numbers and damaged ranges of segments to what people call their files.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use bytes::Bytes;

use super::FILES_MAX;
use crate::base::{Ino, SegmentId, counted, one_line, plural};
use crate::commit::ViewError;
use crate::commit::extents::extent_in;
use crate::commit::scan::Cursor;
use crate::data::Extent;
use crate::meta::{Dirent, Inode, keys};
use crate::store::kv::Kv;

/// Directories that a path may be deep; beyond it is a cycle.
const DEPTH_MAX: usize = 10_000;
/// Names that are kept of one inode.
const NAMES_MAX: usize = 8;

/// Every name that leads to one of `inos`: directory and name.
pub(super) async fn names_of(
    kv: &Kv,
    inos: &HashSet<Ino>,
) -> Result<HashMap<Ino, Vec<(Ino, Bytes)>>, ViewError> {
    let mut found: HashMap<Ino, Vec<(Ino, Bytes)>> = HashMap::new();
    if inos.is_empty() {
        return Ok(found);
    }
    let mut cursor = Cursor::new(kv, b'd');
    while let Some((key, value)) = cursor.next().await? {
        let Some((parent, _, name)) = keys::dirent_of(&key) else { continue };
        let Ok(Dirent { ino, .. }) = Dirent::decode(&value) else { continue };
        if inos.contains(&ino) {
            let names = found.entry(ino).or_default();
            if names.len() < NAMES_MAX {
                names.push((parent, Bytes::copy_from_slice(name)));
            }
        }
    }
    Ok(found)
}

/// Names of some inodes, and the paths of the directories they lie in.
pub(super) struct Names {
    names: HashMap<Ino, Vec<(Ino, Bytes)>>,
    directories: HashMap<Ino, String>,
}

impl Names {
    pub(super) async fn find(kv: &Kv, inos: HashSet<Ino>) -> Result<Names, ViewError> {
        let names = names_of(kv, &inos).await?;
        Ok(Names { names, directories: HashMap::from([(Ino::ROOT, String::new())]) })
    }

    /// All paths of an inode; its number if it has none.
    pub(super) async fn of(&mut self, kv: &Kv, ino: Ino) -> Result<Vec<String>, ViewError> {
        if ino == Ino::ROOT {
            return Ok(vec!["/".into()]);
        }
        let Some(names) = self.names.get(&ino).cloned() else {
            return Ok(vec![format!("(inode {ino}, without a name)")]);
        };
        let mut paths = Vec::new();
        for (parent, name) in names {
            paths.push(self.entry(kv, parent, &name).await?);
        }
        Ok(paths)
    }

    /// The path of an entry.
    pub(super) async fn entry(
        &mut self,
        kv: &Kv,
        parent: Ino,
        name: &[u8],
    ) -> Result<String, ViewError> {
        let directory = self.directory(kv, parent).await?;
        Ok(format!("{directory}/{}", printable(name)))
    }

    async fn directory(&mut self, kv: &Kv, ino: Ino) -> Result<String, ViewError> {
        let (mut at, mut below) = (ino, Vec::new());
        let mut path = loop {
            if let Some(path) = self.directories.get(&at) {
                break path.clone();
            }
            let lost = format!("(inode {at})");
            if below.len() > DEPTH_MAX {
                break lost;
            }
            let row = kv.get(&keys::inode(at)).await?.map(|row| Inode::decode(&row));
            let Some(Ok(inode)) = row else { break lost };
            match name_in(kv, inode.parent, at).await? {
                Some(name) => below.push((at, name)),
                None => break lost,
            }
            at = inode.parent;
        };
        while let Some((ino, name)) = below.pop() {
            path = format!("{path}/{}", printable(&name));
            self.directories.insert(ino, path.clone());
        }
        Ok(path)
    }

    /// What is touched of files, by name.
    pub(super) async fn describe(
        &mut self,
        kv: &Kv,
        touched: &BTreeMap<Ino, Vec<Range<u64>>>,
    ) -> Result<Vec<String>, ViewError> {
        let mut described = Vec::new();
        for (ino, ranges) in touched.iter().take(FILES_MAX) {
            let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
            let first = ranges.first().map_or(0, |r| r.start);
            let paths = self.of(kv, *ino).await?.join(", ");
            described.push(format!("{paths}: {} from byte {first} on", counted(bytes, "byte")));
        }
        if touched.len() > FILES_MAX {
            let more = (touched.len() - FILES_MAX) as u64;
            described.push(format!("and {more} more {}", plural(more, "file")));
        }
        Ok(described)
    }
}

/// The name under which `ino` lies in `parent`.
async fn name_in(kv: &Kv, parent: Ino, ino: Ino) -> Result<Option<Bytes>, ViewError> {
    let (mut start, end) = keys::dirents(parent);
    loop {
        let page = kv.scan(&start, &end, 1024, 1 << 19).await?;
        for (key, value) in &page {
            if Dirent::decode(value).is_ok_and(|entry| entry.ino == ino) {
                return Ok(keys::dirent_of(key).map(|(_, _, name)| Bytes::copy_from_slice(name)));
            }
        }
        match page.last() {
            Some((key, _)) if page.len() == 1024 => start = keys::after(key),
            _ => return Ok(None),
        }
    }
}

/// A name as text; what is no text, or would move the cursor of a terminal, is escaped.
pub(crate) fn printable(name: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(name))
}

/// The parts of files that lie in given parts of segments.
#[derive(Default)]
pub(super) struct Touched(HashMap<SegmentId, BTreeMap<Ino, Vec<Range<u64>>>>, Nothing);
type Nothing = BTreeMap<Ino, Vec<Range<u64>>>;

impl Touched {
    pub(super) fn of(&self, id: SegmentId) -> &BTreeMap<Ino, Vec<Range<u64>>> {
        self.0.get(&id).unwrap_or(&self.1)
    }

    /// Adds what of `extent` is in `ranges` of its segment.
    fn add(&mut self, ino: Ino, extent: &Extent, ranges: &[Range<u64>]) {
        let piece = extent.offset..extent.offset + (extent.end - extent.start);
        for range in ranges {
            let (from, to) = (range.start.max(piece.start), range.end.min(piece.end));
            if from < to {
                let shift = |at: u64| extent.start + (at - piece.start);
                let files = self.0.entry(extent.segment).or_default();
                files.entry(ino).or_default().push(shift(from)..shift(to));
            }
        }
    }

    pub(super) fn inodes(&self) -> HashSet<Ino> {
        let inos: BTreeSet<Ino> = self.0.values().flat_map(|m| m.keys().copied()).collect();
        inos.into_iter().collect()
    }
}

pub(super) async fn touched_files(
    kv: &Kv,
    lost: &HashMap<SegmentId, Vec<Range<u64>>>,
) -> Result<Touched, ViewError> {
    let mut touched = Touched::default();
    if lost.is_empty() {
        return Ok(touched);
    }
    for tag in [b'e', b'i'] {
        let mut cursor = Cursor::new(kv, tag);
        while let Some((key, value)) = cursor.next().await? {
            let Ok(Some((file, extent))) = extent_in(&key, &value) else { continue };
            let Some(ranges) = lost.get(&extent.segment) else { continue };
            if tag == b'e' {
                let inode = kv.get(&keys::inode(file.ino)).await?.map(|row| Inode::decode(&row));
                let Some(Ok(inode)) = inode else { continue };
                if inode.incarnation != file.incarnation {
                    continue; // waits to be reclaimed
                }
            }
            touched.add(file.ino, &extent, ranges);
        }
    }
    Ok(touched)
}
