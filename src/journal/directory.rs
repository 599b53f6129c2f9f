//! The journal's directory: its lock, its identity, and which file is which.
//!
//! Names: `lock`, `journal.id`, `log-<number>` (in the log) and `free-<number>` (spare), the
//! numbers as 16 hex digits. A log file becomes spare by its name alone, oldest first, the
//! directory synced after each: so the log files on disk are always the latest stretch of the
//! log, and no block of one is overwritten while a crash could bring its name back.

use super::disk::{DiskFile, DiskIo, LockAnswer};
use super::error::JournalError;
use super::format::{CLEAR_BYTES, FileHeader, Identity, identity_from_bytes, identity_to_bytes};
use super::options::JournalOptions;
use crate::base::{JournalId, Timestamp};
use crate::seal::VolumeKeys;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOCK_NAME: &str = "lock";
const IDENTITY_NAME: &str = "journal.id";
const IDENTITY_TEMP_NAME: &str = "journal.id.new";
/// Far above the size of an identity file (about 150 bytes).
const IDENTITY_BYTES_MAX: u64 = 4096;
/// Zeros are written, and synced, in steps of this, so that neither stopping nor
/// a caller's sync waits long for them.
const ZERO_STEP: usize = 1 << 20;

/// One file of the log.
pub(crate) struct LogFile {
    /// Its number, part of its name and bound into all that is sealed in it.
    pub seq: u64,
    pub handle: Arc<dyn DiskFile>,
    /// Its length.
    pub bytes: u64,
}

struct Spare {
    name: String,
    handle: Arc<dyn DiskFile>,
}

#[derive(Default)]
struct Spares {
    free: Vec<Spare>,
    next_name: u64,
    /// Files that are being written ahead; their blocks are allocated.
    begun: usize,
}

pub(crate) struct Directory {
    dir: PathBuf,
    io: Arc<dyn DiskIo>,
    file_bytes: u64,
    pool_files_max: usize,
    /// Held across renames and directory syncs, so that those of two threads never interleave.
    spares: Mutex<Spares>,
    /// Released log files, oldest first, still under their log names. Never held across a wait:
    /// reads stand behind who holds it. Only who holds `spares` takes files out.
    retired: Mutex<VecDeque<Arc<LogFile>>>,
    _lock: Box<dyn Any + Send + Sync>,
}

/// What [`Directory::open`] found.
pub(crate) struct Found {
    pub id: JournalId,
    /// The files under log names, by number.
    pub logs: Vec<LogFile>,
    /// A number larger than any file's of this directory has ever had.
    pub next_seq: u64,
}

pub(crate) fn log_name(seq: u64) -> String {
    format!("log-{seq:016x}")
}

