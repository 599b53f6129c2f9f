//! Why a volume could not be made or mounted, sorted by what a person does next.

/// What kind of trouble it is; `cli` gives each its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackErrorKind {
    /// The passphrase or key file does not open this volume.
    Secret,
    /// The store does not answer, or refuses these credentials.
    Unreachable,
    /// The store answers but cannot hold a volume (the probe says why), or holds something
    /// already, or holds no volume.
    Unsuitable,
    /// Another mount has the volume.
    InUse,
    /// Something in the bucket or the local state is damaged, tampered with or rolled back.
    Corrupt,
    /// Anything else: local directories, memory, bugs.
    Other,
}

/// An error for a person: a sentence in lower case, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StackError {
    /// What to do about it, by kind.
    pub kind: StackErrorKind,
    /// What failed on what.
    pub message: String,
    /// The next command to type, if there is one.
    pub hint: Option<String>,
}

impl StackError {
    /// An error without a hint.
    pub fn new(kind: StackErrorKind, message: impl Into<String>) -> StackError {
        StackError { kind, message: message.into(), hint: None }
    }

    /// Adds the next command to type.
    pub fn hint(mut self, hint: impl Into<String>) -> StackError {
        self.hint = Some(hint.into());
        self
    }
}
