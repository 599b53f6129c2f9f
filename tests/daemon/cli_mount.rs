//! The commands on a real mount over a `file://` store: from `init` to an empty machine that
//! mounts the same bucket.

use crate::mounts;
use crate::needs_fuse;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::mounts::{Holder, Service, Volume, is_alive, wait_until};

#[test]
fn what_was_written_is_there_for_a_machine_that_has_only_the_bucket() {
    // Guards against anything that lives in local state only. Everything local is thrown away
    // between the two mounts.
    needs_fuse!();
    let v = Volume::mounted();
    fs::create_dir(v.at("dir")).expect("makes a directory");
    fs::write(v.at("dir/a"), b"some text").expect("writes");
    let big: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
    fs::write(v.at("big"), &big).expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    assert_eq!(v.status("pending_bytes"), 0);
    fs::write(v.at("after the sync"), b"x").expect("writes");
    v.umount();
    assert!(!v.is_mounted());
    v.forget_local_state();
    v.mount(&[]);
    assert_eq!(fs::read(v.at("dir/a")).expect("reads"), b"some text");
    assert!(fs::read(v.at("big")).expect("reads") == big);
    assert_eq!(fs::read(v.at("after the sync")).expect("reads"), b"x");
    v.umount();
}

#[test]
fn status_says_what_a_mount_is() {
    // Guards against fields that are missing, renamed or nested.
    needs_fuse!();
    let v = Volume::mounted();
    assert_eq!(v.status("state"), "online");
    assert_eq!(v.status("store"), v.url());
    assert_eq!(v.status("mount_point"), v.text("vault"));
    assert_eq!(v.status("volume_id").as_str().map(str::len), Some(32));
    for field in ["pending_bytes", "pending_files", "uptime_secs", "resident_bytes"] {
        assert!(v.status(field).is_u64(), "{field}");
    }
    // From a directory inside, too; and for people.
    fs::create_dir(v.at("inside")).expect("makes a directory");
    let text = v.ok(&["status", &v.at("inside").display().to_string()]);
    assert!(text.contains("state     online"), "{text}");
    v.umount();
}

