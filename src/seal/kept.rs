//! Slots whose seed something outside keeps: AWS KMS, or the owners of age keys (FORMAT.md
//! "Keyring").
//!
//! The seed is random; what is stored of it is what KMS made of it, or an age file. Owns the bytes of
//! both with their bounds. Pure: `stack/` asks KMS and opens the age file.

use zeroize::Zeroizing;

use super::derive::{KEY, fill_random};
use super::keyring_bytes::PARAMS_MAX;
use super::slots::SlotKind;

/// Bytes of what KMS makes of a seed, at most (AWS KMS API Reference, "Encrypt": CiphertextBlob).
pub const KMS_CIPHERTEXT_MAX: usize = 6144;
/// Bytes of the key ARN, region and endpoint of a slot, at most.
const ARN_MAX: usize = 2048;
const REGION_MAX: usize = 64;
const ENDPOINT_MAX: usize = 1024;

/// Recipients of one age slot, at most.
pub const AGE_RECIPIENTS_MAX: usize = 32;
/// Bytes of an age file at most: what the parameters of a slot have room for.
pub const AGE_FILE_MAX: usize = PARAMS_MAX - 256;
/// Stanzas of the header of an age file at most: one for each recipient, and some that mean nothing,
/// which age mixes in.
const AGE_STANZAS_MAX: usize = AGE_RECIPIENTS_MAX * 2;
/// Bytes after the header of an age file that holds a seed: nonce, seed, tag.
const AGE_PAYLOAD: usize = 16 + KEY + 16;

/// Why what a slot stores is not what its kind needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeptError(&'static str);

const fn bad<T>(why: &'static str) -> Result<T, KeptError> {
    Err(KeptError(why))
}

/// A new seed together with what its slot will store of it. Wiped when dropped.
pub struct Kept {
    kind: SlotKind,
    params: Vec<u8>,
    seed: Zeroizing<[u8; KEY]>,
}

impl Kept {
    /// A fresh seed from the operating system's random source.
    pub fn random_seed() -> Zeroizing<[u8; KEY]> {
        let mut seed = Zeroizing::new([0u8; KEY]);
        fill_random(&mut seed[..]);
        seed
    }

    /// A seed that KMS has encrypted.
    pub fn kms(seed: Zeroizing<[u8; KEY]>, slot: &KmsSlot) -> Kept {
        Kept { kind: SlotKind::Kms, params: slot.to_bytes(), seed }
    }

    /// A seed that is in an age file.
    pub fn age(seed: Zeroizing<[u8; KEY]>, slot: &AgeSlot) -> Kept {
        Kept { kind: SlotKind::Age, params: slot.to_bytes(), seed }
    }

    pub(super) fn kind(&self) -> SlotKind {
        self.kind
    }

    pub(super) fn params(&self) -> &[u8] {
        &self.params
    }

    pub(super) fn seed(&self) -> &[u8; KEY] {
        &self.seed
    }

    pub(super) fn duplicate(&self) -> Kept {
        Kept { kind: self.kind, params: self.params.clone(), seed: self.seed.clone() }
    }
}

/// What a KMS slot stores: which key to ask, where, and what to give it. None of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsSlot {
    /// The key's ARN, as KMS answered when the slot was made: an alias may move.
    key_arn: String,
    region: String,
    endpoint: String,
    ciphertext: Vec<u8>,
}

impl KmsSlot {
    /// A slot; `endpoint` is empty for AWS itself.
    ///
    /// # Errors
    /// What is too long, or is no text that goes into a request.
    pub fn new(
        key_arn: &str,
        region: &str,
        endpoint: &str,
        ciphertext: Vec<u8>,
    ) -> Result<KmsSlot, KeptError> {
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        if key_arn.is_empty() || key_arn.len() > ARN_MAX || !plain(key_arn) {
            return bad("the name of the KMS key is none");
        }
        if region.is_empty() || region.len() > REGION_MAX || !plain(region) {
            return bad("the region of the KMS key is none");
        }
        if endpoint.len() > ENDPOINT_MAX || !plain(endpoint) {
            return bad("the endpoint of the KMS key is none");
        }
        if ciphertext.is_empty() || ciphertext.len() > KMS_CIPHERTEXT_MAX {
            return bad("what KMS is to decrypt is empty or too long");
        }
        let (key_arn, region) = (key_arn.to_owned(), region.to_owned());
        Ok(KmsSlot { key_arn, region, endpoint: endpoint.to_owned(), ciphertext })
    }

    /// Reads the parameters of a slot.
    ///
    /// # Errors
    /// As [`KmsSlot::new`]; something is cut or follows.
    pub fn parse(params: &[u8]) -> Result<KmsSlot, KeptError> {
        let mut rest = params;
        let (key_arn, region) = (field(&mut rest)?, field(&mut rest)?);
        let (endpoint, ciphertext) = (field(&mut rest)?, field(&mut rest)?);
        if !rest.is_empty() {
            return bad("something follows the parameters of a KMS slot");
        }
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or("\n"); // which none of them holds
        KmsSlot::new(text(key_arn), text(region), text(endpoint), ciphertext.to_vec())
    }

