//! The mount process: from the opened volume to its end, and what ends it.
//!
//! It ends when it is asked to over the control socket, by a signal (see `signals`), or when someone
//! else unmounts the directory. In every case what is pending is uploaded first; what cannot
//! be stays in the journal for the next mount. Commands and signals are listened to at every moment
//! of the end, so that a later one can take over from an earlier one (see `leaving`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::base::{counted, one_line};
use crate::fuse::{self, Session};
use crate::stack::{
    self, Attended, Connection, Control, Mounted, RoleName, StackError, Transition, Why,
};

use super::busy::{Foreign, places_of};
use super::daemon::Starting;
use super::exit::{Exit, Failure, Outcome};
use super::leaving::{Leaving, stalled};
use super::notify;
use super::place;
use super::protocol::Say;
use super::reload;
use super::scrape;
use super::server::{self, ASKED_MAX, PROGRESS_INTERVAL, Standstill, UmountAsked, Watched};
use super::signals::{LOOK_EVERY, Signals, Teller, stopped};
use super::socket::{self, Socket};

/// How long something may be in use before the mount is: programs look at files for a moment, and a
/// process has those of its parent until it executes another program.
const GLANCE: Duration = Duration::from_millis(500);
/// How long closing the volume may take once the mount is gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(120);
/// After an unmount, how long until it is looked who still uses the file system: the last request
/// threads end meanwhile.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How long until whoever cannot be found is said to use it.
const UNKNOWN_AFTER: Duration = Duration::from_secs(5);
/// How long a mount that a signal has unmounted is served for those who still use it.
const SERVE_ON_MAX: Duration = Duration::from_secs(20);
/// Said in the log, by whoever notices first.
const NOBODY_WAITS: &str = "nobody waits for the mount any more";

/// What to mount, where and how.
pub struct Plan {
    /// The volume.
    pub volume: stack::MountOptions,
    /// The FUSE mount.
    pub fuse: fuse::Options,
    /// The mount point, resolved.
    pub point: PathBuf,
    /// Where its control socket may be, the best place first.
    pub places: Vec<PathBuf>,
    /// Where its metrics are answered.
    pub metrics: Option<scrape::Address>,
    /// Keeps another mount from being started on the directory meanwhile.
    pub starting: socket::Starting,
}

/// A mount that works.
struct Running {
    mounted: Mounted,
    serving: Serving,
}

/// What of it is at work until the very end.
struct Serving {
    session: Session,
    control: Arc<dyn Control>,
    umounts: mpsc::Receiver<UmountAsked>,
    signals: Signals,
    /// Tells those who wait for a sync that there is no more to wait for.
    end: watch::Sender<bool>,
}

/// Mounts, reports through `starting`, and serves until the end. The outcome is
/// [`Exit::Pending`] when not everything is in the bucket, and [`Exit::Stopped`] when a signal came
/// before the mount worked; then nothing of it is left.
pub async fn serve(plan: Plan, starting: Starting) -> Outcome {
    let point = plan.point.clone();
    let attended = plan.volume.store.attended.clone();
    let signals = Signals::catch(starting.is_foreground());
    let signals = signals.map_err(|e| general("cannot catch signals", e));
    let running = match signals {
        Ok(signals) => watched_start(plan, signals, &attended, &starting).await,
        Err(failure) => Err(failure),
    };
    let mut running = match running {
        Ok(running) => running,
        Err(failure) => return starting.failed(failure),
    };
    for note in running.mounted.notes() {
        eprintln!("sealfs: note: {}", one_line(&note));
    }
    // The process that waited for the mount may have gone away at the last moment.
    if attended.is_stopped() || starting.is_abandoned() {
        if !attended.is_stopped() {
            log::info!("{NOBODY_WAITS}; unmounting");
        }
        running.undo().await;
        return starting.failed(stopped());
    }
    // Logged first: whoever is told that it is mounted finds the line there.
    log::info!("mounted on {}", point.display());
    if let Err(e) = starting.ready() {
        log::warn!("{NOBODY_WAITS} ({e}); unmounting");
        running.undo().await;
        return Err(stopped());
    }
    if let Some(hangup) = running.serving.signals.take_reload() {
        tokio::spawn(reload::reloads(hangup, Arc::clone(&running.serving.control)));
    }
    let roles = running.serving.control.transitions();
    notify::ready(&said_of(&point, &roles.borrow()));
    let telling = tokio::spawn(tell_roles(point, roles));
    let control = Arc::clone(&running.serving.control);
    let watched = notify::watchdog().map(|every| tokio::spawn(show_life(control, every)));
    let outcome = running.run().await;
    telling.abort();
    if let Some(watched) = watched {
        watched.abort();
    }
    outcome
}

