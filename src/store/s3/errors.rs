//! What an answer or its absence means: S3 failures to `object_store::Error`.
//!
//! `classify` is pure; the rest collects facts out of the client's error types. Called by every
//! operation of the adapter. Source: S3 API Reference, "Error responses".

use super::answers::{PAGE_HINT, is_page};
use super::causes::Causes;
use super::refusal;
use super::sse::{SecretKey32, SseMode};
use super::tls::{self, Trouble};
use crate::base::one_line;
use crate::store::error::{ErrorClass, StoreError};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use std::borrow::Cow;
use std::error::Error;
use url::Url;

/// The store's name in `object_store::Error::Generic`.
pub(super) const STORE: &str = "S3";
/// Characters of a server's message that are shown.
const MESSAGE_CHARS_MAX: usize = 500;

/// The condition a request carried: the same status means different things under each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// None, or a condition on a read.
    None,
    /// `If-None-Match: *` on a write.
    Create,
    /// `If-Match` on a write.
    Update,
}

/// What is known about a failed request.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Failure {
    status: Option<u16>,
    code: Option<String>,
    message: Option<String>,
    lost: bool,
    /// It is a page: of a portal, a proxy, a web server.
    page: bool,
    /// By which the server's operators find it.
    request_id: Option<String>,
    /// Where a redirect leads.
    redirect: Option<String>,
    /// The region of the bucket, where the answer names it.
    region: Option<String>,
    credentials: Option<CredentialTrouble>,
    tls: Option<Trouble>,
}

/// Why there is no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CredentialTrouble {
    /// No source has any, or their configuration is wrong: waiting does not help.
    Missing,
    /// Their source could not be reached.
    Unreachable,
}

/// Whether and how a failed request is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    NotModified,
    /// 403: known, and not allowed.
    Forbidden,
    /// 401 and its relatives: not known, or expired.
    Unknown,
    Class(ErrorClass),
}

/// Turns a failed call into the error of the store trait. `action` is what failed, as in "put";
/// `path` is the object below the prefix.
pub(super) fn from_sdk<E>(
    error: SdkError<E, HttpResponse>,
    action: &'static str,
    path: &str,
    condition: Condition,
) -> object_store::Error
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let failure = facts(&error);
    let (verdict, hint) = classify(&failure, condition);
    let hint = hint.as_deref();
    // The sentence holds the code or the innermost cause; what surrounds it helps only us.
    log::debug!("{action} {path}: {}", Causes(&error));
    to_store_error(verdict, path, sentence(&failure, action, path, hint, &error))
}

/// As [`from_sdk`] for a write in `mode`: a refusal says what in the way of its encryption may
/// have caused it.
pub(super) fn write_from_sdk<E>(
    error: SdkError<E, HttpResponse>,
    action: &'static str,
    path: &str,
    condition: Condition,
    mode: &SseMode,
) -> object_store::Error
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let failure = facts(&error);
    let (verdict, hint) = classify(&failure, condition);
    let of_mode = match verdict {
        // Not the word of the server that was asked for the mode.
        Verdict::Class(ErrorClass::Foreign | ErrorClass::Transport) => None,
        _ => refusal::of_write(
            mode,
            condition != Condition::None,
            failure.status,
            failure.code.as_deref().unwrap_or_default(),
            failure.message.as_deref().unwrap_or_default(),
        ),
    };
    log::debug!("{action} {path}: {}", Causes(&error));
    match of_mode {
        None => {
            let text = sentence(&failure, action, path, hint.as_deref(), &error);
            to_store_error(verdict, path, text)
        }
        Some(refusal) => {
            let verdict = match verdict {
                Verdict::Class(ErrorClass::Unsupported) => verdict,
                _ => Verdict::Forbidden,
            };
            let sentence = sentence(&failure, action, path, None, &error);
            let message = format!("{sentence}: {}\nhint: {}", refusal.why, refusal.next);
            to_store_error(verdict, path, message)
        }
    }
}

