//! From a directory of this machine into a tree: everything that `cp -a` keeps, which is owners,
//! permissions, times, extended attributes, hard links, holes, symlinks, and (by root) devices.
//!
//! One thread walks, [`Options::parallel`](super::Options) threads copy. Names that are the same file
//! are linked, and directories get their times, when all files are there. Memory: a path for each
//! name of a file that has several, and for each directory.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::draft::Draft;
use super::import::{end, take_work};
use super::report::{Event, ExchangeError, Run, Trouble};
use super::spot::Spot;
use super::tree::{Stat, Tree, stat_fd};
use super::way::{make_dir, put_in_place};
use crate::base::read_up_to;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Files that wait for a thread.
const QUEUE: usize = 256;
/// Tries of a file that changes while it is read.
const TRIES_MAX: u32 = 3;

/// A file to copy.
struct Job {
    path: PathBuf,
    stat: Stat,
}

/// What the walk keeps for later.
#[derive(Default)]
struct Later {
    /// Every name of a file but the first, and the first.
    links: Vec<(PathBuf, PathBuf)>,
    /// Those that get owner, permissions and times of the source.
    directories: Vec<(PathBuf, Stat)>,
    /// Those that no filter takes, until a file below them is taken: then they are made on the way, and may not be
    /// open to more people than in the source.
    untaken: HashMap<PathBuf, Stat>,
}

impl Later {
    /// A file at `path` is taken.
    fn takes(&mut self, path: &Path) {
        for dir in path.ancestors().skip(1) {
            if let Some(found) = self.untaken.remove_entry(dir) {
                self.directories.push(found);
            }
        }
    }
}

struct Copy {
    from: Arc<Tree>,
    to: Arc<Tree>,
    run: Arc<Run>,
    is_root: bool,
    /// Where its threads, which are none of the runtime's, wait for their turn.
    runtime: Handle,
    /// The first thing that ended the run.
    ended: Mutex<Option<ExchangeError>>,
}

/// Copies what is below `from` into `to`.
///
/// # Errors
/// What ends the run; what failed of single files is in the report.
pub async fn import_directory(
    from: Arc<Tree>,
    to: Arc<Tree>,
    run: Arc<Run>,
) -> Result<(), ExchangeError> {
    let local = |source| ExchangeError::Local { what: "cannot compare the two".into(), source };
    let top = |tree: &Tree| tree.stat(Path::new("")).map_err(local);
    if top(&from)?.map(|stat| stat.id) == top(&to)?.map(|stat| stat.id) {
        return Err(ExchangeError::Refused(
            "the source and the target are the same directory".into(),
        ));
    }
    let is_empty = from.list(Path::new("")).map_err(local)?.is_empty();
    if run.options.delete && is_empty {
        return Err(ExchangeError::Refused(format!(
            "{} is empty: --delete would delete everything\nhint: check the source",
            from.path().display()
        )));
    }
    let _work = match run.options.dry_run {
        true => None,
        false => Some(take_work(&to)?),
    };
    let copy = Arc::new(Copy {
        from: from.clone(),
        to: to.clone(),
        run: run.clone(),
        is_root: crate::base::is_root(),
        runtime: Handle::current(),
        ended: Mutex::default(),
    });
    let c = copy.clone();
    let ran = tokio::task::spawn_blocking(move || c.all());
    let broke = |e: tokio::task::JoinError| ExchangeError::Local {
        what: "a thread of this command".into(),
        source: io::Error::other(e.to_string()),
    };
    ran.await.map_err(broke)?;
    if let Some(e) = copy.ended.lock().take() {
        return Err(e);
    }
    let filter = run.options.filter.clone();
    let keep = move |path: &Path, is_dir: bool| {
        let there = from.stat(path);
        match (is_dir, there) {
            // What cannot be looked at is not known to be gone.
            (_, Err(_)) => true,
            (_, Ok(None)) => false,
            (true, Ok(Some(stat))) => stat.is_dir(),
            (false, Ok(Some(stat))) => !stat.is_dir() && filter.takes(&path.to_string_lossy()),
        }
    };
    end(&to, &run, keep).await
}