/// Tells the service manager of each change of the role.
async fn tell_roles(point: PathBuf, mut roles: watch::Receiver<Transition>) {
    while roles.changed().await.is_ok() {
        let now = *roles.borrow_and_update();
        notify::status(&said_of(&point, &now));
    }
}

/// Tells the service manager that the mount is alive, three times in each of its intervals: that there are
/// threads for its work, and that none keeps the locks of the volume for itself. A store that is away is no
/// reason to be killed.
async fn show_life(control: Arc<dyn Control>, every: Duration) {
    loop {
        let control = Arc::clone(&control);
        // Its thread may hang, which is what is to be found out.
        if tokio::task::spawn_blocking(move || control.progress()).await.is_ok() {
            notify::alive();
        }
        tokio::time::sleep(every / 3).await;
    }
}

fn said_of(point: &Path, now: &Transition) -> String {
    format!("mounted on {}, {}", point.display(), role_in_words(now))
}

/// A role and how it came about.
pub fn role_in_words(now: &Transition) -> &'static str {
    match (now.role, now.why) {
        (_, Why::Fenced) => "follower: another mount has taken the volume over",
        (RoleName::Writer, Why::Promoted) => "writer: promoted",
        (RoleName::Writer, _) => "writer",
        (RoleName::Follower, Why::Demoted) => "follower: demoted",
        (RoleName::Follower, _) => "follower",
    }
}

/// Starts, says what it waits for meanwhile, and undoes it at a signal or when whoever waits for
/// the mount goes away.
async fn watched_start(
    plan: Plan,
    mut signals: Signals,
    attended: &Attended,
    starting: &Starting,
) -> Outcome<Running> {
    let mut teller = Teller::default();
    let started = start(plan);
    tokio::pin!(started);
    let Started { mounted, session, umounts, end } = loop {
        tokio::select! {
            started = &mut started => break started?,
            name = signals.next() => {
                log::info!("{name}: not mounted");
                stack::announce_end();
                attended.stop();
            }
            () = tokio::time::sleep(LOOK_EVERY) => match starting.is_abandoned() {
                true if !attended.is_stopped() => {
                    log::info!("{NOBODY_WAITS}");
                    stack::announce_end();
                    attended.stop();
                }
                true => {}
                false => teller.look(attended),
            },
        }
    };
    let control = Arc::clone(&mounted.control);
    let serving = Serving { session, control, umounts, signals, end };
    Ok(Running { mounted, serving })
}

fn general(what: &str, e: io::Error) -> Failure {
    Failure::new(Exit::General, format!("{what}: {e}"))
}

/// A mount that has begun, before anybody is told.
struct Started {
    mounted: Mounted,
    session: Session,
    umounts: mpsc::Receiver<UmountAsked>,
    end: watch::Sender<bool>,
}

async fn start(plan: Plan) -> Outcome<Started> {
    let attended = plan.volume.store.attended.clone();
    let metrics = match &plan.metrics {
        Some(address) => Some(scrape::Listener::bind(address).await?),
        None => None,
    };
    let mounted = stack::mount(plan.volume).await?;
    if attended.is_stopped() {
        close(mounted).await;
        return Err(StackError::Stopped.into());
    }
    let served =
        fuse::serve(Arc::clone(&mounted.tree), &plan.point, &plan.fuse, &Handle::current());
    let session = match served {
        Ok(session) => session,
        Err(e) => {
            close(mounted).await;
            return Err(mount_failure(&e));
        }
    };
    mounted.control.tell(session.notifier());
    mounted.attach(session.kernel());
    let socket = match Socket::bind(plan.places) {
        Ok(socket) => socket,
        Err(e) => {
            let _ = unmount(&session, true).await; // the bind error is told
            close(mounted).await;
            return Err(general("cannot make the control socket", e));
        }
    };
    let (control, operations) = (Arc::clone(&mounted.control), session.operations().clone());
    let watched = Watched { control, operations };
    if let Some(listener) = metrics {
        tokio::spawn(scrape::serve(listener, watched.clone()));
    }
    let (ask, umounts) = mpsc::channel(ASKED_MAX);
    let (end, ended) = watch::channel(false);
    tokio::spawn(server::serve(socket, watched, ask, ended));
    drop(plan.starting);
    Ok(Started { mounted, session, umounts, end })
}

