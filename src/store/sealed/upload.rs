//! Multipart uploads: sealed as one message on the way, in parts of a size every store takes.

use super::super::error::{ErrorClass, StoreError, class};
use super::underway::Write;
use super::{HEADER, Sealed};
use crate::seal::Sealer;
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use object_store::path::Path;
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ciphertext gathered before a part is sent. S3 wants 5 MiB at least of all parts but the last,
/// and R2 that they are all of one size, which this gives.
const PART: usize = 8 << 20;
/// The smallest parts that a limit on uploads leads to: below S3's 5 MiB, which other servers and
/// their proxies need not know.
const PART_LEAST: usize = 64 << 10;

/// The size of the parts of uploads that begin now. Halved with every one that was too large for the
/// store or for a proxy before it.
pub(super) struct PartSize(AtomicUsize);

impl Default for PartSize {
    fn default() -> PartSize {
        PartSize(AtomicUsize::new(PART))
    }
}

impl PartSize {
    fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn was_too_large(&self, bytes: usize) {
        let smaller = (bytes / 2).max(PART_LEAST);
        if self.0.fetch_min(smaller, Ordering::Relaxed) > smaller {
            log::warn!(
                "parts of {bytes} bytes are too large for the store or a proxy before it: {smaller} at most from now on"
            );
        }
    }
}

/// Starts sealing into `inner`.
pub(super) fn begin(
    sealed: Sealed,
    location: Path,
    inner: Box<dyn MultipartUpload>,
) -> Box<dyn MultipartUpload> {
    let keys = &sealed.0.keys;
    let underway = sealed.0.underway.begin(keys.epoch());
    let place = keys.object(location.as_ref());
    let part = sealed.0.part_size.now();
    let mut gathered = Vec::with_capacity(part);
    let sealer = Sealer::new(place.key(), place.context(), &mut gathered);
    let header = Bytes::copy_from_slice(&gathered[..HEADER]);
    Box::new(SealedUpload {
        sealed,
        location,
        inner,
        sealer: Some(sealer),
        gathered,
        header,
        part,
        len: 0,
        _underway: underway,
    })
}

/// An upload in progress. Holds less than one part of ciphertext besides what `inner` holds.
struct SealedUpload {
    sealed: Sealed,
    location: Path,
    inner: Box<dyn MultipartUpload>,
    /// `None` once completed or aborted.
    sealer: Option<Sealer>,
    gathered: Vec<u8>,
    header: Bytes,
    /// Bytes of every part but the last.
    part: usize,
    /// Ciphertext bytes handed to `inner`.
    len: u64,
    _underway: Write,
}

impl SealedUpload {
    fn closed(&self) -> object_store::Error {
        let message = format!("upload of {} was already ended", self.location);
        StoreError::new(ErrorClass::Other, message).into_store("sealed")
    }

    /// Hands the first `n` gathered bytes to the store.
    fn send(&mut self, n: usize) -> UploadPart {
        let rest = self.gathered.split_off(n);
        let part = mem::replace(&mut self.gathered, rest);
        self.len += part.len() as u64;
        let (sealed, bytes) = (self.sealed.clone(), part.len());
        let put = self.inner.put_part(Bytes::from(part).into());
        let note = move |outcome: &Result<()>| {
            if outcome.as_ref().is_err_and(|e| class(e) == ErrorClass::TooLarge) {
                sealed.0.part_size.was_too_large(bytes);
            }
        };
        put.inspect(note).boxed()
    }
}

#[async_trait]
impl MultipartUpload for SealedUpload {
    /// Seals here and now (the order of calls is the order of bytes); the future is the upload
    /// of what became complete by it.
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let Some(sealer) = &mut self.sealer else {
            return futures::future::ready(Err(self.closed())).boxed();
        };
        data.iter().for_each(|piece| sealer.push(piece, &mut self.gathered));
        let mut sends = Vec::new();
        while self.gathered.len() >= self.part {
            sends.push(self.send(self.part));
        }
        futures::future::try_join_all(sends).map(|done| done.map(|_| ())).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let sealer = self.sealer.take().ok_or_else(|| self.closed())?;
        sealer.finish(&mut self.gathered);
        let n = self.gathered.len();
        self.send(n).await?;
        let outcome = self.inner.complete().await;
        match &outcome {
            Ok(put) => self.sealed.remember_put(&self.location, &self.header, self.len, put),
            Err(_) => self.sealed.forget(&self.location),
        }
        outcome
    }

    async fn abort(&mut self) -> Result<()> {
        self.sealer = None;
        self.inner.abort().await
    }
}

impl fmt::Debug for SealedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedUpload({}, {} bytes sent)", self.location, self.len)
    }
}
