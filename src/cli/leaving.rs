//! Who wants a mount to end, and how: the commands that wait for it, and signals.
//!
//! All of them share one end. Whoever is in a greater hurry takes over: `--force-local`, or a
//! second signal, ends the upload that the others began. A client that goes away (Ctrl-C of
//! `sealfs umount`) wants nothing any more; when nobody is left the mount stays. A signal cannot be
//! taken back.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::time::timeout;

use super::exit::{Exit, Failure};
use super::notify;
use super::protocol::Say;
use super::server::UmountAsked;
use crate::base::counted;
use crate::stack::Progress;

/// How long a drain that nobody waits for goes on without any progress.
pub const STALL: Duration = Duration::from_secs(600);
/// How long a command may take to take its last message.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Default)]
pub struct Leaving {
    waiters: Vec<(UmountAsked, Instant)>,
    signals: u32,
}

impl Leaving {
    /// Somebody asks for the end.
    pub fn join(&mut self, asked: UmountAsked) {
        self.waiters.push((asked, Instant::now()));
    }

    /// A signal asks for it.
    pub fn signal(&mut self, name: &str) {
        self.signals += 1;
        notify::stopping("uploading what is pending");
        match self.signals {
            1 => log::info!("{name}: asked to end; uploading what is pending"),
            _ => log::info!("{name}: asked to end at once; the rest stays in the journal"),
        }
    }

    /// Whether a signal asked for it: then it will be unmounted, come what may.
    pub fn by_signal(&self) -> bool {
        self.signals > 0
    }

    /// Whether nobody wants to wait for the bucket any longer.
    pub fn leaves_rest(&self) -> bool {
        self.signals > 1 || self.waiters.iter().any(|(asked, _)| asked.force_local)
    }

    /// Whether open files are no reason to stay.
    pub fn is_lazy(&self) -> bool {
        self.waiters.iter().any(|(asked, _)| asked.lazy)
    }

    /// Forgets who has gone away; whether anybody still wants the end.
    pub fn is_wanted(&mut self) -> bool {
        self.waiters.retain(|(asked, _)| !asked.say.is_closed());
        self.by_signal() || !self.waiters.is_empty()
    }

    /// For how long the drain may stand still: as long as the first to give up, but a signal has
    /// more patience.
    pub fn patience(&self) -> Duration {
        let least = self.waiters.iter().map(|(asked, _)| asked.stall).min();
        least.filter(|_| !self.by_signal()).unwrap_or(STALL)
    }

    /// Tells how far the drain is. A command that does not listen misses it.
    pub fn show(&self, progress: &Progress) {
        for (asked, _) in &self.waiters {
            let _ = asked.say.try_send(Say::Progress(progress.clone()));
        }
    }

    /// Sends away whose patience has ended: nothing has moved since `moved`.
    pub async fn give_up(&mut self, moved: Instant, now: &Progress) {
        let over = |(asked, joined): &mut (UmountAsked, Instant)| {
            moved.max(*joined).elapsed() > asked.stall
        };
        let gone: Vec<_> = self.waiters.extract_if(.., over).collect();
        let stalled = |asked: &UmountAsked| Say::Failed(stalled(asked.stall, now));
        join_all(gone.iter().map(|(asked, _)| asked.tell(stalled(asked)))).await;
    }

    /// The last message for all who wait; afterwards nobody does. Returns when they have it, or
    /// soon.
    pub async fn answer(&mut self, say: Say) {
        let waiters = std::mem::take(&mut self.waiters);
        join_all(waiters.iter().map(|(asked, _)| asked.tell(say.clone()))).await;
    }
}

impl UmountAsked {
    async fn tell(&self, say: Say) {
        // Nobody may be listening.
        let _ = timeout(ANSWER_MAX, async {
            if self.say.send(say).await.is_ok() {
                self.say.closed().await;
            }
        })
        .await;
    }
}

/// Why a drain was given up.
pub fn stalled(stall: Duration, now: &Progress) -> Failure {
    let state = if now.offline { "the store cannot be reached" } else { "no progress" };
    let (secs, bytes) = (stall.as_secs(), counted(now.pending_bytes, "byte"));
    let what = format!("{state} for {secs} s; {bytes} only in the local journal");
    Failure::new(Exit::Pending, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    fn asked(stall: u64, force_local: bool) -> (UmountAsked, mpsc::Receiver<Say>) {
        let (say, messages) = mpsc::channel(16);
        let stall = Duration::from_secs(stall);
        (UmountAsked { stall, lazy: false, force_local, say }, messages)
    }

    #[tokio::test]
    async fn the_second_to_ask_takes_over_and_both_get_the_outcome() {
        // Guards against a --force-local that hangs behind the drain it is meant to end.
        let mut leaving = Leaving::default();
        let (first, to_first) = asked(600, false);
        let (second, to_second) = asked(600, true);
        leaving.join(first);
        assert!(!leaving.leaves_rest());
        leaving.join(second);
        assert!(leaving.leaves_rest());
        let done = Say::Done { pending_bytes: 7 };
        let hear = |mut to: mpsc::Receiver<Say>| async move { to.recv().await };
        let answered = leaving.answer(done.clone());
        let ((), first, second) = tokio::join!(answered, hear(to_first), hear(to_second));
        let both = (first, second);
        assert_eq!(both, (Some(done.clone()), Some(done)));
        assert!(!leaving.is_wanted());
    }

    #[tokio::test]
    async fn who_goes_away_wants_nothing_and_a_signal_stays() {
        // Guards against Ctrl-C of umount leaving a drain behind that blocks the next command.
        let mut leaving = Leaving::default();
        let (first, to_first) = asked(600, true);
        leaving.join(first);
        drop(to_first);
        assert!(!leaving.is_wanted() && !leaving.leaves_rest());
        leaving.signal("SIGTERM");
        assert!(leaving.is_wanted() && !leaving.leaves_rest());
        leaving.signal("SIGINT");
        assert!(leaving.leaves_rest());
    }

    #[tokio::test]
    async fn each_gives_up_after_its_own_time() {
        // Guards against a patient command that is sent away with an impatient one.
        let mut leaving = Leaving::default();
        let (short, mut to_short) = asked(0, false);
        let (long, _to_long) = asked(600, false);
        leaving.join(short);
        leaving.join(long);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let told = tokio::spawn(async move {
            let told = to_short.recv().await;
            drop(to_short);
            told
        });
        leaving.give_up(Instant::now() - Duration::from_secs(1), &Progress::default()).await;
        assert!(matches!(told.await, Ok(Some(Say::Failed(f))) if f.exit == Exit::Pending));
        assert!(leaving.is_wanted());
    }
}
