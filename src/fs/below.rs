//! Everything below a place of a volume, one after the other: for what adds up whole trees, or brings
//! them here. What is open holds a page of names for each directory on the way down, so memory does not
//! grow with the tree. What changes meanwhile is seen before or after, as `find` sees it.

use std::sync::Arc;

use super::diff::Names;
use super::{Fs, FsError};
use crate::base::{ContentsId, Ino, SegmentId};
use crate::commit::{Lookup, View};
use crate::data::Part;
use crate::meta::{Inode, Kind, keys};

/// Bytes of a file that are looked at at a time.
const WINDOW: u64 = 256 << 20;
/// How often a window may have to be looked at again because a commit came in between.
const AGAIN_MAX: u32 = 64;

/// What is met on the way.
pub enum Step {
    /// A directory begins, the place itself included.
    Enter(Found),
    /// The last directory that began has nothing more.
    Leave,
    /// Anything else.
    Leaf(Found),
}

/// A name, and what it leads to.
pub struct Found {
    /// The name; empty for the place itself.
    pub name: Vec<u8>,
    /// The inode, as the volume, or the snapshot, numbers it.
    pub ino: Ino,
    /// Its row.
    pub inode: Inode,
}

/// A walk; see the module.
pub struct Below {
    fs: Arc<Fs>,
    first: Option<Found>,
    open: Vec<Names>,
}

impl Below {
    /// Everything below, and at, the place that these names lead to from the root on.
    ///
    /// # Errors
    /// [`FsError::NotFound`] and the store's.
    pub async fn path(fs: &Arc<Fs>, path: &[Vec<u8>]) -> Result<Below, FsError> {
        let mut ino = Ino::ROOT;
        for name in path {
            ino = fs.entry_of((ino, name)).await?.ok_or(FsError::NotFound)?.ino;
        }
        Below::inode(fs, ino).await
    }

    /// Everything below, and at, an inode.
    ///
    /// # Errors
    /// As [`Below::path`].
    pub async fn inode(fs: &Arc<Fs>, ino: Ino) -> Result<Below, FsError> {
        let inode = fs.inode_of(ino).await?;
        let first = Found { name: Vec::new(), ino, inode };
        Ok(Below { fs: fs.clone(), first: Some(first), open: Vec::new() })
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// The store's.
    pub async fn next(&mut self) -> Result<Option<Step>, FsError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(self.step(first)));
        }
        while let Some(names) = self.open.last_mut() {
            let Some(name) = names.next().await? else {
                self.open.pop();
                return Ok(Some(Step::Leave));
            };
            match self.fs.inode_of(name.entry.ino).await {
                Ok(inode) => {
                    let found = Found { name: name.name, ino: name.entry.ino, inode };
                    return Ok(Some(self.step(found)));
                }
                Err(FsError::NotFound) => {} // deleted meanwhile
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    fn step(&mut self, found: Found) -> Step {
        if found.inode.kind != Kind::Dir {
            return Step::Leaf(found);
        }
        self.open.push(Names::of(&self.fs, Some(found.ino)));
        Step::Enter(found)
    }
}

/// Where the bytes of a file come from, a window after the other.
pub struct Parts {
    fs: Arc<Fs>,
    file: ContentsId,
    at: u64,
    size: u64,
}

impl Parts {
    /// Those of an inode; nothing of what is no regular file.
    pub fn of(fs: &Arc<Fs>, ino: Ino, inode: &Inode) -> Parts {
        let size = if inode.kind == Kind::File { inode.size } else { 0 };
        Parts {
            fs: fs.clone(),
            file: ContentsId { ino, incarnation: inode.incarnation },
            at: 0,
            size,
        }
    }

    /// The parts of the next window, in order, without gaps; `None` at the end of the file.
    ///
    /// # Errors
    /// The store's.
    pub async fn next(&mut self) -> Result<Option<Vec<Part>>, FsError> {
        if self.at >= self.size {
            return Ok(None);
        }
        let (from, to) = (self.at, self.size.min(self.at + WINDOW));
        for _ in 0..AGAIN_MAX {
            if let Lookup::Hit(parts) = self.fs.view.parts_now(self.file, from, to) {
                self.at = to;
                return Ok(Some(parts));
            }
            self.fs.view.load_extents(self.file, from, to).await?;
        }
        Err(FsError::Io("where a file lies changes all the time".into()))
    }
}

impl Fs {
    /// The metadata of this state, for what looks behind the file system.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }
}

/// Whether files of this state share something of a segment.
///
/// # Errors
/// The store's.
pub async fn is_shared(fs: &Arc<Fs>, segment: SegmentId) -> Result<bool, FsError> {
    let (from, to) = keys::owners(segment);
    Ok(!fs.view.page(&from, &to, 1, false).await?.rows.is_empty())
}
