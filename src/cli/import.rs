//! `sealfs import`: files of a directory, or the objects of a bucket, into a volume.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use super::exchange::{BucketAsk, RunArgs, Show, below, drive, failure, open_many_files, report};
use super::exchange_keys::OpenArgs;
use super::exit::{Exit, Failure, Outcome};
use super::sse_flags::SseReadFlags;
use super::volume_side::{VolumeArgs, VolumeSide, refuse_outside};
use crate::exchange::{ExchangeError, Run, Tree, import_bucket, import_directory};
use crate::store::s3::SseMode;

/// Flags of `sealfs import`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
What is there already is left alone: files remember the ETag of their object (in the attribute
user.sealfs.origin), files of a directory are compared by size and time. So the same command goes on
after an interruption, and brings what is new. A file gets its name when it is whole.

Examples:
  sealfs import ~/pictures ~/vault pictures
  sealfs import s3://old-bucket/photos ~/vault photos --dry-run
  sealfs import s3://old-bucket s3://my-bucket/data --key-file volume.key --source-profile old
  sealfs import s3://old-bucket ~/vault --exclude '*.tmp' --include '/2026/**'
  sealfs import s3://sealed-by-amazons-client ~/vault --kms-key alias/reports --any-encryption-context")]
pub struct ImportArgs {
    /// s3://BUCKET[/PREFIX], or a directory of this machine
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The volume: its store, which is mounted for the time of the command, or a directory of a
    /// live mount
    #[arg(value_name = "STORE|DIR")]
    volume: String,
    /// Where in it; made if it is not there [default: at its top]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    /// Refuse keys that cannot be paths, instead of giving them names that say so
    #[arg(long)]
    strict: bool,
    /// Keep metadata and tags of objects as attributes user.s3.*
    #[arg(long)]
    metadata: bool,
    #[command(flatten)]
    from: SourceArgs,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    at: VolumeArgs,
}

const SOURCE: &str = "Source";

/// How the bucket of the source is reached.
#[derive(Args, Clone, Debug)]
struct SourceArgs {
    /// S3 server of the source [default: from the AWS configuration]
    #[arg(long, help_heading = SOURCE, value_name = "URL", alias = "source-endpoint")]
    source_endpoint_url: Option<String>,
    /// AWS region of the source
    #[arg(long, help_heading = SOURCE, value_name = "NAME")]
    source_region: Option<String>,
    /// Profile of the AWS configuration files for the source
    #[arg(long, help_heading = SOURCE, value_name = "NAME")]
    source_profile: Option<String>,
    /// Allow plain http to the source
    #[arg(long, help_heading = SOURCE)]
    source_allow_http: bool,
    /// File with a 32-byte customer key (SSE-C) of the source; may be repeated
    #[arg(long, help_heading = SOURCE, value_name = "FILE")]
    source_sse_c_key_file: Vec<PathBuf>,
}

impl SourceArgs {
    fn is_given(&self) -> bool {
        self.source_endpoint_url.is_some()
            || self.source_region.is_some()
            || self.source_profile.is_some()
            || self.source_allow_http
            || !self.source_sse_c_key_file.is_empty()
    }

    fn ask<'a>(&'a self, url: &'a str) -> Outcome<BucketAsk<'a>> {
        let keys = SseReadFlags {
            sse_c_key_file: self.source_sse_c_key_file.clone(),
            sse_c_read_key_file: Vec::new(),
        };
        let keys = keys.resolve().map_err(|e| Failure::new(Exit::Usage, e))?;
        Ok(BucketAsk {
            flag: "--source-endpoint-url",
            url,
            endpoint: self.source_endpoint_url.as_deref(),
            region: self.source_region.as_deref(),
            profile: self.source_profile.as_deref(),
            allow_http: self.source_allow_http,
            sse: SseMode::Default,
            read_keys: keys.keys(),
            tags: Default::default(),
            limits: Arc::default(),
        })
    }
}

/// Runs `sealfs import`.
pub fn run(args: ImportArgs) -> Outcome {
    let begun = Instant::now();
    super::forbid_dumps(); // customer keys
    open_many_files();
    let options = args.run.options(args.strict, args.metadata)?;
    let path = below(args.path.as_deref().unwrap_or(Path::new("")))?;
    let is_bucket = args.source.starts_with("s3://");
    if is_bucket {
        let parsed: Result<crate::exchange::BucketPath, String> = args.source.parse();
        parsed.map_err(|e| Failure::new(Exit::Usage, e))?;
    } else if args.from.is_given() || args.open.is_given() || args.metadata {
        let what = format!("{} is a directory: flags of a bucket make no sense", args.source);
        return Err(Failure::new(Exit::Usage, what));
    } else if !Path::new(&args.source).is_dir() {
        let what = format!("{} is not a directory", args.source);
        return Err(Failure::new(Exit::Usage, what).hint("a directory, or s3://BUCKET[/PREFIX]"));
    }
    let ask = is_bucket.then(|| args.from.ask(&args.source)).transpose()?;
    let volume = VolumeSide::open(&args.volume, &args.at, args.run.dry_run)?;
    let show = Show::new(&args.run);
    let teller = show.clone();
    let run = Run::new("import", options, move |event| teller.say(&event));
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(async {
        let to = target(&volume.dir.join(path), args.run.dry_run)?;
        let tree = to.tree.clone();
        let going = run.clone();
        match ask {
            Some(ask) => {
                let open = args.open.open_with(ask.region, ask.profile).await?;
                let bucket = ask.connect().await?;
                let work = async move { import_bucket(bucket, tree, going, open).await };
                drive(&run, &show, work).await
            }
            None => {
                let source = Path::new(&args.source);
                let from = Arc::new(Tree::open(source).map_err(|e| local(source, e))?);
                drive(&run, &show, async move { import_directory(from, tree, going).await }).await
            }
        }
    });
    runtime.shutdown_background();
    let closed = volume.close();
    report(&args.run, &run.report(), begun, outcome.and(closed))
}

/// The tree that is written to.
struct Target {
    tree: Arc<Tree>,
    /// Stands for a directory that a dry run does not make.
    _none: Option<tempfile::TempDir>,
}

fn target(dir: &Path, dry_run: bool) -> Outcome<Target> {
    let none = match dry_run && !dir.exists() {
        true => Some(tempfile::tempdir().map_err(|e| local(dir, e))?),
        false => None,
    };
    refuse_outside(dir)?;
    if !dry_run {
        std::fs::create_dir_all(dir).map_err(|e| local(dir, e))?;
    }
    let at = none.as_ref().map_or(dir, |none| none.path());
    let tree = Arc::new(Tree::open(at).map_err(|e| local(dir, e))?);
    if !dry_run {
        tree.forget_losses();
    }
    Ok(Target { tree, _none: none })
}

fn local(path: &Path, source: std::io::Error) -> Failure {
    failure(ExchangeError::Local { what: path.display().to_string(), source })
}