fn number_of(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

impl Directory {
    /// Locks the directory and lists it; makes both it and a new identity if there is none.
    ///
    /// # Errors
    /// `InUse`, `Foreign`, `Corrupt` (a damaged or missing identity: nothing is touched), `Io`.
    pub fn open(
        options: &JournalOptions,
        keys: &VolumeKeys,
        io: Arc<dyn DiskIo>,
    ) -> Result<(Directory, Found), JournalError> {
        let dir = options.dir.clone();
        let failed = |what: &str| {
            let what = format!("{what} {}", dir.display());
            move |e| JournalError::io(what, e)
        };
        io.create_dir(&dir).map_err(failed("creating the journal directory"))?;
        let lock = match io.lock(&dir.join(LOCK_NAME)).map_err(failed("locking"))? {
            LockAnswer::Held(lock) => lock,
            LockAnswer::Busy(pid) => return Err(JournalError::InUse(pid)),
        };
        let names = io.list(&dir).map_err(failed("listing"))?;
        let mut seqs: Vec<u64> = names.iter().filter_map(|n| number_of(n, "log-")).collect();
        seqs.sort_unstable();
        let id = if names.iter().any(|n| n == IDENTITY_NAME) {
            read_identity(&dir, keys, &*io)?
        } else if seqs.is_empty() {
            create_identity(&dir, keys, &*io).map_err(failed("creating the journal in"))?
        } else {
            let what = "log files without the identity that names their journal".into();
            return Err(JournalError::Corrupt { file: dir.join(IDENTITY_NAME), offset: 0, what });
        };
        let mut logs = Vec::with_capacity(seqs.len());
        for seq in &seqs {
            let path = dir.join(log_name(*seq));
            let opened = io.open(&path).and_then(|handle| Ok((handle.len()?, handle)));
            let (bytes, handle) =
                opened.map_err(|e| JournalError::io(format!("opening {}", path.display()), e))?;
            logs.push(LogFile { seq: *seq, handle, bytes });
        }
        let (free, names_max, seq_max) =
            open_spares(&dir, &names, options, &*io).map_err(failed("opening spare files in"))?;
        let spares = Spares { free, next_name: names_max + 1, begun: 0 };
        let next_seq = seqs.last().copied().unwrap_or(0).max(seq_max) + 1;
        let directory = Directory {
            io,
            file_bytes: options.file_bytes,
            pool_files_max: options.pool_files_max(),
            spares: Mutex::new(spares),
            retired: Mutex::default(),
            _lock: lock,
            dir,
        };
        Ok((directory, Found { id, logs, next_seq }))
    }

    /// The path of log file `seq`, for messages.
    pub fn log_path(&self, seq: u64) -> PathBuf {
        self.dir.join(log_name(seq))
    }

    /// How many spare files there are, those still to be renamed included.
    pub fn spare_count(&self) -> usize {
        let spares = self.spares.lock();
        self.spares_in(&spares)
    }

    /// A file under the name of log file `seq`, its name synced, its content whatever it was:
    /// a spare one, else a new one with blocks allocated. One directory sync.
    ///
    /// # Errors
    /// `NoSpace` (nothing changed), `Io` (the directory is in an unknown state).
    pub fn claim(&self, seq: u64) -> Result<LogFile, JournalError> {
        let mut spares = self.spares.lock();
        if spares.free.is_empty() {
            self.recycle(&mut spares, true)?;
        }
        let spare = match spares.free.pop() {
            Some(spare) => spare,
            None => {
                let spare = self.create_spare(&mut spares);
                spare.map_err(|e| JournalError::io("making a journal file", e))?
            }
        };
        let failed = |e| JournalError::io(format!("starting journal file {}", log_name(seq)), e);
        self.io.rename(&self.dir.join(&spare.name), &self.log_path(seq)).map_err(failed)?;
        self.io.sync_dir(&self.dir).map_err(failed)?;
        Ok(LogFile { seq, handle: spare.handle, bytes: self.file_bytes })
    }

    /// Makes a spare file unless there is one, or one is being written.
    ///
    /// # Errors
    /// `NoSpace` (nothing changed), `Io`.
    pub fn reserve(&self) -> Result<(), JournalError> {
        let mut spares = self.spares.lock();
        if self.spares_in(&spares) + spares.begun == 0 {
            let spare = self.create_spare(&mut spares);
            let spare = spare.map_err(|e| JournalError::io("making a journal file", e))?;
            spares.free.push(spare);
        }
        Ok(())
    }

    fn spares_in(&self, spares: &Spares) -> usize {
        spares.free.len() + self.retired.lock().len()
    }

    /// Takes files out of the log, oldest first; [`Directory::recycle_one`] does the work. Never
    /// waits for the disk.
    pub fn retire(&self, files: impl IntoIterator<Item = Arc<LogFile>>) {
        self.retired.lock().extend(files);
    }

    /// Makes the oldest retired file a spare, or deletes it if there are enough; false if there
    /// was none. One directory sync.
    ///
    /// # Errors
    /// `Io`: the file stays retired; the directory is in an unknown state.
    pub fn recycle_one(&self) -> Result<bool, JournalError> {
        self.recycle(&mut self.spares.lock(), false)
    }

    fn recycle(&self, spares: &mut Spares, wanted: bool) -> Result<bool, JournalError> {
        let Some(file) = self.retired.lock().front().cloned() else { return Ok(false) };
        let path = self.log_path(file.seq);
        let failed = |e| JournalError::io(format!("recycling {}", path.display()), e);
        let keep = wanted || spares.free.len() < self.pool_files_max;
        if keep && file.bytes == self.file_bytes {
            let name = format!("free-{:016x}", spares.next_name);
            self.io.rename(&path, &self.dir.join(&name)).map_err(failed)?;
            self.io.sync_dir(&self.dir).map_err(failed)?;
            spares.next_name += 1;
            spares.free.push(Spare { name, handle: file.handle.clone() });
        } else {
            self.io.remove(&path).map_err(failed)?;
            self.io.sync_dir(&self.dir).map_err(failed)?;
        }
        self.retired.lock().pop_front();
        Ok(true)
    }

    fn create_spare(&self, spares: &mut Spares) -> io::Result<Spare> {
        let name = format!("free-{:016x}", spares.next_name);
        spares.next_name += 1;
        let path = self.dir.join(&name);
        let handle = self.io.create(&path)?;
        if let Err(e) = handle.allocate(self.file_bytes) {
            // Best effort: a spare of the wrong size is deleted when the journal is opened.
            if let Err(e) = self.io.remove(&path) {
                log::warn!("{} could not be removed: {e}", path.display());
            }
            return Err(e);
        }
        Ok(Spare { name, handle })
    }

    /// Writes one more spare file full of zeros, unless there are `files` already; true if one
    /// was added. Holds no lock while it writes. Before each step `may_go_on` is asked, which
    /// may wait; at a false the file stays as it is, a spare like any other, only slower to
    /// write to.
    ///
    /// # Errors
    /// `NoSpace` or `Io`: the file is deleted and the directory is as before.
    pub fn prewrite_one(
        &self,
        files: usize,
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<bool, JournalError> {
        let failed = |e| JournalError::io("writing a spare journal file", e);
        let spare = {
            let mut spares = self.spares.lock();
            if self.spares_in(&spares) >= files {
                return Ok(false);
            }
            let spare = self.create_spare(&mut spares).map_err(failed)?;
            spares.begun += 1;
            spare
        };
        let zeros = vec![0; ZERO_STEP.min(self.file_bytes as usize)];
        let mut at = 0;
        while at < self.file_bytes {
            if !may_go_on() {
                break;
            }
            let step = zeros.len().min((self.file_bytes - at) as usize);
            let written = spare.handle.pwrite(&zeros[..step], at);
            if let Err(e) = written.and_then(|()| spare.handle.datasync()) {
                if let Err(e) = self.io.remove(&self.dir.join(&spare.name)) {
                    log::warn!("{} could not be removed: {e}", spare.name);
                }
                self.spares.lock().begun -= 1;
                return Err(failed(e));
            }
            at += step as u64;
        }
        let mut spares = self.spares.lock();
        spares.begun -= 1;
        spares.free.push(spare);
        Ok(true)
    }

    /// Renames the whole directory away, its spare files deleted first; see
    /// [`set_aside`].
    pub fn set_aside(&self, id: JournalId, now: Timestamp) -> Result<PathBuf, JournalError> {
        let mut spares = self.spares.lock();
        for spare in spares.free.drain(..) {
            if let Err(e) = self.io.remove(&self.dir.join(&spare.name)) {
                log::warn!("{} could not be removed: {e}", spare.name);
            }
        }
        set_aside(&self.dir, &*self.io, Some(id), now)
    }
}

/// Renames a journal's directory to `<dir>.set-aside-<unix seconds>-<journal id>` and returns
/// that path, so that a new journal can begin under the old name. Deletes nothing. The journal
/// must not be open in this process (see [`super::Journal::set_aside`] for one that is).
///
/// # Errors
/// `Io`: the directory is still where it was, or its new name is not yet on stable storage.
pub fn set_aside(
    dir: &Path,
    io: &dyn DiskIo,
    id: Option<JournalId>,
    now: Timestamp,
) -> Result<PathBuf, JournalError> {
    let id = id.map_or("damaged".into(), |id| id.to_string());
    let mut aside = dir.as_os_str().to_owned();
    aside.push(format!(".set-aside-{}-{id}", now.secs));
    let aside = PathBuf::from(aside);
    let failed = |e| JournalError::io(format!("setting {} aside", dir.display()), e);
    io.rename(dir, &aside).map_err(failed)?;
    if let Some(parent) = parent(dir) {
        io.sync_dir(parent).map_err(failed)?;
    }
    Ok(aside)
}

fn parent(dir: &Path) -> Option<&Path> {
    dir.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p })
}

