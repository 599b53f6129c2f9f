//! The journal after crashes, damage, full disks and failed syncs, case by case.

use crate::disk_sim::{Fault, Restart, SimDisk};
use sealfs::base::{JournalPos, Timestamp};
use sealfs::journal::disk::{DiskIo, RealDisk};
use sealfs::journal::format::FILE_HEADER_BYTES;
use sealfs::journal::{Journal, JournalError, JournalOptions, RecordLoc, Recovery};
use sealfs::seal::VolumeKeys;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const FILE_BYTES: u64 = 64 << 10;

fn options() -> JournalOptions {
    JournalOptions {
        file_bytes: FILE_BYTES,
        pool_bytes_max: 2 * FILE_BYTES,
        prewrite_bytes: 0,
        keeper: false,
        ..JournalOptions::new("/j", 4 * FILE_BYTES)
    }
}

fn try_open(disk: &SimDisk) -> Result<(Journal, Recovery), JournalError> {
    Journal::open(options(), VolumeKeys::random_for_tests(1), Arc::new(disk.clone()))
}

fn open(disk: &SimDisk) -> (Journal, Recovery) {
    try_open(disk).expect("the journal opens")
}

/// The bytes of record `n`, `len` long.
fn content(n: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (n as usize * 31 + i * 7 + i / 251) as u8).collect()
}

fn append(journal: &Journal, n: u64, len: usize) -> RecordLoc {
    let (pos, loc) = journal.append(&[&content(n, len)]).expect("appended");
    assert_eq!(pos, JournalPos(n));
    loc
}

fn assert_holds(journal: &Journal, recovery: &Recovery, numbers: std::ops::RangeInclusive<u64>) {
    let found: Vec<u64> = recovery.records.iter().map(|(pos, _)| pos.0).collect();
    assert_eq!(found, numbers.collect::<Vec<_>>());
    for (pos, loc) in &recovery.records {
        let bytes = journal.read(*loc, 0..loc.len()).expect("readable");
        assert_eq!(bytes, content(pos.0, loc.len() as usize), "record {pos}");
    }
}

/// The only log file of the disk.
fn log_path(disk: &SimDisk) -> PathBuf {
    let mut logs = disk.paths().into_iter().filter(|p| p.to_str().unwrap().contains("/log-"));
    let log = logs.next().expect("a log file");
    assert!(logs.next().is_none(), "one log file");
    log
}

#[test]
fn what_was_appended_survives_the_death_of_the_process() {
    // Guards against records kept in this process's memory only: nothing is synced, the
    // process dies, the page cache lives.
    let disk = SimDisk::new();
    let (journal, recovery) = open(&disk);
    assert!(recovery.records.is_empty() && !recovery.torn_tail);
    let id = journal.id();
    for n in 1..=40 {
        append(&journal, n, 10 + n as usize * 100);
    }
    drop(journal);
    disk.restart(Restart::Kill);
    let (journal, recovery) = open(&disk);
    assert_eq!((journal.id(), recovery.torn_tail), (id, false));
    assert_holds(&journal, &recovery, 1..=40);
    assert_eq!(journal.synced_pos(), JournalPos(40));
    append(&journal, 41, 5);
}

#[test]
fn a_last_record_torn_at_any_byte_is_dropped_and_its_number_used_again() {
    // Guards against half a record being taken for one, or taking the records before it along:
    // the last record is cut off at byte after byte, its rest zeroed.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    append(&journal, 1, 700);
    append(&journal, 2, 17_000);
    let before = journal.used_bytes() as usize + FILE_HEADER_BYTES;
    append(&journal, 3, 20_000);
    let after = journal.used_bytes() as usize + FILE_HEADER_BYTES;
    drop(journal);
    let path = log_path(&disk);
    let whole = disk.content(&path).unwrap();
    let step = (after - before) / 90;
    for cut in (before..after - 8).step_by(step).chain(before..before + 100) {
        disk.damage(&path, |bytes| {
            *bytes = whole.clone();
            bytes[cut..].fill(0);
        });
        disk.restart(Restart::Kill);
        let (journal, recovery) = open(&disk);
        assert_holds(&journal, &recovery, 1..=2);
        // The frame is there from byte 32 on: then it is seen that something was begun.
        assert_eq!(recovery.torn_tail, cut >= before + 32, "cut at {}", cut - before);
        append(&journal, 3, 10);
        drop(journal);
        for log in disk.paths().iter().filter(|p| p.to_str().unwrap().contains("/log-")) {
            if *log != path {
                disk.remove(log).unwrap();
            }
        }
    }
}

