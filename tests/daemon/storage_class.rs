//! The storage class of a volume's segments: asked for on segments alone, remembered, and looked at, since
//! no answer to a PUT names it.

use std::fs;

use crate::e2e::noise;
use crate::mounts::{Remote, Volume};
use crate::needs_fuse;
use crate::support::s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

fn bare(server: &S3Server) -> Volume {
    Volume::bare_on(Some(Remote::s3(&server.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY)))
}

fn init(v: &Volume, class: &str) -> Vec<String> {
    let (url, pass) = (v.url(), v.text("passphrase"));
    let args =
        ["init", &url, "--passphrase-file", &pass, "--no-recovery", "--storage-class", class];
    args.map(str::to_owned).to_vec()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// How many segments are in each class, by its name.
fn segments_in(server: &S3Server, class: Option<&str>) -> usize {
    let keys = server.keys().into_iter();
    let segments = keys.filter(|key| key.starts_with("data/seg/"));
    segments.filter(|key| server.storage_class(key).as_deref() == class).count()
}

#[test]
fn segments_and_nothing_else_go_into_the_class_of_the_volume() {
    // Guards against a class that a mount forgets; against metadata in one that charges for a month for
    // each; and against a change that the mount, a migration or a rekey does not follow.
    needs_fuse!();
    let server = S3Server::start();
    let v = bare(&server);
    v.ok(&words(&init(&v, "glacier-ir")));
    let vault = v.text("vault");
    v.mount(&[]);
    fs::write(v.at("a"), noise(1, 3 << 20)).expect("writes");
    v.ok(&["sync", &vault]);
    assert_eq!(v.status("storage_class"), "GLACIER_IR");
    assert_eq!(v.status("storage_class_applied"), serde_json::Value::Null);
    assert!(segments_in(&server, Some("GLACIER_IR")) > 0 && segments_in(&server, None) == 0);
    let other: Vec<_> =
        server.keys().into_iter().filter(|key| !key.starts_with("data/seg/")).collect();
    assert!(other.len() > 3, "{other:?}");
    for key in other {
        assert_eq!(server.storage_class(&key), None, "{key}");
    }
    assert_eq!(v.ok(&["storage-class", &vault, "standard_ia"]), "STANDARD_IA\n");
    fs::write(v.at("b"), noise(2, 3 << 20)).expect("writes");
    v.ok(&["sync", &vault]);
    let old = segments_in(&server, Some("GLACIER_IR"));
    assert!(segments_in(&server, Some("STANDARD_IA")) > 0 && old > 0);
    v.umount();

    // What is encrypted again on the server stays in its class; the audit shows both.
    let (url, pass, state) = (v.url(), v.text("passphrase"), v.text("state"));
    let at = ["--passphrase-file", &pass, "--state-dir", &state];
    v.ok(&["sse", "migrate", &url, "--passphrase-file", &pass, "--to", "AES256"]);
    assert_eq!(segments_in(&server, Some("GLACIER_IR")), old);
    let audited = v.ok(&["sse", "audit", &url, "--passphrase-file", &pass]);
    for class in ["GLACIER_IR", "STANDARD_IA", "STANDARD "] {
        assert!(audited.contains(class), "{class} in {audited}");
    }
    // What is sealed again goes where the volume puts segments now.
    v.ok(&[&["storage-class", &url, "STANDARD"], &at[..]].concat());
    let rekeyed = v.run(&[&["key", "rekey", &url, "--no-wait"], &at[..]].concat());
    assert!(matches!(rekeyed.status.code(), Some(0 | 13)), "{rekeyed:?}"); // the log is too young
    assert_eq!(
        segments_in(&server, Some("GLACIER_IR")) + segments_in(&server, Some("STANDARD_IA")),
        0
    );
    v.mount(&[]);
    assert_eq!(fs::read(v.at("a")).expect("reads"), noise(1, 3 << 20));
    assert_eq!(v.ok(&["storage-class", &vault]), "STANDARD\n");
    v.umount();
}

#[test]
fn a_class_that_is_not_applied_or_cannot_be_read_is_refused() {
    // Guards against a volume whose data must be restored for twelve hours before a read, and against one
    // that is thought to be cheap and is not.
    needs_fuse!();
    let server = S3Server::start();
    let v = bare(&server);
    for archive in ["GLACIER", "deep_archive"] {
        let said = v.fails(&words(&init(&v, archive)), 2);
        assert!(said.contains("restored") && said.contains("GLACIER_IR"), "{said}");
    }
    server.behave(|b| b.refuses_storage_class = Some("ONEZONE_IA"));
    let said = v.fails(&words(&init(&v, "ONEZONE_IA")), 5);
    assert!(said.contains("ONEZONE_IA") && said.contains("hint:"), "{said}");
    server.behave(|b| b.ignores_storage_class = true);
    let said = v.fails(&words(&init(&v, "STANDARD_IA")), 5);
    assert!(said.contains("puts objects into STANDARD"), "{said}");
    assert_eq!(server.keys(), Vec::<String>::new(), "nothing was made");
    server.behave(|b| b.ignores_storage_class = false);
    v.ok(&words(&init(&v, "STANDARD_IA")));
    v.mount(&[]);
    let vault = v.text("vault");
    let said = v.fails(&["storage-class", &vault, "ONEZONE_IA"], 5);
    assert!(said.contains("ONEZONE_IA"), "{said}");
    assert_eq!(v.ok(&["storage-class", &vault]), "STANDARD_IA\n");
    // A server that changes its mind is noticed with the first segment.
    server.behave(|b| b.ignores_storage_class = true);
    fs::write(v.at("a"), noise(1, 3 << 20)).expect("writes");
    v.ok(&["sync", &vault]);
    assert_eq!(v.status("storage_class_applied"), "STANDARD");
    let said = v.ok(&["storage-class", &vault]);
    assert!(said.contains("puts segments into STANDARD"), "{said}");
    v.umount();
    // A directory has none.
    let local = Volume::create();
    let (url, pass, state) = (local.url(), local.text("passphrase"), local.text("state"));
    let at = ["--passphrase-file", &pass, "--state-dir", &state];
    let said = local.fails(&[&["storage-class", &url, "GLACIER_IR"], &at[..]].concat(), 5);
    assert!(said.contains("has no storage classes"), "{said}");
}
