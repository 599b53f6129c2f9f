//! Callers of a sync who meet: they share one, nobody is forgotten, and a failure reaches all.

use crate::disk_sim::{Fault, SimDisk};
use parking_lot::{Condvar, Mutex};
use sealfs::base::JournalPos;
use sealfs::journal::disk::{DiskFile, DiskIo, LockAnswer};
use sealfs::journal::{Journal, JournalError, JournalOptions};
use sealfs::seal::VolumeKeys;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Far above what any step takes.
const LONG: Duration = Duration::from_secs(60);

/// A disk whose syncs of files wait at a door while that is shut.
#[derive(Clone)]
struct Slow {
    disk: SimDisk,
    door: Arc<Door>,
}

#[derive(Default)]
struct Door {
    state: Mutex<DoorState>,
    changed: Condvar,
}

#[derive(Default)]
struct DoorState {
    is_shut: bool,
    waiting: usize,
}

impl Door {
    fn pass(&self) {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        let opened = |state: &mut DoorState| state.is_shut;
        assert!(!self.changed.wait_while_for(&mut state, opened, LONG).timed_out(), "never opened");
        state.waiting -= 1;
    }

    fn shut(&self) {
        self.state.lock().is_shut = true;
    }

    fn open(&self) {
        self.state.lock().is_shut = false;
        self.changed.notify_all();
    }

    fn until_somebody_waits(&self) {
        let mut state = self.state.lock();
        let nobody = |state: &mut DoorState| state.waiting == 0;
        assert!(!self.changed.wait_while_for(&mut state, nobody, LONG).timed_out(), "nobody came");
    }
}

struct SlowFile(Arc<dyn DiskFile>, Arc<Door>);

impl DiskFile for SlowFile {
    fn pwrite(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.pwrite(bytes, offset)
    }
    fn pread(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.pread(bytes, offset)
    }
    fn datasync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.datasync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn start_writeback(&self, offset: u64, len: u64) {
        self.0.start_writeback(offset, len);
    }
}

impl DiskIo for Slow {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(self.disk.open(path)?, self.door.clone())))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(self.disk.create(path)?, self.door.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<LockAnswer> {
        self.disk.lock(path)
    }
}

type Told = (u64, Result<(), JournalError>);

/// A journal with one synced record, on a disk whose door is open.
fn begin() -> (Slow, Arc<Journal>, Sender<Told>, Receiver<Told>) {
    let slow = Slow { disk: SimDisk::new(), door: Arc::default() };
    let options = JournalOptions {
        file_bytes: 1 << 20,
        prewrite_bytes: 0,
        keeper: false,
        ..JournalOptions::new("/j", 4 << 20)
    };
    let keys = VolumeKeys::random_for_tests(1);
    let (journal, _) = Journal::open(options, keys, Arc::new(slow.clone())).unwrap();
    let journal = Arc::new(journal);
    assert_eq!(append(&journal), 1);
    journal.sync(JournalPos(1)).unwrap();
    let (tell, told) = channel();
    (slow, journal, tell, told)
}

fn append(journal: &Journal) -> u64 {
    journal.append(&[b"record"]).expect("appended").0.0
}

fn ask(journal: &Journal, number: u64, tell: &Sender<Told>) {
    let tell = tell.clone();
    journal.sync_then(JournalPos(number), move |result| tell.send((number, result)).unwrap());
}

/// Has another thread sync record 2 and stand at the door, and 3 and 4 asked for meanwhile. Record
/// 3 was there when the sync began to wait, and yet it is not known to be part of it.
fn meet(slow: &Slow, journal: &Arc<Journal>, tell: &Sender<Told>) -> std::thread::JoinHandle<()> {
    assert_eq!(append(journal), 2);
    slow.door.shut();
    let (its, its_tell) = (journal.clone(), tell.clone());
    let first = std::thread::spawn(move || ask(&its, 2, &its_tell));
    slow.door.until_somebody_waits();
    assert!(journal.is_syncing());
    for number in 3..=4 {
        assert_eq!(append(journal), number);
        ask(journal, number, tell); // returns, though the door is shut
    }
    first
}

