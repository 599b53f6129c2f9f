//! Where a passphrase or key comes from: a prompt, a file, a descriptor, a program, the credentials of
//! a systemd unit, AWS KMS, an age key. Never the arguments.

use std::fs::File;
use std::io::{BufRead, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use zeroize::Zeroizing;

use crate::base::one_line;
use crate::seal::{
    KEY, KEY_FILE_MAX, KEYRING_MAX, Keyring, KeyringError, RecoveryKey, Secret, Seed, SlotKind,
};
use crate::stack::{
    self, Attended, Follow, Found, KMS_MAX, Key, KmsSource, StackError, StoreOptions, StoreStack,
    load_keyring, open_age, unlock,
};

use super::args::SecretArgs;
use super::ask::{Terminal, has_terminal};
use super::daemon::{aside, aside_bytes};
use super::exit::{Exit, Failure, Outcome};
use super::{secret_command, signals, stop};

/// How often a passphrase may be typed.
const ATTEMPTS_MAX: u32 = 3;
/// How long the store may take to show its keyring before anybody is asked.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the longest passphrase that is read.
const PASSPHRASE_MAX: usize = 4096;
/// Bytes of the longest file that is read for a recovery key.
const RECOVERY_MAX: usize = 4096;
/// Bytes of the longest age identity file or ssh key.
const IDENTITY_MAX: usize = 64 << 10;
/// The flags that give a secret, for hints.
const WAYS: &str = "--passphrase-file FILE, --passphrase-fd N, --passphrase-command CMD, --key-file \
                    FILE, --recovery-file FILE, --kms or --age-identity FILE";

/// Where the keyring is that a secret is read for.
#[derive(Clone, Copy)]
pub enum KeyringAt<'a> {
    /// In a store.
    Store(&'a StoreOptions),
    /// A copy of it.
    File(&'a Path),
}

impl SecretArgs {
    /// Whether a flag, or a credential of the unit, says where the secret is; else it is asked for.
    pub fn is_given(&self) -> bool {
        self.by_flag() || matches!(self.settled(), Ok(args) if args.by_flag())
    }

    fn by_flag(&self) -> bool {
        let files =
            [&self.passphrase_file, &self.key_file, &self.recovery_file, &self.age_identity];
        let from_file = files.iter().any(|file| file.is_some());
        from_file || self.passphrase_fd.is_some() || self.passphrase_command.is_some() || self.kms
    }

    /// With what systemd passes to a unit (systemd.exec(5), `LoadCredentialEncrypted=`) in place of
    /// flags, where there are none.
    fn settled(&self) -> Outcome<SecretArgs> {
        let mut args = self.clone();
        let dir = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty());
        let (false, Some(dir)) = (self.by_flag(), dir) else { return Ok(args) };
        let dir = PathBuf::from(dir);
        let places = [
            ("sealfs.passphrase", &mut args.passphrase_file),
            ("sealfs.key", &mut args.key_file),
            ("sealfs.recovery", &mut args.recovery_file),
            ("sealfs.age-identity", &mut args.age_identity),
        ];
        let mut found: Option<&str> = None;
        for (name, place) in places {
            let path = dir.join(name);
            if !path.exists() {
                continue;
            }
            if let Some(first) = found.replace(name) {
                let what = format!("there are two credentials, {first} and {name}");
                return Err(Failure::new(Exit::Usage, what)
                    .hint("give the unit one of them, or say which with a flag"));
            }
            *place = Some(path);
        }
        Ok(args)
    }

    /// What opens the volume at `store`. Whoever is asked at a prompt has [`ATTEMPTS_MAX`] tries, and
    /// is asked only once the store has answered. Call it while the process has one thread.
    pub fn read_for(&self, store: &StoreOptions) -> Outcome<Key> {
        self.read_at(KeyringAt::Store(store))
    }

    /// [`SecretArgs::read_for`], of a keyring that may be elsewhere.
    pub fn read_at(&self, at: KeyringAt) -> Outcome<Key> {
        let args = self.settled()?;
        if let Some(secret) = args.direct()? {
            return Ok(secret.into());
        }
        let keyring = at.load()?;
        if let Some(path) = &args.age_identity {
            return by_age(path, &keyring);
        }
        let has_slot = keyring.slots().iter().any(|slot| slot.kind == SlotKind::Kms);
        if args.kms || has_slot {
            let follow = if args.kms { Follow::Any } else { Follow::Aws };
            match by_kms(&args.kms_source(at.profile(), follow), &keyring) {
                Err(refused) if !args.kms => {
                    return prompt_for(&keyring, Some(refused)).map(Key::from);
                }
                outcome => return outcome,
            }
        }
        prompt_for(&keyring, None).map(Key::from)
    }

    /// Reads the secret of a volume to be made at `store`; a prompt comes after a look at the store.
    pub fn read_new(&self, store: Option<&StoreOptions>) -> Outcome<Secret> {
        let args = self.settled()?;
        if args.kms || args.age_identity.is_some() {
            return Err(Failure::new(
                Exit::Usage,
                "a new volume has no slot that KMS or age opens",
            )
            .hint("make it with a passphrase or key file, then: sealfs key add STORE"));
        }
        if let (false, Some(store)) = (args.by_flag(), store) {
            require_terminal()?;
            let free = aside(|| Ok(super::runtime()?.block_on(stack::check_free(store))?));
            free?;
        }
        match args.direct()? {
            Some(secret) => Ok(secret),
            None => Ok(Secret::Passphrase(not_empty(prompt("passphrase", true)?)?)),
        }
    }

    /// The secret that a flag gives by itself.
    fn direct(&self) -> Outcome<Option<Secret>> {
        if let Some(path) = &self.key_file {
            return Ok(Some(Secret::KeyFile(read_file(path, KEY_FILE_MAX)?)));
        }
        if let Some(path) = &self.recovery_file {
            return recovery(&read_file(path, RECOVERY_MAX)?).map(Some);
        }
        let (file, command) = (self.passphrase_file.as_deref(), self.passphrase_command.as_deref());
        let line = passphrase_line(file, (self.passphrase_fd, "--passphrase-fd"), command)?;
        line.map(|line| Ok(Secret::Passphrase(not_empty(line)?))).transpose()
    }

    /// How AWS KMS is asked.
    pub fn kms_source(&self, profile: Option<&str>, follow: Follow) -> KmsSource {
        let at = &self.kms_at;
        KmsSource {
            region: at.kms_region.clone(),
            endpoint_url: at.kms_endpoint_url.clone(),
            profile: at.kms_profile.clone().or(profile.map(str::to_owned)),
            follow,
            region_of_store: None,
        }
    }
}

/// What an age identity opens.
fn by_age(path: &Path, keyring: &Keyring) -> Outcome<Key> {
    let content = read_file(path, IDENTITY_MAX)?;
    let name = one_line(&path.display().to_string());
    found_aside(|| Ok(open_age(keyring, content.clone(), &name, Arc::new(Terminal))?))
}

/// What AWS KMS opens, with what there is on this machine.
fn by_kms(source: &KmsSource, keyring: &Keyring) -> Outcome<Key> {
    found_aside(|| {
        let key = Key::from(source.clone());
        let attended = Attended::default();
        attended.waits_for("AWS KMS to answer", KMS_MAX);
        let opened = signals::run(&attended, Duration::ZERO, unlock(keyring.clone(), &key))?;
        Ok(Found { slot: opened.slot, seed: opened.seed })
    })
}

/// Finds a seed in a separate process: what asks for it takes threads, and this process may still
/// have to fork; and what it leaves in memory (answers, private keys) ends with that process.
fn found_aside(find: impl FnOnce() -> Outcome<Found>) -> Outcome<Key> {
    let found = aside_bytes(|| {
        let found = find()?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(4 + KEY));
        bytes.extend_from_slice(&found.slot.to_be_bytes());
        bytes.extend_from_slice(found.seed.expose());
        Ok(bytes)
    })?;
    let broken = || Failure::new(Exit::General, "the process that opened the slot died");
    let (slot, seed) = found.split_first_chunk().ok_or_else(broken)?;
    let seed = Seed::from_bytes(seed.try_into().map_err(|_| broken())?);
    Ok(Found { slot: u32::from_be_bytes(*slot), seed }.into())
}

