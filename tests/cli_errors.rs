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
    for command in ["init", "mount", "umount", "sync", "status", "demo"] {
        let help = v.ok(&[command, "--help"]);
        assert!(
            help.contains("Examples:") && help.contains(&format!("sealfs {command}")),
            "{help}"
        );
    }
}
