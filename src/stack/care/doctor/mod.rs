//! `doctor`: whether a bucket, these credentials and this machine are fit for a volume, line by
//! line, each with what to do next; and the settings that a new bucket gets.
//!
//! Leaves nothing behind but what `fix` was asked to set. Every check is bounded in time by the
//! store's own limits; one that cannot be made says so, and the others go on.

mod local;
mod requests;
mod versions;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use object_store::ObjectStore;
use serde::Serialize;

use super::bucket_policy::{denies_plain_http, with_tls_only};
use crate::stack::keys::watch::KeyWatch;
use crate::stack::records::config::{self, VolumeConfig};
use crate::stack::records::encryption;
use crate::stack::{Key, StackError, StackErrorKind, StoreOptions, StoreStack, unlock_store};
use crate::store::s3::{DefaultEncryption, S3Store, Setting, SseMode};
use crate::store::{advice, class, sentence};
use local::{disk, fuse};
use requests::{Can, conditional, connection, is_refused, permissions, throughput};

/// Bytes that throughput is measured with.
const TRIAL_BYTES: usize = 8 << 20;
/// How long a read of keyring or configuration may take.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

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

/// What was found.
#[derive(Debug, Default)]
pub struct Examined {
    /// Line by line.
    pub findings: Vec<Finding>,
    /// What kind of trouble the first error is.
    pub failed: Option<StackErrorKind>,
}

/// The findings, and how they are added.
#[derive(Default)]
struct Report(Vec<Finding>, Option<StackErrorKind>);

impl Report {
    /// An error of this kind.
    fn fails(
        &mut self,
        kind: StackErrorKind,
        what: &'static str,
        text: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.1.get_or_insert(kind);
        let next = Some(next.into());
        self.0.push(Finding { level: Level::Error, what, text: text.into(), next });
    }

