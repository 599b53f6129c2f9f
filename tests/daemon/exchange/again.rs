//! Runs after the first one: with other filters and flags, with a source that has changed in kind, beside what was
//! there before; and what goes wrong of one file alone.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{bytes, command, report, run, xattr};
use crate::mounts::{Volume, wait_at_most};
use crate::needs_fuse;
use crate::support::s3server::{Fault, FaultKind, RequestKind, S3Server};

fn count(done: &serde_json::Value, field: &str) -> u64 {
    done[field].as_u64().unwrap_or_else(|| panic!("{field} of {done}"))
}

#[test]
fn what_a_filter_leaves_out_keeps_its_place_and_is_not_deleted() {
    // Guards against --delete that deletes what is excluded, where the file is not called as its key is; and
    // against a file whose place depends on which others a filter takes.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    for key in ["in/a", "in/a/b", "in/c//d", "in/f", "in/../up"] {
        server.put_raw(key, "contents");
    }
    let vault = volume.text("vault");
    let import = ["import", "s3://test/in", &vault, "in", "--json"];
    assert_eq!(count(&report(&run(&volume, &server, &import, 0)), "files"), 5);
    let there = ["a#object", "a/b", "c/#empty/d", "f", "#dotdot/up"];
    let all_there = |what: &str| {
        for name in there {
            assert!(volume.at("in").join(name).exists(), "{what}: {name}");
        }
    };
    let rules = ["--exclude", "c//**", "--exclude", "/a", "--exclude", "../**", "--delete"];
    let done = report(&run(&volume, &server, &[&import[..], &rules].concat(), 0));
    assert_eq!((count(&done, "unchanged"), count(&done, "deleted")), (2, 0), "{done}");
    all_there("excluded");
    // Gone at the source as well: still not deleted, since it is excluded.
    server.remove_raw("in/c//d");
    server.remove_raw("in/a");
    let done = report(&run(&volume, &server, &[&import[..], &rules].concat(), 0));
    assert_eq!(count(&done, "deleted"), 0, "{done}");
    all_there("excluded and gone");
    server.put_raw("in/a", "contents");
    let done = report(&run(&volume, &server, &[&import[..], &["--exclude", "/a/**"]].concat(), 0));
    assert_eq!(count(&done, "failed"), 0, "{done}");
    assert!(volume.at("in/a").is_dir(), "{done}");
    // --strict means what is taken.
    let strict = [&import[..], &["--strict", "--exclude", "../**", "--exclude", "/a"]].concat();
    run(&volume, &server, &strict, 0);
    run(&volume, &server, &[&import[..], &["--strict"]].concat(), 2);
}

#[test]
fn a_file_that_becomes_a_directory_or_the_other_way_round_is_imported_again() {
    // Guards against a second run that fails for ever, because --delete does nothing while anything failed; and
    // against a way that is made through files that the filters keep.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let (vault, source) = (volume.text("vault"), volume.path("source"));
    server.put_raw("in/a", "file");
    server.put_raw("in/d/x", "below");
    fs::create_dir_all(source.join("d/deep")).expect("makes");
    fs::write(source.join("a"), "file").expect("writes");
    fs::write(source.join("d/deep/x"), "below").expect("writes");
    let from = source.display().to_string();
    let runs = [
        ["import", "s3://test/in", &vault, "in", "--json"],
        ["import", &from, &vault, "local", "--json"],
    ];
    for import in &runs {
        run(&volume, &server, import, 0);
    }
    server.remove_raw("in/a");
    server.remove_raw("in/d/x");
    server.put_raw("in/a/b", "new");
    server.put_raw("in/d", "new");
    fs::remove_file(source.join("a")).expect("removes");
    fs::remove_dir_all(source.join("d")).expect("removes");
    fs::create_dir(source.join("a")).expect("makes");
    fs::write(source.join("a/b"), "new").expect("writes");
    fs::write(source.join("d"), "new").expect("writes");
    for import in &runs {
        let at = volume.at(import[3]);
        // A directory with something in it gives way to nobody who did not ask for that.
        let output = run(&volume, &server, import, 15);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("--delete takes it away"), "{said}");
        assert_eq!(fs::read_to_string(at.join("a/b")).expect("is there"), "new");
        assert!(at.join("d").is_dir());
        let keep = [&import[..], &["--delete", "--exclude", "x"]].concat();
        let output = run(&volume, &server, &keep, 15);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("the filters keep it"), "{said}");
        assert!(at.join("d").is_dir());
        let done = report(&run(&volume, &server, &[&import[..], &["--delete"]].concat(), 0));
        assert!(count(&done, "deleted") >= 2, "{done}");
        assert_eq!(fs::read_to_string(at.join("d")).expect("is there"), "new");
        let done = report(&run(&volume, &server, import, 0));
        assert_eq!((count(&done, "files"), count(&done, "unchanged")), (0, 2), "{done}");
    }
}

