//! Checkpoints: states of the database that stay readable, whatever is written and collected later.
//!
//! A checkpoint is a manifest that SlateDB keeps, and with it the tables which that names. Everything
//! is put into tables first, so that a checkpoint needs nothing of the log.

use std::fmt::Debug;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use slatedb::config::{CheckpointOptions, CheckpointScope, DbReaderOptions};
use slatedb::{DbReader, DbReaderMode};

use crate::base::hex;

use super::{Handle, Kv, KvError, META_PREFIX, bounded};

/// What SlateDB knows our checkpoints by; those of its compactor have no name.
const NAME: &str = "sealfs";

/// A checkpoint that was just made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Names it.
    pub id: [u8; 16],
    /// The number of its manifest.
    pub manifest: u64,
}

/// The same name as SlateDB has it.
fn named<T: FromStr<Err: Debug>>(id: [u8; 16]) -> T {
    hex(&id).parse().expect("32 hex digits are a UUID")
}

impl Kv {
    /// Makes a checkpoint of everything that was committed. Costs an object for what was only in the
    /// log, if there is anything, and one for the manifest. It may wait for a compaction when level 0
    /// is full.
    ///
    /// # Errors
    /// The store's: there may be a checkpoint all the same ([`Kv::checkpoints`]).
    pub async fn make_checkpoint(&self) -> Result<Checkpoint, KvError> {
        let db = self.writer()?;
        let name = Some(NAME.to_string());
        let options = CheckpointOptions { name, ..CheckpointOptions::default() };
        let made = db.create_checkpoint(CheckpointScope::All, &options).await?;
        self.commits.store(0, Ordering::Relaxed);
        Ok(Checkpoint { id: *made.id.as_bytes(), manifest: made.manifest_id })
    }

    /// Lets go of a checkpoint: what only it needed is collected later. One that is not there is no
    /// error. Three requests.
    pub async fn delete_checkpoint(&self, id: [u8; 16]) -> Result<(), KvError> {
        let db = self.writer()?;
        let store = Arc::new(self.store().aside());
        let admin = slatedb::admin::Admin::builder(META_PREFIX, store).build();
        admin.delete_checkpoint(named(id)).await?;
        Ok(db.refresh_manifest().await?)
    }

    /// Our checkpoints, as the manifest has them that this handle has seen last. No request.
    pub fn checkpoints(&self) -> Vec<[u8; 16]> {
        let manifest = match self.handle() {
            Handle::Writer(db) => db.manifest(),
            Handle::Reader(db) => db.manifest(),
        };
        let ours = manifest.checkpoints().iter().filter(|c| c.name.as_deref() == Some(NAME));
        ours.map(|checkpoint| *checkpoint.id.as_bytes()).collect()
    }

    /// A handle that reads a checkpoint, and never anything else. It shares caches, limits and the
    /// store of this one, holds next to nothing itself, and is to be closed. Three requests.
    ///
    /// # Errors
    /// [`KvError::Damaged`] if there is no such checkpoint; [`KvError::Unavailable`].
    pub async fn open_checkpoint(
        &self,
        id: [u8; 16],
        open_timeout: Duration,
    ) -> Result<Kv, KvError> {
        self.check_refused()?;
        // Older than what was read: no manifest that it reads continues that.
        let store = Arc::new(self.store().aside());
        let reader_options =
            DbReaderOptions { skip_wal_replay: true, ..DbReaderOptions::default() };
        let opening = async {
            let db = DbReader::builder(META_PREFIX, store.clone())
                .with_options(reader_options)
                .with_reader_mode(DbReaderMode::Checkpoint(named(id)))
                .with_db_cache(self.cache.clone(), 1)
                .build();
            Ok(db.await?)
        };
        let db = bounded(open_timeout, opening).await?;
        let (cache, options) = (self.cache.clone(), self.options.clone());
        let mut kv = Kv::new(Handle::Reader(Arc::new(db)), store, cache, options);
        kv.is_checkpoint = true;
        Ok(kv)
    }
}
