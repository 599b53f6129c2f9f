//! How many bytes of the requests under way the connections have taken.
//!
//! A segment on a slow line takes minutes, during which nothing is stored yet: whoever shows
//! progress, or decides that there is none, looks here. Bodies are handed over in frames of
//! [`FRAME`], each counted when the connection takes it; when a request ends, answered or not,
//! its bytes are taken out again. What connections and the kernel buffer is counted as well, some
//! megabytes at most.
//!
//! Here is also where bodies are paced: a frame waits until the limit of what is sent lets it through.

use crate::store::limits::{Limits, SMALL_BODY};
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::{Storable, StoreReplace};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::time::{Instant, Sleep, sleep};

/// Bytes that a connection is handed at a time. Smaller bodies are not counted.
const FRAME: usize = SMALL_BODY as usize;

/// Counts the bodies of all requests of a client in one number. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    bytes: Arc<AtomicU64>,
    limits: Arc<Limits>,
}

impl Meter {
    /// Counts from nothing, and paces by `limits`.
    pub(super) fn new(limits: Arc<Limits>) -> Meter {
        Meter { bytes: Arc::default(), limits }
    }

    /// Bytes of requests under way that have been taken.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Intercept for Meter {
    fn name(&self) -> &'static str {
        "Meter"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.request_mut().body_mut();
        if body.content_length().is_none_or(|bytes| bytes <= FRAME as u64) {
            return Ok(());
        }
        let share = Arc::new(Share { all: self.bytes.clone(), bytes: AtomicU64::new(0) });
        // Lives as long as the request does, also where its future is dropped.
        config.interceptor_state().store_put(Held(share.clone()));
        let whole = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Counted::new(whole, share, self.limits.clone()));
        Ok(())
    }
}

/// What one request has put into the sum; taken out again with it.
#[derive(Debug)]
struct Share {
    all: Arc<AtomicU64>,
    bytes: AtomicU64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(*self.bytes.get_mut(), Relaxed);
    }
}

#[derive(Debug)]
struct Held(#[expect(dead_code, reason = "held until the request ends")] Arc<Share>);

impl Storable for Held {
    type Storer = StoreReplace<Self>;
}

/// A body cut into frames that are counted.
struct Counted {
    rest: SdkBody,
    ready: Bytes,
    share: Arc<Share>,
    limits: Arc<Limits>,
    /// Until when the frame that comes next has to wait; `None` before that is known.
    wait: Option<Pin<Box<Sleep>>>,
}

impl Counted {
    fn new(rest: SdkBody, share: Arc<Share>, limits: Arc<Limits>) -> Counted {
        Counted { rest, ready: Bytes::new(), share, limits, wait: None }
    }

    /// Ready when the next `len` bytes may go.
    fn poll_limit(&mut self, len: usize, cx: &mut Context<'_>) -> Poll<()> {
        if self.wait.is_none() {
            let wait = self.limits.up.take(len as u64, Instant::now());
            if wait.is_zero() {
                return Poll::Ready(());
            }
            self.wait = Some(Box::pin(sleep(wait)));
        }
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        Poll::Ready(())
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        while this.ready.is_empty() {
            match ready!(Pin::new(&mut this.rest).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.ready = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let len = this.ready.len().min(FRAME);
        ready!(this.poll_limit(len, cx));
        let frame = this.ready.split_to(len);
        this.share.bytes.fetch_add(frame.len() as u64, Relaxed);
        this.share.all.fetch_add(frame.len() as u64, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match Body::size_hint(&self.rest).exact() {
            Some(rest) => SizeHint::with_exact(rest + self.ready.len() as u64),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_body_arrives_whole_in_frames_and_its_count_goes_with_it() {
        // Guards against bytes lost or doubled at the edges of frames, and against a request
        // that failed counting for ever.
        let meter = Meter::default();
        let bytes: Vec<u8> = (0..FRAME * 2 + 77).map(|i| i as u8).collect();
        let share = Arc::new(Share { all: meter.bytes.clone(), bytes: AtomicU64::new(0) });
        let rest = SdkBody::from(bytes.clone());
        let mut body = Counted::new(rest, share, Arc::default());
        let mut got = Vec::new();
        while let Some(frame) = body.frame().await {
            let left = (bytes.len() - got.len()) as u64;
            let data = frame.expect("a frame").into_data().expect("data");
            got.extend_from_slice(&data);
            assert!(data.len() <= FRAME);
            assert_eq!(meter.bytes(), got.len() as u64);
            assert_eq!(Body::size_hint(&body).exact(), Some(left - data.len() as u64));
        }
        assert!(body.is_end_stream() && got == bytes);
        drop(body);
        assert_eq!(meter.bytes(), 0);
    }
}
