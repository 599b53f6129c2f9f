//! The block cipher mode of the sealed format, AES-256-GCM, behind one small trait.
//!
//! Two backends with identical bytes: [`Reference`] (`aes-gcm`, readable Rust) and [`Bulk`]
//! (`aws-lc-rs`, assembly, used for all real work). Knows nothing of chunks, salts or keys.

use super::offsets::TAG;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// A chunk's tag does not match.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadTag;

/// AES-256-GCM under one key with empty associated data. The caller owns nonce uniqueness.
/// Implementations are deterministic and interchangeable, byte for byte.
pub(super) trait Cipher: Send + Sync + Sized {
    /// Expands the key schedule (hundreds of nanoseconds); wiped when dropped.
    fn new(key: &[u8; 32]) -> Self;
    /// Encrypts in place and returns the tag.
    fn seal_in_place(&self, nonce: [u8; 12], in_out: &mut [u8]) -> [u8; TAG];
    /// Encrypts `plain` into `out`, which has `plain.len() + TAG` bytes.
    fn seal_into(&self, nonce: [u8; 12], plain: &[u8], out: &mut [u8]);
    /// Decrypts `cipher` into `out` of the same length; on [`BadTag`] `out` holds nothing of
    /// the plaintext that a caller may use.
    fn open_into(
        &self,
        nonce: [u8; 12],
        cipher: &[u8],
        tag: &[u8; TAG],
        out: &mut [u8],
    ) -> Result<(), BadTag>;
}

/// Which implementation of the cipher; both give the same bytes. Only tests choose.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// RustCrypto's `aes-gcm`.
    Reference,
    /// `aws-lc-rs`.
    Bulk,
}

/// RustCrypto's implementation.
pub(super) struct Reference(aes_gcm::Aes256Gcm);

impl Cipher for Reference {
    fn new(key: &[u8; 32]) -> Self {
        Reference(aes_gcm::Aes256Gcm::new(key.into()))
    }

    fn seal_in_place(&self, nonce: [u8; 12], in_out: &mut [u8]) -> [u8; TAG] {
        let tag = self.0.encrypt_inout_detached(&nonce.into(), &[], in_out.into());
        tag.expect("a chunk is far below the 64 GiB limit of GCM").into()
    }

    fn seal_into(&self, nonce: [u8; 12], plain: &[u8], out: &mut [u8]) {
        let (body, tag) = out.split_at_mut(plain.len());
        body.copy_from_slice(plain);
        tag.copy_from_slice(&self.seal_in_place(nonce, body));
    }

    fn open_into(
        &self,
        nonce: [u8; 12],
        cipher: &[u8],
        tag: &[u8; TAG],
        out: &mut [u8],
    ) -> Result<(), BadTag> {
        out.copy_from_slice(cipher);
        self.0
            .decrypt_inout_detached(&nonce.into(), &[], out.into(), tag.into())
            .map_err(|_| BadTag)
    }
}

/// AWS-LC's implementation: about four times the reference on AVX-512 machines.
pub(super) struct Bulk(LessSafeKey);

impl Cipher for Bulk {
    fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes");
        Bulk(LessSafeKey::new(key))
    }

    fn seal_in_place(&self, nonce: [u8; 12], in_out: &mut [u8]) -> [u8; TAG] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::empty(), in_out);
        let tag = tag.expect("a chunk is far below the 64 GiB limit of GCM");
        tag.as_ref().try_into().expect("a GCM tag has 16 bytes")
    }

    fn seal_into(&self, nonce: [u8; 12], plain: &[u8], out: &mut [u8]) {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (body, tag) = out.split_at_mut(plain.len());
        self.0
            .seal_out_of_place_scatter(nonce, Aad::empty(), plain, body, &[], tag)
            .expect("lengths agree and are far below the limit of GCM");
    }

    fn open_into(
        &self,
        nonce: [u8; 12],
        cipher: &[u8],
        tag: &[u8; TAG],
        out: &mut [u8],
    ) -> Result<(), BadTag> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_separate_gather(nonce, Aad::empty(), cipher, tag, out).map_err(|_| BadTag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_backends_give_the_same_bytes_and_open_each_other() {
        // Guards against a backend that is right only at block multiples or with in-place
        // buffers: every way through each, at lengths around block and chunk boundaries.
        for len in [0usize, 1, 15, 16, 17, 255, 4096, 16_383, 16_384] {
            let (key, nonce) = ([len as u8; 32], [7u8; 12]);
            let (reference, bulk) = (Reference::new(&key), Bulk::new(&key));
            let plain: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
            let mut outputs = vec![];
            for direct in [true, false] {
                for is_bulk in [true, false] {
                    let mut out = plain.clone();
                    if direct {
                        out.resize(len + TAG, 0);
                        match is_bulk {
                            true => bulk.seal_into(nonce, &plain, &mut out),
                            false => reference.seal_into(nonce, &plain, &mut out),
                        }
                    } else {
                        let tag = match is_bulk {
                            true => bulk.seal_in_place(nonce, &mut out),
                            false => reference.seal_in_place(nonce, &mut out),
                        };
                        out.extend_from_slice(&tag);
                    }
                    outputs.push(out);
                }
            }
            assert!(outputs.iter().all(|o| *o == outputs[0]), "length {len}");
            let (body, tag) = outputs[0].split_at(len);
            let tag: &[u8; TAG] = tag.try_into().unwrap();
            let mut opened = vec![0; len];
            reference.open_into(nonce, body, tag, &mut opened).unwrap();
            assert_eq!(opened, plain);
            bulk.open_into(nonce, body, tag, &mut opened).unwrap();
            assert_eq!(opened, plain);
            let mut bad = *tag;
            bad[15] ^= 1;
            assert_eq!(reference.open_into(nonce, body, &bad, &mut opened), Err(BadTag));
            assert_eq!(bulk.open_into(nonce, body, &bad, &mut opened), Err(BadTag));
        }
    }
}
