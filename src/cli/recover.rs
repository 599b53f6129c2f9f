//! `sealfs recover`: what a local journal holds and the bucket does not have, as files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::HumanBytes;

use super::sse_flags::SseReadFlags;
use crate::base::counted;
use crate::stack::{self, Attended, KeyringSource, LIST_NAME, RecoverOptions, RecoverProgress};

use super::args::{SecretArgs, StoreAddress};
use super::exit::{Exit, Failure, Outcome};
use super::progress::{Lines, bar};
use super::secret::KeyringAt;
use super::signals;

/// Flags of `sealfs recover`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs recover /var/lib/sealfs/VOLUME/journal.set-aside-… ~/out --store s3://my-bucket/data
  sealfs recover ~/old-disk/journal ~/out --keyring-file keyring-copy --key-file volume.key

The journal is read, never changed, also while a fenced mount has it open; the bucket is asked for
the keyring only. Files of which the journal holds parts have holes where it does not know: the
file #recovered.txt in OUT lists them, and everything else that is not simply there. Cut off, the same
command begins again: as long as .sealfs-recover-unfinished lies in OUT, what else lies there is replaced.")]
pub struct RecoverArgs {
    /// The journal's directory; `sealfs status` and the log name it
    #[arg(value_name = "JOURNAL")]
    journal: PathBuf,
    /// Where the files go; made, or empty
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Take the keyring from this store
    #[arg(long, value_name = "STORE", required_unless_present = "keyring_file")]
    store: Option<String>,
    /// Take the keyring from a copy of it; the bucket is not asked
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    keyring_file: Option<PathBuf>,
    #[command(flatten)]
    address: StoreAddress,
    #[command(flatten)]
    keys: SseReadFlags,
    #[command(flatten)]
    secret: SecretArgs,
}

/// Runs `sealfs recover`.
pub fn run(args: RecoverArgs) -> Outcome {
    let keyring = match (&args.keyring_file, &args.store) {
        (Some(path), _) => KeyringSource::File(path.clone()),
        (None, Some(store)) => {
            let sse = args.keys.resolve().map_err(|e| Failure::new(Exit::Usage, e))?;
            let asked = !sse.read_keys.is_empty();
            KeyringSource::Store(Box::new(args.address.resolve(store, sse, asked)?))
        }
        (None, None) => return Err(Failure::new(Exit::Usage, "no keyring").hint("--store STORE")),
    };
    if !args.journal.join("journal.id").exists() {
        let shown = args.journal.display();
        return Err(Failure::new(
            Exit::Usage,
            format!("{shown} is not the directory of a journal"),
        )
        .hint("it is called journal, or journal.set-aside-…, below the state directory"));
    }
    super::keep_private();
    let key = match &keyring {
        KeyringSource::Store(store) => args.secret.read_for(store)?,
        KeyringSource::File(path) => args.secret.read_at(KeyringAt::File(path))?,
    };
    let out_dir = args.out.clone();
    let attended = match &keyring {
        KeyringSource::Store(store) => store.attended.clone(),
        KeyringSource::File(_) => Attended::default(),
    };
    let progress = Arc::new(RecoverProgress::default());
    let options = RecoverOptions {
        journal_dir: args.journal,
        out_dir,
        keyring,
        key,
        progress: progress.clone(),
    };
    let done = signals::run(&attended, Duration::ZERO, shown(stack::recover(options), &progress));
    let again = "the same command begins again, and replaces what it has put there";
    let done = done.map_err(|failure| failure.if_stopped(again))?;
    println!(
        "{} ({} of them in part, {}) and {} recovered to {}",
        counted(done.files, "file"),
        done.partial,
        HumanBytes(done.bytes),
        counted(done.others, "other"),
        args.out.display(),
    );
    if !done.remarks.is_empty() {
        let list = args.out.join(LIST_NAME);
        let remarks = counted(done.remarks.len() as u64, "remark");
        println!("{remarks}: see {}", list.display());
    }
    Ok(())
}

/// Shows how far `work` is: a bar on a terminal, a line now and then elsewhere.
async fn shown<T>(work: impl Future<Output = T>, progress: &RecoverProgress) -> T {
    let bar = bar("{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    let (mut work, mut lines) = (std::pin::pin!(work), Lines::new(Instant::now()));
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            () = tokio::time::sleep(signals::LOOK_EVERY) => {}
        }
        let (done, of) =
            (progress.bytes.load(Ordering::Relaxed), progress.of.load(Ordering::Relaxed));
        match &bar {
            Some(bar) => {
                bar.set_length(of);
                bar.set_position(done);
            }
            None if lines.due(Instant::now()) => match of {
                0 => eprintln!("sealfs: reading the journal"),
                of => eprintln!("sealfs: {} of {} written", HumanBytes(done), HumanBytes(of)),
            },
            None => {}
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    outcome
}
