//! What messages, hints and help tell somebody to type, against the commands and flags that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};

use super::Cli;

/// Flags of other programs that are named, and the beginning of one of ours (`cli/role`).
const OF_OTHERS: &[&str] = &[
    "symlink-target", // the name of a header
    "object-key-file",
    "volume",
    "epoch",
    "keyring", // open-object
    "device",
    "cap-add", // docker
    "target",
    "mount",  // nsenter
    "key-id", // aws
    "accept",
];
/// What follows the name of the program where no command is meant.
const PROSE: &[&str] = &["manual"];

fn sources() -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = walkdir::WalkDir::new(src).into_iter().map(|entry| entry.expect("lists"));
    let is_code = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(".rs") && !name.ends_with("tests.rs")
    };
    files.map(walkdir::DirEntry::into_path).filter(|path| is_code(path)).collect()
}

/// The strings in a source file, as they are printed; neither byte strings nor unit tests.
fn strings(code: &str) -> Vec<String> {
    let code = code.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let (before, from) = rest.split_at(at);
        rest = &from[1..];
        if from.starts_with("//") {
            rest = from.split_once('\n').map_or("", |(_, rest)| rest);
        } else if from.starts_with('\'') {
            // A letter between quotes, not a lifetime.
            let escaped = rest.starts_with('\\');
            let end = rest.char_indices().skip(1 + usize::from(escaped)).find(|(_, c)| *c == '\'');
            if let Some((end, _)) =
                end.filter(|(end, _)| escaped || rest[..*end].chars().count() == 1)
            {
                rest = &rest[end + 1..];
            }
        } else if from.starts_with('"') {
            let hashes = before.chars().rev().take_while(|c| *c == '#').count();
            let prefix = before[..before.len() - hashes].chars().next_back();
            let (text, behind) = match prefix {
                Some('r') => rest.split_once(&format!("\"{}", "#".repeat(hashes))).expect("ends"),
                _ => rest.split_at(end_of_string(rest)),
            };
            rest = behind.trim_start_matches('"');
            if prefix != Some('b') {
                found.push(if prefix == Some('r') { text.into() } else { unescaped(text) });
            }
        }
    }
    found
}

fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    let end = text.char_indices().find(|(_, c)| {
        let is_end = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        is_end
    });
    end.expect("a string ends").0
}

fn unescaped(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('\n')) => while chars.next_if(|c| c.is_whitespace()).is_some() {},
            ('\\', Some('n')) => {
                chars.next();
                out.push('\n');
            }
            ('\\', Some(_)) => out.extend(chars.next()),
            (c, _) => out.push(c),
        }
    }
    out
}

/// A command line somewhere in a text: its words, and whether the text shows it as something to type.
struct Line<'a> {
    words: Vec<&'a str>,
    is_typed: bool,
}

fn lines(text: &str) -> Vec<Line<'_>> {
    let mut found = Vec::new();
    for (at, name) in text.match_indices("sealfs ") {
        let before = &text[..at];
        if before.chars().next_back().is_some_and(|c| c.is_alphanumeric() || "-/._".contains(c)) {
            continue;
        }
        let is_typed = before.is_empty()
            || [": ", "`", "\n  ", "sudo ", "DIR "].iter().any(|lead| before.ends_with(lead));
        let mut words = Vec::new();
        for word in text[at + name.len()..].lines().next().unwrap_or_default().split(' ') {
            if ["|", "&&", ">", "#", "or", "and", ""].contains(&word) {
                break;
            }
            let bare = word.trim_end_matches([',', ';', ':', '.', ')', '`', '"', '\'']);
            words.push(bare.trim_start_matches(['(', '[']));
            if bare.len() < word.len() {
                break;
            }
        }
        found.push(Line { words, is_typed });
    }
    found
}

/// The flag that a word of a text begins with.
fn flag(word: &str) -> Option<&str> {
    let name = word.trim_start_matches(['(', '`', '[', '\'', '"']).strip_prefix("--")?;
    let end = name.find(|c: char| !c.is_ascii_lowercase() && c != '-' && !c.is_ascii_digit());
    let name = &name[..end.unwrap_or(name.len())];
    name.starts_with(|c: char| c.is_ascii_lowercase()).then_some(name)
}

fn has(command: &Command, flag: &str) -> bool {
    flag == "help" || command.get_arguments().any(|arg| arg.get_long() == Some(flag))
}

fn is_known(cli: &Command, flag: &str) -> bool {
    has(cli, flag) || flag == "version" || cli.get_subcommands().any(|one| is_known(one, flag))
}

