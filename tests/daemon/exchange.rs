//! `sealfs import` and `sealfs export` with the real command, a live mount, and the S3 server of this
//! process.

mod again;
mod export;
mod tampered;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use crate::mounts::{self, Remote, Volume, wait_until};
use crate::needs_fuse;
use crate::support::free_port;
use crate::support::s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

/// The command, with credentials and endpoint of the server for the side that is a bucket.
fn command(volume: &Volume, server: &S3Server, args: &[&str]) -> Command {
    let mut command = volume.command(args);
    command.envs(Remote::s3(&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY).env);
    command
}

fn run(volume: &Volume, server: &S3Server, args: &[&str], status: i32) -> Output {
    let output = command(volume, server, args).output().expect("the command runs");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{args:?}: {out}\n{err}");
    output
}

/// The report of a run with `--json`.
fn report(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("a JSON object")
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u64 * 31 + u64::from(seed) * 7 + (i as u64 >> 9)) as u8).collect()
}

fn xattr(path: &Path, name: &str) -> Option<String> {
    let output = Command::new("getfattr")
        .args(["--only-values", "-h", "-n", name])
        .arg(path)
        .output()
        .expect("getfattr runs");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn odd_keys_and_metadata_of_other_tools_arrive() {
    // Guards against a key that leaves the directory or is lost, and against times, permissions and
    // tags that are; by a bucket with one of each.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    server.put_raw("p/plain/file", "plain");
    server.put_raw("p/a", "object");
    server.put_raw("p/a/b", "below");
    server.put_raw("p//double", "double");
    server.put_raw("p/../../etc/passwd", "out");
    server.put_raw("p/line\nend +%41é", "odd");
    server.put_raw("p/empty/", "");
    server.put_raw("photos-of-others", "not below the prefix");
    let rclone = [("mtime", "1500000000.123456789"), ("colour", "blue")];
    server.put_labelled("p/rclone", "r", &rclone, Some("team=a+b&x=y"));
    let s3fs = [("mode", "33184"), ("mtime", "1400000000"), ("uid", "1234"), ("gid", "5678")];
    server.put_labelled("p/s3fs", "s", &s3fs, None);
    server.put_labelled("p/link", "plain/file", &[("mode", "41471")], None);
    let vault = volume.text("vault");
    let args = ["import", "s3://test/p", &vault, "in/here", "--metadata", "--json"];
    let done = report(&run(&volume, &server, &args, 0));
    let at = |name: &str| volume.at("in/here").join(name);
    let read = |name: &str| fs::read_to_string(at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(read("plain/file"), "plain");
    assert_eq!(read("a#object"), "object");
    assert_eq!(read("a/b"), "below");
    assert_eq!(read("#empty/double"), "double");
    assert_eq!(read("#dotdot/#dotdot/etc/passwd"), "out");
    assert_eq!(read("line\nend +%41é"), "odd");
    assert!(at("empty").is_dir());
    assert_eq!(fs::read_link(at("link")).expect("a link"), Path::new("plain/file"));
    assert_eq!(done["renamed"].as_array().expect("a list").len(), 3, "{done}");
    let meta = fs::metadata(at("rclone")).expect("is there");
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_500_000_000, 123_456_789));
    assert_eq!(xattr(&at("rclone"), "user.s3.meta.colour").as_deref(), Some("blue"));
    assert_eq!(xattr(&at("rclone"), "user.s3.tag.team").as_deref(), Some("a b"));
    let meta = fs::metadata(at("s3fs")).expect("is there");
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o640, 1_400_000_000));
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        assert_eq!((meta.uid(), meta.gid()), (1234, 5678));
    }
    assert!(!volume.at("in/here/.sealfs-unfinished").exists(), "nothing is left behind");

    let before = server.counts();
    let again = report(&run(&volume, &server, &args, 0));
    let asked = server.counts().since(&before);
    // The link alone has no place to remember its object in.
    assert_eq!((asked.get, again["files"].as_u64()), (1, Some(0)), "{again}");
    assert_eq!(asked.list, 1);

    let strict = ["import", "s3://test/p", &vault, "strict", "--strict"];
    run(&volume, &server, &strict, 2);
    assert!(!volume.at("strict/plain").exists());
}

