//! The sealed message: Cobblestone-256 of C2SP `chunked-encryption`, AES-256-GCM with
//! HKDF-SHA512 (FORMAT.md "Sealed message").
//!
//! `salt 24 ‖ commitment 32 ‖ chunk 0 ‖ … ‖ last chunk`. Owns salts, the derivation of message
//! keys, nonces and the order of checks: lengths, then the commitment, then each chunk's tag.
//! No plaintext that has not been authenticated ever leaves this file.

use std::sync::Arc;

use zeroize::{Zeroize, Zeroizing};

use super::cipher::{Backend, BadTag, Bulk, Cipher, Reference};
use super::derive::{InputKey, fill_random, same};
use super::offsets::{
    CHUNK_CIPHER, CHUNK_PLAIN, HEADER, TAG, cipher_len, plain_len, plain_of_chunks,
};
use super::{COMMITMENT, SALT};

/// What HKDF's info begins with; a zero byte, the salt and the context follow.
const LABEL: &[u8] = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM";

/// Why a message does not open. None of them can be cured by trying again with the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than the shortest message, [`offsets::MESSAGE_MIN`](super::offsets::MESSAGE_MIN).
    #[error("too short for a sealed message: {0} bytes")]
    TooShort(u64),
    /// No message, or no run of chunks, has this many bytes: something was cut off or added.
    #[error("truncated or extended: no sealed message is {0} bytes long")]
    BadLength(u64),
    /// The key commitment differs: sealed under another key, name, volume or kind, or its header
    /// was altered.
    #[error("sealed under another key or name, or its header is damaged")]
    Commitment,
    /// This chunk (counted from 0) was altered, moved or belongs to another message.
    #[error("chunk {0} is damaged")]
    Chunk(u64),
}

/// What one message is encrypted with.
struct MessageKey<C> {
    cipher: C,
    base_nonce: [u8; 12],
}

impl<C: Cipher> MessageKey<C> {
    /// The keys of the message with this salt, and the commitment it must carry.
    fn derive(key: &InputKey, context: &[u8], salt: &[u8]) -> (Self, [u8; COMMITMENT]) {
        let mut okm = Zeroizing::new([0u8; 32 + 12 + COMMITMENT]);
        key.expand(&[LABEL, &[0], salt, context], &mut okm[..]);
        let aead_key: &[u8; 32] = okm.first_chunk().expect("the output begins with 32 key bytes");
        let cipher = C::new(aead_key);
        let mut base_nonce = [0u8; 12];
        base_nonce.copy_from_slice(&okm[32..44]);
        let mut commitment = [0u8; COMMITMENT];
        commitment.copy_from_slice(&okm[44..]);
        (MessageKey { cipher, base_nonce }, commitment)
    }

    /// The base nonce XOR the chunk number, big-endian at its end.
    fn nonce(&self, chunk: u64) -> [u8; 12] {
        let mut nonce = self.base_nonce;
        nonce[4..].iter_mut().zip(chunk.to_be_bytes()).for_each(|(n, c)| *n ^= c);
        nonce
    }

    /// Appends the sealed chunk of `plain` to `out`.
    fn seal_append(&self, chunk: u64, plain: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + plain.len() + TAG, 0);
        self.cipher.seal_into(self.nonce(chunk), plain, &mut out[start..]);
    }

    /// Seals the plaintext `out[..len]` where it stands, puts its tag behind it and returns what is left.
    fn seal_start<'a>(&self, chunk: u64, len: usize, out: &'a mut [u8]) -> &'a mut [u8] {
        let (sealed, rest) = out.split_at_mut(len + TAG);
        let (plain, tag) = sealed.split_at_mut(len);
        tag.copy_from_slice(&self.cipher.seal_in_place(self.nonce(chunk), plain));
        rest
    }

    /// Opens whole chunks into `out`, which has exactly the length of their plaintext.
    fn open_to(
        &self,
        first_chunk: u64,
        cipher: &[u8],
        ends_message: bool,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        let bad_length = OpenError::BadLength(cipher.len() as u64);
        let len = plain_of_chunks(cipher.len() as u64, ends_message).ok_or(bad_length)?;
        assert_eq!(len, out.len() as u64, "the caller knows how long the plaintext is");
        let mut rest = &mut out[..];
        for (chunk, sealed) in (first_chunk..).zip(cipher.chunks(CHUNK_CIPHER)) {
            let (body, tag) = sealed.split_last_chunk::<TAG>().expect("lengths were checked above");
            let (now, later) = rest.split_at_mut(body.len());
            if let Err(BadTag) = self.cipher.open_into(self.nonce(chunk), body, tag, now) {
                out.zeroize();
                return Err(OpenError::Chunk(chunk));
            }
            rest = later;
        }
        Ok(())
    }

    fn open_chunks(
        &self,
        first_chunk: u64,
        cipher: &[u8],
        ends_message: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let bad_length = OpenError::BadLength(cipher.len() as u64);
        let len = plain_of_chunks(cipher.len() as u64, ends_message).ok_or(bad_length)?;
        let before = out.len();
        out.resize(before + len as usize, 0);
        let opened = self.open_to(first_chunk, cipher, ends_message, &mut out[before..]);
        if opened.is_err() {
            out.truncate(before);
        }
        opened
    }
}

