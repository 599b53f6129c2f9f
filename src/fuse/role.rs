//! What the kernel has to do when a mount changes its role: write back what it keeps, forget what may
//! become wrong, refuse changes or let them through.
//!
//! Linux has no word for "forget everything". Names that nobody uses go with a remount that changes
//! nothing; those in use are looked for, directory by directory, and expired one by one; a user who may not
//! remount has every name expired at once, where Linux can. Attributes are asked for again for each
//! inode that the kernel knows. An answer that was on its way meanwhile may still be remembered after
//! all that, so that it is done once more a moment later.
//!
//! Everything here blocks, on requests to ourselves among others: never call it on a request thread.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use tokio::runtime::Handle;

use super::device::Device;
use super::dispatch::Adapter;
use super::hold::Hold;
use super::nodes::Stamp;
use super::options::TTL_FOLLOWER;
use crate::base::Ino;
use crate::fs::{Fs, Kind};

/// How long names in use are looked for.
const WALK_MAX: Duration = Duration::from_secs(20);
/// Entries of a directory that are looked at together.
const PAGE: usize = 1000;
/// After what time everything is expired once more.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How long the files that the kernel knows are looked at before it may change them, and how many at
/// once.
const SETTLE_MAX: Duration = Duration::from_secs(15);
const SETTLE_PARALLEL: usize = 64;

/// The kernel's side of a mount; see the module.
#[derive(Clone)]
pub struct KernelSide {
    pub(super) adapter: Arc<Adapter>,
    pub(super) device: Arc<Device>,
    pub(super) hold: Option<Arc<Hold>>,
    pub(super) runtime: Handle,
}

impl KernelSide {
    fn fs(&self) -> &Arc<Fs> {
        self.adapter.fs.volume()
    }

    /// Has everything written back that programs have written so far: it is in `fs` when this returns.
    /// What is refused (the journal is full; a file that another machine has changed) Linux drops, and
    /// says so to whoever wrote it at the next fsync(2) or close(2): no reason to stay the writer.
    pub fn write_back(&self) -> io::Result<()> {
        if let Some(hold) = &self.hold {
            let root = hold.root()?;
            // Many pages at once. It does not wait for all of them; what follows does, one by one.
            // SAFETY: the descriptor is open past the call.
            if unsafe { libc::syncfs(root.as_raw_fd()) } != 0 {
                log::warn!("not everything was written back: {}", io::Error::last_os_error());
            }
        }
        if self.adapter.write_back {
            let plain = self.fs().known_inodes().into_iter().map(|ino| ino.0);
            for node in plain.chain(self.adapter.common.nodes.shown()) {
                if let Err(e) = self.device.write_back(node, 0..u64::MAX) {
                    log::debug!("node {node} was not written back: {e}");
                }
            }
        }
        Ok(())
    }

    /// Has the kernel forget what nobody uses, so that little is left to be told.
    pub fn shrink(&self) {
        let Some(hold) = &self.hold else { return };
        match hold.shrink() {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            Err(e) => log::debug!("the kernel was not asked to forget names: {e}"),
            Ok(()) => {}
        }
    }

    /// Notes what the kernel believes of the files that it knows: call it when no change is under way
    /// and the next one will be refused. `trusted`: all that it wrote was taken.
    pub fn note_files(&self, trusted: bool) {
        let fs = self.fs();
        let known = fs.known_inodes().into_iter();
        let noted = known.filter_map(|ino| match fs.getattr_now(ino) {
            Some(attr) if attr.kind != Kind::File => None,
            Some(attr) if trusted => Some((ino, Some(Stamp::of(&attr)))),
            _ => Some((ino, None)),
        });
        self.adapter.common.nodes.begin_following(noted);
    }

