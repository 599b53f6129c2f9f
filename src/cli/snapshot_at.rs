//! Which volume a command on snapshots means: one that is mounted here, by its directory, or a STORE,
//! which is then opened for the time of the command.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::stack::{Attended, MountOptions, Mounted, StackError};

use super::args::{SecretArgs, StoreArgs};
use super::client::Client;
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::live::mount_of;

/// STORE or DIR, and how the one is reached.
#[derive(Args, Clone, Debug)]
pub(super) struct VolumeArgs {
    /// The directory that it is mounted on, or one in it; or s3://BUCKET[/PREFIX] or
    /// file:///ABSOLUTE/DIRECTORY
    #[arg(value_name = "STORE|DIR")]
    volume: String,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
    /// Journal of a volume that is not mounted [default: ~/.local/state/sealfs or /var/lib/sealfs]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// The volume that is meant.
pub(super) enum Volume {
    /// It is mounted here.
    Mounted(Client),
    /// It is to be opened.
    Store(Box<MountOptions>),
}

impl VolumeArgs {
    /// What it was called.
    pub(super) fn name(&self) -> &str {
        &self.volume
    }

    /// Whether that is a STORE.
    pub(super) fn is_store(&self) -> bool {
        self.volume.contains("://")
    }

    /// Finds it. `read_only`: it is opened only to be read.
    pub(super) fn find(&self, read_only: bool) -> Outcome<Volume> {
        if !self.is_store() {
            return Client::connect(Path::new(&self.volume), true).map(Volume::Mounted);
        }
        let store = self.access.resolve(&self.volume)?;
        if let Some(client) = mount_of(Client::all(), &store, |status| status.snapshot.is_none())? {
            return Ok(Volume::Mounted(client));
        }
        super::keep_private();
        let key = self.secret.read_for(&store)?;
        let cache_dir = dirs::cache_dir()?;
        let state_dir = dirs::absolute_or(self.state_dir.as_deref(), dirs::state_dir)?;
        for dir in [&cache_dir, &state_dir] {
            let failed =
                |e| Failure::new(Exit::General, format!("cannot use {}: {e}", dir.display()));
            dirs::make_base(dir).map_err(failed)?;
        }
        let options = MountOptions::new(store, key, cache_dir, state_dir);
        Ok(Volume::Store(Box::new(MountOptions { read_only, ..options })))
    }
}

/// Opens a volume, does `work` with it, and closes it in order. `work` ends when it is asked to stop.
pub(super) fn open<T, F>(
    options: MountOptions,
    work: impl FnOnce(std::sync::Arc<dyn crate::stack::Control>, Attended) -> F,
) -> Outcome<T>
where
    F: Future<Output = Outcome<T>>,
{
    let attended = options.store.attended.clone();
    let wish = attended.clone();
    let opened = async {
        let mounted: Mounted = crate::stack::mount(options).await?;
        let done = work(mounted.control.clone(), wish).await;
        let drained = mounted.shutdown(DRAIN_MAX).await;
        Ok::<_, StackError>(match (done, drained) {
            (Ok(_), false) => {
                Err(Failure::new(Exit::Pending, "not everything is in the bucket yet")
                    .hint("mount the volume on this machine: it uploads the rest"))
            }
            (done, _) => done,
        })
    };
    super::signals::run(&attended, STOP_MAX, opened)?
}

/// How long what was changed may take to get to the bucket.
const DRAIN_MAX: std::time::Duration = std::time::Duration::from_secs(600);
/// How long a command that is stopped may take to end in order.
const STOP_MAX: std::time::Duration = std::time::Duration::from_secs(10);
