//! `sealfs init`: makes a volume in an empty prefix.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::base::shell_word;
use crate::seal::{KdfParams, Secret};
use crate::stack::{self, InitOptions, KeyOptions, StoreOptions};
use crate::store::Compression;
use crate::store::s3::StorageClass;

use super::args::{SecretArgs, StoreArgs};
use super::dirs::{absolute_or, state_dir};
use super::doctor::describe;
use super::exit::{Exit, Failure, Outcome};
use super::key::Where;
use super::key_kit::{self, Page};
use super::signals::{self, UNDO_MAX};
use super::sse_flags::for_new_volume;
use super::strength::WeakArgs;

/// Flags of `sealfs init`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs init s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs init s3://my-bucket/data --endpoint-url https://minio.example:9000
  sealfs init file:///srv/store --key-file /root/volume.key --no-recovery
  sealfs init s3://my-bucket/data --recovery-kit kit.html

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
    /// Compress file data before they are sealed: zstd, zstd:LEVEL (1 to 19) or none
    ///
    /// The volume remembers it. The sizes of objects then tell whoever reads the bucket how well the
    /// data in them compress.
    #[arg(long, value_name = "HOW", default_value = "none")]
    compress: Compression,
    /// Put file data into this storage class: STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING, GLACIER_IR
    ///
    /// The volume remembers it; `sealfs storage-class` changes it. The other objects are small, replaced
    /// often and stay in STANDARD.
    #[arg(long, value_name = "CLASS", default_value_t)]
    storage_class: StorageClass,
    /// Make a recovery key as well, and a page to print with it: a way in when the first is lost
    #[arg(long, help_heading = "Recovery", value_name = "FILE", conflicts_with = "no_recovery")]
    recovery_kit: Option<PathBuf>,
    /// Make none, and do not ask
    #[arg(long, help_heading = "Recovery")]
    no_recovery: bool,
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
    if args.access.volume_id().is_some() {
        return Err(
            Failure::new(Exit::Usage, "a new volume gets a new id").hint("leave --volume-id out")
        );
    }
    let page = args.recovery_kit.as_deref().map(|page| Page::begin(page, false)).transpose()?;
    let mode = for_new_volume(&store.sse).map_err(|e| Failure::new(Exit::Usage, e))?;
    store.sse.mode = Some(mode);
    super::keep_private();
    // A bucket that is still to be made cannot be looked at.
    let secret = args.secret.read_new((!args.create_bucket).then_some(&store))?;
    args.weak.check(&secret)?;
    // SAFETY: these calls take nothing and cannot fail (getuid(2)).
    let owner = unsafe { (libc::getuid(), libc::getgid()) };
    let kdf = KdfParams::default();
    let (reach, again) = (store.clone(), secret.duplicate());
    let (label, compress) = (args.label.clone(), args.compress);
    let storage_class = args.storage_class.clone();
    let options = InitOptions { store, secret, label, kdf, owner, compress, storage_class };
    let attended = options.store.attended.clone();
    if args.create_bucket {
        let made = stack::create_bucket(&options.store, args.create_bucket_versioning);
        let findings = signals::run(&attended, Duration::ZERO, made)?;
        eprint!("{}", describe(&findings, &args.store));
    }
    let volume = signals::run(&attended, UNDO_MAX, stack::init(options))?;
    if let Ok(dir) = state_dir() {
        stack::note_place(&dir, &reach, volume);
    }
    println!("volume {volume} created in {}", args.store);
    println!("mount it with: {}", mount_command(&args.store, &args.access, &args.secret));
    recovery(&args, page, reach, again)
}

/// Makes a recovery kit if that is wished, and says what happens without.
fn recovery(args: &InitArgs, page: Option<Page>, store: StoreOptions, secret: Secret) -> Outcome {
    if args.no_recovery {
        return Ok(());
    }
    let at = Where {
        store: args.store.clone(),
        access: args.access.clone(),
        state_dir: None,
        json: false,
    };
    let page = match page {
        Some(page) => page,
        None => match ask_for_a_page() {
            Some(page) => page,
            None => {
                eprintln!(
                    "sealfs: note: it has no recovery key: who loses the key that it has loses everything in it"
                );
                eprintln!("hint: sealfs key kit {} --out kit.html", at.address());
                return Ok(());
            }
        },
    };
    let options =
        KeyOptions { store, key: secret.into(), state_dir: absolute_or(None, state_dir)? };
    key_kit::finish(&at, &key_kit::make(&at, &options, None, "recovery kit")?, Some(page))
}

/// Where a recovery kit is to be written, of somebody who sits there.
fn ask_for_a_page() -> Option<Page> {
    let (stdin, stderr) = (std::io::stdin(), std::io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return None;
    }
    eprintln!("without a recovery key, who loses this key loses everything in the volume.");
    eprint!("file for a recovery kit to print, such as kit.html (empty: none): ");
    let mut line = String::new();
    stdin.lock().read_line(&mut line).ok()?;
    match line.trim() {
        "" => None,
        file => Page::begin(file.as_ref(), false).map_err(|failure| failure.report()).ok(),
    }
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
