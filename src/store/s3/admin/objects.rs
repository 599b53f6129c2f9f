//! How an object is encrypted on the server, and encrypting it again there.
//!
//! For audit and migration. Looks at one object at a time, below every other layer: no retries,
//! no cache, no sealing. Source: S3 API Reference, "HeadObject", "CopyObject", "UploadPartCopy",
//! "UpdateObjectEncryption".

use crate::base::one_line;
use crate::store::error::ErrorClass;
use crate::store::s3::errors::{Condition, from_sdk, is_unsupported, own, write_from_sdk};
use crate::store::s3::proof::e_tag_of;
use crate::store::s3::read::{quoted, system_time};
use crate::store::s3::sse::{self, Answer, Applied, SecretKey32, SseMode};
use crate::store::s3::storage_class::is_archive;
use crate::store::s3::write::{
    COPY_THROUGH_MAX, applied, applied_by_s3, check_sse, with_customer_key, with_source_key,
    with_sse,
};
use crate::store::s3::{Inner, S3Store};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{
    CompletedMultipartUpload, CompletedPart, MetadataDirective, ObjectEncryption,
    ServerSideEncryption, SsekmsEncryption, StorageClass, TaggingDirective,
};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, PutMode, Result, UpdateVersion};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// Largest object that one CopyObject takes, in bytes (S3 API Reference, "CopyObject").
pub const COPY_MAX: u64 = 5 << 30;
/// Bytes of one part of a larger copy: 10,000 of them are more than the largest object.
const COPY_PART: u64 = 1 << 30;

/// An object as its server describes it.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// How it is encrypted.
    pub applied: Applied,
    /// Its version.
    pub e_tag: Option<String>,
    /// Its bytes.
    pub size: u64,
    /// When it was written, by the server's clock.
    pub modified: SystemTime,
    /// Its storage class, where it is not the standard one.
    storage_class: Option<StorageClass>,
}

/// What was done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reencrypted {
    /// The server changed its data key in place.
    InPlace,
    /// It was copied onto itself.
    Copied,
    /// It was read and written again: a small object that its writer replaces.
    Rewritten,
}

impl Inspected {
    /// Its storage class by name.
    pub fn class_name(&self) -> &str {
        self.storage_class.as_ref().map_or("STANDARD", StorageClass::as_str)
    }

    /// Whether it has to be restored before it can be read.
    pub fn is_archived(&self) -> bool {
        is_archive(self.class_name())
    }
}

impl S3Store {
    /// One HeadObject.
    pub async fn inspect(&self, location: &Path) -> Result<Inspected> {
        let answer = self.inner.head_object(location, &GetOptions::default()).await?;
        let size = answer.content_length.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        Ok(Inspected {
            size,
            modified: system_time(answer.last_modified.as_ref()),
            storage_class: answer.storage_class.clone(),
            applied: Applied {
                customer_algorithm: answer.sse_customer_algorithm().map(str::to_owned),
                customer_key_md5: answer.sse_customer_key_md5().map(str::to_owned),
                ..applied_by_s3!(answer)
            },
            e_tag: answer.e_tag,
        })
    }

    /// The first `len` bytes of an object, as they lie in the bucket.
    pub async fn first_bytes(&self, location: &Path, len: u64) -> Result<Bytes> {
        let range = Some(GetRange::Bounded(0..len));
        self.get_opts(location, GetOptions::new().with_range(range)).await?.bytes().await
    }

    /// The known customer key that an object is encrypted with, if it is with one.
    pub fn key_of(&self, applied: &Applied) -> Option<SecretKey32> {
        let md5 = applied.customer_key_md5.as_deref()?;
        self.inner.encryption.keys().into_iter().find(|key| key.md5_base64() == md5)
    }

    /// What a server has applied, in words: a customer key that is known by the name that the
    /// volume remembers it by, as everywhere.
    pub fn shown(&self, applied: &Applied) -> String {
        match self.key_of(applied) {
            Some(key) => SseMode::Customer { key }.to_string(),
            None => applied.to_string(),
        }
    }

