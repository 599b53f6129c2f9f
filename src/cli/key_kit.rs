//! `sealfs key kit` and `sealfs key check-recovery`: a recovery key on paper, made and looked at.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::base::shell_word;
use crate::seal::{KdfParams, RecoveryKey, Secret};
use crate::stack::{KeyOptions, commit_now, open_keyring};

use super::args::{SecretArgs, StoreArgs};
use super::exit::{Exit, Failure, Outcome};
use super::key::{Where, attend, change, now_secs};
use super::key_show::{ShownSlot, day, named};
use super::kit::Kit;
use super::out;
use super::out::print_json;

/// Flags of `sealfs key kit`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key kit s3://my-bucket/data --out kit.html
  sealfs key kit s3://my-bucket/data --label safe
  sealfs key kit s3://my-bucket/data --recovery-file kit.key --out kit.html --force

Adds a recovery key, and writes a page to print: the key in groups and as a QR code, the store, what to
trust, and how to restore on an empty machine. With --recovery-file that key is put on the page, and
none is added. Without --out the page is shown as text. Print it, put it in a safe, and delete the file.")]
pub(super) struct KitArgs {
    #[command(flatten)]
    at: Where,
    /// Write the page to a file that only you can read: text if its name ends in .txt, else HTML
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace that file
    #[arg(long, requires = "out")]
    force: bool,
    /// What the new slot is called
    #[arg(long, value_name = "TEXT", default_value = "recovery kit")]
    label: String,
    #[command(flatten)]
    secret: SecretArgs,
}

/// Flags of `sealfs key check-recovery`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key check-recovery --recovery-file kit.key
  sealfs key check-recovery
  sealfs key check-recovery s3://my-bucket/data --recovery-file kit.key

Names the group that has a typing error (exit status 3). Without a file the key is typed here, and
shown as it is typed. With a STORE it is tried as well: which slot it opens.")]
pub(super) struct CheckArgs {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY
    #[arg(value_name = "STORE")]
    store: Option<String>,
    #[command(flatten)]
    access: StoreArgs,
    /// Read the recovery key from a file
    #[arg(long, help_heading = "Key", value_name = "FILE")]
    recovery_file: Option<PathBuf>,
    /// Where this machine remembers what it has seen of the volume
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
}

/// A kit as JSON.
#[derive(Serialize)]
struct ShownKit<'a> {
    volume: &'a str,
    store: &'a str,
    slot: &'a str,
    commit: u64,
    epoch: u32,
    revision: u64,
    /// Where the page is; absent where it was not written.
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<String>,
    /// Only where it is not on a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<&'a str>,
}

/// Runs `sealfs key kit`.
pub(super) fn run(args: &KitArgs) -> Outcome {
    let page = args.out.as_deref().map(|out| Page::begin(out, args.force)).transpose()?;
    let (options, given) = match &args.secret.recovery_file {
        Some(file) => {
            let secret = super::secret::recovery_from(Some(file))?;
            let given = match &secret {
                Secret::Recovery(key) => Some(key.to_text()),
                _ => None,
            };
            (args.at.options(secret)?, given)
        }
        None => (args.at.open_with(&args.secret)?, None),
    };
    let kit = make(&args.at, &options, given, &args.label)?;
    finish(&args.at, &kit, page)
}

/// A kit for the volume of `options`, with a new recovery key unless one is `given`.
pub(super) fn make(
    at: &Where,
    options: &KeyOptions,
    given: Option<Zeroizing<String>>,
    label: &str,
) -> Outcome<Kit> {
    // Before the keyring is changed: what fails here leaves no slot behind.
    let commit = attend(&options.store, commit_now(options))?;
    let now = now_secs();
    let (keyring, slot, key) = match given {
        Some(key) => {
            let unlocked = attend(&options.store, open_keyring(options))?;
            (unlocked.keyring, unlocked.slot, key)
        }
        None => {
            let key = RecoveryKey::random();
            let (text, new, added) = (key.to_text(), Secret::Recovery(key), Cell::new(0));
            let done = change(at, options, |ring, keys| {
                added.set(ring.add_slot(keys, &new, label, KdfParams::default(), now)?);
                Ok((String::new(), keys.clone()))
            })?;
            (done.keyring, added.get(), text)
        }
    };
    let label = keyring.slots().into_iter().find(|s| s.id == slot).map(|s| s.label);
    Ok(Kit {
        store: at.store.clone(),
        address: at.address(),
        volume: keyring.volume_id().to_string(),
        slot: format!("{slot} ({})", label.unwrap_or_default()),
        made: day(now),
        commit,
        epoch: keyring.epoch(),
        revision: keyring.revision(),
        key,
    })
}

