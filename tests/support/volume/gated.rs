//! A store in memory behind a gate, which says of each request whether it acts and whether its
//! answer arrives.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

pub trait Gate: Send + Sync + 'static {
    /// A request comes: whether it acts, and whether its answer arrives.
    fn step(&self, what: &str, at: &Path) -> (bool, bool);

    /// The answer to a GET has so many bytes.
    fn answers(&self, _at: &Path, _bytes: u64) {}

    /// Whether an object is left out of listings.
    fn hides(&self, _at: &Path) -> bool {
        false
    }

    /// What is said where the answer does not arrive.
    fn instead(&self, _at: &Path) -> Error {
        let source = "the gate is shut".into();
        Error::PermissionDenied { path: String::new(), source }
    }
}

pub struct Gated<G> {
    pub inner: Arc<InMemory>,
    pub gate: G,
}

/// Of a class that is not repeated: who never gets an answer waits for nothing.
fn refusal<T>() -> Result<T> {
    let source = "the gate is shut".into();
    Err(Error::PermissionDenied { path: String::new(), source })
}

impl<G: Gate> Gated<G> {
    pub fn new(inner: Arc<InMemory>, gate: G) -> Arc<Gated<G>> {
        Arc::new(Gated { inner, gate })
    }

    async fn through<T>(
        &self,
        what: &str,
        at: &Path,
        act: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let (acts, answers) = self.gate.step(what, at);
        let outcome = if acts { act.await } else { refusal() };
        if answers { outcome } else { Err(self.gate.instead(at)) }
    }
}

impl<G> fmt::Display for Gated<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gated")
    }
}

impl<G> fmt::Debug for Gated<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gated")
    }
}

#[async_trait]
impl<G: Gate> ObjectStore for Gated<G> {
    async fn put_opts(&self, at: &Path, body: PutPayload, o: PutOptions) -> Result<PutResult> {
        let what = format!("PUT {:?}", o.mode).chars().take(10).collect::<String>();
        self.through(&what, at, self.inner.put_opts(at, body, o)).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.through("MULTIPART", at, self.inner.put_multipart_opts(at, o)).await
    }

    async fn get_opts(&self, at: &Path, o: GetOptions) -> Result<GetResult> {
        let answer = self.through("GET", at, self.inner.get_opts(at, o)).await?;
        self.gate.answers(at, answer.range.end - answer.range.start);
        Ok(answer)
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (acts, answers) = self.gate.step("DELETE", &Path::default());
        if !acts {
            return futures::stream::once(async { refusal() }).boxed();
        }
        let deleted = self.inner.delete_stream(at);
        deleted.map(move |one| if answers { one } else { refusal() }).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.gate.step("LIST", &Path::default()) {
            (_, true) => {
                let all: Vec<_> =
                    self.inner.list(prefix).collect().now_or_never().expect("at once");
                let shown = |one: &Result<ObjectMeta>| {
                    !one.as_ref().is_ok_and(|meta| self.gate.hides(&meta.location))
                };
                futures::stream::iter(all.into_iter().filter(shown).collect::<Vec<_>>()).boxed()
            }
            _ => futures::stream::once(async { refusal() }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let at = prefix.cloned().unwrap_or_default();
        self.through("LIST", &at, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, o: CopyOptions) -> Result<()> {
        self.through("COPY", to, self.inner.copy_opts(from, to, o)).await
    }
}
