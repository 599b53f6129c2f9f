//! Two copies of one state directory (a cloned disk, a restored virtual machine), fenced mounts,
//! and what `recover` gets out of the journals that are set aside.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::volume::{Bench, CALLER, LONG, find, read_file, secret, write_file};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::base::Ino;
use sealfs::fs::{SetAttr, WriteFlags, XattrMode};
use sealfs::seal::SALT;
use sealfs::stack::{KeyringSource, Mounted, RecoverOptions, Recovered, StackError, recover};

fn copy_dir(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(done.success());
}

/// A mount that commits only when it is told to.
async fn mount_in(bench: &Bench, state: &Path) -> Result<Mounted, StackError> {
    let change = |o: &mut sealfs::stack::MountOptions| {
        o.state_dir = state.into();
        o.commit_interval = Duration::from_secs(3600);
        o.takeover = true;
    };
    bench.mount_with(change).await
}

/// As a crash: nothing is uploaded.
async fn crash(mounted: Mounted) {
    mounted.shutdown(Duration::ZERO).await;
}

/// The salts of all messages in the journals below a directory.
fn journal_salts(dir: &Path, found: &mut Vec<Vec<u8>>) {
    for entry in walkdir::WalkDir::new(dir).into_iter().map(|e| e.expect("listable")) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("log-") {
            continue;
        }
        let bytes = fs::read(entry.path()).expect("readable");
        found.push(bytes[44..44 + SALT].to_vec()); // the header's, behind its clear part
        let frames = bytes.windows(4).enumerate().filter(|(_, w)| w == b"sJR1");
        found.extend(frames.map(|(at, _)| bytes[at + 32..at + 32 + SALT].to_vec()));
    }
}

async fn bucket_salts(store: &Arc<dyn ObjectStore>, found: &mut Vec<Vec<u8>>) {
    let objects: Vec<_> = store.list(None).try_collect().await.expect("lists");
    for object in objects.iter().filter(|o| o.location.as_ref() != "keyring") {
        let bytes = store.get(&object.location).await.expect("there").bytes().await.expect("reads");
        found.push(bytes[..SALT].to_vec());
    }
}

async fn keyring_copy(bench: &Bench) -> PathBuf {
    let bytes = bench.store.get(&"keyring".into()).await.expect("there").bytes().await;
    let path = bench.local.path().join("keyring-copy");
    fs::write(&path, bytes.expect("reads")).expect("writes");
    path
}

async fn recovered(bench: &Bench, journal: &Path, out: &Path) -> Recovered {
    let keyring = KeyringSource::File(keyring_copy(bench).await);
    let (journal_dir, out_dir) = (journal.to_owned(), out.to_owned());
    recover(RecoverOptions {
        journal_dir,
        out_dir,
        keyring,
        key: secret().into(),
        progress: Default::default(),
    })
    .await
    .expect("recovers")
}

