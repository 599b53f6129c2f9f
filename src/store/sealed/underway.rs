//! Which key epochs writes that are under way were sealed in.
//!
//! A rotation does not end what an earlier epoch has begun: an upload may take minutes. Whoever
//! wants to be certain that nothing of an old epoch comes any more asks here.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Writes under way, counted by the oldest epoch that each may be sealed in.
#[derive(Clone, Default)]
pub(super) struct Underway(Arc<Mutex<BTreeMap<u32, usize>>>);

/// One of them; it is over when this is dropped.
pub(super) struct Write {
    all: Underway,
    epoch: u32,
}

impl Underway {
    /// A write begins. Must come before the keys are asked for its place: what is sealed then is of
    /// this epoch or a later one.
    pub(super) fn begin(&self, epoch: u32) -> Write {
        *self.0.lock().entry(epoch).or_default() += 1;
        Write { all: self.clone(), epoch }
    }

    /// The oldest epoch of a write under way.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.0.lock().keys().next().copied()
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(count) = all.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.epoch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_epoch_under_way_is_known_until_its_last_write_ends() {
        // Guards against the root of an epoch leaving while something is still sealed in it.
        let all = Underway::default();
        let (first, second, newer) = (all.begin(1), all.begin(1), all.begin(2));
        drop(first);
        assert_eq!(all.oldest(), Some(1));
        drop(second);
        assert_eq!(all.oldest(), Some(2));
        drop(newer);
        assert_eq!(all.oldest(), None);
    }
}
