//! The documentation against the program: its examples run, its commands and flags exist, its
//! links lead somewhere, its sizes are those of the code.

use crate::needs_fuse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealfs::base::{ContentsId, Ino, SegmentId};
use sealfs::meta::keys::{self, NameHash};
use sealfs::meta::{
    BesideRow, CommitRow, DeadRow, Dirent, ExtentRow, HistoryRow, Kind, MarkerRow, SegmentRow,
    Stats, VolumeRow,
};

const PAGES: &[&str] = &[
    "README.md",
    "docs/FORMAT.md",
    "docs/ARCHITECTURE.md",
    "docs/POSIX.md",
    "docs/PERFORMANCE.md",
    "docs/ENCRYPTION.md",
    "docs/KEYS.md",
    "docs/OPERATIONS.md",
    "docs/RELIABILITY.md",
    "docs/SNAPSHOTS.md",
    "docs/USING.md",
    "docs/COMPARISON.md",
    "docs/EXCHANGE.md",
    "docs/TROUBLESHOOTING.md",
    "packaging/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
];

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn sealfs(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sealfs")).args(args).output().expect("runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The fenced blocks of a page with this text after the fence.
fn fenced(text: &str, info: &str) -> Vec<String> {
    let (mut blocks, mut block) = (Vec::new(), None::<String>);
    for line in text.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(after)) if after == info => block = Some(String::new()),
            (Some(_), Some(_)) => blocks.extend(block.take()),
            (Some(lines), None) => *lines += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    blocks
}

/// A home directory; what is mounted below it goes with it.
struct Home(tempfile::TempDir);

impl Drop for Home {
    fn drop(&mut self) {
        let vault = self.0.path().join("try/vault");
        for (tool, flags) in [("umount", "-l"), ("fusermount3", "-uzq")] {
            let _ = Command::new(tool).arg(flags).arg(&vault).output(); // it may not be mounted
        }
    }
}

#[test]
fn the_examples_of_the_readme_run_as_they_are_printed() {
    // Guards against a first page that does not work when typed. Every block marked `sh run` is
    // run in order by one shell, in an empty home directory.
    needs_fuse!();
    let script = fenced(&page("README.md"), "sh run").join("\n");
    assert!(script.contains("sealfs mount") && script.contains("sealfs umount"));
    let home = Home(tempfile::tempdir().expect("a temporary directory"));
    let program = Path::new(env!("CARGO_BIN_EXE_sealfs"));
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("timeout")
        .args(["120", "sh", "-euc", &script])
        .env("HOME", home.0.path())
        .env("SEALFS_RUNTIME_DIR", home.0.path().join("run"))
        .env("PATH", format!("{}:{path}", program.parent().expect("a directory").display()))
        .output()
        .expect("sh and timeout are there");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}:\n{out}\n{err}", output.status);
    let lines: Vec<_> = out.lines().collect();
    assert!(lines.iter().any(|l| l.starts_with("state     online")), "{out}");
    assert!(lines.contains(&"only sealed objects") && lines.contains(&"a secret"), "{out}");
}

