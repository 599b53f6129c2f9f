//! A second implementation reads what sealfs writes: Cobblestone-256 of the Python package
//! `cryptography`, and `scripts/open-object` and `scripts/read-volume`, which have its primitives only.
//!
//! The Python is the one in `SEALFS_TEST_PYTHON` (`scripts/test` sets it), else a virtual
//! environment made here in `target/venv`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use base64::Engine as _;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use sealfs::base::{Ino, hex};
use sealfs::seal::{
    InputKey, KdfParams, Kept, Keyring, KmsSlot, RecoveryKey, RootKey, Secret, VolumeKeys, offsets,
    open, seal,
};
use sealfs::stack::{Nobody, keep_age};
use sealfs::store::segments::Owned;
use sealfs::store::{Compression, SegmentStore};
use serde_json::json;
use zeroize::Zeroizing;

const LENGTHS: [usize; 9] = [0, 1, 100, 16_383, 16_384, 16_385, 32_768, 100_000, 3_000_000];
const NAME: &str = "seg/0a/0a0b0c0d0e0f00010203040506070808";
/// Of a segment with compressed frames.
const FRAMED: &str = "seg/0a/0a0b0c0d0e0f00010203040506070809";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 253) as u8 ^ (i >> 13) as u8).collect()
}

/// Runs to the end or kills after `seconds`; the outputs go through files, so that neither can
/// fill a pipe.
fn run(command: &mut Command, seconds: u64) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    command.stdin(Stdio::null());
    command.stdout(fs::File::create(&out).expect("a file"));
    command.stderr(fs::File::create(&err).expect("a file"));
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let status = loop {
        match child.try_wait().expect("waiting for a child works") {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{command:?} did not end within {seconds} s");
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    let read = |path| fs::read(path).expect("the output was written");
    Output { status, stdout: read(out), stderr: read(err) }
}

fn succeed(command: &mut Command, seconds: u64) -> Vec<u8> {
    let output = run(command, seconds);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    output.stdout
}

/// A Python that has `cryptography` 50 or later.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let given = env::var_os("SEALFS_TEST_PYTHON").map(PathBuf::from);
        let python = given.unwrap_or_else(make_venv);
        succeed(Command::new(&python).args(["-c", "import cryptography.cobblestone"]), 60);
        python
    })
}

/// `target/venv`, made in a temporary name and renamed, so that it is whole or absent.
fn make_venv() -> PathBuf {
    let (venv, ready) = (root().join("target/venv"), root().join("target/venv/.sealfs-ready"));
    let python = venv.join("bin/python");
    if !ready.exists() {
        fs::create_dir_all(&venv).expect("target/ is writable");
        succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv), 120);
        let pip =
            ["-m", "pip", "install", "-q", "--timeout", "60", "cryptography>=50", "zstandard"];
        succeed(Command::new(&python).args(pip), 300);
        fs::write(&ready, "").expect("the venv is ours");
    }
    python
}

/// One message to exchange: where it is bound to, and its files.
struct Case {
    key: InputKey,
    context: Vec<u8>,
    plain: PathBuf,
    message: PathBuf,
    len: usize,
}

fn cases(dir: &Path) -> Vec<Case> {
    let keys = VolumeKeys::random_for_tests(4);
    let case = |len: usize| {
        let name = format!("{NAME}-{len}");
        Case {
            key: keys.object(&name).key().clone(),
            context: keys.object_context(1, &name),
            plain: dir.join(format!("plain-{len}")),
            message: dir.join(format!("message-{len}")),
            len,
        }
    };
    LENGTHS.into_iter().map(case).collect()
}

fn interop(verb: &str, dir: &Path, cases: &[Case]) {
    let list: Vec<_> = cases
        .iter()
        .map(|c| {
            let (key, context) = (hex(c.key.expose()), hex(&c.context));
            json!({"key": key, "context": context, "plain": c.plain, "message": c.message})
        })
        .collect();
    let file = dir.join("cases.json");
    fs::write(&file, serde_json::to_vec(&list).expect("JSON")).expect("writable");
    let script = root().join("tests/python/interop.py");
    succeed(Command::new(python()).arg(script).arg(verb).arg(file), 120);
}

