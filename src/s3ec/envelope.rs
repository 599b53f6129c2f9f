//! The envelope of an object: which version and algorithms, its wrapped data key, its context; read
//! from and written as user metadata and instruction file.
//!
//! Pure, and strict: keys of two versions, half an envelope or a value of another length is an error,
//! never "not encrypted". Source: awslabs/aws-encryption-sdk-specification, `s3-encryption/data-format`;
//! where its versions differ, what the released clients do.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::error::{Result, S3ecError, S3ecErrorKind};
use super::gcm::{self, TAG};
use super::text::{self, Strings};
use crate::base::one_line;

/// User metadata of an object, without `x-amz-meta-`; names in lower case.
pub type Metadata = Strings;

/// What an object's key is followed by in that of its instruction file.
pub const INSTRUCTION_SUFFIX: &str = ".instruction";
/// The same of the first .NET client.
pub const INSTRUCTION_SUFFIX_DOTNET: &str = "INSTRUCTION_SUFFIX";
/// Bytes of the longest instruction file that is read; metadata has 2 KiB at most.
pub const INSTRUCTION_MAX: usize = 64 << 10;
/// Bytes of the longest wrapped key: KMS gives up to 6144.
const WRAPPED_MAX: usize = 6144;

/// Names of the members of an envelope.
mod name {
    pub const KEY_V1: &str = "x-amz-key";
    pub const KEY_V2: &str = "x-amz-key-v2";
    pub const IV: &str = "x-amz-iv";
    pub const MATDESC: &str = "x-amz-matdesc";
    pub const WRAP_ALG: &str = "x-amz-wrap-alg";
    pub const CEK_ALG: &str = "x-amz-cek-alg";
    pub const TAG_LEN: &str = "x-amz-tag-len";
    pub const CONTENT_V3: &str = "x-amz-c";
    pub const KEY_V3: &str = "x-amz-3";
    pub const MATDESC_V3: &str = "x-amz-m";
    pub const CONTEXT_V3: &str = "x-amz-t";
    pub const WRAP_V3: &str = "x-amz-w";
    pub const COMMITMENT_V3: &str = "x-amz-d";
    pub const MESSAGE_ID_V3: &str = "x-amz-i";
    pub const PLAIN_LENGTH: &str = "x-amz-unencrypted-content-length";
    pub const INSTRUCTION_FILE: &str = "x-amz-crypto-instr-file";

    /// Of versions 1 and 2 only.
    pub const OLD: [&str; 7] = [KEY_V1, KEY_V2, IV, MATDESC, WRAP_ALG, CEK_ALG, TAG_LEN];
    /// Of version 3 that stay on the object.
    pub const ON_OBJECT_V3: [&str; 3] = [CONTENT_V3, COMMITMENT_V3, MESSAGE_ID_V3];
    /// Of version 3 that say how the data key is wrapped.
    pub const OF_KEY_V3: [&str; 4] = [KEY_V3, MATDESC_V3, CONTEXT_V3, WRAP_V3];
    /// What the .NET client of 2011 to 2020 calls those of version 1 in its instruction files.
    pub const DOTNET: [(&str, &str); 2] = [("EncryptedEnvelopeKey", KEY_V1), ("IV", IV)];
    /// Neither opens anything.
    pub const NOTES: [&str; 3] = [PLAIN_LENGTH, "x-amz-unencrypted-content-md5", INSTRUCTION_FILE];
}

/// Versions of the message format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// AES-CBC, nothing authenticated.
    V1,
    /// AES-GCM (or, of old clients, AES-CBC) under the data key itself.
    V2,
    /// AES-GCM under a derived key, with a commitment to the data key.
    V3,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::V1 => "V1",
            Format::V2 => "V2",
            Format::V3 => "V3",
        })
    }
}

/// How the contents are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// `AES/CBC/PKCS5Padding`: anybody may have changed them.
    Cbc,
    /// `AES/GCM/NoPadding`.
    Gcm,
    /// `ALG_AES_256_GCM_HKDF_SHA512_COMMIT_KEY`, 0x0073, in metadata `115`.
    CommittingGcm,
}

