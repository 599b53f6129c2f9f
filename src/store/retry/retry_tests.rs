//! The retry layer over a store that fails as scripted.

use super::*;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{Error, ObjectStoreExt, UpdateVersion};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::time::Instant;

/// What the next request meets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Fails without acting.
    Before(ErrorClass),
    /// Acts, then fails.
    After(ErrorClass),
    /// Never answers.
    Hang,
    /// Answers with the body cut off after one byte, without saying so.
    Cut,
}

#[derive(Debug, Default)]
struct Flaky {
    inner: InMemory,
    script: Mutex<VecDeque<Fault>>,
    requests: Mutex<u32>,
}

impl Flaky {
    fn next(&self) -> Fault {
        *self.requests.lock() += 1;
        self.script.lock().pop_front().unwrap_or(Fault::None)
    }

    fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.script.lock() = faults.into_iter().collect();
        *self.requests.lock() = 0;
    }

    async fn meet<T>(&self, act: impl Future<Output = Result<T>>) -> Result<T> {
        let fail = |class| Err(StoreError::new(class, "scripted").into_store("flaky"));
        match self.next() {
            Fault::Before(class) => fail(class),
            Fault::After(class) => {
                act.await?;
                fail(class)
            }
            Fault::Hang => std::future::pending().await,
            Fault::None | Fault::Cut => act.await,
        }
    }
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flaky")
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, l: &Path, p: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.meet(self.inner.put_opts(l, p, o)).await
    }
    async fn put_multipart_opts(
        &self,
        l: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(l, o).await
    }
    async fn get_opts(&self, l: &Path, o: GetOptions) -> Result<GetResult> {
        let cut = self.script.lock().front() == Some(&Fault::Cut);
        let mut result = self.meet(self.inner.get_opts(l, o)).await?;
        if cut {
            let one = Bytes::from_static(b"x");
            result.payload = GetResultPayload::Stream(stream::iter([Ok(one)]).boxed());
        }
        Ok(result)
    }
    fn delete_stream(
        &self,
        l: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.next() {
            Fault::Before(class) => {
                l.map(move |_| Err(StoreError::new(class, "scripted").into_store("flaky"))).boxed()
            }
            _ => self.inner.delete_stream(l),
        }
    }
    fn list(&self, p: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let all = self.inner.list(p);
        match self.next() {
            Fault::Before(class) => all
                .take(2)
                .chain(stream::once(async move {
                    Err(StoreError::new(class, "scripted").into_store("flaky"))
                }))
                .boxed(),
            _ => all,
        }
    }
    async fn list_with_delimiter(&self, p: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(p).await
    }
    async fn copy_opts(&self, f: &Path, t: &Path, o: CopyOptions) -> Result<()> {
        self.meet(self.inner.copy_opts(f, t, o)).await
    }
}

use Fault::{After, Before, Cut, Hang};
const LOST: ErrorClass = ErrorClass::Transport;

fn quick() -> (Arc<Flaky>, Retry) {
    let flaky = Arc::new(Flaky::default());
    let options = RetryOptions {
        read_timeout: Duration::from_millis(600),
        read_attempt_timeout: Duration::from_millis(50),
        write_timeout: Duration::from_millis(600),
        write_attempt_timeout: Duration::from_millis(50),
        backoff_first: Duration::from_millis(2),
        backoff_max: Duration::from_millis(10),
        jitter_seed: 1,
        list_ordered: true,
        limits: Arc::default(),
    };
    (flaky.clone(), Retry::new(flaky, options, Arc::default()))
}

#[tokio::test]
async fn failures_of_transport_and_throttling_are_retried_and_hanging_is_one() {
    // Guards against giving up on what would pass, and against waiting on silence for ever.
    let (flaky, retry) = quick();
    let path = Path::from("a");
    flaky.script([Before(LOST), Before(ErrorClass::Throttled), Hang]);
    retry.put(&path, "body".into()).await.unwrap();
    assert_eq!(*flaky.requests.lock(), 4);
    flaky.script([Hang, Cut, Before(LOST)]);
    assert_eq!(retry.get(&path).await.unwrap().bytes().await.unwrap(), "body");
    assert_eq!(*flaky.requests.lock(), 4);
    let seen = retry.attempts.stats().snapshot();
    assert_eq!((seen.put, seen.get, seen.retries, seen.errors), (4, 4, 6, 6));
}