/// As [`from_sdk`] for a read with this customer key, or without one.
pub(super) fn read_from_sdk<E>(
    error: SdkError<E, HttpResponse>,
    action: &'static str,
    path: &str,
    key: &Option<SecretKey32>,
) -> object_store::Error
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let failure = facts(&error);
    let (mut verdict, mut hint) = classify(&failure, Condition::None);
    // The answer to HEAD has no body, hence no code.
    let message = failure.message.as_deref().unwrap_or_default();
    let is_customer = failure.status == Some(400)
        && (failure.code.is_none() && action == "head"
            || failure.code.as_deref() == Some("InvalidRequest")
                && message.to_ascii_lowercase().contains("encryption"));
    if is_customer && key.is_none() {
        verdict = Verdict::Forbidden;
        hint = Some(
            "the object is encrypted with a customer key (SSE-C): give it with --sse-c-key-file FILE"
                .into(),
        );
    } else if key.is_some() && may_be_the_key(&error) {
        verdict = Verdict::Forbidden;
        hint = Some(
            "none of the customer keys given fits: --sse-c-key-file FILE for the volume's, --sse-c-read-key-file FILE for older ones"
                .into(),
        );
    }
    log::debug!("{action} {path}: {}", Causes(&error));
    to_store_error(verdict, path, sentence(&failure, action, path, hint.as_deref(), &error))
}

/// Whether a read may have been refused for its customer key, or for want of one: 400 or 403.
pub(super) fn may_be_the_key<E>(error: &SdkError<E, HttpResponse>) -> bool {
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    matches!(error, SdkError::ServiceError(_)) && matches!(status, Some(400 | 403))
}

/// An error of one object inside a DeleteObjects answer, which has a code and no status.
pub(super) fn from_code(
    code: &str,
    message: &str,
    action: &str,
    path: &str,
) -> object_store::Error {
    let (code, message) = (one_line(code), said(message));
    let failure =
        Failure { code: Some(code.clone()), message: Some(message.clone()), ..Failure::default() };
    let (verdict, hint) = classify(&failure, Condition::None);
    let hint = hint_line(hint.as_deref());
    let text = format!("{action} {}: {code}: {message}{hint}", one_line(path));
    to_store_error(verdict, path, text)
}

/// A failure this adapter found itself.
pub(super) fn own(class: ErrorClass, message: String) -> object_store::Error {
    StoreError::new(class, message).into_store(STORE)
}

/// Whether a server refused the call itself rather than its arguments, so that another call
/// that does the same is worth trying.
pub(super) fn is_unsupported<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let failure = facts_of_service(error);
    matches!(failure.status, Some(405 | 501))
        || matches!(
            failure.code.as_deref(),
            Some("NotImplemented" | "MethodNotAllowed" | "MissingContentMD5" | "InvalidDigest")
        )
}

fn to_store_error(verdict: Verdict, path: &str, message: String) -> object_store::Error {
    use object_store::Error as E;
    let class = match verdict {
        Verdict::NotModified => ErrorClass::Other,
        Verdict::Forbidden | Verdict::Unknown => ErrorClass::Auth,
        Verdict::Class(class) => class,
    };
    let path = one_line(path);
    let boxed = Box::new(StoreError::new(class, message));
    match verdict {
        Verdict::NotModified => E::NotModified { path, source: boxed },
        Verdict::Forbidden => E::PermissionDenied { path, source: boxed },
        Verdict::Unknown => E::Unauthenticated { path, source: boxed },
        Verdict::Class(ErrorClass::NotFound) => E::NotFound { path, source: boxed },
        Verdict::Class(ErrorClass::Precondition) => E::Precondition { path, source: boxed },
        Verdict::Class(ErrorClass::AlreadyExists) => E::AlreadyExists { path, source: boxed },
        Verdict::Class(_) => E::Generic { store: STORE, source: boxed },
    }
}

