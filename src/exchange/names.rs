//! Keys as paths. A key may be what no path can: with empty parts, `.` and `..`, parts longer than
//! 255 bytes, a name that is also the directory of others. Such a key gets a path that says so, the
//! same one in every run; two keys never get the same path. Pure.

use std::collections::{BTreeMap, HashSet};

use sha2::{Digest, Sha256};

use crate::base::hex;

/// Bytes of a name (`NAME_MAX` of Linux).
const NAME_BYTES_MAX: usize = 255;
/// Bytes kept of a part that is too long, before its hash.
const KEPT_BYTES: usize = 200;
/// Parts of a path, so that it stays below `PATH_MAX` by far for the calls that take whole paths.
const DEPTH_MAX: usize = 1024;

/// What follows the name of an object that is also the directory of others.
pub const ALSO_DIRECTORY: &str = "#object";

/// Why a key does not become the path of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// It has a part that no name can be.
    Part,
    /// Other keys lie below it.
    AlsoDirectory,
}

impl Odd {
    /// For people.
    pub fn why(self) -> &'static str {
        match self {
            Odd::Part => "a part of the key cannot be a name",
            Odd::AlsoDirectory => "it is also the directory of other keys",
        }
    }
}

/// What a key becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Relative path; empty for the top itself.
    pub path: String,
    /// Whether it is a directory: the marker of consoles and of s3fs, a key that ends in a slash.
    pub is_dir: bool,
    /// Why it is not the key itself.
    pub odd: Option<Odd>,
}

/// One key of what is to be placed: below the prefix, and whether the object has no bytes.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// The key without the prefix.
    pub name: &'a str,
    /// Whether it holds nothing, as markers of directories do.
    pub is_empty: bool,
}

