//! Slots that an age key opens: a random seed in an age file for X25519 keys, ssh keys, and whatever
//! has a plugin (YubiKey, TPM, FIDO2). The only file that names `age`.
//!
//! Blocks, and may ask a person: called by `cli/` while there is a terminal. A plugin is a program
//! on PATH, `age-plugin-NAME`, that is started without a shell and talked to over pipes; all of it
//! together has [`KEEPERS_MAX`].

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use age::secrecy::SecretString;
use zeroize::Zeroizing;

use crate::base::one_line;
use crate::seal::{AgeSlot, KEY, Kept, Keyring, KeyringError, Seed, SlotKind};
use crate::stack::{Found, StackError, StackErrorKind};

/// Time for plugins and for whoever types a passphrase or touches a token.
pub const KEEPERS_MAX: Duration = Duration::from_secs(180);
/// How often the passphrase of an ssh key may be typed.
const ATTEMPTS_MAX: u32 = 3;
/// Bytes of the longest line that names a recipient: an RSA key of 16,384 bits has less.
const RECIPIENT_MAX: usize = 4096;

/// Asks and tells the person at the terminal.
pub trait Ask: Send + Sync {
    /// Shows a message, such as a request to touch a token.
    fn say(&self, message: &str);
    /// A choice; `None`: nobody can be asked.
    fn confirm(&self, message: &str, yes: &str, no: Option<&str>) -> Option<bool>;
    /// A line that may be seen.
    fn line(&self, what: &str) -> Option<String>;
    /// A line that must not be seen.
    fn secret(&self, what: &str) -> Option<Zeroizing<String>>;
}

/// Where nobody sits at a terminal: nothing is shown and nobody can be asked.
pub struct Nobody;

impl Ask for Nobody {
    fn say(&self, _: &str) {}

    fn confirm(&self, _: &str, _: &str, _: Option<&str>) -> Option<bool> {
        None
    }

    fn line(&self, _: &str) -> Option<String> {
        None
    }

    fn secret(&self, _: &str) -> Option<Zeroizing<String>> {
        None
    }
}

#[derive(Clone)]
struct Callbacks(Arc<dyn Ask>);

impl age::Callbacks for Callbacks {
    fn display_message(&self, message: &str) {
        self.0.say(message);
    }

    fn confirm(&self, message: &str, yes: &str, no: Option<&str>) -> Option<bool> {
        self.0.confirm(message, yes, no)
    }

    fn request_public_string(&self, description: &str) -> Option<String> {
        self.0.line(description)
    }

    fn request_passphrase(&self, description: &str) -> Option<SecretString> {
        self.0.secret(description).map(|typed| SecretString::from((*typed).clone()))
    }
}

fn keeper(kind: StackErrorKind, message: String, hint: &str) -> StackError {
    StackError::Keeper { kind, message: one_line(&message), hint: hint.into() }
}

/// Recipients out of the lines of a file or of flags: comments and empty lines are passed over.
///
/// # Errors
/// A line that is no recipient, or a private key.
pub fn recipients<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<String>, StackError> {
    let usage = |message: String, hint| Err(keeper(StackErrorKind::Other, message, hint));
    let mut found = Vec::new();
    for line in lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-")
            || line.to_ascii_uppercase().starts_with("AGE-PLUGIN-")
        {
            let what = "that is a private key, not a recipient".to_owned();
            return usage(what, "the recipient begins with age1; age-keygen -y FILE shows it");
        }
        // Without the comment behind an ssh key: it may name somebody.
        let mut words = line.split_ascii_whitespace();
        let recipient = match (words.next(), words.next()) {
            (Some(kind), Some(key)) if kind.starts_with("ssh-") => format!("{kind} {key}"),
            _ => line.to_owned(),
        };
        if recipient.len() > RECIPIENT_MAX || !is_recipient(&recipient) {
            let shown: String = recipient.chars().take(60).collect();
            return usage(
                format!("{shown:?} is no age recipient"),
                "age1…, age1NAME1… (plugin age-plugin-NAME), ssh-ed25519 … or ssh-rsa …",
            );
        }
        if !found.contains(&recipient) {
            found.push(recipient);
        }
    }
    match found.is_empty() {
        false => Ok(found),
        true => usage("no age recipient".into(), "--age-recipient age1…, or a file with some"),
    }
}

