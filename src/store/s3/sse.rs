//! Server-side encryption: what is asked of the bucket, and whether the answer says the same.
//!
//! Owns the modes, the customer key and the comparison. Names no S3 client type and does no I/O;
//! `write.rs` and `read.rs` put the mode on requests and hand the answers back here.
//!
//! Source: S3 User Guide, "Protecting data with server-side encryption".

use crate::base::{counted, hex};
use base64::{Engine, engine::general_purpose::STANDARD};
use md5::{Digest, Md5};
use parking_lot::Mutex;
use sha2::Sha256;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use zeroize::Zeroizing;

/// Value of `x-amz-server-side-encryption` for SSE-S3, and the only algorithm of SSE-C.
pub const AES256: &str = "AES256";
/// Value of `x-amz-server-side-encryption` for SSE-KMS.
pub const AWS_KMS: &str = "aws:kms";
/// Value of `x-amz-server-side-encryption` for DSSE-KMS.
pub const AWS_KMS_DSSE: &str = "aws:kms:dsse";

/// The modes without what belongs to them: one table of their names, for flags, reports and the
/// configuration of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SseKind {
    /// Nothing is asked.
    Default,
    /// SSE-S3.
    S3,
    /// SSE-KMS.
    Kms,
    /// DSSE-KMS.
    Dsse,
    /// SSE-C.
    Customer,
}

impl SseKind {
    /// All of them, as help shows them.
    pub const ALL: [SseKind; 5] =
        [SseKind::Default, SseKind::S3, SseKind::Kms, SseKind::Dsse, SseKind::Customer];

    /// As it is typed and remembered.
    pub fn name(self) -> &'static str {
        match self {
            SseKind::Default => "default",
            SseKind::S3 => AES256,
            SseKind::Kms => AWS_KMS,
            SseKind::Dsse => AWS_KMS_DSSE,
            SseKind::Customer => "customer",
        }
    }

    /// The mode of this name.
    pub fn of_name(name: &str) -> Option<SseKind> {
        SseKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The server-side encryption of one mount. The same for every object it writes. `K` is the customer
/// key; of the mode that a volume remembers only its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SseMode<K = SecretKey32> {
    /// Nothing is asked; the bucket's default applies. What it was is recorded for `status`.
    #[default]
    Default,
    /// SSE-S3: `AES256` with keys of the service.
    S3,
    /// SSE-KMS.
    Kms {
        /// Key id, key ARN, alias or alias ARN; `None` is the account's `aws/s3` key.
        key_id: Option<String>,
        /// Encryption context, bound to the data key; empty sends none.
        context: BTreeMap<String, String>,
        /// S3 bucket key on or off; `None` leaves it to the bucket.
        bucket_key: Option<bool>,
    },
    /// DSSE-KMS: two layers. Bucket keys do not exist for it.
    Dsse {
        /// As in [`SseMode::Kms`].
        key_id: Option<String>,
        /// As in [`SseMode::Kms`].
        context: BTreeMap<String, String>,
    },
    /// SSE-C: every request that touches contents carries this key.
    Customer {
        /// The key.
        key: K,
    },
}

/// A 256-bit customer key with the two encodings that the headers carry. Wiped when the last
/// clone is dropped; the S3 client makes copies in request headers that are not.
#[derive(Clone)]
pub struct SecretKey32 {
    base64: Zeroizing<String>,
    md5_base64: String,
    id: String,
}

impl SecretKey32 {
    /// Takes the 32 key bytes.
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> SecretKey32 {
        SecretKey32 {
            base64: Zeroizing::new(STANDARD.encode(&bytes[..])),
            md5_base64: STANDARD.encode(Md5::digest(&bytes[..])),
            id: key_id(&bytes),
        }
    }

    /// What the volume remembers of the key: 16 hex digits of a hash, from which a key of 256
    /// random bits cannot be found (FORMAT.md "Configuration").
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key as `x-amz-server-side-encryption-customer-key` carries it.
    pub(super) fn base64(&self) -> &str {
        &self.base64
    }

    /// The base64 MD5 of the key, by which the service names it in answers. Not a secret.
    pub fn md5_base64(&self) -> &str {
        &self.md5_base64
    }
}

fn key_id(bytes: &[u8; 32]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"sealfs sse-c key id");
    hash.update(bytes);
    hex(&hash.finalize()[..8])
}

impl PartialEq for SecretKey32 {
    fn eq(&self, other: &SecretKey32) -> bool {
        self.id == other.id && self.md5_base64 == other.md5_base64
    }
}

impl fmt::Debug for SecretKey32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey32(32 bytes)")
    }
}

impl Eq for SecretKey32 {}