/// Puts the kit on its page, or shows it.
pub(super) fn finish(at: &Where, kit: &Kit, page: Option<Page>) -> Outcome {
    let path = page.as_ref().map(|page| page.path.clone());
    let shown = match page {
        Some(page) => page.end(kit),
        None => {
            let on_terminal = std::io::stdout().is_terminal();
            if !at.json {
                print!("{}", *kit.text(on_terminal));
            }
            out::written()
        }
    };
    shown.map_err(|e| {
        let slot = kit.slot.split(' ').next().unwrap_or_default();
        let what = format!("nobody has seen the recovery key of slot {}: {}", kit.slot, e.message);
        Failure::new(e.exit, what)
            .hint(format!("remove it, and make another: sealfs key remove {} {slot}", at.address()))
    })?;
    if at.json {
        return print_json(&ShownKit {
            volume: &kit.volume,
            store: &kit.store,
            slot: &kit.slot,
            commit: kit.commit,
            epoch: kit.epoch,
            revision: kit.revision,
            recovery_key: path.is_none().then_some(&kit.key),
            out: path.map(|path| path.display().to_string()),
        });
    }
    if let Some(path) = path {
        let path = path.display();
        println!("recovery kit of slot {} written to {path}", kit.slot);
        println!("print it, put it in a safe, and delete the file: shred -u {path}");
    }
    Ok(())
}

/// The file of a kit: made before a key is, so that nothing is left to fail afterwards.
pub(super) struct Page {
    path: PathBuf,
    file: NamedTempFile,
    replaces: bool,
}

impl Page {
    /// Makes sure that the file can be written. It appears when it is whole.
    pub(super) fn begin(path: &Path, replaces: bool) -> Outcome<Page> {
        if !replaces && path.symlink_metadata().is_ok() {
            let what = format!("{} is there already", path.display());
            return Err(Failure::new(Exit::Usage, what).hint("name another file, or give --force"));
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        // Readable by nobody else, as all that tempfile makes.
        let file = NamedTempFile::new_in(dir.unwrap_or(Path::new("."))).map_err(|e| {
            Failure::new(Exit::General, format!("cannot write {}: {e}", path.display()))
        })?;
        Ok(Page { path: path.to_owned(), file, replaces })
    }

    fn end(mut self, kit: &Kit) -> Outcome {
        let path = self.path.display().to_string();
        let failed =
            |e: std::io::Error| Failure::new(Exit::General, format!("cannot write {path}: {e}"));
        let is_text = self.path.extension().is_some_and(|e| e == "txt");
        let page = if is_text { kit.text(false) } else { kit.html() };
        self.file.write_all(page.as_bytes()).map_err(failed)?;
        self.file.as_file().sync_all().map_err(failed)?;
        let persisted = match self.replaces {
            true => self.file.persist(&self.path),
            false => self.file.persist_noclobber(&self.path),
        };
        persisted.map(drop).map_err(|e| failed(e.error))
    }
}

/// Runs `sealfs key check-recovery`.
pub(super) fn check(args: &CheckArgs) -> Outcome {
    let file = match &args.recovery_file {
        Some(file) => Some(file.clone()),
        None if std::io::stdin().is_terminal() => {
            eprintln!("recovery key (13 groups; what you type is shown):");
            None
        }
        None => None,
    };
    let secret = super::secret::recovery_from(file.as_deref())?;
    let slot = match &args.store {
        None => None,
        Some(store) => {
            let at = Where {
                store: store.clone(),
                access: args.access.clone(),
                state_dir: args.state_dir.clone(),
                json: args.json,
            };
            let options = at.options(secret)?;
            let unlocked = attend(&options.store, open_keyring(&options))?;
            unlocked.keyring.slots().into_iter().find(|slot| slot.id == unlocked.slot)
        }
    };
    if args.json {
        let opens = slot.as_ref().map(ShownSlot::of);
        return print_json(&Checked { typed_right: true, opens });
    }
    println!("there is no typing error in it");
    match slot {
        Some(slot) => println!("it opens slot {}", named(&slot)),
        None => println!("whether it opens a volume: sealfs key check-recovery STORE …"),
    }
    Ok(())
}

#[derive(Serialize)]
struct Checked {
    typed_right: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    opens: Option<ShownSlot>,
}

impl Where {
    /// The store and the flags that reach it, as they are typed.
    pub(super) fn address(&self) -> String {
        let mut words = vec![self.store.clone()];
        self.access.to_mount(&mut words);
        words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")
    }
}
