//! File system suites that others wrote (pjdfstest, fsx, stress-ng) on the default
//! mount, as root. `scripts/test` installs them; `SEALFS_TEST_FULL=1` runs the long forms.
//! docs/POSIX.md has the results.

use crate::e2e;
use crate::mounts::Volume;
use crate::needs_fuse;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::suites::{Stand, limited, needs_root, outcome, tool};
use sha2::{Digest, Sha256};

/// Cases of pjdfstest 0.2.2 on Linux.
const PJDFSTEST_CASES: usize = 398;
const PATIENCE: Duration = Duration::from_secs(900);

/// The names of the cases of pjdfstest that ended in `result`.
fn cases<'a>(output: &'a str, result: &str) -> BTreeSet<&'a str> {
    let lines = output.lines().filter(|l| !l.starts_with(['\t', ' ']));
    let ended = |l: &&str| l.ends_with(&format!(" {result}"));
    lines.filter(ended).filter_map(|l| l.split_whitespace().next()).collect()
}

#[test]
fn pjdfstest_passes_every_case_on_the_default_mount() {
    // Guards against any system call that fails, succeeds or leaves attributes otherwise than
    // POSIX says. No list of exceptions; what the suite would skip is set up here: two users, a
    // second file system, remounting, and LINK_MAX.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let Some(pjdfstest) = tool("pjdfstest") else { return };
    let stand = Stand::new();
    let v = &stand.volume;
    let config = include_str!("pjdfstest.toml");
    let remounting = config.replace("allow_remount = false", "allow_remount = true");
    fs::write(v.path("all.toml"), config).expect("writes");
    fs::write(v.path("remounting.toml"), remounting).expect("writes");
    let preload = v.path("linkmax.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suites/linkmax.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", source, "-o"]).arg(&preload);
    assert!(cc.status().expect("cc runs: Rust links with it").success());
    // `mount -o remount,ro DIR` goes to the helper that packages install in /sbin.
    let bin = v.path("bin");
    fs::create_dir(&bin).expect("makes a directory");
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/mount.fuse.sealfs");
    let path = std::env::var("PATH").unwrap_or_default();
    let shim = format!(
        "#!/bin/sh\nPATH={path}\ncase $2 in\n\
         remount*) exec sh {helper} store \"$3\" \"$1\" \"$2\" ;;\n\
         *) exec mount \"$@\" ;;\nesac\n"
    );
    fs::write(bin.join("mount"), shim).expect("writes");
    fs::set_permissions(bin.join("mount"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let path = format!("{}:{path}", bin.display());
    let run = |config: &str, cases: &[&str]| {
        let mut command = limited(&pjdfstest, PATIENCE);
        command.arg("-c").arg(v.path(config)).arg("-p").arg(v.vault());
        command.arg("-s").arg(v.path("store")).arg("--").args(cases);
        command.env("LD_PRELOAD", &preload).env("PATH", &path).env_remove("RUST_BACKTRACE");
        outcome(&mut command)
    };
    let (all, passed) = run("all.toml", &[]);
    assert!(passed, "{all}");
    let (remounted, passed) = run("remounting.toml", &["erofs"]);
    assert!(passed, "{remounted}");
    let passed = &cases(&all, "ok") | &cases(&remounted, "ok");
    let skipped = &(&cases(&all, "skipped") | &cases(&remounted, "skipped")) - &passed;
    assert_eq!(skipped, BTreeSet::new(), "{all}");
    assert_eq!(passed.len(), PJDFSTEST_CASES, "{all}");
    eprintln!("pjdfstest: {} passed, 0 failed, 0 skipped", passed.len());
    stand.close();
}

fn sha256(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).expect("reads")).to_vec()
}

