//! The open journal: its state, its opening, its limits.
//!
//! Locks, in the order in which they may be taken together: `writer` → `Directory::spares` →
//! `Directory::retired`; `live` → `Directory::retired`; `writer` → `live`; `writer` → `tail`. The
//! disk is waited for under the first two only. `gate` is held alone.

use super::directory::{Directory, Found, LogFile};
use super::disk::{DiskIo, ReadOnlyDisk};
use super::error::JournalError;
use super::format::{FileHeader, framed_len};
use super::options::JournalOptions;
use super::recovery::{Recovery, Verdict, chain, decide};
use super::scan::{FileScan, Scanner};
use super::sync::Gate;
use super::worker::Worker;
use crate::base::{JournalId, JournalPos, Timestamp};
use crate::seal::{Opener, VolumeKeys};
use lru::LruCache;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Records whose derived keys are kept for the next read of them (about 2 KiB each).
const OPENERS_MAX: usize = 128;
/// How finely the pending bytes are accounted.
const MARK_BYTES: u64 = 256 << 10;

/// A write-back journal. All methods may be called from any thread; those that touch the disk
/// block. Dropping it stops its threads and syncs nothing but for who waits for it.
pub struct Journal {
    // Before `shared`: the threads end first.
    _threads: Vec<Worker>,
    pub(super) shared: Arc<Shared>,
}

/// What the keeper's and the syncer's threads share with the callers.
pub(super) struct Shared {
    pub options: JournalOptions,
    pub id: JournalId,
    pub keys: VolumeKeys,
    pub directory: Directory,
    /// The one appender.
    pub writer: Mutex<Writer>,
    /// What has been appended; held for moments only.
    pub tail: Mutex<Tail>,
    /// The files that hold unreleased records, the one being written included, by number.
    pub live: RwLock<BTreeMap<u64, Live>>,
    pub synced: AtomicU64,
    pub released: AtomicU64,
    /// Who syncs for all, and who waits for it.
    pub gate: Mutex<Gate>,
    /// Where the syncer waits for a sync to be handed over.
    pub sync_due: Condvar,
    pub poison: OnceLock<Arc<str>>,
    /// Why the last append found no room on the disk, as long as nothing has changed since.
    pub no_space: Mutex<Option<String>>,
    pub syncs: AtomicU64,
    pub space: Notify,
    pub space_lock: Mutex<()>,
    pub space_freed: Condvar,
    pub openers: Mutex<LruCache<u64, Opener>>,
    /// Buffers for reading ciphertext, so that a large read does not begin by clearing memory.
    pub scratch: Mutex<Vec<Vec<u8>>>,
    pub stop: AtomicBool,
    pub wake: Mutex<bool>,
    pub woken: Condvar,
}

/// Where the next record goes.
pub(super) struct Writer {
    /// The file being written; none before the first append.
    pub file: Option<Arc<LogFile>>,
    /// Offset in it of the next frame.
    pub offset: u64,
    /// The next record's number.
    pub next: u64,
    /// The last record written to any file; less than `next - 1` if numbers were skipped.
    pub last_written: u64,
    /// The number of the file being written, or of the last one before.
    pub prev_seq: u64,
    pub next_seq: u64,
    /// Up to here the kernel was asked to write the file back.
    pub writeback_offset: u64,
    /// One framed and padded record, reused.
    pub buffer: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Tail {
    /// The last record appended.
    pub last: u64,
    /// Files with records that no sync has covered, oldest first.
    pub dirty: Vec<Arc<LogFile>>,
    /// All bytes appended since the journal was opened, those found then included.
    pub bytes: u64,
    /// How many of `bytes` are released.
    pub bytes_released: u64,
    /// (record, `bytes` after it), about one for each [`MARK_BYTES`], unreleased ones only.
    marks: VecDeque<(u64, u64)>,
}

impl Tail {
    /// Counts record `pos`, which took `bytes`.
    pub fn count(&mut self, pos: u64, bytes: u64) {
        self.last = pos;
        self.bytes += bytes;
        match self.marks.back_mut() {
            // The mark before the last stays, so the last may move on with the newest record.
            Some(mark) if mark.1 / MARK_BYTES == self.bytes / MARK_BYTES => {
                *mark = (pos, self.bytes)
            }
            _ => self.marks.push_back((pos, self.bytes)),
        }
    }

