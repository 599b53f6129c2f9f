//! What the tests of server-side encryption share: every way the adapter writes and reads, and a
//! volume that is taken from mode to mode by the real commands.
#![allow(dead_code)] // each test file uses a part of it

use std::fs;
use std::os::unix::fs::PermissionsExt;

use object_store::path::Path;
use object_store::{GetRange, ObjectStore, ObjectStoreExt, PutMode, Result};
use sealfs::store::s3::{S3Options, S3Store, SecretKey32, SseMode, StaticCredentials, connect};
use zeroize::Zeroizing;

use crate::support::mounts::{Remote, Volume};

/// Exit status: objects are not encrypted as requested.
pub const NOT_AS_REQUESTED: i32 = 13;

/// A customer key of this byte.
pub fn customer(byte: u8) -> SseMode {
    SseMode::Customer { key: SecretKey32::new(Zeroizing::new([byte; 32])) }
}

pub fn kms(key: Option<&str>, context: &[(&str, &str)], bucket_key: Option<bool>) -> SseMode {
    let context = context.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    SseMode::Kms { key_id: key.map(str::to_owned), context, bucket_key }
}

pub fn dsse(key: Option<&str>) -> SseMode {
    SseMode::Dsse { key_id: key.map(str::to_owned), context: Default::default() }
}

/// A store on a server of others, below `prefix`.
pub async fn store_on(remote: &Remote, prefix: &str, sse: SseMode) -> S3Store {
    let env = |name| remote.env.iter().find(|(k, _)| *k == name).map(|(_, v)| v.clone());
    let url = remote.url.strip_prefix("s3://").expect("an S3 store");
    let bucket = url.split('/').next().unwrap_or_default();
    let options = S3Options {
        endpoint_url: env("AWS_ENDPOINT_URL_S3"),
        region: env("AWS_REGION"),
        credentials: Some(StaticCredentials {
            access_key_id: env("AWS_ACCESS_KEY_ID").unwrap_or_default(),
            secret_access_key: env("AWS_SECRET_ACCESS_KEY").unwrap_or_default().into(),
        }),
        sse,
        ..S3Options::new(bucket, prefix)
    };
    connect(options).await.expect("the options of a test are good")
}

/// Writes, reads and copies in every way the adapter has.
pub async fn exercise(store: &S3Store) -> Result<()> {
    let (put, created, uploaded, copied) =
        (Path::from("put"), Path::from("created"), Path::from("up"), Path::from("copied"));
    store.put(&put, "contents".into()).await?;
    let version = store.put_opts(&created, "created".into(), PutMode::Create.into()).await?;
    let update = PutMode::Update(version.into());
    store.put_opts(&created, "updated".into(), update.into()).await?;
    let mut upload = store.put_multipart(&uploaded).await?;
    let part = vec![1u8; 5 << 20];
    upload.put_part(part.clone().into()).await?;
    upload.put_part("tail".into()).await?;
    upload.complete().await?;
    store.copy(&put, &copied).await?;

    assert_eq!(store.get(&put).await?.bytes().await?, "contents");
    assert_eq!(store.get(&created).await?.bytes().await?, "updated");
    assert_eq!(store.get_range(&copied, 3..6).await?, "ten");
    let options = object_store::GetOptions::new().with_range(Some(GetRange::Suffix(4)));
    assert_eq!(store.get_opts(&uploaded, options).await?.bytes().await?, "tail");
    assert_eq!(store.head(&uploaded).await?.size, part.len() as u64 + 4);
    Ok(())
}

/// Brings every object that [`exercise`] left into the mode of `store`, in one piece and in
/// parts, and checks that each is in it and has its bytes. `strict`: the server honours a condition
/// on the source of a copy.
pub async fn reencrypt_all(store: &S3Store, strict: bool) -> Result<()> {
    for (name, copy_max) in
        [("put", 1 << 30), ("created", 1 << 30), ("up", 1 << 30), ("up", 5 << 20)]
    {
        let path = Path::from(name);
        let before = store.get(&path).await?.bytes().await?;
        let was = store.inspect(&path).await?;
        store.reencrypt(&path, &was, copy_max).await?;
        let now = store.inspect(&path).await?;
        let unlike = store.sse_mode().unlike(&now.applied, &mut None);
        assert_eq!(unlike, None, "{name} in {}", store.sse_mode());
        assert_eq!(store.get(&path).await?.bytes().await?, before, "{name}");
        if strict && was.e_tag != now.e_tag {
            store.reencrypt(&path, &was, copy_max).await.expect_err("it is another version now");
        }
    }
    let path = Path::from("copied");
    let was = store.inspect(&path).await?;
    store.rewrite(&path, &was).await?;
    assert_eq!(store.get(&path).await?.bytes().await?, "contents");
    Ok(())
}

/// A mode as the command line names it, and the customer key it needs.
#[derive(Clone, Debug)]
pub struct Step {
    pub mode: &'static str,
    pub flags: Vec<String>,
    /// File of the customer key.
    pub key: Option<String>,
}

impl Step {
    pub fn new(mode: &'static str, flags: &[&str]) -> Step {
        Step { mode, flags: flags.iter().map(|f| (*f).to_owned()).collect(), key: None }
    }