#[test]
fn fsx_finds_every_byte_where_it_put_it() {
    // Guards against bytes that go astray between mmap, pwrite, truncate, fallocate, holes,
    // copy_file_range and the page cache, and against what only a machine without local state
    // notices.
    needs_fuse!();
    let Some(fsx) = tool("fsx") else { return };
    let full = e2e::is_full();
    let stand = Stand::new();
    let v = &stand.volume;
    // Of 1 MiB each they take four times as long.
    let operations = |opsize| match (full, opsize) {
        (true, _) => 100_000,
        (false, 0x10_0000) => 2_500,
        (false, _) => 10_000,
    };
    let any_seed: u64 = rand::random::<u32>().into();
    // (seed, largest operation, largest file)
    let mut runs = Vec::new();
    for (opsize, flen) in [(8 << 10, 256 << 10), (64 << 10, 1 << 20), (1 << 20, 8 << 20)] {
        runs.extend([(1, opsize, flen), (any_seed, opsize, flen)].into_iter().skip(full.into()));
    }
    runs.extend((0..10).filter(|_| full).map(|seed| (100 + seed, 64 << 10, 1 << 20)));
    let mut sums = Vec::new();
    for (seed, opsize, flen) in runs {
        let name = format!("fsx-{seed}-{opsize}");
        let config = include_str!("fsx.toml");
        let config = config.replace("OPSIZE", &opsize.to_string());
        fs::write(v.path("fsx.toml"), config.replace("FLEN", &flen.to_string())).expect("writes");
        let (operations, begun) = (operations(opsize), Instant::now());
        let mut command = limited(&fsx, PATIENCE);
        command.arg("-f").arg(v.path("fsx.toml")).arg("-P").arg(v.path("run"));
        command.args(["-N", &operations.to_string(), "-S", &seed.to_string()]);
        let (said, clean) = outcome(command.arg(v.at(&name)));
        assert!(clean && said.contains("A-OK"), "seed {seed}, opsize {opsize}: {said}");
        let took = begun.elapsed().as_secs_f64();
        eprintln!("fsx: seed {seed}, up to {opsize} bytes, {operations} operations: {took:.0} s");
        sums.push((sha256(&v.at(&name)), name));
    }
    stand.move_elsewhere();
    for (sum, name) in sums {
        assert_eq!(sha256(&v.at(&name)), sum, "{name} on a machine that has only the bucket");
    }
    stand.close();
}

/// The stressors of the issue that stress-ng 0.15 has; "unlink" is not one of them.
const STRESSORS: &[&str] = &[
    "access",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dup",
    "fallocate",
    "fcntl",
    "fiemap",
    "file-ioctl",
    "filename",
    "flock",
    "getdent",
    "hdd",
    "io",
    "iomix",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "mmap",
    "open",
    "readahead",
    "rename",
    "seek",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
];
/// What Linux does not pass on to FUSE: `FS_IOC_FIEMAP`.
const UNSUPPORTED: &[&str] = &["fiemap"];

/// A script that runs `program` where it sees no mount of sealfs but that of `volume`: one stressor opens every mount
/// there is to sync it, and those of other tests could not be unmounted meanwhile.
fn seeing_only(volume: &Volume, program: &Path) -> PathBuf {
    let script = volume.path("alone");
    let (vault, program) = (volume.text("vault"), program.display());
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '\n\
         cat /proc/self/mounts | while read -r _ at kind _; do\n\
         [ \"$kind\" != fuse.sealfs ] || [ \"$at\" = {vault} ] || umount -l \"$at\" 2>/dev/null\n\
         done\nexec {program} \"$@\"' stress-ng \"$@\"\n"
    );
    fs::write(&script, text).expect("writes");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("sets");
    script
}

#[test]
fn stress_ng_verifies_what_it_did() {
    // Guards against what only many processes at once do to one directory, and against
    // descriptors, memory or rows that they leave behind.
    needs_fuse!();
    let Some(stress_ng) = tool("stress-ng") else { return };
    let (seconds, workers) = if e2e::is_full() { ("20", "4") } else { ("2", "2") };
    let stand = Stand::new();
    let alone = seeing_only(&stand.volume, &stress_ng);
    let run = |stressor: &&str| {
        let dir = stand.volume.at(stressor);
        fs::create_dir(&dir).expect("makes a directory");
        let mut command = match *stressor {
            "io" => limited(&alone, PATIENCE),
            _ => limited(&stress_ng, PATIENCE),
        };
        command.arg("--temp-path").arg(&dir).arg(format!("--{stressor}")).arg(workers);
        command.args(["--timeout", seconds, "--verify"]);
        if *stressor == "mmap" {
            command.args(["--mmap-file", "--mmap-bytes", "64m"]);
        }
        let (said, clean) = outcome(&mut command);
        let unsupported = said.contains("skipping stressor");
        assert!(clean && !said.contains("fail:"), "{stressor}: {said}");
        assert_eq!(unsupported, UNSUPPORTED.contains(stressor), "{stressor}: {said}");
        let left = fs::read_dir(&dir).expect("lists").count();
        assert_eq!(left, 0, "{stressor} could not remove what it made");
        fs::remove_dir(&dir).expect("removes");
    };
    // Two at a time: most of them sleep a good part of theirs.
    let (one, other) = STRESSORS.split_at(STRESSORS.len() / 2);
    std::thread::scope(|scope| {
        scope.spawn(|| one.iter().for_each(run));
        other.iter().for_each(run);
    });
    let ran = STRESSORS.len() - UNSUPPORTED.len();
    eprintln!("stress-ng: {ran} stressors, {workers} workers, {seconds} s each: no failure");
    stand.close();
}