#[test]
fn metadata_that_are_asked_for_later_come_without_the_contents() {
    // Guards against a hint ("--metadata keeps them") that does nothing once it is followed, and against tags of
    // large objects, which no HeadObject of this server counts.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let large = bytes(33 << 20, 1);
    server.put_labelled("in/small", "s", &[("colour", "blue")], Some("team=a"));
    server.put_labelled("in/large", large, &[("colour", "red")], Some("team=b"));
    server.put_labelled("in/dir/", "", &[("colour", "none")], None);
    let vault = volume.text("vault");
    let import = ["import", "s3://test/in", &vault, "in", "--json"];
    assert_eq!(count(&report(&run(&volume, &server, &import, 0)), "files"), 2);
    let labelled = [&import[..], &["--metadata"]].concat();
    let before = server.counts();
    let done = report(&run(&volume, &server, &labelled, 0));
    assert_eq!((count(&done, "unchanged"), count(&done, "files")), (2, 0), "{done}");
    let received = server.counts().since(&before).bytes_out;
    assert!(received < 1 << 20, "{received} bytes: contents were fetched");
    for (name, colour, team) in
        [("small", "blue", Some("a")), ("large", "red", Some("b")), ("dir", "none", None)]
    {
        let at = volume.at("in").join(name);
        assert_eq!(xattr(&at, "user.s3.meta.colour").as_deref(), Some(colour), "{name}");
        assert_eq!(xattr(&at, "user.s3.tag.team").as_deref(), team, "{name}");
    }
    let before = server.counts();
    for again in [&labelled[..], &import] {
        let done = report(&run(&volume, &server, again, 0));
        assert_eq!(count(&done, "unchanged"), 3, "{done}");
    }
    let asked = server.counts().since(&before);
    // Each run looks once whether a volume lies above its prefix.
    assert_eq!((asked.get, asked.head), (0, 2), "from the listing alone");
}

#[test]
fn links_and_markers_that_are_there_are_not_made_again() {
    // Guards against a second run that says it has imported what it has only looked at.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    server.put_labelled("in/link", "target", &[("mode", "41471")], None);
    server.put_labelled("in/dir", "", &[("mode", "16877"), ("ctime", "1")], None);
    for n in 0..50 {
        server.put_labelled(&format!("in/d{n}/{n}/"), "", &[("mode", "16749")], None);
    }
    let vault = volume.text("vault");
    let import = ["import", "s3://test/in", &vault, "in", "--json"];
    let done = report(&run(&volume, &server, &import, 0));
    assert_eq!((count(&done, "files"), count(&done, "others")), (1, 51), "{done}");
    assert_eq!(fs::metadata(volume.at("in/d7/7")).expect("is there").mode() & 0o777, 0o555);
    let link = volume.at("in/link");
    let was = fs::symlink_metadata(&link).expect("is there").ino();
    let done = report(&run(&volume, &server, &import, 0));
    assert_eq!((count(&done, "files"), count(&done, "others")), (0, 0), "{done}");
    assert_eq!(count(&done, "unchanged"), 52, "{done}");
    assert_eq!(fs::symlink_metadata(&link).expect("is there").ino(), was);
    server.put_labelled("in/link", "another", &[("mode", "41471")], None);
    run(&volume, &server, &import, 0);
    assert_eq!(fs::read_link(&link).expect("a link"), Path::new("another"));
}

