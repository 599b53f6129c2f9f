//! What a mount and its end ask of the bucket: round trips one after the other, and requests, counted.

use std::sync::Arc;

use object_store::memory::InMemory;
use sealfs::base::Ino;
use sealfs::fs::{DirEntry, Fs, Kind, XattrMode};
use sealfs::stack::{MountOptions, Mounted};

use crate::volume::measured::{Cost, Measured};
use crate::volume::{Bench, CALLER, LONG, contents, write_file};

/// What a mount and its end may cost, in round trips one after the other and in requests.
#[derive(Clone, Copy)]
struct Bound {
    trips: u64,
    gets: usize,
    puts: usize,
    lists: usize,
}

impl Bound {
    fn check(&self, what: &str, cost: &Cost) {
        eprintln!("{what}: {}", cost.shown());
        let of = |kind| cost.of(kind);
        let within = cost.trips <= self.trips
            && of("GET") <= self.gets
            && of("PUT") <= self.puts
            && of("LIST") <= self.lists
            && of("DELETE") == 0;
        assert!(within, "{what} takes more than before: {}", cost.shown());
    }
}

/// Entries of a page as the kernel asks for.
const PAGE: usize = 186;

/// Lists a directory to its end, page by page.
async fn list(fs: &Arc<Fs>, dir: Ino, page: usize) -> Vec<DirEntry> {
    let (mut entries, mut after) = (Vec::new(), 0);
    loop {
        let page = fs.readdirplus(dir, after, page).await.expect("lists");
        let Some((last, _)) = page.last() else { return entries };
        after = last.cookie;
        entries.extend(page.into_iter().map(|(entry, _)| entry));
    }
}

#[tokio::test(start_paused = true)]
async fn a_mount_and_its_end_take_few_round_trips() {
    // Guards against requests that wait for one another without need: each is felt where the bucket
    // is far away. Counted under a clock of the test's own, so that no load of the machine changes it.
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let m = bench.mount().await;
    for n in 0..20 {
        write_file(&m.fs, Ino::ROOT, &format!("f{n}"), &contents(&format!("f{n}"), 5_000)).await;
    }
    assert!(m.shutdown(LONG).await);
    let store = Measured::new(bucket);
    let fresh = Bench::seeing(store.clone());
    // Without the disk cache, which a separate thread fills, by another clock.
    let mount = async |change: fn(&mut MountOptions)| {
        store.begin();
        let m = fresh.mount_with(change).await.expect("mounts");
        (m, store.cost())
    };
    let end = async |m: Mounted| {
        store.begin();
        assert!(m.shutdown(LONG).await);
        store.cost()
    };
    let cold = Bound { trips: 8, gets: 16, puts: 5, lists: 2 };
    let known = Bound { trips: 6, gets: 18, puts: 3, lists: 2 };
    let nothing_pending = Bound { trips: 3, gets: 1, puts: 2, lists: 0 };
    let (m, cost) = mount(|_| {}).await;
    cold.check("a mount with nothing local", &cost);
    nothing_pending.check("its end, with nothing pending", &end(m).await);
    for round in 0..3 {
        let (m, cost) = mount(|_| {}).await;
        // Each mount that changes nothing leaves an object in the log, for a while.
        let known = Bound { gets: known.gets + round, ..known };
        known.check("a mount where the volume was mounted before", &cost);
        nothing_pending.check("its end, with nothing pending", &end(m).await);
    }
    let (m, _) = mount(|_| {}).await;
    write_file(&m.fs, Ino::ROOT, "new", &contents("new", 5_000)).await;
    let changed = Bound { trips: 1_000, gets: 40, puts: 12, lists: 8 };
    changed.check("the end of a mount with a change that is pending", &end(m).await);
    let (m, cost) = mount(|_| {}).await;
    Bound { trips: 9, gets: 24, ..known }.check("a mount after that", &cost);
    // It waits for the step that the start has begun, which reads older tables.
    Bound { trips: 8, gets: 8, ..nothing_pending }.check("its end, at once", &end(m).await);
    let (m, cost) = mount(|o| o.read_only = true).await;
    Bound { trips: 6, gets: 24, puts: 0, lists: 3 }.check("a mount that only reads", &cost);
    Bound { trips: 1_000, gets: 10, puts: 0, lists: 2 }.check("its end", &end(m).await);
}

