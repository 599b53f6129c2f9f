//! PutObject, CopyObject, DeleteObjects.
//!
//! Every write asks for the mount's server-side encryption and compares the answer. A create
//! whose answer names another mode is taken back; an overwrite cannot be, and is only reported.

use super::body::{crc32_header, request_body};
use super::errors::{Condition, from_code, from_sdk, is_unsupported, own};
use super::read::quoted;
use super::sse::{self, Answer, Applied};
use super::{Inner, sse::SseMode};
use crate::store::error::{self as store_error, ErrorClass};
use aws_sdk_s3::types::{Delete, ObjectIdentifier, ServerSideEncryption};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, PutMode, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Keys of one DeleteObjects request (S3 API Reference, "DeleteObjects").
const DELETE_BATCH_MAX: usize = 1000;
/// Largest object that is copied through this machine, in bytes.
const COPY_CREATE_MAX: u64 = 64 << 20;
/// Parallel DeleteObject requests where DeleteObjects is not known.
const DELETE_PARALLEL_MAX: usize = 16;

/// Puts the mode on a request that creates an object.
macro_rules! with_sse {
    ($request:expr, $mode:expr) => {{
        let mode: &$crate::store::s3::SseMode = $mode;
        let mut request = $request
            .set_server_side_encryption(mode.algorithm().map(ServerSideEncryption::from))
            .set_ssekms_key_id(mode.key_id().map(str::to_owned))
            .set_ssekms_encryption_context(mode.context_header())
            .set_bucket_key_enabled(mode.bucket_key());
        if let Some(key) = mode.customer_key() {
            request = request
                .sse_customer_algorithm(sse::AES256)
                .sse_customer_key(key.base64())
                .sse_customer_key_md5(key.md5_base64());
        }
        request
    }};
}
pub(super) use with_sse;

/// What the answer to such a request says was applied.
macro_rules! applied {
    ($answer:expr) => {
        Applied {
            algorithm: $answer.server_side_encryption().map(|a| a.as_str().to_owned()),
            kms_key_id: $answer.ssekms_key_id().map(str::to_owned),
            kms_context: $answer.ssekms_encryption_context().map(str::to_owned),
            bucket_key: $answer.bucket_key_enabled(),
            customer_algorithm: $answer.sse_customer_algorithm().map(str::to_owned),
            customer_key_md5: $answer.sse_customer_key_md5().map(str::to_owned),
        }
    };
}
pub(super) use applied;

impl Inner {
    /// One PutObject, conditional as `opts.mode` says. Attributes are refused, tags ignored.
    pub(super) async fn put(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let path = location.as_ref();
        if !opts.attributes.is_empty() {
            return Err(no_attributes());
        }
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(location))
            .checksum_crc32(crc32_header(&payload))
            .content_length(payload.content_length() as i64)
            .body(request_body(payload, self.sign_payload));
        let (request, condition) = match opts.mode {
            PutMode::Overwrite => (request, Condition::None),
            PutMode::Create => (request.if_none_match("*"), Condition::Create),
            PutMode::Update(version) => {
                let e_tag = version.e_tag.ok_or_else(|| {
                    own(ErrorClass::Other, format!("update {path}: the version has no ETag"))
                })?;
                (request.if_match(quoted(&e_tag)), Condition::Update)
            }
        };
        let request = with_sse!(request, self.sse.mode()).customize();
        let request = match self.sign_payload {
            true => request,
            false => request.disable_payload_signing(),
        };
        let answer = request.send().await.map_err(|e| from_sdk(e, "put", path, condition))?;

        let checked = self.check_sse(Answer::Whole, applied!(answer), "put", path);
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
    /// the others would overwrite; up to [`COPY_CREATE_MAX`] bytes.
    pub(super) async fn copy(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        if options.mode == CopyMode::Create {
            let found = self.get(from, GetOptions::default()).await?;
            if found.meta.size > COPY_CREATE_MAX {
                let source = format!("copy if not exists of {from}: it is too large").into();
                return Err(Error::NotSupported { source });
            }
            let contents = found.bytes().await?;
            let created = self.put(to, contents.into(), PutMode::Create.into());
            return created.await.map(drop);
        }
        let source = format!("{}/{}", self.bucket, percent_encoded(&self.key(from)));
        let request =
            self.client.copy_object().bucket(&self.bucket).key(self.key(to)).copy_source(source);
        let mut request = with_sse!(request, self.sse.mode());
        if let SseMode::Customer { key } = self.sse.mode() {
            request = request
                .copy_source_sse_customer_algorithm(sse::AES256)
                .copy_source_sse_customer_key(key.base64())
                .copy_source_sse_customer_key_md5(key.md5_base64());
        }
        let answer = request
            .send()
            .await
            .map_err(|e| from_sdk(e, "copy", from.as_ref(), Condition::None))?;
        self.check_sse(Answer::Whole, applied!(answer), "copy to", to.as_ref())
    }

    /// Compares what an answer says was applied with the mode of the mount.
    pub(super) fn check_sse(
        &self,
        answer: Answer,
        applied: Applied,
        action: &str,
        path: &str,
    ) -> Result<()> {
        self.sse.check(answer, applied).map_err(|mismatch| {
            let message = format!(
                "{action} {path}: {mismatch}\nhint: this server does not apply the mode; check --sse and the bucket's policy"
            );
            own(ErrorClass::SseMismatch, message)
        })
    }

    /// Removes an object that this call created in the wrong mode, so that its name is free when
    /// the write is tried again. A failure is only logged: the write's own error is the report.
    async fn take_back(&self, location: &Path) {
        if let Err(error) = self.delete_one(location).await {
            log::warn!("cannot remove {location}, written in the wrong encryption mode: {error}");
        }
    }

    /// One DeleteObject. An object that is not there counts as deleted.
    async fn delete_one(&self, location: &Path) -> Result<()> {
        let request = self.client.delete_object().bucket(&self.bucket).key(self.key(location));
        match request.send().await {
            Ok(_) => Ok(()),
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

    /// One DeleteObjects; `None` if the server does not know it.
    async fn delete_objects(&self, paths: &[Path]) -> Option<Vec<Result<Path>>> {
        let objects = paths
            .iter()
            .map(|path| ObjectIdentifier::builder().key(self.key(path)).build())
            .collect::<std::result::Result<Vec<_>, _>>()
            .expect("every identifier has its key");
        let delete = Delete::builder()
            .set_objects(Some(objects))
            .quiet(true)
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
        let result = |path: &Path| match failed.get(self.key(path).as_str()) {
            None => Ok(path.clone()),
            Some(error) => {
                let (code, message) =
                    (error.code().unwrap_or_default(), error.message().unwrap_or_default());
                match from_code(code, message, "delete", path.as_ref()) {
                    Error::NotFound { .. } => Ok(path.clone()),
                    error => Err(error),
                }
            }
        };
        Some(paths.iter().map(result).collect())
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

/// Attributes have no place below the sealed layer, which has none to store.
pub(super) fn no_attributes() -> Error {
    Error::NotImplemented { operation: "object attributes".into(), implementer: "S3Store".into() }
}

/// A key as `x-amz-copy-source` carries it: all but unreserved characters and slashes as `%XX`.
fn percent_encoded(key: &str) -> String {
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
