//! What is made and has not got its name yet.
//!
//! A file that stands in nobody's place has no name at all meanwhile (`O_TMPFILE`): nothing is left of it after a
//! kill, and a directory is changed once, not three times, for each file. Below a FUSE mount that counts: every
//! change of a directory makes the kernel ask for its attributes again, and a rename from one directory into
//! another keeps all others of the mount waiting. What replaces something is made in the directory of unfinished
//! files, and renamed.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::report::{Run, Trouble};
use super::spot::{ACL, Spot};
use super::tree::{Stat, Tree, split, stat_fd};
use super::way::{is_in_the_way, put_in_place};

/// What a file is made with that nobody says anything of (open(2), less the umask).
pub const NEW_FILE: u32 = 0o666;

/// What is made and has not got its name yet.
pub struct Draft {
    /// The file and its permission bits as far as they are known, if this run has it open.
    file: Option<(File, Option<u32>)>,
    /// Its name among the unfinished files.
    temp: PathBuf,
    /// Whether it has that name. What has not is open.
    is_named: bool,
}

impl Draft {
    /// A new file that is to be at `path`, which needs no temporary name if nothing `is_there`. `perm`, of which
    /// 0777 counts, is what it should be made with: the umask, or an access control list of the directory, may
    /// leave less. Its owner may write in any case, since extended attributes are yet to be set.
    ///
    /// # Errors
    /// Those of openat(2), and of making the directories on the way.
    pub fn file(tree: &Tree, path: &Path, perm: u32, is_there: bool) -> io::Result<Draft> {
        let temp = tree.temp();
        // What is in the way gives way when the name is given.
        let dir = if is_there { None } else { tree.dir(split(path).0, true).ok() };
        let unnamed = dir.map(|dir| tree.unnamed(&dir, perm & 0o777 | 0o600));
        let (file, is_named) = match unnamed {
            Some(Ok(file)) => (file, false),
            Some(Err(e)) if !is_unknown(&e) => return Err(e),
            _ => (tree.create(&temp)?, true),
        };
        let perm = stat_fd(file.as_raw_fd())?.mode & 0o7777;
        Ok(Draft { file: Some((file, Some(perm))), temp, is_named })
    }

    /// What was made at `temp`.
    pub fn at(temp: PathBuf) -> Draft {
        Draft { file: None, temp, is_named: true }
    }

    /// The file.
    ///
    /// # Errors
    /// It was not made as one.
    pub fn opened(&self) -> io::Result<&File> {
        let (file, _) = self.file.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(file)
    }

    /// The file once more, to write to.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn again(&self) -> io::Result<File> {
        self.opened()?.try_clone()
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// Those of looking.
    pub fn size(&self, tree: &Tree) -> io::Result<u64> {
        let stat = match &self.file {
            Some((file, _)) => Some(stat_fd(file.as_raw_fd())?),
            None => tree.stat(&self.temp)?,
        };
        Ok(stat.map_or(0, |stat| stat.size))
    }

