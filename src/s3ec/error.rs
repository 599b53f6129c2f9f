//! Why an object of the Encryption Client cannot be opened or made.

use crate::store::kms::{KmsError, KmsTrouble};

/// What kind of trouble it is, by what the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3ecErrorKind {
    /// Object, metadata or instruction file are not as somebody wrote them.
    Tampered,
    /// The key given does not open it.
    WrongKey,
    /// Something must be given that was not, or not together.
    Usage,
    /// What is not authenticated is opened only if somebody says so.
    Legacy,
    /// KMS gives no answer, or refuses these credentials.
    Unreachable,
    /// A version or algorithm that is not known here.
    Format,
    /// More bytes than the format takes.
    TooLarge,
}

/// Why it was not done: a sentence, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default())]
pub struct S3ecError {
    /// What kind of trouble it is.
    pub kind: S3ecErrorKind,
    /// A sentence.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// What the functions of this folder return.
pub type Result<T, E = S3ecError> = std::result::Result<T, E>;

impl S3ecError {
    pub(super) fn new(kind: S3ecErrorKind, message: impl Into<String>) -> S3ecError {
        S3ecError { kind, message: message.into(), hint: None }
    }

    pub(super) fn tampered(message: impl Into<String>) -> S3ecError {
        S3ecError::new(S3ecErrorKind::Tampered, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> S3ecError {
        S3ecError::new(S3ecErrorKind::Usage, message)
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> S3ecError {
        self.hint = Some(hint.into());
        self
    }
}

impl From<KmsError> for S3ecError {
    fn from(e: KmsError) -> S3ecError {
        let kind = match e.trouble {
            KmsTrouble::Usage => S3ecErrorKind::Usage,
            KmsTrouble::NoCredentials | KmsTrouble::Unreachable | KmsTrouble::Refused => {
                S3ecErrorKind::Unreachable
            }
            KmsTrouble::Unusable => S3ecErrorKind::WrongKey,
        };
        S3ecError { kind, message: e.message, hint: Some(e.hint) }
    }
}
