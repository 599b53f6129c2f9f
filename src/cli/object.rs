//! `sealfs object cat` and `sealfs key export-object`: one object of a volume, opened here or by
//! somebody else.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::base::shell_word;
use crate::stack::{object_key, read_object};

use super::args::SecretArgs;
use super::exit::{Exit, Failure, Outcome};
use super::key::{Where, attend};
use super::out;
use super::out::print_json;

/// Flags of `sealfs object`.
#[derive(Args, Clone, Debug)]
pub struct ObjectArgs {
    #[command(subcommand)]
    command: ObjectCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ObjectCommand {
    /// Write what is sealed in one object of the bucket to standard output
    Cat(CatArgs),
}

/// Flags of `sealfs object cat`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs object cat s3://my-bucket/data seg/4f/4f0c… > plain
  sealfs object cat s3://my-bucket/data config --passphrase-file ~/.sealfs.pass

All of it is authenticated before a byte is written. For an auditor who is to see contents and must not
be able to make any; a key that opens the object elsewhere: sealfs key export-object.")]
struct CatArgs {
    #[command(flatten)]
    at: Where,
    /// The object's name below STORE
    #[arg(value_name = "OBJECT")]
    object: String,
    #[command(flatten)]
    secret: SecretArgs,
}

/// Flags of `sealfs key export-object`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs key export-object s3://my-bucket/data seg/4f/4f0c… --out object.key
  sealfs key export-object s3://my-bucket/data config --json

The key opens this one object, and whatever else was or will be sealed under its name in this epoch. It
also seals: whoever has it and can write the bucket can put other contents there, until the next rekey. To
show contents without that: sealfs object cat.")]
pub(super) struct ExportArgs {
    #[command(flatten)]
    at: Where,
    /// The object's name below STORE
    #[arg(value_name = "OBJECT")]
    object: String,
    /// Write the key to a new file that only you can read, in place of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    secret: SecretArgs,
}

/// Runs `sealfs object`.
pub fn run(args: &ObjectArgs) -> Outcome {
    super::keep_private();
    let ObjectCommand::Cat(args) = &args.command;
    let options = args.at.open_with(&args.secret)?;
    let plain = attend(&options.store, read_object(&options, &args.object))?;
    out::keep(std::io::stdout().write_all(&plain));
    out::written()
}

/// What was exported, as JSON.
#[derive(Serialize)]
struct Exported<'a> {
    volume: String,
    epoch: u32,
    object: &'a str,
    /// The command that opens it.
    command: &'a str,
    /// Absent where it is in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

/// Runs `sealfs key export-object`.
pub(super) fn export(args: &ExportArgs) -> Outcome {
    let options = args.at.open_with(&args.secret)?;
    let found = attend(&options.store, object_key(&options, &args.object))?;
    if let Some(path) = &args.out {
        let failed =
            |e| Failure::new(Exit::General, format!("cannot write {}: {e}", path.display()));
        let mut new = OpenOptions::new();
        let mut file = new.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        writeln!(file, "{}", *found.key).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    let file = args.out.as_ref().map_or("object.key".into(), |path| path.display().to_string());
    let command = format!(
        "open-object --object-key-file {} --volume {} --epoch {} {} object.bin > plain",
        shell_word(&file),
        found.volume,
        found.epoch,
        shell_word(&found.name)
    );
    if args.at.json {
        print_json(&Exported {
            volume: found.volume.to_string(),
            epoch: found.epoch,
            object: &found.name,
            command: &command,
            key: args.out.is_none().then_some(&found.key),
        })?;
        return out::written();
    }
    match &args.out {
        Some(path) => eprintln!("the key of {} is in {}", found.name, path.display()),
        None => println!("{}", *found.key),
    }
    out::written()?;
    eprintln!(
        "whoever has it and object.bin, a copy of the object, opens that with scripts/open-object:"
    );
    eprintln!("  {command}");
    eprintln!(
        "it seals as well: whoever can write the bucket could put other contents in its place"
    );
    Ok(())
}
