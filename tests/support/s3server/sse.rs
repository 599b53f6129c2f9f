//! Server-side encryption as the in-memory server plays it: nothing is encrypted, but every rule
//! is enforced and every answer says what AWS would say, unless it is told to lie.

use base64::{Engine, engine::general_purpose::STANDARD};
use md5::{Digest, Md5};
use s3s::dto::ServerSideEncryption;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

const KEY_ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/";

/// How honest the server is.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// What it does with encryption headers.
    pub sse: SseConduct,
    /// Overwrites in spite of `If-None-Match: *`.
    pub ignores_if_none_match: bool,
    /// Overwrites in spite of `If-Match`.
    pub ignores_if_match: bool,
    /// Answers 501 to DeleteObjects.
    pub no_delete_objects: bool,
    /// Answers GETs of ranges with the whole object.
    pub ignores_ranges: bool,
    /// Says of requests without encryption headers that it applied this (as AWS does: AES256).
    pub bucket_default: Option<String>,
    /// How often every alias was pointed at another key.
    pub alias_moves: u32,
    /// Modes (`customer`, `AES256`, …, `default`) whose writes are answered 403, as by a policy.
    pub refuses: Vec<&'static str>,
    /// Answers writes with KMS with this error code.
    pub kms_error: Option<&'static str>,
    /// Whether it does UpdateObjectEncryption or refuses it; `None`: it has never heard of it, and
    /// takes it for a PutObject.
    pub updates_in_place: Option<bool>,
    /// The rule of the bucket's default encryption, as PutBucketEncryption sends it; `None` if the
    /// server has no such setting.
    pub bucket_rule: Option<String>,
    /// Does not repeat checksums; its ETags are no MD5.
    pub no_checksums: bool,
    /// Answers about objects have no ETags.
    pub no_e_tags: bool,
    /// Answers 501 to writes with a condition.
    pub no_conditions: bool,
    /// Answers 403 to deletes.
    pub denies_deletes: bool,
    /// Answers 403 to everything.
    pub denies_all: bool,
    /// Answers 403 to writes.
    pub denies_writes: bool,
    /// The place that CreateBucket has to name (`Some("")`: none); `None`: it is not implemented.
    pub place: Option<&'static str>,
    /// The bodies of CreateBucket so far.
    pub created_with: Vec<String>,
    /// Stores everything in its standard class, whatever is asked for.
    pub ignores_storage_class: bool,
    /// Answers 400 to this storage class.
    pub refuses_storage_class: Option<&'static str>,
    /// An access key that is no longer good, and how requests with it are answered.
    pub revoked: Option<(&'static str, u16, &'static str)>,
    /// Answers 403 to requests without the session token of their key, `session-of-KEY`.
    pub wants_session_tokens: bool,
}

/// What the server does with encryption headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SseConduct {
    /// Enforces and answers as AWS does.
    #[default]
    Honest,
    /// Stores the object and says nothing about encryption.
    Ignores,
    /// Says that it applied this algorithm, whatever was asked.
    Claims(String),
    /// Applies another KMS key (or claims another customer key) than was asked for.
    OtherKey,
}

/// How an object was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredSse {
    pub algorithm: Option<String>,
    pub kms_key: Option<String>,
    pub context: Option<String>,
    pub bucket_key: Option<bool>,
    /// Base64 MD5 of the customer key, without which the object cannot be read.
    pub customer_md5: Option<String>,
}

/// The encryption headers of a request.
#[derive(Clone, Debug, Default)]
pub struct AskedSse {
    pub algorithm: Option<ServerSideEncryption>,
    pub kms_key: Option<String>,
    pub context: Option<String>,
    pub bucket_key: Option<bool>,
    pub customer_algorithm: Option<String>,
    pub customer_key: Option<String>,
    pub customer_md5: Option<String>,
}