#[test]
fn objects_that_are_sealed_or_encrypted_otherwise_are_sent_again() {
    // Guards against flags that say how objects must be, and that do nothing for those that are there: another
    // version, another context, another encryption of the server; and against an instruction file that belongs
    // to an object which was never put.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let (vault, key) = (volume.text("vault"), volume.text("wrap.key"));
    fs::write(&key, [7u8; 32]).expect("writes");
    fs::create_dir(volume.at("d")).expect("makes");
    fs::write(volume.at("d/f"), "contents").expect("writes");
    let from = format!("{vault}:d");
    let sealed = ["--aes-key-file", key.as_str()];
    let steps: [(&[&str], u64); 9] = [
        (&["--plain"], 1),
        (&["--plain", "--target-sse", "AES256"], 1),
        (&["--plain", "--target-sse", "AES256"], 0),
        (&["--plain", "--target-sse", "aws:kms"], 1),
        (&["--plain"], 0),
        (&[&sealed[..], &["--s3ec", "v2"]].concat(), 1),
        (&sealed, 1),
        (&[&sealed[..], &["--encryption-context", "a=b"]].concat(), 1),
        (&[&sealed[..], &["--encryption-context", "a=b"]].concat(), 0),
    ];
    for (flags, files) in &steps {
        let out = ["export", from.as_str(), "s3://test/out", "--json"];
        let done = report(&run(&volume, &server, &[&out[..], flags].concat(), 0));
        assert_eq!(count(&done, "files"), *files, "{flags:?}: {done}");
    }
    let beside = ["export", &from, "s3://test/beside", "--json", "--instruction-file"];
    let beside = [&beside[..], &sealed].concat();
    run(&volume, &server, &beside, 0);
    assert_eq!(count(&report(&run(&volume, &server, &beside, 0)), "unchanged"), 1);
    // A run that ends between the two. The times of this server have whole seconds, as those of S3.
    std::thread::sleep(Duration::from_millis(1100));
    let instruction = server.get_raw("beside/f.instruction").expect("is there");
    server.put_raw("beside/f.instruction", instruction);
    let done = report(&run(&volume, &server, &beside, 0));
    assert_eq!(count(&done, "files"), 1, "{done}");
    let import = ["import", "s3://test/beside", &vault, "back"];
    run(&volume, &server, &[&import[..], &sealed].concat(), 0);
    assert_eq!(fs::read_to_string(volume.at("back/f")).expect("reads"), "contents");

    // In clear, beside the instruction file of what it was: said, and gone with --delete.
    let plain = ["export", &from, "s3://test/beside", "--plain"];
    let said = run(&volume, &server, &plain, 0).stderr;
    assert!(String::from_utf8_lossy(&said).contains("1 instruction file of former"));
    // With its object, whatever a filter takes.
    run(&volume, &server, &[&plain[..], &["--delete", "--include", "f"]].concat(), 0);
    assert_eq!(server.keys(), ["beside/f", "out/f"]);
}

#[test]
fn one_file_that_something_in_between_refuses_fails_alone() {
    // Guards against a run of a million files that ends at one name which a proxy does not like; and against one
    // that goes on although nothing behind that proxy is reached.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    fs::create_dir(volume.at("d")).expect("makes");
    for name in ["a", "odd", "z"] {
        fs::write(volume.at("d").join(name), name).expect("writes");
    }
    let (vault, from) = (volume.text("vault"), format!("{}:d", volume.text("vault")));
    let export = ["export", &from, "s3://test/out", "--plain", "--json"];
    server.faults().add(Fault::new(FaultKind::LOST).on(RequestKind::Put).key("odd"));
    let done = report(&run(&volume, &server, &export, 15));
    assert_eq!((count(&done, "files"), count(&done, "failed")), (2, 1), "{done}");
    server.faults().clear();
    run(&volume, &server, &export, 0);
    server.faults().add(Fault::new(FaultKind::LOST).on(RequestKind::Get).key("odd"));
    let import = ["import", "s3://test/out", &vault, "in", "--json"];
    let done = report(&run(&volume, &server, &import, 15));
    assert_eq!((count(&done, "files"), count(&done, "failed")), (2, 1), "{done}");
}

#[test]
fn what_is_removed_while_a_run_goes_on_is_no_failure() {
    // Guards against a nightly run over a directory in use that fails, and does not delete, because of a temporary
    // file. The first file is slow; the second is removed meanwhile.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let source = volume.path("source");
    fs::create_dir(&source).expect("makes");
    fs::write(source.join("a"), bytes(400_000, 1)).expect("writes");
    fs::write(source.join("b"), "short-lived").expect("writes");
    server.put_raw("in/a", bytes(400_000, 1));
    server.put_raw("in/b", "short-lived");
    let (vault, from) = (volume.text("vault"), source.display().to_string());
    let slow = ["--rate", "64K", "--parallel", "1", "--json"];
    for (from, to) in [(from.as_str(), "local"), ("s3://test/in", "in")] {
        let args = [&["import", from, &vault, to][..], &slow].concat();
        let mut child = command(&volume, &server, &args);
        let child = child.stdout(std::process::Stdio::piped()).spawn().expect("starts");
        let work = volume.at(to).join(".sealfs-unfinished");
        // A directory has been listed once its first file is open.
        let fds = format!("/proc/{}/fd", child.id());
        let has_open = |file| {
            let names = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|at| at == file);
            fs::read_dir(&fds).is_ok_and(|fds| fds.flatten().any(names))
        };
        wait_at_most(Duration::from_secs(120), "it has begun", || match to {
            "local" => has_open(source.join("a")),
            _ => work.exists() && server.counts().get > 0,
        });
        match to {
            "local" => fs::remove_file(source.join("b")).expect("removes"),
            _ => assert!(server.remove_raw("in/b")),
        }
        let output = child.wait_with_output().expect("has ended");
        assert_eq!(output.status.code(), Some(0), "{to}");
        let done = report(&output);
        assert_eq!((count(&done, "files"), count(&done, "vanished")), (1, 1), "{done}");
    }
}

