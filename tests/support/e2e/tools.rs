//! The load that ordinary tools make: tar, git, rsync, sqlite3, an edit inside a large file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use walkdir::WalkDir;

use super::manifest::Manifest;
use super::{attributes, noise};
use crate::support::mounts::Volume;

/// A real source tree has at least so many files.
const TREE_FILES_MIN: usize = 1_000;
/// No crate with more bytes than this is taken into it.
const CRATE_BYTES_MAX: u64 = 1 << 20;
const PIECE: usize = 1 << 20;

/// Runs a tool in `dir`; returns what it printed. Fails if the tool does.
pub fn run(tool: &str, args: &[impl AsRef<OsStr>], dir: &Path) -> String {
    let mut command = Command::new(tool);
    command
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    for (name, value) in [("NAME", "a tester"), ("EMAIL", "tester@example.org")] {
        command.env(format!("GIT_AUTHOR_{name}"), value);
        command.env(format!("GIT_COMMITTER_{name}"), value);
    }
    let output = command.output().unwrap_or_else(|e| panic!("{tool}: {e} (scripts/test?)"));
    let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}: {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A git repository of real sources in `dir/tree` (those of the crates this one is built
/// from), and a tar of it, whose path is returned.
pub fn source_tar(dir: &Path) -> PathBuf {
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).unwrap_or_else(|| {
        Path::new(&std::env::var_os("HOME").expect("a home directory")).join(".cargo")
    });
    let mut crates: Vec<PathBuf> = Vec::new();
    for registry in fs::read_dir(cargo.join("registry/src")).expect("the crates of this build") {
        let registry = registry.expect("lists").path();
        crates.extend(fs::read_dir(registry).expect("lists").map(|c| c.expect("lists").path()));
    }
    crates.sort();
    let tree = dir.join("tree");
    fs::create_dir(&tree).expect("makes a directory");
    let mut count = 0;
    for sources in crates {
        let files: Vec<_> = WalkDir::new(&sources).into_iter().filter_map(Result::ok).collect();
        let bytes: u64 = files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
        if bytes <= CRATE_BYTES_MAX {
            count += files.iter().filter(|f| f.file_type().is_file()).count();
            run("cp", &[OsStr::new("-a"), sources.as_os_str(), tree.as_os_str()], dir);
        }
        if count > TREE_FILES_MIN {
            break;
        }
    }
    assert!(count >= TREE_FILES_MIN, "only {count} files of sources");
    run("git", &["init", "-q", "-b", "main"], &tree);
    run("git", &["add", "-A", "-f"], &tree);
    run("git", &["commit", "-q", "-m", "sources"], &tree);
    // The default format knows whole seconds only.
    run("tar", &["--format=posix", "-cf", "tree.tar", "tree"], dir);
    dir.join("tree.tar")
}

/// Everything, on a mounted volume; `dir` is a local directory to work in, the large file has
/// `large_mib`. Returns the local tree that was put in a tar.
pub fn make_everything(v: &Volume, dir: &Path, large_mib: u64) -> PathBuf {
    let tar = source_tar(dir);
    let vault = v.vault();
    let said = |what: &str, begun: std::time::Instant| {
        eprintln!("{}: {what}: {:.1} s", v.url(), begun.elapsed().as_secs_f64());
    };
    let mut begun = std::time::Instant::now();
    let mut lap = |what: &str| {
        said(what, begun);
        begun = std::time::Instant::now();
    };
    run("tar", &[OsStr::new("-xpf"), tar.as_os_str()], &vault);
    lap("untar");
    clone_and_commit(&vault);
    lap("git clone, commit, fsck");
    copy_twice(&vault);
    lap("rsync twice");
    databases(&vault);
    lap("sqlite3");
    edit_large_file(&vault.join("large"), large_mib);
    lap("large file");
    attributes::make(&vault.join("odd"));
    lap("attributes");
    dir.join("tree")
}

/// What must hold of it on any later mount, besides its manifest.
pub fn check_everything(vault: &Path, tree: &Path) {
    let (was, is) = (Manifest::of(tree), Manifest::of(&vault.join("tree")));
    was.copied().assert_same(&is.copied(), "the tree that was in the tar");
    run("git", &["fsck", "--strict"], &vault.join("clone"));
    assert_eq!(run("git", &["status", "--porcelain"], &vault.join("clone")), "");
    for (_, file) in DATABASES {
        check_database(vault, file);
    }
    let second = run("rsync", &["-aHAXin", "--checksum", "tree/", "copy/"], vault);
    assert_eq!(second, "", "rsync would transfer something");
}

fn clone_and_commit(vault: &Path) {
    run("git", &["clone", "-q", "tree", "clone"], vault);
    let clone = vault.join("clone");
    fs::write(clone.join("new file"), b"committed on the mount\n").expect("writes");
    run("git", &["add", "-A"], &clone);
    run("git", &["commit", "-q", "-m", "on the mount"], &clone);
    run("git", &["gc", "-q"], &clone);
    run("git", &["fsck", "--strict"], &clone);
    assert_eq!(run("git", &["status", "--porcelain"], &clone), "");
    assert_eq!(run("git", &["rev-list", "--count", "HEAD"], &clone), "2\n");
}

fn copy_twice(vault: &Path) {
    let first = run("rsync", &["-aHAXi", "tree/", "copy/"], vault);
    assert!(first.lines().count() > TREE_FILES_MIN, "the first rsync transfers everything");
    let second = run("rsync", &["-aHAXi", "tree/", "copy/"], vault);
    assert_eq!(second, "", "the second rsync transfers something");
}

const DATABASES: [(&str, &str); 2] = [("wal", "wal.db"), ("delete", "rollback.db")];
/// Processes that write to one database at once, and the transactions of each.
const WRITERS: usize = 2;
const TRANSACTIONS: usize = 60;

fn databases(vault: &Path) {
    for (mode, file) in DATABASES {
        let set = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(w, n, text);");
        assert_eq!(run("sqlite3", &[file, &set], vault), format!("{mode}\n"));
        let children: Vec<_> = (0..WRITERS)
            .map(|w| {
                let mut child = Command::new("sqlite3")
                    .args(["-bail", file])
                    .current_dir(vault)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .spawn()
                    .expect("sqlite3 runs");
                let mut sql = String::from(".timeout 60000\n");
                for n in 0..TRANSACTIONS {
                    sql += &format!(
                        "BEGIN IMMEDIATE; INSERT INTO t VALUES({w},{n},hex(randomblob(500))); \
                         INSERT INTO t VALUES({w},{n},hex(randomblob(9))); COMMIT;\n"
                    );
                }
                let mut input = child.stdin.take().expect("piped");
                input.write_all(sql.as_bytes()).expect("sqlite3 reads");
                child
            })
            .collect();
        for mut child in children {
            assert!(child.wait().expect("ends").success(), "{file}");
        }
        check_database(vault, file);
    }
}

fn check_database(vault: &Path, file: &str) {
    let ask = ["PRAGMA integrity_check; SELECT count(*) FROM t;"];
    let answer = run("sqlite3", &[file, ask[0]], vault);
    assert_eq!(answer, format!("ok\n{}\n", 2 * WRITERS * TRANSACTIONS), "{file}");
}

/// So many MiB, then 5 MB in its middle overwritten at an odd place, and one byte near its end.
fn edit_large_file(path: &Path, pieces: u64) {
    let file = File::options().read(true).write(true).create_new(true).open(path);
    let file = file.expect("creates");
    for n in 0..pieces {
        file.write_all_at(&noise(n, PIECE), n * PIECE as u64).expect("writes");
    }
    file.sync_all().expect("syncs");
    let len = pieces * PIECE as u64;
    let patches =
        [(len / 2 + 12_345, noise(u64::MAX, 5_000_001)), (len - 99, b"!".as_slice().to_vec())];
    for (at, patch) in &patches {
        file.write_all_at(patch, *at).expect("overwrites");
    }
    file.sync_all().expect("syncs");
    // Read back past the kernel's memory, against what it must be.
    super::drop_pages(path);
    let mut read = vec![0; PIECE];
    for n in 0..pieces {
        let (start, end) = (n * PIECE as u64, (n + 1) * PIECE as u64);
        let mut expected = noise(n, PIECE);
        for (at, patch) in &patches {
            let (from, to) = ((*at).max(start), (at + patch.len() as u64).min(end));
            if from < to {
                expected[(from - start) as usize..(to - start) as usize]
                    .copy_from_slice(&patch[(from - at) as usize..(to - at) as usize]);
            }
        }
        file.read_exact_at(&mut read, start).expect("reads");
        assert!(read == expected, "piece {n} of the large file is not what was written");
    }
}
