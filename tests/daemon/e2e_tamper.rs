//! A second mount is refused by name of the holder, and whatever is done to
//! the bucket gives `EIO` on what depends on it and nothing else, never wrong contents.

use crate::e2e;
use crate::needs_fuse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::e2e::noise;
use crate::mounts::{Volume, wait_until};
use crate::support::s3server::S3Server;
use bytes::Bytes;

const EIO: Option<i32> = Some(libc::EIO);

fn segments(server: &S3Server) -> BTreeSet<String> {
    server.keys().into_iter().filter(|key| key.contains("/seg/")).collect()
}

/// Writes each file into its own segment; returns the segments' keys by file.
fn files_in_segments(v: &Volume, server: &S3Server, names: &[&str]) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for name in names {
        let before = segments(server);
        fs::write(v.at(name), contents(name)).expect("writes");
        v.ok(&["sync", &v.text("vault")]);
        let new: Vec<_> = segments(server).difference(&before).cloned().collect();
        let [key] = &new[..] else { panic!("{name} made segments {new:?}") };
        keys.insert((*name).to_owned(), key.clone());
    }
    keys
}

fn contents(name: &str) -> Vec<u8> {
    noise(name.bytes().map(u64::from).sum(), 400_000 + 1_000 * name.len())
}

fn forget_cache(v: &Volume) {
    fs::remove_dir_all(v.path("cache")).expect("the cache of an ended mount");
}

#[test]
fn the_holder_of_a_volume_is_named_to_a_second_mount() {
    // Guards against two writers on two machines: the second has its own cache and state, so
    // that no local lock can stop it.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&[]);
    fs::write(v.at("f"), b"the first's").expect("writes");
    fs::create_dir(v.path("second")).expect("makes a directory");
    let (vault, second) = (v.text("vault"), v.text("second"));
    let (cache, state) = (v.text("cache2"), v.text("state2"));
    let url = v.url();
    let pass = v.text("passphrase");
    let log = v.text("log2");
    let args = ["mount", &url, &second, "--passphrase-file", &pass, "--cache-dir", &cache];
    let args = [&args[..], &["--state-dir", &state, "--log-file", &log]].concat();
    let stderr = v.fails(&args, 6);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("reads");
    let holder = format!("is mounted read-write by {} (process {})", host.trim(), v.daemon());
    assert!(stderr.contains(&holder), "{stderr} does not say: {holder}");
    assert!(stderr.contains("\nhint: "), "{stderr}");
    // The first is not disturbed, and the second may read along.
    fs::write(v.at("g"), b"goes on").expect("writes");
    v.ok(&["sync", &vault]);
    v.ok(&[&args[..], &["--read-only"]].concat());
    assert_eq!(fs::read(v.path("second").join("f")).expect("reads"), b"the first's");
    v.ok(&["umount", &second]);
    v.umount();
    // Released: now the other machine may write.
    v.ok(&args);
    fs::write(v.path("second").join("h"), b"the second's").expect("writes");
    v.ok(&["umount", &second]);
}

#[test]
fn damage_gives_eio_where_it_is_and_nowhere_else() {
    // Guards against damage that spreads, is served as contents, is logged a thousand times or
    // not at all, or that makes the volume delete things. One segment for each kind of damage.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&[]);
    let names = ["flipped", "swapped", "swapped too", "truncated", "deleted", "whole", "doomed"];
    let keys = files_in_segments(&v, &server, &names);
    v.umount();
    let original: BTreeMap<String, Bytes> =
        keys.values().map(|k| (k.clone(), server.get_raw(k).expect("there"))).collect();
    assert!(server.flip_raw(&keys["flipped"], 200_000));
    let (a, b) = (&keys["swapped"], &keys["swapped too"]);
    server.put_raw(a, original[b].clone());
    server.put_raw(b, original[a].clone());
    let cut = original[&keys["truncated"]].slice(..100_000);
    server.put_raw(&keys["truncated"], cut);
    assert!(server.remove_raw(&keys["deleted"]));
    forget_cache(&v);
    v.mount(&["--read-timeout", "5s"]);
    let listed = server.keys();

    assert_eq!(fs::read_dir(v.vault()).expect("lists").count(), names.len());
    let damaged = &names[..5];
    for _ in 0..3 {
        for name in damaged {
            let error = fs::read(v.at(name)).expect_err(name);
            assert_eq!(error.raw_os_error(), EIO, "{name}: {error}");
            assert_eq!(fs::metadata(v.at(name)).expect("stats").len(), contents(name).len() as u64);
        }
        for name in &names[5..] {
            assert!(fs::read(v.at(name)).expect("reads") == contents(name), "{name}");
        }
    }
    // Only the chunk with the flipped bit is lost, with what the kernel asks for beside it.
    let file = fs::File::open(v.at("flipped")).expect("opens");
    let mut start = vec![0; 4096];
    file.read_exact_at(&mut start, 0).expect("far from the damage");
    assert!(start == contents("flipped")[..4096]);
    drop(file);
    // Work goes on, also on damaged files; deleted ones leave their segments where they are.
    fs::write(v.at("new"), b"still writable").expect("writes");
    fs::write(v.at("flipped"), b"replaced").expect("writes");
    fs::remove_file(v.at("doomed")).expect("unlinks");
    v.ok(&["sync", &v.text("vault")]);
    assert_eq!(fs::read(v.at("flipped")).expect("reads"), b"replaced");
    let warnings = v.status("warnings").to_string();
    let log = v.log();
    for name in damaged {
        let key = keys[*name].strip_prefix("data/").expect("below the prefix");
        let lines: Vec<_> = log.lines().filter(|line| line.contains(key)).collect();
        assert_eq!(lines.len(), 1, "{name}: {lines:#?}");
        assert!(lines[0].contains(" ERROR "), "{name}: {lines:#?}");
    }
    assert!(warnings.contains("damaged"), "{warnings}");
    std::thread::sleep(std::time::Duration::from_secs(3));
    let left: BTreeSet<_> = server.keys().into_iter().collect();
    let gone: Vec<_> = listed.iter().filter(|key| !left.contains(*key)).collect();
    assert!(gone.is_empty(), "deleted while there is damage: {gone:?}");
    v.umount();

    // Put right, everything reads again.
    for (key, bytes) in original {
        server.put_raw(&key, bytes);
    }
    forget_cache(&v);
    v.mount(&[]);
    for name in &names[1..6] {
        assert!(fs::read(v.at(name)).expect("reads") == contents(name), "{name}");
    }
    v.umount();
}

