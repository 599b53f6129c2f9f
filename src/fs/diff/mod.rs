//! What differs between two states of a volume: two snapshots, or one and the volume as it is. Both
//! trees are walked side by side, and what is found is handed out as it is found; only names whose
//! file has another name in the other state are held until the end, since they may be renames.
//!
//! Cost: where the tables of the metadata tell which rows differ (`by_rows`), those and the names around
//! them; else the names of both states, and the rows of the files they lead to. No contents.

mod by_rows;

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::base::{Ino, hex};
use crate::commit::Lookup;
use crate::fs::restore::shown;
use crate::fs::{Fs, FsError};
use crate::meta::{Dirent, Inode, Kind, keys};
use by_rows::Places;

/// Names that are read of a directory at a time.
const PAGE: usize = 1024;
/// Differences that are handed out together.
const TOGETHER: usize = 128;

/// How a name differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is only in the later state.
    Added,
    /// It is only in the earlier one.
    Removed,
    /// What it leads to changed.
    Changed,
    /// It had another name, `from`.
    Renamed,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which.
    pub change: Change,
    /// The name in the later state, or the only one, from the root on.
    pub path: String,
    /// The name in the earlier state, if it was renamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The same names in hexadecimal, where they are no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// See `path_hex`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_hex: Option<String>,
    /// `file`, `dir`, `symlink`, `fifo`, `socket`, `chardev` or `blockdev`.
    pub kind: String,
    /// Contents changed: of a file, or where a link leads.
    pub contents: bool,
    /// Owner, mode or extended attributes changed.
    pub attributes: bool,
}

type Path = Vec<Vec<u8>>;

/// A path in hexadecimal, if it is no text.
fn no_text(path: &Path) -> Option<String> {
    let bytes = path.join(&b'/');
    std::str::from_utf8(&bytes).is_err().then(|| hex(&bytes))
}

fn below(path: &Path, name: &[u8]) -> Path {
    let mut path = path.clone();
    path.push(name.to_vec());
    path
}

/// A name in a directory, in the order of its key.
pub(super) struct Name {
    key: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) entry: Dirent,
}

/// The names of one directory.
pub(super) struct Names {
    fs: Arc<Fs>,
    next: Option<(crate::meta::Key, crate::meta::Key)>,
    page: std::vec::IntoIter<Name>,
    dir: Ino,
}

impl Names {
    pub(super) fn of(fs: &Arc<Fs>, dir: Option<Ino>) -> Names {
        let range = dir.map(keys::dirents);
        Names {
            fs: fs.clone(),
            next: range,
            page: Vec::new().into_iter(),
            dir: dir.unwrap_or(Ino::ROOT),
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Name>, FsError> {
        loop {
            if let Some(name) = self.page.next() {
                return Ok(Some(name));
            }
            let Some((start, end)) = self.next.take() else { return Ok(None) };
            let page = self.fs.view.page(&start, &end, PAGE, false).await?;
            self.next = page.next.map(|next| (next, end));
            let mut names = Vec::with_capacity(page.rows.len());
            for (key, row) in page.rows {
                let bad = || FsError::Io("a directory entry that is none".into());
                let (_, _, name) = keys::dirent_of(&key).ok_or_else(bad)?;
                let entry = Dirent::decode(&row).map_err(crate::commit::ViewError::from)?;
                // Behind the directory's number: in the same order whatever that is.
                names.push(Name { key: key[9..].to_vec(), name: name.to_vec(), entry });
            }
            let inos: Vec<Ino> = names.iter().map(|name| name.entry.ino).collect();
            self.fs.fetch_inodes(self.dir, &inos).await?;
            self.page = names.into_iter();
        }
    }
}

/// A directory in the earlier state and in the later, as far as it is there, by number and path.
struct Pair {
    a: Option<Ino>,
    b: Option<Ino>,
    from: Path,
    path: Path,
}

/// Two states that are compared.
struct Diff {
    a: Arc<Fs>,
    b: Arc<Fs>,
    out: mpsc::Sender<Vec<Difference>>,
    found: Vec<Difference>,
    /// Directories that are to be compared.
    todo: Vec<Pair>,
    /// Names that went and whose file is still there.
    went: HashMap<Ino, Vec<(Path, Kind)>>,
    /// Names that came and whose file was there before.
    came: Vec<(Ino, Path, Kind)>,
    /// Directories whose former place was looked up.
    displaced: HashSet<Ino>,
}

/// Whoever wanted the differences is gone.
fn unwanted() -> FsError {
    FsError::Io("nobody waits for the differences any more".into())
}

/// Hands out what differs between `a`, the earlier, and `b`. Ends early when nobody takes it.
///
/// # Errors
/// [`FsError`].
pub async fn diff(
    a: Arc<Fs>,
    b: Arc<Fs>,
    out: mpsc::Sender<Vec<Difference>>,
) -> Result<(), FsError> {
    let (from, path) = (Path::new(), Path::new());
    let todo = vec![Pair { a: Some(Ino::ROOT), b: Some(Ino::ROOT), from, path }];
    let (went, came) = (HashMap::new(), Vec::new());
    let (found, displaced) = (Vec::new(), HashSet::new());
    let mut diff = Diff { a, b, out, found, todo, went, came, displaced };
    diff.changed_or_not(Ino::ROOT, Ino::ROOT, &Path::new(), None).await?;
    match by_rows::apart(&diff.a, &diff.b).await? {
        Some(apart) => {
            diff.todo.clear();
            diff.by_rows(apart).await?;
        }
        None => diff.walk().await?,
    }
    diff.rest().await?;
    diff.hand_out().await
}

impl Diff {
    /// Compares all names.
    async fn walk(&mut self) -> Result<(), FsError> {
        let mut places = Places::default();
        loop {
            while let Some(pair) = self.todo.pop() {
                self.directory(&pair).await?;
            }
            self.renames().await?;
            if self.todo.is_empty() && !self.displaced(&mut places).await? {
                return Ok(());
            }
        }
    }

    async fn directory(&mut self, pair: &Pair) -> Result<(), FsError> {
        let mut before = Names::of(&self.a, pair.a);
        let mut after = Names::of(&self.b, pair.b);
        let (mut x, mut y) = (before.next().await?, after.next().await?);
        loop {
            let order = match (&x, &y) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(x), Some(y)) => x.key.cmp(&y.key),
            };
            match (order, &x, &y) {
                (Ordering::Less, Some(name), _) => {
                    self.gone(name.entry, below(&pair.from, &name.name)).await?;
                    x = before.next().await?;
                }
                (Ordering::Greater, _, Some(name)) => {
                    self.arrived(name.entry, below(&pair.path, &name.name)).await?;
                    y = after.next().await?;
                }
                (_, Some(old), Some(new)) => {
                    let paths = [&pair.from, &pair.path].map(|path| below(path, &new.name));
                    self.both(old.entry, new.entry, paths).await?;
                    (x, y) = (before.next().await?, after.next().await?);
                }
                _ => return Ok(()),
            }
        }
    }

