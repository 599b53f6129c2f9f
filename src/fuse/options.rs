//! Mount options: what `-o` may say, and what it means to the kernel. Pure.

use super::abi::TtlSecs;
use crate::fs::SnapDir;

/// How a filesystem is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The source that `mount` and `df` show: the store.
    pub fsname: String,
    /// Refuse every change (`ro`).
    pub read_only: bool,
    /// Let other users in, each with the permissions of the files (`allow_other`). `None`:
    /// when root mounts.
    pub allow_other: Option<bool>,
    /// Device files work (`dev`).
    pub dev: bool,
    /// Set-user-id programs keep their power (`suid`).
    pub suid: bool,
    /// Programs can be run (`exec`).
    pub exec: bool,
    /// What the directory holds may be hidden by the mount (`nonempty`).
    pub nonempty: bool,
    /// Every write is synchronous (`sync`, `dirsync`).
    pub sync: bool,
    /// `fsync` returns when the bucket has the data (`fsync=remote`), not when the local
    /// journal has it.
    pub fsync_remote: bool,
    /// Whether the root has a directory `.snapshots`, and lists it (`snapdir=hidden|visible|off`).
    pub snapdir: SnapDir,
    /// It shows what never changes: a snapshot.
    pub frozen: bool,
    /// How long the kernel may keep names and attributes of a mount that writes; of one that follows
    /// it is [`TTL_FOLLOWER`].
    pub ttl: TtlSecs,
    /// Requests come over io_uring, where the kernel offers it (`io_uring`), not over `/dev/fuse`.
    pub io_uring: bool,
    /// Request threads. Each may hold one write of up to 1 MiB.
    pub threads: usize,
}

/// A year: only this mount changes the volume, and it tells the kernel as it does.
pub const TTL_WRITER: TtlSecs = TtlSecs(365 * 24 * 3600);
/// A follower's bound on the age of what the kernel remembers.
pub const TTL_FOLLOWER: TtlSecs = TtlSecs(1);
/// Enough for a group of concurrent fsyncs on a small machine.
const THREADS_DEFAULT: usize = 8;

impl Default for Options {
    fn default() -> Self {
        Options {
            fsname: "sealfs".into(),
            read_only: false,
            allow_other: None,
            dev: false,
            suid: false,
            exec: true,
            nonempty: false,
            sync: false,
            fsync_remote: false,
            snapdir: SnapDir::default(),
            frozen: false,
            ttl: TTL_WRITER,
            io_uring: false,
            threads: THREADS_DEFAULT,
        }
    }
}

/// An option that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mount option {0:?}")]
pub struct UnknownOption(pub String);

impl Options {
    /// Applies one comma-separated list as given to `-o` (mount(8)); later ones win. Options
    /// that only `mount`, systemd or fstab interpret (`_netdev`, `nofail`, `x-…`) are passed
    /// over.
    pub fn apply(&mut self, list: &str) -> Result<(), UnknownOption> {
        list.split(',').filter(|o| !o.is_empty()).try_for_each(|o| self.apply_one(o))
    }

    fn apply_one(&mut self, option: &str) -> Result<(), UnknownOption> {
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = Some(true),
            "noallow_other" => self.allow_other = Some(false),
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "nonempty" => self.nonempty = true,
            "sync" | "dirsync" => self.sync = true,
            "async" => self.sync = false,
            "io_uring" => self.io_uring = true,
            "noio_uring" => self.io_uring = false,
            "fsync=remote" => self.fsync_remote = true,
            "fsync=local" => self.fsync_remote = false,
            "snapdir=hidden" => self.snapdir = SnapDir::Hidden,
            "snapdir=visible" => self.snapdir = SnapDir::Visible,
            "snapdir=off" => self.snapdir = SnapDir::Off,
            // Reads never change access times, which is what these ask for at most;
            // permissions are always checked by the kernel.
            "noatime" | "nodiratime" | "relatime" | "default_permissions" | "defaults" => {}
            "_netdev" | "auto" | "noauto" | "nofail" | "user" | "nouser" | "users" => {}
            o if o.starts_with("x-") || o.starts_with("comment=") => {}
            o => match o.strip_prefix("fsname=") {
                Some(name) => self.fsname = name.into(),
                None => return Err(UnknownOption(o.into())),
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fstab_options_is_understood_and_a_typo_is_not() {
        // Guards against a mount at boot that fails for an option meant for systemd, and
        // against a mistyped option that is silently without effect.
        let mut o = Options::default();
        o.apply("rw,_netdev,nofail,x-systemd.automount,noexec,fsync=remote,ro,io_uring")
            .expect("known");
        assert!(o.read_only && o.fsync_remote && !o.exec && o.io_uring);
        assert_eq!(o.apply("ro,fsync=romote"), Err(UnknownOption("fsync=romote".into())));
        assert_eq!(o.apply(""), Ok(()));
    }
}
