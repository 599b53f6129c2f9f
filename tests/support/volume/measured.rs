//! A store in memory every request of which takes one round trip of virtual time, under a clock that
//! stands still while anything is computed: what a thing costs in round trips one after the other is
//! exact, whatever the machine does meanwhile.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::time::Instant;

/// What one request takes.
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// A request: when it began, in round trips since the last [`Measured::begin`], and what it was.
pub type Asked = (u64, String);

pub struct Measured {
    pub inner: Arc<InMemory>,
    asked: Mutex<(Instant, Vec<Asked>)>,
}

/// What something has cost.
#[derive(Debug)]
pub struct Cost {
    /// Round trips one after the other.
    pub trips: u64,
    /// Every request, in the order in which they began.
    pub asked: Vec<Asked>,
}

impl Cost {
    /// Requests of one kind: `GET`, `PUT`, `LIST`, `DELETE`.
    pub fn of(&self, kind: &str) -> usize {
        self.asked.iter().filter(|(_, what)| what.starts_with(kind)).count()
    }

    /// For people.
    pub fn shown(&self) -> String {
        let lines = self.asked.iter().map(|(at, what)| format!("\n{at:3} {what}"));
        format!("{} round trips{}", self.trips, lines.collect::<String>())
    }
}

impl Measured {
    /// Must be made, and used, under a paused clock.
    pub fn new(inner: Arc<InMemory>) -> Arc<Measured> {
        Arc::new(Measured { inner, asked: Mutex::new((Instant::now(), Vec::new())) })
    }

    /// From now on it is counted.
    pub fn begin(&self) {
        *self.asked.lock() = (Instant::now(), Vec::new());
    }

    /// What was asked since [`Measured::begin`].
    pub fn cost(&self) -> Cost {
        let (begun, asked) = &*self.asked.lock();
        Cost { trips: trips_since(*begun), asked: asked.clone() }
    }

    async fn trip(&self, what: &str, at: &Path) {
        {
            let mut asked = self.asked.lock();
            let begun = asked.0;
            asked.1.push((trips_since(begun), format!("{what} {at}")));
        }
        tokio::time::sleep(ROUND_TRIP).await;
    }
}

/// Pauses of a few milliseconds, as between attempts, are no round trips.
fn trips_since(begun: Instant) -> u64 {
    (begun.elapsed().as_millis() / ROUND_TRIP.as_millis()) as u64
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Measured")
    }
}

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Measured")
    }
}

#[async_trait]
impl ObjectStore for Measured {
    async fn put_opts(&self, at: &Path, body: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.trip("PUT", at).await;
        self.inner.put_opts(at, body, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.trip("PUT", at).await;
        self.inner.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &Path, o: GetOptions) -> Result<GetResult> {
        self.trip(if o.head { "GET(head)" } else { "GET" }, at).await;
        self.inner.get_opts(at, o).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let now = Instant::now();
        let mut asked = self.asked.lock();
        let begun = asked.0;
        asked.1.push((((now - begun).as_millis() / 100) as u64, "DELETE".into()));
        drop(asked);
        let inner = self.inner.clone();
        futures::stream::once(tokio::time::sleep(ROUND_TRIP))
            .flat_map(move |()| inner.delete_stream(futures::stream::empty().boxed()))
            .chain(self.inner.delete_stream(at))
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let begun = self.asked.lock().0;
        let shown = prefix.cloned().unwrap_or_default();
        self.asked.lock().1.push((trips_since(begun), format!("LIST {shown}")));
        let (inner, prefix) = (self.inner.clone(), prefix.cloned());
        futures::stream::once(tokio::time::sleep(ROUND_TRIP))
            .flat_map(move |()| inner.list(prefix.as_ref()))
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.trip("LIST", &prefix.cloned().unwrap_or_default()).await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, o: CopyOptions) -> Result<()> {
        self.trip("COPY", to).await;
        self.inner.copy_opts(from, to, o).await
    }
}
