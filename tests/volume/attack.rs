//! Whoever controls the bucket, one attack after the other: no wrong byte is ever returned,
//! what was not touched stays readable, nothing is deleted, and both `status` and `fsck` say
//! that something is wrong.

mod exchanged;
mod history;
mod planted;
mod random;

use crate::volume;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::volume::{
    Bench, LONG, Objects, find, init_options, key_file, keyring, objects, options_of, secret,
    write_file,
};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt, PutOptions};
use sealfs::base::Ino;
use sealfs::fs::FsError;
use sealfs::seal::{CHUNK_CIPHER, HEADER, KdfParams, Keyring, VolumeKeys};
use sealfs::stack::{
    Accept, KeyOptions, Mounted, StackError, StackErrorKind, change_keyring, fsck, init,
};

const FILES: [&str; 4] = ["one", "two", "three", "four"];
/// Three chunks of a segment and a bit.
const LEN: usize = 50_000;

fn contents(name: &str) -> Vec<u8> {
    volume::contents(name, LEN)
}

async fn put_all(store: &dyn ObjectStore, objects: &Objects) {
    for (at, bytes) in objects {
        store.put(at, bytes.clone().into()).await.expect("puts");
    }
}

/// A volume whose files lie in a segment each.
struct Target {
    bench: Bench,
    bucket: Arc<InMemory>,
    segments: BTreeMap<&'static str, Path>,
    /// The bucket when two of the files were there.
    older: Objects,
}

async fn target() -> Target {
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let (mut segments, mut older) = (BTreeMap::new(), Objects::new());
    let mut known = BTreeSet::new();
    let mut m = bench.mount().await;
    for (n, name) in FILES.into_iter().enumerate() {
        write_file(&m.fs, Ino::ROOT, name, &contents(name)).await;
        assert!(m.sync(LONG).await);
        let now = objects(&*bucket).await;
        let all = now.keys().filter(|k| k.as_ref().starts_with("seg/"));
        let all: BTreeSet<Path> = all.cloned().collect();
        let new: Vec<_> = all.difference(&known).cloned().collect();
        assert_eq!(new.len(), 1, "{name}");
        segments.insert(name, new[0].clone());
        known = all;
        if n == 1 {
            assert!(m.shutdown(LONG).await);
            older = objects(&*bucket).await;
            m = bench.mount().await;
        }
    }
    assert!(m.shutdown(LONG).await);
    Target { bench, bucket, segments, older }
}

/// What may happen to a file's contents.
async fn read(m: &Mounted, name: &str) -> Result<Bytes, FsError> {
    let ino = m.fs.lookup(Ino::ROOT, name.into()).await?.ino;
    m.fs.read(ino, 0, LEN as u32).await
}

/// An attack on a bucket that holds `all`: what it puts and what it deletes.
type Attack = Box<dyn Fn(&Target, &Objects) -> (Objects, Vec<Path>)>;
/// What it does to the bytes of one object.
type Change = Box<dyn Fn(&mut Vec<u8>)>;

