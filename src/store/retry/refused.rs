//! What the store refuses for good: said by `status`, because waiting does not mend it.
//!
//! Holds a lock for map operations only.

use super::super::error::{ErrorClass, class, sentence};
use lru::LruCache;
use object_store::Result;
use object_store::path::Path;
use parking_lot::Mutex;
use std::num::NonZeroUsize;

/// Objects remembered that cannot be deleted; about 100 bytes each. Beyond it they are forgotten
/// and counted again when they are tried again.
const UNDELETED_MAX: usize = 4096;

/// What is refused at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// The smallest upload that was too large, in bytes.
    pub too_large: Option<u64>,
    /// Why the last upload was refused; none once one succeeded.
    pub upload: Option<String>,
    /// How many objects could not be deleted, and why the last of them.
    pub deletes: Option<(usize, String)>,
}

/// See the module.
pub(super) struct Refused {
    now: Mutex<Refusals>,
    undeleted: Mutex<LruCache<Path, ()>>,
}

impl Default for Refused {
    fn default() -> Refused {
        let max = NonZeroUsize::new(UNDELETED_MAX).expect("not zero");
        Refused { now: Mutex::default(), undeleted: Mutex::new(LruCache::new(max)) }
    }
}

/// Whether an error is the store's final word on a request, rather than on the object's state.
fn is_final(class: ErrorClass) -> bool {
    use ErrorClass::*;
    matches!(class, Auth | SseMismatch | NoBucket | TooLarge | Unsupported | Other)
}

impl Refused {
    /// Takes in the outcome of an upload of `len` bytes.
    pub(super) fn note_upload<T>(&self, len: u64, outcome: &Result<T>) {
        let mut now = self.now.lock();
        match outcome {
            Ok(_) => {
                now.upload = None;
                now.too_large = now.too_large.filter(|least| len < *least);
            }
            Err(e) if class(e) == ErrorClass::TooLarge => {
                now.too_large = Some(now.too_large.map_or(len, |least| least.min(len)));
            }
            Err(e) if is_final(class(e)) => now.upload = Some(sentence(e)),
            Err(_) => {}
        }
    }

    /// Takes in the outcome of a deletion; whether it was refused.
    pub(super) fn note_delete(&self, location: &Path, outcome: &Result<Path>) -> bool {
        let mut undeleted = self.undeleted.lock();
        match outcome {
            Err(e) if is_final(class(e)) => {
                undeleted.put(location.clone(), ());
                self.now.lock().deletes = Some((undeleted.len(), sentence(e)));
                return true;
            }
            Err(e) if class(e) != ErrorClass::NotFound => return false,
            _ => {}
        }
        if undeleted.pop(location).is_some() {
            let mut now = self.now.lock();
            now.deletes = match (undeleted.len(), now.deletes.take()) {
                (0, _) => None,
                (count, deletes) => deletes.map(|(_, why)| (count, why)),
            };
        }
        false
    }

    pub(super) fn now(&self) -> Refusals {
        self.now.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::error::StoreError;
    use super::*;

    fn refused<T>(class: ErrorClass) -> Result<T> {
        Err(StoreError::new(class, "no\nhint: ask").into_store("test"))
    }

    #[test]
    fn a_refusal_is_told_until_the_same_succeeds() {
        // Guards against a bucket that grows, or an upload that never ends, without a word; and
        // against a word that stays when it is over.
        let seen = Refused::default();
        seen.note_upload::<()>(100, &refused(ErrorClass::TooLarge));
        seen.note_upload::<()>(50, &refused(ErrorClass::TooLarge));
        seen.note_upload::<()>(1, &refused(ErrorClass::Unsupported));
        seen.note_upload::<()>(1, &refused(ErrorClass::Transport));
        let paths = ["a", "b"].map(Path::from);
        for path in &paths {
            assert!(seen.note_delete(path, &refused(ErrorClass::Auth)));
        }
        assert!(!seen.note_delete(&paths[0], &refused(ErrorClass::Throttled)));
        let expected = Refusals {
            too_large: Some(50),
            upload: Some("no".into()),
            deletes: Some((2, "no".into())),
        };
        assert_eq!(seen.now(), expected);
        seen.note_upload(49, &Ok(()));
        assert_eq!((seen.now().too_large, seen.now().upload), (Some(50), None));
        seen.note_upload(50, &Ok(()));
        for path in paths {
            let _ = seen.note_delete(&path, &Ok(path.clone()));
        }
        assert_eq!(seen.now(), Refusals::default());
    }
}
