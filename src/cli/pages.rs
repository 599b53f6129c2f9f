//! What a package is made with: man pages and completions out of the definitions that `--help` is
//! made of (`sealfs package-files`, which is hidden), and `sealfs version`.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::seal::FORMAT_VERSION;

use super::exit::{Exit, Failure, Outcome};
use super::out::print_json;
use crate::base::{date_of_day, unix_secs};

/// The commit that this was built from, where whoever built it said so (`scripts/package` does).
const COMMIT: Option<&str> = option_env!("SEALFS_COMMIT");

/// Flags of `sealfs version`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs version
  sealfs version --json | jq -r .version")]
pub struct VersionArgs {
    /// One JSON object; its fields are never renamed
    #[arg(long)]
    json: bool,
}

/// Runs `sealfs version`.
pub fn version(args: VersionArgs) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    if !args.json {
        let commit = COMMIT.map(|commit| format!(" ({commit})"));
        println!("sealfs {version}{}", commit.unwrap_or_default());
        return Ok(());
    }
    print_json(&serde_json::json!({
        "name": "sealfs",
        "version": version,
        "commit": COMMIT,
        "format": FORMAT_VERSION,
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "debug": cfg!(debug_assertions),
    }))
}

/// Flags of `sealfs package-files`.
#[derive(Args, Clone, Debug)]
pub struct PackageFilesArgs {
    /// Where the folders `man` and `completions` are made
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Runs `sealfs package-files`.
pub fn package_files(args: PackageFilesArgs, cli: Command) -> Outcome {
    write_all(&args.dir, cli).map_err(|e| {
        let shown = args.dir.display();
        Failure::new(Exit::General, format!("cannot write what a package needs to {shown}: {e}"))
    })
}

fn write_all(dir: &Path, mut cli: Command) -> io::Result<()> {
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    std::fs::create_dir_all(&man)?;
    std::fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut cli.clone(), "sealfs", &completions)?;
    }
    cli = cli.disable_help_subcommand(true);
    cli.build();
    write_pages(&cli, "sealfs", &man)
}

/// The day that the pages bear: today, or that of `SOURCE_DATE_EPOCH`, so that building twice gives the
/// same (<https://reproducible-builds.org/specs/source-date-epoch/>).
fn date() -> String {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|secs| secs.parse::<u64>().ok());
    let (year, month, day) = date_of_day(given.unwrap_or_else(unix_secs) / 86_400);
    format!("{year}-{month:02}-{day:02}")
}

/// The page of `command`, which is called `name` in full, and those of its subcommands.
fn write_pages(command: &Command, name: &str, dir: &Path) -> io::Result<()> {
    let page = name.replace(' ', "-");
    let mut roff = Vec::new();
    let man = Man::new(command.clone().display_name(page.clone()))
        .title(page.to_uppercase())
        .source(concat!("sealfs ", env!("CARGO_PKG_VERSION")))
        .manual("sealfs manual")
        .date(date());
    man.render_title(&mut roff)?;
    man.render_name_section(&mut roff)?;
    man.render_synopsis_section(&mut roff)?;
    man.render_description_section(&mut roff)?;
    if command.get_arguments().any(|arg| !arg.is_hide_set()) {
        man.render_options_section(&mut roff)?;
    }
    if command.get_subcommands().any(|sub| !sub.is_hide_set()) {
        man.render_subcommands_section(&mut roff)?;
    }
    let mut text = String::from_utf8_lossy(&roff).into_owned();
    text += &sections(&command.get_after_help().map(ToString::to_string).unwrap_or_default());
    text += &see_also(command, name);
    std::fs::write(dir.join(format!("{page}.1")), text)?;
    for sub in command.get_subcommands().filter(|sub| is_shown(sub)) {
        write_pages(sub, &format!("{name} {}", sub.get_name()), dir)?;
    }
    Ok(())
}

fn is_shown(command: &Command) -> bool {
    !command.is_hide_set()
}

/// The text behind the flags of `--help` as roff: a line `Title:` with what is indented below it is
/// a section, whose lines stay as they are.
fn sections(text: &str) -> String {
    let (mut out, mut block) = (String::new(), false);
    for line in text.lines() {
        let title = line.strip_suffix(':').filter(|title| !title.starts_with(' '));
        match title.filter(|title| title.split(' ').count() <= 2) {
            Some(title) => {
                out += if block { ".fi\n" } else { "" };
                out += &format!(".SH {}\n.nf\n", title.to_uppercase());
                block = true;
            }
            None => {
                let indented = line.starts_with(' ');
                if block && !indented && !line.is_empty() {
                    out += ".fi\n.PP\n";
                    block = false;
                } else if out.is_empty() && !line.is_empty() {
                    out += ".SH NOTES\n";
                }
                if !line.is_empty() || block {
                    out += &escaped(line);
                    out.push('\n');
                }
            }
        }
    }
    out + if block { ".fi\n" } else { "" }
}

/// A line of text that roff takes for nothing else.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line,
    }
}

/// The pages around this one.
fn see_also(command: &Command, name: &str) -> String {
    let mut pages: Vec<String> = match name.rsplit_once(' ') {
        Some((above, _)) => vec![above.replace(' ', "-")],
        None => Vec::new(),
    };
    let below = command.get_subcommands().filter(|sub| is_shown(sub));
    pages.extend(below.map(|sub| format!("{} {}", name, sub.get_name()).replace(' ', "-")));
    match pages.is_empty() {
        true => String::new(),
        false => {
            let pages: Vec<_> =
                pages.iter().map(|page| format!(".BR {} (1)", escaped(page))).collect();
            format!(".SH SEE ALSO\n{}\n", pages.join(" ,\n").replace(" ,\n", ",\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_the_flags_keeps_its_lines_in_roff() {
        // Guards against examples run together into one paragraph, and a line that begins with a
        // point taken for a macro and lost.
        let text = "Examples:\n  sealfs mount a b\n  .hidden\n\nIt returns. `-x` ends it.";
        let roff = sections(text);
        assert_eq!(
            roff,
            ".SH EXAMPLES\n.nf\n  sealfs mount a b\n  .hidden\n\n.fi\n.PP\nIt returns. `\\-x` ends it.\n"
        );
        assert_eq!(sections("Columns: a\n.b"), ".SH NOTES\nColumns: a\n\\&.b\n");
        assert_eq!(sections(""), "");
    }
}