impl<K> SseMode<K> {
    /// Which mode it is.
    pub fn kind(&self) -> SseKind {
        match self {
            SseMode::Default => SseKind::Default,
            SseMode::S3 => SseKind::S3,
            SseMode::Kms { .. } => SseKind::Kms,
            SseMode::Dsse { .. } => SseKind::Dsse,
            SseMode::Customer { .. } => SseKind::Customer,
        }
    }

    /// As `--sse` names it.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// The same mode with what `key` gives for a customer key.
    ///
    /// # Errors
    /// Those of `key`.
    pub fn with_key<L, E>(self, key: impl FnOnce(K) -> Result<L, E>) -> Result<SseMode<L>, E> {
        Ok(match self {
            SseMode::Default => SseMode::Default,
            SseMode::S3 => SseMode::S3,
            SseMode::Kms { key_id, context, bucket_key } => {
                SseMode::Kms { key_id, context, bucket_key }
            }
            SseMode::Dsse { key_id, context } => SseMode::Dsse { key_id, context },
            SseMode::Customer { key: of } => SseMode::Customer { key: key(of)? },
        })
    }
}

impl SseMode {
    /// Value of `x-amz-server-side-encryption`, or `None` where the header is not sent.
    pub fn algorithm(&self) -> Option<&'static str> {
        match self {
            SseMode::Default | SseMode::Customer { .. } => None,
            SseMode::S3 => Some(AES256),
            SseMode::Kms { .. } => Some(AWS_KMS),
            SseMode::Dsse { .. } => Some(AWS_KMS_DSSE),
        }
    }

    /// The mode as a volume remembers it: a customer key by its id.
    pub fn remembered(&self) -> SseMode<String> {
        let Ok(mode) = self.clone().with_key(|key| Ok::<_, Infallible>(key.id().to_owned()));
        mode
    }

    /// The first thing in which an object that is described as `applied` is not in this mode;
    /// `None` if it is. `key`: the key that an alias stands for, learnt from the first object.
    pub fn unlike(&self, applied: &Applied, key: &mut Option<String>) -> Option<String> {
        difference(self, Answer::Whole, applied, key).err()
    }

    /// The KMS key asked for, in the form it was given.
    pub fn key_id(&self) -> Option<&str> {
        match self {
            SseMode::Kms { key_id, .. } | SseMode::Dsse { key_id, .. } => key_id.as_deref(),
            _ => None,
        }
    }

    /// The encryption context as its header carries it: base64 of a JSON object of strings.
    pub(super) fn context_header(&self) -> Option<String> {
        match self {
            SseMode::Kms { context, .. } | SseMode::Dsse { context, .. } if !context.is_empty() => {
                let json = serde_json::to_vec(context).expect("a map of strings is valid JSON");
                Some(STANDARD.encode(json))
            }
            _ => None,
        }
    }

    /// The bucket-key flag to send.
    pub(super) fn bucket_key(&self) -> Option<bool> {
        match self {
            SseMode::Kms { bucket_key, .. } => *bucket_key,
            _ => None,
        }
    }

    /// The customer key, when the mode has one.
    pub fn customer_key(&self) -> Option<&SecretKey32> {
        match self {
            SseMode::Customer { key } => Some(key),
            _ => None,
        }
    }
}

impl fmt::Display for SseMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, key, context, bucket_key) = match self {
            SseMode::Default => return f.write_str("the bucket's default"),
            SseMode::S3 => return f.write_str(AES256),
            SseMode::Customer { key } => {
                return write!(f, "a customer key ({})", key.id);
            }
            SseMode::Kms { key_id, context, bucket_key } => (AWS_KMS, key_id, context, *bucket_key),
            SseMode::Dsse { key_id, context } => (AWS_KMS_DSSE, key_id, context, None),
        };
        f.write_str(name)?;
        if let Some(key) = key {
            write!(f, ", key {key}")?;
        }
        if !context.is_empty() {
            write!(f, ", a context of {}", counted(context.len() as u64, "pair"))?;
        }
        match bucket_key {
            Some(true) => f.write_str(", with a bucket key"),
            Some(false) => f.write_str(", without a bucket key"),
            None => Ok(()),
        }
    }
}

/// What an answer says was applied: the values of its encryption headers, absent ones `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// `x-amz-server-side-encryption`.
    pub algorithm: Option<String>,
    /// `x-amz-server-side-encryption-aws-kms-key-id`.
    pub kms_key_id: Option<String>,
    /// `x-amz-server-side-encryption-context`, base64 of JSON.
    pub kms_context: Option<String>,
    /// `x-amz-server-side-encryption-bucket-key-enabled`.
    pub bucket_key: Option<bool>,
    /// `x-amz-server-side-encryption-customer-algorithm`.
    pub customer_algorithm: Option<String>,
    /// `x-amz-server-side-encryption-customer-key-MD5`.
    pub customer_key_md5: Option<String>,
}

