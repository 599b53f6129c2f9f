//! Whether, and how hard, new segments are compressed.

use std::fmt;
use std::str::FromStr;

/// How the data of new segments are stored. Each segment says itself how its own are, so this may
/// change at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// As frames, compressed with zstd where that saves an eighth or more.
    Zstd {
        /// [`LEVEL_MIN`] to [`LEVEL_MAX`].
        level: u8,
    },
}

/// What `zstd` alone means: zstd's own default.
pub const LEVEL_DEFAULT: u8 = 3;
/// The fastest.
pub const LEVEL_MIN: u8 = 1;
/// The hardest that needs no more memory than others to read.
pub const LEVEL_MAX: u8 = 19;

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Zstd { level } => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Compression, String> {
        let level = match text.split_once(':') {
            None if text == "none" => return Ok(Compression::None),
            None if text == "zstd" => LEVEL_DEFAULT,
            Some(("zstd", level)) => level
                .parse()
                .ok()
                .filter(|level| (LEVEL_MIN..=LEVEL_MAX).contains(level))
                .ok_or(format!("a level is a number from {LEVEL_MIN} to {LEVEL_MAX}"))?,
            _ => return Err("it is none, zstd or zstd:LEVEL".into()),
        };
        Ok(Compression::Zstd { level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_means_the_same_again() {
        // Guards against a level that is lost between `init` and the mount.
        for (given, shown) in
            [("none", "none"), ("zstd", "zstd:3"), ("zstd:1", "zstd:1"), ("zstd:19", "zstd:19")]
        {
            let is: Compression = given.parse().expect("known");
            assert_eq!(is.to_string(), shown);
            assert_eq!(shown.parse(), Ok(is));
        }
        for bad in
            ["", "zst", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:3:3", "none:1", "ZSTD"]
        {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }
}
