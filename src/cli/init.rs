//! `sealfs init`: makes a volume in an empty prefix.

use std::time::Duration;

use clap::Args;

use crate::base::shell_word;
use crate::seal::KdfParams;
use crate::stack::{self, InitOptions};

use super::args::{SecretArgs, StoreArgs};
use super::doctor::describe;
use super::exit::{Exit, Failure, Outcome};
use super::signals::{self, UNDO_MAX};
use super::strength::WeakArgs;

/// Flags of `sealfs init`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs init s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs init s3://my-bucket/data --endpoint-url https://minio.example:9000
  sealfs init file:///srv/store --key-file /root/volume.key

Without a key flag it asks for a passphrase, twice. Keep the passphrase: without it, or
another key that was added, nobody can ever read the volume, and nothing can reset it. One that
is easily guessed is refused: whoever reads the bucket can try them at home.")]
pub struct InitArgs {
    /// s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY; nothing may be there yet
    #[arg(value_name = "STORE")]
    store: String,
    #[command(flatten)]
    access: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    weak: WeakArgs,
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

/// The command that mounts the volume, as it is typed in any directory.
fn mount_command(store: &str, access: &StoreArgs, secret: &SecretArgs) -> String {
    let mut words = vec!["sealfs".into(), "mount".into(), store.to_owned()];
    access.to_mount(&mut words);
    secret.to_mount(&mut words);
    let words: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
    let fd = secret.passphrase_fd.map(|fd| format!(" {fd}<FILE")).unwrap_or_default();
    format!("{} DIR{fd}", words.join(" "))
}

/// Runs `sealfs init`.
pub fn run(args: InitArgs) -> Outcome {
    let mut store = args.access.resolve(&args.store)?;
    let mode = store.sse.for_new_volume().map_err(|e| Failure::new(Exit::Usage, e))?;
    store.sse.mode = Some(mode);
    super::keep_private();
    // A bucket that is still to be made cannot be looked at.
    let secret = args.secret.read_new((!args.create_bucket).then_some(&store))?;
    args.weak.check(&secret)?;
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
    println!("mount it with: {}", mount_command(&args.store, &args.access, &args.secret));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        init: InitArgs,
    }

    #[test]
    fn the_line_that_mounts_names_everything_that_init_was_told() {
        // Guards against "mount it with" a command that cannot reach the store, or asks for
        // another passphrase; and against a path with a space that becomes two.
        let given = [
            "init",
            "s3://b/a prefix",
            "--endpoint-url",
            "http://minio:9000",
            "--region",
            "eu-1",
            "--profile",
            "my profile",
            "--allow-http",
            "--sse",
            "customer",
            "--sse-c-key-file",
            "/keys/a b",
            "--passphrase-file",
            "/root/it's",
        ];
        let Cli { init: args } = Cli::parse_from(given);
        assert_eq!(
            mount_command(&args.store, &args.access, &args.secret),
            "sealfs mount 's3://b/a prefix' --endpoint-url http://minio:9000 --region eu-1 \
             --profile 'my profile' --allow-http --sse-c-key-file '/keys/a b' \
             --passphrase-file '/root/it'\\''s' DIR"
        );
        let Cli { init: args } = Cli::parse_from(["init", "file:///s", "--key-file", "rel/key"]);
        let here = std::env::current_dir().expect("there is one");
        let line = mount_command("file:///s", &args.access, &args.secret);
        assert!(line.ends_with(&format!("--key-file {}/rel/key DIR", here.display())), "{line}");
    }
}
