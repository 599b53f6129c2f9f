//! Deadlines, backoff and the end of ambiguity: the layer that makes a flaky store a slow one.
//!
//! Every request has a time limit per attempt and one in all; what can be retried is (see
//! [`ErrorClass`](super::ErrorClass)), with exponential backoff and full jitter. Bodies are
//! collected inside the attempt, so that one cut off in the middle is fetched again rather than
//! handed up. A conditional put that was answered by silence is settled by reading back and
//! comparing. Also says whether the store is reachable ([`Health`]). Sits directly above the
//! adapter (S3, file, memory); counts requests in [`RequestStats`].

mod attempt;
mod batch;
mod refused;
mod upload;

pub use refused::Refusals;

use super::bounds::refuse_larger;
use super::error::{ErrorClass, StoreError, class};
use super::limits::{Limits, SMALL_BODY, paced};
use super::rope::Rope;
use super::stats::{RequestKind, RequestStats};
use crate::base::one_line;
use async_trait::async_trait;
use attempt::{Attempts, Budget};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{SemaphorePermit, watch};
use tokio::time::Instant;

/// Largest body collected in memory by one request; longer ones are fetched in pieces of
/// [`PIECE`] bytes.
pub const BUFFER_MAX: u64 = 64 << 20;
/// Size of the pieces of a body longer than [`BUFFER_MAX`].
pub const PIECE: u64 = 8 << 20;
/// Bytes per second below which a transfer counts as stuck: limits grow by length over this.
pub const SLOWEST_RATE: u64 = 64 << 10;
/// Objects deleted by one request (the limit of S3 `DeleteObjects`).
const DELETE_BATCH: usize = 1000;

/// Whether the store could be reached when last tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The last request was answered (or none was made yet).
    Online,
    /// Nothing has been heard from the store since then, and why.
    OfflineSince(SystemTime, String),
}

/// Limits of the retry layer. All waits are bounded by them.
#[derive(Clone, Debug)]
pub struct RetryOptions {
    /// Time for a read in all, its retries included (`--read-timeout`).
    pub read_timeout: Duration,
    /// Time for one attempt of a read; plus its length over [`SLOWEST_RATE`].
    pub read_attempt_timeout: Duration,
    /// Time for a write in all; plus twice its length over [`SLOWEST_RATE`].
    pub write_timeout: Duration,
    /// Time for one attempt of a write; plus its length over [`SLOWEST_RATE`].
    pub write_attempt_timeout: Duration,
    /// Upper bound of the first pause; doubles with every attempt. The pause itself is drawn
    /// evenly below the bound (full jitter).
    pub backoff_first: Duration,
    /// Upper bound of every pause.
    pub backoff_max: Duration,
    /// Seed of the jitter, so that tests repeat.
    pub jitter_seed: u64,
    /// Whether listings come in ascending order of names, so that one cut off can go on after
    /// the last name seen (S3: yes; directories: no).
    pub list_ordered: bool,
    /// How fast bytes may go and come. Bodies that go to S3 are paced by its adapter.
    pub limits: Arc<Limits>,
}

impl Default for RetryOptions {
    fn default() -> RetryOptions {
        let mut seed = [0u8; 8];
        // Without entropy the jitter is merely the same as another mount's.
        let _ = getrandom::fill(&mut seed);
        RetryOptions {
            read_timeout: Duration::from_secs(30),
            read_attempt_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(120),
            write_attempt_timeout: Duration::from_secs(60),
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            jitter_seed: u64::from_le_bytes(seed),
            list_ordered: true,
            limits: Arc::default(),
        }
    }
}

/// The wrapper; see the module.
#[derive(Clone)]
pub struct Retry {
    inner: Arc<dyn ObjectStore>,
    /// Lets single parts of an upload be sent again; without it they are sent once.
    parts: Option<Arc<dyn MultipartStore>>,
    attempts: Arc<Attempts>,
}