impl KeyringAt<'_> {
    fn profile(&self) -> Option<&str> {
        match self {
            KeyringAt::Store(store) => store.profile.as_deref(),
            KeyringAt::File(_) => None,
        }
    }

    /// Reads the keyring in a separate process: this one may still have to fork, which threads
    /// would not survive.
    fn load(&self) -> Outcome<Keyring> {
        let bytes = match self {
            KeyringAt::Store(store) => aside_bytes(|| {
                let load = async {
                    let layers = StoreStack::connect(store, READ_TIMEOUT, false).await?;
                    load_keyring(&layers, &store.location.to_string()).await
                };
                Ok(super::runtime()?.block_on(load)?.to_bytes().into())
            })?,
            KeyringAt::File(path) => read_public(path, KEYRING_MAX)?,
        };
        Keyring::parse(&bytes).map_err(|e| StackError::from(e).into())
    }
}

/// Asks for a passphrase of `keyring`, once it is clear that there is somebody to ask, and one to ask
/// for. `refused`: what AWS KMS said, which was asked first.
fn prompt_for(keyring: &Keyring, refused: Option<Failure>) -> Outcome<Secret> {
    let has_passphrase = keyring.slots().iter().any(|slot| slot.kind == SlotKind::Passphrase);
    if !has_passphrase || !has_terminal() {
        return Err(match refused {
            Some(refused) => refused,
            None if !has_terminal() => no_terminal(),
            None => StackError::from(keyring.no_such_kind(SlotKind::Passphrase)).into(),
        });
    }
    if let Some(refused) = refused {
        eprintln!("sealfs: note: {}", one_line(&refused.message));
    }
    eprintln!("sealfs: slots of the volume: {}", described(keyring));
    for _ in 1..ATTEMPTS_MAX {
        let secret = Secret::Passphrase(not_empty(prompt("passphrase", false)?)?);
        match keyring.unlock(&secret) {
            Err(KeyringError::WrongPassphrase) => {
                eprintln!("sealfs: wrong passphrase, try again");
            }
            _ => return Ok(secret), // what else is wrong, the command says
        }
    }
    Ok(Secret::Passphrase(not_empty(prompt("passphrase", false)?)?))
}

