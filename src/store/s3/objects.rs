//! Objects of other tools, by their exact keys: listed, looked at, read.
//!
//! A key here is whatever S3 takes, with empty parts, `..` and line ends; the store's own prefix is
//! not put before it. One request a call, as in the rest of this folder; whoever calls tries again.
//! Called by `exchange/`.

use super::body::CountedBody;
use super::errors::{Condition, from_sdk, own};
use super::read::{content_length, is_of_an_object, partial, quoted, range_header, system_time};
use super::write::with_customer_key;
use super::{Inner, S3Store, SseKind, sse};
use crate::store::error::ErrorClass;
use crate::store::location::percent_decode;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::{GetRange, Result};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::SystemTime;

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its whole key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was put.
    pub modified: SystemTime,
    /// Its ETag without quotes; empty if the server names none.
    pub e_tag: String,
}

/// What a server says of an object beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Bytes of the whole object.
    pub size: u64,
    /// When it was put; `None` if the answer does not say.
    pub modified: Option<SystemTime>,
    /// Its ETag without quotes; empty if the server names none.
    pub e_tag: String,
    /// User metadata, names in lower case without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
    /// `content-type` and the like, by the name of the header.
    pub headers: BTreeMap<&'static str, String>,
    /// How many tags it has; `None` where the server does not say, as AWS of none.
    pub tags: Option<u32>,
    /// Its server-side encryption, as [`SseKind::name`] names it; `None` where the server says nothing.
    pub encryption: Option<String>,
    /// Whether its ETag may be the MD5 of its bytes: no KMS, no customer key, one part.
    pub is_md5: bool,
}

/// A body as it arrives; an error if it is not as long as announced.
pub type Body = BoxStream<'static, Result<Bytes>>;

/// The fields of a GetObject or HeadObject answer that [`About`] has.
macro_rules! about {
    ($answer:expr, $size:expr) => {{
        let answer = &$answer;
        let headers = [
            ("content-type", answer.content_type()),
            ("cache-control", answer.cache_control()),
            ("content-disposition", answer.content_disposition()),
            ("content-encoding", answer.content_encoding()),
            ("content-language", answer.content_language()),
        ];
        let headers = headers.into_iter().filter_map(|(n, v)| Some((n, v?.to_owned()))).collect();
        let e_tag = super::proof::bare(answer.e_tag().unwrap_or_default()).to_owned();
        let encryption = match answer.sse_customer_algorithm() {
            Some(_) => Some(SseKind::Customer.name().to_owned()),
            None => answer.server_side_encryption().map(|a| a.as_str().to_owned()),
        };
        let is_plain = encryption.as_deref().is_none_or(|a| a == sse::AES256);
        About {
            size: $size,
            modified: answer.last_modified().map(|time| system_time(Some(time))),
            is_md5: is_plain && is_md5(&e_tag),
            e_tag,
            metadata: answer.metadata().map(lower_case).unwrap_or_default(),
            headers,
            tags: answer.tag_count().and_then(|n| u32::try_from(n).ok()),
            encryption,
        }
    }};
}

impl S3Store {
    /// A page of the objects whose keys begin with `prefix`, in the order of the server, and where
    /// the next page begins; the first one begins at `None`.
    ///
    /// # Errors
    /// Those of ListObjectsV2, classified; `Foreign` for an answer that is no listing.
    pub async fn list_keys(
        &self,
        prefix: &str,
        token: Option<String>,
    ) -> Result<(Vec<Listed>, Option<String>)> {
        let page = self.inner.page_of_keys(prefix, token).await?;
        let is_encoded = page.encoding_type() == Some(&EncodingType::Url);
        let mut found = Vec::with_capacity(page.contents().len());
        for object in page.contents() {
            let key = decoded(object.key().unwrap_or_default(), is_encoded);
            let size = object.size().and_then(|s| u64::try_from(s).ok());
            let (Some(size), true) = (size, key.starts_with(prefix)) else {
                let message = format!("list {prefix}: the entry of {key} is not one of it");
                return Err(own(ErrorClass::Transport, message));
            };
            found.push(Listed {
                key,
                size,
                modified: system_time(object.last_modified()),
                e_tag: super::proof::bare(object.e_tag().unwrap_or_default()).to_owned(),
            });
        }
        let next = page.next_continuation_token().map(str::to_owned);
        match page.is_truncated().unwrap_or(false) {
            false => Ok((found, None)),
            true if next.is_some() => Ok((found, next)),
            true => {
                let message = format!("list {prefix}: a page is truncated without a token");
                Err(own(ErrorClass::Transport, message))
            }
        }
    }

    /// One HeadObject of `key`, or as many as there are customer keys to try.
    ///
    /// # Errors
    /// Those of HeadObject, classified.
    pub async fn about(&self, key: &str) -> Result<About> {
        let inner = &self.inner;
        let answer = inner.head_exactly(key).await?;
        is_of_an_object("head", key, answer.e_tag(), answer.last_modified())?;
        let size = content_length(answer.content_length, key)?;
        Ok(about!(answer, size))
    }

