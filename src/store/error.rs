//! What went wrong at the store, in the classes a caller acts on.
//!
//! `object_store::Error` has variants by HTTP status; what to do next (retry, give up, go
//! read-only, report tampering) needs more. A layer that knows more wraps a [`StoreError`] in
//! `Error::Generic`; [`class`] finds it again whatever wrapped it since.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// What the caller can do about a failed store operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The object does not exist (404). Final.
    NotFound,
    /// A condition of the request does not hold (412, 304). Final.
    Precondition,
    /// A create found the object there (412 on `If-None-Match: *`). Final.
    AlreadyExists,
    /// The server asks to come back later (429, 500, 503, 409 on a create). Retry.
    Throttled,
    /// No answer, or a broken one: connection, DNS, TLS, timeout, short body. Retry; offline.
    Transport,
    /// No connection, since the two ends do not agree on TLS: a certificate that nobody vouches for,
    /// http where https is spoken. Never retried, as waiting mends none of it; offline.
    Untrusted,
    /// Refused (401, 403). Never retried.
    Auth,
    /// The object is there and is not what was sealed under its name. Never retried.
    Corrupt,
    /// The metadata were written by others beyond what this handle read of their log: whoever writes has
    /// been overtaken, whoever follows opens them again. Never retried.
    Behind,
    /// The server did not apply the server-side encryption asked for. Never retried.
    SseMismatch,
    /// Something between here and the store answered in its place, or an answer that proves
    /// nothing. Retry; offline. A large body is not sent again before a small one has got through.
    Foreign,
    /// The bucket does not exist (404 `NoSuchBucket`): a mistake, or a server that has lost sight
    /// of it for a moment. Retried only where it was seen before.
    NoBucket,
    /// The request is larger than the server, or a proxy before it, takes (413). The same one never
    /// succeeds; a smaller one may.
    TooLarge,
    /// The server, or a proxy before it, does not do this at all (405, 411, 501, a redirect). Never
    /// retried.
    Unsupported,
    /// Anything else; never retried.
    Other,
}

impl ErrorClass {
    /// Whether the same request may succeed if it is sent again.
    pub fn is_retryable(self) -> bool {
        matches!(self, ErrorClass::Throttled | ErrorClass::Transport | ErrorClass::Foreign)
    }

    /// Whether a condition of the request was not met: the object is there, or not as it said.
    pub fn is_unmet_condition(self) -> bool {
        matches!(self, ErrorClass::AlreadyExists | ErrorClass::Precondition)
    }
}

/// An error whose class is known where it arises; travels inside `Error::Generic`.
#[derive(Debug)]
pub struct StoreError {
    /// What the caller can do about it.
    pub class: ErrorClass,
    /// What failed on what, lower case, no full stop, never a key or plaintext.
    pub message: String,
    /// What lies beneath, if anything does.
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl StoreError {
    /// An error without a cause beneath it.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> StoreError {
        StoreError { class, message: message.into(), source: None }
    }

