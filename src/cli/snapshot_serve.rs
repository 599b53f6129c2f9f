//! The daemon's side of restoring and comparing: what the control socket asks of a mount.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::fs::FsError;
use crate::fs::restore::{RestoreError, RestoreOrder, RestoreProgress};
use crate::stack::Control;

use super::exit::{Exit, Failure, GOES_ON};
use super::protocol::Say;
use super::server::PROGRESS_INTERVAL;

/// Batches of differences that wait for the client.
const BATCHES_MAX: usize = 8;

/// Why something of a snapshot could not be done, for people.
pub fn failure(e: &RestoreError) -> Failure {
    let exit = match e {
        RestoreError::Stopped => Exit::Stopped,
        RestoreError::Failed { why: FsError::ReadOnly, .. } => Exit::InUse,
        _ => Exit::General,
    };
    let failure = Failure::new(exit, e);
    match e {
        RestoreError::NoSnapshot(_) => {
            failure.hint("sealfs snapshot list DIR shows those there are")
        }
        RestoreError::OfSnapshot(_) => {
            failure.hint("name a directory that the volume itself is mounted on, or its STORE")
        }
        RestoreError::NotThere { .. } => failure
            .hint("name it as it is below the root of the volume; look into DIR/.snapshots/NAME"),
        RestoreError::NoDirectory(_) => {
            failure.hint("restore the directory itself, or put it elsewhere: --to DIR")
        }
        RestoreError::Failed { why, .. } => match why {
            FsError::Stale => failure.hint("the snapshot was deleted meanwhile"),
            FsError::NoSpace => failure.hint("the journal is full: sealfs status DIR; then again"),
            FsError::Quota(_) => {
                failure.hint("delete something, or raise the quota: sealfs quota DIR SIZE")
            }
            FsError::ReadOnly => failure.hint("only the mount that writes the volume can restore"),
            _ => failure.hint(
                "what was restored is whole; when the cause is gone, the same command goes on",
            ),
        },
        RestoreError::Stopped => failure.hint(GOES_ON),
    }
}

/// Restores, and says how far it is. Ends when the mount does, or when nobody waits any more.
pub async fn restore(
    control: Arc<dyn Control>,
    order: RestoreOrder,
    mut end: watch::Receiver<bool>,
    say: mpsc::Sender<Say>,
) {
    let progress = Arc::new(RestoreProgress::default());
    let restoring = control.restore(order, progress.clone());
    tokio::pin!(restoring);
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    let mut is_stopped = false;
    let last = loop {
        tokio::select! {
            outcome = &mut restoring => break match outcome {
                Ok(done) => Say::Restored(Box::new(done)),
                Err(e) => Say::Failed(failure(&e)),
            },
            _ = tick.tick() => {
                let (files, unchanged) = progress.so_far();
                let _ = say.try_send(Say::Restoring { files, unchanged }); // the next one tells more
            }
            () = say.closed(), if !is_stopped => {
                is_stopped = true;
                progress.stop();
            }
            _ = end.wait_for(|ended| *ended), if !is_stopped => {
                is_stopped = true;
                progress.stop();
            }
        }
    };
    let _ = say.send(last).await; // the client may have gone
}

/// Compares, and hands out what differs as it is found.
pub async fn compare(control: Arc<dyn Control>, names: [String; 2], say: mpsc::Sender<Say>) {
    let (out, mut found) = mpsc::channel(BATCHES_MAX);
    let comparing = control.diff(names, out);
    let telling = async {
        while let Some(some) = found.recv().await {
            if say.send(Say::Differences(some)).await.is_err() {
                found.close(); // which ends the comparison
            }
        }
    };
    let (outcome, ()) = futures::join!(comparing, telling);
    let last = match outcome {
        Ok(()) => Say::Done { pending_bytes: 0 },
        Err(e) => Say::Failed(failure(&e)),
    };
    let _ = say.send(last).await; // the client may have gone
}
