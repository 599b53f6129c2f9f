//! Going to the background: one fork, before any thread exists, and a pipe through which the
//! parent learns whether the mount works.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::exit::{Exit, Failure, Outcome};
use super::stop;

/// Bytes of what is reported from aside, mostly: more would grow, and leave copies.
const REPORT_USUAL: usize = 16 << 10;

/// The child's duty to tell the waiting parent how the start went. Dropped without a word, the
/// parent reports that the process died.
pub struct Starting(Option<File>);

/// Which process one is after [`detach`].
pub enum Detached {
    /// The child: go on, and tell how it went.
    Child(Starting),
    /// The parent: the child has told.
    Parent(Outcome),
}

/// Forks. The parent waits until the child reports or dies, after it has called `forget`, which wipes
/// what only the child needs. Call only while the process has one thread: the child of a fork has
/// only the calling one, and locks of the others stay locked.
pub fn detach(forget: impl FnOnce()) -> io::Result<Detached> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 has just made both descriptors, and nobody else owns them.
    let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: this process has one thread (the caller's duty), so the child's memory is whole.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(read);
            // SAFETY: setsid has no preconditions; a fresh child never leads a group.
            if unsafe { libc::setsid() } < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Detached::Child(Starting(Some(File::from(write)))))
        }
        pid => {
            drop(write);
            catch_signals(pid);
            forget();
            Ok(Detached::Parent(await_child(File::from(read), pid)))
        }
    }
}

/// The child that a waiting parent passes signals on to.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// Whether it has passed one on.
static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn pass_on(_: libc::c_int) {
    STOPPED.store(true, Ordering::Relaxed);
    // SAFETY: kill(2) may be called in a handler, and the child has not been waited for, so the id
    // is still its own.
    unsafe { libc::kill(CHILD.load(Ordering::Relaxed), libc::SIGTERM) };
}

/// Passes the signals that end a command on to the child, so that it undoes what it has begun; the
/// second one of a kind ends this process all the same.
fn catch_signals(child: libc::pid_t) {
    CHILD.store(child, Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        stop::handle(signal, pass_on, libc::SA_RESETHAND | libc::SA_RESTART);
    }
}

/// Runs `work` in a separate process and returns its result: threads that it starts end
/// there, and this process may fork later on. Call only while the process has one thread.
pub fn aside<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let bytes = aside_bytes(|| {
        let made = work()?;
        serde_json::to_vec(&made).map(Zeroizing::new).map_err(|_| died())
    })?;
    serde_json::from_slice(&bytes).map_err(|_| died())
}

/// [`aside`], for what may be a secret: nothing of it is left in freed memory here.
pub fn aside_bytes(
    work: impl FnOnce() -> Outcome<Zeroizing<Vec<u8>>>,
) -> Outcome<Zeroizing<Vec<u8>>> {
    const DONE: u8 = 0;
    const FAILED: u8 = 1;
    let failed = |e: io::Error| Failure::new(Exit::General, format!("cannot start a process: {e}"));
    let (mut read, mut write) = io::pipe().map_err(failed)?;
    // SAFETY: this process has one thread (the caller's duty), so the child's memory is whole.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    if pid == 0 {
        drop(read);
        let told = match work() {
            Ok(bytes) => write.write_all(&[DONE]).and_then(|()| write.write_all(&bytes)),
            Err(failure) => serde_json::to_vec(&failure)
                .map_err(io::Error::from)
                .and_then(|json| write.write_all(&[&[FAILED], &json[..]].concat())),
        };
        std::process::exit(if told.is_ok() { 0 } else { 1 });
    }
    drop(write);
    let mut report = Zeroizing::new(Vec::with_capacity(REPORT_USUAL));
    let told = read.read_to_end(&mut report);
    let mut status = 0;
    // SAFETY: waitpid writes one int through the pointer.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    match (told, report.split_first()) {
        (Ok(_), Some((&DONE, bytes))) if status == 0 => Ok(Zeroizing::new(bytes.to_vec())),
        (Ok(_), Some((&FAILED, json))) => {
            Err(serde_json::from_slice(json).unwrap_or_else(|_| died()))
        }
        _ => Err(died()),
    }
}

fn died() -> Failure {
    Failure::new(Exit::General, "the process that looked at the store died")
}

fn await_child(mut pipe: File, pid: libc::pid_t) -> Outcome {
    let mut report = Vec::new();
    // Ends when the child reports or dies: it holds the only other end.
    let read = pipe.read_to_end(&mut report);
    if let (Ok(_), Ok(outcome)) = (read, serde_json::from_slice::<Outcome>(&report)) {
        return match STOPPED.load(Ordering::Relaxed) {
            false => outcome,
            // It was told, perhaps too late for its start: then it unmounts again.
            true => outcome.and(Err(super::signals::stopped())),
        };
    }
    let mut status = 0;
    // SAFETY: waitpid writes one int through the pointer.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    if STOPPED.load(Ordering::Relaxed) {
        return Err(super::signals::stopped()); // before it could say so
    }
    Err(Failure::new(Exit::General, "the mount process died while it started")
        .hint("run it again with --foreground --log-level debug"))
}

impl Starting {
    /// For a mount that stays in the foreground: nobody waits.
    pub fn foreground() -> Starting {
        Starting(None)
    }

    /// Whether the mount stays in the foreground.
    pub fn is_foreground(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the parent has gone: nobody waits for the mount any more.
    pub fn is_abandoned(&self) -> bool {
        let Some(pipe) = &self.0 else { return false };
        let mut ask = libc::pollfd { fd: pipe.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one valid pollfd; the call does not wait.
        let answered = unsafe { libc::poll(&mut ask, 1, 0) };
        answered == 1 && ask.revents & libc::POLLERR != 0
    }

    /// Tells that the mount works, and lets go of the terminal.
    pub fn ready(self) -> io::Result<()> {
        if let Some(mut pipe) = self.0 {
            let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
            for fd in 0..3 {
                // SAFETY: both descriptors are open; dup2 replaces the standard one atomically.
                if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            std::env::set_current_dir("/")?;
            report(&mut pipe, &Ok(()))?;
        }
        Ok(())
    }

    /// Tells why there will be no mount. In the foreground the failure is left to the caller;
    /// in the background this ends the process, since the parent prints it and exits with it.
    pub fn failed(self, failure: Failure) -> Outcome {
        let Some(mut pipe) = self.0 else { return Err(failure) };
        let status = failure.exit.code();
        if let Err(e) = report(&mut pipe, &Err(failure.clone())) {
            // The parent is gone; nobody is left to tell but the log.
            log::error!("{} ({e})", failure.message);
        }
        std::process::exit(status.into());
    }
}

fn report(pipe: &mut File, outcome: &Outcome) -> io::Result<()> {
    pipe.write_all(&serde_json::to_vec(outcome)?)
}
