//! The mount process: from the opened volume to its end, and what ends it.
//!
//! It ends when it is asked to over the control socket, by SIGTERM or SIGINT, or when someone
//! else unmounts the directory. In every case what is pending is uploaded first; what cannot
//! be stays in the journal for the next mount.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::fuse::{self, Session};
use crate::stack::{self, Connection, Control, Mounted};

use super::daemon::Starting;
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::protocol::Say;
use super::server::{Socket, UmountAsked, drain};

/// How long a drain goes on without any progress before the rest is left to the journal.
pub const STALL: Duration = Duration::from_secs(600);
/// How long request threads and the store may take to close once the mount is gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

/// What to mount, where and how.
pub struct Plan {
    /// The volume.
    pub volume: stack::MountOptions,
    /// The FUSE mount.
    pub fuse: fuse::Options,
    /// The mount point, resolved.
    pub point: PathBuf,
}

/// A mount that works.
struct Running {
    mounted: Mounted,
    session: Session,
    control: Arc<dyn Control>,
    umounts: mpsc::Receiver<UmountAsked>,
    terminate: Signal,
    interrupt: Signal,
}

/// Mounts, reports through `starting`, and serves until the end. The outcome is
/// [`Exit::Pending`] when not everything is in the bucket.
pub async fn serve(plan: Plan, starting: Starting) -> Outcome {
    let point = plan.point.clone();
    let running = match start(plan).await {
        Ok(running) => running,
        Err(failure) => return starting.failed(failure),
    };
    for note in running.mounted.notes() {
        eprintln!("sealfs: note: {note}");
    }
    if let Err(e) = starting.ready() {
        log::warn!("cannot leave the terminal: {e}");
    }
    log::info!("mounted on {}", point.display());
    running.run().await
}

async fn start(plan: Plan) -> Outcome<Running> {
    let general = |what: &str, e: io::Error| Failure::new(Exit::General, format!("{what}: {e}"));
    let terminate =
        signal(SignalKind::terminate()).map_err(|e| general("cannot catch SIGTERM", e))?;
    let interrupt =
        signal(SignalKind::interrupt()).map_err(|e| general("cannot catch SIGINT", e))?;
    let path = dirs::socket_path(&plan.point)?;
    let dir = path.parent().unwrap_or(&path);
    dirs::make_private(dir).map_err(|e| general(&format!("cannot use {}", dir.display()), e))?;

    let mounted = stack::mount(plan.volume).await?;
    let served = fuse::serve(Arc::clone(&mounted.fs), &plan.point, &plan.fuse, &Handle::current());
    let session = match served {
        Ok(session) => session,
        Err(e) => {
            close(mounted).await;
            return Err(mount_failure(&e));
        }
    };
    let socket = match Socket::bind(path.clone()) {
        Ok(socket) => socket,
        Err(e) => {
            let _ = unmount(session.mount_point().into(), true).await; // the bind error is told
            close(mounted).await;
            return Err(general(&format!("cannot make {}", path.display()), e));
        }
    };
    let control = Arc::clone(&mounted.control);
    let (ask, umounts) = mpsc::channel(1);
    tokio::spawn(socket.serve(Arc::clone(&control), ask));
    Ok(Running { mounted, session, control, umounts, terminate, interrupt })
}

fn mount_failure(e: &fuse::MountError) -> Failure {
    let failure = Failure::new(Exit::General, e);
    match e {
        fuse::MountError::AllowOther => {
            failure.hint("add the line user_allow_other to /etc/fuse.conf, or drop allow_other")
        }
        fuse::MountError::MountPoint { path, .. } => {
            failure.hint(format!("mkdir -p {}", path.display()))
        }
        fuse::MountError::Kernel { .. } => failure.hint("apt install fuse3; modprobe fuse"),
        fuse::MountError::Threads(_) => failure,
    }
}

/// How a mount came to its end.
struct End {
    stall: Duration,
    force_local: bool,
    /// Who waits for the outcome, if anyone.
    say: mpsc::Sender<Say>,
}

impl End {
    fn unasked() -> End {
        let (say, _) = mpsc::channel(1);
        End { stall: STALL, force_local: false, say }
    }
}

