//! When snapshots are made by themselves, and which of those go: pure.
//!
//! A schedule names how many snapshots of an hour, a day and a month are kept. An hour, day or month (UTC) is
//! served by one snapshot made in it; what passed while nobody wrote the volume is not made up for,
//! since nothing changed meanwhile: the next one is made as soon as there is a writer.

use std::fmt;
use std::str::FromStr;

use crate::base::date_of_day;
use crate::commit::snapshots::Snapshot;
use crate::meta::{SnapshotName, SnapshotOrigin};

/// Snapshots of a kind that are kept at most.
const KEEP_MAX: u32 = 1000;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// Snapshots that one step deletes.
const DELETES_MAX: usize = 32;

/// How many snapshots of each kind are kept; 0: none is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    hourly: u32,
    daily: u32,
    monthly: u32,
}

/// What is to be done now, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// A snapshot that is due.
    pub(crate) create: Option<(SnapshotName, SnapshotOrigin)>,
    /// Those that go.
    pub(crate) delete: Vec<SnapshotName>,
    /// When the next one is made, Unix seconds.
    pub(crate) next: Option<u64>,
}

impl Schedule {
    /// Whether there is none.
    pub fn is_off(&self) -> bool {
        *self == Schedule::default()
    }

    fn kinds(&self) -> [(SnapshotOrigin, u32); 3] {
        [
            (SnapshotOrigin::Monthly, self.monthly),
            (SnapshotOrigin::Daily, self.daily),
            (SnapshotOrigin::Hourly, self.hourly),
        ]
    }

    /// How many of a kind are kept; 0 where none is made.
    pub fn keeps(&self, origin: SnapshotOrigin) -> u32 {
        self.kinds().iter().find(|(kind, _)| *kind == origin).map_or(0, |(_, keep)| *keep)
    }

    /// What to do at `now`, with the snapshots that there are. One snapshot at a time. Those of a kind
    /// that is not made any more stay until somebody deletes them.
    pub(crate) fn plan(&self, snapshots: &[Snapshot], now: u64) -> Plan {
        let expired = |s: &&Snapshot| s.row.expires_secs > 0 && s.row.expires_secs <= now;
        let mut delete: Vec<SnapshotName> =
            snapshots.iter().filter(expired).map(|s| s.name.clone()).collect();
        let (mut create, mut next) = (None, None::<u64>);
        for (origin, keep) in self.kinds().into_iter().filter(|(_, keep)| *keep > 0) {
            let (begun, ends) = period(origin, now);
            let mut of: Vec<&Snapshot> =
                snapshots.iter().filter(|s| s.row.origin == origin).collect();
            of.sort_by_key(|s| (s.row.time_secs, s.row.commit));
            let is_served = of.iter().any(|s| (begun..ends).contains(&s.row.time_secs));
            if !is_served && create.is_none() {
                create = free_name(origin, begun, snapshots).map(|name| (name, origin));
            }
            let due = if is_served { ends } else { now };
            next = Some(next.map_or(due, |next| next.min(due)));
            // One that is about to be made counts once it is there.
            let surplus = of.len().saturating_sub(keep as usize);
            delete.extend(of[..surplus].iter().map(|s| s.name.clone()));
        }
        delete.sort();
        delete.dedup();
        delete.truncate(DELETES_MAX);
        Plan { create, delete, next }
    }
}

/// When the hour, day or month of `now` began, and when it ends.
fn period(origin: SnapshotOrigin, now: u64) -> (u64, u64) {
    let day = now / DAY;
    match origin {
        SnapshotOrigin::Hourly => (now / HOUR * HOUR, (now / HOUR + 1) * HOUR),
        SnapshotOrigin::ByHand | SnapshotOrigin::Daily => (day * DAY, (day + 1) * DAY),
        SnapshotOrigin::Monthly => {
            let (year, month, of_month) = date_of_day(day);
            let first = day + 1 - of_month;
            let is_same = |day: &u64| {
                let (y, m, _) = date_of_day(*day);
                (y, m) == (year, month)
            };
            let next = (first + 28..first + 32).find(|day| !is_same(day)).unwrap_or(first + 31);
            (first * DAY, next * DAY)
        }
    }
}

