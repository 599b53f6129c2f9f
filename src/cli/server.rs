//! The daemon's end of the control socket.
//!
//! Answers `status` and `sync` itself; hands `umount` to the one who owns the mount. A slow or
//! dead client costs its own connection only.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::fuse::Operations;
use crate::stack::{
    Attended, Control, DemoteAsk, Progress, PromoteAsk, Setting, Settings, StackError, Transition,
};

use super::du;
use super::exit::{Exit, Failure, Outcome};
use super::leaving::stalled;
use super::notify;
use super::pin_serve;
use super::protocol::{Ask, LINE_BYTES_MAX, Sample, Say, line};
use super::snapshot_serve;
use super::socket::Socket;

/// How often progress is reported.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// A client that waits hears something at least this often, whatever the mount is doing.
const QUIET_MAX: Duration = Duration::from_secs(2);
/// How many commands may ask for the end of the mount before the first is looked at.
pub const ASKED_MAX: usize = 16;
/// How long a client may take to send its request, or to take an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long looking where a file is may take; below the patience of the command.
const LOOK_MAX: Duration = Duration::from_secs(50);

/// A request to unmount, for the owner of the mount.
pub struct UmountAsked {
    /// Give up after this long without any progress.
    pub stall: Duration,
    /// Detach even if files are open.
    pub lazy: bool,
    /// Leave what is pending in the journal.
    pub force_local: bool,
    /// Where progress and the outcome go. Closed when the client goes away: it wants nothing then.
    pub say: mpsc::Sender<Say>,
}

/// A mount as those see it who ask how it is.
#[derive(Clone)]
pub struct Watched {
    /// The volume.
    pub control: Arc<dyn Control>,
    /// What the kernel asked for.
    pub operations: Operations,
}

impl Watched {
    /// Everything that is counted, now. Never waits.
    pub fn sample(&self) -> Sample {
        Sample { numbers: self.control.numbers(), fuse: self.operations.counted() }
    }
}

/// Serves the clients of `socket` until dropped.
pub async fn serve(
    mut socket: Socket,
    watched: Watched,
    umount: mpsc::Sender<UmountAsked>,
    end: watch::Receiver<bool>,
) {
    loop {
        match socket.accept().await {
            Ok(stream) => {
                let (watched, umount) = (watched.clone(), umount.clone());
                let end = end.clone();
                tokio::spawn(async move {
                    if let Err(e) = client(stream, watched, umount, end).await {
                        log::debug!("a client of the control socket went away: {e}");
                    }
                });
            }
            Err(e) => {
                log::warn!("the control socket takes no client: {e}");
                tokio::time::sleep(PROGRESS_INTERVAL).await; // out of descriptors, perhaps
            }
        }
    }
}

