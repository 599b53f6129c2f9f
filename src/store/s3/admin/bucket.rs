//! The settings of a bucket: read by `doctor`, and set by `doctor --fix` and `init
//! --create-bucket`; and what of them makes the server refuse a mode of encryption.
//!
//! One request per call. A setting that cannot be read says why, which is an answer too.

use crate::store::error::{ErrorClass, class, sentence};
use crate::store::s3::S3Store;
use crate::store::s3::client::ca_bundle;
use crate::store::s3::errors::{Condition, from_sdk, own};
use crate::store::s3::refusal::{NO_CONDITIONS, UNBLOCK_SSE_C, USE_CONDITIONS};
use crate::store::s3::sse::{self, SseMode};
use crate::store::s3::tls::negotiated;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::create_bucket::CreateBucketError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::{
    BlockedEncryptionTypes, BucketLocationConstraint, CreateBucketConfiguration, EncryptionType,
    PublicAccessBlockConfiguration, ServerSideEncryption, ServerSideEncryptionByDefault,
    ServerSideEncryptionConfiguration, ServerSideEncryptionRule,
};
use object_store::Result;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use url::Url;

/// A setting as the server tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting<T> {
    /// It is set to this.
    Is(T),
    /// It is not set.
    Absent,
    /// These credentials may not read it; the answer.
    Denied(String),
    /// This server does not know it.
    Unknown,
    /// The question failed; the sentence.
    Failed(String),
}

/// The default encryption of a bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultEncryption {
    /// `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub algorithm: String,
    /// The KMS key, where one is named.
    pub kms_key: Option<String>,
    /// Whether bucket keys are on.
    pub bucket_key: bool,
    /// Whether writes with SSE-C are blocked; `None` where the answer does not say.
    pub blocks_customer: Option<bool>,
}

impl fmt::Display for DefaultEncryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.algorithm)?;
        if let Some(key) = &self.kms_key {
            write!(f, ", key {key}")?;
        }
        if self.bucket_key {
            f.write_str(", with bucket keys")?;
        }
        Ok(())
    }
}

/// What is in the way of a write, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// A sentence.
    pub why: String,
    /// The next command or setting.
    pub next: String,
}

/// How a request to the server went.
#[derive(Debug)]
pub struct Ping {
    /// What it said.
    pub outcome: Result<()>,
    /// Time from request to answer.
    pub took: Duration,
    /// The server's clock minus this machine's, in seconds; `None` if it sends no date.
    pub clock_skew_secs: Option<i64>,
    /// Host and port that the request went to.
    pub server: Option<(String, u16)>,
}

/// The setting out of an answer; `absent` are the codes that say it is not set.
pub(super) fn setting<T, O, E>(
    answer: std::result::Result<O, SdkError<E, HttpResponse>>,
    what: &'static str,
    absent: &[&str],
    read: impl FnOnce(O) -> Option<T>,
) -> Setting<T>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let error = match answer {
        Ok(output) => return read(output).map_or(Setting::Absent, Setting::Is),
        Err(error) => error,
    };
    let code = error.code().unwrap_or_default().to_owned();
    let status = error.raw_response().map(|r| r.status().as_u16());
    let failed = |error| Setting::Failed(sentence(&from_sdk(error, "get", what, Condition::None)));
    if absent.contains(&code.as_str()) {
        return Setting::Absent;
    }
    match status {
        _ if code == "NoSuchBucket" => failed(error),
        // An answer without the setting in it is how some servers say that they have none; others
        // take the question for a wrong one, or for one about an object.
        Some(200 | 400 | 404 | 405 | 406 | 501) => Setting::Unknown,
        _ if matches!(code.as_str(), "NotImplemented" | "MethodNotAllowed") => Setting::Unknown,
        Some(401 | 403) => Setting::Denied(code),
        _ => failed(error),
    }
}

