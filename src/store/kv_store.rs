//! The store as SlateDB sees it: tells it which errors will not get better, and which objects are
//! its own.
//!
//! SlateDB retries every error but a few for ever. A tampered object, or one that is larger than a
//! proxy takes, would then look like a hang; this wrapper marks those so that the operation fails
//! at once, and remembers how large objects may be.
//!
//! When a create failed and is tried again, the object may be there by the first try, whose answer
//! was lost. SlateDB tells by an attribute, which cannot be sealed and so is not kept; and it takes
//! an object of its log that is there already for that of a writer who has overtaken it. So
//! what is there is compared with what was to be written.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryFutureExt};
use lru::LruCache;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};
use parking_lot::Mutex;
use slatedb::object_store_tag::{ObjectStoreCallTag, SstType, TableStoreKind};
use slatedb_common::retry::NonRetryable;
use tokio::sync::watch;

use super::bounds::refuse_endless;
use super::error::{ErrorClass, class, sentence, told};
use super::kv::KvError;
use super::kv::answers::{Answers, log_number, refuse_gaps};
use super::names::is_odd;
use super::rope::Rope;

/// Bytes of a table where nothing is known of a limit.
const TABLE_BYTES: usize = 16 << 20;
/// Bytes of rows that are gathered in memory for a table of level 0. There they take four times as much,
/// twice while one table is being written.
pub(super) const MEMTABLE_BYTES: usize = 8 << 20;
/// The smallest tables that a limit leads to.
const TABLE_LEAST: u64 = 128 << 10;

/// Bytes of the parts in which large tables go, at most.
const PART_MOST: usize = 8 << 20;

/// Creates whose outcome is unclear that are remembered.
const UNCLEAR_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// How large the objects of the database may be, learned from those that were refused (413).
#[derive(Debug)]
pub(super) struct UploadLimit {
    /// Bytes, and whether they have fallen since tables were last made to fit.
    learned: watch::Sender<(u64, bool)>,
}

impl UploadLimit {
    /// What a table should not exceed much: it may be larger by what one commit adds.
    pub(super) fn table_bytes(&self) -> usize {
        (self.learned.borrow().0 as usize).min(TABLE_BYTES)
    }

    /// The same of a table of level 0.
    pub(super) fn memtable_bytes(&self) -> usize {
        self.table_bytes().min(MEMTABLE_BYTES)
    }

    fn was_too_large(&self, bytes: u64) {
        // Each step is a database that is opened again, and a table comes out larger than asked for.
        let fits = (bytes / 4).max(TABLE_LEAST);
        let lowered = self.learned.send_if_modified(|(limit, lowered)| {
            let falls = fits < *limit;
            if falls {
                (*limit, *lowered) = (fits, true);
            }
            falls
        });
        if lowered {
            log::warn!(
                "objects of {bytes} bytes are too large for the store or a proxy before it: metadata tables are kept to {} bytes from now on",
                self.table_bytes()
            );
        }
    }

    /// Learns from the outcome of an upload of so many bytes.
    fn note<T>(&self, bytes: usize, outcome: &Result<T>) {
        if outcome.as_ref().is_err_and(|e| class(e) == ErrorClass::TooLarge) {
            self.was_too_large(bytes as u64);
        }
    }

    /// Whether it has fallen since [`UploadLimit::take_up`].
    pub(super) fn is_lowered(&self) -> bool {
        self.learned.borrow().1
    }

    /// Waits until it has.
    pub(super) async fn until_lowered(&self) {
        // The sender is part of `self`: it cannot be gone.
        let _ = self.learned.subscribe().wait_for(|(_, lowered)| *lowered).await;
    }

    /// Tables will be made to fit it as it is now.
    pub(super) fn take_up(&self) {
        self.learned.send_modify(|(_, lowered)| *lowered = false);
    }
}

/// An [`ObjectStore`] that marks errors which retrying cannot mend, and knows its own creates.
pub(super) struct SlateStore {
    inner: Arc<dyn ObjectStore>,
    /// Names whose last create failed, but may have been done. Most are tried again at once; of those
    /// that never are, the oldest are forgotten.
    unclear: Mutex<LruCache<Path, ()>>,
    limit: Arc<UploadLimit>,
    answers: Arc<Answers>,
    trouble: Arc<Trouble>,
}

