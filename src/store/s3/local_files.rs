//! Which files of this machine the AWS libraries read, again and again, while they run.

use std::env::var_os;
use std::path::PathBuf;

/// Variables that name a file or directory, or a list of them.
const VARIABLES: [&str; 7] = [
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Makes the variables that name files relative to the working directory absolute, before it is
/// left. Call it while the process has one thread.
pub fn pin_local_files() {
    for variable in VARIABLES {
        let Some(value) = var_os(variable).filter(|value| !value.is_empty()) else { continue };
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let Ok(pinned) = std::env::join_paths(std::env::split_paths(&value).map(absolute)) else {
            continue; // the list came apart at colons, so its parts have none
        };
        // SAFETY: no other thread reads the environment meanwhile (the caller's duty).
        unsafe { std::env::set_var(variable, pinned) };
    }
}

/// The files and directories that are read for credentials, settings and trust, as far as the
/// environment says. They need not exist. The default ones, `~/.aws`, count unless keys come
/// from the environment and there is no such directory.
pub fn local_files() -> Vec<PathBuf> {
    let named = VARIABLES.iter().filter_map(var_os);
    let mut files: Vec<PathBuf> = named
        .flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>())
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if let Some(home) = var_os("HOME").filter(|home| !home.is_empty()) {
        let dir = PathBuf::from(home).join(".aws");
        if dir.exists() || var_os("AWS_ACCESS_KEY_ID").is_none() {
            files.push(dir);
        }
    }
    files
}
