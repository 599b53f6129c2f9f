//! Which files are meant: `--include` and `--exclude`, with the patterns of rclone.
//!
//! Rules are tried in the order of the command line, the first that matches decides. What none
//! matches is taken, unless there is an `--include`: then it is not. Pure.
//!
//! | pattern | matches |
//! | --- | --- |
//! | `*.jpg` | files of any directory: without a leading slash it is compared with the end of the path |
//! | `/*.jpg` | files at the top only |
//! | `*`, `?`, `[a-z]` | never a slash |
//! | `**` | anything, slashes too |
//! | `{jpg,png}` | either |
//! | `dir/` | everything below `dir` |
//!
//! Source: <https://rclone.org/filtering/>.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};

/// One rule.
#[derive(Clone, Debug)]
struct Rule {
    include: bool,
    matcher: GlobMatcher,
    /// Whether it matches all below whatever directory it matches.
    is_deep: bool,
}

/// The rules of one run.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    rules: Vec<Rule>,
}

/// A pattern that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPattern {
    /// As given.
    pub pattern: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a pattern: {}", self.pattern, self.why)
    }
}

impl std::error::Error for BadPattern {}

impl Filter {
    /// The rules in their order: whether each includes, and its pattern.
    ///
    /// # Errors
    /// A pattern that is none, or one with a regular expression, which rclone has and we have not.
    pub fn new<'a>(rules: impl IntoIterator<Item = (bool, &'a str)>) -> Result<Filter, BadPattern> {
        let rules = rules.into_iter().map(|(include, pattern)| rule(include, pattern));
        Ok(Filter { rules: rules.collect::<Result<_, _>>()? })
    }

    /// Whether there are no rules.
    pub fn takes_all(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether the file at `path` (relative, without a leading slash) is meant.
    pub fn takes(&self, path: &str) -> bool {
        match self.rules.iter().find(|rule| rule.matcher.is_match(path)) {
            Some(rule) => rule.include,
            None => self.rules.iter().all(|rule| !rule.include),
        }
    }

    /// Whether the directory at `path` itself is meant, where directories count as such.
    pub fn takes_dir(&self, path: &str) -> bool {
        path.is_empty() || self.takes(&format!("{path}/"))
    }

    /// Whether nothing below the directory at `path` can be meant, so that it need not be looked at.
    pub fn prunes(&self, path: &str) -> bool {
        let below = format!("{path}/");
        for rule in &self.rules {
            match rule {
                Rule { include: true, .. } => return false,
                Rule { is_deep: true, matcher, .. } if matcher.is_match(&below) => return true,
                _ => {}
            }
        }
        false
    }
}

fn rule(include: bool, pattern: &str) -> Result<Rule, BadPattern> {
    let bad = |why: String| BadPattern { pattern: pattern.to_owned(), why };
    if pattern.contains("{{") {
        return Err(bad("regular expressions between {{ and }} are not known here".into()));
    }
    let (anchored, rest) = match pattern.strip_prefix('/') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    if rest.is_empty() {
        return Err(bad("it is empty".into()));
    }
    let is_dir = rest.ends_with('/');
    let is_deep = is_dir || rest.ends_with("/**") || rest == "**";
    let mut glob = if anchored { String::new() } else { "**/".to_owned() };
    glob.push_str(&translated(rest));
    if is_dir {
        glob.push_str(ANYTHING);
    }
    let made = GlobBuilder::new(&glob).literal_separator(true).backslash_escape(true).build();
    let matcher = made.map_err(|e| bad(e.kind().to_string()))?.compile_matcher();
    Ok(Rule { include, matcher, is_deep })
}

/// What `**` of rclone is here: anything, also nothing, slashes or not. `**` of `globset` stands
/// for whole directories only.
const ANYTHING: &str = "{*,*/**/*}";

