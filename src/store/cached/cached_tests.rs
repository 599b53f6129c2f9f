//! The cache over a store that counts its requests.

use super::*;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

/// Counts GETs by range; each takes a moment, so that concurrent readers meet.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    gets: Mutex<Vec<Option<GetRange>>>,
}

impl Counting {
    fn take(&self) -> Vec<Option<GetRange>> {
        std::mem::take(&mut *self.gets.lock())
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counting")
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, l: &Path, p: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(l, p, o).await
    }
    async fn put_multipart_opts(
        &self,
        l: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(l, o).await
    }
    async fn get_opts(&self, l: &Path, o: GetOptions) -> Result<GetResult> {
        self.gets.lock().push(o.range.clone());
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.inner.get_opts(l, o).await
    }
    fn delete_stream(
        &self,
        l: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(l)
    }
    fn list(&self, p: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(p)
    }
    async fn list_with_delimiter(&self, p: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(p).await
    }
    async fn copy_opts(&self, f: &Path, t: &Path, o: CopyOptions) -> Result<()> {
        self.inner.copy_opts(f, t, o).await
    }
}

fn open(store: &Arc<Counting>, dir: &std::path::Path) -> Cached {
    Cached::new(store.clone(), CacheOptions::new(dir.to_path_buf()), Arc::default()).unwrap()
}

fn body(len: usize) -> Bytes {
    (0..len).map(|i| (i / 7 + i % 251) as u8).collect::<Vec<u8>>().into()
}

use bytes::Bytes;

async fn object(store: &Arc<Counting>, name: &str, len: usize) -> (Path, Bytes) {
    let (location, body) = (Path::from(name), body(len));
    store.put(&location, body.clone().into()).await.unwrap();
    (location, body)
}

#[tokio::test]
async fn a_second_read_and_a_restart_make_no_request() {
    // Guards against a cache that never hits, or that is cold after a restart.
    let (store, dir) = (Arc::new(Counting::default()), tempfile::tempdir().unwrap());
    let (location, body) = object(&store, "seg/aa/x", 1_000_000).await;
    let range = 200_000..700_000usize;
    let wide = range.start as u64..range.end as u64;
    let cached = open(&store, dir.path());
    assert_eq!(cached.get_range(&location, wide.clone()).await.unwrap(), body.slice(range.clone()));
    assert_eq!(store.take().len(), 1, "one run, one request");
    assert_eq!(cached.get_range(&location, wide.clone()).await.unwrap(), body.slice(range.clone()));
    assert!(cached.flush(Duration::from_secs(10)));
    assert_eq!(cached.get_range(&location, wide.clone()).await.unwrap(), body.slice(range.clone()));
    assert_eq!(cached.head(&location).await.unwrap().size, 1_000_000);
    // A wider read fetches only what is missing, on both sides.
    assert_eq!(cached.get_range(&location, 0..1_000_000).await.unwrap(), body);
    assert_eq!(store.take().len(), 2);
    assert!(cached.flush(Duration::from_secs(10)));
    drop(cached);
    let mut again =
        Cached::new(store.clone(), CacheOptions::new(dir.path().into()), Arc::default());
    for _ in 0..100 {
        // The writer thread of the first lets go of the directory when it has ended.
        if again.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        again = Cached::new(store.clone(), CacheOptions::new(dir.path().into()), Arc::default());
    }
    let cached = again.unwrap();
    assert_eq!(cached.get(&location).await.unwrap().bytes().await.unwrap(), body);
    assert_eq!(cached.head(&location).await.unwrap().size, 1_000_000);
    assert_eq!(store.take(), []);
    assert_eq!(cached.0.stats.snapshot().cache_hits, 1);
}

#[tokio::test]
async fn concurrent_readers_of_a_granule_share_one_request() {
    // Guards against a stampede: many FUSE reads of one cold place.
    let (store, dir) = (Arc::new(Counting::default()), tempfile::tempdir().unwrap());
    let (location, body) = object(&store, "seg/aa/y", 300_000).await;
    let cached = open(&store, dir.path());
    let reads = (0..20u64).map(|i| {
        let (cached, location) = (cached.clone(), location.clone());
        tokio::spawn(async move { cached.get_range(&location, i * 100..i * 100 + 50).await })
    });
    for (i, got) in futures::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(got.unwrap().unwrap(), body.slice(i * 100..i * 100 + 50));
    }
    assert_eq!(store.take(), [Some(GetRange::Bounded(0..65_656))]);
}