    fn release(&mut self, upto: u64) {
        while self.marks.front().is_some_and(|mark| mark.0 <= upto) {
            let (_, bytes) = self.marks.pop_front().expect("looked at above");
            self.bytes_released = bytes;
        }
    }
}

/// A file that holds unreleased records.
pub(super) struct Live {
    pub file: Arc<LogFile>,
    /// Its last record; None while it is being written.
    pub last: Option<u64>,
}

/// What keeps a journal from taking records, in the words of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A write or sync failed: nothing more is taken until it is opened again.
    Stopped(String),
    /// The disk, or the quota, has no room; it goes on when there is some.
    NoSpace(String),
}

/// What a journal holds and has done, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Bytes of unreleased records as they lie on disk, to about 256 KiB.
    pub used_bytes: u64,
    /// Bytes of the files that hold them: what `bytes_max` limits.
    pub file_bytes: u64,
    /// The limit.
    pub bytes_max: u64,
    /// Bytes of spare files.
    pub spare_bytes: u64,
    /// The last record appended.
    pub last: u64,
    /// The last record on stable storage.
    pub synced: u64,
    /// The last record released.
    pub released: u64,
    /// Syncs of the disk made for callers and ticks.
    pub syncs: u64,
    /// True after a failed write or sync.
    pub poisoned: bool,
}

impl Journal {
    /// Opens the journal of `options.dir`, or makes one if the directory is missing or empty.
    /// What it reports is on stable storage. Reads every record once: about a second per
    /// gigabyte.
    ///
    /// # Errors
    /// `InUse`, `Foreign`, `Corrupt` (nothing is touched), `NoSpace`, `Io`.
    pub fn open(
        options: JournalOptions,
        keys: VolumeKeys,
        io: Arc<dyn DiskIo>,
    ) -> Result<(Journal, Recovery), JournalError> {
        Journal::open_for(Purpose::Use, options, keys, io)
    }

    /// Opens the journal in `dir` to read what it holds, whoever has it locked: nothing of it is
    /// changed, nothing can be appended. Where it is damaged, what opens is given, and
    /// [`Recovery::damage`] says where.
    ///
    /// # Errors
    /// `Foreign`, `Corrupt` (the identity, or the header of a file), `Io`.
    pub fn examine(dir: &Path, keys: VolumeKeys) -> Result<(Journal, Recovery), JournalError> {
        let options = JournalOptions { keeper: false, ..JournalOptions::new(dir, u64::MAX) };
        let opened = Journal::open_for(Purpose::Examine, options, keys, Arc::new(ReadOnlyDisk))?;
        // Set, not announced: it is no failure.
        let _ = opened.0.shared.poison.set("it is open for reading only".into());
        Ok(opened)
    }

    fn open_for(
        purpose: Purpose,
        options: JournalOptions,
        keys: VolumeKeys,
        io: Arc<dyn DiskIo>,
    ) -> Result<(Journal, Recovery), JournalError> {
        let options = options.fitted();
        let (directory, found) = Directory::open(&options, &keys, io)?;
        let id = found.id;
        let next_seq = found.next_seq;
        let scanner = Scanner { keys: &keys, id };
        let survivors = Survivors::find(&scanner, &directory, found, purpose)?;
        let recovery = survivors.sync(&directory, id)?;

        let mut tail = Tail::default();
        for (pos, loc) in &recovery.records {
            tail.count(pos.0, framed_len(loc.len as usize) as u64);
        }
        tail.last = recovery.last.0;
        let mut writer = Writer {
            file: None,
            offset: 0,
            next: recovery.last.0 + 1,
            last_written: recovery.last.0,
            prev_seq: survivors.kept.last().map_or(0, |k| k.file.seq),
            next_seq,
            writeback_offset: 0,
            buffer: Vec::new(),
        };
        let mut live = BTreeMap::new();
        for (i, kept) in survivors.kept.iter().enumerate() {
            let next = survivors.kept.get(i + 1);
            let last = Some(next.map_or(recovery.last.0, |n| n.header.prev_last));
            live.insert(kept.file.seq, Live { file: kept.file.clone(), last });
        }
        let whole = |kept: &&Kept| !recovery.torn_tail && !kept.scan.resumed;
        if let Some(kept) = survivors.kept.last().filter(whole) {
            // Ended between two records and nothing of it lies behind: go on in it.
            writer.file = Some(kept.file.clone());
            writer.offset = kept.scan.end;
            writer.writeback_offset = kept.scan.end;
            live.get_mut(&kept.file.seq).expect("inserted above").last = None;
        }
        let shared = Arc::new(Shared {
            id,
            keys,
            directory,
            writer: Mutex::new(writer),
            tail: Mutex::new(tail),
            live: RwLock::new(live),
            synced: AtomicU64::new(recovery.last.0),
            released: AtomicU64::new(recovery.released.0),
            gate: Mutex::default(),
            sync_due: Condvar::new(),
            poison: OnceLock::new(),
            no_space: Mutex::new(None),
            syncs: AtomicU64::new(0),
            space: Notify::new(),
            space_lock: Mutex::new(()),
            space_freed: Condvar::new(),
            openers: Mutex::new(LruCache::new(NonZeroUsize::new(OPENERS_MAX).expect("not zero"))),
            scratch: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
            wake: Mutex::new(false),
            woken: Condvar::new(),
            options,
        });
        if purpose == Purpose::Examine {
            return Ok((Journal { shared, _threads: Vec::new() }, recovery));
        }
        if survivors.skipped {
            // That the missing records were released may be known only from files that are
            // about to be dropped: a file that stays must say it, before they go.
            let mut writer = shared.writer.lock();
            shared.start_file(&mut writer)?;
        }
        shared.directory.retire(survivors.void);
        while shared.directory.recycle_one()? {}
        let mut threads = Vec::new();
        if shared.options.keeper {
            let (work, end) = (Shared::keep_until_stopped, Shared::stop_keeper);
            threads.push(Worker::start("keeper", &shared, work, end)?);
        }
        let (work, end) = (Shared::sync_until_ended, Shared::end_syncer);
        threads.push(Worker::start("syncer", &shared, work, end)?);
        Ok((Journal { shared, _threads: threads }, recovery))
    }

