//! `sealfs demo`: a volume in a local directory, mounted, with what to try next. Runs the same
//! commands a person would type, and shows them.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use super::client::is_mounted;
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use crate::base::hex;

/// Flags of `sealfs demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs demo
  sealfs demo /tmp/try-sealfs
  sealfs umount ~/sealfs-demo/vault && rm -r ~/sealfs-demo    # when you have seen enough")]
pub struct DemoArgs {
    /// Where everything of the demo goes [default: ~/sealfs-demo]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs `sealfs demo`. A demo that was unmounted is mounted again, with its contents.
pub fn run(args: DemoArgs) -> Outcome {
    let dir = match args.dir {
        Some(dir) => dir,
        None => match std::env::var_os("HOME") {
            Some(home) => PathBuf::from(home).join("sealfs-demo"),
            None => {
                return Err(Failure::new(Exit::Usage, "HOME is not set").hint("sealfs demo DIR"));
            }
        },
    };
    let failed = |what: &Path, e: std::io::Error| {
        Failure::new(Exit::General, format!("cannot make {}: {e}", what.display()))
    };
    dirs::make_private(&dir).map_err(|e| failed(&dir, e))?;
    let dir = dir.canonicalize().map_err(|e| failed(&dir, e))?;
    let (vault, store, pass) = (dir.join("vault"), dir.join("store"), dir.join("passphrase"));
    let url = format!("file://{}", store.display().to_string().replace('%', "%25"));
    if !is_mounted(&vault) {
        for made in [&vault, &store] {
            std::fs::create_dir_all(made).map_err(|e| failed(made, e))?;
        }
        if !store.join("keyring").exists() {
            make_passphrase(&pass).map_err(|e| failed(&pass, e))?;
            sealfs(&["init", &url, "--passphrase-file", &text(&pass)?])?;
        }
        let (cache, state) = (text(&dir.join("cache"))?, text(&dir.join("state"))?);
        let vault = text(&vault)?;
        sealfs(&[
            "mount",
            &url,
            &vault,
            "--passphrase-file",
            &text(&pass)?,
            "--cache-dir",
            &cache,
            "--state-dir",
            &state,
        ])?;
    }
    println!("{}", what_to_try(&vault, &store, &dir));
    Ok(())
}

/// The line that makes the shell find this program, unless it does already.
fn path_line() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join("sealfs").is_file());
    match found {
        true => None,
        false => Some(format!("  export PATH=\"{}:$PATH\"\n", program.parent()?.display())),
    }
}

/// A random passphrase of 128 bits, unless there is one.
fn make_passphrase(path: &Path) -> std::io::Result<()> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => writeln!(file, "{}", hex(&random)),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn text(path: &Path) -> Outcome<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::new(Exit::Usage, "the path of the demo must be UTF-8"))
}

/// Runs one command of this same program, shown as a person would type it.
fn sealfs(args: &[&str]) -> Outcome {
    println!("$ sealfs {}", args.join(" "));
    let status = std::env::current_exe()
        .and_then(|program| Command::new(program).args(args).status())
        .map_err(|e| Failure::new(Exit::General, format!("cannot run sealfs {}: {e}", args[0])))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::new(Exit::General, format!("sealfs {} failed", args[0]))),
    }
}

fn what_to_try(vault: &Path, store: &Path, dir: &Path) -> String {
    let (vault, store, dir) = (vault.display(), store.display(), dir.display());
    let path = path_line().unwrap_or_default();
    format!(
        "\n{vault} is mounted. Try:\n
{path}  cp -a /usr/share/doc {vault}/ && ls {vault}/doc | head
  echo 'a secret' > {vault}/note; sync {vault}/note
  sealfs sync {vault}; sealfs status {vault}
  grep -r 'a secret' {store}          # finds nothing: only sealed objects are there
  find {store} -type f | head         # the bucket
  sealfs umount {vault}               # uploads the rest, then unmounts
  sealfs demo {dir}                   # mounts it again"
    )
}
