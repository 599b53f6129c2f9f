//! One object of the Amazon S3 Encryption Client in somebody's bucket: found with its envelope, read
//! once it is authenticated, its data key wrapped again.
//!
//! Contents are checked to the last byte before one of them is handed on: meanwhile the ciphertext, and
//! nothing else, lies in memory or in a file without a name. Called by `cli/`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use super::attended::Attended;
use super::error::{StackError, StackErrorKind};
use super::layers::StoreStack;
use super::store_options::StoreOptions;
use crate::base::one_line;
use crate::s3ec::{
    Envelope, EnvelopePlace, INSTRUCTION_MAX, INSTRUCTION_SUFFIX, Keys, Metadata, OpenRules,
    Recognised, S3ecError, S3ecErrorKind, Unlocked, is_own_key, recognise,
};
use crate::store::s3::{About, COPY_MAX, Labels, S3Store};
use crate::store::{ErrorClass, class, patiently};

/// Attempts to go on with a body that broke, and the pause before the second; it doubles up to the
/// last.
const ATTEMPTS_MAX: u32 = 6;
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time for the store to answer at all.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Ciphertext that is kept in memory; more goes into a file.
const MEMORY_MAX: u64 = 8 << 20;
/// Bytes that are read back from the file at once.
const PIECE: usize = 256 << 10;

/// `s3://BUCKET/KEY`: any key, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<ObjectName, String> {
        let parts = text.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        match parts {
            Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
                Ok(ObjectName { bucket: bucket.to_owned(), key: key.to_owned() })
            }
            _ => Err(format!("{text:?} is no object\nhint: s3://BUCKET/KEY")),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, one_line(&self.key))
    }
}

/// Where the envelope is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvelopeAsk {
    /// In the instruction file and nowhere else.
    pub in_file: bool,
    /// What follows the object's key in that of the instruction file.
    pub suffix: String,
}

impl Default for EnvelopeAsk {
    fn default() -> EnvelopeAsk {
        EnvelopeAsk { in_file: false, suffix: INSTRUCTION_SUFFIX.to_owned() }
    }
}

/// An object of the Encryption Client, its envelope read.
pub struct S3ecObject {
    store: Arc<S3Store>,
    attended: Attended,
    name: ObjectName,
    about: About,
    envelope: Envelope,
    /// Key of the instruction file, and what is known of it.
    instruction: Option<(String, About)>,
}

impl S3ecObject {
    /// Looks at an object and, where its metadata does not hold all, at its instruction file.
    ///
    /// # Errors
    /// There is no such object, or it is none of the Encryption Client; its envelope is damaged.
    pub async fn find(
        options: &StoreOptions,
        name: &ObjectName,
        ask: &EnvelopeAsk,
    ) -> Result<S3ecObject, StackError> {
        let layers = StoreStack::connect(options, ANSWER_MAX, false).await?;
        let store = layers.s3.clone().ok_or_else(|| plain(name, "is no object of S3", ""))?;
        let about = patiently(|| store.about(&name.key)).await;
        layers.attended.goes_on();
        let about = about.map_err(|e| unread(name, &name.key, e))?;
        let in_metadata = recognise(&about.metadata).map_err(|e| named(name, e))?;
        let (envelope, instruction) = match in_metadata {
            Recognised::Sealed(_) if ask.in_file => {
                return Err(plain(
                    name,
                    "has its envelope in its metadata",
                    "leave --instruction-file out",
                ));
            }
            Recognised::Sealed(envelope) => (envelope, None),
            found => {
                let key = format!("{}{}", name.key, ask.suffix);
                let read = read_small(&store, name, &key).await?;
                let Some((file, body)) = read else {
                    return Err(without_file(
                        name,
                        &key,
                        found == Recognised::Split || ask.in_file,
                    ));
                };
                let envelope = Envelope::from_instruction_file(&about.metadata, &body)
                    .map_err(|e| named(name, e))?;
                (envelope, Some((key, file)))
            }
        };
        let attended = layers.attended.clone();
        Ok(S3ecObject { store, attended, name: name.clone(), about, envelope, instruction })
    }

    /// Its envelope.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// What the bucket says of it.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The key of its instruction file, where the envelope is there.
    pub fn instruction_key(&self) -> Option<&str> {
        self.instruction.as_ref().map(|(key, _)| key.as_str())
    }

    /// Opens the data key.
    ///
    /// # Errors
    /// As [`Envelope::unlock`].
    pub async fn unlock(&self, keys: &Keys, rules: &OpenRules) -> Result<Unlocked, StackError> {
        self.envelope.unlock(keys, rules).await.map_err(|e| named(&self.name, e))
    }

