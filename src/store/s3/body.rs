//! Bodies both ways without copying: payload pieces out, counted frames in.
//!
//! Never buffers a body, except where its bytes must be signed.

use super::errors::{own, root_cause};
use crate::store::error::ErrorClass;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::Stream;
use http_body::{Body, Frame, SizeHint};
use md5::{Digest, Md5};
use object_store::PutPayload;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The base64 of the big-endian CRC-32 of a payload, as `x-amz-checksum-crc32` carries it. One
/// pass over the bytes; about 10 GB/s.
pub(super) fn crc32_header(payload: &PutPayload) -> String {
    let mut crc = crc32fast::Hasher::new();
    for piece in payload.iter() {
        crc.update(piece);
    }
    STANDARD.encode(crc.finalize().to_be_bytes())
}

/// The base64 of the MD5 of a payload, as `Content-MD5` carries it. One pass over the bytes; about
/// 600 MB/s.
pub(super) fn md5_header(payload: &PutPayload) -> String {
    let mut md5 = Md5::new();
    for piece in payload.iter() {
        md5.update(piece);
    }
    STANDARD.encode(md5.finalize())
}

/// A payload as a request body. `in_one_piece` joins the pieces first, which a signature over
/// the bytes needs; else they are sent as they are.
pub(super) fn request_body(payload: PutPayload, in_one_piece: bool) -> ByteStream {
    let body = match payload.as_ref() {
        [] => SdkBody::empty(),
        [one] => SdkBody::from(one.clone()),
        _ if in_one_piece => SdkBody::from(Bytes::from(payload)),
        _ => SdkBody::retryable(move || SdkBody::from_body_1_x(Pieces::new(&payload))),
    };
    ByteStream::new(body)
}

/// The pieces of a payload, one frame each.
struct Pieces {
    left: VecDeque<Bytes>,
    bytes_left: u64,
}

impl Pieces {
    fn new(payload: &PutPayload) -> Pieces {
        let left = payload.iter().filter(|piece| !piece.is_empty()).cloned().collect();
        Pieces { left, bytes_left: payload.content_length() as u64 }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.left.pop_front().map(|piece| {
            self.bytes_left -= piece.len() as u64;
            Ok(Frame::data(piece))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left)
    }
}

/// The frames of an answer's body, as they arrive; an error unless they are exactly as many
/// bytes as the answer announced. After an error the stream ends.
pub(super) struct CountedBody {
    body: ByteStream,
    bytes_left: u64,
    path: String,
    ended: bool,
}

impl CountedBody {
    pub(super) fn new(body: ByteStream, bytes: u64, path: &str) -> CountedBody {
        CountedBody { body, bytes_left: bytes, path: path.to_owned(), ended: false }
    }
}

impl Stream for CountedBody {
    type Item = object_store::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let this = &mut *self;
        let problem = match ready!(Pin::new(&mut this.body).poll_next(cx)) {
            Some(Ok(frame)) => match this.bytes_left.checked_sub(frame.len() as u64) {
                Some(left) => {
                    this.bytes_left = left;
                    return Poll::Ready(Some(Ok(frame)));
                }
                None => Some(own(
                    ErrorClass::Transport,
                    format!("get {}: the body is longer than announced", this.path),
                )),
            },
            Some(Err(e)) => Some(own(
                ErrorClass::Transport,
                format!("get {}: the body broke off: {}", this.path, root_cause(&e)),
            )),
            None if this.bytes_left > 0 => Some(own(
                ErrorClass::Transport,
                format!("get {}: the body ended {} bytes early", this.path, this.bytes_left),
            )),
            None => None,
        };
        this.ended = true;
        Poll::Ready(problem.map(Err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    fn payload(pieces: &[&'static [u8]]) -> PutPayload {
        pieces.iter().map(|piece| Bytes::from_static(piece)).collect()
    }

    #[tokio::test]
    async fn a_payload_of_pieces_is_sent_whole_and_announces_its_length() {
        // Guards against a piece being dropped, and against chunked transfer encoding (which S3
        // refuses) because the length is not known beforehand.
        let cases: [&[&'static [u8]]; 5] =
            [&[], &[b""], &[b"abc"], &[b"ab", b"", b"c"], &[b"", b"abc", b""]];
        for pieces in cases {
            for in_one_piece in [false, true] {
                let whole = pieces.concat();
                let body = request_body(payload(pieces), in_one_piece);
                let length = whole.len() as u64;
                assert_eq!(body.size_hint(), (length, Some(length)), "{pieces:?}");
                assert_eq!(body.collect().await.unwrap().to_vec(), whole, "{pieces:?}");
            }
        }
    }

    #[test]
    fn the_checksum_is_the_crc_32_of_iso_hdlc() {
        // Guards against another polynomial or byte order: the check value of "123456789".
        let expected = STANDARD.encode(0xCBF4_3926_u32.to_be_bytes());
        assert_eq!(crc32_header(&payload(&[b"123456789"])), expected);
        assert_eq!(crc32_header(&payload(&[b"1234", b"", b"56789"])), expected);
    }

    #[tokio::test]
    async fn a_body_that_is_not_as_long_as_announced_is_an_error() {
        // Guards against a truncated answer being taken for the object.
        for (bytes, announced, ok) in [(3, 3, true), (0, 0, true), (3, 4, false), (3, 2, false)] {
            let body = ByteStream::from(vec![7u8; bytes]);
            let items: Vec<_> = CountedBody::new(body, announced, "p").collect().await;
            assert_eq!(items.iter().all(Result::is_ok), ok, "{bytes} of {announced}");
        }
    }
}
