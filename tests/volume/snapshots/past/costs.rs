//! What snapshots cost, for docs/PERFORMANCE.md:
//! `SEALFS_FILES=100000 cargo test --test snapshots -- --ignored --nocapture what_snapshots_cost`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use sealfs::base::Ino;
use sealfs::fs::WriteFlags;
use sealfs::fs::tree::SNAPSHOTS;

use super::{RestoreOrder, all_of, create, named, path, restore};
use crate::volume::{Bench, CALLER, LONG};

const IN_A_DIRECTORY: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; see the top of the file"]
async fn what_snapshots_cost() {
    let files: usize =
        std::env::var("SEALFS_FILES").map_or(10_000, |n| n.parse().expect("a number"));
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let wait = Duration::from_millis(20);
    let config = ThrottleConfig {
        wait_get_per_call: wait,
        wait_put_per_call: wait,
        wait_list_per_call: wait,
        wait_delete_per_call: wait,
        ..ThrottleConfig::default()
    };
    let store: Arc<dyn ObjectStore> = Arc::new(ThrottledStore::new(bucket, config));
    let bench = Bench { store, ..bench };
    let m = bench.mount_with(|o| o.journal_bytes_max = 1 << 30).await.expect("mounts");
    let (mut dir, data) = (Ino::ROOT, Bytes::from(vec![7; 1000]));
    for n in 0..files {
        if n % IN_A_DIRECTORY == 0 {
            let name = format!("d{}", n / IN_A_DIRECTORY).into_bytes();
            dir = m.fs.mkdir(CALLER, Ino::ROOT, name, 0o755, 0).await.expect("makes").ino;
        }
        let made = m.fs.create(CALLER, dir, format!("f{n}").into(), 0o644, 0).await.expect("makes");
        m.fs.write(made.ino, 0, data.clone(), WriteFlags::default()).await.expect("writes");
        m.fs.forget(made.ino, 1);
    }
    assert!(m.sync(10 * LONG).await);
    let say = |what: &str, begun: Instant| {
        println!("{what}: {:.0} ms", begun.elapsed().as_secs_f64() * 1000.0);
    };
    println!("{files} files of 1,000 bytes in directories of {IN_A_DIRECTORY}, 20 ms a request");
    let begun = Instant::now();
    create(&m, "a").await;
    say("create", begun);
    assert!(m.shutdown(10 * LONG).await);

    let m = bench.mount_with(|o| o.journal_bytes_max = 1 << 30).await.expect("mounts");
    let begun = Instant::now();
    let root = m.tree.lookup(SNAPSHOTS, b"a".to_vec()).await.expect("finds");
    m.tree.readdir(root.ino, 0, 1000).await.expect("lists");
    say("first look into it, cold: its root", begun);
    let begun = Instant::now();
    let inside = m.tree.lookup(root.ino, b"d3".to_vec()).await.expect("finds");
    let (mut at, mut listed) = (0, 0);
    loop {
        let page = m.tree.readdirplus(inside.ino, at, 500).await.expect("lists");
        let Some((last, _)) = page.last() else { break };
        (at, listed) = (last.cookie, listed + page.len());
    }
    say(&format!("ls -l of a directory in it, cold, {listed} names"), begun);

    let begun = Instant::now();
    let beside = RestoreOrder { to: Some(path("back")), ..all_of("a") };
    let done = restore(&m, &beside).await.expect("restores");
    say(&format!("restore beside, {} files", done.files), begun);
    assert!(m.sync(10 * LONG).await);
    say("the same until the bucket has it", begun);
    let begun = Instant::now();
    restore(&m, &all_of("a")).await.expect("restores");
    say("restore where nothing has changed", begun);
    let begun = Instant::now();
    let (out, mut found) = tokio::sync::mpsc::channel(4);
    let tree = m.tree.clone();
    let comparing = tokio::spawn(async move { tree.diff(["a".into(), "now".into()], out).await });
    let mut differences = 0;
    while let Some(some) = found.recv().await {
        differences += some.len();
    }
    comparing.await.expect("runs").expect("compares");
    say(&format!("diff, {differences} differences"), begun);
    let begun = Instant::now();
    m.delete_snapshots(vec![named("a")], LONG).await.expect("deletes");
    say("delete", begun);
    assert!(m.shutdown(10 * LONG).await);
}
