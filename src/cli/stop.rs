//! A command that does one thing after the other, and is asked to stop: it clears up behind itself, or
//! leaves what it waits for behind.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};

use super::exit::{Exit, Failure, Outcome};
use super::signals::{self, LOOK_EVERY};

static CAME: AtomicBool = AtomicBool::new(false);
/// How many [`signals::Signals`] listen, which know what to do at the second one.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);
static CAUGHT: Once = Once::new();

extern "C" fn note(signal: libc::c_int) {
    let is_first = !CAME.swap(true, Ordering::Relaxed);
    if is_first || LISTENERS.load(Ordering::Relaxed) > 0 {
        return;
    }
    // SAFETY: both may be called by a handler (signal-safety(7)).
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// From now on the first SIGINT or SIGTERM, and SIGHUP unless it is ignored, only says that it came;
/// the second ends the process as ever, unless [`signals::Signals`] listen. Those that listen later do so
/// besides; what came while none did is in [`came`].
pub fn catch() {
    // Once: tokio catches for good as well, and goes on to the handler that was there before.
    CAUGHT.call_once(|| {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: all zeros are a valid sigaction; the handler does what handlers may.
            unsafe {
                let mut before: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &mut before);
                if before.sa_sigaction == libc::SIG_IGN {
                    continue;
                }
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = note as *const () as libc::sighandler_t;
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    });
}

/// Counts one that listens.
pub(super) fn begin_listening() {
    LISTENERS.fetch_add(1, Ordering::Relaxed);
}

/// It listens no more.
pub(super) fn end_listening() {
    LISTENERS.fetch_sub(1, Ordering::Relaxed);
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
