//! SIGHUP, for a mount in the background or under a service manager: the settings that a live mount
//! can change become what its own command line, NAME.conf read again, says now; and certificates are
//! trusted as the system, or the file of `AWS_CA_BUNDLE`, has them now.
//!
//! What cannot be used leaves everything as it was, with a line in the log.

use std::ffi::OsString;

use clap::CommandFactory;
use tokio::signal::unix::Signal;

use crate::base::one_line;
use crate::stack::{Control, Setting};

use super::exit::{Exit, Failure, Outcome};
use super::{Cli, conf, fstab, notify, server, set};

/// Reloads at each `hangup`, for ever.
pub async fn reloads(mut hangup: Signal, control: std::sync::Arc<dyn Control>) {
    while hangup.recv().await.is_some() {
        notify::reloading();
        crate::store::s3::trust_again();
        let control = std::sync::Arc::clone(&control);
        // It reads files.
        let reloaded = tokio::task::spawn_blocking(move || reload(&*control)).await;
        if let Err(e) = reloaded {
            log::error!("SIGHUP: bug: {e}");
        }
        notify::reloaded();
    }
}

fn reload(control: &dyn Control) {
    let settings = match settings_now(std::env::args_os().collect()) {
        Ok(settings) => settings,
        Err(failure) => {
            log::error!("SIGHUP: nothing is changed: {}", one_line(&failure.message));
            return;
        }
    };
    for setting in &settings {
        // A mount that only reads has no commit interval, one without a cache no size of it.
        if let Err(why) = server::change(control, setting) {
            log::info!("SIGHUP: {setting:?} stays: {why}");
        }
    }
    log::info!("SIGHUP: settings and certificates are read again");
}

/// What a mount that was started by `args` now would have of what `sealfs set` knows.
///
/// # Errors
/// The file of the configuration is gone or makes no sense.
fn settings_now(args: Vec<OsString>) -> Outcome<Vec<Setting>> {
    let cli = Cli::command();
    let args = conf::expand(fstab::expand(args, &cli), &cli)?;
    let wrong = |e: clap::Error| {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Failure::new(Exit::Usage, first.to_owned())
    };
    let given = cli.try_get_matches_from(args).map_err(wrong)?;
    let Some(mount) = given.subcommand_matches("mount") else { return Ok(Vec::new()) };
    let value = |name: &str| {
        let id = name.replace('-', "_");
        let mut raw = mount.get_raw(&id)?;
        raw.next_back().map(|value| value.to_string_lossy().into_owned())
    };
    let named = set::NAMES.iter().filter_map(|name| Some((*name, value(name)?)));
    // No cache cannot be asked of a live mount, nor given to one.
    let named = named.filter(|(name, value)| *name != "cache-size" || value.trim() != "0");
    let settings = named.map(|(name, value)| set::setting(&format!("{name}={value}")));
    settings.collect::<Result<_, _>>().map_err(|e| Failure::new(Exit::Usage, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_line_leaves_open_is_the_default_again() {
        // Guards against a limit that stays for ever once its line has left the file.
        let args =
            ["sealfs", "mount", "--upload-limit=2M", "-o", "log-level=debug", "s3://b/p", "/m"];
        let settings = settings_now(args.iter().map(OsString::from).collect()).expect("reads");
        assert_eq!(
            settings,
            [
                Setting::UploadLimit(2 << 20),
                Setting::DownloadLimit(0),
                Setting::CacheSize(10 << 30),
                Setting::CommitIntervalMs(2000),
                Setting::LogLevel("DEBUG".into()),
            ]
        );
        let args = ["sealfs", "mount", "no-such-name"].iter().map(OsString::from);
        assert!(settings_now(args.collect()).is_err());
    }
}
