//! Objects for other tools, by their exact keys: put whole or in parts, with metadata, and removed.
//!
//! The encryption and the tags of the store are on every request, and its answer is compared, as in
//! `write.rs`. Called by `exchange/`.

use super::answers::Seen;
use super::body::{crc32_header, request_body};
use super::errors::{Condition, from_code, from_sdk, is_unsupported, own, write_from_sdk};
use super::objects::About;
use super::proof::{PartNote, Said, bare, prove_part};
use super::sse::{Answer, Applied};
use super::upload::PartOf;
use super::write::{applied, applied_by_s3, check_sse, watched, with_sse};
use super::{Inner, S3Store};
use crate::base::hex;
use crate::store::error::{ErrorClass, sentence};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, Delete, ObjectIdentifier, ServerSideEncryption,
    StorageClass,
};
use md5::{Digest, Md5};
use object_store::{PutPayload, Result};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

/// Keys of one DeleteObjects request (S3 API Reference, "DeleteObjects").
const DELETE_BATCH_MAX: usize = 1000;

/// What is put beside the bytes of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// User metadata, names without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
    /// `content-type` and the like, by the name of the header.
    pub headers: BTreeMap<String, String>,
    /// Tags of this object; the store's own come first where they have the same name.
    pub tags: BTreeMap<String, String>,
    /// Storage class; `None` leaves it to the bucket.
    pub storage_class: Option<String>,
}

/// Puts the labels on a request that creates an object.
macro_rules! with_labels {
    ($request:expr, $labels:expr) => {{
        let labels: &Labels = $labels;
        let header = |name: &str| labels.headers.get(name).cloned();
        let metadata = labels.metadata.clone().into_iter().collect();
        $request
            .set_metadata(Some(metadata))
            .set_content_type(header("content-type"))
            .set_cache_control(header("cache-control"))
            .set_content_disposition(header("content-disposition"))
            .set_content_encoding(header("content-encoding"))
            .set_content_language(header("content-language"))
            .set_storage_class(labels.storage_class.as_deref().map(StorageClass::from))
    }};
}

/// A multipart upload under way.
#[derive(Clone, Debug)]
pub struct Sending {
    key: String,
    id: String,
}

impl Sending {
    /// The upload `id` of `key`, which an earlier run has begun.
    pub fn of(key: &str, id: &str) -> Sending {
        Sending { key: key.to_owned(), id: id.to_owned() }
    }

    /// The key that its object will have.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its upload id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl S3Store {
    /// One PutObject; the ETag of the object.
    ///
    /// # Errors
    /// Those of PutObject, classified; `SseMismatch` if the answer names another encryption;
    /// `Foreign` if nothing proves that it is stored.
    pub async fn put_key(&self, key: &str, body: PutPayload, labels: &Labels) -> Result<String> {
        self.inner.put_again_with_md5(|| self.put_key_once(key, body.clone(), labels)).await
    }

    async fn put_key_once(&self, key: &str, body: PutPayload, labels: &Labels) -> Result<String> {
        const ACTION: &str = "put";
        let inner = &self.inner;
        let checksum = crc32_header(&body);
        let length = body.content_length();
        let request = inner
            .client
            .put_object()
            .bucket(&inner.bucket)
            .key(key)
            .checksum_crc32(&checksum)
            .set_content_md5(inner.content_md5(&body))
            .content_length(length as i64)
            .body(request_body(body.clone(), inner.sign_payload));
        let sse = inner.encryption.now();
        let request = with_sse!(with_labels!(request, labels), sse.mode(), inner.tags_with(labels));
        let seen = Seen::default();
        let request = watched!(request, inner, seen);
        let answer = Box::pin(request.send())
            .await
            .map_err(|e| write_from_sdk(e, ACTION, key, Condition::None, sse.mode()))?;
        let said = Said {
            status: seen.status(),
            e_tag: answer.e_tag(),
            checksum: answer.checksum_crc32(),
        };
        let e_tag = bare(prove_part(ACTION, key, &checksum, said)?).to_owned();
        let is_proven = said.checksum.is_some() || {
            let mut hash = Md5::new();
            body.iter().for_each(|piece| hash.update(piece));
            hex(&hash.finalize()) == e_tag
        };
        if !is_proven {
            self.must_be(ACTION, key, length as u64, &e_tag).await?;
        }
        check_sse(&sse, Answer::Whole, applied!(answer), ACTION, key)?;
        Ok(e_tag)
    }

