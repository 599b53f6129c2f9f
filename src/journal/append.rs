//! Appending: frame, seal and write one record; start the next file.

use super::directory::LogFile;
use super::error::{JournalError, is_no_space};
use super::format::{
    FILE_HEADER_BYTES, FRAME_BYTES, FileHeader, Frame, PAGE, Prelude, framed_len, record_place,
};
use super::log::{Journal, Live, Shared, Writer};
use super::options::RecordLoc;
use crate::base::JournalPos;
use crate::seal::offsets;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Appended bytes after which the kernel is asked to begin writing them back, so that a sync
/// after a long write finds most of it done.
const WRITEBACK_STEP: u64 = 8 << 20;

impl Journal {
    /// Appends one record, the concatenation of `parts`. When it returns, the record survives
    /// the death of this process, and no more: [`Journal::sync`] makes it survive power loss.
    /// Appenders take turns. Costs the sealing and one write to the page cache.
    ///
    /// # Errors
    /// `Full`, `NoSpace`, `TooLarge`: nothing was appended, the journal goes on. `Poisoned`:
    /// it does not; whether this record will be found at the next start is not known.
    pub fn append(&self, parts: &[&[u8]]) -> Result<(JournalPos, RecordLoc), JournalError> {
        let shared = &*self.shared;
        let bytes: usize = parts.iter().map(|p| p.len()).sum();
        let bytes_max = shared.options.record_max();
        if bytes > bytes_max {
            return Err(JournalError::TooLarge { bytes, bytes_max });
        }
        let mut writer = shared.writer.lock();
        shared.check_poison()?;
        let framed = framed_len(bytes) as u64;
        let file = match &writer.file {
            Some(file) if writer.offset + framed <= file.bytes => file.clone(),
            _ => shared.begin_file(&mut writer).inspect_err(|e| shared.note_no_space(Some(e)))?,
        };
        let number = writer.next;
        shared.build(&mut writer, number, file.seq, parts);
        shared.write(&writer, &file).inspect_err(|e| shared.note_no_space(Some(e)))?;

        let loc = RecordLoc {
            pos: JournalPos(number),
            file: file.seq,
            offset: writer.offset as u32,
            len: bytes as u32,
        };
        writer.offset += framed;
        writer.next += 1;
        writer.last_written = number;
        if writer.offset - writer.writeback_offset >= WRITEBACK_STEP {
            let from = writer.writeback_offset;
            file.handle.start_writeback(from, writer.offset - from);
            writer.writeback_offset = writer.offset;
        }
        let mut tail = shared.tail.lock();
        tail.count(number, framed);
        if tail.dirty.last().is_none_or(|last| last.seq != file.seq) {
            tail.dirty.push(file);
        }
        Ok((JournalPos(number), loc))
    }
}

impl Shared {
    /// Remembers that the disk had no room for a record, until another file is had, or one comes
    /// free: a smaller record that fits into what is left proves nothing.
    pub(super) fn note_no_space(&self, failed: Option<&JournalError>) {
        let why = match failed {
            None => None,
            Some(JournalError::NoSpace(e)) => Some(e.to_string()),
            Some(_) => return,
        };
        let mut noted = self.no_space.lock();
        if let (None, Some(why)) = (&*noted, &why) {
            log::warn!("the disk of the journal has no room: {why}; writers wait");
        }
        *noted = why;
    }

    /// Frames and seals a record into the writer's buffer, padded with zeros to the end of the
    /// page it will end in.
    fn build(&self, writer: &mut Writer, number: u64, seq: u64, parts: &[&[u8]]) {
        let prelude = Prelude {
            seq,
            synced: self.synced.load(Ordering::Acquire),
            released: self.released.load(Ordering::Acquire),
        };
        let prelude = prelude.to_bytes();
        let mut all = Vec::with_capacity(1 + parts.len());
        all.push(&prelude[..]);
        all.extend_from_slice(parts);
        let bytes: usize = all.iter().map(|part| part.len()).sum();
        let message = FRAME_BYTES..FRAME_BYTES + offsets::cipher_len(bytes as u64) as usize;
        let end = writer.offset as usize + message.end;
        let padding = end.next_multiple_of(PAGE) - end;
        // All of it is written below: only what grows is cleared first.
        let buffer = &mut writer.buffer;
        buffer.resize(message.end + padding, 0);
        let frame = Frame { number, seq, message_len: message.len() as u32 };
        buffer[..FRAME_BYTES].copy_from_slice(&frame.to_bytes());
        record_place(&self.keys, self.id, number).seal_to(&all, &mut buffer[message.clone()]);
        buffer[message.end..].fill(0);
    }

    /// Writes the buffer at the writer's offset.
    fn write(&self, writer: &Writer, file: &LogFile) -> Result<(), JournalError> {
        let room = (file.bytes - writer.offset) as usize;
        let bytes = &writer.buffer[..writer.buffer.len().min(room)];
        let Err(e) = file.handle.pwrite(bytes, writer.offset) else { return Ok(()) };
        let path = self.directory.log_path(file.seq);
        if is_no_space(&e) {
            // A record whose append failed must not be found later: take its frame away.
            if file.handle.pwrite(&[0; FRAME_BYTES], writer.offset).is_ok() {
                return Err(JournalError::NoSpace(e));
            }
        }
        Err(self.poison(&format!("writing {} failed: {e}", path.display())))
    }

    /// [`Shared::start_file`], if the limit allows one more.
    fn begin_file(&self, writer: &mut Writer) -> Result<Arc<LogFile>, JournalError> {
        let (files, files_max) = (self.live.read().len(), self.options.files_max());
        if files >= files_max {
            let (used, bytes_max) =
                (files as u64 * self.options.file_bytes, self.options.bytes_max);
            return Err(JournalError::Full { used, bytes_max });
        }
        self.start_file(writer)
    }

    /// Makes another file the one being written: its header is on stable storage when this
    /// returns, and so is its name. Two syncs.
    pub(super) fn start_file(&self, writer: &mut Writer) -> Result<Arc<LogFile>, JournalError> {
        let seq = writer.next_seq;
        let file = match self.directory.claim(seq) {
            Ok(file) => Arc::new(file),
            Err(e @ JournalError::NoSpace(_)) => return Err(e),
            Err(e) => return Err(self.poison(&error_words(&e))),
        };
        writer.next_seq += 1;
        let header = FileHeader {
            seq,
            prev_seq: writer.prev_seq,
            prev_last: writer.last_written,
            first: writer.next,
            synced: self.synced.load(Ordering::Acquire),
            released: self.released.load(Ordering::Acquire),
        };
        let page = header.to_page(&self.keys, self.id);
        let written = file.handle.pwrite(&page, 0).and_then(|()| file.handle.datasync());
        if let Err(e) = written {
            let path = self.directory.log_path(seq);
            return Err(self.poison(&format!("starting {} failed: {e}", path.display())));
        }
        let full = writer.file.replace(file.clone());
        {
            let mut live = self.live.write();
            if let Some(full) = full.and_then(|full| live.get_mut(&full.seq)) {
                full.last = Some(writer.last_written);
            }
            live.insert(seq, Live { file: file.clone(), last: None });
        }
        writer.prev_seq = seq;
        writer.offset = FILE_HEADER_BYTES as u64;
        writer.writeback_offset = 0;
        self.note_no_space(None);
        self.retire_released();
        self.wake_keeper();
        Ok(file)
    }
}

/// An error with its causes, in one line.
fn error_words(e: &JournalError) -> String {
    let mut words = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(inner) = cause {
        words.push_str(": ");
        words.push_str(&inner.to_string());
        cause = inner.source();
    }
    words
}
