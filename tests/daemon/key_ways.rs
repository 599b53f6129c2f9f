//! The ways into a volume: programs and credentials that give a passphrase, AWS KMS, age keys and
//! their plugins; by the real command, as a person has it.

use crate::needs_fuse;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::mounts::{self, Volume};
use crate::support::free_port;
use crate::ways::kms::{Answer, KEY, Kms, OTHER};
use crate::ways::{core_of, holds};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Runs `sealfs` with no AWS settings but these.
fn run(v: &Volume, env: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = v.command(args);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", v.path("home"));
    command.envs(env.iter().copied()).output().expect("runs")
}

/// Its standard output; it must succeed.
fn ok(v: &Volume, env: &[(&str, &str)], args: &[&str]) -> String {
    let done = run(v, env, args);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "sealfs {args:?}: {} {said}", done.status);
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Its standard error; it must fail with this status.
fn fails(v: &Volume, env: &[(&str, &str)], args: &[&str], status: i32) -> String {
    let done = run(v, env, args);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(status), "sealfs {args:?}: {said}");
    assert!(said.contains("\nhint: "), "sealfs {args:?}: {said}");
    said
}

/// A file that only its owner reads.
fn private(v: &Volume, name: &str, bytes: impl AsRef<[u8]>) -> String {
    fs::write(v.path(name), bytes).expect("writes");
    fs::set_permissions(v.path(name), fs::Permissions::from_mode(0o600)).expect("own file");
    v.text(name)
}

/// `sealfs key VERB STORE --state-dir …`, and more.
fn key<'a>(verb: &'a str, url: &'a str, state: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["key", verb, url, "--state-dir", state][..], more].concat()
}

const CREDENTIALS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "secret")];

