//! Nothing that a user writes can be found in the bucket, or in anything that
//! this machine keeps.

use crate::e2e;
use crate::needs_fuse;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::e2e::tools::run;
use crate::mounts::Volume;
use crate::support::s3server::{Outage, S3Server};
use walkdir::WalkDir;

/// One for each place that a user's words can be in.
const CANARIES: [&str; 8] = [
    "canaryCONTENTS-zqxj",
    "canaryNAME-zqxj",
    "canaryDIRECTORY-zqxj",
    "canaryTARGET-zqxj",
    "canaryXATTRNAME-zqxj",
    "canaryXATTRVALUE-zqxj",
    "canaryOLDNAME-zqxj",
    "canaryDELETED-zqxj",
];
/// The passphrase of `mounts` is one too.
const PASSPHRASE: &str = "correct horse battery staple";

/// How a text may lie there: as it is, in UTF-16, in hex, in base64 at any offset.
fn spellings(text: &str) -> Vec<Vec<u8>> {
    use base64::Engine as _;
    let hex = sealfs::base::hex(text.as_bytes());
    let mut all = vec![
        text.as_bytes().to_vec(),
        text.bytes().flat_map(|b| [b, 0]).collect(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
    ];
    for shift in 0..3 {
        let shifted = [vec![b'-'; shift], text.as_bytes().to_vec()].concat();
        let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(shifted);
        // The first and last characters depend on what is beside the text.
        all.push(encoded.as_bytes()[shift + 1..encoded.len() - 2].to_vec());
    }
    all
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else { return true };
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&b| b == first) {
        from += at + 1;
        if haystack[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

/// Without the pages that are all zeros: a journal is mostly room for more.
fn used(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(4096).filter(|page| page.iter().any(|b| *b != 0)).collect::<Vec<_>>().concat()
}

fn found_in(bytes: &[u8]) -> Option<&'static str> {
    let known = CANARIES.into_iter().chain([PASSPHRASE]);
    known.into_iter().find(|text| spellings(text).iter().any(|s| holds(bytes, s)))
}

/// Every name and byte below `dir`; returns the number of bytes looked at.
fn search_dir(dir: &Path) -> u64 {
    let mut bytes = 0;
    for found in WalkDir::new(dir) {
        let found = found.expect("walks");
        let path = found.path();
        let name = found_in(path.as_os_str().as_bytes());
        assert_eq!(name, None, "in the name {path:?}");
        if found.file_type().is_file() {
            // A file of the cache may be replaced while this looks.
            let contents = used(&fs::read(path).unwrap_or_default());
            assert_eq!(found_in(&contents), None, "in {path:?}");
            bytes += contents.len() as u64;
        }
    }
    bytes
}

/// Puts each canary where it belongs, in small and in large files.
fn write_canaries(v: &Volume) {
    let [contents, name, directory, target, xattr_name, xattr_value, old_name, deleted] = CANARIES;
    fs::create_dir(v.at(directory)).expect("makes a directory");
    fs::write(v.at(name), contents).expect("writes");
    fs::write(v.at(directory).join("large"), contents.repeat(60_000)).expect("writes");
    std::os::unix::fs::symlink(target, v.at("link")).expect("links");
    std::os::unix::fs::symlink(target.repeat(30), v.at("longer link")).expect("links");
    let attribute = format!("user.{xattr_name}");
    run("setfattr", &["-n", &attribute, "-v", xattr_value, name], &v.vault());
    fs::write(v.at(old_name), contents).expect("writes");
    fs::rename(v.at(old_name), v.at("renamed")).expect("renames");
    fs::write(v.at(deleted), deleted.repeat(1_000)).expect("writes");
    // Names in error paths and messages of the log.
    fs::read(v.at(&format!("{name}-absent"))).expect_err("is not there");
    fs::create_dir(v.at(name)).expect_err("exists");
}

/// Searches what this machine keeps; returns the bytes of journal and state looked at.
fn search_local(v: &Volume, what: &str) -> u64 {
    let [_, state, _] = ["cache", "state", "run"].map(|dir| {
        let bytes = search_dir(&v.path(dir));
        eprintln!("{what}: {dir}: {bytes} bytes without a canary");
        bytes
    });
    assert_eq!(found_in(v.log().as_bytes()), None, "{what}: in the log");
    state
}

#[test]
fn the_search_itself_finds_canaries() {
    // Guards against a search that finds nothing because it looks for nothing.
    use base64::Engine as _;
    for text in CANARIES {
        let base64 = base64::engine::general_purpose::STANDARD;
        for before in ["", "a", "bc", "def"] {
            let plain = format!("{before}{text}after");
            assert_eq!(found_in(plain.as_bytes()), Some(text));
            assert_eq!(found_in(base64.encode(&plain).as_bytes()), Some(text), "{before}");
        }
    }
    assert_eq!(found_in(b"canaryCONTENTS"), None);
}

#[test]
fn nothing_that_was_written_can_be_found_outside_the_mount() {
    // Guards against plaintext that reaches the bucket, the cache, the journal or the log
    // (at its most talkative): while it waits in the journal during an outage, when it has
    // been uploaded, and when it has been read again into an empty cache.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    let flags = ["--log-level", "trace", "--read-timeout", "2s"];
    v.mount(&flags);
    fs::write(v.at("first"), b"so that the root directory is known").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    server.faults().set_outage(Outage::Refused);
    write_canaries(&v);
    assert!(search_local(&v, "in the journal") > 1_000_000, "there is no journal to look at");
    server.faults().set_outage(Outage::None);
    v.ok(&["sync", &v.text("vault")]);
    fs::remove_file(v.at(CANARIES[7])).expect("unlinks");
    v.ok(&["sync", &v.text("vault")]);
    search_local(&v, "uploaded");
    v.umount();
    v.forget_local_state();
    v.mount(&flags);
    assert_eq!(fs::read_to_string(v.at(CANARIES[1])).expect("reads"), CANARIES[0]);
    assert_eq!(fs::read(v.at(CANARIES[2]).join("large")).expect("reads").len(), 19 * 60_000);
    fs::read_dir(v.vault()).expect("lists").for_each(drop);
    search_local(&v, "read again");
    v.umount();
    search_local(&v, "unmounted");
    let mut bytes = 0;
    for key in server.keys() {
        assert_eq!(found_in(key.as_bytes()), None, "in the name of an object");
        let object = server.get_raw(&key).expect("an object");
        assert_eq!(found_in(&object), None, "in {key}");
        bytes += object.len();
    }
    assert!(bytes > 1_000_000, "the bucket holds only {bytes} bytes");
}

#[test]
fn nothing_that_was_written_can_be_found_in_a_file_store() {
    // The same for file://, whose names and temporary files are another adapter's.
    needs_fuse!();
    let v = Volume::mounted();
    write_canaries(&v);
    v.ok(&["sync", &v.text("vault")]);
    search_local(&v, "mounted");
    v.umount();
    assert!(search_dir(&v.path("store")) > 1_000_000);
}
