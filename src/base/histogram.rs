//! How long things took: counts by powers of two, cheap enough for every request.
//!
//! [`Histogram`] is written by whoever did the work, [`Spread`] is what was counted at one moment:
//! it goes over the control socket and into the metrics.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets with an upper bound: from 1 us to 134 s, each twice the one before. One more takes what
/// took longer.
pub const BUCKETS: usize = 28;

/// Counts durations. Recording costs two relaxed additions, which contend only where threads share
/// one; reading is no transaction.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS + 1],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }
}

/// The bucket whose bound is the least one not below `ns`.
fn bucket_of(ns: u64) -> usize {
    let whole_us = ns.saturating_sub(1) / 1000;
    ((u64::BITS - whole_us.leading_zeros()) as usize).min(BUCKETS)
}

/// The upper bound of a bucket, which belongs to it.
pub fn bound(bucket: usize) -> Duration {
    Duration::from_micros(1 << bucket)
}

impl Histogram {
    /// Counts something that took `elapsed`.
    pub fn record(&self, elapsed: Duration) {
        let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(ns)].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(ns, Relaxed);
    }

    /// Adds what was counted so far to `spread`.
    pub fn add_to(&self, spread: &mut Spread) {
        spread.counts.resize(BUCKETS + 1, 0);
        for (sum, count) in spread.counts.iter_mut().zip(&self.counts) {
            *sum += count.load(Relaxed);
        }
        spread.sum_secs += self.sum_ns.load(Relaxed) as f64 / 1e9;
    }
}

/// What a [`Histogram`] has counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// By bucket; see [`bound`]. Empty if nothing was counted.
    pub counts: Vec<u64>,
    /// The time of all together.
    pub sum_secs: f64,
}

impl Spread {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Spread) -> Spread {
        let then = |bucket| before.counts.get(bucket).copied().unwrap_or(0);
        let counts = self.counts.iter().enumerate();
        Spread {
            counts: counts.map(|(bucket, now)| now.saturating_sub(then(bucket))).collect(),
            sum_secs: (self.sum_secs - before.sum_secs).max(0.0),
        }
    }

    /// The mean, `None` if nothing was counted.
    pub fn mean(&self) -> Option<Duration> {
        let count = self.count();
        (count > 0).then(|| Duration::from_secs_f64(self.sum_secs.max(0.0) / count as f64))
    }

    /// Below which the share `part` (0 to 1) of them lies, at most twice too long; `None` if
    /// nothing was counted. What took longer than the last bound counts as that.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((count as f64 * part).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let bucket = self.counts.iter().position(|n| {
            seen += n;
            seen >= rank
        })?;
        Some(bound(bucket.min(BUCKETS - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_below_their_bound_and_none_is_lost() {
        // Guards against a bucket that holds what is longer than its bound, which every quantile
        // that is computed from it would get wrong.
        let histogram = Histogram::default();
        let took = [0, 1, 1000, 1001, 2000, 2001, 1 << 40, u64::MAX];
        took.iter().for_each(|&ns| histogram.record(Duration::from_nanos(ns)));
        let mut spread = Spread::default();
        histogram.add_to(&mut spread);
        assert_eq!(spread.count(), took.len() as u64);
        assert_eq!(spread.counts[..3], [3, 2, 1]);
        assert_eq!(spread.counts[BUCKETS], 2);
        for ns in [1u64, 999, 1000, 1001, 65_536_000, 65_536_001] {
            let bucket = bucket_of(ns);
            assert!(Duration::from_nanos(ns) <= bound(bucket), "{ns}");
            assert!(bucket == 0 || Duration::from_nanos(ns) > bound(bucket - 1), "{ns}");
        }
    }

    #[test]
    fn quantiles_are_of_what_was_counted_since() {
        // Guards against a live view that shows the slow start of a mount for ever.
        let histogram = Histogram::default();
        let now = || {
            let mut spread = Spread::default();
            histogram.add_to(&mut spread);
            spread
        };
        assert_eq!((now().quantile(0.5), now().mean()), (None, None));
        (0..100).for_each(|_| histogram.record(Duration::from_secs(1)));
        let before = now();
        (0..99).for_each(|_| histogram.record(Duration::from_micros(3)));
        histogram.record(Duration::from_millis(3));
        let since = now().since(&before);
        assert_eq!(since.count(), 100);
        assert_eq!(since.quantile(0.5), Some(Duration::from_micros(4)));
        assert_eq!(since.quantile(0.99), Some(Duration::from_micros(4)));
        assert_eq!(since.quantile(1.0), Some(Duration::from_micros(4096)));
        assert!(since.mean().is_some_and(|mean| mean < Duration::from_micros(40)));
    }
}
