//! Bytes in pieces: a response body kept in the frames it came in, sliced without copying.

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::{GetResult, GetResultPayload, PutPayload};
use std::ops::Range;

/// A sequence of byte pieces with its total length. Cloning and slicing copy no bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rope {
    parts: Vec<Bytes>,
    len: u64,
}

impl Rope {
    /// An empty rope.
    pub(crate) fn new() -> Rope {
        Rope::default()
    }

    /// Total bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The pieces in order; none is empty.
    pub(crate) fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Appends a piece.
    pub(crate) fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.len += part.len() as u64;
            self.parts.push(part);
        }
    }

    /// Appends all pieces of `other`.
    pub(crate) fn append(&mut self, other: Rope) {
        self.len += other.len;
        self.parts.extend(other.parts);
    }

    /// The bytes `range`, which must lie within the rope. Costs a walk over the pieces.
    pub(crate) fn slice(&self, range: Range<u64>) -> Rope {
        assert!(range.start <= range.end && range.end <= self.len, "slice within the rope");
        let mut out = Rope::new();
        let mut at = 0u64;
        for part in &self.parts {
            let end = at + part.len() as u64;
            if end > range.start && at < range.end {
                let from = range.start.saturating_sub(at) as usize;
                let to = (range.end.min(end) - at) as usize;
                out.push(part.slice(from..to));
            }
            if end >= range.end {
                break;
            }
            at = end;
        }
        out
    }

    /// One contiguous buffer; copies only when there is more than one piece.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        match self.parts.len() {
            0 => Bytes::new(),
            1 => self.parts.remove(0),
            _ => {
                let mut out = Vec::with_capacity(self.len as usize);
                self.parts.iter().for_each(|p| out.extend_from_slice(p));
                out.into()
            }
        }
    }

    /// Whether the bytes equal those of a payload, piece boundaries aside.
    pub(crate) fn equals(&self, payload: &PutPayload) -> bool {
        let theirs = payload.iter().flat_map(|p| p.iter());
        self.len == payload.content_length() as u64
            && self.parts.iter().flat_map(|p| p.iter()).eq(theirs)
    }

    /// The body of a store's answer, without merging its frames. Files are read in one piece
    /// on a blocking thread.
    pub(crate) async fn collect(result: GetResult) -> object_store::Result<Rope> {
        let mut rope = Rope::new();
        let most = result.range.end.saturating_sub(result.range.start);
        match result.payload {
            GetResultPayload::Stream(mut body) => {
                while let Some(part) = body.try_next().await? {
                    rope.push(part);
                    if rope.len > most {
                        break; // whoever asked sees that it is not what was announced
                    }
                }
            }
            GetResultPayload::File(..) => rope.push(result.bytes().await?),
        }
        Ok(rope)
    }

    /// The rope as the body of an answer.
    pub(crate) fn into_stream(self) -> BoxStream<'static, object_store::Result<Bytes>> {
        stream::iter(self.parts.into_iter().map(Ok)).boxed()
    }
}

impl From<Bytes> for Rope {
    fn from(part: Bytes) -> Rope {
        let mut rope = Rope::new();
        rope.push(part);
        rope
    }
}

impl From<PutPayload> for Rope {
    fn from(payload: PutPayload) -> Rope {
        let mut rope = Rope::new();
        payload.into_iter().for_each(|p| rope.push(p));
        rope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_across_pieces_equal_slices_of_the_whole() {
        // Guards against off-by-one at piece boundaries, by comparing every possible slice.
        let whole: Vec<u8> = (0..23).collect();
        let mut rope = Rope::new();
        for piece in whole.chunks(5) {
            rope.push(Bytes::copy_from_slice(piece));
        }
        for from in 0..=whole.len() {
            for to in from..=whole.len() {
                let got = rope.slice(from as u64..to as u64);
                assert_eq!(got.len() as usize, to - from);
                assert_eq!(&got.into_bytes()[..], &whole[from..to]);
            }
        }
        let payload = PutPayload::from_iter([Bytes::from_static(b"abc"), Bytes::from_static(b"d")]);
        assert!(Rope::from(Bytes::from_static(b"abcd")).equals(&payload));
        assert!(!Rope::from(Bytes::from_static(b"abce")).equals(&payload));
    }
}
