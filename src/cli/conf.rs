//! `NAME.conf`: a mount described once, for `sealfs mount NAME`, fstab and systemd.
//!
//! The file has a line `name = value` for STORE (`store`), DIR (`dir`), mount options (`options`) and any
//! long flag of `sealfs mount`. It becomes arguments of `mount` before they are parsed; what is on the
//! command line goes before it. Secrets stand in files that it names, never in it.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Args, Command, Subcommand};

use super::exit::{Exit, Failure, Outcome};
use super::user;
use crate::base::{own_uid, shell_word};

/// Bytes of the longest file that is read.
const BYTES_MAX: u64 = 64 << 10;
/// Where files of the machine are.
const SYSTEM_DIR: &str = "/etc/sealfs";
/// Under this heading stand the flags of which one opens the volume.
const KEY_HEADING: &str = "Key";

/// `sealfs config`.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ConfigCommand {
    /// Check configuration files, without mounting anything
    Check(CheckArgs),
    /// Show the command that `sealfs mount NAME` stands for
    Show(NameArgs),
    /// Apply to a live mount what of its file can change while it is there
    Apply(NameArgs),
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sealfs config check
  sealfs config check vault
  sealfs config check ./new.conf")]
struct CheckArgs {
    /// Names, or paths of files [default: all there are]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Args, Clone, Debug)]
struct NameArgs {
    /// Of `NAME.conf` in ~/.config/sealfs or /etc/sealfs, or a path with a slash in it
    #[arg(value_name = "NAME")]
    name: String,
}

/// A file that was read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Conf {
    store: Option<String>,
    dir: Option<String>,
    /// Flags in order: the name without dashes, and the value of one that takes a value.
    flags: Vec<(String, Option<String>)>,
}

/// Whether a STORE argument is the name of a file instead: no store looks like it.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.@".contains(c);
    !text.is_empty() && !text.starts_with(['.', '-']) && text.chars().all(plain)
}

/// Where files may be, those of this user first.
fn dirs() -> Vec<PathBuf> {
    let own = match std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => Some(dir),
        _ => user::home().map(|home| home.join(".config")),
    };
    own.map(|dir| dir.join("sealfs")).into_iter().chain([SYSTEM_DIR.into()]).collect()
}

fn find(name: &str) -> Outcome<PathBuf> {
    if name.contains('/') {
        return Ok(name.into());
    }
    let files: Vec<_> = dirs().iter().map(|dir| dir.join(format!("{name}.conf"))).collect();
    match files.iter().find(|file| file.exists()) {
        Some(file) => Ok(file.clone()),
        None => {
            let looked: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            let why = format!("there is no configuration {name}: neither {}", looked.join(" nor "));
            Err(Failure::new(Exit::Usage, why).hint(
                "a STORE is s3://BUCKET[/PREFIX] or file:///DIRECTORY; see sealfs config check",
            ))
        }
    }
}

