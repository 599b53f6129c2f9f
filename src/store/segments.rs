//! Segments: the objects that hold file data, named by 128 random bits and written once.

use super::error::{ErrorClass, StoreError, class};
use crate::base::SegmentId;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, Result};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// What all segment names begin with.
pub const PREFIX: &str = "seg";

/// A segment as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Which one.
    pub id: SegmentId,
    /// Plaintext bytes, as the store claims (not proven).
    pub size: u64,
    /// When it was put, by the store's clock.
    pub last_modified: SystemTime,
}

/// Segments in a (sealed) store; cloning shares it.
#[derive(Clone)]
pub struct SegmentStore {
    store: Arc<dyn ObjectStore>,
    /// See [`SegmentStore::upload_max`].
    upload_max: Arc<AtomicU64>,
}

/// The smallest segments that a limit on uploads leads to, in plaintext bytes.
pub const UPLOAD_LEAST: u64 = 64 << 10;

impl SegmentStore {
    /// Over `store`, which is the sealed layer.
    pub fn new(store: Arc<dyn ObjectStore>) -> SegmentStore {
        SegmentStore { store, upload_max: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// The most plaintext that a new segment may have: halved with every one that was too large for
    /// the store or for a proxy before it, down to [`UPLOAD_LEAST`]. Holds for the life of the mount.
    pub fn upload_max(&self) -> u64 {
        self.upload_max.load(Ordering::Relaxed)
    }

    /// `seg/ab/abcdef…`: two hex digits of the id spread listings and local directories.
    pub fn name(id: SegmentId) -> Path {
        let hex = id.to_string();
        Path::from_iter([PREFIX, &hex[..2], &hex])
    }

    /// The id in a name made by [`SegmentStore::name`]; `None` for any other name.
    pub fn id(name: &Path) -> Option<SegmentId> {
        let hex = name.filename()?;
        if hex.len() != 32 || !hex.is_ascii() {
            return None;
        }
        let mut bytes = [0u8; 16];
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let id = SegmentId(bytes);
        (SegmentStore::name(id) == *name).then_some(id)
    }

    /// Puts a new segment whose plaintext is `parts` one after the other. When it returns, the
    /// store has it durably.
    ///
    /// # Errors
    /// The store's; [`ErrorClass::AlreadyExists`] if a *different* object has this name;
    /// [`ErrorClass::TooLarge`] after which [`SegmentStore::upload_max`] is smaller.
    pub async fn put(&self, id: SegmentId, parts: Vec<Bytes>) -> Result<()> {
        let payload = PutPayload::from_iter(parts);
        let name = SegmentStore::name(id);
        let len = payload.content_length() as u64;
        let outcome = self.store.put_opts(&name, payload, PutMode::Create.into()).await;
        if outcome.as_ref().is_err_and(|e| class(e) == ErrorClass::TooLarge) {
            let smaller = (len / 2).max(UPLOAD_LEAST);
            if self.upload_max.fetch_min(smaller, Ordering::Relaxed) > smaller {
                log::warn!(
                    "segments of {len} bytes are too large for the store or a proxy before it: {smaller} at most from now on"
                );
            }
        }
        outcome.map(drop)
    }

    /// Whether the store takes a segment at all: puts one of a byte, which may be there already.
    pub async fn put_least(&self, id: SegmentId) -> Result<()> {
        match self.put(id, vec![Bytes::from_static(b"0")]).await {
            Err(e) if class(&e) == ErrorClass::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    }

    /// Plaintext bytes `range` of a segment, all of them, authenticated.
    ///
    /// # Errors
    /// The store's; [`ErrorClass::Corrupt`] if the segment is damaged or too short, in which
    /// case the metadata that named the range is not of this segment.
    pub async fn get_range(&self, id: SegmentId, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let name = SegmentStore::name(id);
        let bytes = self.store.get_range(&name, range.clone()).await?;
        if bytes.len() as u64 != range.end - range.start {
            let message = format!("segment {id} ends before {range:?}");
            return Err(StoreError::new(ErrorClass::Corrupt, message).into_store("segments"));
        }
        Ok(bytes)
    }

    /// As [`SegmentStore::get_range`], but a range that reaches past the end of the segment
    /// brings what there is: for a reader that fetches around what it needs.
    pub async fn get_up_to(&self, id: SegmentId, range: Range<u64>) -> Result<Bytes> {
        self.store.get_range(&SegmentStore::name(id), range).await
    }

    /// Deletes a segment; one that is not there counts as deleted.
    pub async fn delete(&self, id: SegmentId) -> Result<()> {
        match self.store.delete(&SegmentStore::name(id)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// All segments in the bucket, in no order. Names that are no segment's are logged and left
    /// out.
    pub fn list(&self) -> BoxStream<'static, Result<SegmentMeta>> {
        self.store
            .list(Some(&Path::from(PREFIX)))
            .filter_map(|entry| async move {
                let meta = match entry {
                    Ok(meta) => meta,
                    Err(e) => return Some(Err(e)),
                };
                let Some(id) = SegmentStore::id(&meta.location) else {
                    log::warn!("{} is not a segment's name; ignored", meta.location);
                    return None;
                };
                Some(Ok(SegmentMeta {
                    id,
                    size: meta.size,
                    last_modified: meta.last_modified.into(),
                }))
            })
            .boxed()
    }
}

impl fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentStore({})", self.store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn a_segment_is_written_once_read_in_ranges_and_listed_by_id() {
        // Guards against a name that does not lead back to its id (then never collected), and
        // against a second put replacing what metadata already points into.
        let store = Arc::new(InMemory::new());
        let segments = SegmentStore::new(store.clone());
        let id = SegmentId([0xab; 16]);
        segments.put(id, vec!["hello ".into(), "world".into()]).await.unwrap();
        assert!(segments.put(id, vec!["other".into()]).await.is_err());
        assert_eq!(segments.get_range(id, 4..8).await.unwrap(), "o wo");
        let short = segments.get_range(id, 4..12).await.unwrap_err();
        assert_eq!(super::super::class(&short), ErrorClass::Corrupt);
        for foreign in ["seg/ab/x", "seg/cd/abababababababababababababababab"] {
            store.put(&Path::from(foreign), "x".into()).await.unwrap();
        }
        let listed: Vec<_> = segments.list().try_collect().await.unwrap();
        assert_eq!(listed.iter().map(|m| (m.id, m.size)).collect::<Vec<_>>(), [(id, 11)]);
        segments.delete(id).await.unwrap();
        segments.delete(id).await.unwrap();
    }
}
