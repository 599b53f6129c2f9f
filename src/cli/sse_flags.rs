//! The `--sse…` flags: which combinations make sense, and the customer key file.
//!
//! Flattened into `init`, `mount` and others. Never talks to the store.

use crate::store::s3::{SecretKey32, SseAsk, SseKind, SseMode};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::builder::PossibleValue;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zeroize::{Zeroize, Zeroizing};

/// Largest customer key file that is looked at, in bytes: 64 hex digits and a line end fit often.
const KEY_FILE_BYTES_MAX: u64 = 1024;
/// Tags of one object (S3 User Guide).
const TAGS_MAX: usize = 10;

/// The values of `--sse`.
impl clap::ValueEnum for SseKind {
    fn value_variants<'a>() -> &'a [SseKind] {
        &SseKind::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            SseKind::Default => "Send nothing; the bucket's default encryption applies",
            SseKind::S3 => "SSE-S3",
            SseKind::Kms => "SSE-KMS",
            SseKind::Dsse => "DSSE-KMS",
            SseKind::Customer => "SSE-C with the key of `--sse-c-key-file`",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// The server-side encryption flags as typed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SseFlags {
    /// Server-side encryption to ask for on every object (on top of sealing)
    ///
    /// `init` remembers it in the volume, and later mounts need not name it. Given to `mount`, it
    /// holds for that mount only.
    #[arg(long, value_name = "MODE", value_enum, help_heading = "Server-side encryption")]
    pub sse: Option<SseKind>,
    #[command(flatten)]
    detail: SseDetailFlags,
}

impl SseFlags {
    /// The key files that are named.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let detail = &self.detail;
        detail.sse_c_key_file.iter().chain(&detail.sse_c_read_key_file).map(PathBuf::as_path)
    }
}

/// The flags beside the mode itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SseDetailFlags {
    /// KMS key: id, key ARN, alias/NAME or alias ARN
    #[arg(long, value_name = "KEY", help_heading = "Server-side encryption")]
    pub sse_kms_key_id: Option<String>,
    /// KMS encryption context pair; may be repeated
    #[arg(long, value_name = "K=V", help_heading = "Server-side encryption")]
    pub sse_kms_context: Vec<String>,
    /// Use (or, with =false, do not use) an S3 bucket key with --sse aws:kms
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Server-side encryption"
    )]
    pub sse_bucket_key: Option<bool>,
    /// File with the 32-byte customer key: raw, 64 hex digits, or base64. Repeated: the first
    /// writes, the others read what older keys have encrypted
    #[arg(long, value_name = "FILE", help_heading = "Server-side encryption")]
    pub sse_c_key_file: Vec<PathBuf>,
    /// A further customer key to read with, in any mode; may be repeated
    #[arg(long, value_name = "FILE", help_heading = "Server-side encryption")]
    pub sse_c_read_key_file: Vec<PathBuf>,
    /// Tag for every object that is written; may be repeated
    #[arg(long, value_name = "K=V", help_heading = "Server-side encryption")]
    pub object_tag: Vec<String>,
}

/// The flags of a command that only reads: the customer keys.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SseReadFlags {
    /// File with a 32-byte customer key (SSE-C) to read with; may be repeated
    #[arg(long, value_name = "FILE", help_heading = "Server-side encryption")]
    pub sse_c_key_file: Vec<PathBuf>,
    /// The same
    #[arg(long, value_name = "FILE", help_heading = "Server-side encryption")]
    pub sse_c_read_key_file: Vec<PathBuf>,
}

impl SseReadFlags {
    /// What these flags ask for; reads the key files. Errors: as [`SseFlags::resolve`].
    pub fn resolve(&self) -> Result<SseAsk, SseFlagError> {
        let files = self.sse_c_key_file.iter().chain(&self.sse_c_read_key_file);
        let read_keys = files.map(|file| read_key_file(file)).collect::<Result<_, _>>()?;
        Ok(SseAsk { read_keys, ..SseAsk::default() })
    }
}

/// The mode of a volume that does not exist yet. Errors: a key file without `--sse customer`.
pub(super) fn for_new_volume(ask: &SseAsk) -> Result<SseMode, SseFlagError> {
    match (&ask.mode, &ask.write_key) {
        (Some(mode), _) => Ok(mode.clone()),
        (None, None) => Ok(SseMode::Default),
        (None, Some(_)) => Err(SseFlagError::NotCustomer { mode: "default" }),
    }
}