#[test]
fn records_behind_a_torn_one_stay_void_when_the_journal_goes_on() {
    // Guards against the rest of a torn tail coming back to life behind newer records: 3 is
    // torn, 4 and 5 are whole behind it; new records 3, 4, 5 are written elsewhere, twice.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    let locs: Vec<_> = (1..=5).map(|n| append(&journal, n, 600)).collect();
    drop(journal);
    let path = log_path(&disk);
    let stride = journal_stride(&disk, &path, locs.len());
    disk.damage(&path, |bytes| bytes[FILE_HEADER_BYTES + 2 * stride + 300] ^= 1);
    disk.restart(Restart::Kill);
    let (journal, recovery) = open(&disk);
    assert!(recovery.torn_tail);
    assert_holds(&journal, &recovery, 1..=2);
    for n in 3..=4 {
        append(&journal, n, 601);
    }
    drop(journal);
    disk.restart(Restart::Kill);
    let (journal, recovery) = open(&disk);
    assert!(!recovery.torn_tail);
    assert_holds(&journal, &recovery, 1..=4);
    assert_eq!(recovery.records[3].1.len(), 601);
}

/// Bytes from one frame to the next in a file of `records` equal records.
fn journal_stride(disk: &SimDisk, path: &Path, records: usize) -> usize {
    let bytes = disk.content(path).unwrap();
    let frames: Vec<usize> =
        (0..bytes.len() - 4).step_by(8).filter(|&at| &bytes[at..at + 4] == b"sJR1").collect();
    assert_eq!(frames.len(), records);
    frames[1] - frames[0]
}

#[test]
fn a_void_record_put_in_the_place_of_its_successor_does_not_open() {
    // Guards against an attacker with the disk bringing a dropped record back: old record 3
    // was sealed under the same number and key as new record 3, and only the file differs.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    let _: Vec<_> = (1..=3).map(|n| append(&journal, n, 600)).collect();
    drop(journal);
    let old_path = log_path(&disk);
    let stride = journal_stride(&disk, &old_path, 3);
    let old = disk.content(&old_path).unwrap();
    disk.damage(&old_path, |bytes| bytes[FILE_HEADER_BYTES + stride + 300] ^= 1);
    disk.restart(Restart::Kill);
    let (journal, recovery) = open(&disk);
    assert_eq!((recovery.last, recovery.torn_tail), (JournalPos(1), true));
    let _: Vec<_> = (2..=3).map(|n| append(&journal, n, 600)).collect();
    drop(journal);
    let new_path = disk.paths().into_iter().rfind(|p| p.to_str().unwrap().contains("/log-"));
    let message = FILE_HEADER_BYTES + 2 * stride + 32..FILE_HEADER_BYTES + 3 * stride;
    let new_start = FILE_HEADER_BYTES + stride + 32;
    disk.damage(&new_path.unwrap(), |bytes| {
        bytes[new_start..new_start + message.len()].copy_from_slice(&old[message]);
    });
    disk.restart(Restart::Kill);
    let (journal, recovery) = open(&disk);
    assert!(recovery.torn_tail);
    assert_holds(&journal, &recovery, 1..=2);
}

#[test]
fn a_flipped_bit_in_what_was_synced_is_corruption_and_nothing_is_touched() {
    // Guards against damage in the middle being taken for a torn tail, which would drop every
    // fsynced record behind it: record 6 testifies that 5 records were on stable storage.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    for n in 1..=5 {
        append(&journal, n, 600);
    }
    journal.sync(JournalPos(5)).unwrap();
    append(&journal, 6, 600);
    drop(journal);
    let path = log_path(&disk);
    let stride = journal_stride(&disk, &path, 6);
    for record in 0..5 {
        for inside in [0, 9, 31, 40, 120, 500] {
            let at = FILE_HEADER_BYTES + record * stride + inside;
            disk.damage(&path, |bytes| bytes[at] ^= 4);
            disk.restart(Restart::Kill);
            let before = disk.content(&path);
            match try_open(&disk).err() {
                Some(JournalError::Corrupt { file, offset, what }) => {
                    assert_eq!(file, path);
                    assert_eq!(offset as usize, FILE_HEADER_BYTES + record * stride, "{what}");
                }
                other => panic!("record {} byte {inside}: {other:?}", record + 1),
            }
            assert_eq!(disk.content(&path), before);
            disk.damage(&path, |bytes| bytes[at] ^= 4);
        }
    }
    disk.restart(Restart::Kill);
    let (journal, recovery) = open(&disk);
    assert_holds(&journal, &recovery, 1..=6);
}