#[test]
fn a_second_init_and_a_wrong_passphrase_are_refused() {
    // Guards against a volume that is made over another one, and lost with its keys.
    needs_fuse!();
    let v = Volume::create();
    v.fails(&["init", &v.url(), "--passphrase-file", &v.text("passphrase")], 5);
    fs::write(v.path("passphrase"), "wrong\n").expect("writes");
    let args = v.mount_args(&[]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let stderr = v.fails(&args, 3);
    assert!(stderr.starts_with("sealfs: error: wrong passphrase\n"), "{stderr}");
    assert!(!v.is_mounted());
}

#[test]
fn a_busy_mount_stays_and_its_user_is_named() {
    // Guards against an umount that fails without saying who is in the way, or that tears the
    // directory from under a running program.
    needs_fuse!();
    let v = Volume::mounted();
    let vault = v.text("vault");
    let sleep = Command::new("sleep").arg("60").current_dir(v.vault()).spawn();
    let holder = Holder(sleep.expect("sleep runs"));
    let pid = holder.0.id();
    assert_eq!(
        v.fails(&["umount", &vault], 10),
        format!(
            "sealfs: error: {vault} is in use by sleep ({pid})\n\
             hint: close them, or: sealfs umount --lazy {vault}\n"
        )
    );
    fs::write(v.at("still works"), b"yes").expect("still mounted");
    drop(holder);
    v.umount();
}

#[test]
fn a_lazy_umount_serves_open_files_to_their_end() {
    // Guards against writes after a lazy umount that are lost, or a daemon that never ends.
    needs_fuse!();
    let v = Volume::mounted();
    let daemon = v.daemon();
    let mut open = File::create(v.at("open")).expect("creates");
    v.ok(&["umount", "--lazy", &v.text("vault")]);
    assert!(!v.is_mounted());
    open.write_all(b"written after the umount").expect("still served");
    open.sync_all().expect("still served");
    drop(open);
    wait_until("the daemon ends", || !is_alive(daemon));
    v.mount(&[]);
    assert_eq!(fs::read(v.at("open")).expect("reads"), b"written after the umount");
    v.umount();
}

#[test]
fn sigterm_drains_and_unmounts() {
    // Guards against `systemctl stop` leaving a dead mount, or data only in the journal.
    needs_fuse!();
    let v = Volume::mounted();
    let daemon = v.daemon();
    fs::write(v.at("f"), vec![7; 1 << 20]).expect("writes");
    // SAFETY: the process is this test's own daemon.
    unsafe { libc::kill(daemon, libc::SIGTERM) };
    wait_until("the daemon ends", || !is_alive(daemon));
    assert!(!v.is_mounted());
    v.forget_local_state();
    v.mount(&[]);
    assert_eq!(fs::read(v.at("f")).expect("reads"), vec![7; 1 << 20]);
    v.umount();
}

#[test]
fn an_umount_by_somebody_else_is_an_orderly_end_too() {
    // Guards against data that stays behind when people type umount or fusermount3 -u.
    needs_fuse!();
    let v = Volume::create();
    let args = v.mount_args(&["--foreground"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let child = v.command(&args).stderr(Stdio::piped()).spawn().expect("runs");
    let mut daemon = Holder(child);
    wait_until("it is mounted", || v.is_mounted() && fs::metadata(v.at(".")).is_ok());
    fs::write(v.at("f"), b"content").expect("writes");
    let umount = Command::new("umount").arg(v.vault()).status();
    if !umount.is_ok_and(|s| s.success()) {
        let status = Command::new("fusermount3").arg("-u").arg(v.vault()).status();
        assert!(status.expect("fusermount3 runs").success());
    }
    let status = daemon.0.wait().expect("ends");
    assert_eq!(status.code(), Some(0), "{}", v.log());
    v.forget_local_state();
    v.mount(&[]);
    assert_eq!(fs::read(v.at("f")).expect("reads"), b"content");
    v.umount();
}

#[test]
fn after_a_crash_closed_and_synced_files_are_there() {
    // Guards against data that `close` had promised, lost by kill -9; and against a dead mount
    // that cannot be understood or replaced.
    needs_fuse!();
    let v = Volume::mounted();
    fs::write(v.at("closed"), b"closed").expect("writes");
    let mut synced = File::create(v.at("synced")).expect("creates");
    synced.write_all(b"synced").expect("writes");
    synced.sync_all().expect("syncs");
    let pid = v.daemon();
    // SAFETY: the process is this test's own daemon.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    wait_until("the daemon is gone", || !is_alive(pid));
    let stderr = v.fails(&["status", &v.text("vault")], 9);
    assert!(stderr.contains("is gone\nhint: "), "{stderr}");
    drop(synced);
    let args = v.mount_args(&[]); // takes the dead mount away itself
    let output = v.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("took away the mount"), "{stderr}");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the kernel's table");
    assert_eq!(mounts.matches(&v.text("vault")).count(), 1, "{mounts}");
    assert_eq!(fs::read(v.at("closed")).expect("reads"), b"closed");
    assert_eq!(fs::read(v.at("synced")).expect("reads"), b"synced");
    v.umount();
}

#[test]
fn a_second_mount_of_the_volume_is_refused() {
    // Guards against two writers of one volume.
    needs_fuse!();
    let v = Volume::mounted();
    fs::create_dir(v.path("second")).expect("makes a directory");
    let mut args = v.mount_args(&[]);
    args[2] = v.text("second");
    let second: Vec<_> = args.iter().map(String::as_str).collect();
    let stderr = v.fails(&second, 6);
    assert!(stderr.contains("mounted"), "{stderr}");
    let same = v.mount_args(&[]);
    let same: Vec<_> = same.iter().map(String::as_str).collect();
    assert!(v.fails(&same, 10).contains("is a sealfs mount already"));
    v.umount();
}

#[test]
fn a_read_only_mount_reads_and_refuses_every_change() {
    // Guards against a follower that writes, or that needs write access to the store.
    needs_fuse!();
    let v = Volume::mounted();
    fs::write(v.at("f"), b"content").expect("writes");
    v.umount();
    v.mount(&["--read-only"]);
    assert_eq!(v.status("state"), "read-only");
    assert_eq!(fs::read(v.at("f")).expect("reads"), b"content");
    let error = fs::write(v.at("g"), b"x").expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    v.umount();
}

#[test]
fn mount_returns_only_when_the_mount_works() {
    // Guards against scripts that write into the bare directory below a late mount.
    needs_fuse!();
    let v = Volume::create();
    let begun = Instant::now();
    v.mount(&[]);
    assert!(v.is_mounted(), "returned without a mount");
    assert!(begun.elapsed() < Duration::from_secs(30));
    fs::write(v.at("at once"), b"x").expect("works at once");
    v.umount();
    assert_eq!(fs::read_dir(v.vault()).expect("the bare directory").count(), 0);
}

#[test]
fn keys_are_added_changed_and_removed_beside_a_live_mount() {
    // Guards against a key command that needs the volume unmounted, that leaves an old secret
    // working, or that takes away the last one: the whole life of a volume's keys.
    needs_fuse!();
    let v = Volume::mounted();
    let (url, state) = (v.url(), v.text("state"));
    let private = |name: &str, bytes: &[u8]| {
        fs::write(v.path(name), bytes).expect("writes");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(v.path(name), mode).expect("own file");
        v.text(name)
    };
    let pass = v.text("passphrase");
    let (key, new) = (private("key", &[7; 40]), private("new", b"another passphrase\n"));
    let base = |verb: &'static str| ["key", verb, &url, "--state-dir", &state].map(str::to_owned);
    let args = |verb, more: &[&str]| {
        base(verb).into_iter().chain(more.iter().map(|a| (*a).to_owned())).collect::<Vec<_>>()
    };
    let text = |args: Vec<String>| v.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let fails = |args: Vec<String>, status| {
        v.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), status)
    };
    fs::write(v.at("before"), b"before").expect("writes");

    let with_pass = ["--passphrase-file", &pass];
    text(args("add", &[&with_pass[..], &["--label", "safe", "--new-key-file", &key]].concat()));
    let opened = text(args("test", &["--key-file", &key]));
    assert_eq!(opened, "it opens slot 2 (safe, key file)\n");
    fails(args("test", &["--passphrase-file", &new]), 3);
    let changed =
        text(args("passphrase", &[&with_pass[..], &["--new-passphrase-file", &new]].concat()));
    assert!(changed.starts_with("slot 1 replaced by slot 3; "), "{changed}");
    fails(args("test", &with_pass), 3);
    let with_new = ["--passphrase-file", &new];
    let json = text(args("list", &[&with_new[..], &["--json"]].concat()));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["epoch"], &json["old_roots"]), (&2.into(), &serde_json::json!([1])));
    assert_eq!(
        (&json["verified"], json["slots"].as_array().map(Vec::len)),
        (&true.into(), Some(2))
    );
    let printed = text(args("add", &[&with_new[..], &["--label", "paper", "--recovery"]].concat()));
    let typed = printed.lines().find(|line| line.len() == 77).expect("the recovery key");
    let paper = private("paper", typed.to_lowercase().replace('-', " ").as_bytes());
    let opened = text(args("test", &["--recovery-file", &paper]));
    assert_eq!(opened, "it opens slot 4 (paper, recovery key)\n");
    let typo = if typed.as_bytes()[12] == b'7' { "8" } else { "7" };
    let typo = private("typo", format!("{}{typo}{}", &typed[..12], &typed[13..]).as_bytes());
    let wrong = fails(args("test", &["--recovery-file", &typo]), 3);
    assert!(wrong.contains("group 3 of the recovery key has a typing error"), "{wrong}");
    text(args("remove", &["--recovery-file", &paper, "safe"]));
    text(args("add", &[&with_new[..], &["--label", "safe", "--new-key-file", &key]].concat()));
    // The mount was opened with the passphrase that is gone.
    let warnings = v.status("warnings").to_string();
    assert!(warnings.contains("was removed"), "{warnings}");
    v.umount();

    let mounted = |secret: &[&str]| {
        let more = ["--cache-dir", &v.text("cache"), "--state-dir", &state];
        v.ok(&[&["mount", &url, &v.text("vault")], secret, &more].concat());
    };
    mounted(&with_new);
    assert_eq!(fs::read(v.at("before")).expect("reads"), b"before");
    text(args("rotate", &["--key-file", &key]));
    let wrong = fails(args("remove", &[&with_new[..], &["nobody"]].concat()), 1);
    assert!(wrong.contains("no slot nobody") && wrong.contains("sealfs key list"), "{wrong}");
    text(args("remove", &[&with_new[..], &["safe"]].concat()));
    text(args("remove", &[&with_new[..], &["4"]].concat()));
    let last = fails(args("remove", &[&with_new[..], &["3"]].concat()), 1);
    assert!(last.contains("last one") && last.contains("sealfs key add"), "{last}");
    fails(args("test", &["--key-file", &key]), 3);
    let listed = text(args("list", &[]));
    assert!(listed.contains("epoch 6, with the keys of epochs 1, 2, 3, 4, 5"), "{listed}");
    assert!(listed.contains("not checked"), "{listed}");
    // This mount has followed both by itself.
    assert_eq!(v.status("warnings"), serde_json::json!([]));
    fs::write(v.at("after"), b"after").expect("writes");
    v.umount();
    fs::remove_dir_all(v.path("cache")).expect("removes");
    mounted(&with_new);
    assert_eq!(fs::read(v.at("before")).expect("reads"), b"before");
    assert_eq!(fs::read(v.at("after")).expect("reads"), b"after");
    v.umount();
}

