//! Objects of the Amazon S3 Encryption Client, both ways between sealfs and Amazon's own clients: that
//! for Python (versions 2 and 3, KMS) and that for Ruby (version 2; KMS, AES, RSA), on moto's S3 and KMS.
//! And what is changed in the bucket, which the command refuses without a byte of output.

mod exchange;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use sealfs::s3ec::{
    AesKey, EnvelopePlace, Keys, KmsKey, Metadata, RsaPublic, SealFormat, SealRules, WrapWith, seal,
};
use sealfs::store::kms::{KmsContext, KmsError, KmsTrouble};
use sealfs::store::s3::{S3Options, StaticCredentials, connect};
use sealfs::store::{ErrorClass, class};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{BUCKET, Moto};
use crate::mounts::Holder;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/s3ec").join(name)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// moto with a bucket and a key of KMS.
struct Place {
    moto: Moto,
    s3: aws_sdk_s3::Client,
    kms: aws_sdk_kms::Client,
    kms_key: String,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Place {
    fn start() -> Option<Place> {
        let moto = Moto::start()?;
        moto.make_bucket();
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(aws_sdk_kms::config::BehaviorVersion::latest())
            .region(aws_sdk_kms::config::Region::new("us-east-1"))
            .credentials_provider(aws_credential_types::Credentials::new(
                "moto", "moto", None, None, "test",
            ))
            .endpoint_url(&moto.endpoint)
            .build();
        let kms = aws_sdk_kms::Client::from_conf(config);
        let made = runtime.block_on(kms.create_key().send()).expect("a key of KMS");
        let kms_key = made.key_metadata().expect("described").key_id().to_owned();
        let dir = tempfile::tempdir().expect("a directory");
        Some(Place { s3: moto.client(), moto, kms, kms_key, runtime, dir })
    }

    /// `sealfs s3ec …` on an object.
    fn sealfs(&self, words: &[&str], object: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sealfs"))
            .args(["s3ec", words[0], &format!("s3://{BUCKET}/{object}")])
            .args(&words[1..])
            .args(["--endpoint-url", &self.moto.endpoint])
            .env("AWS_ACCESS_KEY_ID", "moto")
            .env("AWS_SECRET_ACCESS_KEY", "moto")
            .env("AWS_REGION", "us-east-1")
            .env("TMPDIR", self.dir.path())
            .env("HOME", self.dir.path())
            .output()
            .expect("sealfs runs")
    }

    fn kms_flags(&self) -> Vec<&str> {
        vec!["--kms-key", &self.kms_key, "--kms-endpoint-url", &self.moto.endpoint]
    }

    fn cat(&self, object: &str, flags: &[&str]) -> Output {
        self.sealfs(&[&["cat"], flags].concat(), object)
    }

    /// The contents that `cat` gives.
    fn contents(&self, object: &str, flags: &[&str]) -> Vec<u8> {
        let done = self.cat(object, flags);
        assert!(done.status.success(), "{object}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    /// Refused with this status, nothing written, the object named.
    fn refused(&self, object: &str, flags: &[&str], status: Option<i32>) -> String {
        let done = self.cat(object, flags);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && done.stdout.is_empty(), "{object}: {said}");
        if status.is_some() {
            assert_eq!(done.status.code(), status, "{object}: {said}");
        }
        assert!(said.contains(object) && said.contains("hint: "), "{object}: {said}");
        said
    }

    fn put(&self, object: &str, bytes: &[u8], metadata: &Metadata) {
        let put = self
            .s3
            .put_object()
            .bucket(BUCKET)
            .key(object)
            .set_metadata(Some(metadata.clone().into_iter().collect()))
            .body(ByteStream::from(bytes.to_vec()));
        self.runtime.block_on(put.send()).unwrap_or_else(|e| panic!("{object}: {e:?}"));
    }

    fn get(&self, object: &str) -> (Vec<u8>, Metadata) {
        self.runtime.block_on(async {
            let got = self.s3.get_object().bucket(BUCKET).key(object).send().await;
            let got = got.unwrap_or_else(|e| panic!("{object}: {e:?}"));
            let metadata = got.metadata().cloned().unwrap_or_default().into_iter().collect();
            let bytes = got.body.collect().await.expect("a body").to_vec();
            (bytes, metadata)
        })
    }

    fn keys(&self) -> Keys {
        Keys {
            kms: Some(Arc::new(MotoKms { client: self.kms.clone(), key: self.kms_key.clone() })),
            aes: Some(AesKey::read(&fixture("aes.key")).expect("a key")),
            rsa_private: None,
            rsa_public: Some(RsaPublic::read(&fixture("rsa-pub.pem")).expect("a key")),
        }
    }

    /// Seals contents as sealfs does and puts them under `object`.
    fn seal(&self, object: &str, rules: &SealRules, place: EnvelopePlace, plain: &[u8]) {
        let keys = self.keys();
        let mut sealing = self.runtime.block_on(seal(&keys, rules)).expect("sealed");
        let envelope = sealing.envelope().clone();
        let mut bytes = Vec::new();
        plain.chunks(1 << 20).for_each(|piece| sealing.update(piece, &mut bytes).expect("fits"));
        sealing.finish(&mut bytes);
        if place == EnvelopePlace::InstructionFile {
            let file = format!("{object}.instruction");
            let marker = sealfs::s3ec::Envelope::instruction_metadata();
            self.put(&file, &envelope.instruction_file(), &marker);
        }
        self.put(object, &bytes, &envelope.metadata(place));
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path
    }
}

/// moto's KMS with its own credentials: those of the environment are everybody's in this process.
struct MotoKms {
    client: aws_sdk_kms::Client,
    key: String,
}

fn failed(e: impl std::fmt::Debug) -> KmsError {
    let (message, hint) = (format!("{e:?}"), String::new());
    KmsError { trouble: KmsTrouble::Unusable, message, hint }
}

#[async_trait::async_trait]
impl KmsKey for MotoKms {
    fn name(&self) -> &str {
        &self.key
    }

    async fn data_key(
        &self,
        context: &KmsContext,
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), KmsError> {
        let asked = self.client.generate_data_key().key_id(&self.key);
        let asked = asked.key_spec(aws_sdk_kms::types::DataKeySpec::Aes256);
        let asked = asked.set_encryption_context(Some(context.clone().into_iter().collect()));
        let got = asked.send().await.map_err(failed)?;
        let (plain, wrapped) = (got.plaintext.expect("given"), got.ciphertext_blob.expect("given"));
        Ok((plain.into_inner().into(), wrapped.into_inner()))
    }

    async fn encrypt(&self, _: &[u8], _: &KmsContext) -> Result<Vec<u8>, KmsError> {
        unreachable!("new data keys come wrapped")
    }

    async fn decrypt(&self, _: &[u8], _: &KmsContext) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        unreachable!("sealfs itself opens")
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// Flags that give a context.
fn context_flags(context: &BTreeMap<String, String>) -> Vec<String> {
    let pair = |(name, value): (&String, &String)| {
        ["--encryption-context".to_owned(), format!("{name}={value}")]
    };
    context.iter().flat_map(pair).collect()
}

/// Amazon's client for Python, one process for many jobs.
struct Python {
    _process: Holder,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Python {
    /// `None`, said loudly, where the client is not installed.
    fn start(place: &Place) -> Option<Python> {
        let python = std::env::var("SEALFS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let probe = Command::new(&python).args(["-c", "import s3_encryption"]).output();
        if !probe.is_ok_and(|done| done.status.success()) {
            eprintln!("SKIPPED: no amazon-s3-encryption-client-python in {python}");
            return None;
        }
        let mut child = Command::new(&python)
            .arg(script("python/s3ec.py"))
            .args([&place.moto.endpoint, BUCKET, &place.kms_key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs");
        let to = child.stdin.take().expect("piped");
        let from = BufReader::new(child.stdout.take().expect("piped"));
        Some(Python { _process: Holder(child), to, from })
    }

    fn answer(&mut self, job: Value) -> Value {
        writeln!(self.to, "{job}").expect("it listens");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{job}: {e}: {line:?}"))
    }

    fn run(&mut self, job: Value) {
        assert_eq!(self.answer(job.clone()), json!({"ok": true}), "{job}");
    }
}

fn contents(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

const FORMATS: [(SealFormat, u32); 2] = [(SealFormat::V2, 2), (SealFormat::V3, 3)];

fn both_ways_with_python(sizes: &[usize], parts: Option<usize>) {
    let Some(place) = Place::start() else { return };
    let Some(mut python) = Python::start(&place) else { return };
    let contexts = [
        BTreeMap::new(),
        map(&[("a \"quoted\" name", "back\\slash 'and' =")]),
        map(&[("Größe", "世界 🔐"), ("plain", "x")]),
    ];
    for (n, len) in sizes.iter().enumerate() {
        let plain = contents(*len);
        let source = place.file("source", &plain);
        for (format, number) in FORMATS {
            // Contexts do not depend on lengths: one is enough of what takes long.
            let contexts = contexts.iter().enumerate().skip(if *len > 1 << 20 { 2 } else { 0 });
            for (c, context) in contexts {
                let what = format!("{len} bytes, version {number}, context {c}");
                let given = context_flags(context);
                let given: Vec<&str> = given.iter().map(String::as_str).collect();
                let flags = [place.kms_flags(), given].concat();

                // Theirs, opened here. Contexts that are not ASCII it writes as ASCII JSON.
                let theirs = format!("python-{n}-{number}-{c}");
                python.run(json!({"do": "put", "format": number, "key": theirs, "file": source,
                                  "context": context, "parts": parts}));
                assert!(place.contents(&theirs, &flags) == plain, "theirs: {what}");

                // Ours, opened there; with the envelope in either place.
                for (in_file, at) in [EnvelopePlace::Metadata, EnvelopePlace::InstructionFile]
                    .into_iter()
                    .enumerate()
                {
                    let ours = format!("sealfs-{n}-{number}-{c}-{in_file}");
                    let rules = SealRules { format, with: WrapWith::Kms, context: context.clone() };
                    place.seal(&ours, &rules, at, &plain);
                    let out = place.dir.path().join("out");
                    python.run(json!({"do": "get", "format": number, "key": ours, "file": out,
                                      "context": context}));
                    assert!(fs::read(&out).expect("written") == plain, "ours: {what}");
                    assert!(place.contents(&ours, &flags) == plain, "ours, here: {what}");
                    let other = json!({"do": "get", "format": number, "key": ours, "file": out,
                                       "context": {"another": "one"}});
                    assert!(python.answer(other).get("error").is_some());
                }
            }
        }
    }
}

#[test]
fn amazons_python_client_and_sealfs_open_each_others_objects() {
    // Guards against formats that only sealfs itself reads: versions 2 and 3, contexts with quotes
    // and beyond ASCII, empty, one byte, and across pieces.
    both_ways_with_python(&[0, 1, 300_000], None);
}

#[test]
fn amazons_python_client_and_sealfs_open_large_objects_of_each_other() {
    // Guards against a seam between pieces: more than is kept in memory, and uploaded in parts.
    both_ways_with_python(&[16 << 20], Some(5 << 20));
}

#[test]
#[ignore = "100 MiB through two interpreters"]
fn amazons_python_client_and_sealfs_open_very_large_objects_of_each_other() {
    // As above.
    both_ways_with_python(&[100 << 20], Some(8 << 20));
}

#[test]
fn amazons_ruby_client_and_sealfs_open_each_others_objects() {
    // Guards against wraps of AES and RSA keys that only sealfs itself reads. Debian's client: version
    // 2 both ways, version 1 of theirs.
    let probe =
        Command::new("ruby").args(["-e", "require 'aws-sdk-s3'; require 'aws-sdk-kms'"]).output();
    if !probe.is_ok_and(|done| done.status.success()) {
        eprintln!("SKIPPED: no ruby-aws-sdk-s3 and ruby-aws-sdk-kms");
        return;
    }
    let Some(place) = Place::start() else { return };
    let (aes, rsa) =
        (fixture("aes.key").display().to_string(), fixture("rsa.pem").display().to_string());
    let kms = place.kms_key.clone();
    let context = map(&[("a \"quoted\" name", "back\\slash"), ("Größe", "世界")]);
    let plain = contents(70_000);
    let source = place.file("source", &plain).display().to_string();
    let out = place.dir.path().join("out").display().to_string();
    let ruby = |words: &[&str], context: Option<&str>| {
        let done = Command::new("ruby")
            .arg(script("ruby/s3ec.rb"))
            .args([&place.moto.endpoint, BUCKET])
            .args(words)
            .args(context)
            .output()
            .expect("ruby runs");
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    for (with, way, key) in
        [(WrapWith::Aes, "aes", &aes), (WrapWith::Rsa, "rsa", &rsa), (WrapWith::Kms, "kms", &kms)]
    {
        let is_kms = with == WrapWith::Kms;
        let context = if is_kms { context.clone() } else { BTreeMap::new() };
        let given = context_flags(&context);
        let mut flags: Vec<&str> = match with {
            WrapWith::Aes => vec!["--aes-key-file", &aes],
            WrapWith::Rsa => vec!["--rsa-private-key", &rsa],
            WrapWith::Kms => place.kms_flags(),
        };
        flags.extend(given.iter().map(String::as_str));
        let json = serde_json::to_string(&context).expect("a map");
        let json = is_kms.then_some(json.as_str());
        for (in_file, at) in [
            ("metadata", EnvelopePlace::Metadata),
            ("instruction_file", EnvelopePlace::InstructionFile),
        ] {
            let theirs = format!("ruby-{way}-{in_file}");
            ruby(&["put", "2", way, key, in_file, &theirs, &source], json);
            assert!(place.contents(&theirs, &flags) == plain, "{theirs}");
            let ours = format!("sealfs-{way}-{in_file}");
            let rules = SealRules { format: SealFormat::V2, with, context: context.clone() };
            place.seal(&ours, &rules, at, &plain);
            ruby(&["get", "2", way, key, in_file, &ours, &out], json);
            assert!(fs::read(&out).expect("written") == plain, "{ours}");

            let old = format!("old-{way}-{in_file}");
            ruby(&["put", "1", way, key, in_file, &old, &source], None);
            let mut flags = flags.clone();
            flags.truncate(if is_kms { 4 } else { 2 });
            assert!(place.refused(&old, &flags, Some(1)).contains("--legacy"));
            flags.push("--legacy");
            assert!(place.contents(&old, &flags) == plain, "{old}");
        }
    }
}

#[test]
fn what_was_changed_in_the_bucket_is_refused_before_a_byte_of_it() {
    // Guards against plaintext on standard output that is not what was written: of a large object,
    // most of which is fine, as well.
    let Some(place) = Place::start() else { return };
    let context = map(&[("a", "b")]);
    let rules = SealRules { format: SealFormat::V3, with: WrapWith::Kms, context: context.clone() };
    let plain = contents(9 << 20);
    place.seal("good", &rules, EnvelopePlace::Metadata, &plain);
    place.seal("other", &rules, EnvelopePlace::Metadata, b"another");
    let given = context_flags(&context);
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let flags = [place.kms_flags(), given.clone()].concat();
    assert!(place.contents("good", &flags) == plain);
    let (bytes, metadata) = place.get("good");
    let (other_bytes, other_metadata) = place.get("other");

    for at in [0, bytes.len() / 2, bytes.len() - 17, bytes.len() - 1] {
        let mut turned = bytes.clone();
        turned[at] ^= 1;
        place.put("bad", &turned, &metadata);
        place.refused("bad", &flags, Some(7));
    }
    place.put("bad", &bytes[..bytes.len() - 1], &metadata);
    place.refused("bad", &flags, Some(7));
    place.put("bad", &bytes[..5], &metadata);
    place.refused("bad", &flags, Some(7));
    place.put("bad", &[&bytes[..], b"x"].concat(), &metadata);
    place.refused("bad", &flags, Some(7));
    place.put("bad", &other_bytes, &metadata);
    place.refused("bad", &flags, Some(7));
    place.put("bad", &bytes, &other_metadata);
    place.refused("bad", &flags, Some(7));
    for name in metadata.keys() {
        let mut less = metadata.clone();
        less.remove(name);
        place.put("bad", &bytes, &less);
        place.refused("bad", &flags, None);
        let mut swapped = metadata.clone();
        swapped.insert(name.clone(), other_metadata[name].clone());
        if swapped != metadata {
            place.put("bad", &bytes, &swapped);
            place.refused("bad", &flags, None);
        }
    }
    // In the clothes of version 2, with and without the context changed to fit.
    for said in
        [&metadata["x-amz-t"], "{\"a\":\"b\",\"aws:x-amz-cek-alg\":\"AES/GCM/NoPadding\"}", "{}"]
    {
        for wrap in ["kms+context", "kms"] {
            let v2 = map(&[
                ("x-amz-key-v2", &metadata["x-amz-3"]),
                ("x-amz-iv", "AQEBAQEBAQEBAQEB"),
                ("x-amz-cek-alg", "AES/GCM/NoPadding"),
                ("x-amz-tag-len", "128"),
                ("x-amz-wrap-alg", wrap),
                ("x-amz-matdesc", said),
            ]);
            place.put("bad", &bytes, &v2);
            place.refused("bad", &[&flags[..], &["--legacy"]].concat(), None);
            let any = [&place.kms_flags()[..], &["--any-encryption-context", "--legacy"]].concat();
            place.refused("bad", &any, None);
        }
    }
    // Another context, none, another key.
    place.refused(
        "good",
        &[place.kms_flags(), vec!["--encryption-context", "a=c"]].concat(),
        Some(3),
    );
    place.refused("good", &place.kms_flags(), Some(3));
    let reserved = ["--encryption-context", "aws:x-amz-cek-alg=115"];
    place.refused("good", &[&flags[..], &reserved].concat(), Some(1));
    let wrong = ["--kms-key", "alias/nobody", "--kms-endpoint-url", &place.moto.endpoint];
    place.refused("good", &[&wrong[..], &given].concat(), None);
    place.refused("good", &["--aes-key-file", fixture("aes.key").to_str().expect("text")], None);
}

#[test]
fn a_data_key_is_wrapped_again_where_its_envelope_is() {
    // Guards against a copy that loses what else was on the object, a wrap that the new key does not
    // open, and one that changes the contents.
    let Some(place) = Place::start() else { return };
    let plain = contents(1000);
    let (aes, private, public) = (fixture("aes.key"), fixture("rsa.pem"), fixture("rsa-pub.pem"));
    let (aes, private, public) = (
        aes.to_str().expect("text"),
        private.to_str().expect("text"),
        public.to_str().expect("text"),
    );
    for (format, number) in FORMATS {
        for (in_file, at) in
            [EnvelopePlace::Metadata, EnvelopePlace::InstructionFile].into_iter().enumerate()
        {
            let object = format!("odd//key {number}-{in_file}+ü%");
            let rules = SealRules { format, with: WrapWith::Kms, context: map(&[("a", "b")]) };
            place.seal(&object, &rules, at, &plain);
            // With its own attributes.
            let (bytes, mut metadata) = place.get(&object);
            metadata.insert("mtime".into(), "12".into());
            place.put(&object, &bytes, &metadata);
            let kms = [place.kms_flags(), vec!["--encryption-context", "a=b"]].concat();
            let ours = [&["rewrap"][..], &kms, &["--new-rsa-public-key", public]].concat();
            let done = place.sealfs(&ours, &object);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            assert!(place.get(&object).0 == bytes, "contents stay");
            assert_eq!(place.get(&object).1.get("mtime").map(String::as_str), Some("12"));
            assert!(place.contents(&object, &["--rsa-private-key", private]) == plain);
            assert!(!place.cat(&object, &kms).status.success(), "the old key opens it no more");
            let back = ["rewrap", "--rsa-private-key", private, "--new-aes-key-file", aes];
            assert!(place.sealfs(&back, &object).status.success());
            assert!(place.contents(&object, &["--aes-key-file", aes]) == plain);
        }
    }
}

#[test]
fn metadata_of_an_object_that_is_too_large_for_one_copy_is_replaced_in_parts() {
    // Guards against what only objects above 5 GiB would show: here the limit is 5 MiB. Headers, tags
    // and contents stay.
    let Some(place) = Place::start() else { return };
    let plain = contents(11 << 20);
    let put = place
        .s3
        .put_object()
        .bucket(BUCKET)
        .key("large")
        .content_type("text/x-odd")
        .tagging("team=blue&n=1")
        .metadata("mtime", "12")
        .body(ByteStream::from(plain.clone()));
    place.runtime.block_on(put.send()).expect("stored");
    let options = S3Options {
        endpoint_url: Some(place.moto.endpoint.clone()),
        region: Some("us-east-1".into()),
        credentials: Some(StaticCredentials {
            access_key_id: "moto".into(),
            secret_access_key: "moto".to_owned().into(),
        }),
        ..S3Options::new(BUCKET, "")
    };
    let metadata = map(&[("mtime", "13"), ("x-amz-w", "02")]);
    place.runtime.block_on(async {
        let store = connect(options).await.expect("connected");
        let was = store.about("large").await.expect("there");
        store.replace_metadata("large", &was, &metadata, 5 << 20).await.expect("replaced");
        let again = store.replace_metadata("large", &was, &metadata, 5 << 20).await;
        again.expect("done already");
        let again = store.replace_metadata("large", &was, &map(&[]), 5 << 20).await;
        assert_eq!(class(&again.expect_err("another ETag now")), ErrorClass::Precondition);
        let now = store.about("large").await.expect("there");
        assert_eq!(now.metadata, metadata);
        assert_eq!(now.headers.get("content-type").map(String::as_str), Some("text/x-odd"));
        assert_eq!(
            store.tags_of("large").await.expect("tags"),
            map(&[("team", "blue"), ("n", "1")])
        );
    });
    assert!(place.get("large").0 == plain);
}
