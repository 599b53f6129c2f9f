//! What the commit path must hold to when uploads fail, limits are near, or another mount takes
//! over; without a kernel.

use std::fmt;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use sealfs::base::Ino;
use sealfs::fs::{Fs, FsError, SetAttr, WriteFlags, XattrMode};
use sealfs::stack::{Accept, MountOptions, Mounted, StackError, mount};
use sealfs::store::{ErrorClass, StoreError};

use crate::volume::gated::{Gate, Gated};
use crate::volume::{CALLER, LONG, format, log_objects, options_of, secret, segments, until};

/// Refuses one put of a segment, when the count reaches zero; or every change; or what is too large.
#[derive(Debug)]
struct RefuseOne {
    inner: Arc<InMemory>,
    until: AtomicI64,
    read_only: bool,
    largest: usize,
    too_large: Arc<AtomicI64>,
    /// Reads of segments that panic.
    panics: AtomicI64,
    /// Once it is zero, deletes never end; it counts those that have begun.
    deletes_hang: Option<Arc<AtomicI64>>,
}

impl RefuseOne {
    fn over(inner: Arc<InMemory>) -> RefuseOne {
        let (until, too_large, panics) = (AtomicI64::new(0), Arc::default(), AtomicI64::new(0));
        let (largest, deletes_hang) = (usize::MAX, None);
        RefuseOne { inner, until, read_only: false, largest, too_large, panics, deletes_hang }
    }

    fn refuses(&self, location: &Path) -> Result<()> {
        let refused = || object_store::Error::PermissionDenied {
            path: location.to_string(),
            source: "refused by the test".into(),
        };
        if self.read_only {
            return Err(refused());
        }
        let is_segment = location.as_ref().starts_with("seg/");
        if is_segment && self.until.fetch_sub(1, Ordering::SeqCst) == 1 {
            return Err(refused());
        }
        Ok(())
    }
}

fn fits(data: &PutPayload, largest: usize, refused: &AtomicI64) -> Result<()> {
    if data.content_length() <= largest {
        return Ok(());
    }
    refused.fetch_add(1, Ordering::SeqCst);
    Err(StoreError::new(ErrorClass::TooLarge, "413").into_store("the proxy of the test"))
}

/// An upload whose parts have a limit.
#[derive(Debug)]
struct LimitedUpload {
    inner: Box<dyn MultipartUpload>,
    largest: usize,
    too_large: Arc<AtomicI64>,
}