fn one_below(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir).expect("lists").map(|e| e.expect("entry").path());
    let mut directories = entries.filter(|path| path.join("state").exists());
    directories.next().expect("the volume's directory")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloned_state_directory_loses_nothing_and_repeats_no_salt() {
    // Guards against two machines that go on with one journal: records of the one taken for
    // committed because the other's have their numbers, and messages sealed under one key and
    // nonce twice. Copy A and copy B of a state directory are mounted in turn, each taking over
    // from the other, with changes pending when it is fenced.
    let bench = Bench::new().await;
    let a = bench.state();
    let b = bench.local.path().join("state-b");
    let mounted = mount_in(&bench, &a).await.expect("mounts");
    write_file(&mounted.fs, Ino::ROOT, "common", b"before the copy").await;
    assert!(mounted.shutdown(LONG).await);
    copy_dir(&a, &b);

    let first = mount_in(&bench, &a).await.expect("mounts");
    write_file(&first.fs, Ino::ROOT, "of a", b"only in the journal of a").await;
    crash(first).await;
    let second = mount_in(&bench, &b).await.expect("mounts");
    for n in 0..9 {
        write_file(&second.fs, Ino::ROOT, &format!("of b {n}"), b"committed by b").await;
    }
    assert!(second.sync(LONG).await);
    write_file(&second.fs, Ino::ROOT, "pending of b", b"only in the journal of b").await;
    crash(second).await;

    // The bucket is ahead of the journal of a, under the same name and with higher numbers.
    let first = mount_in(&bench, &a).await.expect("mounts");
    let aside = first.set_aside.clone().expect("its pending changes were overtaken");
    assert_eq!(read_file(&first.fs, "of b 3").await, "committed by b");
    assert!(first.fs.lookup(Ino::ROOT, b"of a".to_vec()).await.is_err(), "never replayed");
    write_file(&first.fs, Ino::ROOT, "of a again", b"a goes on").await;
    assert!(first.shutdown(LONG).await);
    let out = bench.local.path().join("out-a");
    let done = recovered(&bench, &aside, &out).await;
    assert_eq!((done.files, done.partial), (1, 0), "{done:?}");
    assert_eq!(fs::read(out.join("of a")).expect("recovered"), b"only in the journal of a");

    // And b finds that a has gone on.
    let second = mount_in(&bench, &b).await.expect("mounts");
    let aside = second.set_aside.clone().expect("overtaken in its turn");
    assert_eq!(read_file(&second.fs, "of a again").await, "a goes on");
    assert!(second.shutdown(LONG).await);
    let out = bench.local.path().join("out-b");
    assert_eq!(recovered(&bench, &aside, &out).await.files, 1);
    assert_eq!(fs::read(out.join("pending of b")).expect("there"), b"only in the journal of b");
    // Without anything pending the same directory just goes on.
    let again = mount_in(&bench, &b).await.expect("mounts");
    assert_eq!(again.set_aside, None);
    assert!(again.shutdown(LONG).await);
    assert_eq!(bench.fsck(|o| o.data = true).await.problems, []);

    let mut salts = Vec::new();
    journal_salts(bench.local.path(), &mut salts);
    bucket_salts(&bench.store, &mut salts).await;
    let distinct: BTreeSet<_> = salts.iter().collect();
    // The copies share what was in the directory when it was copied, and nothing since.
    let mut copied = Vec::new();
    journal_salts(&a, &mut copied);
    assert!(salts.len() > 40, "{}", salts.len());
    let twice = salts.len() - distinct.len();
    let common = 2 + 2; // the header of the first file, and the records of `common`
    assert!(twice <= common + 4, "{twice} of {} salts repeat", salts.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_with_changes_that_were_committed_elsewhere_does_not_apply_them_again() {
    // Guards against a restored backup of a machine: what its journal holds was committed long
    // ago, and the files have changed since.
    let bench = Bench::new().await;
    let (a, b) = (bench.state(), bench.local.path().join("state-b"));
    let mounted = mount_in(&bench, &a).await.expect("mounts");
    let ino = write_file(&mounted.fs, Ino::ROOT, "f", b"first").await;
    crash(mounted).await;
    copy_dir(&a, &b);
    let mounted = mount_in(&bench, &a).await.expect("mounts");
    assert_eq!(mounted.set_aside, None, "replayed");
    assert!(mounted.sync(LONG).await);
    let newer = Bytes::from_static(b"newer");
    mounted.fs.write(ino, 0, newer, WriteFlags::default()).await.expect("writes");
    assert!(mounted.shutdown(LONG).await);
    let restored = mount_in(&bench, &b).await.expect("mounts");
    assert_eq!(read_file(&restored.fs, "f").await, "newer");
    assert!(restored.set_aside.is_some(), "kept for a person");
    assert!(restored.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_mount_keeps_what_it_had_and_recover_exports_it_while_it_runs() {
    // Guards against work lost to a takeover: whole files, parts of files, links, attributes,
    // names; with the bucket not asked, the fenced mount still there, and nothing of its journal
    // changed.
    let bench = Bench::new().await;
    let first = mount_in(&bench, &bench.state()).await.expect("mounts");
    let dir = first.fs.mkdir(CALLER, Ino::ROOT, "known".into(), 0o755, 0).await.expect("mkdir").ino;
    let old = write_file(&first.fs, dir, "old", &[b'o'; 100_000]).await;
    assert!(first.sync(LONG).await);
    let big: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
    let made = first.fs.mkdir(CALLER, Ino::ROOT, "new dir".into(), 0o750, 0).await.expect("mkdir");
    let new = write_file(&first.fs, made.ino, "big", &big).await;
    let part = Bytes::from(vec![b'p'; 5_000]);
    first.fs.write(old, 20_000, part, WriteFlags::default()).await.expect("writes");
    write_file(&first.fs, dir, "in a known directory", b"short").await;
    write_file(&first.fs, dir, "empty", b"").await;
    first.fs.symlink(CALLER, made.ino, "link".into(), "big".into()).await.expect("symlink");
    first.fs.link(new, Ino::ROOT, b"hard".to_vec()).await.expect("link");
    let set = SetAttr { perm: Some(0o640), ..SetAttr::default() };
    first.fs.setattr(CALLER, new, set).await.expect("chmod");
    let (name, value) = (b"user.note".to_vec(), b"kept".to_vec());
    first.fs.setxattr(new, name, value, XattrMode::default()).await.expect("setxattr");
    write_file(&first.fs, Ino::ROOT, "removed again", b"x").await;
    first.fs.unlink(Ino::ROOT, b"removed again".to_vec()).await.expect("unlink");

    let second = mount_in(&bench, &bench.local.path().join("state-b")).await.expect("takes over");
    write_file(&second.fs, Ino::ROOT, "second's", b"second").await;
    assert!(second.sync(LONG).await);
    assert!(!first.sync(LONG).await, "fenced");
    let status = first.control.status();
    let volume = one_below(&bench.state());
    let hint = format!("sealfs recover {}", volume.join("journal").display());
    assert!(status.warnings.iter().any(|w| w.contains(&hint)), "{:?}", status.warnings);
    assert!(first.fs.mkdir(CALLER, Ino::ROOT, "no".into(), 0o755, 0).await.is_err());

    let journal = volume.join("journal");
    // But for spare files, which the mount, which is running, makes when it comes to it.
    let listing = |dir: &Path| -> BTreeSet<(PathBuf, u64)> {
        let entries = fs::read_dir(dir).expect("lists").map(|e| e.expect("entry"));
        let is_spare = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with("free-");
        let kept = entries.filter(|e| !is_spare(e));
        kept.map(|e| (e.path(), e.metadata().expect("stats").len())).collect()
    };
    let before = listing(&journal);
    let out = bench.local.path().join("out");
    let done = recovered(&bench, &journal, &out).await;
    assert_eq!(listing(&journal), before);
    let remarks = done.remarks.join("\n");
    assert!(fs::read(out.join("new dir/big")).expect("recovered") == big);
    assert!(fs::read(out.join("hard")).expect("a hard link") == big);
    let at = out.join(format!("#{dir}"));
    assert_eq!(fs::read(at.join("in a known directory")).expect("recovered"), b"short");
    assert_eq!(fs::read(at.join("empty")).expect("recovered"), b"");
    assert_eq!(fs::read_link(out.join("new dir/link")).expect("a link"), Path::new("big"));
    let partial = fs::read(out.join(format!("#{old}"))).expect("the part");
    assert!(partial.len() == 100_000 && partial[20_000..25_000] == [b'p'; 5_000]);
    assert!(partial[..20_000].iter().chain(&partial[25_000..]).all(|b| *b == 0));
    assert!(remarks.contains(&format!("partial: #{old}: only bytes 20000..25000")), "{remarks}");
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(out.join("hard")).expect("stats").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(!out.join("removed again").exists());
    assert_eq!((done.files, done.partial), (4, 1), "{done:?}");
    // A second export beside the first is refused rather than mixed with it.
    let keyring = KeyringSource::File(keyring_copy(&bench).await);
    let again = |keyring| RecoverOptions {
        journal_dir: journal.clone(),
        out_dir: out.clone(),
        keyring,
        key: secret().into(),
        progress: Default::default(),
    };
    assert!(recover(again(keyring)).await.is_err());
    // One that was cut off is begun again by the same command, and leaves no trace.
    std::fs::write(out.join(sealfs::stack::UNFINISHED_NAME), "").expect("writes");
    std::fs::write(out.join("half"), "of a file").expect("writes");
    let keyring = KeyringSource::File(keyring_copy(&bench).await);
    let options = again(keyring);
    let progress = options.progress.clone();
    let anew = recover(options).await.expect("begins again");
    assert_eq!((anew.files, anew.bytes), (done.files, done.bytes));
    assert!(!out.join("half").exists() && !out.join(sealfs::stack::UNFINISHED_NAME).exists());
    let of = progress.of.load(std::sync::atomic::Ordering::Relaxed);
    assert!(of >= anew.bytes && of > 0, "{of}");

    crash(first).await;
    assert!(second.shutdown(LONG).await);
    let back = mount_in(&bench, &bench.state()).await.expect("mounts");
    assert!(back.set_aside.is_some());
    assert_eq!(read_file(&back.fs, "second's").await, "second");
    assert_eq!(read_file(&back.fs, "known/old").await, vec![b'o'; 100_000]);
    find(&back.fs, "known").await;
    assert!(back.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_gives_what_still_opens() {
    // Guards against one flipped bit on a dying disk taking everything else with it: a mount
    // refuses such a journal, and then `recover` is all there is.
    let bench = Bench::new().await;
    let mounted = mount_in(&bench, &bench.state()).await.expect("mounts");
    for n in 0..20 {
        write_file(&mounted.fs, Ino::ROOT, &format!("f{n}"), &[n as u8; 9_000]).await;
    }
    mounted.fs.fsync_now(Ino::ROOT).expect("syncs");
    for n in 20..22 {
        write_file(&mounted.fs, Ino::ROOT, &format!("f{n}"), &[n as u8; 9_000]).await;
    }
    crash(mounted).await;
    let journal = one_below(&bench.state()).join("journal");
    let log = fs::read_dir(&journal).expect("lists").map(|e| e.expect("entry").path());
    let is_log =
        |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("log-"));
    let log = log.filter(is_log).min().expect("a log file");
    let mut bytes = fs::read(&log).expect("reads");
    bytes[100_000] ^= 1;
    fs::write(&log, bytes).expect("writes");
    let refused = mount_in(&bench, &bench.state()).await.err().expect("damaged");
    assert!(refused.to_string().contains("damaged"), "{refused}");
    assert!(refused.hint().is_some_and(|h| h.contains("sealfs recover")), "{:?}", refused.hint());
    let out = bench.local.path().join("out");
    let done = recovered(&bench, &journal, &out).await;
    assert!(done.remarks.iter().any(|r| r.starts_with("damaged: ")), "{done:?}");
    let mut whole = 0;
    for entry in fs::read_dir(&out).expect("lists").map(|e| e.expect("entry")) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(n) = name.strip_prefix('f').and_then(|n| n.parse::<u8>().ok()) {
            let read = fs::read(entry.path()).expect("reads");
            assert!(read.iter().all(|b| *b == n), "{name}");
            whole += u32::from(read.len() == 9_000);
        }
    }
    assert_eq!(whole, 21, "all but the one whose record was damaged: {done:?}");
}
