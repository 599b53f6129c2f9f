//! Work goes on while the bucket cannot be reached, and arrives there without
//! help afterwards.

use crate::e2e;
use crate::mounts;
use crate::needs_fuse;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::thread::JoinHandleExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::e2e::{drop_pages, noise};
use crate::mounts::{
    Holder, Remote, Volume, is_alive, listens, send_signal, wait_at_most, wait_until,
};
use crate::support::relay::Relay;
use crate::support::s3server::{
    ACCESS_KEY, BUCKET, Fault, FaultKind, OTHER_ACCESS_KEY, OTHER_SECRET_KEY, Outage, RequestKind,
    S3Server, SECRET_KEY,
};

const READ_TIMEOUT: Duration = Duration::from_secs(5);
const FLAGS: [&str; 2] = ["--read-timeout", "5s"];
/// What one local operation may take on a busy machine; far below any network timeout.
const LOCAL_MAX: Duration = Duration::from_millis(4500);
/// The longest pause of the committer between two tries is 15 s.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

fn quickly<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = act();
    assert!(begun.elapsed() < LOCAL_MAX, "{what} took {:?}", begun.elapsed());
    done
}

fn work_goes_on_during(outage: Outage) {
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&FLAGS);
    let (cached, uncached) = (noise(1, 3 << 20), noise(2, 3 << 20));
    fs::create_dir(v.at("dir")).expect("makes a directory");
    fs::write(v.at("dir/cached"), &cached).expect("writes");
    v.ok(&["sync", &v.text("vault")]); // so that the two lie in different segments
    fs::write(v.at("dir/uncached"), &uncached).expect("writes");
    v.umount();
    v.forget_local_state();
    v.mount(&FLAGS);
    // What a working session knows: the names, and the contents of one file. The names are
    // asked for again below when the kernel has forgotten the pages.
    assert!(fs::read(v.at("dir/cached")).expect("reads") == cached);
    assert_eq!(fs::metadata(v.at("dir/uncached")).expect("stats").len(), 3 << 20);
    fs::write(v.at("dir/before"), b"before").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    // Cached, too: tests that run beside this one have the kernel forget the inodes of the whole machine.
    drop_pages(&v.at("dir/before"));
    assert_eq!(fs::read(v.at("dir/before")).expect("reads"), b"before");
    let before = server.counts();

    server.faults().set_outage(outage);
    let begun = Instant::now();
    for n in 0..40 {
        quickly("create, write, fsync", || {
            let mut file = File::create(v.at(&format!("dir/new {n}"))).expect("creates");
            file.write_all(&noise(n, 10_000)).expect("writes");
            file.sync_all().expect("syncs");
        });
    }
    quickly("mkdir", || fs::create_dir(v.at("dir/made offline"))).expect("makes a directory");
    quickly("rename", || fs::rename(v.at("dir/new 0"), v.at("dir/made offline/moved")))
        .expect("renames");
    quickly("unlink", || fs::remove_file(v.at("dir/new 1"))).expect("unlinks");
    quickly("append", || {
        let mut file = File::options().append(true).open(v.at("dir/before")).expect("opens");
        file.write_all(b" and during").expect("appends");
        file.sync_all().expect("syncs");
    });
    // Cached reads go on, from the journal and from the cache; the kernel's copy is dropped.
    for (name, expected) in [("dir/cached", &cached), ("dir/new 7", &noise(7, 10_000))] {
        drop_pages(&v.at(name));
        let read = quickly("a cached read", || fs::read(v.at(name))).expect("reads");
        assert!(read == *expected, "{name}");
    }
    // An uncached one fails, in time.
    let asked = Instant::now();
    let error = fs::read(v.at("dir/uncached")).expect_err("the store cannot be reached");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let took = asked.elapsed();
    assert!(took < 4 * READ_TIMEOUT, "EIO after {took:?}");
    // And while it waits, others do not.
    let path = v.at("dir/uncached");
    let waiting = std::thread::spawn(move || fs::read(path));
    quickly("a write beside a read that waits", || fs::write(v.at("dir/beside"), b"x"))
        .expect("writes");
    waiting.join().expect("no panic").expect_err("still unreachable");
    wait_at_most(RECOVERY_MAX, "status says offline", || v.status("state") == "offline");
    assert!(v.status("since_unix_secs").is_u64() && v.status("reason").is_string());
    assert!(v.status("pending_bytes").as_u64() > Some(380_000), "{}", v.status("pending_bytes"));
    assert!(v.status("pending_files").as_u64() >= Some(38), "{}", v.status("pending_files"));
    assert!(v.status("oldest_pending_secs").as_f64() > Some(1.0));
    eprintln!("{outage:?}: offline for {:.1} s", begun.elapsed().as_secs_f64());
    if outage == Outage::Refused {
        assert_eq!(server.counts().put, before.put, "something was put during the outage");
    }

    server.faults().set_outage(Outage::None);
    let back = Instant::now();
    wait_at_most(RECOVERY_MAX, "everything is uploaded by itself", || {
        v.status("pending_bytes") == 0 && v.status("state") == "online"
    });
    eprintln!("{outage:?}: caught up after {:.1} s", back.elapsed().as_secs_f64());
    assert!(fs::read(v.at("dir/uncached")).expect("reads again") == uncached);
    // Not even an umount: what another machine sees now is everything.
    v.crash();
    v.forget_local_state();
    v.mount(&FLAGS);
    for n in 2..40 {
        let read = fs::read(v.at(&format!("dir/new {n}"))).expect("reads");
        assert!(read == noise(n, 10_000), "new {n}");
    }
    assert!(fs::read(v.at("dir/made offline/moved")).expect("reads") == noise(0, 10_000));
    assert!(!v.at("dir/new 0").exists() && !v.at("dir/new 1").exists());
    assert_eq!(fs::read(v.at("dir/before")).expect("reads"), b"before and during");
    v.umount();
}

