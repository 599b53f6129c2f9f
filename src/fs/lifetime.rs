//! How long inodes live and which numbers they get: the kernel's lookup counts, inodes without
//! a name that are still open, and the allocation of inode numbers.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use super::known::Known;
use super::{Attempt, Fs, FsError, State, Step};
use crate::base::Ino;
use crate::commit::{Batch, DataOp};
use crate::meta::keys::{self, RECLAIM_INODE};
use crate::meta::{DecodeError, Inode, Kind};

/// Inode numbers that a directory gets at first, and at most at a time. Its files then sit side
/// by side in the tree.
const RANGE_FIRST: u64 = 32;
const RANGE_MAX: u64 = 4096;
/// Directories whose range is remembered; a forgotten one starts a new range.
const RANGES: usize = 4096;

struct Range {
    next: u64,
    end: u64,
    size: u64,
}

/// Hands out inode numbers, to each directory from its own range.
pub(super) struct InoAllocator {
    next: u64,
    ranges: LruCache<Ino, Range>,
}

impl InoAllocator {
    pub(super) fn new(next: u64) -> InoAllocator {
        let ranges = LruCache::new(NonZeroUsize::new(RANGES).expect("not zero"));
        InoAllocator { next, ranges }
    }

    /// A number for a child of `parent`. When a new range is taken, `batch` records it. A
    /// batch that is not submitted wastes a number, nothing more.
    pub(super) fn allocate(&mut self, parent: Ino, batch: &mut Batch) -> Ino {
        let next = &mut self.next;
        let range = self.ranges.get_or_insert_mut(parent, || Range { next: 0, end: 0, size: 0 });
        if range.next == range.end {
            range.size = (range.size * 2).clamp(RANGE_FIRST, RANGE_MAX);
            range.next = *next;
            range.end = *next + range.size;
            *next = range.end;
        }
        // Every batch that creates says where numbers go on: a range that was recorded only
        // by a batch that failed would be handed out again after a crash.
        batch.put(keys::next_ino(), Bytes::copy_from_slice(&self.next.to_le_bytes()));
        range.next += 1;
        Ino(range.next - 1)
    }
}

/// Decodes the `g ino` row.
pub(crate) fn decode_next_ino(row: &[u8]) -> Result<u64, DecodeError> {
    Ok(u64::from_le_bytes(row.try_into().map_err(|_| DecodeError("next inode number"))?))
}

/// How often the kernel knows each inode, and which of those have no name any more.
#[derive(Default)]
pub(super) struct Lookups {
    inner: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    counts: Known,
    orphans: HashSet<Ino>,
}

impl Lookups {
    pub(super) fn add(&self, ino: Ino) {
        self.inner.lock().counts.add(ino);
    }

    pub(super) fn add_all(&self, inos: impl IntoIterator<Item = Ino>) {
        let mut inner = self.inner.lock();
        for ino in inos {
            inner.counts.add(ino);
        }
    }

    pub(super) fn known(&self) -> Vec<Ino> {
        self.inner.lock().counts.inos().collect()
    }

    /// Whether the kernel knows none.
    pub(super) fn is_empty(&self) -> bool {
        self.inner.lock().counts.is_empty()
    }

    fn times_known(&self, ino: Ino) -> u64 {
        self.inner.lock().counts.count(ino)
    }

    fn is_known(&self, ino: Ino) -> bool {
        self.inner.lock().counts.contains(ino)
    }

    /// Takes `n` from the count; true if it is an orphan that nobody knows any more.
    pub(super) fn drop(&self, ino: Ino, n: u64) -> bool {
        let mut inner = self.inner.lock();
        inner.counts.sub(ino, n) && inner.orphans.remove(&ino)
    }

    /// Notes that `ino` has no name; false if nobody knows it (any more).
    fn add_orphan(&self, ino: Ino) -> bool {
        let mut inner = self.inner.lock();
        let known = inner.counts.contains(ino);
        if known {
            inner.orphans.insert(ino);
        }
        known
    }

    /// Whether an inode without a name is still known.
    pub(super) fn has_orphans(&self) -> bool {
        !self.inner.lock().orphans.is_empty()
    }

    fn remove_orphan(&self, ino: Ino) {
        self.inner.lock().orphans.remove(&ino);
    }
}

impl Fs {
    /// The inodes that the kernel knows, the root besides.
    pub fn known_inodes(&self) -> Vec<Ino> {
        let mut known = self.lookups.known();
        known.push(Ino::ROOT);
        known
    }

    /// How many references to `ino` the kernel holds.
    pub fn times_known(&self, ino: Ino) -> u64 {
        self.lookups.times_known(ino)
    }