#[test]
fn a_damaged_header_or_identity_is_corruption() {
    // Guards against a journal whose first bytes are damaged being taken for an empty one.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    append(&journal, 1, 10);
    drop(journal);
    for path in [log_path(&disk), PathBuf::from("/j/journal.id")] {
        disk.damage(&path, |bytes| bytes[50] ^= 1);
        disk.restart(Restart::Kill);
        let e = try_open(&disk).err().expect("refused");
        assert!(matches!(&e, JournalError::Corrupt { file, .. } if *file == path), "{e}");
        disk.damage(&path, |bytes| bytes[50] ^= 1);
    }
    disk.restart(Restart::Kill);
    disk.remove(Path::new("/j/journal.id")).unwrap();
    assert!(matches!(try_open(&disk), Err(JournalError::Corrupt { .. })));
}

#[test]
fn the_journal_of_another_volume_is_refused() {
    // Guards against a foreign journal being recycled because none of its records opens.
    let disk = SimDisk::new();
    append(&open(&disk).0, 1, 10);
    disk.restart(Restart::Kill);
    let foreign = Journal::open(options(), VolumeKeys::random_for_tests(2), Arc::new(disk.clone()));
    assert!(matches!(foreign, Err(JournalError::Foreign { .. })));
}

#[test]
fn recycled_files_never_replay_what_they_held_before() {
    // Guards against records of a former lap: every file is filled and released many times,
    // and after each lap a kill must find only what is not released.
    let disk = SimDisk::new();
    let (mut journal, _) = open(&disk);
    let mut n = 0;
    for lap in 0..12u64 {
        for _ in 0..9 {
            n += 1;
            append(&journal, n, 9_000);
        }
        journal.release(JournalPos(n - lap % 3));
        journal.keep(false).unwrap();
        drop(journal);
        disk.restart(Restart::Kill);
        let (again, recovery) = open(&disk);
        journal = again;
        assert!(!recovery.torn_tail);
        let due = recovery.after(JournalPos(n - lap % 3)).unwrap();
        assert_eq!(due.len() as u64, lap % 3);
        for (pos, loc) in &recovery.records {
            assert_eq!(journal.read(*loc, 0..9_000).unwrap(), content(pos.0, 9_000));
        }
        journal.release(JournalPos(n));
    }
    let files = disk.paths().len();
    assert!(files <= 2 + 2 + 2, "{files} files are kept");
}

#[test]
fn a_full_journal_says_so_and_goes_on_when_records_are_released() {
    // Guards against writing past --journal-size, and against space that never comes back.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    let mut n = 0;
    let full = loop {
        match journal.append(&[&content(n + 1, 20_000)]) {
            Ok(_) => n += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(full, JournalError::Full { bytes_max, .. } if bytes_max == 4 * FILE_BYTES));
    assert_eq!(n, 12);
    assert!(!journal.wait_for_space_blocking(Duration::from_millis(5)));
    assert!(journal.usage().file_bytes <= 4 * FILE_BYTES);
    journal.release(JournalPos(3));
    assert!(journal.wait_for_space_blocking(Duration::from_millis(5)));
    append(&journal, n + 1, 20_000);
    journal.release(JournalPos(n + 1));
    assert_eq!(journal.used_bytes(), 0);
}

#[test]
fn waiting_for_space_ends_when_it_comes() {
    // Guards against a release that happens between looking and waiting being missed.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    while journal.append(&[&[0; 20_000]]).is_ok() {}
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let wait = journal.wait_for_space();
        let timed = tokio::time::timeout(Duration::from_millis(20), wait).await;
        assert!(timed.is_err(), "nothing was released");
        let release = async {
            tokio::task::yield_now().await;
            journal.release(journal.last_pos());
        };
        let wait = tokio::time::timeout(Duration::from_secs(5), journal.wait_for_space());
        let (waited, ()) = tokio::join!(wait, release);
        waited.expect("woken");
    });
}