/// What a page shows as code: fenced and indented lines, and the spans between backticks.
fn code_of(text: &str) -> Vec<String> {
    let (mut code, mut inside) = (Vec::new(), false);
    for line in text.replace("\\\n", " ").lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside || line.starts_with("    ") {
            code.push(line.trim().to_owned());
        } else {
            code.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    code
}

fn flags(text: &str) -> BTreeSet<String> {
    let word = |w: &str| -> String {
        w.chars().take_while(|c| c.is_ascii_lowercase() || "-".contains(*c)).collect()
    };
    text.split(|c: char| c.is_whitespace() || "[`(,".contains(c))
        .filter(|w| w.starts_with("--") && w.len() > 2)
        .map(word)
        .collect()
}

#[test]
fn every_command_and_flag_that_is_named_exists() {
    // Guards against documentation of a flag that was renamed, or was never there. Read from
    // the code on the pages and compared with --help.
    let mut help: BTreeMap<&str, BTreeSet<String>> = [
        "init",
        "mount",
        "umount",
        "promote",
        "demote",
        "sync",
        "status",
        "stats",
        "top",
        "set",
        "info",
        "du",
        "warm",
        "quota",
        "storage-class",
        "bench",
        "config",
        "version",
        "demo",
        "doctor",
        "fsck",
        "recover",
        "import",
        "export",
    ]
    .map(|command| (command, flags(&sealfs(&[command, "--help"]))))
    .into();
    for (group, commands) in [
        ("sse", &["audit", "migrate"][..]),
        ("config", &["check", "show", "apply"]),
        (
            "key",
            &[
                "list",
                "test",
                "add",
                "passphrase",
                "remove",
                "rotate",
                "rekey",
                "kit",
                "check-recovery",
                "export-object",
            ],
        ),
        ("object", &["cat"]),
        ("s3ec", &["cat", "head", "rewrap"]),
        ("snapshot", &["create", "list", "delete", "schedule", "restore", "diff"]),
    ] {
        let of_each = commands.iter().map(|command| flags(&sealfs(&[group, command, "--help"])));
        help.insert(group, of_each.flatten().collect());
    }
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for name in PAGES {
        for code in code_of(&page(name)) {
            let known = |flag: &String| help.values().any(|flags| flags.contains(flag));
            if code.starts_with("--") {
                seen += 1;
                wrong.extend(flags(&code).into_iter().filter(|f| !known(f)));
            }
            for command in code.split(['&', ';', '|', '#']).map(str::trim) {
                let Some(rest) = command.strip_prefix("sealfs ") else { continue };
                let Some(first) = rest.split_whitespace().next() else { continue };
                let given = flags(rest);
                match help.get(first) {
                    Some(flags) => {
                        seen += 1;
                        wrong.extend(given.difference(flags).map(|f| format!("{name}: {f}")));
                    }
                    None if first == "--help" => {}
                    None if code.contains("│") => {} // a word in a picture
                    None => wrong.push(format!("{name}: sealfs {first}")),
                }
            }
        }
    }
    assert!(seen > 30, "only {seen} commands and flags were found");
    assert!(wrong.is_empty(), "not in --help: {wrong:?}");
}

#[test]
fn every_constant_that_the_architecture_names_exists() {
    // Guards against a map that points at what was renamed. Constants are the words in capitals
    // between backticks.
    let mut code = String::new();
    for entry in walkdir::WalkDir::new(root().join("src")) {
        let entry = entry.expect("the source tree can be listed");
        if entry.path().extension().is_some_and(|e| e == "rs") {
            code += &fs::read_to_string(entry.path()).expect("a source file");
        }
    }
    let constant = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let named: Vec<_> = code_of(&page("docs/ARCHITECTURE.md"))
        .into_iter()
        .filter(|span| span.contains('_') && span.chars().all(constant) && span != "O_TMPFILE")
        .collect();
    assert!(named.len() > 5, "found {named:?}");
    for name in named {
        assert!(code.contains(&format!("const {name}: ")), "{name} is nowhere in src/");
    }
}

#[test]
fn the_readme_is_short_and_every_message_that_troubleshooting_explains_exists() {
    // Guards against an explanation of a message that was reworded: whoever looks for it finds nothing.
    // Messages are the code in the first column; `…` is what differs.
    assert!(page("README.md").lines().count() <= 150, "the README is a first page");
    let mut code = String::new();
    for entry in walkdir::WalkDir::new(root().join("src")) {
        let entry = entry.expect("the source tree can be listed");
        if entry.path().extension().is_some_and(|e| e == "rs") {
            code += &fs::read_to_string(entry.path()).expect("a source file");
        }
    }
    // A string that goes on in the next line is one.
    let mut joined = String::new();
    let mut lines = code.split("\\\n");
    joined += lines.next().unwrap_or_default();
    lines.for_each(|line| joined += line.trim_start());
    let (mut seen, mut unknown) = (0, Vec::new());
    for line in page("docs/TROUBLESHOOTING.md").lines() {
        let Some(cell) = line.strip_prefix("| ").and_then(|row| row.split(" | ").next()) else {
            continue;
        };
        for message in cell.split('`').skip(1).step_by(2) {
            seen += 1;
            for part in message.split('…').map(str::trim).filter(|part| part.len() > 3) {
                if !joined.contains(part) {
                    unknown.push(part.to_owned());
                }
            }
        }
    }
    assert!(seen > 40, "only {seen} messages are explained");
    assert!(unknown.is_empty(), "nowhere in src/: {unknown:#?}");
}

#[test]
fn every_command_that_takes_long_says_how_far_it_is() {
    // Guards against a command that is silent for an hour: each shows a bar on a terminal, and a line a
    // minute elsewhere, by the one file that knows when a line is due.
    let with_a_bar = [
        ("fsck", "fsck"),
        ("recover", "recover"),
        ("import, export", "exchange"),
        ("warm", "warm"),
        ("warm --pin", "pin"),
        ("du", "du"),
        ("bench", "bench"),
        ("snapshot restore", "snapshot_restore"),
        ("sse audit, sse migrate", "sse"),
        ("s3ec cat", "s3ec"),
        ("sync, umount, demote", "progress"),
    ];
    let code = |file: &str| page(&format!("src/cli/{file}.rs"));
    for (command, file) in with_a_bar {
        let code = code(file);
        assert!(
            code.contains("Lines::new(") && code.contains(" bar("),
            "{command}: src/cli/{file}.rs"
        );
    }
    for (command, file, by) in [
        ("key rekey", "key_rekey", "shown("),
        ("sync", "sync", "Display::new("),
        ("umount", "umount", "Display::new("),
        ("demote", "role", "Display::new("),
        ("the end of an import or export of a store", "volume_side", "Display::new("),
        // What it finds is printed as it is found, which a bar would garble.
        ("snapshot diff", "snapshot_diff", "Lines::new("),
    ] {
        assert!(code(file).contains(by), "{command}: {by} in src/cli/{file}.rs");
    }
}

/// The name that a heading can be linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_within_the_documentation_leads_somewhere() {
    // Guards against pages that are renamed or merged while others still point at them.
    let mut dead = Vec::new();
    for name in PAGES {
        let text = page(name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => root().join(name),
                file => root().join(name).with_file_name("").join(file),
            };
            let Ok(target) = fs::read_to_string(target) else {
                dead.push(format!("{name}: {link}"));
                continue;
            };
            let found = target
                .lines()
                .filter(|l| l.starts_with('#'))
                .any(|heading| anchor(heading.trim_start_matches('#').trim()) == section);
            if !section.is_empty() && !found {
                dead.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(dead.is_empty(), "dead links: {dead:?}");
}

#[test]
fn the_format_page_gives_the_sizes_of_rows_that_the_code_writes() {
    // Guards against a field that is added to a row and not to its specification.
    let id = SegmentId([1; 16]);
    let (ino, flag) = (Ino(2), MarkerRow::encode().len());
    let file = ContentsId { ino, incarnation: 0 };
    let commit = CommitRow {
        journal: sealfs::base::JournalId([0; 16]),
        position: sealfs::base::JournalPos(0),
        sequence: 0,
        time_secs: 0,
        writer_epoch: 0,
        chain: Default::default(),
    };
    let extent = ExtentRow { segment: id, segment_offset: 0, len: 1 };
    let name = keys::dirent(ino, NameHash(8), b"x").len();
    let rows = [
        ("`e`", keys::extent(file, 1).len().to_string(), extent.encode().len()),
        ("`b`", keys::owner(id, file).len().to_string(), flag),
        ("`o`", keys::orphan(ino).len().to_string(), flag),
        ("`r`", keys::reclaim(file).len().to_string(), flag),
        (
            "`s`",
            keys::segment(id).len().to_string(),
            SegmentRow::default().encode_with(&[0; 4]).len(),
        ),
        ("`z`", keys::dead_segment(0, id).len().to_string(), DeadRow::UNBORN.encode().len()),
        ("`h`", keys::history(1).len().to_string(), HistoryRow(Default::default()).encode().len()),
        ("`g` \"volume\"", "7".into(), VolumeRow { created_secs: 0 }.encode().len()),
        ("`g` \"commit\"", keys::commit().len().to_string(), commit.encode().len()),
        ("`g` \"beside\"", keys::beside().len().to_string(), BesideRow::default().encode().len()),
        ("`g` \"stats\"", keys::stats().len().to_string(), Stats::default().encode().len()),
    ];
    let format = page("docs/FORMAT.md");
    for (key, key_bytes, value_bytes) in rows {
        let line = format.lines().find(|l| l.starts_with(&format!("| {key}")));
        let cells: Vec<_> = line.unwrap_or_else(|| panic!("no row {key}")).split(" | ").collect();
        assert_eq!(cells[1], key_bytes, "key of {key}");
        assert_eq!(cells[3], format!("{value_bytes} |"), "value of {key}");
    }
    let entry = |ino| Dirent { ino, kind: Kind::File }.encode().len();
    let line = format.lines().find(|l| l.starts_with("| `d`")).expect("a row");
    let cells: Vec<_> = line.split(" | ").collect();
    assert_eq!(cells[1], format!("{name}…{}", name + 254));
    assert_eq!(cells[3], format!("{}…{} |", entry(Ino(1)), entry(Ino(u64::MAX))));
    let segment = sealfs::commit::pack::SEGMENT_BYTES_MAX;
    assert_eq!(segment, 16_777_216, "documented under Segments");
    let full = segment + 7 + sealfs::store::segments::FOOTER as u64;
    assert_eq!(sealfs::seal::offsets::cipher_len(full), 16_793_719, "documented there too");
}

#[test]
fn every_command_has_a_man_page_and_the_shells_take_the_completions() {
    // Guards against a page that man(1) cannot show, a flag that it lacks, and a script that breaks the
    // shell of whoever presses Tab. Each tool that is not here is said to be skipped.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let to = dir.path().display().to_string();
    sealfs(&["package-files", &to]);
    let top = fs::read_to_string(dir.path().join("man/sealfs.1")).expect("the first page");
    let help = sealfs(&["--help"]);
    let (_, commands) = help.split_once("Commands:\n").expect("a list of commands");
    let commands: Vec<_> = commands
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next().filter(|name| *name != "help"))
        .collect();
    assert!(commands.len() > 10 && !commands.contains(&"package-files"), "{commands:?}");
    for command in commands {
        let page = dir.path().join(format!("man/sealfs-{command}.1"));
        let page = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{command}: {e}"));
        let escaped = command.replace('-', "\\-");
        assert!(top.contains(&format!("sealfs\\-{escaped}")), "{command} is not in sealfs(1)");
        for flag in flags(&sealfs(&[command, "--help"])) {
            let bold = flag.replace('-', "\\-");
            assert!(page.contains(&bold) || page.contains(&flag), "{command}: {flag}");
        }
    }
    let tool = |program: &str, args: &[&str]| match Command::new(program)
        .args(args)
        .current_dir(dir.path())
        .output()
    {
        Err(e) => eprintln!("skipped: {program}: {e}"),
        Ok(output) => assert!(
            output.status.success(),
            "{program} {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    };
    let pages = fs::read_dir(dir.path().join("man")).expect("a folder");
    for page in pages {
        let page = page.expect("an entry").path().display().to_string();
        assert!(!page.contains("help"), "{page}");
        tool("mandoc", &["-T", "lint", "-W", "error", &page]);
    }
    let complete = "COMP_WORDS=(sealfs mo); COMP_CWORD=1; . completions/sealfs.bash; \
                    _sealfs sealfs mo sealfs; [[ ${COMPREPLY[0]} == mount ]]";
    tool("bash", &["-c", complete]);
    tool("zsh", &["-n", "completions/_sealfs"]);
    tool("fish", &["--no-execute", "completions/sealfs.fish"]);
    let version: serde_json::Value =
        serde_json::from_str(&sealfs(&["version", "--json"])).expect("JSON");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}
