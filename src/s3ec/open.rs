//! Opening an object: from its envelope and a key to its contents, in order, in bounded memory.
//!
//! GCM authenticates the whole object with the tag at its end: until [`Unverified::finish`] has said
//! so, what came out is anybody's.

use aws_lc_rs::cipher::{AES_256, DecryptionContext, StreamingDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;

use super::derive::{Derivation, FIXED_IV, SUITE};
use super::envelope::{Content, Envelope};
use super::error::{Result, S3ecError, S3ecErrorKind};
use super::gcm::{Gcm, IV, TAG};
use super::keys::Keys;
use super::text::Strings;
use super::wrap::DataKey;

/// Bytes of a block of AES.
const BLOCK: u64 = 16;

/// Which encryption context an object must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextRule {
    /// These pairs and no others, reserved ones aside, as the official clients have it.
    Exactly(Strings),
    /// Whatever it names. KMS still refuses a context that was changed.
    Any,
}

/// What may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRules {
    /// The context that is expected.
    pub context: ContextRule,
    /// Also contents that nothing authenticates (AES-CBC).
    pub legacy: bool,
}

/// An envelope whose data key is open, and its commitment checked.
pub struct Unlocked {
    pub(super) envelope: Envelope,
    pub(super) data_key: DataKey,
    content_key: DataKey,
}

impl Envelope {
    /// Opens the data key: one request where KMS has wrapped it. The commitment of version 3 is
    /// compared before the key of the contents is derived.
    ///
    /// # Errors
    /// No key or another; another context; nothing authenticates the contents and `rules` do not
    /// allow that; the envelope was changed.
    pub async fn unlock(&self, keys: &Keys, rules: &OpenRules) -> Result<Unlocked> {
        if !self.content.is_authenticated() && !rules.legacy {
            return Err(S3ecError::new(
                S3ecErrorKind::Legacy,
                format!(
                    "its contents are under {}: nothing would show that somebody changed them",
                    self.content.name()
                ),
            )
            .hint("to read it all the same: --legacy"));
        }
        self.check_context(match &rules.context {
            ContextRule::Exactly(expected) => Some(expected),
            ContextRule::Any => None,
        })?;
        let data_key = self.open_data_key(keys).await?;
        let content_key = match (self.content, &self.commitment) {
            (Content::CommittingGcm, Some(stored)) => {
                let derived = Derivation::new(&data_key, &self.nonce);
                if !derived.is_committed(stored) {
                    return Err(S3ecError::tampered(
                        "the object was not written under this data key: the commitment is another",
                    ));
                }
                derived.content_key()
            }
            (Content::CommittingGcm, None) => {
                return Err(S3ecError::tampered("the envelope has no commitment"));
            }
            _ => data_key.clone(),
        };
        Ok(Unlocked { envelope: self.clone(), data_key, content_key })
    }
}

impl Unlocked {
    /// Its envelope.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Begins to decrypt an object of `cipher_len` bytes.
    ///
    /// # Errors
    /// It is too short to be one, or longer than the format takes.
    pub fn opener(&self, cipher_len: u64) -> Result<Unverified> {
        let left = self.body_len(cipher_len)?;
        let way = match self.envelope.content {
            Content::Cbc => Way::Cbc(Box::new(self.cbc())),
            _ => Way::Gcm(Box::new(self.gcm())),
        };
        Ok(Unverified { way, left, tag: Vec::with_capacity(TAG), plain_len: 0 })
    }

    /// Begins to check an object of `cipher_len` bytes without decrypting it; `None` where nothing
    /// authenticates it.
    ///
    /// # Errors
    /// As [`Unlocked::opener`].
    pub fn verifier(&self, cipher_len: u64) -> Result<Option<Verifier>> {
        let left = self.body_len(cipher_len)?;
        let tag = Vec::with_capacity(TAG);
        Ok(self.envelope.content.is_authenticated().then(|| Verifier {
            gcm: self.gcm(),
            left,
            plain_len: left,
            tag,
        }))
    }

    /// Bytes before the tag.
    fn body_len(&self, cipher_len: u64) -> Result<u64> {
        let too_short =
            || S3ecError::tampered(format!("the object has {cipher_len} bytes, too few to be one"));
        if self.envelope.content == Content::Cbc {
            return match cipher_len > 0 && cipher_len.is_multiple_of(BLOCK) {
                true => Ok(cipher_len),
                false => Err(too_short()),
            };
        }
        match self.envelope.plain_len(cipher_len) {
            None => Err(too_short()),
            Some(len) if len > super::PLAIN_MAX => Err(too_large()),
            Some(len) => Ok(len),
        }
    }

    fn gcm(&self) -> Gcm {
        match self.envelope.content {
            Content::CommittingGcm => Gcm::new(&self.content_key, &FIXED_IV, &SUITE),
            _ => {
                let iv: &[u8; IV] = self.envelope.nonce[..].try_into().expect("checked when read");
                Gcm::new(&self.content_key, iv, b"")
            }
        }
    }

    fn cbc(&self) -> StreamingDecryptingKey {
        let key = UnboundCipherKey::new(&AES_256, &self.content_key[..]);
        let iv = FixedLength::try_from(&self.envelope.nonce[..]).expect("checked when read");
        let key = key.expect("an AES-256 key has 32 bytes");
        StreamingDecryptingKey::cbc_pkcs7(key, DecryptionContext::Iv128(iv)).expect("AES has CBC")
    }
}

