//! The real daemon under faults that the other tests leave out: storms of refusals and cut
//! answers, credentials that expire, a slow store, a full local disk, a disk that fails to sync,
//! a holder that sleeps through a takeover; and what its memory shows to `gcore`.

use crate::e2e;
use crate::needs_fuse;
use crate::volume;
use crate::ways::memory_in;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::e2e::noise;
use crate::mounts::{UMOUNTS, Volume, wait_at_most, wait_until};
use crate::support::disk_sim::{Fault as DiskFault, SimDisk};
use crate::support::s3server::{Fault, FaultKind, Outage, RequestKind, S3Server};
use sealfs::base::Ino;
use sealfs::seal::{Keyring, Secret};
use sealfs::stack::LocalDisk;

const MEMORY_MAX: u64 = 256 << 20;

fn status_text(v: &Volume, field: &str) -> String {
    v.status(field).to_string()
}

/// Files, names and overwrites; returns what must be there afterwards.
fn work(v: &Volume, round: u64) -> Vec<(String, Vec<u8>)> {
    let mut expected = Vec::new();
    for n in 0..12 {
        let name = format!("r{round} f{n}");
        let mut contents = noise(round * 100 + n, 30_000 + 40_000 * n as usize);
        fs::write(v.at("new"), &contents).expect("writes");
        fs::rename(v.at("new"), v.at(&name)).expect("renames");
        let mut file = fs::OpenOptions::new().append(true).open(v.at(&name)).expect("opens");
        file.write_all(b"appended").expect("appends");
        file.sync_all().expect("syncs locally");
        contents.extend_from_slice(b"appended");
        expected.push((name, contents));
    }
    expected
}

fn fsck(v: &Volume, more: &[&str], status: i32) -> String {
    let (url, pass, state) = (v.url(), v.text("passphrase"), v.text("state"));
    let args = ["fsck", &url, "--passphrase-file", &pass, "--state-dir", &state];
    let output = v.run(&[&args[..], more].concat());
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(output.status.code(), Some(status), "{text}");
    text
}

/// What a machine that has nothing sees is exactly this.
fn verify_elsewhere(v: &Volume, expected: &[(String, Vec<u8>)]) {
    v.forget_local_state();
    v.mount(&[]);
    assert_eq!(fs::read_dir(v.vault()).expect("lists").count(), expected.len());
    for (name, contents) in expected {
        assert!(fs::read(v.at(name)).expect("reads") == *contents, "{name}");
    }
    v.umount();
    assert!(fsck(v, &["--data"], 0).contains("nothing is wrong"));
}

#[test]
fn storms_cut_bodies_and_lost_answers_end_without_loss_or_repetition() {
    // Guards against a retry that is given up, an answer cut in the middle that is taken for an
    // object, and a commit that is applied again because its answer was lost.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&["--commit-interval", "200ms", "--read-timeout", "20s"]);
    let mut expected = Vec::new();
    let storms: [(&str, Vec<Fault>); 4] = [
        ("slow down", vec![Fault::new(FaultKind::SLOW_DOWN).rate(0.5)]),
        ("lost answers", vec![Fault::new(FaultKind::LoseAnswer).on(RequestKind::Put).rate(0.4)]),
        (
            "cut and truncated bodies",
            vec![
                Fault::new(FaultKind::CutBody).on(RequestKind::Get).rate(0.2),
                Fault::new(FaultKind::Truncate).on(RequestKind::Get).rate(0.2),
            ],
        ),
        (
            "everything",
            vec![
                Fault::new(FaultKind::INTERNAL).rate(0.15),
                Fault::new(FaultKind::Reset).rate(0.1),
                Fault::new(FaultKind::CONFLICT).on(RequestKind::Put).rate(0.1),
                Fault::new(FaultKind::LoseAnswer).rate(0.1),
            ],
        ),
    ];
    for (round, (what, faults)) in storms.into_iter().enumerate() {
        eprintln!("{what}");
        faults.into_iter().for_each(|fault| server.faults().add(fault));
        expected.extend(work(&v, round as u64));
        std::thread::sleep(Duration::from_secs(2));
        // What was written is read as it was written, meanwhile.
        for (name, contents) in expected.iter().rev().take(3) {
            e2e::drop_pages(&v.at(name));
            assert!(fs::read(v.at(name)).expect("reads") == *contents, "{what}: {name}");
        }
        server.faults().clear();
        v.ok(&["sync", &v.text("vault")]);
        assert_eq!(status_text(&v, "warnings"), "[]", "{what}: taken for damage");
    }
    let memory = v.status("resident_bytes").as_u64().expect("a number");
    assert!(memory < MEMORY_MAX, "{memory} bytes resident");
    v.umount();
    verify_elsewhere(&v, &expected);
}