/// The table of statuses and codes. A code decides before the status does, because proxies and
/// some servers send the right code under a general status.
fn classify(failure: &Failure, condition: Condition) -> (Verdict, Option<Cow<'static, str>>) {
    use ErrorClass::*;
    let class = |c| (Verdict::Class(c), None);
    if let Some(trouble) = &failure.tls {
        return (Verdict::Class(Untrusted), Some(trouble.next.into()));
    }
    match failure.credentials {
        Some(CredentialTrouble::Missing) => {
            let hint = "aws configure (or aws sso login); --profile NAME; or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
            return (Verdict::Unknown, Some(hint.into()));
        }
        Some(CredentialTrouble::Unreachable) => return class(Transport),
        None => {}
    }
    match failure.code.as_deref() {
        Some(code) => of_code(failure, code, condition),
        None if failure.lost && failure.page => {
            Some((Verdict::Class(Foreign), Some(PAGE_HINT.into())))
        }
        // A success whose body is not what S3 answers.
        None if failure.lost && failure.status.is_some() => Some(class(Foreign)),
        None if failure.lost => Some(class(Transport)),
        None => None,
    }
    .unwrap_or_else(|| of_status(failure, condition))
}

fn of_code(
    failure: &Failure,
    code: &str,
    condition: Condition,
) -> Option<(Verdict, Option<Cow<'static, str>>)> {
    use ErrorClass::*;
    let class = |c| Some((Verdict::Class(c), None));
    let hinted = |verdict, hint: &'static str| Some((verdict, Some(hint.into())));
    match code {
        "NoSuchBucket" => {
            hinted(Verdict::Class(NoBucket), "create the bucket, or check its name and region")
        }
        "NoSuchUpload" => class(Other),
        "NoSuchKey" | "NotFound" => class(not_found(condition)),
        "PreconditionFailed" => class(condition_failed(condition)),
        "ConditionalRequestConflict"
        | "OperationAborted"
        | "SlowDown"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "TemporaryRedirect"
        | "InternalError" => class(Throttled),
        // The body did not arrive as it was sent.
        "RequestTimeout" | "IncompleteBody" | "BadDigest" | "XAmzContentChecksumMismatch" => {
            class(Transport)
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "InvalidToken" => {
            hinted(
                Verdict::Unknown,
                "renew them (aws sso login, or aws configure): new ones are found by themselves",
            )
        }
        "InvalidAccessKeyId" | "InvalidClientTokenId" | "UnrecognizedClientException" => hinted(
            Verdict::Unknown,
            "replace the access key (aws configure), or --profile NAME: new ones are found by themselves",
        ),
        "RequestTimeTooSkewed" => {
            hinted(Verdict::Forbidden, "set this machine's clock (timedatectl set-ntp true)")
        }
        "SignatureDoesNotMatch" => {
            hinted(Verdict::Forbidden, "check the secret access key and --endpoint-url")
        }
        "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "IllegalLocationConstraintException" => {
            Some((Verdict::Class(Other), Some(region_hint(failure))))
        }
        "EntityTooLarge" | "RequestEntityTooLarge" | "MaxMessageLengthExceeded" => {
            hinted(Verdict::Class(TooLarge), TOO_LARGE_HINT)
        }
        "EntityTooSmall" => hinted(
            Verdict::Class(Other),
            "the store wants parts of 5 MiB at least: raise the limit of the proxy before it (client_max_body_size of nginx) above that",
        ),
        "MissingContentLength" => hinted(Verdict::Class(Unsupported), NO_LENGTH_HINT),
        "NotImplemented" | "MethodNotAllowed" => class(Unsupported),
        _ => None,
    }
}

const TOO_LARGE_HINT: &str = "a proxy before the store limits what it passes on: raise its limit (client_max_body_size of nginx) to 17 MiB or more";
const NO_LENGTH_HINT: &str =
    "something on the way removes the length of the body: have the proxy pass Content-Length on";

