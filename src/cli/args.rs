//! Flags that several commands share, and how they are read: sizes, times, the store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::base::VolumeId;
use crate::stack::{Attended, StoreOptions};
use crate::store::s3::{InputError, SseAsk, input};
use crate::store::{LIMIT_MIN, Location};

use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::sse_flags::SseFlags;

/// How the store is reached, and the server-side encryption to ask for.
#[derive(Args, Clone, Debug)]
pub struct StoreArgs {
    #[command(flatten)]
    address: StoreAddress,
    #[command(flatten)]
    sse: SseFlags,
}

/// How the store is reached.
#[derive(Args, Clone, Debug)]
pub struct StoreAddress {
    /// S3 server other than AWS, such as https://minio.example:9000
    #[arg(long, help_heading = "Store", value_name = "URL", env = "AWS_ENDPOINT_URL_S3")]
    pub endpoint_url: Option<String>,
    /// AWS region [default: from the AWS configuration]
    #[arg(long, help_heading = "Store", value_name = "NAME")]
    pub region: Option<String>,
    /// Profile of the AWS configuration files
    #[arg(long, help_heading = "Store", value_name = "NAME")]
    pub profile: Option<String>,
    /// Refuse any other volume than this one, by its id as `sealfs status` shows it
    #[arg(long, help_heading = "Store", value_name = "ID", value_parser = volume_id)]
    pub volume_id: Option<VolumeId>,
    /// Allow plain http to another machine (the contents are sealed, the requests are not)
    #[arg(long, help_heading = "Store")]
    pub allow_http: bool,
}

/// What of the command line names a file, so that it holds in another directory as well.
pub fn file_flag(words: &mut Vec<String>, flag: &str, file: &Path) {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    words.extend([flag.to_owned(), file.display().to_string()]);
}

impl StoreArgs {
    /// The volume that is asked for.
    pub fn volume_id(&self) -> Option<VolumeId> {
        self.address.volume_id
    }

    /// The key files that are named.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.sse.files()
    }

    /// The flags that a mount of the same volume needs.
    pub fn to_mount(&self, words: &mut Vec<String>) {
        self.address.to_mount(words);
        self.sse.to_mount().for_each(|(flag, file)| file_flag(words, flag, file));
    }

    /// Checks the flags against each other and against the store.
    pub fn resolve(&self, store: &str) -> Outcome<StoreOptions> {
        let sse = self.sse.resolve().map_err(|e| Failure::new(Exit::Usage, e))?;
        self.address.resolve(store, sse, self.sse.is_given())
    }
}

impl StoreAddress {
    /// The flags that a mount of the same store needs.
    pub fn to_mount(&self, words: &mut Vec<String>) {
        let valued = [
            ("--endpoint-url", &self.endpoint_url),
            ("--region", &self.region),
            ("--profile", &self.profile),
        ];
        for (flag, value) in valued {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                words.extend([flag.to_owned(), value.clone()]);
            }
        }
        if let Some(volume) = self.volume_id {
            words.extend(["--volume-id".to_owned(), volume.to_string()]);
        }
        words.extend(self.allow_http.then(|| "--allow-http".to_owned()));
    }

    /// The store with what is asked of its encryption; `asked`: by flags, which only S3 has.
    pub fn resolve(&self, store: &str, sse: SseAsk, asked: bool) -> Outcome<StoreOptions> {
        let location: Location = store.parse().map_err(|e| Failure::new(Exit::Usage, e))?;
        let is_s3 = matches!(location, Location::S3 { .. });
        if !is_s3 && (self.region.is_some() || self.profile.is_some() || asked) {
            return Err(Failure::new(Exit::Usage, format!("S3 flags make no sense for {store}")));
        }
        if is_s3 {
            self.check().map_err(|e| Failure::new(Exit::Usage, e))?;
        }
        Ok(StoreOptions {
            attended: Attended::default(),
            location,
            endpoint_url: self.endpoint_url.clone().filter(|u| is_s3 && !u.is_empty()),
            server: if is_s3 { self.server() } else { String::new() },
            region: self.region.clone(),
            profile: self.profile.clone(),
            allow_http: self.allow_http,
            sse,
            limits: Default::default(),
            volume: self.volume_id,
            state_dir: dirs::state_dir().ok(),
            custom: None,
        })
    }
}

