//! Where the access key comes from, and that a replaced one is noticed.
//!
//! Holds the credentials of one client. The SDK reads its files once and keeps what it found; here
//! every load asks all sources again, so that keys which were replaced (in a file, by
//! `aws sso login`, by a role) are found when the server refuses the old ones. Called by the SDK
//! for every request; there is one load at a time, which all requests wait for and which goes on when
//! they are given up.

use super::client::ConnectError;
use super::{connection, input, tls};
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::credentials::EnvironmentVariableCredentialsProvider;
use aws_config::imds::Client as ImdsClient;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::{
    ClassifyRetry, RetryAction, RetryClassifierPriority,
};
use parking_lot::Mutex;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Time for one load: a role is taken on by a few requests, a process may open a browser.
const LOAD_MAX: Duration = Duration::from_secs(30);
/// How often the metadata service of an instance is asked; elsewhere than on one nobody answers.
const METADATA_ATTEMPTS: u32 = 2;
/// Credentials that end sooner than this are loaded again; with them requests go on meanwhile.
const EXPIRES_SOON: Duration = Duration::from_secs(120);
/// The least time between two loads, and the most that it grows to while they find nothing new.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long after others were found a refusal is put down to the old ones.
const CHANGED_LATELY: Duration = Duration::from_secs(5);

/// The credentials of a client. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sources: Sources,
    state: Mutex<State>,
    /// Held by the load.
    loading: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    found: Option<Credentials>,
    /// The server refused `found`.
    refused: bool,
    loaded: Option<Instant>,
    changed: Option<Instant>,
    /// From one load to the next.
    pause: Duration,
}

/// What is asked for credentials, in the order of the AWS tools.
#[derive(Debug)]
pub(super) struct Sources {
    /// The profile to read.
    pub(super) profile: String,
    /// Whether that profile was named by flag: then variables that hold keys do not count (as
    /// boto3 has it; `AWS_PROFILE` does not go before them).
    pub(super) is_explicit: bool,
    /// What providers that talk to servers need.
    pub(super) config: ProviderConfig,
}

impl Keys {
    pub(super) fn new(sources: Sources) -> Keys {
        Keys(Arc::new(Inner { sources, state: Default::default(), loading: Default::default() }))
    }

    async fn load(&self) -> provider::Result {
        let outcome = match tokio::time::timeout(LOAD_MAX, self.0.sources.load()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CredentialsError::provider_timed_out(LOAD_MAX)),
        };
        self.0.state.lock().take(outcome, Instant::now())
    }

    /// The server refused them. Whether the request is worth sending again: others have just been
    /// found, or the next request will look for others.
    fn refused(&self, now: Instant) -> bool {
        let mut state = self.0.state.lock();
        // Signed before the others were there, as far as can be told.
        let changed = state.changed.is_some_and(|at| now < at + CHANGED_LATELY);
        state.refused |= !changed && state.loaded.is_none_or(|at| now >= at + state.pause);
        changed || state.refused
    }
}

impl State {
    /// What may be used without a load.
    fn usable(&self, now: Instant) -> Option<Credentials> {
        let found = self.found.as_ref().filter(|_| !self.refused)?;
        let soon = SystemTime::now() + EXPIRES_SOON;
        match found.expiry() {
            Some(end) if end <= soon => {
                // A source that gives the same ones again is not asked all the time.
                let paused = self.loaded.is_some_and(|at| now < at + self.pause);
                (paused && end > SystemTime::now()).then(|| found.clone())
            }
            _ => Some(found.clone()),
        }
    }

    /// Takes the outcome of a load.
    fn take(&mut self, outcome: provider::Result, now: Instant) -> provider::Result {
        self.refused = false;
        self.loaded = Some(now);
        let old = self.found.take();
        match (outcome, old) {
            (Ok(new), Some(old)) if is_same(&new, &old) => {
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                self.found = Some(new.clone());
                Ok(new)
            }
            (Ok(new), old) => {
                if old.is_some() {
                    log::info!("other credentials were found and are used from now on");
                    self.changed = self.loaded;
                }
                self.pause = PAUSE_FIRST;
                self.found = Some(new.clone());
                Ok(new)
            }
            // The file may be half written: the old ones say better what is wrong.
            (Err(e), Some(old)) if old.expiry().is_none_or(|end| end > SystemTime::now()) => {
                log::warn!("loading the credentials again: {}", innermost(&e));
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                self.found = Some(old.clone());
                Ok(old)
            }
            // There were some once: their source is away, rather than not there.
            (Err(e), Some(old)) => {
                self.found = Some(old);
                Err(CredentialsError::provider_error(e))
            }
            (Err(e), None) => Err(e),
        }
    }
}

