//! Whether the bucket keeps what somebody with the credentials of a mount deletes, for how long, and
//! whether those credentials can undo that: what docs/SNAPSHOTS.md recommends.

use std::collections::BTreeMap;

use super::Report;
use crate::base::counted;
use crate::store::random_name;
use crate::store::s3::{Lifecycle, Lock, S3Store, Setting, Versioning};

/// The page that says why, and how.
const PAGE: &str = "docs/SNAPSHOTS.md, \"Against whoever has the credentials\"";
const VERSIONING: &str = "versioning";
const NONCURRENT: &str = "noncurrent versions";
const LIFECYCLE: &str = "lifecycle rules";
const LOCK: &str = "object lock";

/// The settings of a bucket whose objects have these tags.
pub(super) async fn settings(report: &mut Report, s3: &S3Store, tags: &BTreeMap<String, String>) {
    let versioning = s3.versioning().await;
    let keeps = self::versioning(report, &versioning);
    let lifecycle = s3.lifecycle(tags).await;
    self::lifecycle(report, &lifecycle, keeps);
    let days = match &lifecycle {
        Setting::Is(rules) => rules.noncurrent_days,
        _ => None,
    };
    lock(report, &s3.object_lock().await, days);
}

/// Whether there are, or come to be, versions that are not current.
fn versioning(report: &mut Report, found: &Setting<Versioning>) -> bool {
    let what = VERSIONING;
    match found {
        Setting::Is(Versioning::Enabled { mfa_delete }) => {
            let mfa = if *mfa_delete { ", with MFA delete" } else { "" };
            report
                .ok(what, format!("enabled{mfa}: what is deleted or replaced stays as a version"));
            true
        }
        Setting::Is(Versioning::Suspended) => {
            report.warning(
                what,
                "suspended: what is deleted or replaced now is gone for good; versions of earlier \
                 stay and cost",
                format!("enable it again: {PAGE}"),
            );
            true
        }
        Setting::Is(Versioning::Off) | Setting::Absent => {
            report.warning(
                what,
                "off: whoever can write the bucket can destroy the volume for good",
                format!("enable it: {PAGE}"),
            );
            false
        }
        other => {
            report.unread(what, other, "s3:GetBucketVersioning");
            false
        }
    }
}

/// What lifecycle rules do: those for noncurrent versions are needed, where there are such (`keeps`);
/// those for current ones destroy.
fn lifecycle(report: &mut Report, found: &Setting<Lifecycle>, keeps: bool) {
    let none = Lifecycle::default();
    let rules = match found {
        Setting::Is(rules) => rules,
        Setting::Absent => &none,
        other => return report.unread(LIFECYCLE, other, "s3:GetLifecycleConfiguration"),
    };
    for id in &rules.deletes {
        report.error(
            LIFECYCLE,
            format!(
                "rule {id} deletes current objects of the volume by their age, also those in use"
            ),
            "disable it, or give it another prefix: a sealed volume has no object too many",
        );
    }
    for id in &rules.archives {
        report.error(
            LIFECYCLE,
            format!(
                "rule {id} moves objects of the volume to an archive, where they cannot be read"
            ),
            "disable it, or give it another prefix; take back what it has moved: RestoreObject",
        );
    }
    match rules.noncurrent_days {
        _ if !keeps => {}
        Some(days) => {
            report.ok(NONCURRENT, format!("deleted after {}", counted(days, "day")));
        }
        None => report.warning(
            NONCURRENT,
            "no lifecycle rule deletes them: what the volume deletes never comes free",
            format!("add one with NoncurrentVersionExpiration: {PAGE}"),
        ),
    }
}

/// Object Lock, beside the days after which noncurrent versions are deleted.
fn lock(report: &mut Report, found: &Setting<Lock>, noncurrent_days: Option<u64>) {
    let what = LOCK;
    match found {
        Setting::Is(lock) if lock.days == 0 => report.ok(
            what,
            "enabled, without a default retention: whoever may delete versions can delete all",
        ),
        Setting::Is(lock) => {
            let text = format!(
                "{lock}: no version can be deleted for that long, by nobody{}",
                match lock.mode.as_str() {
                    "GOVERNANCE" => " without s3:BypassGovernanceRetention",
                    _ => "",
                }
            );
            match noncurrent_days.filter(|days| *days < lock.days) {
                Some(days) => report.warning(
                    what,
                    format!("{text}, though a lifecycle rule means to after {}", counted(days, "day")),
                    "make the retention no longer than the rule: what is locked costs until it ends",
                ),
                None => report.ok(what, text),
            }
        }
        Setting::Absent => report.ok(what, "off: whoever may delete versions can delete all"),
        other => report.unread(what, other, "s3:GetBucketObjectLockConfiguration"),
    }
}

/// Whether these credentials may delete versions, which a mount never needs.
pub(super) async fn deleting(report: &mut Report, s3: &S3Store) {
    let what = "s3:DeleteObjectVersion";
    let Ok(location) = random_name() else { return };
    match s3.deletes_versions(&location).await {
        Setting::Is(true) => report.warning(
            what,
            "allowed: whoever has these credentials can delete for good what versions keep",
            "take it away; sealfs doctor STORE --iam-policy prints a policy without it",
        ),
        Setting::Is(false) => {
            report.ok(what, "refused, as it should be: these credentials delete nothing for good");
        }
        // Nothing keeps versions, which is said above.
        Setting::Absent => {}
        other => report.unread(what, &other, what),
    }
}