/// Flags that contradict each other or name something unusable.
#[derive(Debug, thiserror::Error)]
pub enum SseFlagError {
    /// A KMS flag without a KMS mode.
    #[error(
        "{flag} has no meaning with --sse {mode}\nhint: add --sse aws:kms (or aws:kms:dsse), or drop {flag}"
    )]
    NotKms {
        /// The flag.
        flag: &'static str,
        /// The mode given or implied.
        mode: &'static str,
    },
    /// DSSE-KMS has no bucket keys.
    #[error(
        "--sse-bucket-key does not exist for --sse aws:kms:dsse\nhint: drop it, or use --sse aws:kms"
    )]
    DsseBucketKey,
    /// A key file without the mode.
    #[error(
        "--sse-c-key-file has no meaning with --sse {mode}\nhint: add --sse customer; or, to read what a customer key has encrypted, --sse-c-read-key-file"
    )]
    NotCustomer {
        /// The mode given or implied.
        mode: &'static str,
    },
    /// The mode without a key file.
    #[error(
        "--sse customer needs a key\nhint: head -c 32 /dev/urandom > sse.key, then --sse-c-key-file sse.key; keep a copy, nothing can be read without it"
    )]
    NoCustomerKey,
    /// An argument is not `key=value`.
    #[error("{flag} {given:?} is not KEY=VALUE\nhint: {flag} {example}")]
    NoPair {
        /// The flag.
        flag: &'static str,
        /// An argument it takes.
        example: &'static str,
        /// The value as typed.
        given: String,
    },
    /// One key twice.
    #[error("{flag} gives {key:?} twice\nhint: keep one of them")]
    Twice {
        /// The flag.
        flag: &'static str,
        /// The key.
        key: String,
    },
    /// S3 would refuse the tag.
    #[error(
        "--object-tag {key:?} cannot be a tag\nhint: up to 128 characters before '=' and 256 behind it: letters, digits, spaces and + - = . _ : / @; not beginning with aws:"
    )]
    BadTag {
        /// Its key.
        key: String,
    },
    /// More than S3 takes.
    #[error("an object has at most {TAGS_MAX} tags\nhint: drop some --object-tag")]
    TooManyTags,
    /// The key id is empty.
    #[error("--sse-kms-key-id is empty\nhint: drop it to use the account's aws/s3 key")]
    EmptyKeyId,
    /// A KMS key id or context with characters that no request can carry.
    #[error(
        "{flag} {given:?} holds a space, a line end or a control character\nhint: {flag} {example}"
    )]
    Odd {
        /// The flag.
        flag: &'static str,
        /// The value as typed.
        given: String,
        /// An argument it takes.
        example: &'static str,
    },
    /// The key file cannot be read.
    #[error("cannot read the customer key file {}\nhint: check --sse-c-key-file", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key file does not hold 32 bytes in any of the three forms.
    #[error(
        "{} is not a customer key\nhint: it must hold 32 raw bytes, 64 hex digits, or 44 characters of base64",
        path.display()
    )]
    KeyFormat {
        /// The file.
        path: PathBuf,
    },
}

impl SseFlags {
    /// What these flags ask for; reads the customer key files. Errors: [`SseFlagError`], each a
    /// sentence with a hint.
    pub fn resolve(&self) -> Result<SseAsk, SseFlagError> {
        self.detail.resolve(self.sse)
    }

    /// The flags with a file that a mount needs, too: the mode itself the volume remembers.
    pub fn to_mount(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let write = self.detail.sse_c_key_file.iter().map(|f| ("--sse-c-key-file", f.as_path()));
        let read = self.detail.sse_c_read_key_file.iter();
        write.chain(read.map(|f| ("--sse-c-read-key-file", f.as_path())))
    }

    /// Whether any flag was given.
    pub fn is_given(&self) -> bool {
        self.sse.is_some() || self.detail.is_given()
    }
}