    /// One GetObject of `key`, of `range` only if one is given, and only if its ETag is still
    /// `e_tag`, if one is given.
    ///
    /// # Errors
    /// Those of GetObject, classified: `Precondition` if the object is another one now; `Transport`
    /// if the answer is not the range that was asked for.
    pub async fn fetch(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        e_tag: Option<&str>,
    ) -> Result<(About, Body)> {
        let asked = range.map(GetRange::Bounded);
        let header = asked.as_ref().map(|range| range_header(range, key)).transpose()?;
        let inner = &self.inner;
        let answer = inner.with_fitting_key("get", key, |customer| {
            let request = inner
                .client
                .get_object()
                .bucket(&inner.bucket)
                .key(key)
                .set_range(header.clone())
                .set_if_match(e_tag.filter(|tag| !tag.is_empty()).map(quoted));
            with_customer_key!(request, customer).send()
        });
        let answer = Box::pin(answer).await?;
        is_of_an_object("get", key, answer.e_tag(), answer.last_modified())?;
        let length = content_length(answer.content_length, key)?;
        let size = match &asked {
            None => length,
            Some(asked) => {
                let problem = |why| own(ErrorClass::Transport, format!("get {key}: {why}"));
                partial(asked, answer.content_range.as_deref(), length).map_err(problem)?.1
            }
        };
        let about = about!(answer, size);
        Ok((about, CountedBody::new(answer.body, length, key).boxed()))
    }

    /// Whether an object has the encryption that this store puts on what it writes. Keys are not compared:
    /// answers name them otherwise than people do.
    pub fn is_encrypted_as_asked(&self, about: &About) -> bool {
        let asked = self.inner.encryption.now().mode().kind();
        asked == SseKind::Default || about.encryption.as_deref() == Some(asked.name())
    }

    /// The tags of an object: one GetObjectTagging.
    ///
    /// # Errors
    /// Those of GetObjectTagging, classified.
    pub async fn tags_of(&self, key: &str) -> Result<BTreeMap<String, String>> {
        let inner = &self.inner;
        let answer = inner.client.get_object_tagging().bucket(&inner.bucket).key(key).send().await;
        let answer = answer.map_err(|e| from_sdk(e, "get the tags of", key, Condition::None))?;
        let pair = |tag: &aws_sdk_s3::types::Tag| (tag.key().to_owned(), tag.value().to_owned());
        Ok(answer.tag_set().iter().map(pair).collect())
    }
}

impl Inner {
    /// One HeadObject of an exact key, or as many as there are customer keys to try.
    pub(super) async fn head_exactly(&self, key: &str) -> Result<HeadObjectOutput> {
        let answer = self.with_fitting_key("head", key, |customer| {
            let request = self.client.head_object().bucket(&self.bucket).key(key);
            with_customer_key!(request, customer).send()
        });
        Box::pin(answer).await
    }

    async fn page_of_keys(
        &self,
        prefix: &str,
        token: Option<String>,
    ) -> Result<ListObjectsV2Output> {
        let answer = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix)
            // XML has no way to write some characters that keys may have.
            .encoding_type(EncodingType::Url)
            .set_continuation_token(token)
            .send()
            .await
            .map_err(|e| from_sdk(e, "list", prefix, Condition::None))?;
        match answer.name().is_some() || answer.is_truncated().is_some() {
            true => Ok(answer),
            false => {
                let message = format!("list {prefix}: the answer is no listing");
                Err(own(ErrorClass::Foreign, message))
            }
        }
    }
}

/// A key as listed; servers that do not know `encoding-type` give it as it is, and say so.
fn decoded(key: &str, is_encoded: bool) -> String {
    match is_encoded {
        // A form encoding: spaces are plus signs (as botocore reads it).
        true => percent_decode(&key.replace('+', " ")).unwrap_or_else(|| key.to_owned()),
        false => key.to_owned(),
    }
}

fn lower_case(metadata: &HashMap<String, String>) -> BTreeMap<String, String> {
    metadata.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
}

/// Whether an ETag has the form of an MD5; that of an object of several parts has a dash.
fn is_md5(e_tag: &str) -> bool {
    e_tag.len() == 32 && e_tag.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_only_where_the_server_says_that_they_are_encoded() {
        // Guards against "a+b" and "a b" becoming one file, in either direction.
        assert_eq!(decoded("a+b%2Bc%0A%C3%A9", true), "a b+c\né");
        assert_eq!(decoded("a+b%2B", false), "a+b%2B");
        assert_eq!(decoded("100%", true), "100%");
        assert!(is_md5("d41d8cd98f00b204e9800998ecf8427e") && !is_md5("d41d-2"));
    }
}
