//! A disk in memory that crashes, tears, reorders and refuses on demand.
//!
//! For tests (ours and the crash sweep of the whole stack): every request that changes
//! something is counted, and a [`Fault`] can be set for any of them. After a crash
//! [`SimDisk::restart`] decides what the medium kept: everything (the process was killed) or,
//! from a seed, some of what was not synced (power loss). Handles of the former life fail.
#![allow(dead_code)] // each test binary uses a part of it

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealfs::journal::disk::{DiskFile, DiskIo, LockAnswer};

/// The unit that a power loss writes wholly or not at all, in bytes.
pub const SECTOR: usize = 512;

/// What happens at a chosen request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is done in part, and every later one fails until [`SimDisk::restart`].
    Crash,
    /// The request fails with `ENOSPC`.
    NoSpace,
    /// The request fails with `EIO`; a failed sync drops what it should have written, as
    /// Linux does ("fsyncgate").
    Io,
}

/// What the disk holds after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// The process died, the machine did not: everything written is there.
    Kill,
    /// The machine died: what was synced is there; of the rest, what the seed says.
    PowerLoss {
        /// Chooses what survives.
        seed: u64,
    },
}

/// A deterministic generator (splitmix64), so that a failing seed can be replayed.
#[derive(Clone, Copy, Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end` (which is not 0).
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }
}

enum Unsynced {
    Write { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

#[derive(Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        write_at(&mut self.current, offset, bytes);
        self.unsynced.push(Unsynced::Write { offset, bytes: bytes.to_vec() });
    }

    /// What a power loss leaves, in one of four moods: nothing of the unsynced writes, all of
    /// them, some whole ones, some sectors of each.
    fn lose_power(&mut self, random: &mut SplitMix) {
        let mood = random.below(4);
        let mut content = std::mem::take(&mut self.durable);
        for change in self.unsynced.drain(..) {
            match change {
                _ if mood == 0 => {}
                Unsynced::Len(len) if mood == 1 || random.below(2) == 0 => content.resize(len, 0),
                Unsynced::Len(_) => {}
                Unsynced::Write { offset, bytes } if mood == 1 => {
                    write_at(&mut content, offset, &bytes);
                }
                Unsynced::Write { offset, bytes } if mood == 2 => {
                    if random.below(2) == 0 {
                        write_at(&mut content, offset, &bytes);
                    }
                }
                Unsynced::Write { offset, bytes } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = ((offset + at) / SECTOR + 1) * SECTOR - offset;
                        let end = end.min(bytes.len());
                        if random.below(2) == 0 {
                            write_at(&mut content, offset + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        self.current = content.clone();
        self.durable = content;
    }
}

fn write_at(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

type Names = BTreeMap<PathBuf, u64>;

#[derive(Default)]
struct State {
    /// Counts lives: a handle of an earlier one is dead.
    life: u64,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    names: Names,
    /// The names at the last sync of a directory, then after each later change: a power loss
    /// keeps one of them.
    names_history: Vec<Names>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    ops: u64,
    faults: BTreeMap<u64, Fault>,
    crashed: bool,
    bytes_max: Option<u64>,
}

impl State {
    fn alive(&self, life: u64) -> io::Result<()> {
        if self.crashed || life != self.life {
            return Err(io::Error::other("the simulated machine is down"));
        }
        Ok(())
    }

    /// Counts a changing request. The fault of this one, if any; `Crash` is left to the caller
    /// to do its part first.
    fn step(&mut self, life: u64) -> io::Result<Option<Fault>> {
        self.alive(life)?;
        self.ops += 1;
        let fault = self.faults.remove(&self.ops);
        match fault {
            Some(Fault::NoSpace) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Some(Fault::Crash) => {
                self.crashed = true;
                Ok(fault)
            }
            _ => Ok(fault),
        }
    }

    fn change_names(
        &mut self,
        fault: Option<Fault>,
        change: impl FnOnce(&mut Names),
    ) -> io::Result<()> {
        if fault == Some(Fault::Io) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        change(&mut self.names);
        self.names_history.push(self.names.clone());
        if fault.is_some() { Err(crash_error()) } else { Ok(()) }
    }
}

fn crash_error() -> io::Error {
    io::Error::other("the simulated machine crashed")
}

/// A simulated disk; clones share it.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk without limits.
    pub fn new() -> SimDisk {
        let disk = SimDisk::default();
        disk.0.lock().names_history.push(Names::new());
        disk
    }

    /// How many changing requests there have been.
    pub fn ops(&self) -> u64 {
        self.0.lock().ops
    }

    /// Sets what happens at the `nth` changing request from now (1: the next).
    pub fn fault_at(&self, nth: u64, fault: Fault) {
        let mut state = self.0.lock();
        let at = state.ops + nth;
        state.faults.insert(at, fault);
    }

    /// Forgets faults that have not happened.
    pub fn clear_faults(&self) {
        self.0.lock().faults.clear();
    }

    /// Bounds the bytes of all files; more is `ENOSPC`.
    pub fn limit_bytes(&self, bytes_max: Option<u64>) {
        self.0.lock().bytes_max = bytes_max;
    }

    /// True after a [`Fault::Crash`] happened, until [`SimDisk::restart`].
    pub fn crashed(&self) -> bool {
        self.0.lock().crashed
    }

    /// Ends this life (if a crash has not) and begins the next with what `how` leaves.
    pub fn restart(&self, how: Restart) {
        let mut state = self.0.lock();
        state.life += 1;
        state.crashed = false;
        state.locks.clear();
        state.faults.clear();
        if let Restart::PowerLoss { seed } = how {
            let mut random = SplitMix(seed);
            let kept = random.below(state.names_history.len() as u64) as usize;
            state.names = state.names_history.swap_remove(kept);
            // In the order of their numbers, so that one seed gives one outcome.
            let mut numbers: Vec<u64> = state.inodes.keys().copied().collect();
            numbers.sort_unstable();
            for number in numbers {
                let inode = state.inodes.get_mut(&number).expect("listed above");
                inode.lose_power(&mut random);
            }
            let names = state.names.clone();
            state.names_history = vec![names];
        }
    }

    /// Changes bytes of a file behind everybody's back: damage of the medium.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let number = state.names[path];
        let inode = state.inodes.get_mut(&number).expect("a name has an inode");
        change(&mut inode.current);
        inode.durable = inode.current.clone();
        inode.unsynced.clear();
    }

    /// The paths of all files, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// What a file holds.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.0.lock();
        state.names.get(path).map(|i| state.inodes[i].current.clone())
    }

    fn handle(&self, state: &State, inode: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), inode, life: state.life })
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    life: u64,
}