/// Reads a file that nobody else can change: it says what is run and mounted.
fn read(file: &Path, mount: &Command) -> Outcome<Conf> {
    let shown = file.display();
    let failed = |why: String| Failure::new(Exit::Usage, format!("cannot use {shown}: {why}"));
    let meta = file.metadata().map_err(|e| failed(e.to_string()))?;
    if !meta.is_file() {
        return Err(failed("it is no file".into()));
    }
    if meta.uid() != own_uid() && meta.uid() != 0 {
        return Err(failed("it belongs to another user".into()).hint(format!("ls -l {shown}")));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(failed("others can change it".into()).hint(format!("chmod go-w {shown}")));
    }
    if meta.len() > BYTES_MAX {
        return Err(failed(format!("it is longer than {BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(file).map_err(|e| failed(e.to_string()))?;
    parse(&text, mount, user::home().as_deref())
        .map_err(|(line, why)| Failure::new(Exit::Usage, format!("{shown}:{line}: {why}")))
}

/// The lines of a file; what is wrong, with the number of its line.
fn parse(text: &str, mount: &Command, home: Option<&Path>) -> Result<Conf, (usize, String)> {
    let mut conf = Conf::default();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        setting(line, mount, home, &mut conf).map_err(|why| (n + 1, why))?;
    }
    Ok(conf)
}

fn setting(
    line: &str,
    mount: &Command,
    home: Option<&Path>,
    conf: &mut Conf,
) -> Result<(), String> {
    let Some((name, value)) = line.split_once('=') else {
        return Err(format!("'{}' has no value: NAME = VALUE", line.escape_debug()));
    };
    let name = name.trim().replace('_', "-").to_ascii_lowercase();
    let value = unquoted(value.trim())?;
    let once = |place: &mut Option<String>, value: String| match place.replace(value) {
        Some(_) => Err(format!("{name} is there twice")),
        None => Ok(()),
    };
    match name.as_str() {
        "store" => return once(&mut conf.store, value),
        "dir" => return once(&mut conf.dir, absolute(value, home)?),
        "options" => {
            conf.flags.push(("o".into(), Some(value)));
            return Ok(());
        }
        _ => {}
    }
    let flag = mount.get_arguments().find(|arg| arg.get_long() == Some(&name));
    let Some(flag) = flag.filter(|_| name != "help" && name != "foreground") else {
        let secret = ["passphrase", "secret", "password", "access-key"];
        return Err(match secret.iter().any(|word| name.contains(word)) {
            true => format!(
                "{name}: no secret stands in this file; name the file that holds it \
                 (passphrase-file, key-file), or a profile of ~/.aws (profile)"
            ),
            false => format!("there is no setting {name}; sealfs mount --help lists the flags"),
        });
    };
    let value = match (flag.get_action(), value.as_str()) {
        (ArgAction::SetTrue, "yes" | "true" | "on" | "1") => None,
        (ArgAction::SetTrue, "no" | "false" | "off" | "0") => return Ok(()),
        (ArgAction::SetTrue, _) => return Err(format!("{name} is yes or no")),
        _ if is_path(flag) => Some(absolute(value, home)?),
        _ => Some(value),
    };
    conf.flags.push((name, value));
    Ok(())
}

/// What stands between quotes, if it begins with one.
fn unquoted(value: &str) -> Result<String, String> {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            let inner = rest.strip_suffix(quote).filter(|inner| !inner.contains(quote));
            return inner.map(str::to_owned).ok_or_else(|| "a quote is not closed".into());
        }
    }
    Ok(value.to_owned())
}

fn is_path(flag: &Arg) -> bool {
    flag.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>()
}

/// A path that means the same in every directory. `~/` is the home directory.
fn absolute(path: String, home: Option<&Path>) -> Result<String, String> {
    match (path.strip_prefix("~/"), home) {
        (Some(below), Some(home)) => Ok(home.join(below).display().to_string()),
        (Some(_), None) => Err("HOME is not set".into()),
        (None, _) if path.starts_with('/') => Ok(path),
        (None, _) => Err(format!("{path} has to be a path from / or ~/")),
    }
}

/// Rewrites `sealfs mount NAME [DIR] …`; everything else stays as it is.
///
/// # Errors
/// The file is missing, or makes no sense.
pub fn expand(args: Vec<OsString>, cli: &Command) -> Outcome<Vec<OsString>> {
    let Some(mount) = cli.find_subcommand("mount") else { return Ok(args) };
    if args.get(1).is_none_or(|command| command != "mount") {
        return Ok(args);
    }
    // As mount reads it, but that STORE stands alone, and DIR need not be there.
    let lenient = mount.clone().mut_arg("dir", |arg| arg.required(false));
    let Ok(given) = lenient.try_get_matches_from(&args[1..]) else { return Ok(args) };
    let Some(name) = given.get_one::<String>("store").filter(|store| is_name(store)) else {
        return Ok(args);
    };
    let file = find(name)?;
    let conf = read(&file, mount)?;
    let shown = file.display();
    let lacks = |what: &str| Failure::new(Exit::Usage, format!("{shown} has no line {what} = …"));
    let store = conf.store.ok_or_else(|| lacks("store"))?;
    let given_dir = given.get_one::<PathBuf>("dir").map(|dir| dir.clone().into_os_string());
    let dir = given_dir.or(conf.dir.map(OsString::from)).ok_or_else(|| lacks("dir"))?;
    let is_given =
        |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let key_is_given = mount
        .get_arguments()
        .any(|arg| arg.get_help_heading() == Some(KEY_HEADING) && is_given(arg));
    let mut out: Vec<OsString> = args[..2].to_vec();
    for (name, value) in conf.flags {
        let arg = mount.get_arguments().find(|arg| arg.get_long() == Some(&name));
        let overridden = arg.is_some_and(|arg| {
            is_given(arg) || key_is_given && arg.get_help_heading() == Some(KEY_HEADING)
        });
        if !overridden {
            out.extend(words(&name, value).into_iter().map(OsString::from));
        }
    }
    out.extend(flags_of(&args[2..], mount));
    out.extend(["--".into(), store.into(), dir]);
    Ok(out)
}

fn words(name: &str, value: Option<String>) -> Vec<String> {
    match (name, value) {
        ("o", Some(value)) => vec!["-o".into(), value],
        (_, Some(value)) => vec![format!("--{name}={value}")],
        (_, None) => vec![format!("--{name}")],
    }
}

/// The arguments that are not STORE or DIR.
fn flags_of(args: &[OsString], mount: &Command) -> Vec<OsString> {
    let takes_value = |text: &str| {
        let flag = mount.get_arguments().find(|arg| match text.strip_prefix("--") {
            Some(long) => arg.get_long() == Some(long),
            None => text.len() == 2 && arg.get_short() == text.chars().nth(1),
        });
        flag.is_some_and(|arg| arg.get_action().takes_values())
    };
    let (mut out, mut args) = (Vec::new(), args.iter());
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if text == "--" {
            break;
        }
        if !text.starts_with('-') || text.len() == 1 {
            continue;
        }
        out.push(arg.clone());
        if takes_value(&text) {
            out.extend(args.next().cloned());
        }
    }
    out
}