    /// The kernel forgets `nlookup` of its references to `ino`; an inode without a name goes
    /// with the last.
    pub fn forget(self: &Arc<Self>, ino: Ino, nlookup: u64) {
        if !self.lookups.drop(ino, nlookup) || self.is_read_only() {
            return;
        }
        let now = {
            let mut state = self.state.lock();
            self.reap(&mut state, ino)
        };
        if let Err(step) = now {
            match step {
                Step::Fail(e) => log::warn!("inode {ino} stays until the next mount: {e}"),
                _ => {
                    let fs = self.clone();
                    tokio::spawn(async move {
                        let reaped = fs.transact(move |fs, state| fs.reap(state, ino)).await;
                        if let Err(e) = reaped {
                            log::warn!("inode {ino} stays until the next mount: {e}");
                        }
                    });
                }
            }
        }
    }

    /// Removes an inode that has no name and that nobody has open.
    fn reap(&self, state: &mut State, ino: Ino) -> Attempt<()> {
        let inode = match self.inode(ino) {
            Err(Step::Fail(FsError::NotFound)) => return Ok(()),
            other => other?,
        };
        if inode.nlink > 0 || self.lookups.is_known(ino) {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.delete(keys::orphan(ino));
        remove_inode(&mut batch, ino, &inode);
        self.submit(state, batch, &[])?;
        Ok(())
    }

    /// Adds to `batch` what happens to `inode` when its last name goes: it goes too, or
    /// becomes an orphan while the kernel knows it. Call [`Fs::orphaned`] after submitting.
    pub(super) fn unlinked(&self, batch: &mut Batch, ino: Ino, inode: &mut Inode) -> bool {
        inode.nlink = 0;
        if self.lookups.is_known(ino) {
            batch.put(keys::inode(ino), inode.encode());
            batch.put_fresh(keys::orphan(ino), crate::meta::MarkerRow::encode());
            true
        } else {
            remove_inode(batch, ino, inode);
            false
        }
    }

    /// Remembers that `ino` has no name; its last forget removes it. If that has come since
    /// [`Fs::unlinked`] looked, it goes now.
    pub(super) fn orphaned(&self, state: &mut State, ino: Ino) {
        if !self.lookups.add_orphan(ino) && self.reap(state, ino).is_err() {
            log::warn!("inode {ino} stays until the next mount");
        }
    }

    /// Forgets that `ino` had no name: it got one (`linkat` of an `O_TMPFILE`).
    pub(super) fn adopted(&self, ino: Ino) {
        self.lookups.remove_orphan(ino);
    }

    /// Removes the orphans that an earlier mount left. Run once after mounting.
    pub async fn reap_left_over(self: Arc<Self>) -> Result<u64, FsError> {
        let (mut start, end) = keys::all_with_tag(b'o');
        let mut count = 0;
        loop {
            let page = self.view.page(&start, &end, 1000, false).await?;
            for (key, _) in page.rows {
                let Some(ino) = keys::orphan_of(&key) else { continue };
                if self.lookups.is_known(ino) {
                    continue;
                }
                self.clone().transact(move |fs, state| fs.reap(state, ino)).await?;
                count += 1;
            }
            match page.next {
                Some(next) => start = next,
                None => return Ok(count),
            }
        }
    }
}

fn remove_inode(batch: &mut Batch, ino: Ino, inode: &Inode) {
    batch.delete(keys::inode(ino));
    batch.inodes -= 1;
    batch.bytes -= inode.allocated as i64;
    if inode.kind == Kind::File {
        batch.data.push(DataOp::Drop { ino, incarnation: inode.incarnation });
    }
    if inode.xattrs > 0 {
        batch.data.push(DataOp::Drop { ino, incarnation: RECLAIM_INODE });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_directory_get_neighbouring_numbers_while_others_create_too() {
        // Guards against two directories that are filled at the same time interleaving their
        // inodes, which would make a cold `ls -l` of either read the rows of both.
        let mut inos = InoAllocator::new(100);
        let mut batch = Batch::default();
        let mut a = Vec::new();
        for _ in 0..20 {
            a.push(inos.allocate(Ino(1), &mut batch).0);
            inos.allocate(Ino(2), &mut batch);
        }
        assert_eq!(a, (100..120).collect::<Vec<_>>());
    }

    #[test]
    fn an_inode_without_a_name_goes_with_the_last_forget_only() {
        // Guards against an open, unlinked file losing its data while still in use.
        let lookups = Lookups::default();
        lookups.add(Ino(5));
        lookups.add(Ino(5));
        assert!(lookups.add_orphan(Ino(5)));
        assert!(!lookups.drop(Ino(5), 1));
        assert!(lookups.drop(Ino(5), 1));
        assert!(!lookups.drop(Ino(5), 1), "only once");
        assert!(!lookups.add_orphan(Ino(5)), "forgotten before it was unlinked");
    }
}
