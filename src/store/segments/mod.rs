//! Segments: the objects that hold file data, named by 128 bits and written once.
//!
//! A segment is its data, as they are or as compressed frames, and behind them whose they are
//! (FORMAT.md "Segments"). Callers name bytes by their place in the data; where those are stored
//! is found here.
//!
//! | file | holds |
//! | --- | --- |
//! | `compression` | whether new segments are compressed |
//! | `frames` | the frames of the data; compressing and decompressing |
//! | `layout` | summary, frame index and footer as bytes (pure) |
//! | `found` | the layouts that are remembered; the segments that are not what they should be |

mod compression;
mod found;
mod frames;
mod layout;

use super::error::{ErrorClass, StoreError, class};
use super::names::SEGMENT_PREFIX;
use crate::base::SegmentId;
use crate::seal::fill_random;
use async_trait::async_trait;
use bytes::Bytes;
use found::Found;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutPayload, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

pub use compression::Compression;
pub use frames::{FRAME, Frames};
pub use layout::{
    BYTES_PER_RANGE, FOOTER, Footer, Layout, Malformed, Owned, RANGES_MAX, decode_summary,
    encode_summary, has_frames, with_frames,
};

/// A segment as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Which one.
    pub id: SegmentId,
    /// Plaintext bytes of the object, as the store claims (not proven).
    pub size: u64,
    /// When it was put, by the store's clock.
    pub last_modified: SystemTime,
}

/// Something that knows how segments are laid out without reading them: their rows.
#[async_trait]
pub trait LayoutRows: Send + Sync + 'static {
    /// What the row of a segment keeps of its layout, with the bytes of its data; `None` if there
    /// is nothing, in which case its footer is read.
    ///
    /// # Errors
    /// The store cannot be reached: then its footer would not be there either.
    async fn layout_row(&self, id: SegmentId) -> Result<Option<(u64, Bytes)>>;
}

/// Segments in a (sealed) store; cloning shares it.
#[derive(Clone)]
pub struct SegmentStore(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    /// See [`SegmentStore::upload_max`].
    upload_max: AtomicU64,
    compression: Compression,
    rows: OnceLock<Arc<dyn LayoutRows>>,
    found: Found,
    put_data: AtomicU64,
    put_stored: AtomicU64,
    /// The last segment that was to be compressed did not become smaller: the next is likely to be
    /// of the same kind.
    in_vain: AtomicBool,
}

/// The smallest segments that a limit on uploads leads to, in bytes of data.
pub const UPLOAD_LEAST: u64 = 64 << 10;
/// What is read of the end of a segment of which nothing is known: the tail of most.
const TAIL_GUESS: u64 = 64 << 10;
/// Data of a segment that tell something about the next.
const IN_VAIN_MIN: u64 = 1 << 20;
/// Decompressing more than this moves to a blocking thread.
const INLINE_MAX: u64 = 512 << 10;

/// A segment that opens and is not in the format.
fn malformed(id: SegmentId, why: Malformed) -> object_store::Error {
    StoreError::new(ErrorClass::Corrupt, format!("segment {id}: {why}")).into_store("segments")
}

impl SegmentStore {
    /// Over `store`, which is the sealed layer. New segments are not compressed.
    pub fn new(store: Arc<dyn ObjectStore>) -> SegmentStore {
        SegmentStore::compressing(store, Compression::None)
    }

    /// As [`SegmentStore::new`], with new segments stored so.
    pub fn compressing(store: Arc<dyn ObjectStore>, compression: Compression) -> SegmentStore {
        SegmentStore(Arc::new(Inner {
            store,
            upload_max: AtomicU64::new(u64::MAX),
            compression,
            rows: OnceLock::new(),
            found: Found::default(),
            put_data: AtomicU64::new(0),
            put_stored: AtomicU64::new(0),
            in_vain: AtomicBool::new(false),
        }))
    }

