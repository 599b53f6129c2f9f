//! The layer above which objects are plaintext and below which they are sealed messages.
//!
//! Maps names, ranges and sizes between the two, seals what is put, opens what is read, and
//! passes conditions and entity tags through. Every object is one message under a key and a
//! context made of its full path, so an object that was altered, cut, or put under another name
//! does not open: it is fetched once more (past the cache below), and then the read fails with
//! [`ErrorClass::Corrupt`] and one log line. Never writes to disk, never hands out a byte it
//! could not authenticate.
//!
//! What a reader may believe: every byte; and a *size* when the object's last chunk was opened,
//! which `head`, whole reads, suffix and open-ended reads do. A bounded read that ends before
//! the last chunk reports the size the store claims.

mod chain;
mod damage;
mod fetch;
mod manifest;
mod reseal;
mod underway;
mod upload;

pub use reseal::Resealed;

use super::error::{ErrorClass, StoreError, class};
use super::names::{META_PREFIX, SEGMENT_PREFIX};
use crate::base::Buffer;
use crate::base::one_line;
use crate::seal::offsets::{HEADER, cipher_len, plain_len};
use crate::seal::{OpenError, Opener, VolumeKeys};
use async_trait::async_trait;
use bytes::Bytes;
use chain::Chain;
use damage::{Damage, END};
use fetch::{Failed, Fetched};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use lru::LruCache;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use underway::Underway;

/// Objects whose opener is remembered, so that a ranged read need not fetch the header.
/// At most about 1 KiB each.
pub const OPENERS_MAX: usize = 8192;
/// Sealing and opening more bytes than this moves to a blocking thread: below it the hand-over
/// would cost as much as the work.
const INLINE_MAX: usize = 512 << 10;
/// How long an object that must be there is asked for again when the store says that it is not.
pub const PATIENCE_MAX: Duration = Duration::from_secs(4);
/// The same for metadata, which a compaction may have replaced meanwhile.
const PATIENCE_METADATA: Duration = Duration::from_millis(500);
/// The first pause; every further one is three times as long.
const ABSENT_PAUSE: Duration = Duration::from_millis(100);

/// With a `head`: only whether the object is there matters, and its size need not be proven.
#[derive(Clone, Copy, Debug)]
pub struct OnlyWhether;

pub use chain::ManifestRead;

/// Something below that keeps ciphertext and can be told that an object's is wrong.
pub trait Invalidate: Send + Sync + 'static {
    /// Drops whatever is kept of `location`; the next read comes from the store.
    fn invalidate(&self, location: &Path);
}

/// Something that can find out whether there are newer keys.
#[async_trait]
pub trait Renew: Send + Sync + 'static {
    /// Looks, and has the keys of this layer move on. True if there are newer keys which this layer
    /// cannot have: then `object` may be sealed in those, and is not called damaged.
    async fn renew(&self, object: &Path) -> bool;
}

/// The wrapper; see the module. Cloning shares everything.
#[derive(Clone)]
pub struct Sealed(Arc<Inner>, Arc<Chain>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    keys: VolumeKeys,
    known: Mutex<LruCache<Path, Known>>,
    cache: Option<Arc<dyn Invalidate>>,
    renew: OnceLock<Arc<dyn Renew>>,
    damage: Damage,
    underway: Underway,
    patience: Duration,
    part_size: upload::PartSize,
}

/// What is remembered of one version of an object.
#[derive(Clone)]
struct Known {
    opener: Opener,
    /// Of the version that carries this header; a different tag makes the opener void.
    e_tag: Option<String>,
    /// Ciphertext length, once the last chunk was opened (or sealed here).
    size_proven: Option<u64>,
}

impl Sealed {
    /// Wraps `store`; object names for keys and contexts are the paths given to this layer.
    pub fn new(store: Arc<dyn ObjectStore>, keys: VolumeKeys) -> Sealed {
        Sealed::with_cache(store, keys, None)
    }

