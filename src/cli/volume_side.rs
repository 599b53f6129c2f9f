//! The volume of `import` and `export`: a live mount, or a store that is mounted for the time of the
//! command in a private place.
//!
//! That mount is a process of this same program in the foreground, which the kernel tells to end in
//! order (SIGTERM) when this one ends, however that happens: so an import that was killed leaves
//! nothing behind that the next one could not continue.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use super::args::{SecretArgs, StoreAddress, file_flag, whole_secs};
use super::client::{Client, is_mounted};
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::live::mount_of;
use super::progress::Display;
use super::protocol::Ask;
use super::sse_flags::SseReadFlags;
use super::{signals, stop};
use crate::fuse;
use crate::stack::StoreOptions;

/// How long the upload at the end may stand still.
const STALL_MAX: Duration = Duration::from_secs(600);
/// How long it may take to end by itself before it is told again.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether the mount is there, or gone.
const LOOK: Duration = Duration::from_millis(20);

/// How the store of the volume is reached and opened; nothing of it for a live mount.
#[derive(Args, Clone, Debug)]
pub struct VolumeArgs {
    #[command(flatten)]
    address: StoreAddress,
    #[command(flatten)]
    keys: SseReadFlags,
    #[command(flatten)]
    secret: SecretArgs,
    /// Ciphertext cache of the volume's mount [default: as sealfs mount]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Journal of the volume's mount [default: as sealfs mount]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl VolumeArgs {
    fn store(&self, name: &str) -> Outcome<StoreOptions> {
        let sse = self.keys.resolve().map_err(|e| Failure::new(Exit::Usage, e))?;
        let is_asked = !sse.read_keys.is_empty();
        self.address.resolve(name, sse, is_asked)
    }

    /// Where this machine keeps what belongs to volumes and is no cache.
    ///
    /// # Errors
    /// Nothing says where.
    pub fn state_dir(&self) -> Outcome<PathBuf> {
        dirs::absolute_or(self.state_dir.as_deref(), dirs::state_dir)
    }
}

/// A directory of a volume.
pub struct VolumeSide {
    /// Where to work.
    pub dir: PathBuf,
    mount: Option<PrivateMount>,
}

struct PrivateMount {
    point: tempfile::TempDir,
    child: Child,
}

impl VolumeSide {
    /// Finds the volume `name`: STORE or a directory of a live mount, without PATH.
    ///
    /// # Errors
    /// It is neither, or it cannot be mounted.
    pub fn open(name: &str, args: &VolumeArgs, read_only: bool) -> Outcome<VolumeSide> {
        let is_store = name.starts_with("s3://") || name.starts_with("file://");
        if !is_store {
            return Ok(VolumeSide { dir: live(Path::new(name))?, mount: None });
        }
        let store = args.store(name)?;
        let shown = store.location.to_string();
        let ours = fuse::mounts().into_iter().rev().filter(|entry| {
            entry.is_sealfs()
                && entry.source == shown
                && fuse::life(&entry.point) == fuse::Life::Alive
                && !is_private(&entry.point)
        });
        let clients = ours.filter_map(|entry| Client::connect(&entry.point, false).ok());
        if let Some(client) = mount_of(clients, &store, |status| status.snapshot.is_none())? {
            eprintln!("sealfs: {shown} is mounted at {}: working there", client.point.display());
            return Ok(VolumeSide { dir: client.point, mount: None });
        }
        let mount = PrivateMount::start(&shown, args, read_only)?;
        Ok(VolumeSide { dir: mount.point.path().to_owned(), mount: Some(mount) })
    }

    /// Ends a private mount: everything goes to the bucket first.
    ///
    /// # Errors
    /// Not all of it did.
    pub fn close(self) -> Outcome {
        match self.mount {
            Some(mount) => mount.end(),
            None => Ok(()),
        }
    }
}

/// How private mount points are called.
const PRIVATE: &str = "sealfs-exchange-";

fn is_private(point: &Path) -> bool {
    point.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PRIVATE))
}

/// Refuses a directory that a link on the way leads out of every mount, also one that is not made yet.
///
/// # Errors
/// It is, or would be, in no mount.
pub fn refuse_outside(dir: &Path) -> Outcome {
    let there = dir.ancestors().find(|at| at.symlink_metadata().is_ok());
    live(there.unwrap_or(dir)).map(drop)
}

/// A directory of a live mount. Files that are moved into a directory where nothing is mounted would
/// lie there in clear.
fn live(dir: &Path) -> Outcome<PathBuf> {
    let resolved = dirs::resolve(dir).map_err(|e| {
        Failure::new(Exit::NotMounted, format!("cannot look at {}: {e}", dir.display()))
            .hint("name a directory of a live mount, or the store: s3://BUCKET[/PREFIX]")
    })?;
    let table = fuse::mounts();
    let point = resolved.ancestors().find_map(|at| table.iter().rfind(|entry| entry.point == at));
    match point {
        Some(entry) if entry.is_sealfs() => Ok(resolved),
        _ => Err(Failure::new(
            Exit::NotMounted,
            format!("{} is not in a sealfs mount", dir.display()),
        )
        .hint("mount the volume first, or name its store: s3://BUCKET[/PREFIX]")),
    }
}

