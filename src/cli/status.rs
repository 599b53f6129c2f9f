//! `sealfs status`: how a mount is, for people or (`--json`) for scripts.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use indicatif::{HumanBytes, HumanDuration};

use crate::base::{counted, one_line, utc_text};
use crate::stack::{Connection, Status};

use super::client::Client;
use super::exit::{Failure, Outcome};
use super::out::print_json;
use super::pin::describe as describe_pin;
use super::protocol::{Ask, Say};
use super::serve::role_in_words;

/// Flags of `sealfs status`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs status ~/vault
  sealfs status --json ~/vault | jq .pending_bytes")]
pub struct StatusArgs {
    /// Where it is mounted, or any directory in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
}

/// Runs `sealfs status`.
pub fn run(args: StatusArgs) -> Outcome {
    let client = Client::connect(&args.dir, true)?;
    let Say::Status(status) = client.ask(&Ask::Status, |_| {})? else {
        return Err(Failure::answered_else());
    };
    if args.json {
        print_json(&status)?;
    } else {
        print!("{}", describe(&status, SystemTime::now()));
    }
    Ok(())
}

/// The status for people. Pure, so that it can be tested.
fn describe(s: &Status, now: SystemTime) -> String {
    let size = HumanBytes;
    let p = &s.progress;
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        writeln!(out, "{name:9} {}", one_line(&text)).expect("a String takes everything");
    };
    line("volume", format!("{} in {}", s.volume_id, s.store));
    let up = HumanDuration(Duration::from_secs(s.uptime_secs));
    line("mounted", format!("{}, for {up} (sealfs {}, pid {})", s.mount_point, s.version, s.pid));
    line("state", connection(&s.connection, now));
    if let Some(last) = &s.last_transition {
        let since = UNIX_EPOCH + Duration::from_secs(last.unix_secs);
        let ago = HumanDuration(now.duration_since(since).unwrap_or_default());
        let (role, commit) = (role_in_words(last), last.commit_sequence);
        line("role", format!("{role}; for {ago}, since commit {commit}"));
    }
    line(
        "pending",
        match (p.pending_bytes, s.oldest_pending_secs) {
            (0, _) => "nothing; everything is in the bucket".into(),
            // Of a writer that was overtaken: nobody sends it.
            (bytes, None) if matches!(s.connection, Connection::Fenced | Connection::ReadOnly) => {
                let files = counted(p.pending_files, "file");
                format!("{} in {files}, on this machine only, and not sent", size(bytes))
            }
            (bytes, age) => {
                let sent = match p.sent_bytes {
                    0 => String::new(),
                    bytes => format!(", {} of it sent", size(bytes)),
                };
                format!(
                    "{} in {}{sent}, the oldest for {:.1} s; sending {}/s",
                    size(bytes),
                    counted(p.pending_files, "file"),
                    age.unwrap_or(0.0), // written between two looks
                    size(s.upload_bytes_per_sec)
                )
            }
        },
    );
    line("commit", s.commit_sequence.to_string());
    if let Some(name) = &s.snapshot {
        line("snapshot", format!("{name}: the volume as it was, read-only"));
    }
    if s.open_snapshots > 0 {
        line("open", counted(s.open_snapshots as u64, "snapshot"));
    }
    if s.quota_bytes.is_some() || s.quota_inodes.is_some() {
        line("quota", quota(s));
    }
    line("journal", format!("{} of {}", size(s.journal_bytes), size(s.journal_bytes_max)));
    let hits = s.cache_hit_ratio.map(|r| format!(", {:.0} % of reads hit", r * 100.0));
    let hits = hits.unwrap_or_default();
    line("cache", format!("{} of {}{hits}", size(s.cache_bytes), size(s.cache_bytes_max)));
    for pin in &s.pinned.pins {
        line("pinned", describe_pin(pin));
    }
    if let Some(why) = &s.pinned.failed {
        line("pinned", format!("not all of it is here yet: {why}"));
    }
    if s.cleaned_bytes > 0 {
        line(
            "cleaned",
            format!("{} moved out of half-dead or tiny segments", size(s.cleaned_bytes)),
        );
    }
    if let Some(n) = s.snapshots.filter(|n| *n > 0) {
        let held = s
            .snapshots_kept_bytes
            .map(|bytes| format!(" hold {} that the volume does not need", size(bytes)));
        line("snapshots", format!("{n}{}", held.unwrap_or_default()));
    }
    if let Some(next) = s.snapshot_next_unix_secs {
        let last =
            s.snapshot_last.as_deref().map_or(String::new(), |name| format!("; last {name}"));
        line("schedule", format!("{}; next {}{last}", s.snapshot_schedule, utc_text(next)));
    }
    let r = &s.requests;
    line(
        "requests",
        format!(
            "get {}, put {}, multipart {}, head {}, list {}, delete {}; {} failed, {} repeated",
            r.get, r.put, r.multipart, r.head, r.list, r.delete, r.errors, r.retries
        ),
    );
    line("traffic", format!("{} received, {} sent", size(r.bytes_down), size(r.bytes_up)));
    let applied = s.sse_applied.as_ref().map(|a| format!(" (the server applied {a})"));
    line("sse", format!("{}{}", s.sse, applied.unwrap_or_default()));
    if !matches!(&*s.storage_class, "" | "STANDARD") {
        let other = s
            .storage_class_applied
            .as_ref()
            .map(|other| format!(", but the server puts them into {other}"));
        line("class", format!("{} for segments{}", s.storage_class, other.unwrap_or_default()));
    }
    if s.compress != "none" || s.segment_stored_bytes < s.segment_data_bytes {
        let stored = match s.segment_data_bytes {
            0 => String::new(),
            data => {
                format!("; {} of data are stored as {}", size(data), size(s.segment_stored_bytes))
            }
        };
        line("compress", format!("{}{stored}", s.compress));
    }
    line("memory", size(s.resident_bytes).to_string());
    for note in &s.notes {
        line("note", note.clone());
    }
    for warning in &s.warnings {
        line("warning", warning.clone());
    }
    out
}