    /// Hands the contents to `out`, in order, all of them being authenticated before the first.
    /// True if they were: of version 1 nothing is. `fetched` is told how much of the ciphertext is here.
    ///
    /// # Errors
    /// They are not what was written: `out` gets nothing. What `out` says ends it.
    pub async fn read(
        &self,
        unlocked: &Unlocked,
        fetched: impl FnMut(u64),
        mut out: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Contents, StackError> {
        let (mut spool, is_authenticated) = self.fetch_checked(unlocked, fetched).await?;
        let failed = |e| named(&self.name, e);
        let mut opener = unlocked.opener(self.about.size).map_err(failed)?;
        let mut plain = Vec::new();
        let mut piece = vec![0; PIECE];
        loop {
            let len = spool.read(&mut piece).map_err(|e| self.spool_failed(e))?;
            opener.update(&piece[..len], &mut plain).map_err(failed)?;
            if len == 0 {
                break;
            }
            if let Err(e) = out(&plain) {
                return Ok(Contents { is_authenticated, out: Err(e) });
            }
            plain.clear();
        }
        let _verified = opener.finish(&mut plain).map_err(failed)?;
        Ok(Contents { is_authenticated, out: out(&plain) })
    }

    /// The ciphertext, checked, at its beginning.
    async fn fetch_checked(
        &self,
        unlocked: &Unlocked,
        mut fetched: impl FnMut(u64),
    ) -> Result<(Spool, bool), StackError> {
        let size = self.about.size;
        let failed = |e| named(&self.name, e);
        let mut verifier = unlocked.verifier(size).map_err(failed)?;
        // Of what nothing authenticates at least the padding is looked at.
        let mut opener = unlocked.opener(size).map_err(failed)?;
        let mut spool = Spool::new(size).map_err(|e| self.spool_failed(e))?;
        let mut nowhere = Vec::new();
        let (mut at, mut attempt, mut pause) = (0, 1, PAUSE);
        while at < size {
            let range = (at > 0).then_some(at..size);
            let answer = self.store.fetch(&self.name.key, range, Some(&self.about.e_tag)).await;
            let broken = match answer {
                Err(e) => e,
                Ok((_, mut body)) => loop {
                    match body.next().await {
                        None => break unfinished(&self.name),
                        Some(Err(e)) => break e,
                        Some(Ok(bytes)) => {
                            match &mut verifier {
                                Some(verifier) => verifier.update(&bytes).map_err(failed)?,
                                None => {
                                    opener.update(&bytes, &mut nowhere).map_err(failed)?;
                                    nowhere.clear();
                                }
                            }
                            spool.write_all(&bytes).map_err(|e| self.spool_failed(e))?;
                            at += bytes.len() as u64;
                            fetched(at);
                            (attempt, pause) = (1, PAUSE);
                            if at >= size {
                                break unfinished(&self.name);
                            }
                        }
                    }
                },
            };
            if at >= size {
                break;
            }
            if !class(&broken).is_retryable() || attempt == ATTEMPTS_MAX {
                return Err(unread(&self.name, &self.name.key, broken));
            }
            self.attended.waits_for(format!("{} to go on", self.name), None);
            tokio::time::sleep(pause).await;
            self.attended.goes_on();
            (attempt, pause) = (attempt + 1, (pause * 2).min(PAUSE_MAX));
        }
        let verified = match verifier {
            Some(verifier) => verifier.finish(),
            None => opener.finish(&mut nowhere),
        };
        let is_authenticated = verified.map_err(failed)?.is_authenticated();
        spool.rewind().map_err(|e| self.spool_failed(e))?;
        Ok((spool, is_authenticated))
    }

    fn spool_failed(&self, e: io::Error) -> StackError {
        StackError::Encryption {
            kind: StackErrorKind::Other,
            message: format!(
                "cannot keep {} in {} until it is checked: {e}",
                self.name,
                std::env::temp_dir().display()
            ),
            hint: format!("it takes {} bytes; another directory: TMPDIR=DIR", self.about.size),
        }
    }

    /// Puts another envelope of the same data key in the place of this one, where this one is.
    ///
    /// # Errors
    /// Object or instruction file were replaced meanwhile; what the store says.
    pub async fn rewrapped(&self, envelope: &Envelope) -> Result<(), StackError> {
        match &self.instruction {
            Some((key, was)) => {
                let body = envelope.instruction_file();
                let headers =
                    was.headers.iter().map(|(name, value)| (name.to_string(), value.clone()));
                let labels = Labels {
                    metadata: was.metadata.clone(),
                    headers: headers.collect(),
                    ..Labels::default()
                };
                let put = || self.store.replace_key(key, &was.e_tag, body.clone().into(), &labels);
                let Err(e) = patiently(put).await else { return Ok(()) };
                // An attempt whose answer was lost may have been the one that replaced it.
                let now = read_small(&self.store, &self.name, key).await?;
                match now.is_some_and(|(_, now)| now == body) {
                    true => Ok(()),
                    false => Err(unwritten(&self.name, key, e)),
                }
            }
            None => {
                let mut metadata: Metadata = self.about.metadata.clone();
                // How long the contents are stays as it was; how their key is wrapped does not.
                let gone = envelope.metadata(EnvelopePlace::Metadata);
                metadata
                    .retain(|name, _| !is_own_key(name) || name.starts_with("x-amz-unencrypted"));
                metadata.extend(gone);
                let (key, was) = (&self.name.key, &self.about);
                let copy = || self.store.replace_metadata(key, was, &metadata, COPY_MAX);
                patiently(copy).await.map_err(|e| unwritten(&self.name, &self.name.key, e))
            }
        }
    }
}

/// What reading an object came to.
pub struct Contents {
    /// Whether the contents are proven to be what was written.
    pub is_authenticated: bool,
    /// What the last of the writers said.
    pub out: io::Result<()>,
}

/// Ciphertext on its way.
enum Spool {
    Memory(io::Cursor<Vec<u8>>),
    File(File),
}

impl Spool {
    fn new(size: u64) -> io::Result<Spool> {
        match size <= MEMORY_MAX {
            true => Ok(Spool::Memory(io::Cursor::new(Vec::with_capacity(size as usize)))),
            false => tempfile::tempfile().map(Spool::File),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Spool::Memory(memory) => memory.write_all(bytes),
            Spool::File(file) => file.write_all(bytes),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Spool::Memory(memory) => memory.read(into),
            Spool::File(file) => file.read(into),
        }
    }