    /// As [`Sealed::new`], over a `store` that contains `cache`: what does not open is dropped
    /// there before it is fetched again.
    pub fn with_cache(
        store: Arc<dyn ObjectStore>,
        keys: VolumeKeys,
        cache: Option<Arc<dyn Invalidate>>,
    ) -> Sealed {
        Sealed::with_patience(store, keys, cache, PATIENCE_MAX)
    }

    /// As [`Sealed::with_cache`], asking for what must be there, and is not, for at most `patience`.
    pub fn with_patience(
        store: Arc<dyn ObjectStore>,
        keys: VolumeKeys,
        cache: Option<Arc<dyn Invalidate>>,
        patience: Duration,
    ) -> Sealed {
        let openers_max = NonZeroUsize::new(OPENERS_MAX).expect("not zero");
        let known = Mutex::new(LruCache::new(openers_max));
        let patience = patience.min(PATIENCE_MAX);
        let (renew, damage) = (OnceLock::new(), Damage::default());
        let (underway, part_size) = (Underway::default(), upload::PartSize::default());
        let inner =
            Inner { store, keys, known, cache, renew, damage, underway, patience, part_size };
        Sealed(Arc::new(inner), Arc::default())
    }

    /// The same, with nothing known of the log of the metadata: to look at it from the beginning.
    pub fn apart(&self) -> Sealed {
        Sealed(self.0.clone(), Arc::default())
    }

    /// Whether the log of the metadata has gone on beyond what was read of it, so that what was read
    /// does not tell whether it is the same one.
    pub fn is_behind(&self) -> bool {
        self.1.is_behind()
    }

    /// Asks `renew`, from now on, before an object that does not open is called damaged: it may be
    /// sealed in an epoch that is newer than these keys. The first call counts.
    pub fn renew_by(&self, renew: Arc<dyn Renew>) {
        let _ = self.0.renew.set(renew);
    }

    /// Names of objects that did not open since the mount began (bounded, oldest dropped). While
    /// there is one, nothing may be deleted from the bucket.
    pub fn damaged(&self) -> Vec<Path> {
        self.0.damage.list()
    }

    /// Reads damaged objects again that are due at `now`, a few at a time: what proves to be well
    /// leaves [`Sealed::damaged`].
    pub async fn look_again(&self, now: Instant) {
        for (location, failed) in self.0.damage.due(now) {
            let options = match (failed.start, failed.end) {
                (0, END) => GetOptions::new(),
                (END, _) => GetOptions::new().with_head(true),
                (start, END) => GetOptions::new().with_range(Some(GetRange::Offset(start))),
                _ => GetOptions::new().with_range(Some(GetRange::Bounded(failed))),
            };
            if let Err(e) = self.get_opts(&location, options).await {
                if is_table(&location) && class(&e) == ErrorClass::NotFound {
                    // Perhaps replaced by a compaction; a read that needs it reports it again.
                    self.0.damage.disprove(&location, 0..END);
                }
                log::debug!("{location} is still damaged: {e}");
            }
        }
    }

    /// [`Sealed::fetch`], asked again while the store says that something is not there which must
    /// be: servers lose sight of an object for a moment.
    async fn fetch_patiently(
        &self,
        location: &Path,
        options: &GetOptions,
    ) -> std::result::Result<Fetched, Failed> {
        let begun = Instant::now();
        let patience = patience(location, self.0.patience);
        let mut pause = ABSENT_PAUSE;
        loop {
            let outcome = self.fetch(location, options).await;
            let absent =
                matches!(&outcome, Err(Failed::Store(e)) if class(e) == ErrorClass::NotFound);
            let left = patience.saturating_sub(begun.elapsed());
            if !absent || left.is_zero() || self.0.damage.knows(location) {
                return outcome;
            }
            log::debug!("{location} is not there, asking again");
            tokio::time::sleep(pause.min(left)).await;
            pause *= 3;
        }
    }

    /// What was read may have been taken for damaged before.
    fn disprove_damage(&self, location: &Path, fetched: &Fetched) {
        let Range { start, end } = fetched.range;
        let good = match (&fetched.plain, end == fetched.meta.size) {
            (None, _) => END..END,
            (_, true) => start..END,
            (_, false) => start..end,
        };
        self.0.damage.disprove(location, good);
    }