/// Runs `sealfs config`.
pub fn run(args: ConfigArgs, cli: &Command) -> Outcome {
    match args.command {
        ConfigCommand::Check(args) => check(args, cli),
        ConfigCommand::Show(args) => show(&args.name, cli),
        ConfigCommand::Apply(args) => apply(&args.name, cli),
    }
}

fn mount_of(cli: &Command) -> Outcome<&Command> {
    cli.find_subcommand("mount").ok_or_else(|| Failure::new(Exit::General, "bug: no mount"))
}

/// What is wrong with a file is found as `mount` would find it.
fn checked(file: &Path, cli: &Command) -> Outcome<Vec<String>> {
    let mount = mount_of(cli)?;
    let conf = read(file, mount)?;
    let shown = file.display();
    let lacks = |what: &str| Failure::new(Exit::Usage, format!("{shown} has no line {what} = …"));
    let store = conf.store.ok_or_else(|| lacks("store"))?;
    let wrong = |e: String| Failure::new(Exit::Usage, format!("{shown}: {e}"));
    store.parse::<crate::store::Location>().map_err(|e| wrong(e.to_string()))?;
    let mut command = vec!["mount".to_owned()];
    command.extend(conf.flags.into_iter().flat_map(|(name, value)| words(&name, value)));
    // fstab can say where; everybody else needs it here.
    command.extend(["--".to_owned(), store, conf.dir.unwrap_or_else(|| "DIR".into())]);
    mount.clone().try_get_matches_from(&command).map_err(|e| {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default();
        wrong(first.trim_start_matches("error: ").to_owned())
    })?;
    Ok(command)
}

fn check(args: CheckArgs, cli: &Command) -> Outcome {
    let files = match args.names.is_empty() {
        false => args.names.iter().map(|name| find(name)).collect::<Outcome<Vec<_>>>()?,
        true => {
            let entries =
                dirs().into_iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten();
            let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
            let mut files: Vec<_> =
                files.filter(|file| file.extension().is_some_and(|e| e == "conf")).collect();
            files.sort();
            files
        }
    };
    let mut failed = None;
    for file in &files {
        match checked(file, cli) {
            Ok(_) => println!("{}: fine", file.display()),
            Err(failure) => {
                println!("{}", failure.message);
                failed = Some(failure);
            }
        }
    }
    if files.is_empty() {
        println!("there is no configuration in {}", dirs_shown());
    }
    match failed {
        None => Ok(()),
        Some(failure) if files.len() == 1 => Err(failure),
        Some(_) => Err(Failure::new(Exit::Usage, "not all of them can be used")),
    }
}

fn dirs_shown() -> String {
    let dirs: Vec<_> = dirs().iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(" or ")
}

fn show(name: &str, cli: &Command) -> Outcome {
    let mut line = "sealfs".to_owned();
    for word in checked(&find(name)?, cli)? {
        write!(line, " {}", shell_word(&word)).expect("a String takes everything");
    }
    println!("{line}");
    Ok(())
}