/// The pattern with every `**` outside of brackets replaced.
fn translated(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                out.push(c);
                out.extend(chars.next());
            }
            '[' => {
                in_class = true;
                out.push(c);
            }
            ']' => {
                in_class = false;
                out.push(c);
            }
            '*' if !in_class && chars.peek() == Some(&'*') => {
                while chars.peek() == Some(&'*') {
                    chars.next();
                }
                out.push_str(ANYTHING);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled_text;

    fn filter(rules: &[(bool, &str)]) -> Filter {
        Filter::new(rules.iter().copied()).expect("patterns")
    }

    #[test]
    fn patterns_match_what_the_page_of_rclone_says() {
        // Guards against an exclude that lets through what rclone's would not, so that private
        // files leave; the cases are those of rclone.org/filtering.
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "file.jpg",
                &["file.jpg", "directory/file.jpg"],
                &["afile.jpg", "directory/afile.jpg"],
            ),
            ("/file.jpg", &["file.jpg"], &["afile.jpg", "directory/file.jpg"]),
            ("*.jpg", &["file.jpg", "directory/file.jpg"], &["file.jpg/anotherfile.png"]),
            ("**", &["file.jpg", "directory/file.jpg", "a/b/c"], &[]),
            ("dir/**.jpg", &["dir/a.jpg", "x/dir/b/c.jpg"], &["dir.jpg", "xdir/a.jpg"]),
            ("l?ss", &["less", "lass", "x/loss"], &["floss", "l/ss"]),
            ("h[ae]llo", &["hello", "hallo"], &["hullo"]),
            ("{one,two}_potato", &["one_potato", "two_potato"], &["three_potato", "_potato"]),
            ("\\*.jpg", &["*.jpg"], &["a.jpg"]),
            ("dir/", &["dir/a", "x/dir/a/b"], &["dir", "dirx/a"]),
            ("/dir/", &["dir/a"], &["x/dir/a"]),
            ("a/**/b", &["a/x/b", "a/x/y/b"], &["a/b", "ab"]),
            ("a**b", &["ab", "axb", "a/b", "ax/y/zb"], &["a", "b"]),
            ("/dir/*.txt", &["dir/a.txt"], &["dir/x/a.txt"]),
            ("[*]x", &["*x"], &["ax"]),
        ];
        for (pattern, yes, no) in cases {
            let filter = filter(&[(true, pattern)]);
            for path in *yes {
                assert!(filter.takes(path), "{pattern} {path}");
            }
            for path in *no {
                assert!(!filter.takes(path), "{pattern} {path}");
            }
        }
        for bad in ["", "/", "{{.*}}", "[a", "{a"] {
            assert!(Filter::new([(true, bad)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        // Guards against an order that is lost, and against files that no rule names.
        let first_out = filter(&[(false, "secret*"), (true, "*.txt")]);
        assert!(first_out.takes("a.txt") && !first_out.takes("secret.txt"));
        assert!(!first_out.takes("a.png"), "an include leaves out the rest");
        let first_in = filter(&[(true, "*.txt"), (false, "secret*")]);
        assert!(first_in.takes("secret.txt"));
        let out = filter(&[(false, "*.bak")]);
        assert!(out.takes("a") && !out.takes("x/a.bak"));
        assert!(Filter::default().takes("anything"));
    }

    #[test]
    fn a_directory_is_left_out_whole_only_where_nothing_below_can_be_meant() {
        // Guards against files below an excluded directory that an earlier include names.
        let f = filter(&[(false, "cache/"), (false, "/tmp/**"), (false, "*.o")]);
        assert!(f.prunes("cache") && f.prunes("x/cache") && f.prunes("tmp") && !f.prunes("x/tmp"));
        assert!(!f.prunes("x.o") && !f.takes_dir("cache") && f.takes_dir("x"));
        let f = filter(&[(true, "cache/keep"), (false, "cache/")]);
        assert!(!f.prunes("cache") && f.takes("cache/keep") && !f.takes("cache/other"));
    }

    #[test]
    fn no_pattern_makes_a_panic_and_all_is_taken_or_not() {
        // Guards against a pattern that ends the run half way, and one that prunes what it takes.
        let seeds = ["*.tmp", "/2026/**", "a/b?/[a-c]*.{jpg,png}", "dir/", "\\*x", "**/y/**"];
        garbled_text(&seeds, &["**", "{", "}", "[", "]", "\\", "/", "é", "!"], |pattern| {
            for include in [true, false] {
                let Ok(filter) = Filter::new([(include, pattern)]) else { continue };
                for path in ["a", "a/b", "2026/x.tmp", "dir/y/z", "é/\n"] {
                    let (_, above) = (filter.takes_dir(path), path.split('/').next().unwrap_or(""));
                    let pruned = above != path && filter.prunes(above);
                    assert!(!(pruned && filter.takes(path)), "{include} {pattern:?} {path}");
                }
            }
        });
    }
}
