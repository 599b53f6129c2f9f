//! Trees of a snapshot, directory by directory. What is remembered is one page of each directory on
//! the way, and the files with several names.

use std::collections::HashMap;
use std::sync::Arc;

use super::entry::{Origin, Original};
use super::{Kernel, RestoreError, RestoreOrder, RestoreProgress, Restored, TOLD_MAX, shown};
use crate::base::Ino;
use crate::fs::place::FIRST_PLACE;
use crate::fs::{DirEntry, Fs, FsError};
use crate::meta::{Dirent, Kind};

/// Entries of a directory that are looked at at a time.
const PAGE: usize = 1024;
/// What the kernel is told at a time.
const TELL_AT: usize = 256;

/// What the kernel has to forget.
enum Old {
    Name(Ino, Vec<u8>),
    Inode(Ino),
}

/// A directory of the snapshot, and the one of the volume that it becomes.
struct Dir {
    original: Original,
    to: Ino,
    path: Vec<Vec<u8>>,
    /// Where its listing goes on.
    at: u64,
    page: std::vec::IntoIter<DirEntry>,
}

/// One restore under way.
pub(super) struct Walk<'a> {
    volume: Arc<Fs>,
    origin: Origin,
    order: &'a RestoreOrder,
    progress: &'a RestoreProgress,
    kernel: Arc<dyn Kernel>,
    done: Restored,
    /// Files with several names, by their number in the snapshot.
    links: HashMap<Ino, Ino>,
    /// Files of the volume with several names, by what of the snapshot they are.
    taken: HashMap<Ino, Ino>,
    old: Vec<Old>,
}

