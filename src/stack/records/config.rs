//! What a volume remembers of how it is to be stored: one small sealed object, `config`
//! (FORMAT.md "Configuration"). Written by `init`, read by every mount, replaced conditionally.
//!
//! It never holds a key: of a customer key only its id. A volume without the object (made by an
//! older version) has the default configuration, revision 0.

use std::collections::BTreeMap;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use crate::fs::{Quota, QuotaError};
use crate::stack::StackError;
use crate::store::names::CONFIG_NAME;
use crate::store::s3::{SseMode, StorageClass};
use crate::store::{Compression, ErrorClass, class};

/// How often the configuration is written again because somebody else has changed it.
const TRIES: u32 = 8;
/// Version of the JSON object that this program writes and reads.
const CONFIG_VERSION: u32 = 1;

/// The object's plaintext.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeConfig {
    /// Version of this structure.
    version: u32,
    /// 1 when it is created, and one more with every change; 0 where there is none.
    #[serde(rename = "generation")]
    pub revision: u64,
    /// The server-side encryption to ask for, and the id of the customer key that writes
    /// ([`crate::store::s3::SecretKey32::id`]).
    #[serde(with = "sse")]
    pub sse: SseMode<String>,
    /// Tags of every object.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The key epoch that every object is being brought into (`key rekey`); absent when none is
    /// under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey: Option<u32>,
    /// How new segments are stored. What is there stays as it is: every segment says itself.
    #[serde(default, with = "as_text", skip_serializing_if = "is_none")]
    pub compress: Compression,
    /// When snapshots are made by themselves.
    #[serde(default, with = "as_text", skip_serializing_if = "Schedule::is_off")]
    pub snapshots: Schedule,
    /// How much the files in it may take.
    #[serde(default, with = "as_text", skip_serializing_if = "is_default")]
    pub quota: Quota,
    /// The storage class of new segments. What is there stays where it is.
    #[serde(default, with = "as_text", skip_serializing_if = "is_default")]
    pub storage_class: StorageClass,
}

fn is_default<T: Default + PartialEq>(it: &T) -> bool {
    *it == T::default()
}

fn is_none(compress: &Compression) -> bool {
    *compress == Compression::None
}

/// As a string, such as `zstd:3`. One that this program does not know is a newer one's.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(it: &impl Display, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// As an object with the `mode` by its name and what belongs to that mode.
mod sse {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::store::s3::{SseKind, SseMode};

    #[derive(Default, Serialize, Deserialize)]
    struct Fields {
        mode: String,
        /// KMS key id, ARN or alias, as it was given; or the id of the customer key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// Encryption context.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        context: BTreeMap<String, String>,
        /// Bucket key on or off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bucket_key: Option<bool>,
    }

    pub(super) fn serialize<S: Serializer>(it: &SseMode<String>, to: S) -> Result<S::Ok, S::Error> {
        let mode = it.name().to_owned();
        let fields = match it.clone() {
            SseMode::Default | SseMode::S3 => Fields { mode, ..Fields::default() },
            SseMode::Kms { key_id: key, context, bucket_key } => {
                Fields { mode, key, context, bucket_key }
            }
            SseMode::Dsse { key_id: key, context } => {
                Fields { mode, key, context, bucket_key: None }
            }
            SseMode::Customer { key } => Fields { mode, key: Some(key), ..Fields::default() },
        };
        fields.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<SseMode<String>, D::Error> {
        let Fields { mode, key, context, bucket_key } = Fields::deserialize(from)?;
        let kind = SseKind::of_name(&mode).ok_or_else(|| D::Error::custom("an unknown mode"))?;
        Ok(match kind {
            SseKind::Default => SseMode::Default,
            SseKind::S3 => SseMode::S3,
            SseKind::Kms => SseMode::Kms { key_id: key, context, bucket_key },
            SseKind::Dsse => SseMode::Dsse { key_id: key, context },
            SseKind::Customer => {
                SseMode::Customer { key: key.ok_or_else(|| D::Error::missing_field("key"))? }
            }
        })
    }
}

/// A configuration as it was read, and which version of the object it was.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// What it says.
    pub config: VolumeConfig,
    /// `None` where there is no such object.
    version: Option<UpdateVersion>,
}

impl VolumeConfig {
    /// The configuration of a new volume.
    pub fn new(mode: &SseMode, tags: BTreeMap<String, String>) -> VolumeConfig {
        let (version, sse) = (CONFIG_VERSION, mode.remembered());
        VolumeConfig { version, revision: 1, sse, tags, ..VolumeConfig::default() }
    }

    /// The next revision, with these settings; the rest stays.
    pub fn changed(&self, mode: &SseMode, tags: BTreeMap<String, String>) -> VolumeConfig {
        let (version, revision) = (CONFIG_VERSION, self.revision + 1);
        VolumeConfig { version, revision, sse: mode.remembered(), tags, ..self.clone() }
    }