#[test]
fn work_goes_on_while_connections_are_refused() {
    // Guards against a write or fsync that waits for the network, a read that hangs, and a
    // backlog that needs a person. The server closes its port, then opens it again.
    needs_fuse!();
    work_goes_on_during(Outage::Refused);
}

#[test]
fn work_goes_on_while_the_server_never_answers() {
    // The same with the harder outage: connections are accepted and nothing ever comes back,
    // so that only timeouts tell.
    needs_fuse!();
    work_goes_on_during(Outage::Silent);
}

#[test]
fn an_umount_during_an_outage_keeps_the_journal_for_the_next_mount() {
    // Guards against an umount that throws away what it could not upload, or that claims
    // success. The next mount, with the bucket back, uploads it.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&FLAGS);
    fs::write(v.at("before"), b"in the bucket").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    server.faults().set_outage(Outage::Refused);
    fs::write(v.at("during"), b"only here").expect("writes");
    v.fails(&["umount", "--stall-timeout", "3s", &v.text("vault")], 8);
    assert_eq!(fs::read(v.at("during")).expect("still mounted"), b"only here");
    v.fails(&["umount", "--force-local", &v.text("vault")], 8);
    assert!(!v.is_mounted());
    server.faults().set_outage(Outage::None);
    v.mount(&[]);
    wait_at_most(RECOVERY_MAX, "the journal is uploaded", || v.status("pending_bytes") == 0);
    v.crash();
    v.forget_local_state();
    v.mount(&[]);
    assert_eq!(fs::read(v.at("before")).expect("reads"), b"in the bucket");
    assert_eq!(fs::read(v.at("during")).expect("reads"), b"only here");
    v.umount();
}

extern "C" fn handled(_: libc::c_int) {}