impl Copy {
    fn all(self: &Arc<Self>) {
        let (send, receive) = sync_channel::<Job>(QUEUE);
        let receive = Arc::new(Mutex::new(receive));
        let mut later = Later::default();
        std::thread::scope(|scope| {
            for _ in 0..self.run.options.parallel {
                let (me, receive) = (self.clone(), receive.clone());
                scope.spawn(move || me.work(&receive));
            }
            let mut seen = HashMap::new();
            let walked = self.walk(Path::new(""), &send, &mut later, &mut seen);
            drop(send);
            self.take(Path::new(""), walked);
        });
        if self.ended.lock().is_some() {
            return;
        }
        for (name, first) in &later.links {
            let linked = self.link(name, first);
            self.take(name, linked);
            self.run.looked_at();
        }
        // Deepest first: what is done in one changes its times.
        later.directories.sort_by_cached_key(|(path, _)| Reverse(path.components().count()));
        for (path, stat) in &later.directories {
            let dressed = self.directory(path, stat);
            self.take(path, dressed);
        }
    }

    fn work(&self, receive: &Mutex<Receiver<Job>>) {
        let mut buffer = vec![0; PIECE];
        loop {
            let job = receive.lock().recv();
            let Ok(job) = job else { return };
            if self.is_over() {
                continue; // the walk must not wait for room
            }
            let copied = self.one(&job, &mut buffer);
            self.take(&job.path, copied);
            self.run.looked_at();
        }
    }

    fn is_over(&self) -> bool {
        if self.run.is_stopped() {
            self.ended.lock().get_or_insert(ExchangeError::Stopped);
        }
        self.ended.lock().is_some()
    }

    fn take(&self, path: &Path, done: Result<(), Trouble>) {
        match done {
            Ok(()) => {}
            Err(Trouble::One(_)) if matches!(self.from.stat(path), Ok(None)) => {
                self.run.vanished(&self.shown(path));
            }
            Err(Trouble::One(why)) => self.run.failed(&self.shown(path), why),
            Err(Trouble::End(e)) => {
                self.ended.lock().get_or_insert(e);
            }
        }
    }

    fn shown(&self, path: &Path) -> String {
        self.from.path().join(path).display().to_string()
    }

    /// Sends every file below `dir` to be copied; directories are made on the way.
    fn walk(
        &self,
        dir: &Path,
        send: &SyncSender<Job>,
        later: &mut Later,
        seen: &mut HashMap<(u64, u64), PathBuf>,
    ) -> Result<(), Trouble> {
        let target = self.to.stat(Path::new(""))?.map(|stat| stat.id);
        let mut todo = vec![dir.to_owned()];
        while let Some(dir) = todo.pop() {
            let names = match self.from.list(&dir) {
                Ok(names) => names,
                Err(e) => {
                    self.take(&dir, Err(e.into()));
                    continue;
                }
            };
            let mut below = Vec::new();
            for name in names {
                if self.is_over() {
                    return Ok(());
                }
                let path = dir.join(name);
                let shown = path.to_string_lossy();
                let filter = &self.run.options.filter;
                let stat = match self.from.stat(&path) {
                    Ok(Some(stat)) => stat,
                    Ok(None) => {
                        if filter.takes(&shown) {
                            self.run.vanished(&self.shown(&path));
                        }
                        continue;
                    }
                    Err(e) => {
                        self.take(&path, Err(e.into()));
                        continue;
                    }
                };
                if stat.is_dir() {
                    if Some(stat.id) == target {
                        let text = format!("{} is the target: left out", self.shown(&path));
                        self.run.say(Event::Note(text));
                    } else if !filter.prunes(&shown) {
                        if filter.takes_dir(&shown) {
                            let made = self.make_directory(&path);
                            self.take(&path, made);
                            later.directories.push((path.clone(), stat));
                        } else {
                            later.untaken.insert(path.clone(), stat);
                        }
                        below.push(path);
                    }
                    continue;
                }
                if !filter.takes(&shown) {
                    continue;
                }
                later.takes(&path);
                self.run.expects(if stat.is_file() { stat.size } else { 0 });
                if stat.nlink > 1 {
                    if let Some(first) = seen.get(&stat.id) {
                        self.run.moved(stat.size);
                        later.links.push((path, first.clone()));
                        continue;
                    }
                    seen.insert(stat.id, path.clone());
                }
                if send.send(Job { path, stat }).is_err() {
                    return Ok(()); // no thread is left
                }
            }
            todo.extend(below.into_iter().rev());
        }
        if self.run.options.filter.takes_all()
            && let Some(stat) = self.from.stat(Path::new(""))?
        {
            later.directories.push((PathBuf::new(), stat));
        }
        Ok(())
    }

    fn make_directory(&self, path: &Path) -> Result<(), Trouble> {
        if self.run.options.dry_run {
            return Ok(());
        }
        if !self.to.stat(path)?.is_some_and(|stat| stat.is_dir()) {
            make_dir(&self.to, &self.run, path)?;
            self.run.note(|report| report.others += 1);
        }
        Ok(())
    }

