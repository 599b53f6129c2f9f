//! The rules of the source tree, as tests: imports go down only, some libraries are named in
//! one place only, files stay small, and every file says what it is for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer may import only layers further down this list, and none beside it on the same
/// line (docs/ARCHITECTURE.md).
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["exchange"],
    &["stack"],
    &["fuse"],
    &["fs"],
    &["commit"],
    &["meta", "data"],
    &["journal", "s3ec"],
    &["store"],
    &["seal"],
    &["base"],
];

/// The rooms inside a layer: a file or folder, or several that are one room, may import rooms further
/// down this list, and none beside it on the same line.
const ROOMS: &[(&str, &[&[&str]])] = &[
    (
        "stack",
        &[
            &["init"],
            &["care"],
            &["opening"],
            &["running"],
            &["options"],
            &["keys", "s3ec_object"],
            &["layers"],
            &["records"],
            &["store_options"],
            &["attended"],
            &["error"],
        ],
    ),
    (
        "commit",
        &[
            &["committer"],
            &["attempt", "clean", "keeping", "reclaim"],
            &["writer", "work", "replay", "check", "snapshots"],
            &["resolve", "error", "scan"],
            &["accounts"],
            &["view directories"],
            &["caches", "extents", "page"],
            &["pack pending"],
            &["batch", "holders", "layouts", "options"],
        ],
    ),
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
    ("aws_lc_rs", &["src/seal/", "src/s3ec/"]),
    ("ghash", &["src/s3ec/gcm.rs"]),
    ("rsa", &["src/s3ec/oaep.rs"]),
    ("x_wing", &["src/seal/kem.rs"]),
    ("age", &["src/stack/keys/age.rs"]),
    ("zstd", &["src/store/segments/frames.rs"]),
    ("slatedb", &["src/store/kv.rs", "src/store/kv_store.rs", "src/store/kv/"]),
    ("prometheus_client", &["src/cli/metrics.rs"]),
    ("clap", &["src/cli/"]),
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

/// The paths of this crate that a file names, from its root: `["store", "s3", "X"]`.
fn imports(name: &str, code: &str) -> Vec<Vec<String>> {
    let module = module_of(name);
    let mut found = Vec::new();
    for start in ["crate::", "sealfs::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut paths = Vec::new();
            expand(&code[at..], &mut Vec::new(), &mut paths);
            found.extend(paths.into_iter().map(|path| from_root(&module, &path)));
        }
    }
    found
}

/// The module that a file is: `src/store/s3/mod.rs` is `["store", "s3"]`.
fn module_of(name: &str) -> Vec<String> {
    let below = name.strip_prefix("src/").unwrap_or(name).trim_end_matches(".rs");
    below.split('/').filter(|part| *part != "mod").map(str::to_owned).collect()
}

fn from_root(module: &[String], path: &[String]) -> Vec<String> {
    let ups = path.iter().take_while(|word| *word == "super").count();
    let base = match ups {
        0 => &[],
        _ => &module[..module.len().saturating_sub(ups)],
    };
    base.iter().chain(&path[ups.max(1)..]).cloned().collect()
}