    /// Others change the files from now on: names and attributes are asked for again, and files are
    /// not opened for writing any more. `fs` is a follower already.
    pub fn follow(&self) {
        self.adapter.common.settle_stores(); // nothing is begun to be stored any more
        self.shrink();
        self.expire();
        if let Some(hold) = &self.hold
            && let Err(e) = hold.refuse_changes()
        {
            log::warn!("the mount stays writable, and refuses what is written: {e}");
        }
        let kernel = self.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(AGAIN_AFTER).await;
            tokio::task::spawn_blocking(move || {
                if !kernel.fs().is_writer() {
                    kernel.expire();
                }
            });
        });
    }

    /// Whether this process may make the mount writable.
    ///
    /// # Errors
    /// `EPERM` if not, and it is not so now.
    pub fn check_allows(&self) -> io::Result<()> {
        match &self.hold {
            Some(hold) if hold.is_refusing()? => hold.check(),
            _ => Ok(()),
        }
    }

    /// Sees to it that what the kernel goes by is as `fs` has it, which nobody changes meanwhile:
    /// afterwards this mount may. Takes a little longer than a follower's names and attributes last.
    pub fn settle(&self) {
        let begun = Instant::now();
        for ino in self.fs().known_inodes() {
            self.refresh(ino.0);
        }
        self.runtime.block_on(self.settle_files());
        let last = Duration::from_secs(TTL_FOLLOWER.0) + Duration::from_millis(200);
        std::thread::sleep(last.saturating_sub(begun.elapsed()));
    }

    async fn settle_files(&self) {
        let (fs, nodes) = (self.fs(), &self.adapter.common.nodes);
        let followed = nodes.followed();
        let until = tokio::time::Instant::now() + SETTLE_MAX;
        let looks = stream::iter(followed).map(|ino| async move {
            let looked = tokio::time::timeout_at(until, fs.getattr(ino)).await;
            (ino, looked.ok().and_then(Result::ok))
        });
        let mut looks = looks.buffer_unordered(SETTLE_PARALLEL);
        while let Some((ino, attr)) = looks.next().await {
            let Some(former) = nodes.settle(ino, attr.as_ref()) else { continue };
            let device = Arc::clone(&self.device);
            tokio::task::spawn_blocking(move || drop(device.write_back(former, 0..u64::MAX)));
        }
    }

    /// Files may be opened for writing again.
    pub fn allow_changes(&self) -> io::Result<()> {
        self.hold.as_ref().map_or(Ok(()), |hold| hold.allow_changes())
    }

    fn refresh(&self, node: u64) {
        if let Err(e) = self.device.refresh_attributes(node) {
            log::debug!("the kernel keeps the attributes of node {node}: {e}");
        }
    }

    /// Expires names and attributes.
    fn expire(&self) {
        let may_remount = self.hold.as_ref().is_some_and(|hold| hold.check().is_ok());
        let expired = match may_remount {
            true => {
                self.runtime.block_on(tokio::time::timeout(WALK_MAX, self.expire_used())).is_ok()
            }
            false => false,
        };
        // Rougher, since it also sends away who works in a directory until that is looked up again.
        if !expired && !self.device.expire_all_names().unwrap_or(false) {
            let walk = self.runtime.block_on(tokio::time::timeout(WALK_MAX, self.expire_used()));
            if may_remount || walk.is_err() {
                log::warn!("the kernel may show names as they were before for a while");
            }
        }
        for ino in self.fs().known_inodes() {
            self.refresh(ino.0);
        }
    }

    /// Expires the names in the directories that the kernel knows which lead to inodes that it knows.
    async fn expire_used(&self) {
        let fs = self.fs();
        let known: HashSet<Ino> = fs.known_inodes().into_iter().collect();
        for &dir in &known {
            let mut after = 0;
            // Of what is no directory nothing is listed.
            while let Ok(page) = fs.readdir(dir, after, PAGE).await {
                let Some(last) = page.last() else { break };
                after = last.cookie;
                let used = page.iter().filter(|entry| known.contains(&entry.ino));
                for entry in used.filter(|entry| !matches!(&entry.name[..], b"." | b"..")) {
                    let (device, name) = (Arc::clone(&self.device), entry.name.clone());
                    let expiring = move || device.expire_name(dir, &name);
                    if let Ok(Err(e)) = tokio::task::spawn_blocking(expiring).await {
                        log::debug!("the kernel keeps a name: {e}");
                    }
                }
            }
        }
    }
}
