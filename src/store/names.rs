//! Names of objects: those of a volume, below the prefix of its STORE; and for any other key in a bucket
//! the path by which the layers know it, one to one.
//!
//! `object_store` paths have no empty parts, no `.` or `..`, no control characters, and are text. A
//! bucket takes nearly any bytes for a key, and whoever can write to it may plant such a key beside
//! the volume. No object of a volume is named so; but one planted key must not end a listing, and has
//! to be looked at and reported by its name. So it is known by a path below [`ODD`] that holds the
//! name in an encoding. Used by the stores at the bottom, and by what shows names to people.

use std::borrow::Cow;

use object_store::path::Path;

/// The keyring.
pub const KEYRING_NAME: &str = "keyring";
/// The configuration of the volume.
pub const CONFIG_NAME: &str = "config";
/// Who holds the volume read-write.
pub const LEASE_NAME: &str = "lease";
/// What is below it belongs to the metadata store.
pub const META_PREFIX: &str = "meta";
/// Segments are below it.
pub const SEGMENT_PREFIX: &str = "seg";
/// A probe leaves nothing; what it was kept from deleting is below this.
pub const PROBE_PREFIX: &str = "probe";
/// The first part of the path of a key that is no path itself. A key that begins with it is encoded
/// as well, so that no two keys have one path.
const ODD: &str = "%odd";

/// Whether an object of this name is below `prefix`, one of those above.
pub fn is_below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

/// The path of the object with this key below the prefix of the store.
pub(super) fn path_of(key: &[u8]) -> Path {
    let plain = std::str::from_utf8(key).ok().and_then(|text| {
        let path = Path::parse(text).ok()?;
        // Parsing drops a slash at either end.
        let is_same = path.as_ref() == text && text.split('/').next() != Some(ODD);
        is_same.then_some(path)
    });
    plain.unwrap_or_else(|| {
        let mut name = format!("{ODD}/=");
        for &b in key {
            match b.is_ascii_alphanumeric() || b == b'-' || b == b'_' {
                true => name.push(b.into()),
                false => name.push_str(&format!("%{b:02X}")),
            }
        }
        Path::parse(name).expect("letters, digits and percent signs")
    })
}

/// The key of the object that is known by `path`.
pub(super) fn key_of(path: &Path) -> Cow<'_, [u8]> {
    match odd_key(path) {
        Some(key) => key.into(),
        None => path.as_ref().as_bytes().into(),
    }
}

/// Whether the key of an object is one that no volume uses and no path can say.
pub fn is_odd(path: &Path) -> bool {
    odd_key(path).is_some()
}

/// The key of an object as text. It comes from outside: for a line for people it needs escapes.
pub fn shown_key(path: &Path) -> String {
    String::from_utf8_lossy(&key_of(path)).into_owned()
}

fn odd_key(path: &Path) -> Option<Vec<u8>> {
    let encoded = path.as_ref().strip_prefix(ODD)?.strip_prefix("/=")?;
    percent_decoded(encoded.as_bytes())
}

/// Bytes for `%XX`; `None` if that is garbled.
pub(super) fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&b) = bytes.next() {
        match b {
            b'%' => {
                let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
                out.push(digit(*bytes.next()?)? << 4 | digit(*bytes.next()?)?);
            }
            b => out.push(b),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_path_of_its_own_and_comes_back_from_it() {
        // Guards against a planted key that ends a listing, and against one that is taken for an
        // object of the volume (`/keyring` for `keyring`).
        let keys: [&[u8]; 17] = [
            b"keyring",
            b"/keyring",
            b"keyring/",
            b"a//b",
            b"a/../b",
            b"..",
            b".",
            b"/",
            b"//",
            b"a/\x01\n/b",
            b"a\\b {x} % + ~",
            "Gr\u{fc}\u{df}e/\u{202e}x".as_bytes(),
            b"not utf-8 \xff\xfe",
            b"%odd/=a%2F%2Fb",
            b"%odd",
            b"%odd/x",
            b"seg/ab//abababababababababababababababab",
        ];
        let mut seen = std::collections::HashSet::new();
        for key in keys {
            let path = path_of(key);
            assert_eq!(&*key_of(&path), key);
            assert_eq!(Path::parse(path.as_ref()).expect("a path"), path);
            assert!(seen.insert(path.clone()), "{path} stands for two keys");
            let plain = [&b"keyring"[..], b"a\\b {x} % + ~"].contains(&key)
                || key.starts_with("Gr\u{fc}".as_bytes());
            assert_eq!(is_odd(&path), !plain, "{path}");
        }
        assert_eq!(shown_key(&path_of(b"a//b")), "a//b");
    }
}