#[test]
fn an_import_that_is_killed_goes_on_where_it_was_and_a_second_one_transfers_nothing() {
    // Guards against bytes that are fetched again, a file that is half there under its name, and a
    // memory of what was done that is lost with the process: killed three times with SIGKILL.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    for n in 0..1000 {
        server.put_raw(&format!("d{}/f{n}", n % 7), bytes(n % 3000, n as u8));
    }
    let large = bytes(70 << 20, 3);
    server.put_raw("large", large.clone());
    let vault = volume.text("vault");
    let args = ["import", "s3://test", &vault, "--json"];
    let kill_when = |limit: &str, holds: &dyn Fn() -> bool| {
        let slow = ["import", "s3://test", &vault, "--rate", limit];
        let mut child = command(&volume, &server, &slow).spawn().expect("starts");
        wait_until("it has done something", holds);
        child.kill().expect("is killed");
        child.wait().expect("has ended");
    };
    for _ in 0..2 {
        let before = count_files(&volume.vault());
        kill_when("64K", &|| count_files(&volume.vault()) > before + 20);
    }
    let work = volume.at(".sealfs-unfinished");
    let has_parts = || {
        let found = fs::read_dir(&work).into_iter().flatten().flatten();
        found.into_iter().any(|entry| xattr(&entry.path(), "user.sealfs.parts").is_some())
    };
    kill_when("8M", &has_parts);
    let before = server.counts();
    let done = report(&run(&volume, &server, &args, 0));
    let asked = server.counts().since(&before);
    let files = done["files"].as_u64().expect("a number");
    assert!(files < 1001 && done["unchanged"].as_u64() == Some(1001 - files), "{done}");
    assert!(asked.get < files + 10, "{asked:?}");
    for n in (0..1000).step_by(13) {
        let read = fs::read(volume.at(&format!("d{}/f{n}", n % 7))).expect("is there");
        assert!(read == bytes(n % 3000, n as u8), "f{n}");
    }
    assert!(fs::read(volume.at("large")).expect("is there") == large);
    let before = server.counts();
    let again = report(&run(&volume, &server, &args, 0));
    let asked = server.counts().since(&before);
    assert_eq!(again["unchanged"].as_u64(), Some(1001), "{again}");
    assert_eq!((asked.get, asked.head, asked.list), (0, 0, 2), "from the listing alone");

    server.put_raw("large", bytes(70 << 20, 4));
    server.remove_raw("d0/f0");
    let delete = ["import", "s3://test", &vault, "--delete", "--json", "--exclude", "/d1/**"];
    fs::write(volume.at("d1/mine"), "kept by the filter").expect("writes");
    let newer = report(&run(&volume, &server, &delete, 0));
    assert_eq!((newer["files"].as_u64(), newer["deleted"].as_u64()), (Some(1), Some(1)), "{newer}");
    assert!(!volume.at("d0/f0").exists() && volume.at("d1/mine").exists());
    assert!(fs::read(volume.at("large")).expect("is there") == bytes(70 << 20, 4));
}

fn count_files(dir: &Path) -> usize {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_file() && !e.path().to_string_lossy().contains("unfinished"))
        .count()
}

