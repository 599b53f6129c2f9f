//! Which rows may differ between two states of a database: those in tables that only one of the two
//! reads.
//!
//! A row is what the newest table says that has its key. Where both states read that table and they
//! differ all the same, a newer one, which only one of them reads, has the key as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use slatedb::{SstReader, VersionedManifest};

use super::tables::table;
use super::{Handle, Kv, KvError, L0_MAX, LAST_FLUSH_MAX, META_PREFIX, bounded, flush_memtable};
use crate::store::error::{ErrorClass, class, told};

/// Bytes of tables that are compared, whose keys take twice as much memory meanwhile. More says little,
/// and costs as much as reading all there is.
const BYTES_MAX: u64 = 32 << 20;

/// The number of the newest write of a key that one state's own tables have, and the other's.
type Newest = [Option<u64>; 2];

impl Kv {
    /// Keys for which `wanted` holds and whose rows may differ between the state that this handle reads
    /// and that of `other`, a snapshot or a writer of the same database; what is only in the memory of
    /// a writer is put into a table before. One request for each table that only one of them reads.
    ///
    /// `None`: that cannot be told from the tables, or more than 32 MiB of them differ.
    ///
    /// # Errors
    /// The store's, while tables are read.
    pub async fn keys_apart(
        &self,
        other: &Kv,
        wanted: impl Fn(&[u8]) -> bool + Send,
    ) -> Result<Option<BTreeSet<Bytes>>, KvError> {
        self.check_refused()?;
        other.check_refused()?;
        let (Some(this), Some(that)) = (self.all_in_tables().await, other.all_in_tables().await)
        else {
            return Ok(None);
        };
        let [this, that] = [tables(&this), tables(&that)];
        let only = [less(&this, &that), less(&that, &this)];
        if only.iter().flat_map(|of| of.values()).sum::<u64>() > BYTES_MAX {
            return Ok(None);
        }
        let mut newest: BTreeMap<Bytes, Newest> = BTreeMap::new();
        for (side, tables) in only.iter().enumerate() {
            for id in tables.keys() {
                bounded(self.options.read_timeout, self.rows_of(id, side, &wanted, &mut newest))
                    .await?;
            }
        }
        // The same write in both: a compaction has only moved it.
        newest.retain(|_, [this, that]| this != that);
        Ok(Some(newest.into_keys().collect()))
    }

    /// The state that this handle reads, if tables have all of it.
    async fn all_in_tables(&self) -> Option<VersionedManifest> {
        match self.handle() {
            Handle::Reader(db) => self.is_checkpoint.then(|| db.manifest()),
            Handle::Writer(db) => {
                if db.manifest().l0().len() >= L0_MAX {
                    return None; // that would wait for a compaction
                }
                if let Err(e) = bounded(LAST_FLUSH_MAX, flush_memtable(&db)).await {
                    log::debug!("the metadata in memory are in no table: {e}");
                    return None;
                }
                Some(db.manifest())
            }
        }
    }

    /// Takes up the rows of one table.
    async fn rows_of(
        &self,
        id: &str,
        side: usize,
        wanted: &impl Fn(&[u8]) -> bool,
        newest: &mut BTreeMap<Bytes, Newest>,
    ) -> Result<(), KvError> {
        let at = table(id);
        // Fetched whole, which is one request, where a block would be one each.
        let failed = |e: &object_store::Error| match class(e) {
            ErrorClass::Corrupt | ErrorClass::NotFound => KvError::Damaged(told(e)),
            _ => KvError::Unavailable(told(e)),
        };
        let got = self.store().aside().get(&at).await.map_err(|e| failed(&e))?;
        let whole = got.bytes().await.map_err(|e| failed(&e))?;
        let memory = Arc::new(InMemory::new());
        memory.put(&at, whole.into()).await.map_err(|e| failed(&e))?;
        let reader = SstReader::new(META_PREFIX, memory as Arc<dyn ObjectStore>, None, None);
        let bad = |_| KvError::Damaged(format!("{at} is no table of the metadata"));
        let rows = reader.open(id.parse().map_err(bad)?).await?;
        for block in 0..rows.index().await?.len() {
            for row in rows.read_block(block).await? {
                if !wanted(&row.key) {
                    continue;
                }
                // A copy: the key is a slice of its block.
                let of = newest.entry(Bytes::copy_from_slice(&row.key)).or_default();
                of[side] = of[side].max(Some(row.seq));
            }
            tokio::task::coop::consume_budget().await;
        }
        Ok(())
    }
}

/// The tables of a state, with the bytes of each.
fn tables(state: &VersionedManifest) -> BTreeMap<String, u64> {
    let all = state.all_sst_views();
    all.map(|view| (view.sst.id.value().to_string(), view.estimate_size())).collect()
}

/// Those of `these` that are not among `those`.
fn less(these: &BTreeMap<String, u64>, those: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let only = these.iter().filter(|(id, _)| !those.contains_key(*id));
    only.map(|(id, bytes)| (id.clone(), *bytes)).collect()
}
