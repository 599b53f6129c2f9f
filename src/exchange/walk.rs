//! What of a tree can be objects: every regular file with the key it gets. The rest is counted.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use super::report::{Event, ExchangeError, Run, Trouble};
use super::tree::{Stat, Tree, WORK_DIR};

/// Bytes of a key.
const KEY_BYTES_MAX: usize = 1024;

/// A regular file to export.
pub struct Item {
    /// Where it is in the tree.
    pub path: PathBuf,
    /// What its object is called.
    pub key: String,
    /// What it was when it was found.
    pub stat: Stat,
}

/// Every regular file that is meant; the rest is counted.
///
/// # Errors
/// The tree cannot be read any more; stopped.
pub fn walk(tree: &Tree, run: &Run, prefix: &str) -> Result<Vec<Item>, Trouble> {
    let (mut items, mut seen) = (Vec::new(), HashSet::new());
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let names = match tree.list(&dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // removed meanwhile
            Err(e) => {
                run.failed(&dir.display().to_string(), e);
                continue;
            }
        };
        if names.is_empty() && !dir.as_os_str().is_empty() {
            run.lost("empty directories", 1);
        }
        let mut below = Vec::new();
        for name in names {
            if run.is_stopped() {
                return Err(Trouble::End(ExchangeError::Stopped));
            }
            if name == WORK_DIR {
                continue; // of an import that is not over
            }
            let path = dir.join(name);
            let shown = path.to_string_lossy();
            let stat = match tree.stat(&path) {
                Ok(Some(stat)) => stat,
                Ok(None) => continue, // removed meanwhile
                Err(e) => match Trouble::from(e) {
                    Trouble::One(why) => {
                        run.failed(&shown, why);
                        continue;
                    }
                    end => return Err(end),
                },
            };
            let filter = &run.options.filter;
            if stat.is_dir() {
                if !filter.prunes(&shown) {
                    below.push(path);
                }
                continue;
            }
            if !filter.takes(&shown) {
                continue;
            }
            match stat.kind() {
                libc::S_IFREG => {}
                libc::S_IFLNK => {
                    run.lost("symlinks", 1);
                    continue;
                }
                _ => {
                    run.lost("devices, pipes and sockets", 1);
                    continue;
                }
            }
            let key = match path.to_str() {
                Some(text) if prefix.len() + text.len() <= KEY_BYTES_MAX => {
                    format!("{prefix}{text}")
                }
                Some(_) => {
                    run.failed(
                        &shown,
                        format!("its key would have more than {KEY_BYTES_MAX} bytes"),
                    );
                    continue;
                }
                None => {
                    run.failed(&shown, "its name is not UTF-8, as keys must be");
                    continue;
                }
            };
            if stat.nlink > 1 && !seen.insert(stat.id) {
                run.lost("hard links, which became separate files", 1);
            }
            if stat.blocks * 512 < stat.size / 2 && stat.size > 1 << 16 {
                run.lost("files with holes, which became zeros", 1);
            }
            run.expects(stat.size);
            items.push(Item { path, key, stat });
        }
        todo.extend(below.into_iter().rev());
    }
    Ok(items)
}

/// Says what was counted, before anything is sent.
pub fn say_what_is_lost(run: &Run) {
    let report = run.report();
    let parts: Vec<_> = report.lost.iter().map(|(what, n)| format!("{n} {what}")).collect();
    if !parts.is_empty() {
        let text = format!("objects cannot hold: {}", parts.join(", "));
        run.say(Event::Note(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::report::Options;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_cannot_be_looked_at_fails_alone() {
        // Guards against an export that ends at one damaged file: a directory whose names may be read, and nothing
        // below it be looked at, fails as one does. Root may look everywhere, so this thread is nobody.
        let tmp = tempfile::tempdir().expect("a directory");
        let may = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("sets");
        };
        std::fs::create_dir(tmp.path().join("bad")).expect("makes");
        for name in ["a", "bad/x", "bad/y", "z"] {
            std::fs::write(tmp.path().join(name), name).expect("writes");
        }
        may(tmp.path(), 0o755);
        may(&tmp.path().join("bad"), 0o444);
        let tree = Tree::open(tmp.path()).expect("opens");
        // SAFETY: takes a number, and changes this thread only.
        unsafe { libc::setfsuid(65534) };
        let run = Run::new("export", Options::default(), |_| {});
        let items = walk(&tree, &run, "p/").expect("goes on");
        // SAFETY: as above.
        unsafe { libc::setfsuid(libc::geteuid()) };
        may(&tmp.path().join("bad"), 0o755);
        let keys: Vec<_> = items.iter().map(|item| item.key.as_str()).collect();
        assert_eq!((keys, run.failures()), (vec!["p/a", "p/z"], 2));
    }
}
