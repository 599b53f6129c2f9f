//! Who keeps a mount busy: the processes with something of it open, found in /proc.

use std::fs;
use std::path::{Path, PathBuf};

/// The processes that can be seen to use something below `point`, as `name (pid)`. What other
/// users' processes do is visible to root only.
pub fn users_of(point: &Path) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let dir = process.path();
        if links(&dir).iter().any(|link| link.starts_with(point)) {
            let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", name.trim()));
        }
    }
    found
}

/// Where a process is and what it has open. Only links are read, never what they lead to.
fn links(process: &Path) -> Vec<PathBuf> {
    let fixed = ["cwd", "root", "exe"].map(|name| process.join(name));
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    fixed.into_iter().chain(open.map(|fd| fd.path())).flat_map(fs::read_link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_open_file_is_named() {
        // Guards against "busy" without the one fact that helps.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let point = dir.path().canonicalize().expect("exists");
        let _open = fs::File::create(point.join("f")).expect("creates");
        let pid = format!("({})", std::process::id());
        assert!(users_of(&point).iter().any(|who| who.ends_with(&pid)));
    }
}
