//! A mount as users get it, for suites that others wrote: default options, an S3 server in this
//! process, local state on the local disk. And the tools those suites come in.
#![allow(dead_code)] // each test file uses a part of it

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::e2e;
use crate::support::mounts::{Volume, wait_until};
use crate::support::s3server::S3Server;

/// The daemon's memory after a suite: README promises 256 MiB, and a debug build under the load of
/// four processes may have a little more.
const RESIDENT_KIB_MAX: u64 = 384 << 10;

/// The exit status of `sealfs umount` while something is in use.
const EXIT_BUSY: i32 = 10;

/// A volume on an S3 server, mounted.
pub struct Stand {
    pub volume: Volume,
    pub server: S3Server,
    descriptors: usize,
}

impl Stand {
    pub fn new() -> Stand {
        let server = S3Server::start();
        let volume = Volume::create_on(e2e::remote(&server));
        // Other users have to get through to the mount.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(volume.path("."), open).expect("own directory");
        volume.mount(&[]);
        let descriptors = descriptors(volume.daemon());
        Stand { volume, server, descriptors }
    }

    /// The same volume on a machine that has only the bucket.
    pub fn move_elsewhere(&self) {
        self.unmount();
        self.volume.forget_local_state();
        self.volume.mount(&[]);
    }

    fn unmount(&self) {
        let v = &self.volume;
        let warnings = v.status("warnings");
        assert!(warnings.as_array().is_some_and(Vec::is_empty), "warnings: {warnings}");
        // The stressor "io" of stress-ng, in another test, opens every mount there is for a moment.
        let umount = || v.run(&["umount", &v.text("vault")]);
        let mut done = umount();
        wait_until("nothing uses the mount any more", || {
            let busy = done.status.code() == Some(EXIT_BUSY);
            if busy {
                done = umount();
            }
            !busy
        });
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "umount: {}: {said}", done.status);
        assert!(!v.log().contains("ERROR"), "{}", v.log());
    }

    /// Nothing may be left behind by what ran here: no warning, no error in the log, no
    /// descriptor, no memory, no row that contradicts another.
    pub fn close(self) {
        let pid = self.volume.daemon();
        let (open, resident) = (descriptors(pid), resident_kib(pid));
        // Connections stay open for a while: as many as there were requests at once.
        assert!(open <= self.descriptors + 90, "{open} descriptors, {} before", self.descriptors);
        assert!(resident <= RESIDENT_KIB_MAX, "{resident} KiB resident");
        self.unmount();
        self.check();
    }

    /// The volume in the bucket contradicts itself nowhere, and every byte of it opens.
    fn check(&self) {
        let v = &self.volume;
        let (pass, state) = (v.text("passphrase"), v.text("state"));
        v.ok(&["fsck", &v.url(), "--passphrase-file", &pass, "--state-dir", &state, "--data"]);
    }
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// The program `name` of a suite: where `scripts/test` installs it, or on the `PATH`. `None`, and
/// said aloud, where it is not; a failure where `SEALFS_TEST_TOOLS` says that it must be.
pub fn tool(name: &str) -> Option<PathBuf> {
    let installed = std::env::var_os("SEALFS_TEST_TOOLS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = installed.iter().cloned().chain(std::env::split_paths(&path));
    let found = places.map(|dir| dir.join(name)).find(|p| p.is_file());
    if found.is_none() {
        assert!(installed.is_none(), "{name} is missing (scripts/test installs it)");
        eprintln!("SKIPPED: {name} is missing (scripts/test installs it)");
    }
    found
}

/// Says aloud that a test needs root, and that this is not root.
pub fn needs_root() -> bool {
    if !e2e::is_root() {
        eprintln!("SKIPPED: needs root");
    }
    !e2e::is_root()
}

/// `program` as a command that is killed after `limit`, with status 124 or 137.
pub fn limited(program: impl Into<std::ffi::OsString>, limit: Duration) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "10", &limit.as_secs().to_string()]).arg(program.into());
    command
}

/// Runs it to its end; its output, both streams, and whether it succeeded.
pub fn outcome(command: &mut Command) -> (String, bool) {
    let Output { status, stdout, stderr } = command.output().expect("timeout(1) runs");
    let mut text = String::from_utf8_lossy(&stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&stderr));
    if matches!(status.code(), Some(124 | 137)) {
        text.push_str("\nkilled: it took too long");
    }
    (text, status.success())
}
