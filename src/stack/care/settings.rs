//! What a volume remembers, read, and changed under a condition: the schedule of its snapshots, its quota,
//! the storage class of its segments. For a volume that no mount here writes.

use super::super::opening::unmounted::Opened;
use super::super::records::config::{self, Change, VolumeConfig};
use super::super::records::schedule::Schedule;
use super::super::{KeyOptions, StackError};
use crate::base::VolumeId;
use crate::stack::running::canary::try_class;

/// What a volume remembers, after `change` if there is one. Mounts follow within minutes, or when they
/// are told.
///
/// # Errors
/// What keeps it from opening the volume, or from writing; [`StackError::Encryption`] if the server does not
/// take the storage class.
pub async fn settings(
    options: &KeyOptions,
    change: Option<&Change>,
) -> Result<(VolumeId, VolumeConfig), StackError> {
    let opened = Opened::open(&options.store, Some(&options.key)).await?;
    let volume = opened.keys().expect("it was opened with a key").volume_id();
    let sealed = opened.sealed().expect("it was opened with a key");
    if let Some(Change::StorageClass(class)) = change {
        try_class(&opened.layers, class).await?;
    }
    Ok((volume, config::change(&*sealed, change).await?))
}

/// The schedule of a volume's snapshots; with `to` it is that from now on.
///
/// # Errors
/// As [`settings`].
pub async fn schedule(
    options: &KeyOptions,
    to: Option<Schedule>,
) -> Result<(VolumeId, Schedule), StackError> {
    let (volume, now) = settings(options, to.map(Change::Schedule).as_ref()).await?;
    Ok((volume, now.snapshots))
}
