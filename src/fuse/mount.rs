//! The kernel's side of a mount: making it, agreeing on features, tuning it, taking it away.
//!
//! fuser mounts (through `fusermount3` where we are not root) and negotiates `FUSE_INIT`. The
//! request loop is our own (`dispatch.rs`), because fuser 0.18 has no `FUSE_TMPFILE`, no
//! interrupts, drops the flags that clear set-user-id bits, and moves times before 1970.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use fuser::{Config, InitFlags, KernelConfig, MountOption, SessionACL};

use super::options::Options;
use super::rings;
use super::table::mounted_at;
use crate::base::is_root;

/// The most bytes of one WRITE or READ request. The kernel's own limit is 256 pages unless
/// `fs.fuse.max_pages_limit` is raised.
pub const REQUEST_DATA_MAX: u32 = 1 << 20;
/// Readahead and write-back requests the kernel may have under way (`max_background`).
const BACKGROUND_MAX: u16 = 128;
/// Readahead in KiB once the mount stands (root only): four full requests at a time.
const READ_AHEAD_KB: &str = "4096";
/// The share of dirty memory, in percent, that this mount's unwritten pages may fill (root
/// only; the kernel's default for FUSE is 1, which throttles every writer).
const DIRTY_RATIO_MAX: &str = "50";

/// Why a mount did not come about.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point does not exist or is no directory.
    #[error("cannot mount on {path}: {source}")]
    MountPoint {
        /// The mount point as given.
        path: PathBuf,
        /// What looking at it came to.
        source: io::Error,
    },
    /// `allow_other` needs root or a line in `/etc/fuse.conf`.
    #[error("cannot let other users in: user_allow_other is not set in /etc/fuse.conf")]
    AllowOther,
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount on {path}: {source}")]
    Kernel {
        /// The mount point, resolved.
        path: PathBuf,
        /// Their answer.
        source: io::Error,
    },
    /// The request threads could not be started.
    #[error("cannot start the request threads: {0}")]
    Threads(io::Error),
}

/// What the kernel agreed to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Negotiated {
    /// SETXATTR requests have the longer header.
    pub setxattr_ext: bool,
    /// Written pages stay in the page cache for a while.
    pub write_back: bool,
    /// Requests come over io_uring.
    pub rings: bool,
}

/// fuser's side of the handshake: it answers `FUSE_INIT` and nothing else ever.
pub(super) struct Handshake {
    follower: bool,
    io_uring: bool,
    agreed: Arc<OnceLock<Negotiated>>,
}

/// The mount while it lasts; dropping it unmounts what `fusermount3` mounted.
pub(super) type KernelSession = fuser::Session<Handshake>;

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        if !offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT) {
            log::error!("the FUSE of this kernel is older than Linux 5.1");
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        let wanted = wanted(self.follower);
        config.add_capabilities(wanted & offered).map_err(|_| io::ErrorKind::Unsupported)?;
        for (name, _) in (wanted & !offered).iter_names() {
            log::debug!("this kernel lacks {name}");
        }
        // Each setter refuses with the nearest value it would take; take that one.
        if let Err(nearest) = config.set_max_write(REQUEST_DATA_MAX) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(u32::MAX) {
            let _ = config.set_max_readahead(nearest);
        }
        let rings = self.io_uring && takes_rings(config, offered);
        let (background, congested) = match rings {
            true => (rings::BACKGROUND_MAX, rings::CONGESTED),
            false => (BACKGROUND_MAX, BACKGROUND_MAX / 4 * 3),
        };
        let _ = config.set_max_background(background);
        let _ = config.set_congestion_threshold(congested);
        let setxattr_ext = offered.contains(InitFlags::FUSE_SETXATTR_EXT);
        let write_back = (wanted & offered).contains(InitFlags::FUSE_WRITEBACK_CACHE);
        let _ = self.agreed.set(Negotiated { setxattr_ext, write_back, rings });
        Ok(())
    }
}

/// Agrees on rings, if they are to be had.
fn takes_rings(config: &mut KernelConfig, offered: InitFlags) -> bool {
    let flag = InitFlags::FUSE_OVER_IO_URING;
    // Once this is agreed, the kernel waits for the rings and nothing else.
    let unavailable = rings::unavailable(offered.contains(flag));
    if let Some(why) = &unavailable {
        log::warn!("requests come over /dev/fuse, not over io_uring: {why}");
    }
    unavailable.is_none() && config.add_capabilities(flag).is_ok()
}

/// The features asked of the kernel, as far as it has them. Locks are left to it: with one
/// writer, its own `flock` and `fcntl` locks are all there is to see.
fn wanted(follower: bool) -> InitFlags {
    let both = InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_MAX_PAGES
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS // without READDIRPLUS_AUTO: always
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_NO_OPEN_SUPPORT
        | InitFlags::FUSE_NO_OPENDIR_SUPPORT
        | InitFlags::FUSE_POSIX_ACL
        | InitFlags::FUSE_DONT_MASK // fs applies the umask, unless a default ACL replaces it
        | InitFlags::FUSE_EXPORT_SUPPORT // file handles of any inode: lookups of "." and ".."
        | InitFlags::FUSE_SETXATTR_EXT
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        // While it follows: other attributes mean other data. Costs a writer nothing, whose
        // attributes last.
        | InitFlags::FUSE_AUTO_INVAL_DATA;
    // What was agreed holds as long as the mount, whatever its role. Linux believes its own size of a
    // file with write-back: a follower cannot have that, and writes through once it is promoted. Of a
    // writer that is demoted `nodes` takes care.
    match follower {
        true => both,
        false => both | InitFlags::FUSE_WRITEBACK_CACHE,
    }
}