impl SseDetailFlags {
    /// What these flags ask for beside a mode; as [`SseFlags::resolve`].
    pub fn resolve(&self, kind: Option<SseKind>) -> Result<SseAsk, SseFlagError> {
        let name = kind.unwrap_or(SseKind::Default).name();
        if !matches!(kind, Some(SseKind::Kms | SseKind::Dsse))
            && let Some(flag) = self.first_kms_flag()
        {
            return Err(SseFlagError::NotKms { flag, mode: name });
        }
        if kind == Some(SseKind::Dsse) && self.sse_bucket_key.is_some() {
            return Err(SseFlagError::DsseBucketKey);
        }
        if !matches!(kind, None | Some(SseKind::Customer)) && !self.sse_c_key_file.is_empty() {
            return Err(SseFlagError::NotCustomer { mode: name });
        }
        if self.sse_kms_key_id.as_deref().is_some_and(|k| k.trim().is_empty()) {
            return Err(SseFlagError::EmptyKeyId);
        }
        let key_id = self.sse_kms_key_id.as_deref().map(|k| k.trim().to_owned());
        if let Some(given) = key_id.clone().filter(|k| !k.bytes().all(|b| b.is_ascii_graphic())) {
            let (flag, example) = ("--sse-kms-key-id", "alias/NAME, or the key's ARN");
            return Err(SseFlagError::Odd { flag, given, example });
        }
        let read = |files: &[PathBuf]| -> Result<Vec<SecretKey32>, SseFlagError> {
            files.iter().map(|file| read_key_file(file)).collect()
        };
        let mut keys = read(&self.sse_c_key_file)?.into_iter();
        let write_key = keys.next();
        let read_keys = keys.chain(read(&self.sse_c_read_key_file)?).collect();
        let mode = match kind {
            None => None,
            Some(SseKind::Default) => Some(SseMode::Default),
            Some(SseKind::S3) => Some(SseMode::S3),
            Some(SseKind::Kms) => {
                let context = self.context()?;
                Some(SseMode::Kms { key_id, context, bucket_key: self.sse_bucket_key })
            }
            Some(SseKind::Dsse) => Some(SseMode::Dsse { key_id, context: self.context()? }),
            Some(SseKind::Customer) => {
                let key = write_key.clone().ok_or(SseFlagError::NoCustomerKey)?;
                Some(SseMode::Customer { key })
            }
        };
        Ok(SseAsk { mode, write_key, read_keys, tags: self.tags()? })
    }

    fn is_given(&self) -> bool {
        self.first_kms_flag().is_some()
            || !self.sse_c_key_file.is_empty()
            || !self.sse_c_read_key_file.is_empty()
            || !self.object_tag.is_empty()
    }

    fn first_kms_flag(&self) -> Option<&'static str> {
        if self.sse_kms_key_id.is_some() {
            Some("--sse-kms-key-id")
        } else if !self.sse_kms_context.is_empty() {
            Some("--sse-kms-context")
        } else if self.sse_bucket_key.is_some() {
            Some("--sse-bucket-key")
        } else {
            None
        }
    }

    fn context(&self) -> Result<BTreeMap<String, String>, SseFlagError> {
        let (flag, example) = ("--sse-kms-context", "project=archive");
        match self.sse_kms_context.iter().find(|pair| pair.chars().any(char::is_control)) {
            Some(given) => Err(SseFlagError::Odd { flag, given: given.clone(), example }),
            None => pairs(flag, example, &self.sse_kms_context),
        }
    }

    fn tags(&self) -> Result<Option<BTreeMap<String, String>>, SseFlagError> {
        if self.object_tag.is_empty() {
            return Ok(None);
        }
        let tags = pairs("--object-tag", "project=archive", &self.object_tag)?;
        match tags.iter().find(|(key, value)| !is_tag(key, value)) {
            None if tags.len() <= TAGS_MAX => Ok(Some(tags)),
            None => Err(SseFlagError::TooManyTags),
            Some((key, _)) => Err(SseFlagError::BadTag { key: key.clone() }),
        }
    }
}

/// What S3 takes as a tag (S3 User Guide, "Categorizing your objects using tags").
fn is_tag(key: &str, value: &str) -> bool {
    let usual = |c: char| c.is_alphanumeric() || " +-=._:/@".contains(c);
    key.chars().count() <= 128
        && value.chars().count() <= 256
        && !key.starts_with("aws:")
        && key.chars().chain(value.chars()).all(usual)
}

