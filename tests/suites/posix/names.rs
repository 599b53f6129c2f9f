//! Names and paths to their limits, and directories that change while they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::sh;
use crate::needs_fuse;
use crate::suites::Stand;

fn listed(dir: &Path) -> BTreeSet<OsString> {
    fs::read_dir(dir).expect("lists").map(|e| e.expect("an entry").file_name()).collect()
}

#[test]
fn a_name_is_any_255_bytes_but_slash_and_nul() {
    // Guards against names that are taken for text: normalised, folded, escaped, cut or refused.
    needs_fuse!();
    let stand = Stand::new();
    let dir = stand.volume.at("d");
    fs::create_dir(&dir).expect("makes");
    let bytes = || (1..=255u8).filter(|b| *b != b'/');
    let mut names: BTreeSet<OsString> = bytes()
        .filter(|b| *b != b'.')
        .flat_map(|b| [vec![b], vec![b; 255], [vec![b'.'], vec![b; 254]].concat()])
        .map(OsString::from_vec)
        .collect();
    names.insert(OsString::from_vec(bytes().collect())); // 254 bytes: every one there is
    // The same letter in two encodings and two cases is four names.
    names.extend(
        ["\u{e9}", "e\u{301}", "\u{c9}", "E\u{301}", "...", "a.", "con", " "].map(Into::into),
    );
    for name in &names {
        fs::write(dir.join(name), name.as_bytes()).expect("creates");
    }
    for name in [vec![b'x'; 256], vec![0xff; 300]] {
        let error = File::create(dir.join(OsStr::from_bytes(&name))).expect_err("too long");
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }
    assert!(listed(&dir) == names, "names that were made and names that are listed");
    stand.move_elsewhere();
    assert!(listed(&dir) == names, "on another machine");
    for name in &names {
        assert!(fs::read(dir.join(name)).expect("reads") == name.as_bytes(), "{name:?}");
        fs::remove_file(dir.join(name)).expect("unlinks");
    }
    assert_eq!(listed(&dir), BTreeSet::new());
    stand.close();
}

#[test]
fn paths_of_4095_bytes_work_and_deeper_trees_by_steps() {
    // Guards against a limit of our own below that of Linux, and against recursion over depth.
    needs_fuse!();
    let stand = Stand::new();
    let vault = stand.volume.vault();
    // The longest path: 4,095 bytes and its NUL.
    let root = vault.as_os_str().len();
    let (mut dir, step) = (vault.clone(), "s".repeat(199));
    while dir.as_os_str().len() + 200 + 1 < 4_095 {
        dir = dir.join(&step);
    }
    fs::create_dir_all(&dir).expect("makes");
    let room = 4_095 - dir.as_os_str().len() - 1;
    let longest = dir.join("f".repeat(room));
    assert_eq!(longest.as_os_str().len(), 4_095);
    fs::write(&longest, "deep").expect("the longest path");
    let error = fs::write(dir.join("f".repeat(room + 1)), "").expect_err("one more");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    // Deeper: 300 levels of 200 bytes, one step at a time.
    let script = "name=$(printf '%0200d' 0); i=0; while [ $i -lt 300 ]; do mkdir $name; cd -P ./$name; \
                  i=$((i+1)); done; echo bottom > f";
    sh(&vault, script).expect("steps");
    stand.move_elsewhere();
    assert_eq!(fs::read(&longest).expect("reads"), b"deep");
    assert_eq!(sh(&vault, "find . -name f -execdir cat f ';'"), Ok("bottom".into()));
    assert_eq!(
        sh(&vault, "find . -type d | wc -l"),
        Ok((301 + (dir.as_os_str().len() - root) / 200).to_string())
    );
    sh(&vault, "rm -r *").expect("removes all");
    assert_eq!(listed(&vault), BTreeSet::new());
    stand.close();
}