    /// The same error with its cause.
    pub fn with_source(
        class: ErrorClass,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> StoreError {
        StoreError { class, message: message.into(), source: Some(source.into()) }
    }

    /// Wraps it for the `ObjectStore` trait; `store` names the layer.
    pub fn into_store(self, store: &'static str) -> object_store::Error {
        object_store::Error::Generic { store, source: Box::new(self) }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

/// The class of an error from any layer of the stack.
pub fn class(error: &object_store::Error) -> ErrorClass {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => ErrorClass::NotFound,
        E::AlreadyExists { .. } => ErrorClass::AlreadyExists,
        E::Precondition { .. } | E::NotModified { .. } => ErrorClass::Precondition,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorClass::Auth,
        E::Generic { source, .. } => class_of_cause(source.as_ref()),
        _ => ErrorClass::Other,
    }
}

/// The innermost sentence of ours about an error, its hint included, without what libraries say
/// around it; the error's own text if there is none of ours.
pub fn told(error: &object_store::Error) -> String {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(e) = cause.downcast_ref::<StoreError>() {
            return e.to_string();
        }
        next = cause.source();
    }
    error.to_string()
}

/// What failed on what, without the words that the store trait puts around it, and without the
/// hint.
pub fn sentence(error: &object_store::Error) -> String {
    let text = told(error);
    text.split("\nhint: ").next().unwrap_or_default().trim_end_matches(": ").to_owned()
}

/// The hint of an error, if it has one: what to do next.
pub fn advice(error: &object_store::Error) -> Option<String> {
    let text = error.to_string();
    let (_, hint) = text.split_once("\nhint: ")?;
    Some(hint.lines().next().unwrap_or_default().to_owned())
}

/// As [`sentence`], with the hint behind it: where there is no second line.
pub(crate) fn in_one_line(error: &object_store::Error) -> String {
    let text = error.to_string();
    match text.split_once("\nhint: ") {
        Some((_, hint)) => format!("{} (hint: {})", sentence(error), hint.trim_end()),
        None => sentence(error),
    }
}

fn class_of_cause(cause: &(dyn StdError + Send + Sync + 'static)) -> ErrorClass {
    let mut next: Option<&(dyn StdError + 'static)> = Some(cause);
    while let Some(cause) = next {
        if let Some(e) = cause.downcast_ref::<StoreError>() {
            return e.class;
        }
        if let Some(e) = cause.downcast_ref::<object_store::Error>() {
            return class(e);
        }
        if let Some(e) = cause.downcast_ref::<io::Error>()
            && let Some(class) = class_of_io(e)
        {
            return class;
        }
        next = cause.source();
    }
    ErrorClass::Other
}

fn class_of_io(e: &io::Error) -> Option<ErrorClass> {
    use io::ErrorKind as K;
    match e.kind() {
        K::ConnectionRefused
        | K::ConnectionReset
        | K::ConnectionAborted
        | K::NotConnected
        | K::HostUnreachable
        | K::NetworkUnreachable
        | K::NetworkDown
        | K::BrokenPipe
        | K::TimedOut
        | K::UnexpectedEof => Some(ErrorClass::Transport),
        K::PermissionDenied => Some(ErrorClass::Auth),
        _ => None,
    }
}

/// A second copy of an error for another waiter of the same request: same variant, same class,
/// same text.
pub(crate) fn replicate(error: &object_store::Error) -> object_store::Error {
    use object_store::Error as E;
    match error {
        E::NotFound { path, source } => {
            E::NotFound { path: path.clone(), source: source.to_string().into() }
        }
        E::AlreadyExists { path, source } => {
            E::AlreadyExists { path: path.clone(), source: source.to_string().into() }
        }
        E::Precondition { path, source } => {
            E::Precondition { path: path.clone(), source: source.to_string().into() }
        }
        E::NotModified { path, source } => {
            E::NotModified { path: path.clone(), source: source.to_string().into() }
        }
        E::PermissionDenied { path, source } => {
            E::PermissionDenied { path: path.clone(), source: source.to_string().into() }
        }
        E::Unauthenticated { path, source } => {
            E::Unauthenticated { path: path.clone(), source: source.to_string().into() }
        }
        E::Generic { store, source } => {
            StoreError::new(class(error), source.to_string()).into_store(store)
        }
        other => StoreError::new(class(other), other.to_string()).into_store("store"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_survives_being_wrapped_by_other_layers() {
        // Guards against a wrapper hiding that a failure is permanent (a 403 retried for ever).
        let inner =
            StoreError::new(ErrorClass::SseMismatch, "asked KMS, got none").into_store("s3");
        let outer = StoreError {
            class: ErrorClass::SseMismatch,
            message: "put".into(),
            source: Some(Box::new(inner)),
        };
        assert_eq!(class(&outer.into_store("retry")), ErrorClass::SseMismatch);
        let wrapped = object_store::Error::Generic {
            store: "x",
            source: Box::new(object_store::Error::Unauthenticated {
                path: "a".into(),
                source: "no".into(),
            }),
        };
        assert_eq!(class(&wrapped), ErrorClass::Auth);
        assert_eq!(class(&replicate(&wrapped)), ErrorClass::Auth);
    }

    #[test]
    fn the_sentence_is_the_innermost_one_of_ours() {
        // Guards against "Generic S3 error: Object at location ..." before what a person needs.
        let inner = StoreError::new(ErrorClass::Auth, "put a: AccessDenied: no\nhint: allow it");
        let denied =
            object_store::Error::PermissionDenied { path: "a".into(), source: Box::new(inner) };
        assert_eq!(sentence(&denied), "put a: AccessDenied: no");
        let plain = object_store::Error::Generic { store: "x", source: "odd".into() };
        assert_eq!(sentence(&plain), "Generic x error: odd");
    }

    #[test]
    fn connection_errors_are_transport_and_unknown_ones_are_not_retried() {
        // Guards against retrying what can never succeed, and against giving up on a reset.
        let reset = object_store::Error::Generic {
            store: "x",
            source: Box::new(io::Error::from(io::ErrorKind::ConnectionReset)),
        };
        assert!(class(&reset).is_retryable());
        let other = object_store::Error::Generic { store: "x", source: "bad".into() };
        assert_eq!(class(&other), ErrorClass::Other);
        assert!(!class(&other).is_retryable());
    }
}
