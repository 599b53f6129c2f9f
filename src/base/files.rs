//! Reading a file from an offset on, as far as it goes: what read(2) leaves to its callers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Fills `buffer` from `offset` of a file, as far as it goes; returns how much that is. Less than the
/// buffer means that the file ends there.
///
/// # Errors
/// Those of pread(2); a signal is none.
pub fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_filled_as_far_as_the_file_goes() {
        // Guards against a short read that is taken for the end, and an end that is taken for an error.
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"0123456789", 0).expect("writes");
        let mut buffer = [0; 4];
        let read = |buffer: &mut [u8], at| read_up_to(&file, buffer, at).expect("reads");
        assert_eq!((read(&mut buffer, 3), &buffer[..]), (4, &b"3456"[..]));
        assert_eq!((read(&mut buffer, 8), &buffer[..2]), (2, &b"89"[..]));
        assert_eq!(read(&mut buffer, 10), 0);
    }
}
