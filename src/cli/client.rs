//! A command's end of the control socket. Blocking, without a runtime.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::base::{VolumeId, own_uid};
use crate::fuse::{self, Entry, Life};
use crate::stack::Progress;

use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::protocol::{Ask, Say, line};
use super::signals::{self, LOOK_EVERY};
use super::stop;
use super::user;

/// The daemon speaks several times a second while it works; silence this long means that it
/// hangs or has died.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A connection to the daemon of one mount.
pub struct Client {
    stream: UnixStream,
    /// The mount point, resolved.
    pub point: PathBuf,
}

/// How long a mount whose control socket was removed may take to make it again.
const REMADE_MAX: Duration = Duration::from_secs(6);

impl Client {
    /// Connects to the daemon of the mount at `dir`, or (`inside`) of the mount `dir` is in.
    pub fn connect(dir: &Path, inside: bool) -> Outcome<Client> {
        let point = dirs::resolve(dir).map_err(|e| {
            Failure::new(Exit::NotMounted, format!("cannot look at {}: {e}", dir.display()))
        })?;
        let candidates: Vec<_> =
            point.ancestors().take(if inside { usize::MAX } else { 1 }).collect();
        let begun = Instant::now();
        loop {
            let table = fuse::mounts();
            let entry_of =
                |at: &Path| table.iter().rfind(|entry| entry.point == at && entry.is_sealfs());
            for candidate in &candidates {
                let owner = entry_of(candidate).and_then(|entry| entry.owner);
                if let Some(stream) = reach(candidate, owner) {
                    return Ok(Client { stream, point: candidate.to_path_buf() });
                }
            }
            let Some(entry) = candidates.iter().find_map(|at| entry_of(at)) else {
                let shown = point.display();
                let message = format!("{shown} is not a sealfs mount");
                return Err(Failure::new(Exit::NotMounted, message)
                    .hint("grep sealfs /proc/mounts, as the user who mounted it"));
            };
            let life = fuse::life(&entry.point);
            let ours = entry.owner.is_none_or(|owner| owner == own_uid());
            if life != Life::Alive || !ours || begun.elapsed() > REMADE_MAX {
                return Err(unreachable(entry, life));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Connects to every daemon of this user on this machine.
    pub fn all() -> Vec<Client> {
        let connected = |path: PathBuf| {
            let stream = UnixStream::connect(&path).ok()?; // a dead daemon's
            Some(Client { stream, point: path })
        };
        dirs::sockets().into_iter().filter_map(connected).collect()
    }

    /// Tells the mounts of this volume on this machine to look at their keyring and configuration.
    /// Whether the one that writes has followed, if it is here, and what the others did not, in
    /// sentences.
    pub fn tell_mounts(volume: VolumeId) -> (bool, Vec<String>) {
        let ask = Ask::Follow { volume_id: volume.to_string() };
        let (mut followed, mut failed) = (false, Vec::new());
        for client in Client::all() {
            match client.ask(&ask, |_| {}) {
                Ok(Say::Done { .. }) => followed = true,
                // It only reads, or is of another volume.
                Err(failure) if failure.exit == Exit::NotMounted => {}
                Err(failure) => failed.push(failure.message),
                Ok(_) => {}
            }
        }
        (followed, failed)
    }

    /// Process id of the daemon.
    pub fn daemon(&self) -> io::Result<libc::pid_t> {
        Ok(peer(&self.stream)?.pid)
    }

    /// Asks, and passes progress to `on_progress` until the last message, which is returned.
    pub fn ask(&self, ask: &Ask, mut on_progress: impl FnMut(&Progress)) -> Outcome<Say> {
        self.ask_each(ask, |say| match say {
            Say::Progress(progress) => {
                on_progress(&progress);
                Ok(None)
            }
            last => Ok(Some(last)),
        })
    }

    /// Asks, and passes each message to `on_message` until it returns something or fails. A command that
    /// listens for signals ([`stop::catch`]) ends at one; the mount notices that it has gone.
    pub fn ask_each<T>(
        &self,
        ask: &Ask,
        mut on_message: impl FnMut(Say) -> Outcome<Option<T>>,
    ) -> Outcome<T> {
        let lost = |e: io::Error| {
            let why = match e.kind() {
                io::ErrorKind::TimedOut => format!("nothing in {} s", SILENCE_MAX.as_secs()),
                _ => e.to_string(),
            };
            Failure::new(Exit::General, format!("the mount process does not answer: {why}"))
                .hint("look for its last words: journalctl -t sealfs")
        };
        self.stream.set_read_timeout(Some(LOOK_EVERY)).map_err(lost)?;
        (&self.stream).write_all(&line(ask)).map_err(lost)?;
        let mut reader = BufReader::new(&self.stream);
        loop {
            let Some(text) = next_line(&mut reader).map_err(lost)? else {
                return Err(signals::stopped());
            };
            match serde_json::from_slice(&text).map_err(|e| lost(e.into()))? {
                Say::Failed(failure) => return Err(failure),
                message => {
                    if let Some(last) = on_message(message)? {
                        return Ok(last);
                    }
                    if stop::came() {
                        return Err(signals::stopped());
                    }
                }
            }
        }
    }
}

/// The next line of what times out every [`LOOK_EVERY`]; `None` when this command was stopped, which
/// [`stop`] has to listen for.
///
/// # Errors
/// `TimedOut` after [`SILENCE_MAX`] without it, `UnexpectedEof` at the end.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let (mut text, begun) = (Vec::new(), Instant::now());
    loop {
        // What has come of a line stays in `text` when the rest is late.
        match reader.read_until(b'\n', &mut text) {
            Ok(_) if text.ends_with(b"\n") => return Ok(Some(text)),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            Err(_) if stop::came() => return Ok(None),
            Err(_) if begun.elapsed() > SILENCE_MAX => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

/// Who is at the other end.
fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `who`, which has that many.
    let rc = unsafe {
        let out = (&raw mut who).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, out, &mut len)
    };
    if rc == 0 { Ok(who) } else { Err(io::Error::last_os_error()) }
}

/// The daemon of the mount that `owner` made at `point`, wherever its socket is. A socket of
/// anybody else's is not believed: its name can be guessed.
fn reach(point: &Path, owner: Option<u32>) -> Option<UnixStream> {
    let believed = |uid: u32| uid == 0 || uid == own_uid() || Some(uid) == owner;
    let connect = |place: &PathBuf| {
        // Nor is it connected to, which a stranger could make last for ever.
        place.symlink_metadata().ok().filter(|made| believed(made.uid()))?;
        let stream = UnixStream::connect(place).ok()?; // nobody is there, or not for us
        peer(&stream).is_ok_and(|who| believed(who.uid)).then_some(stream)
    };
    dirs::all_socket_places(point, owner).iter().find_map(connect)
}

/// Why the daemon of a mount cannot be asked. That it is gone is said only if the kernel says so:
/// who takes a live mount away loses what was not written back yet.
fn unreachable(entry: &Entry, life: Life) -> Failure {
    let shown = entry.point.display();
    if life == Life::Dead {
        return Failure::new(
            Exit::NotMounted,
            format!("the process that served the mount at {shown} is gone"),
        )
        .hint(format!(
            "mount it again, which takes the dead mount away: sealfs mount {} {shown}; nothing \
             that was synced is lost",
            entry.source
        ));
    }
    let general = |message: String| Failure::new(Exit::General, message);
    match entry.owner.filter(|&owner| owner != own_uid()) {
        Some(owner) => {
            let name = user::name(owner);
            general(format!("{shown} is mounted by {name}, who alone can ask it")).hint(match owner
            {
                0 => format!("sudo sealfs status {shown}"),
                _ => format!("sudo -u {name} sealfs status {shown}"),
            })
        }
        None if life == Life::Silent => general(format!("the mount at {shown} does not answer"))
            .hint("look for its process and its last words: pgrep -a sealfs; journalctl -t sealfs"),
        None => general(format!("{shown} is mounted and served, but its control socket is gone"))
            .hint(format!("umount {shown} ends it in order; its process: pgrep -a sealfs")),
    }
}

/// Whether a sealfs is mounted at `point`, served or not.
pub fn is_mounted(point: &Path) -> bool {
    fuse::mounted_at(point).is_some_and(|entry| entry.is_sealfs())
}
