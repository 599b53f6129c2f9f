//! Which tables the metadata lie in just now.

use std::collections::BTreeSet;

use object_store::path::Path;

use super::{Handle, Kv, META_PREFIX};

/// The object of a table, by its id.
pub(super) fn table(id: impl std::fmt::Display) -> Path {
    Path::from(format!("{META_PREFIX}/compacted/{id}.sst"))
}

impl Kv {
    /// The objects of all tables that this handle reads, snapshots not among them. No request.
    pub fn tables(&self) -> BTreeSet<Path> {
        let manifest = match self.handle() {
            Handle::Writer(db) => db.manifest(),
            Handle::Reader(db) => db.manifest(),
        };
        let ids = manifest.all_sst_views().map(|view| view.sst.id.value());
        ids.map(table).collect()
    }
}
