//! A bucket that keeps versions: what a stolen credential cannot take away, the way back with
//! `scripts/bucket-at-time` as docs/SNAPSHOTS.md has it, and what the doctor says of such a bucket.

use super::{BUCKET, Moto};
use crate::mounts::{Holder, Volume, wait_until};
use crate::needs_fuse;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{
    BucketVersioningStatus, DefaultRetention, ExpirationStatus, LifecycleExpiration, LifecycleRule,
    LifecycleRuleFilter, NoncurrentVersionExpiration, ObjectLockConfiguration, ObjectLockEnabled,
    ObjectLockRetentionMode, ObjectLockRule, VersioningConfiguration,
};

/// Now, to the second, as the script takes it, with a second before and after it to itself.
fn a_moment() -> String {
    std::thread::sleep(Duration::from_millis(1100));
    let secs = sealfs::base::unix_secs();
    std::thread::sleep(Duration::from_millis(1100));
    sealfs::base::utc_text(secs)
}

/// The script, with the credentials of the test.
fn script(v: &Volume, args: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bucket-at-time");
    let python = std::env::var("SEALFS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = v.command(&[]);
    let env: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(|v| v.to_owned()))).collect();
    command = Command::new(python);
    for (name, value) in env {
        command.env(name, value.unwrap_or_default());
    }
    command.arg(script).arg(v.url()).args(args).stdin(Stdio::null()).current_dir(v.path("run"));
    command
}

fn output(v: &Volume, args: &[&str]) -> Output {
    script(v, args).output().expect("python runs")
}