/// What is wrong with a command line, if anything.
fn wrong(cli: &Command, line: &Line<'_>) -> Option<String> {
    let mut words = line.words.iter();
    let first = words.next().filter(|word| !word.is_empty())?;
    let Some(mut command) = cli.find_subcommand(first) else {
        let is_open = first.starts_with(['-', '{', '…']);
        let is_prose = !line.is_typed || is_open || PROSE.contains(first);
        return (!is_prose).then(|| format!("no command {first}"));
    };
    if command.has_subcommands() {
        let second = words.next();
        match second.and_then(|second| command.find_subcommand(second)) {
            Some(found) => command = found,
            None if !line.is_typed || second.is_some_and(|word| word.starts_with("--")) => {}
            None => return Some(format!("{first} has no {second:?}")),
        }
    }
    let unknown = words
        .filter_map(|word| flag(word))
        .find(|flag| !has(command, flag) && !OF_OTHERS.contains(flag));
    unknown.map(|flag| format!("{} has no --{flag}", command.get_name()))
}

fn helps(command: &Command, found: &mut Vec<(String, String)>) {
    let help = command.clone().render_long_help().to_string().replace("Usage: sealfs ", "");
    found.push((format!("help of {}", command.get_name()), help));
    command.get_subcommands().for_each(|one| helps(one, found));
}

#[test]
fn what_somebody_is_told_to_type_exists() {
    // Guards against a hint that names a command or a flag which was renamed, or was never there: whoever
    // follows it is told of a mistake that is not his.
    let mut cli = Cli::command();
    cli.build();
    let mut texts = Vec::new();
    for path in sources() {
        let code = std::fs::read_to_string(&path).expect("a source file");
        texts.extend(strings(&code).into_iter().map(|text| (path.display().to_string(), text)));
    }
    let in_code = texts.len();
    helps(&cli, &mut texts);
    let (mut seen, mut flags, mut bad) = (0, BTreeSet::new(), Vec::new());
    for (place, text) in &texts {
        for line in lines(text) {
            seen += usize::from(line.is_typed);
            bad.extend(wrong(&cli, &line).map(|why| format!("{place}: {why}: {text}")));
        }
        for flag in text.split_whitespace().filter_map(flag) {
            flags.insert(flag);
            if !is_known(&cli, flag) && !OF_OTHERS.contains(&flag) {
                bad.push(format!("{place}: no command has --{flag}: {text}"));
            }
        }
    }
    eprintln!("{in_code} strings, {seen} command lines, {} flags", flags.len());
    assert!(in_code > 3000 && seen > 200 && flags.len() > 80, "{in_code} {seen} {flags:?}");
    assert!(bad.is_empty(), "{:#?}", bad);
}

/// Every example that help shows, without what a shell does with it.
fn examples(command: &Command) -> Vec<Vec<String>> {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("  sealfs ")) {
        for one in ["sealfs ", line].concat().split(" && ") {
            let end = [" | ", " > ", " # ", "; "].iter().filter_map(|end| one.find(end)).min();
            let one = one[..end.unwrap_or(one.len())].trim();
            let words = one.split_whitespace().filter(|word| !word.contains('<'));
            let mut joined: Vec<String> = Vec::new();
            let mut is_open = false;
            for word in words {
                match joined.last_mut().filter(|_| is_open) {
                    Some(last) => *last += &format!(" {word}"),
                    None => joined.push(word.into()),
                }
                is_open ^= word.matches('\'').count() % 2 == 1;
            }
            found.extend(joined.first().is_some_and(|w| w == "sealfs").then_some(joined));
        }
    }
    found.extend(command.get_subcommands().flat_map(examples));
    found
}

#[test]
fn every_example_in_help_is_taken() {
    // Guards against an example that was right before a flag became required, or lost its value.
    let cli = Cli::command();
    let all = examples(&cli);
    assert!(all.len() > 100, "{} examples", all.len());
    let bad: Vec<_> = all
        .into_iter()
        .filter(|words| words[1..] != ["mount", "vault"]) // the name of a file, `conf` makes arguments of it
        .filter_map(|words| {
            let error = cli.clone().try_get_matches_from(&words).err()?;
            Some(format!("{}: {error}", words.join(" ")))
        })
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn strings_are_found_as_they_are_printed() {
    let code = "let a = b\"no\"; // \"no\"\nf('\"', '\\'', \"one \\\"x\\\" \\\n    two\", r#\"sealfs \"q\"\"#);";
    assert_eq!(strings(code), ["one \"x\" two", "sealfs \"q\""]);
    let line = &lines("try: sealfs key add STORE --label x; or not")[0];
    assert_eq!((&*line.words, line.is_typed), (&["key", "add", "STORE", "--label", "x"][..], true));
}