#[test]
fn a_passphrase_comes_from_a_program_or_from_the_credentials_of_a_unit() {
    // Guards against a passphrase that can be had in a file only; a program's status that nobody
    // looks at; and a unit whose sealed credentials are not found.
    let v = Volume::create();
    let (url, state) = (v.url(), v.text("state"));
    let test = |more: &[&'static str]| {
        key("test", &url, &state, more).iter().map(|a| a.to_string()).collect::<Vec<_>>()
    };
    let given = format!("cat '{}'", v.text("passphrase"));
    let with = |command: &str| [test(&["--passphrase-command"]), vec![command.to_owned()]].concat();
    let words = |args: &[String]| args.iter().map(|a| a.to_string()).collect::<Vec<_>>();
    let opened = "it opens slot 1 (first, passphrase)\n";
    let args = words(&with(&given));
    assert_eq!(ok(&v, &[], &args.iter().map(String::as_str).collect::<Vec<_>>()), opened);
    // More lines than one, as `pass` has them; a shell only where one is named.
    let shell = format!("sh -c \"cat '{}'; echo user: me; echo asked >&2\"", v.text("passphrase"));
    let args = with(&shell);
    let done = run(&v, &[], &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(done.status.success() && done.stderr.starts_with(b"asked\n"), "{done:?}");
    for (command, status, said) in [
        ("sh -c 'echo correct horse battery staple; exit 4'", 3, "ended with status 4"),
        ("/no/such/program", 1, "cannot run the passphrase command /no/such/program"),
        ("true", 2, "the passphrase is empty"),
        ("", 2, "is empty"),
        ("cat 'x", 2, "is not closed"),
        ("echo wrong", 3, "wrong passphrase"),
        ("echo $(touch HACKED)", 3, "wrong passphrase"),
    ] {
        let args = with(command);
        let done = run(&v, &[], &args.iter().map(String::as_str).collect::<Vec<_>>());
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{command}: {stderr}");
        assert!(stderr.contains(said), "{command}: {stderr}");
    }
    assert!(!std::path::Path::new("HACKED").exists());
    // What systemd passes to a unit; a flag goes before it.
    let credentials = v.path("credentials");
    fs::create_dir(&credentials).expect("makes");
    let dir = v.text("credentials");
    let env = [("CREDENTIALS_DIRECTORY", &*dir)];
    fs::copy(v.path("passphrase"), credentials.join("sealfs.passphrase")).expect("copies");
    let test = key("test", &url, &state, &[]);
    assert_eq!(ok(&v, &env, &test), opened);
    let wrong = private(&v, "wrong", "wrong\n");
    fails(&v, &env, &key("test", &url, &state, &["--passphrase-file", &wrong]), 3);
    fs::write(credentials.join("sealfs.key"), [7; 40]).expect("writes");
    let said = fails(&v, &env, &test, 2);
    assert!(said.contains("sealfs.passphrase and sealfs.key"), "{said}");
    fs::remove_file(credentials.join("sealfs.passphrase")).expect("removes");
    fails(&v, &env, &test, 3);
    // Of the new one, hints name its own flag.
    let pass = v.text("passphrase");
    let more = ["--passphrase-file", &pass, "--label", "x", "--new-passphrase-fd", "77"];
    let said = fails(&v, &[], &key("add", &url, &state, &more), 2);
    assert!(said.contains("--new-passphrase-fd 77 77<FILE"), "{said}");
}

/// Adds the slot `server`, which KMS opens; what is said.
fn add_kms_slot(v: &Volume, kms: &Kms) -> String {
    let (url, state, pass) = (v.url(), v.text("state"), v.text("passphrase"));
    let add = ["--passphrase-file", &pass, "--label", "server", "--kms-key", "alias/sealfs"];
    let at = ["--kms-region", "eu-west-1", "--kms-endpoint-url", &kms.endpoint];
    ok(v, &CREDENTIALS, &key("add", &url, &state, &[&add[..], &at].concat()))
}

#[test]
fn kms_opens_its_slot_by_itself_and_says_why_not() {
    // Guards against a slot that needs a flag where the machine has credentials; an alias that
    // locks everybody out when it moves; a context that is not what was promised; and an
    // exception's name in place of the missing permission.
    let (v, kms) = (Volume::create(), Kms::start());
    let (url, state, pass) = (v.url(), v.text("state"), v.text("passphrase"));
    let added = add_kms_slot(&v, &kms);
    assert!(added.starts_with("slot 2 (server) added"), "{added}");
    let list = ok(&v, &[], &key("list", &url, &state, &["--json"]));
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let (action, body) = kms.seen().pop().expect("it was asked");
    let context = serde_json::json!({"sealfs:volume": list["volume"], "sealfs:slot": "2"});
    assert_eq!((&*action, &body["EncryptionContext"]), ("Encrypt", &context));
    let slot = &list["slots"][1];
    assert_eq!((&slot["kind"], &slot["kms"]["key"]), (&"AWS KMS".into(), &KEY.into()));
    assert_eq!(slot["kms"]["endpoint_url"], kms.endpoint);
    // By itself, with the key as it answered, wherever the alias points now.
    kms.move_alias();
    let test = key("test", &url, &state, &[]);
    let with_kms = key("test", &url, &state, &["--kms"]);
    let opened = "it opens slot 2 (server, AWS KMS)\n";
    assert_eq!(ok(&v, &CREDENTIALS, &test), opened);
    assert_eq!(ok(&v, &CREDENTIALS, &with_kms), opened);
    for (action, body) in kms.seen() {
        assert_eq!((&*action, &body["KeyId"]), ("Decrypt", &KEY.into()));
        assert_eq!(body["EncryptionContext"], context);
    }
    let used = ok(&v, &[], &key("list", &url, &state, &["--json"]));
    let used: serde_json::Value = serde_json::from_str(&used).expect("JSON");
    assert!(used["slots"][1]["last_used_secs"].as_u64() > Some(1_700_000_000), "{used}");
    // Busy at first, then not; lost on the way.
    let busy = Answer::Refuse("ThrottlingException", "Rate exceeded");
    kms.next([busy.clone(), busy.clone()]);
    assert_eq!(ok(&v, &CREDENTIALS, &with_kms), opened);
    kms.next([Answer::Nothing]);
    assert_eq!(ok(&v, &CREDENTIALS, &with_kms), opened);
    kms.seen();
    // Refusals, each with a sentence and what to do.
    let denied = "User: arn:aws:iam::1:user/u is not authorized to perform: kms:Decrypt";
    for (answer, status, said) in [
        (busy, 4, ["too often", "try again"]),
        (
            Answer::Refuse("AccessDeniedException", denied),
            4,
            ["does not allow kms:Decrypt", "--iam-policy"],
        ),
        (
            Answer::Refuse("DisabledException", "x"),
            3,
            ["is disabled", "aws kms enable-key --region eu-west-1"],
        ),
        (
            Answer::Refuse("KMSInvalidStateException", "k is pending deletion."),
            3,
            ["to be deleted", "cancel-key-deletion"],
        ),
        (Answer::Refuse("NotFoundException", "Invalid keyId"), 3, ["has no key", "--kms-region"]),
        (
            Answer::Refuse("InvalidCiphertextException", ""),
            3,
            ["encryption context", "another slot"],
        ),
        (
            Answer::Refuse("UnrecognizedClientException", "x"),
            4,
            ["refuses the credentials", "aws sts"],
        ),
        (Answer::Page, 4, ["not AWS KMS", "--kms-endpoint-url"]),
    ] {
        kms.always(Some(answer.clone()));
        let stderr = fails(&v, &CREDENTIALS, &with_kms, status);
        assert!(said.iter().all(|part| stderr.contains(part)), "{answer:?}: {stderr}");
        let tries = kms.seen().len();
        assert!((1..=5).contains(&tries), "{answer:?}: {tries} requests");
    }
    kms.always(None);
    // Without credentials, and without a network; then a passphrase still opens it.
    let said = fails(&v, &[], &with_kms, 4);
    assert!(said.contains("credentials") && said.contains("aws configure"), "{said}");
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let away = key("test", &url, &state, &["--kms", "--kms-endpoint-url", &nowhere]);
    let said = fails(&v, &CREDENTIALS, &away, 4);
    assert!(said.contains(&nowhere) && said.contains("cannot be asked"), "{said}");
    ok(&v, &CREDENTIALS, &key("test", &url, &state, &["--passphrase-file", &pass]));
    // The seed never travels in clear.
    let open = key("test", &url, &state, &["--kms", "--kms-endpoint-url", "http://192.0.2.1"]);
    let said = fails(&v, &CREDENTIALS, &open, 1);
    assert!(said.contains("unencrypted"), "{said}");
    // What KMS gives for another key is not believed.
    let add = ["--passphrase-file", &pass, "--label", "b", "--kms-key", OTHER];
    let said = fails(
        &v,
        &CREDENTIALS,
        &key("add", &url, &state, &[&add[..], &["--kms-region", "us-east-1"]].concat()),
        1,
    );
    assert!(said.contains("is in eu-west-1"), "{said}");
}

#[test]
fn the_last_slot_that_needs_nobody_is_kept_unless_told() {
    // Guards against a volume that dies with an AWS account, because somebody tidied up.
    let (v, kms) = (Volume::create(), Kms::start());
    let (url, state) = (v.url(), v.text("state"));
    add_kms_slot(&v, &kms);
    let said = fails(&v, &CREDENTIALS, &key("remove", &url, &state, &["first", "--kms"]), 1);
    assert!(said.contains("without AWS KMS") && said.contains("--force"), "{said}");
    ok(&v, &CREDENTIALS, &key("remove", &url, &state, &["first", "--kms", "--force"]));
    let said = fails(&v, &CREDENTIALS, &key("remove", &url, &state, &["server", "--force"]), 1);
    assert!(said.contains("the last one"), "{said}");
    // A prompt makes no sense for a volume without a passphrase: what KMS said is told.
    let said = fails(&v, &[], &key("test", &url, &state, &[]), 4);
    assert!(said.contains("credentials"), "{said}");
    let policy = run(
        &v,
        &CREDENTIALS,
        &[
            "doctor",
            "s3://bucket/p",
            "--iam-policy",
            "--kms-key",
            KEY,
            "--endpoint-url",
            "http://127.0.0.1:1",
        ],
    );
    let policy = String::from_utf8_lossy(&policy.stdout).into_owned();
    for part in ["kms:Decrypt", "kms:Encrypt", "kms:EncryptionContext:sealfs:volume", KEY] {
        assert!(policy.contains(part), "{policy}");
    }
}

/// A plugin as age has them: a program that wraps the file key by turning its bits around.
const PLUGIN: &str = r#"#!/usr/bin/env python3
import base64, sys
def read():
    line = sys.stdin.readline()
    if not line: sys.exit(0)
    words, body = line.strip().split(" ")[1:], ""
    while True:
        line = sys.stdin.readline().rstrip("\n")
        body += line
        if len(line) < 64: break
    return words, base64.b64decode(body + "=" * (-len(body) % 4))
def send(words, body=b""):
    text = base64.b64encode(body).decode().rstrip("=")
    lines = [text[i:i + 64] for i in range(0, len(text) + 1, 64)]
    sys.stdout.write("-> " + " ".join(words) + "\n" + "\n".join(lines) + "\n")
    sys.stdout.flush()
def turned(key): return bytes(255 - b for b in key)
stanzas, keys, machine = [], [], sys.argv[1].split("=")[1]
while True:
    words, body = read()
    if words[0] == "done": break
    if words[0] == "wrap-file-key": keys.append(body)
    if words[0] == "recipient-stanza" and words[2] == "turned": stanzas.append((words[1], body))
if machine == "recipient-v1":
    for i, key in enumerate(keys):
        send(["recipient-stanza", str(i), "turned"], turned(key)); read()
else:
    send(["msg"], b"touch the token"); read()
    for index, body in stanzas:
        send(["file-key", index], turned(body)); read()
send(["done"])
"#;

#[test]
fn an_age_slot_opens_for_each_of_its_recipients_and_for_nobody_else() {
    // Guards against a slot that only one kind of key opens; an ssh key whose passphrase nobody
    // asks for; a plugin that is not found; and a hint that leaves a person without a next step.
    let v = Volume::create();
    let (url, state, pass) = (v.url(), v.text("state"), v.text("passphrase"));
    for (name, kind, phrase) in [
        ("ed", "ed25519", ""),
        ("rsa", "rsa", ""),
        ("locked", "ed25519", "open sesame"),
        ("other", "ed25519", ""),
    ] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", phrase, "-C", "me@here", "-f", &v.text(name)])
            .status();
        assert!(made.expect("ssh-keygen runs").success());
    }
    let of = |name: &str| fs::read_to_string(v.path(&format!("{name}.pub"))).expect("reads");
    let file = private(&v, "team", format!("# the team\n{}\n{}", of("rsa"), of("locked")));
    let ed = of("ed");
    let bin = v.path("bin");
    fs::create_dir(&bin).expect("makes");
    fs::write(bin.join("age-plugin-turn"), PLUGIN).expect("writes");
    fs::set_permissions(bin.join("age-plugin-turn"), fs::Permissions::from_mode(0o755))
        .expect("own");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("there is one"));
    let env = [("PATH", &*path)];
    // bech32 of no data at all, under the names of the plugin.
    let (token, token_identity) = ("age1turn19pvttw", "AGE-PLUGIN-TURN-1GWE4M4");
    let label = ["--passphrase-file", &pass, "--label", "keys"];
    let keys = ["--age-recipient", ed.trim(), "--age-recipients-file", &file];
    ok(&v, &[], &key("add", &url, &state, &[&label[..], &keys].concat()));
    let list = ok(&v, &[], &key("list", &url, &state, &["--json"]));
    assert!(!list.contains("me@here") && list.contains("ssh-rsa AAAA"), "{list}");
    let opened = "it opens slot 2 (keys, age)\n";
    for name in ["ed", "rsa"] {
        let identity = v.text(name);
        assert_eq!(ok(&v, &[], &key("test", &url, &state, &["--age-identity", &identity])), opened);
    }
    let (other, locked, rubbish) = (v.text("other"), v.text("locked"), private(&v, "rubbish", "x"));
    let said = fails(&v, &[], &key("test", &url, &state, &["--age-identity", &other]), 3);
    assert!(said.contains("none of the age slots"), "{said}");
    let said = fails(&v, &[], &key("test", &url, &state, &["--age-identity", &rubbish]), 1);
    assert!(said.contains("no age identity"), "{said}");
    // A passphrase is asked for at the terminal: script(1) has one.
    let command =
        [env!("CARGO_BIN_EXE_sealfs"), "key", "test", &url, "--age-identity", &locked].join(" ");
    let home = v.text("home");
    let (_, said) = mounts::typed(&command, &[("HOME", &home)], "wrong\nopen sesame\n");
    assert!(said.contains("wrong passphrase") && said.contains("it opens slot 2"), "{said}");
    // The plugin, on PATH or not.
    let (Some(token), Some(token_identity)) = (checked(token), checked(token_identity)) else {
        panic!("the bech32 of the test is wrong");
    };
    let more = ["--passphrase-file", &pass, "--label", "token", "--age-recipient", &token];
    let said = fails(&v, &[], &key("add", &url, &state, &more), 1);
    assert!(said.contains("age-plugin-turn is not on PATH"), "{said}");
    ok(&v, &env, &key("add", &url, &state, &more));
    let identity = private(&v, "token", format!("# a token\n{token_identity}\n"));
    let test = key("test", &url, &state, &["--age-identity", &identity]);
    let done = run(&v, &env, &test);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "it opens slot 3 (token, age)\n", "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("touch the token"), "{done:?}");
    let said = fails(&v, &[], &test, 1);
    assert!(said.contains("not on PATH"), "{said}");
    // A private key is no recipient, one slot is for one thing.
    let more = ["--passphrase-file", &pass, "--label", "x", "--age-recipient", &token_identity];
    let said = fails(&v, &[], &key("add", &url, &state, &more), 1);
    assert!(said.contains("private key"), "{said}");
    let more = ["--passphrase-file", &pass, "--label", "x", "--recovery", "--kms-key", "alias/a"];
    fails(&v, &[], &key("add", &url, &state, &more), 2);
}