    /// A name that is in both states.
    async fn both(
        &mut self,
        old: Dirent,
        new: Dirent,
        [from, path]: [Path; 2],
    ) -> Result<(), FsError> {
        if old.ino != new.ino {
            let moved = is_alive(&self.b, old.ino).await? || is_alive(&self.a, new.ino).await?;
            if moved || old.kind != new.kind {
                self.gone(old, from).await?;
                return self.arrived(new, path).await;
            }
        }
        self.changed_or_not(old.ino, new.ino, &path, None).await?;
        if new.kind == Kind::Dir {
            self.todo.push(Pair { a: Some(old.ino), b: Some(new.ino), from, path });
        }
        Ok(())
    }

    async fn gone(&mut self, entry: Dirent, path: Path) -> Result<(), FsError> {
        if self.displaced.contains(&entry.ino) {
            return Ok(()); // told already
        }
        if is_alive(&self.b, entry.ino).await? {
            self.went.entry(entry.ino).or_default().push((path, entry.kind));
            return Ok(());
        }
        self.say(Change::Removed, &path, None, entry.kind, (false, false)).await?;
        if entry.kind == Kind::Dir {
            self.todo.push(Pair { a: Some(entry.ino), b: None, from: path, path: Path::new() });
        }
        Ok(())
    }

    async fn arrived(&mut self, entry: Dirent, path: Path) -> Result<(), FsError> {
        if is_alive(&self.a, entry.ino).await? {
            self.came.push((entry.ino, path, entry.kind));
            return Ok(());
        }
        self.say(Change::Added, &path, None, entry.kind, (false, false)).await?;
        if entry.kind == Kind::Dir {
            self.todo.push(Pair { a: None, b: Some(entry.ino), from: Path::new(), path });
        }
        Ok(())
    }

    /// Finds the names that went among those that came.
    async fn renames(&mut self) -> Result<(), FsError> {
        let mut left = Vec::new();
        for (ino, path, kind) in std::mem::take(&mut self.came) {
            let Some((from, _)) = self.went.get_mut(&ino).and_then(Vec::pop) else {
                left.push((ino, path, kind));
                continue;
            };
            self.changed_or_not(ino, ino, &path, Some(&from)).await?;
            if kind == Kind::Dir {
                self.todo.push(Pair { a: Some(ino), b: Some(ino), from, path });
            }
        }
        self.came = left;
        Ok(())
    }