fn is_same(a: &Credentials, b: &Credentials) -> bool {
    a.access_key_id() == b.access_key_id()
        && a.secret_access_key() == b.secret_access_key()
        && a.session_token() == b.session_token()
        && a.expiry() == b.expiry()
}

impl ProvideCredentials for Keys {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move {
            if let Some(found) = self.0.state.lock().usable(Instant::now()) {
                return Ok(found);
            }
            let turn = self.0.loading.clone().lock_owned().await;
            if let Some(found) = self.0.state.lock().usable(Instant::now()) {
                return Ok(found);
            }
            // On a separate task: a request has less time than somebody who has to sign in.
            let keys = self.clone();
            let load = tokio::spawn(async move {
                let _turn = turn;
                keys.load().await
            });
            load.await.unwrap_or_else(|e| Err(CredentialsError::unhandled(e)))
        })
    }
}

impl Sources {
    /// Asks them one after the other. What is not set up is passed over; the first that is
    /// decides.
    async fn load(&self) -> provider::Result {
        if !self.is_explicit {
            half_a_key()?;
            let environment = EnvironmentVariableCredentialsProvider::new();
            let asked = environment.provide_credentials().await;
            if let Ok(outcome) = settled(asked, "the environment") {
                return outcome;
            }
        }
        let profile = ProfileFileCredentialsProvider::builder()
            .configure(&self.config)
            .profile_name(&self.profile)
            .build();
        let name = format!("profile {:?}", self.profile);
        let asked = profile.provide_credentials().await;
        let no_profile = match settled(asked, &name) {
            Ok(outcome) => return outcome,
            Err(why) => why,
        };
        if !self.is_explicit {
            let token = WebIdentityTokenCredentialsProvider::builder().configure(&self.config);
            let asked = token.build().provide_credentials().await;
            if let Ok(outcome) = settled(asked, "the web identity token") {
                return outcome;
            }
        }
        let container = EcsCredentialsProvider::builder().configure(&self.config).build();
        let asked = container.provide_credentials().await;
        if let Ok(outcome) = settled(asked, "the container's credentials") {
            return outcome;
        }
        let metadata =
            ImdsClient::builder().configure(&self.config).max_attempts(METADATA_ATTEMPTS);
        let instance = ImdsCredentialsProvider::builder()
            .configure(&self.config)
            .imds_client(metadata.build())
            .build();
        let asked = instance.provide_credentials().await.map_err(without_a_role);
        settled(asked, "the instance metadata service").unwrap_or_else(|no_instance| {
            let environment = if self.is_explicit { "" } else { "the environment has none; " };
            Err(CredentialsError::not_loaded(format!(
                "no credentials found: {environment}profile {:?} {}; the instance metadata \
                 service has none: {no_instance}",
                self.profile,
                // What the SDK says of a profile without keys.
                match no_profile.contains("not enabled") {
                    true => "has none".to_owned(),
                    false => format!("has none: {no_profile}"),
                },
            )))
        })
    }
}

/// Checks what a source answered; `Err` with the reason if it is not set up. A source that cannot be
/// reached may be later; whatever else fails there stays as it is.
fn settled(asked: provider::Result, source: &str) -> Result<provider::Result, String> {
    use CredentialsError as E;
    let error = match asked {
        Ok(found) => match misshapen(&found) {
            None => return Ok(Ok(found)),
            Some(what) => E::invalid_configuration(format!(
                "{source}: {what} holds a space, a line end or another character that cannot be \
                 part of it"
            )),
        },
        Err(e @ E::CredentialsNotLoaded(_)) => return Err(innermost(&e)),
        Err(e) => match tls::trouble(&e) {
            Some(trouble) => E::invalid_configuration(format!("{source}: {}", trouble.why)),
            None if matches!(e, E::ProviderTimedOut(_)) || connection::is_lost(&e) => {
                E::provider_error(format!("{source}: {}", innermost(&e)))
            }
            None => E::invalid_configuration(format!("{source}: {}", innermost(&e))),
        },
    };
    Ok(Err(error))
}

/// What of the credentials no request could carry: its name. The SDK's own check is a panic.
fn misshapen(found: &Credentials) -> Option<&'static str> {
    let odd = |text: &str| text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic());
    if odd(found.access_key_id()) {
        Some("the access key id (AWS_ACCESS_KEY_ID)")
    } else if found.secret_access_key().chars().any(|c| c.is_control() || c.is_whitespace()) {
        Some("the secret access key (AWS_SECRET_ACCESS_KEY)")
    } else if found.session_token().is_some_and(odd) {
        Some("the session token (AWS_SESSION_TOKEN)")
    } else {
        None
    }
}