fn is_recipient(text: &str) -> bool {
    text.parse::<age::x25519::Recipient>().is_ok()
        || text.parse::<age::plugin::Recipient>().is_ok()
        || text.parse::<age::ssh::Recipient>().is_ok()
}

/// A new seed in an age file for `recipients`, each of which alone opens it.
///
/// # Errors
/// A plugin that is not there or fails; more recipients than a slot has room for.
pub fn keep(recipients: &[String], ask: Arc<dyn Ask>) -> Result<Kept, StackError> {
    let recipients = recipients.to_vec();
    within(KEEPERS_MAX, move || {
        let seed = Kept::random_seed();
        let file = encrypt(&recipients, &seed, &Callbacks(ask))?;
        let slot = AgeSlot::new(&recipients, file).map_err(|why| {
            keeper(
                StackErrorKind::Other,
                why.to_string(),
                "make a slot for some, and another for the rest",
            )
        })?;
        Ok(Kept::age(seed, &slot))
    })
}

fn encrypt(
    recipients: &[String],
    seed: &[u8; KEY],
    callbacks: &Callbacks,
) -> Result<Vec<u8>, StackError> {
    let failed = |e: age::EncryptError| {
        let (message, hint) = match &e {
            age::EncryptError::MissingPlugin { binary_name } => missing(binary_name),
            _ => (
                format!("encrypting to the age recipients: {e}"),
                "see which one fails: age -r RECIPIENT",
            ),
        };
        keeper(StackErrorKind::Other, message, hint)
    };
    let mut all: Vec<Box<dyn age::Recipient>> = Vec::new();
    let mut of_plugins = Vec::new();
    for text in recipients {
        if let Ok(recipient) = text.parse::<age::x25519::Recipient>() {
            all.push(Box::new(recipient));
        } else if let Ok(recipient) = text.parse::<age::plugin::Recipient>() {
            of_plugins.push(recipient);
        } else if let Ok(recipient) = text.parse::<age::ssh::Recipient>() {
            all.push(Box::new(recipient));
        }
    }
    let plugins: BTreeSet<&str> = of_plugins.iter().map(age::plugin::Recipient::plugin).collect();
    for name in plugins {
        let plugin = age::plugin::RecipientPluginV1::new(name, &of_plugins, &[], callbacks.clone());
        all.push(Box::new(plugin.map_err(failed)?));
    }
    let encryptor =
        age::Encryptor::with_recipients(all.iter().map(|r| &**r as &dyn age::Recipient));
    let mut file = Vec::new();
    let written = encryptor.map_err(failed)?.wrap_output(&mut file).and_then(|mut writer| {
        writer.write_all(seed)?;
        writer.finish()
    });
    written.map_err(|e| failed(e.into()))?;
    Ok(file)
}

fn missing(plugin: &str) -> (String, &'static str) {
    (format!("the plugin {plugin} is not on PATH"), "install it, or add its directory to PATH")
}

/// Opens a slot of `keyring` with the identities that a file holds: age keys and plugin identities,
/// line by line, or one ssh private key. `name` is the file's, for sentences.
///
/// # Errors
/// Not an identity; a passphrase that is wrong; none of the slots is for any of them; what a plugin
/// says.
pub fn open(
    keyring: &Keyring,
    content: Zeroizing<Vec<u8>>,
    name: &str,
    ask: Arc<dyn Ask>,
) -> Result<Found, StackError> {
    let (keyring, name) = (keyring.clone(), name.to_owned());
    within(KEEPERS_MAX, move || open_now(&keyring, &content, &name, &Callbacks(ask)))
}

