//! `sealfs info`: where each byte of a file is, and how it is sealed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::HumanBytes;

use crate::base::{counted, one_line};
use crate::stack::Places;

use super::client::Client;
use super::exit::{Exit, Failure, Outcome};
use super::out::print_json;
use super::protocol::{Ask, Say};

/// Segments that are shown to people.
const SHOWN: usize = 20;

/// Flags of `sealfs info`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs info ~/vault/film.mkv
  sealfs info --json ~/vault/film.mkv | jq .journal_bytes")]
pub struct InfoArgs {
    /// Files or directories of a mount
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// A JSON object for each; fields are never renamed
    #[arg(long)]
    json: bool,
}

/// Runs `sealfs info`.
pub fn run(args: InfoArgs) -> Outcome {
    for path in &args.paths {
        let places = look(path)?;
        if args.json {
            print_json(&places)?;
        } else {
            print!("{}", describe(path, &places));
        }
    }
    Ok(())
}

fn look(path: &Path) -> Outcome<Places> {
    let shown = path.display();
    let failed = |e| Failure::new(Exit::General, format!("cannot look at {shown}: {e}"));
    let meta = path.symlink_metadata().map_err(failed)?;
    if meta.is_file()
        && let Ok(file) = std::fs::File::open(path)
    {
        // What the kernel has not written back yet is nowhere else.
        file.sync_data().map_err(failed)?;
    }
    // Of a link the directory counts that it is in, not what it leads to.
    let inside = match (meta.is_dir(), path.parent()) {
        (true, _) => path,
        (false, Some(parent)) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match Client::connect(inside, true)?.ask(&Ask::Places { ino: meta.ino() }, |_| {})? {
        Say::Places(places) => Ok(*places),
        _ => Err(Failure::answered_else()),
    }
}

/// For people. Pure.
fn describe(path: &Path, p: &Places) -> String {
    let size = HumanBytes;
    let mut out = format!("{}\n", one_line(&path.display().to_string()));
    let mut line = |name: &str, text: String| out += &format!("  {name:9} {text}\n");
    line("inode", format!("{}, {}, {}", p.ino, p.kind, counted(p.xattrs.into(), "attribute")));
    if p.kind != "file" {
        line("entries", p.size.to_string());
        return out;
    }
    line("size", format!("{} ({} bytes)", size(p.size), p.size));
    line("journal", format!("{}, not in the bucket yet", size(p.journal_bytes)));
    line("bucket", format!("{} in {}", size(p.bucket_bytes), counted(p.extents, "extent")));
    line("holes", size(p.hole_bytes).to_string());
    if let Some(sse) = &p.sse_applied {
        line("sse", format!("{sse} (what the server last applied)"));
    }
    for segment in p.segments.iter().take(SHOWN) {
        let text = format!(
            "{} of it in {} (holds {}, commit {}, key epoch {}; {} of it cached here)",
            size(segment.bytes),
            segment.object,
            size(segment.size),
            segment.commit,
            segment.key_epoch,
            size(segment.cached_bytes)
        );
        line("segment", text);
    }
    let more = p.segments.len().saturating_sub(SHOWN) as u64 + p.more_segments;
    if more > 0 {
        line("segment", format!("… and {more} more (--json lists up to 1000)"));
    }
    out
}
