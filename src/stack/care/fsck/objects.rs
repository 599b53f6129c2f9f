//! What the bucket lists against what the rows know: segments that are missing, of another
//! size, left over from a cut commit, or put there by somebody else.

use std::collections::BTreeMap;
use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::Volume;
use crate::base::{SegmentId, counted, one_line, plural, secs_of, unix_secs};
use crate::commit::check::Segments;
use crate::meta::keys;
use crate::seal::offsets::plain_len;
use crate::store::names::{CONFIG_NAME, KEYRING_NAME, LEASE_NAME, META_PREFIX};

use crate::stack::StackError;
use crate::store::segments::{Layout, has_frames};
use crate::store::{ErrorClass, SegmentStore, class, is_probe, sentence, shown_key};

/// Segments that rows do not know are looked into this many at a time.
const LOOKS_PARALLEL: usize = 8;
/// While somebody writes, a segment younger than this may belong to a commit under way.
const IN_FLIGHT_SECS: u64 = 3600;
/// While somebody writes, a probe younger than this may be a mount that begins just now.
const PROBE_SECS: u64 = 3600;
/// Strangers that are named one by one.
const STRANGERS_MAX: usize = 100;

/// Objects that are neither segments nor metadata.
const OTHERS: [&str; 3] = [KEYRING_NAME, LEASE_NAME, CONFIG_NAME];

/// A segment as the bucket lists it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    /// Bytes of the sealed message.
    pub(super) bytes: u64,
    modified_secs: u64,
}

/// Everything below the prefix. About 60 bytes for each segment.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) segments: BTreeMap<SegmentId, Listed>,
    /// Objects of the metadata store, and their bytes as stored.
    pub(super) meta: Vec<(Path, u64)>,
    strangers: Vec<Path>,
    /// What probes left that were killed, and when each was put (Unix seconds).
    probes: Vec<(Path, u64)>,
    count: u64,
    bytes: u64,
}

impl Listing {
    pub(super) async fn read(store: &dyn ObjectStore) -> Result<Listing, StackError> {
        let mut listing = Listing::default();
        let mut objects = store.list(None);
        while let Some(object) = objects.next().await {
            let object = object.map_err(|e| StackError::store("listing the bucket", e))?;
            listing.count += 1;
            listing.bytes += object.size;
            let first = object.location.parts().next();
            let first = first.as_ref().map_or("", |part| part.as_ref());
            let secs = secs_of(object.last_modified.into());
            if is_probe(&object.location) {
                listing.probes.push((object.location, secs));
            } else if let Some(id) = SegmentStore::id(&object.location) {
                let listed = Listed { bytes: object.size, modified_secs: secs };
                listing.segments.insert(id, listed);
            } else if first == META_PREFIX {
                listing.meta.push((object.location, object.size));
            } else if !OTHERS.contains(&first) {
                listing.strangers.push(object.location);
            }
        }
        listing.meta.sort();
        Ok(listing)
    }
}

/// A segment whose object has another size than its row says.
#[derive(Clone, Debug)]
struct WrongSize {
    id: SegmentId,
    /// Bytes of the object, as the row has it.
    said: u64,
    /// Bytes of plaintext as listed; `None` for a size that sealing does not make.
    listed: Option<u64>,
}

/// What is wrong with the objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// Segments that rows refer to and that are not there.
    missing: Vec<SegmentId>,
    /// Segments that rows refer to, that are not listed and cannot be looked at: why.
    unreadable: Vec<(SegmentId, String)>,
    /// Segments whose objects have another size than their row says.
    sizes: Vec<WrongSize>,
    /// Segments that no row knows, sealed by this volume.
    pub(super) leaked: Vec<SegmentId>,
    /// Objects that this volume did not seal under their names.
    strangers: Vec<Path>,
    /// How listed segments are laid out that extents refer to and that have no row.
    pub(super) unaccounted: BTreeMap<SegmentId, Layout>,
    /// What killed probes left.
    pub(super) probes: Vec<Path>,
}