/// `KEY=VALUE` arguments of `flag`, each key once.
fn pairs(
    flag: &'static str,
    example: &'static str,
    given: &[String],
) -> Result<BTreeMap<String, String>, SseFlagError> {
    let mut pairs = BTreeMap::new();
    for pair in given {
        let (key, value) = pair
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| SseFlagError::NoPair { flag, example, given: pair.clone() })?;
        if pairs.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(SseFlagError::Twice { flag, key: key.to_owned() });
        }
    }
    Ok(pairs)
}

fn read_key_file(path: &Path) -> Result<SecretKey32, SseFlagError> {
    let unreadable = |source| SseFlagError::KeyFile { path: path.to_owned(), source };
    let bytes = {
        use std::io::Read;
        let file = std::fs::File::open(path).map_err(unreadable)?;
        // Reserved in full, so that growing leaves no copy of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize + 1));
        file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
        bytes
    };
    let key = parse_key(&bytes).ok_or_else(|| SseFlagError::KeyFormat { path: path.to_owned() })?;
    Ok(SecretKey32::new(key))
}

/// 32 raw bytes, else (white space around it ignored) 64 hex digits or 44 base64 characters.
fn parse_key(bytes: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    if let Ok(raw) = <[u8; 32]>::try_from(bytes) {
        return Some(Zeroizing::new(raw));
    }
    let text = bytes.trim_ascii();
    let mut key = Zeroizing::new([0u8; 32]);
    match text.len() {
        64 => {
            for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
                let high = (digits[0] as char).to_digit(16)?;
                let low = (digits[1] as char).to_digit(16)?;
                *byte = (high * 16 + low) as u8;
            }
            Some(key)
        }
        44 => {
            let mut decoded = STANDARD.decode(text).ok()?;
            let fits = decoded.len() == 32;
            if fits {
                key.copy_from_slice(&decoded);
            }
            decoded.zeroize();
            fits.then_some(key)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        sse: SseFlags,
    }

    fn ask(args: &[&str]) -> Result<SseAsk, SseFlagError> {
        let args = ["test"].iter().chain(args);
        Cli::try_parse_from(args).expect("the flags themselves are well formed").sse.resolve()
    }

    fn parse(args: &[&str]) -> Result<SseMode, SseFlagError> {
        for_new_volume(&ask(args)?)
    }

    #[test]
    fn the_first_customer_key_writes_and_the_others_read() {
        // Guards against a rotated key writing on, and against old objects without a key.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |byte: u8| {
            let path = dir.path().join(byte.to_string());
            std::fs::write(&path, [byte; 32]).expect("writes");
            path.display().to_string()
        };
        let (one, two, three) = (file(1), file(2), file(3));
        let asked = ask(&[
            "--sse=customer",
            "--sse-c-key-file",
            &two,
            "--sse-c-key-file",
            &one,
            "--sse-c-read-key-file",
            &three,
        ])
        .expect("agree");
        let key = |byte| SecretKey32::new(Zeroizing::new([byte; 32]));
        assert_eq!(asked.mode.and_then(|m| m.customer_key().cloned()), Some(key(2)));
        assert_eq!(asked.read_keys, [key(1), key(3)]);
        let reads = ask(&["--sse=AES256", "--sse-c-read-key-file", &one]).expect("agree");
        assert_eq!(reads.read_keys, [key(1)]);
        assert!(matches!(reads.mode, Some(SseMode::S3)));
        let open = ask(&["--sse-c-key-file", &one]).expect("the volume says");
        assert!(open.mode.is_none() && open.write_key == Some(key(1)));
    }

    #[test]
    fn tags_that_s3_would_refuse_are_refused_here() {
        // Guards against a volume whose every upload fails for a tag.
        let tags = ask(&["--object-tag=a=b c", "--object-tag=d="]).expect("good").tags;
        assert_eq!(tags.expect("given").len(), 2);
        let eleven: Vec<_> = (0..11).map(|n| format!("--object-tag=t{n}=v")).collect();
        let eleven: Vec<_> = eleven.iter().map(String::as_str).collect();
        let long = format!("--object-tag={}=v", "k".repeat(129));
        for bad in [&["--object-tag=a"][..], &["--object-tag=aws:a=b"], &["--object-tag=a=b;c"]]
            .into_iter()
            .chain([&[&long[..]][..], &eleven])
        {
            assert!(ask(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flags_that_agree_give_their_mode() {
        // Guards against a mode being lost between the command line and the requests.
        assert!(matches!(parse(&[]).unwrap(), SseMode::Default));
        assert!(matches!(parse(&["--sse", "default"]).unwrap(), SseMode::Default));
        assert!(matches!(parse(&["--sse", "AES256"]).unwrap(), SseMode::S3));
        let kms = parse(&[
            "--sse=aws:kms",
            "--sse-kms-key-id=alias/a",
            "--sse-kms-context=k=v=w",
            "--sse-kms-context=e=",
            "--sse-bucket-key",
        ]);
        let SseMode::Kms { key_id, context, bucket_key } = kms.unwrap() else { panic!("not kms") };
        assert_eq!(key_id.as_deref(), Some("alias/a"));
        assert_eq!(context["k"], "v=w");
        assert_eq!(context["e"], "");
        assert_eq!(bucket_key, Some(true));
        let off = parse(&["--sse=aws:kms", "--sse-bucket-key=false"]).unwrap();
        assert!(matches!(off, SseMode::Kms { bucket_key: Some(false), .. }));
        assert!(matches!(parse(&["--sse=aws:kms:dsse"]).unwrap(), SseMode::Dsse { .. }));
    }

    #[test]
    fn contradictory_flags_are_refused_with_a_hint() {
        // Guards against a flag being ignored in silence, which would leave objects in another
        // mode than the one the person believes in.
        let refused: &[&[&str]] = &[
            &["--sse-kms-key-id=k"],
            &["--sse=AES256", "--sse-kms-key-id=k"],
            &["--sse=AES256", "--sse-kms-context=a=b"],
            &["--sse=default", "--sse-bucket-key"],
            &["--sse=customer", "--sse-kms-key-id=k", "--sse-c-key-file=/dev/null"],
            &["--sse=aws:kms:dsse", "--sse-bucket-key"],
            &["--sse=aws:kms", "--sse-c-key-file=/dev/null"],
            &["--sse-c-key-file=/dev/null"],
            &["--sse=customer"],
            &["--sse=customer", "--sse-c-key-file=/dev/null"],
            &["--sse=customer", "--sse-c-key-file=/nonexistent/key"],
            &["--sse=aws:kms", "--sse-kms-context=a"],
            &["--sse=aws:kms", "--sse-kms-context==b"],
            &["--sse=aws:kms", "--sse-kms-context=a=b", "--sse-kms-context=a=c"],
            &["--sse=aws:kms", "--sse-kms-key-id="],
            &["--sse=aws:kms", "--sse-kms-key-id=alias/a\nb"],
            &["--sse=aws:kms", "--sse-kms-key-id=alias/ä"],
            &["--sse=aws:kms", "--sse-kms-context=a\n=b"],
            &["--sse=aws:kms", "--sse-kms-context=a=b\u{0}"],
        ];
        for args in refused {
            let error = parse(args).expect_err(&format!("{args:?} must be refused")).to_string();
            assert!(error.contains("\nhint: "), "{args:?}: {error}");
        }
    }

    #[test]
    fn the_three_forms_of_a_key_file_give_the_same_key() {
        // Guards against a base64 or hex key being taken as text, which would make objects
        // unreadable for every other tool that holds the key.
        let raw: [u8; 32] = std::array::from_fn(|i| i as u8 + 1);
        let hex: String = raw.iter().map(|b| format!("{b:02X}")).collect();
        let forms: [Vec<u8>; 3] = [
            raw.to_vec(),
            format!("{hex}\n").into(),
            format!(" {}\n", STANDARD.encode(raw)).into(),
        ];
        for form in &forms {
            assert_eq!(*parse_key(form).expect("a key"), raw);
        }
        for bad in [&raw[..31], b"", &[b'z'; 64], &[b'!'; 44], &[b'A'; 44]] {
            assert!(parse_key(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn debug_of_the_mode_does_not_print_the_customer_key() {
        // Guards against the key reaching a log through a derived Debug.
        let mode = SseMode::Customer { key: SecretKey32::new(Zeroizing::new([7; 32])) };
        let text = format!("{mode:?} {mode}");
        assert!(!text.contains(&STANDARD.encode([7; 32])), "{text}");
    }
}