#[test]
fn whiteouts_are_refused_and_exchanges_are_whole() {
    // Guards against an overlay file system that takes this for its upper layer and loses what
    // it whites out, and against an exchange of a file and a directory with wrong parents.
    needs_fuse!();
    let stand = Stand::new();
    let v = &stand.volume;
    fs::create_dir_all(v.at("a/dir/sub")).expect("makes");
    fs::create_dir(v.at("b")).expect("makes");
    fs::write(v.at("b/file"), "f").expect("writes");
    let rename = |from: &str, to: &str, flags| {
        let path = |name| CString::new(v.at(name).as_os_str().as_bytes()).expect("no NUL");
        let (from, to, cwd) = (path(from), path(to), libc::AT_FDCWD);
        // SAFETY: both are NUL-terminated strings.
        let rc = unsafe { libc::renameat2(cwd, from.as_ptr(), cwd, to.as_ptr(), flags) };
        (rc < 0).then(|| std::io::Error::last_os_error().raw_os_error().expect("an errno"))
    };
    assert_eq!(rename("b/file", "b/gone", libc::RENAME_WHITEOUT), Some(libc::EINVAL));
    assert_eq!(listed(&v.at("b")), BTreeSet::from(["file".into()]));
    let both = libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE;
    assert_eq!(rename("b/file", "a/dir", both), Some(libc::EINVAL));
    assert_eq!(rename("b/file", "b/none", libc::RENAME_EXCHANGE), Some(libc::ENOENT));
    assert_eq!(rename("a/dir", "a/dir/sub", libc::RENAME_EXCHANGE), Some(libc::EINVAL));
    assert_eq!(rename("b/file", "a/dir", libc::RENAME_EXCHANGE), None);
    let links = |name: &str| fs::metadata(v.at(name)).expect("stats").nlink();
    let parent = || fs::metadata(v.at("b/file/..")).expect("stats").ino();
    for place in ["here", "elsewhere"] {
        assert_eq!(fs::read(v.at("a/dir")).expect("reads"), b"f", "{place}");
        assert!(v.at("b/file/sub").is_dir(), "{place}");
        assert_eq!((links("a"), links("b"), links("b/file")), (2, 3, 3), "{place}");
        assert_eq!(parent(), fs::metadata(v.at("b")).expect("stats").ino(), "{place}");
        if place == "here" {
            stand.move_elsewhere();
        }
    }
    stand.close();
}

/// Names that last while others come and go.
const LASTING: usize = 20_000;

#[test]
fn every_lasting_name_is_listed_once_while_others_come_and_go() {
    // Guards against names that a listing leaves out or doubles because another process makes,
    // removes and renames names of the same directory all the while.
    needs_fuse!();
    let stand = Stand::new();
    let dir = stand.volume.at("d");
    fs::create_dir(&dir).expect("makes");
    for n in 0..LASTING {
        File::create(dir.join(format!("lasts-{n}"))).expect("creates");
    }
    let (done, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Each makes, renames and removes its own names until the listings are done.
    let change = |worker: usize| {
        let name = |how: &str, n: usize| dir.join(format!("{how}-{worker}-{n}"));
        for n in 0.. {
            File::create(name("comes", n)).expect("creates");
            if n >= 50 {
                fs::rename(name("comes", n - 50), name("moved", n)).expect("renames");
            }
            if n >= 100 {
                fs::remove_file(name("moved", n - 50)).expect("unlinks");
            }
            changes.fetch_add(1, Ordering::SeqCst);
            if done.load(Ordering::SeqCst) {
                break;
            }
        }
    };
    let list = || {
        let mut seen: BTreeMap<OsString, usize> = BTreeMap::new();
        for entry in fs::read_dir(&dir).expect("lists") {
            *seen.entry(entry.expect("an entry").file_name()).or_insert(0) += 1;
        }
        let lasting = |n: &usize| seen.get(OsStr::new(&format!("lasts-{n}"))) != Some(&1);
        let wrong: Vec<usize> = (0..LASTING).filter(lasting).collect();
        let doubled: Vec<_> = seen.into_iter().filter(|(_, n)| *n > 1).collect();
        (wrong, doubled)
    };
    let found = std::thread::scope(|scope| {
        let (change, done) = (&change, &done);
        (0..2).for_each(|worker| drop(scope.spawn(move || change(worker))));
        let begun = Instant::now();
        let mut found = Vec::new();
        while found.len() < 4 || changes.load(Ordering::SeqCst) < 300 {
            found.push(list());
            if begun.elapsed() > Duration::from_secs(60) {
                break;
            }
        }
        done.store(true, Ordering::SeqCst);
        found
    });
    let changes = changes.into_inner();
    eprintln!("{LASTING} lasting names, listed {} times during {changes} changes", found.len());
    for (wrong, doubled) in found {
        assert_eq!((wrong, doubled), (vec![], vec![]), "missing or doubled");
    }
    assert!(changes >= 300, "only {changes} changes");
    assert_eq!(sh(&dir, "ls -f | grep -c lasts"), Ok(LASTING.to_string()));
    stand.close();
}
