//! The store as SlateDB sees it: tells it which errors will not get better.
//!
//! SlateDB retries every error but a few for ever. A tampered object, a refused credential or a
//! server that applies the wrong encryption would then look like a hang; this wrapper marks
//! those so that the operation fails at once.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use slatedb_common::retry::NonRetryable;

use super::error::{ErrorClass, class};

/// An [`ObjectStore`] that marks errors which retrying cannot mend.
#[derive(Debug)]
pub(super) struct SlateStore {
    inner: Arc<dyn ObjectStore>,
}

impl SlateStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        SlateStore { inner }
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
        self.inner.put_opts(location, payload, opts).await.map_err(mark)
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
