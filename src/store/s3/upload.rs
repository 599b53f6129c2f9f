//! Multipart upload: parts in parallel, one object at the end.
//!
//! `S3Store` is a `MultipartStore`, whose parts the retry layer can send again one by one;
//! [`S3Upload`] is the same for callers that do not keep the parts. Server-side encryption is
//! compared at the create, at every part and at the end.

use super::answers::Seen;
use super::body::{crc32_header, request_body};
use super::errors::{Condition, from_sdk, own, write_from_sdk};
use super::proof::{PartNote, Said, prove_part};
use super::sse::{Answer, Applied, SseCheck};
use super::write::{
    applied, applied_by_s3, check_sse, no_attributes, watched, with_customer_key, with_sse,
};
use super::{Inner, S3Store};
use crate::base::counted;
use crate::store::error::ErrorClass;
use async_trait::async_trait;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, ServerSideEncryption};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    MultipartId, MultipartUpload, PutMultipartOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// Parts of one upload (S3 User Guide, "Amazon S3 multipart upload limits").
const PARTS_MAX: usize = 10_000;
/// What a request for a part is called in messages.
const PART: &str = "upload a part of";

/// Which part of which upload.
#[derive(Clone, Copy)]
pub(super) struct PartOf<'a> {
    /// The key of the object in the bucket.
    pub(super) key: &'a str,
    /// The object as messages name it.
    pub(super) shown: &'a str,
    /// The id of the upload.
    pub(super) upload: &'a str,
    /// From 1.
    pub(super) number: i32,
}

#[async_trait]
impl MultipartStore for S3Store {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.inner.create_upload(path).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        self.inner.put_part(path, id, part_idx, data).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        self.inner.complete_upload(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.inner.abort_upload(path, id).await
    }
}

