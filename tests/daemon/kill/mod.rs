//! Loads that outlive `kill -9`: each knows what it has been promised and what it was doing, and
//! says whether a mount shows that. One thread, one directory and one model each.
//!
//! Every state that a load has been in has a span of time: from the issue of the operation that
//! led to it, to the return of the one that ended it. A bucket holds a prefix of the history of
//! the mount, so there is an instant that lies in a span of what each load finds in it.

pub mod names;
pub mod ranges;
pub mod records;
pub mod sql;
pub mod untar;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// When a state may have been the current one; no end: it may still be.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: Instant,
    pub to: Option<Instant>,
}

impl Span {
    fn holds(&self, at: Instant) -> bool {
        self.from <= at && self.to.is_none_or(|to| at <= to)
    }
}

/// The earliest instant from `since` on that lies in a span of each list.
pub fn common_instant(since: Instant, lists: &[Vec<Span>]) -> Option<Instant> {
    let mut begins: Vec<Instant> = lists.iter().flatten().map(|s| s.from.max(since)).collect();
    begins.push(since);
    begins.sort();
    begins.into_iter().find(|&at| lists.iter().all(|list| list.iter().any(|s| s.holds(at))))
}

/// What the driver tells the loads.
#[derive(Default)]
pub struct Signals {
    /// End after the operation that runs.
    pub stop: AtomicBool,
    /// The daemon is being killed: errors are to be expected.
    pub killed: AtomicBool,
}

impl Signals {
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// An operation failed: fine if the daemon was killed.
    pub fn excuse(&self, what: &str, e: io::Error) -> Result<(), String> {
        match self.killed.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(format!("{what}: {e}, with the daemon alive")),
        }
    }
}

/// One thread of load on a directory.
pub trait Load: Send {
    /// What it is called in messages.
    fn name(&self) -> &'static str;
    /// Works below `root` until the mount fails or it is told to stop.
    fn run(&mut self, root: &Path, signals: &Signals) -> Result<(), String>;
    /// After a crash, with the local state: whether all that was promised is there, and nothing
    /// half done. Then goes on from what is there.
    fn settle(&mut self, root: &Path) -> Result<(), String>;
    /// Whether `root` shows any state it has ever been in, and when that was.
    fn find(&self, root: &Path) -> Result<Vec<Span>, String>;
    /// No question about anything before `at` will come any more.
    fn forget_before(&mut self, at: Instant);
}

/// A well mixed function of `x` (splitmix64).
pub fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `len` bytes from position `at` of the endless text `seed`, none of which is zero.
pub fn text(seed: u64, at: u64, len: usize) -> Vec<u8> {
    (at..at + len as u64).map(|i| (mix(seed ^ (i / 8)) >> (i % 8 * 8)) as u8 | 1).collect()
}

/// The highest number that follows `prefix` in a name of `dir`.
pub fn newest(dir: &Path, prefix: &str) -> io::Result<u64> {
    let mut newest = None;
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        newest = newest.max(name.strip_prefix(prefix).and_then(|n| n.parse().ok()));
    }
    newest.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Closes a file, and says whether that failed.
pub fn close(file: std::fs::File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was owned by `file` and is nobody else's.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