fn mount_failure(e: &fuse::MountError) -> Failure {
    let failure = Failure::new(Exit::General, e);
    match e {
        fuse::MountError::AllowOther => {
            failure.hint("add the line user_allow_other to /etc/fuse.conf, or drop allow_other")
        }
        fuse::MountError::MountPoint { path, source } => place::unusable(path, source),
        fuse::MountError::Kernel { .. } => failure.hint("apt install fuse3; modprobe fuse"),
        fuse::MountError::Threads(_) => failure,
    }
}

/// How a drain ended.
enum Drained {
    /// The bucket has everything.
    Wholly,
    /// The rest is left to the journal.
    InPart,
    /// Nobody wants the end any more, or it could not be: the mount stays.
    Stay,
}

impl Running {
    async fn run(self) -> Outcome {
        let Running { mounted, mut serving } = self;
        let mut leaving = Leaving::default();
        serving.until_unmounted(&mut leaving).await;
        stack::announce_end();
        log::info!("unmounted {}", serving.session.mount_point().display());
        // What the kernel wrote back while it unmounted is still to be uploaded.
        let _ = serving.drain(&mut leaving).await; // what is pending tells how it went
        let pending_bytes = serving.control.progress().pending_bytes;
        serving.end.send_replace(true);
        serving.while_listening(&mut leaving, close(mounted)).await;
        // The unmount itself is done: what is left pending is its result, not a failure.
        leaving.answer(Say::Done { pending_bytes }).await;
        if pending_bytes == 0 {
            log::info!("everything is in the bucket");
            return Ok(());
        }
        let what = format!("only in the local journal: {}", counted(pending_bytes, "byte"));
        log::error!("{what}");
        Err(Failure::new(Exit::Pending, what))
    }

    /// Takes away a mount that nobody has seen yet.
    async fn undo(self) {
        stack::announce_end();
        if let Err(failure) = unmount(&self.serving.session, true).await {
            log::warn!("{}", failure.message);
        }
        // It was there for an instant: what somebody wrote meanwhile stays in the journal.
        close(self.mounted).await;
    }
}

impl Serving {
    /// Returns once the file system is mounted nowhere any more, or is to end all the same.
    async fn until_unmounted(&mut self, leaving: &mut Leaving) {
        loop {
            tokio::select! {
                () = self.session.ended() => return,
                name = self.signals.next() => leaving.signal(name),
                Some(asked) = self.umounts.recv() => leaving.join(asked),
            }
            if self.leave(leaving).await {
                return;
            }
        }
    }

    /// Drains, then unmounts. False: it goes on serving, and nobody waits any more.
    async fn leave(&mut self, leaving: &mut Leaving) -> bool {
        if matches!(self.drain(leaving).await, Drained::Stay) {
            return false;
        }
        let lazy = leaving.is_lazy();
        let unmounting = unmount(&self.session, lazy);
        if let Err(failure) = self.while_listening(leaving, unmounting).await {
            if !leaving.by_signal() {
                log::warn!("not unmounted: {}", failure.message);
                leaving.answer(Say::Failed(failure)).await;
                return false;
            }
            log::warn!("{}; detaching it", failure.message);
            let detaching = unmount(&self.session, true);
            if let Err(failure) = self.while_listening(leaving, detaching).await {
                log::error!("{}", failure.message);
            }
        }
        self.until_free(leaving).await
    }