impl PrivateMount {
    fn start(store: &str, args: &VolumeArgs, read_only: bool) -> Outcome<PrivateMount> {
        let general =
            |what: &str, e: std::io::Error| Failure::new(Exit::General, format!("{what}: {e}"));
        take_dead_away();
        stop::remember();
        let made = tempfile::Builder::new().prefix(PRIVATE).tempdir();
        let point = made.map_err(|e| general("cannot make a mount point", e))?;
        let mut words = vec!["mount".to_owned(), store.to_owned()];
        words.push(point.path().display().to_string());
        words.extend(["--foreground", "--log-level", "error"].map(str::to_owned));
        words.extend(read_only.then(|| "--read-only".to_owned()));
        args.address.to_mount(&mut words);
        for file in &args.keys.sse_c_key_file {
            file_flag(&mut words, "--sse-c-read-key-file", file);
        }
        for file in &args.keys.sse_c_read_key_file {
            file_flag(&mut words, "--sse-c-read-key-file", file);
        }
        args.secret.to_mount(&mut words);
        for (flag, dir) in [("--cache-dir", &args.cache_dir), ("--state-dir", &args.state_dir)] {
            dir.iter().for_each(|dir| file_flag(&mut words, flag, dir));
        }
        let program = std::env::current_exe().map_err(|e| general("cannot find sealfs", e))?;
        let mut command = Command::new(program);
        command.args(words).stdout(Stdio::null());
        let end_with_parent = || {
            // SAFETY: prctl(2) takes numbers only, and may be called between fork and exec.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
            Ok(())
        };
        // SAFETY: the closure calls nothing but prctl(2).
        unsafe { command.pre_exec(end_with_parent) };
        let child = command.spawn().map_err(|e| general("cannot start sealfs mount", e))?;
        let mut mount = PrivateMount { point, child };
        mount.wait_until_there()?;
        Ok(mount)
    }

    /// It says itself what goes wrong.
    fn wait_until_there(&mut self) -> Outcome {
        loop {
            let ended = self.child.try_wait().map_err(|e| {
                Failure::new(Exit::General, format!("cannot wait for sealfs mount: {e}"))
            })?;
            if let Some(status) = ended {
                let exit = status.code().and_then(|code| Exit::of_code(u8::try_from(code).ok()?));
                return Err(Failure::new(
                    exit.unwrap_or(Exit::General),
                    "the volume could not be mounted",
                ));
            }
            if is_mounted(self.point.path()) && Client::connect(self.point.path(), false).is_ok() {
                return Ok(());
            }
            if stop::came() {
                return Err(signals::stopped());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// For a child that has not been waited for.
    fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill(2) takes numbers only; the process is our child.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    fn end(mut self) -> Outcome {
        let ask =
            Ask::Umount { stall_secs: whole_secs(STALL_MAX), lazy: false, force_local: false };
        let mut display = Display::new();
        stop::forget(); // by one that came before, this is the end in order
        let said = Client::connect(self.point.path(), false)
            .and_then(|client| client.ask(&ask, |progress| display.show(progress)));
        display.end();
        if said.as_ref().is_err_and(|failure| failure.exit == Exit::Stopped) {
            // Two signals, of which the second leaves the rest to the journal; two of a kind may become one.
            [libc::SIGTERM, libc::SIGINT].into_iter().for_each(|signal| self.signal(signal));
        }
        // A terminal's Ctrl-C reaches it as well: then it is ending, and a second signal would have it
        // leave the rest to the journal.
        let begun = Instant::now();
        while said.is_err() && begun.elapsed() < GRACE && matches!(self.child.try_wait(), Ok(None))
        {
            std::thread::sleep(LOOK);
        }
        if said.is_err() && matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGTERM);
        }
        let status = self.child.wait().map_err(|e| {
            Failure::new(Exit::General, format!("cannot wait for the volume's mount: {e}"))
        })?;
        match (said, status.code()) {
            // Everything is in the bucket, whoever asked for the end first: it may have heard the signal of a
            // terminal too, and be gone before it was asked.
            (_, Some(0)) => Ok(()),
            (Err(failure), _) if failure.exit == Exit::Pending => Err(failure),
            (_, Some(8)) => Err(Failure::new(
                Exit::Pending,
                "not everything is in the bucket; the rest is in the local journal",
            )
            .hint("the same command, or a mount on this machine, uploads it")),
            (Err(failure), _) => Err(failure),
            (Ok(_), _) => {
                Err(Failure::new(Exit::General, format!("the volume's mount ended: {status}")))
            }
        }
    }
}

impl Drop for PrivateMount {
    /// After a failure: the end by signal, without waiting for the bucket longer than it must.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(libc::SIGTERM);
            let begun = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < STALL_MAX {
                std::thread::sleep(LOOK);
            }
        }
    }
}

/// Takes away mount points of earlier runs of this user whose process is gone (kill -9 of both).
fn take_dead_away() {
    let own = crate::base::own_uid();
    for entry in fuse::mounts() {
        let is_ours = entry.is_sealfs() && is_private(&entry.point) && entry.owner == Some(own);
        if is_ours && fuse::life(&entry.point) == fuse::Life::Dead {
            let shown = entry.point.display().to_string();
            for (tool, flags) in [("umount", "-l"), ("fusermount3", "-uzq")] {
                let run = Command::new(tool).args([flags, &shown]).output();
                if run.is_ok_and(|output| output.status.success()) {
                    let _ = std::fs::remove_dir(&entry.point); // empty, and of no use
                    break;
                }
            }
        }
    }
}
