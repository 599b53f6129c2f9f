//! Builds the S3 client: credentials, region, endpoint, TLS roots, timeouts, connection reuse.
//!
//! Retries belong to `store/retry`; here a request is sent again only when it was refused and other
//! credentials may be found (`credentials`). Called once per mount by [`connect`].

use super::answers::Answers;
use super::connection;
use super::credentials::{self, Keys, RefusedOnce, Sources};
use super::encryption::Encryption;
use super::input::{self, InputError};
use super::meter::Meter;
use super::sse::{SecretKey32, SseMode};
use super::{Inner, S3Store, tls};
use crate::store::limits::Limits;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::identity::IdentityCache;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::{
    Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
};
use aws_types::service_config::ServiceConfigKey;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::time::Duration;
use tokio::sync::Semaphore;
use url::{Host, Url};
use zeroize::Zeroizing;

/// Time to open a connection, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one attempt of one request up to the first byte of its answer's body, beside what its
/// own body takes.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for one answer of a server that gives credentials.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(5);
/// A body that moves less than a byte a second for this long is an error.
const STALL_GRACE: Duration = Duration::from_secs(20);
/// Objects that are read and written again at a time, by a migration.
const REWRITES_MAX: usize = 4;
/// Region to sign for when nothing names one: what most other servers expect.
const REGION_FALLBACK: &str = "us-east-1";

/// Where the bucket is and how to talk to it.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Bucket name.
    pub bucket: String,
    /// Key prefix without leading or trailing slash; empty for the whole bucket.
    pub prefix: String,
    /// Server other than AWS, as `https://host[:port]`; addressed path-style. `None` takes
    /// `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or the profile's, else AWS itself.
    pub endpoint_url: Option<String>,
    /// Region; `None` takes the AWS defaults.
    pub region: Option<String>,
    /// Profile of the AWS configuration files; `None` takes `AWS_PROFILE` or `default`.
    pub profile: Option<String>,
    /// Allows `http://` to a host that is not this machine.
    pub allow_http: bool,
    /// Server-side encryption of everything written.
    pub sse: SseMode,
    /// Customer keys that older objects are encrypted with.
    pub read_keys: Vec<SecretKey32>,
    /// Tags of everything written.
    pub object_tags: BTreeMap<String, String>,
    /// Fixed credentials instead of the AWS chain; for tests and embedding.
    pub credentials: Option<StaticCredentials>,
    /// Whether it is AWS itself, whose newest calls may be used; `None` tells by the endpoint.
    pub is_aws: Option<bool>,
    /// Time for one attempt of one request, [`ATTEMPT_TIMEOUT`] by default.
    pub attempt_timeout: Duration,
    /// How fast bytes may be sent; what is received is paced by who reads it.
    pub limits: Arc<Limits>,
}

impl S3Options {
    /// AWS defaults for everything but the bucket and prefix.
    pub fn new(bucket: impl Into<String>, prefix: impl Into<String>) -> S3Options {
        S3Options {
            bucket: bucket.into(),
            prefix: prefix.into(),
            endpoint_url: None,
            region: None,
            profile: None,
            allow_http: false,
            sse: SseMode::Default,
            read_keys: Vec::new(),
            object_tags: BTreeMap::new(),
            credentials: None,
            is_aws: None,
            attempt_timeout: ATTEMPT_TIMEOUT,
            limits: Arc::default(),
        }
    }
}

/// An access key that is known beforehand.
#[derive(Clone)]
pub struct StaticCredentials {
    /// Access key id; not a secret.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: Zeroizing<String>,
}

impl StaticCredentials {
    fn for_sdk(&self) -> Credentials {
        Credentials::new(&self.access_key_id, &*self.secret_access_key, None, None, "sealfs")
    }
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.secret_access_key.len();
        write!(f, "StaticCredentials({}, {bytes} bytes)", self.access_key_id)
    }
}

