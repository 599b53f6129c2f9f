//! Replays the committed seeds of `fuzz/` on the ordinary compiler, whole, cut and with bytes
//! changed, so that what fuzzing once found (and what it started from) stays checked everywhere.

#[path = "../../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk_sim::SplitMix;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use sealfs::base::{ChainValue, ContentsId, Ino, JournalId, JournalPos, SegmentId, Timestamp};
use sealfs::commit::{Batch, CloneSource, DataOp};
use sealfs::meta::{
    BesideRow, CommitRow, DeadRow, Dirent, ExtentRow, HistoryRow, Inode, InodeExtent, KeptRow,
    Kind, SegmentRow, SnapshotName, SnapshotOrigin, SnapshotRow, keys,
};
use sealfs::seal::{KdfParams, Keyring, RootKey, Secret};
use sealfs::store::SegmentStore;
use sealfs::store::segments::Owned;

/// Changed copies of each seed in an ordinary run.
const VARIANTS: u64 = 300;

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|p| (p.clone(), fs::read(p).expect("a seed"))).collect()
}

fn replay(target: &str, check: fn(&[u8])) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "no seeds of {target}");
    let full = std::env::var_os("SEALFS_TEST_FULL").is_some();
    let variants = if full { VARIANTS * 100 } else { VARIANTS };
    for (n, (path, seed)) in seeds.iter().enumerate() {
        eprintln!("{}", path.display());
        check(seed);
        let mut random = SplitMix(n as u64);
        for _ in 0..variants {
            let mut bytes = seed.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len() as u64 + 1) as usize;
                match random.below(4) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, random.below(256) as u8),
                    _ => {
                        if let Some(byte) = bytes.get_mut(at) {
                            *byte = random.below(256) as u8;
                        }
                    }
                }
            }
            check(&bytes);
        }
    }
}

#[test]
fn no_bytes_from_the_bucket_open_without_having_been_sealed() {
    // Guards against a panic, or an acceptance, on what an attacker stores.
    replay("sealed", checks::sealed);
}

#[test]
fn no_bytes_of_a_journal_make_it_panic_or_believe() {
    // Guards against a journal file that crashes the next mount.
    replay("journal", checks::journal);
}

/// Makes the seeds of the keyring again, after a change of the format:
/// `cargo test --test format fuzz_corpus -- --ignored`.
#[test]
#[ignore = "writes the seeds"]
fn make_the_seeds_of_the_keyring() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/keyring");
    let write = |name: &str, ring: &Keyring| {
        fs::write(dir.join(name), ring.to_bytes()).expect("writes");
    };
    let made = |secret: &Secret| {
        Keyring::create(RootKey::random(), secret, "first", KdfParams::FLOOR, 1_800_000_000)
    };
    let passphrase = Secret::Passphrase(b"a passphrase".to_vec().into());
    write("passphrase", &made(&passphrase).expect("a keyring").0);
    let (mut ring, keys) = made(&checks::keyring_secret()).expect("a keyring");
    write("key-file", &ring);
    let keys = ring.rotate(&keys).expect("rotates");
    ring.add_slot(&keys, &passphrase, "second", KdfParams::FLOOR, 1_800_000_100).expect("adds");
    write("rotated", &ring);
    ring.retire_root(&keys, 1).expect("retires");
    write("retired", &ring);
}