#[test]
fn what_nobody_says_anything_of_gets_the_rights_of_its_place() {
    // Guards against an import that opens to all what a directory keeps closed (acl(5), "object creation and
    // default ACLs"), whatever way a file of that size is made; against a list that is lost with a new version;
    // and against a directory that has the time of the import.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let vault = volume.text("vault");
    let setfacl = |args: &[&str], name: &str| {
        let done = std::process::Command::new("setfacl").args(args).arg(volume.at(name)).status();
        assert!(done.expect("setfacl").success());
    };
    fs::create_dir(volume.at("d")).expect("makes");
    setfacl(&["-d", "-m", "u::rw,g::-,o::-"], "d");
    let sizes = [("small", 6), ("middle", 2 << 20), ("large", 33 << 20)];
    for (name, size) in sizes {
        server.put_raw(&format!("in/d/{name}"), bytes(size, 1));
    }
    let import = ["import", "s3://test/in", vault.as_str()];
    run(&volume, &server, &import, 0);
    let acl = |name: &str| xattr(&volume.at(&format!("d/{name}")), "system.posix_acl_access");
    for (name, size) in sizes {
        let meta = fs::metadata(volume.at(&format!("d/{name}"))).expect("is there");
        assert_eq!((meta.len(), meta.mode() & 0o7777), (size as u64, 0o600), "{name}");
        setfacl(&["-m", "u:1:r"], &format!("d/{name}"));
        server.put_raw(&format!("in/d/{name}"), bytes(size, 2));
    }
    let before: Vec<_> = sizes.iter().map(|(name, _)| acl(name)).collect();
    run(&volume, &server, &import, 0);
    for ((name, size), before) in sizes.iter().zip(before) {
        let path = volume.at(&format!("d/{name}"));
        assert!(fs::read(&path).expect("reads") == bytes(*size, 2), "{name}");
        assert!(before.is_some() && acl(name) == before, "{name}");
        assert_eq!(fs::metadata(&path).expect("is there").mode() & 0o7777, 0o640, "{name}");
    }

    let source = volume.path("source");
    fs::create_dir(&source).expect("makes");
    fs::write(source.join("f"), "x").expect("writes");
    let then = std::time::UNIX_EPOCH + Duration::from_secs(978_307_200);
    File::open(&source).expect("opens").set_modified(then).expect("sets");
    run(&volume, &server, &["import", &source.display().to_string(), &vault, "copy"], 0);
    let meta = fs::metadata(volume.at("copy")).expect("is there");
    assert_eq!(meta.modified().expect("a time"), then);
}