/// The place of every key, in the order given. Keys are distinct.
pub fn places(keys: &[Key<'_>]) -> Vec<Place> {
    let mut places: Vec<Place> = keys.iter().map(|key| place(*key)).collect();
    let mut directories: HashSet<&str> = HashSet::new();
    for place in &places {
        let mut path = place.path.as_str();
        if place.is_dir && !path.is_empty() {
            directories.insert(path);
        }
        while let Some((parent, _)) = path.rsplit_once('/') {
            if !directories.insert(parent) {
                break;
            }
            path = parent;
        }
    }
    let clashes: Vec<usize> = (0..places.len())
        .filter(|&at| !places[at].is_dir && directories.contains(places[at].path.as_str()))
        .collect();
    drop(directories);
    for &at in &clashes {
        places[at].path = suffixed(&places[at].path, ALSO_DIRECTORY);
        places[at].odd = Some(Odd::AlsoDirectory);
    }
    if places.iter().any(|place| place.odd.is_some()) {
        set_apart(keys, &mut places);
    }
    places
}

/// Gives odd keys whose path is taken another one.
fn set_apart(keys: &[Key<'_>], places: &mut [Place]) {
    let mut taken: BTreeMap<String, bool> = BTreeMap::new(); // whether a directory only
    for place in places.iter() {
        let mut path = place.path.as_str();
        if place.odd.is_none() {
            taken.insert(path.to_owned(), place.is_dir);
        }
        while let Some((parent, _)) = path.rsplit_once('/') {
            taken.entry(parent.to_owned()).or_insert(true);
            path = parent;
        }
    }
    for (key, place) in keys.iter().zip(places).filter(|(_, place)| place.odd.is_some()) {
        let fits = |path: &str| match taken.get(path) {
            None => true,
            Some(is_dir) => *is_dir && place.is_dir,
        };
        let (plain, mut apart) = (place.path.clone(), hash(key.name));
        while !fits(&place.path) {
            // Its own hash: the same whatever other keys there are, unless one of them is named so.
            place.path = suffixed(&plain, &format!("#{apart}"));
            apart = hash(&apart);
        }
        taken.insert(place.path.clone(), place.is_dir);
    }
}

/// The place of one key, whatever other keys there are.
fn place(key: Key<'_>) -> Place {
    let name = key.name;
    let is_dir = key.is_empty && (name.is_empty() || name.ends_with('/'));
    let parts = if is_dir { name.strip_suffix('/').unwrap_or(name) } else { name };
    if parts.is_empty() && is_dir {
        return Place { path: String::new(), is_dir, odd: None };
    }
    let mut odd = None;
    let mut path = String::with_capacity(parts.len());
    if parts.split('/').count() > DEPTH_MAX {
        let path = format!("#deep-{}", hash(name));
        return Place { path, is_dir, odd: Some(Odd::Part) };
    }
    for part in parts.split('/') {
        if !path.is_empty() {
            path.push('/');
        }
        match name_of(part) {
            None => path.push_str(part),
            Some(other) => {
                odd = Some(Odd::Part);
                path.push_str(&other);
            }
        }
    }
    Place { path, is_dir, odd }
}

/// The name for a part that cannot be one; `None` if it can.
fn name_of(part: &str) -> Option<String> {
    match part {
        "" => Some("#empty".into()),
        "." => Some("#dot".into()),
        ".." => Some("#dotdot".into()),
        // Where unfinished files lie.
        super::tree::WORK_DIR => Some(format!("#{part}")),
        _ if part.len() > NAME_BYTES_MAX => {
            let mut kept = KEPT_BYTES;
            while !part.is_char_boundary(kept) {
                kept -= 1;
            }
            Some(format!("{}#long-{}", part[..kept].replace('\0', "#nul"), hash(part)))
        }
        _ if part.contains('\0') => Some(format!("#nul-{}", hash(part))),
        _ => None,
    }
}

/// The key, below the prefix, that a path would have been made of; hashes are not undone.
pub fn key_of(path: &str) -> String {
    let path = path.strip_suffix(ALSO_DIRECTORY).unwrap_or(path);
    let part = |part: &str| {
        match part {
            "#empty" => "",
            "#dot" => ".",
            "#dotdot" => "..",
            part => part,
        }
        .to_owned()
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// `path` with `suffix` behind its last name, which is shortened where it would be too long.
fn suffixed(path: &str, suffix: &str) -> String {
    let (parent, name) = match path.rsplit_once('/') {
        Some((parent, name)) => (Some(parent), name),
        None => (None, path),
    };
    let mut name = format!("{name}{suffix}");
    if name.len() > NAME_BYTES_MAX {
        let mut kept = KEPT_BYTES;
        while !name.is_char_boundary(kept) {
            kept -= 1;
        }
        name = format!("{}#long-{}{suffix}", &name[..kept], hash(path));
    }
    match parent {
        Some(parent) => format!("{parent}/{name}"),
        None => name,
    }
}

/// 16 hex digits that tell a name from others.
fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled_text;

    fn all(names: &[&str]) -> Vec<Place> {
        let keys: Vec<_> =
            names.iter().map(|name| Key { name, is_empty: name.ends_with('/') }).collect();
        places(&keys)
    }

    fn paths(names: &[&str]) -> Vec<String> {
        all(names).into_iter().map(|place| place.path).collect()
    }

    #[test]
    fn keys_that_cannot_be_paths_get_one_that_says_so() {
        // Guards against a key that leaves the directory, is lost, or stops the run.
        assert_eq!(paths(&["a", "b/c", "é ü/\n"]), ["a", "b/c", "é ü/\n"]);
        let odd = ["/a", "a//b", "../x", "a/./b", "a/../../etc/passwd", "x\0y"];
        assert_eq!(
            paths(&odd)[..5],
            ["#empty/a", "a/#empty/b", "#dotdot/x", "a/#dot/b", "a/#dotdot/#dotdot/etc/passwd"]
        );
        assert!(all(&odd).iter().all(|place| place.odd == Some(Odd::Part)));
        let long = format!("d/{}", "ü".repeat(200));
        let path = &paths(&[&long])[0];
        assert!(path.len() < 260 && path.starts_with("d/üü") && path.contains("#long-"), "{path}");
        assert_ne!(paths(&[&format!("{long}x")])[0], *path);
    }

    #[test]
    fn an_object_that_is_also_a_directory_keeps_both() {
        // Guards against either being overwritten, whatever lies between them in the listing.
        assert_eq!(paths(&["a", "a!", "a/b"]), ["a#object", "a!", "a/b"]);
        assert_eq!(all(&["a", "a/b"])[0].odd, Some(Odd::AlsoDirectory));
        let taken = paths(&["a", "a#object", "a/b"]);
        assert_eq!(taken[1..], ["a#object", "a/b"]);
        assert!(taken[0].starts_with("a#object#"), "{taken:?}");
        let twice = paths(&["#empty/a", "/a", "//a", "#empty/#empty/a"]);
        let distinct: HashSet<_> = twice.iter().collect();
        assert_eq!(distinct.len(), 4, "{twice:?}");
    }

    #[test]
    fn the_key_of_a_path_is_found_again() {
        // Guards against filters that mean a key, and do not know the file that was made of it.
        for key in ["a", "a//b", "/a", "../x", "a/./b", "é ü/\n"] {
            assert_eq!(key_of(&paths(&[key])[0]), key);
        }
        assert_eq!(key_of("a#object"), "a");
    }

    #[test]
    fn markers_of_directories_become_directories() {
        // Guards against a file where the directory of others must be.
        let made = all(&["dir/", "dir/a", "x/y/", "/", ""]);
        assert!(made[0].is_dir && made[0].path == "dir" && made[0].odd.is_none());
        assert!(made[2].is_dir && made[2].path == "x/y");
        assert!(made[3].is_dir && made[3].path.is_empty());
        let full = places(&[Key { name: "dir/", is_empty: false }]);
        assert_eq!((full[0].path.as_str(), full[0].is_dir), ("dir/#empty", false));
    }

    #[test]
    fn whatever_keys_there_are_each_has_a_place_of_its_own() {
        // Guards against two objects that become one file, whoever planted the second: also where it has
        // the very name that the first was to get.
        let planted = format!("#empty/a#{}", hash("/a"));
        let seeds = [
            "a\na/b\na#object\n/a\n#empty/a",
            &format!("/a\n#empty/a\n{planted}\n{planted}/b"),
            "a//b\na/#empty/b\na/../b\na/#dotdot/b\na/#dotdot\nd/\nd\n../x\n.\n..\n",
        ];
        let long = "x".repeat(300);
        let words = ["/", "\n", "#empty", "#dot", "#object", "..", "//", "\0", &long, &planted];
        garbled_text(&seeds, &words, |text| {
            let mut names: Vec<_> = text.split('\n').collect();
            names.sort_unstable();
            names.dedup();
            let made = all(&names);
            let mut files = HashSet::new();
            for place in made.iter().filter(|place| !place.is_dir) {
                assert!(files.insert(place.path.as_str()), "{} twice of {names:?}", place.path);
            }
            for Place { path, is_dir, .. } in &made {
                let ups = path.match_indices('/').map(|(at, _)| &path[..at]);
                for above in ups.chain(is_dir.then_some(path.as_str())) {
                    assert!(!files.contains(above), "{above} is above {path}: {names:?}");
                }
                let mut parts = path.split('/');
                let fits = |part: &str| !["", ".", ".."].contains(&part) && part.len() < 256;
                assert!(path.is_empty() || parts.all(fits), "{path} of {names:?}");
            }
        });
    }
}
