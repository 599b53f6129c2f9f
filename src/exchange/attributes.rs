//! Permissions, owners and times that other tools leave in the metadata of objects, and those that
//! an export leaves there. Pure.
//!
//! | tool | names | form |
//! | --- | --- | --- |
//! | rclone | `mtime` | seconds since 1970, with a fraction |
//! | rclone `--metadata` | `mode`, `uid`, `gid`, `atime` | octal with the type, decimal, RFC 3339 |
//! | s3fs | `mode`, `uid`, `gid`, `mtime`, `atime`, `xattr` | decimal with the type, decimal, seconds; xattrs as JSON |
//! | GeeseFS | `mode`, `uid`, `gid`, `mtime`, `--symlink-target` | as s3fs |
//! | AWS DataSync, FSx for Lustre, Storage Gateway | `file-permissions`, `file-owner`, `file-group`, `file-mtime`, `file-atime` | octal, decimal, nanoseconds with `ns` |
//! | s3cmd, MinIO mc `-a` | `s3cmd-attrs`, `mc-attrs` | `mode:33188/mtime:1600000000/uid:0…`; mc's times `SECONDS#NANOSECONDS` |
//!
//! A mode in octal and one in decimal are told apart by the type in it, which both tools always write.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::base::Timestamp;
use crate::store::location::percent_decode;

/// Permission bits that an import takes: no set-id bits, which whoever writes to a bucket would
/// hand out on this machine.
const PERM_TAKEN: u32 = 0o1777;

/// What an object is, by its metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum What {
    /// A file.
    #[default]
    File,
    /// A directory (of s3fs, where its key ends in a slash or the object has no bytes).
    Directory,
    /// A symlink; its target are the bytes of the object.
    Symlink,
    /// A device, pipe or socket, of which the object says no more.
    Special,
}

/// What metadata say of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Its kind.
    pub what: What,
    /// Permission bits.
    pub perm: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Modification time.
    pub mtime: Option<Timestamp>,
    /// Access time.
    pub atime: Option<Timestamp>,
    /// Extended attributes, of s3fs.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// The target of a symlink, of GeeseFS.
    pub target: Option<String>,
}

/// The names that are understood: those are not stored as user metadata again.
pub fn is_understood(name: &str) -> bool {
    const NAMES: [&str; 16] = [
        "mode",
        "uid",
        "gid",
        "mtime",
        "atime",
        "ctime",
        "xattr",
        "--symlink-target",
        "file-permissions",
        "file-owner",
        "file-group",
        "file-mtime",
        "file-atime",
        "btime",
        "s3cmd-attrs",
        "mc-attrs",
    ];
    NAMES.contains(&name)
}

impl Attributes {
    /// What `metadata` (names in lower case, without `x-amz-meta-`) say. What cannot be understood
    /// counts as not said.
    pub fn of(metadata: &BTreeMap<String, String>) -> Attributes {
        let packed = packed(metadata);
        let get = |name: &str| {
            let alone = metadata.get(name).map(|value| value.trim());
            alone.or_else(|| packed.get(name).copied())
        };
        let number = |name: &str| get(name).and_then(|text| text.parse::<u32>().ok());
        let time = |name: &str| get(name).and_then(time);
        let mode =
            get("mode").and_then(|text| mode(text, metadata.contains_key("ctime"))).or_else(|| {
                u32::from_str_radix(get("file-permissions")?, 8).ok().filter(|m| *m <= 0o177_777)
            });
        let target = get("--symlink-target").map(str::to_owned);
        let what = match mode.map(|mode| mode & libc::S_IFMT) {
            Some(libc::S_IFLNK) => What::Symlink,
            _ if target.is_some() => What::Symlink,
            Some(libc::S_IFDIR) => What::Directory,
            None | Some(0 | libc::S_IFREG) => What::File,
            Some(_) => What::Special,
        };
        Attributes {
            what,
            perm: mode.map(|mode| mode & PERM_TAKEN),
            uid: number("uid").or_else(|| number("file-owner")),
            gid: number("gid").or_else(|| number("file-group")),
            mtime: time("mtime").or_else(|| time("file-mtime")),
            atime: time("atime").or_else(|| time("file-atime")),
            xattrs: get("xattr").map(xattrs).unwrap_or_default(),
            target,
        }
    }
}

