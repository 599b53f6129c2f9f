//! The same calls on ext4 and on a mount, by the same users, compared line by line: what is not in
//! any specification is as programs know it.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::mounts::Volume;
use crate::needs_fuse;
use crate::suites::{Stand, needs_root};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suites/posix/compare.py");
/// `EXT4_SUPER_MAGIC` (statfs(2)).
const EXT4: i64 = 0xef53;
/// Differences that are shown.
const SHOWN: usize = 40;

/// A directory on ext4: on the disk of this machine, or in a file of it.
struct Ext4 {
    dir: tempfile::TempDir,
    looped: bool,
}

impl Ext4 {
    /// `None`, and said aloud, where there is none to be had.
    fn new() -> Option<Ext4> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = CString::new(dir.path().as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: all zeros are a valid `statfs`.
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: a NUL-terminated string, and a structure that outlives the call.
        let looked = unsafe { libc::statfs(path.as_ptr(), &mut stat) };
        let mut ext4 = Ext4 { dir, looped: false };
        if looked != 0 || stat.f_type != EXT4 {
            let script = "truncate -s 64M image && mkfs.ext4 -q image && mkdir -p at && \
                          mount -o loop image at";
            let made =
                Command::new("sh").args(["-c", script]).current_dir(ext4.dir.path()).status();
            ext4.looped = made.is_ok_and(|s| s.success());
            if !ext4.looped {
                eprintln!("SKIPPED: no ext4 to compare with, and no loop device to make one");
                return None;
            }
        }
        Some(ext4)
    }

    fn path(&self) -> PathBuf {
        let path = self.dir.path();
        if self.looped { path.join("at") } else { path.to_owned() }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if self.looped {
            let _ = Command::new("umount").arg(self.path()).status();
        }
    }
}

/// What the script prints of `topic` in a new directory of `dir`.
fn lines(dir: &Path, topic: &str) -> Vec<String> {
    let dir = dir.join("compared");
    std::fs::create_dir(&dir).expect("makes a directory");
    let mut python = Command::new("python3");
    python.args([SCRIPT, topic]).current_dir(&dir).stdin(Stdio::null());
    let output = python.output().expect("python3 runs (scripts/test installs it)");
    assert!(output.status.success(), "{topic}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("ASCII");
    text.lines().map(str::to_owned).collect()
}

fn compare(topic: &str) {
    let Some(ext4) = Ext4::new() else { return };
    let stand = Stand::new();
    let expected = lines(&ext4.path(), topic);
    let got = lines(&stand.volume.vault(), topic);
    assert!(!expected.is_empty(), "{topic}: it says nothing");
    let mut different: Vec<String> = expected
        .iter()
        .zip(&got)
        .filter(|(e, g)| e != g)
        .map(|(e, g)| format!("ext4:  {e}\nmount: {g}\n"))
        .collect();
    let count = different.len();
    different.truncate(SHOWN);
    assert_eq!(count, 0, "{topic}, the first of these:\n{}", different.concat());
    assert_eq!(expected.len(), got.len(), "{topic}");
    stand.close();
}

#[test]
fn extended_attributes_are_taken_shown_and_refused_as_on_ext4() {
    // Guards against attributes that anybody may hang on anybody's file: in `system.` Linux asks
    // nobody's rights, and FUSE shows `trusted.` names to all.
    needs_fuse!();
    if !needs_root() {
        compare("names");
    }
}

#[test]
fn set_id_bits_go_and_stay_as_on_ext4() {
    // Guards against any change of contents, owner, mode or list by any user on any kind of file
    // that leaves a set-id bit which ext4 takes, or takes one which ext4 leaves.
    needs_fuse!();
    if !needs_root() {
        compare("bits");
    }
}

#[test]
fn no_time_is_before_one_that_was_seen_before() {
    // Guards against two clocks: the kernel stamps what it keeps by a coarse one, so a file that
    // is made by a finer one and then written gets older, and `make` builds too little.
    needs_fuse!();
    if !needs_root() {
        compare("stamps");
    }
}

#[test]
fn the_room_that_is_shown_can_be_counted_by_any_program() {
    // Guards against counts in blocks of one size that programs multiply with the other (Node saw
    // 256 PiB), and against counts that 32-bit programs cannot hold: they got EOVERFLOW.
    needs_fuse!();
    if !needs_root() {
        compare("room");
    }
    let volume = Volume::mounted();
    let program = volume.path("statvfs");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suites/posix/statvfs.c");
    let mut shown = Vec::new();
    for word in ["-m64", "-m32"] {
        let mut cc = Command::new("cc");
        cc.args([word, source, "-o"]).arg(&program).stderr(Stdio::null());
        if !cc.status().expect("cc runs: Rust links with it").success() {
            eprintln!(
                "SKIPPED: cc does not make 32-bit programs (scripts/test installs gcc-multilib)"
            );
            continue;
        }
        let output = Command::new(&program).arg(volume.vault()).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{word}: {said}");
        shown.push(said);
    }
    shown.dedup();
    assert_eq!(shown.len(), 1, "the same by programs of both kinds: {shown:?}");
    volume.umount();
}
