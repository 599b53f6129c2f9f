//! The signals that end a command or a mount, and what a command says while it waits.
//!
//! | signal | a mount in the foreground | in the background |
//! | --- | --- | --- |
//! | SIGTERM, SIGINT | drains and unmounts; the second one leaves the rest to the journal | the same |
//! | SIGHUP | as SIGTERM, unless it was ignored from the start (nohup) | settings are read again (`reload`) |
//!
//! Under a service manager SIGHUP does in the foreground what it does in the background.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::stack::{Attended, StackError, Wait};

use super::exit::{Exit, Failure, Outcome};
use super::{notify, stop};

/// How long something is waited for in silence, and how long until it is said again.
const SAY_AFTER: Duration = Duration::from_secs(2);
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// How often is looked whether there is something to say.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The signals of the table, caught.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
    reload: Option<Signal>,
}

/// Whether whoever started this process had SIGHUP ignored, as nohup(1) does.
fn hangup_is_ignored() -> bool {
    // SAFETY: the call only fills in the structure, for which all zeros are a valid value.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut action);
        action
    };
    action.sa_sigaction == libc::SIG_IGN
}

impl Signals {
    /// Catches them from now on.
    pub fn catch(foreground: bool) -> io::Result<Signals> {
        // Without a terminal there is none to lose.
        let (hangup, reload) = match foreground && !notify::is_listened_to() {
            true if hangup_is_ignored() => (None, None),
            true => (Some(signal(SignalKind::hangup())?), None),
            false => (None, Some(signal(SignalKind::hangup())?)),
        };
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        stop::begin_listening();
        Ok(Signals { terminate, interrupt, hangup, reload })
    }

    /// Catches them from now on for a command; what comes while none listens is in [`stop::came`].
    ///
    /// # Errors
    /// They cannot be caught.
    pub fn listen() -> Outcome<Signals> {
        stop::remember();
        let caught = Signals::catch(true);
        caught.map_err(|e| Failure::new(Exit::General, format!("cannot catch signals: {e}")))
    }

    /// What asks for settings to be read again, once.
    pub fn take_reload(&mut self) -> Option<Signal> {
        self.reload.take()
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        stop::end_listening();
    }
}

/// Says on standard error what is waited for: once it takes long, then seldom.
#[derive(Default)]
pub struct Teller {
    said: Option<(String, Instant)>,
}

impl Teller {
    /// Looks whether there is something to say.
    pub fn look(&mut self, attended: &Attended) {
        let Some(wait) = attended.wait().filter(|wait| wait.elapsed >= SAY_AFTER) else { return };
        if let Some((what, at)) = &self.said
            && *what == wait.what
            && at.elapsed() < SAY_AGAIN
        {
            return;
        }
        eprintln!("sealfs: {}", sentence(&wait));
        self.said = Some((wait.what, Instant::now()));
    }
}

fn sentence(wait: &Wait) -> String {
    let limit = wait.limit.map(|limit| format!(", at most {} s", limit.as_secs()));
    let reason = wait.reason.as_ref().map(|reason| format!(": {reason}"));
    format!(
        "waiting for {} (for {} s now{}){}",
        wait.what,
        wait.elapsed.as_secs(),
        limit.unwrap_or_default(),
        reason.unwrap_or_default()
    )
}

/// How long work may keep its thread to itself after it should have ended.
const DEAF_AFTER: Duration = Duration::from_secs(2);

/// How long a command that was stopped may take to undo what it has begun.
pub const UNDO_MAX: Duration = Duration::from_secs(10);

/// The result of a command that was stopped by a signal.
pub fn stopped() -> Failure {
    Failure::new(Exit::Stopped, StackError::Stopped)
}

/// [`attend`] on its own threads, which do not outlast it.
pub fn run<T>(
    attended: &Attended,
    grace: Duration,
    work: impl Future<Output = Result<T, StackError>>,
) -> Outcome<T> {
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(attend(attended, grace, work));
    runtime.shutdown_background(); // a thread may wait for a store that never answers
    outcome
}

/// Runs `work` to its end, says what it waits for, and stops it at a signal of the table: it has
/// `grace` to undo what it has begun, until a second signal.
///
/// `work` may keep its thread busy, or wait in a system call (a pipe that nobody reads): then the
/// process ends all the same, on another thread, when `grace` is over or at the second signal.
pub async fn attend<T>(
    attended: &Attended,
    grace: Duration,
    work: impl Future<Output = Result<T, StackError>>,
) -> Outcome<T> {
    let mut signals = Signals::listen()?;
    if stop::came() {
        return Err(stopped());
    }
    let deaf = Signals::listen()?;
    let mut aside = tokio::task::JoinSet::new(); // ends with this
    aside.spawn(end_if_deaf(deaf, grace));
    let (mut teller, mut asked) = (Teller::default(), None::<Instant>);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done?),
            _ = signals.next() => match asked {
                None if !grace.is_zero() => {
                    attended.stop();
                    asked = Some(Instant::now());
                }
                _ => return Err(stopped()),
            },
            () = tokio::time::sleep(LOOK_EVERY) => match asked {
                None => teller.look(attended),
                Some(at) if at.elapsed() > grace => return Err(stopped()),
                Some(_) => {}
            },
        }
    }
}

/// Ends the process when [`attend`] has not done so itself by the time that it should have.
async fn end_if_deaf(mut signals: Signals, grace: Duration) {
    signals.next().await;
    let _ = tokio::time::timeout(grace, signals.next()).await; // the second signal, or time is up
    tokio::time::sleep(DEAF_AFTER).await;
    let failure = stopped();
    failure.report();
    std::process::exit(failure.exit.code().into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_said_with_its_limit_and_the_reason() {
        // Guards against half a minute of silence before "cannot be reached".
        let mut wait = Wait {
            what: "s3://b/p to answer".into(),
            elapsed: Duration::from_millis(2100),
            limit: Some(Duration::from_secs(30)),
            reason: Some("connection refused".into()),
        };
        assert_eq!(
            sentence(&wait),
            "waiting for s3://b/p to answer (for 2 s now, at most 30 s): connection refused"
        );
        (wait.limit, wait.reason) = (None, None);
        assert_eq!(sentence(&wait), "waiting for s3://b/p to answer (for 2 s now)");
    }
}
