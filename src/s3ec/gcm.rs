//! AES-256-GCM of one long message in pieces: NIST SP 800-38D with a 12-byte IV, put together from
//! counter mode (`aws-lc-rs`, assembly) and GHASH (`ghash`, carry-less multiplication).
//!
//! The AEADs of both libraries take a message whole; an object may have 64 GiB. Memory is one piece;
//! the tag is compared in constant time. Knows nothing of envelopes.

use aws_lc_rs::cipher::{AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::iv::FixedLength;
use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use zeroize::Zeroizing;

/// Bytes of the tag behind the ciphertext.
pub(super) const TAG: usize = 16;
/// Bytes of the IV.
pub(super) const IV: usize = 12;
/// The longest message: the counter of 32 bits must not come round (SP 800-38D, 5.2.1.1).
pub const PLAIN_MAX: u64 = (1 << 36) - 32;
/// Bytes of a block of AES.
const BLOCK: usize = 16;
/// Bytes that are enciphered and hashed in one go, so that the second finds them in the cache.
const STRIDE: usize = 16 << 10;

/// One message under way, in either direction.
pub(super) struct Gcm {
    /// At block `2 + len / 16` of the key stream. Counts with 128 bits, which differs from GCM's 32
    /// only beyond [`PLAIN_MAX`].
    stream: StreamingEncryptingKey,
    hash: GHash,
    /// The start of a block that is not hashed yet.
    part: [u8; BLOCK],
    /// Bytes so far, of ciphertext or plaintext: they are as many.
    len: u64,
    aad_len: u64,
    /// What the hash is hidden with.
    mask: [u8; TAG],
}

/// The message is longer than [`PLAIN_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// The tag is another one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadTag;

impl Gcm {
    /// Begins a message. An IV must never be used twice under one key.
    pub(super) fn new(key: &[u8; 32], iv: &[u8; IV], aad: &[u8]) -> Gcm {
        let mut hash_key = Zeroizing::new([0u8; BLOCK]);
        key_stream(key, [0; BLOCK], &mut hash_key);
        let mut first = [0u8; BLOCK];
        first[..IV].copy_from_slice(iv);
        first[BLOCK - 1] = 1;
        let mut mask = [0u8; TAG];
        let stream = key_stream(key, first, &mut mask);
        let mut hash = GHash::new(&(*hash_key).into());
        hash.update_padded(aad);
        Gcm { stream, hash, part: [0; BLOCK], len: 0, aad_len: aad.len() as u64, mask }
    }

    /// Enciphers `plain` and appends the ciphertext to `cipher`.
    pub(super) fn seal(&mut self, plain: &[u8], cipher: &mut Vec<u8>) -> Result<(), TooLong> {
        self.check(plain.len())?;
        for piece in plain.chunks(STRIDE) {
            let at = cipher.len();
            self.apply(piece, cipher);
            self.absorb(&cipher[at..]);
        }
        Ok(())
    }

    /// Deciphers `cipher` and appends what is not authenticated yet to `plain`.
    pub(super) fn open(&mut self, cipher: &[u8], plain: &mut Vec<u8>) -> Result<(), TooLong> {
        self.check(cipher.len())?;
        for piece in cipher.chunks(STRIDE) {
            self.absorb(piece);
            self.apply(piece, plain);
        }
        Ok(())
    }

    /// Takes ciphertext for the tag only.
    pub(super) fn verify(&mut self, cipher: &[u8]) -> Result<(), TooLong> {
        self.check(cipher.len())?;
        self.absorb(cipher);
        Ok(())
    }

    /// The tag of all that came.
    pub(super) fn tag(mut self) -> [u8; TAG] {
        let partial = (self.len % BLOCK as u64) as usize;
        self.hash.update_padded(&self.part[..partial]);
        let mut lengths = [0u8; BLOCK];
        lengths[..8].copy_from_slice(&(self.aad_len * 8).to_be_bytes());
        lengths[8..].copy_from_slice(&(self.len * 8).to_be_bytes());
        self.hash.update_padded(&lengths);
        let mut tag: [u8; TAG] = self.hash.finalize().into();
        tag.iter_mut().zip(self.mask).for_each(|(byte, mask)| *byte ^= mask);
        tag
    }

    /// Whether `tag` is the tag of all that came; in constant time.
    pub(super) fn finish(self, tag: &[u8; TAG]) -> Result<(), BadTag> {
        verify_slices_are_equal(&self.tag(), tag).map_err(|_| BadTag)
    }

    fn check(&self, more: usize) -> Result<(), TooLong> {
        match self.len + more as u64 {
            len if len <= PLAIN_MAX => Ok(()),
            _ => Err(TooLong),
        }
    }

    /// The key stream over `input`, at most a [`STRIDE`].
    fn apply(&mut self, input: &[u8], out: &mut Vec<u8>) {
        let at = out.len();
        out.resize(at + input.len() + BLOCK - 1, 0);
        let done = self.stream.update(input, &mut out[at..]);
        let written = done.expect("the buffer is large enough").written().len();
        assert_eq!(written, input.len(), "counter mode keeps nothing back");
        out.truncate(at + written);
    }

    /// Ciphertext into the hash.
    fn absorb(&mut self, mut cipher: &[u8]) {
        let partial = (self.len % BLOCK as u64) as usize;
        self.len += cipher.len() as u64;
        if partial > 0 {
            let take = (BLOCK - partial).min(cipher.len());
            self.part[partial..partial + take].copy_from_slice(&cipher[..take]);
            cipher = &cipher[take..];
            if partial + take < BLOCK {
                return;
            }
            self.hash.update_padded(&self.part);
        }
        let whole = cipher.len() - cipher.len() % BLOCK;
        self.hash.update_padded(&cipher[..whole]);
        self.part[..cipher.len() - whole].copy_from_slice(&cipher[whole..]);
    }
}

/// Counter mode from the block `first` on; its first block goes to `out`.
fn key_stream(key: &[u8; 32], first: [u8; BLOCK], out: &mut [u8; BLOCK]) -> StreamingEncryptingKey {
    let key = UnboundCipherKey::new(&AES_256, key).expect("an AES-256 key has 32 bytes");
    let context = EncryptionContext::Iv128(FixedLength::from(first));
    let mut stream =
        StreamingEncryptingKey::less_safe_ctr(key, context).expect("AES has counter mode");
    let mut buffer = Zeroizing::new([0u8; 2 * BLOCK]);
    stream.update(&[0; BLOCK], &mut buffer[..]).expect("the buffer is large enough");
    out.copy_from_slice(&buffer[..BLOCK]);
    stream
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    /// The library's own GCM.
    fn whole(key: &[u8; 32], iv: [u8; IV], aad: &[u8], plain: &[u8]) -> Vec<u8> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
        let mut out = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(iv);
        key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut out).unwrap();
        out
    }

    #[test]
    fn pieces_of_any_size_give_what_the_whole_message_gives() {
        // Guards against a block that is hashed twice or not at all where pieces meet: lengths
        // around blocks and strides, cut at odd places, against another implementation.
        let lens = [0usize, 1, 15, 16, 17, 31, 32, 255, STRIDE - 1, STRIDE, STRIDE + 1, 50_000];
        for len in lens {
            let key = [len as u8 ^ 0x5a; 32];
            let iv = [len as u8; IV];
            let plain: Vec<u8> = (0..len).map(|i| (i * 131 % 251) as u8).collect();
            for aad in [&b""[..], &[0, 0x73], &[7; 40]] {
                let expected = whole(&key, iv, aad, &plain);
                for step in [1usize, 7, 16, 33, 4096, 70_000] {
                    if step == 1 && len > 300 {
                        continue;
                    }
                    let mut gcm = Gcm::new(&key, &iv, aad);
                    let mut cipher = Vec::new();
                    plain.chunks(step).for_each(|p| gcm.seal(p, &mut cipher).unwrap());
                    cipher.extend_from_slice(&gcm.tag());
                    assert_eq!(cipher, expected, "{len} in pieces of {step}");

                    let (body, tag) = cipher.split_at(len);
                    let tag: [u8; TAG] = tag.try_into().unwrap();
                    let (mut gcm, mut check) = (Gcm::new(&key, &iv, aad), Gcm::new(&key, &iv, aad));
                    let mut opened = Vec::new();
                    for piece in body.chunks(step) {
                        gcm.open(piece, &mut opened).unwrap();
                        check.verify(piece).unwrap();
                    }
                    assert_eq!(opened, plain);
                    assert_eq!(gcm.finish(&tag), Ok(()));
                    let mut bad = tag;
                    bad[len % TAG] ^= 1;
                    assert_eq!(check.finish(&bad), Err(BadTag));
                }
            }
        }
    }

    #[test]
    fn the_counter_does_not_come_round() {
        // Guards against a key stream that repeats after 64 GiB.
        let mut gcm = Gcm::new(&[1; 32], &[2; IV], b"");
        gcm.len = PLAIN_MAX - 1;
        assert_eq!(gcm.check(1), Ok(()));
        assert_eq!(gcm.check(2), Err(TooLong));
        assert_eq!(gcm.seal(&[0; 2], &mut Vec::new()), Err(TooLong));
        assert_eq!(gcm.open(&[0; 2], &mut Vec::new()), Err(TooLong));
    }
}
