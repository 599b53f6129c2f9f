//! What a bucket keeps of what is deleted and replaced: versioning, Object Lock, lifecycle rules, and
//! whether these credentials may delete versions. Read by `doctor`; nothing is set but versioning,
//! which `init` asks for.

use super::bucket::{Setting, setting};
use crate::base::counted;
use crate::store::error::{ErrorClass, class, sentence};
use crate::store::s3::S3Store;
use crate::store::s3::errors::{Condition, from_sdk};
use aws_sdk_s3::types::{
    BucketVersioningStatus, ExpirationStatus, LifecycleRule, MfaDeleteStatus, ObjectLockEnabled,
    Tag, TransitionStorageClass, VersioningConfiguration,
};
use object_store::path::Path;
use object_store::{ObjectStoreExt, Result};
use std::collections::BTreeMap;
use std::fmt;

/// Versioning of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versioning {
    /// Every overwrite and delete keeps the old version.
    Enabled {
        /// Versions are deleted, and versioning is changed, only by who has a second factor.
        mfa_delete: bool,
    },
    /// Was enabled; old versions are still there.
    Suspended,
    /// Never was.
    Off,
}

/// Object Lock with the retention that objects get by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// `GOVERNANCE` or `COMPLIANCE`; empty where there is no default.
    pub mode: String,
    /// Days of it; 0: no default.
    pub days: u64,
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.days {
            0 => f.write_str("no default retention"),
            days => write!(f, "{} for {}", self.mode, counted(days, "day")),
        }
    }
}

/// What lifecycle rules do to the objects of a volume. Rules that are not enabled do nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// Days after which all noncurrent versions of it are deleted.
    pub noncurrent_days: Option<u64>,
    /// Rules that delete objects which are in use, by id.
    pub deletes: Vec<String>,
    /// Rules that move objects in use to where they cannot be read at once, by id.
    pub archives: Vec<String>,
}

impl Lifecycle {
    /// Of these rules, for what lies below `prefix` and has these tags.
    fn of(rules: &[LifecycleRule], prefix: &str, tags: &BTreeMap<String, String>) -> Lifecycle {
        let mut all = Lifecycle::default();
        for rule in rules.iter().filter(|r| *r.status() == ExpirationStatus::Enabled) {
            let reach = Reach::of(rule, prefix, tags);
            let id = match rule.id().filter(|id| !id.is_empty()) {
                Some(id) => id.to_owned(),
                None => "without a name".into(),
            };
            let noncurrent = rule.noncurrent_version_expiration();
            if let Some(days) = noncurrent.and_then(|n| n.noncurrent_days()).filter(|d| *d > 0)
                && reach == Reach::All
            {
                let days = days as u64;
                all.noncurrent_days = Some(all.noncurrent_days.map_or(days, |now| now.min(days)));
            }
            if reach == Reach::Nothing {
                continue;
            }
            // A rule for delete markers that nothing is behind has neither days nor date.
            let expires = rule.expiration();
            if expires.is_some_and(|e| e.days().is_some_and(|d| d > 0) || e.date().is_some()) {
                all.deletes.push(id.clone());
            }
            let slow = [TransitionStorageClass::Glacier, TransitionStorageClass::DeepArchive];
            let mut to = rule.transitions().iter().filter_map(|t| t.storage_class());
            if to.any(|class| slow.contains(class)) {
                all.archives.push(id);
            }
        }
        all
    }
}

/// How much of a volume a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    All,
    Some,
    Nothing,
}

impl Reach {
    fn of(rule: &LifecycleRule, prefix: &str, tags: &BTreeMap<String, String>) -> Reach {
        let filter = rule.filter();
        let and = filter.and_then(|f| f.and());
        #[allow(deprecated)] // rules of before filters are still in use
        let old = rule.prefix();
        let of = filter.and_then(|f| f.prefix()).or(and.and_then(|a| a.prefix())).or(old);
        let of = of.unwrap_or_default();
        let mut wanted = filter
            .and_then(|f| f.tag())
            .into_iter()
            .chain(and.map(|a| a.tags()).unwrap_or_default());
        let has = |tag: &Tag| tags.get(tag.key()).is_some_and(|value| value == tag.value());
        let sizes = [
            filter.and_then(|f| f.object_size_greater_than()),
            filter.and_then(|f| f.object_size_less_than()),
            and.and_then(|a| a.object_size_greater_than()),
            and.and_then(|a| a.object_size_less_than()),
        ];
        if !wanted.all(has) || !(prefix.starts_with(of) || of.starts_with(prefix)) {
            return Reach::Nothing;
        }
        match prefix.starts_with(of) && sizes.iter().all(Option::is_none) {
            true => Reach::All,
            false => Reach::Some,
        }
    }
}

