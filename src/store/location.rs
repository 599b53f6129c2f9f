//! The STORE argument: where a volume lives.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

use super::names::percent_decoded;

/// A parsed STORE: `s3://bucket[/prefix]`, `file:///absolute/dir` or `memory:` (tests).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A bucket, and the prefix below which everything of the volume lies.
    S3 {
        /// The bucket's name (or access point ARN is not accepted: S3 naming rules apply).
        bucket: String,
        /// Without slashes at either end; empty for the whole bucket.
        prefix: String,
    },
    /// A directory of this machine, absolute.
    File(PathBuf),
    /// The memory of this process; gone when it ends.
    Memory,
}

/// Why a STORE argument was not understood. Each text ends with a hint of what to type.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LocationError {
    /// Not one of the known schemes.
    #[error("'{}' is not a store\nhint: use s3://BUCKET[/PREFIX] or file:///ABSOLUTE/DIRECTORY", .0.escape_debug())]
    Scheme(String),
    /// The bucket name is missing or is not one S3 could have.
    #[error(
        "'{}' is not a bucket name\nhint: s3://BUCKET[/PREFIX], where BUCKET has 3 to 63 of a-z, 0-9, '.' and '-'",
        .0.escape_debug()
    )]
    Bucket(String),
    /// The prefix has an empty, `.` or `..` part, or a character that keys should not have.
    #[error(
        "'{}' cannot be a prefix: it has an empty, '.' or '..' part or an unusual character\nhint: use letters, digits, '.', '_', '-' between single slashes",
        .0.escape_debug()
    )]
    Prefix(String),
    /// A file store must be absolute.
    #[error("'{}' is not an absolute directory\nhint: file:///home/me/store, with three slashes", .0.escape_debug())]
    Directory(String),
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Location, LocationError> {
        if text == "memory:" {
            return Ok(Location::Memory);
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            return parse_s3(rest);
        }
        if let Some(rest) = text.strip_prefix("file://") {
            let rest = percent_decode(rest).ok_or_else(|| LocationError::Directory(rest.into()))?;
            let path = PathBuf::from(&rest);
            let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
            return match path.is_absolute() && plain && !rest.contains('\0') {
                true => Ok(Location::File(path)),
                false => Err(LocationError::Directory(rest)),
            };
        }
        Err(LocationError::Scheme(text.into()))
    }
}

fn parse_s3(rest: &str) -> Result<Location, LocationError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let usual = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    // Underscores and upper case exist in old buckets and on other servers; '_' is let through.
    if !(3..=63).contains(&bucket.len())
        || !bucket.chars().all(usual)
        || !edge(bucket.chars().next())
        || !edge(bucket.chars().last())
    {
        return Err(LocationError::Bucket(bucket.into()));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let part_fits = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.chars().all(|c| c.is_alphanumeric() || "._-=+@,!()' ".contains(c))
    };
    if prefix.len() > PREFIX_BYTES_MAX || (!prefix.is_empty() && !prefix.split('/').all(part_fits))
    {
        return Err(LocationError::Prefix(prefix.into()));
    }
    Ok(Location::S3 { bucket: bucket.into(), prefix: prefix.into() })
}

/// S3 keys have at most 1,024 bytes; our names below the prefix need fewer than 200.
const PREFIX_BYTES_MAX: usize = 800;

/// Bytes for `%XX`; `None` if that is garbled or not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    String::from_utf8(percent_decoded(text.as_bytes())?).ok()
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Location::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Location::File(dir) => {
                let text = dir.display().to_string();
                write!(f, "file://{}", text.replace('%', "%25"))
            }
            Location::Memory => f.write_str("memory:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_to_the_same_location() {
        // Guards against status and error texts naming a store that cannot be typed back.
        for text in [
            "s3://my-bucket",
            "s3://my-bucket/data/2026",
            "file:///srv/store",
            "file:///srv/100%25/x y",
            "memory:",
        ] {
            let parsed: Location = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
        let slash: Location = "s3://my-bucket/data/".parse().unwrap();
        assert_eq!(slash.to_string(), "s3://my-bucket/data");
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        // Guards against a typo creating a volume somewhere unexpected.
        for text in [
            "",
            "bucket",
            "http://x",
            "s3://",
            "s3://A",
            "s3://UPPER-case",
            "s3://ab",
            "s3://abc//x",
            "s3://abc/../x",
            "s3://abc/a/./b",
            "file://relative/dir",
            "file://",
            "file:///a/../b",
            "file:///a%zz",
            "s3:/abc",
        ] {
            let e = text.parse::<Location>().expect_err(text);
            assert!(e.to_string().contains("\nhint: "), "{text}: {e}");
        }
    }
}
