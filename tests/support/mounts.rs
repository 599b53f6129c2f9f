//! A volume on a `file://` store in a temporary directory, or on an S3 server, mounted by the
//! real command, for the tests that need a kernel. Whatever a test leaves is unmounted and removed with it.
#![allow(dead_code)] // each test file uses a part of it

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use sealfs::seal::Secret;
use sealfs::stack::{InitOptions, StoreOptions, note_place};
use sealfs::store::s3::{S3Options, StaticCredentials, connect};
use sealfs::store::{FileStore, Location};

use super::volume::init_options;

/// Why the tests that mount are skipped, or `None` if they can run.
pub fn why_not() -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some("/dev/fuse is missing".into());
    }
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let helper = Command::new("fusermount3").arg("-V").output().is_ok();
    (!root && !helper).then(|| "fusermount3 is missing (scripts/test installs it)".into())
}

/// Ends a test that cannot run here, saying so.
#[macro_export]
macro_rules! needs_fuse {
    () => {
        if let Some(why) = $crate::support::mounts::why_not() {
            eprintln!("skipped: {why}");
            return;
        }
    };
}

/// A store that is not a directory: its STORE argument and the environment that reaches it.
#[derive(Clone, Debug)]
pub struct Remote {
    pub url: String,
    pub env: Vec<(&'static str, String)>,
}

/// Where commands keep their state that are not told where.
fn usual_state_dir() -> PathBuf {
    if sealfs::base::is_root() {
        return "/var/lib/sealfs".into();
    }
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let state = variable("XDG_STATE_HOME").filter(|dir| dir.is_absolute());
    let home = || variable("HOME").expect("a home directory").join(".local/state");
    state.unwrap_or_else(home).join("sealfs")
}

/// Of the volumes of tests.
const PASSPHRASE: &str = "correct horse battery staple";

impl Remote {
    fn get(&self, name: &str) -> String {
        let found = self.env.iter().find(|(of, _)| *of == name);
        found.map(|(_, value)| value.clone()).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The same for the library. Keys and endpoint must be in `env`.
    fn options(&self) -> S3Options {
        let Ok(Location::S3 { bucket, prefix }) = self.url.parse() else { panic!("{}", self.url) };
        S3Options {
            endpoint_url: Some(self.get("AWS_ENDPOINT_URL_S3")),
            region: Some(self.get("AWS_REGION")),
            credentials: Some(StaticCredentials {
                access_key_id: self.get("AWS_ACCESS_KEY_ID"),
                secret_access_key: self.get("AWS_SECRET_ACCESS_KEY").into(),
            }),
            ..S3Options::new(bucket, prefix)
        }
    }

    /// A prefix of a bucket of the S3 server at `endpoint`.
    pub fn s3(endpoint: &str, bucket: &str, access_key: &str, secret_key: &str) -> Remote {
        Remote {
            url: format!("s3://{bucket}/data"),
            env: vec![
                ("AWS_ENDPOINT_URL_S3", endpoint.into()),
                ("AWS_REGION", "us-east-1".into()),
                ("AWS_ACCESS_KEY_ID", access_key.into()),
                ("AWS_SECRET_ACCESS_KEY", secret_key.into()),
            ],
        }
    }
}

/// Taken to write while a mount namespace is made, which holds all mounts at first: those of other
/// tests could not be unmounted meanwhile.
pub static UMOUNTS: RwLock<()> = RwLock::new(());

/// A volume and what this machine keeps of it.
pub struct Volume {
    dir: tempfile::TempDir,
    remote: Option<Remote>,
}

/// Gives a command the signals of a terminal. Who runs the tests in the background, or under nohup(1),
/// leaves them SIGINT and SIGHUP ignored, and children inherit that.
pub fn with_own_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let restore = || {
        for signal in [libc::SIGINT, libc::SIGHUP] {
            // SAFETY: signal(2) may be called between fork and exec.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: `restore` calls nothing but signal(2).
    unsafe { command.pre_exec(restore) };
}

impl Volume {
    /// Makes the directories and the passphrase, not the volume.
    pub fn bare() -> Volume {
        Volume::bare_on(None)
    }

    /// The same for a volume on `remote`, or on `file://`.
    pub fn bare_on(remote: Option<Remote>) -> Volume {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let volume = Volume { dir, remote };
        for name in ["vault", "store", "run"] {
            fs::create_dir(volume.path(name)).expect("a fresh directory");
        }
        let pass = volume.path("passphrase");
        fs::write(&pass, format!("{PASSPHRASE}\n")).expect("writes");
        fs::set_permissions(&pass, fs::Permissions::from_mode(0o600)).expect("own file");
        volume
    }

    /// Makes a volume.
    pub fn create() -> Volume {
        Volume::create_on(None)
    }

    /// Makes a volume on `remote`, or on `file://`. Its passphrase costs the least that is accepted: every
    /// command of a test pays for it, and none is the better for it. [`Volume::bare_on`] and `sealfs init`
    /// make one as users have it.
    pub fn create_on(remote: Option<Remote>) -> Volume {
        let volume = Volume::bare_on(remote);
        // On a thread of its own: a test may have a runtime already.
        std::thread::scope(|scope| scope.spawn(|| volume.init()).join().expect("a volume"));
        volume
    }

    fn init(&self) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let client: Arc<dyn ObjectStore> = match &self.remote {
                None => Arc::new(FileStore::create(self.path("store")).expect("a directory")),
                Some(remote) => Arc::new(connect(remote.options()).await.expect("a server")),
            };
            let passphrase = Secret::Passphrase(PASSPHRASE.as_bytes().to_vec().into());
            // SAFETY: these calls take nothing and cannot fail (getuid(2)).
            let owner = unsafe { (libc::getuid(), libc::getgid()) };
            let options = InitOptions { owner, ..init_options(client, passphrase, "first") };
            let volume = sealfs::stack::init(options).await.expect("init");
            // As the command does: the server of another test may have had this port, and what that
            // held is remembered.
            let location = self.url().parse().expect("a store");
            let endpoint_url = self.remote.as_ref().map(|remote| remote.get("AWS_ENDPOINT_URL_S3"));
            let store = StoreOptions { endpoint_url, ..StoreOptions::new(location) };
            note_place(&usual_state_dir(), &store, volume);
        });
    }