impl StoreAddress {
    /// See [`StoreOptions::server`].
    fn server(&self) -> String {
        let set = |given: &Option<String>, name| {
            let value = given.clone().filter(|value| !value.is_empty());
            value.or_else(|| std::env::var(name).ok()).filter(|value| !value.is_empty())
        };
        let endpoint = set(&self.endpoint_url, "AWS_ENDPOINT_URL");
        let endpoint = endpoint.map(|url| url.trim_end_matches('/').to_ascii_lowercase());
        let profile = set(&self.profile, "AWS_PROFILE").map(|name| format!("as {name}"));
        endpoint.into_iter().chain(profile).collect::<Vec<_>>().join(" ")
    }

    /// Whether what the flags give can be what they are for.
    fn check(&self) -> Result<(), InputError> {
        if let Some(url) = self.endpoint_url.as_deref().filter(|url| !url.is_empty()) {
            input::endpoint("--endpoint-url (or AWS_ENDPOINT_URL_S3)", url)?;
        }
        self.region.as_deref().map_or(Ok(()), input::region)?;
        self.profile.as_deref().map_or(Ok(()), |name| input::profile("--profile", name))
    }
}

/// What unlocks the volume. None of it may come from the command line itself, where every user
/// of the machine could read it.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub struct SecretArgs {
    /// Read the passphrase from a file (one line)
    #[arg(long, help_heading = "Key", value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Read the passphrase from an open file descriptor (one line)
    #[arg(long, help_heading = "Key", value_name = "N")]
    pub passphrase_fd: Option<i32>,
    /// Take the first line that a program prints as the passphrase; it is started without a shell
    #[arg(long, help_heading = "Key", value_name = "CMD")]
    pub passphrase_command: Option<String>,
    /// Use a file of 32 bytes or more as the key
    #[arg(long, help_heading = "Key", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Read a recovery key from a file
    #[arg(long, help_heading = "Key", value_name = "FILE")]
    pub recovery_file: Option<PathBuf>,
    /// Ask AWS KMS, also a server that only the keyring names
    #[arg(long, help_heading = "Key")]
    pub kms: bool,
    /// Use an age identity file or an ssh private key; a plugin or a passphrase may be asked for
    #[arg(long, help_heading = "Key", value_name = "FILE")]
    pub age_identity: Option<PathBuf>,
    #[command(flatten)]
    pub kms_at: KmsArgs,
}

/// Where AWS KMS is.
#[derive(Args, Clone, Debug, Default)]
pub struct KmsArgs {
    /// Region of the KMS key [default: that of its ARN]
    #[arg(long, help_heading = "Key", value_name = "NAME")]
    pub kms_region: Option<String>,
    /// KMS other than that of AWS
    #[arg(long, help_heading = "Key", value_name = "URL")]
    pub kms_endpoint_url: Option<String>,
    /// Profile of the AWS configuration files for KMS [default: that of --profile]
    #[arg(long, help_heading = "Key", value_name = "NAME")]
    pub kms_profile: Option<String>,
}

impl SecretArgs {
    /// The flags that give the same secret again.
    pub fn to_mount(&self, words: &mut Vec<String>) {
        let files = [
            ("--passphrase-file", &self.passphrase_file),
            ("--key-file", &self.key_file),
            ("--recovery-file", &self.recovery_file),
            ("--age-identity", &self.age_identity),
        ];
        for (flag, file) in files {
            file.iter().for_each(|file| file_flag(words, flag, file));
        }
        if let Some(fd) = self.passphrase_fd {
            words.extend(["--passphrase-fd".to_owned(), fd.to_string()]);
        }
        if let Some(command) = &self.passphrase_command {
            words.extend(["--passphrase-command".to_owned(), command.clone()]);
        }
        words.extend(self.kms.then(|| "--kms".to_owned()));
        let kms = &self.kms_at;
        let valued = [
            ("--kms-region", &kms.kms_region),
            ("--kms-endpoint-url", &kms.kms_endpoint_url),
            ("--kms-profile", &kms.kms_profile),
        ];
        for (flag, value) in valued {
            words.extend(value.iter().flat_map(|value| [flag.to_owned(), value.clone()]));
        }
    }
}

