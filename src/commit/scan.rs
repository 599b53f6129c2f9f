//! Rows of one kind, one after the other, a page in memory at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::view::ViewError;
use crate::meta::{Key, keys};
use crate::store::kv::{Kv, Walk};

/// Rows in memory at a time.
const PAGE: usize = 4096;

/// A place in the rows with one tag.
pub struct Cursor<'a> {
    kv: &'a Kv,
    walk: Walk,
    end: Key,
    page: VecDeque<(Bytes, Bytes)>,
    last_page: bool,
    counted: Option<&'a AtomicU64>,
}

impl<'a> Cursor<'a> {
    /// At the first row with `tag`.
    pub fn new(kv: &'a Kv, tag: u8) -> Cursor<'a> {
        let (start, end) = keys::all_with_tag(tag);
        Cursor {
            kv,
            walk: Walk::new(&start, &end),
            end,
            page: VecDeque::new(),
            last_page: false,
            counted: None,
        }
    }

    /// The same, from the first row not before `key` on.
    pub fn starting_at(self, key: Key) -> Cursor<'a> {
        Cursor { walk: Walk::new(&key, &self.end), ..self }
    }

    /// The same, adding to `rows` what it reads.
    pub fn counting(self, rows: &'a AtomicU64) -> Cursor<'a> {
        Cursor { counted: Some(rows), ..self }
    }

    /// The row at this place, which stays.
    pub async fn peek(&mut self) -> Result<Option<&(Bytes, Bytes)>, ViewError> {
        if self.page.is_empty() && !self.last_page {
            let page = self.walk.page(self.kv, PAGE).await?;
            self.last_page = page.len() < PAGE;
            if let Some(rows) = self.counted {
                rows.fetch_add(page.len() as u64, Ordering::Relaxed);
            }
            self.page = page.into();
        }
        Ok(self.page.front())
    }

    /// The row at this place; goes on behind it.
    pub async fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, ViewError> {
        self.peek().await?;
        Ok(self.page.pop_front())
    }

    /// The inode number that the key at this place begins with, behind the tag. A key too short
    /// for one counts as inode 0, which is no inode's.
    pub async fn ino(&mut self) -> Result<Option<u64>, ViewError> {
        Ok(self.peek().await?.map(|(key, _)| {
            key.get(1..9).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
        }))
    }

    /// The next row if it is of inode `ino`.
    pub async fn next_of(&mut self, ino: u64) -> Result<Option<(Bytes, Bytes)>, ViewError> {
        match self.ino().await? {
            Some(n) if n == ino => self.next().await,
            _ => Ok(None),
        }
    }
}
