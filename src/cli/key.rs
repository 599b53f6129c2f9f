//! `sealfs key`: the slots of a volume's keyring, and its epochs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::base::{Clock, SystemClock};
use crate::seal::{KdfParams, Keyring, KeyringError, Secret, SlotKind, VolumeKeys};
use crate::stack::{
    Changed, Key, KeyOptions, StackError, StoreOptions, change_keyring, last_used, open_keyring,
    read_keyring,
};

use super::args::{SecretArgs, StoreArgs};
use super::configure::tell_mounts;
use super::dirs::{absolute_or, state_dir};
use super::exit::{Exit, Failure, Outcome};
use super::key_show::{Shown, ShownSlot, named};
use super::out::print_json;
use super::secret::NewSecretArgs;
use super::signals;
use super::strength::WeakArgs;
use super::{key_add, key_kit, key_rekey, object};

/// `sealfs key …`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key list s3://my-bucket/data
  sealfs key add s3://my-bucket/data --label laptop --new-key-file laptop.key
  sealfs key add s3://my-bucket/data --label server --kms-key alias/sealfs
  sealfs key test s3://my-bucket/data --recovery-file paper.txt
  sealfs key passphrase s3://my-bucket/data
  sealfs key remove s3://my-bucket/data laptop

The volume may be mounted meanwhile, here and elsewhere. docs/KEYS.md says which ways in to have, and
what removing one does and cannot do.")]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum KeyCommand {
    /// Show the slots, and the epochs whose keys are still needed
    List(ListArgs),
    /// Find out whether a secret opens the volume, and which slot
    Test(OpenArgs),
    /// Add a way in
    Add(key_add::AddArgs),
    /// Change a passphrase
    Passphrase(PassphraseArgs),
    /// Remove a way in; what is written from then on is out of its reach
    Remove(RemoveArgs),
    /// Begin a new epoch: a new root key for what is written from now on
    Rotate(OpenArgs),
    /// Seal every object again in a new epoch, so that earlier keys open nothing
    Rekey(key_rekey::RekeyArgs),
    /// Make a recovery key, and a page to print that says how to use it
    Kit(key_kit::KitArgs),
    /// Look for typing errors in a recovery key
    CheckRecovery(key_kit::CheckArgs),
    /// Hand out the key of one object
    ExportObject(object::ExportArgs),
}

/// Which keyring.
#[derive(Args, Clone, Debug)]
pub(super) struct Where {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY
    #[arg(value_name = "STORE")]
    pub(super) store: String,
    #[command(flatten)]
    pub(super) access: StoreArgs,
    /// Where this machine remembers what it has seen of the volume
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key list s3://my-bucket/data
  sealfs key list s3://my-bucket/data --json --passphrase-file ~/.sealfs.pass

Slots can be seen without a key. With one, the list is checked: nobody has altered it; and where the
keyring has keys of earlier epochs, it is shown how many objects still need them. When a slot was last
used is what this machine remembers, of itself.")]
struct ListArgs {
    #[command(flatten)]
    at: Where,
    /// Do not look which epoch each object is sealed in (a small request for each)
    #[arg(long)]
    no_objects: bool,
    #[command(flatten)]
    secret: SecretArgs,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key test s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs key test s3://my-bucket/data --recovery-file paper.txt
  sealfs key test s3://my-bucket/data --kms
  sealfs key rotate s3://my-bucket/data --key-file volume.key")]
struct OpenArgs {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    secret: SecretArgs,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key passphrase s3://my-bucket/data
  sealfs key passphrase s3://my-bucket/data --slot 3 --new-passphrase-file new.txt

The new passphrase gets a new slot in place of the old one's, and a new epoch begins. With
--keep-epoch none does: then whoever knows the old passphrase and has a copy of the old keyring reads
on, also what is written later.")]
struct PassphraseArgs {
    #[command(flatten)]
    at: Where,
    /// The slot whose passphrase is changed [default: the one that was opened]
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
    /// Change the slot only, not the root key
    #[arg(long)]
    keep_epoch: bool,
    #[command(flatten)]
    new: NewSecretArgs,
    #[command(flatten)]
    weak: WeakArgs,
    #[command(flatten)]
    secret: SecretArgs,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key remove s3://my-bucket/data 2
  sealfs key remove s3://my-bucket/data laptop --passphrase-file ~/.sealfs.pass

A new epoch begins: what is written from then on does not open with the removed secret, nor with any
key that its owner may have kept. What was written before does.")]
struct RemoveArgs {
    #[command(flatten)]
    at: Where,
    /// Number or label of the slot
    #[arg(value_name = "N|LABEL")]
    slot: String,
    /// Also the last slot that opens without AWS KMS and without hardware
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    secret: SecretArgs,
}

/// Runs `sealfs key`.
pub fn run(args: KeyArgs) -> Outcome {
    super::keep_private();
    match args.command {
        KeyCommand::List(args) => list(&args),
        KeyCommand::Test(args) => test(&args),
        KeyCommand::Add(args) => key_add::run(&args),
        KeyCommand::Passphrase(args) => passphrase(&args),
        KeyCommand::Remove(args) => remove(&args),
        KeyCommand::Rotate(args) => rotate(&args),
        KeyCommand::Rekey(args) => key_rekey::run(&args),
        KeyCommand::Kit(args) => key_kit::run(&args),
        KeyCommand::CheckRecovery(args) => key_kit::check(&args),
        KeyCommand::ExportObject(args) => object::export(&args),
    }
}

impl Where {
    /// Where the keyring is, and what opens it: asked for at a prompt, once the store has answered.
    pub(super) fn open_with(&self, secret: &SecretArgs) -> Outcome<KeyOptions> {
        let store = self.resolved()?;
        self.options(secret.read_for(&store)?)
    }