#[test]
fn python_cryptography_opens_what_sealfs_sealed() {
    // Guards against a format only we can read: another implementation opens each length.
    let dir = tempfile::tempdir().unwrap();
    let cases = cases(dir.path());
    for c in &cases {
        fs::write(&c.message, seal(&c.key, &c.context, &bytes(c.len))).unwrap();
    }
    interop("open", dir.path(), &cases);
    for c in &cases {
        assert!(fs::read(&c.plain).unwrap() == bytes(c.len), "length {}", c.len);
    }
}

#[test]
fn sealfs_opens_what_python_cryptography_sealed() {
    // Guards against a reader that accepts only our own writer's messages.
    let dir = tempfile::tempdir().unwrap();
    let cases = cases(dir.path());
    for c in &cases {
        fs::write(&c.plain, bytes(c.len)).unwrap();
    }
    interop("seal", dir.path(), &cases);
    for c in &cases {
        let message = fs::read(&c.message).unwrap();
        assert_eq!(message.len() as u64, offsets::cipher_len(c.len as u64));
        assert!(open(&c.key, &c.context, &message).unwrap() == bytes(c.len), "length {}", c.len);
    }
}

/// What is sealed as the segment `name` whose data are `data`, of two files.
fn segment(name: &str, data: Vec<u8>) -> Vec<u8> {
    let (path, store) = (name.into(), Arc::new(InMemory::new()));
    let compression = Compression::Zstd { level: 3 };
    let segments = SegmentStore::compressing(store.clone(), compression);
    let owned = |ino, len| Owned { ino: Ino(ino), incarnation: 0, offset: 5, len };
    let ranges = [owned(300, 1_000), owned(2, data.len() as u64 - 1_000)];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let id = SegmentStore::id(&path).unwrap();
        segments.put(id, vec![data.into()], &ranges).await.unwrap();
        store.get(&path).await.unwrap().bytes().await.unwrap().to_vec()
    })
}

/// Keys of nobody, made for this test.
const AGE_IDENTITY: &str =
    "AGE-SECRET-KEY-1GPQ5YS6YG4RYWJZFFF95CN2WFAG9Z5JN2324V46CT9D9KHZATE0S5FAZ64";
const AGE_RECIPIENT: &str = "age10xnrrmk7r0uunrcjqvkdatwsu7s8jwv0c7rt3rxggmkgntu955dq25yyzj";
const SSH_RECIPIENT: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4";

/// A volume on disk as `scripts/open-object` gets it: keyring, secrets, keys, one object.
struct Volume {
    dir: tempfile::TempDir,
    keys: VolumeKeys,
}