/// Runs a program that must succeed; false, said loudly, where it may not be run.
fn may(program: &str, args: &[&str]) -> bool {
    let done = Command::new(program).args(args).status().is_ok_and(|status| status.success());
    if !done {
        eprintln!("skipped: {program} {args:?} is refused here");
    }
    done
}

#[test]
fn an_umount_takes_idle_bind_mounts_along_and_names_those_in_use() {
    // Guards against a minute of silence and "does not answer" when the file system is mounted at
    // a second place.
    needs_fuse!();
    let v = Volume::mounted();
    let (vault, other) = (v.text("vault"), v.text("other place"));
    fs::create_dir(v.path("other place")).expect("makes a directory");
    fs::write(v.at("f"), b"content").expect("writes");
    if !may("mount", &["--bind", &vault, &other]) {
        return v.umount();
    }
    v.umount();
    assert_eq!(fs::read_dir(v.path("other place")).expect("lists").count(), 0);

    v.mount(&[]);
    assert!(may("mount", &["--bind", &vault, &other]));
    let daemon = v.daemon();
    let sleep = Command::new("sleep").arg("600").current_dir(&other).spawn();
    let holder = Holder(sleep.expect("sleep runs"));
    let stderr = v.fails(&["umount", &vault], 10);
    assert!(stderr.contains(&format!("bound at {other}, which is in use")), "{stderr}");
    assert!(stderr.contains(&format!("umount {other}")), "{stderr}");
    assert!(!v.is_mounted());
    assert!(is_alive(daemon));
    assert_eq!(fs::read(v.path("other place/f")).expect("is still served"), b"content");
    drop(holder);
    assert!(may("umount", &[&other]));
    wait_until("the daemon ends", || !is_alive(daemon));
}

#[test]
fn a_mount_namespace_that_holds_the_volume_is_named_at_once() {
    // Guards against "does not answer: Resource temporarily unavailable" while a container or a
    // service with its own view of the mounts keeps the volume.
    needs_fuse!();
    let v = Volume::mounted();
    let (vault, daemon) = (v.text("vault"), v.daemon());
    // It must not hold the volumes of other tests, which run at the same time.
    const ALONE: &str = "grep ' fuse.sealfs ' /proc/self/mounts | while read -r _ at _; do \
                         [ \"$at\" = \"$0\" ] || umount -l \"$at\"; done; exec sleep 600";
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "--propagation", "private", "sh", "-c", ALONE, &vault]);
    let others_wait = mounts::UMOUNTS.write().unwrap_or_else(PoisonError::into_inner);
    let Ok(child) = apart.spawn() else {
        drop(others_wait);
        eprintln!("skipped: unshare is missing");
        return v.umount();
    };
    let mut holder = Holder(child);
    let pid = holder.0.id();
    let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    wait_until("it is apart", || {
        comm() == "sleep\n" || holder.0.try_wait().is_ok_and(|s| s.is_some())
    });
    drop(others_wait);
    if comm() != "sleep\n" {
        eprintln!("skipped: mount namespaces are refused here");
        return v.umount();
    }
    let stderr = v.fails(&["umount", &vault], 10);
    let named = format!("sleep ({pid}) has it at {vault} in another mount namespace mnt:[");
    assert!(stderr.contains(&named), "{stderr}");
    assert!(!v.is_mounted());
    // It is served on, and answers, for as long as it takes.
    assert!(v.fails(&["umount", &vault], 10).contains(&named));
    drop(holder);
    wait_until("the daemon ends", || !is_alive(daemon));
    v.mount(&[]);
    v.umount();
}
#[test]
fn a_detached_mount_that_ends_leaves_the_one_that_followed_it_reachable() {
    // Guards against a live mount that every command calls gone: the first one, detached and
    // ended late, removed the control socket of the second.
    needs_fuse!();
    let v = Volume::mounted();
    let first = v.daemon();
    let open = File::create(v.at("open")).expect("creates");
    v.ok(&["umount", "--lazy", &v.text("vault")]);
    // Another volume: the first one's journal is still in use.
    let second = Volume::create();
    let (url, vault) = (second.url(), v.text("vault"));
    let mut args = second.mount_args(&[]);
    args[2].clone_from(&vault);
    assert_eq!(args[1], url);
    v.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_ne!(v.daemon(), first);
    drop(open);
    wait_until("the first one ends", || !is_alive(first));
    assert_eq!(v.status("store"), url);
    v.umount();
}

