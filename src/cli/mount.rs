//! `sealfs mount`: checks everything that needs a person, goes to the background, serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use log::LevelFilter;

use crate::commit::CleanOptions;
use crate::fuse::{Options as FuseOptions, Ways};
use crate::meta::SnapshotName;
use crate::seal::Secret;
use crate::stack::{Accept, MountOptions};
use crate::store::s3::{local_files, pin_local_files};
use crate::store::{Compression, Location};

use super::args::{SecretArgs, StoreArgs, duration, journal_size, rate, size};
use super::daemon::{self, Detached, detach};
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::logging::{self, Target};
use super::place::{self, Need};
use super::scrape;
use super::serve::{Plan, serve};
use super::socket::Starting;

/// Flags of `sealfs mount`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs mount s3://my-bucket/data ~/vault --passphrase-file ~/.sealfs.pass
  sealfs mount vault
  sealfs mount s3://my-bucket/data ~/vault --sse aws:kms --sse-kms-key-id alias/vault
  sealfs mount file:///srv/store /mnt/vault --read-only --foreground
  sealfs mount s3://my-bucket/data /mnt/vault -o allow_other,fsync=remote

It returns when the mount works. `sealfs umount DIR` ends it.")]
pub struct MountArgs {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY; or the NAME of a file NAME.conf in
    /// ~/.config/sealfs or /etc/sealfs that says everything
    #[arg(value_name = "STORE")]
    store: String,
    /// The directory to mount on; with a NAME it may be left out
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    local: LocalArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
    /// Mount options: ro, allow_other, dev, suid, noexec, nonempty, sync, fsync=remote|local,
    /// snapdir=hidden|visible|off (whether DIR/.snapshots is there, and listed), io_uring
    /// (requests come that way where the kernel offers it: small files faster); and every long flag by its name, as fstab needs it: passphrase_file=FILE
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Mount on a directory that is not empty (as -o nonempty): what it holds is hidden meanwhile
    #[arg(long)]
    over: bool,
    /// Follow the volume without changing it (as -o ro)
    #[arg(long)]
    read_only: bool,
    /// Show a snapshot in place of the volume, read-only; it takes no lease and writes nothing
    #[arg(long, value_name = "NAME", value_parser = snapshot_name, conflicts_with = "takeover")]
    snapshot: Option<SnapshotName>,
    /// Stay in the foreground; log to standard error
    #[arg(long, short)]
    foreground: bool,
    /// Take the volume from the mount that holds it; that one turns read-only
    #[arg(long, conflicts_with = "read_only")]
    takeover: bool,
    /// Accept that something is older, or other, than what this machine has seen: the bucket (older),
    /// its history, its keyring, its configuration (config), the local journal
    #[arg(long, value_name = "WHAT", value_delimiter = ',', require_equals = true)]
    accept_rollback: Vec<Accepted>,
    /// Refuse a bucket that is older than this commit (`sealfs status` shows the number)
    #[arg(long, value_name = "COMMIT", default_value_t = 0)]
    at_least: u64,
    /// Move what is live out of half-dead segments once so much in them is dead, and merge tiny
    /// ones; 0: never
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
    clean_after: u64,
    /// How this mount stores new file data, in place of what the volume remembers: zstd, zstd:LEVEL
    /// (1 to 19) or none; what is in the bucket stays as it is
    #[arg(long, value_name = "HOW")]
    compress: Option<Compression>,
}

/// What may have gone back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accepted {
    Older,
    History,
    Keyring,
    Journal,
    Config,
}

pub fn accepted(what: &[Accepted]) -> Accept {
    let has = |one| what.contains(&one);
    Accept {
        older: has(Accepted::Older),
        history: has(Accepted::History),
        keyring: has(Accepted::Keyring),
        journal: has(Accepted::Journal),
        config: has(Accepted::Config),
    }
}

fn snapshot_name(name: &str) -> Result<SnapshotName, &'static str> {
    SnapshotName::parse(name)
}

/// Headings of `--help`. Each flag names its own: a heading of a group would go on for the flags
/// that are declared after it.
const LOCAL: &str = "Local state";
const LOG: &str = "Log";
const METRICS: &str = "Metrics";