/// The slots in one line, for whoever is about to type.
fn described(keyring: &Keyring) -> String {
    let slots = keyring.slots();
    let slots: Vec<String> = slots
        .iter()
        .map(|slot| format!("{} {} ({})", slot.id, slot.kind, one_line(&slot.label)))
        .collect();
    slots.join(", ")
}

/// The heading of `--help`; each flag names it, since one of the group would go on for other flags.
pub const NEW_KEY: &str = "New key";

/// Where a new secret comes from. As little as the old one from the command line itself.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct NewSecretArgs {
    /// Read the new passphrase from a file (one line)
    #[arg(long, help_heading = NEW_KEY, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// Read the new passphrase from an open file descriptor (one line)
    #[arg(long, help_heading = NEW_KEY, value_name = "N")]
    new_passphrase_fd: Option<i32>,
    /// Take the first line that a program prints as the new passphrase
    #[arg(long, help_heading = NEW_KEY, value_name = "CMD")]
    new_passphrase_command: Option<String>,
    /// Use a file of 32 bytes or more as the new key
    #[arg(long, help_heading = NEW_KEY, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// Make a recovery key, and print it once
    #[arg(long, help_heading = NEW_KEY)]
    recovery: bool,
}

impl NewSecretArgs {
    /// Whether a flag says where the new secret is.
    pub fn is_given(&self) -> bool {
        let from_file = self.new_passphrase_file.is_some() || self.new_key_file.is_some();
        let from_program =
            self.new_passphrase_fd.is_some() || self.new_passphrase_command.is_some();
        from_file || from_program || self.recovery
    }

    /// Reads the new secret; a prompt asks twice.
    pub fn read(&self) -> Outcome<Secret> {
        if let Some(path) = &self.new_key_file {
            return Ok(Secret::KeyFile(read_file(path, KEY_FILE_MAX)?));
        }
        if self.recovery {
            return Ok(Secret::Recovery(RecoveryKey::random()));
        }
        let file = self.new_passphrase_file.as_deref();
        let command = self.new_passphrase_command.as_deref();
        let line = passphrase_line(file, (self.new_passphrase_fd, "--new-passphrase-fd"), command)?;
        let line = line.map_or_else(|| prompt("new passphrase", true), Ok)?;
        Ok(Secret::Passphrase(not_empty(line)?))
    }
}

/// The line that one of three flags gives: a file, a descriptor with the name of its flag, a command.
fn passphrase_line(
    file: Option<&Path>,
    (fd, flag): (Option<i32>, &str),
    command: Option<&str>,
) -> Outcome<Option<Zeroizing<Vec<u8>>>> {
    let bytes = match (file, fd, command) {
        (Some(path), _, _) => read_file(path, PASSPHRASE_MAX)?,
        (None, Some(fd), _) => read_fd(fd, flag)?,
        (None, None, Some(command)) => secret_command::output(command, PASSPHRASE_MAX)?,
        (None, None, None) => return Ok(None),
    };
    Ok(Some(first_line(bytes)))
}

