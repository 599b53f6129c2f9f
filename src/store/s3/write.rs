//! PutObject, CopyObject, DeleteObjects.
//!
//! Every write asks for the mount's server-side encryption and compares the answer. A create
//! whose answer names another mode is taken back; an overwrite cannot be, and is only reported.

use super::Inner;
use super::answers::Seen;
use super::body::{crc32_header, md5_header, request_body};
use super::errors::{Condition, from_code, from_sdk, is_unsupported, own, write_from_sdk};
use super::proof::{self, Said, e_tag_of};
use super::read::quoted;
use super::sse::{Answer, Applied, SseCheck, SseMode};
use super::storage_class::{StorageClass, wire};
use crate::store::error::{self as store_error, ErrorClass};
use crate::store::probe;
use aws_sdk_s3::types::{Delete, ObjectIdentifier, ServerSideEncryption, StorageClass as Wire};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, PutMode, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Keys of one DeleteObjects request (S3 API Reference, "DeleteObjects").
const DELETE_BATCH_MAX: usize = 1000;
/// Largest object that is copied through this machine, in bytes.
pub(super) const COPY_THROUGH_MAX: u64 = 64 << 20;
/// Parallel DeleteObject requests where DeleteObjects is not known.
const DELETE_PARALLEL_MAX: usize = 16;

/// How a server wants ETags in `If-Match` of a write. Ceph before Squid compares the header with
/// the bare tag, so that a quoted one, as HTTP has it, never matches.
mod e_tag_style {
    pub const UNKNOWN: u8 = 0;
    pub const QUOTED: u8 = 1;
    pub const BARE: u8 = 2;
}

/// Puts a customer key on a request, if there is one.
macro_rules! with_customer_key {
    ($request:expr, $key:expr) => {{
        let request = $request;
        match $key {
            None => request,
            Some(key) => request
                .sse_customer_algorithm($crate::store::s3::sse::AES256)
                .sse_customer_key(key.base64())
                .sse_customer_key_md5(key.md5_base64()),
        }
    }};
}
pub(in crate::store::s3) use with_customer_key;

/// Puts the mode and the tags on a request that creates an object.
macro_rules! with_sse {
    ($request:expr, $mode:expr, $tags:expr) => {{
        let mode: &$crate::store::s3::SseMode = $mode;
        let request = $request
            .set_tagging($tags)
            .set_server_side_encryption(mode.algorithm().map(ServerSideEncryption::from))
            .set_ssekms_key_id(mode.key_id().map(str::to_owned))
            .set_ssekms_encryption_context(mode.context_header())
            .set_bucket_key_enabled(mode.bucket_key());
        $crate::store::s3::write::with_customer_key!(request, mode.customer_key())
    }};
}
pub(super) use with_sse;

/// What the answer to such a request says was applied.
macro_rules! applied {
    ($answer:expr) => {
        Applied {
            kms_context: $answer.ssekms_encryption_context().map(str::to_owned),
            customer_algorithm: $answer.sse_customer_algorithm().map(str::to_owned),
            customer_key_md5: $answer.sse_customer_key_md5().map(str::to_owned),
            ..$crate::store::s3::write::applied_by_s3!($answer)
        }
    };
}
pub(super) use applied;

/// The part of it that every answer has; of a request that carries no context, with no key of
/// the customer's.
macro_rules! applied_by_s3 {
    ($answer:expr) => {
        Applied {
            algorithm: $answer.server_side_encryption().map(|a| a.as_str().to_owned()),
            kms_key_id: $answer.ssekms_key_id().map(str::to_owned),
            bucket_key: $answer.bucket_key_enabled(),
            ..Applied::default()
        }
    };
}
pub(super) use applied_by_s3;

/// Puts the customer key of the object that is copied on a copy.
macro_rules! with_source_key {
    ($request:expr, $key:expr) => {{
        let key: &$crate::store::s3::SecretKey32 = $key;
        $request
            .copy_source_sse_customer_algorithm($crate::store::s3::sse::AES256)
            .copy_source_sse_customer_key(key.base64())
            .copy_source_sse_customer_key_md5(key.md5_base64())
    }};
}
pub(super) use with_source_key;

/// A request with a body, ready to be sent: whose status `seen` keeps, and whose body is signed where
/// the wire needs it.
macro_rules! watched {
    ($request:expr, $inner:expr, $seen:expr) => {{
        let request = $request.customize().interceptor($seen.clone());
        match $inner.sign_payload {
            true => request,
            false => request.disable_payload_signing(),
        }
    }};
}
pub(super) use watched;

/// The condition of a write, as its headers carry it.
#[derive(Clone)]
enum If {
    Any,
    Absent,
    Matches(String),
}

