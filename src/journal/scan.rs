//! Reading log files after a start: which records of a file open, and where it breaks off.
//!
//! Reads only. Every record is opened in full, so that what recovery reports can be read later.

use super::directory::LogFile;
use super::error::JournalError;
use super::format::{
    FILE_HEADER_BYTES, FRAME_ALIGN, FRAME_BYTES, FileHeader, Frame, KIND_RECORD, Prelude,
};
use super::options::RecordLoc;
use crate::base::{JournalId, JournalPos};
use crate::seal::VolumeKeys;
use std::path::Path;

/// Bytes read at once; at least one record is always read whole.
const WINDOW_BYTES: usize = 4 << 20;

/// What opening a record needs, for one journal.
pub(crate) struct Scanner<'a> {
    pub keys: &'a VolumeKeys,
    pub id: JournalId,
}

/// What one log file holds.
#[derive(Debug, Default)]
pub(crate) struct FileScan {
    /// The records that open, by number; there may be gaps where some do not.
    pub records: Vec<(JournalPos, RecordLoc)>,
    /// The most any of them testifies to have been on stable storage.
    pub synced: u64,
    /// The most any of them testifies to have been released.
    pub released: u64,
    /// Where the first record that does not open should begin; where the next would, if all do.
    pub end: u64,
    /// At `end` lies the frame of a record that does not open.
    pub torn: bool,
    /// Behind `end` lie records that open: it is no place to go on writing.
    pub resumed: bool,
}

impl Scanner<'_> {
    /// The header of a log file; None if it has none.
    pub fn header(&self, file: &LogFile, path: &Path) -> Result<Option<FileHeader>, JournalError> {
        if file.bytes < FILE_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut window = Window::new(file, path);
        let page = window.at(0, FILE_HEADER_BYTES)?;
        Ok(FileHeader::from_page(self.keys, self.id, file.seq, page))
    }

    /// True if the file holds the frame of any record written to it, whether it opens or not.
    pub fn has_frames(&self, file: &LogFile, path: &Path) -> Result<bool, JournalError> {
        let mut window = Window::new(file, path);
        Ok(window.find(FILE_HEADER_BYTES as u64, file.seq)?.is_some())
    }

    /// Opens the file's records with numbers from `first` to `limit`. Behind one that does not
    /// open, the rest of the file is searched for others.
    pub fn records(
        &self,
        file: &LogFile,
        path: &Path,
        first: u64,
        limit: u64,
    ) -> Result<FileScan, JournalError> {
        let mut window = Window::new(file, path);
        let mut scan = FileScan { end: FILE_HEADER_BYTES as u64, ..FileScan::default() };
        let (mut at, mut next, mut broken) = (scan.end, first, false);
        while next <= limit {
            let found = match window.frame(at, file.seq)? {
                Some(frame) => Some((at, frame)),
                None if !broken => None,
                None => window.find(at, file.seq)?,
            };
            if let Some((offset, frame)) = found {
                let well = frame.number >= next && (broken || frame.number == next);
                let prelude = if well { self.open(&mut window, offset, &frame)? } else { None };
                if let Some(prelude) = prelude.filter(|_| frame.number <= limit) {
                    let (pos, len) = (JournalPos(frame.number), frame.payload_len());
                    let len = len.expect("a frame has the length of a record");
                    let loc = RecordLoc { pos, file: file.seq, offset: offset as u32, len };
                    scan.records.push((pos, loc));
                    scan.synced = scan.synced.max(prelude.synced);
                    scan.released = scan.released.max(prelude.released);
                    next = frame.number + 1;
                    at = offset + frame.stride() as u64;
                    match broken {
                        false => scan.end = at,
                        true => scan.resumed = true,
                    }
                    continue;
                }
                if !broken {
                    scan.torn = true;
                }
                at = offset + FRAME_ALIGN as u64;
            } else if broken {
                break;
            }
            broken = true;
        }
        Ok(scan)
    }

    /// The prelude of the record framed at `offset`; None if the record does not open there.
    fn open(
        &self,
        window: &mut Window<'_>,
        offset: u64,
        frame: &Frame,
    ) -> Result<Option<Prelude>, JournalError> {
        let (start, len) = (offset + FRAME_BYTES as u64, frame.message_len as usize);
        if start + len as u64 > window.file.bytes {
            return Ok(None);
        }
        let message = window.at(start, len)?;
        let opened = self.keys.open_journal(self.id, KIND_RECORD, frame.number, message);
        let Ok(plain) = opened else { return Ok(None) };
        Ok(Prelude::from_bytes(&plain).filter(|p| p.seq == frame.seq))
    }
}

/// A piece of a file in memory that moves forward.
struct Window<'a> {
    file: &'a LogFile,
    path: &'a Path,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a LogFile, path: &'a Path) -> Window<'a> {
        Window { file, path, start: 0, bytes: Vec::new() }
    }

    /// `len` bytes at `offset`, which must lie in the file.
    fn at(&mut self, offset: u64, len: usize) -> Result<&[u8], JournalError> {
        let inside =
            offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            let wanted = len.max(WINDOW_BYTES) as u64;
            self.bytes.resize(wanted.min(self.file.bytes - offset) as usize, 0);
            self.start = offset;
            self.file.handle.pread(&mut self.bytes, offset).map_err(|e| {
                self.bytes = Vec::new();
                JournalError::io(format!("reading {}", self.path.display()), e)
            })?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.bytes[from..from + len])
    }

    /// The frame at `offset`, if there is one of file `seq`.
    fn frame(&mut self, offset: u64, seq: u64) -> Result<Option<Frame>, JournalError> {
        if offset + FRAME_BYTES as u64 > self.file.bytes {
            return Ok(None);
        }
        let bytes = self.at(offset, FRAME_BYTES)?;
        Ok(Frame::from_bytes(bytes).filter(|f| f.seq == seq))
    }

    /// The first frame of file `seq` at or behind `offset`.
    fn find(&mut self, offset: u64, seq: u64) -> Result<Option<(u64, Frame)>, JournalError> {
        let mut at = offset;
        while at + FRAME_BYTES as u64 <= self.file.bytes {
            let len = WINDOW_BYTES.min((self.file.bytes - at) as usize);
            let bytes = self.at(at, len)?;
            if let Some((inside, frame)) = Frame::find(bytes, 0, seq) {
                return Ok(Some((at + inside as u64, frame)));
            }
            // Step so that a frame across the end of this window is whole in the next.
            at += ((len - FRAME_BYTES) / FRAME_ALIGN * FRAME_ALIGN + FRAME_ALIGN) as u64;
        }
        Ok(None)
    }
}