#[test]
fn a_signal_ends_who_waits_for_the_bucket_only_if_it_kills() {
    // Guards against EINTR from stat and read for programs with timers, which no local file system
    // gives them, and against a process that cannot be killed while the network is away.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    let flags = ["--read-timeout", "60s"];
    v.mount(&flags);
    for name in ["read", "killed"] {
        fs::write(v.at(name), noise(1, 300_000)).expect("writes");
        v.ok(&["sync", &v.text("vault")]); // each in its own segment
    }
    v.umount();
    v.forget_local_state();
    v.mount(&flags);
    let mut file = File::open(v.at("read")).expect("opens");
    fs::metadata(v.at("killed")).expect("stats");
    server.faults().set_outage(Outage::Silent);
    // SAFETY: a handler that does nothing, without SA_RESTART; nobody else here uses the signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handled as *const () as libc::sighandler_t;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let reader = std::thread::spawn(move || file.read(&mut [0; 1000]));
    let mut cat = Command::new("cat");
    let mut cat = cat.arg(v.at("killed")).stdout(Stdio::null()).spawn().expect("cat runs");
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(100));
        // SAFETY: the thread is not joined before the end.
        assert_eq!(unsafe { libc::pthread_kill(reader.as_pthread_t(), libc::SIGUSR1) }, 0);
    }
    assert!(!reader.is_finished() && cat.try_wait().expect("own child").is_none());
    // SAFETY: own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(cat.id() as i32, libc::SIGTERM) }, 0);
    wait_at_most(Duration::from_secs(20), "cat ends", || {
        cat.try_wait().expect("own child").is_some()
    });
    assert!(!reader.is_finished());
    server.faults().set_outage(Outage::None);
    assert_eq!(reader.join().expect("no panic").expect("no signal disturbs it"), 1000);
    v.umount();
}

/// The two access keys of the server.
pub const KEYS: [(&str, &str); 2] =
    [(ACCESS_KEY, SECRET_KEY), (OTHER_ACCESS_KEY, OTHER_SECRET_KEY)];

