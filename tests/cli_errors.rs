//! What the command line says when it refuses: exact words and exit statuses, without a mount.

mod mounts;

use mounts::Volume;

fn refused(volume: &Volume, args: &[&str], status: i32, said: &str) {
    let stderr = volume.fails(args, status);
    assert_eq!(stderr, said, "sealfs {args:?}");
}

#[test]
fn a_store_that_is_none_is_refused_with_what_to_type() {
    // Guards against an error without the next step, and against an exit status that moves.
    let v = Volume::bare();
    refused(
        &v,
        &["init", "ftp://host/x"],
        2,
        "sealfs: error: 'ftp://host/x' is not a store\n\
         hint: use s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY\n",
    );
    refused(
        &v,
        &["init", "file:///tmp/x", "--region", "eu-central-1"],
        2,
        "sealfs: error: S3 flags make no sense for file:///tmp/x\n",
    );
}

#[test]
fn a_secret_never_comes_from_the_arguments() {
    // Guards against a --passphrase flag, which every user of the machine could read in ps.
    let v = Volume::bare();
    let stderr = v.fails(&["init", &v.url(), "--passphrase", "x"], 2);
    assert!(stderr.contains("unexpected argument"), "{stderr}");
    for command in ["init", "mount"] {
        let help = v.ok(&[command, "--help"]);
        assert!(!help.contains("--passphrase <") && !help.contains("--passphrase="), "{help}");
    }
}

#[test]
fn a_missing_passphrase_names_the_three_ways_to_give_one() {
    // Guards against a hang at a prompt nobody sees (cron, systemd). The child has no terminal
    // on its standard input; one that is reached through /dev/tty is taken away by setsid.
    let v = Volume::bare();
    let output = std::process::Command::new("setsid")
        .args(["-w", env!("CARGO_BIN_EXE_sealfs"), "init", &v.url()])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("setsid is part of util-linux");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "sealfs: error: no passphrase: there is no terminal to ask on\n\
         hint: use --passphrase-file FILE, --passphrase-fd N or --key-file FILE\n"
    );
}

#[test]
fn an_empty_or_unreadable_passphrase_is_refused() {
    // Guards against a volume sealed with the empty passphrase of a file that failed to copy.
    let v = Volume::bare();
    let empty = v.path("empty");
    std::fs::write(&empty, "\n").expect("writes");
    std::fs::set_permissions(&empty, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("own file");
    let empty = v.text("empty");
    refused(
        &v,
        &["init", &v.url(), "--passphrase-file", &empty],
        2,
        "sealfs: error: the passphrase is empty\n",
    );
    refused(
        &v,
        &["init", &v.url(), "--passphrase-file", "/nonexistent"],
        1,
        "sealfs: error: cannot read /nonexistent: No such file or directory (os error 2)\n",
    );
    refused(
        &v,
        &["init", &v.url(), "--passphrase-fd", "77"],
        2,
        "sealfs: error: file descriptor 77 is not open\n\
         hint: sealfs … --passphrase-fd 77 77<FILE\n",
    );
}

#[test]
fn a_directory_that_is_no_mount_is_status_9() {
    // Guards against a script that takes "nothing to unmount" for "unmounted and uploaded".
    let v = Volume::bare();
    let vault = v.text("vault");
    for command in ["status", "sync", "umount"] {
        refused(
            &v,
            &[command, &vault],
            9,
            &format!(
                "sealfs: error: {vault} is not a sealfs mount\n\
                 hint: grep sealfs /proc/mounts, as the user who mounted it\n"
            ),
        );
    }
}

#[test]
fn a_mount_that_cannot_start_says_why_and_leaves_nothing() {
    // Guards against a background start whose failure nobody sees.
    let v = Volume::bare();
    let pass = v.text("passphrase");
    let with = |dir: &str, more: &[&str]| {
        let mut args = vec!["mount".to_owned(), v.url(), dir.to_owned()];
        args.extend(["--passphrase-file".into(), pass.clone()]);
        for name in ["cache", "state"] {
            args.extend([format!("--{name}-dir"), v.text(name)]);
        }
        args.extend(more.iter().map(|&s| s.to_owned()));
        args
    };
    let fails = |args: Vec<String>, status| {
        v.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), status)
    };
    let missing = v.text("missing");
    assert_eq!(
        fails(with(&missing, &[]), 1),
        format!(
            "sealfs: error: cannot mount on {missing}: No such file or directory (os error 2)\n\
             hint: mkdir -p {missing}\n"
        )
    );
    let vault = v.text("vault");
    assert_eq!(
        fails(with(&vault, &["-o", "ro,bogus"]), 2),
        "sealfs: error: unknown mount option \"bogus\"\nhint: sealfs mount --help lists them\n"
    );
    // The store is empty: there is no volume. The background process says so, once.
    let stderr = fails(with(&vault, &[]), 5);
    assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
    assert!(stderr.contains("no volume") && stderr.contains("hint: "), "{stderr}");
    assert!(!v.is_mounted());
}

