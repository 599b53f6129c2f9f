//! The same differences from the rows that differ, where the metadata tell which may: the cost follows
//! what changed and the names around it.
//!
//! A directory knows the one that holds it, and its name is looked up there. A file does not: the names
//! of files that were changed in their place are looked for among all names of the later state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};

use super::{Change, Diff, Path, below, is_alive};
use crate::base::Ino;
use crate::commit::ViewError;
use crate::commit::snapshots::keys_apart;
use crate::fs::{Fs, FsError};
use crate::meta::{Dirent, Kind, keys};
use crate::store::kv::Walk;

/// Rows that differ, at most: with more all names are walked, in order, which costs less each.
const KEYS_MAX: usize = 50_000;
/// Rows that are fetched at a time, one by one or in a walk.
const FETCHES: usize = 16;
const PAGE: usize = 4096;
/// Inodes that are brought into memory together, well within what that keeps.
const TOGETHER: usize = 512;
/// How often a directory may be moved while its name is looked up.
const MOVES_MAX: usize = 20;
/// Directories within each other, at most: more are a circle, which is damage.
const DEPTH_MAX: usize = 100_000;

/// Names and inodes whose rows may differ.
pub(super) struct Apart {
    names: BTreeSet<Bytes>,
    inodes: Vec<Ino>,
}

/// What may differ between two states; `None` if that cannot be told.
pub(super) async fn apart(a: &Fs, b: &Fs) -> Result<Option<Apart>, FsError> {
    let wanted = |key: &[u8]| matches!(key.first(), Some(b'd' | b'i'));
    let Some(all) = keys_apart(&a.view, &b.view, wanted, KEYS_MAX).await? else { return Ok(None) };
    let inodes = all.iter().filter_map(|key| keys::inode_of(key)).collect();
    let names = all.into_iter().filter(|key| keys::dirent_of(key).is_some()).collect();
    Ok(Some(Apart { names, inodes }))
}

/// Where directories are in one state.
#[derive(Default)]
pub(super) struct Places {
    /// Names of directories, in the directory that holds them.
    names: HashMap<Ino, Vec<u8>>,
    /// What was asked for last: names come directory by directory.
    last: Option<(Ino, Path)>,
}

impl Places {
    /// The path of a directory that is there.
    pub(super) async fn path(&mut self, fs: &Arc<Fs>, dir: Ino) -> Result<Path, FsError> {
        match &self.last {
            Some((last, path)) if *last == dir => return Ok(path.clone()),
            _ => {}
        }
        let path = self.look_up(fs, dir).await?;
        self.last = Some((dir, path.clone()));
        Ok(path)
    }

    async fn look_up(&mut self, fs: &Arc<Fs>, dir: Ino) -> Result<Path, FsError> {
        let (mut at, mut path) = (dir, Path::new());
        while at != Ino::ROOT {
            if path.len() > DEPTH_MAX {
                return Err(FsError::Io(format!("directory {dir} is within itself")));
            }
            let (name, parent) = self.name(fs, at).await?;
            path.push(name);
            at = parent;
        }
        path.reverse();
        Ok(path)
    }

    /// The name of a directory, and the directory that holds it.
    async fn name(&mut self, fs: &Arc<Fs>, dir: Ino) -> Result<(Vec<u8>, Ino), FsError> {
        for _ in 0..MOVES_MAX {
            let parent = fs.inode_of(dir).await?.parent;
            if !self.names.contains_key(&dir) {
                self.read(fs, parent).await?;
            }
            if let Some(name) = self.names.get(&dir) {
                return Ok((name.clone(), parent));
            }
            // It was moved in between.
        }
        Err(no_name(dir))
    }

    /// Takes up the directories in a directory.
    async fn read(&mut self, fs: &Arc<Fs>, dir: Ino) -> Result<(), FsError> {
        let (mut next, end) = keys::dirents(dir);
        loop {
            let page = fs.view.page(&next, &end, PAGE, false).await?;
            for (key, row) in page.rows {
                let entry = Dirent::decode(&row).map_err(ViewError::from)?;
                if let (Kind::Dir, Some((_, _, name))) = (entry.kind, keys::dirent_of(&key)) {
                    self.names.insert(entry.ino, name.to_vec());
                }
            }
            match page.next {
                Some(more) => next = more,
                None => return Ok(()),
            }
        }
    }
}