    /// The store, seen by what this machine remembers.
    fn resolved(&self) -> Outcome<StoreOptions> {
        let mut store = self.access.resolve(&self.store)?;
        store.state_dir = Some(absolute_or(self.state_dir.as_deref(), state_dir)?);
        Ok(store)
    }

    /// Where the keyring is, and what opens it.
    pub(super) fn options(&self, key: impl Into<Key>) -> Outcome<KeyOptions> {
        let store = self.resolved()?;
        let state_dir = absolute_or(self.state_dir.as_deref(), state_dir)?;
        Ok(KeyOptions { store, key: key.into(), state_dir })
    }
}

fn list(args: &ListArgs) -> Outcome {
    let verified = args.secret.is_given();
    let mut in_use = None;
    let keyring = if verified {
        let options = args.at.open_with(&args.secret)?;
        let keyring = attend(&options.store, open_keyring(&options))?.keyring;
        if !args.no_objects && !keyring.old_roots().is_empty() {
            in_use = Some(key_rekey::epochs(&options)?);
        }
        keyring
    } else {
        let store = args.at.resolved()?;
        attend(&store, read_keyring(&store))?
    };
    let state_dir = absolute_or(args.at.state_dir.as_deref(), state_dir)?;
    let used = last_used(&state_dir, keyring.volume_id());
    let shown = Shown::of(&keyring, verified).with_use(&used).with_epochs(in_use);
    if args.at.json {
        return print_json(&shown);
    }
    print!("{}", shown.text());
    if !verified {
        println!(
            "not checked: give --passphrase-file, --key-file or another key to see that nobody \
             altered it"
        );
    }
    Ok(())
}

fn test(args: &OpenArgs) -> Outcome {
    let options = args.at.open_with(&args.secret)?;
    let unlocked = attend(&options.store, open_keyring(&options))?;
    let slots = unlocked.keyring.slots();
    let slot = slots.iter().find(|slot| slot.id == unlocked.slot);
    let slot = slot.ok_or_else(|| no_slot(unlocked.slot))?;
    match args.at.json {
        true => print_json(&ShownSlot::of(slot)),
        false => {
            println!("it opens slot {}", named(slot));
            Ok(())
        }
    }
}

fn passphrase(args: &PassphraseArgs) -> Outcome {
    let options = args.at.open_with(&args.secret)?;
    let unlocked = attend(&options.store, open_keyring(&options))?;
    let id = args.slot.unwrap_or(unlocked.slot);
    let slots = unlocked.keyring.slots();
    let slot = slots.iter().find(|slot| slot.id == id);
    let slot = slot.ok_or_else(|| no_slot(id))?;
    if slot.kind != SlotKind::Passphrase {
        return Err(Failure::new(Exit::Usage, format!("slot {} is no passphrase", named(slot)))
            .hint(format!("say which with --slot N: sealfs key list {}", args.at.store)));
    }
    let new = args.new.read()?;
    if !matches!(new, Secret::Passphrase(_)) {
        return Err(Failure::new(Exit::Usage, "the new one is no passphrase")
            .hint(format!("sealfs key add {} --label …", args.at.store)));
    }
    args.weak.check(&new)?;
    let (now, rotate) = (now_secs(), !args.keep_epoch);
    changed(&args.at, &options, |ring, keys| {
        let (to, keys) = ring.replace_slot(keys, id, &new, KdfParams::default(), now, rotate)?;
        Ok((format!("slot {id} replaced by slot {to}"), keys))
    })
}

fn remove(args: &RemoveArgs) -> Outcome {
    let options = args.at.open_with(&args.secret)?;
    changed(&args.at, &options, |ring, keys| {
        let id = find(ring, &args.slot)?;
        let keys = match args.force {
            true => ring.remove_slot(keys, id)?,
            false => ring.remove_dispensable_slot(keys, id)?,
        };
        Ok((format!("slot {id} removed"), keys))
    })
}

fn rotate(args: &OpenArgs) -> Outcome {
    let options = args.at.open_with(&args.secret)?;
    changed(&args.at, &options, |ring, keys| Ok(("rotated".into(), ring.rotate(keys)?)))
}

/// The number of a slot given by number or label; a label that two slots have is none.
fn find(ring: &Keyring, wanted: &str) -> Result<u32, KeyringError> {
    let slots = ring.slots();
    let mut labelled = slots.iter().filter(|slot| slot.label == wanted).map(|slot| slot.id);
    match (wanted.parse(), labelled.next(), labelled.next()) {
        (Ok(id), _, _) if slots.iter().any(|slot| slot.id == id) => Ok(id),
        (_, Some(id), None) => Ok(id),
        (Ok(id), None, _) => Err(KeyringError::NoSuchSlot(id)),
        _ => Err(KeyringError::NoSuchLabel(wanted.into())),
    }
}

/// Does `work` with `store`, says what is waited for, and ends it at a signal.
pub(super) fn attend<T>(
    store: &StoreOptions,
    work: impl Future<Output = Result<T, StackError>>,
) -> Outcome<T> {
    signals::run(&store.attended, Duration::ZERO, store.attended.unless_stopped(work))
}

/// [`change`], and [`say`].
fn changed(
    at: &Where,
    options: &KeyOptions,
    make: impl Fn(&mut Keyring, &VolumeKeys) -> Result<(String, VolumeKeys), KeyringError>,
) -> Outcome {
    say(at, &change(at, options, make)?)
}

/// Makes a change and tells the mount of this machine.
pub(super) fn change(
    at: &Where,
    options: &KeyOptions,
    make: impl Fn(&mut Keyring, &VolumeKeys) -> Result<(String, VolumeKeys), KeyringError>,
) -> Outcome<Changed<String>> {
    let look = format!("look whether it was done: sealfs key list {}", at.store);
    let done = attend(&options.store, change_keyring(options, make));
    let done = done.map_err(|failure| failure.if_stopped(look))?;
    tell_mounts(done.keys.volume_id());
    for note in &done.notes {
        eprintln!("sealfs: warning: {note}");
    }
    let slots = done.keyring.slots();
    for slot in slots.iter().filter(|slot| matches!(slot.kind, SlotKind::Unknown(_))) {
        let (slot, store) = (named(slot), &at.store);
        eprintln!(
            "sealfs: warning: slot {slot} of {store} stays, and opens the new keys too: this sealfs \
             does not know what opens it"
        );
        eprintln!("hint: if nobody should: sealfs key remove {store} N, with its number");
    }
    Ok(done)
}

/// Says what has been done.
pub(super) fn say(at: &Where, done: &Changed<String>) -> Outcome {
    if at.json {
        return print_json(&Shown::of(&done.keyring, true));
    }
    let (revision, epoch) = (done.keyring.revision(), done.keyring.epoch());
    println!("{}; the keyring is at revision {revision}, epoch {epoch}", done.made);
    Ok(())
}

fn no_slot(id: u32) -> Failure {
    StackError::from(KeyringError::NoSuchSlot(id)).into()
}

/// Unix time.
pub(super) fn now_secs() -> u64 {
    u64::try_from(SystemClock.now().secs).unwrap_or(0)
}