    fn rewind(&mut self) -> io::Result<()> {
        match self {
            Spool::Memory(memory) => memory.rewind(),
            Spool::File(file) => file.rewind(),
        }
    }
}

/// An instruction file, if it is there.
async fn read_small(
    store: &S3Store,
    name: &ObjectName,
    key: &str,
) -> Result<Option<(About, Vec<u8>)>, StackError> {
    let read = patiently(|| async {
        let (about, mut body) = store.fetch(key, None, None).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
            // The rest would only show that it is too long.
            if bytes.len() > INSTRUCTION_MAX {
                break;
            }
        }
        Ok((about, bytes))
    });
    match read.await {
        Ok(read) => Ok(Some(read)),
        Err(e) if class(&e) == ErrorClass::NotFound => Ok(None),
        Err(e) => Err(unread(name, key, e)),
    }
}

fn unfinished(name: &ObjectName) -> object_store::Error {
    let message = format!("get {name}: the body ended early");
    crate::store::StoreError::new(ErrorClass::Transport, message).into_store("s3")
}

fn plain(name: &ObjectName, what: &str, hint: &str) -> StackError {
    let message = format!("{name} {what}");
    StackError::Encryption { kind: StackErrorKind::Unsuitable, message, hint: hint.into() }
}

fn without_file(name: &ObjectName, key: &str, is_needed: bool) -> StackError {
    let file = one_line(key);
    match is_needed {
        true => StackError::Encryption {
            kind: StackErrorKind::Corrupt,
            message: format!("{name} has its envelope in {file}, which is not there"),
            hint: "without it nobody opens the object; another name: --instruction-suffix".into(),
        },
        false => plain(
            name,
            &format!(
                "is no object of the Encryption Client: nothing in its metadata says so, and there is no {file}"
            ),
            "an instruction file under another name: --instruction-suffix",
        ),
    }
}

fn unread(name: &ObjectName, key: &str, e: object_store::Error) -> StackError {
    match class(&e) {
        ErrorClass::NotFound => plain(name, "is not there", "list them: aws s3 ls s3://BUCKET/"),
        ErrorClass::Precondition => StackError::Encryption {
            kind: StackErrorKind::Other,
            message: format!("{name} was replaced while it was read"),
            hint: "try again".into(),
        },
        _ => StackError::store(format!("reading {}", one_line(key)), e),
    }
}

fn unwritten(name: &ObjectName, key: &str, e: object_store::Error) -> StackError {
    match class(&e) {
        ErrorClass::Precondition => StackError::Encryption {
            kind: StackErrorKind::Other,
            message: format!(
                "{name}: {} was replaced meanwhile; nothing was changed",
                one_line(key)
            ),
            hint: "try again".into(),
        },
        _ => StackError::store(format!("wrapping the data key of {name} again"), e),
    }
}

/// An error of the formats, of this object.
fn named(name: &ObjectName, e: S3ecError) -> StackError {
    let kind = match e.kind {
        S3ecErrorKind::Tampered => StackErrorKind::Corrupt,
        S3ecErrorKind::WrongKey => StackErrorKind::Secret,
        S3ecErrorKind::Unreachable => StackErrorKind::Unreachable,
        S3ecErrorKind::Format => StackErrorKind::Format,
        S3ecErrorKind::Usage | S3ecErrorKind::Legacy | S3ecErrorKind::TooLarge => {
            StackErrorKind::Other
        }
    };
    let hint = e.hint.unwrap_or_else(|| match e.kind {
        S3ecErrorKind::Tampered => "see what it says of itself: sealfs s3ec head".into(),
        S3ecErrorKind::WrongKey => "give the key that it was wrapped with".into(),
        _ => "sealfs s3ec --help".into(),
    });
    StackError::Encryption { kind, message: format!("{name}: {}", e.message), hint }
}

impl From<(&ObjectName, S3ecError)> for StackError {
    fn from((name, e): (&ObjectName, S3ecError)) -> StackError {
        named(name, e)
    }
}
