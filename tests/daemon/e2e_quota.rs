//! The quota as ordinary tools meet it: a write that does not fit is told at the latest by `close` or `fsync`,
//! though Linux takes it first, and what frees room always works.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::{Command, Output};

use crate::e2e::noise;
use crate::mounts::{Remote, Volume, wait_until};
use crate::needs_fuse;
use crate::support::s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

const MIB: u64 = 1 << 20;

fn sh(v: &Volume, script: &str) -> Output {
    Command::new("sh").args(["-c", script]).current_dir(v.vault()).output().expect("sh is there")
}

/// Runs a script in the mount that must succeed; returns its standard output.
fn ok(v: &Volume, script: &str) -> String {
    let output = sh(v, script);
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a script in the mount that must fail with a full disk.
fn is_full(v: &Volume, script: &str) {
    let output = sh(v, script);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{script} went well: {output:?}");
    assert!(
        said.contains("No space left on device") || said.contains("is full"),
        "{script}: {said}"
    );
}

fn used(v: &Volume) -> u64 {
    v.status("used_bytes").as_u64().expect("a number")
}

#[test]
fn ordinary_tools_are_told_of_a_full_volume_and_can_make_room() {
    // Guards against a write that Linux has taken and nobody is told of; a volume in which `rm` fails;
    // and a df that shows a petabyte. Each tool finds the volume full and goes on once there is room.
    needs_fuse!();
    let v = Volume::mounted();
    let vault = v.text("vault");
    let shown = v.ok(&["quota", &vault, "8M", "--inodes", "200"]);
    assert!(shown.contains("of 8.00 MiB") && shown.contains("of 200"), "{shown}");
    let df = ok(&v, "df --output=size,avail -B1 . | tail -n 1; df --output=itotal . | tail -n 1");
    let df: Vec<u64> = df.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    assert_eq!((df[0], df[2]), (8 * MIB, 200), "{df:?}");
    assert!(df[1] <= 8 * MIB && df[1] > 7 * MIB, "{df:?}");

    is_full(&v, "dd if=/dev/zero of=big bs=1M count=20");
    is_full(&v, "dd if=/dev/zero of=big bs=1M count=20 conv=fsync");
    is_full(&v, "dd if=/dev/zero of=big bs=1M count=20 oflag=direct");
    assert!(used(&v) <= 8 * MIB);
    ok(&v, "rm big && dd if=/dev/zero of=a bs=1M count=3 conv=fsync status=none");
    is_full(&v, "fallocate -l 6M b");
    ok(&v, "rm -f b && cp --reflink=never a b");
    is_full(&v, "cp a c");
    ok(&v, "rm c; mv b d; chmod 600 d; truncate -s 1G d; truncate -s 1M d");
    let large = v.path("large");
    fs::write(&large, noise(1, 6 << 20)).expect("a file beside the volume");
    is_full(&v, &format!("cp '{}' e", large.display()));
    ok(&v, "rm e && rm a && rm d");

    // A database keeps what it has committed, and goes on.
    ok(&v, "sqlite3 db 'create table t(x); insert into t values (zeroblob(2000000))'");
    let refused = sh(&v, "sqlite3 db 'insert into t values (zeroblob(9000000))'");
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(ok(&v, "sqlite3 db 'pragma integrity_check; select count(*) from t'"), "ok\n1\n");
    ok(&v, "sqlite3 db 'delete from t; vacuum; insert into t values (1)' && rm db");

    // So does a repository.
    ok(
        &v,
        "git init -q r && cd r && git config user.email a@b.c && git config user.name a && \
            echo 1 > f && git add f && git commit -q -m 1",
    );
    let grown = format!("cd r && cp '{}' g && git add g", large.display());
    assert!(!sh(&v, &grown).status.success(), "it does not fit");
    ok(
        &v,
        "cd r && rm -f g .git/index.lock .git/objects/*/tmp_obj_* && git fsck --strict && git status",
    );
    ok(&v, "rm -rf r");

    // Inodes.
    is_full(&v, "for n in $(seq 300); do touch n$n || exit 1; done");
    is_full(&v, "mkdir x");
    is_full(&v, "ln -s a x");
    ok(&v, "ln n1 n1-again && rm n* && mkdir x");
    let warnings = v.status("warnings");
    assert_eq!(warnings.as_array().map(Vec::len), Some(0), "{warnings}");
    v.umount();

    // It is the volume's, and can be changed without a mount.
    let (url, pass) = (v.url(), v.text("passphrase"));
    let state = v.text("state");
    let at_store = ["quota", &url, "--passphrase-file", &pass, "--state-dir", &state];
    let json: serde_json::Value =
        serde_json::from_str(&v.ok(&[&at_store[..], &["--json"]].concat())).expect("JSON");
    assert_eq!((&json["bytes"], &json["inodes"]), (&(8 * MIB).into(), &200.into()));
    v.ok(&[&at_store[..], &["off", "--inodes", "off"]].concat());
    v.mount(&[]);
    assert_eq!(v.ok(&["quota", &vault]).lines().filter(|l| l.contains("no limit")).count(), 2);
    ok(&v, "dd if=/dev/zero of=big bs=1M count=20 conv=fsync");
    v.umount();
}

#[test]
fn a_quota_can_be_told_as_edquot_and_as_fast_as_it_was_changed() {
    // Guards against a choice that is remembered and not used, and against a writer that goes on for
    // minutes after a quota was set on the STORE beside it.
    needs_fuse!();
    let server = S3Server::start();
    let remote = Remote::s3(&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY);
    let v = Volume::create_on(Some(remote));
    v.mount(&[]);
    let (url, pass, state) = (v.url(), v.text("passphrase"), v.text("state"));
    let first = fs::File::create(v.at("first")).expect("creates");
    first.write_all_at(&noise(1, 1 << 20), 0).expect("writes");
    first.sync_all().expect("syncs");
    let store = ["quota", &url, "--passphrase-file", &pass, "--state-dir", &state];
    v.ok(&[&store[..], &["1M", "--error", "edquot"]].concat());
    // An open file, and Linux has taken it: fsync tells.
    first.write_all_at(&noise(2, 1 << 20), 1 << 20).expect("Linux takes it");
    let told = first.sync_all().expect_err("it does not fit");
    assert_eq!(told.raw_os_error(), Some(libc::EDQUOT), "{told}");
    // For what Linux does not take first, write itself says so.
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).custom_flags(libc::O_SYNC);
    let mut second = options.open(v.at("second")).expect("an empty file fits");
    let told = second.write_all(&noise(3, 4096)).expect_err("it does not fit");
    assert_eq!(told.raw_os_error(), Some(libc::EDQUOT), "{told}");
    drop((first, second));
    let blocks = fs::metadata(v.at("first")).expect("there").blocks();
    assert_eq!(blocks * 512, MIB, "what did not fit is not there");
    fs::remove_file(v.at("first")).expect("deletes");
    wait_until("there is room", || fs::write(v.at("third"), noise(4, 1 << 19)).is_ok());
    v.umount();
    v.forget_local_state();
    v.mount(&[]);
    assert_eq!(fs::read(v.at("third")).expect("reads"), noise(4, 1 << 19));
    assert_eq!(v.status("quota_error"), "EDQUOT");
    v.umount();
}