    /// Asks `rows`, from now on, before it reads a footer. The first call counts.
    pub fn ask(&self, rows: Arc<dyn LayoutRows>) {
        let _ = self.0.rows.set(rows);
    }

    /// How new segments are stored.
    pub fn compression(&self) -> Compression {
        self.0.compression
    }

    /// Segments that open and do not hold what they should; nothing may be deleted while there is
    /// one. Kept until the mount ends.
    pub fn malformed(&self) -> Vec<SegmentId> {
        self.0.found.malformed()
    }

    /// Bytes of data that were put, and what they take as they are stored.
    pub fn put_bytes(&self) -> (u64, u64) {
        (self.0.put_data.load(Ordering::Relaxed), self.0.put_stored.load(Ordering::Relaxed))
    }

    /// A name for a new segment.
    pub fn new_id(&self) -> SegmentId {
        let mut id = [0; 16];
        fill_random(&mut id);
        with_frames(SegmentId(id), self.0.compression != Compression::None)
    }

    /// The most data that a new segment may have: halved with every one that was too large for
    /// the store or for a proxy before it, down to [`UPLOAD_LEAST`]. Holds for the life of the mount.
    pub fn upload_max(&self) -> u64 {
        self.0.upload_max.load(Ordering::Relaxed)
    }