#[tokio::test]
async fn a_reader_that_gives_up_does_not_strand_the_others() {
    // Guards against waiting for ever on a fetch whose first caller was cancelled.
    let (store, dir) = (Arc::new(Counting::default()), tempfile::tempdir().unwrap());
    let (location, body) = object(&store, "seg/aa/z", 300_000).await;
    let cached = open(&store, dir.path());
    let mut first = Box::pin(cached.get_range(&location, 0..10));
    while store.gets.lock().is_empty() {
        assert!(futures::poll!(&mut first).is_pending());
        tokio::task::yield_now().await;
    }
    drop(first);
    let second = tokio::time::timeout(Duration::from_secs(5), cached.get_range(&location, 0..10));
    assert_eq!(second.await.unwrap().unwrap(), body.slice(0..10));
    // Nor those who wait already when it is.
    store.take();
    let (location, body) = object(&store, "seg/aa/y", 300_000).await;
    let read = || {
        let (cached, location) = (cached.clone(), location.clone());
        tokio::spawn(async move { cached.get_range(&location, 0..10).await })
    };
    let readers = [read(), read(), read()];
    while store.take().is_empty() {
        tokio::task::yield_now().await;
    }
    readers[0].abort();
    let [_, second, third] = readers;
    for reader in [second, third] {
        let read = tokio::time::timeout(Duration::from_secs(5), reader);
        assert_eq!(read.await.unwrap().unwrap().unwrap(), body.slice(0..10));
    }
    assert_eq!(store.take().len(), 1, "one more request, for both");
}

#[tokio::test]
async fn walking_small_ranges_in_any_order_costs_a_handful_of_requests() {
    // Guards against one round trip per small file in a cold `grep -r`: 500 reads of 4 KiB in a
    // shuffled order over 8 MiB.
    let (store, dir) = (Arc::new(Counting::default()), tempfile::tempdir().unwrap());
    let (location, body) = object(&store, "seg/aa/w", 8 << 20).await;
    let cached = open(&store, dir.path());
    for i in 0..500u64 {
        let at = (i * 7919 % 2048) * 4096;
        let got = cached.get_range(&location, at..at + 4096).await.unwrap();
        assert_eq!(got, body.slice(at as usize..at as usize + 4096));
    }
    let requests = store.take().len();
    assert!(requests < 40, "{requests} requests");
    // A table is fetched by the megabyte, and its own upload is not fetched at all.
    let (table, body) = object(&store, "meta/compacted/1.sst", 3 << 20).await;
    for at in (0..3u64 << 20).step_by(1 << 16) {
        cached.get_range(&table, at..at + 100).await.unwrap();
    }
    assert!(store.take().len() <= 4);
    let own = Path::from("meta/compacted/2.sst");
    cached.put(&own, body.clone().into()).await.unwrap();
    assert_eq!(cached.get(&own).await.unwrap().bytes().await.unwrap(), body);
    assert_eq!(store.take(), []);
}

#[tokio::test]
async fn manifests_and_logs_are_never_cached_and_tails_are() {
    // Guards against a stale manifest, against a write-ahead log of before a rollback replayed
    // after it (its numbered names are used again), and against a request per footer of a small
    // table.
    let (store, dir) = (Arc::new(Counting::default()), tempfile::tempdir().unwrap());
    let cached = open(&store, dir.path());
    for name in ["meta/manifest/1.manifest", "meta/wal/1.sst"] {
        let (name, body) = object(&store, name, 100).await;
        cached.put(&name, body.into()).await.unwrap();
        store.take();
        cached.get(&name).await.unwrap();
        cached.get(&name).await.unwrap();
        assert_eq!(store.take().len(), 2);
    }
    let (table, body) = object(&store, "meta/compacted/3.sst", 200_000).await;
    let suffix = GetOptions::new().with_range(Some(GetRange::Suffix(50)));
    for _ in 0..2 {
        let tail = cached.get_opts(&table, suffix.clone()).await.unwrap();
        assert_eq!(tail.range, 199_950..200_000);
        assert_eq!(tail.bytes().await.unwrap(), body.slice(199_950..));
        assert_eq!(cached.get(&table).await.unwrap().bytes().await.unwrap(), body);
    }
    assert_eq!(store.take().len(), 1, "the tail's request brought all of it");
}

#[tokio::test]
async fn invalidation_reaches_memory_queue_and_disk() {
    // Guards against damage that survives being dropped.
    let (store, dir) = (Arc::new(Counting::default()), tempfile::tempdir().unwrap());
    let (location, _) = object(&store, "seg/aa/v", 100_000).await;
    let cached = open(&store, dir.path());
    for flush in [false, true] {
        cached.get(&location).await.unwrap();
        assert!(!flush || cached.flush(Duration::from_secs(10)));
        store.take();
        cached.invalidate(&location);
        cached.get(&location).await.unwrap();
        assert!(!store.take().is_empty());
    }
}

#[test]
fn only_names_that_never_come_again_are_cached() {
    // Guards against a bucket that was rolled back being read through what the cache has of the
    // newer one: write-ahead log files and manifests are numbered, and the numbers come again.
    let rules = CacheOptions::new("/x".into()).rules;
    let cached = |name: &str| rules.iter().any(|rule| (rule.applies)(&Path::from(name)));
    assert!(cached("meta/compacted/01M80KYRH0X4A3HM8BD6ZNRM2B.sst") && cached("seg/ab/ab12"));
    for name in ["meta/wal/00000000000000000004.sst", "meta/manifest/00.manifest", "lease"] {
        assert!(!cached(name), "{name}");
    }
}
