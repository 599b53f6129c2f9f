//! Time as files record it, from a clock that is passed in.

use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time as an inode stores it: signed seconds since 1970-01-01 UTC and
/// nanoseconds in `0..1_000_000_000` that always count forward (so -0.5 s is
/// `{ secs: -1, nanos: 500_000_000 }`, as in `struct timespec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since the epoch; negative before 1970.
    pub secs: i64,
    /// Nanoseconds after `secs`, below 1 000 000 000.
    pub nanos: u32,
}

impl From<SystemTime> for Timestamp {
    fn from(t: SystemTime) -> Self {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Timestamp { secs: d.as_secs() as i64, nanos: d.subsec_nanos() },
            Err(e) => {
                let d = e.duration();
                if d.subsec_nanos() == 0 {
                    Timestamp { secs: -(d.as_secs() as i64), nanos: 0 }
                } else {
                    Timestamp {
                        secs: -(d.as_secs() as i64) - 1,
                        nanos: 1_000_000_000 - d.subsec_nanos(),
                    }
                }
            }
        }
    }
}

/// Where the current time comes from; a test passes its own.
pub trait Clock: Send + Sync + 'static {
    /// The time now, for inode times.
    fn now(&self) -> Timestamp;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_before_1970_keep_nanoseconds_counting_forward() {
        // Guards against the sign of the fraction being lost (touch -d '1969-12-31 23:59:59.5').
        let t = UNIX_EPOCH - Duration::from_millis(500);
        assert_eq!(Timestamp::from(t), Timestamp { secs: -1, nanos: 500_000_000 });
        let t = UNIX_EPOCH - Duration::from_secs(2);
        assert_eq!(Timestamp::from(t), Timestamp { secs: -2, nanos: 0 });
    }
}
