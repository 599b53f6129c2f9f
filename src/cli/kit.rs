//! The recovery kit: one page to print, with all that a person needs to get at a volume again.
//!
//! Pure: facts in, text or HTML out. The HTML names nothing outside of itself. Who makes a kit, and
//! where it is written, is `key_kit`.

use std::fmt::Write;

use qrcode::render::{svg, unicode};
use qrcode::{EcLevel, QrCode};
use zeroize::Zeroizing;

use crate::base::shell_word;

/// What a kit says.
pub(super) struct Kit {
    /// STORE, as it was given.
    pub store: String,
    /// STORE with the flags that reach it, as they are typed in a shell.
    pub address: String,
    /// The volume id.
    pub volume: String,
    /// Number and label of the recovery key's slot.
    pub slot: String,
    /// The date it was made, in UTC.
    pub made: String,
    /// The last commit at that time.
    pub commit: u64,
    /// Epoch and revision of the keyring at that time.
    pub epoch: u32,
    pub revision: u64,
    /// The recovery key, in groups separated by hyphens.
    pub key: Zeroizing<String>,
}

const ABOUT: &str = "Whoever holds this sheet, and can read the bucket, reads everything in the volume. \
    Keep it where a house key would be too easy to find: in a safe, with a notary, never beside the \
    machine and never in the bucket. Credentials for the bucket are not on it; you need those as well.";
const TYPE_IT: &str = "13 groups of five letters and digits. Upper and lower case, spaces and hyphens do not \
    matter; there is no I, L, O or U in it. The last character of each group checks the group.";
const TRUST: &str = "A machine that has never seen the volume cannot know how far it had come. Refuse a \
    bucket that is older than this sheet:";
const AFTER: &str = "This sheet stays valid when passphrases are changed and keys are rotated. It ends when \
    its slot is removed, which is what to do if somebody else may have seen it:";
const WITHOUT: &str = "Every byte is specified in docs/FORMAT.md, and scripts/open-object of the same source is \
    an independent reader (Python 3 with the package cryptography). It opens any object, one at a time:";

impl Kit {
    fn groups(&self) -> impl Iterator<Item = &str> {
        self.key.split('-')
    }