fn no_name(dir: Ino) -> FsError {
    FsError::Io(format!("directory {dir} has no name in the one that holds it"))
}

/// The entries of a name in both states.
type Entries = [Option<Dirent>; 2];

async fn entry_in(fs: &Arc<Fs>, key: &[u8]) -> Result<Option<Dirent>, FsError> {
    let row = fs.view.get(key).await?;
    Ok(row.map(|row| Dirent::decode(&row)).transpose().map_err(ViewError::from)?)
}

/// Whether what an entry leads to is there in `fs`.
async fn leads_somewhere(fs: &Arc<Fs>, entry: &Option<Dirent>) -> Result<bool, FsError> {
    match entry {
        Some(entry) => is_alive(fs, entry.ino).await,
        None => Ok(false),
    }
}

/// Brings the inodes of entries into memory.
async fn fetch(fs: &Arc<Fs>, entries: &[&Option<Dirent>]) -> Result<(), FsError> {
    let inos: Vec<Ino> = entries.iter().filter_map(|entry| Some(entry.as_ref()?.ino)).collect();
    fs.fetch_inodes(Ino::ROOT, &inos).await?;
    Ok(())
}

/// Names that went, and whose files and directories went as well, by the paths that they would have now.
type Went = BTreeMap<Path, (Path, Dirent)>;

impl Diff {
    /// Compares what may differ, and nothing else.
    pub(super) async fn by_rows(&mut self, apart: Apart) -> Result<(), FsError> {
        let mut places = [Places::default(), Places::default()];
        let mut told = HashMap::new();
        let went = self.names_that_went_and_came(&apart.names, &mut places, &mut told).await?;
        for (path, entry) in went.into_values() {
            self.say(Change::Removed, &path, None, entry.kind, (false, false)).await?;
        }
        self.renames().await?;
        self.todo.clear(); // what differs within is among the rows
        self.changed_in_place(apart, &mut places, &told).await
    }

    /// Both entries of each name, those that differ.
    async fn entries(&self, names: &BTreeSet<Bytes>) -> Result<Vec<(Bytes, Entries)>, FsError> {
        let fetch = |key: &Bytes| {
            let (a, b, key) = (self.a.clone(), self.b.clone(), key.clone());
            async move { Ok((key.clone(), [entry_in(&a, &key).await?, entry_in(&b, &key).await?])) }
        };
        let fetching = futures::stream::iter(names.iter().map(fetch)).buffered(FETCHES);
        let differ = |(_, [old, new]): &(Bytes, Entries)| futures::future::ready(old != new);
        fetching.try_filter(differ).try_collect().await
    }

    /// Says which names are new, and counts in `told` those of each file; returns what went.
    async fn names_that_went_and_came(
        &mut self,
        names: &BTreeSet<Bytes>,
        places: &mut [Places; 2],
        told: &mut HashMap<Ino, u32>,
    ) -> Result<Went, FsError> {
        let (mut went, mut came) = (Went::new(), Vec::new());
        let entries = self.entries(names).await?;
        for some in entries.chunks(TOGETHER) {
            let (old, new): (Vec<_>, Vec<_>) = some.iter().map(|(_, [a, b])| (a, b)).unzip();
            fetch(&self.b, &old).await?;
            fetch(&self.a, &new).await?;
            for (key, [old, new]) in some {
                let Some((dir, _, name)) = keys::dirent_of(key) else { continue };
                if let Some(new) = new {
                    *told.entry(new.ino).or_default() += 1;
                }
                let stays = leads_somewhere(&self.b, old).await?;
                let was = leads_somewhere(&self.a, new).await?;
                if let (Some(old), Some(new), false, false) = (old, new, stays, was)
                    && old.kind == new.kind
                {
                    // An editor's way: another file under the same name.
                    let path = below(&places[1].path(&self.b, dir).await?, name);
                    self.changed_or_not(old.ino, new.ino, &path, None).await?;
                    continue;
                }
                if let Some(old) = old {
                    let path = below(&places[0].path(&self.a, dir).await?, name);
                    if stays {
                        self.went.entry(old.ino).or_default().push((path, old.kind));
                    } else if is_alive(&self.b, dir).await? {
                        self.say(Change::Removed, &path, None, old.kind, (false, false)).await?;
                    } else {
                        let now = below(&self.path_now(dir, places).await?, name);
                        went.insert(now, (path, *old));
                    }
                }
                if let Some(new) = new {
                    let path = below(&places[1].path(&self.b, dir).await?, name);
                    if was {
                        self.came.push((new.ino, path, new.kind));
                    } else if is_alive(&self.a, dir).await? {
                        self.say(Change::Added, &path, None, new.kind, (false, false)).await?;
                    } else {
                        came.push((path, *new));
                    }
                }
            }
        }
        for (path, new) in came {
            match went.get(&path) {
                // Another file under the same name, in a directory that took the place of another.
                Some((_, old)) if old.kind == new.kind => {
                    self.changed_or_not(old.ino, new.ino, &path, None).await?;
                    went.remove(&path);
                }
                _ => self.say(Change::Added, &path, None, new.kind, (false, false)).await?,
            }
        }
        Ok(went)
    }