    /// Gives it the rights that a new file would have had where it is to be, or those of the one that it replaces
    /// (`was`), as far as they are a list. Only what was made among the unfinished files lacks them. Returns the
    /// permission bits and the group that go with them, where nothing is replaced.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn rights_of_place(
        &mut self,
        tree: &Tree,
        path: &Path,
        was: Option<Stat>,
    ) -> io::Result<Option<(u32, u32)>> {
        if !self.is_named {
            return Ok(None);
        }
        let (acl, rights) = match was {
            Some(_) => (tree.xattr(path, ACL)?, None),
            None => {
                let beside = Draft::file(tree, path, NEW_FILE, false)?;
                if beside.is_named {
                    beside.discard(tree); // there is no such thing here
                    return Ok(None);
                }
                let stat = stat_fd(beside.opened()?.as_raw_fd())?;
                (tree.acl(beside.spot())?, Some((stat.mode & 0o777, stat.gid)))
            }
        };
        if let Some(acl) = acl {
            tree.set_xattr(self.spot(), OsStr::new(ACL), Some(&acl))?;
            self.file.iter_mut().for_each(|(_, perm)| *perm = None);
        }
        Ok(rights)
    }

    /// Whether it was made among the unfinished files, not where it is to be.
    pub fn is_elsewhere(&self) -> bool {
        self.is_named
    }

    /// Where attributes go.
    pub fn spot(&self) -> Spot<'_> {
        match &self.file {
            Some((file, perm)) => Spot::Open { file, perm: *perm },
            None => Spot::At(&self.temp),
        }
    }

    /// Its temporary name, which it is given if it has none.
    ///
    /// # Errors
    /// Those of linkat(2).
    pub fn named(&mut self, tree: &Tree) -> io::Result<&Path> {
        if !self.is_named {
            tree.link_open(self.opened()?, &self.temp)?;
            self.is_named = true;
        }
        Ok(&self.temp)
    }

    /// Gives it its name; what stands in the way there gives way, where it may.
    ///
    /// # Errors
    /// As [`put_in_place`].
    pub fn put(&mut self, tree: &Tree, run: &Run, path: &Path) -> Result<(), Trouble> {
        if !self.is_named {
            match tree.link_open(self.opened()?, path) {
                // Somebody made something there meanwhile, or on the way.
                Err(e) if is_in_the_way(&e) => {}
                linked => return Ok(linked?),
            }
        }
        put_in_place(tree, run, self.named(tree)?, path)
    }

    /// Away with it, after a failure, which is told instead of what fails here.
    pub fn discard(self, tree: &Tree) {
        if self.is_named {
            let _ = tree.remove(&self.temp, false);
        }
    }
}

/// Whether a file system, or a kernel, has no files without a name.
fn is_unknown(e: &io::Error) -> bool {
    let codes = [libc::EOPNOTSUPP, libc::EISDIR, libc::ENOSYS, libc::EINVAL];
    e.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timestamp;
    use crate::exchange::report::Options;
    use crate::exchange::tree::WORK_DIR;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_file_has_no_name_until_it_is_whole() {
        // Guards against half a file under its name, against one that is left behind by a kill, and against a
        // file that lands beside what came to be there meanwhile instead of in its place.
        let tmp = tempfile::tempdir().expect("a directory");
        let tree = Tree::open(tmp.path()).expect("opens");
        let run = Run::new("import", Options::default(), |_| {});
        let path = Path::new("a/b");
        for round in 0..2 {
            let mut draft = Draft::file(&tree, path, 0o600, false).expect("makes");
            write!(draft.opened().expect("open"), "round {round}").expect("writes");
            assert!(tree.stat(Path::new(WORK_DIR)).expect("looks").is_none_or(|_| round == 1));
            let at = Timestamp { secs: 12, nanos: 34 };
            tree.set_perm(draft.spot(), 0o640).expect("sets");
            tree.set_xattr(draft.spot(), OsStr::new("user.a"), Some(b"b")).expect("sets");
            tree.set_times(draft.spot(), None, at).expect("sets");
            draft.put(&tree, &run, path).expect("gets its name");
            let stat = tree.stat(path).expect("looks").expect("is there");
            assert_eq!((stat.size, stat.mtime, stat.mode & 0o7777, stat.nlink), (7, at, 0o640, 1));
            assert_eq!(tree.xattr(path, "user.a").expect("reads"), Some(b"b".to_vec()));
            let text = std::fs::read_to_string(tmp.path().join(path)).expect("reads");
            assert_eq!(text, format!("round {round}"));
        }
        assert!(tree.list(Path::new(WORK_DIR)).expect("lists").is_empty());
    }

    #[test]
    fn a_file_that_nobody_may_write_gets_its_attributes_first() {
        // Guards against an import by somebody else than root that fails at, or loses attributes of, files that
        // are read-only: who sets an extended attribute must be allowed to write.
        let tmp = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o777)).expect("sets");
        let tree = Tree::open(tmp.path()).expect("opens");
        // SAFETY: takes a number, and changes this thread only.
        unsafe { libc::setfsuid(65534) };
        let made = Draft::file(&tree, Path::new("f"), 0o444, false).and_then(|draft| {
            tree.set_xattr(draft.spot(), OsStr::new("user.a"), Some(b"b"))?;
            tree.set_perm(draft.spot(), 0o444)?;
            Ok(stat_fd(draft.again()?.as_raw_fd())?.mode & 0o7777)
        });
        // SAFETY: as above.
        unsafe { libc::setfsuid(libc::geteuid()) };
        assert_eq!(made.expect("makes"), 0o444);
    }
}
