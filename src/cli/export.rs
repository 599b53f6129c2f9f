//! `sealfs export`: files of a volume as objects of a bucket that other tools read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use super::exchange::{BucketAsk, RunArgs, Show, below, drive, open_many_files, report};
use super::exchange_keys::SealArgs;
use super::exit::{Exit, Failure, Outcome};
use super::sse_flags::SseDetailFlags;
use super::volume_side::{VolumeArgs, VolumeSide};
use crate::exchange::{BucketPath, How, Remember, Run, Tree, export_tree};
use crate::store::s3::SseKind;

/// Flags of `sealfs export`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Time, permissions and owner go along as metadata (mtime, mode, uid, gid) that rclone and s3fs read. What an
object cannot hold (symlinks, devices, holes, hard links, empty directories, extended attributes) is counted
and said. The same command goes on after an interruption, and sends what has changed since.

Examples:
  sealfs export ~/vault:photos s3://partner/in --plain
  sealfs export ~/vault:photos s3://partner/in --kms-key alias/partner
  sealfs export s3://my-bucket/data s3://archive/2026 --plain --key-file volume.key --target-profile archive
  sealfs export ~/vault s3://partner/in --plain --target-sse aws:kms --target-storage-class STANDARD_IA")]
pub struct ExportArgs {
    /// The volume: its store, which is mounted for the time of the command, or a directory of a
    /// live mount; with :PATH, that below it
    #[arg(value_name = "STORE|DIR[:PATH]")]
    volume: String,
    /// s3://BUCKET[/PREFIX]
    #[arg(value_name = "TARGET")]
    target: String,
    #[command(flatten)]
    run: RunArgs,
    /// As clear objects: whoever reads the bucket reads the files
    #[arg(long)]
    plain: bool,
    /// Give objects the metadata and tags that attributes user.s3.* name
    #[arg(long)]
    metadata: bool,
    #[command(flatten)]
    to: TargetArgs,
    #[command(flatten)]
    seal: SealArgs,
    #[command(flatten)]
    at: VolumeArgs,
}

const TARGET: &str = "Target";

/// How the bucket of the target is reached, and how objects are put there.
#[derive(Args, Clone, Debug)]
struct TargetArgs {
    /// S3 server of the target [default: from the AWS configuration]
    #[arg(long, help_heading = TARGET, value_name = "URL", alias = "target-endpoint")]
    target_endpoint_url: Option<String>,
    /// AWS region of the target
    #[arg(long, help_heading = TARGET, value_name = "NAME")]
    target_region: Option<String>,
    /// Profile of the AWS configuration files for the target
    #[arg(long, help_heading = TARGET, value_name = "NAME")]
    target_profile: Option<String>,
    /// Allow plain http to the target
    #[arg(long, help_heading = TARGET)]
    target_allow_http: bool,
    /// Server-side encryption of every object
    #[arg(long, help_heading = TARGET, value_name = "MODE", value_enum)]
    target_sse: Option<SseKind>,
    /// KMS key of --target-sse aws:kms or aws:kms:dsse
    #[arg(long, help_heading = TARGET, value_name = "KEY")]
    target_sse_kms_key_id: Option<String>,
    /// KMS encryption context pair; may be repeated
    #[arg(long, help_heading = TARGET, value_name = "K=V")]
    target_sse_kms_context: Vec<String>,
    /// Use an S3 bucket key with --target-sse aws:kms
    #[arg(long, help_heading = TARGET, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    target_sse_bucket_key: Option<bool>,
    /// File with the 32-byte customer key of --target-sse customer
    #[arg(long, help_heading = TARGET, value_name = "FILE")]
    target_sse_c_key_file: Vec<PathBuf>,
    /// Tag of every object; may be repeated
    #[arg(long, help_heading = TARGET, value_name = "K=V")]
    target_tag: Vec<String>,
    /// Storage class of every object, such as STANDARD_IA
    #[arg(long, help_heading = TARGET, value_name = "CLASS")]
    target_storage_class: Option<String>,
}