/// What it prints when it must succeed.
fn goes(v: &Volume, args: &[&str]) -> String {
    let output = output(v, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it says when it must refuse.
fn refuses(v: &Volume, args: &[&str]) -> String {
    let output = output(v, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("\nhint: "), "{said}");
    said
}

fn versioned(moto: &Moto, lock: Option<ObjectLockRetentionMode>) -> Client {
    let client = moto.client();
    moto.block_on(async {
        let make = client.create_bucket().bucket(BUCKET);
        make.object_lock_enabled_for_bucket(lock.is_some()).send().await.expect("a bucket");
        set_versioning(&client, BucketVersioningStatus::Enabled).await;
        if let Some(mode) = lock {
            set_retention(&client, mode, 7).await;
        }
    });
    client
}

async fn set_versioning(client: &Client, status: BucketVersioningStatus) {
    let to = VersioningConfiguration::builder().status(status).build();
    let put = client.put_bucket_versioning().bucket(BUCKET).versioning_configuration(to);
    put.send().await.expect("set");
}

async fn set_retention(client: &Client, mode: ObjectLockRetentionMode, days: i32) {
    let retention = DefaultRetention::builder().mode(mode).days(days).build();
    let rule = ObjectLockRule::builder().default_retention(retention).build();
    let lock = ObjectLockConfiguration::builder()
        .object_lock_enabled(ObjectLockEnabled::Enabled)
        .rule(rule)
        .build();
    let put = client.put_object_lock_configuration().bucket(BUCKET).object_lock_configuration(lock);
    put.send().await.expect("set");
}

/// All keys that are there now.
async fn keys(client: &Client, bucket: &str) -> Vec<String> {
    let mut pages = client.list_objects_v2().bucket(bucket).into_paginator().send();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.expect("lists");
        keys.extend(page.contents().iter().map(|o| o.key().expect("a key").to_owned()));
    }
    keys
}

/// Whoever has stolen the credential of a mount: deletes and overwrites every object, adds some, and
/// tries to delete for good.
async fn destroy(client: &Client) {
    for (n, key) in keys(client, BUCKET).await.iter().enumerate() {
        let versions = client.list_object_versions().bucket(BUCKET).prefix(key).send().await;
        let versions = versions.expect("lists");
        let version = versions.versions().first().and_then(|v| v.version_id()).expect("a version");
        let forever =
            client.delete_object().bucket(BUCKET).key(key).version_id(version).send().await;
        assert!(forever.is_err(), "{key} was deleted for good");
        match n % 2 {
            0 => client
                .delete_object()
                .bucket(BUCKET)
                .key(key)
                .send()
                .await
                .map(drop)
                .expect("hidden"),
            _ => put(client, key).await,
        }
    }
    put(client, "data/ransom.txt").await;
}

async fn put(client: &Client, key: &str) {
    use aws_sdk_s3::types::ChecksumAlgorithm;
    let body = b"pay".to_vec().into();
    let put = client.put_object().bucket(BUCKET).key(key).body(body);
    put.checksum_algorithm(ChecksumAlgorithm::Crc32).send().await.expect("put");
}

#[test]
fn a_bucket_that_was_destroyed_goes_back_to_what_it_was() {
    // Guards against a page that promises a way back which nobody has gone: a thief overwrites and
    // deletes everything, versions under Object Lock stay, and the script puts a state of before
    // back in place, beside what it refuses, cut off by a kill in between.
    needs_fuse!();
    let Some(moto) = Moto::start() else { return };
    let client = versioned(&moto, Some(ObjectLockRetentionMode::Compliance));
    let v = Volume::create_on(Some(moto.remote()));
    v.mount(&[]);
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    fs::create_dir(v.at("docs")).expect("a directory");
    fs::write(v.at("docs/a"), &large).expect("writes");
    v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
    fs::write(v.at("docs/a"), b"then").expect("writes");
    v.umount();
    let then = a_moment();
    // This machine sees more of it.
    v.mount(&[]);
    fs::write(v.at("docs/b"), b"later").expect("writes");
    v.ok(&["snapshot", "create", &v.text("vault"), "tuesday"]);
    v.umount();
    moto.block_on(destroy(&client));
    let refused = v.run(&["fsck", &v.url(), "--passphrase-file", &v.text("passphrase")]);
    assert!(!refused.status.success(), "{refused:?}");

    let changes = goes(&v, &["--changes"]);
    assert!(changes.contains("REPLACED  DELETED\n20"), "{changes}");
    let at = ["--at", &then, "--not-mounted"];
    let held = refuses(&v, &at[..2]);
    // Another test may have one of this name mounted, of another server.
    let by_lease = held.contains("its lease was written") && held.contains("--not-mounted");
    assert!(by_lease || held.contains("is mounted on"), "{held}");
    assert!(refuses(&v, &["--at", "2020-01-01T00:00Z", "--not-mounted"]).contains("no volume"));
    let before = moto.block_on(keys(&client, BUCKET));
    let plan = goes(&v, &[&at[..], &["--dry-run"]].concat());
    assert!(
        plan.contains("copy data/keyring of ") && plan.contains("hide data/ransom.txt"),
        "{plan}"
    );
    assert_eq!(moto.block_on(keys(&client, BUCKET)), before);
    // Killed as soon as it has done something.
    let log = v.path("run/log");
    let logged = [&at[..], &["--log", "log"]].concat();
    let child = script(&v, &logged).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = Holder(child.expect("python runs"));
    wait_until("something was copied", || {
        fs::read(&log).is_ok_and(|text| text.len() > 2)
            || child.0.try_wait().expect("own").is_some()
    });
    drop(child);
    let done = goes(&v, &logged);
    assert!(done.contains("check it: sealfs fsck s3://"), "{done}");
    let again = goes(&v, &logged);
    assert!(again.contains("; 0 (0 bytes) are to be copied, 0 hidden"), "{again}");

    // The machine that has seen more says so, and goes back when it is told.
    let older = v.mount_fails(&[], 7);
    assert!(older.contains("--accept-rollback=older"), "{older}");
    v.mount(&["--accept-rollback=older", "--takeover"]);
    check_then(&v, &large);
    fs::write(v.at("docs/c"), b"goes on").expect("writes");
    v.umount();
    let key = v.text("passphrase");
    v.ok(&["fsck", &v.url(), "--data", "--passphrase-file", &key, "--state-dir", &v.text("state")]);
    v.mount(&[]);
    assert_eq!(fs::read(v.at("docs/c")).expect("reads"), b"goes on");
    v.umount();
}

/// What the volume had at the moment that was gone back to.
fn check_then(v: &Volume, large: &[u8]) {
    assert_eq!(fs::read(v.at("docs/a")).expect("reads"), b"then");
    assert!(!v.at("docs/b").exists());
    let monday = v.at(".snapshots/monday/docs/a");
    assert!(fs::read(monday).expect("reads") == large, "the snapshot has other bytes");
    assert!(!v.at(".snapshots/tuesday").exists());
}

#[test]
fn an_earlier_state_is_copied_to_another_bucket_in_its_encryption() {
    // Guards against a copy that is stored otherwise than the volume asks for, of a state while a mount
    // was writing; and against what is there already being written over.
    needs_fuse!();
    let Some(moto) = Moto::start() else { return };
    let client = versioned(&moto, None);
    moto.block_on(client.create_bucket().bucket("restored").send()).expect("a bucket");
    let v = Volume::bare_on(Some(moto.remote()));
    let pass = v.text("passphrase");
    v.ok(&["init", &v.url(), "--passphrase-file", &pass, "--sse=aws:kms"]);
    v.mount(&[]);
    fs::write(v.at("a"), b"then").expect("writes");
    v.ok(&["snapshot", "create", &v.text("vault"), "monday"]);
    let then = a_moment();
    fs::write(v.at("a"), b"later").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    // In place not beside the mount, which is seen in the kernel's table.
    let mounted = refuses(&v, &["--at", &then]);
    assert!(mounted.contains("is mounted on") && mounted.contains("sealfs umount"), "{mounted}");
    v.umount();
    let to = ["--at", &then, "--to", "s3://restored/then"];
    goes(&v, &to);
    let again = goes(&v, &to);
    assert!(again.contains("; 0 (0 bytes) are to be copied"), "{again}");
    let other = refuses(&v, &["--at", &then, "--to", "s3://restored"]);
    assert!(other.contains("has other objects"), "{other}");
    // On another machine; the lease there is of a mount that was alive then.
    let mut remote = moto.remote();
    remote.url = "s3://restored/then".into();
    let w = Volume::bare_on(Some(remote));
    w.mount(&["--takeover"]);
    assert_eq!(fs::read(w.at("a")).expect("reads"), b"then");
    assert_eq!(fs::read(w.at(".snapshots/monday/a")).expect("reads"), b"then");
    w.umount();
    crate::sse::audit(&w, &[], 0);
    // Nothing is gone back to where that would destroy.
    moto.block_on(set_versioning(&client, BucketVersioningStatus::Suspended));
    let suspended = refuses(&v, &["--at", &then, "--not-mounted"]);
    assert!(suspended.contains("is suspended") && suspended.contains("--to"), "{suspended}");
}

/// What the doctor says.
struct Said(Vec<serde_json::Value>);

impl Said {
    fn by_doctor(v: &Volume) -> Said {
        let output = v.run(&["doctor", &v.url(), "--json"]);
        let json: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        Said(json["findings"].as_array().expect("a list").clone())
    }

    fn of(&self, what: &str) -> Vec<&serde_json::Value> {
        self.0.iter().filter(|line| line["what"] == what).collect()
    }

    /// A line of that name, with what to do if that is anything.
    fn has(&self, what: &str, level: &str, part: &str) {
        let found = self.of(what);
        let text = |line: &serde_json::Value| line["text"].as_str().unwrap_or_default().to_owned();
        let is = |line: &&&serde_json::Value| line["level"] == level && text(line).contains(part);
        let one = found.iter().find(is).unwrap_or_else(|| panic!("{what}: {found:?}"));
        assert!(level == "ok" || !one["next"].is_null(), "{one}");
    }
}

#[test]
fn the_doctor_says_whether_versions_protect_the_volume() {
    // Guards against a recommendation that nothing checks: each setting as it should be, as it should
    // not, and where these credentials may not look.
    let Some(moto) = Moto::start() else { return };
    let client = moto.client();
    let v = Volume::bare_on(Some(moto.remote()));
    moto.block_on(client.create_bucket().bucket(BUCKET).send()).expect("a bucket");
    let said = Said::by_doctor(&v);
    said.has("versioning", "warning", "off: whoever can write");
    said.has("object lock", "ok", "off");
    assert!(said.of("noncurrent versions").is_empty());
    assert!(said.of("s3:DeleteObjectVersion").is_empty());

    moto.block_on(set_versioning(&client, BucketVersioningStatus::Enabled));
    let said = Said::by_doctor(&v);
    said.has("versioning", "ok", "enabled: ");
    said.has("noncurrent versions", "warning", "no lifecycle rule");
    said.has("s3:DeleteObjectVersion", "warning", "allowed");

    let rule = |id: &str, prefix: &str| {
        let filter = LifecycleRuleFilter::builder().prefix(prefix).build();
        LifecycleRule::builder().id(id).status(ExpirationStatus::Enabled).filter(filter)
    };
    let noncurrent = NoncurrentVersionExpiration::builder().noncurrent_days(30).build();
    let keep = rule("keep", "data/").noncurrent_version_expiration(noncurrent);
    let expire = LifecycleExpiration::builder().days(9).build();
    let wipe = rule("wipe", "").expiration(expire);
    let (keep, wipe) = (keep.build().expect("a rule"), wipe.build().expect("a rule"));
    moto.block_on(set_lifecycle(&client, vec![keep.clone()]));
    let said = Said::by_doctor(&v);
    said.has("noncurrent versions", "ok", "after 30 days");
    assert!(said.of("lifecycle rules").is_empty());
    moto.block_on(set_lifecycle(&client, vec![keep, wipe]));
    Said::by_doctor(&v).has("lifecycle rules", "error", "rule wipe deletes current objects");

    moto.block_on(set_versioning(&client, BucketVersioningStatus::Suspended));
    Said::by_doctor(&v).has("versioning", "warning", "suspended");

    moto.block_on(set_versioning(&client, BucketVersioningStatus::Enabled));
    let mut remote = moto.remote();
    let (id, secret) = credentials_that_only_mount(&moto);
    for (name, value) in &mut remote.env {
        match *name {
            "AWS_ACCESS_KEY_ID" => *value = id.clone(),
            "AWS_SECRET_ACCESS_KEY" => *value = secret.clone(),
            _ => {}
        }
    }
    let said = Said::by_doctor(&Volume::bare_on(Some(remote)));
    said.has("s3:DeleteObjectVersion", "ok", "refused, as it should be");
    said.has("versioning", "warning", "may not look");
    said.has("lifecycle rules", "warning", "may not look");
}

/// Credentials that may do what a mount does, and no more; from then on moto looks at them.
fn credentials_that_only_mount(moto: &Moto) -> (String, String) {
    let code = r#"
import boto3, json, sys, urllib.request
at = sys.argv[1]
iam = boto3.client("iam", endpoint_url=at, region_name="us-east-1")
iam.create_user(UserName="mount")
key = iam.create_access_key(UserName="mount")["AccessKey"]
may = ["ListBucket", "HeadBucket", "GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"]
statement = {"Effect": "Allow", "Action": ["s3:" + action for action in may], "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
iam.put_user_policy(UserName="mount", PolicyName="mount", PolicyDocument=policy)
looks = urllib.request.Request(at + "/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
urllib.request.urlopen(looks).read()
print(key["AccessKeyId"], key["SecretAccessKey"])
"#;
    let python = std::env::var("SEALFS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = Command::new(python);
    command.args(["-c", code, &moto.endpoint]);
    command.env("AWS_ACCESS_KEY_ID", "moto").env("AWS_SECRET_ACCESS_KEY", "moto");
    let output = command.output().expect("python runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (id, secret) = text.trim().split_once(' ').expect("two words");
    (id.into(), secret.into())
}

#[test]
fn the_doctor_says_what_object_lock_holds() {
    // Guards against a retention that is longer than what the lifecycle rule means to pay for.
    let Some(moto) = Moto::start() else { return };
    let client = versioned(&moto, Some(ObjectLockRetentionMode::Governance));
    let make = client.create_bucket().bucket("without").object_lock_enabled_for_bucket(true);
    moto.block_on(make.send()).expect("a bucket");
    let mut without = moto.remote();
    without.url = "s3://without/data".into();
    let without = Said::by_doctor(&Volume::bare_on(Some(without)));
    without.has("object lock", "ok", "without a default retention");
    let v = Volume::bare_on(Some(moto.remote()));
    let said = Said::by_doctor(&v);
    said.has("object lock", "ok", "GOVERNANCE for 7 days");
    said.has("s3:DeleteObjectVersion", "ok", "refused");
    let noncurrent = NoncurrentVersionExpiration::builder().noncurrent_days(3).build();
    let filter = LifecycleRuleFilter::builder().prefix("").build();
    let rule = LifecycleRule::builder().id("r").status(ExpirationStatus::Enabled).filter(filter);
    let rule = rule.noncurrent_version_expiration(noncurrent).build().expect("a rule");
    moto.block_on(set_lifecycle(&client, vec![rule]));
    Said::by_doctor(&v).has("object lock", "warning", "a lifecycle rule means to after 3 days");
}

async fn set_lifecycle(client: &Client, rules: Vec<LifecycleRule>) {
    use aws_sdk_s3::types::BucketLifecycleConfiguration;
    let all =
        BucketLifecycleConfiguration::builder().set_rules(Some(rules)).build().expect("rules");
    let put = client.put_bucket_lifecycle_configuration().bucket(BUCKET);
    put.lifecycle_configuration(all).send().await.expect("set");
}