/// Whether a server refused to create a bucket for want of a place, or for another one.
fn asks_for_place(error: &SdkError<CreateBucketError, HttpResponse>) -> bool {
    matches!(
        error.code(),
        Some(
            "IllegalLocationConstraintException"
                | "InvalidLocationConstraint"
                | "InvalidRegion"
                | "MissingLocationConstraint"
        )
    )
}

impl S3Store {
    /// The prefix below which everything lies: empty, or ending with a slash.
    pub fn prefix(&self) -> &str {
        &self.inner.prefix
    }

    /// The bucket's default encryption, and whether it blocks SSE-C.
    pub async fn default_encryption(&self) -> Setting<DefaultEncryption> {
        let inner = &self.inner;
        let answer = inner.client.get_bucket_encryption().bucket(&inner.bucket).send().await;
        let absent = ["ServerSideEncryptionConfigurationNotFoundError"];
        setting(answer, "the default encryption", &absent, |output| {
            let rule = output.server_side_encryption_configuration()?.rules().first()?.clone();
            let default = rule.apply_server_side_encryption_by_default();
            let blocked = rule.blocked_encryption_types().map(|b| b.encryption_type());
            Some(DefaultEncryption {
                algorithm: default
                    .map(|d| d.sse_algorithm().as_str())
                    .unwrap_or(sse::AES256)
                    .into(),
                kms_key: default.and_then(|d| d.kms_master_key_id()).map(str::to_owned),
                bucket_key: rule.bucket_key_enabled().unwrap_or(false),
                blocks_customer: blocked.map(|all| all.contains(&EncryptionType::SseC)),
            })
        })
    }

    /// Sets the bucket's default encryption to `mode`, with SSE-C blocked unless it is the mode.
    /// Where `present` is of that algorithm, or the mode asks for none, only the blocking changes
    /// (without `present` the algorithm is then `AES256`).
    pub async fn put_default_encryption(
        &self,
        mode: &SseMode,
        present: Option<&DefaultEncryption>,
    ) -> Result<()> {
        let asked = mode.algorithm();
        let stays = present.filter(|p| asked.is_none_or(|asked| asked == p.algorithm));
        let algorithm = asked.or(stays.map(|p| p.algorithm.as_str())).unwrap_or(sse::AES256);
        let key = stays.map_or(mode.key_id(), |present| present.kms_key.as_deref());
        let bucket_key = match stays {
            Some(present) => present.bucket_key.then_some(true),
            None => mode.bucket_key(),
        };
        let default = ServerSideEncryptionByDefault::builder()
            .sse_algorithm(ServerSideEncryption::from(algorithm))
            .set_kms_master_key_id(key.map(str::to_owned))
            .build()
            .expect("the algorithm is set");
        let blocked = match mode {
            SseMode::Customer { .. } => EncryptionType::None,
            _ => EncryptionType::SseC,
        };
        let rule = ServerSideEncryptionRule::builder()
            .apply_server_side_encryption_by_default(default)
            .set_bucket_key_enabled(bucket_key);
        let blocking = BlockedEncryptionTypes::builder().encryption_type(blocked).build();
        let with = rule.clone().blocked_encryption_types(blocking).build();
        match self.put_encryption_rule(with).await {
            // Another server than AWS may not know that part of it.
            Err(e)
                if !self.inner.is_aws
                    && matches!(class(&e), ErrorClass::Other | ErrorClass::Unsupported) =>
            {
                self.put_encryption_rule(rule.build()).await
            }
            outcome => outcome,
        }
    }

    async fn put_encryption_rule(&self, rule: ServerSideEncryptionRule) -> Result<()> {
        let rules = ServerSideEncryptionConfiguration::builder()
            .rules(rule)
            .build()
            .expect("there is a rule");
        let inner = &self.inner;
        inner
            .client
            .put_bucket_encryption()
            .bucket(&inner.bucket)
            .server_side_encryption_configuration(rules)
            .send()
            .await
            .map(drop)
            .map_err(|e| from_sdk(e, "set", "the default encryption", Condition::None))
    }