#[test]
fn everything_that_cp_keeps_comes_along_from_a_directory() {
    // Guards against an import that is less than `cp -a`: holes, links, owners, times, attributes,
    // and against the second one that copies again. Compared with rsync where it is there.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let source = tempfile::tempdir().expect("a directory");
    let at = |name: &str| source.path().join(name);
    fs::create_dir_all(at("sub/deep/empty")).expect("makes");
    fs::write(at("sub/file"), bytes(300_000, 1)).expect("writes");
    fs::hard_link(at("sub/file"), at("other name")).expect("links");
    std::os::unix::fs::symlink("nowhere/at all", at("link")).expect("links");
    let hole = fs::File::create(at("hole")).expect("makes");
    hole.set_len(64 << 20).expect("grows");
    std::os::unix::fs::FileExt::write_all_at(&hole, b"end", (64 << 20) - 3).expect("writes");
    drop(hole);
    fs::set_permissions(at("sub/file"), fs::Permissions::from_mode(0o604)).expect("sets");
    fs::set_permissions(at("sub"), fs::Permissions::from_mode(0o750)).expect("sets");
    assert!(Command::new("mkfifo").arg(at("pipe")).status().expect("runs").success());
    let mut set = Command::new("setfattr");
    let set = set.args(["-n", "user.x", "-v", "y"]).arg(at("sub/file")).status();
    let has_xattrs = set.is_ok_and(|status| status.success());
    for name in ["sub/file", "sub", "hole", "link"] {
        let mut touch = Command::new("touch");
        let touched = touch.args(["-h", "-d", "2001-02-03 04:05:06.789"]).arg(at(name)).status();
        assert!(touched.expect("runs").success());
    }
    let (vault, from) = (volume.text("vault"), source.path().display().to_string());
    let args = ["import", &from, &vault, "copy", "--json"];
    let done = report(&run(&volume, &server, &args, 0));
    let copy = volume.at("copy");
    assert_eq!(done["failed"].as_u64(), Some(0), "{done}");
    let (a, b) = (at("sub/file"), copy.join("sub/file"));
    assert_eq!(fs::read(&a).expect("reads"), fs::read(&b).expect("reads"));
    let (one, other) = (fs::metadata(&b).expect("looks"), fs::metadata(copy.join("other name")));
    assert_eq!((one.ino(), one.nlink()), (other.expect("looks").ino(), 2));
    for name in ["sub/file", "sub", "hole", "link", "pipe", "sub/deep/empty"] {
        let (was, is) = (at(name).symlink_metadata(), copy.join(name).symlink_metadata());
        let (was, is) = (was.expect("looks"), is.expect("looks"));
        assert_eq!((was.mode(), was.uid(), was.gid()), (is.mode(), is.uid(), is.gid()), "{name}");
        assert_eq!((was.mtime(), was.mtime_nsec()), (is.mtime(), is.mtime_nsec()), "{name}");
    }
    assert_eq!(fs::read_link(copy.join("link")).expect("reads"), Path::new("nowhere/at all"));
    let hole = fs::metadata(copy.join("hole")).expect("looks");
    assert!(hole.len() == 64 << 20 && hole.blocks() * 512 < 8 << 20, "{} blocks", hole.blocks());
    if has_xattrs {
        assert_eq!(xattr(&b, "user.x").as_deref(), Some("y"));
    }
    let again = report(&run(&volume, &server, &args, 0));
    let count = |field: &str| again[field].as_u64().expect("a number");
    assert_eq!((count("files"), count("others"), count("failed")), (0, 0, 0), "{again}");

    fs::write(at("sub/file"), "new").expect("writes");
    fs::remove_file(at("link")).expect("removes");
    fs::write(at("left.tmp"), "x").expect("writes");
    let filtered = ["import", &from, &vault, "copy", "--delete", "--exclude", "*.tmp", "--json"];
    let dry = [&filtered[..], &["--dry-run"]].concat();
    let text = run(&volume, &server, &dry, 0).stderr; // standard output is for JSON
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("would copy other name") && text.contains("would delete link"), "{text}");
    assert!(copy.join("link").symlink_metadata().is_ok(), "a dry run does nothing");
    run(&volume, &server, &filtered, 0);
    assert!(copy.join("link").symlink_metadata().is_err() && !copy.join("left.tmp").exists());
    assert_eq!(fs::read(copy.join("sub/file")).expect("reads"), b"new");
    assert_eq!(fs::read(copy.join("other name")).expect("reads"), b"new", "one file, two names");
}