fn of_status(failure: &Failure, condition: Condition) -> (Verdict, Option<Cow<'static, str>>) {
    use ErrorClass::*;
    let class = |c| (Verdict::Class(c), None);
    let hinted = |verdict, hint: &'static str| (verdict, Some(hint.into()));
    match failure.status {
        Some(304) => (Verdict::NotModified, None),
        Some(301 | 302 | 303 | 307 | 308) => redirected(failure),
        Some(405 | 501) => class(Unsupported),
        Some(411) => hinted(Verdict::Class(Unsupported), NO_LENGTH_HINT),
        Some(413) => hinted(Verdict::Class(TooLarge), TOO_LARGE_HINT),
        Some(407) => hinted(
            Verdict::Class(Foreign),
            "a proxy on the way wants a password: reach the store without it, sealfs gives none",
        ),
        // Network Authentication Required (RFC 6585).
        Some(511) => hinted(Verdict::Class(Foreign), PAGE_HINT),
        Some(400..=499) if failure.page => hinted(Verdict::Class(Foreign), PAGE_HINT),
        Some(401) => hinted(Verdict::Unknown, "check the credentials"),
        Some(403) => hinted(
            Verdict::Forbidden,
            "see what these credentials lack: sealfs doctor STORE; and what they need: sealfs doctor STORE --iam-policy",
        ),
        Some(404) => class(not_found(condition)),
        // Only conditional writes answer 409 here: two of them met. It says nothing about which
        // of them won, so it must never be taken for "already exists".
        Some(409) => class(Throttled),
        Some(412) => class(condition_failed(condition)),
        Some(429 | 500 | 503) => class(Throttled),
        // Words of a proxy that could not reach the store.
        Some(408 | 502 | 504) => class(Transport),
        _ => class(Other),
    }
}

/// A redirect: of the bucket to its region, of an address to another, or of a portal to itself.
fn redirected(failure: &Failure) -> (Verdict, Option<Cow<'static, str>>) {
    if failure.region.is_some() {
        return (Verdict::Class(ErrorClass::Other), Some(region_hint(failure)));
    }
    // Those that are for this time only.
    let is_passing = matches!(failure.status, Some(302 | 303 | 307));
    match &failure.redirect {
        Some(_) if is_passing => (Verdict::Class(ErrorClass::Foreign), Some(PAGE_HINT.into())),
        Some(place) => {
            let origin = Url::parse(place).ok().map(|url| url.origin().ascii_serialization());
            let hint = match origin {
                Some(origin) => format!("if that is the store, say so: --endpoint-url {origin}"),
                None => "check --endpoint-url".into(),
            };
            (Verdict::Class(ErrorClass::Unsupported), Some(hint.into()))
        }
        None => (Verdict::Class(ErrorClass::Other), Some(region_hint(failure))),
    }
}

fn region_hint(failure: &Failure) -> Cow<'static, str> {
    match &failure.region {
        Some(region) => format!("the bucket is in another region: --region {region}").into(),
        None => "the bucket is in another region: set --region".into(),
    }
}

/// Updating what is not there is a lost update, as `object_store` has it.
fn not_found(condition: Condition) -> ErrorClass {
    match condition {
        Condition::Update => ErrorClass::Precondition,
        Condition::None | Condition::Create => ErrorClass::NotFound,
    }
}

fn condition_failed(condition: Condition) -> ErrorClass {
    match condition {
        Condition::Create => ErrorClass::AlreadyExists,
        Condition::None | Condition::Update => ErrorClass::Precondition,
    }
}

/// What is known about a failed call.
pub(in crate::store) fn facts<E>(error: &SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let mut failure = facts_of_service(error);
    if matches!(error, SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_)) {
        failure.credentials = credential_trouble(error);
        failure.tls = tls::trouble(error);
    }
    failure
}

impl Failure {
    /// A refusal with a status and a code, for tests of what is made of one.
    #[cfg(test)]
    pub(in crate::store) fn coded(status: u16, code: &str) -> Failure {
        Failure { status: Some(status), code: Some(code.into()), ..Failure::default() }
    }

