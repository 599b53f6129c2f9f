//! `sealfs key`: the slots of a volume's keyring, and its epochs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::base::{Clock, SystemClock};
use crate::seal::{KdfParams, Keyring, KeyringError, Secret, SlotInfo, SlotKind, VolumeKeys};
use crate::stack::{
    Changed, Key, KeyOptions, StackError, change_keyring, open_keyring, read_keyring,
};

use super::args::{SecretArgs, StoreArgs};
use super::client::Client;
use super::dirs::{absolute_or, state_dir};
use super::exit::{Exit, Failure, Outcome};
use super::runtime;
use super::secret::NewSecretArgs;
use super::strength::WeakArgs;

/// `sealfs key …`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key list s3://my-bucket/data
  sealfs key add s3://my-bucket/data --label laptop --new-key-file laptop.key
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
    Add(AddArgs),
    /// Change a passphrase
    Passphrase(PassphraseArgs),
    /// Remove a way in; what is written from then on is out of its reach
    Remove(RemoveArgs),
    /// Begin a new epoch: a new root key for what is written from now on
    Rotate(OpenArgs),
}

/// Which keyring.
#[derive(Args, Clone, Debug)]
struct Where {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY
    #[arg(value_name = "STORE")]
    store: String,
    #[command(flatten)]
    access: StoreArgs,
    /// Where this machine remembers what it has seen of the volume
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key list s3://my-bucket/data
  sealfs key list s3://my-bucket/data --json --passphrase-file ~/.sealfs.pass

Slots can be seen without a key. With one, the list is checked: nobody has altered it.")]
struct ListArgs {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    secret: SecretArgs,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key test s3://my-bucket/data --passphrase-file ~/.sealfs.pass
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
  sealfs key add s3://my-bucket/data --label office
  sealfs key add s3://my-bucket/data --label backup --new-key-file /root/backup.key
  sealfs key add s3://my-bucket/data --label bob --new-passphrase-fd 3 3<bob.txt
  sealfs key add s3://my-bucket/data --label paper --recovery

Without a flag for the new one, a new passphrase is asked for, twice.")]
struct AddArgs {
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

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key passphrase s3://my-bucket/data
  sealfs key passphrase s3://my-bucket/data --slot 3 --new-passphrase-file new.txt

The new passphrase gets a slot of its own in place of the old one's, and a new epoch begins. With
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
    #[command(flatten)]
    secret: SecretArgs,
}

/// Runs `sealfs key`.
pub fn run(args: KeyArgs) -> Outcome {
    super::keep_private();
    match args.command {
        KeyCommand::List(args) => list(&args),
        KeyCommand::Test(args) => test(&args),
        KeyCommand::Add(args) => add(&args),
        KeyCommand::Passphrase(args) => passphrase(&args),
        KeyCommand::Remove(args) => remove(&args),
        KeyCommand::Rotate(args) => rotate(&args),
    }
}

impl Where {
    fn options(&self, key: impl Into<Key>) -> Outcome<KeyOptions> {
        let store = self.access.resolve(&self.store)?;
        let state_dir = absolute_or(self.state_dir.as_deref(), state_dir)?;
        Ok(KeyOptions { store, key: key.into(), state_dir })
    }
}

fn list(args: &ListArgs) -> Outcome {
    let verified = args.secret.is_given();
    let keyring = if verified {
        let options = args.at.options(args.secret.read(false)?)?;
        runtime()?.block_on(open_keyring(&options))?.keyring
    } else {
        let store = args.at.access.resolve(&args.at.store)?;
        runtime()?.block_on(read_keyring(&store))?
    };
    let shown = Shown::of(&keyring, verified);
    if args.at.json {
        return print_json(&shown);
    }
    print!("{}", shown.text());
    if !verified {
        println!("not checked: give --passphrase-file or --key-file to see that nobody altered it");
    }
    Ok(())
}

fn test(args: &OpenArgs) -> Outcome {
    let options = args.at.options(args.secret.read(false)?)?;
    let unlocked = runtime()?.block_on(open_keyring(&options))?;
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

fn add(args: &AddArgs) -> Outcome {
    let options = args.at.options(args.secret.read(false)?)?;
    // A wrong key is said before a new passphrase is asked for.
    runtime()?.block_on(open_keyring(&options))?;
    let new = args.new.read()?;
    args.weak.check(&new)?;
    let now = now_secs();
    let done = change(&args.at, &options, |ring, keys| {
        let id = ring.add_slot(keys, &new, &args.label, KdfParams::default(), now)?;
        Ok((format!("slot {id} ({}) added", args.label), keys.clone()))
    })?;
    let Secret::Recovery(key) = &new else { return say(&args.at, &done) };
    // After the change, so that what is printed opens the volume; the only time that it is shown.
    let text = key.to_text();
    if args.at.json {
        let shown = Shown { recovery_key: Some(&text), ..Shown::of(&done.keyring, true) };
        return print_json(&shown);
    }
    say(&args.at, &done)?;
    println!("recovery key, shown this once; print it, or write it down:\n\n{}\n", *text);
    Ok(())
}

fn passphrase(args: &PassphraseArgs) -> Outcome {
    let options = args.at.options(args.secret.read(false)?)?;
    let unlocked = runtime()?.block_on(open_keyring(&options))?;
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
    let options = args.at.options(args.secret.read(false)?)?;
    changed(&args.at, &options, |ring, keys| {
        let id = find(ring, &args.slot)?;
        let keys = ring.remove_slot(keys, id)?;
        Ok((format!("slot {id} removed"), keys))
    })
}

fn rotate(args: &OpenArgs) -> Outcome {
    let options = args.at.options(args.secret.read(false)?)?;
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

/// [`change`], and [`say`].
fn changed(
    at: &Where,
    options: &KeyOptions,
    make: impl Fn(&mut Keyring, &VolumeKeys) -> Result<(String, VolumeKeys), KeyringError>,
) -> Outcome {
    say(at, &change(at, options, make)?)
}

/// Makes a change and tells the mount of this machine.
fn change(
    at: &Where,
    options: &KeyOptions,
    make: impl Fn(&mut Keyring, &VolumeKeys) -> Result<(String, VolumeKeys), KeyringError>,
) -> Outcome<Changed<String>> {
    let done = runtime()?.block_on(change_keyring(options, make))?;
    for why in Client::tell_mounts(done.keys.volume_id()).1 {
        eprintln!("sealfs: warning: the mount here: {why}");
    }
    for note in &done.notes {
        eprintln!("sealfs: warning: {note}");
    }
    let slots = done.keyring.slots();
    for slot in slots.iter().filter(|slot| matches!(slot.kind, SlotKind::Unknown(_))) {
        let (slot, store) = (named(slot), &at.store);
        eprintln!("sealfs: warning: slot {slot} of {store} stays, and this sealfs cannot open it");
    }
    Ok(done)
}

/// Says what has been done.
fn say(at: &Where, done: &Changed<String>) -> Outcome {
    if at.json {
        return print_json(&Shown::of(&done.keyring, true));
    }
    let (generation, epoch) = (done.keyring.generation(), done.keyring.epoch());
    println!("{}; the keyring is at generation {generation}, epoch {epoch}", done.made);
    Ok(())
}

fn no_slot(id: u32) -> Failure {
    StackError::from(KeyringError::NoSuchSlot(id)).into()
}

fn now_secs() -> u64 {
    u64::try_from(SystemClock.now().secs).unwrap_or(0)
}

fn named(slot: &SlotInfo) -> String {
    format!("{} ({}, {})", slot.id, slot.label, slot.kind)
}

#[derive(Serialize)]
struct Shown<'a> {
    volume: String,
    generation: u64,
    epoch: u32,
    old_roots: Vec<u32>,
    verified: bool,
    slots: Vec<ShownSlot>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<&'a str>,
}

#[derive(Serialize)]
struct ShownSlot {
    slot: u32,
    kind: String,
    label: String,
    made_secs: u64,
    made_epoch: u32,
    cost: Option<String>,
}

impl ShownSlot {
    fn of(slot: &SlotInfo) -> ShownSlot {
        ShownSlot {
            slot: slot.id,
            kind: slot.kind.to_string(),
            label: slot.label.clone(),
            made_secs: slot.made_secs,
            made_epoch: slot.made_epoch,
            cost: slot.kdf.map(|kdf| kdf.to_string()),
        }
    }
}

impl Shown<'_> {
    fn of(keyring: &Keyring, verified: bool) -> Self {
        Shown {
            volume: keyring.volume_id().to_string(),
            generation: keyring.generation(),
            epoch: keyring.epoch(),
            old_roots: keyring.old_roots(),
            verified,
            slots: keyring.slots().iter().map(ShownSlot::of).collect(),
            recovery_key: None,
        }
    }

    fn text(&self) -> String {
        let mut out = format!("volume {}\nepoch {}", self.volume, self.epoch);
        if !self.old_roots.is_empty() {
            let old: Vec<String> = self.old_roots.iter().map(u32::to_string).collect();
            out += &format!(", with the keys of epochs {}", old.join(", "));
        }
        out += &format!("\ngeneration {}\n", self.generation);
        for slot in &self.slots {
            let made = day(slot.made_secs);
            let (id, kind, label) = (slot.slot, &slot.kind, &slot.label);
            let cost = slot.cost.as_deref().unwrap_or_default();
            out += format!("{id:>4}  {kind:<12}  {made}  {label:<16}  {cost}").trim_end();
            out.push('\n');
        }
        out
    }
}

/// The date of a Unix time, in UTC (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn day(secs: u64) -> String {
    let z = (secs / 86_400) as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (d, m) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    format!("{:04}-{m:02}-{d:02}", yoe + era * 400 + i64::from(m <= 2))
}

fn print_json(shown: &impl Serialize) -> Outcome {
    let json = serde_json::to_string_pretty(shown)
        .map_err(|e| Failure::new(Exit::General, format!("cannot print the keyring: {e}")))?;
    println!("{json}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        // Guards against a slot dated a day or a year off: the start, leap days, a century.
        let known = [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_800_000_000, "2027-01-15"),
            (4_107_542_400, "2100-03-01"),
        ];
        for (secs, date) in known {
            assert_eq!(day(secs), date);
        }
        let _ = day(u64::MAX);
    }
}
