//! What can go wrong with the store, by what the caller does next.
//!
//! Every adapter reports through `object_store::Error`; where none of its variants says enough,
//! it wraps a [`StoreError`] as the source.

use std::error::Error;

/// What a failure of the store means for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The object does not exist.
    NotFound,
    /// A conditional write lost.
    Precondition,
    /// A create found the object there.
    AlreadyExists,
    /// The store asked for patience; the same request may succeed later.
    Throttled,
    /// The request or its answer was lost; it may have taken effect.
    Transport,
    /// The credentials are missing, expired or not allowed to do this.
    Auth,
    /// The answer cannot be what was stored.
    Corrupt,
    /// The store encrypted in another mode than was asked for.
    SseMismatch,
    /// Anything else.
    Other,
}

/// A classified failure of the store, with a sentence for people.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// What the caller does next.
    pub class: ErrorClass,
    /// What failed on what, lower case, no full stop.
    pub message: String,
    /// The error underneath.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}
