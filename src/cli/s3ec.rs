//! `sealfs s3ec`: single objects of the Amazon S3 Encryption Client, outside of any volume.

use std::io::Write;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::base::one_line;
use crate::s3ec::{Content, EnvelopePlace, Format, INSTRUCTION_SUFFIX, Metadata};
use crate::stack::{EnvelopeAsk, ObjectName, S3ecObject, StoreOptions};

use super::args::StoreAddress;
use super::exit::{Exit, Failure, Outcome};
use super::progress::{Lines, bar};
use super::s3ec_keys::{EnvelopeKeyArgs, NewEnvelopeKeyArgs, pairs};
use super::sse_flags::SseReadFlags;
use super::{out, signals};

/// Flags of `sealfs s3ec`.
#[derive(Args, Clone, Debug)]
pub struct S3ecArgs {
    #[command(subcommand)]
    command: S3ecCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum S3ecCommand {
    /// Write the contents of an object to standard output
    Cat(CatArgs),
    /// Show how an object is encrypted
    Head(HeadArgs),
    /// Wrap the data key of an object again; its contents stay
    Rewrap(Box<RewrapArgs>),
}

/// Which object.
#[derive(Args, Clone, Debug)]
struct Where {
    /// s3://BUCKET/KEY
    #[arg(value_name = "OBJECT")]
    object: ObjectName,
    #[command(flatten)]
    address: StoreAddress,
    #[command(flatten)]
    sse: SseReadFlags,
    /// Look for the envelope in the instruction file only
    #[arg(long)]
    instruction_file: bool,
    /// What follows the object's key in that of its instruction file
    #[arg(long, value_name = "TEXT", default_value = INSTRUCTION_SUFFIX)]
    instruction_suffix: String,
}

impl Where {
    fn store(&self) -> Outcome<StoreOptions> {
        let sse = self.sse.resolve().map_err(|e| Failure::new(Exit::Usage, e))?;
        self.address.resolve(&format!("s3://{}", self.object.bucket), sse, false)
    }

