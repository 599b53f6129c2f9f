//! The storage class that segments are put into, and whether the server does that.
//!
//! Segments only. What else a volume has is small, is replaced all the time and read by every mount: below
//! the least size and time that the cheaper classes charge for, it would cost more there. Source: S3 User
//! Guide, "Understanding and managing Amazon S3 storage classes".

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_sdk_s3::types::StorageClass as Wire;
use object_store::path::Path;
use object_store::{GetOptions, Result};
use parking_lot::RwLock;

use super::errors::own;
use super::{Inner, S3Store};
use crate::store::error::ErrorClass;
use crate::store::names::{SEGMENT_PREFIX, is_below};
use crate::store::probe;

const STANDARD: &str = "STANDARD";
/// What is in these has to be restored, for hours, before it can be read.
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];
/// Those of AWS that can be read at once.
const KNOWN: [&str; 6] = [
    STANDARD,
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "REDUCED_REDUNDANCY",
];

/// A storage class whose objects can be read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageClass(String);

impl Default for StorageClass {
    fn default() -> StorageClass {
        StorageClass(STANDARD.into())
    }
}

impl StorageClass {
    /// Whether nothing has to be asked for.
    pub fn is_standard(&self) -> bool {
        self.0 == STANDARD
    }
}

impl fmt::Display for StorageClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for StorageClass {
    type Err = String;

    /// A name of AWS in any case, or one that another server has given (Ceph).
    fn from_str(text: &str) -> std::result::Result<StorageClass, String> {
        let upper = text.to_ascii_uppercase().replace('-', "_");
        if ARCHIVES.contains(&upper.as_str()) {
            return Err(format!(
                "objects in {upper} have to be restored for hours before they can be read, so a volume in it \
                 could not be; GLACIER_IR is the archive that is read at once"
            ));
        }
        if KNOWN.contains(&upper.as_str()) {
            return Ok(StorageClass(upper));
        }
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        match (1..=64).contains(&text.len()) && text.bytes().all(is_plain) {
            true => Ok(StorageClass(text.into())),
            false => Err(format!("a storage class is one of {}", KNOWN.join(", "))),
        }
    }
}

/// Whether objects of this class cannot be read at once.
pub(super) fn is_archive(class: &str) -> bool {
    ARCHIVES.contains(&class)
}

/// The class of one store, and what the server made of it.
#[derive(Default)]
pub(super) struct Kept(RwLock<State>);

#[derive(Clone, Default)]
struct State {
    asked: Arc<StorageClass>,
    /// What a segment that was put in it is in; `None` before the first.
    found: Option<String>,
}

impl S3Store {
    /// Changes the class of segments that are put from now on.
    pub fn set_storage_class(&self, class: &StorageClass) {
        let mut state = self.inner.storage_class.0.write();
        if *state.asked != *class {
            *state = State { asked: Arc::new(class.clone()), found: None };
        }
    }

    /// The class that segments are put into.
    pub fn storage_class(&self) -> StorageClass {
        (*self.inner.storage_class.0.read().asked).clone()
    }

    /// The class that the server has put a segment into, where that is another.
    pub fn other_storage_class(&self) -> Option<String> {
        let state = self.inner.storage_class.0.read();
        state.found.clone().filter(|found| *found != state.asked.0)
    }

    /// Puts an object in `class`, looks at it and removes it: whether this server knows the class.
    ///
    /// # Errors
    /// Those of the requests; `Unsupported` if it is in another class.
    pub async fn try_storage_class(&self, class: &StorageClass) -> Result<()> {
        if class.is_standard() {
            return Ok(());
        }
        let inner = &self.inner;
        let location = probe::random_name()?;
        let put = inner.put_of_class(&location, class).await;
        let found = match put {
            Ok(()) => inner.class_found(&location).await,
            Err(e) => return Err(e),
        };
        inner.take_back(&location).await;
        match found? {
            found if found == class.0 => Ok(()),
            found => {
                let message =
                    format!("the server puts objects into {found} that are to be in {class}");
                Err(own(ErrorClass::Unsupported, message))
            }
        }
    }
}

impl Inner {
    /// What a request asks for that makes this object.
    pub(super) fn class_of(&self, location: &Path) -> Option<Wire> {
        if !is_below(location.as_ref(), SEGMENT_PREFIX) {
            return None;
        }
        let asked = self.storage_class.0.read().asked.clone();
        wire(&asked)
    }

    /// The first segment that was put in a class is looked at, as no answer to a PUT names it. One
    /// HeadObject a mount.
    pub(super) async fn note_class(&self, location: &Path, asked: Option<Wire>) {
        let Some(asked) = asked else { return };
        if self.storage_class.0.read().found.is_some() {
            return;
        }
        let found = match self.class_found(location).await {
            Ok(found) => found,
            Err(e) => return log::debug!("the storage class of {location}: {e}"), // the next one tells
        };
        let mut state = self.storage_class.0.write();
        if state.asked.0 != asked.as_str() {
            return;
        }
        if found != state.asked.0 && state.found.is_none() {
            log::warn!("the server puts segments into {found} that are to be in {}", state.asked);
        }
        state.found = Some(found);
    }

    async fn class_found(&self, location: &Path) -> Result<String> {
        let answer = self.head_object(location, &GetOptions::default()).await?;
        Ok(answer.storage_class().map_or(STANDARD.into(), |class| class.as_str().to_owned()))
    }
}

/// As a request carries it; the standard one is not named.
pub(super) fn wire(class: &StorageClass) -> Option<Wire> {
    (!class.is_standard()).then(|| Wire::from(class.0.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_cannot_be_read_at_once_are_refused_in_any_spelling() {
        // Guards against a volume that nobody can mount for the next twelve hours.
        let class = |text: &str| text.parse::<StorageClass>().map(|class| class.to_string());
        for text in ["GLACIER", "glacier", "DEEP_ARCHIVE", "deep-archive"] {
            assert!(class(text).expect_err(text).contains("GLACIER_IR"), "{text}");
        }
        assert_eq!(class("glacier-ir"), Ok("GLACIER_IR".into()));
        assert_eq!(class("standard_ia"), Ok("STANDARD_IA".into()));
        assert_eq!(class("cold-hdd"), Ok("cold-hdd".into()), "one of Ceph's");
        for bad in ["", "a b", "a\nb", "ä"] {
            assert!(class(bad).is_err(), "{bad:?}");
        }
        assert!(wire(&StorageClass::default()).is_none());
    }
}
