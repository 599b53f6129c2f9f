//! Writing to a file past the page cache.
//!
//! What the cache stores was just read: its plaintext is in memory already, so a second copy in
//! the page cache pushes out something of use, and making it costs more processor time than
//! decryption. So the whole pages of a large write go to the disk directly (`O_DIRECT`, open(2)),
//! from one reused buffer; the partial pages at both ends, small writes, and everything on file
//! systems that refuse `O_DIRECT`, go through the page cache. The two never share a page.

use super::granule::MARK;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Alignment of offsets, lengths and memory: a page, which every block device accepts.
const ALIGN: u64 = 4096;
/// Bytes of one direct write at most; also of the buffer.
const PIECE: usize = 1 << 20;
/// Writes below this are not worth opening the file a second time.
const DIRECT_MIN: u64 = 256 << 10;

/// What is written.
pub(super) enum Piece<'a> {
    /// A mark, made for it.
    Mark([u8; MARK as usize]),
    /// A part of a granule.
    Data(&'a [u8]),
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Mark(mark) => mark,
            Piece::Data(data) => data,
        }
    }
}

/// Writes runs of slices; owns the buffer.
#[derive(Default)]
pub(super) struct DirectWriter {
    /// Allocated at the first use, with room to begin at an aligned address.
    buffer: Vec<u8>,
    /// The file system refused once.
    refused: bool,
}

impl DirectWriter {
    /// Writes `slices`, `len` bytes in all, one after the other at `offset` of `file`, which is open
    /// for writing and lies at `path`. Each is asked for when those before are in the buffer. Blocks.
    ///
    /// # Errors
    /// The file system's; any part of the range may have been written then.
    pub(super) fn write<'a>(
        &mut self,
        path: &Path,
        file: &File,
        offset: u64,
        len: u64,
        slices: impl Iterator<Item = Piece<'a>>,
    ) -> io::Result<()> {
        let end = offset + len;
        let whole = offset.next_multiple_of(ALIGN)..end / ALIGN * ALIGN;
        let large = end - offset >= DIRECT_MIN && !self.refused;
        let mut direct = if large { self.open(path)? } else { None };
        if self.buffer.is_empty() {
            self.buffer = vec![0; PIECE + ALIGN as usize];
        }
        let skip = self.buffer.as_ptr().align_offset(ALIGN as usize).min(ALIGN as usize);
        let buffer = &mut self.buffer[skip..skip + PIECE];

        let (mut at, mut filled) = (offset, 0);
        for slice in slices {
            let mut rest = slice.bytes();
            while !rest.is_empty() {
                // A piece ends where the whole pages begin and end, and where the buffer does.
                let limit = [whole.start, whole.end, end].into_iter().filter(|&l| l > at).min();
                let room = limit.map_or(0, |l| (l - at) as usize).min(PIECE);
                let (now, later) = rest.split_at(rest.len().min(room - filled));
                buffer[filled..filled + now.len()].copy_from_slice(now);
                filled += now.len();
                rest = later;
                if filled == room {
                    let piece = &buffer[..filled];
                    let aligned = at.is_multiple_of(ALIGN) && filled.is_multiple_of(ALIGN as usize);
                    match direct.as_ref().filter(|_| aligned).map(|d| d.write_all_at(piece, at)) {
                        Some(Ok(())) => {}
                        Some(Err(e)) if e.raw_os_error() == Some(libc::EINVAL) => {
                            (self.refused, direct) = (true, None);
                            file.write_all_at(piece, at)?;
                        }
                        Some(Err(e)) => return Err(e),
                        None => file.write_all_at(piece, at)?,
                    }
                    at += filled as u64;
                    filled = 0;
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, path: &Path) -> io::Result<Option<File>> {
        match OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                self.refused = true;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_any_place_and_length_are_written_as_given() {
        // Guards against bytes lost, doubled or moved where direct and ordinary writes meet:
        // every combination of ends around a page, of short and long runs, over a file that has
        // other contents already, on the target directory's file system and on tmpfs.
        let on_disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for dir in [on_disk.path(), Path::new("/dev/shm")] {
            let path = dir.join(format!("sealfs-direct-{}", std::process::id()));
            let mut options = File::options();
            options.create(true).truncate(true).read(true).write(true);
            let file = options.open(&path).unwrap();
            let mut expected = vec![7u8; 3 << 20];
            file.write_all_at(&expected, 0).unwrap();
            let mut writer = DirectWriter::default();
            let mut fill = 0u8;
            for offset in [0u64, 1, 4095, 4096, 4097, 70_000] {
                for len in [1usize, 4095, 4096, 300_000, 1 << 20, (2 << 20) + 5] {
                    fill = fill.wrapping_add(1);
                    let data: Vec<u8> = (0..len).map(|i| fill ^ (i / 512) as u8).collect();
                    let pieces = data.chunks(65_616.min(len.div_ceil(3))).map(Piece::Data);
                    writer.write(&path, &file, offset, len as u64, pieces).unwrap();
                    expected[offset as usize..offset as usize + len].copy_from_slice(&data);
                }
            }
            assert!(std::fs::read(&path).unwrap() == expected, "{}", path.display());
            std::fs::remove_file(&path).unwrap();
        }
    }
}
