//! A command that does one thing after the other, and is asked to stop: it clears up behind itself, or
//! leaves what it waits for behind.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};

use super::exit::{Exit, Failure, Outcome};
use super::signals::{self, LOOK_EVERY};

/// Which signals came, a bit each.
static CAME: AtomicU32 = AtomicU32::new(0);
/// How many [`signals::Signals`] listen, which know what to do at the second one.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);
static CAUGHT: Once = Once::new();

extern "C" fn note(signal: libc::c_int) {
    let bit = 1 << signal; // 1, 2 or 15
    let is_first = CAME.fetch_or(bit, Ordering::Relaxed) & bit == 0;
    if is_first || LISTENERS.load(Ordering::Relaxed) > 0 {
        return;
    }
    // SAFETY: all of it may be called by a handler (signal-safety(7)), and the set is made by sigemptyset.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
        let mut this: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut this);
        libc::sigaddset(&mut this, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &this, std::ptr::null_mut());
        libc::_exit(128 + signal) // the first process of a container outlives it
    }
}

/// From now on the first SIGINT or SIGTERM, and SIGHUP unless it is ignored, only says that it came;
/// the second of a kind ends the process as ever, even where it waits in the kernel and could run no handler.
pub fn catch() {
    catch_by(libc::SA_RESTART | libc::SA_RESETHAND);
}

/// The same for a command that waits by [`signals`] as well: those hear what comes meanwhile, and what comes
/// while none listens is in [`came`].
pub fn remember() {
    catch_by(libc::SA_RESTART);
}

fn catch_by(flags: libc::c_int) {
    // Once: tokio catches for good as well, and goes on to the handler that was there before.
    CAUGHT.call_once(|| {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the call only fills in the structure, for which all zeros are a valid value.
            let before = unsafe {
                let mut before: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &mut before);
                before
            };
            if before.sa_sigaction != libc::SIG_IGN {
                handle(signal, note, flags);
            }
        }
    });
}

/// Has `signal` handled by `handler`, which may do no more than handlers may (signal-safety(7)).
pub fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int) {
    // SAFETY: all zeros are a valid sigaction, and the handler is there for good.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = flags;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// Counts one that listens.
pub(super) fn begin_listening() {
    LISTENERS.fetch_add(1, Ordering::Relaxed);
}

/// It listens no more.
pub(super) fn end_listening() {
    LISTENERS.fetch_sub(1, Ordering::Relaxed);
}

/// Whether one came. One that [`signals::Signals`] hears counts as well, if [`catch`] or [`remember`] was
/// called before.
pub fn came() -> bool {
    CAME.load(Ordering::Relaxed) != 0
}

/// What came until now has been acted upon.
pub fn forget() {
    CAME.store(0, Ordering::Relaxed);
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