    /// Makes a volume and mounts it.
    pub fn mounted() -> Volume {
        let volume = Volume::create();
        volume.mount(&[]);
        volume
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The mount point.
    pub fn vault(&self) -> PathBuf {
        self.path("vault")
    }

    /// A path on the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.vault().join(name)
    }

    pub fn url(&self) -> String {
        match &self.remote {
            Some(remote) => remote.url.clone(),
            None => format!("file://{}", self.text("store")),
        }
    }

    /// `sealfs` with these arguments, in this volume's own runtime directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealfs"));
        command.args(args).env("SEALFS_RUNTIME_DIR", self.path("run")).stdin(Stdio::null());
        command.envs(self.remote.iter().flat_map(|r| r.env.clone()));
        with_own_signals(&mut command);
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the command runs")
    }

    /// Starts a command that says nothing to anybody.
    pub fn start(&self, args: &[&str]) -> Holder {
        let mut command = self.command(args);
        Holder(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs"))
    }

    /// Runs a command that must succeed; returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "sealfs {args:?}: {}: {stderr}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command that must fail with this status; returns its standard error.
    pub fn fails(&self, args: &[&str], status: i32) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "sealfs {args:?}: {stderr}");
        stderr
    }

    /// The arguments of `sealfs mount` for this volume. `SEALFS_TEST_MOUNT_OPTIONS`: more for `-o`, such as
    /// `io_uring`.
    pub fn mount_args(&self, more: &[&str]) -> Vec<String> {
        let mut args = vec!["mount".into(), self.url(), self.text("vault")];
        for (flag, name) in [
            ("--passphrase-file", "passphrase"),
            ("--cache-dir", "cache"),
            ("--state-dir", "state"),
        ] {
            args.extend([flag.into(), self.text(name)]);
        }
        args.extend(["--log-file".into(), self.text("log")]);
        if let Ok(options) = std::env::var("SEALFS_TEST_MOUNT_OPTIONS") {
            args.extend(["-o".into(), options]);
        }
        args.extend(more.iter().map(|&a| a.to_owned()));
        args
    }

    pub fn mount(&self, more: &[&str]) {
        let args = self.mount_args(more);
        self.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// A mount that must be refused with this status; returns its standard error.
    pub fn mount_fails(&self, more: &[&str], status: i32) -> String {
        let args = self.mount_args(more);
        self.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), status)
    }

    /// Unmounts; everything must be in the bucket.
    pub fn umount(&self) {
        let _none_is_made = UMOUNTS.read().unwrap_or_else(PoisonError::into_inner);
        self.ok(&["umount", &self.text("vault")]);
    }

    /// Throws away what this machine keeps: what remains is the bucket.
    pub fn forget_local_state(&self) {
        for name in ["cache", "state"] {
            match fs::remove_dir_all(self.path(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{name}: {e}"),
                _ => {}
            }
        }
    }

    /// One field of `sealfs status --json`.
    pub fn status(&self, field: &str) -> serde_json::Value {
        let json = self.ok(&["status", "--json", &self.text("vault")]);
        let all: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        all[field].clone()
    }

    /// Process id of the daemon.
    pub fn daemon(&self) -> i32 {
        self.status("pid").as_i64().expect("a number") as i32
    }

    /// Kills the daemon as a crash would, and takes its dead mount away.
    pub fn crash(&self) {
        let pid = self.daemon();
        // SAFETY: the process is this test's own daemon.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        wait_until("the daemon is gone", || !is_alive(pid));
        self.detach();
    }

    /// Takes a mount away, dead or alive.
    pub fn detach(&self) {
        let vault = self.vault();
        for (tool, flags) in [("umount", "-l"), ("fusermount3", "-uzq")] {
            let done = Command::new(tool).arg(flags).arg(&vault).output();
            if done.is_ok_and(|o| o.status.success()) {
                return;
            }
        }
    }

    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the kernel's table");
        mounts.contains(&format!(" {} fuse.sealfs ", self.text("vault")))
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted() {
            self.detach();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}", self.log());
        }
    }
}

