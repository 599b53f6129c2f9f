//! The simulated disk of these tests is no kinder than a real one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use sealfs::journal::disk::{DiskFile, DiskIo};

use crate::disk_sim::{Restart, SimDisk};

fn disk_with(content: &[u8]) -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::new();
    let file = disk.create(Path::new("/d/f")).unwrap();
    file.pwrite(content, 0).unwrap();
    file.datasync().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    (disk, file)
}

#[test]
fn a_power_loss_keeps_what_was_synced_and_only_some_of_the_rest() {
    // Guards against a simulated disk that is kinder than a real one: over many seeds
    // unsynced sectors must be lost, kept and mixed.
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (disk, file) = disk_with(&[1; 2048]);
        file.pwrite(&[2; 1024], 512).unwrap();
        disk.restart(Restart::PowerLoss { seed });
        let now = disk.content(Path::new("/d/f")).unwrap();
        assert_eq!((&now[..512], &now[1536..]), (&[1; 512][..], &[1; 512][..]));
        seen.insert((now[512], now[1024]));
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_handle_of_a_former_life_cannot_write() {
    // Guards against a test whose "killed" journal goes on changing the disk.
    let (disk, file) = disk_with(b"x");
    disk.restart(Restart::Kill);
    assert!(file.pwrite(b"y", 0).is_err());
    assert_eq!(disk.content(Path::new("/d/f")).unwrap(), b"x");
}

#[test]
fn unsynced_names_vanish_in_order() {
    // Guards against directory changes surviving out of order, which no journaling file
    // system does.
    for seed in 0..50 {
        let (disk, _file) = disk_with(b"x");
        disk.rename(Path::new("/d/f"), Path::new("/d/g")).unwrap();
        disk.rename(Path::new("/d/g"), Path::new("/d/h")).unwrap();
        disk.restart(Restart::PowerLoss { seed });
        assert_eq!(disk.paths().len(), 1);
    }
}