impl Content {
    /// Its name in metadata and contexts.
    pub fn name(self) -> &'static str {
        match self {
            Content::Cbc => "AES/CBC/PKCS5Padding",
            Content::Gcm => "AES/GCM/NoPadding",
            Content::CommittingGcm => "115",
        }
    }

    /// Whether a change of the contents is noticed.
    pub fn is_authenticated(self) -> bool {
        self != Content::Cbc
    }

    fn nonce_len(self) -> usize {
        match self {
            Content::Cbc => 16,
            Content::Gcm => gcm::IV,
            Content::CommittingGcm => MESSAGE_ID,
        }
    }
}

/// Bytes of the message id of version 3, the salt of its derivation.
pub(super) const MESSAGE_ID: usize = 28;
/// Bytes of its commitment.
pub(super) const COMMITMENT: usize = 28;

/// How the data key is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// AWS KMS, in a context that names the algorithm of the contents.
    KmsContext,
    /// AWS KMS, in a context that does not.
    Kms,
    /// AES-GCM under a key of the user's.
    AesGcm,
    /// AES key wrap (RFC 3394).
    AesWrap,
    /// RSA-OAEP with SHA-1.
    RsaOaepSha1,
    /// RSA-OAEP with SHA-256, and MGF1 with SHA-1 or SHA-256: of Java's first client.
    RsaOaepSha256,
    /// Version 1 does not say: AES-ECB or RSA (PKCS #1 v1.5), by the key that is given.
    Unnamed,
}

impl Wrap {
    /// Its name in the metadata of version 2.
    pub fn name(self) -> &'static str {
        match self {
            Wrap::KmsContext => "kms+context",
            Wrap::Kms => "kms",
            Wrap::AesGcm => "AES/GCM",
            Wrap::AesWrap => "AESWrap",
            Wrap::RsaOaepSha1 => "RSA-OAEP-SHA1",
            Wrap::RsaOaepSha256 => "RSA/ECB/OAEPWithSHA-256AndMGF1Padding",
            Wrap::Unnamed => "not named",
        }
    }

    fn from_name(name: &str) -> Option<Wrap> {
        use Wrap::*;
        let all = [KmsContext, Kms, AesGcm, AesWrap, RsaOaepSha1, RsaOaepSha256];
        all.into_iter().find(|wrap| wrap.name() == name)
    }

    /// The wraps that version 3 knows, by number.
    fn number(self) -> Option<&'static str> {
        match self {
            Wrap::AesGcm => Some("02"),
            Wrap::KmsContext => Some("12"),
            Wrap::RsaOaepSha1 => Some("22"),
            _ => None,
        }
    }

    fn from_number(number: &str) -> Option<Wrap> {
        let all = [Wrap::AesGcm, Wrap::KmsContext, Wrap::RsaOaepSha1];
        all.into_iter().find(|wrap| wrap.number() == Some(number))
    }

    /// Whether AWS KMS opens it.
    pub fn is_kms(self) -> bool {
        matches!(self, Wrap::Kms | Wrap::KmsContext)
    }
}

impl fmt::Display for Wrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where an envelope is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopePlace {
    /// In the metadata of the object.
    Metadata,
    /// In its instruction file; of version 3, what belongs to the contents stays on the object.
    InstructionFile,
}

/// What an object's metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// Nothing of the Encryption Client. An object of versions 1 and 2 whose envelope is in an
    /// instruction file may look like this.
    Clear,
    /// It holds the envelope.
    Sealed(Envelope),
    /// The object is encrypted, and the envelope, or the rest of it, is in its instruction file.
    Split,
}

/// How an object is encrypted, and its wrapped data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub(super) format: Format,
    pub(super) content: Content,
    pub(super) wrap: Wrap,
    pub(super) place: EnvelopePlace,
    pub(super) wrapped: Vec<u8>,
    /// IV, or message id of version 3.
    pub(super) nonce: Vec<u8>,
    /// Version 3 only.
    pub(super) commitment: Option<[u8; COMMITMENT]>,
    /// Encryption context of KMS, or description of the key.
    pub(super) context: Strings,
}

/// Whether a name of metadata belongs to the Encryption Client.
pub fn is_own_key(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let groups: [&[&str]; 4] = [&name::OLD, &name::ON_OBJECT_V3, &name::OF_KEY_V3, &name::NOTES];
    groups.iter().any(|group| group.contains(&name.as_str())) || name.starts_with("x-amz-key-")
}