/// Versioning as an answer says it whose root has a name of the server's own (moto).
fn versioning_in(body: &[u8]) -> Option<Versioning> {
    let text = std::str::from_utf8(body).ok()?;
    let root = text.split('<').find(|tag| tag.starts_with(char::is_alphabetic))?;
    if !root.contains("Versioning") {
        return None;
    }
    let said = |open: &str| {
        text.split_once(open).and_then(|(_, rest)| rest.split('<').next()).map(str::trim)
    };
    Some(match said("<Status>") {
        Some("Enabled") => Versioning::Enabled {
            mfa_delete: said("<MfaDelete>").is_some_and(|on| on == "Enabled"),
        },
        Some("Suspended") => Versioning::Suspended,
        _ => Versioning::Off,
    })
}

impl S3Store {
    /// Versioning of the bucket.
    pub async fn versioning(&self) -> Setting<Versioning> {
        let inner = &self.inner;
        let answer = inner.client.get_bucket_versioning().bucket(&inner.bucket).send().await;
        // The client reads the answer only under the name that S3 gives its root.
        let body = answer.as_ref().err().and_then(|e| e.raw_response()?.body().bytes());
        if let Some(versioning) = body.and_then(versioning_in) {
            return Setting::Is(versioning);
        }
        setting(answer, "versioning", &[], |output| {
            let mfa_delete = output.mfa_delete() == Some(&MfaDeleteStatus::Enabled);
            Some(match output.status() {
                Some(BucketVersioningStatus::Enabled) => Versioning::Enabled { mfa_delete },
                Some(BucketVersioningStatus::Suspended) => Versioning::Suspended,
                _ => Versioning::Off,
            })
        })
    }

    /// Turns versioning on.
    pub async fn put_versioning(&self) -> Result<()> {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        let inner = &self.inner;
        let put = inner.client.put_bucket_versioning().bucket(&inner.bucket);
        put.versioning_configuration(on)
            .send()
            .await
            .map(drop)
            .map_err(|e| from_sdk(e, "enable", "versioning", Condition::None))
    }

    /// Object Lock, where it is enabled.
    pub async fn object_lock(&self) -> Setting<Lock> {
        let inner = &self.inner;
        let answer = inner.client.get_object_lock_configuration().bucket(&inner.bucket).send();
        let absent = ["ObjectLockConfigurationNotFoundError", "ObjectLockConfigurationNotFound"];
        setting(answer.await, "object lock", &absent, |output| {
            let lock = output.object_lock_configuration()?;
            lock.object_lock_enabled().filter(|on| **on == ObjectLockEnabled::Enabled)?;
            let retention = lock.rule().and_then(|rule| rule.default_retention());
            let count = |n: Option<i32>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            Some(Lock {
                mode: retention
                    .and_then(|r| r.mode())
                    .map(|m| m.as_str().into())
                    .unwrap_or_default(),
                days: retention.map_or(0, |r| count(r.days()) + 365 * count(r.years())),
            })
        })
    }

    /// What the lifecycle rules of the bucket do to the objects of the store, which have these tags.
    pub async fn lifecycle(&self, tags: &BTreeMap<String, String>) -> Setting<Lifecycle> {
        let inner = &self.inner;
        let answer = inner.client.get_bucket_lifecycle_configuration().bucket(&inner.bucket);
        setting(
            answer.send().await,
            "lifecycle rules",
            &["NoSuchLifecycleConfiguration"],
            |output| Some(Lifecycle::of(output.rules(), &inner.prefix, tags)),
        )
    }

    /// Whether these credentials may delete a version for good: they are let try, with an object of
    /// their own at `location`. [`Setting::Absent`] where a put names no version.
    pub async fn deletes_versions(&self, location: &Path) -> Setting<bool> {
        let version = match self.put(location, "doctor".into()).await {
            Ok(put) => put.version.filter(|version| version != "null"),
            Err(e) => return Setting::Failed(sentence(&e)),
        };
        let Some(version) = version else {
            return self.leaving(location, Setting::Absent).await;
        };
        let inner = &self.inner;
        let delete = inner.client.delete_object().bucket(&inner.bucket).key(inner.key(location));
        let deleted = delete.version_id(version).send().await;
        let deleted = deleted.map_err(|e| from_sdk(e, "delete", "a version", Condition::None));
        match deleted {
            Ok(_) => Setting::Is(true),
            Err(e) if class(&e) == ErrorClass::Auth => {
                self.leaving(location, Setting::Is(false)).await
            }
            Err(e) => self.leaving(location, Setting::Failed(sentence(&e))).await,
        }
    }

