//! A small file is given to the kernel with the answer to OPEN, where memory has it: the READ that would
//! follow is spared, for which the reader would wait.
//!
//! What `FUSE_NOTIFY_STORE` puts into the page cache lies there as if it had been read. But Linux looks
//! neither whether pages there are dirty nor whether the file is shorter by now: it would overwrite
//! them, and make it longer. So nothing is stored of a file that a program may change: one that is open
//! for writing (each OPEN, CREATE and TMPFILE says so until its RELEASE, before which Linux has
//! written dirty pages back), or whose size is just being set. Who begins that waits for the end of a
//! store that is under way. And nothing is stored while others change the volume.
//!
//! One store at a time: it waits for pages that are just being read, whose READ another request thread
//! has to answer. Once for a file: after that the kernel has it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::dispatch::{Adapter, Request};
use crate::base::Ino;
use crate::fs::Kind;

/// The largest file that is stored: what a request that counts as short may take.
const SIZE_MAX: u64 = 64 << 10;
/// Files that are remembered as opened since the kernel knows them.
const OPENED_MAX: NonZeroUsize = NonZeroUsize::new(16 << 10).expect("not zero");
/// How long is waited for the end of a store before one looks again.
const LOOK: Duration = Duration::from_secs(1);
/// From here on Linux clears what lies behind the end of a file in its last page
/// ("fuse: Initialize beyond-EOF page contents before setting uptodate").
const CLEARS_TAIL: (u32, u32) = (6, 11);

#[derive(Debug)]
struct State {
    /// How often each file is open for writing or its size is being set. Bounded by open files.
    writers: HashMap<Ino, u32>,
    opened: LruCache<Ino, ()>,
    storing: Option<Ino>,
    /// Stores so far.
    number: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Stores {
    state: Mutex<State>,
    ended: Notify,
    /// The same for who blocks.
    settled: Condvar,
    clears_tail: bool,
    page: u64,
}

/// The right to store a file. Ends with it.
struct Storing<'a>(&'a Stores);

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        self.0.state.lock().storing = None;
        self.0.ended.notify_waiters();
        self.0.settled.notify_all();
    }
}

/// That somebody may change a file, until this is dropped or, once [`Writing::keep`] was called,
/// [`Stores::end`] is.
#[derive(Debug)]
pub(super) struct Writing {
    stores: Arc<Stores>,
    ino: Ino,
    is_kept: bool,
}

impl Writing {
    /// Returns when nothing of the file is being stored any more.
    pub(super) async fn ready(&self) {
        loop {
            let mut ended = std::pin::pin!(self.stores.ended.notified());
            ended.as_mut().enable();
            if self.stores.state.lock().storing != Some(self.ino) {
                return;
            }
            ended.await;
        }
    }

    /// Goes on until [`Stores::end`].
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.is_kept {
            self.stores.end(self.ino);
        }
    }
}

impl Stores {
    pub(super) fn new() -> Arc<Stores> {
        let opened = LruCache::new(OPENED_MAX);
        let state = State { writers: HashMap::new(), opened, storing: None, number: 0 };
        // SAFETY: takes no pointer.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Arc::new(Stores {
            state: Mutex::new(state),
            ended: Notify::new(),
            settled: Condvar::new(),
            clears_tail: is_at_least(&release, CLEARS_TAIL),
            page,
        })
    }

    /// From now on nothing of `ino` is begun to be stored.
    pub(super) fn begin(self: &Arc<Self>, ino: Ino) -> Writing {
        let mut state = self.state.lock();
        *state.writers.entry(ino).or_default() += 1;
        state.opened.put(ino, ());
        Writing { stores: Arc::clone(self), ino, is_kept: false }
    }

    /// Ends what one [`Stores::begin`] has begun.
    pub(super) fn end(&self, ino: Ino) {
        let mut state = self.state.lock();
        if let Some(count) = state.writers.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                state.writers.remove(&ino);
            }
        }
    }

    /// The kernel has forgotten `ino`.
    pub(super) fn forget(&self, ino: Ino) {
        self.state.lock().opened.pop(&ino);
    }

    /// Returns when every store that is under way has ended. Blocks for as long as a read may take.
    pub(super) fn settle(&self) {
        let mut state = self.state.lock();
        let number = state.number;
        while state.storing.is_some() && state.number == number {
            self.settled.wait_for(&mut state, LOOK);
        }
    }

    /// Begins to store `ino`, unless that must not or need not be.
    fn try_store(&self, ino: Ino) -> Option<Storing<'_>> {
        let mut state = self.state.lock();
        if state.opened.put(ino, ()).is_some()
            || state.storing.is_some()
            || state.writers.contains_key(&ino)
        {
            return None;
        }
        state.storing = Some(ino);
        state.number += 1;
        Some(Storing(self))
    }

    fn fits(&self, size: u64) -> bool {
        (1..=SIZE_MAX).contains(&size) && (self.clears_tail || size.is_multiple_of(self.page))
    }
}