#[test]
fn damage_does_not_reach_the_neighbours_in_its_segment() {
    // Guards against reads that fetch more than they need (windows over small files, read-ahead
    // in large ones) and fail as a whole. One bit is flipped in a segment that many files share,
    // and one in a large file; only what lies in that sealed chunk of 16 KiB may be lost.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&["--commit-interval", "60s"]);
    let names: Vec<String> = (0..30).map(|n| format!("small {n}")).collect();
    for name in &names {
        fs::write(v.at(name), &contents(name)[..50_000]).expect("writes");
    }
    v.ok(&["sync", &v.text("vault")]);
    let [shared] = &Vec::from_iter(segments(&server))[..] else { panic!("not one segment") };
    let large = noise(99, 6 << 20);
    fs::write(v.at("large"), &large).expect("writes");
    v.umount();
    let others = segments(&server).into_iter().filter(|key| key != shared);
    let [of_large] = &Vec::from_iter(others)[..] else { panic!("not one segment") };
    assert!(server.flip_raw(shared, 700_000) && server.flip_raw(of_large, 3_000_000));
    forget_cache(&v);
    v.mount(&[]);
    let mut lost = Vec::new();
    for name in &names {
        match fs::read(v.at(name)) {
            Ok(read) => assert!(read == contents(name)[..50_000], "{name}"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), EIO, "{name}: {e}");
                lost.push(name);
            }
        }
    }
    assert!((1..=2).contains(&lost.len()), "a chunk touches two files at most: {lost:?}");
    let file = fs::File::open(v.at("large")).expect("opens");
    let mut lost = Vec::new();
    let mut page = [0; 4096];
    for at in (0..large.len()).step_by(4096) {
        match file.read_exact_at(&mut page, at as u64) {
            Ok(()) => assert!(page == large[at..at + 4096], "at {at}"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), EIO, "at {at}: {e}");
                lost.push(at);
            }
        }
    }
    assert!((1..=5).contains(&lost.len()), "a chunk touches five pages at most: {lost:?}");
    drop(file);
    v.umount();
}

/// What a user gets of a volume: everything as it was, or errors. Anything else panics.
fn everything_is_right_or_eio(root: &Path, files: &[&str], what: &str) -> usize {
    let mut errors = 0;
    let mut note = |e: std::io::Error, at: &str| {
        assert_eq!(e.raw_os_error(), EIO, "{what}: {at}: {e}");
        errors += 1;
    };
    match fs::read_dir(root).and_then(|list| list.collect::<Result<Vec<_>, _>>()) {
        Ok(list) => assert_eq!(list.len(), files.len(), "{what}: listing"),
        Err(e) => note(e, "listing"),
    }
    for name in files {
        match fs::read(root.join(name)) {
            Ok(read) => assert!(read == contents(name), "{what}: {name} has wrong contents"),
            Err(e) => note(e, name),
        }
    }
    errors
}

