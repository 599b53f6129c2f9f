//! `sealfs doctor`: whether a bucket and this machine are fit, line by line.

use std::time::Duration;

use clap::Args;

use crate::base::{counted, one_line};
use crate::seal::{KmsSlot, SlotKind};
use crate::stack::bucket_policy::{self, KeySlots};
use crate::stack::doctor::{DoctorOptions, Finding, Level, examine};
use crate::stack::{StoreOptions, read_keyring};
use crate::store::Location;

use super::args::{SecretArgs, StoreArgs};
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::out::print_json;
use super::signals::{self, UNDO_MAX};

/// How long the keyring is waited for when a policy is asked for.
const KEYRING_MAX: Duration = Duration::from_secs(5);

/// Flags of `sealfs doctor`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs doctor s3://my-bucket/data
  sealfs doctor s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs doctor s3://my-bucket/data --fix --sse aws:kms --sse-kms-key-id alias/vault
  sealfs doctor s3://my-bucket/data --iam-policy --sse aws:kms --sse-kms-key-id alias/vault

With a key flag it asks for what the volume remembers; else for --sse. The exit status is 0
unless a line says error; then it is what the first of them would make of a mount: 4 if the store
cannot be reached, 3 for a wrong key, mostly 5.")]
pub struct DoctorArgs {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY
    #[arg(value_name = "STORE")]
    store: String,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
    /// Set what is missing: default encryption, public access block, a policy against plain http
    #[arg(long)]
    fix: bool,
    /// Print the IAM policy that a mount needs, and do nothing else but look for KMS slots
    #[arg(long, conflicts_with = "fix")]
    iam_policy: bool,
    /// With --iam-policy: for a slot that this key of AWS KMS opens; may be repeated
    #[arg(long, requires = "iam_policy", value_name = "KEY")]
    kms_key: Vec<String>,
    /// With --iam-policy: for mounts with --read-only
    #[arg(long, requires = "iam_policy")]
    read_only: bool,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
}

/// Runs `sealfs doctor`.
pub fn run(args: DoctorArgs) -> Outcome {
    let store = args.access.resolve(&args.store)?;
    if args.iam_policy {
        let Location::S3 { bucket, prefix } = &store.location else {
            return Err(Failure::new(Exit::Usage, "--iam-policy is for s3://BUCKET[/PREFIX]"));
        };
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let mode = store.sse.mode.clone().unwrap_or_default();
        let tags = store.sse.tags.is_some();
        let mut policy = bucket_policy::iam(bucket, &prefix, &mode, tags, args.read_only);
        bucket_policy::allow_key_slots(&mut policy, &key_slots(&args, &store)?);
        println!("{policy:#}");
        return Ok(());
    }
    super::keep_private();
    let key = args.secret.is_given().then(|| args.secret.read_for(&store)).transpose()?;
    let mut local = vec![dirs::state_dir()?, dirs::cache_dir()?];
    local.retain(|dir| dir.exists());
    if local.is_empty() {
        local.push(std::env::temp_dir());
    }
    let options = DoctorOptions { store, key, fix: args.fix, dirs: local };
    let attended = options.store.attended.clone();
    let examined = signals::run(&attended, UNDO_MAX, examine(&options))?;
    let findings = &examined.findings;
    if args.json {
        print_json(&serde_json::json!({ "store": args.store, "findings": findings }))?;
    } else {
        print!("{}", describe(findings, &args.store));
    }
    let errors = findings.iter().filter(|f| f.level == Level::Error).count();
    match errors {
        0 => Ok(()),
        n => {
            let (fail, all) = (if n == 1 { "fails" } else { "fail" }, findings.len() as u64);
            let what = format!("{n} of {} {fail}", counted(all, "check"));
            Err(Failure::new(examined.failed.map_or(Exit::Unsuitable, Exit::from), what))
        }
    }
}

/// The KMS keys that a policy is to be about: those that were named, and those of the slots that the
/// keyring has, if there is one that can be read now.
fn key_slots(args: &DoctorArgs, store: &StoreOptions) -> Outcome<KeySlots> {
    let read = async { tokio::time::timeout(KEYRING_MAX, read_keyring(store)).await };
    let Ok(Ok(keyring)) = super::runtime()?.block_on(read) else {
        return Ok(KeySlots { keys: args.kms_key.clone(), volume: None });
    };
    let mut keys = args.kms_key.clone();
    for slot in keyring.slots().iter().filter(|slot| slot.kind == SlotKind::Kms) {
        let Ok(stored) = KmsSlot::parse(&slot.params) else { continue };
        let (key, id) = (stored.key_arn(), slot.id);
        eprintln!("sealfs: note: for slot {id} of the keyring as it is in the bucket: {key}");
        keys.extend(Some(key.to_owned()).filter(|key| !keys.contains(key)));
    }
    Ok(KeySlots { keys, volume: Some(keyring.volume_id()) })
}

/// The findings for people: a line each, and below it what to do.
pub fn describe(findings: &[Finding], store: &str) -> String {
    let mut out = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        out += &format!("{level:8} {:24} {}\n", finding.what, one_line(&finding.text));
        if let Some(next) = &finding.next {
            out +=
                &format!("{:8} {:24} next: {}\n", "", "", one_line(&next.replace("STORE", store)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_that_is_not_ok_says_what_to_type() {
        // Guards against a diagnosis without a cure, and a cure with a placeholder in it.
        let next = Some("sealfs doctor STORE --fix".to_owned());
        let text = "not blocked".to_owned();
        let finding = Finding { level: Level::Warning, what: "public access", text, next };
        let shown = describe(&[finding], "s3://b/p");
        assert!(shown.starts_with("warning  public access            not blocked\n"), "{shown}");
        assert!(shown.ends_with("next: sealfs doctor s3://b/p --fix\n"), "{shown}");
    }
}
