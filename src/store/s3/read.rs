//! GetObject and HeadObject.
//!
//! Checks that the answer is the range that was asked for, since a server or proxy that ignores
//! `Range` would otherwise hand other bytes to the caller. What the bytes are is for the sealed
//! layer to say. Server-side encryption is compared on writes only: a read never depends on it.

use super::answers::PAGE_HINT;
use super::body::CountedBody;
use super::errors::{may_be_the_key, own, read_from_sdk};
use super::write::with_customer_key;
use super::{Inner, SecretKey32};
use crate::base::in_calendar;
use crate::store::error::ErrorClass;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use object_store::path::Path;
use object_store::{
    Attributes, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, Result,
};
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// Puts the conditions and the version of `options`, and the customer key, on a read.
macro_rules! with_read_options {
    ($request:expr, $options:expr, $customer_key:expr) => {{
        let request = $request
            .set_if_match($options.if_match.as_deref().map(quoted))
            .set_if_none_match($options.if_none_match.as_deref().map(quoted))
            .set_if_modified_since($options.if_modified_since.map(|t| date_time(t.into())))
            .set_if_unmodified_since($options.if_unmodified_since.map(|t| date_time(t.into())))
            .set_version_id($options.version.clone());
        with_customer_key!(request, $customer_key)
    }};
}

