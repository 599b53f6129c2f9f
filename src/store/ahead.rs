//! Objects and listings that are fetched before they are asked for, so that a start which needs them
//! one after the other waits for them once. The wrapper just above the adapter, below `retry`.
//!
//! It hands each answer out once, to the first request for the same. What could not be fetched, or is
//! written meanwhile, is as if it had never been tried: a request for it goes to the store. So it
//! changes when something is read, never what is believed. Only `stack/` starts fetches, while a
//! volume is opened, and ends them with [`Ahead::end`].

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::error::{ErrorClass, class};
use super::whole::{Whole, answer};

/// A larger object is read when it is asked for.
const WHOLE_MAX: u64 = 1 << 20;
/// Names of a listing that is kept; a longer one is read when it is asked for.
const LISTED_MAX: usize = 8 << 10;
/// Fetches at a time.
const FETCHES_MAX: usize = 64;

/// A fetch under way or done; `None` if it failed.
struct Fetch<T>(JoinHandle<Option<T>>);

impl<T> Fetch<T> {
    async fn get(mut self) -> Option<T> {
        (&mut self.0).await.ok().flatten()
    }
}

impl<T> Drop for Fetch<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Fetches {
    wholes: HashMap<Path, Fetch<Option<Whole>>>,
    lists: HashMap<Path, Fetch<Vec<ObjectMeta>>>,
    used: bool,
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct Ahead {
    inner: Arc<dyn ObjectStore>,
    fetches: Arc<Mutex<Fetches>>,
}

impl Ahead {
    /// Fetches nothing yet.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Ahead {
        Ahead { inner, fetches: Arc::default() }
    }

    /// Begins to fetch an object, if it is not large. Must run inside a tokio runtime.
    pub fn whole(&self, location: Path) {
        let mut fetches = self.fetches.lock();
        if fetches.wholes.len() >= FETCHES_MAX || fetches.wholes.contains_key(&location) {
            return;
        }
        let (store, at) = (self.inner.clone(), location.clone());
        let fetch = tokio::spawn(async move {
            match store.get_opts(&at, GetOptions::default()).await {
                Ok(got) if got.meta.size <= WHOLE_MAX => {
                    let meta = got.meta.clone();
                    let bytes = got.bytes().await.ok()?;
                    (bytes.len() as u64 == meta.size).then_some(Some(Whole { meta, bytes }))
                }
                Err(e) if class(&e) == ErrorClass::NotFound => Some(None),
                _ => None,
            }
        });
        fetches.wholes.insert(location, Fetch(fetch));
    }

    /// Begins to list what is below `prefix`, and then to fetch what `then` chooses of it.
    pub fn list(&self, prefix: Path, then: impl Fn(&[ObjectMeta]) -> Vec<Path> + Send + 'static) {
        let mut fetches = self.fetches.lock();
        if fetches.lists.len() >= FETCHES_MAX || fetches.lists.contains_key(&prefix) {
            return;
        }
        let (ahead, below) = (self.clone(), prefix.clone());
        let fetch = tokio::spawn(async move {
            let mut listed = ahead.inner.list(Some(&below)).take(LISTED_MAX + 1);
            let mut found = Vec::new();
            while let Some(meta) = listed.try_next().await.ok()? {
                found.push(meta);
            }
            if found.len() > LISTED_MAX {
                return None;
            }
            then(&found).into_iter().for_each(|location| ahead.whole(location));
            Some(found)
        });
        fetches.lists.insert(prefix, Fetch(fetch));
    }

    /// From now on nothing that was fetched is handed out.
    pub fn end(&self) {
        *self.fetches.lock() = Fetches::default();
    }

    /// Whether something that was fetched ahead has been handed out since it was begun.
    pub fn was_used(&self) -> bool {
        self.fetches.lock().used
    }

    fn take(&self, location: &Path) -> Option<Fetch<Option<Whole>>> {
        let mut fetches = self.fetches.lock();
        let fetch = fetches.wholes.remove(location);
        fetches.used |= fetch.is_some();
        fetch
    }
}

/// Whether a read asks for nothing but bytes of the object as it is.
fn is_plain(options: &GetOptions) -> bool {
    options.version.is_none()
        && options.if_match.is_none()
        && options.if_none_match.is_none()
        && options.if_modified_since.is_none()
        && options.if_unmodified_since.is_none()
}

#[async_trait]
impl ObjectStore for Ahead {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        drop(self.take(location));
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        drop(self.take(location));
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fetch = if is_plain(&options) { self.take(location) } else { None };
        match fetch {
            Some(fetch) => match fetch.get().await {
                Some(whole) => answer(location, whole, &options),
                None => self.inner.get_opts(location, options).await,
            },
            None => self.inner.get_opts(location, options).await,
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let fetch = prefix.and_then(|prefix| self.fetches.lock().lists.remove(prefix));
        let Some(fetch) = fetch else { return self.inner.list(prefix) };
        let (inner, prefix) = (self.inner.clone(), prefix.cloned());
        let listed = async move {
            match fetch.get().await {
                Some(found) => stream::iter(found.into_iter().map(Ok)).boxed(),
                None => inner.list(prefix.as_ref()),
            }
        };
        stream::once(listed).flatten().boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        drop(self.take(to));
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        drop(self.take(from));
        drop(self.take(to));
        self.inner.rename_opts(from, to, options).await
    }
}

impl fmt::Display for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ahead({:?})", self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn what_was_fetched_is_handed_out_once_and_never_after_a_write() {
        // Guards against an answer of the start that is believed for ever after.
        let memory = Arc::new(InMemory::new());
        let ahead = Ahead::new(memory.clone());
        let (one, two, none) = (Path::from("d/one"), Path::from("d/two"), Path::from("d/none"));
        let at = [&one, &two];
        for at in at {
            memory.put(at, "old".into()).await.expect("puts");
        }
        let text =
            async |at: &Path| ahead.get(at).await.expect("there").bytes().await.expect("reads");
        let both = vec![one.clone(), two.clone()];
        ahead.list(Path::from("d"), move |found| {
            assert_eq!(found.len(), 2);
            both.clone()
        });
        ahead.whole(none.clone());
        while ahead.fetches.lock().wholes.len() < 3
            || !ahead.fetches.lock().wholes.values().all(|fetch| fetch.0.is_finished())
        {
            tokio::task::yield_now().await;
        }
        memory.put(&one, "new".into()).await.expect("puts");
        memory.put(&none, "new".into()).await.expect("puts");
        assert_eq!(text(&one).await, "old", "as it was when it was fetched");
        assert_eq!(text(&one).await, "new", "as it is");
        assert!(matches!(ahead.get(&none).await, Err(object_store::Error::NotFound { .. })));
        assert_eq!(text(&none).await, "new");
        ahead.put(&two, "own".into()).await.expect("puts");
        assert_eq!(text(&two).await, "own");
        let listed = async || ObjectStore::list(&ahead, Some(&Path::from("d"))).count().await;
        assert_eq!(listed().await, 2, "as it was when it was listed");
        assert_eq!(listed().await, 3, "as it is");
        ahead.whole(one.clone());
        ahead.end();
        memory.put(&one, "last".into()).await.expect("puts");
        assert_eq!(text(&one).await, "last");
    }
}
