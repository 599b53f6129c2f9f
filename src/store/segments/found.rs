//! What is remembered of segments that were read or written: where the frames of the latest are,
//! and which are not what they should be.

use std::collections::BTreeSet;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::SegmentStore;
use super::layout::{Layout, Malformed};
use crate::base::SegmentId;

/// Frames that are remembered, of all segments together: 4 bytes of memory each, and about 150 for
/// each segment. Of full segments these are 2048.
const FRAMES_MAX: usize = 256 << 10;
/// What a segment counts at least.
const FRAMES_LEAST: usize = 32;
/// Malformed segments that are remembered; more are logged and not kept.
const MALFORMED_MAX: usize = 1024;

/// See the module.
pub(super) struct Found {
    layouts: Mutex<Layouts>,
    malformed: Mutex<BTreeSet<SegmentId>>,
}

struct Layouts {
    known: LruCache<SegmentId, Arc<Layout>>,
    frames: usize,
}

impl Default for Found {
    fn default() -> Found {
        let layouts = Layouts { known: LruCache::unbounded(), frames: 0 };
        Found { layouts: Mutex::new(layouts), malformed: Mutex::default() }
    }
}

fn cost(layout: &Layout) -> usize {
    layout.frames.as_ref().map_or(0, |frames| frames.count()).max(FRAMES_LEAST)
}

impl Found {
    pub(super) fn get(&self, id: SegmentId) -> Option<Arc<Layout>> {
        self.layouts.lock().known.get(&id).cloned()
    }

    pub(super) fn remember(&self, id: SegmentId, layout: Arc<Layout>) {
        let mut layouts = self.layouts.lock();
        layouts.frames += cost(&layout);
        if let Some(old) = layouts.known.put(id, layout) {
            layouts.frames -= cost(&old);
        }
        while layouts.frames > FRAMES_MAX {
            let Some((_, old)) = layouts.known.pop_lru() else { break };
            layouts.frames -= cost(&old);
        }
    }

    pub(super) fn malformed(&self) -> Vec<SegmentId> {
        self.malformed.lock().iter().copied().collect()
    }

    pub(super) fn call_malformed(&self, id: SegmentId, why: Malformed) {
        let mut malformed = self.malformed.lock();
        if malformed.contains(&id) {
            return;
        }
        if malformed.len() < MALFORMED_MAX {
            malformed.insert(id);
        }
        let name = SegmentStore::name(id);
        log::error!(
            "object {name} is damaged: {why}; what depends on it gives EIO, nothing is deleted from the bucket meanwhile"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_segments_is_bounded() {
        // Guards against memory that grows with every segment that is read.
        let found = Found::default();
        let id = |n: u32| SegmentId(u128::from(n).to_be_bytes());
        for n in 0..20_000 {
            let layout = Layout { data_len: 5, tail_len: 45, frames: None };
            found.remember(id(n), Arc::new(layout.clone()));
            found.remember(id(n), Arc::new(layout));
        }
        let known = found.layouts.lock().known.len();
        assert_eq!(known, FRAMES_MAX / FRAMES_LEAST);
        assert!(found.get(id(0)).is_none() && found.get(id(19_999)).is_some());
        (0..3).for_each(|_| found.call_malformed(id(5), Malformed("a test")));
        assert_eq!(found.malformed(), [id(5)]);
    }
}