/// Adds the paths of a tree as in `use a::{b, c::{D, E}};`, each behind `prefix`; returns what
/// follows it.
fn expand<'a>(text: &'a str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let (text, depth) = (text.trim_start(), prefix.len());
    let mut rest = text;
    loop {
        let word = first_word(rest);
        if word.is_empty() {
            break;
        }
        rest = &rest[word.len()..];
        prefix.push(word);
        let Some(next) = rest.strip_prefix("::") else { break };
        rest = next;
    }
    if let Some(list) = rest.strip_prefix('{') {
        rest = list;
        while !rest.is_empty() {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if let Some(end) = rest.strip_prefix('}') {
                rest = end;
                break;
            }
            let before = rest.len();
            rest = expand(rest, prefix, found);
            rest = rest.split_once([',', '}']).map_or("", |(name, _)| &rest[name.len()..]);
            if rest.len() == before {
                break;
            }
        }
    } else {
        found.push(prefix.clone());
    }
    prefix.truncate(depth);
    rest
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// What the face of a layer hands on from its rooms: name and room.
fn handed_on(layer: &str) -> BTreeMap<String, String> {
    let face = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/{layer}/mod.rs"));
    let mut names = BTreeMap::new();
    for line in code(&face).split(';') {
        let line = line.trim_start();
        let used = line.strip_prefix("pub").and_then(|rest| rest.split_once("use ")).map(|u| u.1);
        let Some(tree) = used else { continue };
        let mut paths = Vec::new();
        expand(tree, &mut Vec::new(), &mut paths);
        for path in paths.iter().filter(|path| path.len() > 1) {
            names.insert(path[path.len() - 1].clone(), path[0].clone());
        }
    }
    names
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
        for import in imports(&name, &code(&path)) {
            let Some(import) = import.first() else { continue };
            let Some(to) = rank.get(import.as_str()) else { continue };
            let excepted = EXCEPTIONS.iter().any(|(f, m, _)| *f == name && *m == *import);
            if *import != layer && to <= from && !excepted {
                broken.push(format!("{name} imports {import}"));
            }
        }
    }
    assert!(broken.is_empty(), "imports that go up or sideways:\n{}", broken.join("\n"));
}

#[test]
fn rooms_inside_a_layer_import_down_only() {
    // Guards against circles inside a folder, which the rule between folders does not see; provoked
    // by a `use super::` of a room above.
    let mut broken = Vec::new();
    for (layer, lines) in ROOMS {
        let mut rank = BTreeMap::new();
        for (i, line) in lines.iter().enumerate() {
            for room in *line {
                rank.extend(room.split(' ').map(|module| (module, (i, *room))));
            }
        }
        let names = handed_on(layer);
        for path in sources(&format!("src/{layer}")) {
            let name = name(&path);
            let module = module_of(&name);
            let Some(module) = module.get(1) else { continue };
            let Some((from, room)) = rank.get(module.as_str()) else {
                broken.push(format!("{name}: {module} is not in the table of rooms"));
                continue;
            };
            for import in imports(&name, &code(&path)).iter().filter(|path| path[0] == *layer) {
                let Some(of) = import.get(1) else { continue };
                let of = names.get(of).unwrap_or(of);
                let Some((to, other)) = rank.get(of.as_str()) else { continue };
                if other != room && to <= from {
                    broken.push(format!("{name} imports {of}"));
                }
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
fn rows_are_written_in_one_place_only() {
    // Guards against a committer that is stuck: a commit may wait for room in level 0, and `RowWriter::write`
    // is what has a compaction tried again meanwhile. `init` writes an empty database.
    let places = ["src/commit/writer.rs", "src/stack/init.rs"];
    let mut found = Vec::new();
    for path in sources("src").iter().filter(|path| !name(path).starts_with("src/store/")) {
        let code: String = code(path).split_whitespace().collect();
        if code.contains("kv.commit(") || code.contains("kv().commit(") {
            found.push(name(path));
        }
    }
    assert_eq!(found, places);
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
        .filter(|path| !name(path).ends_with("_tests.rs"))
        .filter(|path| code(path).contains(".unwrap()"))
        .map(|path| name(path))
        .collect();
    assert!(broken.is_empty(), "unwrap outside tests: {}", broken.join(", "));
}

#[test]
fn the_checks_see_what_they_look_for() {
    // Guards against a layer test that passes because its own parser finds nothing.
    let text = "use crate::{base::Ino, store::{kv, s3::X as Y}, seal};\nuse super::super::fs::Fs;";
    let found: Vec<_> = imports("src/commit/clean/switch.rs", text)
        .into_iter()
        .map(|path| path.join("::"))
        .collect();
    let expected = ["base::Ino", "store::kv", "store::s3::X", "seal", "commit::fs::Fs"];
    assert_eq!(found, expected);
    assert_eq!(handed_on("commit").get("Committer").map(String::as_str), Some("committer"));
    assert_eq!(layer_of("src/store/s3/mod.rs"), "store");
    assert_eq!(layer_of("src/main.rs"), "main");
    assert!(sources("src").len() > 50);
}
