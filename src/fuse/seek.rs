//! `SEEK_DATA` and `SEEK_HOLE` on files with pages that the kernel has not written back.
//!
//! Linux asks for data and holes without writing dirty pages back before (`fuse_lseek` in
//! fs/fuse/file.c), so `fs` may not know yet of data that a program has written and another one
//! already reads: `cp` would copy zeros. Only pages where `fs` sees a hole can change an answer;
//! those are written back first, and `fs` is asked again.

use std::ops::Range;
use std::sync::Arc;

use super::device::Device;
use crate::base::Ino;
use crate::fs::{FsError, Tree, Whence};

/// Holes that turn out to be filled before the whole rest of the file is written back.
const FILLED_MAX: u32 = 32;

/// As [`Tree::lseek`]. `device`: the connection to a kernel that may have dirty pages, and the number by
/// which it knows the file.
///
/// # Errors
/// Those of [`Tree::lseek`]; [`FsError::Io`] if the kernel cannot be asked to write back.
pub(super) async fn seek(
    fs: Arc<Tree>,
    device: Option<(Arc<Device>, u64)>,
    ino: Ino,
    offset: u64,
    whence: Whence,
) -> Result<u64, FsError> {
    let mut found = fs.lseek(ino, offset, whence).await;
    let Some((device, node)) = device else { return found };
    for filled in 0.. {
        let hole = match (&found, whence) {
            (Ok(at), Whence::Data) if *at == offset => return found,
            (Ok(at), Whence::Data) => offset..*at,
            (Ok(at), Whence::Hole) if filled < FILLED_MAX => {
                match fs.lseek(ino, *at, Whence::Data).await {
                    Ok(end) => *at..end,
                    Err(FsError::NoSuchOffset) => *at..u64::MAX,
                    Err(e) => return Err(e),
                }
            }
            (Ok(_) | Err(FsError::NoSuchOffset), _) => offset..u64::MAX,
            (Err(_), _) => return found,
        };
        let last = hole.end == u64::MAX && hole.start == offset;
        write_back(&device, node, hole).await?;
        let again = fs.lseek(ino, offset, whence).await;
        // A hole that moved on was filled; the one it moved to may be next.
        if last || whence == Whence::Data || again == found {
            return again;
        }
        found = again;
    }
    found
}

async fn write_back(device: &Arc<Device>, node: u64, bytes: Range<u64>) -> Result<(), FsError> {
    let device = Arc::clone(device);
    let done = tokio::task::spawn_blocking(move || device.write_back(node, bytes)).await;
    let failed = |e: &dyn std::fmt::Display| {
        FsError::Io(format!("the kernel did not write back node {node}: {e}"))
    };
    match done {
        Ok(done) => done.map_err(|e| failed(&e)),
        Err(e) => Err(failed(&e)),
    }
}