async fn client(
    stream: UnixStream,
    watched: Watched,
    umount: mpsc::Sender<UmountAsked>,
    mut end: watch::Receiver<bool>,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut text = String::new();
    let mut reader = BufReader::new(read.take(LINE_BYTES_MAX));
    timeout(CLIENT_TIMEOUT, reader.read_line(&mut text)).await??;
    let ask: Ask = serde_json::from_str(&text)?;
    let (say, mut messages) = mpsc::channel(16);
    let control = Arc::clone(&watched.control);
    match ask {
        Ask::Status => {
            control.look().await;
            let status = Say::Status(Box::new(control.status()));
            return send(&mut write, &status).await;
        }
        Ask::Sample => {
            let sample = Say::Sample(Box::new(watched.sample()));
            return send(&mut write, &sample).await;
        }
        Ask::Places { ino } => {
            let looked = timeout(LOOK_MAX, control.places(ino)).await;
            let answer = match looked {
                Ok(Ok(Some(places))) => Say::Places(Box::new(places)),
                Ok(Ok(None)) => {
                    Say::Failed(Failure::new(Exit::General, "there is no such file any more"))
                }
                Ok(Err(why)) => Say::Failed(Failure::new(Exit::General, why)),
                Err(_) => Say::Failed(Failure::new(Exit::Unreachable, "the store does not answer")),
            };
            return send(&mut write, &answer).await;
        }
        Ask::SnapshotList => {
            let answer = match timeout(LOOK_MAX, control.snapshots()).await {
                Ok(Ok(list)) => Say::Snapshots(Box::new(list)),
                Ok(Err(why)) => Say::Failed(Failure::new(Exit::General, why)),
                Err(_) => Say::Failed(Failure::new(Exit::Unreachable, "the store does not answer")),
            };
            return send(&mut write, &answer).await;
        }
        Ask::SnapshotCreate(ask) => {
            let answer = match control.create_snapshot(ask).await {
                Ok(made) => Say::Snapshot(Box::new(made)),
                Err(why) => Say::SnapshotRefused(why),
            };
            return send(&mut write, &answer).await;
        }
        Ask::SnapshotDelete { names } => {
            let answer = match control.delete_snapshots(names).await {
                Ok(()) => Say::Done { pending_bytes: 0 },
                Err(why) => Say::SnapshotRefused(why),
            };
            return send(&mut write, &answer).await;
        }
        Ask::Set { settings } => {
            // Files of a cache that shrinks are removed.
            let set = tokio::task::spawn_blocking(move || change_all(&*control, &settings)).await;
            let answer = match set {
                Ok(Ok(settings)) => Say::Settings(settings),
                Ok(Err(why)) => Say::Failed(Failure::new(Exit::General, why)),
                Err(e) => Say::Failed(Failure::new(Exit::General, format!("bug: {e}"))),
            };
            return send(&mut write, &answer).await;
        }
        Ask::Configure { change } => {
            let changed = timeout(LOOK_MAX, Arc::clone(&control).configure(change)).await;
            let answer = match changed {
                Ok(Ok(status)) => Say::Status(Box::new(status)),
                Ok(Err(why)) => Say::Failed(why.into()),
                Err(_) => Say::Failed(Failure::new(Exit::Unreachable, "the store does not answer")),
            };
            return send(&mut write, &answer).await;
        }
        Ask::Sync { stall_secs } => {
            let control = Arc::clone(&control);
            tokio::spawn(async move {
                let stall = Duration::from_secs(stall_secs);
                let outcome = tokio::select! {
                    outcome = drain(&*control, stall, &say) => outcome,
                    _ = end.wait_for(|ended| *ended) => ended_first(&*control),
                    () = say.closed() => return, // nobody waits for it any more
                };
                let last = match outcome {
                    Ok(()) => Say::Done { pending_bytes: 0 },
                    Err(failure) => Say::Failed(failure),
                };
                let _ = say.send(last).await; // the client may have gone
            });
        }
        Ask::Follow { volume_id } => {
            let answer = match control.follow(&volume_id).await {
                Ok(true) => Say::Done { pending_bytes: 0 },
                Ok(false) => {
                    let why = "this mount does not write that volume";
                    Say::Failed(Failure::new(Exit::NotMounted, why))
                }
                Err(why) => Say::Failed(Failure::new(Exit::General, why)),
            };
            return send(&mut write, &answer).await;
        }
        Ask::Du { ask } => {
            tokio::spawn(du::serve(control.clone(), ask, say));
        }
        Ask::Pin { paths, unpin } => {
            tokio::spawn(pin_serve::pin(control.clone(), paths, unpin, end, say));
        }
        Ask::SnapshotRestore { order } => {
            tokio::spawn(snapshot_serve::restore(control.clone(), order, end, say));
        }
        Ask::SnapshotDiff { names } => {
            tokio::spawn(snapshot_serve::compare(control.clone(), names, say));
        }
        Ask::Promote { takeover, accept } => {
            let attended = Attended::default();
            let asked = PromoteAsk { takeover, accept, attended: attended.clone() };
            tokio::spawn(answer_change(Arc::clone(&control).promote(asked), attended, say));
        }
        Ask::Demote { stall_secs } => {
            let (attended, stall) = (Attended::default(), Duration::from_secs(stall_secs));
            let asked = DemoteAsk { stall, attended: attended.clone() };
            tokio::spawn(answer_change(Arc::clone(&control).demote(asked), attended, say));
        }
        Ask::Umount { stall_secs, lazy, force_local } => {
            let stall = Duration::from_secs(stall_secs);
            let asked = UmountAsked { stall, lazy, force_local, say };
            if umount.try_send(asked).is_err() {
                let busy = Failure::new(Exit::Busy, "too many commands wait for its end already");
                return send(&mut write, &Say::Failed(busy)).await;
            }
        }
    }
    // Leaving drops the channel, which tells the sender that the last message has arrived, or that
    // nobody waits for it.
    let mut read = reader.into_inner().into_inner();
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            () = gone(&mut read) => return Ok(()),
            () = tokio::time::sleep(QUIET_MAX) => Some(Say::Progress(control.progress())),
        };
        let message = message.unwrap_or_else(|| {
            Say::Failed(Failure::new(Exit::General, "the mount process ended meanwhile"))
        });
        send(&mut write, &message).await?;
        let is_last = matches!(
            message,
            Say::Done { .. } | Say::Failed(_) | Say::Restored(_) | Say::Pinned(_) | Say::Du(_)
        );
        if is_last {
            return Ok(());
        }
    }
}