/// Reads the id of a volume: 32 hexadecimal digits.
fn volume_id(text: &str) -> Result<VolumeId, String> {
    text.parse().map_err(|()| "the id of a volume has 32 hexadecimal digits".into())
}

/// The largest size that a flag takes, 1 EiB: more than any disk has, and sums of a few fit.
const SIZE_MAX: u64 = 1 << 60;

/// Reads a size: bytes, or a number with K, M, G or T (powers of 1024; `GiB` works too).
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.strip_suffix("iB").unwrap_or(unit).to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("a size is a number of bytes, or with K, M, G or T: 512M, 10G".into()),
    };
    let number: u64 = number.parse().map_err(|_| "a size starts with a number: 10G")?;
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes <= SIZE_MAX => Ok(bytes),
        _ => Err("that size is too large; 1048576T is the most".into()),
    }
}

/// [`size`] a second, for a limit; 0 is none.
pub fn rate(text: &str) -> Result<u64, String> {
    match size(text.strip_suffix("/s").unwrap_or(text))? {
        bytes if bytes == 0 || bytes >= LIMIT_MIN => Ok(bytes),
        _ => Err("a limit is 64K a second at least, or 0 for none".into()),
    }
}

/// The least `--journal-size`: a log file is a quarter of it and must take a write of 1 MiB, the
/// largest the kernel sends, several times.
const JOURNAL_BYTES_MIN: u64 = 16 << 20;

/// [`size`], for the journal.
pub fn journal_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes >= JOURNAL_BYTES_MIN => Ok(bytes),
        _ => Err("the journal needs at least 16M".into()),
    }
}

/// The longest time that a flag takes: far beyond any use, and safe to add to any clock.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a time: seconds, or a number with ms, s, m or h.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a time is a number of seconds, or with ms, s, m or h: 500ms, 2m".into()),
    };
    let number: u64 = number.parse().map_err(|_| "a time starts with a number: 30s")?;
    match number.checked_mul(unit_ms).map(Duration::from_millis) {
        Some(time) if time <= TIME_MAX => Ok(time),
        _ => Err("that time is too long; a year (8760h) is the most".into()),
    }
}

/// A time for the daemon, which takes whole seconds: rounded up, so that 500ms is not "at once".
pub fn whole_secs(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled_text;

    #[test]
    fn sizes_and_times_are_read_with_their_units() {
        // Guards against 10G read as 10 bytes, and against an overflow that gives a tiny cache.
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("10G"), Ok(10 << 30));
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("3k"), Ok(3072));
        assert!(journal_size("15M").is_err() && journal_size("16M") == Ok(16 << 20));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for bad in ["", "G", "1X", "-1", "1.5G", "99999999999999999999", "99999999T", "1048577T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(size("1048576T"), Ok(SIZE_MAX));
        assert_eq!(duration("8760h"), Ok(TIME_MAX));
        for bad in ["", "s", "1d", "-1s", "8761h", "18446744073709551615", "99999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_text_is_a_size_or_a_time_out_of_bounds() {
        // Guards against an overflow, and a cut within a letter.
        let seeds = ["10G", "512MiB", "500ms", "18446744073709551615", "1048576T", "2M/s"];
        garbled_text(&seeds, &["K", "iB", "0000", "9", "é", "h"], |text| {
            assert!(size(text).is_ok_and(|n| n <= SIZE_MAX) || size(text).is_err());
            assert!(rate(text).is_ok_and(|n| n == 0 || n >= LIMIT_MIN) || rate(text).is_err());
            assert!(duration(text).is_ok_and(|t| t <= TIME_MAX) || duration(text).is_err());
        });
    }
}
