//! The encryption of one store as it is now: the mode of writes, the customer keys of reads, the
//! tags of objects. The mode can change while the store is in use; a request and the check of
//! its answer always use the same one, and a multipart upload ends in the mode it began in.
//!
//! Holds locks for map operations only. Owned by [`super::S3Store`].

use super::sse::{SecretKey32, SseCheck, SseMode};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Uploads whose mode is remembered; an older one is compared with the mode of the day.
const UPLOADS_MAX: usize = 1024;
/// Objects of which it is remembered which customer key opened them. About 200 bytes each.
const OPENED_BY_MAX: usize = 4096;

/// See the module.
pub(super) struct Encryption {
    now: RwLock<Arc<SseCheck>>,
    tags: RwLock<Option<String>>,
    /// Every customer key that is known, the writing one first.
    keys: RwLock<Vec<SecretKey32>>,
    uploads: Mutex<LruCache<String, Arc<SseCheck>>>,
    opened_by: Mutex<OpenedBy>,
}

/// Which key (by its id, `None` for none) opened an object last.
struct OpenedBy {
    object: LruCache<String, Option<String>>,
    last: Option<Option<String>>,
}

fn lru<V>(max: usize) -> LruCache<String, V> {
    LruCache::new(NonZeroUsize::new(max).expect("not zero"))
}

impl Encryption {
    pub(super) fn new(
        mode: SseMode,
        read_keys: Vec<SecretKey32>,
        tags: &BTreeMap<String, String>,
    ) -> Encryption {
        let encryption = Encryption {
            now: RwLock::new(Arc::new(SseCheck::new(SseMode::Default))),
            tags: RwLock::new(tags_header(tags)),
            keys: RwLock::new(read_keys),
            uploads: Mutex::new(lru(UPLOADS_MAX)),
            opened_by: Mutex::new(OpenedBy { object: lru(OPENED_BY_MAX), last: None }),
        };
        encryption.set(mode);
        encryption
    }

    /// The mode of a write that begins now, and what its answer is compared with.
    pub(super) fn now(&self) -> Arc<SseCheck> {
        self.now.read().clone()
    }

    /// Changes the mode of writes that begin from now on. A customer key stays known to reads.
    pub(super) fn set(&self, mode: SseMode) {
        if let SseMode::Customer { key } = &mode {
            let mut keys = self.keys.write();
            keys.retain(|known| known != key);
            keys.insert(0, key.clone());
        }
        *self.now.write() = Arc::new(SseCheck::new(mode));
    }

    /// The customer keys that are known, the writing one first.
    pub(super) fn keys(&self) -> Vec<SecretKey32> {
        self.keys.read().clone()
    }

    /// `x-amz-tagging` of every object written, or `None`.
    pub(super) fn tags(&self) -> Option<String> {
        self.tags.read().clone()
    }

    /// Changes the tags of objects written from now on.
    pub(super) fn set_tags(&self, tags: &BTreeMap<String, String>) {
        *self.tags.write() = tags_header(tags);
    }

    /// Remembers the mode that an upload began in.
    pub(super) fn begin_upload(&self, id: &str, sse: Arc<SseCheck>) {
        self.uploads.lock().put(id.to_owned(), sse);
    }

    /// The mode that an upload began in.
    pub(super) fn of_upload(&self, id: &str) -> Arc<SseCheck> {
        let remembered = self.uploads.lock().get(id).cloned();
        remembered.unwrap_or_else(|| self.now())
    }

    /// Forgets an upload that is over.
    pub(super) fn end_upload(&self, id: &str) {
        self.uploads.lock().pop(id);
    }

    /// The customer keys to try on a read of `object`, the likeliest first; `None` is a read
    /// without one. Never empty; of one element when no customer key is known.
    pub(super) fn candidates(&self, object: &str) -> Vec<Option<SecretKey32>> {
        let mut candidates: Vec<_> = self.keys.read().iter().cloned().map(Some).collect();
        match self.now.read().mode() {
            SseMode::Customer { .. } => candidates.push(None),
            _ => candidates.insert(0, None),
        }
        if candidates.len() > 1 {
            let opened_by = self.opened_by.lock();
            let likeliest = opened_by.object.peek(object).or(opened_by.last.as_ref());
            let at = likeliest.and_then(|id| candidates.iter().position(|c| id_of(c) == *id));
            if let Some(at) = at {
                candidates[..=at].rotate_right(1);
            }
        }
        candidates
    }

    /// Notes which candidate opened an object.
    pub(super) fn opened(&self, object: &str, by: &Option<SecretKey32>) {
        if self.keys.read().is_empty() {
            return;
        }
        let mut opened_by = self.opened_by.lock();
        opened_by.object.put(object.to_owned(), id_of(by));
        opened_by.last = Some(id_of(by));
    }
}

fn id_of(candidate: &Option<SecretKey32>) -> Option<String> {
    candidate.as_ref().map(|key| key.id().to_owned())
}

/// Tags as the header carries them: a query string.
fn tags_header(tags: &BTreeMap<String, String>) -> Option<String> {
    if tags.is_empty() {
        return None;
    }
    let mut header = url::form_urlencoded::Serializer::new(String::new());
    header.extend_pairs(tags);
    Some(header.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn key(byte: u8) -> SecretKey32 {
        SecretKey32::new(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn the_key_that_opened_an_object_is_tried_first_the_next_time() {
        // Guards against two requests for every read while a volume is half migrated, and
        // against a key that is never tried.
        let customer = SseMode::Customer { key: key(1) };
        let encryption = Encryption::new(customer, vec![key(2), key(1)], &BTreeMap::new());
        let all = |object| encryption.candidates(object);
        assert_eq!(all("a"), [Some(key(1)), Some(key(2)), None]);
        encryption.opened("a", &None);
        assert_eq!(all("a"), [None, Some(key(1)), Some(key(2))]);
        encryption.opened("b", &Some(key(2)));
        assert_eq!(all("a")[0], None);
        assert_eq!(all("new"), [Some(key(2)), Some(key(1)), None]);
        encryption.set(SseMode::S3);
        assert_eq!(all("b"), [Some(key(2)), None, Some(key(1))]);
        let none = Encryption::new(SseMode::S3, Vec::new(), &BTreeMap::new());
        assert_eq!(none.candidates("a"), [None]);
    }

    #[test]
    fn tags_are_a_query_string() {
        // Guards against a space or an ampersand in a tag ending it early.
        let tags = [("owner", "a & b"), ("project", "x=y")];
        let tags = tags.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(tags_header(&tags).as_deref(), Some("owner=a+%26+b&project=x%3Dy"));
        assert_eq!(tags_header(&BTreeMap::new()), None);
    }

    #[test]
    fn an_upload_ends_in_the_mode_it_began_in() {
        // Guards against parts that carry another mode than their upload after a change.
        let encryption = Encryption::new(SseMode::S3, Vec::new(), &BTreeMap::new());
        encryption.begin_upload("u", encryption.now());
        encryption.set(SseMode::Customer { key: key(1) });
        assert_eq!(encryption.of_upload("u").mode().name(), "AES256");
        encryption.end_upload("u");
        assert_eq!(encryption.of_upload("u").mode().name(), "customer");
    }
}
