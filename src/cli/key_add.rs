//! `sealfs key add`: a new way in.

use clap::Args;

use crate::seal::{KdfParams, Secret};
use crate::stack::open_keyring;

use super::args::SecretArgs;
use super::exit::{Failure, Outcome};
use super::key::{Where, attend, change, now_secs, say};
use super::key_show::{Shown, print_json};
use super::out;
use super::secret::NewSecretArgs;
use super::strength::WeakArgs;

/// Flags of `sealfs key add`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key add s3://my-bucket/data --label office
  sealfs key add s3://my-bucket/data --label backup --new-key-file /root/backup.key
  sealfs key add s3://my-bucket/data --label bob --new-passphrase-fd 3 3<bob.txt
  sealfs key add s3://my-bucket/data --label paper --recovery

Without a flag for the new one, a new passphrase is asked for, twice.")]
pub(super) struct AddArgs {
    #[command(flatten)]
    at: Where,
    /// What the new slot is called
    #[arg(long, value_name = "TEXT")]
    label: String,
    #[command(flatten)]
    new: NewSecretArgs,
    #[command(flatten)]
    weak: WeakArgs,
    #[command(flatten)]
    secret: SecretArgs,
}

/// Runs `sealfs key add`.
pub(super) fn run(args: &AddArgs) -> Outcome {
    let options = args.at.options(args.secret.read(false)?)?;
    // A wrong key is said before a new passphrase is asked for.
    attend(&options.store, open_keyring(&options))?;
    let new = args.new.read()?;
    args.weak.check(&new)?;
    let now = now_secs();
    let added = std::cell::Cell::new(0);
    let done = change(&args.at, &options, |ring, keys| {
        let id = ring.add_slot(keys, &new, &args.label, KdfParams::default(), now)?;
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