/// Whether the metadata is that of an instruction file, as some clients mark theirs.
pub fn is_instruction_marker(metadata: &Metadata) -> bool {
    metadata.keys().any(|name| name.eq_ignore_ascii_case(name::INSTRUCTION_FILE))
}

/// What the metadata of an object says of its encryption.
///
/// # Errors
/// Half an envelope, keys of two versions, an unknown version or algorithm, a value that cannot be
/// one: such an object is never to be taken for one in clear.
pub fn recognise(metadata: &Metadata) -> Result<Recognised> {
    let fields = Fields::of_metadata(metadata)?;
    let is_old = fields.has_any(&name::OLD);
    if !fields.has_any(&name::ON_OBJECT_V3) && !fields.has_any(&name::OF_KEY_V3) {
        return match is_old {
            true => fields.old(EnvelopePlace::Metadata).map(Recognised::Sealed),
            // Its writer noted how long the contents were: so they are encrypted.
            false if fields.has_any(&[name::PLAIN_LENGTH]) => Ok(Recognised::Split),
            false => Ok(Recognised::Clear),
        };
    }
    match fields.has_any(&name::OF_KEY_V3) {
        true => fields.v3(EnvelopePlace::Metadata).map(Recognised::Sealed),
        false => {
            name::ON_OBJECT_V3.iter().try_for_each(|name| fields.need(name).map(drop))?;
            Ok(Recognised::Split)
        }
    }
}

impl Envelope {
    /// The envelope of an object whose instruction file has this body.
    ///
    /// # Errors
    /// As [`recognise`]; the metadata has its own envelope, or keys are where they may not be.
    pub fn from_instruction_file(metadata: &Metadata, body: &[u8]) -> Result<Envelope> {
        let on_object = Fields::of_metadata(metadata)?;
        let in_file = Fields::of_file(body)?;
        if let Some(name) = name::ON_OBJECT_V3.iter().find(|name| in_file.get(name).is_some()) {
            return Err(S3ecError::tampered(format!(
                "the instruction file has {name}, which may stand on the object only"
            )));
        }
        if on_object.has_any(&name::OLD) || on_object.has_any(&name::OF_KEY_V3) {
            return Err(S3ecError::tampered(
                "the object has an envelope in its metadata and one in the instruction file",
            ));
        }
        if in_file.has_any(&name::OF_KEY_V3) || on_object.has_any(&name::ON_OBJECT_V3) {
            let both = Fields(on_object.0.into_iter().chain(in_file.0).collect());
            both.one_version()?;
            return both.v3(EnvelopePlace::InstructionFile);
        }
        match in_file.has_any(&name::OLD) {
            true => in_file.old(EnvelopePlace::InstructionFile),
            false => Err(S3ecError::tampered("the instruction file holds no envelope")),
        }
    }

    /// Its version.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How the contents are encrypted.
    pub fn content(&self) -> Content {
        self.content
    }

    /// How the data key is wrapped.
    pub fn wrap(&self) -> Wrap {
        self.wrap
    }

    /// Where it was found.
    pub fn place(&self) -> EnvelopePlace {
        self.place
    }

    /// The encryption context of KMS, reserved names included, or the description of the key. Of the
    /// latter nothing is authenticated.
    pub fn context(&self) -> &Strings {
        &self.context
    }

    /// Bytes of the contents of an object of `cipher_len` bytes; `None` where padding hides it, and
    /// of an object that is too short to be one.
    pub fn plain_len(&self, cipher_len: u64) -> Option<u64> {
        match self.content {
            Content::Cbc => None,
            _ => cipher_len.checked_sub(TAG as u64),
        }
    }

    /// What belongs into the metadata of the object, the envelope being at `place`.
    pub fn metadata(&self, place: EnvelopePlace) -> Metadata {
        match (self.format, place) {
            (Format::V3, EnvelopePlace::InstructionFile) => self.of_contents_v3(),
            (_, EnvelopePlace::InstructionFile) => Metadata::new(),
            (Format::V3, EnvelopePlace::Metadata) => {
                let mut all = self.of_contents_v3();
                all.append(&mut self.of_key());
                all
            }
            (_, EnvelopePlace::Metadata) => self.of_key(),
        }
    }

    /// The body of the instruction file.
    pub fn instruction_file(&self) -> Vec<u8> {
        text::ascii_json(&self.of_key()).into_bytes()
    }