impl AskedSse {
    /// What an honest server stores for this request, or why it refuses.
    pub fn resolve(self, behaviour: &Behaviour) -> S3Result<StoredSse> {
        let customer = customer_key(
            self.customer_algorithm.as_deref(),
            self.customer_key.as_deref(),
            self.customer_md5.as_deref(),
        )?;
        let algorithm = self.algorithm.as_ref().map(|a| a.as_str().to_owned());
        if customer.is_some() && algorithm.is_some() {
            return Err(s3_error!(InvalidArgument, "SSE-C together with another encryption"));
        }
        let is_kms = matches!(algorithm.as_deref(), Some("aws:kms" | "aws:kms:dsse"));
        if !is_kms && (self.kms_key.is_some() || self.context.is_some()) {
            return Err(s3_error!(InvalidArgument, "KMS headers without a KMS mode"));
        }
        match algorithm.as_deref() {
            None | Some("AES256" | "aws:kms" | "aws:kms:dsse") => {}
            Some(_) => return Err(s3_error!(InvalidArgument, "unknown encryption")),
        }
        let mode = match &customer {
            Some(_) => "customer",
            None => algorithm.as_deref().unwrap_or("default"),
        };
        let blocks = |rule: &String| rule.contains("<EncryptionType>SSE-C</EncryptionType>");
        let is_blocked = customer.is_some() && behaviour.bucket_rule.as_ref().is_some_and(blocks);
        if is_blocked || behaviour.refuses.contains(&mode) {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        if let Some(code) = behaviour.kms_error.filter(|_| is_kms) {
            let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), "no key");
            error.set_status_code(hyper::StatusCode::BAD_REQUEST);
            return Err(error);
        }
        if let Some(context) = &self.context {
            let json = STANDARD.decode(context).ok();
            let parsed = json.and_then(|j| serde_json::from_slice::<serde_json::Value>(&j).ok());
            if !parsed.is_some_and(|v| v.is_object()) {
                return Err(s3_error!(InvalidArgument, "the context is not base64 of JSON"));
            }
        }
        let moves = behaviour.alias_moves;
        let kms_key = is_kms.then(|| key_arn(self.kms_key.as_deref().unwrap_or("aws-s3"), moves));
        let applied = customer.is_none().then(|| behaviour.bucket_default.clone()).flatten();
        Ok(StoredSse {
            algorithm: algorithm.or(applied),
            kms_key,
            context: self.context,
            bucket_key: self.bucket_key.filter(|_| is_kms),
            customer_md5: customer,
        })
    }
}

impl StoredSse {
    /// What is said about it: the truth, unless the conduct is to lie.
    pub fn told(&self, conduct: &SseConduct) -> StoredSse {
        match conduct {
            SseConduct::Honest => self.clone(),
            SseConduct::Ignores => StoredSse::default(),
            SseConduct::Claims(algorithm) => {
                let kms_key = algorithm.starts_with("aws:kms").then(|| key_arn("claimed", 0));
                let algorithm = Some(algorithm.clone());
                StoredSse { algorithm, kms_key, ..StoredSse::default() }
            }
            SseConduct::OtherKey => StoredSse {
                kms_key: self.kms_key.as_ref().map(|_| key_arn("another-key", 0)),
                customer_md5: self.customer_md5.as_ref().map(|_| STANDARD.encode([0; 16])),
                ..self.clone()
            },
        }
    }

    /// Demands the customer key the object was stored with, and refuses one it was not.
    pub fn demand(
        &self,
        algorithm: Option<&str>,
        key: Option<&str>,
        md5: Option<&str>,
    ) -> S3Result<()> {
        match (&self.customer_md5, customer_key(algorithm, key, md5)?) {
            (None, None) => Ok(()),
            (Some(stored), Some(given)) if *stored == given => Ok(()),
            (Some(_), Some(_)) => Err(s3_error!(AccessDenied, "another customer key")),
            (Some(_), None) => Err(s3_error!(
                InvalidRequest,
                "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object."
            )),
            (None, Some(_)) => Err(s3_error!(
                InvalidRequest,
                "The encryption parameters are not applicable to this object."
            )),
        }
    }
}

/// The MD5 of a customer key whose three headers agree; `None` if there are none.
fn customer_key(
    algorithm: Option<&str>,
    key: Option<&str>,
    md5: Option<&str>,
) -> Result<Option<String>, S3Error> {
    match (algorithm, key, md5) {
        (None, None, None) => Ok(None),
        (Some("AES256"), Some(key), Some(md5)) => {
            let bytes = STANDARD.decode(key).ok().filter(|b| b.len() == 32);
            let bytes = bytes.ok_or_else(|| s3_error!(InvalidArgument, "not a 256-bit key"))?;
            if STANDARD.encode(Md5::digest(&bytes)) != md5 {
                return Err(s3_error!(InvalidArgument, "the MD5 is not the key's"));
            }
            Ok(Some(md5.to_owned()))
        }
        _ => Err(s3_error!(InvalidArgument, "incomplete customer key headers")),
    }
}

/// The ARN a key is answered as: aliases become keys, bare ids become ARNs.
fn key_arn(asked: &str, alias_moves: u32) -> String {
    let name = asked.rsplit_once(':').map_or(asked, |(_, name)| name);
    match name.strip_prefix("alias/") {
        Some(alias) => format!("{KEY_ARN}{alias}-{alias_moves}"),
        None => format!("{KEY_ARN}{}", name.strip_prefix("key/").unwrap_or(name)),
    }
}