#[tokio::test]
async fn permanent_failures_are_not_retried() {
    // Guards against a 403 or a damaged object being asked for again for thirty seconds.
    let (flaky, retry) = quick();
    for class_given in [ErrorClass::Auth, ErrorClass::SseMismatch, ErrorClass::Corrupt] {
        flaky.script([Before(class_given)]);
        let e = retry.put(&Path::from("a"), "b".into()).await.unwrap_err();
        assert_eq!((class(&e), *flaky.requests.lock()), (class_given, 1));
    }
    flaky.script([]);
    let e = retry.get(&Path::from("none")).await.unwrap_err();
    assert!(matches!(e, Error::NotFound { .. }));
    assert_eq!(*flaky.requests.lock(), 1);
}

#[tokio::test]
async fn an_unanswered_create_is_settled_by_reading_back() {
    // Guards against "already exists" for our own object (the manifest would seem fenced), and
    // against success for another's.
    let (flaky, retry) = quick();
    let path = Path::from("a");
    let create = || PutOptions::from(PutMode::Create);
    flaky.script([After(LOST)]);
    let put = retry.put_opts(&path, "ours".into(), create()).await.unwrap();
    assert_eq!(put.e_tag, flaky.inner.head(&path).await.unwrap().e_tag);
    // Without an unanswered attempt there is nothing to settle, even for equal bytes.
    flaky.script([]);
    let e = retry.put_opts(&path, "ours".into(), create()).await.unwrap_err();
    assert!(matches!(e, Error::AlreadyExists { .. }));
    flaky.script([Before(LOST)]);
    let e = retry.put_opts(&path, "theirs".into(), create()).await.unwrap_err();
    assert!(matches!(e, Error::AlreadyExists { .. }));
    // An update likewise; the read back may itself fail at first.
    let version = UpdateVersion { e_tag: put.e_tag.clone(), version: None };
    let update = PutOptions::from(PutMode::Update(version));
    flaky.script([After(LOST), Fault::None, Before(LOST)]);
    retry.put_opts(&path, "next".into(), update.clone()).await.unwrap();
    let e = retry.put_opts(&path, "stale".into(), update).await.unwrap_err();
    assert!(matches!(e, Error::Precondition { .. }));
}

#[tokio::test]
async fn an_outage_ends_reads_at_their_deadline_and_shows_in_the_health() {
    // Guards against a read that hangs while the network is away, and a status that says online.
    let (flaky, retry) = quick();
    let health = retry.health();
    flaky.script(std::iter::repeat_n(Before(LOST), 10_000));
    let begun = Instant::now();
    let e = retry.get(&Path::from("a")).await.unwrap_err();
    assert_eq!(class(&e), ErrorClass::Transport);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
    assert!(matches!(&*health.borrow(), Health::OfflineSince(_, why) if why.contains("scripted")));
    flaky.script([]);
    // Any answer will do, also "not found".
    assert!(retry.get(&Path::from("a")).await.is_err());
    assert_eq!(*health.borrow(), Health::Online);
}

#[tokio::test]
async fn deletes_and_listings_go_on_where_they_failed() {
    // Guards against objects left behind or listed twice after a fault in the middle.
    let (flaky, retry) = quick();
    let paths: Vec<Path> = (0..7).map(|i| Path::from(format!("d/{i}"))).collect();
    for path in &paths {
        retry.put(path, "x".into()).await.unwrap();
    }
    flaky.script([Before(LOST), Before(LOST)]);
    let listed: Vec<_> = retry.list(None).map_ok(|m| m.location).try_collect().await.unwrap();
    assert_eq!(listed, paths);
    flaky.script([Before(LOST), Before(ErrorClass::Throttled)]);
    let all = stream::iter(paths.clone()).map(Ok).boxed();
    let deleted: Vec<_> = retry.delete_stream(all).try_collect().await.unwrap();
    assert_eq!(deleted, paths);
    assert_eq!(retry.list(None).try_collect::<Vec<_>>().await.unwrap(), []);
    // A fault for good is reported for each.
    flaky.script([Before(ErrorClass::Auth)]);
    let all = stream::iter(paths.clone()).map(Ok).boxed();
    let failed: Vec<_> = retry.delete_stream(all).collect().await;
    assert!(
        failed.len() == 7
            && failed.iter().all(|r| class(r.as_ref().unwrap_err()) == ErrorClass::Auth)
    );
}
