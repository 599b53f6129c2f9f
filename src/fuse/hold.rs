//! What a mount refused at first it refuses to its end: `nosuid`, `nodev`, `noexec`, `ro` and `sync`
//! come back when a remount has left them out.
//!
//! Linux asks no file system whether its mount may change: `mount -o remount,rw` that does not
//! name `nosuid` lets set-user-id programs have their power again, here and in every bind mount.
//! So a thread looks at the kernel's table whenever that changes, and puts back what is missing,
//! whoever took it. Started by [`super::serve`]; ends with the last mount of the file system.
//!
//! Between a remount and that is the time to wake a thread, in which Linux goes by the attributes
//! that it has. A daemon without `CAP_SYS_ADMIN` cannot put anything back: it says so, and from then
//! on shows no set-id bits, no file capabilities, and device nodes that nobody but root may open.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::options::Options;

/// Where the kernel says what is mounted in our mount namespace.
const TABLE: &str = "/proc/self/mountinfo";
/// How soon what could not be put back is tried again: `ro` has to wait for open files.
const AGAIN: Duration = Duration::from_secs(1);

/// The options of a mount that a remount can take away, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held(u8);

const READ_ONLY: Held = Held(1);
const NO_SUID: Held = Held(2);
const NO_DEV: Held = Held(4);
const NO_EXEC: Held = Held(8);
const SYNC: Held = Held(16);

/// Their names in the table, and as attributes of mount_setattr(2) and flags of mount(2). `sync` is
/// an option of the file system, not of a mount, and has no such attribute.
const NAMES: [(Held, &str, u64, libc::c_ulong); 5] = [
    (READ_ONLY, "ro", libc::MOUNT_ATTR_RDONLY, libc::MS_RDONLY),
    (NO_SUID, "nosuid", libc::MOUNT_ATTR_NOSUID, libc::MS_NOSUID),
    (NO_DEV, "nodev", libc::MOUNT_ATTR_NODEV, libc::MS_NODEV),
    (NO_EXEC, "noexec", libc::MOUNT_ATTR_NOEXEC, libc::MS_NOEXEC),
    (SYNC, "sync", 0, libc::MS_SYNCHRONOUS),
];

impl Held {
    /// What `options` refuse.
    fn of(options: &Options) -> Held {
        let set = |held: Held, is: bool| if is { held.0 } else { 0 };
        Held(
            set(READ_ONLY, options.read_only)
                | set(NO_SUID, !options.suid)
                | set(NO_DEV, !options.dev)
                | set(NO_EXEC, !options.exec)
                | set(SYNC, options.sync),
        )
    }

    /// What two lists of options in the table refuse: those of a mount and of its file system.
    fn listed(mount: &[u8], system: &[u8]) -> Held {
        let options = || mount.split(|&b| b == b',').chain(system.split(|&b| b == b','));
        let there = |name: &str| options().any(|option| option == name.as_bytes());
        Held(NAMES.iter().filter(|(_, name, ..)| there(name)).fold(0, |all, (h, ..)| all | h.0))
    }

    fn without(self, other: Held) -> Held {
        Held(self.0 & !other.0)
    }

    fn has(self, other: Held) -> bool {
        self.0 & other.0 == other.0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn names(self) -> String {
        let names = NAMES.iter().filter(|(held, ..)| self.has(*held)).map(|(_, name, ..)| *name);
        names.collect::<Vec<_>>().join(",")
    }
}

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    device: String,
    point: PathBuf,
    held: Held,
    /// `noatime` and the like, which a remount by mount(2) has to name again.
    keep: libc::c_ulong,
}

/// Parses a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): id, parent, device, root, mount
/// point, options, optional fields, `-`, type, source, options of the file system.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    let point = unescape(fields.nth(1)?);
    let options = fields.next()?;
    let system = fields.skip_while(|field| *field != b"-").nth(3)?;
    let has = |name: &[u8]| options.split(|&b| b == b',').any(|option| option == name);
    let times = [
        (&b"noatime"[..], libc::MS_NOATIME),
        (b"nodiratime", libc::MS_NODIRATIME),
        (b"relatime", libc::MS_RELATIME),
    ];
    let keep = times.iter().filter(|(name, _)| has(name)).fold(0, |all, (_, flag)| all | flag);
    Some(Mount { id, device, point, held: Held::listed(options, system), keep })
}

