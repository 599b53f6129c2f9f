//! `doctor`: whether a bucket, these credentials and this machine are fit for a volume, line by
//! line, each with what to do next; and the settings that a new bucket gets.
//!
//! Leaves nothing behind but what `fix` was asked to set. Every check is bounded in time by the
//! store's own limits; one that cannot be made says so, and the others go on.

use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;

use super::bucket_policy::{denies_plain_http, with_tls_only};
use super::config_use;
use super::open::Opened;
use super::{Key, StackError, StoreOptions};
use crate::store::s3::{DefaultEncryption, S3Store, Setting, SseMode, Versioning};
use crate::store::{ErrorClass, ProbeError, class, probe, sentence};

/// Bytes that throughput is measured with.
const TRIAL_BYTES: usize = 8 << 20;
/// A clock that is off by more than this makes S3 refuse signatures soon (at 15 minutes).
const SKEW_SECS_MAX: i64 = 60;
/// Slower than this, every operation that needs the bucket is felt.
const LATENCY_MAX: Duration = Duration::from_millis(300);
/// Slower than this, `fsync` is felt.
const FSYNC_MAX: Duration = Duration::from_millis(50);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and could be better.
    Warning,
    /// A volume does not work, or is not protected as asked.
    Error,
}

/// One line of the report. Field names are an interface (`--json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at; never renamed.
    pub what: &'static str,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub next: Option<String>,
}

/// What to examine.
pub struct DoctorOptions {
    /// The store, and the mode that it is to be fit for.
    pub store: StoreOptions,
    /// Opens the volume, for the mode it remembers.
    pub key: Option<Key>,
    /// Set what is missing in the bucket's settings.
    pub fix: bool,
    /// Local directories to measure.
    pub dirs: Vec<PathBuf>,
}

/// The findings, and how they are added.
#[derive(Default)]
struct Report(Vec<Finding>);

impl Report {
    fn ok(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, what, text: text.into(), next: None });
    }

    fn warning(&mut self, what: &'static str, text: impl Into<String>, next: impl Into<String>) {
        let next = Some(next.into());
        self.0.push(Finding { level: Level::Warning, what, text: text.into(), next });
    }

    fn error(&mut self, what: &'static str, text: impl Into<String>, next: impl Into<String>) {
        let next = Some(next.into());
        self.0.push(Finding { level: Level::Error, what, text: text.into(), next });
    }

    /// What is said of a setting that could not be read.
    fn unread<T>(&mut self, what: &'static str, setting: &Setting<T>, permission: &str) {
        match setting {
            Setting::Denied(code) => self.warning(
                what,
                format!("these credentials may not look ({code})"),
                format!("allow {permission}, or ask who administers the bucket"),
            ),
            Setting::Unknown => self.ok(what, "this server has no such setting"),
            Setting::Failed(why) => self.warning(what, why.clone(), "try again"),
            Setting::Is(_) | Setting::Absent => {}
        }
    }
}

/// Examines a store and this machine.
///
/// # Errors
/// Only what keeps it from beginning; everything else is a finding.
/// [`StackError::Stopped`] between two checks, or while nothing was written yet.
pub async fn examine(options: &DoctorOptions) -> Result<Vec<Finding>, StackError> {
    let mut report = Report::default();
    let attended = &options.store.attended;
    let stopped = || match attended.is_stopped() {
        true => Err(StackError::Stopped),
        false => Ok(()),
    };
    let opened = tokio::select! {
        opened = Opened::open(&options.store, options.key.as_ref()) => opened?,
        () = attended.stopped() => return Err(StackError::Stopped),
    };
    let choice = config_use::choose(&opened.loaded.config, &options.store.sse)?;
    if let Some(s3) = &opened.layers.s3 {
        s3.set_object_tags(&choice.tags);
        if choice.mode.name() != s3.sse_mode().name() {
            s3.set_sse_mode(choice.mode.clone());
        }
        let connected = tokio::select! {
            connected = connection(&mut report, s3) => connected,
            () = attended.stopped() => return Err(StackError::Stopped),
        };
        if !connected {
            return Ok(report.0);
        }
        attended.goes_on();
        let known = opened.unlocked.is_some() || options.store.sse.mode.is_some();
        let needs = Needs { mode: &choice.mode, known };
        settings(&mut report, s3, needs, options.fix).await;
        stopped()?;
        permissions(&mut report, s3).await;
    }
    attended.goes_on();
    stopped()?;
    conditional(&mut report, &opened).await;
    stopped()?;
    throughput(&mut report, &opened).await;
    stopped()?;
    for dir in &options.dirs {
        disk(&mut report, dir);
    }
    fuse(&mut report);
    Ok(report.0)
}