#[test]
fn a_full_disk_refuses_one_append_and_not_the_next() {
    // Guards against ENOSPC stopping the journal for good, or leaving half a file behind.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    append(&journal, 1, 40_000);
    disk.limit_bytes(Some(FILE_BYTES + 1000));
    let e = journal.append(&[&content(2, 40_000)]).expect_err("no space");
    assert!(matches!(e, JournalError::NoSpace(_)), "{e}");
    disk.limit_bytes(None);
    append(&journal, 2, 40_000);
    // A write that fails half way (a file system that allocates late) takes nothing with it.
    disk.fault_at(1, Fault::NoSpace);
    assert!(matches!(journal.append(&[&content(3, 100)]), Err(JournalError::NoSpace(_))));
    append(&journal, 3, 200);
    drop(journal);
    disk.restart(Restart::Kill);
    let (journal, recovery) = open(&disk);
    assert_holds(&journal, &recovery, 1..=3);
}

#[test]
fn a_failed_sync_is_final() {
    // Guards against "fsyncgate": Linux reports a failed write-back once and the next fdatasync
    // succeeds although the data is gone. No later call may report success.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    append(&journal, 1, 100);
    journal.sync(JournalPos(1)).unwrap();
    append(&journal, 2, 100);
    disk.fault_at(1, Fault::Io);
    for _ in 0..3 {
        assert!(matches!(journal.sync(JournalPos(2)), Err(JournalError::Poisoned(_))));
        assert!(matches!(journal.append(&[b"x"]), Err(JournalError::Poisoned(_))));
        assert!(matches!(journal.sync_tick(), Err(JournalError::Poisoned(_))));
    }
    assert_eq!(journal.synced_pos(), JournalPos(1));
    journal.sync(JournalPos(1)).expect("that one is on stable storage");
    drop(journal);
    disk.restart(Restart::PowerLoss { seed: 1 });
    let (_, recovery) = open(&disk);
    assert_eq!(recovery.last, JournalPos(1));
}

#[test]
fn numbers_skip_what_the_bucket_has_committed_already() {
    // Guards against new records under numbers that the bucket counts as committed: a power
    // loss took records 3 to 7 here after they had been uploaded.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    append(&journal, 1, 10);
    append(&journal, 2, 10);
    journal.start_after(JournalPos(7)).unwrap();
    assert!(matches!(journal.start_after(JournalPos(6)), Err(JournalError::Invalid(_))));
    append(&journal, 8, 10);
    append(&journal, 9, 10);
    journal.sync(JournalPos(9)).unwrap();
    drop(journal);
    disk.restart(Restart::PowerLoss { seed: 3 });
    let (journal, recovery) = open(&disk);
    assert_eq!(recovery.last, JournalPos(9));
    let due = recovery.after(JournalPos(7)).unwrap();
    assert_eq!(due.iter().map(|(pos, _)| pos.0).collect::<Vec<_>>(), [8, 9]);
    append(&journal, 10, 10);
}

#[test]
fn ranges_read_across_chunks_are_the_bytes_that_were_appended() {
    // Guards against arithmetic slips around the prelude and the 16 KiB chunks.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    let len = 40_000;
    let loc = append(&journal, 1, len);
    let bytes = content(1, len);
    let edges = [0, 1, 16_359, 16_360, 16_361, 16_384, 32_743, 32_744, 32_745, 39_999, 40_000];
    for from in edges {
        for to in edges.into_iter().filter(|&to| to >= from) {
            let mut out = vec![0xee; to - from];
            journal.read_to(loc, from as u32..to as u32, &mut out).unwrap();
            assert!(out == bytes[from..to], "{from}..{to}");
        }
    }
    assert!(matches!(journal.read(loc, 0..40_001), Err(JournalError::Invalid(_))));
    let empty = append(&journal, 2, 0);
    assert_eq!(journal.read(empty, 0..0).unwrap(), b"");
}