    /// The journal's name, recorded with every commit.
    pub fn id(&self) -> JournalId {
        self.shared.id
    }

    /// The last record appended (or skipped by [`Journal::start_after`]).
    pub fn last_pos(&self) -> JournalPos {
        JournalPos(self.shared.tail.lock().last)
    }

    /// The last record known to be on stable storage.
    pub fn synced_pos(&self) -> JournalPos {
        JournalPos(self.shared.synced.load(Ordering::Acquire))
    }

    /// The last record released.
    pub fn released_pos(&self) -> JournalPos {
        JournalPos(self.shared.released.load(Ordering::Acquire))
    }

    /// Bytes of unreleased records as they lie on disk, to about 256 KiB.
    pub fn used_bytes(&self) -> u64 {
        let tail = self.shared.tail.lock();
        tail.bytes - tail.bytes_released
    }

    /// The most bytes one record may have with these options (8 MiB with files of 64 MiB).
    pub fn record_max(&self) -> usize {
        self.shared.options.record_max()
    }

    /// Figures for `status`.
    pub fn usage(&self) -> Usage {
        let shared = &self.shared;
        let file_bytes = shared.live.read().values().map(|l| l.file.bytes).sum();
        Usage {
            used_bytes: self.used_bytes(),
            file_bytes,
            bytes_max: shared.options.bytes_max,
            spare_bytes: shared.directory.spare_count() as u64 * shared.options.file_bytes,
            last: self.last_pos().0,
            synced: self.synced_pos().0,
            released: self.released_pos().0,
            syncs: shared.syncs.load(Ordering::Relaxed),
            poisoned: shared.poison.get().is_some(),
        }
    }

    /// What keeps it from taking records, if anything does.
    pub fn trouble(&self) -> Option<Trouble> {
        if let Some(why) = self.shared.poison.get() {
            return Some(Trouble::Stopped(why.to_string()));
        }
        self.shared.no_space.lock().clone().map(Trouble::NoSpace)
    }

    /// Bytes of one of its files, which the disk must have free for the next to be made.
    pub fn next_file_bytes(&self) -> u64 {
        self.shared.options.file_bytes
    }

    /// Makes sure that the first append finds a file, as it would be too late to find out then.
    ///
    /// # Errors
    /// `NoSpace`: there is none, and the disk has no room for one. `Io`.
    pub fn reserve(&self) -> Result<(), JournalError> {
        match self.shared.writer.lock().file.is_some() {
            true => Ok(()),
            false => self.shared.directory.reserve(),
        }
    }

    /// Says that records up to `upto` are in the bucket: their space is used again and reads of
    /// them fail with `Released`. Never waits for the disk.
    pub fn release(&self, upto: JournalPos) {
        let shared = &self.shared;
        {
            let mut tail = shared.tail.lock();
            let upto = upto.0.min(tail.last);
            tail.release(upto);
            shared.released.fetch_max(upto, Ordering::AcqRel);
        }
        if shared.retire_released() {
            shared.note_no_space(None);
            shared.wake_keeper();
        }
        shared.announce_space();
    }

