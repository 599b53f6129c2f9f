//! `sealfs snapshot`: the volume as it was, by names.
//!
//! A directory is a mount, which is asked over its control socket; a STORE that is mounted on this
//! machine is too. Any other STORE is mounted for a moment.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::base::{counted, one_line, unix_secs, utc_text};
use crate::stack::{
    KeyOptions, RefusalKind, Schedule, SnapshotAsk, SnapshotInfo, SnapshotList, SnapshotRefused,
    StackError, schedule, snapshots,
};

use super::args::{SecretArgs, StoreArgs};
use super::client::Client;
use super::configure::tell_mounts;
use super::dirs::{absolute_or, state_dir};
use super::exit::{Exit, Failure, Outcome};
use super::live::mount_of;
use super::out::print_json;
use super::protocol::{Ask, Say};
use super::signals;
use super::snapshot_diff::{self, DiffArgs};
use super::snapshot_restore::{self, RestoreArgs};
use super::stop;
use super::sync::sync;

/// How long a short mount may take to end in order when it was stopped.
const UNDO_MAX: Duration = Duration::from_secs(15);

/// How long what was written before may wait for the bucket without any progress.
const STALL_MAX: Duration = Duration::from_secs(600);

/// `sealfs snapshot …`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sealfs snapshot create ~/vault before-the-upgrade --note 'kernel 6.12' --expire 30d
  sealfs snapshot list ~/vault
  sealfs snapshot delete ~/vault before-the-upgrade
  sealfs snapshot list s3://my-bucket/data --passphrase-file ~/.sealfs.pass

A snapshot is made in a moment, copies nothing, and costs what changes afterwards: docs/SNAPSHOTS.md.")]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Subcommand, Debug)]
enum SnapshotCommand {
    /// Keep the volume as it is now under a name
    Create(CreateArgs),
    /// Show the snapshots, and what each holds
    List(ListArgs),
    /// Delete snapshots; what only they hold comes free
    Delete(DeleteArgs),
    /// Show or change when snapshots are made by themselves
    Schedule(ScheduleArgs),
    /// Put files and directories back as they were
    Restore(Box<RestoreArgs>),
    /// Show what differs between two snapshots, or one and the volume as it is
    Diff(Box<DiffArgs>),
}

/// Which volume.
#[derive(Args, Clone, Debug)]
pub(super) struct Target {
    /// Where it is mounted, or s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY
    #[arg(value_name = "DIR|STORE")]
    target: String,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    pub(super) json: bool,
    /// Where this machine remembers what it has seen of the volume
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs snapshot create ~/vault monday
  sealfs snapshot create s3://my-bucket/data monday --expire 30d

Everything that was written before is in it, also what programs have not fsynced.")]
struct CreateArgs {
    #[command(flatten)]
    at: Target,
    /// Its name: at most 200 bytes, no / and no control character, not beginning with a dot or a
    /// hyphen, and not "now"
    #[arg(value_name = "NAME")]
    name: String,
    /// A word for whoever lists it
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    /// Delete it after this long: 12h, 30d, 8w
    #[arg(long, value_name = "AGE", value_parser = age)]
    expire: Option<Duration>,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs snapshot list ~/vault
  sealfs snapshot list --json ~/vault | jq '.snapshots[].name'

ALONE is what of the bucket comes free when that snapshot alone is deleted.")]
struct ListArgs {
    #[command(flatten)]
    at: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs snapshot delete ~/vault monday tuesday
  sealfs snapshot delete ~/vault --older-than 90d

All of them are deleted, or none if one is not there. What only they held is deleted from the bucket in the
background, after the five minutes that readers have.")]
struct DeleteArgs {
    #[command(flatten)]
    at: Target,
    /// Their names
    #[arg(value_name = "NAME", required_unless_present = "older_than")]
    names: Vec<String>,
    /// All that were made longer ago than this: 12h, 30d, 8w
    #[arg(long, value_name = "AGE", value_parser = age, conflicts_with = "names")]
    older_than: Option<Duration>,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs snapshot schedule s3://my-bucket/data hourly=24,daily=30,monthly=12
  sealfs snapshot schedule s3://my-bucket/data off
  sealfs snapshot schedule s3://my-bucket/data

The mount that writes the volume makes one for each hour, day and month (UTC) and keeps as many as this says. It is
the volume's, whichever machine mounts it. `off` makes no more, and leaves those that there are.")]
struct ScheduleArgs {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY
    #[arg(value_name = "STORE")]
    store: String,
    /// hourly=N, daily=N, monthly=N, joined by commas, or off [default: show it]
    #[arg(value_name = "SCHEDULE")]
    to: Option<Schedule>,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
    /// Where this machine remembers what it has seen of the volume
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
}

/// The longest age that a flag takes.
const AGE_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Reads an age: a number with a unit, which nobody means to be seconds when it is left out.
fn age(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_secs = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(24 * 3600),
        "w" => Some(7 * 24 * 3600),
        _ => None,
    };
    let secs = number.parse::<u64>().ok().zip(unit_secs).and_then(|(n, unit)| n.checked_mul(unit));
    let wrong =
        "an age is a number with s, m, h, d or w, such as 12h, 30d or 8w; 100 years at most";
    secs.map(Duration::from_secs).filter(|age| *age <= AGE_MAX).ok_or_else(|| wrong.into())
}

/// Runs `sealfs snapshot`.
pub fn run(args: SnapshotArgs) -> Outcome {
    match args.command {
        SnapshotCommand::Create(args) => create(&args),
        SnapshotCommand::List(args) => list(&args),
        SnapshotCommand::Delete(args) => delete(&args),
        SnapshotCommand::Schedule(args) => change_schedule(&args),
        SnapshotCommand::Restore(args) => snapshot_restore::run(*args),
        SnapshotCommand::Diff(args) => snapshot_diff::run(*args),
    }
}

/// How a volume is reached.
pub(super) enum Reached {
    /// A mount on this machine.
    Mount(PathBuf),
    /// A store, and what opens it.
    Store(Box<KeyOptions>),
}

impl Target {
    fn is_store(&self) -> bool {
        self.target.contains("://")
    }

