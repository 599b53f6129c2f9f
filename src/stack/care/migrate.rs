//! Brings every object of a volume into another server-side encryption, on the server.
//!
//! The volume's configuration comes first, so that what is written from then on is right; a mount
//! follows it at its next heartbeat. Then one pass over all objects, and, if somebody has the
//! volume mounted, another over what was written until the mount had followed. Each object says
//! itself whether it is done, so that a migration that was interrupted is simply run again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use serde::Serialize;

use super::audit::{AuditOptions, AuditReport, Exception, Tally, audit_as, key_of_alias};
use super::walk::{Pace, Walked};
use crate::base::VolumeId;
use crate::stack::opening::unmounted::{Opened, is_gone};
use crate::stack::records::config;
use crate::stack::records::lease::{self, HEARTBEAT};
use crate::stack::running::canary::probe_store;
use crate::stack::{Key, StackError, StackErrorKind, StoreOptions};
use crate::store::names::{CONFIG_NAME, KEYRING_NAME, LEASE_NAME};
use crate::store::s3::{COPY_MAX, Reencrypted, S3Store, SseMode};
use crate::store::{ErrorClass, class, patiently, sentence, shown_key};

/// Objects at a time, unless asked otherwise.
pub const PARALLEL_DEFAULT: usize = 16;
/// How often an object that is being replaced is tried.
const REPLACED_MAX: u32 = 5;
/// How long after its heartbeat a mount has certainly followed a change of the configuration.
const FOLLOW_GRACE: Duration = Duration::from_secs(30);
/// How much older than the configuration an object may say it is and still be of the time after:
/// clocks of a server's parts differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);

/// What to do.
pub struct MigrateOptions {
    /// The store; its `sse.mode` is the target, its keys are those of old and new objects.
    pub store: StoreOptions,
    /// Opens the volume.
    pub key: Key,
    /// Objects at a time.
    pub parallel: usize,
    /// Most objects a second.
    pub rate: Option<u32>,
    /// Only remember the mode for what is written from now on.
    pub new_only: bool,
    /// The mount that has the volume knows the new customer key.
    pub mount_has_key: bool,
    /// Above this many bytes an object is copied in parts.
    pub copy_max: u64,
}

impl MigrateOptions {
    /// The defaults.
    pub fn new(store: StoreOptions, key: impl Into<Key>) -> MigrateOptions {
        MigrateOptions {
            store,
            key: key.into(),
            parallel: PARALLEL_DEFAULT,
            rate: None,
            new_only: false,
            mount_has_key: false,
            copy_max: COPY_MAX,
        }
    }
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct MigrateReport {
    /// What the volume asked for before, in words.
    pub from: String,
    /// What it asks for now.
    pub to: String,
    /// Objects that were in the new mode already.
    pub already: Tally,
    /// Changed in place.
    pub in_place: Tally,
    /// Copied on the server.
    pub copied: Tally,
    /// Read and written.
    pub rewritten: Tally,
    /// What could not be changed, with the reason.
    pub failed: Vec<Exception>,
    /// The audit afterwards; `None` with [`MigrateOptions::new_only`].
    pub audit: Option<AuditReport>,
}

/// What a migration is doing, for whoever shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Passing over the objects.
    Objects,
    /// Waiting until the mount that has the volume has followed, at most this long.
    Waiting(Duration),
    /// Passing over what was written meanwhile.
    Rest,
    /// The audit.
    Audit,
}

/// Migrates a volume to the mode of `options.store.sse`. `phase` is told what begins, and counts
/// are in `walked`. `tell` tells a mount of the volume on this machine that its configuration has
/// changed; true if there is one and it has followed.
///
/// # Errors
/// What keeps it from beginning or from listing; what happened to single objects is in the report.
pub async fn migrate(
    options: &MigrateOptions,
    walked: Arc<Walked>,
    phase: impl Fn(Phase),
    tell: impl FnOnce(VolumeId) -> bool,
) -> Result<MigrateReport, StackError> {
    let target = options.store.sse.mode.clone().unwrap_or_default();
    let attended = &options.store.attended;
    let open = Opened::open(&options.store, Some(&options.key));
    let opened = attended.unless_stopped(open).await?;
    let s3 = opened.s3(&options.store)?;
    let sealed = opened.sealed().expect("a key was given");
    if let Some(unlocked) = &opened.unlocked {
        unlocked.keyring.check_writable()?;
    }
    let holder = attended.unless_stopped(lease::held_by(&sealed)).await?;
    refuse_unreadable(options, &target, holder.as_deref())?;
    probe_store(&opened.layers).await?;

    let was = &opened.loaded.config;
    let tags = options.store.sse.tags.clone().unwrap_or_else(|| was.tags.clone());
    s3.set_object_tags(&tags);
    let mut report = MigrateReport {
        from: crate::stack::records::encryption::name(&was.sse),
        to: target.to_string(),
        ..MigrateReport::default()
    };
    if was.revision == 0 || was.sse != target.remembered() || was.tags != tags {
        config::replace(&*sealed, &opened.loaded, &was.changed(&target, tags)).await?;
    }
    if options.new_only {
        return Ok(report);
    }
    let changed = Instant::now();
    let volume = opened.keys().map(|keys| keys.volume_id());
    let followed = holder.is_some() && volume.is_some_and(tell);
    let changed_there = opened.layers.retry.head(&CONFIG_NAME.into()).await;
    let changed_there = changed_there.map_err(|e| StackError::store("looking at the change", e))?;
    let changed_there = SystemTime::from(changed_there.last_modified);

    let pass = Pass {
        s3: &s3,
        target: &target,
        key: key_of_alias(&s3, &target).await,
        options,
        walked: &walked,
        pace: Pace::new(options.rate),
        done: Mutex::new(&mut report),
    };
    phase(Phase::Objects);
    pass.run(&opened, None).await?;
    if holder.is_some() {
        if !followed {
            let left = (HEARTBEAT + FOLLOW_GRACE).saturating_sub(changed.elapsed());
            phase(Phase::Waiting(left));
            let _ = tokio::time::timeout(left, options.store.attended.stopped()).await;
        }
        phase(Phase::Rest);
        pass.run(&opened, changed_there.checked_sub(CLOCKS_DIFFER)).await?;
    }
    drop(pass);
    phase(Phase::Audit);
    let audit = AuditOptions {
        store: options.store.clone(),
        key: None,
        sample: None,
        verify_sealing: false,
    };
    report.audit = Some(audit_as(&audit, &opened, s3, &target, walked).await?);
    Ok(report)
}

