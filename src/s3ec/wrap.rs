//! Wrapping a data key and opening it again.
//!
//! What a wrap authenticates binds it to the algorithm of the contents: the context of KMS, the
//! associated data of AES-GCM, the text behind the key in RSA-OAEP. Source: the released clients for
//! Java, Ruby and Python.

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{self, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::key_wrap::{self, AesKek, KeyWrap};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    Pkcs1PrivateDecryptingKey,
};
use zeroize::Zeroizing;

use super::derive::KEY;
use super::envelope::{Content, Envelope, Format, Wrap};
use super::error::{Result, S3ecError, S3ecErrorKind};
use super::gcm::{IV, TAG};
use super::keys::{AesKey, Keys, RsaPrivate, RsaPublic};
use super::text::Strings;
use crate::seal::fill_random;

/// The name under which a context of KMS holds the algorithm of the contents.
pub const RESERVED_ALGORITHM: &str = "aws:x-amz-cek-alg";
/// The name under which old clients put the id of the key.
pub const RESERVED_KEY_ID: &str = "kms_cmk_id";

/// A data key.
pub(super) type DataKey = Zeroizing<[u8; KEY]>;

/// Which of the keys wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrapWith {
    /// `kms+context`.
    Kms,
    /// `AES/GCM`.
    Aes,
    /// `RSA-OAEP-SHA1`.
    Rsa,
}

impl WrapWith {
    /// How its wraps are called.
    pub fn wrap(self) -> Wrap {
        match self {
            WrapWith::Kms => Wrap::KmsContext,
            WrapWith::Aes => Wrap::AesGcm,
            WrapWith::Rsa => Wrap::RsaOaepSha1,
        }
    }
}

/// A context as it is stored: what the user gave, and for KMS the algorithm.
///
/// # Errors
/// The user gave a reserved name.
pub(super) fn stored_context(given: &Strings, content: Content, with: WrapWith) -> Result<Strings> {
    no_reserved(given)?;
    let mut context = given.clone();
    if with == WrapWith::Kms {
        context.insert(RESERVED_ALGORITHM.into(), content.name().into());
    }
    Ok(context)
}

/// Nobody gives the names that the format writes itself.
pub(super) fn no_reserved(given: &Strings) -> Result<()> {
    match [RESERVED_ALGORITHM, RESERVED_KEY_ID].into_iter().find(|name| given.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(S3ecError::usage(format!(
            "{name} is reserved: the format writes it into the context itself"
        ))
        .hint("leave it out of the encryption context")),
    }
}

/// A new data key and what opens to it.
pub(super) async fn new_data_key(
    keys: &Keys,
    with: WrapWith,
    content: Content,
    context: &Strings,
) -> Result<(DataKey, Vec<u8>)> {
    if with == WrapWith::Kms {
        let kms = keys.kms.as_ref().ok_or_else(|| no_key("--kms-key"))?;
        let (plain, wrapped) = kms.data_key(context).await?;
        return Ok((data_key(&plain)?, wrapped));
    }
    let mut key = Zeroizing::new([0; KEY]);
    fill_random(&mut key[..]);
    let wrapped = wrap(keys, with, content, context, &key).await?;
    Ok((key, wrapped))
}

/// Wraps a data key.
pub(super) async fn wrap(
    keys: &Keys,
    with: WrapWith,
    content: Content,
    context: &Strings,
    data_key: &DataKey,
) -> Result<Vec<u8>> {
    match with {
        WrapWith::Kms => {
            let kms = keys.kms.as_ref().ok_or_else(|| no_key("--kms-key"))?;
            Ok(kms.encrypt(&data_key[..], context).await?)
        }
        WrapWith::Aes => {
            let key = keys.aes.as_ref().ok_or_else(|| no_key("--aes-key-file"))?;
            Ok(aes_gcm_wrap(key, content, data_key))
        }
        WrapWith::Rsa => {
            let own = keys.rsa_private.as_ref().map(RsaPrivate::public);
            let key = keys.rsa_public.clone().or(own);
            let key = key.ok_or_else(|| no_key("--rsa-public-key"))?;
            rsa_oaep_wrap(&key, content, data_key)
        }
    }
}

impl Envelope {
    /// Opens the data key.
    pub(super) async fn open_data_key(&self, keys: &Keys) -> Result<DataKey> {
        match self.wrap {
            Wrap::Kms | Wrap::KmsContext => {
                let kms = keys.kms.as_ref().ok_or_else(|| self.needs("--kms-key"))?;
                data_key(&kms.decrypt(&self.wrapped, &self.context).await?)
            }
            Wrap::AesGcm => aes_gcm_open(self.aes(keys)?, self),
            Wrap::AesWrap => aes_wrap_open(self.aes(keys)?, self),
            Wrap::RsaOaepSha1 => rsa_oaep_open(self.rsa(keys)?, self),
            Wrap::RsaOaepSha256 => super::oaep::open(self.rsa(keys)?, self),
            Wrap::Unnamed => match (&keys.aes, &keys.rsa_private) {
                (Some(key), _) => aes_ecb_open(key, self),
                (None, Some(key)) => rsa_pkcs1_open(key, self),
                (None, None) => Err(self.needs("--aes-key-file or --rsa-private-key")),
            },
        }
    }