    /// Looks up where directories were that came and are not among what went: below one that itself
    /// moved to below them, so that no walk from the root gets to it. True if there are any.
    async fn displaced(&mut self, before: &mut Places) -> Result<bool, FsError> {
        for (ino, path, kind) in std::mem::take(&mut self.came) {
            if kind != Kind::Dir || !self.displaced.insert(ino) {
                self.came.push((ino, path, kind));
                continue;
            }
            let from = before.path(&self.a, ino).await?;
            self.changed_or_not(ino, ino, &path, Some(&from)).await?;
            self.todo.push(Pair { a: Some(ino), b: Some(ino), from, path });
        }
        Ok(!self.todo.is_empty())
    }

    /// Names that went or came of files which have others.
    async fn rest(&mut self) -> Result<(), FsError> {
        for (_, names) in std::mem::take(&mut self.went) {
            for (path, kind) in names {
                self.say(Change::Removed, &path, None, kind, (false, false)).await?;
            }
        }
        for (_, path, kind) in std::mem::take(&mut self.came) {
            self.say(Change::Added, &path, None, kind, (false, false)).await?;
        }
        Ok(())
    }

    /// Says whether what a name leads to changed, or that it has another name.
    async fn changed_or_not(
        &mut self,
        old: Ino,
        new: Ino,
        path: &Path,
        from: Option<&Path>,
    ) -> Result<(), FsError> {
        let (a, b) = (self.a.clone(), self.b.clone());
        if old == new
            && from.is_none()
            && row_now(&a, old) == row_now(&b, new)
            && row_now(&a, old).is_some()
        {
            return Ok(());
        }
        let ((contents, attributes), after) = self.how_changed(old, new, from.is_some()).await?;
        let change = if from.is_some() { Change::Renamed } else { Change::Changed };
        if from.is_some() || contents || attributes {
            self.say(change, path, from, after.kind, (contents, attributes)).await?;
        }
        Ok(())
    }

    /// Whether contents and attributes changed from `old` to `new`, and the inode it is now.
    async fn how_changed(
        &self,
        old: Ino,
        new: Ino,
        is_renamed: bool,
    ) -> Result<((bool, bool), Inode), FsError> {
        let (a, b) = (&self.a, &self.b);
        let (before, after) = (a.inode_of(old).await?, b.inode_of(new).await?);
        let mut contents = match after.kind {
            Kind::Dir => false,
            Kind::File => (before.size, before.mtime) != (after.size, after.mtime),
            _ => (&before.target, before.rdev) != (&after.target, after.rdev),
        };
        let own = |i: &Inode| (i.perm, i.uid, i.gid, i.xattrs);
        let mut attributes = own(&before) != own(&after);
        if !attributes && after.xattrs > 0 && (old != new || before.ctime != after.ctime) {
            attributes = a.xattrs_of(old, &before).await? != b.xattrs_of(new, &after).await?;
        }
        // A modification time can be set back, a change time cannot: what nothing else explains is a
        // change of the contents.
        if old == new && !is_renamed && after.kind == Kind::File && !attributes {
            contents |= before.ctime != after.ctime && before.nlink == after.nlink;
        }
        Ok(((contents, attributes), after))
    }

    async fn say(
        &mut self,
        change: Change,
        path: &Path,
        from: Option<&Path>,
        kind: Kind,
        (contents, attributes): (bool, bool),
    ) -> Result<(), FsError> {
        let (path_hex, from_hex) = (no_text(path), from.and_then(no_text));
        let (path, from) = (shown(path), from.map(|from| shown(from)));
        let kind = kind.word().into();
        let found =
            Difference { change, path, from, path_hex, from_hex, kind, contents, attributes };
        self.found.push(found);
        if self.found.len() >= TOGETHER { self.hand_out().await } else { Ok(()) }
    }

    async fn hand_out(&mut self) -> Result<(), FsError> {
        if self.found.is_empty() {
            return Ok(());
        }
        let found = std::mem::take(&mut self.found);
        self.out.send(found).await.map_err(|_| unwanted())
    }
}

/// The row of an inode, if memory has it.
fn row_now(fs: &Fs, ino: Ino) -> Option<bytes::Bytes> {
    match fs.view.get_now(&keys::inode(ino)) {
        Lookup::Hit(row) => row,
        Lookup::Miss => None,
    }
}

/// Whether there is such an inode, and it has a name.
async fn is_alive(fs: &Arc<Fs>, ino: Ino) -> Result<bool, FsError> {
    match fs.inode_of(ino).await {
        Ok(inode) => Ok(inode.nlink > 0),
        Err(FsError::NotFound) => Ok(false),
        Err(e) => Err(e),
    }
}
