//! The record of objects that did not open or are gone: one log line each, and a list for `status`.
//!
//! What was found may pass (a server that lost sight of an object, a copy that was put back): an
//! object leaves the record when a read of the bytes that failed succeeds. Those that nobody reads
//! are read again from here, at longer and longer intervals.

use lru::LruCache;
use object_store::path::Path;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Damaged objects remembered; a bucket damaged more widely than this is logged again.
const DAMAGED_MAX: usize = 1024;
/// The first pause before a damaged object is read again by itself, and the longest.
const AGAIN_MIN: Duration = Duration::from_secs(30);
const AGAIN_MAX: Duration = Duration::from_secs(1800);
/// Objects read again in one go.
const AGAIN_AT_ONCE: usize = 8;

/// The end of an object, in plaintext terms, where its length is not known.
pub(super) const END: u64 = u64::MAX;

/// What is known of one damaged object.
struct Record {
    /// Plaintext bytes that did not read; up to [`END`]: to where it ends.
    failed: Range<u64>,
    again: Instant,
    pause: Duration,
}

/// See the module.
pub(super) struct Damage {
    seen: Mutex<LruCache<Path, Record>>,
}

impl Default for Damage {
    fn default() -> Damage {
        let max = NonZeroUsize::new(DAMAGED_MAX).expect("not zero");
        Damage { seen: Mutex::new(LruCache::new(max)) }
    }
}

impl Damage {
    /// Logs the object once. `failed` is what could not be read. `why` never contains a byte of it.
    pub(super) fn report(&self, location: &Path, failed: Range<u64>, why: &str) {
        let mut seen = self.seen.lock();
        if let Some(known) = seen.get_mut(location) {
            known.failed = known.failed.start.min(failed.start)..known.failed.end.max(failed.end);
            return;
        }
        let record = Record { failed, again: Instant::now() + AGAIN_MIN, pause: AGAIN_MIN };
        seen.put(location.clone(), record);
        log::error!(
            "object {location} is damaged: {why}; what depends on it gives EIO, nothing is deleted from the bucket meanwhile"
        );
    }

    /// These bytes of the object were read and are what was sealed.
    pub(super) fn disprove(&self, location: &Path, good: Range<u64>) {
        let mut seen = self.seen.lock();
        let Some(known) = seen.peek(location) else { return };
        if good.start <= known.failed.start && known.failed.end <= good.end {
            seen.pop(location);
            log::info!("object {location} is not damaged (any more): what failed reads well");
        }
    }

    pub(super) fn knows(&self, location: &Path) -> bool {
        self.seen.lock().contains(location)
    }

    /// The damaged objects, the latest first.
    pub(super) fn list(&self) -> Vec<Path> {
        self.seen.lock().iter().map(|(location, _)| location.clone()).collect()
    }

    /// Objects that are due to be read again at `now`, with what failed of them.
    pub(super) fn due(&self, now: Instant) -> Vec<(Path, Range<u64>)> {
        let mut seen = self.seen.lock();
        let mut due = Vec::new();
        for (location, record) in seen.iter_mut().filter(|(_, r)| r.again <= now) {
            record.pause = (record.pause * 2).min(AGAIN_MAX);
            record.again = now + record.pause;
            due.push((location.clone(), record.failed.clone()));
            if due.len() == AGAIN_AT_ONCE {
                break;
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_leaves_the_record_when_what_failed_reads_well() {
        // Guards against a warning that stays for ever, and against one that goes because other
        // bytes of the object (or of a cache) read well.
        let damage = Damage::default();
        let path = Path::from("seg/a");
        damage.report(&path, 100..200, "it is not there");
        damage.report(&path, 150..END, "it is not there");
        for other in [0..100, 0..200, 101..END] {
            damage.disprove(&path, other);
            assert_eq!(damage.list(), std::slice::from_ref(&path));
        }
        let now = Instant::now();
        assert_eq!(damage.due(now), []);
        let later = now + 2 * AGAIN_MIN;
        assert_eq!(damage.due(later), [(path.clone(), 100..END)]);
        assert_eq!(damage.due(later + AGAIN_MIN), [], "the pauses grow");
        damage.disprove(&path, 0..END);
        assert_eq!(damage.list(), []);
        assert!(!damage.knows(&path));
    }
}
