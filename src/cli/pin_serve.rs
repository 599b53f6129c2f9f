//! The daemon's side of `sealfs warm --pin`: what the control socket asks of a mount.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::stack::{Control, PinPath};

use super::exit::{Exit, Failure};
use super::protocol::Say;
use super::server::PROGRESS_INTERVAL;

/// Pins or unpins, and says how far the mount is with it. The mount goes on with it when nobody waits
/// any more.
pub async fn pin(
    control: Arc<dyn Control>,
    paths: Vec<PinPath>,
    unpin: bool,
    mut end: watch::Receiver<bool>,
    say: mpsc::Sender<Say>,
) {
    let changing = match unpin {
        true => control.clone().unpin(paths),
        false => control.clone().pin(paths),
    };
    let changed = tokio::select! {
        changed = changing => changed,
        () = say.closed() => return, // nothing has changed
    };
    let mut now = match changed {
        Ok(now) => now,
        Err(refused) => {
            let failure = Failure::new(refused.kind.into(), refused.message);
            let failure = refused.hint.into_iter().fold(failure, Failure::hint);
            let _ = say.send(Say::Failed(failure)).await; // the client may have gone
            return;
        }
    };
    let revision = now.revision;
    let last = loop {
        if now.done_revision >= revision {
            break Say::Pinned(Box::new(now));
        }
        let _ = say.try_send(Say::Pinning(Box::new(now))); // the next one tells more
        tokio::select! {
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
            () = say.closed() => return,
            _ = end.wait_for(|ended| *ended) => {
                let failure = Failure::new(Exit::NotMounted, "it was unmounted meanwhile");
                break Say::Failed(failure.hint("the next mount on this machine goes on with it"));
            }
        }
        now = control.pins();
    };
    let _ = say.send(last).await; // the client may have gone
}