impl SlateStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        let learned = watch::Sender::new((TABLE_BYTES as u64, false));
        let limit = Arc::new(UploadLimit { learned });
        let unclear = Mutex::new(LruCache::new(UNCLEAR_MAX));
        SlateStore { inner, unclear, limit, answers: Arc::default(), trouble: Arc::default() }
    }

    /// What is learned of the size that objects may have.
    pub(super) fn limit(&self) -> Arc<UploadLimit> {
        self.limit.clone()
    }

    /// The same store, for what looks at older manifests too.
    pub(super) fn aside(&self) -> SlateStore {
        let answers = Arc::new(Answers::aside());
        let (inner, limit) = (self.inner.clone(), self.limit.clone());
        let unclear = Mutex::new(LruCache::new(UNCLEAR_MAX));
        SlateStore { inner, unclear, limit, answers, trouble: self.trouble.clone() }
    }

    /// What it keeps of what it reads.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// The objects of the log, as the store lists them.
    pub(super) async fn listed_log(&self) -> Result<Vec<ObjectMeta>> {
        let listing = self.inner.list(Some(&Path::from("meta/wal"))).enumerate();
        listing.map(|(n, one)| refuse_endless(n).and(one)).try_collect().await
    }

    /// Bytes of the objects of the log behind object `after`, as it was listed when the database was
    /// opened, or else as it is listed now.
    pub(super) async fn log_bytes(&self, after: u64) -> Result<u64, KvError> {
        if let Some(bytes) = self.answers.log_bytes(after) {
            return Ok(bytes);
        }
        let listed = self.listed_log().await.map_err(|e| KvError::Unavailable(told(&e)))?;
        let is_behind = |one: &&ObjectMeta| log_number(&one.location).is_some_and(|n| n > after);
        Ok(listed.iter().filter(is_behind).map(|one| one.size).sum())
    }

    /// See [`refuse_gaps`].
    pub(super) async fn refuse_gaps(&self, listed: &[ObjectMeta], after: u64) -> Result<()> {
        refuse_gaps(&*self.inner, listed, after).await
    }

    /// Marks what asking again does not mend; while the database is opened, also all that was asked
    /// again below already: whoever waits is told at once.
    fn mark(&self, e: Error) -> Error {
        self.trouble.note(&e);
        match self.answers.is_opening() && is_refusal(&e) {
            true => marked(e),
            false => mark(e),
        }
    }

    /// The same for a read of a table that somebody waits for, and nothing but that read.
    fn mark_read(&self, e: Error) -> Error {
        match class(&e) {
            ErrorClass::Foreign => self.mark(e),
            _ if is_refusal(&e) => {
                self.trouble.note(&e);
                marked(e)
            }
            _ => self.mark(e),
        }
    }

    /// What went wrong last.
    pub(super) fn trouble(&self) -> Arc<Trouble> {
        self.trouble.clone()
    }

    /// The result of a create that found `location` there: its own success if the object holds
    /// just `payload`, which nobody else's does, else `refusal`.
    async fn own(
        &self,
        location: &Path,
        payload: &PutPayload,
        refusal: Error,
    ) -> Result<PutResult> {
        let found = match self.inner.get(location).await {
            Ok(found) => found,
            Err(e) if class(&e) == ErrorClass::NotFound => return Err(refusal),
            Err(e) => return Err(e),
        };
        let ObjectMeta { e_tag, version, .. } = found.meta.clone();
        match Rope::collect(found).await?.equals(payload) {
            true => Ok(PutResult { e_tag, version, extensions: Default::default() }),
            false => Err(refusal),
        }
    }
}

impl fmt::Display for SlateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for-metadata({})", self.inner)
    }
}

fn marked(e: Error) -> Error {
    Error::Generic { store: "sealfs", source: Box::new(NonRetryable(Box::new(e))) }
}

fn mark(e: Error) -> Error {
    match class(&e) {
        ErrorClass::Corrupt | ErrorClass::TooLarge | ErrorClass::Behind => marked(e),
        _ => e,
    }
}

/// Whether an error is an answer, or what stands in the place of one: not an absence, nor a
/// condition, which SlateDB asks about, nor what it tries another way, nor a store that is busy or away.
fn is_refusal(e: &Error) -> bool {
    let is_tried_otherwise = matches!(e, Error::NotImplemented { .. } | Error::NotSupported { .. });
    !is_tried_otherwise
        && !matches!(
            class(e),
            ErrorClass::NotFound
                | ErrorClass::Precondition
                | ErrorClass::AlreadyExists
                | ErrorClass::Throttled
                | ErrorClass::Transport
        )
}

/// Whether it is a read of a table for somebody who reads rows.
fn is_for_a_reader(options: &GetOptions) -> bool {
    ObjectStoreCallTag::from_extensions(&options.extensions).is_some_and(|tag| {
        tag.sst_type == SstType::Compacted
            && matches!(tag.kind, TableStoreKind::Main | TableStoreKind::Reader)
    })
}

/// What went wrong last, for whoever has waited for nothing and wants to know why.
#[derive(Default)]
pub(super) struct Trouble(Mutex<Option<(Instant, String)>>);

impl Trouble {
    fn note(&self, e: &Error) {
        let expected = [ErrorClass::NotFound, ErrorClass::Precondition, ErrorClass::AlreadyExists];
        if !expected.contains(&class(e)) {
            *self.0.lock() = Some((Instant::now(), sentence(e)));
        }
    }