impl Volume {
    fn new() -> Volume {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, data: &[u8]| fs::write(dir.path().join(name), data).unwrap();
        let passphrase = Secret::Passphrase(Zeroizing::new("pass phrase ü".into()));
        let (mut ring, keys) =
            Keyring::create(RootKey::random(), &passphrase, "first", KdfParams::FLOOR, 0).unwrap();
        let key_file = vec![0xE7; 77];
        write("key.bin", &key_file);
        ring.add_slot(&keys, &Secret::KeyFile(Zeroizing::new(key_file)), "", KdfParams::FLOOR, 0)
            .unwrap();
        let recovery = RecoveryKey::random();
        write("paper.txt", recovery.to_text().to_lowercase().as_bytes());
        ring.add_slot(&keys, &Secret::Recovery(recovery), "", KdfParams::FLOOR, 0).unwrap();
        let seed = Kept::random_seed();
        write("answer", base64::engine::general_purpose::STANDARD.encode(&seed[..]).as_bytes());
        let kms = KmsSlot::new("arn:aws:kms:eu-west-1:1:key/k", "eu-west-1", "", vec![7; 99]);
        let kms = Secret::Kept(Kept::kms(seed, &kms.unwrap()));
        ring.add_slot(&keys, &kms, "", KdfParams::FLOOR, 0).unwrap();
        // The second of two recipients, beside an ssh key.
        write("age.txt", format!("# created\n{AGE_IDENTITY}\n").as_bytes());
        let recipients = [AGE_RECIPIENT, SSH_RECIPIENT].map(str::to_owned);
        let age = Secret::Kept(keep_age(&recipients, Arc::new(Nobody)).unwrap());
        ring.add_slot(&keys, &age, "", KdfParams::FLOOR, 0).unwrap();
        let old = keys.object(NAME).seal(&segment(NAME, bytes(1_001)));
        write("old", &old);
        let keys = ring.rotate(&keys).unwrap();
        write("keyring", &ring.to_bytes());
        write("pass.txt", "pass phrase ü\n".as_bytes());
        write("wrong.txt", b"pass phrase u\n");
        write("root.hex", hex(keys.root().expose()).as_bytes());
        write("one.bin", keys.object(NAME).key().expose());
        let object = keys.object(NAME).seal(&segment(NAME, bytes(40_000)));
        write("object", &object);
        let text = b"all work and no play ".repeat(20_000);
        write("framed", &keys.object(FRAMED).seal(&segment(FRAMED, text)));
        write("no-segment", &keys.object(NAME).seal(&bytes(300)));
        let mut damaged = object;
        damaged[30_000] ^= 1;
        write("damaged", &damaged);
        Volume { dir, keys }
    }

    fn open_object(&self, args: &[&str]) -> Output {
        let mut command = Command::new(python());
        command.arg(root().join("scripts/open-object")).args(args).current_dir(self.dir.path());
        run(&mut command, 60)
    }
}

