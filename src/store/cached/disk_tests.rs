//! The cache directory under crashes, damage and pressure.

use super::super::granule::GRANULE;
use super::*;
use std::time::Duration;

fn open(dir: &std::path::Path, bytes_max: u64) -> Disk {
    Disk::open(dir.to_path_buf(), bytes_max, Arc::default()).unwrap()
}

fn object(name: &str, size: u64) -> (Key, ObjectMeta, Bytes) {
    let location = Path::from(name);
    let key = key(&location);
    let last_modified = (UNIX_EPOCH + Duration::from_secs(1_700_000_000)).into();
    let meta =
        ObjectMeta { location, last_modified, size, e_tag: Some("\"t\"".into()), version: None };
    let body = (0..size).map(|i| (i % 253) as u8 ^ name.len() as u8).collect::<Vec<u8>>();
    (key, meta, body.into())
}

fn read(disk: &Disk, key: &Key, meta: &ObjectMeta, granules: Range<u64>) -> Vec<(u64, Bytes)> {
    disk.read(key, &meta.location, granules).map(|(_, found)| found).unwrap_or_default()
}

#[test]
fn what_was_written_is_there_after_a_restart_and_nothing_else() {
    // Guards against a cold cache after a restart, and against holes read as zeros.
    let dir = tempfile::tempdir().unwrap();
    let (key, meta, body) = object("seg/00/aa", 300_000);
    {
        let disk = open(dir.path(), 1 << 30);
        let at = granule::start(2) as usize..granule::start(4) as usize;
        disk.write(&key, &meta, 2, &body.slice(at).into()).unwrap();
        assert!(!disk.may_have(&key, &(0..2)));
    }
    let disk = open(dir.path(), 1 << 30);
    assert!(disk.usage().0 > 2 * GRANULE);
    let found = read(&disk, &key, &meta, 0..9);
    assert_eq!(found.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [2, 3]);
    for (k, data) in found {
        let r = granule::bytes(&(k..k + 1), meta.size);
        assert_eq!(data, body.slice(r.start as usize..r.end as usize));
    }
    assert_eq!(*disk.meta(&key, &meta.location).unwrap(), meta);
    assert!(!disk.may_have(&key, &(0..2)), "holes are remembered");
    // The last, short granule.
    disk.write(&key, &meta, 4, &body.slice(granule::start(4) as usize..).into()).unwrap();
    assert_eq!(read(&disk, &key, &meta, 0..9).len(), 3);
}

#[test]
fn damaged_granules_and_pages_are_dropped_not_returned() {
    // Guards against a torn write after a power failure: flipped data, cut file, torn page.
    let dir = tempfile::tempdir().unwrap();
    let (key, meta, body) = object("seg/00/bb", 200_000);
    let path = {
        let disk = open(dir.path(), 1 << 30);
        disk.write(&key, &meta, 0, &body.clone().into()).unwrap();
        assert_eq!(read(&disk, &key, &meta, 0..4).len(), 4);
        disk.file(&key)
    };
    let mut file = fs::read(&path).unwrap();
    file[granule::file_start(1) as usize + 500] ^= 1;
    file.truncate(granule::file_start(3) as usize + 20);
    fs::write(&path, &file).unwrap();
    {
        let disk = open(dir.path(), 1 << 30);
        let found = read(&disk, &key, &meta, 0..4);
        assert_eq!(found.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(disk.stats.snapshot().cache_corrupt, 1);
    }
    file[40] ^= 1;
    fs::write(&path, &file).unwrap();
    let disk = open(dir.path(), 1 << 30);
    assert!(read(&disk, &key, &meta, 0..4).is_empty());
    assert!(!path.exists() && disk.usage() == (0, 0));
}

#[test]
fn the_least_recently_read_leave_when_the_limit_is_reached() {
    // Guards against a cache that outgrows its limit, or that drops what is in use.
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path(), 3 * 140_000);
    let objects: Vec<_> = (0..6).map(|i| object(&format!("seg/0{i}/x"), 130_000)).collect();
    for (key, meta, body) in &objects {
        disk.write(key, meta, 0, &body.clone().into()).unwrap();
        // The first stays in use all along.
        let (first, first_meta, _) = &objects[0];
        assert_eq!(read(&disk, first, first_meta, 0..1).len(), 1);
        assert!(disk.usage().0 <= 3 * 140_000);
    }
    let kept: Vec<bool> = objects.iter().map(|(key, _, _)| disk.file(key).exists()).collect();
    assert_eq!(kept, [true, false, false, false, true, true]);
}

