//! Everything that a user can see of a tree, to be compared before and after.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsString};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// One name of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    pub size: u64,
    pub device: u64,
    /// Of the last modification: seconds, nanoseconds.
    pub modified: (i64, i64),
    /// Of the last change of the inode.
    pub changed: (i64, i64),
    /// The first name (in order) of the same inode: which names are one file.
    pub same_as: PathBuf,
    /// SHA-256 of the contents, or the target of a symlink.
    pub contents: Vec<u8>,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// A tree by its paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest(pub BTreeMap<PathBuf, Entry>);

impl Manifest {
    /// Reads all of `root`.
    pub fn of(root: &Path) -> Manifest {
        let mut all = BTreeMap::new();
        let mut first_names = HashMap::new();
        for found in WalkDir::new(root).sort_by_file_name() {
            let found = found.expect("walks");
            let name = found.path().strip_prefix(root).expect("below the root").to_path_buf();
            let meta = fs::symlink_metadata(found.path()).expect("has attributes");
            let contents = if meta.is_file() {
                digest(found.path())
            } else if meta.is_symlink() {
                fs::read_link(found.path()).expect("reads").into_os_string().into_vec()
            } else {
                Vec::new()
            };
            let same_as = first_names.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
            let entry = Entry {
                mode: meta.mode(),
                uid: meta.uid(),
                gid: meta.gid(),
                links: meta.nlink(),
                size: meta.size(),
                device: meta.rdev(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
                same_as,
                contents,
                xattrs: xattrs(found.path()),
            };
            all.insert(name, entry);
        }
        Manifest(all)
    }

    /// Without what a copy by tar or rsync cannot carry (change times, link counts and sizes of
    /// directories), and without the times of git's objects, which it renews through hard links.
    pub fn copied(mut self) -> Manifest {
        for (name, entry) in &mut self.0 {
            entry.changed = (0, 0);
            if name.starts_with(".git/objects") {
                entry.modified = (0, 0);
            }
            if entry.mode & libc::S_IFMT == libc::S_IFDIR {
                (entry.links, entry.size) = (0, 0);
            }
        }
        self
    }

    /// Fails naming what differs.
    pub fn assert_same(&self, other: &Manifest, when: &str) {
        let mut report = String::new();
        let mut differences = 0;
        for name in self.0.keys().chain(other.0.keys().filter(|n| !self.0.contains_key(*n))) {
            let (a, b) = (self.0.get(name), other.0.get(name));
            if a != b {
                differences += 1;
                if differences <= 5 {
                    let _ = writeln!(report, "{name:?}:\n  was {a:x?}\n  is  {b:x?}");
                }
            }
        }
        assert_eq!(differences, 0, "{when}: {differences} names differ\n{report}");
    }
}

fn digest(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap_or_else(|e| panic!("{path:?}: {e}")) {
            0 => return hash.finalize().to_vec(),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The extended attributes of `path` itself, POSIX ACLs included.
pub fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let c_path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path");
    let mut names = vec![0u8; 65_536];
    // SAFETY: the buffers are as long as said, the strings end in NUL.
    let n = unsafe { libc::llistxattr(c_path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    assert!(n >= 0, "llistxattr {path:?}: {}", std::io::Error::last_os_error());
    let mut all = BTreeMap::new();
    for name in names[..n as usize].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).expect("split at NUL");
        let mut value = vec![0u8; 65_536];
        // SAFETY: as above.
        let n = unsafe {
            libc::lgetxattr(
                c_path.as_ptr(),
                c_name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        assert!(n >= 0, "lgetxattr {path:?} {c_name:?}: {}", std::io::Error::last_os_error());
        value.truncate(n as usize);
        all.insert(OsString::from_vec(name.to_vec()), value);
    }
    all
}