    /// Whether all four public access blocks are on.
    pub async fn public_access_block(&self) -> Setting<bool> {
        let inner = &self.inner;
        let answer = inner.client.get_public_access_block().bucket(&inner.bucket).send().await;
        setting(answer, "public access", &["NoSuchPublicAccessBlockConfiguration"], |output| {
            let block = output.public_access_block_configuration()?;
            let all = [
                block.block_public_acls(),
                block.ignore_public_acls(),
                block.block_public_policy(),
                block.restrict_public_buckets(),
            ];
            Some(all.iter().all(|on| *on == Some(true)))
        })
    }

    /// Turns all four public access blocks on.
    pub async fn put_public_access_block(&self) -> Result<()> {
        let all = PublicAccessBlockConfiguration::builder()
            .block_public_acls(true)
            .ignore_public_acls(true)
            .block_public_policy(true)
            .restrict_public_buckets(true)
            .build();
        let inner = &self.inner;
        let put = inner.client.put_public_access_block().bucket(&inner.bucket);
        put.public_access_block_configuration(all)
            .send()
            .await
            .map(drop)
            .map_err(|e| from_sdk(e, "block", "public access", Condition::None))
    }

    /// The bucket's policy, a JSON text.
    pub async fn policy(&self) -> Setting<String> {
        let inner = &self.inner;
        let answer = inner.client.get_bucket_policy().bucket(&inner.bucket).send().await;
        setting(answer, "the policy", &["NoSuchBucketPolicy", "NoSuchPolicy"], |output| {
            output.policy().map(str::to_owned)
        })
    }

    /// Replaces the bucket's policy.
    pub async fn put_policy(&self, policy: &str) -> Result<()> {
        let inner = &self.inner;
        let put = inner.client.put_bucket_policy().bucket(&inner.bucket).policy(policy);
        put.send().await.map(drop).map_err(|e| from_sdk(e, "set", "the policy", Condition::None))
    }

    /// Creates the bucket in the region that requests are signed for. AWS wants the region named in
    /// the request, but for us-east-1; other servers name their places differently, or
    /// none, and are told one only if they ask for it. Errors: it exists already (`AlreadyExists`),
    /// or what the server says.
    pub async fn create_bucket(&self) -> Result<()> {
        let inner = &self.inner;
        let region = inner.client.config().region().map(|r| r.as_ref().to_owned());
        let region = region.filter(|region| region != "us-east-1");
        let first = region.as_deref().filter(|_| inner.is_aws);
        match (self.create_bucket_in(first).await, &region) {
            (Err(e), Some(region)) if first.is_none() && asks_for_place(&e) => {
                log::debug!("the server wants to be told a region for the bucket: {region}");
                self.create_bucket_in(Some(region)).await
            }
            (outcome, _) => outcome,
        }
        .map_err(|e| match e.code() {
            Some("BucketAlreadyOwnedByYou") => own(
                ErrorClass::AlreadyExists,
                format!("bucket {} is there already, and yours", inner.bucket),
            ),
            Some("BucketAlreadyExists") => own(
                ErrorClass::Auth,
                format!(
                    "bucket {} belongs to somebody else\nhint: choose another name",
                    inner.bucket
                ),
            ),
            _ => from_sdk(e, "create", "the bucket", Condition::None),
        })
    }

    async fn create_bucket_in(
        &self,
        place: Option<&str>,
    ) -> std::result::Result<(), SdkError<CreateBucketError, HttpResponse>> {
        let place = place.map(|region| {
            CreateBucketConfiguration::builder()
                .location_constraint(BucketLocationConstraint::from(region))
                .build()
        });
        let create = self.inner.client.create_bucket().bucket(&self.inner.bucket);
        create.set_create_bucket_configuration(place).send().await.map(drop)
    }