/// Tells how a change of the role went. A client that goes away wants none any more: as long as nothing has
/// changed, it is given up.
async fn answer_change(
    change: impl Future<Output = Result<Transition, StackError>>,
    attended: Attended,
    say: mpsc::Sender<Say>,
) {
    tokio::pin!(change);
    let outcome = tokio::select! {
        outcome = &mut change => outcome,
        () = say.closed() => {
            attended.stop();
            change.await
        }
    };
    let last = match outcome {
        Ok(_) => Say::Done { pending_bytes: 0 },
        Err(e) => {
            log::warn!("the role stays as it is: {e}");
            Say::Failed(e.into())
        }
    };
    let _ = say.send(last).await; // the client may have gone
}

/// Changes settings; returns what holds now.
fn change_all(control: &dyn Control, settings: &[Setting]) -> Result<Settings, String> {
    for setting in settings {
        change(control, setting)?;
        log::info!("changed by sealfs set: {setting:?}");
    }
    Ok(control.settings())
}

/// Changes one setting of the live mount.
///
/// # Errors
/// Why it cannot be changed.
pub fn change(control: &dyn Control, setting: &Setting) -> Result<(), String> {
    control.set(setting)?;
    if let Setting::LogLevel(level) = setting {
        let level = level.parse().map_err(|_| format!("{level} is no level of a log"))?;
        log::set_max_level(level);
    }
    Ok(())
}

/// Returns when the client has closed its end. It has said all it had to say.
async fn gone(read: &mut OwnedReadHalf) {
    let mut ignored = [0; 64];
    while matches!(read.read(&mut ignored).await, Ok(n) if n > 0) {}
}

/// The answer to a sync whose mount ends while it waits.
fn ended_first(control: &dyn Control) -> Outcome {
    match control.progress().pending_bytes {
        0 => Ok(()),
        bytes => Err(Failure::new(
            Exit::Pending,
            format!("it was unmounted meanwhile; {bytes} bytes are only in the local journal"),
        )
        .hint("mount it here again to upload the rest")),
    }
}

async fn send(write: &mut OwnedWriteHalf, message: &Say) -> io::Result<()> {
    timeout(CLIENT_TIMEOUT, write.write_all(&line(message))).await?
}

/// Waits until everything written before the call is in the bucket, reporting progress. Gives
/// up with [`Exit::Pending`] after `stall` without any progress.
async fn drain(control: &dyn Control, stall: Duration, say: &mpsc::Sender<Say>) -> Outcome {
    let failed = |why: String| Err(Failure::new(Exit::Pending, why));
    let mut sync = control.sync();
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    let (mut standstill, mut moved) = (Standstill::after(&control.progress()), Instant::now());
    loop {
        tokio::select! {
            result = &mut sync => return result.or_else(failed),
            _ = tick.tick() => {
                let now = control.progress();
                if standstill.ends(&now) {
                    moved = Instant::now();
                    notify::progress(&now, true);
                }
                if moved.elapsed() > stall {
                    return Err(stalled(stall, &now));
                }
                // A client that does not listen must not stop the drain.
                let _ = say.try_send(Say::Progress(now));
            }
        }
    }
}

/// How far things had come when they last moved.
pub struct Standstill {
    /// The most bytes that the store had taken: what is sent again after a failure is no progress.
    moved_bytes: u64,
    pending_bytes: u64,
}

impl Standstill {
    /// It begins now.
    pub fn after(now: &Progress) -> Standstill {
        Standstill { moved_bytes: now.moved_bytes, pending_bytes: now.pending_bytes }
    }

    /// Whether things have moved since.
    pub fn ends(&mut self, now: &Progress) -> bool {
        let moves = now.moved_bytes > self.moved_bytes || now.pending_bytes < self.pending_bytes;
        self.moved_bytes = self.moved_bytes.max(now.moved_bytes);
        self.pending_bytes = now.pending_bytes;
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_the_store_takes_are_progress_and_those_sent_again_are_not() {
        // Guards against "no progress" during a long upload, and against a drain that goes on for
        // ever because every attempt fills the same buffers.
        let at = |moved_bytes, pending_bytes| Progress {
            moved_bytes,
            pending_bytes,
            ..Progress::default()
        };
        let mut standstill = Standstill::after(&at(100, 50));
        for (now, moves) in [
            (at(100, 50), false),
            (at(104, 50), true),
            (at(100, 50), false), // the attempt failed
            (at(104, 50), false), // and was made again
            (at(105, 50), true),
            (at(105, 60), false), // more was written
            (at(105, 55), true),
        ] {
            assert_eq!(standstill.ends(&now), moves, "{now:?}");
        }
    }
}