    fn aes<'a>(&self, keys: &'a Keys) -> Result<&'a AesKey> {
        keys.aes.as_ref().ok_or_else(|| self.needs("--aes-key-file"))
    }

    fn rsa<'a>(&self, keys: &'a Keys) -> Result<&'a RsaPrivate> {
        keys.rsa_private.as_ref().ok_or_else(|| self.needs("--rsa-private-key"))
    }

    fn needs(&self, flag: &str) -> S3ecError {
        let how = match self.format {
            Format::V1 => "an AES or RSA key".to_owned(),
            _ => self.wrap.to_string(),
        };
        S3ecError::usage(format!("its data key is wrapped by {how}"))
            .hint(format!("give the key that opens it: {flag}"))
    }

    pub(super) fn does_not_open(&self, key: &str) -> S3ecError {
        S3ecError::new(
            S3ecErrorKind::WrongKey,
            format!(
                "the data key does not open under this {key} key: it is another, or the envelope was changed"
            ),
        )
    }

    /// What a wrap says of the contents is not what the envelope says.
    fn other_contents(&self) -> S3ecError {
        S3ecError::tampered(format!(
            "the envelope says {} for the contents, and the wrapped data key was made for others",
            self.content.name()
        ))
    }

    /// Checks the context as it is stored against the envelope and against what is expected.
    ///
    /// # Errors
    /// It is another; the algorithm in it is not that of the envelope, or is where it cannot be.
    pub(super) fn check_context(&self, expected: Option<&Strings>) -> Result<()> {
        let stored = self.context.get(RESERVED_ALGORITHM);
        match self.wrap {
            Wrap::KmsContext => {
                let is_ours = |name: &String| {
                    name == self.content.name()
                        || self.content == Content::Cbc && name == "AES/CBC/PKCS7Padding"
                };
                if !stored.is_some_and(is_ours) {
                    return Err(self.other_contents());
                }
            }
            // A context of `kms+context` with the name of a wrap that checks less.
            Wrap::Kms if stored.is_some() => {
                return Err(S3ecError::tampered(format!(
                    "the envelope says kms, and its context has {RESERVED_ALGORITHM}, as only kms+context has"
                )));
            }
            _ => {}
        }
        let Some(expected) = expected else { return Ok(()) };
        no_reserved(expected)?;
        if self.wrap == Wrap::Kms && !expected.is_empty() {
            return Err(S3ecError::usage(
                "its data key is wrapped by kms, which takes no encryption context",
            )
            .hint("leave --encryption-context out"));
        }
        // A description of a raw key is nobody's secret and nothing authenticates it: compared only
        // where somebody asks for it.
        if !self.wrap.is_kms() && expected.is_empty() || self.wrap == Wrap::Kms {
            return Ok(());
        }
        match self.users_context() == *expected {
            true => Ok(()),
            false => Err(S3ecError::new(
                S3ecErrorKind::WrongKey,
                "the encryption context of the object is not the one that was given",
            )
            .hint("sealfs s3ec head shows it; each pair: --encryption-context NAME=VALUE")),
        }
    }

    /// The pairs of its context that the user gave, without the reserved ones.
    pub fn users_context(&self) -> Strings {
        let mut own = self.context.clone();
        own.retain(|name, _| name != RESERVED_ALGORITHM && name != RESERVED_KEY_ID);
        own
    }
}

fn no_key(flag: &str) -> S3ecError {
    S3ecError::usage("there is no key to wrap the data key with").hint(format!("give one: {flag}"))
}

/// 32 bytes, which every data key has.
pub(super) fn data_key(bytes: &[u8]) -> Result<DataKey> {
    let key: &[u8; KEY] = bytes.try_into().map_err(|_| {
        S3ecError::tampered(format!("the data key has {} bytes and should have {KEY}", bytes.len()))
    })?;
    Ok(Zeroizing::new(*key))
}

fn aead(key: &AesKey) -> LessSafeKey {
    let algorithm = match key.bytes().len() {
        16 => &AES_128_GCM,
        24 => &AES_192_GCM,
        _ => &AES_256_GCM,
    };
    LessSafeKey::new(UnboundKey::new(algorithm, key.bytes()).expect("the length is its own"))
}

/// What an AES or RSA wrap may say of the contents. The Ruby client writes `115` for version 3, as all
/// do in contexts of KMS; sources of the Java client have the name of version 2 there. It lets nobody
/// in: contents of version 3 open under the commitment to their data key, or not at all.
fn bound_names(content: Content) -> &'static [&'static str] {
    match content {
        Content::CommittingGcm => &["115", "AES/GCM/NoPadding"],
        Content::Gcm => &["AES/GCM/NoPadding"],
        Content::Cbc => &["AES/CBC/PKCS5Padding"],
    }
}

