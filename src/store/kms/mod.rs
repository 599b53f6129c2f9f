//! AWS KMS as a keeper of seeds: encrypts a few bytes under a key that never leaves it, and gives them
//! back to whoever may have them.
//!
//! Three requests, `Encrypt`, `Decrypt` and `GenerateDataKey`, with the credentials, TLS roots, connections and timeouts
//! of the S3 adapter. What is throttled or lost is asked again, a bounded number of times. Knows
//! nothing of keyrings. Called by `stack/`.

mod errors;

pub use errors::{KmsError, KmsTrouble, Subject};

use super::s3::{CONNECT_TIMEOUT, ConnectError, Session, SessionAsk, input, is_this_machine};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{Builder, Region};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use aws_types::service_config::ServiceConfigKey;
use errors::Asked;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;
use url::Url;
use zeroize::Zeroizing;

/// Time for one attempt, and for a request with all its attempts.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);
/// Attempts of a request that is throttled or lost, and the pauses between them.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// The flag that names another server than AWS.
const BY_FLAG: &str = "--kms-endpoint-url";
const BY_VARIABLE: &str = "AWS_ENDPOINT_URL_KMS (or the profile's)";
const BY_GENERAL: &str = "AWS_ENDPOINT_URL (or the profile's endpoint_url)";
const BY_SLOT: &str = "the endpoint of the slot";

/// Where KMS is, as far as somebody said.
#[derive(Clone, Debug, Default)]
pub struct KmsPlace {
    /// `--kms-region`, else the region of the key's ARN, else that of the AWS configuration.
    pub region: Option<String>,
    /// `--kms-endpoint-url`; AWS itself when nobody names one.
    pub endpoint_url: Option<String>,
    /// What a slot says, for when nobody here says anything of KMS.
    pub recorded_endpoint: Option<String>,
    /// Profile of the AWS configuration files.
    pub profile: Option<String>,
}

/// A client of KMS in one region.
pub struct Kms {
    client: Client,
    region: String,
    endpoint: Option<String>,
    subject: Subject,
}

/// What `Encrypt` answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// The ARN of the key, whatever name it was asked by.
    pub key_arn: String,
    /// What `Decrypt` takes.
    pub ciphertext: Vec<u8>,
}

/// The encryption context: authenticated with the ciphertext, and in the log of KMS in clear.
pub type KmsContext = BTreeMap<String, String>;

impl Kms {
    /// Builds a client. Reads the environment and the AWS configuration files; makes no request.
    ///
    /// # Errors
    /// An endpoint, region or profile that cannot be used; plain http to another machine, whoever
    /// allows it for the store: the seed would be in it.
    pub async fn connect(place: &KmsPlace) -> Result<Kms, KmsError> {
        if let Some(region) = &place.region {
            input::region(region).map_err(|e| KmsError::usage(&e))?;
        }
        let ask = SessionAsk {
            region: place.region.as_deref(),
            profile: place.profile.as_deref(),
            elsewhere: place.endpoint_url.is_some() || place.recorded_endpoint.is_some(),
            attempt_timeout: ATTEMPT_TIMEOUT,
        };
        let session = ask.begin().await.map_err(|e: ConnectError| KmsError::usage(&e))?;
        let endpoint = endpoint(place, &session)?;
        if let Some(url) = &endpoint
            && url.scheme() != "https"
            && !is_this_machine(url)
        {
            let what = format!("{} would carry a key unencrypted", shown(url));
            return Err(KmsError::usage(&what).with_hint("KMS needs an https endpoint"));
        }
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(REQUEST_TIMEOUT)
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS_MAX)
            .with_initial_backoff(PAUSE_FIRST)
            .with_max_backoff(PAUSE_MAX);
        let region = session.shared.region().map(|r| r.to_string()).unwrap_or_default();
        let mut config = Builder::from(&session.shared)
            .region(Region::new(region.clone()))
            .credentials_provider(session.credentials)
            .retry_config(retries)
            .timeout_config(timeouts);
        if let Some(url) = &endpoint {
            config = config.endpoint_url(shown(url));
        }
        let endpoint = endpoint.as_ref().map(shown);
        Ok(Kms {
            client: Client::from_conf(config.build()),
            region,
            endpoint,
            subject: Subject::Seed,
        })
    }

    /// The same client, whose errors speak of something else than a slot's seed.
    pub fn speaking_of(self, subject: Subject) -> Kms {
        Kms { subject, ..self }
    }

    /// The region that is asked.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The server that is asked; `None`: AWS itself.
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// Encrypts a few bytes under `key`: an id, alias or ARN.
    ///
    /// # Errors
    /// See [`KmsError`].
    pub async fn encrypt(
        &self,
        key: &str,
        plain: &[u8],
        context: &KmsContext,
    ) -> Result<Encrypted, KmsError> {
        let asked = self.asked("kms:Encrypt", key);
        let sent = self
            .client
            .encrypt()
            .key_id(key)
            .plaintext(Blob::new(plain))
            .set_encryption_context(Some(to_map(context)))
            .send()
            .await
            .map_err(|e| asked.failed(e))?;
        match (sent.key_id, sent.ciphertext_blob) {
            (Some(key_arn), Some(ciphertext)) => {
                Ok(Encrypted { key_arn, ciphertext: ciphertext.into_inner() })
            }
            _ => Err(asked.not_kms()),
        }
    }

    /// What was encrypted under the key `key_arn`, in the same context.
    ///
    /// # Errors
    /// See [`KmsError`].
    pub async fn decrypt(
        &self,
        key_arn: &str,
        ciphertext: &[u8],
        context: &KmsContext,
    ) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let asked = self.asked("kms:Decrypt", key_arn);
        let got = self
            .client
            .decrypt()
            .key_id(key_arn)
            .ciphertext_blob(Blob::new(ciphertext))
            .set_encryption_context(Some(to_map(context)))
            .send()
            .await
            .map_err(|e| asked.failed(e))?;
        let plain = got.plaintext.ok_or_else(|| asked.not_kms())?;
        Ok(Zeroizing::new(plain.into_inner()))
    }

    /// A new data key of 32 bytes, and what [`Kms::decrypt`] takes for it.
    ///
    /// # Errors
    /// See [`KmsError`].
    pub async fn data_key(
        &self,
        key: &str,
        context: &KmsContext,
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), KmsError> {
        let asked = self.asked("kms:GenerateDataKey", key);
        let got = self
            .client
            .generate_data_key()
            .key_id(key)
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(to_map(context)))
            .send()
            .await
            .map_err(|e| asked.failed(e))?;
        match (got.plaintext, got.ciphertext_blob) {
            (Some(plain), Some(wrapped)) => {
                Ok((Zeroizing::new(plain.into_inner()), wrapped.into_inner()))
            }
            _ => Err(asked.not_kms()),
        }
    }

    fn asked<'a>(&'a self, action: &'static str, key: &'a str) -> Asked<'a> {
        let (region, endpoint) = (&self.region, self.endpoint());
        Asked { action, key, region, endpoint, subject: self.subject }
    }
}

