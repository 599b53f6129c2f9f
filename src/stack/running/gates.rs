//! What a mount lets its committer do: depends on the damage found and on who holds the volume.

use std::sync::Arc;

use futures::FutureExt;

use crate::commit::Gates;
use crate::meta::BesideRow;
use crate::seal::VolumeKeys;
use crate::stack::records::encryption::VolumeSse;
use crate::stack::records::lease::{Beat, Lease};
use crate::store::{Sealed, SegmentStore};

/// The lease of a mount, which its tasks share.
pub(crate) type SharedLease = Arc<tokio::sync::Mutex<Lease>>;

/// The gates of a mount that writes.
pub(crate) fn gates(
    sealed: Arc<Sealed>,
    segments: Arc<SegmentStore>,
    (lease, sse): (Option<SharedLease>, Arc<VolumeSse>),
    keys: VolumeKeys,
) -> Gates {
    let term = lease.as_ref().and_then(|lease| Some(lease.try_lock().ok()?.term()));
    let term = term.unwrap_or_default();
    let still_ours = move || {
        let lease = lease.clone();
        let held = async move {
            match lease {
                Some(lease) => matches!(lease.lock().await.beat().await, Beat::Held),
                None => false,
            }
        };
        held.boxed()
    };
    Gates {
        beside: Box::new(move || BesideRow { config: sse.revision(), lease: term }),
        may_delete: Box::new(move || {
            sealed.damaged().is_empty() && segments.malformed().is_empty()
        }),
        still_ours: Box::new(still_ours),
        key_epoch: Box::new(move || keys.epoch()),
    }
}