/// Mounts and negotiates. Returns the resolved mount point too.
pub(super) fn mount(
    at: &Path,
    options: &Options,
) -> Result<(KernelSession, PathBuf, Negotiated), MountError> {
    let point_error = |source| MountError::MountPoint { path: at.into(), source };
    let point = at.canonicalize().map_err(point_error)?;
    let meta = point.metadata().map_err(point_error)?;
    if !meta.is_dir() {
        return Err(point_error(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    let root = is_root();
    let allow_other = options.allow_other.unwrap_or(root);
    if allow_other && !root && !fuse_conf_allows_other() {
        return Err(MountError::AllowOther);
    }
    let acl = if allow_other { SessionACL::All } else { SessionACL::Owner };

    let agreed = Arc::new(OnceLock::new());
    let handshake = Handshake {
        follower: options.read_only,
        io_uring: options.io_uring,
        agreed: Arc::clone(&agreed),
    };
    let mut config = Config::default();
    config.acl = acl;
    config.mount_options = fuser_options(options);
    let kernel_error = |source| MountError::Kernel { path: point.clone(), source };
    let session = match mount_as_root(&point, options, allow_other, meta.permissions().mode()) {
        Ok(device) => {
            fuser::Session::from_fd(handshake, device, acl, config).inspect_err(|_| abandon(&point))
        }
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            fuser::Session::new(handshake, &point, &config)
        }
        Err(e) => Err(e),
    }
    .map_err(kernel_error)?;
    let agreed = agreed.get().copied().unwrap_or_default();
    Ok((session, point, agreed))
}

/// Mounts with mount(2), as type `fuse.sealfs`. `EPERM`: not allowed to, use fusermount3.
fn mount_as_root(
    point: &Path,
    options: &Options,
    allow_other: bool,
    root_mode: u32,
) -> io::Result<OwnedFd> {
    if !is_root() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let fd = device.as_raw_fd();
    let mut data = format!("fd={fd},rootmode={root_mode:o},user_id=0,group_id=0");
    data.push_str(",default_permissions");
    if allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = 0;
    for (set, flag) in [
        (options.read_only, libc::MS_RDONLY),
        (!options.dev, libc::MS_NODEV),
        (!options.suid, libc::MS_NOSUID),
        (!options.exec, libc::MS_NOEXEC),
        (options.sync, libc::MS_SYNCHRONOUS | libc::MS_DIRSYNC),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let source = CString::new(options.fsname.as_str())?;
    let target = CString::new(point.as_os_str().as_bytes())?;
    let data = CString::new(data)?;
    // SAFETY: all four pointers are NUL-terminated strings that outlive the call.
    let rc = unsafe {
        let (kind, data) = (c"fuse.sealfs".as_ptr(), data.as_ptr().cast());
        libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, data)
    };
    if rc == 0 { Ok(device.into()) } else { Err(io::Error::last_os_error()) }
}

fn umount2(point: &Path, flags: libc::c_int) -> io::Result<()> {
    let target = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: the pointer is a NUL-terminated string that outlives the call.
    match unsafe { libc::umount2(target.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends a mount that cannot be served any more: whoever waits for an answer gets an error. Needs root to
/// reach those; else the mount goes once nobody uses it.
pub(super) fn abort(point: &Path) {
    if umount2(point, libc::MNT_FORCE | libc::MNT_DETACH).is_err() {
        abandon(point);
    }
}

/// Takes away a mount nobody serves; until then every operation on it would fail.
pub(super) fn abandon(point: &Path) {
    if let Err(e) = unmount(point, true) {
        log::warn!("cannot unmount {}: {e}", point.display());
    }
}

fn fuser_options(o: &Options) -> Vec<MountOption> {
    let either = |set, yes, no| if set { yes } else { no };
    let mut list = vec![
        MountOption::FSName(o.fsname.clone()),
        MountOption::Subtype("sealfs".into()),
        MountOption::DefaultPermissions,
        either(o.read_only, MountOption::RO, MountOption::RW),
        either(o.dev, MountOption::Dev, MountOption::NoDev),
        either(o.suid, MountOption::Suid, MountOption::NoSuid),
        either(o.exec, MountOption::Exec, MountOption::NoExec),
    ];
    if o.sync {
        list.extend([MountOption::Sync, MountOption::DirSync]);
    }
    list
}

fn fuse_conf_allows_other() -> bool {
    let conf = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

/// Widens the kernel's readahead and dirty-page limits of the mount. Needs root; without it
/// the mount works, slower.
pub(super) fn tune(point: &Path, device: Option<&str>) {
    let Some(device) = device else {
        log::debug!("{}: not found in /proc/self/mountinfo", point.display());
        return;
    };
    // strict_limit would hold this mount to its share even while memory is plenty.
    let settings =
        [("read_ahead_kb", READ_AHEAD_KB), ("max_ratio", DIRTY_RATIO_MAX), ("strict_limit", "0")];
    for (name, value) in settings {
        let path = format!("/sys/class/bdi/{device}/{name}");
        if let Err(e) = std::fs::write(&path, value) {
            log::debug!("{path}: {e}");
        }
    }
}

/// `major:minor` of what is mounted at `point`, from the kernel's table: asking the mount
/// itself would be a request to ourselves.
pub fn device_number(point: &Path) -> Option<String> {
    mounted_at(point).map(|entry| entry.device)
}

/// Unmounts `point`. `lazy` detaches it now and lets open files end when they are closed.
/// Fails with `EBUSY` while anything on it is in use and `lazy` is not set.
pub fn unmount(point: &Path, lazy: bool) -> io::Result<()> {
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    match umount2(point, flags) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        done => return done,
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(point);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(said.trim().to_owned()))
}