/// Makes the named seeds of the rows again, after a change of the format.
#[test]
#[ignore = "writes the seeds"]
fn make_the_seeds_of_the_rows() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/rows");
    let write = |name: &str, row: &[u8]| fs::write(dir.join(name), row).expect("writes");
    let at = |secs, nanos| Timestamp { secs, nanos };
    let segment = SegmentId([0x4f; 16]);
    let mut inode = Inode::new(Kind::File, 0o640, 1000, 100, at(1_800_000_000, 5));
    write("inode-empty", &inode.encode());
    (inode.size, inode.allocated) = (100, 4096);
    let mut extent = InodeExtent { start: 0, len: 100, segment, segment_offset: 300 };
    write("inode-extent", &inode.encode_with(Some(&extent)));
    (inode.size, extent.start, inode.atime) = (10_000, 5_000, at(-7, 999_999_999));
    (inode.btime, inode.ctime.nanos, inode.incarnation) = (inode.atime, 6, 3);
    (inode.nlink, inode.xattrs) = (2, 1);
    write("inode", &inode.encode_with(Some(&extent)));
    let target = bytes::Bytes::from_static(b"target");
    let link = Inode { target, ..Inode::new(Kind::Symlink, 0o777, 0, 0, at(0, 0)) };
    write("symlink", &link.encode());
    let node = Inode { rdev: 0x103, ..Inode::new(Kind::CharDev, 0o600, 0, 0, at(5, 0)) };
    write("node", &node.encode());
    let dir_row = Inode { parent: Ino(1), ..Inode::new(Kind::Dir, 0o755, 0, 0, at(6, 0)) };
    write("directory", &dir_row.encode());
    write("dirent", &Dirent { ino: Ino(300), kind: Kind::File }.encode());
    write("extent", &ExtentRow { segment, segment_offset: 100, len: 4096 }.encode());
    let row = SegmentRow { size: 500, live: 400, birth: 7, epoch: 1, owners: 2, half_since: 0 };
    write("segment", &row.encode());
    write("segment-frames", &row.encode_with(b"frames"));
    write("dead", &DeadRow { birth: 7, death: 9 }.encode());
    write("history", &HistoryRow(ChainValue([12; 32])).encode());
    write("beside", &BesideRow { config: 3, lease: 4 }.encode());
    let kept = KeptRow { death: 9, segment: row };
    write("kept", &kept.encode_with(b"frames"));
    let snapshot = SnapshotRow {
        checkpoint: [7; 16],
        manifest: 9,
        commit: 11,
        chain: ChainValue([3; 32]),
        time_secs: 1_800_000_000,
        expires_secs: 1_800_086_400,
        origin: SnapshotOrigin::Daily,
        files: 5,
        bytes: 6,
        note: "before the upgrade".into(),
    };
    write("snapshot", &snapshot.encode());
    write("key-snapshot", &keys::snapshot(&SnapshotName::parse("monday").expect("a name")));
    write("key-kept", &keys::kept_segment(segment));
    write("key-owner", &keys::owner(segment, ContentsId { ino: Ino(9), incarnation: 1 }));
    let (ino, incarnation) = (Ino(9), 4);
    let from = CloneSource { ino: Ino(8), incarnation: 3, offset: 1 << 40, len: 1 << 33 };
    let mut batch = Batch { inodes: 1, bytes: -4096, ..Batch::default() };
    batch.put_fresh(keys::inode(ino), inode.encode());
    batch.delete(keys::orphan(ino));
    batch.data.push(DataOp::Begin { ino, incarnation });
    batch.data.push(DataOp::Write { ino, incarnation, offset: 5, len: 6 });
    batch.data.push(DataOp::Hole { ino, incarnation, start: 7, end: u64::MAX });
    batch.data.push(DataOp::Drop { ino, incarnation });
    batch.data.push(DataOp::Clone { ino, incarnation, offset: 7, from });
    let mut head = Vec::new();
    batch.encode_head(&mut head);
    fs::write(dir.with_file_name("journal").join("batch-head"), head).expect("writes");
    let (journal, position) = (JournalId([3; 16]), JournalPos(8));
    let row = CommitRow {
        journal,
        position,
        sequence: 9,
        time_secs: 10,
        writer_epoch: 11,
        chain: ChainValue([12; 32]),
    };
    write("commit", &row.encode());
}

/// Makes the seeds of segments again, after a change of the format.
#[test]
#[ignore = "writes the seeds"]
fn make_the_seeds_of_segments() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/segment");
    fs::create_dir_all(&dir).expect("makes");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for (name, compression) in [("raw", "none"), ("framed", "zstd:3")] {
        let store = Arc::new(InMemory::new());
        let compression = compression.parse().expect("known");
        let segments = SegmentStore::compressing(store.clone(), compression);
        let mut data = vec![b'x'; 140_000];
        let mut random = SplitMix(5);
        data[131_072..].iter_mut().for_each(|b| *b = random.below(256) as u8);
        let owned = |n: u64, len| Owned { ino: Ino(n), incarnation: 0, offset: n * 7, len };
        let ranges = [owned(20, 100_000), owned(21, 39_000), owned(5, 1000)];
        let id = segments.new_id();
        let object = runtime.block_on(async {
            segments.put(id, vec![data.into()], &ranges).await.expect("puts");
            let object = store.get(&SegmentStore::name(id)).await.expect("there");
            object.bytes().await.expect("whole")
        });
        fs::write(dir.join(name), &object).expect("writes");
        let layout = runtime.block_on(segments.layout(id)).expect("known");
        fs::write(dir.join(format!("row-{name}")), layout.to_row()).expect("writes");
    }
}

#[test]
fn no_bytes_of_a_segment_make_it_panic_or_read_back_as_another() {
    // Guards against memory that a number asks for, and against a tail that is believed in part.
    replay("segment", checks::segment);
}

#[test]
fn no_bytes_of_a_keyring_make_it_panic_or_read_back_as_another() {
    // Guards against a keyring that crashes every mount, or is rewritten into something else.
    replay("keyring", checks::keyring);
}

#[test]
fn no_bytes_of_a_slot_read_back_as_another_or_cost_anything() {
    // Guards against what an attacker puts where KMS and age have theirs: a panic, a header of
    // age with work for hours.
    replay("slots", checks::slots);
}

#[test]
fn no_text_is_taken_for_another_recovery_key() {
    // Guards against a typing error that is some other key, and a panic on what is no text.
    replay("recovery", checks::recovery);
}

#[test]
fn no_row_reads_back_as_another() {
    // Guards against rows that decode to one thing and are written again as another.
    replay("rows", checks::rows);
}

#[test]
fn no_configuration_reads_back_as_another() {
    // Guards against a schedule, a quota or a class of storage that is remembered as something else.
    replay("config", checks::config);
}

#[test]
fn no_store_argument_is_shown_as_another() {
    // Guards against `status` and hints that name another place than is used.
    replay("location", checks::location);
}

#[test]
fn no_metadata_makes_an_object_look_clear_or_the_parser_panic() {
    // Guards against envelopes of the Amazon S3 Encryption Client that somebody else wrote.
    replay("s3ec", checks::s3ec);
}
