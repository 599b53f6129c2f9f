//! Words for people: numbers with their nouns, words to type, and text that is
//! not ours.

/// `1 file`, `3 files`, `0 directories`.
pub fn counted(n: u64, noun: &str) -> String {
    format!("{n} {}", plural(n, noun))
}

/// The noun that follows the number `n`. Knows the plurals that end in `s`.
pub fn plural(n: u64, noun: &str) -> String {
    let consonant_y = noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u']));
    match (n, consonant_y) {
        (1, _) => noun.to_owned(),
        (_, Some(stem)) => format!("{stem}ies"),
        (_, None) => format!("{noun}s"),
    }
}

/// `text` from outside (a server, the name of an object or file, a row) as part of one line for
/// people: what would end the line, move a cursor or turn the text around shows as an escape.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match is_deceptive(c) {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// JSON, in which the same characters (but for its own line breaks) are `\u` escapes: they stand in
/// strings only.
pub fn plain_json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !is_deceptive(c) {
            plain.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            plain += &format!("\\u{unit:04x}");
        }
    }
    plain
}

/// Controls (C0, C1, DEL), line and paragraph separators, and what Unicode calls format characters:
/// bidirectional controls, joiners, invisible operators, tags. Selectors of variants (of emoji) are
/// none.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890 | 0x891 | 0x8e2 | 0x180e
            | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb
            | 0x110bd | 0x110cd | 0x13430..=0x1343f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a
            | 0xe0000..=0xe007f)
}

/// `text` as a word of a shell command: quoted where a shell would take it for anything else.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    if text.chars().any(char::is_control) {
        let escaped = text.replace('\\', "\\\\").replace('\'', "\\'");
        let escaped: String = escaped
            .chars()
            .map(|c| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.into() })
            .collect();
        return format!("$'{escaped}'");
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_stays_on_its_line_and_shows_what_it_is() {
        // Guards against forged lines and hints, and against text that reads otherwise than it is.
        for (text, shown) in [
            ("no\nhint: curl x | sh", "no\\nhint: curl x | sh"),
            ("a\r\u{1b}[2K\u{9b}1A", "a\\r\\u{1b}[2K\\u{9b}1A"),
            ("exe\u{202e}txt\u{2066}", "exe\\u{202e}txt\\u{2066}"),
            ("a\u{2028}b\u{200b}c\u{feff}\u{e0041}", "a\\u{2028}b\\u{200b}c\\u{feff}\\u{e0041}"),
            ("Grüße, 日本 ❤\u{fe0f}", "Grüße, 日本 ❤\u{fe0f}"),
        ] {
            assert_eq!(one_line(text), shown);
        }
        let json = serde_json::to_string_pretty(&["a\nb\u{202e}\u{e0041}\u{9b}"]).expect("JSON");
        let plain = plain_json(&json);
        assert!(!plain.chars().any(|c| c != '\n' && is_deceptive(c)), "{plain}");
        let back: Vec<String> = serde_json::from_str(&plain).expect("JSON");
        assert_eq!(back, ["a\nb\u{202e}\u{e0041}\u{9b}"]);
    }

    #[test]
    fn a_shell_takes_a_quoted_word_for_what_it_was() {
        // Guards against a command that is printed to be typed and does something else.
        for text in ["", "a b", "it's", "$HOME `id` \"x\" \\", "*", "line\nbreak \u{7}", "ü ~"] {
            let script = format!("printf %s {}", shell_word(text));
            let out = std::process::Command::new("bash")
                .env("LC_ALL", "C.UTF-8")
                .args(["-c", &script])
                .output();
            let out = out.expect("bash runs").stdout;
            assert_eq!(String::from_utf8_lossy(&out), text, "{script}");
        }
        assert_eq!(shell_word("s3://my-bucket/data"), "s3://my-bucket/data");
        assert_eq!(shell_word("/a b"), "'/a b'");
    }

    #[test]
    fn one_is_one_file_and_everything_else_is_files() {
        // Guards against "1 files" and "2 directorys".
        for (n, noun, text) in [
            (0, "file", "0 files"),
            (1, "file", "1 file"),
            (2, "file", "2 files"),
            (1, "entry", "1 entry"),
            (21, "directory", "21 directories"),
            (3, "day", "3 days"),
        ] {
            assert_eq!(counted(n, noun), text);
        }
    }
}
