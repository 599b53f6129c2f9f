//! `sealfs storage-class`: where the server keeps a volume's segments.

use clap::Args;
use serde::Serialize;

use crate::stack::Change;
use crate::store::s3::StorageClass;

use super::configure::{Now, configured};
use super::exit::Outcome;
use super::out::print_json;
use super::snapshot::Target;

/// Flags of `sealfs storage-class`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs storage-class ~/vault
  sealfs storage-class ~/vault GLACIER_IR
  sealfs storage-class s3://my-bucket/data INTELLIGENT_TIERING --passphrase-file ~/.sealfs.pass

It holds for segments (file data) that are put from now on, by whichever machine; what is there stays in its
class until cleaning moves it. Everything else is small, replaced often and stays in STANDARD. The cheap
classes charge for 128 KiB and for 30 or 90 days at least, and for reading: docs/USING.md. Classes
that have to be restored before they can be read (GLACIER, DEEP_ARCHIVE) are refused.")]
pub struct StorageClassArgs {
    #[command(flatten)]
    at: Target,
    /// STANDARD, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING, GLACIER_IR, or one that another server
    /// has [default: show it]
    #[arg(value_name = "CLASS")]
    to: Option<StorageClass>,
}

/// A storage class. The field names are an interface (`--json`).
#[derive(Serialize)]
struct Shown {
    storage_class: String,
    /// What the server puts segments into, where that is another.
    applied: Option<String>,
}

/// Runs `sealfs storage-class`.
pub fn run(args: StorageClassArgs) -> Outcome {
    let StorageClassArgs { at, to } = args;
    let change = to.map(Change::StorageClass);
    let shown = match configured(&at, change)? {
        Now::Mount(now) => {
            let storage_class = match &*now.storage_class {
                "" => StorageClass::default().to_string(), // a directory
                class => class.to_owned(),
            };
            Shown { storage_class, applied: now.storage_class_applied }
        }
        Now::Store(now) => Shown { storage_class: now.storage_class.to_string(), applied: None },
    };
    match (at.json, shown.applied.as_deref()) {
        (true, _) => return print_json(&shown),
        (false, None) => println!("{}", shown.storage_class),
        (false, Some(other)) => {
            println!("{}, but the server puts segments into {other}", shown.storage_class);
        }
    }
    Ok(())
}
