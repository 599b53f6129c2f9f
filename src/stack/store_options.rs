//! Where the store of a volume is and how it is reached: plain data, filled in by `cli` from the
//! command line.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;

use super::Attended;
use crate::base::VolumeId;
use crate::store::s3::SseAsk;
use crate::store::{Limits, Location};

/// How long a read of keyring or configuration may take.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the store is and how it is reached.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The parsed STORE argument.
    pub location: Location,
    /// `--endpoint-url`; AWS itself when absent.
    pub endpoint_url: Option<String>,
    /// Which server and account that is, as far as flags and environment say: where it is the same, the
    /// same store is meant.
    pub server: String,
    /// `--region`; else from the AWS configuration.
    pub region: Option<String>,
    /// `--profile`; else from the AWS configuration.
    pub profile: Option<String>,
    /// `--allow-http`: plain http to other machines.
    pub allow_http: bool,
    /// Server-side encryption of every object, as far as it was asked for.
    pub sse: SseAsk,
    /// How fast bytes may go to the store and come from it.
    pub limits: Arc<Limits>,
    /// Shows what is waited for, and takes the wish to stop.
    pub attended: Attended,
    /// The volume that is meant (`--volume-id`): any other is refused, and this one is taken
    /// whichever was there before.
    pub volume: Option<VolumeId>,
    /// Where this machine remembers which volume was at which store, if it does: another is
    /// refused.
    pub state_dir: Option<PathBuf>,
    /// A store of the caller's own in place of what `location` names (tests).
    pub custom: Option<Arc<dyn ObjectStore>>,
}

impl StoreOptions {
    /// The same, with what is remembered in `state_dir` of volumes and stores.
    pub(crate) fn seen_in(&self, state_dir: &Path) -> StoreOptions {
        StoreOptions { state_dir: Some(state_dir.into()), ..self.clone() }
    }

    /// The defaults for `location`.
    pub fn new(location: Location) -> StoreOptions {
        StoreOptions {
            location,
            endpoint_url: None,
            server: String::new(),
            region: None,
            profile: None,
            allow_http: false,
            sse: SseAsk::default(),
            limits: Arc::default(),
            attended: Attended::default(),
            volume: None,
            state_dir: None,
            custom: None,
        }
    }
}