/// The recovery key in a file, or on standard input without one.
pub fn recovery_from(file: Option<&Path>) -> Outcome<Secret> {
    match file {
        Some(path) => recovery(&read_file(path, RECOVERY_MAX)?),
        None => {
            let mut line = Zeroizing::new(String::with_capacity(RECOVERY_MAX));
            let mut typed = std::io::stdin().lock().take(RECOVERY_MAX as u64);
            typed.read_line(&mut line).map_err(|e| {
                Failure::new(Exit::General, format!("cannot read standard input: {e}"))
            })?;
            recovery(line.as_bytes())
        }
    }
}

fn recovery(text: &[u8]) -> Outcome<Secret> {
    let text = std::str::from_utf8(text).unwrap_or("?"); // which no recovery key has
    let key = RecoveryKey::from_text(text).map_err(|e| {
        Failure::new(Exit::Secret, e)
            .hint("compare it with the paper; case, spaces and hyphens do not matter")
    })?;
    Ok(Secret::Recovery(key))
}

fn not_empty(line: Zeroizing<Vec<u8>>) -> Outcome<Zeroizing<Vec<u8>>> {
    match line.is_empty() {
        true => Err(Failure::new(Exit::Usage, "the passphrase is empty")),
        false => Ok(line),
    }
}

fn read_file(path: &Path, bytes_max: usize) -> Outcome<Zeroizing<Vec<u8>>> {
    let failed = |e| Failure::new(Exit::General, format!("cannot read {}: {e}", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 && mode & libc::S_IFMT == libc::S_IFREG {
        let path = path.display();
        eprintln!("sealfs: warning: other users can read {path}");
        eprintln!("hint: chmod 600 {path}");
    }
    read_bounded(&mut file, bytes_max).map_err(failed)
}

/// A file without secrets.
pub fn read_public(path: &Path, bytes_max: usize) -> Outcome<Zeroizing<Vec<u8>>> {
    let failed = |e| Failure::new(Exit::General, format!("cannot read {}: {e}", path.display()));
    read_bounded(&mut File::open(path).map_err(failed)?, bytes_max).map_err(failed)
}

fn read_fd(fd: i32, flag: &str) -> Outcome<Zeroizing<Vec<u8>>> {
    // SAFETY: F_GETFD only looks the number up; any number may be asked about.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Failure::new(Exit::Usage, format!("file descriptor {fd} is not open"))
            .hint(format!("sealfs … {flag} {fd} {fd}<FILE")));
    }
    // SAFETY: the descriptor is open (above), was passed to us by number to be used up here,
    // and nothing else in this process owns it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    read_bounded(&mut file, PASSPHRASE_MAX)
        .map_err(|e| Failure::new(Exit::General, format!("cannot read descriptor {fd}: {e}")))
}

fn read_bounded(file: &mut File, bytes_max: usize) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // Allocated once, so that growing leaves no copies of it in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(std::io::Error::other(format!("longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Up to the first line end, so that files written with `echo` work.
fn first_line(mut bytes: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if let Some(end) = bytes.iter().position(|&b| b == b'\n') {
        bytes.truncate(end);
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    bytes
}

fn no_terminal() -> Failure {
    Failure::new(Exit::Usage, "no passphrase: there is no terminal to ask on")
        .hint(format!("use {WAYS}"))
}

fn require_terminal() -> Outcome {
    match has_terminal() {
        true => Ok(()),
        false => Err(no_terminal()),
    }
}

fn prompt(what: &str, twice: bool) -> Outcome<Zeroizing<Vec<u8>>> {
    require_terminal()?;
    let ask = |text: &str| {
        rpassword::prompt_password(text)
            .map(|line| Zeroizing::new(line.into_bytes()))
            .map_err(|_| if stop::came() { signals::stopped() } else { no_terminal() })
    };
    let first = ask(&format!("{what}: "))?;
    if twice && *first != *ask(&format!("{what} again: "))? {
        return Err(Failure::new(Exit::Usage, "the two passphrases differ"));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_ends_at_its_line() {
        // Guards against a passphrase file made by an editor (with a newline) that opens a
        // volume made with printf (without), or not.
        let line = |b: &[u8]| first_line(Zeroizing::new(b.to_vec())).to_vec();
        assert_eq!(line(b"pass\n"), b"pass");
        assert_eq!(line(b"pass\r\n"), b"pass");
        assert_eq!(line(b"pass word "), b"pass word ");
        assert_eq!(line(b"a\nb\n"), b"a");
        assert_eq!(line(b""), b"");
    }
}
