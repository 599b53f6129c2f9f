//! The formats of the Amazon S3 Encryption Client: one object a file, sealed under a data key that
//! AWS KMS, an AES key or an RSA key wraps.
//!
//! Owns what those formats are: envelopes in metadata and instruction files, wraps, the derivation and
//! commitment of version 3, the contents in a stream of bounded memory. Makes no request but those to
//! KMS, and no file. Reads versions 1 (only if asked), 2 and 3; writes 2 and 3. `docs/EXCHANGE.md` says
//! what of it is whose word. Called by `stack/` and `cli/`.

mod derive;
mod envelope;
mod error;
mod gcm;
mod keys;
mod oaep;
mod open;
mod pem;
mod seal;
mod text;
mod wrap;

pub use envelope::{
    Content, Envelope, EnvelopePlace, Format, INSTRUCTION_MAX, INSTRUCTION_SUFFIX,
    INSTRUCTION_SUFFIX_DOTNET, Metadata, Recognised, Wrap, is_instruction_marker, is_own_key,
    recognise,
};
pub use error::{S3ecError, S3ecErrorKind};
pub use gcm::PLAIN_MAX;
pub use keys::{AesKey, Keys, KmsByName, KmsKey, RsaPrivate, RsaPublic};
pub use open::{ContextRule, OpenRules, Unlocked, Unverified, Verified, Verifier};
pub use seal::{SealFormat, SealRules, Sealing, cipher_len, seal};
pub use wrap::{RESERVED_ALGORITHM, RESERVED_KEY_ID, WrapWith};

#[cfg(test)]
mod s3ec_tests;