impl Inner {
    /// One GetObject, or as many as there are customer keys to try. The body arrives while the
    /// returned stream is polled; nothing is buffered.
    pub(super) async fn get(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let path = location.as_ref();
        let range = options.range.as_ref().map(|range| range_header(range, path)).transpose()?;
        let answer = self.with_fitting_key("get", path, |key| {
            let request = self.client.get_object().bucket(&self.bucket).key(self.key(location));
            with_read_options!(request, options, key).set_range(range.clone()).send()
        });
        let answer = answer.await?;
        is_of_an_object("get", path, answer.e_tag(), answer.last_modified())?;

        let length = content_length(answer.content_length, path)?;
        let (returned, size) = match &options.range {
            None => (0..length, length),
            Some(asked) => partial(asked, answer.content_range.as_deref(), length)
                .map_err(|problem| own(ErrorClass::Transport, format!("get {path}: {problem}")))?,
        };
        let meta = meta_of(location, size, answer.last_modified, answer.e_tag, answer.version_id);
        let body = CountedBody::new(answer.body, length, path);
        Ok(GetResult {
            payload: GetResultPayload::Stream(Box::pin(body)),
            meta,
            range: returned,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    /// One HeadObject (or more, as for `get`), as a result with an empty body.
    pub(super) async fn head(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let answer = self.head_object(location, &options).await?;
        is_of_an_object("head", location.as_ref(), answer.e_tag(), answer.last_modified())?;
        let size = content_length(answer.content_length, location.as_ref())?;
        let meta = meta_of(location, size, answer.last_modified, answer.e_tag, answer.version_id);
        Ok(GetResult {
            payload: GetResultPayload::Stream(Box::pin(futures::stream::empty())),
            meta,
            range: 0..size,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    /// The answer to a HeadObject with the customer key that fits.
    pub(super) async fn head_object(
        &self,
        location: &Path,
        options: &GetOptions,
    ) -> Result<HeadObjectOutput> {
        self.with_fitting_key("head", location.as_ref(), |key| {
            let request = self.client.head_object().bucket(&self.bucket).key(self.key(location));
            with_read_options!(request, options, key).send()
        })
        .await
    }

    /// Sends a read with each customer key that may fit, and without one, until the server does
    /// not refuse it for the key; if it refuses all, the refusal of a key is reported.
    pub(super) async fn with_fitting_key<T, E, F>(
        &self,
        action: &'static str,
        path: &str,
        send: impl Fn(Option<&SecretKey32>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let candidates = self.encryption.candidates(path);
        let mut refused = None;
        for candidate in candidates {
            match send(candidate.as_ref()).await {
                Ok(answer) => {
                    self.encryption.opened(path, &candidate);
                    return Ok(answer);
                }
                Err(error) => {
                    let for_the_key = may_be_the_key(&error);
                    let error = read_from_sdk(error, action, path, &candidate);
                    if !for_the_key {
                        return Err(error);
                    }
                    if refused.is_none() || candidate.is_some() {
                        refused = Some(error);
                    }
                }
            }
        }
        Err(refused.expect("there is always a candidate"))
    }
}

/// Every answer about an object has its version or its time.
pub(super) fn is_of_an_object(
    action: &str,
    path: &str,
    e_tag: Option<&str>,
    modified: Option<&DateTime>,
) -> Result<()> {
    if e_tag.is_some() || modified.is_some() {
        return Ok(());
    }
    let message = format!(
        "{action} {path}: the answer has neither ETag nor time, so it is not the store's\nhint: {PAGE_HINT}"
    );
    Err(own(ErrorClass::Foreign, message))
}

/// `Range` for a GetObject. An empty range has no header that means it, and is an error.
pub(super) fn range_header(range: &GetRange, path: &str) -> Result<String> {
    match range {
        GetRange::Bounded(r) if r.start < r.end => Ok(format!("bytes={}-{}", r.start, r.end - 1)),
        GetRange::Offset(start) => Ok(format!("bytes={start}-")),
        GetRange::Suffix(length) if *length > 0 => Ok(format!("bytes=-{length}")),
        empty => Err(own(ErrorClass::Other, format!("get {path}: the range {empty} is empty"))),
    }
}

/// The range and object size that an answer to a ranged request names, if they fit what was
/// asked and the length of the body.
pub(super) fn partial(
    asked: &GetRange,
    content_range: Option<&str>,
    length: u64,
) -> std::result::Result<(Range<u64>, u64), &'static str> {
    let header = content_range.ok_or("the server ignored the range")?;
    let (first, last, size) = parse_content_range(header).ok_or("the answer's range is garbled")?;
    let returned = first..last + 1;
    let expected = match asked {
        GetRange::Bounded(r) => r.start..r.end.min(size),
        GetRange::Offset(start) => *start..size,
        GetRange::Suffix(n) => size.saturating_sub(*n)..size,
    };
    if returned != expected {
        return Err("the server answered another range");
    }
    if returned.end - returned.start != length {
        return Err("the body is not as long as its range");
    }
    Ok((returned, size))
}

/// `bytes first-last/size`, with `first <= last < size`.
fn parse_content_range(header: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then_some((first, last, size))
}

pub(super) fn content_length(length: Option<i64>, path: &str) -> Result<u64> {
    length.and_then(|l| u64::try_from(l).ok()).ok_or_else(|| {
        own(ErrorClass::Transport, format!("get {path}: the answer has no content length"))
    })
}

/// An ETag as a condition header carries it: quoted unless it is already, or is `*`.
pub(super) fn quoted(e_tag: &str) -> String {
    match e_tag == "*" || e_tag.starts_with('"') || e_tag.starts_with("W/") {
        true => e_tag.to_owned(),
        false => format!("\"{e_tag}\""),
    }
}

fn meta_of(
    location: &Path,
    size: u64,
    last_modified: Option<DateTime>,
    e_tag: Option<String>,
    version: Option<String>,
) -> ObjectMeta {
    let last_modified = system_time(last_modified.as_ref()).into();
    ObjectMeta { location: location.clone(), last_modified, size, e_tag, version }
}

fn date_time(time: SystemTime) -> DateTime {
    DateTime::from(time)
}

/// A time of an answer; 1970 where it is absent, since nothing here depends on it.
pub(super) fn system_time(time: Option<&DateTime>) -> SystemTime {
    time.and_then(|t| SystemTime::try_from(*t).ok()).map_or(UNIX_EPOCH, in_calendar)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled_text;

    #[test]
    fn an_answer_must_be_the_range_that_was_asked_for() {
        // Guards against bytes of one place of an object being handed out as those of another,
        // by a server or proxy that treats ranges its own way.
        use GetRange::*;
        let fits: &[(GetRange, &str, u64, Range<u64>)] = &[
            (Bounded(2..5), "bytes 2-4/10", 3, 2..5),
            (Bounded(8..20), "bytes 8-9/10", 2, 8..10),
            (Offset(4), "bytes 4-9/10", 6, 4..10),
            (Suffix(3), "bytes 7-9/10", 3, 7..10),
            (Suffix(30), "bytes 0-9/10", 10, 0..10),
        ];
        for (asked, header, length, expected) in fits {
            let got = partial(asked, Some(header), *length).unwrap();
            assert_eq!(got, (expected.clone(), 10), "{asked} {header}");
        }
        let wrong: &[(GetRange, Option<&str>, u64)] = &[
            (Bounded(2..5), None, 10),
            (Bounded(2..5), Some("bytes 0-9/10"), 10),
            (Bounded(2..5), Some("bytes 3-5/10"), 3),
            (Bounded(2..5), Some("bytes 2-3/10"), 2),
            (Bounded(2..5), Some("bytes 2-4/10"), 2),
            (Bounded(2..5), Some("bytes 2-4/*"), 3),
            (Bounded(2..5), Some("bytes 4-2/10"), 3),
            (Bounded(2..5), Some("bytes 2-4/4"), 3),
            (Bounded(2..5), Some("2-4/10"), 3),
            (Bounded(2..5), Some("bytes 2-18446744073709551615/18446744073709551615"), 3),
            (Offset(4), Some("bytes 4-8/10"), 5),
            (Suffix(3), Some("bytes 0-2/10"), 3),
        ];
        for (asked, header, length) in wrong {
            assert!(partial(asked, *header, *length).is_err(), "{asked} {header:?}");
        }
    }

    #[test]
    fn range_headers_are_inclusive_and_empty_ranges_are_refused() {
        // Guards against an off-by-one at the end, and against `bytes=5-4`, which servers take
        // for the whole object.
        let header = |range: GetRange| range_header(&range, "p").ok();
        assert_eq!(header(GetRange::Bounded(0..1)).as_deref(), Some("bytes=0-0"));
        assert_eq!(header(GetRange::Bounded(5..9)).as_deref(), Some("bytes=5-8"));
        assert_eq!(header(GetRange::Offset(7)).as_deref(), Some("bytes=7-"));
        assert_eq!(header(GetRange::Suffix(7)).as_deref(), Some("bytes=-7"));
        assert_eq!(header(GetRange::Bounded(5..5)), None);
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = GetRange::Bounded(5..4);
        assert_eq!(header(reversed), None);
        assert_eq!(header(GetRange::Suffix(0)), None);
    }

    #[test]
    fn condition_headers_quote_bare_etags_only() {
        // Guards against a condition that can never match because of doubled or missing quotes.
        assert_eq!(quoted("abc"), "\"abc\"");
        assert_eq!(quoted("\"abc\""), "\"abc\"");
        assert_eq!(quoted("W/\"abc\""), "W/\"abc\"");
        assert_eq!(quoted("*"), "*");
    }

    #[test]
    fn no_range_of_an_answer_is_believed_that_is_not_the_one_asked_for() {
        // Guards against an overflow, and bytes of another place.
        let asked = [GetRange::Bounded(2..5), GetRange::Offset(4), GetRange::Suffix(3)];
        let words = ["18446744073709551615", "-", "/", "0", "*", "+", " ", "9223372036854775808"];
        garbled_text(&["bytes 2-4/10", "bytes 4-9/10", "bytes 7-9/10"], &words, |header| {
            for asked in &asked {
                for length in [0, 3, 6, u64::MAX] {
                    let Ok((range, size)) = partial(asked, Some(header), length) else { continue };
                    assert!(range.end <= size && range.end - range.start == length, "{header}");
                    let begins = match asked {
                        GetRange::Bounded(range) => range.start,
                        GetRange::Offset(start) => *start,
                        GetRange::Suffix(len) => size.saturating_sub(*len),
                    };
                    assert_eq!(range.start, begins, "{header}");
                }
            }
        });
    }
}