impl Inner {
    /// CreateMultipartUpload; an upload whose answer names another mode is aborted.
    pub(super) async fn create_upload(&self, location: &Path) -> Result<MultipartId> {
        const ACTION: &str = "start the upload of";
        let path = location.as_ref();
        let request = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(location))
            .set_storage_class(self.class_of(location))
            .checksum_algorithm(ChecksumAlgorithm::Crc32);
        let sse = self.encryption.now();
        let answer = with_sse!(request, sse.mode(), self.encryption.tags())
            .send()
            .await
            .map_err(|e| write_from_sdk(e, ACTION, path, Condition::None, sse.mode()))?;
        let id = answer.upload_id().unwrap_or_default().to_owned();
        if id.is_empty() {
            let message = format!("{ACTION} {path}: the answer has no upload id");
            return Err(own(ErrorClass::Foreign, message));
        }
        if let Err(mismatch) = check_sse(&sse, Answer::Begun, applied!(answer), ACTION, path) {
            if let Err(error) = self.abort_upload(location, &id).await {
                log::warn!("cannot abort an upload in the wrong encryption mode: {error}");
            }
            return Err(mismatch);
        }
        self.encryption.begin_upload(&id, sse);
        Ok(id)
    }

    /// The id of the part is a [`PartNote`]: the end of the upload has to name checksum and ETag.
    async fn put_part(
        &self,
        location: &Path,
        id: &str,
        index: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let path = location.as_ref();
        if index >= PARTS_MAX {
            let message = format!("{PART} {path}: there are more than {PARTS_MAX} parts");
            return Err(own(ErrorClass::Other, message));
        }
        let part =
            PartOf { key: &self.key(location), shown: path, upload: id, number: index as i32 + 1 };
        let note = self.send_part(part, &self.encryption.of_upload(id), data).await?;
        Ok(PartId { content_id: note.to_id() })
    }

    /// UploadPart, encrypted as `sse` says: what the end of the upload has to name of it.
    ///
    /// # Errors
    /// Those of UploadPart, classified; `SseMismatch` if the answer names another encryption;
    /// `Foreign` if nothing proves that it is stored.
    pub(super) async fn send_part(
        &self,
        part: PartOf<'_>,
        sse: &SseCheck,
        data: PutPayload,
    ) -> Result<PartNote> {
        self.put_again_with_md5(|| self.send_part_once(part, sse, data.clone())).await
    }

    async fn send_part_once(
        &self,
        part: PartOf<'_>,
        sse: &SseCheck,
        data: PutPayload,
    ) -> Result<PartNote> {
        let (checksum, len) = (crc32_header(&data), data.content_length() as u64);
        let request = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(part.key)
            .upload_id(part.upload)
            .part_number(part.number)
            .checksum_crc32(&checksum)
            .set_content_md5(self.content_md5(&data))
            .content_length(len as i64)
            .body(request_body(data, self.sign_payload));
        let request = with_customer_key!(request, sse.mode().customer_key());
        let seen = Seen::default();
        let request = watched!(request, self, seen);
        let answer = Box::pin(request.send())
            .await
            .map_err(|e| from_sdk(e, PART, part.shown, Condition::None))?;
        let (status, e_tag) = (seen.status(), answer.e_tag());
        let said = Said { status, e_tag, checksum: answer.checksum_crc32() };
        let e_tag = prove_part(PART, part.shown, &checksum, said)?.to_owned();
        let applied = Applied {
            customer_algorithm: answer.sse_customer_algorithm().map(str::to_owned),
            customer_key_md5: answer.sse_customer_key_md5().map(str::to_owned),
            ..applied_by_s3!(answer)
        };
        check_sse(sse, Answer::Part, applied, PART, part.shown)?;
        Ok(PartNote { checksum, len, e_tag })
    }

    /// CompleteMultipartUpload. S3 refuses an upload without parts; an empty object gets one
    /// empty part.
    async fn complete_upload(
        &self,
        location: &Path,
        id: &str,
        mut parts: Vec<PartId>,
    ) -> Result<PutResult> {
        const ACTION: &str = "finish the upload of";
        let path = location.as_ref();
        if parts.is_empty() {
            parts.push(self.put_part(location, id, 0, PutPayload::default()).await?);
        }
        let mut named = Vec::with_capacity(parts.len());
        let mut notes = Vec::with_capacity(parts.len());
        for (part, number) in parts.iter().zip(1..) {
            let note = PartNote::of_id(&part.content_id).ok_or_else(|| {
                own(ErrorClass::Other, format!("{ACTION} {path}: part {number} is not ours"))
            })?;
            named.push(note.as_named(number));
            notes.push(note);
        }
        let answer = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(location))
            .upload_id(id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(named)).build())
            .send()
            .await
            .map_err(|e| from_sdk(e, ACTION, path, Condition::None))?;
        // Its status is 200 whatever becomes of it; the body names the object.
        let said = Said { status: 0, e_tag: answer.e_tag(), checksum: answer.checksum_crc32() };
        self.prove_upload(ACTION, location, &notes, said).await?;
        let applied = applied_by_s3!(answer);
        check_sse(&self.encryption.of_upload(id), Answer::Part, applied, ACTION, path)?;
        self.encryption.end_upload(id);
        self.note_class(location, self.class_of(location)).await;
        Ok(PutResult {
            e_tag: answer.e_tag,
            version: answer.version_id,
            extensions: Default::default(),
        })
    }

    /// AbortMultipartUpload.
    pub(super) async fn abort_upload(&self, location: &Path, id: &str) -> Result<()> {
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(location))
            .upload_id(id);
        let aborted = request.send().await;
        self.encryption.end_upload(id);
        let failed = |e| from_sdk(e, "abort the upload of", location.as_ref(), Condition::None);
        aborted.map(drop).map_err(failed)
    }
}

/// One multipart upload in progress. Parts are numbered in the order of `put_part` calls.
pub(super) struct S3Upload {
    inner: Arc<Inner>,
    location: Path,
    id: MultipartId,
    /// Parts handed out so far.
    parts: usize,
    done: Arc<Mutex<Vec<(usize, PartId)>>>,
}

impl S3Upload {
    /// Starts an upload. Attributes are refused, tags ignored.
    pub(super) async fn create(
        inner: Arc<Inner>,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<S3Upload> {
        if !opts.attributes.is_empty() {
            return Err(no_attributes());
        }
        let id = inner.create_upload(location).await?;
        Ok(S3Upload { inner, location: location.clone(), id, parts: 0, done: Arc::default() })
    }
}

impl fmt::Debug for S3Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Upload({}, {} parts)", self.location, self.parts)
    }
}

#[async_trait]
impl MultipartUpload for S3Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let index = self.parts;
        self.parts += 1;
        let (inner, location) = (self.inner.clone(), self.location.clone());
        let (id, done) = (self.id.clone(), self.done.clone());
        Box::pin(async move {
            let part = inner.put_part(&location, &id, index, data).await?;
            done.lock().push((index, part));
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let mut done = self.done.lock().clone();
        if done.len() != self.parts {
            let missing = self.parts - done.len();
            let message = format!(
                "finish the upload of {}: {} failed",
                self.location,
                counted(missing as u64, "part")
            );
            return Err(own(ErrorClass::Other, message));
        }
        done.sort_unstable_by_key(|(index, _)| *index);
        let parts = done.into_iter().map(|(_, part)| part).collect();
        self.inner.complete_upload(&self.location, &self.id, parts).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort_upload(&self.location, &self.id).await
    }
}
