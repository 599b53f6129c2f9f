//! Objects of the Amazon S3 Encryption Client on their way in and out.
//!
//! In: an object is recognised by its metadata or instruction file, opened as it arrives into a file
//! without its own name, which gets one only once all of it is authenticated. Out: the data key is
//! new for every object; the instruction file, if there is one, goes before its object.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use super::bucket::Bucket;
use super::large::Sink;
use super::report::{ExchangeError, Run, Trouble};
use crate::s3ec::{
    Envelope, EnvelopePlace, INSTRUCTION_MAX, INSTRUCTION_SUFFIX, INSTRUCTION_SUFFIX_DOTNET, Keys,
    Metadata, OpenRules, Recognised, S3ecError, S3ecErrorKind, SealFormat, SealRules, Sealing,
    Unlocked, Unverified, Verified, cipher_len, is_instruction_marker, recognise, seal,
};
use crate::store::s3::{About, Labels};

/// What opens objects.
pub struct OpenWith {
    /// Keys that wrap data keys.
    pub keys: Keys,
    /// What may be opened.
    pub rules: OpenRules,
}

/// How objects are sealed.
pub struct SealWith {
    /// The key that wraps data keys.
    pub keys: Keys,
    /// Version and context.
    pub rules: SealRules,
    /// Whether the envelope goes into a file beside the object.
    pub instruction_file: bool,
}

impl From<S3ecError> for Trouble {
    fn from(e: S3ecError) -> Trouble {
        let text = e.to_string().replace("\nhint: ", "; ");
        match e.kind {
            // KMS is away: so it is for all the others.
            S3ecErrorKind::Unreachable => Trouble::End(ExchangeError::Keys(e.to_string())),
            _ => Trouble::One(text),
        }
    }
}

/// The key of the instruction file of an object.
pub fn instruction_key(key: &str) -> String {
    format!("{key}{INSTRUCTION_SUFFIX}")
}

/// The object that an instruction file of this key would be of.
pub fn instructed(key: &str) -> Option<&str> {
    let of = key.strip_suffix(INSTRUCTION_SUFFIX).or(key.strip_suffix(INSTRUCTION_SUFFIX_DOTNET))?;
    (!of.is_empty()).then_some(of)
}

/// Whether an object, with what is said of it and its bytes, is an instruction file rather than a file
/// of that name.
pub fn is_instruction(about: &About, body: &[u8]) -> bool {
    const NAMES: [&str; 5] =
        ["x-amz-key", "x-amz-key-v2", "x-amz-3", "x-amz-iv", "EncryptedEnvelopeKey"];
    if is_instruction_marker(&about.metadata) {
        return true;
    }
    let parsed = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(body);
    parsed.is_ok_and(|object| NAMES.iter().any(|name| object.contains_key(*name)))
}

/// Where an envelope was found.
pub struct Found {
    /// The envelope.
    pub envelope: Envelope,
    /// ETag of the instruction file, if it was there.
    pub instruction: Option<String>,
}

/// The envelope of an object; `None` for one in clear. `beside`: the object that is there under the name
/// of its instruction file.
///
/// # Errors
/// Half an envelope, or one that cannot be understood; the store.
pub async fn envelope_of(
    bucket: &Bucket,
    run: &Run,
    key: &str,
    about: &About,
    beside: Option<&str>,
) -> Result<Option<Found>, Trouble> {
    let must_be_there = match recognise(&about.metadata)? {
        Recognised::Sealed(envelope) => return Ok(Some(Found { envelope, instruction: None })),
        Recognised::Split => true,
        Recognised::Clear if beside.is_none() => return Ok(None),
        Recognised::Clear => false,
    };
    let key = beside.map_or_else(|| instruction_key(key), str::to_owned);
    let (file, mut body) = bucket.fetch(run, &key, None, None).await?;
    if file.size > INSTRUCTION_MAX as u64 {
        return match must_be_there {
            true => Err(Trouble::One(format!("{key} is too long for an instruction file"))),
            false => Ok(None),
        };
    }
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    if !must_be_there && !is_instruction(&file, &bytes) {
        return Ok(None);
    }
    let envelope = Envelope::from_instruction_file(&about.metadata, &bytes)?;
    Ok(Some(Found { envelope, instruction: Some(file.e_tag) }))
}