#[test]
fn refused_credentials_and_a_wrong_clock_are_said_and_heal_by_themselves() {
    // Guards against a refusal that is retried as if it were noise, that is final although the
    // credentials come back, or that nobody is told of.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&["--commit-interval", "200ms"]);
    let mut expected = Vec::new();
    for (round, (kind, says)) in [
        (FaultKind::Status(400, "ExpiredToken"), "ExpiredToken"),
        (FaultKind::Status(403, "RequestTimeTooSkewed"), "RequestTimeTooSkewed"),
        (FaultKind::DENIED, "AccessDenied"),
    ]
    .into_iter()
    .enumerate()
    {
        server.faults().add(Fault::new(kind));
        expected.extend(work(&v, round as u64));
        wait_until(says, || status_text(&v, "state") == "\"offline\"");
        let reason = status_text(&v, "reason");
        assert!(reason.contains(says), "{says}: {reason}");
        server.faults().clear();
        // No command helps it: only time.
        wait_at_most(Duration::from_secs(40), "it goes on", || {
            v.status("pending_bytes").as_u64() == Some(0)
                && status_text(&v, "state") == "\"online\""
        });
    }
    v.umount();
    verify_elsewhere(&v, &expected);
}

#[test]
fn a_store_that_takes_two_seconds_for_everything_slows_nobody_who_writes() {
    // Guards against a request thread that waits for the network, and against timeouts that
    // take slow for dead.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&[]);
    server.faults().add(Fault::new(FaultKind::Delay(Duration::from_secs(2))));
    let begun = Instant::now();
    let expected = work(&v, 7);
    assert!(begun.elapsed() < Duration::from_secs(8), "writing took {:?}", begun.elapsed());
    v.ok(&["sync", &v.text("vault")]);
    let memory = v.status("resident_bytes").as_u64().expect("a number");
    assert!(memory < MEMORY_MAX, "{memory} bytes resident");
    v.umount();
    server.faults().clear();
    verify_elsewhere(&v, &expected);
}

#[test]
fn a_mount_that_follows_an_umount_at_once_waits_and_has_its_cache() {
    // Guards against "going on without a cache" and against refusals for half a minute, when the
    // next mount meets the daemon of the last, which still uploads, compacts and closes. The store
    // is slow, and commits are many.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    server.faults().add(Fault::new(FaultKind::Delay(Duration::from_millis(30))));
    let flags = ["--commit-interval", "20ms"];
    for round in 0..10u8 {
        v.mount(&flags);
        let dir = v.at(&format!("round {round}"));
        fs::create_dir(&dir).expect("makes a directory");
        for n in 0..40 {
            fs::write(dir.join(n.to_string()), vec![round; 3000]).expect("writes");
        }
        // As umount(8) does, with nobody who waits for the daemon.
        umount(&v.vault());
    }
    server.faults().clear();
    v.mount(&flags);
    for round in 0..10u8 {
        let read = fs::read(v.at(&format!("round {round}/39"))).expect("reads");
        assert_eq!(read, vec![round; 3000], "round {round}");
    }
    v.umount();
    let log = v.log();
    for bad in ["without a cache", "took too long", "compaction of metadata stopped"] {
        assert!(!log.contains(bad), "{bad}");
    }
    assert!(log.contains("waiting for process"), "no mount was early: the test tests nothing");
}

/// Unmounts as umount(8) does.
fn umount(at: &Path) {
    let _none_is_made = UMOUNTS.read().unwrap_or_else(PoisonError::into_inner);
    for (tool, flags) in [("umount", &[][..]), ("fusermount3", &["-u"][..])] {
        if Command::new(tool).args(flags).arg(at).status().is_ok_and(|s| s.success()) {
            return;
        }
    }
    panic!("{} cannot be unmounted", at.display());
}

