//! The keys that wrap data keys: AES and RSA keys from files, and AWS KMS.
//!
//! Reads key files; makes no request but those of KMS.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::rsa::{PrivateDecryptingKey, PublicEncryptingKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::error::{Result, S3ecError};
use super::pem;
use crate::store::kms::{Kms, KmsContext, KmsError};

/// Bytes of the longest key file that is read: RSA of 8192 bits has about 6500.
const KEY_FILE_MAX: u64 = 64 << 10;

/// What opens and wraps data keys.
#[derive(Clone, Default)]
pub struct Keys {
    /// A key of AWS KMS.
    pub kms: Option<Arc<dyn KmsKey>>,
    /// An AES key.
    pub aes: Option<AesKey>,
    /// The RSA key that opens.
    pub rsa_private: Option<RsaPrivate>,
    /// The RSA key that wraps; that of `rsa_private` where it is not given.
    pub rsa_public: Option<RsaPublic>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("kms", &self.kms.as_ref().map(|kms| kms.name().to_owned()))
            .field("aes", &self.aes)
            .field("rsa_private", &self.rsa_private.is_some())
            .field("rsa_public", &self.rsa_public.is_some())
            .finish()
    }
}

/// One key of AWS KMS.
#[async_trait]
pub trait KmsKey: Send + Sync {
    /// How it is called.
    fn name(&self) -> &str;
    /// A new data key of 32 bytes, and what opens to it.
    async fn data_key(
        &self,
        context: &KmsContext,
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), KmsError>;
    /// Wraps a data key.
    async fn encrypt(&self, data_key: &[u8], context: &KmsContext) -> Result<Vec<u8>, KmsError>;
    /// Opens a wrapped data key.
    async fn decrypt(
        &self,
        wrapped: &[u8],
        context: &KmsContext,
    ) -> Result<Zeroizing<Vec<u8>>, KmsError>;
}

/// A key of KMS by its id, alias or ARN.
#[derive(Debug)]
pub struct KmsByName {
    /// Where it is.
    pub kms: Kms,
    /// Its id, alias or ARN.
    pub key: String,
}

#[async_trait]
impl KmsKey for KmsByName {
    fn name(&self) -> &str {
        &self.key
    }

    async fn data_key(
        &self,
        context: &KmsContext,
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), KmsError> {
        self.kms.data_key(&self.key, context).await
    }

    async fn encrypt(&self, data_key: &[u8], context: &KmsContext) -> Result<Vec<u8>, KmsError> {
        self.kms.encrypt(&self.key, data_key, context).await.map(|done| done.ciphertext)
    }

    async fn decrypt(
        &self,
        wrapped: &[u8],
        context: &KmsContext,
    ) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        self.kms.decrypt(&self.key, wrapped, context).await
    }
}

/// An AES key of 16, 24 or 32 bytes.
#[derive(Clone)]
pub struct AesKey(Arc<Zeroizing<Vec<u8>>>);