#[test]
fn a_store_is_mounted_for_the_command_alone_and_an_ordinary_directory_is_refused() {
    // Guards against files in clear where somebody thought that a volume was mounted, and against a
    // mount, or pending uploads, that an import leaves behind.
    needs_fuse!();
    let (volume, server) = (Volume::create(), S3Server::start());
    server.put_raw("x/one", "1");
    let vault = volume.text("vault");
    let said = run(&volume, &server, &["import", "s3://test", &vault], 9).stderr;
    assert!(String::from_utf8_lossy(&said).contains("is not in a sealfs mount"));
    let (pass, cache, state) =
        (volume.text("passphrase"), volume.text("cache"), volume.text("state"));
    let url = volume.url();
    let local = ["--passphrase-file", &pass, "--cache-dir", &cache, "--state-dir", &state];
    let args = [&["import", "s3://test", url.as_str()][..], &local].concat();
    run(&volume, &server, &args, 0);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("reads");
    assert!(!mounts.contains(&format!("{url} ")), "{mounts}");
    volume.forget_local_state();
    volume.mount(&[]);
    assert_eq!(fs::read_to_string(volume.at("x/one")).expect("is there"), "1");
    // The volume is mounted: the command works there.
    server.put_raw("x/two", "2");
    run(&volume, &server, &args, 0);
    assert_eq!(fs::read_to_string(volume.at("x/two")).expect("is there"), "2");
    std::os::unix::fs::symlink(volume.path("outside"), volume.at("out")).expect("links");
    fs::create_dir(volume.path("outside")).expect("makes");
    run(&volume, &server, &[&args[..3], &["out"], &args[3..]].concat(), 9);
    // Wrong key: the status of the mount.
    volume.umount();
    fs::write(&pass, "another\n").expect("writes");
    run(&volume, &server, &args, 3);
}

#[test]
fn files_leave_as_objects_that_other_tools_read_and_come_back() {
    // Guards against times and permissions that are lost on the way, a second export that sends
    // everything again, and files in clear that nobody asked for.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    fs::create_dir_all(volume.at("d/empty")).expect("makes");
    fs::write(volume.at("d/small"), "hello").expect("writes");
    fs::write(volume.at("d/none"), "").expect("writes");
    let large = bytes((20 << 20) + 17, 9);
    fs::write(volume.at("large"), &large).expect("writes");
    fs::write(volume.at("d/é ü+%"), "odd").expect("writes");
    std::os::unix::fs::symlink("small", volume.at("d/link")).expect("links");
    fs::set_permissions(volume.at("d/small"), fs::Permissions::from_mode(0o640)).expect("sets");
    let mut touch = Command::new("touch");
    touch.args(["-d", "2001-02-03 04:05:06.789"]).arg(volume.at("d/small"));
    assert!(touch.status().expect("runs").success());
    let vault = volume.text("vault");
    run(&volume, &server, &["export", &vault, "s3://test/out"], 2);
    assert!(server.keys().is_empty(), "nothing in clear without --plain");
    let args = [
        "export",
        &vault,
        "s3://test/out",
        "--plain",
        "--json",
        "--target-tag",
        "a=b",
        "--target-sse",
        "AES256",
        "--target-storage-class",
        "STANDARD_IA",
    ];
    let done = report(&run(&volume, &server, &args, 0));
    assert_eq!(done["files"].as_u64(), Some(4), "{done}");
    assert_eq!(done["lost"]["symlinks"].as_u64(), Some(1), "{done}");
    assert_eq!(done["lost"]["empty directories"].as_u64(), Some(1), "{done}");
    assert_eq!(server.keys(), ["out/d/none", "out/d/small", "out/d/é ü+%", "out/large"]);
    assert!(server.get_raw("out/large").expect("is there") == large);
    let labels = server.labels("out/d/small").expect("is there");
    assert_eq!(labels.metadata["mtime"], "981173106.789000000");
    assert_eq!(labels.metadata["mode"], (0o100640).to_string());
    for key in server.keys() {
        let labels = server.labels(&key).expect("is there");
        assert_eq!(labels.storage_class.as_deref(), Some("STANDARD_IA"), "{key}");
        assert_eq!(server.tags(&key).as_deref(), Some("a=b"), "{key}");
        let sse = server.stored_sse(&key).expect("is there");
        assert_eq!(sse.algorithm.as_deref(), Some("AES256"), "{key}");
    }
    assert_eq!(server.open_uploads(), 0);

    let before = server.counts();
    let again = report(&run(&volume, &server, &args, 0));
    let asked = server.counts().since(&before);
    assert_eq!((again["unchanged"].as_u64(), asked.get, asked.put), (Some(4), 0, 0), "{again}");
    assert_eq!(asked.upload_create, 0);

    let back = ["import", "s3://test/out", &vault, "back"];
    run(&volume, &server, &back, 0);
    for name in ["d/small", "d/none", "d/é ü+%", "large"] {
        let (was, is) = (volume.at(name), volume.at("back").join(name));
        assert!(fs::read(&was).expect("reads") == fs::read(&is).expect("reads"), "{name}");
        let (was, is) = (fs::metadata(was).expect("looks"), fs::metadata(is).expect("looks"));
        assert_eq!((was.mode(), was.mtime()), (is.mode(), is.mtime()), "{name}");
        assert_eq!(was.mtime_nsec(), is.mtime_nsec(), "{name}");
    }

    fs::write(volume.at("d/small"), "other").expect("writes");
    fs::remove_file(volume.at("large")).expect("removes");
    let from = format!("{vault}:d");
    let sub = ["export", &from, "s3://test/out/d", "--plain", "--delete"];
    run(&volume, &server, &sub, 0);
    assert_eq!(server.get_raw("out/d/small").expect("is there"), "other");
    assert!(server.get_raw("out/large").is_some(), "not below the prefix");
    run(&volume, &server, &[&args[..4], &["--delete", "--exclude", "/back/**"]].concat(), 0);
    assert!(server.get_raw("out/large").is_none());
}