    /// Encrypts an object again, in the present mode, on the server, provided that it still is the
    /// version that was inspected. `copy_max`: above it the copy is made of parts ([`COPY_MAX`]).
    ///
    /// # Errors
    /// `Precondition` or `NotFound` if it was replaced or is gone meanwhile.
    pub async fn reencrypt(
        &self,
        location: &Path,
        was: &Inspected,
        copy_max: u64,
    ) -> Result<Reencrypted> {
        let inner = &self.inner;
        if inner.update_in_place(location, was).await? {
            return Ok(Reencrypted::InPlace);
        }
        let source_key = self.key_of(&was.applied);
        let copied = match was.size > copy_max {
            false => inner.copy_onto_itself(location, was, source_key.as_ref()).await?,
            true => inner.copy_in_parts(location, was, source_key.as_ref(), copy_max).await?,
        };
        match copied {
            true => Ok(Reencrypted::Copied),
            false => self.rewrite(location, was).await,
        }
    }

    /// Reads an object and writes the same bytes in the present mode, provided that it still is
    /// the version that was inspected: for small objects that somebody else may be replacing,
    /// since the condition of a PUT holds for its target, and that of a copy for its source only.
    /// Also for servers that cannot copy what is under SSE-C (Ceph). Up to 64 MiB, few at a time.
    pub async fn rewrite(&self, location: &Path, was: &Inspected) -> Result<Reencrypted> {
        if was.size > COPY_THROUGH_MAX {
            let message = format!(
                "rewrite {}: it is too large, and the server cannot copy it",
                one_line(location.as_ref())
            );
            return Err(own(ErrorClass::Other, message));
        }
        let turn = self.inner.rewriting.acquire().await;
        let _turn = turn.expect("the semaphore is never closed");
        let version = UpdateVersion { e_tag: was.e_tag.clone(), version: None };
        let options = GetOptions { if_match: was.e_tag.clone(), ..GetOptions::default() };
        let bytes = self.get_opts(location, options).await?.bytes().await?;
        let mode = PutMode::Update(version);
        self.put_opts(location, bytes.into(), mode.into()).await?;
        Ok(Reencrypted::Rewritten)
    }
}

impl Inner {
    /// UpdateObjectEncryption, where the server has it and the change is one it can make: from
    /// SSE-S3 or SSE-KMS to SSE-KMS under a key given as an ARN. It moves no data and keeps ETag
    /// and time. False if the object has to be copied.
    async fn update_in_place(&self, location: &Path, was: &Inspected) -> Result<bool> {
        let sse = self.encryption.now();
        let SseMode::Kms { key_id: Some(arn), context, bucket_key } = sse.mode() else {
            return Ok(false);
        };
        let from = was.applied.algorithm.as_deref();
        // Elsewhere a server that does not know `?encryption` could take it for a PutObject.
        if !self.is_aws
            || !arn.starts_with("arn:")
            || !arn.contains(":key/")
            || !context.is_empty()
            || !matches!(from, Some(sse::AES256 | sse::AWS_KMS))
            || !self.in_place.load(Ordering::Relaxed)
        {
            return Ok(false);
        }
        let target = SsekmsEncryption::builder()
            .kms_key_arn(arn)
            .set_bucket_key_enabled(*bucket_key)
            .build()
            .map_err(|e| own(ErrorClass::Other, format!("update {location}: {e}")))?;
        let answer = self
            .client
            .update_object_encryption()
            .bucket(&self.bucket)
            .key(self.key(location))
            .object_encryption(ObjectEncryption::Ssekms(target))
            .send()
            .await;
        match answer {
            Ok(_) => self.is_updated(location, was, arn).await.map(|()| true),
            Err(e) => {
                let code = e.raw_response().map(|r| r.status().as_u16());
                let is_final = matches!(code, Some(404 | 500 | 503)) || code.is_none();
                if is_final && !is_unsupported(&e) {
                    let path = location.as_ref();
                    return Err(from_sdk(e, "update the encryption of", path, Condition::None));
                }
                // Not known here, not for this bucket, or not allowed: a copy may be.
                log::info!("{} does not change encryption in place; copying", self.bucket);
                self.in_place.store(false, Ordering::Relaxed);
                Ok(false)
            }
        }
    }

    /// The answer to UpdateObjectEncryption is empty: the object says whether it was done.
    async fn is_updated(&self, location: &Path, was: &Inspected, arn: &str) -> Result<()> {
        let now = self.head_object(location, &GetOptions::default()).await?;
        let is_replaced = now.e_tag() != was.e_tag.as_deref();
        if is_replaced || now.ssekms_key_id() == Some(arn) {
            return Ok(());
        }
        let message = format!(
            "update the encryption of {location}: the answer says that it is done, and it is not"
        );
        Err(own(ErrorClass::Foreign, message))
    }

