//! `sealfs init`: makes a volume in an empty prefix.

use std::time::Duration;

use clap::Args;

use crate::seal::KdfParams;
use crate::stack::{self, InitOptions};

use super::args::{SecretArgs, StoreArgs};
use super::doctor::describe;
use super::exit::{Exit, Failure, Outcome};
use super::signals::{self, UNDO_MAX};

/// Flags of `sealfs init`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs init s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs init s3://my-bucket/data --endpoint-url https://minio.example:9000
  sealfs init file:///srv/store --key-file /root/volume.key

Without a key flag it asks for a passphrase, twice. Keep the passphrase: without it, or
another key that was added, nobody can ever read the volume, and nothing can reset it.")]
pub struct InitArgs {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY; nothing may be there yet
    #[arg(value_name = "STORE")]
    store: String,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
    /// A name for this key
    #[arg(long, value_name = "TEXT", default_value = "first")]
    label: String,
    /// Create the bucket first, with default encryption, public access blocked and plain http
    /// denied
    #[arg(long)]
    create_bucket: bool,
    /// With versioning as well
    #[arg(long, requires = "create_bucket")]
    create_bucket_versioning: bool,
}

/// Runs `sealfs init`.
pub fn run(args: InitArgs) -> Outcome {
    let mut store = args.access.resolve(&args.store)?;
    let mode = store.sse.for_new_volume().map_err(|e| Failure::new(Exit::Usage, e))?;
    store.sse.mode = Some(mode);
    super::keep_private();
    // A bucket that is still to be made cannot be looked at.
    let secret = args.secret.read_new((!args.create_bucket).then_some(&store))?;
    // SAFETY: these calls take nothing and cannot fail (getuid(2)).
    let owner = unsafe { (libc::getuid(), libc::getgid()) };
    let kdf = KdfParams::default();
    let options = InitOptions { store, secret, label: args.label, kdf, owner };
    let attended = options.store.attended.clone();
    if args.create_bucket {
        let made = stack::create_bucket(&options.store, args.create_bucket_versioning);
        let findings = signals::run(&attended, Duration::ZERO, made)?;
        eprint!("{}", describe(&findings, &args.store));
    }
    let volume = signals::run(&attended, UNDO_MAX, stack::init(options))?;
    println!("volume {volume} created in {}", args.store);
    println!("mount it with: sealfs mount {} DIR", args.store);
    Ok(())
}
