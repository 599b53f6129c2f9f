//! What may be asked for: endpoints, regions and names, checked before anything is sent.
//!
//! Pure but for [`variables`], which looks at the environment. What is refused here would otherwise
//! be a panic or a riddle of the HTTP library. Used by `client`, `flags` and (`InputError`) `cli/`.

use std::ffi::OsStr;
use url::Url;

/// The longest region that is taken, in bytes.
const REGION_BYTES_MAX: usize = 64;

/// Something given that cannot be used: what it is, and by what name it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The endpoint is not a URL of a server.
    #[error("{by} {given:?} is not an endpoint: {why}\nhint: https://HOST[:PORT][/PATH]")]
    Endpoint {
        /// The flag or variable.
        by: &'static str,
        /// As given, without a password.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The region is none.
    #[error(
        "{given:?} is not a region (--region, AWS_REGION, AWS_DEFAULT_REGION, or the profile's)\nhint: a name like eu-central-1"
    )]
    Region {
        /// As given.
        given: String,
    },
    /// Empty, or with characters that a name does not have.
    #[error("{by} {given:?} {why}\nhint: {next}")]
    Name {
        /// The flag or variable.
        by: &'static str,
        /// As given.
        given: String,
        /// What is wrong with it.
        why: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// A variable that is not text.
    #[error("the variable {name} is not UTF-8\nhint: unset {name}, or set it again")]
    NotText {
        /// The variable.
        name: &'static str,
    },
}

/// The variables whose value would be passed over if it were not text.
const TEXTS: &[&str] = &[
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_KMS",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Checks that the variables that matter are text.
pub(super) fn variables() -> Result<(), InputError> {
    let is_text = |name: &&&str| {
        std::env::var_os(name).as_deref().is_none_or(|value| OsStr::to_str(value).is_some())
    };
    match TEXTS.iter().find(|name| !is_text(name)) {
        Some(name) => Err(InputError::NotText { name }),
        None => Ok(()),
    }
}

/// An endpoint as the SDK takes it: scheme, host, port and path; a path ends with a slash, since
/// its last part would be lost otherwise. `by` is the flag or variable that gave it.
///
/// # Errors
/// [`InputError::Endpoint`]: white space, no host, another scheme than http and https, a password,
/// a query or a fragment.
pub fn endpoint(by: &'static str, given: &str) -> Result<Url, InputError> {
    let bad = |why| {
        // What stands before '@' may be a secret.
        let given = given.rsplit_once('@').map_or(given, |(_, rest)| rest).to_owned();
        Err(InputError::Endpoint { by, given, why })
    };
    // The parser would pass over those at the ends, and over line ends anywhere.
    if given.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return bad("it holds a space or a line end");
    }
    let Ok(mut url) = Url::parse(given) else { return bad("it is not a URL with a host") };
    if !matches!(url.scheme(), "http" | "https") || !given.contains("://") {
        return bad("it does not begin with http:// or https://");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return bad("it names no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return bad("it holds a user or password; access keys are given apart");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return bad("it holds a query ('?') or fragment ('#')");
    }
    if url.port() == Some(0) {
        return bad("port 0 is none");
    }
    let path = url.path().trim_end_matches('/').to_owned();
    if path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        return bad("a part of its path is empty");
    }
    url.set_path(&format!("{path}/"));
    Ok(url)
}

/// A region, as it becomes part of signatures and host names.
///
/// # Errors
/// [`InputError::Region`]: anything but letters, digits, `-`, `_` and `.`.
pub fn region(given: &str) -> Result<(), InputError> {
    let usual = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !given.is_empty() && given.len() <= REGION_BYTES_MAX && given.chars().all(usual) {
        true => Ok(()),
        false => Err(InputError::Region { given: given.to_owned() }),
    }
}

/// The name of a profile.
///
/// # Errors
/// [`InputError::Name`]: empty, or with a control character.
pub fn profile(by: &'static str, given: &str) -> Result<(), InputError> {
    let next = "aws configure list-profiles";
    let bad = |why| Err(InputError::Name { by, given: given.to_owned(), why, next });
    match given {
        "" => bad("is empty"),
        _ if given.trim() != given => bad("begins or ends with a space"),
        _ if given.chars().any(char::is_control) => bad("holds a line end or control character"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_as_they_are_meant() {
        // Guards against requests to the root of a server that has S3 below a path, and against
        // a password of a URL in an error.
        for (given, expected) in [
            ("https://minio.example", "https://minio.example/"),
            ("https://minio.example/", "https://minio.example/"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/"),
            ("HTTPS://Minio.Example:443/s3", "https://minio.example/s3/"),
            ("https://h/a/b/", "https://h/a/b/"),
            ("https://h/a/b//", "https://h/a/b/"),
            ("http://[::1]:9000/x", "http://[::1]:9000/x/"),
        ] {
            assert_eq!(endpoint("--endpoint-url", given).expect(given).as_str(), expected);
        }
        for given in [
            "",
            " ",
            "host",
            "host:9000",
            "/path",
            "http:host",
            "http://",
            "https://:80",
            "ftp://host",
            " https://host",
            "https://host ",
            "https://ho st",
            "https://host\n",
            "https://host/\u{7f}",
            "https://host?x=1",
            "https://host/#f",
            "https://host:99999",
            "https://host:0",
            "https://host/a//b",
            "https://[::1",
        ] {
            let e = endpoint("--endpoint-url", given).expect_err(given).to_string();
            assert!(e.starts_with("--endpoint-url ") && e.contains("\nhint: "), "{given:?}: {e}");
        }
        let e = endpoint("AWS_ENDPOINT_URL", "https://me:secret@host").expect_err("a password");
        assert!(!e.to_string().contains("secret"), "{e}");
    }

    #[test]
    fn regions_and_profiles_are_names() {
        // Guards against a line end in a signature, or a region that turns the host into another.
        for good in ["us-east-1", "garage", "RegionOne", "auto", "a_b.c"] {
            region(good).expect(good);
        }
        for bad in
            ["", " ", "us-east-1\n", "us east", "évian", "a/b", "x@evil.example#", &"a".repeat(65)]
        {
            region(bad).expect_err(bad);
        }
        profile("--profile", "my work").expect("a name with a space");
        for bad in ["", "a\nb", " a", "a ", "a\u{0}"] {
            profile("--profile", bad).expect_err(bad);
        }
    }
}