    /// Where a directory of the earlier state is in the later, or would be.
    async fn path_now(&self, dir: Ino, places: &mut [Places; 2]) -> Result<Path, FsError> {
        let (mut at, mut gone) = (dir, Vec::new());
        while !is_alive(&self.b, at).await? {
            let (name, parent) = places[0].name(&self.a, at).await?;
            gone.push(name);
            at = parent;
        }
        let mut path = places[1].path(&self.b, at).await?;
        path.extend(gone.into_iter().rev());
        Ok(path)
    }

    /// Says what changed under names that stayed.
    async fn changed_in_place(
        &mut self,
        apart: Apart,
        [_, after]: &mut [Places; 2],
        told: &HashMap<Ino, u32>,
    ) -> Result<(), FsError> {
        let mut changed: HashMap<Ino, (bool, bool)> = HashMap::new();
        let mut names_left = 0;
        for inos in apart.inodes.chunks(TOGETHER) {
            for fs in [&self.a, &self.b] {
                fs.fetch_inodes(Ino::ROOT, inos).await?;
            }
            for &ino in inos.iter().filter(|&&ino| ino != Ino::ROOT) {
                let alive = is_alive(&self.a, ino).await? && is_alive(&self.b, ino).await?;
                if !alive {
                    continue;
                }
                let (how, inode) = self.how_changed(ino, ino, false).await?;
                if how == (false, false) {
                    continue;
                }
                if inode.kind == Kind::Dir {
                    let path = after.path(&self.b, ino).await?;
                    let name = path.last().ok_or_else(|| no_name(ino))?;
                    let key = self.b.dirent_key(inode.parent, name);
                    if !apart.names.contains(&*key) || self.is_same_name(&key).await? {
                        self.say(Change::Changed, &path, None, inode.kind, how).await?;
                    }
                    continue;
                }
                let left = inode.nlink.saturating_sub(told.get(&ino).copied().unwrap_or_default());
                if left > 0 {
                    changed.insert(ino, how);
                    names_left += u64::from(left);
                }
            }
        }
        self.find_names(changed, names_left, after).await
    }

    /// Whether a name leads to the same file in both states.
    async fn is_same_name(&self, key: &[u8]) -> Result<bool, FsError> {
        Ok(entry_in(&self.a, key).await? == entry_in(&self.b, key).await?)
    }

    /// Says of each name of these files that stayed, of which there are `names_left`, that what it leads
    /// to changed.
    async fn find_names(
        &mut self,
        changed: HashMap<Ino, (bool, bool)>,
        mut names_left: u64,
        after: &mut Places,
    ) -> Result<(), FsError> {
        // The names that differ were told already; those that are pending are looked up beside.
        let (start, end) = keys::all_with_tag(b'd');
        let mut walk = Walk::new(&start, &end);
        while names_left > 0 {
            let rows = walk.page(self.b.view.kv(), PAGE).await.map_err(ViewError::from)?;
            let is_last = rows.len() < PAGE;
            for (key, row) in rows {
                let entry = Dirent::decode(&row).map_err(ViewError::from)?;
                let Some(&how) = changed.get(&entry.ino) else { continue };
                let Some((dir, _, name)) = keys::dirent_of(&key) else { continue };
                let (kind, entry) = (entry.kind, Some(entry));
                if entry_in(&self.b, &key).await? != entry
                    || entry_in(&self.a, &key).await? != entry
                {
                    continue;
                }
                names_left = names_left.saturating_sub(1);
                let path = below(&after.path(&self.b, dir).await?, name);
                self.say(Change::Changed, &path, None, kind, how).await?;
            }
            if is_last {
                break;
            }
        }
        Ok(())
    }
}
