//! Why a commit, or what is done between two commits, did not go through.

use super::view::ViewError;
use crate::base::SegmentId;
use crate::journal::JournalError;
use crate::meta::DecodeError;
use crate::store::error::{ErrorClass, class, in_one_line};
use crate::store::kv::KvError;

/// Why a commit did not go through.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The metadata store.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A segment could not be uploaded.
    #[error("uploading segment {0}: {text}", text = in_one_line(.1))]
    Upload(SegmentId, #[source] object_store::Error),
    /// A segment that is to be cleaned could not be read.
    #[error("moving live data out of segment {0}: {1}")]
    Clean(SegmentId, #[source] object_store::Error),
    /// The task of a round of cleaning.
    #[error("{0}")]
    Round(String),
    /// The local journal could not be read.
    #[error("reading the journal: {0}")]
    Journal(#[from] JournalError),
    /// A task of ours died.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<KvError> for CommitError {
    fn from(e: KvError) -> Self {
        CommitError::View(e.into())
    }
}

impl From<DecodeError> for CommitError {
    fn from(e: DecodeError) -> Self {
        CommitError::View(e.into())
    }
}

impl CommitError {
    /// Whether another mount has taken the volume over.
    pub(super) fn is_fenced(&self) -> bool {
        matches!(self, CommitError::View(ViewError::Store(KvError::Fenced | KvError::ReadOnly)))
    }

    /// Whether the metadata store has to be opened again.
    pub(super) fn needs_reopen(&self) -> bool {
        let CommitError::View(ViewError::Store(e)) = self else { return false };
        // After one that was too large the database is closed.
        matches!(e, KvError::Closed(_) | KvError::TooLarge(_))
    }

    /// Whether the encryption that the server applied is not what was asked for.
    pub fn is_sse_mismatch(&self) -> bool {
        matches!(self, CommitError::Upload(_, e) if class(e) == ErrorClass::SseMismatch)
    }
}