impl OpenWith {
    /// Opens the data key: a request where KMS has wrapped it.
    ///
    /// # Errors
    /// No key, another key, another context; KMS.
    pub async fn unlock(&self, envelope: &Envelope) -> Result<Unlocked, Trouble> {
        Ok(envelope.unlock(&self.keys, &self.rules).await?)
    }
}

/// A file that gets the contents of a sealed object. They are not to be believed before
/// [`CipherSink::finish`].
pub struct CipherSink {
    opener: Unverified,
    file: Arc<File>,
    at: u64,
    plain: Vec<u8>,
}

impl CipherSink {
    /// For an object of `size` bytes.
    ///
    /// # Errors
    /// It is too short or too long to be one.
    pub fn new(unlocked: &Unlocked, size: u64, file: Arc<File>) -> Result<CipherSink, Trouble> {
        Ok(CipherSink { opener: unlocked.opener(size)?, file, at: 0, plain: Vec::new() })
    }

    fn write(&mut self) -> Result<(), Trouble> {
        self.file.write_all_at(&self.plain, self.at)?;
        self.at += self.plain.len() as u64;
        self.plain.clear();
        Ok(())
    }

    /// Checks the whole.
    ///
    /// # Errors
    /// It is not what was sealed.
    pub fn finish(mut self) -> Result<Verified, Trouble> {
        let mut rest = std::mem::take(&mut self.plain);
        let (file, at) = (self.file.clone(), self.at);
        let verified = self.opener.finish(&mut rest)?;
        file.write_all_at(&rest, at)?;
        Ok(verified)
    }
}

impl Sink for CipherSink {
    fn take(&mut self, bytes: Bytes) -> Result<(), Trouble> {
        self.opener.update(&bytes, &mut self.plain)?;
        self.write()
    }
}

impl SealWith {
    /// Begins an object: a new data key, which KMS may have to wrap.
    ///
    /// # Errors
    /// KMS; no key.
    pub async fn begin(&self) -> Result<Sealing, Trouble> {
        Ok(seal(&self.keys, &self.rules).await?)
    }

    /// Puts the envelope on the labels of the object; the body and labels of its instruction file.
    pub fn label(&self, sealing: &Sealing, labels: &mut Labels) -> Option<(Vec<u8>, Labels)> {
        let place = match self.instruction_file {
            true => EnvelopePlace::InstructionFile,
            false => EnvelopePlace::Metadata,
        };
        let envelope = sealing.envelope();
        labels.metadata.extend(envelope.metadata(place));
        self.instruction_file.then(|| {
            let metadata: Metadata = Envelope::instruction_metadata();
            let storage_class = labels.storage_class.clone();
            let beside = Labels { metadata, storage_class, ..Labels::default() };
            (envelope.instruction_file(), beside)
        })
    }

    /// Whether an object with this metadata was sealed this way, as far as it says. Which key it was, only that
    /// key tells.
    pub fn is_such(&self, metadata: &Metadata) -> bool {
        match recognise(metadata) {
            Ok(Recognised::Sealed(envelope)) => {
                !self.instruction_file
                    && envelope.format() == self.rules.format.into()
                    && envelope.wrap() == self.rules.with.wrap()
                    && envelope.users_context() == self.rules.context
            }
            Ok(Recognised::Split) => self.instruction_file && self.rules.format == SealFormat::V3,
            // Version 2 leaves nothing on the object.
            Ok(Recognised::Clear) => self.instruction_file && self.rules.format == SealFormat::V2,
            Err(_) => false,
        }
    }
}

/// Bytes of the object of a file.
pub fn object_size(sealed: bool, size: u64) -> u64 {
    if sealed { cipher_len(size) } else { size }
}
