//! Reading records back: only the chunks a range touches are read and opened.

use super::directory::LogFile;
use super::error::JournalError;
use super::format::{FRAME_BYTES, Frame, KIND_RECORD, PRELUDE_BYTES, Prelude};
use super::log::{Journal, Shared};
use super::options::RecordLoc;
use crate::seal::{CHUNK_CIPHER, CHUNK_PLAIN, HEADER, Opener, TAG, offsets};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Buffers kept for the next reads.
const SCRATCH_BUFFERS: usize = 4;
/// Larger ones are not kept.
const SCRATCH_BYTES_MAX: usize = 2 << 20;

impl Journal {
    /// The bytes `range` of a record. See [`Journal::read_to`].
    ///
    /// # Errors
    /// As [`Journal::read_to`].
    pub fn read(&self, loc: RecordLoc, range: Range<u32>) -> Result<Vec<u8>, JournalError> {
        let mut out = vec![0; range.end.saturating_sub(range.start).min(loc.len) as usize];
        self.read_to(loc, range, &mut out)?;
        Ok(out)
    }

    /// Reads the bytes `range` of a record to `out`, which is exactly as long. Reads and opens only
    /// the 16 KiB chunks the range touches, and the record's frame the first time. Blocks on the
    /// local disk.
    ///
    /// # Errors
    /// `Released` (look in the bucket), `Corrupt` (the file no longer holds what was written),
    /// `Io`, `Invalid` (a range outside the record). `out` then holds nothing to be used.
    pub fn read_to(
        &self,
        loc: RecordLoc,
        range: Range<u32>,
        out: &mut [u8],
    ) -> Result<(), JournalError> {
        if range.start > range.end || range.end > loc.len {
            let why = format!("bytes {range:?} of a record of {} bytes", loc.len);
            return Err(JournalError::Invalid(why));
        }
        assert_eq!(range.len(), out.len(), "the caller knows how much it asks for");
        let shared = &*self.shared;
        let file = shared.live.read().get(&loc.file).map(|live| live.file.clone());
        let Some(file) = file else { return Err(JournalError::Released(loc.pos)) };
        if range.is_empty() {
            return Ok(());
        }
        let mut scratch = shared.scratch.lock().pop().unwrap_or_default();
        let result = shared.read_record(&file, loc, range, &mut scratch, out);
        if scratch.len() <= SCRATCH_BYTES_MAX {
            let mut buffers = shared.scratch.lock();
            if buffers.len() < SCRATCH_BUFFERS {
                buffers.push(scratch);
            }
        }
        if let Err(e) = result {
            // The file may have been released and written again while it was read.
            if shared.released.load(Ordering::Acquire) >= loc.pos.0 {
                return Err(JournalError::Released(loc.pos));
            }
            return Err(e);
        }
        Ok(())
    }
}

impl Shared {
    fn read_record(
        &self,
        file: &Arc<LogFile>,
        loc: RecordLoc,
        range: Range<u32>,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<(), JournalError> {
        let opener = self.opener(file, loc)?;
        let prelude = PRELUDE_BYTES as u64;
        let plain = prelude + range.start as u64..prelude + range.end as u64;
        let chunks = offsets::cipher_range(plain, prelude + loc.len as u64);
        let len = (chunks.cipher.end - chunks.cipher.start) as usize;
        if scratch.len() < len {
            scratch.resize(len, 0);
        }
        let at = loc.offset as u64 + FRAME_BYTES as u64 + chunks.cipher.start;
        let cipher = &mut scratch[..len];
        file.handle.pread(cipher, at).map_err(|e| self.read_failed(file, e))?;
        let last =
            (chunks.first_chunk + (len as u64).div_ceil(CHUNK_CIPHER as u64)).wrapping_sub(1);
        let (mut rest, mut skip) = (out, chunks.skip);
        let mut edge = [0; CHUNK_PLAIN];
        for (number, sealed) in (chunks.first_chunk..).zip(cipher.chunks(CHUNK_CIPHER)) {
            let ends = chunks.ends_message && number == last;
            let plain = sealed.len().saturating_sub(TAG);
            // Where it is wanted, if all of it is; the first chunk never is, for its prelude.
            let whole = skip == 0 && number > 0 && plain <= rest.len();
            let to = if whole { &mut rest[..plain] } else { &mut edge[..plain] };
            opener
                .open_to(number, sealed, ends, to)
                .map_err(|e| self.damaged(file, loc, &e.to_string()))?;
            if number == 0 && Prelude::from_bytes(to).is_none_or(|p| p.seq != loc.file) {
                return Err(self.damaged(file, loc, "it is another file's record"));
            }
            let taken = plain.saturating_sub(skip).min(rest.len());
            let (now, later) = rest.split_at_mut(taken);
            if !whole && taken > 0 {
                now.copy_from_slice(&edge[skip..skip + taken]);
            }
            (rest, skip) = (later, skip.saturating_sub(plain));
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(self.damaged(file, loc, "it is shorter than it was")),
        }
    }

    /// The record's derived key: remembered, or from its frame and message header.
    fn opener(&self, file: &Arc<LogFile>, loc: RecordLoc) -> Result<Opener, JournalError> {
        if let Some(opener) = self.openers.lock().get(&loc.pos.0) {
            return Ok(opener.clone());
        }
        let mut head = [0; FRAME_BYTES + HEADER];
        file.handle.pread(&mut head, loc.offset as u64).map_err(|e| self.read_failed(file, e))?;
        let frame = Frame::from_bytes(&head).filter(|frame| {
            frame.number == loc.pos.0
                && frame.seq == loc.file
                && frame.payload_len() == Some(loc.len)
        });
        if frame.is_none() {
            return Err(self.damaged(file, loc, "its frame is not there"));
        }
        let header: &[u8; HEADER] =
            head[FRAME_BYTES..].try_into().expect("the array is that much longer");
        let opener = self.keys.journal_opener(self.id, KIND_RECORD, loc.pos.0, header);
        let opener = opener.map_err(|e| self.damaged(file, loc, &e.to_string()))?;
        self.openers.lock().put(loc.pos.0, opener.clone());
        Ok(opener)
    }

    fn read_failed(&self, file: &LogFile, e: std::io::Error) -> JournalError {
        let path = self.directory.log_path(file.seq);
        JournalError::Io { what: format!("reading {}", path.display()), source: e }
    }

    fn damaged(&self, file: &LogFile, loc: RecordLoc, why: &str) -> JournalError {
        JournalError::Corrupt {
            file: self.directory.log_path(file.seq),
            offset: loc.offset as u64,
            what: format!("record {} does not open: {why}", loc.pos),
        }
    }
}
