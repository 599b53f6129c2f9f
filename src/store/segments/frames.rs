//! Data as frames: each 128 KiB of them stored as they are or compressed, so that any part can be
//! read by fetching and decompressing the frames it touches. The only place that names `zstd`.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::layout::{Malformed, put_varint, take_varint};

/// Bytes of data in every frame but the last, which may have less.
pub const FRAME: u64 = 128 << 10;
/// Compressing has to save this part of a frame, or the frame is stored as it is.
const SAVES: usize = 8;
/// So many frames in a row that were not worth it, and a sample decides about the next; so many,
/// and only one of eight is sampled.
const DOUBT_AFTER: u32 = 1;
const DESPAIR_AFTER: u32 = SAMPLE_EVERY;
const SAMPLE_EVERY: u32 = 8;
/// A sample: this many pieces of so many bytes, which have to shrink by 1/32 together.
const SAMPLES: usize = 4;
const SAMPLE: usize = 4 << 10;
const SAMPLE_SAVES: usize = 32;
/// The level at which samples are tried.
const SAMPLE_LEVEL: i32 = 1;

/// Where the frames of a segment are. Four bytes of memory each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    data_len: u64,
    /// Where each ends, in the stored data.
    ends: Box<[u32]>,
}

fn frame_count(data_len: u64) -> u64 {
    data_len.div_ceil(FRAME)
}