    /// What a directory is given at last: its times would change with what is put into it.
    fn directory(&self, path: &Path, stat: &Stat) -> Result<(), Trouble> {
        if self.run.options.dry_run {
            return Ok(());
        }
        self.dress(path, Spot::At(path), stat)
    }

    /// One file of any kind.
    fn one(&self, job: &Job, buffer: &mut [u8]) -> Result<(), Trouble> {
        let (path, stat) = (&job.path, &job.stat);
        let was = self.to.stat(path)?;
        let is_same = match &was {
            Some(was) => self.is_same(path, stat, was, buffer)?,
            None => false,
        };
        if is_same {
            self.run.unchanged(if stat.is_file() { stat.size } else { 0 });
            if let (Some(was), false) = (was, self.run.options.dry_run) {
                self.mend(path, stat, &was)?;
            }
            return Ok(());
        }
        if self.run.options.dry_run {
            self.run.say(Event::Would("copy", path.to_string_lossy().into_owned()));
            self.run.moved(if stat.is_file() { stat.size } else { 0 });
            self.counted(stat);
            return Ok(());
        }
        let (mut draft, stat) = self.make(path, stat, was.is_some(), buffer)?;
        let placed = self.dress(path, draft.spot(), &stat);
        let placed = placed.and_then(|()| draft.put(&self.to, &self.run, path));
        match placed {
            Ok(()) => self.counted(&stat),
            Err(_) => draft.discard(&self.to),
        }
        placed
    }

    fn counted(&self, stat: &Stat) {
        match stat.is_file() {
            true => self.run.copied(stat.size),
            false => self.run.note(|report| report.others += 1),
        }
    }

    /// Whether the file of the target is what it would be made into.
    fn is_same(
        &self,
        path: &Path,
        stat: &Stat,
        was: &Stat,
        buffer: &mut [u8],
    ) -> Result<bool, Trouble> {
        if stat.kind() != was.kind() {
            return Ok(false);
        }
        match stat.kind() {
            libc::S_IFREG if self.run.options.checksum => {
                Ok(stat.size == was.size && self.has_same_contents(path, buffer)?)
            }
            libc::S_IFREG => Ok(stat.size == was.size && stat.mtime == was.mtime),
            libc::S_IFLNK => Ok(self.from.target(path)? == self.to.target(path)?),
            _ => Ok(stat.rdev == was.rdev),
        }
    }

    fn has_same_contents(&self, path: &Path, buffer: &mut [u8]) -> Result<bool, Trouble> {
        let (one, other) = (self.from.read(path)?, self.to.read(path)?);
        let half = buffer.len() / 2;
        let (a, b) = buffer.split_at_mut(half);
        let mut at = 0;
        loop {
            let n = read_up_to(&one, a, at)?;
            if n != read_up_to(&other, b, at)? || a[..n] != b[..n] {
                return Ok(false);
            }
            if n < half {
                return Ok(true);
            }
            at += n as u64;
        }
    }

    /// Owner, permissions, xattrs and time of a file whose contents are right.
    fn mend(&self, path: &Path, stat: &Stat, was: &Stat) -> Result<(), Trouble> {
        let is_link = stat.kind() == libc::S_IFLNK;
        let owner_differs = self.is_root && (stat.uid, stat.gid) != (was.uid, was.gid);
        let perm_differs = !is_link && stat.mode & 0o7777 != was.mode & 0o7777;
        if owner_differs || perm_differs || stat.mtime != was.mtime {
            return self.dress(path, Spot::At(path), stat);
        }
        self.copy_xattrs(path, Spot::At(path)).map(drop)
    }

    /// Makes what is at `path`, with its contents, and says what the file was when it was read.
    fn make(
        &self,
        path: &Path,
        stat: &Stat,
        is_there: bool,
        buffer: &mut [u8],
    ) -> Result<(Draft, Stat), Trouble> {
        match stat.kind() {
            libc::S_IFREG => {}
            kind => {
                let temp = self.to.temp();
                match kind {
                    libc::S_IFLNK => self.to.symlink(&self.from.target(path)?, &temp)?,
                    _ => self.to.node(&temp, kind | 0o600, stat.rdev)?,
                }
                return Ok((Draft::at(temp), *stat));
            }
        }
        for _ in 0..TRIES_MAX {
            let file = self.from.read(path)?;
            let before = stat_fd(file.as_raw_fd())?;
            if !before.is_file() {
                break;
            }
            let draft = Draft::file(&self.to, path, stat.mode, is_there)?;
            let copied = draft.opened().map_err(Trouble::from);
            let copied = copied.and_then(|to| self.contents(&file, to, before.size, buffer));
            match copied.and_then(|()| Ok(stat_fd(file.as_raw_fd())?)) {
                Ok(after) if (before.size, before.mtime) == (after.size, after.mtime) => {
                    return Ok((draft, after));
                }
                Ok(_) => draft.discard(&self.to),
                Err(e) => {
                    draft.discard(&self.to);
                    return Err(e);
                }
            }
        }
        Err(Trouble::One("it changes while it is read".into()))
    }