/// The options cannot be used as they are.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// An endpoint, region or name that cannot be one.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Plain http to another machine.
    #[error(
        "{endpoint} would carry requests unencrypted over the network\nhint: use https, or --allow-http if the network is yours"
    )]
    PlainHttp {
        /// As given.
        endpoint: String,
    },
    /// A customer key over plain http to another machine.
    #[error(
        "a customer key would go unencrypted to {endpoint}\nhint: SSE-C needs an https endpoint, whatever --allow-http says"
    )]
    CustomerKeyOverHttp {
        /// As given.
        endpoint: String,
    },
    /// The file named by `AWS_CA_BUNDLE` is unreadable.
    #[error("cannot read the certificates of AWS_CA_BUNDLE ({})", path.display())]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file named by `AWS_CA_BUNDLE` holds no PEM certificates.
    #[error("AWS_CA_BUNDLE ({}) is not a file of PEM certificates", path.display())]
    CaBundleFormat {
        /// The file.
        path: PathBuf,
    },
    /// The profile that was asked for is nowhere.
    #[error(
        "there is no profile {name:?} ({by}) in {files}\nhint: aws configure list-profiles shows those there are; aws configure --profile {name} makes it"
    )]
    Profile {
        /// The flag or variable that names it.
        by: &'static str,
        /// As given.
        name: String,
        /// Where it was looked for.
        files: String,
    },
    /// The AWS configuration files cannot be parsed.
    #[error("cannot understand {files}: {message}\nhint: correct that line; aws configure list")]
    ProfileFiles {
        /// Those that were read.
        files: String,
        /// Which line, and why.
        message: String,
    },
    /// The TLS library refused the certificates.
    #[error("cannot set up TLS with the certificates of AWS_CA_BUNDLE: {0}")]
    Tls(#[source] std::io::Error),
}

/// How the requests of an endpoint may travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    /// TLS, or this machine: payloads need no separate signature.
    Private,
    /// Plain http to another machine, allowed by flag: payloads are signed.
    Open,
}

/// Builds a store from `options`. Reads the environment and AWS configuration files; makes no
/// request to the bucket (credentials are fetched with the first). Errors: [`ConnectError`].
pub async fn connect(options: S3Options) -> Result<S3Store, ConnectError> {
    input::variables()?;
    if let Some(endpoint) = &options.endpoint_url {
        wire(&input::endpoint(BY_FLAG, endpoint)?, &options)?;
    }
    let (profile, is_explicit) = match &options.credentials {
        Some(_) => ("default".to_owned(), false),
        None => credentials::profile(options.profile.as_deref()).await?,
    };
    let http = http_client(options.attempt_timeout)?;
    let elsewhere = options.endpoint_url.is_some() || is_set("AWS_ENDPOINT_URL_S3");
    let region = region_chain(options.region.as_deref(), elsewhere, &profile).await;
    let shared = shared_config(&profile, region, http.clone()).await;
    if let Some(region) = shared.region() {
        input::region(region.as_ref())?;
    }
    let endpoint = endpoint(&options, &shared)?;
    let meter = Meter::new(options.limits.clone());
    let mut config =
        aws_sdk_s3::config::Builder::from(&shared).interceptor(meter.clone()).interceptor(Answers);
    config = match &options.credentials {
        Some(fixed) => config.credentials_provider(fixed.for_sdk()),
        None => {
            let keys =
                Keys::new(Sources { profile, is_explicit, config: for_providers(&shared, http) });
            // One more attempt, and only for what `RefusedOnce` lets through.
            let twice = RetryConfig::standard().with_max_attempts(2);
            config
                .credentials_provider(keys.clone())
                .retry_config(twice.with_initial_backoff(Duration::from_millis(1)))
                .retry_classifier(RefusedOnce(keys))
        }
    };
    let mut sign_payload = false;
    if let Some(endpoint) = &endpoint {
        sign_payload = wire(endpoint, &options)? == Wire::Open;
        config = config.endpoint_url(endpoint.as_str()).force_path_style(true);
    }
    let prefix = match options.prefix.trim_matches('/') {
        "" => String::new(),
        prefix => format!("{prefix}/"),
    };
    Ok(S3Store {
        inner: Arc::new(Inner {
            client: aws_sdk_s3::Client::from_conf(config.build()),
            bucket: options.bucket,
            prefix,
            encryption: Encryption::new(options.sse, options.read_keys, &options.object_tags),
            storage_class: Default::default(),
            sign_payload,
            batch_delete: AtomicBool::new(true),
            sends_md5: AtomicBool::new(false),
            is_tls: endpoint.as_ref().is_none_or(|e| e.scheme() == "https"),
            rewriting: Semaphore::new(REWRITES_MAX),
            in_place: AtomicBool::new(true),
            is_aws: options.is_aws.unwrap_or_else(|| endpoint.as_ref().is_none_or(is_aws)),
            e_tag_style: AtomicU8::new(0),
            meter,
        }),
    })
}