impl Frames {
    /// Bytes of the stored data.
    pub fn stored_len(&self) -> u64 {
        self.ends.last().map_or(0, |end| u64::from(*end))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The data of a frame.
    fn data(&self, frame: usize) -> Range<u64> {
        let start = frame as u64 * FRAME;
        start..(start + FRAME).min(self.data_len)
    }

    /// The stored bytes of a frame.
    fn stored(&self, frame: usize) -> Range<u64> {
        let start = frame.checked_sub(1).map_or(0, |before| u64::from(self.ends[before]));
        start..u64::from(self.ends[frame])
    }

    /// The frames that hold bytes of `data`, and where they are stored: those that there are.
    pub fn touching(&self, data: &Range<u64>) -> (Range<usize>, Range<u64>) {
        let last = data.end.min(self.data_len).div_ceil(FRAME) as usize;
        let first = ((data.start / FRAME).min(last as u64)) as usize;
        if first == last {
            return (first..first, 0..0);
        }
        (first..last, self.stored(first).start..self.stored(last - 1).end)
    }

    /// The data of all frames that have a byte of `stored`.
    pub fn data_within(&self, stored: &Range<u64>) -> Range<u64> {
        let first = self.ends.partition_point(|end| u64::from(*end) <= stored.start);
        let last = self.ends.partition_point(|end| u64::from(*end) < stored.end);
        let last = (last + 1).min(self.ends.len());
        if first >= last || stored.is_empty() {
            return self.data_len..self.data_len;
        }
        self.data(first).start..self.data(last - 1).end
    }

    /// Appends the index: for each frame 0 if it is stored as it is, else its stored bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for frame in 0..self.ends.len() {
            let (data, stored) = (self.data(frame), self.stored(frame));
            let len = stored.end - stored.start;
            put_varint(out, if len == data.end - data.start { 0 } else { len });
        }
    }

    /// Reads the index of `data_len` bytes.
    ///
    /// # Errors
    /// It is not in the format.
    pub fn decode(data_len: u64, mut index: &[u8]) -> Result<Frames, Malformed> {
        let count = frame_count(data_len);
        if count > index.len() as u64 {
            return Err(Malformed("its frame index is too short"));
        }
        let mut frames = Frames { data_len, ends: Box::default() };
        let mut ends = Vec::with_capacity(count as usize);
        let mut end = 0u64;
        for frame in 0..count as usize {
            let data = frames.data(frame);
            end += match take_varint(&mut index)? {
                0 => data.end - data.start,
                stored if stored < data.end - data.start => stored,
                _ => return Err(Malformed("a frame that is longer than its data")),
            };
            ends.push(u32::try_from(end).map_err(|_| Malformed("more than 4 GiB of frames"))?);
        }
        if !index.is_empty() {
            return Err(Malformed("its frame index is too long"));
        }
        frames.ends = ends.into();
        Ok(frames)
    }

    /// The bytes `data` (those of them that there are) out of `stored`, which is what
    /// [`Frames::touching`] says.
    ///
    /// # Errors
    /// A frame does not decompress to exactly what the index says. Nothing is allocated for more.
    pub fn open(&self, data: &Range<u64>, stored: &Bytes) -> Result<Bytes, Malformed> {
        const DAMAGED: Malformed = Malformed("a frame does not decompress to its length");
        let (frames, at) = self.touching(data);
        if stored.len() as u64 != at.end - at.start {
            return Err(Malformed("it ends within a frame"));
        }
        let Some(last) = frames.clone().next_back() else { return Ok(Bytes::new()) };
        let (base, end) = (self.data(frames.start).start, self.data(last).end);
        let piece = |frame: usize| {
            let range = self.stored(frame);
            stored.slice((range.start - at.start) as usize..(range.end - at.start) as usize)
        };
        let plain = if stored.len() as u64 == end - base {
            stored.clone() // no frame of them is compressed
        } else {
            let mut out = vec![0u8; (end - base) as usize];
            let mut zstd = zstd::bulk::Decompressor::new().map_err(|_| DAMAGED)?;
            for frame in frames {
                let (from, data) = (piece(frame), self.data(frame));
                let to = &mut out[(data.start - base) as usize..(data.end - base) as usize];
                if from.len() == to.len() {
                    to.copy_from_slice(&from);
                } else if !zstd.decompress_to_buffer(&from, to).is_ok_and(|n| n == to.len()) {
                    return Err(DAMAGED);
                }
            }
            Bytes::from(out)
        };
        let cut = |at: u64| (at.clamp(base, end) - base) as usize;
        Ok(plain.slice(cut(data.start)..cut(data.end)))
    }

    /// Stores `data` as frames, compressed at `level` where that saves an eighth or more; returns
    /// them one after the other. Takes as long as compressing does: for a thread that may block.
    ///
    /// Data that do not compress cost little: after a frame that was not worth it a sample of
    /// 16 KiB decides whether the next is tried at all, and after eight one for eight. With `doubt` it
    /// begins there: a sample decides about the first one as well.
    pub fn compress(data: &Bytes, level: i32, doubt: bool) -> (Frames, Vec<Bytes>) {
        let mut frames = Frames { data_len: data.len() as u64, ends: Box::default() };
        let count = frame_count(frames.data_len) as usize;
        let (mut ends, mut parts) = (Vec::with_capacity(count), Vec::new());
        let mut zstd = Compressors::new(level);
        zstd.vain = if doubt { DESPAIR_AFTER } else { 0 };
        let mut end = 0u64;
        // Frames as they are, side by side, are one part.
        let mut raw: Range<usize> = 0..0;
        for frame in 0..count {
            let range = frames.data(frame);
            let range = range.start as usize..range.end as usize;
            match zstd.compress(&data[range.clone()]) {
                Some(compressed) => {
                    parts.extend((!raw.is_empty()).then(|| data.slice(raw.clone())));
                    raw = range.end..range.end;
                    end += compressed.len() as u64;
                    parts.push(compressed);
                }
                None => {
                    end += range.len() as u64;
                    raw.end = range.end;
                }
            }
            ends.push(u32::try_from(end).expect("a segment is far below 4 GiB"));
        }
        parts.extend((!raw.is_empty()).then(|| data.slice(raw)));
        frames.ends = ends.into();
        (frames, parts)
    }
}

/// What compresses the frames of one segment.
struct Compressors {
    frames: Option<zstd::bulk::Compressor<'static>>,
    samples: Option<zstd::bulk::Compressor<'static>>,
    buffer: Vec<u8>,
    /// Frames since the last that was worth it.
    vain: u32,
    /// Samples taken.
    sampled: u32,
}