#[test]
fn a_prefix_with_a_volume_is_neither_read_as_files_nor_written_to() {
    // Guards against --delete that destroys a volume, and an import of sealed pieces of files.
    needs_fuse!();
    let server = S3Server::start();
    let remote = Remote::s3(&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY);
    let volume = Volume::create_on(Some(remote));
    volume.mount(&[]);
    fs::write(volume.at("file"), "x").expect("writes");
    let vault = volume.text("vault");
    let keys = server.keys().len();
    for target in ["s3://test", "s3://test/data", "s3://test/data/seg"] {
        let out = ["export", &vault, target, "--plain", "--delete"];
        let said = run(&volume, &server, &out, 2).stderr;
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("a sealfs volume lies at s3://test/data/"), "{said}");
        let said = run(&volume, &server, &["import", target, &vault, "in"], 2).stderr;
        assert!(String::from_utf8_lossy(&said).contains("a sealfs volume lies"), "{target}");
    }
    assert!(server.keys().len() >= keys);
    volume.umount();
}

#[test]
fn objects_of_the_encryption_client_leave_and_come_back_and_damaged_ones_get_no_name() {
    // Guards against plaintext that nothing authenticates under the name of a file, one bad object
    // that stops the others, and an envelope that is taken for a file. Both versions, both places of
    // the envelope, one stream of several parts.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let key = volume.text("wrap.key");
    fs::write(&key, [7u8; 32]).expect("writes");
    fs::create_dir(volume.at("d")).expect("makes");
    fs::write(volume.at("d/none"), "").expect("writes");
    fs::write(volume.at("d/small"), "hello").expect("writes");
    let large = bytes((17 << 20) + 5, 1);
    fs::write(volume.at("d/large"), &large).expect("writes");
    let (vault, from) = (volume.text("vault"), format!("{}:d", volume.text("vault")));
    for (prefix, more) in [
        ("v3", &[][..]),
        ("v2", &["--s3ec", "v2"][..]),
        ("beside", &["--instruction-file"][..]),
        ("beside2", &["--s3ec", "v2", "--instruction-file"][..]),
    ] {
        let target = format!("s3://test/{prefix}");
        let out =
            [&["export", &from, &target, "--aes-key-file", &key, "--json"][..], more].concat();
        let done = report(&run(&volume, &server, &out, 0));
        assert_eq!(done["files"].as_u64(), Some(3), "{prefix}: {done}");
        let sealed = server.get_raw(&format!("{prefix}/large")).expect("is there");
        assert_eq!(sealed.len(), large.len() + 16, "{prefix}");
        assert!(sealed[..1000] != large[..1000], "{prefix}");
        let again = report(&run(&volume, &server, &out, 0));
        assert_eq!(again["unchanged"].as_u64(), Some(3), "{prefix}: {again}");
        let back = ["import", &target, &vault, prefix, "--aes-key-file", &key, "--json"];
        let done = report(&run(&volume, &server, &back, 0));
        assert_eq!(done["files"].as_u64(), Some(3), "{prefix}: {done}");
        for name in ["none", "small", "large"] {
            let (was, is) = (volume.at("d").join(name), volume.at(prefix).join(name));
            assert!(fs::read(&was).expect("reads") == fs::read(&is).expect("reads"), "{prefix}");
            let (was, is) = (fs::metadata(was).expect("looks"), fs::metadata(is).expect("looks"));
            assert_eq!((was.mtime(), was.mtime_nsec()), (is.mtime(), is.mtime_nsec()), "{prefix}");
        }
        assert_eq!(fs::read_dir(volume.at(prefix)).expect("lists").count(), 3, "{prefix}");
        let before = server.counts();
        run(&volume, &server, &back, 0);
        assert_eq!(server.counts().since(&before).get, 0, "{prefix}: nothing is fetched again");
    }
    // Without the key, or with another one: named, skipped, nothing under the name.
    let said = run(&volume, &server, &["import", "s3://test/v3", &vault, "none"], 15).stderr;
    assert!(String::from_utf8_lossy(&said).contains("v3/large"));
    let other = volume.text("other.key");
    fs::write(&other, [8u8; 32]).expect("writes");
    let wrong = ["import", "s3://test/v3", &vault, "none", "--aes-key-file", &other];
    run(&volume, &server, &wrong, 15);
    assert_eq!(count_files(&volume.at("none")), 0);
    // Damage in the last byte, in a middle part, and in an instruction file.
    assert!(server.flip_raw("v3/small", 4) && server.flip_raw("v3/large", 9 << 20));
    assert!(server.flip_raw("beside/large.instruction", 30));
    for (prefix, bad, good) in [("v3", 2, 1), ("beside", 1, 2)] {
        let source = format!("s3://test/{prefix}");
        let damaged = ["import", &source, &vault, "bad", "--aes-key-file", &key, "--json"];
        let done = report(&run(&volume, &server, &damaged, 15));
        let count = |field: &str| done[field].as_u64().expect("a number");
        assert_eq!((count("failed"), count("files")), (bad, good), "{done}");
        assert!(!volume.at("bad/large").exists(), "{prefix}");
        fs::remove_dir_all(volume.at("bad")).expect("removes");
    }
    let neither = ["export", &from, "s3://test/x", "--plain", "--aes-key-file", &key];
    run(&volume, &server, &neither, 2);
}