    fn ok(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, what, text: text.into(), next: None });
    }

    fn warning(&mut self, what: &'static str, text: impl Into<String>, next: impl Into<String>) {
        let next = Some(next.into());
        self.0.push(Finding { level: Level::Warning, what, text: text.into(), next });
    }

    fn error(&mut self, what: &'static str, text: impl Into<String>, next: impl Into<String>) {
        self.fails(StackErrorKind::Unsuitable, what, text, next);
    }

    /// What the stack says.
    fn stack(&mut self, what: &'static str, e: &StackError) {
        let text = e.to_string();
        let (text, hint) = match text.split_once("\nhint: ") {
            Some((text, hint)) => (text.to_owned(), Some(hint.to_owned())),
            None => (text, None),
        };
        let next = hint.or_else(|| e.hint()).unwrap_or_else(|| "see the lines around".into());
        self.fails(e.kind(), what, text, next);
    }

    /// What the answer to a request says of the permission it needs; whether there is one.
    fn may(&mut self, what: &'static str, outcome: object_store::Result<()>) -> bool {
        match outcome {
            Ok(()) => self.ok(what, "allowed"),
            Err(e) if is_refused(&e) => {
                let iam = "sealfs doctor STORE --iam-policy prints a policy that allows it";
                self.error(what, sentence(&e), advice(&e).unwrap_or_else(|| iam.into()));
                return false;
            }
            Err(e) => {
                let next = advice(&e).unwrap_or_else(|| match class(&e).is_retryable() {
                    true => "try again".into(),
                    false => "use another server, or ask who runs this one".into(),
                });
                self.error(what, sentence(&e), next);
                return false;
            }
        }
        true
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
pub async fn examine(options: &DoctorOptions) -> Result<Examined, StackError> {
    let mut report = Report::default();
    let attended = &options.store.attended;
    let layers = tokio::select! {
        layers = StoreStack::connect(&options.store, READ_TIMEOUT, false) => layers?,
        () = attended.stopped() => return Err(StackError::Stopped),
    };
    let reachable = match &layers.s3 {
        Some(s3) => tokio::select! {
            reachable = connection(&mut report, s3) => reachable,
            () = attended.stopped() => return Err(StackError::Stopped),
        },
        None => true,
    };
    if reachable {
        attended.goes_on();
        store(&mut report, options, &layers).await?;
    }
    for dir in &options.dirs {
        disk(&mut report, dir);
    }
    fuse(&mut report);
    Ok(Examined { findings: report.0, failed: report.1 })
}

/// What is asked of a store that answers.
async fn store(
    report: &mut Report,
    options: &DoctorOptions,
    layers: &StoreStack,
) -> Result<(), StackError> {
    let stopped = || match options.store.attended.is_stopped() {
        true => Err(StackError::Stopped),
        false => Ok(()),
    };
    let ask = &options.store.sse;
    let config = match &options.key {
        Some(key) => volume(report, options, layers, key).await,
        None => None,
    };
    let choice = match config.as_ref().map(|config| encryption::choose(config, ask)) {
        Some(Ok(choice)) => Some(choice),
        Some(Err(e)) => {
            report.stack("volume", &e);
            None
        }
        None => None,
    };
    let known = choice.is_some() || ask.mode.is_some();
    let (mode, tags) = match choice {
        Some(choice) => (choice.mode, choice.tags),
        None => {
            let key = ask.write_key.clone().map(|key| SseMode::Customer { key });
            (ask.mode.clone().or(key).unwrap_or_default(), ask.tags.clone().unwrap_or_default())
        }
    };
    let mut can = Can { put: true, delete: true };
    if let Some(s3) = &layers.s3 {
        s3.set_object_tags(&tags);
        if mode.name() != s3.sse_mode().name() {
            s3.set_sse_mode(mode.clone());
        }
        settings(report, s3, Needs { mode: &mode, known }, options.fix).await;
        versions::settings(report, s3, &tags).await;
        stopped()?;
        can = permissions(report, s3, &tags).await;
        if can.put && can.delete {
            stopped()?;
            versions::deleting(report, s3).await;
        }
    }
    if !can.put || !can.delete {
        let why = if can.put { "nothing could be removed" } else { "nothing can be written" };
        for what in ["conditional writes", "throughput"] {
            report.warning(what, format!("not tried: {why}"), "see the lines above");
        }
        return Ok(());
    }
    stopped()?;
    conditional(report, layers).await;
    stopped()?;
    throughput(report, layers).await;
    stopped()
}

/// Whether the secret opens the volume, and what the volume remembers.
async fn volume(
    report: &mut Report,
    options: &DoctorOptions,
    layers: &StoreStack,
    key: &Key,
) -> Option<VolumeConfig> {
    let what = "volume";
    let open = async {
        let name = options.store.location.to_string();
        let unlocked = unlock_store(layers, &name, key).await?;
        let loaded = config::load(&KeyWatch::sealed(&layers.retry, &name, &unlocked)).await?;
        Ok::<_, StackError>((unlocked.keys.volume_id(), loaded.config))
    };
    match open.await {
        Ok((id, config)) => {
            report.ok(what, format!("{id}: the key opens it"));
            Some(config)
        }
        // Before `init` that is as it should be; among objects of a volume it is not.
        Err(e @ StackError::NoVolume(_)) => {
            match layers.retry.list(None).next().await {
                None => report.warning(what, "there is none yet", "create it: sealfs init STORE"),
                Some(_) => report.error(
                    what,
                    format!("{e}, but there are objects"),
                    "check the prefix; if it is right, put the object `keyring` back from a copy",
                ),
            }
            None
        }
        Err(e) => {
            report.stack(what, &e);
            None
        }
    }
}

/// Gives a new bucket its settings: default encryption, public access block, a policy against
/// plain http, and versioning if asked. What this server does not know is a finding, as is what
/// it refuses.
pub async fn secure_bucket(s3: &S3Store, mode: &SseMode, versioning: bool) -> Vec<Finding> {
    let mut report = Report::default();
    settings(&mut report, s3, Needs { mode, known: true }, true).await;
    if versioning {
        match s3.put_versioning().await {
            Ok(()) => versions::settings(&mut report, s3, &BTreeMap::new()).await,
            Err(e) => report.warning("versioning", sentence(&e), "enable it by hand"),
        }
    }
    report.0
}

/// What the volume asks of its bucket.
#[derive(Clone, Copy)]
struct Needs<'a> {
    mode: &'a SseMode,
    /// A flag or the volume says so; else it is only what a bucket does by itself.
    known: bool,
}

/// The settings of the bucket; with `fix`, what is missing is set and looked at again.
async fn settings(report: &mut Report, s3: &S3Store, needs: Needs<'_>, fix: bool) {
    default_encryption(report, s3, needs, fix).await;
    public_access(report, s3, fix).await;
    plain_http(report, s3, fix).await;
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