/// Compares what an answer says was applied with what was asked.
pub(super) fn check_sse(
    sse: &SseCheck,
    answer: Answer,
    applied: Applied,
    action: &str,
    path: &str,
) -> Result<()> {
    sse.check(answer, applied).map_err(|mismatch| {
        let message = format!(
            "{action} {path}: {mismatch}\nhint: this server does not apply the mode; choose another --sse, or see what the bucket does: sealfs doctor STORE"
        );
        own(ErrorClass::SseMismatch, message)
    })
}

/// Whether a write was refused for want of a `Content-MD5`: each server has its own code for that.
fn wants_md5(e: &Error) -> bool {
    store_error::sentence(e).to_ascii_lowercase().contains("content-md5")
}

impl Inner {
    /// One PutObject, conditional as `opts.mode` says. Attributes are refused, tags ignored.
    pub(super) async fn put(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        if !opts.attributes.is_empty() {
            return Err(no_attributes());
        }
        let e_tag = match opts.mode {
            PutMode::Overwrite => return self.put_if(location, payload, If::Any).await,
            PutMode::Create => return self.put_if(location, payload, If::Absent).await,
            PutMode::Update(version) => version.e_tag.ok_or_else(|| {
                own(ErrorClass::Other, format!("update {location}: the version has no ETag"))
            })?,
        };
        let style = self.e_tag_style.load(Ordering::Relaxed);
        if style == e_tag_style::BARE {
            return self.put_if(location, payload, If::Matches(bare(&e_tag))).await;
        }
        let first = self.put_if(location, payload.clone(), If::Matches(quoted(&e_tag))).await;
        match first {
            Ok(_) => {
                self.e_tag_style.store(e_tag_style::QUOTED, Ordering::Relaxed);
                first
            }
            // Asked again in the other style only until one has worked. The probe at mount is
            // the first to ask, and it refuses a server that takes a stale tag in that style.
            Err(Error::Precondition { .. }) if style == e_tag_style::UNKNOWN => {
                let again = self.put_if(location, payload, If::Matches(bare(&e_tag))).await?;
                log::info!("{} wants ETags without quotes in If-Match", self.bucket);
                self.e_tag_style.store(e_tag_style::BARE, Ordering::Relaxed);
                Ok(again)
            }
            Err(_) => first,
        }
    }

    async fn put_if(&self, location: &Path, payload: PutPayload, when: If) -> Result<PutResult> {
        let class = self.class_of(location);
        let sse = self.encryption.now();
        let put = self.put_in(&sse, location, payload, when, class.clone()).await;
        if put.is_ok() {
            self.note_class(location, class).await;
        }
        put
    }

    /// Puts an object that says nothing in this storage class.
    pub(super) async fn put_of_class(&self, location: &Path, class: &StorageClass) -> Result<()> {
        let sse = self.encryption.now();
        let put = self.put_in(&sse, location, "canary".into(), If::Any, wire(class)).await;
        put.map(drop)
    }

    /// Puts and removes an object in `mode`: whether this server and these credentials can.
    pub(super) async fn try_mode(&self, mode: &SseMode) -> Result<()> {
        let sse = SseCheck::new(mode.clone());
        let location = probe::random_name()?;
        let put = self.put_in(&sse, &location, "canary".into(), If::Any, None).await;
        if put.is_ok() || matches!(&put, Err(e) if store_error::class(e) == ErrorClass::SseMismatch)
        {
            self.take_back(&location).await;
        }
        put.map(drop)
    }

    /// Whether a create is refused for its condition: what the same PUT without it is not.
    pub(super) async fn create_is_unsupported(&self) -> Result<bool> {
        let location = probe::random_name()?;
        let put = self.put_if(&location, "canary".into(), If::Absent).await;
        if put.is_ok() {
            self.take_back(&location).await;
        }
        Ok(matches!(&put, Err(e) if store_error::class(e) == ErrorClass::Unsupported))
    }

    async fn put_in(
        &self,
        sse: &SseCheck,
        location: &Path,
        payload: PutPayload,
        when: If,
        class: Option<Wire>,
    ) -> Result<PutResult> {
        let once = || self.put_once(sse, location, payload.clone(), when.clone(), class.clone());
        self.put_again_with_md5(once).await
    }

    /// Does `put`, and once more if it was refused for want of a `Content-MD5`, which all writes get
    /// from then on: some servers take no other checksum for what Object Lock is to retain.
    pub(super) async fn put_again_with_md5<T, F: Future<Output = Result<T>>>(
        &self,
        put: impl Fn() -> F,
    ) -> Result<T> {
        let had_md5 = self.sends_md5.load(Ordering::Relaxed);
        let outcome = Box::pin(put()).await;
        match &outcome {
            Err(e) if !had_md5 && wants_md5(e) => {}
            _ => return outcome,
        }
        log::info!("{} wants Content-MD5 with what is written: it has Object Lock", self.bucket);
        self.sends_md5.store(true, Ordering::Relaxed);
        Box::pin(put()).await
    }

