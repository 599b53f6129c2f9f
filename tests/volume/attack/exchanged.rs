//! Two volumes that one secret opens: whoever can write to the bucket can put the one in the place
//! of the other. A machine that has seen either, or was told which is meant, notices.

use std::sync::Arc;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use sealfs::base::{Ino, VolumeId};
use sealfs::stack::{
    KeyOptions, MountOptions, StackError, StackErrorKind, StoreOptions, fsck, open_keyring,
};

use super::put_all;
use crate::volume::{Bench, LONG, Objects, objects, options_of, secret, write_file};

async fn volume(name: &str) -> (Objects, VolumeId) {
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    let m = bench.mount().await;
    write_file(&m.fs, Ino::ROOT, name, name.as_bytes()).await;
    let id = m.volume;
    assert!(m.shutdown(LONG).await);
    (objects(&*bucket).await, id)
}

/// Puts one volume in the place of whatever is there.
async fn show(bucket: &InMemory, all: &Objects) {
    for at in objects(bucket).await.keys() {
        bucket.delete(at).await.expect("deletes");
    }
    put_all(bucket, all).await;
}

fn meaning(store: &StoreOptions, volume: VolumeId) -> StoreOptions {
    StoreOptions { volume: Some(volume), ..store.clone() }
}

fn is_other(e: &StackError, by_flag: bool) -> bool {
    assert_eq!(e.kind(), StackErrorKind::Corrupt, "{e}");
    matches!(e, StackError::OtherVolume { told, .. } if *told == by_flag)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchanged_volume_is_refused_by_who_has_seen_the_other_or_was_told_which_is_meant() {
    // Guards against a volume that is whole and opens, and is another one: both have one secret.
    let ((ours, our_id), (theirs, their_id)) = (volume("ours").await, volume("theirs").await);
    let bucket = Arc::new(InMemory::new());
    put_all(&*bucket, &ours).await;
    let local = tempfile::tempdir().expect("a temporary directory");
    let bench = Bench { store: bucket.clone(), local };
    assert!(bench.mount().await.shutdown(LONG).await);
    let ours = objects(&*bucket).await;
    show(&bucket, &theirs).await;
    for read_only in [false, true] {
        let refused = bench.mount_with(|o| o.read_only = read_only).await.err().expect("another");
        assert!(is_other(&refused, false), "{refused}");
        let (said, hint) = (refused.to_string(), refused.hint().expect("how to accept"));
        assert!(said.contains(&our_id.to_string()) && said.contains(&their_id.to_string()));
        assert!(hint.contains(&format!("--volume-id {their_id}")), "{hint}");
    }
    let refused = fsck(bench.fsck_options(), Arc::default()).await.expect_err("another");
    assert!(is_other(&refused, false), "{refused}");
    let key = KeyOptions {
        store: options_of(bucket.clone()),
        key: secret().into(),
        state_dir: bench.state(),
    };
    let refused = open_keyring(&key).await.expect_err("another");
    assert!(is_other(&refused, false), "{refused}");
    assert!(objects(&*bucket).await == theirs, "what is refused has written nothing");
    // A machine that has seen nothing, and is told.
    let local = tempfile::tempdir().expect("a temporary directory");
    let fresh = Bench { store: bucket.clone(), local };
    let mean = |id| move |o: &mut MountOptions| o.store = meaning(&o.store, id);
    let refused = fresh.mount_with(mean(our_id)).await.err().expect("not that one");
    assert!(is_other(&refused, true), "{refused}");
    let mut options = fresh.fsck_options();
    options.store.volume = Some(our_id);
    let refused = fsck(options, Arc::default()).await.expect_err("not that one");
    assert!(is_other(&refused, true), "{refused}");
    // Who means it says so, and is not asked again; the old one is the other one then.
    assert!(bench.mount_with(mean(their_id)).await.expect("meant").shutdown(LONG).await);
    assert!(bench.mount().await.shutdown(LONG).await);
    show(&bucket, &ours).await;
    let refused = bench.mount_with(|_| {}).await.err().expect("another");
    assert!(is_other(&refused, false), "{refused}");
}
