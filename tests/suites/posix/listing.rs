//! Listings by programs of 32 bits, whose places in a directory have 31 bits.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use sealfs::meta::NameHash;
use sealfs::seal::{Keyring, Secret};

use crate::mounts::Volume;
use crate::{e2e, needs_fuse};

/// Names in an ordinary run, and in a full one.
const NAMES: (usize, usize) = (6_000, 100_000);
/// Names that are tried for two of one group: about 80 pairs.
const TRIED: usize = 300_000;

/// The program, or `None` where programs of 32 bits cannot be made or run.
fn compile(dir: &Path) -> Option<PathBuf> {
    let program = dir.join("list32");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suites/posix/list32.c");
    let made = Command::new("gcc").args(["-m32", "-O1", source, "-o"]).arg(&program).output();
    let made = made.is_ok_and(|made| made.status.success());
    let runs = made && Command::new(&program).args(["/", "all"]).output().is_ok();
    runs.then_some(program)
}

/// Pairs of names that have 29 bits of their hashes in common, and with them a group.
fn pairs(volume: &Volume) -> Vec<[String; 2]> {
    let keyring = fs::read(volume.path("store/keyring")).expect("the keyring");
    let passphrase = fs::read_to_string(volume.path("passphrase")).expect("reads");
    let passphrase = passphrase.trim_end().as_bytes().to_vec();
    let keyring = Keyring::parse(&keyring).expect("parses");
    let keys = keyring.unlock(&Secret::Passphrase(passphrase.into())).expect("unlocks");
    let (mut seen, mut pairs) = (HashMap::new(), Vec::new());
    for n in 0..TRIED {
        let name = format!("pair-{n:0200}");
        let group = NameHash::of(&keys.name_hash_key(), name.as_bytes()).0 >> 3;
        if let Some(other) = seen.insert(group, n) {
            pairs.push([format!("pair-{other:0200}"), name]);
        }
    }
    pairs
}

fn run(program: &Path, dir: &Path, how: &[&str]) -> BTreeMap<String, usize> {
    let output = Command::new(program).arg(dir).args(how).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last();
    assert!(output.status.success(), "{how:?}: {}: {error}{last:?}", output.status);
    let mut listed = BTreeMap::new();
    for name in said.lines() {
        *listed.entry(name.to_owned()).or_insert(0) += 1;
    }
    listed
}

#[test]
fn a_program_of_32_bits_lists_every_name_and_finds_every_place_again() {
    // Guards against EOVERFLOW behind "..", because places have more bits than an off_t of 32
    // bits, and against names of one group that are lost or shown twice where a listing goes on.
    needs_fuse!();
    let volume = Volume::mounted();
    let Some(program) = compile(&volume.path(".")) else {
        eprintln!("SKIPPED: gcc -m32 makes no program (scripts/test installs gcc-multilib)");
        return;
    };
    let dir = volume.at("d");
    fs::create_dir(&dir).expect("makes");
    let pairs = pairs(&volume);
    assert!(pairs.len() > 20, "{} pairs", pairs.len());
    let count = if e2e::is_full() { NAMES.1 } else { NAMES.0 };
    let mut names: Vec<String> = (0..count).map(|n| format!("stays-{n}")).collect();
    names.extend(pairs.into_iter().flatten());
    for name in &names {
        File::create(dir.join(name)).expect("creates");
    }
    let all_once = |listed: &BTreeMap<String, usize>, how: &str| {
        for name in names.iter().map(String::as_str).chain([".", ".."]) {
            assert_eq!(listed.get(name), Some(&1), "{how}: {name}");
        }
    };
    let ways = [["all"], ["seek"], ["small"]];
    for how in ways {
        let listed = run(&program, &dir, &how);
        all_once(&listed, how[0]);
        assert_eq!(listed.len(), names.len() + 2, "{how:?}: nothing else");
    }
    let places = |step: &str| assert!(run(&program, &dir, &["places", step]).is_empty());
    places("50");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let coming = scope.spawn(|| {
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                File::create(dir.join(format!("comes-{n}"))).expect("creates");
                if n >= 20 {
                    fs::remove_file(dir.join(format!("comes-{}", n - 20))).expect("removes");
                }
            }
        });
        for how in ways {
            all_once(&run(&program, &dir, &how), &format!("{} while names come and go", how[0]));
        }
        done.store(true, Ordering::Relaxed);
        coming.join().expect("names come and go");
    });
    // From the bucket, by another daemon.
    volume.umount();
    volume.mount(&[]);
    all_once(&run(&program, &dir, &["seek"]), "after a remount");
    places("500");
    volume.umount();
}