    fn ask(&self) -> EnvelopeAsk {
        EnvelopeAsk { in_file: self.instruction_file, suffix: self.instruction_suffix.clone() }
    }
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs s3ec cat s3://my-bucket/report.pdf --kms-key alias/reports > report.pdf
  sealfs s3ec cat s3://my-bucket/a --kms-key alias/a --encryption-context team=blue
  sealfs s3ec cat s3://my-bucket/old --aes-key-file wrap.key --legacy

All of the object is authenticated before a byte is written; until then its ciphertext is kept, above
8 MiB in a file without a name in TMPDIR. Contents under AES-CBC (version 1) nothing authenticates: they
need --legacy. An object that has an encryption context needs the same, or --any-encryption-context.")]
struct CatArgs {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    keys: EnvelopeKeyArgs,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs s3ec head s3://my-bucket/report.pdf
  sealfs s3ec head s3://my-bucket/report.pdf --json

Takes no key: it shows what metadata and instruction file say, of which only a key proves anything.")]
struct HeadArgs {
    #[command(flatten)]
    at: Where,
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs s3ec rewrap s3://my-bucket/a --kms-key alias/old --new-kms-key alias/new
  sealfs s3ec rewrap s3://my-bucket/a --aes-key-file old.key --new-rsa-public-key team.pem

The envelope stays where it is. An instruction file is replaced; metadata can only be replaced by a copy
of the object onto itself, which the server makes: with s3:GetObject and s3:PutObject on it, and tags,
headers, storage class and server-side encryption as they were. The data key stays the same, so who had
it can go on reading the contents, as can who has the old key and an old version of the object.")]
struct RewrapArgs {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    keys: EnvelopeKeyArgs,
    #[command(flatten)]
    new: NewEnvelopeKeyArgs,
}

/// Runs `sealfs s3ec`.
pub fn run(args: &S3ecArgs) -> Outcome {
    super::keep_private();
    match &args.command {
        S3ecCommand::Cat(args) => cat(args),
        S3ecCommand::Head(args) => head(args),
        S3ecCommand::Rewrap(args) => rewrap(args),
    }
}

/// Runs what talks to the store, until a signal.
fn attend<T>(store: &StoreOptions, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    signals::run(&store.attended, Duration::ZERO, async { Ok(work.await) })?
}

fn cat(args: &CatArgs) -> Outcome {
    let (store, rules) = (args.at.store()?, args.keys.rules()?);
    let (bar, mut lines) = (
        bar("{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"),
        Lines::new(Instant::now()),
    );
    let done = attend(&store, async {
        let keys = args.keys.keys(&store).await?;
        let object = S3ecObject::find(&store, &args.at.object, &args.at.ask()).await?;
        let unlocked = object.unlock(&keys, &rules).await?;
        let size = object.about().size;
        let fetched = |at| match &bar {
            Some(bar) => {
                bar.set_length(size);
                bar.set_position(at);
                if at == size {
                    bar.finish_and_clear(); // what follows may go to the same terminal
                }
            }
            None if lines.due(Instant::now()) => {
                eprintln!("sealfs: {} of {} fetched", HumanBytes(at), HumanBytes(size));
            }
            None => {}
        };
        Ok(object.read(&unlocked, fetched, |plain| std::io::stdout().write_all(plain)).await?)
    })?;
    out::keep(done.out);
    out::written()?;
    if !done.is_authenticated {
        eprintln!(
            "sealfs: warning: nothing authenticates {}: anybody who could write it may have changed it",
            args.at.object
        );
    }
    Ok(())
}

/// What `head` shows.
#[derive(Serialize)]
struct Shown<'a> {
    object: String,
    format: String,
    content: &'static str,
    authenticated: bool,
    committed: bool,
    wrap: &'static str,
    /// "metadata" or "instruction-file".
    envelope: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction_file: Option<&'a str>,
    /// The user's pairs, without the reserved ones.
    context: Metadata,
    size: u64,
    /// Absent where padding hides it.
    #[serde(skip_serializing_if = "Option::is_none")]
    plain_size: Option<u64>,
    e_tag: &'a str,
    /// Whether it opens only with --legacy.
    legacy: bool,
}

fn shown<'a>(name: &ObjectName, object: &'a S3ecObject) -> Shown<'a> {
    let (envelope, about) = (object.envelope(), object.about());
    Shown {
        object: name.to_string(),
        format: envelope.format().to_string(),
        content: envelope.content().name(),
        authenticated: envelope.content().is_authenticated(),
        committed: envelope.format() == Format::V3,
        wrap: envelope.wrap().name(),
        envelope: match envelope.place() {
            EnvelopePlace::Metadata => "metadata",
            EnvelopePlace::InstructionFile => "instruction-file",
        },
        instruction_file: object.instruction_key(),
        context: envelope.users_context(),
        size: about.size,
        plain_size: envelope.plain_len(about.size),
        e_tag: &about.e_tag,
        legacy: !envelope.content().is_authenticated(),
    }
}

fn head(args: &HeadArgs) -> Outcome {
    let store = args.at.store()?;
    let name = &args.at.object;
    let object =
        attend(&store, async { Ok(S3ecObject::find(&store, name, &args.at.ask()).await?) })?;
    let shown = shown(name, &object);
    if args.json {
        out::print_json(&shown)?;
        return out::written();
    }
    let content = match object.envelope().content() {
        Content::CommittingGcm => "ALG_AES_256_GCM_HKDF_SHA512_COMMIT_KEY (115)",
        other => other.name(),
    };
    println!("object     {}", shown.object);
    println!("format     {}", shown.format);
    println!("contents   {content}{}", if shown.legacy { ", not authenticated" } else { "" });
    println!("data key   wrapped by {}", shown.wrap);
    match shown.instruction_file {
        Some(key) => println!("envelope   in {}", one_line(key)),
        None => println!("envelope   in its metadata"),
    }
    for (name, value) in &shown.context {
        println!("context    {}={}", one_line(name), one_line(value));
    }
    match shown.plain_size {
        Some(plain) => println!("size       {plain} bytes, {} in the bucket", shown.size),
        None => println!("size       {} bytes in the bucket, padding included", shown.size),
    }
    out::written()
}

fn rewrap(args: &RewrapArgs) -> Outcome {
    let (store, rules, name) = (args.at.store()?, args.keys.rules()?, &args.at.object);
    let given = pairs(&args.new.new_encryption_context)?;
    attend(&store, async {
        let (new, with) = args.new.keys(&args.keys.kms_at, &store).await?;
        let keys = args.keys.keys(&store).await?;
        let object = S3ecObject::find(&store, name, &args.at.ask()).await?;
        let unlocked = object.unlock(&keys, &rules).await?;
        let context = match (args.new.no_encryption_context, given.is_empty()) {
            (true, _) => Metadata::new(),
            (false, true) => object.envelope().users_context(),
            (false, false) => given,
        };
        let envelope = unlocked.rewrap(&new, with, &context).await;
        let envelope = envelope.map_err(|e| crate::stack::StackError::from((name, e)))?;
        object.rewrapped(&envelope).await?;
        let place = object.instruction_key().map_or("its metadata".into(), one_line);
        eprintln!(
            "sealfs: the data key of {name} is wrapped by {} now, in {place}",
            envelope.wrap()
        );
        Ok(())
    })
    .map_err(|e| e.if_stopped(format!("see by what it is wrapped now: sealfs s3ec head {name}")))
}
