//! The control socket as a file: made where commands look for it, made again when somebody wiped
//! its directory, removed only by the mount that made it.
//!
//! Two mounts of one directory may live at once: the first detached but still serving open files,
//! the second on top. The path belongs to the later one.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::dirs;
use super::exit::{Exit, Failure, Outcome};

/// How often it is looked whether the socket can still be found.
const LOOK_AFTER: Duration = Duration::from_secs(2);
/// How long somebody else may be making or removing a socket.
const LOCK_MAX: Duration = Duration::from_secs(5);

/// The socket while it exists; dropping it removes it.
pub struct Socket {
    /// Where it may be, the best place first.
    places: Vec<PathBuf>,
    bound: Bound,
    look: Interval,
    /// A later mount of this directory has taken the place.
    superseded: bool,
}

struct Bound {
    path: PathBuf,
    /// Device and inode: what tells our file from a later one of the same name.
    identity: (u64, u64),
    listener: UnixListener,
}

impl Socket {
    /// Binds the socket at the first of `places` (paths of sockets) that can be used, in place of
    /// what dead or detached mounts have left at any of them.
    ///
    /// # Errors
    /// Why the last place cannot be used.
    pub fn bind(places: Vec<PathBuf>) -> io::Result<Socket> {
        let bound = bind_first(&places)?;
        for other in places.iter().filter(|place| **place != bound.path && place.exists()) {
            // Left by an earlier mount: commands must not find that one.
            if let Err(e) = std::fs::remove_file(other) {
                log::debug!("{}: {e}", other.display());
            }
        }
        let mut look = interval(LOOK_AFTER);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Socket { places, bound, look, superseded: false })
    }

    /// The next client.
    pub async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            tokio::select! {
                client = self.bound.listener.accept() => return Ok(client?.0),
                _ = self.look.tick() => self.look_after(),
            }
        }
    }

    /// Makes the socket again if its file is gone, as when a logout wiped /run/user/UID.
    fn look_after(&mut self) {
        if self.superseded || is_at(&self.bound.path, self.bound.identity) {
            return;
        }
        if let Some(other) = self.places.iter().find(|place| place.exists()) {
            log::info!("a later mount answers at {}", other.display());
            self.superseded = true;
            return;
        }
        match bind_first(&self.places) {
            Ok(bound) => {
                log::info!("the control socket was removed; made it again");
                self.bound = bound;
            }
            // Tried again at the next look.
            Err(e) => log::debug!("the control socket was removed: {e}"),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Bound { path, identity, .. } = &self.bound;
        // Between the look and the removal nobody may put another socket there.
        let Ok(_lock) = lock(path) else { return };
        if is_at(path, *identity)
            && let Err(e) = std::fs::remove_file(path)
        {
            log::debug!("{}: {e}", path.display());
        }
    }
}

fn is_at(path: &Path, identity: (u64, u64)) -> bool {
    path.symlink_metadata().is_ok_and(|m| (m.dev(), m.ino()) == identity)
}

fn bind_first(places: &[PathBuf]) -> io::Result<Bound> {
    let mut failed = io::ErrorKind::NotFound.into();
    for place in places {
        match bind_at(place) {
            Ok(bound) => return Ok(bound),
            Err(e) => failed = io::Error::new(e.kind(), format!("{}: {e}", place.display())),
        }
    }
    Err(failed)
}

fn bind_at(path: &Path) -> io::Result<Bound> {
    dirs::make_private(directory(path))?;
    let _lock = lock(path)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let meta = path.symlink_metadata()?;
    Ok(Bound { path: path.into(), identity: (meta.dev(), meta.ino()), listener })
}

fn directory(socket: &Path) -> &Path {
    socket.parent().unwrap_or(socket)
}