#[async_trait]
impl MultipartUpload for LimitedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match fits(&data, self.largest, &self.too_large) {
            Ok(()) => self.inner.put_part(data),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

impl fmt::Display for RefuseOne {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refuse-one({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for RefuseOne {
    async fn put_opts(&self, at: &Path, body: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.refuses(at)?;
        fits(&body, self.largest, &self.too_large)?;
        self.inner.put_opts(at, body, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.refuses(at)?;
        let inner = self.inner.put_multipart_opts(at, o).await?;
        let (largest, too_large) = (self.largest, self.too_large.clone());
        Ok(Box::new(LimitedUpload { inner, largest, too_large }))
    }

    async fn get_opts(&self, at: &Path, o: GetOptions) -> Result<GetResult> {
        if at.as_ref().starts_with("seg/") && self.panics.fetch_sub(1, Ordering::SeqCst) > 0 {
            panic!("the test asked for it");
        }
        self.inner.get_opts(at, o).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let hang = self.deletes_hang.as_ref();
        if let Some(begun) = hang.filter(|begun| begun.load(Ordering::SeqCst) >= 0) {
            begun.fetch_add(1, Ordering::SeqCst);
            return futures::stream::pending().boxed();
        }
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, o: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, o).await
    }
}

fn options(bucket: &Arc<dyn ObjectStore>, local: &FsPath) -> MountOptions {
    let mut options = MountOptions::new(
        options_of(bucket.clone()),
        secret(),
        local.join("cache"),
        local.join("state"),
    );
    options.journal_bytes_max = 64 << 20;
    options.commit_interval = Duration::from_millis(200);
    options.refresh = Duration::from_millis(300);
    options
}

/// Those of a mount that commits when it is asked to, however much it has.
fn on_demand(bucket: &Arc<dyn ObjectStore>, local: &FsPath) -> MountOptions {
    let (commit_interval, journal_bytes_max) = (Duration::from_secs(3600), 1 << 30);
    MountOptions { commit_interval, journal_bytes_max, ..options(bucket, local) }
}

async fn create(fs: &Arc<Fs>, name: &str) -> Ino {
    fs.create(CALLER, Ino::ROOT, name.into(), 0o644, 0).await.expect("create").ino
}

async fn write(fs: &Arc<Fs>, ino: Ino, megabytes: u64) {
    for i in 0..megabytes {
        let data = Bytes::from(vec![i as u8; 1 << 20]);
        fs.write(ino, i << 20, data, WriteFlags::default()).await.expect("write");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upload_does_not_upload_its_neighbours_again() {
    // Guards against every try of a commit leaving all its segments behind under names that no
    // row knows: paid for for ever, and uploaded again. The third segment of three is refused
    // once, when the others may be there already.
    let memory = Arc::new(InMemory::new());
    let bucket: Arc<dyn ObjectStore> =
        Arc::new(RefuseOne { until: AtomicI64::new(3), ..RefuseOne::over(memory.clone()) });
    format(&bucket).await;
    let local = tempfile::tempdir().expect("tempdir");
    let mut o = options(&bucket, local.path());
    o.journal_bytes_max = 1 << 30;
    o.commit_interval = Duration::from_secs(3600);
    let m = mount(o).await.expect("mount");
    let f = create(&m.fs, "f").await;
    write(&m.fs, f, 40).await;
    assert!(m.sync(LONG).await, "the refused segment goes up with the next try");
    let stored = segments(&*memory).await.len();
    assert_eq!(stored, 3, "40 MiB are three segments, each uploaded once");
    assert!(m.shutdown(LONG).await);
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let m = mount(options(&bucket, elsewhere.path())).await.expect("mount elsewhere");
    let f = m.fs.lookup(Ino::ROOT, b"f".to_vec()).await.expect("f").ino;
    for i in 0..40u64 {
        let data = m.fs.read(f, i << 20, 1 << 20).await.expect("read");
        assert!(data.len() == 1 << 20 && data.iter().all(|b| *b == i as u8), "megabyte {i}");
    }
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_panics_fails_once() {
    // Guards against blocks that fail until the next mount, because a fetch that died counts as under
    // way for ever.
    let memory = Arc::new(InMemory::new());
    let bucket: Arc<dyn ObjectStore> = memory.clone();
    format(&bucket).await;
    let (a, b) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
    let m = mount(options(&bucket, a.path())).await.expect("mount");
    let f = create(&m.fs, "f").await;
    write(&m.fs, f, 2).await;
    assert!(m.shutdown(LONG).await);
    let broken = RefuseOne { panics: AtomicI64::new(1), ..RefuseOne::over(memory) };
    let broken: Arc<dyn ObjectStore> = Arc::new(broken);
    let m = mount(options(&broken, b.path())).await.expect("mount");
    let f = m.fs.lookup(Ino::ROOT, b"f".to_vec()).await.expect("f").ino;
    let first = m.fs.read(f, 0, 4096).await;
    assert!(matches!(first, Err(FsError::Io(_))), "{first:?}");
    assert_eq!(m.fs.read(f, 0, 4096).await.expect("reads").len(), 4096);
    m.shutdown(LONG).await;
}

/// Refuses every GET once it is shut.
#[derive(Default)]
struct ShutToReads(AtomicBool);

impl Gate for ShutToReads {
    fn step(&self, what: &str, _: &Path) -> (bool, bool) {
        let passes = what != "GET" || !self.0.load(Ordering::SeqCst);
        (passes, passes)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_read_that_meets_a_truncation_asks_the_store_for_nothing() {
    // Guards against a read that looks in the bucket for contents which were truncated a moment ago and
    // were never there: half a minute and EIO while the store is away. Nothing here was committed.
    let memory = Arc::new(InMemory::new());
    let bucket: Arc<dyn ObjectStore> = memory.clone();
    format(&bucket).await;
    let (a, b) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
    let m = mount(options(&bucket, a.path())).await.expect("mount");
    for n in 0..100 {
        create(&m.fs, &format!("before{n}")).await; // so that there are tables to look in
    }
    assert!(m.shutdown(LONG).await);
    let gated = Gated::new(memory, ShutToReads::default());
    let seen: Arc<dyn ObjectStore> = gated.clone();
    let mut o = options(&seen, b.path());
    o.commit_interval = Duration::from_secs(3600);
    let m = mount(o).await.expect("mount");
    let f = create(&m.fs, "f").await;
    let put = async || {
        let data = Bytes::from_static(&[7; 64]);
        m.fs.write(f, 0, data, WriteFlags::default()).await.expect("writes");
    };
    put().await;
    gated.gate.0.store(true, Ordering::SeqCst);
    let (done, fs) = (Arc::new(AtomicBool::new(false)), m.fs.clone());
    let until_done = done.clone();
    let reader = tokio::spawn(async move {
        let mut reads = 0;
        while !until_done.load(Ordering::SeqCst) {
            let data = fs.read(f, 0, 64).await.unwrap_or_else(|e| panic!("read {reads}: {e}"));
            assert!(data.is_empty() || data[..] == [7; 64], "{data:?}");
            reads += 1;
        }
        reads
    });
    let nothing = SetAttr { size: Some(0), ..SetAttr::default() };
    for _ in 0..20_000 {
        m.fs.setattr(CALLER, f, nothing).await.expect("truncates");
        put().await;
        if reader.is_finished() {
            break;
        }
    }
    done.store(true, Ordering::SeqCst);
    assert!(reader.await.expect("every read is answered") > 0);
    gated.gate.0.store(false, Ordering::SeqCst);
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_that_hang_hold_up_no_commit() {
    // Guards against changes that wait for as long as a store takes to delete what is dead.
    let memory = Arc::new(InMemory::new());
    let bucket: Arc<dyn ObjectStore> = memory.clone();
    format(&bucket).await;
    let begun = Arc::new(AtomicI64::new(-1));
    let hanging = RefuseOne { deletes_hang: Some(begun.clone()), ..RefuseOne::over(memory) };
    let hanging: Arc<dyn ObjectStore> = Arc::new(hanging);
    let local = tempfile::tempdir().expect("tempdir");
    let mut o = options(&hanging, local.path());
    o.dead_grace = Duration::ZERO;
    let m = mount(o).await.expect("mount");
    begun.store(0, Ordering::SeqCst);
    let f = create(&m.fs, "f").await;
    write(&m.fs, f, 1).await;
    assert!(m.sync(LONG).await);
    m.fs.unlink(Ino::ROOT, b"f".to_vec()).await.expect("unlink");
    m.fs.forget(f, 1);
    assert!(m.sync(LONG).await);
    until("its segment is deleted", async || begun.load(Ordering::SeqCst) > 0).await;
    for n in 0..3 {
        create(&m.fs, &format!("g{n}")).await;
        assert!(m.sync(LONG).await, "g{n} waits for the deletes");
    }
    assert!(m.shutdown(LONG).await);
    let m = mount(options(&bucket, local.path())).await.expect("mount");
    m.fs.lookup(Ino::ROOT, b"g2".to_vec()).await.expect("g2");
    assert!(m.shutdown(LONG).await);
}

/// Refuses what compactions of metadata write down, for good, once it is shut.
#[derive(Default)]
struct NoCompaction {
    shut: AtomicBool,
    refused: AtomicI64,
}

impl Gate for NoCompaction {
    fn step(&self, what: &str, at: &Path) -> (bool, bool) {
        let is_theirs = what.starts_with("PUT") && at.as_ref().starts_with("meta/compactions/");
        let refuses = is_theirs && self.shut.load(Ordering::SeqCst);
        self.refused.fetch_add(i64::from(refuses), Ordering::SeqCst);
        (!refuses, !refuses)
    }

    fn instead(&self, _: &Path) -> object_store::Error {
        StoreError::new(ErrorClass::Corrupt, "the gate is shut").into_store("the test")
    }
}

/// A mount of a new volume whose metadata are never compacted, and who has as many rows in memory as may
/// be there: level 0 has no room for more tables. The rows are nobody's.
async fn without_room(local: &FsPath) -> (Arc<Gated<NoCompaction>>, Mounted) {
    let gated = Gated::new(Arc::new(InMemory::new()), NoCompaction::default());
    let store: Arc<dyn ObjectStore> = gated.clone();
    format(&store).await;
    gated.gate.shut.store(true, Ordering::SeqCst);
    let m = mount(options(&store, local)).await.expect("mount");
    let kv = m.view().kv().clone();
    let junk = |n: u32, len| (Bytes::from(format!("~{n}")), Some(Bytes::from(vec![7; len])));
    while gated.inner.list(Some(&Path::from("meta/compacted"))).count().await < 16 {
        kv.commit([junk(0, 9)]).await.expect("commits");
        kv.flush_memtable().await.expect("flushes");
    }
    for n in 1..=4 {
        let rows = (0..135).map(|i| junk(n * 1000 + i, 1 << 16));
        kv.commit(rows).await.expect("commits");
    }
    (gated, m)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn whoever_writes_rows_outlasts_compactions_that_fail_meanwhile() {
    // Guards against a committer that is stuck until the next mount: it waits for room in level 0, and the
    // compaction that was to make it has failed.
    let local = tempfile::tempdir().expect("tempdir");
    let (gated, m) = without_room(local.path()).await;
    create(&m.fs, "f").await;
    let is_synced = AtomicBool::new(false);
    let sync = async {
        let synced = m.sync(LONG * 2).await;
        is_synced.store(true, Ordering::SeqCst);
        synced
    };
    let fail = async {
        // Those of before it began to wait are over within one look.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = gated.gate.refused.load(Ordering::SeqCst);
        until("compactions fail while it waits", async || {
            gated.gate.refused.load(Ordering::SeqCst) > begun + 1
        })
        .await;
        assert!(!is_synced.load(Ordering::SeqCst), "nothing waits");
        gated.gate.shut.store(false, Ordering::SeqCst);
    };
    assert!(tokio::join!(sync, fail).0, "synced");
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_volume_whose_metadata_were_not_compacted_for_long_can_be_mounted() {
    // Guards against a volume that nobody can write any more: what is in the log waited for room in level
    // 0 while it was replayed, and nothing compacts before the database is open.
    let local = tempfile::tempdir().expect("tempdir");
    let (gated, m) = without_room(local.path()).await;
    assert!(m.shutdown(LONG).await);
    let store: Arc<dyn ObjectStore> = gated.clone();
    let m = mount(options(&store, local.path())).await.expect("mount again");
    create(&m.fs, "f").await;
    gated.gate.shut.store(false, Ordering::SeqCst);
    assert!(m.sync(LONG * 2).await, "synced");
    until("all of it is in tables", async || {
        let kv = m.view().kv();
        kv.flush_memtable().await.is_ok()
    })
    .await;
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_fit_through_a_proxy_that_takes_1_mib() {
    // Guards against a log object or a table that no proxy with nginx' default takes, and that is
    // sent again and again while nothing is committed. More rows than a table of the usual size
    // holds go through, and nobody who reads meanwhile is refused.
    let memory = Arc::new(InMemory::new());
    let bucket: Arc<dyn ObjectStore> = memory.clone();
    format(&bucket).await;
    let limited = RefuseOne { largest: 1 << 20, ..RefuseOne::over(memory) };
    let refused = limited.too_large.clone();
    let limited: Arc<dyn ObjectStore> = Arc::new(limited);
    let local = tempfile::tempdir().expect("tempdir");
    let mut o = options(&limited, local.path());
    o.journal_bytes_max = 1 << 30;
    let m = mount(o).await.expect("mount");
    let value = |n: usize| vec![n as u8; 60_000];
    let (name, files) = (b"user.large".to_vec(), 500);
    let set = async |n| {
        let ino = create(&m.fs, &format!("f{n}")).await;
        let set = m.fs.setxattr(ino, name.clone(), value(n), XattrMode::default()).await;
        set.expect("set");
    };
    for n in 0..files {
        set(n).await;
        m.fs.lookup(Ino::ROOT, format!("f{}", n / 2).into_bytes()).await.expect("reads go on");
    }
    assert!(m.sync(Duration::from_secs(120)).await, "{:?}", m.control.status());
    until("a table is too large", async || refused.load(Ordering::SeqCst) > 0).await;
    for n in files..files + 20 {
        set(n).await;
        assert!(m.sync(LONG).await, "{:?}", m.control.status());
    }
    assert!(m.shutdown(LONG).await);
    let times = refused.load(Ordering::SeqCst);
    eprintln!("{times} uploads were refused");
    assert!(times < 40, "{times}: the same again and again");
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let m = mount(options(&bucket, elsewhere.path())).await.expect("mount elsewhere");
    for n in 0..files + 20 {
        let f = m.fs.lookup(Ino::ROOT, format!("f{n}").into_bytes()).await.expect("there").ino;
        let got = m.fs.getxattr(f, name.clone()).await.expect("its attribute");
        assert!(got == value(n), "f{n}");
    }
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_fill_an_object_of_the_log_without_passing_its_limit() {
    // Guards against commits that end long before their object of the log is full, a PUT and a segment
    // each, and against an estimate that lets one grow past the 1 MiB of many a proxy.
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    format(&bucket).await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = mount(on_demand(&bucket, local.path())).await.expect("mount");
    let make = async |name: &str| {
        let ino = create(&m.fs, name).await;
        let data = Bytes::from_static(b"a small file");
        m.fs.write(ino, 0, data, WriteFlags::default()).await.expect("write");
    };
    // Names that share no beginnings, which the log would leave out.
    for (name, most) in [(8, 2), (250, 5)] {
        let before = log_objects(&bucket).await.len();
        for n in 0..10_000u64 {
            let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            make(&format!("{n:016x}").repeat(16)[..name]).await;
        }
        assert!(m.sync(LONG).await, "{:?}", m.control.status());
        let sizes: Vec<_> = log_objects(&bucket).await.into_values().skip(before).collect();
        let largest = sizes.iter().max().expect("some");
        assert!(sizes.len() <= most && *largest < 1 << 20, "names of {name}: {sizes:?}");
        assert!(*largest > 400 << 10, "names of {name}: {sizes:?}");
    }
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_of_many_files_passes_the_limit_of_the_log() {
    // Guards against a commit of more than the 1 MiB that many a proxy takes, which would be sent again for
    // ever, where a change of a file writes rows that the change does not name: a block in the middle makes
    // three extents of one, an inode is written with the extent that it has, all extents of a file go.
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    format(&bucket).await;
    let local = tempfile::tempdir().expect("tempdir");
    let m = mount(on_demand(&bucket, local.path())).await.expect("mount");
    let largest = async || {
        assert!(m.sync(LONG * 2).await, "{:?}", m.control.status());
        log_objects(&bucket).await.into_values().max().expect("some")
    };
    let write = async |ino, offset| {
        let data = Bytes::from(vec![7; 50]);
        m.fs.write(ino, offset, data, WriteFlags::default()).await.expect("write");
    };
    let mut files = Vec::new();
    for n in 0..6000 {
        let ino = create(&m.fs, &format!("f{n}")).await;
        m.fs.write(ino, 0, Bytes::from(vec![1; 1000]), WriteFlags::default()).await.expect("write");
        files.push(ino);
    }
    let mut seen = vec![("new", largest().await)];
    for ino in &files {
        write(*ino, 400).await;
    }
    seen.push(("a block in the middle", largest().await));
    for part in 0..5 {
        for ino in &files {
            write(*ino, 1000 + part * 50).await;
        }
        seen.push(("appended", largest().await));
    }
    for ino in &files {
        let set = SetAttr { perm: Some(0o600), ..SetAttr::default() };
        m.fs.setattr(CALLER, *ino, set).await.expect("chmod");
    }
    seen.push(("chmod", largest().await));
    for n in 0..files.len() {
        m.fs.unlink(Ino::ROOT, format!("f{n}").into_bytes()).await.expect("unlink");
    }
    seen.push(("removed", largest().await));
    assert!(seen.iter().all(|(_, bytes)| *bytes < 1 << 20), "{seen:?}");
    eprintln!("{seen:?}");
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_no_limit_lets_through_is_said_and_kept() {
    // Guards against a commit that hangs for ever, without a word, because an object of the log
    // cannot be made small enough for what stands before the store.
    let memory = Arc::new(InMemory::new());
    let bucket: Arc<dyn ObjectStore> = memory.clone();
    format(&bucket).await;
    let limited = RefuseOne { largest: 100_000, ..RefuseOne::over(memory) };
    let limited: Arc<dyn ObjectStore> = Arc::new(limited);
    let local = tempfile::tempdir().expect("tempdir");
    let m = mount(options(&limited, local.path())).await.expect("mount");
    let name = b"user.large".to_vec();
    for n in 0..4u8 {
        let ino = create(&m.fs, &format!("f{n}")).await;
        let set = m.fs.setxattr(ino, name.clone(), vec![n; 60_000], XattrMode::default()).await;
        set.expect("set");
    }
    assert!(!m.sync(Duration::from_secs(2)).await, "nothing was committed");
    until("the limit is said", async || {
        let state = format!("{:?}", m.control.status());
        state.contains("413")
    })
    .await;
    eprintln!("{:?}", m.control.status());
    let f = m.fs.lookup(Ino::ROOT, b"f3".to_vec()).await.expect("reads go on").ino;
    assert_eq!(m.fs.getxattr(f, name.clone()).await.expect("its attribute").len(), 60_000);
    assert!(!m.shutdown(Duration::from_secs(1)).await);
    let m = mount(options(&bucket, local.path())).await.expect("mount without the proxy");
    assert!(m.sync(LONG).await, "the journal has it all");
    let f = m.fs.lookup(Ino::ROOT, b"f0".to_vec()).await.expect("there").ino;
    assert_eq!(m.fs.getxattr(f, name).await.expect("its attribute").len(), 60_000);
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_begins_before_a_small_journal_is_full() {
    // Guards against writers that stop at the journal's limit although the bucket takes
    // everything: nothing was committed before the interval was over. The interval is an hour.
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    format(&bucket).await;
    let local = tempfile::tempdir().expect("tempdir");
    let mut o = options(&bucket, local.path());
    o.commit_interval = Duration::from_secs(3600);
    let m = mount(o).await.expect("mount");
    let f = create(&m.fs, "f").await;
    write(&m.fs, f, 20).await;
    until("a third of the journal is committed unasked", async || {
        !segments(&*bucket).await.is_empty() && m.control.progress().pending_bytes < 20 << 20
    })
    .await;
    m.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_was_overtaken_reads_on_and_never_writes_again() {
    // Guards against the overtaken mount answering every read with EIO (its database handle
    // refuses them), and against a change that it accepts after it is known to be fenced.
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    format(&bucket).await;
    let (a, b) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
    let first = mount(options(&bucket, a.path())).await.expect("mount");
    let old = create(&first.fs, "old").await;
    write(&first.fs, old, 1).await;
    assert!(first.sync(LONG).await);
    let mut o = options(&bucket, b.path());
    o.takeover = true;
    let second = mount(o).await.expect("takeover");
    create(&second.fs, "new").await;
    assert!(second.sync(LONG).await);
    // Accepted into the journal, refused by the bucket.
    let _ = first.fs.create(CALLER, Ino::ROOT, b"late".to_vec(), 0o644, 0).await;
    assert!(!first.sync(LONG).await, "the overtaken mount cannot commit");
    let refused = first.fs.create(CALLER, Ino::ROOT, b"later".to_vec(), 0o644, 0).await;
    assert_eq!(refused, Err(FsError::ReadOnly));
    let fs = first.fs.clone();
    until("the overtaken mount sees what the bucket has", async || {
        fs.lookup(Ino::ROOT, b"new".to_vec()).await.is_ok()
    })
    .await;
    let data = fs.read(old, 0, 1 << 20).await.expect("read");
    assert_eq!(data.len(), 1 << 20);
    drop(fs);
    assert!(!first.shutdown(Duration::from_secs(1)).await, "its change is not in the bucket");
    create(&second.fs, "still").await;
    assert!(second.sync(LONG).await, "the new writer is not disturbed");
    second.shutdown(LONG).await;
    let again = mount(options(&bucket, a.path())).await.expect("mount of the overtaken machine");
    assert!(again.set_aside.is_some(), "its journal is kept and reported");
    again.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_cached_is_found_while_a_mount_turns_to_reading() {
    // Guards against EIO for whoever looks a name up, lists or reads in the moment in which the
    // overtaken mount has no handle that reads: requests of its store take 20 ms.
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    format(&inner).await;
    let [before, a, b] = [0; 3].map(|_| tempfile::tempdir().expect("tempdir"));
    let m = mount(options(&inner, before.path())).await.expect("mount");
    for n in 0..20 {
        let f = create(&m.fs, &format!("f{n}")).await;
        write(&m.fs, f, 1).await;
    }
    assert!(m.shutdown(LONG).await);
    let wait = Duration::from_millis(20);
    let config = ThrottleConfig { wait_get_per_call: wait, ..ThrottleConfig::default() };
    let slow: Arc<dyn ObjectStore> = Arc::new(ThrottledStore::new(inner.clone(), config));
    let first = mount(options(&slow, a.path())).await.expect("mount");
    let mut o = options(&inner, b.path());
    o.takeover = true;
    let second = mount(o).await.expect("takeover");
    let _ = first.fs.create(CALLER, Ino::ROOT, b"late".to_vec(), 0o644, 0).await;
    assert!(!first.sync(LONG).await, "the overtaken mount cannot commit");
    let looks = (0..20).map(async |n: u32| {
        let found = first.fs.lookup(Ino::ROOT, format!("f{n}").into_bytes()).await?;
        first.fs.read(found.ino, 0, 1 << 20).await
    });
    for (n, read) in futures::future::join_all(looks).await.into_iter().enumerate() {
        assert_eq!(read.map(|data| data.len()), Ok(1 << 20), "f{n}");
    }
    assert!(first.fs.readdir(Ino::ROOT, 2, 100).await.expect("lists").len() >= 20);
    first.shutdown(Duration::ZERO).await;
    second.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_is_refused_does_not_hold_the_volume() {
    // Guards against a refused mount (here: the bucket was rolled back) leaving the lease
    // taken, so that no other machine can mount without --takeover; and against the local cache
    // supplying what the bucket has lost, which hid the rollback.
    let memory = Arc::new(InMemory::new());
    let bucket: Arc<dyn ObjectStore> = memory.clone();
    format(&bucket).await;
    let local = tempfile::tempdir().expect("tempdir");
    let round = async |bucket: &Arc<dyn ObjectStore>, name: &str| {
        let m: Mounted = mount(options(bucket, local.path())).await.expect("mount");
        create(&m.fs, name).await;
        assert!(m.shutdown(LONG).await);
    };
    round(&bucket, "one").await;
    let old: Arc<dyn ObjectStore> = Arc::new(memory.fork());
    round(&bucket, "two").await;
    round(&bucket, "three").await;
    let refused = mount(options(&old, local.path())).await.err().expect("refused");
    assert!(matches!(refused, StackError::Rollback { .. }), "{refused}");
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let m = mount(options(&old, elsewhere.path())).await.expect("nobody holds it");
    assert!(m.shutdown(LONG).await);
    let mut o = options(&old, local.path());
    o.accept_rollback = Accept::ALL;
    let m = mount(o).await.expect("accepted");
    create(&m.fs, "four").await;
    assert!(m.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_credentials_that_only_read_sees_what_is_committed() {
    // Guards against a follower that writes checkpoints, which read-only credentials refuse,
    // and against one that shows for ever the state that it had at its start.
    let memory = Arc::new(InMemory::new());
    let bucket: Arc<dyn ObjectStore> = memory.clone();
    format(&bucket).await;
    let (a, b) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
    let writer = mount(options(&bucket, a.path())).await.expect("mount");
    let f = create(&writer.fs, "before").await;
    write(&writer.fs, f, 1).await;
    assert!(writer.sync(LONG).await);
    let only_read: Arc<dyn ObjectStore> =
        Arc::new(RefuseOne { read_only: true, ..RefuseOne::over(memory) });
    let mut o = options(&only_read, b.path());
    o.read_only = true;
    let follower = mount(o).await.expect("mount to read");
    let before = follower.fs.lookup(Ino::ROOT, b"before".to_vec()).await.expect("before").ino;
    assert_eq!(follower.fs.read(before, 0, 2 << 20).await.expect("read").len(), 1 << 20);
    let refused = follower.fs.create(CALLER, Ino::ROOT, b"no".to_vec(), 0o644, 0).await;
    assert_eq!(refused, Err(FsError::ReadOnly));
    create(&writer.fs, "after").await;
    assert!(writer.sync(LONG).await);
    let fs = follower.fs.clone();
    until("the follower sees what was committed after it began", async || {
        fs.lookup(Ino::ROOT, b"after".to_vec()).await.is_ok()
    })
    .await;
    drop(fs);
    let begun = Instant::now();
    follower.shutdown(LONG).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "a follower has nothing to wait for");
    assert!(writer.shutdown(LONG).await);
}
