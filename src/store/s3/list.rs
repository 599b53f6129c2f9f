//! ListObjectsV2, page by page.
//!
//! A page is asked for when the stream is polled for it; pages are never held together, except
//! by `list_with_delimiter`, whose result is one list.

use super::Inner;
use super::errors::{Condition, from_sdk, own};
use super::read::system_time;
use crate::store::error::ErrorClass;
use crate::store::names::{path_of, percent_decoded};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, Result};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The pages of one listing.
struct Pages {
    inner: Arc<Inner>,
    /// Full key prefix: the store's, then the caller's with its closing slash.
    prefix: String,
    start_after: Option<String>,
    delimiter: Option<&'static str>,
    token: Option<String>,
}

/// Every object below `prefix` (which is whole path segments), after `offset` if there is one,
/// in key order.
pub(super) fn list(
    inner: Arc<Inner>,
    prefix: Option<&Path>,
    offset: Option<&Path>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let start_after = offset.map(|path| inner.key(path));
    let pages = Pages {
        prefix: key_prefix(&inner, prefix),
        inner,
        start_after,
        delimiter: None,
        token: None,
    };
    pages
        .into_stream()
        .map_ok(|(inner, page)| {
            let objects: Vec<_> = objects(&inner, &page).collect();
            stream::iter(objects)
        })
        .try_flatten()
        .boxed()
}

/// The objects and the next path segments directly below `prefix`.
pub(super) async fn list_with_delimiter(
    inner: &Arc<Inner>,
    prefix: Option<&Path>,
) -> Result<ListResult> {
    let pages = Pages {
        prefix: key_prefix(inner, prefix),
        inner: inner.clone(),
        start_after: None,
        delimiter: Some("/"),
        token: None,
    };
    let mut pages = pages.into_stream();
    let (mut found, mut below) = (Vec::new(), BTreeSet::new());
    while let Some((_, page)) = pages.try_next().await? {
        for object in objects(inner, &page) {
            found.push(object?);
        }
        for common in page.common_prefixes().iter().filter_map(|p| p.prefix()) {
            let key = key_of(&page, common);
            below.insert(path_below(inner, key.strip_suffix(b"/").unwrap_or(&key))?);
        }
    }
    Ok(ListResult {
        objects: found,
        common_prefixes: below.into_iter().collect(),
        extensions: Default::default(),
    })
}

impl Pages {
    fn into_stream(self) -> BoxStream<'static, Result<(Arc<Inner>, ListObjectsV2Output)>> {
        stream::try_unfold(Some(self), |pages| async move {
            let Some(mut pages) = pages else { return Ok(None) };
            let answer = pages.next().await?;
            let inner = pages.inner.clone();
            let more = answer.is_truncated().unwrap_or(false);
            pages.token = answer.next_continuation_token().map(str::to_owned);
            if more && pages.token.is_none() {
                let message = format!("list {}: a page is truncated without a token", pages.prefix);
                return Err(own(ErrorClass::Transport, message));
            }
            Ok(Some(((inner, answer), more.then_some(pages))))
        })
        .boxed()
    }

    async fn next(&self) -> Result<ListObjectsV2Output> {
        self.inner
            .client
            .list_objects_v2()
            .bucket(&self.inner.bucket)
            .prefix(&self.prefix)
            .set_delimiter(self.delimiter.map(str::to_owned))
            .set_start_after(self.start_after.clone())
            .set_continuation_token(self.token.clone())
            // XML cannot say every key that a bucket can hold.
            .encoding_type(EncodingType::Url)
            .send()
            .await
            .map_err(|e| from_sdk(e, "list", &self.prefix, Condition::None))
            .and_then(|page| match page.name().is_some() || page.is_truncated().is_some() {
                true => Ok(page),
                // An empty element is not an empty bucket.
                false => {
                    let message = format!("list {}: the answer is no listing", self.prefix);
                    Err(own(ErrorClass::Foreign, message))
                }
            })
    }
}

/// The key prefix of a listing: whole segments, so that `a` does not find `ab`.
fn key_prefix(inner: &Inner, prefix: Option<&Path>) -> String {
    match prefix.filter(|path| !path.as_ref().is_empty()) {
        Some(path) => format!("{}/", inner.key(path)),
        None => inner.prefix.clone(),
    }
}

/// The objects of a page. An empty one whose key ends with a slash (the "folder" of consoles) is
/// none.
fn objects<'a>(
    inner: &'a Inner,
    page: &'a ListObjectsV2Output,
) -> impl Iterator<Item = Result<ObjectMeta>> + 'a {
    let is_folder = |object: &&aws_sdk_s3::types::Object| {
        object.size() == Some(0)
            && object.key().is_some_and(|key| key_of(page, key).ends_with(b"/"))
    };
    page.contents().iter().filter(move |object| !is_folder(object)).map(|object| {
        let key = object.key().unwrap_or_default();
        let size = object.size().and_then(|s| u64::try_from(s).ok()).ok_or_else(|| {
            own(ErrorClass::Transport, format!("list: the entry of {key} has no size"))
        })?;
        Ok(ObjectMeta {
            location: path_below(inner, &key_of(page, key))?,
            last_modified: system_time(object.last_modified()).into(),
            size,
            e_tag: object.e_tag().map(str::to_owned),
            version: None,
        })
    })
}

/// The key that an entry stands for. A server that does not know the encoding does not say so.
fn key_of<'a>(page: &ListObjectsV2Output, listed: &'a str) -> Cow<'a, [u8]> {
    match page.encoding_type() {
        Some(EncodingType::Url) if listed.contains(['%', '+']) => {
            let spaces = listed.replace('+', " ");
            percent_decoded(spaces.as_bytes()).map_or(listed.as_bytes().into(), Cow::Owned)
        }
        _ => listed.as_bytes().into(),
    }
}

/// The path below the store's prefix of a full key.
fn path_below(inner: &Inner, key: &[u8]) -> Result<Path> {
    let below = key.strip_prefix(inner.prefix.as_bytes()).ok_or_else(|| {
        let key = String::from_utf8_lossy(key);
        own(ErrorClass::Transport, format!("list: {key} is not below {}", inner.prefix))
    })?;
    Ok(path_of(below))
}
