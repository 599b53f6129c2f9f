//! `sealfs quota`: how much the files of a volume may take.

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use crate::fs::QuotaError;
use crate::stack::Change;

use super::args::size;
use super::configure::{Now, configured};
use super::exit::Outcome;
use super::out::print_json;
use super::snapshot::Target;

/// Less than one block of a file is no quota.
const BYTES_MIN: u64 = 4096;

/// Flags of `sealfs quota`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs quota ~/vault 100G
  sealfs quota ~/vault 100G --inodes 1000000
  sealfs quota s3://my-bucket/data off --passphrase-file ~/.sealfs.pass
  sealfs quota ~/vault

What counts is what `du` counts: the blocks in which the files that are there now have data. Snapshots and
holes do not. At the quota what would take more is refused, and everything else goes on, deleting first of
all. It is the volume's, whichever machine mounts it; a mount on another machine follows within two minutes.
`off` for SIZE ends that of bytes, `--inodes off` that of inodes.")]
pub struct QuotaArgs {
    #[command(flatten)]
    at: Target,
    /// The most bytes, 4K at least, or off [default: show it]
    #[arg(value_name = "SIZE", value_parser = bytes)]
    bytes: Option<u64>,
    /// The most inodes (files, directories, links), or off
    #[arg(long, value_name = "N", value_parser = inodes)]
    inodes: Option<u64>,
    /// What a program is told that goes beyond: ENOSPC, or EDQUOT
    #[arg(long, value_name = "ERRNO", value_parser = error)]
    error: Option<QuotaError>,
}

fn bytes(text: &str) -> Result<u64, String> {
    match text {
        "off" => Ok(0),
        text => match size(text)? {
            0..BYTES_MIN => Err("a quota is 4K at least, or off".into()),
            bytes => Ok(bytes),
        },
    }
}

fn inodes(text: &str) -> Result<u64, String> {
    match text {
        "off" => Ok(0),
        text => {
            text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "a number of inodes, or off".into())
        }
    }
}

fn error(text: &str) -> Result<QuotaError, String> {
    match &*text.to_ascii_uppercase() {
        "ENOSPC" => Ok(QuotaError::Enospc),
        "EDQUOT" => Ok(QuotaError::Edquot),
        _ => Err("it is ENOSPC or EDQUOT".into()),
    }
}

/// A quota and what is in use of it. The field names are an interface (`--json`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Shown {
    /// The most bytes; `None` for no limit.
    bytes: Option<u64>,
    /// The most inodes.
    inodes: Option<u64>,
    error: QuotaError,
    /// What is in use, where a mount was asked.
    used_bytes: Option<u64>,
    used_inodes: Option<u64>,
}

/// Runs `sealfs quota`.
pub fn run(args: QuotaArgs) -> Outcome {
    let QuotaArgs { at, bytes, inodes, error } = args;
    let change = (bytes.is_some() || inodes.is_some() || error.is_some())
        .then_some(Change::Quota { bytes, inodes, error });
    let shown = match configured(&at, change)? {
        Now::Mount(now) => Shown {
            bytes: now.quota_bytes,
            inodes: now.quota_inodes,
            error: now.quota_error,
            used_bytes: Some(now.used_bytes),
            used_inodes: Some(now.used_inodes),
        },
        Now::Store(now) => {
            let limit = |n: u64| Some(n).filter(|n| *n > 0);
            let (bytes, inodes) = (limit(now.quota.bytes), limit(now.quota.inodes));
            Shown { bytes, inodes, error: now.quota.error, ..Shown::default() }
        }
    };
    match at.json {
        true => print_json(&shown),
        false => {
            println!("{}", describe(&shown));
            Ok(())
        }
    }
}

fn describe(s: &Shown) -> String {
    let of = |used: Option<String>, max: Option<String>| match (used, max) {
        (Some(used), Some(max)) => format!("{used} of {max}"),
        (Some(used), None) => format!("{used}, no limit"),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => "no limit".into(),
    };
    let size = |bytes: Option<u64>| bytes.map(|bytes| HumanBytes(bytes).to_string());
    let text = |n: Option<u64>| n.map(|n| n.to_string());
    let error = match s.error {
        QuotaError::Enospc => "ENOSPC",
        QuotaError::Edquot => "EDQUOT",
    };
    let told = match s.bytes.or(s.inodes) {
        Some(_) => format!("\nbeyond    {error}"),
        None => String::new(),
    };
    format!(
        "bytes     {}\ninodes    {}{told}",
        of(size(s.used_bytes), size(s.bytes)),
        of(text(s.used_inodes), text(s.inodes))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_elsewhere_and_zero_is_none() {
        // Guards against a quota of 0, at which nothing can be written, by a typing error.
        assert_eq!((bytes("10G"), bytes("off"), bytes("4096")), (Ok(10 << 30), Ok(0), Ok(4096)));
        assert_eq!((inodes("7"), inodes("off")), (Ok(7), Ok(0)));
        assert_eq!(error("edquot"), Ok(QuotaError::Edquot));
        for bad in ["0", "4095", "", "-1", "10X"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert!(inodes("0").is_err() && inodes("1K").is_err() && error("EIO").is_err());
    }

    #[test]
    fn what_is_shown_says_how_much_is_left() {
        // Guards against a limit of bytes shown as one of inodes.
        let shown = Shown {
            bytes: Some(10 << 30),
            used_bytes: Some(1 << 30),
            used_inodes: Some(3),
            ..Shown::default()
        };
        assert_eq!(
            describe(&shown),
            "bytes     1.00 GiB of 10.00 GiB\ninodes    3, no limit\nbeyond    ENOSPC"
        );
        assert_eq!(describe(&Shown::default()), "bytes     no limit\ninodes    no limit");
    }
}