    /// Contents, with their holes.
    fn contents(
        &self,
        from: &File,
        to: &File,
        size: u64,
        buffer: &mut [u8],
    ) -> Result<(), Trouble> {
        let mut at = 0;
        while at < size {
            let Some(data) = seek(from, at, libc::SEEK_DATA)? else { break };
            let hole = seek(from, data, libc::SEEK_HOLE)?.unwrap_or(size).min(size);
            self.run.moved(data - at);
            at = data;
            while at < hole {
                let want = (hole - at).min(buffer.len() as u64) as usize;
                let n = match from.read_at(&mut buffer[..want], at) {
                    Ok(0) => return Ok(()), // shorter now: it is noticed
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(e.into()),
                };
                self.runtime.block_on(self.run.pace(n as u64))?;
                to.write_all_at(&buffer[..n], at)?;
                at += n as u64;
                self.run.moved(n as u64);
            }
        }
        if at < size {
            to.set_len(size)?; // a hole at the end
            self.run.moved(size - at);
        }
        Ok(())
    }

    /// Gives `target` of the target tree what `path` of the source has beside its contents, in the
    /// order in which none undoes another (a new owner takes set-id bits and capabilities away).
    fn dress(&self, path: &Path, target: Spot<'_>, stat: &Stat) -> Result<(), Trouble> {
        if self.is_root {
            self.to.set_owner(target, stat.uid, stat.gid)?;
        }
        // Before the file is read-only; a list of access rights changes its permission bits.
        let target = match (self.copy_xattrs(path, target)?, target) {
            (true, Spot::Open { file, .. }) => Spot::Open { file, perm: None },
            _ => target,
        };
        if stat.kind() != libc::S_IFLNK {
            let own = self.is_root || !matches!(stat.mode & 0o6000, 1..);
            let mask = if own { 0o7777 } else { 0o1777 };
            self.to.set_perm(target, stat.mode & mask)?;
        }
        self.to.set_times(target, Some(stat.atime), stat.mtime)?;
        Ok(())
    }

    /// Extended attributes, whose change is told.
    fn copy_xattrs(&self, path: &Path, target: Spot<'_>) -> Result<bool, Trouble> {
        let (wanted, there) = (self.from.xattrs(Spot::At(path))?, self.to.xattrs(target)?);
        if wanted == there {
            return Ok(false);
        }
        for (name, _) in there.iter().filter(|(name, _)| !wanted.iter().any(|(n, _)| n == name)) {
            let _ = self.to.set_xattr(target, name, None); // it may be one of the file system's own
        }
        for (name, value) in wanted.iter().filter(|pair| !there.contains(pair)) {
            if self.to.set_xattr(target, name, Some(value)).is_err() {
                // security and trusted belong to root
                self.run.lost("extended attributes that this user may not set", 1);
            }
        }
        Ok(true)
    }

    /// A further name of a file.
    fn link(&self, name: &Path, first: &Path) -> Result<(), Trouble> {
        if self.run.options.dry_run {
            return Ok(());
        }
        let Some(of) = self.to.stat(first)? else {
            return Err(Trouble::One(format!("{} is not there to link to", first.display())));
        };
        if self.to.stat(name)?.is_some_and(|stat| stat.id == of.id) {
            self.run.note(|report| report.unchanged += 1);
            return Ok(());
        }
        let temp = self.to.temp();
        self.to.link(first, &temp)?;
        let placed = put_in_place(&self.to, &self.run, &temp, name);
        if placed.is_err() {
            let _ = self.to.remove(&temp, false); // the failure itself is told
        }
        placed?;
        self.run.note(|report| report.others += 1);
        Ok(())
    }
}

/// lseek(2) for data or a hole from `at` on; `None` behind the last data.
fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: the descriptor is live.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let e = io::Error::last_os_error();
    match e.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        // A file system without holes: all is data.
        Some(libc::EINVAL | libc::ENOTSUP) if whence == libc::SEEK_DATA => Ok(Some(at)),
        Some(libc::EINVAL | libc::ENOTSUP) => Ok(None),
        _ => Err(e),
    }
}