impl TargetArgs {
    fn ask<'a>(&'a self, url: &'a str) -> Outcome<BucketAsk<'a>> {
        let flags = SseDetailFlags {
            sse_kms_key_id: self.target_sse_kms_key_id.clone(),
            sse_kms_context: self.target_sse_kms_context.clone(),
            sse_bucket_key: self.target_sse_bucket_key,
            sse_c_key_file: self.target_sse_c_key_file.clone(),
            sse_c_read_key_file: Vec::new(),
            object_tag: self.target_tag.clone(),
        };
        let asked = flags.resolve(self.target_sse).map_err(|e| {
            let told = Failure::new(Exit::Usage, e);
            let renamed = |text: &str| {
                text.replace("--object-tag", "--target-tag").replace("--sse", "--target-sse")
            };
            let hint = told.hint.as_deref().map(renamed);
            Failure { message: renamed(&told.message), hint, ..told }
        })?;
        Ok(BucketAsk {
            flag: "--target-endpoint-url",
            url,
            endpoint: self.target_endpoint_url.as_deref(),
            region: self.target_region.as_deref(),
            profile: self.target_profile.as_deref(),
            allow_http: self.target_allow_http,
            read_keys: asked.keys(),
            sse: asked.mode.unwrap_or_default(),
            tags: asked.tags.unwrap_or_default(),
            limits: Arc::default(),
        })
    }
}

/// Runs `sealfs export`.
pub fn run(args: ExportArgs) -> Outcome {
    let begun = Instant::now();
    super::forbid_dumps(); // customer keys
    open_many_files();
    let parsed: Result<BucketPath, String> = args.target.parse();
    parsed.map_err(|e| Failure::new(Exit::Usage, e))?;
    args.seal.check(args.plain)?;
    let options = args.run.options(false, args.metadata)?;
    let ask = args.to.ask(&args.target)?;
    let (name, path) = apart(&args.volume);
    let path = below(Path::new(path))?;
    let volume = VolumeSide::open(name, &args.at, true)?;
    let show = Show::new(&args.run);
    let teller = show.clone();
    let run = Run::new("export", options, move |event| teller.say(&event));
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(async {
        let dir = volume.dir.join(path);
        let tree = Tree::open(&dir).map_err(|e| {
            Failure::new(Exit::Usage, format!("{}: {e}", dir.display()))
                .hint("a directory of the volume: STORE|DIR[:PATH]")
        })?;
        let seal = match args.seal.is_asked() {
            true => Some(args.seal.seal_with(ask.region, ask.profile).await?),
            false => None,
        };
        let remember = Remember {
            dir: args.at.state_dir()?.join("exports"),
            server: ask.endpoint.unwrap_or_default().to_owned(),
            mode: format!("{:?} {:?}", ask.sse, ask.tags),
        };
        let bucket = ask.connect().await?;
        let storage_class = args.to.target_storage_class.clone();
        let how = How { storage_class, seal, remember: Some(remember) };
        let going = run.clone();
        let work = async move { export_tree(Arc::new(tree), bucket, going, how).await };
        drive(&run, &show, work).await
    });
    runtime.shutdown_background();
    let closed = volume.close();
    report(&args.run, &run.report(), begun, outcome.and(closed))
}

/// STORE or DIR, and PATH behind a colon. The name of a directory may have one itself.
fn apart(text: &str) -> (&str, &str) {
    let scheme = ["s3://", "file://"].into_iter().find(|scheme| text.starts_with(scheme));
    match scheme {
        Some(scheme) => match text[scheme.len()..].find(':') {
            Some(at) => (&text[..scheme.len() + at], &text[scheme.len() + at + 1..]),
            None => (text, ""),
        },
        None if Path::new(text).exists() => (text, ""),
        None => text.rsplit_once(':').unwrap_or((text, "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_behind_the_volume_is_told_from_its_name() {
        // Guards against the colon of s3:// taken for that before PATH.
        assert_eq!(apart("s3://bucket/data:photos/2026"), ("s3://bucket/data", "photos/2026"));
        assert_eq!(apart("s3://bucket/data"), ("s3://bucket/data", ""));
        assert_eq!(apart("/no/such/dir:a:b"), ("/no/such/dir:a", "b"));
        assert_eq!(apart("/tmp"), ("/tmp", ""));
    }
}
