//! What opening the database reads first, and in which order it names the next: fetched before SlateDB
//! asks for it, one thing after the other.

use object_store::ObjectMeta;
use object_store::path::Path;

use super::answers::{log_number, log_object, manifest, manifest_number};
use super::{LEFT_IN_LOG_MAX, META_PREFIX};
use crate::store::ahead::Ahead;

/// Begins to fetch what says which state is the newest: the manifests and the log as they are
/// listed, the newest manifest, and that there is none behind it, nor an object of the log.
/// `guess`: the newest manifest, and the objects of the log behind which replay begins and with which it
/// ends, as they were when this machine last closed the database; then it is all fetched at once.
pub fn start_of_metadata(ahead: &Ahead, guess: Option<(u64, u64, u64)>) {
    if let Some((newest, after, last)) = guess {
        // Closing the database may have written one more.
        (newest..=newest + 2).for_each(|n| ahead.whole(manifest(n)));
        let log = (after + 1..=last + 1).take(LEFT_IN_LOG_MAX as usize + 2);
        log.for_each(|n| ahead.whole(log_object(n)));
    }
    ahead.whole(Path::from(format!("{META_PREFIX}/gc/manifest.boundary")));
    ahead.list(Path::from(format!("{META_PREFIX}/manifest")), |listed| {
        let newest = listed.iter().filter_map(|meta| manifest_number(&meta.location)).max();
        newest.into_iter().flat_map(|n| [manifest(n), manifest(n + 1)]).collect()
    });
    ahead.list(Path::from(format!("{META_PREFIX}/wal")), |listed: &[ObjectMeta]| {
        let newest = listed.iter().filter_map(|meta| log_number(&meta.location)).max();
        newest.into_iter().map(|n| log_object(n + 1)).collect()
    });
}