impl fmt::Debug for Kms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kms({}, {})", self.region, self.endpoint.as_deref().unwrap_or("AWS"))
    }
}

fn to_map(context: &KmsContext) -> HashMap<String, String> {
    context.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// A URL as it was given, without the slash that the parser adds.
fn shown(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// The server to ask: by flag, by what is said of KMS on this machine, by the slot, by what is said
/// of all services; `None`: AWS.
fn endpoint(place: &KmsPlace, session: &Session) -> Result<Option<Url>, KmsError> {
    let read =
        |by, given: &str| input::endpoint(by, given).map(Some).map_err(|e| KmsError::usage(&e));
    if let Some(given) = &place.endpoint_url {
        return read(BY_FLAG, given);
    }
    let key = ServiceConfigKey::builder().service_id("kms").profile("endpoint_url");
    let key = key.env("AWS_ENDPOINT_URL").build().expect("all three are set");
    let of_kms = session.shared.service_config().and_then(|config| config.load_config(key));
    if let Some(given) = of_kms.filter(|given| !given.is_empty()) {
        return read(BY_VARIABLE, &given);
    }
    if let Some(given) = &place.recorded_endpoint {
        return read(BY_SLOT, given);
    }
    match session.shared.endpoint_url().filter(|given| !given.is_empty()) {
        Some(given) => read(BY_GENERAL, given),
        None => Ok(None),
    }
}

/// Whether an endpoint that a slot names may be asked though nobody here has named it: one on this
/// machine. Any other gets signed requests, so somebody has to say that it is his.
pub fn is_local_endpoint(endpoint: &str) -> bool {
    input::endpoint(BY_SLOT, endpoint).is_ok_and(|url| is_this_machine(&url))
}

/// The region in a key's ARN, `arn:PARTITION:kms:REGION:ACCOUNT:…`.
pub fn region_of(key: &str) -> Option<&str> {
    let mut parts = key.split(':');
    let is_arn =
        parts.next() == Some("arn") && parts.next().is_some() && parts.next() == Some("kms");
    parts.next().filter(|region| is_arn && !region.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_of_an_arn_is_that_of_its_key() {
        // Guards against a key of one region being asked for in another.
        assert_eq!(region_of("arn:aws:kms:eu-west-1:111122223333:key/a"), Some("eu-west-1"));
        assert_eq!(region_of("arn:aws-cn:kms:cn-north-1:1:alias/b"), Some("cn-north-1"));
        for none in ["alias/b", "1234abcd-12ab", "arn:aws:s3:::bucket", "arn:aws:kms::1:key/a", ""]
        {
            assert_eq!(region_of(none), None, "{none}");
        }
    }
}