impl AesKey {
    /// The key with these bytes; `None` if they are not 16, 24 or 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<AesKey> {
        let fits = matches!(bytes.len(), 16 | 24 | 32);
        fits.then(|| AesKey(Arc::new(Zeroizing::new(bytes.to_vec()))))
    }

    /// Reads a key file: the bytes themselves, or in hex, or in base64.
    ///
    /// # Errors
    /// It cannot be read, or holds no key.
    pub fn read(path: &Path) -> Result<AesKey> {
        let bytes = read(path)?;
        aes_of(&bytes).ok_or_else(|| {
            S3ecError::usage(format!("{} holds no AES key", path.display())).hint(
                "a key has 32 bytes (or 16 or 24), as they are, in hex or in base64: openssl rand -out FILE 32",
            )
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for AesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AesKey({} bytes)", self.0.len())
    }
}

/// The key in a file's bytes. 32 bytes are a key as they are even where all are hex digits: the
/// Ruby client's users have such keys. 24 that are base64 with padding are a key of 16.
fn aes_of(bytes: &[u8]) -> Option<AesKey> {
    let text = std::str::from_utf8(bytes).ok().map(str::trim);
    if bytes.len() == 24
        && let Some(key) = text.filter(|text| text.ends_with("==")).and_then(of_base64)
    {
        return Some(key);
    }
    AesKey::from_bytes(bytes)
        .or_else(|| text.and_then(|text| of_hex(text).or_else(|| of_base64(text))))
}

fn of_base64(text: &str) -> Option<AesKey> {
    AesKey::from_bytes(&Zeroizing::new(STANDARD.decode(text).ok()?))
}

fn of_hex(text: &str) -> Option<AesKey> {
    let digits: Option<Zeroizing<Vec<u8>>> = text
        .chars()
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect::<Option<Vec<u8>>>()
        .map(Zeroizing::new);
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    let bytes: Zeroizing<Vec<u8>> =
        Zeroizing::new(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect());
    AesKey::from_bytes(&bytes)
}

/// An RSA key of 2048 to 8192 bits that opens what was wrapped for it.
#[derive(Clone)]
pub struct RsaPrivate(pub(super) PrivateDecryptingKey);

impl RsaPrivate {
    /// Reads a PEM or DER file, PKCS #8 or PKCS #1, not encrypted.
    ///
    /// # Errors
    /// It cannot be read, or holds no such key.
    pub fn read(path: &Path) -> Result<RsaPrivate> {
        let bytes = read(path)?;
        let bad = |why: &str| {
            S3ecError::usage(format!("{} holds no RSA private key: {why}", path.display()))
        };
        let der = pem::private_key(&bytes)
            .map_err(|why| bad(why).hint("write it without a passphrase: openssl pkey -in FILE"))?;
        let key = PrivateDecryptingKey::from_pkcs8(&der);
        let key = key.map_err(|e| bad(&format!("{e}, 2048 to 8192 bits are taken")))?;
        Ok(RsaPrivate(key))
    }

    /// The key that wraps for it.
    pub fn public(&self) -> RsaPublic {
        RsaPublic(self.0.public_key())
    }
}

/// An RSA key that wraps.
#[derive(Clone)]
pub struct RsaPublic(pub(super) PublicEncryptingKey);

impl RsaPublic {
    /// Reads a PEM or DER file, SubjectPublicKeyInfo or PKCS #1.
    ///
    /// # Errors
    /// It cannot be read, or holds no such key.
    pub fn read(path: &Path) -> Result<RsaPublic> {
        let bytes = read(path)?;
        let bad = |why: &str| {
            S3ecError::usage(format!("{} holds no RSA public key: {why}", path.display()))
                .hint("to write that of a private key: openssl pkey -in FILE -pubout")
        };
        let der = pem::public_key(&bytes).map_err(bad)?;
        let key = PublicEncryptingKey::from_der(&der);
        key.map(RsaPublic).map_err(|e| bad(&format!("{e}, 2048 to 8192 bits are taken")))
    }
}

/// The bytes of a key file.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let failed = |why: String| {
        S3ecError::usage(format!("cannot read the key file {}: {why}", path.display()))
            .hint("give a file that you may read")
    };
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_MAX as usize + 1));
    file.take(KEY_FILE_MAX + 1).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    match bytes.len() as u64 > KEY_FILE_MAX {
        true => Err(failed("it is too large to be one".into())),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        // Guards against a key file taken for another key: raw, hex and base64 of each length.
        for len in [16usize, 24, 32] {
            let raw: Vec<u8> = (0..len as u8).map(|i| i.wrapping_mul(37) ^ 0x91).collect();
            let hex = crate::base::hex(&raw);
            let base64 = STANDARD.encode(&raw);
            let mut texts =
                vec![raw.clone(), format!("{base64}\n").into(), format!("{hex}\n").into()];
            // Without their line end, hex of 16 bytes and base64 of 24 are a key of 32.
            texts.extend((len != 24).then(|| base64.into()));
            texts.extend((len != 16).then(|| hex.to_uppercase().into()));
            for text in texts {
                let key = aes_of(&text).unwrap_or_else(|| panic!("{text:?}"));
                assert_eq!(key.bytes(), raw, "{text:?}");
            }
        }
        let digits = b"0123456789abcdef0123456789abcdef";
        assert_eq!(aes_of(digits).unwrap().bytes(), digits);
        for bad in [&b""[..], b"x", &[0; 31], &[0; 33], b"zz", b"0123456789abcdef0"] {
            assert!(aes_of(bad).is_none(), "{bad:?}");
        }
        assert_eq!(format!("{:?}", aes_of(&[1; 32]).unwrap()), "AesKey(32 bytes)");
    }
}