/// Gives a new bucket its settings: default encryption, public access block, a policy against
/// plain http, and versioning if asked. What this server does not know is a finding, as is what
/// it refuses.
pub async fn secure_bucket(s3: &S3Store, mode: &SseMode, versioning: bool) -> Vec<Finding> {
    let mut report = Report::default();
    settings(&mut report, s3, Needs { mode, known: true }, true).await;
    if versioning {
        report.0.retain(|finding| finding.what != "versioning");
        match s3.put_versioning().await {
            Ok(()) => report.ok("versioning", "enabled"),
            Err(e) => report.warning("versioning", sentence(&e), "enable it by hand"),
        }
    }
    report.0
}

/// What the volume asks of its bucket.
#[derive(Clone, Copy)]
struct Needs<'a> {
    mode: &'a SseMode,
    /// Told by a flag, or by the volume; else it is only what a bucket does by itself.
    known: bool,
}

/// Reachability, transport and clock; false if nothing more can be asked.
async fn connection(report: &mut Report, s3: &S3Store) -> bool {
    let what = "connection";
    // The first request opens the connection; the second is what every other costs.
    let ping = match s3.ping().await {
        Ok(_) => s3.ping().await,
        Err(e) => Err(e),
    };
    let ping = match ping {
        Ok(ping) => ping,
        Err(e) => {
            let next = match class(&e) {
                ErrorClass::Auth => "check the credentials: aws sts get-caller-identity",
                ErrorClass::NotFound => "create it: sealfs init STORE --create-bucket",
                _ => "check the name of the bucket, --region, --endpoint-url and the network",
            };
            report.error(what, sentence(&e), next);
            return false;
        }
    };
    let text = format!("the bucket answers in {} ms", ping.took.as_millis());
    match ping.took > LATENCY_MAX {
        true => report.warning(what, text, "use a bucket nearer by"),
        false => report.ok(what, text),
    }
    match (s3.is_tls(), s3.is_private()) {
        (true, _) => {
            let version = match &ping.server {
                Some(server) => s3.tls_version(server).await,
                None => Err(std::io::Error::other("no host")),
            };
            let version = version.map(str::to_owned).unwrap_or_else(|e| {
                format!("TLS 1.2 or later (this client speaks no other; which one: {e})")
            });
            report.ok("transport", format!("{version}, the certificate is checked"));
        }
        (false, true) => report.ok("transport", "plain http, which does not leave this machine"),
        (false, false) => report.warning(
            "transport",
            "plain http: names, sizes and times can be seen on the way",
            "use an https endpoint",
        ),
    }
    match ping.clock_skew_secs {
        None => report.ok("clock", "the server does not tell its time"),
        Some(skew) if skew.abs() <= SKEW_SECS_MAX => {
            report.ok("clock", format!("agrees with the server's within {} s", skew.abs() + 1));
        }
        Some(skew) => report.error(
            "clock",
            format!("this machine's is {skew} s from the server's; at 900 s S3 refuses everything"),
            "timedatectl set-ntp true",
        ),
    }
    true
}

/// The settings of the bucket; with `fix`, what is missing is set and looked at again.
async fn settings(report: &mut Report, s3: &S3Store, needs: Needs<'_>, fix: bool) {
    default_encryption(report, s3, needs, fix).await;
    public_access(report, s3, fix).await;
    plain_http(report, s3, fix).await;
    match s3.versioning().await {
        Setting::Is(Versioning::Enabled) => report.ok(
            "versioning",
            "enabled: what is deleted or replaced stays and costs, until a lifecycle rule for \
             noncurrent versions removes it",
        ),
        Setting::Is(Versioning::Suspended) => {
            report.ok("versioning", "suspended: versions of earlier stay and cost");
        }
        Setting::Is(Versioning::Off) | Setting::Absent => report
            .ok("versioning", "off: whoever can write the bucket can destroy the volume for good"),
        other => report.unread("versioning", &other, "s3:GetBucketVersioning"),
    }
    match s3.object_lock().await {
        Setting::Is(retention) if retention == "no default retention" => {
            report.ok("object lock", "enabled, without a default retention");
        }
        Setting::Is(retention) => report.warning(
            "object lock",
            format!(
                "{retention}: every object stays that long, also those that the volume has \
                 deleted; nothing can be destroyed meanwhile, and all of it costs"
            ),
            "keep it, or choose another bucket; an existing lock cannot be shortened",
        ),
        Setting::Absent => report.ok("object lock", "off"),
        other => report.unread("object lock", &other, "s3:GetBucketObjectLockConfiguration"),
    }
}

