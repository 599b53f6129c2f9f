//! Multipart uploads: sealed as one message on the way, in parts of a size every store takes.

use super::super::error::{ErrorClass, StoreError};
use super::{HEADER, Sealed};
use crate::seal::Sealer;
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use object_store::path::Path;
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use std::fmt;
use std::mem;

/// Ciphertext gathered before a part is sent. S3 wants 5 MiB at least of all parts but the last,
/// and R2 that they are all of one size, which this gives.
const PART: usize = 8 << 20;

/// Starts sealing into `inner`.
pub(super) fn begin(
    sealed: Sealed,
    location: Path,
    inner: Box<dyn MultipartUpload>,
) -> Box<dyn MultipartUpload> {
    let keys = &sealed.0.keys;
    let place = keys.object(location.as_ref());
    let mut gathered = Vec::with_capacity(PART);
    let sealer = Sealer::new(place.key(), place.context(), &mut gathered);
    let header = Bytes::copy_from_slice(&gathered[..HEADER]);
    Box::new(SealedUpload {
        sealed,
        location,
        inner,
        sealer: Some(sealer),
        gathered,
        header,
        len: 0,
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
    /// Ciphertext bytes handed to `inner`.
    len: u64,
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
        self.inner.put_part(Bytes::from(part).into())
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
        while self.gathered.len() >= PART {
            sends.push(self.send(PART));
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
