//! The metadata of an object replaced, its contents left as they are; and a small object replaced
//! only if it still is the one that was read.
//!
//! S3 has no call for the first: it copies the object onto itself, on the server, and everything that
//! is not to change has to be said again. Exact keys, as in `objects.rs`. Called by `stack/`.
//! Source: S3 API Reference, "CopyObject", "UploadPartCopy".

use super::body::{crc32_header, request_body};
use super::errors::{Condition, from_sdk, own, write_from_sdk};

use super::objects::About;
use super::proof::e_tag_of;
use super::read::quoted;
use super::sse::SecretKey32;
use super::write::{percent_encoded, with_customer_key, with_source_key, with_sse};
use super::{Inner, Labels, S3Store};
use crate::store::error::ErrorClass;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{
    CompletedMultipartUpload, CompletedPart, MetadataDirective, ServerSideEncryption, StorageClass,
};
use object_store::{PutPayload, Result};
use std::collections::BTreeMap;

/// Bytes of one part of a copy of a large object: 10,000 of them are more than the largest.
const COPY_PART: u64 = 1 << 30;

/// Puts what an object has beside its bytes on a request that makes it again, but with `$metadata`
/// as its metadata.
macro_rules! as_it_was {
    ($request:expr, $was:expr, $metadata:expr, $key:expr) => {{
        let was: &HeadObjectOutput = $was;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let metadata: &BTreeMap<String, String> = $metadata;
        let request = $request
            .set_metadata(Some(metadata.clone().into_iter().collect()))
            .set_content_type(owned(was.content_type()))
            .set_cache_control(owned(was.cache_control()))
            .set_content_disposition(owned(was.content_disposition()))
            .set_content_encoding(owned(was.content_encoding()))
            .set_content_language(owned(was.content_language()))
            .set_website_redirect_location(owned(was.website_redirect_location()))
            .set_storage_class(was.storage_class().cloned());
        let key: Option<&SecretKey32> = $key;
        match key {
            Some(_) => with_customer_key!(request, key),
            None => request
                .set_server_side_encryption(was.server_side_encryption().cloned())
                .set_ssekms_key_id(owned(was.ssekms_key_id()))
                .set_bucket_key_enabled(was.bucket_key_enabled()),
        }
    }};
}

impl S3Store {
    /// Gives an object other user metadata, provided that it still is the one of `was`. Contents,
    /// ETag of an object that was put whole, headers, tags, storage class and encryption stay; access
    /// lists are those of a new object. In a versioned bucket the version before stays as well. `copy_max`:
    /// above it the copy is made of parts ([`super::COPY_MAX`]).
    ///
    /// # Errors
    /// `Precondition` if it was replaced; `Foreign` if the server says that it is done and it is not.
    pub async fn replace_metadata(
        &self,
        key: &str,
        was: &About,
        metadata: &BTreeMap<String, String>,
        copy_max: u64,
    ) -> Result<()> {
        let inner = &self.inner;
        let (head, customer) = inner.head_with_key(key).await?;
        // An attempt whose answer was lost may have done it.
        if labels_of(&head) == *metadata && head.content_length() == i64::try_from(was.size).ok() {
            return Ok(());
        }
        let e_tag = head.e_tag().unwrap_or_default();
        if super::proof::bare(e_tag) != was.e_tag {
            return Err(replaced(key));
        }
        let (size, customer) = (was.size, customer.as_ref());
        match size > copy_max {
            false => inner.relabel_whole(key, &head, customer, metadata).await?,
            true => {
                let part = COPY_PART.min(copy_max.max(1));
                inner.relabel_in_parts(key, size, part, &head, customer, metadata).await?;
            }
        }
        let now = self.about(key).await?;
        match now.size == was.size && now.metadata == *metadata {
            true => Ok(()),
            false => Err(own(
                ErrorClass::Foreign,
                format!(
                    "change the metadata of {key}: the answer says that it is done, and it is not"
                ),
            )),
        }
    }

    /// Puts a small object in the place of the one that has this ETag.
    ///
    /// # Errors
    /// `Precondition` if it was replaced; else as a PUT.
    pub async fn replace_key(
        &self,
        key: &str,
        e_tag: &str,
        body: PutPayload,
        labels: &Labels,
    ) -> Result<()> {
        let inner = &self.inner;
        let sse = inner.encryption.now();
        let request = inner
            .client
            .put_object()
            .bucket(&inner.bucket)
            .key(key)
            .checksum_crc32(crc32_header(&body))
            .set_content_md5(inner.content_md5(&body))
            .content_length(body.content_length() as i64)
            .set_if_match(Some(quoted(e_tag)).filter(|_| inner.is_aws && !e_tag.is_empty()))
            .set_metadata(Some(labels.metadata.clone().into_iter().collect()))
            .set_content_type(labels.headers.get("content-type").cloned())
            .set_storage_class(labels.storage_class.as_deref().map(StorageClass::from))
            .body(request_body(body, inner.sign_payload));
        let request = with_sse!(request, sse.mode(), inner.encryption.tags());
        let answer = Box::pin(request.send())
            .await
            .map_err(|e| write_from_sdk(e, "put", key, Condition::Update, sse.mode()))?;
        e_tag_of(answer.e_tag(), "put", key).map(drop)
    }
}

/// The user metadata of an object, names in lower case.
fn labels_of(head: &HeadObjectOutput) -> BTreeMap<String, String> {
    let pair = |(name, value): (&String, &String)| (name.to_ascii_lowercase(), value.clone());
    head.metadata().into_iter().flatten().map(pair).collect()
}

