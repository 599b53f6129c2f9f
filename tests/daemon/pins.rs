//! What is pinned into the cache of this machine: there without a store, whatever else was read.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::e2e::{self, drop_pages, noise};
use crate::mounts::{Volume, wait_at_most};
use crate::needs_fuse;
use crate::support::s3server::{Outage, S3Server};

/// What a pass may take beside everything else that this machine does.
const PASS_MAX: Duration = Duration::from_secs(120);
/// Reads that need the store fail soon.
const FLAGS: [&str; 4] = ["--read-timeout", "5s", "--cache-size", "24M"];

fn is_here(v: &Volume) -> bool {
    let pinned = v.status("pinned");
    pinned["revision"] == pinned["done_revision"]
        && pinned["missing_bytes"] == 0
        && pinned["failed"].is_null()
}

fn wait_until_here(v: &Volume) {
    wait_at_most(PASS_MAX, "everything pinned is here", || is_here(v));
}

/// Files of which some lie in one segment, some fill several.
fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("deep/er")).expect("makes directories");
    for n in 0..30u64 {
        let at = if n % 3 == 0 { dir.join("deep/er") } else { dir.to_owned() };
        fs::write(at.join(format!("secret-name-{n}")), noise(n, 20_000)).expect("writes");
    }
    fs::write(dir.join("deep/large"), noise(100, 4 << 20)).expect("writes");
    fs::hard_link(dir.join("secret-name-1"), dir.join("deep/linked")).expect("links");
}

