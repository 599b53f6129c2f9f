//! What an export leaves in the bucket: uploads that are gone on with, server-side encryption, contents that
//! are compared, files that are left out, and a list of what failed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::{bytes, command, count_files, report, run, xattr};
use crate::mounts::{Volume, wait_at_most};
use crate::needs_fuse;
use crate::support::s3server::{Fault, FaultKind, RequestKind, S3Server};

/// Bytes of a part.
const PART: u64 = 8 << 20;

/// A file that is large and quickly made: a hole but for a mark in each part.
fn write_large(volume: &Volume, name: &str, parts: u64, mark: &str) -> Vec<u8> {
    let file = File::create(volume.at(name)).expect("makes");
    file.set_len(parts * PART).expect("grows");
    for n in 0..parts {
        file.write_all_at(format!("{mark} {n}").as_bytes(), n * PART + 5).expect("writes");
    }
    file.sync_all().expect("syncs");
    fs::read(volume.at(name)).expect("reads")
}

#[test]
fn an_export_that_is_killed_goes_on_with_the_parts_that_are_there() {
    // Guards against parts that are sent again, an object of two versions of a file, and uploads that lie
    // in the bucket for ever: killed three times with SIGKILL, stopped once, then once more with a file
    // that changes in between, and with sealed parts, which no other run can go on with.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let parts = 17;
    let large = write_large(&volume, "large", parts, "first");
    let (vault, state) = (volume.text("vault"), volume.text("state"));
    let key = volume.text("wrap.key");
    fs::write(&key, [7u8; 32]).expect("writes");
    let args = ["export", &vault, "s3://test/out", "--state-dir", &state, "--json"];
    let plain = [&args[..], &["--plain"]].concat();
    let sealed = [&args[..], &["--aes-key-file", &key]].concat();
    // Starts one and ends it when some parts more are there: parts take longer than that lasts.
    let interrupted = |args: &[&str], signal: libc::c_int| {
        server.faults().add(
            Fault::new(FaultKind::Delay(Duration::from_millis(700))).on(RequestKind::UploadPart),
        );
        let before = server.open_parts();
        let mut child = command(&volume, &server, args).spawn().expect("starts");
        let pid = child.id() as libc::pid_t;
        wait_at_most(Duration::from_secs(120), "a part is there", || {
            let ended = child.try_wait().expect("can be asked");
            assert!(ended.is_none(), "{args:?}: ended by itself: {ended:?}");
            server.open_parts() > before
        });
        // SAFETY: a process of ours that was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        child.wait().expect("has ended");
        server.faults().clear();
    };
    for _ in 0..3 {
        interrupted(&plain, libc::SIGKILL);
    }
    interrupted(&plain, libc::SIGTERM);
    let (have, before) = (server.open_parts() as u64, server.counts());
    assert!(have >= 4 && before.upload_create == 1, "{have} parts, {before:?}");
    let done = report(&run(&volume, &server, &plain, 0));
    let asked = server.counts().since(&before);
    assert!(asked.upload_part <= parts - have && asked.upload_create == 0, "{have}: {asked:?}");
    assert_eq!((done["files"].as_u64(), server.open_uploads()), (Some(1), 0), "{done}");
    assert!(server.get_raw("out/large").expect("is there") == large);
    let left = count_files(&volume.path("state").join("exports"));
    assert_eq!(left, 0, "nothing is remembered of what is over");

    // Another version: what is there of the first is aborted, not mixed in.
    server.remove_raw("out/large");
    interrupted(&plain, libc::SIGKILL);
    let large = write_large(&volume, "large", parts, "second");
    let before = server.counts();
    run(&volume, &server, &plain, 0);
    let asked = server.counts().since(&before);
    assert_eq!((asked.upload_part, asked.upload_abort), (parts, 1), "{asked:?}");
    assert!(server.get_raw("out/large").expect("is there") == large);
    assert_eq!(server.open_uploads(), 0);

    // Sealed: started again, and the other one is aborted. One that is not ours is left alone, and named.
    server.remove_raw("out/large");
    interrupted(&sealed, libc::SIGKILL);
    server.begin_upload("out/of somebody else");
    let done = report(&run(&volume, &server, &sealed, 0));
    assert_eq!(done["unfinished"], serde_json::json!(["out/of somebody else"]), "{done}");
    assert_eq!(server.open_uploads(), 1);
    let back = ["import", "s3://test/out", &vault, "back", "--aes-key-file", &key];
    run(&volume, &server, &back, 0);
    assert!(fs::read(volume.at("back/large")).expect("is there") == large);

    // A file that is gone when the next run comes: its upload goes as well.
    fs::remove_dir_all(volume.at("back")).expect("removes");
    server.remove_raw("out/large");
    interrupted(&plain, libc::SIGKILL);
    fs::rename(volume.at("large"), volume.at("small")).expect("renames");
    File::create(volume.at("small")).expect("empties");
    run(&volume, &server, &plain, 0);
    assert_eq!(server.open_uploads(), 1, "only that of somebody else");
}