    /// Does `work`; a request meanwhile to end, or to hurry, is remembered.
    async fn while_listening<T>(
        &mut self,
        leaving: &mut Leaving,
        work: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                name = self.signals.next() => leaving.signal(name),
                Some(asked) = self.umounts.recv() => leaving.join(asked),
            }
        }
    }

    /// Waits until everything written before the call is in the bucket, or nobody wants to wait.
    async fn drain(&mut self, leaving: &mut Leaving) -> Drained {
        // Nothing more of a fenced mount ever gets into the bucket: there is nothing to wait for.
        if leaving.leaves_rest() || self.control.status().connection == Connection::Fenced {
            return Drained::InPart;
        }
        let control = Arc::clone(&self.control);
        let mut sync = control.sync();
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        let (mut last, mut moved) = (control.progress(), Instant::now());
        let (mut standstill, mut told_away) = (Standstill::after(&last), false);
        loop {
            // Once unmounted it ends in any case, by signal too.
            let ends = self.session.has_ended() || leaving.by_signal();
            tokio::select! {
                synced = &mut sync => match synced {
                    Ok(()) => return Drained::Wholly,
                    Err(why) if ends => {
                        log::error!("{why}");
                        return Drained::InPart;
                    }
                    Err(why) => {
                        leaving.answer(Say::Failed(Failure::new(Exit::Pending, why))).await;
                        return Drained::Stay;
                    }
                },
                name = self.signals.next() => leaving.signal(name),
                Some(asked) = self.umounts.recv() => leaving.join(asked),
                _ = tick.tick() => {
                    let now = control.progress();
                    let moves = standstill.ends(&now);
                    if moves {
                        moved = Instant::now();
                    }
                    if moves || now.offline != told_away {
                        notify::progress(&now, moves);
                        told_away = now.offline;
                    }
                    leaving.show(&now);
                    last = now;
                }
            }
            let wanted = leaving.is_wanted();
            if leaving.leaves_rest() {
                return Drained::InPart;
            }
            if ends {
                if moved.elapsed() > leaving.patience() {
                    log::error!("{}", stalled(leaving.patience(), &last).message);
                    return Drained::InPart;
                }
                continue;
            }
            leaving.give_up(moved, &last).await;
            if !leaving.is_wanted() {
                if !wanted {
                    log::info!("nobody waits for the unmount any more: it stays mounted");
                }
                return Drained::Stay;
            }
        }
    }

    /// After an unmount, waits until the file system is in use nowhere. Bind mounts of it go too;
    /// what else uses it is said to those who wait, and served on (false), but not for long if a
    /// signal asked for the end.
    async fn until_free(&mut self, leaving: &mut Leaving) -> bool {
        let begun = Instant::now();
        let mut looked = false;
        loop {
            tokio::select! {
                () = self.session.ended() => return true,
                name = self.signals.next() => leaving.signal(name),
                Some(asked) = self.umounts.recv() => leaving.join(asked),
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
            }
            let waited = begun.elapsed();
            if waited < LOOK_AFTER {
                continue;
            }
            if leaving.is_lazy() && !leaving.by_signal() {
                log::info!("detached; serving the files that are open");
                let pending_bytes = self.control.progress().pending_bytes;
                leaving.answer(Say::Done { pending_bytes }).await;
                return false;
            }
            if !looked {
                looked = true;
                let left = self.take_away_others(leaving).await;
                if !left.is_empty() && self.session.has_ended() {
                    return true;
                }
                if !left.is_empty() {
                    let failure = held_by(self.session.mount_point(), &left);
                    log::warn!("{}", failure.message);
                    if !leaving.by_signal() {
                        leaving.answer(Say::Failed(failure)).await;
                        return false;
                    }
                }
            }
            if leaving.by_signal() {
                if leaving.leaves_rest() || waited > SERVE_ON_MAX {
                    log::warn!("the detached mount is still in use; that ends now");
                    return true;
                }
            } else if waited > UNKNOWN_AFTER {
                let failure = held_by(self.session.mount_point(), &[]);
                log::warn!("{}", failure.message);
                leaving.answer(Say::Failed(failure)).await;
                return false;
            }
        }
    }

    /// Unmounts bind mounts of the file system in this mount namespace. Returns what still holds it:
    /// those that are in use, and what other namespaces have.
    async fn take_away_others(&mut self, leaving: &mut Leaving) -> Vec<Holder> {
        let Some(device) = self.session.device().map(str::to_owned) else { return Vec::new() };
        let looking = tokio::task::spawn_blocking(move || {
            let places = places_of(&device);
            let mut left: Vec<Holder> = Vec::new();
            for path in places.here {
                match fuse::unmount(&path, false) {
                    Ok(()) => log::info!("unmounted {}, where it was bound too", path.display()),
                    Err(e) => left.push(Holder::Bind(path, e)),
                }
            }
            left.extend(places.elsewhere.into_iter().map(Holder::Namespace));
            left
        });
        self.while_listening(leaving, looking).await.unwrap_or_default()
    }
}