/// What every client has in common, whatever the service.
async fn shared_config(
    profile: &str,
    region: RegionProviderChain,
    http: SharedHttpClient,
) -> SdkConfig {
    // The rest of an attempt is timed by `connection`, which knows how long it is.
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let stall = StalledStreamProtectionConfig::enabled().grace_period(STALL_GRACE).build();
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .region(region)
        .profile_name(profile)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(stall)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        // Ours are held by `Keys`; its cache could not be emptied.
        .identity_cache(IdentityCache::no_cache())
        .no_credentials();
    loader.load().await
}

/// What a client of another service of AWS asks for; it gets a [`Session`].
pub(in crate::store) struct SessionAsk<'a> {
    /// Region; `None` takes the AWS defaults.
    pub region: Option<&'a str>,
    /// Profile of the AWS configuration files; `None` takes `AWS_PROFILE` or `default`.
    pub profile: Option<&'a str>,
    /// Whether another server than AWS is named.
    pub elsewhere: bool,
    /// Time for one attempt of one request.
    pub attempt_timeout: Duration,
}

/// What the client of another service is built from: the same as that of S3.
pub(in crate::store) struct Session {
    /// Region, TLS roots, connections.
    pub shared: SdkConfig,
    /// Where the access key comes from.
    pub credentials: SharedCredentialsProvider,
}

impl SessionAsk<'_> {
    /// Reads the environment and the AWS configuration files; makes no request but for a region.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(in crate::store) async fn begin(&self) -> Result<Session, ConnectError> {
        input::variables()?;
        let (profile, is_explicit) = credentials::profile(self.profile).await?;
        let http = http_client(self.attempt_timeout)?;
        let region = region_chain(self.region, self.elsewhere, &profile).await;
        let shared = shared_config(&profile, region, http.clone()).await;
        if let Some(region) = shared.region() {
            input::region(region.as_ref())?;
        }
        let keys =
            Keys::new(Sources { profile, is_explicit, config: for_providers(&shared, http) });
        Ok(Session { shared, credentials: SharedCredentialsProvider::new(keys) })
    }
}

/// How the endpoint of the options is called in errors.
const BY_FLAG: &str = "--endpoint-url (or AWS_ENDPOINT_URL_S3)";

/// The endpoint that is asked for: by flag, by variable, by the `services` section of the profile,
/// or by the profile itself. `None`: AWS, as the region has it.
fn endpoint(options: &S3Options, shared: &SdkConfig) -> Result<Option<Url>, InputError> {
    if let Some(given) = &options.endpoint_url {
        return input::endpoint(BY_FLAG, given).map(Some);
    }
    let variable = |name| std::env::var(name).ok().filter(|e: &String| !e.is_empty());
    if let Some(given) = variable("AWS_ENDPOINT_URL_S3") {
        return input::endpoint("AWS_ENDPOINT_URL_S3", &given).map(Some);
    }
    let key = ServiceConfigKey::builder().service_id("s3").profile("endpoint_url");
    let key = key.env("AWS_ENDPOINT_URL").build().expect("all three are set");
    let of_service = shared.service_config().and_then(|config| config.load_config(key));
    match of_service.filter(|e| !e.is_empty()) {
        Some(given) => {
            input::endpoint("the endpoint_url of s3 (profile or AWS_ENDPOINT_URL)", &given)
                .map(Some)
        }
        None => match shared.endpoint_url().filter(|e| !e.is_empty()) {
            Some(given) => {
                input::endpoint("AWS_ENDPOINT_URL (or the profile's endpoint_url)", given).map(Some)
            }
            None => Ok(None),
        },
    }
}