/// `text` with the checksum of bech32 (BIP 173) that its human-readable part has without data.
fn checked(text: &str) -> Option<String> {
    const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    let (name, _) = text.rsplit_once('1')?;
    let lower = name.to_ascii_lowercase();
    let high = lower.bytes().map(|c| u32::from(c >> 5));
    let low = lower.bytes().map(|c| u32::from(c & 31));
    let values = high.chain([0]).chain(low).chain([0; 6]);
    let sum = values.fold(1u32, |sum, value| {
        let top = sum >> 25;
        let generators = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
        let mixed = (0..5).filter(|i| top >> i & 1 == 1).map(|i| generators[i]);
        mixed.fold((sum & 0x1ff_ffff) << 5 ^ value, |sum, g| sum ^ g)
    }) ^ 1;
    let check: String =
        (0..6).map(|i| char::from(ALPHABET[(sum >> (5 * (5 - i)) & 31) as usize])).collect();
    let whole = format!("{lower}1{check}");
    Some(if name.bytes().any(|b| b.is_ascii_uppercase()) { whole.to_uppercase() } else { whole })
}

/// An ssh key: the files of its recipient and of its identity.
fn ssh_key(v: &Volume) -> (String, String) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f", &v.text("ed")])
        .status();
    assert!(made.expect("ssh-keygen runs").success());
    (v.text("ed.pub"), v.text("ed"))
}