/// A volume whose access keys stand in a file `keys` of its directory, which it is told of by
/// `config`; the endpoint is the server's.
fn with_keys_in_a_file(server: &S3Server, config: impl Fn(&str) -> String) -> (Volume, String) {
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    let keys = dir.join("keys").display().to_string();
    let config_file = dir.join("config").display().to_string();
    fs::write(&config_file, config(&keys)).expect("writes");
    let env = vec![
        ("AWS_ENDPOINT_URL_S3", server.endpoint()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_CONFIG_FILE", config_file),
        ("AWS_SHARED_CREDENTIALS_FILE", keys.clone()),
        ("AWS_PROFILE", "work".into()),
    ];
    let v = Volume::bare_on(Some(Remote { url: format!("s3://{BUCKET}/data"), env }));
    (v, keys)
}

fn keys_are_picked_up(v: &Volume, server: &S3Server, write: impl Fn(&str, &str)) {
    write(KEYS[0].0, KEYS[0].1);
    v.ok(&["init", &v.url(), "--passphrase-file", &v.text("passphrase")]);
    v.mount(&[]);
    let refusals = [
        (403, "InvalidAccessKeyId"),
        (400, "ExpiredToken"),
        (403, "SignatureDoesNotMatch"),
        (403, "AccessDenied"),
        (401, "Unauthorized"),
    ];
    for (n, (status, code)) in refusals.into_iter().enumerate() {
        let (old, new) = (KEYS[n % 2], KEYS[(n + 1) % 2]);
        server.behave(|b| b.revoked = Some((old.0, status, code)));
        fs::write(v.at(&format!("before {n}")), code).expect("writes");
        // It meets the refusal while the file still has the old ones.
        wait_at_most(RECOVERY_MAX, "the refusal is seen", || {
            server.counts().put > 0 && v.status("pending_bytes") != 0
        });
        write(new.0, new.1);
        fs::write(v.at(&format!("after {n}")), code).expect("writes");
        wait_at_most(RECOVERY_MAX, code, || v.status("pending_bytes") == 0);
        drop_pages(&v.at(&format!("before {n}")));
        assert_eq!(fs::read(v.at(&format!("before {n}"))).expect("reads"), code.as_bytes());
    }
    v.umount();
}

#[test]
fn keys_that_were_replaced_in_the_file_are_picked_up() {
    // Guards against a mount that stays offline for ever after a rotation, while a new process
    // works: the SDK reads its files once. One key is revoked, then the file has the other.
    needs_fuse!();
    let server = S3Server::start();
    let (v, keys) = with_keys_in_a_file(&server, |_| "[profile work]\nregion = us-east-1\n".into());
    keys_are_picked_up(&v, &server, |id, secret| {
        let text = format!("[work]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(&keys, text).expect("writes");
    });
}

#[test]
fn keys_that_a_process_gives_are_asked_for_again() {
    // The same where the profile names a process (`aws sso` and vaults work like that), behind
    // another profile.
    needs_fuse!();
    let server = S3Server::start();
    let (v, keys) = with_keys_in_a_file(&server, |keys| {
        format!("[profile work]\ncredential_process = cat {keys}.json\n")
    });
    keys_are_picked_up(&v, &server, |id, secret| {
        let text = format!(
            "{{\"Version\": 1, \"AccessKeyId\": \"{id}\", \"SecretAccessKey\": \"{secret}\"}}"
        );
        fs::write(format!("{keys}.json"), text).expect("writes");
    });
}

#[test]
fn a_process_that_takes_longer_than_a_request_may_gives_its_keys_too() {
    // Guards against a sign-in that starts again with every request, each of which gives up before
    // it is done, so that no mount ever comes up.
    needs_fuse!();
    let server = S3Server::start();
    let (v, keys) = with_keys_in_a_file(&server, |keys| {
        format!("[profile work]\ncredential_process = sh {keys}.sh\n")
    });
    let json = format!(
        "{{\"Version\": 1, \"AccessKeyId\": \"{ACCESS_KEY}\", \"SecretAccessKey\": \"{SECRET_KEY}\"}}"
    );
    let script = |sleep| format!("echo >> {keys}.runs; sleep {sleep}; echo '{json}'\n");
    fs::write(format!("{keys}.sh"), script(0)).expect("writes");
    v.ok(&["init", &v.url(), "--passphrase-file", &v.text("passphrase")]);
    // An attempt of a request has 15 s.
    fs::write(format!("{keys}.sh"), script(18)).expect("writes");
    fs::remove_file(format!("{keys}.runs")).expect("it was asked");
    v.mount(&[]);
    let runs = fs::read_to_string(format!("{keys}.runs")).expect("it was asked").lines().count();
    // The command looks before its daemon does.
    assert!(runs <= 2, "asked {runs} times");
    fs::write(v.at("file"), "contents").expect("writes");
    v.umount();
}

#[test]
fn connections_that_vanish_cost_seconds() {
    // Guards against a read that fails after a minute, and a sync that takes one, because requests
    // wait on connections that a NAT has forgotten. A relay swallows all that are open.
    needs_fuse!();
    let server = S3Server::start();
    let relay = Relay::start(server.address());
    let remote = Remote::s3(&relay.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY);
    let v = Volume::create_on(Some(remote));
    v.mount(&[]);
    let cold = noise(3, 3 << 20);
    fs::write(v.at("cold"), &cold).expect("writes");
    v.umount();
    v.forget_local_state();
    v.mount(&[]);
    for n in 0..3 {
        fs::write(v.at("small"), noise(n, 1000)).expect("writes");
        v.ok(&["sync", &v.text("vault")]);
        relay.swallow();
        let begun = Instant::now();
        fs::write(v.at("small"), noise(n + 10, 1000)).expect("writes");
        v.ok(&["sync", &v.text("vault")]);
        eprintln!("sync after {:.1} s", begun.elapsed().as_secs_f64());
        assert!(begun.elapsed() < VANISHED_MAX, "the sync took {:?}", begun.elapsed());
    }
    relay.swallow();
    let begun = Instant::now();
    assert!(fs::read(v.at("cold")).expect("reads") == cold);
    eprintln!("read after {:.1} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < VANISHED_MAX, "the read took {:?}", begun.elapsed());
    v.umount();
}

/// What an operation may take that meets only dead connections at first: less than the 30 s of
/// `--read-timeout`, more than a busy machine adds to a few seconds.
const VANISHED_MAX: Duration = Duration::from_secs(25);

#[test]
fn a_large_upload_on_a_slow_line_is_sent_once() {
    // Guards against progress taken for silence: at 1 MiB/s a segment takes many times longer than
    // a connection may be silent.
    needs_fuse!();
    let server = S3Server::start();
    let relay = Relay::start(server.address());
    let remote = Remote::s3(&relay.endpoint(), BUCKET, ACCESS_KEY, SECRET_KEY);
    let v = Volume::create_on(Some(remote));
    v.mount(&[]);
    relay.slow_down(1 << 20);
    let before = server.counts();
    let large = noise(5, 16 << 20);
    fs::write(v.at("large"), &large).expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    let sent = server.counts().since(&before);
    assert!(sent.bytes_in < 20 << 20, "{} bytes for 16 MiB", sent.bytes_in);
    v.umount();
}

/// Far above what giving up takes on a busy machine, far below the stall timeout of 10 minutes.
const END_MAX: Duration = Duration::from_secs(90);

/// What stopping at a signal takes where nothing is to be undone, on a busy machine; less than the
/// least that a command may take to undo something.
const STOP_MAX: Duration = Duration::from_secs(8);

/// A mount with something that only the journal has, and a store that is away.
fn away(outage: Outage) -> (S3Server, Volume) {
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&FLAGS);
    server.faults().set_outage(outage);
    fs::write(v.at("during"), b"only here").expect("writes");
    (server, v)
}

/// A command that waits for the bucket, and has been heard by the daemon.
fn waits(v: &Volume, args: &[&str]) -> Holder {
    let mut holder = v.start(args);
    // It does once it is connected.
    wait_until("it listens for signals", || listens(holder.0.id()));
    std::thread::sleep(Duration::from_millis(700));
    assert!(holder.0.try_wait().expect("own child").is_none(), "{args:?} does not wait");
    holder
}

fn ends(child: &mut Child, what: &str) -> Option<i32> {
    let mut status = None;
    wait_at_most(END_MAX, what, || {
        status = child.try_wait().expect("own child");
        status.is_some()
    });
    status.and_then(|status| status.code())
}

/// The journal went to the next mount whole.
fn uploads_the_rest(server: &S3Server, v: &Volume) {
    assert!(!v.is_mounted());
    server.faults().set_outage(Outage::None);
    v.mount(&[]);
    assert_eq!(fs::read(v.at("during")).expect("reads"), b"only here");
    v.umount();
}

/// `umount --force-local` ends the drain of an earlier command; all get the outcome.
fn force_local_takes_over(outage: Outage) {
    let (server, v) = away(outage);
    let vault = v.text("vault");
    let mut first = waits(&v, &["umount", &vault]);
    let mut sync = waits(&v, &["sync", &vault]);
    v.fails(&["umount", "--force-local", &vault], 8);
    assert_eq!(ends(&mut first.0, "the first umount"), Some(8));
    assert_eq!(ends(&mut sync.0, "the sync"), Some(8));
    uploads_the_rest(&server, &v);
}

/// One signal joins the drain of a command, the second ends it.
fn signals_take_over(outage: Outage) {
    let (server, v) = away(outage);
    let mut first = waits(&v, &["umount", &v.text("vault")]);
    let daemon = v.daemon();
    send_signal(daemon, libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(700));
    assert!(is_alive(daemon), "one signal gives up at once");
    send_signal(daemon, libc::SIGINT);
    wait_at_most(END_MAX, "the daemon ends", || !is_alive(daemon));
    assert_eq!(ends(&mut first.0, "the umount"), Some(8));
    uploads_the_rest(&server, &v);
}

/// Interrupted: the mount stays as it was, and can still be ended.
fn who_goes_away_cancels(outage: Outage) {
    let (server, v) = away(outage);
    let vault = v.text("vault");
    let mut first = waits(&v, &["umount", "--lazy", &vault]);
    send_signal(first.0.id() as i32, libc::SIGINT);
    ends(&mut first.0, "the umount is interrupted");
    wait_until("the daemon notices", || v.log().contains("it stays mounted"));
    fs::write(v.at("afterwards"), b"still mounted").expect("still mounted");
    v.fails(&["umount", "--stall-timeout", "1s", &vault], 8);
    assert!(v.is_mounted());
    v.fails(&["umount", "--force-local", &vault], 8);
    uploads_the_rest(&server, &v);
}

/// Somebody else unmounts, and the daemon uploads; then it is told not to wait.
fn force_local_after_somebody_else(outage: Outage) {
    let (server, v) = away(outage);
    let (vault, daemon) = (v.text("vault"), v.daemon());
    let mut first = waits(&v, &["umount", &vault]);
    v.detach();
    std::thread::sleep(Duration::from_millis(700));
    assert!(is_alive(daemon), "it does not upload what is pending");
    v.fails(&["umount", "--force-local", &vault], 8);
    assert_eq!(ends(&mut first.0, "the umount"), Some(8));
    uploads_the_rest(&server, &v);
}

/// All at once: they mostly wait.
fn later_ones_take_over(outage: Outage) {
    std::thread::scope(|scope| {
        for order in [
            force_local_takes_over,
            signals_take_over,
            who_goes_away_cancels,
            force_local_after_somebody_else,
        ] {
            scope.spawn(move || order(outage));
        }
    });
}

#[test]
fn a_later_command_or_signal_takes_over_while_connections_are_refused() {
    // Guards against --force-local and SIGTERM that hang behind an umount which waits for a store
    // that is away, and against a drain that goes on when its command was interrupted.
    needs_fuse!();
    later_ones_take_over(Outage::Refused);
}

#[test]
fn a_later_command_or_signal_takes_over_while_the_server_never_answers() {
    // The same when only timeouts tell.
    needs_fuse!();
    later_ones_take_over(Outage::Silent);
}

#[test]
fn two_umounts_share_the_end_when_the_store_comes_back() {
    // Guards against a second umount that is refused, or that never hears the outcome.
    needs_fuse!();
    let (server, v) = away(Outage::Refused);
    let vault = v.text("vault");
    let mut first = waits(&v, &["umount", &vault]);
    let mut second = waits(&v, &["umount", &vault]);
    let mut sync = waits(&v, &["sync", &vault]);
    server.faults().set_outage(Outage::None);
    assert_eq!(ends(&mut first.0, "the first umount"), Some(0));
    assert_eq!(ends(&mut second.0, "the second umount"), Some(0));
    assert_eq!(ends(&mut sync.0, "the sync"), Some(0));
    assert!(!v.is_mounted());
}

/// Starts a command while the store is silent, waits until it says so, and ends it by a signal.
fn stops(v: &Volume, n: usize, args: &[&str], by: libc::c_int) {
    let said = v.path(&format!("said {n}"));
    let mut command = v.command(args);
    let stderr = File::create(&said).expect("creates");
    let mut holder = Holder(command.stdout(Stdio::null()).stderr(stderr).spawn().expect("runs"));
    wait_until("it says what it waits for", || {
        fs::read_to_string(&said).is_ok_and(|text| text.contains("sealfs: waiting for "))
    });
    let begun = Instant::now();
    send_signal(holder.0.id() as i32, by);
    let status = ends(&mut holder.0, "it stops");
    let took = begun.elapsed();
    assert!(took < STOP_MAX, "{args:?} stopped after {took:?}");
    let text = fs::read_to_string(&said).expect("reads");
    assert_eq!(status, Some(12), "{args:?}: {text}");
    let (_, hint) = text.rsplit_once("sealfs: error: stopped before the end\n").unwrap_or_default();
    assert!(hint.starts_with("hint: "), "{args:?} says what to type: {text}");
}

#[test]
fn whatever_waits_for_a_silent_store_says_so_and_stops_at_a_signal() {
    // Guards against a mount that appears after Ctrl-C gave the prompt back, and against commands
    // that are deaf to it for half a minute or leave the volume held.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&[]);
    v.umount();
    let state = fs::read_dir(v.path("state")).expect("lists").map(|e| e.expect("entry").path());
    let journal = state.map(|p| p.join("journal")).find(|p| p.exists()).expect("a journal");
    let (journal, out) = (journal.display().to_string(), v.text("out"));
    server.faults().set_outage(Outage::Silent);
    let (url, pass, log) = (v.url(), v.text("passphrase"), v.text("log"));
    let mount = v.mount_args(&["--read-timeout", "60s"]);
    let mount: Vec<_> = mount.iter().map(String::as_str).collect();
    // Each on its own directory: one start at a time on each.
    let places = ["second", "third"].map(|name| v.text(name));
    let [foreground, hung_up] = places.each_ref().map(|place| {
        fs::create_dir(place).expect("a fresh directory");
        let mut args = [&mount[..], &["--foreground"]].concat();
        args[2] = place;
        args
    });
    let key = ["--passphrase-file", &pass];
    let other = format!("{url}/other");
    let recover = ["recover", &journal, &out, "--store", &url];
    let commands = [
        (mount.clone(), libc::SIGINT),
        (foreground, libc::SIGINT),
        (hung_up, libc::SIGHUP),
        ([&["fsck", &url][..], &key].concat(), libc::SIGINT),
        ([&["fsck", &url, "--repair"][..], &key].concat(), libc::SIGTERM),
        (vec!["doctor", &url], libc::SIGINT),
        ([&["init", &other][..], &key].concat(), libc::SIGINT),
        ([&["sse", "audit", &url][..], &key].concat(), libc::SIGINT),
        ([&["sse", "migrate", &url, "--to", "AES256"][..], &key].concat(), libc::SIGINT),
        ([&recover[..], &key].concat(), libc::SIGINT),
    ];
    std::thread::scope(|scope| {
        for (n, (args, by)) in commands.iter().enumerate() {
            let v = &v;
            scope.spawn(move || stops(v, n, args, *by));
        }
    });
    assert!(!v.path("out").exists());

    // Who waits for the mount dies without a word.
    let mut parent = v.start(&mount);
    std::thread::sleep(Duration::from_millis(700));
    parent.0.kill().expect("kills");
    server.faults().set_outage(Outage::None);
    wait_until("the child notices", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("nobody waits for the mount"))
    });
    v.mount(&[]);
    v.umount();
}

