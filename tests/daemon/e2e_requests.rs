//! What a mount asks of its bucket, counted, not timed.

use crate::e2e;
use crate::needs_fuse;
use std::fs;
use std::time::{Duration, Instant};

use crate::e2e::noise;
use crate::mounts::{Volume, wait_until};
use crate::support::s3server::S3Server;

const FILES: u64 = 10_000;

#[test]
fn an_idle_mount_leaves_its_bucket_alone() {
    // Guards against pollers (compactor, collector, manifest, lease): at 120 requests an hour,
    // 20 seconds have less than one. Counted by the server, after a load and its aftermath.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&[]);
    for n in 0..200 {
        fs::write(v.at(&format!("f{n}")), noise(n, 5_000)).expect("writes");
    }
    v.ok(&["sync", &v.text("vault")]);
    let mut last = server.counts();
    let mut quiet_since = Instant::now();
    wait_until("the aftermath is over", || {
        let now = server.counts();
        if now != last {
            (last, quiet_since) = (now, Instant::now());
        }
        quiet_since.elapsed() > Duration::from_secs(4)
    });
    std::thread::sleep(Duration::from_secs(20));
    let idle = server.counts().since(&last);
    assert!(idle.requests() <= 1, "in 20 idle seconds: {idle:?}");
    // The heartbeat comes every two minutes and may have been that one; the mount still works.
    assert_eq!(fs::read(v.at("f7")).expect("reads"), noise(7, 5_000));
    v.umount();
}

#[test]
fn ten_thousand_small_files_are_a_few_puts() {
    // Guards against an object for each file, or a commit for every few of them.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    v.mount(&[]);
    let before = server.counts();
    let begun = Instant::now();
    for n in 0..FILES {
        if n % 1_000 == 0 {
            fs::create_dir(v.at(&format!("d{}", n / 1_000))).expect("makes a directory");
        }
        fs::write(v.at(&format!("d{}/{n}", n / 1_000)), noise(n, 4_096)).expect("writes");
    }
    let took = begun.elapsed();
    v.ok(&["sync", &v.text("vault")]);
    let counts = server.counts().since(&before);
    eprintln!("created in {took:?}, {counts:?}");
    let puts = counts.put + counts.upload_create + counts.upload_part + counts.upload_complete;
    // A commit is a segment and a batch of metadata. A machine too busy to make the files in 20
    // seconds has more commit intervals, each of which is a promise too.
    let intervals = took.as_secs() / 2 + 1;
    let puts_max = 20.max(2 * intervals);
    assert!(puts <= puts_max, "{puts} PUTs for {FILES} files in {took:?}: {counts:?}");
    v.umount();
    v.forget_local_state();
    v.mount(&[]);
    for n in (0..FILES).step_by(97) {
        let read = fs::read(v.at(&format!("d{}/{n}", n / 1_000))).expect("reads");
        assert!(read == noise(n, 4_096), "{n}");
    }
    v.umount();
}