#[test]
fn a_mount_opens_with_every_kind_and_nothing_secret_stays_in_sight() {
    // Guards against a way in that only short commands have, and against a seed, PIN or identity
    // in the arguments, the environment or the log of the daemon.
    needs_fuse!();
    let (v, kms) = (Volume::create(), Kms::start());
    let (url, state, pass) = (v.url(), v.text("state"), v.text("passphrase"));
    let (recipients, identity) = ssh_key(&v);
    let opening = ["--passphrase-file", &pass, "--label", "x"];
    let new = [
        vec![
            "--kms-key",
            "alias/sealfs",
            "--kms-region",
            "eu-west-1",
            "--kms-endpoint-url",
            &kms.endpoint,
        ],
        vec!["--age-recipients-file", &recipients],
    ];
    for new in &new {
        ok(&v, &CREDENTIALS, &key("add", &url, &state, &[&opening[..], new].concat()));
    }
    let sealed = kms.seen().pop().expect("it was asked").1;
    let seed = sealed["Plaintext"].as_str().expect("base64").to_owned();
    let pem = fs::read(&identity).expect("reads");
    let secrets = [
        ("passphrase", b"correct horse battery staple".to_vec()),
        ("seed that KMS gave", STANDARD.decode(&seed).expect("base64")),
        ("answer of KMS", seed.clone().into_bytes()),
        ("private key", pem[100..160].to_vec()),
    ];
    let command = format!("cat {pass}");
    let (vault, cache, log) = (v.text("vault"), v.text("cache"), v.text("log"));
    for how in [
        vec!["--passphrase-command", &command],
        vec!["--kms"],
        vec![],
        vec!["--age-identity", &identity],
    ] {
        let at = ["mount", &url, &vault, "--cache-dir", &cache, "--state-dir", &state];
        let told = ["--log-file", &log, "--log-level", "trace"];
        ok(&v, &CREDENTIALS, &[&at[..], &told, &how].concat());
        fs::write(v.at("file"), format!("{how:?}")).expect("writes");
        let pid = v.daemon();
        for file in ["cmdline", "environ"] {
            let seen = fs::read(format!("/proc/{pid}/{file}")).expect("reads");
            let seen = String::from_utf8_lossy(&seen);
            for secret in ["correct horse", &seed, "OPENSSH"] {
                assert!(!seen.contains(secret), "{how:?}: {file}");
            }
        }
        // That of a passphrase: `fault_daemon`.
        let by_keeper = how.first().is_some_and(|flag| *flag != "--passphrase-command");
        if let Some(core) = by_keeper.then(|| core_of(&v, pid)).flatten() {
            assert!(core.len() > 1 << 20 && holds(&core, b"sealfs"), "{} bytes", core.len());
            for (what, secret) in &secrets {
                assert!(!holds(&core, secret), "{how:?}: the {what} is in the core");
            }
        }
        v.umount();
        for secret in ["correct horse", &seed, "OPENSSH"] {
            assert!(!v.log().contains(secret), "{how:?}: log");
        }
    }
}