    /// CreateMultipartUpload; an upload whose answer names another encryption is aborted.
    ///
    /// # Errors
    /// As [`S3Store::put_key`].
    pub async fn begin_key(&self, key: &str, labels: &Labels) -> Result<Sending> {
        const ACTION: &str = "start the upload of";
        let inner = &self.inner;
        let request = inner
            .client
            .create_multipart_upload()
            .bucket(&inner.bucket)
            .key(key)
            .checksum_algorithm(ChecksumAlgorithm::Crc32);
        let sse = inner.encryption.now();
        let request = with_sse!(with_labels!(request, labels), sse.mode(), inner.tags_with(labels));
        let answer = Box::pin(request.send())
            .await
            .map_err(|e| write_from_sdk(e, ACTION, key, Condition::None, sse.mode()))?;
        let id = answer.upload_id().unwrap_or_default().to_owned();
        if id.is_empty() {
            let message = format!("{ACTION} {key}: the answer has no upload id");
            return Err(own(ErrorClass::Foreign, message));
        }
        let sending = Sending { key: key.to_owned(), id };
        if let Err(mismatch) = check_sse(&sse, Answer::Begun, applied!(answer), ACTION, key) {
            self.abort_key(&sending).await;
            return Err(mismatch);
        }
        Ok(sending)
    }

    /// UploadPart of the part `number`, from 1; what the end of the upload needs of it.
    ///
    /// # Errors
    /// As [`S3Store::put_key`].
    pub async fn put_part_of(
        &self,
        sending: &Sending,
        number: i32,
        body: PutPayload,
    ) -> Result<PartNote> {
        let (key, upload) = (sending.key.as_str(), sending.id.as_str());
        let part = PartOf { key, shown: key, upload, number };
        self.inner.send_part(part, &self.inner.encryption.now(), body).await
    }

    /// CompleteMultipartUpload of parts in their order, `size` bytes in all; then one HeadObject
    /// makes certain that it is there.
    ///
    /// # Errors
    /// As [`S3Store::put_key`].
    pub async fn end_key(
        &self,
        sending: &Sending,
        parts: &[PartNote],
        size: u64,
    ) -> Result<String> {
        const ACTION: &str = "finish the upload of";
        let (inner, key) = (&self.inner, sending.key.as_str());
        let named = parts.iter().zip(1..).map(|(part, number)| part.as_named(number));
        let named = CompletedMultipartUpload::builder().set_parts(Some(named.collect())).build();
        let request = inner
            .client
            .complete_multipart_upload()
            .bucket(&inner.bucket)
            .key(key)
            .upload_id(&sending.id)
            .multipart_upload(named);
        let answer = Box::pin(request.send())
            .await
            .map_err(|e| from_sdk(e, ACTION, key, Condition::None))?;
        let e_tag = bare(answer.e_tag().unwrap_or_default()).to_owned();
        self.must_be(ACTION, key, size, &e_tag).await?;
        let applied = applied_by_s3!(answer);
        check_sse(&inner.encryption.now(), Answer::Part, applied, ACTION, key)?;
        Ok(e_tag)
    }

    /// AbortMultipartUpload; whether it is gone. A failure is only logged: the server keeps the parts
    /// until somebody else, or a lifecycle rule of the bucket, removes them.
    pub async fn abort_key(&self, sending: &Sending) -> bool {
        let inner = &self.inner;
        let request = inner
            .client
            .abort_multipart_upload()
            .bucket(&inner.bucket)
            .key(&sending.key)
            .upload_id(&sending.id);
        match Box::pin(request.send()).await {
            Ok(_) => true,
            Err(e) if e.code() == Some("NoSuchUpload") => true,
            Err(e) => {
                let e = from_sdk(e, "abort the upload of", &sending.key, Condition::None);
                log::warn!("parts may be left behind: {}", sentence(&e));
                false
            }
        }
    }

    /// Makes certain that an object of `size` bytes is there, with the ETag that an answer named.
    async fn must_be(&self, action: &str, key: &str, size: u64, e_tag: &str) -> Result<()> {
        let found: About = Box::pin(self.about(key)).await?;
        match found.size == size && (e_tag.is_empty() || found.e_tag == e_tag) {
            true => Ok(()),
            false => {
                let message = format!("{action} {key}: another object lies under its name");
                Err(own(ErrorClass::Foreign, message))
            }
        }
    }

