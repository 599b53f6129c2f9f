//! Rows of a range, a page at a time: those that are pending over those of the metadata store.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::{Bytes, BytesMut};

use super::pending::CommitGroup;
use crate::meta::{Key, keys};
use crate::store::kv::Row;

/// Rows of a range, and where to go on if there may be more.
pub struct Page {
    /// Rows in key order.
    pub rows: Vec<(Key, Bytes)>,
    /// The first key not looked at, unless the range is done.
    pub next: Option<Key>,
}

/// Rows of the metadata store as they were when they were fetched, without what was pending.
pub struct Scanned {
    pub(super) start: Key,
    pub(super) end: Key,
    pub(super) rows: Vec<Row>,
    /// The first key not looked at, unless the range is done.
    pub(super) next: Option<Key>,
    /// The view's count when the scan began.
    pub(super) retired: u64,
}

impl Scanned {
    /// Of a range without rows.
    #[cfg(test)]
    pub fn of_none(start: Key, end: Key, retired: u64) -> Scanned {
        Scanned { start, end, rows: Vec::new(), next: None, retired }
    }

    /// The first key looked at.
    pub fn start(&self) -> &Key {
        &self.start
    }

    /// The first key not looked at, unless the range is done.
    pub fn next(&self) -> Option<&Key> {
        self.next.as_ref()
    }

    /// Whether the rows from `start` on are among these, or would be.
    pub fn covers(&self, start: &[u8]) -> bool {
        *self.start <= *start && self.next.as_deref().is_none_or(|next| start < next)
    }

    /// The rows, in key order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// A copy in separate memory: rows of the store are slices of all that was fetched with
    /// them.
    pub fn to_keep(mut self) -> Scanned {
        let len = self.rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        let mut all = BytesMut::with_capacity(len);
        self.rows.iter().for_each(|(key, value)| {
            all.extend_from_slice(key);
            all.extend_from_slice(value);
        });
        let mut all = all.freeze();
        for (key, value) in &mut self.rows {
            *key = all.split_to(key.len());
            *value = all.split_to(value.len());
        }
        self
    }

    /// The first `limit` rows from `start`, and the first key not among them unless the range
    /// is done.
    pub(super) fn from(&self, start: &[u8], limit: usize) -> (&[Row], Option<Key>) {
        let rows = &self.rows[self.rows.partition_point(|(key, _)| **key < *start)..];
        let taken = &rows[..rows.len().min(limit)];
        match taken.last() {
            Some((last, _)) if taken.len() < rows.len() => (taken, Some(keys::after(last))),
            _ => (taken, self.next.clone()),
        }
    }
}

/// Pending rows of a range, and up to where they are all there.
pub(super) struct PendingRows {
    rows: BTreeMap<Key, Option<Bytes>>,
    bound: Option<Key>,
}

impl PendingRows {
    /// At most `limit` of each layer.
    pub(super) fn of<'a>(
        newest_first: impl Iterator<Item = &'a CommitGroup>,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> PendingRows {
        let mut pending = PendingRows { rows: BTreeMap::new(), bound: None };
        let range = (Bound::Included(Key::from(start)), Bound::Excluded(Key::from(end)));
        for g in newest_first {
            for (n, (key, row)) in g.rows.range::<Key, _>(range.clone()).enumerate() {
                if n == limit {
                    pending.lower(key);
                    break;
                }
                pending.rows.entry(key.clone()).or_insert_with(|| row.value.clone());
            }
        }
        pending
    }

    fn lower(&mut self, key: &[u8]) {
        if self.bound.as_deref().is_none_or(|bound| key < bound) {
            self.bound = Some(key.into());
        }
    }

    /// These over `rows` of the store, which are all there are below `next`.
    pub(super) fn over(mut self, rows: &[Row], next: Option<&[u8]>) -> Page {
        if let Some(next) = next {
            self.lower(next);
        }
        let below = |key: &[u8]| self.bound.as_deref().is_none_or(|bound| key < bound);
        let stored = rows.iter().filter(|(key, _)| below(key));
        let stored = stored.map(|(key, value)| (Key::from(&key[..]), value.clone()));
        let rows = if self.rows.is_empty() {
            stored.collect()
        } else {
            let mut merged: BTreeMap<Key, Option<Bytes>> =
                stored.map(|(key, value)| (key, Some(value))).collect();
            merged.extend(self.rows.into_iter().filter(|(key, _)| below(key)));
            merged.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
        };
        Page { rows, next: self.bound }
    }
}
