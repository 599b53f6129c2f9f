//! Under which number the kernel knows a file.
//!
//! With `FUSE_WRITEBACK_CACHE` Linux believes its own size and times of a regular file, whatever a
//! later answer says (`fuse_change_attributes_i` in fs/fuse/inode.c): right for the one writer, wrong
//! for a mount that has become a follower, whose files others change. A number is therefore good for
//! one state of a file that is followed: when the file has changed, it is shown under another one, as
//! a file that the kernel has not seen. Handles that are open on the former one go on to read; to
//! change anything through them would go by a size that is none any more, and is refused.
//!
//!     63    62 … 40    39 … 0
//!     0     –          an inode as `fs` numbers it
//!     1     tag        an inode that has changed behind the kernel's back
//!
//! A mount that has always written has nothing here, and pays one load of a flag.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::base::{Ino, Timestamp};
use crate::fs::{Attr, Kind};

/// Bits of a tagged number that are the inode's.
const INO_BITS: u32 = 40;
const TAGGED: u64 = 1 << 63;
const TAG_MAX: u32 = (1 << 23) - 1;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl Stamp {
    pub(super) fn of(attr: &Attr) -> Stamp {
        Stamp { size: attr.size, mtime: attr.mtime, ctime: attr.ctime }
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// The state that the kernel has, if that is known.
    stamp: Option<Stamp>,
    tag: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Nodes {
    /// The kernel believes itself.
    keeps_sizes: bool,
    /// There is, or was, something to remember.
    is_used: AtomicBool,
    known: Mutex<HashMap<Ino, Known>>,
}

/// The inode behind a number of the kernel's.
pub(super) fn ino_of(node: u64) -> Ino {
    match node & TAGGED {
        0 => Ino(node),
        _ => Ino(node & ((1 << INO_BITS) - 1)),
    }
}

fn tag_of(node: u64) -> u32 {
    match node & TAGGED {
        0 => 0,
        _ => (node >> INO_BITS) as u32 & TAG_MAX,
    }
}

fn node(ino: Ino, tag: u32) -> u64 {
    match tag {
        0 => ino.0,
        tag => TAGGED | u64::from(tag) << INO_BITS | ino.0,
    }
}

fn has_room(ino: Ino) -> bool {
    ino.0 >> INO_BITS == 0
}

/// What a file is shown under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub node: u64,
    /// What it was shown under until now, as another file than it is.
    pub former: Option<u64>,
}

impl Nodes {
    pub(super) fn new(keeps_sizes: bool) -> Nodes {
        Nodes { keeps_sizes, is_used: AtomicBool::new(false), known: Mutex::default() }
    }

    fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Acquire)
    }

    /// What the file of `attr` is shown under. `following`: others change it. `times_known`: how often
    /// the kernel has been told of it, this time included.
    pub(super) fn show(
        &self,
        attr: &Attr,
        following: bool,
        times_known: impl Fn() -> u64,
    ) -> Shown {
        let ino = attr.ino;
        if !self.is_used() || attr.kind != Kind::File || !has_room(ino) {
            return Shown { node: ino.0, former: None };
        }
        let mut known = self.known.lock();
        if !following {
            let tag = known.get(&ino).map_or(0, |known| known.tag);
            return Shown { node: node(ino, tag), former: None };
        }
        let now = Stamp::of(attr);
        let file = known.entry(ino).or_insert_with(|| {
            // Of one that the kernel had before, nobody noted what it believes.
            let stamp = (times_known() <= 1).then_some(now);
            Known { stamp, tag: 0 }
        });
        file.show(ino, now)
    }

    /// The same for attributes that are asked for of `asked`, a number of the kernel's; nothing new is
    /// remembered.
    pub(super) fn look(&self, asked: u64, attr: &Attr) -> Shown {
        let as_asked = Shown { node: asked, former: None };
        if !self.is_used() || attr.kind != Kind::File {
            return as_asked;
        }
        match self.known.lock().get_mut(&attr.ino) {
            Some(file) if file.tag == tag_of(asked) => file.show(attr.ino, Stamp::of(attr)),
            _ => as_asked,
        }
    }

    /// Whether the kernel goes by a state of the file that is none any more: nothing may be changed
    /// by this number.
    pub(super) fn is_former(&self, asked: u64) -> bool {
        self.is_used()
            && match self.known.lock().get(&ino_of(asked)) {
                Some(file) => file.tag != tag_of(asked),
                None => tag_of(asked) != 0,
            }
    }

    /// The kernel has forgotten `ino` if `times_known` is 0 now.
    pub(super) fn forget(&self, ino: Ino, times_known: impl Fn() -> u64) {
        if self.is_used() {
            let mut known = self.known.lock();
            if times_known() == 0 {
                known.remove(&ino);
            }
        }
    }

    /// From now on others change the files. `files`: those that the kernel knows, as it believes them
    /// to be, where that is known.
    pub(super) fn begin_following(&self, files: impl Iterator<Item = (Ino, Option<Stamp>)>) {
        if !self.keeps_sizes {
            return;
        }
        let mut known = self.known.lock();
        for (ino, stamp) in files.filter(|(ino, _)| has_room(*ino)) {
            let tag = known.get(&ino).map_or(0, |file| file.tag);
            known.insert(ino, Known { stamp, tag });
        }
        self.is_used.store(true, Ordering::Release);
    }

    /// What the kernel believes of `ino` is not known any more: it has changed the file, and was
    /// refused.
    pub(super) fn distrust(&self, ino: Ino) {
        if self.is_used()
            && let Some(file) = self.known.lock().get_mut(&ino)
        {
            file.stamp = None;
        }
    }

    /// The number that `ino` is shown under now.
    pub(super) fn current(&self, ino: Ino) -> u64 {
        match self.is_used() {
            true => self.known.lock().get(&ino).map_or(ino.0, |file| node(ino, file.tag)),
            false => ino.0,
        }
    }

    /// The numbers that files are shown under which have changed.
    pub(super) fn shown(&self) -> Vec<u64> {
        let known = self.known.lock();
        let tagged = known.iter().filter(|(_, file)| file.tag > 0);
        tagged.map(|(ino, file)| node(*ino, file.tag)).collect()
    }

    /// The files that are followed, to be settled.
    pub(super) fn followed(&self) -> Vec<Ino> {
        self.known.lock().keys().copied().collect()
    }

    /// From now on `ino` is changed through this mount only, and is as `attr` says; `None`: it is gone,
    /// or nobody knows. The number to drop what the kernel has of it, if that is another state.
    pub(super) fn settle(&self, ino: Ino, attr: Option<&Attr>) -> Option<u64> {
        let mut known = self.known.lock();
        let file = known.get_mut(&ino)?;
        match attr {
            Some(attr) => file.show(ino, Stamp::of(attr)).former,
            None => {
                let former = node(ino, file.tag);
                file.next();
                Some(former)
            }
        }
    }
}