    /// False if this server cannot make such a copy.
    async fn copy_onto_itself(
        &self,
        location: &Path,
        was: &Inspected,
        source_key: Option<&SecretKey32>,
    ) -> Result<bool> {
        let (path, sse) = (location.as_ref(), self.encryption.now());
        let tags = self.encryption.tags();
        let e_tag = was.e_tag.as_deref().map(quoted);
        let request = self
            .client
            .copy_object()
            .bucket(&self.bucket)
            .key(self.key(location))
            .copy_source(self.copy_source(location))
            .set_copy_source_if_match(e_tag.clone())
            // The condition on the target, where the server knows it; others ignore it.
            .set_if_match(e_tag.filter(|_| self.is_aws))
            .set_storage_class(was.storage_class.clone())
            .set_tagging_directive(tags.as_ref().map(|_| TaggingDirective::Replace))
            .metadata_directive(MetadataDirective::Replace);
        let mut request = with_sse!(request, sse.mode(), tags);
        if let Some(key) = source_key {
            request = with_source_key!(request, key);
        }
        let answer = match request.send().await {
            Err(e) if is_unsupported(&e) => return Ok(false),
            answer => answer
                .map_err(|e| write_from_sdk(e, "copy", path, Condition::Update, sse.mode()))?,
        };
        e_tag_of(answer.copy_object_result().and_then(|r| r.e_tag()), "copy", path)?;
        check_sse(&sse, Answer::Whole, applied!(answer), "copy", path)?;
        Ok(true)
    }

    async fn copy_in_parts(
        &self,
        location: &Path,
        was: &Inspected,
        source_key: Option<&SecretKey32>,
        copy_max: u64,
    ) -> Result<bool> {
        let id = self.create_upload(location).await?;
        let copied = self.copy_parts(location, &id, was, source_key, copy_max).await;
        if !matches!(copied, Ok(true))
            && let Err(e) = self.abort_upload(location, &id).await
        {
            log::warn!("cannot abort a copy of {location}: {e}");
        }
        copied
    }

    async fn copy_parts(
        &self,
        location: &Path,
        id: &str,
        was: &Inspected,
        source_key: Option<&SecretKey32>,
        copy_max: u64,
    ) -> Result<bool> {
        const ACTION: &str = "copy a part of";
        let (path, sse) = (location.as_ref(), self.encryption.of_upload(id));
        let part_bytes = COPY_PART.min(copy_max.max(1));
        let mut parts = Vec::new();
        for (start, number) in (0..was.size).step_by(part_bytes as usize).zip(1..) {
            let last = (start + part_bytes).min(was.size) - 1;
            let mut request = self
                .client
                .upload_part_copy()
                .bucket(&self.bucket)
                .key(self.key(location))
                .upload_id(id)
                .part_number(number)
                .copy_source(self.copy_source(location))
                .set_copy_source_if_match(was.e_tag.as_deref().map(quoted))
                .copy_source_range(format!("bytes={start}-{last}"));
            if let Some(key) = source_key {
                request = with_source_key!(request, key);
            }
            request = with_customer_key!(request, sse.mode().customer_key());
            let answer = match request.send().await {
                Err(e) if is_unsupported(&e) || wants_a_length(&e) => return Ok(false),
                answer => answer.map_err(|e| from_sdk(e, ACTION, path, Condition::Update))?,
            };
            let result = answer.copy_part_result();
            let e_tag = e_tag_of(result.and_then(|r| r.e_tag()), ACTION, path)?;
            let mut part = CompletedPart::builder().part_number(number).e_tag(e_tag);
            part =
                part.set_checksum_crc32(result.and_then(|r| r.checksum_crc32()).map(str::to_owned));
            parts.push(part.build());
        }
        let named = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        const END: &str = "finish the copy of";
        let answer = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(location))
            .upload_id(id)
            .set_if_match(was.e_tag.as_deref().map(quoted).filter(|_| self.is_aws))
            .multipart_upload(named)
            .send()
            .await
            .map_err(|e| from_sdk(e, END, path, Condition::Update))?;
        self.found_as(END, location, was.size, answer.e_tag()).await?;
        self.encryption.end_upload(id);
        Ok(true)
    }
}

/// Whether a server refused a copy of a part for want of a body's length (Ceph 16): such a request
/// has no body, and the client sends no length of none.
fn wants_a_length<E: ProvideErrorMetadata>(error: &E) -> bool {
    error.code() == Some("MissingContentLength")
}
