//! Where the bytes of a file are: the journal, segments of the bucket, and how much of those the cache of
//! this machine has. For `sealfs info`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::{Ino, SegmentId};
use crate::commit::{Lookup, View, ViewError};
use crate::data::Source;
use crate::meta::{Inode, Kind, SegmentRow, keys};
use crate::store::{Cached, SegmentStore};

/// Segments that are listed; what lies in further ones is summed up.
const SEGMENTS_MAX: usize = 1000;
/// Bytes of a file that are looked at at a time.
const WINDOW: u64 = 1 << 30;
/// How often a window may have to be looked at again because a commit came in between.
const AGAIN_MAX: u32 = 16;

/// Where the bytes of a file are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// Inode number.
    pub ino: u64,
    /// `file`, `dir`, `symlink`, `fifo`, `socket`, `chardev` or `blockdev`.
    pub kind: String,
    /// Bytes; of a directory the number of its entries.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: u32,
    /// Which data of the inode these are: it grows when the file is emptied.
    pub incarnation: u32,
    /// Bytes that are nowhere, and read as zeros.
    pub hole_bytes: u64,
    /// Bytes that are only in the local journal.
    pub journal_bytes: u64,
    /// Bytes in the bucket.
    pub bucket_bytes: u64,
    /// Pieces of the file, without holes.
    pub extents: u64,
    /// Segments that hold some of it, the first ones.
    pub segments: Vec<SegmentPlace>,
    /// Segments that are not listed.
    pub more_segments: u64,
    /// Server-side encryption that the store last said it applied.
    pub sse_applied: Option<String>,
}

/// A segment that holds some of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentPlace {
    /// Its object, below the prefix of the volume.
    pub object: String,
    /// Bytes of the file in it.
    pub bytes: u64,
    /// Plaintext bytes of all files in it.
    pub size: u64,
    /// The commit that made it.
    pub commit: u64,
    /// The key epoch that it was sealed in, or an earlier one.
    pub key_epoch: u32,
    /// Bytes of the object in the cache of this machine.
    pub cached_bytes: u64,
}

/// Looks where the bytes of `ino` are; `None` if there is no such inode. Reads rows of the bucket where
/// memory does not have them.
///
/// # Errors
/// [`ViewError`].
pub(crate) async fn places(
    view: &View,
    cache: Option<&Cached>,
    ino: Ino,
) -> Result<Option<Places>, ViewError> {
    let Some(row) = view.get(&keys::inode(ino)).await? else { return Ok(None) };
    let inode = Inode::decode(&row)?;
    let mut places = Places {
        ino: ino.0,
        kind: inode.kind.word().into(),
        size: inode.size,
        xattrs: inode.xattrs,
        incarnation: inode.incarnation,
        ..Places::default()
    };
    if inode.kind != Kind::File {
        return Ok(Some(places));
    }
    let mut segments: BTreeMap<SegmentId, u64> = BTreeMap::new();
    let (mut at, mut again) = (0, 0);
    while at < inode.size {
        let end = inode.size.min(at + WINDOW);
        let file = inode.contents(ino);
        let Lookup::Hit(parts) = view.parts_now(file, at, end) else {
            again += 1;
            if again > AGAIN_MAX {
                break; // what is not known is in none of the sums
            }
            view.load_extents(file, at, end).await?;
            continue;
        };
        for part in parts {
            let bytes = part.end - part.start;
            match part.source {
                Source::Hole => places.hole_bytes += bytes,
                Source::Record { .. } => places.journal_bytes += bytes,
                Source::Segment { id, .. } => {
                    places.bucket_bytes += bytes;
                    *segments.entry(id).or_default() += bytes;
                }
            }
            places.extents += u64::from(!matches!(part.source, Source::Hole));
        }
        (at, again) = (end, 0);
    }
    places.more_segments = segments.len().saturating_sub(SEGMENTS_MAX) as u64;
    for (id, bytes) in segments.into_iter().take(SEGMENTS_MAX) {
        let row = view.get(&keys::segment(id)).await?;
        let row = row.as_deref().map(SegmentRow::decode).transpose()?.unwrap_or_default();
        let path = SegmentStore::name(id);
        places.segments.push(SegmentPlace {
            cached_bytes: cache.map_or(0, |cache| cache.bytes_of(&path)),
            object: path.to_string(),
            bytes,
            size: row.size,
            commit: row.birth,
            key_epoch: row.epoch,
        });
    }
    Ok(Some(places))
}