    /// One HeadBucket: how long it takes, and what the server's clock says.
    pub async fn ping(&self) -> Ping {
        let seen = Seen::default();
        let begun = Instant::now();
        let answer = self
            .inner
            .client
            .head_bucket()
            .bucket(&self.inner.bucket)
            .customize()
            .interceptor(seen.clone())
            .send()
            .await;
        let took = begun.elapsed();
        let outcome = answer.map(drop);
        let outcome = outcome.map_err(|e| from_sdk(e, "head", "the bucket", Condition::None));
        let clock_skew_secs = *seen.ahead.lock();
        let server = seen.server.lock().take();
        Ping { outcome, took, clock_skew_secs, server }
    }

    /// The version of TLS that the server of a [`Ping`] speaks with this client: `TLS 1.3`, say.
    ///
    /// # Errors
    /// What prevents a separate connection: a proxy, for example.
    pub async fn tls_version(&self, server: &(String, u16)) -> std::io::Result<&'static str> {
        let bundle = ca_bundle().map_err(std::io::Error::other)?;
        negotiated(&server.0, server.1, bundle.as_deref()).await
    }

    /// What of the bucket's settings makes the server refuse the mode of writes, as far as a few
    /// more requests can tell. Leaves nothing behind.
    pub async fn why_refused(&self) -> Option<Diagnosis> {
        let mode = self.sse_mode();
        // What was refused carried a condition: without one, it may be taken.
        match self.inner.try_mode(&mode).await {
            Ok(()) => {
                let lacks = matches!(self.inner.create_is_unsupported().await, Ok(true));
                return lacks
                    .then(|| Diagnosis { why: NO_CONDITIONS.into(), next: USE_CONDITIONS.into() });
            }
            // It has nothing to do with the mode.
            Err(e) if class(&e).is_retryable() => return None,
            Err(_) => {}
        }
        if matches!(mode, SseMode::Customer { .. })
            && let Setting::Is(default) = self.default_encryption().await
            && default.blocks_customer == Some(true)
        {
            return Some(Diagnosis {
                why: format!(
                    "the encryption settings of bucket {} block SSE-C (BlockedEncryptionTypes)",
                    self.bucket()
                ),
                next: UNBLOCK_SSE_C.into(),
            });
        }
        let kms = SseMode::Kms { key_id: None, context: Default::default(), bucket_key: None };
        let mut accepted = Vec::new();
        for other in [SseMode::Default, SseMode::S3, kms] {
            if other.name() != mode.name() && self.inner.try_mode(&other).await.is_ok() {
                accepted.push(other.name());
            }
        }
        let first = *accepted.first()?;
        let asked = match mode.name() {
            "default" => "without --sse".to_owned(),
            name => format!("with --sse {name}"),
        };
        Some(Diagnosis {
            why: format!(
                "the bucket does not accept objects {asked}, but it does with --sse {}",
                accepted.join(" and --sse ")
            ),
            next: match mode {
                SseMode::Kms { .. } | SseMode::Dsse { .. } => format!(
                    "check that the key exists, is enabled, and that these credentials have \
                     kms:GenerateDataKey and kms:Decrypt on it; or use --sse {first}"
                ),
                SseMode::Customer { .. } => UNBLOCK_SSE_C.into(),
                SseMode::Default | SseMode::S3 => {
                    format!("a policy requires another mode: use --sse {first}, or change it")
                }
            },
        })
    }
}

/// What a request and its answer show of the server.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Its clock, from the date of the answer, in seconds ahead of this machine's.
    ahead: Arc<Mutex<Option<i64>>>,
    server: Arc<Mutex<Option<(String, u16)>>>,
}

impl Intercept for Seen {
    fn name(&self) -> &'static str {
        "Seen"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let url = Url::parse(context.request().uri())?;
        let host = url.host_str().map(|host| host.trim_matches(['[', ']']).to_owned());
        *self.server.lock() = host.zip(url.port_or_known_default());
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        *self.ahead.lock() = date.map(|date| date.secs() - now.as_secs() as i64);
        Ok(())
    }
}