/// A path as the table writes it: space, tab, newline and backslash in octal.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, more)) = rest.split_first() {
        let octal = |d: &u8| (b'0'..b'8').contains(d);
        match more.get(..3) {
            Some(digits) if byte == b'\\' && digits.iter().all(octal) => {
                out.push(digits.iter().fold(0u8, |n, d| (n << 3) | (d - b'0')));
                rest = &more[3..];
            }
            _ => {
                out.push(byte);
                rest = more;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Keeps watch over every mount of one file system.
struct Watch {
    table: File,
    /// `major:minor` of the file system.
    device: String,
    wanted: Held,
    /// It has been said that options are gone and cannot be put back.
    told: bool,
    /// Told whether what gives power is to be withheld, which it is not at first.
    powerless: Box<dyn Fn(bool) + Send>,
    /// Mounts that a change of role has made read-only, or will once no file is open for writing.
    refusing: HashSet<u64>,
}

/// What is kept refused, for who changes it.
pub(super) struct Hold {
    watch: Arc<Mutex<Watch>>,
    /// An eventfd(2) that has the thread look.
    wake: Arc<File>,
    point: PathBuf,
}

/// Starts to keep what `options` refuse refused, for the mount on `point`.
pub(super) fn start(
    point: &Path,
    device: String,
    options: &Options,
    powerless: impl Fn(bool) + Send + 'static,
) -> io::Result<Hold> {
    let wanted = Held::of(options);
    let (table, changes) = (File::open(TABLE)?, File::open(TABLE)?);
    let (powerless, refusing) = (Box::new(powerless), HashSet::new());
    let mut watch = Watch { table, device, wanted, told: false, powerless, refusing };
    // fusermount3 refuses more than it is asked to.
    watch.wanted = watch.look()?.iter().fold(wanted, |all, mount| Held(all.0 | mount.held.0));
    let (watch, wake) = (Arc::new(Mutex::new(watch)), Arc::new(eventfd()?));
    let hold = Hold { watch: Arc::clone(&watch), wake: Arc::clone(&wake), point: point.into() };
    let point = point.to_owned();
    std::thread::Builder::new().name("remounts".into()).spawn(move || {
        if let Err(e) = run(&watch, changes, &wake) {
            log::error!("cannot watch {} for remounts: {e}", point.display());
        }
    })?;
    Ok(hold)
}

/// An eventfd(2) of 0, reading from which never waits.
pub(super) fn eventfd() -> io::Result<File> {
    // SAFETY: the call takes no pointers.
    match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the call has just made this descriptor.
        fd => Ok(unsafe { File::from_raw_fd(fd) }),
    }
}

fn run(watch: &Mutex<Watch>, mut changes: File, wake: &File) -> io::Result<()> {
    let mut again = None;
    loop {
        wait(&mut changes, wake, again)?;
        let mut watch = watch.lock();
        let mounts = watch.look()?;
        if mounts.is_empty() {
            return Ok(()); // unmounted
        }
        // Each of them, whatever became of the one before.
        let all = mounts.iter().filter(|mount| !watch.restore(mount)).count() == 0;
        watch.told &= !all;
        (watch.powerless)(watch.told);
        again = (!all && !watch.told).then_some(AGAIN);
    }
}

/// Returns when the table has changed since the last call, when it is woken, or after `bound`.
fn wait(changes: &mut File, wake: &File, bound: Option<Duration>) -> io::Result<()> {
    // Whatever changes from here on is heard of.
    changes.rewind()?;
    io::copy(changes, &mut io::sink())?;
    let on = |fd: &File, events| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let mut fds = [on(changes, libc::POLLPRI), on(wake, libc::POLLIN)];
    let ms = bound.map_or(-1, |b| b.as_millis().try_into().unwrap_or(libc::c_int::MAX));
    // SAFETY: `fds` are two valid pollfds and outlive the call.
    if unsafe { libc::poll(fds.as_mut_ptr(), 2, ms) } == -1 {
        match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            e => return Err(e),
        }
    }
    let mut count = [0; 8];
    match (&*wake).read(&mut count) {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
        _ => Ok(()),
    }
}

impl Hold {
    fn here(&self, watch: &mut Watch) -> io::Result<(Mount, OwnedFd)> {
        let mounts = watch.look()?;
        let mount = mounts.into_iter().rfind(|mount| mount.point == self.point);
        let mount = mount.ok_or(io::ErrorKind::NotFound)?;
        let root = open_root(&mount)?;
        Ok((mount, root))
    }

    /// The root of the file system, open to be read, whatever is mounted over it.
    pub(super) fn root(&self) -> io::Result<File> {
        let (_, root) = self.here(&mut self.watch.lock())?;
        File::open(format!("/proc/self/fd/{}", root.as_raw_fd()))
    }

