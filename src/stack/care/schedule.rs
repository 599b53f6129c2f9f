//! The schedule of a volume's snapshots: read, and changed under a condition.

use super::super::opening::unmounted::Opened;
use super::super::records::config;
use super::super::records::schedule::Schedule;
use super::super::{KeyOptions, StackError};
use crate::base::VolumeId;

/// How often the configuration is written again because somebody else has changed it.
const TRIES: u32 = 8;

/// The schedule of a volume; with `to` it is that from now on. Mounts follow within minutes, or when
/// they are told.
///
/// # Errors
/// What keeps it from opening the volume, or from writing.
pub async fn schedule(
    options: &KeyOptions,
    to: Option<Schedule>,
) -> Result<(VolumeId, Schedule), StackError> {
    let opened = Opened::open(&options.store, Some(&options.key)).await?;
    let volume = opened.keys().expect("it was opened with a key").volume_id();
    let sealed = opened.sealed().expect("it was opened with a key");
    let mut lost = None;
    for _ in 0..TRIES {
        let was = config::load(&*sealed).await?;
        let Some(to) = to.filter(|to| *to != was.config.snapshots) else {
            return Ok((volume, was.config.snapshots));
        };
        match config::replace(&*sealed, &was, &was.config.with_schedule(to)).await {
            Ok(()) => return Ok((volume, to)),
            Err(e) => lost = Some(e), // changed meanwhile, or the answer was lost: look again
        }
    }
    Err(lost.expect("every round that ends here set it"))
}
