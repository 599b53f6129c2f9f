//! The rules of the source tree, as tests: imports go down only, some libraries are named in
//! one place only, files stay small, and every file says what it is for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer may import only layers further down this list, and none beside it on the same
/// line (DESIGN §2).
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["stack"],
    &["fuse"],
    &["fs"],
    &["commit"],
    &["meta", "data"],
    &["journal"],
    &["store"],
    &["seal"],
    &["base"],
];

/// Imports against the rule that are meant: who, what, why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Where a library may be named: it can be exchanged there, and only there.
const NAMED_ONLY_IN: &[(&str, &[&str])] = &[
    ("fuser", &["src/fuse/"]),
    ("aws_sdk_s3", &["src/store/s3/"]),
    ("aws_config", &["src/store/s3/"]),
    ("aws_smithy_types", &["src/store/s3/"]),
    ("aws_sdk_kms", &["src/store/kms/"]),
    ("aws_types", &["src/store/s3/", "src/store/kms/"]),
    ("aws_smithy_runtime_api", &["src/store/s3/"]),
    ("hyper", &["src/store/s3/connection.rs", "src/cli/scrape.rs"]),
    ("hyper_util", &["src/store/s3/connection.rs", "src/cli/scrape.rs"]),
    ("hyper_rustls", &["src/store/s3/connection.rs"]),
    ("rustls", &["src/store/s3/"]),
    ("aes_gcm", &["src/seal/"]),
    ("aws_lc_rs", &["src/seal/"]),
    ("x_wing", &["src/seal/kem.rs"]),
    ("age", &["src/stack/key_age.rs"]),
    ("zstd", &["src/store/segments/frames.rs"]),
    ("slatedb", &["src/store/kv.rs", "src/store/kv_store.rs", "src/store/kv/"]),
    ("prometheus_client", &["src/cli/metrics.rs"]),
    ("clap", &["src/cli/", "src/store/s3/flags.rs"]),
];

/// Lines of the longest source file, its unit tests not counted.
const CODE_LINES_MAX: usize = 700;

fn sources(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("the source tree can be listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn name(path: &Path) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    path.strip_prefix(root).expect("below the root").display().to_string()
}

/// The file without its unit tests and without comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
    text.lines()
        .map(|line| match line.find("//") {
            Some(at) if !line[..at].ends_with(':') => &line[..at],
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// The layer a file belongs to: the folder or file right below `src`.
fn layer_of(name: &str) -> &str {
    let below = name.strip_prefix("src/").unwrap_or(name);
    below.split(['/', '.']).next().unwrap_or(below)
}

/// The modules of this crate that a file names, by `crate::x` or `sealfs::x`.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "sealfs::"] {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            match rest.strip_prefix('{') {
                // use crate::{a::X, b}
                Some(list) => {
                    let list = &list[..list.find(';').unwrap_or(list.len())];
                    found.extend(top_level_names(list));
                }
                None => found.push(first_word(rest)),
            }
        }
    }
    found
}

fn top_level_names(list: &str) -> Vec<String> {
    let (mut names, mut depth, mut fresh) = (Vec::new(), 0, true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && c.is_alphabetic() => {
                names.push(first_word(&list[at..]));
                fresh = false;
            }
            _ => {}
        }
        if depth < 0 {
            break;
        }
    }
    names
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn imports_go_down_only() {
    // Guards against the circle of imports that grows where nothing checks direction; provoked
    // by any `use crate::` of a higher layer.
    let mut rank = BTreeMap::new();
    for (i, line) in LAYERS.iter().enumerate() {
        rank.extend(line.iter().map(|layer| (*layer, i)));
    }
    let mut broken = Vec::new();
    for path in sources("src") {
        let name = name(&path);
        let layer = layer_of(&name);
        if layer == "lib" {
            continue;
        }
        let Some(from) = rank.get(layer) else {
            panic!("{name}: {layer} is not in the table of layers");
        };
        for import in imports(&code(&path)) {
            let Some(to) = rank.get(import.as_str()) else { continue };
            let excepted = EXCEPTIONS.iter().any(|(f, m, _)| *f == name && *m == import);
            if import != layer && to <= from && !excepted {
                broken.push(format!("{name} imports {import}"));
            }
        }
    }
    assert!(broken.is_empty(), "imports that go up or sideways:\n{}", broken.join("\n"));
}

#[test]
fn libraries_are_named_in_their_place_only() {
    // Guards against a library that can no longer be exchanged because it has leaked upward.
    let mut broken = Vec::new();
    for path in sources("src") {
        let (name, code) = (name(&path), code(&path));
        for (library, places) in NAMED_ONLY_IN {
            let named = code.match_indices(&format!("{library}::")).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            });
            if named && !places.iter().any(|place| name.starts_with(place)) {
                broken.push(format!("{name} names {library}, allowed in {places:?}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn files_stay_small_and_say_what_they_are_for() {
    // Guards against files nobody reads to the end, and files one must read to know their use.
    let mut broken = Vec::new();
    for path in sources("src") {
        let (name, text) = (name(&path), fs::read_to_string(&path).expect("a source file"));
        if !text.starts_with("//! ") {
            broken.push(format!("{name} does not open with `//!`"));
        }
        let lines = code(&path).lines().count();
        if lines > CODE_LINES_MAX {
            broken.push(format!("{name} has {lines} lines of code, at most {CODE_LINES_MAX}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn unwrap_stays_in_tests() {
    // Guards against a panic on bad input: outside tests it is `?`, or `expect` with the reason
    // why it holds.
    let broken: Vec<_> = sources("src")
        .iter()
        .filter(|path| !name(path).ends_with("_tests.rs") && !name(path).ends_with("_sim.rs"))
        .filter(|path| code(path).contains(".unwrap()"))
        .map(|path| name(path))
        .collect();
    assert!(broken.is_empty(), "unwrap outside tests: {}", broken.join(", "));
}

#[test]
fn the_checks_see_what_they_look_for() {
    // Guards against a layer test that passes because its own parser finds nothing.
    let found = imports("use crate::{base::Ino, store::{kv, s3::X}, seal};\nuse crate::fs::Fs;");
    assert_eq!(found, ["base", "store", "seal", "fs"]);
    assert_eq!(layer_of("src/store/s3/mod.rs"), "store");
    assert_eq!(layer_of("src/main.rs"), "main");
    assert!(sources("src").len() > 50);
}