/// Whether an endpoint is one of AWS.
fn is_aws(endpoint: &Url) -> bool {
    let host = endpoint.host_str().unwrap_or_default();
    host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
}

/// Whether what is sent there never leaves this machine.
pub(in crate::store) fn is_this_machine(endpoint: &Url) -> bool {
    match endpoint.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Checks an endpoint against what the options allow.
fn wire(endpoint: &Url, options: &S3Options) -> Result<Wire, ConnectError> {
    let local = is_this_machine(endpoint);
    let customer = options.sse.customer_key().is_some() || !options.read_keys.is_empty();
    let shown = || endpoint.as_str().trim_end_matches('/').to_owned();
    match endpoint.scheme() {
        "https" => Ok(Wire::Private),
        _ if local => Ok(Wire::Private),
        _ if customer => Err(ConnectError::CustomerKeyOverHttp { endpoint: shown() }),
        _ if options.allow_http => Ok(Wire::Open),
        _ => Err(ConnectError::PlainHttp { endpoint: shown() }),
    }
}

/// What the sources of credentials need to talk to their servers.
fn for_providers(shared: &SdkConfig, http: SharedHttpClient) -> ProviderConfig {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT);
    ProviderConfig::without_region()
        .with_http_client(http)
        .with_region(shared.region().cloned())
        .with_use_fips(shared.use_fips())
        .with_use_dual_stack(shared.use_dual_stack())
        .with_behavior_version(Some(BehaviorVersion::latest()))
        .with_retry_config(RetryConfig::standard())
        .with_timeout_config(timeouts.read_timeout(CREDENTIALS_TIMEOUT).build())
}

/// Flag, environment, profile, and, unless another server than AWS is named, the instance
/// metadata service (asking it from elsewhere costs seconds).
async fn region_chain(region: Option<&str>, elsewhere: bool, profile: &str) -> RegionProviderChain {
    let region = region.map(|name| Region::new(name.to_owned()));
    let asked = RegionProviderChain::first_try(region);
    let profile = ProfileFileRegionProvider::builder().profile_name(profile).build();
    let chain = asked.or_else(EnvironmentVariableRegionProvider::new()).or_else(profile);
    let chain = match elsewhere || is_set("AWS_ENDPOINT_URL") {
        true => chain,
        false => chain.or_else(aws_config::imds::region::ImdsRegionProvider::builder().build()),
    };
    chain.or_else(Region::new(REGION_FALLBACK))
}

/// Whether an environment variable says something.
fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// One connection pool for all requests; TLS trusts the system's roots, or only the bundle of
/// `AWS_CA_BUNDLE` where that is set (as the AWS tools do).
fn http_client(silence_max: Duration) -> Result<SharedHttpClient, ConnectError> {
    let trust = || {
        let bundle = ca_bundle()?;
        tls::client_config(bundle.as_deref()).map_err(ConnectError::Tls)
    };
    connection::http_client(trust, silence_max)
}

/// The certificates of `AWS_CA_BUNDLE` (PEM), where that is set.
pub(super) fn ca_bundle() -> Result<Option<Vec<u8>>, ConnectError> {
    let path = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty());
    path.map(|path| read_bundle(Path::new(&path))).transpose()
}

