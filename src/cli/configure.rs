//! What a volume remembers, shown or changed where it is mounted or in its store.

use crate::base::VolumeId;
use crate::stack::{Change, Status, VolumeConfig, settings};

use super::client::Client;
use super::exit::{Failure, Outcome};
use super::protocol::{Ask, Say};
use super::snapshot::{Reached, Target, attend};

/// What a volume remembers now.
pub(super) enum Now {
    /// As its mount has it.
    Mount(Box<Status>),
    /// As its store has it.
    Store(Box<VolumeConfig>),
}

/// What the volume at `at` remembers, after `change` if there is one, which its mounts on this machine
/// are told of.
pub(super) fn configured(at: &Target, change: Option<Change>) -> Outcome<Now> {
    match at.reach()? {
        Reached::Mount(dir) => {
            let ask = change.map_or(Ask::Status, |change| Ask::Configure { change });
            match Client::connect(&dir, true)?.ask(&ask, |_| {})? {
                Say::Status(now) => Ok(Now::Mount(now)),
                _ => Err(Failure::answered_else()),
            }
        }
        Reached::Store(options) => {
            let (volume, now) = attend(&options, settings(&options, change.as_ref()))?;
            if change.is_some() {
                tell_mounts(volume);
            }
            Ok(Now::Store(Box::new(now)))
        }
    }
}

/// Tells the mounts of this machine that keyring or configuration have changed, and says which of them
/// could not follow.
pub(super) fn tell_mounts(volume: VolumeId) {
    for why in Client::tell_mounts(volume).1 {
        eprintln!("sealfs: warning: the mount here: {why}");
    }
}