#[test]
fn damage_met_by_a_read_names_the_file_and_leaves_the_rest_readable() {
    // Guards against wrong bytes reaching a reader, or half of a range.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    let loc = append(&journal, 1, 40_000);
    let path = log_path(&disk);
    disk.damage(&path, |bytes| bytes[FILE_HEADER_BYTES + 30_000] ^= 1);
    assert_eq!(journal.read(loc, 0..16_000).unwrap(), content(1, 16_000));
    let e = journal.read(loc, 0..40_000).expect_err("damaged");
    assert!(matches!(&e, JournalError::Corrupt { file, .. } if *file == path), "{e}");
}

#[test]
fn a_released_record_is_reported_as_such() {
    // Guards against a reader meeting EIO, or another record, where it should go to the bucket.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    let loc = append(&journal, 1, 100);
    for n in 2..=10 {
        append(&journal, n, 30_000);
        journal.release(JournalPos(n - 1));
    }
    assert!(matches!(journal.read(loc, 0..100), Err(JournalError::Released(JournalPos(1)))));
}

#[test]
fn a_journal_set_aside_keeps_its_records_and_makes_room_for_another() {
    // Guards against an overtaken journal being deleted, or written to after it was set aside.
    let disk = SimDisk::new();
    let (journal, _) = open(&disk);
    let id = journal.id();
    append(&journal, 1, 100);
    let aside = journal.set_aside(Timestamp { secs: 1_700_000_000, nanos: 0 }).unwrap();
    assert_eq!(aside, PathBuf::from(format!("/j.set-aside-1700000000-{id}")));
    assert!(matches!(journal.append(&[b"x"]), Err(JournalError::Poisoned(_))));
    drop(journal);
    let (fresh, recovery) = open(&disk);
    assert!(recovery.records.is_empty() && fresh.id() != id);
    let kept = JournalOptions { dir: aside, ..options() };
    let (kept, recovery) =
        Journal::open(kept, VolumeKeys::random_for_tests(1), Arc::new(disk.clone())).unwrap();
    assert_holds(&kept, &recovery, 1..=1);
}

#[test]
fn on_a_real_disk_with_the_keeper_many_threads_share_syncs() {
    // Guards against what a simulated disk cannot show: the system calls, the keeper thread,
    // the lock, and group commit (fewer syncs than calls).
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        file_bytes: 1 << 20,
        pool_bytes_max: 4 << 20,
        prewrite_bytes: 2 << 20,
        ..JournalOptions::new(dir.path().join("j"), 16 << 20)
    };
    let keys = VolumeKeys::random_for_tests(1);
    let open = || Journal::open(options.clone(), keys.clone(), Arc::new(RealDisk));
    let (journal, _) = open().unwrap();
    assert!(matches!(open(), Err(JournalError::InUse(Some(pid))) if pid == std::process::id()));
    std::thread::scope(|scope| {
        for t in 0..4u8 {
            let journal = &journal;
            scope.spawn(move || {
                for i in 0..100usize {
                    let bytes = vec![t; 1000 + i * 150];
                    let (pos, loc) = match journal.append(&[&bytes]) {
                        Ok(appended) => appended,
                        Err(JournalError::Full { .. }) => {
                            journal.release(journal.synced_pos());
                            continue;
                        }
                        Err(e) => panic!("{e}"),
                    };
                    journal.sync(pos).unwrap();
                    assert!(journal.synced_pos() >= pos);
                    match journal.read(loc, 0..loc.len()) {
                        Ok(read) => assert_eq!(read, bytes),
                        Err(JournalError::Released(_)) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
    });
    let usage = journal.usage();
    assert!(usage.last > 300 && usage.synced == usage.last && !usage.poisoned, "{usage:?}");
    assert!(usage.syncs <= usage.last, "{usage:?}");
    let (last, released) = (journal.last_pos(), journal.released_pos());
    drop(journal);
    let (journal, recovery) = open().unwrap();
    assert_eq!(recovery.last, last);
    assert_eq!(recovery.after(released).unwrap().len() as u64, last.0 - released.0);
    drop(journal);
    RealDisk.list(&options.dir).unwrap();
}
