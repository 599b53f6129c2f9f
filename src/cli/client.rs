//! A command's end of the control socket. Blocking, without a runtime.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::VolumeId;
use crate::stack::Progress;

use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::protocol::{Ask, Say, line};

/// The daemon speaks several times a second while it works; silence this long means that it
/// hangs or has died.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A connection to the daemon of one mount.
pub struct Client {
    stream: UnixStream,
    /// The mount point, resolved.
    pub point: PathBuf,
}

impl Client {
    /// Connects to the daemon of the mount at `dir`, or (`inside`) of the mount `dir` is in.
    pub fn connect(dir: &Path, inside: bool) -> Outcome<Client> {
        let point = dirs::resolve(dir).map_err(|e| {
            Failure::new(Exit::NotMounted, format!("cannot look at {}: {e}", dir.display()))
        })?;
        let candidates = point.ancestors().take(if inside { usize::MAX } else { 1 });
        for candidate in candidates {
            if let Ok(stream) = UnixStream::connect(dirs::socket_path(candidate)?) {
                return Ok(Client { stream, point: candidate.to_path_buf() });
            }
        }
        Err(no_daemon(&point))
    }

    /// Connects to every daemon of this user on this machine.
    pub fn all() -> Outcome<Vec<Client>> {
        let sockets = dirs::sockets()?;
        let connected = |path: PathBuf| {
            let stream = UnixStream::connect(&path).ok()?; // a dead daemon's
            Some(Client { stream, point: path })
        };
        Ok(sockets.into_iter().filter_map(connected).collect())
    }

    /// Tells the mount of this volume on this machine, if there is one, to look at its keyring and
    /// configuration; whether it has followed.
    pub fn tell_mount(volume: VolumeId) -> bool {
        let ask = Ask::Follow { volume_id: volume.to_string() };
        let clients = Client::all().unwrap_or_default();
        clients.iter().any(|client| matches!(client.ask(&ask, |_| {}), Ok(Say::Done { .. })))
    }

    /// Process id of the daemon.
    pub fn daemon(&self) -> io::Result<libc::pid_t> {
        let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `who`, which has that many.
        let rc = unsafe {
            let out = (&raw mut who).cast();
            let fd = self.stream.as_raw_fd();
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, out, &mut len)
        };
        if rc == 0 { Ok(who.pid) } else { Err(io::Error::last_os_error()) }
    }

    /// Asks, and passes progress to `on_progress` until the last message, which is returned.
    pub fn ask(&self, ask: &Ask, mut on_progress: impl FnMut(&Progress)) -> Outcome<Say> {
        let lost = |e: io::Error| {
            let why = match e.kind() {
                // The read timeout.
                io::ErrorKind::WouldBlock => format!("nothing in {} s", SILENCE_MAX.as_secs()),
                _ => e.to_string(),
            };
            Failure::new(Exit::General, format!("the mount process does not answer: {why}"))
                .hint("look for its last words: journalctl -t sealfs")
        };
        self.stream.set_read_timeout(Some(SILENCE_MAX)).map_err(lost)?;
        (&self.stream).write_all(&line(ask)).map_err(lost)?;
        let mut reader = BufReader::new(&self.stream);
        loop {
            let mut text = String::new();
            if reader.read_line(&mut text).map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
            match serde_json::from_str(&text).map_err(|e| lost(e.into()))? {
                Say::Progress(progress) => on_progress(&progress),
                Say::Failed(failure) => return Err(failure),
                last => return Ok(last),
            }
        }
    }
}

fn no_daemon(point: &Path) -> Failure {
    let shown = point.display();
    if is_mounted(point) {
        let cure = if dirs::is_root() { "umount -l" } else { "fusermount3 -uz" };
        return Failure::new(
            Exit::NotMounted,
            format!("the process that served the mount at {shown} is gone"),
        )
        .hint(format!("{cure} {shown}, then mount it again: nothing that was synced is lost"));
    }
    Failure::new(Exit::NotMounted, format!("{shown} is not a sealfs mount"))
        .hint("grep sealfs /proc/mounts, as the user who mounted it")
}

/// Whether a sealfs is mounted at `point`, served or not.
pub fn is_mounted(point: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let wanted = point.display().to_string().replace('\\', "\\134").replace(' ', "\\040");
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(&wanted) && fields.next() == Some("fuse.sealfs")
    })
}