/// How much of the line it may take.
#[derive(Args, Clone, Debug)]
struct LimitArgs {
    /// Most bytes a second to send, 64K at least; 0: no limit
    #[arg(long, help_heading = "Store", value_name = "SIZE", default_value = "0", value_parser = rate)]
    upload_limit: u64,
    /// Most bytes a second to receive, 64K at least; 0: no limit
    #[arg(long, help_heading = "Store", value_name = "SIZE", default_value = "0", value_parser = rate)]
    download_limit: u64,
}

/// What a mount keeps on this machine, and how long it waits.
#[derive(Args, Clone, Debug)]
struct LocalArgs {
    /// Ciphertext cache; may be thrown away [default: ~/.cache/sealfs or /var/cache/sealfs]
    #[arg(long, help_heading = LOCAL, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Journal: what is not in the bucket yet [default: ~/.local/state/sealfs or /var/lib/sealfs]
    #[arg(long, help_heading = LOCAL, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Most bytes the cache may take
    #[arg(long, help_heading = LOCAL, value_name = "SIZE", default_value = "10G", value_parser = size)]
    cache_size: u64,
    /// Most bytes that may wait in the journal, at least 16M; then writers wait
    #[arg(long, help_heading = LOCAL, value_name = "SIZE", default_value = "10G", value_parser = journal_size)]
    journal_size: u64,
    /// How far the bucket may be behind while it is reachable
    #[arg(long, help_heading = LOCAL, value_name = "TIME", default_value = "2s", value_parser = duration)]
    commit_interval: Duration,
    /// How long a read waits for an unreachable store before it fails
    #[arg(long, help_heading = LOCAL, value_name = "TIME", default_value = "30s", value_parser = duration)]
    read_timeout: Duration,
}

#[derive(Args, Clone, Debug)]
struct LogArgs {
    /// Log to a file [default: syslog or the journal; standard error in the foreground]
    #[arg(long, help_heading = LOG, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// error, warn, info, debug or trace
    #[arg(long, help_heading = LOG, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
    /// Lines for people, or a JSON object a line
    #[arg(long, help_heading = LOG, value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: logging::Format,
}

#[derive(Args, Clone, Debug)]
struct MetricsArgs {
    /// Answer what Prometheus asks for at /metrics there: 127.0.0.1:9477 (which every user of this
    /// machine can read) or unix:/PATH
    #[arg(long, help_heading = METRICS, value_name = "ADDRESS")]
    metrics: Option<scrape::Address>,
    /// Allow an address for it that other machines reach: it has neither password nor encryption
    #[arg(long, help_heading = METRICS, requires = "metrics")]
    metrics_remote: bool,
}

impl MetricsArgs {
    /// Where metrics are answered, as it is meant in this directory.
    fn address(&self) -> Outcome<Option<scrape::Address>> {
        let Some(address) = &self.metrics else { return Ok(None) };
        address.check(self.metrics_remote)?;
        Ok(Some(match address {
            scrape::Address::Socket(path) => scrape::Address::Socket(dirs::absolute(path)?),
            port => port.clone(),
        }))
    }
}

/// Sets the allocators up for buffers of megabytes that are made and freed for every request and
/// pass between threads: glibc's (mallopt(3)), which on x86-64 only libraries in C use, and jemalloc
/// (src/main.rs). Called by the process that stays.
fn tune_heap() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        // What each thread leaves behind would add up.
        (libc::M_ARENA_MAX, 2),
        // The maximum: only larger blocks are mapped and unmapped one by one. Given back to the kernel each
        // time, they would be cleared and faulted in again, which costs more than decryption.
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TRIM_THRESHOLD, 64 << 20),
    ] {
        // SAFETY: takes two numbers; a refusal (0) only leaves the default in force.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
    #[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
    give_back_when_idle();
}

