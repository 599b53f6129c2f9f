//! object_store's public conformance suite over the layers of the stack, alone and together.
//!
//! Cases that a layer cannot meet, and why:
//! * `put_get_attributes`: the file store and the sealed layer answer `NotImplemented`, which the
//!   suite accepts: attributes would reach the bucket in the clear.
//! * `get_opts` with a `version`: only stores with versions run it; none of these has.
//! * `multipart`, `multipart_with_opts`, `multipart_put_part_out_of_order`: they test
//!   `MultipartStore`, which is an adapter's interface, not a layer's.
//! * `list_paginated`: likewise `PaginatedListStore`.
//! * `multipart_out_of_order` and `multipart_race_condition` are met.

use object_store::integration::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::seal::VolumeKeys;
use sealfs::store::*;
use std::sync::Arc;

async fn conforms(store: &dyn ObjectStore) {
    put_get_delete_list(store).await;
    list_uses_directories_correctly(store).await;
    list_with_delimiter(store).await;
    list_with_offset_exclusivity(store).await;
    get_opts(store).await;
    put_opts(store, true).await;
    clear(store).await;
    rename_and_copy(store).await;
    copy_if_not_exists(store).await;
    copy_rename_nonexistent_object(store).await;
    let e = get_nonexistent_object(store, None).await.unwrap_err();
    assert!(matches!(e, object_store::Error::NotFound { .. }), "{e}");
    clear(store).await;
    stream_get(store).await;
    multipart_out_of_order(store).await;
    multipart_race_condition(store, true).await;
}

async fn clear(store: &dyn ObjectStore) {
    use futures::TryStreamExt;
    let all: Vec<_> = store.list(None).map_ok(|m| m.location).try_collect().await.unwrap();
    for location in all {
        store.delete(&location).await.unwrap();
    }
}

fn keys() -> VolumeKeys {
    VolumeKeys::random_for_tests(7)
}

fn retry(inner: Arc<dyn ObjectStore>) -> Retry {
    Retry::new(inner, RetryOptions::default(), Arc::new(RequestStats::default()))
}

/// Caches every object whatever its name, so that the suite meets the cache at all.
fn cached(inner: Arc<dyn ObjectStore>, dir: &std::path::Path) -> Arc<Cached> {
    let rules =
        vec![CacheRule { applies: |_: &Path| true, fetch_min: 64 << 10, keep_uploads: true }];
    let options = CacheOptions { rules, ..CacheOptions::new(dir.to_path_buf()) };
    Arc::new(Cached::new(inner, options, Arc::new(RequestStats::default())).unwrap())
}

#[tokio::test]
async fn retry_over_memory_conforms() {
    // Guards against the retry layer changing what a store means.
    let store = retry(Arc::new(InMemory::new()));
    conforms(&store).await;
    clear(&store).await;
    put_get_attributes(&store).await;
}

#[tokio::test]
async fn file_store_conforms_with_conditional_updates() {
    // Guards against file:// differing from a bucket.
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::create(dir.path()).unwrap();
    conforms(&store).await;
    clear(&store).await;
    put_get_attributes(&store).await;
}

#[tokio::test]
async fn cached_over_memory_conforms() {
    // Guards against the cache answering with what was overwritten or deleted.
    let dir = tempfile::tempdir().unwrap();
    let store = cached(Arc::new(InMemory::new()), dir.path());
    conforms(&store).await;
    clear(&store).await;
    put_get_attributes(&store).await;
}

#[tokio::test]
async fn sealed_over_memory_conforms() {
    // Guards against sealing showing through sizes, ranges, conditions or listings.
    let store = Sealed::new(Arc::new(InMemory::new()), keys());
    conforms(&store).await;
    clear(&store).await;
    put_get_attributes(&store).await;
}

#[tokio::test]
async fn the_whole_stack_over_files_conforms() {
    // Guards against layers that conform alone and not together.
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = Arc::new(FileStore::create(dir.path()).unwrap());
    let cached = cached(Arc::new(retry(file)), cache.path());
    let store = Sealed::with_cache(cached.clone(), keys(), Some(cached));
    conforms(&store).await;
    clear(&store).await;
    put_get_attributes(&store).await;
}
