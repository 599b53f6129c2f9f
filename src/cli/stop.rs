//! A command that does one thing after the other, and is asked to stop: it clears up behind itself, or
//! leaves what it waits for behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};

use super::exit::{Exit, Failure, Outcome};
use super::signals::{self, LOOK_EVERY};

static CAME: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    CAME.store(true, Ordering::Relaxed);
}

/// From now on the first SIGINT or SIGTERM, and SIGHUP unless it is ignored, only says that it came;
/// the second ends the process as ever.
pub fn catch() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: all zeros are a valid sigaction; the handler only stores to an atomic.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut before);
            if before.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Whether one came. One that [`signals::Signals`] hears counts as well, if [`catch`] was called before.
pub fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}

/// What came until now has been acted upon.
pub fn forget() {
    CAME.store(false, Ordering::Relaxed);
}

/// What `work` comes to, which may wait in system calls that nothing ends; `look` is called now and
/// then meanwhile. It is left behind when a signal came: the process is about to end.
///
/// # Errors
/// [`Exit::Stopped`]; no thread can be had.
pub fn attend<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    mut look: impl FnMut(),
) -> Outcome<T> {
    let (done, outcome) = mpsc::channel();
    let started = std::thread::Builder::new().spawn(move || {
        let _ = done.send(work()); // nobody waits any more
    });
    started.map_err(|e| Failure::new(Exit::General, format!("cannot start a thread: {e}")))?;
    loop {
        match outcome.recv_timeout(LOOK_EVERY) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::new(Exit::General, "a thread of this command died"));
            }
            Err(RecvTimeoutError::Timeout) if came() => return Err(signals::stopped()),
            Err(RecvTimeoutError::Timeout) => look(),
        }
    }
}
