//! Unit tests of `kv`.

use super::*;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};

const OPEN_MAX: Duration = Duration::from_secs(30);
/// Far above what closing takes, far below what it took.
const PROMPT: Duration = Duration::from_secs(20);

async fn with_level_0_full(store: &Arc<dyn ObjectStore>) -> Arc<Kv> {
    let kv = Kv::open(store.clone(), KvOptions::default(), OPEN_MAX).await.expect("opens");
    for n in 0..L0_MAX as u8 {
        kv.commit([(Bytes::from(vec![n]), Some(Bytes::from_static(b"x")))]).await.expect("one");
        kv.flush_memtable().await.expect("flushes");
    }
    kv.commit([(Bytes::from_static(b"last"), Some(Bytes::from_static(b"y")))])
        .await
        .expect("commits");
    Arc::new(kv)
}

async fn last(store: Arc<dyn ObjectStore>) -> Option<Bytes> {
    let kv = Kv::open_reader(store, KvOptions::default(), OPEN_MAX).await.expect("opens");
    kv.get(b"last").await.expect("reads")
}

#[tokio::test]
async fn closing_does_not_wait_for_room_in_level_0() {
    // Guards against an unmount that takes its longest time whenever level 0 is full: the last
    // flush would wait for a compaction, which the closed database does not let end.
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let kv = with_level_0_full(&store).await;
    tokio::time::timeout(PROMPT, kv.close(true)).await.expect("in time").expect("closes");
    assert_eq!(last(store).await.as_deref(), Some(&b"y"[..]));
}

#[tokio::test]
async fn closing_stops_a_compaction_and_lets_none_begin() {
    // Guards against a compaction that is left running, or that fails loudly because the
    // database was closed under it.
    let slow = ThrottleConfig {
        wait_get_per_call: Duration::from_millis(40),
        ..ThrottleConfig::default()
    };
    let slow = ThrottledStore::new(InMemory::new(), slow);
    let store: Arc<dyn ObjectStore> = Arc::new(slow);
    let kv = with_level_0_full(&store).await;
    kv.compact_if_needed(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::timeout(PROMPT, kv.close(true)).await.expect("in time").expect("closes");
    assert!(!*kv.compacting.borrow(), "it goes on after the end");
    kv.compact_if_needed(true);
    assert!(!*kv.compacting.borrow(), "one begins after the end");
    assert_eq!(last(store).await.as_deref(), Some(&b"y"[..]));
}