fn failed(path: &[Vec<u8>]) -> impl Fn(FsError) -> RestoreError + '_ {
    |why| RestoreError::Failed { path: shown(path), why }
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        volume: Arc<Fs>,
        origin: Origin,
        order: &'a RestoreOrder,
        progress: &'a RestoreProgress,
        kernel: Arc<dyn Kernel>,
    ) -> Walk<'a> {
        let (done, links, taken) = (Restored::default(), HashMap::new(), HashMap::new());
        Walk { volume, origin, order, progress, kernel, done, links, taken, old: Vec::new() }
    }

    /// Restores everything that was ordered.
    pub(super) async fn all(&mut self) -> Result<Restored, RestoreError> {
        let base = self.base().await?;
        match &self.order.paths[..] {
            [] => Box::pin(self.tree(Ino::ROOT, base, Vec::new())).await?,
            paths => {
                for path in paths {
                    Box::pin(self.path(base, path)).await?;
                }
            }
        }
        Ok(self.done.clone())
    }

    /// The directory of the volume below which all is put; made if need be.
    async fn base(&mut self) -> Result<Ino, RestoreError> {
        let Some(to) = &self.order.to else { return Ok(Ino::ROOT) };
        let root = self.origin.fs.original(Ino::ROOT).await.map_err(failed(&[]))?;
        let mut at = Ino::ROOT;
        for (n, name) in to.iter().enumerate() {
            let so_far = &to[..=n];
            at = match self.volume.entry_of((at, name)).await.map_err(failed(so_far))? {
                Some(Dirent { ino, kind: Kind::Dir }) => ino,
                Some(_) => return Err(RestoreError::NoDirectory(shown(so_far))),
                None => {
                    let made = self.make_dir(&root, at, name).await.map_err(failed(so_far))?;
                    let bare =
                        Original { ino: root.ino, inode: root.inode.clone(), xattrs: Vec::new() };
                    let set = self.volume.restore_attributes(made, &bare).await;
                    set.map_err(failed(so_far))?;
                    made
                }
            };
        }
        Ok(at)
    }

    /// Restores one path, and the directories that lead to it where they are not there.
    async fn path(&mut self, base: Ino, path: &[Vec<u8>]) -> Result<(), RestoreError> {
        let (mut from, mut to) = (Ino::ROOT, base);
        let Some((last, above)) = path.split_last() else {
            return self.tree(Ino::ROOT, base, Vec::new()).await;
        };
        let mut made = Vec::new();
        for (n, name) in above.iter().enumerate() {
            let so_far = &path[..=n];
            let entry = self.in_snapshot(from, name, path).await?;
            if entry.kind != Kind::Dir {
                return Err(self.not_there(path));
            }
            from = entry.ino;
            to = match self.volume.entry_of((to, name)).await.map_err(failed(so_far))? {
                Some(Dirent { ino, kind: Kind::Dir }) => ino,
                Some(_) => return Err(RestoreError::NoDirectory(shown(so_far))),
                None => {
                    let original = self.origin.fs.original(from).await.map_err(failed(so_far))?;
                    let ino = self.make_dir(&original, to, name).await.map_err(failed(so_far))?;
                    made.push((ino, original));
                    ino
                }
            };
        }
        let entry = self.in_snapshot(from, last, path).await?;
        self.entry(to, last, entry.ino, entry.kind, path.to_vec()).await?;
        for (ino, original) in made.into_iter().rev() {
            self.attributes(ino, &original).await.map_err(failed(path))?;
        }
        Ok(())
    }

    async fn in_snapshot(
        &self,
        parent: Ino,
        name: &[u8],
        path: &[Vec<u8>],
    ) -> Result<Dirent, RestoreError> {
        let found = self.origin.fs.entry_of((parent, name)).await.map_err(failed(path))?;
        found.ok_or_else(|| self.not_there(path))
    }

    fn not_there(&self, path: &[Vec<u8>]) -> RestoreError {
        RestoreError::NotThere { snapshot: self.order.snapshot.clone(), path: shown(path) }
    }

    /// Restores what is `from` in the snapshot under a name of the volume, with all that is below it.
    async fn entry(
        &mut self,
        parent: Ino,
        name: &[u8],
        from: Ino,
        kind: Kind,
        path: Vec<Vec<u8>>,
    ) -> Result<(), RestoreError> {
        if kind != Kind::Dir {
            return Box::pin(self.file(parent, name, from, &path)).await;
        }
        match self.dir(parent, name, from, &path).await? {
            Some(to) => Box::pin(self.tree(from, to, path)).await,
            None => Ok(()),
        }
    }

    /// The directory of the volume that `from` becomes; `None`: it cannot be.
    async fn dir(
        &mut self,
        parent: Ino,
        name: &[u8],
        from: Ino,
        path: &[Vec<u8>],
    ) -> Result<Option<Ino>, RestoreError> {
        match self.volume.entry_of((parent, name)).await.map_err(failed(path))? {
            Some(Dirent { ino, kind: Kind::Dir }) => return Ok(Some(ino)),
            // What was a directory then is none now: it changed, like any file that gets its
            // contents back.
            Some(_) => {
                let gone = self.volume.unlink(parent, name.to_vec()).await;
                gone.map_err(failed(path))?;
            }
            None => {}
        }
        let original = self.origin.fs.original(from).await.map_err(failed(path))?;
        let made = self.make_dir(&original, parent, name).await;
        made.map(Some).map_err(failed(path))
    }

    async fn make_dir(
        &mut self,
        original: &Original,
        parent: Ino,
        name: &[u8],
    ) -> Result<Ino, FsError> {
        let made = self.volume.restore_dir(original, (parent, name)).await?;
        self.done.dirs += 1;
        self.changed(parent, name).await;
        Ok(made)
    }

    /// Restores what is in directory `from` into directory `to`, and then what `to` itself is.
    async fn tree(&mut self, from: Ino, to: Ino, path: Vec<Vec<u8>>) -> Result<(), RestoreError> {
        let mut way = vec![self.enter(from, to, path).await?];
        while let Some(dir) = way.last_mut() {
            if let Some(entry) = dir.page.next() {
                let (to, mut path) = (dir.to, dir.path.clone());
                path.push(entry.name);
                let name = path.last().expect("just pushed").clone();
                if entry.kind != Kind::Dir {
                    Box::pin(self.file(to, &name, entry.ino, &path)).await?;
                } else if let Some(to) = self.dir(to, &name, entry.ino, &path).await? {
                    way.push(self.enter(entry.ino, to, path).await?);
                }
                continue;
            }
            if self.next_page(dir).await? {
                continue;
            }
            let dir = way.pop().expect("there is a last one");
            if self.order.delete {
                self.delete_others(&dir).await?;
            }
            self.attributes(dir.to, &dir.original).await.map_err(failed(&dir.path))?;
        }
        Ok(())
    }

    async fn enter(&mut self, from: Ino, to: Ino, path: Vec<Vec<u8>>) -> Result<Dir, RestoreError> {
        let original = self.origin.fs.original(from).await.map_err(failed(&path))?;
        Ok(Dir { original, to, path, at: 0, page: Vec::new().into_iter() })
    }

    /// Reads on in a directory of the snapshot; false at its end.
    async fn next_page(&mut self, dir: &mut Dir) -> Result<bool, RestoreError> {
        let (from, fs) = (dir.original.ino, &self.origin.fs);
        let page = fs.readdir(from, dir.at, PAGE).await.map_err(failed(&dir.path))?;
        let Some(last) = page.last() else { return Ok(false) };
        dir.at = last.cookie;
        let names: Vec<_> = page.into_iter().filter(|e| e.cookie >= FIRST_PLACE).collect();
        let inos: Vec<Ino> = names.iter().map(|entry| entry.ino).collect();
        // What they are comes in few requests; what that does not bring is asked for one by one.
        let fetched = fs.fetch_inodes(from, &inos).await;
        fetched.map_err(|e| failed(&dir.path)(e.into()))?;
        dir.page = names.into_iter();
        Ok(true)
    }

    /// Restores one file.
    async fn file(
        &mut self,
        parent: Ino,
        name: &[u8],
        from: Ino,
        path: &[Vec<u8>],
    ) -> Result<(), RestoreError> {
        if !self.progress.shows(&self.done) {
            return Err(RestoreError::Stopped);
        }
        let there = self.volume.entry_of((parent, name)).await.map_err(failed(path))?;
        if there.is_some_and(|there| there.kind == Kind::Dir)
            && !self.make_way(parent, name, path).await?
        {
            return Ok(());
        }
        let to = (parent, name);
        if let Some(&made) = self.links.get(&from) {
            if there.is_some_and(|there| there.ino == made) {
                self.done.unchanged += 1;
                return Ok(());
            }
            self.volume.restore_link(made, to).await.map_err(failed(path))?;
            self.done.links += 1;
            self.changed(parent, name).await;
            return Ok(());
        }
        let original = self.origin.fs.original(from).await.map_err(failed(path))?;
        let there = there.filter(|there| there.kind == original.inode.kind);
        let same = match there {
            Some(there) => self.is_it(there.ino, &original).await,
            None => Ok(false),
        };
        let same = same.map_err(failed(path))?;
        let ino = match there {
            Some(there) if same => {
                self.done.unchanged += 1;
                there.ino
            }
            _ => {
                let made = self.volume.restore_file(&self.origin, &original, to).await;
                let made = made.map_err(failed(path))?;
                self.done.files += 1;
                if original.inode.kind == Kind::File {
                    self.done.bytes += original.inode.size;
                }
                self.changed(parent, name).await;
                made
            }
        };
        if original.inode.nlink > 1 {
            self.links.insert(from, ino);
        }
        Ok(())
    }

    /// Whether a file of the volume is what `original` is, and not another file of the snapshot as well:
    /// two that were apart then may be two names of one now.
    async fn is_it(&mut self, ino: Ino, original: &Original) -> Result<bool, FsError> {
        if !self.volume.is_restored(ino, &self.origin, original).await? {
            return Ok(false);
        }
        let names = self.volume.inode_of(ino).await?.nlink;
        Ok(names < 2 || *self.taken.entry(ino).or_insert(original.ino) == original.ino)
    }

    /// A directory is where a file was. With `--delete` it goes, and all in it; else that is a conflict.
    async fn make_way(
        &mut self,
        parent: Ino,
        name: &[u8],
        path: &[Vec<u8>],
    ) -> Result<bool, RestoreError> {
        if self.order.delete {
            self.remove(parent, name, path).await?;
            return Ok(true);
        }
        self.done.conflicts += 1;
        if self.done.told.len() < TOLD_MAX {
            let what = format!("{} is a directory now, and was none then", shown(path));
            self.done.told.push(what);
        }
        Ok(false)
    }

    async fn attributes(&mut self, ino: Ino, original: &Original) -> Result<(), FsError> {
        match self.volume.restore_attributes(ino, original).await? {
            true => self.done.attributes += 1,
            false => self.done.unchanged += 1,
        }
        self.old.push(Old::Inode(ino));
        Ok(())
    }

    /// Deletes what is in the directory of the volume and not in that of the snapshot.
    async fn delete_others(&mut self, dir: &Dir) -> Result<(), RestoreError> {
        let mut at = 0;
        loop {
            let page = self.volume.readdir(dir.to, at, PAGE).await.map_err(failed(&dir.path))?;
            let Some(last) = page.last() else { return Ok(()) };
            at = last.cookie;
            for entry in page.into_iter().filter(|e| e.cookie >= FIRST_PLACE) {
                let fs = &self.origin.fs;
                let was = match fs.has_entry_now(dir.original.ino, &entry.name) {
                    Some(was) => was,
                    None => {
                        let found = fs.entry_of((dir.original.ino, &entry.name)).await;
                        found.map_err(failed(&dir.path))?.is_some()
                    }
                };
                if !was {
                    let mut path = dir.path.clone();
                    path.push(entry.name);
                    let name = path.last().expect("just pushed").clone();
                    self.remove(dir.to, &name, &path).await?;
                }
            }
        }
    }

    /// Removes a name of the volume, and all below it.
    async fn remove(
        &mut self,
        parent: Ino,
        name: &[u8],
        path: &[Vec<u8>],
    ) -> Result<(), RestoreError> {
        let fail = failed(path);
        let mut way = vec![(parent, name.to_vec())];
        while let Some((parent, name)) = way.last().cloned() {
            if !self.progress.shows(&self.done) {
                return Err(RestoreError::Stopped);
            }
            let gone = match self.volume.entry_of((parent, &name)).await.map_err(&fail)? {
                None => Ok(()),
                Some(Dirent { ino, kind: Kind::Dir }) => {
                    let page = self.volume.readdir(ino, 0, PAGE).await.map_err(&fail)?;
                    let inside: Vec<_> =
                        page.into_iter().filter(|e| e.cookie >= FIRST_PLACE).collect();
                    if !inside.is_empty() {
                        way.extend(inside.into_iter().map(|entry| (ino, entry.name)));
                        continue;
                    }
                    self.volume.rmdir(parent, name.clone()).await
                }
                Some(_) => self.volume.unlink(parent, name.clone()).await,
            };
            match gone {
                Ok(()) | Err(FsError::NotFound) => {}
                Err(e) => return Err(fail(e)),
            }
            self.done.deleted += 1;
            self.changed(parent, &name).await;
            way.pop();
        }
        Ok(())
    }

    /// A name leads elsewhere now.
    async fn changed(&mut self, parent: Ino, name: &[u8]) {
        self.old.push(Old::Name(parent, name.to_vec()));
        self.old.push(Old::Inode(parent));
        if self.old.len() >= TELL_AT {
            self.tell_kernel().await;
        }
    }

    /// Tells the kernel of what has changed since it was last told.
    pub(super) async fn tell_kernel(&mut self) {
        let (kernel, mut old) = (self.kernel.clone(), std::mem::take(&mut self.old));
        let tell = move || {
            let mut told = std::collections::HashSet::new();
            for one in old.drain(..) {
                match one {
                    Old::Name(parent, name) => kernel.forget_name(parent, &name),
                    Old::Inode(ino) if told.insert(ino) => kernel.forget_inode(ino),
                    Old::Inode(_) => {}
                }
            }
        };
        if tokio::task::spawn_blocking(tell).await.is_err() {
            log::error!("the kernel was not told of everything that was restored");
        }
    }
}
