//! ListObjectsV2, page by page.
//!
//! A page is asked for when the stream is polled for it; pages are never held together, except
//! by `list_with_delimiter`, whose result is one list.

use super::Inner;
use super::errors::{Condition, from_sdk, own};
use super::read::system_time;
use crate::store::error::ErrorClass;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, Result};
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
            below.insert(path_of(inner, common)?);
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

/// The objects of a page. The prefix itself as a key (the "folder" of consoles) is not one.
fn objects<'a>(
    inner: &'a Inner,
    page: &'a ListObjectsV2Output,
) -> impl Iterator<Item = Result<ObjectMeta>> + 'a {
    page.contents().iter().filter(|object| object.key().is_none_or(|k| !k.ends_with('/'))).map(
        |object| {
            let key = object.key().unwrap_or_default();
            let size = object.size().and_then(|s| u64::try_from(s).ok()).ok_or_else(|| {
                own(ErrorClass::Transport, format!("list: the entry of {key} has no size"))
            })?;
            Ok(ObjectMeta {
                location: path_of(inner, key)?,
                last_modified: system_time(object.last_modified()).into(),
                size,
                e_tag: object.e_tag().map(str::to_owned),
                version: None,
            })
        },
    )
}

/// The path below the store's prefix of a full key.
fn path_of(inner: &Inner, key: &str) -> Result<Path> {
    let below = key.strip_prefix(&inner.prefix).ok_or_else(|| {
        own(ErrorClass::Transport, format!("list: {key} is not below {}", inner.prefix))
    })?;
    Path::parse(below)
        .map_err(|e| own(ErrorClass::Other, format!("list: {key:?} is not a path: {e}")))
}
