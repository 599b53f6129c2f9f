//! A walk over many rows in key order that reads each table once, in large ranges.
//!
//! A scan for each page would throw away what it read ahead and fetch it again for the next page,
//! which costs a hundred times the bytes.

use std::ops::Bound;

use bytes::Bytes;
use slatedb::DbIterator;
use slatedb::config::ScanOptions;

use super::{Handle, Kv, KvError, Row, bounded, scan_on};

/// What one request fetches of a table. Each table that holds rows of the walk has up to
/// [`REQUESTS_MAX`] of them in memory.
const RANGE_BYTES: usize = 2 << 20;
/// Requests under way for one table.
const REQUESTS_MAX: usize = 2;

/// A place in the rows from one key to another. The rows are those of the moment at which the first
/// were read, unless the handle had to be opened again meanwhile.
pub struct Walk {
    next: Vec<u8>,
    end: Vec<u8>,
    /// Behind the rows that were handed out, and the handle it belongs to.
    open: Option<(Handle, DbIterator)>,
}

impl Walk {
    /// At the first row with `start <= key < end`. Reads nothing yet.
    pub fn new(start: &[u8], end: &[u8]) -> Walk {
        Walk { next: start.to_vec(), end: end.to_vec(), open: None }
    }

    /// Up to `limit` rows, from this place on; fewer mean that there are no more. Blocks that it
    /// reads push no others out of memory. Bounded by `read_timeout`; after a failure it goes on
    /// behind the rows that were handed out.
    pub async fn page(&mut self, kv: &Kv, limit: usize) -> Result<Vec<Row>, KvError> {
        kv.check_refused()?;
        let open = self.open.take();
        let reading = read_page(kv, open, &self.next, &self.end, limit);
        let (rows, open) = bounded(kv.options.read_timeout, reading).await?;
        if let Some((key, _)) = rows.last() {
            self.next = behind(key);
        }
        self.open = open;
        Ok(rows)
    }
}

fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

async fn read_page(
    kv: &Kv,
    mut open: Option<(Handle, DbIterator)>,
    next: &[u8],
    end: &[u8],
    limit: usize,
) -> Result<(Vec<Row>, Option<(Handle, DbIterator)>), KvError> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let handle = match &open {
            Some((handle, _)) => handle.clone(),
            None => kv.handle(),
        };
        let from = rows.last().map_or_else(|| next.to_vec(), |(key, _)| behind(key));
        match fill(&handle, open.take(), (from, end), limit, &mut rows).await {
            Ok(iterator) => return Ok((rows, Some((handle, iterator)))),
            Err(e) if kv.is_replaced_after(&handle, &e).await => {}
            Err(e) => return Err(e),
        }
    }
}

async fn fill(
    handle: &Handle,
    open: Option<(Handle, DbIterator)>,
    (from, end): (Vec<u8>, &[u8]),
    limit: usize,
    rows: &mut Vec<(Bytes, Bytes)>,
) -> Result<DbIterator, KvError> {
    let mut iterator = match open {
        Some((_, iterator)) => iterator,
        None => {
            let options = ScanOptions {
                read_ahead_bytes: RANGE_BYTES,
                cache_blocks: false,
                max_fetch_tasks: REQUESTS_MAX,
                ..ScanOptions::default()
            };
            let range = (Bound::Included(from), Bound::Excluded(end.to_vec()));
            scan_on(handle, range, &options).await?
        }
    };
    while rows.len() < limit {
        match iterator.next().await? {
            Some(row) => rows.push((row.key, row.value)),
            None => break,
        }
    }
    Ok(iterator)
}