#[test]
fn objects_have_the_encryption_labels_and_keys_that_were_asked_for() {
    // Guards against a flag that reaches small objects and not parts, or the object and not its
    // instruction file; every mode of the server, in clear and sealed by each key at hand, and the way back
    // with what it takes.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    fs::create_dir(volume.at("d")).expect("makes");
    let contents = [("none", Vec::new()), ("small", bytes(3000, 1)), ("large", bytes(9 << 20, 2))];
    for (name, bytes) in &contents {
        fs::write(volume.at("d").join(name), bytes).expect("writes");
    }
    let fixture = |name: &str| {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/s3ec");
        dir.join(name).display().to_string()
    };
    let (aes, public, private) = (fixture("aes.key"), fixture("rsa-pub.pem"), fixture("rsa.pem"));
    let (vault, from) = (volume.text("vault"), format!("{}:d", volume.text("vault")));
    let (key, wrong) = (volume.text("customer.key"), volume.text("wrong.key"));
    fs::write(&key, [5u8; 32]).expect("writes");
    fs::write(&wrong, [6u8; 32]).expect("writes");
    let kms = ["--target-sse", "aws:kms", "--target-sse-kms-key-id", "alias/a"];
    let modes: [(&str, Vec<&str>); 5] = [
        ("", vec![]),
        ("AES256", vec!["--target-sse", "AES256"]),
        (
            "aws:kms",
            [&kms[..], &["--target-sse-bucket-key", "--target-sse-kms-context", "a=b"]].concat(),
        ),
        ("aws:kms:dsse", vec!["--target-sse", "aws:kms:dsse"]),
        ("customer", vec!["--target-sse", "customer", "--target-sse-c-key-file", &key]),
    ];
    let seals: [(Vec<&str>, Vec<&str>); 4] = [
        (vec!["--plain"], vec![]),
        (vec!["--aes-key-file", &aes, "--instruction-file"], vec!["--aes-key-file", &aes]),
        (vec!["--rsa-public-key", &public, "--s3ec", "v2"], vec!["--rsa-private-key", &private]),
        (
            vec!["--rsa-public-key", &public, "--s3ec", "v3", "--instruction-file"],
            vec!["--rsa-private-key", &private],
        ),
    ];
    for (m, (mode, flags)) in modes.iter().enumerate() {
        for (s, (seal, open)) in seals.iter().enumerate() {
            if m > 0 && m < 4 && s > 1 {
                continue; // the server's side does not know of our keys
            }
            let what = format!("{mode} {seal:?}");
            let (prefix, back) = (format!("{m}-{s}"), format!("back-{m}-{s}"));
            let target = format!("s3://test/{prefix}");
            let labels = ["--target-tag", "team=blue", "--target-storage-class", "STANDARD_IA"];
            let out = ["export", &from, &target, "--json"];
            let out = [&out[..], flags, seal, &labels].concat();
            let done = report(&run(&volume, &server, &out, 0));
            assert_eq!(done["files"].as_u64(), Some(3), "{what}: {done}");
            let keys: Vec<String> =
                server.keys().into_iter().filter(|key| key.starts_with(&prefix)).collect();
            let beside = seal.contains(&"--instruction-file");
            assert_eq!(keys.len(), if beside { 6 } else { 3 }, "{what}: {keys:?}");
            for key in &keys {
                let sse = server.stored_sse(key).expect("is there");
                match *mode {
                    "" => assert_eq!(sse.algorithm, None, "{what}: {key}"),
                    "customer" => assert!(sse.customer_md5.is_some(), "{what}: {key}"),
                    mode => assert_eq!(sse.algorithm.as_deref(), Some(mode), "{what}: {key}"),
                }
                if *mode == "aws:kms" {
                    assert!(sse.bucket_key == Some(true) && sse.context.is_some(), "{what}: {key}");
                }
                assert_eq!(server.tags(key).as_deref(), Some("team=blue"), "{what}: {key}");
                let class = server.labels(key).expect("is there").storage_class;
                assert_eq!(class.as_deref(), Some("STANDARD_IA"), "{what}: {key}");
            }
            let again = report(&run(&volume, &server, &out, 0));
            assert_eq!(again["unchanged"].as_u64(), Some(3), "{what}: {again}");
            let import = ["import", &target, &vault, &back, "--json"];
            if *mode == "customer" {
                run(&volume, &server, &[&import[..], open].concat(), 15);
                let wrong = ["--source-sse-c-key-file", wrong.as_str()];
                run(&volume, &server, &[&import[..], open, &wrong].concat(), 15);
                assert_eq!(count_files(&volume.at(&back)), 0, "{what}: without the key");
            }
            let with: &[&str] = match *mode {
                "customer" => &["--source-sse-c-key-file", &key],
                _ => &[],
            };
            let done = report(&run(&volume, &server, &[&import[..], open, with].concat(), 0));
            assert_eq!(done["files"].as_u64(), Some(3), "{what}: {done}");
            for (name, bytes) in &contents {
                let read = fs::read(volume.at(&back).join(name)).expect("is there");
                assert!(read == *bytes, "{what}: {name}");
            }
        }
    }
    // Two keys, a detail of a key that is not there, a mode that lacks its key.
    for bad in [
        &["--aes-key-file", &aes, "--rsa-public-key", &public][..],
        &["--plain", "--s3ec", "v2"],
        &["--plain", "--target-sse", "customer"],
        &["--plain", "--target-sse-kms-key-id", "alias/a", "--target-sse", "AES256"],
    ] {
        run(&volume, &server, &[&["export", &from, "s3://test/bad"], bad].concat(), 2);
    }
    assert!(!server.keys().iter().any(|key| key.starts_with("bad")));
}

