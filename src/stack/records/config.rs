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
use crate::stack::StackError;
use crate::store::names::CONFIG_NAME;
use crate::store::s3::SseMode;
use crate::store::{Compression, ErrorClass, class};

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
        let compress = Compression::None;
        let snapshots = Schedule::default();
        VolumeConfig { version, revision: 1, sse, tags, rekey: None, compress, snapshots }
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

    /// The next revision, with this schedule of snapshots.
    pub fn with_schedule(&self, snapshots: Schedule) -> VolumeConfig {
        let (version, revision) = (CONFIG_VERSION, self.revision + 1);
        VolumeConfig { version, revision, snapshots, ..self.clone() }
    }
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
}