/// Who keeps a file system in use that is not mounted at its mount point any more.
enum Holder {
    /// A bind mount that could not be unmounted, and why.
    Bind(PathBuf, io::Error),
    /// A mount of another namespace.
    Namespace(Foreign),
}

/// What to say of a mount that is gone from its directory and still in use.
fn held_by(point: &Path, holders: &[Holder]) -> Failure {
    let shown = point.display();
    let who: Vec<String> = holders.iter().map(Holder::name).collect();
    let who = match who.is_empty() {
        true => "something that cannot be seen from here (a mount namespace without a process, \
                 or of another user)"
            .into(),
        false => who.join("; "),
    };
    let what = format!(
        "{shown} is unmounted and everything is sent, but the volume is still in use: {who}"
    );
    let pid = std::process::id();
    let cures: Vec<String> = holders.iter().map(Holder::cure).collect();
    let first = match cures.is_empty() {
        true => String::new(),
        false => format!("{}; ", cures.join("; ")),
    };
    Failure::new(Exit::Busy, what).hint(format!(
        "{first}the mount process serves it until then, and ends by itself; to end it now: kill {pid}"
    ))
}

impl Holder {
    fn name(&self) -> String {
        match self {
            Holder::Bind(path, e) if e.raw_os_error() == Some(libc::EBUSY) => {
                format!("bound at {}, which is in use", path.display())
            }
            Holder::Bind(path, e) => format!("bound at {}: {e}", path.display()),
            Holder::Namespace(foreign) => {
                let namespace = foreign.namespace.as_ref().map(|ns| format!(" {ns}"));
                format!(
                    "{} has it at {} in another mount namespace{}",
                    foreign.who,
                    foreign.path.display(),
                    namespace.unwrap_or_default()
                )
            }
        }
    }

    fn cure(&self) -> String {
        match self {
            Holder::Bind(path, _) => format!("umount {}", path.display()),
            Holder::Namespace(foreign) => {
                format!(
                    "nsenter --target {} --mount umount {}",
                    foreign.pid,
                    foreign.path.display()
                )
            }
        }
    }
}

/// Unmounts what this process serves from its mount point, on a thread that may block: the kernel
/// writes dirty pages back, through us. Whatever else is mounted there is left alone.
fn unmount(session: &Session, lazy: bool) -> impl Future<Output = Outcome> + use<> {
    let point = session.mount_point().to_path_buf();
    let device = session.device().map(str::to_owned);
    async move {
        let shown = point.display().to_string();
        let there = fuse::device_number(&point);
        if device.is_some() && there != device {
            let covered = device.is_some_and(|d| places_of(&d).here.contains(&point));
            return match covered {
                true => Err(Failure::new(
                    Exit::Busy,
                    format!("another file system is mounted over {shown}"),
                )
                .hint(format!("umount {shown}"))),
                false => Ok(()), // somebody else was faster
            };
        }
        let begun = Instant::now();
        let done = loop {
            let at = point.clone();
            let done = tokio::task::spawn_blocking(move || fuse::unmount(&at, lazy)).await;
            let is_busy = matches!(&done, Ok(Err(e)) if e.raw_os_error() == Some(libc::EBUSY));
            if !is_busy || begun.elapsed() > GLANCE {
                break done;
            }
            tokio::time::sleep(GLANCE / 10).await;
        };
        match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) if e.raw_os_error() == Some(libc::EBUSY) => {
                Err(Failure::new(Exit::Busy, format!("{shown} is in use")))
            }
            // Somebody else was faster.
            Ok(Err(e)) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Ok(Err(e)) => Err(Failure::new(Exit::General, format!("cannot unmount {shown}: {e}"))),
            Err(e) => Err(Failure::new(Exit::General, format!("cannot unmount {shown}: {e}"))),
        }
    }
}

/// Closes the volume, within bounds: what it had promised is on disk already.
async fn close(mounted: Mounted) {
    // What could be drained has been: whatever is left stays in the journal.
    match timeout(CLOSE_TIMEOUT, mounted.shutdown(Duration::ZERO)).await {
        Ok(_) => {}
        Err(_) => log::error!("closing the volume takes too long; ending without"),
    }
}