/// What a traveller does: list all of it, read all of it, copy all of it.
fn use_all(dir: &Path) {
    let out = tempfile::tempdir().expect("a directory");
    let shown = dir.display();
    let script = format!(
        "ls -lR {shown} >/dev/null && find {shown} -type f -exec cat {{}} + >/dev/null && \
         cp -a {shown} {}",
        out.path().display()
    );
    let ran = Command::new("timeout").args(["100", "sh", "-c", &script]).output().expect("runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let copy = out.path().join(dir.file_name().expect("a name"));
    for n in 0..30u64 {
        let at = if n % 3 == 0 { copy.join("deep/er") } else { copy.clone() };
        let read = fs::read(at.join(format!("secret-name-{n}"))).expect("copied");
        assert!(read == noise(n, 20_000), "file {n}");
    }
    assert!(fs::read(copy.join("deep/large")).expect("copied") == noise(100, 4 << 20));
}

#[test]
fn what_is_pinned_is_there_without_a_store_whatever_else_was_read() {
    // Guards against a journey with half of what was pinned: read by a machine that had nothing, pushed
    // out by other reads, forgotten by a remount, or written after the pin.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&FLAGS);
    fill(&v.at("trip"));
    for n in 0..4 {
        fs::write(v.at(&format!("other{n}")), noise(1000 + n, 7 << 20)).expect("writes");
    }
    v.umount();
    v.forget_local_state();
    v.mount(&FLAGS);
    let trip = v.at("trip").display().to_string();
    let said = v.ok(&["warm", "--pin", &trip]);
    assert!(said.contains("/trip: ") && said.contains("in 32 files"), "{said}");
    let status = v.ok(&["status", &v.text("vault")]);
    assert!(status.contains("pinned    /trip: "), "{status}");
    let pin = v.status("pinned")["pins"][0].clone();
    assert_eq!((&pin["files"], &pin["missing_bytes"]), (&32.into(), &0.into()), "{pin}");
    // Remembered, and nothing in clear.
    v.umount();
    v.mount(&FLAGS);
    for n in 0..4 {
        assert!(fs::read(v.at(&format!("other{n}"))).expect("reads") == noise(1000 + n, 7 << 20));
    }
    fs::write(v.at("trip/later"), noise(7, 300_000)).expect("writes");
    fs::write(v.at("trip/secret-name-2"), noise(2, 20_000)).expect("writes it again");
    v.ok(&["sync", &v.text("vault")]);
    wait_at_most(PASS_MAX, "what was written counts", || {
        v.status("pinned")["pins"][0]["files"] == 33 && is_here(&v)
    });
    for dir in ["state", "cache"] {
        for entry in walkdir::WalkDir::new(v.path(dir)) {
            let entry = entry.expect("lists");
            if entry.file_type().is_file() {
                let bytes = fs::read(entry.path()).expect("reads");
                let leaks = |name: &[u8]| bytes.windows(name.len()).any(|part| part == name);
                assert!(!leaks(b"secret-name") && !leaks(b"trip"), "{}", entry.path().display());
            }
        }
    }
    server.faults().set_outage(Outage::Refused);
    use_all(&v.at("trip"));
    drop_pages(&v.at("trip/later"));
    assert!(fs::read(v.at("trip/later")).expect("reads") == noise(7, 300_000));
    // There was no room for all of the others beside it.
    assert!(v.status("cache_bytes").as_u64() <= Some(24 << 20), "{}", v.status("cache_bytes"));
    server.faults().set_outage(Outage::None);
    wait_at_most(PASS_MAX, "online again", || v.status("state") == "online");
    v.umount();
}

#[test]
fn pins_have_a_limit_and_come_back_from_a_damaged_cache() {
    // Guards against a cache that silently keeps a part, and against a pin that trusts its files.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&FLAGS);
    fill(&v.at("trip"));
    fs::write(v.at("huge"), noise(1, 23 << 20)).expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    let (trip, huge) = (v.text("vault/trip"), v.text("vault/huge"));
    let said = v.fails(&["warm", "--pin", &trip, &huge], 1);
    assert!(said.contains("nothing is pinned") && said.contains("cache-size="), "{said}");
    assert_eq!(v.status("pinned")["pins"], serde_json::json!([]));
    for (path, part) in [("vault/none", "no /none"), ("vault/.snapshots/x/y", "snapshot")] {
        let output = v.run(&["warm", "--pin", &v.text(path)]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{path}: {said}");
    }
    let said = v.fails(&["warm", "--unpin", &trip], 1);
    assert!(said.contains("/trip is not pinned"), "{said}");
    v.fails(&["warm", "--pin", &v.text("passphrase")], 9);
    v.ok(&["warm", "--pin", &trip]);
    wait_until_here(&v);
    // Files deleted under a live mount: the same command looks again.
    let files = || {
        let files = walkdir::WalkDir::new(v.path("cache")).into_iter().filter_map(Result::ok);
        files.filter(|f| f.file_type().is_file() && f.file_name().len() == 30).collect::<Vec<_>>()
    };
    assert!(!files().is_empty());
    files().iter().for_each(|file| fs::remove_file(file.path()).expect("deletes"));
    v.ok(&["warm", "--pin", &trip]);
    wait_until_here(&v);
    // Damaged ones: the next mount looks at all of them.
    v.umount();
    for file in files() {
        let mut bytes = fs::read(file.path()).expect("reads");
        for at in (5000..bytes.len()).step_by(60_000) {
            bytes[at] ^= 1;
        }
        fs::write(file.path(), bytes).expect("writes");
    }
    v.mount(&FLAGS);
    wait_until_here(&v);
    server.faults().set_outage(Outage::Refused);
    use_all(&v.at("trip"));
    server.faults().set_outage(Outage::None);
    // Too small a cache keeps what it can, and says so.
    v.ok(&["set", &v.text("vault"), "cache-size=5M"]);
    wait_at_most(PASS_MAX, "a warning", || {
        let warnings = v.status("warnings").to_string();
        warnings.contains("do not fit into the cache") && warnings.contains("cache-size=")
    });
    assert!(v.status("cache_bytes").as_u64() <= Some(5 << 20), "{}", v.status("cache_bytes"));
    v.ok(&["set", &v.text("vault"), "cache-size=24M"]);
    wait_at_most(PASS_MAX, "all of it again", || {
        v.status("pinned")["pins"][0]["left_out_bytes"] == 0 && is_here(&v)
    });
    let said = v.ok(&["warm", "--unpin", &v.text("vault")]);
    assert!(said.contains("nothing is pinned any more"), "{said}");
    v.umount();
}