    /// `Content-MD5` of a payload, where it is sent.
    pub(super) fn content_md5(&self, payload: &PutPayload) -> Option<String> {
        self.sends_md5.load(Ordering::Relaxed).then(|| md5_header(payload))
    }

    async fn put_once(
        &self,
        sse: &SseCheck,
        location: &Path,
        payload: PutPayload,
        when: If,
        class: Option<Wire>,
    ) -> Result<PutResult> {
        let path = location.as_ref();
        let checksum = crc32_header(&payload);
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(location))
            .checksum_crc32(&checksum)
            .set_content_md5(self.content_md5(&payload))
            .content_length(payload.content_length() as i64)
            .set_storage_class(class)
            .body(request_body(payload.clone(), self.sign_payload));
        let (request, condition) = match when {
            If::Any => (request, Condition::None),
            If::Absent => (request.if_none_match("*"), Condition::Create),
            If::Matches(e_tag) => (request.if_match(e_tag), Condition::Update),
        };
        let seen = Seen::default();
        let request = with_sse!(request, sse.mode(), self.encryption.tags());
        let request = watched!(request, self, seen);
        let answer = request
            .send()
            .await
            .map_err(|e| write_from_sdk(e, "put", path, condition, sse.mode()))?;

        let (status, e_tag) = (seen.status(), answer.e_tag());
        let said = Said { status, e_tag, checksum: answer.checksum_crc32() };
        Box::pin(self.prove_put(location, &payload, &checksum, said)).await?;
        let checked = check_sse(sse, Answer::Whole, applied!(answer), "put", path);
        if checked.is_err() && condition == Condition::Create {
            self.take_back(location).await;
        }
        checked?;
        Ok(PutResult {
            e_tag: answer.e_tag,
            version: answer.version_id,
            extensions: Default::default(),
        })
    }

    /// One CopyObject inside the bucket, up to 5 GiB. `CopyMode::Create` reads the object and
    /// creates it under the other name, because few servers know a condition on CopyObject and
    /// the others would overwrite; so does a copy that this server does not implement (Ceph's of
    /// objects under SSE-C). Both up to [`COPY_THROUGH_MAX`] bytes.
    pub(super) async fn copy(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        if options.mode == CopyMode::Create {
            return self.copy_through(from, to, If::Absent).await;
        }
        let sse = self.encryption.now();
        let request = self
            .client
            .copy_object()
            .bucket(&self.bucket)
            .key(self.key(to))
            .copy_source(self.copy_source(from));
        let request = request.set_storage_class(self.class_of(to));
        let mut request = with_sse!(request, sse.mode(), self.encryption.tags());
        if let SseMode::Customer { key } = sse.mode() {
            request = with_source_key!(request, key);
        }
        let answer = match request.send().await {
            Err(e) if is_unsupported(&e) => return self.copy_through(from, to, If::Any).await,
            answer => answer.map_err(|e| {
                write_from_sdk(e, "copy", from.as_ref(), Condition::None, sse.mode())
            })?,
        };
        let result = answer.copy_object_result();
        e_tag_of(result.and_then(|r| r.e_tag()), "copy to", to.as_ref())?;
        check_sse(&sse, Answer::Whole, applied!(answer), "copy to", to.as_ref())
    }

    /// A copy that passes through this machine.
    async fn copy_through(&self, from: &Path, to: &Path, when: If) -> Result<()> {
        let found = self.get(from, GetOptions::default()).await?;
        if found.meta.size > COPY_THROUGH_MAX {
            let source = format!("copy of {from}: it is too large").into();
            return Err(Error::NotSupported { source });
        }
        self.put_if(to, found.bytes().await?.into(), when).await.map(drop)
    }

    /// `x-amz-copy-source` of an object.
    pub(super) fn copy_source(&self, from: &Path) -> String {
        format!("{}/{}", self.bucket, percent_encoded(&self.key(from)))
    }

    /// Removes an object that this call created in the wrong mode, so that its name is free when
    /// the write is tried again. A failure is only logged: the write's own error is the report.
    pub(super) async fn take_back(&self, location: &Path) {
        if let Err(error) = self.delete_one(location).await {
            log::warn!(
                "cannot remove {location}, a canary or in the wrong encryption mode: {error}"
            );
        }
    }

    /// One DeleteObject. An object that is not there counts as deleted. S3 answers 204; after any
    /// other success the object is looked for.
    async fn delete_one(&self, location: &Path) -> Result<()> {
        let request = self.client.delete_object().bucket(&self.bucket).key(self.key(location));
        let seen = Seen::default();
        match request.customize().interceptor(seen.clone()).send().await {
            Ok(_) if seen.status() == 204 => Ok(()),
            Ok(_) => Box::pin(self.prove_gone(location)).await,
            Err(error) => match from_sdk(error, "delete", location.as_ref(), Condition::None) {
                Error::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Deletes up to [`DELETE_BATCH_MAX`] objects, in one request where the server knows how;
    /// one result per path, in their order.
    async fn delete_batch(&self, paths: Vec<Path>) -> Vec<Result<Path>> {
        if paths.len() > 1 && self.batch_delete.load(Ordering::Relaxed) {
            if let Some(results) = self.delete_objects(&paths).await {
                return results;
            }
            self.batch_delete.store(false, Ordering::Relaxed);
            log::info!("{} does not know DeleteObjects; deleting one by one", self.bucket);
        }
        stream::iter(paths)
            .map(async |path| self.delete_one(&path).await.map(|()| path))
            .buffered(DELETE_PARALLEL_MAX)
            .collect()
            .await
    }

    /// One DeleteObjects; `None` if the server does not know it. The answer names every object
    /// that was deleted; one that it does not name is looked for.
    async fn delete_objects(&self, paths: &[Path]) -> Option<Vec<Result<Path>>> {
        let objects = paths
            .iter()
            .map(|path| ObjectIdentifier::builder().key(self.key(path)).build())
            .collect::<std::result::Result<Vec<_>, _>>()
            .expect("every identifier has its key");
        let delete = Delete::builder()
            .set_objects(Some(objects))
            .build()
            .expect("the list of objects is set");
        let answer = self.client.delete_objects().bucket(&self.bucket).delete(delete).send().await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if is_unsupported(&error) => return None,
            Err(error) => {
                // One failure for all: nothing says which of them were deleted. It is reported
                // with the first path, and the rest as failed for the same reason.
                let first = from_sdk(error, "delete", paths[0].as_ref(), Condition::None);
                let class = store_error::class(&first);
                let text = first.to_string();
                let rest = paths[1..].iter().map(|path| {
                    Err(own(class, format!("delete {path}: failed with its batch: {text}")))
                });
                return Some(std::iter::once(Err(first)).chain(rest.collect::<Vec<_>>()).collect());
            }
        };
        let failed: HashMap<&str, _> =
            answer.errors().iter().filter_map(|e| Some((e.key()?, e))).collect();
        let deleted: HashSet<&str> = answer.deleted().iter().filter_map(|d| d.key()).collect();
        let result = async |path: &Path| {
            let key = self.key(path);
            let Some(error) = failed.get(key.as_str()) else {
                if !deleted.contains(key.as_str()) {
                    Box::pin(self.prove_gone(path)).await?;
                }
                return Ok(path.clone());
            };
            let (code, message) =
                (error.code().unwrap_or_default(), error.message().unwrap_or_default());
            match from_code(code, message, "delete", path.as_ref()) {
                Error::NotFound { .. } => Ok(path.clone()),
                error => Err(error),
            }
        };
        let results = stream::iter(paths).map(result).buffered(DELETE_PARALLEL_MAX);
        Some(results.collect().await)
    }
}

/// Deletes what the stream names, in batches, one batch at a time. An error of the stream is
/// passed on in its place.
pub(super) fn delete_stream(
    inner: Arc<Inner>,
    locations: BoxStream<'static, Result<Path>>,
) -> BoxStream<'static, Result<Path>> {
    locations
        .ready_chunks(DELETE_BATCH_MAX)
        .then(move |batch| {
            let inner = inner.clone();
            async move {
                let (mut paths, mut errors) = (Vec::new(), Vec::new());
                for location in batch {
                    match location {
                        Ok(path) => paths.push(path),
                        Err(error) => errors.push(Err(error)),
                    }
                }
                let mut results =
                    if paths.is_empty() { Vec::new() } else { inner.delete_batch(paths).await };
                results.append(&mut errors);
                stream::iter(results)
            }
        })
        .flatten()
        .boxed()
}

/// An ETag without its quotes.
fn bare(e_tag: &str) -> String {
    proof::bare(e_tag).to_owned()
}

/// Attributes have no place below the sealed layer, which has none to store.
pub(super) fn no_attributes() -> Error {
    Error::NotImplemented { operation: "object attributes".into(), implementer: "S3Store".into() }
}

/// A key as `x-amz-copy-source` carries it: all but unreserved characters and slashes as `%XX`.
pub(super) fn percent_encoded(key: &str) -> String {
    let mut encoded = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                encoded.push(byte as char);
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_sources_are_percent_encoded() {
        // Guards against a key with a plus, a space or a percent sign naming another object.
        assert_eq!(percent_encoded("a/b-c_d.e~f"), "a/b-c_d.e~f");
        assert_eq!(percent_encoded("a b+c%20"), "a%20b%2Bc%2520");
        assert_eq!(percent_encoded("é?"), "%C3%A9%3F");
    }
}