#[test]
fn contents_are_compared_files_left_out_and_the_rest_deleted_where_that_is_asked_for() {
    // Guards against a change that size and time hide, a file that a filter should have kept here, a dry run
    // that does something, and objects that are deleted though something failed.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    fs::create_dir_all(volume.at("d/cache")).expect("makes");
    for name in ["d/a.txt", "d/b.txt", "d/c.bin", "d/cache/x", "d/secret"] {
        fs::write(volume.at(name), format!("contents of {name}")).expect("writes");
    }
    let (vault, from) = (volume.text("vault"), format!("{}:d", volume.text("vault")));
    let base = ["export", &from, "s3://test/out", "--plain", "--json"];
    let rules = ["--exclude", "/secret", "--exclude", "cache/", "--include", "*.txt"];
    let filtered = [&base[..], &rules].concat();
    let dry = [&filtered[..], &["--dry-run"]].concat();
    let done = report(&run(&volume, &server, &dry, 0));
    assert_eq!(
        (done["files"].as_u64(), done["dry_run"].as_bool()),
        (Some(2), Some(true)),
        "{done}"
    );
    assert!(server.keys().is_empty(), "a dry run does nothing");
    run(&volume, &server, &filtered, 0);
    assert_eq!(server.keys(), ["out/a.txt", "out/b.txt"]);

    // Damage in the bucket that neither size nor time shows.
    let labels = server.labels("out/a.txt").expect("is there");
    let mtime = labels.metadata["mtime"].clone();
    let damaged = "CONTENTS of d/a.txt";
    server.put_labelled("out/a.txt", damaged, &[("mtime", mtime.as_str())], None);
    assert_eq!(report(&run(&volume, &server, &filtered, 0))["unchanged"].as_u64(), Some(2));
    let compared = [&filtered[..], &["--checksum"]].concat();
    let done = report(&run(&volume, &server, &compared, 0));
    assert_eq!((done["files"].as_u64(), done["unchanged"].as_u64()), (Some(1), Some(1)), "{done}");
    assert_eq!(server.get_raw("out/a.txt").expect("is there"), "contents of d/a.txt");
    let done = report(&run(&volume, &server, &compared, 0));
    assert_eq!(done["unchanged"].as_u64(), Some(2), "{done}");

    // The other way: a file that was damaged here keeps its size and time.
    run(&volume, &server, &["import", "s3://test/out", &vault, "in"], 0);
    let at = volume.at("in/b.txt");
    let was = fs::metadata(&at).expect("looks").modified().expect("a time");
    fs::write(&at, "CONTENTS of d/b.txt").expect("writes");
    File::options().write(true).open(&at).expect("opens").set_modified(was).expect("sets");
    let import = ["import", "s3://test/out", &vault, "in", "--json"];
    assert_eq!(report(&run(&volume, &server, &import, 0))["unchanged"].as_u64(), Some(2));
    let compared = [&import[..], &["--checksum"]].concat();
    let done = report(&run(&volume, &server, &compared, 0));
    assert_eq!((done["files"].as_u64(), done["unchanged"].as_u64()), (Some(1), Some(1)), "{done}");
    assert_eq!(fs::read_to_string(&at).expect("reads"), "contents of d/b.txt");

    // Deleting: only what the filters take, said first, and nothing while something fails.
    server.put_raw("out/old.txt", "old");
    server.put_raw("out/keep.bin", "not meant");
    server.put_raw("out/cache/keep.txt", "not meant");
    let delete = [&filtered[..], &["--delete"]].concat();
    let said = run(&volume, &server, &[&delete[..], &["--dry-run"]].concat(), 0).stderr;
    assert!(String::from_utf8_lossy(&said).contains("would delete out/old.txt"));
    assert!(server.get_raw("out/old.txt").is_some());
    fs::write(volume.at("d/b.txt"), "another").expect("writes");
    server.faults().add(Fault::new(FaultKind::DENIED).on(RequestKind::Put).key("b.txt"));
    let output = run(&volume, &server, &delete, 15);
    let done = report(&output);
    assert_eq!(
        (done["failed"].as_u64(), done["complete"].as_bool()),
        (Some(1), Some(false)),
        "{done}"
    );
    assert!(done["failures"][0]["name"].as_str().expect("a name").ends_with("b.txt"), "{done}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("nothing is deleted") && said.contains("hint: "), "{said}");
    assert!(server.get_raw("out/old.txt").is_some(), "something failed");
    server.faults().clear();
    let done = report(&run(&volume, &server, &delete, 0));
    assert_eq!((done["deleted"].as_u64(), done["files"].as_u64()), (Some(1), Some(1)), "{done}");
    assert_eq!(server.keys(), ["out/a.txt", "out/b.txt", "out/cache/keep.txt", "out/keep.bin"]);
}

#[test]
fn metadata_and_tags_go_in_and_out_again() {
    // Guards against what only `--metadata` keeps: headers, metadata, tags, with values that headers encode.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let metadata = [("colour", "light blue"), ("mtime", "1500000000.5")];
    server.put_labelled("in/a", "contents", &metadata, Some("team=a%2Bb+c&x=%C3%BC"));
    let vault = volume.text("vault");
    let import = ["import", "s3://test/in", &vault, "d", "--json"];
    let done = report(&run(&volume, &server, &import, 0));
    assert_eq!(done["lost"].as_object().map(|lost| lost.len()), Some(1), "counted: {done}");
    fs::remove_dir_all(volume.at("d")).expect("removes");
    let done = report(&run(&volume, &server, &[&import[..], &["--metadata"]].concat(), 0));
    assert_eq!(done["lost"].as_object().map(|lost| lost.len()), Some(0), "{done}");
    assert_eq!(xattr(&volume.at("d/a"), "user.s3.tag.x").as_deref(), Some("ü"));
    let from = format!("{vault}:d");
    let export = ["export", &from, "s3://test/out", "--plain", "--metadata", "--json"];
    run(&volume, &server, &[&export[..], &["--target-tag", "x=over"]].concat(), 0);
    let labels = server.labels("out/a").expect("is there");
    assert_eq!(labels.metadata["colour"], "light blue");
    assert_eq!(labels.metadata["mtime"], "1500000000.500000000");
    let tags = server.tags("out/a").expect("has some");
    assert!(tags.contains("team=a%2Bb+c") && tags.contains("x=over"), "{tags}");
}