#[test]
fn another_volume_in_the_place_of_one_is_noticed_where_anybody_can_make_it() {
    // Guards against somebody who can write to the bucket, and puts a volume of his own there whose
    // slot is for your age key: recipients are public. With a passphrase he could not.
    let v = Volume::create();
    let (url, state, pass) = (v.url(), v.text("state"), v.text("passphrase"));
    let (recipients, identity) = ssh_key(&v);
    let add = ["--passphrase-file", &pass, "--label", "x", "--age-recipients-file", &recipients];
    let test = key("test", &url, &state, &["--age-identity", &identity]);
    ok(&v, &[], &key("add", &url, &state, &add));
    ok(&v, &[], &test);
    fs::remove_dir_all(v.path("store")).expect("removes");
    fs::create_dir(v.path("store")).expect("makes");
    ok(&v, &[], &["init", &url, "--passphrase-file", &pass]);
    let theirs = v.text("their-state");
    ok(&v, &[], &key("add", &url, &theirs, &add));
    let said = fails(&v, &[], &test, 7);
    assert!(said.contains("and held") && said.contains("--volume-id"), "{said}");
    // Whoever says that this one is meant says it once.
    let meant = said.split_once("holds volume ").expect("its id").1.split(' ').next();
    let meant = meant.expect("its id").trim_end_matches(',');
    ok(&v, &[], &[&test[..], &["--volume-id", meant]].concat());
    ok(&v, &[], &test);
}