impl Applied {
    /// The mode as `--sse` names it; `none` for no encryption.
    pub fn mode_name(&self) -> &str {
        match (&self.algorithm, &self.customer_algorithm, &self.customer_key_md5) {
            (Some(algorithm), _, _) => algorithm,
            (None, None, None) => "none",
            _ => SseKind::Customer.name(),
        }
    }

    /// Whether the answer says nothing about encryption.
    pub fn is_silent(&self) -> bool {
        *self == Applied::default()
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.algorithm, &self.customer_algorithm) {
            (None, None) => return f.write_str("no server-side encryption"),
            (Some(a), _) => f.write_str(a)?,
            (None, Some(a)) => write!(f, "a customer key ({a})")?,
        }
        if let Some(key) = &self.kms_key_id {
            write!(f, ", key {key}")?;
        }
        if let Some(md5) = &self.customer_key_md5 {
            write!(f, ", key md5 {md5}")?;
        }
        if self.bucket_key == Some(true) {
            f.write_str(", with a bucket key")?;
        }
        Ok(())
    }
}

/// Which call is answered: some answers say less than others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// PutObject, CopyObject: says everything that was applied.
    Whole,
    /// CreateMultipartUpload, which says everything but, on some servers (moto), whether a bucket
    /// key is used: that costs money, it protects nothing, and PutObject in the same mode says it.
    Begun,
    /// UploadPart, CompleteMultipartUpload: silence is accepted, because the create of the same
    /// upload has been compared; anything it does say must agree.
    Part,
}

/// The server applied another mode than was asked for.
#[derive(Debug, thiserror::Error)]
#[error("asked for {asked}, the server applied {applied}: {difference}")]
pub struct SseMismatch {
    asked: String,
    applied: String,
    difference: String,
}

/// Compares answers with the mode of the mount, and remembers what was applied last.
///
/// An alias cannot be compared with the key ARN that answers carry, short of asking KMS: the ARN
/// of the first answer is pinned and every later answer must name it again. An alias that is
/// pointed at another key while mounted is therefore reported, and accepted by the next mount.
#[derive(Debug, Default)]
pub struct SseCheck {
    mode: SseMode,
    pinned_key: Mutex<Option<String>>,
    last: Mutex<Option<Applied>>,
}

impl SseCheck {
    /// A check of answers against `mode`.
    pub fn new(mode: SseMode) -> SseCheck {
        SseCheck { mode, pinned_key: Mutex::new(None), last: Mutex::new(None) }
    }

    /// The mode asked for.
    pub fn mode(&self) -> &SseMode {
        &self.mode
    }

    /// What the last answer that said anything said; `None` before the first.
    pub fn last_applied(&self) -> Option<Applied> {
        self.last.lock().clone()
    }

    /// Compares one answer. Errors: [`SseMismatch`] with both sides and the first difference.
    pub fn check(&self, answer: Answer, applied: Applied) -> Result<(), SseMismatch> {
        let silent = applied.is_silent();
        let verdict = if silent && answer == Answer::Part {
            Ok(())
        } else {
            difference(&self.mode, answer, &applied, &mut self.pinned_key.lock())
        };
        let verdict = verdict.map_err(|difference| SseMismatch {
            asked: self.mode.to_string(),
            applied: applied.to_string(),
            difference,
        });
        if !silent || answer != Answer::Part {
            *self.last.lock() = Some(applied);
        }
        verdict
    }
}

/// The first thing in which `applied` is not `mode`.
fn difference(
    mode: &SseMode,
    answer: Answer,
    applied: &Applied,
    pinned: &mut Option<String>,
) -> Result<(), String> {
    match mode {
        SseMode::Default => Ok(()),
        SseMode::S3 => same_algorithm(AES256, applied),
        SseMode::Kms { key_id, context, bucket_key } => {
            same_algorithm(AWS_KMS, applied)?;
            same_key(key_id.as_deref(), answer, applied, pinned)?;
            same_context(context, applied)?;
            same_bucket_key(*bucket_key, answer, applied)
        }
        SseMode::Dsse { key_id, context } => {
            same_algorithm(AWS_KMS_DSSE, applied)?;
            same_key(key_id.as_deref(), answer, applied, pinned)?;
            same_context(context, applied)
        }
        SseMode::Customer { key } => same_customer_key(key, applied),
    }
}

fn same_algorithm(asked: &str, applied: &Applied) -> Result<(), String> {
    if applied.customer_algorithm.is_some() {
        return Err("the answer names a customer key".into());
    }
    match applied.algorithm.as_deref() {
        Some(a) if a == asked => Ok(()),
        Some(_) => Err("the algorithm differs".into()),
        None => Err("the answer names no algorithm".into()),
    }
}