    /// A mount if there is one; else the store, and what opens it, which may be asked for.
    pub(super) fn reach(&self) -> Outcome<Reached> {
        if !self.is_store() {
            return Ok(Reached::Mount(PathBuf::from(&self.target)));
        }
        super::keep_private();
        let mut store = self.access.resolve(&self.target)?;
        // The one that writes, if there is one.
        if let Some(client) = mount_of(Client::all(), &store, |status| status.snapshots.is_some())?
        {
            return Ok(Reached::Mount(client.point));
        }
        store.state_dir = Some(absolute_or(self.state_dir.as_deref(), state_dir)?);
        let key = self.secret.read_for(&store)?;
        let state_dir = absolute_or(self.state_dir.as_deref(), state_dir)?;
        Ok(Reached::Store(Box::new(KeyOptions { store, key, state_dir })))
    }

    fn listed(&self, reached: &Reached) -> Outcome<SnapshotList> {
        match reached {
            Reached::Mount(dir) => {
                match Client::connect(dir, true)?.ask(&Ask::SnapshotList, |_| {})? {
                    Say::Snapshots(list) => Ok(*list),
                    _ => Err(Failure::answered_else()),
                }
            }
            Reached::Store(options) => in_order(options, snapshots::list(options)),
        }
    }
}

/// Runs what ends in order by itself when it is stopped: a short mount.
fn in_order<T>(
    options: &KeyOptions,
    work: impl Future<Output = Result<T, StackError>>,
) -> Outcome<T> {
    signals::run(&options.store.attended, UNDO_MAX, work)
}

/// What to type when a change was stopped, which may have been made.
fn look(failure: Failure, target: &str) -> Failure {
    failure.if_stopped(format!("look whether it was done: sealfs snapshot list {target}"))
}

pub(super) fn attend<T>(
    options: &KeyOptions,
    work: impl Future<Output = Result<T, StackError>>,
) -> Outcome<T> {
    let attended = &options.store.attended;
    signals::run(attended, UNDO_MAX, attended.unless_stopped(work))
}

/// What a refusal is to whoever typed the command.
pub(super) fn refused(refused: SnapshotRefused, target: &str) -> Failure {
    let (exit, hint) = match refused.kind {
        RefusalKind::Usage => (Exit::Usage, Some("sealfs snapshot create --help".into())),
        RefusalKind::Name => (Exit::General, Some(format!("sealfs snapshot list {target}"))),
        RefusalKind::Full => (
            Exit::General,
            Some(format!("sealfs snapshot delete {target} --older-than 52w, or by their names")),
        ),
        RefusalKind::ReadOnly => {
            (Exit::General, Some("ask the mount that writes it, or give the STORE".into()))
        }
        RefusalKind::Damage => (Exit::Corrupt, Some("see what: sealfs fsck STORE".into())),
        RefusalKind::Fenced => (
            Exit::InUse,
            Some("ask the machine that has the volume now, or take it back: sealfs promote".into()),
        ),
        RefusalKind::Pending => (Exit::Pending, Some(format!("sealfs status {target}"))),
        RefusalKind::Unclear => (
            Exit::Unreachable,
            Some(format!("look whether it was done: sealfs snapshot list {target}")),
        ),
    };
    Failure { hint, ..Failure::new(exit, refused.message) }
}

fn create(args: &CreateArgs) -> Outcome {
    let at = &args.at;
    let ask = SnapshotAsk {
        name: args.name.clone(),
        note: args.note.clone(),
        expires_unix_secs: args.expire.map(|age| unix_secs().saturating_add(age.as_secs())),
    };
    // A name that is none costs no prompt and no mount.
    ask.check().map_err(|e| refused(e, &at.target))?;
    let made = match at.reach()? {
        Reached::Mount(dir) => {
            sync(&dir, STALL_MAX)?;
            let answer = Client::connect(&dir, true)?.ask(&Ask::SnapshotCreate(ask), |_| {});
            match answer.map_err(|e| look(e, &at.target))? {
                Say::Snapshot(made) => Ok(*made),
                Say::SnapshotRefused(why) => Err(why),
                _ => return Err(Failure::answered_else()),
            }
        }
        Reached::Store(options) => {
            in_order(&options, snapshots::create(&options, ask)).map_err(|e| look(e, &at.target))?
        }
    };
    let made = made.map_err(|e| refused(e, &at.target))?;
    match at.json {
        true => print_json(&made),
        false => {
            println!(
                "snapshot {}: commit {}, {}, {}",
                one_line(&made.name),
                made.commit,
                counted(made.files, "file"),
                HumanBytes(made.bytes)
            );
            Ok(())
        }
    }
}

fn list(args: &ListArgs) -> Outcome {
    let listed = args.at.listed(&args.at.reach()?)?;
    match args.at.json {
        true => print_json(&listed),
        false => {
            print!("{}", table(&listed));
            Ok(())
        }
    }
}

/// Names that one request takes.
const NAMES_PER_ASK: usize = 4096;

fn delete(args: &DeleteArgs) -> Outcome {
    let at = &args.at;
    let reached = at.reach()?;
    let mut names = args.names.clone();
    if let Some(age) = args.older_than {
        let before = unix_secs().saturating_sub(age.as_secs());
        let listed = at.listed(&reached)?.snapshots;
        names = listed.into_iter().filter(|s| s.made_unix_secs < before).map(|s| s.name).collect();
    }
    names.sort();
    names.dedup();
    if names.len() > NAMES_PER_ASK {
        return Err(Failure::new(Exit::Usage, format!("more than {NAMES_PER_ASK} names")));
    }
    if !names.is_empty() {
        let names = names.clone();
        let done = match &reached {
            Reached::Mount(dir) => {
                stop::catch();
                let answer =
                    Client::connect(dir, true)?.ask(&Ask::SnapshotDelete { names }, |_| {});
                match answer.map_err(|e| look(e, &at.target))? {
                    Say::Done { .. } => Ok(()),
                    Say::SnapshotRefused(why) => Err(why),
                    _ => return Err(Failure::answered_else()),
                }
            }
            Reached::Store(options) => in_order(options, snapshots::delete(options, names))
                .map_err(|e| look(e, &at.target))?,
        };
        done.map_err(|e| refused(e, &at.target))?;
    }
    match at.json {
        true => print_json(&Deleted { deleted: names }),
        false => {
            println!("{} deleted", counted(names.len() as u64, "snapshot"));
            Ok(())
        }
    }
}

/// A schedule, for programs.
#[derive(Serialize)]
struct Shown {
    schedule: String,
}

fn change_schedule(args: &ScheduleArgs) -> Outcome {
    super::keep_private();
    let mut store = args.access.resolve(&args.store)?;
    let state_dir = absolute_or(args.state_dir.as_deref(), state_dir)?;
    store.state_dir = Some(state_dir.clone());
    let key = args.secret.read_for(&store)?;
    let options = KeyOptions { store, key, state_dir };
    let (volume, now) = attend(&options, schedule(&options, args.to))?;
    if args.to.is_some() {
        tell_mounts(volume);
    }
    match args.json {
        true => print_json(&Shown { schedule: now.to_string() }),
        false => {
            println!("{now}");
            Ok(())
        }
    }
}

/// What was deleted.
#[derive(Serialize)]
struct Deleted {
    deleted: Vec<String>,
}

/// The list for people.
fn table(list: &SnapshotList) -> String {
    if list.snapshots.is_empty() {
        return "no snapshots\n".into();
    }
    let wide = list.snapshots.iter().map(|s| one_line(&s.name).chars().count()).max().unwrap_or(0);
    let wide = wide.max(4);
    let mut out = format!(
        "{:wide$}  {:16}  {:>9}  {:>10}  {:>10}  {:16}  NOTE\n",
        "NAME", "MADE (UTC)", "FILES", "SIZE", "ALONE", "GOES"
    );
    for s in &list.snapshots {
        let SnapshotInfo { name, files, bytes, alone_bytes, .. } = s;
        let goes = match (s.expires_unix_secs, s.origin.as_str()) {
            (Some(at), _) => utc(at),
            (None, "by-hand") => "never by itself".into(),
            (None, origin) => format!("as {origin}"),
        };
        let (name, note) = (one_line(name), one_line(&s.note));
        let (size, alone) = (HumanBytes(*bytes).to_string(), HumanBytes(*alone_bytes).to_string());
        let line = format!(
            "{name:wide$}  {:16}  {files:>9}  {size:>10}  {alone:>10}  {goes:16}  {note}",
            utc(s.made_unix_secs)
        );
        out += line.trim_end();
        out.push('\n');
    }
    let n = counted(list.snapshots.len() as u64, "snapshot");
    out += &format!("{n} hold {} that the volume does not need\n", HumanBytes(list.kept_bytes));
    out
}

/// `2026-11-26 21:04`, UTC.
fn utc(secs: u64) -> String {
    utc_text(secs).replace('T', " ").chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read_in_days_and_weeks_too() {
        // Guards against 30d read as 30 seconds, which would delete everything.
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(age("30d"), Ok(30 * day));
        assert_eq!(age("8w"), Ok(56 * day));
        assert_eq!(age("12h"), Ok(day / 2));
        assert_eq!(age("90m"), Ok(day / 16));
        for bad in [
            "",
            "30",
            "0",
            "500ms",
            "30D",
            "30 d",
            " 30d",
            "+1d",
            "d",
            "-1d",
            "1.5d",
            "36601d",
            "99999999999999999999w",
            "x",
            "1y",
        ] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_list_says_what_each_holds_and_when_it_goes() {
        // Guards against a name that breaks the table, and a note that writes to the terminal.
        let one = SnapshotInfo {
            name: "monday".into(),
            commit: 7,
            made_unix_secs: 1_795_728_240,
            expires_unix_secs: None,
            origin: "by-hand".into(),
            note: "a\nb".into(),
            files: 3,
            bytes: 2048,
            alone_bytes: 1024,
            kept_bytes: 1024,
        };
        let two = SnapshotInfo {
            name: "tuesday".into(),
            origin: "daily".into(),
            note: String::new(),
            ..one.clone()
        };
        let list = SnapshotList { snapshots: vec![one, two], kept_bytes: 1024 };
        let text = table(&list);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[1].contains("2026-11-26 21:24") && lines[1].contains("never by itself"),
            "{text}"
        );
        assert!(lines[2].contains("as daily") && lines[2].starts_with("tuesday "), "{text}");
        assert_eq!(lines[3], "2 snapshots hold 1.00 KiB that the volume does not need");
        assert_eq!(table(&SnapshotList::default()), "no snapshots\n");
    }
}