    /// Numbers the next record after `pos`, because the bucket has committed up to there and
    /// this journal ends earlier (a power loss took records that were committed and never
    /// synced here). All records held count as released.
    ///
    /// # Errors
    /// `Invalid` if a later record has been appended already.
    pub fn start_after(&self, pos: JournalPos) -> Result<(), JournalError> {
        let shared = &self.shared;
        let mut writer = shared.writer.lock();
        if pos.0 + 1 < writer.next {
            let why = format!("start after {pos} with records up to {}", writer.next - 1);
            return Err(JournalError::Invalid(why));
        }
        if let Some(file) = writer.file.take() {
            // The header of a new file says that a number was skipped.
            let mut live = shared.live.write();
            live.get_mut(&file.seq).expect("the file written to is live").last =
                Some(writer.last_written);
        }
        writer.next = pos.0 + 1;
        {
            let mut tail = shared.tail.lock();
            tail.last = pos.0;
            shared.synced.fetch_max(pos.0, Ordering::AcqRel);
        }
        drop(writer);
        self.release(pos);
        Ok(())
    }

    /// True if an append would not fail with `Full` for want of a file.
    fn has_space(&self) -> bool {
        self.shared.live.read().len() < self.shared.options.files_max()
    }

    /// Returns when records have been released so that another file fits the limit, or the
    /// journal is poisoned (then the next append says so). Wrap it in a timeout: while the
    /// bucket is unreachable nothing is released. Cancel-safe.
    pub async fn wait_for_space(&self) {
        loop {
            let freed = self.shared.space.notified();
            tokio::pin!(freed);
            // Registered before looking, so that a release in between is not missed.
            freed.as_mut().enable();
            if self.has_space() || self.shared.poison.get().is_some() {
                return;
            }
            freed.await;
        }
    }

    /// [`Journal::wait_for_space`] for a thread: false if `timeout` passed without space.
    pub fn wait_for_space_blocking(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut guard = self.shared.space_lock.lock();
        while !self.has_space() && self.shared.poison.get().is_none() {
            if self.shared.space_freed.wait_until(&mut guard, deadline).timed_out() {
                return self.has_space();
            }
        }
        true
    }

    /// Renames the journal's directory to `<dir>.set-aside-<unix seconds>-<id>` and ends this
    /// journal: every later append and sync fails. No record is deleted. Drop the journal and
    /// open another under the old name to go on.
    ///
    /// # Errors
    /// `Io`: as [`super::set_aside`]; this journal has ended nevertheless.
    pub fn set_aside(&self, now: Timestamp) -> Result<PathBuf, JournalError> {
        let _appender = self.shared.writer.lock();
        self.shared.stop.store(true, Ordering::Release);
        self.shared.poison("it was set aside");
        self.shared.directory.set_aside(self.shared.id, now)
    }
}

impl Shared {
    /// Makes every later append and sync fail with `why` (the first one stays).
    pub fn poison(&self, why: &str) -> JournalError {
        if self.poison.set(why.into()).is_ok() {
            log::error!("the journal has stopped: {why}");
        }
        self.announce_space();
        JournalError::Poisoned(self.poison.get().expect("set above").clone())
    }

