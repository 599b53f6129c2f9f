//! Remounts, by every way there is: what a mount refuses it goes on refusing.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use super::{sh, sh_as};
use crate::mounts::{Volume, wait_until};
use crate::needs_fuse;
use crate::suites::{Stand, needs_root};

const NOBODY: u32 = 65_534;

/// The options of the mount on `point` and of its file system, as the kernel has them.
fn in_force(point: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the kernel's table");
    let at = point.to_str().expect("text");
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(at));
    let line = line.unwrap_or_else(|| panic!("{at} is mounted"));
    let (mount, system) = line.split_once(" - ").expect("proc_pid_mountinfo(5)");
    let options = [mount.split(' ').nth(5), system.split(' ').nth(2)];
    options.iter().flatten().flat_map(|list| list.split(',')).map(str::to_owned).collect()
}

fn comes_to_refuse(point: &Path, wanted: &[&str], after: &str) {
    wait_until(&format!("{wanted:?} after {after}"), || {
        let options = in_force(point);
        wanted.iter().all(|wanted| options.iter().any(|option| option == wanted))
    });
}

/// mount(2) with these flags and nothing else.
fn remount(point: &Path, flags: libc::c_ulong) {
    let path = CString::new(point.as_os_str().as_bytes()).expect("no NUL");
    let none = std::ptr::null();
    let flags = libc::MS_REMOUNT | flags;
    // SAFETY: a NUL-terminated string, and null pointers where they are allowed.
    let rc = unsafe { libc::mount(none, path.as_ptr(), none, flags, none.cast()) };
    assert_eq!(rc, 0, "{}", io::Error::last_os_error());
}

/// Every way to remount `point` that names none of the options in question, or their opposite.
fn ways(point: &Path) -> Vec<(String, Box<dyn Fn()>)> {
    let mut ways: Vec<(String, Box<dyn Fn()>)> = Vec::new();
    let text = point.display().to_string();
    for list in ["remount,rw", "remount,suid,dev,exec,rw", "remount,bind", "remount,bind,suid,dev"]
    {
        let script = format!("mount -i -o {list} {text}");
        ways.push((script.clone(), Box::new(move || drop(sh(Path::new("/"), &script).unwrap()))));
    }
    let script = format!("busybox mount -o remount,rw {text}");
    if sh(Path::new("/"), "busybox true").is_ok() {
        ways.push((script.clone(), Box::new(move || drop(sh(Path::new("/"), &script).unwrap()))));
    } else {
        eprintln!("without busybox (scripts/test installs it)");
    }
    for (name, flags) in [("MS_REMOUNT", 0), ("MS_REMOUNT|MS_BIND", libc::MS_BIND)] {
        let point = point.to_owned();
        ways.push((name.into(), Box::new(move || remount(&point, flags))));
    }
    ways
}

/// `DIR/id`, a program with the power of root if it has any.
fn program(dir: &Path) {
    sh(dir, "cp /usr/bin/id id; chown 0:0 id; chmod 4755 id").expect("root may");
}

fn user_of_program(dir: &Path) -> String {
    sh_as(NOBODY, "", dir, "./id -u").expect("runs").trim().to_owned()
}

#[test]
fn a_remount_gives_no_power_that_the_mount_refused() {
    // Guards against `mount -o remount,ro` and back, after which a set-user-id program that
    // somebody brought along in the volume is root: Linux forgets what a remount does not name.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let stand = Stand::new();
    let vault = stand.volume.vault();
    program(&vault);
    assert_eq!(user_of_program(&vault), NOBODY.to_string());
    remount(&vault, libc::MS_RDONLY);
    for (name, remount) in ways(&vault) {
        remount();
        comes_to_refuse(&vault, &["rw", "nosuid", "nodev"], &name);
        assert_eq!(user_of_program(&vault), NOBODY.to_string(), "{name}");
    }
    // What was not refused stays as whoever remounts wants it.
    remount(&vault, libc::MS_RDONLY | libc::MS_NOEXEC);
    comes_to_refuse(&vault, &["ro", "noexec", "nosuid", "nodev"], "a remount");
    remount(&vault, 0);
    comes_to_refuse(&vault, &["rw", "nosuid", "nodev"], "a remount");
    assert!(!in_force(&vault).contains(&"noexec".to_owned()));

    // A bind mount is another way to the same files.
    let other = stand.volume.path("other");
    fs::create_dir(&other).expect("makes");
    let bind = format!("mount --bind {} {}", vault.display(), other.display());
    sh(Path::new("/"), &bind).expect("binds");
    for (name, remount) in ways(&other) {
        remount();
        comes_to_refuse(&other, &["nosuid", "nodev"], &name);
    }
    sh(Path::new("/"), &format!("umount {}", other.display())).expect("unmounts");
    stand.close();
}