impl Compressors {
    fn new(level: i32) -> Compressors {
        // It fails for want of memory only: then frames stay as they are.
        let at = |level| zstd::bulk::Compressor::new(level).ok();
        let (frames, samples) = (at(level), at(SAMPLE_LEVEL));
        Compressors { frames, samples, buffer: Vec::new(), vain: 0, sampled: 0 }
    }

    /// The frame, if compressing it saves enough.
    fn compress(&mut self, frame: &[u8]) -> Option<Bytes> {
        let most = frame.len() - frame.len().div_ceil(SAVES);
        let passed = self.vain >= DESPAIR_AFTER && !self.vain.is_multiple_of(SAMPLE_EVERY);
        let worth = if passed || self.vain >= DOUBT_AFTER && !self.sample_shrinks(frame) {
            None
        } else {
            // No more room than what is worth it.
            self.buffer.resize(most, 0);
            let written = self.frames.as_mut()?.compress_to_buffer(frame, &mut self.buffer[..]);
            written.ok().filter(|n| *n > 0)
        };
        match worth {
            Some(n) => {
                self.vain = 0;
                Some(Bytes::copy_from_slice(&self.buffer[..n]))
            }
            None => {
                self.vain += 1;
                None
            }
        }
    }

    fn sample_shrinks(&mut self, frame: &[u8]) -> bool {
        let Some(zstd) = &mut self.samples else { return true };
        let mut sample = BytesMut::with_capacity(SAMPLES * SAMPLE);
        let step = frame.len() / SAMPLES;
        if step < SAMPLE {
            return true;
        }
        self.sampled += 1;
        (0..SAMPLES).for_each(|n| sample.extend_from_slice(&frame[n * step..n * step + SAMPLE]));
        self.buffer.resize(sample.len() - sample.len() / SAMPLE_SAVES, 0);
        zstd.compress_to_buffer(&sample[..], &mut self.buffer[..]).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        getrandom::fill(&mut out).expect("random bytes");
        out
    }

    /// Of every 128 KiB: random bytes, text, text that saves a little less than an eighth.
    fn mixed(len: usize) -> Bytes {
        let mut data = random(len);
        for (n, frame) in data.chunks_mut(FRAME as usize).enumerate() {
            let text = match n % 3 {
                0 => 0,
                1 => frame.len(),
                _ => frame.len() / 9,
            };
            frame[..text].iter_mut().enumerate().for_each(|(i, b)| *b = b'a' + (i % 7) as u8);
        }
        data.into()
    }

    fn stored_of(parts: &[Bytes]) -> Bytes {
        parts.concat().into()
    }

    #[test]
    fn frames_are_compressed_where_that_saves_an_eighth_and_any_part_reads_back() {
        // Guards against frames that are found at the wrong place behind a compressed one, and
        // against data that grow.
        let data = mixed(10 * FRAME as usize + 1000);
        let (frames, parts) = Frames::compress(&data, 3, false);
        let stored = stored_of(&parts);
        let lens: Vec<_> = (0..11).map(|n| frames.stored(n).end - frames.stored(n).start).collect();
        for (n, len) in lens.iter().enumerate() {
            match n % 3 {
                1 => assert!(*len < 100, "frame {n} has {len} bytes"),
                _ => assert_eq!(*len, if n < 10 { FRAME } else { 1000 }, "frame {n}"),
            }
        }
        let mut index = Vec::new();
        frames.encode(&mut index);
        assert_eq!(Frames::decode(data.len() as u64, &index), Ok(frames.clone()));
        assert_eq!(frames.stored_len(), stored.len() as u64);
        let end = data.len() as u64;
        for range in [0..end, 0..1, FRAME - 1..FRAME + 1, 5 * FRAME..7 * FRAME + 5, end - 1..end] {
            let (_, at) = frames.touching(&range);
            let fetched = stored.slice(at.start as usize..at.end as usize);
            let got = frames.open(&range, &fetched).expect("opens");
            assert!(got == data[range.start as usize..range.end as usize], "{range:?}");
        }
        let past = end - 5..end + 100;
        let (_, at) = frames.touching(&past);
        let fetched = stored.slice(at.start as usize..at.end as usize);
        assert_eq!(frames.open(&past, &fetched).expect("opens").len(), 5);
        assert_eq!(frames.touching(&(end + FRAME..end + 2 * FRAME)).1, 0..0);
        let at = frames.stored(4);
        assert_eq!(frames.data_within(&at), 4 * FRAME..5 * FRAME);
        assert_eq!(frames.data_within(&(at.end - 1..at.end + 1)), 4 * FRAME..6 * FRAME);
        assert!(frames.data_within(&(stored.len() as u64..u64::MAX)).is_empty());
    }

