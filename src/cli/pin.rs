//! `sealfs warm --pin` and `--unpin`: what stays in the cache of this machine, whatever else is read.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use indicatif::HumanBytes;

use crate::base::{counted, one_line};
use crate::stack::{PinPath, PinStatus, PinsNow};

use super::client::Client;
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::progress::{Lines, bar};
use super::protocol::{Ask, Say};
use super::stop;

/// What is to be known when this command ends before what is pinned is here.
const GOES_ON_WITH_IT: &str = "it is pinned, and the mount goes on with it: sealfs status DIR";

/// Pins or unpins `paths`, which are of one mount.
pub fn run(paths: &[PathBuf], unpin: bool) -> Outcome {
    let (mut client, mut inside) = (None::<Client>, Vec::new());
    for path in paths {
        let (of, names) = place(path)?;
        if client.as_ref().is_some_and(|first| first.point != of.point) {
            let why = format!("{} is not on the mount of {}", path.display(), paths[0].display());
            return Err(Failure::new(Exit::Usage, why).hint("one mount at a time"));
        }
        inside.push(names);
        client.get_or_insert(of);
    }
    let Some(client) = client else { return Ok(()) };
    let bar = bar("{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    let mut lines = Lines::new(Instant::now());
    let ask = Ask::Pin { paths: inside.clone(), unpin };
    let mut is_pinned = false;
    stop::catch();
    let outcome = client.ask_each(&ask, |say| match say {
        Say::Pinned(now) => Ok(Some(*now)),
        Say::Pinning(now) => {
            is_pinned = true;
            let here = now.kept_bytes.saturating_sub(now.missing_bytes);
            match &bar {
                Some(bar) => {
                    bar.set_length(now.kept_bytes);
                    bar.set_position(here);
                }
                None if lines.due(Instant::now()) => eprintln!(
                    "sealfs: {} of {} are here",
                    HumanBytes(here),
                    HumanBytes(now.kept_bytes)
                ),
                None => {}
            }
            Ok(None)
        }
        _ => Ok(None),
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let outcome = outcome.map_err(|failure| match is_pinned {
        true => failure.if_stopped(GOES_ON_WITH_IT),
        false => failure,
    });
    told(&outcome?, &inside, unpin)
}

fn told(now: &PinsNow, asked: &[PinPath], unpin: bool) -> Outcome {
    if unpin {
        println!(
            "{}",
            match now.pins.len() {
                0 => "nothing is pinned any more".into(),
                n => format!("{} stay pinned", counted(n as u64, "path")),
            }
        );
        return Ok(());
    }
    let shown = |path: &PinPath| -> String {
        let parts = path.iter().map(|name| format!("/{}", String::from_utf8_lossy(name)));
        Some(parts.collect::<String>()).filter(|s| !s.is_empty()).unwrap_or("/".into())
    };
    let asked: Vec<String> = asked.iter().map(shown).collect();
    for pin in now.pins.iter().filter(|pin| asked.contains(&pin.path)) {
        println!("{}", describe(pin));
    }
    match &now.failed {
        None => Ok(()),
        Some(why) => {
            let missing = HumanBytes(now.missing_bytes);
            Err(Failure::new(Exit::Pending, format!("{missing} of it are not here yet: {why}"))
                .hint(GOES_ON_WITH_IT))
        }
    }
}

/// A pin in a line, for people. Pure.
pub fn describe(pin: &PinStatus) -> String {
    let size = HumanBytes;
    let path = one_line(&pin.path);
    if !pin.is_there {
        return format!("{path}: nothing is there now");
    }
    let mut text = format!(
        "{path}: {} in {}, {} of the cache",
        size(pin.bytes),
        counted(pin.files, "file"),
        size(pin.kept_bytes)
    );
    match pin.missing_bytes {
        0 => {}
        bytes => text += &format!(", {} of it not here yet", size(bytes)),
    }
    if pin.left_out_bytes > 0 {
        text += &format!("; {} have no room", size(pin.left_out_bytes));
    }
    text
}

/// The mount that a path is in, and its names from the root of the volume on. The last one may be gone,
/// or a link, which is not followed.
fn place(path: &Path) -> Outcome<(Client, PinPath)> {
    let failed = |e: std::io::Error| {
        Failure::new(Exit::NotMounted, format!("cannot look at {}: {e}", path.display()))
    };
    let absolute = std::path::absolute(path).map_err(failed)?;
    let is_point = dirs::resolve(path).is_ok_and(|at| Client::connect(&at, false).is_ok());
    let resolved = match (is_point, absolute.parent(), absolute.components().next_back()) {
        (false, Some(parent), Some(Component::Normal(name))) => {
            dirs::resolve(&present(parent)).map_err(failed)?.join(rest(parent)).join(name)
        }
        _ => dirs::resolve(path).map_err(failed)?,
    };
    let there = present(if is_point { &resolved } else { resolved.parent().unwrap_or(&resolved) });
    let client = Client::connect(&there, true)?;
    let names = resolved.strip_prefix(&client.point).map_err(|_| {
        Failure::new(Exit::NotMounted, format!("{} is not in a sealfs mount", path.display()))
    })?;
    let names: PinPath = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    if names.first().is_some_and(|name| name == b".snapshots") {
        let why = format!("{} is of a snapshot, which cannot be pinned", path.display());
        return Err(Failure::new(Exit::Usage, why).hint("pin the path in the volume itself"));
    }
    Ok((client, names))
}

/// The deepest directory on the way to `path` that is there.
fn present(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|at| at.symlink_metadata().is_ok());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// What of `path` is not there.
fn rest(path: &Path) -> PathBuf {
    path.strip_prefix(present(path)).map(Path::to_owned).unwrap_or_default()
}
