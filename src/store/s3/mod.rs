//! S3 as an `object_store::ObjectStore`, on `aws-sdk-s3`, with server-side encryption checked.
//!
//! One request per call, no retries and no cache: those are `store/retry.rs` and
//! `store/cached.rs`. Every failure carries a `StoreError` with its class. The only place of
//! the crate that names `aws_*` beside `store/kms`. Used by `stack/`; `sse` also by `cli/`.

mod admin;
mod answers;
mod body;
mod causes;
mod client;
mod connection;
mod credentials;
mod encryption;
mod errors;
pub mod input;
mod list;
mod local_files;
mod meter;
mod objects;
mod objects_write;
mod proof;
mod read;
mod refusal;
mod relabel;
mod sse;
mod sse_ask;
mod storage_class;
mod tls;
mod unfinished;
mod upload;
mod write;

pub use admin::{
    COPY_MAX, DefaultEncryption, Diagnosis, Inspected, Lifecycle, Lock, Ping, Reencrypted, Setting,
    Versioning,
};
pub(in crate::store) use causes::Causes;
pub use client::{
    ATTEMPT_TIMEOUT, CONNECT_TIMEOUT, ConnectError, S3Options, StaticCredentials, connect,
};
pub(in crate::store) use client::{Session, SessionAsk, is_this_machine};
pub use connection::trust_again;
pub(in crate::store) use errors::{Failure, facts};
pub use input::InputError;
pub use local_files::{local_files, pin_local_files};
pub use objects::{About, Body, Listed};
pub use objects_write::{Labels, Sending};
pub use proof::PartNote;
pub use sse::{Applied, SecretKey32, SseKind, SseMismatch, SseMode};
pub use sse_ask::SseAsk;
pub use storage_class::StorageClass;
pub use unfinished::{Part, Unfinished};

use async_trait::async_trait;
use encryption::Encryption;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};

/// A bucket, or what lies below a prefix of it. Clones share connections and state.
#[derive(Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
}

struct Inner {
    client: aws_sdk_s3::Client,
    bucket: String,
    /// Empty, or ends with a slash.
    prefix: String,
    encryption: Encryption,
    storage_class: storage_class::Kept,
    /// Whether payloads are hashed into the signature; only over plain http to other machines.
    sign_payload: bool,
    /// Cleared by the first server that does not know DeleteObjects.
    batch_delete: AtomicBool,
    /// Writes carry a `Content-MD5`, which this server was found to want.
    sends_md5: AtomicBool,
    /// Bounds the memory of objects that are read and written again.
    rewriting: tokio::sync::Semaphore,
    /// Cleared by the first server that does not know UpdateObjectEncryption.
    in_place: AtomicBool,
    is_tls: bool,
    /// Whether it is AWS itself, no other server being named.
    is_aws: bool,
    /// How the server wants ETags in the condition of a write; see `write.rs`.
    e_tag_style: AtomicU8,
    meter: meter::Meter,
}

impl S3Store {
    /// The server-side encryption that writes ask for.
    pub fn sse_mode(&self) -> SseMode {
        self.inner.encryption.now().mode().clone()
    }

    /// The server-side encryption that the last write's answer named; `None` before the first.
    pub fn sse_applied(&self) -> Option<Applied> {
        self.inner.encryption.now().last_applied()
    }

    /// Changes what writes that begin from now on ask for. Reads keep every customer key.
    pub fn set_sse_mode(&self, mode: SseMode) {
        self.inner.encryption.set(mode);
    }

    /// Changes the tags of objects written from now on.
    pub fn set_object_tags(&self, tags: &BTreeMap<String, String>) {
        self.inner.encryption.set_tags(tags);
    }

    /// The customer keys that are known, the writing one first.
    pub fn customer_keys(&self) -> Vec<SecretKey32> {
        self.inner.encryption.keys()
    }

    /// Whether requests go over TLS.
    pub fn is_tls(&self) -> bool {
        self.inner.is_tls
    }

    /// Whether nobody can listen: TLS, or this machine itself.
    pub fn is_private(&self) -> bool {
        !self.inner.sign_payload
    }

    /// Bytes of requests under way that connections have taken; falls when a request ends.
    pub fn bytes_under_way(&self) -> u64 {
        self.inner.meter.bytes()
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.inner.bucket
    }
}

impl Inner {
    /// The full key of a path below the prefix.
    fn key(&self, path: &Path) -> String {
        format!("{}{}", self.prefix, crate::store::shown_key(path))
    }
}

impl fmt::Display for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.inner.bucket, self.inner.prefix)
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({self}, sse: {})", self.inner.encryption.now().mode())
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.inner.put(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = upload::S3Upload::create(self.inner.clone(), location, opts).await?;
        Ok(Box::new(upload))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match options.head {
            true => self.inner.head(location, options).await,
            false => self.inner.get(location, options).await,
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        write::delete_stream(self.inner.clone(), locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        list::list(self.inner.clone(), prefix, None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        list::list(self.inner.clone(), prefix, Some(offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        list::list_with_delimiter(&self.inner, prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy(from, to, options).await
    }
}