/// Whether a kernel's release is of `wanted` or later.
fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => false,
    }
}

impl Adapter {
    /// Stores the file that `rq` opens to be read, if that spares a request.
    pub(super) fn store_opened(&self, rq: &Request<'_>) {
        let Some(stores) = &self.stores else { return };
        let Some(ino) = self.changeable(rq) else { return };
        let Some(_storing) = stores.try_store(ino) else { return };
        // Looked at after it has begun: who ends the writing half waits for it to end.
        if !self.fs.may_write(ino) {
            return;
        }
        let attr = self.fs.volume().getattr_now(ino);
        let Some(attr) = attr.filter(|attr| attr.kind == Kind::File && stores.fits(attr.size))
        else {
            return;
        };
        // What is in the journal the kernel has written, and has, as a rule.
        let data = self.fs.volume().read_in_memory(ino, 0, attr.size as u32);
        let Some(Ok(data)) = data else { return };
        if data.len() as u64 == attr.size
            && let Err(e) = rq.reply.device().store(rq.node(), &data)
        {
            log::debug!("the kernel does not take inode {ino} ahead of its READ: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn what_may_be_changed_is_not_stored_and_who_would_change_it_waits_for_the_store() {
        // Guards against dirty pages that are overwritten, and against a file that is as long again
        // as before it was truncated.
        let stores = Stores::new();
        let opened = stores.begin(Ino(2));
        assert!(stores.try_store(Ino(2)).is_none(), "it is open for writing");
        opened.keep();
        let sets_size = stores.begin(Ino(2));
        drop(sets_size);
        stores.forget(Ino(2));
        assert!(stores.try_store(Ino(2)).is_none(), "it still is");
        stores.end(Ino(2));
        stores.forget(Ino(2));
        let storing = stores.try_store(Ino(2)).expect("nobody changes it");
        assert!(stores.try_store(Ino(3)).is_none(), "one at a time");
        let (this, other) = (stores.begin(Ino(2)), stores.begin(Ino(4)));
        assert!(other.ready().now_or_never().is_some());
        assert!(this.ready().now_or_never().is_none(), "it is being stored");
        drop(storing);
        assert!(this.ready().now_or_never().is_some());
        assert!(stores.try_store(Ino(2)).is_none());
        drop((this, other));
        assert!(stores.try_store(Ino(2)).is_none(), "the kernel has had it");
        stores.forget(Ino(2));
        assert!(stores.try_store(Ino(2)).is_some());
    }

    #[test]
    fn a_last_page_in_part_is_stored_only_where_linux_clears_the_rest_of_it() {
        // Guards against bytes of the kernel's memory that a mapping would show behind the end.
        for (release, is) in [
            ("6.11.0-rc1", true),
            ("6.18.44-fc-v657", true),
            ("7.0", true),
            ("6.10.99", false),
            ("6.1.0-28-amd64", false),
            ("5.15.0", false),
            ("", false),
            ("unknown", false),
        ] {
            assert_eq!(is_at_least(release, CLEARS_TAIL), is, "{release}");
        }
    }
}