fn same_key(
    asked: Option<&str>,
    answer: Answer,
    applied: &Applied,
    pinned: &mut Option<String>,
) -> Result<(), String> {
    let Some(asked) = asked else { return Ok(()) };
    let Some(answered) = applied.kms_key_id.as_deref() else {
        return match answer {
            Answer::Whole | Answer::Begun => Err("the answer names no key".into()),
            Answer::Part => Ok(()),
        };
    };
    match compare_keys(asked, answered) {
        KeyMatch::Same => Ok(()),
        KeyMatch::Different => Err("the key differs".into()),
        KeyMatch::Alias => match pinned {
            None => {
                *pinned = Some(answered.to_owned());
                Ok(())
            }
            Some(first) if compare_keys(first, answered) == KeyMatch::Same => Ok(()),
            Some(first) => Err(format!("the alias stood for key {first} before")),
        },
    }
}

/// How an asked-for KMS key relates to the one an answer names.
#[derive(Debug, PartialEq, Eq)]
enum KeyMatch {
    Same,
    Different,
    /// Asked by alias, answered by key: cannot be compared by name.
    Alias,
}

fn compare_keys(asked: &str, answered: &str) -> KeyMatch {
    if asked == answered {
        return KeyMatch::Same;
    }
    let (asked_arn, answered_arn) = (Arn::parse(asked), Arn::parse(answered));
    let asked_name = asked_arn.as_ref().map_or(asked, |a| a.resource);
    let answered_name = answered_arn.as_ref().map_or(answered, |a| a.resource);
    // Two ARNs of different accounts or regions are different keys whatever their last part.
    if let (Some(a), Some(b)) = (&asked_arn, &answered_arn)
        && a.place != b.place
    {
        return KeyMatch::Different;
    }
    let (asked_is_alias, answered_is_alias) =
        (asked_name.starts_with("alias/"), answered_name.starts_with("alias/"));
    match (asked_is_alias, answered_is_alias) {
        (true, false) => KeyMatch::Alias,
        (false, true) => KeyMatch::Different,
        _ if bare_key(asked_name) == bare_key(answered_name) => KeyMatch::Same,
        _ => KeyMatch::Different,
    }
}

fn bare_key(resource: &str) -> &str {
    resource.strip_prefix("key/").unwrap_or(resource)
}

/// `arn:partition:kms:region:account:resource`, or the short `arn:aws:kms:name` of MinIO.
struct Arn<'a> {
    place: Option<&'a str>,
    resource: &'a str,
}

impl<'a> Arn<'a> {
    fn parse(text: &'a str) -> Option<Arn<'a>> {
        let rest = text.strip_prefix("arn:")?;
        let (_partition, rest) = rest.split_once(':')?;
        let rest = rest.strip_prefix("kms:")?;
        let Some((region, after)) = rest.split_once(':') else {
            return Some(Arn { place: None, resource: rest });
        };
        let (account, resource) = after.split_once(':')?;
        let place = &rest[..region.len() + 1 + account.len()];
        Some(Arn { place: Some(place), resource })
    }
}

/// Every pair asked for must be in the context the answer names; it may name more, because S3
/// adds the bucket's ARN. An answer without the header is accepted: most servers never send it.
fn same_context(asked: &BTreeMap<String, String>, applied: &Applied) -> Result<(), String> {
    let Some(header) = &applied.kms_context else { return Ok(()) };
    let answered: BTreeMap<String, String> = STANDARD
        .decode(header)
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .ok_or("the encryption context of the answer is not base64 of a JSON object")?;
    match asked.iter().all(|(k, v)| answered.get(k) == Some(v)) {
        true => Ok(()),
        false => Err("the encryption context differs".into()),
    }
}

fn same_bucket_key(asked: Option<bool>, answer: Answer, applied: &Applied) -> Result<(), String> {
    match (asked, applied.bucket_key) {
        (None, _) | (Some(false), None | Some(false)) | (Some(true), Some(true)) => Ok(()),
        (Some(true), None) if answer != Answer::Whole => Ok(()),
        (Some(true), _) => Err("the bucket key was not used".into()),
        (Some(false), Some(true)) => Err("a bucket key was used".into()),
    }
}

fn same_customer_key(key: &SecretKey32, applied: &Applied) -> Result<(), String> {
    match (applied.customer_algorithm.as_deref(), applied.customer_key_md5.as_deref()) {
        (Some(AES256), Some(md5)) if md5 == key.md5_base64 => Ok(()),
        (Some(AES256), Some(md5)) => {
            Err(format!("the key differs: its md5 is {md5}, not {}", key.md5_base64))
        }
        (Some(_), _) => Err("the algorithm differs".into()),
        // Ceph and Garage answer the parts of an SSE-C upload with the MD5 alone.
        (None, Some(md5)) if md5 == key.md5_base64 => Ok(()),
        (None, _) => Err("the answer names no customer key".into()),
    }
}

#[cfg(test)]
#[path = "sse_tests.rs"]
mod tests;
