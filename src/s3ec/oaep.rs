//! The RSA wrap of Java's first client, `RSA/ECB/OAEPWithSHA-256AndMGF1Padding`: the data key by itself,
//! with nothing that says what it is for. Opened, never made.
//!
//! That name leaves the hash of MGF1 to Java's provider. That of the JDK takes SHA-1, which aws-lc-rs has in
//! no combination with SHA-256: hence a second RSA library, for this alone. Bouncy Castle takes SHA-256.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey};
use rsa::pkcs8::DecodePrivateKey;
use rsa::rand_core::{self, CryptoRng, RngCore};
use rsa::{Oaep, RsaPrivateKey};
use zeroize::Zeroizing;

use super::envelope::Envelope;
use super::error::Result;
use super::keys::RsaPrivate;
use super::wrap::{DataKey, data_key};
use crate::seal::fill_random;

/// Opens the data key.
///
/// # Errors
/// Neither way opens it: another key, or it was changed.
pub(super) fn open(key: &RsaPrivate, envelope: &Envelope) -> Result<DataKey> {
    let opened = with_sha256(key, &envelope.wrapped).or_else(|| with_sha1(key, &envelope.wrapped));
    data_key(&opened.ok_or_else(|| envelope.does_not_open("RSA"))?)
}

/// MGF1 with SHA-256.
fn with_sha256(key: &RsaPrivate, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let key = OaepPrivateDecryptingKey::new(key.0.clone()).ok()?;
    let mut out = Zeroizing::new(vec![0; key.min_output_size()]);
    let plain = key.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut out, None).ok()?;
    Some(Zeroizing::new(plain.to_vec()))
}

/// MGF1 with SHA-1. Blinded, since the arithmetic of this library takes time that depends on the key.
fn with_sha1(key: &RsaPrivate, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let der: Pkcs8V1Der<'_> = key.0.as_der().ok()?;
    let key = RsaPrivateKey::from_pkcs8_der(der.as_ref()).ok()?;
    let padding = Oaep::new_with_mgf_hash::<sha2_of_rsa::Sha256, sha1_of_rsa::Sha1>();
    key.decrypt_blinded(&mut SystemRandom, padding, wrapped).ok().map(Zeroizing::new)
}

/// The operating system's random source as that library asks for it.
struct SystemRandom;

impl CryptoRng for SystemRandom {}

impl RngCore for SystemRandom {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        fill_random(out);
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), rand_core::Error> {
        fill_random(out);
        Ok(())
    }
}
