//! Snapshots of a volume that is not mounted here: a short mount for each command.

use std::time::Duration;

use futures::future::BoxFuture;

use super::super::running::snapshots as running;
use super::super::{
    KeyOptions, MountOptions, Mounted, SnapshotAsk, SnapshotInfo, SnapshotList, SnapshotRefused,
    StackError, mount,
};

/// How long such a mount may take to get the local journal to the bucket, and to end.
const DRAIN_MAX: Duration = Duration::from_secs(600);
/// The same when the command was stopped.
const STOPPED_DRAIN_MAX: Duration = Duration::from_secs(5);

/// The result of a command about snapshots: done, or refused.
pub type Outcome<T> = Result<Result<T, SnapshotRefused>, StackError>;

/// Makes a snapshot. What is pending on this machine is in it.
///
/// # Errors
/// As for a mount.
pub async fn create(options: &KeyOptions, ask: SnapshotAsk) -> Outcome<SnapshotInfo> {
    shortly(options, false, |mounted| Box::pin(mounted.control.create_snapshot(ask))).await
}

/// Deletes snapshots: all of these or none.
///
/// # Errors
/// As for a mount.
pub async fn delete(options: &KeyOptions, names: Vec<String>) -> Outcome<()> {
    shortly(options, false, |mounted| Box::pin(mounted.control.delete_snapshots(names))).await
}

/// All snapshots. Changes nothing, and disturbs no mount.
///
/// # Errors
/// As for a mount that only reads.
pub async fn list(options: &KeyOptions) -> Result<SnapshotList, StackError> {
    let listed = shortly(options, true, |mounted| {
        Box::pin(async { Ok(running::list(mounted.view().kv()).await) })
    });
    match listed.await? {
        Ok(listed) => Ok(listed?),
        Err(refused) => unreachable!("listing is not refused: {refused:?}"),
    }
}

/// A mount without a mount point, for one thing. Stopped, it ends in order, in a while.
async fn shortly<T>(
    options: &KeyOptions,
    read_only: bool,
    work: impl for<'a> FnOnce(&'a Mounted) -> BoxFuture<'a, Result<T, SnapshotRefused>>,
) -> Outcome<T> {
    let path = std::env::temp_dir();
    let local = |source| StackError::Local { what: "creating a directory in", path, source };
    let cache = tempfile::tempdir().map_err(local)?;
    let (store, key) = (options.store.clone(), options.key.clone());
    let attended = store.attended.clone();
    let mut mount_options = MountOptions::new(store, key, cache.path(), options.state_dir.clone());
    mount_options.cache_bytes_max = 0;
    mount_options.clean.dead_bytes_min = 0;
    mount_options.read_only = read_only;
    let mounted = Box::pin(mount(mount_options)).await?;
    let done = attended.unless_stopped(async { Ok(work(&mounted).await) }).await;
    let drain = if done.is_ok() { DRAIN_MAX } else { STOPPED_DRAIN_MAX };
    if !Box::pin(mounted.shutdown(drain)).await {
        log::warn!("what is pending on this machine is not in the bucket yet");
    }
    done
}