#[test]
fn a_mount_that_only_reads_cannot_be_remounted_to_write() {
    // Guards against a follower that looks writable, and against a mount with every refusal there
    // is that loses one of them.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let volume = Volume::create();
    volume.mount(&["--read-only", "-o", "noexec,sync"]);
    let vault = volume.vault();
    for (name, remount) in ways(&vault) {
        remount();
        comes_to_refuse(&vault, &["ro", "nosuid", "nodev", "noexec", "sync"], &name);
    }
    let error = fs::write(vault.join("f"), "x").expect_err("only reads");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    volume.umount();
}

#[test]
fn a_mount_with_suid_keeps_it_and_follows_its_remounts() {
    // Guards against refusals that nobody asked for.
    needs_fuse!();
    if needs_root() {
        return;
    }
    let volume = Volume::create();
    sh(&volume.path("."), "chmod 755 .").expect("own directory");
    volume.mount(&["-o", "suid,dev"]);
    let vault = volume.vault();
    program(&vault);
    assert_eq!(user_of_program(&vault), "0");
    remount(&vault, libc::MS_RDONLY | libc::MS_NOSUID);
    assert_eq!(user_of_program(&vault), NOBODY.to_string());
    remount(&vault, 0);
    assert_eq!(user_of_program(&vault), "0");
    volume.umount();
}

#[test]
fn a_user_s_mount_gives_no_power_though_its_daemon_can_put_nothing_back() {
    // Guards against a program that is root on a user's mount once root has remounted it: only the
    // daemon is left to refuse, by what it answers, for what the kernel knows already as well.
    needs_fuse!();
    if needs_root() {
        return;
    }
    if sh_as(NOBODY, "", Path::new("/"), "test -w /dev/fuse").is_err() {
        eprintln!("SKIPPED: /dev/fuse is not for everybody here (chmod 666 /dev/fuse)");
        return;
    }
    let volume = Volume::create();
    volume.mount(&[]);
    program(&volume.vault());
    let device = "mknod null c 1 3; chmod 666 null";
    sh(&volume.vault(), device).expect("root may");
    volume.umount();
    let user = format!("chmod 755 .; rm -rf run; mkdir run; chown -R {NOBODY}:{NOBODY} .");
    sh(&volume.path("."), &user).expect("root may");
    let as_user = |args: &[&str]| {
        let plain = volume.command(args);
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
        command.args(["--clear-groups", "--"]).arg(plain.get_program()).args(plain.get_args());
        command.env("SEALFS_RUNTIME_DIR", volume.path("run")).env("HOME", volume.path("."));
        let output = command.output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}{}", volume.log());
    };
    let args = volume.mount_args(&[]);
    as_user(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let vault = volume.vault();
    // Root cannot even go there.
    let inside = |script: &str| {
        let script = format!("cd {} && {script}", vault.display());
        sh_as(NOBODY, "", Path::new("/"), &script).expect("runs").trim().to_owned()
    };
    let mode = |name: &str| inside(&format!("stat -c %a {name}"));
    assert_eq!((mode("id"), mode("null")), ("4755".into(), "666".into()), "modes are shown");
    assert_eq!(inside("./id -u"), NOBODY.to_string());
    remount(&vault, 0);
    wait_until("power is withheld", || mode("id") == "755" && mode("null") == "0");
    assert_eq!(inside("./id -u"), NOBODY.to_string());
    assert!(volume.log().contains("mount -o remount,nosuid,nodev"), "{}", volume.log());
    remount(&vault, libc::MS_NOSUID | libc::MS_NODEV);
    wait_until("modes are shown again", || mode("id") == "4755" && mode("null") == "666");
    as_user(&["umount", &volume.text("vault")]);
}

#[test]
fn the_mount_helper_names_what_is_in_force_when_it_remounts() {
    // Guards against the moment between a remount by mount(8) and the daemon that puts back what
    // it left out: with the helper there is none. Tried on a tmpfs, which nobody looks after.
    if needs_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mount.fuse.sealfs");
    for name in ["plain", "two words", "back\\slash"] {
        let point = dir.path().join(name);
        fs::create_dir(&point).expect("makes");
        let run = |command: &mut Command| {
            let output = command.output().expect("runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {said}");
        };
        let flags = "ro,nosuid,nodev,noexec,noatime";
        run(Command::new("mount").args(["-t", "tmpfs", "-o", flags, "none"]).arg(&point));
        let remounted = |list: &str| {
            run(Command::new("sh").arg(&helper).arg("store").arg(&point).args(["-o", list]));
            let options = Command::new("findmnt").args(["-no", "OPTIONS"]).arg(&point).output();
            String::from_utf8_lossy(&options.expect("runs").stdout).into_owned()
        };
        let options = remounted("rw,remount");
        for option in ["rw", "nosuid", "nodev", "noexec", "noatime"] {
            assert!(options.contains(option), "{name}: {options}");
        }
        let options = remounted("remount,suid");
        assert!(!options.contains("nosuid") && options.contains("nodev"), "{name}: {options}");
        run(Command::new("umount").arg(&point));
    }
}