    /// What belongs into the metadata of the instruction file itself.
    pub fn instruction_metadata() -> Metadata {
        Metadata::from([(name::INSTRUCTION_FILE.to_owned(), String::new())])
    }

    fn of_contents_v3(&self) -> Metadata {
        let commitment = self.commitment.expect("version 3 has one");
        let fields = [
            (name::CONTENT_V3, self.content.name().to_owned()),
            (name::COMMITMENT_V3, STANDARD.encode(commitment)),
            (name::MESSAGE_ID_V3, STANDARD.encode(&self.nonce)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// All of versions 1 and 2; of version 3 what says how the data key is wrapped.
    fn of_key(&self) -> Metadata {
        let (key, context) = (STANDARD.encode(&self.wrapped), text::ascii_json(&self.context));
        let fields = match self.format {
            Format::V3 => {
                let number = self.wrap.number().expect("checked when it was made or read");
                let names = if self.wrap.is_kms() { name::CONTEXT_V3 } else { name::MATDESC_V3 };
                vec![(name::KEY_V3, key), (name::WRAP_V3, number.to_owned()), (names, context)]
            }
            Format::V2 => {
                let mut fields = vec![
                    (name::KEY_V2, key),
                    (name::IV, STANDARD.encode(&self.nonce)),
                    (name::CEK_ALG, self.content.name().to_owned()),
                    (name::WRAP_ALG, self.wrap.name().to_owned()),
                    (name::MATDESC, context),
                ];
                let tag = (TAG * 8).to_string();
                fields.extend(self.content.is_authenticated().then_some((name::TAG_LEN, tag)));
                fields
            }
            Format::V1 => vec![
                (name::KEY_V1, key),
                (name::IV, STANDARD.encode(&self.nonce)),
                (name::MATDESC, context),
            ],
        };
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Members of envelopes by name; what is not ours is left out.
struct Fields(Strings);

impl Fields {
    fn of_metadata(metadata: &Metadata) -> Result<Fields> {
        let own = metadata.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        Fields::checked(own.filter(|(name, _)| is_own_key(name)).collect())
    }

    fn of_file(body: &[u8]) -> Result<Fields> {
        let found = (body.len() <= INSTRUCTION_MAX).then(|| text::members(body)).flatten();
        let (strings, others) = found.ok_or_else(|| {
            S3ecError::tampered("the instruction file is not one JSON object with each name once")
        })?;
        if let Some(name) = others.iter().find(|name| is_own_key(name) && !is_note(name)) {
            return Err(S3ecError::tampered(format!("{name} of the instruction file is no text")));
        }
        let mut own = strings.clone();
        own.retain(|name, _| is_own_key(name));
        if own.is_empty() {
            own.extend(name::DOTNET.iter().filter_map(|(theirs, name)| {
                Some(((*name).to_owned(), strings.get(*theirs)?.clone()))
            }));
        }
        Fields::checked(own)
    }

    fn checked(own: Strings) -> Result<Fields> {
        let fields = Fields(own);
        let of_key = |name: &&String| name.starts_with("x-amz-key-") && *name != name::KEY_V2;
        if let Some(name) = fields.0.keys().find(of_key) {
            let message =
                format!("{} is of a version that this sealfs does not know", one_line(name));
            return Err(S3ecError::new(S3ecErrorKind::Format, message));
        }
        fields.one_version()?;
        Ok(fields)
    }

    /// Names of different versions never stand together: they would let one object be read as
    /// another, without its commitment for one.
    fn one_version(&self) -> Result<()> {
        let first = |names: &[&'static str]| names.iter().copied().find(|n| self.get(n).is_some());
        let new = first(&name::ON_OBJECT_V3).or(first(&name::OF_KEY_V3));
        let pair = match (first(&name::OLD), new) {
            (Some(old), Some(new)) => Some((old, new)),
            _ => first(&[name::KEY_V1]).zip(first(&[
                name::KEY_V2,
                name::WRAP_ALG,
                name::CEK_ALG,
                name::TAG_LEN,
            ])),
        };
        match pair {
            None => Ok(()),
            Some((one, other)) => Err(S3ecError::tampered(format!(
                "the envelope mixes versions: it has {one} and {other}"
            ))),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn has_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.0.contains_key(*name))
    }

    fn need(&self, name: &'static str) -> Result<&str> {
        self.get(name).ok_or_else(|| {
            S3ecError::tampered(format!("the envelope is incomplete: {name} is missing"))
        })
    }

    fn bytes(&self, name: &'static str) -> Result<Vec<u8>> {
        STANDARD
            .decode(self.need(name)?)
            .map_err(|_| S3ecError::tampered(format!("{name} is not base64")))
    }

    fn bytes_of(&self, name: &'static str, len: usize) -> Result<Vec<u8>> {
        match self.bytes(name)? {
            bytes if bytes.len() == len => Ok(bytes),
            bytes => Err(S3ecError::tampered(format!(
                "{name} has {} bytes and should have {len}",
                bytes.len()
            ))),
        }
    }

    fn wrapped(&self, name: &'static str) -> Result<Vec<u8>> {
        match self.bytes(name)? {
            bytes if (1..=WRAPPED_MAX).contains(&bytes.len()) => Ok(bytes),
            _ => Err(S3ecError::tampered(format!("{name} cannot be a wrapped key"))),
        }
    }

    fn strings(&self, name: &'static str) -> Result<Strings> {
        let Some(value) = self.get(name) else { return Ok(Strings::new()) };
        text::strings(&text::from_header(value)).ok_or_else(|| {
            S3ecError::tampered(format!("{name} is not a JSON object of texts with each name once"))
        })
    }

    /// An envelope of version 1 or 2.
    fn old(&self, place: EnvelopePlace) -> Result<Envelope> {
        let (format, key) = match self.get(name::KEY_V1) {
            Some(_) => (Format::V1, name::KEY_V1),
            None => (Format::V2, name::KEY_V2),
        };
        let (content, wrap) = match format {
            Format::V1 => (Content::Cbc, Wrap::Unnamed),
            _ => (self.content_v2()?, self.wrap_v2()?),
        };
        // The Go client writes an empty one for contents without a tag.
        if let Some(bits) = self.get(name::TAG_LEN).filter(|bits| !bits.is_empty())
            && (bits != "128" || !content.is_authenticated())
        {
            let bits = one_line(bits);
            return Err(S3ecError::tampered(format!("{} is {bits:?}", name::TAG_LEN)));
        }
        Ok(Envelope {
            format,
            content,
            wrap,
            place,
            wrapped: self.wrapped(key)?,
            nonce: self.bytes_of(name::IV, content.nonce_len())?,
            commitment: None,
            context: self.strings(name::MATDESC)?,
        })
    }

    fn content_v2(&self) -> Result<Content> {
        match self.need(name::CEK_ALG)? {
            "AES/GCM/NoPadding" => Ok(Content::Gcm),
            "AES/CBC/PKCS5Padding" | "AES/CBC/PKCS7Padding" => Ok(Content::Cbc),
            other => Err(unknown("contents", other)),
        }
    }

    fn wrap_v2(&self) -> Result<Wrap> {
        let name = self.need(name::WRAP_ALG)?;
        Wrap::from_name(name).ok_or_else(|| unknown("data key", name))
    }

    fn v3(&self, place: EnvelopePlace) -> Result<Envelope> {
        let content = match self.need(name::CONTENT_V3)? {
            "115" => Content::CommittingGcm,
            other => return Err(unknown("contents", other)),
        };
        let number = self.need(name::WRAP_V3)?;
        let wrap = Wrap::from_number(number).ok_or_else(|| unknown("data key", number))?;
        let commitment = self.bytes_of(name::COMMITMENT_V3, COMMITMENT)?;
        let commitment = commitment.try_into().expect("the length was checked");
        let context = if wrap.is_kms() { name::CONTEXT_V3 } else { name::MATDESC_V3 };
        Ok(Envelope {
            format: Format::V3,
            content,
            wrap,
            place,
            wrapped: self.wrapped(name::KEY_V3)?,
            nonce: self.bytes_of(name::MESSAGE_ID_V3, MESSAGE_ID)?,
            commitment: Some(commitment),
            context: self.strings(context)?,
        })
    }
}

fn is_note(name: &str) -> bool {
    name::NOTES.contains(&name)
}

fn unknown(what: &str, name: &str) -> S3ecError {
    let message =
        format!("the {what} of the object is under {:?}, which no client writes", one_line(name));
    S3ecError::new(S3ecErrorKind::Format, message)
}