/// More than AES-GCM takes.
pub(super) fn too_large() -> S3ecError {
    let message = format!(
        "the contents are longer than the {} bytes that AES-GCM takes in one message",
        super::PLAIN_MAX
    );
    S3ecError::new(S3ecErrorKind::TooLarge, message)
}

/// Proof that an object is whole. Nothing but the end of its opening gives one.
#[derive(Debug)]
#[must_use = "contents may get their name only behind it"]
pub struct Verified {
    plain_len: u64,
    is_authenticated: bool,
}

impl Verified {
    /// Bytes of the contents.
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// False of AES-CBC: whole by its padding, and anybody may have changed it.
    pub fn is_authenticated(&self) -> bool {
        self.is_authenticated
    }
}

enum Way {
    Gcm(Box<Gcm>),
    Cbc(Box<StreamingDecryptingKey>),
}

/// Contents under way that are not authenticated yet. What [`Unverified::update`] gives belongs into
/// a place that goes away unless [`Unverified::finish`] returns a [`Verified`].
#[must_use = "without `finish` nothing is authenticated"]
pub struct Unverified {
    way: Way,
    /// Bytes of ciphertext still to come, without the tag.
    left: u64,
    tag: Vec<u8>,
    plain_len: u64,
}

impl Unverified {
    /// Takes the next bytes of the object, of any number, and appends what they decrypt to.
    ///
    /// # Errors
    /// The object is longer than was said.
    pub fn update(&mut self, cipher: &[u8], plain: &mut Vec<u8>) -> Result<()> {
        let body = split(cipher, &mut self.left, &mut self.tag, matches!(self.way, Way::Gcm(_)))?;
        let before = plain.len();
        match &mut self.way {
            Way::Gcm(gcm) => gcm.open(body, plain).map_err(|_| too_large())?,
            Way::Cbc(key) => cbc_update(key, body, plain)?,
        }
        self.plain_len += (plain.len() - before) as u64;
        Ok(())
    }

    /// The end of the object: appends what is left of its contents, and says whether all of them
    /// are what was written.
    ///
    /// # Errors
    /// They are not: nothing of them may be used.
    pub fn finish(self, plain: &mut Vec<u8>) -> Result<Verified> {
        if self.left > 0 {
            return Err(cut_short());
        }
        match self.way {
            Way::Gcm(gcm) => {
                check_tag(*gcm, &self.tag)?;
                Ok(Verified { plain_len: self.plain_len, is_authenticated: true })
            }
            Way::Cbc(key) => {
                let mut last = [0; BLOCK as usize];
                // One sentence for every failure: which of them it was says something of the key.
                let end = key.finish(&mut last).map_err(|_| not_decrypted())?;
                plain.extend_from_slice(end.written());
                let plain_len = self.plain_len + end.written().len() as u64;
                Ok(Verified { plain_len, is_authenticated: false })
            }
        }
    }
}

/// An object that is only checked.
#[must_use = "without `finish` nothing is authenticated"]
pub struct Verifier {
    gcm: Gcm,
    left: u64,
    plain_len: u64,
    tag: Vec<u8>,
}

impl Verifier {
    /// Takes the next bytes of the object.
    ///
    /// # Errors
    /// As [`Unverified::update`].
    pub fn update(&mut self, cipher: &[u8]) -> Result<()> {
        let body = split(cipher, &mut self.left, &mut self.tag, true)?;
        self.gcm.verify(body).map_err(|_| too_large())
    }

    /// As [`Unverified::finish`].
    ///
    /// # Errors
    /// The object is not what was written.
    pub fn finish(self) -> Result<Verified> {
        if self.left > 0 {
            return Err(cut_short());
        }
        check_tag(self.gcm, &self.tag)?;
        Ok(Verified { plain_len: self.plain_len, is_authenticated: true })
    }
}

/// Ciphertext of `cipher`; what follows it goes into the tag.
fn split<'a>(
    cipher: &'a [u8],
    left: &mut u64,
    tag: &mut Vec<u8>,
    has_tag: bool,
) -> Result<&'a [u8]> {
    let take = cipher.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    let (body, rest) = cipher.split_at(take);
    *left -= take as u64;
    if tag.len() + rest.len() > if has_tag { TAG } else { 0 } {
        return Err(S3ecError::tampered("the object is longer than its length says"));
    }
    tag.extend_from_slice(rest);
    Ok(body)
}

fn check_tag(gcm: Gcm, tag: &[u8]) -> Result<()> {
    let tag: &[u8; TAG] = tag.try_into().map_err(|_| cut_short())?;
    gcm.finish(tag).map_err(|_| {
        S3ecError::tampered(
            "the contents are not what was written: the authentication tag is another",
        )
    })
}

fn cut_short() -> S3ecError {
    S3ecError::tampered("the object ends before its length")
}

fn not_decrypted() -> S3ecError {
    S3ecError::tampered("the contents do not decrypt: another key, or they were changed")
}

fn cbc_update(key: &mut StreamingDecryptingKey, body: &[u8], plain: &mut Vec<u8>) -> Result<()> {
    /// Far below what the library takes at once.
    const PIECE: usize = 1 << 20;
    for piece in body.chunks(PIECE) {
        let at = plain.len();
        plain.resize(at + piece.len() + BLOCK as usize, 0);
        let written = key.update(piece, &mut plain[at..]).map_err(|_| not_decrypted())?;
        let written = written.written().len();
        plain.truncate(at + written);
    }
    Ok(())
}