/// One of the two variables of a key without the other: as in boto3, an error, since somebody
/// meant that key and not another.
fn half_a_key() -> Result<(), CredentialsError> {
    let is_set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let secret = is_set("AWS_SECRET_ACCESS_KEY") || is_set("SECRET_ACCESS_KEY");
    let (set, missing) = match (is_set("AWS_ACCESS_KEY_ID"), secret) {
        (true, false) => ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        (false, true) if is_set("AWS_SECRET_ACCESS_KEY") => {
            ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")
        }
        _ => return Ok(()),
    };
    Err(CredentialsError::invalid_configuration(format!("{set} is set and {missing} is not")))
}

/// A metadata service that refuses (401, 403, 404 …) has no role for this machine; waiting does
/// not give it one. One that fails (5xx, no answer) may come up.
fn without_a_role(error: CredentialsError) -> CredentialsError {
    match error {
        CredentialsError::ProviderError(_) => match refusal_of_metadata(&error) {
            Some(why) => CredentialsError::not_loaded(why),
            None => error,
        },
        _ => error,
    }
}

fn refusal_of_metadata(error: &(dyn Error + 'static)) -> Option<String> {
    use aws_config::imds::client::error::{ImdsError, TokenError};
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(ImdsError::ErrorResponse(answer)) = e.downcast_ref::<ImdsError>() {
            let status = answer.response().status().as_u16();
            let refused = (400..500).contains(&status) && status != 429;
            return refused.then(|| format!("it answered {status}"));
        }
        if e.is::<TokenError>() {
            return Some("it answers, but gives no token (403, or it is disabled)".into());
        }
        cause = e.source();
    }
    None
}

fn innermost(error: &dyn Error) -> String {
    super::errors::root_cause(error)
}

/// The profile to read, and whether it was named by flag. Checks that it exists, if it was named
/// at all.
///
/// # Errors
/// [`ConnectError::Profile`] names it and the files, [`ConnectError::ProfileFiles`] what cannot
/// be read in them.
pub(super) async fn profile(asked: Option<&str>) -> Result<(String, bool), ConnectError> {
    let variable = std::env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
    let Some(name) = asked.map(str::to_owned).or(variable) else {
        return Ok(("default".into(), false));
    };
    let by = if asked.is_some() { "--profile" } else { "AWS_PROFILE" };
    input::profile(by, &name)?;
    let files = files();
    // The real ones of this process.
    let (disk, environment, usual) = Default::default();
    let loaded = aws_config::profile::load(&disk, &environment, &usual, None);
    let profiles = loaded.await.map_err(|e| ConnectError::ProfileFiles {
        files: names_of(&files),
        message: innermost(&e),
    })?;
    match profiles.get_profile(&name) {
        Some(_) => Ok((name, asked.is_some())),
        None => Err(ConnectError::Profile { by, name, files: names_of(&files) }),
    }
}

/// The files that profiles are read from.
fn files() -> [PathBuf; 2] {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "~".into()));
    [("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")].map(
        |(variable, usual)| match std::env::var_os(variable) {
            Some(path) => path.into(),
            None => home.join(".aws").join(usual),
        },
    )
}

fn names_of(files: &[PathBuf; 2]) -> String {
    let name = |path: &PathBuf| match path.exists() {
        true => path.display().to_string(),
        false => format!("{} (which does not exist)", path.display()),
    };
    format!("{} or {}", name(&files[0]), name(&files[1]))
}

/// Sends a request that was refused once more, where other credentials may be found; and never
/// any other request: those are for `store/retry`.
#[derive(Debug)]
pub(super) struct RefusedOnce(pub(super) Keys);

impl ClassifyRetry for RefusedOnce {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let refused = context.response().is_some_and(|answer| {
            let body = answer.body().bytes().unwrap_or_default();
            context.is_failed() && is_refusal(answer.status().as_u16(), body)
        });
        match refused && self.0.refused(Instant::now()) {
            true => RetryAction::client_error(),
            false => RetryAction::RetryForbidden,
        }
    }

    fn name(&self) -> &'static str {
        "RefusedOnce"
    }

    fn priority(&self) -> RetryClassifierPriority {
        RetryClassifierPriority::run_after(RetryClassifierPriority::transient_error_classifier())
    }
}