#[test]
fn open_object_reads_an_object_with_any_of_its_keys() {
    // Guards against a recovery script that does not work on the day it is needed.
    let volume = Volume::new();
    let id = volume.keys.volume_id().to_string();
    let ways: [&[&str]; 7] = [
        &["--keyring", "keyring", "--passphrase-file", "pass.txt"],
        &["--keyring", "keyring", "--key-file", "key.bin"],
        &["--keyring", "keyring", "--recovery-file", "paper.txt"],
        &["--keyring", "keyring", "--kms-answer-file", "answer"],
        &["--keyring", "keyring", "--age-identity", "age.txt"],
        &["--root-key-file", "root.hex", "--epoch", "2", "--volume", &id],
        &["--object-key-file", "one.bin", "--epoch", "2", "--volume", &id],
    ];
    for way in ways {
        let output = volume.open_object(&[way, &[NAME, "object"]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{way:?}: {stderr}");
        assert!(output.stdout == bytes(40_000), "{way:?}");
    }
    // What to ask AWS KMS.
    let output = volume.open_object(&["--keyring", "keyring", "--kms"]);
    let command = String::from_utf8_lossy(&output.stdout).into_owned();
    let asked = format!(r#"'{{"sealfs:volume": "{id}", "sealfs:slot": "4"}}'"#);
    assert!(command.starts_with("aws kms decrypt --key-id arn:aws:kms:eu"), "{output:?}");
    assert!(command.contains(&asked) && command.lines().count() == 1, "{command}");
    // Sealed before the keys were rotated.
    let output = volume.open_object(&[ways[1], &[NAME, "old"]].concat());
    assert!(output.stdout == bytes(1_001), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn open_object_shows_the_data_of_segments_and_whose_they_are() {
    // Guards against files that can only be put together by this program: data without what
    // stands behind them, decompressed, and the owner of each range. Without the Python module
    // for zstd a sentence says so.
    let volume = Volume::new();
    let key = ["--keyring", "keyring", "--key-file", "key.bin"];
    let show = |more: &[&str]| volume.open_object(&[&key, more].concat());
    assert_eq!(show(&["--owners", NAME, "object"]).stdout, b"300 0 5 1000\n2 0 5 39000\n");
    let whole = show(&["--as-sealed", NAME, "object"]).stdout;
    assert!(whole.starts_with(&bytes(40_000)) && whole.len() == 40_000 + 13 + 40);
    let has_zstd = run(Command::new(python()).args(["-c", "import zstandard"]), 60);
    let output = show(&[FRAMED, "framed"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    match has_zstd.status.success() {
        true => assert!(output.stdout == b"all work and no play ".repeat(20_000), "{stderr}"),
        false => {
            assert!(stderr.contains("has no module zstandard") && output.stdout.is_empty());
            assert_eq!(output.status.code(), Some(1), "{stderr}");
        }
    }
    let output = show(&[NAME, "no-segment"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no footer"));
}

#[test]
fn open_object_reads_the_objects_of_a_frozen_volume() {
    // Guards against a script that follows the newest format and has forgotten the one of a volume
    // that somebody has: every segment and the configuration of the fixture, by its passphrase.
    let bucket = root().join("tests/fixtures/format-2/bucket");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let passphrase = dir.path().join("passphrase");
    fs::write(&passphrase, "frozen volume\n").expect("writes");
    let mut names = vec![PathBuf::from("config")];
    for shard in fs::read_dir(bucket.join("seg")).expect("segments") {
        let shard = shard.expect("an entry").path();
        let objects = fs::read_dir(&shard).expect("a shard").map(|e| e.expect("an entry").path());
        names.extend(objects.map(|o| o.strip_prefix(&bucket).expect("below").to_owned()));
    }
    assert_eq!(names.len(), 3, "two segments: {names:?}");
    for name in names {
        let mut command = Command::new(python());
        command.arg(root().join("scripts/open-object"));
        command.args(["--keyring".as_ref(), bucket.join("keyring").as_os_str()]);
        command.args(["--passphrase-file".as_ref(), passphrase.as_os_str()]);
        if name.starts_with("seg") {
            command.arg("--as-sealed"); // decompressing takes a module
        }
        command.arg(&name).arg(bucket.join(&name));
        let output = run(&mut command, 120);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !output.stdout.is_empty(), "{name:?}: {said}");
    }
}

#[test]
fn open_object_says_what_is_wrong_and_prints_no_contents() {
    // Guards against a script that prints unauthenticated bytes or a Python traceback.
    let volume = Volume::new();
    let cases: [(&[&str], &str); 3] = [
        (&["--keyring", "keyring", "--key-file", "key.bin", "seg/o", "object"], "key or name"),
        (&["--keyring", "keyring", "--key-file", "key.bin", NAME, "damaged"], "chunk 1 is damaged"),
        (
            &["--keyring", "keyring", "--passphrase-file", "wrong.txt", NAME, "object"],
            "no slot of the keyring opens",
        ),
    ];
    for (args, sentence) in cases {
        let output = volume.open_object(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(sentence) && !stderr.contains("Traceback"), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_key_of_one_object_opens_it_elsewhere_and_no_other() {
    // Guards against an auditor who gets a key that does not open the object, or that opens more; and
    // against `object cat` printing something else.
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("pass"), "correct horse battery staple\n").unwrap();
    fs::create_dir(path("store")).unwrap();
    let url = format!("file://{}", path("store"));
    let sealfs = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealfs"));
        let (pass, state) = (path("pass"), path("state"));
        command.args(args).args(["--passphrase-file", &pass]).current_dir(dir.path());
        if args[0] != "init" {
            command.args(["--state-dir", &state]);
        }
        run(&mut command, 120)
    };
    assert!(sealfs(&["init", &url, "--no-recovery"]).status.success());
    let manifest = fs::read_dir(path("store/meta/manifest")).unwrap().flatten();
    let manifest = manifest.map(|e| e.file_name()).max().expect("one");
    let other = format!("meta/manifest/{}", manifest.to_str().unwrap());
    let exported = sealfs(&["key", "export-object", &url, "config", "--out", "one.key", "--json"]);
    let said = String::from_utf8_lossy(&exported.stderr);
    assert!(exported.status.success(), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&exported.stdout).unwrap();
    let command = json["command"].as_str().unwrap();
    assert!(json["key"].is_null() && command.starts_with("open-object "), "{json}");
    let open = |object: &str, name: &str| {
        let args = command.split(' ').skip(1).take_while(|word| *word != ">");
        let args: Vec<_> = args
            .map(|word| match word {
                "object.bin" => path(&format!("store/{object}")),
                "config" => name.to_owned(),
                word => word.to_owned(),
            })
            .collect();
        let mut script = Command::new(python());
        script.arg(root().join("scripts/open-object")).args(args).current_dir(dir.path());
        run(&mut script, 60)
    };
    let opened = open("config", "config");
    assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    let plain: serde_json::Value = serde_json::from_slice(&opened.stdout).unwrap();
    assert_eq!(plain["version"], 1);
    assert_eq!(open(&other, &other).status.code(), Some(1), "another object");
    let cat = sealfs(&["object", "cat", &url, "config"]);
    assert!(cat.status.success() && cat.stdout == opened.stdout);
    let mut damaged = fs::read(path("store/config")).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(path("store/other"), &damaged).unwrap();
    for (object, status) in [("other", 7), ("none", 5), ("keyring", 1), ("meta/wal/1.sst", 1)] {
        let refused = sealfs(&["object", "cat", &url, object]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(status), "{object}: {said}");
        assert!(refused.stdout.is_empty() && said.contains("hint: "), "{object}: {said}");
    }
}

/// `scripts/read-volume` on the frozen volume of format 2.
fn read_volume(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let passphrase = dir.path().join("pass.txt");
    fs::write(&passphrase, "frozen volume\n").expect("writes");
    let mut command = Command::new(python());
    command.arg(root().join("scripts/read-volume"));
    command.arg(root().join("tests/fixtures/format-2/bucket"));
    command.arg("--passphrase-file").arg(&passphrase).args(args);
    run(&mut command, 120)
}

#[test]
fn read_volume_finds_every_byte_and_attribute_of_the_frozen_volume() {
    // Guards against a page on the format, SlateDB's objects included, that nobody could write a
    // reader from.
    let output = read_volume(&["--describe"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("has no module zstandard") {
        return; // said by the other test of segments
    }
    assert!(output.status.success(), "{stderr}");
    let seen = String::from_utf8(output.stdout).expect("text");
    let wanted = fs::read_to_string(root().join("tests/fixtures/format-2/committed.txt"));
    for (seen, wanted) in seen.lines().zip(wanted.expect("reads").lines()) {
        assert_eq!(seen, wanted);
    }
    assert_eq!(seen.lines().count(), 33);
}

#[test]
fn read_volume_restores_files_as_they_were() {
    let to = tempfile::tempdir().expect("a temporary directory");
    let output = read_volume(&["--to", to.path().to_str().expect("text")]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("has no module zstandard") {
        return;
    }
    // A socket is named, and everything else is there.
    assert!(stderr.contains("socket is not restored"), "{stderr}");
    let small = fs::metadata(to.path().join("small")).expect("a file");
    let hard = fs::metadata(to.path().join("dir/deep/hard")).expect("a file");
    assert_eq!((small.ino(), small.len(), small.nlink()), (hard.ino(), 100, 2));
    let sparse = fs::metadata(to.path().join("sparse")).expect("a file");
    assert!(sparse.len() == 1 << 40 && sparse.blocks() < 100, "{sparse:?}");
    let link = fs::read_link(to.path().join("dir/soft")).expect("a link");
    assert_eq!(link, Path::new("../dir/text"));
    let cat = read_volume(&["--cat", "/dir/text"]);
    assert!(cat.status.success() && cat.stdout.len() == 200_000);
    assert!(fs::read(to.path().join("dir/text")).expect("reads") == cat.stdout);
    // Into what is not empty: nothing.
    let again = read_volume(&["--to", to.path().to_str().expect("text")]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));
}
