//! The daemon's end of the control socket.
//!
//! Answers `status` and `sync` itself; hands `umount` to the one who owns the mount. A slow or
//! dead client costs its own connection only.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::stack::{Control, Progress};

use super::exit::{Exit, Failure, Outcome};
use super::protocol::{Ask, LINE_BYTES_MAX, Say, line};

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long a client may take to send its request, or to take an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request to unmount, for the owner of the mount.
pub struct UmountAsked {
    /// Give up after this long without any progress.
    pub stall: Duration,
    /// Detach even if files are open.
    pub lazy: bool,
    /// Leave what is pending in the journal.
    pub force_local: bool,
    /// Where progress and the outcome go. Nobody may be listening any more.
    pub say: mpsc::Sender<Say>,
}

/// The socket while it exists; dropping it removes it.
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Binds the socket at `path`, in place of one that a dead daemon has left. The caller has
    /// made its directory private.
    pub fn bind(path: PathBuf) -> io::Result<Socket> {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Socket { path, listener })
    }

    /// Serves clients until dropped.
    pub async fn serve(self, control: Arc<dyn Control>, umount: mpsc::Sender<UmountAsked>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (control, umount) = (Arc::clone(&control), umount.clone());
                    tokio::spawn(async move {
                        if let Err(e) = client(stream, control, umount).await {
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
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            log::debug!("{}: {e}", self.path.display());
        }
    }
}

async fn client(
    stream: UnixStream,
    control: Arc<dyn Control>,
    umount: mpsc::Sender<UmountAsked>,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut text = String::new();
    let mut reader = BufReader::new(read.take(LINE_BYTES_MAX));
    timeout(CLIENT_TIMEOUT, reader.read_line(&mut text)).await??;
    let ask: Ask = serde_json::from_str(&text)?;
    let (say, mut messages) = mpsc::channel(16);
    match ask {
        Ask::Status => {
            let status = Say::Status(Box::new(control.status()));
            return send(&mut write, &status).await;
        }
        Ask::Sync { stall_secs } => {
            tokio::spawn(async move {
                let outcome = drain(&*control, Duration::from_secs(stall_secs), &say).await;
                let last = match outcome {
                    Ok(()) => Say::Done { pending_bytes: 0 },
                    Err(failure) => Say::Failed(failure),
                };
                let _ = say.send(last).await; // the client may have gone; the sync is done
            });
        }
        Ask::Follow { volume_id } => {
            let answer = match control.follow(&volume_id).await {
                Ok(()) => Say::Done { pending_bytes: 0 },
                Err(why) => Say::Failed(Failure::new(Exit::General, why)),
            };
            return send(&mut write, &answer).await;
        }
        Ask::Umount { stall_secs, lazy, force_local } => {
            let stall = Duration::from_secs(stall_secs);
            let asked = UmountAsked { stall, lazy, force_local, say };
            if umount.try_send(asked).is_err() {
                let busy = Failure::new(Exit::Busy, "it is being unmounted already");
                return send(&mut write, &Say::Failed(busy)).await;
            }
        }
    }
    while let Some(message) = messages.recv().await {
        send(&mut write, &message).await?;
        if matches!(message, Say::Done { .. } | Say::Failed(_)) {
            break; // drops the channel, which tells the sender that it has arrived
        }
    }
    Ok(())
}

async fn send(write: &mut OwnedWriteHalf, message: &Say) -> io::Result<()> {
    timeout(CLIENT_TIMEOUT, write.write_all(&line(message))).await?
}

/// Waits until everything written before the call is in the bucket, reporting progress. Gives
/// up with [`Exit::Pending`] after `stall` without any progress.
pub async fn drain(control: &dyn Control, stall: Duration, say: &mpsc::Sender<Say>) -> Outcome {
    let failed = |why: String| Err(Failure::new(Exit::Pending, why));
    let mut sync = control.sync();
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    let (mut last, mut moved) = (control.progress(), Instant::now());
    loop {
        tokio::select! {
            result = &mut sync => return result.or_else(failed),
            _ = tick.tick() => {
                let now = control.progress();
                if moves(&last, &now) {
                    moved = Instant::now();
                }
                if moved.elapsed() > stall {
                    let state = if now.offline { "the store cannot be reached" } else { "no progress" };
                    let (secs, bytes) = (stall.as_secs(), now.pending_bytes);
                    return failed(format!(
                        "{state} for {secs} s; {bytes} bytes are only in the local journal"
                    ));
                }
                // A client that does not listen must not stop the drain.
                let _ = say.try_send(Say::Progress(now.clone()));
                last = now;
            }
        }
    }
}

fn moves(before: &Progress, now: &Progress) -> bool {
    now.committed_bytes != before.committed_bytes || now.pending_bytes < before.pending_bytes
}