    fn opener(&self, location: &Path, header: &[u8; HEADER]) -> Option<Opener> {
        let opened = self.0.keys.object_opener(location.as_ref(), header);
        opened.ok().map(|(_, opener)| opener)
    }

    fn remember(&self, location: &Path, known: Known) {
        self.0.known.lock().put(location.clone(), known);
    }

    fn forget(&self, location: &Path) {
        self.0.known.lock().pop(location);
    }

    /// Seals a whole payload under the name `location`.
    async fn seal(&self, location: &Path, payload: PutPayload) -> Result<Bytes> {
        let place = match chain::number(location) {
            Some(number) => self.log_place(number, location).await?,
            None => self.0.keys.object(location.as_ref()),
        };
        let payload = match manifest::is(location) {
            true => self.with_anchor(payload).await?,
            false => payload,
        };
        on_fitting_thread(payload.content_length(), move || {
            let parts: Vec<&[u8]> = payload.iter().map(|part| &part[..]).collect();
            let len = cipher_len(payload.content_length() as u64) as usize;
            let mut out = Buffer::of(len);
            place.seal_to(&parts, &mut out);
            Ok(out.freeze())
        })
        .await
    }

    /// After our own put: its header is at hand, so the first read needs none.
    fn remember_put(&self, location: &Path, header: &Bytes, len: u64, put: &PutResult) {
        let header: Option<&[u8; HEADER]> = header.first_chunk();
        if let (Some(number), Some(header)) = (chain::number(location), header) {
            if let Err(why) = self.put_log(number, header) {
                self.0.damage.report(location, END..END, &why);
            }
            return self.forget(location);
        }
        match header.and_then(|header| self.opener(location, header)) {
            Some(opener) => {
                let e_tag = put.e_tag.clone();
                self.remember(location, Known { opener, e_tag, size_proven: Some(len) });
            }
            None => self.forget(location),
        }
    }

    fn to_result(&self, fetched: Fetched) -> GetResult {
        let body = stream::iter(fetched.plain.map(Ok)).boxed();
        GetResult {
            payload: GetResultPayload::Stream(body),
            meta: fetched.meta,
            range: fetched.range,
            attributes: Default::default(),
            extensions: Default::default(),
        }
    }
}

/// Runs CPU work on `bytes` bytes here, or on a blocking thread if it is long.
async fn on_fitting_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if bytes <= INLINE_MAX { work() } else { tokio::task::spawn_blocking(work).await? }
}

/// The listed size in plaintext. An object that no sealing could have made (the keyring, a
/// stranger's, a cut one) lists as empty; reading it fails.
fn listed(mut meta: ObjectMeta) -> ObjectMeta {
    meta.size = plain_len(meta.size).unwrap_or(0);
    if manifest::is(&meta.location) {
        meta.size = meta.size.saturating_sub(manifest::ANCHOR as u64);
    }
    meta
}

/// Whether it is a table of the metadata: the manifest names it.
fn is_table(location: &Path) -> bool {
    location.as_ref().starts_with("meta/compacted/")
}

/// Whether a missing object of this name is damage: others are asked for to see whether they
/// are there.
fn is_segment(location: &Path) -> bool {
    location.parts().next().is_some_and(|first| first.as_ref() == SEGMENT_PREFIX)
}

/// How long to ask for an object that is not there: rows name segments, the manifest names tables.
fn patience(location: &Path, most: Duration) -> Duration {
    let mut parts = location.parts();
    let first = parts.next();
    match (first.as_ref().map(|p| p.as_ref()), parts.next().as_ref().map(|p| p.as_ref())) {
        (Some(SEGMENT_PREFIX), _) => most,
        (Some(META_PREFIX), Some("compacted")) => most.min(PATIENCE_METADATA),
        _ => Duration::ZERO,
    }
}

/// The plaintext bytes that a read was about; only the end for a `head`.
fn asked(options: &GetOptions) -> Range<u64> {
    match (options.head, &options.range) {
        (true, _) | (_, Some(GetRange::Suffix(_))) => END..END,
        (_, None) => 0..END,
        (_, Some(GetRange::Offset(start))) => *start..END,
        (_, Some(GetRange::Bounded(range))) => range.clone(),
    }
}