/// Reads these files of 4 KiB one after the other, as somebody who takes no time for it.
async fn read_all(fs: &Arc<Fs>, files: &[DirEntry]) {
    for file in files {
        let data = fs.read(file.ino, 0, 8192).await.expect("reads");
        let name = std::str::from_utf8(&file.name).expect("a name of this test");
        assert!(data[..] == contents(name, 4096), "{name} has other bytes");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn small_files_that_are_read_in_an_order_take_few_round_trips() {
    // Guards against a reader of small files who waits again and again: for each piece that is fetched, and
    // anew at each segment. 20 MiB in two segments; in the order of the names, which is that of the
    // inode numbers, and in that of the listing, which is by hashes.
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let m = bench.mount().await;
    for n in 0..5_000 {
        let name = format!("f{n:05}");
        write_file(&m.fs, Ino::ROOT, &name, &contents(&name, 4096)).await;
    }
    assert!(m.shutdown(LONG).await);
    for (order, most_trips) in [("names", 6), ("listing", 4)] {
        let store = Measured::new(bucket.clone());
        let fresh = Bench::seeing(store.clone());
        let m = fresh.mount().await;
        let mut files = list(&m.fs, Ino::ROOT, 20_000).await.split_off(2);
        assert_eq!(files.len(), 5_000);
        if order == "names" {
            files.sort_by(|a, b| a.name.cmp(&b.name));
        }
        store.begin();
        read_all(&m.fs, &files).await;
        let cost = store.cost();
        eprintln!("{order}: {} round trips, {} GETs", cost.trips, cost.of("GET"));
        assert!(cost.trips <= most_trips, "in the order of the {order}: {}", cost.shown());
        assert!(cost.of("GET") <= 20, "in the order of the {order}: {}", cost.shown());
        assert!(m.shutdown(LONG).await);
    }
}

/// Makes 40 directories of 100 small files each.
async fn make_directories(fs: &Arc<Fs>) {
    for d in 0..40 {
        let name = format!("d{d:02}");
        let dir = fs.mkdir(CALLER, Ino::ROOT, name.as_str().into(), 0o755, 0).await.expect("mkdir");
        for n in 0..100 {
            write_file(fs, dir.ino, &format!("f{n:05}"), b"x").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn directories_that_are_listed_in_an_order_take_few_round_trips() {
    // Guards against who walks a tree and waits in each directory anew; in the order of the listing, as
    // `find` goes, and of the names, as `rsync` does. And against fetching for who goes anywhere.
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let m = bench.mount().await;
    make_directories(&m.fs).await;
    assert!(m.shutdown(LONG).await);
    // The blocks of the store are fetched by several at once: the disk cache, of which there is none here,
    // has each fetched once.
    for (order, most_trips, most_gets) in
        [("listing", 22, 80), ("names", 22, 80), ("neither", 40, 40)]
    {
        let store = Measured::new(bucket.clone());
        let fresh = Bench::seeing(store.clone());
        let m = fresh.mount().await;
        let mut dirs = list(&m.fs, Ino::ROOT, PAGE).await.split_off(2);
        assert_eq!(dirs.len(), 40);
        match order {
            "names" => dirs.sort_by(|a, b| a.name.cmp(&b.name)),
            "neither" => dirs = (0..40).map(|n| dirs[n * 17 % 40].clone()).collect(),
            _ => {}
        }
        store.begin();
        for dir in dirs {
            assert_eq!(list(&m.fs, dir.ino, PAGE).await.len(), 102);
        }
        let cost = store.cost();
        eprintln!("{order}: {} round trips, {} GETs", cost.trips, cost.of("GET"));
        assert!(cost.trips <= most_trips, "{order}: {}", cost.shown());
        assert!(cost.of("GET") <= most_gets, "{order}: {}", cost.shown());
        assert!(m.shutdown(LONG).await);
    }
}

#[tokio::test(start_paused = true)]
async fn directories_are_read_ahead_though_memory_has_pushed_them_out() {
    // Guards against a long walk that is read ahead of only as long as memory has what named the
    // directories: every row of it makes way for attributes of 32 MiB.
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let m = bench.mount().await;
    let names = (0..560).map(|n| format!("user.{n}").into_bytes());
    let file = write_file(&m.fs, Ino::ROOT, "attributes", b"x").await;
    for name in names.clone() {
        m.fs.setxattr(file, name, vec![7; 60_000], XattrMode::default()).await.expect("sets");
    }
    make_directories(&m.fs).await;
    assert!(m.shutdown(LONG).await);
    let store = Measured::new(bucket);
    let fresh = Bench::seeing(store.clone());
    let m = fresh.mount().await;
    let mut dirs = list(&m.fs, Ino::ROOT, PAGE).await.split_off(2);
    dirs.retain(|entry| entry.kind == Kind::Dir);
    assert_eq!(dirs.len(), 40);
    let (first, others) = dirs.split_at(4);
    for dir in first {
        assert_eq!(list(&m.fs, dir.ino, PAGE).await.len(), 102);
    }
    for name in names {
        m.fs.getxattr(file, name).await.expect("gets");
    }
    store.begin();
    for dir in others {
        assert_eq!(list(&m.fs, dir.ino, PAGE).await.len(), 102);
    }
    let cost = store.cost();
    eprintln!("{} round trips, {} GETs", cost.trips, cost.of("GET"));
    assert!(cost.trips <= 22, "{}", cost.shown());
    assert!(m.shutdown(LONG).await);
}