    /// Has Linux write back what is dirty and forget the names and inodes that nobody uses: a remount
    /// with everything as it is (`shrink_dcache_sb` in `reconfigure_super` of fs/super.c). Takes
    /// requests to ourselves: never call it on a request thread.
    ///
    /// # Errors
    /// `EPERM`: it takes `CAP_SYS_ADMIN`.
    pub(super) fn shrink(&self) -> io::Result<()> {
        let (mount, root) = self.here(&mut self.watch.lock())?;
        match mount.held.has(READ_ONLY) {
            // The whole file system would become read-only. There is little that lasts, either.
            true => Ok(()),
            false => remount(&mount, &root, 0, Held::default()),
        }
    }

    /// From now on the mounts are read-only, each as soon as no file of it is open for writing; false
    /// if this process may not do that.
    pub(super) fn refuse_changes(&self) -> io::Result<bool> {
        let mut watch = self.watch.lock();
        for mount in watch.look()?.iter().filter(|mount| !mount.held.has(READ_ONLY)) {
            match put_back(mount, READ_ONLY) {
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // nobody gets there
                _ => drop(watch.refusing.insert(mount.id)),
            }
        }
        watch.wanted = Held(watch.wanted.0 | READ_ONLY.0);
        drop(watch);
        (&*self.wake).write_all(&1u64.to_ne_bytes()).map(|()| true)
    }

    /// The mounts may be written again, those that were refused by us.
    ///
    /// # Errors
    /// `EPERM`: it takes `CAP_SYS_ADMIN`; they are still read-only then.
    pub(super) fn allow_changes(&self) -> io::Result<()> {
        let mut watch = self.watch.lock();
        let wanted = watch.wanted;
        watch.wanted = wanted.without(READ_ONLY);
        let allowed = self.allow(&mut watch);
        if allowed.is_err() {
            watch.wanted = wanted;
        }
        allowed
    }

    fn allow(&self, watch: &mut Watch) -> io::Result<()> {
        let (mount, root) = self.here(watch)?;
        if mount.held.has(READ_ONLY) {
            // The file system too: it may have been mounted so.
            let writable = Mount { held: mount.held.without(READ_ONLY), ..mount };
            remount(&writable, &root, 0, Held::default())?;
        }
        let refusing = std::mem::take(&mut watch.refusing);
        for mount in watch.look()?.into_iter().filter(|mount| refusing.contains(&mount.id)) {
            if mount.held.has(READ_ONLY) && mount.point != self.point {
                let root = open_root(&mount)?;
                let writable = Mount { held: mount.held.without(READ_ONLY), ..mount };
                remount(&writable, &root, libc::MS_BIND, Held::default())?;
            }
        }
        Ok(())
    }

    /// Whether the mount is read-only.
    pub(super) fn is_refusing(&self) -> io::Result<bool> {
        let (mount, _) = self.here(&mut self.watch.lock())?;
        Ok(mount.held.has(READ_ONLY))
    }

    /// Whether this process may change the mounts: sets what is set.
    ///
    /// # Errors
    /// `EPERM` if it may not.
    pub(super) fn check(&self) -> io::Result<()> {
        let (mount, root) = self.here(&mut self.watch.lock())?;
        remount(&mount, &root, libc::MS_BIND, Held::default())
    }
}

impl Watch {
    /// The mounts of the file system.
    fn look(&mut self) -> io::Result<Vec<Mount>> {
        let mut text = Vec::new();
        self.table.rewind()?;
        self.table.read_to_end(&mut text)?;
        let mounts = text.split(|&b| b == b'\n').filter_map(parse);
        Ok(mounts.filter(|mount| mount.device == self.device).collect())
    }

    /// Puts back what is missing of `mount`; false if that is not possible now.
    fn restore(&mut self, mount: &Mount) -> bool {
        let missing = self.wanted.without(mount.held);
        if missing.is_empty() {
            return true;
        }
        let (names, at) = (missing.names(), mount.point.display());
        match put_back(mount, missing) {
            Ok(()) if missing == READ_ONLY && self.refusing.contains(&mount.id) => {
                log::info!("no file of {at} is open for writing any more: it is read-only now");
                true
            }
            Ok(()) => {
                log::warn!("a remount of {at} had left out {names}: in force again");
                true
            }
            // Covered by another mount, or gone: nobody gets there by this path.
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(e) => {
                let busy = e.raw_os_error() == Some(libc::EBUSY); // files are open for writing
                if !busy && !self.told {
                    log::error!(
                        "a remount of {at} has left out {names}, which cannot be put back: {e}; \
                         as root: mount -o remount,{names} {at}"
                    );
                    self.told = true;
                }
                false
            }
        }
    }
}

