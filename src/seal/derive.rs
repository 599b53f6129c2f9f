//! Input keys and the one key derivation function, HKDF-Expand with SHA-512 (RFC 5869, 2.3).
//!
//! Keeps HMAC's inner and outer state of a key computed, so that a derivation costs about a
//! microsecond. Knows nothing of volumes or messages.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::{constant_time, hmac};
use zeroize::Zeroizing;

use super::secret::Locked;

/// Bytes of every symmetric key of the format.
pub const KEY: usize = 32;
/// Bytes of one block of HKDF-Expand's output.
const BLOCK: usize = 64;

/// 32 secret bytes from which message keys (or further input keys) are derived. In locked
/// memory, wiped when the last clone is dropped; a clone is one reference count.
#[derive(Clone)]
pub struct InputKey(Arc<Locked<Prk>>);

/// The bytes and HMAC-SHA512 keyed with them.
struct Prk {
    bytes: Zeroizing<[u8; KEY]>,
    mac: hmac::Key,
}

impl InputKey {
    /// The input key with these bytes, which must be uniformly random or derived.
    pub fn from_bytes(bytes: &[u8; KEY]) -> InputKey {
        let mac = hmac::Key::new(hmac::HMAC_SHA512, bytes);
        InputKey(Arc::new(Locked::new(Prk { bytes: Zeroizing::new(*bytes), mac })))
    }

    /// The secret bytes, for the keyring's wrap and for handing one object's key to an auditor.
    pub fn expose(&self) -> &[u8; KEY] {
        &self.0.bytes
    }

    /// HKDF-Expand-SHA512 with this key as the pseudorandom key and `info` concatenated, into
    /// `out` of at most 255 × 64 bytes.
    pub(super) fn expand(&self, info: &[&[u8]], out: &mut [u8]) {
        assert!(out.len() <= 255 * BLOCK, "HKDF-Expand gives at most 255 blocks");
        let mut previous = Zeroizing::new([0u8; BLOCK]);
        for (index, block) in out.chunks_mut(BLOCK).enumerate() {
            let mut mac = hmac::Context::with_key(&self.0.mac);
            if index > 0 {
                mac.update(&previous[..]);
            }
            info.iter().for_each(|part| mac.update(part));
            mac.update(&[index as u8 + 1]);
            previous.copy_from_slice(mac.sign().as_ref());
            block.copy_from_slice(&previous[..block.len()]);
        }
    }

    /// The first 32 bytes of HMAC-SHA512 of `data` under this key.
    pub(super) fn mac(&self, data: &[u8]) -> [u8; KEY] {
        let tag = hmac::sign(&self.0.mac, data);
        *tag.as_ref().first_chunk().expect("HMAC-SHA512 gives 64 bytes")
    }

    /// The input key derived from this one with `info`.
    pub(super) fn derive(&self, info: &[&[u8]]) -> InputKey {
        let mut bytes = Zeroizing::new([0u8; KEY]);
        self.expand(info, &mut bytes[..]);
        InputKey::from_bytes(&bytes)
    }
}

impl fmt::Debug for InputKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InputKey({KEY} bytes)")
    }
}

/// Whether two byte strings are equal, in time that depends on their lengths only.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Fills `out` from the operating system's random source.
///
/// # Panics
/// When getrandom(2) fails, which Linux documents as impossible for these lengths: sealing with
/// anything else would be worse.
pub fn fill_random(out: &mut [u8]) {
    getrandom::fill(out).expect("the operating system's random source works");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_agrees_with_the_hkdf_crate() {
        // Guards against an error in our own loop: other lengths, split info, several blocks.
        for len in [1usize, 32, 63, 64, 65, 76, 128, 200] {
            let bytes = [len as u8; KEY];
            let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
            InputKey::from_bytes(&bytes).expand(&[b"one", b"", b"two"], &mut ours);
            let theirs_prk = hkdf::Hkdf::<sha2::Sha512>::from_prk(&[bytes, [0; 32]].concat());
            theirs_prk.unwrap().expand(b"onetwo", &mut theirs).unwrap();
            assert_eq!(ours, theirs, "length {len}");
        }
    }

    #[test]
    fn debug_never_shows_key_bytes() {
        // Guards against a key in a log line.
        assert_eq!(format!("{:?}", InputKey::from_bytes(&[0x41; 32])), "InputKey(32 bytes)");
    }
}