/// A mount that lacks the customer key could read nothing of what is migrated to it.
fn refuse_unreadable(
    options: &MigrateOptions,
    target: &SseMode,
    holder: Option<&str>,
) -> Result<(), StackError> {
    match (target, holder) {
        (SseMode::Customer { .. }, Some(holder)) if !options.mount_has_key => {
            Err(StackError::Encryption {
                kind: StackErrorKind::InUse,
                message: format!(
                    "the volume is mounted by {holder}, which may not have the new customer key"
                ),
                hint: "unmount it first; or, if it was mounted with the new key \
                       (--sse-c-read-key-file FILE): --mount-has-key"
                    .into(),
            })
        }
        _ => Ok(()),
    }
}

/// One walk over the objects.
struct Pass<'a> {
    s3: &'a S3Store,
    target: &'a SseMode,
    /// The key that an alias of the target stands for.
    key: Option<String>,
    options: &'a MigrateOptions,
    walked: &'a Walked,
    pace: Pace,
    done: Mutex<&'a mut MigrateReport>,
}

/// How an object ended.
enum Ended {
    Already,
    Changed(Reencrypted),
    Gone,
}

impl Pass<'_> {
    /// Every object, or those written since `since`.
    async fn run(&self, opened: &Opened, since: Option<SystemTime>) -> Result<(), StackError> {
        let recent = |meta: &ObjectMeta| {
            since.is_none_or(|since| SystemTime::from(meta.last_modified) >= since)
        };
        let failures = &Mutex::new(BTreeMap::new());
        let from: (&dyn ObjectStore, _) = (&*opened.layers.retry, &self.options.store);
        let one = |meta: ObjectMeta| async move {
            match self.one(&meta).await {
                Ok(ended) => self.enter(&meta, ended),
                Err(e) => {
                    let name = shown_key(&meta.location);
                    failures.lock().insert(name, (meta.size, sentence(&e)));
                }
            }
        };
        let walked = self.walked.each(from, self.options.parallel, recent, one).await;
        let failed = std::mem::take(&mut *failures.lock()).into_iter();
        let failed = failed.map(|(name, (bytes, problem))| Exception { name, bytes, problem });
        self.done.lock().failed.extend(failed);
        walked
    }

    fn enter(&self, meta: &ObjectMeta, ended: Ended) {
        let mut done = self.done.lock();
        match ended {
            Ended::Already => done.already.add(meta.size),
            Ended::Changed(Reencrypted::InPlace) => done.in_place.add(meta.size),
            Ended::Changed(Reencrypted::Copied) => done.copied.add(meta.size),
            Ended::Changed(Reencrypted::Rewritten) => done.rewritten.add(meta.size),
            Ended::Gone => {}
        }
    }

    async fn one(&self, meta: &ObjectMeta) -> object_store::Result<Ended> {
        let mut last = None;
        for _ in 0..REPLACED_MAX {
            let found = match patiently(|| self.s3.inspect(&meta.location)).await {
                Ok(found) => found,
                Err(e) if is_gone(&e) => return Ok(Ended::Gone),
                Err(e) => return Err(e),
            };
            if self.target.unlike(&found.applied, &mut self.key.clone()).is_none() {
                return Ok(Ended::Already);
            }
            self.pace.turn().await;
            let replaced_by_writers =
                [KEYRING_NAME, LEASE_NAME, CONFIG_NAME].contains(&meta.location.as_ref());
            let outcome = match replaced_by_writers {
                true => patiently(|| self.s3.rewrite(&meta.location, &found)).await,
                false => {
                    let copy_max = self.options.copy_max;
                    patiently(|| self.s3.reencrypt(&meta.location, &found, copy_max)).await
                }
            };
            match outcome {
                Ok(how) => return Ok(Ended::Changed(how)),
                Err(e) if is_gone(&e) => return Ok(Ended::Gone),
                // Replaced meanwhile, or done by an attempt whose answer was lost: look again.
                Err(e) if class(&e) == ErrorClass::Precondition => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last.expect("every round that ends here set it"))
    }
}
