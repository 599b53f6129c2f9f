//! `sealfs snapshot restore`: files and directories of a snapshot, as they were.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use indicatif::{HumanBytes, ProgressBar};

use crate::base::counted;
use crate::fs::restore::{RestoreOrder, RestoreProgress, Restored};
use crate::fs::tree::SNAPSHOTS_NAME;
use crate::meta::SnapshotName;

use super::exit::{Exit, Failure, GOES_ON, Outcome};
use super::out::print_json;
use super::progress::{Lines, bar};
use super::protocol::{Ask, Say};
use super::server::PROGRESS_INTERVAL;
use super::snapshot_at::{Volume, VolumeArgs, open};
use super::snapshot_serve::failure;
use super::stop;

/// Flags of `sealfs snapshot restore`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs snapshot restore ~/vault monday docs/report.odt
  sealfs snapshot restore ~/vault monday docs photos --to recovered
  sealfs snapshot restore ~/vault monday --delete
  sealfs snapshot restore s3://my-bucket/data monday docs

No data move: what is restored shares what the snapshot has. Owners, modes, times, extended attributes,
links and holes are as they were. Each file is replaced at once and whole. What came since stays, unless
--delete says otherwise. What is as it was is left alone, so that the same command goes on where one that
was cut off has ended. Of a mount that is there, the files of a single snapshot can as well be copied
out of DIR/.snapshots/NAME.")]
pub struct RestoreArgs {
    #[command(flatten)]
    at: VolumeArgs,
    /// The snapshot
    #[arg(value_name = "NAME", value_parser = SnapshotName::parse)]
    name: SnapshotName,
    /// What to restore, from the root of the volume on, or as a path in its mount [default: everything]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Put it below this directory of the volume, which is made if need be, and not where it was
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Delete what is in a restored directory and was not there then
    #[arg(long)]
    delete: bool,
    /// One JSON object at the end; its fields are never renamed
    #[arg(long)]
    json: bool,
}

/// Runs `sealfs snapshot restore`.
pub fn run(args: RestoreArgs) -> Outcome {
    let volume = args.at.find(false)?;
    let point = match &volume {
        Volume::Mounted(client) => Some(client.point.clone()),
        Volume::Store(_) => None,
    };
    let names = |path: &PathBuf| names_of(path, point.as_deref(), &args.name);
    let to = args.to.as_ref().map(|to| target_of(to, point.as_deref(), &args.name)).transpose()?;
    let order = RestoreOrder {
        snapshot: args.name.to_string(),
        paths: args.paths.iter().map(names).collect::<Outcome<_>>()?,
        to,
        delete: args.delete,
    };
    let done = match volume {
        Volume::Mounted(client) => {
            let mut lines = Lines::new(std::time::Instant::now());
            let bar = bar("{spinner} {msg} {elapsed}");
            stop::catch();
            let restored = client.ask_each(&Ask::SnapshotRestore { order }, |say| match say {
                Say::Restored(done) => Ok(Some(*done)),
                Say::Restoring { files, unchanged } => {
                    show(bar.as_ref(), &mut lines, (files, unchanged));
                    Ok(None)
                }
                _ => Ok(None),
            });
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            restored.map_err(|failure| failure.if_stopped(GOES_ON))?
        }
        Volume::Store(options) => open(*options, |control, attended| async move {
            let progress = Arc::new(RestoreProgress::default());
            let mut lines = Lines::new(std::time::Instant::now());
            let bar = bar("{spinner} {msg} {elapsed}");
            let mut restoring = control.restore(order, progress.clone());
            let restored = loop {
                tokio::select! {
                    restored = &mut restoring => break restored,
                    () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                        if attended.is_stopped() {
                            progress.stop();
                        }
                        show(bar.as_ref(), &mut lines, progress.so_far());
                    }
                }
            };
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            restored.map_err(|e| failure(&e))
        })
        .map_err(|failure| failure.if_stopped(GOES_ON))?,
    };
    if args.json {
        print_json(&done)?;
    } else {
        println!("{}", describe(&done));
    }
    told(&done)
}

/// How far it is; how much there is to do nobody knows before it is done.
fn show(bar: Option<&ProgressBar>, lines: &mut Lines, (files, unchanged): (u64, u64)) {
    let text = format!("restored {files} so far, {unchanged} were as they were");
    match bar {
        Some(bar) => {
            bar.set_message(text);
            bar.tick();
        }
        None if lines.due(std::time::Instant::now()) => eprintln!("sealfs: {text}"),
        None => {}
    }
}