impl SimFile {
    fn with<T>(&self, f: impl FnOnce(&mut State, &mut Inode) -> T) -> T {
        let mut state = self.disk.0.lock();
        let mut inode = state.inodes.remove(&self.inode).expect("inodes are never dropped");
        let result = f(&mut state, &mut inode);
        state.inodes.insert(self.inode, inode);
        result
    }
}

impl DiskFile for SimFile {
    fn pwrite(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let offset = offset as usize;
            match state.step(self.life)? {
                None => inode.write(offset, bytes),
                Some(fault) => {
                    // A part, of a length that differs from request to request.
                    let part = SplitMix(state.ops).below(bytes.len() as u64 + 1) as usize;
                    inode.write(offset, &bytes[..part]);
                    return Err(match fault {
                        Fault::Crash => crash_error(),
                        _ => io::Error::from_raw_os_error(libc::EIO),
                    });
                }
            }
            Ok(())
        })
    }

    fn pread(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|state, inode| {
            state.alive(self.life)?;
            let offset = offset as usize;
            let from = inode.current.get(offset..offset + bytes.len());
            bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn datasync(&self) -> io::Result<()> {
        self.with(|state, inode| match state.step(self.life)? {
            None => {
                inode.unsynced.clear();
                inode.durable = inode.current.clone();
                Ok(())
            }
            Some(Fault::Crash) => Err(crash_error()),
            Some(_) => {
                inode.unsynced.clear();
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state, inode| state.alive(self.life).map(|()| inode.current.len() as u64))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let fault = state.step(self.life)?;
            if fault == Some(Fault::Io) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let more = len.saturating_sub(inode.current.len() as u64);
            // `inode` is out of the map while it is borrowed here; it is counted by `more`
            // only when new, which is the one way the journal calls this.
            let used: u64 = state
                .names
                .values()
                .filter_map(|i| state.inodes.get(i))
                .map(|i| i.current.len() as u64)
                .sum();
            if state.bytes_max.is_some_and(|max| used + more > max) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            inode.current.resize(len as usize, 0);
            inode.unsynced.push(Unsynced::Len(len as usize));
            if fault.is_some() { Err(crash_error()) } else { Ok(()) }
        })
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {}
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    life: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

/// Requests of the present life: a [`SimDisk`] itself is always of the present life; only file
/// handles die with theirs.
impl DiskIo for SimDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let life = state.life;
        state.alive(life)?;
        state.dirs.insert(dir.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        state.alive(state.life)?;
        let inside = state.names.keys().filter(|p| p.parent() == Some(dir));
        Ok(inside.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.0.lock();
        state.alive(state.life)?;
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(&state, inode))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        let life = state.life;
        let fault = state.step(life)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.next_inode += 1;
        let inode = state.next_inode;
        state.inodes.insert(inode, Inode::default());
        state.change_names(fault, |names| {
            names.insert(path.to_owned(), inode);
        })?;
        Ok(self.handle(&state, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let life = state.life;
        let fault = state.step(life)?;
        let moved: Vec<PathBuf> =
            state.names.keys().filter(|p| p.starts_with(from)).cloned().collect();
        if moved.is_empty() && !state.dirs.contains(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(fault, |names| {
            for path in moved {
                let inode = names.remove(&path).expect("listed above");
                let rest = path.strip_prefix(from).expect("filtered above");
                let new = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
                names.insert(new, inode);
            }
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let life = state.life;
        let fault = state.step(life)?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(fault, |names| {
            names.remove(path);
        })
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let life = state.life;
        match state.step(life)? {
            None => {
                let names = state.names.clone();
                state.names_history = vec![names];
                Ok(())
            }
            Some(Fault::Crash) => Err(crash_error()),
            Some(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<LockAnswer> {
        let mut state = self.0.lock();
        let life = state.life;
        state.alive(life)?;
        if !state.locks.insert(path.to_owned()) {
            return Ok(LockAnswer::Busy(Some(std::process::id())));
        }
        drop(state);
        Ok(LockAnswer::Held(Box::new(SimLock { disk: self.clone(), path: path.to_owned(), life })))
    }
}