/// Sets `missing` on `mount`. `NotFound`: its path leads elsewhere by now.
fn put_back(mount: &Mount, missing: Held) -> io::Result<()> {
    let root = open_root(mount)?;
    let rest = missing.without(SYNC).without(READ_ONLY);
    add(mount, &root, rest, rest)?;
    // An option of the whole file system, which would become read-only through a mount that is.
    if missing.has(SYNC) && !mount.held.has(READ_ONLY) {
        remount(mount, &root, 0, Held(rest.0 | SYNC.0))?;
    }
    // Last and alone: a file that is open for writing forbids it (EBUSY), and all that is set with
    // it.
    add(mount, &root, missing.without(rest).without(SYNC), missing)
}

/// Adds attributes to a mount that has `all` of them afterwards.
fn add(mount: &Mount, root: &OwnedFd, attributes: Held, all: Held) -> io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    match set_attributes(root, attributes) {
        // Before Linux 5.12, or forbidden by a filter of system calls.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            remount(mount, root, libc::MS_BIND, all.without(SYNC))
        }
        done => done,
    }
}

/// A descriptor of the root of `mount`, which asks nothing of the daemon. Not held for long: it
/// keeps the mount from being unmounted.
fn open_root(mount: &Mount) -> io::Result<OwnedFd> {
    let path = CString::new(mount.point.as_os_str().as_bytes())?;
    // A bind mount may be of a single file.
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::open(path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor.
    let root = unsafe { OwnedFd::from_raw_fd(fd) };
    // Another mount may lie over this one, or have taken its place.
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    match id.and_then(|id| id.trim().parse::<u64>().ok()) {
        Some(id) if id == mount.id => Ok(root),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// mount_setattr(2), which adds these attributes and leaves the others as they are.
fn set_attributes(root: &OwnedFd, add: Held) -> io::Result<()> {
    let chosen = NAMES.iter().filter(|(held, ..)| add.has(*held));
    let attr_set = chosen.fold(0, |all, (.., attribute, _)| all | attribute);
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: a descriptor, an empty string and a structure of the length that is given, all of
    // which outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Remounts with what is in force and `add`: the old way, which replaces all flags at once.
fn remount(mount: &Mount, root: &OwnedFd, kind: libc::c_ulong, add: Held) -> io::Result<()> {
    let path = CString::new(format!("/proc/self/fd/{}", root.as_raw_fd()))?;
    let all = Held(mount.held.0 | add.0);
    let named = NAMES.iter().filter(|(held, ..)| all.has(*held));
    let dirs = if all.has(SYNC) { libc::MS_DIRSYNC } else { 0 };
    let first = libc::MS_REMOUNT | kind | mount.keep | dirs;
    let flags = named.fold(first, |all, (.., flag)| all | flag);
    let none = std::ptr::null();
    // SAFETY: a NUL-terminated string that outlives the call, and null pointers, which it allows.
    let rc = unsafe { libc::mount(none, path.as_ptr(), none, flags, none.cast()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled;

    const LINE: &[u8] = b"36 35 0:98 /sub /mnt/my\\040vault\\134x rw,nosuid,relatime shared:1 \
        master:2 - fuse.sealfs s3://b/ro rw,sync,user_id=0";

    #[test]
    fn a_line_of_the_table_is_read_field_by_field() {
        // Guards against optional fields that shift the others, and against options that are
        // looked for in the wrong place: a source may be called anything.
        let mount = parse(LINE).expect("a line");
        assert_eq!((mount.id, mount.device.as_str()), (36, "0:98"));
        assert_eq!(mount.point, Path::new("/mnt/my vault\\x"));
        assert_eq!(mount.held, Held(NO_SUID.0 | SYNC.0));
        assert_eq!(mount.keep, libc::MS_RELATIME);
        for n in 0..LINE.len() {
            let _ = parse(&LINE[..n]); // no panic
        }
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn what_is_missing_is_what_was_refused_and_is_not_any_more() {
        // Guards against a mount with `-o suid` that loses it, and against `nodev` overlooked
        // because `nosuid` is there.
        let mut options = Options { suid: true, read_only: true, ..Options::default() };
        let held = parse(LINE).expect("a line").held;
        assert_eq!(Held::of(&options).without(held).names(), "ro,nodev");
        options.read_only = false;
        options.dev = true;
        assert!(Held::of(&options).is_empty());
    }

    #[test]
    fn no_line_of_the_table_makes_a_panic() {
        // Guards against the names of other mounts, which anybody chooses.
        garbled(&[LINE], &[b" ", b"\\", b"\\777", b" - ", b",", b"\xff"], |line| {
            let short = unescape(line).as_os_str().len() <= line.len();
            assert!(short && parse(line).is_none_or(|mount| mount.device.len() <= 3 * line.len()));
        });
    }
}
