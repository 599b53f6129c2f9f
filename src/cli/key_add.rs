//! `sealfs key add`: a new way in.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::seal::{KdfParams, Keyring, KeyringError, LABEL_MAX, Secret};
use crate::stack::{
    Follow, KeyOptions, KmsSource, StackError, age_recipients, keep_age, open_keyring,
};

use super::args::SecretArgs;
use super::ask::Terminal;
use super::exit::{Exit, Failure, Outcome};
use super::key::{Where, attend, change, now_secs, say};
use super::key_show::Shown;
use super::out;
use super::out::print_json;
use super::secret::{NEW_KEY, NewSecretArgs, read_public};
use super::strength::WeakArgs;

/// Bytes of the longest file of recipients.
const RECIPIENTS_FILE_MAX: usize = 64 << 10;
/// How often KMS is asked again because another slot was added meanwhile.
const TRIES_MAX: u32 = 8;

/// Flags of `sealfs key add`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key add s3://my-bucket/data --label office
  sealfs key add s3://my-bucket/data --label backup --new-key-file /root/backup.key
  sealfs key add s3://my-bucket/data --label bob --new-passphrase-fd 3 3<bob.txt
  sealfs key add s3://my-bucket/data --label paper --recovery
  sealfs key add s3://my-bucket/data --label server --kms-key alias/sealfs --kms-region eu-west-1
  sealfs key add s3://my-bucket/data --label team --age-recipients-file team.txt
  sealfs key add s3://my-bucket/data --label yubikey --age-recipient age1yubikey1…

Without a flag for the new one, a new passphrase is asked for, twice. --kms-key needs kms:Encrypt on
the key; whoever opens the slot, with --kms, needs kms:Decrypt. Each recipient of an age slot opens
it, with --age-identity.")]
pub(super) struct AddArgs {
    #[command(flatten)]
    at: Where,
    /// What the new slot is called
    #[arg(long, value_name = "TEXT")]
    label: String,
    #[command(flatten)]
    new: NewSecretArgs,
    #[command(flatten)]
    keeper: NewKeeperArgs,
    #[command(flatten)]
    weak: WeakArgs,
    #[command(flatten)]
    secret: SecretArgs,
}

/// Whom a new slot is for, if not for a secret.
#[derive(Args, Clone, Debug)]
struct NewKeeperArgs {
    /// A slot that AWS KMS opens: key id, alias/NAME or ARN
    #[arg(long, help_heading = NEW_KEY, value_name = "KEY")]
    kms_key: Option<String>,
    /// A slot that the owner of this age or ssh key opens; may be repeated
    #[arg(long, help_heading = NEW_KEY, value_name = "R")]
    age_recipient: Vec<String>,
    /// Recipients of an age slot, one a line
    #[arg(long, help_heading = NEW_KEY, value_name = "FILE")]
    age_recipients_file: Option<PathBuf>,
}

/// What the new slot is for.
enum New {
    Secret(Secret),
    /// The name of a KMS key.
    Kms(String),
}

impl AddArgs {
    /// Reads, or asks for, what the new slot is for.
    fn read_new(&self) -> Outcome<New> {
        let keeper = &self.keeper;
        let by_age = !keeper.age_recipient.is_empty() || keeper.age_recipients_file.is_some();
        if [keeper.kms_key.is_some(), by_age, self.new.is_given()].iter().filter(|g| **g).count()
            > 1
        {
            return Err(Failure::new(Exit::Usage, "one slot is for one key")
                .hint("add them one after the other"));
        }
        if let Some(key) = &keeper.kms_key {
            return Ok(New::Kms(key.clone()));
        }
        if by_age {
            let mut text = keeper.age_recipient.join("\n");
            if let Some(path) = &keeper.age_recipients_file {
                let bytes = read_public(path, RECIPIENTS_FILE_MAX)?;
                text += "\n";
                text += std::str::from_utf8(&bytes).map_err(|_| {
                    let what = format!("{} is not text", path.display());
                    Failure::new(Exit::Usage, what).hint("it has one recipient a line: age1…")
                })?;
            }
            let recipients = age_recipients(text.lines())?;
            return Ok(New::Secret(Secret::Kept(keep_age(&recipients, Arc::new(Terminal))?)));
        }
        let new = self.new.read()?;
        self.weak.check(&new)?;
        Ok(New::Secret(new))
    }
}

/// Runs `sealfs key add`.
pub(super) fn run(args: &AddArgs) -> Outcome {
    if args.label.len() > LABEL_MAX || args.label.chars().any(char::is_control) {
        return Err(StackError::from(KeyringError::Label).into()); // before anybody types anything
    }
    let options = args.at.open_with(&args.secret)?;
    // A wrong key is said before a new passphrase is asked for.
    let unlocked = attend(&options.store, open_keyring(&options))?;
    let new = match args.read_new()? {
        New::Secret(new) => new,
        New::Kms(key) => return add_kms(args, &options, &key, unlocked.keyring),
    };
    let added = Cell::new(0);
    let done = change(&args.at, &options, |ring, keys| {
        let id = ring.add_slot(keys, &new, &args.label, KdfParams::default(), now_secs())?;
        added.set(id);
        Ok((format!("slot {id} ({}) added", args.label), keys.clone()))
    })?;
    let Secret::Recovery(key) = &new else { return say(&args.at, &done) };
    // After the change, so that what is printed opens the volume; the only time that it is shown.
    let text = key.to_text();
    if args.at.json {
        let shown = Shown::of(&done.keyring, true).with_recovery_key(&text);
        print_json(&shown)?;
    } else {
        say(&args.at, &done)?;
        println!("recovery key, shown this once; print it, or write it down:\n\n{}\n", *text);
    }
    let (id, store) = (added.get(), &args.at.store);
    out::written().map_err(|e| {
        let what =
            format!("slot {id} was added, but nobody has seen its recovery key: {}", e.message);
        Failure::new(e.exit, what)
            .hint(format!("remove it, and add another: sealfs key remove {store} {id}"))
    })
}

/// Adds a slot that AWS KMS opens. The number of the slot is part of what KMS encrypts: if another
/// slot has taken the number meanwhile, KMS is asked again.
fn add_kms(args: &AddArgs, options: &KeyOptions, key: &str, keyring: Keyring) -> Outcome {
    let store = &options.store;
    let source = args.secret.kms_source(store.profile.as_deref(), Follow::Any);
    // Of another server than AWS the region is no region of KMS.
    let region_of_store = store.region.clone().filter(|_| store.endpoint_url.is_none());
    let source = KmsSource { region_of_store, ..source };
    let mut keyring = keyring;
    for _ in 0..TRIES_MAX {
        let (id, taken) = (keyring.next_slot(), Cell::new(false));
        let kept = attend(&options.store, source.keep(key, keyring.volume_id(), id))?;
        let new = Secret::Kept(kept);
        let changed = change(&args.at, options, |ring, keys| {
            taken.set(ring.next_slot() != id);
            if taken.get() {
                return Err(KeyringError::SlotTaken(id));
            }
            ring.add_slot(keys, &new, &args.label, KdfParams::default(), now_secs())?;
            Ok((format!("slot {id} ({}) added", args.label), keys.clone()))
        });
        match changed {
            Err(_) if taken.get() => {
                keyring = attend(&options.store, open_keyring(options))?.keyring;
            }
            outcome => return say(&args.at, &outcome?),
        }
    }
    Err(StackError::from(KeyringError::SlotTaken(keyring.next_slot())).into())
}
