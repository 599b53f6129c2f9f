//! Who may do what: set-id bits, capabilities, sticky directories, groups, ACLs. As root, who
//! becomes other users for it.

use std::path::Path;

use super::{sh, sh_as};
use crate::needs_fuse;
use crate::suites::{Stand, needs_root};

/// Users without a name, so that no group of theirs is anywhere.
const ANN: u32 = 41_001;
const BOB: u32 = 41_002;
/// A group of neither.
const TEAM: u32 = 41_100;

fn mode(dir: &Path, name: &str) -> String {
    sh(dir, &format!("stat -c %a {name}")).expect("stat")
}

#[test]
fn names_in_a_sticky_directory_are_removed_by_their_owner_only() {
    // Guards against a shared directory (like /tmp) in which users delete or rename over files
    // of others.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let stand = Stand::new();
    let dir = stand.volume.vault();
    sh(&dir, "mkdir t plain; chmod 1777 t; chmod 777 plain").expect("root may");
    for (user, name) in [(ANN, "ann"), (BOB, "bob")] {
        let script =
            format!("for d in t plain; do echo {name} > $d/{name}; mkdir $d/{name}.d; done");
        sh_as(user, "", &dir, &script).expect("anyone may make names");
    }
    for script in ["rm -f t/ann", "mv t/ann t/stolen", "mv t/bob t/ann", "rmdir t/ann.d"] {
        let error = sh_as(BOB, "", &dir, script).expect_err(script);
        assert!(error.contains("Operation not permitted"), "{script}: {error}");
    }
    sh_as(BOB, "", &dir, "rm t/bob; rmdir t/bob.d; rm -f plain/ann")
        .expect("his own, or not sticky");
    sh_as(ANN, "", &dir, "mv t/ann t/renamed; rm t/renamed").expect("her own");
    sh(&dir, &format!("chown {BOB} t; echo ann > t/ann; chown {ANN} t/ann")).expect("root may");
    sh_as(BOB, "", &dir, "rm -f t/ann").expect("the owner of the directory may");
    stand.close();
}

#[test]
fn supplementary_groups_count_for_access_and_for_chgrp() {
    // Guards against a daemon that knows only the first group of the caller: FUSE sends no more.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let stand = Stand::new();
    let dir = stand.volume.vault();
    let team = TEAM.to_string();
    sh(
        &dir,
        &format!("echo x > f; chgrp {TEAM} f; chmod 640 f; mkdir d; chgrp {TEAM} d; chmod 2770 d"),
    )
    .expect("root may");
    assert_eq!(sh_as(ANN, &team, &dir, "cat f"), Ok("x".into()));
    assert!(sh_as(BOB, "", &dir, "cat f").is_err(), "not of the group");
    assert!(sh_as(ANN, &team, &dir, "echo y >> f").is_err(), "the group may only read");
    // A directory with set-group-id gives its group to what is made in it, and the bit to
    // directories.
    sh_as(ANN, &team, &dir, "umask 007; echo y > d/g; mkdir d/e; cp d/g d/e/h").expect("may write");
    let made = sh(&dir, "stat -c '%g %a' d/g d/e d/e/h").expect("stat");
    assert_eq!(made, format!("{TEAM} 660\n{TEAM} 2770\n{TEAM} 660"));
    // An owner gives files to groups of hers, and to no other.
    sh_as(
        ANN,
        &team,
        &dir,
        &format!("umask 0; cd d; echo z > own; chgrp {ANN} own; chgrp {TEAM} own"),
    )
    .expect("both are hers");
    assert!(sh_as(ANN, &team, &dir, "chgrp 0 d/own").is_err());
    // Who is not in the group of a file cannot make it set-group-id: the bit is dropped.
    sh(&dir, &format!("echo p > p; chown {BOB}:{TEAM} p")).expect("root may");
    sh_as(BOB, "", &dir, "chmod 2755 p").expect("his file");
    assert_eq!(mode(&dir, "p"), "755");
    sh_as(BOB, &team, &dir, "chmod 2755 p").expect("his file");
    assert_eq!(mode(&dir, "p"), "2755");
    stand.close();
}

#[test]
fn set_id_bits_go_with_every_change_of_contents_by_another() {
    // Guards against a set-user-id program that stays one after someone else changed what it
    // does: by write, by truncation, by fallocate, by mmap, by chown.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let stand = Stand::new();
    let dir = stand.volume.vault();
    let set = |mode: &str| {
        let script = format!("rm -f p; echo program > p; chown {ANN}:{ANN} p; chmod {mode} p");
        sh(&dir, &script).expect("root may");
    };
    for change in [
        "echo x >> p",
        "truncate -s 3 p",
        "truncate -s 9000 p",
        "fallocate -l 9 p",
        ": > p",
        "dd if=/dev/zero of=p bs=4096 count=1 conv=notrunc oflag=direct status=none",
    ] {
        set("6777");
        sh_as(BOB, "", &dir, change).expect("anyone may write");
        assert_eq!(mode(&dir, "p"), "777", "{change}");
    }
    // Again on the same file: Linux remembers of a file that there was nothing to clear.
    for _ in 0..2 {
        sh(&dir, "echo x >> p; chmod 6777 p").expect("root may");
        sh_as(BOB, "", &dir, "echo x >> p").expect("anyone may write");
        assert_eq!(mode(&dir, "p"), "777", "once more");
    }
    // Without the group's execute permission the bit means locking, and stays with members.
    for (groups, kept) in [(ANN.to_string(), "2767"), (TEAM.to_string(), "767")] {
        set("2767");
        sh_as(BOB, &groups, &dir, "echo x >> p").expect("anyone may write");
        assert_eq!(mode(&dir, "p"), kept, "of group {groups}");
    }
    for chown in [format!("chown {BOB} p"), format!("chgrp {BOB} p"), format!("chown -h {ANN} p")] {
        set("6755");
        sh(&dir, &chown).expect("root may");
        assert_eq!(mode(&dir, "p"), "755", "{chown}");
    }
    sh(&dir, &format!("mkdir d; chmod 6755 d; chown {BOB} d")).expect("root may");
    assert_eq!(mode(&dir, "d"), "6755", "directories keep theirs");
    stand.close();
}

