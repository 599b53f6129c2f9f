//! A volume without a kernel: a store of the test's choice, a state directory, and the stack.
#![allow(dead_code)] // each test file uses a part of it

pub mod gated;
pub mod measured;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use sealfs::base::Ino;
use sealfs::fs::{Caller, Fs, WriteFlags};
use sealfs::seal::{KdfParams, Keyring, Secret};
use sealfs::stack::{
    FsckOptions, FsckReport, InitOptions, MountOptions, Mounted, StackError, StoreOptions, fsck,
    init, mount,
};
use sealfs::store::Location;
use tempfile::TempDir;

pub const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };
pub const LONG: Duration = Duration::from_secs(30);

pub fn secret() -> Secret {
    Secret::KeyFile(vec![7; 64].into())
}

/// The flags that reach `store`.
pub fn options_of(store: Arc<dyn ObjectStore>) -> StoreOptions {
    StoreOptions { custom: Some(store), ..StoreOptions::new(Location::Memory) }
}

/// Makes a volume in `store`, which opens with [`secret`].
pub async fn format(store: &Arc<dyn ObjectStore>) {
    init(init_options(store.clone(), secret(), "test")).await.expect("init");
}

/// What makes a volume in `store`, whose first slot has this secret and label.
pub fn init_options(store: Arc<dyn ObjectStore>, secret: Secret, label: &str) -> InitOptions {
    InitOptions {
        label: label.into(),
        kdf: KdfParams::FLOOR,
        ..InitOptions::new(options_of(store), secret)
    }
}

/// What a file of this name holds: `len` bytes, others for each name.
pub fn contents(name: &str, len: usize) -> Vec<u8> {
    let salt = name.bytes().map(usize::from).sum::<usize>();
    (0..len).map(|i| ((i * 13 + i / 251 + salt) % 253) as u8).collect()
}

/// Objects by name.
pub type Objects = BTreeMap<Path, Bytes>;

/// Every object in `store`.
pub async fn objects(store: &dyn ObjectStore) -> Objects {
    let list: Vec<_> = store.list(None).try_collect().await.expect("lists");
    let mut all = Objects::new();
    for meta in list {
        let bytes = store.get(&meta.location).await.expect("there").bytes().await.expect("reads");
        all.insert(meta.location, bytes);
    }
    all
}

/// Objects of the metadata store's log, in the order in which they were put, and their bytes.
pub async fn log_objects(store: &Arc<dyn ObjectStore>) -> BTreeMap<Path, u64> {
    let log = store.list(Some(&Path::from("meta/wal")));
    log.map_ok(|o| (o.location, o.size)).try_collect().await.expect("lists")
}

/// A store and what one machine keeps beside it.
pub struct Bench {
    pub store: Arc<dyn ObjectStore>,
    pub local: TempDir,
}

impl Bench {
    /// A new volume in memory.
    pub async fn new() -> Bench {
        Bench::over(Arc::new(InMemory::new())).await
    }

    /// A new volume in `store`.
    pub async fn over(store: Arc<dyn ObjectStore>) -> Bench {
        format(&store).await;
        Bench::seeing(store)
    }

    /// A machine that knows nothing yet, and sees `store`.
    pub fn seeing(store: Arc<dyn ObjectStore>) -> Bench {
        Bench { store, local: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn state(&self) -> PathBuf {
        self.local.path().join("state")
    }

    pub fn mount_options(&self) -> MountOptions {
        let cache = self.local.path().join("cache");
        let mut options =
            MountOptions::new(options_of(self.store.clone()), secret(), cache, self.state());
        options.cache_bytes_max = 0;
        options.journal_bytes_max = 32 << 20;
        options
    }

    /// Mounts; a task of the mount before may still hold its journal for a moment.
    pub async fn mount_with(
        &self,
        change: impl Fn(&mut MountOptions),
    ) -> Result<Mounted, StackError> {
        for _ in 0..100 {
            let mut options = self.mount_options();
            change(&mut options);
            match mount(options).await {
                Err(StackError::Journal(sealfs::journal::JournalError::InUse(_))) => {}
                outcome => return outcome,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the journal stays in use");
    }

    pub async fn mount(&self) -> Mounted {
        self.mount_with(|_| {}).await.expect("mounts")
    }

    pub fn fsck_options(&self) -> FsckOptions {
        FsckOptions {
            store: options_of(self.store.clone()),
            key: secret().into(),
            state_dir: self.state(),
            data: false,
            resume: false,
            repair: false,
            at_least: 0,
            read_timeout: LONG,
        }
    }

    pub async fn fsck(&self, change: impl FnOnce(&mut FsckOptions)) -> FsckReport {
        let mut options = self.fsck_options();
        change(&mut options);
        fsck(options, Arc::default()).await.expect("fsck")
    }
}

/// Waits until the volume looks so.
pub async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is().await {
        assert!(begun.elapsed() < LONG, "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The segments in `store`.
pub async fn segments(store: &dyn ObjectStore) -> Vec<ObjectMeta> {
    store.list(Some(&Path::from("seg"))).try_collect().await.expect("lists")
}

/// The keyring in `store`.
pub async fn keyring(store: &dyn ObjectStore) -> Keyring {
    let got = store.get(&Path::from("keyring")).await.expect("there");
    Keyring::parse(&got.bytes().await.expect("reads")).expect("parses")
}

/// The secret of somebody else than [`secret`].
pub fn key_file(byte: u8) -> Secret {
    Secret::KeyFile(vec![byte; 48].into())
}

/// Makes a file with these contents.
pub async fn write_file(fs: &Arc<Fs>, dir: Ino, name: &str, contents: &[u8]) -> Ino {
    let made = fs.create(CALLER, dir, name.into(), 0o644, 0).await.expect("creates");
    for (n, piece) in contents.chunks(1 << 20).enumerate() {
        let at = (n as u64) << 20;
        let data = Bytes::copy_from_slice(piece);
        fs.write(made.ino, at, data, WriteFlags::default()).await.expect("writes");
    }
    made.ino
}

/// Follows `path` from the root.
pub async fn find(fs: &Arc<Fs>, path: &str) -> Ino {
    let mut at = Ino::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = fs.lookup(at, name.into()).await.unwrap_or_else(|e| panic!("{path}: {name}: {e}")).ino;
    }
    at
}

pub async fn read_file(fs: &Arc<Fs>, path: &str) -> Bytes {
    let ino = find(fs, path).await;
    let size = fs.getattr(ino).await.expect("stats").size as u32;
    fs.read(ino, 0, size).await.unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Whether a sealed object opens with these keys; `all` are the others of its bucket, one of which
/// it may be bound to.
pub fn opens(keys: &sealfs::seal::VolumeKeys, at: &Path, bytes: &Bytes, all: &Objects) -> bool {
    let Some(header) = bytes.first_chunk::<{ sealfs::seal::HEADER }>() else { return false };
    let number = at.as_ref().strip_prefix("meta/wal/").and_then(|name| name.strip_suffix(".sst"));
    let Some(number) = number.and_then(|digits| digits.parse::<u64>().ok()) else {
        return keys.object_opener(at.as_ref(), header).is_ok();
    };
    let before = format!("meta/wal/{:020}.sst", number - 1);
    let before = all.get(&object_store::path::Path::from(before));
    let behind = before.map_or([0; 32], |b| b[24..56].try_into().expect("a commitment"));
    keys.log_opener(at.as_ref(), &behind, header).is_ok()
}
