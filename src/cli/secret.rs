//! Where a passphrase or key comes from: a prompt, a file, a descriptor. Never the arguments.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use zeroize::Zeroizing;

use crate::seal::{KEY_FILE_MAX, Keyring, KeyringError, RecoveryKey, Secret};
use crate::stack::{self, Layers, StackError, StoreOptions, load_keyring};

use super::args::SecretArgs;
use super::daemon::aside;
use super::exit::{Exit, Failure, Outcome};

/// How often a passphrase may be typed.
const ATTEMPTS_MAX: u32 = 3;
/// How long the store may take to show its keyring before anybody is asked.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the longest passphrase that is read.
const PASSPHRASE_MAX: usize = 4096;
/// Bytes of the longest file that is read for a recovery key.
const RECOVERY_MAX: usize = 4096;

impl SecretArgs {
    /// Whether a flag says where the secret is; else it is asked for.
    pub fn is_given(&self) -> bool {
        let from_file = self.passphrase_file.is_some() || self.key_file.is_some();
        from_file || self.passphrase_fd.is_some() || self.recovery_file.is_some()
    }

    /// Reads the secret of the volume at `store`. Whoever is asked at a prompt has
    /// [`ATTEMPTS_MAX`] tries, and is asked only once the store has answered. Call it while the
    /// process has one thread.
    pub fn read_for(&self, store: &StoreOptions) -> Outcome<Secret> {
        if self.is_given() {
            return self.read(false);
        }
        require_terminal()?;
        let keyring = keyring_of(store)?;
        for _ in 1..ATTEMPTS_MAX {
            let secret = self.read(false)?;
            match keyring.unlock(&secret) {
                Err(KeyringError::WrongPassphrase) => {
                    eprintln!("sealfs: wrong passphrase, try again");
                }
                _ => return Ok(secret), // what else is wrong, the command says
            }
        }
        self.read(false)
    }

    /// Reads the secret of a volume to be made at `store`; a prompt comes after a look at the store.
    pub fn read_new(&self, store: Option<&StoreOptions>) -> Outcome<Secret> {
        if let (false, Some(store)) = (self.is_given(), store) {
            require_terminal()?;
            let free = aside(|| Ok(super::runtime()?.block_on(stack::check_free(store))?));
            free?;
        }
        self.read(true)
    }

    /// Reads the secret. `twice`: a new passphrase, which a prompt asks for a second time.
    pub fn read(&self, twice: bool) -> Outcome<Secret> {
        if let Some(path) = &self.key_file {
            let bytes = read_file(path, KEY_FILE_MAX)?;
            return Ok(Secret::KeyFile(bytes));
        }
        if let Some(path) = &self.recovery_file {
            return recovery(&read_file(path, RECOVERY_MAX)?);
        }
        let line = if let Some(path) = &self.passphrase_file {
            first_line(read_file(path, PASSPHRASE_MAX)?)
        } else if let Some(fd) = self.passphrase_fd {
            first_line(read_fd(fd)?)
        } else {
            prompt("passphrase", twice)?
        };
        Ok(Secret::Passphrase(not_empty(line)?))
    }
}

/// The heading of `--help`; each flag names it, since one of the group would go on for other flags.
const NEW_KEY: &str = "New key";

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
    /// Use a file of 32 bytes or more as the new key
    #[arg(long, help_heading = NEW_KEY, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// Make a recovery key, and print it once
    #[arg(long, help_heading = NEW_KEY)]
    recovery: bool,
}

impl NewSecretArgs {
    /// Reads the new secret; a prompt asks twice.
    pub fn read(&self) -> Outcome<Secret> {
        let new = SecretArgs {
            passphrase_file: self.new_passphrase_file.clone(),
            passphrase_fd: self.new_passphrase_fd,
            key_file: self.new_key_file.clone(),
            recovery_file: None,
        };
        match new.is_given() {
            true => new.read(false),
            false if self.recovery => Ok(Secret::Recovery(RecoveryKey::random())),
            false => Ok(Secret::Passphrase(not_empty(prompt("new passphrase", true)?)?)),
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

fn read_fd(fd: i32) -> Outcome<Zeroizing<Vec<u8>>> {
    // SAFETY: F_GETFD only looks the number up; any number may be asked about.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Failure::new(Exit::Usage, format!("file descriptor {fd} is not open"))
            .hint(format!("sealfs … --passphrase-fd {fd} {fd}<FILE")));
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

/// Reads the keyring in a process of its own: this one may still have to fork, which threads
/// would not survive.
fn keyring_of(store: &StoreOptions) -> Outcome<Keyring> {
    let bytes = aside(|| {
        let load = async {
            let layers = Layers::connect(store, READ_TIMEOUT, false).await?;
            load_keyring(&layers, &store.location.to_string()).await
        };
        Ok(super::runtime()?.block_on(load)?.to_bytes())
    })?;
    Keyring::parse(&bytes).map_err(|e| StackError::from(e).into())
}

fn no_terminal() -> Failure {
    Failure::new(Exit::Usage, "no passphrase: there is no terminal to ask on").hint(
        "use --passphrase-file FILE, --passphrase-fd N, --key-file FILE or --recovery-file FILE",
    )
}

fn require_terminal() -> Outcome {
    match std::io::stdin().is_terminal() || File::open("/dev/tty").is_ok() {
        true => Ok(()),
        false => Err(no_terminal()),
    }
}

fn prompt(what: &str, twice: bool) -> Outcome<Zeroizing<Vec<u8>>> {
    require_terminal()?;
    let ask = |text: &str| {
        rpassword::prompt_password(text)
            .map(|line| Zeroizing::new(line.into_bytes()))
            .map_err(|_| no_terminal())
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