fn all_told(told: &Receiver<Told>, count: usize) -> Vec<Told> {
    let mut all: Vec<Told> = (0..count).map(|_| told.recv_timeout(LONG).expect("told")).collect();
    all.sort_by_key(|(number, _)| *number);
    all
}

#[test]
fn who_comes_during_a_sync_waits_on_no_thread_and_shares_the_next() {
    // Guards against a request thread of the mount standing behind the disk for each fsync, against
    // one sync of the disk for each caller, and against a caller whom nobody tells.
    let (slow, journal, tell, told) = begin();
    let before = journal.usage().syncs;
    let first = meet(&slow, &journal, &tell);
    assert!(told.try_recv().is_err(), "nothing is on stable storage yet");
    slow.door.open();
    let numbers = |all: Vec<Told>| -> Vec<u64> {
        all.into_iter().map(|(number, result)| result.map(|()| number).unwrap()).collect()
    };
    assert_eq!(numbers(all_told(&told, 3)), [2, 3, 4]);
    first.join().unwrap();
    assert_eq!(journal.usage().syncs - before, 2);
    assert_eq!(journal.synced_pos(), JournalPos(4));
    // The next is made at once again, on the caller's thread.
    assert_eq!(append(&journal), 5);
    ask(&journal, 5, &tell);
    assert_eq!(numbers(all_told(&told, 1)), [5]);
}

#[test]
fn what_a_sync_covers_already_needs_no_other() {
    // Guards against a second sync for records that were appended before the first one began.
    let (slow, journal, tell, told) = begin();
    let before = journal.usage().syncs;
    assert_eq!((append(&journal), append(&journal)), (2, 3));
    slow.door.shut();
    let (its, its_tell) = (journal.clone(), tell.clone());
    let first = std::thread::spawn(move || ask(&its, 3, &its_tell));
    slow.door.until_somebody_waits();
    ask(&journal, 2, &tell);
    slow.door.open();
    assert!(all_told(&told, 2).iter().all(|(_, result)| result.is_ok()));
    first.join().unwrap();
    assert_eq!(journal.usage().syncs - before, 1);
}

#[test]
fn a_failed_sync_reaches_who_shares_it_and_who_comes_later() {
    // Guards against a success told to somebody whose record may be gone: the sync that those who
    // met share fails, and only the one before it did not.
    let (slow, journal, tell, told) = begin();
    let first = meet(&slow, &journal, &tell);
    slow.disk.fault_at(2, Fault::Io);
    slow.door.open();
    let all = all_told(&told, 3);
    first.join().unwrap();
    assert!(all[0].1.is_ok(), "its own sync was done: {:?}", all[0].1);
    for (number, result) in &all[1..] {
        assert!(matches!(result, Err(JournalError::Poisoned(_))), "{number}: {result:?}");
    }
    ask(&journal, 4, &tell);
    assert!(matches!(all_told(&told, 1)[0].1, Err(JournalError::Poisoned(_))));
    assert!(matches!(journal.sync_tick(), Err(JournalError::Poisoned(_))));
    assert_eq!(journal.synced_pos(), JournalPos(2));
}

#[test]
fn when_the_sync_before_fails_no_other_is_tried() {
    // Guards against the next fdatasync, which Linux lets succeed, being believed.
    let (slow, journal, tell, told) = begin();
    let before = journal.usage().syncs;
    let first = meet(&slow, &journal, &tell);
    slow.disk.fault_at(1, Fault::Io);
    slow.door.open();
    for (number, result) in all_told(&told, 3) {
        assert!(matches!(result, Err(JournalError::Poisoned(_))), "{number}: {result:?}");
    }
    first.join().unwrap();
    assert_eq!(journal.usage().syncs, before);
}

#[test]
fn a_journal_that_ends_tells_those_who_wait_first() {
    // Guards against a request of the kernel that nobody answers when the writing half goes.
    let (slow, journal, tell, told) = begin();
    let first = meet(&slow, &journal, &tell);
    let ending = std::thread::spawn(move || drop(journal));
    slow.door.open();
    assert!(all_told(&told, 3).iter().all(|(_, result)| result.is_ok()));
    first.join().unwrap();
    ending.join().unwrap();
}