pub(super) async fn compare(
    volume: &Volume,
    listing: &Listing,
    segments: &Segments,
    writer: bool,
    notes: &mut Vec<String>,
) -> Result<Objects, StackError> {
    let mut found = Objects::of(listing);
    let stored = SegmentStore::new(volume.sealed.clone());
    for (&id, sum) in &segments.0 {
        let is_known = sum.row.is_some() || sum.kept.is_some();
        if !is_known && sum.live == 0 {
            continue; // dead: it may be deleted already
        }
        let listed = listing.segments.get(&id).map(|listed| plain_len(listed.bytes));
        match (listed, is_known) {
            (None, _) => {
                // A listing may be older than the object, and the writer may have deleted it
                // since: what counts is whether it is there, and still referred to.
                match volume.store.head(&SegmentStore::name(id)).await {
                    Ok(_) => {}
                    Err(_) if writer && !still_known(volume, id).await? => {}
                    Err(e) if class(&e) == ErrorClass::NotFound => found.missing.push(id),
                    Err(e) => found.unreadable.push((id, sentence(&e))),
                }
            }
            (Some(plain), true) if plain != Some(sum.object_len) => {
                let said = sum.object_len;
                found.sizes.push(WrongSize { id, said, listed: plain });
            }
            (Some(_), false) => match stored.layout(id).await {
                Ok(layout) => drop(found.unaccounted.insert(id, (*layout).clone())),
                Err(e) if class(&e) == ErrorClass::Corrupt => {} // nothing to go by
                Err(e) => return Err(StackError::store(format!("looking at segment {id}"), e)),
            },
            _ => {}
        }
    }
    let now = unix_secs();
    let unknown = listing.segments.iter().filter(|(id, _)| !segments.0.contains_key(id));
    let (young, old): (Vec<_>, Vec<_>) = unknown.partition(|(_, listed)| {
        writer && listed.modified_secs.saturating_add(IN_FLIGHT_SECS) > now
    });
    if !young.is_empty() {
        let n = young.len();
        notes.push(format!("{n} new segments are not committed yet (the volume is in use)"));
    }
    let looks = old.into_iter().map(|(&id, listed)| async move {
        let head = volume.store.head(&SegmentStore::name(id)).await;
        (id, listed.bytes, head)
    });
    let mut looks = futures::stream::iter(looks).buffered(LOOKS_PARALLEL);
    let mut leaked_bytes = 0;
    while let Some((id, bytes, head)) = looks.next().await {
        match head {
            Ok(_) => {
                leaked_bytes += bytes;
                found.leaked.push(id);
            }
            Err(e) if class(&e) == ErrorClass::Corrupt => {
                found.strangers.push(SegmentStore::name(id));
            }
            Err(e) if class(&e) == ErrorClass::NotFound => {} // deleted meanwhile
            Err(e) => return Err(StackError::store(format!("looking at segment {id}"), e)),
        }
    }
    drop(looks);
    // A probe takes seconds; a young one may be a mount that begins just now.
    let old = |secs: u64| secs.saturating_add(PROBE_SECS) < now;
    let probes = listing.probes.iter().filter(|(_, secs)| !writer || old(*secs));
    found.probes = probes.map(|(name, _)| name.clone()).collect();
    if !found.probes.is_empty() {
        let objects = counted(found.probes.len() as u64, "object");
        notes.push(format!("{objects} left of mounts that were killed as they began"));
    }
    if !found.leaked.is_empty() {
        notes.push(format!(
            "{} ({}) uploaded and never committed; --repair deletes what was",
            counted(found.leaked.len() as u64, "segment"),
            counted(leaked_bytes, "byte"),
        ));
    }
    Ok(found)
}

/// Whether the rows as they are by now still refer to a segment, or a snapshot does.
pub(super) async fn still_known(volume: &Volume, id: SegmentId) -> Result<bool, StackError> {
    let kv = volume.frozen().await?;
    let row = kv.get(&keys::segment(id)).await;
    let kept = kv.get(&keys::kept_segment(id)).await;
    let _ = kv.close(false).await; // a reader: there is nothing to lose
    Ok(row?.is_some() || kept?.is_some())
}

impl Objects {
    /// Whether the bucket does not have it, or does not give it.
    pub(super) fn lacks(&self, id: SegmentId) -> bool {
        self.missing.contains(&id) || self.unreadable.iter().any(|(other, _)| *other == id)
    }

    /// What the listing alone says.
    pub(super) fn of(listing: &Listing) -> Objects {
        let strangers = listing.strangers.clone();
        let (count, bytes) = (listing.count, listing.bytes);
        Objects { count, bytes, strangers, ..Objects::default() }
    }