    /// With the code and message of an answer that can be read, however it is labelled: a service
    /// that speaks JSON has no pages with a code.
    pub(in crate::store) fn answered(mut self, answer: &dyn ProvideErrorMetadata) -> Failure {
        if let Some(code) = answer.code() {
            (self.code, self.page) = (Some(one_line(code)), false);
            self.message = answer.message().map(said);
        }
        self
    }

    /// The server's code.
    pub(in crate::store) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Whether there was nothing to sign with, and waiting does not help.
    pub(in crate::store) fn has_no_credentials(&self) -> bool {
        self.credentials == Some(CredentialTrouble::Missing)
    }

    /// Whether it is the answer of something else: a page, or one that no service gives.
    pub(in crate::store) fn is_foreign(&self) -> bool {
        self.page || self.code.is_none() && self.status.is_some()
    }

    /// What to do about TLS, if that is the trouble.
    pub(in crate::store) fn tls_hint(&self) -> Option<&'static str> {
        self.tls.as_ref().map(|trouble| trouble.next)
    }

    /// The server's words, or the innermost cause, in one line.
    pub(in crate::store) fn what(&self, error: &dyn Error) -> String {
        match (&self.tls, &self.code, &self.message) {
            (Some(tls), ..) => tls.why.clone(),
            (None, Some(code), Some(message)) => format!("{code}: {message}"),
            (None, Some(code), None) => code.clone(),
            (None, None, _) => match self.status {
                Some(status) => format!("status {status}"),
                None => root_cause(error),
            },
        }
    }
}

fn facts_of_service<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Failure {
    let mut failure = error.raw_response().map(facts_of_answer).unwrap_or_default();
    match error {
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => failure.lost = true,
        // An answer that cannot be read. With a 2xx status the request may have taken effect.
        SdkError::ResponseError(_) => {
            failure.lost = failure.status.is_none_or(|s| (200..300).contains(&s));
        }
        SdkError::ServiceError(service) => {
            // Of a page there is no code; that of a HEAD is the client's own word for 404.
            failure.code = service.err().code().filter(|_| !failure.page).map(one_line);
            failure.message = service.err().message().map(said);
            // What nginx, Go's and other servers answer who forgot the s.
            let body = service.raw().body().bytes().unwrap_or_default();
            let is_https = failure.status == Some(400)
                && failure.code.is_none()
                && body.windows(5).any(|word| word.eq_ignore_ascii_case(b"https"));
            failure.tls = is_https.then(tls::asked_without);
            // S3 may begin with 200 and then report an error in the body (CopyObject,
            // CompleteMultipartUpload); without a code nothing is known about the outcome.
            failure.lost =
                failure.code.is_none() && failure.status.is_some_and(|s| (200..300).contains(&s));
        }
        _ => {}
    }
    failure
}

fn facts_of_answer(answer: &HttpResponse) -> Failure {
    let header = |name: &str| answer.headers().get(name);
    let redirect = header("location").filter(|_| (300..400).contains(&answer.status().as_u16()));
    Failure {
        status: Some(answer.status().as_u16()),
        page: is_page(answer),
        request_id: header("x-amz-request-id").map(said),
        redirect: redirect.map(str::to_owned),
        region: header("x-amz-bucket-region").map(str::to_owned),
        ..Failure::default()
    }
}

fn credential_trouble(error: &(dyn Error + 'static)) -> Option<CredentialTrouble> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(credentials) = e.downcast_ref::<CredentialsError>() {
            return Some(match credentials {
                CredentialsError::CredentialsNotLoaded(_)
                | CredentialsError::InvalidConfiguration(_) => CredentialTrouble::Missing,
                _ => CredentialTrouble::Unreachable,
            });
        }
        cause = e.source();
    }
    None
}

