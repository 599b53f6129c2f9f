//! What the command line says when it refuses: exact words and exit statuses, without a mount.

use crate::mounts;
use crate::mounts::Volume;
use crate::support::s3server::{ACCESS_KEY, S3Server, SECRET_KEY};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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
         hint: use --passphrase-file FILE, --passphrase-fd N, --passphrase-command CMD, --key-file FILE, \
         --recovery-file FILE, --kms or --age-identity FILE\n"
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
        assert!(stderr.contains("\nhint: mount it on another directory"), "{stderr}");
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

/// `sealfs` with nothing in its environment but this.
fn sealfs<'a>(
    env: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
    args: &[&OsStr],
) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sealfs"))
        .args(args)
        .env_clear()
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(env)
        .stdin(Stdio::null())
        .output()
        .expect("the command runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// What reaches the server of a test.
fn reaching(endpoint: &str) -> Vec<(&'static str, OsString)> {
    vec![
        ("AWS_ENDPOINT_URL_S3", endpoint.into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("HOME", "/nonexistent".into()),
    ]
}

#[test]
fn no_variable_makes_a_command_panic_or_hang() {
    // Guards against values that are passed on to libraries unseen: a line end in a key id was a
    // panic of the HTTP library, exit status 101.
    const VARIABLES: &[&str] = &[
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CA_BUNDLE",
        "AWS_MAX_ATTEMPTS",
        "AWS_RETRY_MODE",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "AWS_SDK_UA_APP_ID",
        "AWS_EXECUTION_ENV",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "AWS_REQUEST_CHECKSUM_CALCULATION",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_AUTH_SCHEME_PREFERENCE",
        "AWS_SIGV4A_SIGNING_REGION_SET",
        "AWS_ACCOUNT_ID_ENDPOINT_MODE",
        "SSL_CERT_FILE",
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_STATE_HOME",
        "XDG_RUNTIME_DIR",
        "SEALFS_RUNTIME_DIR",
        "TERM",
        "COLUMNS",
        "RUST_LOG",
        "TMPDIR",
        "JOURNAL_STREAM",
    ];
    let values: [&[u8]; 5] =
        [b"", b" a\nb", b"\xff\xfe", b"99999999999999999999", b"%s \xf0\x9f\x92\xa3"];
    let server = S3Server::start();
    let base = reaching(&server.endpoint());
    let check = |variable: &'static str| {
        for value in values {
            let value = OsString::from_vec(value.to_vec());
            let env = base.iter().map(|(k, v)| (*k, v.as_os_str())).chain([(variable, &*value)]);
            // What is asked of a bucket, and what is asked of this machine.
            let command: &[&str] = match variable.split('_').next() {
                Some("AWS" | "SSL") => &["doctor", "s3://test/data"],
                _ => &["status", "/nonexistent"],
            };
            let args: Vec<&OsStr> = command.iter().map(OsStr::new).collect();
            let begun = Instant::now();
            let (output, said) = sealfs(env, &args);
            let code = output.status.code();
            assert!(code.is_some_and(|c| c < 20), "{variable}={value:?}: {code:?} {said}");
            assert!(begun.elapsed() < Duration::from_secs(25), "{variable}={value:?}: {said}");
        }
    };
    std::thread::scope(|threads| {
        for half in VARIABLES.chunks(VARIABLES.len().div_ceil(3)) {
            threads.spawn(move || half.iter().for_each(|variable| check(variable)));
        }
    });
}

#[test]
fn no_value_of_a_flag_makes_a_command_panic() {
    // Guards against sums of sizes and times that overflow, and numbers that libraries assert on.
    const MOUNT: &[&str] = &[
        "--cache-size",
        "--journal-size",
        "--commit-interval",
        "--read-timeout",
        "--clean-after",
        "--at-least",
        "--passphrase-fd",
        "--log-level",
        "--endpoint-url",
        "--region",
        "--profile",
        "--sse",
        "--sse-kms-key-id",
        "--sse-kms-context",
        "--sse-c-key-file",
        "--object-tag",
        "-o",
    ];
    const VALUES: &[&[u8]] = &[
        b"",
        b" ",
        b"a\nb",
        b"\xff\xfe",
        b"-1",
        b"18446744073709551615",
        b"99999999999T",
        b"99999999999999h",
    ];
    let v = Volume::bare();
    let (vault, pass, log) = (v.text("vault"), v.text("passphrase"), v.text("log"));
    let refuse = |command: &[&str], flag: &str| {
        for value in VALUES {
            let value = OsString::from_vec(value.to_vec());
            let mut args: Vec<&OsStr> = command.iter().map(OsStr::new).collect();
            args.extend([OsStr::new(flag), &*value]);
            let (output, said) = sealfs([("HOME", OsStr::new("/nonexistent"))], &args);
            let code = output.status.code();
            assert!(
                code.is_some_and(|c| (1..20).contains(&c)),
                "{flag} {value:?}: {code:?} {said}"
            );
            assert!(said.contains("error: "), "{flag} {value:?}: {said}");
        }
    };
    for flag in MOUNT {
        let s3 = flag.contains("url") || flag.contains("region") || flag.contains("profile");
        let store = if s3 { "s3://test/data" } else { "file:///nonexistent" };
        let mut command =
            vec!["mount", store, &vault, "--log-file", &log, "--state-dir", "/proc/no"];
        if *flag != "--passphrase-fd" {
            command.extend(["--passphrase-file", &pass]);
        }
        refuse(&command, flag);
    }
    for command in ["sync", "umount"] {
        refuse(&[command, &vault], "--stall-timeout");
    }
    for flag in ["--parallel", "--rate"] {
        refuse(&["sse", "migrate", "file:///nonexistent", "--to", "AES256"], flag);
    }
    refuse(&["sse", "audit", "file:///nonexistent"], "--sample");
    assert!(!v.is_mounted());
}

#[test]
fn bad_input_is_refused_by_its_name_before_anything_is_sent() {
    // Guards against a riddle of the HTTP library, an outage that is none, or a request to another
    // address than was meant.
    let server = S3Server::start();
    let base = reaching(&server.endpoint());
    let v = Volume::bare();
    let pass = v.text("passphrase");
    for (variable, value, says) in [
        ("AWS_ACCESS_KEY_ID", "AK\nID", "the access key id (AWS_ACCESS_KEY_ID)"),
        ("AWS_ACCESS_KEY_ID", "", "AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not"),
        ("AWS_SECRET_ACCESS_KEY", "secret\n", "the secret access key (AWS_SECRET_ACCESS_KEY)"),
        ("AWS_SECRET_ACCESS_KEY", "", "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"),
        ("AWS_SESSION_TOKEN", "to\nken", "the session token (AWS_SESSION_TOKEN)"),
        ("AWS_REGION", "us east", "AWS_REGION"),
        ("AWS_PROFILE", "no\nne", "AWS_PROFILE"),
        ("AWS_PROFILE", "none", "there is no profile \"none\" (AWS_PROFILE)"),
        ("AWS_ENDPOINT_URL_S3", " http://127.0.0.1:1", "holds a space"),
        ("AWS_ENDPOINT_URL_S3", "http://me:pass@127.0.0.1:1", "holds a user or password"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1/?a=b", "holds a query"),
    ] {
        let env = base.iter().map(|(k, v)| (*k, v.as_os_str()));
        let env = env.chain([(variable, OsStr::new(value))]);
        let args = ["init", "s3://test/data", "--passphrase-file", &pass].map(OsStr::new);
        let (output, said) = sealfs(env, &args);
        assert!(matches!(output.status.code(), Some(2 | 4)), "{variable}={value:?}: {said}");
        assert!(said.contains(says) && said.contains("hint: "), "{variable}={value:?}: {said}");
        assert!(!said.contains("me:pass"), "{said}");
    }
    let sent = server.counts();
    assert_eq!(sent.requests(), 0, "something was sent");
}

#[test]
fn a_flag_names_the_profile_before_the_variables_have_a_say() {
    // Guards against keys in the environment being used although another profile was asked for
    // (boto3: --profile wins; AWS_PROFILE does not).
    let server = S3Server::start();
    let v = Volume::bare();
    let text =
        format!("[work]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n");
    std::fs::write(v.path("keys"), text).expect("writes");
    let keys = v.text("keys");
    let pass = v.text("passphrase");
    let mut env = reaching(&server.endpoint());
    env.push(("AWS_SHARED_CREDENTIALS_FILE", keys.clone().into()));
    env.push(("AWS_ACCESS_KEY_ID", "AKIDNOBODY".into()));
    env.push(("AWS_SECRET_ACCESS_KEY", "wrong".into()));
    let init = |more: &[(&'static str, &'static str)], flags: &[&str]| {
        let env = env.iter().map(|(k, v)| (*k, v.as_os_str()));
        let env = env.chain(more.iter().map(|(k, v)| (*k, OsStr::new(*v))));
        let mut args = vec!["init", "s3://test/data", "--passphrase-file", &pass];
        args.extend(flags);
        let args: Vec<&OsStr> = args.into_iter().map(OsStr::new).collect();
        let (output, said) = sealfs(env, &args);
        (output.status.code(), said)
    };
    let (code, said) = init(&[("AWS_PROFILE", "work")], &[]);
    assert_eq!(code, Some(4), "the keys of the environment were used: {said}");
    let (code, said) = init(&[], &["--profile", "play"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(
        said.contains("there is no profile \"play\" (--profile)") && said.contains(&keys),
        "{said}"
    );
    let (code, said) = init(&[], &["--profile", "work"]);
    assert_eq!(code, Some(0), "{said}");
}

/// The address of a server that answers everything with 403 and these header lines.
fn refuses_all(headers: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let _ = socket.read(&mut [0; 4096]);
            let end = "content-length: 0\r\nconnection: close\r\n\r\n";
            let refusal = format!("HTTP/1.1 403 Forbidden\r\n{headers}{end}");
            let _ = socket.write_all(refusal.as_bytes());
        }
    });
    address
}

/// What `init` says where its bucket cannot be used.
fn init_is_refused<const N: usize>(env: [(&str, &str); N]) -> String {
    let env = env.map(|(k, v)| (k, OsStr::new(v)));
    let v = Volume::bare();
    let pass = v.text("passphrase");
    let args = ["init", "s3://test/data", "--passphrase-file", &pass].map(OsStr::new);
    let (output, said) = sealfs(env, &args);
    assert_eq!(output.status.code(), Some(4), "{said}");
    said
}

#[test]
fn a_metadata_service_that_refuses_is_no_reason_to_wait() {
    // Guards against half a minute of silence, then "check the address", on a machine that has no
    // credentials and something that answers 403 on the address of the metadata service.
    let metadata = refuses_all("");
    let begun = Instant::now();
    let env = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"),
        ("HOME", "/nonexistent"),
    ];
    let said = init_is_refused(env);
    assert!(said.contains("no credentials found") && said.contains("metadata"), "{said}");
    assert!(said.contains("hint: aws configure") && said.contains("--profile"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(15), "after {:?}", begun.elapsed());
}

#[test]
fn a_refusal_of_the_server_names_its_request() {
    // Guards against an error that the operators of the store cannot find in their logs.
    let endpoint = refuses_all("x-amz-request-id: 4442587FB7D0A2F9\r\n");
    let env = [
        ("AWS_ENDPOINT_URL_S3", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ];
    let said = init_is_refused(env);
    assert!(said.contains("(request id 4442587FB7D0A2F9)"), "{said}");
}

#[test]
fn a_volume_within_another_is_never_made() {
    // Guards against two volumes in one another: to the outer one, the objects of the inner one are
    // foreign for ever, and fsck and audit fail. Both directions, and at every depth.
    let v = Volume::bare();
    let pass = v.text("passphrase");
    let init = |place: &str| {
        let url = format!("file://{}", v.text(place));
        (v.run(&["init", &url, "--passphrase-file", &pass]), url)
    };
    let (made, outer) = init("store/a");
    assert!(made.status.success());
    let refused = |place: &str, said: &str| {
        let (output, url) = init(place);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{place}: {stderr}");
        assert!(stderr.contains(&said.replace("URL", &url)), "{place}: {stderr}");
        assert!(stderr.contains("\nhint: "), "{stderr}");
    };
    refused("store/a/sub", &format!("URL lies within the volume {outer}"));
    refused("store/a/x/y/z", &format!("URL lies within the volume {outer}"));
    refused("store", &format!("URL holds the volume {outer}"));
    refused("store/a", "there is a volume at URL already");
    std::os::unix::fs::symlink(v.path("store/a"), v.path("link")).expect("links");
    refused("link/sub", "lies within the volume ");
    assert!(!v.path("store/a/sub").join("keyring").exists());
    // Beside it there is room.
    assert!(init("store/a2").0.status.success());
    // What is no keyring of ours is no volume.
    std::fs::create_dir(v.path("plain")).expect("makes");
    std::fs::write(v.path("plain/keyring"), "of somebody else").expect("writes");
    assert!(init("plain/volume").0.status.success());
}

#[test]
fn a_place_that_cannot_be_mounted_on_or_logged_to_is_named_with_a_way_out() {
    // Guards against one sentence for everything ("cannot log"), and against a file of a log made
    // somewhere by a command that was refused.
    let v = Volume::bare();
    std::fs::write(v.path("file"), "").expect("writes");
    let run = |dir: &str, log: &str| {
        let pass = v.text("passphrase");
        let (dir, log) = (v.text(dir), v.text(log));
        let args = ["mount", &v.url(), &dir, "--passphrase-file", &pass, "--log-file", &log];
        let places = [v.text("cache"), v.text("state")];
        v.fails(&[&args[..], &["--cache-dir", &places[0], "--state-dir", &places[1]]].concat(), 1)
    };
    for (dir, log, said) in [
        ("file", "log", "file: it is not a directory\nhint: choose a directory"),
        ("file/x", "log", "it is not a directory\nhint: "),
        ("vault", "run", "run: it is a directory\nhint: name a file in it: --log-file "),
        ("vault", "missing/log", &format!("missing\nhint: mkdir -p {}\n", v.text("missing"))),
        ("vault", "file/log", "file is not a directory\nhint: "),
    ] {
        let stderr = run(dir, log);
        assert!(stderr.contains(said), "{dir} {log}: {stderr}");
        assert_eq!(stderr.lines().count(), 2, "{stderr}");
    }
}

#[test]
fn a_passphrase_is_asked_for_three_times_but_not_for_a_volume_that_is_not_there() {
    // Guards against a typo that costs a whole command line, and against somebody typing a
    // passphrase only to learn that the store has no volume.
    let typed = |v: &Volume, command: &str, lines: &str| {
        mounts::typed(command, &[("SEALFS_RUNTIME_DIR", &v.text("run"))], lines)
    };
    let v = Volume::create();
    let program = env!("CARGO_BIN_EXE_sealfs");
    let state = v.text("state");
    let fsck = format!("{program} fsck {} --state-dir {state}", v.url());
    let right = "correct horse battery staple";
    let (status, said) = typed(&v, &fsck, &format!("wrong\nwrong again\n{right}\n"));
    assert_eq!((status, said.matches("passphrase: ").count()), (Some(0), 3), "{said}");
    let (status, said) = typed(&v, &fsck, "a\nb\nc\nd\n");
    assert_eq!((status, said.matches("passphrase: ").count()), (Some(3), 3), "{said}");
    let empty = Volume::bare();
    let mount = format!("{program} mount {} {}", empty.url(), empty.text("vault"));
    let (status, said) = typed(&empty, &mount, "x\n");
    assert_eq!(status, Some(5), "{said}");
    assert!(said.contains("no volume") && !said.contains("passphrase: "), "{said}");
    let init = format!("{program} init {}", v.url());
    let (status, said) = typed(&v, &init, "x\nx\n");
    assert_eq!(status, Some(5), "{said}");
    assert!(said.contains("already") && !said.contains("passphrase: "), "{said}");
}

#[test]
fn a_passphrase_that_is_guessed_at_once_is_refused_unless_told() {
    // Guards against a volume sealed under "x": whoever reads the bucket has the keyring to try
    // passphrases on.
    let v = Volume::bare();
    let pass = v.text("passphrase");
    let init = ["init", &v.url(), "--passphrase-file", &pass];
    for weak in ["x", "password1", "12345678", "qwertyuiop", "sealfs"] {
        std::fs::write(&pass, weak).expect("writes");
        let said = v.fails(&init, 2);
        assert!(said.starts_with("sealfs: error: the passphrase is too easy to guess: in about "));
        assert!(said.contains("\nhint: ") && said.contains("--weak-passphrase"), "{said}");
        assert!(!said.contains(&format!("\"{weak}\"")), "never shown");
    }
    let script = format!(
        "exec {} init {} --passphrase-fd 3 3<{pass}",
        env!("CARGO_BIN_EXE_sealfs"),
        v.url()
    );
    let fd = std::process::Command::new("bash").args(["-c", &script]).output().expect("bash runs");
    assert_eq!(fd.status.code(), Some(2), "{fd:?}");
    let told = v.run(&[&init[..], &["--weak-passphrase"]].concat());
    assert!(told.status.success(), "{told:?}");
    assert!(
        String::from_utf8_lossy(&told.stderr).contains("warning: the passphrase can be guessed")
    );
    // What init leaves in a directory is its owner's alone, whatever the umask.
    for entry in walkdir::WalkDir::new(v.path("store")).min_depth(1) {
        let entry = entry.expect("lists");
        let mode = std::os::unix::fs::MetadataExt::mode(&entry.metadata().expect("stats"));
        assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
    }
}

#[test]
fn a_control_socket_of_a_stranger_is_not_believed() {
    // Guards against another user who listens in the place of the daemon, and says to `umount`
    // that everything is in the bucket.
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root can act as a stranger");
        return;
    }
    let v = Volume::bare();
    let vault = v.vault().canonicalize().expect("is there");
    let hash = <sha2::Sha256 as sha2::Digest>::digest(vault.display().to_string());
    let socket = v.path("run").join(format!("{}.sock", sealfs::base::hex(&hash[..8])));
    let script = "import os, socket, sys, time; os.setuid(65534); \
                  s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); \
                  print('ready', flush=True); time.sleep(60)";
    for dir in [v.path("run"), v.path("")] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir, open).expect("own directory");
    }
    let stranger = std::process::Command::new("python3")
        .args(["-c", script, &socket.display().to_string()])
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut stranger = mounts::Holder(stranger.expect("python runs"));
    let mut ready = [0; 5];
    let out = stranger.0.stdout.as_mut().expect("piped");
    std::io::Read::read_exact(out, &mut ready).expect("it listens");
    let said = v.fails(&["status", &vault.display().to_string()], 9);
    assert!(said.contains("is not a sealfs mount"), "{said}");
}