    /// Segments of which nothing can be trusted to be there, for finding the files.
    pub(super) fn lost(&self) -> impl Iterator<Item = (SegmentId, Vec<Range<u64>>)> + '_ {
        let from = |start: u64| std::iter::once(start..u64::MAX).collect();
        let whole = move |id: &SegmentId| (*id, from(0));
        let unreadable = self.unreadable.iter().map(move |(id, _)| (*id, from(0)));
        let sizes = self.sizes.iter().map(move |WrongSize { id, said, listed }| {
            let there = listed.unwrap_or(0).min(*said);
            // What is stored as frames ends somewhere within the data.
            (*id, from(if has_frames(*id) { 0 } else { there }))
        });
        self.missing.iter().map(whole).chain(unreadable).chain(sizes)
    }

    /// Sentences, and the segment they are about.
    pub(super) fn problems(&self) -> impl Iterator<Item = (String, Option<SegmentId>)> + '_ {
        let missing = self.missing.iter();
        let missing = missing.map(|id| (format!("segment {id} is not in the bucket"), Some(*id)));
        let sizes = self.sizes.iter().map(move |WrongSize { id, said, listed }| {
            let is = listed.map_or("no size that sealing makes".into(), |n| format!("{n}"));
            (format!("segment {id} should have {} and has {is}", counted(*said, "byte")), Some(*id))
        });
        let strangers = self.strangers.iter().take(STRANGERS_MAX).map(|name| {
            let name = one_line(&shown_key(name));
            (format!("object {name} was not written by this volume; it is left alone"), None)
        });
        let more = self.strangers.len().saturating_sub(STRANGERS_MAX);
        let more = (more > 0)
            .then(|| (format!("{more} more such {}", plural(more as u64, "object")), None));
        let unreadable = self.unreadable.iter();
        let unreadable = unreadable.map(|(id, why)| {
            (format!("segment {id} is not listed, and cannot be looked at: {why}"), Some(*id))
        });
        missing.chain(unreadable).chain(sizes).chain(strangers).chain(more)
    }
}

/// The ranges of `size` plaintext bytes of an object that do not open.
///
/// # Errors
/// The store's, other than damage.
pub(super) async fn damaged_ranges(
    store: &dyn ObjectStore,
    name: &Path,
    range: Range<u64>,
    step: u64,
    looks_max: &mut u32,
) -> object_store::Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut todo = vec![range];
    while let Some(range) = todo.pop() {
        let read = match *looks_max {
            0 => None,
            _ => Some(store.get_range(name, range.clone()).await),
        };
        *looks_max = looks_max.saturating_sub(1);
        let failed = match read {
            Some(Ok(_)) => continue,
            Some(Err(e)) if class(&e) != ErrorClass::Corrupt => return Err(e),
            Some(Err(_)) => true,
            None => false, // not looked at: counted as damaged, like what lies around it
        };
        let middle = range.start + ((range.end - range.start) / 2).next_multiple_of(step);
        if failed && range.end - range.start > step && middle < range.end {
            todo.push(middle..range.end);
            todo.push(range.start..middle);
            continue;
        }
        match found.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => found.push(range),
        }
    }
    Ok(found)
}

/// Reads `name` to its end in pieces; the plaintext bytes read.
pub(super) async fn read_whole(
    store: &dyn ObjectStore,
    name: &Path,
    size: u64,
    piece: u64,
    on_read: impl Fn(u64),
) -> object_store::Result<u64> {
    let mut at = 0;
    loop {
        let rest = size.saturating_sub(at);
        // The last piece is open-ended, which authenticates the end of the object.
        let range = match rest > piece {
            true => object_store::GetRange::Bounded(at..at + piece),
            false => object_store::GetRange::Offset(at),
        };
        let range = (size > 0).then_some(range);
        let options = object_store::GetOptions { range, ..Default::default() };
        let got = store.get_opts(name, options).await?;
        let read = got.into_stream().map_ok(|bytes| bytes.len() as u64);
        let read: u64 = read.try_fold(0, |sum, n| async move { Ok(sum + n) }).await?;
        at += read;
        on_read(read);
        if rest <= piece || read == 0 {
            return Ok(at);
        }
    }
}
