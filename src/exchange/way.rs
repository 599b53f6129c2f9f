//! What stands in the way in the target: a file where a directory must be, or the other way round. And what
//! is left over, which `--delete` deletes. What the filters do not take is never touched.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::names::key_of;
use super::report::{Event, Run, Trouble};
use super::tree::Tree;

/// Renames a finished file to `path`; what stands in the way there gives way, where it may.
///
/// # Errors
/// It may not: a directory with something in it, without `--delete`, or with what the filters keep.
pub fn put_in_place(tree: &Tree, run: &Run, temp: &Path, path: &Path) -> Result<(), Trouble> {
    match tree.put_in_place(temp, path) {
        Err(e) if is_in_the_way(&e) => {
            make_way(tree, run, path, false)?;
            Ok(tree.put_in_place(temp, path)?)
        }
        placed => Ok(placed?),
    }
}

/// The directory at `path`, made if it is not there; what stands in the way gives way, where it may.
///
/// # Errors
/// The filters keep it.
pub fn make_dir(tree: &Tree, run: &Run, path: &Path) -> Result<Arc<OwnedFd>, Trouble> {
    match tree.dir(path, true) {
        Err(e) if is_in_the_way(&e) => {
            make_way(tree, run, path, true)?;
            Ok(tree.dir(path, true)?)
        }
        made => Ok(made?),
    }
}

/// Whether a call failed by what is there already, at the path or on the way to it.
pub fn is_in_the_way(e: &io::Error) -> bool {
    let kinds = [libc::ENOTDIR, libc::EISDIR, libc::ENOTEMPTY, libc::EEXIST, libc::ELOOP];
    e.raw_os_error().is_some_and(|code| kinds.contains(&code))
}

/// Files on the way to `path` go, as a file goes that is written over; a directory in the place of a file
/// goes with what is in it, if deleting is asked for.
fn make_way(tree: &Tree, run: &Run, path: &Path, is_dir: bool) -> Result<(), Trouble> {
    let on_the_way = path.ancestors().skip(usize::from(!is_dir));
    let file = on_the_way.filter(|at| !at.as_os_str().is_empty()).find_map(|at| {
        let stat = tree.stat(at);
        stat.map(|stat| stat.filter(|stat| !stat.is_dir()).map(|_| at)).transpose()
    });
    if let Some(file) = file.transpose()? {
        return remove(tree, run, file, false);
    }
    if is_dir || !tree.stat(path)?.is_some_and(|stat| stat.is_dir()) {
        return Ok(());
    }
    if !run.options.delete {
        let shown = path.display();
        return Err(Trouble::One(format!(
            "{shown} is a directory with something in it; --delete takes it away"
        )));
    }
    all_taken(tree, run, path)?;
    clear(tree, run, path)
}

/// Whether the filters take all that is in a directory: else nothing of it is touched.
fn all_taken(tree: &Tree, run: &Run, dir: &Path) -> Result<(), Trouble> {
    for name in tree.list(dir)? {
        let path = dir.join(name);
        match tree.stat(&path)? {
            Some(stat) if stat.is_dir() => all_taken(tree, run, &path)?,
            Some(_) => may_go(run, &path)?,
            None => {}
        }
    }
    Ok(())
}

fn may_go(run: &Run, path: &Path) -> Result<(), Trouble> {
    if takes(run, path) {
        return Ok(());
    }
    Err(Trouble::One(format!("{} is in the way, and the filters keep it", path.display())))
}

fn clear(tree: &Tree, run: &Run, dir: &Path) -> Result<(), Trouble> {
    for name in tree.list(dir)? {
        let path = dir.join(name);
        match tree.stat(&path)? {
            Some(stat) if stat.is_dir() => clear(tree, run, &path)?,
            Some(_) => remove(tree, run, &path, false)?,
            None => {}
        }
    }
    remove(tree, run, dir, true)
}

fn remove(tree: &Tree, run: &Run, path: &Path, is_dir: bool) -> Result<(), Trouble> {
    if !is_dir {
        may_go(run, path)?;
    }
    match tree.remove(path, is_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()), // another task was here
        removed => {
            removed?;
            run.note(|report| report.deleted += 1);
            Ok(())
        }
    }
}

/// Whether the filters take a file of the target, by its name here and by that of its key.
fn takes(run: &Run, path: &Path) -> bool {
    let (filter, shown) = (&run.options.filter, path.to_string_lossy());
    filter.takes(&shown) && filter.takes(&key_of(&shown))
}

/// Deletes what `keep` does not keep and the filter takes; directories that are empty then.
pub fn delete_rest(
    tree: &Tree,
    run: &Run,
    keep: &dyn Fn(&Path, bool) -> bool,
) -> Result<(), Trouble> {
    /// Whether nothing is left in it.
    fn clear(
        tree: &Tree,
        run: &Run,
        keep: &dyn Fn(&Path, bool) -> bool,
        dir: &Path,
    ) -> Result<bool, Trouble> {
        let mut is_empty = true;
        for name in tree.list(dir)? {
            let path = dir.join(&name);
            let Some(stat) = tree.stat(&path)? else { continue };
            let shown = path.to_string_lossy();
            let goes = match stat.is_dir() {
                true => clear(tree, run, keep, &path)? && run.options.filter.takes_dir(&shown),
                false => takes(run, &path),
            };
            if !goes || keep(&path, stat.is_dir()) {
                is_empty = false;
                continue;
            }
            match run.options.dry_run {
                true => run.say(Event::Would("delete", shown.into_owned())),
                false => tree.remove(&path, stat.is_dir())?,
            }
            run.note(|report| report.deleted += 1);
        }
        Ok(is_empty)
    }
    clear(tree, run, keep, Path::new("")).map(drop)
}
