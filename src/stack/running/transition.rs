//! `promote` and `demote`: a running mount changes its role because somebody asks.
//!
//! **Demote.** What programs have written is fetched from the kernel and drained, for as long as that
//! takes; until then nothing has changed. Then changes are held, which makes them wait: what came last
//! is drained, the committer ends, and the metadata are opened to be read beside the writer's handle.
//! If any of that fails, changes go on as before. From there on only this process has a part in it: the
//! handle is exchanged, changes are refused, the kernel forgets what others may change; and only then
//! is the lease given back.
//!
//! **Promote.** The steps of a mount that begins (`claim`), beside the handle that is followed, which
//! stays if one of them fails. Then that handle is exchanged, the journal replayed, the kernel brought
//! to where the volume is, and changes are taken.
//!
//! A process that dies in any of these steps leaves what one leaves that dies as a writer: what was
//! acknowledged is in the journal or in the bucket, and the lease is of a process that is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::claim::random_instance;
use super::claim::{Ask, Held, Opener, claim};
use super::control::Progress;
use super::following::Follower;
use super::look::{Look, Seat, Source};
use super::role::{RoleName, Transition, Why};
use super::status::OpenVolume;
use super::writer::Writer;
use crate::base::JournalPos;
use crate::commit::{WriterState, last_commit};
use crate::fuse::KernelSide;
use crate::journal::{Journal, Recovery};
use crate::stack::keys::object::read_version;
use crate::stack::records::history::remember;
use crate::stack::records::state::Remembered;
use crate::stack::{Accept, Attended, StackError, StackErrorKind};
use crate::store::Sealed;
use crate::store::kv::Kv;

/// How long changes are held at most for what came last to be drained.
const LAST_DRAIN_MAX: Duration = Duration::from_secs(20);
/// How long the committer may take to end the step that it is in, with nothing left to commit.
const STEP_MAX: Duration = Duration::from_secs(5);
/// The same of a compaction of metadata.
const COMPACTION_GRACE: Duration = Duration::from_secs(1);
/// How long the metadata may take to open while changes are held.
const SUCCESSOR_MAX: Duration = Duration::from_secs(20);
/// How long the kernel may take for each thing that it is told.
const KERNEL_MAX: Duration = Duration::from_secs(60);
/// How long giving the lease back may take, each time.
const RELEASE_MAX: Duration = Duration::from_secs(10);
/// How long until it is tried again.
const RELEASE_AGAIN: Duration = Duration::from_secs(15);
/// How long whoever uses the journal still may take to let go of it.
const JOURNAL_MAX: Duration = Duration::from_secs(10);

/// How a follower is to become the writer.
#[derive(Clone, Debug, Default)]
pub struct PromoteAsk {
    /// Take the volume from the mount that holds it.
    pub takeover: bool,
    /// What may be older, or other, than what this machine has seen.
    pub accept: Accept,
    /// Shows what is waited for, and takes the wish to stop.
    pub attended: Attended,
}

/// How a writer is to become a follower.
#[derive(Clone, Debug)]
pub struct DemoteAsk {
    /// Give up after this long without any progress.
    pub stall: Duration,
    /// Takes the wish to stop.
    pub attended: Attended,
}

