//! Multipart uploads of other tools' objects that are not over: which parts one has, and which there are.
//!
//! Called by `exchange/`, which goes on with its own.

use super::S3Store;
use super::errors::{Condition, from_sdk, own};
use super::objects_write::Sending;
use super::proof::PartNote;
use super::read::system_time;
use super::write::with_customer_key;
use crate::store::error::ErrorClass;
use crate::store::location::percent_decode;
use aws_sdk_s3::types::EncodingType;
use object_store::Result;
use std::time::SystemTime;

/// A part that the server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: i32,
    /// Bytes.
    pub size: u64,
    /// What the end of the upload has to name of it.
    pub note: PartNote,
}

/// An upload that was begun, and neither finished nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The key that its object would have.
    pub key: String,
    /// Its upload id.
    pub id: String,
    /// When it was begun.
    pub begun: SystemTime,
}

impl S3Store {
    /// The parts of an upload, in their order: one ListParts for each thousand.
    ///
    /// # Errors
    /// There is no such upload (any more); those of ListParts.
    pub async fn parts_of(&self, sending: &Sending) -> Result<Vec<Part>> {
        const ACTION: &str = "list the parts of";
        let (inner, key) = (&self.inner, sending.key());
        let (mut parts, mut after) = (Vec::new(), None);
        loop {
            let request = inner
                .client
                .list_parts()
                .bucket(&inner.bucket)
                .key(key)
                .upload_id(sending.id())
                .set_part_number_marker(after);
            let sse = inner.encryption.now();
            let request = with_customer_key!(request, sse.mode().customer_key());
            let answer = Box::pin(request.send())
                .await
                .map_err(|e| from_sdk(e, ACTION, key, Condition::None))?;
            if answer.upload_id().is_some_and(|id| id != sending.id()) {
                return Err(own(
                    ErrorClass::Foreign,
                    format!("{ACTION} {key}: it is of another upload"),
                ));
            }
            for part in answer.parts() {
                let size = part.size().and_then(|size| u64::try_from(size).ok());
                let (Some(number), Some(size), Some(e_tag)) =
                    (part.part_number(), size, part.e_tag())
                else {
                    continue; // it is sent again
                };
                let (e_tag, checksum) = (e_tag.to_owned(), part.checksum_crc32());
                let checksum = checksum.unwrap_or_default().to_owned();
                parts.push(Part { number, size, note: PartNote { checksum, len: size, e_tag } });
            }
            after = answer.next_part_number_marker().map(str::to_owned);
            if !answer.is_truncated().unwrap_or(false) || after.is_none() {
                return Ok(parts);
            }
        }
    }

    /// The uploads below `prefix`: one ListMultipartUploads for each thousand.
    ///
    /// # Errors
    /// Those of ListMultipartUploads, which many may not ask for.
    pub async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>> {
        const ACTION: &str = "list the uploads below";
        let inner = &self.inner;
        let (mut found, mut after) = (Vec::new(), (None, None));
        loop {
            let request = inner
                .client
                .list_multipart_uploads()
                .bucket(&inner.bucket)
                .prefix(prefix)
                .encoding_type(EncodingType::Url)
                .set_key_marker(after.0)
                .set_upload_id_marker(after.1);
            let answer = Box::pin(request.send())
                .await
                .map_err(|e| from_sdk(e, ACTION, prefix, Condition::None))?;
            let is_encoded = answer.encoding_type() == Some(&EncodingType::Url);
            let decoded = |text: &str| match is_encoded {
                true => percent_decode(&text.replace('+', " ")).unwrap_or_else(|| text.to_owned()),
                false => text.to_owned(),
            };
            for upload in answer.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
                let (key, id) = (decoded(key), id.to_owned());
                // moto lists those of other prefixes too.
                if key.starts_with(prefix) {
                    found.push(Unfinished { key, id, begun: system_time(upload.initiated()) });
                }
            }
            let next = (answer.next_key_marker(), answer.next_upload_id_marker());
            after = (next.0.map(decoded), next.1.map(str::to_owned));
            if !answer.is_truncated().unwrap_or(false) || after.0.is_none() {
                return Ok(found);
            }
        }
    }
}