    pub fn check_poison(&self) -> Result<(), JournalError> {
        match self.poison.get() {
            Some(why) => Err(JournalError::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    /// Hands the files that hold only released records to the directory; true if there were.
    pub fn retire_released(&self) -> bool {
        let released = self.released.load(Ordering::Acquire);
        let mut live = self.live.write();
        let mut any = false;
        // The newest file stays, whatever it holds: its header is what the next start goes by.
        while live.len() > 1
            && let Some(first) = live.first_entry()
        {
            if first.get().last.is_none_or(|last| last > released) {
                break;
            }
            self.directory.retire([first.remove().file]);
            any = true;
        }
        any
    }

    fn announce_space(&self) {
        self.space.notify_waiters();
        drop(self.space_lock.lock());
        self.space_freed.notify_all();
    }
}

/// What a journal is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To go on with it.
    Use,
    /// To look, and never to touch.
    Examine,
}

/// A log file that stays, and what is in it.
struct Kept {
    file: Arc<LogFile>,
    header: FileHeader,
    scan: FileScan,
}

/// The log files after recovery.
struct Survivors {
    kept: Vec<Kept>,
    void: Vec<Arc<LogFile>>,
    first: u64,
    last: u64,
    torn: bool,
    /// Records before `first` that should be there are not; they had been released.
    skipped: bool,
    released: u64,
    damage: Option<String>,
}

impl Survivors {
    /// Reads every log file and decides. Touches nothing.
    fn find(
        scanner: &Scanner<'_>,
        directory: &Directory,
        found: Found,
        purpose: Purpose,
    ) -> Result<Survivors, JournalError> {
        let (mut begun, mut blank) = (Vec::new(), Vec::new());
        for file in found.logs {
            match scanner.header(&file, &directory.log_path(file.seq))? {
                Some(header) => begun.push((Arc::new(file), header)),
                None => blank.push(Arc::new(file)),
            }
        }
        for file in &blank {
            let path = directory.log_path(file.seq);
            let linked = begun.iter().any(|(_, header)| header.prev_seq == file.seq);
            if linked || scanner.has_frames(file, &path)? {
                let what = "the header of a file in use does not open".into();
                return Err(JournalError::Corrupt { file: path, offset: 0, what });
            }
        }
        let headers: Vec<FileHeader> = begun.iter().map(|(_, header)| *header).collect();
        let mut void = blank;
        let mut logs = Vec::new();
        for ((file, header), keep) in begun.into_iter().zip(chain(&headers)) {
            if keep {
                logs.push((file, header));
            } else {
                void.push(file);
            }
        }
        let mut scans = Vec::with_capacity(logs.len());
        for (i, (file, header)) in logs.iter().enumerate() {
            let limit = logs.get(i + 1).map_or(u64::MAX, |(_, next)| next.prev_last);
            let path = directory.log_path(file.seq);
            scans.push((*header, scanner.records(file, &path, header.first, limit)?));
        }
        match decide(&scans) {
            Verdict::Corrupt { file, missing, .. } if purpose == Purpose::Examine => {
                let numbers = || scans.iter().flat_map(|(_, s)| s.records.iter().map(|r| r.0.0));
                let (first, last) = (numbers().min().unwrap_or(1), numbers().max().unwrap_or(0));
                let released = scans.iter().map(|(h, s)| h.released.max(s.released)).max();
                let name = directory.log_path(logs[file].0.seq);
                let damage = format!("record {missing} in {} does not open", name.display());
                let kept = logs.into_iter().zip(scans);
                let kept = kept.map(|((file, _), (header, scan))| Kept { file, header, scan });
                let (kept, released) = (kept.collect(), released.unwrap_or(0));
                let (torn, skipped, damage) = (true, false, Some(damage));
                Ok(Survivors { kept, void, first, last, torn, skipped, released, damage })
            }
            Verdict::Corrupt { file, offset, missing } => Err(JournalError::Corrupt {
                file: directory.log_path(logs[file].0.seq),
                offset,
                what: format!("record {missing}, which had been on stable storage, does not open"),
            }),
            Verdict::Survives { first, last, files_kept, torn, released } => {
                let skipped = scans.first().is_some_and(|(header, _)| header.first < first);
                void.extend(logs.drain(files_kept..).map(|(file, _)| file));
                let kept = logs.into_iter().zip(scans);
                let kept = kept.map(|((file, _), (header, scan))| Kept { file, header, scan });
                let (kept, damage) = (kept.collect(), None);
                Ok(Survivors { kept, void, first, last, torn, skipped, released, damage })
            }
        }
    }

    /// Makes what survives durable.
    fn sync(&self, directory: &Directory, id: JournalId) -> Result<Recovery, JournalError> {
        for kept in &self.kept {
            kept.file.handle.datasync().map_err(|e| {
                let path = directory.log_path(kept.file.seq);
                JournalError::io(format!("syncing {}", path.display()), e)
            })?;
        }
        if self.torn {
            log::warn!(
                "the journal ends at record {}: what was begun after it had not been synced",
                self.last
            );
        }
        let records = self.kept.iter().flat_map(|k| k.scan.records.iter().copied());
        let records = records.filter(|(pos, _)| (self.first..=self.last).contains(&pos.0));
        Ok(Recovery {
            id,
            records: records.collect(),
            torn_tail: self.torn,
            first: JournalPos(self.first),
            last: JournalPos(self.last),
            released: JournalPos(self.released.min(self.last)),
            damage: self.damage.clone(),
        })
    }
}