fn open_now(
    keyring: &Keyring,
    content: &[u8],
    name: &str,
    callbacks: &Callbacks,
) -> Result<Found, StackError> {
    let slots = keyring.slots();
    let mut slots = slots.iter().filter(|slot| slot.kind == SlotKind::Age).peekable();
    if slots.peek().is_none() {
        return Err(keyring.no_such_kind(SlotKind::Age).into());
    }
    let identities = identities(content, name, callbacks)?;
    let mut refused = None;
    for slot in slots {
        let outcome = AgeSlot::parse(&slot.params)
            .map_err(|why| KeyringError::Kept { slot: slot.id, why }.into())
            .and_then(|stored| decrypt(&stored, &identities, slot.id));
        match outcome {
            Ok(Some(seed)) if keyring.fits(slot.id, &seed) => {
                return Ok(Found { slot: slot.id, seed });
            }
            Ok(Some(_)) => refused = refused.or(Some(KeyringError::Altered.into())),
            Ok(None) => {}
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    Err(refused.unwrap_or_else(|| {
        keeper(
            StackErrorKind::Secret,
            format!("none of the age slots of the keyring is for {name}"),
            "see for whom they are: sealfs key list STORE",
        )
    }))
}

/// Whether age reads the header of a file that [`AgeSlot`] takes; for fuzzing.
#[doc(hidden)]
pub fn reads(file: &[u8]) -> bool {
    age::Decryptor::new(file).is_ok()
}

/// The seed in the age file of a slot; `None`: it is for others.
fn decrypt(
    stored: &AgeSlot,
    identities: &[Box<dyn age::Identity>],
    slot: u32,
) -> Result<Option<Seed>, StackError> {
    let opened = age::Decryptor::new(stored.file())
        .and_then(|file| file.decrypt(identities.iter().map(|identity| &**identity)));
    let mut reader = match opened {
        Ok(reader) => reader,
        Err(age::DecryptError::NoMatchingKeys) => return Ok(None),
        Err(age::DecryptError::MissingPlugin { binary_name }) => {
            let (message, hint) = missing(&binary_name);
            return Err(keeper(StackErrorKind::Other, message, hint));
        }
        Err(e) => {
            let message = format!("slot {slot} does not open: {e}");
            return Err(keeper(StackErrorKind::Secret, message, "open it with another slot"));
        }
    };
    let mut seed = Zeroizing::new([0u8; KEY]);
    let read = reader.read_exact(&mut seed[..]).and_then(|()| reader.read(&mut [0; 1]));
    match read {
        Ok(0) => Ok(Some(Seed::from_bytes(&seed))),
        _ => Err(KeyringError::Altered.into()),
    }
}

fn identities(
    content: &[u8],
    name: &str,
    callbacks: &Callbacks,
) -> Result<Vec<Box<dyn age::Identity>>, StackError> {
    let none = |why: &str, hint| {
        Err(keeper(StackErrorKind::Other, format!("{name} is no age identity: {why}"), hint))
    };
    const HINT: &str = "it takes a file of age-keygen, of a plugin, or an ssh private key";
    if content.starts_with(b"age-encryption.org/") || content.starts_with(b"-----BEGIN AGE") {
        return none(
            "it is itself encrypted",
            "give it decrypted, without writing it down: --age-identity <(age -d FILE)",
        );
    }
    if content.starts_with(b"-----BEGIN ") {
        let key = match age::ssh::Identity::from_buffer(content, Some(name.to_owned())) {
            Ok(key) => key,
            Err(_) => return none("it is no ssh private key that age can use", HINT),
        };
        return match key {
            age::ssh::Identity::Unencrypted(_) => Ok(vec![Box::new(key)]),
            age::ssh::Identity::Encrypted(key) => {
                Ok(vec![Box::new(unlocked(&key, name, callbacks)?)])
            }
            age::ssh::Identity::Unsupported(_) => {
                none("age cannot use ssh keys of this kind", HINT)
            }
        };
    }
    let file = match age::IdentityFile::from_buffer(content) {
        Ok(file) => file.with_callbacks(callbacks.clone()),
        Err(e) => return none(&e.to_string(), HINT),
    };
    match file.into_identities() {
        Ok(all) if all.is_empty() => none("it is empty", HINT),
        Ok(all) => Ok(all),
        Err(age::DecryptError::MissingPlugin { binary_name }) => {
            let (message, hint) = missing(&binary_name);
            Err(keeper(StackErrorKind::Other, message, hint))
        }
        Err(e) => none(&e.to_string(), HINT),
    }
}

/// An ssh key whose passphrase somebody types. Asked here, once for all slots: age would ask for
/// every stanza.
fn unlocked(
    key: &age::ssh::EncryptedKey,
    name: &str,
    callbacks: &Callbacks,
) -> Result<age::ssh::Identity, StackError> {
    for _ in 0..ATTEMPTS_MAX {
        let Some(typed) = callbacks.0.secret(&format!("passphrase of {name}")) else {
            let what = format!("{name} has a passphrase: there is no terminal to ask on");
            return Err(keeper(
                StackErrorKind::Secret,
                what,
                "use a terminal, or an identity without a passphrase",
            ));
        };
        match key.decrypt(SecretString::from((*typed).clone())) {
            Ok(key) => return Ok(key.into()),
            Err(_) => callbacks.0.say(&format!("wrong passphrase of {name}")),
        }
    }
    let what = format!("wrong passphrase of {name}");
    Err(keeper(StackErrorKind::Secret, what, "check it: ssh-keygen -y -f FILE"))
}

/// Runs `work`, which may wait for a plugin or a person, on a separate thread for at most `limit`.
/// Then the programs that it has started are killed, and the thread is left behind.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T, StackError> + Send + 'static,
) -> Result<T, StackError> {
    let (tell, told) = channel();
    std::thread::spawn(move || tell.send(work()));
    match told.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Disconnected) => {
            Err(StackError::Repair("the age keys could not be looked at: a bug".into()))
        }
        Err(RecvTimeoutError::Timeout) => {
            children().into_iter().for_each(|pid| {
                // SAFETY: kill(2) takes any number; these were children of this process just now,
                // and none of them is waited for, so that the number is still theirs.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            });
            Err(keeper(
                StackErrorKind::Secret,
                format!("no answer from the age plugin or its owner within {} s", limit.as_secs()),
                "see what it does: AGEDEBUG=plugin sealfs …",
            ))
        }
    }
}

/// The processes that this one has started (proc(5), `/proc/self/task/*/children`).
fn children() -> Vec<libc::pid_t> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("children")).ok()
    };
    let lists: Vec<String> = tasks.filter_map(of_task).collect();
    lists
        .iter()
        .flat_map(|list| list.split_whitespace())
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{KdfParams, RootKey, Secret};

    fn identity() -> (String, String) {
        use age::secrecy::ExposeSecret;
        let key = age::x25519::Identity::generate();
        (key.to_string().expose_secret().to_owned(), key.to_public().to_string())
    }

    fn opened(ring: &Keyring, identity: &str) -> Result<Found, StackError> {
        open(ring, identity.as_bytes().to_vec().into(), "FILE", Arc::new(Nobody))
    }

    #[test]
    fn each_recipient_opens_the_slot_and_nobody_else() {
        // Guards against a slot that only the first recipient opens, and against a stranger's key
        // being reported as a damaged volume.
        let (one, two, other) = (identity(), identity(), identity());
        let lines = format!("# the two\n{}\n\n {} \n{}\n", one.1, two.1, one.1);
        let list = recipients(lines.lines()).expect("recipients");
        assert_eq!(list, [one.1.clone(), two.1.clone()]);
        let kept = Secret::Kept(keep(&list, Arc::new(Nobody)).expect("kept"));
        let made = Keyring::create(RootKey::random(), &kept, "both", KdfParams::FLOOR, 0);
        let (ring, keys) = made.expect("made");
        for (secret, _) in [&one, &two] {
            let found = opened(&ring, secret).expect("opens");
            let open = ring.open(found.slot, &found.seed).expect("its seed");
            assert_eq!(open.volume_id(), keys.volume_id());
        }
        let e = opened(&ring, &other.0).expect_err("a stranger");
        assert_eq!(e.kind(), StackErrorKind::Secret);
        assert!(e.to_string().contains("none of the age slots"), "{e}");
        for (content, said) in [
            ("rubbish", "line 1"),
            ("", "empty"),
            ("age-encryption.org/v1\n", "encrypted"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "no ssh private key"),
        ] {
            let e = opened(&ring, content).expect_err("no identity");
            assert!(e.to_string().contains(said), "{content}: {e}");
        }
    }

    #[test]
    fn a_private_key_is_never_taken_for_a_recipient() {
        // Guards against a private key in a keyring that everybody can list, or in an error.
        let (secret, _) = identity();
        let e = recipients(secret.lines()).expect_err("refused").to_string();
        assert!(e.contains("private key") && !e.contains(&secret[20..]), "{e}");
        for bad in ["", "# nothing", "age1qqq", "ssh-dss AAAA", "hello"] {
            assert!(recipients(bad.lines()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_does_not_answer_is_left_after_a_while() {
        // Guards against a plugin that hangs, and a mount that hangs with it.
        let e = within(Duration::from_millis(100), || {
            let waited = std::process::Command::new("sleep").arg("1000").status();
            Err::<(), _>(StackError::Repair(format!("{waited:?}")))
        });
        assert!(e.expect_err("too late").to_string().contains("no answer"));
        let begun = std::time::Instant::now();
        let ours = |pid: libc::pid_t| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"sleep\x001000\0")
        };
        while children().into_iter().any(ours) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it was left running");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