#[test]
fn another_version_replaces_the_file() {
    // Guards against granules of two versions of an object being mixed.
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path(), 1 << 30);
    let (key, meta, body) = object("x.sst", 140_000);
    disk.write(&key, &meta, 0, &body.clone().into()).unwrap();
    let next = ObjectMeta { e_tag: Some("\"u\"".into()), ..meta.clone() };
    disk.write(&key, &next, 1, &body.slice(granule::start(1) as usize..).into()).unwrap();
    assert_eq!(disk.meta(&key, &meta.location).unwrap().e_tag, next.e_tag);
    assert_eq!(read(&disk, &key, &next, 0..3).iter().map(|(k, _)| *k).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_directory_serves_one_process_at_a_time() {
    // Guards against two mounts evicting and overwriting each other's files.
    let dir = tempfile::tempdir().unwrap();
    let _one = open(dir.path(), 1);
    let e = Disk::open(dir.path().to_path_buf(), 1, Arc::default()).err().unwrap();
    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn what_is_kept_stays_and_what_lies_beside_it_goes_first() {
    // Guards against pinned data that ordinary reads push out, also right after a restart, and against a
    // limit that does not hold because of what lies in the same files.
    use super::super::KeepSet;
    let dir = tempfile::tempdir().unwrap();
    let objects: Vec<_> = (0..6).map(|n| object(&format!("seg/00/{n}"), 10 * GRANULE)).collect();
    let put = |disk: &Disk, n: usize| {
        let (key, meta, body) = &objects[n];
        disk.write(key, meta, 0, &body.clone().into()).unwrap();
    };
    let mut kept = KeepSet::default();
    let plain = crate::seal::offsets::plain_len(10 * GRANULE).unwrap();
    for (_, meta, _) in &objects[..2] {
        kept.add(&meta.location, plain, std::slice::from_ref(&(65_536 * 3..65_536 * 4)));
    }
    assert!(kept.bytes() > 6 * GRANULE && kept.bytes() < 7 * GRANULE, "{}", kept.bytes());
    let wanted =
        |found: &[(u64, Bytes)]| [0, 3, 9].iter().all(|k| found.iter().any(|(have, _)| have == k));
    {
        let disk = open(dir.path(), 25 * GRANULE);
        (0..2).for_each(|n| put(&disk, n));
        disk.keep_all(&kept);
        (2..6).for_each(|n| put(&disk, n));
        assert!(disk.usage().0 <= 25 * GRANULE, "{}", disk.usage().0);
        for (key, meta, _) in &objects[..2] {
            assert_eq!(read(&disk, key, meta, 0..10).len(), 10, "there is room beside");
        }
    }
    // A start that knows the set only from the directory, and less room than its files take.
    let disk = open(dir.path(), 12 * GRANULE);
    assert!(disk.usage().0 <= 12 * GRANULE, "{}", disk.usage().0);
    put(&disk, 5);
    for (key, meta, body) in &objects[..2] {
        let found = read(&disk, key, meta, 0..10);
        assert!(wanted(&found) && found.len() < 10, "{}", found.len());
        for (k, data) in found {
            let r = granule::bytes(&(k..k + 1), meta.size);
            assert_eq!(data, body.slice(r.start as usize..r.end as usize));
        }
    }
    // The limit goes before all.
    disk.set_bytes_max(2 * GRANULE);
    assert!(disk.usage().0 <= 2 * GRANULE, "{}", disk.usage().0);
    // A list that is not whole is none.
    fs::write(dir.path().join("kept"), b"sealfsK1 and rubbish").unwrap();
    drop(disk);
    assert!(open(dir.path(), 1 << 30).usage().0 <= 2 * GRANULE);
}