fn describe(done: &Restored) -> String {
    let mut text = format!(
        "restored {} ({}), {} and {}; {} unchanged",
        counted(done.files, "file"),
        HumanBytes(done.bytes),
        counted(done.links, "link"),
        counted(done.dirs, "directory"),
        done.unchanged,
    );
    if done.deleted > 0 {
        text += &format!("; {} deleted", done.deleted);
    }
    text
}

/// What could not be restored is said, and makes it a failure.
fn told(done: &Restored) -> Outcome {
    if done.conflicts == 0 {
        return Ok(());
    }
    for conflict in &done.told {
        eprintln!("sealfs: {conflict}");
    }
    let what = format!("{} could not be restored", counted(done.conflicts, "file"));
    Err(Failure::new(Exit::General, what)
        .hint("move what is in the way elsewhere, or let it be deleted: --delete"))
}

/// The names from the root of the volume on of a directory to restore into, which is in no snapshot.
fn target_of(to: &Path, point: Option<&Path>, snapshot: &SnapshotName) -> Outcome<Vec<Vec<u8>>> {
    let names = names_below(to, point, snapshot)?;
    match names.first().is_some_and(|first| first == SNAPSHOTS_NAME) {
        true => Err(Failure::new(Exit::Usage, format!("nothing can be put into {}", to.display()))
            .hint("--to names a directory of the volume, from its root on")),
        false => Ok(names),
    }
}

/// The names from the root of the volume on that a path stands for. One that is in the mount may be
/// named as it is there, also below `.snapshots/NAME`.
fn names_of(path: &Path, point: Option<&Path>, snapshot: &SnapshotName) -> Outcome<Vec<Vec<u8>>> {
    let mut names = names_below(path, point, snapshot)?;
    let prefix = [SNAPSHOTS_NAME, snapshot.as_str().as_bytes()];
    let is_past = names.len() >= 2 && names[..2] == prefix;
    Ok(if is_past { names.split_off(2) } else { names })
}

/// The same without a look at what they are.
fn names_below(
    path: &Path,
    point: Option<&Path>,
    snapshot: &SnapshotName,
) -> Outcome<Vec<Vec<u8>>> {
    let elsewhere = |hint: String| {
        let message = format!("{} is not in the volume", path.display());
        Err(Failure::new(Exit::Usage, message).hint(hint))
    };
    let inside = match (path.is_absolute(), point) {
        (false, _) | (true, None) => path.to_owned(),
        (true, Some(point)) => match inside(path, point) {
            Some(inside) => inside,
            None => {
                return elsewhere(format!(
                    "name it from the root of the volume on; to copy it out: cp -a \
                     {}/.snapshots/{snapshot}/PATH DIR",
                    point.display()
                ));
            }
        },
    };
    let mut names = Vec::new();
    for part in inside.components() {
        match part {
            Component::Normal(name) => names.push(name.as_bytes().to_vec()),
            Component::CurDir | Component::RootDir => {}
            _ => return elsewhere("name it without \"..\"".into()),
        }
    }
    Ok(names)
}

/// What of `path` is below `point`, which is resolved. Links on the way to the mount are followed, those
/// in it are not.
fn inside(path: &Path, point: &Path) -> Option<PathBuf> {
    if let Ok(inside) = path.strip_prefix(point) {
        return Some(inside.to_owned());
    }
    let mut above = path.ancestors();
    let mount = above.find(|above| above.canonicalize().is_ok_and(|real| real == point))?;
    path.strip_prefix(mount).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_however_it_is_named() {
        // Guards against a restore of something else than was meant, or into another directory.
        let point = tempfile::tempdir().expect("a directory");
        let point = point.path().canonicalize().expect("resolves");
        let name = SnapshotName::parse("monday").expect("a name");
        let of = |path: &str| names_of(Path::new(path), Some(&point), &name);
        let wanted = vec![b"docs".to_vec(), b"a b".to_vec()];
        let at = point.display();
        for path in [
            "docs/a b".to_string(),
            "./docs/a b/".to_string(),
            format!("{at}/docs/a b"),
            format!("{at}/.snapshots/monday/docs/a b"),
            ".snapshots/monday/docs/a b".to_string(),
        ] {
            assert_eq!(of(&path).expect(&path), wanted, "{path}");
        }
        assert_eq!(of(".").expect("the root"), Vec::<Vec<u8>>::new());
        assert!(of("/elsewhere/docs").is_err() && of("../docs").is_err());
        let target = |path: &str| target_of(Path::new(path), Some(&point), &name);
        assert_eq!(target("docs/a b").expect("a directory"), wanted);
        let inside = format!("{at}/.snapshots/monday/docs");
        assert!(target(".snapshots/monday/docs").is_err() && target(&inside).is_err());
        let unmounted = names_of(Path::new("/docs/a b"), None, &name);
        assert_eq!(unmounted.expect("from the root on"), wanted);
    }
}