async fn default_encryption(report: &mut Report, s3: &S3Store, needs: Needs<'_>, fix: bool) {
    let mode = needs.mode;
    let what = "default encryption";
    let mut found = s3.default_encryption().await;
    let wants_customer = matches!(mode, SseMode::Customer { .. });
    let is_missing = |found: &Setting<DefaultEncryption>| match found {
        Setting::Absent => true,
        Setting::Is(default) => {
            mode.algorithm().is_some_and(|asked| asked != default.algorithm)
                // Others may write with SSE-C: nothing is blocked on a guess.
                || needs.known && default.blocks_customer == Some(wants_customer)
        }
        _ => false,
    };
    let mut failed = None;
    if fix && is_missing(&found) {
        let present = match &found {
            Setting::Is(default) => Some(default),
            _ => None,
        };
        failed = s3.put_default_encryption(mode, present).await.err();
        found = s3.default_encryption().await;
    }
    let next = match &failed {
        None => format!("sealfs doctor STORE --fix --sse {}", mode.name()),
        Some(e) => format!("it could not be set: {}", sentence(e)),
    };
    match &found {
        Setting::Is(default) => {
            let text = format!("{default}; this volume asks for {}", mode.name());
            match mode.algorithm().is_some_and(|asked| asked != default.algorithm) {
                true => report.warning(what, text, next.clone()),
                false => report.ok(what, default.to_string()),
            }
            match (mode, default.blocks_customer) {
                (SseMode::Customer { .. }, Some(true)) => report.error(
                    "SSE-C",
                    "blocked on the bucket (BlockedEncryptionTypes), and the volume asks for it",
                    next,
                ),
                (SseMode::Customer { .. }, _) => report.ok("SSE-C", "allowed"),
                (_, Some(true)) if !needs.known => report.ok("SSE-C", "blocked"),
                (_, Some(false)) if !needs.known => report.ok(
                    "SSE-C",
                    "allowed; whether the volume needs it is told with its passphrase or --sse",
                ),
                (_, Some(true)) => report.ok("SSE-C", "blocked, and not needed"),
                (_, Some(false)) => report.warning(
                    "SSE-C",
                    "allowed, and not needed: stolen credentials could lock data up with it",
                    next,
                ),
                (_, None) => report.ok("SSE-C", "the server does not say whether it is blocked"),
            }
        }
        Setting::Absent => report.warning(
            what,
            "none: what is written by others, and without --sse, is not encrypted",
            next,
        ),
        other => report.unread(what, other, "s3:GetEncryptionConfiguration"),
    }
}

async fn public_access(report: &mut Report, s3: &S3Store, fix: bool) {
    let what = "public access";
    let mut found = s3.public_access_block().await;
    let mut next = "sealfs doctor STORE --fix".to_owned();
    if fix && matches!(found, Setting::Absent | Setting::Is(false)) {
        match s3.put_public_access_block().await {
            Ok(()) => found = s3.public_access_block().await,
            Err(e) => next = format!("it could not be blocked: {}", sentence(&e)),
        }
    }
    match &found {
        Setting::Is(true) => report.ok(what, "blocked"),
        Setting::Is(false) => report.warning(what, "only partly blocked", next),
        Setting::Absent => report.warning(what, "not blocked", next),
        other => report.unread(what, other, "s3:GetBucketPublicAccessBlock"),
    }
}

async fn plain_http(report: &mut Report, s3: &S3Store, fix: bool) {
    let what = "plain http";
    let mut found = s3.policy().await;
    let mut next = "sealfs doctor STORE --fix".to_owned();
    let missing = |found: &Setting<String>| match found {
        Setting::Is(policy) => !denies_plain_http(policy),
        Setting::Absent => true,
        _ => false,
    };
    if missing(&found) && !s3.is_tls() {
        return report.ok(what, "not denied by a policy, which would deny this endpoint");
    }
    if fix && missing(&found) {
        let policy = match &found {
            Setting::Is(policy) => with_tls_only(Some(policy), s3.bucket()),
            _ => with_tls_only(None, s3.bucket()),
        };
        let put = match policy {
            Some(policy) => s3.put_policy(&policy).await.map_err(|e| sentence(&e)),
            None => Err("the policy that is there cannot be added to".into()),
        };
        match put {
            Ok(()) => found = s3.policy().await,
            Err(why) => next = format!("it could not be denied: {why}"),
        }
    }
    match &found {
        _ if missing(&found) => report.warning(what, "not denied by a policy", next),
        Setting::Is(_) => report.ok(what, "denied by the bucket's policy"),
        other => report.unread(what, other, "s3:GetBucketPolicy"),
    }
}