fn read_identity(
    dir: &Path,
    keys: &VolumeKeys,
    io: &dyn DiskIo,
) -> Result<JournalId, JournalError> {
    let path = dir.join(IDENTITY_NAME);
    let read = || {
        let file = io.open(&path)?;
        let mut bytes = vec![0; file.len()?.min(IDENTITY_BYTES_MAX) as usize];
        file.pread(&mut bytes, 0)?;
        Ok(bytes)
    };
    let bytes: Vec<u8> =
        read().map_err(|e| JournalError::io(format!("reading {}", path.display()), e))?;
    match identity_from_bytes(keys, &bytes) {
        Identity::Ours(id) => Ok(id),
        Identity::Foreign(_) => Err(JournalError::Foreign { dir: dir.to_owned() }),
        Identity::Damaged => {
            let what = "the journal's identity does not open".into();
            Err(JournalError::Corrupt { file: path, offset: 0, what })
        }
    }
}

/// Whole or not at all, whatever happens: written under another name, synced, renamed.
fn create_identity(dir: &Path, keys: &VolumeKeys, io: &dyn DiskIo) -> io::Result<JournalId> {
    let mut id = JournalId([0; 16]);
    getrandom::fill(&mut id.0).map_err(io::Error::other)?;
    let temp = dir.join(IDENTITY_TEMP_NAME);
    match io.remove(&temp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = io.create(&temp)?;
    file.pwrite(&identity_to_bytes(keys, id), 0)?;
    file.datasync()?;
    io.rename(&temp, &dir.join(IDENTITY_NAME))?;
    io.sync_dir(dir)?;
    if let Some(parent) = parent(dir) {
        io.sync_dir(parent)?;
    }
    Ok(id)
}

/// The spare files that may stay, the highest number in their names, and the highest log file
/// number that one of them still shows in its clear header.
fn open_spares(
    dir: &Path,
    names: &[String],
    options: &JournalOptions,
    io: &dyn DiskIo,
) -> io::Result<(Vec<Spare>, u64, u64)> {
    let (mut free, mut names_max, mut seq_max) = (Vec::new(), 0, 0);
    for name in names {
        let Some(number) = number_of(name, "free-") else { continue };
        names_max = names_max.max(number);
        let path = dir.join(name);
        let handle = io.open(&path)?;
        let bytes = handle.len()?;
        if bytes >= CLEAR_BYTES as u64 {
            let mut clear = [0; CLEAR_BYTES];
            handle.pread(&mut clear, 0)?;
            seq_max = seq_max.max(FileHeader::seq_in_clear(&clear).unwrap_or(0));
        }
        if bytes == options.file_bytes && free.len() < options.pool_files_max() {
            free.push(Spare { name: name.clone(), handle });
        } else {
            io.remove(&path)?;
        }
    }
    Ok((free, names_max, seq_max))
}