#[test]
fn a_live_mount_is_found_from_every_environment() {
    // Guards against "is gone" and `umount -l` for a mount that works: from cron, su or sudo, which
    // set other directories, and after a logout that wiped the runtime directory.
    needs_fuse!();
    let v = Volume::mounted();
    let vault = v.text("vault");
    let bare = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealfs"));
        command.args(["status", &vault]).env_clear().stdin(Stdio::null());
        command.output().expect("runs")
    };
    let output = bare();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(v.path("run")).expect("removes");
    // Whoever asks waits until it is made again.
    assert_eq!(v.status("state"), "online");
    fs::remove_dir_all(v.path("run")).expect("removes");
    assert!(bare().status.success());
    v.umount();
}

/// `sealfs` as the user nobody, who has nothing but this volume's own directory.
fn as_nobody(v: &Volume, args: &[&str]) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealfs"));
    command.args(args).env_clear().env("HOME", v.path("")).env("PATH", "/usr/bin:/bin");
    command.uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
    command
}

const NOBODY: u32 = 65534;

#[test]
fn a_mount_of_somebody_else_is_named_as_such_and_never_called_dead() {
    // Guards against root told to detach a user's live mount, and a user told so of root's.
    needs_fuse!();
    let here = Path::new(env!("CARGO_BIN_EXE_sealfs"));
    let reachable = here.ancestors().all(|dir| {
        let mode = dir.metadata().expect("exists").permissions().mode();
        mode & 0o001 != 0
    });
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 || !reachable {
        eprintln!("skipped: it takes root, and a program that others can run");
        return;
    }
    let open = |v: &Volume, mode| {
        fs::set_permissions(v.path(""), fs::Permissions::from_mode(mode)).expect("own directory");
    };
    // Root's, for a user.
    let v = Volume::mounted();
    open(&v, 0o755);
    let vault = v.text("vault");
    for command in ["status", "sync", "umount"] {
        let output = as_nobody(&v, &[command, &vault]).output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("is mounted by root") && stderr.contains("sudo "), "{stderr}");
        assert!(!stderr.contains("umount -l") && !stderr.contains("gone"), "{stderr}");
    }
    v.umount();
    // A user's, for root. Root may not even look at the directory.
    let v = Volume::create();
    let chown = Command::new("chown").args(["-R", "65534:65534"]).arg(v.path("")).status();
    assert!(chown.expect("chown runs").success());
    std::os::unix::fs::chown(v.path("run"), Some(0), Some(0)).expect("root's own");
    let args = v.mount_args(&[]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let output = as_nobody(&v, &args).output().expect("runs");
    let mode = fs::metadata("/dev/fuse").expect("exists").permissions().mode();
    if mode & 0o006 != 0o006 {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("you may not open /dev/fuse"), "{stderr}");
        eprintln!("skipped in part: only root may open /dev/fuse here");
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(v.status("state"), "online");
    let args: Vec<_> = args.iter().map(|&s| s.to_owned()).collect();
    let stderr = v.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 10);
    assert!(stderr.contains("mounted by nobody") && stderr.contains("sudo -u nobody"), "{stderr}");
    v.umount();
    assert!(!v.is_mounted());
}