#[test]
fn a_page_in_answer_to_an_upload_is_no_upload() {
    // Guards against "everything is in the bucket" on the word of a captive portal, against a
    // journal that lets go of what is nowhere else, and against reads that take a page for damage.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    let old = noise(8, 300_000);
    v.mount(&[]);
    fs::write(v.at("old"), &old).expect("writes");
    v.umount();
    v.forget_local_state();
    v.mount(&["--commit-interval", "200ms", "--read-timeout", "3s"]);
    server.faults().add(Fault::new(FaultKind::PAGE).on(RequestKind::Put).key("/seg/"));
    let new = noise(9, 700_000);
    fs::write(v.at("new"), &new).expect("writes");
    let said = v.fails(&["sync", "--stall-timeout", "3s", &v.text("vault")], 8);
    assert!(said.contains("only in the local journal"), "{said}");
    assert_eq!(status_text(&v, "state"), "\"offline\"");
    assert!(status_text(&v, "reason").contains("answers in its place"), "{}", v.log());
    server.faults().add(Fault::new(FaultKind::PAGE));
    fs::read(v.at("old")).expect_err("no page is the file");
    assert_eq!(status_text(&v, "warnings"), "[]", "taken for damage");
    server.faults().clear();
    v.ok(&["sync", &v.text("vault")]);
    assert!(fs::read(v.at("old")).expect("reads") == old);
    v.umount();
    verify_elsewhere(&v, &[("old".into(), old), ("new".into(), new)]);
}

#[test]
fn uploads_that_are_too_large_are_cut_and_those_refused_for_good_are_not_repeated() {
    // Guards against the same megabytes sent again and again to a store, or a proxy, that never
    // takes them, and against a status that calls that an outage and names no limit.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&["--commit-interval", "200ms"]);
    server.faults().add(Fault::new(FaultKind::TooLarge(1 << 20)));
    let large = noise(10, 6 << 20);
    fs::write(v.at("large"), &large).expect("writes");
    v.ok(&["sync", "--stall-timeout", "60s", &v.text("vault")]);
    let warnings = status_text(&v, "warnings");
    assert!(warnings.contains("413") && warnings.contains("client_max_body_size"), "{warnings}");
    server.faults().clear();
    let kind = FaultKind::Status(501, "NotImplemented");
    server.faults().add(Fault::new(kind).on(RequestKind::Put).key("/seg/"));
    let before = server.counts();
    let refused = noise(11, 4 << 20);
    fs::write(v.at("refused"), &refused).expect("writes");
    wait_until("it is refused, again and again", || server.counts().put > before.put + 5);
    let sent = server.counts().bytes_in - before.bytes_in;
    assert!(sent < 4 << 20, "{sent} bytes sent of 4 MiB that are refused");
    assert!(status_text(&v, "reason").contains("NotImplemented"), "{}", v.log());
    let warnings = status_text(&v, "warnings");
    assert!(warnings.contains("refuses uploads"), "{warnings}");
    server.faults().clear();
    v.ok(&["sync", &v.text("vault")]);
    let warnings = status_text(&v, "warnings");
    assert!(!warnings.contains("refuses uploads"), "{warnings}");
    v.umount();
    verify_elsewhere(&v, &[("large".into(), large), ("refused".into(), refused)]);
}