fn replaced(key: &str) -> object_store::Error {
    own(ErrorClass::Precondition, format!("change {key}: it was replaced meanwhile"))
}

impl Inner {
    /// HeadObject, and the customer key that it took.
    async fn head_with_key(&self, key: &str) -> Result<(HeadObjectOutput, Option<SecretKey32>)> {
        let answer = self.head_exactly(key).await?;
        let md5 = answer.sse_customer_key_md5();
        let known = |key: &SecretKey32| md5 == Some(key.md5_base64());
        let customer = self.encryption.keys().into_iter().find(known);
        Ok((answer, customer))
    }

    async fn relabel_whole(
        &self,
        key: &str,
        was: &HeadObjectOutput,
        customer: Option<&SecretKey32>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let e_tag = was.e_tag().map(quoted);
        let request = self
            .client
            .copy_object()
            .bucket(&self.bucket)
            .key(key)
            .copy_source(format!("{}/{}", self.bucket, percent_encoded(key)))
            .set_copy_source_if_match(e_tag.clone())
            .set_if_match(e_tag.filter(|_| self.is_aws))
            .metadata_directive(MetadataDirective::Replace);
        let mut request = as_it_was!(request, was, metadata, customer);
        if let Some(customer) = customer {
            request = with_source_key!(request, customer);
        }
        let answer = Box::pin(request.send())
            .await
            .map_err(|e| from_sdk(e, "copy", key, Condition::Update))?;
        e_tag_of(answer.copy_object_result().and_then(|r| r.e_tag()), "copy", key)?;
        same_encryption(key, was, answer.server_side_encryption())
    }

    /// The same of an object that is too large for one request. Its tags are read and set again.
    async fn relabel_in_parts(
        &self,
        key: &str,
        size: u64,
        part: u64,
        was: &HeadObjectOutput,
        customer: Option<&SecretKey32>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        const ACTION: &str = "copy";
        let tags = match was.tag_count().unwrap_or(0) {
            0 => None,
            _ => Some(self.tagging_of(key).await?),
        };
        let request = self.client.create_multipart_upload().bucket(&self.bucket).key(key);
        let request = as_it_was!(request, was, metadata, customer).set_tagging(tags);
        let begun = Box::pin(request.send())
            .await
            .map_err(|e| from_sdk(e, ACTION, key, Condition::None))?;
        let id = begun.upload_id().unwrap_or_default();
        let copied = match same_encryption(key, was, begun.server_side_encryption()) {
            Ok(()) => self.copy_parts_of(key, id, (size, part), was, customer).await,
            Err(e) => Err(e),
        };
        if copied.is_err() {
            let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(key);
            if let Err(e) = Box::pin(abort.upload_id(id).send()).await {
                let e = from_sdk(e, "abort the copy of", key, Condition::None);
                log::warn!("parts may be left behind: {e}");
            }
        }
        copied
    }

    async fn copy_parts_of(
        &self,
        key: &str,
        id: &str,
        (size, part): (u64, u64),
        was: &HeadObjectOutput,
        customer: Option<&SecretKey32>,
    ) -> Result<()> {
        const ACTION: &str = "copy a part of";
        let mut parts = Vec::new();
        for (start, number) in (0..size).step_by(part as usize).zip(1..) {
            let last = (start + part).min(size) - 1;
            let mut request = self
                .client
                .upload_part_copy()
                .bucket(&self.bucket)
                .key(key)
                .upload_id(id)
                .part_number(number)
                .copy_source(format!("{}/{}", self.bucket, percent_encoded(key)))
                .set_copy_source_if_match(was.e_tag().map(quoted))
                .copy_source_range(format!("bytes={start}-{last}"));
            if let Some(customer) = customer {
                request = with_customer_key!(with_source_key!(request, customer), Some(customer));
            }
            let answer = Box::pin(request.send())
                .await
                .map_err(|e| from_sdk(e, ACTION, key, Condition::Update))?;
            let e_tag = answer.copy_part_result().and_then(|r| r.e_tag());
            let e_tag = e_tag_of(e_tag, ACTION, key)?;
            parts.push(CompletedPart::builder().part_number(number).e_tag(e_tag).build());
        }
        let named = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.client.complete_multipart_upload().bucket(&self.bucket).key(key);
        let answer = Box::pin(request.upload_id(id).multipart_upload(named).send())
            .await
            .map_err(|e| from_sdk(e, "finish the copy of", key, Condition::Update))?;
        e_tag_of(answer.e_tag(), "finish the copy of", key).map(drop)
    }

    async fn tagging_of(&self, key: &str) -> Result<String> {
        let request = self.client.get_object_tagging().bucket(&self.bucket).key(key);
        let answer = Box::pin(request.send())
            .await
            .map_err(|e| from_sdk(e, "get the tags of", key, Condition::None))?;
        let pairs = answer.tag_set().iter().map(|tag| (tag.key(), tag.value()));
        Ok(url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish())
    }
}

/// Whether an object is encrypted on the server as it was before.
fn same_encryption(
    key: &str,
    was: &HeadObjectOutput,
    now: Option<&ServerSideEncryption>,
) -> Result<()> {
    match was.server_side_encryption() {
        Some(mode) if now != Some(mode) => {
            let now = now.map_or("none", |mode| mode.as_str());
            let message =
                format!("copy {key}: it was encrypted as {mode} on the server, and now as {now}");
            Err(own(ErrorClass::SseMismatch, message))
        }
        _ => Ok(()),
    }
}
