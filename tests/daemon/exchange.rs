//! `sealfs import` and `sealfs export` with the real command, a live mount, and the S3 server of this
//! process.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use crate::mounts::{Remote, Volume, wait_until};
use crate::needs_fuse;
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
    assert_eq!((asked.get, again["files"].as_u64()), (1, Some(1)), "{again}");
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