#[test]
fn every_object_can_be_damaged_and_nothing_is_ever_wrong() {
    // Guards against the object nobody thought of: each one in the bucket, metadata and
    // keyring included, is flipped, truncated and deleted in turn, and a machine that knows
    // the volume mounts it with an empty cache. It may refuse, or give EIO, never more or less.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&[]);
    let files = ["one", "second", "a third", "and another"];
    let keys = files_in_segments(&v, &server, &files);
    v.umount();
    let all = || -> BTreeMap<String, Bytes> {
        let one = |key: String| server.get_raw(&key).map(|bytes| (key, bytes));
        server.keys().into_iter().filter_map(one).collect()
    };
    let bucket = all();
    let copy = |from: &str, to: &str| {
        let _ = fs::remove_dir_all(v.path(to)); // it may not be there
        e2e::tools::run("cp", &["-a", from, to], &v.path("."));
    };
    copy("state", "state-kept");
    let (mut refused, mut failed, mut unharmed) = (Vec::new(), Vec::new(), Vec::new());
    for key in bucket.keys() {
        for damage in ["flip", "truncate", "delete"] {
            for key in all().keys().filter(|key| !bucket.contains_key(*key)) {
                server.remove_raw(key);
            }
            for (key, bytes) in &bucket {
                server.put_raw(key, bytes.clone());
            }
            copy("state-kept", "state");
            let _ = fs::remove_dir_all(v.path("cache")); // a refused mount leaves none
            let len = bucket[key].len();
            match damage {
                "flip" => assert!(server.flip_raw(key, len / 2)),
                "truncate" => server.put_raw(key, bucket[key].slice(..len * 2 / 3)),
                _ => assert!(server.remove_raw(key)),
            }
            let what = format!("{damage} {key}");
            let args = v.mount_args(&["--read-timeout", "2s"]);
            let mount = v.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
            if !mount.status.success() {
                let stderr = String::from_utf8_lossy(&mount.stderr).into_owned();
                assert!(stderr.starts_with("sealfs: error: "), "{what}: {stderr}");
                let status = if what == "delete data/keyring" { 5 } else { 7 };
                assert_eq!(mount.status.code(), Some(status), "{what}: {stderr}");
                let first = stderr.lines().next().unwrap_or_default().to_owned();
                if key.ends_with("/lease") {
                    // The one object that can be made again, by who knows that it may.
                    v.mount(&["--takeover"]);
                    assert_eq!(everything_is_right_or_eio(&v.vault(), &files, &what), 0);
                    v.umount();
                }
                refused.push(format!("{what}: {first}"));
                continue;
            }
            let errors = everything_is_right_or_eio(&v.vault(), &files, &what);
            if keys.values().any(|segment| segment == key) {
                assert_eq!(errors, 1, "{what}: what depends on it fails, and nothing else");
            }
            match errors {
                0 => unharmed.push(what),
                n => failed.push(format!("{what}: {n}")),
            }
            v.ok(&["umount", &v.text("vault")]);
        }
    }
    eprintln!("refused: {refused:#?}\nEIO: {failed:#?}\nunharmed: {unharmed:#?}");
    assert!(failed.len() >= 3 * files.len());
    assert!(refused.iter().any(|what| what.contains("keyring")));
}

#[test]
fn without_its_keyring_a_volume_is_refused_and_never_made_again() {
    // Guards against a deleted or exchanged keyring taken for an empty bucket: a new volume in
    // its place would make the old data unreadable for ever.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&[]);
    fs::write(v.at("f"), b"precious").expect("writes");
    v.umount();
    let keyring = server.get_raw("data/keyring").expect("there");
    assert!(server.remove_raw("data/keyring"));
    let before = server.keys();
    v.mount_fails(&[], 5);
    v.fails(&["init", &v.url(), "--passphrase-file", &v.text("passphrase")], 5);
    assert_eq!(server.keys(), before, "something was written or deleted");
    // The keyring of another volume, made with the same passphrase.
    let other = S3Server::start();
    let _made = Volume::create_on(e2e::remote(&other));
    server.put_raw("data/keyring", other.get_raw("data/keyring").expect("there"));
    let args = v.mount_args(&[]);
    let output = v.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.starts_with("sealfs: error: "), "{stderr}");
    eprintln!("another volume's keyring: {stderr}");
    server.put_raw("data/keyring", keyring);
    v.mount(&[]);
    assert_eq!(fs::read(v.at("f")).expect("reads"), b"precious");
    v.umount();
}

#[test]
fn an_old_copy_of_the_bucket_is_refused_by_a_machine_that_saw_a_newer_one() {
    // Guards against a rollback served as if it were now.
    needs_fuse!();
    let v = Volume::mounted();
    fs::write(v.at("f"), b"old").expect("writes");
    v.umount();
    e2e::tools::run("cp", &["-a", "store", "store-old"], &v.path("."));
    v.mount(&[]);
    fs::write(v.at("f"), b"new").expect("writes");
    v.umount();
    fs::remove_dir_all(v.path("store")).expect("removes");
    fs::rename(v.path("store-old"), v.path("store")).expect("renames");
    let stderr = v.mount_fails(&[], 7);
    assert!(stderr.contains("older than what this machine has seen"), "{stderr}");
    assert!(stderr.contains("--accept-rollback"), "{stderr}");
    v.mount(&["--accept-rollback=older"]);
    assert_eq!(fs::read(v.at("f")).expect("reads"), b"old");
    assert_eq!(fs::metadata(v.at("absent")).expect_err("absent").kind(), ErrorKind::NotFound);
    v.umount();
    wait_until("it is unmounted", || !v.is_mounted());
}