/// Attributes and tags would reach the bucket in the clear.
fn refuse_clear(any: bool) -> Result<()> {
    match any {
        false => Ok(()),
        true => Err(Error::NotImplemented {
            operation: "attributes or tags (they cannot be sealed)".into(),
            implementer: "Sealed".into(),
        }),
    }
}

#[async_trait]
impl ObjectStore for Sealed {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        refuse_clear(!opts.attributes.is_empty() || !opts.tags.is_empty())?;
        let _underway = self.0.underway.begin(self.0.keys.epoch());
        let message = self.seal(location, payload).await?;
        let len = message.len() as u64;
        // A copy, so that the opener's memory does not hold on to the whole message.
        let header = Bytes::copy_from_slice(&message[..HEADER]);
        let outcome = self.0.store.put_opts(location, message.into(), opts).await;
        match &outcome {
            Ok(put) => self.remember_put(location, &header, len, put),
            Err(_) => self.forget(location),
        }
        outcome
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        refuse_clear(!opts.attributes.is_empty() || !opts.tags.is_empty())?;
        let inner = self.0.store.put_multipart_opts(location, opts).await?;
        Ok(upload::begin(self.clone(), location.clone(), inner))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head && options.extensions.get::<OnlyWhether>().is_some() {
            let meta = self.0.store.get_opts(location, options).await?.meta;
            let fetched = Fetched { plain: None, range: 0..0, meta: listed(meta) };
            return Ok(self.to_result(fetched));
        }
        match self.fetch_patiently(location, &options).await {
            Ok(fetched) => {
                self.disprove_damage(location, &fetched);
                Ok(self.to_result(fetched))
            }
            Err(Failed::Store(e)) => {
                // Only what metadata refers to is read: a segment that is gone was deleted.
                if (is_segment(location) || is_table(location)) && class(&e) == ErrorClass::NotFound
                {
                    self.0.damage.report(location, asked(&options), "it is not there");
                }
                Err(e)
            }
            Err(Failed::Alone(e)) => Err(e),
            Err(Failed::Damaged(_)) => {
                // Once more, from the store itself: the damage may be the cache's.
                self.forget(location);
                if let Some(cache) = &self.0.cache {
                    cache.invalidate(location);
                }
                let is_beyond = match self.0.renew.get() {
                    Some(renew) => renew.renew(location).await,
                    None => false,
                };
                match self.fetch(location, &options).await {
                    Ok(fetched) => {
                        self.disprove_damage(location, &fetched);
                        Ok(self.to_result(fetched))
                    }
                    Err(Failed::Store(e) | Failed::Alone(e)) => Err(e),
                    Err(Failed::Damaged(why)) => {
                        self.forget(location);
                        // What is altered behind its header is damaged whoever sealed it.
                        if !is_beyond || why != OpenError::Commitment.to_string() {
                            self.0.damage.report(location, asked(&options), &why);
                        }
                        let message =
                            format!("object {} is damaged: {why}", one_line(location.as_ref()));
                        Err(StoreError::new(ErrorClass::Corrupt, message).into_store("sealed"))
                    }
                }
            }
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let sealed = self.clone();
        let forgetting = locations.inspect_ok(move |location| sealed.forget(location)).boxed();
        self.0.store.delete_stream(forgetting)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.store.list(prefix).map_ok(listed).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.store.list_with_offset(prefix, offset).map_ok(listed).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut result = self.0.store.list_with_delimiter(prefix).await?;
        result.objects = result.objects.into_iter().map(listed).collect();
        Ok(result)
    }

    /// The name is part of what authenticates an object, so a copy is read, sealed again under
    /// the new name and put. It passes through this machine's memory whole.
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let plain = self.get(from).await?.bytes().await?;
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        self.put_opts(to, plain.into(), mode.into()).await.map(|_| ())
    }
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({})", self.0.store)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({:?})", self.0.store)
    }
}

#[cfg(test)]
#[path = "sealed_tests.rs"]
mod tests;