#[test]
fn help_has_examples_and_the_exit_statuses() {
    // Guards against a command whose help shows flags but not how it is used.
    let v = Volume::bare();
    let help = v.ok(&["--help"]);
    assert!(help.contains("Exit status:") && help.contains("Examples:"));
    for command in ["init", "mount", "umount", "sync", "status", "key", "demo"] {
        let help = v.ok(&[command, "--help"]);
        assert!(
            help.contains("Examples:") && help.contains(&format!("sealfs {command}")),
            "{help}"
        );
    }
}

/// `sealfs mount STORE vault` with other places than a test's usual ones.
fn mount_at(v: &Volume, store: &str, places: &[(&str, &str)], more: &[&str]) -> Vec<String> {
    let mut args = vec!["mount".to_owned(), store.to_owned(), v.text("vault")];
    let usual = [("passphrase-file", "passphrase"), ("cache-dir", "cache"), ("state-dir", "state")];
    for (flag, name) in usual {
        let name = places.iter().find(|(f, _)| *f == flag).map_or(name, |(_, name)| name);
        args.extend([format!("--{flag}"), v.text(name)]);
    }
    for (flag, name) in places.iter().filter(|(f, _)| usual.iter().all(|(u, _)| u != f)) {
        args.extend([format!("--{flag}"), v.text(name)]);
    }
    args.extend(more.iter().map(|&a| a.to_owned()));
    args
}

#[test]
fn what_a_mount_needs_must_not_lie_below_it() {
    // Guards against a mount that waits for itself: its journal, cache, log, socket, key or store
    // is opened by name while it serves. The first write then hung, and so did kill -9. Links, a
    // link in the middle, `..` and directories that do not exist yet lead there as well.
    use std::os::unix::fs::symlink;
    let v = Volume::bare();
    std::fs::create_dir(v.path("vault/sub")).expect("makes a directory");
    std::fs::create_dir(v.path("aside")).expect("makes a directory");
    std::fs::copy(v.path("passphrase"), v.path("vault/pass")).expect("copies");
    symlink("../vault/sub", v.path("aside/link")).expect("links");
    symlink(v.path("aside"), v.path("vault/out")).expect("links");
    let refused = |args: Vec<String>, what: &str| {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let stderr = v.fails(&args, 2);
        assert!(stderr.contains(what) && stderr.contains("below it"), "{args:?}: {stderr}");
        assert!(stderr.contains("\nhint: mount it on a directory of its own"), "{stderr}");
    };
    for place in ["vault", "vault/a/b", "aside/link/state", "aside/../vault/x", "vault/out/x"] {
        refused(mount_at(&v, &v.url(), &[("state-dir", place)], &["--over"]), "the journal");
        refused(mount_at(&v, &v.url(), &[("cache-dir", place)], &["--over"]), "the cache");
        refused(mount_at(&v, &v.url(), &[("log-file", place)], &["--over"]), "the log");
        let store = format!("file://{}", v.text(place));
        if !place.contains("..") {
            refused(mount_at(&v, &store, &[], &["--over"]), "the store");
        }
    }
    refused(mount_at(&v, &v.url(), &[("passphrase-file", "vault/pass")], &["--over"]), "the key");
    let args = mount_at(&v, &v.url(), &[], &["--over"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut command = v.command(&args);
    let output = command.env("SEALFS_RUNTIME_DIR", v.path("vault/run")).output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the control socket") && output.status.code() == Some(2), "{stderr}");
    // What the AWS libraries read again and again.
    let args = mount_at(&v, "s3://a-bucket/x", &[], &["--over"]);
    for (variable, file) in [
        ("HOME", "vault"),
        ("AWS_SHARED_CREDENTIALS_FILE", "vault/credentials"),
        ("AWS_CONFIG_FILE", "aside/link/config"),
        ("AWS_CA_BUNDLE", "vault/ca.pem"),
    ] {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let output = v.command(&args).env(variable, v.path(file)).output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("the AWS settings"), "{variable}: {stderr}");
        assert_eq!(output.status.code(), Some(2));
    }
    // And what everything needs.
    for dir in ["/", "/etc", "/dev"] {
        let pass = v.text("passphrase");
        let stderr = v.fails(&["mount", &v.url(), dir, "--over", "--passphrase-file", &pass], 2);
        assert!(stderr.contains(&format!("cannot mount on {dir}: ")), "{stderr}");
    }
    // The other way round: the mount would be among the objects of its own store.
    let inside = format!("file://{}", v.text(""));
    let args = mount_at(&v, &inside, &[], &["--over"]);
    let stderr = v.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2);
    assert!(stderr.contains("it is in file://"), "{stderr}");
    assert!(!v.is_mounted());
}

#[test]
fn a_directory_that_is_not_empty_is_covered_only_when_asked() {
    // Guards against files that seem lost because a volume was mounted over them.
    let v = Volume::bare();
    std::fs::write(v.path("vault/precious"), "").expect("writes");
    let run = |more: &[&str], status| {
        let args = mount_at(&v, &v.url(), &[], more);
        v.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), status)
    };
    let stderr = run(&[], 2);
    assert_eq!(
        stderr,
        format!(
            "sealfs: error: {} is not empty: a mount would hide precious\n\
             hint: choose an empty directory, or hide them until it is unmounted: --over\n",
            v.text("vault")
        )
    );
    // Further than that: the next thing that is missing is the volume.
    for over in [&["--over"][..], &["-o", "nonempty"]] {
        assert!(run(over, 5).contains("no volume"));
    }
}
