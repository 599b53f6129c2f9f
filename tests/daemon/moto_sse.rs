//! Server-side encryption against moto, an S3 and KMS of somebody else: every mode that it applies, SSE-C, which it
//! ignores and which must be noticed, and the settings of buckets.
//!
//! `scripts/test` installs it (`moto[server]` from PyPI) into the Python of SEALFS_TEST_PYTHON.

mod s3ec;
mod versions;

use crate::needs_fuse;
use crate::sse;
use crate::support;
use std::fs::File;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::mounts::{Holder, Remote, Volume};
use crate::sse::{
    Step, audit, customer, dsse, exercise, from_mode_to_mode, kms, reencrypt_all, store_on,
};
use aws_credential_types::Credentials;
use sealfs::stack::bucket_policy::with_tls_only;
use sealfs::store::s3::{Setting, SseMode};
use sealfs::store::{ErrorClass, class};

const BUCKET: &str = "sealfs-test";
const START_MAX: Duration = Duration::from_secs(30);

/// A running moto; ends when dropped.
struct Moto {
    _server: Holder,
    endpoint: String,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Moto {
    /// Starts one with an empty bucket; `None`, said loudly, where it is not installed.
    fn start() -> Option<Moto> {
        let python = std::env::var("SEALFS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        // 5.2.1 answers CompleteMultipartUpload with the wrong element.
        let probe = "import moto, moto.server; v = moto.__version__.split('.')[:3]; \
                     assert [int(n) for n in v] >= [5, 2, 5]";
        let found = Command::new(&python).args(["-c", probe]).output();
        if !found.is_ok_and(|o| o.status.success()) {
            eprintln!("SKIPPED: no moto ({python} -m pip install 'moto[server]>=5.2.5')");
            return None;
        }
        let port = support::free_port();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = File::create(dir.path().join("log")).expect("a log");
        let child = Command::new(&python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .env("AWS_ACCESS_KEY_ID", "moto")
            .env("AWS_SECRET_ACCESS_KEY", "moto")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("python runs");
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let endpoint = format!("http://127.0.0.1:{port}");
        let moto = Moto { _server: Holder(child), endpoint, runtime, _dir: dir };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < START_MAX, "moto does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(moto)
    }

    fn remote(&self) -> Remote {
        Remote::s3(&self.endpoint, BUCKET, "moto", "moto")
    }

    fn client(&self) -> aws_sdk_s3::Client {
        support::client(&self.endpoint, "moto", "moto")
    }

    fn block_on<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    fn make_bucket(&self) {
        let made = self.block_on(self.client().create_bucket().bucket(BUCKET).send());
        made.unwrap_or_else(|e| panic!("creating a bucket: {e:?}"));
    }
}

#[test]
fn every_mode_that_moto_applies_works_on_every_request() {
    // Guards against headers that only our own server understands: put, create, update, parts,
    // copy, ranges, and encrypting again in one piece and in parts.
    let Some(moto) = Moto::start() else { return };
    moto.make_bucket();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    // Without bucket keys, which moto does not confirm when an upload is started.
    let modes = [SseMode::S3, kms(None, &[], None), kms(None, &[("a", "b")], None), dsse(None)];
    for (n, mode) in modes.iter().enumerate() {
        runtime.block_on(async {
            let prefix = format!("mode-{n}");
            let store = store_on(&moto.remote(), &prefix, mode.clone()).await;
            exercise(&store).await.unwrap_or_else(|e| panic!("{mode}: {e}"));
            assert_eq!(store.sse_applied().expect("said").mode_name(), mode.name());
            let next = &modes[(n + 1) % modes.len()];
            let store = store_on(&moto.remote(), &prefix, next.clone()).await;
            reencrypt_all(&store, false).await.unwrap_or_else(|e| panic!("{mode} to {next}: {e}"));
        });
    }
}

#[test]
fn a_volume_goes_from_mode_to_mode_on_moto() {
    // Guards against a dialect of ours: init, mount, write, audit and migrate by the real
    // commands on a server of others.
    needs_fuse!();
    let Some(moto) = Moto::start() else { return };
    moto.make_bucket();
    let v = Volume::bare_on(Some(moto.remote()));
    let steps = [
        Step::new("AES256", &[]),
        Step::new("aws:kms", &["--sse-bucket-key"]),
        Step::new("aws:kms:dsse", &[]),
        Step::new("AES256", &[]),
    ];
    from_mode_to_mode(&v, &steps);
}

#[test]
fn segments_go_into_the_storage_class_on_moto() {
    // Guards against a class that only our own server understands.
    needs_fuse!();
    let Some(moto) = Moto::start() else { return };
    moto.make_bucket();
    let v = Volume::bare_on(Some(moto.remote()));
    let (url, pass) = (v.url(), v.text("passphrase"));
    let init = |class| {
        ["init", &url, "--passphrase-file", &pass, "--no-recovery", "--storage-class", class]
    };
    v.fails(&init("NOT_A_CLASS"), 5);
    v.ok(&init("INTELLIGENT_TIERING"));
    v.mount(&[]);
    std::fs::write(v.at("a"), vec![7; 3 << 20]).expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    assert_eq!(v.status("storage_class_applied"), serde_json::Value::Null);
    v.umount();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let listed = runtime.block_on(moto.client().list_objects_v2().bucket(BUCKET).send());
    let listed = listed.expect("lists");
    let is_segment = |key: &str| key.contains("/seg/");
    assert!(listed.contents().iter().any(|o| o.key().is_some_and(is_segment)));
    for object in listed.contents() {
        let class = object.storage_class().map_or("STANDARD", |class| class.as_str());
        let expected = match object.key().is_some_and(is_segment) {
            true => "INTELLIGENT_TIERING",
            false => "STANDARD",
        };
        assert_eq!(class, expected, "{object:?}");
    }
}

#[test]
fn a_server_that_ignores_a_customer_key_is_noticed() {
    // Guards against SSE-C that is accepted and not applied: moto stores such an object in the
    // clear and answers 200.
    let Some(moto) = Moto::start() else { return };
    moto.make_bucket();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let refused = runtime.block_on(async {
        let store = store_on(&moto.remote(), "c", customer(1)).await;
        exercise(&store).await.expect_err("it was not applied")
    });
    assert_eq!(class(&refused), ErrorClass::SseMismatch, "{refused}");
}

#[test]
fn a_bucket_is_made_safe_and_the_doctor_says_so() {
    // Guards against a bucket left as the server makes it: default encryption and public access
    // are set by init --create-bucket, and missing ones are named and fixed.
    let Some(moto) = Moto::start() else { return };
    let v = Volume::bare_on(Some(moto.remote()));
    let (url, pass) = (v.url(), v.text("passphrase"));
    let init = ["init", &url, "--passphrase-file", &pass, "--sse=aws:kms"];
    v.ok(&[&init[..], &["--create-bucket", "--create-bucket-versioning"]].concat());
    let lines =
        ["default encryption", "public access", "plain http", "versioning", "conditional writes"];
    let doctor =
        |more: &[&str]| sse::doctor(&v, &[&["--passphrase-file", &pass], more].concat(), lines);
    assert_eq!(doctor(&[]), ["ok", "ok", "ok", "ok", "ok"]);
    // moto does not confirm bucket keys when an upload begins, and names the answer of versioning
    // otherwise than S3 does: neither is an error, nor "no such setting".
    let output = v.run(&["doctor", &url, "--sse=aws:kms", "--sse-bucket-key"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !text.contains("\nerror"), "{text}");
    assert!(text.contains("versioning               enabled: what is deleted"), "{text}");
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let client = moto.client();
        client.delete_bucket_encryption().bucket(BUCKET).send().await.expect("removed");
        client.delete_public_access_block().bucket(BUCKET).send().await.expect("removed");
        client.delete_bucket_policy().bucket(BUCKET).send().await.expect("removed");
    });
    assert_eq!(doctor(&[])[..2], ["warning", "warning"]);
    doctor(&["--fix"]);
    assert_eq!(doctor(&[])[..2], ["ok", "ok"]);
    audit(&v, &[], 0);
    // Over plain http `--fix` leaves the policy alone, which would lock this very client out: as
    // it does when it is put there.
    runtime.block_on(async {
        let store = store_on(&moto.remote(), "data", SseMode::Default).await;
        assert_eq!(store.policy().await, Setting::Absent);
        let policy = with_tls_only(None, BUCKET).expect("a new one");
        store.put_policy(&policy).await.expect("taken");
    });
    let stderr = v.fails(&["sse", "audit", &url, "--passphrase-file", &pass], 4);
    assert!(stderr.contains("403"), "{stderr}");
}

#[test]
fn a_slot_that_kms_keeps_opens_on_moto() {
    // Guards against a KMS of ours: a key by alias, id and ARN, the context, an alias that moves, a
    // key of another region, and a key that is gone, on the KMS of somebody else.
    let Some(moto) = Moto::start() else { return };
    moto.make_bucket();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(aws_sdk_kms::config::BehaviorVersion::latest())
        .region(aws_sdk_kms::config::Region::new("us-east-1"))
        .credentials_provider(Credentials::new("moto", "moto", None, None, "test"))
        .endpoint_url(&moto.endpoint)
        .build();
    let kms = aws_sdk_kms::Client::from_conf(config);
    let new_key = || {
        let made = runtime.block_on(kms.create_key().send()).expect("a key");
        let made = made.key_metadata.expect("its metadata");
        (made.key_id.clone(), made.arn.expect("an ARN"))
    };
    let ((id, arn), (other, _)) = (new_key(), new_key());
    let alias = "alias/sealfs";
    runtime
        .block_on(kms.create_alias().alias_name(alias).target_key_id(&id).send())
        .expect("an alias");
    let v = Volume::create_on(Some(moto.remote()));
    let (url, state, pass) = (v.url(), v.text("state"), v.text("passphrase"));
    let at = ["--state-dir", &state, "--kms-endpoint-url", &moto.endpoint];
    for (label, key) in [("alias", alias), ("id", &id), ("arn", &arn)] {
        let add =
            ["key", "add", &url, "--passphrase-file", &pass, "--label", label, "--kms-key", key];
        v.ok(&[&add[..], &at].concat());
    }
    let list = v.ok(&["key", "list", &url, "--state-dir", &state]);
    assert_eq!(list.matches(&*arn).count(), 3, "{list}");
    // By itself: the slot says where, which is this machine.
    let test = ["key", "test", &url, "--state-dir", &state];
    assert_eq!(v.ok(&test), "it opens slot 2 (alias, AWS KMS)\n");
    runtime
        .block_on(kms.update_alias().alias_name(alias).target_key_id(&other).send())
        .expect("it moves");
    assert_eq!(v.ok(&test), "it opens slot 2 (alias, AWS KMS)\n");
    // moto believes whoever asks; the seed of another context it does not give.
    let elsewhere = v.fails(&[&test[..], &["--kms", "--kms-region", "eu-west-1"]].concat(), 3);
    assert!(elsewhere.contains("has no key") && elsewhere.contains("--kms-region"), "{elsewhere}");
    let unknown = ["key", "add", &url, "--passphrase-file", &pass, "--label", "x"];
    let unknown = v.fails(&[&unknown[..], &["--kms-key", "alias/none"], &at].concat(), 3);
    assert!(unknown.contains("alias/none") && unknown.contains("list-aliases"), "{unknown}");
    runtime
        .block_on(kms.schedule_key_deletion().key_id(&id).pending_window_in_days(7).send())
        .expect("scheduled");
    v.ok(&["key", "test", &url, "--state-dir", &state, "--passphrase-file", &pass]);
}
