//! The objects, uploads and counters of the in-memory server.
//!
//! Objects are shared `Bytes`: a GET of any range copies nothing. A lock is held for a map
//! operation, never across an await.

use super::faults::RequestKind;
use super::sse::{Behaviour, StoredSse};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One stored object.
#[derive(Clone)]
pub struct Object {
    pub bytes: Bytes,
    /// Without quotes; unique to this write of this object.
    pub e_tag: String,
    /// Whole seconds, which is what HTTP dates can say.
    pub modified: SystemTime,
    pub sse: StoredSse,
    /// As the header carried them.
    pub tags: Option<String>,
    pub labels: Labels,
}

/// What lies beside the bytes of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// User metadata, without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
    pub content_type: Option<String>,
    pub storage_class: Option<String>,
}

/// A multipart upload in progress.
pub struct Upload {
    pub key: String,
    pub sse: StoredSse,
    pub tags: Option<String>,
    pub labels: Labels,
    pub parts: BTreeMap<i32, (String, Bytes)>,
}

#[derive(Default)]
pub struct Bucket {
    objects: RwLock<BTreeMap<String, Arc<Object>>>,
    pub uploads: Mutex<HashMap<String, Upload>>,
    /// Finished uploads by id, with the key and ETag they became: finishing is idempotent.
    pub finished: Mutex<HashMap<String, (String, String)>>,
}

/// Why a conditional write did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The condition does not hold.
    Precondition,
    /// `If-Match` on an object that is not there.
    Missing,
}