#[test]
fn a_slot_of_a_kind_of_tomorrow_is_kept_and_told_of() {
    // Guards against a way in that nobody knows of any more after a rotation, and against one that
    // is lost because an older sealfs did not know it. The keyring is that of the known answers.
    let v = Volume::bare();
    let (url, state) = (v.url(), v.text("state"));
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../vectors/format_v2.json")).expect("JSON");
    let bytes = |name: &str| -> Vec<u8> {
        let text = vectors["keyring"][name].as_str().expect("hex");
        let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex");
        (0..text.len()).step_by(2).map(byte).collect()
    };
    fs::write(v.path("store").join("keyring"), bytes("bytes")).expect("writes");
    let key_file = private(&v, "key", bytes("key_file"));
    let with = ["--key-file", &*key_file];
    let list = || ok(&v, &[], &key("list", &url, &state, &[]));
    let listed = list();
    for kind in ["passphrase", "key file", "AWS KMS", "recovery key", "age", "kind 200"] {
        assert!(listed.contains(&format!("  {kind:<12}  2027-01-15")), "{listed}");
    }
    assert!(
        listed.contains("later") && listed.contains("age1") && listed.contains(":key/1234abcd")
    );
    for (verb, more) in [("rotate", &[][..]), ("remove", &["paper"])] {
        let done = run(&v, &[], &key(verb, &url, &state, &[&with[..], more].concat()));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
        assert!(said.contains("slot 7 (later, kind 200)") && said.contains("key remove"), "{said}");
        assert!(list().contains("kind 200"));
    }
    ok(&v, &[], &key("remove", &url, &state, &[&with[..], &["later"]].concat()));
    assert!(!list().contains("kind 200"));
    let done = run(&v, &[], &key("rotate", &url, &state, &with));
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
}