/// Whether an answer may mean that the credentials are no longer good. Servers differ in the
/// codes, and an answer to HEAD has none, so that only what surely means something else is out.
fn is_refusal(status: u16, body: &[u8]) -> bool {
    let body = String::from_utf8_lossy(body);
    let code = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map(|(code, _)| code.trim());
    match (status, code) {
        (401, _) => true,
        (403, Some("RequestTimeTooSkewed")) => false,
        (403, _) => true,
        // S3 answers HEAD with an expired token like this.
        (400, None) => body.is_empty(),
        (400, Some(code)) => matches!(
            code,
            "ExpiredToken"
                | "ExpiredTokenException"
                | "TokenRefreshRequired"
                | "InvalidToken"
                | "InvalidAccessKeyId"
                | "InvalidClientTokenId"
                | "UnrecognizedClientException"
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(id: &str) -> Credentials {
        Credentials::new(id, "secret", None, None, "test")
    }

    #[test]
    fn what_no_request_can_carry_is_named() {
        // Guards against the panic of the HTTP library on a line end in a header.
        assert_eq!(misshapen(&found("AKIA0")), None);
        for id in ["", "AK\n", " AK", "A K", "ключ", "A\u{7f}"] {
            assert_eq!(
                misshapen(&found(id)),
                Some("the access key id (AWS_ACCESS_KEY_ID)"),
                "{id:?}"
            );
        }
        let secret = Credentials::new("AK", "se\ncret", None, None, "test");
        assert_eq!(misshapen(&secret), Some("the secret access key (AWS_SECRET_ACCESS_KEY)"));
        let token = Credentials::new("AK", "s", Some("a\r\nb".into()), None, "test");
        assert_eq!(misshapen(&token), Some("the session token (AWS_SESSION_TOKEN)"));
    }

    #[test]
    fn refusals_are_told_by_status_and_code() {
        // Guards against an expired token that is never replaced, and against asking all sources
        // again for every object that is missing.
        let coded = |code: &str| format!("<Error><Code>{code}</Code></Error>");
        for (status, code) in [
            (403, "InvalidAccessKeyId"),
            (403, "SignatureDoesNotMatch"),
            (403, "AccessDenied"),
            (401, "Unauthorized"),
            (400, "ExpiredToken"),
            (400, "InvalidToken"),
        ] {
            assert!(is_refusal(status, coded(code).as_bytes()), "{status} {code}");
        }
        assert!(is_refusal(403, b"") && is_refusal(400, b""));
        for (status, code) in [
            (403, "RequestTimeTooSkewed"),
            (400, "InvalidArgument"),
            (404, "NoSuchKey"),
            (412, "PreconditionFailed"),
            (503, "SlowDown"),
        ] {
            assert!(!is_refusal(status, coded(code).as_bytes()), "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_asks_the_sources_again_but_not_all_the_time() {
        // Guards against keys that are never looked for again, and against a policy that denies
        // one call making every request ask a role's server.
        let keys = Keys::new(Sources {
            profile: "default".into(),
            is_explicit: true,
            config: ProviderConfig::empty(),
        });
        let mut now = Instant::now();
        let take = |outcome, now| keys.0.state.lock().take(outcome, now);
        let usable = |now| keys.0.state.lock().usable(now).is_some();
        take(Ok(found("old")), now).expect("found");
        assert!(!keys.refused(now), "just loaded");
        now += PAUSE_FIRST;
        assert!(keys.refused(now) && !usable(now));
        // Nothing new: the next look is later, and what there is stays in use.
        take(Ok(found("old")), now).expect("found");
        now += PAUSE_FIRST;
        assert!(!keys.refused(now) && usable(now));
        now += PAUSE_MAX;
        assert!(keys.refused(now));
        // A file that is half written costs nothing.
        let kept = take(Err(CredentialsError::not_loaded("empty")), now).expect("the old ones");
        assert_eq!(kept.access_key_id(), "old");
        now += PAUSE_MAX;
        assert!(keys.refused(now));
        assert_eq!(take(Ok(found("new")), now).expect("found").access_key_id(), "new");
        // What was on its way with the old ones is sent again, without another look.
        assert!(keys.refused(now) && usable(now));
        now += CHANGED_LATELY;
        assert!(keys.refused(now) && !usable(now));
    }

    #[test]
    fn credentials_that_end_are_replaced_before_they_do() {
        // Guards against a request signed with a token that ends on its way, and against a source
        // that only has the same ones being asked by every request of the last two minutes.
        let mut state = State::default();
        let ending = |secs| {
            let end = SystemTime::now() + Duration::from_secs(secs);
            Credentials::new("AK", "s", None, Some(end), "test")
        };
        let now = Instant::now();
        state.take(Ok(ending(3600)), now).expect("found");
        assert!(state.usable(now + PAUSE_MAX).is_some());
        state.take(Ok(ending(60)), now).expect("found");
        assert!(state.usable(now).is_some() && state.usable(now + PAUSE_FIRST).is_none());
        state.take(Ok(ending(0)), now).expect("found");
        assert!(state.usable(now).is_none());
        assert!(state.take(Err(CredentialsError::not_loaded("none")), now).is_err());
    }
}