/// A moto of this test; `None`, said loudly, where it is not installed.
fn moto(dir: &Path) -> Option<(mounts::Holder, String)> {
    let python = std::env::var("SEALFS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let port = free_port();
    let log = fs::File::create(dir.join("moto.log")).expect("a log");
    let child = Command::new(&python)
        .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .ok()?;
    let mut moto = mounts::Holder(child);
    let begun = std::time::Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Ok(Some(_)) = moto.0.try_wait() {
            eprintln!("SKIPPED: no moto ({python} -m pip install 'moto[server]>=5.2.5')");
            return None;
        }
        assert!(begun.elapsed().as_secs() < 60, "moto does not listen");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let url = format!("http://127.0.0.1:{port}");
    let made = Command::new("curl").args(["-sf", "-X", "PUT", &format!("{url}/bkt")]).status();
    assert!(made.is_ok_and(|status| status.success()), "curl makes a bucket");
    Some((moto, url))
}

#[test]
fn what_rclone_and_s3fs_wrote_on_moto_keeps_its_times_permissions_and_links() {
    // Guards against metadata that are understood as we remember them, not as the tools write them:
    // Debian's rclone and s3fs put the files there. And they read what an export wrote.
    needs_fuse!();
    for tool in ["rclone", "s3fs"] {
        if !Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success()) {
            eprintln!("SKIPPED: no {tool} (apt-get install rclone s3fs)");
            return;
        }
    }
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: owners are set by root only");
        return;
    }
    let volume = Volume::mounted();
    let Some((_moto, url)) = moto(&volume.path("run")) else { return };
    let source = volume.path("source");
    fs::create_dir_all(source.join("d")).expect("makes");
    fs::write(source.join("d/file"), "hello").expect("writes");
    fs::set_permissions(source.join("d/file"), fs::Permissions::from_mode(0o604)).expect("sets");
    std::os::unix::fs::chown(source.join("d/file"), Some(1234), Some(5678)).expect("gives");
    let mut touch = Command::new("touch");
    touch.args(["-d", "2003-04-05 06:07:08.9"]).arg(source.join("d/file"));
    assert!(touch.status().expect("runs").success());
    fs::write(volume.path("rclone.conf"), "").expect("writes");
    let rclone = |args: &[&str]| {
        let output = Command::new("timeout")
            .args(["120", "rclone"])
            .args(args)
            .env_remove("AWS_CA_BUNDLE")
            .env("RCLONE_CONFIG", volume.path("rclone.conf"))
            .env("RCLONE_S3_NO_CHECK_BUCKET", "true")
            .env("RCLONE_CONFIG_M_TYPE", "s3")
            .env("RCLONE_CONFIG_M_PROVIDER", "Other")
            .env("RCLONE_CONFIG_M_ENDPOINT", &url)
            .env("RCLONE_CONFIG_M_ACCESS_KEY_ID", "moto")
            .env("RCLONE_CONFIG_M_SECRET_ACCESS_KEY", "moto")
            .output()
            .expect("rclone runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rclone {args:?}: {err}");
    };
    let from = source.display().to_string();
    rclone(&["copy", &from, "m:bkt/rclone"]);
    rclone(&["copy", "--metadata", &from, "m:bkt/meta"]);

    let (point, keys) = (volume.path("s3fs"), volume.path("s3fs.keys"));
    fs::create_dir(&point).expect("makes");
    fs::write(&keys, "moto:moto").expect("writes");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).expect("sets");
    let mut s3fs = Command::new("timeout");
    s3fs.args(["60", "s3fs", "bkt"]).arg(&point);
    s3fs.args(["-o", &format!("passwd_file={},url={url}", keys.display())]);
    s3fs.args(["-o", "use_path_request_style,use_xattr"]);
    assert!(s3fs.status().expect("runs").success(), "s3fs mounts");
    wait_until("s3fs is mounted", || {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("reads");
        mounts.contains(&format!(" {} fuse.s3fs ", point.display()))
    });
    // Not `cp -p`: it sets the mode by an ACL, of which s3fs keeps the owner's part.
    let script = "mkdir s3fs/s3fs && cp source/d/file s3fs/s3fs/file && \
                  chmod 604 s3fs/s3fs/file && chown 1234:5678 s3fs/s3fs/file && \
                  touch -r source/d/file s3fs/s3fs/file && \
                  ln -s file s3fs/s3fs/link && mkdir s3fs/s3fs/empty && chmod 750 s3fs/s3fs/empty; \
                  made=$?; umount s3fs || umount -l s3fs; exit $made";
    let mut shell = Command::new("timeout");
    let written =
        shell.args(["120", "sh", "-c", script]).current_dir(volume.path("run").join(".."));
    assert!(written.status().expect("runs").success(), "files are written through s3fs");

    let on_moto = |args: &[&str]| {
        let remote = Remote::s3(&url, "bkt", "moto", "moto");
        let output = volume.command(args).envs(remote.env).output().expect("runs");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {err}");
    };
    let vault = volume.text("vault");
    on_moto(&["import", "s3://bkt", &vault]);
    let look = |name: &str| fs::metadata(volume.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    for name in ["rclone/d/file", "meta/d/file", "s3fs/file"] {
        let meta = look(name);
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_049_522_828, 900_000_000), "{name}");
        assert_eq!(fs::read_to_string(volume.at(name)).expect("reads"), "hello", "{name}");
    }
    for name in ["meta/d/file", "s3fs/file"] {
        let meta = look(name);
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o604, 1234, 5678), "{name}");
    }
    assert_eq!(fs::read_link(volume.at("s3fs/link")).expect("a link"), Path::new("file"));
    assert_eq!(look("s3fs/empty").mode() & 0o7777, 0o750);

    // And back: rclone finds every time, so that it has nothing to copy.
    on_moto(&["export", &format!("{vault}:meta"), "s3://bkt/out", "--plain"]);
    let back = volume.text("back");
    rclone(&["copy", "m:bkt/out", &back]);
    let meta = fs::metadata(volume.path("back").join("d/file")).expect("is there");
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_049_522_828, 900_000_000));
}