fn sentence<E>(
    failure: &Failure,
    action: &str,
    path: &str,
    hint: Option<&str>,
    error: &SdkError<E, HttpResponse>,
) -> String
where
    E: Error + 'static,
{
    let what = match (&failure.code, &failure.message, failure.status) {
        _ if failure.tls.is_some() => failure.tls.iter().map(|t| t.why.as_str()).collect(),
        (Some(code), Some(message), _) => format!("{code}: {message}"),
        (Some(code), None, _) => code.clone(),
        (None, _, Some(413)) => {
            "it is too large for the server, or for a proxy before it (413)".into()
        }
        (None, _, Some(status)) => match &failure.redirect {
            Some(place) => format!("the server redirects to {} ({status})", one_line(place)),
            None if failure.page => format!(
                "something between here and the store answers in its place: a page (status {status})"
            ),
            None if failure.lost => format!("the answer (status {status}) is not one of S3"),
            None => format!("the server answered status {status}"),
        },
        (None, _, None) => root_cause(error),
    };
    let id = failure.request_id.iter().map(|id| format!(" (request id {id})"));
    let id: String = id.collect();
    format!("{action} {}: {what}{id}{}", one_line(path), hint_line(hint))
}

/// A server's message as part of a sentence. Whatever it holds, it is no line of ours.
fn said(message: &str) -> String {
    let mut message = one_line(message);
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
        message.truncate(end);
        message.push('…');
    }
    message
}

fn hint_line(hint: Option<&str>) -> String {
    hint.map(|h| format!("\nhint: {h}")).unwrap_or_default()
}