#[test]
fn what_is_missing_for_a_moment_is_no_damage_and_what_comes_back_is_none_any_more() {
    // Guards against EIO and a warning that stays because a server lost sight of its bucket, or of
    // an object, for one request; and against a warning that outlives the damage.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    let files: Vec<_> = (0..4).map(|n| (format!("f{n}"), noise(20 + n, 100_000))).collect();
    for (name, contents) in &files {
        v.mount(&[]);
        fs::write(v.at(name), contents).expect("writes");
        v.umount();
    }
    v.forget_local_state();
    v.mount(&["--cache-size", "0"]);
    for (n, (status, code)) in [(404, "NoSuchKey"), (404, "NoSuchBucket")].into_iter().enumerate() {
        let (name, contents) = &files[n];
        fs::metadata(v.at(name)).expect("is known");
        let fault = Fault::new(FaultKind::Status(status, code)).on(RequestKind::Get);
        server.faults().add(fault.key("/seg/").times(2));
        assert!(fs::read(v.at(name)).expect("it is asked for again") == *contents, "{code}");
        assert_eq!(status_text(&v, "warnings"), "[]", "{code}");
    }
    // Gone for longer than anybody waits, then put back.
    let segments: Vec<_> = server.keys().into_iter().filter(|key| key.contains("/seg/")).collect();
    let kept: Vec<_> = segments.iter().map(|k| server.get_raw(k).expect("there")).collect();
    segments.iter().for_each(|key| assert!(server.remove_raw(key)));
    let (name, contents) = &files[2];
    fs::read(v.at(name)).expect_err("it is gone");
    assert!(status_text(&v, "warnings").contains("damaged"), "{}", v.log());
    segments.iter().zip(kept).for_each(|(key, bytes)| server.put_raw(key, bytes));
    assert!(fs::read(v.at(name)).expect("it is back") == *contents);
    assert_eq!(status_text(&v, "warnings"), "[]");
    v.umount();
    verify_elsewhere(&v, &files);
}

/// A small file system for the test; taken away when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(at: &Path, size: &str) -> Option<SmallDisk> {
        fs::create_dir(at).expect("a fresh directory");
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at);
        let done = mount.status().is_ok_and(|s| s.success());
        if !done {
            eprintln!("skipped: a tmpfs cannot be mounted here");
        }
        done.then(|| SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status(); // it goes with the test
    }
}

#[test]
fn a_full_disk_is_enospc_for_writers_and_nothing_else_and_ends_with_the_outage() {
    // Guards against a journal on a full disk that corrupts, stops for good, or blocks readers;
    // and against a cache that needs room it does not have.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    let Some(_state) = SmallDisk::new(&v.path("state"), "96m") else { return };
    let Some(_cache) = SmallDisk::new(&v.path("cache"), "16m") else { return };
    v.mount(&["--read-timeout", "5s"]);
    let large = noise(5, 40 << 20);
    fs::write(v.at("large"), &large).expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    for _ in 0..2 {
        e2e::drop_pages(&v.at("large"));
        assert!(fs::read(v.at("large")).expect("reads through a cache that is too small") == large);
    }
    assert!(status_text(&v, "notes").contains("the cache cannot be written"));
    server.faults().set_outage(Outage::Refused);
    // A program that checks every step, as databases do.
    let mut written = Vec::new();
    let error = (0..200u64).find_map(|n| {
        let (name, contents) = (format!("f{n}"), noise(n, 2 << 20));
        let wrote = fs::File::create(v.at(&name)).and_then(|mut file| {
            file.write_all(&contents)?;
            file.sync_all()
        });
        match wrote {
            Ok(()) => {
                written.push((name, contents));
                None
            }
            Err(e) => Some(e),
        }
    });
    let error = error.expect("96 MiB are not without end");
    let expected = [libc::ENOSPC, libc::EIO];
    assert!(error.raw_os_error().is_some_and(|e| expected.contains(&e)), "{error}");
    assert!(written.len() >= 5, "full after {} files", written.len());
    for (name, contents) in &written {
        assert!(fs::read(v.at(name)).expect("readers go on") == *contents, "{name}");
    }
    let warnings = status_text(&v, "warnings");
    for part in ["has no room, and writers wait", &v.text("state"), " free); free "] {
        assert!(warnings.contains(part), "{part:?} in {warnings}");
    }
    assert!(v.status("journal_disk_free_bytes").as_u64() < Some(64 << 20));
    server.faults().set_outage(Outage::None);
    wait_at_most(Duration::from_secs(60), "it drains", || v.status("pending_bytes") == 0);
    fs::write(v.at("afterwards"), b"there is room again").expect("writes");
    // The kernel still has to tell somebody of the pages it could not write back: once.
    let told = v.run(&["sync", &v.text("vault")]);
    let stderr = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success() || stderr.contains("No space left on device"), "{stderr}");
    v.ok(&["sync", &v.text("vault")]);
    assert!(!status_text(&v, "warnings").contains("has no room"));
    // More than is left in any file of the journal, so its space must have come back.
    fs::write(v.at("large too"), &large).expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    written.push(("large too".into(), large.clone()));
    written.push(("afterwards".into(), b"there is room again".to_vec()));
    written.push(("large".into(), large));
    v.umount();
    // On another machine, with disks of the usual size.
    let args = ["--cache-dir", &v.text("cache2"), "--state-dir", &v.text("state2")];
    let (url, vault, pass) = (v.url(), v.text("vault"), v.text("passphrase"));
    v.ok(&[&["mount", &url, &vault, "--passphrase-file", &pass][..], &args].concat());
    for (name, contents) in &written {
        assert!(fs::read(v.at(name)).expect("reads") == *contents, "{name}");
    }
    v.umount();
}

