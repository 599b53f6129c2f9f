//! `sealfs sse audit` and `sealfs sse migrate`: what the server encrypts, shown and changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, ProgressBar};

use super::sse_flags::SseDetailFlags;
use crate::base::{VolumeId, counted};
use crate::stack::audit::{AuditOptions, AuditReport, Walked, audit};
use crate::stack::inventory::{self, InventoryOptions};
use crate::stack::migrate::{MigrateOptions, PARALLEL_DEFAULT, Phase, migrate};
use crate::store::s3::SseKind;

use super::args::{SecretArgs, StoreAddress, StoreArgs};
use super::client::Client;
use super::exit::{Exit, Failure, GOES_ON, Outcome};
use super::out::print_json;
use super::progress::{Lines, announce, bar, style};
use super::signals::{self, UNDO_MAX};
use super::sse_report;

/// How often progress is shown on a terminal.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// The bar before and after it is known how many objects there are.
const UNCOUNTED: &str = "{spinner} {msg}: {human_pos} objects, {per_sec}";
const COUNTED: &str = "{msg} {bar:30} {human_pos}/{human_len} objects, {per_sec}, {eta} left";

/// Flags of `sealfs sse`.
#[derive(Args, Clone, Debug)]
pub struct SseArgs {
    #[command(subcommand)]
    command: SseCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum SseCommand {
    /// Show how every object of a volume is encrypted, and whether that is as requested
    Audit(Box<AuditArgs>),
    /// Bring every object of a volume into another server-side encryption
    Migrate(Box<MigrateArgs>),
}

/// Flags of `sealfs sse audit`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs sse audit s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs sse audit s3://my-bucket/data --sse aws:kms --sse-kms-key-id alias/vault --json
  sealfs sse audit s3://my-bucket/data --inventory inventory.csv.gz --sse aws:kms

The objects are compared with the mode that the volume remembers; with --sse, with that one,
and then no passphrase is needed. The exit status is 0 only if every object that was looked
at is sealed and encrypted as requested, and 13 if not.")]
struct AuditArgs {
    /// s3://BUCKET[/PREFIX]
    #[arg(value_name = "STORE")]
    store: String,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
    /// One JSON object; its fields are never renamed
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// A line for every mode and key, and one for every exception
    #[arg(long)]
    csv: bool,
    /// Look at N objects only, picked at random from all
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Check the sealing of every object with the volume's key (a ranged GET for each)
    #[arg(long)]
    verify_sealing: bool,
    /// Read an S3 Inventory report (CSV, also .gz) instead of asking for every object
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sample", "verify_sealing"])]
    inventory: Option<PathBuf>,
    /// The columns of the report [default: fileSchema of manifest.json beside it]
    #[arg(long, value_name = "COLUMNS", requires = "inventory")]
    inventory_schema: Option<String>,
}

/// Flags of `sealfs sse migrate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs sse migrate s3://my-bucket/data --to aws:kms --sse-kms-key-id alias/vault
  sealfs sse migrate s3://my-bucket/data --to customer --sse-c-key-file new.key
  sealfs sse migrate s3://my-bucket/data --to AES256 --sse-c-read-key-file old.key
  sealfs sse migrate s3://my-bucket/data --to aws:kms --new-only

It may be interrupted and run again, and the volume may be mounted meanwhile; away from a
customer key, or to a new one, give the old key with --sse-c-read-key-file. The exit status
is 0 only if the audit at the end finds every object as requested, and 13 if not.")]
struct MigrateArgs {
    /// s3://BUCKET[/PREFIX]
    #[arg(value_name = "STORE")]
    store: String,
    /// The new mode; the volume remembers it
    #[arg(long, value_name = "MODE", value_enum)]
    to: SseKind,
    #[command(flatten)]
    address: StoreAddress,
    #[command(flatten)]
    detail: SseDetailFlags,
    #[command(flatten)]
    secret: SecretArgs,
    /// Only remember the mode for what is written from now on; leave what is there
    #[arg(long)]
    new_only: bool,
    /// The mount that has the volume was started with the new customer key
    #[arg(long)]
    mount_has_key: bool,
    /// Objects at a time
    #[arg(long, value_name = "N", default_value_t = PARALLEL_DEFAULT)]
    parallel: usize,
    /// Most objects changed in a second
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
}

/// Runs `sealfs sse`.
pub fn run(args: SseArgs) -> Outcome {
    super::keep_private();
    match args.command {
        SseCommand::Audit(args) => run_audit(*args),
        SseCommand::Migrate(args) => run_migrate(*args),
    }
}

fn run_audit(args: AuditArgs) -> Outcome {
    let store = args.access.resolve(&args.store)?;
    let needs_key = store.sse.mode.is_none() || args.verify_sealing || args.secret.is_given();
    let key = needs_key.then(|| args.secret.read_for(&store)).transpose()?;
    let walked = Arc::new(Walked::default());
    let attended = store.attended.clone();
    let report = match args.inventory {
        Some(file) => {
            let options = InventoryOptions { store, key, file, schema: args.inventory_schema };
            let work = shown(walked.clone(), "reading the report", async |_| {
                inventory::audit(&options, walked).await
            });
            signals::run(&attended, Duration::ZERO, work)?
        }
        None => {
            let options = AuditOptions {
                store,
                key,
                sample: args.sample,
                verify_sealing: args.verify_sealing,
            };
            let work = shown(walked.clone(), "auditing", async |_| audit(&options, walked).await);
            signals::run(&attended, Duration::ZERO, work)?
        }
    };
    if args.json {
        print_json(&report)?;
    } else if args.csv {
        sse_report::csv(&report, std::io::stdout().lock())
            .map_err(|e| Failure::new(Exit::General, format!("cannot print the report: {e}")))?;
    } else {
        print!("{}", sse_report::text(&report));
    }
    verdict(&report)
}

fn run_migrate(args: MigrateArgs) -> Outcome {
    let sse = args.detail.resolve(Some(args.to)).map_err(|e| Failure::new(Exit::Usage, e))?;
    let store = args.address.resolve(&args.store, sse, true)?;
    let key = args.secret.read_for(&store)?;
    let options = MigrateOptions {
        parallel: args.parallel,
        rate: args.rate,
        new_only: args.new_only,
        mount_has_key: args.mount_has_key,
        ..MigrateOptions::new(store, key)
    };
    let walked = Arc::new(Walked::default());
    let attended = options.store.attended.clone();
    let work = shown(walked.clone(), "migrating", async |bar| {
        migrate(&options, walked, |phase| announce(bar, said_of(&phase)), tell_mount).await
    });
    let report = signals::run(&attended, UNDO_MAX, work).map_err(|e| e.if_stopped(GOES_ON))?;
    match args.json {
        true => print_json(&report)?,
        false => print!("{}", sse_report::migration(&report)),
    }
    report.audit.as_ref().map_or(Ok(()), verdict)
}

/// Tells the mount of this volume on this machine, if there is one; whether it has followed.
fn tell_mount(volume: VolumeId) -> bool {
    tokio::task::block_in_place(|| Client::tell_mounts(volume).0)
}

fn said_of(phase: &Phase) -> String {
    match phase {
        Phase::Objects => "migrating".into(),
        Phase::Waiting(left) => format!("the mount follows within {} s", left.as_secs()),
        Phase::Rest => "migrating what was written meanwhile".into(),
        Phase::Audit => "auditing".into(),
    }
}

fn line(what: &str, done: u64, total: u64) -> String {
    match total {
        0 => format!("{what}: {} so far", counted(done, "object")),
        total => format!("{what}: {done} of {}", counted(total, "object")),
    }
}

/// How long the rest takes at the pace so far, where that can be told.
fn left(elapsed: Duration, done: u64, total: u64) -> String {
    let rest = total.saturating_sub(done);
    if done == 0 || rest == 0 {
        return String::new();
    }
    let secs = elapsed.as_secs_f64() * rest as f64 / done as f64;
    format!(", about {} left", indicatif::HumanDuration(Duration::from_secs_f64(secs)))
}

fn verdict(report: &AuditReport) -> Outcome {
    if report.is_clean() {
        return Ok(());
    }
    let total = report.exceptions_total;
    let are = if total == 1 { "is" } else { "are" };
    let what = format!("{} {are} not as requested", counted(total, "object"));
    Err(Failure::new(Exit::NotAsRequested, what)
        .hint(format!("sealfs sse migrate {} --to MODE, or ask for what there is", report.store)))
}

/// Runs `work` with a bar of what it has walked: objects, rate and time left on a terminal, a
/// line now and then elsewhere.
pub(super) async fn shown<T, E>(
    walked: Arc<Walked>,
    what: &'static str,
    work: impl AsyncFnOnce(Option<&ProgressBar>) -> Result<T, E>,
) -> Result<T, E> {
    let bar = bar(UNCOUNTED);
    if let Some(bar) = &bar {
        bar.set_message(what);
    }
    let mut work = std::pin::pin!(work(bar.as_ref()));
    let mut tick = tokio::time::interval(SHOW_EVERY);
    let mut lines = Lines::new(Instant::now());
    let (mut walks, mut is_counted, mut begun) = (0, false, Instant::now());
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            _ = tick.tick() => {}
        }
        let (total, done) = (walked.total.load(Relaxed), walked.done.load(Relaxed));
        let now = walked.walks.load(Relaxed);
        let is_new = std::mem::replace(&mut walks, now) != now;
        if is_new {
            begun = Instant::now();
        }
        let Some(bar) = &bar else {
            if done > 0 && lines.due(Instant::now()) {
                let bytes = HumanBytes(walked.bytes.load(Relaxed));
                let left = left(begun.elapsed(), done, total);
                eprintln!("sealfs: {}, {bytes}{left}", line(what, done, total));
            }
            continue;
        };
        if is_new {
            bar.reset();
        }
        if std::mem::replace(&mut is_counted, total > 0) != (total > 0) {
            bar.set_style(style(if is_counted { COUNTED } else { UNCOUNTED }));
        }
        bar.set_length(total.max(done));
        bar.set_position(done);
        bar.tick();
    };
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    outcome
}