    fn code(&self) -> Option<QrCode> {
        // Half of it may be stained; letters, digits and hyphens take little room.
        QrCode::with_error_correction_level(self.key.as_bytes(), EcLevel::Q).ok()
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("Store", self.store.clone()),
            ("Volume", self.volume.clone()),
            ("Key slot", self.slot.clone()),
            ("Made", self.made.clone()),
            ("Last commit then", self.commit.to_string()),
            ("Keyring then", format!("epoch {}, revision {}", self.epoch, self.revision)),
        ]
    }

    fn restore(&self) -> Vec<String> {
        let (address, commit, volume) = (&self.address, self.commit, &self.volume);
        vec![
            "install -m 600 /dev/null kit.key   # type the recovery key into this file".into(),
            "sealfs key check-recovery --recovery-file kit.key".into(),
            format!("sealfs mount {address} DIR --recovery-file kit.key \\"),
            format!("  --volume-id {volume} --at-least {commit}"),
        ]
    }

    fn trust(&self) -> Vec<String> {
        let (address, epoch, revision) = (&self.address, self.epoch, self.revision);
        vec![
            format!("sealfs key list {address} --recovery-file kit.key"),
            format!(
                "# must say volume {}, epoch {epoch} or later, revision {revision} or later",
                self.volume
            ),
        ]
    }

    fn after(&self) -> Vec<String> {
        let slot = self.slot.split(' ').next().unwrap_or_default();
        vec![format!("sealfs key remove {} {slot}", self.address)]
    }

    fn without(&self) -> Vec<String> {
        let get = |name: &str, file: &str| match self.store.strip_prefix("file://") {
            Some(dir) => format!("cp {} {file}", shell_word(&format!("{dir}/{name}"))),
            None => format!("aws s3 cp {} {file}", shell_word(&format!("{}/{name}", self.store))),
        };
        vec![
            get("keyring", "keyring"),
            get("seg/ab/ab12…", "object.bin"),
            "open-object --keyring keyring --recovery-file kit.key seg/ab/ab12… object.bin > plain"
                .into(),
        ]
    }

    /// The sections behind the key: title, sentence, commands.
    fn sections(&self) -> Vec<(&'static str, &'static str, Vec<String>)> {
        let empty = "Install sealfs, have credentials for the bucket, and:";
        vec![
            ("On an empty machine", empty, self.restore()),
            ("What to trust", TRUST, self.trust()),
            ("Afterwards", AFTER, self.after()),
            ("Without sealfs", WITHOUT, self.without()),
        ]
    }

    /// For a terminal or a text file; `on_terminal`: with colours that a camera can read.
    pub(super) fn text(&self, on_terminal: bool) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(16 << 10));
        // Writing to a string cannot fail.
        let _ = write!(out, "SEALFS RECOVERY KIT\n\n{}\n\n", wrapped(ABOUT));
        for (what, value) in self.facts() {
            let _ = writeln!(out, "  {what:<18}{value}");
        }
        let _ = write!(out, "\nRECOVERY KEY\n\n{}\n\n", wrapped(TYPE_IT));
        for (n, group) in self.groups().enumerate() {
            let _ = write!(out, "{}{:>4}: {group}", if n % 5 == 0 { "\n" } else { "" }, n + 1);
        }
        out.push_str("\n\n");
        if let Some(code) = self.code() {
            let drawn = Zeroizing::new(code.render::<unicode::Dense1x2>().build());
            for line in drawn.lines() {
                let _ = match on_terminal {
                    true => writeln!(out, "\x1b[30;107m{line}\x1b[0m"),
                    false => writeln!(out, "{line}"),
                };
            }
        }
        for (title, sentence, commands) in self.sections() {
            let _ = write!(out, "\n{}\n\n{}\n\n", title.to_uppercase(), wrapped(sentence));
            commands.iter().for_each(|command| {
                let _ = writeln!(out, "  {command}");
            });
        }
        out
    }

    /// A whole page, for a printer.
    pub(super) fn html(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(64 << 10));
        out.push_str(HEAD);
        let _ = write!(out, "<h1>sealfs recovery kit</h1>\n<p>{}</p>\n<table>\n", escaped(ABOUT));
        for (what, value) in self.facts() {
            let _ = writeln!(out, "<tr><th>{what}</th><td>{}</td></tr>", escaped(&value));
        }
        let _ = write!(out, "</table>\n<h2>Recovery key</h2>\n<p>{}</p>\n", escaped(TYPE_IT));
        out.push_str("<div class=\"key\"><ol>\n");
        for group in self.groups() {
            let _ = writeln!(out, "<li>{}</li>", escaped(group));
        }
        out.push_str("</ol>\n");
        if let Some(code) = self.code() {
            let drawn = code.render::<svg::Color>().min_dimensions(220, 220).build();
            let drawn = Zeroizing::new(drawn);
            // Behind the declaration that a separate SVG file begins with.
            out.push_str(drawn.find("<svg").map_or("", |at| &drawn[at..]));
        }
        out.push_str("\n</div>\n");
        for (title, sentence, commands) in self.sections() {
            let commands = escaped(&commands.join("\n"));
            let _ = write!(
                out,
                "<h2>{title}</h2>\n<p>{}</p>\n<pre>{commands}</pre>\n",
                escaped(sentence)
            );
        }
        out.push_str("</body>\n</html>\n");
        out
    }
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<title>sealfs recovery kit</title>
<style>
@page { margin: 16mm; }
body { font: 11pt/1.4 serif; max-width: 46em; margin: 1em auto; padding: 0 1em; color: #000; background: #fff; }
h1 { font-size: 20pt; margin: 0 0 .4em; }
h2 { font-size: 13pt; margin: 1.2em 0 .3em; break-after: avoid; }
p { margin: .3em 0; }
table { border-collapse: collapse; margin: .6em 0; }
th { text-align: left; font-weight: normal; padding-right: 2em; vertical-align: top; }
td, pre, li { font-family: monospace; }
td { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #999; padding: .4em .6em; }
.key { display: flex; gap: 2em; align-items: center; break-inside: avoid; border: 2px solid #000; padding: .6em; }
.key ol { columns: 2; flex: 1; font-size: 14pt; letter-spacing: .12em; margin: 0; }
.key svg { width: 52mm; height: 52mm; }
pre, tr { break-inside: avoid; }
</style>
</head>
<body>
";

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// Lines of at most 78 characters.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let room = width + 1 + word.chars().count() <= 78;
        match (width, room) {
            (0, _) => {}
            (_, true) => out.push(' '),
            (_, false) => {
                out.push('\n');
                width = 0;
            }
        }
        width += word.chars().count() + usize::from(width > 0);
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::RecoveryKey;

    fn kit() -> Kit {
        Kit {
            store: "s3://b/<a&b>".into(),
            address: "'s3://b/<a&b>' --region eu-1".into(),
            volume: "2ce2e57236cc876fe5efb913879c0120".into(),
            slot: "3 (paper)".into(),
            made: "2026-11-26".into(),
            commit: 4711,
            epoch: 2,
            revision: 5,
            key: RecoveryKey::from_bytes(&[7; 32]).to_text(),
        }
    }

    #[test]
    fn both_forms_say_all_that_is_needed_and_the_key_can_be_typed_from_them() {
        // Guards against a sheet that lacks what somebody needs who has nothing else, or on which a
        // group is cut; and against a store's name that breaks the page.
        let kit = kit();
        let (text, html) = (kit.text(false), kit.html());
        for page in [&text, &html] {
            for needed in [
                "2ce2e57236cc876fe5efb913879c0120",
                "--at-least 4711",
                "epoch 2",
                "check-recovery",
                "sealfs key remove",
                "open-object --keyring keyring",
            ] {
                assert!(page.contains(needed), "{needed} in {}", **page);
            }
            assert!(kit.groups().all(|group| page.contains(group)));
        }
        assert!(text.contains("'s3://b/<a&b>' --region eu-1"));
        assert!(html.contains("s3://b/&lt;a&amp;b&gt;") && !html.contains("<a&b>"));
        for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
            let left = html.replace("http://www.w3.org/2000/svg", "");
            assert!(!left.contains(outside), "{outside}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100));
        assert!(html.contains("<svg") && html.ends_with("</html>\n"));
    }

    #[test]
    fn long_sentences_are_wrapped_between_words() {
        // Guards against a kit that a terminal or printer cuts off.
        let out = wrapped(ABOUT);
        assert!(out.lines().count() > 2 && out.lines().all(|line| line.len() <= 78));
        let joined: Vec<_> = out.split_whitespace().collect();
        assert_eq!(joined, ABOUT.split_whitespace().collect::<Vec<_>>());
    }
}