/// The innermost error: "connection refused" rather than "dispatch failure".
pub(super) fn root_cause(error: &dyn Error) -> String {
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        last = e.to_string();
        cause = e.source();
    }
    said(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16) -> Failure {
        Failure { status: Some(status), ..Failure::default() }
    }

    fn coded(status: u16, code: &str) -> Failure {
        Failure { status: Some(status), code: Some(code.into()), ..Failure::default() }
    }

    fn class(failure: Failure, condition: Condition) -> Verdict {
        classify(&failure, condition).0
    }

    #[test]
    fn a_conflict_is_never_taken_for_already_exists() {
        // Guards against a create that merely raced being reported as lost: the caller would
        // believe that another writer holds the name.
        for condition in [Condition::Create, Condition::Update, Condition::None] {
            for failure in [
                status(409),
                coded(409, "ConditionalRequestConflict"),
                coded(409, "OperationAborted"),
                coded(409, "SomethingNew"),
            ] {
                assert_eq!(class(failure, condition), Verdict::Class(ErrorClass::Throttled));
            }
        }
    }

    #[test]
    fn the_same_status_is_read_under_the_condition_that_was_sent() {
        // Guards against a failed create and a stale update being confused.
        use ErrorClass::*;
        for (failure, condition, expected) in [
            (status(412), Condition::Create, AlreadyExists),
            (coded(412, "PreconditionFailed"), Condition::Create, AlreadyExists),
            (status(412), Condition::Update, Precondition),
            (status(412), Condition::None, Precondition),
            (status(404), Condition::None, NotFound),
            (coded(404, "NoSuchKey"), Condition::None, NotFound),
            (coded(404, "NoSuchKey"), Condition::Update, Precondition),
            (status(404), Condition::Update, Precondition),
        ] {
            assert_eq!(class(failure, condition), Verdict::Class(expected));
        }
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        // Guards against a mistyped bucket looking like an empty volume.
        for condition in [Condition::None, Condition::Create, Condition::Update] {
            let (verdict, hint) = classify(&coded(404, "NoSuchBucket"), condition);
            assert_eq!(verdict, Verdict::Class(ErrorClass::NoBucket));
            assert!(hint.is_some());
        }
    }

    #[test]
    fn what_answers_in_the_stores_place_is_told_from_its_limits() {
        // Guards against a proxy's "not found" or "forbidden" being taken for the store's, and
        // against a limit that is retried like an outage.
        use ErrorClass::*;
        let page = |s| Failure { page: true, ..status(s) };
        let to = |s| Failure { redirect: Some("http://a.example/b".into()), ..status(s) };
        for (failure, expected, part) in [
            (page(403), Foreign, "sign in"),
            (page(404), Foreign, "sign in"),
            (Failure { lost: true, ..page(200) }, Foreign, "sign in"),
            (Failure { lost: true, ..status(200) }, Foreign, ""),
            (status(511), Foreign, "sign in"),
            (to(302), Foreign, "sign in"),
            (to(307), Foreign, "sign in"),
            (to(301), Unsupported, "--endpoint-url http://a.example"),
            (to(308), Unsupported, "--endpoint-url http://a.example"),
            (page(413), TooLarge, "client_max_body_size"),
            (coded(400, "EntityTooLarge"), TooLarge, "client_max_body_size"),
            (page(411), Unsupported, "Content-Length"),
            (page(501), Unsupported, ""),
            (page(405), Unsupported, ""),
            (page(502), Transport, ""),
            (page(503), Throttled, ""),
            (Failure { region: Some("eu-x".into()), ..status(301) }, Other, "--region eu-x"),
            (coded(307, "TemporaryRedirect"), Throttled, ""),
        ] {
            let (verdict, hint) = classify(&failure, Condition::None);
            assert_eq!(verdict, Verdict::Class(expected), "{failure:?}");
            assert!(hint.unwrap_or_default().contains(part), "{failure:?}");
        }
    }

    #[test]
    fn refusals_are_told_from_troubles_that_pass() {
        // Guards against a 403 retried for ever, and against an outage reported as a refusal.
        use ErrorClass::*;
        for (failure, expected) in [
            (status(403), Verdict::Forbidden),
            (coded(403, "AccessDenied"), Verdict::Forbidden),
            (coded(403, "RequestTimeTooSkewed"), Verdict::Forbidden),
            (status(401), Verdict::Unknown),
            (coded(400, "ExpiredToken"), Verdict::Unknown),
            (coded(503, "SlowDown"), Verdict::Class(Throttled)),
            (status(503), Verdict::Class(Throttled)),
            (status(429), Verdict::Class(Throttled)),
            (status(500), Verdict::Class(Throttled)),
            (coded(500, "InternalError"), Verdict::Class(Throttled)),
            (coded(200, "InternalError"), Verdict::Class(Throttled)),
            (coded(400, "RequestTimeout"), Verdict::Class(Transport)),
            (status(502), Verdict::Class(Transport)),
            (status(400), Verdict::Class(Other)),
            (status(416), Verdict::Class(Other)),
            (status(301), Verdict::Class(Other)),
            (status(304), Verdict::NotModified),
            (Failure { lost: true, ..Failure::default() }, Verdict::Class(Transport)),
            (
                Failure {
                    credentials: Some(CredentialTrouble::Missing),
                    lost: true,
                    ..Failure::default()
                },
                Verdict::Unknown,
            ),
            (
                Failure {
                    credentials: Some(CredentialTrouble::Unreachable),
                    lost: true,
                    ..Failure::default()
                },
                Verdict::Class(Transport),
            ),
        ] {
            assert_eq!(class(failure.clone(), Condition::None), expected, "{failure:?}");
        }
    }

    #[test]
    fn a_server_cannot_add_a_hint_of_its_own() {
        // Guards against "hint: curl … | sh" from a bucket that somebody else controls, in an
        // answer or in the name of an object.
        let forged = "no\nhint: curl x | sh\r\u{202e}";
        for error in [
            from_code(forged, forged, "delete", forged),
            from_code("NoSuchKey", forged, "delete", forged),
        ] {
            let text = error.to_string();
            assert!(!text.contains("\nhint: curl") && !text.contains('\r'), "{text:?}");
        }
        let long = from_code("AccessDenied", &"x".repeat(1 << 20), "delete", "a").to_string();
        assert!(long.len() < 1000, "{} bytes", long.len());
    }
}
