//! Time as files record it, from a clock that is passed in.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;
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

/// Unix time by the system clock, in seconds.
pub fn unix_secs() -> u64 {
    secs_of(SystemTime::now())
}

/// `time` in whole Unix seconds; 0 before 1970.
pub fn secs_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// 9999-12-31T23:59:59Z.
const CALENDAR_SECS: u64 = 253_402_300_799;

/// `time`, or 1970 where it is beyond the years 1 to 9999: disks and servers can say more than calendars.
pub fn in_calendar(time: SystemTime) -> SystemTime {
    let (Ok(away) | Err(away)) = time.duration_since(UNIX_EPOCH).map_err(|e| e.duration());
    let most = if time < UNIX_EPOCH { 62_135_596_800 } else { CALENDAR_SECS };
    if away.as_secs() <= most { time } else { UNIX_EPOCH }
}

/// The Gregorian date of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`).
pub fn date_of_day(day: u64) -> (u64, u64, u64) {
    let z = day + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_year - (153 * march_month + 2) / 5 + 1)
}

/// Unix seconds as `2026-11-26T21:04:00Z`.
pub fn utc_text(secs: u64) -> String {
    let (year, month, day) = date_of_day(secs / 86_400);
    let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

/// Where the current time comes from; a test passes its own.
pub trait Clock: Send + Sync + 'static {
    /// The time now, for inode times.
    fn now(&self) -> Timestamp;
}

/// The clock by which Linux stamps files. It ticks a few hundred times a second and is behind
/// that of `SystemTime::now`; the kernel stamps what waits in its page cache by it, so a finer
/// clock here would make a file older by being written.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        static STAMPED: OnceLock<Option<File>> = OnceLock::new();
        let stamped = STAMPED.get_or_init(memory_file).as_ref();
        stamped.and_then(stamp).unwrap_or_else(coarse)
    }
}

/// What Linux stamps `file` with now. Since 6.13 that is not just `CLOCK_REALTIME_COARSE`, but never
/// before any time that a file of this machine has been seen to have (fs/inode.c, multigrain
/// timestamps); no clock shows that. Cost: two system calls in memory, about 1 µs.
fn stamp(file: &File) -> Option<Timestamp> {
    let fd = file.as_raw_fd();
    let times = [libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW }; 2];
    // SAFETY: an open descriptor, and two times that outlive the call.
    if unsafe { libc::futimens(fd, times.as_ptr()) } != 0 {
        return None;
    }
    // SAFETY: all zeros are a valid `statx`.
    let mut seen: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, path) = (libc::AT_EMPTY_PATH, c"".as_ptr());
    // Of the three times only this can be looked at without making the next stamp a finer one.
    // SAFETY: an open descriptor, a NUL-terminated string, and a structure that outlives the call.
    let rc = unsafe { libc::statx(fd, path, flags, libc::STATX_ATIME, &mut seen) };
    let at = seen.stx_atime;
    (rc == 0).then_some(Timestamp { secs: at.tv_sec, nanos: at.tv_nsec })
}

/// A file in memory, without a name.
fn memory_file() -> Option<File> {
    // SAFETY: a NUL-terminated string.
    let fd = unsafe { libc::memfd_create(c"sealfs-clock".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: the descriptor is open, and nobody else's.
    (fd >= 0).then(|| unsafe { File::from_raw_fd(fd) })
}

/// The clock that Linux stamped files with before 6.13, and since then until a file is looked at.
fn coarse() -> Timestamp {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a structure that outlives the call.
    match unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut now) } {
        0 => Timestamp { secs: now.tv_sec, nanos: now.tv_nsec as u32 },
        _ => SystemTime::now().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_leap_years_are_right() {
        // Guards against times a day off after February.
        assert_eq!(date_of_day(0), (1970, 1, 1));
        assert_eq!(date_of_day(11_016), (2000, 2, 29));
        assert_eq!(date_of_day(11_017), (2000, 3, 1));
        assert_eq!(date_of_day(20_779), (2026, 11, 22));
    }

    use std::time::Duration;

    #[test]
    fn a_file_of_this_machine_is_never_stamped_before_what_the_clock_said() {
        // Guards against times that run backwards where the kernel stamps a file right after us,
        // and against a stamp that looks older than one of the kernel's just before.
        let dir = tempfile::tempdir().expect("tempdir");
        for n in 0..200 {
            let (before, path) = (SystemClock.now(), dir.path().join(n.to_string()));
            std::fs::write(&path, "x").expect("writes");
            let written = std::fs::metadata(&path).and_then(|m| m.modified()).expect("stats");
            let (written, after) = (Timestamp::from(written), SystemClock.now());
            assert!(before <= written && written <= after, "{before:?} {written:?} {after:?}");
            std::fs::remove_file(&path).expect("unlinks");
        }
    }

    #[test]
    fn without_a_file_in_memory_it_is_the_coarse_clock() {
        // Guards against the finer clock coming back where memfd_create(2) is forbidden.
        assert!((0..1000).all(|_| coarse() <= SystemTime::now().into()));
        assert!((0..1000).any(|_| coarse() == coarse()), "it stands still between two ticks");
    }

    #[test]
    fn times_before_1970_keep_nanoseconds_counting_forward() {
        // Guards against the sign of the fraction being lost (touch -d '1969-12-31 23:59:59.5').
        let t = UNIX_EPOCH - Duration::from_millis(500);
        assert_eq!(Timestamp::from(t), Timestamp { secs: -1, nanos: 500_000_000 });
        let t = UNIX_EPOCH - Duration::from_secs(2);
        assert_eq!(Timestamp::from(t), Timestamp { secs: -2, nanos: 0 });
    }

    #[test]
    fn a_time_that_no_calendar_has_is_none() {
        // Guards against a file of a store whose time, which anybody can set, makes a listing panic.
        let at = |secs: u64| UNIX_EPOCH + std::time::Duration::from_secs(secs);
        for good in [at(0), at(CALENDAR_SECS), UNIX_EPOCH - std::time::Duration::from_secs(9)] {
            assert_eq!(in_calendar(good), good);
        }
        let old = UNIX_EPOCH - std::time::Duration::from_secs(1 << 40);
        for bad in [at(CALENDAR_SECS + 1), at(i64::MAX as u64), old] {
            assert_eq!(in_calendar(bad), UNIX_EPOCH);
        }
    }
}