#[test]
fn a_slow_run_that_is_stopped_ends_soon() {
    // Guards against a run that waits for its turn under --rate, and does not see that it was stopped: sixteen
    // files of 1 MiB that move at once take four minutes.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let source = volume.path("source");
    fs::create_dir(&source).expect("makes");
    for n in 0..16 {
        fs::write(source.join(format!("f{n}")), bytes(1 << 20, n)).expect("writes");
        server.put_raw(&format!("in/f{n}"), bytes(1 << 20, n));
    }
    let (vault, from) = (volume.text("vault"), source.display().to_string());
    let copy = ["import", &from, &vault, "files"];
    run(&volume, &server, &copy, 0);
    let out = format!("{vault}:files");
    let ways = [
        &["import", &from, &vault, "local"][..],
        &["import", "s3://test/in", &vault, "bucket"],
        &["export", &out, "s3://test/out", "--plain"],
    ];
    for way in ways {
        let args = [way, &["--rate", "64K", "--parallel", "16"]].concat();
        let child = command(&volume, &server, &args).stderr(std::process::Stdio::piped()).spawn();
        let mut child = child.expect("starts");
        std::thread::sleep(Duration::from_secs(3)); // long enough to wait for its turn, far from its end
        assert!(child.try_wait().expect("asks").is_none(), "{way:?} has ended");
        // SAFETY: takes numbers; the child was not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
        wait_at_most(Duration::from_secs(60), "it ends", || {
            child.try_wait().expect("asks").is_some()
        });
        let output = child.wait_with_output().expect("has ended");
        assert!(!output.status.success(), "{way:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("stopped before the end"), "{way:?}: {said}");
    }
}

#[test]
fn long_lists_are_whole_where_they_are_asked_for() {
    // Guards against a dry run that says a hundred of the files it means, and against what is said once ("nothing
    // is deleted") that is lost behind a hundred failures.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    for n in 0..150 {
        server.put_raw(&format!("in/f{n}"), "x");
    }
    let vault = volume.text("vault");
    let import = ["import", "s3://test/in", &vault, "in", "--json", "--delete"];
    let output = run(&volume, &server, &[&import[..], &["--dry-run"]].concat(), 0);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("would copy in/f").count(), 150, "{said}");
    server.faults().add(Fault::new(FaultKind::DENIED).on(RequestKind::Get).key("in/f"));
    let output = run(&volume, &server, &import, 15);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("nothing is deleted") && said.contains("--json lists them"), "{said}");
    assert_eq!(report(&output)["failures"].as_array().expect("a list").len(), 150);
}

#[test]
fn objects_are_deleted_once_the_store_has_time_for_it() {
    // Guards against a thousand files that failed because one request was throttled.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    fs::write(volume.at("f"), "x").expect("writes");
    for n in 0..20 {
        server.put_raw(&format!("out/old{n}"), "x");
    }
    server.put_raw("out/not \u{1} xml", "x");
    let vault = volume.text("vault");
    let export = ["export", &vault, "s3://test/out", "--plain", "--delete", "--json"];
    let busy = Fault::new(FaultKind::SLOW_DOWN).times(4);
    server.faults().add(busy.on(RequestKind::DeleteMany));
    let done = report(&run(&volume, &server, &export, 0));
    assert_eq!(count(&done, "deleted"), 21, "{done}");
    assert_eq!(server.keys(), ["out/f"]);
}

#[test]
fn a_full_standard_output_is_told_once() {
    // Guards against the same error twice, and against one where the reader of a pipe has gone.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let key = volume.text("wrap.key");
    fs::write(&key, [7u8; 32]).expect("writes");
    fs::write(volume.at("f"), bytes(300_000, 1)).expect("writes");
    let vault = volume.text("vault");
    let export = ["export", &vault, "s3://test/out", "--aes-key-file", &key];
    run(&volume, &server, &export, 0);
    let cat = ["s3ec", "cat", "s3://test/out/f", "--aes-key-file", &key];
    let full = File::options().write(true).open("/dev/full").expect("there is one");
    let output = command(&volume, &server, &cat).stdout(full).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.status.code(), said.matches("sealfs: error").count()),
        (Some(1), 1),
        "{said}"
    );
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command(&volume, &server, &cat).stdout(writer).output().expect("runs");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{:?}", output);
}

#[test]
fn directories_on_the_way_are_as_private_as_in_the_source() {
    // Guards against a directory that a filter names no file of itself, and that is open to everybody here.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let source = volume.path("source");
    fs::create_dir_all(source.join("mine/deep")).expect("makes");
    fs::create_dir(source.join("other")).expect("makes");
    for name in ["mine/deep/a.jpg", "mine/deep/b.txt", "other/c.txt"] {
        fs::write(source.join(name), name).expect("writes");
    }
    for name in ["mine", "mine/deep"] {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(source.join(name), private).expect("sets");
    }
    server.put_labelled("in/mine/", "", &[("mode", "16832")], None);
    server.put_labelled("in/other/", "", &[("mode", "16832")], None);
    server.put_raw("in/mine/a.jpg", "a");
    server.put_raw("in/mine/b.txt", "b");
    let (vault, from) = (volume.text("vault"), source.display().to_string());
    run(&volume, &server, &["import", &from, &vault, "local", "--include", "*.jpg"], 0);
    run(&volume, &server, &["import", "s3://test/in", &vault, "in", "--include", "*.jpg"], 0);
    for name in ["local/mine", "local/mine/deep", "in/mine"] {
        let mode = fs::metadata(volume.at(name)).expect("is there").mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
    for name in ["local/other", "in/other", "in/mine/b.txt", "local/mine/deep/b.txt"] {
        assert!(!volume.at(name).exists(), "{name}");
    }
}