/// Seals `plain` into a new message under a fresh random salt. `context` says where the message
/// belongs. The message is [`cipher_len`] bytes long. Costs about 3 µs and then the cipher's
/// speed.
pub fn seal(key: &InputKey, context: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    seal_into(key, context, &[plain], &mut out);
    out
}

/// Appends to `out` one message whose plaintext is `parts` concatenated. Only the pieces of parts
/// that share a chunk with another part are copied before they are encrypted.
pub fn seal_into(key: &InputKey, context: &[u8], parts: &[&[u8]], out: &mut Vec<u8>) {
    append_message::<Bulk>(key, context, &fresh_salt(), parts, out);
}

/// [`seal_into`] a place that is exactly as long as the message, [`cipher_len`] of all parts.
pub fn seal_to(key: &InputKey, context: &[u8], parts: &[&[u8]], out: &mut [u8]) {
    write_message::<Bulk>(key, context, &fresh_salt(), parts, out);
}

/// [`seal`] with a chosen cipher backend, for tests.
#[doc(hidden)]
pub fn seal_with(backend: Backend, key: &InputKey, context: &[u8], plain: &[u8]) -> Vec<u8> {
    seal_with_salt(backend, key, context, &fresh_salt(), plain)
}

/// [`seal_with`] a given salt, for known-answer tests only: a salt used twice under one key and
/// context gives away the XOR of the plaintexts and lets anyone forge messages.
#[doc(hidden)]
pub fn seal_with_salt(
    backend: Backend,
    key: &InputKey,
    context: &[u8],
    salt: &[u8; SALT],
    plain: &[u8],
) -> Vec<u8> {
    let mut out = Vec::new();
    match backend {
        Backend::Bulk => append_message::<Bulk>(key, context, salt, &[plain], &mut out),
        Backend::Reference => append_message::<Reference>(key, context, salt, &[plain], &mut out),
    }
    out
}

fn fresh_salt() -> [u8; SALT] {
    let mut salt = [0u8; SALT];
    fill_random(&mut salt);
    salt
}

fn append_message<C: Cipher>(
    key: &InputKey,
    context: &[u8],
    salt: &[u8; SALT],
    parts: &[&[u8]],
    out: &mut Vec<u8>,
) {
    let plain: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let len = usize::try_from(cipher_len(plain)).expect("parts in memory fit usize");
    let start = out.len();
    out.resize(start + len, 0);
    write_message::<C>(key, context, salt, parts, &mut out[start..]);
}

fn write_message<C: Cipher>(
    key: &InputKey,
    context: &[u8],
    salt: &[u8; SALT],
    parts: &[&[u8]],
    out: &mut [u8],
) {
    let (message, commitment) = MessageKey::<C>::derive(key, context, salt);
    let (header, mut out) = out.split_at_mut(HEADER);
    header[..SALT].copy_from_slice(salt);
    header[SALT..].copy_from_slice(&commitment);
    // `out[..gathered]` is plaintext of the chunk being gathered, sealed before we return.
    let (mut chunk, mut gathered) = (0, 0);
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(CHUNK_PLAIN - gathered));
            rest = later;
            if now.len() == CHUNK_PLAIN {
                let (sealed, behind) = out.split_at_mut(CHUNK_CIPHER);
                message.cipher.seal_into(message.nonce(chunk), now, sealed);
                out = behind;
            } else {
                out[gathered..gathered + now.len()].copy_from_slice(now);
                gathered += now.len();
                if gathered < CHUNK_PLAIN {
                    continue;
                }
                out = message.seal_start(chunk, gathered, out);
            }
            (chunk, gathered) = (chunk + 1, 0);
        }
    }
    let behind = message.seal_start(chunk, gathered, out);
    assert!(behind.is_empty(), "a sealed message has its computed length");
}

/// Opens a whole message and returns its plaintext.
///
/// # Errors
/// Every [`OpenError`]; nothing of the plaintext is returned then.
pub fn open(key: &InputKey, context: &[u8], message: &[u8]) -> Result<Vec<u8>, OpenError> {
    open_message::<Bulk>(key, context, message)
}