/// The fields of s3cmd and mc, which keep all in one: `atime:1/gid:0/mode:33188/mtime:1/uid:0`.
fn packed(metadata: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    const TAKEN: [&str; 5] = ["mode", "uid", "gid", "mtime", "atime"];
    let found = metadata.get("s3cmd-attrs").or_else(|| metadata.get("mc-attrs"));
    let fields = found.iter().flat_map(|text| text.split('/'));
    fields.filter_map(|field| field.split_once(':')).filter(|(n, _)| TAKEN.contains(n)).collect()
}

/// A mode of s3fs (decimal) or of rclone (octal). `is_s3fs`: a time stands beside it that only s3fs
/// writes; it leaves the type out of those of directories.
fn mode(text: &str, is_s3fs: bool) -> Option<u32> {
    let is_mode = |mode: &u32| {
        const KINDS: [u32; 7] = [
            libc::S_IFREG,
            libc::S_IFDIR,
            libc::S_IFLNK,
            libc::S_IFCHR,
            libc::S_IFBLK,
            libc::S_IFIFO,
            libc::S_IFSOCK,
        ];
        *mode <= 0o177_777 && KINDS.contains(&(mode & libc::S_IFMT))
    };
    let decimal = text.parse().ok().filter(is_mode).filter(|_| !text.starts_with('0'));
    // Without a type it is what a person would write: 644.
    let octal = || u32::from_str_radix(text, 8).ok();
    let bare = || text.parse().ok().filter(|mode| is_s3fs && *mode <= 0o7777);
    decimal.or_else(bare).or_else(|| octal().filter(|mode| is_mode(mode) || *mode <= 0o7777))
}

/// A time: seconds with or without a fraction, nanoseconds with `ns`, seconds and nanoseconds around a `#`,
/// or RFC 3339.
fn time(text: &str) -> Option<Timestamp> {
    if let Some((secs, nanos)) = text.split_once('#') {
        let nanos: u32 = nanos.parse().ok().filter(|nanos| *nanos < 1_000_000_000)?;
        return Some(Timestamp { secs: secs.parse().ok()?, nanos });
    }
    if let Some(nanos) = text.strip_suffix("ns") {
        let nanos: i128 = nanos.parse().ok()?;
        let secs = i64::try_from(nanos.div_euclid(1_000_000_000)).ok()?;
        return Some(Timestamp { secs, nanos: nanos.rem_euclid(1_000_000_000) as u32 });
    }
    if text.contains('T') {
        return rfc3339(text);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some(Timestamp { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos }),
        _ => Some(Timestamp { secs, nanos }),
    }
}

/// `2006-01-02T15:04:05.999999999Z`, or with an offset such as `+02:00`.
fn rfc3339(text: &str) -> Option<Timestamp> {
    let (date, clock) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|field| field.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let at = clock.find(['Z', '+', '-'])?;
    let (clock, zone) = clock.split_at(at);
    let offset_secs = match zone.strip_prefix('Z') {
        Some(_) => 0,
        None => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let (hours, minutes) = (hours.parse::<i64>().ok()?, minutes.parse::<i64>().ok()?);
            if !(0..24).contains(&hours) || !(0..60).contains(&minutes) {
                return None;
            }
            let secs = hours * 3600 + minutes * 60;
            if zone.starts_with('-') { -secs } else { secs }
        }
    };
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<i64>().ok()?, clock.next()?.parse::<i64>().ok()?);
    let seconds = time(clock.next()?)?;
    let fits = (1..=12).contains(&month) && (1..=31).contains(&day) && (0..24).contains(&hour);
    let fits = fits && (0..=60).contains(&seconds.secs); // 60: a leap second
    if !fits || !(0..60).contains(&minute) || !(-9999..=9999).contains(&year) {
        return None;
    }
    let secs = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 - offset_secs;
    Some(Timestamp { secs: secs + seconds.secs, nanos: seconds.nanos })
}

