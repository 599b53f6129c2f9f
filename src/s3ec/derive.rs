//! The keys of version 3: HKDF-SHA512 of the data key, salted with the message id.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hkdf::{HKDF_SHA512, KeyType, Prk, Salt};
use zeroize::Zeroizing;

use super::envelope::COMMITMENT;

/// Bytes of every AES key of contents.
pub(super) const KEY: usize = 32;
/// The algorithm suite, as HKDF and GCM authenticate it.
pub(super) const SUITE: [u8; 2] = [0x00, 0x73];
/// The IV: the derived key encrypts one message only. The released clients have this; the
/// specification says zeros in some of its versions.
pub(super) const FIXED_IV: [u8; 12] = [0x01; 12];

/// What is derived from a data key and a message id.
pub(super) struct Derivation(Prk);

struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

impl Derivation {
    pub(super) fn new(data_key: &[u8; KEY], message_id: &[u8]) -> Derivation {
        Derivation(Salt::new(HKDF_SHA512, message_id).extract(data_key))
    }

    fn fill(&self, label: &[u8], out: &mut [u8]) {
        let info = [&SUITE[..], label];
        let expanded = self.0.expand(&info, Len(out.len())).and_then(|okm| okm.fill(out));
        expanded.expect("32 bytes are within the limit of HKDF");
    }

    /// What version 3 stores beside the object.
    pub(super) fn commitment(&self) -> [u8; COMMITMENT] {
        let mut commitment = [0; COMMITMENT];
        self.fill(b"COMMITKEY", &mut commitment);
        commitment
    }

    /// Whether `stored` commits to this data key; in constant time.
    pub(super) fn is_committed(&self, stored: &[u8; COMMITMENT]) -> bool {
        verify_slices_are_equal(&self.commitment(), stored).is_ok()
    }

    /// The key of the contents. To be asked for behind [`Derivation::is_committed`] only.
    pub(super) fn content_key(&self) -> Zeroizing<[u8; KEY]> {
        let mut key = Zeroizing::new([0; KEY]);
        self.fill(b"DERIVEKEY", &mut key[..]);
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hex;

    #[test]
    fn the_published_answers_come_out() {
        // Guards against any other order, label or length: known answers of the Go client.
        let text = include_str!("../../tests/vectors/s3ec_hkdf.json");
        let all: serde_json::Value = serde_json::from_str(text).unwrap();
        let vectors = all["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 2);
        for vector in vectors {
            let bytes = |name: &str| -> Vec<u8> {
                let digits = vector[name].as_str().unwrap();
                let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
                (0..digits.len()).step_by(2).map(byte).collect()
            };
            let data_key: [u8; KEY] = bytes("data_key").try_into().unwrap();
            let derived = Derivation::new(&data_key, &bytes("message_id"));
            assert_eq!(hex(&derived.commitment()), vector["commit_key"].as_str().unwrap());
            assert_eq!(hex(&*derived.content_key()), vector["encryption_key"].as_str().unwrap());
            let mut other = derived.commitment();
            assert!(derived.is_committed(&other));
            other[27] ^= 1;
            assert!(!derived.is_committed(&other));
        }
    }
}