/// Has jemalloc give freed memory back within ten seconds though nothing is allocated meanwhile, which takes
/// threads of its own.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
fn give_back_when_idle() {
    let (name, mut on) = (c"background_thread", true);
    let (nothing, none) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: sets one value of the type and length that jemalloc(3) gives for this name.
    let failed = unsafe {
        tikv_jemalloc_sys::mallctl(name.as_ptr(), nothing, none, (&raw mut on).cast(), 1)
    };
    if failed != 0 {
        let e = std::io::Error::from_raw_os_error(failed);
        log::debug!("an idle mount will keep the memory that it had: {e}");
    }
}

/// Runs `sealfs mount`. Called while the process has one thread.
pub fn run(mut args: MountArgs) -> Outcome {
    // Before the working directory is left: these are opened again later.
    pin_local_files();
    if let Some(file) = &mut args.log.log_file {
        *file = dirs::absolute(file)?;
    }
    let general =
        |what: &str, e: std::io::Error| Failure::new(Exit::General, format!("{what}: {e}"));
    // Before the passphrase is read: there may be no child yet that does so.
    super::forbid_dumps();
    let mut plan = plan(&args)?;
    let starting = if args.foreground {
        daemon::Starting::foreground()
    } else {
        let forget = || plan.volume.key = Secret::Passphrase(Default::default()).into();
        match detach(forget).map_err(|e| general("cannot go to the background", e))? {
            Detached::Parent(outcome) => return outcome,
            Detached::Child(starting) => starting,
        }
    };
    let started = run_plan(&args, &plan);
    let runtime = match started {
        Ok(runtime) => runtime,
        Err(failure) => return starting.failed(failure),
    };
    runtime.spawn(logging::keep_quiet());
    let outcome = runtime.block_on(serve(plan, starting));
    log::logger().flush();
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// What the child does before it can start: its log, its privacy, its threads.
fn run_plan(args: &MountArgs, plan: &Plan) -> Outcome<tokio::runtime::Runtime> {
    let general =
        |what: &str, e: std::io::Error| Failure::new(Exit::General, format!("{what}: {e}"));
    // SAFETY: umask cannot fail; everything this process makes is its owner's alone.
    unsafe { libc::umask(0o077) };
    for dir in [&plan.volume.cache_dir, &plan.volume.state_dir] {
        dirs::make_base(dir).map_err(|e| general(&format!("cannot use {}", dir.display()), e))?;
    }
    let target = match &args.log.log_file {
        Some(path) => Target::File(path.clone()),
        None if args.foreground => Target::Stderr,
        None => Target::System { fallback: plan.volume.state_dir.join("sealfs.log") },
    };
    let LogArgs { log_level, log_format, .. } = args.log;
    logging::install(target, log_format, log_level, &plan.point)
        .map_err(|e| general("cannot log", e))?;
    tune_heap();
    // A thread that serves the kernel may start one of these, and runs in ways of its own.
    let ways = Ways::of_this_thread();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("sealfs")
        .on_thread_start(move || ways.take())
        .build()
        .map_err(|e| general("cannot start threads", e))
}

/// Everything that can be wrong with the command line, and the passphrase: while the terminal
/// is still there.
fn plan(args: &MountArgs) -> Outcome<Plan> {
    let mut store = args.access.resolve(&args.store)?;
    store.limits.up.set(args.limits.upload_limit);
    store.limits.down.set(args.limits.download_limit);
    let mut fuse = FuseOptions { fsname: store.location.to_string(), ..FuseOptions::default() };
    for list in &args.options {
        fuse.apply(list)
            .map_err(|e| Failure::new(Exit::Usage, e).hint("sealfs mount --help lists them"))?;
    }
    fuse.read_only |= args.read_only;
    fuse.read_only |= args.snapshot.is_some();
    fuse.frozen = args.snapshot.is_some();
    let cache_dir = dirs::absolute_or(args.local.cache_dir.as_deref(), dirs::cache_dir)?;
    let state_dir = dirs::absolute_or(args.local.state_dir.as_deref(), dirs::state_dir)?;
    store.state_dir = (!accepted(&args.accept_rollback).keyring).then(|| state_dir.clone());
    let metrics = args.metrics.address()?;
    let mut needs = needs(args, &store.location, &cache_dir, &state_dir);
    if let Some(scrape::Address::Socket(path)) = &metrics {
        needs.push(Need::new("the socket of the metrics", path, "--metrics unix:PATH"));
    }
    let point = dirs::resolve(&args.dir).map_err(|e| place::unusable(&args.dir, &e))?;
    let (covered, places): (Vec<_>, Vec<_>) =
        dirs::socket_places(&point).into_iter().partition(|p| place::leads_through(p, &point));
    if places.is_empty() {
        let socket = |path| Need::new("the control socket", path, "SEALFS_RUNTIME_DIR=DIR");
        needs.extend(covered.into_iter().map(socket));
    }
    place::refuse_covered(&point, &needs)?;
    // From here on no other start sees this directory as free.
    let starting = Starting::begin(&places, &point)?;
    let point = place::free_point(&args.dir)?;
    place::refuse_covered(&point, &needs)?; // what a dead mount had covered is seen now
    place::refuse_inside_store(&point, &store.location)?;
    place::require_fuse()?;
    args.log.log_file.as_deref().map_or(Ok(()), logging::check)?;
    if !fuse.nonempty && !args.over {
        place::refuse_hiding(&point)?;
    }
    let key = args.secret.read_for(&store)?; // last: nobody types it for a wrong flag
    let volume = MountOptions {
        cache_bytes_max: args.local.cache_size,
        journal_bytes_max: args.local.journal_size,
        commit_interval: args.local.commit_interval,
        read_timeout: args.local.read_timeout,
        read_only: fuse.read_only,
        takeover: args.takeover,
        accept_rollback: accepted(&args.accept_rollback),
        at_least: args.at_least,
        fsync_remote: fuse.fsync_remote,
        mount_point: point.clone(),
        clean: CleanOptions { dead_bytes_min: args.clean_after, ..CleanOptions::default() },
        compress: args.compress,
        snapdir: fuse.snapdir,
        snapshot: args.snapshot.clone(),
        ..MountOptions::new(store, key, cache_dir, state_dir)
    };
    Ok(Plan { volume, fuse, point, places, metrics, starting })
}

/// What the daemon opens by name while it serves.
fn needs(args: &MountArgs, store: &Location, cache: &Path, state: &Path) -> Vec<Need> {
    let mut needs = vec![
        Need::new("the journal", state, "--state-dir DIR"),
        Need::new("the cache", cache, "--cache-dir DIR"),
    ];
    let log = args.log.log_file.iter().map(|file| Need::new("the log", file, "--log-file FILE"));
    let secret = [
        (&args.secret.passphrase_file, "--passphrase-file FILE"),
        (&args.secret.key_file, "--key-file FILE"),
        (&args.secret.recovery_file, "--recovery-file FILE"),
        (&args.secret.age_identity, "--age-identity FILE"),
    ];
    let secret = secret
        .into_iter()
        .filter_map(|(file, flag)| file.as_ref().map(|file| Need::new("the key", file, flag)));
    let sse = args.access.files().map(|file| Need::new("the key", file, "--sse-c-key-file FILE"));
    needs.extend(log.chain(secret).chain(sse));
    match store {
        Location::File(dir) => needs.push(Need::new("the store", dir, "")),
        Location::S3 { .. } => needs
            .extend(local_files().into_iter().map(|file| Need::new("the AWS settings", file, ""))),
        Location::Memory => {}
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::StoreOptions;
    use clap::Parser;

    #[test]
    fn the_defaults_of_the_command_are_those_of_the_library() {
        // Guards against a default that is changed in one of two places.
        #[derive(Parser)]
        struct Command {
            #[command(flatten)]
            mount: MountArgs,
        }
        let said = Command::parse_from(["mount", "file:///s", "/v"]).mount;
        let key = Secret::KeyFile(vec![0; 32].into());
        let of = MountOptions::new(StoreOptions::new(Location::Memory), key, "/c", "/s");
        let local = &said.local;
        assert_eq!(local.cache_size, of.cache_bytes_max);
        assert_eq!(local.journal_size, of.journal_bytes_max);
        assert_eq!(local.commit_interval, of.commit_interval);
        assert_eq!(local.read_timeout, of.read_timeout);
        assert_eq!(said.clean_after, of.clean.dead_bytes_min);
        assert_eq!(said.at_least, of.at_least);
    }
}