#[test]
fn a_journal_that_cannot_begin_fails_the_mount_and_says_what_it_needs() {
    // Guards against a mount that works until the first writer has waited a minute for ENOSPC, and
    // against a disk that fills up later without a word in `status`.
    needs_fuse!();
    let v = Volume::create();
    let Some(_state) = SmallDisk::new(&v.path("state"), "40m") else { return };
    let stderr = v.mount_fails(&[], 1);
    for part in
        ["cannot begin: it needs 64 MiB of disk, and there are 39 MiB", "--journal-size 16M"]
    {
        assert!(stderr.contains(part), "{part:?} in {stderr}");
    }
    assert!(!v.is_mounted());
    v.mount(&["--journal-size", "64M"]);
    fs::write(v.at("f"), b"content").expect("writes");
    // Somebody else fills the disk.
    let mut ballast = fs::File::create(v.path("state/ballast")).expect("creates");
    while ballast.write_all(&[0; 4096]).is_ok() {}
    let text = v.ok(&["status", &v.text("vault")]);
    assert!(text.contains("warning   the disk of the local journal is nearly full"), "{text}");
    assert!(text.contains(&v.text("state")), "{text}");
    drop(ballast);
    fs::remove_file(v.path("state/ballast")).expect("own file");
    v.umount();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_failed_to_sync_is_never_believed_again() {
    // Guards against "fsyncgate": Linux forgets a failed write-back, so a second fsync succeeds
    // without the data being there. The error must reach the caller and stay.
    let bench = volume::Bench::new().await;
    let disk = SimDisk::new();
    let change = |o: &mut sealfs::stack::MountOptions| {
        o.disk = LocalDisk(Arc::new(disk.clone()));
        o.commit_interval = Duration::from_secs(3600);
    };
    let m = bench.mount_with(change).await.expect("mounts");
    volume::write_file(&m.fs, Ino::ROOT, "before", b"synced").await;
    m.fs.fsync_now(Ino::ROOT).expect("syncs");
    volume::write_file(&m.fs, Ino::ROOT, "f", b"never on the disk").await;
    disk.fault_at(1, DiskFault::Io);
    for _ in 0..3 {
        m.fs.fsync_now(Ino::ROOT).expect_err("the failure stays");
    }
    let more = m.fs.create(volume::CALLER, Ino::ROOT, b"g".to_vec(), 0o644, 0).await;
    assert!(more.is_err(), "nothing more is taken that could not be kept");
    assert_eq!(volume::read_file(&m.fs, "before").await, "synced", "reading goes on");
    m.shutdown(Duration::from_secs(5)).await;
    let m = bench.mount_with(|_| {}).await.expect("mounts");
    m.shutdown(Duration::from_secs(5)).await;
}

#[test]
fn a_holder_that_slept_through_a_takeover_writes_nothing_more_and_keeps_its_work() {
    // Guards against a laptop that wakes up and goes on writing. The first daemon is stopped
    // with changes pending; a second machine takes over and works; the first is woken.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    // Long enough for the daemon to be stopped before, on a busy machine, too.
    v.mount(&["--commit-interval", "10s"]);
    fs::write(v.at("common"), b"before").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    fs::write(v.at("of the first"), noise(1, 100_000)).expect("writes");
    let first = v.daemon();
    // SAFETY: the process is this test's own daemon.
    assert_eq!(unsafe { libc::kill(first, libc::SIGSTOP) }, 0);
    fs::create_dir(v.path("second")).expect("makes a directory");
    let (url, pass, second) = (v.url(), v.text("passphrase"), v.text("second"));
    let (cache, state, log) = (v.text("cache2"), v.text("state2"), v.text("log2"));
    let args = ["mount", &url, &second, "--passphrase-file", &pass, "--cache-dir", &cache];
    let args = [&args[..], &["--state-dir", &state, "--log-file", &log]].concat();
    let refused = v.fails(&args, 6);
    assert!(refused.contains("--takeover"), "{refused}");
    v.ok(&[&args[..], &["--takeover"]].concat());
    let theirs = noise(2, 200_000);
    fs::write(v.path("second/of the second"), &theirs).expect("writes");
    v.ok(&["sync", &second]);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(first, libc::SIGCONT) }, 0);
    wait_at_most(Duration::from_secs(60), "it notices", || {
        status_text(&v, "state") == "\"fenced\""
    });
    // Until its database handle is exchanged for a reader's, looking a name up may give EIO;
    // nothing is ever taken.
    wait_until("it is read-only", || {
        let error = fs::write(v.at("more"), b"x").expect_err("nothing is taken any more");
        error.raw_os_error() == Some(libc::EROFS)
    });
    assert_eq!(fs::read(v.at("common")).expect("reads on"), b"before");
    let warnings = status_text(&v, "warnings");
    assert!(warnings.contains("sealfs recover "), "{warnings}");
    let volume_dir =
        fs::read_dir(v.path("state")).expect("lists").map(|e| e.expect("entry").path());
    let volume_dir = volume_dir.filter(|p| p.join("journal").exists()).last().expect("a volume");
    let journal = volume_dir.join("journal").display().to_string();
    let out = v.text("out");
    let said = v.ok(&["recover", &journal, &out, "--store", &url, "--passphrase-file", &pass]);
    assert!(said.contains("1 file ("), "{said}");
    let saved = fs::read(v.path("out").join("of the first")).expect("recovered");
    assert!(saved == noise(1, 100_000));
    v.fails(&["recover", &v.text("store"), &out, "--store", &url, "--passphrase-file", &pass], 2);
    let ended = v.run(&["umount", &v.text("vault")]);
    assert_ne!(ended.status.code(), Some(0), "what is pending is not in the bucket");
    if v.is_mounted() {
        v.ok(&["umount", "--lazy", "--force-local", &v.text("vault")]);
    }
    assert!(fs::read(v.path("second/of the second")).expect("reads") == theirs);
    assert!(!v.path("second/of the first").exists());
    v.ok(&["umount", &second]);
    assert!(fsck(&v, &["--data"], 0).contains("nothing is wrong"));
}