#[test]
fn nobody_who_reads_on_is_no_panic_and_a_full_disk_is_told() {
    // Guards against status 101 and a backtrace for `sealfs key list … | head -1`, and against a
    // listing that is cut by a full disk and called done.
    use std::os::unix::process::ExitStatusExt;
    let v = Volume::create();
    let (url, state, pass) = (v.url(), v.text("state"), v.text("passphrase"));
    let open = ["--state-dir", &state, "--passphrase-file", &pass];
    let commands: Vec<Vec<&str>> = vec![
        vec!["key", "list", &url],
        vec!["key", "list", &url, "--json"],
        [&["fsck", &url][..], &open].concat(),
        vec!["doctor", &url],
        vec!["doctor", "s3://bucket/b", "--iam-policy", "--endpoint-url", "http://127.0.0.1:1"],
        vec!["--help"],
        vec!["--version"],
    ];
    for args in &commands {
        let run = |stdout: std::process::Stdio| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealfs"));
            command.args(args).stdin(std::process::Stdio::null()).stdout(stdout);
            let done = command.output().expect("runs");
            (done.status, String::from_utf8_lossy(&done.stderr).into_owned())
        };
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (status, said) = run(writer.into());
        assert_eq!(status.signal(), Some(libc::SIGPIPE), "{args:?}: {status} {said}");
        assert!(!said.contains("panic") && !said.contains("error"), "{args:?}: {said}");
        let full = std::fs::File::options().write(true).open("/dev/full").expect("there is one");
        let (status, said) = run(full.into());
        assert_eq!(status.code(), Some(1), "{args:?}: {said}");
        let told = "sealfs: error: cannot write to standard output: No space left on device";
        assert!(said.contains(told), "{args:?}: {said}");
        // And no complaint about complaints.
        let full = std::fs::File::options().write(true).open("/dev/full").expect("there is one");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealfs"));
        let status = command.args(["key", "list", "nothing"]).stderr(full).status();
        assert_eq!(status.expect("runs").code(), Some(2));
    }
    // What is shown once only and was not shown is said.
    let add = [&["key", "add", &url, "--label", "paper", "--recovery"][..], &open].concat();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealfs"));
    let full = std::fs::File::options().write(true).open("/dev/full").expect("there is one");
    let done = command.args(&add).stdout(full).output().expect("runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("nobody has seen its recovery key"), "{said}");
    assert!(said.contains(&format!("sealfs key remove {url} 2")), "{said}");
}