/// What is in use of what there may be.
fn quota(s: &Status) -> String {
    let of_bytes = s.quota_bytes.map(|max| format!(" of {}", HumanBytes(max))).unwrap_or_default();
    let of_inodes = s.quota_inodes.map(|max| format!(" of {max}")).unwrap_or_default();
    format!("{}{of_bytes}, {}{of_inodes} inodes in use", HumanBytes(s.used_bytes), s.used_inodes)
}

fn connection(c: &Connection, now: SystemTime) -> String {
    match c {
        Connection::Online => "online".into(),
        Connection::Offline { since_unix_secs, reason } => {
            let since = UNIX_EPOCH + Duration::from_secs(*since_unix_secs);
            let ago = HumanDuration(now.duration_since(since).unwrap_or_default());
            format!("offline for {ago}: {reason}")
        }
        Connection::Fenced => "fenced: another mount has taken the volume; reading only".into(),
        Connection::ReadOnly => "read-only".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::{PinStatus, PinsNow, Progress, Requests};

    #[test]
    fn an_offline_mount_says_since_when_and_what_is_pending() {
        // Guards against a status that looks fine while nothing reaches the bucket.
        let mut status = Status {
            volume_id: "00ff".into(),
            store: "s3://b/p".into(),
            server: String::new(),
            mount_point: "/mnt/v".into(),
            pid: 7,
            version: "0.1.0".into(),
            uptime_secs: 3600,
            connection: Connection::Offline { since_unix_secs: 1000, reason: "timed out".into() },
            snapshot: Some("monday".into()),
            open_snapshots: 2,
            progress: Progress { pending_bytes: 2048, pending_files: 3, ..Progress::default() },
            commit_sequence: 17,
            oldest_pending_secs: Some(61.24),
            upload_bytes_per_sec: 0,
            cleaned_bytes: 3 << 20,
            journal_bytes: 4096,
            journal_bytes_max: 10 << 30,
            cache_bytes: 0,
            cache_bytes_max: 10 << 30,
            cache_hit_ratio: Some(0.934),
            requests: Requests::default(),
            sse: "default".into(),
            sse_applied: Some("AES256".into()),
            compress: "zstd:3".into(),
            storage_class: "GLACIER_IR".into(),
            storage_class_applied: Some("STANDARD".into()),
            used_bytes: 3 << 30,
            used_inodes: 12,
            quota_bytes: Some(4 << 30),
            quota_inodes: None,
            quota_error: Default::default(),
            segment_data_bytes: 3 << 20,
            segment_stored_bytes: 1 << 20,
            snapshots: Some(2),
            snapshot_schedule: "hourly=24".into(),
            snapshot_last: Some("hourly-1970-01-01T00Z".into()),
            snapshot_last_unix_secs: Some(7),
            snapshot_next_unix_secs: Some(3600),
            snapshots_kept_bytes: Some(1 << 20),
            pinned: PinsNow {
                pins: vec![PinStatus {
                    path: "/trip".into(),
                    is_there: true,
                    files: 2,
                    bytes: 3 << 20,
                    kept_bytes: 4 << 20,
                    missing_bytes: 1 << 20,
                    left_out_bytes: 0,
                }],
                ..PinsNow::default()
            },
            resident_bytes: 80 << 20,
            warnings: vec!["a journal was set aside".into()],
            notes: vec!["the cache cannot be written".into()],
            journal_disk_free_bytes: Some(1 << 30),
            role: crate::stack::RoleName::Writer,
            last_transition: None,
        };
        let now = UNIX_EPOCH + Duration::from_secs(1120);
        let text = describe(&status, now);
        for part in [
            "offline for 2 minutes: timed out",
            "2.00 KiB in 3 files, the oldest for 61.2 s",
            "3.00 MiB moved out of half-dead or tiny segments",
            "93 % of reads hit",
            "default (the server applied AES256)",
            "zstd:3; 3.00 MiB of data are stored as 1.00 MiB",
            "warning   a journal was set aside",
            "note      the cache cannot be written",
            "snapshot  monday",
            "open      2 snapshots",
            "quota     3.00 GiB of 4.00 GiB, 12 inodes in use",
            "class     GLACIER_IR for segments, but the server puts them into STANDARD",
            "pinned    /trip: 3.00 MiB in 2 files, 4.00 MiB of the cache, 1.00 MiB of it not here yet",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        status.connection = Connection::Online;
        status.oldest_pending_secs = None;
        assert!(describe(&status, now).contains("2.00 KiB in 3 files, the oldest for 0.0 s"));
        status.connection = Connection::Fenced;
        let text = describe(&status, now);
        assert!(text.contains("pending   2.00 KiB in 3 files, on this machine only"), "{text}");
        (status.progress.pending_bytes, status.connection) = (0, Connection::Online);
        let text = describe(&status, now);
        assert!(text.contains("state     online") && text.contains("everything is in the bucket"));
    }
}