    /// What it was, if it was after `begun`.
    pub(super) fn since(&self, begun: Instant) -> Option<String> {
        self.0.lock().as_ref().filter(|(at, _)| *at >= begun).map(|(_, what)| what.clone())
    }
}

impl fmt::Debug for SlateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlateStore({:?})", self.inner)
    }
}

/// An upload in parts whose refusals are learned from.
#[derive(Debug)]
struct Upload {
    inner: Box<dyn MultipartUpload>,
    limit: Arc<UploadLimit>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        // The layers below cut it into their own parts.
        let bytes = data.content_length().min(PART_MOST);
        let limit = self.limit.clone();
        let put = self.inner.put_part(data);
        put.inspect(move |outcome| limit.note(bytes, outcome)).map_err(mark).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let outcome = self.inner.complete().await;
        self.limit.note(PART_MOST, &outcome);
        outcome.map_err(mark)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for SlateStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        // An empty object is how a writer overtakes others: nobody's can be told from another's.
        let creates = opts.mode == PutMode::Create && payload.content_length() > 0;
        let outcome = self.inner.put_opts(location, payload.clone(), opts).await;
        self.limit.note(payload.content_length(), &outcome);
        let refused = |e| class(e).is_unmet_condition();
        self.answers.changed(location, outcome.as_ref().err().is_some_and(refused));
        let outcome = match outcome {
            Err(refusal) if creates && class(&refusal) == ErrorClass::AlreadyExists => {
                let unclear = self.unclear.lock().contains(location);
                if unclear { self.own(location, &payload, refusal).await } else { Err(refusal) }
            }
            Err(e) => {
                if creates && !matches!(e, Error::NotImplemented { .. }) {
                    self.unclear.lock().put(location.clone(), ());
                }
                Err(e)
            }
            Ok(put) => Ok(put),
        };
        if outcome.is_ok() {
            self.unclear.lock().pop(location);
        }
        if let Ok(put) = &outcome {
            self.answers.own(location, &payload, put);
        }
        outcome.map_err(|e| self.mark(e))
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await;
        let inner = inner.map_err(|e| self.mark(e))?;
        Ok(Box::new(Upload { inner, limit: self.limit.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let for_a_reader = is_for_a_reader(&options);
        let got = self.answers.get(&*self.inner, location, options).await;
        got.map_err(|e| if for_a_reader { self.mark_read(e) } else { self.mark(e) })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await.map_err(|e| self.mark(e))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = self.answers.list(self.inner.clone(), prefix).enumerate();
        let (answers, trouble) = (self.answers.clone(), self.trouble.clone());
        let bounded = listing.map(move |(n, one)| {
            refuse_endless(n).and(one).map_err(|e| {
                trouble.note(&e);
                let is_final = answers.is_opening() && is_refusal(&e);
                if is_final { marked(e) } else { mark(e) }
            })
        });
        // No database names its objects so.
        let is_ours = |one: &Result<ObjectMeta>| !one.as_ref().is_ok_and(|o| is_odd(&o.location));
        bounded.filter(move |one| futures::future::ready(is_ours(one))).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await.map_err(|e| self.mark(e))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await.map_err(|e| self.mark(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::local::LocalFileSystem;

    #[tokio::test]
    async fn of_creates_that_are_never_tried_again_only_the_last_are_remembered() {
        // Guards against memory that grows with every outage, since each name of the log is a new one.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = LocalFileSystem::new_with_prefix(dir.path()).expect("a store");
        let store = SlateStore::new(Arc::new(files));
        let name = |n: usize| Path::from(format!("wal/{n}"));
        let create = async |n: usize, body: &'static str| {
            store.put_opts(&name(n), body.into(), PutMode::Create.into()).await
        };
        // No directory can be made in the place of a file.
        std::fs::write(dir.path().join("wal"), "").expect("writes");
        let last = 3 * UNCLEAR_MAX.get();
        for n in 0..=last {
            assert_eq!(
                create(n, "ours").await.map_err(|e| class(&e)).err(),
                Some(ErrorClass::Other)
            );
        }
        assert_eq!(store.unclear.lock().len(), UNCLEAR_MAX.get());
        // What is there is its own if it is just that, and if its create was not forgotten.
        std::fs::remove_file(dir.path().join("wal")).expect("removes");
        for n in [0, last - 1, last] {
            store.inner.put(&name(n), "ours".into()).await.expect("puts");
        }
        assert!(create(last, "ours").await.is_ok());
        for (n, body) in [(last - 1, "theirs"), (0, "ours")] {
            let refused = create(n, body).await.map_err(|e| class(&e)).err();
            assert_eq!(refused, Some(ErrorClass::AlreadyExists), "{n}");
        }
    }
}