impl Known {
    fn next(&mut self) {
        self.tag = (self.tag + 1).min(TAG_MAX);
        self.stamp = None;
    }

    fn show(&mut self, ino: Ino, now: Stamp) -> Shown {
        if self.stamp == Some(now) {
            return Shown { node: node(ino, self.tag), former: None };
        }
        let former = node(ino, self.tag);
        self.next();
        self.stamp = Some(now);
        Shown { node: node(ino, self.tag), former: Some(former) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(ino: u64, size: u64) -> Attr {
        let t = Timestamp::default();
        Attr {
            ino: Ino(ino),
            kind: Kind::File,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            blocks: 0,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
        }
    }

    #[test]
    fn a_file_that_others_changed_is_shown_under_another_number_and_keeps_that() {
        // Guards against a size that the kernel believes for ever, and against writes that go by it.
        let nodes = Nodes::new(true);
        let plain = |n: u64| Shown { node: n, former: None };
        assert_eq!(nodes.show(&attr(7, 1), false, || 9), plain(7), "nothing is remembered");
        nodes.begin_following([(Ino(7), Some(Stamp::of(&attr(7, 1))))].into_iter());
        assert_eq!(nodes.show(&attr(7, 1), true, || 9), plain(7), "it has not changed");
        let other = nodes.show(&attr(7, 2), true, || 9);
        assert_eq!((other.former, ino_of(other.node)), (Some(7), Ino(7)));
        assert_ne!(other.node, 7);
        assert!(nodes.is_former(7) && !nodes.is_former(other.node));
        assert_eq!(nodes.show(&attr(7, 2), true, || 9), plain(other.node));
        // As a writer it goes on under that number, however the file changes.
        assert_eq!(nodes.settle(Ino(7), Some(&attr(7, 2))), None);
        assert_eq!(nodes.show(&attr(7, 3), false, || 9), plain(other.node));
        nodes.forget(Ino(7), || 1);
        assert!(nodes.is_former(7), "a handle is open on it");
        nodes.forget(Ino(7), || 0);
        assert_eq!(nodes.show(&attr(7, 3), false, || 1), plain(7));
    }

    #[test]
    fn what_nobody_noted_counts_as_changed() {
        // Guards against a file that was told to the kernel while the role changed.
        let nodes = Nodes::new(true);
        nodes.begin_following(std::iter::empty());
        let seen = nodes.show(&attr(8, 1), true, || 2);
        assert_eq!(seen.former, Some(8));
        assert_eq!(nodes.show(&attr(9, 1), true, || 1).former, None, "it is new to the kernel");
        nodes.distrust(Ino(9));
        assert_eq!(nodes.show(&attr(9, 1), true, || 2).former, Some(9));
        assert!(nodes.settle(Ino(9), None).is_some_and(|former| former != 9));
        let dir = Attr { kind: Kind::Dir, ..attr(8, 1) };
        assert_eq!(nodes.show(&dir, true, || 2).node, 8, "Linux believes what it is told of those");
    }
}