    /// Deletes up to [`DELETE_BATCH_MAX`] objects in one request, or one by one where the server
    /// knows no better; what failed of it, by key.
    pub async fn remove_keys(&self, keys: &[String]) -> Vec<(String, object_store::Error)> {
        debug_assert!(keys.len() <= DELETE_BATCH_MAX);
        let inner = &self.inner;
        let (mut failed, mut alone) = (Vec::new(), keys.to_vec());
        if keys.len() > 1 && inner.batch_delete.load(Ordering::Relaxed) {
            let (batch, others) = keys.iter().cloned().partition::<Vec<_>, _>(|key| is_xml(key));
            match inner.remove_batch(&batch).await {
                Some(of_batch) => (failed, alone) = (of_batch, others),
                None => inner.batch_delete.store(false, Ordering::Relaxed),
            }
        }
        for key in &alone {
            let request = inner.client.delete_object().bucket(&inner.bucket).key(key);
            match Box::pin(request.send()).await {
                Ok(_) => {}
                Err(e) => match from_sdk(e, "delete", key, Condition::None) {
                    object_store::Error::NotFound { .. } => {}
                    e => failed.push((key.clone(), e)),
                },
            }
        }
        failed
    }
}

impl Inner {
    /// The tags of an object, those of the store over its own, as their header carries them.
    fn tags_with(&self, labels: &Labels) -> Option<String> {
        let common = self.encryption.tags();
        if labels.tags.is_empty() {
            return common;
        }
        let mut tags = labels.tags.clone();
        let common = common.unwrap_or_default();
        tags.extend(url::form_urlencoded::parse(common.as_bytes()).into_owned());
        Some(url::form_urlencoded::Serializer::new(String::new()).extend_pairs(tags).finish())
    }

    /// One DeleteObjects, none for no keys; `None` if the server does not know it.
    async fn remove_batch(&self, keys: &[String]) -> Option<Vec<(String, object_store::Error)>> {
        if keys.is_empty() {
            return Some(Vec::new());
        }
        let object = |key: &String| ObjectIdentifier::builder().key(key).build();
        let objects = keys.iter().map(object).collect::<std::result::Result<_, _>>();
        let all = |class, why: &str| {
            let error = |key: &String| (key.clone(), own(class, format!("delete {key}: {why}")));
            Some(keys.iter().map(error).collect())
        };
        let Ok(objects) = objects else { return all(ErrorClass::Other, "it cannot be asked for") };
        let delete = Delete::builder().set_objects(Some(objects)).quiet(false).build();
        let Ok(delete) = delete else { return all(ErrorClass::Other, "it cannot be asked for") };
        let request = self.client.delete_objects().bucket(&self.bucket).delete(delete);
        let answer = match Box::pin(request.send()).await {
            Ok(answer) => answer,
            Err(e) if is_unsupported(&e) => return None,
            Err(e) => {
                let e = from_sdk(e, "delete", &self.bucket, Condition::None);
                return all(crate::store::error::class(&e), &sentence(&e));
            }
        };
        let gone: HashSet<&str> = answer.deleted().iter().filter_map(|d| d.key()).collect();
        let refused = |key: &str| answer.errors().iter().find(|e| e.key() == Some(key));
        let failed = |key: &String| match refused(key) {
            Some(e) => {
                let (code, said) = (e.code().unwrap_or_default(), e.message().unwrap_or_default());
                Some((key.clone(), from_code(code, said, "delete", key)))
            }
            None if gone.contains(key.as_str()) => None,
            None => {
                let message = format!("delete {key}: the answer does not name it");
                Some((key.clone(), own(ErrorClass::Foreign, message)))
            }
        };
        Some(keys.iter().filter_map(failed).collect())
    }
}

/// Whether XML 1.0 can write all characters of a key (its production `Char`). One that it cannot would
/// make the whole request invalid, and every key of it fail.
fn is_xml(key: &str) -> bool {
    key.chars().all(|c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_xml_cannot_write_are_told_apart() {
        // Guards against a request that a server refuses as a whole (moto: 500, AWS: MalformedXML), for one key.
        for key in ["a", "é ü/\n\t\r", "\u{fffd}", "\u{10ffff}", "a&<>\"'", "\u{7f}"] {
            assert!(is_xml(key), "{key:?}");
        }
        for key in ["\u{1}", "a\u{1f}", "\0", "\u{fffe}", "\u{ffff}"] {
            assert!(!is_xml(key), "{key:?}");
        }
    }
}