/// Keeps others from making or removing sockets beside `socket` until dropped.
fn lock(socket: &Path) -> io::Result<File> {
    let file = open_lock(&directory(socket).join("lock"))?;
    let begun = Instant::now();
    while file.try_lock().is_err() {
        if begun.elapsed() > LOCK_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// Held while a mount starts: one at a time on one directory.
pub struct Starting(File);

impl Starting {
    /// Begins a start whose socket will be at one of `places`.
    ///
    /// # Errors
    /// [`Exit::Busy`] if another one is under way; no place can be used.
    pub fn begin(places: &[PathBuf], point: &Path) -> Outcome<Starting> {
        let mut failed = Failure::new(Exit::General, "there is no place for the control socket");
        for place in places {
            let made = dirs::make_private(directory(place))
                .and_then(|()| open_lock(&place.with_extension("start")));
            match made {
                Ok(file) if file.try_lock().is_ok() => return Ok(Starting(file)),
                Ok(_) => {
                    let shown = point.display();
                    let message = format!("another mount on {shown} is just being started");
                    return Err(Failure::new(Exit::Busy, message)
                        .hint(format!("see how it went: sealfs status {shown}")));
                }
                Err(e) => {
                    let dir = directory(place).display();
                    failed = Failure::new(Exit::General, format!("cannot use {dir}: {e}"));
                }
            }
        }
        Err(failed.hint("name a directory of your own: SEALFS_RUNTIME_DIR=DIR sealfs mount …"))
    }
}

impl Drop for Starting {
    /// The process that waits for the start has a copy of the descriptor.
    fn drop(&mut self) {
        if let Err(e) = self.0.unlock() {
            log::debug!("the lock of the start: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(path: &Path) -> bool {
        std::os::unix::net::UnixStream::connect(path).is_ok()
    }

    #[tokio::test]
    async fn a_mount_that_ends_leaves_the_socket_of_the_one_that_followed() {
        // Guards against a live mount that no command finds: detached lazily, mounted again, and
        // then the first one ends.
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let places = vec![tmp.path().join("run/a.sock"), tmp.path().join("state/a.sock")];
        let first = Socket::bind(places.clone()).expect("binds");
        let second = Socket::bind(places.clone()).expect("binds");
        drop(first);
        assert!(answers(&places[0]));
        drop(second);
        assert!(!places[0].exists());
        // Also when the first one was at another place.
        let first = Socket::bind(places[1..].to_vec()).expect("binds");
        let second = Socket::bind(places.clone()).expect("binds");
        assert!(!places[1].exists() && answers(&places[0]));
        drop((first, second));
    }

    #[tokio::test]
    async fn a_wiped_directory_is_made_again_but_not_the_place_of_a_later_mount() {
        // Guards against a mount that is lost to its user after a logout, and against two mounts
        // that take the place from each other for ever.
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let places = vec![tmp.path().join("run/a.sock"), tmp.path().join("state/a.sock")];
        let mut first = Socket::bind(places.clone()).expect("binds");
        std::fs::remove_dir_all(tmp.path().join("run")).expect("removes");
        first.look_after();
        assert!(answers(&places[0]));
        // The whole place is gone, and a file is in the way: the other one serves.
        std::fs::remove_dir_all(tmp.path().join("run")).expect("removes");
        std::fs::write(tmp.path().join("run"), "").expect("writes");
        first.look_after();
        assert!(answers(&places[1]));
        let second = Socket::bind(places.clone()).expect("binds");
        first.look_after();
        assert!(first.superseded);
        drop(second);
        first.look_after();
        assert!(!places[1].exists(), "a detached mount came back");
    }

    #[test]
    fn one_directory_has_one_start_at_a_time() {
        // Guards against two mounts of two volumes, started at once, of which one has no socket.
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let places = [tmp.path().join("run/a.sock")];
        let first = Starting::begin(&places, tmp.path()).expect("begins");
        let refused = Starting::begin(&places, tmp.path()).err().expect("refused");
        assert_eq!(refused.exit, Exit::Busy);
        drop(first);
        assert!(Starting::begin(&places, tmp.path()).is_ok());
    }
}