/// Attacks on the segment of `two`: it must give EIO, and the other files must not notice.
fn on_a_segment() -> Vec<(String, Attack)> {
    let mut attacks: Vec<(String, Attack)> = Vec::new();
    let mut change = |what: String, change: Change| {
        let attack: Attack = Box::new(move |t, all| {
            let at = t.segments["two"].clone();
            let mut bytes = all[&at].to_vec();
            change(&mut bytes);
            (Objects::from([(at, bytes.into())]), Vec::new())
        });
        attacks.push((what, attack));
    };
    let ends = |chunk: usize| HEADER + chunk * CHUNK_CIPHER;
    for (what, at) in [
        ("salt", 3),
        ("commitment", 40),
        ("first chunk", ends(0) + 5),
        ("tag of the first chunk", ends(1) - 1),
        ("second chunk", ends(1) + 9_000),
        ("last chunk", ends(3) + 1),
    ] {
        change(format!("flip the {what}"), Box::new(move |b| b[at] ^= 0x10));
    }
    change("flip the last byte".into(), Box::new(|b| *b.last_mut().expect("not empty") ^= 1));
    for chunk in 0..=3 {
        for by in [-1i64, 0, 1] {
            let len = (ends(chunk) as i64 + by) as usize;
            change(format!("cut to {len}"), Box::new(move |b| b.truncate(len)));
        }
    }
    for len in [0, 1, HEADER - 1] {
        change(format!("cut to {len}"), Box::new(move |b| b.truncate(len)));
    }
    change("append a byte".into(), Box::new(|b| b.push(0)));
    change("append a chunk".into(), Box::new(move |b| b.extend_from_within(HEADER..ends(1))));
    change(
        "exchange two chunks".into(),
        Box::new(move |b| {
            let first: Vec<u8> = b[ends(0)..ends(1)].to_vec();
            b.copy_within(ends(1)..ends(2), ends(0));
            b[ends(1)..ends(2)].copy_from_slice(&first);
        }),
    );
    attacks.push((
        "delete".into(),
        Box::new(|t, _| (Objects::new(), vec![t.segments["two"].clone()])),
    ));
    attacks.push((
        "copy another over it".into(),
        Box::new(|t, all| {
            let other = all[&t.segments["four"]].clone();
            (Objects::from([(t.segments["two"].clone(), other)]), Vec::new())
        }),
    ));
    attacks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_to_a_segment_only_its_file_is_lost_and_everyone_says_so() {
    // Guards against damage that is served as contents, that spreads, or that passes for health.
    let t = target().await;
    let whole = objects(&*t.bucket).await;
    for (what, attack) in on_a_segment() {
        let (puts, deletes) = attack(&t, &whole);
        put_all(&*t.bucket, &puts).await;
        for at in &deletes {
            t.bucket.delete(at).await.expect("deletes");
        }
        let before: BTreeSet<_> = objects(&*t.bucket).await.into_keys().collect();
        let report = t.bench.fsck(|o| o.data = true).await;
        assert!(!report.problems.is_empty(), "{what}: fsck is content");
        let named = report.problems.iter().flat_map(|p| &p.files).any(|f| f.starts_with("/two"));
        assert!(named, "{what}: {:?}", report.problems);
        let m = t.bench.mount().await;
        let mut lost = 0;
        for name in FILES {
            match (name, read(&m, name).await) {
                ("two", Err(FsError::Io(_))) => lost += 1,
                ("two", Ok(got)) => assert!(got == contents(name), "{what}: wrong contents"),
                (_, Ok(got)) => assert!(got == contents(name), "{what}: {name}"),
                (_, Err(e)) => panic!("{what}: {name}: {e}"),
            }
        }
        // What is behind the contents can be changed without their being wrong.
        assert!(lost == 1 || what.contains("append"), "{what}: nothing is lost");
        if lost == 1 {
            let warnings = m.control.status().warnings.join("; ");
            assert!(warnings.contains("damaged"), "{what}: {warnings}");
            // A deleted file's segment stays while something is damaged.
            m.fs.lookup(Ino::ROOT, b"one".to_vec()).await.expect("there");
        }
        assert!(m.shutdown(LONG).await, "{what}");
        let after: BTreeSet<_> = objects(&*t.bucket).await.into_keys().collect();
        let gone: Vec<_> =
            before.difference(&after).filter(|p| p.as_ref().starts_with("seg")).collect();
        assert!(gone.is_empty(), "{what}: deleted {gone:?}");
        let segments: Vec<_> = t.segments.values().collect();
        for at in segments {
            t.bucket.put(at, whole[at].clone().into()).await.expect("puts");
        }
    }
    assert_eq!(t.bench.fsck(|o| o.data = true).await.problems, [], "all is as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_exchanged_segments_lose_both_files_and_no_other() {
    // Guards against a valid object that is served under another's name.
    let t = target().await;
    let all = objects(&*t.bucket).await;
    let (a, b) = (&t.segments["one"], &t.segments["three"]);
    put_all(&*t.bucket, &Objects::from([(a.clone(), all[b].clone()), (b.clone(), all[a].clone())]))
        .await;
    let m = t.bench.mount().await;
    for name in FILES {
        let got = read(&m, name).await;
        match name {
            "one" | "three" => assert!(matches!(got, Err(FsError::Io(_))), "{name}: {got:?}"),
            _ => assert!(got.expect("untouched") == contents(name), "{name}"),
        }
    }
    m.shutdown(LONG).await;
    assert_eq!(t.bench.fsck(|o| o.data = true).await.problems.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_planted_and_what_is_written_on_an_object_changes_nothing() {
    // Guards against names that look right, headers without messages, and object metadata that
    // a client would believe (Content-Encoding: gzip makes some decompress what they read).
    let t = target().await;
    let all = objects(&*t.bucket).await;
    let one = all[&t.segments["one"]].clone();
    let planted = [
        ("seg/ab/abababababababababababababababab", one.clone()),
        ("seg/cd/cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", one.slice(..HEADER)),
        ("seg/ef/efefefefefefefefefefefefefefefef", Bytes::new()),
        ("seg/zz/odd", one.clone()),
        ("meta/compacted/01ZZZZZZZZZZZZZZZZZZZZZZZZ.sst", one.slice(..1_000)),
        ("keyring.bak", one.clone()),
        ("lost.txt", Bytes::from_static(b"a note")),
    ];
    for (name, bytes) in &planted {
        t.bucket.put(&Path::from(*name), bytes.clone().into()).await.expect("puts");
    }
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::ContentEncoding, "gzip".into());
    attributes.insert(Attribute::ContentType, "text/html".into());
    attributes.insert(Attribute::Metadata("x".into()), "y".into());
    let at = &t.segments["two"];
    let o = PutOptions { attributes, ..PutOptions::default() };
    t.bucket.put_opts(at, all[at].clone().into(), o).await.expect("puts");
    let m = t.bench.mount().await;
    for name in FILES {
        assert!(read(&m, name).await.expect("reads") == contents(name), "{name}");
    }
    m.shutdown(LONG).await;
    let report = t.bench.fsck(|o| o.data = true).await;
    let said: String = report.problems.iter().map(|p| p.what.clone() + "\n").collect();
    for (name, _) in &planted {
        assert!(said.contains(name), "{name} is not in: {said}");
    }
    // A repair leaves them alone: nothing is deleted that sealfs did not write.
    let tried = t.bench.fsck(|o| o.repair = true).await;
    assert!(!tried.problems.is_empty() && tried.repaired.is_empty(), "{tried:?}");
    let left = objects(&*t.bucket).await;
    assert!(planted.iter().all(|(name, _)| left.contains_key(&Path::from(*name))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_state_of_the_bucket_is_refused_by_who_knows_better() {
    // Guards against rollback: of everything, of everything but the newest segments, and of the
    // newest metadata alone.
    let t = target().await;
    let now = objects(&*t.bucket).await;
    let meta = |objects: &Objects| -> Objects {
        let of = objects.iter().filter(|(at, _)| at.as_ref().starts_with("meta"));
        of.map(|(at, b)| (at.clone(), b.clone())).collect()
    };
    for what in ["the whole bucket", "only the metadata", "the newest manifest deleted"] {
        let put: Objects = match what {
            "the whole bucket" => t.older.clone(),
            "only the metadata" => {
                let data = now.iter().filter(|(at, _)| !at.as_ref().starts_with("meta"));
                data.map(|(at, b)| (at.clone(), b.clone())).chain(meta(&t.older)).collect()
            }
            _ => {
                let mut all = now.clone();
                let newest = all.keys().filter(|at| at.as_ref().starts_with("meta/manifest"));
                let newest = newest.max().cloned().expect("there is one");
                all.remove(&newest);
                all
            }
        };
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        put_all(&*store, &put).await;
        let same = Bench { store: store.clone(), local: tempfile::tempdir().expect("tempdir") };
        let from = t.bench.state();
        let copied = std::process::Command::new("cp").arg("-a").args([from, same.state()]).status();
        assert!(copied.expect("cp").success());
        match same.mount_with(|_| {}).await {
            Err(e) => assert_eq!(e.kind(), StackErrorKind::Corrupt, "{what}: {e}"),
            Ok(m) => {
                // One manifest less is no older state if the log behind it is all there.
                for name in FILES {
                    assert!(
                        read(&m, name).await.expect("reads") == contents(name),
                        "{what}: {name}"
                    );
                }
                m.shutdown(LONG).await;
                assert_eq!(what, "the newest manifest deleted");
                continue;
            }
        }
        let report = fsck(
            sealfs::stack::FsckOptions { state_dir: same.state(), ..same.fsck_options() },
            Arc::default(),
        )
        .await;
        assert!(
            report.is_err() || !report.expect("one").problems.is_empty(),
            "{what}: fsck is content"
        );
        // Who put it back on purpose says so, and gets the old state: no mixture.
        match same.mount_with(|o| o.accept_rollback = Accept::ALL).await {
            Ok(m) => {
                for name in FILES {
                    match read(&m, name).await {
                        Ok(got) => assert!(got == contents(name), "{what}: {name}"),
                        Err(e) => assert_eq!(e, FsError::NotFound, "{what}: {name}"),
                    }
                }
                m.shutdown(LONG).await;
                same.mount().await.shutdown(LONG).await;
            }
            Err(e) => assert_eq!(e.kind(), StackErrorKind::Corrupt, "{what}: {e}"),
        }
        // A machine that never saw the volume cannot know, unless it is told.
        let fresh = Bench {
            store: Arc::new(InMemory::new()),
            local: tempfile::tempdir().expect("tempdir"),
        };
        put_all(&*fresh.store, &t.older).await;
        let told = fresh.mount_with(|o| o.at_least = 1_000).await.err().expect("told better");
        assert!(matches!(told, StackError::TooOld { .. }), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchanged_or_absurd_keyring_is_refused_and_a_deleted_one_never_made_again() {
    // Guards against a keyring that makes the machine spend a terabyte of memory, that opens
    // another volume in this one's place, or whose absence looks like an empty bucket.
    let t = target().await;
    let at = Path::from("keyring");
    let good = t.bucket.get(&at).await.expect("there").bytes().await.expect("reads");
    let pass = || sealfs::seal::Secret::Passphrase(b"a passphrase".to_vec().into());
    let other =
        Bench { store: Arc::new(InMemory::new()), local: tempfile::tempdir().expect("tempdir") };
    let made = init_options(other.store.clone(), pass(), "other");
    init(made).await.expect("init");
    let theirs = other.store.get(&at).await.expect("there").bytes().await.expect("reads");
    let with = |offset: usize, bytes: &[u8]| {
        // A passphrase slot's cost, with the checksum made right again, as an attacker would.
        use sha2::{Digest, Sha256};
        let mut changed = theirs.to_vec();
        changed[offset..offset + bytes.len()].copy_from_slice(bytes);
        let end = changed.len() - 32;
        let sum = Sha256::digest(&changed[..end]);
        changed[end..].copy_from_slice(&sum);
        Bytes::from(changed)
    };
    // Slot: number 4, kind 1, time 8, epoch 4, label 1 + 5, length 2, algorithm 1, salt 32, memory
    // in KiB.
    let memory = 72 + 4 + 1 + 8 + 4 + 1 + 5 + 2 + 1 + 32;
    let kdf = u32::from_be_bytes(theirs[memory..memory + 4].try_into().expect("four bytes"));
    assert_eq!(kdf, 19_456, "the offset of the cost");
    for (what, bytes, secret_of) in [
        ("of another volume", theirs.clone(), pass()),
        ("8 KiB of memory", with(memory, &8u32.to_be_bytes()), pass()),
        ("1 TiB of memory", with(memory, &(1u32 << 30).to_be_bytes()), pass()),
        ("4 billion passes", with(memory + 4, &u32::MAX.to_be_bytes()), pass()),
        ("unknown suite", with(9, &[9]), pass()),
        ("unknown version", with(8, &[7]), pass()),
        ("an unknown feature", with(28, &9u64.to_be_bytes()), pass()),
        ("another revision", with(36, &9u64.to_be_bytes()), pass()),
        ("of format 1", with(8, &[1]), pass()),
        ("cut", good.slice(..good.len() / 2), secret()),
        ("empty", Bytes::new(), secret()),
        ("a megabyte of zeros", Bytes::from(vec![0; 1 << 20]), secret()),
    ] {
        t.bucket.put(&at, bytes.into()).await.expect("puts");
        let before = objects(&*t.bucket).await;
        let begun = std::time::Instant::now();
        let mut options = t.bench.mount_options();
        options.key = secret_of.into();
        let refused =
            sealfs::stack::mount(options).await.err().unwrap_or_else(|| panic!("{what}: mounts"));
        let spent = begun.elapsed();
        assert!(spent < Duration::from_secs(10), "{what}: {spent:?}");
        eprintln!("{what}: {refused}");
        assert!(objects(&*t.bucket).await == before, "{what}: something was written");
    }
    t.bucket.delete(&at).await.expect("deletes");
    let before = objects(&*t.bucket).await;
    let refused = t.bench.mount_with(|_| {}).await.err().expect("no keyring");
    assert!(matches!(refused, StackError::NoVolume(_)), "{refused}");
    let again = init_options(t.bucket.clone(), secret(), "again");
    assert!(matches!(
        init(again).await,
        Err(StackError::NotEmpty { .. } | StackError::VolumeThere(_))
    ));
    assert!(objects(&*t.bucket).await == before);
    t.bucket.put(&at, good.into()).await.expect("puts");
    let m = t.bench.mount().await;
    assert!(read(&m, "one").await.expect("reads") == contents("one"));
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_answers_with_another_volumes_objects_opens_nothing() {
    // Guards against two volumes of one user that are confused, or exchanged on purpose.
    let (t, other) = (target().await, target().await);
    let theirs = objects(&*other.bucket).await;
    for at in objects(&*t.bucket).await.keys().filter(|at| at.as_ref() != "keyring") {
        t.bucket.delete(at).await.expect("deletes");
    }
    let without = theirs.into_iter().filter(|(at, _)| at.as_ref() != "keyring").collect();
    put_all(&*t.bucket, &without).await;
    for read_only in [false, true] {
        let refused = t.bench.mount_with(|o| o.read_only = read_only).await.err();
        let refused = refused.expect("nothing of it opens");
        assert_eq!(refused.kind(), StackErrorKind::Corrupt, "{refused}");
    }
    let found = fsck(t.bench.fsck_options(), Arc::default()).await;
    assert!(found.is_err() || !found.expect("one").problems.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altered_exchanged_and_foreign_local_files_are_refused_with_a_reason() {
    // Guards against whoever has the disk: a journal or state that was changed, replaced by an
    // older one, or by another volume's, must not be replayed into this volume.
    let (t, other) = (target().await, target().await);
    let dir = |t: &Target| {
        let found = std::fs::read_dir(t.bench.state()).expect("lists");
        let mut found = found.map(|entry| entry.expect("an entry").path());
        found.find(|at| at.join("state").exists()).expect("the volume's")
    };
    let (mine, theirs) = (dir(&t), dir(&other));
    let m = t
        .bench
        .mount_with(|o| o.commit_interval = Duration::from_secs(3600))
        .await
        .expect("mounts");
    write_file(&m.fs, Ino::ROOT, "pending", &contents("pending")).await;
    write_file(&m.fs, Ino::ROOT, "and more", &contents("and more")).await;
    m.fs.fsync_now(Ino::ROOT).expect("syncs");
    write_file(&m.fs, Ino::ROOT, "last", &contents("last")).await;
    m.shutdown(Duration::ZERO).await;
    let log = std::fs::read_dir(mine.join("journal")).expect("lists");
    let log = log.map(|e| e.expect("an entry").path());
    let log = log.filter(|p| p.to_string_lossy().contains("log-")).max().expect("a log");
    let paths = [mine.join("state"), mine.join("journal/journal.id"), log.clone()];
    let kept: Vec<_> = paths.iter().map(|p| std::fs::read(p).expect("reads")).collect();
    let flip = |n: usize, at: usize| {
        let mut bytes = kept[n].clone();
        bytes[at] ^= 0x20;
        std::fs::write(&paths[n], bytes).expect("writes");
    };
    let size = kept[0].len();
    let found = kept[2].windows(4).enumerate().filter(|(_, w)| w == b"sJR1");
    let frames: Vec<usize> = found.map(|(at, _)| at).collect();
    for (what, says) in [
        ("state altered", "state"),
        ("state of another volume", "state"),
        ("identity altered", "journal"),
        ("journal of another volume", "another volume"),
        ("record altered", "damaged"),
        ("header altered", "damaged"),
    ] {
        match what {
            "state altered" => flip(0, size / 2),
            "state of another volume" => {
                std::fs::copy(theirs.join("state"), &paths[0]).map(|_| ()).expect("copies");
            }
            "identity altered" => flip(1, 60),
            "journal of another volume" => {
                let from = theirs.join("journal/journal.id");
                std::fs::copy(from, &paths[1]).map(|_| ()).expect("copies");
            }
            // Of the last three records the first: it was synced, as the others testify.
            "record altered" => flip(2, frames[frames.len() - 3] + 2_000),
            _ => flip(2, 100),
        }
        let refused =
            t.bench.mount_with(|_| {}).await.err().unwrap_or_else(|| panic!("{what}: mounts"));
        assert!(refused.to_string().contains(says), "{what}: {refused}");
        assert_eq!(refused.kind(), StackErrorKind::Corrupt, "{what}: {refused}");
        for (path, bytes) in paths.iter().zip(&kept) {
            std::fs::write(path, bytes).expect("writes");
        }
    }
    // Put right, everything is there.
    let m = t.bench.mount().await;
    for name in ["pending", "and more", "last", "one"] {
        assert!(read(&m, name).await.expect("reads") == contents(name), "{name}");
    }
    find(&m.fs, "last").await;
    m.shutdown(LONG).await;
}

async fn put_keyring(store: &dyn ObjectStore, ring: &Keyring) {
    store.put(&Path::from("keyring"), ring.to_bytes().into()).await.expect("puts");
}

/// A second slot, of somebody who will be removed.
async fn with_a_leaver(t: &Target) -> (Keyring, VolumeKeys) {
    let mut ring = keyring(&*t.bucket).await;
    let keys = ring.unlock(&secret()).expect("opens");
    ring.add_slot(&keys, &key_file(66), "leaver", KdfParams::FLOOR, 0).expect("adds");
    put_keyring(&*t.bucket, &ring).await;
    (ring, keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_whose_keys_were_rotated_goes_on_with_what_was_there_and_pending() {
    // Guards against a rotation after which old objects, or a journal that was sealed before it,
    // do not open: a mount that was away with changes pending comes back in the third epoch.
    let t = target().await;
    let late = |o: &mut sealfs::stack::MountOptions| o.commit_interval = LONG * 100;
    let m = t.bench.mount_with(late).await.expect("mounts");
    write_file(&m.fs, Ino::ROOT, "pending", &contents("pending")).await;
    m.shutdown(Duration::ZERO).await;
    let mut ring = keyring(&*t.bucket).await;
    let first = ring.unlock(&secret()).expect("opens");
    let second = ring.rotate(&first).expect("rotates");
    let third = ring.rotate(&second).expect("rotates");
    put_keyring(&*t.bucket, &ring).await;
    let m = t.bench.mount().await;
    for name in FILES.into_iter().chain(["pending"]) {
        assert!(read(&m, name).await.expect("reads") == contents(name), "{name}");
    }
    write_file(&m.fs, Ino::ROOT, "new", &contents("new")).await;
    assert!(m.shutdown(LONG).await);
    // What is written now is sealed in the epoch of now.
    let all = objects(&*t.bucket).await;
    let epoch = |keys: &VolumeKeys, at: &Path| {
        let header = all[at].first_chunk().expect("a header");
        keys.object_opener(at.as_ref(), header).map(|(epoch, _)| epoch)
    };
    let segments: Vec<_> = all.keys().filter(|k| k.as_ref().starts_with("seg/")).collect();
    let new: Vec<_> = segments.iter().filter(|at| epoch(&third, at) == Ok(3)).collect();
    assert!(!new.is_empty() && new.iter().all(|at| epoch(&second, at).is_err()));
    for at in t.segments.values() {
        assert_eq!(epoch(&third, at), Ok(1), "{at}");
    }
    let report = t.bench.fsck(|o| o.data = true).await;
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let m = t.bench.mount_with(|o| o.read_only = true).await.expect("mounts");
    assert!(read(&m, "new").await.expect("reads") == contents("new"));
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_keyring_or_one_forged_from_old_keys_is_refused_in_a_sentence() {
    // Guards against somebody who was removed, keeps the keyring of before and his secret, knows
    // the root of then, and can write the bucket: a machine that was here since must not seal
    // another byte under keys that he knows.
    let t = target().await;
    let (before, keys) = with_a_leaver(&t).await;
    t.bench.mount().await.shutdown(LONG).await;
    let mut ring = before.clone();
    ring.remove_slot(&keys, 2).expect("removes");
    put_keyring(&*t.bucket, &ring).await;
    t.bench.mount().await.shutdown(LONG).await;
    let his = t.bench.mount_with(|o| o.key = key_file(66).into()).await.err();
    assert_eq!(his.expect("refused").kind(), StackErrorKind::Secret);

    let known = before.unlock(&key_file(66)).expect("his copy opens");
    let mut forged = before.clone();
    let evil = forged.rotate(&known).expect("he can make one");
    let mut ahead = forged.clone();
    ahead.rotate(&evil).expect("and go on");
    let revision = |ring: &Keyring| ring.revision();
    assert!(revision(&ahead) > revision(&ring));
    for (what, bad, says) in [
        ("put back", &before, "key epoch 1, this machine has seen 2"),
        ("forged in the same epoch", &forged, "does not continue"),
        ("forged and ahead", &ahead, "does not continue"),
    ] {
        put_keyring(&*t.bucket, bad).await;
        let all = objects(&*t.bucket).await;
        for read_only in [false, true] {
            let refused = t.bench.mount_with(|o| o.read_only = read_only).await.err();
            let refused = refused.unwrap_or_else(|| panic!("{what}: mounts"));
            assert!(refused.to_string().contains(says), "{what}: {refused}");
            assert_eq!(refused.kind(), StackErrorKind::Corrupt, "{what}");
            assert!(refused.hint().expect("one").contains("--accept-rollback"), "{what}");
            assert!(!refused.to_string().contains("commit"), "{what}: {refused}");
        }
        let checked = fsck(t.bench.fsck_options(), Arc::default()).await;
        assert!(checked.is_err_and(|e| e.to_string().contains(says)), "{what}: fsck");
        assert!(objects(&*t.bucket).await == all, "{what}: something was written");
    }
    put_keyring(&*t.bucket, &ring).await;
    let m = t.bench.mount().await;
    assert!(read(&m, "one").await.expect("reads") == contents("one"));
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyring_of_an_older_revision_is_refused_as_such_and_may_be_accepted() {
    // Guards against an added slot that vanishes, reported as a commit number it has nothing to
    // do with; who put the keyring back on purpose says so.
    let t = target().await;
    let before = keyring(&*t.bucket).await;
    with_a_leaver(&t).await;
    t.bench.mount().await.shutdown(LONG).await;
    put_keyring(&*t.bucket, &before).await;
    let refused = t.bench.mount_with(|_| {}).await.err().expect("older");
    assert!(matches!(refused, StackError::KeyringRollback { .. }), "{refused}");
    let says = "the keyring is older than what this machine has seen: it is at revision 1, this \
                machine has seen 2";
    assert_eq!(refused.to_string(), says);
    let report = t.bench.fsck(|_| {}).await;
    assert!(report.problems.iter().any(|p| p.what == says), "{:?}", report.problems);
    t.bench
        .mount_with(|o| o.accept_rollback = Accept::ALL)
        .await
        .expect("accepted")
        .shutdown(LONG)
        .await;
    t.bench.mount().await.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_another_format_or_with_unknown_features_is_refused_with_its_own_status() {
    // Guards against "damaged" for what another version made, and against writing to what this
    // one only knows how to read.
    let t = target().await;
    let at = Path::from("keyring");
    let good = keyring(&*t.bucket).await.to_bytes();
    for (offset, what) in [(8, "format 1"), (35, "features")] {
        use sha2::{Digest, Sha256};
        let mut other = good[..good.len() - 32].to_vec();
        other[offset] = 1;
        let sum = Sha256::digest(&other);
        other.extend_from_slice(&sum);
        t.bucket.put(&at, other.into()).await.expect("puts");
        for read_only in [false, true] {
            let refused = t.bench.mount_with(|o| o.read_only = read_only).await.err();
            let refused = refused.unwrap_or_else(|| panic!("{what}: mounts"));
            assert_eq!(refused.kind(), StackErrorKind::Format, "{refused}");
            assert!(refused.to_string().contains(what) && refused.hint().is_some(), "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_mount_and_its_follower_go_on_in_the_new_epoch_without_damage() {
    // Guards against a rotation that needs a remount, or that a reader calls damage: the writer
    // is told, the follower finds out by the first object that its keys do not open.
    let t = target().await;
    let m = t.bench.mount().await;
    let aside = tempfile::tempdir().expect("tempdir");
    let mut options = t.bench.mount_options();
    options.read_only = true;
    options.state_dir = aside.path().join("state");
    options.cache_dir = aside.path().join("cache");
    options.refresh = Duration::from_millis(50);
    let follower = sealfs::stack::mount(options).await.expect("follows");
    let by = KeyOptions {
        store: options_of(t.bench.store.clone()),
        key: secret().into(),
        state_dir: t.bench.state(),
    };
    let rotated = change_keyring(&by, |ring, keys| Ok(((), ring.rotate(keys)?))).await;
    let rotated = rotated.expect("rotates");
    assert_eq!((rotated.keyring.epoch(), rotated.notes.len()), (2, 0));
    m.follow_config().await;
    write_file(&m.fs, Ino::ROOT, "new", &contents("new")).await;
    assert!(m.sync(LONG).await);
    let all = objects(&*t.bucket).await;
    let old = t.segments.values().collect::<BTreeSet<_>>();
    let new = all.keys().filter(|k| k.as_ref().starts_with("seg/") && !old.contains(k));
    for at in new {
        let header = all[at].first_chunk().expect("a header");
        assert_eq!(rotated.keys.object_opener(at.as_ref(), header).map(|(e, _)| e), Ok(2), "{at}");
    }
    let begun = std::time::Instant::now();
    loop {
        match read(&follower, "new").await {
            Ok(got) => break assert!(got == contents("new")),
            Err(e) => assert!(begun.elapsed() < LONG, "the follower does not see it: {e:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for mount in [&m, &follower] {
        assert!(read(mount, "one").await.expect("reads") == contents("one"));
        assert_eq!(mount.control.status().warnings, Vec::<String>::new());
    }
    follower.shutdown(LONG).await;
    assert!(m.shutdown(LONG).await);
    t.bench.mount().await.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_whose_key_was_removed_says_so_and_loses_nothing() {
    // Guards against a mount that stops, or goes on in silence, when its own slot is taken out.
    let t = target().await;
    let (_, keys) = with_a_leaver(&t).await;
    let m = t.bench.mount_with(|o| o.key = key_file(66).into()).await.expect("mounts");
    let mut ring = keyring(&*t.bucket).await;
    let ours = ring.remove_slot(&keys, 2).expect("removes");
    put_keyring(&*t.bucket, &ring).await;
    m.follow_config().await;
    let warnings = m.control.status().warnings;
    assert!(warnings.iter().any(|w| w.contains("was removed")), "{warnings:?}");
    write_file(&m.fs, Ino::ROOT, "late", &contents("late")).await;
    assert!(m.shutdown(LONG).await);
    assert_eq!(ours.epoch(), 2);
    let m = t.bench.mount().await;
    assert!(read(&m, "late").await.expect("reads") == contents("late"));
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_the_keyring_at_the_same_time_are_all_made() {
    // Guards against the second of two commands writing over the work of the first: eight at
    // once, of which each adds its own slot and half begin an epoch.
    let bench = Bench::new().await;
    let add = |n: u8| {
        let by = KeyOptions {
            store: options_of(bench.store.clone()),
            key: secret().into(),
            state_dir: bench.state(),
        };
        tokio::spawn(async move {
            let change = |ring: &mut Keyring, keys: &VolumeKeys| {
                ring.add_slot(keys, &key_file(n), "", KdfParams::FLOOR, 0)?;
                Ok(((), if n.is_multiple_of(2) { ring.rotate(keys)? } else { keys.clone() }))
            };
            change_keyring(&by, change).await.map(drop)
        })
    };
    let all: Vec<_> = (1..=6).map(add).collect();
    for one in all {
        one.await.expect("runs").expect("changes");
    }
    let ring = keyring(&*bench.store).await;
    assert_eq!((ring.slots().len(), ring.epoch()), (7, 4));
    for n in 1..=6 {
        ring.unlock(&key_file(n)).expect("opens");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_keyring_is_not_built_upon() {
    // Guards against `sealfs key` making an old keyring that somebody put back the newest.
    let t = target().await;
    let before = keyring(&*t.bucket).await;
    with_a_leaver(&t).await;
    t.bench.mount().await.shutdown(LONG).await;
    put_keyring(&*t.bucket, &before).await;
    let by = KeyOptions {
        store: options_of(t.bench.store.clone()),
        key: secret().into(),
        state_dir: t.bench.state(),
    };
    let refused = change_keyring(&by, |ring, keys| Ok(((), ring.rotate(keys)?))).await;
    assert!(matches!(refused, Err(StackError::KeyringRollback { .. })), "{refused:?}");
    assert!(keyring(&*t.bucket).await == before);
}