impl Running {
    async fn run(mut self) -> Outcome {
        let end = self.serve_until_unmounted().await;
        if timeout(CLOSE_TIMEOUT, self.session.ended()).await.is_err() {
            log::warn!("files are still open on the detached mount; they end now");
        }
        log::info!("unmounted {}", self.session.mount_point().display());
        // What the kernel wrote back while it unmounted is still to be uploaded.
        let outcome = match end.force_local {
            true => Ok(()),
            false => drain(&*self.control, end.stall, &end.say).await,
        };
        let pending_bytes = self.control.progress().pending_bytes;
        close(self.mounted).await;
        let outcome = match outcome {
            Ok(()) if pending_bytes > 0 => Err(Failure::new(
                Exit::Pending,
                format!("{pending_bytes} bytes are only in the local journal"),
            )),
            other => other,
        };
        match &outcome {
            Ok(()) => log::info!("everything is in the bucket"),
            Err(failure) => log::error!("{}", failure.message),
        }
        // The unmount itself is done: what is left pending is its result, not a failure.
        if end.say.send(Say::Done { pending_bytes }).await.is_ok() {
            // The process ends next: give the message the time to arrive.
            let _ = timeout(Duration::from_secs(5), end.say.closed()).await;
        }
        outcome
    }

    /// Returns once the directory is no longer mounted.
    async fn serve_until_unmounted(&mut self) -> End {
        loop {
            tokio::select! {
                () = self.session.ended() => return End::unasked(),
                _ = self.terminate.recv() => return self.leave_on_signal().await,
                _ = self.interrupt.recv() => return self.leave_on_signal().await,
                Some(asked) = self.umounts.recv() => {
                    if let Some(end) = self.leave(asked).await {
                        return end;
                    }
                }
            }
        }
    }

    /// Drains, then unmounts. `None`: it stays mounted (or, lazily, until its files close).
    async fn leave(&self, asked: UmountAsked) -> Option<End> {
        let UmountAsked { stall, lazy, mut force_local, say } = asked;
        // Nothing more of this mount ever gets into the bucket: there is nothing to wait for.
        force_local |= self.control.status().connection == Connection::Fenced;
        let outcome = async {
            if !force_local {
                drain(&*self.control, stall, &say).await?;
            }
            unmount(self.session.mount_point().into(), lazy).await
        };
        if let Err(failure) = outcome.await {
            log::warn!("not unmounted: {}", failure.message);
            let _ = say.send(Say::Failed(failure)).await; // nobody may be waiting
            return None;
        }
        if lazy && timeout(Duration::from_secs(2), self.session.ended()).await.is_err() {
            log::info!("detached; serving the files that are open");
            let pending_bytes = self.control.progress().pending_bytes;
            let _ = say.send(Say::Done { pending_bytes }).await; // nobody may be waiting
            return None;
        }
        Some(End { stall, force_local, say })
    }

    /// A second signal stops the upload; the rest stays in the journal.
    async fn leave_on_signal(&mut self) -> End {
        log::info!("asked to end; uploading what is pending");
        let (say, _) = mpsc::channel(1);
        let force_local = tokio::select! {
            outcome = drain(&*self.control, STALL, &say) => {
                outcome.is_err_and(|f| { log::error!("{}", f.message); true })
            }
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
        };
        let point = self.session.mount_point().to_path_buf();
        if let Err(failure) = unmount(point.clone(), false).await {
            log::warn!("{}; detaching it", failure.message);
            if let Err(failure) = unmount(point, true).await {
                log::error!("{}", failure.message);
            }
        }
        End { stall: STALL, force_local, say }
    }
}

/// Unmounts on a thread that may block: the kernel writes dirty pages back, through us.
async fn unmount(point: PathBuf, lazy: bool) -> Outcome {
    let shown = point.display().to_string();
    let done = tokio::task::spawn_blocking(move || fuse::unmount(&point, lazy)).await;
    match done {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) if e.raw_os_error() == Some(libc::EBUSY) => {
            Err(Failure::new(Exit::Busy, format!("{shown} is in use")))
        }
        // Somebody else was faster.
        Ok(Err(e)) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Ok(Err(e)) => Err(Failure::new(Exit::General, format!("cannot unmount {shown}: {e}"))),
        Err(e) => Err(Failure::new(Exit::General, format!("cannot unmount {shown}: {e}"))),
    }
}

/// Closes the volume, within bounds: what it had promised is on disk already.
async fn close(mounted: Mounted) {
    // What could be drained has been: whatever is left stays in the journal.
    match timeout(CLOSE_TIMEOUT * 2, mounted.shutdown(Duration::ZERO)).await {
        Ok(_) => {}
        Err(_) => log::error!("closing the volume takes too long; ending without"),
    }
}