impl Retry {
    /// Wraps `inner`. Starts out [`Health::Online`].
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        options: RetryOptions,
        stats: Arc<RequestStats>,
    ) -> Retry {
        Retry { inner, parts: None, attempts: Arc::new(Attempts::new(options, stats)) }
    }

    /// Also retries the parts of multipart uploads, through the adapter's part interface.
    /// Without it a failed part fails its upload.
    pub fn with_multipart(mut self, parts: Arc<dyn MultipartStore>) -> Retry {
        self.parts = Some(parts);
        self
    }

    fn limits(&self) -> &Limits {
        &self.attempts.options().limits
    }

    /// Waits for the turn of a body of `len` bytes to be sent.
    async fn turn_to_send(&self, len: u64) -> Option<SemaphorePermit<'_>> {
        let limit = &self.limits().up;
        let turn = limit.turn(len).await;
        if len <= SMALL_BODY {
            limit.take(len, Instant::now());
        } else if self.parts.is_none() {
            limit.pace(len).await; // nobody below does it while the body moves
        }
        turn
    }

    /// Follows whether the store is reachable. Changes on the first failure of transport and
    /// on the first answer after it.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.attempts.health()
    }

    /// While it is `hurried`, an answer that is not the store's is not waited out: who starts a mount,
    /// with a store that has just answered, is told at once.
    pub fn set_hurried(&self, hurried: bool) {
        self.attempts.hurried.store(hurried, std::sync::atomic::Ordering::Relaxed);
    }

    /// What the store refuses for good at present.
    pub fn refusals(&self) -> Refusals {
        self.attempts.refused().now()
    }

    /// One GET or HEAD within `budget`, its body collected.
    async fn fetch(&self, location: &Path, options: GetOptions, what: &str) -> Result<Answer> {
        let _turn = match options.head {
            true => None,
            false => self.limits().down.turn(asked_for(&options)).await,
        };
        let budget = self.attempts.read_budget();
        self.attempts
            .run(budget, what, location, |_| self.fetch_once(location, options.clone(), budget))
            .await
    }

    async fn fetch_once(
        &self,
        location: &Path,
        options: GetOptions,
        budget: Budget,
    ) -> Result<Answer> {
        let stats = self.attempts.stats();
        let head = options.head;
        RequestStats::add(if head { &stats.head } else { &stats.get }, 1);
        let _timed = stats.begin(if head { RequestKind::Head } else { RequestKind::Get });
        let result = budget
            .limit(0, "waiting for the answer", self.inner.get_opts(location, options))
            .await?;
        let len = result.range.end.saturating_sub(result.range.start);
        refuse_larger(location, if head { 0 } else { len })?;
        let mut answer = Answer {
            meta: result.meta.clone(),
            range: result.range.clone(),
            attributes: result.attributes.clone(),
            extensions: result.extensions.clone(),
            body: None,
        };
        if head || len > BUFFER_MAX {
            return Ok(answer);
        }
        let result = paced(&self.limits().down, result);
        let body = budget.limit(len, "receiving the body", Rope::collect(result)).await?;
        RequestStats::add(&stats.bytes_down, body.len());
        if body.len() != len {
            let message = format!(
                "body of {} ended after {} of {len} bytes",
                one_line(location.as_ref()),
                body.len()
            );
            return Err(StoreError::new(ErrorClass::Transport, message).into_store("retry"));
        }
        answer.body = Some(body);
        Ok(answer)
    }

    /// The body `range` as pieces, each fetched (and retried) when it is asked for. `meta` pins
    /// the version: if the object changes meanwhile the stream fails with a precondition.
    fn pieces(&self, meta: &ObjectMeta, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
        let (retry, meta) = (self.clone(), meta.clone());
        stream::try_unfold(range.start, move |at| {
            let (retry, meta, end) = (retry.clone(), meta.clone(), range.end);
            async move {
                if at >= end {
                    return Ok(None);
                }
                let piece = at..end.min(at + PIECE);
                let options = GetOptions {
                    range: Some(GetRange::Bounded(piece.clone())),
                    if_match: meta.e_tag.clone(),
                    version: meta.version.clone(),
                    ..GetOptions::default()
                };
                let answer = retry.fetch(&meta.location, options, "get").await?;
                let body = answer.body.unwrap_or_default();
                if answer.range != piece || body.len() != piece.end - piece.start {
                    let message = format!("{} changed while it was read", meta.location);
                    return Err(StoreError::new(ErrorClass::Other, message).into_store("retry"));
                }
                Ok(Some((body.into_bytes(), piece.end)))
            }
        })
        .boxed()
    }

    /// Whether the object holds exactly `payload`: then an unanswered put did succeed.
    async fn holds(&self, location: &Path, payload: &PutPayload) -> Result<Option<PutResult>> {
        let found = match self.fetch(location, GetOptions::default(), "read back").await {
            Ok(found) => found,
            Err(e) if class(&e) == ErrorClass::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let same = found.body.is_some_and(|body| body.equals(payload));
        Ok(same.then(|| PutResult {
            e_tag: found.meta.e_tag,
            version: found.meta.version,
            extensions: Default::default(),
        }))
    }
}

/// An answer to a read with its body, if it is short enough to hold.
struct Answer {
    meta: ObjectMeta,
    range: Range<u64>,
    attributes: object_store::Attributes,
    extensions: object_store::Extensions,
    body: Option<Rope>,
}