    /// The parameters of a slot.
    pub fn to_bytes(&self) -> Vec<u8> {
        let fields = [self.key_arn.as_bytes(), self.region.as_bytes(), self.endpoint.as_bytes()];
        let mut out = Vec::new();
        fields.into_iter().chain([&self.ciphertext[..]]).for_each(|field| put(&mut out, field));
        out
    }

    /// The key's ARN.
    pub fn key_arn(&self) -> &str {
        &self.key_arn
    }

    /// The region that the key is in.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The server; `None`: AWS itself.
    pub fn endpoint(&self) -> Option<&str> {
        Some(&*self.endpoint).filter(|endpoint| !endpoint.is_empty())
    }

    /// What `kms:Decrypt` turns into the seed.
    pub fn ciphertext(&self) -> &[u8] {
        &self.ciphertext
    }
}

/// What an age slot stores: whom the seed was encrypted to, for people, and an age file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgeSlot {
    recipients: Vec<String>,
    file: Vec<u8>,
}

impl AgeSlot {
    /// A slot.
    ///
    /// # Errors
    /// No recipients, too many, or such that are no text; a file that [`AgeSlot::parse`] would
    /// refuse; too much of all that for a slot.
    pub fn new(recipients: &[String], file: Vec<u8>) -> Result<AgeSlot, KeptError> {
        if recipients.is_empty() || recipients.len() > AGE_RECIPIENTS_MAX {
            return bad("an age slot has 1 to 32 recipients");
        }
        let plain = |text: &String| {
            let mut bytes = text.bytes();
            !text.is_empty() && bytes.all(|b| b.is_ascii_graphic() || b == b' ')
        };
        if !recipients.iter().all(plain) {
            return bad("a recipient of an age slot is no text");
        }
        check_age_file(&file)?;
        let slot = AgeSlot { recipients: recipients.to_vec(), file };
        match slot.to_bytes().len() <= PARAMS_MAX {
            true => Ok(slot),
            false => bad("that many recipients do not fit in one slot"),
        }
    }

    /// Reads the parameters of a slot. An age file that would cost anything to look at is refused
    /// here: its header is read, and nothing of it is computed.
    ///
    /// # Errors
    /// As [`AgeSlot::new`]; something is cut or follows.
    pub fn parse(params: &[u8]) -> Result<AgeSlot, KeptError> {
        let mut rest = params;
        let (recipients, file) = (field(&mut rest)?, field(&mut rest)?);
        if !rest.is_empty() {
            return bad("something follows the parameters of an age slot");
        }
        let text = std::str::from_utf8(recipients).unwrap_or("");
        let recipients: Vec<String> =
            text.split('\n').take(AGE_RECIPIENTS_MAX + 1).map(str::to_owned).collect();
        AgeSlot::new(&recipients, file.to_vec())
    }

    /// The parameters of a slot.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.recipients.join("\n").as_bytes());
        put(&mut out, &self.file);
        out
    }

    /// Whom the seed was encrypted to.
    pub fn recipients(&self) -> &[String] {
        &self.recipients
    }

    /// The age file, whose header has been looked at.
    pub fn file(&self) -> &[u8] {
        &self.file
    }

    /// Whether each recipient is a plugin's: a token, a TPM.
    pub fn needs_hardware(&self) -> bool {
        self.recipients.iter().all(|recipient| plugin_of(recipient).is_some())
    }
}

/// The plugin that a recipient belongs to, by its name: `age1NAME1…`.
pub fn plugin_of(recipient: &str) -> Option<&str> {
    let (name, _) = recipient.strip_prefix("age1")?.rsplit_once('1')?;
    Some(name).filter(|name| !name.is_empty())
}

/// Looks at an age file as far as it can be read without a key (age-encryption.org/v1): version,
/// kinds and number of the stanzas, length of the payload. Passphrases (`scrypt`) are refused, since
/// their work factor is the writer's choice.
fn check_age_file(file: &[u8]) -> Result<(), KeptError> {
    const CUT: KeptError = KeptError("an age file is cut");
    if file.len() > AGE_FILE_MAX {
        return bad("that many recipients do not fit in one slot");
    }
    let mut rest = file
        .strip_prefix(b"age-encryption.org/v1\n")
        .ok_or(KeptError("what an age slot holds is no age file"))?;
    let mut stanzas = 0;
    loop {
        let end = rest.iter().position(|b| *b == b'\n').ok_or(CUT)?;
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        if line.starts_with(b"---") {
            break;
        }
        let Some(stanza) = line.strip_prefix(b"-> ") else { continue };
        // Whoever reads it by another rule might see another kind.
        if !stanza.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
            return bad("an age file has a stanza that is no text");
        }
        let kind = stanza.split(|b| *b == b' ').next().unwrap_or_default();
        if kind == b"scrypt" {
            return bad("an age file is for a passphrase, which no slot is made for");
        }
        stanzas += 1;
        if stanzas > AGE_STANZAS_MAX {
            return bad("an age file has more stanzas than a slot has recipients");
        }
    }
    match rest.len() == AGE_PAYLOAD && stanzas > 0 {
        true => Ok(()),
        false => bad("an age file does not hold a seed"),
    }
}