/// A child process that does not outlive its test.
pub struct Holder(pub Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// A mount in the foreground whose service manager the test plays (sd_notify(3)).
pub struct Service {
    pub daemon: Holder,
    pub socket: UnixDatagram,
}

impl Service {
    /// Starts it on the directory of `v`; it must say something within `patience`, each time it is listened to.
    pub fn start(v: &Volume, flags: &[&str], env: &[(&str, &str)], patience: Duration) -> Service {
        let socket = UnixDatagram::bind(v.path("notify")).expect("binds");
        socket.set_read_timeout(Some(patience)).expect("sets");
        let args = v.mount_args(&[&["--foreground"], flags].concat());
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut command = v.command(&args);
        command.env("NOTIFY_SOCKET", v.path("notify")).envs(env.iter().copied());
        Service { daemon: Holder(command.spawn().expect("runs")), socket }
    }

    /// What it says next.
    pub fn said(&self) -> String {
        self.next().expect("a message")
    }

    /// The same, if there is something.
    pub fn next(&self) -> std::io::Result<String> {
        let mut buffer = [0; 512];
        let len = self.socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) {
        send_signal(self.daemon.0.id() as i32, signal);
    }
}

/// Sends a signal to a process of this test's own.
pub fn send_signal(pid: i32, signal: libc::c_int) {
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Runs a command line at a terminal, on which `lines` are typed: its exit status, and all that the
/// terminal shows.
pub fn typed(line: &str, env: &[(&str, &str)], lines: &str) -> (Option<i32>, String) {
    let mut child = Command::new("script")
        .args(["-qec", line, "/dev/null"])
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is part of util-linux");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(lines.as_bytes()).expect("types");
    let output = child.wait_with_output().expect("ends");
    drop(input);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// Whether a process has a handler for SIGINT: before, a signal ends it as any other (proc_pid_status(5)).
pub fn listens(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    caught.is_some_and(|set| set >> (libc::SIGINT - 1) & 1 == 1)
}

/// Polls for at most 30 s.
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_at_most(Duration::from_secs(30), what, holds);
}

/// Polls for at most `limit`.
pub fn wait_at_most(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
