//! `sealfs set`: changes what a live mount was started with, or shows it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;
use log::LevelFilter;

use crate::stack::{Setting, Settings};

use super::args::{duration, rate, size};
use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::protocol::{Ask, Say};

/// Flags of `sealfs set`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Settings, which go by the names of the flags of `sealfs mount`:
  upload-limit=SIZE      bytes a second that are sent, 64K at least; 0 for no limit
  download-limit=SIZE    the same for what is received
  cache-size=SIZE        most bytes that the ciphertext cache takes
  commit-interval=TIME   how far the bucket may be behind
  log-level=LEVEL        error, warn, info, debug or trace

They hold at once, and until the volume is unmounted. Without a setting it shows all.

Examples:
  sealfs set ~/vault upload-limit=2M
  sealfs set ~/vault log-level=debug cache-size=50G
  sealfs set ~/vault")]
pub struct SetArgs {
    /// Where it is mounted, or any directory in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// What to change
    #[arg(value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<Setting>,
}

/// The names of settings.
pub const NAMES: [&str; 5] =
    ["upload-limit", "download-limit", "cache-size", "commit-interval", "log-level"];

/// Reads `name=value`.
pub fn setting(text: &str) -> Result<Setting, String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("{text} has no value: NAME=VALUE"));
    };
    let in_name = |e: String| format!("{name}: {e}");
    match name.replace('_', "-").as_str() {
        "upload-limit" => rate(value).map(Setting::UploadLimit),
        "download-limit" => rate(value).map(Setting::DownloadLimit),
        "cache-size" => match size(value)? {
            0 => {
                Err("a cache that is there cannot be left out: mount it with --cache-size 0".into())
            }
            bytes => Ok(Setting::CacheSize(bytes)),
        },
        "commit-interval" => interval(value).map(Setting::CommitIntervalMs),
        "log-level" => match value.parse::<LevelFilter>() {
            Ok(level) if level != LevelFilter::Off => Ok(Setting::LogLevel(level.to_string())),
            _ => Err("a level is error, warn, info, debug or trace".into()),
        },
        _ => {
            Err("it is upload-limit, download-limit, cache-size, commit-interval or log-level"
                .into())
        }
    }
    .map_err(in_name)
}

/// A time in milliseconds that a mount can wait for.
fn interval(text: &str) -> Result<u64, String> {
    match duration(text)? {
        time if time < Duration::from_millis(10) => Err("at least 10ms".into()),
        time => Ok(time.as_millis() as u64),
    }
}

/// Changes of the mount on `dir` what of `settings` (names of flags, and values) can be changed.
pub fn apply(dir: &Path, settings: impl Iterator<Item = (String, String)>) -> Outcome {
    let can = |name: &str| NAMES.contains(&name);
    let settings: Result<Vec<_>, String> = settings
        .filter(|(name, _)| can(name))
        .map(|(name, value)| setting(&format!("{name}={value}")))
        .collect();
    let settings = settings.map_err(|e| Failure::new(Exit::Usage, e))?;
    let ask = Ask::Set { settings };
    match Client::connect(dir, false)?.ask(&ask, |_| {})? {
        Say::Settings(_) => Ok(()),
        _ => Err(Failure::answered_else()),
    }
}

/// Runs `sealfs set`.
pub fn run(args: SetArgs) -> Outcome {
    let client = Client::connect(&args.dir, true)?;
    let shows = args.settings.is_empty();
    match client.ask(&Ask::Set { settings: args.settings }, |_| {})? {
        Say::Settings(settings) if shows => print!("{}", describe(&settings)),
        Say::Settings(_) => {}
        _ => {
            return Err(Failure::answered_else());
        }
    }
    Ok(())
}

fn describe(settings: &Settings) -> String {
    let limit = |bytes: u64| match bytes {
        0 => "0 (no limit)".to_owned(),
        bytes => format!("{bytes} ({}/s)", HumanBytes(bytes)),
    };
    let interval = match settings.commit_interval_ms {
        Some(ms) => format!("{ms}ms"),
        None => "- (it only reads)".into(),
    };
    let cache = match settings.cache_bytes_max {
        Some(bytes) => format!("{bytes} ({})", HumanBytes(bytes)),
        None => "- (there is none)".into(),
    };
    format!(
        "upload-limit={}\ndownload-limit={}\ncache-size={cache}\ncommit-interval={interval}\n\
         log-level={}\n",
        limit(settings.upload_limit),
        limit(settings.download_limit),
        settings.log_level.to_ascii_lowercase()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_the_flags_are() {
        // Guards against 2M read as 2, and a typing error that is taken for something else.
        assert_eq!(setting("upload-limit=2M"), Ok(Setting::UploadLimit(2 << 20)));
        assert_eq!(setting("download_limit=2M/s"), Ok(Setting::DownloadLimit(2 << 20)));
        assert_eq!(setting("upload-limit=0"), Ok(Setting::UploadLimit(0)));
        assert_eq!(setting("commit-interval=500ms"), Ok(Setting::CommitIntervalMs(500)));
        assert_eq!(setting("log-level=debug"), Ok(Setting::LogLevel("DEBUG".into())));
        for bad in [
            "upload-limit",
            "upload-limit=",
            "upload-limit=1K",
            "cache-size=0",
            "log-level=off",
            "log-level=loud",
            "commit-interval=1ms",
            "journal-size=1G",
            "=1",
        ] {
            assert!(setting(bad).is_err(), "{bad}");
        }
    }
}