/// The settings of the file that `sealfs set` knows, for the mount on its directory.
fn apply(name: &str, cli: &Command) -> Outcome {
    let file = find(name)?;
    checked(&file, cli)?;
    let conf = read(&file, mount_of(cli)?)?;
    let dir = conf.dir.ok_or_else(|| {
        let why = format!("{} has no line dir = …: which mount is meant", file.display());
        Failure::new(Exit::Usage, why).hint("sealfs set DIR NAME=VALUE")
    })?;
    let settings = conf.flags.into_iter().filter_map(|(name, value)| Some((name, value?)));
    super::set::apply(Path::new(&dir), settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled_text;
    use clap::CommandFactory;

    fn parsed(text: &str) -> Result<Conf, (usize, String)> {
        let cli = super::super::Cli::command();
        let mount = cli.find_subcommand("mount").expect("a command");
        parse(text, mount, Some(Path::new("/home/me")))
    }

    #[test]
    fn a_file_says_what_the_flags_say_and_holds_no_secret() {
        // Guards against a setting that is misread or ignored, a path that depends on where somebody
        // stands, and a secret in a file that backups and administrators see.
        let conf = parsed(
            "# a volume\nstore = s3://b/p\nDIR=~/vault\n\npassphrase_file = '/etc/a b.pass'\n\
             allow-http = yes\nread-only = no\nupload-limit = 2M\noptions = allow_other,ro\n\
             object-tag = \"a=1\"\nobject-tag = b=2\n",
        )
        .expect("a good file");
        assert_eq!(conf.store.as_deref(), Some("s3://b/p"));
        assert_eq!(conf.dir.as_deref(), Some("/home/me/vault"));
        let words: Vec<_> =
            conf.flags.into_iter().flat_map(|(name, value)| words(&name, value)).collect();
        assert_eq!(
            words,
            [
                "--passphrase-file=/etc/a b.pass",
                "--allow-http",
                "--upload-limit=2M",
                "-o",
                "allow_other,ro",
                "--object-tag=a=1",
                "--object-tag=b=2"
            ]
        );
        for (text, line, part) in [
            ("store = s3://b/p\nspeed = 1", 2, "there is no setting speed"),
            ("\n\npassphrase = hunter2", 3, "no secret stands in this file"),
            ("aws_secret_access_key = x", 1, "no secret stands in this file"),
            ("key-file = v.key", 1, "has to be a path from / or ~/"),
            ("read-only = perhaps", 1, "is yes or no"),
            ("read-only", 1, "has no value"),
            ("store = 'x", 1, "a quote is not closed"),
            ("store = a\nstore = b", 2, "is there twice"),
            ("foreground = yes", 1, "there is no setting"),
        ] {
            let (at, why) = parsed(text).expect_err(text);
            assert!(at == line && why.contains(part), "{text}: line {at}: {why}");
        }
    }

    #[test]
    fn what_is_no_name_is_left_alone() {
        // Guards against a store that is taken for a name.
        for name in ["vault", "a.b", "x@y", "v-1_2"] {
            assert!(is_name(name), "{name}");
        }
        for store in ["s3://b", "file:///x", "memory:", "a/b", "", ".hidden", "-x"] {
            assert!(!is_name(store), "{store}");
        }
        let cli = super::super::Cli::command();
        for args in [
            &["sealfs", "mount", "s3://b/p", "/mnt"][..],
            &["sealfs", "status", "vault"],
            &["sealfs", "mount"],
            &["sealfs", "mount", "--nonsense", "vault"],
        ] {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            assert_eq!(expand(args.clone(), &cli).expect("left alone"), args);
        }
        let mount = cli.find_subcommand("mount").expect("a command");
        let args = ["--profile", "vault", "vault", "-o", "ro", "-f", "--region=x", "--", "y"];
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        assert_eq!(flags_of(&args, mount), ["--profile", "vault", "-o", "ro", "-f", "--region=x"]);
    }

    #[test]
    fn whatever_a_file_says_it_is_read_or_refused_at_a_line() {
        // Guards against a panic, a line number that is none, and a file that says something else than what
        // `config show` makes of it.
        let all = "# a\nstore = s3://b/p\ndir = ~/v\npassphrase_file = \"/a b\"\noptions = ro,dev\n\
                   allow-http = yes\nobject-tag = a=1,2\n; c\ncache-size='10G'\n";
        let words = ["\"", "'", "=", "~", "~/", "dir = ", "store=", "\r", "\0", " ", "\u{2028}"];
        garbled_text(&[all, "dir = relative"], &words, |text| match parsed(text) {
            Ok(conf) => assert!(conf.dir.is_none_or(|dir| dir.starts_with('/')), "{text:?}"),
            Err((line, _)) => assert!((1..=text.lines().count()).contains(&line), "{text:?}"),
        });
    }
}
