//! The store as SlateDB sees it: tells it which errors will not get better, and which objects are
//! its own.
//!
//! SlateDB retries every error but a few for ever. A tampered object, a refused credential or a
//! server that applies the wrong encryption would then look like a hang; this wrapper marks
//! those so that the operation fails at once.
//!
//! When a create failed and is tried again, the object may be there by the first try, whose answer
//! was lost. SlateDB tells by an attribute, which cannot be sealed and so is not kept; and it takes
//! an object of its log that is there already for that of a writer who has overtaken it. So
//! what is there is compared with what was to be written.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use parking_lot::Mutex;
use slatedb_common::retry::NonRetryable;

use super::error::{ErrorClass, class};
use super::rope::Rope;

/// An [`ObjectStore`] that marks errors which retrying cannot mend, and knows its own creates.
#[derive(Debug)]
pub(super) struct SlateStore {
    inner: Arc<dyn ObjectStore>,
    /// Names whose last create failed, but may have been done.
    unclear: Mutex<HashSet<Path>>,
}

impl SlateStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        SlateStore { inner, unclear: Mutex::default() }
    }

    /// What a create that found `location` there comes to: its own success if the object holds
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

fn mark(e: Error) -> Error {
    match class(&e) {
        ErrorClass::Corrupt => {
            Error::Generic { store: "sealfs", source: Box::new(NonRetryable(Box::new(e))) }
        }
        _ => e,
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
        let outcome = match outcome {
            Err(refusal) if creates && class(&refusal) == ErrorClass::AlreadyExists => {
                let unclear = self.unclear.lock().contains(location);
                if unclear { self.own(location, &payload, refusal).await } else { Err(refusal) }
            }
            Err(e) => {
                if creates && !matches!(e, Error::NotImplemented { .. }) {
                    self.unclear.lock().insert(location.clone());
                }
                Err(e)
            }
            Ok(put) => Ok(put),
        };
        if outcome.is_ok() {
            self.unclear.lock().remove(location);
        }
        outcome.map_err(mark)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await.map_err(mark)
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await.map_err(mark)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await.map_err(mark)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await.map_err(mark)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await.map_err(mark)
    }
}
