//! `sealfs du`: what trees take, by directory, age and snapshot.

use std::fs;
use std::process::Command;

use crate::e2e::noise;
use crate::mounts::Volume;
use crate::needs_fuse;

fn report(v: &Volume, args: &[&str]) -> serde_json::Value {
    let said = v.ok(&[&["du", "--json"], args].concat());
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

fn of_dir<'a>(report: &'a serde_json::Value, path: &str) -> &'a serde_json::Value {
    let dirs = report["dirs"].as_array().expect("a list");
    dirs.iter().find(|dir| dir["path"] == path).unwrap_or_else(|| panic!("{path} in {report}"))
}

#[test]
fn du_counts_links_and_shared_bytes_once_and_tells_what_only_snapshots_hold() {
    // Guards against copies and links that are counted as if they took room, against sizes where the
    // bucket stores less or nothing, and against room that nobody is named for once a file is deleted.
    needs_fuse!();
    let v = Volume::create();
    v.mount(&["--compress", "zstd"]);
    fs::create_dir_all(v.at("photos/2020/raw")).expect("makes directories");
    fs::create_dir(v.at("text")).expect("makes a directory");
    fs::write(v.at("photos/2020/raw/a"), noise(1, 300_000)).expect("writes");
    fs::write(v.at("photos/2020/b"), noise(2, 200_000)).expect("writes");
    fs::hard_link(v.at("photos/2020/b"), v.at("photos/again")).expect("links");
    fs::write(v.at("text/log"), vec![b'x'; 2_000_000]).expect("writes");
    fs::File::create(v.at("text/hole")).expect("creates").set_len(5_000_000).expect("grows");
    std::os::unix::fs::symlink("log", v.at("text/link")).expect("links");
    v.ok(&["sync", &v.text("vault")]);
    // Shares its bytes; and one of long ago.
    let copied = Command::new("cp")
        .args(["--reflink=auto", &v.text("vault/photos/2020/raw/a"), &v.text("vault/photos/copy")])
        .status();
    assert!(copied.expect("cp runs").success());
    let old = Command::new("touch").args(["-d", "2001-02-03", &v.text("vault/text/log")]).status();
    assert!(old.expect("touch runs").success());
    v.ok(&["sync", &v.text("vault")]);
    let all = report(&v, &["-d", "3", &v.text("vault")]);
    let total = &all["total"];
    assert_eq!(
        (&total["files"], &total["dirs"], &total["others"]),
        (&5.into(), &5.into(), &1.into())
    );
    let apparent = 300_000 + 200_000 + 2_000_000 + 5_000_000 + 300_000;
    assert_eq!(total["apparent_bytes"], apparent, "{all}");
    assert_eq!((&total["bucket_bytes"], &total["journal_bytes"]), (&2_500_000.into(), &0.into()));
    let stored = total["stored_bytes"].as_u64().expect("a number");
    assert!((500_000..700_000).contains(&stored), "{stored}");
    assert_eq!(of_dir(&all, "text")["bucket_bytes"], 2_000_000);
    assert_eq!(of_dir(&all, "photos")["bucket_bytes"], 500_000);
    assert_eq!(of_dir(&all, "photos/2020/raw")["files"], 1);
    assert_eq!(all["is_too_much"], false);
    let first = all["dirs"][1]["path"].as_str().expect("a path");
    assert_eq!(first, "photos", "what takes most comes first, behind all of it");
    let ages = all["ages"].as_array().expect("a list");
    assert_eq!(ages.last().expect("one")["apparent_bytes"], 2_000_000, "{all}");
    assert_eq!(ages.iter().map(|age| age["files"].as_u64().expect("n")).sum::<u64>(), 5);
    // Depth, a directory below, a file, and what is only in the journal.
    let below = report(&v, &["-d", "0", &v.text("vault/photos")]);
    assert_eq!(
        (below["dirs"].as_array().map(Vec::len), &below["total"]["files"]),
        (Some(1), &3.into())
    );
    assert_eq!(report(&v, &[&v.text("vault/text/log")])["total"]["bucket_bytes"], 2_000_000);
    // For people: as wide as a terminal.
    let text = v.ok(&["du", "--by-age", "--snapshots", &v.text("vault")]);
    for part in ["directory\n", " photos\n", " total\n", "longer ago", "snapshot\n"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    v.fails(&["du", &v.text("vault/none")], 9);
    v.fails(&["du", &v.text("vault"), "none"], 1);
    v.fails(&["du", &v.text("vault"), ".snapshots"], 2);

    v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
    fs::remove_file(v.at("photos/2020/raw/a")).expect("deletes");
    fs::remove_file(v.at("photos/copy")).expect("deletes");
    fs::remove_file(v.at("photos/2020/b")).expect("deletes a name");
    fs::remove_file(v.at("photos/again")).expect("deletes the last one");
    fs::remove_file(v.at("text/log")).expect("deletes");
    v.ok(&["sync", &v.text("vault")]);
    let past = report(&v, &["--snapshots", &v.text("vault"), "photos"]);
    assert_eq!(past["total"]["bucket_bytes"], 0, "{past}");
    let monday = &past["snapshots"][0];
    assert_eq!((&monday["name"], &monday["bucket_bytes"]), (&"monday".into(), &500_000.into()));
    assert_eq!(report(&v, &[&v.text("vault/.snapshots/monday/photos")])["total"]["files"], 3);
    v.umount();

    // The same of a store that nobody has mounted.
    let secret = v.text("passphrase");
    let unmounted = report(
        &v,
        &[
            "--snapshots",
            &v.url(),
            "photos",
            "--passphrase-file",
            &secret,
            "--state-dir",
            &v.text("state"),
        ],
    );
    assert_eq!(unmounted["snapshots"][0]["bucket_bytes"], 500_000, "{unmounted}");
    let only = unmounted["only_snapshots_bytes"].as_u64().expect("a number");
    assert!(only <= 510_000, "{only}");
}