#[test]
fn file_capabilities_go_with_contents_and_owner() {
    // Guards against a program that keeps CAP_NET_RAW after it was overwritten.
    needs_fuse!();
    if needs_root() || crate::suites::tool("setcap").is_none() {
        return;
    }
    let stand = Stand::new();
    let dir = stand.volume.vault();
    let capabilities = || sh(&dir, "getcap p").expect("getcap");
    for (change, kept) in [
        ("echo x >> p", false),
        (": > p", false),
        ("truncate -s 9 p", false),
        ("chown 1 p", false),
        ("chmod 711 p", true),
        ("touch p; ln p q; rm q", true),
    ] {
        sh(&dir, "rm -f p; echo p > p; chmod 755 p; setcap cap_net_raw+ep p").expect("root may");
        assert!(capabilities().contains("cap_net_raw=ep"), "{change}");
        sh(&dir, change).expect("root may");
        assert_eq!(capabilities().contains("cap_net_raw"), kept, "{change}");
    }
    stand.move_elsewhere();
    assert!(capabilities().contains("cap_net_raw=ep"), "on another machine");
    stand.close();
}

#[test]
fn access_control_lists_are_obeyed_masked_inherited_and_kept() {
    // Guards against an ACL that is stored but not obeyed, whose mask is lost to chmod, or whose
    // default is ignored or combined with the umask.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let stand = Stand::new();
    let dir = stand.volume.vault();
    let acl = |name: &str| sh(&dir, &format!("getfacl -cpn {name}")).expect("getfacl");
    sh(&dir, &format!("echo x > f; chmod 600 f; setfacl -m u:{ANN}:rw,g:{TEAM}:r f"))
        .expect("sets");
    assert_eq!(mode(&dir, "f"), "660", "the mask shows as the group's bits");
    sh_as(ANN, "", &dir, "echo y >> f; cat f").expect("a user of the list");
    sh_as(BOB, &TEAM.to_string(), &dir, "cat f").expect("a group of the list");
    assert!(sh_as(BOB, &TEAM.to_string(), &dir, "echo z >> f").is_err());
    assert!(sh_as(BOB, "", &dir, "cat f").is_err(), "nobody of the list");
    // chmod of the group's bits is the mask, and takes from everybody on the list.
    sh(&dir, "chmod g=r f").expect("root may");
    assert!(sh_as(ANN, "", &dir, "echo y >> f").is_err());
    assert!(acl("f").contains(&format!("user:{ANN}:rw-\t#effective:r--")), "{}", acl("f"));
    sh(&dir, "chmod g=rw f").expect("root may");
    sh_as(ANN, "", &dir, "echo y >> f").expect("the list has it still");
    // A default list replaces the umask, for files and for directories all the way down.
    sh(&dir, &format!("mkdir d; setfacl -d -m u::rwx,g::r-x,o::-,u:{BOB}:rwx d")).expect("sets");
    sh(&dir, "umask 077; mkdir -p d/e/f; echo x > d/e/f/g; mkfifo d/pipe; ln -s x d/link")
        .expect("makes");
    assert_eq!(mode(&dir, "d/e/f"), "770");
    assert_eq!(mode(&dir, "d/e/f/g"), "660");
    let inherited = acl("d/e/f");
    assert!(inherited.contains(&format!("default:user:{BOB}:rwx")), "{inherited}");
    assert!(inherited.contains("default:other::---"), "{inherited}");
    assert!(!acl("d/e/f/g").contains("default"), "{}", acl("d/e/f/g"));
    sh(&dir, "chmod 711 d; chmod o+x d/e d/e/f").expect("root may");
    sh_as(BOB, "", &dir, "echo y >> d/e/f/g").expect("inherited");
    assert!(sh_as(ANN, "", &dir, "cat d/e/f/g").is_err(), "not on the list");
    let all = "f d d/e d/e/f d/e/f/g d/pipe";
    let before = acl(all);
    stand.move_elsewhere();
    assert_eq!(acl(all), before);
    sh_as(BOB, "", &dir, "cat d/e/f/g").expect("obeyed there too");
    sh(&dir, "setfacl -b f; setfacl -k d; mkdir d/new").expect("removes");
    assert!(!acl("d/new").contains(&BOB.to_string()), "{}", acl("d/new"));
    assert!(sh_as(ANN, "", &dir, "cat f").is_err());
    stand.close();
}
