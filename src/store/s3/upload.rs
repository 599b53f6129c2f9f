//! Multipart upload: parts in parallel, one object at the end.
//!
//! Parts are numbered in the order of `put_part` calls. Server-side encryption is compared at
//! the create, at every part and at the end.

use super::Inner;
use super::body::{crc32_header, request_body};
use super::errors::{Condition, from_sdk, own};
use super::sse::{self, Answer, Applied};
use super::write::{applied, no_attributes, with_sse};
use crate::store::error::ErrorClass;
use async_trait::async_trait;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, ServerSideEncryption,
};
use object_store::path::Path;
use object_store::{
    MultipartUpload, PutMultipartOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// Parts of one upload (S3 User Guide, "Amazon S3 multipart upload limits").
const PARTS_MAX: i32 = 10_000;

/// One multipart upload in progress.
pub(super) struct S3Upload {
    shared: Arc<Shared>,
    /// Parts handed out so far.
    parts: i32,
}

struct Shared {
    inner: Arc<Inner>,
    path: String,
    key: String,
    upload_id: String,
    done: Mutex<Vec<CompletedPart>>,
}

impl S3Upload {
    /// CreateMultipartUpload. Attributes are refused, tags ignored.
    pub(super) async fn create(
        inner: Arc<Inner>,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<S3Upload> {
        if !opts.attributes.is_empty() {
            return Err(no_attributes());
        }
        let path = location.as_ref().to_owned();
        let key = inner.key(location);
        let request = inner
            .client
            .create_multipart_upload()
            .bucket(&inner.bucket)
            .key(&key)
            .checksum_algorithm(ChecksumAlgorithm::Crc32);
        let answer = with_sse!(request, inner.sse.mode())
            .send()
            .await
            .map_err(|e| from_sdk(e, "start the upload of", &path, Condition::None))?;
        let upload_id = answer.upload_id().unwrap_or_default().to_owned();
        if upload_id.is_empty() {
            let message = format!("start the upload of {path}: the answer has no upload id");
            return Err(own(ErrorClass::Transport, message));
        }
        let applied = applied!(answer);
        let checked = inner.check_sse(Answer::Whole, applied, "start the upload of", &path);
        let shared = Shared { inner, path, key, upload_id, done: Mutex::default() };
        if let Err(mismatch) = checked {
            if let Err(error) = shared.abort().await {
                log::warn!("cannot abort an upload in the wrong encryption mode: {error}");
            }
            return Err(mismatch);
        }
        Ok(S3Upload { shared: Arc::new(shared), parts: 0 })
    }
}

impl Shared {
    async fn put_part(&self, number: i32, data: PutPayload) -> Result<()> {
        let inner = &self.inner;
        let checksum = crc32_header(&data);
        let mut request = inner
            .client
            .upload_part()
            .bucket(&inner.bucket)
            .key(&self.key)
            .upload_id(&self.upload_id)
            .part_number(number)
            .checksum_crc32(&checksum)
            .content_length(data.content_length() as i64)
            .body(request_body(data, inner.sign_payload));
        if let Some(key) = inner.sse.mode().customer_key() {
            request = request
                .sse_customer_algorithm(sse::AES256)
                .sse_customer_key(key.base64())
                .sse_customer_key_md5(key.md5_base64());
        }
        let request = request.customize();
        let request = match inner.sign_payload {
            true => request,
            false => request.disable_payload_signing(),
        };
        let answer = request
            .send()
            .await
            .map_err(|e| from_sdk(e, "upload a part of", &self.path, Condition::None))?;
        let applied = Applied {
            algorithm: answer.server_side_encryption().map(|a| a.as_str().to_owned()),
            kms_key_id: answer.ssekms_key_id().map(str::to_owned),
            kms_context: None,
            bucket_key: answer.bucket_key_enabled(),
            customer_algorithm: answer.sse_customer_algorithm().map(str::to_owned),
            customer_key_md5: answer.sse_customer_key_md5().map(str::to_owned),
        };
        inner.check_sse(Answer::Part, applied, "upload a part of", &self.path)?;
        let part = CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .checksum_crc32(checksum)
            .build();
        self.done.lock().push(part);
        Ok(())
    }

    async fn complete(&self, parts: i32) -> Result<PutResult> {
        let mut done = self.done.lock().clone();
        done.sort_unstable_by_key(|part| part.part_number());
        if done.len() as i32 != parts {
            let missing = parts - done.len() as i32;
            let message = format!("finish the upload of {}: {missing} parts failed", self.path);
            return Err(own(ErrorClass::Other, message));
        }
        let inner = &self.inner;
        let answer = inner
            .client
            .complete_multipart_upload()
            .bucket(&inner.bucket)
            .key(&self.key)
            .upload_id(&self.upload_id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(done)).build())
            .send()
            .await
            .map_err(|e| from_sdk(e, "finish the upload of", &self.path, Condition::None))?;
        let applied = Applied {
            algorithm: answer.server_side_encryption().map(|a| a.as_str().to_owned()),
            kms_key_id: answer.ssekms_key_id().map(str::to_owned),
            bucket_key: answer.bucket_key_enabled(),
            ..Applied::default()
        };
        inner.check_sse(Answer::Part, applied, "finish the upload of", &self.path)?;
        Ok(PutResult {
            e_tag: answer.e_tag,
            version: answer.version_id,
            extensions: Default::default(),
        })
    }

    async fn abort(&self) -> Result<()> {
        let request = self
            .inner
            .client
            .abort_multipart_upload()
            .bucket(&self.inner.bucket)
            .key(&self.key)
            .upload_id(&self.upload_id);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(from_sdk(error, "abort the upload of", &self.path, Condition::None)),
        }
    }
}

impl fmt::Debug for S3Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Upload({}, {} parts)", self.shared.path, self.parts)
    }
}

#[async_trait]
impl MultipartUpload for S3Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts += 1;
        let (number, shared) = (self.parts, self.shared.clone());
        Box::pin(async move {
            if number > PARTS_MAX {
                let message = format!("upload of {}: more than {PARTS_MAX} parts", shared.path);
                return Err(own(ErrorClass::Other, message));
            }
            shared.put_part(number, data).await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        if self.parts == 0 {
            // S3 refuses an upload without parts; an empty object has one empty part.
            self.put_part(PutPayload::default()).await?;
        }
        self.shared.complete(self.parts).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.shared.abort().await
    }
}