/// IV, ciphertext, tag.
pub(super) fn aes_gcm_wrap(key: &AesKey, content: Content, data_key: &DataKey) -> Vec<u8> {
    let mut iv = [0; IV];
    fill_random(&mut iv);
    let mut sealed = Zeroizing::new(data_key.to_vec());
    let tag = aead(key).seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(iv),
        Aad::from(content.name().as_bytes()),
        &mut sealed,
    );
    let tag = tag.expect("32 bytes are below every limit of GCM");
    [&iv[..], &sealed[..], tag.as_ref()].concat()
}

fn aes_gcm_open(key: &AesKey, envelope: &Envelope) -> Result<DataKey> {
    if envelope.wrapped.len() != IV + KEY + TAG {
        return Err(S3ecError::tampered(format!(
            "the wrapped data key has {} bytes and should have {}",
            envelope.wrapped.len(),
            IV + KEY + TAG
        )));
    }
    let (iv, sealed) = envelope.wrapped.split_first_chunk::<IV>().expect("the length was checked");
    for name in bound_names(envelope.content) {
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let (nonce, aad) = (Nonce::assume_unique_for_key(*iv), Aad::from(name.as_bytes()));
        if let Ok(opened) = aead(key).open_in_place(nonce, aad, &mut bytes) {
            return data_key(opened);
        }
    }
    Err(envelope.does_not_open("AES"))
}

fn aes_wrap_open(key: &AesKey, envelope: &Envelope) -> Result<DataKey> {
    let block = match key.bytes().len() {
        16 => &key_wrap::AES_128,
        32 => &key_wrap::AES_256,
        _ => return Err(S3ecError::usage("AESWrap takes AES keys of 16 or 32 bytes here")),
    };
    let kek = AesKek::new(block, key.bytes()).expect("the length is its own");
    let mut out = Zeroizing::new(vec![0; envelope.wrapped.len()]);
    let opened = kek.unwrap(&envelope.wrapped, &mut out);
    data_key(opened.map_err(|_| envelope.does_not_open("AES"))?)
}

fn aes_ecb_open(key: &AesKey, envelope: &Envelope) -> Result<DataKey> {
    let algorithm = match key.bytes().len() {
        16 => &cipher::AES_128,
        24 => &cipher::AES_192,
        _ => &cipher::AES_256,
    };
    let key = UnboundCipherKey::new(algorithm, key.bytes()).expect("the length is its own");
    let key = PaddedBlockDecryptingKey::ecb_pkcs7(key).expect("AES has this mode");
    let mut bytes = Zeroizing::new(envelope.wrapped.clone());
    let opened = key.decrypt(&mut bytes, DecryptionContext::None);
    data_key(opened.map_err(|_| envelope.does_not_open("AES"))?)
}

/// Length of the key, key, name of the contents' algorithm.
pub(super) fn rsa_oaep_wrap(
    key: &RsaPublic,
    content: Content,
    data_key: &DataKey,
) -> Result<Vec<u8>> {
    let plain = [&[KEY as u8][..], &data_key[..], content.name().as_bytes()].concat();
    let plain = Zeroizing::new(plain);
    let key = OaepPublicEncryptingKey::new(key.0.clone());
    let failed = |_| S3ecError::usage("the RSA key cannot wrap a data key");
    let key = key.map_err(failed)?;
    let mut out = vec![0; key.ciphertext_size()];
    let wrapped =
        key.encrypt(&OAEP_SHA1_MGF1SHA1, &plain, &mut out, None).map_err(failed)?.to_vec();
    Ok(wrapped)
}

fn rsa_oaep_open(key: &RsaPrivate, envelope: &Envelope) -> Result<DataKey> {
    let refused = |_| envelope.does_not_open("RSA");
    let key = OaepPrivateDecryptingKey::new(key.0.clone()).map_err(refused)?;
    let mut out = Zeroizing::new(vec![0; key.min_output_size()]);
    let plain =
        key.decrypt(&OAEP_SHA1_MGF1SHA1, &envelope.wrapped, &mut out, None).map_err(refused)?;
    let (len, rest) = plain.split_first().ok_or_else(|| envelope.other_contents())?;
    if usize::from(*len) != KEY || rest.len() < KEY {
        return Err(S3ecError::tampered("the wrapped data key is not 32 bytes and a name"));
    }
    let (bytes, name) = rest.split_at(KEY);
    match bound_names(envelope.content).iter().any(|bound| name == bound.as_bytes()) {
        true => data_key(bytes),
        false => Err(envelope.other_contents()),
    }
}

fn rsa_pkcs1_open(key: &RsaPrivate, envelope: &Envelope) -> Result<DataKey> {
    let refused = |_| envelope.does_not_open("RSA");
    let key = Pkcs1PrivateDecryptingKey::new(key.0.clone()).map_err(refused)?;
    let mut out = Zeroizing::new(vec![0; key.min_output_size()]);
    let plain = key.decrypt(&envelope.wrapped, &mut out).map_err(refused)?;
    data_key(plain)
}