/// What a snapshot of a period is called; numbered if somebody has taken the name.
fn free_name(origin: SnapshotOrigin, begun: u64, snapshots: &[Snapshot]) -> Option<SnapshotName> {
    let (year, month, day) = date_of_day(begun / DAY);
    let name = match origin {
        SnapshotOrigin::Hourly => {
            format!("hourly-{year:04}-{month:02}-{day:02}T{:02}Z", begun / HOUR % 24)
        }
        SnapshotOrigin::Monthly => format!("monthly-{year:04}-{month:02}"),
        SnapshotOrigin::ByHand | SnapshotOrigin::Daily => {
            format!("daily-{year:04}-{month:02}-{day:02}")
        }
    };
    let numbered = |n: u32| match n {
        1 => SnapshotName::parse(&name).ok(),
        n => SnapshotName::parse(&format!("{name}.{n}")).ok(),
    };
    let is_free = |name: &SnapshotName| snapshots.iter().all(|s| s.name != *name);
    (1..1000).filter_map(numbered).find(is_free)
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        let kinds = [("hourly", self.hourly), ("daily", self.daily), ("monthly", self.monthly)];
        let kept: Vec<_> = kinds.iter().filter(|(_, n)| *n > 0).collect();
        for (n, (kind, keep)) in kept.into_iter().enumerate() {
            write!(f, "{}{kind}={keep}", if n > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Schedule, String> {
        let mut schedule = Schedule::default();
        if text == "off" {
            return Ok(schedule);
        }
        let wrong = || "a schedule is off, or such as hourly=24,daily=30,monthly=12".to_string();
        for part in text.split(',') {
            let (kind, keep) = part.split_once('=').ok_or_else(wrong)?;
            let plain = !keep.is_empty() && keep.bytes().all(|b| b.is_ascii_digit());
            let keep: u32 = keep.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
            if !(1..=KEEP_MAX).contains(&keep) {
                return Err(format!("{part}: 1 to {KEEP_MAX} are kept"));
            }
            let place = match kind {
                "hourly" => &mut schedule.hourly,
                "daily" => &mut schedule.daily,
                "monthly" => &mut schedule.monthly,
                _ => return Err(wrong()),
            };
            if std::mem::replace(place, keep) != 0 {
                return Err(format!("{kind} is there twice"));
            }
        }
        Ok(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ChainValue;
    use crate::meta::SnapshotRow;

    /// 2026-11-26 22:37 UTC.
    const NOW: u64 = 1_795_732_620;

    fn made(name: &str, origin: SnapshotOrigin, time_secs: u64, expires_secs: u64) -> Snapshot {
        let row = SnapshotRow {
            checkpoint: [0; 16],
            manifest: 1,
            commit: 1,
            chain: ChainValue::default(),
            time_secs,
            expires_secs,
            origin,
            files: 1,
            bytes: 0,
            note: String::new(),
        };
        Snapshot { name: SnapshotName::parse(name).expect("a name"), row }
    }

    fn schedule(text: &str) -> Schedule {
        text.parse().expect("a schedule")
    }

    #[test]
    fn one_is_made_for_each_hour_day_and_month_and_its_name_says_which() {
        // Guards against two at a time, against one for every hour that a machine slept, and against
        // none at all after that.
        let all = schedule("hourly=24,daily=30,monthly=12");
        let mut there = Vec::new();
        for name in ["monthly-2026-11", "daily-2026-11-26", "hourly-2026-11-26T22Z"] {
            let plan = all.plan(&there, NOW);
            let (due, origin) = plan.create.expect("one is due");
            assert_eq!((due.as_str(), plan.next), (name, Some(NOW)));
            there.push(made(name, origin, NOW, 0));
        }
        let plan = all.plan(&there, NOW);
        assert_eq!((plan.create, plan.next), (None, Some(NOW / HOUR * HOUR + HOUR)));
        let later = all.plan(&there, NOW + 5 * HOUR);
        let (due, _) = later.create.expect("the day has changed");
        assert_eq!(due.as_str(), "daily-2026-11-27");
        let hourly = schedule("hourly=2");
        let taken = [made("hourly-2026-11-26T22Z", SnapshotOrigin::ByHand, NOW, 0)];
        let (due, _) = hourly.plan(&taken, NOW).create.expect("that was made by hand");
        assert_eq!(due.as_str(), "hourly-2026-11-26T22Z.2");
        assert_eq!(Schedule::default().plan(&there, NOW + DAY).create, None);
    }

    #[test]
    fn the_oldest_beyond_what_is_kept_go_and_what_has_expired() {
        // Guards against a schedule that deletes what was made by hand, or of another kind, and against
        // one that never deletes anything.
        let mut there: Vec<Snapshot> = (0..5)
            .map(|n| made(&format!("h{n}"), SnapshotOrigin::Hourly, NOW - n * HOUR, 0))
            .collect();
        there.push(made("old", SnapshotOrigin::ByHand, 1, 0));
        there.push(made("daily", SnapshotOrigin::Daily, 1, 0));
        there.push(made("expired", SnapshotOrigin::ByHand, 1, NOW));
        there.push(made("not-yet", SnapshotOrigin::ByHand, 1, NOW + 1));
        let names =
            |plan: Plan| -> Vec<String> { plan.delete.iter().map(ToString::to_string).collect() };
        assert_eq!(names(schedule("hourly=3").plan(&there, NOW)), ["expired", "h3", "h4"]);
        assert_eq!(names(Schedule::default().plan(&there, NOW)), ["expired"]);
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        // Guards against a month that never ends, or has no snapshot.
        let at = |day: u64| period(SnapshotOrigin::Monthly, day * DAY + 7);
        let (begun, ends) = at(NOW / DAY);
        assert_eq!(
            (date_of_day(begun / DAY), date_of_day(ends / DAY)),
            ((2026, 11, 1), (2026, 12, 1))
        );
        for day in 20_000..21_000 {
            let (begun, ends) = at(day);
            assert!(begun <= day * DAY && day * DAY < ends);
            assert_eq!((date_of_day(begun / DAY).2, date_of_day(ends / DAY).2), (1, 1));
        }
    }

    #[test]
    fn a_schedule_reads_back_and_nonsense_is_none() {
        // Guards against hourly=0 that deletes everything.
        for text in ["off", "hourly=24", "daily=1", "hourly=24,daily=30,monthly=12"] {
            assert_eq!(schedule(text).to_string(), text);
        }
        assert_eq!(schedule("monthly=3,hourly=1").to_string(), "hourly=1,monthly=3");
        for bad in [
            "",
            "hourly",
            "hourly=",
            "hourly=0",
            "hourly=-1",
            "weekly=3",
            "hourly=1,hourly=2",
            "hourly=1001",
            "hourly=+1",
            "off,hourly=1",
            "hourly=1,",
        ] {
            assert!(bad.parse::<Schedule>().is_err(), "{bad}");
        }
    }
}