/// A field behind its length in two bytes.
fn field<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], KeptError> {
    const CUT: KeptError = KeptError("the parameters of a slot are cut");
    let (len, after) = rest.split_first_chunk::<2>().ok_or(CUT)?;
    let split = after.split_at_checked(usize::from(u16::from_be_bytes(*len)));
    let (field, after) = split.ok_or(CUT)?;
    *rest = after;
    Ok(field)
}

fn put(out: &mut Vec<u8>, field: &[u8]) {
    let len = u16::try_from(field.len()).expect("fields are below PARAMS_MAX");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age_file(header: &str, payload: usize) -> Vec<u8> {
        let mut file = format!("age-encryption.org/v1\n{header}--- mac\n").into_bytes();
        file.resize(file.len() + payload, 7);
        file
    }

    #[test]
    fn parameters_read_back_and_nothing_may_follow_or_be_cut() {
        // Guards against two readings of one slot, and a panic on one that was cut.
        let kms = KmsSlot::new("arn:aws:kms:eu-1:1:key/a", "eu-1", "", vec![1; 200]).expect("fits");
        let recipients = ["age1xyz".to_owned(), "ssh-ed25519 AAAA".to_owned()];
        let file = age_file("-> X25519 a\nbody\n-> x-grease\n\n", 64);
        let age = AgeSlot::new(&recipients, file).expect("fits");
        assert_eq!(KmsSlot::parse(&kms.to_bytes()), Ok(kms.clone()));
        assert_eq!(AgeSlot::parse(&age.to_bytes()), Ok(age.clone()));
        for bytes in [kms.to_bytes(), age.to_bytes()] {
            for len in 0..bytes.len() {
                assert!(KmsSlot::parse(&bytes[..len]).is_err());
                assert!(AgeSlot::parse(&bytes[..len]).is_err());
            }
            let more = [&bytes[..], b"x"].concat();
            assert!(KmsSlot::parse(&more).is_err() && AgeSlot::parse(&more).is_err());
        }
        for (arn, region, endpoint) in
            [("", "r", ""), ("a\n", "r", ""), ("a", "", ""), ("a", "r", "http://a b")]
        {
            assert!(KmsSlot::new(arn, region, endpoint, vec![1]).is_err(), "{arn:?} {region:?}");
        }
        assert!(KmsSlot::new("a", "r", "", vec![1; KMS_CIPHERTEXT_MAX + 1]).is_err());
    }

    #[test]
    fn an_age_file_that_costs_anything_is_refused_unopened() {
        // Guards against a bucket that makes every mount compute scrypt for hours, or try
        // thousands of stanzas.
        let one = ["age1xyz".to_owned()];
        let refused = |file| AgeSlot::new(&one, file).expect_err("refused").to_string();
        let scrypt = age_file("-> scrypt c2FsdA 63\nbody\n", 64);
        assert!(refused(scrypt).contains("passphrase"));
        let second = age_file("-> X25519 a\nbody\n-> scrypt c2FsdA 63\nbody\n", 64);
        assert!(refused(second).contains("passphrase"));
        let hidden = age_file("-> scrypt\0 c2FsdA 63\nbody\n", 64);
        assert!(refused(hidden).contains("no text"));
        let many = age_file(&"-> X25519 a\nb\n".repeat(AGE_STANZAS_MAX + 1), 64);
        assert!(refused(many).contains("stanzas"));
        let payloads = [63, 65, 10_000].map(|len| age_file("-> X25519 a\nb\n", len));
        for file in payloads.into_iter().chain([age_file("", 64), b"age".to_vec()]) {
            refused(file);
        }
        assert!(AgeSlot::new(&[], age_file("-> X25519 a\nb\n", 64)).is_err());
    }

    #[test]
    fn plugins_are_told_by_the_recipient() {
        // Guards against a slot that only a token opens being counted as one that needs none.
        assert_eq!(plugin_of("age1yubikey1qwerty"), Some("yubikey"));
        assert_eq!(
            plugin_of("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"),
            None
        );
        assert_eq!(plugin_of("ssh-ed25519 AAAA1"), None);
    }
}