#[test]
fn whoever_is_asked_sees_which_slots_there_are() {
    // Guards against a prompt for a passphrase that the volume does not have, one that gives up
    // after a typo, and one that comes before the store has answered; for `key` as for a mount.
    let v = Volume::create();
    let (url, state) = (v.url(), v.text("state"));
    let typed = |args: &str, lines: &str| {
        let command = format!("{} {args}", env!("CARGO_BIN_EXE_sealfs"));
        let env = [("HOME", &*v.text("home")), ("AWS_EC2_METADATA_DISABLED", "true")];
        mounts::typed(&command, &env, lines)
    };
    let right = "correct horse battery staple";
    for verb in ["test", "rotate"] {
        let args = format!("key {verb} {url} --state-dir {state}");
        let (status, said) = typed(&args, &format!("wrong\nagain\n{right}\n"));
        assert_eq!((status, said.matches("passphrase: ").count()), (Some(0), 3), "{verb}: {said}");
        assert!(said.contains("slots of the volume: 1 passphrase (first)"), "{said}");
    }
    let empty = Volume::bare();
    let (status, said) = typed(&format!("key rotate {} --state-dir {state}", empty.url()), "x\n");
    assert_eq!(status, Some(5), "{said}");
    assert!(!said.contains("passphrase: "), "{said}");
    // What KMS said is told, and then somebody may type.
    let (kms, pass) = (Kms::start(), v.text("passphrase"));
    add_kms_slot(&v, &kms);
    kms.always(Some(Answer::Refuse("DisabledException", "x")));
    let (status, said) =
        typed(&format!("key test {url} --state-dir {state}"), &format!("{right}\n"));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("note: ") && said.contains("2 AWS KMS (server)"), "{said}");
    ok(&v, &[], &key("remove", &url, &state, &["server", "--passphrase-file", &pass]));
    // Not a passphrase where there is none to give.
    let key_file = private(&v, "key", [7; 40]);
    let more = ["--passphrase-file", &pass, "--label", "file", "--new-key-file", &key_file];
    ok(&v, &[], &key("add", &url, &state, &more));
    ok(&v, &[], &key("remove", &url, &state, &["first", "--key-file", &key_file]));
    let (status, said) = typed(&format!("key test {url} --state-dir {state}"), "x\n");
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("only: key file") && said.contains("--key-file"), "{said}");
}