fn refused(
    kind: StackErrorKind,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> StackError {
    StackError::Role { kind, message: message.into(), hint: hint.into() }
}

fn not_drained(why: impl Into<String>) -> StackError {
    let hint = "nothing has changed: it is the writer still; try again when the bucket answers";
    refused(StackErrorKind::Pending, why, hint)
}

impl OpenVolume {
    /// Serves this mount's kernel from now on.
    pub(crate) fn attach(&self, kernel: KernelSide) {
        *self.kernel_side.lock() = Some(kernel);
    }

    /// Has the kernel do something, if there is one; `None` if there is none.
    async fn tell<T: Send + 'static>(
        &self,
        limit: Duration,
        what: impl FnOnce(&KernelSide) -> T + Send + 'static,
    ) -> Result<Option<T>, StackError> {
        let Some(kernel) = self.kernel_side.lock().clone() else { return Ok(None) };
        let telling = tokio::task::spawn_blocking(move || what(&kernel));
        match tokio::time::timeout(limit, telling).await {
            Ok(Ok(told)) => Ok(Some(told)),
            Ok(Err(e)) => Err(not_drained(format!("bug: {e}"))),
            // The thread is left behind; it ends when the kernel goes on.
            Err(_) => Err(not_drained(format!(
                "the kernel is not done with the mount after {} s",
                limit.as_secs()
            ))),
        }
    }

    fn try_change(&self) -> Result<tokio::sync::OwnedMutexGuard<()>, StackError> {
        self.role.changing.clone().try_lock_owned().map_err(|_| {
            let message = "this mount is just changing its role, or ends";
            refused(StackErrorKind::Busy, message, "look how it is: sealfs status")
        })
    }

    /// Becomes a follower. The lease is given back when this returns, or soon.
    ///
    /// # Errors
    /// [`StackError::Role`]: it is none that writes, or not everything gets into the bucket;
    /// [`StackError::Stopped`]. It is the writer still, and nothing has changed.
    pub(crate) async fn demote(self: &Arc<Self>, ask: DemoteAsk) -> Result<Transition, StackError> {
        let changing = self.try_change()?;
        let Some(writer) = self.writer() else {
            let hint = "to make it the writer: sealfs promote DIR";
            return Err(refused(StackErrorKind::Other, "this mount follows already", hint));
        };
        let stopped = ask.attended.clone();
        let drained = async {
            self.write_back(ask.stall).await?;
            self.drain(&writer, ask.stall).await?;
            // What nobody uses need not be told later.
            self.tell(KERNEL_MAX, KernelSide::shrink).await?;
            self.write_back(ask.stall).await
        };
        stopped.unless_stopped(drained).await?;
        self.fs.hold_changes();
        let outcome = self.hand_over(&writer, ask.stall.min(LAST_DRAIN_MAX)).await;
        let (newer, log_store) = match outcome {
            Ok(newer) => newer,
            Err(e) => {
                self.fs.release_changes();
                return Err(e);
            }
        };
        // Nothing from here on can fail.
        self.role.rest().await;
        if let Err(e) = writer.note_last(self) {
            log::warn!("what this machine remembers was not saved: {e}");
        }
        self.view.kv().replace_by(newer).await;
        *self.log_store.lock() = log_store;
        if let Some(kernel) = self.kernel_side.lock().clone() {
            kernel.note_files(true);
        }
        self.lay_down(Why::Demoted);
        self.view.follow().await;
        self.follow();
        if let Err(e) = self.tell(KERNEL_MAX, KernelSide::follow).await {
            log::warn!("{e}");
        }
        self.let_go(writer).await;
        log::info!("demoted: from now on this mount follows the volume");
        drop(changing);
        Ok(self.role.last())
    }

    async fn write_back(&self, limit: Duration) -> Result<(), StackError> {
        match self.tell(limit, KernelSide::write_back).await? {
            Some(Err(e)) => {
                Err(not_drained(format!("the kernel could not write back what it holds: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Waits until the bucket has what was written before the call.
    async fn drain(&self, writer: &Writer, stall: Duration) -> Result<(), StackError> {
        let sync = writer.committer.sync(Duration::MAX);
        tokio::pin!(sync);
        let (mut before, mut moved) = (self.pending_of(writer), Instant::now());
        let moves = |before: &Progress, now: &Progress| {
            now.moved_bytes > before.moved_bytes || now.pending_bytes < before.pending_bytes
        };
        loop {
            tokio::select! {
                true = &mut sync => return Ok(()),
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
                else => return Err(self.why_not(writer)),
            }
            let now = self.pending_of(writer);
            if moves(&before, &now) {
                moved = Instant::now();
            }
            before = now;
            if moved.elapsed() > stall {
                return Err(self.why_not(writer));
            }
        }
    }

    fn why_not(&self, writer: &Writer) -> StackError {
        match writer.committer.state() {
            WriterState::Fenced => refused(
                StackErrorKind::InUse,
                "another mount has taken the volume over",
                "this mount follows it by itself: sealfs status",
            ),
            WriterState::Failing { reason, .. } => not_drained(reason),
            WriterState::Online => not_drained("the bucket does not have everything yet"),
        }
    }

    /// Ends the writing of `writer` while changes are held, and opens the metadata to be read as they
    /// are then. On an error it goes on to write.
    async fn hand_over(
        self: &Arc<Self>,
        writer: &Writer,
        limit: Duration,
    ) -> Result<(Kv, Arc<Sealed>), StackError> {
        if !writer.committer.sync(limit).await {
            return Err(self.why_not(writer));
        }
        writer.stop(STEP_MAX).await;
        let kv = self.view.kv();
        kv.stop_background(COMPACTION_GRACE).await;
        let log_store = Arc::new(self.sealed.apart());
        let opened = self.open_reading(writer, log_store.clone()).await;
        if opened.is_err() {
            kv.goes_on_writing();
            writer.go_on(self);
        }
        Ok((opened?, log_store))
    }

    async fn open_reading(
        &self,
        writer: &Writer,
        log_store: Arc<Sealed>,
    ) -> Result<Kv, StackError> {
        let limit = self.plan.open_timeout.min(SUCCESSOR_MAX);
        let newer = self.view.kv().successor(log_store, limit).await?;
        let ours = writer.committer.committed().sequence;
        let why = match last_commit(&newer).await {
            Ok(row) if row.map_or(0, |row| row.sequence) >= ours => return Ok(newer),
            Ok(_) => not_drained("the bucket does not show the last commit"),
            Err(e) => e.into(),
        };
        let _ = newer.close(false).await; // a reader: there is nothing to lose
        Err(why)
    }

    /// Gives the lease of a half that was laid down back, and the journal.
    async fn let_go(self: &Arc<Self>, writer: Arc<Writer>) {
        let journal = Arc::downgrade(&writer.journal);
        if !writer.release(RELEASE_MAX).await {
            log::warn!("the lease will be given back when the bucket takes that");
            let lease = writer.lease.clone();
            self.role.release_later(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(RELEASE_AGAIN).await;
                    if Writer::release_lease(&lease, RELEASE_MAX).await {
                        return log::info!("the lease was given back");
                    }
                }
            }));
        }
        drop(writer);
        let begun = Instant::now();
        while journal.strong_count() > 0 {
            if begun.elapsed() > JOURNAL_MAX {
                return log::warn!("the journal is still in use here: other mounts wait for it");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Becomes the writer.
    ///
    /// # Errors
    /// Those of [`mount`](crate::stack::mount); [`StackError::Role`]: it is the writer already, or may not
    /// make itself writable. It is a follower still.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        ask: PromoteAsk,
    ) -> Result<Transition, StackError> {
        let changing = self.try_change()?;
        if self.writer().is_some() {
            let hint = "to make it a follower: sealfs demote DIR";
            return Err(refused(StackErrorKind::Other, "this mount is the writer already", hint));
        }
        if let Some(pinned) = &self.pinned {
            let message =
                format!("this mount shows snapshot {}, which never changes", pinned.name());
            let hint = "mount the volume itself, without --snapshot";
            return Err(refused(StackErrorKind::Other, message, hint));
        }
        if let Some(why) = self.view.kv().refused() {
            return Err(refused(StackErrorKind::Corrupt, why, "unmount it, and look: sealfs fsck"));
        }
        if let Some(Err(e)) = self.tell(KERNEL_MAX, KernelSide::check_allows).await? {
            let message = format!("the mount is read-only, which this process may not change: {e}");
            let hint = "unmount it, and mount it again without ro; or mount it as root";
            return Err(refused(StackErrorKind::Other, message, hint));
        }
        self.role.rest().await;
        let mut held = Held::default();
        let claimed = ask.attended.unless_stopped(self.claim(&ask, &mut held)).await;
        let outcome = match claimed {
            Ok(claimed) => self.go_over(claimed, &ask, &held).await,
            Err(e) => {
                self.follow();
                Err(e)
            }
        };
        if outcome.is_err() {
            held.give_back().await;
        } else {
            log::info!("promoted: from now on this mount writes the volume");
        }
        drop(changing);
        outcome.map(|()| self.role.last())
    }

    /// Everything that can be refused.
    async fn claim(&self, ask: &PromoteAsk, held: &mut Held) -> Result<Claimed, StackError> {
        let (keyring, _) = read_version(&*self.layers.retry, &self.store).await?;
        keyring.check_writable()?;
        self.key_watch.look().await;
        if let Some(note) = self.key_watch.note() {
            return Err(refused(StackErrorKind::Secret, note, "look at the keys: sealfs key list"));
        }
        self.look_at_config().await;
        let accept = ask.accept;
        let mut before = self.state.load_continued(accept.keyring)?.unwrap_or_default();
        before.take_seen(&self.remembered.lock());
        if !accept.keyring {
            before.check_keyring(keyring.revision())?;
        }
        let config = self.sse.revision();
        if config < before.config_revision && !accept.config {
            let (found, seen) = (config, before.config_revision);
            return Err(StackError::ConfigRollback { found, seen });
        }
        let opener = Opener { plan: &self.plan, keys: &self.keys, attended: &ask.attended };
        let local = opener.open().await?;
        let look = Look {
            layers: &self.layers,
            sealed: &self.sealed,
            name: &self.store,
            before: &before,
            attended: ask.attended.clone(),
            source: Source::Beside(self.view.kv()),
            open_timeout: self.plan.open_timeout,
            config,
            at_least: 0,
            accept,
        };
        let seat = look.open(Arc::new(self.sealed.apart()), Some(&local.1)).await?;
        self.role.forget_release().await;
        let (instance, takeover) = (random_instance(), ask.takeover);
        let asked = Ask { look: &look, recovery: &local.1, instance, takeover };
        let seat = claim(seat, &asked, held).await?;
        let mut remembered = Remembered {
            manifest: seat.kv.manifest_id(),
            keyring_revision: keyring.revision(),
            config_revision: config,
            ..before.clone()
        };
        // What was accepted counts from here on.
        remembered.forget_seen();
        remember(&seat.kv, seat.found.commit, &mut remembered).await?;
        Ok(Claimed { seat, local, before, remembered, instance })
    }

    /// Goes over to what was claimed.
    async fn go_over(
        self: &Arc<Self>,
        claimed: Claimed,
        ask: &PromoteAsk,
        held: &Held,
    ) -> Result<(), StackError> {
        let Claimed { seat, local, before, remembered, instance } = claimed;
        let Seat { kv, found, log_store } = seat;
        *self.remembered.lock() = remembered;
        self.view.kv().replace_by(kv).await;
        *self.log_store.lock() = log_store;
        self.view.follow().await;
        let prepared = self.prepare(local, &found, (&before, ask.accept), held, instance).await;
        let (writer, next_ino) = match prepared {
            Ok(prepared) => prepared,
            Err(e) => {
                self.view.restart(JournalPos(0));
                self.role.run(tokio::spawn(Follower::new(self.clone()).run_behind(self.refresh)));
                return Err(e);
            }
        };
        if let Err(e) = self.tell(KERNEL_MAX, KernelSide::settle).await {
            log::warn!("{e}");
        }
        self.begin(writer, next_ino, Why::Promoted);
        match self.tell(KERNEL_MAX, KernelSide::allow_changes).await {
            Ok(Some(Err(e))) => log::error!("the mount stays read-only: {e}"),
            Err(e) => log::error!("the mount may stay read-only: {e}"),
            Ok(_) => {}
        }
        Ok(())
    }

    /// What a status says of the role.
    pub(crate) fn role_name(&self) -> RoleName {
        match self.writer() {
            Some(writer) if writer.committer.state() != WriterState::Fenced => RoleName::Writer,
            _ => RoleName::Follower,
        }
    }
}

/// The volume, taken, before anything of it is used.
struct Claimed {
    seat: Seat,
    local: (Journal, Recovery),
    /// What this machine remembered.
    before: Remembered,
    /// What it does from now on.
    remembered: Remembered,
    instance: [u8; 16],
}