fn read_bundle(path: &Path) -> Result<Vec<u8>, ConnectError> {
    let pem = std::fs::read(path)
        .map_err(|source| ConnectError::CaBundle { path: path.to_owned(), source })?;
    // The TLS library panics on a bundle it cannot parse, so it is looked at first.
    match is_certificate_bundle(&pem) {
        true => Ok(pem),
        false => Err(ConnectError::CaBundleFormat { path: path.to_owned() }),
    }
}

/// Whether `pem` holds at least one certificate block and each is base64 of one DER sequence.
fn is_certificate_bundle(pem: &[u8]) -> bool {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let Ok(text) = std::str::from_utf8(pem) else { return false };
    let blocks: Vec<&str> = text.split(BEGIN).skip(1).collect();
    !blocks.is_empty()
        && blocks.iter().all(|block| {
            let Some((body, _)) = block.split_once(END) else { return false };
            let body: String = body.split_whitespace().collect();
            let Ok(der) = STANDARD.decode(body) else { return false };
            // SEQUENCE with a two-byte length: every X.509 certificate is 256 to 65,535 bytes.
            matches!(der.as_slice(), [0x30, 0x82, high, low, rest @ ..]
                if rest.len() == usize::from(*high) << 8 | usize::from(*low))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> S3Options {
        S3Options::new("bucket", "")
    }

    fn wire(endpoint: &str, options: &S3Options) -> Result<Wire, ConnectError> {
        super::wire(&input::endpoint(BY_FLAG, endpoint).expect(endpoint), options)
    }

    #[test]
    fn plain_http_is_refused_except_to_this_machine() {
        // Guards against object names and sizes (and an SSE-C key) crossing a network in the
        // clear because of a mistyped scheme.
        for local in ["http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost:80"] {
            assert_eq!(wire(local, &options()).unwrap(), Wire::Private);
        }
        assert_eq!(wire("https://s3.example.org", &options()).unwrap(), Wire::Private);
        for remote in ["http://10.0.0.1:9000", "http://minio:9000", "http://127.0.0.1.example.org"]
        {
            let refused = wire(remote, &options());
            assert!(matches!(refused, Err(ConnectError::PlainHttp { .. })), "{remote}");
            let allowed = S3Options { allow_http: true, ..options() };
            assert_eq!(wire(remote, &allowed).unwrap(), Wire::Open);
            let key = SecretKey32::new(Zeroizing::new([0; 32]));
            let reads = S3Options { read_keys: vec![key.clone()], ..allowed.clone() };
            let writes = S3Options { sse: SseMode::Customer { key }, ..allowed };
            for customer in [reads, writes] {
                let refused = wire(remote, &customer);
                assert!(
                    matches!(refused, Err(ConnectError::CustomerKeyOverHttp { .. })),
                    "{remote}"
                );
            }
        }
    }

    #[test]
    fn a_broken_certificate_bundle_is_an_error_and_not_a_panic() {
        // Guards against the TLS library's panic on a bundle that it cannot parse.
        let der = [&[0x30, 0x82, 0x01, 0x00][..], &[0; 256]].concat();
        let block = |der: &[u8]| {
            let body = STANDARD.encode(der);
            format!("# a comment\n-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        };
        assert!(is_certificate_bundle(block(&der).as_bytes()));
        assert!(is_certificate_bundle(format!("{0}{0}", block(&der)).as_bytes()));
        for bad in [
            String::new(),
            "not a certificate".into(),
            block(&der[..100]),
            block(b"text"),
            format!("{}{}", block(&der), block(b"text")),
            "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n".into(),
            "-----BEGIN CERTIFICATE-----\nAAAA".into(),
        ] {
            assert!(!is_certificate_bundle(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn debug_of_options_does_not_print_the_secret_key() {
        // Guards against credentials reaching a log through a derived Debug.
        let credentials = StaticCredentials {
            access_key_id: "AK".into(),
            secret_access_key: Zeroizing::new("very-secret".into()),
        };
        let options = S3Options { credentials: Some(credentials), ..options() };
        assert!(!format!("{options:?}").contains("very-secret"));
    }
}