#[test]
fn a_store_of_the_same_name_on_another_server_is_another_volume() {
    // Guards against files that are imported into, snapshots that are made and deleted in, and trees that are
    // measured and restored in the mount of another volume, because its store goes by the same name.
    needs_fuse!();
    let servers = [S3Server::start(), S3Server::start()];
    let on = |server: &S3Server| {
        Volume::create_on(Some(Remote::s3(&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY)))
    };
    let (mounted, other) = (on(&servers[0]), on(&servers[1]));
    assert_eq!(mounted.url(), other.url());
    mounted.mount(&["--commit-interval", "200ms"]);
    // Of the other one, beside the mount of the first.
    let words = |args: &[&str]| -> Vec<String> {
        let own =
            ["--passphrase-file", &other.text("passphrase"), "--state-dir", &other.text("state")];
        args.iter().chain(&own).map(|&word| word.to_owned()).collect()
    };
    let run = |args: &[&str], of: &Volume| {
        let words = words(args);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut command = of.command(&words);
        command.env("SEALFS_RUNTIME_DIR", mounted.path("run"));
        let output = command.output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), said)
    };
    let (url, cache) = (other.url(), other.text("cache"));
    let local = other.path("local");
    fs::create_dir(&local).expect("makes");
    fs::write(local.join("mine"), "of the other").expect("writes");
    let source = local.display().to_string();
    run(&["import", &source, &url, "--cache-dir", &cache], &other);
    assert_eq!(count_files(&mounted.vault()), 0, "nothing is in the mount of another volume");
    run(&["snapshot", "create", &url, "monday"], &other);
    assert!(mounted.ok(&["snapshot", "list", &mounted.text("vault")]).contains("no snapshots"));
    let (listed, _) = run(&["snapshot", "list", &url], &other);
    assert!(listed.contains("monday"), "{listed}");
    run(&["snapshot", "restore", &url, "monday", "--to", "there"], &other);
    assert_eq!(fs::read_dir(mounted.vault()).expect("lists").count(), 0);
    let (taken, _) = run(&["du", "--json", &url], &other);
    let taken: serde_json::Value = serde_json::from_str(&taken).expect("JSON");
    assert_eq!(taken["total"]["files"], 2, "{taken}");
    run(&["snapshot", "delete", &url, "monday"], &other);
    // The same server: in the mount.
    let (_, said) = run(&["import", &source, &url, "--cache-dir", &cache], &mounted);
    assert!(said.contains("working there"), "{said}");
    assert_eq!(fs::read(mounted.at("mine")).expect("is there"), b"of the other");
    run(&["snapshot", "create", &url, "tuesday"], &mounted);
    run(&["snapshot", "restore", &url, "tuesday", "mine", "--to", "back"], &mounted);
    assert_eq!(fs::read(mounted.at("back/mine")).expect("is there"), b"of the other");
    mounted.umount();
}