/// The condition of a write.
#[derive(Clone, Debug)]
pub enum WriteCondition {
    None,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match: "tag"`, without quotes.
    Matches(String),
    /// `If-Match: *`
    Present,
}

/// One entry of a listing.
pub enum Entry {
    Object(String, Arc<Object>),
    Prefix(String),
}

impl Bucket {
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.objects.read().get(key).cloned()
    }

    /// Checks the condition and stores the object, in one step.
    pub fn put(
        &self,
        key: &str,
        object: Object,
        condition: &WriteCondition,
    ) -> Result<(), Refusal> {
        let mut objects = self.objects.write();
        let present = objects.get(key).map(|o| o.e_tag.as_str());
        match (condition, present) {
            (WriteCondition::Absent, Some(_)) => return Err(Refusal::Precondition),
            (WriteCondition::Matches(_) | WriteCondition::Present, None) => {
                return Err(Refusal::Missing);
            }
            (WriteCondition::Matches(tag), Some(e_tag)) if tag != e_tag => {
                return Err(Refusal::Precondition);
            }
            _ => {}
        }
        objects.insert(key.to_owned(), Arc::new(object));
        Ok(())
    }

    pub fn remove(&self, key: &str) -> bool {
        self.objects.write().remove(key).is_some()
    }

    pub fn keys(&self) -> Vec<String> {
        self.objects.read().keys().cloned().collect()
    }

    pub fn open_uploads(&self) -> usize {
        self.uploads.lock().len()
    }

    /// Up to `max` entries with `prefix`, after `after`, and whether there are more. With a
    /// delimiter, keys that have it after the prefix are one [`Entry::Prefix`] each.
    pub fn list(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        after: &str,
        max: usize,
    ) -> (Vec<Entry>, bool) {
        let objects = self.objects.read();
        let mut entries = Vec::new();
        let mut from = match after >= prefix {
            true => Bound::Excluded(after.to_owned()),
            false => Bound::Included(prefix.to_owned()),
        };
        loop {
            let mut skip_to = None;
            for (key, object) in objects.range((from.clone(), Bound::Unbounded)) {
                if !key.starts_with(prefix) {
                    break;
                }
                let common = delimiter.filter(|d| !d.is_empty()).and_then(|d| {
                    let end = key[prefix.len()..].find(d)? + prefix.len() + d.len();
                    Some(key[..end].to_owned())
                });
                // A page may end inside a common prefix; it is not listed again after it.
                if common.as_deref().is_some_and(|c| after.starts_with(c)) {
                    continue;
                }
                if entries.len() == max {
                    return (entries, true);
                }
                match common {
                    None => entries.push(Entry::Object(key.clone(), object.clone())),
                    Some(common) => {
                        skip_to = Some(format!("{common}\u{10FFFF}"));
                        entries.push(Entry::Prefix(common));
                        break;
                    }
                }
            }
            match skip_to {
                Some(next) => from = Bound::Excluded(next),
                None => return (entries, false),
            }
        }
    }
}

/// Everything the server holds.
pub struct Memory {
    buckets: HashMap<String, Bucket>,
    first: String,
    next: AtomicU64,
    pub behaviour: RwLock<Behaviour>,
    pub counters: Counters,
    /// The values of `x-amz-content-sha256` that are no hashes, and `sha256` for those that are.
    pub payload_hashes: Mutex<BTreeSet<String>>,
}

impl Memory {
    pub fn new(buckets: &[String]) -> Memory {
        Memory {
            first: buckets.first().cloned().unwrap_or_default(),
            buckets: buckets.iter().map(|name| (name.clone(), Bucket::default())).collect(),
            next: AtomicU64::new(1),
            behaviour: RwLock::default(),
            counters: Counters::default(),
            payload_hashes: Mutex::default(),
        }
    }

    pub fn bucket(&self, name: &str) -> Option<&Bucket> {
        self.buckets.get(name)
    }

    /// The bucket of raw access.
    pub fn raw(&self) -> &Bucket {
        self.buckets.get(&self.first).expect("a server has a first bucket")
    }

    /// A number no call of this server has seen before.
    pub fn fresh(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// An object of these bytes, written now.
    pub fn object(&self, bytes: Bytes, sse: StoredSse) -> Object {
        let e_tag = format!("{:08x}{:024x}", bytes.len() as u32, self.fresh());
        let labels = Labels::default();
        Object { bytes, e_tag, modified: now(), sse, tags: None, labels }
    }

    pub fn note_payload_hash(&self, value: &hyper::header::HeaderValue) {
        let value = value.to_str().unwrap_or_default();
        let is_hash = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
        let noted = if is_hash { "sha256" } else { value };
        self.payload_hashes.lock().insert(noted.to_owned());
    }

    /// Puts an object with what lies beside it, and with the MD5 of its bytes as ETag, as S3 has it.
    pub fn put_labelled(&self, key: &str, bytes: Bytes, labels: Labels, tags: Option<String>) {
        use md5::Digest;
        let digest = md5::Md5::digest(&bytes);
        let e_tag = digest.iter().map(|b| format!("{b:02x}")).collect();
        let object = self.object(bytes, StoredSse::default());
        let object = Object { e_tag, labels, tags, ..object };
        let _ = self.raw().put(key, object, &WriteCondition::None); // no condition, no refusal
    }

    pub fn put_raw(&self, key: &str, bytes: Bytes) {
        let sse = self.raw().get(key).map(|o| o.sse.clone()).unwrap_or_default();
        let object = self.object(bytes, sse);
        self.raw().put(key, object, &WriteCondition::None).expect("no condition was given");
    }

    pub fn flip_raw(&self, key: &str, at: usize) -> bool {
        let Some(object) = self.raw().get(key) else { return false };
        let mut bytes = object.bytes.to_vec();
        let Some(byte) = bytes.get_mut(at) else { return false };
        *byte ^= 1;
        self.put_raw(key, bytes.into());
        if let Some(changed) = self.raw().get(key) {
            let (tags, labels) = (object.tags.clone(), object.labels.clone());
            let object = Object { tags, labels, ..Object::clone(&changed) };
            let _ = self.raw().put(key, object, &WriteCondition::None); // no condition, no refusal
        }
        true
    }
}

fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// What was asked of the server, by kind of request; failed and refused ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub get: u64,
    pub head: u64,
    pub put: u64,
    pub copy: u64,
    pub list: u64,
    pub delete: u64,
    pub delete_many: u64,
    pub upload_create: u64,
    pub upload_part: u64,
    pub upload_complete: u64,
    pub upload_abort: u64,
    pub other: u64,
    /// Bytes of request bodies, by their announced lengths.
    pub bytes_in: u64,
    /// Bytes of answers' bodies, by their announced lengths.
    pub bytes_out: u64,
}

impl Counts {
    /// Requests of every kind.
    pub fn requests(&self) -> u64 {
        self.get
            + self.head
            + self.put
            + self.copy
            + self.list
            + self.delete
            + self.delete_many
            + self.upload_create
            + self.upload_part
            + self.upload_complete
            + self.upload_abort
            + self.other
    }

    /// What was asked since `earlier` was taken.
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            get: self.get - earlier.get,
            head: self.head - earlier.head,
            put: self.put - earlier.put,
            copy: self.copy - earlier.copy,
            list: self.list - earlier.list,
            delete: self.delete - earlier.delete,
            delete_many: self.delete_many - earlier.delete_many,
            upload_create: self.upload_create - earlier.upload_create,
            upload_part: self.upload_part - earlier.upload_part,
            upload_complete: self.upload_complete - earlier.upload_complete,
            upload_abort: self.upload_abort - earlier.upload_abort,
            other: self.other - earlier.other,
            bytes_in: self.bytes_in - earlier.bytes_in,
            bytes_out: self.bytes_out - earlier.bytes_out,
        }
    }
}

/// The counters behind [`Counts`].
#[derive(Default)]
pub struct Counters {
    counts: Mutex<Counts>,
}

impl Counters {
    pub fn request(&self, kind: RequestKind, bytes_in: u64) {
        let mut counts = self.counts.lock();
        counts.bytes_in += bytes_in;
        let counter = match kind {
            RequestKind::Get => &mut counts.get,
            RequestKind::Head => &mut counts.head,
            RequestKind::Put => &mut counts.put,
            RequestKind::Copy => &mut counts.copy,
            RequestKind::List => &mut counts.list,
            RequestKind::Delete => &mut counts.delete,
            RequestKind::DeleteMany => &mut counts.delete_many,
            RequestKind::UploadCreate => &mut counts.upload_create,
            RequestKind::UploadPart => &mut counts.upload_part,
            RequestKind::UploadComplete => &mut counts.upload_complete,
            RequestKind::UploadAbort => &mut counts.upload_abort,
            RequestKind::Other => &mut counts.other,
        };
        *counter += 1;
    }

    pub fn answer(&self, bytes_out: u64) {
        self.counts.lock().bytes_out += bytes_out;
    }

    pub fn snapshot(&self) -> Counts {
        *self.counts.lock()
    }
}