    /// SSE-C with a key of this byte, in a file of `v`.
    pub fn customer(v: &Volume, byte: u8) -> Step {
        let path = v.path(&format!("key-{byte}"));
        fs::write(&path, [byte; 32]).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("own file");
        let key = path.display().to_string();
        let flags = vec!["--sse-c-key-file".into(), key.clone()];
        Step { mode: "customer", flags, key: Some(key) }
    }

    /// What has to be given to open a volume in this mode.
    pub fn open(&self) -> Vec<String> {
        let key = self.key.iter();
        key.flat_map(|key| ["--sse-c-key-file".to_owned(), key.clone()]).collect()
    }

    /// What has to be given to read what is left in this mode.
    fn read(&self) -> Vec<String> {
        let key = self.key.iter();
        key.flat_map(|key| ["--sse-c-read-key-file".to_owned(), key.clone()]).collect()
    }
}

/// The arguments `words` with those of more lists, as the commands take them.
pub fn args<'a>(words: &[&'a str], more: &[&'a [String]]) -> Vec<&'a str> {
    let more = more.iter().flat_map(|list| list.iter().map(String::as_str));
    words.iter().copied().chain(more).collect()
}

/// The levels of these lines of `sealfs doctor`.
pub fn doctor<const N: usize>(v: &Volume, more: &[&str], lines: [&str; N]) -> [String; N] {
    let output = v.run(&[&["doctor", &v.url(), "--json"], more].concat());
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let findings = json["findings"].as_array().expect("a list");
    lines.map(|what| {
        let line = findings.iter().find(|l| l["what"] == what);
        let line = line.unwrap_or_else(|| panic!("no {what} in {json}"));
        line["level"].as_str().expect("text").to_owned()
    })
}

/// The JSON of `sealfs sse audit`, which must end with `status`.
pub fn audit(v: &Volume, more: &[&str], status: i32) -> serde_json::Value {
    let (url, pass) = (v.url(), v.text("passphrase"));
    let mut args = vec!["sse", "audit", &url, "--passphrase-file", &pass, "--json"];
    args.extend(more);
    let output = v.run(&args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {stderr}"))
}

/// An audit that finds every object sealed and in the mode `name`.
pub fn assert_all_in(v: &Volume, step: &Step) {
    let open = step.open();
    let report = audit(v, &args(&["--verify-sealing"], &[&open]), 0);
    let objects = &report["examined"]["objects"];
    assert!(objects.as_u64() > Some(4), "{report}");
    assert_eq!(&report["as_requested"]["objects"], objects, "{report}");
    assert_eq!(&report["client_side"]["objects"], objects, "{report}");
    if step.mode != "default" {
        assert_eq!(report["groups"].as_array().map(Vec::len), Some(1), "{report}");
        assert_eq!(report["groups"][0]["mode"], step.mode, "{report}");
    }
}

/// Makes a volume in the first mode, fills it, takes it through the others, and reads everything
/// back in each; mounts never name the mode.
pub fn from_mode_to_mode(v: &Volume, steps: &[Step]) {
    let (url, pass) = (v.url(), v.text("passphrase"));
    let secret = ["--passphrase-file", pass.as_str()];
    let first = &steps[0];
    let head = ["init", url.as_str(), "--sse", first.mode];
    v.ok(&args(&[&head[..], &secret[..]].concat(), &[&first.flags]));
    let (small, large) = (b"small".to_vec(), vec![7u8; 20 << 20]);
    for (n, step) in steps.iter().enumerate() {
        if n > 0 {
            let head = ["sse", "migrate", url.as_str(), "--to", step.mode, "--json"];
            let head = [&head[..], &secret[..]].concat();
            let out = v.ok(&args(&head, &[&step.flags, &steps[n - 1].read()]));
            let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            let changed = |how: &str| report[how]["objects"].as_u64().expect("a number");
            let all = ["copied", "in_place", "rewritten"].map(changed);
            assert!(all.iter().sum::<u64>() > 0, "{report}");
            assert_eq!(report["failed"].as_array().map(Vec::len), Some(0), "{report}");
        }
        v.forget_local_state();
        let open = step.open();
        v.mount(&args(&[], &[&open]));
        if n == 0 {
            fs::write(v.at("small"), &small).expect("writes");
            fs::write(v.at("large"), &large).expect("writes");
        }
        fs::write(v.at(&format!("step-{n}")), step.mode).expect("writes");
        let sse = v.status("sse").to_string();
        let shown = match step.mode {
            "default" => "the bucket's default",
            "customer" => "a customer key",
            mode => mode,
        };
        assert!(sse.contains(shown), "{sse}");
        assert_eq!(v.status("warnings").as_array().map(Vec::len), Some(0));
        assert_eq!(fs::read(v.at("small")).expect("reads"), small);
        assert!(fs::read(v.at("large")).expect("reads") == large);
        for (earlier, step) in steps[..=n].iter().enumerate() {
            let found = fs::read_to_string(v.at(&format!("step-{earlier}"))).expect("reads");
            assert_eq!(found, step.mode);
        }
        v.umount();
        assert_all_in(v, step);
    }
}