#[test]
fn fsck_exits_as_its_table_says() {
    // Guards against a script that takes damage for health because of an exit status.
    needs_fuse!();
    let v = Volume::mounted();
    fs::write(v.at("f"), noise(3, 60_000)).expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    assert!(fsck(&v, &[], 0).contains("mounted read-write meanwhile by"));
    let refused = fsck(&v, &["--repair"], 6);
    assert!(refused.contains("hint: "), "{refused}");
    v.umount();
    let found = walkdir::WalkDir::new(v.path("store/seg")).into_iter().map(|e| e.expect("entry"));
    let segment = found.filter(|e| e.file_type().is_file()).last().expect("a segment").into_path();
    let whole = fs::read(&segment).expect("reads");
    let mut flipped = whole.clone();
    flipped[30_000] ^= 2;
    fs::write(&segment, flipped).expect("writes");
    fsck(&v, &[], 0);
    let text = fsck(&v, &["--data"], 7);
    assert!(text.contains("    /f: ") && text.contains("1 problem found"), "{text}");
    fs::write(&segment, whole).expect("writes");
    assert!(fsck(&v, &["--data"], 0).contains("nothing is wrong"));
    // What a killed mount leaves is no damage, and a repair takes it away.
    let probe = v.path("store/probe");
    fs::create_dir_all(&probe).expect("makes a directory");
    fs::write(probe.join("00112233445566778899aabbccddeeff"), b"x").expect("writes");
    assert!(fsck(&v, &["--repair"], 11).contains("nothing is left"));
    fsck(&v, &["--at-least", "1000"], 7);
    fsck(&v, &["--resume"], 2);
    let (url, state) = (v.url(), v.text("state"));
    fs::write(v.path("wrong"), b"wrong passphrase").expect("writes");
    v.fails(&["fsck", &url, "--passphrase-file", &v.text("wrong"), "--state-dir", &state], 3);
    v.fails(&["fsck", "file:///nowhere/at/all", "--passphrase-file", &v.text("passphrase")], 4);
}