#[test]
fn the_helper_of_mount_takes_every_flag_and_a_directory_with_a_space() {
    // Guards against a line of fstab that cannot say what the command line can. systemd and
    // mount(8) give the helper no HOME.
    needs_fuse!();
    let v = Volume::create();
    let vault = v.path("my vault");
    fs::create_dir(&vault).expect("makes");
    fs::write(vault.join("hidden"), "").expect("writes");
    fs::create_dir(v.path("a,b")).expect("makes");
    let program = Path::new(env!("CARGO_BIN_EXE_sealfs")).parent().expect("a directory");
    let list = format!(
        "rw,_netdev,nofail,over,passphrase_file={},cache_dir=\"{}\",state_dir={}\\,2,cache_size=1G,\
         clean_after=0,at_least=0,read_timeout=5s,accept_rollback=older,noexec",
        v.text("passphrase"),
        v.text("a,b/cache"),
        v.text("state"),
    );
    let output = Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mount.fuse.sealfs"))
        .arg(v.url())
        .arg(&vault)
        .args(["-n", "-o", &list])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", program.display()))
        .env("SEALFS_RUNTIME_DIR", v.path("run"))
        .output()
        .expect("sh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(v.path("a,b/cache").exists() && v.path("state,2").exists());
    assert!(!vault.join("hidden").exists(), "not mounted over it");
    v.ok(&["umount", &vault.display().to_string()]);
}

#[test]
fn a_service_counts_as_started_when_the_mount_works() {
    // Guards against units that start on the bare directory below a mount still on its way, and against a
    // mount that hangs for ever under a service manager that would start it again.
    needs_fuse!();
    let v = Volume::create();
    let mut service =
        Service::start(&v, &[], &[("WATCHDOG_USEC", "3000000")], Duration::from_secs(60));
    let ready = service.said();
    assert!(ready.starts_with("READY=1\nSTATUS=mounted on "), "{ready}");
    assert!(v.is_mounted());
    fs::write(v.at("f"), b"x").expect("works at once");
    for _ in 0..2 {
        wait_until("it says that it is alive", || service.said() == "WATCHDOG=1");
    }
    service.signal(libc::SIGTERM);
    wait_until("it says that it stops", || service.said().contains("STOPPING=1"));
    assert_eq!(service.daemon.0.wait().expect("ends").code(), Some(0));
    let unit = include_str!("../../packaging/sealfs@.service");
    for line in ["Type=notify", "Environment=HOME=/root", "WatchdogSec=5min"] {
        assert!(unit.lines().any(|l| l == line), "{line}");
    }
    assert!(unit.contains("ExecStart=/usr/bin/sealfs mount --foreground %i\n"), "{unit}");
}

/// The answer of the HTTP server behind a socket: head and body.
fn http(socket: &Path, method: &str, path: &str, accept: &str) -> (String, String) {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("takes the request");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).expect("answers and closes");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

/// The value of a metric, by the start of its line.
fn metric(text: &str, start: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(start) && !line.starts_with('#'));
    let line = line.unwrap_or_else(|| panic!("no {start} in {text}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

#[test]
fn metrics_say_what_was_done_and_name_no_file() {
    // Guards against counters that nothing increases, a format that Prometheus refuses, and names
    // of files in a database that keeps everything in clear.
    needs_fuse!();
    let v = Volume::create();
    let socket = v.path("metrics");
    v.mount(&["--metrics", &format!("unix:{}", socket.display())]);
    let before = http(&socket, "GET", "/metrics", OPEN_METRICS).1;
    let mut file = File::create(v.at("a name to keep")).expect("creates");
    file.write_all(&vec![7; 100_000]).expect("writes");
    file.sync_all().expect("syncs");
    drop(file);
    v.ok(&["sync", &v.text("vault")]);
    let (head, after) = http(&socket, "GET", "/metrics", OPEN_METRICS);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.to_lowercase().contains("content-type: application/openmetrics-text"), "{head}");
    assert!(after.ends_with("# EOF\n"));
    for start in [
        "sealfs_fuse_operation_duration_seconds_count{operation=\"fsync\"}",
        "sealfs_store_request_duration_seconds_count{kind=\"put\"}",
        "sealfs_commit_sequence",
        "sealfs_store_sent_bytes_total",
    ] {
        let then = if before.contains(start) { metric(&before, start) } else { 0.0 };
        assert!(metric(&after, start) > then, "{start}: {then}, then\n{after}");
    }
    assert!(metric(&after, "sealfs_fuse_written_bytes_total") >= 100_000.0);
    assert_eq!(metric(&after, "sealfs_online"), 1.0);
    assert_eq!(metric(&after, "sealfs_pending_age_seconds"), 0.0);
    assert_eq!(metric(&after, "sealfs_key_epoch"), 1.0);
    assert!(after.contains("role=\"writer\""), "{after}");
    let times = "sealfs_fuse_operation_duration_seconds";
    let written = metric(&after, &format!("{times}_count{{operation=\"write\"}}"));
    let all = format!("{times}_bucket{{le=\"+Inf\",operation=\"write\"}}");
    assert!(written > 0.0 && metric(&after, &all) == written, "{after}");
    for name in ["a name to keep", "vault", "store/", &v.text("")] {
        assert!(!after.contains(name), "{name} in {after}");
    }
    let mode = fs::symlink_metadata(&socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o077, 0, "others can connect: {mode:o}");
    // Without that format it is the older one, which has no end mark.
    let (head, text) = http(&socket, "GET", "/metrics", "*/*");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(!text.contains("# EOF"));
    assert!(http(&socket, "GET", "/", "*/*").0.starts_with("HTTP/1.1 404 "));
    assert!(http(&socket, "POST", "/metrics", "*/*").0.starts_with("HTTP/1.1 405 "));
    promtool(&["check", "metrics"], &text);
    dashboards_name_metrics_that_exist(&text);
    v.umount();
    assert!(!socket.exists(), "the socket outlives the mount");
}

/// Runs promtool, if it is installed, which must be content.
fn promtool(args: &[&str], input: &str) {
    let started = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        eprintln!("skipped: promtool {args:?} (scripts/test installs it)");
        return;
    };
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("reads everything");
    drop(stdin);
    let output = child.wait_with_output().expect("ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {args:?}: {said}");
    if args == ["check", "metrics"] {
        assert!(said.trim().is_empty(), "{said}");
    }
}

fn dashboards_name_metrics_that_exist(text: &str) {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let rules = packaging.join("prometheus/sealfs.rules.yml");
    promtool(&["check", "rules", &rules.display().to_string()], "");
    let tests = packaging.join("prometheus/sealfs.rules.test.yml");
    promtool(&["test", "rules", &tests.display().to_string()], "");
    let dashboard = packaging.join("grafana/sealfs.json");
    let json = fs::read_to_string(&dashboard).expect("the dashboard");
    serde_json::from_str::<serde_json::Value>(&json).expect("JSON");
    for page in [fs::read_to_string(rules).expect("the rules"), json] {
        let mut seen = 0;
        for (at, _) in page.match_indices("sealfs_") {
            let name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            let name: String = page[at..].chars().take_while(name).collect();
            seen += 1;
            assert!(
                text.lines().any(|line| line.starts_with(&format!("{name} "))
                    || line.starts_with(&format!("{name}{{"))),
                "{name} is no metric"
            );
        }
        assert!(seen > 5, "only {seen} metrics are named");
    }
}

#[test]
fn metrics_are_for_this_machine_unless_more_is_meant_and_their_port_is_free() {
    // Guards against a port that the network can read, a mount without the metrics that were asked
    // for, and clients that say nothing and hold up those who do.
    needs_fuse!();
    let v = Volume::create();
    let refused = v.mount_fails(&["--metrics", "0.0.0.0:9477"], 2);
    assert!(refused.contains("other machines could read") && refused.contains("hint: "));
    let refused = v.mount_fails(&["--metrics", "example.org:9477"], 2);
    assert!(refused.contains("IP:PORT"), "{refused}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let port = taken.local_addr().expect("bound").port();
    let refused = v.mount_fails(&["--metrics", &format!("127.0.0.1:{port}")], 1);
    assert!(refused.contains("cannot answer metrics at 127.0.0.1:"), "{refused}");
    assert!(refused.contains("hint: each mount needs its own port"), "{refused}");
    assert!(!v.is_mounted());
    drop(taken);
    // Something that is no socket stays what it is.
    fs::write(v.path("file"), "kept").expect("writes");
    let refused = v.mount_fails(&["--metrics", &v.text("file")], 1);
    assert!(refused.contains("something that is no socket is there"), "{refused}");
    assert_eq!(fs::read(v.path("file")).expect("there"), b"kept");
    // A socket that a killed mount left is replaced.
    let socket = v.path("metrics");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("binds"));
    v.mount(&["--metrics", &v.text("metrics")]);
    let idle: Vec<_> = (0..20)
        .map(|_| std::os::unix::net::UnixStream::connect(&socket).expect("connects"))
        .collect();
    drop(idle);
    wait_until("metrics are answered again", || {
        let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&socket) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
        let mut answer = String::new();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").is_ok()
            && std::io::Read::read_to_string(&mut stream, &mut answer).is_ok()
            && answer.contains("sealfs_online 1")
    });
    v.umount();
}

