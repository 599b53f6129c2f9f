//! Where the objects of a bucket go in a tree, before anything is transferred.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::bucket::Bucket;
use super::names::{Key, Odd, places};
use super::report::{ExchangeError, Run};
use crate::store::s3::Listed;

/// One object and where it goes.
#[derive(Clone, Debug)]
pub struct Item {
    /// The object.
    pub object: Listed,
    /// Its path in the tree.
    pub path: PathBuf,
    /// Whether it stands for a directory.
    pub is_dir: bool,
    /// Why its key cannot be its path, if it cannot.
    pub odd: Option<Odd>,
}

/// Where everything goes.
pub struct Plan {
    /// What the filter takes.
    pub items: Vec<Item>,
    /// Where there is something that `--delete` must not delete: of the source, whether the filter takes it or
    /// not. Empty unless that is asked for.
    pub keep: HashSet<PathBuf>,
}

/// Where everything goes. Every key has its place, the filter or not: so a place does not depend on it.
///
/// # Errors
/// Odd keys, where they are refused.
pub fn plan(bucket: &Bucket, listed: Vec<Listed>, run: &Run) -> Result<Plan, ExchangeError> {
    let filter = &run.options.filter;
    let is_meant = |object: &Listed| match bucket.below(&object.key) {
        // The marker of the prefix itself.
        "" => filter.takes_all(),
        name => filter.takes(name),
    };
    let keys: Vec<Key<'_>> = listed
        .iter()
        .map(|object| Key { name: bucket.below(&object.key), is_empty: object.size == 0 })
        .collect();
    let placed = places(&keys);
    drop(keys);
    let mut on_the_way = HashSet::new();
    for (object, place) in listed.iter().zip(&placed) {
        if !filter.takes_all() && is_meant(object) {
            keep_on_the_way(&mut on_the_way, Path::new(&place.path));
        }
    }
    let (mut items, mut keep) = (Vec::new(), HashSet::new());
    for (object, place) in listed.into_iter().zip(placed) {
        let path = PathBuf::from(place.path);
        // The marker of a directory that is made anyway says who may look into it.
        let is_meant = is_meant(&object) || place.is_dir && on_the_way.contains(&path);
        if run.options.delete {
            keep_on_the_way(&mut keep, &path);
        }
        if is_meant {
            items.push(Item { object, path, is_dir: place.is_dir, odd: place.odd });
        }
    }
    let odd = || items.iter().filter_map(|item| Some((item, item.odd?)));
    if run.options.strict
        && let Some((item, why)) = odd().next()
    {
        return Err(ExchangeError::Refused(format!(
            "{} of {} keys cannot be paths, the first is {:?}: {}\nhint: without --strict they get \
             names that say so",
            odd().count(),
            items.len(),
            item.object.key,
            why.why()
        )));
    }
    for (item, why) in odd() {
        run.renamed(&item.object.key, &item.path.to_string_lossy(), why.why());
    }
    items.iter().for_each(|item| run.expects(item.object.size));
    Ok(Plan { items, keep })
}

/// Keeps a path, and the directories on the way to it.
fn keep_on_the_way(keep: &mut HashSet<PathBuf>, path: &Path) {
    for path in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        if !keep.insert(path.to_owned()) {
            return;
        }
    }
}

/// Directories by how deep they lie, the deepest first.
pub fn levels(mut items: Vec<Item>) -> Vec<Vec<Item>> {
    let depth = |item: &Item| item.path.components().count();
    items.sort_by_key(|item| std::cmp::Reverse(depth(item)));
    items.chunk_by(|a, b| depth(a) == depth(b)).map(<[Item]>::to_vec).collect()
}