/// Days since 1970-01-01 of a day of the Gregorian calendar (Howard Hinnant, "chrono-compatible
/// low-level date algorithms", `days_from_civil`).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The xattrs of s3fs: an object of base64 values, percent-encoded as a whole. Only those of users:
/// no capabilities, no ACLs, and none by which an import knows what it has done.
fn xattrs(text: &str) -> Vec<(String, Vec<u8>)> {
    let Some(json) = percent_decode(text) else { return Vec::new() };
    let named: BTreeMap<String, String> = serde_json::from_str(&json).unwrap_or_default();
    let decode = |(name, value): (String, String)| Some((name, STANDARD.decode(value).ok()?));
    let is_taken = |name: &str| name.starts_with("user.") && !name.starts_with("user.sealfs.");
    named.into_iter().filter(|(name, _)| is_taken(name)).filter_map(decode).collect()
}

/// What a file leaves in its metadata when it is exported: `mtime` as rclone and s3fs read it, and
/// `mode`, `uid`, `gid` as s3fs does.
pub fn to_metadata(mode: u32, uid: u32, gid: u32, mtime: Timestamp) -> BTreeMap<String, String> {
    [
        ("mtime", mtime_text(mtime)),
        ("mode", mode.to_string()),
        ("uid", uid.to_string()),
        ("gid", gid.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Seconds with nanoseconds, as both rclone and s3fs write them.
pub fn mtime_text(time: Timestamp) -> String {
    match (time.secs, time.nanos) {
        (secs @ ..0, 1..) => format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - time.nanos),
        (secs, nanos) => format!("{secs}.{nanos:09}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled_text;

    fn of(pairs: &[(&str, &str)]) -> Attributes {
        Attributes::of(&pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn what_each_tool_writes_is_understood() {
        // Guards against a file of mode 0100 644 read as decimal, and times off by a zone.
        let rclone = of(&[
            ("mtime", "1700000000.123456789"),
            ("mode", "100644"),
            ("uid", "1000"),
            ("gid", "100"),
            ("atime", "2023-11-15T00:13:20.5+02:00"),
        ]);
        assert_eq!((rclone.what, rclone.perm), (What::File, Some(0o644)));
        assert_eq!((rclone.uid, rclone.gid), (Some(1000), Some(100)));
        assert_eq!(rclone.mtime, Some(Timestamp { secs: 1_700_000_000, nanos: 123_456_789 }));
        assert_eq!(rclone.atime, Some(Timestamp { secs: 1_700_000_000, nanos: 500_000_000 }));
        let s3fs = of(&[("mode", "33188"), ("mtime", "1700000000"), ("uid", "0"), ("gid", "0")]);
        assert_eq!((s3fs.what, s3fs.perm), (What::File, Some(0o644)));
        assert_eq!(s3fs.mtime, Some(Timestamp { secs: 1_700_000_000, nanos: 0 }));
        assert_eq!(of(&[("mode", "16877")]).what, What::Directory);
        assert_eq!(of(&[("mode", "41471")]).what, What::Symlink);
        assert_eq!(of(&[("mode", "420"), ("ctime", "1")]).perm, Some(0o644));
        assert_eq!(of(&[("mode", "644")]).perm, Some(0o644));
        assert_eq!(of(&[("mode", "40755")]).what, What::Directory);
        assert_eq!(of(&[("mode", "120777")]).what, What::Symlink);
        let aws = of(&[
            ("file-permissions", "0100664"),
            ("file-owner", "500"),
            ("file-group", "501"),
            ("file-mtime", "1595002920000000000ns"),
        ]);
        assert_eq!((aws.perm, aws.uid, aws.gid), (Some(0o664), Some(500), Some(501)));
        assert_eq!(aws.mtime, Some(Timestamp { secs: 1_595_002_920, nanos: 0 }));
        let s3cmd = "atime:1516788402/ctime:1513681753/gid:1001/gname:g/md5:a3/mode:33152/\
                     mtime:1513681747/uid:1000/uname:u";
        let s3cmd = of(&[("s3cmd-attrs", s3cmd)]);
        assert_eq!((s3cmd.what, s3cmd.perm), (What::File, Some(0o600)));
        assert_eq!((s3cmd.uid, s3cmd.gid), (Some(1000), Some(1001)));
        assert_eq!(s3cmd.mtime, Some(Timestamp { secs: 1_513_681_747, nanos: 0 }));
        let mc = of(&[("mc-attrs", "mode:33256/mtime:1600000000#5/uid:0")]);
        assert_eq!(
            (mc.perm, mc.mtime),
            (Some(0o750), Some(Timestamp { secs: 1_600_000_000, nanos: 5 }))
        );
        let xattr = "%7B%22user.a%22%3A%22aGk%3D%22%2C%22security.capability%22%3A%22aGk%3D%22%2C\
                     %22user.sealfs.origin%22%3A%22aGk%3D%22%7D";
        assert_eq!(of(&[("xattr", xattr)]).xattrs, [("user.a".to_owned(), b"hi".to_vec())]);
    }

    #[test]
    fn nonsense_counts_as_not_said_and_set_id_bits_are_dropped() {
        // Guards against a program that runs as root because a bucket says so, and against an
        // import that stops at the metadata of one object.
        assert_eq!(of(&[("mode", "35309")]).perm, Some(0o755 & 0o1777)); // S_IFREG | 04755
        for bad in ["", "x", "99999999999", "-1", "0o644", "1e5"] {
            let all = of(&[("mode", bad), ("mtime", bad), ("uid", bad), ("xattr", bad)]);
            assert_eq!((all.perm, all.uid, all.what), (None, None, What::File), "{bad}");
        }
        for bad in [
            "",
            "x",
            "1.x",
            "1#",
            "1#9999999999",
            "2023-13-01T00:00:00Z",
            "2023-01-01T00:00",
            "ns",
            "T",
        ] {
            assert_eq!(of(&[("mtime", bad)]).mtime, None, "{bad}");
        }
    }

    #[test]
    fn times_come_back_as_they_were_written() {
        // Guards against a second export that finds every file changed.
        for (secs, nanos) in
            [(0, 0), (1_700_000_000, 1), (-1, 5), (-2, 0), (i64::from(i32::MAX), 9)]
        {
            let at = Timestamp { secs, nanos };
            assert_eq!(time(&mtime_text(at)), Some(at), "{}", mtime_text(at));
        }
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 3, 1), 11_017);
    }

    #[test]
    fn no_metadata_of_others_give_more_than_permissions_owners_and_times() {
        // Guards against a panic on what anybody put beside an object, set-id bits, and a time that no file
        // system takes.
        let seeds = [
            "mode=33188\nuid=0\ngid=5\nmtime=1700000000.123456789\nctime=1",
            "mode=0100644\nmtime=2026-11-26T21:00:00.5+01:30\natime=-62135596800s#999999999",
            "s3cmd-attrs=atime:1/gid:0/mode:33188/mtime:1/uid:0\nfile-permissions=0755",
            "file-mtime=1700000000123456789ns\nmc-attrs=mtime:1700000000#5/mode:16877\nfile-owner=7",
            "xattr={\"user.a\":\"YQ==\"}\n--symlink-target=../x\nbtime=9223372036854775807",
        ];
        let far = ["9223372036854775807Z", "05+9223372036854775807:00", "05-00:99999999999999999"];
        for seconds in far {
            assert_eq!(time(&format!("2026-11-26T21:00:{seconds}")), None, "{seconds}");
        }
        let words =
            ["9223372036854775807", "-", "#", "ns", "T", "Z", "+23:59", ".", "0", "170000", "/"];
        garbled_text(&seeds, &words, |text| {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            let metadata = pairs.map(|(name, value)| (name.into(), value.into())).collect();
            let read = Attributes::of(&metadata);
            assert!(read.perm.is_none_or(|perm| perm & !PERM_TAKEN == 0), "{text}");
            for time in [read.mtime, read.atime].into_iter().flatten() {
                assert!(time.nanos < 1_000_000_000, "{text}");
                assert_eq!(super::time(&mtime_text(time)), Some(time), "{text}");
            }
        });
    }
}