    #[test]
    fn a_frame_that_decompresses_to_more_or_less_is_an_error() {
        // Guards against a decompression bomb, and against bytes that nobody wrote: a frame of a
        // gigabyte of zeros, one of fewer bytes, and one that is cut.
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compresses");
        let short = zstd::bulk::compress(&[0; 1000], 1).expect("compresses");
        let whole = zstd::bulk::compress(&vec![0; FRAME as usize], 1).expect("compresses");
        for (frame, opens) in [(&bomb[..], false), (&short, false), (&whole, true)] {
            let mut index = Vec::new();
            put_varint(&mut index, frame.len() as u64);
            let frames = Frames::decode(FRAME, &index).expect("an index");
            let stored = Bytes::copy_from_slice(frame);
            assert_eq!(frames.open(&(5..10), &stored).is_ok(), opens);
            assert!(frames.open(&(5..10), &stored.slice(1..)).is_err());
        }
        for (len, index) in
            [(1 << 60, &[0u8; 8][..]), (FRAME, &[0, 0]), (5, &[5]), (FRAME + 1, &[0])]
        {
            assert!(Frames::decode(len, index).is_err(), "{len} bytes, {index:?}");
        }
        assert_eq!(Frames::decode(0, &[]).map(|f| f.stored_len()), Ok(0));
    }

    #[test]
    fn what_does_not_compress_is_looked_at_once_and_then_sampled() {
        // Guards against photographs that cost as much as text: of 65 frames of random bytes one
        // is compressed for nothing, and text behind them is found all the same, seven frames late at
        // most. And of a segment behind such a one an eighth of the frames is sampled.
        let mut data = random(65 * FRAME as usize);
        data.extend(vec![b'x'; 10 * FRAME as usize]);
        let data = data.into();
        for doubt in [false, true] {
            let (frames, parts) = Frames::compress(&data, 3, doubt);
            assert!((4..=11).contains(&parts.len()), "one slice of what was given, then frames");
            assert!(frames.stored_len() < 72 * FRAME + 1000, "{}", frames.stored_len());
        }
        let (mut zstd, frame) = (Compressors::new(3), random(FRAME as usize));
        zstd.vain = DESPAIR_AFTER;
        assert!((0..128).all(|_| zstd.compress(&frame).is_none()));
        assert_eq!(zstd.sampled, 16);
    }

    proptest! {
        #[test]
        fn an_index_reads_back_and_nothing_else_does(
            index in prop::collection::vec(any::<u8>(), 0..40),
            data_len in 0u64..20 * FRAME,
            range in (0u64..25 * FRAME, 0u64..25 * FRAME),
        ) {
            if let Ok(frames) = Frames::decode(data_len, &index) {
                let mut again = Vec::new();
                frames.encode(&mut again);
                prop_assert_eq!(again, index);
                let (touched, at) = frames.touching(&(range.0..range.1));
                prop_assert!(touched.end <= frames.ends.len() && at.end <= frames.stored_len());
                let lost = frames.data_within(&(range.0..range.1));
                prop_assert!(lost.end <= data_len);
            }
        }
    }
}