    /// The next revision, in which every object is brought into this key epoch, or none is.
    pub fn with_rekey(&self, rekey: Option<u32>) -> VolumeConfig {
        let (version, revision) = (CONFIG_VERSION, self.revision + 1);
        VolumeConfig { version, revision, rekey, ..self.clone() }
    }

    /// With `change` made; the same revision.
    fn with(&self, change: &Change) -> VolumeConfig {
        let mut now = self.clone();
        match change {
            Change::Schedule(snapshots) => now.snapshots = *snapshots,
            Change::StorageClass(class) => now.storage_class = class.clone(),
            Change::Quota { bytes, inodes, error } => {
                now.quota.bytes = bytes.unwrap_or(now.quota.bytes);
                now.quota.inodes = inodes.unwrap_or(now.quota.inodes);
                now.quota.error = error.unwrap_or(now.quota.error);
                if now.quota.is_off() {
                    now.quota = Quota::default();
                }
            }
        }
        now
    }
}

/// A change of what a volume remembers, that needs nothing but the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// When snapshots are made by themselves.
    #[serde(with = "as_text")]
    Schedule(Schedule),
    /// The storage class of new segments.
    #[serde(with = "as_text")]
    StorageClass(StorageClass),
    /// How much the files in it may take; what is `None` stays as it is, 0 is no limit.
    Quota {
        /// Bytes.
        bytes: Option<u64>,
        /// Inodes.
        inodes: Option<u64>,
        /// How it is told.
        error: Option<QuotaError>,
    },
}

fn path() -> Path {
    Path::from(CONFIG_NAME)
}

/// Reads the configuration through the sealed layer.
///
/// # Errors
/// [`StackError::Damaged`] if it is not what was sealed, or of a version that this program does
/// not know; [`StackError::Store`].
pub async fn load(sealed: &dyn ObjectStore) -> Result<Loaded, StackError> {
    const WHAT: &str = "reading the configuration of the volume";
    let got = match sealed.get(&path()).await {
        Ok(got) => got,
        Err(e) if class(&e) == ErrorClass::NotFound => return Ok(Loaded::default()),
        Err(e) => return Err(StackError::store(WHAT, e)),
    };
    let version =
        UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
    let bytes = got.bytes().await.map_err(|e| StackError::store(WHAT, e))?;
    let config: VolumeConfig = serde_json::from_slice(&bytes).map_err(|_| newer())?;
    match config.version {
        CONFIG_VERSION => Ok(Loaded { config, version: Some(version) }),
        _ => Err(newer()),
    }
}

/// What authenticates and is not understood was written by another version of this program.
fn newer() -> StackError {
    StackError::Damaged {
        what: "reading the configuration of the volume".into(),
        message: format!("object {CONFIG_NAME} was written by a newer sealfs"),
    }
}

/// Writes a configuration in place of the one that was read, unless somebody else has.
///
/// # Errors
/// [`StackError::Store`]; a lost race is one of them.
pub async fn replace(
    sealed: &dyn ObjectStore,
    was: &Loaded,
    config: &VolumeConfig,
) -> Result<(), StackError> {
    let bytes = serde_json::to_vec(config).expect("a struct of strings and numbers");
    let mode = match &was.version {
        None => PutMode::Create,
        Some(version) => PutMode::Update(version.clone()),
    };
    let put = sealed.put_opts(&path(), bytes.into(), mode.into()).await;
    put.map(drop).map_err(|e| StackError::store("writing the configuration of the volume", e))
}

