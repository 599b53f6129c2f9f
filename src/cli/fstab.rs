//! Flags of `sealfs mount` as mount options: `-o passphrase_file=F` is `--passphrase-file F`.
//!
//! fstab(5) and mount(8) know one list of options and nothing else, so every long flag can stand in
//! it, by its own name (`_` and `-` are the same). What is no flag stays in the list.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// Rewrites the arguments of `sealfs mount`; those of other commands stay as they are.
pub fn expand(args: Vec<OsString>, cli: &Command) -> Vec<OsString> {
    let Some(mount) = cli.find_subcommand("mount") else { return args };
    if args.get(1).is_none_or(|command| command != "mount") {
        return args;
    }
    let mut out = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        if text == "--" {
            out.push(arg);
            out.extend(args.by_ref());
        } else if text == "-o" {
            match args.next().map(OsString::into_string) {
                Some(Ok(list)) => expand_list(&list, mount, &mut out),
                Some(Err(list)) => out.extend([arg, list]), // not text: no flag is in it
                None => out.push(arg),
            }
        } else if let Some(list) = text.strip_prefix("-o") {
            expand_list(list.trim_start_matches('='), mount, &mut out);
        } else {
            out.push(arg);
        }
    }
    out
}

fn expand_list(list: &str, mount: &Command, out: &mut Vec<OsString>) {
    let mut rest = Vec::new();
    for option in split(list) {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        };
        let name = name.replace('_', "-");
        match mount.get_arguments().find(|arg| arg.get_long() == Some(&name)) {
            Some(arg) => out.extend(flag(arg, &name, value).map(OsString::from)),
            None => rest.push(option),
        }
    }
    if !rest.is_empty() {
        out.extend(["-o".into(), rest.join(",").into()]);
    }
}

/// The flag as it is typed. A switch may have a value here: `takeover=false` is none.
fn flag(arg: &Arg, name: &str, value: Option<&str>) -> Option<String> {
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    match value {
        Some("false" | "no" | "off" | "0") if is_switch => None,
        Some("true" | "yes" | "on" | "1") | None if is_switch => Some(format!("--{name}")),
        Some(value) => Some(format!("--{name}={value}")),
        None => Some(format!("--{name}")),
    }
}

/// Cuts a list at its commas. A comma that belongs to a value stands between double quotes, as
/// mount(8) has it, or behind a backslash.
fn split(list: &str) -> Vec<String> {
    let (mut parts, mut part, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if matches!(chars.peek(), Some(',' | '"' | '\\')) => part.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled_text;
    use clap::CommandFactory;

    fn expanded(args: &[&str]) -> Vec<String> {
        let args = args.iter().map(OsString::from).collect();
        let out = expand(args, &super::super::Cli::command());
        out.into_iter().map(|arg| arg.into_string().expect("text")).collect()
    }

    #[test]
    fn every_flag_of_mount_can_stand_in_fstab() {
        // Guards against an option that --help lists and a line of fstab cannot say.
        let cli = super::super::Cli::command();
        let mount = cli.find_subcommand("mount").expect("a command");
        let mut seen = 0;
        for arg in mount.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            seen += 1;
            let name = long.replace('-', "_");
            let (option, flag) = match arg.get_action() {
                ArgAction::SetTrue => (name, format!("--{long}")),
                _ => (format!("{name}=1"), format!("--{long}=1")),
            };
            let out = expanded(&["sealfs", "mount", "s", "d", "-o", &format!("ro,{option},dev")]);
            assert_eq!(out, ["sealfs", "mount", "s", "d", &flag, "-o", "ro,dev"]);
        }
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn values_may_have_commas_and_what_is_no_flag_stays() {
        // Guards against a path or tag cut at its comma, and an option that is lost.
        assert_eq!(
            expanded(&["sealfs", "mount", "-o", "object_tag=\"a=1,2\",key_file=/a\\,b,_netdev"]),
            ["sealfs", "mount", "--object-tag=a=1,2", "--key-file=/a,b", "-o", "_netdev"]
        );
        assert_eq!(
            expanded(&["sealfs", "mount", "-otakeover=false,allow_http,sse-bucket-key", "x"]),
            ["sealfs", "mount", "--allow-http", "--sse-bucket-key", "x"]
        );
        assert_eq!(expanded(&["sealfs", "mount", "-o"]), ["sealfs", "mount", "-o"]);
        assert_eq!(
            expanded(&["sealfs", "umount", "-o", "over"]),
            ["sealfs", "umount", "-o", "over"]
        );
    }

    #[test]
    fn no_list_of_options_is_lost_or_makes_a_panic() {
        // Guards against a line of fstab that ends the boot.
        let cli = super::super::Cli::command();
        let mount = cli.find_subcommand("mount").expect("a command");
        let lists = ["rw,key_file=\"/a,b\",noexec", "takeover=false,allow_http,x=\\,\\\""];
        garbled_text(&lists, &[",", "\"", "\\", "=", "ro", "takeover="], |list| {
            let mut out = Vec::new();
            expand_list(list, mount, &mut out);
            let parts = split(list);
            assert!(parts.iter().all(|part| !part.is_empty()), "{list:?}");
            assert!(parts.iter().map(String::len).sum::<usize>() <= list.len(), "{list:?}");
        });
    }
}
