//! Making an object: a data key, its envelope, and the contents in order; and wrapping the data key of
//! one that exists.
//!
//! Writes versions 2 and 3. Of version 1 nothing is ever written.

use super::derive::{Derivation, FIXED_IV, SUITE};
use super::envelope::{Content, Envelope, EnvelopePlace, Format, MESSAGE_ID};
use super::error::{Result, S3ecError, S3ecErrorKind};
use super::gcm::{Gcm, IV, TAG};
use super::keys::Keys;
use super::open::{Unlocked, too_large};
use super::text::Strings;
use super::wrap::{self, WrapWith};
use crate::seal::fill_random;

/// Versions that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SealFormat {
    /// For clients that know no other.
    V2,
    /// With a commitment to the data key.
    #[default]
    V3,
}

impl From<SealFormat> for Format {
    fn from(format: SealFormat) -> Format {
        match format {
            SealFormat::V2 => Format::V2,
            SealFormat::V3 => Format::V3,
        }
    }
}

/// How objects are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealRules {
    /// The version.
    pub format: SealFormat,
    /// The key that wraps data keys.
    pub with: WrapWith,
    /// Encryption context of KMS; of other keys a description, which nothing authenticates.
    pub context: Strings,
}

/// Bytes of the object whose contents have `plain_len`.
pub const fn cipher_len(plain_len: u64) -> u64 {
    plain_len + TAG as u64
}

/// Begins an object under a new data key: one request where KMS wraps it.
///
/// # Errors
/// No key to wrap with; a reserved name in the context; what KMS says.
pub async fn seal(keys: &Keys, rules: &SealRules) -> Result<Sealing> {
    let content = match rules.format {
        SealFormat::V2 => Content::Gcm,
        SealFormat::V3 => Content::CommittingGcm,
    };
    let context = wrap::stored_context(&rules.context, content, rules.with)?;
    let (data_key, wrapped) = wrap::new_data_key(keys, rules.with, content, &context).await?;
    let (format, nonce, commitment, gcm) = match rules.format {
        SealFormat::V2 => {
            let mut iv = [0; IV];
            fill_random(&mut iv);
            (Format::V2, iv.to_vec(), None, Gcm::new(&data_key, &iv, b""))
        }
        SealFormat::V3 => {
            let mut message_id = vec![0; MESSAGE_ID];
            fill_random(&mut message_id);
            let derived = Derivation::new(&data_key, &message_id);
            let gcm = Gcm::new(&derived.content_key(), &FIXED_IV, &SUITE);
            (Format::V3, message_id, Some(derived.commitment()), gcm)
        }
    };
    let envelope = Envelope {
        format,
        content,
        wrap: rules.with.wrap(),
        place: EnvelopePlace::Metadata,
        wrapped,
        nonce,
        commitment,
        context,
    };
    Ok(Sealing { envelope, gcm })
}

/// An object under way. It has contents once only: a second attempt needs a second one.
pub struct Sealing {
    envelope: Envelope,
    gcm: Gcm,
}

impl Sealing {
    /// Its envelope: known before the first byte.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Takes the next bytes of the contents and appends what goes into the object.
    ///
    /// # Errors
    /// More than [`super::PLAIN_MAX`] bytes.
    pub fn update(&mut self, plain: &[u8], cipher: &mut Vec<u8>) -> Result<()> {
        self.gcm.seal(plain, cipher).map_err(|_| too_large())
    }

    /// The end: appends the tag.
    pub fn finish(self, cipher: &mut Vec<u8>) {
        cipher.extend_from_slice(&self.gcm.tag());
    }
}

impl Unlocked {
    /// The envelope of the same contents with the data key wrapped again.
    ///
    /// # Errors
    /// As [`seal`]; version 1, whose wraps are not written.
    pub async fn rewrap(&self, keys: &Keys, with: WrapWith, context: &Strings) -> Result<Envelope> {
        let old = &self.envelope;
        if old.format == Format::V1 {
            return Err(S3ecError::new(
                S3ecErrorKind::Legacy,
                "an object of version 1 has no wrap that is still written",
            )
            .hint("write its contents again, in version 3"));
        }
        let context = wrap::stored_context(context, old.content, with)?;
        let wrapped = wrap::wrap(keys, with, old.content, &context, &self.data_key).await?;
        Ok(Envelope { wrap: with.wrap(), wrapped, context, ..old.clone() })
    }
}