    /// `seg/ab/abcdef…`: two hex digits of the id spread listings and local directories.
    pub fn name(id: SegmentId) -> Path {
        let hex = id.to_string();
        Path::from_iter([SEGMENT_PREFIX, &hex[..2], &hex])
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

    /// Puts a new segment: its data are `data` one after the other, which are `ranges` of files in
    /// the same order. When it returns, the store has it durably.
    ///
    /// # Errors
    /// The store's; [`ErrorClass::AlreadyExists`] if a *different* object has this name;
    /// [`ErrorClass::TooLarge`] after which [`SegmentStore::upload_max`] is smaller.
    pub async fn put(
        &self,
        id: SegmentId,
        data: Vec<Bytes>,
        ranges: &[Owned],
    ) -> Result<Arc<Layout>> {
        let (parts, layout) = match (self.0.compression, has_frames(id)) {
            (Compression::Zstd { level }, true) => {
                let level = i32::from(level);
                let ranges = ranges.to_vec();
                let how = Some((level, self.0.in_vain.load(Ordering::Relaxed)));
                let (parts, layout) =
                    tokio::task::spawn_blocking(move || with_tail(data, &ranges, how)).await?;
                let in_vain =
                    layout.stored_len() == layout.data_len && layout.data_len > IN_VAIN_MIN;
                self.0.in_vain.store(in_vain, Ordering::Relaxed);
                (parts, layout)
            }
            _ => with_tail(data, ranges, None),
        };
        assert_eq!(layout.frames.is_some(), has_frames(id), "ids are this store's");
        let payload = PutPayload::from_iter(parts);
        let name = SegmentStore::name(id);
        let len = payload.content_length() as u64;
        let outcome = self.0.store.put_opts(&name, payload, PutMode::Create.into()).await;
        if outcome.as_ref().is_err_and(|e| class(e) == ErrorClass::TooLarge) {
            let smaller = (len / 2).max(UPLOAD_LEAST);
            if self.0.upload_max.fetch_min(smaller, Ordering::Relaxed) > smaller {
                log::warn!(
                    "segments of {len} bytes are too large for the store or a proxy before it: {smaller} at most from now on"
                );
            }
        }
        outcome?;
        self.0.put_data.fetch_add(layout.data_len, Ordering::Relaxed);
        self.0.put_stored.fetch_add(layout.stored_len(), Ordering::Relaxed);
        let layout = Arc::new(layout);
        self.0.found.remember(id, layout.clone());
        Ok(layout)
    }

    /// Whether the store takes a segment at all: puts one of no data, which may be there already.
    pub async fn put_least(&self, id: SegmentId) -> Result<()> {
        match self.put(id, Vec::new(), &[]).await {
            Err(e) if class(&e) == ErrorClass::AlreadyExists => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Bytes `range` of the data of a segment, all of them, authenticated.
    ///
    /// # Errors
    /// The store's; [`ErrorClass::Corrupt`] if the segment is damaged or too short, in which
    /// case the metadata that named the range is not of this segment.
    pub async fn get_range(&self, id: SegmentId, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (bytes, _) = self.get_up_to(id, range.clone()).await?;
        if bytes.len() as u64 != range.end - range.start {
            let message = format!("segment {id} ends before {range:?}");
            return Err(StoreError::new(ErrorClass::Corrupt, message).into_store("segments"));
        }
        Ok(bytes)
    }

    /// As [`SegmentStore::get_range`], but a range that reaches past the end of the segment
    /// brings what there is: for a reader that fetches around what it needs. (Of a segment
    /// without frames that may be what follows its data, which no extent refers to.) Also returns
    /// where that end is.
    pub async fn get_up_to(&self, id: SegmentId, range: Range<u64>) -> Result<(Bytes, u64)> {
        let name = SegmentStore::name(id);
        if !has_frames(id) {
            let options = GetOptions::new().with_range(Some(GetRange::Bounded(range)));
            let got = self.0.store.get_opts(&name, options).await?;
            let size = got.meta.size;
            return Ok((got.bytes().await?, size));
        }
        let layout = self.layout(id).await?;
        let (stored, size) = (layout.stored(range.clone()), layout.data_len);
        if stored.is_empty() {
            return Ok((Bytes::new(), size));
        }
        let bytes = self.0.store.get_range(&name, stored).await?;
        let len = range.end.min(size) - range.start.min(size);
        let open = move || match &layout.frames {
            Some(frames) => frames.open(&range, &bytes),
            None => Ok(bytes),
        };
        let opened = match len > INLINE_MAX {
            true => tokio::task::spawn_blocking(open).await?,
            false => open(),
        };
        opened.map(|bytes| (bytes, size)).map_err(|why| self.call_malformed(id, why))
    }

    fn call_malformed(&self, id: SegmentId, why: Malformed) -> object_store::Error {
        self.0.found.call_malformed(id, why);
        malformed(id, why)
    }

    /// How a segment is laid out: remembered, from its row, or else from its footer.
    ///
    /// # Errors
    /// The store's; [`ErrorClass::Corrupt`].
    pub async fn layout(&self, id: SegmentId) -> Result<Arc<Layout>> {
        if let Some(layout) = self.0.found.get(id) {
            return Ok(layout);
        }
        let row = match self.0.rows.get() {
            Some(rows) => rows.layout_row(id).await?,
            None => None,
        };
        let layout = match row.map(|(data_len, row)| Layout::from_row(id, data_len, &row)) {
            Some(Ok(layout)) => layout,
            Some(Err(why)) => {
                log::warn!("the row of segment {id}: {why}; its footer is read instead");
                self.tail(id).await?.layout
            }
            None => self.tail(id).await?.layout,
        };
        let layout = Arc::new(layout);
        self.0.found.remember(id, layout.clone());
        Ok(layout)
    }

    /// How a segment is laid out and whose its data are, from its own bytes; one or two requests.
    ///
    /// # Errors
    /// As [`SegmentStore::layout`].
    pub async fn contents(&self, id: SegmentId) -> Result<(Layout, Vec<Owned>)> {
        let Tail { footer, layout, bytes } = self.tail(id).await?;
        let summary = &bytes[..footer.summary_len as usize];
        match decode_summary(summary, footer.ranges, footer.data_len) {
            Ok(ranges) => Ok((layout, ranges)),
            Err(why) => Err(self.call_malformed(id, why)),
        }
    }

    async fn tail(&self, id: SegmentId) -> Result<Tail> {
        let guess = match self.0.found.get(id) {
            Some(layout) => u64::from(layout.tail_len),
            None => TAIL_GUESS,
        };
        let (size, mut bytes) = self.suffix(id, guess).await?;
        let footer = match bytes.last_chunk::<FOOTER>().map(Footer::decode) {
            Some(Ok(footer)) => footer,
            Some(Err(why)) => return Err(self.call_malformed(id, why)),
            None => return Err(self.call_malformed(id, Malformed("it has no footer"))),
        };
        let tail_len = u64::from(footer.tail_len());
        if tail_len > size {
            return Err(self.call_malformed(id, Malformed("it is shorter than its footer says")));
        }
        if tail_len > bytes.len() as u64 {
            (_, bytes) = self.suffix(id, tail_len).await?;
        }
        let bytes = bytes.slice(bytes.len() - tail_len as usize..);
        let index = &bytes[footer.summary_len as usize..][..footer.index_len as usize];
        match footer.layout(id, size, index) {
            Ok(layout) => Ok(Tail { footer, layout, bytes }),
            Err(why) => Err(self.call_malformed(id, why)),
        }
    }

    /// The plaintext bytes of the object of a segment, and the last `len` of them (or all).
    async fn suffix(&self, id: SegmentId, len: u64) -> Result<(u64, Bytes)> {
        let options = GetOptions::new().with_range(Some(GetRange::Suffix(len)));
        let got = self.0.store.get_opts(&SegmentStore::name(id), options).await?;
        let (size, wanted) = (got.meta.size, got.meta.size.min(len));
        let bytes = got.bytes().await?;
        if bytes.len() as u64 != wanted {
            return Err(self.call_malformed(id, Malformed("it has another length than it says")));
        }
        Ok((size, bytes))
    }

    /// Deletes a segment; one that is not there counts as deleted.
    pub async fn delete(&self, id: SegmentId) -> Result<()> {
        match self.0.store.delete(&SegmentStore::name(id)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// All segments in the bucket, in no order. Names that are no segment's are logged and left
    /// out.
    pub fn list(&self) -> BoxStream<'static, Result<SegmentMeta>> {
        self.0
            .store
            .list(Some(&Path::from(SEGMENT_PREFIX)))
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

/// The end of a segment: summary, index and footer.
struct Tail {
    footer: Footer,
    layout: Layout,
    bytes: Bytes,
}

/// The plaintext of a segment, in parts, and how it is laid out. If it is to have frames, at which
/// level they are compressed, and whether that is likely to be wasted.
fn with_tail(data: Vec<Bytes>, ranges: &[Owned], how: Option<(i32, bool)>) -> (Vec<Bytes>, Layout) {
    let data_len = data.iter().map(|part| part.len() as u64).sum();
    let owned: u64 = ranges.iter().map(|range| range.len).sum();
    assert_eq!(owned, data_len, "a summary is of all data");
    let (frames, mut parts) = match how {
        None => (None, data),
        Some((level, doubt)) => {
            let whole = match &data[..] {
                [one] => one.clone(),
                parts => Bytes::from(parts.concat()),
            };
            let (frames, parts) = Frames::compress(&whole, level, doubt);
            (Some(frames), parts)
        }
    };
    let mut tail = encode_summary(ranges);
    let summary_len = tail.len() as u32;
    if let Some(frames) = &frames {
        frames.encode(&mut tail);
    }
    let footer = Footer {
        frames: frames.is_some(),
        ranges: ranges.len() as u32,
        data_len,
        stored_len: parts.iter().map(|part| part.len() as u64).sum(),
        summary_len,
        index_len: tail.len() as u32 - summary_len,
    };
    tail.extend_from_slice(&footer.encode());
    let layout = Layout { data_len, tail_len: tail.len() as u32, frames };
    parts.push(tail.into());
    (parts, layout)
}

impl fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentStore({})", self.0.store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ino;
    use futures::TryStreamExt;
    use object_store::memory::InMemory;

    fn of_one_file(len: usize) -> [Owned; 1] {
        [Owned { ino: Ino(7), incarnation: 0, offset: 0, len: len as u64 }]
    }

    #[tokio::test]
    async fn a_segment_is_written_once_read_in_ranges_and_listed_by_id() {
        // Guards against a name that does not lead back to its id (then never collected), and
        // against a second put replacing what metadata already points into.
        let store = Arc::new(InMemory::new());
        let segments = SegmentStore::new(store.clone());
        let id = SegmentId([0xaa; 16]);
        segments.put(id, vec!["hello ".into(), "world".into()], &of_one_file(11)).await.unwrap();
        assert!(segments.put(id, vec!["other".into()], &of_one_file(5)).await.is_err());
        assert_eq!(segments.get_range(id, 4..8).await.unwrap(), "o wo");
        let short = segments.get_range(id, 4..1200).await.unwrap_err();
        assert_eq!(class(&short), ErrorClass::Corrupt);
        for foreign in ["seg/ab/x", "seg/cd/abababababababababababababababab"] {
            store.put(&Path::from(foreign), "x".into()).await.unwrap();
        }
        let listed: Vec<_> = segments.list().try_collect().await.unwrap();
        let tail = 4 + FOOTER as u64;
        assert_eq!(listed.iter().map(|m| (m.id, m.size)).collect::<Vec<_>>(), [(id, 11 + tail)]);
        segments.delete(id).await.unwrap();
        segments.delete(id).await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_knows_nothing_finds_out_from_the_footer() {
        // Guards against a segment that only its writer can read: frames and owners are found
        // by one that has the object alone, also where the tail is longer than a first guess.
        let store = Arc::new(InMemory::new());
        for compression in [Compression::None, Compression::Zstd { level: 3 }] {
            let writer = SegmentStore::compressing(store.clone(), compression);
            let id = writer.new_id();
            assert_eq!(has_frames(id), compression != Compression::None);
            let data = Bytes::from(vec![b'x'; 1 << 20]);
            let owned =
                |n: u64| Owned { ino: Ino(n * 1000 + 1), incarnation: 3, offset: n, len: 64 };
            let ranges: Vec<_> = (0..1 << 14).map(owned).collect();
            let layout = writer.put(id, vec![data.clone()], &ranges).await.unwrap();
            assert!(u64::from(layout.tail_len) > TAIL_GUESS);
            let reader = SegmentStore::new(store.clone());
            let got = reader.get_range(id, 100_000..900_000).await.unwrap();
            assert!(got == data[100_000..900_000]);
            assert_eq!(reader.contents(id).await.unwrap(), ((*layout).clone(), ranges));
            let stored = store.head(&SegmentStore::name(id)).await.unwrap().size;
            assert_eq!(layout.object_len(), stored);
            assert_eq!(stored < 200_000, compression != Compression::None, "{stored} bytes");
            let (past, _) = reader.get_up_to(id, (1 << 20) - 10..2 << 20).await.unwrap();
            assert_eq!(
                past.len() as u64,
                10 + if has_frames(id) { 0 } else { u64::from(layout.tail_len) }
            );
            assert!(reader.malformed().is_empty());
        }
    }

    #[tokio::test]
    async fn a_segment_that_opens_and_is_not_one_is_remembered_as_damage() {
        // Guards against memory that an authentic segment of a broken writer asks for, and
        // against garbage that is collected while there is one.
        let store = Arc::new(InMemory::new());
        let segments = SegmentStore::new(store.clone());
        let id = SegmentId([0xab; 16]);
        store.put(&SegmentStore::name(id), vec![1; 5000].into()).await.unwrap();
        let refused = segments.get_range(id, 0..10).await.unwrap_err();
        assert_eq!(class(&refused), ErrorClass::Corrupt, "{refused}");
        assert_eq!(segments.malformed(), [id]);
    }
}