    /// `answer`, once the object of the question is deleted as others are.
    async fn leaving(&self, location: &Path, answer: Setting<bool>) -> Setting<bool> {
        match self.delete(location).await {
            Err(e) if class(&e) != ErrorClass::NotFound => {
                log::warn!("cannot remove {location}: {}", sentence(&e));
            }
            _ => {}
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::types::{
        LifecycleExpiration, LifecycleRuleAndOperator, LifecycleRuleFilter,
        NoncurrentVersionExpiration, Transition,
    };

    #[test]
    fn versioning_is_read_whatever_its_answer_is_called() {
        // Guards against "no such setting" where every version is kept and costs.
        let answer = |root: &str, inner: &str| {
            format!("<?xml version=\"1.0\"?>\n<{root} xmlns=\"x\">{inner}</{root}>")
        };
        let read = |text: String| versioning_in(text.as_bytes());
        let on = "<Status>Enabled</Status>";
        let off = "<MfaDelete>Disabled</MfaDelete><Status> Suspended </Status>";
        let enabled = |mfa_delete| Some(Versioning::Enabled { mfa_delete });
        assert_eq!(read(answer("GetBucketVersioningResponse", on)), enabled(false));
        let mfa = format!("{on}<MfaDelete>Enabled</MfaDelete>");
        assert_eq!(read(answer("GetBucketVersioningResponse", &mfa)), enabled(true));
        assert_eq!(read(answer("VersioningConfiguration", off)), Some(Versioning::Suspended));
        assert_eq!(read(answer("GetBucketVersioningResponse", "")), Some(Versioning::Off));
        assert_eq!(read(answer("ListBucketResult", on)), None);
        assert_eq!(read(String::new()), None);
    }

    #[test]
    fn a_rule_counts_for_what_it_is_about() {
        // Guards against "noncurrent versions go" by a rule for another prefix, and against a rule that
        // deletes what the volume needs and is not told.
        let rule = |filter: LifecycleRuleFilter| {
            LifecycleRule::builder().id("r").status(ExpirationStatus::Enabled).filter(filter)
        };
        let of = |prefix: &str| LifecycleRuleFilter::builder().prefix(prefix).build();
        let noncurrent =
            |days| NoncurrentVersionExpiration::builder().noncurrent_days(days).build();
        let days = |days| LifecycleExpiration::builder().days(days).build();
        let tags = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let read = |rule: LifecycleRule| Lifecycle::of(&[rule], "data/", &tags);
        let built = |rule: aws_sdk_s3::types::builders::LifecycleRuleBuilder| {
            rule.build().expect("it has a status")
        };
        for (prefix, found) in [
            ("", Some(30)),
            ("data/", Some(30)),
            ("da", Some(30)),
            ("data/seg/", None),
            ("x", None),
        ] {
            let rule = rule(of(prefix)).noncurrent_version_expiration(noncurrent(30));
            assert_eq!(read(built(rule)).noncurrent_days, found, "{prefix}");
        }
        for (prefix, found) in [("", 1), ("data/seg/", 1), ("other/", 0)] {
            assert_eq!(read(built(rule(of(prefix)).expiration(days(9)))).deletes.len(), found);
        }
        let markers = LifecycleExpiration::builder().expired_object_delete_marker(true).build();
        assert_eq!(read(built(rule(of("")).expiration(markers))), Lifecycle::default());
        let disabled = rule(of("")).status(ExpirationStatus::Disabled).expiration(days(9));
        assert_eq!(read(built(disabled)), Lifecycle::default());
        let tagged = |value: &str| {
            let tag = Tag::builder().key("team").value(value).build().expect("a tag");
            let and = LifecycleRuleAndOperator::builder().prefix("data/").tags(tag).build();
            LifecycleRuleFilter::builder().and(and).build()
        };
        for (value, found) in [("a", 1), ("b", 0)] {
            let moves = Transition::builder().storage_class(TransitionStorageClass::DeepArchive);
            let rule = rule(tagged(value)).transitions(moves.days(1).build());
            assert_eq!(read(built(rule)).archives.len(), found, "{value}");
        }
    }
}
