//! Which answers are the store's own.
//!
//! A captive portal, a filtering proxy or a web server at the wrong address answers requests too,
//! often with 200 and a page that it made. Such an answer says nothing about any object, whatever
//! its status: it counts as no answer. Registered once on the client, for every operation.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// What to do about an answer that is a page.
pub(super) const PAGE_HINT: &str =
    "sign in to this network if it asks for that, or check the proxy and --endpoint-url";

/// Refuses successes that are pages, and gives requests without a body a length of none, which
/// some servers insist on (411).
#[derive(Debug)]
pub(super) struct Answers;

impl Intercept for Answers {
    fn name(&self) -> &'static str {
        "Answers"
    }

    /// After signing: a proxy may drop the header again.
    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        // Not a copy: Ceph takes one of a part only with the header, and then ignores its condition.
        let has_none = request.body().content_length() == Some(0)
            && request.headers().get("content-length").is_none()
            && request.headers().get("x-amz-copy-source").is_none();
        if has_none && matches!(request.method(), "PUT" | "POST") {
            request.headers_mut().insert("content-length", "0");
        }
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let answer = context.response();
        match answer.status().is_success() && is_page(answer) {
            true => Err("a page instead of an answer".into()),
            false => Ok(()),
        }
    }
}

/// Keeps the status of the answer, which the client drops of a success.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Arc<AtomicU16>);

impl Seen {
    /// The status of the last answer; 0 before the first.
    pub(super) fn status(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Intercept for Seen {
    fn name(&self) -> &'static str {
        "SeenStatus"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.store(context.response().status().as_u16(), Ordering::Relaxed);
        Ok(())
    }
}

/// Whether an answer is a page for people. Frameworks label empty answers so by default (moto
/// does), hence only one with a body counts, or one that announces a body.
pub(super) fn is_page(answer: &HttpResponse) -> bool {
    let header = |name| answer.headers().get(name).unwrap_or_default().trim();
    let is_labelled = ["text/html", "application/xhtml+xml"].iter().any(|label| {
        header("content-type").get(..label.len()).is_some_and(|t| t.eq_ignore_ascii_case(label))
    });
    let is_empty = match header("content-length").parse::<u64>() {
        Ok(length) => length == 0,
        Err(_) => answer.body().content_length() == Some(0),
    };
    is_labelled && !is_empty || answer.body().bytes().is_some_and(begins_a_page)
}

fn begins_a_page(body: &[u8]) -> bool {
    let text = body.trim_ascii_start();
    let starts = |with: &str| {
        text.get(..with.len()).is_some_and(|head| head.eq_ignore_ascii_case(with.as_bytes()))
    };
    starts("<!doctype html") || starts("<html")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::primitives::SdkBody;

    fn answer(content_type: &str, length: Option<&str>, body: &'static str) -> HttpResponse {
        let status = 200.try_into().expect("a status");
        let mut answer = HttpResponse::new(status, SdkBody::from(body));
        if !content_type.is_empty() {
            answer.headers_mut().insert("content-type", content_type.to_owned());
        }
        if let Some(length) = length {
            answer.headers_mut().insert("content-length", length.to_owned());
        }
        answer
    }

    #[test]
    fn a_page_is_told_from_an_empty_answer_that_is_labelled_as_one() {
        // Guards against a portal's page being believed, and against refusing every answer of a
        // server whose framework calls empty bodies text/html.
        for page in [
            answer("text/html", None, "<p>sign in"),
            answer("Text/HTML; charset=utf-8", Some("9"), ""),
            answer("application/xhtml+xml", None, "x"),
            answer("", None, "\n<!DOCTYPE html><html>"),
            answer("text/plain", None, "<HTML>"),
        ] {
            assert!(is_page(&page), "{page:?}");
        }
        for own in [
            answer("text/html; charset=utf-8", Some("0"), ""),
            answer("text/html", None, ""),
            answer("application/xml", None, "<?xml version=\"1.0\"?><Error/>"),
            answer("binary/octet-stream", None, "\u{7}\u{1}"),
            answer("", None, ""),
        ] {
            assert!(!is_page(&own), "{own:?}");
        }
    }
}