/// The requests that a mount makes, one by one, with the permission that each needs.
async fn permissions(report: &mut Report, s3: &Arc<S3Store>) {
    use futures::StreamExt;
    let location = Path::from("probe/doctor");
    let mut line = |what: &'static str, outcome: object_store::Result<()>| match outcome {
        Ok(()) => report.ok(what, "allowed"),
        Err(e) if class(&e) == ErrorClass::Auth => {
            let next = "sealfs doctor STORE --iam-policy prints a policy that allows it";
            report.error(what, sentence(&e), next);
        }
        Err(e) => report.error(what, sentence(&e), "see the hint of: sealfs mount"),
    };
    line("s3:ListBucket", s3.list(None).next().await.transpose().map(drop));
    line("s3:PutObject", s3.put(&location, "doctor".into()).await.map(drop));
    line("s3:GetObject", s3.get(&location).await.map(drop));
    let upload = async {
        let mut upload = s3.put_multipart(&location).await?;
        let part = upload.put_part("part".into()).await;
        let aborted = upload.abort().await;
        part.and(aborted)
    };
    line("s3:AbortMultipartUpload", upload.await);
    line("s3:DeleteObject", s3.delete(&location).await);
    let refused = |f: &Finding| f.what == "s3:PutObject" && f.level == Level::Error;
    if report.0.iter().any(refused) {
        if let Some(diagnosis) = s3.why_refused().await {
            report.error("encryption mode", diagnosis.why, diagnosis.next);
        }
    } else if let Some(applied) = s3.sse_applied() {
        report.ok("encryption mode", format!("the server applies {applied}"));
    }
}

async fn conditional(report: &mut Report, opened: &Opened) {
    match probe(&*opened.layers.retry).await {
        Ok(()) => {
            report.ok("conditional writes", "honoured: two mounts cannot overwrite each other")
        }
        Err(e) => {
            let all = e.to_string();
            let (text, next) = all.split_once("\nhint: ").unwrap_or((&all, "use another server"));
            match &e {
                ProbeError::Failed { source, .. } => {
                    report.error("conditional writes", sentence(source), next);
                }
                _ => report.error("conditional writes", text, next),
            }
        }
    }
}

async fn throughput(report: &mut Report, opened: &Opened) {
    let what = "throughput";
    let location = Path::from("probe/doctor-throughput");
    let store = &opened.layers.retry;
    let measured = async {
        let begun = Instant::now();
        store.put(&location, Bytes::from(vec![0x5a; TRIAL_BYTES]).into()).await?;
        let up = begun.elapsed();
        let begun = Instant::now();
        store.get(&location).await?.bytes().await?;
        Ok::<_, object_store::Error>((up, begun.elapsed()))
    };
    let measured = measured.await;
    if let Err(e) = store.delete(&location).await
        && class(&e) != ErrorClass::NotFound
    {
        log::warn!("cannot remove {location}: {e}");
    }
    let rate = |took: Duration| TRIAL_BYTES as f64 / took.as_secs_f64().max(1e-6) / 1e6;
    match measured {
        Ok((up, down)) => report.ok(
            what,
            format!("{:.0} MB/s up, {:.0} MB/s down, one request at a time", rate(up), rate(down)),
        ),
        Err(e) => report.warning(what, sentence(&e), "see the lines above"),
    }
}

/// How fast a local directory takes data and syncs it.
fn disk(report: &mut Report, dir: &FilePath) {
    let shown = dir.display();
    let measured = || -> std::io::Result<(Duration, Duration)> {
        let mut file = tempfile::tempfile_in(dir)?;
        let begun = Instant::now();
        file.write_all(&vec![0x5a; TRIAL_BYTES])?;
        file.sync_data()?;
        let bulk = begun.elapsed();
        let begun = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        Ok((bulk, begun.elapsed()))
    };
    match measured() {
        Ok((bulk, sync)) => {
            let rate = TRIAL_BYTES as f64 / bulk.as_secs_f64().max(1e-6) / 1e6;
            let ms = sync.as_secs_f64() * 1e3;
            let text = format!("{shown}: {rate:.0} MB/s with sync, {ms:.1} ms for a small one");
            match sync > FSYNC_MAX {
                true => report.warning("local disk", text, "use --state-dir on a faster disk"),
                false => report.ok("local disk", text),
            }
        }
        Err(e) => report.error(
            "local disk",
            format!("{shown}: {e}"),
            format!("mkdir -p {shown}, or choose another: --state-dir, --cache-dir"),
        ),
    }
}

fn fuse(report: &mut Report) {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).exists())
    };
    match device {
        Err(e) => {
            report.error("fuse", format!("/dev/fuse: {e}"), "apt install fuse3; modprobe fuse")
        }
        Ok(_) if root || on_path("fusermount3") => report.ok("fuse", "/dev/fuse can be used"),
        Ok(_) => report.error("fuse", "fusermount3 is missing", "apt install fuse3"),
    }
}