#[async_trait]
impl ObjectStore for Retry {
    /// A create or update whose first attempts went unanswered and whose last was refused is
    /// read back: if the object holds exactly these bytes, it was ours. (Sealed bytes carry a
    /// fresh random salt, so nobody else's can be equal.)
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let len = payload.content_length() as u64;
        let _turn = self.turn_to_send(len).await;
        let budget = self.attempts.write_budget(len);
        let stats = self.attempts.stats();
        let conditional = !matches!(opts.mode, PutMode::Overwrite);
        let mut sent = 0u32;
        let sent_now = &mut sent;
        let outcome = self
            .attempts
            .run(budget, "put", location, |attempt| {
                *sent_now = attempt;
                let (payload, opts) = (payload.clone(), opts.clone());
                RequestStats::add(&stats.put, 1);
                let put = self.inner.put_opts(location, payload, opts);
                let put = budget.limit(len, "waiting for the answer", put);
                stats.timed(RequestKind::Put, put)
            })
            .await;
        self.attempts.refused().note_upload(len, &outcome);
        let outcome = match outcome {
            Err(e) if conditional && sent > 1 && class(&e).is_unmet_condition() => {
                match self.holds(location, &payload).await? {
                    Some(result) => Ok(result),
                    None => Err(e),
                }
            }
            outcome => outcome,
        };
        if outcome.is_ok() {
            stats.stored(location, len);
        }
        outcome
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let budget = self.attempts.write_budget(0);
        let stats = self.attempts.stats();
        match &self.parts {
            Some(parts) => {
                let id = self
                    .attempts
                    .run(budget, "start upload of", location, |_| {
                        RequestStats::add(&stats.multipart, 1);
                        let create = parts.create_multipart_opts(location, opts.clone());
                        let create = budget.limit(0, "waiting for the answer", create);
                        stats.timed(RequestKind::Multipart, create)
                    })
                    .await?;
                let (attempts, store) = (self.attempts.clone(), self.inner.clone());
                Ok(upload::with_parts(location.clone(), id, parts.clone(), store, attempts))
            }
            None => {
                let inner = self
                    .attempts
                    .run(budget, "start upload of", location, |_| {
                        RequestStats::add(&stats.multipart, 1);
                        let create = self.inner.put_multipart_opts(location, opts.clone());
                        let create = budget.limit(0, "waiting for the answer", create);
                        stats.timed(RequestKind::Multipart, create)
                    })
                    .await?;
                Ok(upload::once(location.clone(), inner, self.attempts.clone()))
            }
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let answer = self.fetch(location, options, if head { "head" } else { "get" }).await?;
        let body = match answer.body {
            Some(body) => body.into_stream(),
            None if head => stream::empty().boxed(),
            None => self.pieces(&answer.meta, answer.range.clone()),
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(body),
            meta: answer.meta,
            range: answer.range,
            attributes: answer.attributes,
            extensions: answer.extensions,
        })
    }

    /// Up to [`DELETE_BATCH`] objects that are ready at once share one call; those that failed
    /// for now are sent again, and one that is gone then counts as deleted.
    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let retry = self.clone();
        locations
            .ready_chunks(DELETE_BATCH)
            .then(move |batch| {
                let retry = retry.clone();
                async move { stream::iter(retry.delete_batch(batch).await) }
            })
            .flatten()
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_from(prefix.cloned(), None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_from(prefix.cloned(), Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let budget = self.attempts.read_budget();
        let shown = prefix.cloned().unwrap_or_default();
        self.attempts
            .run(budget, "list", &shown, |_| {
                RequestStats::add(&self.attempts.stats().list, 1);
                let list = self.inner.list_with_delimiter(prefix);
                let list = budget.limit(0, "waiting for the answer", list);
                self.attempts.stats().timed(RequestKind::List, list)
            })
            .await
    }

    /// An overwriting copy is retried; a creating one is sent once, since a second attempt could
    /// not tell its own first from another's.
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let mut budget = self.attempts.write_budget(0);
        if options.mode == CopyMode::Create {
            budget = budget.once();
        }
        self.attempts
            .run(budget, "copy", from, |_| {
                RequestStats::add(&self.attempts.stats().put, 1);
                let copy = self.inner.copy_opts(from, to, options.clone());
                let copy = budget.limit(0, "waiting for the answer", copy);
                self.attempts.stats().timed(RequestKind::Put, copy)
            })
            .await
    }
}

/// Bytes that a read asks for, as far as it says so.
fn asked_for(options: &GetOptions) -> u64 {
    match &options.range {
        Some(GetRange::Bounded(range)) => range.end.saturating_sub(range.start),
        Some(GetRange::Suffix(len)) => *len,
        _ => u64::MAX,
    }
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retry({})", self.inner)
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retry({:?})", self.inner)
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