/// The configuration, after `change` if there is one. Somebody else's changes meanwhile stay.
///
/// # Errors
/// As [`load`] and [`replace`].
pub async fn change(
    sealed: &dyn ObjectStore,
    change: Option<&Change>,
) -> Result<VolumeConfig, StackError> {
    let mut lost = None;
    for _ in 0..TRIES {
        let was = load(sealed).await?;
        let Some(mut now) = change.map(|change| was.config.with(change)) else {
            return Ok(was.config);
        };
        if now == was.config {
            return Ok(now);
        }
        (now.version, now.revision) = (CONFIG_VERSION, was.config.revision + 1);
        match replace(sealed, &was, &now).await {
            Ok(()) => return Ok(now),
            Err(e) => lost = Some(e), // changed meanwhile, or the answer was lost: look again
        }
    }
    Err(lost.expect("every round that ends here set it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::VolumeKeys;
    use crate::store::Sealed;
    use crate::store::s3::SecretKey32;
    use object_store::memory::InMemory;
    use std::sync::Arc;
    use zeroize::Zeroizing;

    fn modes() -> Vec<SseMode> {
        let context = BTreeMap::from([("project".to_owned(), "a".to_owned())]);
        let key_id = Some("alias/a".to_owned());
        vec![
            SseMode::Default,
            SseMode::S3,
            SseMode::Kms { key_id: None, context: BTreeMap::new(), bucket_key: None },
            SseMode::Kms {
                key_id: key_id.clone(),
                context: context.clone(),
                bucket_key: Some(true),
            },
            SseMode::Dsse { key_id, context },
            SseMode::Customer { key: SecretKey32::new(Zeroizing::new([9; 32])) },
        ]
    }

    #[tokio::test]
    async fn every_mode_is_remembered_and_no_key_is() {
        // Guards against a mode that comes back as another one, and against an SSE-C key in the
        // bucket.
        let bare = Arc::new(InMemory::new());
        let sealed = Sealed::new(bare.clone(), VolumeKeys::random_for_tests(1));
        let mut was = load(&sealed).await.expect("absent is fine");
        assert_eq!(was.config, VolumeConfig::default());
        for (n, mode) in modes().iter().enumerate() {
            let tags = BTreeMap::from([("n".to_owned(), n.to_string())]);
            let config = was.config.changed(mode, tags);
            replace(&sealed, &was, &config).await.expect("written");
            replace(&sealed, &was, &config).await.expect_err("a stale version");
            was = load(&sealed).await.expect("read");
            assert_eq!(was.config, config, "{mode}");
            assert_eq!(was.config.revision, n as u64 + 1);
            let json = serde_json::to_string(&config).expect("plain data");
            assert!(!json.contains("CQkJ"), "the base64 of the key in {json}");
        }
        let raw = bare.get(&path()).await.expect("there").bytes().await.expect("whole");
        assert!(!raw.windows(6).any(|w| w == b"config" || w == b"\"mode\""));
    }

    #[tokio::test]
    async fn a_configuration_that_was_exchanged_or_is_newer_is_refused() {
        // Guards against a weaker mode being slipped in by whoever can write the bucket, and
        // against silently dropping what a newer version has added.
        let bare = Arc::new(InMemory::new());
        let sealed = Sealed::new(bare.clone(), VolumeKeys::random_for_tests(1));
        let compress = Compression::Zstd { level: 7 };
        let config = VolumeConfig { compress, ..VolumeConfig::new(&SseMode::S3, BTreeMap::new()) };
        replace(&sealed, &Loaded::default(), &config).await.expect("written");
        let other = Sealed::new(bare.clone(), VolumeKeys::random_for_tests(2));
        assert!(matches!(load(&other).await, Err(StackError::Damaged { .. })));
        let newer = VolumeConfig { version: 2, ..config };
        let was = load(&sealed).await.expect("its own");
        assert_eq!(was.config.changed(&SseMode::Default, BTreeMap::new()).compress, compress);
        for other in ["lz4", "zstd:99"] {
            let json = serde_json::to_string(&was.config).expect("plain data");
            let json = json.replace("zstd:7", other);
            assert!(serde_json::from_str::<VolumeConfig>(&json).is_err(), "{json}");
        }
        replace(&sealed, &was, &newer).await.expect("written");
        let refused = load(&sealed).await.expect_err("newer").to_string();
        assert!(refused.contains("newer sealfs"), "{refused}");
    }

    #[tokio::test]
    async fn a_change_keeps_what_others_have_changed_and_what_it_does_not_name() {
        // Guards against a quota that takes the schedule with it, and one of inodes that takes that of
        // bytes; and against a new revision for nothing.
        let sealed = Sealed::new(Arc::new(InMemory::new()), VolumeKeys::random_for_tests(1));
        let quota = |bytes, inodes, error| Change::Quota { bytes, inodes, error };
        let schedule = "daily=3".parse().expect("a schedule");
        let changes = [
            Change::Schedule(schedule),
            quota(Some(1 << 30), None, None),
            Change::StorageClass("GLACIER_IR".parse().expect("a class")),
            quota(None, Some(9), Some(QuotaError::Edquot)),
            quota(None, Some(9), None),
        ];
        for (n, one) in changes.iter().enumerate() {
            let text = serde_json::to_string(one).expect("plain data");
            let one: Change = serde_json::from_str(&text).expect("reads back");
            let now = change(&sealed, Some(&one)).await.expect("changed");
            assert_eq!(now.revision, (n as u64 + 1).min(4), "{text}");
        }
        let now = change(&sealed, None).await.expect("read");
        assert_eq!(now.quota.to_string(), "bytes=1073741824,inodes=9,error=EDQUOT");
        assert_eq!((now.snapshots, now.storage_class.to_string()), (schedule, "GLACIER_IR".into()));
        let off = change(&sealed, Some(&quota(Some(0), Some(0), None))).await.expect("changed");
        assert_eq!(off.quota, Quota::default());
    }
}
