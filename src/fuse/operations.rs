//! What the kernel asked for and how long the answers took, counted by operation.
//!
//! Each request thread counts for itself (its [`Device`](super::device::Device) holds the counters),
//! so that counting costs a few additions to memory that nobody else writes; a reader adds the
//! threads up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::{Histogram, Spread};

use super::abi::opcode as op;

/// Operation numbers that are counted under their own name: all below this one.
const OPCODES: usize = 64;

/// The names of operations, as metrics and tables show them.
const NAMES: &[(u32, &str)] = &[
    (op::LOOKUP, "lookup"),
    (op::FORGET, "forget"),
    (op::GETATTR, "getattr"),
    (op::SETATTR, "setattr"),
    (op::READLINK, "readlink"),
    (op::SYMLINK, "symlink"),
    (op::MKNOD, "mknod"),
    (op::MKDIR, "mkdir"),
    (op::UNLINK, "unlink"),
    (op::RMDIR, "rmdir"),
    (op::RENAME, "rename"),
    (op::LINK, "link"),
    (op::OPEN, "open"),
    (op::CREATE, "create"),
    (op::READ, "read"),
    (op::WRITE, "write"),
    (op::STATFS, "statfs"),
    (op::RELEASE, "release"),
    (op::FSYNC, "fsync"),
    (op::SETXATTR, "setxattr"),
    (op::GETXATTR, "getxattr"),
    (op::LISTXATTR, "listxattr"),
    (op::REMOVEXATTR, "removexattr"),
    (op::FLUSH, "flush"),
    (op::READDIR, "readdir"),
    (op::RELEASEDIR, "releasedir"),
    (op::FSYNCDIR, "fsyncdir"),
    (op::INTERRUPT, "interrupt"),
    (op::DESTROY, "destroy"),
    (op::IOCTL, "ioctl"),
    (op::BATCH_FORGET, "forget"),
    (op::FALLOCATE, "fallocate"),
    (op::READDIRPLUS, "readdir"),
    (op::RENAME2, "rename"),
    (op::LSEEK, "lseek"),
    (op::COPY_FILE_RANGE, "copy_file_range"),
    (op::TMPFILE, "tmpfile"),
    (op::STATX, "getattr"),
    (op::COPY_FILE_RANGE_64, "copy_file_range"),
];

/// The counters of one request thread.
#[derive(Debug)]
pub(super) struct Counters {
    /// By operation number; the last takes those that are not known.
    times: [Histogram; OPCODES + 1],
    /// Answers that were input/output errors.
    failed: [AtomicU64; OPCODES + 1],
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            times: std::array::from_fn(|_| Histogram::default()),
            failed: std::array::from_fn(|_| AtomicU64::new(0)),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        }
    }
}

fn place_of(opcode: u32) -> usize {
    (opcode as usize).min(OPCODES)
}

impl Counters {
    /// Counts an operation that was answered with `errno` (0: done) and `body` after `elapsed`.
    pub(super) fn answered(&self, opcode: u32, elapsed: Duration, errno: i32, body: &[u8]) {
        let place = place_of(opcode);
        self.times[place].record(elapsed);
        match (errno, opcode) {
            (libc::EIO, _) => {
                self.failed[place].fetch_add(1, Relaxed);
            }
            (0, op::READ) => {
                self.read_bytes.fetch_add(body.len() as u64, Relaxed);
            }
            // `struct fuse_write_out` begins with the number of bytes taken.
            (0, op::WRITE) => {
                let taken = body.first_chunk().map_or(0, |taken| u32::from_ne_bytes(*taken));
                self.written_bytes.fetch_add(taken.into(), Relaxed);
            }
            _ => {}
        }
    }
}

/// The counters of all request threads of a mount.
#[derive(Clone, Debug, Default)]
pub struct Operations(Arc<[Arc<Counters>]>);

/// What was counted of one operation since the mount began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its name, such as `read`.
    pub name: String,
    /// How long it took from the request to the answer.
    pub times: Spread,
    /// How many times the answer was an input/output error.
    pub failed: u64,
}

/// Everything that was counted since the mount began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Those that were asked for at least once, in the order of their names.
    pub operations: Vec<Operation>,
    /// Bytes that READ has answered with. What the kernel had in its page cache is not asked for.
    pub read_bytes: u64,
    /// Bytes that WRITE has taken.
    pub written_bytes: u64,
}

impl Operations {
    pub(super) fn of(threads: impl IntoIterator<Item = Arc<Counters>>) -> Operations {
        Operations(threads.into_iter().collect())
    }

    /// What was counted so far, all threads together.
    pub fn counted(&self) -> Counted {
        let mut all = Counted::default();
        for counters in &*self.0 {
            all.read_bytes += counters.read_bytes.load(Relaxed);
            all.written_bytes += counters.written_bytes.load(Relaxed);
        }
        let others = std::iter::once((OPCODES as u32, "other"));
        for (opcode, name) in NAMES.iter().copied().chain(others) {
            self.add(place_of(opcode), name, &mut all.operations);
        }
        // Numbers that have no name: the kernel asks once, hears that there is no such thing, and
        // asks no more.
        for opcode in (0..OPCODES as u32).filter(|n| NAMES.iter().all(|(named, _)| named != n)) {
            self.add(place_of(opcode), "other", &mut all.operations);
        }
        all.operations.retain(|operation| operation.times.count() > 0);
        all.operations.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Adds what is counted at `place` to the operation `name`.
    fn add(&self, place: usize, name: &str, operations: &mut Vec<Operation>) {
        let at = operations.iter().position(|known| known.name == name).unwrap_or_else(|| {
            operations.push(Operation { name: name.into(), ..Operation::default() });
            operations.len() - 1
        });
        let operation = &mut operations[at];
        for counters in &*self.0 {
            counters.times[place].add_to(&mut operation.times);
            operation.failed += counters.failed[place].load(Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_added_up_and_two_forms_of_one_operation_are_one() {
        // Guards against numbers of one thread shown as those of the mount, against a family of
        // metrics that names `rename` twice, and an unknown number that panics.
        let threads = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        let all = Operations::of(threads.clone());
        assert_eq!(all.counted(), Counted::default());
        let us = Duration::from_micros(5);
        threads[0].answered(op::RENAME, us, 0, &[]);
        threads[1].answered(op::RENAME2, us, libc::EIO, &[]);
        threads[1].answered(op::READ, us, 0, &[7; 100]);
        threads[1].answered(op::READ, us, libc::ENOENT, &[]);
        threads[0].answered(op::WRITE, us, 0, &[4096u32.to_ne_bytes(), [0; 4]].concat());
        threads[0].answered(op::WRITE, us, 0, &[]);
        threads[0].answered(op::OPEN, us, 0, &[]);
        threads[0].answered(u32::MAX, us, 0, &[]);
        let counted = all.counted();
        let shown: Vec<_> = counted
            .operations
            .iter()
            .map(|o| (o.name.as_str(), o.times.count(), o.failed))
            .collect();
        assert_eq!(
            shown,
            [("open", 1, 0), ("other", 1, 0), ("read", 2, 0), ("rename", 2, 1), ("write", 2, 0)]
        );
        assert_eq!((counted.read_bytes, counted.written_bytes), (100, 4096));
    }
}