/// [`open`] with a chosen cipher backend, for tests.
#[doc(hidden)]
pub fn open_with(
    backend: Backend,
    key: &InputKey,
    context: &[u8],
    message: &[u8],
) -> Result<Vec<u8>, OpenError> {
    match backend {
        Backend::Bulk => open_message::<Bulk>(key, context, message),
        Backend::Reference => open_message::<Reference>(key, context, message),
    }
}

fn open_message<C: Cipher>(
    key: &InputKey,
    context: &[u8],
    message: &[u8],
) -> Result<Vec<u8>, OpenError> {
    let len = message.len() as u64;
    let Some((header, chunks)) = message.split_first_chunk::<HEADER>() else {
        return Err(OpenError::TooShort(len));
    };
    if chunks.len() < TAG {
        return Err(OpenError::TooShort(len));
    }
    if plain_len(len).is_none() {
        return Err(OpenError::BadLength(len));
    }
    let mut out = Vec::new();
    checked_key::<C>(key, context, header)?.open_chunks(0, chunks, true, &mut out)?;
    Ok(out)
}

fn checked_key<C: Cipher>(
    key: &InputKey,
    context: &[u8],
    header: &[u8; HEADER],
) -> Result<MessageKey<C>, OpenError> {
    let (salt, carried) = header.split_at(SALT);
    let (message, commitment) = MessageKey::derive(key, context, salt);
    if same(&commitment, carried) { Ok(message) } else { Err(OpenError::Commitment) }
}

/// Opens parts of one message, whose header it has checked. Holds that message's key only. A
/// clone is one reference count; threads may open chunks at the same time.
#[derive(Clone)]
pub struct Opener(Arc<MessageKey<Bulk>>);

impl Opener {
    /// Derives the message's key from its header and checks the commitment. Costs about 3 µs.
    ///
    /// # Errors
    /// [`OpenError::Commitment`].
    pub fn new(key: &InputKey, context: &[u8], header: &[u8; HEADER]) -> Result<Opener, OpenError> {
        Ok(Opener(Arc::new(checked_key(key, context, header)?)))
    }

    /// Opens the whole chunks `first_chunk..` that `cipher` holds and appends their plaintext to
    /// `out`. `ends_message` says that `cipher` ends with the message's last, shorter chunk.
    /// [`offsets::cipher_range`](super::offsets::cipher_range) computes all three.
    ///
    /// # Errors
    /// [`OpenError::BadLength`] of the cipher slice, [`OpenError::Chunk`]; `out` is as it was.
    pub fn open_chunks(
        &self,
        first_chunk: u64,
        cipher: &[u8],
        ends_message: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        self.0.open_chunks(first_chunk, cipher, ends_message, out)
    }

    /// [`Opener::open_chunks`] into a place that is exactly as long as their plaintext,
    /// [`offsets::plain_of_chunks`](super::offsets::plain_of_chunks). It holds zeros after an error.
    ///
    /// # Errors
    /// As [`Opener::open_chunks`].
    pub fn open_to(
        &self,
        first_chunk: u64,
        cipher: &[u8],
        ends_message: bool,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        self.0.open_to(first_chunk, cipher, ends_message, out)
    }
}

/// Seals one message piece by piece, for multipart uploads. The output of all calls, in order,
/// is the message. Lives in memory only: a broken-off message is begun again under a new salt.
pub struct Sealer {
    message: MessageKey<Bulk>,
    chunk: u64,
    /// Plaintext of the chunk being gathered, below [`CHUNK_PLAIN`] bytes.
    gathered: Zeroizing<Vec<u8>>,
}

impl Sealer {
    /// Begins a message under a fresh salt and appends its header to `out`.
    pub fn new(key: &InputKey, context: &[u8], out: &mut Vec<u8>) -> Sealer {
        let salt = fresh_salt();
        let (message, commitment) = MessageKey::derive(key, context, &salt);
        out.extend_from_slice(&salt);
        out.extend_from_slice(&commitment);
        Sealer { message, chunk: 0, gathered: Zeroizing::new(Vec::with_capacity(CHUNK_PLAIN)) }
    }

    /// Takes the next plaintext and appends every chunk it completes to `out`.
    pub fn push(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        let mut rest = plain;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(CHUNK_PLAIN - self.gathered.len()));
            rest = later;
            if now.len() == CHUNK_PLAIN {
                self.message.seal_append(self.chunk, now, out);
            } else {
                self.gathered.extend_from_slice(now);
                if self.gathered.len() < CHUNK_PLAIN {
                    return;
                }
                self.message.seal_append(self.chunk, &self.gathered, out);
                self.gathered.clear();
            }
            self.chunk += 1;
        }
    }

    /// Appends the last chunk, without which the message is truncated.
    pub fn finish(self, out: &mut Vec<u8>) {
        self.message.seal_append(self.chunk, &self.gathered, out);
    }
}

#[cfg(test)]
#[path = "cobblestone_tests.rs"]
mod tests;