/// Whether the memory that process `pid` can write holds `needle`.
fn memory_holds(pid: i32, needle: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    maps.lines().filter(|line| line.contains(" rw")).any(|line| {
        let (start, end) = line.split(' ').next().and_then(|r| r.split_once('-')).expect("a range");
        let at = |hex| u64::from_str_radix(hex, 16).expect("an address");
        let mut bytes = vec![0; (at(end) - at(start)) as usize];
        // Some regions cannot be read.
        let read = memory.read_at(&mut bytes, at(start)).unwrap_or(0);
        bytes[..read].windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn who_waits_for_a_mount_to_start_has_forgotten_the_passphrase() {
    // Guards against a passphrase that lies in the memory of a process that has no use for it, for
    // as long as a store does not answer.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    server.faults().set_outage(Outage::Silent);
    let mount = v.mount_args(&["--read-timeout", "60s"]);
    let mount: Vec<_> = mount.iter().map(String::as_str).collect();
    let mut parent = v.start(&mount);
    let pid = parent.0.id() as i32;
    let children = || {
        let path = format!("/proc/{pid}/task/{pid}/children");
        fs::read_to_string(path).ok().and_then(|all| all.trim().parse::<i32>().ok())
    };
    wait_until("the child is there", || children().is_some());
    let child = children().expect("it is there");
    let passphrase = fs::read(v.path("passphrase")).expect("reads");
    let passphrase = passphrase.trim_ascii_end();
    wait_until("the child alone has it", || {
        memory_holds(child, passphrase) && !memory_holds(pid, passphrase)
    });
    send_signal(pid, libc::SIGINT);
    ends(&mut parent.0, "it stops");
    server.faults().set_outage(Outage::None);
}

#[test]
fn an_init_that_is_stopped_half_way_leaves_an_empty_prefix() {
    // Guards against "not empty" for ever after a Ctrl-C. The store stops answering with the
    // first table of the metadata, and answers again while it is undone.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::bare_on(e2e::remote(&server));
    server.faults().add(Fault::new(FaultKind::Delay(Duration::from_secs(20))).key("/meta/"));
    let init = ["init", &v.url(), "--passphrase-file", &v.text("passphrase")];
    let mut holder = v.start(&init);
    wait_until("it has begun", || server.counts().put >= 2);
    std::thread::sleep(Duration::from_millis(500));
    server.faults().clear();
    send_signal(holder.0.id() as i32, libc::SIGINT);
    assert_eq!(ends(&mut holder.0, "it stops"), Some(12));
    v.ok(&init);
}

#[test]
fn a_hangup_ends_a_mount_in_the_foreground_in_order() {
    // Guards against a closed terminal that leaves a dead mount, and against kill -HUP doing so to
    // a mount in the background.
    needs_fuse!();
    let v = Volume::create();
    let args = v.mount_args(&["--foreground"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut daemon = v.start(&args);
    wait_until("it is mounted", || v.is_mounted() && fs::metadata(v.at(".")).is_ok());
    fs::write(v.at("f"), b"content").expect("writes");
    send_signal(daemon.0.id() as i32, libc::SIGHUP);
    assert_eq!(ends(&mut daemon.0, "it ends"), Some(0), "{}", v.log());
    assert!(!v.is_mounted());
    v.mount(&[]);
    send_signal(v.daemon(), libc::SIGHUP);
    assert_eq!(fs::read(v.at("f")).expect("reads"), b"content");
    v.umount();
}

#[test]
fn progress_counts_what_the_store_takes_and_nothing_that_arrives_nowhere() {
    // Guards against "0 B of 8 MiB" until a commit ends, "no progress" during a long upload, and
    // bytes "sent" to a store that refuses every connection.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&["--commit-interval", "200ms"]);
    let number = |field: &str| v.status(field).as_u64().expect("a number");
    let stored = || v.status("requests")["bytes_up"].as_u64().expect("a number");
    let failed = || v.status("requests")["errors"].as_u64().expect("a number");

    // Taken by the connection, not stored yet, so still pending.
    server.faults().add(Fault::new(FaultKind::Hang).on(RequestKind::Put).key("/seg/"));
    let before = (stored(), number("moved_bytes"));
    let bytes = e2e::noise(24, 8 << 20);
    fs::write(v.at("large"), &bytes).expect("writes");
    fs::File::open(v.at("large")).and_then(|f| f.sync_all()).expect("syncs locally");
    mounts::wait_until("the upload shows", || number("sent_bytes") > 64 << 10);
    assert_eq!(number("pending_bytes"), 8 << 20);
    assert!(number("moved_bytes") > before.1, "a drain sees it move");
    let text = v.ok(&["status", &v.text("vault")]);
    assert!(text.contains("8.00 MiB in ") && text.contains(" of it sent, "), "{text}");
    assert!(stored() < before.0 + (1 << 20), "nothing was answered yet");
    server.faults().clear();
    v.ok(&["sync", &v.text("vault")]);
    assert!(stored() >= before.0 + (8 << 20));
    assert_eq!((number("sent_bytes"), number("pending_bytes")), (0, 0));

    // Refused connections take nothing, however often it is tried.
    server.faults().set_outage(Outage::Refused);
    let before = (stored(), failed());
    fs::write(v.at("more"), &bytes[..1 << 20]).expect("writes");
    mounts::wait_until("several attempts have failed", || failed() >= before.1 + 3);
    assert_eq!((stored(), number("sent_bytes")), (before.0, 0));
    server.faults().clear();
    v.umount();
}
