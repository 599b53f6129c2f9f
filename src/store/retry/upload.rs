//! Multipart uploads under the retry layer.

use super::super::error::{ErrorClass, StoreError, class};
use super::super::stats::{RequestKind, RequestStats};
use super::attempt::Attempts;
use async_trait::async_trait;
use futures::FutureExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    MultipartId, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, PutResult, Result,
    UploadPart,
};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// An upload whose parts are numbered here and sent again when they fail.
pub(super) fn with_parts(
    location: Path,
    id: MultipartId,
    parts: Arc<dyn MultipartStore>,
    store: Arc<dyn ObjectStore>,
    attempts: Arc<Attempts>,
) -> Box<dyn MultipartUpload> {
    let done = Arc::default();
    Box::new(PartsUpload { location, id, parts, store, attempts, done, next: 0, len: 0 })
}

/// An upload through the plain interface: each part is sent once, within its time limit.
pub(super) fn once(
    location: Path,
    inner: Box<dyn MultipartUpload>,
    attempts: Arc<Attempts>,
) -> Box<dyn MultipartUpload> {
    Box::new(OnceUpload { location, inner, attempts })
}

struct PartsUpload {
    location: Path,
    id: MultipartId,
    parts: Arc<dyn MultipartStore>,
    store: Arc<dyn ObjectStore>,
    attempts: Arc<Attempts>,
    /// By part number; `None` until its upload is confirmed.
    done: Arc<Mutex<Vec<Option<PartId>>>>,
    next: usize,
    len: u64,
}

#[async_trait]
impl MultipartUpload for PartsUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let index = self.next;
        let len = data.content_length() as u64;
        self.next += 1;
        self.len += len;
        self.done.lock().push(None);
        let (location, id) = (self.location.clone(), self.id.clone());
        let (parts, attempts, done) =
            (self.parts.clone(), self.attempts.clone(), self.done.clone());
        async move {
            let _turn = attempts.options().limits.up.turn(len).await;
            let budget = attempts.write_budget(len);
            let part = attempts
                .run(budget, "put a part of", &location, |_| {
                    RequestStats::add(&attempts.stats().multipart, 1);
                    let put = parts.put_part(&location, &id, index, data.clone());
                    let (attempts, limit) = (&attempts, budget);
                    async move {
                        let put = limit.limit(len, "waiting for the answer", put);
                        attempts.stats().timed(RequestKind::Multipart, put).await
                    }
                })
                .await;
            attempts.refused().note_upload(len, &part);
            let part = part?;
            attempts.stats().stored(&location, len);
            done.lock()[index] = Some(part);
            Ok(())
        }
        .boxed()
    }

    /// Fails without asking the store if a part is missing. "No such upload" after an unanswered
    /// attempt means that it succeeded, if the object has the length sent.
    async fn complete(&mut self) -> Result<PutResult> {
        let parts: Option<Vec<PartId>> = self.done.lock().iter().cloned().collect();
        let parts = parts.ok_or_else(|| {
            let message = format!("upload of {} lacks a part", self.location);
            StoreError::new(ErrorClass::Other, message).into_store("retry")
        })?;
        let budget = self.attempts.write_budget(0);
        let mut sent = 0;
        let sent_now = &mut sent;
        let outcome = self
            .attempts
            .run(budget, "complete the upload of", &self.location, |attempt| {
                *sent_now = attempt;
                RequestStats::add(&self.attempts.stats().multipart, 1);
                let complete =
                    self.parts.complete_multipart(&self.location, &self.id, parts.clone());
                let stats = self.attempts.stats();
                async move {
                    let complete = budget.limit(0, "waiting for the answer", complete);
                    stats.timed(RequestKind::Multipart, complete).await
                }
            })
            .await;
        match outcome {
            Err(e) if sent > 1 && matches!(class(&e), ErrorClass::NotFound | ErrorClass::Other) => {
                let budget = self.attempts.read_budget();
                let meta = self
                    .attempts
                    .run(budget, "head", &self.location, |_| {
                        RequestStats::add(&self.attempts.stats().head, 1);
                        let head = self.store.head(&self.location);
                        let stats = self.attempts.stats();
                        async move {
                            let head = budget.limit(0, "waiting for the answer", head);
                            stats.timed(RequestKind::Head, head).await
                        }
                    })
                    .await?;
                if meta.size != self.len {
                    return Err(e);
                }
                let extensions = Default::default();
                Ok(PutResult { e_tag: meta.e_tag, version: meta.version, extensions })
            }
            outcome => outcome,
        }
    }

    async fn abort(&mut self) -> Result<()> {
        let budget = self.attempts.write_budget(0);
        self.attempts
            .run(budget, "abort the upload of", &self.location, |_| {
                RequestStats::add(&self.attempts.stats().multipart, 1);
                let abort = self.parts.abort_multipart(&self.location, &self.id);
                let stats = self.attempts.stats();
                async move {
                    let abort = budget.limit(0, "waiting for the answer", abort);
                    stats.timed(RequestKind::Multipart, abort).await
                }
            })
            .await
    }
}

impl fmt::Debug for PartsUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartsUpload({}, {} parts)", self.location, self.next)
    }
}

struct OnceUpload {
    location: Path,
    inner: Box<dyn MultipartUpload>,
    attempts: Arc<Attempts>,
}

#[async_trait]
impl MultipartUpload for OnceUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let len = data.content_length() as u64;
        let (attempts, location) = (self.attempts.clone(), self.location.clone());
        let put = self.inner.put_part(data);
        async move {
            RequestStats::add(&attempts.stats().multipart, 1);
            let budget = attempts.write_budget(len);
            let put = budget.limit(len, "waiting for the answer", put);
            attempts.note(attempts.stats().timed(RequestKind::Multipart, put).await)?;
            attempts.stats().stored(&location, len);
            Ok(())
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        RequestStats::add(&self.attempts.stats().multipart, 1);
        let budget = self.attempts.write_budget(0);
        let complete = budget.limit(0, "waiting for the answer", self.inner.complete());
        let outcome = self.attempts.stats().timed(RequestKind::Multipart, complete).await;
        self.attempts.note(outcome)
    }

    async fn abort(&mut self) -> Result<()> {
        RequestStats::add(&self.attempts.stats().multipart, 1);
        let budget = self.attempts.write_budget(0);
        let abort = budget.limit(0, "waiting for the answer", self.inner.abort());
        let outcome = self.attempts.stats().timed(RequestKind::Multipart, abort).await;
        self.attempts.note(outcome)
    }
}

impl fmt::Debug for OnceUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnceUpload({})", self.location)
    }
}