#[test]
fn stats_and_top_show_what_happens() {
    // Guards against columns that stay at nothing, and a command that does not end.
    needs_fuse!();
    let v = Volume::mounted();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (lines, page) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(std::sync::atomic::Ordering::SeqCst) {
                    break;
                }
                let name = v.at(&format!("f{}", n % 10));
                fs::write(&name, [7; 8192]).expect("writes");
                File::open(&name).expect("opens").sync_all().expect("syncs");
                fs::remove_file(&name).expect("removes");
            }
        });
        let vault = v.text("vault");
        let lines = v.run(&["stats", "--interval", "300ms", "--count", "3", &vault]);
        let page = v.run(&["top", "--interval", "300ms", "--count", "1", &vault]);
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        (lines, page)
    });
    assert!(lines.status.success() && page.status.success(), "{lines:?}\n{page:?}");
    let lines = String::from_utf8(lines.stdout).expect("text");
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), 5, "{lines:?}"); // two of heading
    let ops = |line: &str| line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    assert!(lines[2..].iter().all(|line| ops(line).is_some_and(|n| n > 0)), "{lines:#?}");
    let page = String::from_utf8(page.stdout).expect("text");
    for part in ["online", "operation ", "fsync ", "unlink ", "put ", "requests have cost about $"]
    {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(!page.contains('\x1b'), "control sequences outside a terminal");
    let json = v.ok(&["stats", "--json", &v.text("vault")]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(json["numbers"]["requests"]["put"].as_u64().is_some_and(|n| n > 0), "{json}");
    assert!(json["fuse"]["written_bytes"].as_u64().is_some_and(|n| n >= 8192), "{json}");
    v.fails(&["stats", "--count", "1", &v.text("store")], 9);
    v.umount();
}

#[test]
fn a_log_of_json_goes_on_after_it_was_rotated() {
    // Guards against lines that no program can read, a daemon that writes into a file which
    // logrotate has renamed, and a `mount` that returns before the log says so.
    needs_fuse!();
    let v = Volume::create();
    v.mount(&["--log-format", "json"]);
    fs::rename(v.path("log"), v.path("log.1")).expect("renames");
    let first = fs::read_to_string(v.path("log.1")).expect("the log");
    for line in first.lines() {
        let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(json["mount"], v.text("vault"));
        assert_eq!(json["level"], "info");
        assert!(json["message"].is_string() && json["time"].is_string(), "{line}");
    }
    assert!(first.contains("mounted on"), "{first}");
    std::thread::sleep(Duration::from_millis(1100)); // it looks once a second
    v.umount();
    let second = fs::read_to_string(v.path("log")).expect("made again");
    assert!(second.contains("unmounted"), "{second}");
    // Within that second it may have said more there.
    let rotated = fs::read_to_string(v.path("log.1")).expect("the log");
    assert!(rotated.starts_with(&first) && !rotated.contains("unmounted"), "{rotated}");
}

#[test]
fn a_recovery_kit_opens_the_volume_and_a_typing_error_in_it_is_named() {
    // Guards against a sheet of paper that does not open the volume on the day it is needed, that
    // other users can read, or that takes the place of another; and against the same by `init`.
    let v = Volume::bare();
    let (url, pass, state) = (v.url(), v.text("passphrase"), v.text("state"));
    let init = ["init", &url, "--passphrase-file", &pass, "--recovery-kit", &v.text("first.txt")];
    let printed = v.ok(&init);
    assert!(printed.contains("recovery kit of slot 2 (recovery kit) written to"), "{printed}");
    let (at, secret) = (["--state-dir", &state], ["--passphrase-file", &pass]);
    let kit = |out: &str, more: &[&str]| {
        [&["key", "kit", &url, "--out", out], &at[..], &secret[..], more]
            .concat()
            .iter()
            .map(|arg| arg.to_string())
            .collect::<Vec<_>>()
    };
    let words = |args: &[String]| args.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let html = v.text("kit.html");
    v.ok(&words(&kit(&html, &["--label", "safe"])).split('\n').collect::<Vec<_>>());
    let mode = fs::metadata(&html).expect("written").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    let again = v.fails(&words(&kit(&html, &[])).split('\n').collect::<Vec<_>>(), 2);
    assert!(again.contains("is there already") && again.contains("--force"), "{again}");
    let slots = |n: usize| {
        let json = v.ok(&["key", "list", &url, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["slots"].as_array().map(Vec::len), Some(n), "{json}");
    };
    slots(3);
    // What somebody types from the page.
    let page = fs::read_to_string(&html).expect("reads");
    let groups = page.split("<li>").skip(1).map(|rest| &rest[..5]);
    let typed = groups.collect::<Vec<_>>().join(" ").to_lowercase();
    let private = |name: &str, text: &str| {
        fs::write(v.path(name), text).expect("writes");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(v.path(name), mode).expect("own file");
        v.text(name)
    };
    let key = private("kit.key", &typed);
    let opened =
        v.ok(&[&["key", "check-recovery", &url, "--recovery-file", &key], &at[..]].concat());
    assert_eq!(opened, "there is no typing error in it\nit opens slot 3 (safe, recovery key)\n");
    let wrong = if typed.as_bytes()[25] == b'7' { "8" } else { "7" };
    let typo = private("typo", &format!("{}{wrong}{}", &typed[..25], &typed[26..]));
    let said = v.fails(&["key", "check-recovery", "--recovery-file", &typo], 3);
    assert!(said.contains("group 5 of the recovery key has a typing error"), "{said}");
    // The same key on another page: no slot is added.
    let text = v.text("again.txt");
    v.ok(&[&["key", "kit", &url, "--out", &text, "--recovery-file", &key], &at[..]].concat());
    slots(3);
    let text = fs::read_to_string(&text).expect("reads");
    let group = |n: usize| typed.split(' ').nth(n).expect("13 groups").to_uppercase();
    assert!((0..13).all(|n| text.contains(&group(n))), "{text}");
    let shown = v.ok(&[&["key", "kit", &url, "--recovery-file", &key], &at[..]].concat());
    assert!(shown.contains(&group(12)) && shown.contains("--at-least"), "{shown}");
    // Nothing is added for a page that cannot be written.
    let nowhere = v.text("no/such/kit.html");
    v.fails(&words(&kit(&nowhere, &[])).split('\n').collect::<Vec<_>>(), 1);
    slots(3);
}

#[test]
fn init_says_what_happens_without_a_recovery_key_unless_it_is_told() {
    // Guards against a volume that is lost with its one passphrase, of which nobody was warned; and
    // against scripts that are told each time.
    let v = Volume::bare();
    let init = |store: &str, more: &[&str]| {
        let (url, pass) = (format!("file://{}", v.text(store)), v.text("passphrase"));
        let output = v.run(&[&["init", &url, "--passphrase-file", &pass], more].concat());
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = init("a", &[]);
    assert!(said.contains("no recovery key") && said.contains("sealfs key kit file://"), "{said}");
    assert_eq!(init("b", &["--no-recovery"]), "");
}

#[test]
fn a_rekey_that_must_wait_says_how_long_and_what_goes_on_with_it() {
    // Guards against an exit status of 0, or keys that leave, while the metadata's log is still of the
    // old epoch; and against a list that does not show what still needs an old key.
    let v = Volume::bare();
    let (url, pass, state) = (v.url(), v.text("passphrase"), v.text("state"));
    let secret = ["--passphrase-file", &pass, "--state-dir", &state];
    v.ok(&["init", &url, "--passphrase-file", &pass, "--no-recovery"]);
    let rekey = [&["key", "rekey", &url, "--no-wait", "--json"], &secret[..]].concat();
    let output = v.run(&rekey);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(13), "{said}");
    assert!(said.contains("epoch 2 begins") && said.contains("not complete"), "{said}");
    assert!(said.contains("sealfs key rekey file://"), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["epoch"], &report["failed_total"]), (&2.into(), &0.into()));
    let again = String::from_utf8_lossy(&v.run(&rekey).stderr).into_owned();
    assert!(again.contains("going on with epoch 2"), "{again}");
    let listed = v.ok(&[&["key", "list", &url], &secret[..]].concat());
    assert!(listed.contains("sealed in epoch 2: "), "{listed}");
    let brief = v.ok(&[&["key", "list", &url, "--no-objects"], &secret[..]].concat());
    assert!(!brief.contains("sealed in") && brief.contains("keys of epochs 1"), "{brief}");
}

#[test]
fn a_live_mount_takes_other_settings() {
    // Guards against a setting that is taken and changes nothing.
    needs_fuse!();
    let v = Volume::create();
    v.mount(&["--upload-limit", "512K", "--cache-size", "1G"]);
    let vault = v.text("vault");
    let shown = v.ok(&["set", &vault]);
    for line in [
        "upload-limit=524288 (512.00 KiB/s)\n",
        "download-limit=0 (no limit)\n",
        "cache-size=1073741824 (1.00 GiB)\n",
        "commit-interval=2000ms\n",
        "log-level=info\n",
    ] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
    let data: Vec<u8> =
        (0..1u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let begun = Instant::now();
    fs::write(v.at("slow"), &data).expect("writes");
    v.ok(&["sync", &vault]);
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    v.ok(&["set", &vault, "upload-limit=0", "log-level=debug", "cache-size=4M"]);
    v.ok(&["set", &vault, "commit-interval=20ms"]);
    assert_eq!(v.status("cache_bytes_max"), 4 << 20);
    fs::write(v.at("fast"), &data).expect("writes");
    File::open(v.at("fast")).expect("opens").sync_all().expect("syncs");
    wait_until("it is committed by itself", || v.status("pending_bytes") == 0);
    let refused = v.fails(&["set", &vault, "upload-limit=1K"], 2);
    assert!(refused.contains("64K a second at least"), "{refused}");
    let refused = v.fails(&["set", &vault, "speed=1"], 2);
    assert!(refused.contains("upload-limit, download-limit, cache-size"), "{refused}");
    assert!(v.log().contains("changed by sealfs set"), "{}", v.log());
    // What the level leaves out is not logged, from then on.
    v.ok(&["set", &vault, "log-level=error"]);
    v.ok(&["set", &vault, "download-limit=3M"]);
    assert!(!v.log().contains("DownloadLimit"), "{}", v.log());
    v.umount();
    v.forget_local_state();
    v.mount(&[]);
    v.ok(&["set", &vault, "download-limit=512K"]);
    let begun = Instant::now();
    assert!(fs::read(v.at("fast")).expect("reads") == data);
    assert!(begun.elapsed() >= Duration::from_millis(1200), "{:?}", begun.elapsed());
    v.umount();
}

#[test]
fn a_mount_that_is_described_in_a_file_needs_only_its_name() {
    // Guards against three places (a script, fstab, a unit) that describe one mount differently, and
    // against a file that somebody else can change: it says what is run.
    needs_fuse!();
    let v = Volume::create();
    fs::create_dir_all(v.path("config/sealfs")).expect("makes");
    let file = v.path("config/sealfs/box.conf");
    let text = format!(
        "store = {}\ndir = {}\npassphrase-file = {}\ncache-dir = {}\nstate-dir = {}\n\
         log-file = {}\nupload-limit = 3M\n",
        v.url(),
        v.text("vault"),
        v.text("passphrase"),
        v.text("cache"),
        v.text("state"),
        v.text("log")
    );
    fs::write(&file, &text).expect("writes");
    let run = |args: &[&str]| {
        let mut command = v.command(args);
        let output = command.env("XDG_CONFIG_HOME", v.path("config")).output().expect("runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (code, said) = run(&["config", "check"]);
    assert!(code == Some(0) && said.contains("box.conf: fine"), "{said}");
    let (_, said) = run(&["config", "show", "box"]);
    assert!(said.contains("sealfs mount ") && said.contains("--upload-limit=3M"), "{said}");
    // The command line goes before the file, and another key in place of the one there.
    let (code, said) = run(&["mount", "box", "--upload-limit", "5M"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(v.ok(&["set", &v.text("vault")]).contains("upload-limit=5242880"));
    // What can change without unmounting does.
    fs::write(&file, text.replace("3M", "4M") + "log-level = debug\n").expect("writes");
    let (code, said) = run(&["config", "apply", "box"]);
    assert_eq!(code, Some(0), "{said}");
    let shown = v.ok(&["set", &v.text("vault")]);
    assert!(shown.contains("upload-limit=4194304") && shown.contains("log-level=debug"), "{shown}");
    // SIGHUP does it too: as the same command line would have it now.
    let limit = text.replace("upload-limit = 3M", "download-limit = 6M");
    fs::write(&file, limit + "log-level = warn\n").expect("writes");
    // SAFETY: a signal to the mount process of this test.
    unsafe { libc::kill(v.daemon(), libc::SIGHUP) };
    let vault = v.text("vault");
    wait_until("it is read again", || v.ok(&["set", &vault]).contains("log-level=warn"));
    let shown = v.ok(&["set", &vault]);
    assert!(shown.contains("download-limit=6291456"), "{shown}");
    assert!(shown.contains("upload-limit=5242880"), "of its command line: {shown}");
    v.umount();
    // mount(8) and fstab: the name stands for the store, their directory is named again.
    let program = Path::new(env!("CARGO_BIN_EXE_sealfs")).parent().expect("a directory");
    let output = Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mount.fuse.sealfs"))
        .args(["box", &vault, "-o", "rw,_netdev,nofail,download_limit=7M"])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", program.display()))
        .env("SEALFS_RUNTIME_DIR", v.path("run"))
        .env("XDG_CONFIG_HOME", v.path("config"))
        .output()
        .expect("sh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(v.ok(&["set", &vault]).contains("download-limit=7340032"));
    v.umount();
    let (code, said) = run(&["mount", "box", "--key-file", &v.text("nothing")]);
    assert!(code == Some(1) && said.contains("nothing"), "{code:?}: {said}");
    for (text, part) in [
        (
            text.replace("upload-limit", "upload-limits"),
            "box.conf:7: there is no setting upload-limits",
        ),
        (text.replace("3M", "3"), "64K a second"),
        (text.clone() + "passphrase = x\n", "no secret stands in this file"),
        (text.replace("store", "# store"), "has no line store"),
    ] {
        fs::write(&file, text).expect("writes");
        for command in ["check", "show"] {
            let (code, said) = run(&["config", command, "box"]);
            assert!(code == Some(2) && said.contains(part), "{command}: {part} in {said}");
        }
    }
    fs::write(&file, &text).expect("writes");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("own file");
    let (code, said) = run(&["mount", "box"]);
    assert!(code == Some(2) && said.contains("others can change it"), "{said}");
    let (code, said) = run(&["mount", "bix"]);
    assert!(code == Some(2) && said.contains("there is no configuration bix"), "{said}");
    assert!(!v.is_mounted());
}

#[test]
fn info_says_where_bytes_are_and_warm_brings_them_here() {
    // Guards against "in the bucket" of what only the journal has, and against a train ride with a cache
    // that has nothing of what was asked for.
    needs_fuse!();
    let v = Volume::create();
    v.mount(&["--commit-interval", "1h"]);
    let mut noise = vec![0; 700_000];
    getrandom::fill(&mut noise).expect("random bytes");
    fs::create_dir(v.at("dir")).expect("makes a directory");
    fs::write(v.at("dir/file"), &noise).expect("writes");
    let file = v.at("dir/file").display().to_string();
    let info = || {
        let json = v.ok(&["info", "--json", &file]);
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON")
    };
    let before = info();
    assert_eq!((&before["journal_bytes"], &before["bucket_bytes"]), (&700_000.into(), &0.into()));
    v.ok(&["sync", &v.text("vault")]);
    let after = info();
    assert_eq!((&after["journal_bytes"], &after["bucket_bytes"]), (&0.into(), &700_000.into()));
    let segment = &after["segments"][0];
    assert!(segment["object"].as_str().is_some_and(|name| name.starts_with("seg/")), "{after}");
    assert_eq!(segment["key_epoch"], 1);
    // A hole, a directory, and another machine.
    File::options().write(true).open(&file).expect("opens").set_len(1_000_000).expect("grows");
    assert_eq!(info()["hole_bytes"], 300_000);
    let text = v.ok(&["info", &v.at("dir").display().to_string(), &file]);
    assert!(text.contains("dir, 0 attributes") && text.contains("key epoch 1"), "{text}");
    // As it was: the same bytes, by the number that a snapshot shows them under.
    v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
    let past = v.ok(&["info", "--json", &v.text("vault/.snapshots/monday/dir/file")]);
    let past: serde_json::Value = serde_json::from_str(&past).expect("JSON");
    assert_eq!(past["bucket_bytes"], 700_000, "{past}");
    let said = v.fails(&["info", &v.text("vault/.snapshots")], 1);
    assert!(said.contains("the directory of snapshots"), "{said}");
    v.umount();
    v.forget_local_state();
    v.mount(&[]);
    assert_eq!(info()["segments"][0]["cached_bytes"], 0);
    let warmed = v.ok(&["warm", &v.at("dir").display().to_string()]);
    assert!(warmed.contains("in 1 file; "), "{warmed}");
    wait_until("the cache has it", || {
        info()["segments"][0]["cached_bytes"].as_u64().is_some_and(|n| n >= 700_000)
    });
    v.fails(&["warm", &v.text("store")], 9);
    v.fails(&["info", &v.text("passphrase")], 9);
    v.umount();
}

#[test]
fn bench_measures_and_leaves_nothing_behind() {
    // Guards against a measurement that fills the volume of whoever tries it.
    needs_fuse!();
    let v = Volume::mounted();
    let said = v.ok(&["bench", "--size", "3M", &v.text("vault")]);
    for part in ["files of 4 KiB made", "made and synced", "until all is in the bucket", "requests"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(fs::read_dir(v.vault()).expect("lists").count(), 0);
    // Ctrl-C in the middle of it.
    let mut bench = v.command(&["bench", "--size", "8G", &v.text("vault")]);
    let mut running = bench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_until("it works", || fs::read_dir(v.vault()).expect("lists").count() == 1);
    // SAFETY: the process is this test's own child, not waited for yet.
    unsafe { libc::kill(running.id() as i32, libc::SIGINT) };
    assert_eq!(running.wait().expect("ends").code(), Some(12));
    assert_eq!(fs::read_dir(v.vault()).expect("lists").count(), 0);
    v.fails(&["bench", &v.text("run")], 9);
    v.umount();
}
