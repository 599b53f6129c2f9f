//! `sealfs key rekey`: every object sealed again, so that earlier keys open nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;

use crate::base::{VolumeId, counted};
use crate::stack::KeyOptions;
use crate::stack::audit::{Tally, Walked};
use crate::stack::rekey::{
    REKEY_PARALLEL, RekeyOptions, RekeyPhase, RekeyReport, epochs_in_use, rekey,
};

use super::args::SecretArgs;
use super::configure::tell_mounts;
use super::exit::{Exit, Failure, GOES_ON, Outcome};
use super::key::Where;
use super::out::print_json;
use super::progress::announce;
use super::signals::{self, UNDO_MAX};
use super::sse::shown;

/// Flags of `sealfs key rekey`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key rekey s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs key rekey s3://my-bucket/data --rate 50 --parallel 4
  sealfs key rekey s3://my-bucket/data --no-wait --json

Begins an epoch, and seals every object of the volume again in it, in place. At the end the keys of
earlier epochs leave the keyring, and open nothing that is in the bucket. Each object is read and
written once; the volume may be mounted meanwhile. Run again, it goes on where it was cut off. The
metadata's log must be a quarter of an hour old before it is deleted, so that readers which are behind
find it: with --no-wait it ends before that, and a later run does the rest. The exit status is 0 only
if nothing is left, and 13 if something is.")]
pub(super) struct RekeyArgs {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    secret: SecretArgs,
    /// Objects at a time
    #[arg(long, value_name = "N", default_value_t = REKEY_PARALLEL)]
    parallel: usize,
    /// Most objects sealed again in a second
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Do what can be done now, and leave the rest to a later run
    #[arg(long)]
    no_wait: bool,
}

/// Runs `sealfs key rekey`.
pub(super) fn run(args: &RekeyArgs) -> Outcome {
    let options = RekeyOptions {
        parallel: args.parallel,
        rate: args.rate,
        no_wait: args.no_wait,
        ..RekeyOptions::new(args.at.open_with(&args.secret)?)
    };
    let walked = Arc::new(Walked::default());
    let attended = options.key.store.attended.clone();
    let work = shown(walked.clone(), "sealing again", async |bar| {
        rekey(&options, walked, |phase| announce(bar, said_of(&phase)), tell_mount).await
    });
    let report = signals::run(&attended, UNDO_MAX, work).map_err(|e| e.if_stopped(GOES_ON))?;
    for note in &report.notes {
        eprintln!("sealfs: note: {note}");
    }
    match args.at.json {
        true => print_json(&report)?,
        false => print!("{}", text(&report)),
    }
    verdict(&report, &args.at.store)
}

/// What is sealed in which epoch, with a bar meanwhile.
pub(super) fn epochs(options: &KeyOptions) -> Outcome<BTreeMap<u32, Tally>> {
    let walked = Arc::new(Walked::default());
    let work = shown(walked.clone(), "looking at", async |_| epochs_in_use(options, walked).await);
    let (epochs, failed) = signals::run(&options.store.attended, Duration::ZERO, work)?;
    for failed in failed {
        eprintln!("sealfs: warning: {}: {}", failed.name, failed.problem);
    }
    Ok(epochs)
}

/// Tells the mount of this volume on this machine; what it does not do at once it does by itself.
fn tell_mount(volume: VolumeId) {
    tokio::task::block_in_place(|| tell_mounts(volume));
}

fn said_of(phase: &RekeyPhase) -> String {
    match phase {
        RekeyPhase::Epoch(epoch, true) => format!("going on with epoch {epoch}"),
        RekeyPhase::Epoch(epoch, false) => format!("epoch {epoch} begins"),
        RekeyPhase::Objects => "sealing again".into(),
        RekeyPhase::Following(holder, at_most) => {
            format!("waiting up to {} s until {holder} has followed", at_most.as_secs())
        }
        RekeyPhase::Log(at_most) => format!(
            "waiting about {} s until the metadata's log may be deleted (it may be interrupted, and \
             run again)",
            at_most.as_secs() + 1
        ),
        RekeyPhase::Audit => "looking at every object once more".into(),
    }
}

fn text(report: &RekeyReport) -> String {
    let tally = &report.sealed_again;
    let mut out = format!(
        "epoch {}: {}, {}, sealed again\n",
        report.epoch,
        counted(tally.objects, "object"),
        HumanBytes(tally.bytes)
    );
    for failed in &report.failed {
        out += &format!("  {}: {}\n", failed.name, failed.problem);
    }
    if report.is_complete() {
        let retired: Vec<_> = report.retired.iter().map(u32::to_string).collect();
        out += &match retired.as_slice() {
            [] => "no earlier key was left in the keyring\n".into(),
            one_or_more => format!(
                "the keys of epoch {} have left the keyring: they open nothing in the bucket\n",
                one_or_more.join(", ")
            ),
        };
    }
    out
}

fn verdict(report: &RekeyReport, store: &str) -> Outcome {
    let Some(why) = &report.unfinished else { return Ok(()) };
    let what = format!("not complete, earlier keys stay in the keyring: {why}");
    Err(Failure::new(Exit::NotAsRequested, what)
        .hint(format!("nothing is lost; this goes on with it: sealfs key rekey {store}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rekey_that_is_not_complete_says_so_and_what_to_type() {
        // Guards against exit status 0, or "have left the keyring", while an old key opens something.
        let mut report = RekeyReport { epoch: 3, retired: vec![1, 2], ..RekeyReport::default() };
        assert!(verdict(&report, "s3://b").is_ok());
        assert!(text(&report).contains("epoch 1, 2 have left"), "{}", text(&report));
        report.unfinished = Some("laptop does not follow".into());
        assert!(!text(&report).contains("left the keyring"));
        let failure = verdict(&report, "s3://b").expect_err("not complete");
        assert_eq!(failure.exit, Exit::NotAsRequested);
    }
}
