//! Moving trees onto a mount and back: rsync and tar, with everything that is odd about files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::script;
use crate::e2e::attributes;
use crate::e2e::manifest::Manifest;
use crate::suites::Stand;
use crate::{e2e, needs_fuse};

/// A tree with every oddity, on the local disk.
fn odd(dir: &Path) -> Manifest {
    attributes::make(&dir.join("odd"));
    // Its 6 GB of zeros are read often enough elsewhere; here they would be eight times.
    let sparse = File::create(dir.join("odd/sparse")).expect("cuts");
    sparse.write_all_at(b"middle", 10_000_000).expect("writes");
    sparse.set_len(20_000_000).expect("grows");
    // rsync takes times of directories in the same second for equal.
    std::thread::sleep(Duration::from_millis(1_100));
    Manifest::of(&dir.join("odd"))
}

#[test]
fn rsync_carries_a_tree_there_and_back_and_finds_nothing_to_do_twice() {
    // Guards against links, owners, ACLs, xattrs, devices and times that do not survive the way
    // onto the mount, the bucket, or the way back.
    needs_fuse!();
    let stand = Stand::new();
    let (v, local) = (&stand.volume, tempfile::tempdir().expect("a temporary directory"));
    let was = odd(local.path()).copied();
    let rsync = |from: &Path, to: &Path| {
        let (from, to) = (from.display(), to.display());
        script(local.path(), &format!("rsync -aHAXSi --numeric-ids --checksum {from}/ {to}/"))
    };
    let (there, back) = (v.at("there"), local.path().join("back"));
    rsync(&local.path().join("odd"), &there);
    was.assert_same(&Manifest::of(&there).copied(), "on the mount");
    assert_eq!(rsync(&local.path().join("odd"), &there), "", "a second time");
    stand.move_elsewhere();
    rsync(&there, &back);
    was.assert_same(&Manifest::of(&back).copied(), "back on the disk");
    assert_eq!(rsync(&back, &there), "", "and there again");
    stand.close();
}

#[test]
fn tar_packs_on_the_mount_what_it_unpacked_there() {
    // Guards against tar's way of asking: openat relative to directories, holes by SEEK_DATA,
    // times and owners set after the fact, hard links by inode number.
    needs_fuse!();
    let stand = Stand::new();
    let (v, local) = (&stand.volume, tempfile::tempdir().expect("a temporary directory"));
    let was = odd(local.path()).copied();
    let tar = "tar --format=posix --acls --xattrs '--xattrs-include=*' --numeric-owner -S";
    let (here, vault) = (local.path().display(), v.vault());
    script(&vault, &format!("{tar} -C {here} -cf - odd | {tar} -xpf -"));
    was.assert_same(&Manifest::of(&v.at("odd")).copied(), "unpacked on the mount");
    script(
        &vault,
        &format!("{tar} -cf odd.tar odd; mkdir {here}/back; {tar} -C {here}/back -xpf odd.tar"),
    );
    let back = Manifest::of(&local.path().join("back/odd")).copied();
    was.assert_same(&back, "packed on the mount");
    script(&vault, &format!("{tar} -df odd.tar"));
    assert!(e2e::is_root() || was.0.len() > 10);
    stand.close();
}
