//! Cleaning while the store goes away and comes back, at any request, done or not: no byte is
//! lost, and nothing is left behind.

mod volume;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sealfs::base::Ino;
use sealfs::commit::CleanOptions;
use sealfs::fs::WriteFlags;
use volume::{Bench, LONG, find, read_file, write_file};

const MIB: usize = 1 << 20;
/// Outages in all.
const ROUNDS: u64 = 24;

/// Refuses everything while it is away; every other change is made all the same.
#[derive(Debug)]
struct Unsteady {
    inner: Arc<InMemory>,
    away: AtomicBool,
    refused: AtomicU64,
}

impl Unsteady {
    fn refusal() -> object_store::Error {
        let source = "refused by the test".into();
        object_store::Error::PermissionDenied { path: String::new(), source }
    }

    /// Counts a request; whether it is done, and whether it is answered.
    fn step(&self) -> (bool, bool) {
        if !self.away.load(Ordering::SeqCst) {
            return (true, true);
        }
        (self.refused.fetch_add(1, Ordering::SeqCst) % 2 == 1, false)
    }

    async fn through<T>(&self, act: impl Future<Output = Result<T>>) -> Result<T> {
        let (done, answered) = self.step();
        let outcome = if done { act.await } else { Err(Self::refusal()) };
        if answered { outcome } else { Err(Self::refusal()) }
    }
}

impl fmt::Display for Unsteady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unsteady")
    }
}

#[async_trait]
impl ObjectStore for Unsteady {
    async fn put_opts(&self, at: &Path, body: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.through(self.inner.put_opts(at, body, o)).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.through(self.inner.put_multipart_opts(at, o)).await
    }

    async fn get_opts(&self, at: &Path, o: GetOptions) -> Result<GetResult> {
        self.through(self.inner.get_opts(at, o)).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (done, answered) = self.step();
        if !done {
            return futures::stream::once(async { Err(Self::refusal()) }).boxed();
        }
        let deleted = self.inner.delete_stream(at);
        deleted.map(move |one| if answered { one } else { Err(Self::refusal()) }).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.step() {
            (_, true) => self.inner.list(prefix),
            _ => futures::stream::once(async { Err(Self::refusal()) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.through(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, o: CopyOptions) -> Result<()> {
        self.through(self.inner.copy_opts(from, to, o)).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_that_an_outage_cuts_lose_nothing_and_leave_nothing() {
    // Guards against a round whose rows may or may not be in the bucket: extents that are taken
    // for moved and are not, segments deleted under them, and copies that nobody deletes.
    let seed = std::env::var("SEALFS_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let inner = Arc::new(InMemory::new());
    let (away, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    let store = Arc::new(Unsteady { inner: inner.clone(), away, refused });
    let bench = Bench::over(store.clone()).await;
    let mut wanted = vec![0u8; 4 * MIB];
    let mut cleaned = 0;
    for round in 0..ROUNDS {
        // A round that failed is not tried again for minutes: each has a mount of its own.
        let m = bench.mount_with(|o| {
            o.clean = CleanOptions {
                dead_bytes_min: MIB as u64,
                tiny_min: 4,
                look_every: Duration::ZERO,
            };
            o.commit_interval = Duration::from_millis(20);
            o.dead_grace = Duration::from_secs(1);
        });
        let m = m.await.expect("mounts");
        let ino = match round {
            0 => write_file(&m.fs, Ino::ROOT, "a", &wanted).await,
            _ => find(&m.fs, "a").await,
        };
        for _ in 0..8 {
            let mut new = vec![0; 200_000];
            rng.fill(&mut new[..]);
            let at = rng.random_range(0..wanted.len() - new.len());
            wanted[at..at + new.len()].copy_from_slice(&new);
            let wrote = m.fs.write(ino, at as u64, Bytes::from(new), WriteFlags::default()).await;
            wrote.expect("writes");
            assert!(m.sync(LONG).await);
        }
        // The outage begins at some request of the round, or of a commit, and lasts for some.
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..4000))).await;
        let refusals = store.refused.load(Ordering::SeqCst) + rng.random_range(1..6);
        store.away.store(true, Ordering::SeqCst);
        let since = Instant::now();
        while store.refused.load(Ordering::SeqCst) < refusals
            && since.elapsed() < Duration::from_millis(500)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        store.away.store(false, Ordering::SeqCst);
        for place in ["remembered", "fetched"] {
            assert_eq!(read_file(&m.fs, "a").await, wanted, "round {round}, {place}");
            assert!(m.sync(LONG).await);
            m.view().invalidate();
        }
        cleaned += m.control.status().cleaned_bytes;
        assert!(m.shutdown(LONG).await);
    }
    let refused = store.refused.load(Ordering::SeqCst);
    eprintln!("{refused} requests refused, {cleaned} bytes cleaned");
    assert!(refused > ROUNDS / 2 && cleaned > 0, "no outage befell anything");
    let local = tempfile::tempdir().expect("tempdir");
    let elsewhere = Bench { store: inner.clone(), local };
    let report = elsewhere.fsck(|o| o.data = true).await;
    assert_eq!(report.problems, []);
    let leaked = report.notes.iter().find(|note| note.contains("never committed"));
    assert_eq!(leaked, None);
    let m = elsewhere.mount().await;
    assert_eq!(read_file(&m.fs, "a").await, wanted);
    m.shutdown(LONG).await;
    let held = inner.list(None).map_ok(|o| o.size).try_fold(0, async |sum, size| Ok(sum + size));
    eprintln!("{} bytes in the bucket", held.await.expect("lists"));
}