#[test]
fn a_core_of_the_running_daemon_holds_no_key_contents_or_name() {
    // Guards against what is in memory, keys above all, being carried away by a core dump or a
    // crash reporter. gcore as root reads the process as the kernel would dump it; of registers,
    // which every core has, nothing is promised.
    needs_fuse!();
    if Command::new("gcore").arg("--help").output().is_err() {
        eprintln!("skipped: gcore is missing (apt install gdb)");
        return;
    }
    let v = Volume::mounted();
    let (contents, name) = (noise(4, 3_000_000), "a-name-that-nobody-else-has-4711");
    fs::write(v.at(name), &contents).expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    assert_eq!(fs::read(v.at(name)).expect("reads"), contents);
    let keyring = fs::read(v.path("store/keyring")).expect("reads");
    let pass = b"correct horse battery staple".to_vec();
    let secret = Secret::Passphrase(pass.clone().into());
    let keyring = Keyring::parse(&keyring).expect("parses");
    let (_, seed) = keyring.find(&secret).expect("a slot");
    let keys = keyring.unlock(&secret).expect("unlocks");
    let pid = v.daemon();
    let Some(core) = gcore(&v, pid) else {
        v.umount();
        return;
    };
    assert!(memchr(&core, b"sealfs").is_some(), "it is not of the daemon");
    let core = memory_in(&core);
    assert!(in_memory(pid, name.as_bytes()), "the name is not in memory at all");
    let found = |core: &[u8], needle: &[u8]| memchr(core, needle).is_some();
    for (what, bytes) in [
        ("name", name.as_bytes()),
        ("first of the contents", &contents[..32]),
        ("last of the contents", &contents[contents.len() - 32..]),
    ] {
        assert!(!found(&core, bytes), "the {what} is in the core");
    }
    // Keys are not in the memory that is dumped by default either.
    fs::write(format!("/proc/{pid}/coredump_filter"), "0x33").expect("root may");
    let whole = memory_in(&gcore(&v, pid).expect("as before"));
    assert!(whole.len() > 1 << 20 && found(&whole, name.as_bytes()), "{} bytes", whole.len());
    let keys = keys.secrets_for_tests().into_iter().map(|key| key.expose().to_vec());
    for (what, secret) in keys
        .map(|key| ("key", key))
        .chain([("seed", seed.expose_for_tests().to_vec()), ("passphrase", pass)])
    {
        assert!(!found(&core, &secret), "the {what} is in the core");
        assert!(!found(&whole, &secret), "the {what} is in the core with all memory");
    }
    v.umount();
}

/// A core of a running process; `None`, said loudly, where it may not be made.
fn gcore(v: &Volume, pid: i32) -> Option<Vec<u8>> {
    let dumped = Command::new("gcore").arg("-o").arg(v.path("core")).arg(pid.to_string()).output();
    let dumped = dumped.expect("gcore runs");
    let file = v.path(&format!("core.{pid}"));
    if !file.exists() {
        let why = String::from_utf8_lossy(&dumped.stderr).into_owned();
        eprintln!("skipped: gcore may not read the process: {why}");
        return None;
    }
    let core = fs::read(&file).expect("reads");
    assert!(core.starts_with(b"\x7fELF"), "{} bytes are no core", core.len());
    fs::remove_file(file).expect("own file");
    Some(core)
}

/// Whether `needle` is anywhere in the readable memory of a process (proc_pid_mem(5); for root).
fn in_memory(pid: i32, needle: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("root may look");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("root may look");
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').expect("a range");
        let (from, to) = range.split_once('-').expect("a range");
        let number = |hex| u64::from_str_radix(hex, 16).expect("a number");
        if !rest.starts_with("rw") {
            return false;
        }
        let mut bytes = vec![0; (number(to) - number(from)) as usize];
        memory.read_exact_at(&mut bytes, number(from)).is_ok() && memchr(&bytes, needle).is_some()
    })
}

fn memchr(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first().expect("something to look for");
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|b| *b == first) {
        let start = from + at;
        if haystack[start..].starts_with(needle) {
            return Some(start);
        }
        from = start + 1;
    }
    None
}
