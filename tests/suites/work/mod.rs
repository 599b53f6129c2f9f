//! What people do on a file system all day, as scripts of the tools they do it with.

mod build;
mod copy;
mod edit;
mod many;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::suites::{limited, outcome};

/// Longest that one script may take.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Runs a script with `sh -e` in `dir`; what it printed. Fails if the script does.
pub fn script(dir: &Path, text: &str) -> String {
    let (said, done) = outcome(command(dir, text).env("LC_ALL", "C"));
    assert!(done, "{text}\n{said}");
    said
}

fn command(dir: &Path, text: &str) -> Command {
    let mut command = limited("sh", PATIENCE);
    command.args(["-ec", text]).current_dir(dir);
    command
}
